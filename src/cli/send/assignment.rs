//! One line as it is sent: an assignment as it was written, a step as an assignment made out of it, or a step as itself.

use std::io::Read;

use bytes::Bytes;
use prost::Message;
use serde_json::{Map, Value, json};

use crate::edge::native::{Encoding, STEPS_PREFIX};
use crate::edge::protobuf;
use crate::edge::reading::is_tenant;

/// Who the results say has provided them, for assignments made here.
const PROVIDER: &str = "endstation-send";
/// The tenant of a step that names none.
const TENANT: &str = "local";

/// An assignment as it is sent.
#[derive(Clone, Debug)]
pub(super) struct Assignment {
    /// Its id.
    pub(super) id: String,
    /// What kind of step it is for.
    pub(super) job_type: String,
    /// The message.
    pub(super) body: Bytes,
    /// Whether the id was made here.
    pub(super) made: bool,
    /// For a step that goes as itself.
    pub(super) native: Option<Native>,
}

/// How a step goes as itself.
#[derive(Clone, Debug)]
pub(super) struct Native {
    /// Its tenant's subject.
    pub(super) subject: String,
    /// How it is written.
    pub(super) encoding: Encoding,
}

/// Why a line cannot be sent.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Unusable {
    /// It is not a JSON object.
    #[error("not a JSON object")]
    NoObject,
    /// It is an assignment, whose sender must have named it.
    #[error("an assignment without an assignment_id: nothing that comes back could be told to be its")]
    NoId,
    /// It has neither `job` nor `type`.
    #[error("neither an assignment (with job) nor a step (with type)")]
    Neither,
    /// Its tenant cannot be a part of a subject.
    #[error("its tenant_id is not a name of letters, digits, _ and -")]
    Tenant,
    /// A StepRequest cannot carry it.
    #[error("{0} is nothing that a StepRequest in protobuf can carry")]
    Protobuf(String),
}

/// Reads a line. An assignment is sent as it was written, whatever is wrong with it: the worker is to say so.
pub(super) fn read(line: &str, native: Option<Encoding>) -> Result<Assignment, Unusable> {
    let value: Value = serde_json::from_str(line).map_err(|_| Unusable::NoObject)?;
    let inner = value.get("data").filter(|data| data.is_object()).unwrap_or(&value);
    let Some(fields) = inner.as_object() else { return Err(Unusable::NoObject) };
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let id = text(fields.get("assignment_id"));
    if let Some(job) = fields.get("job") {
        let job_type = text(job.get("type")).unwrap_or_default();
        return Ok(Assignment {
            id: id.ok_or(Unusable::NoId)?,
            job_type,
            body: line.trim().to_owned().into(),
            made: false,
            native: None,
        });
    }
    let Some(job_type) = text(fields.get("type")) else { return Err(Unusable::Neither) };
    let made = id.is_none();
    let id = id.unwrap_or_else(uuid4);
    match native {
        None => Ok(Assignment { body: assign(&id, fields).to_string().into(), id, job_type, made, native: None }),
        Some(encoding) => itself(id, job_type, made, fields, encoding),
    }
}

/// A step that goes as itself, under this id.
fn itself(
    id: String,
    job_type: String,
    made: bool,
    step: &Map<String, Value>,
    encoding: Encoding,
) -> Result<Assignment, Unusable> {
    let mut step = step.clone();
    step.insert("assignment_id".into(), id.clone().into());
    let context = step.entry("context").or_insert_with(|| json!({}));
    let named = ["tenant_id", "tenantId"].iter().find_map(|name| context.get(name)).filter(|tenant| !tenant.is_null()).cloned();
    let tenant = named.unwrap_or_else(|| TENANT.into());
    let tenant = tenant.as_str().filter(|tenant| is_tenant(tenant)).ok_or(Unusable::Tenant)?.to_owned();
    if let Some(context) = context.as_object_mut() {
        context.remove("tenantId");
        context.insert("tenant_id".into(), tenant.clone().into());
    }
    let step = Value::Object(step);
    let body = match encoding {
        Encoding::Json => step.to_string().into(),
        Encoding::Protobuf => protobuf::request(&step).map_err(Unusable::Protobuf)?.encode_to_vec().into(),
    };
    let native = Some(Native { subject: format!("{STEPS_PREFIX}{tenant}"), encoding });
    Ok(Assignment { id, job_type, body, made, native })
}

