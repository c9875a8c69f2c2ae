//! What providers say when they do not do what was asked, as a step's fault: which code, whether another try may help, and when.
//!
//! Generation leaves nothing behind, so no fault of this block says that anything happened.

use hyper::header::{HeaderMap, RETRY_AFTER};
use serde_json::{Value, json};
use shards::outcome::{Code, Fault};

use crate::net::decode::DecodeError;
use crate::net::error::NetError;
use crate::policy::Refused;
use crate::secrets::Redaction;

use super::super::http::answer::{RETRY_AFTER_MS_MAX, retry_after_ms};
use super::super::http::fault;
use super::reply::Wrong;

/// What of a provider's own words a fault keeps, in bytes.
const WORDS_BYTES_MAX: usize = 1 << 10;
/// The same of a code or type of its.
const NAME_BYTES_MAX: usize = 128;

/// What a provider says went wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// Its own type, such as `overloaded_error`.
    kind: Option<String>,
    /// Its own code, such as `rate_limit_exceeded`.
    code: Option<String>,
    message: Option<String>,
    /// The message is a beginning, and may end in the middle of anything.
    cut: bool,
}

impl Said {
    /// Out of the body of an error.
    pub(super) fn of(value: &Value) -> Said {
        let error = match &value["error"] {
            Value::Null => value,
            error => error,
        };
        let text = |part: &Value| match part {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        match error.as_str() {
            Some(message) => Said { message: Some(message.to_owned()), ..Said::default() },
            None => Said { kind: text(&error["type"]), code: text(&error["code"]), message: text(&error["message"]), cut: false },
        }
    }

    /// The same of a body that may be anything.
    pub(super) fn read(body: &[u8]) -> Said {
        match serde_json::from_slice::<Value>(body) {
            Ok(value) if value.is_object() => Said::of(&value),
            _ if body.is_empty() => Said::default(),
            _ => Said { message: Some(String::from_utf8_lossy(body).into_owned()), cut: true, ..Said::default() },
        }
    }

    fn is(&self, words: &[&str]) -> bool {
        [&self.kind, &self.code].into_iter().flatten().any(|said| words.contains(&said.as_str()))
    }

    /// No try helps against an account that is empty.
    fn is_spent(&self) -> bool {
        self.is(&["insufficient_quota", "billing_error", "billing_hard_limit_reached"])
    }

    fn details(&self, redaction: &Redaction, details: &mut Value) {
        let parts = [
            ("type", &self.kind, NAME_BYTES_MAX),
            ("code", &self.code, NAME_BYTES_MAX),
            ("message", &self.message, WORDS_BYTES_MAX),
        ];
        for (name, said, most) in parts {
            let Some(said) = said.as_ref().filter(|said| !said.is_empty()) else { continue };
            let clean = redaction.apply(said.as_bytes()).unwrap_or_else(|| said.clone().into_bytes());
            // What was cut off may have left the beginning of a secret.
            let begun = if self.cut { redaction.begun(&clean) } else { 0 };
            let whole = String::from_utf8_lossy(&clean[..clean.len() - begun]).into_owned();
            details[name] = json!(whole[..whole.floor_char_boundary(most)]);
        }
    }
}

/// Where it was asked, for what a fault tells.
pub(super) struct Asked<'a> {
    pub(super) connector: &'a str,
    pub(super) provider: &'static str,
    pub(super) redaction: &'a Redaction,
}

