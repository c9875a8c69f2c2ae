//! `endstation demo`: what `make run` shows. Steps run, the worker is killed in the middle of its work and started again, and
//! nothing is lost or done twice; then how fast it is on this machine. Needs no server and leaves nothing behind.
//!
//! Every figure is observed while it runs; where an observation breaks a promise, the exit code is 1.

mod burst;
mod kill;
mod paper;
mod steps;

use std::path::{Path, PathBuf};

use crate::cli::{EXIT_CONFIG, EXIT_FAILED, EXIT_OK};
use crate::settings::Settings;
use crate::worker::WorkerError;
use paper::Paper;

/// Why the demo could not go on.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error(transparent)]
    Worker(#[from] WorkerError),
    #[error(transparent)]
    Disk(#[from] shards::runtime::disk::DiskError),
    #[error(transparent)]
    Feed(#[from] crate::cli::run::feed::FeedError),
    #[error("{0}: {1}")]
    System(&'static str, std::io::Error),
    #[error("the worker that was to be killed ended by itself: {0}")]
    Child(String),
    #[error("writing: {0}")]
    Write(#[from] std::io::Error),
}

/// Shows it. Exit code: 0 all went as promised, 1 something did not, 3 this machine or configuration cannot run it
/// (4 and 5: not the journal there).
pub fn main(settings: &Settings) -> u8 {
    match show(settings, &mut Paper::of_stdout()) {
        Ok(true) => EXIT_OK,
        Ok(false) => EXIT_FAILED,
        Err(error) => {
            eprintln!("endstation demo: {error}");
            match error {
                DemoError::Worker(error) => crate::cli::cannot_start(&error),
                DemoError::Disk(_) => EXIT_CONFIG,
                _ => EXIT_FAILED,
            }
        }
    }
}

/// True if everything went as promised.
fn show(settings: &Settings, paper: &mut Paper) -> Result<bool, DemoError> {
    let folder = tempfile::Builder::new().prefix("endstation-demo-").tempdir_in(place());
    let folder = folder.map_err(|error| DemoError::System("a folder for the demo", error))?;
    let fsync = shards::runtime::disk::measure(folder.path())?;
    let first = steps::show(settings, folder.path(), &fsync, paper)?;
    let killed = kill::show(folder.path(), paper)?;
    burst::show(settings, folder.path(), paper)?;
    paper.next()?;
    Ok(first && killed)
}

/// The settings with a folder of their own and nobody watching.
fn beneath(settings: &Settings, folder: &Path, name: &str) -> Settings {
    let mut settings = settings.clone();
    settings.storage_dir = folder.join(name);
    settings.blobs_dir = settings.storage_dir.join("blobs");
    settings.events = false;
    settings
}

/// A folder for temporary files, on a disk: a memory file system would say nothing of durable writes.
fn place() -> PathBuf {
    let usual = std::env::temp_dir();
    let in_memory = rustix::fs::statfs(&usual).is_ok_and(|fs| fs.f_type == 0x0102_1994); // TMPFS_MAGIC
    if in_memory { PathBuf::from(".") } else { usual }
}
