//! The shard machine: [`Shard::apply`] takes one moment and one [`Event`], changes itself, and leaves what is to be done in
//! [`Effects`]. It is the whole of a core's behaviour; the driver around it decides nothing.
//!
//! The life of a step, as methods: `arrived` → `admit` (key, time, quota) → `dispatch` (lane) → `ended` (verdict, retry) →
//! `settle` (the one outcome) → `durable` (let go what was held) → `confirmed` (ack the delivery, free the job).
//!
//! Invariants: nothing leaves before the frame it tells of is durable (`held`); a key has at most one job and one outcome
//! (`known`); a charge returns exactly when the work has ended; every number a caller can grow is bounded by `limits`.

mod admit;
mod call;
mod carry;
mod copies;
mod notice;
mod park;
mod place;
mod record;
mod recover;
mod retain;
mod room;
mod run;
mod seal;
mod settle;
mod struck;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

use hashbrown::HashMap;

use crate::deadlines::Deadlines;
use crate::dedup::{Home, Known};
use crate::event::{Chunk, Effect, Effects, Event, Letter, Overload, Post, Reply, Role, Stage, Untold};
use crate::fold::{Owned, Released, Unfinished};
use crate::gate::Vote;
use crate::ids::{AskerId, Key, Lsn, Now, Salt, Text, Ticket};
use crate::lane::Lanes;
use crate::limits::{CLOCK_JUMP_MS_MAX, CLOCK_STEADY_MS, Limits};
use crate::outcome::{Outcome, Tried};
use crate::planted::{Bug, planted};
use crate::quota::Charge;
use crate::step::Arrival;
use crate::strike::Strikes;
use crate::tally::Tally;
use crate::tenant::{TenantIndex, Tenants};
use place::InUse;

pub use retain::Span;

/// While a clock that jumped is not believed, it is looked at this often, in microseconds.
const CLOCK_LOOK_EVERY_US: u64 = 1_000_000;

/// What a shard is told at launch. Shared, never changes.
#[derive(Clone, Debug)]
pub struct ShardSettings {
    /// Which shard this is.
    pub shard: u16,
    /// Which start of this worker this is, from 1.
    pub boot: u32,
    /// The bounds.
    pub limits: Limits,
    /// The deployment's secret.
    pub salt: Salt,
    /// `name@version` of every block, by [`crate::ids::BlockId`].
    pub blocks: Vec<Text>,
    /// Whether observers are told of lifecycles.
    pub events: bool,
    /// Stream deliveries older than this are kept alive at this interval, in microseconds: a third of ack_wait.
    pub progress_us: u64,
    /// The configuration in force.
    pub config_epoch: u32,
    /// The epoch of the ownership that this life works under; 0 where nobody owns.
    pub owner_epoch: u32,
    /// Other workers take from the same streams at the same time.
    pub shared: bool,
    /// What must never run twice is claimed before all other workers first.
    pub claims: bool,
    /// Steps that wait for people have copies where the next owner finds them.
    pub copies: bool,
}

/// One core's machine. Lives on its core.
#[derive(Debug)]
pub struct Shard {
    settings: ShardSettings,
    tenants: Tenants,
    known: Known,
    jobs: Vec<Job>,
    free: Vec<u32>,
    /// Stands in free slots, which must not keep the message of the step that had them.
    nothing: Rc<Arrival>,
    live: u32,
    lanes: Lanes,
    in_use: InUse,
    strikes: Strikes,
    struck: struck::Struck,
    /// Steps holding a place in a queue, over all tenants.
    queued: u32,
    /// Steps holding a running slot, over all tenants.
    running: u32,
    deadlines: Deadlines,
    /// Steps that wait for people, by when something is due of them: (monotonic microseconds, slot).
    gates: BTreeSet<(u64, u32)>,
    /// Due slots of one tick; kept for its memory.
    due: Vec<u32>,
    /// What waits for a frame to be durable, in the order of the frames.
    held: VecDeque<(Lsn, Held)>,
    /// Who waits for an outcome to be read back.
    probing: HashMap<Key, Vec<seal::Asked>>,
    /// What lies in key files and no longer here, and who waits for it.
    sealing: seal::Sealing,
    /// What earlier lives left without an end and no job stands for.
    left_open: HashMap<Key, Unfinished>,
    /// Steps that another owner has had: it may have run them.
    released: HashMap<Key, Released>,
    /// Outcomes that wait for the stream to ask for them: whether a later owner has told its own, only that shows.
    untold: HashMap<Key, Untold>,
    next_lsn: Lsn,
    durable: Lsn,
    /// Steps without an end, by the frame that holds their message; the oldest bounds what may be pruned.
    unfinished: VecDeque<(Lsn, u32)>,
    retain: retain::Retain,
    /// Tenants with arrivals waiting unaccepted, and how many there are over all.
    waiting: u32,
    unpublished: u32,
    held_bytes: u64,
    wall_floor_ms: u64,
    /// A moment whose wall was believed; from there the monotonic clock tells what the wall should be.
    believed: Option<Now>,
    /// Since when the wall stands more than [`CLOCK_JUMP_MS_MAX`] before what it should be: nothing new is accepted.
    jumped: Option<Now>,
    /// When a clock that jumped is looked at again, monotonic.
    clock_look_us: u64,
    progress_due_us: u64,
    waiting_due_us: u64,
    draining: bool,
    /// The journal's disk is full.
    full: Option<room::Looks>,
    tally: Tally,
}

