//! A real PgBouncer that hands sessions out for a transaction each, between the worker and a real server: two sessions there for
//! however many steps.

use std::fs;
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use futures_util::future::{Either, join_all, select};
use serde_json::json;
use shards::outcome::Effected;
use shards::runtime::rt;

use super::super::server::{DATABASE, PASSWORD, Server, USER, folder, free_port, own, unprivileged};
use super::super::*;
use super::{crm, init, on_crm};

/// How long it may take to come up.
const START_MAX: Duration = Duration::from_secs(20);

/// Dies with this value.
struct Bouncer {
    dir: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

impl Bouncer {
    /// Before this server.
    fn before(server: &Server) -> Bouncer {
        let (dir, port) = (folder(), free_port());
        let users = dir.path().join("users");
        let settings = format!(
            "[databases]\n{DATABASE} = host=127.0.0.1 port={} dbname={DATABASE}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = scram-sha-256\nauth_file = {}\npool_mode = transaction\ndefault_pool_size = 2\nmax_client_conn = 100\n",
            server.port(),
            users.display(),
        );
        for (name, text) in [("settings", settings), ("users", format!("\"{USER}\" \"{PASSWORD}\"\n"))] {
            let path = dir.path().join(name);
            fs::write(&path, text).expect("written");
            own(&path);
        }
        let mut bouncer = Bouncer { dir, port, child: None };
        bouncer.start();
        bouncer
    }

    fn start(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log")).expect("a log");
        let mut command = unprivileged("pgbouncer");
        command.arg(self.dir.path().join("settings")).current_dir(self.dir.path()).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        // Debian keeps it where only root's path leads.
        let paths = std::env::var("PATH").unwrap_or_default();
        self.child = Some(command.env("PATH", format!("{paths}:/usr/sbin")).spawn().expect("run `make deps`"));
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(begun.elapsed() < START_MAX, "PgBouncer does not come up:\n{log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _it_may_be_gone = child.kill();
            let _status = child.wait();
        }
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn through(bouncer: &Bouncer, root: &std::path::Path) -> Reach {
    let change = |server: &mut crate::policy::databases::PostgresSettings| (server.pooler, server.connections_max) = (true, 24);
    with(crm(bouncer.port, |_, server| change(server)), root)
}

#[test]
fn steps_share_few_sessions_and_each_write_is_there_once() {
    let server = Server::start();
    init(&server);
    server.ask("CREATE TABLE t (n int); GRANT ALL ON t TO worker");
    let bouncer = Bouncer::before(&server);
    on_a_shard(|blobs, root| async move {
        let reach = through(&bouncer, &root);
        let steps: Vec<(Step, Value)> =
            (1..=40).map(|n: u8| (Step::keyed(n), on_crm(write("INSERT INTO t VALUES ($1) RETURNING n", json!([n]))))).collect();
        // Each twice, at once: one waits for the other's record and then finds it.
        let twice = steps.iter().chain(&steps).map(|(step, inputs)| step.run(&reach, &blobs, inputs.clone()));
        for (at, outputs) in join_all(twice).await.into_iter().enumerate() {
            assert_eq!(outputs.expect("written, or found")["rows"][0]["n"], json!(at % 40 + 1));
        }
        assert_eq!(server.ask("SELECT count(*), count(DISTINCT n) FROM t"), "40|40");
        let look = on_crm(read("SELECT count(*) AS n FROM t WHERE n <= $1", json!([10])));
        let step = Step::default();
        for outputs in join_all((0..60).map(|_| step.run(&reach, &blobs, look.clone()))).await {
            assert_eq!(outputs.expect("read")["rows"][0]["n"], 10);
        }
        let backends = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{USER}'");
        assert_eq!(server.ask(&backends), "2", "as PgBouncer has it");
    });
}

#[test]
fn what_reads_leaves_nothing_behind_for_whoever_has_its_session_next() {
    let server = Server::start();
    init(&server);
    server.ask("CREATE TABLE t (n int); GRANT ALL ON t TO worker");
    let bouncer = Bouncer::before(&server);
    on_a_shard(|blobs, root| async move {
        let reach = through(&bouncer, &root);
        let spoil = "SELECT set_config('search_path', 'pg_catalog', false) AS a, set_config('role', 'none', false) AS b, \
                     set_config('default_transaction_read_only', 'off', false) AS c, pg_advisory_lock_shared(7)::text AS d";
        let (spoil, step) = (on_crm(read(spoil, json!([]))), Step::default());
        for outputs in join_all((0..20).map(|_| step.run(&reach, &blobs, spoil.clone()))).await {
            outputs.expect("read");
        }
        assert_eq!(server.ask("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"), "0");
        let look = on_crm(read("SELECT current_setting('search_path') AS path", json!([])));
        for outputs in join_all((0..20).map(|_| step.run(&reach, &blobs, look.clone()))).await {
            assert_eq!(outputs.expect("read")["rows"][0]["path"], "\"$user\", public");
        }
        let sneak = on_crm(read("WITH x AS (INSERT INTO t VALUES (1) RETURNING n) SELECT * FROM x", json!([])));
        assert_eq!(step.run(&reach, &blobs, sneak).await.expect_err("it reads").code, INVALID);
        assert_eq!(server.ask("SELECT count(*) FROM t"), "0");
    });
}

#[test]
fn a_cancel_reaches_the_server_and_a_pooler_that_dies_costs_a_try() {
    let server = Server::start();
    init(&server);
    server.ask("CREATE TABLE t (n int); GRANT ALL ON t TO worker");
    let mut bouncer = Bouncer::before(&server);
    on_a_shard(|blobs, root| async move {
        let reach = through(&bouncer, &root);
        let step = Step::default();
        let asleep = || {
            server.ask("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep(30)%' AND pid <> pg_backend_pid()")
        };
        let work = Box::pin(step.run(&reach, &blobs, on_crm(read("SELECT pg_sleep(30)", json!([])))));
        assert!(matches!(select(work, Box::pin(rt::sleep(Duration::from_millis(400)))).await, Either::Right(_)));
        let begun = Instant::now();
        while asleep() != "0" {
            assert!(begun.elapsed() < Duration::from_secs(5), "it sleeps on");
            rt::sleep(Duration::from_millis(20)).await;
        }
        let put = |n: u8| on_crm(write("INSERT INTO t VALUES ($1)", json!([n])));
        Step::keyed(1).run(&reach, &blobs, put(1)).await.expect("written");
        bouncer.kill();
        let fault = Step::keyed(2).run(&reach, &blobs, put(2)).await.expect_err("nobody is there");
        assert_eq!((fault.code, fault.effect), (Code::ConnectionError, Effected::None), "{fault:?}");
        bouncer.start();
        Step::keyed(2).run(&reach, &blobs, put(2)).await.expect("there again");
        Step::keyed(1).run(&reach, &blobs, put(1)).await.expect("found");
        assert_eq!(server.ask("SELECT count(*) FROM t"), "2");
    });
}
