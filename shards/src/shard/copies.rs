//! Copies of steps that wait for people, kept where the next owner of their stream finds them: frames of the journal, as they would
//! stand there. Once its copy is stored a step's delivery is settled, since no server need hold it any more; and what people say, or
//! decide, is told to nobody before the copy holds it, too. So a worker that dies with its disk takes none of it along.
//!
//! Only a stream's steps have copies, and only where one worker at a time owns the stream; the others stay with who has them.

use std::rc::Rc;

use super::park::deciders;
use super::{Held, Shard, State};
use crate::dedup::{Memory, Place};
use crate::event::{Effect, Effects, Letter, Post, Reply, Role};
use crate::gate::Decision;
use crate::ids::{Lsn, Now};
use crate::journal::Log;
use crate::limits::COPY_BYTES_MAX;
use crate::outcome::{Outcome, Status};
use crate::step::{Adopted, Arrival, Origin, Settle, Source, Work};

/// One step's copy. Lives on its core.
#[derive(Debug, Default)]
pub(super) struct Copy {
    /// A writing of it is on its way: never two, so that no older one comes to lie over a newer.
    under_way: bool,
    /// It lacks what has been said since.
    behind: bool,
    /// It is there, and the step's delivery is settled.
    stored: bool,
    /// The outcome is in it, or will be with the next writing.
    decided: bool,
    /// It is being taken away.
    leaving: bool,
    /// Who is told what, once it holds all that was said by then.
    replies: Vec<(Rc<Arrival>, Reply)>,
}

impl Copy {
    /// One that another owner has left.
    pub(super) fn left(decided: bool) -> Copy {
        Copy { stored: true, decided, ..Copy::default() }
    }
}

impl Shard {
    /// Whether a step may have a copy: it waits for people, a stream brought it, and it fits.
    fn may_have_copy(&self, slot: u32) -> bool {
        let job = &self.jobs[slot as usize];
        let delivery = &job.arrival.delivery;
        let headers: usize = delivery.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.settings.copies
            && job.role == Role::Step
            && job.arrival.work().is_some_and(|work| work.gate.is_some())
            && matches!(delivery.origin, Origin::Stream(_) | Origin::Journal { source: Source::Stream, .. })
            && delivery.body.len() + headers <= COPY_BYTES_MAX
    }

    /// A step is to have a copy from its next writing on, if it may.
    pub(super) fn has_copy(&mut self, slot: u32) {
        if self.may_have_copy(slot) && self.jobs[slot as usize].copy.is_none() {
            self.job(slot).copy = Some(Box::default());
        }
    }

    /// A step that waits has its copy, if it may.
    pub(super) fn begin_copy(&mut self, now: Now, slot: u32, fx: &mut Effects) {
        self.has_copy(slot);
        let job = &self.jobs[slot as usize];
        if job.state == State::Parked && job.copy.as_ref().is_some_and(|copy| !copy.stored && !copy.under_way) {
            self.renew_copy(now, slot, fx);
        }
    }

    /// What waits since an earlier life and came in no copy, or in one that is behind, has one written.
    pub(super) fn copies_read(&mut self, now: Now, fx: &mut Effects) {
        // One that is not told to be accepted may not be durable: it has its copy written then.
        let waiting: Vec<u32> = self.gates.iter().map(|(_, slot)| *slot).filter(|slot| self.jobs[*slot as usize].acked).collect();
        for slot in waiting {
            self.begin_copy(now, slot, fx);
        }
    }

    /// The outcome of a step that another owner has had, told by this one: its copy goes then.
    pub(super) fn left_copy(&mut self, slot: u32) {
        if self.may_have_copy(slot) {
            self.job(slot).copy = Some(Box::new(Copy::left(true)));
        }
    }

    /// Writes the copy with all that was said by now, or once the writing that is on its way is stored.
    fn renew_copy(&mut self, now: Now, slot: u32, fx: &mut Effects) {
        let Some(copy) = &mut self.job(slot).copy else { return };
        copy.behind = copy.under_way;
        if std::mem::replace(&mut copy.under_way, true) {
            return;
        }
        let mut log = Log::default();
        let job = &self.jobs[slot as usize];
        let Some(work) = job.arrival.work() else { return };
        self.accepted_frame(now, &job.arrival, work, job.written.deadline_ms, &mut log);
        for vote in &job.votes {
            log.signal(self.head(job.key, &job.arrival), vote);
        }
        if let Some(outcome) = &job.outcome {
            self.result_frame(now, slot, outcome, &mut log);
        }
        let mut frames = std::mem::take(&mut log.bytes);
        // Others may write there, too; what they wrote is not taken for ours.
        let tag = self.settings.salt.copy_tag(&frames);
        frames.extend_from_slice(&tag);
        self.post_copy(slot, Letter::Copy { frames: frames.into() }, fx);
    }

