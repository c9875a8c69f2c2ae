//! What is said to a step on its way: a cancel stops it wherever it stands, and its sender is told once that is durable.
//!
//! A notice is found by its key; where it has only an assignment's id, among those that are on their way. A step that ended
//! and was named by its coordinates is found by them alone. Nothing is remembered of a notice that found nothing.

use std::rc::Rc;

use super::{Held, Job, Shard, State};
use crate::dedup::{Place, short_fingerprint};
use crate::event::{Effect, Effects, Letter, Post, Reply, Role};
use crate::ids::{Key, Lsn, Now, Text};
use crate::outcome::{Code, Fault, Status};
use crate::planted::{Bug, planted};
use crate::step::{Arrival, Content, Notice};

impl Shard {
    pub(super) fn noticed(&mut self, now: Now, arrival: Rc<Arrival>, notice: &Notice, fx: &mut Effects) {
        match notice {
            Notice::Refused(fault) => self.reply_to(arrival, Reply::Refused(fault.clone()), fx),
            Notice::Cancel { assignment_id, .. } => self.cancel_asked(now, arrival, assignment_id.as_ref(), fx),
            Notice::Signal { assignment_id, vote } => {
                let (assignment, vote) = (assignment_id.clone(), vote.clone());
                self.signal_asked(now, arrival, assignment.as_ref(), vote, fx);
            }
        }
    }

    fn cancel_asked(&mut self, now: Now, notice: Rc<Arrival>, assignment: Option<&Text>, fx: &mut Effects) {
        if self.must_look_for_notice(&notice, assignment, fx) {
            return;
        }
        match self.meant(&notice, assignment) {
            Some((_, Place::Job(slot))) => self.cancel_job(now, notice, slot, fx),
            Some((key, Place::Journal(lsn))) => self.ask_journal(key, lsn, notice, fx),
            None => self.cancel_unaccepted(now, notice, assignment, fx),
        }
    }

    /// What a notice is about: its key, else a step on its way that this assignment asked for, else the assignment's answer.
    pub(super) fn meant(&self, notice: &Arrival, assignment: Option<&Text>) -> Option<(Key, Place)> {
        if let Some(memory) = self.known.get(&notice.key) {
            return Some((notice.key, memory.place));
        }
        let (tenant, assignment) = (&notice.tenant, assignment?);
        let asks = |arrival: &Arrival| is_of(arrival, tenant, assignment);
        // A message put aside names an assignment too, and is not what it asked for.
        let open = |job: &Job| job.state != State::Free && (job.role != Role::Aside || planted(Bug::CancelAside));
        let found = |job: &Job| open(job) && (asks(&job.arrival) || job.others.iter().any(|other| asks(other)));
        if let Some(slot) = self.jobs.iter().position(found) {
            return Some((self.jobs[slot].key, Place::Job(slot as u32)));
        }
        let answered = self.settings.salt.answer_key(tenant, assignment);
        self.known.get(&answered).map(|memory| (answered, memory.place))
    }

    fn cancel_job(&mut self, now: Now, notice: Rc<Arrival>, slot: u32, fx: &mut Effects) {
        let job = self.job(slot);
        match (job.state, &job.outcome) {
            (State::Queued | State::Running | State::Backoff | State::Parked, _) => {
                job.stopped_by = Some(notice.clone());
                if !planted(Bug::CancelUnheard) {
                    self.cut(now, slot, Status::Cancelled, fx);
                }
                let decided = self.jobs[slot as usize].decided;
                if planted(Bug::ReplyEarly) {
                    return self.reply_to(notice, Reply::Cancelled, fx);
                }
                if let Some(reply) = self.told_with_copy(slot, &notice, Reply::Cancelled) {
                    self.hold_reply(decided, notice, reply);
                }
            }
            (State::Decided, Some(outcome)) => {
                let (decided, status) = (job.decided, outcome.status);
                self.hold_reply(decided, notice, Reply::Ended(status));
            }
            (_, Some(outcome)) => {
                let status = outcome.status;
                self.reply_to(notice, Reply::Ended(status), fx);
            }
            (_, None) => self.reply_to(notice, Reply::Unknown, fx),
        }
    }

