//! Everything that can happen to a core ([`Event`]) and everything a core can do ([`Effect`]). Both are closed.
//!
//! A driver feeds events to [`crate::shard::Shard::apply`] and carries out the effects it leaves in [`Effects`]; it decides
//! nothing. What must not leave before it is durable is not here yet: the machine holds it and lets it go on
//! [`Event::Durable`].

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::dedup::Entry;
use crate::gate::Vote;
use crate::ids::{AskerId, Fingerprint, Key, Lsn, Partition, Ticket};
use crate::journal::Log;
use crate::keys::KeyMap;
use crate::outcome::{Fault, Outcome, Status, Tried};
use crate::snapshot::Seal;
use crate::step::{Arrival, Settle, StreamToken};

/// Something that happened to this core. Lives on its core.
#[derive(Clone, Debug)]
pub enum Event {
    /// A message came, from a sender or from the journal at boot.
    Arrived(Rc<Arrival>),
    /// Every copy that there was of a step that waits for people has come. What waits and came in none is to have one.
    CopiesRead,
    /// Boot: an earlier life of this worker ended while it polled this key's code. It comes before any other event.
    Died {
        /// The key that its page names.
        polled: Key,
        /// The key's partition.
        partition: Partition,
        /// Which start of this worker that was.
        boot: u32,
    },
    /// Boot: the journal holds this key without an end. It comes before anything new.
    Recovered {
        /// Its key.
        key: Key,
        /// Its message, read again.
        arrival: Rc<Arrival>,
        /// What the journal says of it.
        past: Past,
    },
    /// Boot: the journal holds this key without an end, but another worker has owned its stream since, was handed its message
    /// and has answered or will.
    Superseded {
        /// Its key.
        key: Key,
        /// F, as it was accepted.
        fingerprint: Fingerprint,
        /// Who asked, as it was accepted.
        asker: AskerId,
        /// The key's partition.
        partition: Partition,
        /// Its outcome, where it has one that nobody is known to have been told.
        untold: Option<Untold>,
    },
    /// A try's work has really ended, with this verdict. Slot and memory return now, not before.
    Ended {
        /// The try.
        ticket: Ticket,
        /// What it came to.
        verdict: Verdict,
        /// How long it ran, in microseconds.
        ran_us: u64,
    },
    /// A try has something to say while it runs.
    Progressed {
        /// Which try.
        ticket: Ticket,
        /// What.
        chunk: Chunk,
    },
    /// Everything in the journal up to here will survive us.
    Durable {
        /// The newest durable frame.
        through: Lsn,
    },
    /// The journal gave back the outcome it keeps for a key, or could not find it.
    Probed {
        /// Whose outcome was asked for.
        key: Key,
        /// The outcome.
        found: Option<Rc<Outcome>>,
    },
    /// What the key files hold of a key. At boot also for the key that a page names.
    Looked {
        /// Who was looked for.
        key: Key,
        /// Its entry.
        found: Option<Entry>,
    },
    /// What was to be sealed is, or could not be.
    Sealed(Sealed),
    /// A letter that wanted confirming has been stored by the other side.
    Confirmed {
        /// As in its [`Post`].
        ticket: Ticket,
    },
    /// What became of a claim: whoever is first has it, for good.
    Claimed {
        /// As in its [`Effect::Claim`].
        ticket: Ticket,
        /// Whose it is.
        by: Claimant,
    },
    /// Time has passed; deadlines may be due.
    Tick,
    /// Somebody wants this key stopped.
    Cancel {
        /// Which.
        key: Key,
    },
    /// Take nothing new; finish what is here.
    Drain,
    /// The disk has something to say.
    Disk(DiskNews),
}

/// What became of a [`Seal`]. Crosses cores.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// Its finished keys, once each, as they lie near each other ([`Entry::table`]); where there are no files, in the order of
    /// their outcomes.
    pub entries: Vec<Entry>,
    /// All key files that stand from now on, oldest first; none if it could not be kept: then everything is as before.
    pub files: Option<Vec<Arc<KeyMap>>>,
}

/// What the journal says of a key whose story has no end there. Lives on its core.
#[derive(Clone, Debug)]
pub struct Past {
    /// The frame that holds its message.
    pub accepted: Lsn,
    /// Tries started.
    pub tries: u32,
    /// The last try was started and has no verdict.
    pub interrupted: bool,
    /// The next try is due then, Unix ms.
    pub retry_at_ms: Option<u64>,
    /// Its budget ends then, Unix ms.
    pub deadline_ms: u64,
    /// What people have said to it.
    pub votes: Vec<Vote>,
    /// Its outcome, where only the publishing is unproven.
    pub outcome: Option<(Lsn, Rc<Outcome>)>,
    /// What kind of key it is.
    pub role: Role,
}

