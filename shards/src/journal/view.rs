//! A frame seen in place: what folding a journal needs of each frame, without copying or allocating.

use super::codec::{AUDIT_VERSION, CodecError, FRAME_HEAD_BYTES, SKIPPABLE};
use super::{Kind, audit_tag, tag};
use crate::gate::Vote;
use crate::ids::{AskerId, Fingerprint, Key, Lsn, Partition, Text};
use crate::outcome::Status;
use crate::step::EffectClass;

/// One frame, borrowed; its fields are read only when asked for. Lives on its core.
#[derive(Clone, Copy, Debug)]
pub struct FrameView<'a> {
    raw: &'a [u8],
    /// `None` for a kind this version may pass over.
    kind: Option<Kind>,
}

/// What folding needs of a frame.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "fields as in Fact")]
pub enum Peek<'a> {
    /// [`Kind::Accepted`]
    Accepted(AcceptedPeek<'a>),
    /// [`Kind::Answer`]
    Answer(AnswerPeek<'a>),
    /// [`Kind::Started`]
    Started { try_number: u32, boot: u32, at_ms: u64 },
    /// [`Kind::RetryAt`]
    RetryAt { try_number: u32, at_ms: u64 },
    /// [`Kind::Result`]
    Result(ResultPeek<'a>),
    /// [`Kind::Published`]
    Published { asker: AskerId, at_ms: u64 },
    /// [`Kind::Quarantined`]
    Quarantined(AnswerPeek<'a>),
    /// [`Kind::Mark`]
    Mark { wall_ms: u64, floor: Lsn, watermark_ms: u64 },
    /// [`Kind::Struck`]
    Struck { strikes: u32, boot: u32, at_ms: u64 },
    /// [`Kind::Signal`]
    Signal { vote: Vote },
    /// [`Kind::Released`]
    Released { at_ms: u64 },
    /// A kind that may be passed over.
    Unknown(u8),
}

impl Peek<'_> {
    /// When it was written, Unix ms, where the frame says so.
    pub fn at_ms(&self) -> Option<u64> {
        match self {
            Peek::Accepted(fact) => Some(fact.received_ms),
            Peek::Result(fact) => Some(fact.ended_ms),
            Peek::Answer(fact) | Peek::Quarantined(fact) => Some(fact.ended_ms),
            Peek::Started { at_ms, .. } | Peek::Published { at_ms, .. } => Some(*at_ms),
            Peek::Struck { at_ms, .. } | Peek::Released { at_ms } => Some(*at_ms),
            Peek::Signal { vote } => Some(vote.at_ms),
            Peek::Mark { wall_ms, .. } => Some(*wall_ms),
            Peek::RetryAt { .. } | Peek::Unknown(_) => None,
        }
    }
}

/// The head of an [`super::Accepted`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "fields as in Accepted and Message")]
pub struct AcceptedPeek<'a> {
    pub tenant: &'a str,
    pub fingerprint: Fingerprint,
    pub asker: AskerId,
    pub effect: EffectClass,
    pub deadline_ms: u64,
    pub not_after_ms: u64,
    pub received_ms: u64,
    pub source: u8,
    pub sequence: u64,
    pub since_ms: u64,
}

/// The head of a [`super::ResultFact`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "fields as in ResultFact, Outcome and AuditItem")]
pub struct ResultPeek<'a> {
    pub tenant: &'a str,
    pub fingerprint: Fingerprint,
    pub asker: AskerId,
    pub status: Status,
    /// When it was decided: the outcome's end.
    pub ended_ms: u64,
    pub tenant_seq: u64,
}

/// The head of an [`super::Answer`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "fields as in Answer, Outcome, AuditItem and Message")]
pub struct AnswerPeek<'a> {
    pub tenant: &'a str,
    pub fingerprint: Fingerprint,
    pub asker: AskerId,
    pub of: Option<Key>,
    pub status: Status,
    /// When it was decided: the outcome's end.
    pub ended_ms: u64,
    pub tenant_seq: u64,
    pub source: u8,
    pub sequence: u64,
    pub since_ms: u64,
}

/// Frames back to back; ends after the first error.
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    rest: &'a [u8],
}

impl<'a> Frames<'a> {
    /// The frames in `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Frames { rest: bytes }
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<&'a [u8], CodecError>;

    fn next(&mut self) -> Option<Self::Item> {
        let length = match self.rest {
            [] => return None,
            [a, b, c, d, ..] => u32::from_le_bytes([*a, *b, *c, *d]) as usize,
            _ => 0,
        };
        if length < FRAME_HEAD_BYTES || length > self.rest.len() {
            self.rest = &[];
            return Some(Err(CodecError::Short));
        }
        let (frame, rest) = self.rest.split_at(length);
        self.rest = rest;
        Some(Ok(frame))
    }
}

