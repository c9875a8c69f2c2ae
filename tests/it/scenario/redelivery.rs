//! The same assignment again: answered from the journal, whoever forgot it.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::ledger::Ledger;
use crate::router::Assignment;
use crate::router::assignment::uuid4;
use crate::worker::Settings;
use crate::world::{PATIENCE, World};

#[tokio::test]
async fn a_resent_assignment_gets_the_same_bytes_again() -> Result<()> {
    let world = World::jetstream(Settings::default()).await?;
    let mut ledger = Ledger::new(world.worker.dir());
    let job = Assignment::new("acme", "fs.blob_put", json!({"path": "once.txt", "content": "once"}));
    let first = world.router.run(&job, PATIENCE).await?;
    ledger.look()?;
    for _ in 0..3 {
        world.router.send(&job).await?;
    }
    world.router.wait(PATIENCE, "repeats", |model| (model.counts().repeats >= 3).then_some(())).await?;
    ensure!(world.router.result(&job.id, PATIENCE).await?.payload == first.payload, "the model keeps the first bytes");
    ledger.written_once("acme", "once.txt", b"once")?;
    world.finish().await
}

#[tokio::test]
async fn a_resend_after_a_kill_is_answered_from_the_journal() -> Result<()> {
    let mut world = World::jetstream(Settings::default()).await?;
    let job = Assignment::new("acme", "echo", json!({"n": 1}));
    world.router.run(&job, PATIENCE).await?;
    world.worker.kill();
    world.router.send(&job).await?;
    world.worker.restart().await?;
    world.router.wait(PATIENCE, "a repeat", |model| (model.counts().repeats >= 1).then_some(())).await?;
    world.finish().await
}

#[tokio::test]
async fn a_step_killed_while_it_runs_is_finished_after_the_restart() -> Result<()> {
    let mut world = World::jetstream(Settings::default()).await?;
    let jobs: Vec<Assignment> = (0..8).map(|_| Assignment::new("acme", "sleep", json!({"ms": 700}))).collect();
    world.router.send_all(&jobs).await?;
    let accepted = |model: &crate::router::Model| jobs.iter().all(|job| model.ack_of(&job.id) == Some("accepted"));
    world.router.wait(PATIENCE, "acks", |model| accepted(model).then_some(())).await?;
    world.worker.kill();
    world.worker.restart().await?;
    world.finish().await
}

#[tokio::test]
async fn a_long_step_is_kept_and_not_run_twice() -> Result<()> {
    let world = World::jetstream(Settings::default()).await?;
    let seen = world.router.run(&Assignment::new("acme", "sleep", json!({"ms": 3_500})), PATIENCE).await?;
    ensure!(seen.status() == "success", "a step longer than three ack waits: {:?}", seen.object);
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    ensure!(world.router.ask(|model| model.counts().results) == 1, "it was answered more than once");
    world.router.stream_is_empty().await?;
    world.finish().await
}

#[tokio::test]
async fn one_flow_step_under_two_assignments_runs_once_and_answers_both() -> Result<()> {
    let world = World::jetstream(Settings::default()).await?;
    let mut ledger = Ledger::new(world.worker.dir());
    let job = Assignment::new("acme", "fs.blob_put", json!({"path": "step.txt", "content": "s"})).in_flow(
        &uuid4(),
        &uuid4(),
        &uuid4(),
        1,
    );
    let other = job.as_another();
    let first = world.router.run(&job, PATIENCE).await?;
    let second = world.router.run(&other, PATIENCE).await?;
    ensure!(first.object["outputs"] == second.object["outputs"], "one outcome: {:?} and {:?}", first.object, second.object);
    ledger.written_once("acme", "step.txt", b"s")?;
    world.finish().await
}

#[tokio::test]
async fn a_stream_that_fell_behind_its_consumer_hands_out_work_again() -> Result<()> {
    // A killed server may lose a stream's newest messages and keep what its consumer knew of them. New messages then get numbers
    // that the consumer takes for delivered, and nobody would ever have them.
    let mut world = World::jetstream(Settings::default()).await?;
    let echo = |n: u32| Assignment::new("acme", "echo", json!({ "n": n }));
    let messages = world.server.messages_of("CAF_ASSIGN");
    let earlier = tempfile::tempdir()?;
    world.router.run(&echo(0), PATIENCE).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    for entry in std::fs::read_dir(&messages)? {
        let path = entry?.path();
        std::fs::copy(&path, earlier.path().join(path.file_name().unwrap_or_default()))?;
    }
    for n in 1..20 {
        world.router.run(&echo(n), PATIENCE).await?;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    world.server.kill();
    std::fs::remove_dir_all(&messages)?;
    std::fs::create_dir(&messages)?;
    for entry in std::fs::read_dir(earlier.path())? {
        let path = entry?.path();
        std::fs::copy(&path, messages.join(path.file_name().unwrap_or_default()))?;
    }
    world.server.restart().await?;
    world.router.run(&echo(100), PATIENCE).await?;
    world.finish().await
}

#[tokio::test]
async fn deliveries_that_a_killed_server_waits_for_without_having_them_keep_nothing_back() -> Result<()> {
    // A killed server may remember of a consumer what it knew before the last acks, and have done what they ask of the stream.
    // When such a delivery is due again there is nothing to deliver, and the server waits for the next request.
    const GHOSTS: usize = 300;
    let mut world = World::jetstream(Settings::default()).await?;
    let sleep = |ms: u64| Assignment::new("acme", "sleep", json!({ "ms": ms }));
    // What lies before the first message that is left, the server forgets by itself.
    let first = sleep(32_000);
    world.router.send(&first).await?;
    let gone: Vec<Assignment> = (0..GHOSTS).map(|_| sleep(2_000)).collect();
    world.router.send_all(&gone).await?;
    let accepted = |model: &crate::router::Model| gone.iter().all(|job| model.ack_of(&job.id) == Some("accepted"));
    world.router.wait(PATIENCE, "acks", |model| accepted(model).then_some(())).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let known = world.server.known_of("CAF_ASSIGN", "endstation");
    let earlier = std::fs::read(&known)?;
    for job in &gone {
        world.router.result(&job.id, PATIENCE).await?;
    }
    world.server.stop()?;
    std::fs::write(&known, earlier)?;
    world.server.restart().await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let out = crate::stranded::standing(&world.router).await?.out;
    ensure!(out > GHOSTS as u64, "the server has not taken the bait: {out} are out");
    world.router.run(&Assignment::new("acme", "echo", json!({})), Duration::from_secs(20)).await?;
    ensure!(world.router.ask(|model| model.result_of(&first.id).is_none()), "the first is over: nothing is shown");
    world.finish().await
}
