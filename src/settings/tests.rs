//! What a configuration comes to, as text: a case is what is written and what is said of it.

use std::path::PathBuf;

use super::*;

/// What is written.
#[derive(Default)]
struct Case<'a> {
    file: &'a str,
    env: &'a [(&'a str, &'a str)],
    flags: &'a [(&'a str, &'a str, &'a str)],
}

fn settle(case: &Case<'_>) -> Result<Settings, ConfigError> {
    let env = case.env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    resolve::settings(Some(("e.toml", case.file)), env, case.flags)
}

/// Every wanted line, `key = value (origin)`, is among the settled rows.
fn check(case: Case<'_>, want: &[&str]) {
    let settings = settle(&case).unwrap_or_else(|error| panic!("{want:?}: {error}"));
    let rows: Vec<String> = settings.rows().iter().map(|row| format!("{} = {} ({})", row.key, row.value, row.origin)).collect();
    for line in want {
        assert!(rows.iter().any(|row| row == line), "{line} is not in {rows:#?}");
    }
}

/// The faults are exactly these lines.
fn refuse(case: Case<'_>, want: &[&str]) {
    let error = settle(&case).expect_err(&format!("{want:?}"));
    assert_eq!(error.to_string(), want.join("\n"));
}

fn file(file: &str) -> Case<'_> {
    Case { file, ..Case::default() }
}

fn env<'a>(env: &'a [(&'a str, &'a str)]) -> Case<'a> {
    Case { env, ..Case::default() }
}

