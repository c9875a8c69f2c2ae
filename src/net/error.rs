//! Why an exchange came to no answer.

use thiserror::Error;

use super::egress::Denial;

/// What went wrong. Lives on its core.
#[derive(Debug, Error)]
pub enum NetError {
    /// The guard or a policy forbids it.
    #[error("denied: {0}")]
    Denied(Denial),
    /// The name has no address.
    #[error("there is no such name")]
    NoSuchName,
    /// The resolver did not answer, or is not configured.
    #[error("the resolver: {0}")]
    Unresolved(String),
    /// No address took a connection.
    #[error("no connection: {0}")]
    Unreachable(String),
    /// The other side's certificate does not hold.
    #[error("certificate: {0}")]
    Untrusted(String),
    /// No TLS with the other side for another reason.
    #[error("TLS: {0}")]
    Tls(String),
    /// A wait was over.
    #[error("{} took longer than {ms} ms", .phase.as_str())]
    Late {
        /// Which one.
        phase: Phase,
        /// How long it was, in milliseconds.
        ms: u64,
    },
    /// The connection broke, or what came on it is not HTTP.
    #[error("{0}")]
    Broken(String),
    /// The proxy let nothing through.
    #[error("the proxy: {0}")]
    Proxy(String),
    /// More redirects than the step allows.
    #[error("more than {0} redirects")]
    Redirects(u32),
    /// The encoded body is not what it says, or becomes larger than it may.
    #[error(transparent)]
    Encoding(#[from] super::decode::DecodeError),
    /// A blob that is sent could not be read.
    #[error("the blob could not be read")]
    Blob,
    /// A secret could not be read.
    #[error("secret: {0}")]
    Secret(String),
    /// Too much is under way already.
    #[error("too many lookups are under way")]
    Full,
}

/// The waits of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Resolving the name.
    Dns,
    /// Connecting, TLS included.
    Connect,
    /// From the whole request to the head of its answer.
    FirstByte,
    /// Between two pieces of a body.
    Stall,
}

impl Phase {
    /// As written in details and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Dns => "dns",
            Phase::Connect => "connect",
            Phase::FirstByte => "first_byte",
            Phase::Stall => "stall",
        }
    }
}

/// An exchange that failed, and whether any of its request may have reached the other side. Lives on its core.
#[derive(Debug)]
pub struct Failure {
    /// Why.
    pub error: NetError,
    /// Whether the other side may have acted on it.
    pub sent: bool,
}

impl Failure {
    /// One before anything was sent.
    pub fn unsent(error: NetError) -> Self {
        Failure { error, sent: false }
    }

    /// One after something may have been.
    pub fn sent(error: NetError) -> Self {
        Failure { error, sent: true }
    }
}

impl From<Denial> for NetError {
    fn from(denial: Denial) -> Self {
        NetError::Denied(denial)
    }
}
