//! What may be asked of the lane, and how it is answered. Closed: a device knows every kind of work there is.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::device::DeviceKind;
use crate::image::{Format, Image};

/// 32 bytes of a hash.
pub type Digest = [u8; 32];

/// One job. Crosses cores.
#[derive(Clone, Debug)]
pub enum Work {
    /// Digests of buffers.
    Hash(Hash),
    /// An image made of an image.
    Render(Render),
}

/// Digests of many buffers. Crosses cores.
#[derive(Clone, Debug)]
pub struct Hash {
    /// For all of them.
    pub algorithm: Algorithm,
    /// Of any length, 0 included.
    pub buffers: Vec<Bytes>,
}

/// A hash function. Shared, never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256 (FIPS 180-4).
    Sha256,
    /// BLAKE3 without a key, 32 bytes.
    Blake3,
}

/// Operations on an image, in their order. Crosses cores.
///
/// All arithmetic on pixels is in integers, and the tables that it uses are made on the CPU: every device gives the same bytes.
#[derive(Clone, Debug)]
pub struct Render {
    /// Where it begins.
    pub image: Image,
    /// At most [`crate::limits::OPERATIONS_MAX`]; none gives the image back.
    pub operations: Vec<Operation>,
}

/// One operation. Lengths are in pixels, channels are as they are encoded (no operation works in linear light).
#[derive(Clone, Debug)]
pub enum Operation {
    /// The part that begins at `x`, `y`; all of it must lie in the image.
    Crop {
        /// From the left.
        x: u32,
        /// From the top.
        y: u32,
        /// Of the part.
        width: u32,
        /// Of the part.
        height: u32,
    },
    /// Another size. Colours count by their alpha, so that what cannot be seen does not shine through.
    Resize {
        /// The new one.
        width: u32,
        /// The new one.
        height: u32,
        /// How pixels between pixels are made.
        filter: Filter,
    },
    /// Red, green and blue become luma (Rec. 709 weights 54, 183 and 19 of 256); format and alpha stay.
    Grayscale,
    /// Every colour channel `c` becomes `(c − 128) · contrast / 256 + 128 + brightness`, rounded and held in 0–255.
    Tone {
        /// −255 to 255.
        brightness: i32,
        /// In 256ths: 256 changes nothing; 0 to 65,536.
        contrast: u32,
    },
    /// Every colour channel becomes 255 less itself.
    Invert,
    /// Red and blue change places; nothing happens to an image of luma.
    SwapRedBlue,
    /// Another format. Luma is made as by `Grayscale`; alpha is dropped, or is 255.
    Convert(Format),
    /// Another image over this one, by its alpha. What lies outside of this one is not seen.
    Overlay {
        /// Of any format.
        image: Image,
        /// Of its left edge; may be negative.
        x: i32,
        /// Of its upper edge; may be negative.
        y: i32,
        /// How much of it is seen, of 255; on top of its own alpha.
        opacity: u8,
    },
}

/// How pixels between pixels are made. Shared, never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The pixel whose middle is nearest.
    Nearest,
    /// Linear between neighbours; a triangle over all that a pixel covers where the image becomes smaller.
    Triangle,
    /// Cubic by Catmull and Rom.
    CatmullRom,
    /// A sinc with a window of three lobes.
    Lanczos3,
}

/// What came of a job. Crosses cores.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The result.
    pub output: Output,
    /// The kind of device that computed it: `Host` only where the settings allow it.
    pub kind: DeviceKind,
    /// Its name.
    pub device: Arc<str>,
    /// This job's share of the time that its batch took on the device, by memory.
    pub busy: Duration,
    /// Jobs of the batch, this one included.
    pub batch_jobs: usize,
}

/// A result. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// In the order of the buffers.
    Digests(Vec<Digest>),
    /// What the operations left.
    Image(Image),
}

/// Why an accepted job has no result. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The caller gave it up before its batch began.
    #[error("cancelled before it ran")]
    Cancelled,
    /// The device went away under its batch, or before it; it is opened again. The same job may succeed then.
    #[error("the device is lost and is opened again: {0}")]
    Lost(String),
    /// The device refused the batch and goes on: no memory, say.
    #[error("the device failed: {0}")]
    Failed(String),
    /// The code of the lane panicked; the group goes on.
    #[error("the lane panicked: {0}")]
    Panicked(String),
    /// The group ended first.
    #[error("the lane is closed")]
    Closed,
}

impl Failure {
    /// Whether the same job may succeed later. Who shared a batch with a job that makes the lane panic is not to blame, so a panic
    /// counts too.
    pub fn retryable(&self) -> bool {
        !matches!(self, Failure::Cancelled)
    }
}
