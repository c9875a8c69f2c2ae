//! Values to a PostgreSQL server and back: every type that has a form here, with its odd ones.

use super::server::Server;
use super::server_side::{crm, on_crm};
use super::*;

/// A parameter, its type in SQL, and what comes back.
fn both_ways() -> Vec<(Value, &'static str, Value)> {
    let typed = |of: &str, value: Value| json!({ "type": of, "value": value });
    vec![
        (json!(null), "text", json!(null)),
        (json!(true), "bool", json!(true)),
        (json!(-32_768), "int2", json!(-32_768)),
        (json!(2_147_483_647), "int4", json!(2_147_483_647)),
        (json!(i64::MAX), "int8", json!(i64::MAX)),
        (json!(i64::MIN), "int8", json!(i64::MIN)),
        (typed("int8", json!("9223372036854775807")), "int8", json!(i64::MAX)),
        (json!(7), "oid", json!(7)),
        (json!(1.5), "float4", json!(1.5)),
        (json!(0.1), "float8", json!(0.1)),
        (json!("NaN"), "float8", json!("NaN")),
        (typed("float8", json!("-Infinity")), "float8", json!("-Infinity")),
        (json!("NaN"), "numeric", json!("NaN")),
        (json!("Infinity"), "numeric", json!("Infinity")),
        (json!("123456789012345678901234567890.000123456789"), "numeric", json!("123456789012345678901234567890.000123456789")),
        (json!(0), "numeric", json!("0")),
        (json!("-0.00010"), "numeric", json!("-0.00010")),
        (json!("1e20"), "numeric", json!("100000000000000000000")),
        (json!("0.000000000001"), "numeric", json!("0.000000000001")),
        (json!("é\u{1F600}\"\\\n"), "text", json!("é\u{1F600}\"\\\n")),
        (json!("ab"), "char(4)", json!("ab  ")),
        (json!("x"), "name", json!("x")),
        (typed("bytea", json!("AP8=")), "bytea", json!("AP8=")),
        (json!("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"), "uuid", json!("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")),
        (json!("2026-11-29"), "date", json!("2026-11-29")),
        (json!("0044-03-15 BC"), "date", json!("0044-03-15 BC")),
        (json!("infinity"), "date", json!("infinity")),
        (json!("17:36:09.25"), "time", json!("17:36:09.25")),
        (json!("17:36:09+02"), "timetz", json!("17:36:09+02:00")),
        (json!("2026-11-29 17:36:09.000001"), "timestamp", json!("2026-11-29T17:36:09.000001")),
        (json!("2026-11-29T17:36:09+02:00"), "timestamptz", json!("2026-11-29T15:36:09Z")),
        (json!("2026-11-29T17:36:09"), "timestamptz", json!("2026-11-29T17:36:09Z")),
        (json!("-infinity"), "timestamptz", json!("-infinity")),
        (json!("1 year 2 months 3 days 04:05:06.7"), "interval", json!("P1Y2M3DT4H5M6.7S")),
        (json!({"a": [1, null, "é"]}), "jsonb", json!({"a": [1, null, "é"]})),
        (typed("jsonb", json!([1, 2])), "jsonb", json!([1, 2])),
        (typed("json", json!({"b": 1.50})), "json", json!({"b": 1.5})),
        (json!([1, null, 3]), "int4[]", json!([1, null, 3])),
        (json!([["a", "b\""], ["c,", null]]), "text[]", json!([["a", "b\""], ["c,", null]])),
        (json!([]), "text[]", json!([])),
        (typed("timestamptz[]", json!(["2026-01-01T00:00:00Z"])), "timestamptz[]", json!(["2026-01-01T00:00:00Z"])),
        (typed("numeric[]", json!(["1.10"])), "numeric[]", json!(["1.10"])),
        (json!("happy"), "mood", json!("happy")),
        (json!(["happy", "sad"]), "mood[]", json!(["happy", "sad"])),
        (json!("10.1.2.3"), "inet", json!("10.1.2.3")),
        (json!("10.1.0.0/16"), "cidr", json!("10.1.0.0/16")),
        (json!("fd00::1/64"), "inet", json!("fd00::1/64")),
        (json!("08:00:2b:01:02:03"), "macaddr", json!("08:00:2b:01:02:03")),
        (json!("[1,10)"), "int4range", json!("[1,10)")),
        (json!("(,5]"), "int8range", json!("(,6)")),
        (json!("empty"), "numrange", json!("empty")),
        (json!("[2026-01-01,2026-02-01)"), "daterange", json!("[2026-01-01,2026-02-01)")),
        (json!("[2026-01-01T00:00:00Z,)"), "tstzrange", json!("[2026-01-01T00:00:00Z,)")),
        (json!("{[1,2),[5,7)}"), "int4multirange", json!("{[1,2),[5,7)}")),
        (json!("101"), "bit varying", json!("101")),
        (json!("16/B374D848"), "pg_lsn", json!("16/B374D848")),
        (json!("(1,x)"), "pair", json!({"a": 1, "b": "x"})),
        (json!("17"), "positive", json!(17)),
    ]
}

