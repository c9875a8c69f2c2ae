//! The loop of one core: wait in one place, then let the machine change, then carry out what it left.
//!
//! A turn drains control, news from this core's own tasks, due timers and a bounded part of the inbox; hands the journal what
//! was written; and sends the edge one batch. Nothing is awaited in between, so a turn's steps share one commit.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;

use crate::dedup::Entry;
use crate::envelope::Envelope;
use crate::event::{DiskNews, Effect, Effects, Event, Letter, Post, Sealed};
use crate::ids::{Key, Lsn, Now, Text};
use crate::journal::view::Frames;
use crate::journal::{self, Fact};
use crate::keys::{self, KeyMap, PAGE_BYTES, Unfit};
use crate::shard::Shard;
use crate::step::{Adopted, Arrival, Delivery, Lane, Settle};

use super::disk::{self, Disk, DiskError};
use super::launch::unsound;
use super::local::{Local, News};
use super::perform::Perform;
use super::ports::{Control, Gauge, Inbound, Outbound, Outgoing, Outlet, Parcel, Wire};
use super::rt::{self, Clock};
use super::sealer::Sealer;

/// Messages after which a turn takes no further batch: enough for a commit, few enough to keep the turn about a millisecond.
const MESSAGES_PER_TURN: usize = 512;
/// And a body of so many bytes counts as one message more: reading a megabyte takes as long as reading hundreds of small ones,
/// and until the turn ends nobody learns what the shard holds.
const BYTES_PER_MESSAGE: usize = 4 << 10;
/// A busy loop looks at the ring this often, in microseconds: a commit goes through it three times, and otherwise only the
/// executor's own timer would look.
const RING_EVERY_US: u64 = 200;
/// Settlements that no letter takes along leave after this, in microseconds, or once there are so many: each batch wakes the
/// edge, and the server is in no hurry.
const SETTLE_AFTER_US: u64 = 1_000;
const SETTLES_MAX: usize = 256;
/// Batches unread by the edge beyond which it is not listening.
const OUTBOUND_STALE: usize = 64;
/// What is read back at once: each holds a file and a buffer.
const PROBES_MAX: usize = 32;
/// A tick that is late by this, in microseconds, tells of a shard that was kept from turning: its core was taken away, its
/// machine slept, a page of its was not to be had.
const STALLED_US: u64 = 50_000;
/// What came meanwhile is taken in for so long.
const AFTER_STALL: Duration = Duration::from_millis(1);
/// How the names of inboxes on this machine begin: with a blank, which no NATS subject has.
const HERE: &str = "here ";
const TALLY_EVERY_US: u64 = 500_000;

/// One core's loop. Lives on its core.
pub struct Driver<W: Wire> {
    pub(super) shard: Shard,
    pub(super) wire: W,
    pub(super) disk: Disk,
    pub(super) perform: Perform,
    pub(super) local: Local,
    pub(super) clock: Clock,
    pub(super) inbox: flume::Receiver<Inbound>,
    pub(super) control: flume::Receiver<Control>,
    pub(super) outbound: flume::Sender<Outbound>,
    pub(super) envelopes: flume::Sender<Envelope>,
    pub(super) gauge: Arc<Gauge>,
    pub(super) index: u16,
    pub(super) fx: Effects,
    /// Events that came of carrying out effects, to be applied in the same turn.
    pub(super) at_once: VecDeque<Event>,
    pub(super) out: Vec<Outgoing>,
    /// When this turn began, monotonic.
    pub(super) turn_us: u64,
    /// When `out` leaves at the latest though no letter is in it; meaningless while it is empty.
    pub(super) settle_due_us: u64,
    /// A letter is in `out`.
    pub(super) hurry: bool,
    /// Who on this machine waits for which reply, and how many have asked.
    pub(super) asked: Vec<(Text, flume::Sender<Bytes>)>,
    pub(super) asks: u64,
    pub(super) posted: u64,
    pub(super) tally_due_us: u64,
    /// Something was counted since the last tally.
    pub(super) untold: bool,
    /// What is being read back now, and what waits for its turn.
    pub(super) probes: usize,
    pub(super) to_probe: VecDeque<Probe>,
    pub(super) sealer: Sealer,
    /// The key files that stand, oldest first.
    pub(super) files: Rc<RefCell<Vec<Arc<KeyMap>>>>,
}

