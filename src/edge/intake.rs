//! Takes work in: pulls from streams as much as the shards have room for, drains core subscriptions always, finds each
//! message's shard and hands it over in batches.
//!
//! It waits in one place and never blocks elsewhere: a full inbox leaves a bounded backlog, beyond which stream deliveries
//! are handed back with a growing delay and core messages are lost and counted. It never answers for a step.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::{Duration, Instant};

use async_nats::{Message, Subject};
use futures_util::StreamExt;
use shards::ids::Text;
use shards::limits::NAK_DELAY_MS;
use shards::runtime::tenure::Lease;
use shards::step::{Delivery, Origin};

use super::frames::{is_inbox, nak_body};
use super::limits::{
    BATCH_MAX, DRAIN_NAK_MS, NAKS_WAITING_MAX, NUDGE_EVERY_MS, NUDGE_EXPIRES_MS, PULL_EXPIRES_MS, PULL_PAUSE_MS,
};
use super::native::tenant_of;
use super::nats::Link;
use super::notice::{self, is_notice};
use super::ports::Ports;
use super::pull::Credit;
use super::status::{EdgeStatus, add, bump};
use super::streams::Source;
use super::stuck::Stillness;
use super::tenancy::owned;
use super::thread::{EdgeSettings, Halt, Phase};
use super::well::{Pull, Well, check, headers};
use super::{route, token};

/// The task. Lives on the edge's thread.
pub(crate) struct Intake {
    settings: Rc<EdgeSettings>,
    link: Link,
    ports: Rc<RefCell<Ports>>,
    wells: Vec<Well>,
    lease: Lease,
    phase: Phase,
    status: Arc<EdgeStatus>,
    /// Hand-backs that the connection would not take yet.
    naks: VecDeque<(Text, u32)>,
    epoch: u64,
    /// Which server we were connected to: the same after a break, and the break was not the server's end.
    server: String,
    /// Fetched by hand, for their shards.
    rescued: Vec<Delivery>,
    shards: u16,
    draining: bool,
    lost_said: Option<Instant>,
    handed_back_said: Option<Instant>,
    unheard_said: Option<Instant>,
}

impl Intake {
    pub(crate) fn new(
        settings: Rc<EdgeSettings>,
        link: Link,
        ports: Rc<RefCell<Ports>>,
        lease: Lease,
        phase: Phase,
        status: Arc<EdgeStatus>,
    ) -> Intake {
        let shards = ports.borrow().count();
        let epoch = link.epoch();
        let server = link.client.server_info().server_id;
        Intake {
            settings,
            link,
            ports,
            wells: Vec::new(),
            lease,
            phase,
            status,
            naks: VecDeque::new(),
            epoch,
            server,
            rescued: Vec::new(),
            shards,
            draining: false,
            lost_said: None,
            handed_back_said: None,
            unheard_said: None,
        }
    }

