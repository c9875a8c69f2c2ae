//! The rules of the wire contract that a worker can break, one variant each, and a broken rule with its evidence.
//!
//! Written from the contract alone; nothing here knows the worker's code.

use std::fmt;

/// One rule of the contract. The text is what a failing test prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Rule {
    /// The subject is none that a worker may publish to.
    Subject,
    /// The server refuses messages of 1 MiB and more.
    Size,
    /// The payload is one JSON object.
    Json,
    /// No white space outside strings.
    Compact,
    /// Never `{version, kind, data}`.
    Envelope,
    /// `version` is the string "1" in the payload.
    Version,
    /// A field that must be there is not.
    Missing,
    /// A field has the wrong JSON type or an impossible value.
    Type,
    /// An optional field is left out, never null.
    Null,
    /// A status word that the router knows (`cancelled`, not `canceled`).
    Status,
    /// The answer is to an assignment that was sent.
    UnknownAssignment,
    /// Identity fields echo what was sent.
    Echo,
    /// Headers agree with the payload.
    HeaderDisagrees,
    /// As soon as any header is set, `Nats-Msg-Id` is.
    MsgIdMissing,
    /// A message id is `<kind>-<32 hex>` of the right kind.
    MsgIdForm,
    /// One message id names one answer.
    MsgIdReused,
    /// A payload `trace_id` is 32 hex digits or a UUIDv4.
    TraceId,
    /// `run_id`, `flow_id`, `step_id`: all three valid, or none.
    Ids,
    /// `error_code` and `error_type` are both set when it is not a success, and neither when it is.
    ErrorFields,
    /// `error_code` is one of the closed list.
    ErrorCode,
    /// A client's fault has a fixed sentence without digits and without the breaker's words.
    ErrorMessage,
    /// Whatever is not ok says `effect: none | applied | unknown`.
    Effect,
    /// Outputs above the inline limit travel as a reference.
    Outputs,
    /// An expired job goes to dead letter and event, never to the result subject.
    Expired,
    /// `reason` is the same text as `message`.
    AckReason,
    /// The second ack says another status than the first.
    AckContradicts,
    /// The result comes after the ack, and agrees with it.
    AckOrder,
    /// A second result that differs from the first, or comes under another message id.
    SecondResult,
    /// Nothing is answered where the contract asks for silence.
    Silence,
    /// A dead letter carries the whole original message, and its headers.
    DeadLetter,
    /// An event is a structured CloudEvent of a known kind under a valid tenant.
    Event,
    /// A heartbeat carries its worker, its time and its resources.
    Heartbeat,
}

/// A rule that a message broke, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    /// Which rule.
    pub(crate) rule: Rule,
    /// What was seen.
    pub(crate) detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.detail)
    }
}

impl std::error::Error for Violation {}

/// `Err` with this rule and evidence.
pub(crate) fn broken<T>(rule: Rule, detail: impl Into<String>) -> Result<T, Violation> {
    Err(Violation { rule, detail: detail.into() })
}
