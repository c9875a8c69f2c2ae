//! A real PostgreSQL server: one flight for a read, records of writes, sessions that come back clean, statements that really end,
//! and a server that is stopped, killed, full and behind TLS.

use std::time::{Duration, Instant};

use shards::outcome::Effected;
use shards::runtime::rt;

use super::server::{DATABASE, PASSWORD, Server, USER};
use super::*;
use crate::net::egress::Target;
use crate::policy::databases::{DatabaseKind, DatabaseSettings, PostgresSettings};
use crate::secrets::SecretRef;

mod bouncer;
mod cuts;
mod sharing;

/// The table for records, as `endstation sql init` makes it.
fn init(server: &Server) {
    server.ask(&crate::cli::sql::script(USER));
}

/// A connector to a server on this port, under the name `crm`.
pub(super) fn crm(port: u16, change: impl FnOnce(&mut DatabaseSettings, &mut PostgresSettings)) -> PolicySettings {
    static SECRET: std::sync::OnceLock<tempfile::NamedTempFile> = std::sync::OnceLock::new();
    let secret = SECRET.get_or_init(|| {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), PASSWORD).expect("written");
        file
    });
    let mut server = PostgresSettings {
        target: Target::parse(&format!("https://127.0.0.1:{port}/")).expect("a target"),
        database: DATABASE.to_owned(),
        user: USER.to_owned(),
        password: Some(SecretRef::parse(&format!("secret://file{}", secret.path().display())).expect("a reference")),
        tls: false,
        files: Default::default(),
        allow: Vec::new(),
        connections_max: 4,
        pooler: false,
        trace: false,
    };
    let mut settings = DatabaseSettings {
        tenants: None,
        kind: DatabaseKind::Sqlite { bytes_max: 0 },
        dedup: true,
        read_only: false,
        statement_ms: 60_000,
        lock_ms: 5_000,
    };
    change(&mut settings, &mut server);
    settings.kind = DatabaseKind::Postgres(server);
    let mut policy = PolicySettings::default();
    policy.databases.insert("crm".to_owned(), settings);
    policy
}

pub(super) fn on_crm(mut inputs: Value) -> Value {
    inputs["connector"] = json!("crm");
    inputs
}

#[test]
fn a_write_and_its_record_commit_together_and_are_found_again() {
    let server = Server::start();
    init(&server);
    server.ask("CREATE TABLE t (n int); GRANT ALL ON t TO worker");
    on_a_shard(|blobs, root| async move {
        let reach = with(crm(server.port(), |_, _| {}), &root);
        let put = on_crm(write("INSERT INTO t VALUES ($1) RETURNING n, random() AS chance", json!([1])));
        let first = Step::keyed(2).run(&reach, &blobs, put.clone()).await.expect("written");
        assert_eq!((&first["affected"], &first["dedup"]), (&json!(1), &json!(true)));
        for _ in 0..3 {
            assert_eq!(Step::keyed(2).run(&reach, &blobs, put.clone()).await.expect("found"), first, "the very same");
        }
        let other = on_crm(write("INSERT INTO t VALUES ($1)", json!([2])));
        assert_eq!(Step::keyed(2).run(&reach, &blobs, other.clone()).await.expect_err("another").code, Code::KeyConflict);
        // Two tries at once: one waits for the other.
        let step = Step::keyed(3);
        let (a, b) =
            futures_util::future::join(step.run(&reach, &blobs, put.clone()), step.run(&reach, &blobs, put.clone())).await;
        assert_eq!(a.expect("one"), b.expect("the same"));
        assert_eq!(server.ask("SELECT count(*) FROM t"), "2");
        assert_eq!(server.ask("SELECT count(*) FROM endstation_dedup WHERE outcome IS NOT NULL"), "2");
        // One that fails leaves neither.
        let bad = on_crm(write("INSERT INTO t SELECT 1 / n FROM generate_series(-1, 1) AS n", json!([])));
        let fault = Step::keyed(4).run(&reach, &blobs, bad).await.expect_err("a division by zero");
        assert_eq!(
            (fault.code, fault.effect, &details(&fault)["sqlstate"]),
            (Code::ExecutionFailed, Effected::None, &json!("22012"))
        );
        Step::keyed(4).run(&reach, &blobs, other).await.expect("nothing of it was kept");
        assert_eq!(server.ask("SELECT count(*) FROM t"), "3");
    });
}

