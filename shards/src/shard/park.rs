//! Steps that wait for people: parked without a place in any lane, asked about, decided by votes or by time.
//!
//! A vote counts once its frame is durable, and its sender is told then. Who speaks after the decision is told what was decided,
//! and who speaks twice, what was said first. A step leaves its gate by one way: [`Shard::settle`].

use std::rc::Rc;

use super::record::asker_of;
use super::{Held, Job, Shard, State};
use crate::dedup::Place;
use crate::event::{Asking, Effect, Effects, Letter, Post, Reply, Role};
use crate::gate::{Decision, Due, Gate, Unheard, Vote};
use crate::ids::{Lsn, Now, Text};
use crate::outcome::{Code, Effected, Fault, Status};
use crate::quota::Charge;
use crate::step::Arrival;
#[cfg(feature = "runtime")]
use crate::{ids::Key, runtime::ports::Waiting};

/// Longest list of those who decided that an audit item names, in bytes.
const DECIDERS_BYTES_MAX: usize = 1_024;

impl Shard {
    /// A step that was just accepted begins to wait.
    pub(super) fn park(&mut self, now: Now, slot: u32, fx: &mut Effects) {
        let job = self.job(slot);
        job.state = State::Parked;
        job.arrival = Rc::new(job.arrival.own());
        // A clock that is set back or stands still prolongs nothing: from here on the monotonic one counts.
        job.deadline_us = now.mono_us.saturating_add(job.written.deadline_ms.saturating_sub(now.wall_ms).saturating_mul(1_000));
        job.gate_ms = now.wall_ms;
        let due_us = job_due(job);
        self.gates.insert((due_us, slot));
        self.gate_due(now, slot, fx);
    }

    /// A job for a step that waits, before anything is due of it.
    pub(super) fn open_parked(&mut self, now: Now, arrival: Rc<Arrival>, lsn: Lsn, charge: Charge, deadline_ms: u64) -> u32 {
        let (key, fingerprint, asker) = (arrival.key, arrival.fingerprint, asker_of(&arrival));
        let slot = self.open_job(now, key, arrival, lsn, Role::Step);
        let home = self.known.begin(key, &fingerprint, &asker, slot, false);
        let job = self.job(slot);
        job.home = home;
        job.charge = Some(charge);
        job.written.deadline_ms = deadline_ms;
        self.unfinished.push_back((lsn, slot));
        slot
    }

    /// At boot: a step that waited goes on waiting, and people are told of it again.
    pub(super) fn parked_again(&mut self, now: Now, slot: u32, votes: Vec<Vote>, fx: &mut Effects) {
        let tenant = self.jobs[slot as usize].tenant;
        let charge = self.tenants.get(tenant).account.charge_parked_recovered();
        let job = self.job(slot);
        job.charge = Some(charge);
        job.votes = votes;
        self.accepted(now, slot, fx);
        // Before anything is decided: a copy that an earlier life has written goes with the step. Whether it is there, they are
        // read to find out ([`crate::event::Event::CopiesRead`]).
        self.has_copy(slot);
        self.park(now, slot, fx);
        let (deadline_ms, at_ms) = (self.jobs[slot as usize].written.deadline_ms, self.gate_now(now, slot));
        let escalated = self.gate(slot).is_some_and(|gate| gate.is_escalated(deadline_ms, at_ms));
        self.ask_people(now, slot, if escalated { Asking::Escalation } else { Asking::First }, fx);
    }

    /// What is due of gates by now.
    pub(super) fn look_at_gates(&mut self, now: Now, fx: &mut Effects) {
        while let Some((due_us, slot)) = self.gates.first().copied().filter(|(due_us, _)| *due_us <= now.mono_us) {
            debug_assert_eq!(due_us, job_due(&self.jobs[slot as usize]), "a gate is found by what is due of it");
            self.gate_due(now, slot, fx);
        }
    }

