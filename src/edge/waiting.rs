//! Copies of steps that wait for people: where they lie, and how who owns the work next takes them up.
//!
//! A copy is a message of a bucket under its step's key: the step's own frames of a journal. Shards write and take away copies as
//! parcels, which are sent again until the server answers; here they are read, many at once, once another's work has become ours. A
//! copy that cannot be read is left where it is, and complained of.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use async_nats::Client;
use bytes::Bytes;
use futures_util::StreamExt as _;
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
/// While the server does not answer, it is tried again after this.
const AGAIN: Duration = Duration::from_millis(200);
/// While a shard has no room, it is looked at again after this: it takes its next batch within.
const ROOM_AGAIN: Duration = Duration::from_millis(1);
/// Questions for copies that are under way at once: each waits for the one before it of its part.
const AT_ONCE: usize = 64;
/// The bucket's revisions are read in so many parts, more than at once: some of them may be full and others empty.
const PARTS: u64 = 512;
/// Revisions of a part at the least.
const PART_MIN: u64 = 16;

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
    let Some((first, last)) = span(link, &mut phase).await else { return };
    let lanes = parts(first, last).into_iter().map(|(first, last)| {
        let reader = Reader { link, crew, ports: &ports, phase: phase.clone() };
        reader.read(first, last)
    });
    let taken: u64 =
        futures_util::stream::iter(lanes).buffer_unordered(AT_ONCE).fold(0, |sum, one| async move { sum + one }).await;
    // Cut short, it begins again with the next connection.
    if link.closed() {
        return;
    }
    let shards = ports.borrow().count();
    for shard in 0..shards {
        while phase.now() != Halt::Stop && !ports.borrow_mut().copies_read(shard) {
            phase.wait(ROOM_AGAIN).await;
        }
    }
    if taken > 0 {
        tracing::info!(steps = taken, "copies of steps that wait for people are read; what was another worker's goes on here");
    }
}

/// The revisions of the oldest and of the newest copy in the bucket, this crew's or another's; `None`: the end came.
async fn span(link: &Link, phase: &mut Phase) -> Option<(u64, u64)> {
    while phase.now() != Halt::Stop && !link.closed() {
        match tokio::time::timeout(Duration::from_millis(API_WITHIN_MS), WAITING.span(&link.client)).await {
            Ok(Ok(span)) => return Some(span.unwrap_or((1, 1))),
            Ok(Err(error)) => unread(&error),
            Err(_) => {}
        }
        phase.wait(AGAIN).await;
    }
    None
}

fn unread(error: &async_nats::Error) {
    tracing::warn!(%error, "steps that wait for people and were another worker's cannot be read; asking again");
}

/// These revisions in parts to be read at once; the last one is open, for what is written meanwhile.
fn parts(first: u64, last: u64) -> Vec<(u64, u64)> {
    let size = ((last - first) / PARTS + 1).max(PART_MIN);
    let end = |at: u64| if at + size > last { u64::MAX } else { at + size - 1 };
    (first..=last).step_by(size as usize).map(|at| (at, end(at))).collect()
}

/// What reads a part.
struct Reader<'a> {
    link: &'a Link,
    crew: &'a str,
    ports: &'a RefCell<Ports>,
    phase: Phase,
}

impl Reader<'_> {
    /// Reads it, one copy after the other; how many there were.
    async fn read(mut self, first: u64, last: u64) -> u64 {
        let (mut after, mut taken) = (first - 1, 0);
        while self.phase.now() != Halt::Stop && !self.link.closed() {
            let within = Duration::from_millis(API_WITHIN_MS);
            let next = match tokio::time::timeout(within, WAITING.next(&self.link.client, self.crew, after)).await {
                Ok(Ok(next)) => next,
                Ok(Err(error)) => {
                    unread(&error);
                    self.phase.wait(AGAIN).await;
                    continue;
                }
                Err(_) => continue,
            };
            // Behind its end another one reads.
            let Some((sequence, copy)) = next.filter(|(sequence, _)| *sequence <= last) else { break };
            let Some(shard) = shard_of(&copy, self.ports.borrow().count()) else {
                tracing::error!(
                    sequence,
                    bucket = WAITING.name(),
                    "a copy of a step that waits for people cannot be read, and is left there"
                );
                after = sequence;
                continue;
            };
            let mut copy = Bytes::from(copy);
            loop {
                // Nothing is borrowed while we wait.
                let handed = self.ports.borrow_mut().adopt(shard, copy);
                match handed {
                    Ok(()) => break,
                    Err(back) => copy = back,
                }
                if self.phase.wait(ROOM_AGAIN).await == Halt::Stop {
                    return taken;
                }
            }
            (after, taken) = (sequence, taken + 1);
        }
        taken
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_revision_is_read_in_one_part_and_in_no_other() {
        for (first, last) in
            [(1, 1), (5, 20), (1, 16), (1, 17), (7, 1_000_003), (u64::from(u32::MAX), u64::from(u32::MAX) + 9_000)]
        {
            let parts = parts(first, last);
            assert!(parts.len() as u64 <= PARTS + 1, "{}", parts.len());
            assert_eq!((parts[0].0, parts[parts.len() - 1].1), (first, u64::MAX));
            assert!(parts[parts.len() - 1].0 <= last);
            assert!(parts.windows(2).all(|two| two[0].1 + 1 == two[1].0) && parts.iter().all(|(from, to)| from <= to));
        }
    }
}
