//! What starting costs, and what a worker costs that does nothing.
//!
//! A journal is filled through a real shard, then read back by fresh processes, so that memory and time are those of a start
//! and of nothing else. The files are in the page cache: this measures the reading, not the disk.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use endstation::worker::Worker;
use serde::{Deserialize, Serialize};

use crate::floor::Results;
use crate::message::{Form, Job};
use crate::process::{self, cpu_us, resident_bytes, thread_cpu_us};
use crate::report::{Keep, Machine};
use crate::server::NatsServer;
use crate::subject::{Running, Subject};
use crate::{KeepArgs, disk, engine};

/// How to measure a start.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct BootArgs {
    /// Rounds; the table shows medians.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Steps in the journal; each is remembered, and leaves four records.
    #[arg(long, default_value_t = 1_000_000)]
    steps: u64,
    /// Seconds that the idle worker is looked at.
    #[arg(long, default_value_t = 10.0)]
    idle_seconds: f64,
    /// The worker's binary; default: `ENDSTATION_BIN`, else `endstation` beside this one.
    #[arg(long)]
    worker: Option<PathBuf>,
    /// Where journals lie while measuring; default: the system's temporary folder.
    #[arg(long)]
    dir: Option<PathBuf>,
    #[command(flatten)]
    keep: KeepArgs,
}

/// A start in a process of its own.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct BootWorkerArgs {
    /// Where its data lies.
    #[arg(long)]
    dir: PathBuf,
}

/// What one start showed.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Start {
    ms: f64,
    /// Processor time of the shard's thread up to then.
    shard_cpu_ms: f64,
    records: u64,
    keys: u64,
    rss_mb: f64,
    peak_mb: f64,
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// A start with nothing there.
    empty: Start,
    /// A start with the filled journal.
    filled: Start,
    records_per_second: f64,
    /// What the remembered keys add.
    keys_mb: f64,
    /// From the process's start until `serve` is ready, NATS included, with nothing there.
    serve_ready_ms: f64,
    idle_cpu_percent: f64,
    idle_rss_mb: f64,
}

/// Measures.
pub(crate) async fn measure(args: &BootArgs) -> Result<()> {
    let root = crate::scratch(args.dir.as_deref())?;
    let worker = crate::nats::worker_binary(args.worker.as_deref())?;
    let machine = Machine::look(&args.keep, disk::fsync(root.path())?)?;
    let journal = root.path().join("filled");
    engine::fill(&journal, args.steps)?;
    let mut rows = Vec::new();
    for round in 0..args.runs {
        let empty = root.path().join(format!("empty-{round}"));
        let (empty, filled) = (start(&empty)?, start(&journal)?);
        ensure!(filled.keys == args.steps, "{} of {} keys came back", filled.keys, args.steps);
        let (serve_ready_ms, idle_cpu_percent, idle_rss_mb) =
            idle(args, &worker, &root.path().join(format!("idle-{round}"))).await?;
        let row = Row {
            records_per_second: filled.records as f64 / (filled.ms - empty.ms).max(0.1) * 1e3,
            keys_mb: filled.rss_mb - empty.rss_mb,
            empty,
            filled,
            serve_ready_ms,
            idle_cpu_percent,
            idle_rss_mb,
        };
        eprintln!("round {} of {}: {:.0} records/s", round + 1, args.runs, row.records_per_second);
        rows.push(row);
    }
    let median = median(&rows);
    let table = table(&machine, &median);
    Keep { scenario: "boot", machine, medians: vec![median], measurements: rows }.publish(&args.keep, &table)
}

