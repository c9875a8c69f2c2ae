//! Frames to bytes, straight into [`Log::bytes`] from borrowed parts: one reservation a frame, no allocation a field.
//!
//! The way back is [`super::decode()`] for whole frames and [`super::view`] for a little of many.

use super::{
    Accepted, Answer, Fact, Frame, Kind, Log, Message, ResultFact, SOURCE_CALL, SOURCE_CORE, SOURCE_LINE, SOURCE_STREAM,
    audit_tag, tag,
};
use crate::audit::AuditItem;
use crate::gate::Vote;
use crate::ids::{AskerId, Fingerprint, Key, Lsn, Partition, Text};
use crate::outcome::Outcome;
use crate::step::{Arrival, EffectClass, Origin};

/// Bytes before a frame's fields.
pub const FRAME_HEAD_BYTES: usize = 28;
/// Flag: who does not know the kind may pass over the frame.
pub const SKIPPABLE: u8 = 1;
/// The version of audit items that this code writes.
pub const AUDIT_VERSION: u8 = 1;
/// More than all fixed-size fields of any kind take together, with the tags and lengths of the others.
const FIXED_BYTES_MAX: usize = 384;

/// Why bytes are not a frame that this version can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// It ends before it should.
    #[error("the frame is cut short")]
    Short,
    /// This version does not know the kind, and the frame says that it must not be passed over.
    #[error("frame kind {kind} is unknown to this version and may not be skipped; start the version that wrote it")]
    UnknownKind {
        /// As written.
        kind: u8,
    },
    /// A field that this kind must have is not there.
    #[error("a frame of kind {kind} lacks field {tag}")]
    Missing {
        /// The frame's kind.
        kind: u8,
        /// See [`tag`].
        tag: u8,
    },
    /// A field's bytes are not a value of its type.
    #[error("field {tag} of a frame of kind {kind} cannot be read")]
    Value {
        /// The frame's kind.
        kind: u8,
        /// See [`tag`].
        tag: u8,
    },
    /// An audit item of another version.
    #[error("audit item version {version} is unknown to this version")]
    AuditVersion {
        /// As written.
        version: u8,
    },
}

/// What stands before every frame's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The key; zero for a mark.
    pub key: Key,
    /// The key's partition.
    pub partition: Partition,
    /// Under which epoch of ownership; 0 where nobody owns.
    pub owner_epoch: u32,
}

/// [`Accepted`], borrowed.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "fields as in Accepted")]
pub struct AcceptedRef<'a> {
    pub tenant: &'a str,
    pub fingerprint: &'a Fingerprint,
    pub asker: &'a AskerId,
    pub effect: EffectClass,
    pub effect_ceiling: Option<EffectClass>,
    pub block: &'a str,
    pub config_epoch: u32,
    pub replay_of: Option<Key>,
    pub deadline_ms: u64,
    pub not_after_ms: u64,
    pub received_ms: u64,
    pub message: MessageRef<'a>,
}

/// [`Message`], borrowed.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "fields as in Message")]
pub struct MessageRef<'a> {
    pub source: u8,
    pub sequence: u64,
    pub since_ms: u64,
    pub subject: &'a str,
    pub headers: &'a [(Text, Text)],
    pub body: &'a [u8],
}

/// [`ResultFact`], borrowed.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "fields as in ResultFact")]
pub struct ResultRef<'a> {
    pub tenant: &'a str,
    pub fingerprint: &'a Fingerprint,
    pub asker: &'a AskerId,
    pub block: &'a str,
    pub outcome: &'a Outcome,
    pub audit: &'a AuditItem,
}

/// [`Answer`], borrowed.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "fields as in Answer")]
pub struct AnswerRef<'a> {
    pub tenant: &'a str,
    pub fingerprint: &'a Fingerprint,
    pub asker: &'a AskerId,
    pub of: Option<Key>,
    pub outcome: &'a Outcome,
    pub audit: &'a AuditItem,
    pub message: MessageRef<'a>,
}

