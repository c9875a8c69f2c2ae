//! The worker as its drivers make it: two machines, their disks, and the edge, all performing effects and feeding events back.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use shards::event::{DiskNews, Effect, Effects, Event, Past, Untold, Verdict};
use shards::ids::{Key, Lsn, Now, Text, Ticket};
use shards::journal::view::Frames;
use shards::journal::{Fact, FrameView, Kind, Peek};
use shards::limits::{CLOCK_JUMP_MS_MAX, Limits};
use shards::shard::{Shard, ShardSettings};
use shards::step::{Arrival, Delivery, Origin, Settle, StreamToken};

use crate::blocks::{End, Script};
use crate::edge::Parcel;
use crate::job::{self, Job, Poison, SALT};
use crate::oracles;
use crate::plan::SECOND;
use crate::world::{AtWork, Happening, Polled, World};

const FLUSH_US: u64 = 10_000;
const SUBJECT: &str = "assign";

/// A running process.
#[derive(Debug)]
pub struct Worker {
    started_us: u64,
    pub seats: Vec<Seat>,
    /// Letters on their way, by number; those that want no confirmation leave at once.
    pub outbox: BTreeMap<u64, Parcel>,
    /// Claims that are not answered yet.
    pub claims: BTreeSet<(usize, u32, u32)>,
    pub draining: bool,
}

/// One core.
#[derive(Debug)]
pub struct Seat {
    pub shard: Shard,
    fx: Effects,
    tick_us: Option<u64>,
    /// When it was last told that time has passed.
    ticked_us: u64,
    recovered: u32,
    /// Steps that were recovered without an outcome.
    open: Vec<Key>,
    flush_due: bool,
    /// Since boot: the wall the machine went on from, for deadlines.
    boot_wall_ms: u64,
    recovery_log: Option<Vec<u8>>,
    /// The key files that stand.
    pub maps: Vec<std::sync::Arc<shards::keys::KeyMap>>,
}

impl World {
    /// Boots: fold, restore, take up what has no end, then connect.
    pub fn start(&mut self) {
        self.boot += 1;
        self.epoch += u32::from(!self.plan.shared);
        self.superseded.clear();
        // Nobody can know what the clock did while nothing ran.
        self.believable_ms = self.believable_ms.max(self.wall_offset_ms);
        self.truth.heard.clear();
        self.watch.started();
        self.polled_any = [false; 2];
        let (boot, wall_ms, now_us) = (self.boot, self.wall_ms(), self.now_us);
        self.note("start", None, u64::from(boot));
        self.worker = Some(Worker {
            started_us: now_us,
            seats: Vec::new(),
            outbox: BTreeMap::new(),
            claims: BTreeSet::new(),
            draining: false,
        });
        let mut pasts = Vec::new();
        for shard in 0..2 {
            match self.seat(shard, boot, wall_ms) {
                Ok((seat, unfinished)) => {
                    if let Some(worker) = self.worker.as_mut() {
                        worker.seats.push(seat);
                    }
                    pasts.push(unfinished);
                }
                Err(violation) => return self.violate(violation),
            }
        }
        for (key, once) in std::mem::take(&mut self.ran) {
            let taken = self.truth.stories.get(&key).and_then(|story| story.taken);
            if taken.is_none_or(|taken| once == Some(taken.lsn)) {
                self.truth.ghosts.insert(key);
            }
        }
        for (shard, (before, unfinished)) in pasts.into_iter().enumerate() {
            self.strike(shard);
            for (one, arrival, past) in unfinished {
                let key = one.key;
                let taken = self.truth.stories.get(&key).and_then(|story| story.taken.filter(|_| story.result.is_none()));
                if taken.and_then(|taken| taken.streamed_in).is_some_and(|epoch| epoch < self.since) {
                    self.superseded.insert(key);
                }
                if one.owned.streamed && one.owned.epoch < self.since {
                    match one.result {
                        None => self.truth.released(key),
                        Some(_) => _ = self.truth.untold.insert(key),
                    }
                    let untold = one.result.map(|decided| Untold { accepted: one.message, decided, role: one.role });
                    self.note("superseded", Some(key), u64::from(untold.is_some()));
                    let (fingerprint, asker, partition) = (one.fingerprint, one.asker, one.owned.partition);
                    self.apply(shard, Event::Superseded { key, fingerprint, asker, partition, untold });
                } else {
                    self.apply(shard, Event::Recovered { key, arrival, past });
                }
            }
            let Some(seat) = self.seat_of(shard) else { return };
            let log = seat.recovery_log.take().unwrap_or_default();
            let verdict = oracles::i16_recovery_is_idempotent(&self.disks[shard], &before, &log, self.since);
            self.check(verdict);
        }
        if self.disk_full {
            for shard in 0..2 {
                self.apply(shard, Event::Disk(DiskNews::Full));
            }
        }
        self.at(1_000, Happening::Pull { boot });
    }

