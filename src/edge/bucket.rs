//! The KV buckets that the workers of a deployment share: [`SHARED`] for the few things that there is one of, [`CLAIMS`] for what
//! is one a step. Every write says what it replaces, so of two workers that write at once one is told so.
//!
//! JetStream is spoken as plain JSON: the client's own types want fields that older servers leave out. Values are read where the
//! stream's leader is, never from a copy that may be behind.

use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::{Client, HeaderMap};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::native::CREATE_ONLY;
use super::puback::{self, PubAck};

/// A bucket: a stream of a certain form, to every NATS client. Shared, never changes.
#[derive(Debug)]
pub(super) struct Bucket {
    name: &'static str,
    stream: &'static str,
    prefix: &'static str,
    what: &'static str,
}

/// Leases and the deployment's secret.
pub(super) const SHARED: Bucket = Bucket {
    name: "endstation",
    stream: "KV_endstation",
    prefix: "$KV.endstation.",
    what: "what the endstation workers of this deployment share",
};

/// Which worker may run a step that must never run twice.
pub(super) const CLAIMS: Bucket = Bucket {
    name: "endstation_claims",
    stream: "KV_endstation_claims",
    prefix: "$KV.endstation_claims.",
    what: "which endstation worker has claimed a step that must never run twice",
};

/// What the next owner needs to go on with steps that wait for people.
pub(super) const WAITING: Bucket = Bucket {
    name: "endstation_waiting",
    stream: "KV_endstation_waiting",
    prefix: "$KV.endstation_waiting.",
    what: "steps of endstation workers that wait for people, for whoever owns the work next",
};

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

impl Bucket {
    /// Its name.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// The stream that it is.
    pub(super) fn stream(&self) -> &'static str {
        self.stream
    }

    /// Where `key` is written.
    pub(super) fn subject(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// What stands under `key`; `None`: nothing, or there is no bucket.
    pub(super) async fn read(&self, client: &Client, key: &str) -> Result<Option<Entry>, async_nats::Error> {
        self.get(client, &json!({ "last_by_subj": self.subject(key) })).await
    }

    /// The revisions of the oldest and of the newest value; `None`: there is none, or there is no bucket.
    pub(super) async fn span(&self, client: &Client) -> Result<Option<(u64, u64)>, async_nats::Error> {
        let answer = request(client, &format!("STREAM.INFO.{}", self.stream), &json!({})).await?;
        match answer.pointer("/error/code").and_then(Value::as_u64) {
            Some(404) => return Ok(None),
            Some(_) => return Err(answer["error"].to_string().into()),
            None => {}
        }
        let at = |name: &str| answer.pointer(&format!("/state/{name}")).and_then(Value::as_u64);
        let (Some(messages), Some(first), Some(last)) = (at("messages"), at("first_seq"), at("last_seq")) else {
            return Err("the bucket's stream does not say what is in it".into());
        };
        Ok(if messages == 0 { None } else { Some((first, last)) })
    }

    /// The oldest value under a key that begins with `under` and a dot, and newer than the revision `after`; `None`: there is none,
    /// or there is no bucket.
    pub(super) async fn next(&self, client: &Client, under: &str, after: u64) -> Result<Option<Entry>, async_nats::Error> {
        self.get(client, &json!({ "seq": after + 1, "next_by_subj": self.subject(&format!("{under}.>")) })).await
    }

    async fn get(&self, client: &Client, wanted: &Value) -> Result<Option<Entry>, async_nats::Error> {
        let what = format!("STREAM.MSG.GET.{}", self.stream);
        let answer = request(client, &what, wanted).await?;
        match answer.pointer("/error/code").and_then(Value::as_u64) {
            Some(404) => return Ok(None),
            Some(_) => return Err(answer["error"].to_string().into()),
            None => {}
        }
        let text = answer.pointer("/message/data").and_then(Value::as_str).unwrap_or_default();
        let revision =
            answer.pointer("/message/seq").and_then(Value::as_u64).ok_or("a message of the bucket without a sequence")?;
        Ok(Some((revision, BASE64.decode(text)?)))
    }

    /// Puts `value` in the place of the revision `instead_of`; 0: of nothing.
    pub(super) async fn write(
        &self,
        client: &Client,
        key: &str,
        value: Vec<u8>,
        instead_of: u64,
    ) -> Result<Written, async_nats::Error> {
        // Where somebody listens to every subject, a message to a bucket that is not there is merely unanswered.
        if instead_of == 0 && !self.exists(client).await? {
            return Ok(Written::NoBucket);
        }
        let mut headers = HeaderMap::new();
        headers.insert(CREATE_ONLY, instead_of.to_string().as_str());
        let answer = match client.request_with_headers(self.subject(key), headers, value.into()).await {
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

    /// Whether it is there.
    pub(super) async fn exists(&self, client: &Client) -> Result<bool, async_nats::Error> {
        let answer = request(client, &format!("STREAM.INFO.{}", self.stream), &json!({})).await?;
        match answer.pointer("/error/code").and_then(Value::as_u64) {
            Some(404) => Ok(false),
            Some(_) => Err(answer["error"].to_string().into()),
            None => Ok(true),
        }
    }

    /// Makes it. What stands there goes after `age`; zero: never.
    pub(super) async fn create(&self, client: &Client, replicas: usize, age: Duration) -> Result<(), async_nats::Error> {
        let duplicates = Duration::from_secs(120);
        let window = if age.is_zero() { duplicates } else { duplicates.min(age) };
        let config = json!({
            "name": self.stream, "description": self.what, "subjects": [self.subject(">")], "retention": "limits",
            "storage": "file", "discard": "new", "max_msgs_per_subject": 1, "max_consumers": -1, "max_msgs": -1,
            "max_bytes": -1, "max_msg_size": -1, "max_age": age.as_nanos() as u64, "num_replicas": replicas.max(1),
            "duplicate_window": window.as_nanos() as u64, "allow_rollup_hdrs": true, "deny_delete": true, "allow_direct": true,
        });
        let answer = request(client, &format!("STREAM.CREATE.{}", self.stream), &config).await?;
        match answer.get("error") {
            None => Ok(()),
            // Somebody else made it a moment ago: of two at once nats-server refuses one, by no error of its own for that.
            Some(_) if self.exists(client).await? => Ok(()),
            Some(error) => Err(format!("the bucket {} cannot be made: {error}", self.name).into()),
        }
    }
}

async fn request(client: &Client, what: &str, body: &Value) -> Result<Value, async_nats::Error> {
    let answer = client.request(format!("$JS.API.{what}"), body.to_string().into()).await?;
    Ok(serde_json::from_slice(&answer.payload)?)
}
