//! The configuration as resolved: checked, complete, with a small struct for each part of the worker.
//!
//! Nothing below the wiring sees the configuration as written ([`crate::config`]).

use std::path::PathBuf;

/// How the edge talks to NATS. Shared, never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsSettings {
    /// Comma-separated server URLs.
    pub url: String,
    /// JetStream, core, or whichever a subject has.
    pub mode: NatsMode,
    /// Create missing streams.
    pub provision: bool,
    /// Replicas of created streams.
    pub replicas: usize,
    /// Subjects that assignments come on; wildcards allowed.
    pub assign_subjects: Vec<String>,
    /// Subject of acks (default `caf.exec.assign.v1.ack`).
    pub ack_subject: String,
    /// Subject of results.
    pub result_subject: String,
    /// Subject of heartbeats.
    pub heartbeat_subject: String,
    /// Subject of dead letters.
    pub dlq_subject: String,
    /// Lifecycle events go to `<prefix>.<tenant_id>`.
    pub events_prefix: String,
    /// Milliseconds between heartbeats.
    pub heartbeat_ms: u64,
    /// The consumer's ack_wait, in milliseconds.
    pub ack_wait_ms: u64,
    /// Name of the durable consumer and of the core queue group.
    pub durable: String,
    /// How to identify to the server.
    pub auth: NatsAuth,
    /// Transport security.
    pub tls: NatsTls,
}

/// Whether streams are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NatsMode {
    /// JetStream where a stream covers the subject, core on a definite "none".
    Auto,
    /// A stream must cover every assign subject.
    JetStream,
    /// Never a stream.
    Core,
}

/// Credentials, at most one kind.
#[derive(Clone, PartialEq, Eq, Default)]
pub enum NatsAuth {
    /// None.
    #[default]
    Anonymous,
    /// A `.creds` file.
    Creds(PathBuf),
    /// A file with an nkey seed.
    Nkey(PathBuf),
    /// User and password.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// A token.
    Token(String),
}

impl std::fmt::Debug for NatsAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            NatsAuth::Anonymous => "Anonymous",
            NatsAuth::Creds(_) => "Creds",
            NatsAuth::Nkey(_) => "Nkey",
            NatsAuth::Password { .. } => "Password",
            NatsAuth::Token(_) => "Token",
        })
    }
}

/// Transport security towards NATS.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NatsTls {
    /// Refuse a connection without TLS.
    pub required: bool,
    /// Additional root certificates (PEM).
    pub ca: Option<PathBuf>,
    /// Client certificate (PEM).
    pub cert: Option<PathBuf>,
    /// Its key (PEM).
    pub key: Option<PathBuf>,
}
