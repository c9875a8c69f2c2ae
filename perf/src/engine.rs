//! Shards without NATS: pre-built deliveries in, rendered letters out, everything between as it ships (decode, machine,
//! journal on a real disk, render).
//!
//! One feeder thread serves all shards. It copies pre-encoded frames, patches the number in, and hands them over in large
//! batches; it confirms what comes out without looking further into it than the number. Its processor time is measured and
//! shown beside the shards', never added to them; on few cores it takes wall time from them all the same.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use endstation::settings::Settings;
use endstation::worker::{Identity, Plan, Worker};
use hdrhistogram::Histogram;
use serde::Serialize;
use shards::ids::{Salt, Ticket};
use shards::runtime::keeper::Keeper;
use shards::runtime::ports::{Inbound, Outgoing, Outlet};
use shards::tally::Tally;

use crate::frames::{BATCH, Frames, What, number_in};
use crate::process::{self, thread_cpu_us};
use crate::report::{Keep, Machine};
use crate::{KeepArgs, disk};

/// Not measured: caches, the first segments, the allocator's pages.
const WARM_UP: Duration = Duration::from_secs(1);
/// Nothing for so long means that something is broken.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often the shards' counters are read.
const LISTEN_EVERY: Duration = Duration::from_millis(100);

/// How to measure shards.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct EngineArgs {
    /// Rounds over all rows; the table shows medians.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Measured seconds, after one second of warming up.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Shard counts, one on each of the first cores.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    shards: Vec<usize>,
    /// Steps under way on each shard.
    #[arg(long, value_delimiter = ',', default_value = "8192,256")]
    windows: Vec<u32>,
    /// Lifecycle events: `off`, `on` or both.
    #[arg(long, value_delimiter = ',', default_value = "off,on")]
    events: Vec<String>,
    /// What the steps are.
    #[arg(long, value_enum, default_value_t = What::Echo)]
    what: What,
    /// Where journals lie while measuring; default: the system's temporary folder.
    #[arg(long)]
    dir: Option<PathBuf>,
    #[command(flatten)]
    keep: KeepArgs,
}

/// What a dry run of [`What::Plans`] goes by: its other side is never asked.
const CONNECTOR: &str = "[connectors.crm]\ntenants = \"*\"\nurl = \"https://crm.example/api\"\nidempotency_key = true\n";

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    what: What,
    shards: usize,
    events: bool,
    window: u32,
    steps: u64,
    per_second: f64,
    p50_us: u64,
    p99_us: u64,
    /// Processor time of the shards' own threads, in µs a step.
    shard_cpu_us: f64,
    /// How much of its core a shard used, 0 to 1.
    shard_busy: f64,
    /// Processor time of the kernel's threads that write and sync for the rings, in µs a step.
    ring_cpu_us: f64,
    feeder_cpu_us: f64,
    journal_bytes: f64,
    journal_frames: f64,
    /// Steps that one fsync makes durable, all their frames taken together.
    steps_per_fsync: f64,
    fsyncs_per_second: f64,
    letters: f64,
    peak_mb: f64,
    failed: u64,
    lost: u64,
}

/// Measures.
pub(crate) fn measure(args: &EngineArgs) -> Result<()> {
    let root = crate::scratch(args.dir.as_deref())?;
    let machine = Machine::look(&args.keep, disk::fsync(root.path())?)?;
    let mut rows = Vec::new();
    for round in 0..args.runs {
        for &shards in &args.shards {
            for &window in &args.windows {
                for events in &args.events {
                    let dir = root.path().join(rows.len().to_string());
                    let row = one(args, shards, window, events == "on", &dir)?;
                    eprintln!(
                        "round {} of {}: {shards} shards, {window} under way, events {events}: {:.0}/s, {:.2} µs a step",
                        round + 1,
                        args.runs,
                        row.per_second,
                        row.shard_cpu_us
                    );
                    rows.push(row);
                    std::fs::remove_dir_all(&dir)?;
                }
            }
        }
    }
    let medians = medians(&rows);
    let table = table(&machine, &medians, args.what);
    let scenario = if args.what == What::Plans { "plans" } else { "engine" };
    Keep { scenario, machine, medians, measurements: rows }.publish(&args.keep, &table)
}

