//! The worker's own store of dead letters: what no stream has taken is kept here, and sent when one takes it.
//!
//! Append-only files under `<storage.dir>/dlq`, beside the journal and not part of it: the journal forgets, a dead letter must
//! not. A letter counts as told once it is durable here, and only then is its delivery settled. All of it happens on a thread
//! of its own ([`clerk`]), in batches; [`store`] is what that thread does to the files, [`shelf`] one of them, [`record`] their
//! bytes. Whoever only reads, beside a running worker too, goes by [`reading`].
//!
//! A letter is here at least once under one id, and leaves at least once under the same: a crash between sending it and noting
//! that only sends it again.

pub mod clerk;
pub mod reading;
pub mod record;
pub mod shelf;
pub mod store;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use shards::ids::Text;

pub use clerk::{Clerk, Deposit, Desk, Done, Question};
pub use record::{Head, Why};
pub use store::Place;

/// The folder below `storage.dir`.
pub const FOLDER: &str = "dlq";
/// From this part of its budget on the store complains, in percent.
pub const NEARLY_FULL_PERCENT: u64 = 80;
/// One file takes so much of the budget, as a fraction, so that something can go when it is full.
pub const SHELVES_MIN: u64 = 8;
/// The largest file that is still written to, in bytes: one letter may exceed it.
pub const SHELF_BYTES_MAX: u64 = 8 << 20;
/// Letters that are read back to be sent at once, and their bytes.
pub const SEND_MAX: usize = 64;
/// See [`SEND_MAX`].
pub const SEND_BYTES_MAX: u64 = 4 << 20;

/// What the store shows of itself. Shared; written by the clerk's thread.
#[derive(Debug, Default)]
pub struct DlqStatus {
    /// Letters stored since the start.
    pub stored: AtomicU64,
    /// Letters that a stream has taken since the start.
    pub sent: AtomicU64,
    /// Letters that made room for newer ones since the start: all had been told where somebody could listen.
    pub dropped: AtomicU64,
    /// Letters that wait for a stream, now.
    pub waiting: AtomicU64,
    /// Bytes on disk, now.
    pub bytes: AtomicU64,
    /// The budget.
    pub bytes_max: AtomicU64,
    /// Letters that found no room, since the start, by try: they wait in the journal.
    pub refused: AtomicU64,
    /// Subjects of letters that wait, as the edge asks about them.
    subjects: Mutex<Vec<Text>>,
    /// Why the last letters could not be written.
    failed: Mutex<Option<String>>,
}

impl DlqStatus {
    /// Why somebody should look at it, or `None`.
    pub fn complaint(&self) -> Option<String> {
        if let Some(why) = self.failed.lock().map_or(None, |failed| failed.clone()) {
            return Some(format!("dead letters cannot be stored ({why}): they wait in the journal"));
        }
        let (bytes, max) = (self.bytes.load(Relaxed), self.bytes_max.load(Relaxed).max(1));
        let percent = bytes.saturating_mul(100) / max;
        let waiting = self.waiting.load(Relaxed);
        (percent >= NEARLY_FULL_PERCENT).then(|| {
            format!(
                "{percent} % of dlq.bytes_max is used by {waiting} dead letters that wait for a stream: make one over their \
                 subject, or raise dlq.bytes_max; when it is full, the oldest that were published make room, others wait in the journal"
            )
        })
    }

    /// Subjects of letters that wait for a stream.
    pub fn subjects(&self) -> Vec<Text> {
        self.subjects.lock().map_or_else(|_| Vec::new(), |subjects| subjects.clone())
    }

    pub(crate) fn show(&self, subjects: Vec<Text>, failed: Option<String>) {
        if let Ok(mut shown) = self.subjects.lock() {
            *shown = subjects;
        }
        if let Ok(mut shown) = self.failed.lock() {
            *shown = failed;
        }
    }
}