#[test]
fn without_the_table_nothing_is_written_and_the_cure_is_named() {
    let server = Server::start();
    server.ask("CREATE TABLE t (n int); GRANT ALL ON t TO worker");
    on_a_shard(|blobs, root| async move {
        let put = on_crm(write("INSERT INTO t VALUES ($1)", json!([1])));
        for pooler in [false, true] {
            let reach = with(crm(server.port(), |_, server| server.pooler = pooler), &root);
            let fault = Step::keyed(2).run(&reach, &blobs, put.clone()).await.expect_err("no table");
            assert_eq!((fault.code, fault.effect), (Code::ExecutionFailed, Effected::None));
            assert!(
                details(&fault)["rule"].as_str().is_some_and(|rule| rule.starts_with("endstation sql init crm")),
                "{fault:?}"
            );
        }
        assert_eq!(server.ask("SELECT count(*) FROM t"), "0");
        let reach = with(crm(server.port(), |database, _| database.dedup = false), &root);
        let outputs = Step::keyed(2).run(&reach, &blobs, put).await.expect("it does not ask for one");
        assert_eq!(outputs["dedup"], false);
        assert_eq!(server.ask("SELECT count(*) FROM t"), "1");
    });
}

#[test]
fn a_session_comes_back_clean_or_not_at_all() {
    let server = Server::start();
    init(&server);
    on_a_shard(|blobs, root| async move {
        // One session, so that each step has the one of the step before it.
        let reach = with(crm(server.port(), |_, server| server.connections_max = 1), &root);
        let mut key = 10;
        for sql in [
            "SELECT set_config('role', 'pg_monitor', false)",
            "SELECT set_config('search_path', 'pg_catalog', false)",
            "SELECT set_config('statement_timeout', '0', false), set_config('default_transaction_read_only', 'off', false)",
            "SELECT set_config('TimeZone', 'Asia/Tokyo', false)",
            "SELECT pg_advisory_lock(7)",
            "CREATE TEMP TABLE left_over (a int)",
            "DO $$ BEGIN EXECUTE 'LISTEN x'; END $$",
            "DO $$ DECLARE c refcursor := 'left'; BEGIN EXECUTE 'DECLARE left CURSOR WITH HOLD FOR SELECT 1'; END $$",
        ] {
            for mode in ["read", "write"] {
                key += 1;
                let done = Step::keyed(key).run(&reach, &blobs, on_crm(json!({"sql": sql, "mode": mode}))).await;
                if let Err(fault) = &done {
                    assert!(matches!(fault.code, INVALID | Code::PermissionDenied | Code::ExecutionFailed), "{sql}: {fault:?}");
                }
                let state = on_crm(read(
                    "SELECT current_user::text AS who, current_setting('search_path') AS path, current_setting('TimeZone') AS zone, \
                     current_setting('default_transaction_read_only') AS safe, \
                     (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory') AS locks, \
                     (SELECT count(*) FROM pg_class WHERE relname = 'left_over') AS tables, \
                     (SELECT count(*) FROM pg_listening_channels()) AS channels, (SELECT count(*) FROM pg_cursors WHERE name = 'left') AS cursors",
                    json!([]),
                ));
                let outputs = Step::default().run(&reach, &blobs, state).await.expect("read");
                let clean = json!({
                    "who": USER, "path": "\"$user\", public", "zone": "UTC", "safe": "on", "locks": 0, "tables": 0, "channels": 0, "cursors": 0,
                });
                assert_eq!(outputs["rows"][0], clean, "after {mode} {sql}");
            }
        }
        assert_eq!(server.ask("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'endstation/%'"), "1");
    });
}

