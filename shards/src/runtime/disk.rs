//! The disk under one shard's journal: recovery, group commit, segments. Lives on its core.
//!
//! [`Disk::open`] reads the journal back, cuts a write that never finished, refuses damage, and goes on in a new segment at
//! `<dir>/<generation>/<shard>/<sequence>.seg`. The owner appends whole [`Log`]s, spawns [`Disk::run`] once and listens to
//! [`Disk::news`]; one batch is in flight at a time, and what is appended meanwhile is the next. A failed write or fsync is
//! [`News::Failed`], never retried: the owner ends the process, and nothing of that batch has been reported durable.
//!
//! After the last commit, when nothing follows for a while, one [`News::MarkDue`] asks the owner for a single mark frame, which
//! proves to a later reader that the last batch had been durable.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::event::DiskNews;
use crate::ids::{Lsn, Salt};
use crate::journal::batch::BATCH_HEAD_BYTES;
use crate::journal::codec::FRAME_HEAD_BYTES;
use crate::journal::segment::{Damage, FEATURES, HeadError, SEGMENT_HEAD_BYTES, SegmentHead};
use crate::journal::view::Frames;
use crate::journal::{Kind, Log};
use crate::limits::BATCH_BYTES_MAX;

mod commit;
mod cure;
mod lock;
mod measure;
mod next;
mod open;
mod probe;
mod reserve;
pub mod reshard;
mod segment;
mod signal;
#[cfg(feature = "failpoints")]
mod slow;
mod tend;
#[cfg(test)]
mod tests;

pub use crate::shard::Span;
pub use lock::{DirLock, is_held, lock_dir};
pub use measure::{FsyncTimes, measure};
pub use open::{Cut, Opened, Start, inspect};

use segment::Segment;
use signal::Signal;

/// How long frames that nobody waits for may stay out of the journal, in milliseconds.
const LAZY_MS: u64 = 10;
/// An idle shard asks for its mark after this, in milliseconds, so that it is on disk within 10.
const MARK_AFTER_MS: u64 = 8;

/// What the disk of one shard needs to know. Crosses the thread once, at launch.
#[derive(Clone, Debug)]
pub struct DiskSettings {
    /// The data directory.
    pub dir: PathBuf,
    /// Which layout of shards and partitions; 1 for the first.
    pub generation: u64,
    /// Whose journal.
    pub shard: u16,
    /// How many shards there are.
    pub shards: u16,
    /// Who writes.
    pub worker_id: String,
    /// What keys are salted with.
    pub salt: Salt,
    /// The size of a segment, in bytes; at least one batch and two headers.
    pub segment_bytes: u64,
}

impl DiskSettings {
    /// 64 MiB: large enough that rotation is rare, small enough that space comes back in useful pieces.
    pub const SEGMENT_BYTES_DEFAULT: u64 = 64 << 20;

    /// Where the journal lies.
    pub fn folder(&self) -> PathBuf {
        self.dir.join(self.generation.to_string()).join(self.shard.to_string())
    }

    /// The header of a segment that is begun now.
    fn head(&self, id: u64, sequence: u64, first_lsn: Lsn, boot: u32) -> SegmentHead {
        SegmentHead {
            worker_id: self.worker_id.clone(),
            generation: self.generation,
            shard: self.shard,
            shards: self.shards,
            features: FEATURES,
            id,
            sequence,
            first_lsn,
            salt: Salt(self.salt.0),
            created_ms: segment::wall_ms(),
            boot,
        }
    }
}

/// What the disk tells its owner.
#[derive(Debug)]
pub enum News {
    /// Everything up to here will survive us.
    Durable {
        /// The newest durable frame.
        through: Lsn,
    },
    /// Nothing has been appended since the last commit: append one mark, in a [`Log`] of its own. Not repeated until
    /// something else has been committed.
    MarkDue,
    /// For the machine.
    Disk(DiskNews),
    /// The journal can no longer be written: end the process, acknowledge nothing more.
    Failed(DiskError),
}

