//! Who waits for an answer: every call by its number, which goes to the shard in its delivery's origin and comes back with
//! each letter. No message can name a call, and a number is never used twice.
//!
//! A client that goes away takes its calls with it; what the shard still says to them finds nobody and is dropped.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::edge::limits::{CALLS_BYTES_MAX, CALLS_MAX};
use crate::edge::status::EdgeStatus;

/// What a call is told, as the shard wrote it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// The step is durable: a StepAccepted.
    Accepted(Bytes),
    /// How it ended: a StepResult.
    Ended(Bytes),
    /// What became of a notice; of a step, why it is not taken: a StepError.
    Reply(Bytes),
    /// The edge could not hand it to its shard.
    Full,
}

/// Where answers come: which of the asker's requests, and what is said. As many may wait here as the asker has calls open or
/// ended unread: two for each.
pub(super) type Told = UnboundedReceiver<(u64, Said)>;

/// The calls that are open. Shared by the tasks of the edge's thread.
#[derive(Debug)]
pub(super) struct Calls {
    open: Mutex<Open>,
    /// Bytes that their requests may have.
    bytes_max: u64,
    /// Shows how many there are.
    status: Arc<EdgeStatus>,
}

#[derive(Debug, Default)]
struct Open {
    lines: HashMap<u64, Line>,
    /// The number last given.
    last: u64,
    /// Bytes of their requests.
    bytes: u64,
    /// None is opened any more.
    closed: bool,
}

#[derive(Debug)]
struct Line {
    tell: UnboundedSender<(u64, Said)>,
    request: u64,
    bytes: u64,
}

/// Why a call cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closed {
    /// Too many wait.
    Full,
    /// The worker ends.
    Ending,
    /// The shards have not begun: another worker owns the work, or it is not known yet.
    Waiting,
}

/// An open call; it is closed when this goes. Crosses tasks.
#[derive(Debug)]
pub(super) struct Call {
    calls: Arc<Calls>,
    /// Its number, never 0.
    pub(super) number: u64,
}

#[cfg(test)]
impl Default for Calls {
    fn default() -> Calls {
        Calls::new(Arc::default(), u64::MAX)
    }
}

impl Calls {
    /// None yet. All shards together may hold so many bytes.
    pub(super) fn new(status: Arc<EdgeStatus>, shards_bytes_max: u64) -> Calls {
        Calls { open: Mutex::default(), bytes_max: CALLS_BYTES_MAX.min(shards_bytes_max), status }
    }

    /// A call for a request of so many bytes, the asker's own number for it being `request`.
    pub(super) fn open(self: &Arc<Self>, tell: &UnboundedSender<(u64, Said)>, request: u64, bytes: u64) -> Result<Call, Closed> {
        let mut open = self.lock();
        if open.closed {
            return Err(Closed::Ending);
        }
        if open.lines.len() >= CALLS_MAX || open.bytes + bytes > self.bytes_max {
            return Err(Closed::Full);
        }
        open.last += 1;
        open.bytes += bytes;
        let number = open.last;
        open.lines.insert(number, Line { tell: tell.clone(), request, bytes });
        self.show(&open);
        Ok(Call { calls: self.clone(), number })
    }

    /// Tells a call something, if it still waits.
    pub(super) fn tell(&self, call: u64, said: Said) {
        if let Some(line) = self.lock().lines.get(&call) {
            let _ = line.tell.send((line.request, said));
        }
    }

    /// Nobody is answered any more: every channel ends behind what was said.
    pub(super) fn close(&self) {
        let mut open = self.lock();
        open.closed = true;
        open.bytes = 0;
        open.lines.clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, open: &Open) {
        self.status.calls_waiting.store(open.lines.len() as u32, Relaxed);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut open = self.calls.lock();
        if let Some(line) = open.lines.remove(&self.number) {
            open.bytes -= line.bytes;
        }
        self.calls.show(&open);
    }
}

/// A channel for the answers to one asker.
pub(super) fn line() -> (UnboundedSender<(u64, Said)>, Told) {
    unbounded_channel()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_finds_its_request_and_nobody_once_the_call_is_gone() {
        let calls = Arc::new(Calls::default());
        let (tell, mut told) = line();
        let one = calls.open(&tell, 7, 10).expect("room");
        let two = calls.open(&tell, 8, 10).expect("room");
        calls.tell(two.number, Said::Full);
        calls.tell(one.number, Said::Ended(Bytes::from_static(b"x")));
        assert_eq!(told.try_recv().ok(), Some((8, Said::Full)));
        assert_eq!(told.try_recv().ok(), Some((7, Said::Ended(Bytes::from_static(b"x")))));
        let gone = one.number;
        drop(one);
        calls.tell(gone, Said::Full);
        assert!(told.try_recv().is_err());
        assert_eq!(calls.status.calls_waiting.load(Relaxed), 1);
        let three = calls.open(&tell, 9, 10).expect("room");
        assert!(three.number > two.number, "numbers are not used again");
    }

    #[test]
    fn calls_are_bounded_by_number_and_bytes_and_give_both_back() {
        let calls = Arc::new(Calls::new(Arc::default(), 1 << 20));
        let (tell, _told) = line();
        let large = calls.open(&tell, 1, 1 << 20).expect("room");
        assert_eq!(calls.open(&tell, 2, 1).err(), Some(Closed::Full));
        drop(large);
        let all: Vec<_> = (0..CALLS_MAX as u64).map(|n| calls.open(&tell, n, 1).expect("room")).collect();
        assert_eq!(calls.open(&tell, 0, 1).err(), Some(Closed::Full));
        drop(all);
        assert!(calls.open(&tell, 0, 1 << 20).is_ok());
    }

    #[test]
    fn the_end_closes_every_line_behind_what_was_said() {
        let calls = Arc::new(Calls::default());
        let (tell, mut told) = line();
        let call = calls.open(&tell, 1, 5).expect("room");
        drop(tell);
        calls.tell(call.number, Said::Full);
        calls.close();
        assert_eq!(told.try_recv().ok(), Some((1, Said::Full)));
        assert!(matches!(told.try_recv(), Err(tokio::sync::mpsc::error::TryRecvError::Disconnected)));
        let (tell, _told) = line();
        assert_eq!(calls.open(&tell, 1, 5).err(), Some(Closed::Ending));
        drop(call);
    }
}
