//! The journal's format: frames, batches and segments as bytes, and nothing of where the bytes are kept.
//!
//! A segment file is a header and then batches; a batch is a checksummed run of frames made durable together; a frame is one
//! fact about one key. Frames are tagged fields, so that a reader skips what it does not know where that is allowed.
//! The meaning of the facts is in [`crate::fold`] and [`crate::shard`]. All numbers are little-endian.
//!
//! | frame ([`codec`], [`decode()`], [`view`]) | bytes |
//! |---|---|
//! | length of the whole frame | u32 |
//! | kind, see [`Kind`] | u8 |
//! | flags: bit 0 *skippable*: who does not know the kind may pass over it, else must not start | u8 |
//! | partition | u16 |
//! | owner epoch | u32 |
//! | key | 16 |
//! | fields, each: tag u8, length as LEB128, bytes; unknown tags are passed over | … |
//!
//! Tags have one meaning over all kinds ([`tag`]). Numbers in fields are u8, u32 or u64 by their length. The audit item is one
//! field: a version byte (1), then tagged fields of its own numbering ([`audit_tag`]).
//! STRUCK alone is written as skippable: a version from before it counts no strikes, and is right in everything else.
//!
//! | batch ([`batch`]), at a multiple of 8 | bytes |
//! |---|---|
//! | magic, different in every segment | u32 |
//! | frames | u32 |
//! | length of the frames, without padding | u32 |
//! | crc32c over the segment's id, this header without the crc, the frames, the padding | u32 |
//! | batch number, from 1 in every segment | u64 |
//! | lsn of the first frame; the others follow | u64 |
//! | newest lsn that was durable when this was written | u64 |
//! | frames, padded with zeros to a multiple of 8 | … |
//!
//! Because magic and crc depend on the segment's random id, nobody can send a message that looks like a batch.
//!
//! | segment header ([`segment`]), 4096 bytes | bytes |
//! |---|---|
//! | magic `ENDSTJNL` | 8 |
//! | format version (this is 1), oldest version that may read it | u16, u16 |
//! | shard, shard count | u16, u16 |
//! | generation, feature bits, segment id, sequence, first lsn, created (Unix ms) | u64 each |
//! | boot: which start of this worker made the segment | u32 |
//! | worker id: length, then up to 256 bytes | u16, 256 |
//! | key salt, and the first 8 bytes of its BLAKE3 | 32, 8 |
//! | zeros | … |
//! | crc32c over all before | u32 |
//!
//! **Torn or damaged.** A writer has one batch in flight and writes the next only when it is durable; the header is durable
//! before the first batch. So a bad batch with a later good one behind it that was written when the bad one was already
//! durable is damage, and is reported; a bad one at the very end is a write that never finished, and is cut ([`scan`]).

pub mod batch;
pub mod codec;
mod decode;
pub mod scan;
pub mod segment;
#[cfg(test)]
mod tests;
pub mod view;

use bytes::Bytes;

use crate::audit::AuditItem;
use crate::gate::Vote;
use crate::ids::{AskerId, Fingerprint, Key, Lsn, Partition, Text};
use crate::outcome::Outcome;
use crate::step::{Delivery, EffectClass, Origin, Source};

pub use codec::{AcceptedRef, AnswerRef, CodecError, Head, MessageRef, ResultRef};
pub use decode::decode;
pub use view::{FrameView, Peek};

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
    /// A person has said something to a step that waits for people.
    Signal = 6,
    /// Another worker has had the key's message since: the step it stands for is not to be run here.
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
    /// An earlier life of the worker ended while it polled this key's code. Its key may stand in no other frame.
    Struck = 15,
}

impl Kind {
    /// Every kind, reserved ones included, in the order of their numbers.
    pub const ALL: [Kind; 15] = [
        Kind::Accepted,
        Kind::Answer,
        Kind::Started,
        Kind::RetryAt,
        Kind::Parked,
        Kind::Signal,
        Kind::Released,
        Kind::Cancel,
        Kind::Result,
        Kind::Published,
        Kind::Quarantined,
        Kind::Tenant,
        Kind::Mark,
        Kind::Config,
        Kind::Struck,
    ];

    /// The kind with this number, reserved ones included.
    pub fn from_code(code: u8) -> Option<Self> {
        Kind::ALL.get(usize::from(code).checked_sub(1)?).copied()
    }

    /// What operators read and type.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Accepted => "accepted",
            Kind::Answer => "answer",
            Kind::Started => "started",
            Kind::RetryAt => "retry_at",
            Kind::Parked => "parked",
            Kind::Signal => "signal",
            Kind::Released => "released",
            Kind::Cancel => "cancel",
            Kind::Result => "result",
            Kind::Published => "published",
            Kind::Quarantined => "quarantined",
            Kind::Tenant => "tenant",
            Kind::Mark => "mark",
            Kind::Config => "config",
            Kind::Struck => "struck",
        }
    }

    /// Whether this version gives it a [`Fact`].
    pub fn known(self) -> bool {
        !matches!(self, Kind::Parked | Kind::Cancel | Kind::Tenant | Kind::Config)
    }
}

