//! At boot: what the journal holds without an end is taken up where it stands, once, before anything else.

use std::rc::Rc;

use super::record::asker_of;
use super::{Shard, Span, State};
use crate::event::{Effects, Past, Role, Untold};
use crate::fold::{Released, Restored};
use crate::ids::{AskerId, Fingerprint, Key, Now, Partition};
use crate::outcome::{Code, Effected, Fault, Outcome, Status};
use crate::planted::{Bug, planted};
use crate::step::{Arrival, Content, EffectClass};

impl Shard {
    /// Takes over what a fold of the journal gave. The unfinished keys follow as [`crate::event::Event::Recovered`].
    pub fn restore(&mut self, restored: Restored, segments: &[Span], now: Now) {
        self.known = restored.known;
        self.strikes = restored.strikes;
        self.released = restored.released;
        self.sealing.owner_epoch = restored.owner_epoch;
        self.left_open = restored.unfinished.into_iter().map(|one| (one.key, one)).collect();
        self.wall_floor_ms = restored.wall_ms;
        // From here on the clock is watched, not only from whatever happens first.
        self.believed = Some(now);
        for (name, seq) in restored.tenants {
            let index = self.tenants.find(&name);
            self.tenants.get(index).audit_seq = if planted(Bug::AuditRestart) { 0 } else { seq };
        }
        self.retain.restore(segments, &restored.newest, restored.floor, restored.watermark_ms, now);
    }

    pub(super) fn recovered(&mut self, now: Now, key: Key, arrival: Rc<Arrival>, past: Past, fx: &mut Effects) {
        let asker = if past.role == Role::Aside { AskerId([0; 16]) } else { asker_of(&arrival) };
        let fingerprint = arrival.fingerprint;
        let slot = self.open_job(now, key, arrival.clone(), past.accepted, past.role);
        let home = self.known.begin(key, &fingerprint, &asker, slot, past.role != Role::Step);
        self.job(slot).home = home;
        self.unfinished.push_back((past.accepted, slot));
        if let Some((lsn, outcome)) = past.outcome {
            self.hold_outcome(slot, outcome);
            self.job(slot).decided = lsn;
            self.unpublished += 1;
            self.has_copy(slot);
            self.job(slot).state = State::Decided;
            return self.post_outcome(now, slot, fx);
        }
        if arrival.work().is_some_and(|work| work.gate.is_some()) {
            return self.parked_again(now, slot, past.votes, fx);
        }
        let tenant = self.jobs[slot as usize].tenant;
        let charge = self.tenants.get(tenant).account.charge_recovered();
        self.queue_up(slot);
        let left_ms = if planted(Bug::ResetDeadline) {
            arrival.work().map_or(0, |work| work.budget_ms)
        } else {
            past.deadline_ms.saturating_sub(now.wall_ms)
        };
        let job = self.job(slot);
        job.charge = Some(charge);
        job.cautious = true;
        // A first try may have run although its STARTED frame was lost; unsafe work waits for that frame.
        job.touched = arrival.work().is_some_and(|work| !matches!(work.effect, EffectClass::Pure | EffectClass::Unsafe));
        job.tries = past.tries;
        job.deadline_us = now.mono_us + left_ms * 1000;
        let deadline_us = job.deadline_us;
        self.accepted(now, slot, fx);
        let work = match &arrival.content {
            Content::Work(work) => work,
            // This worker can no longer do what an earlier one accepted.
            Content::Refusal(fault) | Content::Garbage(fault) => {
                let mut fault = fault.clone();
                if past.tries > 0 {
                    // That one may have run it, and of which class it was cannot be read any more.
                    fault.effect = Effected::Unknown;
                }
                return self.end_untried(now, slot, Status::Error, fault, fx);
            }
            // Notices are never in a journal; whatever else lies there is as good as unreadable.
            Content::Notice(_) => {
                let fault = Fault::new(Code::InternalError, "The journal holds a message that is no step.");
                return self.end_untried(now, slot, Status::Error, fault, fx);
            }
        };
        if past.interrupted && planted(Bug::StrikeInFlight) {
            self.strike(now, key, arrival.partition, self.settings.boot - 1, fx);
        }
        if self.ended_as_poison(now, slot, fx) {
            return;
        }
        if past.interrupted && work.effect == EffectClass::Unsafe && !planted(Bug::RerunUnsafe) {
            let fault = Fault::new(Code::Indeterminate, "The worker stopped while the step ran; it may have happened.")
                .with_effect(Effected::Unknown);
            return self.end_untried(now, slot, Status::Error, fault, fx);
        }
        if let Some(fault) = &work.changed {
            let effect = if past.tries > 0 { self.effect_if_cut(slot) } else { Effected::None };
            let fault = fault.clone().with_effect(effect);
            return self.end_untried(now, slot, Status::Error, fault, fx);
        }
        if left_ms == 0 {
            let touched = past.tries > 0 || self.jobs[slot as usize].touched;
            let effect = if touched { self.effect_if_cut(slot) } else { Effected::None };
            let fault = Fault::new(Code::Timeout, "The step's budget ran out.").with_effect(effect);
            return self.end_untried(now, slot, Status::Timeout, fault, fx);
        }
        let wait_ms = past.retry_at_ms.map_or(0, |at_ms| at_ms.saturating_sub(now.wall_ms));
        let ahead = self.strikes.of(&key) == 0;
        self.struck.ahead += u32::from(ahead);
        let claim = self.claim_for(work);
        let job = self.job(slot);
        job.ahead = ahead;
        job.claim = claim;
        // The interrupted try never came to a verdict: it is made again under its own number.
        job.tries = past.tries - u32::from(past.interrupted);
        if wait_ms > 0 {
            job.state = State::Backoff;
            job.retry_at_us = now.mono_us + wait_ms * 1000;
            let due_us = job.retry_at_us.min(deadline_us);
            self.deadlines.arm(slot, due_us);
        } else {
            self.deadlines.arm(slot, deadline_us);
            self.enqueue(now, slot);
        }
    }

