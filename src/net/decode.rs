//! Content encodings of answers, undone piece by piece under a limit: gzip, deflate (zlib), br and zstd. Lives on its core.
//!
//! What comes out is bounded while it comes out, never after: a decoder writes into a sink that refuses. Between two strides
//! others run, and once a body turns out to be large, compute threads go on with it: it disturbs nobody.

use std::io::{self, Write};

use bytes::Bytes;
use shards::runtime::rt::yield_if_needed;
use thiserror::Error;

use crate::compute::Compute;

use super::limits::{
    DECODE_HERE_BYTES, DECODE_STRIDE_BYTES, ENCODED_SPARE_BYTES, RATIO_FREE_BYTES, RATIO_MAX, ZSTD_WINDOW_LOG_MAX,
};

/// What we say that we can undo.
pub const ACCEPTED: &str = "gzip, br, zstd";

/// Why a body cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// An encoding that we did not ask for, or more than one.
    #[error("the encoding {0:?} is not one that was asked for")]
    Unknown(String),
    /// The bytes are not what the encoding says, or end too early.
    #[error("the body is not valid {0}")]
    Corrupt(&'static str),
    /// It is larger than the step takes.
    #[error("the body is larger than {0} bytes")]
    TooLarge(u64),
    /// It grows more than any honest body does.
    #[error("the body grows more than {RATIO_MAX} times while it is decoded")]
    Bomb,
}

/// Undoes one encoding.
pub struct Decoder {
    kind: Kind,
    compute: Compute,
}

enum Kind {
    Identity { left: u64, bytes_max: u64 },
    Gzip(Box<flate2::write::GzDecoder<Sink>>),
    Deflate(Box<flate2::write::ZlibDecoder<Sink>>),
    Brotli(Box<brotli::DecompressorWriter<Sink>>),
    Zstd(Box<zstd::stream::write::Decoder<'static, Sink>>),
}

/// Where decoded bytes go until they are taken.
struct Sink {
    out: Vec<u8>,
    /// Decoded so far.
    given: u64,
    /// Encoded so far.
    taken: u64,
    bytes_max: u64,
    refused: Option<DecodeError>,
}

impl Decoder {
    /// For the value of a `Content-Encoding` header; at most `bytes_max` come out.
    ///
    /// # Errors
    /// [`DecodeError::Unknown`].
    pub fn new(encoding: Option<&str>, bytes_max: u64, compute: Compute) -> Result<Decoder, DecodeError> {
        let sink = || Sink { out: Vec::new(), given: 0, taken: 0, bytes_max, refused: None };
        let name = encoding.map(str::trim).unwrap_or_default().to_ascii_lowercase();
        let kind = match name.as_str() {
            "" | "identity" => Kind::Identity { left: bytes_max, bytes_max },
            "gzip" | "x-gzip" => Kind::Gzip(Box::new(flate2::write::GzDecoder::new(sink()))),
            "deflate" => Kind::Deflate(Box::new(flate2::write::ZlibDecoder::new(sink()))),
            // The size is that of its own buffer, which it passes on when full.
            "br" => Kind::Brotli(Box::new(brotli::DecompressorWriter::new(sink(), DECODE_STRIDE_BYTES))),
            "zstd" => {
                let corrupt = |_| DecodeError::Corrupt("zstd");
                let mut decoder = zstd::stream::write::Decoder::new(sink()).map_err(corrupt)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(corrupt)?;
                Kind::Zstd(Box::new(decoder))
            }
            _ => return Err(DecodeError::Unknown(name)),
        };
        Ok(Decoder { kind, compute })
    }

