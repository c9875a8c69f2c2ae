//! Another worker that owns the stream for a while, between two lives of ours: it takes what is out, does some of it, and leaves
//! some of that unacked. It keeps its own promises, and nobody knows what its journal holds.

use bytes::Bytes;
use shards::event::Claimant;
use shards::ids::Key;
use shards::step::{Content, EffectClass, Origin, Settle};

use crate::job::{Job, Poison};
use crate::server::Claim;
use crate::truth::dead_letter_id;
use crate::world::{Happening, World};

impl World {
    /// Our worker is dead, and another has its time. What ours had open is no longer its own.
    pub fn another_owns(&mut self) {
        self.epoch += 1;
        self.since = self.epoch + 1;
        let reach = self.handed_out;
        let more = self.rng.below(20);
        let to = (reach + more).min(self.server.stream.len() as u64);
        for sequence in 1..=to {
            if self.server.is_open(sequence) && self.rng.chance(600) {
                self.handed_out = self.handed_out.max(sequence);
                self.another_takes(sequence, sequence <= reach);
            }
        }
        self.inherited = self.handed_out;
    }

    fn another_takes(&mut self, sequence: u64, inherited: bool) {
        let body: Bytes = self.server.stream[sequence as usize - 1].body.clone();
        if Job::decode(&body).poison != Poison::No {
            return;
        }
        let arrival = self.arrival(Origin::Core, body);
        let (key, fingerprint) = (arrival.key, arrival.fingerprint);
        if let Content::Work(work) = &arrival.content {
            let story = self.truth.stories.get(&key);
            // What came to us otherwise than by the stream is open here too: unless the stream hands its message on in time, nobody
            // tells us.
            let ours = story.is_some_and(|story| story.taken.is_some_and(|taken| taken.streamed_in.is_none()));
            match self.elsewhere.insert(key, fingerprint) {
                // It does not run other content under a key that it knows; nor is it asked here to know ours.
                Some(known) if known != fingerprint => {
                    self.elsewhere.insert(key, known);
                    return;
                }
                Some(_) => {}
                None if story.and_then(|story| story.taken).is_some_and(|taken| taken.fingerprint != fingerprint)
                    || story.and_then(|story| story.result).is_some_and(|result| result.fingerprint != fingerprint) =>
                {
                    self.elsewhere.remove(&key);
                    return;
                }
                // It does not run what an earlier owner may have run: INDETERMINATE.
                None if work.effect == EffectClass::Unsafe && (inherited || !self.plan.claims || !self.elsewhere_claims(key)) => {
                }
                None => {
                    self.note("elsewhere", Some(key), sequence);
                    // What nobody here has met is not known here. What has been met where workers share is decided here for itself:
                    // one outcome a worker is what is promised there.
                    if !self.plan.shared && !ours {
                        self.truth.done_elsewhere.insert(key, self.boot);
                    } else if ours || self.met.contains(&key) {
                        self.truth.done_elsewhere.insert(key, u32::MAX);
                    }
                    if work.effect == EffectClass::Unsafe {
                        self.truth.unsafe_elsewhere.insert(key);
                    }
                    self.ledger.apply(key, &fingerprint, work.effect);
                }
            }
        }
        self.count("done by another owner");
        if self.rng.chance(500) {
            if let Some(asker) = &arrival.asker {
                self.truth.elsewhere.insert(asker.id);
            }
            self.truth.dead_letters.insert(dead_letter_id(&arrival.delivery.subject, &arrival.delivery.body));
            let now_us = self.now_us;
            self.server.settle(now_us, sequence, Settle::Ack);
        }
    }

    /// Where workers share: another one takes what is due, keeps its own promises, and leaves some of it to be delivered again.
    pub fn neighbour_pulls(&mut self) {
        let now_us = self.now_us;
        if !self.partitioned {
            let most = self.rng.below(6) as usize;
            for (sequence, delivered) in self.server.pull(now_us, most) {
                self.handed_out = self.handed_out.max(sequence);
                self.another_takes(sequence, delivered > 1);
            }
        }
        let wait_us = self.rng.range(50_000, 400_000);
        if !self.quiet {
            self.at(wait_us, Happening::Neighbour);
        }
    }

    fn elsewhere_claims(&mut self, key: Key) -> bool {
        self.server.claim(key, Claim::Another) == Claimant::Ours
    }

    /// A message comes: what another did of its step, and nobody could see, is nobody's fault.
    pub fn sent_anew(&mut self, key: Key, inherited: bool) {
        if self.elsewhere.contains_key(&key) && !inherited {
            self.truth.ghosts.insert(key);
        }
    }

    /// A try starts: nothing of what another has had may start by itself.
    pub fn may_run(&mut self, key: Key) -> Result<(), String> {
        if self.superseded.contains(&key) {
            return Err(format!("ownership: {key} runs by itself though another has had it since"));
        }
        Ok(())
    }
}
