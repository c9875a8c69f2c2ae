//! From the decision to the proof that it was stored: the outcome is journaled, held until durable, told, and closed.

use std::rc::Rc;

use super::record::asker_of;
use super::{Held, Shard, State};
use crate::dedup::Place;
use crate::event::{Asking, Effect, Effects, Letter, Post, Reply, Role, Stage};
use crate::ids::{Key, Lsn, Now, Ticket};
use crate::outcome::{Code, Effected, Outcome, Status};
use crate::planted::{Bug, planted};
use crate::step::{Arrival, Content, Notice, Origin, Settle};

impl Shard {
    /// An outcome of this step, decided now.
    pub(super) fn outcome(&self, now: Now, slot: u32, status: Status, effect: Effected, ran_us: u64) -> Outcome {
        let job = &self.jobs[slot as usize];
        Outcome {
            status,
            effect,
            outputs: bytes::Bytes::new(),
            fault: None,
            tries: job.tries,
            received_ms: job.arrival.received_ms,
            started_ms: job.started_ms,
            ended_ms: now.wall_ms,
            ran_us,
            spilled: false,
            queue_depth: self.queued(),
            boot: self.settings.boot,
            owner_epoch: self.settings.owner_epoch,
        }
    }

    /// The one outcome of a key: journaled here, told once durable.
    pub(super) fn settle(&mut self, now: Now, slot: u32, outcome: Outcome, fx: &mut Effects) {
        let lsn = self.log_result(now, slot, &outcome, fx);
        let job = &mut self.jobs[slot as usize];
        let latency_us = now.mono_us.saturating_sub(job.received_us);
        if let Some(work) = job.arrival.work() {
            let fault = outcome.fault.as_ref().map(|fault| fault.code);
            self.tally.outcome(usize::from(work.kind.0), outcome.status, fault, latency_us);
        }
        if job.state == State::Parked {
            self.gates.remove(&(job.retry_at_us, slot));
        }
        job.state = State::Decided;
        job.decided = lsn;
        let at_work = job.at_work;
        self.strikes.forget(&job.key);
        if std::mem::take(&mut job.ahead) {
            self.struck.ahead -= 1;
        }
        self.hold_outcome(slot, Rc::new(outcome));
        self.unpublished += 1;
        if !planted(Bug::TimeoutWhileWriting) {
            self.deadlines.disarm(slot);
        }
        self.held.push_back((lsn, Held::Outcome(slot)));
        if planted(Bug::AckBeforeDurable) {
            self.post_outcome(now, slot, fx);
        }
        if !at_work {
            self.refund(now, slot, fx);
        }
    }

    /// Gives back what a step held of its tenant's quota.
    pub(super) fn refund(&mut self, now: Now, slot: u32, fx: &mut Effects) {
        let job = &mut self.jobs[slot as usize];
        let Some(charge) = job.charge.take() else { return };
        let index = job.tenant;
        let (taken, parked) = (charge.taken(), charge.is_parked());
        if taken.is_none() && planted(Bug::LeakQueuePlace) {
            return;
        }
        let tenant = self.tenants.get(index);
        tenant.account.refund(charge);
        let waits = !tenant.waiting.is_empty();
        match taken {
            Some(taken) => self.leave_place(index, taken),
            None if parked => {}
            None => self.unqueue(slot),
        }
        if waits {
            self.look_at_waiting(now, fx);
        }
    }

