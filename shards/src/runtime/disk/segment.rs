//! One segment file as its shard holds it.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use glommio::io::{BufferedFile, Directory, OpenOptions};

use super::DiskError;
use crate::ids::{Lsn, Salt};

/// The cache is told to let go in pieces of this size, in bytes.
const LET_GO_BYTES: u64 = 1 << 20;
/// At most one index entry in so many bytes: that bounds the index at 1/4000 of the journal.
const INDEX_EVERY_BYTES: u64 = 64 << 10;

/// Where too many files are open to open one more, this often and so many times is tried again: for a minute. Meanwhile it
/// is as with a slow disk, the next segment is open already, and nothing is lost; a process that holds so many for so long is
/// better begun anew.
const SHORTAGE_LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(50);
const SHORTAGE_LOOKS: u32 = 1_200;
/// Zeros that stand for allocated space are written in pieces of this size, in bytes.
const FILL_BYTES: u64 = 1 << 20;

/// A segment that is written, prepared or closed. Lives on its core.
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) sequence: u64,
    /// Salts its batches.
    pub(super) id: u64,
    /// Its first frame's.
    pub(super) from: Cell<Lsn>,
    /// One after its last frame's.
    pub(super) end: Cell<Lsn>,
    /// Bytes that are taken for it on disk.
    pub(super) capacity: Cell<u64>,
    /// Bytes that hold header and batches.
    pub(super) used: Cell<u64>,
    /// Batches in it.
    pub(super) batches: Cell<u64>,
    /// Open for commits and probes, unless it is closed.
    pub(super) files: RefCell<Option<Rc<Files>>>,
    /// Up to here zeros have been written, so that commits there need no new extents.
    pub(super) runway: Cell<u64>,
    /// A commit is being written up to here.
    pub(super) writing_to: Cell<u64>,
    /// Up to here the system's cache has been told that nobody will read this soon.
    pub(super) let_go: Cell<u64>,
    /// Zeros are being written here.
    pub(super) zeroing: Cell<Option<(u64, u64)>>,
    index: RefCell<Vec<(Lsn, u64)>>,
}

/// A segment's two descriptions of one file: a writeback error is told once to each, so that the tender's fdatasync cannot
/// swallow what the committer's should see.
pub(super) struct Files {
    pub(super) commit: BufferedFile,
    pub(super) tend: BufferedFile,
}

impl Segment {
    /// A file of `bytes` zeros that is there whole, without a header yet.
    pub(super) async fn create(folder: &Path, sequence: u64, id: u64, bytes: u64) -> Result<Segment, DiskError> {
        let path = folder.join(file_name(sequence));
        Segment::take_room(&path, bytes).await?;
        sync_folder(folder).await?;
        Segment::adopt(path, sequence, id, bytes).await
    }

    /// Makes a file of `bytes` zeros whose space is taken on disk; none is left where that fails.
    pub(super) async fn take_room(path: &Path, bytes: u64) -> Result<(), DiskError> {
        let file = open_file(path, rustix::fs::OFlags::empty(), true).await?;
        let taken = allocate(&file, path, 0, bytes).await;
        file.close().await.map_err(DiskError::ring("closing", path))?;
        if taken.is_err() {
            let _ = std::fs::remove_file(path);
        }
        taken
    }

    /// The segment of a file of `bytes` zeros.
    pub(super) async fn adopt(path: PathBuf, sequence: u64, id: u64, bytes: u64) -> Result<Segment, DiskError> {
        let commit = open_file(&path, rustix::fs::OFlags::DSYNC, false).await?;
        let tend = open_file(&path, rustix::fs::OFlags::empty(), false).await?;
        let segment = Segment::known(path, sequence, id, Lsn(0), Some(Files { commit, tend }));
        segment.capacity.set(bytes);
        Ok(segment)
    }

