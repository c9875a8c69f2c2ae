//! The gpu lane's jobs on a device and on the CPU, where each wins. Without a device the CPU's figures are all there is, and the
//! table says why.
//!
//! A device's figures hold everything that a step waits for: the queue, the batch, both ways over the bus. The CPU's are those of
//! the compute threads: one thread, and as many as there are cores.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ::gpu::{Algorithm, Cancel, Client, Filter, Format, Hash, Image, Operation, Render, Settings, Work, render_here};
use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::report::{Keep, Machine};
use crate::{KeepArgs, disk};

/// A job that takes longer than this is lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// How to measure the gpu lane.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct GpuArgs {
    /// Rounds; the table shows medians.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Least seconds of each figure.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    #[command(flatten)]
    keep: KeepArgs,
}

/// One kind of job: many alike at once.
struct Case {
    name: &'static str,
    jobs: usize,
    /// Of one job, in bytes.
    bytes: usize,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Hash(Algorithm),
    Shrink,
}

const MIB: usize = 1 << 20;
/// A photo's width and height in pixels, three bytes each.
const SIDES: (u32, u32) = (1_600, 1_200);

const CASES: [Case; 7] = [
    Case { name: "SHA-256, 4,096 of 1 KiB", jobs: 4_096, bytes: 1 << 10, kind: Kind::Hash(Algorithm::Sha256) },
    Case { name: "SHA-256, 1,024 of 64 KiB", jobs: 1_024, bytes: 64 << 10, kind: Kind::Hash(Algorithm::Sha256) },
    Case { name: "SHA-256, 16 of 8 MiB", jobs: 16, bytes: 8 * MIB, kind: Kind::Hash(Algorithm::Sha256) },
    Case { name: "BLAKE3, 4,096 of 1 KiB", jobs: 4_096, bytes: 1 << 10, kind: Kind::Hash(Algorithm::Blake3) },
    Case { name: "BLAKE3, 1,024 of 64 KiB", jobs: 1_024, bytes: 64 << 10, kind: Kind::Hash(Algorithm::Blake3) },
    Case { name: "BLAKE3, 16 of 8 MiB", jobs: 16, bytes: 8 * MIB, kind: Kind::Hash(Algorithm::Blake3) },
    Case { name: "32 photos of 2 MP made small", jobs: 32, bytes: SIDES.0 as usize * SIDES.1 as usize * 3, kind: Kind::Shrink },
];

/// One figure.
#[derive(Clone, Debug, Serialize)]
struct Row {
    case: &'static str,
    /// What computed.
    by: String,
    jobs_per_second: f64,
    mib_per_second: f64,
}

/// Measures and reports.
pub(crate) fn measure(args: &GpuArgs) -> Result<()> {
    let root = tempfile::tempdir()?;
    let machine = Machine::look(&args.keep, disk::fsync(root.path())?)?;
    let threads = std::thread::available_parallelism()?.get();
    let device = ::gpu::start(&Settings { kernels_dir: Some(root.path().to_owned()), ..Settings::default() });
    let (client, why) = match &device {
        Ok((client, _)) => (Some(client), String::new()),
        Err(error) => (None, error.to_string()),
    };
    let mut measurements = Vec::new();
    for round in 0..args.runs {
        for case in &CASES {
            let work = case.work()?;
            let mut by = |by: String, run: &dyn Fn() -> Result<String>| -> Result<()> {
                let (mut done, begun) = (0, Instant::now());
                let mut named = String::new();
                while done == 0 || begun.elapsed().as_secs_f64() < args.seconds {
                    named = run()?;
                    done += case.jobs;
                }
                let jobs_per_second = done as f64 / begun.elapsed().as_secs_f64();
                let mib_per_second = jobs_per_second * case.bytes as f64 / MIB as f64;
                let by = if named.is_empty() { by } else { named };
                measurements.push(Row { case: case.name, by, jobs_per_second, mib_per_second });
                Ok(())
            };
            by("1 thread".to_owned(), &|| on_threads(&work, 1))?;
            by(format!("{threads} threads"), &|| on_threads(&work, threads))?;
            if let Some(client) = client {
                by("device".to_owned(), &|| on_device(&work, client))?;
            }
            eprintln!("round {} of {}: {}", round + 1, args.runs, case.name);
        }
    }
    let medians = medians(&measurements);
    let table = table(&machine, &medians, &why)?;
    Keep { scenario: "gpu", machine, medians, measurements }.publish(&args.keep, &table)
}

