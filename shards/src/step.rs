//! What arrives at a shard, already parsed and valid: an [`Arrival`], carrying the message itself, who asks, and what for.
//!
//! Parsing happens at the edge of the crate that knows the wire; nothing here can be malformed. A message that could not
//! be read, or was refused while reading it, is an arrival too: it gets one durable answer like any other.

use std::rc::Rc;

use bytes::Bytes;

use crate::block::CacheWish;
use crate::gate::{Gate, Vote};
use crate::ids::{AskerId, BlockId, Fingerprint, Key, Partition, Text};
use crate::outcome::{Code, Fault, Outcome};

mod own;

/// Message headers in the order they came.
pub type Headers = Vec<(Text, Text)>;

/// One message as it came, with what is owed to where it came from. Crosses cores.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Where it came from.
    pub origin: Origin,
    /// The subject it came on (for a file: its name).
    pub subject: Text,
    /// Its headers, verbatim.
    pub headers: Headers,
    /// Its body, verbatim.
    pub body: Bytes,
    /// Where its sender waits for an answer, if it does. Not in the journal: nobody waits across a restart.
    pub reply: Option<Text>,
}

/// Where a message came from, and so what settling it means. Crosses cores.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A line of a file or pipe: nothing to settle, the answer goes to the one who reads it.
    Line(u64),
    /// A core NATS subscription: nothing to settle, nothing kept by the server.
    Core,
    /// A JetStream delivery: the server holds it until it is settled.
    Stream(StreamToken),
    /// A call that waits for its answer, by the edge's own number for it: nothing to settle, and nobody else is answered. No
    /// message can name one, and no call outlives the process.
    Call(u64),
    /// Read back from the journal at boot: its old delivery, if it had one, is no longer ours to settle.
    Journal {
        /// Where it first came from; a stream will deliver it again.
        source: Source,
        /// When the stream stored it, or we first received it, Unix ms.
        since_ms: u64,
    },
}

/// The kinds of origins, as the journal tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A line of a file.
    Line,
    /// Core NATS.
    Core,
    /// A stream.
    Stream,
    /// A call.
    Call,
}

/// A JetStream delivery's identity and the subject that settles it. Crosses cores.
#[derive(Clone, Debug)]
pub struct StreamToken {
    /// Which of the worker's consumers delivered it.
    pub consumer: u16,
    /// The message's sequence in its stream: the same on every delivery.
    pub sequence: u64,
    /// When the stream stored it, Unix ms: the same on every delivery.
    pub stored_ms: u64,
    /// How often it has been delivered, this time included. A hint: servers forget.
    pub delivered: u32,
    /// Where `+ACK`, `-NAK`, `+WPI` and `+TERM` go.
    pub reply: Text,
    /// An earlier owner may have had it: where this journal does not know its key, it may have run elsewhere.
    pub inherited: bool,
}

/// How a stream delivery ends, or is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settle {
    /// Done: the server may forget it.
    Ack,
    /// Not now: deliver it again after this many milliseconds.
    Nak {
        /// The delay in milliseconds.
        delay_ms: u32,
    },
    /// Never again.
    Term,
    /// Still at work: restart the server's patience.
    Progress,
}

/// One message, read as far as it could be. Lives on its core (shared there by `Rc`).
#[derive(Clone, Debug)]
pub struct Arrival {
    /// The message itself.
    pub delivery: Delivery,
    /// The tenant, empty where none could be read.
    pub tenant: Text,
    /// The tenant's partition.
    pub partition: Partition,
    /// What this arrival is one of. For work: K. For a refusal: the assignment's answer key. For garbage: its own hash.
    pub key: Key,
    /// What it asks for.
    pub fingerprint: Fingerprint,
    /// Who asks, where that could be read; garbage has no asker and gets no answer, only a dead letter.
    pub asker: Option<Asker>,
    /// What is to be done.
    pub content: Content,
    /// Unix ms of first receipt by this worker.
    pub received_ms: u64,
    /// What another owner has made of it so far, where it comes from the copy that one left.
    pub adopted: Option<Rc<Adopted>>,
}

/// What another owner has made of a step that waits for people. Lives on its core.
#[derive(Clone, Debug)]
pub struct Adopted {
    /// When its time is over, Unix ms.
    pub deadline_ms: u64,
    /// What people have said, in order.
    pub votes: Vec<Vote>,
    /// What it came to, if that was decided.
    pub outcome: Option<Rc<Outcome>>,
}