impl<'a> MessageRef<'a> {
    /// The message of an arrival as the journal keeps it.
    pub fn of(arrival: &'a Arrival) -> Self {
        let delivery = &arrival.delivery;
        let (source, sequence) = match &delivery.origin {
            Origin::Line(line) => (SOURCE_LINE, *line),
            Origin::Core => (SOURCE_CORE, 0),
            Origin::Stream(token) => (SOURCE_STREAM, token.sequence),
            Origin::Call(_) => (SOURCE_CALL, 0),
            Origin::Journal { source, .. } => match source {
                crate::step::Source::Line => (SOURCE_LINE, 0),
                crate::step::Source::Core => (SOURCE_CORE, 0),
                crate::step::Source::Stream => (SOURCE_STREAM, 0),
                crate::step::Source::Call => (SOURCE_CALL, 0),
            },
        };
        MessageRef {
            source,
            sequence,
            since_ms: arrival.since_ms(),
            subject: &delivery.subject,
            headers: &delivery.headers,
            body: &delivery.body,
        }
    }

    fn bytes_max(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len() + 16).sum();
        self.subject.len() + headers + self.body.len() + 32
    }
}

impl<'a> From<&'a Message> for MessageRef<'a> {
    fn from(message: &'a Message) -> Self {
        let Message { source, sequence, since_ms, ref subject, ref headers, ref body } = *message;
        MessageRef { source, sequence, since_ms, subject, headers, body }
    }
}

impl<'a> From<&'a Accepted> for AcceptedRef<'a> {
    fn from(fact: &'a Accepted) -> Self {
        AcceptedRef {
            tenant: &fact.tenant,
            fingerprint: &fact.fingerprint,
            asker: &fact.asker,
            effect: fact.effect,
            effect_ceiling: fact.effect_ceiling,
            block: &fact.block,
            config_epoch: fact.config_epoch,
            replay_of: fact.replay_of,
            deadline_ms: fact.deadline_ms,
            not_after_ms: fact.not_after_ms,
            received_ms: fact.received_ms,
            message: (&fact.message).into(),
        }
    }
}

impl<'a> From<&'a ResultFact> for ResultRef<'a> {
    fn from(fact: &'a ResultFact) -> Self {
        let ResultFact { tenant, fingerprint, asker, block, outcome, audit } = fact;
        ResultRef { tenant, fingerprint, asker, block, outcome, audit }
    }
}

impl<'a> From<&'a Answer> for AnswerRef<'a> {
    fn from(fact: &'a Answer) -> Self {
        let Answer { tenant, fingerprint, asker, of, outcome, audit, message } = fact;
        AnswerRef { tenant, fingerprint, asker, of: *of, outcome, audit, message: message.into() }
    }
}

/// Appending. Whether somebody waits for it ([`Log::urgent`]) is the caller's to say.
impl Log {
    /// Appends a frame that stands as a value. The machine uses the functions below, which borrow.
    pub fn append(&mut self, frame: &Frame) {
        let head = Head { key: frame.key, partition: frame.partition, owner_epoch: frame.owner_epoch };
        match &frame.fact {
            Fact::Accepted(fact) => self.accepted(head, &fact.into()),
            Fact::Answer(fact) => self.answer(head, &fact.into()),
            Fact::Quarantined(fact) => self.quarantined(head, &fact.into()),
            Fact::Started { try_number, boot, at_ms } => self.started(head, *try_number, *boot, *at_ms),
            Fact::RetryAt { try_number, at_ms } => self.retry_at(head, *try_number, *at_ms),
            Fact::Result(fact) => self.result(head, &fact.into()),
            Fact::Published { asker, at_ms } => self.published(head, asker, *at_ms),
            Fact::Mark { wall_ms, floor, watermark_ms } => self.mark(*wall_ms, *floor, *watermark_ms),
            Fact::Struck { strikes, boot, at_ms } => self.struck(head, *strikes, *boot, *at_ms),
            Fact::Signal(vote) => self.signal(head, vote),
            Fact::Released { at_ms } => self.released(head, *at_ms),
            Fact::Unknown(kind) => self.write(*kind, SKIPPABLE, head, 0, |_| {}),
        }
    }

