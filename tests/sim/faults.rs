//! What goes wrong around the worker, and the router that keeps asking: jobs, duplicates, conflicts, crashes, clocks.

use shards::event::{DiskNews, Event};

use crate::job::{Job, JobKind, Poison, Way};
use crate::plan::{Fault, SECOND};
use crate::world::{Happening, Polled, World};

impl World {
    pub fn happen(&mut self, what: Happening) {
        let alive = self.worker.is_some();
        let boot = self.boot;
        let mine = move |of: u32| alive && of == boot;
        match what {
            Happening::Route => self.route(),
            Happening::Store { body, way } => self.store(body, way),
            Happening::Pull { boot } if mine(boot) => self.pull(),
            Happening::Arrive { boot, sequence, delivered } if mine(boot) && !self.partitioned => {
                self.arrive(sequence, delivered);
            }
            Happening::ArriveCore { boot, body } if mine(boot) => self.arrive_core(body),
            Happening::Ask { boot, body, way } if mine(boot) => self.ask(body, way),
            Happening::Say { job, actor, approve } if alive => self.say(job, actor, approve),
            Happening::Neighbour => self.neighbour_pulls(),
            Happening::Effect { boot, survives, key, fingerprint, class } if (survives || mine(boot)) => {
                self.note("effect", Some(key), class as u64);
                self.ledger.apply(key, &fingerprint, class);
            }
            Happening::End { boot, shard, ticket, work, verdict } if mine(boot) => {
                self.work_ended(shard, ticket, work, verdict);
            }
            Happening::Abort { boot, shard, work, polled } if mine(boot) && self.works.contains_key(&work) => {
                self.abort(shard, polled);
            }
            Happening::Flush { boot, shard } if mine(boot) => self.flush(shard),
            Happening::Written { boot, shard } if mine(boot) => self.written(shard),
            Happening::Parcel { boot, post } if mine(boot) => self.parcel(post),
            Happening::PubAck { boot, post } if mine(boot) && !self.partitioned => self.pub_ack(post),
            Happening::Resend { boot, post } if mine(boot) => self.send(post),
            Happening::Confirm { boot, shard, ticket } if mine(boot) => {
                self.apply(shard, Event::Confirmed { ticket });
            }
            Happening::Probe { boot, shard, key, lsn } if mine(boot) => self.probe(shard, key, lsn),
            Happening::Look { boot, shard, key } if mine(boot) => self.look(shard, key),
            Happening::Seal { boot, shard, stage } if mine(boot) => self.sealing(shard, stage),
            // One that was sent arrives, whatever becomes of who sent it.
            Happening::Claim { boot, shard, ticket, key, accepted } => self.claim(boot, shard, ticket, key, accepted),
            Happening::Claimed { boot, shard, ticket, by } if mine(boot) && !self.partitioned => {
                self.claimed(shard, ticket, by);
            }
            Happening::Settle { sequence, how } if !self.partitioned => {
                let now_us = self.now_us;
                self.server.settle(now_us, sequence, how);
            }
            Happening::Fault(index) => self.fault(index),
            Happening::Mend(fault) => self.mend(fault),
            Happening::Start if !alive => self.start(),
            Happening::Grace { boot } if mine(boot) => {
                self.note("grace over", None, 0);
                self.die(false);
            }
            _ => {}
        }
    }