impl<'a> FrameView<'a> {
    /// Sees exactly one frame. An unknown kind is an error unless the frame may be skipped.
    pub fn parse(raw: &'a [u8]) -> Result<Self, CodecError> {
        if raw.len() < FRAME_HEAD_BYTES || u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]) as usize != raw.len() {
            return Err(CodecError::Short);
        }
        let kind = Kind::from_code(raw[4]).filter(|kind| kind.known());
        if kind.is_none() && raw[5] & SKIPPABLE == 0 {
            return Err(CodecError::UnknownKind { kind: raw[4] });
        }
        Ok(FrameView { raw, kind })
    }

    /// The frame's own bytes; [`super::decode`] reads them whole.
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// Its kind, unless this version does not know it.
    pub fn kind(&self) -> Option<Kind> {
        self.kind
    }

    /// The number of its kind.
    pub fn code(&self) -> u8 {
        self.raw[4]
    }

    /// Its partition.
    pub fn partition(&self) -> Partition {
        Partition(u16::from_le_bytes([self.raw[6], self.raw[7]]))
    }

    /// Its owner epoch.
    pub fn owner_epoch(&self) -> u32 {
        u32::from_le_bytes([self.raw[8], self.raw[9], self.raw[10], self.raw[11]])
    }

    /// Its key.
    pub fn key(&self) -> Key {
        let mut key = [0; 16];
        key.copy_from_slice(&self.raw[12..28]);
        Key(key)
    }

    /// What folding needs of it.
    pub fn peek(&self) -> Result<Peek<'a>, CodecError> {
        let Some(kind) = self.kind else { return Ok(Peek::Unknown(self.code())) };
        let fields = self.fields()?;
        Ok(match kind {
            Kind::Accepted => Peek::Accepted(AcceptedPeek {
                tenant: fields.str(tag::TENANT)?,
                fingerprint: Fingerprint(fields.array(tag::FINGERPRINT)?),
                asker: AskerId(fields.array(tag::ASKER)?),
                effect: fields.code(tag::EFFECT_CLASS, EffectClass::from_code)?,
                deadline_ms: fields.u64(tag::DEADLINE_MS)?,
                not_after_ms: fields.u64(tag::NOT_AFTER_MS)?,
                received_ms: fields.u64(tag::RECEIVED_MS)?,
                source: fields.u8(tag::SOURCE)?,
                sequence: fields.u64(tag::SEQUENCE)?,
                since_ms: fields.u64(tag::SINCE_MS)?,
            }),
            Kind::Result => Peek::Result(ResultPeek {
                tenant: fields.str(tag::TENANT)?,
                fingerprint: Fingerprint(fields.array(tag::FINGERPRINT)?),
                asker: AskerId(fields.array(tag::ASKER)?),
                status: fields.code(tag::STATUS, Status::from_code)?,
                ended_ms: fields.u64(tag::ENDED_MS)?,
                tenant_seq: fields.audit()?.u64(audit_tag::TENANT_SEQ)?,
            }),
            Kind::Answer => Peek::Answer(fields.answer()?),
            Kind::Quarantined => Peek::Quarantined(fields.answer()?),
            Kind::Started => {
                Peek::Started { try_number: fields.u32(tag::TRY)?, boot: fields.u32(tag::BOOT)?, at_ms: fields.u64(tag::AT_MS)? }
            }
            Kind::RetryAt => Peek::RetryAt { try_number: fields.u32(tag::TRY)?, at_ms: fields.u64(tag::AT_MS)? },
            Kind::Published => Peek::Published { asker: AskerId(fields.array(tag::ASKER)?), at_ms: fields.u64(tag::AT_MS)? },
            Kind::Mark => Peek::Mark {
                wall_ms: fields.u64(tag::WALL_MS)?,
                floor: Lsn(fields.u64(tag::FLOOR)?),
                watermark_ms: fields.u64(tag::WATERMARK_MS)?,
            },
            Kind::Struck => {
                Peek::Struck { strikes: fields.u32(tag::STRIKES)?, boot: fields.u32(tag::BOOT)?, at_ms: fields.u64(tag::AT_MS)? }
            }
            Kind::Signal => Peek::Signal { vote: fields.vote()? },
            Kind::Released => Peek::Released { at_ms: fields.u64(tag::AT_MS)? },
            Kind::Parked | Kind::Cancel | Kind::Tenant | Kind::Config => Peek::Unknown(self.code()),
        })
    }

    pub(super) fn fields(&self) -> Result<Fields<'a>, CodecError> {
        Fields::read(self.code(), &self.raw[FRAME_HEAD_BYTES..])
    }
}

const TAGS: usize = 64;

/// Where each known field lies. A field that stands twice counts the last time, headers every time.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    kind: u8,
    all: &'a [u8],
    at: [Option<&'a [u8]>; TAGS],
}

impl<'a> Fields<'a> {
    fn read(kind: u8, all: &'a [u8]) -> Result<Self, CodecError> {
        let mut at = [None; TAGS];
        let mut rest = all;
        while let Some((tag, value)) = next_field(&mut rest)? {
            if let Some(slot) = at.get_mut(usize::from(tag)) {
                *slot = Some(value);
            }
        }
        Ok(Fields { kind, all, at })
    }

