//! How fast the disk is: one 4 KiB write and one fdatasync at a time, as a journal with a single waiter does it; and what a small
//! file costs that is durable before it has its name.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::process::thread_cpu_us;

/// Enough for a p99 and done in a second on slow disks.
const WRITES: u64 = 1_000;
const BLOCK_BYTES: u64 = 4_096;

/// The disk's answer times.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Fsync {
    /// Half are faster, in microseconds.
    pub(crate) p50_us: u64,
    /// One in a hundred is slower, in microseconds.
    pub(crate) p99_us: u64,
}

/// Measures the disk under this folder.
pub(crate) fn fsync(dir: &Path) -> Result<Fsync> {
    let path = dir.join("fsync-probe");
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(&path)?;
    let block = vec![7; BLOCK_BYTES as usize];
    for at in 0..WRITES {
        file.write_all_at(&block, at * BLOCK_BYTES)?;
    }
    file.sync_all()?;
    let mut times = Histogram::<u64>::new(3)?;
    for at in 0..WRITES {
        let begun = Instant::now();
        file.write_all_at(&block, at * BLOCK_BYTES)?;
        file.sync_data()?;
        times.record(begun.elapsed().as_micros().try_into()?)?;
    }
    drop(file);
    std::fs::remove_file(path)?;
    Ok(Fsync { p50_us: times.value_at_quantile(0.5), p99_us: times.value_at_quantile(0.99) })
}

/// Durable puts by bare system calls, so many threads at once for so long: how many a second, and the processor time of each in
/// microseconds, without what the kernel does elsewhere for them.
pub(crate) fn puts(dir: &Path, threads: usize, seconds: f64) -> Result<(f64, f64)> {
    let dir = dir.join("puts");
    std::fs::create_dir_all(&dir)?;
    let begun = Instant::now();
    let one = |thread: usize| -> Result<(u64, u64)> {
        let (folder, content) = (std::fs::File::open(&dir)?, [b'x'; 344]);
        let (mut done, cpu) = (0, thread_cpu_us(0)?);
        while begun.elapsed().as_secs_f64() < seconds {
            let (temporary, named) = (dir.join(format!("{thread}.tmp")), dir.join(format!("{thread}-{done}.txt")));
            let file = OpenOptions::new().create_new(true).write(true).open(&temporary)?;
            file.write_all_at(&content, 0)?;
            file.sync_data()?;
            std::fs::rename(temporary, named)?;
            folder.sync_all()?;
            done += 1;
        }
        Ok((done, thread_cpu_us(0)? - cpu))
    };
    let (mut done, mut cpu_us) = (0, 0);
    std::thread::scope(|scope| -> Result<()> {
        let all: Vec<_> = (0..threads)
            .map(|thread| {
                let one = &one;
                scope.spawn(move || one(thread))
            })
            .collect();
        for thread in all {
            let (more, cpu) = thread.join().ok().context("a bare writer panicked")??;
            (done, cpu_us) = (done + more, cpu_us + cpu);
        }
        Ok(())
    })?;
    std::fs::remove_dir_all(&dir)?;
    Ok((done as f64 / begun.elapsed().as_secs_f64(), cpu_us as f64 / done.max(1) as f64))
}