    fn fault(&mut self, index: usize) {
        if self.quiet {
            return;
        }
        let (fault, every_us) = self.plan.faults[index];
        let next_us = self.rng.around(every_us);
        self.at(next_us, Happening::Fault(index));
        let lasts_us = self.rng.range(100_000, 8 * SECOND);
        match fault {
            Fault::Kill | Fault::PowerLoss => {
                if self.worker.is_none() {
                    return;
                }
                self.count(if fault == Fault::Kill { "kill -9" } else { "power loss" });
                self.die(fault == Fault::PowerLoss);
            }
            Fault::TakenOver => {
                if self.worker.is_none() {
                    return;
                }
                self.count("taken over");
                let power = self.rng.chance(300);
                self.die(power);
                self.another_owns();
            }
            Fault::DrainRestart => {
                if self.worker.as_ref().is_none_or(|worker| worker.draining) {
                    return;
                }
                self.count("drain and restart");
                if let Some(worker) = self.worker.as_mut() {
                    worker.draining = true;
                }
                let boot = self.boot;
                self.at(lasts_us, Happening::Grace { boot });
                for shard in 0..2 {
                    self.apply(shard, Event::Drain);
                }
            }
            Fault::ServerKill => {
                self.count("server kill -9");
                self.server.kill(&mut self.rng);
                self.partitioned = true;
                self.at(lasts_us / 4, Happening::Mend(Fault::Partition));
            }
            Fault::Partition => {
                self.count("partition");
                self.partitioned = true;
                self.at(lasts_us, Happening::Mend(fault));
            }
            Fault::ClockBack | Fault::ClockForward => {
                self.count(if fault == Fault::ClockBack { "clock back" } else { "clock forward" });
                let by_ms = self.rng.range(100, 600_000) as i64;
                self.wall_offset_ms += if fault == Fault::ClockBack { -by_ms } else { by_ms };
                self.wall_offset_ms = self.wall_offset_ms.clamp(-1_200_000, 1_200_000);
                self.note("clock set", None, self.wall_offset_ms as u64);
                if self.rng.chance(500) {
                    self.at(lasts_us, Happening::Mend(fault));
                }
            }
            Fault::SlowDisk => {
                self.count("slow disk");
                self.slow_disk = self.rng.range(20, 2_000);
                self.at(lasts_us, Happening::Mend(fault));
            }
            Fault::DiskFull => {
                self.count("disk full");
                self.disk_full = true;
                // What is left of a segment, and the reserve: mostly enough for what runs.
                for disk in &mut self.disks {
                    disk.room = Some(self.rng.below(64 << 10) as usize);
                }
                self.tell_disk();
                self.at(lasts_us, Happening::Mend(fault));
            }
            Fault::DiskDies => {
                if self.worker.is_some() && self.disks.iter().any(crate::disk::Disk::is_writing) {
                    self.count("a sync fails");
                    // The driver ends the process at once, and nobody is told of that batch.
                    self.die(true);
                }
            }
            Fault::Burst => {
                self.count("burst");
                for _ in 0..self.rng.range(5, 30) {
                    self.publish();
                }
            }
            Fault::Storm => {
                self.count("storm");
                self.storm();
            }
            Fault::Cancel => {
                for _ in 0..self.rng.range(1, 4) {
                    self.cancel();
                }
            }
        }
    }

    fn mend(&mut self, fault: Fault) {
        match fault {
            Fault::Partition | Fault::ServerKill => self.partitioned = false,
            Fault::ClockBack | Fault::ClockForward => self.wall_offset_ms = 0,
            Fault::SlowDisk => self.slow_disk = 1,
            Fault::DiskFull => {
                self.disk_full = false;
                self.disks.iter_mut().for_each(|disk| disk.room = None);
                self.tell_disk();
            }
            Fault::Kill
            | Fault::PowerLoss
            | Fault::TakenOver
            | Fault::DrainRestart
            | Fault::DiskDies
            | Fault::Burst
            | Fault::Storm
            | Fault::Cancel => {}
        }
    }

    /// The faults are over.
    pub fn mend_everything(&mut self) {
        for fault in [Fault::Partition, Fault::SlowDisk, Fault::DiskFull, Fault::ClockForward] {
            self.mend(fault);
        }
    }

    fn tell_disk(&mut self) {
        for shard in 0..2 {
            self.apply(shard, Event::Disk(if self.disk_full { DiskNews::Full } else { DiskNews::Room }));
        }
    }

    /// The process ends here and now. Whoever starts it again does so a little later.
    pub fn die(&mut self, power: bool) {
        self.die_in(power, None);
    }

