//! The configuration as written: what the file, the environment and the command line say, with where each word stands.
//!
//! Nothing here is checked beyond its name: a [`Layer`] is one place that says something, and the first layer that names
//! a key decides. What the words mean is [`crate::settings`]' business, and nothing else reads this.

mod error;
mod older;
mod rules;
mod subject;
mod units;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub use error::{ConfigError, ConfigFault};
pub(crate) use rules::{
    Rule, choice, core_list, devices, duration, flag, name, number, path, servers, size, socket, sockets, text, words,
};
pub(crate) use subject::{SUBJECT_BYTES_MAX, overlap, subject, subjects};
pub(crate) use units::{bytes_text, duration_text, parse_duration};

/// The file that is read where none is named and it is there.
pub const FILE: &str = "endstation.toml";
/// What environment variables of ours begin with; the rest is `SECTION__KEY`.
pub const PREFIX: &str = "ENDSTATION__";

/// One value as written, if it is.
pub(crate) type Leaf = Option<Spanned<toml::Value>>;

/// Everything one layer may say. `examples/endstation.toml` explains each key.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Written {
    pub(crate) storage: Storage,
    pub(crate) journal: Journal,
    pub(crate) dlq: Dlq,
    pub(crate) events: Events,
    pub(crate) nats: Nats,
    pub(crate) limits: Limits,
    pub(crate) cores: Cores,
    pub(crate) gpu: Gpu,
    pub(crate) grpc: Grpc,
    pub(crate) ops: Ops,
    pub(crate) worker: Worker,
    pub(crate) shutdown: Shutdown,
    pub(crate) log: Log,
    pub(crate) net: Net,
    pub(crate) tenants: BTreeMap<String, Tenant>,
    pub(crate) connectors: BTreeMap<String, Connector>,
    pub(crate) keys: BTreeMap<String, Key>,
    pub(crate) signers: BTreeMap<String, Signer>,
    pub(crate) policy: Policy,
}

/// `[storage]`: where things are kept.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Storage {
    pub(crate) dir: Leaf,
    pub(crate) blobs_dir: Leaf,
    pub(crate) outputs: Leaf,
}

/// `[journal]`: how much is remembered.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Journal {
    pub(crate) bytes_max: Leaf,
    pub(crate) horizon: Leaf,
    pub(crate) horizon_min: Leaf,
}

/// `[dlq]`: what the worker keeps of its dead letters itself.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Dlq {
    pub(crate) bytes_max: Leaf,
}

/// `[events]`: what observers get.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Events {
    pub(crate) enabled: Leaf,
}

/// `[nats]`: where work comes from and answers go.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Nats {
    pub(crate) url: Leaf,
    pub(crate) mode: Leaf,
    pub(crate) ownership: Leaf,
    pub(crate) provision: Leaf,
    pub(crate) replicas: Leaf,
    pub(crate) assign_subjects: Leaf,
    pub(crate) ack_subject: Leaf,
    pub(crate) result_subject: Leaf,
    pub(crate) heartbeat_subject: Leaf,
    pub(crate) dlq_subject: Leaf,
    pub(crate) events_prefix: Leaf,
    pub(crate) heartbeat: Leaf,
    pub(crate) ack_wait: Leaf,
    pub(crate) durable: Leaf,
    pub(crate) creds: Leaf,
    pub(crate) nkey: Leaf,
    pub(crate) user: Leaf,
    pub(crate) password: Leaf,
    pub(crate) token: Leaf,
    pub(crate) tls: Tls,
}

/// `[nats.tls]`: transport security.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Tls {
    pub(crate) required: Leaf,
    pub(crate) ca: Leaf,
    pub(crate) cert: Leaf,
    pub(crate) key: Leaf,
}

/// `[limits]`: how much at once.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    pub(crate) tenant_running: Leaf,
    pub(crate) tenant_queued: Leaf,
    pub(crate) shard_running: Leaf,
    pub(crate) shard_queued: Leaf,
    pub(crate) tenant_approvals: Leaf,
    pub(crate) cpu_running: Leaf,
    pub(crate) gpu_running: Leaf,
    pub(crate) tenant_memory: Leaf,
    pub(crate) shard_memory: Leaf,
    pub(crate) tenant_cache: Leaf,
    pub(crate) shard_cache: Leaf,
    pub(crate) shard_held_bytes: Leaf,
    pub(crate) process_running: Leaf,
    pub(crate) payload_bytes: Leaf,
    pub(crate) inline_result_bytes: Leaf,
    pub(crate) unpublished: Leaf,
    pub(crate) default_budget: Leaf,
    pub(crate) on_overload: Leaf,
    pub(crate) stall: Leaf,
}