    /// [`Kind::Accepted`]
    pub fn accepted(&mut self, head: Head, fact: &AcceptedRef<'_>) {
        let room = fact.tenant.len() + fact.block.len() + fact.message.bytes_max();
        self.write(Kind::Accepted as u8, 0, head, room, |out| {
            put(out, tag::TENANT, fact.tenant.as_bytes());
            put_array(out, tag::FINGERPRINT, &fact.fingerprint.0);
            put_array(out, tag::ASKER, &fact.asker.0);
            put_u8(out, tag::EFFECT_CLASS, fact.effect as u8);
            if let Some(ceiling) = fact.effect_ceiling {
                put_u8(out, tag::EFFECT_CEILING, ceiling as u8);
            }
            put(out, tag::BLOCK, fact.block.as_bytes());
            put_u32(out, tag::CONFIG_EPOCH, fact.config_epoch);
            if let Some(key) = &fact.replay_of {
                put_array(out, tag::REPLAY_OF, &key.0);
            }
            put_u64(out, tag::DEADLINE_MS, fact.deadline_ms);
            put_u64(out, tag::NOT_AFTER_MS, fact.not_after_ms);
            put_u64(out, tag::RECEIVED_MS, fact.received_ms);
            put_message(out, &fact.message);
        });
    }

    /// [`Kind::Answer`]
    pub fn answer(&mut self, head: Head, fact: &AnswerRef<'_>) {
        self.answer_as(Kind::Answer, head, fact);
    }

    /// [`Kind::Quarantined`]
    pub fn quarantined(&mut self, head: Head, fact: &AnswerRef<'_>) {
        self.answer_as(Kind::Quarantined, head, fact);
    }

    fn answer_as(&mut self, kind: Kind, head: Head, fact: &AnswerRef<'_>) {
        let room = fact.tenant.len() + outcome_bytes_max(fact.outcome) + fact.audit.actor.len() + fact.message.bytes_max();
        self.write(kind as u8, 0, head, room, |out| {
            put(out, tag::TENANT, fact.tenant.as_bytes());
            put_array(out, tag::FINGERPRINT, &fact.fingerprint.0);
            put_array(out, tag::ASKER, &fact.asker.0);
            if let Some(key) = &fact.of {
                put_array(out, tag::OF, &key.0);
            }
            put_audit(out, fact.audit);
            put_outcome(out, fact.outcome);
            put_message(out, &fact.message);
        });
    }

    /// [`Kind::Started`]
    pub fn started(&mut self, head: Head, try_number: u32, boot: u32, at_ms: u64) {
        self.write(Kind::Started as u8, 0, head, 0, |out| {
            put_u32(out, tag::TRY, try_number);
            put_u32(out, tag::BOOT, boot);
            put_u64(out, tag::AT_MS, at_ms);
        });
    }

    /// [`Kind::RetryAt`]
    pub fn retry_at(&mut self, head: Head, try_number: u32, at_ms: u64) {
        self.write(Kind::RetryAt as u8, 0, head, 0, |out| {
            put_u32(out, tag::TRY, try_number);
            put_u64(out, tag::AT_MS, at_ms);
        });
    }

    /// [`Kind::Result`]
    pub fn result(&mut self, head: Head, fact: &ResultRef<'_>) {
        let room = fact.tenant.len() + fact.block.len() + outcome_bytes_max(fact.outcome) + fact.audit.actor.len();
        self.write(Kind::Result as u8, 0, head, room, |out| {
            put(out, tag::TENANT, fact.tenant.as_bytes());
            put_array(out, tag::FINGERPRINT, &fact.fingerprint.0);
            put_array(out, tag::ASKER, &fact.asker.0);
            put(out, tag::BLOCK, fact.block.as_bytes());
            put_audit(out, fact.audit);
            put_outcome(out, fact.outcome);
        });
    }

