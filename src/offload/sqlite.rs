//! The threads that run statements on embedded databases: SQLite blocks, and never on a shard.
//!
//! A database is a file, opened by whoever needs it and kept open for a while. One order at a time is at work on a file, so that
//! files wait for the disk and never for each other's locks, and whoever has many orders keeps one thread and not all. An order
//! that is not wanted any more, or takes too long, is interrupted and leaves nothing.
//!
//! A write and the record of its step commit together, durable when the answer is given (WAL, `synchronous = FULL`).

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::blocks::sql::param::Given;
use crate::blocks::sql::sheet::{Bounds, Excess, Form};

mod file;
mod judge;

use file::Open;

/// Threads, and so files that are at work at once.
const THREADS: usize = 4;
/// Orders that wait, over all files and for one.
const QUEUE_MAX: usize = 4_096;
const QUEUE_PER_FILE_MAX: usize = 1_024;
/// Files that stay open while nobody wants anything of them.
const OPEN_MAX: usize = 64;
/// Pieces of rows on their way to a shard.
pub const PIECES_MAX: usize = 4;
/// How much of rows is collected before it goes there, in bytes.
const PIECE_BYTES: usize = 64 << 10;

/// What a shard asks for. Crosses cores.
pub(crate) struct Order {
    /// The file.
    pub(crate) path: PathBuf,
    /// What it may take, in bytes.
    pub(crate) bytes_max: u64,
    /// One statement.
    pub(crate) sql: String,
    /// Its parameters.
    pub(crate) params: Vec<Given>,
    /// Whether it may write.
    pub(crate) writes: bool,
    /// Whose record commits with it: the step's key and what it asks for.
    pub(crate) record: Option<([u8; 16], [u8; 32])>,
    /// How its rows are written.
    pub(crate) form: Form,
    /// How many of them are taken.
    pub(crate) bounds: Bounds,
    /// How long it may take, in milliseconds.
    pub(crate) within_ms: u64,
    /// How long it waits for what another process holds, in milliseconds.
    pub(crate) lock_ms: u64,
    /// Where rows go that are no part of the outputs.
    pub(crate) pieces: Option<mpsc::Sender<Bytes>>,
}

/// What came of it. Crosses cores.
#[derive(Debug)]
pub(crate) enum Done {
    /// The step's outputs.
    Outputs(Bytes),
    /// All rows went: how many, and their columns in JSON.
    Sent {
        /// How many.
        rows: u64,
        /// JSON.
        columns: Vec<u8>,
    },
}

/// Why nothing did. Crosses cores.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Failed {
    /// SQLite says so: its extended code, its words, and where in the statement.
    Sqlite {
        /// Extended result code.
        code: i32,
        /// Its words.
        message: String,
        /// The byte of the statement, where it is known.
        offset: Option<usize>,
    },
    /// The statement is more than one.
    Several,
    /// It is none.
    Nothing,
    /// It writes, and may not.
    Writes,
    /// It wants so many parameters.
    Params(usize),
    /// It names a parameter otherwise than by its number.
    Named,
    /// Its rows do not fit.
    Excess(Excess),
    /// Its step's key stands for another statement.
    Conflict,
    /// It took too long.
    Late,
    /// Nobody wants it any more.
    Unwanted,
    /// Too much waits already.
    Full,
    /// The file has all that it may take.
    NoRoom,
    /// The threads have gone.
    Gone,
    /// It may have been committed: the disk failed.
    Unknown(String),
}

impl From<Excess> for Failed {
    fn from(excess: Excess) -> Self {
        Failed::Excess(excess)
    }
}

/// The way to the threads, which start with the first order. Crosses cores; cloned for each that asks.
#[derive(Clone)]
pub struct Sqlite(Arc<State>);

struct State {
    started: OnceLock<()>,
    desk: Mutex<Desk>,
    come: Condvar,
}

/// What waits, and for which file.
#[derive(Default)]
struct Desk {
    files: HashMap<PathBuf, Entry>,
    /// Files with an order and nobody at work on them, in their turn.
    ready: VecDeque<PathBuf>,
    waiting: usize,
    turns: u64,
}

#[derive(Default)]
struct Entry {
    orders: VecDeque<Waiting>,
    at_work: bool,
    open: Option<Open>,
    used: u64,
}

struct Waiting {
    order: Order,
    since: Instant,
    wanted: Arc<AtomicBool>,
    answer: oneshot::Sender<Result<Done, Failed>>,
}

/// An order that is under way: dropped, it is not wanted any more.
pub(crate) struct UnderWay {
    wanted: Arc<AtomicBool>,
    answer: oneshot::Receiver<Result<Done, Failed>>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.wanted.store(false, Relaxed);
    }
}