    /// Decides a step that can be decided, tells what is to be told of it, and looks again when something else is due.
    fn gate_due(&mut self, now: Now, slot: u32, fx: &mut Effects) {
        let Some(gate) = self.gate(slot) else { return };
        let at_ms = self.gate_now(now, slot);
        let job = &self.jobs[slot as usize];
        let (deadline_ms, was_due_us) = (job.written.deadline_ms, job_due(job));
        if let Some(decision) = gate.decision(&job.votes, deadline_ms, at_ms) {
            return self.decide(now, slot, &gate, decision, fx);
        }
        let mut next = gate.due_ms(deadline_ms, job.gate_ms);
        while next.0 <= at_ms {
            self.job(slot).gate_ms = next.0;
            let why = if next.1 == Due::Escalation { Asking::Escalation } else { Asking::Reminder };
            self.ask_people(now, slot, why, fx);
            next = gate.due_ms(deadline_ms, next.0);
        }
        self.gates.remove(&(was_due_us, slot));
        let job = self.job(slot);
        job.retry_at_us = now.mono_us.saturating_add((next.0 - at_ms).saturating_mul(1_000));
        let due_us = job_due(job);
        self.gates.insert((due_us, slot));
    }

    fn decide(&mut self, now: Now, slot: u32, gate: &Gate, decision: Decision, fx: &mut Effects) {
        let job = self.job(slot);
        job.decided_by = deciders(&job.votes, decision);
        let told = gate.told(&job.votes, decision, now.wall_ms);
        let outcome = if decision.approved {
            let mut outcome = self.outcome(now, slot, Status::Ok, Effected::Applied, 0);
            outcome.outputs = told;
            outcome
        } else {
            let mut outcome = self.outcome(now, slot, Status::Error, Effected::None, 0);
            self.tally.fault(Code::Rejected);
            outcome.fault = Some(Fault::new(Code::Rejected, "The request was not approved.").with_details(told));
            outcome
        };
        self.settle(now, slot, outcome, fx);
    }

    /// Tells observers that a step waits for people, if it does.
    pub(super) fn ask_people(&mut self, now: Now, slot: u32, why: Asking, fx: &mut Effects) {
        if !self.settings.events || self.jobs[slot as usize].state != State::Parked {
            return;
        }
        let Some(gate) = self.gate(slot) else { return };
        let at_ms = self.gate_now(now, slot);
        let job = &mut self.jobs[slot as usize];
        let deadline_ms = job.written.deadline_ms;
        let escalated = gate.is_escalated(deadline_ms, at_ms);
        let until_ms = if escalated { deadline_ms } else { gate.escalates_ms(deadline_ms) };
        let letter = Letter::ApprovalNeeded { why, escalated, until_ms, sequence: job.stages, at_ms: now.wall_ms };
        job.stages += 1;
        fx.list.push(Effect::Post(Post { confirm: None, arrival: job.arrival.clone(), letter }));
    }

    pub(super) fn signal_asked(
        &mut self,
        now: Now,
        notice: Rc<Arrival>,
        assignment: Option<&Text>,
        vote: Vote,
        fx: &mut Effects,
    ) {
        if self.must_look_for_notice(&notice, assignment, fx) {
            return;
        }
        match self.meant(&notice, assignment) {
            Some((_, Place::Job(slot))) => self.vote_on(now, notice, slot, vote, fx),
            Some((key, Place::Journal(lsn))) => self.ask_journal(key, lsn, notice, fx),
            None => self.reply_to(notice, Reply::Unknown, fx),
        }
    }