    pub(super) fn bad(&self, tag: u8) -> CodecError {
        CodecError::Value { kind: self.kind, tag }
    }

    pub(super) fn bytes(&self, tag: u8) -> Result<&'a [u8], CodecError> {
        self.at[usize::from(tag)].ok_or(CodecError::Missing { kind: self.kind, tag })
    }

    pub(super) fn optional<T>(&self, tag: u8, read: impl FnOnce(u8) -> Result<T, CodecError>) -> Result<Option<T>, CodecError> {
        self.at[usize::from(tag)].map(|_| read(tag)).transpose()
    }

    pub(super) fn array<const N: usize>(&self, tag: u8) -> Result<[u8; N], CodecError> {
        self.bytes(tag)?.try_into().map_err(|_| self.bad(tag))
    }

    pub(super) fn u8(&self, tag: u8) -> Result<u8, CodecError> {
        self.array::<1>(tag).map(|[value]| value)
    }

    pub(super) fn u32(&self, tag: u8) -> Result<u32, CodecError> {
        self.array(tag).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&self, tag: u8) -> Result<u64, CodecError> {
        self.array(tag).map(u64::from_le_bytes)
    }

    pub(super) fn code<T>(&self, tag: u8, read: impl FnOnce(u8) -> Option<T>) -> Result<T, CodecError> {
        read(self.u8(tag)?).ok_or(self.bad(tag))
    }

    fn str(&self, tag: u8) -> Result<&'a str, CodecError> {
        std::str::from_utf8(self.bytes(tag)?).map_err(|_| self.bad(tag))
    }

    /// Names and values, in order.
    pub(super) fn headers(&self) -> impl Iterator<Item = Result<(&'a [u8], &'a [u8]), CodecError>> + use<'a> {
        let mut rest = self.all;
        std::iter::from_fn(move || {
            loop {
                match next_field(&mut rest) {
                    Ok(Some((tag::HEADER, mut value))) => {
                        let name = take_length(&mut value).filter(|length| *length <= value.len());
                        return Some(name.map(|length| value.split_at(length)).ok_or(CodecError::Short));
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => return None,
                    Err(error) => {
                        rest = &[];
                        return Some(Err(error));
                    }
                }
            }
        })
    }

    /// The fields of the audit item.
    pub(super) fn audit(&self) -> Result<Fields<'a>, CodecError> {
        match self.bytes(tag::AUDIT)? {
            [AUDIT_VERSION, rest @ ..] => Fields::read(self.kind, rest),
            [version, ..] => Err(CodecError::AuditVersion { version: *version }),
            [] => Err(self.bad(tag::AUDIT)),
        }
    }

    /// What a person has said. A copy: it outlives the segment it was read from.
    pub(super) fn vote(&self) -> Result<Vote, CodecError> {
        let text = |tag| self.str(tag).map(|text| Text::from(text.to_owned()));
        let unsaid = |tag| Ok(self.optional(tag, text)?.unwrap_or_default());
        Ok(Vote {
            actor: text(tag::ACTOR)?,
            approve: self.code(tag::APPROVE, |code| [false, true].get(usize::from(code)).copied())?,
            comment: unsaid(tag::COMMENT)?,
            id: unsaid(tag::SIGNAL_ID)?,
            signed: self.optional(tag::SIGNED, |tag| self.u8(tag))?.is_some(),
            plan: unsaid(tag::PLAN)?,
            at_ms: self.u64(tag::AT_MS)?,
        })
    }

    fn answer(&self) -> Result<AnswerPeek<'a>, CodecError> {
        Ok(AnswerPeek {
            tenant: self.str(tag::TENANT)?,
            fingerprint: Fingerprint(self.array(tag::FINGERPRINT)?),
            asker: AskerId(self.array(tag::ASKER)?),
            of: self.optional(tag::OF, |tag| self.array(tag).map(Key))?,
            status: self.code(tag::STATUS, Status::from_code)?,
            ended_ms: self.u64(tag::ENDED_MS)?,
            tenant_seq: self.audit()?.u64(audit_tag::TENANT_SEQ)?,
            source: self.u8(tag::SOURCE)?,
            sequence: self.u64(tag::SEQUENCE)?,
            since_ms: self.u64(tag::SINCE_MS)?,
        })
    }
}

#[inline]
fn next_field<'a>(rest: &mut &'a [u8]) -> Result<Option<(u8, &'a [u8])>, CodecError> {
    let Some((tag, after)) = rest.split_first() else { return Ok(None) };
    *rest = after;
    let length = take_length(rest).ok_or(CodecError::Short)?;
    if length > rest.len() {
        return Err(CodecError::Short);
    }
    let (value, after) = rest.split_at(length);
    *rest = after;
    Ok(Some((*tag, value)))
}

/// A length as LEB128, at most 35 bits of it.
#[inline]
fn take_length(rest: &mut &[u8]) -> Option<usize> {
    let mut length = 0usize;
    for shift in [0, 7, 14, 21, 28] {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        length |= usize::from(byte & 127) << shift;
        if byte & 128 == 0 {
            return Some(length);
        }
    }
    None
}
