//! Kill -9 while work flows: the worker's, then the server's. Every assignment gets exactly one terminal result, and no
//! file is written twice.
//!
//! [`mixed`] does these and everything else at random.
//!
//! `ENDSTATION_IT_WORKER_KILLS` and `ENDSTATION_IT_SERVER_KILLS` raise the counts for a longer run.

#[cfg(feature = "failpoints")]
mod mixed;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use crate::ledger::Ledger;
use crate::record;
use crate::router::peer::Router;
use crate::router::{Assignment, Strictness};
use crate::stranded::{self, Stranded};
use crate::worker::{Settings, Worker};
use crate::world::{World, alone};

const TENANTS: u32 = 8;
/// How long the tail may take once nothing is killed any more.
const SETTLE: Duration = Duration::from_secs(90);
/// Twenty times ack_wait: a delivery that nobody holds has come again by then.
const COMES_AGAIN: Duration = Duration::from_secs(20);
/// And one that was handed back with the longest delay (30 s).
const HELD: Duration = Duration::from_secs(45);

/// Step `n` of the stream: mostly echo, every fifth a file of its own, every seventh a short sleep.
fn step(n: u32) -> Assignment {
    let tenant = format!("tenant-{}", n % TENANTS);
    match n {
        n if n.is_multiple_of(5) => Assignment::new(&tenant, "fs.blob_put", json!({"path": name(n), "content": content(n)})),
        n if n.is_multiple_of(7) => Assignment::new(&tenant, "sleep", json!({"ms": n % 40})),
        n => Assignment::new(&tenant, "echo", json!({"n": n})),
    }
}

fn name(n: u32) -> String {
    format!("chaos-{n}.txt")
}

fn content(n: u32) -> String {
    format!("content of step {n}")
}

/// A wait of 0 to 63 ms that differs from kill to kill and not from run to run: a batch takes about as long.
fn uneven(kill: u32) -> Duration {
    Duration::from_millis(u64::from(kill.wrapping_add(1).wrapping_mul(2_654_435_761) >> 26))
}

struct Tally {
    server_killed: bool,
    steps: u32,
    kills: u32,
    begun: Instant,
}

/// Waits until the assignments' stream is empty, or until it is proven that what stays in it is the server's doing.
async fn run_dry(router: &Router, worker: &Worker, server_killed: bool) -> Result<Stranded> {
    let (mut left, mut since) = (u64::MAX, Instant::now());
    loop {
        let now_left = router.left_in_stream().await?;
        if now_left == 0 {
            return Ok(Stranded::default());
        }
        if now_left != left {
            (left, since) = (now_left, Instant::now());
        }
        let still = since.elapsed();
        if server_killed && (still > HELD || still > COMES_AGAIN && stranded::nothing_is_out(router).await?) {
            return stranded::prove(router, worker).await;
        }
        ensure!(still < SETTLE, "{left} messages stay in the stream, of {:?}", router.leftovers().await?.first());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn settle(world: &World, jobs: &[Assignment], ledger: &mut Ledger, scenario: &str, tally: &Tally) -> Result<()> {
    world.router.all_answered(SETTLE).await?;
    // Redeliveries of what was done already may still come: let the consumer run dry before counting.
    let stranded = run_dry(&world.router, &world.worker, tally.server_killed).await?;
    let stored = world.router.read_result_stream().await?;
    world.router.verdict()?;
    let (counts, wrong, unacked) = world.router.ask(|model| {
        let failed = |job: &&Assignment| model.result_of(&job.id).is_none_or(|seen| seen.status() != "success");
        let silent = |job: &&Assignment| model.ack_of(&job.id).is_none();
        (model.counts(), jobs.iter().filter(failed).count(), jobs.iter().filter(silent).count())
    });
    record::summary(
        scenario,
        json!({
            "steps": tally.steps, "kills": tally.kills, "seconds": tally.begun.elapsed().as_secs_f64(),
            "results_seen": counts.results, "repeats": counts.repeats, "in_result_stream": stored,
            "acks_unseen": unacked, "stranded_by_server": stranded.count,
            "ghosts_of_server": stranded.ghosts, "not_success": wrong,
        }),
    )?;
    ensure!(wrong == 0, "{wrong} steps did not succeed");
    for n in (0..tally.steps).step_by(5) {
        ledger.written_once(&format!("tenant-{}", n % TENANTS), &name(n), content(n).as_bytes())?;
    }
    ledger.never_rewritten()
}

#[cfg(not(feature = "failpoints"))]
#[test]
#[ignore = "the mixed run needs `cargo test --features failpoints`"]
fn the_mixed_run_needs_a_build_with_the_failpoints_feature() {}

#[tokio::test]
async fn killing_the_worker_again_and_again_loses_and_doubles_nothing() -> Result<()> {
    let _turn = alone().await;
    let kills = record::count("ENDSTATION_IT_WORKER_KILLS", 20);
    let each = 2_000_u32.div_ceil(kills.max(1)).max(100);
    let lenient = Strictness { message_ids: true, order: false, owners: false };
    let mut world = World::with(true, Settings::default(), lenient).await?;
    let mut ledger = Ledger::new(world.worker.dir());
    let (mut jobs, begun) = (Vec::new(), Instant::now());
    for kill in 0..kills {
        let batch: Vec<Assignment> = (kill * each..(kill + 1) * each).map(step).collect();
        let World { router, worker, .. } = &mut world;
        let killing = async {
            tokio::time::sleep(uneven(kill)).await;
            worker.kill();
            ledger.look()?;
            worker.restart().await
        };
        tokio::try_join!(router.send_all(&batch), killing)?;
        jobs.extend(batch);
    }
    let tally = Tally { server_killed: false, steps: kills * each, kills, begun };
    settle(&world, &jobs, &mut ledger, "worker_kills", &tally).await
}

#[tokio::test]
async fn killing_the_server_again_and_again_loses_and_doubles_nothing() -> Result<()> {
    let _turn = alone().await;
    let kills = record::count("ENDSTATION_IT_SERVER_KILLS", 5);
    let each = 1_000_u32.div_ceil(kills.max(1)).max(100);
    let lenient = Strictness { message_ids: true, order: false, owners: false };
    let mut world = World::with(true, Settings::default(), lenient).await?;
    let mut ledger = Ledger::new(world.worker.dir());
    let (mut jobs, begun) = (Vec::new(), Instant::now());
    for kill in 0..kills {
        let batch: Vec<Assignment> = (kill * each..(kill + 1) * each).map(step).collect();
        let World { router, server, .. } = &mut world;
        let killing = async {
            tokio::time::sleep(uneven(kill)).await;
            server.kill();
            ledger.look()?;
            tokio::time::sleep(4 * uneven(kill + kills)).await;
            server.restart().await
        };
        tokio::try_join!(router.send_all(&batch), killing)?;
        jobs.extend(batch);
        ensure!(world.worker.exited()?.is_none(), "the worker ended with its server:\n{}", world.worker.log_tail());
    }
    // What this connection missed while it was down is in the stream.
    let deadline = Instant::now() + SETTLE;
    while world.router.ask(|model| model.open()) > 0 {
        ensure!(Instant::now() < deadline, "{} never answered", world.router.ask(|model| model.open()));
        if let Err(error) = world.router.read_result_stream().await {
            eprintln!("the server is not back yet: {error}");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let tally = Tally { server_killed: true, steps: kills * each, kills, begun };
    settle(&world, &jobs, &mut ledger, "server_kills", &tally).await
}
