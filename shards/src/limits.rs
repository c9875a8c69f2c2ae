//! Every bound of a shard, in one place, with its unit last.
//!
//! The constants are hard bounds; [`Limits`] holds the configurable ones with the shipped defaults.
//! A bound that a caller can meet is reported with its name, so names here are part of the interface.

use crate::step::Lane;

/// Tenants map to this many partitions, for ever: the number stands in every journal frame and in subject mappings.
pub const PARTITIONS: u16 = 256;
/// Longest tenant id, assignment id, run id, flow id or step id, in bytes.
pub const ID_BYTES_MAX: usize = 256;
/// Deepest nesting of arrays and objects in a message.
pub const JSON_DEPTH_MAX: usize = 64;
/// How many stream deliveries of one key are kept waiting for its outcome; more are handed back with a delay.
pub const DELIVERIES_PER_KEY_MAX: usize = 8;
/// How many calls ride along with one key's step; the oldest makes way for one more.
pub const CALLS_PER_KEY_MAX: usize = 32;
/// A call that is turned away for load is asked to come again after this, in milliseconds.
pub const CALL_AGAIN_MS: u64 = 1_000;
/// Largest body of one message the journal takes, in bytes: a NATS server's own ceiling.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// A batch is closed at this size even if more is waiting, in bytes; one larger frame may exceed it alone.
pub const BATCH_BYTES_MAX: usize = 1 << 20;
/// Most steps one executor may hold: glommio counts a task's wakers in an i16.
pub const RUNNING_PER_SHARD_MAX: u32 = 30_000;
/// Shortest and longest delay of a delivery that is handed back for load, in milliseconds.
pub const NAK_DELAY_MS: std::ops::RangeInclusive<u32> = 1_000..=30_000;
/// Delay of a delivery that is handed back because the journal's disk is full, in milliseconds.
pub const FULL_NAK_MS: u32 = 1_000;
/// While the journal's disk is full, so many deliveries are looked at every second in case their key is known.
pub const FULL_LOOKS_PER_S: u32 = 256;
/// One level of priority is worth this much waiting time, in milliseconds: that is the aging of a tenant's queue.
pub const PRIORITY_STEP_MS: u64 = 100;
/// Of one tenant's waiting steps so many are passed over, at most, for one that may start.
pub const LANE_SKIP_MAX: usize = 16;
/// A clock that jumps forward by more than this is not believed at once, in milliseconds.
pub const CLOCK_JUMP_MS_MAX: u64 = 5 * 60 * 1000;
/// A wall that jumped is believed once it has gone on steadily for this long, in milliseconds: long enough for an alarm.
pub const CLOCK_STEADY_MS: u64 = 10 * 60 * 1000;
/// Longest budget of a step, in milliseconds (24 h).
pub const BUDGET_MS_MAX: u64 = 24 * 3600 * 1000;
/// A step whose message, headers included, is larger than this has no copy beside the journal, in bytes: with what people say, at
/// most, and the outcome that tells it again it fits in the 1 MiB that servers take.
pub const COPY_BYTES_MAX: usize = 128 << 10;
/// Longest that a step may wait for people, in milliseconds (90 days).
pub const GATE_MS_MAX: u64 = 90 * 24 * 3600 * 1000;
/// Most tries one key may ask for.
pub const TRIES_MAX: u32 = 100;

/// So many tries of a step are remembered each by itself, the last included.
pub const TRIED_MAX: usize = 8;
/// So much is remembered of what a try that failed said, in bytes.
pub const TRIED_MESSAGE_BYTES_MAX: usize = 256;

/// A step that was being run at this many deaths of the process is not run again.
pub const STRIKES_MAX: u32 = 3;
/// Compute threads that a worker has at most: each has its line on every shard's page.
pub const COMPUTE_THREADS_MAX: usize = 255;
/// A step with a strike lets all others start before it for so long, in milliseconds.
pub const COURTESY_MS: u64 = 1_000;
/// A step with a strike may keep all others from starting for so long before it starts, and again after, in milliseconds.
pub const HUSH_MS_MAX: u64 = 1_000;

/// A shard that has not turned for so long is spoken of, in milliseconds.
pub const STALL_SAID_MS: u64 = 1_000;