    /// A segment read back.
    pub(super) fn known(path: PathBuf, sequence: u64, id: u64, from: Lsn, files: Option<Files>) -> Segment {
        Segment {
            path,
            sequence,
            id,
            from: Cell::new(from),
            end: Cell::new(from),
            capacity: Cell::new(0),
            used: Cell::new(0),
            batches: Cell::new(0),
            files: RefCell::new(files.map(Rc::new)),
            runway: Cell::new(0),
            writing_to: Cell::new(0),
            let_go: Cell::new(0),
            zeroing: Cell::new(None),
            index: RefCell::default(),
        }
    }

    /// Takes `bytes` for it on disk, so that lack of room is known now.
    pub(super) async fn reserve(&self, bytes: u64) -> Result<(), DiskError> {
        allocate(&self.files().tend, &self.path, self.capacity.get(), bytes).await?;
        self.capacity.set(bytes);
        Ok(())
    }

    /// Writes what is durable once this returns: the committer's file is opened with `O_DSYNC`, so that a commit passes the
    /// ring once instead of twice.
    pub(super) async fn write(&self, bytes: Vec<u8>, at: u64) -> Result<(), DiskError> {
        #[cfg(feature = "failpoints")]
        super::slow::wait().await;
        write(&self.files().commit, &self.path, bytes, at).await
    }

    /// Writes zeros ahead of the commits, and syncs them.
    pub(super) async fn zero(&self, from: u64, to: u64) -> Result<(), DiskError> {
        self.zeroing.set(Some((from, to)));
        let files = self.files();
        let written = match write(&files.tend, &self.path, vec![0; (to - from) as usize], from).await {
            Ok(()) => files.tend.fdatasync().await.map_err(DiskError::ring("syncing", &self.path)),
            failed => failed,
        };
        self.zeroing.set(None);
        self.runway.set(to);
        written
    }

    /// Gives the pages behind `end` back to the system, which would keep every byte of the journal until memory is short: the
    /// next commits then write to pages that were used a moment ago instead of to fresh ones.
    pub(super) fn let_go(&self, end: u64) {
        use std::os::fd::{AsRawFd, BorrowedFd};
        let from = self.let_go.get();
        if end < from + LET_GO_BYTES {
            return;
        }
        self.let_go.set(end);
        let files = self.files();
        // SAFETY: the file stays open while `files` is held.
        #[expect(unsafe_code, reason = "glommio's file shows its descriptor only as a number")]
        let file = unsafe { BorrowedFd::borrow_raw(files.commit.as_raw_fd()) };
        let length = std::num::NonZeroU64::new(end - from);
        // Only a wish: where it is not granted, nothing is lost.
        let _ = rustix::fs::fadvise(file, from, length, rustix::fs::Advice::DontNeed);
    }

    pub(super) fn files(&self) -> Rc<Files> {
        self.files.borrow().clone().expect("only segments that were created here are written")
    }

    /// Notes a batch for probes. One that lies before what is noted already is known well enough.
    pub(super) fn note(&self, first_lsn: Lsn, offset: u64) {
        let mut index = self.index.borrow_mut();
        if index.last().is_none_or(|(_, last)| offset >= last + INDEX_EVERY_BYTES) {
            index.push((first_lsn, offset));
        }
    }

    /// Where to start looking for a frame: the nearest noted batch before it.
    pub(super) fn look_from(&self, lsn: Lsn) -> Option<u64> {
        let index = self.index.borrow();
        let after = index.partition_point(|(first, _)| *first <= lsn);
        after.checked_sub(1).map(|at| index[at].1)
    }

    /// Whether the frame lies in it.
    pub(super) fn holds(&self, lsn: Lsn) -> bool {
        self.from.get() <= lsn && lsn < self.end.get()
    }
}

pub(super) fn file_name(sequence: u64) -> String {
    format!("{sequence:010}.seg")
}

async fn open_file(path: &Path, flags: rustix::fs::OFlags, create: bool) -> Result<BufferedFile, DiskError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(create).truncate(create).custom_flags(flags.bits().cast_signed());
    open_when_possible(&options, path).await
}

