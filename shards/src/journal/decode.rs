//! Whole frames from bytes: text and bodies share the bytes they are read from.

use bytes::Bytes;

use super::codec::CodecError;
use super::view::{Fields, FrameView};
use super::{Accepted, Answer, Fact, Frame, Kind, Message, ResultFact, audit_tag, tag};
use crate::audit::{AuditItem, AuditKind};
use crate::ids::{AskerId, Fingerprint, Key, Lsn, Text};
use crate::outcome::{Code, Effected, Fault, Outcome, Status};
use crate::step::EffectClass;

/// One whole frame; text and bytes share `bytes`.
pub fn decode(bytes: &Bytes) -> Result<Frame, CodecError> {
    let view = FrameView::parse(bytes)?;
    let (key, partition, owner_epoch) = (view.key(), view.partition(), view.owner_epoch());
    let Some(kind) = view.kind() else {
        return Ok(Frame { key, partition, owner_epoch, fact: Fact::Unknown(view.code()) });
    };
    let source = Source { fields: view.fields()?, bytes };
    let fields = &source.fields;
    let fact = match kind {
        Kind::Accepted => Fact::Accepted(source.accepted()?),
        Kind::Answer => Fact::Answer(source.answer()?),
        Kind::Quarantined => Fact::Quarantined(source.answer()?),
        Kind::Started => {
            Fact::Started { try_number: fields.u32(tag::TRY)?, boot: fields.u32(tag::BOOT)?, at_ms: fields.u64(tag::AT_MS)? }
        }
        Kind::RetryAt => Fact::RetryAt { try_number: fields.u32(tag::TRY)?, at_ms: fields.u64(tag::AT_MS)? },
        Kind::Result => Fact::Result(ResultFact {
            tenant: source.text(tag::TENANT)?,
            fingerprint: Fingerprint(fields.array(tag::FINGERPRINT)?),
            asker: AskerId(fields.array(tag::ASKER)?),
            block: source.text(tag::BLOCK)?,
            outcome: source.outcome()?,
            audit: source.audit()?,
        }),
        Kind::Published => Fact::Published { asker: AskerId(fields.array(tag::ASKER)?), at_ms: fields.u64(tag::AT_MS)? },
        Kind::Mark => Fact::Mark {
            wall_ms: fields.u64(tag::WALL_MS)?,
            floor: Lsn(fields.u64(tag::FLOOR)?),
            watermark_ms: fields.u64(tag::WATERMARK_MS)?,
        },
        Kind::Struck => {
            Fact::Struck { strikes: fields.u32(tag::STRIKES)?, boot: fields.u32(tag::BOOT)?, at_ms: fields.u64(tag::AT_MS)? }
        }
        Kind::Signal => Fact::Signal(fields.vote()?),
        Kind::Released => Fact::Released { at_ms: fields.u64(tag::AT_MS)? },
        Kind::Parked | Kind::Cancel | Kind::Tenant | Kind::Config => Fact::Unknown(view.code()),
    };
    Ok(Frame { key, partition, owner_epoch, fact })
}

/// A frame's fields, and the shared bytes they lie in.
struct Source<'a> {
    fields: Fields<'a>,
    bytes: &'a Bytes,
}

