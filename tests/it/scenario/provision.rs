//! Streams and the durable: found by subject, made only when asked, and the consumer always as the contract says.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::{self, consumer, stream};
use futures_util::StreamExt as _;
use serde_json::json;

use crate::router::peer::Router;
use crate::router::{Assignment, Strictness, Subjects};
use crate::server::NatsServer;
use crate::worker::{Settings, Worker};
use crate::world::{PATIENCE, World};

fn unprovisioned() -> Settings {
    Settings::default().set("ENDSTATION__NATS__PROVISION", "false")
}

fn streams(router: &Router) -> jetstream::Context {
    jetstream::new(router.client().clone())
}

#[tokio::test]
async fn provisioned_streams_and_the_durable_are_as_the_contract_says() -> Result<()> {
    let world = World::jetstream(Settings::default()).await?;
    let context = streams(&world.router);
    let name = context.stream_by_subject("caf.exec.assign.v1").await?;
    let assign = context.get_stream(&name).await?;
    let config = &assign.cached_info().config;
    ensure!(config.retention == stream::RetentionPolicy::WorkQueue, "{config:?}");
    ensure!(config.discard == stream::DiscardPolicy::New, "{config:?}");
    ensure!(config.max_age == Duration::from_secs(24 * 3600), "{config:?}");
    ensure!(config.subjects == ["caf.exec.assign.v1"], "exactly the assign subjects, not the acks: {:?}", config.subjects);
    let consumer: consumer::PullConsumer =
        assign.get_consumer("endstation").await.map_err(|error| anyhow::anyhow!("the durable: {error}"))?;
    let config = &consumer.cached_info().config;
    ensure!(config.ack_policy == consumer::AckPolicy::Explicit, "{config:?}");
    ensure!(config.max_deliver == -1 && config.max_ack_pending == 100_000, "{config:?}");
    ensure!(config.ack_wait == Duration::from_secs(1), "ack_wait as set by this test: {config:?}");
    for subject in ["caf.exec.result.v1", "caf.exec.dlq.v1"] {
        let name = context.stream_by_subject(subject).await.with_context(|| format!("no stream over {subject}"))?;
        let config = context.get_stream(&name).await?.cached_info().config.clone();
        ensure!(config.retention == stream::RetentionPolicy::Limits, "{config:?}");
    }
    Ok(())
}

#[tokio::test]
async fn jetstream_mode_without_a_stream_is_a_start_error_that_says_what_to_do() -> Result<()> {
    let server = NatsServer::start(true).await?;
    let mut worker = Worker::stopped(&server.url(), unprovisioned())?;
    worker.launch(&[])?;
    let status = worker.ended(Duration::from_secs(15)).await?;
    ensure!(!status.success(), "it ended well without a stream");
    let text = worker.log_text();
    ensure!(text.contains("caf.exec.assign.v1") && text.contains("provision"), "no cure in its last words:\n{text}");
    Ok(())
}

#[tokio::test]
async fn foreign_streams_of_any_name_are_found_by_subject() -> Result<()> {
    let server = NatsServer::start(true).await?;
    let router = Router::connect(&server.url(), true, Subjects::default(), Strictness::default()).await?;
    let subjects = vec!["caf.exec.assign.v1".to_owned()];
    let config = stream::Config { name: "THEIRS".into(), subjects, ..stream::Config::default() };
    streams(&router).create_stream(config).await?;
    let _worker = Worker::start(&server.url(), unprovisioned()).await?;
    let job = Assignment::new("acme", "echo", json!({}));
    ensure!(router.run(&job, PATIENCE).await?.status() == "success", "results without a stream go by core publish");
    let names: Vec<String> = {
        use futures_util::StreamExt as _;
        streams(&router).stream_names().filter_map(|name| async { name.ok() }).collect().await
    };
    let made: Vec<&String> = names.iter().filter(|name| *name != "THEIRS" && !name.starts_with("KV_")).collect();
    ensure!(made.is_empty(), "streams were made without being asked for: {made:?}");
    router.verdict()
}

#[tokio::test]
async fn a_deleted_durable_is_made_again() -> Result<()> {
    let world = World::jetstream(Settings::default()).await?;
    world.router.run(&Assignment::new("acme", "echo", json!({"n": 1})), PATIENCE).await?;
    let context = streams(&world.router);
    let name = context.stream_by_subject("caf.exec.assign.v1").await?;
    context.get_stream(&name).await?.delete_consumer("endstation").await?;
    world.router.run(&Assignment::new("acme", "echo", json!({"n": 2})), PATIENCE).await?;
    world.finish().await
}

/// What goes unheard elsewhere is heard by who listens to every subject, and is still not answered.
#[tokio::test]
async fn a_listener_to_everything_does_not_hide_that_the_leases_have_no_bucket() -> Result<()> {
    let server = NatsServer::start(true).await?;
    let router = Router::connect(&server.url(), true, Subjects::default(), Strictness::default()).await?;
    let mut everything = async_nats::connect(server.url()).await?.subscribe(">").await?;
    tokio::spawn(async move { while everything.next().await.is_some() {} });
    // With a secret of its own the worker has nothing else to keep in the bucket.
    let worker = Worker::start(&server.url(), Settings::default().set("ENDSTATION__WORKER__KEY_SALT", "any text")).await?;
    let world = World { router, worker, server };
    let seen = world.router.run(&Assignment::new("acme", "echo", json!({"n": 1})), PATIENCE).await?;
    ensure!(seen.status() == "success", "{:?}", seen.object);
    streams(&world.router).delete_stream("KV_endstation").await?;
    let begun = std::time::Instant::now();
    while streams(&world.router).get_stream("KV_endstation").await.is_err() {
        ensure!(begun.elapsed() < PATIENCE, "the bucket is not made again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let seen = world.router.run(&Assignment::new("acme", "echo", json!({"n": 2})), PATIENCE).await?;
    ensure!(seen.status() == "success", "{:?}", seen.object);
    world.finish().await
}