    fn vote_on(&mut self, now: Now, notice: Rc<Arrival>, slot: u32, mut vote: Vote, fx: &mut Effects) {
        if self.jobs[slot as usize].state == State::Parked {
            // Time may have decided, and nobody looked yet.
            self.gate_due(now, slot, fx);
        }
        let job = &self.jobs[slot as usize];
        let (decided, durable) = (job.decided, self.durable);
        match (job.state, &job.outcome) {
            (State::Parked, _) => {}
            (State::Decided, Some(outcome)) => {
                let reply = Reply::Decided(outcome.clone());
                match self.told_with_copy(slot, &notice, reply) {
                    None => return,
                    Some(reply) if decided > durable => return self.hold_reply(decided, notice, reply),
                    Some(reply) => return self.reply_to(notice, reply, fx),
                }
            }
            (_, Some(outcome)) => {
                let reply = Reply::Decided(outcome.clone());
                return self.reply_to(notice, reply, fx);
            }
            (_, None) => return self.refuse_vote(notice, Code::InvalidInput, "the step waits for nobody", fx),
        }
        let Some(gate) = self.gate(slot) else { return };
        let at_ms = self.gate_now(now, slot);
        let job = self.job(slot);
        vote.at_ms = now.wall_ms;
        match gate.hear(&job.votes, &vote, job.written.deadline_ms, at_ms) {
            Ok(()) => {
                let lsn = self.log_signal(slot, &vote, fx);
                self.job(slot).votes.push(vote.own());
                self.held.push_back((lsn, Held::Said(self.ticket(slot), notice, Reply::Noted)));
                self.gate_due(now, slot, fx);
            }
            Err(Unheard::Heard(at)) => {
                let reply = Reply::Heard(job.votes[at].clone());
                let (written, ticket) = (Lsn(self.next_lsn.0 - 1), self.ticket(slot));
                match written > self.durable {
                    true => self.held.push_back((written, Held::Said(ticket, notice, reply))),
                    false => self.said(now, slot, notice, reply, fx),
                }
            }
            Err(Unheard::Stranger) => self.refuse_vote(notice, Code::PermissionDenied, "the step does not ask this person", fx),
            Err(Unheard::Unsigned) => {
                self.refuse_vote(notice, Code::PermissionDenied, "the step takes only what its actor has signed", fx)
            }
            Err(Unheard::OtherPlan) => self.refuse_vote(notice, Code::PermissionDenied, "the step asks about another plan", fx),
        }
    }

    fn refuse_vote(&mut self, notice: Rc<Arrival>, code: Code, why: &'static str, fx: &mut Effects) {
        self.reply_to(notice, Reply::Refused(Fault::new(code, why)), fx);
    }

    /// Steps that wait, those first of which something is due first; or the one of this key, without a look at the others.
    #[cfg(feature = "runtime")]
    pub fn waiting_for_people(&self, now: Now, key: Option<Key>) -> impl Iterator<Item = Waiting> {
        let one = key.and_then(|key| match self.known.get(&key)?.place {
            Place::Job(slot) => Some(slot),
            Place::Journal(_) => None,
        });
        let all = key.is_none().then(|| self.gates.iter().map(|(_, slot)| *slot));
        let jobs = one.into_iter().chain(all.into_iter().flatten()).map(|slot| &self.jobs[slot as usize]);
        jobs.filter(|job| job.state == State::Parked).filter_map(move |job| {
            let gate = job.arrival.work()?.gate.as_deref()?;
            let (asker, deadline_ms) = (job.arrival.asker.as_ref()?, job.written.deadline_ms);
            let escalated = gate.is_escalated(deadline_ms, gate_now(job, now));
            Some(Waiting {
                key: job.key,
                tenant: job.arrival.tenant.clone(),
                assignment_id: asker.assignment_id.clone(),
                run_id: asker.run_id.clone(),
                flow_id: asker.flow_id.clone(),
                step_id: asker.step_id.clone(),
                attempt: asker.attempt,
                inputs: job.arrival.work()?.inputs.clone(),
                gate: gate.clone(),
                votes: job.votes.clone(),
                since_ms: job.arrival.received_ms,
                until_ms: if escalated { deadline_ms } else { gate.escalates_ms(deadline_ms) },
                escalated,
            })
        })
    }

    /// The moment as a step that waits has it, Unix ms: what its deadline is counted back from.
    fn gate_now(&self, now: Now, slot: u32) -> u64 {
        gate_now(&self.jobs[slot as usize], now)
    }

    fn gate(&self, slot: u32) -> Option<Rc<Gate>> {
        self.jobs[slot as usize].arrival.work()?.gate.clone()
    }
}

fn gate_now(job: &Job, now: Now) -> u64 {
    job.written.deadline_ms.saturating_sub(job.deadline_us.saturating_sub(now.mono_us).div_ceil(1_000))
}

/// When something is due of a step that waits, monotonic microseconds.
fn job_due(job: &Job) -> u64 {
    job.retry_at_us
}

/// Those who decided so.
pub(super) fn deciders(votes: &[Vote], decision: Decision) -> Option<Text> {
    let mut names = String::new();
    for vote in votes.iter().filter(|vote| vote.approve == decision.approved && !decision.overdue) {
        if names.len() + vote.actor.len() + 2 > DECIDERS_BYTES_MAX {
            break;
        }
        if !names.is_empty() {
            names.push_str(", ");
        }
        names.push_str(&vote.actor);
    }
    (!names.is_empty()).then(|| Text::from(names))
}
