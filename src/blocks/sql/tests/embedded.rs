//! An embedded database: values both ways, records of writes, tenants apart, and what it does when it is full, busy or broken.

use super::*;

fn sqlite(bytes_max: u64) -> PolicySettings {
    let mut settings = PolicySettings::default();
    let database = crate::policy::databases::DatabaseSettings {
        tenants: None,
        kind: crate::policy::databases::DatabaseKind::Sqlite { bytes_max },
        dedup: true,
        read_only: false,
        statement_ms: 600_000,
        lock_ms: 300,
    };
    settings.databases.insert("embedded".to_owned(), database);
    settings
}

#[test]
fn a_statement_reads_what_another_wrote_and_each_tenant_has_its_own() {
    on_a_shard(|blobs, root| async move {
        let reach = at_home(&root);
        let made = Step::keyed(1).run(&reach, &blobs, write("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT)", json!([]))).await;
        assert_eq!(made.expect("made")["affected"], 0);
        let put = write("INSERT INTO t (id, a) VALUES ($1, $2) RETURNING id, a", json!([7, "'); DROP TABLE t; --"]));
        let outputs = Step::keyed(2).run(&reach, &blobs, put).await.expect("written");
        assert_eq!(outputs["rows"], json!([{"id": 7, "a": "'); DROP TABLE t; --"}]));
        assert_eq!((&outputs["affected"], &outputs["dedup"], &outputs["row_count"]), (&json!(1), &json!(true), &json!(1)));
        assert_eq!(outputs["columns"], json!([{"name": "id", "type": "integer"}, {"name": "a", "type": "text"}]));
        let all = read("SELECT * FROM t", json!([]));
        let outputs = Step::default().run(&reach, &blobs, all.clone()).await.expect("read");
        assert_eq!(outputs["rows"][0]["id"], 7);
        let other = Step { tenant: "other", ..Step::default() };
        let fault = other.run(&reach, &blobs, all).await.expect_err("it has a file of its own");
        assert_eq!((fault.code, details(&fault)["pointer"].clone()), (INVALID, json!("/sql")));
        let mut files: Vec<_> = std::fs::read_dir(root.join("sql/embedded")).expect("a folder").flatten().collect();
        files.retain(|file| file.path().extension().is_some_and(|end| end == "sqlite"));
        assert_eq!(files.len(), 2, "one for each tenant");
    });
}

#[test]
fn a_write_that_is_tried_again_finds_what_it_did() {
    on_a_shard(|blobs, root| async move {
        let reach = at_home(&root);
        Step::keyed(1).run(&reach, &blobs, write("CREATE TABLE t (n INTEGER)", json!([]))).await.expect("made");
        let put = write("INSERT INTO t VALUES ($1) RETURNING n, random() AS chance", json!([1]));
        let first = Step::keyed(2).run(&reach, &blobs, put.clone()).await.expect("written");
        for _ in 0..3 {
            assert_eq!(Step::keyed(2).run(&reach, &blobs, put.clone()).await.expect("found"), first, "the very same");
        }
        let fault =
            Step::keyed(2).run(&reach, &blobs, write("INSERT INTO t VALUES ($1)", json!([2]))).await.expect_err("another");
        assert_eq!(fault.code, Code::KeyConflict);
        Step::keyed(3).run(&reach, &blobs, put).await.expect("another step");
        let count = Step::default().run(&reach, &blobs, read("SELECT count(*) AS n FROM t", json!([]))).await.expect("read");
        assert_eq!(count["rows"][0]["n"], 2);
        // One that fails leaves no record.
        let twice = write("INSERT INTO t VALUES (3), (json('no json'))", json!([]));
        Step::keyed(4).run(&reach, &blobs, twice).await.expect_err("no json");
        Step::keyed(4).run(&reach, &blobs, write("INSERT INTO t VALUES (3)", json!([]))).await.expect("nothing of it was kept");
    });
}

