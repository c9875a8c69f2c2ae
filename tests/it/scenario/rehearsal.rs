//! The test world itself, rehearsed without the worker: a hand-written one answers, the router's side must believe the good
//! and catch the bad over a real server, before and after that server is killed.

use std::time::Duration;

use anyhow::{Result, ensure};
use async_nats::HeaderMap;
use async_nats::jetstream::{self, consumer::pull, stream};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::ledger::{Ledger, tenant_folder};
use crate::router::assignment::hex128;
use crate::router::peer::Router;
use crate::router::{Assignment, Strictness, Subjects};
use crate::server::NatsServer;

const WITHIN: Duration = Duration::from_secs(10);

fn headers(kind: char) -> HeaderMap {
    let mut map = HeaderMap::new();
    map.insert("Nats-Msg-Id", format!("{kind}-{}", hex128()));
    map
}

fn ack(of: &Value) -> Value {
    json!({
        "version": "1", "assignment_id": of["assignment_id"], "status": "accepted", "message": "taken", "reason": "taken",
        "request_id": of["request_id"], "tenant_id": of["tenant_id"], "acknowledged_at": 1_790_000_000_000_u64,
        "overload_status": "healthy",
    })
}

fn result(of: &Value, latency_ms: u64) -> Value {
    json!({
        "version": "1", "assignment_id": of["assignment_id"], "request_id": of["request_id"], "status": "success",
        "provider_id": of["executor"]["provider_id"], "job": {"type": of["job"]["type"]}, "latency_ms": latency_ms,
        "cost": 0, "tenant_id": of["tenant_id"], "timestamp": 1_790_000_000_000_u64, "outputs": of["job"]["payload"],
    })
}

/// Takes one assignment from the stream, answers it, and acks it.
async fn serve_one(client: &async_nats::Client) -> Result<Value> {
    let context = jetstream::new(client.clone());
    let config = pull::Config { durable_name: Some("rehearsal".into()), ..pull::Config::default() };
    let consumer = context.get_stream("ASSIGN").await?.get_or_create_consumer("rehearsal", config).await?;
    let mut batch = consumer.fetch().max_messages(1).messages().await?;
    let message = batch.next().await.ok_or_else(|| anyhow::anyhow!("no assignment"))?.map_err(|e| anyhow::anyhow!(e))?;
    let assignment: Value = serde_json::from_slice(&message.payload)?;
    client.publish_with_headers("caf.exec.assign.v1.ack", headers('a'), ack(&assignment).to_string().into()).await?;
    let body = result(&assignment, 1).to_string();
    context.publish_with_headers("caf.exec.result.v1", headers('r'), body.into()).await?.await?;
    message.ack().await.map_err(|error| anyhow::anyhow!(error))?;
    client.flush().await?;
    Ok(assignment)
}

#[tokio::test]
async fn the_router_s_side_believes_good_answers_and_catches_bad_ones_over_a_real_server() -> Result<()> {
    let mut server = NatsServer::start(true).await?;
    let router = Router::connect(&server.url(), true, Subjects::default(), Strictness::default()).await?;
    let context = jetstream::new(router.client().clone());
    for (name, subject) in [("ASSIGN", "caf.exec.assign.v1"), ("RESULT", "caf.exec.result.v1")] {
        let config = stream::Config { name: name.into(), subjects: vec![subject.into()], ..stream::Config::default() };
        context.create_stream(config).await?;
    }
    let worker = async_nats::connect(server.url()).await?;
    let job = Assignment::new("acme", "echo", json!({"n": 1})).with_router_headers();
    router.send(&job).await?;
    let served = serve_one(&worker).await?;
    ensure!(router.result(&job.id, WITHIN).await?.status() == "success", "a good answer is believed");
    ensure!(router.read_result_stream().await? == 1 && router.ask(|model| model.counts().repeats) == 1, "read again");
    router.verdict()?;

    server.kill();
    server.restart().await?;
    let job = Assignment::new("acme", "echo", json!({"n": 2}));
    router.send(&job).await?;
    serve_one(&worker).await?;
    router.result(&job.id, WITHIN).await?;
    ensure!(router.read_result_stream().await? == 2, "both results outlived the server");
    router.verdict()?;

    let other = result(&served, 2).to_string();
    worker.publish_with_headers("caf.exec.result.v1", headers('r'), other.into()).await?;
    worker.flush().await?;
    let failure = router.wait(WITHIN, "never", |_| None::<()>).await.expect_err("a second result is caught");
    ensure!(failure.to_string().contains("SecondResult"), "{failure}");
    ensure!(router.verdict().is_err(), "and not forgotten");
    Ok(())
}

#[test]
fn the_ledger_tells_one_write_from_two() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("blobs").join(tenant_folder("acme"));
    std::fs::create_dir_all(&folder)?;
    let mut ledger = Ledger::new(dir.path());
    std::fs::write(folder.join("a.txt"), "a")?;
    ledger.written_once("acme", "a.txt", b"a")?;
    ensure!(ledger.written_once("other", "a.txt", b"a").is_err(), "another tenant's file");
    ensure!(ledger.written_once("acme", "a.txt", b"b").is_err(), "other content");
    std::fs::remove_file(folder.join("a.txt"))?;
    std::thread::sleep(Duration::from_millis(20));
    std::fs::write(folder.join("a.txt"), "a")?;
    ensure!(ledger.written_once("acme", "a.txt", b"a").is_err(), "the same content, written again");
    Ok(())
}

