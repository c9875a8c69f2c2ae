//! Configurations: any file text, any variables.
//!
//! What must hold: never a panic; every fault names its key or its line, and no secret; what is accepted keeps the rules that
//! `examples/endstation.toml` states; and what `config show` prints of it, written down again, is accepted and the same.
//!
//! An input is the file's text, and behind a GS the variables: `NAME=value RS NAME=value …`.

use std::collections::HashSet;

use endstation::config::{ConfigError, ConfigFault, Origin};
use endstation::edge::subjects::collide;
use endstation::settings::Settings;
use shards::limits::{BUDGET_MS_MAX, MESSAGE_BYTES_MAX, RUNNING_PER_SHARD_MAX};

use crate::mutation::Grammar;
use crate::run::{Depth, Seen, Target};

const FILE: &str = "e.toml";
const HIDDEN: &str = "[REDACTED]";
/// Stands in samples where a secret does, and nowhere else.
const SECRET: &str = "hUsH7";
const HOUR_MS: u64 = 3_600_000;

pub struct Texts;

impl Target for Texts {
    fn grammar(&self) -> Grammar {
        Grammar { pieces: PIECES, joints: b"\n= ,.\"[]\x1d\x1e", bytes_max: 2 << 10 }
    }

    fn samples(&self) -> Vec<Vec<u8>> {
        let shipped = include_str!("../../examples/endstation.toml");
        // The example with every key written out and without its explanations.
        let keys =
            shipped.lines().filter(|line| *line != "#" && !line.starts_with("# ")).map(|line| line.trim_start_matches('#'));
        let whole: String = keys.map(|line| format!("{line}\n")).collect();
        let mut samples: Vec<Vec<u8>> = SAMPLES.iter().map(|sample| sample.as_bytes().to_vec()).collect();
        samples.push(whole.into_bytes());
        samples
    }

    fn check(&mut self, input: &[u8], depth: Depth) -> Seen {
        let text = String::from_utf8_lossy(input);
        let (file, env) = text.split_once('\x1d').unwrap_or((&text, ""));
        let pair = |part: &str| part.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        let settled = Settings::of(Some((FILE, file)), env.split('\x1e').filter_map(pair), &[]);
        match settled {
            Err(error) => told(&error, file, &text),
            Ok(settings) => {
                ruled(&settings);
                hidden(&settings);
                if depth != Depth::Quick {
                    shown_again(&settings);
                }
                let written = settings.rows().iter().enumerate().filter(|(_, row)| row.origin != Origin::Default);
                let bits = written.fold(0, |bits, (at, _)| bits | 1 << at.min(63));
                // One outcome for each key that was ever written, not for each set of them.
                Seen { what: "accepted", detail: if u64::count_ones(bits) > 1 { bits & bits.wrapping_neg() } else { bits } }
            }
        }
    }
}

/// Every fault says where, and none says a secret.
fn told(error: &ConfigError, file: &str, whole: &str) -> Seen {
    assert!(!error.faults.is_empty(), "refused without a fault");
    let said = error.to_string();
    let lines = file.lines().count() + 1;
    let placed = |origin: &Origin| match origin {
        Origin::File { path, line } => path == FILE && (1..=lines).contains(line),
        Origin::Env(name) => !name.is_empty() && whole.contains(name.as_str()),
        Origin::Default | Origin::Memory { .. } => true,
        Origin::Flag(_) => false,
    };
    let mut detail = 0_u64;
    for fault in &error.faults {
        let (sound, kind) = match fault {
            ConfigFault::Unreadable { .. } => (false, 0),
            ConfigFault::Syntax { what, origin } => {
                let first = what.split([' ', ':', '`']).next().unwrap_or_default();
                (placed(origin) && *origin != Origin::Default && !what.is_empty(), first.len() as u64)
            }
            ConfigFault::UnknownKey { key, origin, .. } => (!key.is_empty() && placed(origin) && *origin != Origin::Default, 31),
            ConfigFault::BadValue { key, rule, origin, .. } => {
                (!rule.is_empty() && placed(origin), key.bytes().fold(32, |sum, byte| sum * 3 % 1_021 + u64::from(byte)))
            }
        };
        assert!(sound, "a fault that does not say where: {fault:?}");
        detail = detail.max(kind);
    }
    // A secret that stands where it should, and not inside another value.
    let keys = ["password = \"", "token = \"", "key_salt = \"", "secret = \"", "public = \""];
    let in_place: usize = keys.iter().map(|key| whole.matches(&format!("\n{key}{SECRET}\"\n")).count()).sum();
    let alone = whole.matches(SECRET).count() == in_place
        && whole.len() == file.len()
        && !["\"\"\"", "'''"].iter().any(|long| file.contains(long));
    assert!(!alone || !said.contains(SECRET), "a secret is told: {said}");
    let what = match &error.faults[0] {
        ConfigFault::Syntax { .. } => "no TOML",
        ConfigFault::UnknownKey { .. } => "unknown key",
        _ => "bad value",
    };
    Seen { what, detail: detail * 4 + error.faults.len().min(3) as u64 }
}

