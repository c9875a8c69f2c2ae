//! What only shows over time: audit numbers without a gap, deadlines that are kept, waits between tries that are waited, watermarks
//! that cover what was forgotten, and deliveries that are let be once they are settled.

use std::collections::BTreeMap;

use bytes::Bytes;
use shards::audit::{AuditItem, AuditKind, outcome_digest};
use shards::ids::{Key, Lsn, Text};
use shards::journal::view::Frames;
use shards::journal::{Fact, Frame, FrameView, Kind, SOURCE_STREAM, decode};
use shards::outcome::Outcome;
use shards::step::Settle;

use crate::job::Job;

type Verdict = Result<(), String>;

/// A timer goes off within the wheel's resolution, and the driver looks a little later.
const LATE_US_MAX: u64 = 20_000;

/// The observer of time.
#[derive(Debug, Default)]
pub struct Watch {
    /// The newest durable audit item of a tenant on a shard: its frame and number.
    audits: BTreeMap<(usize, Text), (Lsn, u64)>,
    /// The stream timestamps of durable frames, by shard; those that were forgotten are gone.
    stamps: [BTreeMap<Lsn, u64>; 2],
    /// When the steps that this life accepted must be decided.
    due: BTreeMap<Key, u64>,
    /// Before which moment a step's next try must not start, Unix ms by a right clock.
    not_before_ms: BTreeMap<Key, u64>,
    /// The same of what is durable.
    durable_waits: BTreeMap<Key, u64>,
    /// How many deliveries of a stream message came in this life that it has not settled, at most: a newer one of the same message
    /// may have taken the place of an older.
    out: BTreeMap<u64, u32>,
}

impl Watch {
    /// The process starts: what it had in its memory is gone.
    pub fn started(&mut self) {
        self.due.clear();
        self.out.clear();
        self.not_before_ms = self.durable_waits.clone();
    }

