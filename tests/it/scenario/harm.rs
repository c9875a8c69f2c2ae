//! Steps whose blocks misbehave beside other tenants' steps: one that panics or outlasts its time ends alone, one that takes the
//! process with it is POISON after three deaths, and whoever else was there has waited for one restart at most.
//!
//! What aborts the process is in [`super::poison`], what keeps its core in [`super::stall`]. The blocks are known only to a
//! worker with failpoints: `cargo test --features failpoints --test it harm`.

#[cfg(not(feature = "failpoints"))]
#[test]
#[ignore = "test.panic and test.eat need `cargo test --features failpoints`"]
fn harm_needs_a_build_with_the_failpoints_feature() {}

#[cfg(feature = "failpoints")]
mod failing {
    use std::time::Duration;

    use anyhow::{Context as _, Result, bail, ensure};
    use serde_json::json;

    use crate::group::Group;
    use crate::router::peer::Router;
    use crate::router::{Assignment, Strictness, Subjects};
    use crate::server::NatsServer;
    use crate::worker::{Settings, Worker};
    use crate::world::{PATIENCE, World, alone};

    const LIMIT: u64 = 300 << 20;
    /// For what the server has already to reach the router.
    const AT_ONCE: Duration = Duration::from_secs(2);
    /// Longer than recovery and all memory written to, on a busy machine.
    const DIES_WITHIN: Duration = Duration::from_secs(30);

    fn settings() -> Settings {
        Settings::default().set("FAILPOINTS", "dev-blocks=return")
    }

    /// So many steps of other tenants; `first` tells them apart.
    fn bystanders(first: u32, count: u32) -> Vec<Assignment> {
        let job = |n: u32| {
            let tenant = format!("tenant-{}", n % 4);
            match n % 3 {
                0 => Assignment::new(&tenant, "fs.blob_put", json!({"path": format!("harm-{first}-{n}"), "content": "x"})),
                1 => Assignment::new(&tenant, "sleep", json!({"ms": 300})),
                _ => Assignment::new(&tenant, "echo", json!({"n": n})),
            }
        };
        (0..count).map(job).collect()
    }

    #[tokio::test]
    async fn a_block_that_panics_or_outlasts_its_deadline_ends_alone_and_in_the_dead_letters() -> Result<()> {
        let mut world = World::jetstream(settings()).await?;
        let panics: Vec<_> = (0..5).map(|n| Assignment::new("mallory", "test.panic", json!({"n": n}))).collect();
        let hangs: Vec<_> = (0..5)
            .map(|n| {
                let mut job = Assignment::new("mallory", "sleep", json!({"ms": 60_000 + n}));
                job.json["options"] = json!({"deadline_ms": 500});
                job
            })
            .collect();
        let (before, after) = (bystanders(0, 30), bystanders(1, 30));
        world.router.send_all(&before).await?;
        world.router.send_all(&panics).await?;
        world.router.send_all(&hangs).await?;
        world.router.send_all(&after).await?;
        for job in before.iter().chain(&after) {
            ensure!(world.router.result(&job.id, PATIENCE).await?.status() == "success", "a step of another tenant");
        }
        for (jobs, status, code) in [(&panics, "error", "INTERNAL_ERROR"), (&hangs, "timeout", "TIMEOUT")] {
            for job in jobs {
                let seen = world.router.result(&job.id, PATIENCE).await?;
                ensure!((seen.status(), seen.code()) == (status, code), "{:?}", seen.object);
                let letter = world.router.dead_letter(&job.body(), PATIENCE).await?;
                ensure!(letter["error_code"] == code, "{letter:?}");
            }
        }
        ensure!(world.worker.exited()?.is_none(), "nothing of it ends the process");
        ensure!(world.worker.metric("endstation_panics_total").await? == 5.0);
        world.finish().await
    }