/// What an arrival asks the shard to do. Lives on its core.
#[derive(Clone, Debug)]
pub enum Content {
    /// Run a block.
    Work(Work),
    /// Answer that it cannot be taken: one rejected ack, one complete error result.
    Refusal(Fault),
    /// Keep it as a dead letter; nobody can be answered.
    Garbage(Fault),
    /// Not a step: something is said to one.
    Notice(Notice),
}

/// What is said to a step on its way. Never journaled itself; answered where its sender waits. Lives on its core.
#[derive(Clone, Debug)]
pub enum Notice {
    /// Stop the step whose key the arrival has.
    Cancel {
        /// Names the step where the key does not.
        assignment_id: Option<Text>,
        /// Who asks, for the audit log.
        actor: Option<Text>,
        /// Why: the fault's details, JSON object text or empty.
        details: Bytes,
    },
    /// What a person says to a step that waits for people, whose key the arrival has.
    Signal {
        /// Names the step where the key does not.
        assignment_id: Option<Text>,
        /// What is said; its time is when the shard hears it.
        vote: Vote,
    },
    /// It cannot be done, whatever becomes of any step.
    Refused(Fault),
}

/// A step to run. Lives on its core.
#[derive(Clone, Debug)]
pub struct Work {
    /// Which block.
    pub block: BlockId,
    /// What it counts as among the tenant's steps: one block may have several forms, for inputs that come by other ways.
    pub kind: BlockId,
    /// What may happen if it runs twice.
    pub effect: EffectClass,
    /// The block's inputs: JSON text.
    pub inputs: Bytes,
    /// 0 (last) to 100 (first).
    pub priority: u8,
    /// The whole budget from receipt over all tries, in milliseconds.
    pub budget_ms: u64,
    /// Not to be started after this, Unix ms; where the sender named none, from the stream's timestamp or first receipt.
    pub not_after_ms: u64,
    /// How often and how fast to try again.
    pub retry: RetryPolicy,
    /// What was wrong with optional settings that fell back to their defaults, for the ack's message.
    pub note: Option<Text>,
    /// The largest effect class the sender allows, if it named one.
    pub effect_ceiling: Option<EffectClass>,
    /// What it needs of the machine.
    pub needs: Needs,
    /// What it allows itself less than its tenant may: JSON text for its block, empty where it says nothing.
    pub guardrails: Bytes,
    /// Whether outputs of an earlier step will do; only where it is pure.
    pub cache: Option<CacheWish>,
    /// It runs nothing: it waits for people, on these terms.
    pub gate: Option<Rc<Gate>>,
    /// It only says what the step would do: ok or not, nothing happens outside.
    pub sandbox: bool,
    /// A policy of this worker forbids it: it is not begun where it is new, and told what is known of it where it is not.
    pub denied: Option<Box<Fault>>,
    /// It would do something else by now than its sender requires: not begun where it is new, nor again where it was accepted before.
    pub changed: Option<Box<Fault>>,
}

/// What a step needs of the machine while it runs. Lives on its core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Where it waits, and among which steps it counts.
    pub lane: Lane,
    /// Memory that is kept for it, in bytes; 0 where it names none.
    pub memory_bytes: u64,
    /// It begins only while fewer of its tenant's steps of its own kind run than this; 0: however many do.
    pub concurrency: u32,
}

/// What a step mostly waits for. Each kind has a queue and a bound of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lane {
    /// Others: disks, servers, the clock. Runs on its shard.
    #[default]
    Io,
    /// A compute thread.
    Cpu,
    /// A device.
    Gpu,
}

impl Lane {
    /// All of them, the scarcest first.
    pub const ALL: [Lane; 3] = [Lane::Gpu, Lane::Cpu, Lane::Io];

    /// Its name, as people are told.
    pub fn as_str(self) -> &'static str {
        match self {
            Lane::Io => "io",
            Lane::Cpu => "cpu",
            Lane::Gpu => "gpu",
        }
    }
}

/// Tries within one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// All tries, the first included; at least 1.
    pub tries_max: u32,
    /// The wait before the second try, in milliseconds; doubles from there, with full jitter.
    pub backoff_ms: u64,
    /// The longest wait, in milliseconds.
    pub backoff_ms_max: u64,
}

