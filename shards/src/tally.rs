//! What a shard counts of itself: plain numbers, added to on its core, sent whole in an [`crate::envelope::Envelope`].

use crate::outcome::{Code, Status};

/// Upper bounds of the latency buckets, in microseconds; a last bucket without bound follows.
pub const LATENCY_BOUNDS_US: [u64; 18] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 60_000_000,
];

/// Counts since the shard started. Lives on its core; copies cross.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Per block, in the order of the block table.
    pub blocks: Vec<BlockTally>,
    /// Faults by code, in the order of [`Code::ALL`]; those of no block (refusals, garbage) are only here.
    pub faults: Vec<u64>,
    /// Steps accepted.
    pub accepted: u64,
    /// Tries started.
    pub started: u64,
    /// Tries after a first one.
    pub retried: u64,
    /// Arrivals answered from the journal or attached to a step in flight.
    pub duplicates: u64,
    /// Deliveries handed back for load.
    pub handed_back: u64,
    /// Assignments refused.
    pub refused: u64,
    /// Messages put aside.
    pub quarantined: u64,
    /// Same key, other content.
    pub conflicts: u64,
    /// Boot: keys without an end that another owner has had since.
    pub superseded: u64,
    /// Steps without an end, carried forward from a segment that goes.
    pub carried: u64,
    /// Verdicts of tries that no longer mattered.
    pub stale: u64,
    /// Block code that panicked.
    pub panics: u64,
    /// Dead letters sent.
    pub dead_letters: u64,
    /// Keys remembered now.
    pub keys: u64,
    /// Steps waiting now.
    pub queued: u64,
    /// Steps running now.
    pub running: u64,
    /// Steps that wait for people, now.
    pub parked: u64,
    /// Outcomes durable but not yet known as published, now.
    pub unpublished: u64,
    /// Journal: commits made.
    pub fsyncs: u64,
    /// Journal: bytes written.
    pub journal_bytes: u64,
    /// Journal: frames written.
    pub journal_frames: u64,
    /// Letters rendered for the edge.
    pub posted: u64,
}

/// One block's counts. Crosses cores inside its [`Tally`].
#[derive(Debug, Clone, Default)]
pub struct BlockTally {
    /// By status: ok, error, timeout, cancelled.
    pub by_status: [u64; 4],
    /// Outcomes by [`LATENCY_BOUNDS_US`], from receipt to decision.
    pub latency: [u64; LATENCY_BOUNDS_US.len() + 1],
    /// Their sum, in microseconds.
    pub latency_us: u64,
    /// Outcomes that are not ok by code, in the order of [`Code::ALL`].
    pub faults: [u64; Code::ALL.len()],
}

impl Tally {
    /// Nothing counted, for this many blocks.
    pub fn new(blocks: usize) -> Self {
        Tally { blocks: vec![BlockTally::default(); blocks], faults: vec![0; Code::ALL.len()], ..Tally::default() }
    }

    /// Counts an outcome, with its fault's code where it has one.
    pub fn outcome(&mut self, block: usize, status: Status, fault: Option<Code>, latency_us: u64) {
        let Some(tally) = self.blocks.get_mut(block) else { return };
        let index = match status {
            Status::Ok => 0,
            Status::Error | Status::Quarantined => 1,
            Status::Timeout => 2,
            Status::Cancelled => 3,
        };
        tally.by_status[index] += 1;
        tally.latency[LATENCY_BOUNDS_US.partition_point(|bound| *bound < latency_us)] += 1;
        tally.latency_us += latency_us;
        if let Some(code) = fault {
            tally.faults[code as usize - 1] += 1;
        }
    }

    /// Counts a fault.
    pub fn fault(&mut self, code: Code) {
        self.faults[code as usize - 1] += 1;
    }
}
