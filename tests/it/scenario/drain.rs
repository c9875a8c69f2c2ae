//! SIGTERM and `endstation drain`: what runs is finished, what waits stays in the stream, nothing is lost, and the exit is
//! clean.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::journal::endstation;
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

#[tokio::test]
async fn a_drain_over_the_socket_loses_nothing_and_answers_when_the_worker_has_ended() -> Result<()> {
    let mut world = World::jetstream(Settings::default()).await?;
    let jobs: Vec<Assignment> =
        (0..600).map(|n| Assignment::new("acme", if n % 2 == 0 { "echo" } else { "sleep" }, json!({"ms": 30}))).collect();
    let (first, second) = jobs.split_at(300);
    world.router.send_all(first).await?;
    let storage = world.worker.storage();
    let (drained, sent) = tokio::join!(endstation(&["drain", "--wait", "20s"], &storage), world.router.send_all(second));
    sent?;
    let drained = drained?;
    ensure!(drained.status.success(), "{drained:?}\n{}", world.worker.log_tail());
    let said = String::from_utf8(drained.stdout)?;
    let lines: Vec<serde_json::Value> = said.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(lines.len() >= 2 && lines[0]["running"].is_u64() && lines[lines.len() - 1] == json!({"drained": true}), "{said}");
    let status = world.worker.ended(Duration::from_secs(1)).await?;
    ensure!(status.success(), "it ended with {status}");
    ensure!(endstation(&["journal", "check"], &storage).await?.status.success(), "its journal is sound");
    let nobody = endstation(&["drain"], &storage).await?;
    ensure!(nobody.status.code() == Some(3), "{nobody:?}");
    ensure!(String::from_utf8_lossy(&nobody.stderr).contains("no worker listens"), "{nobody:?}");

    world.worker.restart().await?;
    world.router.all_answered(PATIENCE).await?;
    let wrong = world
        .router
        .ask(|model| jobs.iter().filter(|job| model.result_of(&job.id).is_none_or(|seen| seen.status() != "success")).count());
    ensure!(wrong == 0, "{wrong} of {} did not succeed", jobs.len());
    world.finish().await
}

/// A worker with one step that runs for so long.
async fn busy(world: &World, ms: u64) -> Result<Assignment> {
    let job = Assignment::new("acme", "sleep", json!({ "ms": ms }));
    world.router.send(&job).await?;
    world.router.wait(PATIENCE, "an ack", |model| model.ack_of(&job.id).map(|_| ())).await?;
    Ok(job)
}

#[tokio::test]
async fn a_drain_outlasts_its_asker_s_wait_and_the_grace_of_a_signal() -> Result<()> {
    let mut world = World::jetstream(Settings::default().set("ENDSTATION__SHUTDOWN__GRACE", "100ms")).await?;
    let storage = world.worker.storage();
    let job = busy(&world, 2_000).await?;
    let drained = endstation(&["drain", "--wait", "300ms"], &storage).await?;
    let said = String::from_utf8_lossy(&drained.stderr).into_owned();
    ensure!(drained.status.code() == Some(1), "{drained:?}");
    ensure!(said.contains("not drained within 300ms: 1 running") && said.contains("goes on draining"), "{said}");
    if let Ok((status, _)) = world.worker.get("/_readyz").await {
        ensure!(status == 503, "a draining worker says it is ready ({status})");
    }
    let again = endstation(&["drain", "--wait", "10s"], &storage).await?;
    ensure!(again.status.success(), "{again:?}");
    ensure!(world.worker.ended(Duration::from_secs(1)).await?.success());
    world.router.result(&job.id, Duration::from_millis(500)).await?;
    world.finish().await
}

#[tokio::test]
async fn a_signal_cuts_a_drain_short_and_its_asker_hears_of_it() -> Result<()> {
    let mut world = World::jetstream(Settings::default().set("ENDSTATION__SHUTDOWN__GRACE", "100ms")).await?;
    let storage = world.worker.storage();
    busy(&world, 20_000).await?;
    let (drained, ended) = tokio::join!(endstation(&["drain", "--wait", "20s"], &storage), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        world.worker.terminate()?;
        world.worker.ended(Duration::from_secs(5)).await
    });
    let (drained, ended) = (drained?, ended?);
    ensure!(ended.success(), "it ended with {ended}");
    let said = String::from_utf8_lossy(&drained.stderr);
    ensure!(drained.status.code() == Some(1) && said.contains("cut the drain short: 1 running"), "{drained:?}");
    Ok(())
}
