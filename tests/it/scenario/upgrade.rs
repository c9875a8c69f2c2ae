//! Two builds of the worker take turns on one journal, under load: up, down, by kill and by drain. Nothing is lost or repeated.
//!
//! The other build is `ENDSTATION_IT_OTHER`, a path to its binary: one of an earlier version, say. Without it, it is this one made
//! to write segments of the next format. `ENDSTATION_IT_UPGRADES` raises the number of changes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::journal::endstation;
use crate::ledger::Ledger;
use crate::record;
use crate::router::peer::Router;
use crate::router::{Assignment, Strictness};
use crate::worker::{Settings, Worker};
use crate::world::{PATIENCE, World, alone};

const NEXT_FORMAT: (&str, &str) = ("FAILPOINTS", "next-format=return");
const REFUSED_FORMAT: (&str, &str) = ("FAILPOINTS", "next-format=return(refused)");

/// A build of the worker.
#[derive(Clone, Debug)]
struct Build {
    program: PathBuf,
    extra: Vec<(&'static str, &'static str)>,
}

impl Build {
    fn this() -> Build {
        Build { program: env!("CARGO_BIN_EXE_endstation").into(), extra: Vec::new() }
    }

    fn other() -> Build {
        match std::env::var_os("ENDSTATION_IT_OTHER") {
            Some(program) => Build { program: program.into(), extra: Vec::new() },
            None => Build { extra: vec![NEXT_FORMAT], ..Build::this() },
        }
    }

    fn launch(&self, worker: &mut Worker) -> Result<()> {
        worker.launch_build(&self.program, &self.extra)
    }
}

/// Step `n`: mostly echo, every fifth a file of its own, every seventh a short sleep.
fn step(n: u32) -> Assignment {
    let tenant = tenant(n);
    match n {
        n if n.is_multiple_of(5) => Assignment::new(&tenant, "fs.blob_put", json!({"path": path(n), "content": path(n)})),
        n if n.is_multiple_of(7) => Assignment::new(&tenant, "sleep", json!({"ms": n % 40})),
        n => Assignment::new(&tenant, "echo", json!({"n": n})),
    }
}

fn tenant(n: u32) -> String {
    format!("tenant-{}", n % 8)
}

fn path(n: u32) -> String {
    format!("step-{n}.txt")
}

/// 0 to 63 ms, another for each change and the same in each run.
fn uneven(change: u32) -> Duration {
    Duration::from_millis(u64::from(change.wrapping_add(1).wrapping_mul(2_654_435_761) >> 26))
}