#[test]
fn values_come_back_as_they_went() {
    on_a_shard(|blobs, root| async move {
        let reach = at_home(&root);
        let ask = |sql: &str, params: Value| {
            let (reach, blobs, inputs) = (reach.clone(), blobs.clone(), read(sql, params));
            async move { Step::default().run(&reach, &blobs, inputs).await.map(|outputs| outputs["rows"][0].clone()) }
        };
        let row = ask(
            "SELECT $1 AS a, $2 AS b, $3 AS c, $4 AS d, $5 AS e, $6 AS f, $7 AS g, 9e999 AS h",
            json!([null, 9_223_372_036_854_775_807_i64, 1.5, "é\u{1F600}", true, {"type": "bytea", "value": "AP8="}, {"k": [1]}]),
        );
        let told = json!({
            "a": null, "b": 9_223_372_036_854_775_807_i64, "c": 1.5, "d": "é\u{1F600}", "e": 1, "f": "AP8=", "g": "{\"k\":[1]}",
            "h": "Infinity",
        });
        assert_eq!(row.await.expect("a row"), told);
        assert_eq!(
            ask("SELECT $2 AS a, $1 AS b", json!(["one", "two"])).await.expect("by number"),
            json!({"a": "two", "b": "one"})
        );
        assert_eq!(ask("SELECT ? AS a, ? AS b", json!(["one", "two"])).await.expect("in turn"), json!({"a": "one", "b": "two"}));
        let numeric = json!([{"type": "numeric", "value": "123456789012345678901234567890.5"}]);
        assert_eq!(ask("SELECT $1 AS a", numeric).await.expect("a text"), json!({"a": "123456789012345678901234567890.5"}));
        for (sql, params, at) in [
            ("SELECT $1", json!([]), "/params"),
            ("SELECT 1", json!([1]), "/params"),
            ("SELECT :a", json!([1]), "/sql"),
            ("SELECT $1", json!([[1]]), "/params/0"),
            ("SELECT 1 AS a, 2 AS a", json!([]), "/sql"),
            ("SELECT 1; SELECT 2", json!([]), "/sql"),
            ("SELECT nothing", json!([]), "/sql"),
        ] {
            let fault = ask(sql, params).await.expect_err(sql);
            assert_eq!((fault.code, details(&fault)["pointer"].clone()), (INVALID, json!(at)), "{sql}");
        }
        let fault = ask("SELECT CAST(x'ff' AS TEXT) AS a", json!([])).await.expect_err("no text");
        assert_eq!(details(&fault)["column"], "a");
    });
}

#[test]
fn nothing_leads_out_of_the_tenants_own_file() {
    on_a_shard(|blobs, root| async move {
        let reach = at_home(&root);
        Step::keyed(1).run(&reach, &blobs, write("CREATE TABLE t (n INTEGER)", json!([]))).await.expect("made");
        std::fs::write(root.join("secret"), "hunter2").expect("written");
        let mut seen = 0;
        for sql in [
            "SELECT load_extension('/tmp/x')",
            "SELECT * FROM pragma_journal_mode",
            "SELECT * FROM pragma_database_list",
            "WITH x AS (SELECT 1) SELECT * FROM pragma_compile_options",
            "CREATE TEMP TABLE x (a)",
            "CREATE TEMPORARY VIEW x AS SELECT 1",
            "CREATE VIRTUAL TABLE x USING csv(filename='/etc/passwd')",
            "CREATE VIRTUAL TABLE x USING fts4(a)",
            "CREATE TRIGGER x AFTER INSERT ON \"endstation_\u{64}edup\" BEGIN SELECT 1; END",
            "SELECT readfile('/etc/passwd')",
            "INSERT INTO t SELECT fts3_tokenizer('x')",
            "UPDATE sqlite_master SET sql = 'x'",
            "ALTER TABLE t RENAME TO sqlite_x",
        ] {
            let fault = Step::keyed(9).run(&reach, &blobs, write(sql, json!([]))).await.expect_err(sql);
            assert!(matches!(fault.code, INVALID | Code::ExecutionFailed), "{sql}: {fault:?}");
            assert!(!String::from_utf8_lossy(&fault.details).contains("hunter2"), "{sql}");
            seen += 1;
        }
        // A view reaches no more than whoever asks it.
        Step::keyed(2).run(&reach, &blobs, write("CREATE VIEW v AS SELECT n FROM t", json!([]))).await.expect("made");
        for sql in
            ["EXPLAIN QUERY PLAN SELECT * FROM v", "SELECT name FROM pragma_table_info('t')", "SELECT sql FROM sqlite_master"]
        {
            Step::default().run(&reach, &blobs, read(sql, json!([]))).await.unwrap_or_else(|fault| panic!("{sql}: {fault:?}"));
        }
        eprintln!("{seen} ways out of a file, none open");
    });
}

