//! Ten thousand steps of one tenant at once: all done, none refused, and another tenant is not made to wait for them.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use crate::record;
use crate::router::Assignment;
use crate::worker::Settings;
use crate::world::{PATIENCE, World, alone};

#[tokio::test]
async fn ten_thousand_steps_of_one_tenant_are_all_answered_over_jetstream() -> Result<()> {
    let _turn = alone().await;
    let world = World::jetstream(Settings::default().set("ENDSTATION__NATS__ACK_WAIT", "10s")).await?;
    let jobs: Vec<Assignment> = (0..10_000).map(|n| Assignment::new("greedy", "echo", json!({"n": n}))).collect();
    let begun = Instant::now();
    world.router.send_all(&jobs).await?;
    let modest = Assignment::new("modest", "echo", json!({}));
    let asked = Instant::now();
    world.router.run(&modest, PATIENCE).await?;
    let waited = asked.elapsed();
    world.router.all_answered(Duration::from_secs(60)).await?;
    record::summary(
        "burst",
        json!({"steps": jobs.len(), "ms": begun.elapsed().as_millis() as u64, "other_tenant_ms": waited.as_millis() as u64}),
    )?;
    let refused = world.router.ask(|model| jobs.iter().filter(|job| model.ack_of(&job.id) != Some("accepted")).count());
    ensure!(refused == 0, "{refused} were refused: over JetStream load waits in the stream");
    world.finish().await
}

#[tokio::test]
async fn ten_thousand_steps_of_one_tenant_are_all_answered_over_core_nats() -> Result<()> {
    let _turn = alone().await;
    let world = World::core(Settings::core()).await?;
    let jobs: Vec<Assignment> = (0..10_000).map(|n| Assignment::new("greedy", "echo", json!({"n": n}))).collect();
    world.router.send_all(&jobs).await?;
    world.router.all_answered(Duration::from_secs(60)).await?;
    world.finish().await
}
