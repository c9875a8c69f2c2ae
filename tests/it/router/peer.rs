//! The model at work: sends assignments over a real server and shows the model every message that workers send.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::context::PublishError;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt as _;
use serde_json::{Map, Value, json};
use tokio::task::JoinHandle;

use super::{Assignment, Headers, Model, Owed, Seen, Strictness, Subjects, letters};

/// How long a publish is tried again while the server is away.
const SEND_FOR: Duration = Duration::from_secs(30);
/// Between two looks at the model.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// The JetStream API's code for a message that is not there.
const NO_MESSAGE_FOUND: u64 = 10_037;

/// A router connected to a server.
#[derive(Debug)]
pub(crate) struct Router {
    client: async_nats::Client,
    jetstream: bool,
    subjects: Subjects,
    shared: Arc<Mutex<Shared>>,
    reader: JoinHandle<()>,
}

/// What the server says of a durable consumer.
#[derive(Debug)]
pub(crate) struct Standing {
    /// Messages it has yet to deliver.
    pub(crate) pending: u64,
    /// Deliveries it has yet to hear of.
    pub(crate) out: u64,
    /// Pull requests that wait for messages.
    pub(crate) waiting: u64,
    /// The newest stream sequence it has delivered.
    pub(crate) delivered: u64,
    /// The number of its newest delivery.
    pub(crate) deliveries: u64,
    /// Deliveries up to this number are settled.
    pub(crate) deliveries_floor: u64,
}

#[derive(Debug)]
struct Shared {
    model: Model,
    broken: Vec<String>,
    own_subjects: HashSet<String>,
}

impl Router {
    /// Connects and starts to watch.
    pub(crate) async fn connect(url: &str, jetstream: bool, subjects: Subjects, strict: Strictness) -> Result<Self> {
        let client = introduced(url)?
            .reconnect_delay_callback(|_| Duration::from_millis(50))
            .connect(url)
            .await
            .context("the router cannot connect")?;
        let shared = Arc::new(Mutex::new(Shared {
            model: Model::new(subjects.clone(), strict),
            broken: Vec::new(),
            own_subjects: HashSet::from([subjects.assign.clone()]),
        }));
        // One subscription for acks and results, so that their order is seen as the worker made it.
        let answers = client.subscribe("caf.>").await?;
        let events = client.subscribe("beamline.>").await?;
        client.flush().await?;
        let seen = Arc::clone(&shared);
        let reader = tokio::spawn(async move {
            let mut both = futures_util::stream::select(answers, events);
            while let Some(message) = both.next().await {
                lock(&seen).take_in(&message.subject, message.headers.as_ref(), &message.payload);
            }
        });
        Ok(Router { client, jetstream, subjects, shared, reader })
    }

    /// Asks the workers something that is no assignment, and gives the one answer.
    pub(crate) async fn question(&self, subject: &str, question: &Value) -> Result<Value> {
        lock(&self.shared).own_subjects.insert(subject.to_owned());
        let answer = self.client.request(subject.to_owned(), question.to_string().into()).await?;
        Ok(serde_json::from_slice(&answer.payload)?)
    }

    /// Sends an assignment that is owed an answer.
    pub(crate) async fn send(&self, assignment: &Assignment) -> Result<()> {
        self.send_owing(assignment, Owed::Answer).await
    }

    /// Sends an assignment with what it is owed.
    pub(crate) async fn send_owing(&self, assignment: &Assignment, owed: Owed) -> Result<()> {
        self.expect(assignment, owed);
        self.send_raw(&self.subjects.assign, &assignment.headers, assignment.body()).await
    }

    /// Tells the model of an assignment without sending it.
    pub(crate) fn expect(&self, assignment: &Assignment, owed: Owed) {
        lock(&self.shared).model.assigned(&assignment.id, assignment.echo(), owed);
    }

    /// Sends an assignment on another subject, as a client may ask the router to.
    pub(crate) async fn send_on(&self, subject: &str, assignment: &Assignment) -> Result<()> {
        lock(&self.shared).own_subjects.insert(subject.to_owned());
        self.expect(assignment, Owed::Answer);
        self.send_raw(subject, &assignment.headers, assignment.body()).await
    }