    /// Tells the machine what the page names.
    fn strike(&mut self, shard: usize) {
        let Some((Polled { key, partition }, boot)) = self.pages[shard] else { return };
        self.note("page", Some(key), u64::from(boot));
        // Whether it is decided may stand in a key file.
        self.look(shard, key);
        self.apply(shard, Event::Died { polled: key, partition, boot });
    }

    fn seat(&mut self, shard: usize, boot: u32, wall_ms: u64) -> Result<(Seat, Unfinished), String> {
        let disk = &mut self.disks[shard];
        let spans = disk.boot(boot, wall_ms)?;
        oracles::i17_the_durable_prefix_survives(disk)?;
        let known = Lsn(disk.promised.len() as u64);
        disk.adopt_survivors();
        let new: Vec<Lsn> = disk.frames().map(|(lsn, _)| lsn).filter(|lsn| *lsn > known).collect();
        for lsn in new {
            self.stands(shard, lsn, boot - 1);
        }
        let before = oracles::fold(self.disks[shard].frames())?;
        let (restored, sealed, maps) = self.resume(shard, &before)?;
        let disk = &self.disks[shard];
        let before = Before { unfinished: before.unfinished, tenants: before.tenants.len() };
        for (key, forgotten) in self.truth.booted(shard, restored.floor, restored.watermark_ms) {
            let life = self.truth.life(key);
            self.aborts.entry(life).and_modify(|aborts| *aborts = aborts.saturating_sub(forgotten));
        }
        let boot_wall_ms = wall_ms.max(restored.wall_ms);
        let mut list = Vec::new();
        for one in &restored.unfinished {
            let frame = disk.read(one.message).ok_or_else(|| format!("I17: the message of {} is gone", one.key))?;
            let message = match frame.fact {
                Fact::Accepted(fact) => fact.message,
                Fact::Answer(fact) | Fact::Quarantined(fact) => fact.message,
                other => return Err(format!("{:?} holds no message: {other:?}", one.message)),
            };
            let arrival = job::decode(message.into_delivery(), wall_ms, self.plan.limits.horizon_ms);
            let outcome = match one.result {
                Some(lsn) => Some((lsn, self.outcome_in(shard, lsn).ok_or("I17: an unpublished outcome is gone")?)),
                None => None,
            };
            let past = Past {
                accepted: one.message,
                tries: one.tries,
                interrupted: one.interrupted,
                retry_at_ms: one.retry_at_ms,
                deadline_ms: one.deadline_ms,
                votes: one.votes.clone(),
                outcome,
                role: one.role,
            };
            list.push((one.clone(), Rc::new(arrival), past));
        }
        let blocks = ["pure", "idempotent", "transactional", "conditional", "unsafe"].map(Text::from_static).to_vec();
        let settings = ShardSettings {
            shard: shard as u16,
            boot,
            limits: self.plan.limits.clone(),
            salt: SALT,
            blocks,
            events: self.plan.events,
            progress_us: self.plan.ack_wait_us / 3,
            config_epoch: 1,
            owner_epoch: self.epoch,
            shared: self.plan.shared,
            claims: self.plan.claims,
            copies: false,
        };
        let mut machine = Shard::new(settings, disk.next_lsn());
        machine.restore(restored, &spans, Now { mono_us: 0, wall_ms });
        machine.keep_sealed(sealed, maps.clone(), self.rng.chance(300), crate::seals::RECALLED_MAX);
        let recovered = list.len() as u32;
        let open =
            list.iter().filter(|(one, _, past)| past.outcome.is_none() && !(one.owned.streamed && one.owned.epoch < self.since));
        let open = open.map(|(one, ..)| one.key).collect();
        let seat = Seat {
            shard: machine,
            fx: Effects::default(),
            tick_us: None,
            ticked_us: 0,
            recovered,
            open,
            flush_due: false,
            boot_wall_ms,
            recovery_log: Some(Vec::new()),
            maps,
        };
        Ok((seat, (before, list)))
    }

