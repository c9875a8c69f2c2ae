//! What happens to an arrival: known keys are answered, conflicts kept apart, new work is charged and accepted.

use std::rc::Rc;

use super::record::asker_of;
use super::settle::waits_elsewhere;
use super::{Claim, Held, Shard, State};
use crate::dedup::{Memory, Place, short_asker, short_fingerprint};
use crate::event::{Effect, Effects, Role};
use crate::ids::{AskerId, Identity, Key, Lsn, Now};
use crate::limits::{DELIVERIES_PER_KEY_MAX, NAK_DELAY_MS};
use crate::outcome::{Code, Effected, Fault, Outcome, Status};
use crate::planted::{Bug, planted};
use crate::quota::Refusal;
use crate::step::{Arrival, Content, EffectClass, Origin, Settle, Work};
use crate::tenant::Waiting;

pub(super) const SHUTTING_DOWN: &str = "The worker is shutting down.";
pub(super) const TOO_MANY: &str = "Too many ask for this step at once.";
pub(super) const NO_ROOM: &str = "The worker has no room for more.";

impl Shard {
    pub(super) fn arrived(&mut self, now: Now, arrival: Rc<Arrival>, fx: &mut Effects) {
        if self.must_look_first(&arrival, fx) {
            return;
        }
        let memory = self.known.get(&arrival.key);
        if let Some(memory) = memory.filter(|_| arrival.adopted.is_some()) {
            return self.left_behind(now, memory, arrival, fx);
        }
        let shared = arrival.clone();
        match (&shared.content, memory) {
            (Content::Refusal(fault) | Content::Garbage(fault), _) if arrival.is_call() => self.decline(now, arrival, fault, fx),
            (Content::Work(work), None) => {
                if let Some(answered) = self.answered(&arrival) {
                    return self.answered_before(now, answered, arrival, fx);
                }
                if self.back_for_room(&arrival, fx) {
                    return;
                }
                // Another owner has had it with its first content, and has its assignment to answer.
                let released = self.released.get(&arrival.key);
                if let Some(released) = released.filter(|released| released.fingerprint != arrival.fingerprint) {
                    if released.asker == asker_of(&arrival) {
                        return self.put_aside(now, arrival, fx);
                    }
                    self.tally.conflicts += 1;
                    let key = self.answer_key(&arrival);
                    return self.answer(now, key, arrival, conflict_fault(), fx);
                }
                self.admit(now, arrival, work, fx);
            }
            (Content::Work(_), Some(memory)) => {
                let same = memory.fingerprint == short_fingerprint(&arrival.fingerprint) || planted(Bug::IgnoreFingerprint);
                if !same {
                    return self.conflict(now, memory, arrival, fx);
                }
                // An assignment that was answered without this step (refused, say) keeps that answer.
                let answered = if memory.asker == short_asker(&asker_of(&arrival)) { None } else { self.answered(&arrival) };
                match answered {
                    Some(answered) => self.answered_before(now, answered, arrival, fx),
                    None => self.again(now, arrival.key, memory, arrival, fx),
                }
            }
            // A refusal or a message put aside is known by its own key: the same message again, or a second one that is
            // refused for the same assignment. Either way its first answer stands.
            (Content::Refusal(_), Some(memory)) => self.answered_before(now, memory, arrival, fx),
            (Content::Garbage(_), Some(memory)) => self.again(now, arrival.key, memory, arrival, fx),
            (Content::Refusal(_), None) if self.is_under_way(&arrival) => self.put_aside(now, arrival, fx),
            (Content::Refusal(_) | Content::Garbage(_), None) if self.back_for_room(&arrival, fx) => {}
            (Content::Refusal(fault), None) => {
                self.tally.refused += 1;
                let fault = fault.clone();
                self.answer(now, arrival.key, arrival, fault, fx);
            }
            (Content::Garbage(fault), None) => {
                let fault = fault.clone();
                self.quarantine(now, arrival.key, arrival, fault, fx);
            }
            (Content::Notice(notice), _) => self.noticed(now, arrival, notice, fx),
        }
    }

