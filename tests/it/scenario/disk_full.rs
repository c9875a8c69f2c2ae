//! A disk that fills up under a worker: what runs ends, who is known is answered, who is new waits, and nobody is lost.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use crate::router::peer::Router;
use crate::router::{Assignment, Model, Strictness, Subjects};
use crate::server::NatsServer;
use crate::worker::{Settings, Worker};
use crate::world::{PATIENCE, World, alone};

/// How soon after there is room a worker must be at work again: 2 s are promised, and a busy machine gets as much again.
const RESUMES_WITHIN: Duration = Duration::from_secs(4);
/// So many steps with outputs of [`OUTPUT_BYTES`] need more than what is left of a segment (of 4 MiB) when they have been
/// accepted, and less than that and the reserve. They leave it less than half full, however batches fall: there is no next.
const MANY: usize = 46;
/// So many have room in the reserve alone: what a life has not used of its segment is gone when the next begins.
const FEW: usize = 20;
/// See [`MANY`].
const OUTPUT_BYTES: usize = 100 << 10;

/// Segments of 4 MiB, one step at a time.
fn settings() -> Settings {
    Settings::default().set("ENDSTATION__JOURNAL__BYTES_MAX", "16MiB").set("ENDSTATION__LIMITS__TENANT_RUNNING", "1")
}

/// A worker on a disk of its own; `None` where there can be none.
async fn world() -> Result<Option<World>> {
    let server = NatsServer::start(true).await?;
    let strict = Strictness { message_ids: true, order: false, owners: false };
    let router = Router::connect(&server.url(), true, Subjects::default(), strict).await?;
    let mut worker = Worker::stopped(&server.url(), settings())?;
    if !worker.mount(32)? {
        return Ok(None);
    }
    worker.restart().await?;
    Ok(Some(World { router, worker, server }))
}

/// Waits until health says that the disk is full.
async fn says_full(worker: &Worker) -> Result<()> {
    let begun = Instant::now();
    loop {
        if let Ok((503, body)) = worker.get("/_health").await
            && body.contains("the disk is full")
        {
            break;
        }
        ensure!(begun.elapsed() < PATIENCE, "health does not say that the disk is full:\n{}", worker.log_tail());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure!(worker.get("/_readyz").await?.0 == 503, "a worker that takes nothing new is not ready");
    ensure!(worker.metric("endstation_journal_disk_full").await? == 1.0, "the metric says so, too");
    Ok(())
}

fn accepted(model: &Model, jobs: &[Assignment]) -> bool {
    jobs.iter().all(|job| model.ack_of(&job.id) == Some("accepted"))
}

fn untouched(model: &Model, jobs: &[Assignment]) -> bool {
    jobs.iter().all(|job| model.ack_of(&job.id).is_none() && model.result_of(&job.id).is_none())
}

fn lines(worker: &Worker, text: &str) -> usize {
    worker.log_text().lines().filter(|line| line.contains(text)).count()
}

/// One long step and others that wait behind it, all accepted; then there is no room left.
async fn in_flight_on_a_full_disk(world: &World, sleep_ms: u64, behind: usize) -> Result<Vec<Assignment>> {
    let mut jobs = vec![Assignment::new("acme", "sleep", json!({"ms": sleep_ms}))];
    let output = "x".repeat(OUTPUT_BYTES);
    jobs.extend((0..behind).map(|n| Assignment::new("acme", "echo", json!({"n": n, "output": output}))));
    world.router.send(&jobs[0]).await?;
    world.router.send_all(&jobs[1..]).await?;
    world.router.wait(PATIENCE, "acks", |model| accepted(model, &jobs).then_some(())).await?;
    ensure!(world.router.ask(|model| model.result_of(&jobs[0].id).is_none()), "the disk fills up while the first step runs");
    world.worker.volume()?.fill()?;
    // Else the others began while the disk filled up, and a next segment may have found the last of its room.
    ensure!(
        world.router.ask(|model| model.result_of(&jobs[0].id).is_none()),
        "the disk was not full before the first step ended"
    );
    Ok(jobs)
}

/// New steps wait as long as the disk is full, known ones are answered; then there is room, and all is done soon.
async fn new_ones_wait_and_known_ones_do_not(world: &World, known: &Assignment) -> Result<()> {
    let new: Vec<Assignment> = (0..40).map(|n| Assignment::new("other", "echo", json!({"n": n}))).collect();
    world.router.send_all(&new).await?;
    let repeats = world.router.ask(|model| model.counts().repeats);
    world.router.send(known).await?;
    let again = |model: &Model| (model.counts().repeats > repeats).then_some(());
    world.router.wait(Duration::from_secs(5), "answer to a known step on a full disk", again).await?;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    ensure!(world.router.ask(|model| untouched(model, &new)), "a new step was taken though there is no room");
    world.worker.volume()?.empty()?;
    let begun = Instant::now();
    world.router.all_answered(PATIENCE).await?;
    let took = begun.elapsed();
    eprintln!("resumed {} ms after there was room", took.as_millis());
    ensure!(took < RESUMES_WITHIN, "the worker resumed only after {took:?}");
    for job in &new {
        ensure!(world.router.result(&job.id, PATIENCE).await?.status() == "success");
    }
    world.worker.metric_becomes("endstation_journal_disk_full", |full| full == 0.0).await?;
    ensure!(world.worker.get("/_readyz").await?.0 == 200, "it is ready again");
    world.worker.metric_becomes("endstation_journal_reserve_bytes", |bytes| bytes > 0.0).await?;
    Ok(())
}

#[tokio::test]
async fn what_runs_ends_on_a_full_disk_and_new_steps_wait_for_room() -> Result<()> {
    let _turn = alone().await;
    let Some(world) = world().await? else { return Ok(()) };
    let known = Assignment::new("acme", "echo", json!({"known": true}));
    world.router.run(&known, PATIENCE).await?;
    world.worker.metric_becomes("endstation_journal_reserve_bytes", |bytes| bytes >= 4e6).await?;
    in_flight_on_a_full_disk(&world, 10_000, MANY).await?;
    world.router.all_answered(PATIENCE).await?;
    says_full(&world.worker).await?;
    world.worker.metric_becomes("endstation_journal_reserve_bytes", |bytes| bytes == 0.0).await?;
    new_ones_wait_and_known_ones_do_not(&world, &known).await?;
    ensure!(lines(&world.worker, "the journal's disk is full") == 1, "one line when it is full");
    ensure!(lines(&world.worker, "the journal's disk has room again") == 1, "one line when it has room again");
    world.finish().await
}

#[tokio::test]
async fn a_worker_that_is_killed_on_a_full_disk_starts_on_it_and_ends_what_ran() -> Result<()> {
    let _turn = alone().await;
    let Some(mut world) = world().await? else { return Ok(()) };
    let known = Assignment::new("acme", "echo", json!({"known": true}));
    world.router.run(&known, PATIENCE).await?;
    in_flight_on_a_full_disk(&world, 10_000, FEW).await?;
    for _ in 0..3 {
        world.worker.kill();
        world.worker.volume()?.fill()?;
        world.worker.launch(&[])?;
        says_full(&world.worker).await?;
    }
    world.router.all_answered(PATIENCE).await?;
    new_ones_wait_and_known_ones_do_not(&world, &known).await?;
    world.finish().await
}
