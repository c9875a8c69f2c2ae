//! From layers to [`Settings`]: each key meets its rule once, then the rules between keys.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::path::PathBuf;

use gpu::{Devices, Fallback};
use shards::limits::{BUDGET_MS_MAX, Limits, MESSAGE_BYTES_MAX, OnOverload, RUNNING_PER_SHARD_MAX};
use shards::runtime::layout::{Layout, Lists};
use toml::Value;
use tracing::Level;

use super::{GrpcSettings, GrpcTls, NatsAuth, NatsMode, NatsSettings, NatsTls, Ownership, Row, Settings};
use crate::blocks::CacheSettings;
use crate::config::{
    self, ConfigError, ConfigFault, Layer, Leaf, Origin, Rule, SUBJECT_BYTES_MAX, Written, bytes_text, choice, core_list,
    devices, duration, duration_text, flag, name, number, overlap, path, servers, size, socket, subject, subjects, text,
};
use crate::edge::native::OWN_PATTERNS;
use crate::secrets::SecretRef;

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;
const HORIZON_MS_MAX: u64 = 30 * DAY_MS;
const QUEUED_MAX: u32 = 10_000_000;
const UNPUBLISHED_MAX: u32 = 10_000_000;
const PROCESS_RUNNING_MAX: u32 = RUNNING_PER_SHARD_MAX * 1_024;
const HELD_BYTES_MAX: u64 = 1 << 40;
const MEMORY_BYTES_MAX: u64 = 1 << 44;
/// The largest buffer to hash fits into the share of one stream.
const GPU_MEMORY_BYTES_MIN: u64 = 256 << 20;
const FALLBACKS: &[(&str, Fallback)] = &[("none", Fallback::None), ("host", Fallback::Host)];
const JOURNAL_BYTES_MIN: u64 = 1 << 20;
const JOURNAL_BYTES_MAX: u64 = 1 << 50;
/// The budget of dead letters where nobody chose one.
const DLQ_BYTES_DEFAULT: u64 = 1 << 30;
const REPLICAS_MAX: u32 = 5;

const ASSIGN: &str = "caf.exec.assign.v1";
const HIDDEN: &str = "[REDACTED]";
const SECRETS: [&str; 3] = ["worker.key_salt", "nats.password", "nats.token"];
const MODES: &[(&str, NatsMode)] = &[("auto", NatsMode::Auto), ("jetstream", NatsMode::JetStream), ("core", NatsMode::Core)];
const OWNERSHIPS: &[(&str, Ownership)] = &[("exclusive", Ownership::Exclusive), ("shared", Ownership::Shared)];
const OVERLOADS: &[(&str, OnOverload)] = &[("delay", OnOverload::Delay), ("reject", OnOverload::Reject)];
const LEVELS: &[(&str, Level)] =
    &[("error", Level::ERROR), ("warn", Level::WARN), ("info", Level::INFO), ("debug", Level::DEBUG), ("trace", Level::TRACE)];

/// A key's dotted name and its place among what is written.
#[derive(Clone, Copy)]
struct Key {
    name: &'static str,
    leaf: fn(&Written) -> &Leaf,
}

macro_rules! key {
    ($first:ident $(. $rest:ident)+) => {
        Key { name: concat!(stringify!($first) $(, ".", stringify!($rest))+), leaf: |written| &written.$first $(. $rest)+ }
    };
}