    /// The key under which this assignment's answer would stand.
    pub(super) fn answer_key(&self, arrival: &Arrival) -> Key {
        let assignment = arrival.asker.as_ref().map_or("", |asker| asker.assignment_id.as_ref());
        self.settings.salt.answer_key(&arrival.tenant, assignment)
    }

    /// What is remembered of this assignment, if it was answered without a step of its own.
    fn answered(&self, arrival: &Arrival) -> Option<Memory> {
        if !(self.known.has_answers() || self.sealing.has_answers()) || arrival.asker.is_none() {
            return None;
        }
        self.known.get(&self.answer_key(arrival))
    }

    /// This assignment has its one terminal answer: it gets that again, unless it now asks for something else.
    pub(super) fn answered_before(&mut self, now: Now, answered: Memory, arrival: Rc<Arrival>, fx: &mut Effects) {
        if answered.fingerprint == short_fingerprint(&arrival.fingerprint) {
            let key = self.answer_key(&arrival);
            return self.again(now, key, answered, arrival, fx);
        }
        self.put_aside(now, arrival, fx);
    }

    /// Another content under an assignment that has an answer: a dead letter, and nobody is answered.
    fn put_aside(&mut self, now: Now, arrival: Rc<Arrival>, fx: &mut Effects) {
        let key = self.own_hash(&arrival);
        if self.must_look(key, &arrival, fx) {
            return;
        }
        self.tally.conflicts += 1;
        match self.known.get(&key) {
            Some(memory) => self.again(now, key, memory, arrival, fx),
            None if self.back_for_room(&arrival, fx) => {}
            None => self.quarantine(now, key, arrival, conflict_fault(), fx),
        }
    }

    /// Whether a refused message comes under an assignment whose own step is known, or another owner's since: its one terminal
    /// answer is that step's.
    /// Seen for steps that go by their assignment; one that goes by flow coordinates cannot be told from a refused message.
    fn is_under_way(&self, arrival: &Arrival) -> bool {
        let (Some(asker), Some(step)) = (&arrival.asker, self.assignment_key(arrival)) else { return false };
        let asks = self.settings.salt.asker(step, &asker.assignment_id);
        self.known.get(&step).is_some_and(|memory| memory.asker == short_asker(&asks))
            || self.released.get(&step).is_some_and(|released| released.asker == asks)
    }

    /// The key of a step that goes by this assignment.
    pub(super) fn assignment_key(&self, arrival: &Arrival) -> Option<Key> {
        let (tenant, assignment) = (&*arrival.tenant, &*arrival.asker.as_ref()?.assignment_id);
        Some(self.settings.salt.key(Identity::Assignment { tenant, assignment }))
    }

    /// The key is known and asks for the same: attach to its job, or answer from the journal.
    pub(super) fn again(&mut self, now: Now, key: Key, memory: Memory, arrival: Rc<Arrival>, fx: &mut Effects) {
        self.tally.duplicates += 1;
        match memory.place {
            Place::Job(slot) => self.attach(now, slot, arrival, fx),
            Place::Journal(lsn) => self.ask_journal(key, lsn, arrival, fx),
        }
    }

    /// Has the outcome of `key` read back for somebody.
    pub(super) fn ask_journal(&mut self, key: Key, lsn: Lsn, arrival: Rc<Arrival>, fx: &mut Effects) {
        let asked = self.asked(arrival);
        let waiting = self.probing.entry(key).or_default();
        waiting.push(asked);
        if waiting.len() == 1 {
            fx.list.push(Effect::Probe { key, lsn });
        }
    }