/// One key on its way to its outcome, or to the proof that its outcome was stored.
#[derive(Debug)]
struct Job {
    /// Grows with every try and with every new job in this slot.
    generation: u32,
    state: State,
    key: Key,
    /// Where the key's entry was put.
    home: Home,
    tenant: TenantIndex,
    /// Who asked first; the newest delivery of that asker.
    arrival: Rc<Arrival>,
    /// Further deliveries and askers of the same key.
    others: Vec<Rc<Arrival>>,
    charge: Option<Charge>,
    /// Frame with the message.
    accepted: Lsn,
    /// Tries started.
    tries: u32,
    /// What the newest of the tries before this one came to; empty, and nothing allocated, until one failed.
    earlier: Vec<Tried>,
    /// A try's work has not ended yet.
    at_work: bool,
    /// The next try starts only after its STARTED frame is durable.
    cautious: bool,
    /// Whether it must be claimed before it runs.
    claim: Claim,
    /// Something may have happened outside in a try that is not the current one.
    touched: bool,
    /// It was recovered: steps with a strike wait for its outcome.
    ahead: bool,
    /// The first answer to the first asker is out.
    acked: bool,
    role: Role,
    /// The notice that stopped it.
    stopped_by: Option<Rc<Arrival>>,
    /// What people have said to it; nothing is allocated until one has.
    votes: Vec<Vote>,
    /// Its copy, where it has one.
    copy: Option<Box<copies::Copy>>,
    /// Those of them who decided.
    decided_by: Option<Text>,
    /// What was due of its gate up to here is told, Unix ms.
    gate_ms: u64,
    /// Lifecycle events sent.
    stages: u32,
    started_ms: u64,
    started_us: u64,
    received_us: u64,
    deadline_us: u64,
    retry_at_us: u64,
    outcome: Option<Rc<Outcome>>,
    /// Frame with the outcome.
    decided: Lsn,
    /// What its frames say so far.
    written: Written,
    /// Letters that still want confirming.
    unconfirmed: u32,
}

/// What the frames of a job say of it, as a fold would read them; the job itself may be ahead.
#[derive(Clone, Copy, Debug)]
struct Written {
    asker: AskerId,
    tries: u32,
    interrupted: bool,
    retry_at_ms: Option<u64>,
    deadline_ms: u64,
    owned: Owned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// Accepted, in the lane.
    Queued,
    /// A try is at work, or waits for its claim or its STARTED frame.
    Running,
    /// Between two tries.
    Backoff,
    /// It waits for people, and holds no place in any lane.
    Parked,
    /// The outcome is decided and on its way to the disk.
    Decided,
    /// The outcome is durable; letters are out.
    Posting,
}

/// Whether a step is claimed before all other workers. What is claimed stays so: once is enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    /// It need not be, or it is.
    Needless,
    /// Before its first try of this life.
    Due,
    /// It has its place, and its ACCEPTED is on its way to the disk: the claim is known by that frame.
    Held,
    /// The answer is awaited.
    Asked,
}

/// What waits for a frame to be durable.
#[derive(Debug)]
enum Held {
    /// Tell that the step is accepted.
    Accepted(u32),
    /// Tell that a try has started, and start it if it waited for that.
    Started(Ticket),
    /// Tell that another try follows.
    Retrying(u32),
    /// Tell what a try says.
    Progress(Ticket, Chunk),
    /// Send the outcome.
    Outcome(u32),
    /// Tell who gave a notice what became of it.
    Reply(Rc<Arrival>, Reply),
    /// Tell who said something to a step what became of that.
    Said(Ticket, Rc<Arrival>, Reply),
    /// Drop segments.
    Prune(Lsn),
    /// Wipe from the page what the strike of this key came from.
    Strike(Key),
    /// Let what all frames up to here came to be kept.
    Seal(Box<crate::snapshot::Seal>),
}