/// What was written since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Commits, each with one fdatasync.
    pub fsyncs: u64,
    /// Bytes of batches.
    pub bytes: u64,
    /// Frames in them.
    pub frames: u64,
}

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The system refused.
    #[error("{doing} {path}: {source}{cure}", path = path.display(), cure = cure::cure(source))]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no room for a segment.
    #[error("no room for a journal segment of {bytes} bytes at {path}; free space or name another storage.dir", path = path.display())]
    NoRoom {
        /// Where.
        path: PathBuf,
        /// How much was wanted.
        bytes: u64,
    },
    /// The journal must be rewritten for another number of shards, and there is no room for it twice. It is as it was.
    #[error(
        "{was} shards wrote this journal and there are {now} now: it has to be rewritten once, for which {needed} bytes are needed at {path} and {free} are free; free space there, set cores.shards back to {was}, or name another storage.dir",
        path = path.display()
    )]
    NoRoomToReshard {
        /// The data directory.
        path: PathBuf,
        /// How many shards wrote it.
        was: u16,
        /// How many there are.
        now: u16,
        /// The new journal's size at most.
        needed: u64,
        /// What there was.
        free: u64,
    },
    /// A segment's header says that it is not for us.
    #[error("{path}: {error}", path = path.display())]
    Head {
        /// The segment.
        path: PathBuf,
        /// Why.
        error: HeadError,
    },
    /// Something that had been durable is not as it was written, or is not for this version. Nothing has been changed.
    #[error("{path} at byte {offset}, lsn {lsn}: {damage}", path = path.display(), lsn = lsn.0)]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// The first frame that cannot be used.
        lsn: Lsn,
        /// What is wrong.
        damage: Damage,
    },
    /// Another process uses the directory.
    #[error("{dir} is held by another endstation (process {holder}): one process per data directory; stop it or name another storage.dir", dir = dir.display())]
    Held {
        /// The data directory.
        dir: PathBuf,
        /// Who holds it, as far as it says.
        holder: String,
    },
}

/// The system's number in the text of an error: all that glommio leaves of it where one of its errors is the cause of another.
fn number_in(text: &str) -> Option<i32> {
    let (_, rest) = text.split_once("(os error ")?;
    rest.split_once(')')?.0.parse().ok()
}

impl DiskError {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
        let path = path.to_owned();
        move |source| DiskError::Io { doing, path, source }
    }

    fn ring(doing: &'static str, path: &Path) -> impl FnOnce(glommio::GlommioError<()>) -> DiskError {
        let path = path.to_owned();
        // Keeps the system's own number where there is one: glommio's conversion drops it.
        move |error| {
            let number = error.raw_os_error().or_else(|| number_in(&error.to_string()));
            let source = number.map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error);
            DiskError::Io { doing, path, source }
        }
    }

    /// Out of space or quota, which passes; or some other error, which does not.
    fn is_no_room(&self) -> bool {
        match self {
            DiskError::NoRoom { .. } => true,
            DiskError::Io { source, .. } => {
                let codes = [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT, rustix::io::Errno::FBIG];
                codes.iter().any(|code| source.raw_os_error() == Some(code.raw_os_error()))
            }
            _ => false,
        }
    }
}

/// The disk of one shard; clones are the same disk. Lives on its core.
#[derive(Clone)]
pub struct Disk {
    inner: Rc<Inner>,
}

/// Frames on their way to be one batch.
struct Pending {
    /// Room for the batch header, then frames.
    buffer: Vec<u8>,
    frames: u32,
    /// Somebody waits for it.
    urgent: bool,
    /// It is a mark and nothing else.
    mark: bool,
}

struct Inner {
    settings: DiskSettings,
    folder: PathBuf,
    boot: u32,
    /// The lsn the next appended frame gets.
    next_lsn: Cell<Lsn>,
    durable: Cell<Lsn>,
    queue: RefCell<VecDeque<Pending>>,
    /// What the last batch came to, in bytes: the next will be about as large.
    usual_bytes: Cell<usize>,
    /// The segment that commits go to.
    current: RefCell<Rc<Segment>>,
    /// The one after it, ready to be written.
    prepared: RefCell<Option<Rc<Segment>>>,
    /// Those before it, oldest first.
    closed: RefCell<VecDeque<Rc<Segment>>>,
    sequence: Cell<u64>,
    prune_below: Cell<Lsn>,
    counts: Cell<Counts>,
    /// Something other than a mark was committed last.
    unmarked: Cell<bool>,
    /// The committer waits for a prepared segment.
    wanted: Cell<bool>,
    /// The next segment is being begun: the current one is over, and is the current one still.
    rotating: Cell<bool>,
    /// The size of the reserve, in bytes; 0 while there is none.
    reserve: Cell<u64>,
    /// A segment or the reserve is being made, or taken.
    tending: Cell<bool>,
    /// The committer waits for room for one large batch.
    cramped: Cell<bool>,
    full: Cell<bool>,
    closing: Cell<bool>,
    /// Nothing is written any more.
    ended: Cell<bool>,
    news: RefCell<VecDeque<News>>,
    /// For the committer: there is something to commit.
    work: Signal,
    /// For the tender: there may be something to tidy.
    chores: Signal,
    /// For the committer: a segment is prepared, or zeros are written.
    tended: Signal,
    /// For the owner: there is news.
    told: Signal,
    /// For [`Disk::close`].
    over: Signal,
}

