//! How the machine writes its facts into the journal: one method a frame kind, each numbering its frame.

use super::Shard;
use crate::audit::{AuditItem, AuditKind, outcome_digest};
use crate::event::Effects;
use crate::gate::Vote;
use crate::ids::{AskerId, Key, Lsn, Now, Partition, Text};
use crate::journal::{AcceptedRef, AnswerRef, Head, Log, MessageRef, ResultRef};
use crate::outcome::Outcome;
use crate::planted::{Bug, planted};
use crate::step::{Arrival, Origin, Work};
use crate::tenant::TenantIndex;

/// Who asks; zero where nobody could be read.
pub(super) fn asker_of(arrival: &Arrival) -> AskerId {
    arrival.asker.as_ref().map_or(AskerId([0; 16]), |asker| asker.id)
}

impl Shard {
    pub(super) fn head(&self, key: Key, arrival: &Arrival) -> Head {
        Head { key, partition: arrival.partition, owner_epoch: self.settings.owner_epoch }
    }

    fn number(&mut self) -> Lsn {
        let lsn = self.next_lsn;
        self.next_lsn = lsn.next();
        lsn
    }

    /// What is recorded of a stream message may be forgotten with its segment: its timestamp counts for the watermark.
    fn stamp(&mut self, arrival: &Arrival) {
        if let Origin::Stream(token) = &arrival.delivery.origin {
            self.retain.stamp(token.stored_ms);
        }
    }

    pub(super) fn log_accepted(&mut self, now: Now, arrival: &Arrival, work: &Work, fx: &mut Effects) -> Lsn {
        self.log_accepted_until(now, arrival, work, now.wall_ms.saturating_add(work.budget_ms), fx)
    }

    /// As [`Shard::log_accepted`], for a step whose budget ends at `deadline_ms`.
    pub(super) fn log_accepted_until(
        &mut self,
        now: Now,
        arrival: &Arrival,
        work: &Work,
        deadline_ms: u64,
        fx: &mut Effects,
    ) -> Lsn {
        self.stamp(arrival);
        self.accepted_frame(now, arrival, work, deadline_ms, &mut fx.log);
        fx.log.urgent = true;
        self.number()
    }

    /// The frame itself, which may go elsewhere, too.
    pub(super) fn accepted_frame(&self, now: Now, arrival: &Arrival, work: &Work, deadline_ms: u64, log: &mut Log) {
        let fact = AcceptedRef {
            tenant: &arrival.tenant,
            fingerprint: &arrival.fingerprint,
            asker: &asker_of(arrival),
            effect: work.effect,
            effect_ceiling: work.effect_ceiling,
            block: self.block_name(work),
            config_epoch: self.settings.config_epoch,
            replay_of: None,
            deadline_ms,
            not_after_ms: work.not_after_ms,
            // It may have come, and waited, while the clock was not believed: that must not be the past after a restart.
            received_ms: arrival.received_ms.min(now.wall_ms),
            message: MessageRef::of(arrival),
        };
        log.accepted(self.head(arrival.key, arrival), &fact);
    }

    pub(super) fn log_started(&mut self, now: Now, slot: u32, fx: &mut Effects) -> Lsn {
        let job = &mut self.jobs[slot as usize];
        (job.written.tries, job.written.interrupted, job.written.retry_at_ms) = (job.tries, true, None);
        self.log_started_again(now, slot, fx)
    }

    /// What stands in the journal of a step's last try, once more.
    pub(super) fn log_started_again(&mut self, now: Now, slot: u32, fx: &mut Effects) -> Lsn {
        let job = &self.jobs[slot as usize];
        fx.log.started(self.head(job.key, &job.arrival), job.written.tries, self.settings.boot, now.wall_ms);
        self.number()
    }

    /// And when the next one is due.
    pub(super) fn log_retry_at_again(&mut self, slot: u32, at_ms: u64, fx: &mut Effects) -> Lsn {
        let job = &self.jobs[slot as usize];
        fx.log.retry_at(self.head(job.key, &job.arrival), job.written.tries + 1, at_ms);
        self.number()
    }

    pub(super) fn log_struck(
        &mut self,
        now: Now,
        key: Key,
        partition: Partition,
        strikes: u32,
        boot: u32,
        fx: &mut Effects,
    ) -> Lsn {
        fx.log.struck(Head { key, partition, owner_epoch: self.settings.owner_epoch }, strikes, boot, now.wall_ms);
        fx.log.urgent = true;
        self.number()
    }

    pub(super) fn log_retry_at(&mut self, slot: u32, at_ms: u64, fx: &mut Effects) -> Lsn {
        let job = &mut self.jobs[slot as usize];
        (job.written.interrupted, job.written.retry_at_ms) = (false, Some(at_ms));
        self.log_retry_at_again(slot, at_ms, fx)
    }

    pub(super) fn log_result(&mut self, now: Now, slot: u32, outcome: &Outcome, fx: &mut Effects) -> Lsn {
        let mut audit = self.audit(now, self.jobs[slot as usize].tenant, AuditKind::Outcome, outcome);
        let job = &self.jobs[slot as usize];
        if let Some(actor) = super::notice::actor(job).or(job.decided_by.as_ref()).cloned() {
            audit.actor = actor;
        }
        // A step that an earlier worker accepted and this one cannot read has no block here.
        let block = job.arrival.work().map_or("", |work| self.block_name(work));
        let fact = ResultRef {
            tenant: &job.arrival.tenant,
            fingerprint: &job.arrival.fingerprint,
            asker: &asker_of(&job.arrival),
            block,
            outcome,
            audit: &audit,
        };
        fx.log.result(self.head(job.key, &job.arrival), &fact);
        fx.log.urgent = true;
        self.number()
    }

