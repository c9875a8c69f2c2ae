//! Several reads in one session: who joins whom, and that whoever is in another's way costs it a second run and nothing else.

use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use futures_util::future::{Either, join, join_all, join3, select};
use serde_json::{Value, json};
use shards::runtime::rt;

use super::super::super::pool::{Ending, Lease, Pool, Wanted};
use super::super::server::Server;
use super::super::*;
use super::{crm, init, on_crm};

const NAP: &str = "SELECT pg_backend_pid() AS pid, pg_sleep($1)";
/// The same, with the type of its parameter: float8.
const NAPS: &[(&str, &[u32])] = &[(NAP, &[701])];

/// Who sleeps at the server on the worker's account.
const ASLEEP: &str = "SELECT count(*) FROM pg_stat_activity \
                      WHERE state = 'active' AND query LIKE '%pg_sleep%' AND application_name LIKE 'endstation/%'";

/// The connector with so many sessions, and its pool.
fn few(server: &Server, most: u32, root: &std::path::Path) -> (Reach, Rc<Pool>) {
    let reach = with(crm(server.port(), |_, server| server.connections_max = most), root);
    let database = reach.policy.database_for("acme", Some("crm"), false).unwrap_or_else(|_| panic!("it is there")).clone();
    let pool = reach.sql.pool(&database);
    (reach, pool)
}

fn nap(seconds: f64) -> Value {
    on_crm(read(NAP, json!([{"type": "float8", "value": seconds}])))
}

/// Opens a session in which these are known to be quick, and the server to be near, whatever this machine is at.
async fn known(pool: &Rc<Pool>, statements: &[(&str, &[u32])]) {
    let lease = take(pool, Wanted::Any).await.expect("there is room");
    for (sql, oids) in statements {
        let prepared = lease.live().prepared(sql, oids).await.expect("prepared");
        prepared.took(100);
        assert!(prepared.is_quick());
    }
    lease.begin(100);
    lease.end(Ending::Keep);
}

/// How many have joined others.
fn joined(pool: &Pool) -> u64 {
    pool.database.counts.joined.load(Relaxed)
}

async fn pid(reach: &Reach, blobs: &Rc<LocalBlobs>) -> Value {
    Step::default().run(reach, blobs, nap(0.0)).await.expect("a nap")["rows"][0]["pid"].clone()
}

async fn take(pool: &Rc<Pool>, wanted: Wanted<'_>) -> Result<Lease, Fault> {
    let server = pool.database.server().expect("a server").clone();
    pool.take(&server, 200, wanted).await
}

#[test]
fn a_quick_read_joins_others_of_its_kind_where_all_sessions_are_in_use() {
    let server = Server::start();
    init(&server);
    on_a_shard(|_, root| async move {
        let (_, pool) = few(&server, 1, &root);
        let quick = Wanted::Shared("SELECT 1", &[]);
        let first = take(&pool, quick).await.expect("there is room");
        let prepared = first.live().prepared("SELECT 1", &[]).await.expect("prepared");
        assert!(take(&pool, quick).await.is_err(), "nothing is known of the statement yet");
        prepared.took(300);
        assert!(take(&pool, quick).await.is_err(), "the first has not said that it may be joined");
        first.share();
        let second = take(&pool, quick).await.expect("it may");
        assert!(second.joined && second.live().name == first.live().name, "the same session");
        assert!(take(&pool, Wanted::Shared("SELECT 2", &[])).await.is_err(), "another statement");
        assert!(take(&pool, Wanted::Any).await.is_err(), "one that is to be alone");
        first.end(Ending::Keep);
        let third = take(&pool, quick).await.expect("the second is in it still");
        prepared.took(1_000_000);
        assert!(take(&pool, quick).await.is_err(), "it is quick no more");
        second.end(Ending::Keep);
        third.end(Ending::Keep);
        let alone = take(&pool, Wanted::Any).await.expect("nobody is in it");
        assert!(alone.used && !alone.joined);
        alone.end(Ending::Keep);
        // No more than so many.
        let all = async {
            let first = take(&pool, quick).await.expect("idle");
            let prepared = first.live().prepared("SELECT 1", &[]).await.expect("kept");
            (0..40).for_each(|_| prepared.took(100));
            first.share();
            let mut leases = vec![first];
            while let Ok(lease) = take(&pool, quick).await {
                leases.push(lease);
            }
            leases
        };
        let leases = all.await;
        assert_eq!(leases.len(), 16);
        // Whoever waits to be alone is not passed by those who would join.
        let patient = async { take(&pool, Wanted::Any).await.map(|lease| lease.end(Ending::Keep)) };
        let joins = async {
            rt::sleep(Duration::from_millis(20)).await;
            let mut leases = leases;
            leases.truncate(8);
            let passed = take(&pool, quick).await.is_ok();
            leases.into_iter().for_each(|lease| lease.end(Ending::Keep));
            passed
        };
        // Half of the leases were dropped before anything was begun: the session ends behind the others, and another is opened.
        let (alone, passed) = join(patient, joins).await;
        assert!(!passed, "it would have to wait behind the one that wants to be alone");
        assert!(alone.is_err(), "which did not get it in time either, as eight were at work for longer");
        let database = pool.database.server().expect("a server").clone();
        let other = pool.take(&database, 5_000, Wanted::Any).await.expect("another");
        assert!(!other.used, "the old one did not come back");
    });
}