    /// Everything up to `through` will survive us: let go what waited for it.
    pub(super) fn durable(&mut self, now: Now, through: Lsn, fx: &mut Effects) {
        debug_assert!(through < self.next_lsn, "durable before it was written");
        self.durable = self.durable.max(through);
        while let Some((lsn, _)) = self.held.front() {
            if *lsn > through && !planted(Bug::HeldOutOfOrder) {
                break;
            }
            let Some((_, held)) = self.held.pop_front() else { break };
            match held {
                Held::Accepted(slot) => {
                    self.accepted(now, slot, fx);
                    self.ask_for_claim(slot, fx);
                    self.begin_copy(now, slot, fx);
                    self.ask_people(now, slot, Asking::First, fx);
                }
                Held::Started(ticket) => self.started(now, ticket, fx),
                Held::Progress(ticket, chunk) => self.tell_progress(now, ticket, chunk, fx),
                Held::Retrying(slot) => self.lifecycle(now, slot, Stage::Retrying, fx),
                Held::Outcome(slot) => {
                    if self.jobs[slot as usize].state == State::Decided {
                        self.post_outcome(now, slot, fx);
                    }
                }
                Held::Reply(notice, reply) => self.reply_to(notice, reply, fx),
                Held::Said(ticket, notice, reply) => match self.current(ticket) {
                    Some(slot) => self.said(now, slot, notice, reply, fx),
                    None => self.reply_to(notice, reply, fx),
                },
                Held::Seal(seal) => fx.list.push(Effect::Seal(seal)),
                Held::Strike(key) => fx.list.push(Effect::WipePage { key }),
                Held::Prune(below) => fx.list.push(Effect::Prune { below }),
            }
        }
    }

    pub(super) fn accepted(&mut self, now: Now, slot: u32, fx: &mut Effects) {
        let job = &mut self.jobs[slot as usize];
        if job.acked || job.state == State::Free {
            return;
        }
        job.acked = true;
        let arrival = job.arrival.clone();
        let first = asker_of(&arrival);
        // Only those that a stream holds for us: nothing else would remember after a crash that these were told, too. A call
        // is told that the step is here, and asks again after a crash.
        let held = |other: &&Rc<Arrival>| (asker_of(other) != first && other.token().is_some()) || other.is_call();
        let others: Vec<_> = job.others.iter().filter(held).cloned().collect();
        self.tell_accepted(now, &arrival, fx);
        for other in &others {
            self.tell_accepted(now, other, fx);
        }
        self.lifecycle(now, slot, Stage::Accepted, fx);
    }

    pub(super) fn tell_accepted(&mut self, now: Now, arrival: &Rc<Arrival>, fx: &mut Effects) {
        if arrival.asker.is_none() {
            return;
        }
        let tenant = self.tenants.find(&arrival.tenant);
        let overload = self.overload(tenant);
        let letter = Letter::Ack { accepted: true, fault: None, overload, at_ms: now.wall_ms };
        fx.list.push(Effect::Post(Post { confirm: None, arrival: arrival.clone(), letter }));
    }