    fn outcome_in(&self, shard: usize, lsn: Lsn) -> Option<Rc<shards::outcome::Outcome>> {
        match self.disks[shard].read(lsn)?.fact {
            Fact::Result(fact) => Some(Rc::new(fact.outcome)),
            Fact::Answer(fact) | Fact::Quarantined(fact) => Some(Rc::new(fact.outcome)),
            _ => None,
        }
    }

    fn seat_of(&mut self, shard: usize) -> Option<&mut Seat> {
        self.worker.as_mut()?.seats.get_mut(shard)
    }

    /// One frame is known to be durable.
    fn stands(&mut self, shard: usize, lsn: Lsn, boot: u32) {
        let Some(frame) = self.disks[shard].read(lsn) else { return };
        if self.loud {
            println!("{:>12} frame {shard}/{} {} {:?}", self.now_us, lsn.0, frame.key, frame.fact);
        }
        let verdict = self.truth.durable(shard, lsn, &frame, boot);
        let floor = self.truth.floors[shard];
        let verdict = verdict.and_then(|()| self.watch.durable(shard, lsn, floor, &frame));
        self.check(verdict);
    }

    pub fn next_tick(&self) -> Option<(u64, usize)> {
        let worker = self.worker.as_ref()?;
        let ticks = worker.seats.iter().enumerate();
        ticks.filter_map(|(shard, seat)| seat.tick_us.map(|tick_us| (tick_us + worker.started_us, shard))).min()
    }

    pub fn tick(&mut self, shard: usize) {
        self.apply(shard, Event::Tick);
    }

