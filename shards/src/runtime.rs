//! The glommio half: pinned executors that drive the machines, and the disk under their journals.
//!
//! [`ports`] is what crosses between a shard and the edge; everything else here lives on one core.

pub mod disk;
pub mod ports;
pub mod rt;
