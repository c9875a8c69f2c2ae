//! The native messages as protobuf: what came as a binary StepRequest is put into the JSON form that [`super::native`]
//! reads, and an outcome becomes a binary StepResult. So both encodings have one reading, with the same faults and pointers.
//!
//! **Numbers.** A protobuf Struct has only doubles. They are written as RFC 8785 has it, which is what JavaScript does: `1`
//! for 1.0, `0` for -0.0, otherwise the shortest digits that read back as the same double, with an exponent from 1e21 up and
//! below 1e-6. So a step has the same fingerprint in both encodings where its JSON is written so too: `{"n":1}` has,
//! `{"n":1.0}` and a whole number above 2^53 that no double is have not.
//!
//! What JSON cannot say (a number that is none, a Value without a kind) is a fault of the message with a pointer to it. Nesting
//! beyond a hundred protobuf messages, about thirty objects in each other, does not decode.

mod event;
mod request;
mod shown;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use prost::{DecodeError, Message};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Timestamp, Value};
use proto::v1;
use serde_json::Value as Json;
use shards::event::Reply;
use shards::ids::{Text, unhex};
use shards::outcome::{Effected, Fault, Outcome, Status};
use shards::step::Arrival;

use super::pen::Pen;
use super::reading::wrong_form;

pub(super) use event::lifecycle;
pub use request::request;
pub(crate) use shown::{error_json, result_json};

/// The JSON form of a binary StepRequest, and what in it JSON cannot say.
///
/// # Errors
/// It is not a StepRequest: fields of another type, cut short, text that is not UTF-8, nested too deeply.
pub(super) fn request_text(body: &[u8]) -> Result<(Text, Option<Fault>), DecodeError> {
    let request = v1::StepRequest::decode(body)?;
    let mut form = Form::new(body.len());
    form.request(&request);
    let fault = form.fault.take();
    Ok((form.text(), fault))
}

/// The JSON form of a binary StepCancel.
///
/// # Errors
/// It is not a StepCancel.
pub(super) fn cancel_text(body: &[u8]) -> Result<Text, DecodeError> {
    let cancel = v1::StepCancel::decode(body)?;
    let mut form = Form::new(body.len());
    form.open();
    if let Some(context) = &cancel.context {
        form.name("context").context(context);
    }
    form.word("assignment_id", cancel.assignment_id.as_ref());
    form.word("actor", cancel.actor.as_ref());
    form.word("reason", cancel.reason.as_ref());
    form.close();
    Ok(form.text())
}

/// A binary StepCancelReply.
pub(super) fn cancel_reply(reply: &Reply) -> Bytes {
    use v1::step_cancel_reply::Disposition;
    let (disposition, ended, fault) = match reply {
        Reply::Cancelled | Reply::Noted | Reply::Heard(_) => (Disposition::Noted, None, None),
        Reply::Decided(outcome) => (Disposition::AlreadyEnded, Some(outcome.status), None),
        Reply::Ended(ended) => (Disposition::AlreadyEnded, Some(*ended), None),
        Reply::Unknown => (Disposition::NotFound, None, None),
        Reply::Refused(fault) => (Disposition::Unspecified, None, Some(fault)),
    };
    let reply = v1::StepCancelReply {
        disposition: disposition as i32,
        status: ended.map(status).unwrap_or_default() as i32,
        error: fault.map(|fault| error(fault, fault.effect)),
    };
    reply.encode_to_vec().into()
}

/// The JSON form of a binary Signal.
///
/// # Errors
/// It is not a Signal.
pub(super) fn signal_text(body: &[u8]) -> Result<Text, DecodeError> {
    let signal = v1::Signal::decode(body)?;
    let mut form = Form::new(body.len());
    form.open();
    if let Some(context) = &signal.context {
        form.name("context").context(context);
    }
    form.word("assignment_id", signal.assignment_id.as_ref());
    form.word("name", Some(&signal.name).filter(|name| !name.is_empty()));
    form.code("decision", signal.decision);
    form.word("actor", signal.actor.as_ref());
    form.word("comment", signal.comment.as_ref());
    form.object("data", signal.data.as_ref());
    form.word("signal_id", signal.signal_id.as_ref());
    form.close();
    Ok(form.text())
}

