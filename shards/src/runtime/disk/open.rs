//! Reading a journal back at boot. Blocks in between: nothing else runs on this core yet.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::Span;
use super::segment::{Segment, fresh_id, sync_folder};
use super::signal::Signal;
use super::{Disk, DiskError, DiskSettings, Inner, News, next, reserve};
use crate::event::DiskNews;
use crate::ids::Lsn;
use crate::journal::FrameView;
use crate::journal::codec::CodecError;
use crate::journal::scan::{Scan, Tail};
use crate::journal::segment::{Damage, Expected, HeadError, SEGMENT_HEAD_BYTES, SegmentHead};
use crate::journal::view::Frames;
use crate::limits::BATCH_BYTES_MAX;

/// Segments are read in pieces of this size, in bytes.
const READ_BYTES: usize = 4 << 20;
/// The smallest segment: one batch and its own header fit.
const SEGMENT_BYTES_MIN: u64 = (BATCH_BYTES_MAX + 2 * SEGMENT_HEAD_BYTES) as u64;
/// So much of the first segment has zeros written at boot, in bytes.
const RUNWAY_AT_BOOT_BYTES: u64 = 1 << 20;

/// A journal that has been read and can be written.
pub struct Opened {
    /// Where to append.
    pub disk: Disk,
    /// The next frame's.
    pub next_lsn: Lsn,
    /// Which start of this worker this is, from 1.
    pub boot: u32,
    /// A write that never finished, if one was found and cut.
    pub torn: Option<Cut>,
    /// What is kept, oldest first.
    pub segments: Vec<Span>,
    /// How many frames were read.
    pub records: u64,
}

/// From where on a journal is read: all before is known from a snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// The first frame that is read.
    pub at: Lsn,
    /// The segment that holds the frame before it.
    pub segment: u64,
}

/// A torn tail that was cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The segment.
    pub path: PathBuf,
    /// What is kept of it, in bytes.
    pub offset: u64,
}

/// The header of the newest readable segment under `dir`, of whichever shard: says worker id, salt and shard count before
/// they are needed. `None` where there is no journal yet.
pub fn inspect(dir: &Path) -> Result<Option<SegmentHead>, DiskError> {
    let mut newest: Option<SegmentHead> = None;
    // A generation that a newer one has replaced says nothing.
    for (_, generation) in numbered(dir, "")?.into_iter().rev() {
        if newest.is_some() {
            break;
        }
        for (_, shard) in numbered(&generation, "")? {
            for (_, path) in numbered(&shard, ".seg")? {
                let mut bytes = Vec::new();
                read_start(&path, &mut bytes)?;
                if blank(&bytes) {
                    continue;
                }
                let head = next::decode(&bytes);
                let head = match head {
                    Err(HeadError::Damaged) => continue,
                    head => head.map_err(|error| DiskError::Head { path: path.clone(), error })?,
                };
                let rank = |head: &SegmentHead| (head.generation, head.boot, head.sequence);
                if newest.as_ref().is_none_or(|newest| rank(newest) < rank(&head)) {
                    newest = Some(head);
                }
            }
        }
    }
    Ok(newest)
}