impl Asked<'_> {
    fn details(&self) -> Value {
        json!({ "connector": self.connector, "provider": self.provider })
    }

    /// A status that is no success.
    pub(super) fn status(&self, status: u16, headers: &HeaderMap, body: &[u8], wall_ms: u64) -> Fault {
        let said = Said::read(body);
        let (code, sentence) = match status {
            _ if said.is_spent() => (Code::HttpError, "The provider's account is used up."),
            429 => (Code::ResourceUnavailable, "The provider asks to be left alone for now."),
            503 | 529 => (Code::ProviderUnavailable, "The provider is overloaded or down."),
            408 => (Code::ResourceUnavailable, "The provider gave up waiting."),
            500.. => (Code::Http5xx, "The provider answered with a server error."),
            401 | 403 => (Code::HttpError, "The provider does not take the connector's key."),
            _ => (Code::HttpError, "The provider does not take the request."),
        };
        let mut details = self.details();
        details["status"] = json!(status);
        said.details(self.redaction, &mut details);
        let mut fault = Fault::new(code, sentence);
        if code.retryable() {
            fault.retry_after_ms = wait_ms(headers, wall_ms);
            if let Some(ms) = fault.retry_after_ms {
                details["retry_after_ms"] = json!(ms);
            }
        }
        fault.with_details(details.to_string())
    }

    /// An answer that began well and is none.
    pub(super) fn wrong(&self, wrong: &Wrong) -> Fault {
        let mut details = self.details();
        let (code, sentence) = match wrong {
            Wrong::Unlike(what) => {
                details["rule"] = json!(format!("the answer is {what}"));
                (Code::ExecutionFailed, "The provider's answer is not of the form it should have.")
            }
            Wrong::TooLarge => (Code::ExecutionFailed, "The provider's answer is larger than a result carries."),
            Wrong::Said(said) => {
                said.details(self.redaction, &mut details);
                if said.is(&["rate_limit_error", "rate_limit_exceeded"]) {
                    (Code::ResourceUnavailable, "The provider asks to be left alone for now.")
                } else if said.is_spent()
                    || said.is(&["invalid_request_error", "authentication_error", "permission_error", "not_found_error"])
                {
                    (Code::HttpError, "The provider does not take the request.")
                } else {
                    (Code::ProviderUnavailable, "The provider failed while it answered.")
                }
            }
        };
        Fault::new(code, sentence).with_details(details.to_string())
    }

    /// A stream that stopped before the mark of its end: what came of it is no answer.
    pub(super) fn cut(&self, text_bytes: usize) -> Fault {
        let mut details = self.details();
        details["text_bytes"] = json!(text_bytes);
        Fault::new(Code::NetworkError, "The provider's answer stopped before its end.").with_details(details.to_string())
    }

    /// An exchange that came to no answer.
    pub(super) fn network(&self, error: &NetError) -> Fault {
        match error {
            NetError::Denied(denial) => Refused::of(denial, "/connector").fault(),
            NetError::Encoding(DecodeError::TooLarge(_)) => self.wrong(&Wrong::TooLarge),
            other => fault::of(other),
        }
    }
}

/// How long the provider wants to be left alone, in milliseconds: as it says itself, else until what is used up is there again.
pub(super) fn wait_ms(headers: &HeaderMap, wall_ms: u64) -> Option<u64> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    if let Some(ms) = text("retry-after-ms").and_then(|value| value.parse::<f64>().ok()).filter(|ms| *ms >= 0.0) {
        return Some((ms.ceil() as u64).clamp(1, RETRY_AFTER_MS_MAX));
    }
    if let Some(ms) = text(RETRY_AFTER.as_str()).and_then(|value| retry_after_ms(value, wall_ms)) {
        return Some(ms);
    }
    let buckets = ["requests", "tokens", "input-tokens", "output-tokens"].into_iter().flat_map(|what| {
        let openai = ["x-ratelimit-remaining-", "x-ratelimit-reset-"];
        let anthropic = ["anthropic-ratelimit-", "anthropic-ratelimit-"];
        [
            (format!("{}{what}", openai[0]), format!("{}{what}", openai[1])),
            (format!("{}{what}-remaining", anthropic[0]), format!("{}{what}-reset", anthropic[1])),
        ]
    });
    // Of what there is still some left nobody has to wait for.
    let used_up = buckets.filter(|(left, _)| text(left).is_none_or(|left| left == "0"));
    let waits = used_up.filter_map(|(_, reset)| span_ms(text(&reset)?, wall_ms));
    waits.max().map(|ms| ms.clamp(1, RETRY_AFTER_MS_MAX))
}

/// A span such as `6m0s` or `20ms`, or the moment where it ends, in milliseconds from now.
fn span_ms(text: &str, wall_ms: u64) -> Option<u64> {
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return Some(u64::try_from(at.as_millisecond()).ok()?.saturating_sub(wall_ms));
    }
    let (mut rest, mut ms) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit = &rest[digits..];
        let end = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
        ms += number
            * match &unit[..end] {
                "ms" => 1.0,
                "s" => 1e3,
                "m" => 6e4,
                "h" => 3.6e6,
                "d" => 8.64e7,
                _ => return None,
            };
        rest = &unit[end..];
    }
    (!text.is_empty()).then_some(ms.ceil() as u64)
}