    /// Another delivery of a key in flight: the newest token of a stream message replaces the older one.
    fn attach(&mut self, now: Now, slot: u32, arrival: Rc<Arrival>, fx: &mut Effects) {
        if self.settled_by_copy(slot, &arrival, fx) {
            return;
        }
        let shared = self.settings.shared;
        let job = &mut self.jobs[slot as usize];
        let arrival = if matches!(job.state, State::Parked | State::Backoff) { Rc::new(arrival.own()) } else { arrival };
        // Whoever was handed this message before may have run the step, however it came here.
        let elsewhere = arrival.token().is_some_and(|token| token.inherited || (shared && token.delivered > 1));
        job.touched |= elsewhere && arrival.work().is_some_and(|work| work.effect != EffectClass::Pure);
        let asker = |of: &Arrival| of.asker.as_ref().map(|asker| asker.id);
        let same_message = |old: &Arrival| match (&old.delivery.origin, &arrival.delivery.origin) {
            (Origin::Stream(old), Origin::Stream(new)) => old.consumer == new.consumer && old.sequence == new.sequence,
            _ => false,
        };
        // A recovered step has no delivery of its own to settle, so the next one is its, but for a call, whose letters are its
        // own; and letters that are out already did not go to a line, an inbox or a subject that comes only now.
        let line = matches!(arrival.delivery.origin, Origin::Line(_));
        let told = job.state == State::Posting && (line || waits_elsewhere(&job.arrival, &arrival));
        let recovered = matches!(job.arrival.delivery.origin, Origin::Journal { .. });
        let adopts = recovered && !told && !arrival.is_call() && asker(&job.arrival) == asker(&arrival);
        if adopts || same_message(&job.arrival) {
            self.held_bytes = self.held_bytes - job.arrival.held_bytes() + arrival.held_bytes();
            job.arrival = on_the_same_terms(&job.arrival, arrival);
            return;
        }
        if let Some(old) = job.others.iter_mut().find(|old| same_message(old)) {
            *old = arrival;
            return;
        }
        let riding = job.others.iter().filter(|other| !other.is_call()).count();
        match &arrival.delivery.origin {
            Origin::Stream(token) if riding >= DELIVERIES_PER_KEY_MAX => {
                let token = token.clone();
                self.hand_back(&token, fx);
            }
            // Nobody holds it for us: its asker is told by what it sent before, anybody else that there is no room. Who has only
            // called is told on its line alone: one message rides for each of these all the same.
            Origin::Core if riding >= DELIVERIES_PER_KEY_MAX && !job.only_called(&arrival) => {
                let mut before = std::iter::once(&job.arrival).chain(&job.others);
                if !before.any(|other| asker(other) == asker(&arrival)) && !planted(Bug::DropCrowd) {
                    self.refuse(now, arrival, Fault::new(Code::SystemOverload, TOO_MANY), fx);
                }
            }
            // Its asker is answered already: there is nothing more to owe, unless it waits elsewhere.
            Origin::Core if asker(&job.arrival) == asker(&arrival) && !waits_elsewhere(&job.arrival, &arrival) => {}
            // Too late to ride along: its letters are out already.
            _ if job.state == State::Posting => {
                if let Some(outcome) = job.outcome.clone() {
                    let key = job.key;
                    self.reply(now, key, arrival, outcome, fx);
                }
            }
            Origin::Call(_) => self.ride(now, slot, arrival, fx),
            _ => {
                let tell = job.acked && asker(&job.arrival) != asker(&arrival) && arrival.token().is_some();
                job.others.push(arrival.clone());
                if tell {
                    self.tell_accepted(now, &arrival, fx);
                }
            }
        }
    }