/// What is read back for the machine.
#[derive(Clone, Copy)]
pub(super) enum Probe {
    /// A key's outcome, from the journal.
    Outcome(Key, Lsn),
    /// Its entry, from a key file.
    Entry(Key),
}

/// How a turn ended.
#[derive(PartialEq, Eq)]
enum Turn {
    Quiet,
    Busy,
    Stop,
}

impl<W: Wire> Driver<W> {
    /// Runs until told to stop.
    ///
    /// # Errors
    /// The journal failed: nothing of the failed batch was told to anyone, and the process must end.
    pub async fn run(mut self) -> Result<(), DiskError> {
        let mut inbox = self.inbox.clone().into_stream();
        let mut control = self.control.clone().into_stream();
        let mut early = Early::default();
        let mut ring_us = 0;
        loop {
            self.let_ended_say_so().await;
            match self.turn(&mut early)? {
                Turn::Stop => return Ok(()),
                Turn::Busy => {
                    let now_us = self.clock.now().mono_us;
                    if now_us.saturating_sub(ring_us) < RING_EVERY_US {
                        rt::yield_now().await;
                    } else {
                        rt::look_at_ring().await;
                        ring_us = now_us;
                    }
                    continue;
                }
                Turn::Quiet => {}
            }
            let now = self.clock.now();
            let tick_us = self.shard.next_tick_us();
            let settle_us = Some(self.settle_due_us).filter(|_| !self.out.is_empty());
            let due_us = [tick_us, settle_us, Some(self.tally_due_us).filter(|_| self.untold)].into_iter().flatten().min();
            let wait = Duration::from_micros(due_us.map_or(60_000_000, |due_us| due_us.saturating_sub(now.mono_us)));
            let mut timer = pin!(rt::sleep(wait));
            let local = &self.local;
            poll_fn(|cx| {
                if let Poll::Ready(Some(message)) = std::pin::Pin::new(&mut control).poll_next(cx) {
                    early.control = Some(message);
                    return Poll::Ready(());
                }
                if let Poll::Ready(Some(message)) = std::pin::Pin::new(&mut inbox).poll_next(cx) {
                    early.inbound = Some(message);
                    return Poll::Ready(());
                }
                if local.poll_ready(cx).is_ready() {
                    return Poll::Ready(());
                }
                timer.as_mut().poll(cx)
            })
            .await;
        }
    }

    /// After a stall, tries that have come to their end meanwhile report it before anybody looks at their deadlines.
    async fn let_ended_say_so(&self) {
        let stalled = |now: Now| self.shard.next_tick_us().is_some_and(|due_us| due_us + STALLED_US < now.mono_us);
        if stalled(self.clock.now()) {
            // A timer of its own, so that it comes behind all that were due before.
            rt::sleep(AFTER_STALL).await;
        }
    }

