//! What is said to steps on their way: cancels, which a shard looks into, and signals, for which no step waits yet.
//!
//! Both are questions on core NATS. Every worker hears them; one that knows nothing of the step says so a little later than one
//! that does. A cancel names a step as its request did, by its place or by its assignment, which may be a Beamline one too.

use bytes::Bytes;
use shards::event::Reply;
use shards::ids::{Identity, Key, Salt, Text};
use shards::limits::{ID_BYTES_MAX, Limits};
use shards::outcome::{Code, Fault};
use shards::step::{Delivery, Notice};

use crate::policy::signers::{HEADER, Kind};

use super::fingerprint::field;
use super::json::{Tape, Value, fields};
use super::native::{self, CANCEL_PREFIX, Encoding, SIGNALS_PREFIX, optional_id};
use super::pen::Pen;
use super::protobuf;
use super::reading::{Heads, Mail, is_assignment, is_tenant, missing, number, twice, wrong_form, wrong_value};
use super::roll::Roll;

/// The patterns that notices come on.
pub(crate) const PATTERNS: [&str; 2] = ["beamline.worker.cancel.v1.*", "beamline.worker.signals.v1.*"];
/// The longest reason of a cancel, in bytes.
const REASON_BYTES_MAX: usize = 1_024;

fields! {
    /// A StepCancel.
    Cancel {
        context: "context",
        assignment_id: "assignment_id" | "assignmentId",
        actor: "actor",
        reason: "reason",
    }
}

/// Whether a subject is one that notices come on.
pub(crate) fn is_notice(subject: &str) -> bool {
    subject.starts_with(CANCEL_PREFIX) || subject.starts_with(SIGNALS_PREFIX)
}

/// What a message on such a subject is to those who sign it.
pub(super) fn kind(subject: &str) -> Kind {
    Kind::Notice(if subject.starts_with(SIGNALS_PREFIX) { "signal" } else { "cancel" })
}

/// Reads a notice: its tenant, the key of the step it is about (zero where none is), and what it says.
pub(super) fn read(delivery: &Delivery, salt: &Salt, limits: &Limits, tape: &mut Tape) -> (Text, Key, Notice) {
    let tenant = native::tenant_of(&delivery.subject).unwrap_or_default();
    let read = if delivery.subject.starts_with(SIGNALS_PREFIX) {
        Err(Fault::new(Code::InvalidInput, "no step of this worker waits for a signal"))
    } else {
        cancel(delivery, tenant, salt, limits, tape)
    };
    let (key, notice) = read.unwrap_or_else(|fault| (Key([0; 16]), Notice::Refused(fault)));
    (Text::from(tenant), key, notice)
}

