//! What a tenant may take at once: [`Account::charge`] gives a [`Charge`] or says which rule forbids it.
//!
//! A charge is a value that must be given back. It starts as a place in the queue, becomes a running slot, and returns when
//! the work has really ended. One core owns a tenant, so these are plain numbers and never wrong.

use crate::limits::Limits;
use crate::planted::{Bug, planted};

/// One tenant's use and limits. Lives on its core.
#[derive(Clone, Debug)]
pub struct Account {
    /// Steps waiting.
    pub queued: u32,
    /// Steps running, and timed-out ones whose work has not ended yet.
    pub running: u32,
    /// Most that may wait.
    pub queued_max: u32,
    /// Most that may run.
    pub running_max: u32,
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
    Running,
}

impl Charge {
    /// Whether it is a running slot rather than a place in the queue.
    pub fn is_running(&self) -> bool {
        self.stage == Stage::Running
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
}

impl Account {
    /// An unused account with the shard's limits.
    pub fn new(limits: &Limits) -> Self {
        Account { queued: 0, running: 0, queued_max: limits.tenant_queued_max, running_max: limits.tenant_running_max }
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

    /// Whether another step may run.
    pub fn may_run(&self) -> bool {
        self.running < self.running_max || planted(Bug::IgnoreTenantLimit)
    }

    /// Turns a place in the queue into a running slot; the caller has asked [`Account::may_run`].
    pub fn start(&mut self, charge: &mut Charge) {
        debug_assert!(charge.stage == Stage::Queued, "started twice");
        self.queued -= 1;
        self.running += 1;
        charge.stage = Stage::Running;
    }

    /// Turns a running slot back into a place in the queue, between two tries.
    pub fn pause(&mut self, charge: &mut Charge) {
        debug_assert!(charge.stage == Stage::Running, "paused while queued");
        self.running -= 1;
        self.queued += 1;
        charge.stage = Stage::Queued;
    }

    /// Takes a charge back: queue place or running slot.
    pub fn refund(&mut self, charge: Charge) {
        match charge.stage {
            Stage::Queued => self.queued -= 1,
            Stage::Running => self.running -= 1,
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
        account.start(&mut first);
        assert!(!account.may_run());
        let second = account.charge().expect("the queue is free again");
        account.pause(&mut first);
        assert_eq!((account.queued, account.running), (2, 0));
        account.refund(first);
        account.refund(second);
        assert_eq!((account.queued, account.running), (0, 0));
    }
}
