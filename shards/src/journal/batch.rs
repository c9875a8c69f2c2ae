//! Batches: the frames that one commit makes durable together, behind a checksummed header.

use crate::ids::Lsn;

/// Bytes before a batch's frames.
pub const BATCH_HEAD_BYTES: usize = 40;
/// Batches start at multiples of this.
pub const ALIGN_BYTES: usize = 8;

/// What a batch's header says, without the checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHead {
    /// How many frames.
    pub frames: u32,
    /// Their bytes, without padding.
    pub length: u32,
    /// From 1 in every segment, without gaps.
    pub number: u64,
    /// The first frame's; the others follow.
    pub first_lsn: Lsn,
    /// The newest frame that was durable when this batch was written.
    pub durable_lsn: Lsn,
}

/// One whole batch, checked.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Its header.
    pub head: BatchHead,
    /// Where it starts in its segment, in bytes.
    pub offset: u64,
    /// Its frames, back to back.
    pub frames: &'a [u8],
}

impl BatchHead {
    /// Bytes of the whole batch on disk, padding included.
    pub fn size(&self) -> usize {
        BATCH_HEAD_BYTES + (self.length as usize).next_multiple_of(ALIGN_BYTES)
    }

    /// The frame after this batch's last.
    pub fn end_lsn(&self) -> Lsn {
        Lsn(self.first_lsn.0.saturating_add(u64::from(self.frames)))
    }

    /// Reads a header's fields, if the magic is this segment's. Nothing is checked yet.
    pub fn read(segment: u64, bytes: &[u8]) -> Option<BatchHead> {
        let head: &[u8; BATCH_HEAD_BYTES] = bytes.first_chunk()?;
        let u32_at = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        (u32_at(0) == magic(segment)).then(|| BatchHead {
            frames: u32_at(4),
            length: u32_at(8),
            number: u64_at(16),
            first_lsn: Lsn(u64_at(24)),
            durable_lsn: Lsn(u64_at(32)),
        })
    }
}

/// The word that starts a batch of this segment. It differs in every segment, so that nothing a sender can write looks like it.
pub fn magic(segment: u64) -> u32 {
    (segment ^ segment >> 32) as u32 ^ u32::from_le_bytes(*b"ESBT")
}

/// Completes `buffer`, whose first [`BATCH_HEAD_BYTES`] are room for the header and whose rest is frames, to a batch.
pub fn seal(segment: u64, buffer: &mut Vec<u8>, frames: u32, number: u64, first_lsn: Lsn, durable_lsn: Lsn) {
    let length = u32::try_from(buffer.len() - BATCH_HEAD_BYTES).expect("batches are bounded far below 4 GiB");
    buffer.resize(buffer.len().next_multiple_of(ALIGN_BYTES), 0);
    buffer[0..4].copy_from_slice(&magic(segment).to_le_bytes());
    buffer[4..8].copy_from_slice(&frames.to_le_bytes());
    buffer[8..12].copy_from_slice(&length.to_le_bytes());
    buffer[16..24].copy_from_slice(&number.to_le_bytes());
    buffer[24..32].copy_from_slice(&first_lsn.0.to_le_bytes());
    buffer[32..40].copy_from_slice(&durable_lsn.0.to_le_bytes());
    let crc = checksum(segment, buffer);
    buffer[12..16].copy_from_slice(&crc.to_le_bytes());
}

/// The batch at the start of `bytes`, if a whole and sound one of this segment stands there.
pub fn read(segment: u64, bytes: &[u8], offset: u64) -> Option<Batch<'_>> {
    let head = BatchHead::read(segment, bytes)?;
    let whole = bytes.get(..head.size())?;
    let crc = u32::from_le_bytes([whole[12], whole[13], whole[14], whole[15]]);
    let frames = &whole[BATCH_HEAD_BYTES..BATCH_HEAD_BYTES + head.length as usize];
    (crc == checksum(segment, whole)).then_some(Batch { head, offset, frames })
}

/// Over the segment's id and all of the batch but the checksum itself.
fn checksum(segment: u64, batch: &[u8]) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&segment.to_le_bytes()), &batch[..12]);
    crc32c::crc32c_append(crc, &batch[16..])
}
