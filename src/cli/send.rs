//! `endstation send`: hands the assignments of a file to a worker over NATS, as the platform's router would, and shows what
//! comes back: the ack, lifecycle events and the result of each. Steps go as assignments too, or natively, in either encoding.
//!
//! With `--grpc` the steps go by a call instead.
//!
//! It listens before it sends, and ends when every assignment has its result or the time is up.

mod assignment;
mod call;
mod heard;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, context::GetStreamByNameErrorKind};
use async_nats::{Client, HeaderMap, Message, Subscriber};
use futures_util::StreamExt;
use futures_util::stream::select_all;

use super::{EXIT_FAILED, EXIT_OK, EXIT_USAGE};
use crate::edge::native::{Encoding, OWN_PATTERNS};
use crate::edge::nats::{options, servers};
use crate::edge::thread::EdgeError;
use crate::settings::{NatsMode, NatsSettings, Settings};
use assignment::{Assignment, Unusable};
pub use call::Call;
use heard::{Heard, Kind};

/// Publishes to a stream that wait for their confirmation at once.
const UNDER_WAY_MAX: usize = 256;

/// How long stragglers are listened to once every result is here: events that follow it.
const LINGER: Duration = Duration::from_millis(50);

/// What `send` was asked to do; the server is in the settings.
#[derive(Clone, Debug)]
pub struct Send {
    /// The file, or `-`.
    pub file: PathBuf,
    /// Where to send it, if not to the first assign subject.
    pub subject: Option<String>,
    /// How steps are written that go to the native subjects; none: they go as assignments.
    pub native: Option<Encoding>,
    /// Whom to call instead, if anybody.
    pub call: Option<Call>,
    /// How long to wait for the results after the last assignment is sent.
    pub timeout: Duration,
}

/// Why nothing, or not everything, could be sent.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("{0}: {1}")]
    File(String, io::Error),
    #[error("line {0}: {1}")]
    Line(usize, Unusable),
    #[error("the first assign subject, {0}, has wildcards: name one with --subject")]
    Wildcard(String),
    #[error(transparent)]
    Edge(#[from] EdgeError),
    #[error("{0}: {1} (is a server running there? `endstation dev` starts one)")]
    Connect(String, async_nats::ConnectError),
    #[error("{0}: {1}")]
    Call(String, String),
    #[error("{0} is an assignment: only steps go by gRPC")]
    NoStep(String),
    #[error("{0}: {1}")]
    Nats(&'static str, async_nats::Error),
    #[error("writing: {0}")]
    Write(#[from] io::Error),
}

/// Sends the file. Exit code: 0 all succeeded, 1 some did not or could not be sent, 2 the file or subject cannot be used.
pub fn main(send: &Send, settings: &Settings) -> u8 {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("endstation send: {error}");
            return EXIT_FAILED;
        }
    };
    let said = read(&send.file, send.native).and_then(|assignments| {
        runtime.block_on(async {
            match &send.call {
                Some(call) => call::exchange(call, send.timeout, &assignments).await,
                None => exchange(send, &settings.nats, &assignments).await,
            }
        })
    });
    match said {
        Ok(true) => EXIT_OK,
        Ok(false) => EXIT_FAILED,
        Err(error) => {
            eprintln!("endstation send: {error}");
            match error {
                SendError::File(..) | SendError::Line(..) | SendError::Wildcard(_) | SendError::NoStep(_) => EXIT_USAGE,
                _ => EXIT_FAILED,
            }
        }
    }
}

fn read(file: &Path, native: Option<Encoding>) -> Result<Vec<Assignment>, SendError> {
    let failed = |error| SendError::File(file.display().to_string(), error);
    let mut text = String::new();
    if file == Path::new("-") {
        io::stdin().read_to_string(&mut text).map_err(failed)?;
    } else {
        text = std::fs::read_to_string(file).map_err(failed)?;
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(index, line)| assignment::read(line, native).map_err(|why| SendError::Line(index + 1, why))).collect()
}

/// Sends all and listens; true if every assignment succeeded.
async fn exchange(send: &Send, nats: &NatsSettings, assignments: &[Assignment]) -> Result<bool, SendError> {
    let subject = send.subject.as_ref().unwrap_or(&nats.assign_subjects[0]).clone();
    let assigns = assignments.iter().any(|assignment| assignment.native.is_none());
    if assigns && subject.split('.').any(|token| matches!(token, "*" | ">")) {
        return Err(SendError::Wildcard(subject));
    }
    let client = options(nats, "endstation-send").await?.connect(servers(&nats.url)?).await;
    let client = client.map_err(|error| SendError::Connect(nats.url.clone(), error))?;
    let failed = |doing| move |error| SendError::Nats(doing, error);
    let mut ears = Vec::new();
    let events = format!("{}.>", nats.events_prefix);
    for (kind, subject) in [
        (Kind::Ack, nats.ack_subject.as_str()),
        (Kind::Result, &nats.result_subject),
        (Kind::Result, OWN_PATTERNS[0]),
        (Kind::Event, &events),
    ] {
        let ear: Subscriber = client.subscribe(subject.to_owned()).await.map_err(|error| failed("listening")(error.into()))?;
        ears.push(ear.map(move |message| (kind, message)));
    }
    client.flush().await.map_err(|error| failed("listening")(error.into()))?;
    let mut ears = select_all(ears);
    let mut posts = Vec::with_capacity(assignments.len());
    let mut streams = BTreeMap::new();
    for assignment in assignments {
        let subject = assignment.native.as_ref().map_or(&subject, |native| &native.subject);
        if !streams.contains_key(subject) {
            let stream = stream_of(&client, nats, subject).await.map_err(failed("looking for a stream"))?;
            streams.insert(subject.clone(), stream);
        }
        posts.push((subject.as_str(), assignment));
    }
    let mut told = Told::new(assignments, io::stdout().is_terminal());
    let how =
        |stream: &Option<String>| stream.as_ref().map_or_else(|| "core NATS".to_owned(), |stream| format!("stream {stream}"));
    told.start(streams.iter().map(|(subject, stream)| (subject.as_str(), how(stream))))?;
    let sending = publish(&client, &streams, &posts);
    tokio::pin!(sending);
    let mut sent = false;
    let mut until = None;
    loop {
        if told.complete() {
            until = until.or(Some(tokio::time::Instant::now())).map(|until| until.min(tokio::time::Instant::now() + LINGER));
        }
        let left = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            heard = ears.next() => match heard {
                Some((kind, message)) => told.hear(kind, &message)?,
                None => break,
            },
            done = &mut sending, if !sent => {
                done.map_err(failed("sending"))?;
                sent = true;
                until = Some(tokio::time::Instant::now() + send.timeout);
            }
            () = left => break,
        }
    }
    told.end()
}

