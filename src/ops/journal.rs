//! A journal's files, read without touching them: beside a running worker, after a crash, or as a copy.
//!
//! [`Journal::open`] reads the headers of all segments, then [`Segment::read`] gives each one's frames, one segment in memory
//! at a time. What a running worker does meanwhile is no damage: a segment may go, grow or be shortened while it is read. So
//! headers are read before what they stand for, and a fault counts only when a second look finds it in the same place.

pub mod survey;
#[cfg(test)]
pub(crate) mod tests;
pub mod wrong;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use shards::ids::Lsn;
use shards::journal::batch::{BATCH_HEAD_BYTES, Batch, BatchHead};
use shards::journal::scan::Scan;
use shards::journal::segment::{Damage, HeadError, SEGMENT_HEAD_BYTES, SegmentHead};
use shards::journal::view::Frames;
use shards::journal::{CodecError, FrameView};

pub use wrong::{Finding, Wrong};

/// A worker that writes while we read may spoil so many looks at one segment before its faults are believed.
const LOOKS_MAX: u32 = 16;

/// All shards' folders of the newest generation: an older one is what a rewrite for another number of shards has replaced.
/// Lives on the thread that reads.
#[derive(Debug)]
pub struct Journal {
    /// The storage folder.
    pub dir: PathBuf,
    /// In the order of shards.
    pub folders: Vec<Folder>,
}

/// One shard's segments by their headers.
#[derive(Debug)]
pub struct Folder {
    /// Which layout of shards and partitions.
    pub generation: u64,
    /// Whose.
    pub shard: u16,
    /// Where.
    pub path: PathBuf,
    /// Oldest first.
    pub segments: Vec<Segment>,
    /// Files that were prepared and not yet begun.
    pub prepared: u64,
    /// Bytes of all its files.
    pub disk_bytes: u64,
    /// Headers whose writing never finished.
    pub torn: Vec<Torn>,
    /// What is wrong with its headers.
    pub findings: Vec<Finding>,
}

/// One segment file.
#[derive(Debug)]
pub struct Segment {
    /// Where.
    pub path: PathBuf,
    /// What its header says.
    pub head: SegmentHead,
    /// Whether the file before it, if there is one, could be used.
    pub follows: bool,
    /// The newest frame that the next segment proves to have been durable; 0 where there is none to prove it.
    pub durable_elsewhere: Lsn,
}

/// A write that never finished: normal after a crash, and at the end of a journal that is being written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    /// The file.
    pub path: PathBuf,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Up to the last byte of it that is not zero.
    pub bytes: u64,
}

/// Where a frame stands.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The frame's.
    pub lsn: Lsn,
    /// In its file, in bytes.
    pub offset: u64,
    /// The header of its batch.
    pub batch: BatchHead,
}

/// How a segment's reading ended well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Bytes of header and batches.
    pub bytes: u64,
    /// The frame that would come next.
    pub next_lsn: Lsn,
    /// Something else than zeros follows.
    pub torn: Option<Torn>,
}

/// Why a segment's reading ended early.
#[derive(Debug)]
pub enum Stop {
    /// The segment.
    Wrong(Finding),
    /// The one who takes the frames.
    Taker(io::Error),
}

/// Why a frame was not taken.
#[derive(Debug)]
pub enum NotTaken {
    /// It cannot be read.
    Frame(CodecError),
    /// The taker itself failed.
    Taker(io::Error),
}

impl From<CodecError> for NotTaken {
    fn from(error: CodecError) -> Self {
        NotTaken::Frame(error)
    }
}

impl From<io::Error> for NotTaken {
    fn from(error: io::Error) -> Self {
        NotTaken::Taker(error)
    }
}

impl Journal {
    /// Reads the headers of all segments of the newest generation under `dir` that has any.
    ///
    /// # Errors
    /// `dir` or a folder in it cannot be listed. A file that cannot be read is a finding of its folder.
    pub fn open(dir: &Path) -> io::Result<Journal> {
        let mut folders = Vec::new();
        for (generation, path) in numbered(dir, "")?.into_iter().rev().filter(|(_, path)| path.is_dir()) {
            folders.clear();
            for (shard, path) in numbered(&path, "")? {
                if let (Ok(shard), true) = (u16::try_from(shard), path.is_dir()) {
                    folders.push(Folder::open(generation, shard, path)?);
                }
            }
            if folders.iter().any(|folder| folder.disk_bytes > 0) {
                break;
            }
        }
        Ok(Journal { dir: dir.to_owned(), folders })
    }

