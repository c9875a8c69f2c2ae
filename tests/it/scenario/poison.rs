//! A step that ends the process: three deaths in its own code, then POISON, and nobody else's step is lost or done twice.
//!
//! The block that does it is known only to a worker with failpoints: `cargo test --features failpoints --test it poison`.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::router::Assignment;
use crate::worker::Settings;
use crate::world::{PATIENCE, World};

#[cfg(not(feature = "failpoints"))]
#[test]
#[ignore = "test.abort needs `cargo test --features failpoints`"]
fn poison_needs_a_build_with_the_failpoints_feature() {}

#[tokio::test]
async fn a_step_that_was_merely_in_flight_at_every_kill_is_no_poison() -> Result<()> {
    let mut world = World::jetstream(Settings::default()).await?;
    let job = Assignment::new("acme", "sleep", json!({"ms": 2_500}));
    world.router.send(&job).await?;
    let accepted = |model: &crate::router::Model| model.ack_of(&job.id) == Some("accepted");
    world.router.wait(PATIENCE, "an ack", |model| accepted(model).then_some(())).await?;
    for _ in 0..5 {
        world.worker.kill();
        world.worker.restart().await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let seen = world.router.result(&job.id, PATIENCE).await?;
    ensure!(seen.status() == "success", "{:?}", seen.object);
    world.finish().await
}

#[cfg(feature = "failpoints")]
mod abort {
    use anyhow::Context;
    use serde_json::Value;

    use super::*;
    use crate::ledger::Ledger;
    use crate::router::peer::Router;
    use crate::router::{Strictness, Subjects};
    use crate::server::NatsServer;
    use crate::worker::Worker;

    /// Opens the blocks for development.
    const DEV: &[(&str, &str)] = &[("FAILPOINTS", "dev-blocks=return")];
    /// Longer than ack_wait and recovery together: a step that was never recorded comes again from its stream.
    const DIES_WITHIN: Duration = Duration::from_secs(20);

    /// Four other tenants' steps: files that show whether they were written twice, short sleeps, echoes.
    fn bystanders() -> Vec<Assignment> {
        let job = |n: u32| {
            let tenant = format!("tenant-{}", n % 4);
            match n % 3 {
                0 => Assignment::new(&tenant, "fs.blob_put", json!({"path": file(n), "content": n.to_string()})),
                1 => Assignment::new(&tenant, "sleep", json!({"ms": 400})),
                _ => Assignment::new(&tenant, "echo", json!({"n": n})),
            }
        };
        (0..60).map(job).collect()
    }

    fn file(n: u32) -> String {
        format!("poison-{n}.txt")
    }

    async fn ends_as_poison(inputs: Value) -> Result<()> {
        let server = NatsServer::start(true).await?;
        // Acks and results may be cut apart by the crash: their order is another test's business.
        let strict = Strictness { message_ids: true, order: false, owners: false };
        let router = Router::connect(&server.url(), true, Subjects::default(), strict).await?;
        // The first start makes streams and consumer.
        let worker = Worker::start(&server.url(), Settings::default()).await?;
        let mut world = World { router, worker, server };
        world.worker.kill();
        let mut ledger = Ledger::new(world.worker.dir());
        let others = bystanders();
        let poison = Assignment::new("mallory", "test.abort", inputs);
        let (before, after) = others.split_at(30);
        world.router.send_all(before).await?;
        world.router.send(&poison).await?;
        world.router.send_all(after).await?;
        for death in 1..=3 {
            world.worker.launch(DEV)?;
            world.worker.aborted(DIES_WITHIN).await.with_context(|| format!("death {death}"))?;
            ledger.look()?;
        }
        world.worker.launch(DEV)?;
        world.worker.ready().await?;
        let seen = world.router.result(&poison.id, PATIENCE).await?;
        ensure!((seen.status(), seen.code()) == ("error", "POISON"), "{:?}", seen.object);
        ensure!(seen.object["effect"] == "none", "a pure step has no effect: {:?}", seen.object);
        world.router.dead_letter(&poison.body(), PATIENCE).await?;
        world.router.all_answered(PATIENCE).await?;
        ensure!(world.worker.exited()?.is_none(), "it lives on");
        for (n, job) in (0..).zip(&others) {
            let seen = world.router.result(&job.id, PATIENCE).await?;
            ensure!(seen.status() == "success", "step {n} of another tenant: {:?}", seen.object);
            if n % 3 == 0 {
                ledger.written_once(&format!("tenant-{}", n % 4), &file(n), n.to_string().as_bytes())?;
            }
        }
        world.finish().await
    }

    #[tokio::test]
    async fn a_step_that_aborts_at_once_is_poison_after_three_deaths() -> Result<()> {
        ends_as_poison(json!({})).await
    }

    #[tokio::test]
    async fn a_step_that_aborts_after_a_while_is_poison_after_three_deaths() -> Result<()> {
        ends_as_poison(json!({ "after_ms": 150 })).await
    }

    #[tokio::test]
    async fn a_step_that_aborts_on_a_compute_thread_is_poison_after_three_deaths() -> Result<()> {
        ends_as_poison(json!({ "compute_thread": true })).await
    }
}
