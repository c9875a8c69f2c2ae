//! What a step came to: the [`Outcome`] the journal keeps for a key, with every variable field frozen.
//!
//! An answer is a pure rendering of an outcome for one asker, so the same asker always gets the same bytes.

use bytes::Bytes;

use crate::ids::Text;
use crate::limits::TRIED_MESSAGE_BYTES_MAX;

/// What the journal keeps for K. Lives on its core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended.
    pub status: Status,
    /// What is known of its effect on the outside.
    pub effect: Effected,
    /// JSON text; empty unless the status is ok.
    pub outputs: Bytes,
    /// The outputs were too large for a message: `outputs` is the reference `{uri, sha256, size}` to where they are.
    pub spilled: bool,
    /// Why, unless the status is ok.
    pub fault: Option<Fault>,
    /// Tries made, 0 where none was started.
    pub tries: u32,
    /// Unix ms of receipt by this worker.
    pub received_ms: u64,
    /// Unix ms of the last try's start, 0 where none was started.
    pub started_ms: u64,
    /// Unix ms of the decision.
    pub ended_ms: u64,
    /// How long the last try ran, in microseconds.
    pub ran_us: u64,
    /// Steps waiting on this shard at the decision.
    pub queue_depth: u32,
    /// Which start of this worker decided it.
    pub boot: u32,
    /// Under which epoch of the consumer's ownership; 0 where nobody owns.
    pub owner_epoch: u32,
}

impl Outcome {
    /// Whether its message goes to the dead letters: it was not done, and nobody wanted that.
    pub fn is_dead(&self) -> bool {
        let rejected = self.fault.as_ref().is_some_and(|fault| fault.code == Code::Rejected);
        !matches!(self.status, Status::Ok | Status::Cancelled) && !rejected
    }
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// It did what was asked.
    Ok = 1,
    /// It did not.
    Error = 2,
    /// Its budget ran out.
    Timeout = 3,
    /// Somebody stopped it.
    Cancelled = 4,
    /// It could not be read, or collides with another under its own name: a dead letter, never an answer.
    Quarantined = 5,
}

/// What is known of the effect on the outside. Every outcome that is not ok says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Effected {
    /// Nothing happened outside.
    None = 1,
    /// It happened.
    Applied = 2,
    /// It may have happened.
    Unknown = 3,
}

/// What is known of a try that another one followed. Lives on its core; a restart forgets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// From 1.
    pub number: u32,
    /// When it started, Unix ms.
    pub started_ms: u64,
    /// How long it ran.
    pub ran_us: u64,
    /// The machine-readable reason that it failed.
    pub code: Code,
    /// The reason for people; no more of it than [`crate::limits::TRIED_MESSAGE_BYTES_MAX`].
    pub message: Text,
}

impl Tried {
    /// A try that ended with this fault.
    pub fn new(number: u32, started_ms: u64, ran_us: u64, fault: &Fault) -> Tried {
        let cut = fault.message.floor_char_boundary(TRIED_MESSAGE_BYTES_MAX);
        Tried { number, started_ms, ran_us, code: fault.code, message: Text::from(&fault.message[..cut]) }
    }
}

/// Why something failed or was refused. Lives on its core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The machine-readable reason.
    pub code: Code,
    /// A fixed sentence without digits; the router reads digits and some words as a provider's fault.
    pub message: Text,
    /// Figures, field pointers, retry hints: JSON object text, or empty.
    pub details: Bytes,
    /// What the failed try did outside.
    pub effect: Effected,
    /// The other side asked not to be tried again for this long, in milliseconds.
    pub retry_after_ms: Option<u64>,
}

impl Fault {
    /// A fault before anything happened outside.
    pub fn new(code: Code, message: &'static str) -> Self {
        Fault { code, message: Text::from_static(message), details: Bytes::new(), effect: Effected::None, retry_after_ms: None }
    }

    /// The same with details: the text of a JSON object.
    pub fn with_details(mut self, json_object: impl Into<Bytes>) -> Self {
        self.details = json_object.into();
        self
    }

    /// The same with another effect.
    pub fn with_effect(mut self, effect: Effected) -> Self {
        self.effect = effect;
        self
    }
}

macro_rules! codes {
    ($($variant:ident = $number:literal, $text:literal, $retryable:literal, $doc:literal;)*) => {
        /// The closed list of reasons; the number is the journal's, the text the wire's.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Code {
            $(#[doc = $doc] $variant = $number,)*
        }

        impl Code {
            /// Every code there is.
            pub const ALL: &'static [Code] = &[$(Code::$variant),*];

            /// As written on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $text),* }
            }

            /// Whether another try may help.
            pub fn retryable(self) -> bool {
                match self { $(Code::$variant => $retryable),* }
            }

            /// The code with this journal number.
            pub fn from_code(number: u8) -> Option<Self> {
                match number { $($number => Some(Code::$variant),)* _ => None }
            }
        }
    };
}

codes! {
    InvalidInput = 1, "INVALID_INPUT", false, "A field has a value its rule forbids.";
    MissingRequiredField = 2, "MISSING_REQUIRED_FIELD", false, "A required field is not there.";
    InvalidFormat = 3, "INVALID_FORMAT", false, "Not the form the field or message must have.";
    UnknownJobType = 4, "UNKNOWN_JOB_TYPE", false, "No block has this name.";
    PermissionDenied = 5, "PERMISSION_DENIED", false, "A policy forbids it.";
    QuotaExceeded = 6, "QUOTA_EXCEEDED", false, "A tenant's quota is used up.";
    ResourceUnavailable = 7, "RESOURCE_UNAVAILABLE", true, "Something it needs is not there now.";
    ExecutionFailed = 8, "EXECUTION_FAILED", false, "The block ran and failed.";
    NetworkError = 9, "NETWORK_ERROR", true, "The network failed.";
    ConnectionError = 10, "CONNECTION_ERROR", true, "No connection could be made or kept.";
    Timeout = 11, "TIMEOUT", false, "The budget ran out.";
    HttpError = 12, "HTTP_ERROR", false, "The server answered with a client error.";
    Http5xx = 13, "HTTP_5XX", true, "The server answered with a server error.";
    ProviderUnavailable = 14, "PROVIDER_UNAVAILABLE", true, "The provider is down.";
    SystemOverload = 15, "SYSTEM_OVERLOAD", true, "The worker is full.";
    InternalError = 16, "INTERNAL_ERROR", false, "The worker itself failed.";
    CancelledByUser = 17, "CANCELLED_BY_USER", false, "Somebody stopped it.";
    Expired = 18, "EXPIRED", false, "It came after its time.";
    KeyConflict = 19, "KEY_CONFLICT", false, "The same key stands for other content.";
    Indeterminate = 20, "INDETERMINATE", false, "It may have happened; it is not run again.";
    Poison = 21, "POISON", false, "It kills whoever runs it.";
    SignatureInvalid = 22, "SIGNATURE_INVALID", false, "The signature does not hold.";
    Rejected = 23, "REJECTED", false, "People were asked, and did not approve.";
}

impl Status {
    /// The status with this journal code.
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Status::Ok,
            2 => Status::Error,
            3 => Status::Timeout,
            4 => Status::Cancelled,
            5 => Status::Quarantined,
            _ => return None,
        })
    }
}

impl Effected {
    /// The value with this journal code.
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Effected::None,
            2 => Effected::Applied,
            3 => Effected::Unknown,
            _ => return None,
        })
    }

    /// As written on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Effected::None => "none",
            Effected::Applied => "applied",
            Effected::Unknown => "unknown",
        }
    }
}