    /// Gives an outcome to somebody who asks for it late. An assignment that asks for the first time is recorded: this is
    /// its one terminal answer.
    pub(super) fn reply(&mut self, now: Now, key: Key, arrival: Rc<Arrival>, outcome: Rc<Outcome>, fx: &mut Effects) {
        let first = self.known.get(&key).is_some_and(|memory| memory.asker == short_asker(&asker_of(&arrival)));
        let answer_key = self.answer_key(&arrival);
        let silent = arrival.asker.is_none() || outcome.status == Status::Quarantined;
        if first || silent || key == answer_key {
            // Not one that was forgotten meanwhile, under a key that has another outcome now.
            let stands = |lsn| self.known.get(&key).is_some_and(|memory| matches!(memory.place, Place::Journal(at) if at == lsn));
            if let Some(untold) = self.untold.remove(&key).filter(|untold| stands(untold.decided)) {
                return self.tell_now(now, key, arrival, untold, outcome, fx);
            }
            let slot = self.open_job(now, key, arrival, Lsn(0), Role::Replay);
            self.hold_outcome(slot, outcome);
            return self.post_outcome(now, slot, fx);
        }
        if self.must_look(answer_key, &arrival, fx) {
            return;
        }
        // It got its terminal answer while this one was on its way: that one stands.
        if let Some(answered) = self.known.get(&answer_key) {
            return self.answered_before(now, answered, arrival, fx);
        }
        if self.back_for_room(&arrival, fx) {
            return;
        }
        let lsn = self.log_answer(now, answer_key, &arrival, &outcome, Some(key), fx);
        self.hold_answer(now, answer_key, arrival, outcome, lsn, Role::Shared);
    }

    /// The same key with other content: never run, and never answered as if it were the same.
    fn conflict(&mut self, now: Now, memory: Memory, arrival: Rc<Arrival>, fx: &mut Effects) {
        let asker = arrival.asker.as_ref().map_or(AskerId([0; 16]), |asker| asker.id);
        let answered = self.answered(&arrival);
        let rides = match memory.place {
            Place::Job(slot) => self.jobs[slot as usize].others.iter().any(|other| asker_of(other) == asker),
            Place::Journal(_) => false,
        };
        // This very assignment has, or will have, its one terminal answer: another would be a violation.
        let taken = memory.asker == short_asker(&asker)
            || rides
            || answered.is_some_and(|answer| answer.fingerprint != short_fingerprint(&arrival.fingerprint));
        if taken {
            self.put_aside(now, arrival, fx);
        } else {
            self.tally.conflicts += 1;
            let key = self.answer_key(&arrival);
            match answered {
                Some(memory) => self.again(now, key, memory, arrival, fx),
                None if self.back_for_room(&arrival, fx) => {}
                None => self.answer(now, key, arrival, conflict_fault(), fx),
            }
        }
    }

    pub(super) fn own_hash(&self, arrival: &Arrival) -> Key {
        let delivery = &arrival.delivery;
        self.settings.salt.quarantine_key(&delivery.subject, &delivery.headers, &delivery.body)
    }

