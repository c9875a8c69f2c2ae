//! Secrets never reach a log line: values under a secret's name become `[REDACTED]`, at any depth, also inside texts that
//! are JSON themselves.

use serde_json::Value;

/// What stands in place of a secret.
pub const REDACTED: &str = "[REDACTED]";

/// Names of secrets without their separators; a longer name that ends with one is a secret too (`db_password`, `X-Api-Key`).
const SECRETS: [&str; 11] = [
    "password",
    "apikey",
    "secret",
    "token",
    "accesstoken",
    "refreshtoken",
    "authorization",
    "creditcard",
    "ssn",
    "email",
    "phone",
];

/// JSON inside text inside JSON: deeper than this nobody looks, so it is hidden.
const NESTING_MAX: usize = 8;

/// Whether a value under this name is a secret, however the name is spelled (`api_key`, `apiKey`, `API-KEY`).
pub fn is_secret(name: &str) -> bool {
    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    SECRETS.iter().any(|secret| plain.ends_with(secret))
}

/// The value as it may be shown under `name`.
pub fn redact(name: &str, value: Value) -> Value {
    inner(name, value, 0)
}

fn inner(name: &str, value: Value, nesting: usize) -> Value {
    if is_secret(name) && !value.is_null() {
        return Value::from(REDACTED);
    }
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(name, value)| {
                let value = inner(&name, value, nesting);
                (name, value)
            });
            Value::Object(fields.collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(|item| inner("", item, nesting)).collect()),
        Value::String(text) => Value::String(inner_text(text, nesting)),
        other => other,
    }
}

/// Text that is a JSON object or array is redacted as such and stays text.
fn inner_text(text: String, nesting: usize) -> String {
    if !text.trim_start().starts_with(['{', '[']) {
        return text;
    }
    let Ok(value) = serde_json::from_str::<Value>(&text) else { return text };
    if nesting == NESTING_MAX {
        return REDACTED.to_owned();
    }
    let clean = inner("", value.clone(), nesting + 1);
    if clean == value { text } else { clean.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn secrets_are_hidden_under_every_spelling_and_depth() {
        for (name, given, shown) in [
            ("password", json!("p"), json!(REDACTED)),
            ("db_password", json!("p"), json!(REDACTED)),
            ("X-Api-Key", json!("p"), json!(REDACTED)),
            ("accessToken", json!(7), json!(REDACTED)),
            ("refresh_token", json!({"a": 1}), json!(REDACTED)),
            ("AUTHORIZATION", json!(["Bearer x"]), json!(REDACTED)),
            ("credit_card", json!("4111"), json!(REDACTED)),
            ("ssn", json!("1"), json!(REDACTED)),
            ("email", json!("a@b"), json!(REDACTED)),
            ("phone", json!("1"), json!(REDACTED)),
            ("secret", json!(true), json!(REDACTED)),
            ("token", json!(null), json!(null)),
            ("tokens_used", json!(3), json!(3)),
            ("passwords", json!(0), json!(0)),
            ("a", json!({"b": [{"token": "x", "c": 1}]}), json!({"b": [{"token": REDACTED, "c": 1}]})),
            ("a", json!("plain {\"token\":1}"), json!("plain {\"token\":1}")),
            ("a", json!(r#"{"b":{"token":"x"},"n":1}"#), json!(r#"{"b":{"token":"[REDACTED]"},"n":1}"#)),
            ("a", json!(r#" [{"email":"x"}]"#), json!(r#"[{"email":"[REDACTED]"}]"#)),
            ("a", json!(r#"{"n": 1}"#), json!(r#"{"n": 1}"#)),
            ("a", json!(r#"{"t":"{\"secret\":\"x\"}"}"#), json!(r#"{"t":"{\"secret\":\"[REDACTED]\"}"}"#)),
        ] {
            assert_eq!(redact(name, given.clone()), shown, "{name}: {given}");
        }
    }

    #[test]
    fn text_nested_deeper_than_anybody_looks_is_hidden() {
        let mut text = json!({"password": "hush"}).to_string();
        for _ in 0..NESTING_MAX + 2 {
            text = json!({ "t": text }).to_string();
        }
        assert!(!redact("a", Value::from(text)).to_string().contains("hush"));
    }
}