    /// The outcome is durable: tell everyone who asked for it.
    pub(super) fn post_outcome(&mut self, now: Now, slot: u32, fx: &mut Effects) {
        if self.outcome_waits_for_copy(now, slot, fx) {
            return;
        }
        let ticket = self.ticket(slot);
        let job = &mut self.jobs[slot as usize];
        job.state = State::Posting;
        let Some(outcome) = job.outcome.clone() else { return };
        let (role, arrival, acked) = (job.role, job.arrival.clone(), job.acked);
        let (same, different): (Vec<_>, Vec<_>) =
            std::mem::take(&mut job.others).into_iter().partition(|other| shares_letter(&arrival, other));
        job.others = same;
        self.held_bytes -= different.iter().filter(|other| other.is_call()).map(|other| other.held_bytes()).sum::<u64>();
        let job = &self.jobs[slot as usize];
        let tenant = job.tenant;
        let key = job.key;
        let mut letters = 0;
        if arrival.asker.is_some() && outcome.status != Status::Quarantined {
            let accepted = role != Role::Refusal && !(role == Role::Replay && self.was_refused(key, &arrival, &outcome));
            if !acked {
                let overload = self.overload(tenant);
                let fault = if accepted { None } else { outcome.fault.clone() };
                let letter = Letter::Ack { accepted, fault, overload, at_ms: outcome.received_ms.max(outcome.started_ms) };
                fx.list.push(Effect::Post(Post { confirm: None, arrival: arrival.clone(), letter }));
                self.job(slot).acked = true;
            }
            let replayed = matches!(role, Role::Replay | Role::Shared);
            let under = if accepted { arrival.key } else { key };
            let letter = Letter::Result { outcome: outcome.clone(), replayed, under };
            letters += 1;
            fx.list.push(Effect::Post(Post { confirm: Some(ticket), arrival: arrival.clone(), letter }));
        }
        if outcome.status == Status::Quarantined {
            match (&arrival.delivery.origin, &outcome.fault) {
                (Origin::Call(_), Some(fault)) => self.reply_to(arrival.clone(), Reply::Refused(fault.clone()), fx),
                // Who reads a file's answers is told on the spot.
                (Origin::Line(_), _) => {
                    let letter = Letter::Result { outcome: outcome.clone(), replayed: role == Role::Replay, under: key };
                    letters += 1;
                    fx.list.push(Effect::Post(Post { confirm: Some(ticket), arrival: arrival.clone(), letter }));
                }
                _ => {}
            }
        }
        if outcome.is_dead() && !matches!(role, Role::Replay | Role::Shared) && !planted(Bug::NoDeadLetter) {
            letters += 1;
            self.tally.dead_letters += 1;
            let earlier = std::mem::take(&mut self.job(slot).earlier);
            let letter = Letter::DeadLetter { outcome: outcome.clone(), earlier };
            fx.list.push(Effect::Post(Post { confirm: Some(ticket), arrival, letter }));
        }
        let stage = match (role, outcome.status) {
            (Role::Replay | Role::Shared, _) => None,
            (Role::Aside, _) => Some(Stage::DeadLettered),
            (_, Status::Ok) => Some(Stage::Completed),
            (_, Status::Cancelled) => Some(Stage::Canceled),
            _ => Some(Stage::Failed),
        };
        if let Some(stage) = stage {
            self.lifecycle(now, slot, stage, fx);
        }
        self.job(slot).unconfirmed = letters;
        if letters == 0 {
            self.finish(now, slot, fx);
        } else if planted(Bug::SettleBeforeConfirm) {
            self.settle_deliveries(slot, fx);
        }
        if !planted(Bug::LoseOtherAsker) {
            for other in different.into_iter().filter(|other| !(other.is_call() && planted(Bug::CallUntold))) {
                self.reply(now, key, other, outcome.clone(), fx);
            }
        }
    }

    /// Whether an outcome that is told again was a refusal: it stands under the answer key, nothing was ever started, and it is
    /// no accepted step's that this asker shares.
    fn was_refused(&self, key: Key, arrival: &Arrival, outcome: &Outcome) -> bool {
        let of_a_step = outcome.fault.as_ref().is_some_and(|fault| matches!(fault.code, Code::Indeterminate | Code::Poison));
        outcome.status == Status::Error && outcome.tries == 0 && key == self.answer_key(arrival) && !of_a_step
    }

    pub(super) fn confirmed(&mut self, now: Now, ticket: Ticket, fx: &mut Effects) {
        let Some(slot) = self.current(ticket) else { return };
        if self.copied(now, slot, fx) {
            return;
        }
        let job = &mut self.jobs[slot as usize];
        if job.state != State::Posting || job.unconfirmed == 0 {
            return;
        }
        job.unconfirmed -= 1;
        if job.unconfirmed == 0 {
            self.finish(now, slot, fx);
        }
    }

    /// Every letter was stored: record it, let the deliveries go, keep only the memory of the key.
    fn finish(&mut self, now: Now, slot: u32, fx: &mut Effects) {
        if self.copy_leaves(slot, fx) {
            return;
        }
        let job = &self.jobs[slot as usize];
        if job.role != Role::Replay {
            let (key, home, arrival, decided, answer) =
                (job.key, job.home, job.arrival.clone(), job.decided, job.role != Role::Step);
            let asker = job.written.asker;
            self.log_published(now, slot, fx);
            self.unpublished -= 1;
            if planted(Bug::ForgetOnSettle) {
                self.known.forget(&key);
            } else {
                self.known.finish(key, &arrival.fingerprint, &asker, decided, answer, home);
            }
        }
        self.settle_deliveries(slot, fx);
        self.close_job(slot);
    }

