//! The edge: pulls what the shards have room for, sends their letters until the server has confirmed them, and settles.

use std::rc::Rc;

use bytes::Bytes;
use shards::audit::outcome_digest;
use shards::event::{Claimant, Event, Letter, Post};
use shards::ids::{AskerId, Key, Lsn, Text, Ticket};
use shards::outcome::{Code, Status};
use shards::step::{Arrival, Origin, StreamToken};

use crate::job::Job;
use crate::oracles;
use crate::plan::SECOND;
use crate::server::{Claim, MessageId};
use crate::truth::{Told, dead_letter_id};
use crate::worker::Worker;
use crate::world::{Happening, World};

const RESEND_US: u64 = 5 * SECOND;

/// A letter at the edge.
#[derive(Debug)]
pub struct Parcel {
    shard: usize,
    confirm: Option<Ticket>,
    id: MessageId,
    told: Option<(AskerId, Told)>,
    ok: bool,
}

impl World {
    /// The edge asks for as much as the shards have room for.
    pub fn pull(&mut self) {
        let boot = self.boot;
        let now_us = self.now_us;
        let Some(worker) = self.worker.as_ref() else { return };
        let credit = worker.seats.iter().map(|seat| seat.shard.free_slots()).min().unwrap_or(0).min(100) as usize;
        if !self.partitioned && credit > 0 {
            for (sequence, delivered) in self.server.pull(now_us, credit) {
                self.handed_out = self.handed_out.max(sequence);
                let wait_us = self.rng.range(50, 5_000);
                self.at(wait_us, Happening::Arrive { boot, sequence, delivered });
                if !self.quiet && self.rng.chance(self.plan.rates.deliver_twice) {
                    self.count("delivered twice");
                    let wait_us = self.rng.around(SECOND);
                    self.at(wait_us, Happening::Arrive { boot, sequence, delivered: delivered + 1 });
                }
            }
        }
        let mut next_us = self.rng.range(20_000, 200_000);
        if self.quiet {
            let due_us = self.server.next_due_us().unwrap_or(0).saturating_sub(now_us);
            next_us = due_us.clamp(50_000, 5 * SECOND);
        }
        self.at(next_us, Happening::Pull { boot });
    }

    pub fn arrive(&mut self, sequence: u64, delivered: u32) {
        let kept = &self.server.stream[sequence as usize - 1];
        let stored_ms = kept.stored_ms;
        let token = StreamToken {
            // Of two streams; the numbers of one world's messages are counted over both.
            consumer: (sequence % 2) as u16,
            sequence,
            stored_ms,
            delivered,
            reply: Text::new(),
            inherited: sequence <= self.inherited,
        };
        let body = kept.body.clone();
        self.watch.arrived(sequence);
        let arrival = self.arrival(Origin::Stream(token), body);
        self.take(arrival);
    }

    pub fn arrive_core(&mut self, body: Bytes) {
        let mut arrival = self.arrival(Origin::Core, body);
        if self.rng.chance(self.plan.rates.inbox) {
            arrival.delivery.reply = Some(Text::from(format!("_INBOX.{}", self.report.happenings)));
        }
        let id = dead_letter_id(&arrival.delivery.subject, &arrival.delivery.body);
        if let Some(asker) = &arrival.asker {
            self.truth.heard.push((asker.id, arrival.key, id));
        }
        self.take(arrival);
    }

    pub fn take(&mut self, arrival: Arrival) {
        let shard = usize::from(Job::decode(&arrival.delivery.body).shard());
        let sequence = arrival.token().map_or(0, |token| token.sequence);
        self.note("arrived", Some(arrival.key), sequence);
        self.superseded.remove(&arrival.key);
        let passed_on = arrival.token().is_some_and(|token| token.inherited || (self.plan.shared && token.delivered > 1));
        self.sent_anew(arrival.key, passed_on);
        self.met.insert(arrival.key);
        self.apply(shard, Event::Arrived(Rc::new(arrival)));
    }

