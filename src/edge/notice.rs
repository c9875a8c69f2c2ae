//! What is said to steps on their way: cancels, and signals: what people decide of steps that wait for them.
//!
//! Both are questions on core NATS. Every worker hears them; one that knows nothing of the step says so a little later than one
//! that does. A cancel names a step as its request did, by its place or by its assignment, which may be a Beamline one too.

use bytes::Bytes;
use shards::event::Reply;
use shards::gate::Vote;
use shards::ids::{Identity, Key, Salt, Text};
use shards::limits::{ID_BYTES_MAX, Limits};
use shards::outcome::{Code, Fault, Outcome, Status};
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
/// What steps wait for.
const APPROVAL: &str = "approval";
/// The longest reason of a cancel or a decision, in bytes.
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

fields! {
    /// A Signal.
    Signal {
        context: "context",
        assignment_id: "assignment_id" | "assignmentId",
        name: "name",
        decision: "decision",
        actor: "actor",
        comment: "comment",
        data: "data",
        signal_id: "signal_id" | "signalId",
    }
}

fields! {
    /// What a decision is about.
    Data { plan_digest: "plan_digest" | "planDigest" }
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
    let read = said(delivery, tenant, salt, limits, tape);
    let (key, notice) = read.unwrap_or_else(|fault| (Key([0; 16]), Notice::Refused(fault)));
    (Text::from(tenant), key, notice)
}

/// A decision counts as signed where its message is, by who decides.
pub(super) fn signed_by(notice: Notice, signer: Option<&str>) -> Notice {
    match (notice, signer) {
        (Notice::Signal { assignment_id, mut vote }, Some(signer)) => {
            if !vote.actor.is_empty() && *vote.actor != *signer {
                let fault = Fault::new(Code::PermissionDenied, "who signed the message is not its actor");
                return Notice::Refused(fault.with_details(field("/actor")));
            }
            (vote.actor, vote.signed) = (Text::from(signer), true);
            Notice::Signal { assignment_id, vote }
        }
        (Notice::Signal { vote, .. }, None) if vote.actor.is_empty() => Notice::Refused(missing("/actor")),
        (notice, _) => notice,
    }
}

fn said(delivery: &Delivery, tenant: &str, salt: &Salt, limits: &Limits, tape: &mut Tape) -> Result<(Key, Notice), Fault> {
    let signal = delivery.subject.starts_with(SIGNALS_PREFIX);
    let garbage = |why| Fault::new(Code::InvalidFormat, why);
    let body = match Encoding::of(delivery) {
        Encoding::Protobuf if signal => {
            protobuf::signal_text(&delivery.body).map_err(|_| garbage("the message is not a Signal in protobuf"))?
        }
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
    let signed = delivery.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(HEADER));
    if signal {
        let said = Signal::read(Some(doc.top()));
        let (key, assignment_id) = step(&mail, said.context(), said.assignment_id(), said.picked.twice, tenant, signed, salt)?;
        Ok((key, Notice::Signal { assignment_id, vote: vote(&mail, &said)? }))
    } else {
        let said = Cancel::read(Some(doc.top()));
        let (key, assignment_id) = step(&mail, said.context(), said.assignment_id(), said.picked.twice, tenant, signed, salt)?;
        let actor = remark(&mail, said.actor(), "/actor", ID_BYTES_MAX)?;
        let reason = remark(&mail, said.reason(), "/reason", REASON_BYTES_MAX)?;
        let details = reason.map_or_else(Bytes::new, |reason| {
            let mut pen = Pen::with_capacity(reason.len() + 16);
            pen.raw("{\"reason\":").text(&reason).raw("}");
            pen.done().into()
        });
        Ok((key, Notice::Cancel { assignment_id, actor, details }))
    }
}

/// The key of the step that a notice is about, and the assignment that it names.
fn step(
    mail: &Mail<'_>,
    context: Option<Value<'_>>,
    assignment_id: Option<Value<'_>>,
    repeated: Option<&str>,
    tenant: &str,
    signed: bool,
    salt: &Salt,
) -> Result<(Key, Option<Text>), Fault> {
    if context.is_some_and(|context| !context.is_object()) {
        return Err(wrong_form("/context"));
    }
    let context = native::Context::read(context);
    if let Some(name) = repeated {
        return Err(twice(&format!("/{name}")));
    }
    if let Some(name) = context.picked.twice {
        return Err(twice(&format!("/context/{name}")));
    }
    let named = optional_id(mail, context.tenant_id(), "/context/tenant_id")?;
    // A signature is over the body: what it says of no tenant in there, it says of every one that its signer has.
    if named.is_none() && signed {
        return Err(missing("/context/tenant_id"));
    }
    let other = mail.heads.tenant.is_some_and(|header| **header != *tenant) || named.is_some_and(|named| *named != *tenant);
    if other || !is_tenant(tenant) {
        let fault = Fault::new(Code::PermissionDenied, "subject, header and payload name different tenants");
        return Err(fault.with_details(field("/context/tenant_id")));
    }
    let id = |value, pointer| optional_id(mail, value, pointer);
    let (run, flow) = (id(context.run_id(), "/context/run_id")?, id(context.flow_id(), "/context/flow_id")?);
    let step = id(context.step_id(), "/context/step_id")?;
    let attempt = number(context.attempt(), 0..=u64::MAX, "/context/attempt")?;
    let assignment_id = id(assignment_id, "/assignment_id")?;
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
    Ok((key, assignment_id))
}