#[test]
fn a_read_writes_nothing_however_it_begins() {
    let server = Server::start();
    init(&server);
    server.ask("CREATE TABLE t (n int); GRANT ALL ON t TO worker; CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'INSERT INTO t VALUES (1) RETURNING n'; CREATE SEQUENCE s; GRANT ALL ON s TO worker");
    on_a_shard(|blobs, root| async move {
        for (pooler, trace) in [(false, false), (true, false), (false, true)] {
            let change =
                |_: &mut DatabaseSettings, server: &mut PostgresSettings| (server.pooler, server.trace) = (pooler, trace);
            let reach = with(crm(server.port(), change), &root);
            for sql in [
                "WITH x AS (INSERT INTO t VALUES (1) RETURNING n) SELECT * FROM x",
                "SELECT f()",
                "SELECT nextval('s')",
                "SELECT 1 AS n INTO u",
                "EXPLAIN ANALYZE INSERT INTO t VALUES (1)",
                "SELECT * FROM t FOR UPDATE",
            ] {
                let fault = Step::default().run(&reach, &blobs, on_crm(read(sql, json!([])))).await.expect_err(sql);
                assert_eq!((fault.code, &details(&fault)["pointer"]), (INVALID, &json!("/mode")), "{sql}: {fault:?}");
            }
            Step::default().run(&reach, &blobs, on_crm(read("SELECT count(*) AS n FROM t", json!([])))).await.expect("read");
            let own = on_crm(read("SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid() -- mine", json!([])));
            let outputs = Step::default().run(&reach, &blobs, own).await.expect("read");
            let parent = "/*traceparent='00-4bf92f3577b34da6a3ce929d0e0e4736-";
            assert_eq!(outputs["rows"][0]["query"].as_str().expect("a text").contains(parent), trace);
        }
        assert_eq!(server.ask("SELECT count(*) FROM t"), "0");
    });
}

#[test]
fn what_is_given_up_ends_at_the_server_too() {
    let server = Server::start();
    init(&server);
    server.ask("CREATE TABLE t (n int); GRANT ALL ON t TO worker");
    on_a_shard(|blobs, root| async move {
        let reach = with(crm(server.port(), |_, server| server.connections_max = 2), &root);
        let asleep = || {
            server.ask("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep%' AND application_name LIKE 'endstation/%'")
        };
        let slow = on_crm(read("SELECT pg_sleep(30)", json!([])));
        let slow_write = on_crm(write("INSERT INTO t SELECT 1 FROM pg_sleep(30)", json!([])));
        for inputs in [slow.clone(), slow_write] {
            let (step, begun) = (Step::keyed(5), Instant::now());
            let work = step.run(&reach, &blobs, inputs);
            let raced = futures_util::future::select(Box::pin(work), Box::pin(rt::sleep(Duration::from_millis(400))));
            assert!(matches!(raced.await, futures_util::future::Either::Right(_)));
            while asleep() != "0" {
                assert!(begun.elapsed() < Duration::from_secs(5), "it sleeps on");
                rt::sleep(Duration::from_millis(20)).await;
            }
        }
        let fault = Step::default().run(&reach, &blobs, on_crm(json!({"sql": "SELECT pg_sleep(30)", "timeout_ms": 200}))).await;
        assert_eq!(fault.expect_err("too long").code, Code::Timeout);
        let fault = Step { left_ms: 200, ..Step::default() }.run(&reach, &blobs, slow).await;
        assert_eq!(fault.expect_err("no budget").code, Code::Timeout);
        assert_eq!((asleep(), server.ask("SELECT count(*) FROM t")), ("0".to_owned(), "0".to_owned()));
        // Ten million rows: the step takes ten, and the server stops.
        let begun = Instant::now();
        let many = on_crm(json!({"sql": "SELECT n FROM generate_series(1, 10000000) AS n", "rows_max": 10}));
        let fault = Step::default().run(&reach, &blobs, many).await.expect_err("too many");
        assert_eq!(details(&fault)["rows_max"], 10);
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        let busy = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND application_name LIKE 'endstation/%'";
        while server.ask(busy) != "0" {
            assert!(begun.elapsed() < Duration::from_secs(8), "it goes on");
            rt::sleep(Duration::from_millis(20)).await;
        }
        Step::default().run(&reach, &blobs, on_crm(read("SELECT 1 AS a", json!([])))).await.expect("there is room again");
    });
}