#[test]
fn every_type_goes_there_and_comes_back() {
    let server = Server::start();
    server.ask(
        "CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE TYPE pair AS (a int, b text); CREATE DOMAIN positive AS int CHECK (VALUE > 0)",
    );
    on_a_shard(|blobs, root| async move {
        for pooler in [false, true] {
            let reach = with(crm(server.port(), |_, server| server.pooler = pooler), &root);
            let mut seen = 0;
            for (param, of, back) in both_ways() {
                let inputs = on_crm(read(&format!("SELECT $1::{of} AS v"), json!([param])));
                let outputs = Step::default().run(&reach, &blobs, inputs).await;
                let outputs = outputs.unwrap_or_else(|fault| panic!("{param} as {of}: {fault:?} {}", details(&fault)));
                assert_eq!(outputs["rows"][0]["v"], back, "{param} as {of}, pooler {pooler}");
                seen += 1;
            }
            eprintln!("{seen} values there and back, pooler {pooler}");
            let exact = on_crm(read("SELECT $1::numeric AS v", json!([{"type": "numeric", "value": "1.000"}])));
            assert_eq!(Step::default().run(&reach, &blobs, exact).await.expect("read")["rows"][0]["v"], "1.000");
            let record = on_crm(read("SELECT (1, 'a'::text) AS v, 'x'::\"char\" AS c, pg_sleep(0) AS n", json!([])));
            let row = Step::default().run(&reach, &blobs, record).await.expect("read")["rows"][0].clone();
            assert_eq!(row, json!({"v": {"f1": 1, "f2": "a"}, "c": "x", "n": null}));
            let odd = on_crm(read("SELECT '(1,2)'::point AS p", json!([])));
            let fault = Step::default().run(&reach, &blobs, odd).await.expect_err("no form");
            assert_eq!((&details(&fault)["column"], &details(&fault)["type"]), (&json!("p"), &json!("point")));
            let lists = json!({"sql": "SELECT 1 AS a, 2 AS a", "rows": "lists"});
            let outputs = Step::default().run(&reach, &blobs, on_crm(lists)).await.expect("lists");
            assert_eq!(outputs["rows"], json!([[1, 2]]));
        }
    });
}

#[test]
fn rows_of_a_server_go_into_a_blob() {
    let server = Server::start();
    on_a_shard(|blobs, root| async move {
        let reach = with(crm(server.port(), |_, _| {}), &root);
        let sql =
            "SELECT n, 'row ' || n AS a, CASE WHEN n % 2 = 0 THEN NULL ELSE '' END AS e FROM generate_series(1, 200000) AS n";
        let inputs = on_crm(json!({"sql": sql, "to": "out.csv", "rows": "csv"}));
        let outputs = Step::default().run(&reach, &blobs, inputs).await.expect("a blob");
        assert_eq!(outputs["row_count"], 200_000);
        let path = root.join(super::super::super::local::folder_of("acme")).join("out.csv");
        let text = std::fs::read_to_string(path).expect("there");
        let mut lines = text.lines();
        assert_eq!((lines.next(), lines.next(), lines.next()), (Some("n,a,e"), Some("1,row 1,\"\""), Some("2,row 2,")));
        assert_eq!(text.lines().count(), 200_001);
        let inputs = on_crm(json!({"sql": "SELECT '{\"a\":\n1}'::json AS j", "to": "one.ndjson"}));
        Step::default().run(&reach, &blobs, inputs).await.expect("a blob");
        let path = root.join(super::super::super::local::folder_of("acme")).join("one.ndjson");
        assert_eq!(std::fs::read_to_string(path).expect("there"), "{\"j\":{\"a\":1}}\n");
    });
}
