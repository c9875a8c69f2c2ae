//! The CPU as a device: plain Rust, one job after another on the thread that asks. It is what the kernels are checked against,
//! and what computes where the settings say `host`.

use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::{Device, DeviceKind, Missing, Trouble};
use crate::client::Cancel;
use crate::image::{Format, Image};
use crate::job::{Algorithm, Digest, Render, Work};
use crate::plan::{Change, Invalid, Overlay, Shape, Step, Task, plan};
use crate::taps::{FIRST_SHIFT, LAST_SHIFT, Order, Taps, taps};

/// The CPU. Lives on its thread.
pub(crate) struct Host {
    name: Arc<str>,
}

impl Device for Host {
    type Plan = ();

    fn open((): &()) -> Result<Host, Missing> {
        Ok(Host { name: Arc::from("host") })
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Host
    }

    fn name(&self) -> Arc<str> {
        self.name.clone()
    }

    fn hash(&mut self, algorithm: Algorithm, buffers: &[&Bytes]) -> Result<Vec<Digest>, Trouble> {
        Ok(buffers
            .iter()
            .map(|buffer| match algorithm {
                Algorithm::Sha256 => Sha256::digest(buffer).into(),
                Algorithm::Blake3 => *blake3::hash(buffer).as_bytes(),
            })
            .collect())
    }

    fn render(&mut self, image: &Image, steps: &[Step]) -> Result<Image, Trouble> {
        let Some(last) = steps.last() else { return Ok(image.clone()) };
        let mut pixels = image.pixels().to_vec();
        for step in steps {
            pixels = change(pixels, step);
        }
        finished(last.to, pixels)
    }
}

/// What a job's operations make of its image, computed on the calling thread: for those who have a thread to compute on and ask for
/// no device. Nothing more is done once `cancel` says so.
///
/// # Errors
/// The job is not as it must be, or is no longer wanted.
pub fn render_here(render: Render, cancel: &Cancel) -> Result<Image, NotRendered> {
    let Task::Render { image, steps } = plan(Work::Render(render))?.task else { unreachable!("it is a render") };
    let Some(last) = steps.last() else { return Ok(image) };
    let mut pixels = image.pixels().to_vec();
    drop(image);
    for step in &steps {
        if cancel.is_cancelled() {
            return Err(NotRendered::Cancelled);
        }
        pixels = change(pixels, step);
    }
    Ok(finished(last.to, pixels).expect("a plan knows the sizes of its images"))
}

/// Why [`render_here`] gives no image. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotRendered {
    /// It is not as it must be.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// Nobody wants it any more.
    #[error("cancelled")]
    Cancelled,
}

/// The image of `shape`.
pub(crate) fn finished(shape: Shape, pixels: Vec<u8>) -> Result<Image, Trouble> {
    Image::new(shape.width, shape.height, shape.format, pixels.into()).map_err(|error| Trouble::Failed(error.to_string()))
}

fn change(mut pixels: Vec<u8>, step: &Step) -> Vec<u8> {
    let (from, to) = (step.from, step.to);
    let channels = from.format.channels() as usize;
    match &step.change {
        Change::Crop { x, y } => crop(&pixels, from, to, *x, *y),
        Change::Nearest => nearest(&pixels, from, to),
        Change::Filter(filter) => {
            let (horizontal, vertical) = (taps(from.width, to.width, *filter), taps(from.height, to.height, *filter));
            resize(&pixels, from, to, &horizontal, &vertical)
        }
        Change::Gray => {
            for pixel in pixels.chunks_exact_mut(channels) {
                let gray = luma(pixel);
                pixel[..3].fill(gray);
            }
            pixels
        }
        Change::Table(table) => {
            for pixel in pixels.chunks_exact_mut(channels) {
                for value in &mut pixel[..channels.min(3)] {
                    *value = table[usize::from(*value)];
                }
            }
            pixels
        }
        Change::Swap => {
            for pixel in pixels.chunks_exact_mut(channels) {
                pixel.swap(0, 2);
            }
            pixels
        }
        Change::Convert => convert(&pixels, from, to),
        Change::Overlay(overlay) => {
            lay_over(&mut pixels, from, overlay);
            pixels
        }
    }
}

