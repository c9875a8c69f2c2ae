//! What operators see and touch: logs, metrics, health over HTTP, the journal's files, and a socket that answers what became
//! of a step and takes the word to drain.
//!
//! All of it reads: tallies and gauges of the shards, the journal's files, the kernel's counts. Nothing here is on a step's
//! path, and nothing here decides anything; a drain is asked for here and carried out by whoever serves.

pub mod admin;
pub mod drain;
pub mod health;
pub mod http;
pub mod journal;
pub mod logs;
pub mod metrics;
pub mod page;
pub mod people;
pub mod process;
pub mod timeline;

use std::sync::atomic::Ordering::Relaxed;

use crate::edge::status::EdgeStatus;

/// What the edge counts, as metrics and state show it. Crosses cores as a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct EdgeFigures {
    /// Messages received.
    pub received: u64,
    /// Deliveries handed back by the edge itself.
    pub handed_back: u64,
    /// Core messages lost because nobody could keep up.
    pub lost: u64,
    /// Connections lost and found again.
    pub reconnects: u64,
    /// Letters published, resends included.
    pub published: u64,
    /// Letters confirmed.
    pub confirmed: u64,
    /// Letters sent again.
    pub resent: u64,
    /// First publishes that the server already had.
    pub duplicates: u64,
    /// Attempts to send letters that no server takes as they are.
    pub unsendable: u64,
    /// Results that a create-only subject refused: another was there first.
    pub fenced: u64,
    /// Steps that must never run twice, claimed before all other workers.
    pub claimed: u64,
    /// Such steps that had been claimed before, mostly by another worker.
    pub claims_lost: u64,
    /// The epoch of our ownership of the work, 0 where nobody owns it, now.
    pub owner_epoch: u32,
    /// Another worker owns it and we stand by, now.
    pub standby: bool,
    /// Requests that came by gRPC.
    pub calls: u64,
    /// Those that the edge itself had no room for.
    pub calls_refused: u64,
    /// Those that wait for their answer, now.
    pub calls_waiting: u32,
    /// Events that were not kept for NATS.
    pub events_dropped: u64,
    /// Messages waiting at the edge for a full inbox, now.
    pub backlog: u32,
    /// Letters sent and not yet confirmed, now.
    pub unconfirmed: u32,
}

impl EdgeFigures {
    /// As they are now.
    pub fn of(status: &EdgeStatus) -> EdgeFigures {
        EdgeFigures {
            received: status.received.load(Relaxed),
            handed_back: status.handed_back.load(Relaxed),
            lost: status.slow_lost.load(Relaxed),
            reconnects: status.reconnects.load(Relaxed),
            published: status.published.load(Relaxed),
            confirmed: status.confirmed.load(Relaxed),
            resent: status.resent.load(Relaxed),
            duplicates: status.duplicates.load(Relaxed),
            unsendable: status.unsendable.load(Relaxed),
            fenced: status.fenced.load(Relaxed),
            claimed: status.claimed.load(Relaxed),
            claims_lost: status.claims_lost.load(Relaxed),
            owner_epoch: status.owner_epoch.load(Relaxed),
            standby: status.stands_by_for().is_some(),
            calls: status.calls.load(Relaxed),
            calls_refused: status.calls_refused.load(Relaxed),
            calls_waiting: status.calls_waiting.load(Relaxed),
            events_dropped: status.events_dropped.load(Relaxed),
            backlog: status.backlog.load(Relaxed),
            unconfirmed: status.unconfirmed.load(Relaxed),
        }
    }
}
