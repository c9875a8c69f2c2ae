//! Sends things out: parcels in the shards' order, settlements of deliveries, and confirmations back to the shards.
//!
//! A parcel that wants confirming goes to a stream with one of our own reply subjects, and the stream's answer confirms it;
//! on a core subject a marker of our own behind it, which comes back when the server has had everything before. Answers are
//! never awaited one by one. What is not confirmed — no answer, a refusal, another connection — is sent again under the same
//! message id until it is. Nothing is taken from the shards without a connection: they bound what waits.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::{Duration, Instant};

use async_nats::header::{HeaderName, IntoHeaderName, NATS_MESSAGE_ID};
use async_nats::{HeaderMap, HeaderValue, Message, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use shards::ids::Text;
use shards::runtime::ports::{Outbound, Outgoing, Outlet, Parcel};
use shards::step::Settle;

use super::inflight::{Cargo, InFlight, Sent};
use super::limits::{BATCH_MAX, DECIDED_MAX, FLUSH_WITHIN_MS, TURN_BATCHES_MAX, WINDOW_MAX};
use super::nats::Link;
use super::ports::Ports;
use super::puback::{self, PubAck};
use super::status::{EdgeStatus, add, bump};
use super::streams::{self, Cover, Trouble};
use super::subjects::covers;
use super::thread::{EdgeSettings, Halt, Phase};
use crate::settings::NatsMode;

/// The task. Lives on the edge's thread.
pub(crate) struct Outbox {
    settings: Rc<EdgeSettings>,
    link: Link,
    ports: Rc<RefCell<Ports>>,
    outbound: flume::r#async::RecvStream<'static, Outbound>,
    source: flume::Receiver<Outbound>,
    phase: Phase,
    status: Arc<EdgeStatus>,
    flight: InFlight,
    /// Sent on core subjects in this turn, waiting for the marker behind them.
    unmarked: Vec<Sent>,
    coverage: Coverage,
    replies: String,
    epoch: u64,
    /// Whether a marker of ours has ever come back: an account may forbid publishing to inboxes.
    echo: Echo,
    resend_said: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Echo {
    Untried,
    Works,
    /// Markers never came back: a flushed socket has to do.
    Denied,
}

/// Which of the subjects we publish on a stream takes, as far as we know. Forgotten with the connection.
struct Coverage {
    mode: NatsMode,
    decided: HashMap<Text, bool>,
    /// Subjects of streams met so far: answers for subjects not seen before, without asking.
    patterns: Vec<String>,
    /// Parcels whose subject is being asked about, in order.
    waiting: Vec<Sent>,
    question: Option<Question>,
}

type Question = Pin<Box<dyn Future<Output = (Text, Option<Vec<String>>)>>>;

impl Outbox {
    pub(crate) fn new(
        settings: Rc<EdgeSettings>,
        link: Link,
        ports: Rc<RefCell<Ports>>,
        outbound: flume::Receiver<Outbound>,
        phase: Phase,
        status: Arc<EdgeStatus>,
    ) -> Outbox {
        let coverage = Coverage {
            mode: settings.nats.mode,
            decided: HashMap::new(),
            patterns: Vec::new(),
            waiting: Vec::new(),
            question: None,
        };
        Outbox {
            coverage,
            replies: format!("{}.c.", link.inbox()),
            epoch: link.epoch(),
            settings,
            link,
            ports,
            outbound: outbound.clone().into_stream(),
            source: outbound,
            phase,
            status,
            flight: InFlight::default(),
            unmarked: Vec::new(),
            echo: Echo::Untried,
            resend_said: None,
        }
    }

    /// The same with all it carries, over another client.
    pub(crate) fn relinked(mut self, link: Link) -> Outbox {
        self.replies = format!("{}.c.", link.inbox());
        self.coverage.question = None;
        self.link = link;
        self
    }

    /// Until the stop signal, or the client's death.
    pub(crate) async fn run(mut self) -> Outbox {
        let mut answers = match self.link.client.subscribe(format!("{}*", self.replies)).await {
            Ok(answers) => answers,
            Err(_) => {
                self.link.close();
                return self;
            }
        };
        let mut came: Vec<Message> = Vec::with_capacity(BATCH_MAX);
        let mut batches: Vec<Outbound> = Vec::with_capacity(TURN_BATCHES_MAX);
        let mut tick = Box::pin(tokio::time::sleep(Duration::ZERO));
        while self.phase.now() != Halt::Stop && !self.link.closed() {
            if self.wait(&mut answers, &mut came, &mut batches, tick.as_mut()).await {
                self.tick().await;
                tick.as_mut().reset(tokio::time::Instant::now() + Duration::from_millis(20));
            }
            let full = came.len() >= BATCH_MAX || batches.len() >= TURN_BATCHES_MAX;
            self.turn(&mut came, &mut batches).await;
            if full {
                tokio::task::yield_now().await;
            }
        }
        if self.phase.now() == Halt::Stop {
            self.end(&mut answers, &mut came, &mut batches, tick.as_mut()).await;
        }
        self
    }

    /// Waits for answers, for something to send, or the tick. `true`: the tick.
    async fn wait(
        &mut self,
        answers: &mut Subscriber,
        came: &mut Vec<Message>,
        batches: &mut Vec<Outbound>,
        mut tick: Pin<&mut tokio::time::Sleep>,
    ) -> bool {
        let open = self.flight.live() + self.coverage.waiting.len() < WINDOW_MAX && self.link.connected();
        let (outbound, question, link) = (&mut self.outbound, &mut self.coverage.question, &self.link);
        let mut decided = None;
        let ticked = poll_fn(|cx| {
            while came.len() < BATCH_MAX {
                match answers.poll_next_unpin(cx) {
                    Poll::Ready(Some(message)) => came.push(message),
                    Poll::Ready(None) => {
                        link.close();
                        break;
                    }
                    Poll::Pending => break,
                }
            }
            while open && batches.len() < TURN_BATCHES_MAX {
                match outbound.poll_next_unpin(cx) {
                    Poll::Ready(Some(batch)) => batches.push(batch),
                    Poll::Ready(None) | Poll::Pending => break,
                }
            }
            if let Some(asked) = question
                && let Poll::Ready(answer) = asked.as_mut().poll(cx)
            {
                *question = None;
                decided = Some(answer);
            }
            let ticked = tick.as_mut().poll(cx).is_ready();
            if ticked || !came.is_empty() || !batches.is_empty() || decided.is_some() {
                Poll::Ready(ticked)
            } else {
                Poll::Pending
            }
        })
        .await;
        if let Some((subject, streams)) = decided {
            self.coverage.learn(subject, streams);
            let waiting = std::mem::take(&mut self.coverage.waiting);
            for sent in waiting {
                self.post(sent).await;
            }
        }
        ticked
    }

    async fn turn(&mut self, came: &mut Vec<Message>, batches: &mut Vec<Outbound>) {
        for message in came.drain(..) {
            self.answered(message);
        }
        let mut settled = 0;
        for batch in batches.drain(..) {
            for item in batch.items {
                match item {
                    Outgoing::Settle(token, how) => {
                        settled += 1;
                        if let Ok(subject) = Subject::from_utf8(token.reply.into_bytes()) {
                            let sending = self.link.client.publish(subject, settlement(how));
                            patiently(sending, &self.phase).await;
                        }
                    }
                    Outgoing::Parcel(parcel) if parcel.confirm.is_none() => self.publish(&parcel, None).await,
                    Outgoing::Parcel(parcel) => self.post(Sent { shard: batch.shard, parcel, sends: 0 }).await,
                }
            }
        }
        if settled > 0 {
            add(&self.status.settled, settled);
        }
        self.mark().await;
        self.ports.borrow_mut().flush();
        self.ask();
    }

    async fn tick(&mut self) {
        let now = Instant::now();
        if !self.link.connected() {
            return;
        }
        let epoch = self.link.epoch();
        let mut again = self.flight.due(now);
        if epoch != self.epoch {
            self.epoch = epoch;
            self.coverage.forget();
            // In the order they first went: an ack before its result.
            let mut severed = self.flight.severed(epoch);
            severed.append(&mut again);
            again = severed;
        }
        while let Some(cargo) = self.flight.overdue(now) {
            let list = match cargo {
                Cargo::One(sent) => vec![sent],
                Cargo::Flushed(list) => {
                    if self.echo == Echo::Untried {
                        self.echo = Echo::Denied;
                        tracing::warn!("messages to our own inbox do not come back: core publishes count as done once written");
                    }
                    list
                }
            };
            for sent in list {
                self.complain(&sent, "no confirmation", now);
                self.coverage.doubt(&sent.parcel.subject);
                self.flight.postpone(sent, now);
            }
        }
        for sent in again {
            bump(&self.status.resent);
            self.post(sent).await;
        }
        self.mark().await;
        let unconfirmed = self.flight.unconfirmed() + self.coverage.waiting.len();
        self.status.unconfirmed.store(unconfirmed as u32, Relaxed);
    }

    /// Sends a parcel that wants confirming, or keeps it until it is known how.
    async fn post(&mut self, mut sent: Sent) {
        let Some(streamed) = self.coverage.of(&sent.parcel.subject) else {
            self.coverage.waiting.push(sent);
            return;
        };
        sent.sends += 1;
        if !streamed {
            self.publish(&sent.parcel, None).await;
            self.unmarked.push(sent);
            return;
        }
        let reply = self.reply();
        self.publish(&sent.parcel, Some(reply)).await;
        self.flight.push(Cargo::One(sent), self.epoch, Instant::now());
    }

    fn reply(&self) -> Subject {
        use std::fmt::Write;
        let mut reply = String::with_capacity(self.replies.len() + 20);
        reply.push_str(&self.replies);
        let _ = write!(reply, "{}", self.flight.next());
        Subject::from(reply)
    }

    async fn publish(&mut self, parcel: &Parcel, reply: Option<Subject>) {
        let Ok(subject) = Subject::from_utf8(parcel.subject.as_bytes().clone()) else { return };
        let (body, client) = (parcel.body.clone(), &self.link.client);
        let headers = (!parcel.headers.is_empty()).then(|| header_map(parcel));
        let sent = match (reply, headers) {
            (Some(reply), Some(headers)) => {
                patiently(client.publish_with_reply_and_headers(subject, reply, headers, body), &self.phase).await
            }
            (Some(reply), None) => patiently(client.publish_with_reply(subject, reply, body), &self.phase).await,
            (None, Some(headers)) => patiently(client.publish_with_headers(subject, headers, body), &self.phase).await,
            (None, None) => patiently(client.publish(subject, body), &self.phase).await,
        };
        bump(&self.status.published);
        if !sent {
            bump(&self.status.unsendable);
            tracing::error!(
                subject = %parcel.subject, bytes = parcel.body.len(), max = self.link.client.max_payload(), key = %parcel.about.key,
                "a parcel cannot be published as it is"
            );
        }
    }

    /// Puts a marker of our own behind what went out on core subjects.
    async fn mark(&mut self) {
        if self.unmarked.is_empty() {
            return;
        }
        let list = std::mem::take(&mut self.unmarked);
        if self.echo == Echo::Denied {
            // Written to the socket is the most that can be known.
            match tokio::time::timeout(Duration::from_secs(5), self.link.client.flush()).await {
                Ok(Ok(())) if self.link.epoch() == self.epoch => self.confirm(list),
                _ => list.into_iter().for_each(|sent| self.flight.postpone(sent, Instant::now())),
            }
            return;
        }
        let subject = self.reply();
        patiently(self.link.client.publish(subject, Bytes::new()), &self.phase).await;
        self.flight.push(Cargo::Flushed(list), self.epoch, Instant::now());
    }

    fn answered(&mut self, message: Message) {
        let number = message.subject.rsplit('.').next().and_then(|number| number.parse().ok());
        let Some(cargo) = number.and_then(|number| self.flight.take(number)) else { return };
        let now = Instant::now();
        match cargo {
            Cargo::Flushed(list) => {
                self.echo = Echo::Works;
                self.confirm(list);
            }
            Cargo::One(sent) if message.status == Some(StatusCode::NO_RESPONDERS) => {
                self.complain(&sent, "no stream answers", now);
                self.coverage.doubt(&sent.parcel.subject);
                self.flight.postpone(sent, now);
            }
            Cargo::One(sent) => match puback::parse(&message.payload) {
                PubAck::Stored { duplicate } => {
                    if duplicate && self.surprising(&sent) {
                        bump(&self.status.duplicates);
                        tracing::error!(
                            subject = %sent.parcel.subject, key = %sent.parcel.about.key,
                            "a result published for the first time was already there: do two workers share this work?"
                        );
                    }
                    self.confirm_one(&sent);
                }
                PubAck::Fenced => {
                    bump(&self.status.fenced);
                    self.confirm_one(&sent);
                }
                PubAck::Refused(why) => {
                    self.complain(&sent, &why, now);
                    self.flight.postpone(sent, now);
                }
            },
        }
    }

    /// Whether "it was there already" cannot come from ourselves: decided by this start, for this delivery, sent once.
    fn surprising(&self, sent: &Sent) -> bool {
        let about = &sent.parcel.about;
        sent.sends == 1 && sent.parcel.outlet == Outlet::Result && !about.replayed && about.boot == self.settings.boot
    }

    fn confirm(&mut self, list: Vec<Sent>) {
        for sent in list {
            self.confirm_one(&sent);
        }
    }

    fn confirm_one(&mut self, sent: &Sent) {
        bump(&self.status.confirmed);
        if let Some(ticket) = sent.parcel.confirm {
            self.ports.borrow_mut().confirm(sent.shard, ticket);
        }
    }

    fn complain(&mut self, sent: &Sent, why: &str, now: Instant) {
        if self.resend_said.is_none_or(|at| now.duration_since(at) >= Duration::from_secs(1)) {
            self.resend_said = Some(now);
            let waiting = self.flight.unconfirmed() + 1;
            tracing::warn!(subject = %sent.parcel.subject, sends = sent.sends, waiting, why, "a parcel is not confirmed; it will be sent again");
        }
    }

    /// Asks about the first subject that parcels wait for.
    fn ask(&mut self) {
        if self.coverage.question.is_some() || self.coverage.waiting.is_empty() {
            return;
        }
        let subject = self.coverage.waiting[0].parcel.subject.clone();
        let link = self.link.clone();
        self.coverage.question = Some(Box::pin(async move {
            loop {
                match lookup(&link, &subject).await {
                    Ok(patterns) => return (subject, patterns),
                    Err(trouble) => tracing::warn!(%subject, ?trouble, "it is not known yet whether a stream takes this subject"),
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }));
    }

    /// The end: everything that is here goes out, and a short while is given to confirmations.
    async fn end(
        &mut self,
        answers: &mut Subscriber,
        came: &mut Vec<Message>,
        batches: &mut Vec<Outbound>,
        mut tick: Pin<&mut tokio::time::Sleep>,
    ) {
        let deadline = Instant::now() + Duration::from_millis(FLUSH_WITHIN_MS);
        while self.link.connected() && Instant::now() < deadline {
            let nothing = self.source.is_empty() && self.flight.live() + self.coverage.waiting.len() == 0;
            if nothing && came.is_empty() && batches.is_empty() {
                break;
            }
            if self.wait(answers, came, batches, tick.as_mut()).await {
                self.tick().await;
                tick.as_mut().reset(tokio::time::Instant::now() + Duration::from_millis(5));
            }
            self.turn(came, batches).await;
        }
        let left = self.flight.unconfirmed() + self.coverage.waiting.len() + self.source.len();
        if left > 0 {
            tracing::warn!(left, "ending with parcels unconfirmed: they are sent again at the next start");
        }
        let _ = tokio::time::timeout(Duration::from_millis(FLUSH_WITHIN_MS), self.link.client.flush()).await;
    }
}

impl Coverage {
    /// Whether a stream takes `subject`; `None`: not known yet.
    fn of(&mut self, subject: &Text) -> Option<bool> {
        if self.mode == NatsMode::Core {
            return Some(false);
        }
        if let Some(streamed) = self.decided.get(subject) {
            return Some(*streamed);
        }
        self.patterns.iter().any(|pattern| covers(pattern, subject)).then_some(true)
    }

    /// `patterns`: subjects of the streams found; `None`: no stream takes it.
    fn learn(&mut self, subject: Text, patterns: Option<Vec<String>>) {
        if self.decided.len() >= DECIDED_MAX {
            self.decided.clear();
        }
        tracing::info!(%subject, stream = patterns.is_some(), "decided how to publish");
        self.decided.insert(subject, patterns.is_some());
        for pattern in patterns.into_iter().flatten() {
            if !self.patterns.contains(&pattern) {
                self.patterns.push(pattern);
            }
        }
    }

    /// Something went wrong with `subject`: it is asked about again.
    fn doubt(&mut self, subject: &Text) {
        self.decided.remove(subject);
        self.patterns.retain(|pattern| !covers(pattern, subject));
    }

    fn forget(&mut self) {
        self.decided.clear();
        self.patterns.clear();
    }
}

/// The subjects of the streams that take `subject`; `None`: definitely none.
async fn lookup(link: &Link, subject: &str) -> Result<Option<Vec<String>>, Trouble> {
    let Cover::Streams(names) = streams::find(link, subject).await? else { return Ok(None) };
    let mut patterns = Vec::new();
    for name in names {
        let subjects = streams::subjects(link, &name, false).await?.unwrap_or_default();
        patterns.extend(subjects.into_iter().filter(|pattern| covers(pattern, subject)));
    }
    Ok(Some(patterns))
}

/// Hands something to the connection, waiting while its queue is full; `false`: it cannot be sent as it is, or we are to end.
async fn patiently<E>(sending: impl Future<Output = Result<(), E>>, phase: &Phase) -> bool {
    let mut sending = std::pin::pin!(sending);
    if let Some(sent) = sending.as_mut().now_or_never() {
        return sent.is_ok();
    }
    loop {
        match tokio::time::timeout(Duration::from_millis(100), sending.as_mut()).await {
            Ok(sent) => return sent.is_ok(),
            Err(_) if phase.now() == Halt::Stop => return false,
            Err(_) => {}
        }
    }
}

fn settlement(how: Settle) -> Bytes {
    match how {
        Settle::Ack => Bytes::from_static(b"+ACK"),
        Settle::Nak { delay_ms } => nak_body(delay_ms),
        // With a reason behind it 2.9 servers ignore it.
        Settle::Term => Bytes::from_static(b"+TERM"),
        Settle::Progress => Bytes::from_static(b"+WPI"),
    }
}

/// The body that hands a delivery back.
pub(crate) fn nak_body(delay_ms: u32) -> Bytes {
    Bytes::from(format!("-NAK {{\"delay\":{}}}", u64::from(delay_ms) * 1_000_000))
}

/// Headers as async-nats wants them. One that NATS cannot carry (a line break in a value) is left out, not sent broken.
fn header_map(parcel: &Parcel) -> HeaderMap {
    const VERSION: HeaderName = HeaderName::from_static("version");
    const TENANT_ID: HeaderName = HeaderName::from_static("tenant_id");
    const TRACE_ID: HeaderName = HeaderName::from_static("trace_id");
    let mut map = HeaderMap::new();
    for (name, value) in &parcel.headers {
        let known = match &**name {
            "Nats-Msg-Id" => Ok(NATS_MESSAGE_ID),
            "version" => Ok(VERSION),
            "tenant_id" => Ok(TENANT_ID),
            "trace_id" => Ok(TRACE_ID),
            other => other.parse::<HeaderName>(),
        };
        match (known, value.parse::<HeaderValue>()) {
            (Ok(name), Ok(value)) => map.append(name.into_header_name(), value),
            _ => tracing::warn!(%name, subject = %parcel.subject, "a header that NATS cannot carry is left out"),
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_told_in_nanoseconds() {
        assert_eq!(&nak_body(1_500)[..], br#"-NAK {"delay":1500000000}"#);
    }

    #[test]
    fn a_stream_met_once_answers_for_all_its_subjects() {
        let mut coverage =
            Coverage { mode: NatsMode::Auto, decided: HashMap::new(), patterns: Vec::new(), waiting: Vec::new(), question: None };
        assert_eq!(coverage.of(&"r.v1.a".into()), None);
        coverage.learn("r.v1.a".into(), Some(vec!["r.v1.>".into()]));
        assert_eq!(coverage.of(&"r.v1.b".into()), Some(true));
        coverage.learn("core".into(), None);
        assert_eq!(coverage.of(&"core".into()), Some(false));
        coverage.doubt(&"r.v1.b".into());
        assert_eq!(coverage.of(&"r.v1.c".into()), None);
    }
}
