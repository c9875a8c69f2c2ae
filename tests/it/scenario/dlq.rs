//! Dead letters where no stream takes them: kept by the worker itself, shown, and sent once a stream does.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::{self, stream};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::journal::endstation;
use crate::router::peer::Router;
use crate::router::{Assignment, Strictness, Subjects};
use crate::server::NatsServer;
use crate::worker::{Settings, Worker};
use crate::world::{PATIENCE, World};

const DLQ: &str = "caf.exec.dlq.v1";

/// A deployment with streams for work and results, and none for dead letters.
async fn bare(settings: Settings) -> Result<World> {
    let server = NatsServer::start(true).await?;
    let router = Router::connect(&server.url(), true, Subjects::default(), Strictness::default()).await?;
    let context = jetstream::new(router.client().clone());
    for (name, subject, retention) in [
        ("CAF_ASSIGN", "caf.exec.assign.v1", stream::RetentionPolicy::WorkQueue),
        ("CAF_RESULT", "caf.exec.result.v1", stream::RetentionPolicy::Limits),
    ] {
        let config = stream::Config { name: name.into(), subjects: vec![subject.into()], retention, ..stream::Config::default() };
        context.create_stream(config).await?;
    }
    let worker = Worker::start(&server.url(), settings.set("ENDSTATION__NATS__PROVISION", "false")).await?;
    Ok(World { router, worker, server })
}

fn dlq_stream(max_messages: i64) -> stream::Config {
    let discard = stream::DiscardPolicy::New;
    stream::Config { name: "CAF_DLQ".into(), subjects: vec![DLQ.into()], max_messages, discard, ..stream::Config::default() }
}

/// A step that runs and fails.
fn failing(tenant: &str) -> Assignment {
    Assignment::new(tenant, "fs.blob_get", json!({"path": "nowhere.txt"}))
}

/// The message ids of everything in the dead letters' stream.
async fn in_stream(world: &World) -> Result<Vec<String>> {
    let context = jetstream::new(world.router.client().clone());
    let stream = context.get_stream("CAF_DLQ").await?;
    let mut ids = Vec::new();
    let state = &stream.cached_info().state;
    for sequence in state.first_sequence.max(1)..=state.last_sequence {
        let message = stream.get_raw_message(sequence).await?;
        ids.push(message.headers.get("Nats-Msg-Id").context("a message id")?.as_str().to_owned());
    }
    Ok(ids)
}

