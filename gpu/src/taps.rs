//! Weights of a resize along one axis, in integers: made once on the CPU, so that all devices multiply by the same numbers. Pure.
//!
//! The weights of one pixel add up to exactly [`ONE`]: an image of one colour keeps it. They are rounded as running sums, so
//! that a pixel made of thousands loses nothing.

use crate::job::Filter;
use crate::plan::Shape;

/// The sum of the weights of a pixel.
pub(crate) const ONE: i32 = 1 << 20;
/// Between the two passes a value keeps this many bits of fraction.
pub(crate) const FRACTION_BITS: u32 = 6;
/// After the first pass a sum is moved right by this.
pub(crate) const FIRST_SHIFT: u32 = 20 - FRACTION_BITS;
/// After the second pass a sum is moved right by this.
pub(crate) const LAST_SHIFT: u32 = 20 + FRACTION_BITS;

/// For each new pixel the old ones that it is made of. Lives where it is used.
pub(crate) struct Taps {
    /// The first old pixel of each new one.
    pub(crate) starts: Vec<u32>,
    /// Where its weights begin; one more at the end.
    pub(crate) offsets: Vec<u32>,
    /// All weights.
    pub(crate) weights: Vec<i32>,
}

/// Which axis is resized first: the one after which less is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    HorizontalFirst,
    VerticalFirst,
}

impl Order {
    pub(crate) fn of(from: Shape, to: Shape) -> Order {
        let horizontal = u64::from(to.width) * u64::from(from.height);
        let vertical = u64::from(from.width) * u64::from(to.height);
        if horizontal <= vertical { Order::HorizontalFirst } else { Order::VerticalFirst }
    }

    /// The image between the passes. It has no more pixels than the larger end: both choices multiplied are both ends multiplied,
    /// so the smaller choice cannot be above both ends.
    pub(crate) fn between(self, from: Shape, to: Shape) -> Shape {
        match self {
            Order::HorizontalFirst => Shape { width: to.width, ..from },
            Order::VerticalFirst => Shape { height: to.height, ..from },
        }
    }
}

/// How far a filter reaches, in pixels of the coarser side.
fn reach(filter: Filter) -> f64 {
    match filter {
        Filter::Nearest => 0.5,
        Filter::Triangle => 1.0,
        Filter::CatmullRom => 2.0,
        Filter::Lanczos3 => 3.0,
    }
}

fn weight(filter: Filter, at: f64) -> f64 {
    let x = at.abs();
    match filter {
        Filter::Nearest => f64::from(u8::from(x <= 0.5)),
        Filter::Triangle => (1.0 - x).max(0.0),
        Filter::CatmullRom if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
        Filter::CatmullRom if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
        Filter::Lanczos3 if x < 3.0 => sinc(x) * sinc(x / 3.0),
        Filter::CatmullRom | Filter::Lanczos3 => 0.0,
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let angle = std::f64::consts::PI * x;
    angle.sin() / angle
}

/// The weights from `from` to `to` pixels; neither is zero.
pub(crate) fn taps(from: u32, to: u32, filter: Filter) -> Taps {
    let scale = f64::from(from) / f64::from(to);
    let stretch = scale.max(1.0);
    let reach = reach(filter) * stretch;
    let mut taps =
        Taps { starts: Vec::with_capacity(to as usize), offsets: Vec::with_capacity(to as usize + 1), weights: Vec::new() };
    let mut exact = Vec::new();
    taps.offsets.push(0);
    for pixel in 0..to {
        let middle = (f64::from(pixel) + 0.5) * scale;
        // Within the image there is always at least the pixel under the middle.
        let start = ((middle - reach).floor().max(0.0) as u32).min(from - 1);
        let end = ((middle + reach).ceil() as u32).clamp(start + 1, from);
        exact.clear();
        exact.extend((start..end).map(|old| weight(filter, (f64::from(old) + 0.5 - middle) / stretch)));
        let sum: f64 = exact.iter().sum();
        let (mut running, mut rounded) = (0.0, 0);
        for one in &exact {
            running += one;
            let next = (running / sum * f64::from(ONE)).round() as i32;
            taps.weights.push(next - rounded);
            rounded = next;
        }
        taps.starts.push(start);
        taps.offsets.push(taps.weights.len() as u32);
    }
    taps
}

/// No less than the tables of [`taps`] take, in bytes.
pub(crate) fn table_bytes(from: u32, to: u32, filter: Filter) -> u64 {
    let each = (2.0 * reach(filter) * (f64::from(from) / f64::from(to)).max(1.0)).ceil() as u64 + 2;
    let weights = u64::from(to) * each.min(u64::from(from));
    4 * (weights + 2 * u64::from(to) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILTERS: [Filter; 3] = [Filter::Triangle, Filter::CatmullRom, Filter::Lanczos3];
    const LENGTHS: [u32; 12] = [1, 2, 3, 5, 7, 16, 31, 100, 255, 1000, 4097, 16_384];

    #[test]
    fn weights_of_each_pixel_add_up_to_one_and_lie_in_the_image() {
        for filter in FILTERS {
            for from in LENGTHS {
                for to in LENGTHS {
                    let taps = taps(from, to, filter);
                    assert_eq!((taps.starts.len(), taps.offsets.len()), (to as usize, to as usize + 1));
                    for pixel in 0..to as usize {
                        let mine = &taps.weights[taps.offsets[pixel] as usize..taps.offsets[pixel + 1] as usize];
                        assert!(!mine.is_empty() && taps.starts[pixel] as usize + mine.len() <= from as usize);
                        assert_eq!(mine.iter().sum::<i32>(), ONE, "{filter:?} {from} to {to}, pixel {pixel}");
                        let size: i64 = mine.iter().map(|w| i64::from(w.abs())).sum();
                        assert!(size <= 2 * i64::from(ONE), "{filter:?} {from} to {to}: {size}");
                    }
                    let bytes = 4 * (taps.starts.len() + taps.offsets.len() + taps.weights.len()) as u64;
                    assert!(bytes <= table_bytes(from, to, filter), "{filter:?} {from} to {to}");
                }
            }
        }
    }

    #[test]
    fn weights_are_the_same_from_both_ends() {
        for filter in FILTERS {
            for (from, to) in [(7, 3), (3, 7), (100, 31), (31, 100), (16, 16)] {
                let taps = taps(from, to, filter);
                let dense = |pixel: usize| {
                    let mut row = vec![0_i32; from as usize];
                    let mine = &taps.weights[taps.offsets[pixel] as usize..taps.offsets[pixel + 1] as usize];
                    row[taps.starts[pixel] as usize..][..mine.len()].copy_from_slice(mine);
                    row
                };
                for pixel in 0..to as usize {
                    let mut other = dense(to as usize - 1 - pixel);
                    other.reverse();
                    for (left, right) in dense(pixel).iter().zip(other) {
                        assert!((left - right).abs() <= 2, "{filter:?} {from} to {to}: {left} and {right}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_image_between_the_passes_is_no_larger_than_the_larger_end() {
        for (w, h, x, y) in [(1, 16_384, 16_384, 1), (16_384, 1, 1, 16_384), (5_000, 6_000, 6_000, 5_000), (7, 9, 9, 7)] {
            let from = Shape { width: w, height: h, format: crate::Format::Rgba8 };
            let to = Shape { width: x, height: y, format: crate::Format::Rgba8 };
            let between = Order::of(from, to).between(from, to);
            assert!(between.pixels() <= from.pixels().max(to.pixels()));
        }
    }
}
