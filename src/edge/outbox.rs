//! Sends things out: parcels in the shards' order, settlements of deliveries, and confirmations back to the shards.
//!
//! A parcel that wants confirming goes to a stream with one of our own reply subjects, and the stream's answer confirms it;
//! on a core subject a marker of our own behind it, which comes back when the server has had everything before. Answers are
//! never awaited one by one. What is not confirmed — no answer, a refusal, another connection — is sent again under the same
//! message id until it is; a dead letter that no stream takes is confirmed by the worker's own store. Nothing is taken from the
//! shards without a connection: they bound what waits.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::{Duration, Instant};

use async_nats::client::PublishErrorKind;
use async_nats::{Message, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use shards::event::Claimant;
use shards::runtime::ports::{Outbound, Outgoing, Outlet, Parcel};
use shards::runtime::tenure::Lease;

use super::answer;
use super::claims::{self, Claimer};
use super::coverage::Coverage;
use super::dead::DeadLetters;
use super::frames::{header_map, settlement};
use super::inflight::{Cargo, InFlight, Sent};
use super::limits::{
    API_WITHIN_MS, BATCH_MAX, CONFIRM_AFTER_MS, DOUBT_MS, DOUBTS_MAX, FLUSH_WITHIN_MS, TURN_BATCHES_MAX, WINDOW_MAX,
};
use super::nats::Link;
use super::ports::Ports;
use super::puback::{self, PubAck};
use super::status::{EdgeStatus, add, bump};
use super::tenancy::owned;
use super::thread::{EdgeSettings, Halt, Phase};
use super::waiting;
use crate::dlq::{Desk, Done, Why};

/// What a server takes that does not say.
const PAYLOAD_BYTES_DEFAULT: usize = 1 << 20;
/// How a server says that there is no such stream.
const NO_SUCH_STREAM: &str = "(10059)";
/// What NATS writes around a message's headers, in bytes.
const HEADERS_AROUND_BYTES: usize = 16;

/// The task. Lives on the edge's thread.
pub(crate) struct Outbox {
    settings: Rc<EdgeSettings>,
    link: Link,
    ports: Rc<RefCell<Ports>>,
    outbound: flume::r#async::RecvStream<'static, Outbound>,
    source: flume::Receiver<Outbound>,
    lease: Lease,
    claimer: Rc<Claimer>,
    /// Claims that were to be looked at when the connection went.
    unread: Rc<RefCell<Vec<Sent>>>,
    /// When the bucket of the claims was last made again.
    renewed: Option<Instant>,
    phase: Phase,
    status: Arc<EdgeStatus>,
    flight: InFlight,
    /// Sent on core subjects in this turn, waiting for the marker behind them.
    unmarked: Vec<Sent>,
    coverage: Coverage,
    dead: DeadLetters,
    replies: String,
    epoch: u64,
    /// Whether a marker of ours has ever come back: an account may forbid publishing to inboxes.
    echo: Echo,
    resend_said: Option<Instant>,
    /// Replies that wait for others to know better.
    doubts: Rc<Cell<u32>>,
    /// A fenced result that was ours to decide has been complained of; further ones are only counted.
    fence_said: bool,
    /// The same of one that was there already.
    duplicate_said: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Echo {
    Untried,
    Works,
    /// Markers never came back: a flushed socket has to do.
    Denied,
}

impl Outbox {
    pub(crate) fn new(
        settings: Rc<EdgeSettings>,
        link: Link,
        ports: Rc<RefCell<Ports>>,
        outbound: flume::Receiver<Outbound>,
        dlq: Option<Desk>,
        lease: Lease,
        claimer: Claimer,
        phase: Phase,
        status: Arc<EdgeStatus>,
    ) -> Outbox {
        let coverage = Coverage::new(settings.nats.mode);
        Outbox {
            coverage,
            dead: DeadLetters::new(dlq),
            replies: format!("{}.c.", link.inbox()),
            epoch: link.epoch(),
            settings,
            link,
            ports,
            outbound: outbound.clone().into_stream(),
            source: outbound,
            lease,
            claimer: Rc::new(claimer),
            unread: Rc::default(),
            renewed: None,
            phase,
            status,
            flight: InFlight::default(),
            unmarked: Vec::new(),
            echo: Echo::Untried,
            resend_said: None,
            doubts: Rc::default(),
            fence_said: false,
            duplicate_said: false,
        }
    }

    /// The same with all it carries, over another client.
    pub(crate) fn relinked(mut self, link: Link) -> Outbox {
        self.replies = format!("{}.c.", link.inbox());
        self.coverage.forget();
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
                tick.as_mut().reset(tokio::time::Instant::now() + Duration::from_millis(50));
            }
            let full = came.len() >= BATCH_MAX || batches.len() >= TURN_BATCHES_MAX;
            if self.turn(&mut came, &mut batches).await {
                let soon = tokio::time::Instant::now() + Duration::from_millis(CONFIRM_AFTER_MS);
                if tick.deadline() > soon {
                    tick.as_mut().reset(soon);
                }
            }
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
        let room = self.flight.live() + self.coverage.waiting.len() + self.dead.going_in() < WINDOW_MAX;
        let open = room && self.link.connected() && self.lease.holds();
        let (outbound, coverage, link, dead) = (&mut self.outbound, &mut self.coverage, &self.link, &mut self.dead);
        let mut decided = false;
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
            decided = coverage.poll(cx);
            dead.poll(cx);
            let ticked = tick.as_mut().poll(cx).is_ready();
            let something = !came.is_empty() || !batches.is_empty() || !dead.came.is_empty();
            if ticked || something || decided { Poll::Ready(ticked) } else { Poll::Pending }
        })
        .await;
        if decided {
            let waiting = std::mem::take(&mut self.coverage.waiting);
            for sent in waiting {
                self.post(sent).await;
            }
        }
        ticked
    }

    /// One turn. `true`: confirmations wait to be handed on.
    async fn turn(&mut self, came: &mut Vec<Message>, batches: &mut Vec<Outbound>) -> bool {
        if !batches.is_empty() {
            owned(&self.lease, &self.phase).await;
            if !self.lease.holds() {
                // The end, and not ours to tell: the journal has it.
                batches.clear();
            }
        }
        for message in came.drain(..) {
            self.answered(message);
        }
        for done in std::mem::take(&mut self.dead.came) {
            self.clerk_said(done).await;
        }
        let mut settled = 0;
        for batch in batches.drain(..) {
            for item in batch.items {
                match item {
                    Outgoing::Settle(token, how) => {
                        settled += 1;
                        if let Ok(subject) = Subject::from_utf8(token.reply.into_bytes()) {
                            let sending = self.link.client.publish(subject, settlement(how));
                            // One that is lost on the way is delivered again, and answered again.
                            let _ = patiently(sending, &self.phase).await;
                            #[cfg(feature = "failpoints")]
                            if how == shards::step::Settle::Ack {
                                let _ = self.link.client.flush().await;
                                fail::fail_point!("C9", |_| std::process::abort());
                            }
                        }
                    }
                    Outgoing::Claim { ticket, key, accepted } => {
                        let parcel = self.claimer.parcel(batch.shard, ticket, key, accepted);
                        self.post(Sent { shard: batch.shard, parcel, sends: 0, kept: None }).await;
                    }
                    Outgoing::Parcel(parcel) if parcel.outlet == Outlet::Doubt => self.later(parcel),
                    Outgoing::Parcel(parcel) if parcel.confirm.is_none() => {
                        let _ = self.publish(&parcel, None).await;
                    }
                    Outgoing::Parcel(parcel) => self.post(Sent { shard: batch.shard, parcel, sends: 0, kept: None }).await,
                }
            }
        }
        if settled > 0 {
            add(&self.status.settled, settled);
        }
        self.mark().await;
        let left = self.ports.borrow_mut().flush_full();
        self.coverage.ask(&self.link);
        left
    }

    async fn tick(&mut self) {
        let now = Instant::now();
        self.ports.borrow_mut().flush();
        if !self.link.connected() || !self.lease.holds() {
            return;
        }
        let epoch = self.link.epoch();
        let mut again = self.flight.due(now);
        again.append(&mut self.unread.borrow_mut());
        if epoch != self.epoch {
            self.epoch = epoch;
            self.coverage.forget();
            if self.echo == Echo::Denied {
                self.echo = Echo::Untried;
            }
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
        self.look_at_store(now);
        self.mark().await;
        let unconfirmed = self.flight.unconfirmed() + self.coverage.waiting.len();
        self.status.unconfirmed.store(unconfirmed as u32, Relaxed);
    }

    /// Sends a parcel that wants confirming, or keeps it until it is known how.
    async fn post(&mut self, mut sent: Sent) {
        let dead = sent.parcel.outlet == Outlet::DeadLetter && sent.kept.is_none();
        if dead && !self.fits(&sent.parcel) {
            if self.dead.keeps() {
                return self.dead.keep(sent, Why::TooLarge, true);
            }
            sent.parcel.body = answer::shortened(&sent.parcel.body);
        }
        if sent.kept.is_some() && !self.fits(&sent.parcel) {
            self.complain(&sent, "the server takes no message of this size", Instant::now());
            return self.dead.not_taken(Instant::now());
        }
        // A claim, and a copy, count only where a stream keeps them.
        let streamed = if matches!(sent.parcel.outlet, Outlet::Claim | Outlet::Copy) {
            Some(true)
        } else {
            self.coverage.of(&sent.parcel.subject)
        };
        let Some(streamed) = streamed else {
            self.coverage.waiting.push(sent);
            return;
        };
        sent.sends += 1;
        self.copy(&sent.parcel).await;
        if !streamed {
            if sent.kept.is_some() {
                return self.dead.not_taken(Instant::now());
            }
            let told = self.publish(&sent.parcel, None).await;
            if dead && self.dead.keeps() {
                self.dead.keep(sent, Why::NoStream, told);
            } else if told {
                self.unmarked.push(sent);
            } else {
                // What was not sent is never taken for told.
                self.flight.postpone(sent, Instant::now());
            }
            return;
        }
        let reply = self.reply();
        // One that cannot be sent stays in flight: it goes overdue, is tried again and complained of.
        let _ = self.publish(&sent.parcel, Some(reply)).await;
        self.flight.push(Cargo::One(sent), self.epoch, Instant::now());
    }

    /// Whether the server takes a parcel of this size.
    fn fits(&self, parcel: &Parcel) -> bool {
        let max = match self.link.client.server_info().max_payload {
            0 => PAYLOAD_BYTES_DEFAULT,
            max => max,
        };
        let headers: usize = parcel.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        parcel.body.len() + headers + HEADERS_AROUND_BYTES <= max
    }

    /// A letter is in the store or was not taken there, or some were read out of it to be sent.
    async fn clerk_said(&mut self, done: Done) {
        match done {
            Done::Kept(deposit, verdict) => {
                self.dead.went_in();
                let short = verdict.is_ok() && deposit.why == Why::TooLarge;
                let mut sent = Sent { shard: deposit.shard, parcel: deposit.parcel, sends: deposit.sends, kept: None };
                if short {
                    sent.parcel.body = answer::shortened(&sent.parcel.body);
                    if self.fits(&sent.parcel) {
                        return self.post(sent).await;
                    }
                }
                match verdict {
                    Ok(()) => self.confirm_one(&sent),
                    Err(refusal) => {
                        let now = Instant::now();
                        self.complain(&sent, &refusal.to_string(), now);
                        self.flight.postpone(sent, now);
                    }
                }
            }
            Done::Read(list) => {
                let open = self.link.connected() && self.lease.holds() && self.phase.now() != Halt::Stop;
                for sent in self.dead.read_back(list, open) {
                    self.post(sent).await;
                }
            }
        }
    }

    /// Sees to it that what waits in the store is sent once a stream takes it.
    fn look_at_store(&mut self, now: Instant) {
        let Some(subjects) = self.dead.due(now) else { return };
        let (covered, bare): (Vec<_>, Vec<_>) = subjects.into_iter().partition(|subject| self.coverage.of(subject) == Some(true));
        if self.dead.look(covered, now) {
            bare.iter().for_each(|subject| self.coverage.wonder(subject));
            self.coverage.ask(&self.link);
        }
    }

    /// Sends something that others may know better, after they had their time.
    fn later(&self, parcel: Parcel) {
        let Ok(subject) = Subject::from_utf8(parcel.subject.as_bytes().clone()) else { return };
        let (client, headers, doubts) = (self.link.client.clone(), header_map(&parcel, false), self.doubts.clone());
        let wait_ms = if doubts.get() < DOUBTS_MAX { DOUBT_MS } else { 0 };
        doubts.set(doubts.get() + 1);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
            // Who asked may ask again.
            let _ = client.publish_with_headers(subject, headers, parcel.body).await;
            doubts.set(doubts.get() - 1);
        });
    }

    /// Sends a copy to where the asker waits, as often as the parcel itself is sent: nobody confirms it.
    async fn copy(&mut self, parcel: &Parcel) {
        let Some(reply) = &parcel.reply else { return };
        let copy = Parcel { subject: reply.clone(), reply: None, confirm: None, ..parcel.clone() };
        let _ = self.publish(&copy, None).await;
    }

    fn reply(&self) -> Subject {
        use std::fmt::Write;
        let mut reply = String::with_capacity(self.replies.len() + 20);
        reply.push_str(&self.replies);
        let _ = write!(reply, "{}", self.flight.next());
        Subject::from(reply)
    }

    /// Hands a parcel to the client; false if it cannot be sent as it is.
    async fn publish(&mut self, parcel: &Parcel, reply: Option<Subject>) -> bool {
        let Ok(subject) = Subject::from_utf8(parcel.subject.as_bytes().clone()) else { return false };
        let (body, client) = (parcel.body.clone(), &self.link.client);
        let headers = (!parcel.headers.is_empty()).then(|| header_map(parcel, reply.is_some()));
        let sent = match (reply, headers) {
            (Some(reply), Some(headers)) => {
                patiently(client.publish_with_reply_and_headers(subject, reply, headers, body), &self.phase).await
            }
            (Some(reply), None) => patiently(client.publish_with_reply(subject, reply, body), &self.phase).await,
            (None, Some(headers)) => patiently(client.publish_with_headers(subject, headers, body), &self.phase).await,
            (None, None) => patiently(client.publish(subject, body), &self.phase).await,
        };
        bump(&self.status.published);
        match sent {
            Err(error) if error.kind() == PublishErrorKind::Send => self.link.close(),
            Err(error) => {
                bump(&self.status.unsendable);
                tracing::error!(
                    subject = %parcel.subject, bytes = parcel.body.len(), key = %parcel.about.key, %error,
                    "a parcel cannot be published as it is"
                );
                return false;
            }
            Ok(()) => {}
        }
        true
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
        let _ = patiently(self.link.client.publish(subject, Bytes::new()), &self.phase).await;
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
                if matches!(sent.parcel.outlet, Outlet::Claim | Outlet::Copy) {
                    self.renew_buckets();
                }
                self.complain(&sent, "no stream answers", now);
                self.coverage.doubt(&sent.parcel.subject);
                self.flight.postpone(sent, now);
            }
            Cargo::One(sent) => match puback::parse(&message.payload) {
                PubAck::Stored { duplicate } => {
                    if duplicate && self.surprising(&sent) {
                        bump(&self.status.duplicates);
                        if !std::mem::replace(&mut self.duplicate_said, true) {
                            tracing::error!(
                                subject = %sent.parcel.subject, key = %sent.parcel.about.key,
                                "a result published for the first time was already there: do two workers share this work? Further ones are only counted"
                            );
                        }
                    }
                    self.confirm_one(&sent);
                }
                PubAck::Fenced if sent.parcel.outlet == Outlet::Claim => self.look_at_claim(sent),
                // The other side has a result for this key, and that is all we wanted to know. Where it cannot be ours, sent again
                // after the stream forgot its id, somebody else works here.
                PubAck::Fenced => {
                    bump(&self.status.fenced);
                    if self.surprising(&sent) {
                        bump(&self.status.duplicates);
                        if !std::mem::replace(&mut self.fence_said, true) {
                            tracing::error!(
                                subject = %sent.parcel.subject, key = %sent.parcel.about.key,
                                "another result for this key was there first and stands: do two workers share this work? Further ones are only counted"
                            );
                        }
                    }
                    self.confirm_one(&sent);
                }
                // Where there is no bucket there is nothing to take away.
                PubAck::Refused(why) if sent.parcel.outlet == Outlet::Copy && why.contains(NO_SUCH_STREAM) => {
                    self.confirm_one(&sent);
                }
                PubAck::Refused(why) => {
                    self.complain(&sent, &why, now);
                    match sent.kept {
                        Some(_) => self.dead.not_taken(now),
                        None if sent.parcel.outlet == Outlet::DeadLetter && self.dead.keeps() => {
                            self.dead.keep(sent, Why::Refused, false);
                        }
                        None => self.flight.postpone(sent, now),
                    }
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
        if let Some(place) = sent.kept {
            self.dead.taken(place);
        }
        if let Some(ticket) = sent.parcel.confirm {
            if sent.parcel.outlet == Outlet::Claim {
                bump(&self.status.claimed);
                return self.ports.borrow_mut().claimed(sent.shard, ticket, Claimant::Ours);
            }
            self.ports.borrow_mut().confirm(sent.shard, ticket);
        }
    }

    /// The place for claims, or for copies, has gone: it is made again.
    fn renew_buckets(&mut self) {
        let recently = |at: Instant| at.elapsed() < Duration::from_millis(API_WITHIN_MS);
        if self.renewed.is_some_and(recently) {
            return;
        }
        self.renewed = Some(Instant::now());
        let (client, replicas, horizon) = (self.link.client.clone(), self.settings.nats.replicas, self.settings.horizon);
        tokio::task::spawn_local(async move {
            if let Err(error) = claims::prepare(&client, replicas, horizon).await {
                tracing::warn!(%error, "the bucket of the claims is gone and cannot be made again");
            }
            if let Err(error) = waiting::prepare(&client, replicas).await {
                tracing::warn!(%error, "the bucket for steps that wait for people is gone and cannot be made again");
            }
        });
    }

    /// Somebody has claimed this key, we in an earlier life perhaps: what stands there says.
    fn look_at_claim(&self, sent: Sent) {
        let (client, claimer, ports, unread, status) =
            (self.link.client.clone(), self.claimer.clone(), self.ports.clone(), self.unread.clone(), self.status.clone());
        tokio::task::spawn_local(async move {
            let looked = tokio::time::timeout(Duration::from_millis(API_WITHIN_MS), claimer.holder(&client, &sent.parcel));
            match (looked.await, sent.parcel.confirm) {
                (Ok(Ok(Some(by))), Some(ticket)) => {
                    bump(if by == Claimant::Ours { &status.claimed } else { &status.claims_lost });
                    let mut ports = ports.borrow_mut();
                    ports.claimed(sent.shard, ticket, by);
                    ports.flush();
                }
                // It has gone meanwhile, or the server did not answer: once more from the start.
                _ => unread.borrow_mut().push(sent),
            }
        });
    }

    fn complain(&mut self, sent: &Sent, why: &str, now: Instant) {
        if self.resend_said.is_none_or(|at| now.duration_since(at) >= Duration::from_secs(1)) {
            self.resend_said = Some(now);
            let waiting = self.flight.unconfirmed() + 1;
            tracing::warn!(subject = %sent.parcel.subject, sends = sent.sends, waiting, why, "a parcel is not confirmed; it will be sent again");
        }
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
            let out = self.flight.live() + self.coverage.waiting.len() + self.dead.going_in();
            let nothing = self.source.is_empty() && out == 0;
            if nothing && came.is_empty() && batches.is_empty() {
                break;
            }
            if self.wait(answers, came, batches, tick.as_mut()).await {
                self.tick().await;
                tick.as_mut().reset(tokio::time::Instant::now() + Duration::from_millis(5));
            }
            self.turn(came, batches).await;
            self.ports.borrow_mut().flush();
        }
        let left = self.flight.unconfirmed() + self.coverage.waiting.len() + self.source.len();
        if left > 0 {
            tracing::warn!(left, "ending with parcels unconfirmed: they are sent again at the next start");
        }
        let _ = tokio::time::timeout(Duration::from_millis(FLUSH_WITHIN_MS), self.link.client.flush()).await;
    }
}

/// Hands something to the connection, waiting while its queue is full; given up when we are to end, which is no error: what
/// was not sent is not confirmed.
async fn patiently<E>(sending: impl Future<Output = Result<(), E>>, phase: &Phase) -> Result<(), E> {
    let mut sending = std::pin::pin!(sending);
    if let Some(sent) = sending.as_mut().now_or_never() {
        return sent;
    }
    loop {
        match tokio::time::timeout(Duration::from_millis(100), sending.as_mut()).await {
            Ok(sent) => return sent,
            Err(_) if phase.now() == Halt::Stop => return Ok(()),
            Err(_) => {}
        }
    }
}
