//! What a durable write costs on this disk, for whoever wants to tell a user.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::DiskError;

const ROUNDS: usize = 100;
const ROUND_BYTES: usize = 4096;
const BUDGET: Duration = Duration::from_millis(150);

/// How long a write of 4 KiB and its fdatasync take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsyncTimes {
    /// The median, in microseconds.
    pub p50_us: u64,
    /// 99 of 100 took at most this, in microseconds.
    pub p99_us: u64,
    /// How many were tried: fewer on a slow disk.
    pub rounds: usize,
}

/// Writes to a file of its own in `dir` for at most about 150 ms. Blocks: to be called before any executor runs.
#[allow(clippy::disallowed_methods, reason = "no executor runs yet, and time is what is measured")]
pub fn measure(dir: &Path) -> Result<FsyncTimes, DiskError> {
    let path = dir.join("fsync.probe");
    let failed = |doing| DiskError::io(doing, &path);
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path).map_err(failed("creating"))?;
    let began = Instant::now();
    let mut took = Vec::with_capacity(ROUNDS);
    let outcome = (|| {
        file.write_all_at(&vec![0; ROUNDS * ROUND_BYTES], 0)?;
        file.sync_all()?;
        for round in 0..ROUNDS {
            let start = Instant::now();
            file.write_all_at(&[round as u8; ROUND_BYTES], (round * ROUND_BYTES) as u64)?;
            file.sync_data()?;
            took.push(start.elapsed().as_micros() as u64);
            if began.elapsed() > BUDGET {
                break;
            }
        }
        Ok(())
    })();
    drop(file);
    let _ = fs::remove_file(&path);
    outcome.map_err(failed("measuring"))?;
    took.sort_unstable();
    let at = |per_mille: usize| took[(took.len() * per_mille / 1000).min(took.len() - 1)];
    Ok(FsyncTimes { p50_us: at(500), p99_us: at(990), rounds: took.len() })
}
