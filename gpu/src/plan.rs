//! A job that was checked: every size, every place and what it costs is known before it waits. Pure.
//!
//! Devices index with 32 bits and check nothing: all that they rely on is decided here.

use bytes::Bytes;

use crate::batch::{Class, Kind};
use crate::image::{self, Format, Image};
use crate::job::{Algorithm, Filter, Operation, Work};
use crate::{limits, taps};

/// Why a job is refused for what it is. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A side of an image is zero.
    #[error("an image needs a width and a height")]
    Empty,
    /// A side of an image is too long.
    #[error("a side of {pixels} pixels; {max} are allowed", max = limits::SIDE_PIXELS_MAX)]
    Side {
        /// Of the longer side.
        pixels: u32,
    },
    /// An image is too large.
    #[error("an image of {pixels} pixels; {max} are allowed", max = limits::IMAGE_PIXELS_MAX)]
    Pixels {
        /// Of all rows.
        pixels: u64,
    },
    /// The pixels do not fill the image, or more than it.
    #[error("{bytes} bytes of pixels where {expected} are needed")]
    Length {
        /// As they came.
        bytes: u64,
        /// By the size and the format.
        expected: u64,
    },
    /// A part that is not in the image.
    #[error("the part to crop does not lie in the image of {width} × {height}")]
    Outside {
        /// Of the image at that point.
        width: u32,
        /// Of the image at that point.
        height: u32,
    },
    /// A number beyond its range.
    #[error("{0} is out of range")]
    Range(&'static str),
    /// Too many operations.
    #[error("{0} operations; {max} are allowed", max = limits::OPERATIONS_MAX)]
    Operations(usize),
    /// Too many buffers.
    #[error("{0} buffers; {max} are allowed", max = limits::BUFFERS_PER_JOB_MAX)]
    Buffers(usize),
    /// A buffer is too long.
    #[error("a buffer of {0} bytes; {max} are allowed", max = limits::BUFFER_BYTES_MAX)]
    Buffer(usize),
}

/// A job that can be run as it is. Crosses cores.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) task: Task,
    /// What the caller lent, in bytes.
    pub(crate) lent_bytes: u64,
    /// The most that a device holds for it, in bytes.
    pub(crate) memory_bytes: u64,
    pub(crate) class: Class,
}

/// What is to be done. Crosses cores.
#[derive(Clone, Debug)]
pub(crate) enum Task {
    Hash { algorithm: Algorithm, buffers: Vec<Bytes> },
    Render { image: Image, steps: Vec<Step> },
}

/// Size and format of an image on its way. Shared, never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) format: Format,
}

impl Shape {
    pub(crate) fn of(image: &Image) -> Shape {
        Shape { width: image.width(), height: image.height(), format: image.format() }
    }

    pub(crate) fn pixels(self) -> u32 {
        self.width * self.height
    }

    pub(crate) fn bytes(self) -> usize {
        self.pixels() as usize * self.format.channels() as usize
    }
}

/// One operation with the shape before and after it.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) from: Shape,
    pub(crate) to: Shape,
    pub(crate) change: Change,
}

/// What a step does; what needs no step has none.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Crop { x: u32, y: u32 },
    Nearest,
    Filter(Filter),
    Gray,
    Table(Box<[u8; 256]>),
    Swap,
    Convert,
    Overlay(Overlay),
}

/// The part of an overlay that is seen: `width` × `height` pixels from (`left`, `top`) of its image, at (`x`, `y`) of the other.
#[derive(Clone, Debug)]
pub(crate) struct Overlay {
    pub(crate) image: Image,
    pub(crate) left: u32,
    pub(crate) top: u32,
    pub(crate) x: u32,
    pub(crate) y: u32,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) opacity: u8,
}

/// Checks a job.
///
/// # Errors
/// What of it is not as it must be.
pub(crate) fn plan(work: Work) -> Result<Plan, Invalid> {
    match work {
        Work::Hash(hash) => hash_plan(hash.algorithm, hash.buffers),
        Work::Render(render) => render_plan(render.image, render.operations),
    }
}

fn hash_plan(algorithm: Algorithm, buffers: Vec<Bytes>) -> Result<Plan, Invalid> {
    if buffers.len() > limits::BUFFERS_PER_JOB_MAX {
        return Err(Invalid::Buffers(buffers.len()));
    }
    let (mut lent_bytes, mut memory_bytes, mut longest) = (0, 0, 0);
    for buffer in &buffers {
        if buffer.len() > limits::BUFFER_BYTES_MAX {
            return Err(Invalid::Buffer(buffer.len()));
        }
        lent_bytes += buffer.len() as u64;
        memory_bytes += hash_memory(algorithm, buffer.len() as u64);
        longest = longest.max(buffer.len() as u64);
    }
    // A job without buffers still has tables with an end.
    memory_bytes += HASH_FIXED_BYTES;
    let kind = match algorithm {
        Algorithm::Sha256 => Kind::Sha256,
        Algorithm::Blake3 => Kind::Blake3,
    };
    Ok(Plan { task: Task::Hash { algorithm, buffers }, lent_bytes, memory_bytes, class: Class::of(kind, longest) })
}

/// Whatever the buffers: the ends of the tables.
const HASH_FIXED_BYTES: u64 = 64;

