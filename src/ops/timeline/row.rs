//! One frame as a line that people and programs read. Bodies are told by their sizes unless they are asked for, and what goes
//! by a secret's name is hidden either way.

use base64::Engine as _;
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value, json};
use shards::journal::{Answer, CodecError, Fact, FrameView, Message, SOURCE_LINE, SOURCE_STREAM, decode};
use shards::outcome::{Outcome, Status};

use crate::ops::logs::{redact, stamp};

/// One frame, for people and programs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// When, RFC 3339; absent where the frame does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// The frame's kind, in lower case.
    pub kind: &'static str,
    /// Whose journal.
    pub shard: u16,
    /// Where in it.
    pub lsn: u64,
    /// The frame's own key.
    pub key: String,
    /// What it says.
    #[serde(flatten)]
    pub says: Map<String, Value>,
}

/// The frame `view` of `shard` at `lsn`; with `bodies`, also what was asked and what came out.
pub(crate) fn row(shard: u16, lsn: u64, view: FrameView<'_>, bodies: bool) -> Result<Row, CodecError> {
    let frame = decode(&Bytes::copy_from_slice(view.raw()))?;
    let (kind, at_ms, mut says) = match &frame.fact {
        Fact::Accepted(fact) => {
            let mut says = fields(json!({
                "tenant": &*fact.tenant, "block": &*fact.block, "effect_class": fact.effect.as_str(),
                "deadline": time(fact.deadline_ms), "not_after": time(fact.not_after_ms),
                "fingerprint": fact.fingerprint.to_string(), "asker": fact.asker.to_string(),
            }));
            says.extend(message(&fact.message, bodies));
            says.extend(fact.replay_of.map(|key| ("replay_of".to_owned(), Value::from(key.to_string()))));
            ("accepted", Some(fact.received_ms), says)
        }
        Fact::Started { try_number, boot, at_ms } => ("started", Some(*at_ms), fields(json!({"try": try_number, "boot": boot}))),
        Fact::RetryAt { try_number, at_ms } => ("retry_at", None, fields(json!({"try": try_number, "due": time(*at_ms)}))),
        Fact::Result(fact) => {
            let mut says = outcome(&fact.outcome, bodies);
            says.extend(fields(json!({
                "tenant": &*fact.tenant, "block": &*fact.block, "asker": fact.asker.to_string(),
                "tenant_seq": fact.audit.tenant_seq,
            })));
            ("result", Some(fact.outcome.ended_ms), says)
        }
        Fact::Published { asker, at_ms } => ("published", Some(*at_ms), fields(json!({"asker": asker.to_string()}))),
        Fact::Answer(fact) => ("answer", Some(fact.outcome.ended_ms), answer(fact, bodies)),
        Fact::Quarantined(fact) => ("quarantined", Some(fact.outcome.ended_ms), answer(fact, bodies)),
        Fact::Mark { wall_ms, floor, watermark_ms } => {
            let mut says = fields(json!({ "floor": floor.0 }));
            says.extend((*watermark_ms > 0).then(|| ("watermark".to_owned(), Value::from(time(*watermark_ms)))));
            ("mark", Some(*wall_ms), says)
        }
        Fact::Struck { strikes, boot, at_ms } => ("struck", Some(*at_ms), fields(json!({"strikes": strikes, "boot": boot}))),
        Fact::Signal(vote) => {
            let mut says = fields(json!({
                "actor": &*vote.actor, "decision": if vote.approve { "approved" } else { "rejected" }, "signed": vote.signed,
            }));
            says.extend((!vote.comment.is_empty()).then(|| ("comment".to_owned(), Value::from(&*vote.comment))));
            ("signal", Some(vote.at_ms), says)
        }
        Fact::Released { at_ms } => ("released", Some(*at_ms), Map::new()),
        Fact::Unknown(_) => ("unknown", None, Map::new()),
    };
    if frame.owner_epoch > 0 {
        says.insert("owner_epoch".to_owned(), Value::from(frame.owner_epoch));
    }
    Ok(Row { at: at_ms.map(time), kind, shard, lsn, key: frame.key.to_string(), says })
}

fn answer(fact: &Answer, bodies: bool) -> Map<String, Value> {
    let mut says = outcome(&fact.outcome, bodies);
    says.insert("tenant".to_owned(), Value::from(&*fact.tenant));
    says.insert("asker".to_owned(), Value::from(fact.asker.to_string()));
    says.extend(fact.of.map(|key| ("of".to_owned(), Value::from(key.to_string()))));
    says.extend(message(&fact.message, bodies));
    says
}

fn outcome(outcome: &Outcome, bodies: bool) -> Map<String, Value> {
    let mut says = fields(json!({
        "status": status(outcome.status), "effect": outcome.effect.as_str(), "tries": outcome.tries,
        "ran_us": outcome.ran_us, "received": time(outcome.received_ms), "boot": outcome.boot,
        "output_bytes": outcome.outputs.len(), "queue_depth": outcome.queue_depth,
    }));
    if bodies && !outcome.outputs.is_empty() {
        says.insert("outputs".to_owned(), body(&outcome.outputs));
    }
    if let Some(fault) = &outcome.fault {
        says.insert("code".to_owned(), Value::from(fault.code.as_str()));
        says.insert("message".to_owned(), Value::from(&*fault.message));
        if let Ok(details) = serde_json::from_slice(&fault.details) {
            says.insert("details".to_owned(), redact("", details));
        }
    }
    says
}

fn message(message: &Message, bodies: bool) -> Map<String, Value> {
    let source = match message.source {
        SOURCE_LINE => "line",
        SOURCE_STREAM => "stream",
        _ => "core",
    };
    let mut says = fields(json!({
        "source": source, "sequence": message.sequence, "subject": &*message.subject, "message_bytes": message.body.len(),
    }));
    if bodies {
        let headers = message.headers.iter();
        let headers = headers.map(|(name, value)| ((**name).to_owned(), redact(name, Value::from(&**value))));
        says.insert("headers".to_owned(), Value::Object(headers.collect()));
        says.insert("body".to_owned(), body(&message.body));
    }
    says
}

/// JSON as such, other text as text, and what is neither in base64.
fn body(bytes: &[u8]) -> Value {
    match (serde_json::from_slice(bytes), std::str::from_utf8(bytes)) {
        (Ok(value), _) => redact("", value),
        (_, Ok(text)) => redact("", Value::from(text)),
        _ => json!({ "base64": base64::engine::general_purpose::STANDARD.encode(bytes) }),
    }
}

fn fields(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

pub(crate) fn time(ms: u64) -> String {
    let moment = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    moment.map_or_else(|| ms.to_string(), stamp)
}

fn status(status: Status) -> &'static str {
    match status {
        Status::Ok => "success",
        Status::Error => "error",
        Status::Timeout => "timeout",
        Status::Cancelled => "cancelled",
        Status::Quarantined => "quarantined",
    }
}