/// An outcome that is told once somebody asks for it again. Lives on its core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Untold {
    /// The frame that holds the message.
    pub accepted: Lsn,
    /// The frame that holds the outcome.
    pub decided: Lsn,
    /// What kind of key it is.
    pub role: Role,
}

/// What a key stands for, and so which letters its outcome is told in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A step of its own.
    Step,
    /// An assignment that was refused.
    Refusal,
    /// An assignment that asked for another's step and shares its outcome.
    Shared,
    /// A message put aside.
    Aside,
    /// Somebody asked again; nothing new is recorded.
    Replay,
}

/// Whose claim of a step stands. Crosses cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claimant {
    /// That of the very acceptance that asked, in this life or an earlier one: the journal knows what became of it.
    Ours,
    /// That of an acceptance that the journal has forgotten: it may have run.
    Forgotten,
    /// Another worker's.
    Another,
}

/// What the journal's disk tells the machine. Lives on its core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskNews {
    /// A segment is full and will not grow; it holds the frames from..=to.
    Closed {
        /// Its oldest frame.
        from: Lsn,
        /// Its newest frame.
        to: Lsn,
        /// Its size on disk, in bytes.
        bytes: u64,
    },
    /// There is no room for another segment: nothing new may be accepted, what runs has room to finish.
    Full,
    /// There is room again.
    Room,
}

/// What one try came to. Lives on its core.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It did what was asked; the JSON text of its outputs.
    Done(Bytes),
    /// It did, and its outputs are where this reference says: the JSON text of `{uri, sha256, size}`.
    Spilled(Bytes),
    /// It did not.
    Failed(Fault),
    /// It was stopped because the machine asked for it.
    Stopped,
    /// The block's code panicked.
    Panicked,
}

/// Something this core does to the outside. Lives on its core.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Start a try.
    Run {
        /// Answers to it carry this ticket.
        ticket: Ticket,
        /// What to run.
        arrival: Rc<Arrival>,
        /// 1 for the first.
        try_number: u32,
    },
    /// Claim a step that must never run twice, before all other workers; answer with [`Event::Claimed`], however long it takes.
    Claim {
        /// The answer carries this ticket.
        ticket: Ticket,
        /// The step.
        key: Key,
        /// The frame that holds its message, durable: what the claim is known by.
        accepted: Lsn,
    },
    /// Stop a try: it will still end with [`Event::Ended`].
    Stop {
        /// The try.
        ticket: Ticket,
    },
    /// Send a letter.
    Post(Post),
    /// Settle or keep a stream delivery.
    Settle {
        /// Which.
        token: StreamToken,
        /// How.
        how: Settle,
    },
    /// Read back the outcome in frame `lsn`; answer with [`Event::Probed`].
    Probe {
        /// Whose.
        key: Key,
        /// Where.
        lsn: Lsn,
    },
    /// Look for a key in the key files that may hold it, the newest first; answer with [`Event::Looked`].
    Look {
        /// Whom.
        key: Key,
    },
    /// Put finished keys into a key file, and keep the snapshot that stands on it; answer with [`Event::Sealed`].
    Seal(Box<Seal>),
    /// Wipe what an earlier life left of this key on the page: the journal has it by now, or it does not count.
    WipePage {
        /// The key.
        key: Key,
    },
    /// Forget the segments that hold only frames below this one. Their watermark is durable.
    Prune {
        /// The oldest frame that must stay.
        below: Lsn,
    },
}

/// A letter and whether its arrival must be confirmed.
#[derive(Clone, Debug)]
pub struct Post {
    /// Where the confirmation goes, if one is wanted.
    pub confirm: Option<Ticket>,
    /// For whom and about what; its asker decides the form.
    pub arrival: Rc<Arrival>,
    /// What it says.
    pub letter: Letter,
}

