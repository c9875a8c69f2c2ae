//! What somebody sends who means harm or knows no better, to a server: in statements, in parameters, as answers of a server that is
//! none. Each is refused or is data, and the table is there afterwards.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};

use shards::outcome::Effected;

use super::server::Server;
use super::server_side::{crm, on_crm};
use super::*;

#[test]
fn what_is_meant_to_harm_is_refused_or_is_data() {
    let server = Server::start();
    server.ask(&crate::cli::sql::script(super::server::USER));
    server.ask("CREATE TABLE t (a text, n int, j jsonb); INSERT INTO t VALUES ('kept', 1, '{}'); GRANT ALL ON t TO worker");
    on_a_shard(|blobs, root| async move {
        let wide: Vec<String> = (0..1_600).map(|n| format!("{n} AS c{n}")).collect();
        let wide = format!("SELECT {}", wide.join(", "));
        let wider: Vec<String> = (0..1_700).map(|n| n.to_string()).collect();
        let wider = format!("SELECT {}", wider.join(", "));
        let huge = "x".repeat(2 << 20);
        let deep = format!("{}1{}", "[".repeat(120), "]".repeat(120));
        let many = vec![json!(1); 40_000];
        // What is sent, as what it may, and what comes of it: none is that it is done.
        let cases: Vec<(&str, Value, &str, Option<Code>)> = vec![
            // Payloads in a parameter are a text.
            ("SELECT $1::text AS a", json!(["'; DROP TABLE t; --"]), "read", None),
            ("SELECT $1::text AS a", json!(["' OR '1'='1"]), "read", None),
            ("SELECT $1::text AS a", json!(["1); DELETE FROM t; --"]), "read", None),
            ("SELECT $1::text AS a", json!(["\\'; DROP TABLE t; --"]), "read", None),
            ("SELECT $1::text AS a", json!(["$$; DROP TABLE t; $$"]), "read", None),
            ("SELECT $1::text AS a", json!(["${jndi:ldap://x}"]), "read", None),
            ("SELECT a FROM t WHERE a = $1", json!(["kept' UNION SELECT rolpassword FROM pg_authid --"]), "read", None),
            ("SELECT a FROM t WHERE a LIKE $1", json!(["%' OR TRUE --"]), "read", None),
            ("SELECT $1::int AS a", json!(["1; DROP TABLE t"]), "read", Some(INVALID)),
            ("SELECT $1::int AS a", json!(["1 OR 1=1"]), "read", Some(INVALID)),
            ("SELECT $1::int AS a", json!([{"$gt": ""}]), "read", Some(INVALID)),
            ("SELECT $1::int[] AS a", json!([["1", "2}; DROP TABLE t"]]), "read", Some(INVALID)),
            ("SELECT $1::text[] AS a", json!([["a\",\"b", "{}", "NULL", "\\"]]), "read", None),
            ("SELECT $1::jsonb AS a", json!(["{\"a\":1"]), "read", Some(INVALID)),
            ("SELECT $1::jsonb AS a", json!([{"a": "\u{0}"}]), "read", Some(INVALID)),
            (
                "SELECT $1::jsonb AS a",
                json!([{"type": "jsonb", "value": serde_json::from_str::<Value>(&deep[20..220]).ok()}]),
                "read",
                None,
            ),
            ("SELECT $1::uuid AS a", json!(["not one"]), "read", Some(INVALID)),
            ("SELECT $1::date AS a", json!(["2026-02-30"]), "read", Some(INVALID)),
            ("SELECT $1::timestamptz AS a", json!(["2026-01-01T00:00:00+99:00"]), "read", Some(INVALID)),
            ("SELECT $1::inet AS a", json!(["300.1.1.1"]), "read", Some(INVALID)),
            ("SELECT $1::int2 AS a", json!([40_000]), "read", Some(INVALID)),
            ("SELECT $1::float8 AS a", json!(["1e999"]), "read", Some(INVALID)),
            ("SELECT $1::float8 AS a", json!(["NaN"]), "read", None),
            ("SELECT $1::text AS a", json!(["a\u{0}b"]), "read", Some(INVALID)),
            ("SELECT length($1::text) AS a", json!([huge]), "read", None),
            ("SELECT $1::text AS a", json!([huge]), "read", Some(Code::ExecutionFailed)),
            ("SELECT count(*) FROM t WHERE n = ANY($1)", json!([many]), "read", None),
            ("SELECT $1", json!([1, 2]), "read", Some(INVALID)),
            ("SELECT $2::int", json!([1]), "read", Some(INVALID)),
            ("SELECT $1 + $3", json!([1, 2]), "read", Some(INVALID)),
            // More than one statement, and what is none of a step's.
            ("SELECT 1; SELECT 2", json!([]), "read", Some(INVALID)),
            ("SELECT 1; DROP TABLE t", json!([]), "write", Some(INVALID)),
            ("SELECT 1 /* ; */ ; COMMIT", json!([]), "write", Some(INVALID)),
            ("COPY t TO PROGRAM 'touch /tmp/owned'", json!([]), "write", Some(INVALID)),
            ("COPY t FROM '/etc/passwd'", json!([]), "write", Some(INVALID)),
            ("SET ROLE postgres", json!([]), "write", Some(INVALID)),
            ("SET SESSION AUTHORIZATION postgres", json!([]), "write", Some(INVALID)),
            ("RESET ROLE", json!([]), "write", Some(INVALID)),
            ("ROLLBACK", json!([]), "write", Some(INVALID)),
            ("DISCARD ALL", json!([]), "write", Some(INVALID)),
            ("VACUUM t", json!([]), "write", Some(INVALID)),
            ("LOAD 'x'", json!([]), "write", Some(INVALID)),
            ("DO $$ BEGIN COMMIT; END $$", json!([]), "write", Some(Code::ExecutionFailed)),
            ("SELECT pg_read_file('/etc/passwd')", json!([]), "read", Some(Code::PermissionDenied)),
            ("SELECT lo_import('/etc/passwd')", json!([]), "write", Some(Code::PermissionDenied)),
            ("SELECT rolpassword FROM pg_authid", json!([]), "read", Some(Code::PermissionDenied)),
            ("CREATE EXTENSION file_fdw", json!([]), "write", Some(Code::PermissionDenied)),
            ("ALTER ROLE worker SUPERUSER", json!([]), "write", Some(Code::PermissionDenied)),
            ("CREATE FUNCTION f() RETURNS int LANGUAGE c AS '/tmp/x.so', 'f'", json!([]), "write", Some(Code::PermissionDenied)),
            ("SELECT set_config('transaction_read_only', 'off', true)", json!([]), "read", Some(INVALID)),
            ("DO $$ BEGIN EXECUTE 'DELETE FROM t'; END $$", json!([]), "read", Some(INVALID)),
            // Large, wide and wrong.
            ("SELECT repeat('x', 20000000) AS a", json!([]), "read", Some(Code::ExecutionFailed)),
            ("SELECT n FROM generate_series(1, 10000000) AS n", json!([]), "read", Some(Code::ExecutionFailed)),
            (&wide, json!([]), "read", None),
            (&wider, json!([]), "read", Some(Code::ExecutionFailed)),
            ("SELECT 1/0", json!([]), "read", Some(Code::ExecutionFailed)),
            ("SELECT * FROM nothing_there", json!([]), "read", Some(INVALID)),
            ("SELECT * FORM t", json!([]), "read", Some(INVALID)),
            ("SELECT E'\\xff' AS a", json!([]), "read", Some(INVALID)),
            ("SELECT convert_from('\\xff'::bytea, 'UTF8') AS a", json!([]), "read", Some(INVALID)),
        ];
        let (mut seen, mut refused) = (0, 0);
        for pooler in [false, true] {
            let reach = with(crm(server.port(), |_, server| server.pooler = pooler), &root);
            for (at, (sql, params, mode, code)) in cases.iter().enumerate() {
                let key = 20 + at as u8 + 100 * u8::from(pooler);
                let inputs = on_crm(json!({"sql": sql, "params": params, "mode": mode}));
                let done = Step::keyed(key).run(&reach, &blobs, inputs).await;
                let what = &sql[..sql.len().min(80)];
                match (&done, code) {
                    (Ok(_), None) => {}
                    (Err(fault), Some(code)) => {
                        assert_eq!(fault.code, *code, "{what}: {fault:?}");
                        assert_eq!(fault.effect, Effected::None, "{what}");
                        super::super::super::tests::assert_presentable(fault);
                        refused += 1;
                    }
                    (done, _) => panic!("{what}, pooler {pooler}: {done:?}"),
                }
                seen += 1;
            }
            Step::default().run(&reach, &blobs, on_crm(read("SELECT 1 AS a", json!([])))).await.expect("and it goes on");
        }
        assert_eq!(server.ask("SELECT a, n FROM t"), "kept|1");
        assert_eq!(server.ask("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"), "0");
        eprintln!("{} cases, {seen} runs, {refused} of them refused, 0 rows lost", cases.len());
        assert!(cases.len() >= 40);
    });
}