    /// Renders a letter and hands it to the edge.
    pub fn post(&mut self, shard: usize, post: &Post) {
        let arrival = &post.arrival;
        let found = match oracles::i3_nothing_leaves_before_it_is_durable(&self.truth, arrival, &post.letter) {
            Ok(found) => found,
            Err(violation) => return self.violate(violation),
        };
        if self.tell_who_waits(shard, post, found) {
            return;
        }
        let asker = arrival.asker.as_ref().map_or(AskerId([0; 16]), |asker| asker.id);
        let mut parcel = Parcel { shard, confirm: post.confirm, id: (b'a', asker.0, 0), told: None, ok: false };
        match &post.letter {
            Letter::Ack { accepted, .. } => {
                if *accepted {
                    self.truth.promised.insert(asker, arrival.key);
                }
                return self.note("post ack", Some(arrival.key), u64::from(*accepted));
            }
            Letter::Lifecycle { stage, sequence, .. } => {
                return self.note("post event", Some(arrival.key), *stage as u64 | u64::from(*sequence) << 8);
            }
            // No block here says anything while it runs.
            Letter::Progress { .. } | Letter::ApprovalNeeded { .. } | Letter::Copy { .. } | Letter::NoCopy => return,
            Letter::Result { outcome, .. } => {
                self.note("post result", Some(arrival.key), outcome.status as u64);
                if outcome.fault.as_ref().is_some_and(|fault| fault.code == Code::Expired) {
                    // On NATS nobody waits for these any more: there is no such letter, and nothing to confirm.
                    let boot = self.boot;
                    if let Some(ticket) = post.confirm {
                        self.at(1, Happening::Confirm { boot, shard, ticket });
                    }
                    return;
                }
                parcel.id.0 = b'r';
                parcel.ok = matches!(outcome.status, Status::Ok | Status::Cancelled);
                let lsn = found.map_or(Lsn(0), |found| found.lsn);
                parcel.told = Some((asker, Told { digest: outcome_digest(outcome), shard, lsn }));
            }
            Letter::Reply(_) => return self.violate(format!("{}: nobody waits for this reply", arrival.key)),
            Letter::DeadLetter { outcome, .. } => {
                self.note("post dead letter", Some(arrival.key), outcome.status as u64);
                parcel.id = dead_letter_id(&arrival.delivery.subject, &arrival.delivery.body);
            }
        }
        let Some(worker) = self.worker.as_mut() else { return };
        let number = worker.outbox.last_key_value().map_or(0, |(number, _)| number + 1).max(self.report.happenings << 8);
        worker.outbox.insert(number, parcel);
        self.send(number);
    }

    /// Sends a letter, once more if it must be.
    pub fn send(&mut self, post: u64) {
        let boot = self.boot;
        if self.worker.as_ref().is_none_or(|worker| !worker.outbox.contains_key(&post)) {
            return;
        }
        let wait_us = self.rng.range(50, 3_000);
        self.at(wait_us, Happening::Parcel { boot, post });
        self.at(RESEND_US, Happening::Resend { boot, post });
    }

    /// A letter reaches the server.
    pub fn parcel(&mut self, post: u64) {
        let (boot, now_us) = (self.boot, self.now_us);
        let Some(parcel) = self.worker.as_ref().and_then(|worker| worker.outbox.get(&post)) else { return };
        if self.partitioned {
            return;
        }
        let (id, told) = (parcel.id, parcel.told);
        let new = self.server.publish(now_us, id);
        self.note("stored letter", None, u64::from(id.0) | u64::from(new) << 8);
        if new {
            match told {
                Some((asker, told)) => {
                    let verdict = self.truth.tell(asker, told);
                    self.check(verdict);
                }
                None => {
                    self.truth.dead_letters.insert(id);
                }
            }
        }
        if self.rng.chance(self.plan.rates.pub_ack_lost) && !self.quiet {
            return self.count("PubAck lost");
        }
        let mut wait_us = self.rng.range(50, 3_000);
        if self.rng.chance(self.plan.rates.pub_ack_late) && !self.quiet {
            self.count("PubAck late");
            wait_us = self.rng.range(1, 8) * SECOND;
        }
        self.at(wait_us, Happening::PubAck { boot, post });
    }

    /// A claim reaches the server, which keeps the first; without an answer it is sent again.
    pub fn claim(&mut self, boot: u32, shard: usize, ticket: Ticket, key: Key, accepted: Lsn) {
        let waits = |worker: &Worker| worker.claims.contains(&(shard, ticket.slot, ticket.generation));
        if boot == self.boot && self.worker.as_ref().is_some_and(waits) {
            self.at(RESEND_US, Happening::Claim { boot, shard, ticket, key, accepted });
        }
        if self.partitioned {
            return;
        }
        let by = self.server.claim(key, Claim::Ours(shard, accepted));
        self.note("claim", Some(key), by as u64);
        if self.rng.chance(self.plan.rates.pub_ack_lost) && !self.quiet {
            return self.count("claim's answer lost");
        }
        let wait_us = self.rng.range(50, 3_000);
        self.at(wait_us, Happening::Claimed { boot, shard, ticket, by });
    }

    /// Its answer reaches the shard.
    pub fn claimed(&mut self, shard: usize, ticket: Ticket, by: Claimant) {
        let Some(worker) = self.worker.as_mut() else { return };
        if worker.claims.remove(&(shard, ticket.slot, ticket.generation)) {
            if !self.quiet && self.rng.chance(self.plan.rates.stale_report) {
                self.count("claim answered twice");
                self.apply(shard, Event::Claimed { ticket, by });
            }
            self.apply(shard, Event::Claimed { ticket, by });
        }
    }

    pub fn pub_ack(&mut self, post: u64) {
        let boot = self.boot;
        let Some(parcel) = self.worker.as_mut().and_then(|worker| worker.outbox.remove(&post)) else { return };
        let Some(ticket) = parcel.confirm else { return };
        let shard = parcel.shard;
        // A confirmation that comes again long after: the job it was for is gone. Only where one letter was all there was.
        if !self.quiet && parcel.ok && self.rng.chance(self.plan.rates.stale_report) {
            self.count("stale confirmation");
            let later_us = SECOND + self.rng.around(3 * SECOND);
            self.at(later_us, Happening::Confirm { boot, shard, ticket });
        }
        self.apply(shard, Event::Confirmed { ticket });
    }
}
