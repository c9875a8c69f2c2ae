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
    TakenOver,
}

impl Fault {
    pub const ALL: [Fault; 13] = [
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
    /// A job that ends the process whenever it is run.
    pub poison: u64,
    /// The process dies between two effects.
    pub die_between: u64,
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
    pub core_share: u64,
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
        let mut class_weights = [0; 5];
        for weight in &mut class_weights {
            *weight = rng.range(1, 10);
        }
        Plan {
            faults,
            rates,
            limits,
            events: rng.chance(500),
            jobs: rng.range(200, 260) as u32,
            span_us: rng.range(15, 60) * SECOND,
            core_share: if rng.chance(500) { rng.range(50, 400) } else { 0 },
            class_weights,
            tenants: rng.range(2, 6),
            ack_wait_us: rng.range(3, 30) * SECOND,
            max_ack_pending: rng.range(20, 300) as usize,
            segment_bytes,
            fsync_us: rng.range(50, 3_000),
        }
    }
}