/// The stream that takes the subject, unless core NATS was asked for.
async fn stream_of(client: &Client, nats: &NatsSettings, subject: &str) -> Result<Option<String>, async_nats::Error> {
    if nats.mode == NatsMode::Core || !client.server_info().jetstream {
        return Ok(None);
    }
    match jetstream::new(client.clone()).stream_by_subject(subject).await {
        Ok(name) => Ok(Some(name)),
        Err(error) if error.kind() == GetStreamByNameErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Where each subject's messages go: a stream's name, or core NATS.
type Streams = BTreeMap<String, Option<String>>;

/// Sends all. To a stream: until it has stored them.
async fn publish(client: &Client, streams: &Streams, posts: &[(&str, &Assignment)]) -> Result<(), async_nats::Error> {
    let context = jetstream::new(client.clone());
    for chunk in posts.chunks(UNDER_WAY_MAX) {
        let mut stored = Vec::with_capacity(chunk.len());
        for (subject, assignment) in chunk {
            let (subject, body) = ((*subject).to_owned(), assignment.body.clone());
            let mut headers = HeaderMap::new();
            if let Some(native) = &assignment.native {
                headers.insert("Content-Type", native.encoding.media_type());
            }
            match (streams.get(&subject), headers.is_empty()) {
                (Some(Some(_)), true) => stored.push(context.publish(subject, body).await?),
                (Some(Some(_)), false) => stored.push(context.publish_with_headers(subject, headers, body).await?),
                (_, true) => client.publish(subject, body).await?,
                (_, false) => client.publish_with_headers(subject, headers, body).await?,
            }
        }
        for stored in stored {
            stored.await?;
        }
    }
    Ok(client.flush().await?)
}

/// What has been heard of each assignment, and the output.
struct Told<'a> {
    assignments: BTreeMap<&'a str, &'a Assignment>,
    /// Whether it succeeded, by assignment.
    results: BTreeMap<String, bool>,
    people: bool,
    began: Instant,
    out: io::Stdout,
}

impl<'a> Told<'a> {
    fn new(assignments: &'a [Assignment], people: bool) -> Self {
        let assignments = assignments.iter().map(|assignment| (&*assignment.id, assignment)).collect();
        Told { assignments, results: BTreeMap::new(), people, began: Instant::now(), out: io::stdout() }
    }

    /// Says where it all goes: to what, and how.
    fn start<'b>(&mut self, to: impl IntoIterator<Item = (&'b str, String)>) -> io::Result<()> {
        let made = |native| self.assignments.values().filter(|one| one.made && one.native.is_some() == native).count();
        for (count, how) in [(made(false), "as an assignment"), (made(true), "as a step")] {
            if count > 0 {
                eprintln!("{count} lines are steps without an assignment_id: each goes out {how} with a new one");
            }
        }
        if self.people {
            for (whom, how) in to {
                writeln!(self.out, "to {whom} ({how})")?;
            }
        }
        Ok(())
    }

    fn hear(&mut self, kind: Kind, message: &Message) -> io::Result<()> {
        Heard::read(kind, message).map_or(Ok(()), |heard| self.take(heard))
    }

    fn take(&mut self, heard: Heard) -> io::Result<()> {
        let Some(assignment) = self.assignments.get(&*heard.assignment_id) else { return Ok(()) };
        if self.people {
            writeln!(self.out, "{:>8.1} ms  {}", self.began.elapsed().as_secs_f64() * 1e3, heard.row(&assignment.job_type))?;
        } else {
            writeln!(self.out, "{}", heard.object())?;
        }
        if heard.kind == Kind::Result {
            let success = heard.success();
            self.results.entry(heard.assignment_id).or_insert(success);
        }
        Ok(())
    }

    fn complete(&self) -> bool {
        self.results.len() == self.assignments.len()
    }

    fn end(mut self) -> Result<bool, SendError> {
        let missing: Vec<&str> = self.assignments.keys().copied().filter(|id| !self.results.contains_key(*id)).collect();
        for id in &missing {
            eprintln!("no result for {id}");
        }
        let ok = self.results.values().filter(|ok| **ok).count();
        if self.people {
            let (all, failed) = (self.assignments.len(), self.results.len() - ok);
            writeln!(self.out, "{all} assignments: {ok} succeeded, {failed} did not, {} without a result", missing.len())?;
        }
        Ok(ok == self.assignments.len())
    }
}