    /// Whether a copy is one of this deployment's: its frames and the tag behind them.
    pub fn is_copy(&self, frames: &[u8], tag: &[u8; 16]) -> bool {
        self.settings.salt.copy_tag(frames) == *tag
    }

    fn post_copy(&mut self, slot: u32, letter: Letter, fx: &mut Effects) {
        let (confirm, arrival) = (Some(self.ticket(slot)), self.jobs[slot as usize].arrival.clone());
        fx.list.push(Effect::Post(Post { confirm, arrival, letter }));
    }

    /// What somebody said is durable: they are told, once the copy has it where there is one.
    pub(super) fn said(&mut self, now: Now, slot: u32, notice: Rc<Arrival>, reply: Reply, fx: &mut Effects) {
        let new = reply == Reply::Noted;
        let Some(reply) = self.told_with_copy(slot, &notice, reply) else {
            // Where it was decided, the outcome's own writing follows.
            let job = &self.jobs[slot as usize];
            let idle = job.copy.as_ref().is_some_and(|copy| !copy.under_way);
            if (new || idle) && job.state == State::Parked {
                self.renew_copy(now, slot, fx);
            }
            return;
        };
        self.reply_to(notice, reply, fx);
    }

    /// Keeps a reply until the copy holds what it tells of; gives it back where nothing is to be waited for.
    pub(super) fn told_with_copy(&mut self, slot: u32, notice: &Rc<Arrival>, reply: Reply) -> Option<Reply> {
        let job = self.job(slot);
        let waits = matches!(job.state, State::Parked | State::Decided);
        let Some(copy) = job.copy.as_mut().filter(|copy| waits && !copy.leaving) else { return Some(reply) };
        if reply != Reply::Noted && job.state == State::Parked && copy.stored && !copy.under_way {
            return Some(reply);
        }
        copy.replies.push((notice.clone(), reply));
        None
    }

    /// Whether a durable outcome must wait until the copy has it.
    pub(super) fn outcome_waits_for_copy(&mut self, now: Now, slot: u32, fx: &mut Effects) -> bool {
        let Some(copy) = &mut self.job(slot).copy else { return false };
        if !std::mem::replace(&mut copy.decided, true) {
            self.renew_copy(now, slot, fx);
        }
        self.jobs[slot as usize].copy.as_ref().is_some_and(|copy| copy.under_way)
    }

    /// A writing of the copy is stored. True: it was one.
    pub(super) fn copied(&mut self, now: Now, slot: u32, fx: &mut Effects) -> bool {
        let job = self.job(slot);
        let state = job.state;
        if !matches!(state, State::Parked | State::Decided) {
            return false;
        }
        let Some(copy) = job.copy.as_mut().filter(|copy| copy.under_way) else { return false };
        copy.under_way = false;
        if std::mem::take(&mut copy.behind) {
            self.renew_copy(now, slot, fx);
            return true;
        }
        copy.stored = true;
        // An outcome that is not durable yet has a writing of its own to come, and nobody is told of it before.
        if state == State::Decided && !copy.decided {
            return true;
        }
        for (notice, reply) in std::mem::take(&mut copy.replies) {
            self.reply_to(notice, reply, fx);
        }
        if state == State::Decided {
            self.post_outcome(now, slot, fx);
            return true;
        }
        self.settle_by_copy(slot, fx);
        true
    }

    /// No server need hold a step that has its copy.
    fn settle_by_copy(&mut self, slot: u32, fx: &mut Effects) {
        let job = self.job(slot);
        let asker = job.arrival.asker.as_ref().map(|asker| asker.id);
        let same = |other: &Arrival| other.asker.as_ref().map(|asker| asker.id) == asker;
        let mut settled = |arrival: &Arrival| match &arrival.delivery.origin {
            Origin::Stream(token) => {
                fx.list.push(Effect::Settle { token: token.clone(), how: Settle::Ack });
                true
            }
            _ => false,
        };
        job.others.retain(|other| !(same(other) && settled(other)));
        if settled(&job.arrival) {
            let mut arrival = Arrival::clone(&job.arrival);
            arrival.delivery.origin = Origin::Journal { source: Source::Stream, since_ms: arrival.since_ms() };
            job.arrival = Rc::new(arrival);
        }
    }

