//! The contract's rules about single values: strings, ids, numbers, error fields, compactness.
//!
//! Pure functions from a message's part to `Ok` or the rule it breaks.

use serde_json::{Map, Value};

use super::violation::{Rule, Violation, broken};

/// Message headers as name and value, repeats allowed.
pub(crate) type Headers = Vec<(String, String)>;

/// The server's limit on one message, headers included.
pub(crate) const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Outputs above this must travel as a reference.
pub(crate) const INLINE_RESULT_BYTES: usize = 256 << 10;

/// The closed list of error codes.
pub(crate) const CODES: &[&str] = &[
    "INVALID_INPUT",
    "MISSING_REQUIRED_FIELD",
    "INVALID_FORMAT",
    "UNKNOWN_JOB_TYPE",
    "PERMISSION_DENIED",
    "QUOTA_EXCEEDED",
    "RESOURCE_UNAVAILABLE",
    "EXECUTION_FAILED",
    "NETWORK_ERROR",
    "CONNECTION_ERROR",
    "TIMEOUT",
    "HTTP_ERROR",
    "HTTP_5XX",
    "PROVIDER_UNAVAILABLE",
    "SYSTEM_OVERLOAD",
    "INTERNAL_ERROR",
    "CANCELLED_BY_USER",
    "EXPIRED",
    "KEY_CONFLICT",
    "INDETERMINATE",
    "POISON",
    "SIGNATURE_INVALID",
    "REJECTED",
];

/// The codes that say the sender did something wrong: their message must never read as a provider's fault.
pub(crate) const CLIENT_CODES: &[&str] = &[
    "INVALID_INPUT",
    "MISSING_REQUIRED_FIELD",
    "INVALID_FORMAT",
    "UNKNOWN_JOB_TYPE",
    "PERMISSION_DENIED",
    "QUOTA_EXCEEDED",
    "CANCELLED_BY_USER",
    "EXPIRED",
    "KEY_CONFLICT",
    "SIGNATURE_INVALID",
    "REJECTED",
];

/// The codes that the router's circuit breaker counts against a provider.
pub(crate) const PROVIDER_CODES: &[&str] =
    &["TIMEOUT", "CONNECTION_ERROR", "PROVIDER_UNAVAILABLE", "5XX", "HTTP_5XX", "SERVER_ERROR"];

/// The payload as an object: small enough, JSON, compact, no envelope, `version` the string "1".
pub(crate) fn body(headers: &Headers, payload: &[u8]) -> Result<Map<String, Value>, Violation> {
    let head: usize = headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    if payload.len() + head >= MESSAGE_BYTES_MAX {
        return broken(Rule::Size, format!("{} bytes of payload and {head} of headers", payload.len()));
    }
    let value: Value = match serde_json::from_slice(payload) {
        Ok(value) => value,
        Err(error) => return broken(Rule::Json, error.to_string()),
    };
    let Value::Object(object) = value else { return broken(Rule::Json, "not an object") };
    if !is_compact(payload) {
        return broken(Rule::Compact, "white space between tokens");
    }
    if object.contains_key("kind") && object.contains_key("data") {
        return broken(Rule::Envelope, "has kind and data");
    }
    Ok(object)
}

/// `version` is the string "1" and nothing else.
pub(crate) fn version(object: &Map<String, Value>) -> Result<(), Violation> {
    match object.get("version") {
        Some(Value::String(text)) if text == "1" => Ok(()),
        other => broken(Rule::Version, format!("version is {other:?}")),
    }
}

/// Whether JSON text has no white space outside its strings.
pub(crate) fn is_compact(text: &[u8]) -> bool {
    let (mut inside, mut escaped) = (false, false);
    for byte in text {
        match (inside, *byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => inside = !inside,
            (false, b' ' | b'\t' | b'\r' | b'\n') => return false,
            _ => {}
        }
    }
    true
}

/// A required string.
pub(crate) fn string<'a>(object: &'a Map<String, Value>, key: &str) -> Result<&'a str, Violation> {
    match object.get(key) {
        Some(Value::String(text)) => Ok(text),
        Some(Value::Null) => broken(Rule::Null, format!("{key} is null")),
        Some(other) => broken(Rule::Type, format!("{key} is {other}, not a string")),
        None => broken(Rule::Missing, key),
    }
}

/// A string that may be left out, but is never null.
pub(crate) fn optional<'a>(object: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, Violation> {
    if object.contains_key(key) { string(object, key).map(Some) } else { Ok(None) }
}

/// A required whole number that is not negative.
pub(crate) fn whole(object: &Map<String, Value>, key: &str) -> Result<u64, Violation> {
    match object.get(key) {
        Some(Value::Number(number)) => match number.as_u64() {
            Some(n) => Ok(n),
            None => broken(Rule::Type, format!("{key} is {number}, not a whole number")),
        },
        Some(other) => broken(Rule::Type, format!("{key} is {other}, not a number")),
        None => broken(Rule::Missing, key),
    }
}

/// A required time in Unix milliseconds: an integer, and neither seconds nor microseconds.
pub(crate) fn unix_ms(object: &Map<String, Value>, key: &str) -> Result<(), Violation> {
    match whole(object, key)? {
        1_500_000_000_000..=9_999_999_999_999 => Ok(()),
        n => broken(Rule::Type, format!("{key} is {n}, which is no Unix time in milliseconds")),
    }
}

/// A required object.
pub(crate) fn object<'a>(parent: &'a Map<String, Value>, key: &str) -> Result<&'a Map<String, Value>, Violation> {
    match parent.get(key) {
        Some(Value::Object(inner)) => Ok(inner),
        Some(other) => broken(Rule::Type, format!("{key} is {other}, not an object")),
        None => broken(Rule::Missing, key),
    }
}

