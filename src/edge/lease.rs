//! The lease of one consumer: what stands in the bucket, who may take it, and what its taker inherits. Pure.
//!
//! An owner writes its record again every `LEASE_RENEW_MS` and trusts it for `LEASE_HOLD_MS` from before the writing; who waits takes it
//! once it has stood unchanged for `LEASE_TAKE_MS` before their own eyes. No two clocks are compared: the later ones start later
//! and run longer. A taker's write names the revision it replaces, so an owner that is merely late cannot be missed.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::limits::LEASE_TAKE_MS;

/// A lease as it stands in the bucket, JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The owner's worker id: for people.
    pub(super) worker: String,
    /// The owner's journal: who has it knows what it did.
    pub(super) journal: String,
    /// The owner's life: random.
    pub(super) session: String,
    /// Grows with every owner and every start of one.
    pub(super) epoch: u32,
    /// The epoch in which this journal took it from another.
    pub(super) since: u32,
    /// How it was given back, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) released: Option<Released>,
    /// Messages of the stream up to this sequence that this journal does not know may have run elsewhere.
    pub(super) inherited: u64,
    /// The server that the owner found when it took the lease. Any other, the same one started again included, may know less of
    /// what was handed out since, even to an owner that has outlived the change.
    pub(super) server: String,
    /// Counts renewals.
    pub(super) beat: u64,
}

/// How an owner left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Released {
    /// Everything that it had begun is finished and told.
    Done,
    /// Something may be unfinished in its journal.
    Unfinished,
}

/// Who wants it. Lives on the edge's thread.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) worker: String,
    pub(super) journal: String,
    pub(super) session: String,
    /// The newest epoch that the journal has seen.
    pub(super) epoch: u32,
    /// The journal holds something.
    pub(super) knows: bool,
}

/// How far a consumer and its stream have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    /// The newest message that was handed to somebody.
    pub(super) delivered: u64,
    /// The newest message of the stream.
    pub(super) last: u64,
}

/// One who waits for a lease, with what was seen so far.
#[derive(Debug, Default)]
pub(super) struct Watch {
    seen: Option<(u64, Instant)>,
}

impl Watch {
    /// Looks at what stands there now: (revision, record). `true`: it may be taken.
    pub(super) fn may_take(&mut self, found: Option<(u64, &Record)>, claim: &Claim, now: Instant) -> bool {
        let Some((revision, record)) = found else { return true };
        // Its journal is locked by us, so whoever wrote this with it lives no more.
        if record.released.is_some() || record.journal == claim.journal {
            return true;
        }
        match self.seen {
            Some((seen, since)) if seen == revision => now.duration_since(since) >= Duration::from_millis(LEASE_TAKE_MS),
            _ => {
                self.seen = Some((revision, now));
                false
            }
        }
    }
}

impl Claim {
    /// The record with which `before` is taken. What was handed out is asked for only after the last owner's time was over.
    pub(super) fn take(&self, before: Option<&Record>, reach: Reach, server: &str) -> Record {
        let epoch = before.map_or(0, |record| record.epoch).max(self.epoch) + 1;
        let (since, inherited) = match before {
            Some(record) if record.journal == self.journal => (record.since, record.inherited),
            Some(record) => {
                let handed_out = match record.released {
                    Some(Released::Done) => 0,
                    // What it handed out it may have forgotten with its end.
                    _ if record.server != server => reach.last,
                    _ => reach.delivered,
                };
                (epoch, record.inherited.max(handed_out))
            }
            // There was a lease once, and its bucket is gone: whoever came between has left no trace.
            None if self.epoch > 0 => (epoch, reach.last),
            // A consumer from before there were leases, and this is its worker.
            None if self.knows => (0, 0),
            None => (epoch, reach.delivered),
        };
        Record {
            worker: self.worker.clone(),
            journal: self.journal.clone(),
            session: self.session.clone(),
            epoch,
            since,
            released: None,
            inherited,
            server: server.to_owned(),
            beat: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REACH: Reach = Reach { delivered: 70, last: 100 };

    fn claim(journal: &str) -> Claim {
        Claim { worker: "w".into(), journal: journal.into(), session: "s".into(), epoch: 0, knows: false }
    }

    fn held_by(journal: &str) -> Record {
        Record { inherited: 5, ..claim(journal).take(None, Reach { delivered: 0, last: 0 }, "server") }
    }

    #[test]
    fn what_nobody_holds_is_taken_at_once() {
        let now = Instant::now();
        assert!(Watch::default().may_take(None, &claim("a"), now));
        for released in [Released::Done, Released::Unfinished] {
            let record = Record { released: Some(released), ..held_by("b") };
            assert!(Watch::default().may_take(Some((7, &record)), &claim("a"), now));
        }
        assert!(Watch::default().may_take(Some((7, &held_by("a"))), &claim("a"), now), "one's own");
    }

    #[test]
    fn anothers_is_taken_once_it_has_stood_still_before_our_eyes() {
        let (start, mut watch, record) = (Instant::now(), Watch::default(), held_by("b"));
        let at = |ms| start + Duration::from_millis(ms);
        let mut look = |revision, ms| watch.may_take(Some((revision, &record)), &claim("a"), at(ms));
        assert!(!look(7, 60_000), "however old it is");
        assert!(!look(7, 60_000 + LEASE_TAKE_MS - 1));
        assert!(!look(8, 60_000 + LEASE_TAKE_MS), "it was renewed");
        assert!(!look(8, 60_000 + 2 * LEASE_TAKE_MS - 1));
        assert!(look(8, 60_000 + 2 * LEASE_TAKE_MS));
    }

    #[test]
    fn a_taker_inherits_what_was_handed_out_and_one_who_comes_back_to_its_own_does_not() {
        let taken = |before: Option<&Record>, claim: Claim, server| {
            let record = claim.take(before, REACH, server);
            (record.epoch, record.since, record.inherited)
        };
        let before = held_by("b");
        assert_eq!(taken(Some(&before), claim("a"), "server"), (2, 2, 70));
        assert_eq!(taken(Some(&before), claim("a"), "another"), (2, 2, 100), "the new server may have forgotten some");
        assert_eq!(taken(Some(&before), claim("b"), "another"), (2, 1, 5));
        let left = |released| Record { released: Some(released), ..before.clone() };
        assert_eq!(taken(Some(&left(Released::Done)), claim("a"), "another"), (2, 2, 5), "what it inherited itself stays open");
        assert_eq!(taken(Some(&left(Released::Unfinished)), claim("a"), "server"), (2, 2, 70));
    }

    #[test]
    fn without_a_record_it_depends_on_what_the_journal_knows() {
        let taken = |epoch, knows| {
            let record = Claim { epoch, knows, ..claim("a") }.take(None, REACH, "server");
            (record.epoch, record.since, record.inherited)
        };
        assert_eq!(taken(0, false), (1, 1, 70), "an empty journal at a consumer that has worked");
        assert_eq!(taken(0, true), (1, 0, 0), "the worker from before there were leases");
        assert_eq!(taken(4, true), (5, 5, 100), "the bucket is gone");
    }

    #[test]
    fn a_record_survives_the_bucket() -> serde_json::Result<()> {
        let record = Record { released: Some(Released::Unfinished), ..held_by("b") };
        assert_eq!(serde_json::from_slice::<Record>(&serde_json::to_vec(&record)?)?, record);
        Ok(())
    }
}
