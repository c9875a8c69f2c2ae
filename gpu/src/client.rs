//! What a shard holds of the lane: it submits a job and waits for the answer, and never for a device or a lock.
//!
//! How much may wait is counted here, before the queue: a job that is taken holds its room until it is answered. A job
//! that nobody can run any more is answered all the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::desk::{Note, Shared};
use crate::job::{Answer, Failure, Work};
use crate::plan::{Invalid, Plan, plan};
use crate::status::Status;

/// The way to the lane. Crosses cores; cloned for each that asks.
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
    pub(crate) queue: flume::Sender<Note>,
    /// Only to empty the queue when nobody else does any more.
    pub(crate) rest: flume::Receiver<Note>,
}

/// Why a job is not taken. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// As many jobs wait or run as may. Later there will be room.
    #[error("the lane is full: {jobs_max} jobs wait or run")]
    Jobs {
        /// The bound.
        jobs_max: usize,
    },
    /// What waits is as large as it may be. Later there will be room.
    #[error("the lane is full: jobs of {bytes_max} bytes wait or run")]
    Bytes {
        /// The bound.
        bytes_max: u64,
    },
    /// No device works at the moment; they are opened again.
    #[error("no device works at the moment")]
    Down,
    /// It takes more memory than a batch may, or its data is more than may wait: it is never taken.
    #[error("the job takes {bytes} bytes; {bytes_max} are allowed")]
    TooLarge {
        /// That it takes.
        bytes: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// It is not as it must be.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The lane has ended, or ends.
    #[error("the lane is closed")]
    Closed,
}

impl Refusal {
    /// Whether the same job may be taken later.
    pub fn retryable(&self) -> bool {
        matches!(self, Refusal::Jobs { .. } | Refusal::Bytes { .. } | Refusal::Down)
    }
}

/// Says that a job is no longer wanted. Looked at before a batch begins, and between the images of a batch; what runs, runs to
/// its end. Crosses cores; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// From now on.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it was said.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A job that was taken. Who drops it no longer wants it, as by [`Cancel`]. Crosses cores.
#[must_use = "a job whose answer nobody waits for is not computed"]
#[derive(Debug)]
pub struct Pending(flume::Receiver<Result<Answer, Failure>>);

impl Pending {
    /// Waits, on whatever executor.
    ///
    /// # Errors
    /// Why there is no result.
    pub async fn wait(self) -> Result<Answer, Failure> {
        self.0.recv_async().await.unwrap_or(Err(Failure::Closed))
    }

    /// Waits on this thread, for at most `timeout`; nothing by then is `None`, and the job is given up.
    pub fn wait_timeout(self, timeout: Duration) -> Option<Result<Answer, Failure>> {
        match self.0.recv_timeout(timeout) {
            Ok(answer) => Some(answer),
            Err(flume::RecvTimeoutError::Disconnected) => Some(Err(Failure::Closed)),
            Err(flume::RecvTimeoutError::Timeout) => None,
        }
    }
}

impl Client {
    /// Puts a job in the queue. Never waits.
    ///
    /// # Errors
    /// It is not taken: see [`Refusal::retryable`].
    pub fn submit(&self, work: Work, cancel: &Cancel) -> Result<Pending, Refusal> {
        let shared = &self.shared;
        let plan = plan(work)?;
        for (bytes, bytes_max) in [(plan.memory_bytes, shared.batch_bytes_max), (plan.lent_bytes, shared.room.bytes_max)] {
            if bytes > bytes_max {
                return Err(Refusal::TooLarge { bytes, bytes_max });
            }
        }
        if shared.closed() {
            return Err(Refusal::Closed);
        }
        if !shared.up() {
            return Err(Refusal::Down);
        }
        let room = Room::take(&shared.room, plan.lent_bytes)?;
        let (answer, pending) = flume::bounded(1);
        let job = Job { plan, cancel: cancel.clone(), answer, room };
        // Room was taken, so there is a place.
        self.queue.try_send(Note::Job(job)).map_err(|_| Refusal::Jobs { jobs_max: shared.room.jobs_max })?;
        if shared.gone() {
            // The desk has gone between the look above and now: nobody else will read this.
            empty(&self.rest);
        }
        Ok(Pending(pending))
    }

    /// How the lane is.
    pub fn status(&self) -> Status {
        self.shared.status()
    }
}

/// Answers all that still lies in the queue.
pub(crate) fn empty(queue: &flume::Receiver<Note>) {
    while let Ok(note) = queue.try_recv() {
        if let Note::Job(job) = note {
            job.answer(Err(Failure::Closed));
        }
    }
}

/// A job on its way to a device. Crosses cores.
pub(crate) struct Job {
    pub(crate) plan: Plan,
    cancel: Cancel,
    answer: flume::Sender<Result<Answer, Failure>>,
    room: Room,
}

impl Job {
    /// Whether anybody still wants it.
    pub(crate) fn wanted(&self) -> bool {
        !self.cancel.is_cancelled() && !self.answer.is_disconnected()
    }

    /// Gives its room back, then tells whoever waits.
    pub(crate) fn answer(self, answer: Result<Answer, Failure>) {
        drop(self.room);
        // Who no longer waits is not told.
        let _ = self.answer.try_send(answer);
    }
}

/// How much waits or runs. Shared; counted by all cores.
pub(crate) struct Rooms {
    pub(crate) jobs_max: usize,
    pub(crate) bytes_max: u64,
    pub(crate) jobs: AtomicUsize,
    pub(crate) bytes: AtomicU64,
}

/// A place among the jobs that wait or run; given back when dropped. Crosses cores.
#[must_use]
struct Room {
    rooms: Arc<Rooms>,
    bytes: u64,
}

impl Room {
    fn take(rooms: &Arc<Rooms>, bytes: u64) -> Result<Room, Refusal> {
        let below = |jobs: usize| (jobs < rooms.jobs_max).then_some(jobs + 1);
        rooms
            .jobs
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, below)
            .map_err(|_| Refusal::Jobs { jobs_max: rooms.jobs_max })?;
        let within = |lent: u64| lent.checked_add(bytes).filter(|sum| *sum <= rooms.bytes_max);
        if rooms.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, within).is_err() {
            rooms.jobs.fetch_sub(1, Ordering::AcqRel);
            return Err(Refusal::Bytes { bytes_max: rooms.bytes_max });
        }
        Ok(Room { rooms: rooms.clone(), bytes })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.rooms.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        self.rooms.jobs.fetch_sub(1, Ordering::AcqRel);
    }
}