/// A binary SignalReply.
pub(super) fn signal_reply(reply: &Reply) -> Bytes {
    use v1::signal::Decision;
    use v1::signal_reply::Disposition;
    let decision = |approve: bool| if approve { Decision::Approved as i32 } else { Decision::Rejected as i32 };
    let mut said = v1::SignalReply::default();
    let disposition = match reply {
        Reply::Noted | Reply::Cancelled => Disposition::Noted,
        Reply::Unknown => Disposition::NotFound,
        Reply::Heard(first) => {
            (said.decision, said.actor) = (decision(first.approve), Some(first.actor.to_string()));
            Disposition::Duplicate
        }
        Reply::Ended(ended) => {
            said.status = status(*ended) as i32;
            Disposition::AlreadyEnded
        }
        Reply::Decided(outcome) => {
            said.status = status(outcome.status) as i32;
            if let Some(decided) = super::notice::decided(outcome) {
                said.decision = decision(outcome.status == Status::Ok);
                said.decided = serde_json::from_slice(decided).ok().map(structure);
            }
            Disposition::AlreadyEnded
        }
        Reply::Refused(fault) => {
            said.error = Some(error(fault, fault.effect));
            Disposition::Unspecified
        }
    };
    said.disposition = disposition as i32;
    said.encode_to_vec().into()
}

/// A binary StepAccepted.
pub(super) fn accepted(at_ms: u64) -> Bytes {
    v1::StepAccepted { at: Some(moment(at_ms)) }.encode_to_vec().into()
}

/// A binary StepError.
pub(super) fn step_error(fault: &Fault) -> Bytes {
    error(fault, fault.effect).encode_to_vec().into()
}

/// A JSON text being made of protobuf messages. Lives on its core.
struct Form {
    pen: Pen,
    /// Something stands before in the object that is open.
    comma: bool,
    /// Where we are inside a Struct, as a JSON pointer.
    path: String,
    /// The first thing that JSON cannot say.
    fault: Option<Fault>,
}

impl Form {
    /// For a message of so many bytes.
    fn new(bytes: usize) -> Form {
        Form { pen: Pen::with_capacity(bytes * 2 + 64), comma: false, path: String::new(), fault: None }
    }

    fn text(self) -> Text {
        Text::try_from(Bytes::from(self.pen.done())).expect("pens write UTF-8")
    }

