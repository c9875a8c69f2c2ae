//! The measurement over NATS: every load, every subject, so many rounds, interleaved so that the machine's drift meets all
//! alike. Each measurement has a fresh server, fresh streams and a fresh process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::NatsArgs;
use crate::drive::{Cpu, Driver, Load, Window};
use crate::message::{self, ASSIGN, BLOB, Job, LARGE, LOUD, WAITING};
use crate::place::{self, Place};
use crate::report::{Machine, Report};
use crate::server::NatsServer;
use crate::sql::Database;
use crate::subject::{ALL, BLOCKS, Counters, NEIGHBOURS, Running, SQL, Subject};
use crate::{disk, process};

/// What runs beside is under way by then.
const SETTLE: Duration = Duration::from_secs(3);

/// One measurement of one subject under one load.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) load: String,
    pub(crate) subject: &'static str,
    pub(crate) floor: &'static str,
    pub(crate) steps: u64,
    pub(crate) per_second: f64,
    pub(crate) p50_us: u64,
    pub(crate) p95_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) p999_us: u64,
    pub(crate) cpu_us: f64,
    pub(crate) server_cpu_us: f64,
    pub(crate) driver_cpu_us: f64,
    pub(crate) peak_mb: f64,
    pub(crate) threads: u64,
    pub(crate) fsyncs: Option<f64>,
    pub(crate) journal_bytes: Option<f64>,
    pub(crate) messages: Option<f64>,
    pub(crate) failed: u64,
    pub(crate) repeated: u64,
    pub(crate) lost: u64,
    pub(crate) send_lag_p99_us: u64,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// The worker and the floor.
    Nats,
    /// The floor alone.
    Floor,
    /// Blocks that do something.
    Blocks,
    /// What one tenant's steps cost another's.
    Neighbours,
    /// What steps ask of a PostgreSQL server.
    Sql,
}

/// Measures and reports.
pub(crate) async fn measure(args: &NatsArgs, scenario: Scenario) -> Result<()> {
    let root = crate::scratch(args.dir.as_deref())?;
    let worker = if scenario == Scenario::Floor { None } else { Some(worker_binary(args.worker.as_deref())?) };
    let place = if matches!(scenario, Scenario::Blocks | Scenario::Neighbours) { Some(Place::open(root.path())?) } else { None };
    let database = if scenario == Scenario::Sql { Some(Database::open()) } else { None };
    let machine = Machine::look(&args.keep, disk::fsync(root.path())?)?;
    let wanted = |subject: &Subject| (worker.is_some() || subject.is_floor()) && subject.name().contains(&args.only);
    let all = match scenario {
        Scenario::Blocks => &BLOCKS[..],
        Scenario::Neighbours => &NEIGHBOURS[..],
        Scenario::Sql => &SQL[..],
        Scenario::Nats | Scenario::Floor => &ALL[..],
    };
    let subjects: Vec<Subject> = all.iter().copied().filter(wanted).collect();
    let mut rows = Vec::new();
    for round in 0..args.runs {
        for load in &args.rows {
            for subject in &subjects {
                let dir = root.path().join(format!("{}", rows.len()));
                std::fs::create_dir_all(&dir)?;
                let what = format!("{}, {load}", subject.name());
                let row = one(args, *subject, *load, worker.as_deref(), place.as_ref(), database.as_ref(), &dir)
                    .await
                    .with_context(|| what.clone())?;
                eprintln!("round {} of {}: {what}: {:.0}/s", round + 1, args.runs, row.per_second);
                rows.push(row);
                std::fs::remove_dir_all(&dir)?;
            }
        }
    }
    let mut note = String::new();
    if let Some(place) = place.as_ref().filter(|_| scenario == Scenario::Blocks) {
        let (gets, cpu_us) = place::bare(place, args.seconds).await?;
        note = format!("a bare client of the same place, 64 in flight: {gets:.0} GETs/s, {cpu_us:.1} µs of its CPU each\n");
        let (puts, cpu_us) = disk::puts(root.path(), 64, args.seconds)?;
        note += &format!("bare durable puts, 64 threads: {puts:.0}/s, {cpu_us:.1} µs of their CPU each\n");
    }
    if let Some(database) = &database {
        note = database.bare(args.seconds).await?;
    }
    let name = match scenario {
        Scenario::Nats => "nats",
        Scenario::Floor => "floor",
        Scenario::Blocks => "blocks",
        Scenario::Neighbours => "neighbours",
        Scenario::Sql => "sql",
    };
    Report::new(name, machine, rows).show(&args.keep, &note)
}

/// The worker's binary: the one named, or `ENDSTATION_BIN`, or the one beside this.
pub(crate) fn worker_binary(named: Option<&Path>) -> Result<PathBuf> {
    let named = named.map(Path::to_owned).or_else(|| std::env::var_os("ENDSTATION_BIN").map(PathBuf::from));
    let path = match named {
        Some(path) => path,
        None => std::env::current_exe()?.with_file_name("endstation"),
    };
    path.canonicalize().with_context(|| format!("no worker at {}: build it, or name it with --worker", path.display()))
}

