//! Statements as a tenant sends them: over the wire, over a restart, over crashes and `kill -9`, with the rows counted at the
//! database itself.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::database::{DATABASE, PASSWORD, Server, USER};
use crate::router::{Assignment, Seen};
use crate::worker::{Settings, Worker};
use crate::world::{PATIENCE, World};

/// A worker for whose tenant `acme` this server is the connectors `crm`, which keeps records of writes, and `plain`, which does
/// not; and `notes` an embedded database.
fn settings(server: &Server) -> Settings {
    let mut settings = Settings::default().set("IT_DATABASE", PASSWORD);
    for (name, dedup) in [("CRM", "true"), ("PLAIN", "false")] {
        for (field, value) in [
            ("TENANTS", "acme".to_owned()),
            ("KIND", "postgres".to_owned()),
            ("HOST", "127.0.0.1".to_owned()),
            ("PORT", server.port().to_string()),
            ("DATABASE", DATABASE.to_owned()),
            ("USER", USER.to_owned()),
            ("PASSWORD", "secret://env/IT_DATABASE".to_owned()),
            ("TLS", "disable".to_owned()),
            ("ALLOW", "127.0.0.1".to_owned()),
            ("DEDUP", dedup.to_owned()),
        ] {
            settings = settings.set(&format!("ENDSTATION__CONNECTORS__{name}__{field}"), &value);
        }
    }
    settings.set("ENDSTATION__CONNECTORS__NOTES__KIND", "sqlite").set("ENDSTATION__CONNECTORS__NOTES__TENANTS", "acme")
}

/// The table that steps write into, in both databases that keep records.
async fn prepared(world: &mut World, server: &Server) -> Result<()> {
    let init = world.worker.command(&["sql", "init", "crm"]).output()?;
    ensure!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
    server.ask(&format!("CREATE TABLE visits (place text); GRANT ALL ON visits TO {USER}"));
    let made = statement("notes", "CREATE TABLE visits (place TEXT)", json!([]));
    outputs(&world.router.run(&made, PATIENCE).await?)?;
    Ok(())
}

fn statement(connector: &str, sql: &str, params: Value) -> Assignment {
    Assignment::new("acme", "sql.query", json!({"connector": connector, "mode": "write", "sql": sql, "params": params}))
}

fn visit(connector: &str, place: &str) -> Assignment {
    statement(connector, "INSERT INTO visits VALUES ($1) RETURNING place", json!([place]))
}

fn outputs(seen: &Seen) -> Result<&Value> {
    ensure!(seen.status() == "success", "not a success: {:?}", seen.object);
    seen.object.get("outputs").context("no outputs")
}

/// How many rows there are of a place.
async fn rows(world: &mut World, server: &Server, connector: &str, place: &str) -> Result<u64> {
    if connector != "notes" {
        return Ok(server.ask(&format!("SELECT count(*) FROM visits WHERE place = '{place}'")).parse()?);
    }
    let inputs = json!({"connector": "notes", "sql": "SELECT count(*) AS n FROM visits WHERE place = $1", "params": [place]});
    let seen = world.router.run(&Assignment::new("acme", "sql.query", inputs), PATIENCE).await?;
    outputs(&seen)?["rows"][0]["n"].as_u64().context("a number")
}