    /// [`Kind::Published`]
    pub fn published(&mut self, head: Head, asker: &AskerId, at_ms: u64) {
        self.write(Kind::Published as u8, 0, head, 0, |out| {
            put_array(out, tag::ASKER, &asker.0);
            put_u64(out, tag::AT_MS, at_ms);
        });
    }

    /// [`Kind::Mark`]
    pub fn mark(&mut self, wall_ms: u64, floor: Lsn, watermark_ms: u64) {
        let head = Head { key: Key([0; 16]), partition: Partition(0), owner_epoch: 0 };
        self.write(Kind::Mark as u8, 0, head, 0, |out| {
            put_u64(out, tag::WALL_MS, wall_ms);
            put_u64(out, tag::FLOOR, floor.0);
            put_u64(out, tag::WATERMARK_MS, watermark_ms);
        });
    }

    /// [`Kind::Struck`]
    pub fn struck(&mut self, head: Head, strikes: u32, boot: u32, at_ms: u64) {
        self.write(Kind::Struck as u8, SKIPPABLE, head, 0, |out| {
            put_u32(out, tag::STRIKES, strikes);
            put_u32(out, tag::BOOT, boot);
            put_u64(out, tag::AT_MS, at_ms);
        });
    }

    /// [`Kind::Signal`]. A version that does not know it must not start: it would ask people again.
    pub fn signal(&mut self, head: Head, vote: &Vote) {
        let room = vote.actor.len() + vote.comment.len() + vote.id.len() + vote.plan.len();
        self.write(Kind::Signal as u8, 0, head, room, |out| {
            put_u64(out, tag::AT_MS, vote.at_ms);
            put(out, tag::ACTOR, vote.actor.as_bytes());
            put_u8(out, tag::APPROVE, u8::from(vote.approve));
            for (tag, text) in [(tag::COMMENT, &vote.comment), (tag::SIGNAL_ID, &vote.id), (tag::PLAN, &vote.plan)] {
                if !text.is_empty() {
                    put(out, tag, text.as_bytes());
                }
            }
            if vote.signed {
                put_u8(out, tag::SIGNED, 1);
            }
        });
    }

    /// [`Kind::Released`]. A version that does not know it must not start: it would do again what another worker has done.
    pub fn released(&mut self, head: Head, at_ms: u64) {
        self.write(Kind::Released as u8, 0, head, 0, |out| put_u64(out, tag::AT_MS, at_ms));
    }

    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.frames = 0;
        self.urgent = false;
    }

    #[inline]
    fn write(&mut self, kind: u8, flags: u8, head: Head, room: usize, fields: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        self.bytes.reserve(FRAME_HEAD_BYTES + FIXED_BYTES_MAX + room);
        let mut fixed = [0; FRAME_HEAD_BYTES];
        fixed[4] = kind;
        fixed[5] = flags;
        fixed[6..8].copy_from_slice(&head.partition.0.to_le_bytes());
        fixed[8..12].copy_from_slice(&head.owner_epoch.to_le_bytes());
        fixed[12..].copy_from_slice(&head.key.0);
        self.bytes.extend_from_slice(&fixed);
        fields(&mut self.bytes);
        let length = u32::try_from(self.bytes.len() - start).expect("a message is bounded far below 4 GiB");
        self.bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
        self.frames += 1;
    }
}

fn outcome_bytes_max(outcome: &Outcome) -> usize {
    outcome.outputs.len() + outcome.fault.as_ref().map_or(0, |fault| fault.message.len() + fault.details.len() + 48)
}

#[inline]
fn put_u8(out: &mut Vec<u8>, tag: u8, value: u8) {
    out.extend_from_slice(&[tag, 1, value]);
}

#[inline]
fn put_u32(out: &mut Vec<u8>, tag: u8, value: u32) {
    let [a, b, c, d] = value.to_le_bytes();
    out.extend_from_slice(&[tag, 4, a, b, c, d]);
}