impl Shard {
    /// An empty shard; frames are numbered from `next_lsn`.
    pub fn new(settings: ShardSettings, next_lsn: Lsn) -> Self {
        let tally = Tally::new(settings.blocks.len());
        Shard {
            tenants: Tenants::new(settings.limits.clone()),
            known: Known::default(),
            jobs: Vec::new(),
            free: Vec::new(),
            nothing: Rc::new(Arrival::nothing()),
            live: 0,
            lanes: Lanes::default(),
            in_use: InUse::default(),
            strikes: Strikes::default(),
            struck: struck::Struck::default(),
            queued: 0,
            running: 0,
            deadlines: Deadlines::default(),
            gates: BTreeSet::new(),
            due: Vec::new(),
            held: VecDeque::new(),
            probing: HashMap::new(),
            sealing: seal::Sealing::default(),
            left_open: HashMap::new(),
            released: HashMap::new(),
            untold: HashMap::new(),
            next_lsn,
            durable: Lsn(next_lsn.0 - 1),
            unfinished: VecDeque::new(),
            retain: retain::Retain::default(),
            waiting: 0,
            unpublished: 0,
            held_bytes: 0,
            wall_floor_ms: 0,
            believed: None,
            jumped: None,
            clock_look_us: 0,
            progress_due_us: 0,
            waiting_due_us: 0,
            draining: false,
            full: None,
            tally,
            settings,
        }
    }

    /// Takes in one event and leaves what is to be done in `fx`.
    pub fn apply(&mut self, now: Now, event: Event, fx: &mut Effects) {
        let now = self.clock(now);
        self.struck.recovering = matches!(event, Event::Died { .. } | Event::Recovered { .. } | Event::Superseded { .. });
        match event {
            Event::Arrived(arrival) => self.arrived(now, arrival, fx),
            Event::Died { polled, partition, boot } => self.died(now, polled, partition, boot, fx),
            Event::Recovered { key, arrival, past } => self.recovered(now, key, arrival, past, fx),
            Event::Superseded { key, fingerprint, asker, partition, untold } => {
                self.superseded(now, key, fingerprint, asker, partition, untold, fx);
            }
            Event::Ended { ticket, verdict, ran_us } => self.ended(now, ticket, verdict, ran_us, fx),
            Event::Progressed { ticket, chunk } => self.progressed(now, ticket, chunk, fx),
            Event::Durable { through } => self.durable(now, through, fx),
            Event::Probed { key, found } => self.probed(now, key, found, fx),
            Event::Looked { key, found } => self.looked(now, key, found, fx),
            Event::Sealed(sealed) => self.sealed(sealed, fx),
            Event::Confirmed { ticket } => self.confirmed(now, ticket, fx),
            Event::CopiesRead => self.copies_read(now, fx),
            Event::Claimed { ticket, by } => self.claimed(now, ticket, by, fx),
            Event::Tick => self.tick(now, fx),
            Event::Cancel { key } => self.cancel(now, key, fx),
            Event::Drain => self.drain(now, fx),
            Event::Disk(news) => self.disk(now, news, fx),
        }
        self.dispatch(now, fx);
    }

    /// When the next [`Event::Tick`] is worth sending, in monotonic microseconds.
    pub fn next_tick_us(&self) -> Option<u64> {
        let timers = self.deadlines.next_us();
        let progress = (self.live > 0).then_some(self.progress_due_us);
        let waiting = (self.waiting > 0).then_some(self.waiting_due_us);
        let retain = self.retain.next_look_us();
        // While nothing is accepted, nothing else would come and let the clock be looked at again.
        let steady = self.jumped.map(|_| self.clock_look_us);
        let looks = self.looks_due_us();
        let gates = self.gates.first().map(|(due_us, _)| *due_us);
        [timers, progress, waiting, retain, steady, looks, self.struck.look_us, gates].into_iter().flatten().min()
    }

    /// The journal is over its budget and nothing in it may go yet: new work waits.
    pub fn over_budget(&self) -> bool {
        self.retain.at_floor()
    }

