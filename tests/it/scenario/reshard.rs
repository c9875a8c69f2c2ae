//! The number of shards changes between two starts, under load and by kill: every step keeps its one outcome.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::journal::endstation;
use super::upgrade::all_well;
use crate::ledger::Ledger;
use crate::router::peer::Router;
use crate::router::{Assignment, Strictness, Subjects};
use crate::server::NatsServer;
use crate::worker::{Settings, Worker};
use crate::world::{PATIENCE, World, alone};

/// One shard, and two on the two cores that there are at least where these tests run.
const CORES: [&str; 2] = ["0", "0,1"];

/// Step `n`: files that show whether they were written twice, sleeps that are cut, echoes; with failpoints also some that fail
/// at first and are tried again.
fn step(n: u32) -> Assignment {
    let tenant = tenant(n);
    match n {
        n if n.is_multiple_of(5) => Assignment::new(&tenant, "fs.blob_put", json!({"path": path(n), "content": path(n)})),
        n if n.is_multiple_of(7) => Assignment::new(&tenant, "sleep", json!({"ms": 100 + n % 700})),
        n if n.is_multiple_of(3) && cfg!(feature = "failpoints") => {
            let mut job = Assignment::new(&tenant, "test.fail", json!({"times": 2}));
            job.json["options"]["retry"] = json!({"max_attempts": 4, "backoff_ms": 300});
            job
        }
        n => Assignment::new(&tenant, "echo", json!({"n": n})),
    }
}

fn tenant(n: u32) -> String {
    format!("tenant-{}", n % 16)
}

fn path(n: u32) -> String {
    format!("step-{n}.txt")
}

fn settings() -> Settings {
    Settings::default().set("FAILPOINTS", "dev-blocks=return")
}

/// What `journal check` says of each shard: of one generation, sound, and of so many shards.
async fn checked(worker: &Worker, generation: u64, shards: usize) -> Result<Vec<Value>> {
    let output = endstation(&["journal", "check"], &worker.storage()).await?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.code() == Some(0), "{}: {text}", output.status);
    let mut lines = text.lines().map(serde_json::from_str).collect::<serde_json::Result<Vec<Value>>>()?;
    let last = lines.pop().context("a last line")?;
    ensure!(last["sound"] == true, "{text}");
    ensure!(lines.len() == shards && lines.iter().all(|shard| shard["generation"] == generation), "{text}");
    Ok(lines)
}

#[tokio::test]
async fn the_number_of_shards_changes_under_load_and_no_step_is_lost_or_done_twice() -> Result<()> {
    let _turn = alone().await;
    let lenient = Strictness { message_ids: true, order: false, owners: false };
    let mut world = World::with(true, settings(), lenient).await?;
    let mut ledger = Ledger::new(world.worker.dir());
    let (changes, each) = (6, 120);
    let mut jobs: Vec<Assignment> = Vec::new();
    for change in 0..changes {
        let batch: Vec<Assignment> = (change * each..(change + 1) * each).map(step).collect();
        let cores = CORES[(change as usize + 1) % 2];
        let World { router, worker, .. } = &mut world;
        let changing = async {
            // Some of the batch is done by then, some is at work, some waits for its next try.
            tokio::time::sleep(Duration::from_millis(150 + u64::from(change) * 70)).await;
            worker.kill();
            ledger.look()?;
            worker.launch(&[("ENDSTATION__CORES__SHARDS", cores)])?;
            worker.ready().await
        };
        tokio::try_join!(router.send_all(&batch), changing)?;
        // One that was done by other shards is known to these.
        if let Some(known) = jobs.first() {
            let before = router.ask(|model| model.counts().repeats);
            router.send(known).await?;
            router.wait(PATIENCE, "a repeat", |model| (model.counts().repeats > before).then_some(())).await?;
        }
        router.all_answered(PATIENCE).await?;
        jobs.extend(batch);
        checked(worker, 2 + u64::from(change), 1 + (change as usize + 1) % 2).await?;
    }
    let World { router, worker, .. } = &world;
    all_well(router, &jobs).await?;
    for n in (0..changes * each).step_by(5) {
        ledger.written_once(&tenant(n), &path(n), path(n).as_bytes())?;
    }
    ledger.never_rewritten()?;
    let log = worker.log_text();
    let said = log.lines().filter(|line| line.contains("the journal is rewritten")).count();
    ensure!(said == changes as usize, "it was said {said} times");
    let keys: u64 = checked(worker, 1 + u64::from(changes), 1).await?.iter().filter_map(|shard| shard["keys"].as_u64()).sum();
    ensure!(keys == jobs.len() as u64, "{keys} keys of {} steps", jobs.len());
    Ok(())
}

