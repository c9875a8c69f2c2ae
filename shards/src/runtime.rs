//! The glommio half: pinned executors that drive the machines, and the disk under their journals.
//!
//! `launch` starts a thread per core from [`seat::Seat`]s; on it, [`drive`] feeds events to the machine and carries out its
//! effects through [`perform`] (blocks) and [`disk`] (journal). [`ports`] is what crosses between a shard and the edge; all
//! else lives on one core. Every spawn and timer goes through [`rt`], which keeps glommio's known traps shut.

pub mod disk;
pub mod drive;
pub mod keeper;
pub mod launch;
pub mod layout;
pub mod local;
pub mod page;
pub mod perform;
pub mod ports;
pub mod rt;
pub mod sealer;
pub mod seat;
pub mod tenure;
pub mod watchdog;