    /// The header of the newest segment, which says whose journal this is.
    pub fn newest(&self) -> Option<&SegmentHead> {
        let heads = self.folders.iter().flat_map(|folder| &folder.segments).map(|segment| &segment.head);
        heads.max_by_key(|head| (head.generation, head.boot, head.sequence))
    }
}

impl Folder {
    fn open(generation: u64, shard: u16, path: PathBuf) -> io::Result<Folder> {
        let files = numbered(&path, ".seg")?;
        let (segments, torn, findings) = (Vec::new(), Vec::new(), Vec::new());
        let mut folder = Folder { generation, shard, path, segments, prepared: 0, disk_bytes: 0, torn, findings };
        let mut follows = true;
        for (sequence, path) in files {
            let (segments, findings) = (folder.segments.len(), folder.findings.len());
            folder.file(sequence, path, follows);
            // What follows a file that cannot be used proves nothing of what stands before it.
            follows = folder.segments.len() > segments || (follows && folder.findings.len() == findings);
        }
        let nexts: Vec<(bool, Lsn)> = folder.segments.iter().skip(1).map(|next| (next.follows, next.head.first_lsn)).collect();
        for (segment, (follows, first)) in folder.segments.iter_mut().zip(nexts) {
            segment.durable_elsewhere = if follows { Lsn(first.0.saturating_sub(1)) } else { Lsn(0) };
        }
        Ok(folder)
    }

    fn file(&mut self, sequence: u64, path: PathBuf, follows: bool) {
        let finding = |path: &Path, wrong| Finding { path: path.to_owned(), offset: 0, lsn: Lsn(0), wrong };
        let disk_bytes = fs::metadata(&path).map_or(0, |about| about.len());
        match begin(&path) {
            Ok(Begin::Gone) => return,
            Ok(Begin::Prepared) => self.prepared += 1,
            Ok(Begin::Torn(bytes)) => self.torn.push(Torn { path, offset: 0, bytes }),
            Ok(Begin::Head(head)) => {
                if head.sequence != sequence {
                    self.findings.push(finding(&path, Wrong::Name { written: head.sequence }));
                }
                if (head.generation, head.shard) == (self.generation, self.shard) {
                    self.segments.push(Segment { path, head, follows, durable_elsewhere: Lsn(0) });
                } else {
                    let wrong = HeadError::Misplaced { shard: head.shard, generation: head.generation };
                    self.findings.push(finding(&path, wrong.into()));
                }
            }
            Err(wrong) => self.findings.push(finding(&path, wrong)),
        }
        self.disk_bytes += disk_bytes;
    }
}

/// How a file begins.
enum Begin {
    Head(SegmentHead),
    /// Zeros, and nothing behind them.
    Prepared,
    /// Half a header, so many bytes of it, and nothing behind it.
    Torn(u64),
    /// It went while we looked.
    Gone,
}

fn begin(path: &Path) -> Result<Begin, Wrong> {
    let unreadable = |error: io::Error| Wrong::Unreadable(error.to_string());
    let mut bytes = Vec::new();
    for look in 0.. {
        if !read_up_to(path, &mut bytes, SEGMENT_HEAD_BYTES as u64).map_err(unreadable)? {
            return Ok(Begin::Gone);
        }
        let begun = bytes.len() >= SEGMENT_HEAD_BYTES && bytes[..8] != [0; 8];
        match SegmentHead::decode(&bytes) {
            Ok(head) => return Ok(Begin::Head(head)),
            Err(error) if begun && error != HeadError::Damaged => return Err(error.into()),
            Err(_) => {}
        }
        // The header is durable before anything follows it: with nothing behind it, it was never begun.
        let half = used(&bytes);
        if !read_up_to(path, &mut bytes, u64::MAX).map_err(unreadable)? {
            return Ok(Begin::Gone);
        }
        if used(bytes.get(SEGMENT_HEAD_BYTES..).unwrap_or_default()) == 0 {
            return Ok(if half == 0 { Begin::Prepared } else { Begin::Torn(half) });
        }
        // It may have been begun between the two looks.
        if look > 0 {
            break;
        }
    }
    Err(Damage::Header.into())
}

