//! Copies of steps that wait for people, kept where the next owner of their stream finds them: frames of the journal, as they would
//! stand there. Once its copy is stored a step's delivery is settled, since no server need hold it any more; and what people say, or
//! decide, is told to nobody before the copy holds it, too. So a worker that dies with its disk takes none of it along.
//!
//! Only a stream's steps have copies, and only where one worker at a time owns the stream; the others stay with who has them.

use std::rc::Rc;

use super::{Held, Shard, State};
use crate::event::{Effect, Effects, Letter, Post, Reply};
use crate::ids::{Lsn, Now};
use crate::journal::Log;
use crate::limits::COPY_BYTES_MAX;
use crate::outcome::Outcome;
use crate::step::{Adopted, Arrival, Origin, Settle, Source, Work};

/// One step's copy. Lives on its core.
#[derive(Debug, Default)]
pub(super) struct Copy {
    /// Writings of it that are on their way.
    under_way: u32,
    /// It is there, and the step's delivery is settled.
    stored: bool,
    /// The outcome is in it.
    decided: bool,
    /// It is being taken away.
    leaving: bool,
    /// Who is told once it holds what they said.
    replies: Vec<Rc<Arrival>>,
}

impl Copy {
    /// One that another owner has left.
    pub(super) fn left(decided: bool) -> Copy {
        Copy { stored: true, decided, ..Copy::default() }
    }
}

impl Shard {
    /// A step that waits is to have a copy, if it may.
    pub(super) fn begin_copy(&mut self, now: Now, slot: u32, fx: &mut Effects) {
        let job = &self.jobs[slot as usize];
        let arrival = &job.arrival;
        let streamed = matches!(arrival.delivery.origin, Origin::Stream(_) | Origin::Journal { source: Source::Stream, .. });
        let small = arrival.delivery.body.len() <= COPY_BYTES_MAX;
        if !self.settings.copies || !streamed || !small || job.copy.is_some() || job.state != State::Parked {
            return;
        }
        self.job(slot).copy = Some(Box::default());
        self.write_copy(now, slot, fx);
    }

    /// A step whose end an earlier life decided: its copy is taken away once that is told.
    pub(super) fn has_copy(&mut self, slot: u32) {
        let arrival = &self.jobs[slot as usize].arrival;
        let streamed = matches!(arrival.delivery.origin, Origin::Journal { source: Source::Stream, .. });
        if self.settings.copies && streamed && arrival.work().is_some_and(|work| work.gate.is_some()) {
            self.job(slot).copy = Some(Box::default());
        }
    }

    fn write_copy(&mut self, now: Now, slot: u32, fx: &mut Effects) {
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
        let letter = Letter::Copy { frames: std::mem::take(&mut log.bytes).into() };
        self.post_copy(slot, letter, fx);
        if let Some(copy) = &mut self.job(slot).copy {
            copy.under_way += 1;
        }
    }

    fn post_copy(&mut self, slot: u32, letter: Letter, fx: &mut Effects) {
        let (confirm, arrival) = (Some(self.ticket(slot)), self.jobs[slot as usize].arrival.clone());
        fx.list.push(Effect::Post(Post { confirm, arrival, letter }));
    }

    /// What somebody said is durable: they are told, once the copy has it where there is one.
    pub(super) fn said(&mut self, now: Now, slot: u32, notice: Rc<Arrival>, fx: &mut Effects) {
        let job = self.job(slot);
        let waits = job.state == State::Parked;
        match &mut job.copy {
            Some(copy) if !copy.leaving && (waits || job.state == State::Decided) => {
                copy.replies.push(notice);
                // Where it was decided, the outcome's own writing follows.
                if waits {
                    self.write_copy(now, slot, fx);
                }
            }
            _ => self.reply_to(notice, Reply::Noted, fx),
        }
    }

    /// Whether a durable outcome must wait until the copy has it.
    pub(super) fn outcome_waits_for_copy(&mut self, now: Now, slot: u32, fx: &mut Effects) -> bool {
        let Some(copy) = &mut self.job(slot).copy else { return false };
        if !std::mem::replace(&mut copy.decided, true) {
            self.write_copy(now, slot, fx);
        }
        self.jobs[slot as usize].copy.as_ref().is_some_and(|copy| copy.under_way > 0)
    }

    /// A writing of the copy is stored. True: it was one.
    pub(super) fn copied(&mut self, now: Now, slot: u32, fx: &mut Effects) -> bool {
        let job = self.job(slot);
        if !matches!(job.state, State::Parked | State::Decided) {
            return false;
        }
        let Some(copy) = job.copy.as_mut().filter(|copy| copy.under_way > 0) else { return false };
        copy.under_way -= 1;
        if copy.under_way > 0 {
            return true;
        }
        let (replies, decided) = (std::mem::take(&mut copy.replies), copy.decided);
        copy.stored = true;
        for notice in replies {
            self.reply_to(notice, Reply::Noted, fx);
        }
        let job = self.job(slot);
        if job.state == State::Decided {
            if decided {
                self.post_outcome(now, slot, fx);
            }
            return true;
        }
        if let Origin::Stream(token) = &job.arrival.delivery.origin {
            let (token, origin) = (token.clone(), Origin::Journal { source: Source::Stream, since_ms: token.stored_ms });
            let mut arrival = Arrival::clone(&job.arrival);
            arrival.delivery.origin = origin;
            job.arrival = Rc::new(arrival);
            fx.list.push(Effect::Settle { token, how: Settle::Ack });
        }
        true
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
    pub(super) fn left_behind(&mut self, arrival: Rc<Arrival>, fx: &mut Effects) {
        // While it is on its way here, it is this life's own.
        if !matches!(self.known.get(&arrival.key).map(|memory| memory.place), Some(crate::dedup::Place::Job(_))) {
            fx.list.push(Effect::Post(Post { confirm: None, arrival, letter: Letter::NoCopy }));
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
            self.job(slot).votes.push(vote.clone());
        }
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
