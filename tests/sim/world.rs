//! One world from one seed: virtual time, the queue of what happens next, and everything that lives in it.
//!
//! Nothing here reads a clock or the environment: the same seed gives the same world, and the same trace hash.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use bytes::Bytes;
use shards::event::{Claimant, Verdict};
use shards::ids::{BlockId, Fingerprint, Key, Lsn, Partition, Text, Ticket};
use shards::step::{EffectClass, Needs, Settle};

use crate::asks::Asks;
use crate::blocks::Ledger;
use crate::disk::Disk;
use crate::job::Way;
use crate::oracles;
use crate::plan::{EPOCH_MS, Fault, Plan, SECOND};
use crate::rng::Rng;
use crate::server::Server;
use crate::truth::Truth;
use crate::watch::Watch;
use crate::worker::Worker;

/// Something that happens at a moment.
#[derive(Debug)]
pub enum Happening {
    /// The router publishes its next job.
    Route,
    /// A message reaches the server.
    Store { body: Bytes, way: Way },
    /// Somebody says something to a step that waits for people.
    Say { job: crate::job::Job, actor: &'static str, approve: bool },
    /// The edge asks the stream for more.
    Pull { boot: u32 },
    /// A delivery reaches the edge.
    Arrive { boot: u32, sequence: u64, delivered: u32 },
    /// A core message reaches the edge.
    ArriveCore { boot: u32, body: Bytes },
    /// A call or a line reaches the worker.
    Ask { boot: u32, body: Bytes, way: Way },
    /// A worker that shares the consumer asks for more.
    Neighbour,
    /// Something happens outside because of a try.
    Effect { boot: u32, survives: bool, key: Key, fingerprint: Fingerprint, class: EffectClass },
    /// A step's own code ends the process.
    Abort { boot: u32, shard: usize, work: u64, polled: Polled },
    /// A try's work has ended.
    End { boot: u32, shard: usize, ticket: Ticket, work: u64, verdict: Verdict },
    /// What is pending goes to the disk, urgent or not.
    Flush { boot: u32, shard: usize },
    /// A batch is synced.
    Written { boot: u32, shard: usize },
    /// A letter reaches the server.
    Parcel { boot: u32, post: u64 },
    /// The server's confirmation reaches the edge.
    PubAck { boot: u32, post: u64 },
    /// No confirmation came: once more.
    Resend { boot: u32, post: u64 },
    /// A confirmation reaches the shard.
    Confirm { boot: u32, shard: usize, ticket: Ticket },
    /// The journal's answer reaches the shard.
    Probe { boot: u32, shard: usize, key: Key, lsn: Lsn },
    /// What key files hold of a key reaches the shard.
    Look { boot: u32, shard: usize, key: Key },
    /// The sealer's next step.
    Seal { boot: u32, shard: usize, stage: crate::seals::Stage },
    /// A claim reaches the server.
    Claim { boot: u32, shard: usize, ticket: Ticket, key: Key, accepted: Lsn },
    /// Its answer reaches the shard.
    Claimed { boot: u32, shard: usize, ticket: Ticket, by: Claimant },
    /// A settlement reaches the server.
    Settle { sequence: u64, how: Settle },
    /// A fault begins.
    Fault(usize),
    /// A fault ends.
    Mend(Fault),
    /// The process starts.
    Start,
    /// The grace of a drain is over.
    Grace { boot: u32 },
}

/// A key whose code may be polled.
#[derive(Clone, Copy, Debug)]
pub struct Polled {
    pub key: Key,
    pub partition: Partition,
}

/// A try really at work.
#[derive(Clone, Debug)]
pub struct AtWork {
    pub shard: usize,
    pub tenant: Text,
    pub polled: Polled,
    pub kind: BlockId,
    pub needs: Needs,
}

#[derive(Debug)]
struct Entry {
    at_us: u64,
    order: u64,
    what: Happening,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.at_us, self.order) == (other.at_us, other.order)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_us, self.order).cmp(&(other.at_us, other.order))
    }
}

/// What a finished world tells.
#[derive(Debug, Default, Clone)]
pub struct Report {
    pub hash: u64,
    pub steps: u64,
    pub happenings: u64,
    pub faults: BTreeMap<&'static str, u64>,
    pub violation: Option<String>,
}

