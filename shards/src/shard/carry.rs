//! Carrying forward: what the oldest segment still says of steps without an end is written again at the journal's end, so that
//! one step that waits for long does not keep all that came after it.
//!
//! A step's message goes first and its tries and strikes behind it; a fold that finds the message of an open step again keeps what
//! it knows of it, so that a crash between these frames loses nothing: the segment goes only when all of them are durable.

use super::record::asker_of;
use super::{Claim, Shard, State};
use crate::event::{Effects, Role};
use crate::ids::{Lsn, Now};
use crate::limits::{CARRY_BYTES_MAX, CARRY_LOOKS_MAX, CARRY_MAX};
use crate::planted::{Bug, planted};

/// How far carrying has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carried {
    /// Nothing in the segment is needed any more.
    All,
    /// Some of it is: the rest follows with the next look.
    Some,
    /// What is needed must stay where it is for now.
    Stuck,
}

impl Shard {
    /// Carries forward what stands in frames up to `to`, as much of it as one look may.
    pub(super) fn carry(&mut self, now: Now, to: Lsn, fx: &mut Effects) -> Carried {
        if self.disk_full() {
            return Carried::Stuck;
        }
        let (mut carried, mut bytes) = (0, 0);
        for _ in 0..CARRY_LOOKS_MAX {
            let Some((lsn, slot)) = self.unfinished.front().copied() else { return Carried::All };
            let job = &self.jobs[slot as usize];
            if job.state == State::Free || job.accepted != lsn {
                self.unfinished.pop_front();
                continue;
            }
            if lsn > to {
                return Carried::All;
            }
            if !self.may_be_carried(slot) {
                return if carried > 0 { Carried::Some } else { Carried::Stuck };
            }
            if carried == CARRY_MAX || bytes >= CARRY_BYTES_MAX {
                return Carried::Some;
            }
            carried += 1;
            bytes += self.jobs[slot as usize].arrival.held_bytes();
            self.unfinished.pop_front();
            self.carry_one(now, slot, fx);
        }
        Carried::Some
    }

    /// An outcome stays where it is, with its audit number, until it is told: that is over when a server is there. A claim that is
    /// being made is known by the frame it was made for.
    fn may_be_carried(&self, slot: u32) -> bool {
        let job = &self.jobs[slot as usize];
        let told = job.written.tries == 0 || job.written.interrupted || job.written.retry_at_ms.is_some();
        job.role == Role::Step
            && matches!(job.state, State::Queued | State::Running | State::Backoff | State::Parked)
            && matches!(job.claim, Claim::Needless | Claim::Due)
            && job.arrival.work().is_some()
            && told
    }

    fn carry_one(&mut self, now: Now, slot: u32, fx: &mut Effects) {
        self.tally.carried += 1;
        let job = &self.jobs[slot as usize];
        let (arrival, written, key) = (job.arrival.clone(), job.written, job.key);
        let Some(work) = arrival.work() else { return };
        let lsn = self.log_accepted_until(now, &arrival, work, written.deadline_ms, fx);
        // The message may be another one than the first, which a stream has delivered since.
        let owned = self.owned(&arrival);
        let job = self.job(slot);
        job.accepted = lsn;
        job.written.owned = owned;
        job.written.asker = asker_of(&arrival);
        self.unfinished.push_back((lsn, slot));
        if written.tries > 0 && !planted(Bug::CarryWithoutTries) {
            self.log_started_again(now, slot, fx);
            if let Some(at_ms) = written.retry_at_ms.filter(|_| !written.interrupted) {
                self.log_retry_at_again(slot, at_ms, fx);
            }
        }
        self.log_votes_again(slot, fx);
        if let Some((count, boot)) = self.strikes.newest(&key) {
            let lsn = self.log_struck(now, key, arrival.partition, count, boot, fx);
            self.strikes.recall(key, count, boot, lsn);
        }
    }
}