async fn one(
    args: &NatsArgs,
    subject: Subject,
    load: Load,
    worker: Option<&Path>,
    place: Option<&Place>,
    database: Option<&Database>,
    dir: &Path,
) -> Result<Row> {
    let place = place.map(Place::url);
    if let Some(database) = database {
        database.empty();
    }
    let database = database.map(Database::env).unwrap_or_default();
    if subject == Subject::Block(Job::BlobGet) {
        for tenant in 0..args.tenants {
            let folder = dir.join("data/blobs").join(endstation::blocks::local::folder_of(&format!("tenant-{tenant}")));
            std::fs::create_dir_all(&folder)?;
            std::fs::write(folder.join(BLOB.0), BLOB.1)?;
        }
    }
    if subject == Subject::Beside(Some(Job::HashLarge)) {
        let folder = dir.join("data/blobs").join(endstation::blocks::local::folder_of(LOUD));
        std::fs::create_dir_all(&folder)?;
        std::fs::File::create(folder.join(LARGE.0))?.set_len(LARGE.1)?;
    }
    let server = NatsServer::start(dir, subject.form(), subject.stored()).await?;
    let (mut running, window, counters, peak, threads);
    if load == Load::Drain {
        // Nobody works while the stream is filled; the process's pid is known only afterwards.
        let subject_pid = std::cell::Cell::new(None);
        let cpu = || read_cpu(subject_pid.get(), server.pid());
        let mut driver = Driver::new(server.connect().await?, subject.form(), args.tenants, &cpu).await?;
        driver.fill(args.backlog).await?;
        running = Running::launch(subject, worker, args.shards.as_deref(), &server, place.as_deref(), &database, dir)?;
        subject_pid.set(Some(running.pid()));
        window = driver.drained().await.with_context(|| running.log_tail())?;
    } else {
        running = Running::launch(subject, worker, args.shards.as_deref(), &server, place.as_deref(), &database, dir)?;
        running.ready().await?;
        if let Subject::Beside(Some(job)) = subject {
            let client = server.connect().await?;
            let waits = job == Job::Approval;
            for n in 0..if waits { WAITING } else { args.beside } {
                client.publish(ASSIGN, message::beside(job, n).into()).await?;
            }
            client.flush().await?;
            if waits {
                running.waits_for_people(WAITING).await?;
            }
            // They are all under way, or what there may be of them; and what their coming gave the server to do is done.
            tokio::time::sleep(if waits { 5 * SETTLE } else { SETTLE }).await;
        }
        let pid = running.pid();
        let cpu = || read_cpu(Some(pid), server.pid());
        let driver = Driver::new(server.connect().await?, subject.form(), args.tenants, &cpu).await?;
        let measured = match load {
            Load::Closed(in_flight) => driver.closed(in_flight, args.seconds).await,
            Load::Open | Load::Drain => driver.open(args.rate, args.seconds).await,
        };
        window = measured.with_context(|| running.log_tail())?;
    }
    counters = running.counters().await?;
    peak = process::peak_bytes(running.pid())?;
    threads = process::threads(running.pid())?;
    drop(running);
    Ok(row(subject, load, &window, counters, peak, threads))
}

fn read_cpu(subject: Option<u32>, server: u32) -> Result<Cpu> {
    let subject = subject.map_or(Ok(0), process::cpu_us)?;
    Ok(Cpu { subject, server: process::cpu_us(server)?, driver: process::cpu_us(std::process::id())? })
}

fn row(subject: Subject, load: Load, window: &Window, counters: Option<Counters>, peak: u64, threads: u64) -> Row {
    let steps = window.steps.max(1) as f64;
    let all = window.answered.max(1) as f64;
    Row {
        load: load.to_string(),
        subject: subject.name(),
        floor: subject.floor().name(),
        steps: window.steps,
        per_second: window.steps as f64 / window.seconds.max(f64::EPSILON),
        p50_us: window.latency.value_at_quantile(0.5),
        p95_us: window.latency.value_at_quantile(0.95),
        p99_us: window.latency.value_at_quantile(0.99),
        p999_us: window.latency.value_at_quantile(0.999),
        cpu_us: window.cpu.subject as f64 / steps,
        server_cpu_us: window.cpu.server as f64 / steps,
        driver_cpu_us: window.cpu.driver as f64 / steps,
        peak_mb: peak as f64 / 1e6,
        threads,
        // Counters run from the process's start, so they are set against every step and not only the measured ones.
        fsyncs: counters.map(|counters| counters.fsyncs / all),
        journal_bytes: counters.map(|counters| counters.journal_bytes / all),
        messages: counters.map(|counters| counters.published / all),
        failed: window.failed,
        repeated: window.repeated,
        lost: window.lost,
        send_lag_p99_us: window.lag.value_at_quantile(0.99),
    }
}