/// What has been used up to a moment.
#[derive(Clone, Copy, Default)]
struct Used {
    shards_us: u64,
    feeder_us: u64,
    process_us: u64,
}

struct Feeder<'a> {
    worker: &'a Worker,
    frames: Vec<Frames>,
    window: u32,
    under_way: Vec<u32>,
    confirms: Vec<Vec<Ticket>>,
    /// By shard, then by batch: when it was handed over.
    sent: Vec<Vec<Instant>>,
    latency: Histogram<u64>,
    measuring: bool,
    last_result: Instant,
    done: u64,
    failed: u64,
}

/// What a worker is told here: as it ships, on the first cores, with its data in this folder.
pub(crate) fn settings(dir: &Path, shards: usize, events: bool) -> Result<Settings> {
    let mut settings = Settings::default();
    settings.storage_dir = dir.join("data");
    settings.blobs_dir = dir.join("blobs");
    settings.events = events;
    settings.cores.shards = Some((0..shards).collect());
    std::fs::create_dir_all(&settings.storage_dir)?;
    std::fs::create_dir_all(&settings.blobs_dir)?;
    Ok(settings)
}

fn thread_ids(shard: usize) -> Result<Vec<u32>> {
    process::threads_named(&format!("shard-{shard}"))
}

/// The thread of a shard: the oldest of its name that was not there before.
pub(crate) fn shard_thread(shard: usize, earlier: &[u32]) -> Result<u32> {
    let found = thread_ids(shard)?.into_iter().find(|tid| !earlier.contains(tid));
    found.with_context(|| format!("shard {shard} has no thread"))
}

/// Who it is here.
pub(crate) fn plan() -> Plan {
    Plan { identity: Identity { worker_id: "perf".into(), salt: Salt([7; 32]) }, dev: false }
}

/// Leaves the journal of one shard with exactly so many finished steps in this folder.
pub(crate) fn fill(dir: &Path, steps: u64) -> Result<()> {
    let worker = Worker::start(&settings(dir, 1, false)?, &plan())?;
    worker.begin()?;
    let mut feeder = Feeder::new(&worker, What::Echo, 8 * BATCH)?;
    let batches = steps.div_ceil(u64::from(BATCH));
    while feeder.sent[0].len() < batches as usize {
        let left = steps - feeder.sent[0].len() as u64 * u64::from(BATCH);
        if feeder.under_way[0] + BATCH <= feeder.window {
            feeder.confirm()?;
            feeder.send(0, left.min(u64::from(BATCH)) as u32)?;
        } else {
            feeder.confirm()?;
            feeder.collect()?;
        }
    }
    feeder.finish()?;
    worker.stop()?;
    Ok(())
}

