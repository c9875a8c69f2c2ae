//! SIGTERM: what runs is finished, what waits stays in the stream, nothing is lost, and the exit is clean.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::router::Assignment;
use crate::worker::Settings;
use crate::world::{PATIENCE, World};

#[tokio::test]
async fn a_worker_asked_to_stop_loses_nothing() -> Result<()> {
    let mut world = World::jetstream(Settings::default()).await?;
    let jobs: Vec<Assignment> =
        (0..600).map(|n| Assignment::new("acme", if n % 2 == 0 { "echo" } else { "sleep" }, json!({"ms": 30}))).collect();
    let (first, second) = jobs.split_at(300);
    world.router.send_all(first).await?;
    world.worker.terminate()?;
    world.router.send_all(second).await?;
    let status = world.worker.ended(Duration::from_secs(15)).await?;
    ensure!(status.success(), "it ended with {status}:\n{}", world.worker.log_tail());
    world.worker.restart().await?;
    world.router.all_answered(PATIENCE).await?;
    let wrong = world
        .router
        .ask(|model| jobs.iter().filter(|job| model.result_of(&job.id).is_none_or(|seen| seen.status() != "success")).count());
    ensure!(wrong == 0, "{wrong} of {} did not succeed", jobs.len());
    world.finish().await
}

#[tokio::test]
async fn a_draining_worker_is_not_ready_and_finishes_what_runs() -> Result<()> {
    let mut world = World::jetstream(Settings::default()).await?;
    let job = Assignment::new("acme", "sleep", json!({"ms": 1_500}));
    world.router.send(&job).await?;
    world.router.wait(PATIENCE, "an ack", |model| model.ack_of(&job.id).map(|_| ())).await?;
    world.worker.terminate()?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    if let Ok((status, _)) = world.worker.get("/_readyz").await {
        ensure!(status == 503, "a draining worker says it is ready ({status})");
    }
    let status = world.worker.ended(Duration::from_secs(15)).await?;
    ensure!(status.success(), "it ended with {status}");
    world.router.result(&job.id, Duration::from_millis(500)).await?;
    world.finish().await
}