/// Settles every key of a file (name and text), the environment and the flags.
pub(super) fn settings(
    file: Option<(&str, &str)>,
    env: impl Iterator<Item = (String, String)>,
    flags: &[(&str, &str, &str)],
) -> Result<Settings, ConfigError> {
    let (mut layers, mut faults) = config::layers(file, env, flags);
    config::with_policies(&mut layers, &mut faults);
    let mut desk = Desk { layers, rows: Vec::new(), faults };

    let storage_dir = desk.needed_path(key!(storage.dir), "./endstation-data");
    let blobs_dir = desk.take(key!(storage.blobs_dir), "", path).unwrap_or_else(|| storage_dir.join("blobs"));
    desk.derived("storage.blobs_dir", blobs_dir.display().to_string());
    let outputs = desk.optional_text(key!(storage.outputs));
    let (limits, running_max_process) = desk.limits();
    let dlq_bytes_max = desk.dlq(&limits);
    let events = desk.take(key!(events.enabled), "true", flag);
    let nats = desk.nats();
    let cores = Lists {
        shards: desk.take(key!(cores.shards), "", core_list),
        edge: desk.take(key!(cores.edge), "", core_list),
        cpu: desk.take(key!(cores.cpu), "", core_list),
        gpu: desk.take(key!(cores.gpu), "", core_list),
    };
    let gpu = desk.gpu(&cores);
    let grpc = desk.grpc(&limits, events);
    let ops_bind = desk.take(key!(ops.bind), "127.0.0.1:9091", socket);
    let approvals = desk.approvals(ops_bind);
    let worker_id = desk.take(key!(worker.id), "", |value| match value.as_str() {
        Some("") => Ok(host_name()),
        _ => name(value),
    });
    desk.derived("worker.id", worker_id.clone());
    let key_salt = desk.optional_text(key!(worker.key_salt));
    let grace_ms = desk.take(key!(shutdown.grace), "10s", duration(0..=HOUR_MS));
    let log_level = desk.take(key!(log.level), "info", choice(LEVELS));
    let policy = desk.policy(&nats, ops_bind, grpc.as_ref());
    let cache = desk.cache();
    if let Some(name) = &outputs
        && policy.stores.get(name).is_none_or(|store| !store.if_absent)
    {
        let rule = format!("must be the name of a connector with a store and if_absent: [connectors.{name}] is none");
        desk.fault("storage.outputs", rule);
    }

    if !desk.faults.is_empty() {
        return Err(ConfigError { faults: desk.faults });
    }
    Ok(Settings {
        worker_id,
        key_salt,
        storage_dir,
        blobs_dir,
        outputs,
        nats,
        limits,
        cores,
        gpu,
        running_max_process,
        dlq_bytes_max,
        events,
        grpc,
        ops_bind,
        approvals,
        grace_ms,
        log_level,
        policy,
        cache,
        rows: desk.rows,
    })
}

/// Where keys are settled one after the other; faults are collected, so that all of them can be said.
pub(super) struct Desk {
    pub(super) layers: Vec<Layer>,
    rows: Vec<Row>,
    faults: Vec<ConfigFault>,
}

/// An http or https URL without query, and without the slash at its end; nothing where it is empty.
fn web_url(value: &Value) -> Rule<Option<String>> {
    let text = value.as_str().unwrap_or("?");
    if text.is_empty() {
        return Ok(None);
    }
    let url = url::Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.host().is_some());
    let plain = |url: &url::Url| url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    match url.filter(plain) {
        Some(url) => Ok(Some(url.as_str().trim_end_matches('/').to_owned())),
        None => Err("must be an http or https URL without query, such as https://worker.example.com".to_owned()),
    }
}

impl Desk {
    /// The value of a key. Where it breaks its rule, that is noted and the default stands in.
    fn take<T>(&mut self, key: Key, default: &str, rule: impl Fn(&Value) -> Rule<T>) -> T {
        self.take_from(Cow::Borrowed(key.name), |written| Some((key.leaf)(written)), default, rule)
    }

