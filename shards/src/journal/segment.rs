//! The header of a segment file: whose it is, who may read it, and where it stands in the journal.

use super::codec::CodecError;
use crate::ids::{Lsn, Salt};

/// Bytes of a segment's header; batches follow.
pub const SEGMENT_HEAD_BYTES: usize = 4096;
/// The format this code writes.
pub const FORMAT: u16 = 1;
/// Feature bits this code knows. A set bit that it does not know is a newer format.
pub const FEATURES: u64 = 0;
/// Longest worker id, in bytes.
pub const WORKER_ID_BYTES_MAX: usize = 256;

const MAGIC: &[u8; 8] = b"ENDSTJNL";
const CRC_AT: usize = SEGMENT_HEAD_BYTES - 4;
const WORKER_AT: usize = 72;
const SALT_AT: usize = WORKER_AT + 2 + WORKER_ID_BYTES_MAX;

/// What a segment's header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHead {
    /// Who wrote it.
    pub worker_id: String,
    /// Which layout of shards and partitions.
    pub generation: u64,
    /// Whose journal.
    pub shard: u16,
    /// How many shards there were.
    pub shards: u16,
    /// Feature bits in use.
    pub features: u64,
    /// Random: salts the checksums, so that old bytes in a reused block are never taken for this segment's.
    pub id: u64,
    /// Counts the segments of this shard.
    pub sequence: u64,
    /// The first frame's.
    pub first_lsn: Lsn,
    /// The secret that keys are salted with.
    pub salt: Salt,
    /// Unix ms.
    pub created_ms: u64,
    /// Which start of this worker made it.
    pub boot: u32,
}

/// What the reader expects a header to say.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// Who reads.
    pub worker_id: &'a str,
    /// Its generation.
    pub generation: u64,
    /// Whose journal it should be.
    pub shard: u16,
    /// How many shards there are now.
    pub shards: u16,
    /// The salt in force.
    pub salt: &'a Salt,
}

/// Why a segment may not be used. Each says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// Another program's file.
    #[error("this is not an endstation journal segment; move the file away or name another storage.dir")]
    NotOurs,
    /// Ours, but its checksum does not hold.
    #[error("the segment header is damaged; restore the file from a copy or move the journal away")]
    Damaged,
    /// Written in a format that this version may not read.
    #[error(
        "written by a newer endstation (format {format}, this one reads {FORMAT}); start that version, or drain it there and name an empty storage.dir here"
    )]
    Newer {
        /// As written.
        format: u16,
    },
    /// Uses features that this version does not know.
    #[error("written by a newer endstation (unknown features {features:#x}); start that version")]
    Features {
        /// The bits that are not known.
        features: u64,
    },
    /// Another number of shards.
    #[error(
        "this journal was written by {written} shards, now there are {now}; set cores.shards back to {written}, or drain and name an empty storage.dir"
    )]
    Shards {
        /// Then.
        written: u16,
        /// Now.
        now: u16,
    },
    /// Another salt.
    #[error("worker.key_salt differs from the salt of this journal: its keys would not be found again; set it back")]
    Salt,
    /// Another worker's.
    #[error("this journal belongs to worker {written:?}, this is {now:?}; set worker.id back or name another storage.dir")]
    Worker {
        /// Its owner.
        written: String,
        /// The reader.
        now: String,
    },
    /// It lies where another shard's or generation's should.
    #[error("the segment says shard {shard}, generation {generation}: the file lies in the wrong folder")]
    Misplaced {
        /// As written.
        shard: u16,
        /// As written.
        generation: u64,
    },
}

/// Something in the middle of the journal is not as it was written. Reported, never cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The bytes here do not pass their checksum, and what follows was written when they were already durable.
    #[error("a batch fails its checksum, and later batches prove that it had been durable")]
    Checksum,
    /// A sound batch that is not the next one.
    #[error("batch {found} stands where batch {expected} should")]
    Gap {
        /// By counting.
        expected: u64,
        /// As written.
        found: u64,
    },
    /// The lsn does not continue.
    #[error("the journal continues with lsn {found} where {expected} should follow")]
    Lsn {
        /// By counting.
        expected: u64,
        /// As written.
        found: u64,
    },
    /// The header cannot be read although batches follow it.
    #[error("the segment header is damaged and the segment is not empty")]
    Header,
    /// A sound batch holds something that is no frame, or no frame for this version.
    #[error("{0}")]
    Frame(#[from] CodecError),
}