    fn settle_deliveries(&mut self, slot: u32, fx: &mut Effects) {
        let job = &mut self.jobs[slot as usize];
        let dead = job.outcome.as_ref().is_some_and(|outcome| outcome.is_dead());
        let how = if dead { Settle::Term } else { Settle::Ack };
        let others = std::mem::take(&mut job.others);
        for arrival in std::iter::once(&job.arrival).chain(&others) {
            if let Origin::Stream(token) = &arrival.delivery.origin {
                fx.list.push(Effect::Settle { token: token.clone(), how });
            }
        }
    }

    /// The journal answered: give the outcome to all who wait for it.
    pub(super) fn probed(&mut self, now: Now, key: Key, found: Option<Rc<Outcome>>, fx: &mut Effects) {
        let Some(waiting) = self.probing.remove(&key) else { return };
        let gone =
            self.known.get(&key).is_some_and(|memory| matches!(memory.place, Place::Journal(lsn) if lsn < self.retain.floor()));
        if found.is_none() && gone {
            self.known.forget(&key);
        }
        let forgotten = found.is_none() && self.known.get(&key).is_none();
        // And asked for anew since: there is a step of this key again, and it is as good for those who asked before.
        let anew = found.is_none() && self.known.get(&key).is_some_and(|memory| matches!(memory.place, Place::Job(_)));
        for asked in waiting {
            let arrival = self.take_up(asked);
            if anew {
                self.arrived(now, arrival, fx);
                continue;
            }
            if matches!(arrival.content, Content::Notice(_)) {
                if planted(Bug::NoticeUnanswered) {
                    continue;
                }
                let signal = matches!(arrival.content, Content::Notice(Notice::Signal { .. }));
                let reply = match &found {
                    None => Reply::Unknown,
                    Some(outcome) if signal => Reply::Decided(outcome.clone()),
                    Some(outcome) => Reply::Ended(outcome.status),
                };
                self.reply_to(arrival, reply, fx);
                continue;
            }
            // What is no step, or was put aside, never ran: it is judged as if it came now.
            if forgotten && (arrival.work().is_none() || key == self.own_hash(&arrival)) {
                self.arrived(now, arrival, fx);
                continue;
            }
            let answer_key = self.answer_key(&arrival);
            // Where an answer is needed it may have been given, and put into a key file, while we asked.
            if found.is_none() && self.must_look(answer_key, &arrival, fx) {
                continue;
            }
            match (&found, self.known.get(&answer_key)) {
                (Some(outcome), _) => self.reply(now, key, arrival, outcome.clone(), fx),
                (None, Some(answered)) => self.answered_before(now, answered, arrival, fx),
                (None, None) if self.back_for_room(&arrival, fx) => {}
                // Its segment went while we asked. Whatever it was, it is not run again: its time is over.
                (None, None) => {
                    let fault = self.expired(&arrival, true);
                    self.answer(now, answer_key, arrival, fault, fx);
                }
            }
        }
        self.sealing.nobody();
    }
}

/// Whether one letter serves both: the same asker, on a subject. A line's reader wants a line for each, every call its own
/// answer, and who waits under an inbox of its own a copy there.
fn shares_letter(first: &Arrival, other: &Arrival) -> bool {
    let own = matches!(other.delivery.origin, Origin::Line(_) | Origin::Call(_));
    !own && asker_of(first) == asker_of(other) && !waits_elsewhere(first, other)
}

/// Whether `other` is to be answered where the answer to `first` does not go: under an inbox of its own, or on a subject at all.
pub(super) fn waits_elsewhere(first: &Arrival, other: &Arrival) -> bool {
    let inbox = other.delivery.reply.is_some() && other.delivery.reply != first.delivery.reply;
    inbox || first.by_call() != other.by_call()
}
