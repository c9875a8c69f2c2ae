//! The GPU lane: batches of small jobs for a CUDA device, and the same computed on the CPU where that is asked for.
//!
//! A shard holds a [`Client`], submits a [`Work`] and waits for its answer; it never waits for a device. A [`Group`] owns the
//! threads: one for each stream of each device. Jobs wait in one bounded queue, are put together by kind and size
//! ([`batch`]) and run as batches. The host device is what the kernels are checked against; it never stands in for a
//! missing GPU unless [`Fallback::Host`] says so, and every answer names the device that computed it.
//!
//! The crate knows no shard, no block and no configuration file. It has no async runtime: answers come over flume.

pub mod batch;
mod cache;
pub mod client;
mod desk;
mod device;
mod group;
mod image;
mod job;
mod kernels;
pub mod limits;
mod machine;
mod plan;
mod seat;
mod status;
mod taps;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use client::{Cancel, Client, Pending, Refusal};
pub use device::host::{NotRendered, render_here};
pub use device::{DeviceKind, Missing};
pub use group::{Devices, Fallback, Group, Settings, StartError, start};
pub use image::{Format, Image};
pub use job::{Algorithm, Answer, Digest, Failure, Filter, Hash, Operation, Output, Render, Work};
pub use plan::Invalid;
pub use status::{DeviceState, DeviceStatus, Status};