    /// New work: in time, permitted, with room for it.
    fn admit(&mut self, now: Now, arrival: Rc<Arrival>, work: &Work, fx: &mut Effects) {
        if let Some(adopted) = arrival.adopted.as_ref().filter(|_| work.gate.is_some()) {
            return self.adopt(now, &arrival, work, adopted, fx);
        }
        let streamed = matches!(arrival.delivery.origin, Origin::Stream(_));
        let forgotten = streamed && arrival.since_ms() <= self.retain.watermark_ms();
        if (now.wall_ms > work.not_after_ms || forgotten) && !planted(Bug::RunExpired) {
            self.tally.refused += 1;
            let fault = self.expired(&arrival, forgotten);
            let key = self.answer_key(&arrival);
            return self.answer(now, key, arrival, fault, fx);
        }
        if let Some(fault) = work.denied.as_deref().or(work.changed.as_deref()) {
            self.tally.refused += 1;
            let key = self.answer_key(&arrival);
            return self.answer(now, key, arrival, fault.clone(), fx);
        }
        if work.effect_ceiling.is_some_and(|ceiling| work.effect > ceiling) {
            self.tally.refused += 1;
            let fault = Fault::new(Code::PermissionDenied, "The block's effect class is above the job's ceiling.");
            let key = self.answer_key(&arrival);
            return self.answer(now, key, arrival, fault, fx);
        }
        if self.settings.shared && streamed && work.effect == EffectClass::Unsafe && !self.settings.claims {
            self.tally.refused += 1;
            let fault = Fault::new(
                Code::PermissionDenied,
                "Where workers share a consumer and nothing can be claimed, no step runs that must never run twice.",
            )
            .with_details("{\"setting\":\"nats.ownership\",\"rule\":\"exclusive\"}");
            let key = self.answer_key(&arrival);
            return self.answer(now, key, arrival, fault, fx);
        }
        if self.draining || !self.has_room() {
            return self.no_room(now, arrival, fx);
        }
        let tenant = self.tenants.find(&arrival.tenant);
        // People may take long: what waits for them leaves the other half of the memory to what does not.
        let half = self.settings.limits.shard_held_bytes_max / 2;
        if work.gate.is_some() && self.held_bytes >= half {
            return self.does_not_park(now, arrival, no_room_to_park(half), fx);
        }
        let account = &mut self.tenants.get(tenant).account;
        let charge = match &work.gate {
            Some(_) => account.charge_parked(),
            None => account.charge(),
        };
        match charge {
            Ok(charge) => {
                let lsn = self.log_accepted(now, &arrival, work, fx);
                self.tally.accepted += 1;
                let (delivered, handed_on) = arrival.token().map_or((0, false), |token| (token.delivered, token.inherited));
                // Where workers share, whoever had it before may have run it.
                let passed_on = self.settings.shared && delivered > 1;
                let released = self.released.remove(&arrival.key).is_some();
                let inherited = handed_on || passed_on || released;
                // It has ended the process before it could be recorded.
                let struck = self.strikes.of(&arrival.key) > 0;
                let slot = self.open_job(now, arrival.key, arrival.clone(), lsn, Role::Step);
                let parked = work.gate.is_some();
                if !parked {
                    self.queue_up(slot);
                }
                let home = self.known.begin(arrival.key, &arrival.fingerprint, &asker_of(&arrival), slot, false);
                let deadline_us = now.mono_us.saturating_add(work.budget_ms.saturating_mul(1000));
                let claim = self.claim_for(work);
                let job = self.job(slot);
                job.home = home;
                job.written.deadline_ms = now.wall_ms.saturating_add(work.budget_ms);
                job.charge = Some(charge);
                job.claim = claim;
                // Where no server holds the message, nothing would tell that a try was made whose record was lost.
                job.cautious = work.effect == EffectClass::Unsafe
                    || delivered > 1
                    || struck
                    || inherited
                    || (!streamed && work.effect != EffectClass::Pure);
                job.touched = (delivered > 1 || struck || inherited)
                    && !matches!(work.effect, EffectClass::Pure | EffectClass::Unsafe)
                    && !planted(Bug::Untouched);
                job.deadline_us = deadline_us;
                self.unfinished.push_back((lsn, slot));
                self.held.push_back((lsn, Held::Accepted(slot)));
                if parked {
                    return self.park(now, slot, fx);
                }
                self.deadlines.arm(slot, deadline_us);
                if inherited && work.effect == EffectClass::Unsafe && !planted(Bug::RunInherited) {
                    let fault = Fault::new(Code::Indeterminate, "Another worker had the step; it may have happened.")
                        .with_effect(Effected::Unknown);
                    return self.end_untried(now, slot, Status::Error, fault, fx);
                }
                if !(struck && self.ended_as_poison(now, slot, fx)) {
                    self.enqueue(now, slot);
                }
            }
            Err(Refusal::ParkedFull { limit }) => self.does_not_park(now, arrival, too_many_parked(limit), fx),
            Err(Refusal::QueueFull { limit }) => match &arrival.delivery.origin {
                Origin::Stream(token) => {
                    let token = token.clone();
                    if planted(Bug::NoNakOverQueue) {
                        return fx.list.push(Effect::Settle { token, how: Settle::Ack });
                    }
                    self.hand_back(&token, fx);
                }
                Origin::Call(_) => self.turn_away(arrival, queue_is_full(limit), fx),
                Origin::Core if self.settings.limits.on_overload == crate::limits::OnOverload::Reject => {
                    self.refuse_over_quota(now, arrival, limit, fx);
                }
                _ => self.wait(now, arrival, fx),
            },
        }
    }