/// The most that one buffer takes on a device, as `machine::hash` lays it out.
fn hash_memory(algorithm: Algorithm, bytes: u64) -> u64 {
    match algorithm {
        // Padded to blocks with nine bytes more; its offset, its blocks and its digest.
        Algorithm::Sha256 => (bytes + 9).next_multiple_of(64) + 8 + 8 + 32,
        // Padded; its offset and length; where its values begin on two levels; these values, no more above than below.
        Algorithm::Blake3 => bytes.next_multiple_of(64).max(64) + 8 + 8 + 2 * 4 + 2 * 32 * bytes.div_ceil(1_024).max(1),
    }
}

fn render_plan(image: Image, operations: Vec<Operation>) -> Result<Plan, Invalid> {
    if operations.len() > limits::OPERATIONS_MAX {
        return Err(Invalid::Operations(operations.len()));
    }
    let mut shape = Shape::of(&image);
    let mut lent_bytes = image.pixels().len() as u64;
    let mut memory_bytes = shape.bytes() as u64;
    let mut steps = Vec::with_capacity(operations.len());
    for operation in operations {
        let Some((to, change)) = change(shape, operation)? else { continue };
        // What changes in place needs no second image.
        let mut step_bytes = shape.bytes() as u64;
        match &change {
            Change::Filter(filter) => {
                let between = taps::Order::of(shape, to).between(shape, to);
                step_bytes += u64::from(between.pixels()) * u64::from(between.format.channels()) * 4;
                step_bytes +=
                    taps::table_bytes(shape.width, to.width, *filter) + taps::table_bytes(shape.height, to.height, *filter);
                step_bytes += to.bytes() as u64;
            }
            Change::Overlay(overlay) => {
                lent_bytes += overlay.image.pixels().len() as u64;
                step_bytes += overlay.image.pixels().len() as u64;
            }
            Change::Table(_) => step_bytes += 256,
            Change::Crop { .. } | Change::Nearest | Change::Convert => step_bytes += to.bytes() as u64,
            Change::Gray | Change::Swap => {}
        }
        memory_bytes = memory_bytes.max(step_bytes);
        steps.push(Step { from: shape, to, change });
        shape = to;
    }
    let class = Class::of(Kind::Render, memory_bytes);
    Ok(Plan { task: Task::Render { image, steps }, lent_bytes, memory_bytes, class })
}

fn change(from: Shape, operation: Operation) -> Result<Option<(Shape, Change)>, Invalid> {
    Ok(match operation {
        Operation::Crop { x, y, width, height } => {
            let inside = |at: u32, length: u32, whole: u32| at.checked_add(length).is_some_and(|end| end <= whole);
            let to = Shape { width, height, ..from };
            image::bytes(width, height, from.format)?;
            if !inside(x, width, from.width) || !inside(y, height, from.height) {
                return Err(Invalid::Outside { width: from.width, height: from.height });
            }
            (to != from).then_some((to, Change::Crop { x, y }))
        }
        Operation::Resize { width, height, filter } => {
            let to = Shape { width, height, ..from };
            image::bytes(width, height, from.format)?;
            let change = if filter == Filter::Nearest { Change::Nearest } else { Change::Filter(filter) };
            (to != from).then_some((to, change))
        }
        Operation::Grayscale => (from.format != Format::Gray8).then_some((from, Change::Gray)),
        Operation::Tone { brightness, contrast } => {
            if !(-255..=255).contains(&brightness) {
                return Err(Invalid::Range("brightness"));
            }
            if contrast > 65_536 {
                return Err(Invalid::Range("contrast"));
            }
            Some((from, Change::Table(Box::new(tone(brightness, contrast)))))
        }
        Operation::Invert => Some((from, Change::Table(Box::new(std::array::from_fn(|c| 255 - c as u8))))),
        Operation::SwapRedBlue => (from.format != Format::Gray8).then_some((from, Change::Swap)),
        Operation::Convert(format) => (from.format != format).then_some((Shape { format, ..from }, Change::Convert)),
        Operation::Overlay { image, x, y, opacity } => {
            let horizontal = seen(x, image.width(), from.width);
            let vertical = seen(y, image.height(), from.height);
            match (horizontal, vertical) {
                (Some((left, x, width)), Some((top, y, height))) if opacity > 0 => {
                    Some((from, Change::Overlay(Overlay { image, left, top, x, y, width, height, opacity })))
                }
                _ => None,
            }
        }
    })
}

/// Of `length` pixels that begin at `at`, which are seen on `whole` pixels: (first of them, where it is seen, how many).
fn seen(at: i32, length: u32, whole: u32) -> Option<(u32, u32, u32)> {
    let start = i64::from(at).clamp(0, i64::from(whole));
    let end = (i64::from(at) + i64::from(length)).clamp(0, i64::from(whole));
    (end > start).then(|| ((start - i64::from(at)) as u32, start as u32, (end - start) as u32))
}

fn tone(brightness: i32, contrast: u32) -> [u8; 256] {
    std::array::from_fn(|c| {
        let scaled = (c as i64 - 128) * i64::from(contrast) + 128;
        ((scaled >> 8) + 128 + i64::from(brightness)).clamp(0, 255) as u8
    })
}