    /// One that waits for room has no record yet: it gets its terminal answer now, and is never let in.
    fn cancel_unaccepted(&mut self, now: Now, notice: Rc<Arrival>, assignment: Option<&Text>, fx: &mut Effects) {
        let meant = |arrival: &Rc<Arrival>| {
            arrival.key == notice.key || assignment.is_some_and(|assignment| is_of(arrival, &notice.tenant, assignment))
        };
        let found = self.tenants.seen(&notice.tenant).and_then(|tenant| {
            let at = self.tenants.peek(tenant).waiting.iter().position(|waiting| meant(&waiting.arrival))?;
            Some((tenant, at, self.tenants.peek(tenant).waiting[at].arrival.clone()))
        });
        let Some((tenant, at, arrival)) = found else { return self.reply_to(notice, Reply::Unknown, fx) };
        let (step, key) = (arrival.key, self.answer_key(&arrival));
        if self.must_look(step, &notice, fx) || self.must_look(key, &notice, fx) {
            return;
        }
        self.tenants.get(tenant).waiting.remove(at);
        self.waiting -= 1;
        self.held_bytes -= arrival.held_bytes();
        if let Some(memory) = self.known.get(&step).filter(|memory| memory.fingerprint == short_fingerprint(&arrival.fingerprint))
        {
            // Another message asked for the same while this one waited: its end is the end of both.
            self.arrived(now, arrival, fx);
            return match memory.place {
                Place::Job(slot) => self.cancel_job(now, notice, slot, fx),
                Place::Journal(lsn) => self.ask_journal(step, lsn, notice, fx),
            };
        }
        if let Some(memory) = self.known.get(&key) {
            // Its assignment had its answer while it waited.
            self.answered_before(now, memory, arrival, fx);
            return self.cancel_asked(now, notice, assignment, fx);
        }
        if !planted(Bug::CancelWaiting) {
            self.answer_as(now, key, arrival, Status::Cancelled, cancelled(Some(&notice)), fx);
        }
        let answered = Lsn(self.next_lsn.0 - 1);
        self.hold_reply(answered, notice, Reply::Cancelled);
    }

    /// Replies once frame `lsn` is durable.
    pub(super) fn hold_reply(&mut self, lsn: Lsn, notice: Rc<Arrival>, reply: Reply) {
        let at = self.held.partition_point(|(other, _)| *other <= lsn);
        self.held.insert(at, (lsn, Held::Reply(notice, reply)));
    }

    pub(super) fn reply_to(&mut self, notice: Rc<Arrival>, reply: Reply, fx: &mut Effects) {
        fx.list.push(Effect::Post(Post { confirm: None, arrival: notice, letter: Letter::Reply(reply) }));
    }
}

/// Whether this assignment of this tenant asks with `arrival`.
fn is_of(arrival: &Arrival, tenant: &Text, assignment: &Text) -> bool {
    arrival.tenant == *tenant && arrival.asker.as_ref().is_some_and(|asker| asker.assignment_id == *assignment)
}

/// Why a step that was stopped ended, in the words of the notice that stopped it.
pub(super) fn cancelled(notice: Option<&Arrival>) -> Fault {
    let fault = Fault::new(Code::CancelledByUser, "The step was cancelled.");
    match notice.map(|notice| &notice.content) {
        Some(Content::Notice(Notice::Cancel { details, .. })) => fault.with_details(details.clone()),
        _ => fault,
    }
}

/// Who stopped a step, if that was said.
pub(super) fn actor(job: &Job) -> Option<&Text> {
    match &job.stopped_by.as_ref()?.content {
        Content::Notice(Notice::Cancel { actor, .. }) => actor.as_ref(),
        _ => None,
    }
}