/// Waits until the stream holds so many letters.
async fn arrived(world: &World, count: usize) -> Result<Vec<String>> {
    let begun = Instant::now();
    loop {
        let ids = in_stream(world).await?;
        if ids.len() >= count {
            return Ok(ids);
        }
        ensure!(begun.elapsed() < PATIENCE, "{} of {count} letters arrived:\n{}", ids.len(), world.worker.log_tail());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// `dlq ls`, with the server where there is one.
async fn list(world: &World, args: &[&str]) -> Result<Vec<Value>> {
    let url = world.server.url();
    let server: &[&str] = if args.contains(&"--offline") { &[] } else { &["--nats", &url] };
    let output = endstation(&[&["dlq", "ls"], args, server].concat(), &world.worker.storage()).await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(0), "{}: {said}", output.status);
    let rows = std::str::from_utf8(&output.stdout)?.lines().map(|line| Ok(serde_json::from_str(line)?));
    rows.collect()
}

fn ids(rows: &[Value]) -> Vec<&str> {
    rows.iter().filter_map(|row| row["id"].as_str()).collect()
}

fn each_once(ids: &[String]) -> bool {
    ids.iter().collect::<BTreeSet<_>>().len() == ids.len()
}

#[tokio::test]
async fn letters_that_no_stream_takes_are_kept_by_tenant_and_sent_once_one_does() -> Result<()> {
    let world = bare(Settings::default()).await?;
    let jobs = [failing("acme"), failing("other"), failing("acme")];
    for job in &jobs {
        let seen = world.router.run(job, PATIENCE).await?;
        ensure!(seen.status() == "error", "{:?}", seen.object);
        world.router.dead_letter(&job.body(), PATIENCE).await?;
    }
    world.worker.metric_becomes("endstation_dlq_waiting", |waiting| waiting == 3.0).await?;
    world.router.stream_is_empty().await?;
    let kept = list(&world, &["--offline"]).await?;
    ensure!(kept.len() == 3 && kept.iter().all(|row| row["found_in"] == "store" && row["state"] == "waiting"), "{kept:?}");
    let others = list(&world, &["--tenant", "other"]).await?;
    ensure!(others.len() == 1 && others[0]["tenant"] == "other", "{others:?}");
    ensure!(list(&world, &["--reason", "poison"]).await?.is_empty() && list(&world, &["--since", "1h"]).await?.len() == 3);

    let id = others[0]["id"].as_str().context("an id")?;
    let shown = endstation(&["dlq", "show", id, "--offline"], &world.worker.storage()).await?;
    let letter: Value = serde_json::from_slice(&shown.stdout)?;
    ensure!(letter["letter"]["message"] == jobs[1].json, "{letter}");
    ensure!(letter["headers"]["Nats-Msg-Id"] == id && letter["found_in"][0]["store"]["why"] == "no_stream", "{letter}");

    jetstream::new(world.router.client().clone()).create_stream(dlq_stream(-1)).await?;
    let mut sent = arrived(&world, 3).await?;
    world.worker.metric_becomes("endstation_dlq_waiting", |waiting| waiting == 0.0).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    ensure!(in_stream(&world).await?.len() == 3, "each went once");
    sent.sort_unstable();
    let mut before: Vec<&str> = ids(&kept);
    before.sort_unstable();
    ensure!(sent == before, "under other ids: {sent:?}, {before:?}");
    let rows = list(&world, &[]).await?;
    ensure!(rows.len() == 3 && rows.iter().all(|row| row["stream"] == "CAF_DLQ"), "{rows:?}");

    let late = failing("acme");
    world.router.run(&late, PATIENCE).await?;
    arrived(&world, 4).await?;
    ensure!(world.worker.metric("endstation_dlq_stored_total").await? == 3.0, "the stream takes it: it need not be kept");
    world.finish().await
}

#[tokio::test]
async fn what_a_full_stream_refuses_is_kept_until_it_has_room() -> Result<()> {
    let world = bare(Settings::default()).await?;
    let context = jetstream::new(world.router.client().clone());
    context.create_stream(dlq_stream(1)).await?;
    let jobs = [failing("acme"), failing("acme"), failing("acme")];
    for job in &jobs {
        world.router.run(job, PATIENCE).await?;
    }
    world.worker.metric_becomes("endstation_dlq_waiting", |waiting| waiting == 2.0).await?;
    // What is kept holds nothing up: the deliveries are settled.
    world.router.stream_is_empty().await?;
    let rows = list(&world, &[]).await?;
    let found: Vec<&Value> = rows.iter().map(|row| &row["found_in"]).collect();
    ensure!(rows.len() == 3 && found.iter().filter(|found| **found == "store").count() == 2, "{rows:?}");
    context.update_stream(&dlq_stream(100)).await?;
    let sent = arrived(&world, 3).await?;
    ensure!(sent.len() == 3 && each_once(&sent), "{sent:?}");
    ensure!(list(&world, &[]).await?.len() == 3);
    world.finish().await
}

#[tokio::test]
async fn a_letter_outlives_the_journals_memory_of_its_step() -> Result<()> {
    let settings = Settings::default()
        .set("ENDSTATION__JOURNAL__HORIZON", "1m")
        // What goes back to the stream for want of room comes again sooner than that: else it would come too late.
        .set("ENDSTATION__JOURNAL__HORIZON_MIN", "4s")
        .set("ENDSTATION__JOURNAL__BYTES_MAX", "1MiB");
    let world = bare(settings).await?;
    let job = failing("acme");
    world.router.run(&job, PATIENCE).await?;
    world.worker.metric_becomes("endstation_dlq_waiting", |waiting| waiting == 1.0).await?;
    let storage = world.worker.storage();
    let question = ["step", "show", "--tenant", "acme", "--assignment", &job.id];
    ensure!(endstation(&question, &storage).await?.status.code() == Some(0), "the journal knows it");
    let begun = Instant::now();
    while endstation(&question, &storage).await?.status.code() != Some(1) {
        ensure!(begun.elapsed() < PATIENCE, "the journal does not forget");
        let filler: Vec<Assignment> =
            (0..4).map(|_| Assignment::new("acme", "echo", json!({"text": "x".repeat(200_000)}))).collect();
        world.router.send_all(&filler).await?;
        world.router.all_answered(PATIENCE).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let rows = list(&world, &["--offline"]).await?;
    ensure!(rows.len() == 1, "{rows:?}");
    let id = rows[0]["id"].as_str().context("an id")?;
    let shown = endstation(&["dlq", "show", id, "--offline"], &storage).await?;
    let letter: Value = serde_json::from_slice(&shown.stdout)?;
    ensure!(letter["letter"]["message"] == job.json, "{letter}");
    world.finish().await
}

#[tokio::test]
async fn a_step_that_failed_for_good_is_terminated_and_not_just_acked() -> Result<()> {
    let world = World::jetstream(Settings::default()).await?;
    let client = world.router.client().clone();
    let mut advisories = client.subscribe("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.>").await?;
    client.flush().await?;
    world.router.run(&Assignment::new("acme", "echo", json!({"n": 1})), PATIENCE).await?;
    world.router.run(&failing("acme"), PATIENCE).await?;
    let heard = tokio::time::timeout(PATIENCE, advisories.next()).await?.context("an advisory")?;
    let advisory: Value = serde_json::from_slice(&heard.payload)?;
    ensure!(advisory["stream_seq"] == 2, "the one that failed: {advisory}");
    world.router.stream_is_empty().await?;
    world.finish().await
}

#[tokio::test]
async fn a_letter_that_no_server_takes_whole_goes_out_short_and_is_kept_whole() -> Result<()> {
    let world = World::jetstream(Settings::default()).await?;
    // As large as a message may be: with what is said of it, the letter is larger.
    let text = "x".repeat((1 << 20) - 200);
    let body = format!("{{\"no\":\"tenant\",\"text\":\"{text}\"}}");
    world.router.send_raw("caf.exec.assign.v1", &Vec::new(), body.clone().into_bytes()).await?;
    let begun = Instant::now();
    while world.worker.metric("endstation_dlq_stored_total").await? < 1.0 || in_stream(&world).await?.is_empty() {
        ensure!(begun.elapsed() < PATIENCE, "no letter:\n{}", world.worker.log_tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.router.stream_is_empty().await?;
    let context = jetstream::new(world.router.client().clone());
    let short: Value = serde_json::from_slice(&context.get_stream("CAF_DLQ").await?.get_raw_message(1).await?.payload)?;
    ensure!(short["message_size"] == body.len() && short.get("message").is_none(), "{short}");
    let rows = list(&world, &[]).await?;
    ensure!(rows.len() == 1 && rows[0]["found_in"] == "both", "{rows:?}");
    let id = rows[0]["id"].as_str().context("an id")?;
    let url = world.server.url();
    let shown = endstation(&["dlq", "show", id, "--nats", &url], &world.worker.storage()).await?;
    let letter: Value = serde_json::from_slice(&shown.stdout)?;
    ensure!(letter["letter"]["message"]["text"] == text, "the whole of it");
    Ok(())
}

#[tokio::test]
async fn a_run_without_a_server_keeps_its_letters_and_a_later_serve_sends_them() -> Result<()> {
    let mut world = bare(Settings::default()).await?;
    world.worker.kill();
    let storage = world.worker.storage();
    let file = world.worker.dir().join("steps.ndjson");
    let step = json!({"type": "fs.blob_get", "inputs": {"path": "nowhere.txt"}, "context": {"tenant_id": "acme"}});
    let good = json!({"type": "echo", "inputs": {"n": 1}, "context": {"tenant_id": "acme"}});
    std::fs::write(&file, format!("{step}\nthis is no JSON\n{good}\n"))?;
    for run in 1..=2 {
        let output = endstation(&["run", &file.display().to_string()], &storage).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1), "run {run}: {}: {said}", output.status);
        ensure!(String::from_utf8_lossy(&output.stdout).lines().count() == 3, "run {run}: a line each");
    }
    let rows = list(&world, &["--offline"]).await?;
    let native = rows.iter().filter(|row| row["tenant"] == "acme").count();
    // A second run makes another attempt of what failed.
    ensure!(rows.len() == 4 && native == 2, "{rows:?}");
    let context = jetstream::new(world.router.client().clone());
    let subjects = vec![DLQ.into(), "beamline.worker.dlq.v1.*".into()];
    context.create_stream(stream::Config { subjects, ..dlq_stream(-1) }).await?;
    world.worker.restart().await?;
    let sent = arrived(&world, 4).await?;
    ensure!(sent.len() == 4 && each_once(&sent), "{sent:?}");
    world.worker.metric_becomes("endstation_dlq_waiting", |waiting| waiting == 0.0).await
}

#[tokio::test]
async fn a_store_that_is_nearly_full_says_so_and_the_oldest_letters_make_room() -> Result<()> {
    let settings =
        Settings::default().set("ENDSTATION__DLQ__BYTES_MAX", "1MiB").set("ENDSTATION__LIMITS__PAYLOAD_BYTES", "256KiB");
    let world = bare(settings).await?;
    let health = || async { anyhow::Ok(serde_json::from_str::<Value>(&world.worker.get("/_health").await?.1)?) };
    ensure!(health().await?["checks"]["dlq"]["status"] == "ok", "{}", health().await?);
    let text = "x".repeat(100_000);
    let large = |n: u32| Assignment::new("acme", "fs.blob_get", json!({"path": "nowhere.txt", "n": n, "text": text}));
    for n in 0..30 {
        world.router.run(&large(n), PATIENCE).await?;
    }
    world.worker.metric_becomes("endstation_dlq_stored_total", |stored| stored == 30.0).await?;
    let (waiting, dropped) =
        (world.worker.metric("endstation_dlq_waiting").await?, world.worker.metric("endstation_dlq_dropped_total").await?);
    ensure!(waiting + dropped == 30.0 && waiting >= 5.0 && dropped > 0.0, "{waiting} wait, {dropped} went");
    ensure!(world.worker.metric("endstation_dlq_bytes").await? <= f64::from(1 << 20));
    ensure!(health().await?["checks"]["dlq"]["status"] == "fail", "{}", health().await?);
    ensure!(world.worker.get("/_readyz").await?.0 == 200, "it works on");
    world.router.stream_is_empty().await?;
    world.finish().await
}

#[cfg(feature = "failpoints")]
#[tokio::test]
async fn a_worker_killed_between_storing_and_telling_keeps_the_letter_once() -> Result<()> {
    let mut world = bare(Settings::default()).await?;
    let job = failing("acme");
    world.worker.launch(&[("FAILPOINTS", "dlq-stored=return")])?;
    world.worker.ready().await?;
    world.router.send(&job).await?;
    world.worker.aborted(PATIENCE).await?;
    world.worker.restart().await?;
    world.router.result(&job.id, PATIENCE).await?;
    world.router.stream_is_empty().await?;
    ensure!(list(&world, &["--offline"]).await?.len() == 1, "twice, or not at all");
    jetstream::new(world.router.client().clone()).create_stream(dlq_stream(-1)).await?;
    let sent = arrived(&world, 1).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    ensure!(in_stream(&world).await? == sent, "it went once");
    world.finish().await
}