#[test]
fn a_server_that_goes_and_comes_back_costs_a_try_and_no_row() {
    let mut server = Server::start();
    init(&server);
    server.ask("CREATE TABLE t (n int); GRANT ALL ON t TO worker");
    on_a_shard(|blobs, root| async move {
        let reach = with(crm(server.port(), |_, _| {}), &root);
        let one = on_crm(read("SELECT 1 AS a", json!([])));
        let put = |n: u8| on_crm(write("INSERT INTO t VALUES ($1)", json!([n])));
        Step::default().run(&reach, &blobs, one.clone()).await.expect("there");
        // Its backends are killed one by one: the sessions that wait are found dead, and a step does not notice.
        for n in 1..4 {
            server.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'endstation/%'");
            Step::keyed(n).run(&reach, &blobs, put(n)).await.expect("another session");
        }
        let work = async {
            Step::keyed(9).run(&reach, &blobs, on_crm(write("INSERT INTO t SELECT 9 FROM pg_sleep(1)", json!([])))).await
        };
        let kill = async {
            rt::sleep(Duration::from_millis(300)).await;
            server.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'endstation/%'");
        };
        let (fault, ()) = futures_util::future::join(work, kill).await;
        let fault = fault.expect_err("killed at work");
        assert_eq!((fault.code, fault.effect), (Code::ConnectionError, Effected::None), "{fault:?}");
        server.stop("immediate");
        let fault = Step::keyed(4).run(&reach, &blobs, put(4)).await.expect_err("nobody is there");
        assert_eq!((fault.code, fault.effect), (Code::ConnectionError, Effected::None), "{fault:?}");
        server.restart();
        Step::keyed(4).run(&reach, &blobs, put(4)).await.expect("there again");
        assert_eq!(server.ask("SELECT string_agg(n::text, ',' ORDER BY n) FROM t"), "1,2,3,4");
        // It becomes a standby: what reads goes on, what writes waits for a server that takes it.
        server.demote();
        Step::default().run(&reach, &blobs, one.clone()).await.expect("a standby is read");
        let fault = Step::keyed(5).run(&reach, &blobs, put(5)).await.expect_err("and not written");
        assert_eq!((fault.code, fault.effect), (Code::ResourceUnavailable, Effected::None), "{fault:?}");
        server.promote();
        Step::keyed(5).run(&reach, &blobs, put(5)).await.expect("it takes writes again");
        assert_eq!(server.ask("SELECT count(*) FROM t"), "5");
    });
}

#[test]
fn when_all_that_there_may_be_is_in_use_a_step_waits_and_is_told() {
    let server = Server::with(&["max_connections=8"]);
    init(&server);
    on_a_shard(|blobs, root| async move {
        let reach = with(crm(server.port(), |_, server| server.connections_max = 2), &root);
        let nap = on_crm(read("SELECT pg_sleep(0.2)", json!([])));
        let steps: Vec<Step> = (0..6).map(|_| Step::default()).collect();
        let all = futures_util::future::join_all(steps.iter().map(|step| step.run(&reach, &blobs, nap.clone())));
        assert!(all.await.iter().all(Result::is_ok), "six take turns with two");
        assert_eq!(server.ask("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'endstation/%'"), "2");
        let long = on_crm(read("SELECT pg_sleep(1.5)", json!([])));
        let (a, b, short) = (Step::default(), Step::default(), Step { left_ms: 300, ..Step::default() });
        let both = futures_util::future::join(a.run(&reach, &blobs, long.clone()), b.run(&reach, &blobs, long));
        let late = async {
            rt::sleep(Duration::from_millis(100)).await;
            short.run(&reach, &blobs, on_crm(read("SELECT 1", json!([])))).await
        };
        let (_, late) = futures_util::future::join(both, late).await;
        let fault = late.expect_err("none came free");
        assert_eq!((fault.code, &details(&fault)["rule"]), (Code::ResourceUnavailable, &json!("connectors.crm.max_connections")));
        // The server has fewer than the connector says: it is told, and may be tried again.
        let reach = with(crm(server.port(), |_, server| server.connections_max = 40), &root);
        let steps: Vec<Step> = (0..12).map(|_| Step::default()).collect();
        let all = futures_util::future::join_all(steps.iter().map(|step| step.run(&reach, &blobs, nap.clone()))).await;
        let faults: Vec<&Fault> = all.iter().filter_map(|done| done.as_ref().err()).collect();
        assert!(!faults.is_empty() && faults.iter().all(|fault| fault.code == Code::ResourceUnavailable), "{faults:?}");
        assert!(faults.iter().all(|fault| !String::from_utf8_lossy(&fault.details).contains(PASSWORD)));
    });
}

