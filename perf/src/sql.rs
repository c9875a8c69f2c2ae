//! A PostgreSQL server for `sql`, and a bare client of it: the same transactions by the same library on the same server, without a
//! worker around them. What a worker costs is beside that, and what a record of a step costs is between two rows.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::net::TcpStream;
use tokio_postgres::{Client, Config, NoTls};

use crate::process::thread_cpu_us;

use server::{DATABASE, PASSWORD, Server, USER};

#[expect(dead_code, reason = "the server of the tests, which use more of it")]
#[path = "../../src/blocks/sql/tests/server.rs"]
mod server;

/// Rows that a select finds.
pub(crate) const ROWS: u32 = 10_000;
pub(crate) const SELECT: &str = "SELECT id, name, at FROM things WHERE id = $1";
pub(crate) const INSERT: &str = "INSERT INTO visits VALUES ($1, $2)";
/// Connections, of the worker and of the bare client.
const CONNECTIONS: usize = 8;

/// See the module.
pub(crate) struct Database(Server);

/// What a bare client does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Select,
    Write,
    Recorded,
}

impl Database {
    /// One whose commits are durable, with its tables.
    pub(crate) fn open() -> Database {
        let server = Server::with(&["fsync=on", "shared_buffers=128MB"]);
        server.ask(&endstation::cli::sql::script(USER));
        server.ask(&format!(
            "CREATE TABLE things (id int PRIMARY KEY, name text, at timestamptz DEFAULT now()); \
             INSERT INTO things SELECT n, 'thing ' || n FROM generate_series(0, {ROWS}) AS n; \
             CREATE TABLE visits (n bigint, what text); GRANT ALL ON things, visits TO {USER}; ANALYZE"
        ));
        Database(server)
    }

    /// Takes away what the measurement before left.
    pub(crate) fn empty(&self) {
        self.0.ask("TRUNCATE visits, endstation_dedup; CHECKPOINT");
    }

    /// What a worker is told of it.
    pub(crate) fn env(&self) -> Vec<(String, String)> {
        let mut all = vec![("PERF_DATABASE".to_owned(), PASSWORD.to_owned())];
        for (name, dedup) in [("CRM", "true"), ("PLAIN", "false")] {
            for (field, value) in [
                ("TENANTS", "*".to_owned()),
                ("KIND", "postgres".to_owned()),
                ("HOST", "127.0.0.1".to_owned()),
                ("PORT", self.0.port().to_string()),
                ("DATABASE", DATABASE.to_owned()),
                ("USER", USER.to_owned()),
                ("PASSWORD", "secret://env/PERF_DATABASE".to_owned()),
                ("TLS", "disable".to_owned()),
                ("ALLOW", "127.0.0.1".to_owned()),
                ("MAX_CONNECTIONS", CONNECTIONS.to_string()),
                ("DEDUP", dedup.to_owned()),
            ] {
                all.push((format!("ENDSTATION__CONNECTORS__{name}__{field}"), value));
            }
        }
        all
    }

    /// What a client without a worker reaches, as lines of a report.
    pub(crate) async fn bare(&self, seconds: f64) -> Result<String> {
        let mut note = String::new();
        for (work, what) in [
            (Work::Select, "selects in a transaction that reads"),
            (Work::Write, "inserts in a transaction"),
            (Work::Recorded, "inserts with a record in the same transaction"),
        ] {
            self.empty();
            let port = self.0.port();
            let task = std::thread::spawn(move || -> Result<(f64, f64)> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(loops(port, work, seconds))
            });
            let (rate, cpu_us) =
                tokio::task::spawn_blocking(move || task.join()).await?.ok().context("the bare client panicked")??;
            note += &format!("a bare client, {CONNECTIONS} connections: {rate:.0} {what}/s, {cpu_us:.1} µs of its CPU each\n");
        }
        Ok(note)
    }
}

/// So many connections at once: how many transactions a second, and the processor time of each in microseconds.
async fn loops(port: u16, work: Work, seconds: f64) -> Result<(f64, f64)> {
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let mut config = Config::new();
        config.user(USER).password(PASSWORD).dbname(DATABASE);
        let (client, connection) = config.connect_raw(stream, NoTls).await?;
        tokio::spawn(connection);
        clients.push(client);
    }
    let (begun, cpu) = (Instant::now(), thread_cpu_us(0)?);
    let until = begun + Duration::from_secs_f64(seconds);
    let all = clients.iter().enumerate().map(|(at, client)| one(client, at as u64, work, until));
    let done: u64 = futures_util::future::try_join_all(all).await?.into_iter().sum();
    let (elapsed, cpu) = (begun.elapsed().as_secs_f64(), thread_cpu_us(0)? - cpu);
    Ok((done as f64 / elapsed, cpu as f64 / done.max(1) as f64))
}

async fn one(client: &Client, number: u64, work: Work, until: Instant) -> Result<u64> {
    let select = client.prepare(SELECT).await?;
    let insert = client.prepare(INSERT).await?;
    let record = client.prepare("INSERT INTO endstation_dedup (key, fingerprint) VALUES ($1, $2)").await?;
    let outcome = client.prepare("UPDATE endstation_dedup SET outcome = $2 WHERE key = $1").await?;
    let mut done = 0_u64;
    while Instant::now() < until {
        let n = number << 40 | done;
        if work == Work::Select {
            let id = (n % u64::from(ROWS)) as i32;
            let begin = client.batch_execute("BEGIN READ ONLY");
            let params: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&id];
            let (begun, rows, ended) =
                futures_util::join!(begin, client.query(&select, &params), client.batch_execute("ROLLBACK"));
            begun?;
            ended?;
            anyhow::ensure!(rows?.len() == 1, "a row");
            done += 1;
            continue;
        }
        let (key, fingerprint) = (n.to_le_bytes(), [7_u8; 32]);
        let mut wide = [0; 16];
        wide[..8].copy_from_slice(&key);
        let (wide, fingerprint) = (&wide[..], &fingerprint[..]);
        let record_params: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&wide, &fingerprint];
        let number = n as i64;
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&number, &"visited"];
        let told = r#"{"affected":1,"dedup":true,"row_count":0,"columns":[],"rows":[]}"#;
        let outcome_params: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&wide, &told];
        match work {
            Work::Recorded => {
                let (begun, kept, put) = futures_util::join!(
                    client.batch_execute("BEGIN"),
                    client.execute(&record, &record_params),
                    client.execute(&insert, &params)
                );
                begun?;
                kept?;
                put?;
                let (told, ended) =
                    futures_util::join!(client.execute(&outcome, &outcome_params), client.batch_execute("COMMIT"));
                told?;
                ended?;
            }
            Work::Write | Work::Select => {
                let (begun, put) = futures_util::join!(client.batch_execute("BEGIN"), client.execute(&insert, &params));
                begun?;
                put?;
                client.batch_execute("COMMIT").await?;
            }
        }
        done += 1;
    }
    Ok(done)
}
