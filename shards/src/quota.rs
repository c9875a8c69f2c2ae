//! What a tenant may take at once: [`Account::charge`] gives a [`Charge`] or says which rule forbids it.
//!
//! A charge is a value that must be given back. It starts as a place in the queue, becomes a running slot, and returns when
//! the work has really ended. One core owns a tenant, so these are plain numbers and never wrong.

use crate::ids::BlockId;
use crate::limits::Limits;
use crate::planted::{Bug, planted};
use crate::step::Needs;

/// One tenant's use and limits. Lives on its core.
#[derive(Clone, Debug)]
pub struct Account {
    /// Steps waiting.
    pub queued: u32,
    /// Steps running, and timed-out ones whose work has not ended yet.
    pub running: u32,
    /// Steps that wait for people.
    pub parked: u32,
    /// Most that may wait.
    pub queued_max: u32,
    /// Most that may wait for people.
    pub parked_max: u32,
    /// Most that may run.
    pub running_max: u32,
    /// Memory kept for what runs, in bytes.
    pub memory_bytes: u64,
    /// Most of it.
    pub memory_bytes_max: u64,
    /// Running steps by kind: few, so a list.
    running_of: Vec<(BlockId, u32)>,
}

/// What a running step has taken beside its slot. Lives on its core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// What it counts as.
    pub kind: BlockId,
    /// What was asked for.
    pub needs: Needs,
}

/// A place in a tenant's queue or a running slot, held by one step. Lives on its core.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a charge must be given back with Account::refund"]
pub struct Charge {
    stage: Stage,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Stage {
    Queued,
    Running(Taken),
    Parked,
}

impl Charge {
    /// What it holds as a running slot; none: it is a place in the queue, or among those who wait for people.
    pub fn taken(&self) -> Option<Taken> {
        match self.stage {
            Stage::Queued | Stage::Parked => None,
            Stage::Running(taken) => Some(taken),
        }
    }

    /// Whether it is a place among those who wait for people.
    pub fn is_parked(&self) -> bool {
        self.stage == Stage::Parked
    }
}

/// Which rule refused a charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `limits.tenant_queued` steps are waiting already.
    QueueFull {
        /// The limit.
        limit: u32,
    },
    /// `limits.tenant_approvals` steps wait for people already.
    ParkedFull {
        /// The limit.
        limit: u32,
    },
}

impl Account {
    /// An unused account with the shard's limits.
    pub fn new(limits: &Limits) -> Self {
        Account {
            queued: 0,
            running: 0,
            parked: 0,
            queued_max: limits.tenant_queued_max,
            parked_max: limits.tenant_parked_max,
            running_max: limits.tenant_running_max,
            memory_bytes: 0,
            memory_bytes_max: limits.tenant_memory_bytes_max,
            running_of: Vec::new(),
        }
    }

    /// Takes a place in the queue.
    ///
    /// # Errors
    /// The rule that forbids it; nothing is taken then.
    pub fn charge(&mut self) -> Result<Charge, Refusal> {
        if self.queued >= self.queued_max {
            return Err(Refusal::QueueFull { limit: self.queued_max });
        }
        Ok(self.charge_recovered())
    }

    /// Takes a place in the queue for a step that was accepted in an earlier life: it cannot be refused now.
    pub fn charge_recovered(&mut self) -> Charge {
        self.queued += 1;
        Charge { stage: Stage::Queued }
    }

    /// Takes a place among those who wait for people.
    ///
    /// # Errors
    /// The rule that forbids it; nothing is taken then.
    pub fn charge_parked(&mut self) -> Result<Charge, Refusal> {
        if self.parked >= self.parked_max {
            return Err(Refusal::ParkedFull { limit: self.parked_max });
        }
        Ok(self.charge_parked_recovered())
    }

    /// The same for a step that was accepted in an earlier life: it cannot be refused now.
    pub fn charge_parked_recovered(&mut self) -> Charge {
        self.parked += 1;
        Charge { stage: Stage::Parked }
    }

    /// Whether another step may run.
    pub fn may_run(&self) -> bool {
        self.running < self.running_max || planted(Bug::IgnoreTenantLimit)
    }

    /// Whether another step may have so much memory beside those that run. What is larger than all there may be (it was
    /// accepted under another limit) has it when no other does.
    pub fn has_memory(&self, bytes: u64) -> bool {
        self.memory_bytes == 0 || self.memory_bytes.saturating_add(bytes) <= self.memory_bytes_max
    }

    /// How many steps of a kind run.
    pub fn running_of(&self, kind: BlockId) -> u32 {
        self.running_of.iter().find(|(of, _)| *of == kind).map_or(0, |(_, count)| *count)
    }

    /// Turns a place in the queue into a running slot; the caller has asked [`Account::may_run`].
    pub fn start(&mut self, charge: &mut Charge, taken: Taken) {
        debug_assert!(charge.stage == Stage::Queued, "started twice");
        self.queued -= 1;
        self.running += 1;
        self.memory_bytes += taken.needs.memory_bytes;
        match self.running_of.iter_mut().find(|(of, _)| *of == taken.kind) {
            Some((_, count)) => *count += 1,
            None => self.running_of.push((taken.kind, 1)),
        }
        charge.stage = Stage::Running(taken);
    }

    /// Turns a running slot back into a place in the queue, between two tries; what it held, or none where it was none.
    pub fn pause(&mut self, charge: &mut Charge) -> Option<Taken> {
        let taken = charge.taken()?;
        self.stopped(taken);
        self.queued += 1;
        charge.stage = Stage::Queued;
        Some(taken)
    }

    /// Takes a charge back: queue place or running slot.
    pub fn refund(&mut self, charge: Charge) {
        match charge.stage {
            Stage::Queued => self.queued -= 1,
            Stage::Running(taken) => self.stopped(taken),
            Stage::Parked => self.parked -= 1,
        }
    }

    fn stopped(&mut self, taken: Taken) {
        self.running -= 1;
        self.memory_bytes -= taken.needs.memory_bytes;
        if let Some((_, count)) = self.running_of.iter_mut().find(|(of, _)| *of == taken.kind) {
            *count -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charge_moves_through_its_stages_and_returns_everything() {
        let mut account = Account::new(&Limits { tenant_queued_max: 1, tenant_running_max: 1, ..Limits::default() });
        let mut first = account.charge().expect("empty");
        assert_eq!(account.charge(), Err(Refusal::QueueFull { limit: 1 }));
        let needs = Needs { memory_bytes: 1 << 30, ..Needs::default() };
        account.start(&mut first, Taken { kind: BlockId(3), needs });
        assert!(!account.may_run());
        assert_eq!((account.memory_bytes, account.running_of(BlockId(3)), account.running_of(BlockId(4))), (1 << 30, 1, 0));
        assert!(!account.has_memory(1));
        let second = account.charge().expect("the queue is free again");
        assert_eq!(account.pause(&mut first), Some(Taken { kind: BlockId(3), needs }));
        assert_eq!((account.queued, account.running, account.memory_bytes, account.running_of(BlockId(3))), (2, 0, 0, 0));
        assert!(account.has_memory(u64::MAX), "what was accepted under another limit runs alone");
        account.refund(first);
        account.refund(second);
        assert_eq!((account.queued, account.running), (0, 0));
    }
}