    /// One turn. Changes everything, awaits nothing.
    fn turn(&mut self, early: &mut Early) -> Result<Turn, DiskError> {
        self.gauge.turns.fetch_add(1, Relaxed);
        let now = self.clock.now();
        self.turn_us = now.mono_us;
        let mut busy = false;
        while let Some(message) = early.control.take().or_else(|| self.control.try_recv().ok()) {
            busy = true;
            match message {
                Control::Cancel(key) => self.apply(now, Event::Cancel { key }),
                Control::Drain => self.apply(now, Event::Drain),
                Control::Waiting { key, rows_max, answer } => {
                    let rows = self.shard.waiting_for_people(now, key).take(rows_max).collect();
                    // Nobody may be waiting any more.
                    let _ = answer.try_send(rows);
                }
                Control::Say { notice, answer } => self.hear(now, notice, answer),
                Control::Stop => {
                    self.settle_due_us = now.mono_us;
                    self.flush(now);
                    return Ok(Turn::Stop);
                }
            }
        }
        while let Some(news) = self.local.pop() {
            busy = true;
            match news {
                News::Event(event) => {
                    if matches!(event, Event::Probed { .. } | Event::Looked { .. }) {
                        self.probes -= 1;
                        if let Some(next) = self.to_probe.pop_front() {
                            self.probe(next);
                        }
                    }
                    if let Event::Sealed(Sealed { files: Some(files), .. }) = &event {
                        self.files.borrow_mut().clone_from(files);
                        self.sealer.tidy();
                    }
                    self.apply(now, event);
                }
                News::Disk(disk::News::Durable { through }) => self.apply(now, Event::Durable { through }),
                News::Disk(disk::News::Disk(news)) => {
                    match news {
                        DiskNews::Full => {
                            let (folder, reserve_bytes) = (self.disk.folder().display(), self.disk.reserve_bytes());
                            tracing::error!(shard = self.index, %folder, reserve_bytes, "the journal's disk is full: new steps wait, what runs ends in the reserve; free space on it");
                        }
                        DiskNews::Room => {
                            tracing::info!(shard = self.index, "the journal's disk has room again: new steps are accepted");
                        }
                        DiskNews::Closed { .. } => {}
                    }
                    self.apply(now, Event::Disk(news));
                }
                News::Disk(disk::News::MarkDue) => self.mark(now),
                News::Disk(disk::News::Failed(error)) => return Err(error),
            }
        }
        if self.shard.next_tick_us().is_some_and(|due_us| due_us <= now.mono_us) {
            self.apply(now, Event::Tick);
        }
        let mut taken = 0;
        while taken < MESSAGES_PER_TURN {
            let Some(message) = early.inbound.take().or_else(|| self.inbox.try_recv().ok()) else { break };
            busy = true;
            taken += self.take_in(now, message);
        }
        self.untold |= busy;
        self.flush(now);
        Ok(if busy { Turn::Busy } else { Turn::Quiet })
    }

    /// A mark goes in a log of its own, so that the disk can tell it from news that want one.
    fn mark(&mut self, now: Now) {
        if self.fx.log.frames == 0 {
            self.shard.mark(now, &mut self.fx);
        }
    }

    /// Takes in one batch; how many messages it held, large ones counted as several.
    fn take_in(&mut self, now: Now, message: Inbound) -> usize {
        match message {
            Inbound::Deliveries(deliveries) => {
                let mut count = 0;
                for delivery in deliveries {
                    count += 1 + delivery.body.len() / BYTES_PER_MESSAGE;
                    self.deliver(now, delivery);
                }
                count
            }
            Inbound::Confirmed(tickets) => {
                let count = tickets.len();
                for ticket in tickets {
                    fail::fail_point!("C7", |_| std::process::abort());
                    self.apply(now, Event::Confirmed { ticket });
                }
                count
            }
            Inbound::Adopted(copy) => {
                match self.adopted(now, &copy) {
                    Some(arrival) => self.apply(now, Event::Arrived(Rc::new(arrival))),
                    None => tracing::error!(shard = self.index, "the copy of a step that waits for people cannot be read"),
                }
                1 + copy.len() / BYTES_PER_MESSAGE
            }
            Inbound::CopiesRead => {
                self.apply(now, Event::CopiesRead);
                1
            }
            Inbound::Claimed(claims) => {
                let count = claims.len();
                for (ticket, by) in claims {
                    self.apply(now, Event::Claimed { ticket, by });
                }
                count
            }
        }
    }

