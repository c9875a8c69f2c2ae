//! What crosses between a shard and the edge: deliveries and confirmations in, parcels and settlements out.
//!
//! All of it travels in batches through bounded flume channels. Beside them each shard shows a [`Gauge`], which the edge
//! reads to know how much it may pull. The [`Wire`] is the pure translation between messages and the machine's types; the
//! root crate hands it over at launch.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64};
use std::task::Waker;

use bytes::Bytes;
use futures_util::task::AtomicWaker;

use crate::event::{Claimant, Post};
use crate::gate::{Gate, Vote};
use crate::ids::{Key, Lsn, Now, Text, Ticket};
use crate::outcome::Status;
use crate::step::{Arrival, Delivery, Headers, Lane, Settle, StreamToken};

use super::page::Page;

/// Edge → shard. Crosses cores.
#[derive(Debug)]
pub enum Inbound {
    /// Messages for tenants of this shard, unparsed but for the tenant.
    Deliveries(Vec<Delivery>),
    /// Parcels that have been stored by the other side.
    Confirmed(Vec<Ticket>),
    /// Claims that are answered, and whose they are.
    Claimed(Vec<(Ticket, Claimant)>),
    /// The copy that another owner left of a step that waits for people: frames of its journal.
    Adopted(Bytes),
    /// There are no more of these.
    CopiesRead,
}

/// Control → shard, in its own inbox, drained first. Crosses cores.
#[derive(Clone, Debug)]
pub enum Control {
    /// Stop this key.
    Cancel(Key),
    /// Tell of steps that wait for people.
    Waiting {
        /// This one alone.
        key: Option<Key>,
        /// At most so many, those first of which something is due first.
        rows_max: usize,
        /// Who asks.
        answer: flume::Sender<Vec<Waiting>>,
    },
    /// Take in a notice from somebody on this machine.
    Say {
        /// It; where its sender waits is filled in.
        notice: Delivery,
        /// Who gets the reply, as it is rendered.
        answer: flume::Sender<Bytes>,
    },
    /// Take nothing new; the shard ends when it is empty or told to stop.
    Drain,
    /// End now; what is unfinished stays in the journal.
    Stop,
}

/// A step that waits for people, as it is shown. Crosses cores.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// Its key.
    pub key: Key,
    /// Whose.
    pub tenant: Text,
    /// The assignment that asked for it first.
    pub assignment_id: Text,
    /// The run of the flow, where it names one.
    pub run_id: Option<Text>,
    /// The flow, likewise.
    pub flow_id: Option<Text>,
    /// The step of the flow, likewise.
    pub step_id: Option<Text>,
    /// The orchestrator's attempt, likewise.
    pub attempt: Option<u64>,
    /// JSON text of its inputs.
    pub inputs: Bytes,
    /// On what terms.
    pub gate: Gate,
    /// What people have said.
    pub votes: Vec<Vote>,
    /// Since when, Unix ms.
    pub since_ms: u64,
    /// Until when those who are asked now may decide, Unix ms.
    pub until_ms: u64,
    /// The second round's people are asked.
    pub escalated: bool,
}

/// Shard → edge. Crosses cores.
#[derive(Debug)]
pub struct Outbound {
    /// Which shard: confirmations go back there.
    pub shard: u16,
    /// In order: an assignment's ack stands before its result.
    pub items: Vec<Outgoing>,
}

/// One thing for the edge to send. Crosses cores.
#[derive(Debug)]
pub enum Outgoing {
    /// Publish it.
    Parcel(Parcel),
    /// Settle or keep a stream delivery.
    Settle(StreamToken, Settle),
    /// Claim a step before all other workers.
    Claim {
        /// The answer carries it.
        ticket: Ticket,
        /// The step.
        key: Key,
        /// The frame of the shard's journal that holds its message.
        accepted: Lsn,
    },
}

/// A rendered letter. Crosses cores.
#[derive(Debug, Clone)]
pub struct Parcel {
    /// Which kind of letter: decides the subject and whether a stream covers it.
    pub outlet: Outlet,
    /// The subject to publish on; empty in the answer to a call.
    pub subject: Text,
    /// Its headers, `Nats-Msg-Id` among them wherever there are any, but in the reply to a notice. None in the answer to a call.
    pub headers: Headers,
    /// Its body.
    pub body: Bytes,
    /// Where its asker waits for a copy, if it does.
    pub reply: Option<Text>,
    /// Where the confirmation goes, if one is wanted.
    pub confirm: Option<Ticket>,
    /// What it is about: for readers that are not on a subject.
    pub about: About,
}

