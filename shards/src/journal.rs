//! The journal's format: frames, batches and segments as bytes, and nothing of where the bytes are kept.
//!
//! A segment file is a header and then batches; a batch is a checksummed run of frames made durable together; a frame is one
//! fact about one key. Frames are tagged fields, so that a reader skips what it does not know where that is allowed.
//! The meaning of the facts is in [`crate::fold`] and [`crate::shard`].

use bytes::Bytes;

use crate::audit::AuditItem;
use crate::ids::{AskerId, Fingerprint, Key, Lsn, Partition, Text};
use crate::outcome::Outcome;
use crate::step::{Delivery, EffectClass};

/// Frame kinds. The numbers are for ever; those without a [`Fact`] are reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A step is here to stay.
    Accepted = 1,
    /// An assignment was answered without running anything.
    Answer = 2,
    /// A try is about to start.
    Started = 3,
    /// A try failed; the next is due later.
    RetryAt = 4,
    /// Reserved.
    Parked = 5,
    /// Reserved.
    Signal = 6,
    /// Reserved.
    Released = 7,
    /// Reserved.
    Cancel = 8,
    /// The one outcome of a key.
    Result = 9,
    /// An answer was stored by the other side.
    Published = 10,
    /// A message was put aside.
    Quarantined = 11,
    /// Reserved.
    Tenant = 12,
    /// Time, floor and watermark: written by an idle shard and before segments go.
    Mark = 13,
    /// Reserved.
    Config = 14,
}

/// One frame. Lives on its core.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Its key; zero for a [`Fact::Mark`].
    pub key: Key,
    /// The key's partition.
    pub partition: Partition,
    /// Who owned the partition: 0 until ownership is built.
    pub owner_epoch: u32,
    /// What it says.
    pub fact: Fact,
}

/// What frames say.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// [`Kind::Accepted`]
    Accepted(Accepted),
    /// [`Kind::Answer`]
    Answer(Answer),
    /// [`Kind::Started`]
    Started {
        /// 1 for the first.
        try_number: u32,
        /// Which start of this worker.
        boot: u32,
        /// Unix ms.
        at_ms: u64,
    },
    /// [`Kind::RetryAt`]
    RetryAt {
        /// The try that is due.
        try_number: u32,
        /// Unix ms.
        at_ms: u64,
    },
    /// [`Kind::Result`]
    Result(ResultFact),
    /// [`Kind::Published`]
    Published {
        /// Whose answer.
        asker: AskerId,
        /// Unix ms.
        at_ms: u64,
    },
    /// [`Kind::Quarantined`]; the message, why, and its audit item.
    Quarantined(Answer),
    /// [`Kind::Mark`]
    Mark {
        /// Unix ms: the newest moment this shard has seen.
        wall_ms: u64,
        /// Frames below this one are gone or going.
        floor: Lsn,
        /// An unknown key whose message is not newer than this may have been forgotten. Unix ms, 0 for none.
        watermark_ms: u64,
    },
    /// A kind this version does not know and may skip.
    Unknown(u8),
}

/// A step is here to stay, with all that is needed to run and answer it after a crash.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    /// Its tenant.
    pub tenant: Text,
    /// F.
    pub fingerprint: Fingerprint,
    /// Who asked first.
    pub asker: AskerId,
    /// What running it twice may do.
    pub effect: EffectClass,
    /// The most the sender allows.
    pub effect_ceiling: Option<EffectClass>,
    /// `name@version`.
    pub block: Text,
    /// The configuration in force.
    pub config_epoch: u32,
    /// The key this one replays, if it does.
    pub replay_of: Option<Key>,
    /// Unix ms: its budget ends.
    pub deadline_ms: u64,
    /// Unix ms: not to be started later.
    pub not_after_ms: u64,
    /// Unix ms of first receipt.
    pub received_ms: u64,
    /// The message, verbatim; stands last in the frame.
    pub message: Message,
}

/// A message as the journal keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Where it came from: 1 a line, 2 core NATS, 3 a stream.
    pub source: u8,
    /// Line or stream sequence.
    pub sequence: u64,
    /// When the stream stored it or we first received it, Unix ms.
    pub since_ms: u64,
    /// Its subject.
    pub subject: Text,
    /// Its headers.
    pub headers: Vec<(Text, Text)>,
    /// Its body.
    pub body: Bytes,
}

/// The one outcome of a key.
#[derive(Clone, Debug, PartialEq)]
pub struct ResultFact {
    /// Its tenant.
    pub tenant: Text,
    /// F.
    pub fingerprint: Fingerprint,
    /// Who asked first.
    pub asker: AskerId,
    /// `name@version`.
    pub block: Text,
    /// The outcome.
    pub outcome: Outcome,
    /// The auditor's view of it.
    pub audit: AuditItem,
}

/// An assignment's answer without a run, or a message put aside.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Its tenant; empty where none could be read.
    pub tenant: Text,
    /// F of the message.
    pub fingerprint: Fingerprint,
    /// Who asked; zero for a quarantined message.
    pub asker: AskerId,
    /// The step key whose outcome was the answer, where one was; then `outcome` repeats it.
    pub of: Option<Key>,
    /// The answer.
    pub outcome: Outcome,
    /// The auditor's view of it.
    pub audit: AuditItem,
    /// The message, verbatim; stands last in the frame.
    pub message: Message,
}

/// Frames waiting to be appended, already encoded; the machine fills it, the disk empties it. Lives on its core.
#[derive(Debug, Default)]
pub struct Log {
    /// Encoded frames, back to back.
    pub bytes: Vec<u8>,
    /// How many they are.
    pub frames: u32,
    /// Whether somebody waits for the last of them to be durable; otherwise they may ride along with a later batch.
    pub urgent: bool,
}