/// A server that says this to whoever connects, and nothing else.
fn saying(words: Vec<u8>) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let words = words.clone();
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 4_096]);
                let _ = stream.write_all(&words);
                let _ = stream.read(&mut [0; 4_096]);
            });
        }
    });
    port
}

#[test]
fn a_server_that_is_none_costs_a_step_and_no_memory() {
    on_a_shard(|blobs, root| async move {
        let mut long = b"D".to_vec();
        long.extend_from_slice(&0x7fff_ffff_u32.to_be_bytes());
        let mut ready = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I".to_vec();
        let session = ready.clone();
        ready.extend_from_slice(&long);
        for words in [
            Vec::new(),
            b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
            b"R\0\0\0\x08\0\0\0\x63".to_vec(),
            b"R\0\0\0\x03".to_vec(),
            b"E\0\0\0\x05\0".to_vec(),
            long,
            ready,
            [session.as_slice(), b"T\0\0\0\x06\xff\xff"].concat(),
            [session.as_slice(), b"1\0\0\0\x04Z\0\0\0\x05I"].concat(),
            vec![0; 100_000],
        ] {
            let reach = with(crm(saying(words.clone()), |_, _| {}), &root);
            let work = Step { left_ms: 500, ..Step::default() };
            let inputs = on_crm(read("SELECT 1 AS a", json!([])));
            let work = Box::pin(work.run(&reach, &blobs, inputs));
            let wait = Box::pin(shards::runtime::rt::sleep(std::time::Duration::from_secs(2)));
            // A server that says nothing more is left when the step's time is over.
            if let futures_util::future::Either::Left((done, _)) = futures_util::future::select(work, wait).await {
                let fault = done.expect_err("it is no server");
                assert!(
                    matches!(fault.code, Code::ConnectionError | Code::ResourceUnavailable | Code::ExecutionFailed),
                    "{fault:?}"
                );
            }
        }
    });
}
