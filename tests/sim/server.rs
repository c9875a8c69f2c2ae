//! A NATS server with JetStream as it was measured: it keeps messages and forgets acks.
//!
//! `kill -9` undoes 950–1000 of the last 1000 acks, delivery counts, NAK delays and part of the message-id memory. A late ack
//! settles whatever delivery is out by then. The memory of message ids lasts two minutes, one for all outgoing subjects.

use std::collections::BTreeMap;

use bytes::Bytes;
use shards::event::Claimant;
use shards::ids::{Key, Lsn};
use shards::step::Settle;

use crate::plan::SECOND;
use crate::rng::Rng;

const REMEMBERS_US: u64 = 120 * SECOND;

/// One kind of letter for one reader; publishing it again carries the same id.
pub type MessageId = (u8, [u8; 16], u32);

/// A message on the assignments' stream.
#[derive(Debug)]
pub struct Kept {
    pub body: Bytes,
    pub stored_ms: u64,
    state: KeptState,
    delivered: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeptState {
    Ready,
    /// With somebody until then.
    Out(u64),
    /// Given back until then.
    Delayed(u64),
    Acked,
}

/// Whose claim stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Ours: shard and frame.
    Ours(usize, Lsn),
    Another,
}

/// The server. It lives outside the worker's crash domain.
#[derive(Debug)]
pub struct Server {
    pub stream: Vec<Kept>,
    acks: Vec<u64>,
    seen: BTreeMap<MessageId, u64>,
    /// Create-only, and kept over every kill.
    claims: BTreeMap<Key, Claim>,
    ack_wait_us: u64,
    max_ack_pending: usize,
    /// No message below this one is unsettled: where looking starts.
    first_open: usize,
}

impl Server {
    pub fn new(ack_wait_us: u64, max_ack_pending: usize) -> Self {
        let (acks, seen, claims) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        Server { stream: Vec::new(), acks, seen, claims, ack_wait_us, max_ack_pending, first_open: 0 }
    }

    /// Stores an assignment; its sequence.
    pub fn store(&mut self, body: Bytes, now_ms: u64) -> u64 {
        self.stream.push(Kept { body, stored_ms: now_ms, state: KeptState::Ready, delivered: 0 });
        self.stream.len() as u64
    }

    /// Up to `most` messages that are due: (sequence, how often delivered).
    pub fn pull(&mut self, now_us: u64, most: usize) -> Vec<(u64, u32)> {
        while self.stream.get(self.first_open).is_some_and(|kept| kept.state == KeptState::Acked) {
            self.first_open += 1;
        }
        let open = &mut self.stream[self.first_open..];
        let mut out = open.iter().filter(|kept| matches!(kept.state, KeptState::Out(until) if until > now_us)).count();
        let mut given = Vec::new();
        for (index, kept) in open.iter_mut().enumerate() {
            if given.len() >= most || out >= self.max_ack_pending {
                break;
            }
            let due = match kept.state {
                KeptState::Ready => true,
                KeptState::Out(until) | KeptState::Delayed(until) => until <= now_us,
                KeptState::Acked => false,
            };
            if due {
                kept.state = KeptState::Out(now_us + self.ack_wait_us);
                kept.delivered += 1;
                out += 1;
                given.push(((self.first_open + index + 1) as u64, kept.delivered));
            }
        }
        given
    }

    pub fn settle(&mut self, now_us: u64, sequence: u64, how: Settle) {
        let kept = &mut self.stream[sequence as usize - 1];
        if kept.state == KeptState::Acked {
            return;
        }
        match how {
            Settle::Ack | Settle::Term => {
                kept.state = KeptState::Acked;
                self.acks.push(sequence);
            }
            Settle::Nak { delay_ms } => kept.state = KeptState::Delayed(now_us + u64::from(delay_ms) * 1000),
            Settle::Progress => {
                if let KeptState::Out(_) = kept.state {
                    kept.state = KeptState::Out(now_us + self.ack_wait_us);
                }
            }
        }
    }

    /// Whose this step is, from now or from before, as the one who asks sees it.
    pub fn claim(&mut self, key: Key, by: Claim) -> Claimant {
        match (*self.claims.entry(key).or_insert(by), by) {
            (found, by) if found == by => Claimant::Ours,
            (Claim::Ours(..), Claim::Ours(..)) => Claimant::Forgotten,
            _ => Claimant::Another,
        }
    }

    /// Takes a letter; false if its id is still remembered.
    pub fn publish(&mut self, now_us: u64, id: MessageId) -> bool {
        match self.seen.get(&id) {
            Some(at) if now_us - at < REMEMBERS_US => false,
            _ => {
                self.seen.insert(id, now_us);
                true
            }
        }
    }

    /// kill -9 and restart.
    pub fn kill(&mut self, rng: &mut Rng) {
        let recent = self.acks.len().saturating_sub(1000);
        let mut kept_acks = self.acks[..recent].to_vec();
        for &sequence in &self.acks[recent..] {
            if rng.chance(25) {
                kept_acks.push(sequence);
            } else {
                self.stream[sequence as usize - 1].state = KeptState::Ready;
            }
        }
        self.acks = kept_acks;
        self.first_open = 0;
        for kept in &mut self.stream {
            kept.delivered = 0;
            if kept.state != KeptState::Acked {
                kept.state = KeptState::Ready;
            }
        }
        self.seen.retain(|_, _| rng.chance(700));
    }

    /// Whether a message is not settled.
    pub fn is_open(&self, sequence: u64) -> bool {
        self.stream[sequence as usize - 1].state != KeptState::Acked
    }

    /// Sequences that are not settled.
    pub fn open(&self) -> usize {
        self.stream.iter().filter(|kept| kept.state != KeptState::Acked).count()
    }

    /// When something is due next, if anything ever will be.
    pub fn next_due_us(&self) -> Option<u64> {
        let open = &self.stream[self.first_open..];
        open.iter()
            .filter_map(|kept| match kept.state {
                KeptState::Ready => Some(0),
                KeptState::Out(until) | KeptState::Delayed(until) => Some(until),
                KeptState::Acked => None,
            })
            .min()
    }
}