    /// How many more deliveries this shard would take now: what the edge may pull for it.
    pub fn free_slots(&self) -> u32 {
        let limits = &self.settings.limits;
        if self.draining || !self.has_places() {
            return 0;
        }
        let queue = limits.shard_queued_max.saturating_sub(self.queued + self.waiting);
        let unpublished = limits.unpublished_max.saturating_sub(self.unpublished);
        // Those that ask again for a finished key take no place in a queue, but somebody has to read for them.
        queue.min(unpublished).min(self.looks_left()).saturating_sub((self.probing.len() + self.sealing.looks()) as u32)
    }

    /// Bytes of message bodies and untold outputs that are held.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// Nothing is running, waiting or on its way out, but for steps that wait for people.
    pub fn is_idle(&self) -> bool {
        self.live as usize == self.gates.len() && self.waiting == 0 && self.probing.is_empty() && self.sealing.looks() == 0
    }

    /// Steps waiting.
    pub fn queued(&self) -> u32 {
        self.queued + self.waiting
    }

    /// Steps running.
    pub fn running(&self) -> u32 {
        self.running
    }

    /// Steps that wait for people.
    pub fn parked(&self) -> u32 {
        self.gates.len() as u32
    }

    /// Outcomes not yet known as published.
    pub fn unpublished(&self) -> u32 {
        self.unpublished
    }

    /// What was counted so far, with the current levels filled in.
    pub fn tally(&self) -> Tally {
        let mut tally = self.tally.clone();
        tally.keys = self.known.len() as u64 + self.sealing.keys();
        tally.queued = u64::from(self.queued());
        tally.running = u64::from(self.running);
        tally.unpublished = u64::from(self.unpublished);
        tally.parked = u64::from(self.parked());
        tally
    }

    /// What the journal says now, for a MARK frame that nobody asked for: (wall ms, floor, watermark ms).
    pub fn mark(&mut self, now: Now, fx: &mut Effects) {
        let now = self.clock(now);
        self.log_mark(now, fx);
    }

    /// The tenants' accounts, for invariants: (name, queued, running).
    pub fn accounts(&self) -> impl Iterator<Item = (&Text, u32, u32)> {
        self.tenants.iter().map(|tenant| (&tenant.name, tenant.account.queued, tenant.account.running))
    }

    /// Whether the clock jumped so far ahead that it is not believed yet: an alarm; nothing new is accepted.
    pub fn clock_jumped(&self) -> bool {
        self.jumped.is_some()
    }

    /// Walls never go back: what the journal has seen stays in the past. A wall far ahead of the monotonic clock is not
    /// believed until it has been steady: it would expire everything at once.
    fn clock(&mut self, mut now: Now) -> Now {
        let believed = *self.believed.get_or_insert(now);
        let expected_ms = should_be(believed, now);
        let ahead = now.wall_ms > expected_ms + CLOCK_JUMP_MS_MAX && !planted(Bug::BelieveJump);
        self.jumped = match self.jumped {
            _ if !ahead => None,
            Some(since) if should_be(since, now).abs_diff(now.wall_ms) <= CLOCK_JUMP_MS_MAX => Some(since),
            _ => Some(now),
        };
        self.clock_look_us = now.mono_us + CLOCK_LOOK_EVERY_US;
        match self.jumped {
            Some(since) if now.mono_us - since.mono_us < CLOCK_STEADY_MS * 1000 => now.wall_ms = expected_ms,
            None if now.wall_ms + CLOCK_JUMP_MS_MAX < expected_ms => {}
            _ => (self.believed, self.jumped) = (Some(now), None),
        }
        self.wall_floor_ms = self.wall_floor_ms.max(now.wall_ms);
        now.wall_ms = self.wall_floor_ms;
        now
    }

    fn has_room(&self) -> bool {
        (self.full.is_none() || planted(Bug::AcceptWhileFull)) && self.has_places()
    }

    /// The same, whatever its disk says.
    fn has_places(&self) -> bool {
        self.jumped.is_none()
            && !self.retain.at_floor()
            && self.unpublished < self.settings.limits.unpublished_max
            && self.queued < self.settings.limits.shard_queued_max
            && self.held_bytes < self.settings.limits.shard_held_bytes_max
    }

    fn job(&mut self, slot: u32) -> &mut Job {
        &mut self.jobs[slot as usize]
    }

    /// The slot of a ticket that is still good.
    fn current(&self, ticket: Ticket) -> Option<u32> {
        let job = self.jobs.get(ticket.slot as usize)?;
        let good = job.state != State::Free && (job.generation == ticket.generation || planted(Bug::StaleTicket));
        good.then_some(ticket.slot)
    }

    fn ticket(&self, slot: u32) -> Ticket {
        Ticket { slot, generation: self.jobs[slot as usize].generation }
    }

