//! Finished keys of closed segments leave the memory: they are sealed into key files, of which only filters are kept here,
//! and looked up there when a filter says that an arrival may mean one of them.
//!
//! What is sealed is taken at one moment, between two events, together with all else that a boot must know of the frames so
//! far (a [`Seal`]), and goes out once these frames are durable. Until the key file stands its keys are remembered here.
//!
//! The gate: whoever asks what is known of a key has it looked up first ([`Shard::must_look`]). The arrival waits, what is found
//! is remembered here again, and the arrival goes on from the start. Nothing else in the machine knows of key files.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use hashbrown::HashMap;

use super::record::asker_of;
use super::{Held, Job, Shard, State, Written};
use crate::dedup::Entry;
use crate::event::{Effect, Effects, Role, Sealed};
use crate::fold::{Owned, Restored, Unfinished};
use crate::ids::{AskerId, Key, Lsn, Now, Text};
use crate::keys::KeyMap;
use crate::limits::{FILTER_BITS_PER_KEY, FORGET_MAX};
use crate::planted::{Bug, planted};
use crate::snapshot::Seal;
use crate::step::{Arrival, Content, Origin, Source};

/// What lies in key files. Lives on its core.
#[derive(Debug, Default)]
pub(super) struct Sealing {
    /// Somebody carries out seals.
    on: bool,
    /// One is on its way.
    busy: bool,
    /// Another is wanted.
    due: bool,
    /// Where the last one ended.
    from: Lsn,
    /// The newest epoch of ownership that earlier lives saw.
    pub(super) owner_epoch: u32,
    /// Oldest first.
    files: Vec<Arc<KeyMap>>,
    /// Some of them hold assignments' answers.
    answers: bool,
    /// Counts the sets of files: what was found absent was so in one of them.
    edition: u32,
    /// Sealed keys that are still remembered here, and are to be forgotten.
    stale: Vec<Entry>,
    /// Keys that were found in key files, the oldest first.
    recalled: VecDeque<Entry>,
    recalled_max: usize,
    /// Who waits for which key.
    looking: HashMap<Key, Vec<Asked>>,
    /// What the arrival that is being dealt with was found not to be in the files.
    absent: Vec<Key>,
    /// The arrival that is being dealt with has waited for room too long.
    pub(super) overdue: bool,
}

/// An arrival that waits for something to be read. Lives on its core.
#[derive(Debug)]
pub(super) struct Asked {
    arrival: Rc<Arrival>,
    /// Keys that are not in the key files…
    absent: Vec<Key>,
    /// …of this edition.
    edition: u32,
    /// It has waited for room too long.
    overdue: bool,
}

impl Sealing {
    pub(super) fn looks(&self) -> usize {
        self.looking.len()
    }

    /// Keys that lie in files alone. Those that were forgotten since, or lie in two, are counted all the same.
    pub(super) fn keys(&self) -> u64 {
        let files: u64 = self.files.iter().map(|file| file.facts().count).sum();
        files.saturating_sub((self.stale.len() + self.recalled.len()) as u64)
    }

    /// What the files take of the journal's budget: their entries and filters.
    pub(super) fn bytes(&self) -> u64 {
        let count: u64 = self.files.iter().map(|file| file.facts().count).sum();
        count * (Entry::BYTES as u64 + FILTER_BITS_PER_KEY / 8)
    }

    pub(super) fn has_answers(&self) -> bool {
        self.answers
    }

    fn may_hold(&self, key: &Key) -> bool {
        self.files.iter().any(|file| file.may_hold(key))
    }

    /// The arrival that was being dealt with is.
    pub(super) fn nobody(&mut self) {
        self.absent.clear();
        self.overdue = false;
    }
}

impl Shard {
    /// From now on closed segments are sealed; `files` stand already, for all frames before `from`. With `soon` there is much
    /// behind them. Of what is looked up there, `recalled_max` keys stay in memory.
    pub fn keep_sealed(&mut self, from: Lsn, files: Vec<Arc<KeyMap>>, soon: bool, recalled_max: usize) {
        (self.sealing.on, self.sealing.due, self.sealing.from) = (true, soon, from);
        self.sealing.recalled_max = recalled_max;
        self.stand(files);
    }

    /// These files stand from now on.
    pub(super) fn stand(&mut self, files: Vec<Arc<KeyMap>>) {
        self.sealing.answers = files.iter().any(|file| file.facts().answers > 0);
        self.sealing.files = files;
        self.sealing.edition += 1;
    }

    /// A segment has closed.
    pub(super) fn seal_soon(&mut self, fx: &mut Effects) {
        self.sealing.due = self.sealing.on;
        self.seal_if_due(fx);
    }