/// Starts a worker in this process, says what that took, and ends it.
pub(crate) fn work(args: &BootWorkerArgs) -> Result<()> {
    let settings = engine::settings(&args.dir, 1, false)?;
    let begun = Instant::now();
    let worker = Worker::start(&settings, &engine::plan())?;
    let ms = begun.elapsed().as_secs_f64() * 1e3;
    let shard_cpu_ms = thread_cpu_us(engine::shard_thread(0, &[])?)? as f64 / 1e3;
    // What was only needed to start goes back to the system.
    std::thread::sleep(Duration::from_secs(1));
    let rss_mb = resident_bytes(std::process::id())? as f64 / 1e6;
    let peak_mb = process::peak_bytes(std::process::id())? as f64 / 1e6;
    let (records, keys) = worker.found.iter().fold((0, 0), |(r, k), found| (r + found.frames, k + found.outcomes));
    worker.stop()?;
    serde_json::to_writer(std::io::stdout(), &Start { ms, shard_cpu_ms, records, keys, rss_mb, peak_mb })?;
    Ok(())
}

fn start(dir: &Path) -> Result<Start> {
    let output = Command::new(std::env::current_exe()?).arg("boot-worker").arg("--dir").arg(dir).output()?;
    ensure!(output.status.success(), "a start failed: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("a start said something else")
}

/// A served worker that nobody sends anything: time until it is ready, then percent of a core and resident MB.
async fn idle(args: &BootArgs, worker: &Path, dir: &Path) -> Result<(f64, f64, f64)> {
    std::fs::create_dir_all(dir)?;
    let server = NatsServer::start(dir, Form::Assignment(Job::Echo), false).await?;
    let begun = Instant::now();
    let subject = Subject::Worker { results: Results::Core, events: true };
    let mut running = Running::launch(subject, Some(worker), None, &server, None, &[], dir)?;
    running.ready().await?;
    let ready_ms = begun.elapsed().as_secs_f64() * 1e3;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (before, begun) = (cpu_us(running.pid())?, Instant::now());
    tokio::time::sleep(Duration::from_secs_f64(args.idle_seconds)).await;
    let used_us = cpu_us(running.pid())? - before;
    let percent = used_us as f64 / begun.elapsed().as_micros() as f64 * 100.0;
    Ok((ready_ms, percent, resident_bytes(running.pid())? as f64 / 1e6))
}

/// The median measurement by recovery's rate; what does not depend on it, by itself.
fn median(rows: &[Row]) -> Row {
    let sorted = |of: fn(&Row) -> f64| {
        let mut rows: Vec<&Row> = rows.iter().collect();
        rows.sort_by(|one, other| of(one).total_cmp(&of(other)));
        rows[rows.len() / 2].clone()
    };
    Row {
        serve_ready_ms: sorted(|row| row.serve_ready_ms).serve_ready_ms,
        idle_cpu_percent: sorted(|row| row.idle_cpu_percent).idle_cpu_percent,
        idle_rss_mb: sorted(|row| row.idle_rss_mb).idle_rss_mb,
        empty: sorted(|row| row.empty.ms).empty,
        ..sorted(|row| row.records_per_second)
    }
}

fn table(machine: &Machine, row: &Row) -> String {
    let Row { empty, filled, .. } = row;
    let keys = filled.keys as f64;
    [
        machine.head(),
        format!("recovery             {:>10.0} records/s on one core, warm cache", row.records_per_second),
        format!("                     {:>10} records, {} keys in {:.0} ms", filled.records, filled.keys, filled.ms),
        format!("                     {:>10.0} ms processor time of the shard", filled.shard_cpu_ms),
        format!(
            "memory of keys       {:>10.1} MB, {:.0} bytes each; peak {:.0} MB",
            row.keys_mb,
            row.keys_mb * 1e6 / keys,
            filled.peak_mb
        ),
        format!("start, empty journal {:>10.1} ms, shards only; {:.1} MB", empty.ms, empty.rss_mb),
        format!("serve until ready    {:>10.1} ms, NATS included", row.serve_ready_ms),
        format!("idle serve           {:>10.2} % of a core, {:.1} MB", row.idle_cpu_percent, row.idle_rss_mb),
        String::new(),
    ]
    .join("\n")
}