    /// The step that a copy is of, with what another owner has made of it.
    fn adopted(&self, now: Now, copy: &Bytes) -> Option<Arrival> {
        let (_, tag) = copy.split_last_chunk::<16>()?;
        let frames = copy.slice(..copy.len() - tag.len());
        if !self.shard.is_copy(&frames, tag) {
            return None;
        }
        let (mut step, mut key) = (None, None);
        let (mut votes, mut outcome) = (Vec::new(), None);
        for raw in Frames::new(&frames) {
            let frame = journal::decode(&frames.slice_ref(raw.ok()?)).ok()?;
            match frame.fact {
                Fact::Accepted(fact) => (step, key) = (Some(fact), Some(frame.key)),
                Fact::Signal(vote) => votes.push(vote),
                Fact::Result(fact) => outcome = Some(Rc::new(fact.outcome)),
                _ => {}
            }
        }
        let fact = step?;
        let mut arrival = self.wire.decode(fact.message.into_delivery(), now);
        // Where this worker reads it otherwise than who accepted it, it is not this worker's to go on with.
        if key != Some(arrival.key) || arrival.work().is_none_or(|work| work.gate.is_none()) {
            return None;
        }
        // As they were settled when it was accepted.
        arrival.fingerprint = fact.fingerprint;
        if let Some(asker) = &mut arrival.asker {
            asker.id = fact.asker;
        }
        arrival.received_ms = fact.received_ms;
        arrival.adopted = Some(Rc::new(Adopted { deadline_ms: fact.deadline_ms, votes, outcome }));
        Some(arrival)
    }

    /// Takes in a notice from somebody on this machine, who waits for the reply.
    fn hear(&mut self, now: Now, mut notice: Delivery, answer: flume::Sender<Bytes>) {
        self.asked.retain(|(_, waiting)| !waiting.is_disconnected());
        self.asks += 1;
        let name = Text::from(format!("{HERE}{}", self.asks));
        notice.reply = Some(name.clone());
        self.asked.push((name, answer));
        self.deliver(now, notice);
    }

    /// Gives a reply to somebody on this machine; false where it is for somebody else.
    fn told_here(&mut self, parcel: &Parcel) -> bool {
        if !matches!(parcel.outlet, Outlet::Reply | Outlet::Doubt) || !parcel.subject.starts_with(HERE) {
            return false;
        }
        if let Some(at) = self.asked.iter().position(|(name, _)| *name == parcel.subject) {
            let (_, answer) = self.asked.swap_remove(at);
            let _ = answer.try_send(parcel.body.clone());
        }
        true
    }

    fn deliver(&mut self, now: Now, delivery: Delivery) {
        let arrival = Rc::new(self.wire.decode(delivery, now));
        self.apply(now, Event::Arrived(arrival));
    }

    /// Lets the machine take in one event and carries out what it leaves, and what comes of that at once.
    pub(super) fn apply(&mut self, now: Now, event: Event) {
        self.shard.apply(now, event, &mut self.fx);
        loop {
            let mut list = std::mem::take(&mut self.fx.list);
            for effect in list.drain(..) {
                self.carry_out(effect);
            }
            // The list's memory goes back for the next event.
            self.fx.list = list;
            let Some(event) = self.at_once.pop_front() else { break };
            self.shard.apply(now, event, &mut self.fx);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Run { ticket, arrival, try_number } => {
                if let Some(ended) = self.perform.run(ticket, &arrival, try_number) {
                    self.at_once.push_back(ended);
                }
            }
            Effect::Stop { ticket } => self.perform.stop(ticket),
            Effect::Claim { ticket, key, accepted } => {
                self.hurry = true;
                self.out.push(Outgoing::Claim { ticket, key, accepted });
            }
            Effect::Post(post) => self.post(&post),
            // The edge does not listen now (no server, say): a keep-alive that comes late keeps nothing.
            Effect::Settle { how: Settle::Progress, .. } if self.outbound.len() > OUTBOUND_STALE => {}
            Effect::Settle { token, how } => {
                if how == Settle::Ack {
                    fail::fail_point!("C8", |_| std::process::abort());
                }
                if self.out.is_empty() {
                    self.settle_due_us = self.turn_us + SETTLE_AFTER_US;
                }
                self.out.push(Outgoing::Settle(token, how));
            }
            Effect::Probe { key, lsn } => self.probe(Probe::Outcome(key, lsn)),
            Effect::Look { key } => self.probe(Probe::Entry(key)),
            Effect::Seal(seal) => match self.disk.segment_of(Lsn(seal.before.0 - 1)) {
                Some(segment) => self.sealer.seal(seal, segment),
                // The disk has said that it is durable; should that frame be gone, the keys stay where they are.
                None => {
                    let entries = seal.finished.into_iter().flatten().collect();
                    self.at_once.push_back(Event::Sealed(Sealed { entries, files: None }));
                }
            },
            Effect::WipePage { key } => self.perform.wipe_page(key),
            Effect::Prune { below } => self.disk.prune(below),
        }
    }