/// What a person decides. Copies: it is kept longer than the message.
fn vote(mail: &Mail<'_>, said: &Signal<'_>) -> Result<Vote, Fault> {
    let kept = |text: Option<Text>| text.map_or_else(Text::new, |text| Text::from(text.to_string()));
    let name = mail.text(said.name()).ok_or_else(|| missing("/name"))?;
    if *name != *APPROVAL {
        return Err(Fault::new(Code::InvalidInput, "no step of this worker waits for such a signal").with_details(field("/name")));
    }
    let decision = said.decision().ok_or_else(|| missing("/decision"))?;
    let approve = match decision.string().as_deref().map(str::to_ascii_uppercase).as_deref() {
        Some("APPROVED" | "DECISION_APPROVED") => true,
        Some("REJECTED" | "DECISION_REJECTED") => false,
        Some(_) => return Err(wrong_value("/decision")),
        None => match decision.raw() {
            "1" => true,
            "2" => false,
            _ => return Err(wrong_value("/decision")),
        },
    };
    if said.data().is_some_and(|data| !data.is_object()) {
        return Err(wrong_form("/data"));
    }
    Ok(Vote {
        actor: kept(remark(mail, said.actor(), "/actor", ID_BYTES_MAX)?),
        approve,
        comment: kept(remark(mail, said.comment(), "/comment", REASON_BYTES_MAX)?),
        id: kept(remark(mail, said.signal_id(), "/signal_id", ID_BYTES_MAX)?),
        signed: false,
        plan: kept(remark(mail, Data::read(said.data()).plan_digest(), "/data/plan_digest", ID_BYTES_MAX)?),
        at_ms: 0,
    })
}

/// A text of at most so many bytes; empty is absent.
fn remark(mail: &Mail<'_>, value: Option<Value<'_>>, pointer: &str, bytes_max: usize) -> Result<Option<Text>, Fault> {
    let Some(value) = value else { return Ok(None) };
    let text = mail.text(Some(value)).ok_or_else(|| wrong_form(pointer))?;
    // It is shown to people, in a line or a few.
    let odd = |char: char| char.is_control() && !matches!(char, '\n' | '\r' | '\t');
    if text.len() > bytes_max || text.contains(odd) {
        return Err(wrong_value(pointer));
    }
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// What its sender is told, written as the notice was.
pub(super) fn reply(roll: &mut Roll, delivery: &Delivery, reply: &Reply) -> Bytes {
    let signal = delivery.subject.starts_with(SIGNALS_PREFIX);
    match Encoding::of(delivery) {
        Encoding::Protobuf if signal => protobuf::signal_reply(reply),
        Encoding::Protobuf => protobuf::cancel_reply(reply),
        Encoding::Json => roll.cut(|pen| write(pen, reply)),
    }
}

fn write(pen: &mut Pen, reply: &Reply) {
    match reply {
        Reply::Cancelled | Reply::Noted => pen.raw("{\"disposition\":\"NOTED\"}"),
        Reply::Unknown => pen.raw("{\"disposition\":\"NOT_FOUND\"}"),
        Reply::Ended(status) => pen.raw("{\"disposition\":\"ALREADY_ENDED\",\"status\":").text(native::status(*status)).raw("}"),
        Reply::Heard(first) => {
            pen.raw("{\"disposition\":\"DUPLICATE\",\"decision\":").text(decision(first.approve));
            pen.raw(",\"actor\":").text(&first.actor).raw("}")
        }
        Reply::Decided(outcome) => {
            pen.raw("{\"disposition\":\"ALREADY_ENDED\",\"status\":").text(native::status(outcome.status));
            if let Some(decided) = decided(outcome) {
                pen.raw(",\"decision\":").text(decision(outcome.status == Status::Ok)).raw(",\"decided\":").raw_bytes(decided);
            }
            pen.raw("}")
        }
        Reply::Refused(fault) => {
            pen.raw("{\"error\":");
            native::error(pen, fault, fault.effect);
            pen.raw("}")
        }
    };
}

/// A decision as the protocol spells it.
pub(super) fn decision(approve: bool) -> &'static str {
    if approve { "APPROVED" } else { "REJECTED" }
}

/// What was decided of a step that waited for people, as JSON, if this is the outcome of one.
pub(super) fn decided(outcome: &Outcome) -> Option<&[u8]> {
    let told = match &outcome.fault {
        None => &outcome.outputs,
        Some(fault) if fault.code == Code::Rejected => &fault.details,
        Some(_) => return None,
    };
    told.starts_with(b"{\"approved\":").then_some(told)
}
