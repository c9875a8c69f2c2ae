//! What only calls meet. Whoever calls waits for the answer and can be told anything, so that nothing has to be kept to tell
//! it later: load and bad input cost a call nothing but its answer.

use std::rc::Rc;

use super::admit::{NO_ROOM, TOO_MANY};
use super::record::asker_of;
use super::{Job, Shard};
use crate::event::{Effects, Reply};
use crate::ids::Now;
use crate::limits::{CALL_AGAIN_MS, CALLS_PER_KEY_MAX};
use crate::outcome::{Code, Fault};
use crate::planted::{Bug, planted};
use crate::step::Arrival;

impl Shard {
    /// What a call brings and cannot be taken is put aside by its own bytes, and the call is told once that is durable. Neither
    /// its key nor its assignment is touched: put right, it may come under the same names. Half of the room for what waits for
    /// its confirmation is kept for steps; beyond that the call alone is told.
    pub(super) fn decline(&mut self, now: Now, arrival: Rc<Arrival>, fault: &Fault, fx: &mut Effects) {
        let key = self.own_hash(&arrival);
        if self.must_look(key, &arrival, fx) {
            return;
        }
        match self.known.get(&key) {
            Some(memory) => self.again(now, key, memory, arrival, fx),
            None if self.has_room() && self.unpublished < self.settings.limits.unpublished_max / 2 => {
                self.quarantine(now, key, arrival, fault.clone(), fx);
            }
            None => {
                self.tally.refused += 1;
                self.reply_to(arrival, Reply::Refused(fault.clone()), fx);
            }
        }
    }

    /// A call is not taken for load. Nothing is recorded: it may ask again, under the same names.
    pub(super) fn turn_away(&mut self, arrival: Rc<Arrival>, mut fault: Fault, fx: &mut Effects) {
        self.tally.refused += 1;
        fault.retry_after_ms = Some(CALL_AGAIN_MS);
        self.reply_to(arrival, Reply::Refused(fault), fx);
    }

    /// A call rides along with a step that is on its way. What it brought is held like anybody's; of too many the oldest makes
    /// way, whose client is most likely gone.
    pub(super) fn ride(&mut self, now: Now, slot: u32, arrival: Rc<Arrival>, fx: &mut Effects) {
        let bytes = arrival.held_bytes();
        if self.held_bytes + bytes > self.settings.limits.shard_held_bytes_max {
            return self.turn_away(arrival, Fault::new(Code::SystemOverload, NO_ROOM), fx);
        }
        self.held_bytes += bytes;
        let job = self.job(slot);
        job.others.push(arrival.clone());
        let acked = job.acked;
        let riding = job.others.iter().filter(|other| other.is_call()).count();
        let oldest = if riding > CALLS_PER_KEY_MAX { job.others.iter().position(|other| other.is_call()) } else { None };
        let ousted = oldest.map(|at| if planted(Bug::CallTwice) { job.others[at].clone() } else { job.others.remove(at) });
        if acked {
            self.tell_accepted(now, &arrival, fx);
        }
        if let Some(ousted) = ousted {
            self.held_bytes -= ousted.held_bytes();
            self.turn_away(ousted, Fault::new(Code::SystemOverload, TOO_MANY), fx);
        }
    }
}

impl Job {
    /// Whether the asker of `arrival` waits for this step by calls, and in no other way.
    pub(super) fn only_called(&self, arrival: &Arrival) -> bool {
        let asker = asker_of(arrival);
        let mut same = std::iter::once(&self.arrival).chain(&self.others).filter(|other| asker_of(other) == asker).peekable();
        same.peek().is_some() && same.all(|other| other.by_call())
    }
}