    /// What a step came to, for who reads a copy: it stands in no journal, and so has no audit number.
    pub(super) fn result_frame(&self, now: Now, slot: u32, outcome: &Outcome, log: &mut Log) {
        let job = &self.jobs[slot as usize];
        let audit = AuditItem {
            kind: AuditKind::Outcome,
            wall_ms: now.wall_ms,
            tenant_seq: 0,
            outcome_digest: outcome_digest(outcome),
            actor: job.decided_by.clone().unwrap_or(Text::from_static("worker")),
            config_epoch: self.settings.config_epoch,
        };
        let fact = ResultRef {
            tenant: &job.arrival.tenant,
            fingerprint: &job.arrival.fingerprint,
            asker: &asker_of(&job.arrival),
            block: job.arrival.work().map_or("", |work| self.block_name(work)),
            outcome,
            audit: &audit,
        };
        log.result(self.head(job.key, &job.arrival), &fact);
    }

    pub(super) fn log_answer(
        &mut self,
        now: Now,
        key: Key,
        arrival: &Arrival,
        outcome: &Outcome,
        of: Option<Key>,
        fx: &mut Effects,
    ) -> Lsn {
        self.stamp(arrival);
        let audit = self.audit_for(now, &arrival.tenant, AuditKind::Answer, outcome);
        let fact = AnswerRef {
            tenant: &arrival.tenant,
            fingerprint: &arrival.fingerprint,
            asker: &asker_of(arrival),
            of,
            outcome,
            audit: &audit,
            message: MessageRef::of(arrival),
        };
        fx.log.answer(self.head(key, arrival), &fact);
        fx.log.urgent = true;
        self.number()
    }

    pub(super) fn log_quarantined(&mut self, now: Now, key: Key, arrival: &Arrival, outcome: &Outcome, fx: &mut Effects) -> Lsn {
        self.stamp(arrival);
        let audit = self.audit_for(now, &arrival.tenant, AuditKind::Quarantine, outcome);
        let fact = AnswerRef {
            tenant: &arrival.tenant,
            fingerprint: &arrival.fingerprint,
            asker: &AskerId([0; 16]),
            of: None,
            outcome,
            audit: &audit,
            message: MessageRef::of(arrival),
        };
        fx.log.quarantined(self.head(key, arrival), &fact);
        fx.log.urgent = true;
        self.number()
    }

    pub(super) fn log_published(&mut self, now: Now, slot: u32, fx: &mut Effects) -> Lsn {
        let job = &self.jobs[slot as usize];
        // Whose outcome it is by its frames: where another worker has owned the stream since, somebody else may have asked for it.
        fx.log.published(self.head(job.key, &job.arrival), &job.written.asker, now.wall_ms);
        self.number()
    }

    pub(super) fn log_signal(&mut self, slot: u32, vote: &Vote, fx: &mut Effects) -> Lsn {
        let job = &self.jobs[slot as usize];
        fx.log.signal(self.head(job.key, &job.arrival), vote);
        fx.log.urgent = true;
        self.number()
    }

    /// What people have said to a step, once more.
    pub(super) fn log_votes_again(&mut self, slot: u32, fx: &mut Effects) {
        let job = &self.jobs[slot as usize];
        let head = self.head(job.key, &job.arrival);
        for vote in &job.votes {
            fx.log.signal(head, vote);
            self.next_lsn = self.next_lsn.next();
        }
    }

    pub(super) fn log_released(&mut self, now: Now, key: Key, partition: Partition, fx: &mut Effects) -> Lsn {
        fx.log.released(Head { key, partition, owner_epoch: self.settings.owner_epoch }, now.wall_ms);
        self.number()
    }

    pub(super) fn log_mark(&mut self, now: Now, fx: &mut Effects) -> Lsn {
        fx.log.mark(now.wall_ms, self.retain.floor(), self.retain.watermark_ms());
        self.number()
    }

    fn block_name(&self, work: &Work) -> &str {
        self.settings.blocks.get(usize::from(work.block.0)).map_or("", |name| name)
    }

    fn audit_for(&mut self, now: Now, tenant: &Text, kind: AuditKind, outcome: &Outcome) -> AuditItem {
        let index = self.tenants.find(tenant);
        self.audit(now, index, kind, outcome)
    }

    fn audit(&mut self, now: Now, tenant: TenantIndex, kind: AuditKind, outcome: &Outcome) -> AuditItem {
        let tenant = self.tenants.get(tenant);
        tenant.audit_seq += 1 + u64::from(kind == AuditKind::Quarantine && planted(Bug::AuditSkip));
        AuditItem {
            kind,
            wall_ms: now.wall_ms,
            tenant_seq: tenant.audit_seq,
            outcome_digest: outcome_digest(outcome),
            actor: Text::from_static("worker"),
            config_epoch: self.settings.config_epoch,
        }
    }
}