fn cancel(delivery: &Delivery, tenant: &str, salt: &Salt, limits: &Limits, tape: &mut Tape) -> Result<(Key, Notice), Fault> {
    let garbage = |why| Fault::new(Code::InvalidFormat, why);
    let body = match Encoding::of(delivery) {
        Encoding::Protobuf => {
            protobuf::cancel_text(&delivery.body).map_err(|_| garbage("the message is not a StepCancel in protobuf"))?
        }
        Encoding::Json => Text::try_from(delivery.body.clone()).map_err(|_| garbage("the message is not UTF-8 text"))?,
    };
    let doc = tape.read(&body).ok_or_else(|| garbage("the message is not JSON"))?;
    if !doc.top().is_object() {
        return Err(garbage("the message is not a JSON object"));
    }
    let heads = Heads::read(&delivery.headers);
    let mail = Mail { body: &body, doc: &doc, subject: &delivery.subject, heads, line: false, fault: None, limits };
    let said = Cancel::read(Some(doc.top()));
    let context = native::Context::read(said.context());
    if said.context().is_some_and(|context| !context.is_object()) {
        return Err(wrong_form("/context"));
    }
    if let Some(name) = said.picked.twice {
        return Err(twice(&format!("/{name}")));
    }
    if let Some(name) = context.picked.twice {
        return Err(twice(&format!("/context/{name}")));
    }
    let named = optional_id(&mail, context.tenant_id(), "/context/tenant_id")?;
    // A signature is over the body: what it says of no tenant in there, it says of every one that its signer has.
    if named.is_none() && delivery.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(HEADER)) {
        return Err(missing("/context/tenant_id"));
    }
    let other = mail.heads.tenant.is_some_and(|header| **header != *tenant) || named.is_some_and(|named| *named != *tenant);
    if other || !is_tenant(tenant) {
        let fault = Fault::new(Code::PermissionDenied, "subject, header and payload name different tenants");
        return Err(fault.with_details(field("/context/tenant_id")));
    }
    let id = |value, pointer| optional_id(&mail, value, pointer);
    let (run, flow) = (id(context.run_id(), "/context/run_id")?, id(context.flow_id(), "/context/flow_id")?);
    let step = id(context.step_id(), "/context/step_id")?;
    let attempt = number(context.attempt(), 0..=u64::MAX, "/context/attempt")?;
    let assignment_id = id(said.assignment_id(), "/assignment_id")?;
    if assignment_id.as_ref().is_some_and(|assignment| !is_assignment(assignment)) {
        return Err(wrong_value("/assignment_id"));
    }
    let key = match (&flow, &step, attempt, &assignment_id) {
        (Some(flow), Some(step), Some(attempt), _) => {
            salt.key(Identity::Coordinates { tenant, run: run.as_deref(), flow, step, attempt })
        }
        (.., Some(assignment)) => salt.key(Identity::Assignment { tenant, assignment }),
        _ => return Err(missing("/assignment_id")),
    };
    let actor = remark(&mail, said.actor(), "/actor", ID_BYTES_MAX)?;
    let reason = remark(&mail, said.reason(), "/reason", REASON_BYTES_MAX)?;
    let details = reason.map_or_else(Bytes::new, |reason| {
        let mut pen = Pen::with_capacity(reason.len() + 16);
        pen.raw("{\"reason\":").text(&reason).raw("}");
        pen.done().into()
    });
    Ok((key, Notice::Cancel { assignment_id, actor, details }))
}

/// A text of at most so many bytes; empty is absent.
fn remark(mail: &Mail<'_>, value: Option<Value<'_>>, pointer: &str, bytes_max: usize) -> Result<Option<Text>, Fault> {
    let Some(value) = value else { return Ok(None) };
    let text = mail.text(Some(value)).ok_or_else(|| wrong_form(pointer))?;
    if text.len() > bytes_max {
        return Err(wrong_value(pointer));
    }
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// What its sender is told, written as the notice was.
pub(super) fn reply(roll: &mut Roll, delivery: &Delivery, reply: &Reply) -> Bytes {
    match (Encoding::of(delivery), reply) {
        (Encoding::Protobuf, Reply::Refused(fault)) if delivery.subject.starts_with(SIGNALS_PREFIX) => {
            protobuf::signal_reply(fault)
        }
        (Encoding::Protobuf, reply) => protobuf::cancel_reply(reply),
        (Encoding::Json, Reply::Cancelled) => Bytes::from_static(b"{\"disposition\":\"NOTED\"}"),
        (Encoding::Json, Reply::Unknown) => Bytes::from_static(b"{\"disposition\":\"NOT_FOUND\"}"),
        (Encoding::Json, Reply::Ended(status)) => roll.cut(|pen| {
            pen.raw("{\"disposition\":\"ALREADY_ENDED\",\"status\":").text(native::status(*status)).raw("}");
        }),
        (Encoding::Json, Reply::Refused(fault)) => roll.cut(|pen| {
            pen.raw("{\"error\":");
            native::error(pen, fault, fault.effect);
            pen.raw("}");
        }),
    }
}