impl Disk {
    /// Reads the journal of one shard, giving every frame to `each` in order, and makes it ready to be written.
    ///
    /// Damage, another worker's journal, another shard count and a newer format are errors, and nothing is changed then.
    pub async fn open(
        settings: DiskSettings,
        each: impl FnMut(Lsn, &FrameView<'_>) -> Result<(), CodecError>,
    ) -> Result<Opened, DiskError> {
        Ok(Disk::open_from(settings, None, each).await?.expect("a journal fits to its own beginning"))
    }

    /// The same from `start` on. Of the segments before it only the headers are read. `None`, with nothing changed: `start` does
    /// not fit what lies there, and what `each` was given is of no use.
    pub async fn open_from(
        settings: DiskSettings,
        start: Option<Start>,
        mut each: impl FnMut(Lsn, &FrameView<'_>) -> Result<(), CodecError>,
    ) -> Result<Option<Opened>, DiskError> {
        let settings = DiskSettings { segment_bytes: settings.segment_bytes.max(SEGMENT_BYTES_MIN), ..settings };
        let folder = settings.folder();
        fs::create_dir_all(&folder).map_err(DiskError::io("creating", &folder))?;
        let files = numbered(&folder, ".seg")?;
        let newest_sequence = files.last().map_or(0, |(sequence, _)| *sequence);
        let Found { heads, blanks } = find(files, &settings)?;

        let passed = match start.map(|start| passed_by(&heads, start)) {
            None => 0,
            Some(Some(passed)) => passed,
            Some(None) => return Ok(None),
        };
        let mut read = Reading::from(start.map_or(Lsn(1), |start| start.at));
        for (at, (path, head)) in heads.iter().enumerate().take(passed) {
            read.pass(path, head, heads.get(at + 1).map_or(read.from, |(_, next)| next.first_lsn))?;
        }
        read.next_lsn = heads.get(passed).map_or(read.from, |(_, head)| head.first_lsn);
        for (at, (path, head)) in heads.iter().enumerate().skip(passed) {
            let durable_elsewhere = heads.get(at + 1).map_or(Lsn(0), |(_, next)| Lsn(next.first_lsn.0 - 1));
            read.segment(path, head, durable_elsewhere, &mut each).await?;
        }
        if start.is_some_and(|start| read.next_lsn < start.at) {
            return Ok(None);
        }
        // Only now, when all has been found sound, is anything changed.
        let boot = 1 + heads.iter().map(|(_, head)| head.boot).max().unwrap_or(0);
        let mut torn = None;
        for (segment, tail) in read.segments.iter().skip(passed) {
            if tail.torn {
                torn = Some(Cut { path: segment.path.clone(), offset: tail.offset });
            }
            settle(&segment.path, tail.offset)?;
        }
        for path in &blanks {
            fs::remove_file(path).map_err(DiskError::io("removing", path))?;
        }
        let sequence = newest_sequence + 1;
        let (current, scarce) = first_segment(&settings, sequence).await?;
        current.zero(0, RUNWAY_AT_BOOT_BYTES).await?;
        current.begin(&settings, read.next_lsn, boot).await?;
        let (closed, empty): (Vec<_>, Vec<_>) = read.segments.into_iter().partition(|(_, tail)| tail.batches > 0);
        for (segment, _) in &empty {
            fs::remove_file(&segment.path).map_err(DiskError::io("removing", &segment.path))?;
        }
        for kept in [&folder, &settings.dir.join(settings.generation.to_string()), &settings.dir] {
            sync_folder(kept).await?;
        }
        let closed: VecDeque<Rc<Segment>> = closed.into_iter().map(|(segment, _)| Rc::new(segment)).collect();
        let span = |segment: &Rc<Segment>| Span {
            from: segment.from.get(),
            to: Lsn(segment.end.get().0 - 1),
            bytes: segment.used.get(),
        };
        let segments = closed.iter().map(span).collect();
        let inner = Inner {
            settings,
            folder,
            boot,
            next_lsn: Cell::new(read.next_lsn),
            durable: Cell::new(Lsn(read.next_lsn.0 - 1)),
            queue: RefCell::default(),
            usual_bytes: Cell::new(4096),
            current: RefCell::new(Rc::new(current)),
            prepared: RefCell::default(),
            closed: RefCell::new(closed),
            sequence: Cell::new(sequence),
            prune_below: Cell::default(),
            counts: Cell::default(),
            // What was read back last is proved durable by the header of the new segment.
            unmarked: Cell::new(false),
            wanted: Cell::new(false),
            rotating: Cell::new(false),
            reserve: Cell::new(0),
            tending: Cell::new(false),
            cramped: Cell::new(false),
            full: Cell::new(scarce),
            closing: Cell::new(false),
            ended: Cell::new(false),
            news: RefCell::new(scarce.then_some(News::Disk(DiskNews::Full)).into_iter().collect()),
            work: Signal::default(),
            chores: Signal::default(),
            tended: Signal::default(),
            told: Signal::default(),
            over: Signal::default(),
        };
        let disk = Disk { inner: Rc::new(inner) };
        Ok(Some(Opened { disk, next_lsn: read.next_lsn, boot, torn, segments, records: read.records }))
    }
}

/// How many segments hold only frames before `start`; none where it does not fit what lies there: the segment that it begins in
/// or behind is another one, or gone.
fn passed_by(heads: &[(PathBuf, SegmentHead)], start: Start) -> Option<usize> {
    let at = heads.iter().position(|(_, head)| head.id == start.segment)?;
    let next = heads.get(at + 1).map(|(_, next)| next.first_lsn);
    let holds = heads[at].1.first_lsn < start.at && next.is_none_or(|next| next >= start.at);
    holds.then_some(at + usize::from(next == Some(start.at)))
}

/// The segment that this life begins with, and whether the disk is full: then a smaller one will do, or the reserve, so that
/// what an earlier life left can end.
async fn first_segment(settings: &DiskSettings, sequence: u64) -> Result<(Segment, bool), DiskError> {
    let folder = settings.folder();
    let id = fresh_id(&settings.salt, settings.shard, sequence);
    let mut bytes = settings.segment_bytes;
    loop {
        match Segment::create(&folder, sequence, id, bytes).await {
            Err(error) if error.is_no_room() && bytes > SEGMENT_BYTES_MIN => bytes = (bytes / 2).max(SEGMENT_BYTES_MIN),
            Err(error) if error.is_no_room() => {
                return match reserve::take(settings, sequence).await? {
                    Some(segment) => Ok((segment, true)),
                    None => Err(error),
                };
            }
            made => return Ok((made?, bytes < settings.segment_bytes)),
        }
    }
}

/// The segments of a shard by their headers.
pub(super) struct Found {
    pub(super) heads: Vec<(PathBuf, SegmentHead)>,
    /// Files without a header: prepared but never begun.
    blanks: Vec<PathBuf>,
}

pub(super) fn find(files: Vec<(u64, PathBuf)>, settings: &DiskSettings) -> Result<Found, DiskError> {
    let DiskSettings { worker_id, generation, shard, shards, salt, .. } = settings;
    let expected = Expected { worker_id, generation: *generation, shard: *shard, shards: *shards, salt };
    let mut found = Found { heads: Vec::new(), blanks: Vec::new() };
    let mut bytes = Vec::new();
    for (_, path) in files {
        read_start(&path, &mut bytes)?;
        let head = next::decode(&bytes);
        // The header is durable before anything follows it: so without one, and nothing behind it, it was never begun.
        let unfinished = bytes.len() < SEGMENT_HEAD_BYTES || bytes.iter().take(8).all(|byte| *byte == 0);
        if unfinished || head == Err(HeadError::Damaged) {
            let mut rest = Vec::new();
            read_whole(&path, &mut rest)?;
            if blank(rest.get(SEGMENT_HEAD_BYTES..).unwrap_or_default()) {
                found.blanks.push(path);
                continue;
            }
            let lsn = Lsn(0);
            return Err(DiskError::Damaged { path, offset: 0, lsn, damage: Damage::Header });
        }
        match head.and_then(|head| head.check(&expected).map(|()| head)) {
            Ok(head) => found.heads.push((path, head)),
            Err(error) => return Err(DiskError::Head { path, error }),
        }
    }
    Ok(found)
}

/// What has been read so far.
struct Reading {
    /// Frames before this one are given to nobody.
    from: Lsn,
    next_lsn: Lsn,
    records: u64,
    segments: Vec<(Segment, Tail)>,
    bytes: Vec<u8>,
}

impl Reading {
    fn from(from: Lsn) -> Reading {
        Reading { from, next_lsn: from, records: 0, segments: Vec::new(), bytes: Vec::new() }
    }

    /// Notes a segment without reading it: all its frames, up to before `end`, are known.
    fn pass(&mut self, path: &Path, head: &SegmentHead, end: Lsn) -> Result<(), DiskError> {
        let length = fs::metadata(path).map_err(DiskError::io("reading", path))?.len();
        let batches = u64::from(end > head.first_lsn);
        let segment = Segment::known(path.to_owned(), head.sequence, head.id, head.first_lsn, None);
        segment.used.set(length);
        segment.capacity.set(length);
        segment.batches.set(batches);
        segment.end.set(end);
        self.segments.push((segment, Tail { offset: length, next_lsn: end, batches, torn: false }));
        Ok(())
    }

    async fn segment(
        &mut self,
        path: &Path,
        head: &SegmentHead,
        durable_elsewhere: Lsn,
        each: &mut impl FnMut(Lsn, &FrameView<'_>) -> Result<(), CodecError>,
    ) -> Result<(), DiskError> {
        let damaged = |offset, lsn, damage| DiskError::Damaged { path: path.to_owned(), offset, lsn, damage };
        if head.first_lsn != self.next_lsn {
            let damage = Damage::Lsn { expected: self.next_lsn.0, found: head.first_lsn.0 };
            return Err(damaged(0, self.next_lsn, damage));
        }
        read_whole(path, &mut self.bytes)?;
        let segment = Segment::known(path.to_owned(), head.sequence, head.id, head.first_lsn, None);
        let mut scan = Scan::new(head, &self.bytes, durable_elsewhere);
        for batch in scan.by_ref() {
            segment.note(batch.head.first_lsn, batch.offset);
            let mut lsn = batch.head.first_lsn;
            for frame in Frames::new(batch.frames) {
                let folded = frame.and_then(FrameView::parse);
                let folded = folded.and_then(|view| if lsn < self.from { Ok(()) } else { each(lsn, &view) });
                folded.map_err(|error| damaged(batch.offset, lsn, error.into()))?;
                lsn = lsn.next();
            }
            if lsn != batch.head.end_lsn() {
                return Err(damaged(batch.offset, lsn, CodecError::Short.into()));
            }
            self.records += u64::from(batch.head.frames);
            glommio::yield_if_needed().await;
        }
        let tail = scan.finish().map_err(|fault| damaged(fault.offset, fault.lsn, fault.damage))?;
        segment.used.set(tail.offset);
        segment.capacity.set(tail.offset);
        segment.batches.set(tail.batches);
        segment.end.set(tail.next_lsn);
        self.next_lsn = tail.next_lsn;
        self.segments.push((segment, tail));
        Ok(())
    }
}

/// Entries whose name is a number and then `suffix`, in order; none where the folder is not there.
pub(super) fn numbered(folder: &Path, suffix: &str) -> Result<Vec<(u64, PathBuf)>, DiskError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(DiskError::io("listing", folder))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(DiskError::io("listing", folder))?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(suffix)).and_then(|digits| digits.parse().ok());
        if let Some(number) = number {
            found.push((number, entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The first bytes of a file, as many as a header takes.
pub(super) fn read_start(path: &Path, bytes: &mut Vec<u8>) -> Result<(), DiskError> {
    bytes.clear();
    let read = File::open(path).and_then(|file| file.take(SEGMENT_HEAD_BYTES as u64).read_to_end(bytes));
    read.map(|_| ()).map_err(DiskError::io("reading", path))
}

pub(super) fn read_whole(path: &Path, bytes: &mut Vec<u8>) -> Result<(), DiskError> {
    let failed = |error| DiskError::io("reading", path)(error);
    let file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len() as usize;
    bytes.clear();
    bytes.resize(length, 0);
    for (at, piece) in bytes.chunks_mut(READ_BYTES).enumerate() {
        file.read_exact_at(piece, (at * READ_BYTES) as u64).map_err(failed)?;
    }
    Ok(())
}

/// Cuts what follows the last sound batch, and makes what was read durable: a killed predecessor may have written it without
/// having seen it reach the disk, and the next header will say that it did.
fn settle(path: &Path, offset: u64) -> Result<(), DiskError> {
    let failed = |error| DiskError::io("shortening", path)(error);
    let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.len() > offset {
        file.set_len(offset).map_err(failed)?;
    }
    file.sync_all().map_err(failed)
}

fn blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}