impl Segment {
    /// Gives every frame to `each`, in order; `buffer` is only kept to be used again. `None` where the file went while we
    /// looked, because it was old enough.
    ///
    /// # Errors
    /// The segment is not as it was written, or `each` does not go on.
    pub fn read(
        &self,
        buffer: &mut Vec<u8>,
        mut each: impl FnMut(Place, FrameView<'_>) -> Result<(), NotTaken>,
    ) -> Result<Option<Ending>, Stop> {
        let mut given = self.head.first_lsn;
        let mut seen = None;
        for look in 1.. {
            match read_up_to(&self.path, buffer, u64::MAX) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(error) => return Err(self.wrong(0, given, Wrong::Unreadable(error.to_string()))),
            }
            let mut scan = Scan::new(&self.head, buffer, self.durable_elsewhere);
            for batch in scan.by_ref() {
                if batch.head.first_lsn >= given {
                    self.batch(&batch, &mut each)?;
                    given = batch.head.end_lsn();
                }
            }
            match scan.finish() {
                Ok(tail) => {
                    let rest = used(buffer.get(tail.offset as usize..).unwrap_or_default());
                    let torn = || Torn { path: self.path.clone(), offset: tail.offset, bytes: rest };
                    return Ok(Some(Ending { bytes: tail.offset, next_lsn: tail.next_lsn, torn: tail.torn.then(torn) }));
                }
                // A batch that was read half written, and the next one read whole: later looks find the first one whole.
                Err(fault) if seen != Some(fault) && look < LOOKS_MAX => seen = Some(fault),
                Err(fault) => return Err(self.wrong(fault.offset, fault.lsn, fault.damage.into())),
            }
        }
        Ok(None)
    }

    fn batch(&self, batch: &Batch<'_>, each: &mut impl FnMut(Place, FrameView<'_>) -> Result<(), NotTaken>) -> Result<(), Stop> {
        let offset = batch.offset + BATCH_HEAD_BYTES as u64;
        let mut place = Place { lsn: batch.head.first_lsn, offset, batch: batch.head };
        let bad = |place: Place, error: CodecError| self.wrong(place.offset, place.lsn, Damage::Frame(error).into());
        for raw in Frames::new(batch.frames) {
            let raw = raw.map_err(|error| bad(place, error))?;
            let view = FrameView::parse(raw).map_err(|error| bad(place, error))?;
            each(place, view).map_err(|not| match not {
                NotTaken::Frame(error) => bad(place, error),
                NotTaken::Taker(error) => Stop::Taker(error),
            })?;
            place.lsn = place.lsn.next();
            place.offset += raw.len() as u64;
        }
        if place.lsn == batch.head.end_lsn() { Ok(()) } else { Err(bad(place, CodecError::Short)) }
    }

    fn wrong(&self, offset: u64, lsn: Lsn, wrong: Wrong) -> Stop {
        Stop::Wrong(Finding { path: self.path.clone(), offset, lsn, wrong })
    }
}

/// Reads a file's first bytes; false where it is not there.
fn read_up_to(path: &Path, bytes: &mut Vec<u8>, most: u64) -> io::Result<bool> {
    bytes.clear();
    let read = File::open(path).and_then(|file| {
        bytes.reserve(file.metadata()?.len().min(most) as usize);
        file.take(most).read_to_end(bytes)
    });
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        read => read.map(|_| true),
    }
}

/// Up to the last byte that is not zero.
fn used(bytes: &[u8]) -> u64 {
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
}

/// Entries of `folder` named by a number and `suffix`, in order.
fn numbered(folder: &Path, suffix: &str) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|name| name.strip_suffix(suffix)?.parse().ok());
        found.extend(number.map(|number| (number, entry.path())));
    }
    found.sort_unstable();
    Ok(found)
}
