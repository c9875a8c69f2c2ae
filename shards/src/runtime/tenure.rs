//! Whether this worker may work: what the edge's lease means to the shards.
//!
//! A shard opens its journal and then waits for its [`Grant`]. Only then does it know which of its unfinished keys are still
//! its own, and only then does it take work. From there on the [`Lease`] says whether the worker still owns what it works on:
//! nothing is published, and no step starts that must never run twice, while it does not hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::time::{ClockId, clock_gettime};

/// The word to begin. Crosses to its core once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// The epoch of this ownership; 0 where nobody owns.
    pub epoch: u32,
    /// What came from a stream under an earlier epoch than this has been another owner's since.
    pub since: u32,
    /// Several workers take from one consumer: nobody owns, and what must never run twice is not run.
    pub shared: bool,
    /// What must never run twice can be claimed before all other workers, and is.
    pub claims: bool,
    /// Steps that wait for people have copies where the next owner finds them.
    pub copies: bool,
}

/// Until when this worker owns what it works on. Shared; the edge writes, everybody reads.
#[derive(Clone, Debug)]
pub struct Lease(Arc<AtomicU64>);

impl Lease {
    /// Nobody owns: it always holds.
    pub fn unbounded() -> Lease {
        Lease(Arc::new(AtomicU64::new(u64::MAX)))
    }

    /// It does not hold yet.
    pub fn lapsed() -> Lease {
        Lease(Arc::new(AtomicU64::new(0)))
    }

    /// From now on it always holds.
    pub fn unbind(&self) {
        self.extend(u64::MAX);
    }

    /// From now on it does not hold.
    pub fn lapse(&self) {
        self.extend(0);
    }

    /// Holds until this moment of [`since_boot_us`].
    pub fn extend(&self, until_us: u64) {
        self.0.store(until_us, Ordering::Release);
    }

    /// Whether it holds now.
    pub fn holds(&self) -> bool {
        let until_us = self.0.load(Ordering::Acquire);
        until_us == u64::MAX || since_boot_us() < until_us
    }
}

/// Microseconds since the machine started, those of its sleep included: a suspended worker must find its lease lapsed.
pub fn since_boot_us() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_by_itself() {
        let lease = Lease::lapsed();
        assert!(!lease.holds());
        lease.extend(since_boot_us() + 20_000);
        assert!(lease.clone().holds());
        while lease.holds() {
            std::hint::spin_loop();
        }
        lease.extend(since_boot_us() - 1);
        assert!(!lease.holds());
        assert!(Lease::unbounded().holds());
    }
}