/// Finished keys of closed segments lie in at most so many key files, each with a filter in memory.
pub const KEY_FILES_MAX: usize = 8;
/// What a key takes in a filter, in bits: about one unknown key in a thousand is then looked for in a file, in each of them.
pub const FILTER_BITS_PER_KEY: u64 = 16;
/// So many keys that were read from key files are kept in memory, and those that somebody waits for.
pub const RECALLED_MAX: usize = 4_096;
/// A boot that had to read so many bytes of closed segments has them sealed, so that the next one need not.
pub const SEAL_AT_BOOT_BYTES: u64 = 16 << 20;
/// Forgotten at once, whatever there is to forget, in keys.
pub const FORGET_MAX: usize = 64;
/// Steps that are carried forward in one go, so that it is over in well under a millisecond.
pub const CARRY_MAX: usize = 64;
/// And their bytes, roughly.
pub const CARRY_BYTES_MAX: u64 = 256 << 10;
/// Places that are looked at for that.
pub const CARRY_LOOKS_MAX: usize = 4_096;
/// There may be more to carry: the next look comes after this, in microseconds.
pub const CARRY_AGAIN_US: u64 = 20_000;

const _: () = assert!(RUNNING_PER_SHARD_MAX < i16::MAX as u32);
const _: () = assert!(BATCH_BYTES_MAX < MESSAGE_BYTES_MAX);
const _: () = assert!(*NAK_DELAY_MS.start() < *NAK_DELAY_MS.end());

/// The configurable bounds of one shard. Shared, never changes while the process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Steps of one tenant that may run at once.
    pub tenant_running_max: u32,
    /// Steps of one tenant that may wait at once.
    pub tenant_queued_max: u32,
    /// Steps of one tenant that may wait for people at once.
    pub tenant_parked_max: u32,
    /// Steps that may run at once on this shard, over all tenants.
    pub shard_running_max: u32,
    /// Of these, steps of the cpu lane.
    pub cpu_running_max: u32,
    /// Of these, steps of the gpu lane.
    pub gpu_running_max: u32,
    /// Memory that steps of one tenant which run at once may ask for together, in bytes.
    pub tenant_memory_bytes_max: u64,
    /// Memory that steps which run at once on this shard may ask for together, in bytes.
    pub shard_memory_bytes_max: u64,
    /// Steps that may wait at once on this shard, over all tenants.
    pub shard_queued_max: u32,
    /// Bytes of message bodies that this shard may hold for waiting and running steps, and of outputs that are not yet told.
    pub shard_held_bytes_max: u64,
    /// Largest message body accepted, in bytes.
    pub payload_bytes_max: u64,
    /// Larger outputs go to the tenant's blob store, in bytes.
    pub inline_result_bytes: u64,
    /// Outcomes durable but not yet known as published; admission stops above.
    pub unpublished_max: u32,
    /// A step's budget where the sender names none, in milliseconds.
    pub budget_ms_default: u64,
    /// What a job without a `not_after` of its own may be late, and how long the journal remembers, in milliseconds.
    pub horizon_ms: u64,
    /// The journal remembers at least this long, whatever the disk budget, in milliseconds.
    pub horizon_min_ms: u64,
    /// The journal's byte budget on this shard.
    pub journal_bytes_max: u64,
    /// What happens on core NATS when a tenant's queue is full.
    pub on_overload: OnOverload,
    /// A step's own code that keeps its core for so long ends the process, in milliseconds.
    pub stall_ms_max: u64,
}

/// What a step that came over core NATS meets when its tenant's queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOverload {
    /// It waits, unaccepted, until its budget is used up.
    Delay,
    /// It is refused at once.
    Reject,
}

impl Limits {
    /// Steps of a lane that may run at once on this shard, over all tenants.
    pub fn lane_running_max(&self, lane: Lane) -> u32 {
        match lane {
            Lane::Io => self.shard_running_max,
            Lane::Cpu => self.cpu_running_max,
            Lane::Gpu => self.gpu_running_max,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            tenant_running_max: 1_024,
            tenant_queued_max: 10_000,
            tenant_parked_max: 10_000,
            shard_running_max: 4_096,
            cpu_running_max: 64,
            gpu_running_max: 64,
            tenant_memory_bytes_max: 1 << 30,
            shard_memory_bytes_max: 4 << 30,
            shard_queued_max: 100_000,
            shard_held_bytes_max: 1 << 30,
            payload_bytes_max: 1 << 20,
            inline_result_bytes: 256 << 10,
            unpublished_max: 65_536,
            budget_ms_default: 60_000,
            horizon_ms: 2 * 3600 * 1000,
            horizon_min_ms: 10 * 60 * 1000,
            journal_bytes_max: 20 << 30,
            on_overload: OnOverload::Delay,
            stall_ms_max: 10_000,
        }
    }
}
