//! Without JetStream: answers to headerless and headed assignments, the queue group, and refusals that still answer.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::router::Assignment;
use crate::worker::{Settings, Worker};
use crate::world::{PATIENCE, World};

#[tokio::test]
async fn assignments_with_and_without_headers_are_answered_on_core_nats() -> Result<()> {
    let world = World::core(Settings::core()).await?;
    for job in [
        Assignment::new("acme", "echo", json!({"n": 1})),
        Assignment::new("acme", "echo", json!({"n": 2})).with_router_headers(),
        Assignment::new("acme", "echo", json!({"n": 3})).in_envelope(),
        Assignment::new("acme", "fs.blob_put", json!({"path": "c.txt", "content": "c"})),
    ] {
        let seen = world.router.run(&job, PATIENCE).await?;
        ensure!(seen.status() == "success", "{:?}", seen.object);
    }
    world.finish().await
}

#[tokio::test]
async fn auto_mode_takes_core_where_no_stream_covers_the_subject() -> Result<()> {
    let auto = Settings::core().set("ENDSTATION__NATS__MODE", "auto");
    let without_jetstream = World::core(auto.clone()).await?;
    let job = Assignment::new("acme", "echo", json!({}));
    ensure!(without_jetstream.router.run(&job, PATIENCE).await?.status() == "success", "a server without JetStream");
    without_jetstream.finish().await?;
    let strict = crate::router::Strictness { message_ids: false, order: true, owners: false };
    let server = crate::server::NatsServer::start(true).await?;
    let router = crate::router::peer::Router::connect(&server.url(), false, crate::router::Subjects::default(), strict).await?;
    let _worker = Worker::start(&server.url(), auto).await?;
    let job = Assignment::new("acme", "echo", json!({}));
    ensure!(router.run(&job, PATIENCE).await?.status() == "success", "JetStream without a stream over the subject");
    router.verdict()
}

#[tokio::test]
async fn two_workers_of_the_queue_group_share_the_work_and_answer_once() -> Result<()> {
    let world = World::core(Settings::core()).await?;
    let second = Worker::start(&world.server.url(), Settings::core()).await?;
    let jobs: Vec<Assignment> = (0..400).map(|n| Assignment::new("acme", "echo", json!({"n": n}))).collect();
    world.router.send_all(&jobs).await?;
    world.router.all_answered(PATIENCE).await?;
    let repeats = world.router.ask(|model| model.counts().repeats);
    ensure!(repeats == 0, "{repeats} were answered twice");
    let workers = |id: &str| {
        world.router.ask(|model| {
            jobs.iter().filter(|job| model.result_of(&job.id).is_some_and(|seen| seen.object["worker_id"] == id)).count()
        })
    };
    ensure!(workers(world.worker.id()) > 0 && workers(second.id()) > 0, "one of the two did nothing");
    world.finish().await
}

#[tokio::test]
async fn a_full_queue_rejects_on_core_nats_and_every_refusal_is_answered() -> Result<()> {
    let settings = Settings::core()
        .set("ENDSTATION__LIMITS__ON_OVERLOAD", "reject")
        .set("ENDSTATION__LIMITS__TENANT_RUNNING", "4")
        .set("ENDSTATION__LIMITS__TENANT_QUEUED", "8");
    let world = World::core(settings).await?;
    let jobs: Vec<Assignment> = (0..200).map(|_| Assignment::new("acme", "sleep", json!({"ms": 200}))).collect();
    world.router.send_all(&jobs).await?;
    world.router.all_answered(PATIENCE).await?;
    let (mut done, mut refused) = (0, 0);
    for job in &jobs {
        let seen = world.router.result(&job.id, PATIENCE).await?;
        let ack = world.router.ask(|model| model.ack_of(&job.id).map(str::to_owned));
        match (seen.status(), seen.code(), ack.as_deref()) {
            ("success", _, Some("accepted")) => done += 1,
            ("error", "QUOTA_EXCEEDED" | "SYSTEM_OVERLOAD", Some("rejected")) => refused += 1,
            other => anyhow::bail!("neither done nor refused: {other:?}"),
        }
    }
    ensure!(done >= 4 && refused > 0, "{done} done, {refused} refused");
    world.finish().await
}

#[tokio::test]
async fn a_refused_step_keeps_its_key_free_for_another_assignment() -> Result<()> {
    let settings = Settings::core()
        .set("ENDSTATION__LIMITS__ON_OVERLOAD", "reject")
        .set("ENDSTATION__LIMITS__TENANT_RUNNING", "1")
        .set("ENDSTATION__LIMITS__TENANT_QUEUED", "1");
    let world = World::core(settings).await?;
    let uuid = crate::router::assignment::uuid4;
    let busy: Vec<Assignment> = (0..4).map(|_| Assignment::new("acme", "sleep", json!({"ms": 600}))).collect();
    world.router.send_all(&busy).await?;
    let job = Assignment::new("acme", "echo", json!({})).in_flow(&uuid(), &uuid(), &uuid(), 1);
    let refused = world.router.run(&job, PATIENCE).await?;
    ensure!(refused.status() == "error", "the queue was full: {:?}", refused.object);
    world.router.all_answered(PATIENCE).await?;
    let again = world.router.run(&job.as_another(), PATIENCE).await?;
    ensure!(again.status() == "success", "{:?}", again.object);
    world.finish().await
}
