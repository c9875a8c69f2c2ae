//! The configuration as resolved: checked, complete, with a small struct for each part of the worker.
//!
//! Nothing below the wiring sees the configuration as written ([`crate::config`]). Of two places that name a key the
//! first of these decides: flag, `ENDSTATION__SECTION__KEY`, a variable of the older worker, file, default.

mod databases;
mod keys;
mod memory;
mod providers;
mod reach;
mod resolve;
mod stores;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use shards::ids::Salt;
use shards::limits::Limits;
use shards::runtime::layout::Lists;

use crate::blocks::CacheSettings;
use crate::config::{ConfigError, ConfigFault, FILE, Origin};
use crate::policy::PolicySettings;

/// Everything the worker is told, checked. Shared, never changes while the process runs.
#[derive(Clone)]
pub struct Settings {
    /// Who this worker is: one part of a subject.
    pub worker_id: String,
    /// The deployment's secret as written; [`Settings::salt`] makes the salt of it. None: agreed on or made up at start.
    pub key_salt: Option<String>,
    /// Where the journal is kept.
    pub storage_dir: PathBuf,
    /// Where the tenants' blobs are kept; created if missing.
    pub blobs_dir: PathBuf,
    /// The connector whose store keeps outputs that are too large for a message; none: the tenants' own blobs do.
    pub outputs: Option<String>,
    /// How to talk to NATS.
    pub nats: NatsSettings,
    /// The bounds of one shard, but for `journal_bytes_max`, which all shards share: see [`Settings::shard_limits`].
    pub limits: Limits,
    /// Who runs where.
    pub cores: Lists,
    /// The gpu lane, where there is one.
    pub gpu: Option<gpu::Settings>,
    /// Steps that may run at once in this process, over all shards.
    pub running_max_process: Option<u32>,
    /// What the worker's own store of dead letters may take, in bytes; none: it keeps none.
    pub dlq_bytes_max: Option<u64>,
    /// Whether observers get lifecycle events.
    pub events: bool,
    /// How calls are served, if they are.
    pub grpc: Option<GrpcSettings>,
    /// Where health and metrics are served.
    pub ops_bind: SocketAddr,
    /// The approval page is shown, and this is where people reach it: a URL without a slash at its end.
    pub approvals: Option<String>,
    /// How long a stopping worker lets running steps end, in milliseconds.
    pub grace_ms: u64,
    /// The least important log lines that are written.
    pub log_level: tracing::Level,
    /// What tenants may do, and the places that there are.
    pub policy: PolicySettings,
    /// What is kept of outputs.
    pub cache: CacheSettings,
    rows: Vec<Row>,
}

/// One key as it was decided. Shared, never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The key, dotted.
    pub key: Cow<'static, str>,
    /// Its value as written, or as derived where nothing was written; secrets are hidden.
    pub value: String,
    /// Who decided it.
    pub origin: Origin,
}

impl Settings {
    /// Reads `file` (`./endstation.toml` where none is named and it is there) and settles every key.
    ///
    /// `flags` are (key, value, name of the flag). Relative paths mean the working directory, wherever they are written.
    ///
    /// # Errors
    /// Everything that is wrong, all at once.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        flags: &[(&str, &str, &str)],
    ) -> Result<Settings, ConfigError> {
        let path = file.or_else(|| Some(Path::new(FILE)).filter(|path| path.exists()));
        let name = path.map(|path| path.display().to_string()).unwrap_or_default();
        let text = path.map(std::fs::read_to_string).transpose().map_err(|error| {
            let fault = ConfigFault::Unreadable { path: name.clone(), why: error.to_string() };
            ConfigError { faults: vec![fault] }
        })?;
        Settings::of(text.as_deref().map(|text| (name.as_str(), text)), env, flags)
    }

    /// Settles every key of a file that has been read (its name and text), as [`Settings::load`] does.
    ///
    /// # Errors
    /// Everything that is wrong, all at once.
    pub fn of(
        file: Option<(&str, &str)>,
        env: impl Iterator<Item = (String, String)>,
        flags: &[(&str, &str, &str)],
    ) -> Result<Settings, ConfigError> {
        resolve::settings(file, env, flags)
    }

    /// Every key with its value (secrets hidden) and who decided it, section by section.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Whether the memory that this process may use made a bound smaller than it would be.
    pub fn memory_is_short(&self) -> bool {
        self.rows.iter().any(|row| matches!(row.origin, Origin::Memory { .. }))
    }

    /// Whether somebody chose the worker's id, rather than taking the host's name.
    pub fn worker_id_chosen(&self) -> bool {
        self.rows.iter().any(|row| row.key == "worker.id" && row.origin != Origin::Default)
    }

    /// The salt that `key_salt` stands for: 64 hexadecimal digits are taken as they are, any other text is hashed.
    pub fn salt(&self) -> Option<Salt> {
        let text = self.key_salt.as_deref()?;
        Some(Salt(hex_32(text).unwrap_or_else(|| Sha256::digest(text.as_bytes()).into())))
    }

    /// The bounds of shard `index` of `shards`: its part of what the whole process may run, and of the journal's bytes.
    ///
    /// A shard that may run nothing would strand its tenants, so each gets at least one: with more shards than
    /// `running_max_process` the process may run one step a shard.
    pub fn shard_limits(&self, index: usize, shards: usize) -> Limits {
        let mut limits = self.limits.clone();
        let shards = shards.max(1);
        if let Some(all) = self.running_max_process {
            let shards = u32::try_from(shards).unwrap_or(u32::MAX);
            let part = all / shards + u32::from((index as u64) < u64::from(all % shards));
            limits.shard_running_max = limits.shard_running_max.min(part.max(1));
        }
        limits.journal_bytes_max /= shards as u64;
        limits
    }
}

impl Default for Settings {
    /// What a worker does that is told nothing.
    fn default() -> Self {
        resolve::settings(None, std::iter::empty(), &[]).expect("the defaults satisfy their own rules; a test says so")
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.rows.iter().map(|row| (&row.key, &row.value))).finish()
    }
}

fn hex_32(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// How the edge talks to NATS. Shared, never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsSettings {
    /// Comma-separated server URLs, without users, passwords and tokens: those are in `auth`.
    pub url: String,
    /// JetStream, core, or whichever a subject has.
    pub mode: NatsMode,
    /// Whether one worker owns a consumer or several share it.
    pub ownership: Ownership,
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

/// Who may take from a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// One worker at a time; others stand by.
    Exclusive,
    /// All of them at once: each then keeps its promises for itself alone.
    Shared,
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

/// How calls are served. Shared, never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcSettings {
    /// Where.
    pub bind: SocketAddr,
    /// Transport security; none: whoever reaches the address may call.
    pub tls: Option<GrpcTls>,
    /// The largest message that is taken, in bytes.
    pub message_bytes_max: usize,
    /// Whether there are events to watch.
    pub events: bool,
}

/// Transport security towards those who call. Shared, never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcTls {
    /// Our certificate, with those between it and its root (PEM).
    pub cert: PathBuf,
    /// Its key (PEM).
    pub key: PathBuf,
    /// Who signs callers' certificates (PEM); none: callers need no certificate.
    pub client_ca: Option<PathBuf>,
}