    /// Whether this work must be claimed before it runs.
    pub(super) fn claim_for(&self, work: &Work) -> Claim {
        let due = self.settings.claims && work.effect == EffectClass::Unsafe && !planted(Bug::NeverClaim);
        if due { Claim::Due } else { Claim::Needless }
    }

    /// "Too late". Where its key may have been forgotten, or an earlier delivery may have run, so may its effect have happened.
    pub(super) fn expired(&self, arrival: &Arrival, forgotten: bool) -> Fault {
        let effect = match arrival.work().map(|work| work.effect) {
            None | Some(EffectClass::Pure) => Effected::None,
            Some(_) if forgotten || self.released.contains_key(&arrival.key) => Effected::Unknown,
            Some(_) if arrival.token().is_some_and(|token| token.inherited) => Effected::Unknown,
            Some(EffectClass::Unsafe) => Effected::None,
            Some(_) if arrival.token().is_some_and(|token| token.delivered > 1) => Effected::Unknown,
            Some(_) if self.strikes.of(&arrival.key) > 0 => Effected::Unknown,
            Some(_) => Effected::None,
        };
        Fault::new(Code::Expired, "The job came after its time.").with_effect(effect)
    }

    /// There is no room for anyone: the stream keeps it, others wait or are refused.
    fn no_room(&mut self, now: Now, arrival: Rc<Arrival>, fx: &mut Effects) {
        match &arrival.delivery.origin {
            Origin::Stream(token) => {
                let token = token.clone();
                self.hand_back(&token, fx);
            }
            Origin::Call(_) => {
                let why = if self.draining { SHUTTING_DOWN } else { NO_ROOM };
                self.turn_away(arrival, Fault::new(Code::SystemOverload, why), fx);
            }
            Origin::Core if self.draining => {
                let fault = Fault::new(Code::SystemOverload, SHUTTING_DOWN);
                self.tally.refused += 1;
                let key = self.answer_key(&arrival);
                self.answer(now, key, arrival, fault, fx);
            }
            _ => self.wait(now, arrival, fx),
        }
    }

    /// Keeps an arrival that nobody else keeps, unaccepted, until there is room or its budget is over.
    fn wait(&mut self, now: Now, arrival: Rc<Arrival>, fx: &mut Effects) {
        let limits = &self.settings.limits;
        if self.waiting >= limits.shard_queued_max || self.held_bytes >= limits.shard_held_bytes_max {
            let limit = limits.shard_queued_max;
            return self.refuse_over_quota(now, arrival, limit, fx);
        }
        let tenant = self.tenants.find(&arrival.tenant);
        self.held_bytes += arrival.held_bytes();
        let budget_ms = arrival.work().map_or(0, |work| work.budget_ms);
        let until_us = now.mono_us.saturating_add(budget_ms.saturating_mul(1000));
        self.tenants.get(tenant).waiting.push_back(Waiting { until_us, arrival });
        self.waiting += 1;
        if self.waiting == 1 {
            self.waiting_due_us = now.mono_us + 100_000;
        }
    }

    /// Lets in what waited, as far as there is room; refuses what waited too long.
    pub(super) fn look_at_waiting(&mut self, now: Now, fx: &mut Effects) {
        if self.waiting == 0 {
            return;
        }
        for tenant in self.tenants.indices() {
            while let Some(first) = self.tenants.peek(tenant).waiting.front() {
                let overdue = now.mono_us > first.until_us;
                let account = &self.tenants.peek(tenant).account;
                let room = self.has_room() && !self.draining && account.queued < account.queued_max;
                if !overdue && !room {
                    break;
                }
                let Some(Waiting { arrival, .. }) = self.tenants.get(tenant).waiting.pop_front() else { break };
                self.waiting -= u32::from(!planted(Bug::LeakWaiting));
                self.held_bytes -= arrival.held_bytes();
                self.waited(now, arrival, overdue, fx);
            }
        }
        self.waiting_due_us = now.mono_us + 100_000;
    }