fn flags<'a>(flags: &'a [(&'a str, &'a str, &'a str)]) -> Case<'a> {
    Case { flags, ..Case::default() }
}

#[test]
fn a_flag_outranks_our_variable_outranks_the_older_one_outranks_the_file() {
    let text = "[nats]\nurl = \"nats://file\"\n";
    let older = ("NATS_URL", "nats://older");
    let ours = ("ENDSTATION__NATS__URL", "nats://ours");
    check(Case::default(), &["nats.url = nats://127.0.0.1:4222 (default)"]);
    check(file(text), &["nats.url = nats://file (file e.toml:2)"]);
    check(Case { file: text, env: &[older], ..Case::default() }, &["nats.url = nats://older (env NATS_URL)"]);
    check(Case { file: text, env: &[older, ours], ..Case::default() }, &["nats.url = nats://ours (env ENDSTATION__NATS__URL)"]);
    check(
        Case { file: text, env: &[older, ours], flags: &[("nats.url", "nats://flag", "--nats-url")] },
        &["nats.url = nats://flag (flag --nats-url)"],
    );
}

#[test]
fn every_older_variable_sets_its_key() {
    check(
        env(&[
            ("NATS_URL", "nats://n:1"),
            ("WORKER_ID", "w-1"),
            ("CAF_ASSIGN_SUBJECT", "a.one, a.two"),
            ("CAF_RESULT_SUBJECT", "a.result"),
            ("CAF_HEARTBEAT_SUBJECT", "a.beat"),
            ("CAF_DLQ_SUBJECT", "a.dlq"),
            ("CAF_HEARTBEAT_INTERVAL_MS", "2500"),
            ("HEALTH_BIND", "0.0.0.0:9191"),
            ("WORKER_MAX_CONCURRENCY", "10"),
            ("DEFAULT_JOB_TIMEOUT_MS", "30000"),
            ("FS_BASE_DIR", "/blobs"),
        ]),
        &[
            "nats.url = nats://n:1 (env NATS_URL)",
            "worker.id = w-1 (env WORKER_ID)",
            "nats.assign_subjects = a.one, a.two (env CAF_ASSIGN_SUBJECT)",
            "nats.ack_subject = a.one.ack (default)",
            "nats.result_subject = a.result (env CAF_RESULT_SUBJECT)",
            "nats.heartbeat_subject = a.beat (env CAF_HEARTBEAT_SUBJECT)",
            "nats.dlq_subject = a.dlq (env CAF_DLQ_SUBJECT)",
            "nats.heartbeat = 2500ms (env CAF_HEARTBEAT_INTERVAL_MS)",
            "ops.bind = 0.0.0.0:9191 (env HEALTH_BIND)",
            "limits.process_running = 10 (env WORKER_MAX_CONCURRENCY)",
            "limits.default_budget = 30000ms (env DEFAULT_JOB_TIMEOUT_MS)",
            "storage.blobs_dir = /blobs (env FS_BASE_DIR)",
        ],
    );
    // Start scripts pass empty variables on; foreign ones are none of our business.
    check(env(&[("NATS_URL", ""), ("ENDSTATION_HOME", "x"), ("PATH", "/bin")]), &["nats.url = nats://127.0.0.1:4222 (default)"]);
    refuse(
        env(&[("CAF_HEARTBEAT_INTERVAL_MS", "soon")]),
        &["nats.heartbeat = soon: must be a duration with a unit, such as \"500ms\", \"10s\" or \"2h\", from 100ms to 1h \
           (env CAF_HEARTBEAT_INTERVAL_MS)"],
    );
}

#[test]
fn what_is_written_is_what_the_parts_get() {
    let settings = settle(&Case {
        file: r#"
            [storage]
            dir = "/data"
            [nats]
            url = "tls://me:p%40ss@a:4222, b"
            mode = "jetstream"
            assign_subjects = ["work.*"]
            heartbeat = "1s"
            [limits]
            tenant_running = 7
            payload_bytes = "2MiB"
            on_overload = "reject"
            process_running = 8
            [journal]
            bytes_max = "3GiB"
            horizon = "1d"
            [cores]
            shards = "2-4"
        "#,
        env: &[("ENDSTATION__NATS__TLS__REQUIRED", "true"), ("ENDSTATION__NATS__TLS__CA", "ca.pem")],
        flags: &[("shutdown.grace", "3s", "--grace"), ("log.level", "warn", "--log")],
    })
    .expect("a good configuration");
    assert_eq!(settings.storage_dir, PathBuf::from("/data"));
    assert_eq!(settings.blobs_dir, PathBuf::from("/data/blobs"));
    assert_eq!(settings.nats.url, "tls://a:4222,nats://b");
    assert_eq!(settings.nats.auth, NatsAuth::Password { user: "me".into(), password: "p@ss".into() });
    assert_eq!(settings.nats.mode, NatsMode::JetStream);
    assert_eq!(settings.nats.ack_subject, "caf.exec.assign.v1.ack");
    assert_eq!(settings.nats.heartbeat_ms, 1_000);
    assert_eq!(settings.nats.tls, NatsTls { required: true, ca: Some("ca.pem".into()), cert: None, key: None });
    assert_eq!(settings.limits.tenant_running_max, 7);
    assert_eq!(settings.limits.payload_bytes_max, 2 << 20);
    assert_eq!(settings.limits.on_overload, shards::limits::OnOverload::Reject);
    assert_eq!(settings.limits.horizon_ms, 86_400_000);
    assert_eq!(settings.cores, Lists { shards: Some(vec![2, 3, 4]), edge: None, cpu: None, gpu: None });
    assert_eq!((settings.grace_ms, settings.log_level), (3_000, tracing::Level::WARN));

    let split: Vec<u32> = (0..3).map(|shard| settings.shard_limits(shard, 3).shard_running_max).collect();
    assert_eq!(split, [3, 3, 2]);
    assert_eq!(settings.shard_limits(0, 3).journal_bytes_max, 1 << 30);
    assert_eq!(settings.shard_limits(15, 16).shard_running_max, 1);
}

#[test]
fn the_defaults_are_those_of_the_limits_and_of_the_contract() {
    let settings = Settings::default();
    // How many threads there are to compute is not known before the worker starts.
    assert_eq!(settings.limits, Limits { cpu_running_max: 0, ..Limits::default() });
    assert_eq!(settings.shard_limits(0, 1), Limits { cpu_running_max: 0, ..Limits::default() });
    assert_eq!(settings.nats.assign_subjects, ["caf.exec.assign.v1"]);
    assert_eq!(settings.nats.ack_subject, "caf.exec.assign.v1.ack");
    assert_eq!(settings.nats.auth, NatsAuth::Anonymous);
    assert_eq!((settings.nats.heartbeat_ms, settings.nats.ack_wait_ms), (5_000, 30_000));
    assert!(settings.events && !settings.nats.provision);
    assert!(!settings.worker_id.is_empty());
    assert_eq!(settings.salt(), None);
}

#[test]
fn the_example_file_holds_every_key_with_its_default() {
    let text = include_str!("../../examples/endstation.toml");
    let lines = text.lines().map(|line| match line.strip_prefix('#') {
        Some(key) if key.starts_with(|c: char| c.is_ascii_lowercase()) => key,
        _ => line,
    });
    let example = settle(&file(&lines.collect::<Vec<_>>().join("\n"))).expect("the example is right");
    let default = Settings::default();
    for (row, wanted) in example.rows().iter().zip(default.rows()) {
        assert_eq!((&row.key, &row.value), (&wanted.key, &wanted.value), "({})", row.origin);
        assert!(matches!(row.origin, Origin::File { .. }), "{} is missing in examples/endstation.toml", row.key);
    }
    assert_eq!(settle(&file(text)).expect("as it is").rows(), default.rows());
}

#[test]
fn unknown_keys_are_errors_that_say_where() {
    refuse(
        file("[journal]\nhorizon = \"1h\"\nhorizn = \"1h\"\n"),
        &["journal.horizn: no such key (file e.toml:3); known here: bytes_max, horizon, horizon_min"],
    );
    refuse(
        file("\n[nats.tls]\ncipher = 1\n"),
        &["nats.tls.cipher: no such key (file e.toml:3); known here: required, ca, cert, key"],
    );
    refuse(file("[quotas]\nrunning = 1\n"), &[&format!("quotas: no such key (file e.toml:1); known here: {SECTIONS}")]);
    refuse(
        file("[tenants.default]\nrunning = 1\n"),
        &["tenants.default.running: no such key (file e.toml:2); known here: scopes or require_signature"],
    );
    refuse(file("[events]\n\"\" = 1\n"), &["events.\"\": no such key (file e.toml:2); known here: enabled"]);
    refuse(file("[events]\n'a.b' = 1\n"), &["events.\"a.b\": no such key (file e.toml:2); known here: enabled"]);
    refuse(
        file("[cores]\nshards = \"1\"\nfpga = \"1\"\n"),
        &["cores.fpga: no such key (file e.toml:3); known here: shards, edge, cpu, gpu"],
    );
    refuse(
        env(&[("ENDSTATION__EVENTS__ENABLE", "true"), ("ENDSTATION__nats__URL", "x"), ("ENDSTATION__", "x")]),
        &[
            &format!("ENDSTATION__: no such key (env ENDSTATION__); known here: {SECTIONS}"),
            "events.enable: no such key (env ENDSTATION__EVENTS__ENABLE); known here: enabled",
            &format!("ENDSTATION__nats__URL: no such key (env ENDSTATION__nats__URL); known here: {SECTIONS}"),
        ],
    );
    refuse(env(&[("ENDSTATION__NATS", "x")]), &["nats: no such key (env ENDSTATION__NATS)"]);
    refuse(flags(&[("nats.uri", "x", "--uri")]), &[&format!("nats.uri: no such key (flag --uri); known here: {NATS_KEYS}")]);
}

const SECTIONS: &str = "storage, journal, dlq, events, nats, limits, cores, gpu, grpc, ops, worker, shutdown, log, net, tenants, connectors, keys, signers, policy";

const NATS_KEYS: &str = "url, mode, ownership, provision, replicas, assign_subjects, ack_subject, result_subject, heartbeat_subject, \
                         dlq_subject, events_prefix, heartbeat, ack_wait, durable, creds, nkey, user, password, token, tls";

#[test]
fn a_file_that_is_not_toml_or_not_there_says_so() {
    let error = settle(&file("[nats]\nurl = \n")).expect_err("no value").to_string();
    assert!(error.ends_with("(file e.toml:2)"), "{error}");
    let error = settle(&file("storage = 3\n")).expect_err("no table").to_string();
    assert!(error.ends_with("(file e.toml:1)"), "{error}");
    let error = settle(&file("[keys]\nsecret = \"hunter2\"\n")).expect_err("no table").to_string();
    assert_eq!(error, "here belongs a section with keys, and no value (file e.toml:2)");
    let error = settle(&file("[log]\n[ops]\n[log]\n")).expect_err("twice").to_string();
    assert!(error.ends_with("(file e.toml:3)"), "{error}");

    let missing = Settings::load(Some(Path::new("/nowhere/e.toml")), std::iter::empty(), &[]).expect_err("not there");
    assert!(missing.to_string().starts_with("/nowhere/e.toml: cannot be read: "), "{missing}");
}

#[test]
fn every_rule_names_key_value_rule_and_place() {
    const DURATION: &str = "must be a duration with a unit, such as \"500ms\", \"10s\" or \"2h\", from";
    const SIZE: &str = "must be a byte size with a unit, such as \"256KiB\" or \"20GiB\", from";
    const SUBJECT: &str = "must be a NATS subject: visible characters but commas, parts between dots none of them empty, \
                           not beginning with $ or _INBOX, at most 256 bytes";
    const SERVERS: &str = "must be NATS servers with commas between them, such as \"nats://127.0.0.1:4222\" (nats:// or tls://)";
    const NAME: &str = "must be 1 to 128 characters out of A-Z, a-z, 0-9, _ and -";
    const CORES: &str = "must be a list of cores, none of them twice, such as \"2-15\" or \"0,3\"";
    const HEARS: &str = "the worker would hear itself";
    let subjects =
        format!("must be a list of NATS subjects, or one text with commas; each {SUBJECT}; * is a whole part, > the last");
    let cases: &[(&str, &str, &str, &str)] = &[
        ("storage.dir", "\"\"", "\"\"", "must be a path, not empty"),
        ("storage.dir", "3", "3", "must be a path"),
        ("journal.bytes_max", "1024", "1024", &format!("{SIZE} 1MiB to 1024TiB")),
        ("journal.bytes_max", "\"1KiB\"", "1KiB", &format!("{SIZE} 1MiB to 1024TiB")),
        ("journal.horizon", "7200", "7200", &format!("{DURATION} 1s to 720h")),
        ("journal.horizon", "\"60d\"", "60d", &format!("{DURATION} 1s to 720h")),
        ("journal.horizon_min", "\"3h\"", "3h", "must not be longer than journal.horizon, which is 2h"),
        ("events.enabled", "\"yes\"", "yes", "must be true or false"),
        ("nats.url", "\"\"", "\"\"", SERVERS),
        ("nats.url", "\"http://a\"", "http://a", SERVERS),
        ("nats.url", "\"a:99999\"", "a:99999", SERVERS),
        ("nats.url", "\"a,,b\"", "a,,b", SERVERS),
        ("nats.url", "\"[::g]:1\"", "[::g]:1", SERVERS),
        ("nats.url", "\"u:p,w@h w\"", "[REDACTED]@h w", SERVERS),
        (
            "nats.url",
            "\"nats://u:p@a,nats://v:q@b\"",
            "nats://[REDACTED]@b",
            "must not name different users or tokens for different servers",
        ),
        ("nats.mode", "\"fast\"", "fast", "must be one of auto, jetstream, core"),
        ("nats.replicas", "0", "0", "must be a whole number from 1 to 5"),
        ("nats.replicas", "-1", "-1", "must be a whole number from 1 to 5"),
        ("nats.replicas", "1.5", "1.5", "must be a whole number from 1 to 5"),
        ("nats.assign_subjects", "[]", "\"\"", &subjects),
        ("nats.assign_subjects", "\"a..b\"", "a..b", &subjects),
        ("nats.assign_subjects", "[1]", "1", &subjects),
        ("nats.assign_subjects", "\"a.*,a.b\"", "a.*,a.b", "must not name the same messages twice: a.* and a.b"),
        (
            "nats.assign_subjects",
            "\"caf.exec.assign.>\"",
            "caf.exec.assign.>",
            &format!("must not match caf.exec.assign.v1.ack of nats.ack_subject: {HEARS}"),
        ),
        (
            "nats.assign_subjects",
            "\"beamline.*.events.t\"",
            "beamline.*.events.t",
            &format!("must not match beamline.worker.events.* of nats.events_prefix: {HEARS}"),
        ),
        ("nats.result_subject", "\"caf.exec.dlq.v1\"", "", ""),
        ("nats.ack_subject", "\"a.*\"", "a.*", &format!("{SUBJECT}; no wildcards here")),
        ("nats.dlq_subject", "\"$SYS.x\"", "$SYS.x", SUBJECT),
        ("nats.heartbeat", "5", "5", &format!("{DURATION} 100ms to 1h")),
        ("nats.ack_wait", "\"10ms\"", "10ms", &format!("{DURATION} 1s to 1h")),
        ("nats.durable", "\"a.b\"", "a.b", NAME),
        ("nats.user", "\"me\"", "me", "needs nats.password beside it"),
        ("nats.password", "\"hush\"", "[REDACTED]", "needs nats.user beside it"),
        ("nats.token", "5", "[REDACTED]", "must be a text"),
        ("nats.tls.cert", "\"c.pem\"", "c.pem", "needs nats.tls.key beside it"),
        ("nats.tls.key", "\"k.pem\"", "k.pem", "needs nats.tls.cert beside it"),
        ("limits.tenant_running", "\"many\"", "many", "must be a whole number from 1 to 30000"),
        ("limits.shard_running", "30001", "30001", "must be a whole number from 1 to 30000"),
        ("limits.payload_bytes", "\"65MiB\"", "65MiB", &format!("{SIZE} 1B to 64MiB")),
        ("limits.default_budget", "\"25h\"", "25h", &format!("{DURATION} 1ms to 24h")),
        ("limits.on_overload", "\"drop\"", "drop", "must be one of delay, reject"),
        ("limits.stall", "\"10ms\"", "10ms", &format!("{DURATION} 1s to 1h")),
        ("cores.shards", "\"4-2\"", "4-2", CORES),
        ("cores.edge", "0", "0", CORES),
        ("ops.bind", "\"9091\"", "9091", "must be an address and a port, such as \"127.0.0.1:9091\" or \"[::1]:9091\""),
        ("worker.id", "\"a b\"", "a b", NAME),
        ("shutdown.grace", "10", "10", &format!("{DURATION} 0ms to 1h")),
        ("log.level", "\"loud\"", "loud", "must be one of error, warn, info, debug, trace"),
    ];
    for (key, written, value, rule) in cases {
        let text = format!("\n{key} = {written}\n");
        if rule.is_empty() {
            // The later of two keys that collide is named.
            let want = "nats.dlq_subject = caf.exec.dlq.v1: must not be the same as nats.result_subject (default)";
            refuse(file(&text), &[want]);
        } else {
            refuse(file(&text), &[&format!("{key} = {value}: {rule} (file e.toml:2)")]);
        }
    }
    refuse(
        file("limits.payload_bytes = \"2MiB\"\nlimits.shard_held_bytes = \"1MiB\"\n"),
        &["limits.payload_bytes = 2MiB: must not be larger than limits.shard_held_bytes, which is 1MiB (file e.toml:1)"],
    );
}

#[test]
fn all_faults_are_said_at_once() {
    refuse(
        Case {
            file: "log.level = \"loud\"\n",
            env: &[("ENDSTATION__NATS__MODE", "fast"), ("ENDSTATION__NATS__MOOD", "x")],
            flags: &[("nats.replicas", "9", "--replicas")],
        },
        &[
            &format!("nats.mood: no such key (env ENDSTATION__NATS__MOOD); known here: {NATS_KEYS}"),
            "nats.mode = fast: must be one of auto, jetstream, core (env ENDSTATION__NATS__MODE)",
            "nats.replicas = 9: must be a whole number from 1 to 5 (flag --replicas)",
            "log.level = loud: must be one of error, warn, info, debug, trace (file e.toml:1)",
        ],
    );
}

#[test]
fn a_worker_says_who_it_is_in_one_way_only() {
    let two = Case { file: "nats.creds = \"a.creds\"\n", env: &[("ENDSTATION__NATS__TOKEN", "t")], ..Case::default() };
    refuse(
        two,
        &["nats.token = [REDACTED]: must be left out (or \"\") where nats.creds already says who the worker is \
           (env ENDSTATION__NATS__TOKEN)"],
    );
    // An empty text takes back what a lower layer says.
    let taken_back = Case {
        file: "nats.creds = \"a.creds\"\n",
        env: &[("ENDSTATION__NATS__TOKEN", "t"), ("ENDSTATION__NATS__CREDS", "")],
        ..Case::default()
    };
    assert_eq!(settle(&taken_back).expect("one way").nats.auth, NatsAuth::Token("t".into()));
    let token = settle(&env(&[("NATS_URL", "nats://t@a")])).expect("a token in the URL");
    assert_eq!((token.nats.auth, token.nats.url.as_str()), (NatsAuth::Token("t".into()), "nats://a"));
}

#[test]
fn secrets_are_in_no_row_and_no_debug_output() {
    let settings =
        settle(&file("worker.key_salt = \"hush1\"\n[nats]\nurl = \"nats://hush2:hush3@a\"\n")).expect("a good configuration");
    check(
        file("worker.key_salt = \"hush1\"\n[nats]\nurl = \"nats://hush2:hush3@a\"\n"),
        &["worker.key_salt = [REDACTED] (file e.toml:1)", "nats.url = nats://[REDACTED]@a (file e.toml:3)"],
    );
    let said = format!("{settings:?} {:?} {:?}", settings.rows(), settings.nats);
    assert!(!said.contains("hush"), "{said}");
}

#[test]
fn a_table_in_the_place_of_a_value_is_not_looked_into() {
    refuse(file("[nats.creds]\nkey_salt = \"hush\"\n"), &["nats.creds = a table: must be a path (file e.toml:1)"]);
    let error = settle(&file("[nats]\nassign_subjects = [{ password = \"hush\" }]\n")).expect_err("no list of subjects");
    assert!(error.to_string().starts_with("nats.assign_subjects = a table: must be a list"), "{error}");
}

#[test]
fn a_salt_is_64_hexadecimal_digits_or_the_hash_of_a_text() {
    let salt = |text: &str| settle(&flags(&[("worker.key_salt", text, "--salt")])).expect("any text will do").salt();
    assert_eq!(salt(&"0f".repeat(32)), Some(Salt([15; 32])));
    assert_eq!(salt(&"0F".repeat(32)), Some(Salt([15; 32])));
    assert_eq!(salt("a phrase"), Some(Salt(Sha256::digest(b"a phrase").into())));
    assert_eq!(salt(""), None);
}

#[test]
fn calls_are_off_until_an_address_is_named_and_certificates_come_together() {
    assert_eq!(Settings::default().grpc, None);
    check(Case::default(), &["grpc.bind =  (default)", "grpc.tls.client_ca =  (default)"]);
    let tls = "[grpc]\nbind = \"127.0.0.1:7443\"\n[grpc.tls]\ncert = \"c\"\nkey = \"k\"\nclient_ca = \"a\"\n[limits]\npayload_bytes = \"2MiB\"";
    let settings = settle(&file(tls)).expect("usable");
    let path = |name: &str| PathBuf::from(name);
    let tls = GrpcTls { cert: path("c"), key: path("k"), client_ca: Some(path("a")) };
    let bind = "127.0.0.1:7443".parse().expect("an address");
    assert_eq!(settings.grpc, Some(GrpcSettings { bind, tls: Some(tls), message_bytes_max: 2 << 20, events: true }));
    let plain = settle(&env(&[("ENDSTATION__GRPC__BIND", "[::1]:1"), ("ENDSTATION__EVENTS__ENABLED", "false")]));
    assert_eq!(plain.expect("usable").grpc.map(|grpc| (grpc.tls, grpc.events)), Some((None, false)));
    refuse(file("[grpc.tls]\ncert = \"c\""), &["grpc.tls.cert = c: needs grpc.tls.key beside it (file e.toml:2)"]);
    refuse(file("[grpc.tls]\nkey = \"k\""), &["grpc.tls.key = k: needs grpc.tls.cert beside it (file e.toml:2)"]);
    refuse(
        file("[grpc.tls]\nclient_ca = \"a\""),
        &["grpc.tls.client_ca = a: needs grpc.tls.cert and grpc.tls.key beside it (file e.toml:2)"],
    );
    refuse(
        file("[grpc]\nbind = \"7443\""),
        &["grpc.bind = 7443: must be an address and a port, such as \"127.0.0.1:9091\" or \"[::1]:9091\" (file e.toml:2)"],
    );
}

#[test]
fn an_ack_subject_that_follows_from_a_long_assign_subject_must_be_written() {
    let assign = format!("a.{}", "b".repeat(251));
    let of = |ack: &str| {
        Settings::of(None, std::iter::empty(), &[("nats.assign_subjects", &assign, "t"), ("nats.ack_subject", ack, "t")])
    };
    let error = of("").expect_err("253 bytes and .ack are too many").to_string();
    assert!(error.contains("nats.ack_subject") && error.contains("must be set where the first assign subject"), "{error}");
    assert!(of("acks").is_ok());
}