    pub(super) fn seal_if_due(&mut self, fx: &mut Effects) {
        if !self.sealing.due || self.sealing.busy || self.next_lsn <= self.sealing.from {
            return;
        }
        (self.sealing.due, self.sealing.busy) = (false, true);
        let seal = self.seal();
        let newest = Lsn(seal.before.0 - 1);
        if newest <= self.durable || planted(Bug::SealBeforeDurable) {
            fx.list.push(Effect::Seal(seal));
        } else {
            self.held.push_back((newest, Held::Seal(seal)));
        }
    }

    fn seal(&mut self) -> Box<Seal> {
        let rest = self.picture();
        let finished = self.known.take_finished();
        Box::new(Seal { from: self.sealing.from, before: self.next_lsn, finished, rest })
    }

    /// What all frames so far came to, but for the finished keys: as a fold would tell it.
    pub(super) fn picture(&mut self) -> Restored {
        let floor = self.retain.floor();
        self.left_open.retain(|_, one| one.message >= floor);
        let jobs = self.jobs.iter().filter_map(Job::unfinished);
        let mut unfinished: Vec<Unfinished> = jobs.chain(self.left_open.values().cloned()).collect();
        unfinished.retain(|one| one.message >= floor);
        unfinished.sort_by_key(|one| one.message);
        let audited = self.tenants.iter().filter(|tenant| tenant.audit_seq > 0);
        let mut strikes = self.strikes.clone();
        strikes.forget_below(floor);
        let released = self.released.iter().filter(|(_, released)| released.lsn >= floor);
        Restored {
            unfinished,
            tenants: audited.map(|tenant| (Text::clone(&tenant.name), tenant.audit_seq)).collect(),
            strikes,
            released: released.map(|(key, released)| (*key, *released)).collect(),
            owner_epoch: self.settings.owner_epoch.max(self.sealing.owner_epoch),
            wall_ms: self.wall_floor_ms,
            floor,
            watermark_ms: self.retain.watermark_ms(),
            newest: self.retain.newest(),
            ..Restored::default()
        }
    }

    /// The keys of a seal lie in a file, or are ours to remember still.
    pub(super) fn sealed(&mut self, sealed: Sealed, fx: &mut Effects) {
        self.sealing.busy = false;
        match sealed.files {
            Some(files) => {
                self.sealing.from = files.last().map_or(self.sealing.from, |file| file.facts().to);
                self.stand(files);
                match self.sealing.stale.is_empty() {
                    true => self.sealing.stale = sealed.entries,
                    false => self.sealing.stale.extend(sealed.entries),
                }
            }
            None => self.known.put_back(sealed.entries),
        }
        self.seal_if_due(fx);
    }

    /// Forgets some of what lies in key files now, but for those that somebody waits for.
    pub(super) fn forget_sealed(&mut self) {
        if !self.sealing.on {
            return;
        }
        for _ in 0..FORGET_MAX {
            let Some(entry) = self.sealing.stale.pop() else { break };
            self.let_go(entry);
        }
        if self.sealing.stale.is_empty() {
            self.sealing.stale = Vec::new();
            self.known.shrink_next();
        }
        // Everybody's turn comes once.
        for _ in 0..self.sealing.recalled.len().saturating_sub(self.sealing.recalled_max).min(FORGET_MAX) {
            let Some(entry) = self.sealing.recalled.pop_front() else { break };
            self.let_go(entry);
        }
    }

    fn let_go(&mut self, entry: Entry) {
        if !self.probing.is_empty() && self.probing.contains_key(&entry.key) {
            self.sealing.recalled.push_back(entry);
        } else {
            self.known.forget_entry(&entry);
        }
    }

    /// An arrival with what it was found not to be, for as long as it waits.
    pub(super) fn asked(&self, arrival: Rc<Arrival>) -> Asked {
        let Sealing { absent, edition, overdue, .. } = &self.sealing;
        Asked { arrival, absent: absent.clone(), edition: *edition, overdue: *overdue }
    }

    /// The wait of an arrival is over: it is dealt with until [`Sealing::nobody`], or the next.
    pub(super) fn take_up(&mut self, asked: Asked) -> Rc<Arrival> {
        let Asked { arrival, absent, edition, overdue } = asked;
        // It may have come into a file meanwhile.
        self.sealing.absent = if edition == self.sealing.edition { absent } else { Vec::new() };
        self.sealing.overdue = overdue;
        arrival
    }

