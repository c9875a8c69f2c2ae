//! A server at which steps have their effects (`test.effect.*`), with a ledger of its own: the only witness of what was done.
//!
//! The ledger only grows. The server keeps its word as the servers of each class do: it tells repeats of a key apart, refuses to
//! make again what is there, or does what it is asked, however often. And it has its moods: it hangs up before it does
//! anything, hangs up after it has, or takes its time; what a worker knows of an effect is then less than the ledger does.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use crate::dice::Dice;

/// How a class of effects is named in its block, and what its server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Class {
    Pure,
    Idempotent,
    Transactional,
    Conditional,
    Unsafe,
}

impl Class {
    /// All of them.
    pub(crate) const ALL: [Class; 5] = [Class::Pure, Class::Idempotent, Class::Transactional, Class::Conditional, Class::Unsafe];

    /// The block that has an effect of this class.
    pub(crate) fn block(self) -> &'static str {
        match self {
            Class::Pure => "test.effect.pure",
            Class::Idempotent => "test.effect.idempotent",
            Class::Transactional => "test.effect.transactional",
            Class::Conditional => "test.effect.conditional",
            Class::Unsafe => "test.effect.unsafe",
        }
    }

    fn of(block: &str) -> Option<Class> {
        Class::ALL.into_iter().find(|class| class.block() == block)
    }
}

/// One effect that was really had.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// For which step.
    pub(crate) mark: u64,
    /// How.
    pub(crate) class: Class,
    /// By which worker, in which life (its process): for a failure's text.
    #[expect(dead_code, reason = "only printed")]
    pub(crate) by: (String, u64),
}

/// Everything that was asked for, and done. Only grows.
#[derive(Debug, Default)]
struct Ledger {
    entries: Vec<Entry>,
    /// The first entry of a key that the server tells repeats of apart.
    keys: HashMap<String, usize>,
    /// The first entry under a name; here a step's mark.
    names: HashMap<u64, usize>,
    counts: Counts,
}

/// What happened at the server.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Requests that came whole.
    pub(crate) requests: u64,
    /// Of these, those that were told apart as repeats, or found something there.
    pub(crate) repeats: u64,
    /// Hung up on before anything was done.
    pub(crate) dropped: u64,
    /// Hung up on after it was done: the answer was lost.
    pub(crate) unanswered: u64,
}

/// How often in a thousand requests it misbehaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mood {
    /// Hangs up before it does anything.
    pub(crate) drops: u64,
    /// Hangs up after it did it.
    pub(crate) hangs_up: u64,
    /// Takes up to half a second, before or after.
    pub(crate) dawdles: u64,
}

/// See the module. Its thread ends with this value.
#[derive(Debug)]
pub(crate) struct EffectServer {
    at: PathBuf,
    ledger: Arc<Mutex<Ledger>>,
    over: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl EffectServer {
    /// A server in this mood.
    pub(crate) fn start(mood: Mood, dice: Dice) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("endstation-effects-").tempdir()?;
        let at = dir.path().join("s");
        let ledger: Arc<Mutex<Ledger>> = Arc::default();
        let (over, ended) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(&at)?
        };
        let shared = Arc::clone(&ledger);
        let serving = move || runtime.block_on(listen(listener, shared, mood, dice, ended));
        let thread = std::thread::Builder::new().name("effects".into()).spawn(serving).context("the server's thread")?;
        Ok(EffectServer { at, ledger, over, thread: Some(thread), _dir: dir })
    }

    /// The socket it is reached by.
    pub(crate) fn at(&self) -> &Path {
        &self.at
    }

    /// The effects so far, by the steps' marks.
    pub(crate) fn by_mark(&self) -> HashMap<u64, Vec<Entry>> {
        let mut by_mark: HashMap<u64, Vec<Entry>> = HashMap::new();
        for entry in &lock(&self.ledger).entries {
            by_mark.entry(entry.mark).or_default().push(entry.clone());
        }
        by_mark
    }

    /// What happened so far.
    pub(crate) fn counts(&self) -> Counts {
        lock(&self.ledger).counts
    }
}

impl Drop for EffectServer {
    fn drop(&mut self) {
        let _it_may_have_ended = self.over.send(true);
        if let Some(thread) = self.thread.take() {
            let _its_panic_has_been_printed = thread.join();
        }
    }
}

async fn listen(
    listener: UnixListener,
    ledger: Arc<Mutex<Ledger>>,
    mood: Mood,
    mut dice: Dice,
    mut ended: watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    tokio::spawn(serve(stream, Arc::clone(&ledger), mood, dice.other()));
                }
            }
            _ = ended.changed() => return,
        }
    }
}

/// One request, perhaps its answer.
async fn serve(stream: UnixStream, ledger: Arc<Mutex<Ledger>>, mood: Mood, mut dice: Dice) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    // A request that was cut off was never made.
    let request: Value = serde_json::from_str(line.strip_suffix('\n')?).ok()?;
    let dawdle = |dice: &mut Dice| Duration::from_millis(if dice.per_mille(mood.dawdles) { dice.range(1, 500) } else { 0 });
    tokio::time::sleep(dawdle(&mut dice)).await;
    if dice.per_mille(mood.drops) {
        lock(&ledger).counts.dropped += 1;
        return None;
    }
    let answer = lock(&ledger).perform(&request)?;
    tokio::time::sleep(dawdle(&mut dice)).await;
    if dice.per_mille(mood.hangs_up) {
        lock(&ledger).counts.unanswered += 1;
        return None;
    }
    stream.get_mut().write_all(format!("{answer}\n").as_bytes()).await.ok()
}

impl Ledger {
    /// Does what is asked for, if it is to be done, and says what is there now.
    fn perform(&mut self, request: &Value) -> Option<Value> {
        let class = Class::of(request["block"].as_str()?)?;
        let (mark, key) = (request["mark"].as_u64()?, request["key"].as_str()?);
        let by = (request["worker"].as_str()?.to_owned(), request["life"].as_u64()?);
        self.counts.requests += 1;
        let there = match class {
            Class::Pure | Class::Unsafe => None,
            Class::Idempotent | Class::Transactional => self.keys.get(key),
            Class::Conditional => self.names.get(&mark),
        };
        let before = there.is_some();
        let entry = match there {
            Some(entry) => *entry,
            None => {
                self.entries.push(Entry { mark, class, by });
                let entry = self.entries.len() - 1;
                match class {
                    Class::Pure | Class::Unsafe => {}
                    Class::Idempotent | Class::Transactional => drop(self.keys.insert(key.to_owned(), entry)),
                    Class::Conditional => drop(self.names.insert(mark, entry)),
                }
                entry
            }
        };
        self.counts.repeats += u64::from(before);
        Some(json!({ "entry": entry, "mark": self.entries[entry].mark, "before": before }))
    }
}

fn lock(ledger: &Mutex<Ledger>) -> std::sync::MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}
