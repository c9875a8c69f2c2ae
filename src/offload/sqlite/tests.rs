//! Orders and their turns: one at a time on a file, none lost, and nobody kept waiting by another's file.

use super::*;

fn order(path: &Path, sql: &str, writes: bool) -> Order {
    Order {
        path: path.to_owned(),
        bytes_max: 1 << 24,
        sql: sql.to_owned(),
        params: Vec::new(),
        writes,
        record: None,
        form: Form::Lists,
        bounds: Bounds { rows_max: 10, bytes_max: 1 << 10 },
        within_ms: 20_000,
        lock_ms: 1_000,
        pieces: None,
    }
}

fn outputs(done: Result<Done, Failed>) -> serde_json::Value {
    match done.expect("done") {
        Done::Outputs(bytes) => serde_json::from_slice(&bytes).expect("JSON"),
        Done::Sent { .. } => panic!("there is no blob"),
    }
}

fn wait(under_way: UnderWay) -> Result<Done, Failed> {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(under_way.done())
}

#[test]
fn orders_on_one_file_are_done_in_turn_and_none_is_lost() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a/b.sqlite");
    let sqlite = Sqlite::default();
    wait(sqlite.ask(order(&path, "CREATE TABLE t (n INTEGER)", true)).expect("room")).expect("made");
    let under_way: Vec<_> = (0..200).map(|_| sqlite.ask(order(&path, "INSERT INTO t VALUES (1)", true)).expect("room")).collect();
    for one in under_way {
        wait(one).expect("written");
    }
    let count = outputs(wait(sqlite.ask(order(&path, "SELECT count(*) FROM t", false)).expect("room")));
    assert_eq!(count["rows"][0][0], 200);
}

#[test]
fn whoever_has_slow_statements_keeps_no_more_than_one_thread() {
    let folder = tempfile::tempdir().expect("a folder");
    let sqlite = Sqlite::default();
    let slow = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    let path = folder.path().join("slow.sqlite");
    let slow: Vec<_> = (0..8).map(|_| sqlite.ask(order(&path, slow, false)).expect("room")).collect();
    let begun = Instant::now();
    for number in 0..20 {
        let path = folder.path().join(format!("{number}.sqlite"));
        outputs(wait(sqlite.ask(order(&path, "SELECT 1", false)).expect("room")));
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    drop(slow);
    let begun = Instant::now();
    outputs(wait(sqlite.ask(order(&path, "SELECT 1", false)).expect("room")));
    assert!(begun.elapsed() < Duration::from_secs(10), "what nobody wants any more is not done");
}

#[test]
fn files_beyond_those_that_stay_open_are_closed_and_opened_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let sqlite = Sqlite::default();
    for round in 0..2 {
        for number in 0..OPEN_MAX + 10 {
            let path = folder.path().join(format!("{number}.sqlite"));
            let sql = if round == 0 { "CREATE TABLE t (n INTEGER)" } else { "INSERT INTO t VALUES (1)" };
            wait(sqlite.ask(order(&path, sql, true)).expect("room")).expect("done");
        }
    }
    assert!(sqlite.0.desk().files.len() <= OPEN_MAX + 1);
}