/// No top-level value is null, `outputs` excepted: a block may well have put out nothing.
pub(crate) fn no_nulls(object: &Map<String, Value>) -> Result<(), Violation> {
    match object.iter().find(|(key, value)| value.is_null() && *key != "outputs") {
        Some((key, _)) => broken(Rule::Null, format!("{key} is null")),
        None => Ok(()),
    }
}

/// A tenant id: one subject token of 1 to 256 letters, digits, `_` and `-`.
pub(crate) fn is_tenant(text: &str) -> bool {
    (1..=256).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// A UUID of version 4 in its usual form.
pub(crate) fn is_uuid4(text: &str) -> bool {
    let b = text.as_bytes();
    b.len() == 36
        && b.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
        && b[14] == b'4'
        && matches!(b[19], b'8' | b'9' | b'a' | b'b' | b'A' | b'B')
}

/// An upper-case ULID: 26 characters of Crockford's alphabet, of 128 bits.
pub(crate) fn is_ulid(text: &str) -> bool {
    let b = text.as_bytes();
    b.len() == 26
        && b[0] <= b'7'
        && b.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'Z') && !matches!(byte, b'I' | b'L' | b'O' | b'U'))
}

/// 32 hex digits.
pub(crate) fn is_hex128(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The payload's `trace_id`, which the router only takes in two forms.
pub(crate) fn trace_id(object: &Map<String, Value>) -> Result<Option<&str>, Violation> {
    match optional(object, "trace_id")? {
        Some(text) if !is_hex128(text) && !is_uuid4(text) => broken(Rule::TraceId, text),
        other => Ok(other),
    }
}

/// `run_id`, `flow_id` and `step_id`: all three and valid, or none.
pub(crate) fn flow_ids(object: &Map<String, Value>) -> Result<(), Violation> {
    let mut count = 0;
    for key in ["run_id", "flow_id", "step_id"] {
        if let Some(text) = optional(object, key)? {
            if !is_uuid4(text) && !is_ulid(text) {
                return broken(Rule::Ids, format!("{key} is {text}"));
            }
            count += 1;
        }
    }
    if count == 1 || count == 2 { broken(Rule::Ids, format!("{count} of three")) } else { Ok(()) }
}

/// The error fields and the effect, by status.
pub(crate) fn error_fields(object: &Map<String, Value>, success: bool) -> Result<(), Violation> {
    let (code, kind) = (optional(object, "error_code")?, optional(object, "error_type")?);
    let message = optional(object, "error_message")?;
    match optional(object, "effect")? {
        Some("none" | "applied" | "unknown") => {}
        None if success => {}
        other => return broken(Rule::Effect, format!("effect is {other:?}")),
    }
    if success {
        return match (code, kind, message) {
            (None, None, None) => Ok(()),
            _ => broken(Rule::ErrorFields, "a success with error fields"),
        };
    }
    let (Some(code), Some(kind)) = (code, kind) else {
        return broken(Rule::ErrorFields, format!("error_code {code:?}, error_type {kind:?}"));
    };
    if !CODES.contains(&code) {
        return broken(Rule::ErrorCode, code);
    }
    if kind.is_empty() {
        return broken(Rule::ErrorFields, "error_type is empty");
    }
    if code == "EXPIRED" {
        return broken(Rule::Expired, "on the result subject");
    }
    if CLIENT_CODES.contains(&code) {
        if PROVIDER_CODES.iter().any(|provider| provider.eq_ignore_ascii_case(kind)) {
            return broken(Rule::ErrorFields, format!("{code} with error_type {kind}, which the breaker counts"));
        }
        innocent(message.unwrap_or_default())?;
    }
    Ok(())
}

/// The sentence of a client's fault: no digits, none of the words that the breaker counts.
pub(crate) fn innocent(message: &str) -> Result<(), Violation> {
    let lower = message.to_ascii_lowercase();
    let word = ["timeout", "connection", "unavailable"].into_iter().find(|word| lower.contains(word));
    match word {
        Some(word) => broken(Rule::ErrorMessage, format!("{message:?} has the word {word}")),
        None if message.bytes().any(|b| b.is_ascii_digit()) => broken(Rule::ErrorMessage, format!("{message:?} has a digit")),
        None => Ok(()),
    }
}

/// `<kind>-<32 hex>`, where dead letters and events carry more behind it.
pub(crate) fn message_id(text: &str, kind: char) -> Result<(), Violation> {
    let mut parts = text.split('-');
    let well = parts.next() == Some(kind.encode_utf8(&mut [0; 4]))
        && match kind {
            'r' | 'a' => parts.next().is_some_and(is_hex128) && parts.next().is_none(),
            _ => parts.any(is_hex128),
        };
    if well { Ok(()) } else { broken(Rule::MsgIdForm, format!("{text:?} is no {kind}- id")) }
}

/// Every value of one header.
pub(crate) fn header<'a>(headers: &'a Headers, name: &str) -> Vec<&'a str> {
    headers.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
}

/// Every value of a header equals what the payload says, where both are there.
pub(crate) fn agrees(headers: &Headers, name: &str, payload: Option<&str>) -> Result<(), Violation> {
    let Some(payload) = payload else { return Ok(()) };
    match header(headers, name).into_iter().find(|value| *value != payload) {
        Some(value) => broken(Rule::HeaderDisagrees, format!("header {name} is {value:?}, payload says {payload:?}")),
        None => Ok(()),
    }
}
