//! How fast the disk is: one 4 KiB write and one fdatasync at a time, as a journal with a single waiter does it.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use hdrhistogram::Histogram;
use serde::Serialize;

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
