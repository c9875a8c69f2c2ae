//! Tests of more than one part: the kernels against the host device, the host device against what is known otherwise, and the
//! group of threads with a device that fails on purpose.

mod group;
mod hash;
mod render;
