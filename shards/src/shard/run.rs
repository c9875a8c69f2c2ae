//! Between acceptance and outcome: which step starts next, what a verdict means, what time does.

use std::rc::Rc;

use super::{Claim, Held, Job, Shard, State};
use crate::event::{Chunk, Claimant, Effect, Effects, Letter, Post, Verdict};
use crate::ids::{Key, Lsn, Now, Ticket};
use crate::limits::TRIED_MAX;
use crate::outcome::{Code, Effected, Fault, Status, Tried};
use crate::planted::{Bug, planted};
use crate::retry;
use crate::step::{EffectClass, Origin, Settle};

impl Shard {
    /// Starts what may start.
    pub(super) fn dispatch(&mut self, now: Now, fx: &mut Effects) {
        let hushed = self.strike_is_pending() || self.struck_turn(now, fx);
        while !hushed && let Some(slot) = self.next_to_start() {
            self.begin(now, slot, fx);
        }
        // Entries of steps that went meanwhile: never more than a constant over those that live.
        if self.lanes.len() > 2 * self.queued as usize + 1024 {
            let jobs = &self.jobs;
            self.lanes.retain(|ticket| {
                let job = &jobs[ticket.slot as usize];
                job.state == State::Queued && job.generation == ticket.generation
            });
        }
    }

    /// Gives a queued step whose tenant may run one more its place, and starts its next try as soon as it is known to be ours.
    #[inline]
    pub(super) fn begin(&mut self, now: Now, slot: u32, fx: &mut Effects) {
        if !self.take_place(slot) {
            return;
        }
        let job = &mut self.jobs[slot as usize];
        job.generation += 1;
        job.state = State::Running;
        job.started_ms = now.wall_ms;
        job.started_us = now.mono_us;
        if job.claim == Claim::Due {
            job.claim = Claim::Held;
            return self.ask_for_claim(slot, fx);
        }
        self.try_next(now, slot, fx);
    }

    /// Claims a step that waits for that, once its ACCEPTED is durable.
    pub(super) fn ask_for_claim(&mut self, slot: u32, fx: &mut Effects) {
        let (ticket, durable) = (self.ticket(slot), self.durable);
        let job = self.job(slot);
        if job.claim == Claim::Held && job.state == State::Running && (job.accepted <= durable) {
            job.claim = Claim::Asked;
            let (key, accepted) = (job.key, job.accepted);
            fx.list.push(Effect::Claim { ticket, key, accepted });
        }
    }

    /// A claim is answered: what is ours is run, what is another's that one may have run.
    pub(super) fn claimed(&mut self, now: Now, ticket: Ticket, by: Claimant, fx: &mut Effects) {
        let awaited = |job: &Job| job.claim == Claim::Asked && job.state == State::Running;
        let Some(slot) = self.current(ticket).filter(|slot| awaited(&self.jobs[*slot as usize])) else {
            self.tally.stale += 1;
            return;
        };
        let job = self.job(slot);
        job.claim = Claim::Needless;
        job.started_ms = now.wall_ms;
        job.started_us = now.mono_us;
        let why = match by {
            _ if planted(Bug::RunClaimed) => return self.try_next(now, slot, fx),
            Claimant::Ours => return self.try_next(now, slot, fx),
            Claimant::Forgotten if planted(Bug::RunForgotten) => return self.try_next(now, slot, fx),
            Claimant::Forgotten => "The step was claimed before, and the journal has forgotten it; it may have happened.",
            Claimant::Another => "Another worker claimed the step; it may have happened.",
        };
        let fault = Fault::new(Code::Indeterminate, why).with_effect(Effected::Unknown);
        self.end_untried(now, slot, Status::Error, fault, fx);
    }

    /// Starts the next try of a step that has its place.
    #[inline]
    fn try_next(&mut self, now: Now, slot: u32, fx: &mut Effects) {
        let job = &mut self.jobs[slot as usize];
        job.tries += 1;
        let (try_number, cautious, arrival) = (job.tries, job.cautious, job.arrival.clone());
        self.tally.started += 1;
        self.tally.retried += u64::from(try_number > 1);
        let ticket = self.ticket(slot);
        let lsn = self.log_started(now, slot, fx);
        if cautious || self.settings.events {
            self.held.push_back((lsn, Held::Started(ticket)));
        }
        if cautious {
            fx.log.urgent = true;
        } else {
            self.job(slot).at_work = true;
            fx.list.push(Effect::Run { ticket, arrival, try_number });
        }
    }

    /// STARTED is durable: tell it, and start the try if it waited for that.
    pub(super) fn started(&mut self, now: Now, ticket: Ticket, fx: &mut Effects) {
        let Some(slot) = self.current(ticket) else { return };
        self.lifecycle(now, slot, crate::event::Stage::Started, fx);
        let job = &mut self.jobs[slot as usize];
        if job.cautious && job.state == State::Running && !job.at_work {
            job.at_work = true;
            job.started_us = now.mono_us;
            fx.list.push(Effect::Run { ticket, arrival: job.arrival.clone(), try_number: job.tries });
        }
    }