/// A world. Lives in one thread.
#[derive(Debug)]
pub struct World {
    pub rng: Rng,
    pub plan: Plan,
    pub now_us: u64,
    pub wall_offset_ms: i64,
    /// How far ahead of the right time a machine may believe to be, at most.
    pub believable_ms: i64,
    queue: BinaryHeap<Reverse<Entry>>,
    order: u64,
    pub server: Server,
    pub disks: Vec<Disk>,
    pub slow_disk: u64,
    pub disk_full: bool,
    pub ledger: Ledger,
    pub truth: Truth,
    pub asks: Asks,
    pub watch: Watch,
    /// Steps that have ever reached us.
    pub met: std::collections::BTreeSet<Key>,
    pub worker: Option<Worker>,
    pub boot: u32,
    /// The epoch of the present owner, ours or another.
    pub epoch: u32,
    /// What was accepted under an earlier epoch has been another's since.
    pub since: u32,
    /// The newest message that anybody was handed.
    pub handed_out: u64,
    /// The same when the last other owner ended.
    pub inherited: u64,
    /// Steps that another owner has had, with their content.
    pub elsewhere: BTreeMap<Key, Fingerprint>,
    /// Steps that were open in our journal when we came after another, and that nobody has asked for since.
    pub superseded: std::collections::BTreeSet<Key>,
    pub partitioned: bool,
    pub quiet: bool,
    /// Tries really at work in this life, by work number.
    pub works: BTreeMap<u64, AtWork>,
    /// What each shard's page names, and the life that named it.
    pub pages: [Option<(Polled, u32)>; 2],
    /// Whether this life has named anybody there.
    pub polled_any: [bool; 2],
    /// How often a key ended the process in one life of its own, as far as anybody can know.
    pub aborts: BTreeMap<(Key, u32), u32>,
    pub at_work: Vec<BTreeMap<Text, u32>>,
    /// Keys run in this life; with the frame that took them once, where that was forgotten before.
    pub ran: BTreeMap<Key, Option<Lsn>>,
    pub routed: u32,
    pub history: Vec<crate::job::Job>,
    pub keys: Vec<Key>,
    pub report: Report,
    pub loud: bool,
}

impl World {
    pub fn new(seed: u64, loud: bool) -> World {
        let mut rng = Rng::new(seed);
        let plan = Plan::draw(&mut rng);
        let shared = plan.shared;
        World {
            server: Server::new(plan.ack_wait_us, plan.max_ack_pending),
            disks: (0..2).map(|shard| Disk::new(shard, plan.segment_bytes)).collect(),
            rng,
            plan,
            now_us: 0,
            wall_offset_ms: 0,
            believable_ms: 0,
            queue: BinaryHeap::new(),
            order: 0,
            slow_disk: 1,
            disk_full: false,
            ledger: Ledger::default(),
            truth: Truth::default(),
            asks: Asks::default(),
            watch: Watch::default(),
            met: std::collections::BTreeSet::new(),
            worker: None,
            boot: 0,
            epoch: 0,
            // Where workers share, whatever came from the stream may be another's by now.
            since: if shared { u32::MAX } else { 0 },
            handed_out: 0,
            inherited: 0,
            elsewhere: BTreeMap::new(),
            superseded: std::collections::BTreeSet::new(),
            partitioned: false,
            quiet: false,
            works: BTreeMap::new(),
            pages: [None; 2],
            polled_any: [false; 2],
            aborts: BTreeMap::new(),
            at_work: vec![BTreeMap::new(); 2],
            ran: BTreeMap::new(),
            routed: 0,
            history: Vec::new(),
            keys: Vec::new(),
            report: Report { hash: 0xcbf2_9ce4_8422_2325, ..Report::default() },
            loud,
        }
    }

    /// Lives the whole world: faults, then rest, then the last checks.
    pub fn live(mut self) -> Report {
        self.at(0, Happening::Start);
        self.at(1_000, Happening::Route);
        if self.plan.shared {
            self.at(2_000, Happening::Neighbour);
        }
        for index in 0..self.plan.faults.len() {
            let wait_us = self.rng.around(self.plan.faults[index].1);
            self.at(wait_us, Happening::Fault(index));
        }
        let span_us = self.plan.span_us;
        while self.report.violation.is_none() && (self.now_us < span_us || self.routed < self.plan.jobs) {
            self.step();
        }
        self.quiet = true;
        self.mend_everything();
        let until_us = self.now_us + 3 * 3600 * SECOND;
        while self.report.violation.is_none() && !self.at_rest() {
            if self.now_us > until_us {
                let open = self.server.open();
                self.violate(format!("I1: no rest after three hours, {open} deliveries are open"));
                break;
            }
            self.step();
        }
        if self.report.violation.is_none() {
            self.last_checks();
        }
        self.report.steps = u64::from(self.routed);
        self.report
    }