impl Source<'_> {
    fn share(&self, tag: u8) -> Result<Bytes, CodecError> {
        Ok(self.bytes.slice_ref(self.fields.bytes(tag)?))
    }

    fn text(&self, tag: u8) -> Result<Text, CodecError> {
        Text::try_from(self.share(tag)?).map_err(|_| self.fields.bad(tag))
    }

    fn accepted(&self) -> Result<Accepted, CodecError> {
        let fields = &self.fields;
        Ok(Accepted {
            tenant: self.text(tag::TENANT)?,
            fingerprint: Fingerprint(fields.array(tag::FINGERPRINT)?),
            asker: AskerId(fields.array(tag::ASKER)?),
            effect: fields.code(tag::EFFECT_CLASS, EffectClass::from_code)?,
            effect_ceiling: fields.optional(tag::EFFECT_CEILING, |tag| fields.code(tag, EffectClass::from_code))?,
            block: self.text(tag::BLOCK)?,
            config_epoch: fields.u32(tag::CONFIG_EPOCH)?,
            replay_of: fields.optional(tag::REPLAY_OF, |tag| fields.array(tag).map(Key))?,
            deadline_ms: fields.u64(tag::DEADLINE_MS)?,
            not_after_ms: fields.u64(tag::NOT_AFTER_MS)?,
            received_ms: fields.u64(tag::RECEIVED_MS)?,
            message: self.message()?,
        })
    }

    fn message(&self) -> Result<Message, CodecError> {
        let mut headers = Vec::new();
        for header in self.fields.headers() {
            let (name, value) = header?;
            let text = |part| Text::try_from(self.bytes.slice_ref(part)).map_err(|_| self.fields.bad(tag::HEADER));
            headers.push((text(name)?, text(value)?));
        }
        Ok(Message {
            source: self.fields.u8(tag::SOURCE)?,
            sequence: self.fields.u64(tag::SEQUENCE)?,
            since_ms: self.fields.u64(tag::SINCE_MS)?,
            subject: self.text(tag::SUBJECT)?,
            headers,
            body: self.share(tag::BODY)?,
        })
    }

    fn outcome(&self) -> Result<Outcome, CodecError> {
        let fields = &self.fields;
        let fault = |_| {
            Ok(Fault {
                code: fields.code(tag::FAULT_CODE, Code::from_code)?,
                message: self.text(tag::FAULT_MESSAGE)?,
                details: self.share(tag::FAULT_DETAILS)?,
                effect: fields.code(tag::FAULT_EFFECT, Effected::from_code)?,
                retry_after_ms: fields.optional(tag::FAULT_RETRY_AFTER_MS, |tag| fields.u64(tag))?,
            })
        };
        Ok(Outcome {
            status: fields.code(tag::STATUS, Status::from_code)?,
            effect: fields.code(tag::EFFECTED, Effected::from_code)?,
            outputs: self.share(tag::OUTPUTS)?,
            spilled: fields.optional(tag::SPILLED, |tag| fields.u8(tag))?.is_some(),
            fault: fields.optional(tag::FAULT_CODE, fault)?,
            tries: fields.u32(tag::TRIES)?,
            received_ms: fields.u64(tag::RECEIVED_MS)?,
            started_ms: fields.u64(tag::STARTED_MS)?,
            ended_ms: fields.u64(tag::ENDED_MS)?,
            ran_us: fields.u64(tag::RAN_US)?,
            queue_depth: fields.u32(tag::QUEUE_DEPTH)?,
            boot: fields.u32(tag::BOOT)?,
            owner_epoch: fields.optional(tag::OWNER_EPOCH, |tag| fields.u32(tag))?.unwrap_or(0),
        })
    }

    fn audit(&self) -> Result<AuditItem, CodecError> {
        let inner = self.fields.audit()?;
        let actor = self.bytes.slice_ref(inner.bytes(audit_tag::ACTOR)?);
        Ok(AuditItem {
            kind: inner.code(audit_tag::KIND, AuditKind::from_code)?,
            wall_ms: inner.u64(audit_tag::WALL_MS)?,
            tenant_seq: inner.u64(audit_tag::TENANT_SEQ)?,
            outcome_digest: inner.array(audit_tag::OUTCOME_DIGEST)?,
            actor: Text::try_from(actor).map_err(|_| inner.bad(audit_tag::ACTOR))?,
            config_epoch: inner.u32(audit_tag::CONFIG_EPOCH)?,
        })
    }

    fn answer(&self) -> Result<Answer, CodecError> {
        Ok(Answer {
            tenant: self.text(tag::TENANT)?,
            fingerprint: Fingerprint(self.fields.array(tag::FINGERPRINT)?),
            asker: AskerId(self.fields.array(tag::ASKER)?),
            of: self.fields.optional(tag::OF, |tag| self.fields.array(tag).map(Key))?,
            outcome: self.outcome()?,
            audit: self.audit()?,
            message: self.message()?,
        })
    }
}