    /// The wait of an unaccepted arrival is over: there is room, or it is overdue.
    pub(super) fn waited(&mut self, now: Now, arrival: Rc<Arrival>, overdue: bool, fx: &mut Effects) {
        self.sealing.overdue = overdue;
        // What became known while it waited, by a stream's copy of the same assignment say, has or gets its outcome.
        if overdue && self.must_look(arrival.key, &arrival, fx) {
        } else if overdue && self.known.get(&arrival.key).is_none() {
            self.waited_too_long(now, arrival, fx);
        } else {
            // From the start: the key may have become known while it waited.
            self.sealing.overdue = false;
            self.arrived(now, arrival, fx);
        }
        self.sealing.overdue = false;
    }

    /// Takes nothing new from now on; what waited unaccepted on core NATS is told so rather than left to its budget.
    pub(super) fn drain(&mut self, now: Now, fx: &mut Effects) {
        self.draining = true;
        for tenant in self.tenants.indices() {
            for Waiting { arrival, .. } in std::mem::take(&mut self.tenants.get(tenant).waiting) {
                self.waiting -= 1;
                self.held_bytes -= arrival.held_bytes();
                self.arrived(now, arrival, fx);
            }
        }
    }

    /// Its budget is over, and there was no room for it.
    fn waited_too_long(&mut self, now: Now, arrival: Rc<Arrival>, fx: &mut Effects) {
        if self.disk_full() {
            let fault = Fault::new(Code::SystemOverload, "The disk of the worker's journal is full.");
            return self.refuse(now, arrival, fault, fx);
        }
        let limit = self.settings.limits.tenant_queued_max;
        self.refuse_over_quota(now, arrival, limit, fx);
    }

    fn refuse_over_quota(&mut self, now: Now, arrival: Rc<Arrival>, limit: u32, fx: &mut Effects) {
        self.refuse(now, arrival, queue_is_full(limit), fx);
    }

    /// A step for which there is no room among those that wait for people: it may be long before there is, so nobody waits here.
    fn does_not_park(&mut self, now: Now, arrival: Rc<Arrival>, fault: Fault, fx: &mut Effects) {
        match &arrival.delivery.origin {
            Origin::Stream(token) => {
                let token = token.clone();
                self.hand_back(&token, fx);
            }
            Origin::Call(_) => self.turn_away(arrival, fault, fx),
            _ => self.refuse(now, arrival, fault, fx),
        }
    }

    fn refuse(&mut self, now: Now, arrival: Rc<Arrival>, fault: Fault, fx: &mut Effects) {
        let key = self.answer_key(&arrival);
        if self.must_look(key, &arrival, fx) {
            return;
        }
        self.tally.refused += 1;
        match self.known.get(&key) {
            Some(memory) => self.answered_before(now, memory, arrival, fx),
            None => self.answer(now, key, arrival, fault, fx),
        }
    }

    /// Gives a delivery back to its stream, for longer each time it has been given back.
    fn hand_back(&mut self, token: &crate::step::StreamToken, fx: &mut Effects) {
        self.tally.handed_back += 1;
        let doublings = token.delivered.saturating_sub(1).min(8);
        let delay_ms = (NAK_DELAY_MS.start() << doublings).min(*NAK_DELAY_MS.end());
        fx.list.push(Effect::Settle { token: token.clone(), how: Settle::Nak { delay_ms } });
    }

    /// An assignment's terminal answer without a run: durable first, then a rejected ack, the result and a dead letter.
    pub(super) fn answer(&mut self, now: Now, key: Key, arrival: Rc<Arrival>, fault: Fault, fx: &mut Effects) {
        self.answer_as(now, key, arrival, Status::Error, fault, fx);
    }