fn one(args: &EngineArgs, shards: usize, window: u32, events: bool, dir: &Path) -> Result<Row> {
    // Of an earlier measurement, if it is still ending.
    let earlier: Vec<u32> = (0..shards).map(thread_ids).collect::<Result<Vec<_>>>()?.concat();
    let mut settings = settings(dir, shards, events)?;
    if args.what == What::Plans {
        let written = Settings::of(Some(("perf.toml", CONNECTOR)), std::iter::empty(), &[]);
        settings.policy = written.map_err(|error| anyhow::anyhow!("{:?}", error.faults))?.policy;
    }
    let mut worker = Worker::start(&settings, &plan())?;
    worker.begin()?;
    let mut keeper = worker.take_keeper().context("taken once")?;
    let tids: Vec<u32> = (0..shards).map(|shard| shard_thread(shard, &earlier)).collect::<Result<_>>()?;
    let used = || -> Result<Used> {
        let shards_us = tids.iter().map(|tid| thread_cpu_us(*tid)).sum::<Result<u64>>()?;
        Ok(Used { shards_us, feeder_us: thread_cpu_us(0)?, process_us: process::own_cpu_us()? })
    };
    let mut feeder = Feeder::new(&worker, args.what, window)?;
    feeder.run_for(WARM_UP, &mut keeper)?;
    feeder.measuring = true;
    let (begun, before, done_before) = (Instant::now(), used()?, feeder.done);
    feeder.run_for(Duration::from_secs_f64(args.seconds), &mut keeper)?;
    let (seconds, after, steps) = (begun.elapsed().as_secs_f64(), used()?, feeder.done - done_before);
    feeder.measuring = false;
    feeder.finish()?;
    let lost = feeder.under_way.iter().map(|left| u64::from(*left)).sum();
    let (latency, failed) = (feeder.latency, feeder.failed);
    // The last tally that came; what it counts is set against the steps that it counts itself.
    let tally = sum(keeper.tallies());
    worker.stop()?;
    let each = |us: u64| us as f64 / steps.max(1) as f64;
    let (shards_us, feeder_us) = (after.shards_us - before.shards_us, after.feeder_us - before.feeder_us);
    let per = |count: u64| count as f64 / tally.accepted.max(1) as f64;
    let fsyncs = per(tally.fsyncs);
    let per_second = steps as f64 / seconds;
    Ok(Row {
        what: args.what,
        shards,
        events,
        window,
        steps,
        per_second,
        p50_us: latency.value_at_quantile(0.5),
        p99_us: latency.value_at_quantile(0.99),
        shard_cpu_us: each(shards_us),
        shard_busy: shards_us as f64 / 1e6 / seconds / shards as f64,
        ring_cpu_us: each((after.process_us - before.process_us).saturating_sub(shards_us + feeder_us)),
        feeder_cpu_us: each(feeder_us),
        journal_bytes: per(tally.journal_bytes),
        journal_frames: per(tally.journal_frames),
        steps_per_fsync: 1.0 / fsyncs.max(f64::EPSILON),
        fsyncs_per_second: fsyncs * per_second,
        letters: per(tally.posted),
        peak_mb: process::peak_bytes(std::process::id())? as f64 / 1e6,
        failed,
        lost,
    })
}

impl<'a> Feeder<'a> {
    fn new(worker: &'a Worker, what: What, window: u32) -> Result<Self> {
        let shards = worker.inboxes.len();
        Ok(Feeder {
            worker,
            frames: (0..shards).map(|shard| Frames::new(what, shard as u16, shards as u16)).collect(),
            window,
            under_way: vec![0; shards],
            confirms: vec![Vec::new(); shards],
            sent: vec![Vec::new(); shards],
            latency: Histogram::new(3)?,
            measuring: false,
            last_result: Instant::now(),
            done: 0,
            failed: 0,
        })
    }

    /// Keeps the window full for so long.
    fn run_for(&mut self, time: Duration, keeper: &mut Keeper) -> Result<()> {
        let end = Instant::now() + time;
        let mut listen = Instant::now();
        loop {
            let now = Instant::now();
            if now >= end {
                return Ok(());
            }
            if now >= listen {
                keeper.tallies();
                listen = now + LISTEN_EVERY;
            }
            self.fill()?;
            self.collect()?;
        }
    }

    /// Waits for all that is under way.
    fn finish(&mut self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while self.under_way.iter().any(|left| *left > 0) && Instant::now() < end {
            self.collect()?;
        }
        self.confirm()?;
        self.worker.drain(PATIENCE);
        Ok(())
    }

    fn fill(&mut self) -> Result<()> {
        self.confirm()?;
        for shard in 0..self.frames.len() {
            let batch = BATCH.min(self.window);
            while self.under_way[shard] + batch <= self.window {
                self.send(shard, batch)?;
            }
        }
        Ok(())
    }

    fn send(&mut self, shard: usize, count: u32) -> Result<()> {
        let deliveries = self.frames[shard].batch(count);
        self.sent[shard].push(Instant::now());
        self.under_way[shard] += count;
        self.worker.inboxes[shard].send(Inbound::Deliveries(deliveries)).context("the shard is gone")
    }

    fn confirm(&mut self) -> Result<()> {
        for (inbox, confirms) in self.worker.inboxes.iter().zip(&mut self.confirms) {
            if !confirms.is_empty() {
                inbox.send(Inbound::Confirmed(std::mem::take(confirms))).context("the shard is gone")?;
            }
        }
        Ok(())
    }