#[inline]
fn put_u64(out: &mut Vec<u8>, tag: u8, value: u64) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    out.extend_from_slice(&[tag, 8, a, b, c, d, e, f, g, h]);
}

#[inline]
fn put_array<const N: usize>(out: &mut Vec<u8>, tag: u8, value: &[u8; N]) {
    const { assert!(N < 128, "its length takes one byte") }
    out.extend_from_slice(&[tag, N as u8]);
    out.extend_from_slice(value);
}

#[inline]
fn put(out: &mut Vec<u8>, tag: u8, value: &[u8]) {
    out.push(tag);
    put_length(out, value.len());
    out.extend_from_slice(value);
}

#[inline]
fn put_length(out: &mut Vec<u8>, mut length: usize) {
    while length >= 128 {
        out.push(length as u8 | 128);
        length >>= 7;
    }
    out.push(length as u8);
}

fn length_bytes(length: usize) -> usize {
    (usize::BITS - (length | 1).leading_zeros()).div_ceil(7) as usize
}

fn put_message(out: &mut Vec<u8>, message: &MessageRef<'_>) {
    put_u8(out, tag::SOURCE, message.source);
    put_u64(out, tag::SEQUENCE, message.sequence);
    put_u64(out, tag::SINCE_MS, message.since_ms);
    put(out, tag::SUBJECT, message.subject.as_bytes());
    for (name, value) in message.headers {
        out.push(tag::HEADER);
        put_length(out, length_bytes(name.len()) + name.len() + value.len());
        put_length(out, name.len());
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(value.as_bytes());
    }
    put(out, tag::BODY, message.body);
}

fn put_outcome(out: &mut Vec<u8>, outcome: &Outcome) {
    put_u8(out, tag::STATUS, outcome.status as u8);
    put_u8(out, tag::EFFECTED, outcome.effect as u8);
    put_u32(out, tag::TRIES, outcome.tries);
    put_u64(out, tag::RECEIVED_MS, outcome.received_ms);
    put_u64(out, tag::STARTED_MS, outcome.started_ms);
    put_u64(out, tag::ENDED_MS, outcome.ended_ms);
    put_u64(out, tag::RAN_US, outcome.ran_us);
    put_u32(out, tag::QUEUE_DEPTH, outcome.queue_depth);
    put_u32(out, tag::BOOT, outcome.boot);
    if let Some(fault) = &outcome.fault {
        put_u8(out, tag::FAULT_CODE, fault.code as u8);
        put(out, tag::FAULT_MESSAGE, fault.message.as_bytes());
        put(out, tag::FAULT_DETAILS, &fault.details);
        put_u8(out, tag::FAULT_EFFECT, fault.effect as u8);
        if let Some(wait_ms) = fault.retry_after_ms {
            put_u64(out, tag::FAULT_RETRY_AFTER_MS, wait_ms);
        }
    }
    put(out, tag::OUTPUTS, &outcome.outputs);
    if outcome.spilled {
        put_u8(out, tag::SPILLED, 1);
    }
    if outcome.owner_epoch > 0 {
        put_u32(out, tag::OWNER_EPOCH, outcome.owner_epoch);
    }
}

fn put_audit(out: &mut Vec<u8>, item: &AuditItem) {
    let actor = item.actor.as_bytes();
    let length = 1 + 3 + 10 + 10 + 34 + 6 + 1 + length_bytes(actor.len()) + actor.len();
    out.push(tag::AUDIT);
    put_length(out, length);
    out.push(AUDIT_VERSION);
    put_u8(out, audit_tag::KIND, item.kind as u8);
    put_u64(out, audit_tag::WALL_MS, item.wall_ms);
    put_u64(out, audit_tag::TENANT_SEQ, item.tenant_seq);
    put_array(out, audit_tag::OUTCOME_DIGEST, &item.outcome_digest);
    put_u32(out, audit_tag::CONFIG_EPOCH, item.config_epoch);
    put(out, audit_tag::ACTOR, actor);
}