#[tokio::test]
async fn the_router_s_side_loses_no_assignment_when_the_server_is_killed_under_it() -> Result<()> {
    let mut server = NatsServer::start(true).await?;
    let router = Router::connect(&server.url(), true, Subjects::default(), Strictness::default()).await?;
    let subjects = vec!["caf.exec.assign.v1".to_owned()];
    let config = stream::Config { name: "ASSIGN".into(), subjects, ..stream::Config::default() };
    jetstream::new(router.client().clone()).create_stream(config).await?;
    let jobs: Vec<Assignment> = (0..2_000).map(|n| Assignment::new("acme", "echo", json!({"n": n}))).collect();
    let killing = async {
        tokio::time::sleep(Duration::from_millis(15)).await;
        server.kill();
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.restart().await
    };
    tokio::try_join!(router.send_all(&jobs), killing)?;
    ensure!(router.left_in_stream().await? >= 2_000, "{} of 2000 are stored", router.left_in_stream().await?);
    ensure!(router.ask(|model| model.open()) == 2_000, "all are owed an answer");
    Ok(())
}

#[tokio::test]
async fn not_done_brings_back_what_is_out_and_nothing_that_is_settled() -> Result<()> {
    let server = NatsServer::start(true).await?;
    let router = Router::connect(&server.url(), true, Subjects::default(), Strictness::default()).await?;
    let context = jetstream::new(router.client().clone());
    // Not a work queue: what is settled stays, as after a kill.
    let subjects = vec!["caf.exec.assign.v1".to_owned()];
    let stream = context.create_stream(stream::Config { name: "ASSIGN".into(), subjects, ..stream::Config::default() }).await?;
    let jobs: Vec<Assignment> = (0..3).map(|n| Assignment::new("acme", "echo", json!({"n": n}))).collect();
    for job in &jobs {
        router.send(job).await?;
    }
    let (durable_name, ack_wait) = (Some("rehearsal".into()), Duration::from_secs(60));
    let consumer = stream.create_consumer(pull::Config { durable_name, ack_wait, ..pull::Config::default() }).await?;
    let mut batch = consumer.fetch().max_messages(3).messages().await?;
    let first = batch.next().await.ok_or_else(|| anyhow::anyhow!("nothing came"))?.map_err(|e| anyhow::anyhow!(e))?;
    first.double_ack().await.map_err(|error| anyhow::anyhow!(error))?;
    ensure!(batch.count().await == 2, "two more are out");

    let standing = router.standing("rehearsal").await?;
    ensure!((standing.pending, standing.out, standing.delivered) == (0, 2, 3), "{standing:?}");
    let left = router.leftovers().await?;
    let expected: Vec<(u64, String)> = (1..).zip(jobs.iter().map(|job| job.id.clone())).collect();
    ensure!(left == expected, "{left:?}");
    router.nak("rehearsal", 1, &standing).await?;
    router.nak("rehearsal", 2, &standing).await?;
    let mut again = consumer.fetch().max_messages(3).expires(Duration::from_secs(1)).messages().await?;
    let mut sequences = Vec::new();
    while let Some(message) = again.next().await {
        let message = message.map_err(|error| anyhow::anyhow!(error))?;
        sequences.push(message.info().map_err(|error| anyhow::anyhow!(error))?.stream_sequence);
    }
    ensure!(sequences == [2], "{sequences:?} came again");
    Ok(())
}

#[tokio::test]
async fn the_router_s_side_works_without_jetstream_and_without_headers() -> Result<()> {
    let server = NatsServer::start(false).await?;
    let lenient = Strictness { message_ids: false, order: true, owners: false };
    let router = Router::connect(&server.url(), false, Subjects::default(), lenient).await?;
    let worker = async_nats::connect(server.url()).await?;
    let mut assignments = worker.queue_subscribe("caf.exec.assign.v1", "endstation".into()).await?;
    // A flush only writes; that nobody listens is answered behind the subscription.
    let _no_responders = worker.request("rehearsal.nobody", "".into()).await;
    let jobs: Vec<Assignment> = (0..500).map(|n| Assignment::new("acme", "echo", json!({"n": n}))).collect();
    let serving = async {
        for _ in 0..jobs.len() {
            let message = assignments.next().await.ok_or_else(|| anyhow::anyhow!("the subscription ended"))?;
            let assignment: Value = serde_json::from_slice(&message.payload)?;
            worker.publish("caf.exec.assign.v1.ack", ack(&assignment).to_string().into()).await?;
            worker.publish("caf.exec.result.v1", result(&assignment, 1).to_string().into()).await?;
        }
        Ok(worker.flush().await?)
    };
    tokio::try_join!(router.send_all(&jobs), serving)?;
    router.all_answered(WITHIN).await?;
    router.verdict()
}