/// What running a block twice may do; decides what a crash between effect and record means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum EffectClass {
    /// Nothing outside changes: run again.
    Pure = 1,
    /// The target tells repeats apart: run again with the same key.
    Idempotent = 2,
    /// The effect and its record commit together: look, then run again.
    Transactional = 3,
    /// The effect has a precondition: run again, a failed precondition is compared.
    Conditional = 4,
    /// Anything may have happened: never run again. The default.
    Unsafe = 5,
}

impl EffectClass {
    /// The class with this journal code.
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => EffectClass::Pure,
            2 => EffectClass::Idempotent,
            3 => EffectClass::Transactional,
            4 => EffectClass::Conditional,
            5 => EffectClass::Unsafe,
            _ => return None,
        })
    }

    /// Its name, as people are told.
    pub fn as_str(self) -> &'static str {
        match self {
            EffectClass::Pure => "pure",
            EffectClass::Idempotent => "idempotent",
            EffectClass::Transactional => "transactional",
            EffectClass::Conditional => "conditional",
            EffectClass::Unsafe => "unsafe",
        }
    }
}

/// Which wire form an asker speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// JSON assignments and results of the Beamline router.
    Beamline,
    /// endstation's own steps and results.
    Native,
}

/// Who asks, with everything of theirs that an answer echoes. Lives on its core.
#[derive(Clone, Debug)]
pub struct Asker {
    /// One (K, assignment id).
    pub id: AskerId,
    /// The wire form.
    pub profile: Profile,
    /// The assignment's id.
    pub assignment_id: Text,
    /// The request's id.
    pub request_id: Text,
    /// As sent: may not be valid for the result's payload.
    pub trace_id: Option<Text>,
    /// Echo of `executor.provider_id`.
    pub provider_id: Text,
    /// Echo of `job.type`.
    pub job_type: Text,
    /// As sent: may not be valid for the result's payload.
    pub run_id: Option<Text>,
    /// As sent.
    pub flow_id: Option<Text>,
    /// As sent.
    pub step_id: Option<Text>,
    /// The orchestrator's attempt, where it named one.
    pub attempt: Option<u64>,
}

impl Arrival {
    /// What stands where none is: it holds no memory.
    pub fn nothing() -> Arrival {
        let delivery =
            Delivery { origin: Origin::Core, subject: Text::new(), headers: Vec::new(), body: Bytes::new(), reply: None };
        Arrival {
            delivery,
            tenant: Text::new(),
            partition: Partition(0),
            key: Key([0; 16]),
            fingerprint: Fingerprint([0; 32]),
            asker: None,
            content: Content::Garbage(Fault::new(Code::InvalidFormat, "Nothing.")),
            received_ms: 0,
            adopted: None,
        }
    }

    /// The stream delivery to settle, if there is one.
    pub fn token(&self) -> Option<&StreamToken> {
        match &self.delivery.origin {
            Origin::Stream(token) => Some(token),
            _ => None,
        }
    }

    /// When the sender's side first had it, Unix ms: the same on every delivery of a stream.
    pub fn since_ms(&self) -> u64 {
        match &self.delivery.origin {
            Origin::Stream(token) => token.stored_ms,
            Origin::Journal { since_ms, .. } => *since_ms,
            Origin::Line(_) | Origin::Core | Origin::Call(_) => self.received_ms,
        }
    }

    /// Whether a call waits for its answer.
    pub fn is_call(&self) -> bool {
        matches!(self.delivery.origin, Origin::Call(_))
    }

    /// Whether it came by a call, now or before a restart: its outcome is told to calls, and on no subject.
    pub fn by_call(&self) -> bool {
        matches!(self.delivery.origin, Origin::Call(_) | Origin::Journal { source: Source::Call, .. })
    }

    /// The work to do, if there is any.
    pub fn work(&self) -> Option<&Work> {
        match &self.content {
            Content::Work(work) => Some(work),
            Content::Refusal(_) | Content::Garbage(_) | Content::Notice(_) => None,
        }
    }

    /// The bytes this arrival keeps in memory, roughly: what the held-bytes bound counts.
    pub fn held_bytes(&self) -> u64 {
        self.delivery.body.len() as u64 + 512
    }
}