    /// By whom the worker was ended: the system, for its memory.
    async fn killed(worker: &mut Worker) -> Result<()> {
        match std::os::unix::process::ExitStatusExt::signal(&worker.ended(DIES_WITHIN).await?) {
            Some(libc::SIGKILL) => Ok(()),
            other => bail!("the worker ended, but by signal {other:?}:\n{}", worker.log_tail()),
        }
    }

    /// A deployment whose streams are made, and whose worker does not run.
    async fn dead_world() -> Result<World> {
        let server = NatsServer::start(true).await?;
        // Acks and results may be cut apart by the end of the process: their order is another test's business.
        let strict = Strictness { message_ids: true, order: false, owners: false };
        let router = Router::connect(&server.url(), true, Subjects::default(), strict).await?;
        let worker = Worker::start(&server.url(), settings()).await?;
        let mut world = World { router, worker, server };
        world.worker.kill();
        Ok(world)
    }

    /// These have their good outcomes, and had them before the process came up again.
    async fn answered(world: &World, others: &[Assignment]) -> Result<()> {
        for (n, job) in others.iter().enumerate() {
            let seen =
                world.router.result(&job.id, AT_ONCE).await.with_context(|| format!("step {n} waits for a second restart"))?;
            ensure!(seen.status() == "success", "step {n} of another tenant: {:?}", seen.object);
        }
        Ok(())
    }

    /// It has ended the process three times: now it is poison, and the process lives on.
    async fn poisons(world: &mut World, step: &Assignment) -> Result<()> {
        world.worker.launch(&[])?;
        world.worker.ready().await?;
        let seen = world.router.result(&step.id, PATIENCE).await?;
        ensure!((seen.status(), seen.code()) == ("error", "POISON"), "{:?}", seen.object);
        let letter = world.router.dead_letter(&step.body(), PATIENCE).await?;
        ensure!(letter["reason"] == "poison" && letter["error_code"] == "POISON", "{letter:?}");
        ensure!(world.worker.exited()?.is_none(), "it lives on");
        world.finish().await
    }

    async fn aborts_beside_two_hundred(after_ms: u64) -> Result<()> {
        let _turn = alone().await;
        let mut world = dead_world().await?;
        let aborts = Assignment::new("mallory", "test.abort", json!({"after_ms": after_ms}));
        let others = bystanders(3, 200);
        world.router.send_all(&others[..100]).await?;
        world.router.send(&aborts).await?;
        world.router.send_all(&others[100..]).await?;
        for death in 1..=3 {
            world.worker.launch(&[])?;
            world.worker.aborted(DIES_WITHIN).await.with_context(|| format!("death {death}"))?;
            if death == 2 {
                answered(&world, &others).await?;
            }
        }
        poisons(&mut world, &aborts).await
    }

    #[tokio::test]
    async fn of_one_that_aborts_at_once_two_hundred_others_feel_one_restart() -> Result<()> {
        aborts_beside_two_hundred(0).await
    }

    #[tokio::test]
    async fn of_one_that_aborts_after_a_while_two_hundred_others_feel_one_restart() -> Result<()> {
        aborts_beside_two_hundred(150).await
    }

    #[tokio::test]
    async fn a_block_that_eats_all_memory_is_poison_and_others_feel_one_restart() -> Result<()> {
        let Some(group) = Group::with_memory(LIMIT) else { return Ok(()) };
        let _turn = alone().await;
        let mut world = dead_world().await?;
        world.worker.confine(group.path());
        let eats = Assignment::new("mallory", "test.eat", json!({}));
        let others = bystanders(2, 30);
        world.router.send_all(&others[..15]).await?;
        world.router.send(&eats).await?;
        world.router.send_all(&others[15..]).await?;
        for death in 1..=3 {
            world.worker.launch(&[])?;
            killed(&mut world.worker).await.with_context(|| format!("death {death}"))?;
            if death == 2 {
                answered(&world, &others).await?;
            }
        }
        poisons(&mut world, &eats).await
    }
}