    fn post(&mut self, post: &Post) {
        match &post.letter {
            Letter::Ack { .. } => fail::fail_point!("C1", |_| std::process::abort()),
            Letter::Result { .. } => fail::fail_point!("C6", |_| std::process::abort()),
            Letter::Lifecycle { .. }
            | Letter::ApprovalNeeded { .. }
            | Letter::Copy { .. }
            | Letter::NoCopy
            | Letter::Progress { .. }
            | Letter::DeadLetter { .. }
            | Letter::Reply(_) => {}
        }
        match self.wire.render(post) {
            Some(parcel) if self.told_here(&parcel) => {}
            Some(parcel) => {
                self.posted += 1;
                self.hurry = true;
                self.out.push(Outgoing::Parcel(parcel));
            }
            // Nobody to tell: that is as good as told.
            None => {
                if let Some(ticket) = post.confirm {
                    self.at_once.push_back(Event::Confirmed { ticket });
                }
            }
        }
    }

    /// Reads something back for the machine, in a task of its own.
    fn probe(&mut self, what: Probe) {
        if self.probes == PROBES_MAX {
            return self.to_probe.push_back(what);
        }
        self.probes += 1;
        let (disk, local, files) = (self.disk.clone(), self.local.clone(), self.files.clone());
        rt::spawn("probe", async move {
            let read = match what {
                Probe::Outcome(key, lsn) => disk.probe(lsn).await.map(|frame| {
                    let found = frame.and_then(|bytes| outcome_of(&bytes, key));
                    Event::Probed { key, found: found.map(Rc::new) }
                }),
                Probe::Entry(key) => look(&disk, &files, key).await.map(|found| Event::Looked { key, found }),
            };
            local.push(match read {
                Ok(event) => News::Event(event),
                Err(error) => News::Disk(disk::News::Failed(error)),
            });
        });
    }

    fn flush(&mut self, now: Now) {
        if self.fx.log.frames > 0 {
            fail::fail_point!("C0", |_| std::process::abort());
            self.disk.append(&mut self.fx.log);
        }
        let overdue = self.hurry || self.out.len() >= SETTLES_MAX || self.settle_due_us <= now.mono_us;
        if !self.out.is_empty() && overdue {
            self.hurry = false;
            // The next turn's will be about as many.
            let next = Vec::with_capacity(self.out.len());
            let items = std::mem::replace(&mut self.out, next);
            // The edge is gone only when the process ends; what is unsent then is sent after the next boot.
            let _ = self.outbound.send(Outbound { shard: self.index, items });
        }
        self.gauge.free.store(self.shard.free_slots(), Relaxed);
        self.gauge.held_bytes.store(self.shard.held_bytes(), Relaxed);
        self.gauge.queued.store(self.shard.queued(), Relaxed);
        self.gauge.parked.store(self.shard.parked(), Relaxed);
        self.gauge.running.store(self.shard.running(), Relaxed);
        for (lane, [queued, running]) in Lane::ALL.into_iter().zip(&self.gauge.by_lane) {
            queued.store(self.shard.queued_in(lane), Relaxed);
            running.store(self.shard.running_in(lane), Relaxed);
        }
        self.gauge.memory_bytes.store(self.shard.memory_in_use(), Relaxed);
        self.gauge.unpublished.store(self.shard.unpublished(), Relaxed);
        let settled = self.out.is_empty() && self.disk.next_lsn().0 == self.disk.durable().0 + 1;
        self.gauge.idle.store(self.shard.is_idle() && settled, Relaxed);
        self.gauge.disk_full.store(self.shard.disk_full(), Relaxed);
        self.tell_budget();
        self.tell_clock();
        self.gauge.reserve_bytes.store(self.disk.reserve_bytes(), Relaxed);
        if now.mono_us >= self.tally_due_us {
            self.tally_due_us = now.mono_us + TALLY_EVERY_US;
            self.untold = false;
            self.send_tally();
        }
    }

