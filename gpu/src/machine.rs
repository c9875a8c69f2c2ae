//! What a batch is on a device with memory of its own: what goes there, which kernels run, what comes back.
//!
//! The steps are written once, for whatever can do these four things. A CUDA stream can; so can the kernels compiled for the
//! CPU in tests, which is how the same steps are checked on machines without a GPU.

use crate::device::Trouble;
use crate::kernels::Kernel;

#[cfg(test)]
pub(crate) mod emulated;
mod hash;
mod render;

pub(crate) use hash::hash;
pub(crate) use render::render;

/// One thing that a kernel is given.
pub(crate) enum Arg<'a, M> {
    /// The address of what lies there.
    At(&'a M),
    /// A number.
    Is(u64),
}

/// A device with memory of its own, on which things happen in the order in which they are asked for. Lives on its thread.
pub(crate) trait Machine {
    /// Memory there; given back when dropped.
    type Memory;

    /// Memory with these bytes in it; at least one byte, aligned for any number.
    fn upload(&mut self, bytes: &[u8]) -> Result<Self::Memory, Trouble>;

    /// Memory that the next kernel writes; what is in it until then is not known.
    fn reserve(&mut self, bytes: usize) -> Result<Self::Memory, Trouble>;

    /// Runs a kernel on `threads` threads; their number is its first argument, `args` follow.
    fn run(&mut self, kernel: Kernel, threads: u32, args: &[Arg<'_, Self::Memory>]) -> Result<(), Trouble>;

    /// The first `bytes` bytes, once all that was asked for before has been done.
    fn download(&mut self, memory: &Self::Memory, bytes: usize) -> Result<Vec<u8>, Trouble>;
}

/// Numbers as a device reads them: all that the kernels run on are little-endian.
pub(crate) fn u64s(numbers: impl IntoIterator<Item = u64>) -> Vec<u8> {
    numbers.into_iter().flat_map(u64::to_le_bytes).collect()
}

pub(crate) fn u32s(numbers: impl IntoIterator<Item = u32>) -> Vec<u8> {
    numbers.into_iter().flat_map(u32::to_le_bytes).collect()
}