/// Every one of `jobs` has its one result and went well, and the stream is empty.
pub(super) async fn all_well(router: &Router, jobs: &[Assignment]) -> Result<()> {
    router.all_answered(PATIENCE).await?;
    let begun = Instant::now();
    while router.left_in_stream().await? > 0 {
        ensure!(begun.elapsed() < PATIENCE, "{} messages stay in the stream", router.left_in_stream().await?);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let wrong = router
        .ask(|model| jobs.iter().filter(|job| model.result_of(&job.id).is_none_or(|seen| seen.status() != "success")).count());
    ensure!(wrong == 0, "{wrong} of {} did not succeed", jobs.len());
    router.verdict()
}

#[tokio::test]
async fn up_and_downgrades_under_load_lose_and_repeat_nothing() -> Result<()> {
    let _turn = alone().await;
    let changes = record::count("ENDSTATION_IT_UPGRADES", 8);
    let each = 100;
    let lenient = Strictness { message_ids: true, order: false, owners: false };
    let mut world = World::with(true, Settings::default(), lenient).await?;
    let mut ledger = Ledger::new(world.worker.dir());
    let (builds, mut jobs, begun) = ([Build::other(), Build::this()], Vec::new(), Instant::now());
    for change in 0..changes {
        let batch: Vec<Assignment> = (change * each..(change + 1) * each).map(step).collect();
        let World { router, worker, .. } = &mut world;
        let changing = async {
            tokio::time::sleep(uneven(change)).await;
            if change % 3 == 0 {
                worker.kill();
            } else {
                worker.terminate()?;
                let status = worker.ended(Duration::from_secs(15)).await?;
                ensure!(status.success(), "it ended with {status}:\n{}", worker.log_tail());
            }
            ledger.look()?;
            builds[change as usize % 2].launch(worker)?;
            worker.ready().await
        };
        tokio::try_join!(router.send_all(&batch), changing)?;
        jobs.extend(batch);
    }
    all_well(&world.router, &jobs).await?;
    let repeats = world.router.ask(|model| model.counts().repeats);
    let other = std::env::var("ENDSTATION_IT_OTHER_IS").unwrap_or_else(|_| "this build, writing the next format".into());
    let facts = json!({
        "steps": jobs.len(), "changes": changes, "killed": changes.div_ceil(3), "drained": changes - changes.div_ceil(3),
        "other_build": other, "repeats": repeats, "not_success": 0, "seconds": begun.elapsed().as_secs_f64(),
    });
    record::summary("up_and_downgrades", facts)?;
    for n in (0..changes * each).step_by(5) {
        ledger.written_once(&tenant(n), &path(n), path(n).as_bytes())?;
    }
    ledger.never_rewritten()
}

#[tokio::test]
async fn a_journal_of_a_format_that_may_not_be_read_is_refused_with_the_cure_and_loses_nothing() -> Result<()> {
    let mut world = World::jetstream(Settings::default()).await?;
    let early: Vec<Assignment> = (0..50).map(step).collect();
    world.router.send_all(&early).await?;
    world.worker.kill();
    world.worker.launch(&[REFUSED_FORMAT])?;
    world.worker.ready().await?;
    let late: Vec<Assignment> = (50..100).map(step).collect();
    world.router.send_all(&late).await?;
    world.worker.kill();

    world.worker.launch(&[])?;
    let status = world.worker.ended(Duration::from_secs(10)).await?;
    let log = world.worker.log_tail();
    ensure!(status.code() == Some(5), "it ended with {status}:\n{log}");
    ensure!(log.contains("written by a newer endstation (format 2, this one reads 1); start that version"), "{log}");
    let check = endstation(&["journal", "check"], &world.worker.storage()).await?;
    ensure!(check.status.code() == Some(5), "{check:?}");

    world.worker.launch(&[REFUSED_FORMAT])?;
    world.worker.ready().await?;
    all_well(&world.router, &[early, late].concat()).await
}

#[tokio::test]
async fn a_rolling_restart_of_two_workers_under_load_loses_and_repeats_nothing() -> Result<()> {
    let _turn = alone().await;
    let rounds = record::count("ENDSTATION_IT_ROLLS", 4);
    let owners = Strictness { message_ids: true, order: false, owners: true };
    let mut world = World::with(true, Settings::default(), owners).await?;
    let mut second = Worker::stopped(&world.server.url(), Settings::default())?;
    let (builds, mut jobs, begun, mut away_ms) = ([Build::other(), Build::this()], Vec::new(), Instant::now(), Vec::new());
    builds[1].launch(&mut second)?;
    for round in 0..rounds {
        let batch: Vec<Assignment> = (round * 300..(round + 1) * 300).map(step).collect();
        let World { router, worker, .. } = &mut world;
        let (owner, standby) = if round % 2 == 0 { (worker, &mut second) } else { (&mut second, worker) };
        let rolling = async {
            tokio::time::sleep(uneven(round)).await;
            owner.terminate()?;
            let status = owner.ended(Duration::from_secs(15)).await?;
            ensure!(status.success(), "it ended with {status}:\n{}", owner.log_tail());
            let ended = Instant::now();
            standby.ready().await.context("the standby takes over")?;
            away_ms.push(ended.elapsed().as_millis() as u64);
            builds[(round / 2) as usize % 2].launch(owner)
        };
        tokio::try_join!(router.send_all(&batch), rolling)?;
        jobs.extend(batch);
    }
    all_well(&world.router, &jobs).await?;
    let (decided_again, repeats) = world.router.ask(|model| (model.counts().decided_again, model.counts().repeats));
    let facts = json!({
        "steps": jobs.len(), "rounds": rounds, "taken_over_ms": away_ms, "repeats": repeats, "not_success": 0,
        "decided_again": decided_again, "seconds": begun.elapsed().as_secs_f64(),
    });
    record::summary("rolling_restarts", facts)?;
    ensure!(decided_again == 0, "a drained worker leaves nothing to decide again");
    ensure!(away_ms.iter().all(|ms| *ms < 1_000), "a standby took over after {away_ms:?} ms");
    Ok(())
}
