//! The desk: one thread that reads the queue, keeps what waits in a [`Batcher`] and hands out batches, each to whichever
//! stream is free; and what all threads of a group and its clients see of each other.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crate::batch::{Batcher, Rules};
use crate::client::{Job, Rooms, empty};
use crate::device::DeviceKind;
use crate::job::Failure;
use crate::status::{DeviceState, DeviceStatus, Status};

/// What comes to the desk. Crosses cores.
pub(crate) enum Note {
    Job(Job),
    /// Something has changed in [`Shared`].
    Look,
}

/// What clients and threads see of each other. Shared; flags and counters only.
pub(crate) struct Shared {
    pub(crate) room: Arc<Rooms>,
    /// The most that the jobs of one batch may take of a device's memory, in bytes.
    pub(crate) batch_bytes_max: u64,
    pub(crate) seats: Vec<Seat>,
    closed: AtomicBool,
    gone: AtomicBool,
    hurry: AtomicBool,
}

/// One thread of a device, as others see it. Shared.
pub(crate) struct Seat {
    pub(crate) kind: DeviceKind,
    pub(crate) ordinal: usize,
    pub(crate) name: OnceLock<Arc<str>>,
    state: AtomicU8,
    pub(crate) batches: AtomicU64,
    pub(crate) jobs: AtomicU64,
    pub(crate) losses: AtomicU64,
    pub(crate) busy_us: AtomicU64,
}

impl Seat {
    pub(crate) fn new(kind: DeviceKind, ordinal: usize) -> Seat {
        Seat {
            kind,
            ordinal,
            name: OnceLock::new(),
            state: AtomicU8::new(DeviceState::Down as u8),
            batches: AtomicU64::new(0),
            jobs: AtomicU64::new(0),
            losses: AtomicU64::new(0),
            busy_us: AtomicU64::new(0),
        }
    }

    pub(crate) fn set(&self, state: DeviceState) {
        self.state.store(state as u8, Ordering::SeqCst);
    }

    fn state(&self) -> DeviceState {
        match self.state.load(Ordering::SeqCst) {
            state if state == DeviceState::Up as u8 => DeviceState::Up,
            state if state == DeviceState::Down as u8 => DeviceState::Down,
            _ => DeviceState::Ended,
        }
    }
}

impl Shared {
    pub(crate) fn new(room: Arc<Rooms>, batch_bytes_max: u64, seats: Vec<Seat>) -> Shared {
        let flag = || AtomicBool::new(false);
        Shared { room, batch_bytes_max, seats, closed: flag(), gone: flag(), hurry: flag() }
    }

    /// Nothing more is taken; what waits is still run.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// What waits is no longer run, but answered.
    pub(crate) fn hurry(&self) {
        self.hurry.store(true, Ordering::SeqCst);
    }

    pub(crate) fn hurried(&self) -> bool {
        self.hurry.load(Ordering::SeqCst)
    }

    /// Whether nobody reads the queue any more.
    pub(crate) fn gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    /// Whether any thread has a device that works.
    pub(crate) fn up(&self) -> bool {
        self.seats.iter().any(|seat| seat.state() == DeviceState::Up)
    }

    pub(crate) fn status(&self) -> Status {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let device = |seat: &Seat| DeviceStatus {
            kind: seat.kind,
            name: seat.name.get().cloned().unwrap_or_else(|| Arc::from("")),
            ordinal: seat.ordinal,
            state: seat.state(),
            batches: of(&seat.batches),
            jobs: of(&seat.jobs),
            losses: of(&seat.losses),
            busy_us: of(&seat.busy_us),
        };
        Status {
            devices: self.seats.iter().map(device).collect(),
            jobs: self.room.jobs.load(Ordering::Acquire),
            waiting_bytes: self.room.bytes.load(Ordering::Acquire),
        }
    }
}

/// The desk's thread. Lives on it.
pub(crate) struct Desk {
    pub(crate) shared: Arc<Shared>,
    pub(crate) queue: flume::Receiver<Note>,
    /// Without places of its own: a batch goes to a thread that waits for one.
    pub(crate) batches: flume::Sender<Vec<Job>>,
}

impl Desk {
    /// Until the group is closed and all that waited has been handed out.
    pub(crate) fn serve(self, rules: Rules) {
        let mut waiting = Batcher::new(rules);
        loop {
            while let Ok(note) = self.queue.try_recv() {
                put(&mut waiting, note);
            }
            let closed = self.shared.closed();
            let batch = if closed { waiting.flush() } else { waiting.take(Instant::now()) };
            if let Some(batch) = batch {
                if let Err(flume::SendError(batch)) = self.batches.send(batch) {
                    batch.into_iter().for_each(|job| job.answer(Err(Failure::Closed)));
                }
                continue;
            }
            if closed {
                break;
            }
            let note = match waiting.due(Instant::now()) {
                Some(due) => self.queue.recv_deadline(due).ok(),
                None => self.queue.recv().ok(),
            };
            if let Some(note) = note {
                put(&mut waiting, note);
            }
        }
    }
}

impl Drop for Desk {
    /// However it ended. A client that put a job in after this finds `gone` and empties the queue itself.
    fn drop(&mut self) {
        self.shared.close();
        self.shared.gone.store(true, Ordering::SeqCst);
        empty(&self.queue);
    }
}

fn put(waiting: &mut Batcher<Job>, note: Note) {
    let Note::Job(job) = note else { return };
    let (class, bytes) = (job.plan.class, job.plan.memory_bytes);
    // The client has looked at its size.
    if let Err(job) = waiting.put(Instant::now(), class, bytes, job) {
        job.answer(Err(Failure::Failed("larger than a batch may be".to_owned())));
    }
}