/// `[cores]`: who runs where.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Cores {
    pub(crate) shards: Leaf,
    pub(crate) edge: Leaf,
    pub(crate) cpu: Leaf,
    pub(crate) gpu: Leaf,
}

/// `[gpu]`: what computes the gpu lane's steps.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Gpu {
    pub(crate) devices: Leaf,
    pub(crate) fallback: Leaf,
    pub(crate) memory: Leaf,
}

/// `[grpc]`: who may call.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Grpc {
    pub(crate) bind: Leaf,
    pub(crate) tls: GrpcTls,
}

/// `[grpc.tls]`: transport security towards callers.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct GrpcTls {
    pub(crate) cert: Leaf,
    pub(crate) key: Leaf,
    pub(crate) client_ca: Leaf,
}

/// `[ops]`: what operators see.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Ops {
    pub(crate) bind: Leaf,
    pub(crate) approvals: Leaf,
    pub(crate) url: Leaf,
}

/// `[worker]`: who it is.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Worker {
    pub(crate) id: Leaf,
    pub(crate) key_salt: Leaf,
}

/// `[shutdown]`: how it stops.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Shutdown {
    pub(crate) grace: Leaf,
}

/// `[log]`: what it says.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Log {
    pub(crate) level: Leaf,
}

/// `[net]`: the way out.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Net {
    pub(crate) dns: Leaf,
    pub(crate) proxy: Leaf,
    pub(crate) proxy_user: Leaf,
    pub(crate) proxy_password: Leaf,
    pub(crate) no_proxy: Leaf,
}

/// `[tenants.<id>]`: what a tenant's steps may do; `default` is for all that have no section of their own.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Tenant {
    pub(crate) scopes: Leaf,
    pub(crate) require_signature: Leaf,
}

/// `[connectors.<name>]`: a place that steps reach by its name: an HTTP server, with `store` an object store, or with `kind` a
/// database.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Connector {
    pub(crate) tenants: Leaf,
    pub(crate) url: Leaf,
    pub(crate) allow: Leaf,
    pub(crate) bearer: Leaf,
    pub(crate) user: Leaf,
    pub(crate) password: Leaf,
    pub(crate) header: Leaf,
    pub(crate) value: Leaf,
    pub(crate) idempotency_key: Leaf,
    pub(crate) ca: Leaf,
    pub(crate) cert: Leaf,
    pub(crate) key: Leaf,
    pub(crate) direct: Leaf,
    pub(crate) store: Leaf,
    pub(crate) endpoint: Leaf,
    pub(crate) bucket: Leaf,
    pub(crate) region: Leaf,
    pub(crate) prefix: Leaf,
    pub(crate) access_key: Leaf,
    pub(crate) secret_key: Leaf,
    pub(crate) session_token: Leaf,
    pub(crate) credential: Leaf,
    pub(crate) account: Leaf,
    pub(crate) account_key: Leaf,
    pub(crate) sas_token: Leaf,
    pub(crate) bytes_max: Leaf,
    pub(crate) stall: Leaf,
    pub(crate) if_absent: Leaf,
    pub(crate) provider: Leaf,
    pub(crate) models: Leaf,
    pub(crate) price_in: Leaf,
    pub(crate) price_out: Leaf,
    pub(crate) currency: Leaf,
    pub(crate) kind: Leaf,
    pub(crate) host: Leaf,
    pub(crate) port: Leaf,
    pub(crate) database: Leaf,
    pub(crate) tls: Leaf,
    pub(crate) max_connections: Leaf,
    pub(crate) pooler: Leaf,
    pub(crate) trace: Leaf,
    pub(crate) dedup: Leaf,
    pub(crate) read_only: Leaf,
    pub(crate) statement_timeout: Leaf,
    pub(crate) lock_timeout: Leaf,
}

/// `[keys.<name>]`: what steps sign and verify with.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Key {
    pub(crate) tenants: Leaf,
    pub(crate) algorithm: Leaf,
    pub(crate) secret: Leaf,
    pub(crate) public: Leaf,
}

/// `[signers.<name>]`: whose signatures on messages hold.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Signer {
    pub(crate) tenants: Leaf,
    pub(crate) public: Leaf,
    pub(crate) scopes: Leaf,
    pub(crate) not_before: Leaf,
    pub(crate) not_after: Leaf,
}

/// `[policy]`: where more of tenants, connectors, keys and signers is written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Policy {
    pub(crate) files: Leaf,
}