    /// One event into one machine, and all that follows from it here and now.
    pub fn apply(&mut self, shard: usize, event: Event) {
        let wall_ms = self.wall_ms();
        if self.wall_offset_ms <= self.believable_ms + CLOCK_JUMP_MS_MAX as i64 {
            self.believable_ms = self.believable_ms.max(self.wall_offset_ms);
        }
        let latest_ms = self.true_ms() + self.believable_ms as u64;
        let Some(worker) = self.worker.as_mut() else { return };
        let now = Now { mono_us: self.now_us - worker.started_us, wall_ms };
        let Some(seat) = worker.seats.get_mut(shard) else { return };
        let full = self.disk_full && seat.shard.disk_full();
        if matches!(event, Event::Tick) {
            seat.ticked_us = now.mono_us;
        }
        seat.shard.apply(now, event, &mut seat.fx);
        // Not twice in the same turn; but however much else happens, a tick that is due comes, as with the driver.
        seat.tick_us = seat.shard.next_tick_us().map(|tick_us| tick_us.max(seat.ticked_us + 1_000));
        let verdict = oracles::i10_quotas_are_exact(&seat.shard, &self.at_work[shard], &self.plan.limits, seat.recovered);
        let works = self.works.values().filter(|work| work.shard == shard);
        let verdict = verdict.and_then(|()| oracles::i10_needs_are_kept(works, &self.plan.limits));
        let mut log = std::mem::take(&mut seat.fx.log);
        let list = std::mem::take(&mut seat.fx.list);
        if let Some(kept) = &mut seat.recovery_log {
            kept.extend_from_slice(&log.bytes);
        }
        let verdict = verdict.and_then(|()| oracles::nothing_new_on_a_full_disk(full, &log.bytes));
        // A tiny journal forgets, and what may be forgotten is late, whatever the clock says.
        let forgets = self.plan.limits.journal_bytes_max < Limits::default().journal_bytes_max;
        let verdict =
            verdict.and_then(|()| if forgets { Ok(()) } else { oracles::nobody_expires_for_a_jump(latest_ms, &log.bytes) });
        let verdict = verdict.and_then(|()| self.watch.logged(self.now_us, &log.bytes));
        for frame in Frames::new(&log.bytes).flatten() {
            if let Ok(view) = FrameView::parse(frame)
                && view.kind() == Some(Kind::Mark)
                && let Ok(Peek::Mark { floor, .. }) = view.peek()
            {
                self.truth.marked(shard, floor);
            }
        }
        self.disks[shard].append(&mut log);
        self.check(verdict);
        self.write_if_urgent(shard);
        let boot = self.boot;
        for effect in &list {
            if !self.quiet && self.rng.chance(1000) && self.rng.below(1000) < self.plan.rates.die_between {
                self.count("kill -9 between two effects");
                self.die(false);
            }
            if self.worker.is_none() || self.boot != boot {
                return;
            }
            self.perform(shard, effect);
        }
        if let Some(seat) = self.seat_of(shard) {
            seat.fx.log = log;
        }
    }

    fn write_if_urgent(&mut self, shard: usize) {
        let boot = self.boot;
        let disk = &mut self.disks[shard];
        if disk.urgent && disk.start_write() {
            self.sync(shard);
        } else if disk.is_pending() && !disk.is_writing() {
            let Some(seat) = self.seat_of(shard) else { return };
            if !std::mem::replace(&mut seat.flush_due, true) {
                self.at(FLUSH_US, Happening::Flush { boot, shard });
            }
        }
    }

    fn sync(&mut self, shard: usize) {
        let boot = self.boot;
        let lasts_us = self.rng.around(self.plan.fsync_us) * if self.quiet { 1 } else { self.slow_disk };
        self.at(lasts_us.min(4 * SECOND), Happening::Written { boot, shard });
    }

    pub fn flush(&mut self, shard: usize) {
        if let Some(seat) = self.seat_of(shard) {
            seat.flush_due = false;
        }
        if self.disks[shard].start_write() {
            self.sync(shard);
        }
    }

    pub fn written(&mut self, shard: usize) {
        let (boot, wall_ms) = (self.boot, self.wall_ms());
        let from = self.disks[shard].durable.next();
        let Some((through, news)) = self.disks[shard].finish_write(boot, wall_ms) else { return };
        for lsn in from.0..=through.0 {
            self.stands(shard, Lsn(lsn), boot);
        }
        self.note("durable", None, through.0);
        self.apply(shard, Event::Durable { through });
        if let Some(news) = news {
            self.apply(shard, Event::Disk(news));
        }
        if self.worker.is_some() && self.boot == boot {
            self.write_if_urgent(shard);
        }
    }