/// The assignment that asks for a step.
fn assign(id: &str, step: &Map<String, Value>) -> Value {
    let context = step.get("context").and_then(Value::as_object).cloned().unwrap_or_default();
    let given = |name: &str| context.get(name).filter(|value| !value.is_null()).cloned();
    let mut options = Map::new();
    for (name, value) in
        [("priority", step.get("priority")), ("deadline_ms", step.get("timeout_ms")), ("retry", step.get("retry"))]
    {
        options.extend(value.map(|value| (name.to_owned(), value.clone())));
    }
    let mut assignment = json!({
        "version": "1",
        "assignment_id": id,
        "request_id": step.get("request_id").cloned().unwrap_or_else(|| uuid4().into()),
        "tenant_id": given("tenant_id").unwrap_or_else(|| TENANT.into()),
        "executor": { "provider_id": PROVIDER, "channel": "nats" },
        "job": { "type": step.get("type"), "payload": step.get("inputs").cloned().unwrap_or_else(|| json!({})) },
        "options": options,
    });
    for name in ["run_id", "flow_id", "step_id", "attempt"] {
        if let Some(value) = given(name) {
            assignment[name] = value;
        }
    }
    if let Some(trace_id) = given("trace_id") {
        assignment["correlation"] = json!({ "trace_id": trace_id });
    }
    assignment
}

/// A random UUID, version 4.
fn uuid4() -> String {
    let mut bytes = [0_u8; 16];
    let mut source = std::fs::File::open("/dev/urandom").expect("every Linux has /dev/urandom");
    source.read_exact(&mut bytes).expect("/dev/urandom never ends");
    let n = u128::from_be_bytes(bytes) & !(0xf << 76) & !(0b11 << 62) | 4 << 76 | 0b10 << 62;
    let hex = format!("{n:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assignment_is_sent_as_it_was_written() {
        let line = r#"{"assignment_id":"a-1", "job":{"type":"echo"}}"#;
        let assignment = read(line, None).expect("an assignment");
        assert_eq!(
            (&*assignment.id, &*assignment.job_type, &assignment.body[..], assignment.made),
            ("a-1", "echo", line.as_bytes(), false)
        );
        let enveloped =
            read(r#"{"version":"v1","kind":"exec_assign","data":{"assignment_id":"a-2","job":{}}}"#, Some(Encoding::Json));
        assert_eq!(enveloped.expect("an assignment").id, "a-2");
        assert_eq!(read(r#"{"job":{}}"#, None).err(), Some(Unusable::NoId));
        assert_eq!(read("{}", None).err(), Some(Unusable::Neither));
        assert_eq!(read("[]", None).err(), Some(Unusable::NoObject));
    }

    #[test]
    fn a_step_becomes_an_assignment_under_a_new_id() -> anyhow::Result<()> {
        let line =
            r#"{"type":"sleep","inputs":{"ms":5},"timeout_ms":100,"context":{"tenant_id":"acme","flow_id":"f","attempt":2}}"#;
        let assignment = read(line, None)?;
        assert!(assignment.made && assignment.id.len() == 36 && assignment.id.as_bytes()[14] == b'4');
        let sent: Value = serde_json::from_slice(&assignment.body)?;
        assert_eq!(sent["assignment_id"], assignment.id);
        assert_eq!(sent["job"], json!({ "type": "sleep", "payload": { "ms": 5 } }));
        assert_eq!((&sent["tenant_id"], &sent["flow_id"], &sent["attempt"]), (&json!("acme"), &json!("f"), &json!(2)));
        assert_eq!(sent["options"], json!({ "deadline_ms": 100 }));
        assert_eq!(sent.get("run_id"), None);
        Ok(())
    }

    #[test]
    fn a_step_goes_as_itself_in_either_encoding() -> anyhow::Result<()> {
        let line = r#"{"type":"sleep","inputs":{"ms":5},"context":{"tenantId":"acme","flow_id":"f"}}"#;
        let text = read(line, Some(Encoding::Json))?;
        let sent: Value = serde_json::from_slice(&text.body)?;
        assert_eq!((&sent["assignment_id"], &sent["inputs"]), (&json!(text.id), &json!({ "ms": 5 })));
        assert_eq!(sent["context"], json!({ "tenant_id": "acme", "flow_id": "f" }));
        assert_eq!(text.native.map(|native| native.subject).as_deref(), Some("beamline.worker.steps.v1.acme"));
        let binary = read(line, Some(Encoding::Protobuf))?;
        let sent = proto::v1::StepRequest::decode(binary.body)?;
        assert_eq!((&*sent.r#type, sent.assignment_id), ("sleep", Some(binary.id)));
        let bare = read(r#"{"type":"echo"}"#, Some(Encoding::Protobuf))?;
        assert_eq!(bare.native.map(|native| native.subject).as_deref(), Some("beamline.worker.steps.v1.local"));
        let odd = |line: &str| read(line, Some(Encoding::Protobuf)).err();
        assert_eq!(odd(r#"{"type":"echo","context":{"tenant_id":"a.b"}}"#), Some(Unusable::Tenant));
        assert_eq!(odd(r#"{"type":"echo","colour":1}"#), Some(Unusable::Protobuf("/colour".into())));
        Ok(())
    }
}