    fn request(&mut self, request: &v1::StepRequest) {
        self.open();
        self.word("type", Some(&request.r#type).filter(|name| !name.is_empty()));
        self.word("version_req", request.version_req.as_ref());
        self.object("inputs", request.inputs.as_ref());
        if let Some(resources) = &request.resources {
            self.name("resources").open();
            self.code("class", resources.class);
            self.count("memory_mb", resources.memory_mb);
            self.count("concurrency", resources.concurrency);
            self.close();
        }
        self.count("timeout_ms", request.timeout_ms);
        if let Some(retry) = &request.retry {
            self.name("retry").open();
            self.count("max_attempts", retry.max_attempts);
            self.count("backoff_ms", retry.backoff_ms);
            if let Some(factor) = retry.backoff_factor {
                // Outside a Struct, protobuf's JSON has words for doubles that are no numbers.
                let said = if factor.is_finite() { number(factor) } else { "\"NaN\"".into() };
                self.name("backoff_factor").pen.raw(&said);
            }
            self.count("backoff_max_ms", retry.backoff_max_ms);
            self.code("jitter", retry.jitter);
            self.count("budget_ms", retry.budget_ms);
            if !retry.codes.is_empty() {
                self.words("codes", &retry.codes);
            }
            self.close();
        }
        self.object("guardrails", request.guardrails.as_ref());
        if let Some(context) = &request.context {
            self.name("context");
            self.context(context);
        }
        self.count("priority", request.priority);
        if let Some(moment) = &request.not_after {
            let ms = moment.seconds.saturating_mul(1000).saturating_add(i64::from(moment.nanos) / 1_000_000);
            self.name("not_after").signed(ms);
        }
        self.code("effect_ceiling", request.effect_ceiling);
        if let Some(there) = &request.payload_ref {
            self.name("payload_ref").open();
            self.word("uri", Some(&there.uri));
            let digest = there.sha256.as_ref().map(|bytes| BASE64.encode(bytes));
            self.word("sha256", digest.as_ref());
            if let Some(bytes) = there.size_bytes {
                self.name("size_bytes").pen.int(bytes);
            }
            self.close();
        }
        self.word("assignment_id", request.assignment_id.as_ref());
        self.word("request_id", request.request_id.as_ref());
        if let Some(wish) = &request.cache {
            self.name("cache").open();
            self.word("key", Some(&wish.key).filter(|key| !key.is_empty()));
            self.name("ttl_ms").pen.int(wish.ttl_ms);
            self.close();
        }
        self.word("require_plan", request.require_plan.as_ref());
        self.close();
    }

    fn context(&mut self, context: &v1::BlockContext) {
        self.open();
        self.word("tenant_id", Some(&context.tenant_id).filter(|tenant| !tenant.is_empty()));
        self.word("trace_id", context.trace_id.as_ref());
        self.word("run_id", context.run_id.as_ref());
        self.word("flow_id", context.flow_id.as_ref());
        self.word("step_id", context.step_id.as_ref());
        self.count("attempt", context.attempt);
        if let Some(sandbox) = context.sandbox {
            self.name("sandbox").pen.raw(if sandbox { "true" } else { "false" });
        }
        if !context.rbac_scopes.is_empty() {
            self.words("rbac_scopes", &context.rbac_scopes);
        }
        self.close();
    }

    fn open(&mut self) {
        self.pen.raw("{");
        self.comma = false;
    }

    fn close(&mut self) {
        self.pen.raw("}");
        self.comma = true;
    }

    fn name(&mut self, name: &str) -> &mut Self {
        if std::mem::replace(&mut self.comma, true) {
            self.pen.raw(",");
        }
        self.pen.text(name).raw(":");
        self
    }

    fn word(&mut self, name: &str, value: Option<&String>) {
        if let Some(value) = value {
            self.name(name).pen.text(value);
        }
    }

    fn words(&mut self, name: &str, list: &[String]) {
        self.name(name).pen.raw("[");
        for (index, word) in list.iter().enumerate() {
            self.pen.raw(if index > 0 { "," } else { "" }).text(word);
        }
        self.pen.raw("]");
    }

    fn count(&mut self, name: &str, value: Option<u32>) {
        if let Some(value) = value {
            self.name(name).pen.int(u64::from(value));
        }
    }

    /// An enum by its number; 0 is "not said".
    fn code(&mut self, name: &str, value: i32) {
        if value != 0 {
            self.name(name).signed(i64::from(value));
        }
    }

    fn signed(&mut self, value: i64) {
        self.pen.raw(if value < 0 { "-" } else { "" }).int(value.unsigned_abs());
    }

    fn object(&mut self, name: &str, value: Option<&Struct>) {
        let Some(value) = value else { return };
        self.path.clear();
        self.name(name).within(name, |form| form.structure(value));
        self.comma = true;
    }

    fn structure(&mut self, value: &Struct) {
        self.pen.raw("{");
        for (index, (name, value)) in value.fields.iter().enumerate() {
            self.pen.raw(if index > 0 { "," } else { "" }).text(name).raw(":");
            self.within(name, |form| form.value(value));
        }
        self.pen.raw("}");
    }

    fn value(&mut self, value: &Value) {
        match &value.kind {
            Some(Kind::NullValue(_)) => _ = self.pen.raw("null"),
            Some(Kind::BoolValue(value)) => _ = self.pen.raw(if *value { "true" } else { "false" }),
            Some(Kind::NumberValue(value)) if value.is_finite() => _ = self.pen.raw(&number(*value)),
            Some(Kind::StringValue(value)) => _ = self.pen.text(value),
            Some(Kind::StructValue(value)) => self.structure(value),
            Some(Kind::ListValue(ListValue { values })) => {
                self.pen.raw("[");
                for (index, value) in values.iter().enumerate() {
                    self.pen.raw(if index > 0 { "," } else { "" });
                    self.within(&index.to_string(), |form| form.value(value));
                }
                self.pen.raw("]");
            }
            Some(Kind::NumberValue(_)) | None => {
                let path = &self.path;
                self.fault.get_or_insert_with(|| wrong_form(path));
                self.pen.raw("null");
            }
        }
    }

    /// Does something one segment further in.
    fn within(&mut self, segment: &str, inside: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        self.path.push('/');
        self.path.push_str(&segment.replace('~', "~0").replace('/', "~1"));
        inside(self);
        self.path.truncate(length);
    }
}

/// A finite double as RFC 8785 writes it.
fn number(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        return "0".into();
    }
    if (1e-6..1e21).contains(&size) {
        return value.to_string();
    }
    let text = format!("{value:e}");
    if size < 1.0 { text } else { text.replace('e', "e+") }
}

/// A binary StepResult.
pub(super) fn step_result(arrival: &Arrival, outcome: &Outcome) -> Bytes {
    let asker = arrival.asker.as_ref();
    let context = v1::BlockContext {
        tenant_id: arrival.tenant.to_string(),
        trace_id: asker.and_then(|asker| asker.trace_id.as_ref()).map(ToString::to_string),
        run_id: asker.and_then(|asker| asker.run_id.as_ref()).map(ToString::to_string),
        flow_id: asker.and_then(|asker| asker.flow_id.as_ref()).map(ToString::to_string),
        step_id: asker.and_then(|asker| asker.step_id.as_ref()).map(ToString::to_string),
        attempt: asker.and_then(|asker| asker.attempt).and_then(|attempt| u32::try_from(attempt).ok()),
        sandbox: arrival.work().is_some_and(|work| work.sandbox).then_some(true),
        ..v1::BlockContext::default()
    };
    let outputs = (outcome.status == Status::Ok).then_some(&outcome.outputs[..]);
    let queued_ms = if outcome.started_ms > 0 { outcome.started_ms.saturating_sub(outcome.received_ms) } else { 0 };
    let result = v1::StepResult {
        status: status(outcome.status) as i32,
        outputs: outputs.filter(|_| !outcome.spilled).map(|text| structure(serde_json::from_slice(text).unwrap_or_default())),
        outputs_ref: outputs.filter(|_| outcome.spilled).map(outputs_ref),
        error: outcome.fault.as_ref().map(|fault| error(fault, outcome.effect)),
        latency_ms: short(outcome.ended_ms.saturating_sub(outcome.received_ms)),
        retries_used: outcome.tries.saturating_sub(1),
        owner_epoch: outcome.owner_epoch,
        timing: Some(v1::Timing {
            received_at: Some(moment(outcome.received_ms)),
            started_at: (outcome.started_ms > 0).then(|| moment(outcome.started_ms)),
            ended_at: Some(moment(outcome.ended_ms)),
            queued_ms: short(queued_ms),
            ran_us: outcome.ran_us,
        }),
        context: Some(context),
        assignment_id: asker.map(|asker| asker.assignment_id.to_string()),
        request_id: asker.map(|asker| asker.request_id.to_string()).filter(|id| !id.is_empty()),
        r#type: asker.map(|asker| asker.job_type.to_string()).unwrap_or_default(),
        ..v1::StepResult::default()
    };
    result.encode_to_vec().into()
}

fn status(status: Status) -> v1::step_result::Status {
    match status {
        Status::Ok => v1::step_result::Status::Ok,
        Status::Error | Status::Quarantined => v1::step_result::Status::Error,
        Status::Timeout => v1::step_result::Status::Timeout,
        Status::Cancelled => v1::step_result::Status::Canceled,
    }
}

pub(super) fn error(fault: &Fault, effect: Effected) -> v1::StepError {
    let effect = match effect {
        Effected::None => v1::step_error::Effect::None,
        Effected::Applied => v1::step_error::Effect::Applied,
        Effected::Unknown => v1::step_error::Effect::Unknown,
    };
    v1::StepError {
        code: fault.code.as_str().to_owned(),
        r#type: fault.code.as_str().to_ascii_lowercase(),
        message: fault.message.to_string(),
        retryable: fault.code.retryable(),
        effect: effect as i32,
        details: serde_json::from_slice(&fault.details).ok().filter(Json::is_object).map(structure),
        retry_after_ms: fault.retry_after_ms.map(short),
    }
}

/// A reference as the journal keeps it: `{uri, sha256, size}`, the digest in hexadecimal.
fn outputs_ref(text: &[u8]) -> v1::OutputsRef {
    let there: Json = serde_json::from_slice(text).unwrap_or_default();
    let word = |name: &str| there.get(name).and_then(Json::as_str).unwrap_or_default();
    v1::OutputsRef {
        uri: word("uri").to_owned(),
        sha256: unhex::<32>(word("sha256")).map(Vec::from).unwrap_or_default(),
        size_bytes: there.get("size").and_then(Json::as_u64).unwrap_or_default(),
    }
}

/// A JSON object as a Struct, its numbers as the nearest doubles. A block's outputs that are no object stand under `value`.
fn structure(value: Json) -> Struct {
    match value {
        Json::Object(members) => Struct { fields: members.into_iter().map(|(name, value)| (name, kind(value))).collect() },
        Json::Null => Struct::default(),
        other => Struct { fields: [("value".to_owned(), kind(other))].into() },
    }
}

fn kind(value: Json) -> Value {
    let kind = match value {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(value),
        Json::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or(f64::NAN)),
        Json::String(value) => Kind::StringValue(value),
        Json::Array(list) => Kind::ListValue(ListValue { values: list.into_iter().map(kind).collect() }),
        members @ Json::Object(_) => Kind::StructValue(structure(members)),
    };
    Value { kind: Some(kind) }
}