    fn perform(&mut self, shard: usize, effect: &Effect) {
        let boot = self.boot;
        match effect {
            Effect::Run { ticket, arrival, try_number } => self.run(shard, *ticket, arrival, *try_number),
            Effect::Stop { ticket } => {
                self.note("stop", None, u64::from(ticket.slot));
                if !self.rng.chance(self.plan.rates.deaf) {
                    let wait_us = self.rng.range(10, 5_000);
                    let (ticket, verdict) = (*ticket, Verdict::Stopped);
                    self.at(wait_us, Happening::End { boot, shard, ticket, work: work_number(shard, ticket), verdict });
                }
            }
            Effect::Claim { ticket, key, accepted } => {
                if let Some(worker) = self.worker.as_mut() {
                    worker.claims.insert((shard, ticket.slot, ticket.generation));
                }
                if self.plan.shared {
                    self.truth.asked.insert(*key, boot);
                }
                let wait_us = self.rng.range(50, 3_000);
                self.at(wait_us, Happening::Claim { boot, shard, ticket: *ticket, key: *key, accepted: *accepted });
            }
            Effect::Post(post) => self.post(shard, post),
            Effect::Settle { token, how } => self.settle(token, *how),
            Effect::Probe { key, lsn } => {
                let wait_us = self.rng.range(10, 20_000);
                self.at(wait_us, Happening::Probe { boot, shard, key: *key, lsn: *lsn });
            }
            Effect::Look { key } => {
                let wait_us = self.rng.range(10, 20_000);
                self.at(wait_us, Happening::Look { boot, shard, key: *key });
            }
            Effect::Seal(seal) => self.seal(shard, seal),
            Effect::WipePage { key } => _ = self.pages[shard].take_if(|(polled, _)| polled.key == *key),
            Effect::Prune { below } => {
                self.count("prune");
                self.note("prune", None, below.0);
                self.disks[shard].prune(*below);
            }
        }
    }

    pub fn probe(&mut self, shard: usize, key: Key, lsn: Lsn) {
        let found = self.outcome_in(shard, lsn);
        if !self.quiet && self.rng.chance(self.plan.rates.stale_report) {
            self.count("stale answer of the journal");
            self.apply(shard, Event::Probed { key, found: found.clone() });
        }
        self.apply(shard, Event::Probed { key, found });
    }

    fn run(&mut self, shard: usize, ticket: Ticket, arrival: &Rc<Arrival>, try_number: u32) {
        let (boot, key, fingerprint) = (self.boot, arrival.key, arrival.fingerprint);
        self.note("run", Some(key), u64::from(try_number));
        let started_us = self.worker.as_ref().map_or(0, |worker| worker.started_us);
        let boot_wall_ms = self.seat_of(shard).map_or(0, |seat| seat.boot_wall_ms);
        let now_ms = boot_wall_ms + (self.now_us - started_us) / 1000;
        let verdict = oracles::i9_a_try_may_start(&self.truth, arrival, try_number, boot, now_ms);
        self.check(verdict);
        let open = self.seat_of(shard).map(|seat| seat.open.clone()).unwrap_or_default();
        let verdict = oracles::a_struck_step_runs_last(&self.truth, key, &open, boot);
        self.check(verdict);
        let deadline_ms = self.truth.remembered(&key).and_then(|story| story.taken).map_or(0, |taken| taken.deadline_ms);
        let age_ms = (self.now_us - started_us) / 1000;
        // A wall that went forward since the start makes the deadline of what came later look far.
        let budget_ms = arrival.work().map_or(0, |work| work.budget_ms);
        let had_ms = (deadline_ms.saturating_sub(now_ms) + age_ms).min(budget_ms);
        let verdict = oracles::a_struck_step_lets_others_start(&self.truth, key, had_ms, age_ms, boot);
        self.check(verdict);
        let verdict = self.may_run(key);
        let verdict = verdict.and(self.watch.runs(self.true_ms(), self.plan.steady(), key));
        self.check(verdict);
        let story = self.truth.stories.get(&key);
        let once = story.filter(|story| story.result.is_some()).and_then(|story| story.taken).map(|taken| taken.lsn);
        self.ran.insert(key, once);
        self.polled_any[shard] = true;
        let polled = Polled { key, partition: arrival.partition };
        let poison = Job::decode(&arrival.delivery.body).poison;
        if poison == Poison::AtOnce {
            return self.abort(shard, polled);
        }
        let Some(work) = arrival.work() else { return };
        let rates = if self.quiet { crate::plan::Rates { overlong: 0, ..self.plan.rates } } else { self.plan.rates };
        let script = Script::draw(&mut self.rng, &rates, work.effect, work.budget_ms);
        if let Some(effect_us) = script.effect_us {
            let (survives, class) = (script.survives, work.effect);
            self.at(effect_us, Happening::Effect { boot, survives, key, fingerprint, class });
        }
        let verdict = match script.end {
            End::Done => Verdict::Done(Bytes::from_static(b"{}")),
            End::Spilled => Verdict::Spilled(Bytes::from_static(b"{\"uri\":\"blob\"}")),
            End::Failed(fault) => Verdict::Failed(fault),
            End::Panicked => Verdict::Panicked,
        };
        let number = work_number(shard, ticket);
        let (kind, needs) = (work.kind, work.needs);
        self.works.insert(number, AtWork { shard, tenant: arrival.tenant.clone(), polled, kind, needs });
        *self.at_work[shard].entry(arrival.tenant.clone()).or_default() += 1;
        if poison == Poison::Later {
            return self.at(script.lasts_us, Happening::Abort { boot, shard, work: number, polled });
        }
        self.at(script.lasts_us, Happening::End { boot, shard, ticket, work: number, verdict });
    }