/// The rules that the example file states.
fn ruled(settings: &Settings) {
    let limits = &settings.limits;
    let running = 1..=RUNNING_PER_SHARD_MAX;
    assert!(running.contains(&limits.tenant_running_max) && running.contains(&limits.shard_running_max));
    assert!(limits.tenant_queued_max >= 1 && limits.shard_queued_max >= 1 && limits.unpublished_max >= 1);
    assert!((1..=MESSAGE_BYTES_MAX as u64).contains(&limits.payload_bytes_max));
    assert!(limits.payload_bytes_max <= limits.shard_held_bytes_max && limits.inline_result_bytes <= MESSAGE_BYTES_MAX as u64);
    assert!((1_000..=limits.horizon_ms).contains(&limits.horizon_min_ms) && limits.horizon_ms <= 30 * 24 * HOUR_MS);
    assert!((1..=BUDGET_MS_MAX).contains(&limits.budget_ms_default) && limits.journal_bytes_max >= 1 << 20);
    let nats = &settings.nats;
    let own = [&nats.ack_subject, &nats.result_subject, &nats.heartbeat_subject, &nats.dlq_subject];
    let events = format!("{}.*", nats.events_prefix);
    for (at, assign) in nats.assign_subjects.iter().enumerate() {
        assert!(subject(assign, true), "assign subject {assign:?}");
        assert!(nats.assign_subjects[..at].iter().all(|other| !collide(assign, other)), "{assign} is taken twice");
        assert!(own.iter().all(|own| !collide(assign, own)) && !collide(assign, &events), "the worker hears itself on {assign}");
    }
    assert!(!nats.assign_subjects.is_empty() && own.iter().all(|own| subject(own, false)) && subject(&nats.events_prefix, false));
    assert!((1..=5).contains(&nats.replicas) && (100..=HOUR_MS).contains(&nats.heartbeat_ms) && settings.grace_ms <= HOUR_MS);
    assert!((1_000..=HOUR_MS).contains(&nats.ack_wait_ms) && name(&nats.durable) && name(&settings.worker_id));
    assert!(!nats.url.is_empty() && !nats.url.contains(['@', ' ', '\n']), "{}", nats.url);
    assert!(!settings.storage_dir.as_os_str().is_empty() && !settings.blobs_dir.as_os_str().is_empty());
    for cores in [&settings.cores.shards, &settings.cores.edge].into_iter().flatten() {
        assert!(!cores.is_empty() && cores.iter().collect::<HashSet<_>>().len() == cores.len(), "{cores:?}");
    }
    let (count, all) = (3, settings.running_max_process);
    let parts: Vec<_> = (0..count).map(|shard| settings.shard_limits(shard, count).shard_running_max).collect();
    assert!(parts.iter().all(|part| *part >= 1) && all.is_none_or(|all| parts.iter().sum::<u32>() <= all.max(count as u32)));
    settings.salt();
}

