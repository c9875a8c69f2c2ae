//! Several workers at one consumer: one works, the others stand by, and take over when it dies, drains, or was away too long.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::json;

use crate::router::peer::Router;
use crate::router::{Assignment, Strictness, Subjects};
use crate::server::NatsServer;
use crate::worker::{Settings, Worker};
use crate::world::{PATIENCE, World};

const LENIENT: Strictness = Strictness { message_ids: true, order: false, owners: true };

/// A world with a second worker that stands by.
async fn two() -> Result<(World, Worker)> {
    let world = World::with(true, Settings::default(), LENIENT).await?;
    let mut second = Worker::stopped(&world.server.url(), Settings::default())?;
    second.launch(&[])?;
    stands_by(&second, world.worker.id()).await?;
    Ok((world, second))
}

/// Waits until `worker` says for whom it stands by.
async fn stands_by(worker: &Worker, owner: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        if let Ok((503, body)) = worker.get("/_readyz").await
            && body.contains(&format!("standing by: worker {owner} owns the work"))
        {
            let (health, body) = worker.get("/_health").await?;
            ensure!(health == 200, "to stand by is no illness: {body}");
            ensure!(worker.metric("endstation_standby").await? == 1.0, "no metric says so");
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "it does not stand by:\n{}", worker.log_tail());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Runs an echo and says who did it, under which epoch.
async fn who_runs(router: &Router) -> Result<(String, u64)> {
    let seen = router.run(&Assignment::new("acme", "echo", json!({"who": "runs"})), PATIENCE).await?;
    let worker = seen.object.get("worker_id").and_then(|id| id.as_str()).context("no worker_id")?;
    let epoch = seen.object.get("owner_epoch").and_then(|epoch| epoch.as_u64()).context("no owner_epoch")?;
    Ok((worker.to_owned(), epoch))
}

fn sleeps(count: u32, ms: u64) -> Vec<Assignment> {
    (0..count).map(|n| Assignment::new(&format!("tenant-{}", n % 7), "sleep", json!({"ms": ms, "n": n}))).collect()
}

/// Every one of `jobs` went well, and nothing broke a rule.
async fn all_well(router: &Router, jobs: &[Assignment]) -> Result<()> {
    router.all_answered(PATIENCE).await?;
    let well =
        |job: &&Assignment, model: &crate::router::Model| model.result_of(&job.id).is_some_and(|seen| seen.status() == "success");
    let wrong = router.ask(|model| jobs.iter().filter(|job| !well(job, model)).count());
    ensure!(wrong == 0, "{wrong} of {} did not succeed", jobs.len());
    router.verdict()
}

#[tokio::test]
async fn a_standby_takes_over_within_five_seconds_of_a_kill() -> Result<()> {
    let (mut world, mut second) = two().await?;
    ensure!(who_runs(&world.router).await? == (world.worker.id().to_owned(), 1), "the first one owns");
    let jobs = sleeps(40, 300);
    world.router.send_all(&jobs).await?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.worker.kill();
    let killed = Instant::now();
    let by = who_runs(&world.router).await?;
    let after = killed.elapsed();
    println!("the standby's first result came {after:?} after the kill");
    ensure!(by == (second.id().to_owned(), 2), "{by:?} ran it");
    ensure!(after < Duration::from_secs(5), "it took {after:?}");
    second.ready().await?;
    ensure!(second.metric("endstation_owner_epoch").await? == 2.0 && second.metric("endstation_standby").await? == 0.0);
    all_well(&world.router, &jobs).await?;

    // The first one comes back and stands by in its turn; what its journal still held is not its any more.
    world.worker.launch(&[])?;
    stands_by(&world.worker, second.id()).await?;
    second.kill();
    let (by, epoch) = who_runs(&world.router).await?;
    ensure!(by == world.worker.id() && epoch == 3, "{by} ran it under epoch {epoch}");
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(world.worker.metric("endstation_superseded_total").await? > 0.0, "its journal held some of the first jobs");
    all_well(&world.router, &jobs).await
}

#[tokio::test]
async fn a_standby_takes_over_within_a_second_of_a_drain() -> Result<()> {
    let (mut world, second) = two().await?;
    let jobs = sleeps(60, 100);
    let (early, late) = jobs.split_at(30);
    world.router.send_all(early).await?;
    world.worker.terminate()?;
    world.router.send_all(late).await?;
    let status = world.worker.ended(Duration::from_secs(15)).await?;
    let ended = Instant::now();
    ensure!(status.success(), "it ended with {status}");
    let (by, _) = who_runs(&world.router).await?;
    let after = ended.elapsed();
    println!("the standby's first result came {after:?} after the drained worker's end");
    ensure!(by == second.id() && after < Duration::from_secs(1), "{by} ran it after {after:?}");
    all_well(&world.router, &jobs).await?;
    ensure!(world.router.ask(|model| model.counts().decided_again) == 0, "a drained worker leaves nothing to decide again");
    Ok(())
}

#[tokio::test]
async fn a_worker_that_was_away_too_long_ends_and_says_nothing_that_differs() -> Result<()> {
    let (mut world, mut second) = two().await?;
    let jobs = sleeps(60, 400);
    world.router.send_all(&jobs).await?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    world.worker.signal(Signal::STOP)?;
    let (by, epoch) = who_runs(&world.router).await?;
    ensure!((by.as_str(), epoch) == (second.id(), 2), "{by} ran it under epoch {epoch}");
    second.ready().await?;
    let decided = world.router.ask(|model| model.counts().results);
    world.worker.signal(Signal::CONT)?;
    // Its shards finish what they had begun, and nobody is told.
    let status = world.worker.ended(Duration::from_secs(15)).await?;
    ensure!(status.code() == Some(1), "it ended with {status}");
    let said = world.worker.log_text();
    ensure!(said.contains("has taken lease.CAF_ASSIGN.endstation"), "it does not say why it ended:\n{}", world.worker.log_tail());
    all_well(&world.router, &jobs).await?;
    let counts = world.router.ask(|model| model.counts());
    println!("{decided} results before it woke; {counts:?}");
    let stored = world.router.read_result_stream().await?;
    ensure!(stored == 61, "{stored} results for 61 steps");
    Ok(())
}

#[tokio::test]
async fn a_killed_owner_takes_its_own_lease_back_at_once() -> Result<()> {
    let mut world = World::with(true, Settings::default(), LENIENT).await?;
    who_runs(&world.router).await?;
    world.worker.kill();
    let begun = Instant::now();
    world.worker.restart().await?;
    ensure!(begun.elapsed() < Duration::from_secs(2), "it waited for itself for {:?}", begun.elapsed());
    ensure!(who_runs(&world.router).await? == (world.worker.id().to_owned(), 2), "another epoch of the same owner");
    world.finish().await
}

#[tokio::test]
async fn an_owner_keeps_what_it_owns_while_its_server_is_away() -> Result<()> {
    let (mut world, second) = two().await?;
    for _ in 0..3 {
        world.server.kill();
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        world.server.restart().await?;
        let (by, epoch) = who_runs(&world.router).await?;
        ensure!(by == world.worker.id() && epoch == 1, "{by} ran it under epoch {epoch}");
    }
    stands_by(&second, world.worker.id()).await?;
    world.finish().await
}

#[tokio::test]
async fn workers_that_share_take_work_at_the_same_time() -> Result<()> {
    let settings = Settings::default().set("ENDSTATION__NATS__OWNERSHIP", "shared");
    let world = World::with(true, settings.clone(), LENIENT).await?;
    let second = Worker::start(&world.server.url(), settings).await?;
    let jobs = sleeps(200, 50);
    world.router.send_all(&jobs).await?;
    all_well(&world.router, &jobs).await?;
    let done = |worker: &str| {
        let by = |job: &&Assignment, model: &crate::router::Model| {
            model.result_of(&job.id).is_some_and(|seen| seen.object.get("worker_id").is_some_and(|id| id == worker))
        };
        world.router.ask(|model| jobs.iter().filter(|job| by(job, model)).count())
    };
    let (one, other) = (done(world.worker.id()), done(second.id()));
    ensure!(one + other == jobs.len() && one > 0 && other > 0, "{one} and {other}");
    Ok(())
}

#[tokio::test]
async fn a_lease_that_nobody_can_read_is_not_taken() -> Result<()> {
    let server = NatsServer::start(true).await?;
    let router = Router::connect(&server.url(), true, Subjects::default(), LENIENT).await?;
    let mut worker = Worker::start(&server.url(), Settings::default()).await?;
    worker.kill();
    let client = async_nats::connect(server.url()).await?;
    client.request("$KV.endstation.lease.CAF_ASSIGN.endstation", "what is this".into()).await?;
    worker.launch(&[])?;
    let begun = Instant::now();
    while !worker.log_text().contains("the lease cannot be looked at") {
        if begun.elapsed() > PATIENCE {
            bail!("it does not say so:\n{}", worker.log_tail());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure!(worker.get("/_readyz").await?.0 == 503, "it must not work on a lease that it cannot read");
    drop(router);
    Ok(())
}