    /// Until the stop signal, or the client's death. `inherited`, by source: up to which sequence an earlier owner may have had a
    /// message.
    pub(crate) async fn run(mut self, sources: Vec<Source>, inherited: Vec<u64>) {
        // Nothing is taken before every shard has read its journal: what a tenant's shard knows decides everything.
        while !self.ports.borrow().ready() {
            if self.phase.wait(Duration::from_millis(5)).await != Halt::Run {
                break;
            }
        }
        if self.phase.now() == Halt::Run && !self.open(sources, &inherited).await {
            return;
        }
        self.arrived().await;
        self.status.ready.store(true, Relaxed);
        let mut came: Vec<(usize, Message)> = Vec::with_capacity(BATCH_MAX);
        let mut tick = Box::pin(tokio::time::sleep(Duration::ZERO));
        loop {
            if self.wait(&mut came, tick.as_mut()).await {
                let now = Instant::now();
                self.tick(now);
                if self.phase.now() == Halt::Stop || self.link.closed() {
                    return;
                }
                tick.as_mut().reset((now + self.pause()).into());
            }
            let full = came.len() >= BATCH_MAX;
            if !came.is_empty() {
                // Whoever owns it now is handed it again.
                owned(&self.lease, &self.phase).await;
                self.take(&mut came);
                if tick.deadline() > tokio::time::Instant::now() + Duration::from_millis(5) {
                    tick.as_mut().reset(tokio::time::Instant::now() + self.pause());
                }
            }
            self.pull(Instant::now());
            if full {
                // More is waiting: let the connection and the outbox have their turn first.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Subscribes to everything. `false`: the connection is closed for good.
    async fn open(&mut self, sources: Vec<Source>, inherited: &[u64]) -> bool {
        for (index, source) in sources.into_iter().enumerate() {
            let well = match source {
                Source::Core(subject) => {
                    let queue = self.settings.nats.durable.clone();
                    self.link.client.queue_subscribe(subject, queue).await.map(|subscriber| (subscriber, None))
                }
                Source::Pull(consumer) => {
                    let inbox = format!("{}.p{index}", self.link.inbox());
                    let request = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", consumer.stream, consumer.durable);
                    let now = Instant::now();
                    // The client before this one died on something that the server will deliver again.
                    let again = self.link.generation() > 0;
                    let check = again
                        .then(|| check(&self.link, &self.settings, &self.status, &consumer, index as u16, Duration::ZERO, true));
                    let pull = Pull {
                        consumer,
                        index: index as u16,
                        inherited: inherited[index],
                        request: request.into(),
                        inbox: inbox.clone(),
                        credit: Credit::new(now, again, self.settings.pull_bytes_max),
                        not_before: now,
                        check,
                        stillness: Stillness::new(Duration::from_millis(self.settings.nats.ack_wait_ms), now),
                    };
                    self.link.client.subscribe(format!("{inbox}.*")).await.map(|subscriber| (subscriber, Some(pull)))
                }
            };
            match well {
                Ok((subscriber, pull)) => self.wells.push(Well { subscriber, subject: Text::new(), pull }),
                Err(_) => {
                    self.link.close();
                    return false;
                }
            }
        }
        // Without a queue group: which worker has a step, only the workers know.
        for pattern in notice::PATTERNS {
            let Ok(subscriber) = self.link.client.subscribe(pattern).await else {
                self.link.close();
                return false;
            };
            self.wells.push(Well { subscriber, subject: Text::new(), pull: None });
        }
        true
    }

    /// Waits until the server has our subscriptions: a core message that is sent to a worker which says it is ready is not lost.
    async fn arrived(&self) {
        // Nobody listens there, and the server says so behind everything that went to it before.
        let asked = self.link.client.request(format!("{}.subscribed", self.link.inbox()), "".into());
        let _ = tokio::time::timeout(Duration::from_secs(2), asked).await;
    }

    /// Waits for messages, a finished check or the tick. `true`: the tick.
    async fn wait(&mut self, came: &mut Vec<(usize, Message)>, mut tick: Pin<&mut tokio::time::Sleep>) -> bool {
        poll_fn(|cx| {
            for (index, well) in self.wells.iter_mut().enumerate() {
                while came.len() < BATCH_MAX {
                    match well.subscriber.poll_next_unpin(cx) {
                        Poll::Ready(Some(message)) => came.push((index, message)),
                        Poll::Ready(None) => {
                            if !self.draining {
                                self.link.close();
                            }
                            break;
                        }
                        Poll::Pending => break,
                    }
                }
                let Some(pull) = &mut well.pull else { continue };
                if let Some(check) = &mut pull.check
                    && let Poll::Ready(found) = check.as_mut().poll(cx)
                {
                    pull.check = None;
                    pull.not_before = Instant::now();
                    self.rescued.extend(found);
                }
                if let Some(look) = &mut pull.stillness.look
                    && let Poll::Ready(found) = look.as_mut().poll(cx)
                {
                    pull.stillness.look = None;
                    if let Ok(standing) = found {
                        pull.stillness.seen(standing, self.ports.borrow().held(), Instant::now());
                    }
                }
            }
            let ticked = tick.as_mut().poll(cx).is_ready();
            if ticked || !came.is_empty() { Poll::Ready(ticked) } else { Poll::Pending }
        })
        .await
    }

    /// How long until the next look at things that do not announce themselves.
    fn pause(&self) -> Duration {
        let ports = self.ports.borrow();
        let nudging = self.wells.iter().filter_map(|well| well.pull.as_ref()).any(|pull| pull.stillness.nudging());
        Duration::from_millis(if ports.blocked() || !self.naks.is_empty() {
            1
        } else if nudging {
            NUDGE_EVERY_MS
        } else if ports.busy() {
            // A shard's places come free without a word to us.
            5
        } else {
            50
        })
    }

    fn tick(&mut self, now: Instant) {
        if !self.draining && self.phase.now() >= Halt::Drain {
            self.drain();
        }
        let epoch = self.link.epoch();
        let mut wells = std::mem::take(&mut self.wells);
        let pulls = wells.iter_mut().filter_map(|well| well.pull.as_mut());
        if epoch != self.epoch && self.link.connected() {
            self.epoch = epoch;
            let server = self.link.client.server_info().server_id;
            let suspicious = server == self.server;
            self.server = server;
            for pull in pulls {
                pull.credit.broken();
                pull.check =
                    Some(check(&self.link, &self.settings, &self.status, &pull.consumer, pull.index, Duration::ZERO, suspicious));
            }
        } else {
            for pull in pulls {
                if pull.credit.stalled(now) && pull.check.is_none() && self.link.connected() {
                    tracing::warn!(
                        stream = pull.consumer.stream,
                        "a pull request ended without a word: looking after the consumer"
                    );
                    pull.check =
                        Some(check(&self.link, &self.settings, &self.status, &pull.consumer, pull.index, Duration::ZERO, false));
                }
            }
        }
        self.wells = wells;
        self.nudge(now);
        for delivery in std::mem::take(&mut self.rescued) {
            self.hand_over(delivery, now);
        }
        self.ports.borrow_mut().flush();
        while self.link.connected()
            && let Some((reply, delay_ms)) = self.naks.pop_front()
        {
            if !nak(&self.link, &reply, delay_ms) {
                self.naks.push_front((reply, delay_ms));
                break;
            }
        }
        let outstanding = self.wells.iter().filter_map(|well| well.pull.as_ref()).map(|pull| pull.credit.outstanding()).sum();
        self.status.outstanding.store(outstanding, Relaxed);
        self.status.backlog.store(self.ports.borrow().backlog() as u32, Relaxed);
    }

    /// Takes nothing more: no interest is left for pull requests, and what has not reached a shard goes back.
    fn drain(&mut self) {
        use futures_util::FutureExt;
        self.draining = true;
        for well in &mut self.wells {
            let _ = well.subscriber.drain().now_or_never();
        }
        let withdrawn = self.ports.borrow_mut().withdraw();
        for delivery in withdrawn {
            self.hand_back(&delivery, DRAIN_NAK_MS);
        }
    }

    /// Asks the streams for more, where there is room.
    fn pull(&mut self, now: Instant) {
        if self.draining || !self.link.connected() {
            return;
        }
        let free = self.ports.borrow_mut().free();
        let free_bytes = self.ports.borrow_mut().free_bytes();
        let mut outstanding: u32 =
            self.wells.iter().filter_map(|well| well.pull.as_ref()).map(|pull| pull.credit.outstanding()).sum();
        let pulls = self.wells.iter_mut().filter_map(|well| well.pull.as_mut());
        let mut idle: Vec<&mut Pull> = pulls.filter(|pull| pull.check.is_none() && pull.not_before <= now).collect();
        // The one with the least on its way first, so that no consumer starves beside a busy one.
        if idle.len() > 1 {
            idle.sort_by_key(|pull| pull.credit.outstanding());
        }
        let count = idle.len() as u32;
        for pull in idle {
            pull.stillness.look(&self.link, &pull.consumer, now);
            // A part for each, so that one consumer without work does not hold all the credit.
            let batch = pull
                .credit
                .top_up(free.div_ceil(count.max(1)), free_bytes.div_ceil(u64::from(count.max(1))))
                .min(free.saturating_sub(outstanding));
            if batch == 0 {
                continue;
            }
            // One request brings no more than this whatever the sizes are; a message that alone is larger would never come.
            let bytes_max =
                self.settings.pull_bytes_max.min(free_bytes).max(2 * self.link.client.server_info().max_payload as u64);
            let expires = PULL_EXPIRES_MS * 1_000_000;
            let body = format!("{{\"batch\":{batch},\"max_bytes\":{bytes_max},\"expires\":{expires}}}");
            let reply = Subject::from(format!("{}.{}", pull.inbox, pull.credit.next()));
            if self.link.offer(pull.request.clone(), Some(reply), body.into()) {
                pull.credit.asked(batch, now);
                outstanding += batch;
            }
        }
    }

    /// Asks a consumer that stands still once more, for a moment.
    fn nudge(&mut self, now: Instant) {
        if self.draining || !self.link.connected() {
            return;
        }
        for pull in self.wells.iter_mut().filter_map(|well| well.pull.as_mut()) {
            if !pull.stillness.nudge() {
                continue;
            }
            let body = format!("{{\"batch\":1,\"expires\":{}}}", NUDGE_EXPIRES_MS * 1_000_000);
            let reply = Subject::from(format!("{}.{}", pull.inbox, pull.credit.next()));
            if self.link.offer(pull.request.clone(), Some(reply), body.into()) {
                pull.credit.asked(1, now);
            }
        }
    }

    /// Hands over what came.
    fn take(&mut self, came: &mut Vec<(usize, Message)>) {
        let now = Instant::now();
        let mut received = 0;
        let mut gone = Vec::new();
        for (index, message) in came.drain(..) {
            let well = &mut self.wells[index];
            let origin = match &mut well.pull {
                None => Origin::Core,
                Some(pull) => {
                    // The token first: a sender's message may carry a status line of its own.
                    let token = message.reply.as_ref().and_then(|reply| token::parse(reply, pull.index));
                    let Some(mut token) = token else {
                        match message.status {
                            Some(status) if message.subject.starts_with(&pull.inbox) => {
                                if pull.ended(status, &message, now) {
                                    gone.push(index);
                                }
                            }
                            _ => tracing::warn!(subject = %message.subject, "something that is no delivery came to our inbox"),
                        }
                        continue;
                    };
                    pull.credit.came(message.payload.len(), now);
                    pull.stillness.moved(now);
                    token.inherited = token.sequence <= pull.inherited;
                    Origin::Stream(token)
                }
            };
            received += 1;
            if well.subject != message.subject.as_str() {
                well.subject = Text::from(message.subject.as_str());
            }
            let headers = headers(message.headers.as_ref());
            let subject = well.subject.clone();
            // A stream's delivery names where it is settled; only core NATS carries a question.
            let reply = match (&origin, &message.reply) {
                (Origin::Core, Some(reply)) if tenant_of(&subject).is_some() && is_inbox(reply, self.link.inbox()) => {
                    Some(Text::from(reply.as_str()))
                }
                _ => None,
            };
            if reply.is_none() && is_notice(&subject) && may_say(&mut self.unheard_said, now) {
                tracing::warn!(%subject, "a cancel or signal names no inbox of its sender: nobody is told what became of it");
            }
            let delivery = Delivery { origin, subject, headers, body: message.payload, reply };
            self.hand_over(delivery, now);
        }
        add(&self.status.received, received);
        self.ports.borrow_mut().flush();
        for index in gone {
            let Some(pull) = &self.wells[index].pull else { continue };
            let check = check(
                &self.link,
                &self.settings,
                &self.status,
                &pull.consumer,
                pull.index,
                Duration::from_millis(PULL_PAUSE_MS),
                false,
            );
            if let Some(pull) = &mut self.wells[index].pull
                && pull.check.is_none()
            {
                pull.credit.forget();
                pull.check = Some(check);
            }
        }
    }

    fn hand_over(&mut self, delivery: Delivery, now: Instant) {
        if self.draining && matches!(delivery.origin, Origin::Stream(_)) {
            return self.hand_back(&delivery, DRAIN_NAK_MS);
        }
        let tenant = delivery.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("tenant_id")).map(|(_, value)| &**value);
        let (shard, routed) = route::shard(&delivery.subject, &delivery.body, tenant, self.shards);
        if !routed {
            bump(&self.status.unrouted);
        }
        let refused = self.ports.borrow_mut().offer(shard, delivery);
        if let Err(delivery) = refused {
            self.overflow(&delivery, shard, now);
        }
    }

    /// A shard's backlog is full.
    fn overflow(&mut self, delivery: &Delivery, shard: u16, now: Instant) {
        match &delivery.origin {
            Origin::Stream(token) => {
                let doubled = NAK_DELAY_MS.start().saturating_mul(1 << token.delivered.saturating_sub(1).min(8));
                self.hand_back(delivery, doubled.min(*NAK_DELAY_MS.end()));
                if may_say(&mut self.handed_back_said, now) {
                    tracing::warn!(shard, "the shard cannot keep up: deliveries go back to the stream");
                }
            }
            _ => {
                self.status.lost();
                if may_say(&mut self.lost_said, now) {
                    let lost = self.status.slow_lost.load(Relaxed);
                    tracing::error!(shard, lost, "core NATS messages are lost: the shard cannot keep up");
                }
            }
        }
    }

    fn hand_back(&mut self, delivery: &Delivery, delay_ms: u32) {
        let Origin::Stream(token) = &delivery.origin else { return };
        bump(&self.status.handed_back);
        if !self.naks.is_empty() || !nak(&self.link, &token.reply, delay_ms) {
            // Beyond the bound the server finds out by itself after ack_wait.
            if self.naks.len() < NAKS_WAITING_MAX {
                self.naks.push_back((token.reply.clone(), delay_ms));
            }
        }
    }
}

fn nak(link: &Link, reply: &Text, delay_ms: u32) -> bool {
    link.connected() && link.offer(Subject::from(&**reply), None, nak_body(delay_ms))
}

/// At most one such line a second.
fn may_say(said: &mut Option<Instant>, now: Instant) -> bool {
    let may = said.is_none_or(|at| now.duration_since(at) >= Duration::from_secs(1));
    if may {
        *said = Some(now);
    }
    may
}
