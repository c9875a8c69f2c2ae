//! One key, two contents: never run, and answered only where the router can take an answer.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::ledger::Ledger;
use crate::router::assignment::uuid4;
use crate::router::{Assignment, Owed};
use crate::worker::Settings;
use crate::world::{PATIENCE, World};

#[tokio::test]
async fn other_content_under_another_assignment_gets_a_key_conflict() -> Result<()> {
    let world = World::jetstream(Settings::default()).await?;
    let mut ledger = Ledger::new(world.worker.dir());
    let job =
        Assignment::new("acme", "fs.blob_put", json!({"path": "a.txt", "content": "a"})).in_flow(&uuid4(), &uuid4(), &uuid4(), 1);
    world.router.run(&job, PATIENCE).await?;
    let mut other = job.as_another();
    other.json["job"]["payload"] = json!({"path": "b.txt", "content": "b"});
    let seen = world.router.run(&other, PATIENCE).await?;
    ensure!(seen.status() == "error" && seen.code() == "KEY_CONFLICT", "{:?}", seen.object);
    ensure!(seen.object["effect"] == "none", "{:?}", seen.object);
    ensure!(world.router.ask(|model| model.ack_of(&other.id) == Some("rejected")), "its ack is a refusal");
    ensure!(ledger.count("acme", "b.txt")? == 0, "the conflicting content ran");
    world.finish().await
}

#[tokio::test]
async fn other_content_under_the_same_assignment_goes_to_the_dead_letters_only() -> Result<()> {
    let world = World::jetstream(Settings::default()).await?;
    let mut ledger = Ledger::new(world.worker.dir());
    let job = Assignment::new("acme", "fs.blob_put", json!({"path": "a.txt", "content": "a"}));
    world.router.run(&job, PATIENCE).await?;
    let before = world.router.ask(|model| (model.counts().acks, model.counts().results));
    let mut other = job.clone();
    other.json["job"]["payload"] = json!({"path": "b.txt", "content": "b"});
    // The model knows the id already and so allows only the first result's bytes; the raw send changes nothing owed.
    world.router.expect(&other, Owed::Answer);
    world.router.send_raw("caf.exec.assign.v1", &other.headers, other.body()).await?;
    world.router.wait(PATIENCE, "dead letter", |model| (model.counts().dead_letters >= 1).then_some(())).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let after = world.router.ask(|model| (model.counts().acks, model.counts().results));
    ensure!(before == after, "it was answered: {before:?}, then {after:?}");
    ensure!(ledger.count("acme", "b.txt")? == 0, "the conflicting content ran");
    world.router.stream_is_empty().await?;
    world.finish().await
}

#[tokio::test]
async fn an_expired_job_goes_to_the_dead_letters_and_is_not_answered() -> Result<()> {
    let settings = Settings::default().set("ENDSTATION__JOURNAL__HORIZON", "2s").set("ENDSTATION__JOURNAL__HORIZON_MIN", "1s");
    let mut world = World::jetstream(settings).await?;
    let mut ledger = Ledger::new(world.worker.dir());
    world.worker.kill();
    let job = Assignment::new("acme", "fs.blob_put", json!({"path": "late.txt", "content": "l"}));
    world.router.send_owing(&job, Owed::Silence).await?;
    tokio::time::sleep(Duration::from_millis(3_000)).await;
    world.worker.restart().await?;
    let letter = world.router.dead_letter(&job.body(), PATIENCE).await?;
    ensure!(letter["error_code"] == "EXPIRED", "{letter:?}");
    ensure!(ledger.count("acme", "late.txt")? == 0, "the expired job ran");
    world.finish().await
}