#[test]
fn transactions_that_meet_are_taken_back_and_may_be_tried_again() {
    let server = Server::with(&["deadlock_timeout=100ms"]);
    init(&server);
    server.ask("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 0), (2, 0); GRANT ALL ON t TO worker");
    on_a_shard(|blobs, root| async move {
        let reach = with(crm(server.port(), |database, _| database.lock_ms = 3_000), &root);
        let cross = |first: u8, second: u8| {
            let sql = format!(
                "WITH a AS (UPDATE t SET n = n + 1 WHERE id = {first} RETURNING id), s AS (SELECT pg_sleep(0.3) FROM a), \
                               b AS (UPDATE t SET n = n + 1 FROM s WHERE t.id = {second} RETURNING t.id) SELECT * FROM b"
            );
            on_crm(write(&sql, json!([])))
        };
        let (a, b) = (Step::keyed(1), Step::keyed(2));
        let (a, b) = futures_util::future::join(a.run(&reach, &blobs, cross(1, 2)), b.run(&reach, &blobs, cross(2, 1))).await;
        let faults: Vec<Fault> = [a, b].into_iter().filter_map(Result::err).collect();
        assert_eq!(faults.len(), 1, "one of them goes on: {faults:?}");
        assert_eq!(
            (faults[0].code, faults[0].effect, &details(&faults[0])["sqlstate"]),
            (Code::ResourceUnavailable, Effected::None, &json!("40P01"))
        );
        let mut serial = cross(1, 1);
        serial["sql"] = json!("UPDATE t SET n = n + 1 FROM pg_sleep(0.2) WHERE id = 1");
        serial["isolation"] = json!("serializable");
        let (a, b) = (Step::keyed(3), Step::keyed(4));
        let (a, b) = futures_util::future::join(a.run(&reach, &blobs, serial.clone()), b.run(&reach, &blobs, serial)).await;
        let faults: Vec<Fault> = [a, b].into_iter().filter_map(Result::err).collect();
        assert_eq!(
            (faults.len(), faults[0].code, &details(&faults[0])["sqlstate"]),
            (1, Code::ResourceUnavailable, &json!("40001"))
        );
        // What another session holds is waited for so long and no longer.
        let reach = with(crm(server.port(), |database, _| database.lock_ms = 200), &root);
        let hold = Step::keyed(5);
        let hold = hold.run(
            &reach,
            &blobs,
            on_crm(write("WITH a AS (UPDATE t SET n = 0 WHERE id = 1 RETURNING id) SELECT pg_sleep(1) FROM a", json!([]))),
        );
        let held = on_crm(write("UPDATE t SET n = 1 WHERE id = 1", json!([])));
        let late = async {
            rt::sleep(Duration::from_millis(300)).await;
            Step::keyed(6).run(&reach, &blobs, held).await
        };
        let (_, late) = futures_util::future::join(hold, late).await;
        let fault = late.expect_err("it is held for longer");
        assert_eq!((fault.code, &details(&fault)["sqlstate"]), (Code::ResourceUnavailable, &json!("55P03")));
    });
}

