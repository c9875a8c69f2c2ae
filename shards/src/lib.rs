//! One core's world: the shard machine that owns a set of tenants, and (feature `runtime`) the glommio half that drives it.
//!
//! The machine is sans-I/O: [`shard::Shard::apply`] takes a moment and an [`event::Event`] and fills [`event::Effects`].
//! It has no clock, no I/O, no async and no lock, so a whole world of shards can be simulated in one thread.
//! Read [`event`] and then [`shard`]: everything that can happen to a core, and everything a core can do, is in these two.

pub mod audit;
pub mod block;
pub mod deadlines;
pub mod dedup;
pub mod envelope;
pub mod event;
pub mod fold;
pub mod gate;
pub mod ids;
pub mod journal;
pub mod keys;
pub mod lane;
pub mod limits;
pub mod map;
pub mod outcome;
pub mod planted;
pub mod quota;
pub mod retry;
pub mod shard;
pub mod snapshot;
pub mod step;
pub mod strike;
pub mod tally;
pub mod tenant;

#[cfg(feature = "runtime")]
pub mod runtime;
