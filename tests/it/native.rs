//! A sender of native steps: JSON or protobuf, over a stream or as a question on core NATS, and what comes of them.
//!
//! The messages are those of the `proto` crate, which is the contract; how the worker reads and writes them is not used here.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use async_nats::{Client, HeaderMap, Message};
use bytes::Bytes;
use futures_util::StreamExt as _;
use prost::Message as _;
use proto::v1;
use serde_json::{Value, json};

use crate::world::PATIENCE;

/// How a message is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// JSON, with nothing said about it.
    Plain,
    /// JSON
    Json,
    /// Binary
    Protobuf,
}

/// Every form.
pub(crate) const FORMS: [Form; 3] = [Form::Plain, Form::Json, Form::Protobuf];

impl Form {
    fn media_type(self) -> Option<&'static str> {
        match self {
            Form::Plain => None,
            Form::Json => Some("application/json"),
            Form::Protobuf => Some("application/protobuf"),
        }
    }

    /// The headers that say so.
    pub(crate) fn headers(self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("X-Test", "1");
        if let Some(media_type) = self.media_type() {
            headers.insert("Content-Type", media_type);
        }
        headers
    }

    /// A step with one number for input.
    pub(crate) fn step(self, block: &str, assignment: &str, (name, value): (&str, f64)) -> Bytes {
        if self != Form::Protobuf {
            let value = value as i64;
            let context = json!({"tenant_id": "acme"});
            return json!({"type": block, "inputs": {name: value}, "context": context, "assignment_id": assignment})
                .to_string()
                .into();
        }
        let value = prost_types::Value { kind: Some(prost_types::value::Kind::NumberValue(value)) };
        let request = v1::StepRequest {
            r#type: block.into(),
            inputs: Some(prost_types::Struct { fields: [(name.to_owned(), value)].into() }),
            context: Some(v1::BlockContext { tenant_id: "acme".into(), ..Default::default() }),
            assignment_id: Some(assignment.into()),
            ..Default::default()
        };
        request.encode_to_vec().into()
    }
}

/// A StepResult, read as its own header says.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The message.
    pub(crate) message: Message,
    /// `status`
    pub(crate) status: String,
    /// `assignment_id`
    pub(crate) assignment_id: String,
    /// `outputs.n`
    pub(crate) n: Option<f64>,
}

impl Answer {
    /// Reads one that must be written so.
    pub(crate) fn read(message: &Message, form: Form) -> Result<Answer> {
        let said = header(message, "Content-Type").context("a content type")?;
        ensure!(said == form.media_type().unwrap_or("application/json"), "{form:?} was answered as {said}");
        let message = message.clone();
        if form == Form::Protobuf {
            let result = v1::StepResult::decode(message.payload.clone())?;
            let outputs = result.outputs.as_ref().and_then(|outputs| outputs.fields.get("n"));
            let n = match outputs.and_then(|value| value.kind.as_ref()) {
                Some(prost_types::value::Kind::NumberValue(n)) => Some(*n),
                _ => None,
            };
            let status = result.status().as_str_name().to_owned();
            return Ok(Answer { message, status, assignment_id: result.assignment_id.unwrap_or_default(), n });
        }
        let result: Value = serde_json::from_slice(&message.payload)?;
        let text = |name: &str| result[name].as_str().unwrap_or_default().to_owned();
        let (status, assignment_id, n) = (text("status"), text("assignment_id"), result["outputs"]["n"].as_f64());
        Ok(Answer { message, status, assignment_id, n })
    }
}

/// A header of a message.
pub(crate) fn header<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    message.headers.as_ref()?.get(name).map(|value| value.as_str())
}

/// The sender. Sees everything that is published under the native profile.
#[derive(Debug)]
pub(crate) struct Sender {
    /// Its connection.
    pub(crate) client: Client,
    seen: Arc<Mutex<Vec<Message>>>,
}

impl Sender {
    /// Connects and starts to watch.
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        let client = async_nats::connect(url).await?;
        let mut all = client.subscribe("beamline.worker.>").await?;
        client.flush().await?;
        let seen: Arc<Mutex<Vec<Message>>> = Arc::default();
        let list = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Some(message) = all.next().await {
                list.lock().unwrap_or_else(PoisonError::into_inner).push(message);
            }
        });
        Ok(Sender { client, seen })
    }

    /// Puts a message into a stream.
    pub(crate) async fn store(&self, subject: &str, headers: HeaderMap, body: Bytes) -> Result<()> {
        let context = async_nats::jetstream::new(self.client.clone());
        context.publish_with_headers(subject.to_owned(), headers, body).await?.await?;
        Ok(())
    }

    /// Asks on core NATS, and waits for the one answer.
    pub(crate) async fn ask(&self, subject: &str, headers: HeaderMap, body: Bytes) -> Result<Message> {
        let request = async_nats::Request::new().headers(headers).payload(body).timeout(Some(PATIENCE));
        Ok(self.client.send_request(subject.to_owned(), request).await?)
    }

    /// What was seen under a subject's beginning, so far.
    pub(crate) fn seen(&self, prefix: &str) -> Vec<Message> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().filter(|message| message.subject.starts_with(prefix)).cloned().collect()
    }

    /// Waits until `count` messages were seen there.
    pub(crate) async fn wait(&self, prefix: &str, count: usize) -> Result<Vec<Message>> {
        let begun = Instant::now();
        loop {
            let seen = self.seen(prefix);
            if seen.len() >= count {
                return Ok(seen);
            }
            if begun.elapsed() > PATIENCE {
                bail!("{} of {count} messages under {prefix} after {PATIENCE:?}", seen.len());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