#[test]
fn nobody_is_believed_who_does_not_prove_who_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).expect("a certificate");
    let (cert, key) = (folder.path().join("server.crt"), folder.path().join("server.key"));
    std::fs::write(&cert, made.cert.pem()).expect("written");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("written");
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    params.distinguished_name.push(rcgen::DnType::CommonName, USER);
    let pair = rcgen::KeyPair::generate().expect("a key");
    let ours = (folder.path().join("ours.crt"), folder.path().join("ours.key"));
    std::fs::write(&ours.0, params.self_signed(&pair).expect("signed").pem()).expect("written");
    std::fs::write(&ours.1, pair.serialize_pem()).expect("written");
    let plain = Server::start();
    let mut server = Server::start();
    server.secure(&cert, &key);
    server.restart();
    init(&server);
    on_a_shard(|blobs, root| async move {
        let ask = |settings: PolicySettings| {
            let (reach, blobs) = (with(settings, &root), blobs.clone());
            let sql = "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
            async move { Step::default().run(&reach, &blobs, on_crm(read(sql, json!([])))).await }
        };
        let secured = |port: u16| {
            let ca = Some(cert.clone());
            crm(port, move |_, server| (server.tls, server.files.ca) = (true, ca))
        };
        let outputs = ask(secured(server.port())).await.expect("its certificate is the one that is trusted");
        assert_eq!(outputs["rows"][0]["ssl"], true);
        // A server that asks who we are is told by our certificate.
        server.demand(&ours.0);
        let (ours_cert, ours_key) = (ours.0.clone(), ours.1.clone());
        let mut named = secured(server.port());
        let DatabaseKind::Postgres(settings) = &mut named.databases.get_mut("crm").expect("there").kind else {
            panic!("a server")
        };
        (settings.files.cert, settings.files.key, settings.password) = (Some(ours_cert), Some(ours_key), None);
        ask(named).await.expect("it knows our certificate");
        ask(secured(server.port())).await.expect_err("without one nobody is let in");
        server.demand(std::path::Path::new(""));
        let fault = ask(secured(plain.port())).await.expect_err("no TLS there");
        assert!(details(&fault)["cause"].as_str().is_some_and(|cause| cause.contains("speaks no TLS")), "{fault:?}");
        let stranger = tempfile::NamedTempFile::new().expect("a file");
        let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
        std::fs::write(stranger.path(), other.cert.pem()).expect("written");
        let wrong = crm(server.port(), |_, server| (server.tls, server.files.ca) = (true, Some(stranger.path().to_owned())));
        let fault = ask(wrong).await.expect_err("another's certificate");
        assert_eq!(fault.code, Code::ExecutionFailed, "{fault:?}");
        let mut named = secured(server.port());
        let database = named.databases.get_mut("crm").expect("there");
        if let DatabaseKind::Postgres(settings) = &mut database.kind {
            settings.password = Some(SecretRef::parse("secret://env/ENDSTATION_TEST_NOT_SET").expect("a reference"));
        }
        assert_eq!(ask(named).await.expect_err("no secret").code, Code::ResourceUnavailable);
        let mut wrong = secured(server.port());
        if let DatabaseKind::Postgres(settings) = &mut wrong.databases.get_mut("crm").expect("there").kind {
            settings.user = "nobody".to_owned();
        }
        let fault = ask(wrong).await.expect_err("not let in");
        assert_eq!((fault.code, &details(&fault)["sqlstate"]), (Code::ResourceUnavailable, &json!("28P01")));
        assert!(!String::from_utf8_lossy(&fault.details).contains(PASSWORD));
    });
}

#[test]
fn a_database_is_reached_only_where_its_connector_and_its_step_allow() {
    let server = Server::start();
    on_a_shard(|blobs, root| async move {
        let one = on_crm(read("SELECT 1 AS a", json!([])));
        // Not for development: the loopback is no public address unless the connector says so.
        for (allow, reached) in [("", false), ("127.0.0.1", true), ("127.0.0.1:1", false)] {
            let settings = crm(server.port(), |_, server| {
                server.allow = [allow]
                    .iter()
                    .filter(|allow| !allow.is_empty())
                    .map(|allow| crate::net::egress::Allow::parse(allow).expect("an entry"))
                    .collect();
            });
            let mut reach = with(PolicySettings::default(), &root);
            reach.policy = Arc::new(Policy::new(settings, false).expect("no file in it"));
            let done = Step::default().run(&reach, &blobs, one.clone()).await;
            assert_eq!(done.is_ok(), reached, "{allow}: {done:?}");
            if let Err(fault) = done {
                assert_eq!(fault.code, Code::PermissionDenied, "{fault:?}");
            }
        }
        let reach = with(crm(server.port(), |_, _| {}), &root);
        let rails = crate::policy::narrow::Guardrails::read(br#"{"hosts":["db.example.com"]}"#).expect("good");
        let step = Step { narrow: Narrow { guardrails: rails, ..NOTHING.clone() }, ..Step::default() };
        assert_eq!(step.run(&reach, &blobs, one).await.expect_err("not among its hosts").code, Code::PermissionDenied);
    });
}
