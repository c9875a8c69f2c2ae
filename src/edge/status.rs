//! What the edge shows of itself: counters and flags that metrics and health read. Shared, written by the edge's thread alone.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::limits::LOSS_SHOWS_MS;

/// The edge as seen from outside. Everything grows but the flags and the gauges (`outstanding`, `unconfirmed`, `backlog`,
/// `calls_waiting`).
#[derive(Debug, Default)]
pub struct EdgeStatus {
    /// There is a connection to a NATS server.
    pub connected: AtomicBool,
    /// It has been decided where work comes from, and it is being taken.
    pub ready: AtomicBool,
    /// The epoch of our ownership of the work; 0 where nobody owns it.
    pub owner_epoch: AtomicU32,
    /// Who owns the work that we stand by for.
    standby: Mutex<Option<String>>,
    /// What we own could not be renewed in time: nothing is published until it is.
    pub lease_lapsed: AtomicBool,
    /// Every consumer we pull from was there when last looked at.
    pub consumers_ok: AtomicBool,
    /// How often a connection was lost and found again.
    pub reconnects: AtomicU64,
    /// Assign subjects served by a stream.
    pub jetstream_subjects: AtomicU32,
    /// Assign subjects served by core NATS.
    pub core_subjects: AtomicU32,
    /// Deliveries asked of the server and not yet here.
    pub outstanding: AtomicU32,
    /// Messages received.
    pub received: AtomicU64,
    /// Stream deliveries handed back because the shard's inbox and the edge's backlog were full, or because we drain.
    pub handed_back: AtomicU64,
    /// Core messages lost because a shard, or the edge, could not keep up; each is also logged.
    pub slow_lost: AtomicU64,
    /// When the last of them was lost, Unix ms.
    pub lost_at_ms: AtomicU64,
    /// Messages waiting at the edge for a full inbox.
    pub backlog: AtomicU32,
    /// Parcels published, resends included.
    pub published: AtomicU64,
    /// Parcels confirmed.
    pub confirmed: AtomicU64,
    /// Parcels sent again: no confirmation, a refusal or a reconnect.
    pub resent: AtomicU64,
    /// Parcels sent and not yet confirmed.
    pub unconfirmed: AtomicU32,
    /// Deliveries settled or kept.
    pub settled: AtomicU64,
    /// Alarm: a result of this start of the worker, published for the first time, was already there.
    pub duplicates: AtomicU64,
    /// Results that a create-only subject refused because another was there first.
    pub fenced: AtomicU64,
    /// Steps that must never run twice, claimed before all other workers.
    pub claimed: AtomicU64,
    /// Such steps that had been claimed before, mostly by another worker.
    pub claims_lost: AtomicU64,
    /// Parcels that could not be published at all as they are (too large, say): they are tried again for ever.
    pub unsendable: AtomicU64,
    /// Requests that came by gRPC.
    pub calls: AtomicU64,
    /// Those of them that the edge itself had no room for.
    pub calls_refused: AtomicU64,
    /// Those of them that wait for their answer.
    pub calls_waiting: AtomicU32,
    /// Events that were not kept for NATS, where gRPC is served and there was no connection for long.
    pub events_dropped: AtomicU64,
    /// Tenants could not be read from this many messages; they went to shard 0.
    pub unrouted: AtomicU64,
}

impl EdgeStatus {
    /// Why the edge is not well, or `None`.
    pub fn complaint(&self) -> Option<&'static str> {
        if !self.connected.load(Ordering::Relaxed) {
            return Some("no connection to NATS");
        }
        if self.stands_by_for().is_some() {
            return None;
        }
        if !self.ready.load(Ordering::Relaxed) {
            return Some("streams and consumers are not settled yet");
        }
        if self.lease_lapsed.load(Ordering::Relaxed) {
            return Some("ownership cannot be renewed: nothing is published until it is");
        }
        if !self.consumers_ok.load(Ordering::Relaxed) {
            return Some("a JetStream consumer is missing");
        }
        if self.slow_lost.load(Ordering::Relaxed) > 0 && now_ms() < self.lost_at_ms.load(Ordering::Relaxed) + LOSS_SHOWS_MS {
            return Some("core NATS messages were lost: the worker could not keep up");
        }
        None
    }

    /// Who owns the work that we stand by for; `None`: we do, or nobody.
    pub fn stands_by_for(&self) -> Option<String> {
        self.standby.lock().map_or(None, |owner| owner.clone())
    }

    /// Another owns the work, or no longer. `true`: that is news.
    pub(crate) fn standing_by(&self, owner: Option<&str>) -> bool {
        let Ok(mut known) = self.standby.lock() else { return false };
        let news = known.as_deref() != owner;
        if news {
            *known = owner.map(str::to_owned);
        }
        news
    }

    /// A core message was lost.
    pub(crate) fn lost(&self) {
        bump(&self.slow_lost);
        self.lost_at_ms.store(now_ms(), Ordering::Relaxed);
    }
}

fn now_ms() -> u64 {
    jiff::Timestamp::now().as_millisecond().unsigned_abs()
}

pub(crate) fn bump(counter: &AtomicU64) {
    add(counter, 1);
}

/// One writer per counter, so a plain store is enough and costs less than a locked add.
pub(crate) fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}