#[test]
fn what_takes_too_long_is_stopped_and_what_nobody_wants_any_more() {
    on_a_shard(|blobs, root| async move {
        let reach = at_home(&root);
        let forever = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
        let begun = std::time::Instant::now();
        let fault =
            Step::default().run(&reach, &blobs, json!({"sql": forever, "timeout_ms": 100})).await.expect_err("without end");
        assert_eq!(fault.code, Code::Timeout);
        let fault = Step { left_ms: 100, ..Step::default() }.run(&reach, &blobs, read(forever, json!([]))).await;
        assert_eq!(fault.expect_err("without end").code, Code::Timeout);
        assert!(begun.elapsed().as_secs() < 5);
        // Dropped midway, the thread is free again and the file as it was.
        Step::keyed(1).run(&reach, &blobs, write("CREATE TABLE t (n)", json!([]))).await.expect("made");
        let step = Step::keyed(2);
        let insert = format!("INSERT INTO t {}", forever.replace("SELECT count(*) FROM n", "SELECT i FROM n"));
        let work = step.run(&reach, &blobs, write(&insert, json!([])));
        let raced = futures_util::future::select(
            Box::pin(work),
            Box::pin(shards::runtime::rt::sleep(std::time::Duration::from_millis(150))),
        );
        assert!(matches!(raced.await, futures_util::future::Either::Right(_)));
        let begun = std::time::Instant::now();
        let count = Step::default().run(&reach, &blobs, read("SELECT count(*) AS n FROM t", json!([]))).await.expect("read");
        assert_eq!(count["rows"][0]["n"], 0);
        assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
    });
}

#[test]
fn a_file_that_is_full_takes_no_more_and_loses_nothing() {
    on_a_shard(|blobs, root| async move {
        let reach = with(sqlite(1 << 20), &root);
        Step::keyed(1).run(&reach, &blobs, write("CREATE TABLE t (a TEXT)", json!([]))).await.expect("made");
        let put = |key: u8| {
            let (reach, blobs) = (reach.clone(), blobs.clone());
            async move { Step::keyed(key).run(&reach, &blobs, write("INSERT INTO t VALUES ($1)", json!(["x".repeat(100_000)]))).await }
        };
        let mut kept = 0;
        let fault = loop {
            match put(10 + kept).await {
                Ok(_) => kept += 1,
                Err(fault) => break fault,
            }
        };
        assert_eq!(fault.code, Code::QuotaExceeded, "{fault:?}");
        assert!((5..=10).contains(&kept), "{kept}");
        let count = Step::default().run(&reach, &blobs, read("SELECT count(*) AS n FROM t", json!([]))).await.expect("read");
        assert_eq!(count["rows"][0]["n"], kept);
        Step::keyed(200).run(&reach, &blobs, write("DELETE FROM t", json!([]))).await.expect("there is room for that");
        put(201).await.expect("and room again");
    });
}

#[test]
fn a_file_that_another_process_holds_is_waited_for_a_while() {
    on_a_shard(|blobs, root| async move {
        let reach = with(sqlite(1 << 24), &root);
        Step::keyed(1).run(&reach, &blobs, write("CREATE TABLE t (a)", json!([]))).await.expect("made");
        let path = std::fs::read_dir(root.join("sql/embedded")).expect("a folder").flatten().map(|entry| entry.path());
        let path = path.filter(|path| path.extension().is_some_and(|end| end == "sqlite")).last().expect("a file");
        let holder = rusqlite::Connection::open(&path).expect("opens");
        holder.execute_batch("BEGIN IMMEDIATE").expect("held");
        let put = write("INSERT INTO t VALUES (1)", json!([]));
        let fault = Step::keyed(2).run(&reach, &blobs, put.clone()).await.expect_err("held");
        assert_eq!((fault.code, fault.effect), (Code::ResourceUnavailable, shards::outcome::Effected::None));
        Step::default().run(&reach, &blobs, read("SELECT * FROM t", json!([]))).await.expect("readers do not wait");
        holder.execute_batch("COMMIT").expect("let go");
        Step::keyed(2).run(&reach, &blobs, put).await.expect("free again");
    });
}

