//! What a killed server leaves in a work-queue stream and never hands out again, and the proof that this is its own doing.
//!
//! nats-server 2.9.10 writes a consumer's acks to disk within 100 ms, but what these acks delete from a stream only every
//! 500 ms to 2 s, and after a start it compares the two for interest streams alone, never for work queues. Killed in between,
//! it comes back with messages that it counts as delivered and settled and still keeps: read off its files right after the
//! kill for each of the 1,464 that stayed in five runs. How many is bounded by what is acked in between and by nothing else,
//! so each is judged, and none is let pass for being one of few.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::router::Assignment;
use crate::router::peer::{Router, Standing};
use crate::worker::Worker;
use crate::world::PATIENCE;

/// The worker's consumer.
const DURABLE: &str = "endstation";
/// A message that the server counts as out comes again within this when it is told "not done"; many times ack_wait.
const COMES_AGAIN: Duration = Duration::from_secs(3);

/// How messages came to stay.
#[derive(Debug, Default)]
pub(crate) struct Stranded {
    /// How many stay.
    pub(crate) count: usize,
    /// Deliveries that the server waits to hear of though it has their message no more: the same loss the other way round.
    pub(crate) ghosts: u64,
}

/// How far the worker's consumer is.
pub(crate) async fn standing(router: &Router) -> Result<Standing> {
    router.standing(DURABLE).await
}

/// Whether all that may still come has come: nothing is out, so nothing waits for ack_wait or a delay.
pub(crate) async fn nothing_is_out(router: &Router) -> Result<bool> {
    let standing = standing(router).await?;
    Ok(standing.pending == 0 && standing.out == 0)
}

/// Proves of every message that stays that the server has settled it: delivered, not out, though the worker asks for work,
/// gets it, and owes nothing. An error: the worker may be at fault.
pub(crate) async fn prove(router: &Router, worker: &Worker) -> Result<Stranded> {
    // Only one who asks for work can say that none is given.
    router.run(&Assignment::new("tenant-0", "echo", json!({"after": "the kills"})), PATIENCE).await?;
    // Its ack, too, is with the server by then.
    tokio::time::sleep(COMES_AGAIN).await;
    let (left, standing) = (router.leftovers().await?, asked(router).await?);
    let said = format!("{} messages stay, the first {:?}; the server says {standing:?}", left.len(), &left[..left.len().min(8)]);
    eprintln!("{said}");
    let (_, state) = worker.get("/_state").await?;
    ensure!(idle(&serde_json::from_str(&state)?), "the worker is busy: {state}\n{said}");
    ensure!(standing.waiting > 0, "the worker asks for nothing\n{said}");
    ensure!(standing.pending == 0, "some were never delivered\n{said}");
    for (sequence, id) in &left {
        ensure!(*sequence <= standing.delivered, "{sequence} was never delivered\n{said}");
        let answered = router.ask(|model| model.result_of(id).is_some());
        ensure!(answered, "{sequence}, assignment {id}, has no result\n{said}");
    }
    if standing.out > 0 {
        // Something is out: is it one of these? The server ignores a "not done" for what it has settled.
        ensure!(standing.deliveries_floor < standing.deliveries, "a \"not done\" would tell nothing\n{said}");
        for (sequence, _) in &left {
            router.nak(DURABLE, *sequence, &standing).await?;
        }
        tokio::time::sleep(COMES_AGAIN).await;
        let after = router.leftovers().await?;
        ensure!(after == left, "some were out and not handed out again; {} stay now\n{said}", after.len());
    }
    Ok(Stranded { count: left.len(), ghosts: standing.out })
}

/// The consumer, looked at while the worker asks it for messages: between two requests there is a moment without one.
async fn asked(router: &Router) -> Result<Standing> {
    let begun = Instant::now();
    loop {
        let standing = standing(router).await?;
        if standing.waiting > 0 || begun.elapsed() > COMES_AGAIN {
            return Ok(standing);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The worker holds nothing and owes nothing.
fn idle(state: &Value) -> bool {
    let shards = state["shards"].as_array().map_or(&[][..], Vec::as_slice);
    let edge = &state["edge"];
    !shards.is_empty()
        && shards.iter().all(|shard| shard["idle"] == true && shard["unpublished"] == 0)
        && edge["unconfirmed"] == 0
        && edge["backlog"] == 0
}
