//! The reserve of one shard: a file as large as a segment whose space is taken on disk already, for when the disk is full.
//!
//! What runs then must still be able to end. When the segment that is written is used up and there is no room for another,
//! the reserve is given a segment's name and written next: a rename takes no space. It is made anew as soon as there is room,
//! and until then the machine accepts nothing new. It is never written as a reserve, so it is all zeros.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::segment::{Segment, file_name, fresh_id, sync_folder};
use super::{DiskError, DiskSettings, Inner};

const FILE_NAME: &str = "reserve";

/// Where a shard's reserve lies.
pub(super) fn path(folder: &Path) -> PathBuf {
    folder.join(FILE_NAME)
}

/// How large a reserve there is, in bytes; 0 for none. One that was not made to its end does not count.
pub(super) fn found(folder: &Path, wanted: u64) -> u64 {
    match fs::metadata(path(folder)) {
        // A file system that packs zeros shows fewer blocks: its reserve is made again, which costs nothing there.
        Ok(file) if file.len() >= wanted && file.blocks() * 512 >= wanted => file.len(),
        _ => 0,
    }
}

/// Makes the reserve a segment; `None` where there is none.
pub(super) async fn take(settings: &DiskSettings, sequence: u64) -> Result<Option<Segment>, DiskError> {
    let folder = settings.folder();
    let bytes = found(&folder, settings.segment_bytes);
    if bytes == 0 {
        return Ok(None);
    }
    let to = folder.join(file_name(sequence));
    match glommio::io::rename(path(&folder), &to).await.map_err(DiskError::ring("renaming the reserve to", &to)) {
        // A folder may need one more block for a longer name.
        Err(error) if error.is_no_room() => return Ok(None),
        renamed => renamed?,
    }
    sync_folder(&folder).await?;
    let id = fresh_id(&settings.salt, settings.shard, sequence);
    Segment::adopt(to, sequence, id, bytes).await.map(Some)
}

impl Inner {
    /// Makes the reserve where it is not there; whether it is there now.
    pub(super) async fn refill(&self) -> Result<bool, DiskError> {
        let wanted = self.settings.segment_bytes;
        if self.reserve.get() == 0 {
            self.reserve.set(found(&self.folder, wanted));
        }
        if self.reserve.get() > 0 {
            return Ok(true);
        }
        if !self.may_fit(wanted) {
            return Ok(false);
        }
        match Segment::take_room(&path(&self.folder), wanted).await {
            Ok(()) => {
                sync_folder(&self.folder).await?;
                self.reserve.set(wanted);
                Ok(true)
            }
            Err(error) if error.is_no_room() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The next segment out of the reserve, unless the tender is at work on either of them just now.
    pub(super) async fn take_reserve(&self) -> Result<Option<Segment>, DiskError> {
        if self.tending.get() || self.reserve.get() == 0 {
            return Ok(None);
        }
        self.tending.set(true);
        let sequence = self.sequence.get() + 1;
        let taken = take(&self.settings, sequence).await;
        self.reserve.set(0);
        self.tending.set(false);
        if let Ok(Some(_)) = &taken {
            self.sequence.set(sequence);
        }
        taken
    }

    /// Whether it is worth asking a disk that was full: each try takes all the room there is for a moment, which others on
    /// that disk would feel.
    pub(super) fn may_fit(&self, bytes: u64) -> bool {
        if !self.full.get() {
            return true;
        }
        let room = rustix::fs::statvfs(&self.folder).map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        room >= bytes
    }
}