#[test]
fn a_read_behind_a_slow_one_goes_elsewhere() {
    let server = Server::start();
    init(&server);
    on_a_shard(|blobs, root| async move {
        // The second session is a write's for a while.
        let (wide, pool) = few(&server, 2, &root);
        known(&pool, NAPS).await;
        let begun = Instant::now();
        let slow = async {
            let outputs = Step::default().run(&wide, &blobs, nap(3.0)).await;
            (outputs, begun.elapsed())
        };
        let write = async {
            rt::sleep(Duration::from_millis(50)).await;
            Step::keyed(2).run(&wide, &blobs, on_crm(write("SELECT pg_sleep(0.5)", json!([])))).await
        };
        let behind = async {
            rt::sleep(Duration::from_millis(200)).await;
            assert!(take(&pool, Wanted::Any).await.is_err(), "all are in use");
            let outputs = Step::default().run(&wide, &blobs, nap(0.0)).await;
            (outputs, begun.elapsed())
        };
        let ((slow, slow_took), written, (quick, quick_took)) = join3(slow, write, behind).await;
        written.expect("written");
        assert_eq!(joined(&pool), 1, "it had joined the slow one before");
        let (slow, quick) = (slow.expect("slow"), quick.expect("quick"));
        assert_ne!(slow["rows"][0]["pid"], quick["rows"][0]["pid"]);
        assert!(slow_took >= Duration::from_secs(3) && quick_took < Duration::from_millis(2_500), "{slow_took:?} {quick_took:?}");
    });
}

#[test]
fn one_that_is_cancelled_costs_those_behind_it_a_second_run_at_most() {
    let server = Server::start();
    init(&server);
    on_a_shard(|blobs, root| async move {
        let (reach, pool) = few(&server, 1, &root);
        known(&pool, NAPS).await;
        let begun = Instant::now();
        let cancelled = async {
            let (step, inputs) = (Step::default(), nap(30.0));
            let work = Box::pin(step.run(&reach, &blobs, inputs));
            assert!(matches!(select(work, Box::pin(rt::sleep(Duration::from_millis(300)))).await, Either::Right(_)));
        };
        let behind = async {
            rt::sleep(Duration::from_millis(250)).await;
            Step::default().run(&reach, &blobs, nap(0.0)).await
        };
        let ((), outputs) = join(cancelled, behind).await;
        outputs.expect("once the other was cancelled, or elsewhere");
        assert_eq!(joined(&pool), 1);
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert_eq!(server.ask(ASLEEP), "0", "it ended at the server, too");
    });
}