    /// A step's own code ends the process.
    pub fn abort(&mut self, shard: usize, polled: Polled) {
        self.note("abort", Some(polled.key), shard as u64);
        self.count("a step ends the process");
        let aborts = self.aborts.entry(self.truth.life(polled.key)).or_default();
        *aborts += 1;
        let aborts = *aborts;
        if aborts > shards::limits::STRIKES_MAX {
            self.violate(format!("poison: {} ended the process {aborts} times", polled.key));
        }
        self.die_in(false, Some((shard, polled)));
    }

    fn die_in(&mut self, power: bool, guilty: Option<(usize, Polled)>) {
        // What ended it may have been among others that would have: nobody dies twice.
        if self.worker.is_none() {
            return;
        }
        self.note("die", None, u64::from(power));
        self.leave_pages(power, guilty);
        self.worker = None;
        self.hang_up();
        self.works.clear();
        self.at_work.iter_mut().for_each(std::collections::BTreeMap::clear);
        for disk in &mut self.disks {
            disk.crash(&mut self.rng, power);
        }
        let wait_us = self.rng.range(1_000, 3 * SECOND);
        self.at(wait_us, Happening::Start);
    }

    /// What each shard's page names when the process dies: the step that ended it, or one that happened to be polled then. A
    /// power loss takes the pages with it.
    fn leave_pages(&mut self, power: bool, guilty: Option<(usize, Polled)>) {
        for shard in 0..2 {
            let at_work: Vec<Polled> = self.works.values().filter(|work| work.shard == shard).map(|work| work.polled).collect();
            let named = match guilty {
                Some((of, polled)) if of == shard => Some(polled),
                _ if at_work.is_empty() || !self.rng.chance(300) => None,
                _ => Some(self.rng.pick(&at_work)),
            };
            // A life that polled nothing leaves the page as it found it.
            if self.polled_any[shard] {
                self.pages[shard] = named.map(|polled| (polled, self.boot));
            }
            if let Some((polled, boot)) = self.pages[shard] {
                self.truth.deaths.insert((polled.key, boot));
            }
            if power
                && let Some((polled, boot)) = self.pages[shard].take()
                && !self.truth.struck.contains(&(polled.key, boot))
                && let Some(aborts) = self.aborts.get_mut(&self.truth.life(polled.key))
            {
                // Nobody can know of that death any more.
                *aborts = aborts.saturating_sub(1);
            }
        }
    }

    fn route(&mut self) {
        if self.routed >= self.plan.jobs {
            return;
        }
        self.publish();
        let mean_us = self.plan.span_us / u64::from(self.plan.jobs);
        let wait_us = self.rng.around(mean_us);
        self.at(wait_us, Happening::Route);
    }

    fn publish(&mut self) {
        self.routed += 1;
        let rates = self.plan.rates;
        let recent = self.rng.below(self.history.len().min(60) as u64) as usize;
        let old = self.history.iter().rev().nth(recent).copied().filter(|job| job.kind == JobKind::Work);
        let fresh = self.fresh_job();
        let job = match old {
            Some(old) if self.rng.chance(rates.other_assignment) => {
                self.count("same key, other assignment");
                Job { assignment: fresh.assignment, way: fresh.way, budget_ms: fresh.budget_ms, ..old }
            }
            Some(old) if self.rng.chance(rates.other_content) => {
                self.count("same key, other content");
                let assignment = if self.rng.chance(500) { old.assignment } else { fresh.assignment };
                Job { assignment, content: old.content.wrapping_add(1), way: fresh.way, ..old }
            }
            // One that goes by flow coordinates is nobody's to tell from a refused message: then its assignment has two ends.
            Some(old) if !old.placed && self.rng.chance(rates.refused_again) => {
                self.count("same assignment, refused");
                Job { kind: JobKind::Refusal, way: fresh.way, ..old }
            }
            _ => fresh,
        };
        self.history.push(job);
        if job.kind == JobKind::Work {
            self.keys.push(job.key());
        }
        if job.asks && job.kind == JobKind::Work {
            self.people_speak(job);
        }
        let body = job.encode();
        self.at(0, Happening::Store { body: body.clone(), way: job.way });
        while self.rng.chance(rates.router_duplicate) {
            self.count("router duplicate");
            let later_us = self.rng.around(5 * SECOND);
            self.at(later_us, Happening::Store { body: body.clone(), way: job.way });
        }
    }

