//! What really stands: the durable frames of both journals and the letters the server stored, as an outside observer has them.

use std::collections::{BTreeMap, BTreeSet};

use shards::audit::outcome_digest;
use shards::gate::Vote;
use shards::ids::{AskerId, Fingerprint, Key, Lsn};
use shards::journal::{Fact, Frame, SOURCE_STREAM};
use shards::limits::STRIKES_MAX;
use shards::outcome::{Code, Effected, Outcome, Status};
use shards::step::EffectClass;

use crate::job::{Job, SALT};
use crate::server::MessageId;

/// A durable acceptance.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    pub lsn: Lsn,
    pub fingerprint: Fingerprint,
    pub asker: AskerId,
    pub class: EffectClass,
    pub deadline_ms: u64,
    pub dead_letter: MessageId,
    /// It waits for people.
    pub asks: bool,
    pub boot: u32,
    /// Under which owner's epoch, where a stream holds the message.
    pub streamed_in: Option<u32>,
}

/// A durable outcome or answer.
#[derive(Clone, Copy, Debug)]
pub struct Decided {
    pub lsn: Lsn,
    pub fingerprint: Fingerprint,
    pub asker: AskerId,
    pub digest: [u8; 32],
    pub status: Status,
    pub effect: Effected,
    pub code: Option<Code>,
    /// Which life of ours decided it.
    pub boot: u32,
    /// Its dead letter's id, where it owes one.
    pub dead_letter: Option<MessageId>,
}

/// All that is durable about one key.
#[derive(Clone, Debug, Default)]
pub struct Story {
    pub shard: usize,
    pub taken: Option<Taken>,
    pub result: Option<Decided>,
    /// An answer, or a message put aside.
    pub answer: Option<Decided>,
    /// The newest try whose start is durable.
    pub started: u32,
    /// How often it was forgotten and came again as something new.
    pub lives: u32,
    /// The newest try that is durably due after a failed one.
    pub retry: u32,
    /// The frames of its strikes, as long as it has no outcome.
    pub strikes: Vec<Lsn>,
    /// What people have durably said to it.
    pub votes: Vec<Vote>,
    /// It is another's to finish, unless it comes again.
    pub released: bool,
    /// The frame that says so; forgotten as any other.
    pub released_at: Option<Lsn>,
}

/// A result as the server stored it.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    pub digest: [u8; 32],
    pub shard: usize,
    pub lsn: Lsn,
}

/// The observer.
#[derive(Debug, Default)]
pub struct Truth {
    pub stories: BTreeMap<Key, Story>,
    pub told: BTreeMap<AskerId, Told>,
    /// The same for those who were told by a call or on a line.
    pub told_directly: BTreeMap<AskerId, Told>,
    /// Steps that must never run twice and that another worker has run.
    pub unsafe_elsewhere: BTreeSet<Key>,
    pub dead_letters: BTreeSet<MessageId>,
    /// Askers whose step came too late, for good: what comes later under the same key may have another asker.
    pub expired: BTreeSet<AskerId>,
    /// Askers that were told "accepted", and of which key.
    pub promised: BTreeMap<AskerId, Key>,
    /// Core messages that a shard took in its present life: nobody but that life can answer them.
    pub heard: Vec<(AskerId, Key, MessageId)>,
    /// Keys that a page named when a life ended, and that life.
    pub deaths: BTreeSet<(Key, u32)>,
    /// Those that were made strikes.
    pub struck: BTreeSet<(Key, u32)>,
    /// Floors that have been written, by shard.
    pub floors: [Lsn; 2],
    /// Watermarks that are durable: what is accepted behind them was accepted knowing them.
    pub watermarks: [u64; 2],
    /// Effects of lives that left no trace of the step: nobody can know of them.
    pub ghosts: BTreeSet<Key>,
    /// Askers that another owner has answered.
    pub elsewhere: BTreeSet<AskerId>,
    /// Steps that another owner has done, and our newest life before that.
    pub done_elsewhere: BTreeMap<Key, u32>,
    /// Where workers share: steps that we claimed, and the life that asked last. From then on nothing excuses "none".
    pub asked: BTreeMap<Key, u32>,
    /// Outcomes that another owner's may have come before: told only if the stream asks, and forgotten as any other.
    pub untold: BTreeSet<Key>,
    pub frames: u64,
}

/// The id of the dead letter of this message.
pub fn dead_letter_id(subject: &str, body: &[u8]) -> MessageId {
    (b'd', SALT.quarantine_key(subject, &[], body).0, 0)
}