#[tokio::test]
async fn a_row_is_written_once_over_duplicates_and_a_restart() -> Result<()> {
    let server = Server::start();
    let mut world = World::jetstream(settings(&server)).await?;
    prepared(&mut world, &server).await?;
    for connector in ["crm", "plain", "notes"] {
        let job = visit(connector, connector);
        let first = world.router.run(&job, PATIENCE).await?;
        ensure!(outputs(&first)?["rows"] == json!([{"place": connector}]), "{:?}", first.object);
        ensure!(outputs(&first)?["dedup"] == (connector != "plain"), "{:?}", first.object);
        let repeats = world.router.wait(PATIENCE, "counts", |model| Some(model.counts().repeats)).await?;
        world.router.send(&job).await?;
        world.router.wait(PATIENCE, "a repeat", |model| (model.counts().repeats > repeats).then_some(())).await?;
        ensure!(rows(&mut world, &server, connector, connector).await? == 1, "{connector}");
    }
    world.worker.kill();
    world.worker.restart().await?;
    for connector in ["crm", "notes"] {
        ensure!(rows(&mut world, &server, connector, connector).await? == 1, "{connector}");
    }
    // Where there is no table for records, nothing is written and the cure is named.
    server.ask("DROP TABLE endstation_dedup");
    let seen = world.router.run(&visit("crm", "nowhere"), PATIENCE).await?;
    ensure!(seen.status() == "error" && seen.object["effect"] == "none", "{:?}", seen.object);
    ensure!(seen.object["error_details"]["rule"].to_string().contains("endstation sql init crm"), "{:?}", seen.object);
    // A connection string is refused before anything happens, and not said back.
    let inputs = json!({"connector": "postgres://u:hunter2@h/d", "sql": "SELECT 1"});
    let seen = world.router.run(&Assignment::new("acme", "sql.query", inputs), PATIENCE).await?;
    ensure!(seen.status() == "error" && seen.code() == "INVALID_INPUT", "{:?}", seen.object);
    ensure!(!serde_json::to_string(&seen.object)?.contains("hunter2"), "{:?}", seen.object);
    let seen = world
        .router
        .run(&Assignment::new("other", "sql.query", json!({"connector": "crm", "sql": "SELECT 1"})), PATIENCE)
        .await?;
    ensure!(seen.code() == "PERMISSION_DENIED", "{:?}", seen.object);
    world.finish().await
}

#[tokio::test]
async fn a_worker_that_is_killed_while_it_writes_leaves_each_row_once() -> Result<()> {
    const KILLS: usize = 6;
    const STEPS: usize = 40;
    let server = Server::start();
    let mut world = World::jetstream(settings(&server)).await?;
    prepared(&mut world, &server).await?;
    let mut jobs = Vec::new();
    for kill in 0..KILLS {
        for n in 0..STEPS {
            let connector = ["crm", "notes", "plain"][n % 3];
            jobs.push((connector, format!("{kill}-{n}"), visit(connector, &format!("{kill}-{n}"))));
        }
        let batch: Vec<Assignment> = jobs[kill * STEPS..].iter().map(|(_, _, job)| job.clone()).collect();
        world.router.send_all(&batch).await?;
        tokio::time::sleep(std::time::Duration::from_millis(15 + 25 * kill as u64)).await;
        world.worker.kill();
        world.worker.restart().await?;
    }
    world.router.all_answered(PATIENCE).await?;
    let (mut ok, mut unknown, mut doubles) = (0, 0, 0);
    for (connector, place, job) in &jobs {
        let seen = world.router.result(&job.id, PATIENCE).await?;
        let rows = rows(&mut world, &server, connector, place).await?;
        doubles += usize::from(rows > 1);
        match seen.status() {
            "success" => {
                ok += 1;
                ensure!(rows == 1, "{connector} {place}: {rows} rows, and done");
            }
            _ => {
                // What keeps no records is not run again where it may have happened.
                ensure!(*connector == "plain" && seen.code() == "INDETERMINATE", "{:?}", seen.object);
                unknown += 1;
            }
        }
    }
    eprintln!("{KILLS} kills, {} writes: {ok} done, {unknown} not run again, {doubles} double rows", jobs.len());
    ensure!(doubles == 0, "{doubles} rows twice");
    world.finish().await
}

