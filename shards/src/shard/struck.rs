//! Steps with a strike: they may end the process again, so they run last and alone.
//!
//! Nothing runs before the strike is durable. A struck step starts only when every step that was recovered with it has its
//! outcome, one at a time. In the life after the death that struck it, whatever else is here or comes within [`COURTESY_MS`]
//! starts first: if nothing had reached the disk, the stream brings the others again behind the one that killed them. It has
//! left them that time by its next life, where it goes before those that were struck since: a step that is struck by chance, in
//! a process that is killed again and again, does not wait behind ever new ones until its budget is over. Then, as far as
//! [`HUSH_MS_MAX`] allows, it waits until nothing is at work and every outcome is told: so its next death interrupts none of
//! this shard's steps a second time, and whom the first one kept waiting has waited for one restart. With [`STRIKES_MAX`] strikes it is not run again: POISON.

use std::collections::VecDeque;

use super::{Held, Shard, State};
use crate::event::{Effect, Effects};
use crate::ids::{Key, Lsn, Now, Partition, Ticket};
use crate::limits::{COURTESY_MS, HUSH_MS_MAX, STRIKES_MAX};
use crate::outcome::{Code, Fault, Status};
use crate::planted::{Bug, planted};
use crate::step::Lane;

/// The struck steps that wait for their turn, and the one that has it. Lives on its core.
#[derive(Debug, Default)]
pub(super) struct Struck {
    line: VecDeque<Ticket>,
    /// More may still be recovered, that would go first.
    pub(super) recovering: bool,
    /// Recovered steps without a strike and without an outcome: they go first.
    pub(super) ahead: u32,
    /// Since when others may start before the first in line. Monotonic.
    others_since_us: Option<u64>,
    /// Nothing is started until then, so that the first in line finds the shard empty. Monotonic.
    hush_until_us: Option<u64>,
    /// The struck step at work, and until when nothing else is started.
    alone: Option<(Ticket, u64)>,
    /// When a wait that holds up everybody is over.
    pub(super) look_us: Option<u64>,
    /// The newest strike's frame.
    newest: Lsn,
}

impl Shard {
    /// An earlier life's page names this key as being polled when it died.
    pub(super) fn died(&mut self, now: Now, key: Key, partition: Partition, boot: u32, fx: &mut Effects) {
        let decided = self.known.get(&key).is_some();
        let counts = !decided && boot < self.settings.boot && !planted(Bug::NoStrike);
        if !counts || !self.strike(now, key, partition, boot, fx) {
            fx.list.push(Effect::WipePage { key });
        }
    }

    /// A strike for that life; false where it has been given.
    pub(super) fn strike(&mut self, now: Now, key: Key, partition: Partition, boot: u32, fx: &mut Effects) -> bool {
        let Some(count) = self.strikes.add(key, boot, self.next_lsn) else { return false };
        self.struck.newest = self.log_struck(now, key, partition, count, boot, fx);
        self.held.push_back((self.struck.newest, Held::Strike(key)));
        true
    }

    /// Whether a strike is on its way to the disk: until it is there, nothing runs that could end the process again.
    pub(super) fn strike_is_pending(&self) -> bool {
        self.durable < self.struck.newest
    }

    /// Puts a step where it waits for its turn.
    pub(super) fn enqueue(&mut self, now: Now, slot: u32) {
        let ticket = self.ticket(slot);
        let job = &self.jobs[slot as usize];
        if self.strikes.of(&job.key) > 0 {
            let fresh = |ticket: &Ticket| self.struck_just_now(&self.jobs[ticket.slot as usize].key);
            let line = &self.struck.line;
            let at = if fresh(&ticket) { line.len() } else { line.iter().position(fresh).unwrap_or(line.len()) };
            self.struck.line.insert(at, ticket);
        } else {
            let (lane, priority) = job.arrival.work().map_or((Lane::Io, 50), |work| (work.needs.lane, work.priority));
            self.lanes.of(lane).push(job.tenant, ticket, priority, now.mono_us / 1000);
        }
    }