    /// What `chunk` decodes to, as far as that can be said yet.
    ///
    /// # Errors
    /// The body is damaged or becomes too large; nothing more can be decoded then.
    pub async fn push(&mut self, chunk: Bytes) -> Result<Bytes, DecodeError> {
        if let Kind::Identity { left, bytes_max } = &mut self.kind {
            *left = left.checked_sub(chunk.len() as u64).ok_or(DecodeError::TooLarge(*bytes_max))?;
            return Ok(chunk);
        }
        // Encodings that give nothing for much: a body is not larger encoded than decoded, but for what frames it.
        let sink = self.kind.sink();
        let most = sink.bytes_max.saturating_add(sink.bytes_max / 8).saturating_add(ENCODED_SPARE_BYTES);
        if sink.taken + chunk.len() as u64 > most {
            return Err(DecodeError::TooLarge(sink.bytes_max));
        }
        if sink.given < DECODE_HERE_BYTES {
            for stride in chunk.chunks(DECODE_STRIDE_BYTES) {
                self.kind.stride(stride)?;
                yield_if_needed().await;
            }
        } else {
            // Who gives this up meanwhile has no use for the decoder either.
            let mut kind = std::mem::replace(&mut self.kind, Kind::Identity { left: 0, bytes_max: 0 });
            let decode = move || {
                let decoded = chunk.chunks(DECODE_STRIDE_BYTES).try_for_each(|stride| kind.stride(stride));
                (kind, decoded)
            };
            let (kind, decoded) = self.compute.run(decode).await;
            self.kind = kind;
            decoded?;
        }
        Ok(Bytes::from(std::mem::take(&mut self.kind.sink().out)))
    }

    /// What is left when the body has ended.
    ///
    /// # Errors
    /// It ended too early.
    pub fn finish(mut self) -> Result<Bytes, DecodeError> {
        let name = self.kind.name();
        // A body of nothing at all is nothing in every encoding: servers send that with 204 and 304, and to HEAD.
        if matches!(self.kind, Kind::Identity { .. }) || self.kind.sink().taken == 0 {
            return Ok(Bytes::new());
        }
        let ended = match &mut self.kind {
            Kind::Identity { .. } => Ok(()),
            Kind::Gzip(decoder) => decoder.try_finish(),
            Kind::Deflate(decoder) => decoder.try_finish(),
            Kind::Brotli(decoder) => decoder.close(),
            Kind::Zstd(decoder) => decoder.do_finish(),
        };
        if ended.is_err() {
            return Err(self.kind.sink().refused.take().unwrap_or(DecodeError::Corrupt(name)));
        }
        Ok(Bytes::from(std::mem::take(&mut self.kind.sink().out)))
    }
}

impl Kind {
    fn stride(&mut self, stride: &[u8]) -> Result<(), DecodeError> {
        let name = self.name();
        self.sink().taken += stride.len() as u64;
        let written = match self {
            Kind::Identity { .. } => Ok(()),
            Kind::Gzip(decoder) => all(&mut **decoder, stride),
            Kind::Deflate(decoder) => all(&mut **decoder, stride),
            Kind::Brotli(decoder) => all(&mut **decoder, stride),
            Kind::Zstd(decoder) => all(&mut **decoder, stride),
        };
        written.map_err(|_| self.sink().refused.take().unwrap_or(DecodeError::Corrupt(name)))
    }

    fn name(&self) -> &'static str {
        match self {
            Kind::Identity { .. } => "identity",
            Kind::Gzip(_) => "gzip",
            Kind::Deflate(_) => "deflate",
            Kind::Brotli(_) => "br",
            Kind::Zstd(_) => "zstd",
        }
    }

    fn sink(&mut self) -> &mut Sink {
        match self {
            Kind::Gzip(decoder) => decoder.get_mut(),
            Kind::Deflate(decoder) => decoder.get_mut(),
            Kind::Brotli(decoder) => decoder.get_mut(),
            Kind::Zstd(decoder) => decoder.get_mut(),
            Kind::Identity { .. } => unreachable!("what is not encoded has no sink"),
        }
    }
}

/// Writes all of `bytes`; a decoder that takes no more of them has ended, and what follows its end is not part of the body.
fn all(decoder: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    match decoder.write_all(bytes) {
        Err(error) if error.kind() == io::ErrorKind::WriteZero => Err(io::ErrorKind::InvalidData.into()),
        other => other,
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.given += bytes.len() as u64;
        let refused = if self.given > self.bytes_max {
            Some(DecodeError::TooLarge(self.bytes_max))
        } else if self.given > RATIO_FREE_BYTES && self.given / RATIO_MAX > self.taken {
            Some(DecodeError::Bomb)
        } else {
            None
        };
        match refused {
            Some(why) => {
                self.refused = Some(why);
                Err(io::ErrorKind::FileTooLarge.into())
            }
            None => {
                self.out.extend_from_slice(bytes);
                Ok(bytes.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
