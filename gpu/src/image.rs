//! An image in memory: rows from the top, pixels from the left, no padding, 8 bits a channel. It is decoded already, and not yet
//! encoded: that is work for the cpu lane.

use bytes::Bytes;

use crate::limits;
use crate::plan::Invalid;

/// How a pixel lies in memory. Shared, never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// One byte of luma.
    Gray8,
    /// Red, green, blue.
    Rgb8,
    /// Red, green, blue, alpha; the colours are not multiplied by alpha.
    Rgba8,
}

impl Format {
    /// Bytes of a pixel.
    pub fn channels(self) -> u32 {
        match self {
            Format::Gray8 => 1,
            Format::Rgb8 => 3,
            Format::Rgba8 => 4,
        }
    }
}

/// Pixels whose size is right and within the limits: there is no other way to have one. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    width: u32,
    height: u32,
    format: Format,
    pixels: Bytes,
}

impl Image {
    /// `pixels` holds `width` × `height` pixels of `format`.
    ///
    /// # Errors
    /// A side is zero or too long, there are too many pixels, or `pixels` has another length.
    pub fn new(width: u32, height: u32, format: Format, pixels: Bytes) -> Result<Image, Invalid> {
        let bytes = bytes(width, height, format)?;
        if pixels.len() as u64 != bytes {
            return Err(Invalid::Length { bytes: pixels.len() as u64, expected: bytes });
        }
        Ok(Image { width, height, format, pixels })
    }

    /// In pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// In pixels.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// How its pixels lie in memory.
    pub fn format(&self) -> Format {
        self.format
    }

    /// All of them.
    pub fn pixels(&self) -> &Bytes {
        &self.pixels
    }

    /// The pixels without a copy.
    pub fn into_pixels(self) -> Bytes {
        self.pixels
    }
}

/// Bytes of an image of this size.
///
/// # Errors
/// A side is zero or too long, or there are too many pixels.
pub(crate) fn bytes(width: u32, height: u32, format: Format) -> Result<u64, Invalid> {
    if width == 0 || height == 0 {
        return Err(Invalid::Empty);
    }
    if width > limits::SIDE_PIXELS_MAX || height > limits::SIDE_PIXELS_MAX {
        return Err(Invalid::Side { pixels: width.max(height) });
    }
    let pixels = u64::from(width) * u64::from(height);
    if pixels > u64::from(limits::IMAGE_PIXELS_MAX) {
        return Err(Invalid::Pixels { pixels });
    }
    Ok(pixels * u64::from(format.channels()))
}