/// What a policy file may say.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Sections {
    tenants: BTreeMap<String, Tenant>,
    connectors: BTreeMap<String, Connector>,
    keys: BTreeMap<String, Key>,
    signers: BTreeMap<String, Signer>,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// Nobody said anything, and this machine is too small for the default.
    Memory {
        /// The limit of its control group, in bytes.
        limit: u64,
    },
    /// A file.
    File {
        /// As it was named.
        path: String,
        /// From 1.
        line: usize,
    },
    /// An environment variable, by name.
    Env(String),
    /// A command-line flag, with its dashes.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Memory { limit } => write!(f, "memory limit of the control group ({})", bytes_text(*limit)),
            Origin::File { path, line } => write!(f, "file {path}:{line}"),
            Origin::Env(name) => write!(f, "env {name}"),
            Origin::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// One place that says something: the file with all its keys, or one variable or flag with its one key.
pub(crate) struct Layer {
    written: Written,
    source: Source,
}

enum Source {
    File { path: String, text: String },
    Word(Origin),
}

impl Layer {
    /// What this layer says of a key, and where.
    pub(crate) fn find<'a>(&'a self, leaf: impl Fn(&'a Written) -> Option<&'a Leaf>) -> Option<(&'a toml::Value, Origin)> {
        let spanned = leaf(&self.written)?.as_ref()?;
        let origin = match &self.source {
            Source::File { path, text } => Origin::File { path: path.clone(), line: line(text, spanned.span().start) },
            Source::Word(origin) => origin.clone(),
        };
        Some((spanned.get_ref(), origin))
    }

    /// The names of the tables that stand in a section of this layer.
    pub(crate) fn names<'a, T: 'a>(&'a self, section: fn(&Written) -> &BTreeMap<String, T>) -> impl Iterator<Item = &'a String> {
        section(&self.written).keys()
    }

    fn file(path: &str, text: &str) -> Result<Layer, ConfigFault> {
        Layer::written(path, text, |written| written)
    }

    /// A file of which only some sections are known.
    fn policy(path: &str, text: &str) -> Result<Layer, ConfigFault> {
        Layer::written(path, text, |Sections { tenants, connectors, keys, signers }| Written {
            tenants,
            connectors,
            keys,
            signers,
            ..Written::default()
        })
    }

    fn written<T: DeserializeOwned>(path: &str, text: &str, known: fn(T) -> Written) -> Result<Layer, ConfigFault> {
        match toml::from_str(text).map(known) {
            Ok(written) => Ok(Layer { written, source: Source::File { path: path.to_owned(), text: text.to_owned() } }),
            Err(error) => {
                let span = error.span().unwrap_or_default();
                let origin = Origin::File { path: path.to_owned(), line: line(text, span.start) };
                Err(match unknown_field(error.message()) {
                    Some((field, known)) => {
                        let key = DeTable::parse(text).ok().and_then(|table| key_at(table.get_ref(), &span));
                        ConfigFault::UnknownKey { key: key.unwrap_or_else(|| spelt(field)), origin, known }
                    }
                    // Told in serde's words, the value would be repeated, and it may be a secret in the wrong place.
                    None if error.message().starts_with("invalid type: ") => {
                        ConfigFault::Syntax { what: "here belongs a section with keys, and no value".to_owned(), origin }
                    }
                    None => ConfigFault::Syntax { what: error.message().to_owned(), origin },
                })
            }
        }
    }

    /// Sections that stand in this file and in another: whoever reads one of them would take it for all that is said.
    fn repeats(&self, other: &Layer) -> Vec<ConfigFault> {
        let (Source::File { path, text }, Source::File { path: before, .. }) = (&self.source, &other.source) else {
            return Vec::new();
        };
        let (one, two) = (&self.written, &other.written);
        let named = |section: &'static str, known: Vec<&String>, others: Vec<&String>| {
            let both: Vec<String> = known.into_iter().filter(|name| others.contains(name)).cloned().collect();
            both.into_iter().map(move |name| {
                let origin = Origin::File { path: path.clone(), line: section_line(text, section, &name) };
                ConfigFault::Syntax { what: format!("[{section}.{}] stands in {before}, too", spelt(&name)), origin }
            })
        };
        named("tenants", one.tenants.keys().collect(), two.tenants.keys().collect())
            .chain(named("connectors", one.connectors.keys().collect(), two.connectors.keys().collect()))
            .chain(named("keys", one.keys.keys().collect(), two.keys.keys().collect()))
            .chain(named("signers", one.signers.keys().collect(), two.signers.keys().collect()))
            .collect()
    }

    /// A variable or flag is read as a one-line file, so that one schema serves all.
    fn word(key: &str, value: &str, origin: Origin) -> Result<Layer, ConfigFault> {
        let unknown = |known| ConfigFault::UnknownKey { key: key.to_owned(), origin: origin.clone(), known };
        let bare = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
        if !key.split('.').all(bare) {
            return Err(unknown(String::new()));
        }
        let line = format!("{key} = {}", toml::Value::from(value));
        match toml::from_str(&line) {
            Ok(written) => Ok(Layer { written, source: Source::Word(origin) }),
            Err(error) => Err(unknown(unknown_field(error.message()).map(|(_, known)| known).unwrap_or_default())),
        }
    }
}