    /// Whether `key` has to be looked up before anybody can say what is known of it; then the arrival waits for that.
    pub(crate) fn must_look(&mut self, key: Key, arrival: &Rc<Arrival>, fx: &mut Effects) -> bool {
        if self.sealing.files.is_empty() || !self.sealing.may_hold(&key) || planted(Bug::SkipLook) {
            return false;
        }
        if self.known.get(&key).is_some() || self.sealing.absent.contains(&key) {
            return false;
        }
        let asked = self.asked(arrival.clone());
        let waiting = self.sealing.looking.entry(key).or_default();
        waiting.push(asked);
        if waiting.len() == 1 {
            fx.list.push(Effect::Look { key });
        }
        true
    }

    /// The same for all keys that an arrival may turn out to mean.
    #[inline]
    pub(super) fn must_look_first(&mut self, arrival: &Rc<Arrival>, fx: &mut Effects) -> bool {
        if self.sealing.files.is_empty() || matches!(arrival.content, Content::Notice(_)) {
            return false;
        }
        if self.must_look(arrival.key, arrival, fx) {
            return true;
        }
        if arrival.asker.is_some() && self.sealing.has_answers() {
            let key = self.answer_key(arrival);
            if self.must_look(key, arrival, fx) {
                return true;
            }
        }
        let step = if matches!(arrival.content, Content::Refusal(_)) { self.assignment_key(arrival) } else { None };
        step.is_some_and(|step| self.must_look(step, arrival, fx))
    }

    /// The same for the keys that a notice may mean.
    pub(super) fn must_look_for_notice(&mut self, notice: &Rc<Arrival>, assignment: Option<&Text>, fx: &mut Effects) -> bool {
        if self.sealing.files.is_empty() {
            return false;
        }
        let answer = assignment.map(|assignment| self.settings.salt.answer_key(&notice.tenant, assignment));
        self.must_look(notice.key, notice, fx) || answer.is_some_and(|answer| self.must_look(answer, notice, fx))
    }

    /// What the key files hold of a key: it is known again, and whoever waited goes on from the start.
    pub(super) fn looked(&mut self, now: Now, key: Key, found: Option<Entry>, fx: &mut Effects) {
        // What stands below the floor is forgotten, though not yet gone.
        let found = found.filter(|entry| entry.lsn() >= self.retain.floor());
        if let Some(entry) = found.filter(|_| self.known.get(&key).is_none()) {
            self.known.recall(entry);
            self.sealing.recalled.push_back(entry);
        }
        for asked in self.sealing.looking.remove(&key).unwrap_or_default() {
            let overdue = asked.overdue;
            let arrival = self.take_up(asked);
            if found.is_none() {
                self.sealing.absent.push(key);
            }
            if overdue {
                self.waited(now, arrival, true, fx);
            } else {
                self.arrived(now, arrival, fx);
            }
            self.sealing.nobody();
        }
    }

    /// What the frames of a new job say. One that an earlier life began goes on from there.
    pub(super) fn written(&mut self, key: Key, arrival: &Arrival, accepted: Lsn, role: Role) -> Written {
        if role != Role::Replay
            && !self.left_open.is_empty()
            && let Some(one) = self.left_open.remove(&key).filter(|one| one.message == accepted)
        {
            let Unfinished { asker, tries, interrupted, retry_at_ms, deadline_ms, owned, .. } = one;
            return Written { asker, tries, interrupted, retry_at_ms, deadline_ms, owned };
        }
        let asker = if role == Role::Aside { AskerId([0; 16]) } else { asker_of(arrival) };
        Written { asker, tries: 0, interrupted: false, retry_at_ms: None, deadline_ms: 0, owned: self.owned(arrival) }
    }

    /// Whose a message is that is written now.
    pub(super) fn owned(&self, arrival: &Arrival) -> Owned {
        let streamed = matches!(&arrival.delivery.origin, Origin::Stream(_) | Origin::Journal { source: Source::Stream, .. });
        Owned {
            partition: arrival.partition,
            epoch: self.settings.owner_epoch,
            streamed: streamed && !planted(Bug::KeepSuperseded),
        }
    }
}

impl Job {
    /// The key as one without an end, if the journal has none of it: a replay has no frames, and one that is published is done,
    /// though its work may not be.
    fn unfinished(&self) -> Option<Unfinished> {
        let done = self.state == State::Free || (self.state == State::Posting && self.unconfirmed == 0);
        if done || self.role == Role::Replay {
            return None;
        }
        let decided = matches!(self.state, State::Decided | State::Posting);
        let Written { asker, tries, interrupted, retry_at_ms, deadline_ms, owned } = self.written;
        Some(Unfinished {
            key: self.key,
            fingerprint: self.arrival.fingerprint,
            asker,
            message: self.accepted,
            result: decided.then_some(self.decided),
            tries,
            interrupted,
            retry_at_ms: retry_at_ms.filter(|_| !planted(Bug::ForgetRetryTime)),
            deadline_ms,
            votes: self.votes.clone(),
            role: self.role,
            owned,
        })
    }
}