    fn last_checks(&mut self) {
        let mut found = oracles::i1_every_accepted_key_has_its_outcome(&self.truth);
        found = found.and_then(|()| oracles::every_asker_is_answered(&self.truth));
        found = found.and_then(|()| oracles::core_askers_of_this_life_are_answered(&self.truth));
        found = found.and_then(|()| oracles::i5_effects_within_their_class(&self.truth, &self.ledger, self.plan.claims));
        found = found.and_then(|()| oracles::i6_outcomes_say_what_happened(&self.truth, &self.ledger));
        found = found.and_then(|()| self.asks.everyone_who_waits_is_answered(self.boot));
        found = found.and_then(|()| crate::asks::workers_that_share_do_not_contradict(&self.truth));
        found = found.and_then(|()| self.watch.nothing_is_overdue(self.now_us));
        found = found.and_then(|()| oracles::i21_failures_leave_dead_letters(&self.truth));
        if let Some(worker) = &self.worker {
            for seat in &worker.seats {
                found = found.and_then(|()| oracles::i10_everything_returns(&seat.shard));
            }
        }
        for disk in &self.disks {
            found = found.and_then(|()| oracles::i17_the_durable_prefix_survives(disk));
            found = found.and_then(|()| oracles::i18_damage_is_reported_and_torn_tails_are_cut(disk, &mut self.rng));
        }
        self.check(found);
    }

    fn at_rest(&self) -> bool {
        let Some(worker) = &self.worker else { return false };
        worker.outbox.is_empty()
            && self.works.is_empty()
            && self.disks.iter().all(|disk| !disk.is_pending() && !disk.is_writing())
            && worker.seats.iter().all(|seat| seat.shard.is_idle() && seat.shard.parked() == 0)
            && self.server.open() == 0
    }

    /// Lets the next thing happen: a timer of the machine, or the head of the queue.
    fn step(&mut self) {
        self.report.happenings += 1;
        let tick = self.next_tick();
        let head_us = self.queue.peek().map(|Reverse(entry)| entry.at_us);
        match (tick, head_us) {
            (Some((tick_us, shard)), head) if head.is_none_or(|head_us| tick_us < head_us) => {
                self.now_us = self.now_us.max(tick_us);
                self.tick(shard);
            }
            (_, Some(_)) => {
                let Some(Reverse(entry)) = self.queue.pop() else { return };
                self.now_us = self.now_us.max(entry.at_us);
                self.happen(entry.what);
            }
            (Some(_), None) | (None, None) => self.violate("nothing will ever happen again".to_owned()),
        }
    }

    /// Something will happen in so many µs.
    pub fn at(&mut self, in_us: u64, what: Happening) {
        self.order += 1;
        self.queue.push(Reverse(Entry { at_us: self.now_us + in_us, order: self.order, what }));
    }

    pub fn wall_ms(&self) -> u64 {
        (self.true_ms() as i64 + self.wall_offset_ms) as u64
    }

    /// The server's clock, which is right.
    pub fn true_ms(&self) -> u64 {
        EPOCH_MS + self.now_us / 1000
    }

    pub fn check(&mut self, verdict: Result<(), String>) {
        if let Err(violation) = verdict {
            self.violate(violation);
        }
    }

    pub fn violate(&mut self, violation: String) {
        if self.report.violation.is_none() {
            if self.loud {
                println!("{:>12} VIOLATION {violation}", self.now_us);
            }
            self.report.violation = Some(violation);
        }
    }

    /// One line of the trace; its hash is what makes two runs comparable.
    pub fn note(&mut self, what: &'static str, key: Option<Key>, number: u64) {
        let short = key.map_or(0, |key| u32::from_le_bytes([key.0[0], key.0[1], key.0[2], key.0[3]]));
        for part in [self.now_us, what.len() as u64 | u64::from(what.as_bytes()[0]) << 8, u64::from(short), number] {
            self.report.hash = (self.report.hash ^ part).wrapping_mul(0x0100_0000_01b3).rotate_left(17);
        }
        if self.loud {
            println!("{:>12} {what} {} {number}", self.now_us, key.map_or(String::new(), |key| key.to_string()));
        }
    }

    pub fn count(&mut self, fault: &'static str) {
        *self.report.faults.entry(fault).or_default() += 1;
    }
}