    /// As [`Shard::answer`], with another status than "error".
    pub(super) fn answer_as(&mut self, now: Now, key: Key, arrival: Rc<Arrival>, status: Status, fault: Fault, fx: &mut Effects) {
        let outcome = Rc::new(self.instant(now, &arrival, status, fault));
        self.tally.fault(outcome.fault.as_ref().map_or(Code::InternalError, |fault| fault.code));
        let lsn = self.log_answer(now, key, &arrival, &outcome, None, fx);
        self.hold_answer(now, key, arrival, outcome, lsn, Role::Refusal);
    }

    /// A message put aside: durable first, then a dead letter; nobody is answered.
    pub(super) fn quarantine(&mut self, now: Now, key: Key, arrival: Rc<Arrival>, fault: Fault, fx: &mut Effects) {
        self.tally.quarantined += 1;
        self.tally.fault(fault.code);
        let outcome = Rc::new(self.instant(now, &arrival, Status::Quarantined, fault));
        let lsn = self.log_quarantined(now, key, &arrival, &outcome, fx);
        self.hold_answer(now, key, arrival, outcome, lsn, Role::Aside);
    }

    fn hold_answer(&mut self, now: Now, key: Key, arrival: Rc<Arrival>, outcome: Rc<Outcome>, lsn: Lsn, role: Role) {
        let asker = if role == Role::Aside { AskerId([0; 16]) } else { asker_of(&arrival) };
        let fingerprint = arrival.fingerprint;
        let slot = self.open_job(now, key, arrival, lsn, role);
        let home = self.known.begin(key, &fingerprint, &asker, slot, true);
        let job = self.job(slot);
        job.home = home;
        job.state = State::Decided;
        job.decided = lsn;
        self.hold_outcome(slot, outcome);
        self.unpublished += 1;
        self.unfinished.push_back((lsn, slot));
        self.held.push_back((lsn, Held::Outcome(slot)));
    }

    /// An outcome decided on the spot, before anything ran.
    fn instant(&self, now: Now, arrival: &Arrival, status: Status, fault: Fault) -> Outcome {
        Outcome {
            status,
            effect: fault.effect,
            outputs: bytes::Bytes::new(),
            fault: Some(fault),
            tries: 0,
            received_ms: arrival.received_ms,
            started_ms: 0,
            ended_ms: now.wall_ms,
            ran_us: 0,
            spilled: false,
            queue_depth: self.queued(),
            boot: self.settings.boot,
            owner_epoch: self.settings.owner_epoch,
        }
    }
}

fn queue_is_full(limit: u32) -> Fault {
    let details = format!("{{\"limit\":\"limits.tenant_queued\",\"value\":{limit}}}");
    Fault::new(Code::QuotaExceeded, "The tenant's queue is full.").with_details(details)
}

fn no_room_to_park(bytes: u64) -> Fault {
    let details = format!("{{\"limit\":\"half of limits.shard_held_bytes\",\"value\":{bytes}}}");
    Fault::new(Code::SystemOverload, "What the worker holds leaves no room for steps that wait for people.").with_details(details)
}

fn too_many_parked(limit: u32) -> Fault {
    let details = format!("{{\"limit\":\"limits.tenant_approvals\",\"value\":{limit}}}");
    Fault::new(Code::QuotaExceeded, "Too many of the tenant's steps wait for people.").with_details(details)
}

fn conflict_fault() -> Fault {
    Fault::new(Code::KeyConflict, "The same key already stands for other content.")
}

/// The delivery that comes in the place of another, to be run as the step was accepted: what a sender says of its needs and of its
/// bounds is no part of F, and the step waits and counts by what it said first.
fn on_the_same_terms(old: &Rc<Arrival>, new: Rc<Arrival>) -> Rc<Arrival> {
    let (Some(accepted), Some(said)) = (old.work(), new.work()) else { return new };
    let same = accepted.needs == said.needs
        && accepted.kind == said.kind
        && accepted.block == said.block
        && accepted.guardrails == said.guardrails
        && accepted.cache == said.cache
        && accepted.effect == said.effect;
    if same { new } else { Rc::new(Arrival { content: old.content.clone(), ..Arrival::clone(&new) }) }
}