impl SegmentHead {
    /// As it stands on disk.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_as(FORMAT, FORMAT)
    }

    /// The same as a version with another format writes it, which readers from `oldest_reader` on may read.
    pub fn encode_as(&self, format: u16, oldest_reader: u16) -> Vec<u8> {
        let mut out = vec![0; SEGMENT_HEAD_BYTES];
        out[0..8].copy_from_slice(MAGIC);
        out[8..10].copy_from_slice(&format.to_le_bytes());
        out[10..12].copy_from_slice(&oldest_reader.to_le_bytes());
        out[12..14].copy_from_slice(&self.shard.to_le_bytes());
        out[14..16].copy_from_slice(&self.shards.to_le_bytes());
        let numbers = [self.generation, self.features, self.id, self.sequence, self.first_lsn.0, self.created_ms];
        for (index, number) in numbers.into_iter().enumerate() {
            out[16 + index * 8..24 + index * 8].copy_from_slice(&number.to_le_bytes());
        }
        out[64..68].copy_from_slice(&self.boot.to_le_bytes());
        let worker = &self.worker_id.as_bytes()[..self.worker_id.len().min(WORKER_ID_BYTES_MAX)];
        out[WORKER_AT..WORKER_AT + 2].copy_from_slice(&(worker.len() as u16).to_le_bytes());
        out[WORKER_AT + 2..WORKER_AT + 2 + worker.len()].copy_from_slice(worker);
        out[SALT_AT..SALT_AT + 32].copy_from_slice(&self.salt.0);
        out[SALT_AT + 32..SALT_AT + 40].copy_from_slice(&salt_check(&self.salt));
        let crc = crc32c::crc32c(&out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a header. Magic, format, oldest reader and checksum stand where they stand in every format.
    ///
    /// # Errors
    /// It is none, it is damaged, or a newer version wrote it, which this one may not read.
    pub fn decode(bytes: &[u8]) -> Result<SegmentHead, HeadError> {
        SegmentHead::decode_as(FORMAT, bytes)
    }

    /// The same as a version whose own format is `reads`.
    ///
    /// # Errors
    /// As for [`SegmentHead::decode`].
    pub fn decode_as(reads: u16, bytes: &[u8]) -> Result<SegmentHead, HeadError> {
        let bytes: &[u8; SEGMENT_HEAD_BYTES] = bytes.first_chunk().ok_or(HeadError::NotOurs)?;
        if &bytes[0..8] != MAGIC {
            return Err(HeadError::NotOurs);
        }
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if u32_at(CRC_AT) != crc32c::crc32c(&bytes[..CRC_AT]) {
            return Err(HeadError::Damaged);
        }
        let (format, oldest_reader, features) = (u16_at(8), u16_at(10), u64_at(24));
        if oldest_reader > reads {
            return Err(HeadError::Newer { format });
        }
        if features & !FEATURES != 0 {
            return Err(HeadError::Features { features: features & !FEATURES });
        }
        let worker = usize::from(u16_at(WORKER_AT)).min(WORKER_ID_BYTES_MAX);
        let worker = std::str::from_utf8(&bytes[WORKER_AT + 2..WORKER_AT + 2 + worker]).map_err(|_| HeadError::Damaged)?;
        let mut salt = Salt([0; 32]);
        salt.0.copy_from_slice(&bytes[SALT_AT..SALT_AT + 32]);
        if bytes[SALT_AT + 32..SALT_AT + 40] != salt_check(&salt) {
            return Err(HeadError::Damaged);
        }
        // Frames count from 1, and who reads asks for the one before the first.
        let first_lsn = Lsn(u64_at(48));
        if first_lsn == Lsn(0) {
            return Err(HeadError::Damaged);
        }
        Ok(SegmentHead {
            worker_id: worker.to_owned(),
            generation: u64_at(16),
            shard: u16_at(12),
            shards: u16_at(14),
            features,
            id: u64_at(32),
            sequence: u64_at(40),
            first_lsn,
            salt,
            created_ms: u64_at(56),
            boot: u32_at(64),
        })
    }

    /// Whether the reader may go on with it.
    pub fn check(&self, expected: &Expected<'_>) -> Result<(), HeadError> {
        if self.shards != expected.shards {
            return Err(HeadError::Shards { written: self.shards, now: expected.shards });
        }
        if self.worker_id != expected.worker_id {
            return Err(HeadError::Worker { written: self.worker_id.clone(), now: expected.worker_id.to_owned() });
        }
        if self.salt != *expected.salt {
            return Err(HeadError::Salt);
        }
        if (self.shard, self.generation) != (expected.shard, expected.generation) {
            return Err(HeadError::Misplaced { shard: self.shard, generation: self.generation });
        }
        Ok(())
    }
}

fn salt_check(salt: &Salt) -> [u8; 8] {
    let mut check = [0; 8];
    check.copy_from_slice(&blake3::hash(&salt.0).as_bytes()[..8]);
    check
}