    /// Waits for something to come out, and takes what has.
    fn collect(&mut self) -> Result<()> {
        let mut next = self.worker.outbound.recv_timeout(Duration::from_millis(100)).ok();
        if next.is_none()
            && let Some(error) = self.worker.watch(Duration::ZERO)
        {
            return Err(error.into());
        }
        while let Some(batch) = next {
            let shard = usize::from(batch.shard);
            let now = Instant::now();
            let size = BATCH.min(self.window);
            for item in batch.items {
                let Outgoing::Parcel(parcel) = item else { continue };
                self.confirms[shard].extend(parcel.confirm);
                if parcel.outlet != Outlet::Result {
                    continue;
                }
                let number = number_in(&parcel.body).context("not a result of ours")?;
                let sent = self.sent[shard].get((number / size) as usize).context("never sent")?;
                self.under_way[shard] = self.under_way[shard].checked_sub(1).context("answered twice")?;
                self.done += 1;
                self.last_result = now;
                self.failed += u64::from(parcel.about.status != Some(shards::outcome::Status::Ok));
                if self.measuring {
                    self.latency.record((now - *sent).as_micros() as u64)?;
                }
            }
            next = self.worker.outbound.try_recv().ok();
        }
        ensure!(self.failed == 0, "{} steps failed", self.failed);
        ensure!(self.last_result.elapsed() < PATIENCE, "no results for {PATIENCE:?}");
        Ok(())
    }
}

fn sum(tallies: &[Tally]) -> Tally {
    let mut all = Tally::default();
    for tally in tallies {
        all.accepted += tally.accepted;
        all.fsyncs += tally.fsyncs;
        all.journal_bytes += tally.journal_bytes;
        all.journal_frames += tally.journal_frames;
        all.posted += tally.posted;
    }
    all
}

/// The median measurement of each row by its rate, whole: its figures belong together.
fn medians(rows: &[Row]) -> Vec<Row> {
    let place = |row: &Row| (row.shards, row.window, row.events);
    let mut medians: Vec<Row> = Vec::new();
    for row in rows {
        if medians.iter().any(|known| place(known) == place(row)) {
            continue;
        }
        let mut same: Vec<&Row> = rows.iter().filter(|other| place(other) == place(row)).collect();
        same.sort_by(|one, other| one.per_second.total_cmp(&other.per_second));
        medians.push(same[same.len() / 2].clone());
    }
    medians
}

fn table(machine: &Machine, rows: &[Row], what: What) -> String {
    let mut text = machine.head();
    text += match what {
        What::Echo => "echo steps of ~400 bytes",
        What::Plans => "dry runs of http.request",
    };
    text += ", journal on · CPU in µs a step, shard: its own thread, ring: io_uring's writers\n";
    text += &format!(
        "{:<7} {:<7} {:>6} {:>9} {:>6} {:>8} {:>8} {:>6} {:>6} {:>6} {:>7} {:>7} {:>6} {:>8} {:>8} {:>8} {:>5}\n",
        "shards",
        "events",
        "window",
        "steps/s",
        "ratio",
        "p50 ms",
        "p99 ms",
        "shard",
        "busy",
        "ring",
        "feeder",
        "jrnl B",
        "frames",
        "st/fsync",
        "fsyncs/s",
        "peak MB",
        "bad"
    );
    for row in rows {
        let single = rows.iter().find(|one| one.shards == 1 && one.window == row.window && one.events == row.events);
        let ratio = single.map_or(0.0, |one| row.per_second / one.per_second);
        text += &format!(
            "{:<7} {:<7} {:>6} {:>9.0} {:>6.2} {:>8.2} {:>8.2} {:>6.2} {:>5.0}% {:>6.2} {:>7.2} {:>7.0} {:>6.2} {:>8.0} {:>8.0} {:>8.1} {:>5}\n",
            row.shards,
            if row.events { "on" } else { "off" },
            row.window,
            row.per_second,
            ratio,
            row.p50_us as f64 / 1e3,
            row.p99_us as f64 / 1e3,
            row.shard_cpu_us,
            row.shard_busy * 100.0,
            row.ring_cpu_us,
            row.feeder_cpu_us,
            row.journal_bytes,
            row.journal_frames,
            row.steps_per_fsync,
            row.fsyncs_per_second,
            row.peak_mb,
            row.failed + row.lost
        );
    }
    text
}