    /// A frame became durable. I13 as far as one journal holds it: a tenant's numbers count up by one, and each item is of the
    /// outcome beside it. Numbers may begin again only once everything that bears one was forgotten and the process has started.
    pub fn durable(&mut self, shard: usize, lsn: Lsn, floor: Lsn, frame: &Frame) -> Verdict {
        match &frame.fact {
            Fact::Result(fact) => self.audited(shard, lsn, floor, &fact.tenant, AuditKind::Outcome, &fact.audit, &fact.outcome),
            Fact::Answer(fact) => {
                self.stamp(shard, lsn, fact.message.source, fact.message.since_ms);
                self.audited(shard, lsn, floor, &fact.tenant, AuditKind::Answer, &fact.audit, &fact.outcome)
            }
            Fact::Quarantined(fact) => {
                self.stamp(shard, lsn, fact.message.source, fact.message.since_ms);
                self.audited(shard, lsn, floor, &fact.tenant, AuditKind::Quarantine, &fact.audit, &fact.outcome)
            }
            Fact::Accepted(fact) => {
                self.durable_waits.remove(&frame.key);
                self.stamp(shard, lsn, fact.message.source, fact.message.since_ms);
                Ok(())
            }
            Fact::Mark { floor, watermark_ms, .. } => {
                let kept = self.stamps[shard].split_off(floor);
                let gone = std::mem::replace(&mut self.stamps[shard], kept);
                match gone.into_iter().find(|(_, since_ms)| since_ms > watermark_ms) {
                    None => Ok(()),
                    Some((gone, since_ms)) => {
                        Err(format!("watermark: frame {gone:?} of {since_ms} is forgotten, the watermark is {watermark_ms}"))
                    }
                }
            }
            Fact::RetryAt { at_ms, .. } => {
                self.durable_waits.insert(frame.key, *at_ms);
                Ok(())
            }
            Fact::Started { .. } => {
                self.durable_waits.remove(&frame.key);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn stamp(&mut self, shard: usize, lsn: Lsn, source: u8, since_ms: u64) {
        if source == SOURCE_STREAM {
            self.stamps[shard].insert(lsn, since_ms);
        }
    }

    fn audited(
        &mut self,
        shard: usize,
        lsn: Lsn,
        floor: Lsn,
        tenant: &Text,
        kind: AuditKind,
        item: &AuditItem,
        outcome: &Outcome,
    ) -> Verdict {
        if item.kind != kind || item.outcome_digest != outcome_digest(outcome) {
            return Err(format!("I13: the audit item of {lsn:?} is not of what was decided"));
        }
        let before = self.audits.insert((shard, tenant.clone()), (lsn, item.tenant_seq));
        let (newest, seq) = before.unwrap_or((Lsn(0), 0));
        let anew = newest < floor && item.tenant_seq == 1;
        if item.tenant_seq == seq + 1 || anew {
            return Ok(());
        }
        Err(format!("I13: {tenant}'s audit item {} at {lsn:?} follows item {seq} at {newest:?}", item.tenant_seq))
    }

    /// What a machine writes in this moment: what it accepts has its budget from now on, what it decides is not late, and a wait
    /// between two tries lasts.
    pub fn logged(&mut self, now_us: u64, frames: &[u8]) -> Verdict {
        for raw in Frames::new(frames).flatten() {
            let Ok(view) = FrameView::parse(raw) else { continue };
            let key = view.key();
            match view.kind() {
                Some(Kind::Accepted) => {
                    if let Ok(Frame { fact: Fact::Accepted(fact), .. }) = decode(&Bytes::copy_from_slice(raw)) {
                        let budget_us = Job::decode(&fact.message.body).budget() * 1000;
                        // What is carried forward has no more time than before.
                        let due_us = self.due.entry(key).or_default();
                        if *due_us <= now_us {
                            *due_us = now_us + budget_us;
                        }
                        self.not_before_ms.remove(&key);
                    }
                }
                Some(Kind::Result) => {
                    self.not_before_ms.remove(&key);
                    if let Some(due_us) = self.due.remove(&key)
                        && now_us > due_us + LATE_US_MAX
                    {
                        return Err(format!("deadline: {key} is decided {} us after its budget", now_us - due_us));
                    }
                }
                Some(Kind::RetryAt) => {
                    if let Ok(Frame { fact: Fact::RetryAt { at_ms, .. }, .. }) = decode(&Bytes::copy_from_slice(raw)) {
                        self.not_before_ms.insert(key, at_ms);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether everything whose budget is over has been decided: asked at rest.
    pub fn nothing_is_overdue(&self, now_us: u64) -> Verdict {
        match self.due.iter().find(|(_, due_us)| now_us > **due_us + LATE_US_MAX) {
            None => Ok(()),
            Some((key, due_us)) => Err(format!("deadline: {key} is not decided {} us after its budget", now_us - due_us)),
        }
    }

    /// A try starts. `steady`: nobody sets this world's clock, so that walls can be compared.
    pub fn runs(&mut self, true_ms: u64, steady: bool, key: Key) -> Verdict {
        match self.not_before_ms.remove(&key) {
            Some(at_ms) if steady && true_ms + 1 < at_ms => {
                Err(format!("retry: {key} starts {} ms before its time", at_ms - true_ms))
            }
            _ => Ok(()),
        }
    }

    /// A stream message comes, perhaps again.
    pub fn arrived(&mut self, sequence: u64) {
        *self.out.entry(sequence).or_default() += 1;
    }

    /// A delivery is settled or kept: a late word would settle or keep a newer one, at another's.
    pub fn settled(&mut self, sequence: u64, how: Settle) -> Verdict {
        let out = self.out.entry(sequence).or_default();
        if *out == 0 {
            return Err(format!("settled: delivery {sequence} was settled, and is spoken of again: {how:?}"));
        }
        *out -= u32::from(how != Settle::Progress);
        Ok(())
    }
}