/// Opens a segment for a probe.
pub(super) async fn open_to_read(path: &Path) -> Result<BufferedFile, DiskError> {
    let mut options = OpenOptions::new();
    options.read(true);
    open_when_possible(&options, path).await
}

async fn open_when_possible(options: &OpenOptions, path: &Path) -> Result<BufferedFile, DiskError> {
    when_possible(path, || options.buffered_open(path)).await
}

/// Opens something of the journal's, waiting while too many files are open.
async fn when_possible<T, F>(path: &Path, open: impl Fn() -> F) -> Result<T, DiskError>
where
    F: Future<Output = glommio::Result<T, ()>>,
{
    let shortages = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE].map(|errno| Some(errno.raw_os_error()));
    let mut patience = SHORTAGE_LOOKS;
    loop {
        match open().await {
            // Steps have files open, too, and close them again.
            Err(error) if shortages.contains(&error.raw_os_error()) && patience > 0 => {
                if patience == SHORTAGE_LOOKS {
                    tracing::warn!(path = %path.display(), "too many files are open to open one of the journal's: waiting");
                }
                patience -= 1;
                glommio::timer::Timer::new(SHORTAGE_LOOK_EVERY).await;
            }
            opened => return opened.map_err(DiskError::ring("opening", path)),
        }
    }
}

/// Takes a file's space up to `bytes`, of which it has `from` already.
async fn allocate(file: &BufferedFile, path: &Path, from: u64, bytes: u64) -> Result<(), DiskError> {
    let taken = match file.pre_allocate(bytes, false).await {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error()) => {
            fill(file, path, from, bytes).await
        }
        taken => taken.map_err(DiskError::ring("allocating", path)),
    };
    match taken {
        Err(error) if error.is_no_room() => Err(DiskError::NoRoom { path: path.to_owned(), bytes }),
        taken => taken,
    }
}

/// Where a file system cannot take space without writing, zeros are written.
async fn fill(file: &BufferedFile, path: &Path, mut from: u64, to: u64) -> Result<(), DiskError> {
    while from < to {
        let piece = vec![0; (to - from).min(FILL_BYTES) as usize];
        // A short write says why with the next.
        from += file.write_at(piece, from).await.map_err(DiskError::ring("allocating", path))? as u64;
    }
    file.fdatasync().await.map_err(DiskError::ring("allocating", path))
}

async fn write(file: &BufferedFile, path: &Path, bytes: Vec<u8>, at: u64) -> Result<(), DiskError> {
    let wanted = bytes.len();
    let written = file.write_at(bytes, at).await.map_err(DiskError::ring("writing", path))?;
    if written != wanted {
        return Err(DiskError::io("writing", path)(std::io::ErrorKind::WriteZero.into()));
    }
    Ok(())
}

/// Makes created and removed names durable.
pub(super) async fn sync_folder(folder: &Path) -> Result<(), DiskError> {
    let directory = when_possible(folder, || Directory::open(folder)).await?;
    directory.sync().await.map_err(DiskError::ring("syncing", folder))?;
    directory.close().await.map_err(DiskError::ring("closing", folder))
}

/// Unix ms.
#[allow(clippy::disallowed_methods, reason = "a header says when it was made; nothing decides by it")]
pub(super) fn wall_ms() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64)
}

/// An id that nobody outside can guess and no other segment has.
pub(super) fn fresh_id(salt: &Salt, shard: u16, sequence: u64) -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    let mut seed = [0; 26];
    seed[..8].copy_from_slice(&random.to_le_bytes());
    seed[8..16].copy_from_slice(&sequence.to_le_bytes());
    seed[16..24].copy_from_slice(&wall_ms().to_le_bytes());
    seed[24..].copy_from_slice(&shard.to_le_bytes());
    let mut id = [0; 8];
    id.copy_from_slice(&blake3::keyed_hash(&salt.0, &seed).as_bytes()[..8]);
    u64::from_le_bytes(id)
}
