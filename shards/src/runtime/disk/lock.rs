//! One process per data directory.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::DiskError;

const RETRIES: u32 = 40;
const RETRY_EVERY: Duration = Duration::from_millis(50);

/// Holds a data directory until it is dropped or the process ends.
#[derive(Debug)]
#[must_use]
pub struct DirLock {
    _file: File,
}

/// Takes `dir` for this process; creates it where it is not there. Retries for 2 s, because the ring of a predecessor that
/// was killed closes its files late. Blocks: to be called before any executor runs.
pub fn lock_dir(dir: &Path) -> Result<DirLock, DiskError> {
    fs::create_dir_all(dir).map_err(DiskError::io("creating", dir))?;
    let path = dir.join("lock");
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = open.map_err(DiskError::io("opening", &path))?;
    for attempt in 0.. {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(error) if error != rustix::io::Errno::WOULDBLOCK => {
                return Err(DiskError::io("locking", &path)(error.into()));
            }
            Err(_) if attempt == RETRIES => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                return Err(DiskError::Held { dir: dir.to_owned(), holder: holder.trim().to_owned() });
            }
            Err(_) => pause(),
        }
    }
    let pid = format!("{}\n", std::process::id());
    // Over what stands there, and only then cut: that takes no space, which there may not be. It is only for people to read.
    match file.write_all_at(pid.as_bytes(), 0).and_then(|()| file.set_len(pid.len() as u64)) {
        Err(error) if error.kind() != std::io::ErrorKind::StorageFull => return Err(DiskError::io("writing", &path)(error)),
        _ => {}
    }
    Ok(DirLock { _file: file })
}

/// Whether some process works on `dir` now. Writes nothing; a worker that starts in this very moment tries its lock again.
pub fn is_held(dir: &Path) -> bool {
    let Ok(file) = File::open(dir.join("lock")) else { return false };
    flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
}

#[allow(clippy::disallowed_methods, reason = "no executor runs yet")]
fn pause() {
    std::thread::sleep(RETRY_EVERY);
}
