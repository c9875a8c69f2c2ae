//! Little memory: a flood of large messages in a small control group ends nobody and loses nothing that was promised: what does
//! not fit waits in the stream, and on core NATS, where nothing can wait, it is refused or never taken.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use async_nats::jetstream;
use serde_json::json;

use crate::group::Group;
use crate::router::{Assignment, Owed};
use crate::worker::Settings;
use crate::world::{PATIENCE, World, alone};

const LIMIT: u64 = 300 << 20;
/// Three times the limit.
const FLOOD: usize = 1_000;
const MESSAGE_BYTES: usize = 900_000;
/// The flood passes a journal and a server on the same disk.
const WITHIN: Duration = Duration::from_secs(180);

fn large(n: usize, text: &str) -> Assignment {
    Assignment::new(&format!("tenant-{}", n % 4), "crypto.hash", json!({"text": text, "n": n}))
}

#[tokio::test]
async fn a_flood_of_large_messages_in_a_small_control_group_loses_nothing() -> Result<()> {
    let Some(group) = Group::with_memory(LIMIT) else { return Ok(()) };
    let _turn = alone().await;
    let mut world = World::jetstream(Settings::default().set("ENDSTATION__NATS__ACK_WAIT", "30s")).await?;
    world.worker.kill();
    let text = "x".repeat(MESSAGE_BYTES);
    let jobs: Vec<usize> = (0..FLOOD).collect();
    for chunk in jobs.chunks(16) {
        let sending = chunk.iter().map(|n| {
            let job = large(*n, &text);
            let (headers, body) = (job.headers.clone(), job.body());
            let router = &world.router;
            async move { router.send_raw("caf.exec.assign.v1", &headers, body).await }
        });
        futures_util::future::try_join_all(sending).await?;
    }
    world.worker.confine(group.path());
    let begun = Instant::now();
    world.worker.restart().await?;
    let context = jetstream::new(world.router.client().clone());
    loop {
        ensure!(world.worker.exited()?.is_none(), "it ended:\n{}", world.worker.log_tail());
        let results = context.get_stream("CAF_RESULT").await?.cached_info().state.messages;
        if results >= FLOOD as u64 && world.router.left_in_stream().await? == 0 {
            ensure!(results == FLOOD as u64, "{results} results for {FLOOD} steps");
            break;
        }
        ensure!(begun.elapsed() < WITHIN, "{results} of {FLOOD} results:\n{}", world.worker.log_tail());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let resident = world.worker.metric("process_resident_memory_bytes").await?;
    println!("{FLOOD} messages in {:?}; group peak {:?}, resident {resident}", begun.elapsed(), group.peak());
    ensure!(resident < LIMIT as f64, "{resident} bytes");
    world.worker.kill();
    Ok(())
}

#[tokio::test]
async fn a_flood_on_core_nats_in_a_small_control_group_ends_nobody() -> Result<()> {
    let Some(group) = Group::with_memory(LIMIT) else { return Ok(()) };
    let _turn = alone().await;
    let mut world = World::core(Settings::core()).await?;
    world.worker.kill();
    world.worker.confine(group.path());
    world.worker.restart().await?;
    let text = "x".repeat(MESSAGE_BYTES);
    let begun = Instant::now();
    let mut ids = Vec::new();
    for n in 0..FLOOD {
        let job = large(n, &text);
        // What the server or the worker does not take nobody has promised anything of.
        world.router.send_owing(&job, Owed::Either).await?;
        ids.push(job.id);
    }
    let sent_in = begun.elapsed();
    // Whatever it has said of the flood, it is at work.
    let seen = loop {
        ensure!(world.worker.exited()?.is_none(), "it ended:\n{}", world.worker.log_tail());
        let small = Assignment::new("after", "echo", json!({"n": ids.len()}));
        world.router.send_owing(&small, Owed::Either).await?;
        match world.router.result(&small.id, Duration::from_secs(2)).await {
            // It holds as much of the flood as it may, and says so.
            Ok(seen) if seen.code() == "QUOTA_EXCEEDED" && begun.elapsed() < WITHIN => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok(seen) => break seen,
            Err(error) => ensure!(begun.elapsed() < WITHIN, "{error}:\n{}", world.worker.log_tail()),
        }
    };
    ensure!(seen.status() == "success", "{:?}", seen.object);
    // What was accepted is done.
    let accepted: Vec<String> =
        world.router.ask(|model| ids.iter().filter(|id| model.ack_of(id) == Some("accepted")).cloned().collect());
    let refused = world.router.ask(|model| ids.iter().filter(|id| model.ack_of(id) == Some("rejected")).count());
    for id in &accepted {
        let seen = world.router.result(id, PATIENCE).await?;
        ensure!(seen.status() == "success", "{:?}", seen.object);
    }
    println!(
        "{FLOOD} messages sent in {sent_in:?}: {} done, {refused} refused, the rest not taken; group peak {:?}",
        accepted.len(),
        group.peak()
    );
    ensure!(!accepted.is_empty(), "nothing of it was done");
    world.router.unbroken()?;
    world.worker.kill();
    Ok(())
}
