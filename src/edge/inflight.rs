//! Parcels that were sent and are not yet known to be stored, by the number that their confirmation will carry.
//!
//! A ring: numbers only grow, answers come nearly in that order, so finding one is an index. A parcel that is sent again gets
//! a new number, so one that nobody will ever store cannot hold the ring open. Pure but for `Instant`s passed in.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use shards::runtime::ports::Parcel;

use super::limits::{CONFIRM_WITHIN_MS, RESEND_MS};
use crate::dlq::Place;

/// A parcel that wants confirming. Lives on the edge's thread.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) shard: u16,
    pub(crate) parcel: Parcel,
    /// How often it has been sent; more than once, and an answer "it was there already" is no surprise.
    pub(crate) sends: u32,
    /// Where it is in the worker's own store, if it comes from there.
    pub(crate) kept: Option<Place>,
}

/// What one answer confirms.
#[derive(Debug)]
pub(crate) enum Cargo {
    /// A stream answers for this one.
    One(Sent),
    /// Our own marker came back: the server has had everything before it.
    Flushed(Vec<Sent>),
}

impl Cargo {
    fn into_list(self) -> Vec<Sent> {
        match self {
            Cargo::One(sent) => vec![sent],
            Cargo::Flushed(list) => list,
        }
    }
}

#[derive(Debug)]
struct Slot {
    at: Instant,
    epoch: u64,
    cargo: Cargo,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    ring: VecDeque<Option<Slot>>,
    first: u64,
    live: usize,
    /// Refused or unanswered ones, and when to send them again.
    later: Vec<(Instant, Sent)>,
}

impl InFlight {
    /// The number the next cargo goes by.
    pub(crate) fn next(&self) -> u64 {
        self.first + self.ring.len() as u64
    }

    /// Keeps a cargo under [`InFlight::next`]; `epoch` counts connections.
    pub(crate) fn push(&mut self, cargo: Cargo, epoch: u64, now: Instant) {
        self.ring.push_back(Some(Slot { at: now, epoch, cargo }));
        self.live += 1;
    }

    /// Answers that are awaited.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// Parcels not confirmed, those waiting to be sent again included (flushed ones count as one).
    pub(crate) fn unconfirmed(&self) -> usize {
        self.live + self.later.len()
    }

    /// An answer to `number` came: its cargo, unless it was answered or given up before.
    pub(crate) fn take(&mut self, number: u64) -> Option<Cargo> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let slot = self.ring.get_mut(index)?.take()?;
        self.live -= 1;
        self.trim();
        Some(slot.cargo)
    }

    /// Keeps one to be sent again, later the more often it has been.
    pub(crate) fn postpone(&mut self, sent: Sent, now: Instant) {
        let doubled = RESEND_MS.start().saturating_mul(1 << sent.sends.saturating_sub(1).min(16));
        let delay = Duration::from_millis(doubled.min(*RESEND_MS.end()));
        self.later.push((now + delay, sent));
    }

    /// Everything sent on an older connection, in the order it was sent: its answers are lost.
    pub(crate) fn severed(&mut self, epoch: u64) -> Vec<Sent> {
        let mut list = Vec::new();
        for place in &mut self.ring {
            if place.as_ref().is_some_and(|slot| slot.epoch != epoch)
                && let Some(slot) = place.take()
            {
                self.live -= 1;
                list.extend(slot.cargo.into_list());
            }
        }
        self.trim();
        list
    }

    /// The oldest cargo, if its answer is overdue.
    pub(crate) fn overdue(&mut self, now: Instant) -> Option<Cargo> {
        let slot = self.ring.front()?.as_ref()?;
        if now.duration_since(slot.at) < Duration::from_millis(CONFIRM_WITHIN_MS) {
            return None;
        }
        self.take(self.first)
    }

    /// Those whose delay is over.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Sent> {
        if self.later.is_empty() {
            return Vec::new();
        }
        self.later.extract_if(.., |(at, _)| *at <= now).map(|(_, sent)| sent).collect()
    }

    fn trim(&mut self) {
        while matches!(self.ring.front(), Some(None)) {
            self.ring.pop_front();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use shards::ids::{Key, Ticket};
    use shards::runtime::ports::{About, Outlet};

    fn sent(slot: u32) -> Sent {
        let about =
            About { line: 0, call: 0, by_call: false, key: Key([0; 16]), status: None, replayed: false, boot: 0, tries: 0 };
        let parcel = Parcel {
            outlet: Outlet::Result,
            subject: "r".into(),
            headers: Vec::new(),
            body: Bytes::new(),
            reply: None,
            confirm: Some(Ticket { slot, generation: 0 }),
            about,
        };
        Sent { shard: 0, parcel, sends: 1, kept: None }
    }

    fn slots(list: Vec<Sent>) -> Vec<u32> {
        list.iter().filter_map(|sent| sent.parcel.confirm.map(|ticket| ticket.slot)).collect()
    }

    #[test]
    fn answers_in_any_order_find_their_parcel_once() {
        let now = Instant::now();
        let mut flight = InFlight::default();
        for slot in 0..4 {
            assert_eq!(flight.next(), u64::from(slot));
            flight.push(Cargo::One(sent(slot)), 1, now);
        }
        for number in [2, 0, 1] {
            let cargo = flight.take(number).expect("in flight");
            assert_eq!(slots(cargo.into_list()), [number as u32]);
            assert!(flight.take(number).is_none());
        }
        assert_eq!((flight.live(), flight.next()), (1, 4));
        assert!(flight.take(99).is_none());
    }

    #[test]
    fn a_new_connection_gives_back_what_the_old_one_carried_in_order() {
        let now = Instant::now();
        let mut flight = InFlight::default();
        flight.push(Cargo::One(sent(1)), 1, now);
        flight.push(Cargo::Flushed(vec![sent(2), sent(3)]), 1, now);
        flight.push(Cargo::One(sent(4)), 2, now);
        assert_eq!(slots(flight.severed(2)), [1, 2, 3]);
        assert_eq!(flight.live(), 1);
        assert!(flight.take(2).is_some());
    }

    #[test]
    fn an_unanswered_parcel_is_overdue_and_comes_back_later_and_later() {
        let start = Instant::now();
        let mut flight = InFlight::default();
        flight.push(Cargo::One(sent(1)), 1, start);
        assert!(flight.overdue(start).is_none());
        let late = start + Duration::from_millis(CONFIRM_WITHIN_MS);
        let mut again = flight.overdue(late).expect("overdue").into_list().remove(0);
        again.sends = 2;
        flight.postpone(again, late);
        assert!(flight.due(late + Duration::from_millis(499)).is_empty());
        assert_eq!(slots(flight.due(late + Duration::from_millis(500))), [1]);
    }
}