fn moment(unix_ms: u64) -> Timestamp {
    Timestamp { seconds: (unix_ms / 1000) as i64, nanos: (unix_ms % 1000 * 1_000_000) as i32 }
}

fn short(ms: u64) -> u32 {
    u32::try_from(ms).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_are_written_as_javascript_writes_them() {
        for (value, want) in [
            (0.0, "0"),
            (-0.0, "0"),
            (1.0, "1"),
            (-1.0, "-1"),
            (0.5, "0.5"),
            (9_007_199_254_740_992.0, "9007199254740992"),
            (123_456_789_012_345_680_000.0, "123456789012345680000"),
            (1e21, "1e+21"),
            (-1.5e300, "-1.5e+300"),
            (0.000_001, "0.000001"),
            (1e-7, "1e-7"),
            (-2.5e-9, "-2.5e-9"),
            (f64::MAX, "1.7976931348623157e+308"),
            (5e-324, "5e-324"),
            (0.1 + 0.2, "0.30000000000000004"),
        ] {
            assert_eq!(number(value), want);
            assert_eq!(serde_json::from_str::<f64>(want).ok(), Some(value));
        }
    }

    #[test]
    fn a_references_digest_travels_as_bytes() {
        let found = outputs_ref(format!(r#"{{"uri":"blob://x","sha256":"{}","size":7}}"#, "0a".repeat(32)).as_bytes());
        assert_eq!((&*found.uri, &found.sha256[..], found.size_bytes), ("blob://x", &[10; 32][..], 7));
    }
}
