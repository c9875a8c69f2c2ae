//! While the journal's disk is full: nothing is taken that would need a record of its own, and what has one is answered.
//!
//! A delivery cannot be told to be known before it is here, so a few are still pulled every second. A new one goes back to its
//! stream, and for no longer than it may take to see that there is room again: its wait is not its fault.

use super::Shard;
use crate::event::{Effect, Effects};
use crate::ids::Now;
use crate::limits::{FULL_LOOKS_PER_S, FULL_NAK_MS};
use crate::planted::{Bug, planted};
use crate::step::{Arrival, Origin, Settle};

const SECOND_US: u64 = 1_000_000;

/// How many deliveries may still be looked at. Lives on its core.
#[derive(Debug)]
pub(super) struct Looks {
    left: u32,
    renew_us: u64,
}

impl Shard {
    /// The disk is full from now on, or has room again.
    pub(super) fn disk_room(&mut self, now: Now, room: bool) {
        if room && !planted(Bug::StayFull) {
            self.full = None;
        } else if self.full.is_none() {
            self.full = Some(Looks { left: FULL_LOOKS_PER_S, renew_us: now.mono_us + SECOND_US });
        }
    }

    /// Whether the disk has no room for new work.
    pub fn disk_full(&self) -> bool {
        self.full.is_some()
    }

    /// How many deliveries may be looked at though the disk is full.
    pub(super) fn looks_left(&self) -> u32 {
        self.full.as_ref().map_or(u32::MAX, |looks| looks.left)
    }

    /// When there are more of them.
    pub(super) fn looks_due_us(&self) -> Option<u64> {
        self.full.as_ref().filter(|looks| looks.left < FULL_LOOKS_PER_S).map(|looks| looks.renew_us)
    }

    pub(super) fn renew_looks(&mut self, now: Now) {
        if let Some(looks) = self.full.as_mut().filter(|looks| looks.renew_us <= now.mono_us) {
            *looks = Looks { left: FULL_LOOKS_PER_S, renew_us: now.mono_us + SECOND_US };
        }
    }

    /// Whether an arrival that would need a record of its own has to wait for room on the disk; then it has gone back to its
    /// stream. Who has no stream behind it is nobody else's to keep, and waits here.
    pub(super) fn back_for_room(&mut self, arrival: &Arrival, fx: &mut Effects) -> bool {
        let Some(looks) = self.full.as_mut().filter(|_| !planted(Bug::AcceptWhileFull)) else { return false };
        let Origin::Stream(token) = &arrival.delivery.origin else { return false };
        looks.left = looks.left.saturating_sub(1);
        self.tally.handed_back += 1;
        fx.list.push(Effect::Settle {
            token: token.clone(),
            how: if planted(Bug::DropWhileFull) { Settle::Ack } else { Settle::Nak { delay_ms: FULL_NAK_MS } },
        });
        true
    }
}
