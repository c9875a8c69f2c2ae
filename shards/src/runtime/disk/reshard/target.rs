//! One shard of the new generation while it is written: [`Target`], batch after batch into fresh segments, synced at their ends.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;

use super::super::segment::fresh_id;
use super::super::{DiskError, DiskSettings, next};
use super::{segment_path, step, sync};
use crate::ids::Lsn;
use crate::journal::batch::{ALIGN_BYTES, BATCH_HEAD_BYTES, seal};
use crate::journal::segment::SEGMENT_HEAD_BYTES;

/// A batch is closed before it grows over this, in bytes: who looks for one frame later reads the whole of it.
const BATCH_BYTES: usize = 64 << 10;
/// What a file takes on disk beside its content at most, in bytes.
const FILE_BYTES: u64 = 64 << 10;

/// The size of a generation at most, whose frames took `written` bytes in the old one's files.
pub(super) fn bytes_max(written: u64, shards: u16, segment_bytes: u64) -> u64 {
    // Of two batches one after the other, or of two segments, one is half full at least.
    let heads = written / (BATCH_BYTES as u64 / 2) * (BATCH_HEAD_BYTES + ALIGN_BYTES) as u64;
    let files = written / (segment_bytes / 2).max(1) + u64::from(shards) + 1;
    written + heads + files * FILE_BYTES
}

/// A shard that is being written.
pub(super) struct Target {
    folder: PathBuf,
    settings: DiskSettings,
    boot: u32,
    sequence: u64,
    id: u64,
    file: File,
    path: PathBuf,
    /// Bytes of header and batches in the file.
    used: u64,
    /// Batches in it.
    batches: u64,
    /// The next batch's first frame.
    first_lsn: Lsn,
    /// Room for a batch's head, then frames.
    batch: Vec<u8>,
    frames: u32,
}

impl Target {
    /// A shard with one segment and nothing in it.
    pub(super) fn create(folder: PathBuf, settings: DiskSettings, first_lsn: Lsn, boot: u32) -> Result<Target, DiskError> {
        step(|| fs::create_dir_all(&folder)).map_err(DiskError::io("creating", &folder))?;
        let (path, id, file) = begin(&folder, &settings, 1, first_lsn, boot)?;
        let batch = vec![0; BATCH_HEAD_BYTES];
        let used = SEGMENT_HEAD_BYTES as u64;
        Ok(Target { folder, settings, boot, sequence: 1, id, file, path, used, batches: 0, first_lsn, batch, frames: 0 })
    }

    /// Takes one frame.
    pub(super) fn push(&mut self, frame: &[u8]) -> Result<(), DiskError> {
        if self.frames > 0 && self.batch.len() + frame.len() > BATCH_BYTES {
            self.flush()?;
        }
        self.batch.extend_from_slice(frame);
        self.frames += 1;
        Ok(())
    }

    /// Takes the last frame, in a batch of its own, and makes all of it durable.
    pub(super) fn end(mut self, mark: &[u8]) -> Result<(), DiskError> {
        self.flush()?;
        self.push(mark)?;
        self.flush()?;
        self.sync()?;
        sync(&self.folder)
    }

    /// Writes what has been taken as one batch.
    pub(super) fn flush(&mut self) -> Result<(), DiskError> {
        if self.frames == 0 {
            return Ok(());
        }
        let size = self.batch.len().next_multiple_of(ALIGN_BYTES) as u64;
        if self.batches > 0 && self.used + size > self.settings.segment_bytes {
            self.sync()?;
            self.sequence += 1;
            (self.path, self.id, self.file) = begin(&self.folder, &self.settings, self.sequence, self.first_lsn, self.boot)?;
            self.used = SEGMENT_HEAD_BYTES as u64;
            self.batches = 0;
        }
        // The whole of it becomes the journal at once, so what stands before is durable to whoever reads this.
        let durable = Lsn(self.first_lsn.0 - 1);
        seal(self.id, &mut self.batch, self.frames, self.batches + 1, self.first_lsn, durable);
        step(|| self.file.write_all(&self.batch)).map_err(DiskError::io("writing", &self.path))?;
        self.first_lsn = Lsn(self.first_lsn.0 + u64::from(self.frames));
        self.used += size;
        self.batches += 1;
        self.batch.clear();
        self.batch.resize(BATCH_HEAD_BYTES, 0);
        self.frames = 0;
        Ok(())
    }

    fn sync(&self) -> Result<(), DiskError> {
        step(|| self.file.sync_all()).map_err(DiskError::io("syncing", &self.path))
    }
}

/// Begins a segment; its path, its id, and the file behind its header.
fn begin(
    folder: &std::path::Path,
    settings: &DiskSettings,
    sequence: u64,
    first_lsn: Lsn,
    boot: u32,
) -> Result<(PathBuf, u64, File), DiskError> {
    let path = segment_path(folder, sequence);
    let id = fresh_id(&settings.salt, settings.shard, sequence);
    let head = settings.head(id, sequence, first_lsn, boot);
    let made = step(|| {
        let mut file = File::create_new(&path)?;
        file.write_all(&next::encode(&head))?;
        Ok(file)
    });
    let file = made.map_err(DiskError::io("writing", &path))?;
    Ok((path, id, file))
}