impl Truth {
    /// A frame became durable. The errors are violations of I1, I2, I7 and of expiry.
    pub fn durable(&mut self, shard: usize, lsn: Lsn, frame: &Frame, boot: u32) -> Result<(), String> {
        self.frames += 1;
        let floor = self.floors[shard];
        let story = self.stories.entry(frame.key).or_default();
        story.shard = shard;
        match &frame.fact {
            Fact::Accepted(fact) => {
                let dead_letter = dead_letter_id(&fact.message.subject, &fact.message.body);
                if let Some(old) = &story.result
                    && old.lsn >= floor
                {
                    return Err(format!("I2: {} accepted again at {lsn:?}, its outcome stands at {:?}", frame.key, old.lsn));
                }
                if let Some(old) = &mut story.taken
                    && story.result.is_none()
                {
                    // Carried forward: the same once more, and nothing of its story is over.
                    let same = (old.fingerprint, old.asker, old.class, old.deadline_ms, old.dead_letter)
                        == (fact.fingerprint, fact.asker, fact.effect, fact.deadline_ms, dead_letter);
                    if !same {
                        return Err(format!("I1: {} accepted twice, at {:?} and {lsn:?}", frame.key, old.lsn));
                    }
                    old.lsn = lsn;
                    old.streamed_in = (fact.message.source == SOURCE_STREAM).then_some(frame.owner_epoch);
                    return Ok(());
                }
                let budget_ms = Job::decode(&fact.message.body).budget();
                let at_ms = fact.deadline_ms - budget_ms;
                if at_ms > fact.not_after_ms {
                    return Err(format!("expiry: {} accepted {} ms after its time", frame.key, at_ms - fact.not_after_ms));
                }
                if fact.message.source == 3 && fact.message.since_ms <= self.watermarks[shard] {
                    return Err(format!("expiry: {} accepted below the watermark", frame.key));
                }
                *story = Story {
                    shard,
                    lives: story.lives + u32::from(!story.released || story.released_at.is_some_and(|at| at < floor)),
                    strikes: std::mem::take(&mut story.strikes),
                    answer: story.answer,
                    taken: Some(Taken {
                        lsn,
                        fingerprint: fact.fingerprint,
                        asker: fact.asker,
                        class: fact.effect,
                        deadline_ms: fact.deadline_ms,
                        dead_letter,
                        asks: Job::decode(&fact.message.body).asks,
                        boot,
                        streamed_in: (fact.message.source == SOURCE_STREAM).then_some(frame.owner_epoch),
                    }),
                    ..Story::default()
                };
            }
            Fact::Started { try_number, .. } => story.started = *try_number,
            Fact::RetryAt { try_number, .. } => story.retry = *try_number,
            Fact::Result(fact) => {
                let Some(taken) = story.taken else {
                    return Err(format!("I1: {} has an outcome at {lsn:?} and was never accepted", frame.key));
                };
                if let Some(old) = &story.result {
                    return Err(format!("I2: {} has two outcomes, at {:?} and {lsn:?}", frame.key, old.lsn));
                }
                if taken.fingerprint != fact.fingerprint {
                    return Err(format!("I7: {} was accepted with one content and decided with another", frame.key));
                }
                let strikes = std::mem::take(&mut story.strikes).len();
                let poison = fact.outcome.fault.as_ref().is_some_and(|fault| fault.code == Code::Poison);
                if poison != (strikes >= STRIKES_MAX as usize) {
                    return Err(format!("poison: {} has {strikes} strikes and ends as {:?}", frame.key, fact.outcome.fault));
                }
                every_word_counts(frame.key, &story.votes, &fact.outcome)?;
                let dead_letter = fact.outcome.is_dead().then_some(taken.dead_letter);
                story.result = Some(decided(lsn, fact.fingerprint, taken.asker, &fact.outcome, dead_letter));
            }
            Fact::Answer(fact) | Fact::Quarantined(fact) => {
                if let Some(old) = &story.answer
                    && old.lsn >= floor
                {
                    return Err(format!("I2: {} answered twice, at {:?} and {lsn:?}", frame.key, old.lsn));
                }
                let owes = fact.of.is_none() && fact.outcome.is_dead();
                let dead_letter = owes.then(|| dead_letter_id(&fact.message.subject, &fact.message.body));
                let answer = decided(lsn, fact.fingerprint, fact.asker, &fact.outcome, dead_letter);
                story.answer = Some(answer);
                if answer.code == Some(Code::Expired) {
                    self.expired.insert(answer.asker);
                }
            }
            Fact::Signal(vote) => {
                if story.result.is_some() {
                    return Err(format!("people: {} is spoken to after its outcome", frame.key));
                }
                if !story.votes.contains(vote) {
                    story.votes.push(vote.clone());
                }
            }
            Fact::Released { .. } => {
                if !story.released || story.result.is_some() {
                    return Err(format!("ownership: {} is released and was not open", frame.key));
                }
                story.released_at = Some(lsn);
            }
            Fact::Mark { watermark_ms, .. } => {
                self.watermarks[shard] = self.watermarks[shard].max(*watermark_ms);
            }
            Fact::Struck { strikes, boot, .. } => {
                if !self.deaths.contains(&(frame.key, *boot)) {
                    return Err(format!("poison: {} has a strike for life {boot}, which did not end in it", frame.key));
                }
                if !self.struck.insert((frame.key, *boot)) {
                    // Carried forward.
                    let count = story.strikes.len();
                    if let Some(newest) = story.strikes.last_mut()
                        && count == *strikes as usize
                        && story.taken.is_some()
                    {
                        *newest = lsn;
                        return Ok(());
                    }
                    return Err(format!("poison: {} has two strikes for life {boot}", frame.key));
                }
                if story.result.is_some_and(|result| result.lsn >= floor) {
                    return Err(format!("poison: {} has a strike after its outcome", frame.key));
                }
                story.strikes.push(lsn);
                if story.strikes.len() != *strikes as usize {
                    let really = story.strikes.len();
                    return Err(format!("poison: {} has {really} strikes and its frame says {strikes}", frame.key));
                }
            }
            Fact::Published { .. } | Fact::Unknown(_) => {}
        }
        Ok(())
    }

