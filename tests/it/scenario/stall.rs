//! A step that keeps its core: it is named, it is ended with the process, and after three times it is POISON.
//!
//! The block that does it is known only to a worker with failpoints: `cargo test --features failpoints --test it stall`.

#[cfg(not(feature = "failpoints"))]
#[test]
#[ignore = "test.hang needs `cargo test --features failpoints`"]
fn a_hang_needs_a_build_with_the_failpoints_feature() {}

#[cfg(feature = "failpoints")]
mod hang {
    use std::time::{Duration, Instant};

    use anyhow::{Context as _, Result, ensure};
    use serde_json::json;

    use crate::router::peer::Router;
    use crate::router::{Assignment, Strictness, Subjects};
    use crate::server::NatsServer;
    use crate::worker::{Settings, Worker};
    use crate::world::{PATIENCE, World, alone};

    const STALL_MS: u64 = 2_000;
    /// The stall, recovery, and a step that was never recorded coming again from its stream.
    const DIES_WITHIN: Duration = Duration::from_secs(20);

    /// Knows the blocks for development, and ends what keeps its core for two seconds.
    fn settings() -> Settings {
        Settings::default().set("FAILPOINTS", "dev-blocks=return").set("ENDSTATION__LIMITS__STALL", &format!("{STALL_MS}ms"))
    }

    fn signal(pid: u32, signal: rustix::process::Signal) -> Result<()> {
        let pid = rustix::process::Pid::from_raw(pid.try_into()?).context("a pid is not 0")?;
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    #[tokio::test]
    async fn a_step_that_keeps_its_core_for_a_while_is_named_and_the_worker_goes_on() -> Result<()> {
        let _turn = alone().await;
        let world = World::jetstream(settings().set("ENDSTATION__LIMITS__STALL", "10s")).await?;
        let job = Assignment::new("acme", "test.hang", json!({"ms": 4_000}));
        world.router.send(&job).await?;
        let begun = Instant::now();
        let mut longest: f64 = 0.0;
        let mut ill = false;
        while world.router.ask(|model| model.result_of(&job.id).is_none()) {
            ensure!(begun.elapsed() < PATIENCE, "no result:\n{}", world.worker.log_tail());
            longest = longest.max(world.worker.metric("worker_shard_stall_seconds").await?);
            ill |= world.worker.get("/_health").await?.1.contains("1 of 1 do not turn");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        ensure!(world.router.result(&job.id, PATIENCE).await?.status() == "success", "it came to its end");
        let took = begun.elapsed().as_secs_f64();
        ensure!((1.0..=took).contains(&longest), "the metric said {longest} s at most, of {took} s");
        ensure!(ill, "health said nothing of it");
        world.worker.metric_becomes("worker_shard_stall_seconds", |stalled| stalled == 0.0).await?;
        let log = world.worker.log_text();
        let line = log.lines().find(|line| line.contains("the shard does not turn")).context("a warning")?;
        ensure!(line.contains("WARN") && line.contains("\"block\":\"test.hang@1.0.0\""), "it names the block: {line}");
        ensure!(line.contains("kept busy") && !line.contains("\"key\":\"\""), "and the key: {line}");
        ensure!(log.contains("the shard turns again"), "and says when it is over");
        world.finish().await
    }

    #[tokio::test]
    async fn a_step_that_never_gives_its_core_back_is_poison_after_three_deaths() -> Result<()> {
        let _turn = alone().await;
        let server = NatsServer::start(true).await?;
        // Acks and results may be cut apart by the crash: their order is another test's business.
        let strict = Strictness { message_ids: true, order: false, owners: false };
        let router = Router::connect(&server.url(), true, Subjects::default(), strict).await?;
        let mut worker = Worker::stopped(&server.url(), settings())?;
        worker.restart().await?;
        let mut world = World { router, worker, server };
        let hang = Assignment::new("mallory", "test.hang", json!({}));
        let others: Vec<Assignment> =
            (0..30).map(|n| Assignment::new(&format!("tenant-{}", n % 3), "sleep", json!({"ms": 10 * n}))).collect();
        world.router.send_all(&others[..15]).await?;
        world.router.send(&hang).await?;
        world.router.send_all(&others[15..]).await?;
        for death in 1..=3 {
            let begun = Instant::now();
            world.worker.aborted(DIES_WITHIN).await.with_context(|| format!("death {death}"))?;
            eprintln!("death {death} after {} ms", begun.elapsed().as_millis());
            ensure!(world.worker.log_tail().contains("has not turned for too long"), "{}", world.worker.log_tail());
            world.worker.launch(&[])?;
        }
        world.worker.ready().await?;
        let seen = world.router.result(&hang.id, PATIENCE).await?;
        ensure!((seen.status(), seen.code()) == ("error", "POISON"), "{:?}", seen.object);
        world.router.dead_letter(&hang.body(), PATIENCE).await?;
        for job in &others {
            ensure!(world.router.result(&job.id, PATIENCE).await?.status() == "success", "a step of another tenant");
        }
        ensure!(world.worker.exited()?.is_none(), "it lives on");
        world.finish().await
    }

    #[tokio::test]
    async fn a_process_that_was_stopped_and_goes_on_is_not_ended_for_it() -> Result<()> {
        let _turn = alone().await;
        let mut world = World::jetstream(settings()).await?;
        let jobs: Vec<Assignment> = (0..10).map(|_| Assignment::new("acme", "sleep", json!({"ms": 800}))).collect();
        world.router.send_all(&jobs).await?;
        let accepted = |model: &crate::router::Model| jobs.iter().all(|job| model.ack_of(&job.id) == Some("accepted"));
        world.router.wait(PATIENCE, "acks", |model| accepted(model).then_some(())).await?;
        signal(world.worker.pid()?, rustix::process::Signal::STOP)?;
        tokio::time::sleep(Duration::from_millis(STALL_MS + 1_500)).await;
        signal(world.worker.pid()?, rustix::process::Signal::CONT)?;
        for job in &jobs {
            ensure!(world.router.result(&job.id, PATIENCE).await?.status() == "success");
        }
        ensure!(world.worker.exited()?.is_none(), "it lives on");
        ensure!(!world.worker.log_text().contains("does not turn"), "nobody kept its core");
        world.finish().await
    }
}