/// What leaves this core for a reader.
#[derive(Clone, Debug)]
pub enum Letter {
    /// "Your step is here to stay", or why not. The first answer to an assignment.
    Ack {
        /// Whether it was accepted.
        accepted: bool,
        /// Why not.
        fault: Option<Fault>,
        /// How full the worker is.
        overload: Overload,
        /// Unix ms.
        at_ms: u64,
    },
    /// The one outcome, rendered for this asker.
    Result {
        /// What it came to.
        outcome: Rc<Outcome>,
        /// Whether it was decided for an earlier delivery.
        replayed: bool,
        /// The key whose outcome it is: the step's, or where the assignment was refused without it the assignment's own.
        under: Key,
    },
    /// Something observers may want to know.
    Lifecycle {
        /// What happened.
        stage: Stage,
        /// The outcome, at the end.
        outcome: Option<Rc<Outcome>>,
        /// Counts up within one step: 0 accepted, then as they come.
        sequence: u32,
        /// Unix ms.
        at_ms: u64,
    },
    /// A step waits for people.
    ApprovalNeeded {
        /// Why it is told now.
        why: Asking,
        /// It is the second round's people who are asked.
        escalated: bool,
        /// Until when those who are asked now may decide, Unix ms.
        until_ms: u64,
        /// Counts up within one step, with the lifecycle's events.
        sequence: u32,
        /// Unix ms.
        at_ms: u64,
    },
    /// What the next owner needs to go on with a step that waits for people.
    Copy {
        /// Frames of the journal.
        frames: Bytes,
    },
    /// Nobody needs that any more.
    NoCopy,
    /// What a try says while it runs: told as it comes, kept nowhere.
    Progress {
        /// What.
        chunk: Chunk,
        /// Which try says it, from 1.
        try_number: u32,
        /// Counts up within one step, with the lifecycle's events.
        sequence: u32,
        /// Unix ms.
        at_ms: u64,
    },
    /// The whole message with the reason it was not done.
    DeadLetter {
        /// What it came to.
        outcome: Rc<Outcome>,
        /// The tries before the last, as far as they are known.
        earlier: Vec<Tried>,
    },
    /// What became of a notice, to the one who waits for that; or why what a call brought is not taken.
    Reply(Reply),
}

/// Why people are told that a step waits for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asking {
    /// It begins to.
    First,
    /// Its time, or a round's, is nearly over.
    Reminder,
    /// Those who were asked first have not decided; others are asked now.
    Escalation,
}

/// What becomes of a notice. Lives on its core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The step has ended as cancelled, and that is durable.
    Cancelled,
    /// It had ended so, and that is durable.
    Ended(Status),
    /// What was said counts, and is durable.
    Noted,
    /// This person, or this signal, was heard before: that one stands.
    Heard(Vote),
    /// What was said came too late: this had been decided, and is durable.
    Decided(Rc<Outcome>),
    /// No such step is known here.
    Unknown,
    /// The notice was of no use, or the call's step is not taken.
    Refused(Fault),
}

/// A piece of what a try has to say. Crosses cores.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// A JSON object's text: `Progress` of the native profile.
    pub text: Bytes,
    /// What it takes of the try's credit, until nobody holds the piece any more.
    pub hold: Hold,
}

/// Bytes that are on their way to observers; given back when the last holder is gone, on whatever core. Crosses cores.
#[derive(Clone, Debug)]
pub struct Hold {
    _weight: Arc<Weight>,
}

#[derive(Debug)]
struct Weight {
    under_way: Arc<AtomicU64>,
    bytes: u64,
}

impl Hold {
    /// Takes so many bytes of a credit.
    pub fn take(under_way: &Arc<AtomicU64>, bytes: u64) -> Hold {
        under_way.fetch_add(bytes, Ordering::Relaxed);
        Hold { _weight: Arc::new(Weight { under_way: under_way.clone(), bytes }) }
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.under_way.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The stages of a step that observers see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Durable here.
    Accepted,
    /// A try starts.
    Started,
    /// A try failed; another follows.
    Retrying,
    /// It ended well.
    Completed,
    /// It ended badly.
    Failed,
    /// It was stopped.
    Canceled,
    /// It went to the dead letters.
    DeadLettered,
}

/// How full a shard is, as acks and heartbeats say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overload {
    /// Under half.
    Healthy,
    /// Under four fifths.
    Degraded,
    /// Nearly full.
    Overloaded,
    /// Full.
    Critical,
}

/// What one `apply` left to do: reused from call to call. Lives on its core.
#[derive(Debug, Default)]
pub struct Effects {
    /// Frames to append to the journal, in order.
    pub log: Log,
    /// Everything else, in order.
    pub list: Vec<Effect>,
}
