//! For tests: numbers at random that are the same in every run, and jobs made of them.

use bytes::Bytes;

use crate::image::{Format, Image};
use crate::job::{Filter, Operation, Render};

/// A generator with a seed (xorshift64*).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// 0 to `end` − 1.
    pub(crate) fn below(&mut self, end: u32) -> u32 {
        (((self.next() >> 32) * u64::from(end)) >> 32) as u32
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Bytes {
        (0..length).map(|_| (self.next() >> 56) as u8).collect()
    }

    /// A buffer of a length among [`EDGES`].
    pub(crate) fn edge(&mut self) -> Bytes {
        let length = EDGES[self.below(EDGES.len() as u32) as usize];
        self.bytes(length)
    }

    pub(crate) fn format(&mut self) -> Format {
        [Format::Gray8, Format::Rgb8, Format::Rgba8][self.below(3) as usize]
    }

    pub(crate) fn filter(&mut self) -> Filter {
        [Filter::Nearest, Filter::Triangle, Filter::CatmullRom, Filter::Lanczos3][self.below(4) as usize]
    }

    pub(crate) fn image(&mut self, width: u32, height: u32, format: Format) -> Image {
        let pixels = self.bytes((width * height * format.channels()) as usize);
        Image::new(width, height, format, pixels).unwrap()
    }

    /// A job that is valid, of sides of at most `side` pixels.
    pub(crate) fn render(&mut self, side: u32) -> Render {
        let (mut width, mut height, format) = (1 + self.below(side), 1 + self.below(side), self.format());
        let image = self.image(width, height, format);
        let operations = (0..self.below(6))
            .map(|_| match self.below(8) {
                0 => {
                    let (x, y) = (self.below(width), self.below(height));
                    (width, height) = (1 + self.below(width - x), 1 + self.below(height - y));
                    Operation::Crop { x, y, width, height }
                }
                1 | 2 => {
                    (width, height) = (1 + self.below(side), 1 + self.below(side));
                    Operation::Resize { width, height, filter: self.filter() }
                }
                3 => Operation::Grayscale,
                4 => Operation::Tone { brightness: self.below(511) as i32 - 255, contrast: self.below(1_024) },
                5 => [Operation::Invert, Operation::SwapRedBlue][self.below(2) as usize].clone(),
                6 => Operation::Convert(self.format()),
                _ => {
                    let (wide, high, format) = (1 + self.below(side), 1 + self.below(side), self.format());
                    let (x, y) = (self.below(4 * side) as i32 - 2 * side as i32, self.below(4 * side) as i32 - 2 * side as i32);
                    let image = self.image(wide, high, format);
                    Operation::Overlay { image, x, y, opacity: [0, 255, self.below(256) as u8][self.below(3) as usize] }
                }
            })
            .collect();
        Render { image, operations }
    }
}

/// Lengths at which a hash function's padding, blocks or tree change.
pub(crate) const EDGES: [usize; 26] = [
    0, 1, 3, 55, 56, 57, 63, 64, 65, 119, 120, 127, 128, 129, 1_023, 1_024, 1_025, 2_047, 2_048, 2_049, 3_072, 3_073, 5_120,
    7_169, 16_385, 31_744,
];
