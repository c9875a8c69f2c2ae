//! Load and measurement for endstation: the worker beside the floor, which is the same work done by a consumer that does
//! nothing, so that a number says what the worker costs and not what the machine is.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Parser, Subcommand};

mod boot;
mod disk;
mod drive;
mod engine;
mod floor;
mod frames;
mod gpu;
mod message;
mod nats;
mod place;
mod process;
mod report;
mod server;
mod sql;
mod subject;

use nats::Scenario;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(about = "Load and measurement for endstation")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The worker and the floor, interleaved, over a real nats-server with file streams.
    Nats(NatsArgs),
    /// The floor alone: what NATS gives a worker that does nothing.
    Floor(NatsArgs),
    /// Blocks that do something, over NATS, beside one that does nothing and a bare HTTP client.
    Blocks(NatsArgs),
    /// Steps that do nothing, while another tenant's steps do a lot.
    Neighbours(NatsArgs),
    /// Statements on a PostgreSQL server, over NATS, beside a bare client of the same server.
    Sql(NatsArgs),
    /// The gpu lane's jobs on a device, if there is one, and on the CPU.
    Gpu(gpu::GpuArgs),
    /// Shards without NATS.
    Engine(engine::EngineArgs),
    /// What a start costs, and a worker that does nothing.
    Boot(boot::BootArgs),
    /// A start in a process of its own, for `boot`.
    #[command(hide = true)]
    BootWorker(boot::BootWorkerArgs),
    /// The bare consumer of the floor; started by the other commands as a process of its own.
    #[command(hide = true)]
    FloorWorker(floor::FloorArgs),
    /// The place that HTTP steps reach; likewise.
    #[command(hide = true)]
    PlaceWorker(place::PlaceArgs),
}

/// How to measure over NATS.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct NatsArgs {
    /// Rounds over all rows; the table shows medians.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Measured seconds of the closed and open loops, after one second of warming up.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Loads: a number is a closed loop with so many in flight; `open` is a fixed rate; `drain` empties a filled stream.
    #[arg(long, value_delimiter = ',', default_value = "64,256,open,drain")]
    rows: Vec<drive::Load>,
    /// Steps per second of the open loop.
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// Steps waiting when the drain begins.
    #[arg(long, default_value_t = 200_000)]
    backlog: u32,
    /// Steps of the other tenant at once, for `neighbours`.
    #[arg(long, default_value_t = 100)]
    beside: u32,
    /// Tenants that the steps belong to, in turn.
    #[arg(long, default_value_t = 16)]
    tenants: u32,
    /// The worker's binary; default: `ENDSTATION_BIN`, else `endstation` beside this one.
    #[arg(long)]
    worker: Option<PathBuf>,
    /// The worker's `cores.shards`; default: as it ships, the edge on the first core and a shard on each other.
    #[arg(long)]
    shards: Option<String>,
    /// Only subjects whose names contain this.
    #[arg(long, default_value = "")]
    only: String,
    /// Where streams and journals lie while measuring; default: the system's temporary folder.
    #[arg(long)]
    dir: Option<PathBuf>,
    #[command(flatten)]
    keep: KeepArgs,
}

/// Where results are kept, and under what names.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct KeepArgs {
    /// Where results are kept, in a folder `<date>-<host>`; `-` keeps none.
    #[arg(long, default_value = "perf/runs")]
    out: PathBuf,
    /// Date of the run (YYYY-MM-DD); default: today, UTC.
    #[arg(long)]
    date: Option<String>,
    /// Name of the machine in the folder's name; default: its host name.
    #[arg(long)]
    host: Option<String>,
}

/// A folder for what a measurement writes; gone with the value.
pub(crate) fn scratch(dir: Option<&Path>) -> Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix("perf-");
    Ok(match dir {
        Some(dir) => builder.tempdir_in(dir)?,
        None => builder.tempdir()?,
    })
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match cli.command {
        Command::Nats(args) => runtime.block_on(nats::measure(&args, Scenario::Nats)),
        Command::Floor(args) => runtime.block_on(nats::measure(&args, Scenario::Floor)),
        Command::Neighbours(args) => runtime.block_on(nats::measure(&args, Scenario::Neighbours)),
        Command::Sql(args) => runtime.block_on(nats::measure(&args, Scenario::Sql)),
        Command::Gpu(args) => gpu::measure(&args),
        Command::Blocks(args) => runtime.block_on(nats::measure(&args, Scenario::Blocks)),
        Command::PlaceWorker(args) => runtime.block_on(place::work(&args)),
        Command::Engine(args) => engine::measure(&args),
        Command::Boot(args) => runtime.block_on(boot::measure(&args)),
        Command::BootWorker(args) => boot::work(&args),
        Command::FloorWorker(args) => runtime.block_on(floor::work(&args)),
    }
}