impl UnderWay {
    /// What came of it.
    ///
    /// # Errors
    /// Why nothing did.
    pub(crate) async fn done(mut self) -> Result<Done, Failed> {
        (&mut self.answer).await.unwrap_or(Err(Failed::Gone))
    }
}

impl Default for Sqlite {
    fn default() -> Self {
        let desk = Mutex::default();
        Sqlite(Arc::new(State { started: OnceLock::new(), desk, come: Condvar::new() }))
    }
}

impl Sqlite {
    /// Hands an order over.
    ///
    /// # Errors
    /// Too much waits.
    pub(crate) fn ask(&self, order: Order) -> Result<UnderWay, Failed> {
        self.0.started.get_or_init(|| {
            for number in 0..THREADS {
                let state = self.0.clone();
                let started = std::thread::Builder::new().name(format!("sqlite-{number}")).spawn(move || serve(&state));
                if let Err(error) = started {
                    tracing::error!(%error, "no thread for embedded databases");
                }
            }
        });
        let (answer, waiting) = oneshot::channel();
        let wanted = Arc::new(AtomicBool::new(true));
        let mut desk = self.0.desk();
        let path = order.path.clone();
        if desk.waiting >= QUEUE_MAX {
            return Err(Failed::Full);
        }
        let entry = desk.files.entry(path.clone()).or_default();
        if entry.orders.len() >= QUEUE_PER_FILE_MAX {
            return Err(Failed::Full);
        }
        let first = entry.orders.is_empty() && !entry.at_work;
        entry.orders.push_back(Waiting { order, since: Instant::now(), wanted: wanted.clone(), answer });
        desk.waiting += 1;
        if first {
            desk.ready.push_back(path);
            self.0.come.notify_one();
        }
        Ok(UnderWay { wanted, answer: waiting })
    }
}

impl State {
    /// Nothing is done under the lock that could leave it half done.
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next order whose file nobody is at, with the file where it is open.
    fn next(&self) -> (PathBuf, Waiting, Option<Open>) {
        let mut desk = self.desk();
        loop {
            if let Some(path) = desk.ready.pop_front() {
                desk.turns += 1;
                let turn = desk.turns;
                if let Some(entry) = desk.files.get_mut(&path)
                    && let Some(waiting) = entry.orders.pop_front()
                {
                    (entry.at_work, entry.used) = (true, turn);
                    let open = entry.open.take();
                    desk.waiting -= 1;
                    return (path, waiting, open);
                }
                continue;
            }
            desk = self.come.wait(desk).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The file is free again. What was open for longest without use is closed where too much is.
    fn put_back(&self, path: PathBuf, open: Option<Open>) {
        let mut closing = Vec::new();
        let mut desk = self.desk();
        if let Some(entry) = desk.files.get_mut(&path) {
            (entry.at_work, entry.open) = (false, open);
            if !entry.orders.is_empty() {
                desk.ready.push_back(path);
                self.come.notify_one();
            }
        }
        while desk.files.len() > OPEN_MAX {
            let idle = desk.files.iter().filter(|(_, entry)| !entry.at_work && entry.orders.is_empty());
            let Some(oldest) = idle.min_by_key(|(_, entry)| entry.used).map(|(path, _)| path.clone()) else { break };
            closing.extend(desk.files.remove(&oldest).and_then(|entry| entry.open));
        }
        // Closing may write a checkpoint: not while others wait for the desk.
        drop(desk);
        drop(closing);
    }
}

fn serve(state: &State) {
    loop {
        let (path, waiting, open) = state.next();
        let Waiting { order, since, wanted, answer } = waiting;
        let mut open = open;
        let work = || at_work(&path, &mut open, order, since, &wanted);
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        let done = done.unwrap_or_else(|_| {
            tracing::error!("a statement on an embedded database panicked");
            Err(Failed::Unknown("the worker's own code failed".to_owned()))
        });
        // Whatever state it is in after this, nobody is given it again.
        if matches!(done, Err(Failed::Unknown(_))) {
            open = None;
        }
        state.put_back(path, open);
        let _ = answer.send(done);
    }
}

fn at_work(path: &Path, open: &mut Option<Open>, order: Order, since: Instant, wanted: &Arc<AtomicBool>) -> Result<Done, Failed> {
    let until = since + Duration::from_millis(order.within_ms);
    if !wanted.load(Relaxed) {
        return Err(Failed::Unwanted);
    }
    if Instant::now() >= until {
        return Err(Failed::Late);
    }
    let file = match open {
        Some(file) => file,
        None => open.insert(Open::new(path)?),
    };
    file.perform(order, until, wanted)
}

#[cfg(test)]
mod tests;
