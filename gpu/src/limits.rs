//! Every bound of the lane that no setting changes, with its unit last. What is configurable is in [`crate::Settings`], whose
//! defaults stand here too.

/// Longest side of an image, in pixels.
pub const SIDE_PIXELS_MAX: u32 = 16_384;
/// Largest image, in pixels: one frame of 7680 × 4320 is under it. Every index into an image fits 32 bits by this.
pub const IMAGE_PIXELS_MAX: u32 = 1 << 25;
/// Most operations of one render job.
pub const OPERATIONS_MAX: usize = 32;
/// Most buffers of one hash job.
pub const BUFFERS_PER_JOB_MAX: usize = 65_536;
/// Most bytes of one buffer to hash. One thread of a device hashes a buffer with SHA-256, so this bounds a kernel's time.
pub const BUFFER_BYTES_MAX: usize = 64 << 20;
/// Threads of one block of a kernel.
pub const BLOCK_THREADS: u32 = 256;

/// Jobs that wait or run, unless set.
pub const JOBS_MAX: usize = 4_096;
/// Bytes of the jobs that wait or run, unless set: what their callers lent, not what devices hold.
pub const WAITING_BYTES_MAX: u64 = 1 << 30;
/// Memory of a device that all its batches together may take, in bytes, unless set.
pub const MEMORY_BYTES_MAX: u64 = 1 << 30;
/// Jobs of one batch, unless set.
pub const BATCH_JOBS_MAX: usize = 1_024;
/// How long a job may wait for others to share its batch, in microseconds, unless set.
pub const BATCH_WAIT_US: u64 = 200;
/// Streams of one device, unless set: one copies while the other computes.
pub const STREAMS: usize = 2;

/// A lost device is opened again after this, in milliseconds; twice as long after each failure.
pub const REOPEN_MS_MIN: u64 = 300;
/// And never later than this, in milliseconds.
pub const REOPEN_MS_MAX: u64 = 30_000;
/// An idle thread looks this often whether its device was lost by another, in milliseconds.
pub const LOOK_MS: u64 = 250;

const _: () = assert!(IMAGE_PIXELS_MAX as u64 * 16 <= u32::MAX as u64 + 1, "an intermediate image is indexed by 32 bits");
const _: () = assert!(SIDE_PIXELS_MAX <= IMAGE_PIXELS_MAX && REOPEN_MS_MIN <= REOPEN_MS_MAX);
const _: () = assert!(LOOK_MS < REOPEN_MS_MIN, "a context that broke is let go by all streams before it is opened again");
const _: () = assert!(BUFFER_BYTES_MAX as u64 <= MEMORY_BYTES_MAX / STREAMS as u64);
