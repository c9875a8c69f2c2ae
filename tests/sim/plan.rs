//! What one seed brings: which faults at which rates, which limits, which mix of jobs. Each world draws its own (swarm).

use shards::limits::{Limits, OnOverload};

use crate::rng::Rng;

/// Faults that come at moments of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Kill,
    PowerLoss,
    DrainRestart,
    ServerKill,
    Partition,
    ClockBack,
    ClockForward,
    SlowDisk,
    DiskFull,
    DiskDies,
    Burst,
    Cancel,
    Storm,
    TakenOver,
}

impl Fault {
    pub const ALL: [Fault; 14] = [
        Fault::Kill,
        Fault::PowerLoss,
        Fault::DrainRestart,
        Fault::ServerKill,
        Fault::Partition,
        Fault::ClockBack,
        Fault::ClockForward,
        Fault::SlowDisk,
        Fault::DiskFull,
        Fault::DiskDies,
        Fault::Burst,
        Fault::Cancel,
        Fault::Storm,
        Fault::TakenOver,
    ];
}

/// Faults that hit single messages and tries, per mille.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    pub pub_ack_lost: u64,
    pub pub_ack_late: u64,
    pub settle_lost: u64,
    pub deliver_twice: u64,
    /// A report that has been made comes once more, much later.
    pub stale_report: u64,
    pub router_duplicate: u64,
    pub other_assignment: u64,
    pub other_content: u64,
    pub expired: u64,
    /// A job whose time is over in some minutes: only a clock that jumps could make it late.
    pub far: u64,
    pub refusal: u64,
    pub garbage: u64,
    pub fail: u64,
    pub retryable: u64,
    pub panic: u64,
    pub overlong: u64,
    /// A try that is told to stop goes on to its end all the same.
    pub deaf: u64,
    /// A job without flow coordinates.
    pub unplaced: u64,
    /// A message that is refused under an assignment that is known.
    pub refused_again: u64,
    /// Who asks on core NATS waits under an inbox of its own.
    pub inbox: u64,
    /// A job whose sender allows less than its block may do.
    pub ceiling: u64,
    /// Outputs too large for a message.
    pub spill: u64,
    /// A job that ends the process whenever it is run.
    pub poison: u64,
    /// The process dies between two effects.
    pub die_between: u64,
}

/// How many jobs come otherwise than by a stream, per mille.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shares {
    pub core: u64,
    pub call: u64,
    /// All of them are lines of a file.
    pub line: bool,
}

/// A world's settings. Shared, never changes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// With the mean time between two, in µs.
    pub faults: Vec<(Fault, u64)>,
    pub rates: Rates,
    pub limits: Limits,
    pub events: bool,
    pub jobs: u32,
    pub span_us: u64,
    pub shares: Shares,
    /// Steps that wait for people, per mille.
    pub asking: u64,
    /// Other workers take from the same consumer at the same time.
    pub shared: bool,
    /// What must never run twice can be claimed.
    pub claims: bool,
    pub class_weights: [u64; 5],
    pub tenants: u64,
    pub ack_wait_us: u64,
    pub max_ack_pending: usize,
    pub segment_bytes: usize,
    pub fsync_us: u64,
}

/// Everything stands still at the beginning of 2026.
pub const EPOCH_MS: u64 = 1_767_225_600_000;
pub const SECOND: u64 = 1_000_000;

impl Plan {
    /// Whether nobody sets the clock.
    pub fn steady(&self) -> bool {
        !self.faults.iter().any(|(fault, _)| matches!(fault, Fault::ClockBack | Fault::ClockForward))
    }