    /// Whether the step has all its strikes; then it is decided here.
    pub(super) fn ended_as_poison(&mut self, now: Now, slot: u32, fx: &mut Effects) -> bool {
        if self.strikes.of(&self.jobs[slot as usize].key) < STRIKES_MAX {
            return false;
        }
        let fault = Fault::new(Code::Poison, "The worker's process died each time it ran this step.");
        self.end_untried(now, slot, Status::Error, fault.with_effect(self.effect_if_cut(slot)), fx);
        true
    }

    /// Gives the struck steps their turn; whether everything else has to wait for it.
    pub(super) fn struck_turn(&mut self, now: Now, fx: &mut Effects) -> bool {
        self.struck.look_us = None;
        if self.struck.line.is_empty() && self.struck.alone.is_none() {
            return false;
        }
        if self.struck.recovering {
            self.struck.look_us = Some(now.mono_us);
            return false;
        }
        if let Some((ticket, until_us)) = self.struck.alone {
            if self.is_at_work(ticket) {
                return self.hush(now, until_us);
            }
            self.struck.alone = None;
        }
        let Some(slot) = self.first_struck() else {
            (self.struck.others_since_us, self.struck.hush_until_us) = (None, None);
            return false;
        };
        if self.others_first(now, slot) && !planted(Bug::StruckFirst) {
            self.struck.hush_until_us = None;
            return false;
        }
        let hush_us = HUSH_MS_MAX * 1000;
        let until_us = *self.struck.hush_until_us.get_or_insert(now.mono_us + hush_us);
        if (self.running > 0 || self.unpublished > 0) && self.hush(now, until_us) {
            return true;
        }
        if !self.may_start(slot) {
            return false;
        }
        self.struck.line.pop_front();
        (self.struck.others_since_us, self.struck.hush_until_us) = (None, None);
        self.begin(now, slot, fx);
        let until_us = now.mono_us + hush_us;
        self.struck.alone = Some((self.ticket(slot), until_us));
        self.hush(now, until_us)
    }

    /// Whether the first in line lets others start before it. It leaves itself half of its budget; what came first and left
    /// the line, with less of it, hurries nobody.
    fn others_first(&mut self, now: Now, slot: u32) -> bool {
        let since_us = *self.struck.others_since_us.get_or_insert(now.mono_us);
        let left_us = self.jobs[slot as usize].deadline_us.saturating_sub(since_us);
        let owes = self.struck_just_now(&self.jobs[slot as usize].key) && !planted(Bug::StruckAtOnce);
        let courtesy_us = if owes { (COURTESY_MS * 1000).min(left_us / 2) } else { 0 };
        self.hush(now, since_us + courtesy_us) || self.struck.ahead > 0
    }

    /// Whether the life before this one died of it.
    fn struck_just_now(&self, key: &Key) -> bool {
        self.strikes.newest(key).is_some_and(|(_, boot)| boot + 1 >= self.settings.boot)
    }

    /// Whether a wait still lasts; then its end is looked at.
    fn hush(&mut self, now: Now, until_us: u64) -> bool {
        let waits = now.mono_us < until_us;
        self.struck.look_us = waits.then_some(until_us);
        waits
    }

    /// The first in line that still waits there.
    fn first_struck(&mut self) -> Option<u32> {
        while let Some(ticket) = self.struck.line.front() {
            let slot = self.current(*ticket).filter(|slot| self.jobs[*slot as usize].state == State::Queued);
            if slot.is_some() {
                return slot;
            }
            self.struck.line.pop_front();
        }
        None
    }

    fn is_at_work(&self, ticket: Ticket) -> bool {
        let job = |slot: u32| &self.jobs[slot as usize];
        self.current(ticket).is_some_and(|slot| job(slot).state == State::Running || job(slot).at_work)
    }
}
