//! What can be seen of the lane from outside, at any time, without a lock that a device could hold.

use std::sync::Arc;

use crate::device::DeviceKind;

/// The lane at a glance. Crosses cores.
#[derive(Clone, Debug)]
pub struct Status {
    /// One for each thread, so one for each stream of each device.
    pub devices: Vec<DeviceStatus>,
    /// Jobs that wait or run.
    pub jobs: usize,
    /// What their callers lent, in bytes.
    pub waiting_bytes: u64,
}

impl Status {
    /// Whether any thread can work.
    pub fn up(&self) -> bool {
        self.devices.iter().any(|device| device.state == DeviceState::Up)
    }
}

/// One thread and its stream. Crosses cores.
#[derive(Clone, Debug)]
pub struct DeviceStatus {
    /// What computes.
    pub kind: DeviceKind,
    /// Its name; empty before it was opened once.
    pub name: Arc<str>,
    /// Number of the device; 0 for the host.
    pub ordinal: usize,
    /// Whether it works.
    pub state: DeviceState,
    /// Batches that it ran to their end.
    pub batches: u64,
    /// Jobs in these.
    pub jobs: u64,
    /// How often it was lost, by an error or a panic.
    pub losses: u64,
    /// Time in batches, in microseconds.
    pub busy_us: u64,
}

/// Whether a device works. Shared, never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// It takes batches.
    Up,
    /// It was lost, or is not opened yet.
    Down,
    /// Its thread has ended.
    Ended,
}