    /// As [`Desk::take`], for a key whose name stands in no list.
    pub(super) fn take_from<T>(
        &mut self,
        name: Cow<'static, str>,
        leaf: impl for<'a> Fn(&'a Written) -> Option<&'a Leaf>,
        default: &str,
        rule: impl Fn(&Value) -> Rule<T>,
    ) -> T {
        let found = self.layers.iter().find_map(|layer| layer.find(&leaf));
        let (outcome, value, origin) = match found {
            Some((value, origin)) => (rule(value), shown(&name, value), origin),
            None => (Err(String::new()), shown(&name, &Value::from(default)), Origin::Default),
        };
        let written = origin != Origin::Default;
        self.rows.push(Row { key: name.clone(), value, origin });
        match outcome {
            Ok(value) => return value,
            Err(rule) if written => self.fault(&name, rule),
            Err(_) => {}
        }
        rule(&Value::from(default)).unwrap_or_else(|rule| panic!("the default of {name} breaks its own rule: {rule}"))
    }

    /// A path that cannot be empty.
    fn needed_path(&mut self, key: Key, default: &str) -> PathBuf {
        self.take(key, default, |value| path(value)?.ok_or_else(|| "must be a path, not empty".to_owned()))
    }

    /// A text; empty for none.
    fn optional_text(&mut self, key: Key) -> Option<String> {
        Some(self.take(key, "", text)).filter(|text| !text.is_empty())
    }

    /// Shows what a key came to where nothing was written, or an empty text.
    fn derived(&mut self, key: &'static str, value: String) {
        if let Some(row) = self.rows.iter_mut().find(|row| row.key == key) {
            row.value = value;
        }
    }

    /// Notes that the settled value of a key breaks a rule.
    pub(super) fn fault(&mut self, key: &str, rule: String) {
        let row = self.rows.iter().find(|row| row.key == key).expect("rules between keys come after the keys");
        let value = if row.value.is_empty() { "\"\"".to_owned() } else { row.value.clone() };
        self.faults.push(ConfigFault::BadValue { key: row.key.clone(), value, rule, origin: row.origin.clone() });
    }

    /// Whether a key breaks a rule that was noted.
    pub(super) fn is_faulty(&self, name: &str) -> bool {
        self.faults.iter().any(|fault| matches!(fault, ConfigFault::BadValue { key, .. } if key == name))
    }

    fn cache(&mut self) -> CacheSettings {
        let d = CacheSettings::default();
        let bytes = || size(0..=MEMORY_BYTES_MAX);
        CacheSettings {
            tenant_bytes_max: self.take(key!(limits.tenant_cache), &bytes_text(d.tenant_bytes_max), bytes()),
            shard_bytes_max: self.take(key!(limits.shard_cache), &bytes_text(d.shard_bytes_max), bytes()),
        }
    }

    /// Where people reach the approval page, if it is shown.
    fn approvals(&mut self, bind: SocketAddr) -> Option<String> {
        let shown = self.take(key!(ops.approvals), "false", flag);
        let url = self.take(key!(ops.url), "", web_url);
        match (shown, url) {
            (false, Some(_)) => {
                self.fault("ops.url", "is where people reach the approval page, which ops.approvals does not show".to_owned());
                None
            }
            (false, None) => None,
            (true, url) => Some(url.unwrap_or_else(|| format!("http://{bind}"))),
        }
    }

    fn limits(&mut self) -> (Limits, Option<u32>) {
        let d = Limits::default();
        let running = || number(1..=RUNNING_PER_SHARD_MAX);
        let queued = || number(1..=QUEUED_MAX);
        let message = || size(1..=MESSAGE_BYTES_MAX as u64);
        let memory = || size(1..=MEMORY_BYTES_MAX);
        let horizon = || duration(1_000..=HORIZON_MS_MAX);
        let journal_bytes = size(JOURNAL_BYTES_MIN..=JOURNAL_BYTES_MAX);
        let budget = duration(1..=BUDGET_MS_MAX);
        let on_overload = OVERLOADS.iter().find(|(_, meaning)| *meaning == d.on_overload).map_or("", |(word, _)| word);
        let limits = Limits {
            journal_bytes_max: self.take(key!(journal.bytes_max), &bytes_text(d.journal_bytes_max), journal_bytes),
            horizon_ms: self.take(key!(journal.horizon), &duration_text(d.horizon_ms), horizon()),
            horizon_min_ms: self.take(key!(journal.horizon_min), &duration_text(d.horizon_min_ms), horizon()),
            tenant_running_max: self.take(key!(limits.tenant_running), &d.tenant_running_max.to_string(), running()),
            tenant_queued_max: self.take(key!(limits.tenant_queued), &d.tenant_queued_max.to_string(), queued()),
            tenant_parked_max: self.take(key!(limits.tenant_approvals), &d.tenant_parked_max.to_string(), number(1..=QUEUED_MAX)),
            shard_running_max: self.take(key!(limits.shard_running), &d.shard_running_max.to_string(), running()),
            shard_queued_max: self.take(key!(limits.shard_queued), &d.shard_queued_max.to_string(), queued()),
            cpu_running_max: self.take(key!(limits.cpu_running), "0", number(0..=RUNNING_PER_SHARD_MAX)),
            gpu_running_max: self.take(key!(limits.gpu_running), &d.gpu_running_max.to_string(), running()),
            tenant_memory_bytes_max: self.take(key!(limits.tenant_memory), &bytes_text(d.tenant_memory_bytes_max), memory()),
            shard_memory_bytes_max: self.take(key!(limits.shard_memory), &bytes_text(d.shard_memory_bytes_max), memory()),
            shard_held_bytes_max: self.take(
                key!(limits.shard_held_bytes),
                &bytes_text(d.shard_held_bytes_max),
                size(1..=HELD_BYTES_MAX),
            ),
            payload_bytes_max: self.take(key!(limits.payload_bytes), &bytes_text(d.payload_bytes_max), message()),
            inline_result_bytes: self.take(
                key!(limits.inline_result_bytes),
                &bytes_text(d.inline_result_bytes),
                size(0..=MESSAGE_BYTES_MAX as u64),
            ),
            unpublished_max: self.take(key!(limits.unpublished), &d.unpublished_max.to_string(), number(1..=UNPUBLISHED_MAX)),
            budget_ms_default: self.take(key!(limits.default_budget), &duration_text(d.budget_ms_default), budget),
            on_overload: self.take(key!(limits.on_overload), on_overload, choice(OVERLOADS)),
            stall_ms_max: self.take(key!(limits.stall), &duration_text(d.stall_ms_max), duration(1_000..=HOUR_MS)),
        };
        let limits = Limits { shard_held_bytes_max: self.fit(limits.shard_held_bytes_max), ..limits };
        let process = self.take(key!(limits.process_running), "0", number(0..=PROCESS_RUNNING_MAX));
        if limits.horizon_min_ms > limits.horizon_ms {
            let horizon = duration_text(limits.horizon_ms);
            self.fault("journal.horizon_min", format!("must not be longer than journal.horizon, which is {horizon}"));
        }
        if limits.payload_bytes_max > limits.shard_held_bytes_max {
            let held = bytes_text(limits.shard_held_bytes_max);
            self.fault("limits.payload_bytes", format!("must not be larger than limits.shard_held_bytes, which is {held}"));
        }
        (limits, (process > 0).then_some(process))
    }

    /// The gpu lane; `None`: there is none.
    fn gpu(&mut self, cores: &Lists) -> Option<gpu::Settings> {
        let devices = self.take(key!(gpu.devices), "", devices);
        let fallback = self.take(key!(gpu.fallback), "none", choice(FALLBACKS));
        let memory_bytes_max = self.take(
            key!(gpu.memory),
            &bytes_text(gpu::limits::MEMORY_BYTES_MAX),
            size(GPU_MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX),
        );
        // Who names a stand-in and no device means any device.
        let devices = devices.or((fallback == Fallback::Host).then(|| Devices::Cuda(Vec::new())))?;
        let cores = cores.gpu.clone().unwrap_or_default();
        Some(gpu::Settings { devices, fallback, memory_bytes_max, cores, ..gpu::Settings::default() })
    }

    /// What a shard may hold where nobody chose it: as much as the memory allows.
    fn fit(&mut self, held: u64) -> u64 {
        let chosen = self.layers.iter().find_map(|layer| layer.find(|written| Some(&written.cores.shards)));
        let named = chosen.and_then(|(value, _)| core_list(value).ok().flatten()).map(|cores| cores.len());
        let row = self.rows.iter_mut().find(|row| row.key == "limits.shard_held_bytes" && row.origin == Origin::Default);
        let (Some(row), Some(limit)) = (row, super::memory::limit()) else { return held };
        let shards = named.unwrap_or_else(|| Layout::allowed().len());
        let part = super::memory::part(held, limit, shards);
        if part < held {
            (row.value, row.origin) = (bytes_text(part), Origin::Memory { limit });
        }
        part
    }

    /// The budget of the worker's own dead letters; `None`: it keeps none.
    fn dlq(&mut self, limits: &Limits) -> Option<u64> {
        let bytes = self.take(key!(dlq.bytes_max), &bytes_text(DLQ_BYTES_DEFAULT), size(0..=JOURNAL_BYTES_MAX));
        // The largest message in base64, and what is said of it, fit in one of the store's files.
        let least = JOURNAL_BYTES_MIN.max(limits.payload_bytes_max.saturating_mul(4));
        if bytes > 0 && bytes < least {
            let least = bytes_text(least);
            self.fault(
                "dlq.bytes_max",
                format!("must be 0 (none are kept) or at least four times limits.payload_bytes: {least}"),
            );
        }
        (bytes > 0).then_some(bytes)
    }

    fn nats(&mut self) -> NatsSettings {
        let servers = self.take(key!(nats.url), "nats://127.0.0.1:4222", servers);
        let mode = self.take(key!(nats.mode), "auto", choice(MODES));
        let ownership = self.take(key!(nats.ownership), "exclusive", choice(OWNERSHIPS));
        let provision = self.take(key!(nats.provision), "false", flag);
        let replicas = self.take(key!(nats.replicas), "1", number(1..=REPLICAS_MAX)) as usize;
        let assign_subjects = self.take(key!(nats.assign_subjects), ASSIGN, subjects);
        let first = Some(assign_subjects[0].as_str()).filter(|first| !first.contains(['*', '>']));
        let ack_default = format!("{}.ack", first.unwrap_or(ASSIGN));
        let ack_subject = self.take(key!(nats.ack_subject), "", |value| match value.as_str() {
            Some("") => Ok(ack_default.clone()),
            _ => subject(value),
        });
        if ack_subject.len() > SUBJECT_BYTES_MAX {
            let rule = format!("must be set where the first assign subject and .ack make more than {SUBJECT_BYTES_MAX} bytes");
            self.fault("nats.ack_subject", rule);
        }
        self.derived("nats.ack_subject", ack_subject.clone());
        let result_subject = self.take(key!(nats.result_subject), "caf.exec.result.v1", subject);
        let heartbeat_subject = self.take(key!(nats.heartbeat_subject), "caf.worker.heartbeat.v1", subject);
        let dlq_subject = self.take(key!(nats.dlq_subject), "caf.exec.dlq.v1", subject);
        let events_prefix = self.take(key!(nats.events_prefix), "beamline.worker.events", subject);
        self.check_subjects(
            &assign_subjects,
            &[
                ("the native profile", OWN_PATTERNS[0]),
                ("the native profile", OWN_PATTERNS[1]),
                ("nats.ack_subject", &ack_subject),
                ("nats.result_subject", &result_subject),
                ("nats.heartbeat_subject", &heartbeat_subject),
                ("nats.dlq_subject", &dlq_subject),
                ("nats.events_prefix", &format!("{events_prefix}.*")),
            ],
        );
        let heartbeat_ms = self.take(key!(nats.heartbeat), "5s", duration(100..=HOUR_MS));
        let ack_wait_ms = self.take(key!(nats.ack_wait), "30s", duration(1_000..=HOUR_MS));
        let durable = self.take(key!(nats.durable), "endstation", name);
        let auth = self.auth(servers.login);
        let tls = self.tls();
        NatsSettings {
            url: servers.url,
            mode,
            ownership,
            provision,
            replicas,
            assign_subjects,
            ack_subject,
            result_subject,
            heartbeat_subject,
            dlq_subject,
            events_prefix,
            heartbeat_ms,
            ack_wait_ms,
            durable,
            auth,
            tls,
        }
    }

    /// A worker that hears itself would answer its own answers for ever; one that hears work twice does it twice.
    fn check_subjects(&mut self, assign: &[String], own: &[(&'static str, &str)]) {
        for (index, one) in assign.iter().enumerate() {
            if let Some(other) = assign[..index].iter().find(|other| overlap(one, other)) {
                self.fault("nats.assign_subjects", format!("must not name the same messages twice: {other} and {one}"));
            }
            for (key, other) in own.iter().filter(|(_, other)| overlap(one, other)) {
                self.fault("nats.assign_subjects", format!("must not match {other} of {key}: the worker would hear itself"));
            }
        }
        for (index, (key, one)) in own.iter().enumerate() {
            if let Some((other, _)) = own[..index].iter().find(|(_, other)| overlap(one, other)) {
                self.fault(key, format!("must not be the same as {other}"));
            }
        }
    }

    fn auth(&mut self, login: Option<(String, Option<String>)>) -> NatsAuth {
        let creds = self.take(key!(nats.creds), "", path);
        let nkey = self.take(key!(nats.nkey), "", path);
        let user = self.optional_text(key!(nats.user));
        let password = self.optional_text(key!(nats.password));
        let token = self.optional_text(key!(nats.token));
        match (&user, &password) {
            (Some(_), None) => self.fault("nats.user", "needs nats.password beside it".to_owned()),
            (None, Some(_)) => self.fault("nats.password", "needs nats.user beside it".to_owned()),
            _ => {}
        }
        let said = [
            (
                "nats.url",
                login.map(|(user, password)| match password {
                    Some(password) => NatsAuth::Password { user, password },
                    None => NatsAuth::Token(user),
                }),
            ),
            ("nats.creds", creds.map(NatsAuth::Creds)),
            ("nats.nkey", nkey.map(NatsAuth::Nkey)),
            ("nats.user", user.zip(password).map(|(user, password)| NatsAuth::Password { user, password })),
            ("nats.token", token.map(NatsAuth::Token)),
        ];
        let mut said = said.into_iter().filter_map(|(key, auth)| Some((key, auth?)));
        let Some((first, auth)) = said.next() else { return NatsAuth::Anonymous };
        for (key, _) in said {
            self.fault(key, format!("must be left out (or \"\") where {first} already says who the worker is"));
        }
        auth
    }

    fn grpc(&mut self, limits: &Limits, events: bool) -> Option<GrpcSettings> {
        let bind = self.take(key!(grpc.bind), "", |value| match value.as_str() {
            Some("") => Ok(None),
            _ => socket(value).map(Some),
        });
        let cert = self.take(key!(grpc.tls.cert), "", path);
        let key = self.take(key!(grpc.tls.key), "", path);
        let client_ca = self.take(key!(grpc.tls.client_ca), "", path);
        match (&cert, &key) {
            (Some(_), None) => self.fault("grpc.tls.cert", "needs grpc.tls.key beside it".to_owned()),
            (None, Some(_)) => self.fault("grpc.tls.key", "needs grpc.tls.cert beside it".to_owned()),
            (None, None) if client_ca.is_some() => {
                self.fault("grpc.tls.client_ca", "needs grpc.tls.cert and grpc.tls.key beside it".to_owned());
            }
            _ => {}
        }
        let tls = cert.zip(key).map(|(cert, key)| GrpcTls { cert, key, client_ca });
        let message_bytes_max = usize::try_from(limits.payload_bytes_max).unwrap_or(MESSAGE_BYTES_MAX);
        Some(GrpcSettings { bind: bind?, tls, message_bytes_max, events })
    }

    fn tls(&mut self) -> NatsTls {
        let required = self.take(key!(nats.tls.required), "false", flag);
        let ca = self.take(key!(nats.tls.ca), "", path);
        let cert = self.take(key!(nats.tls.cert), "", path);
        let key = self.take(key!(nats.tls.key), "", path);
        match (&cert, &key) {
            (Some(_), None) => self.fault("nats.tls.cert", "needs nats.tls.key beside it".to_owned()),
            (None, Some(_)) => self.fault("nats.tls.key", "needs nats.tls.cert beside it".to_owned()),
            _ => {}
        }
        NatsTls { required, ca, cert, key }
    }
}

/// A value as it may be shown: texts without quotes, lists with commas, secrets hidden. A table where none belongs is not looked
/// into: its keys may be anything, secrets in the wrong place among them.
fn shown(key: &str, value: &Value) -> String {
    let plain = match value {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().map(|part| shown("", part)).collect::<Vec<_>>().join(", "),
        Value::Table(_) => "a table".to_owned(),
        other => other.to_string(),
    };
    match key {
        _ if plain.is_empty() => plain,
        _ if SECRETS.contains(&key) => HIDDEN.to_owned(),
        _ if super::keys::holds_public(key) => super::keys::shown_public(&plain).unwrap_or_else(|| HIDDEN.to_owned()),
        // What is a reference may be seen; what is not may be the secret itself.
        _ if super::reach::holds_reference(key) && SecretRef::parse(&plain).is_err() => HIDDEN.to_owned(),
        "nats.url" | "net.proxy" => hide_logins(&plain),
        _ if key.starts_with("connectors.") && (key.ends_with(".url") || key.ends_with(".endpoint")) => hide_logins(&plain),
        // What looks like a connection string may hold a password.
        _ if super::databases::is_word_of_one(key) && plain.contains(['@', '=', ' ']) => HIDDEN.to_owned(),
        _ => plain,
    }
}

/// URLs with everything up to the last login hidden: what stands between may be a piece of a password.
fn hide_logins(servers: &str) -> String {
    let Some((logins, host)) = servers.rsplit_once('@') else { return servers.to_owned() };
    let scheme = ["nats://", "tls://", "http://", "https://"].into_iter().find(|scheme| logins.starts_with(scheme)).unwrap_or("");
    format!("{scheme}{HIDDEN}@{host}")
}

/// This machine's name as far as it fits into a subject.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let word = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
    let name: String = name.trim().chars().map(word).take(64).collect();
    if name.is_empty() { "endstation".to_owned() } else { name }
}