#[test]
fn one_that_goes_before_its_turn_is_in_nobodys_way() {
    let server = Server::start();
    init(&server);
    on_a_shard(|blobs, root| async move {
        let (reach, pool) = few(&server, 1, &root);
        known(&pool, NAPS).await;
        let pid = pid(&reach, &blobs).await;
        known(&pool, NAPS).await;
        let first = async { Step::default().run(&reach, &blobs, nap(0.6)).await };
        let gone = async {
            rt::sleep(Duration::from_millis(100)).await;
            let (step, inputs) = (Step::default(), nap(30.0));
            let work = Box::pin(step.run(&reach, &blobs, inputs));
            assert!(matches!(select(work, Box::pin(rt::sleep(Duration::from_millis(50)))).await, Either::Right(_)));
        };
        let (first, ()) = join(first, gone).await;
        assert_eq!(first.expect("undisturbed")["rows"][0]["pid"], pid);
        assert_eq!(joined(&pool), 1, "the one that has gone");
        let begun = Instant::now();
        Step::default().run(&reach, &blobs, nap(0.0)).await.expect("there is room again");
        while server.ask(ASLEEP) != "0" {
            assert!(begun.elapsed() < Duration::from_secs(5), "what it sent runs on");
            rt::sleep(Duration::from_millis(20)).await;
        }
    });
}

#[test]
fn what_was_prepared_and_does_not_hold_any_more_is_sent_anew() {
    let server = Server::start();
    init(&server);
    server.ask("CREATE TABLE t (a int); INSERT INTO t VALUES (1); GRANT ALL ON t TO worker");
    on_a_shard(|blobs, root| async move {
        let (reach, _) = few(&server, 2, &root);
        let (look, step) = (on_crm(read("SELECT a FROM t", json!([]))), Step::default());
        for _ in 0..10 {
            let all = join_all((0..6).map(|_| step.run(&reach, &blobs, look.clone()))).await;
            assert!(all.into_iter().all(|outputs| outputs.expect("read")["rows"][0]["a"] == 1));
        }
        server.ask("ALTER TABLE t ALTER a TYPE text");
        for outputs in join_all((0..8).map(|_| step.run(&reach, &blobs, look.clone()))).await {
            assert_eq!(outputs.expect("read anew")["rows"][0]["a"], "1");
        }
    });
}

#[test]
fn a_session_whose_transaction_did_not_begin_does_not_come_back() {
    let mut server = Server::start();
    init(&server);
    server.demote();
    on_a_shard(|blobs, root| async move {
        let (reach, _) = few(&server, 1, &root);
        let mut spoil = on_crm(read("SELECT set_config('search_path', 'pg_catalog', false) AS a", json!([])));
        spoil["isolation"] = json!("serializable");
        let step = Step::default();
        step.run(&reach, &blobs, spoil).await.expect_err("a standby has no serializable transactions");
        let look = on_crm(read("SELECT current_setting('search_path') AS path", json!([])));
        assert_eq!(step.run(&reach, &blobs, look).await.expect("read")["rows"][0]["path"], "\"$user\", public");
    });
}

#[test]
fn what_one_leaves_behind_the_next_in_its_session_does_not_see() {
    let server = Server::start();
    init(&server);
    on_a_shard(|blobs, root| async move {
        let (reach, pool) = few(&server, 1, &root);
        let spoil = "SELECT set_config('search_path', 'pg_catalog', false) AS a, \
                     set_config('default_transaction_read_only', 'off', false) AS b, pg_try_advisory_lock_shared(7) AS c";
        let look = "SELECT current_setting('search_path') AS path, current_setting('transaction_read_only') AS safe, \
                    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory') AS locks";
        known(&pool, &[(spoil, &[]), (look, &[])]).await;
        let (spoil, look) = (on_crm(read(spoil, json!([]))), on_crm(read(look, json!([]))));
        let clean = json!({"path": "\"$user\", public", "safe": "on", "locks": 0});
        let step = Step::default();
        let both = (0..20).map(|at| step.run(&reach, &blobs, if at % 2 == 0 { spoil.clone() } else { look.clone() }));
        let all = join_all(both).await;
        for outputs in all.into_iter().skip(1).step_by(2) {
            assert_eq!(outputs.expect("read")["rows"][0], clean);
        }
        assert!(joined(&pool) >= 15, "{} of 19", joined(&pool));
    });
}