fn luma(pixel: &[u8]) -> u8 {
    ((u32::from(pixel[0]) * 54 + u32::from(pixel[1]) * 183 + u32::from(pixel[2]) * 19 + 128) >> 8) as u8
}

fn crop(pixels: &[u8], from: Shape, to: Shape, x: u32, y: u32) -> Vec<u8> {
    let channels = from.format.channels() as usize;
    let mut out = Vec::with_capacity(to.bytes());
    for row in y..y + to.height {
        let start = (row as usize * from.width as usize + x as usize) * channels;
        out.extend_from_slice(&pixels[start..start + to.width as usize * channels]);
    }
    out
}

/// The old pixel under the middle of new pixel `at`.
fn under(at: u32, from: u32, to: u32) -> usize {
    ((2 * u64::from(at) + 1) * u64::from(from) / (2 * u64::from(to))) as usize
}

fn nearest(pixels: &[u8], from: Shape, to: Shape) -> Vec<u8> {
    let channels = from.format.channels() as usize;
    let columns: Vec<usize> = (0..to.width).map(|x| under(x, from.width, to.width) * channels).collect();
    let mut out = Vec::with_capacity(to.bytes());
    for y in 0..to.height {
        let row = &pixels[under(y, from.height, to.height) * from.width as usize * channels..];
        for column in &columns {
            out.extend_from_slice(&row[*column..*column + channels]);
        }
    }
    out
}

fn convert(pixels: &[u8], from: Shape, to: Shape) -> Vec<u8> {
    let mut out = Vec::with_capacity(to.bytes());
    for pixel in pixels.chunks_exact(from.format.channels() as usize) {
        let (red, green, blue, alpha) = match from.format {
            Format::Gray8 => (pixel[0], pixel[0], pixel[0], 255),
            Format::Rgb8 => (pixel[0], pixel[1], pixel[2], 255),
            Format::Rgba8 => (pixel[0], pixel[1], pixel[2], pixel[3]),
        };
        match to.format {
            Format::Gray8 => out.push(luma(&[red, green, blue])),
            Format::Rgb8 => out.extend([red, green, blue]),
            Format::Rgba8 => out.extend([red, green, blue, alpha]),
        }
    }
    out
}

fn resize(pixels: &[u8], from: Shape, to: Shape, horizontal: &Taps, vertical: &Taps) -> Vec<u8> {
    let order = Order::of(from, to);
    let between = order.between(from, to);
    let (first, last) = match order {
        Order::HorizontalFirst => (Axis::across(horizontal, from), Axis::down(vertical, between)),
        Order::VerticalFirst => (Axis::down(vertical, from), Axis::across(horizontal, between)),
    };
    let channels = from.format.channels() as usize;
    let alpha = from.format == Format::Rgba8;
    let mut values = Vec::with_capacity(between.pixels() as usize * channels);
    for y in 0..between.height as usize {
        for x in 0..between.width as usize {
            let mut sums = [0_i64; 4];
            first.each(x, y, |at, weight| {
                let pixel = &pixels[at * channels..(at + 1) * channels];
                let cover = if alpha { i64::from(pixel[3]) } else { 1 };
                for (channel, value) in pixel.iter().enumerate() {
                    let cover = if channel == 3 { 1 } else { cover };
                    sums[channel] += weight * i64::from(*value) * cover;
                }
            });
            values.extend(sums[..channels].iter().map(|sum| ((sum + (1 << (FIRST_SHIFT - 1))) >> FIRST_SHIFT) as i32));
        }
    }
    let mut out = Vec::with_capacity(to.bytes());
    for y in 0..to.height as usize {
        for x in 0..to.width as usize {
            let mut sums = [0_i64; 4];
            last.each(x, y, |at, weight| {
                for (sum, value) in sums.iter_mut().zip(&values[at * channels..(at + 1) * channels]) {
                    *sum += weight * i64::from(*value);
                }
            });
            let plain = |sum: i64| ((sum + (1 << (LAST_SHIFT - 1))) >> LAST_SHIFT).clamp(0, 255) as u8;
            if alpha {
                // Colours were counted by alpha: divided by the sum of it they are colours again.
                let whole = sums[3];
                let colour = |sum: i64| if whole <= 0 || sum <= 0 { 0 } else { ((2 * sum + whole) / (2 * whole)).min(255) as u8 };
                out.extend([colour(sums[0]), colour(sums[1]), colour(sums[2]), plain(whole)]);
            } else {
                out.extend(sums[..channels].iter().map(|sum| plain(*sum)));
            }
        }
    }
    out
}