    /// A job in a free slot, or in a new one.
    fn open_job(&mut self, now: Now, key: Key, arrival: Rc<Arrival>, accepted: Lsn, role: Role) -> u32 {
        let tenant = self.tenants.find(&arrival.tenant);
        let left = self.left_open.get(&key).filter(|one| one.message == accepted && !one.votes.is_empty());
        let votes = left.map_or(Vec::new(), |one| one.votes.clone());
        let written = self.written(key, &arrival, accepted, role);
        self.held_bytes += arrival.held_bytes();
        self.live += 1;
        if self.live == 1 {
            self.progress_due_us = now.mono_us + self.settings.progress_us;
        }
        let job = Job {
            generation: 1,
            state: State::Queued,
            key,
            home: Home::UNKNOWN,
            tenant,
            arrival,
            others: Vec::new(),
            charge: None,
            accepted,
            tries: 0,
            earlier: Vec::new(),
            at_work: false,
            cautious: false,
            claim: Claim::Needless,
            touched: false,
            ahead: false,
            acked: false,
            role,
            stopped_by: None,
            votes,
            copy: None,
            decided_by: None,
            gate_ms: 0,
            stages: 0,
            started_ms: 0,
            started_us: 0,
            received_us: now.mono_us,
            deadline_us: u64::MAX,
            retry_at_us: 0,
            outcome: None,
            decided: Lsn(0),
            written,
            unconfirmed: 0,
        };
        if let Some(slot) = self.free.pop() {
            let place = &mut self.jobs[slot as usize];
            *place = Job { generation: place.generation + 1, ..job };
            slot
        } else {
            self.jobs.push(job);
            self.jobs.len() as u32 - 1
        }
    }

    /// What a job holds from now on until it is closed: a slow disk, or nobody to tell, must not fill the memory.
    fn hold_outcome(&mut self, slot: u32, outcome: Rc<Outcome>) {
        self.held_bytes += outcome.outputs.len() as u64;
        let before = self.jobs[slot as usize].outcome.replace(outcome);
        self.held_bytes -= before.map_or(0, |before| before.outputs.len() as u64);
    }

    /// Gives a slot back once nothing refers to it any more: letters confirmed, work ended.
    fn close_job(&mut self, slot: u32) {
        let job = &mut self.jobs[slot as usize];
        if job.state != State::Posting || job.unconfirmed > 0 || job.at_work {
            return;
        }
        job.state = State::Free;
        job.generation += 1;
        let arrival = std::mem::replace(&mut job.arrival, self.nothing.clone());
        if !planted(Bug::LeakHeldBytes) {
            self.held_bytes -= arrival.held_bytes();
        }
        job.others = Vec::new();
        self.held_bytes -= job.outcome.take().map_or(0, |outcome| outcome.outputs.len() as u64);
        job.stopped_by = None;
        job.votes = Vec::new();
        job.decided_by = None;
        job.copy = None;
        job.earlier = Vec::new();
        self.deadlines.disarm(slot);
        self.live -= 1;
        self.free.push(slot);
        self.forget_finished();
    }

    fn overload(&self, tenant: TenantIndex) -> Overload {
        let account = &self.tenants.peek(tenant).account;
        let of_tenant = u64::from(account.queued) * 100 / u64::from(account.queued_max.max(1));
        let of_shard = u64::from(self.queued()) * 100 / u64::from(self.settings.limits.shard_queued_max.max(1));
        match of_tenant.max(of_shard) {
            0..50 => Overload::Healthy,
            50..80 => Overload::Degraded,
            80..100 => Overload::Overloaded,
            _ => Overload::Critical,
        }
    }

    /// Tells observers, if they are to be told.
    fn lifecycle(&mut self, now: Now, slot: u32, stage: Stage, fx: &mut Effects) {
        if !self.settings.events {
            return;
        }
        let job = &mut self.jobs[slot as usize];
        let ending = matches!(stage, Stage::Completed | Stage::Failed | Stage::Canceled | Stage::DeadLettered);
        let outcome = if ending { job.outcome.clone() } else { None };
        let letter = Letter::Lifecycle { stage, outcome, sequence: job.stages, at_ms: now.wall_ms };
        job.stages += 1;
        let post = Post { confirm: None, arrival: job.arrival.clone(), letter };
        fx.list.push(Effect::Post(post));
    }
}

/// What the wall should show now, given a moment that was believed.
fn should_be(then: Now, now: Now) -> u64 {
    then.wall_ms + now.mono_us.saturating_sub(then.mono_us) / 1000
}
