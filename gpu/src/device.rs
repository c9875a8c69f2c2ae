//! What computes a batch: a CUDA device, or this machine's CPU. Both give the same bytes; the CPU says which they are.
//!
//! A device lives on one thread, which opened it. It is asked for one batch at a time and answers all of it.

use std::sync::Arc;

use bytes::Bytes;

use crate::image::Image;
use crate::job::{Algorithm, Digest};
use crate::plan::Step;

pub(crate) mod cuda;
pub(crate) mod host;

/// What kind of device. Shared, never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A GPU, by CUDA.
    Cuda,
    /// This machine's CPU.
    Host,
}

impl DeviceKind {
    /// `cuda` or `host`.
    pub fn name(self) -> &'static str {
        match self {
            DeviceKind::Cuda => "cuda",
            DeviceKind::Host => "host",
        }
    }
}

/// Why a batch has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The device is of no more use and must be opened again.
    Lost(String),
    /// This batch cannot be computed; the device goes on.
    Failed(String),
}

/// Why there is no device. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// There is no driver.
    #[error("no CUDA: the driver's library libcuda.so.1 is not found; gpu.fallback = \"host\" would compute on the CPU")]
    Driver,
    /// There is a driver, and nothing that compiles kernels.
    #[error("no CUDA: the compiler's library libnvrtc.so.12 is not found; gpu.fallback = \"host\" would compute on the CPU")]
    Compiler,
    /// There is no such device, or it does not open.
    #[error("no CUDA: {0}; gpu.fallback = \"host\" would compute on the CPU")]
    Device(String),
}

/// A device that is open. Lives on its thread.
pub(crate) trait Device: Sized {
    /// What opens one. Crosses cores.
    type Plan: Clone + Send + 'static;

    /// Opens it, for the thread that calls.
    fn open(plan: &Self::Plan) -> Result<Self, Missing>;

    fn kind(&self) -> DeviceKind;

    fn name(&self) -> Arc<str>;

    /// The digests of `buffers`, in their order.
    fn hash(&mut self, algorithm: Algorithm, buffers: &[&Bytes]) -> Result<Vec<Digest>, Trouble>;

    /// What `steps` make of `image`.
    fn render(&mut self, image: &Image, steps: &[Step]) -> Result<Image, Trouble>;
}
