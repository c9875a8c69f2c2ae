//! A disk that makes everybody wait: nothing is said too early, nothing times out that has ended, and the worker lives.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::router::peer::Router;
use crate::router::{Assignment, Model, Strictness, Subjects};
use crate::server::NatsServer;
use crate::worker::{Settings, Worker};
use crate::world::{PATIENCE, World, alone};

/// What a step has, in milliseconds.
const BUDGET_MS: u64 = 1_500;

/// A worker on a disk of its own; `None` where there can be none.
async fn world() -> Result<Option<World>> {
    let server = NatsServer::start(true).await?;
    let router = Router::connect(&server.url(), true, Subjects::default(), Strictness::default()).await?;
    let settings = Settings::default().set("ENDSTATION__LIMITS__DEFAULT_BUDGET", &format!("{BUDGET_MS}ms"));
    let settings = settings.set("ENDSTATION__LIMITS__STALL", "2s");
    let mut worker = Worker::stopped(&server.url(), settings.set("ENDSTATION__JOURNAL__BYTES_MAX", "16MiB"))?;
    if !worker.mount(48)? {
        return Ok(None);
    }
    worker.restart().await?;
    Ok(Some(World { router, worker, server }))
}

fn sleeps(count: usize, ms: u64) -> Vec<Assignment> {
    (0..count).map(|_| Assignment::new("acme", "sleep", json!({"ms": ms}))).collect()
}

/// Freezes the disk for so long while steps run on it, and thaws it.
async fn stands_still(world: &World, jobs: &[Assignment], still: Duration) -> Result<()> {
    world.router.send_all(jobs).await?;
    let accepted = |model: &Model| jobs.iter().all(|job| model.ack_of(&job.id) == Some("accepted"));
    world.router.wait(PATIENCE, "acks", |model| accepted(model).then_some(())).await?;
    world.worker.volume()?.freeze()?;
    let (heartbeats, results) = world.router.ask(|model| (model.counts().heartbeats, model.counts().results));
    tokio::time::sleep(still / 2).await;
    ensure!(world.worker.get("/metrics").await?.0 == 200, "it is asked, and answers");
    tokio::time::sleep(still / 2).await;
    let (beats, said) = world.router.ask(|model| (model.counts().heartbeats - heartbeats, model.counts().results - results));
    world.worker.volume()?.thaw()?;
    ensure!(beats >= still.as_millis() as u64 / 500 / 2, "{beats} heartbeats in {still:?}");
    ensure!(said == 0, "{said} results while no disk could hold them");
    Ok(())
}

#[tokio::test]
async fn a_step_that_ended_in_time_is_a_success_however_long_its_outcome_waits_for_the_disk() -> Result<()> {
    let _turn = alone().await;
    let Some(mut world) = world().await? else { return Ok(()) };
    let jobs = sleeps(20, 600);
    stands_still(&world, &jobs, Duration::from_millis(4_000)).await?;
    let mut late = Vec::new();
    for job in &jobs {
        let seen = world.router.result(&job.id, PATIENCE).await?;
        if seen.status() != "success" {
            late.push(seen.object["timing"].clone());
        }
    }
    ensure!(late.is_empty(), "{} of {} ended within their {BUDGET_MS} ms and timed out: {late:?}", late.len(), jobs.len());
    ensure!(world.worker.exited()?.is_none(), "a worker that only waits for its disk lives");
    world.finish().await
}

#[cfg(not(feature = "failpoints"))]
#[test]
#[ignore = "slow commits need `cargo test --features failpoints`"]
fn slow_commits_need_a_build_with_the_failpoints_feature() {}

/// Every commit takes so many milliseconds longer.
#[cfg(feature = "failpoints")]
async fn slow_by(ms: u64, count: usize) -> Result<()> {
    let settings = Settings::default().set("ENDSTATION__LIMITS__DEFAULT_BUDGET", &format!("{BUDGET_MS}ms"));
    let settings = settings.set("FAILPOINTS", &format!("slow-disk=return({ms})"));
    let world = World::jetstream(settings.set("ENDSTATION__LIMITS__UNPUBLISHED", "200")).await?;
    let heartbeats = world.router.ask(|model| model.counts().heartbeats);
    let begun = std::time::Instant::now();
    let jobs = sleeps(count, 50);
    world.router.send_all(&jobs).await?;
    let mut unpublished_max: f64 = 0.0;
    while world.router.ask(Model::open) > 0 {
        ensure!(begun.elapsed() < PATIENCE, "{} are open:\n{}", world.router.ask(Model::open), world.worker.log_tail());
        unpublished_max = unpublished_max.max(world.worker.metric("endstation_unpublished").await?);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let took = begun.elapsed();
    for job in &jobs {
        let seen = world.router.result(&job.id, PATIENCE).await?;
        ensure!(seen.status() == "success", "it ended within its {BUDGET_MS} ms: {:?}", seen.object);
    }
    let beats = world.router.ask(|model| model.counts().heartbeats) - heartbeats;
    eprintln!("{count} steps in {took:?} with commits of {ms} ms, at most {unpublished_max} unpublished, {beats} heartbeats");
    ensure!(beats + 2 >= took.as_millis() as u64 / 500, "{beats} heartbeats in {took:?}");
    // Those that run when the bound is reached still end.
    ensure!(unpublished_max <= 200.0 + count as f64 / 2.0, "{unpublished_max} outcomes wait");
    world.finish().await
}

#[cfg(feature = "failpoints")]
#[tokio::test]
async fn commits_of_ten_milliseconds_hold_up_nobody_s_step() -> Result<()> {
    slow_by(10, 400).await
}

#[cfg(feature = "failpoints")]
#[tokio::test]
async fn commits_of_half_a_second_hold_up_nobody_s_step() -> Result<()> {
    slow_by(500, 100).await
}

#[cfg(feature = "failpoints")]
#[tokio::test]
async fn commits_of_five_seconds_hold_up_nobody_s_step() -> Result<()> {
    slow_by(5_000, 20).await
}