/// One pass: where the old pixels of a new one lie.
struct Axis<'a> {
    taps: &'a Taps,
    width: usize,
    down: bool,
}

impl<'a> Axis<'a> {
    fn across(taps: &'a Taps, from: Shape) -> Axis<'a> {
        Axis { taps, width: from.width as usize, down: false }
    }

    fn down(taps: &'a Taps, from: Shape) -> Axis<'a> {
        Axis { taps, width: from.width as usize, down: true }
    }

    fn each(&self, x: usize, y: usize, mut tap: impl FnMut(usize, i64)) {
        let along = if self.down { y } else { x };
        let weights = &self.taps.weights[self.taps.offsets[along] as usize..self.taps.offsets[along + 1] as usize];
        for (k, weight) in weights.iter().enumerate() {
            let old = self.taps.starts[along] as usize + k;
            let at = if self.down { old * self.width + x } else { y * self.width + old };
            tap(at, i64::from(*weight));
        }
    }
}

fn lay_over(pixels: &mut [u8], base: Shape, overlay: &Overlay) {
    let channels = base.format.channels() as usize;
    let over = &overlay.image;
    for row in 0..overlay.height as usize {
        for column in 0..overlay.width as usize {
            let from = (overlay.top as usize + row) * over.width() as usize + overlay.left as usize + column;
            let to = (overlay.y as usize + row) * base.width as usize + overlay.x as usize + column;
            let stride = over.format().channels() as usize;
            let pixel = &over.pixels()[from * stride..(from + 1) * stride];
            let (colour, alpha) = match over.format() {
                Format::Gray8 => ([pixel[0]; 3], 255),
                Format::Rgb8 => ([pixel[0], pixel[1], pixel[2]], 255),
                Format::Rgba8 => ([pixel[0], pixel[1], pixel[2]], u32::from(pixel[3])),
            };
            let cover = (alpha * u32::from(overlay.opacity) + 127) / 255;
            blend(&mut pixels[to * channels..(to + 1) * channels], base.format, colour, cover);
        }
    }
}

fn blend(base: &mut [u8], format: Format, colour: [u8; 3], cover: u32) {
    let rest = 255 - cover;
    match format {
        Format::Gray8 => base[0] = ((u32::from(luma(&colour)) * cover + u32::from(base[0]) * rest + 127) / 255) as u8,
        Format::Rgb8 => {
            for (under, over) in base.iter_mut().zip(colour) {
                *under = ((u32::from(over) * cover + u32::from(*under) * rest + 127) / 255) as u8;
            }
        }
        Format::Rgba8 => {
            // Both weights and their sum in 255ths of 255ths.
            let (upper, lower) = (cover * 255, u32::from(base[3]) * rest);
            let whole = upper + lower;
            for (under, over) in base[..3].iter_mut().zip(colour) {
                let sum = u32::from(over) * upper + u32::from(*under) * lower;
                *under = (sum + whole / 2).checked_div(whole).unwrap_or(0) as u8;
            }
            base[3] = ((whole + 127) / 255) as u8;
        }
    }
}