    pub(super) fn ended(&mut self, now: Now, ticket: Ticket, verdict: Verdict, ran_us: u64, fx: &mut Effects) {
        let Some(slot) = self.current(ticket) else {
            self.tally.stale += 1;
            return;
        };
        let job = &mut self.jobs[slot as usize];
        if !job.at_work {
            // This try has been reported as ended before.
            self.tally.stale += 1;
            return;
        }
        if job.state != State::Running {
            // The outcome was decided without waiting for this; only now does the work hold nothing any more.
            self.tally.stale += 1;
            job.at_work = false;
            if planted(Bug::SecondOutcome)
                && let Some(outcome) = job.outcome.clone()
            {
                let mut second = (*outcome).clone();
                second.status = Status::Ok;
                self.log_result(now, slot, &second, fx);
            }
            if !planted(Bug::LeakSlot) {
                self.refund(now, slot, fx);
            }
            return self.close_job(slot);
        }
        job.at_work = false;
        let spilled = matches!(verdict, Verdict::Spilled(_));
        match verdict {
            Verdict::Done(outputs) | Verdict::Spilled(outputs) => {
                let dry = job.arrival.work().is_some_and(|work| work.sandbox);
                let effect = if dry { Effected::None } else { Effected::Applied };
                let mut outcome = self.outcome(now, slot, Status::Ok, effect, ran_us);
                outcome.outputs = outputs;
                outcome.spilled = spilled;
                self.settle(now, slot, outcome, fx);
            }
            Verdict::Failed(fault) => self.failed(now, slot, fault, ran_us, fx),
            Verdict::Stopped => self.stopped(now, slot, Status::Cancelled, true, ran_us, fx),
            Verdict::Panicked => {
                self.tally.panics += 1;
                let effect = self.effect_if_cut(slot);
                let fault = Fault::new(Code::InternalError, "The block's own code failed.").with_effect(effect);
                self.failed(now, slot, fault, ran_us, fx);
            }
        }
    }

    /// A try says something. Observers hear of it after the step itself: what was written before it is durable then.
    pub(super) fn progressed(&mut self, now: Now, ticket: Ticket, chunk: Chunk, fx: &mut Effects) {
        let says = |slot: u32| self.jobs[slot as usize].state == State::Running;
        if !self.settings.events || !self.current(ticket).is_some_and(says) {
            return;
        }
        let written = Lsn(self.next_lsn.0 - 1);
        if self.durable >= written && self.held.is_empty() {
            return self.tell_progress(now, ticket, chunk, fx);
        }
        self.held.push_back((written, Held::Progress(ticket, chunk)));
    }

    /// Tells it. The step may be decided by now; its end is told after this.
    pub(super) fn tell_progress(&mut self, now: Now, ticket: Ticket, chunk: Chunk, fx: &mut Effects) {
        let Some(slot) = self.current(ticket) else { return };
        let job = &mut self.jobs[slot as usize];
        if !matches!(job.state, State::Running | State::Decided) {
            return;
        }
        let letter = Letter::Progress { chunk, try_number: job.tries, sequence: job.stages, at_ms: now.wall_ms };
        job.stages += 1;
        let post = Post { confirm: None, arrival: job.arrival.clone(), letter };
        fx.list.push(Effect::Post(post));
    }

    fn failed(&mut self, now: Now, slot: u32, mut fault: Fault, ran_us: u64, fx: &mut Effects) {
        let job = &mut self.jobs[slot as usize];
        let Some(work) = job.arrival.work() else { return };
        if work.effect == EffectClass::Pure {
            fault.effect = Effected::None;
        }
        let pure = work.effect == EffectClass::Pure;
        let left_ms = job.deadline_us.saturating_sub(now.mono_us) / 1000;
        let delay = retry::next_delay_ms(&work.retry, work.effect, &fault, job.key, job.tries, left_ms);
        let Some(delay_ms) = delay else {
            if fault.effect == Effected::None && job.touched && !pure {
                // This try did nothing; an earlier one may have.
                fault.effect = Effected::Unknown;
            }
            let effect = fault.effect;
            let mut outcome = self.outcome(now, slot, Status::Error, effect, ran_us);
            self.tally.fault(fault.code);
            outcome.fault = Some(fault);
            return self.settle(now, slot, outcome, fx);
        };
        job.touched |= fault.effect != Effected::None;
        if job.earlier.len() + 1 >= TRIED_MAX {
            job.earlier.remove(0);
        }
        job.earlier.push(Tried::new(job.tries, job.started_ms, ran_us, &fault));
        job.state = State::Backoff;
        job.arrival = Rc::new(job.arrival.own());
        job.retry_at_us = now.mono_us + delay_ms * 1000;
        if planted(Bug::NoDeadline) {
            job.deadline_us = u64::MAX;
        }
        if planted(Bug::RetryAtOnce) {
            job.retry_at_us = now.mono_us;
        }
        let due_us = job.retry_at_us.min(job.deadline_us);
        let tenant = job.tenant;
        let charge = job.charge.as_mut().filter(|_| !planted(Bug::HoldSlotInBackoff));
        if let Some(taken) = charge.and_then(|charge| self.tenants.get(tenant).account.pause(charge)) {
            self.queue_up(slot);
            self.leave_place(tenant, taken);
        }
        self.deadlines.arm(slot, due_us);
        let lsn = self.log_retry_at(slot, now.wall_ms + delay_ms, fx);
        if self.settings.events {
            self.held.push_back((lsn, Held::Retrying(slot)));
        }
    }