fn name(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

fn subject(text: &str, wild: bool) -> bool {
    let tokens: Vec<&str> = text.split('.').collect();
    let plain = |token: &str| !token.is_empty() && !token.contains(['*', '>']);
    let last = tokens.len() - 1;
    let fits = |at: usize, token: &str| plain(token) || wild && (token == "*" || (token == ">" && at == last));
    text.len() <= 256
        && text.bytes().all(|byte| byte.is_ascii_graphic())
        && tokens.iter().enumerate().all(|(at, token)| fits(at, token))
}

/// What may not be seen is not shown.
fn hidden(settings: &Settings) {
    for row in settings.rows() {
        let secret = matches!(&*row.key, "worker.key_salt" | "nats.password" | "nats.token");
        assert!(!secret || row.value.is_empty() || row.value == HIDDEN, "{} is shown", row.key);
        let of_connector =
            row.key.starts_with("connectors.") && [".bearer", ".password", ".value"].iter().any(|end| row.key.ends_with(end));
        let of_key = row.key.starts_with("keys.") && row.key.ends_with(".secret");
        let reference = of_connector || of_key || row.key == "net.proxy_password";
        assert!(!reference || row.value.is_empty() || row.value.starts_with("secret://"), "{} is shown", row.key);
        // What stands where a public key belongs and is none may be its secret half.
        let public = row.key.starts_with("keys.") && row.key.ends_with(".public");
        assert!(!public || row.value.is_empty() || row.value == HIDDEN || row.value.len() == 44, "{} is shown", row.key);
    }
}

/// What is shown, taken as flags, is accepted and shown the same.
fn shown_again(settings: &Settings) {
    let open = settings.rows().iter().filter(|row| !row.value.contains(HIDDEN) && !row.key.starts_with("nats.user"));
    let flags: Vec<_> = open.map(|row| (&*row.key, row.value.as_str(), "--shown")).collect();
    let again = Settings::of(None, std::iter::empty(), &flags);
    let again = again.unwrap_or_else(|error| panic!("what was accepted and shown is refused: {error}\n{settings:?}"));
    for (key, value, _) in &flags {
        let row = again.rows().iter().find(|row| row.key == *key).expect("every key has a row");
        assert_eq!(row.value, *value, "{key} is shown differently");
    }
    assert_eq!(again.nats.assign_subjects, settings.nats.assign_subjects, "the same text, other subjects");
    assert_eq!((&again.limits, &again.cores, again.grace_ms), (&settings.limits, &settings.cores, settings.grace_ms));
    assert_eq!((&again.storage_dir, &again.blobs_dir), (&settings.storage_dir, &settings.blobs_dir));
}

/// What inputs are made of beyond plain bytes.
#[rustfmt::skip]
const PIECES: &[&[u8]] = &[
    b"[", b"]", b"[[", b"]]", b"=", b"\"", b"\"\"\"", b"'", b"#", b"\n", b".", b",", b"{", b"}", b"true", b"false", b"0",
    b"1", b"-1", b"1.5", b"nan", b"inf", b"1979-05-27T07:32:00Z", b"\"10s\"", b"\"0ms\"", b"\"1h\"", b"\"20GiB\"", b"\"1B\"",
    b"\"64MiB\"", b"\"2-4\"", b"\"0,0\"", b"\"a.b\"", b"\"a.*\"", b"\"a.>\"", b"\"*\"", b"[\"a\", \"b\"]", b"[\"a,b\"]",
    b"[]", b"\"auto\"", b"\"jetstream\"", b"\"reject\"", b"\"$JS.x\"", b"\"nats://u:p@h:1\"", b"\"tls://h\"", b"\"[::1]:1\"",
    b"\\u0000", b"\\n", b"\xff", b"\xc3\xa9", b"\r\n", b"\0", b"\x1d", b"\x1e", b"nats.", b"[nats]\n", b"[limits]\n",
    b"[journal]\n", b"[cores]\n", b"[nats.tls]\n", b"horizon = ", b"horizon_min = ", b"payload_bytes = ",
    b"shard_held_bytes = ", b"assign_subjects = ", b"ack_subject = ", b"result_subject = ", b"events_prefix = ", b"shards = ",
    b"url = ", b"durable = ", b"key_salt = ", b"token = ", b"user = ", b"ENDSTATION__NATS__URL=",
    b"ENDSTATION__LIMITS__PAYLOAD_BYTES=", b"ENDSTATION__STORAGE__DIR=", b"ENDSTATION__", b"CAF_ASSIGN_SUBJECT=",
    b"[connectors.a]\n", b"[tenants.a]\n", b"tenants = ", b"scopes = ", b"allow = ", b"bearer = ", b"\"secret://env/A\"",
    b"\"secret://file/a#b\"", b"\"https://h.example/a\"", b"\"10.0.0.0/8\"", b"\"*.h.example:443\"", b"header = ", b"value = ",
    b"[keys.a]\n", b"algorithm = ", b"\"ed25519\"", b"\"hmac-sha256\"", b"secret = ", b"public = ",
    b"\"11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\"", b"ENDSTATION__KEYS__A__SECRET=", b"connectors.b.url = ", b"ENDSTATION__CONNECTORS__A__URL=", b"dns = ", b"WORKER_MAX_CONCURRENCY=", b"HEALTH_BIND=", b"CAF_HEARTBEAT_INTERVAL_MS=",
];

const SAMPLES: &[&str] = &[
    "",
    "[storage]\ndir = \"/data\"\n[nats]\nurl = \"tls://a:4222, b\"\nmode = \"jetstream\"\nassign_subjects = [\"work.*\", \"a.b\"]\nheartbeat = \"1s\"\n",
    "[limits]\ntenant_running = 7\ntenant_queued = 8\nshard_running = 9\nshard_queued = 10\nshard_held_bytes = \"1GiB\"\npayload_bytes = \"2MiB\"\ninline_result_bytes = \"0B\"\nunpublished = 11\ndefault_budget = \"30s\"\non_overload = \"reject\"\nprocess_running = 8\n",
    "[journal]\nbytes_max = \"3GiB\"\nhorizon = \"1d\"\nhorizon_min = \"2h\"\n[cores]\nshards = \"2-4\"\nedge = \"0,1\"\n[shutdown]\ngrace = \"3s\"\n[log]\nlevel = \"warn\"\n",
    "[nats]\nuser = \"u\"\npassword = \"hUsH7\"\n[worker]\nid = \"w-1\"\nkey_salt = \"hUsH7\"\n[ops]\nbind = \"[::1]:9091\"\n",
    "[nats]\ntoken = \"hUsH7\"\nack_subject = \"x.ack\"\nresult_subject = \"x.result\"\nheartbeat_subject = \"x.beat\"\ndlq_subject = \"x.dlq\"\nevents_prefix = \"x.events\"\ndurable = \"d\"\nreplicas = 3\nprovision = true\nack_wait = \"1m\"\n",
    "[nats.tls]\nrequired = true\nca = \"ca.pem\"\ncert = \"c.pem\"\nkey = \"k.pem\"\n[events]\nenabled = false\n",
    "[net]\ndns = \"10.0.0.2:53\"\n[tenants.default]\nscopes = \"http\"\n[tenants.acme]\nscopes = []\n[connectors.crm]\ntenants = [\"acme\"]\nurl = \"https://crm.internal:8443/api\"\nallow = [\"crm.internal\", \"10.1.2.0/24\", \"[fd00::1]:8443\"]\nbearer = \"secret://env/CRM\"\nidempotency_key = true\n",
    "[connectors.a]\ntenants = \"*\"\nurl = \"http://h.example\"\nuser = \"u\"\npassword = \"secret://file/p#k\"\nca = \"ca.pem\"\n[connectors.b]\nurl = \"http://h.example\"\nheader = \"X-Key\"\nvalue = \"secret://systemd/k\"\ncert = \"c\"\nkey = \"k\"\n",
    "[keys.release]\ntenants = [\"acme\"]\nalgorithm = \"ed25519\"\nsecret = \"secret://file/r.pem\"\npublic = \"d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a\"\n[keys.hooks]\ntenants = \"*\"\nalgorithm = \"hmac-sha256\"\nsecret = \"secret://env/HOOKS#k\"\n",
    "[keys]\nsecret = \"hUsH7\"\n",
    "[keys.k]\nalgorithm = \"hmac-sha256\"\nsecret = \"hUsH7\"\n[keys.p]\nalgorithm = \"ed25519\"\npublic = \"hUsH7\"\n",
    "[keys.partner]\nalgorithm = \"ed25519\"\npublic = \"\"\"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n\"\"\"\n",
    "nats.creds = \"c\"\n\x1dENDSTATION__LIMITS__PAYLOAD_BYTES=1MiB\x1eNATS_URL=nats://n:1\x1eCAF_HEARTBEAT_INTERVAL_MS=2500\x1eCAF_ASSIGN_SUBJECT=a.one, a.two",
    "\x1dENDSTATION__CORES__SHARDS=1,2\x1eHEALTH_BIND=0.0.0.0:9191\x1eWORKER_MAX_CONCURRENCY=10\x1eFS_BASE_DIR=/blobs\x1eDEFAULT_JOB_TIMEOUT_MS=30000\x1eWORKER_ID=w",
];