    /// Sends any bytes to the workers; over JetStream until the server has confirmed them.
    pub(crate) async fn send_raw(&self, subject: &str, headers: &Headers, body: Vec<u8>) -> Result<()> {
        let map = header_map(headers);
        if !self.jetstream {
            if map.is_empty() {
                self.client.publish(subject.to_owned(), body.into()).await?;
            } else {
                self.client.publish_with_headers(subject.to_owned(), map, body.into()).await?;
            }
            return Ok(self.client.flush().await?);
        }
        let begun = Instant::now();
        loop {
            let Err(error) = self.publish(subject, map.clone(), body.clone()).await else { return Ok(()) };
            ensure!(begun.elapsed() < SEND_FOR, "an assignment could not be sent: {error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// One publish to a stream, and its confirmation.
    async fn publish(&self, subject: &str, headers: HeaderMap, body: Vec<u8>) -> Result<(), PublishError> {
        let mut context = async_nats::jetstream::new(self.client.clone());
        context.set_timeout(Duration::from_secs(2));
        context.publish_with_headers(subject.to_owned(), headers, body.into()).await?.await.map(drop)
    }

    /// Sends many at once without waiting for each: all are confirmed when this returns.
    pub(crate) async fn send_all(&self, assignments: &[Assignment]) -> Result<()> {
        for chunk in assignments.chunks(256) {
            futures_util::future::try_join_all(chunk.iter().map(|assignment| self.send(assignment))).await?;
        }
        Ok(())
    }

    /// Waits for the result of one assignment.
    pub(crate) async fn result(&self, id: &str, within: Duration) -> Result<Seen> {
        self.wait(within, &format!("result of {id}"), |model| model.result_of(id).cloned()).await
    }

    /// Sends one assignment and waits for its result.
    pub(crate) async fn run(&self, assignment: &Assignment, within: Duration) -> Result<Seen> {
        self.send(assignment).await?;
        self.result(&assignment.id, within).await
    }

    /// Waits until nothing is owed any more.
    pub(crate) async fn all_answered(&self, within: Duration) -> Result<()> {
        self.wait(within, "answers", |model| (model.open() == 0).then_some(())).await
    }

    /// Waits for the dead letter of these bytes.
    pub(crate) async fn dead_letter(&self, body: &[u8], within: Duration) -> Result<Map<String, Value>> {
        let has = |letter: &&Map<String, Value>| letter.values().any(|value| letters::carries(value, body));
        let text = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
        self.wait(within, &format!("dead letter of {text}"), |model| model.dead_letters().iter().find(has).cloned()).await
    }

    /// Waits until the model shows what is looked for; fails at once when a rule was broken.
    pub(crate) async fn wait<T>(&self, within: Duration, what: &str, mut look: impl FnMut(&Model) -> Option<T>) -> Result<T> {
        let begun = Instant::now();
        loop {
            {
                let shared = lock(&self.shared);
                if let Some(broken) = shared.broken.first() {
                    bail!("the worker broke the contract: {broken}");
                }
                if let Some(found) = look(&shared.model) {
                    return Ok(found);
                }
                if begun.elapsed() > within {
                    let missing = shared.model.unanswered();
                    bail!("no {what} in {within:?}; {} unanswered, {:?}", missing.len(), shared.model.counts());
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Asks the model something.
    pub(crate) fn ask<T>(&self, question: impl FnOnce(&Model) -> T) -> T {
        question(&lock(&self.shared).model)
    }

    /// No rule was broken so far.
    pub(crate) fn unbroken(&self) -> Result<()> {
        let broken = &lock(&self.shared).broken;
        ensure!(broken.is_empty(), "{} broken rules: {}", broken.len(), broken[..broken.len().min(10)].join("\n"));
        Ok(())
    }

    /// No rule was broken and nothing is owed.
    pub(crate) fn verdict(&self) -> Result<()> {
        self.unbroken()?;
        let shared = lock(&self.shared);
        let late = shared.model.told_by_nobody();
        ensure!(
            late.is_empty(),
            "{} second results of workers that owned nothing any more: {:?}",
            late.len(),
            &late[..late.len().min(10)]
        );
        let missing = shared.model.unanswered();
        ensure!(missing.is_empty(), "{} assignments without a result: {:?}", missing.len(), &missing[..missing.len().min(10)]);
        Ok(())
    }

    /// Reads the whole result stream past the model: what this connection missed while the server was down. Gives its length.
    pub(crate) async fn read_result_stream(&self) -> Result<u64> {
        self.read_stream(&self.subjects.result, &mut 1).await
    }

    /// Reads the stream over `subject` past the model from the sequence `next` on, which then is the one after the last. Gives how
    /// many there were.
    pub(crate) async fn read_stream(&self, subject: &str, next: &mut u64) -> Result<u64> {
        let context = async_nats::jetstream::new(self.client.clone());
        let name = context.stream_by_subject(subject).await.with_context(|| format!("no stream over {subject}"))?;
        let stream = context.get_stream(&name).await?;
        let config = pull::Config {
            ack_policy: AckPolicy::None,
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: *next },
            filter_subject: subject.to_owned(),
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await?;
        let total = consumer.cached_info().num_pending;
        let mut read = 0;
        while read < total {
            let mut batch = consumer.fetch().max_messages(500).messages().await?;
            let before = read;
            while let Some(message) = batch.next().await {
                let message = message.map_err(|error| anyhow::anyhow!("reading the stream {name}: {error}"))?;
                lock(&self.shared).take_in(&message.subject, message.headers.as_ref(), &message.payload);
                let info = message.info().map_err(|error| anyhow::anyhow!("a message of {name}: {error}"))?;
                *next = info.stream_sequence + 1;
                read += 1;
            }
            ensure!(read > before, "the stream {name} says {total} messages, {read} could be read");
        }
        Ok(total)
    }

    /// Waits until the assignment stream holds nothing more: an ack comes after its result.
    pub(crate) async fn stream_is_empty(&self) -> Result<()> {
        let begun = std::time::Instant::now();
        loop {
            match self.left_in_stream().await? {
                0 => return Ok(()),
                left => ensure!(begun.elapsed() < Duration::from_secs(10), "{left} messages are still in the stream"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// How many messages the assignment stream still holds.
    pub(crate) async fn left_in_stream(&self) -> Result<u64> {
        let context = async_nats::jetstream::new(self.client.clone());
        let name = self.assign_stream().await?;
        Ok(context.get_stream(&name).await?.cached_info().state.messages)
    }

    /// What the server says of a durable consumer of the assignments.
    pub(crate) async fn standing(&self, durable: &str) -> Result<Standing> {
        let stream = self.assign_stream().await?;
        let info = self.api(&format!("CONSUMER.INFO.{stream}.{durable}"), &json!({})).await?;
        let number = |at: &str| info.pointer(at).and_then(Value::as_u64).with_context(|| format!("{at} in {info}"));
        Ok(Standing {
            pending: number("/num_pending")?,
            out: number("/num_ack_pending")?,
            waiting: number("/num_waiting")?,
            delivered: number("/delivered/stream_seq")?,
            deliveries: number("/delivered/consumer_seq")?,
            deliveries_floor: number("/ack_floor/consumer_seq")?,
        })
    }

    /// Every message that the assignments' stream still holds: its sequence and its assignment's id.
    pub(crate) async fn leftovers(&self) -> Result<Vec<(u64, String)>> {
        let stream = self.assign_stream().await?;
        let mut found = Vec::new();
        let mut next = 1;
        loop {
            let question = json!({ "seq": next, "next_by_subj": ">" });
            let answer = self.api(&format!("STREAM.MSG.GET.{stream}"), &question).await?;
            if answer.pointer("/error/err_code").and_then(Value::as_u64) == Some(NO_MESSAGE_FOUND) {
                return Ok(found);
            }
            let sequence = answer.pointer("/message/seq").and_then(Value::as_u64).with_context(|| format!("seq in {answer}"))?;
            let body = answer.pointer("/message/data").and_then(Value::as_str).unwrap_or_default();
            let body: Value = serde_json::from_slice(&STANDARD.decode(body)?)?;
            let id = body["assignment_id"].as_str().with_context(|| format!("assignment_id in {body}"))?;
            found.push((sequence, id.to_owned()));
            next = sequence + 1;
        }
    }

    /// Says "not done" of a message in the consumer's stead. The server gives out again at once what it counts as out, and
    /// does nothing for what it counts as settled (unless nothing at all is out: then 2.9.10 does not look).
    pub(crate) async fn nak(&self, durable: &str, sequence: u64, standing: &Standing) -> Result<()> {
        let (stream, number) = (self.assign_stream().await?, standing.deliveries);
        let subject = format!("$JS.ACK.{stream}.{durable}.1.{sequence}.{number}.0.0");
        self.client.publish(subject, "-NAK".into()).await?;
        Ok(self.client.flush().await?)
    }

    async fn api(&self, what: &str, question: &Value) -> Result<Value> {
        let answer = self.client.request(format!("$JS.API.{what}"), question.to_string().into()).await?;
        Ok(serde_json::from_slice(&answer.payload)?)
    }

    async fn assign_stream(&self) -> Result<String> {
        let context = async_nats::jetstream::new(self.client.clone());
        context.stream_by_subject(self.subjects.assign.as_str()).await.context("no stream over the assignments")
    }

    /// The client, for what only one scenario needs.
    pub(crate) fn client(&self) -> &async_nats::Client {
        &self.client
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Shared {
    fn take_in(&mut self, subject: &str, headers: Option<&HeaderMap>, payload: &[u8]) {
        if self.own_subjects.contains(subject) {
            return;
        }
        let headers: Headers = headers
            .iter()
            .flat_map(|map| map.iter())
            .flat_map(|(name, values)| values.iter().map(|value| (name.to_string(), value.as_str().to_owned())))
            .collect();
        if let Err(violation) = self.model.observe(subject, &headers, payload) {
            let text = String::from_utf8_lossy(&payload[..payload.len().min(600)]).into_owned();
            self.broken.push(format!("{violation}\n  on {subject} {headers:?}\n  {text}"));
        }
    }
}

/// A connection that says who it is by what stands before the server's host; the client does not look there.
pub(crate) fn introduced(url: &str) -> Result<async_nats::ConnectOptions> {
    let (url, options) = (url::Url::parse(url)?, async_nats::ConnectOptions::new());
    Ok(match (url.username(), url.password()) {
        ("", _) => options,
        (token, None) => options.token(token.to_owned()),
        (user, Some(password)) => options.user_and_password(user.to_owned(), password.to_owned()),
    })
}

fn header_map(headers: &Headers) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(name.as_str(), value.as_str());
    }
    map
}

/// A panic while it was held must not hide the first failure.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