    /// Ends a step without a verdict of its own: its budget is over, or somebody stopped it. `started`: a try of it may have
    /// done something.
    fn stopped(&mut self, now: Now, slot: u32, status: Status, started: bool, ran_us: u64, fx: &mut Effects) {
        let effect = if started { self.effect_if_cut(slot) } else { Effected::None };
        let fault = match status {
            Status::Timeout => Fault::new(Code::Timeout, "The step's budget ran out."),
            _ => super::notice::cancelled(self.jobs[slot as usize].stopped_by.as_deref()),
        };
        let mut outcome = self.outcome(now, slot, status, effect, ran_us);
        self.tally.fault(fault.code);
        outcome.fault = Some(fault.with_effect(effect));
        self.settle(now, slot, outcome, fx);
    }

    /// What is known of the effect of a try that was cut in the middle.
    pub(super) fn effect_if_cut(&self, slot: u32) -> Effected {
        match self.jobs[slot as usize].arrival.work() {
            Some(work) if work.effect != EffectClass::Pure => Effected::Unknown,
            _ => Effected::None,
        }
    }

    pub(super) fn cancel(&mut self, now: Now, key: Key, fx: &mut Effects) {
        let Some(crate::dedup::Place::Job(slot)) = self.known.get(&key).map(|memory| memory.place) else { return };
        self.cut(now, slot, Status::Cancelled, fx);
    }

    /// Decides a step now; its work, if it is at work, is told to stop and keeps its slot until it has.
    pub(super) fn cut(&mut self, now: Now, slot: u32, status: Status, fx: &mut Effects) {
        let job = &self.jobs[slot as usize];
        let late = job.state == State::Decided && planted(Bug::TimeoutWhileWriting);
        if !late && !matches!(job.state, State::Queued | State::Running | State::Backoff | State::Parked) {
            return;
        }
        let ran_us = if job.at_work { now.mono_us.saturating_sub(job.started_us) } else { 0 };
        if job.at_work {
            fx.list.push(Effect::Stop { ticket: self.ticket(slot) });
        }
        // A try whose STARTED frame is still on its way to the disk has done nothing; one that waits for its claim is none yet.
        let waits = job.state == State::Running && !job.at_work;
        let unmade = u32::from(waits && job.claim == Claim::Needless);
        // A claim without an answer may be another's, which has done the step: one that shares the stream, or owned it before.
        let anothers = job.claim == Claim::Asked && !planted(Bug::ClaimHarmless);
        let started = (job.touched || job.tries > unmade || anothers) && !planted(Bug::CutHarmless);
        self.stopped(now, slot, status, started, ran_us, fx);
    }

    pub(super) fn tick(&mut self, now: Now, fx: &mut Effects) {
        let mut due = std::mem::take(&mut self.due);
        self.deadlines.expire(now.mono_us, &mut due);
        for slot in due.drain(..) {
            let job = &mut self.jobs[slot as usize];
            if now.mono_us >= job.deadline_us {
                self.cut(now, slot, Status::Timeout, fx);
            } else if job.state == State::Backoff {
                job.state = State::Queued;
                let deadline_us = job.deadline_us;
                self.deadlines.arm(slot, deadline_us);
                self.enqueue(now, slot);
            } else {
                let deadline_us = job.deadline_us;
                self.deadlines.arm(slot, deadline_us);
            }
        }
        self.due = due;
        self.look_at_gates(now, fx);
        self.renew_looks(now);
        if now.mono_us >= self.waiting_due_us {
            self.look_at_waiting(now, fx);
        }
        if self.live > 0 && now.mono_us >= self.progress_due_us {
            self.keep_alive(now, fx);
        }
        self.look_at_segments(now, fx);
        self.seal_if_due(fx);
        self.forget_finished();
    }

    /// Tells the streams that their deliveries are still at work: all of them at once, once per interval.
    fn keep_alive(&mut self, now: Now, fx: &mut Effects) {
        self.progress_due_us = now.mono_us + self.settings.progress_us;
        // Work may go on after its deliveries were settled; those are no longer ours to keep.
        let unsettled = |job: &&Job| {
            job.state != State::Free && (job.state != State::Posting || job.unconfirmed > 0) || planted(Bug::KeepSettled)
        };
        for job in self.jobs.iter().filter(unsettled) {
            for arrival in std::iter::once(&job.arrival).chain(&job.others) {
                if let Origin::Stream(token) = &arrival.delivery.origin {
                    fx.list.push(Effect::Settle { token: token.clone(), how: Settle::Progress });
                }
            }
        }
    }
}