/// The kinds of letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outlet {
    /// Accepted or rejected.
    Ack,
    /// The outcome for one asker.
    Result,
    /// A lifecycle event.
    Event,
    /// A whole message that was not done.
    DeadLetter,
    /// That a step is ours to run, for the other workers; only the edge writes these.
    Claim,
    /// What the next owner needs to go on with a step that waits for people, or that it is needed no more.
    Copy,
    /// What became of a notice.
    Reply,
    /// The same, where another worker may know better: it goes out a little later, so that the better answer is first.
    Doubt,
}

/// What a parcel is about.
#[derive(Debug, Clone, Copy)]
pub struct About {
    /// The line it came from, for steps from a file; 0 otherwise.
    pub line: u64,
    /// The call that it answers, and nobody but that: it is not published. 0 otherwise.
    pub call: u64,
    /// Its step came by a call, in this life or an earlier one: no server need be there for it.
    pub by_call: bool,
    /// The key.
    pub key: Key,
    /// How it ended; `None` unless this is a result.
    pub status: Option<Status>,
    /// Whether it was decided for an earlier delivery.
    pub replayed: bool,
    /// Which start of the worker decided it; 0 unless this is a result.
    pub boot: u32,
    /// How many tries were made.
    pub tries: u32,
}

/// What a shard shows of itself while it runs; written by its shard alone. Shared, read by the edge.
#[derive(Debug, Default)]
pub struct Gauge {
    /// How many more deliveries the shard would take now.
    pub free: AtomicU32,
    /// Bytes of bodies and outputs that it holds.
    pub held_bytes: AtomicU64,
    /// Steps waiting.
    pub queued: AtomicU32,
    /// Steps that wait for people.
    pub parked: AtomicU32,
    /// Steps running.
    pub running: AtomicU32,
    /// Of waiting and running steps, by lane, in the order of [`Lane::ALL`].
    pub by_lane: [[AtomicU32; 2]; Lane::ALL.len()],
    /// Memory that is kept for what runs, in bytes.
    pub memory_bytes: AtomicU64,
    /// Outcomes not yet known as published.
    pub unpublished: AtomicU32,
    /// Grows with every turn of the loop; a watchdog reads it.
    pub turns: AtomicU64,
    /// Grows whenever the loop is looked at, by a prod of the watchdog too.
    pub beats: AtomicU64,
    /// How long it has not been, though there was work and it was prodded, in milliseconds; written by the watchdog.
    pub stall_ms: AtomicU64,
    /// The shard's thread, as the system numbers it; 0 before it runs.
    pub thread: AtomicI32,
    /// Names the key whose own code is polled.
    pub page: OnceLock<Page>,
    /// The journal's disk is full: nothing new is accepted.
    pub disk_full: AtomicBool,
    /// The journal is over its budget and nothing in it may go yet: nothing new is accepted.
    pub over_budget: AtomicBool,
    /// Space that is kept for when the disk is full, in bytes; 0 while it is used.
    pub reserve_bytes: AtomicU64,
    /// The clock stands so far ahead that it is not believed: nothing new is accepted.
    pub clock_jumped: AtomicBool,
    /// Nothing is running, waiting or on its way out, and nothing waits for the disk.
    pub idle: AtomicBool,
    /// Wakes the shard's loop from another thread.
    pub prod: Prod,
    /// The journal is read, and the shard waits for the word to begin.
    pub waits: AtomicBool,
    /// Recovery is done and the shard takes work.
    pub ready: AtomicBool,
}

/// Wakes a task from another thread, as often as it is asked to. An [`AtomicWaker`] alone gives its waker away with the first
/// wake, and an executor that parks over that one as well would never be woken again.
#[derive(Debug, Default)]
pub struct Prod(AtomicWaker);

impl Prod {
    /// The task that is woken from now on: called whenever it is polled.
    pub fn hear(&self, waker: &Waker) {
        self.0.register(waker);
    }

    /// Wakes it, if there is one yet.
    pub fn wake(&self) {
        if let Some(waker) = self.0.take() {
            waker.wake_by_ref();
            // Who registers at the same moment registers the same one.
            self.0.register(&waker);
        }
    }
}

/// The translation between messages and the machine's types: pure, no I/O. One instance per shard, handed over at launch.
pub trait Wire: 'static {
    /// Reads a message as far as it can be read. Never fails: what cannot be read or taken is an arrival that says so.
    fn decode(&self, delivery: Delivery, now: Now) -> Arrival;

    /// Writes a letter for its reader; nothing where the reader has no use for it (events switched off, say).
    fn render(&self, post: &Post) -> Option<Parcel>;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering::Relaxed;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn a_task_that_slept_over_a_prod_is_woken_by_the_next() {
        let prod = Prod::default();
        prod.wake();
        let wakes = Arc::new(Wakes::default());
        prod.hear(&wakes.clone().into());
        for asked in 1..=3 {
            prod.wake();
            assert_eq!(wakes.0.load(Relaxed), asked, "not polled in between");
        }
    }
}
