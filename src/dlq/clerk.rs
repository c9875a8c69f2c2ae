//! The thread that keeps the store: takes letters in as many as there are, syncs once for all of them, and says so.
//!
//! Nothing is lost with this thread: a letter whose end it has not told is still with its shard, and in the journal.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use shards::ids::Text;
use shards::runtime::ports::Parcel;

use super::record::{Head, Why};
use super::store::{Kept, Place, Refusal, Store};
use super::{DlqStatus, FOLDER, SEND_BYTES_MAX, SEND_MAX};

/// Letters stored with one sync.
const BATCH_MAX: usize = 256;
/// A larger letter stays in the store: servers take no more than 1 MiB unless told, headers included.
const SENT_BYTES_MAX: usize = (1 << 20) - (16 << 10);

/// Something for the clerk. Crosses threads.
#[derive(Debug)]
pub enum Question {
    /// Store this.
    Keep(Deposit),
    /// Read letters back that wait for a stream over these subjects, those after this place.
    Read {
        /// Where the last ones ended.
        after: Option<Place>,
        /// Subjects that a stream takes now.
        subjects: Vec<Text>,
    },
    /// A stream has these.
    Sent(Vec<Place>),
}

/// A letter that is to be stored, and where its end is to be told. Crosses threads.
#[derive(Debug)]
pub struct Deposit {
    /// Whose.
    pub shard: u16,
    /// The letter; with its ticket it comes back.
    pub parcel: Parcel,
    /// How often it was tried to be sent.
    pub sends: u32,
    /// Why it is stored.
    pub why: Why,
    /// It has been published, or its reader been told.
    pub told: bool,
}

impl Deposit {
    /// One that there is no server to send to.
    pub fn without_server(shard: u16, parcel: Parcel, told: bool) -> Deposit {
        let why = if parcel.body.len() > SENT_BYTES_MAX { Why::TooLarge } else { Why::NoServer };
        Deposit { shard, parcel, sends: 0, why, told }
    }
}

/// What became of a question. Crosses threads.
#[derive(Debug)]
pub enum Done {
    /// Stored and durable, or not.
    Kept(Deposit, Result<(), Refusal>),
    /// Letters to be sent; fewer than asked for: there are no more.
    Read(Vec<Kept>),
}

/// How the clerk is reached; it ends when the last of these goes. Cheap to clone; clones share their answers.
#[derive(Clone, Debug)]
pub struct Desk {
    questions: flume::Sender<Asked>,
    answers: flume::Sender<Done>,
    /// What became of the questions that were asked at this desk; one reader.
    pub done: flume::Receiver<Done>,
    /// What the store shows.
    pub status: Arc<DlqStatus>,
}

/// A question, and where its end is told.
type Asked = (Question, flume::Sender<Done>);

impl Desk {
    /// Another desk of the same clerk: what is asked there is answered there.
    #[must_use]
    pub fn another(&self) -> Desk {
        Desk::new(self.questions.clone(), Arc::clone(&self.status))
    }

    fn new(questions: flume::Sender<Asked>, status: Arc<DlqStatus>) -> Desk {
        // Not bounded here: a shard has no more letters out than `limits.unpublished`.
        let (answers, done) = flume::unbounded();
        Desk { questions, answers, done, status }
    }

    /// Hands a question over. The thread ends only when nobody can ask any more.
    pub fn ask(&self, question: Question) {
        let _ = self.questions.send((question, self.answers.clone()));
    }
}

/// The running thread.
#[derive(Debug)]
pub struct Clerk {
    desk: Desk,
    thread: JoinHandle<()>,
}

impl Clerk {
    /// Opens the store under `storage_dir`, whose lock this process holds, on a thread of its own.
    ///
    /// # Errors
    /// The store cannot be used, or the thread not be started.
    pub fn start(storage_dir: &Path, bytes_max: u64) -> std::io::Result<Clerk> {
        let status = Arc::new(DlqStatus::default());
        let (questions, asked) = flume::unbounded();
        let mut store = Store::open(&storage_dir.join(FOLDER), bytes_max, Arc::clone(&status))?;
        let thread = std::thread::Builder::new().name("dlq".to_owned()).spawn(move || work(&mut store, &asked))?;
        Ok(Clerk { desk: Desk::new(questions, status), thread })
    }

    /// How it is reached.
    pub fn desk(&self) -> &Desk {
        &self.desk
    }

    /// Ends it once everything that was asked is done; every other desk must be gone.
    pub fn end(self) {
        drop(self.desk);
        let _ = self.thread.join();
    }
}

fn work(store: &mut Store, asked: &flume::Receiver<Asked>) {
    let mut deposits = Vec::new();
    while let Ok(first) = asked.recv() {
        let mut next = Some(first);
        while let Some((question, answers)) = next {
            match question {
                Question::Keep(deposit) => deposits.push((deposit, answers)),
                Question::Read { after, subjects } => {
                    let read = store.waiting(after, &subjects, SEND_MAX, SEND_BYTES_MAX);
                    let _ = answers.send(Done::Read(read));
                }
                Question::Sent(places) => {
                    if let Err(error) = store.sent(&places) {
                        tracing::warn!(%error, "dead letters that a stream has taken could not be marked: they are sent again");
                    }
                }
            }
            next = if deposits.len() < BATCH_MAX { asked.try_recv().ok() } else { None };
        }
        if !deposits.is_empty() {
            keep(store, std::mem::take(&mut deposits));
        }
    }
}

fn keep(store: &mut Store, deposits: Vec<(Deposit, flume::Sender<Done>)>) {
    let letters: Vec<(Head, Bytes)> = deposits.iter().map(|(deposit, _)| (head(deposit), deposit.parcel.body.clone())).collect();
    let verdicts = store.keep(&letters);
    if let Some(refusal) = verdicts.iter().find_map(|verdict| verdict.as_ref().err()) {
        tracing::error!(%refusal, "dead letters cannot be stored: they wait in the journal, and are tried again");
    }
    fail::fail_point!("dlq-stored", |_| std::process::abort());
    for ((deposit, answers), verdict) in deposits.into_iter().zip(verdicts) {
        let _ = answers.send(Done::Kept(deposit, verdict));
    }
}

fn head(deposit: &Deposit) -> Head {
    let parcel = &deposit.parcel;
    let headers: Vec<(String, String)> =
        parcel.headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    let id = headers.iter().find(|(name, _)| name == "Nats-Msg-Id").map(|(_, id)| id.clone()).unwrap_or_default();
    let stored_ms = jiff::Timestamp::now().as_millisecond().unsigned_abs();
    Head { id, subject: parcel.subject.to_string(), headers, stored_ms, why: deposit.why, told: deposit.told }
}