    /// A delivery of a step that no server need hold: settled at once. True: it was one.
    pub(super) fn settled_by_copy(&mut self, slot: u32, arrival: &Arrival, fx: &mut Effects) -> bool {
        let job = &self.jobs[slot as usize];
        let same = job.arrival.asker.as_ref().map(|asker| asker.id) == arrival.asker.as_ref().map(|asker| asker.id);
        let stored = job.copy.as_ref().is_some_and(|copy| copy.stored);
        match &arrival.delivery.origin {
            Origin::Stream(token) if stored && same && job.state == State::Parked => {
                fx.list.push(Effect::Settle { token: token.clone(), how: Settle::Ack });
                true
            }
            _ => false,
        }
    }

    /// All is told: the copy goes before the step does. True: it is on its way.
    pub(super) fn copy_leaves(&mut self, slot: u32, fx: &mut Effects) -> bool {
        let Some(copy) = &mut self.job(slot).copy else { return false };
        if std::mem::replace(&mut copy.leaving, true) {
            return false;
        }
        self.post_copy(slot, Letter::NoCopy, fx);
        self.job(slot).unconfirmed = 1;
        true
    }

    /// A copy that another owner left of a step which is known here.
    pub(super) fn left_behind(&mut self, now: Now, memory: Memory, arrival: Rc<Arrival>, fx: &mut Effects) {
        match memory.place {
            // While it is on its way here, it is this life's own; an earlier life may have written it.
            Place::Job(slot) => {
                let job = self.job(slot);
                let Some(adopted) = &arrival.adopted else { return };
                let same = job.state == State::Parked && adopted.outcome.is_none() && adopted.votes == job.votes;
                if let Some(copy) = job.copy.as_mut().filter(|copy| same && !copy.under_way) {
                    copy.stored = true;
                }
            }
            // Nobody was told, and no stream will ask: this is the asking.
            Place::Journal(_) if self.untold.contains_key(&arrival.key) => {
                let arrival = Rc::new(Arrival { adopted: None, ..Arrival::clone(&arrival) });
                self.again(now, arrival.key, memory, arrival, fx);
            }
            Place::Journal(_) => fx.list.push(Effect::Post(Post { confirm: None, arrival, letter: Letter::NoCopy })),
        }
    }

    /// A step that another owner accepted, by the copy that it left: it goes on here where it stood there.
    pub(super) fn adopt(&mut self, now: Now, arrival: &Arrival, work: &Work, adopted: &Adopted, fx: &mut Effects) {
        self.released.remove(&arrival.key);
        // As its frame says.
        self.retain.stamp(arrival.since_ms());
        let arrival = Rc::new(Arrival { adopted: None, ..arrival.clone() });
        let tenant = self.tenants.find(&arrival.tenant);
        let charge = self.tenants.get(tenant).account.charge_parked_recovered();
        let lsn = self.log_accepted_until(now, &arrival, work, adopted.deadline_ms, fx);
        self.tally.accepted += 1;
        let slot = self.open_parked(now, arrival, lsn, charge, adopted.deadline_ms);
        // Its sender was told when it was accepted.
        self.job(slot).acked = true;
        self.job(slot).copy = Some(Box::new(Copy::left(adopted.outcome.is_some())));
        for vote in &adopted.votes {
            self.log_signal(slot, vote, fx);
            self.job(slot).votes.push(vote.clone().own());
        }
        let approved = adopted.outcome.as_ref().map(|outcome| outcome.status == Status::Ok);
        self.job(slot).decided_by = approved.and_then(|approved| deciders(&adopted.votes, Decision { approved, overdue: false }));
        self.held.push_back((Lsn(self.next_lsn.0 - 1), Held::Accepted(slot)));
        match &adopted.outcome {
            Some(outcome) => {
                self.job(slot).state = State::Queued;
                self.settle(now, slot, Outcome::clone(outcome), fx);
            }
            None => self.park(now, slot, fx),
        }
    }
}