    pub fn work_ended(&mut self, shard: usize, ticket: Ticket, work: u64, verdict: Verdict) {
        let stale = self.rng.chance(self.plan.rates.stale_report);
        match self.works.remove(&work) {
            Some(work) => {
                if let Some(count) = self.at_work[shard].get_mut(&work.tenant) {
                    *count -= 1;
                }
                if stale && !self.quiet {
                    self.count("stale report");
                    let (boot, later_us) = (self.boot, self.rng.around(SECOND));
                    let verdict = verdict.clone();
                    self.at(later_us, Happening::End { boot, shard, ticket, work: 0, verdict });
                }
            }
            None if work != 0 => return,
            None => {}
        }
        self.note("ended", None, work);
        self.apply(shard, Event::Ended { ticket, verdict, ran_us: 1 });
    }

    fn settle(&mut self, token: &StreamToken, how: Settle) {
        let sequence = token.sequence;
        let verdict = self.watch.settled(sequence, how);
        self.check(verdict);
        if matches!(how, Settle::Ack | Settle::Term) {
            self.note("ack", None, sequence);
            let kept = &self.server.stream[sequence as usize - 1];
            let arrival = self.arrival(Origin::Core, kept.body.clone());
            let verdict = oracles::i4_acked_only_once_answered(&self.truth, &arrival);
            self.check(verdict);
        }
        if self.rng.chance(self.plan.rates.settle_lost) && !self.quiet {
            return self.count("settlement lost");
        }
        let wait_us = self.rng.range(50, 3_000);
        self.at(wait_us, Happening::Settle { sequence, how });
    }

    pub fn arrival(&self, origin: Origin, body: Bytes) -> Arrival {
        let delivery = Delivery { origin, subject: Text::from_static(SUBJECT), headers: Vec::new(), body, reply: None };
        job::decode(delivery, self.wall_ms(), self.plan.limits.horizon_ms)
    }
}

/// What of a fold recovery must not change.
#[derive(Debug)]
pub struct Before {
    pub unfinished: Vec<shards::fold::Unfinished>,
    pub tenants: usize,
}

/// What recovery has to take up, and the fold it comes from.
type Unfinished = (Before, Vec<(shards::fold::Unfinished, Rc<Arrival>, Past)>);

fn work_number(shard: usize, ticket: Ticket) -> u64 {
    1 << 63 | (shard as u64) << 62 | u64::from(ticket.slot) << 32 | u64::from(ticket.generation)
}