    fn fresh_job(&mut self) -> Job {
        let rng = &mut self.rng;
        let rates = self.plan.rates;
        let weights = self.plan.class_weights;
        let mut at = rng.below(weights.iter().sum());
        let class = weights.iter().position(|weight| {
            let here = at < *weight;
            at = at.saturating_sub(*weight);
            here
        });
        let kind = if rng.chance(rates.refusal) {
            JobKind::Refusal
        } else if rng.chance(rates.garbage) {
            JobKind::Garbage
        } else {
            JobKind::Work
        };
        let tenant = rng.below(self.plan.tenants) as u8;
        let number = self.routed;
        let mut not_after_ms = 0;
        if rng.chance(rates.expired) {
            not_after_ms = crate::plan::EPOCH_MS + self.now_us / 1000 + rng.range(0, 3_000) - 1_000;
        }
        if rng.chance(rates.far) {
            not_after_ms = crate::plan::EPOCH_MS + self.now_us / 1000 + rng.range(6, 18) * 60_000;
        }
        let shares = self.plan.shares;
        let way = match rng.below(1000) {
            // A process that reads a file has no edge.
            _ if shares.line => Way::Line,
            at if at < shares.core => Way::Core,
            at if at < shares.core + shares.call => Way::Call,
            _ => Way::Stream,
        };
        let poison = match rng.chance(rates.poison) {
            true => rng.pick(&[Poison::AtOnce, Poison::Later]),
            false => Poison::No,
        };
        let asks = kind == JobKind::Work && u64::from(number.wrapping_mul(2_654_435_761) >> 8) % 1000 < self.plan.asking;
        let class = if asks { Some(0) } else { class };
        Job {
            kind,
            poison: if asks { Poison::No } else { poison },
            way,
            asks,
            placed: !rng.chance(rates.unplaced),
            ceiling: if rng.chance(rates.ceiling) { rng.range(1, 4) as u8 } else { 0 },
            tenant,
            step: number,
            assignment: number,
            content: 0,
            class: class.unwrap_or(0) as u8 + 1,
            priority: rng.below(101) as u8,
            tries: rng.range(1, 4) as u8,
            backoff_ms: rng.range(5, 800) as u32,
            budget_ms: if rng.chance(200) { rng.range(50, 1_500) } else { rng.range(2_000, 20_000) } as u32,
            not_after_ms,
            padding: rng.range(10, 300) as u16,
        }
    }

    /// Some of those who are asked speak, and some who are not; now and then the same one twice.
    fn people_speak(&mut self, job: Job) {
        let mut aside = self.rng.clone();
        for _ in 0..aside.below(5) {
            let actor = aside.pick(&["ann", "ben", "cyd", "eve"]);
            let (wait_us, approve) = (aside.range(10_000, 24 * SECOND), aside.chance(750));
            self.at(wait_us, Happening::Say { job, actor, approve });
        }
    }

    fn store(&mut self, body: bytes::Bytes, way: Way) {
        let boot = self.boot;
        match way {
            Way::Stream => {
                let now_ms = self.true_ms();
                let sequence = self.server.store(body, now_ms);
                self.note("stored", None, sequence);
            }
            Way::Core => {
                let wait_us = self.rng.range(100, 2_000);
                if !self.partitioned {
                    self.at(wait_us, Happening::ArriveCore { boot, body });
                }
            }
            // Nobody to connect to: a little later.
            Way::Call | Way::Line if self.worker.is_none() => self.at(SECOND, Happening::Store { body, way }),
            Way::Call | Way::Line => {
                let wait_us = self.rng.range(20, 500);
                self.at(wait_us, Happening::Ask { boot, body, way });
            }
        }
    }
}
