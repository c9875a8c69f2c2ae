//! One message of a worker's, as it is shown.

use async_nats::Message;
use prost::Message as _;
use proto::v1;
use serde_json::{Value, json};

use crate::cli::step::visible;
use crate::edge::native::Encoding;
use crate::edge::protobuf;

/// Longest piece of a value in a row, in characters.
const PIECE_MAX: usize = 72;

/// What kind of message it is: by the subject it came on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Accepted or rejected.
    Ack,
    /// The outcome.
    Result,
    /// A lifecycle event.
    Event,
}

/// A message about an assignment.
#[derive(Debug)]
pub(super) struct Heard {
    /// What kind of message.
    pub(super) kind: Kind,
    /// Which assignment it is about.
    pub(super) assignment_id: String,
    message: Value,
}

impl Heard {
    /// Reads a message; `None` if it names no assignment.
    pub(super) fn read(kind: Kind, message: &Message) -> Option<Heard> {
        let said = message.headers.as_ref().and_then(|headers| headers.get("Content-Type"));
        let message: Value = match said {
            Some(said) if said.as_str() == Encoding::Protobuf.media_type() => {
                protobuf::result_json(&v1::StepResult::decode(message.payload.clone()).ok()?)
            }
            _ => serde_json::from_slice(&message.payload).ok()?,
        };
        let id = match kind {
            Kind::Ack | Kind::Result => &message["assignment_id"],
            Kind::Event => &message["subject"],
        };
        let assignment_id = id.as_str()?.to_owned();
        Some(Heard { kind, assignment_id, message })
    }

    /// What is said of an assignment in a call.
    pub(super) fn of(kind: Kind, assignment_id: String, message: Value) -> Heard {
        Heard { kind, assignment_id, message }
    }

    /// Whether it is a result that says so.
    pub(super) fn success(&self) -> bool {
        self.kind == Kind::Result && (self.message["status"] == "success" || self.message["status"] == "OK")
    }

    /// For programs.
    pub(super) fn object(&self) -> Value {
        json!({ "kind": self.kind(), "assignment_id": self.assignment_id, "message": self.message })
    }

    /// For people.
    pub(super) fn row(&self, job_type: &str) -> String {
        let text = |name: &str| self.message[name].as_str().unwrap_or_default();
        let mut words = Vec::new();
        let what = match self.kind {
            Kind::Ack => text("status"),
            Kind::Result => text("status"),
            Kind::Event => text("type").rsplit('.').next().unwrap_or_default(),
        };
        let names: &[&str] = match self.kind {
            Kind::Ack => &["message"],
            Kind::Result => &["error_code", "error_message", "error_details", "error", "outputs", "outputs_ref"],
            Kind::Event => &[],
        };
        for value in names.iter().filter_map(|name| self.message.get(*name)) {
            let piece = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            words.extend(Some(cut(&piece)).filter(|piece| !piece.is_empty()));
        }
        let id = self.assignment_id.char_indices().rev().nth(7).map_or(0, |(at, _)| at);
        let id = &self.assignment_id[id..];
        visible(&format!("{id:8}  {job_type:12}  {:6}  {what:10}  {}", self.kind(), words.join("  ")))
    }

    fn kind(&self) -> &'static str {
        match self.kind {
            Kind::Ack => "ack",
            Kind::Result => "result",
            Kind::Event => "event",
        }
    }
}

/// Enough of a value to recognise it.
fn cut(text: &str) -> String {
    if text.chars().count() <= PIECE_MAX { text.to_owned() } else { text.chars().take(PIECE_MAX).chain("…".chars()).collect() }
}