    /// What was open is another's now, before that is durable here: the machine acts on it at once.
    pub fn released(&mut self, key: Key) {
        let story = self.stories.entry(key).or_default();
        (story.taken, story.started, story.retry, story.released) = (None, 0, 0, true);
    }

    /// A shard has booted: what it had written and not synced is gone. Gives the strikes that went with their frames.
    pub fn booted(&mut self, shard: usize, floor: Lsn, watermark_ms: u64) -> Vec<(Key, u32)> {
        self.floors[shard] = floor;
        self.watermarks[shard] = watermark_ms;
        let gone = |story: &Story| story.shard == shard && story.strikes.last().is_some_and(|newest| *newest < floor);
        let stories = self.stories.iter_mut().filter(|(_, story)| gone(story));
        stories.map(|(key, story)| (*key, std::mem::take(&mut story.strikes).len() as u32)).collect()
    }

    /// The machine has written (not yet synced) a mark.
    pub fn marked(&mut self, shard: usize, floor: Lsn) {
        self.floors[shard] = self.floors[shard].max(floor);
    }

    /// A key, and how often it was forgotten and came again: what is counted for ever is counted of this. One that the journal
    /// was allowed to forget begins its next life when it comes, not only once that is durable.
    pub fn life(&self, key: Key) -> (Key, u32) {
        let lives = self.stories.get(&key).map_or(0, |story| story.lives);
        (key, lives + u32::from(lives > 0 && self.remembered(&key).is_none()))
    }

    /// A key's story, unless the journal was allowed to forget it.
    pub fn remembered(&self, key: &Key) -> Option<&Story> {
        let story = self.stories.get(key)?;
        let forgotten = story.result.is_some_and(|result| result.lsn < self.floors[story.shard]);
        (!forgotten).then_some(story)
    }

    /// A result arrived at the server and was new to it.
    pub fn tell(&mut self, asker: AskerId, told: Told) -> Result<(), String> {
        if self.stands(asker, told)? {
            self.told.insert(asker, told);
        }
        Ok(())
    }

    /// Somebody who waits by a call or a line was told.
    pub fn tell_directly(&mut self, asker: AskerId, told: Told) -> Result<(), String> {
        if self.stands(asker, told)? {
            self.told_directly.insert(asker, told);
        }
        Ok(())
    }

    /// Whether this is what the asker has been told so far, or the first.
    fn stands(&self, asker: AskerId, told: Told) -> Result<bool, String> {
        let before = [&self.told, &self.told_directly].into_iter().filter_map(|told| told.get(&asker));
        if let Some(old) = before.max_by_key(|old| old.lsn)
            && old.digest != told.digest
            && old.lsn >= self.floors[old.shard]
        {
            // A letter of a forgotten life that was long on its way: the journal no longer vouches for it.
            if told.lsn < self.floors[told.shard] {
                return Ok(false);
            }
            return Err(format!("same asker, same outcome: {asker} was told of {:?}, now of {:?}", old.lsn, told.lsn));
        }
        Ok(true)
    }
}

fn decided(lsn: Lsn, fingerprint: Fingerprint, asker: AskerId, outcome: &Outcome, dead_letter: Option<MessageId>) -> Decided {
    Decided {
        lsn,
        fingerprint,
        asker,
        digest: outcome_digest(outcome),
        status: outcome.status,
        effect: outcome.effect,
        boot: outcome.boot,
        code: outcome.fault.as_ref().map(|fault| fault.code),
        dead_letter,
    }
}

/// A decision holds every word that was durable before it, and is not against them.
fn every_word_counts(key: Key, votes: &[Vote], outcome: &Outcome) -> Result<(), String> {
    let told = outcome.fault.as_ref().map_or(&outcome.outputs, |fault| &fault.details);
    let Ok(told) = std::str::from_utf8(told) else { return Ok(()) };
    let Some(rest) = told.strip_prefix("{\"approved\":") else { return Ok(()) };
    let (approved, overdue) = (rest.starts_with("true"), told.contains("\"overdue\":true"));
    let lost = votes.iter().find(|vote| !told.contains(&format!("\"actor\":\"{}\"", vote.actor)));
    let against = votes.iter().any(|vote| !vote.approve);
    match lost {
        Some(vote) => Err(format!("people: {key} is decided without the word of {}: {told}", vote.actor)),
        None if approved && against => Err(format!("people: {key} is approved against a word: {told}")),
        None if !overdue && (votes.is_empty() || (!approved && !against)) => {
            Err(format!("people: {key} is decided by nobody: {told}"))
        }
        None => Ok(()),
    }
}
