//! Reading one frame back.

use bytes::Bytes;
use glommio::io::BufferedFile;

use super::segment::{Segment, open_to_read};
use super::{Disk, DiskError};
use crate::ids::Lsn;
use crate::journal::batch::{self, BATCH_HEAD_BYTES, BatchHead};
use crate::journal::segment::{Damage, SEGMENT_HEAD_BYTES};
use crate::journal::view::Frames;

/// Read at once while looking for a batch, in bytes.
const WINDOW_BYTES: usize = 64 << 10;

impl Disk {
    /// The durable frame with this lsn, or `None` if it is gone or not durable yet.
    pub async fn probe(&self, lsn: Lsn) -> Result<Option<Bytes>, DiskError> {
        let inner = &*self.inner;
        let current = inner.current();
        if current.holds(lsn) {
            return read(&current, &current.files().commit, lsn).await.map(Some);
        }
        let segment = {
            let closed = inner.closed.borrow();
            let at = closed.partition_point(|segment| segment.end.get() <= lsn);
            closed.get(at).filter(|segment| segment.holds(lsn)).cloned()
        };
        let Some(segment) = segment else { return Ok(None) };
        let file = match open_to_read(&segment.path).await {
            // It went while we asked.
            Err(DiskError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let found = read(&segment, &file, lsn).await;
        file.close().await.map_err(DiskError::ring("closing", &segment.path))?;
        found.map(Some)
    }
}

impl Disk {
    /// Bytes of a file beside the segments, or `None` if it is gone.
    pub async fn read_beside(&self, name: &str, at: u64, length: usize) -> Result<Option<Vec<u8>>, DiskError> {
        let path = self.inner.folder.join(name);
        let file = match open_to_read(&path).await {
            Err(DiskError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let read = file.read_at(at, length).await.map_err(DiskError::ring("reading", &path));
        file.close().await.map_err(DiskError::ring("closing", &path))?;
        Ok(Some(read?.to_vec()))
    }

    /// The id of the segment that holds a durable frame.
    pub fn segment_of(&self, lsn: Lsn) -> Option<u64> {
        let inner = &*self.inner;
        let current = inner.current();
        if current.holds(lsn) {
            return Some(current.id);
        }
        let closed = inner.closed.borrow();
        closed.iter().rev().find(|segment| segment.holds(lsn)).map(|segment| segment.id)
    }
}

async fn read(segment: &Segment, file: &BufferedFile, lsn: Lsn) -> Result<Bytes, DiskError> {
    let read =
        |at: u64, length: usize| async move { file.read_at(at, length).await.map_err(DiskError::ring("reading", &segment.path)) };
    let mut at = segment.look_from(lsn).unwrap_or(SEGMENT_HEAD_BYTES as u64);
    let mut window = read(at, WINDOW_BYTES).await?;
    let mut within = 0;
    let damaged = |offset, damage| DiskError::Damaged { path: segment.path.clone(), offset, lsn, damage };
    loop {
        if window.len() < within + BATCH_HEAD_BYTES {
            (at, within) = (at + within as u64, 0);
            window = read(at, WINDOW_BYTES).await?;
        }
        let offset = at + within as u64;
        let head = window.get(within..).and_then(|bytes| BatchHead::read(segment.id, bytes));
        let head = head.ok_or_else(|| damaged(offset, Damage::Checksum))?;
        // A segment that was not read at boot is noted as it is walked.
        segment.note(head.first_lsn, offset);
        if lsn >= head.end_lsn() {
            within += head.size();
            continue;
        }
        if window.len() < within + head.size() {
            window = read(offset, head.size()).await?;
            within = 0;
        }
        let batch = batch::read(segment.id, &window[within..], offset).ok_or_else(|| damaged(offset, Damage::Checksum))?;
        let gap = Damage::Lsn { expected: lsn.0, found: head.first_lsn.0 };
        let nth = lsn.0.checked_sub(head.first_lsn.0).ok_or_else(|| damaged(offset, gap))? as usize;
        let frame = Frames::new(batch.frames).nth(nth).ok_or_else(|| damaged(offset, gap))?;
        return frame.map(Bytes::copy_from_slice).map_err(|error| damaged(offset, error.into()));
    }
}
