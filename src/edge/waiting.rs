//! Copies of steps that wait for people: where they lie, and how who owns the work next takes them up.
//!
//! A copy is a message of a bucket under its step's key: the step's own frames of a journal. Shards write and take away copies as
//! parcels, which are sent again until the server answers; here they are read, one after the other, once another's work has become
//! ours. A copy that cannot be read is left where it is, and complained of.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use async_nats::Client;
use bytes::Bytes;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use shards::ids::{Key, Text, hex};
use shards::journal::view::Frames;
use shards::journal::{Fact, decode};
use shards::limits::GATE_MS_MAX;
use shards::map;

use super::bucket::WAITING;
use super::limits::API_WITHIN_MS;
use super::nats::Link;
use super::ports::Ports;
use super::thread::{Halt, Phase};
use crate::settings::NatsSettings;

/// A copy goes by itself so long after its step's time was over at the latest.
const SLACK: Duration = Duration::from_secs(24 * 3600);
/// While a shard has no room, or the server does not answer, it is tried again after this.
const AGAIN: Duration = Duration::from_millis(200);

/// The workers that stand in for each other, by a name of theirs: those that take work from the same subjects by the same durable.
pub(crate) fn crew(nats: &NatsSettings) -> Text {
    let mut subjects: Vec<&str> = nats.assign_subjects.iter().map(String::as_str).collect();
    subjects.sort_unstable();
    let mut name = Sha256::new();
    for part in std::iter::once(nats.durable.as_str()).chain(subjects) {
        name.update((part.len() as u64).to_le_bytes());
        name.update(part);
    }
    Text::from(hex(&name.finalize()[..16]))
}

/// Where the copy of this key's step is written.
pub(super) fn subject(crew: &str, key: &Key) -> String {
    WAITING.subject(&format!("{crew}.{key}"))
}

/// Where it is asked that a copy be taken away, and how.
pub(super) fn removal(crew: &str, key: &Key) -> (String, Bytes) {
    let body = json!({ "filter": subject(crew, key) }).to_string();
    (format!("$JS.API.STREAM.PURGE.{}", WAITING.stream()), body.into())
}

/// Sees to it that there is a place for copies.
///
/// # Errors
/// There is none, and it could not be made; or the server did not answer.
pub(super) async fn prepare(client: &Client, replicas: usize) -> Result<(), async_nats::Error> {
    if WAITING.exists(client).await? {
        return Ok(());
    }
    WAITING.create(client, replicas, Duration::from_millis(GATE_MS_MAX) + SLACK).await
}

/// Hands all copies that this crew has to their shards. What is known there already, as after a restart, changes nothing.
pub(super) async fn adopt(link: &Link, crew: &str, ports: Rc<RefCell<Ports>>, mut phase: Phase) {
    let (mut after, mut taken) = (0, 0_u64);
    while phase.now() != Halt::Stop && !link.closed() {
        let within = Duration::from_millis(API_WITHIN_MS);
        let next = match tokio::time::timeout(within, WAITING.next(&link.client, crew, after)).await {
            Ok(Ok(Some(next))) => next,
            Ok(Ok(None)) => break,
            Ok(Err(error)) => {
                tracing::warn!(%error, "steps that wait for people and were another worker's cannot be read; asking again");
                phase.wait(AGAIN).await;
                continue;
            }
            Err(_) => continue,
        };
        let (sequence, copy) = next;
        let Some(shard) = shard_of(&copy, ports.borrow().count()) else {
            tracing::error!(
                sequence,
                bucket = WAITING.name(),
                "a copy of a step that waits for people cannot be read, and is left there"
            );
            after = sequence;
            continue;
        };
        // Two borrows: none is held while we wait.
        let full = ports.borrow_mut().adopt(shard, Bytes::from(copy)).is_err();
        if full {
            phase.wait(AGAIN).await;
        } else {
            (after, taken) = (sequence, taken + 1);
        }
    }
    if taken > 0 {
        tracing::info!(steps = taken, "steps that wait for people and were another worker's go on here");
    }
}

/// Whose a copy is.
fn shard_of(copy: &[u8], shards: u16) -> Option<u16> {
    let first = Frames::new(copy).next()?.ok()?;
    let frame = decode(&Bytes::copy_from_slice(first)).ok()?;
    match frame.fact {
        Fact::Accepted(fact) => Some(map::shard(map::partition(&fact.tenant), shards)),
        _ => None,
    }
}