const _: () = {
    let mut at = 0;
    while at < Kind::ALL.len() {
        assert!(Kind::ALL[at] as usize == at + 1);
        at += 1;
    }
};

/// Field tags, one numbering over all kinds. For ever.
pub mod tag {
    #![allow(missing_docs, reason = "each is the field of that name")]
    pub const TENANT: u8 = 1;
    pub const FINGERPRINT: u8 = 2;
    pub const ASKER: u8 = 3;
    pub const EFFECT_CLASS: u8 = 4;
    pub const EFFECT_CEILING: u8 = 5;
    pub const BLOCK: u8 = 6;
    pub const CONFIG_EPOCH: u8 = 7;
    pub const REPLAY_OF: u8 = 8;
    pub const DEADLINE_MS: u8 = 9;
    pub const NOT_AFTER_MS: u8 = 10;
    pub const RECEIVED_MS: u8 = 11;
    pub const OF: u8 = 12;
    pub const TRY: u8 = 13;
    pub const BOOT: u8 = 14;
    pub const AT_MS: u8 = 15;
    pub const WALL_MS: u8 = 16;
    pub const FLOOR: u8 = 17;
    pub const WATERMARK_MS: u8 = 18;
    pub const STRIKES: u8 = 19;
    pub const SOURCE: u8 = 20;
    pub const SEQUENCE: u8 = 21;
    pub const SINCE_MS: u8 = 22;
    pub const SUBJECT: u8 = 23;
    /// One header: length of its name as LEB128, name, value. May stand several times.
    pub const HEADER: u8 = 24;
    pub const BODY: u8 = 25;
    pub const STATUS: u8 = 32;
    pub const EFFECTED: u8 = 33;
    pub const OUTPUTS: u8 = 34;
    pub const TRIES: u8 = 35;
    pub const STARTED_MS: u8 = 36;
    pub const ENDED_MS: u8 = 37;
    pub const RAN_US: u8 = 38;
    pub const QUEUE_DEPTH: u8 = 39;
    pub const FAULT_CODE: u8 = 40;
    pub const FAULT_MESSAGE: u8 = 41;
    pub const FAULT_DETAILS: u8 = 42;
    pub const FAULT_EFFECT: u8 = 43;
    pub const FAULT_RETRY_AFTER_MS: u8 = 44;
    /// The outputs are a reference to where they are; only there when they are.
    pub const SPILLED: u8 = 45;
    /// Of the outcome; only there where the consumer has owners.
    pub const OWNER_EPOCH: u8 = 46;
    pub const AUDIT: u8 = 48;
    pub const ACTOR: u8 = 49;
    /// 1 where it is for, 0 where it is against.
    pub const APPROVE: u8 = 50;
    pub const COMMENT: u8 = 51;
    pub const SIGNAL_ID: u8 = 52;
    /// Only there where it was.
    pub const SIGNED: u8 = 53;
    pub const PLAN: u8 = 54;
}

/// Field tags inside an audit item. For ever.
pub mod audit_tag {
    #![allow(missing_docs, reason = "each is the field of that name")]
    pub const KIND: u8 = 1;
    pub const WALL_MS: u8 = 2;
    pub const TENANT_SEQ: u8 = 3;
    pub const OUTCOME_DIGEST: u8 = 4;
    pub const ACTOR: u8 = 5;
    pub const CONFIG_EPOCH: u8 = 6;
}

/// One frame. Lives on its core.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Its key; zero for a [`Fact::Mark`].
    pub key: Key,
    /// The key's partition.
    pub partition: Partition,
    /// Under which epoch of ownership it was written; 0 where nobody owns.
    pub owner_epoch: u32,
    /// What it says.
    pub fact: Fact,
}

/// What frames say. Lives on its core.
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
    /// [`Kind::Struck`]
    Struck {
        /// All strikes of the key so far: older frames of the kind may be gone.
        strikes: u32,
        /// Which start of this worker ended so.
        boot: u32,
        /// Unix ms: when the next one saw it.
        at_ms: u64,
    },
    /// [`Kind::Signal`]
    Signal(Vote),
    /// [`Kind::Released`]
    Released {
        /// Unix ms.
        at_ms: u64,
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

/// [`Message::source`]: a line of a file or pipe.
pub const SOURCE_LINE: u8 = 1;
/// [`Message::source`]: a core NATS subscription.
pub const SOURCE_CORE: u8 = 2;
/// [`Message::source`]: a stream, which delivers it again until it is settled.
pub const SOURCE_STREAM: u8 = 3;
/// [`Message::source`]: a call, which is gone when this is read back.
pub const SOURCE_CALL: u8 = 4;

impl Message {
    /// The message as it is handed to the machine again at boot.
    pub fn into_delivery(self) -> Delivery {
        let source = match self.source {
            SOURCE_LINE => Source::Line,
            SOURCE_STREAM => Source::Stream,
            SOURCE_CALL => Source::Call,
            _ => Source::Core,
        };
        Delivery {
            origin: Origin::Journal { source, since_ms: self.since_ms },
            subject: self.subject,
            headers: self.headers,
            body: self.body,
            reply: None,
        }
    }
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
