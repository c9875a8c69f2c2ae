//! The rules for what is not an answer: heartbeats, dead letters, events, and the worker's own keys in a result.

use base64::Engine as _;
use serde_json::{Map, Value};

use super::rules::{self, Headers};
use super::violation::{Rule, Violation, broken};

/// The kinds of lifecycle events.
pub(crate) const EVENT_KINDS: &[&str] =
    &["accepted", "started", "progress", "approval_needed", "retrying", "completed", "failed", "canceled", "dead_lettered"];

/// A heartbeat.
pub(crate) fn heartbeat(object: &Map<String, Value>) -> Result<(), Violation> {
    rules::version(object)?;
    if rules::string(object, "worker_id")?.is_empty() {
        return broken(Rule::Heartbeat, "worker_id is empty");
    }
    if !is_iso8601(rules::string(object, "timestamp")?) {
        return broken(Rule::Heartbeat, "timestamp is not ISO 8601");
    }
    match rules::string(object, "status")? {
        "ready" | "busy" | "degraded" | "draining" => {}
        other => return broken(Rule::Status, format!("heartbeat status {other:?}")),
    }
    for (part, keys) in
        [("resources", &["cpu", "gpu", "mem_bytes", "jobs_in_flight"][..]), ("metadata", &["load", "queue_depth", "shards"])]
    {
        let inner = rules::object(object, part)?;
        for key in keys {
            match inner.get(*key) {
                Some(Value::Number(_)) => {}
                other => return broken(Rule::Heartbeat, format!("{part}.{key} is {other:?}, not a number")),
            }
        }
    }
    Ok(())
}

/// A dead letter; `originals` finds the bodies sent under an assignment's id.
pub(crate) fn dead_letter<'a>(
    headers: &Headers,
    object: &Map<String, Value>,
    originals: impl Fn(&str) -> Option<&'a [Vec<u8>]>,
) -> Result<(), Violation> {
    rules::version(object)?;
    for name in ["x-dlq-reason", "x-original-subject", "Nats-Msg-Id"] {
        if rules::header(headers, name).len() != 1 {
            return broken(Rule::DeadLetter, format!("header {name} is not there once"));
        }
    }
    for id in rules::header(headers, "Nats-Msg-Id") {
        rules::message_id(id, 'd')?;
    }
    if rules::string(object, "reason")?.is_empty() {
        return broken(Rule::DeadLetter, "reason is empty");
    }
    let code = rules::string(object, "error_code")?;
    if !rules::CODES.contains(&code) {
        return broken(Rule::ErrorCode, code);
    }
    if !object.get("tries").is_some_and(Value::is_array) {
        return broken(Rule::DeadLetter, "tries is not an array");
    }
    rules::agrees(headers, "x-original-subject", Some(rules::string(object, "subject")?))?;
    let bodies = optional_text(object, "assignment_id").and_then(originals).unwrap_or_default();
    if !bodies.is_empty() && !bodies.iter().any(|body| object.values().any(|value| carries(value, body))) {
        return broken(Rule::DeadLetter, format!("none of {} original messages is in it", bodies.len()));
    }
    Ok(())
}

/// Whether a value is this message: as JSON, as text, or in base64.
pub(crate) fn carries(value: &Value, body: &[u8]) -> bool {
    match value {
        Value::String(text) => {
            text.as_bytes() == body
                || base64::engine::general_purpose::STANDARD.decode(text).is_ok_and(|bytes| bytes == body)
                || is(value, body)
        }
        Value::Object(inner) => is(value, body) || inner.values().any(|inner| carries(inner, body)),
        other => is(other, body),
    }
}

fn is(value: &Value, body: &[u8]) -> bool {
    serde_json::from_slice::<Value>(body).is_ok_and(|body| body == *value)
}

fn optional_text<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    object.get(key).and_then(Value::as_str)
}

/// A lifecycle event under `<prefix>.<tenant>`; gives its kind.
pub(crate) fn event(tenant: &str, headers: &Headers, object: &Map<String, Value>) -> Result<String, Violation> {
    if !rules::is_tenant(tenant.strip_prefix('$').unwrap_or(tenant)) {
        return broken(Rule::Event, format!("{tenant:?} is no tenant"));
    }
    if rules::string(object, "specversion")? != "1.0" {
        return broken(Rule::Event, "specversion is not 1.0");
    }
    for key in ["id", "source"] {
        if rules::string(object, key)?.is_empty() {
            return broken(Rule::Event, format!("{key} is empty"));
        }
    }
    if let Some(time) = optional_text(object, "time").filter(|time| !is_iso8601(time)) {
        return broken(Rule::Event, format!("time {time:?}"));
    }
    let kind = rules::string(object, "type")?.rsplit('.').next().unwrap_or_default();
    if !EVENT_KINDS.contains(&kind) {
        return broken(Rule::Event, format!("kind {kind:?}"));
    }
    if !rules::header(headers, "Content-Type").iter().all(|value| value.starts_with("application/cloudevents+json")) {
        return broken(Rule::Event, "Content-Type is not that of a structured CloudEvent");
    }
    match rules::header(headers, "Nats-Msg-Id").as_slice() {
        [] if headers.is_empty() => {}
        [one] => rules::message_id(one, 'e')?,
        other => return broken(Rule::MsgIdMissing, format!("{} message ids on an event", other.len())),
    }
    if let Some(named) = object.get("data").and_then(|data| data.get("tenant_id")).and_then(Value::as_str)
        && named != tenant
    {
        return broken(Rule::Event, format!("under tenant {tenant:?}, speaks of {named:?}"));
    }
    Ok(kind.to_owned())
}

/// The worker's own keys in a result, where they are there.
pub(crate) fn extras(object: &Map<String, Value>) -> Result<(), Violation> {
    for key in ["retries_used", "queue_depth"] {
        if object.contains_key(key) {
            rules::whole(object, key)?;
        }
    }
    if object.contains_key("timing") {
        rules::object(object, "timing")?;
    }
    if object.contains_key("error_details") {
        rules::object(object, "error_details")?;
    }
    if let Some(outputs) = object.get("outputs") {
        let size = outputs.to_string().len();
        if size > rules::INLINE_RESULT_BYTES {
            return broken(Rule::Outputs, format!("{size} bytes inline"));
        }
    }
    if object.contains_key("outputs_ref") {
        let inner = rules::object(object, "outputs_ref")?;
        rules::string(inner, "uri")?;
        rules::whole(inner, "size")?;
        let digest = rules::string(inner, "sha256")?;
        if digest.len() != 64 || !digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return broken(Rule::Outputs, format!("sha256 {digest:?}"));
        }
        if object.contains_key("outputs") {
            return broken(Rule::Outputs, "both inline and as a reference");
        }
    }
    Ok(())
}

/// `2026-01-01T00:00:00`, a fraction if any, and a zone.
pub(crate) fn is_iso8601(text: &str) -> bool {
    let b = text.as_bytes();
    b.len() >= 20
        && b[..19].iter().enumerate().all(|(at, byte)| match at {
            4 | 7 => *byte == b'-',
            10 => *byte == b'T',
            13 | 16 => *byte == b':',
            _ => byte.is_ascii_digit(),
        })
        && (text.ends_with('Z') || text[19..].contains(['+', '-']))
}
