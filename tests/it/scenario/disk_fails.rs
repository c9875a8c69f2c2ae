//! A disk that fails under a worker: the process ends at once, and of what could not be written nobody has heard.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use crate::router::peer::Router;
use crate::router::{Assignment, Model, Strictness, Subjects};
use crate::server::NatsServer;
use crate::worker::{Settings, Worker};
use crate::world::{PATIENCE, World, alone};

const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// What it says of an I/O error.
const EIO: [&str; 3] = ["writing", "os error 5", "storage.dir"];

/// Neither accepted nor answered.
fn unheard_of(model: &Model, jobs: &[Assignment]) -> bool {
    jobs.iter().all(|job| model.ack_of(&job.id).is_none() && model.result_of(&job.id).is_none())
}

fn echoes(count: u32) -> Vec<Assignment> {
    (0..count).map(|n| Assignment::new(&format!("tenant-{}", n % 4), "echo", json!({"n": n}))).collect()
}

/// A worker on a disk of its own; `None` where there can be none.
async fn world(jetstream: bool) -> Result<Option<World>> {
    let settings = if jetstream { Settings::default() } else { Settings::core() };
    let server = NatsServer::start(jetstream).await?;
    let strict = Strictness { message_ids: jetstream, order: false, owners: false };
    let router = Router::connect(&server.url(), jetstream, Subjects::default(), strict).await?;
    let mut worker = Worker::stopped(&server.url(), settings.set("ENDSTATION__JOURNAL__BYTES_MAX", "16MiB"))?;
    if !worker.mount(48)? {
        return Ok(None);
    }
    worker.restart().await?;
    Ok(Some(World { router, worker, server }))
}

/// Waits for the process to end by its own decision, with an error that tells of the disk.
async fn ends(world: &mut World) -> Result<()> {
    let begun = Instant::now();
    let status = world.worker.ended(PATIENCE).await?;
    let took = begun.elapsed();
    eprintln!("ended {} ms after the step that met the error", took.as_millis());
    ensure!(status.code() == Some(1), "it ends with an error, and not by a signal: {status}");
    ensure!(took < ENDS_WITHIN, "it ended only after {took:?}");
    let said = world.worker.log_tail();
    ensure!(EIO.iter().all(|part| said.contains(part)), "it does not say {EIO:?}:\n{said}");
    Ok(())
}

#[tokio::test]
async fn after_eio_the_process_ends_and_nothing_of_the_batch_is_acknowledged() -> Result<()> {
    let _turn = alone().await;
    let Some(mut world) = world(true).await? else { return Ok(()) };
    let before = echoes(40);
    world.router.send_all(&before).await?;
    world.router.all_answered(PATIENCE).await?;
    let runs = Assignment::new("acme", "sleep", json!({"ms": 5_000}));
    world.router.send(&runs).await?;
    world.router.wait(PATIENCE, "an ack", |model| model.ack_of(&runs.id).map(|_| ())).await?;
    world.worker.volume()?.die()?;
    let after = echoes(20);
    world.router.send_all(&after).await?;
    ends(&mut world).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    ensure!(world.router.ask(|model| unheard_of(model, &after)), "something was said of steps that no disk holds");
    world.worker.revive_volume()?;
    world.worker.restart().await?;
    for job in after.iter().chain([&runs]) {
        ensure!(world.router.result(&job.id, PATIENCE).await?.status() == "success");
    }
    world.router.send_all(&before).await?;
    let repeats = |model: &Model| (model.counts().repeats >= before.len() as u64).then_some(());
    world.router.wait(PATIENCE, "the same answers as before", repeats).await?;
    world.finish().await
}

#[tokio::test]
async fn after_eio_nobody_on_core_nats_was_told_accepted() -> Result<()> {
    let _turn = alone().await;
    let Some(mut world) = world(false).await? else { return Ok(()) };
    world.router.run(&Assignment::new("acme", "echo", json!({})), PATIENCE).await?;
    world.worker.volume()?.die()?;
    let after = echoes(20);
    for job in &after {
        world.router.send(job).await?;
    }
    ends(&mut world).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    ensure!(world.router.ask(|model| unheard_of(model, &after)), "something was said of steps that no disk holds");
    world.router.unbroken()
}

#[tokio::test]
async fn after_a_failed_sync_the_process_ends_and_nothing_of_the_batch_is_acknowledged() -> Result<()> {
    let _turn = alone().await;
    let server = NatsServer::start(true).await?;
    let strict = Strictness { message_ids: true, order: false, owners: false };
    let router = Router::connect(&server.url(), true, Subjects::default(), strict).await?;
    let settings = Settings::default().set("ENDSTATION__JOURNAL__BYTES_MAX", "64MiB");
    let mut worker = Worker::stopped(&server.url(), settings)?;
    if !worker.mount_thin(64, 32)? {
        return Ok(());
    }
    worker.restart().await?;
    let mut world = World { router, worker, server };
    world.router.run(&Assignment::new("acme", "echo", json!({})), PATIENCE).await?;
    world.worker.volume()?.starve()?;
    // Enough to leave what has been written before, zeros included.
    let output = "x".repeat(100 << 10);
    let after: Vec<Assignment> = (0..60).map(|n| Assignment::new("acme", "echo", json!({"n": n, "output": output}))).collect();
    world.router.send_all(&after).await?;
    ends(&mut world).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let answered = world.router.ask(|model| after.iter().filter(|job| model.result_of(&job.id).is_some()).count());
    ensure!(answered < after.len(), "the disk took everything");
    world.router.unbroken()
}