impl Case {
    fn work(&self) -> Result<Vec<Work>> {
        // No two alike, and nothing that repeats.
        let noise = |seed: usize| {
            let mut state = seed as u64 | 1;
            let mut next = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            };
            Bytes::from((0..self.bytes).map(|_| next()).collect::<Vec<u8>>())
        };
        let job = |seed: usize| {
            Ok(match self.kind {
                Kind::Hash(algorithm) => Work::Hash(Hash { algorithm, buffers: vec![noise(seed)] }),
                Kind::Shrink => {
                    let image = Image::new(SIDES.0, SIDES.1, Format::Rgb8, noise(seed)).map_err(|error| anyhow!("{error}"))?;
                    let operations =
                        vec![Operation::Resize { width: 320, height: 240, filter: Filter::Triangle }, Operation::Grayscale];
                    Work::Render(Render { image, operations })
                }
            })
        };
        (0..self.jobs).map(|seed| job(seed * 7_919 + 1)).collect()
    }
}

fn on_threads(work: &[Work], threads: usize) -> Result<String> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let one = || -> Result<()> {
            while let Some(job) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                here(job)?;
            }
            Ok(())
        };
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        all.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })?;
    Ok(String::new())
}

fn here(job: &Work) -> Result<()> {
    match job {
        Work::Hash(Hash { algorithm, buffers }) => {
            for buffer in buffers {
                match algorithm {
                    Algorithm::Sha256 => _ = std::hint::black_box(Sha256::digest(buffer)),
                    Algorithm::Blake3 => _ = std::hint::black_box(blake3::hash(buffer)),
                }
            }
        }
        Work::Render(render) => {
            let made = render_here(render.clone(), &Cancel::default()).map_err(|error| anyhow!("{error}"))?;
            std::hint::black_box(made);
        }
    }
    Ok(())
}

/// All at once, as many as the lane takes. Gives what computed them.
fn on_device(work: &[Work], client: &Client) -> Result<String> {
    let mut waiting = std::collections::VecDeque::new();
    let mut by = String::new();
    let mut take = |pending: ::gpu::Pending| -> Result<()> {
        let answer = pending.wait_timeout(PATIENCE).context("the device does not answer")?;
        by = answer.map_err(|failure| anyhow!("{failure}"))?.device.to_string();
        Ok(())
    };
    for job in work {
        loop {
            match client.submit(job.clone(), &Cancel::default()) {
                Ok(pending) => break waiting.push_back(pending),
                Err(refusal) if refusal.retryable() => {
                    take(waiting.pop_front().with_context(|| format!("{refusal} with nothing under way"))?)?;
                }
                Err(refusal) => return Err(anyhow!("{refusal}")),
            }
        }
    }
    waiting.into_iter().try_for_each(&mut take)?;
    Ok(by)
}

fn medians(rows: &[Row]) -> Vec<Row> {
    let mut medians: Vec<Row> = Vec::new();
    for row in rows {
        if medians.iter().any(|known| known.case == row.case && known.by == row.by) {
            continue;
        }
        let mut same: Vec<&Row> = rows.iter().filter(|other| other.case == row.case && other.by == row.by).collect();
        same.sort_by(|a, b| a.jobs_per_second.total_cmp(&b.jobs_per_second));
        medians.push(same[same.len() / 2].clone());
    }
    medians
}

fn table(machine: &Machine, rows: &[Row], why: &str) -> Result<String> {
    let mut text = machine.head();
    if why.is_empty() {
        text += "a device's figures hold the queue, the batch and both ways over the bus\n";
    } else {
        writeln!(text, "no device: {why}")?;
    }
    writeln!(text, "{:<30} {:<28} {:>12} {:>10}  where it is fastest", "jobs", "by", "jobs/s", "MiB/s")?;
    for row in rows {
        let best = rows.iter().filter(|other| other.case == row.case).all(|other| other.jobs_per_second <= row.jobs_per_second);
        let mark = if best { "here" } else { "" };
        writeln!(text, "{:<30} {:<28} {:>12.0} {:>10.0}  {mark}", row.case, row.by, row.jobs_per_second, row.mib_per_second)?;
    }
    Ok(text)
}