#[tokio::test]
async fn without_room_for_the_rewrite_the_worker_does_not_start_and_the_journal_stays() -> Result<()> {
    let server = NatsServer::start(true).await?;
    let router = Router::connect(&server.url(), true, Subjects::default(), Strictness::default()).await?;
    let mut worker = Worker::stopped(&server.url(), settings().set("ENDSTATION__JOURNAL__BYTES_MAX", "16MiB"))?;
    if !worker.mount(48)? {
        return Ok(());
    }
    worker.restart().await?;
    let jobs: Vec<Assignment> = (1..40).map(|n| Assignment::new(&tenant(n), "echo", json!({"n": n}))).collect();
    router.send_all(&jobs).await?;
    router.all_answered(PATIENCE).await?;
    worker.kill();
    worker.volume()?.fill()?;

    worker.launch(&[("ENDSTATION__CORES__SHARDS", CORES[1])])?;
    let status = worker.ended(Duration::from_secs(10)).await?;
    let log = worker.log_tail();
    ensure!(status.code() == Some(3), "it ended with {status}:\n{log}");
    ensure!(log.contains("1 shards wrote this journal and there are 2 now") && log.contains("cores.shards back to 1"), "{log}");
    checked(&worker, 1, 1).await?;

    worker.volume()?.empty()?;
    worker.launch(&[("ENDSTATION__CORES__SHARDS", CORES[1])])?;
    worker.ready().await?;
    checked(&worker, 2, 2).await?;
    for job in &jobs {
        router.send(job).await?;
    }
    router.wait(PATIENCE, "repeats", |model| (model.counts().repeats >= jobs.len() as u64).then_some(())).await?;
    router.verdict()
}

#[cfg(feature = "failpoints")]
#[tokio::test]
async fn a_worker_killed_at_any_step_of_the_rewrite_goes_on_with_either_number_of_shards() -> Result<()> {
    let _turn = alone().await;
    let lenient = Strictness { message_ids: true, order: false, owners: false };
    let mut world = World::with(true, settings(), lenient).await?;
    let mut ledger = Ledger::new(world.worker.dir());
    let jobs: Vec<Assignment> = (0..60).map(step).collect();
    world.router.send_all(&jobs).await?;
    tokio::time::sleep(Duration::from_millis(150)).await;
    let (mut deaths, mut cores) = (0, 1);
    for steps in (0..).step_by(3) {
        world.worker.kill();
        let failpoints = format!("dev-blocks=return;reshard-step={steps}*off->return");
        world.worker.launch(&[("ENDSTATION__CORES__SHARDS", CORES[cores]), ("FAILPOINTS", &failpoints)])?;
        if world.worker.aborted(Duration::from_secs(5)).await.is_err() {
            break;
        }
        deaths += 1;
        ledger.look()?;
        // Back to where it was, or on: both find a whole journal.
        cores = usize::from(steps % 2 == 0);
        world.worker.launch(&[("ENDSTATION__CORES__SHARDS", CORES[cores])])?;
        world.worker.ready().await?;
        cores = 1 - cores;
    }
    ensure!(deaths > 3, "it died {deaths} times");
    world.worker.ready().await?;
    world.finish().await?;
    for n in (0..60).step_by(5) {
        ledger.written_once(&tenant(n), &path(n), path(n).as_bytes())?;
    }
    ledger.never_rewritten()
}
