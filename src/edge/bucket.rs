//! The KV bucket `endstation`: the few small things that the workers of a deployment share. Every write says what it replaces,
//! so of two workers that write at once one is told so.
//!
//! JetStream is spoken as plain JSON: the client's own types want fields that older servers leave out. Values are read where the
//! stream's leader is, never from a copy that may be behind.

use async_nats::client::RequestErrorKind;
use async_nats::{Client, HeaderMap};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::puback::{self, PubAck};

const STREAM: &str = "KV_endstation";
const PREFIX: &str = "$KV.endstation.";

/// A value and the revision it has: what the next write must name.
pub(super) type Entry = (u64, Vec<u8>);

/// What became of a write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// It is there, with this revision.
    At(u64),
    /// Something else is there than what it was to replace.
    Beaten,
    /// There is no bucket.
    NoBucket,
}

/// What stands under `key`; `None`: nothing, or there is no bucket.
pub(super) async fn read(client: &Client, key: &str) -> Result<Option<Entry>, async_nats::Error> {
    let answer =
        request(client, &format!("STREAM.MSG.GET.{STREAM}"), &json!({ "last_by_subj": format!("{PREFIX}{key}") })).await?;
    match answer.pointer("/error/code").and_then(Value::as_u64) {
        Some(404) => return Ok(None),
        Some(_) => return Err(answer["error"].to_string().into()),
        None => {}
    }
    let text = answer.pointer("/message/data").and_then(Value::as_str).unwrap_or_default();
    let revision = answer.pointer("/message/seq").and_then(Value::as_u64).ok_or("a message of the bucket without a sequence")?;
    Ok(Some((revision, BASE64.decode(text)?)))
}

/// Puts `value` in the place of the revision `instead_of`; 0: of nothing.
pub(super) async fn write(client: &Client, key: &str, value: Vec<u8>, instead_of: u64) -> Result<Written, async_nats::Error> {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Expected-Last-Subject-Sequence", instead_of.to_string().as_str());
    let answer = match client.request_with_headers(format!("{PREFIX}{key}"), headers, value.into()).await {
        Ok(answer) => answer,
        Err(error) if error.kind() == RequestErrorKind::NoResponders => return Ok(Written::NoBucket),
        Err(error) => return Err(error.into()),
    };
    match puback::parse(&answer.payload) {
        PubAck::Stored { .. } => {
            let stored: Value = serde_json::from_slice(&answer.payload)?;
            Ok(Written::At(stored["seq"].as_u64().unwrap_or(0)))
        }
        PubAck::Fenced => Ok(Written::Beaten),
        PubAck::Refused(why) => Err(why.into()),
    }
}

/// Makes the bucket; a bucket is a stream of this form to every NATS client.
pub(super) async fn create(client: &Client, replicas: usize) -> Result<(), async_nats::Error> {
    let config = json!({
        "name": STREAM, "description": "what the endstation workers of this deployment share",
        "subjects": [format!("{PREFIX}>")], "retention": "limits", "storage": "file", "discard": "new",
        "max_msgs_per_subject": 1, "max_consumers": -1, "max_msgs": -1, "max_bytes": -1, "max_msg_size": -1, "max_age": 0,
        "num_replicas": replicas.max(1), "duplicate_window": 120_000_000_000_u64, "allow_rollup_hdrs": true, "deny_delete": true,
        "allow_direct": true,
    });
    let answer = request(client, &format!("STREAM.CREATE.{STREAM}"), &config).await?;
    match answer.get("error") {
        None => Ok(()),
        // Somebody else made it a moment ago.
        Some(error) if error["err_code"] == 10058 => Ok(()),
        Some(error) => Err(format!("the bucket endstation cannot be made: {error}").into()),
    }
}

async fn request(client: &Client, what: &str, body: &Value) -> Result<Value, async_nats::Error> {
    let answer = client.request(format!("$JS.API.{what}"), body.to_string().into()).await?;
    Ok(serde_json::from_slice(&answer.payload)?)
}