impl Disk {
    /// Takes the log's frames and empties it; gives the lsn of the last of them. Nothing is written yet.
    pub fn append(&self, log: &mut Log) -> Lsn {
        let inner = &*self.inner;
        let last = Lsn(inner.next_lsn.get().0 + u64::from(log.frames) - 1);
        if log.frames == 0 {
            return last;
        }
        let mut queue = inner.queue.borrow_mut();
        let was_waiting = !queue.is_empty();
        let mark = log.frames == 1 && log.bytes[4] == Kind::Mark as u8;
        if log.bytes.len() <= BATCH_BYTES_MAX || log.frames == 1 {
            Pending::push(&mut queue, &log.bytes, log.frames, mark, inner.usual_bytes.get());
        } else {
            for frame in Frames::new(&log.bytes).flatten() {
                Pending::push(&mut queue, frame, 1, false, inner.usual_bytes.get());
            }
        }
        let newest = queue.back_mut().expect("just pushed");
        newest.urgent |= log.urgent || mark;
        if newest.urgent || queue.len() > 1 || !was_waiting {
            inner.work.raise();
        }
        inner.next_lsn.set(last.next());
        log.clear();
        last
    }

    /// What was written since the start.
    pub fn counts(&self) -> Counts {
        self.inner.counts.get()
    }

    /// The lsn the next appended frame gets.
    pub fn next_lsn(&self) -> Lsn {
        self.inner.next_lsn.get()
    }

    /// The newest durable frame; 0 for none.
    pub fn durable(&self) -> Lsn {
        self.inner.durable.get()
    }

    /// Where the journal lies.
    pub fn folder(&self) -> &Path {
        &self.inner.folder
    }

    /// Space that is kept for when the disk is full, in bytes; 0 while it is used.
    pub fn reserve_bytes(&self) -> u64 {
        self.inner.reserve.get()
    }

    /// Which start of this worker this is, from 1.
    pub fn boot(&self) -> u32 {
        self.inner.boot
    }

    /// Commits what is appended and tends the segments, until [`Disk::close`] or [`News::Failed`]. To be spawned once,
    /// detached, and never cancelled.
    pub async fn run(self) {
        let disk = self.inner;
        let commit = async {
            if let Err(error) = disk.commit_all().await {
                disk.tell(News::Failed(error));
            }
            disk.end();
        };
        let tend = async {
            if let Err(error) = disk.tend_all().await {
                disk.tell(News::Failed(error));
                disk.end();
            }
        };
        futures_util::future::join(commit, tend).await;
    }

    /// The next news, in order. Dropping the future loses nothing. One listener at a time.
    pub async fn news(&self) -> News {
        loop {
            if let Some(news) = self.try_news() {
                return news;
            }
            self.inner.told.wait().await;
        }
    }

    /// News, if there is some.
    pub fn try_news(&self) -> Option<News> {
        self.inner.news.borrow_mut().pop_front()
    }

    /// Lets the segments go that hold only frames below this one.
    pub fn prune(&self, below: Lsn) {
        if below > self.inner.prune_below.get() {
            self.inner.prune_below.set(below);
            self.inner.chores.raise();
        }
    }

    /// Commits what has been appended and ends [`Disk::run`]; what became durable is still in the news.
    pub async fn close(&self) {
        self.inner.closing.set(true);
        self.inner.work.raise();
        while !self.inner.ended.get() {
            self.inner.over.wait().await;
        }
    }
}

impl Pending {
    /// A new batch gets room for `usual` bytes at once.
    fn push(queue: &mut VecDeque<Pending>, frames: &[u8], count: u32, mark: bool, usual: usize) {
        let fits = queue.back().is_some_and(|newest| newest.buffer.len() + frames.len() <= BATCH_BYTES_MAX);
        if !fits {
            let mut buffer = Vec::with_capacity((BATCH_HEAD_BYTES + frames.len() + 8).max(usual));
            buffer.resize(BATCH_HEAD_BYTES, 0);
            queue.push_back(Pending { buffer, frames: 0, urgent: false, mark: true });
        }
        let newest = queue.back_mut().expect("just pushed");
        newest.buffer.extend_from_slice(frames);
        newest.frames += count;
        newest.mark &= mark;
    }
}

impl Inner {
    fn tell(&self, news: News) {
        let mut waiting = self.news.borrow_mut();
        match (waiting.back_mut(), &news) {
            (Some(News::Durable { through }), News::Durable { through: newer }) => *through = *newer,
            _ => waiting.push_back(news),
        }
        drop(waiting);
        self.told.raise();
    }

    fn end(&self) {
        self.ended.set(true);
        self.chores.raise();
        self.work.raise();
        self.over.raise();
    }

    fn current(&self) -> Rc<Segment> {
        self.current.borrow().clone()
    }
}

const _: () = assert!(SEGMENT_HEAD_BYTES.is_multiple_of(crate::journal::batch::ALIGN_BYTES));
const _: () = assert!(FRAME_HEAD_BYTES > 4, "append reads a frame's kind");
const _: () = assert!(MARK_AFTER_MS < LAZY_MS);