#[test]
fn what_is_no_database_any_more_is_told_and_not_touched() {
    on_a_shard(|blobs, root| async move {
        let reach = at_home(&root);
        let folder = root.join("sql/embedded");
        std::fs::create_dir_all(&folder).expect("made");
        let path = folder.join(format!("{}.sqlite", super::super::super::local::folder_of("acme")));
        std::fs::write(&path, "this is no database, whatever its name says; it is long enough to be looked at".repeat(20))
            .expect("written");
        let before = std::fs::read(&path).expect("there");
        let fault = Step::default().run(&reach, &blobs, read("SELECT 1", json!([]))).await.expect_err("no database");
        assert_eq!(fault.code, Code::ExecutionFailed, "{fault:?}");
        assert_eq!(std::fs::read(&path).expect("there"), before);
    });
}

#[test]
fn more_rows_than_a_step_takes_are_an_error_or_go_into_a_blob() {
    on_a_shard(|blobs, root| async move {
        let reach = at_home(&root);
        let many =
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000) SELECT i, 'row ' || i AS a FROM n";
        let fault = Step::default().run(&reach, &blobs, read(many, json!([]))).await.expect_err("ten thousand unless told");
        assert_eq!((fault.code, &details(&fault)["rows_max"]), (Code::ExecutionFailed, &json!(10_000)));
        let small = json!({"sql": many, "rows_max": 1_000_000, "bytes_max": 1_000});
        let fault = Step::default().run(&reach, &blobs, small).await.expect_err("a thousand bytes");
        assert_eq!(details(&fault)["bytes_max"], 1_000);
        let outputs = Step::default().run(&reach, &blobs, json!({"sql": many, "to": "out.ndjson"})).await.expect("a blob");
        assert_eq!((&outputs["row_count"], &outputs["blob"]["path"]), (&json!(50_000), &json!("out.ndjson")));
        let text =
            std::fs::read_to_string(root.join(super::super::super::local::folder_of("acme")).join("out.ndjson")).expect("there");
        assert_eq!(text.lines().count(), 50_000);
        assert_eq!(text.lines().last(), Some(r#"{"i":50000,"a":"row 50000"}"#));
        let again =
            Step::default().run(&reach, &blobs, json!({"sql": many, "to": "out.ndjson"})).await.expect("the same content");
        assert_eq!(again["blob"]["created"], false);
        let csv = json!({"sql": many, "to": "out.csv", "rows": "csv", "rows_max": 10});
        let fault = Step::default().run(&reach, &blobs, csv).await.expect_err("ten rows");
        assert_eq!(details(&fault)["rows_max"], 10);
        assert!(
            !root.join(super::super::super::local::folder_of("acme")).join("out.csv").exists(),
            "a blob is there whole or not at all"
        );
    });
}

#[test]
fn a_statement_that_writes_needs_to_say_so() {
    on_a_shard(|blobs, root| async move {
        let reach = at_home(&root);
        Step::keyed(1).run(&reach, &blobs, write("CREATE TABLE t (a)", json!([]))).await.expect("made");
        let fault =
            Step::default().run(&reach, &blobs, read("WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x", json!([]))).await;
        let fault = fault.expect_err("its beginning does not tell");
        assert_eq!((fault.code, &details(&fault)["pointer"]), (INVALID, &json!("/mode")));
        let outputs = Step::keyed(2).run(&reach, &blobs, write("SELECT 1 AS a", json!([]))).await.expect("it may read as well");
        assert_eq!((&outputs["affected"], &outputs["rows"]), (&json!(0), &json!([{"a": 1}])));
    });
}