/// The files that these layers name as policies, behind the layers: nobody but flags and variables says more of what stands in one.
pub(crate) fn with_policies(layers: &mut Vec<Layer>, faults: &mut Vec<ConfigFault>) {
    let named = layers.iter().find_map(|layer| layer.find(|written| Some(&written.policy.files)));
    // What is wrong with the list itself is said where it is settled.
    let Some(listed) = named.and_then(|(value, _)| words(value)) else { return };
    for path in listed.iter().flat_map(|listed| policy_files(Path::new(listed))) {
        let name = path.display().to_string();
        let unreadable = |error: std::io::Error| ConfigFault::Unreadable { path: name.clone(), why: error.to_string() };
        let layer = std::fs::read_to_string(&path).map_err(unreadable).and_then(|text| Layer::policy(&name, &text));
        match layer {
            Ok(layer) => {
                faults.extend(layers.iter().flat_map(|before| layer.repeats(before)));
                layers.push(layer);
            }
            Err(fault) => faults.push(fault),
        }
    }
}

/// A file, or those in a folder whose names end in `.toml`, by name.
fn policy_files(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(path) else { return vec![path.to_owned()] };
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    files
}

/// All layers, the one that decides first in front; and everything that has no place in them.
pub(crate) fn layers(
    file: Option<(&str, &str)>,
    env: impl Iterator<Item = (String, String)>,
    flags: &[(&str, &str, &str)],
) -> (Vec<Layer>, Vec<ConfigFault>) {
    let env: BTreeMap<String, String> = env.collect();
    let flags = flags.iter().map(|(key, value, name)| Layer::word(key, value, Origin::Flag((*name).to_owned())));
    let ours = env.iter().filter_map(|(name, value)| {
        let rest = name.strip_prefix(PREFIX)?;
        // Only the upper-case spelling is a key's name; another must not quietly do nothing.
        let upper = !rest.is_empty() && !rest.bytes().any(|b| b.is_ascii_lowercase());
        let key = if upper { rest.to_lowercase().replace("__", ".") } else { name.clone() };
        Some(Layer::word(&key, value, Origin::Env(name.clone())))
    });
    // An older variable that is empty was never set: start scripts pass them on blindly.
    let older = older::NAMES.iter().filter_map(|(name, key, form)| {
        let value = env.get(*name).filter(|value| !value.is_empty())?;
        Some(Layer::word(key, &older::modern(*form, value), Origin::Env((*name).to_owned())))
    });
    let file = file.map(|(path, text)| Layer::file(path, text));

    let (mut layers, mut faults) = (Vec::new(), Vec::new());
    for layer in flags.chain(ours).chain(older).chain(file) {
        match layer {
            Ok(layer) => layers.push(layer),
            Err(fault) => faults.push(fault),
        }
    }
    (layers, faults)
}

/// The environment of this process; variables that are not UTF-8 cannot be ours.
pub fn process_env() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

fn line(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|b| *b == b'\n').count()
}

/// The field and the list of known ones out of serde's message for a field that is not in the structure.
fn unknown_field(message: &str) -> Option<(&str, String)> {
    let (field, rest) = message.strip_prefix("unknown field `")?.split_once('`')?;
    let known = rest.split_once("expected ").map_or("", |(_, known)| known).trim_start_matches("one of ");
    Some((field, known.replace('`', "")))
}

/// A key's part as a person can see it: one that is empty or has odd characters in it stands in quotes.
fn spelt(part: &str) -> String {
    let bare = !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    if bare { part.to_owned() } else { format!("{part:?}") }
}

/// Where a table of a section begins.
fn section_line(text: &str, section: &str, name: &str) -> usize {
    let found = DeTable::parse(text).ok().and_then(|table| {
        let inner = table.get_ref().get(section)?.get_ref().as_table()?;
        inner.iter().find(|(key, _)| key.get_ref() == name).map(|(key, _)| key.span().start)
    });
    line(text, found.unwrap_or(0))
}

/// The dotted name of the key that is written at `span`.
fn key_at(table: &DeTable<'_>, span: &Range<usize>) -> Option<String> {
    table.iter().find_map(|(key, value)| {
        let name = spelt(key.get_ref());
        if key.span() == *span {
            return Some(name);
        }
        match value.get_ref() {
            DeValue::Table(inner) => key_at(inner, span).map(|rest| format!("{name}.{rest}")),
            _ => None,
        }
    })
}
