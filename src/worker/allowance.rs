//! What the system allows this process: as much as it may have is taken, and too little is told before anything is begun.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::WorkerError;

/// Open files of the process itself: connections, the ops port, logs.
const FILES: u64 = 64;
/// Open files of one shard: its ring, its segments, and outcomes being read back. Blobs come on top, as many as steps use.
const FILES_PER_SHARD: u64 = 64;

/// Raises the limits of open files and of locked memory (the rings') as far as they may be raised without asking.
///
/// # Errors
/// Fewer files than the shards need.
pub(super) fn raise(shards: usize) -> Result<(), WorkerError> {
    for resource in [Resource::Nofile, Resource::Memlock] {
        let Rlimit { maximum, .. } = getrlimit(resource);
        // Where that is refused, the limit is what it was.
        let _ = setrlimit(resource, Rlimit { current: maximum, maximum });
    }
    let wanted = FILES + FILES_PER_SHARD * shards as u64;
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < wanted => Err(WorkerError::Files { limit, wanted, shards }),
        _ => Ok(()),
    }
}