#[tokio::test]
async fn a_connector_with_fewer_connections_than_shards_is_refused_at_the_start() -> Result<()> {
    let server = Server::start();
    let settings =
        settings(&server).set("ENDSTATION__CONNECTORS__CRM__MAX_CONNECTIONS", "1").set("ENDSTATION__CORES__SHARDS", "0,1");
    if std::thread::available_parallelism()?.get() < 2 {
        eprintln!("SKIPPED: one core has one shard, which has every connection");
        return Ok(());
    }
    let nats = crate::server::NatsServer::start(true).await?;
    let mut worker = Worker::stopped(&nats.url(), settings)?;
    worker.launch(&[])?;
    let status = worker.ended(PATIENCE).await?;
    ensure!(status.code() == Some(3), "{status}: {}", worker.log_tail());
    ensure!(
        worker.log_text().contains("connectors.crm.max_connections: is 1, fewer than one for each of the 2 shards"),
        "{}",
        worker.log_tail()
    );
    Ok(())
}

#[cfg(feature = "failpoints")]
mod points {
    use std::time::Duration;

    use super::*;
    use crate::router::peer::Router;
    use crate::router::{Strictness, Subjects};
    use crate::server::NatsServer;

    /// Steps of a connector that are under way at the crash.
    const STEPS: u32 = 3;

    async fn survives(point: &str) -> Result<()> {
        let server = Server::start();
        let nats = NatsServer::start(true).await?;
        // Acks and results may be cut apart by the crash: their order is another test's business.
        let strict = Strictness { message_ids: true, order: false, owners: false };
        let router = Router::connect(&nats.url(), true, Subjects::default(), strict).await?;
        let worker = Worker::start(&nats.url(), settings(&server)).await?;
        let mut world = World { router, worker, server: nats };
        prepared(&mut world, &server).await?;
        let mut told = Vec::new();
        for connector in ["crm", "notes", "plain"] {
            world.worker.terminate()?;
            world.worker.ended(PATIENCE).await?;
            let place = |n: u32| format!("{connector}-{point}-{n}");
            let jobs: Vec<_> = (0..STEPS).map(|n| visit(connector, &place(n))).collect();
            world.router.send_all(&jobs).await?;
            world.worker.launch(&[("FAILPOINTS", &format!("{point}=return"))])?;
            let died = world.worker.aborted(Duration::from_secs(20)).await;
            died.with_context(|| format!("{point} did not trip for {connector}"))?;
            if point == "C9" {
                // The acks were sent and not yet kept.
                world.server.kill();
                world.server.restart().await?;
            }
            world.worker.restart().await?;
            world.router.all_answered(PATIENCE).await?;
            // What a killed server forgot was settled, it holds until its own time is over.
            if point != "C9" {
                world.router.stream_is_empty().await?;
            }
            world.router.read_result_stream().await?;
            let (mut done, mut written) = (0, 0);
            for (n, job) in (0..STEPS).zip(&jobs) {
                let seen = world.router.result(&job.id, PATIENCE).await?;
                let rows = rows(&mut world, &server, connector, &place(n)).await?;
                let said = || format!("{point}, {connector}: {rows} rows, {:?}", seen.object);
                let succeeded = seen.status() == "success";
                if connector == "plain" {
                    ensure!(rows <= 1 && (succeeded || seen.code() == "INDETERMINATE"), "{}", said());
                    ensure!(!succeeded || rows == 1, "{}", said());
                } else {
                    ensure!(succeeded && rows == 1, "{}", said());
                }
                done += u32::from(succeeded);
                written += rows;
            }
            told.push(json!({"connector": connector, "steps": STEPS, "done": done, "rows": written}));
        }
        world.finish().await?;
        crate::record::summary("sql_crash", json!({"point": point, "connectors": told}))
    }

    crash_points! {
        C0: c0_before_accepted_is_durable;
        C1: c1_accepted_before_the_event;
        C2: c2_before_the_statement;
        C3: c3_committed_and_nobody_knows;
        C4: c4_done_before_the_result;
        C5: c5_torn_result;
        C6: c6_durable_unpublished;
        C7: c7_published_unrecorded;
        C8: c8_recorded_unacked;
        C9: c9_acked_server_forgets;
    }
}