    /// Says once that the journal is over its budget, and once that it no longer is.
    fn tell_budget(&self) {
        let over = self.shard.over_budget();
        if over == self.gauge.over_budget.swap(over, Relaxed) {
            return;
        }
        if over {
            tracing::error!(
                shard = self.index,
                "the journal is over journal.bytes_max, and nothing in it is older than journal.horizon_min: new steps wait; raise the one or lower the other"
            );
        } else {
            tracing::info!(shard = self.index, "the journal is within its budget again: new steps are accepted");
        }
    }

    /// Raises the alarm where the clock has jumped, and says when it is over.
    fn tell_clock(&self) {
        let jumped = self.shard.clock_jumped();
        if jumped == self.gauge.clock_jumped.load(Relaxed) {
            return;
        }
        self.gauge.clock_jumped.store(jumped, Relaxed);
        if jumped {
            tracing::error!(
                shard = self.index,
                "the clock jumped ahead by more than 5 minutes: nothing new is accepted until it is set right, or has gone on steadily for 10 minutes"
            );
        } else {
            tracing::info!(shard = self.index, "the clock is believed again: new steps are accepted");
        }
    }

    fn send_tally(&mut self) {
        let mut tally = Box::new(self.shard.tally());
        let disk = self.disk.counts();
        (tally.fsyncs, tally.journal_bytes, tally.journal_frames) = (disk.fsyncs, disk.bytes, disk.frames);
        tally.posted = self.posted;
        // A full inbox only means that an older tally has not been read yet.
        let _ = self.envelopes.try_send(Envelope::Tally { shard: self.index, tally });
    }
}

/// What a wait took out of the channels before the turn.
#[derive(Default)]
struct Early {
    control: Option<Control>,
    inbound: Option<Inbound>,
}

/// Looks for a key in the files that may hold it, the newest first.
pub(super) async fn look(disk: &Disk, files: &RefCell<Vec<Arc<KeyMap>>>, key: Key) -> Result<Option<Entry>, DiskError> {
    let unsound = |why| unsound(disk.folder(), std::io::Error::new(std::io::ErrorKind::InvalidData, why));
    'again: loop {
        let now = files.borrow().clone();
        for map in now.iter().rev().filter(|map| map.may_hold(&key)) {
            let name = map.facts().name();
            for page in map.pages_for(&key) {
                let Some(bytes) = disk.read_beside(&name, page * PAGE_BYTES as u64, PAGE_BYTES).await? else {
                    // It has become part of another meanwhile, or somebody took it away.
                    if files.borrow().iter().any(|map| map.facts().name() == name) {
                        return Err(unsound(Unfit("a key file is gone")));
                    }
                    continue 'again;
                };
                if let Some(entry) = keys::find(&bytes, page, &key).map_err(unsound)? {
                    return Ok(Some(entry));
                }
            }
        }
        return Ok(None);
    }
}

/// The outcome that a frame holds for this key.
pub(super) fn outcome_of(bytes: &bytes::Bytes, key: Key) -> Option<crate::outcome::Outcome> {
    let frame = journal::decode(bytes).ok()?;
    match frame.fact {
        _ if frame.key != key => None,
        Fact::Result(fact) => Some(fact.outcome),
        Fact::Answer(fact) | Fact::Quarantined(fact) => Some(fact.outcome),
        _ => None,
    }
}
