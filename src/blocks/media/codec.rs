//! Images as files: JPEG, PNG and WebP to pixels and back. Pure; runs on compute threads.
//!
//! The size that a file claims is looked at before anything is allocated for it, and the decoder has a bound of its own.

use std::io::Cursor;

use gpu::{Format, Image};
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ColorType, DynamicImage, ExtendedColorType, ImageEncoder as _, ImageError, ImageFormat, ImageReader, Limits};
use serde_json::json;
use shards::outcome::{Code, Fault};
use thiserror::Error;

/// How an image is written. Shared, never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Jpeg,
    Png,
    WebP,
}

/// Why there are no pixels. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum DecodeError {
    #[error("it is neither JPEG nor PNG nor WebP")]
    Unknown,
    #[error("it has {pixels} pixels; {pixels_max} are allowed with the memory that is kept for the step")]
    TooLarge { pixels: u64, pixels_max: u64 },
    #[error("{0}")]
    Damaged(String),
}

impl Encoding {
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "jpeg" | "jpg" => Encoding::Jpeg,
            "png" => Encoding::Png,
            "webp" => Encoding::WebP,
            _ => return None,
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Encoding::Jpeg => "jpeg",
            Encoding::Png => "png",
            Encoding::WebP => "webp",
        }
    }

    /// The file of an image. JPEG has no alpha: it is dropped. WebP is lossless; `quality` (1 to 100) is JPEG's.
    pub(super) fn encode(self, image: &Image, quality: u8) -> Result<Vec<u8>, String> {
        let (width, height) = (image.width(), image.height());
        let mut out = Vec::new();
        let opaque: Vec<u8>;
        let (pixels, colour): (&[u8], _) = match (self, image.format()) {
            (_, Format::Gray8) => (image.pixels(), ExtendedColorType::L8),
            (_, Format::Rgb8) => (image.pixels(), ExtendedColorType::Rgb8),
            (Encoding::Jpeg, Format::Rgba8) => {
                opaque = image.pixels().chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect();
                (&opaque, ExtendedColorType::Rgb8)
            }
            (_, Format::Rgba8) => (image.pixels(), ExtendedColorType::Rgba8),
        };
        let written = match self {
            Encoding::Jpeg => JpegEncoder::new_with_quality(&mut out, quality).write_image(pixels, width, height, colour),
            Encoding::Png => PngEncoder::new(&mut out).write_image(pixels, width, height, colour),
            Encoding::WebP => WebPEncoder::new_lossless(&mut out).write_image(pixels, width, height, colour),
        };
        written.map(|()| out).map_err(|error| error.to_string())
    }
}

/// The pixels of a file, and how it was written. What has more than eight bits a channel has eight then; of an animation it is the
/// first frame.
///
/// # Errors
/// It is no such file, a damaged one, or one with more pixels than that.
pub(super) fn decode(encoded: &[u8], pixels_max: u64) -> Result<(Image, Encoding), DecodeError> {
    let damaged = |error: ImageError| DecodeError::Damaged(error.to_string());
    let reader = |limits| {
        let mut reader = ImageReader::new(Cursor::new(encoded)).with_guessed_format().map_err(|_| DecodeError::Unknown)?;
        reader.limits(limits);
        Ok(reader)
    };
    let first = reader(Limits::no_limits())?;
    let encoding = match first.format() {
        Some(ImageFormat::Jpeg) => Encoding::Jpeg,
        Some(ImageFormat::Png) => Encoding::Png,
        Some(ImageFormat::WebP) => Encoding::WebP,
        _ => return Err(DecodeError::Unknown),
    };
    let (width, height) = first.into_dimensions().map_err(damaged)?;
    let pixels = u64::from(width) * u64::from(height);
    let pixels_max = pixels_max.min(gpu::limits::IMAGE_PIXELS_MAX.into());
    if pixels > pixels_max {
        return Err(DecodeError::TooLarge { pixels, pixels_max });
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(gpu::limits::SIDE_PIXELS_MAX);
    limits.max_image_height = Some(gpu::limits::SIDE_PIXELS_MAX);
    // Sixteen bits a channel, and as much again for what the decoder needs besides.
    limits.max_alloc = Some(pixels * 16 + (1 << 20));
    let decoded = reader(limits)?.decode().map_err(damaged)?;
    let (format, pixels) = match decoded.color() {
        ColorType::L8 | ColorType::L16 => (Format::Gray8, decoded.into_luma8().into_raw()),
        ColorType::Rgb8 | ColorType::Rgb16 | ColorType::Rgb32F => (Format::Rgb8, DynamicImage::into_rgb8(decoded).into_raw()),
        _ => (Format::Rgba8, decoded.into_rgba8().into_raw()),
    };
    let image = Image::new(width, height, format, pixels.into()).map_err(|error| DecodeError::Damaged(error.to_string()))?;
    Ok((image, encoding))
}

impl DecodeError {
    /// As a fault of the inputs at `pointer`.
    pub(super) fn fault(&self, pointer: &str) -> Fault {
        let details = json!({ "pointer": pointer, "cause": self.to_string() });
        Fault::new(Code::InvalidInput, "The image cannot be read.").with_details(details.to_string())
    }
}