    pub fn draw(rng: &mut Rng) -> Plan {
        let mut faults = Vec::new();
        while faults.len() < 3 {
            faults = Vec::new();
            for fault in Fault::ALL {
                if rng.chance(350) {
                    faults.push((fault, rng.range(2, 20) * SECOND));
                }
            }
        }
        let mut rate = |most: u64| if rng.chance(400) { rng.range(1, most) } else { 0 };
        let rates = Rates {
            pub_ack_lost: rate(200),
            pub_ack_late: rate(200),
            settle_lost: rate(200),
            deliver_twice: rate(100),
            stale_report: rate(150),
            router_duplicate: rate(150),
            other_assignment: rate(200),
            other_content: rate(150),
            expired: rate(100),
            far: rate(200),
            refusal: rate(60),
            garbage: rate(60),
            fail: rate(250),
            retryable: rate(350),
            panic: rate(80),
            overlong: rate(150),
            deaf: rate(900),
            unplaced: rate(500),
            refused_again: rate(60),
            inbox: rate(700),
            ceiling: rate(60),
            spill: rate(100),
            poison: rate(20),
            die_between: if faults.iter().any(|(fault, _)| *fault == Fault::Kill) { rng.range(0, 3) } else { 0 },
        };
        let mut limits = Limits { budget_ms_default: 20_000, ..Limits::default() };
        if rng.chance(400) {
            limits.tenant_running_max = rng.range(1, 5) as u32;
        }
        if rng.chance(300) {
            limits.tenant_queued_max = rng.range(1, 12) as u32;
        }
        if rng.chance(200) {
            limits.shard_running_max = rng.range(2, 10) as u32;
        }
        if rng.chance(200) {
            limits.cpu_running_max = rng.range(1, 4) as u32;
            limits.gpu_running_max = rng.range(1, 3) as u32;
        }
        if rng.chance(200) {
            limits.tenant_memory_bytes_max = rng.range(4, 12) << 20;
            limits.shard_memory_bytes_max = limits.tenant_memory_bytes_max + (rng.range(0, 12) << 20);
        }
        if rng.chance(150) {
            limits.unpublished_max = rng.range(4, 30) as u32;
        }
        if rng.chance(300) {
            limits.on_overload = OnOverload::Reject;
        }
        let mut segment_bytes = rng.range(4, 40) as usize * 1024;
        if rng.chance(300) {
            // A tiny journal: whole segments are forgotten while the world runs.
            segment_bytes = rng.range(6, 16) as usize * 1024;
            limits.journal_bytes_max = rng.range(3, 8) * segment_bytes as u64;
            limits.horizon_min_ms = rng.range(100, 5_000);
            limits.horizon_ms = rng.range(10_000, 120_000);
        }
        if rng.chance(150) {
            limits.shard_held_bytes_max = rng.range(4, 40) * 1024;
        }
        if rng.chance(150) {
            limits.shard_queued_max = rng.range(2, 40) as u32;
        }
        let shared = rng.chance(200);
        if shared {
            faults.retain(|(fault, _)| *fault != Fault::TakenOver);
        }
        let mut share = |of: u64, most: u64| if rng.chance(of) { rng.range(20, most) } else { 0 };
        let (core, call) = (share(500, 400), share(350, 300));
        let shares = Shares { core, call, line: !shared && rng.chance(70) };
        let mut class_weights = [0; 5];
        for weight in &mut class_weights {
            *weight = rng.range(1, 10);
        }
        // Drawn aside, so that worlds where nobody is asked stay as they were.
        let mut aside = rng.clone();
        let asking = if aside.chance(300) { aside.range(20, 300) } else { 0 };
        let plan = Plan {
            asking,
            faults,
            rates,
            limits,
            events: rng.chance(500),
            jobs: rng.range(200, 260) as u32,
            span_us: rng.range(15, 60) * SECOND,
            shares,
            shared,
            claims: !shared || rng.chance(700),
            class_weights,
            tenants: rng.range(2, 6),
            ack_wait_us: rng.range(3, 30) * SECOND,
            max_ack_pending: rng.range(20, 300) as usize,
            segment_bytes,
            fsync_us: rng.range(50, 3_000),
        };
        if rng.chance(3) { plan.crowded() } else { plan }
    }

    /// More jobs than can be run, most of them on core NATS, where nothing bounds what is sent: tables and queues fill, and are
    /// cleared of what has gone. Few worlds are like that: one costs as much as forty.
    fn crowded(mut self) -> Plan {
        self.jobs = 9_500;
        self.span_us = 40 * SECOND;
        self.shares = Shares { core: 950, ..Shares::default() };
        self.tenants = 3;
        self.segment_bytes = 256 << 10;
        self.limits = Limits { tenant_running_max: 2, budget_ms_default: 20_000, ..Limits::default() };
        (self.rates.overlong, self.rates.deaf) = (5, 900);
        self.rates.poison = 0;
        self
    }
}