    /// Another worker has had the message since: what is left to do of it is that one's, and this life does not run it. An outcome
    /// is told again only if the stream still holds the message, and so asks for it.
    pub(super) fn superseded(
        &mut self,
        now: Now,
        key: Key,
        fingerprint: Fingerprint,
        asker: AskerId,
        partition: Partition,
        untold: Option<Untold>,
        fx: &mut Effects,
    ) {
        self.tally.superseded += 1;
        match untold {
            Some(_) if planted(Bug::ForgetUntold) => {}
            Some(untold) => {
                self.untold.insert(key, untold);
            }
            None => {
                self.left_open.remove(&key);
                let lsn = self.log_released(now, key, partition, fx);
                self.released.insert(key, Released { fingerprint, asker, lsn });
            }
        }
    }

    /// What was left untold is told, with all its letters.
    pub(super) fn tell_now(
        &mut self,
        now: Now,
        key: Key,
        arrival: Rc<Arrival>,
        untold: Untold,
        outcome: Rc<Outcome>,
        fx: &mut Effects,
    ) {
        let Untold { accepted, decided, role } = untold;
        let asker = if role == Role::Aside { AskerId([0; 16]) } else { asker_of(&arrival) };
        let fingerprint = arrival.fingerprint;
        let slot = self.open_job(now, key, arrival, accepted, role);
        let home = self.known.begin(key, &fingerprint, &asker, slot, role != Role::Step);
        self.left_copy(slot);
        let job = self.job(slot);
        job.home = home;
        job.decided = decided;
        self.hold_outcome(slot, outcome);
        self.unpublished += 1;
        self.post_outcome(now, slot, fx);
    }

    /// Decides a step without running it in this life.
    pub(super) fn end_untried(&mut self, now: Now, slot: u32, status: Status, fault: Fault, fx: &mut Effects) {
        let mut outcome = self.outcome(now, slot, status, fault.effect, 0);
        self.tally.fault(fault.code);
        outcome.fault = Some(fault);
        self.settle(now, slot, outcome, fx);
    }
}
