//! The sealer: a thread beside a shard that puts finished keys into key files and keeps the snapshots that stand on them.
//!
//! It does what would hold up a core: sorting, writing, merging and syncing. It is nice, and off the shard's core where there is
//! another. What it fails at costs nothing but memory: the keys go back to the shard, and the next boot reads more segments.

mod shelf;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::event::Sealed;
use crate::keys::{KeyMap, Owner};
use crate::snapshot::Seal;

pub use shelf::{Kept, Shelf};

/// How much the thread lets others go first: most of the scale.
const NICE: i32 = 10;

/// A shard's hold on its sealer. Crosses to its core.
#[derive(Clone)]
pub struct Sealer {
    work: flume::Sender<Work>,
    done: flume::Receiver<Sealed>,
    /// What is under way is to be left.
    stop: Arc<AtomicBool>,
}

enum Work {
    /// These files stand; all others are left over.
    Begin(Shelf),
    Seal(Box<Seal>, u64),
    /// Nobody looks any more into what a merge has left over.
    Tidy,
    End,
}

impl Sealer {
    /// Starts one that waits for a shard on `core`.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(shard: u16, core: usize) -> std::io::Result<Sealer> {
        let (work, inbox) = flume::unbounded();
        let (outbox, done) = flume::unbounded();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let body = move || {
            step_aside(core);
            serve(&inbox, &outbox, &stopped, shard);
        };
        std::thread::Builder::new().name(format!("sealer-{shard}")).spawn(body)?;
        Ok(Sealer { work, done, stop })
    }

    /// From now on the folder is this thread's to keep in order.
    pub fn begin(&self, folder: PathBuf, owner: Owner, files: Vec<Arc<KeyMap>>) {
        let _ = self.work.send(Work::Begin(Shelf::new(folder, owner, files)));
    }

    /// Puts what is durable away; `segment` holds its last frame. The answer comes by [`Sealer::done`].
    pub fn seal(&self, seal: Box<Seal>, segment: u64) {
        let _ = self.work.send(Work::Seal(seal, segment));
    }

    /// Removes what the newest seal has left over: nobody looks into it any more.
    pub fn tidy(&self) {
        let _ = self.work.send(Work::Tidy);
    }

    /// What became of the next seal; `None` once there is no sealer any more.
    pub async fn done(&self) -> Option<Sealed> {
        self.done.recv_async().await.ok()
    }

    /// Leaves what is under way, and returns when nothing in the folder is touched any more.
    pub async fn close(&self) {
        self.stop.store(true, Relaxed);
        let _ = self.work.send(Work::End);
        while self.done().await.is_some() {}
    }
}

fn serve(inbox: &flume::Receiver<Work>, outbox: &flume::Sender<Sealed>, stop: &AtomicBool, shard: u16) {
    let mut shelf = None;
    while let Ok(work) = inbox.recv() {
        match (work, &mut shelf) {
            (Work::Begin(begun), _) => {
                begun.tidy();
                shelf = Some(begun);
            }
            (Work::Seal(seal, segment), Some(shelf)) => {
                let (sealed, kept) = shelf.seal(*seal, segment, stop);
                if let Err(error) = kept
                    && !stop.load(Relaxed)
                {
                    tracing::warn!(shard, %error, "finished keys stay in memory: their key file could not be kept");
                }
                let _ = outbox.send(sealed);
            }
            (Work::Tidy, Some(shelf)) => shelf.tidy(),
            (Work::Seal(..) | Work::Tidy, None) | (Work::End, _) => return,
        }
    }
}

/// Leaves the shard's core to it where there is another, and lets everybody else go first.
fn step_aside(core: usize) {
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
    let Ok(mut cores) = sched_getaffinity(None) else { return };
    if core < CpuSet::MAX_CPU && cores.is_set(core) && cores.count() > 1 {
        cores.unset(core);
        let _ = sched_setaffinity(None, &cores);
    }
}
