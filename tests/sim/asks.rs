//! Those who wait for an answer themselves: calls, lines of a file, and whoever says "stop". Each is told once, what is durable,
//! unless the process ends first; then it asks again or not, as clients do.

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use shards::audit::outcome_digest;
use shards::event::{Event, Letter, Post, Reply};
use shards::gate::Vote;
use shards::ids::{Fingerprint, Identity, Key, Lsn, Text};
use shards::limits::{CALLS_PER_KEY_MAX, DELIVERIES_PER_KEY_MAX};
use shards::outcome::{Code, Fault, Status};
use shards::step::{Arrival, Content, Notice, Origin, Source};

use crate::job::{Job, JobKind, SALT, Way};
use crate::plan::SECOND;
use crate::truth::{Decided, Story, Taken, Told, Truth};
use crate::world::{Happening, World};

/// Everybody who waits, by the number of the call or line.
#[derive(Debug, Default)]
pub struct Asks {
    asked: u64,
    waiters: BTreeMap<u64, Waiter>,
    notices: BTreeMap<u64, Said>,
}

#[derive(Debug)]
struct Waiter {
    boot: u32,
    key: Key,
    way: Way,
    body: Bytes,
    ended: bool,
}

/// A "stop" on its way.
#[derive(Debug)]
struct Said {
    boot: u32,
    job: Job,
    /// It names the step itself, not only an assignment.
    by_key: bool,
    /// What somebody says to a step that waits for people, where it is no "stop".
    word: Option<(&'static str, bool)>,
    replied: bool,
}

impl Asks {
    fn number(&mut self) -> u64 {
        self.asked += 1;
        self.asked
    }

    /// A process that did not end has told each of its calls and lines, and everybody who said "stop", exactly once (that it is
    /// not twice is seen when the second is told).
    pub fn everyone_who_waits_is_answered(&self, boot: u32) -> Result<(), String> {
        if let Some((number, waiter)) = self.waiters.iter().find(|(_, waiter)| waiter.boot == boot && !waiter.ended) {
            return Err(format!("unanswered: {:?} {number} asked for {} and was never told", waiter.way, waiter.key));
        }
        match self.notices.iter().find(|(_, said)| said.boot == boot && !said.replied) {
            None => Ok(()),
            Some((number, said)) => Err(format!("unanswered: notice {number} about {} was never replied to", said.job.key())),
        }
    }
}

impl World {
    /// A call or a line reaches the worker.
    pub fn ask(&mut self, body: Bytes, way: Way) {
        let number = self.asks.number();
        let origin = if way == Way::Call { Origin::Call(number) } else { Origin::Line(number) };
        let arrival = self.arrival(origin, body.clone());
        let waiter = Waiter { boot: self.boot, key: arrival.key, way, body, ended: false };
        self.asks.waiters.insert(number, waiter);
        self.take(arrival);
    }

    /// Tells who waits by a call or a line; false for letters that go another way.
    pub fn tell_who_waits(&mut self, shard: usize, post: &Post, found: Option<Decided>) -> bool {
        let arrival = &post.arrival;
        if let (Content::Notice(_), Letter::Reply(reply)) = (&arrival.content, &post.letter) {
            let verdict = self.replied(arrival, reply);
            self.check(verdict);
            return true;
        }
        let origin = &arrival.delivery.origin;
        let line = matches!(origin, Origin::Line(_) | Origin::Journal { source: Source::Line, .. });
        if !(line || arrival.by_call()) || matches!(post.letter, Letter::DeadLetter { .. } | Letter::Lifecycle { .. }) {
            return false;
        }
        let number = match origin {
            Origin::Call(number) | Origin::Line(number) => *number,
            Origin::Core | Origin::Stream(_) | Origin::Journal { .. } => 0,
        };
        let ends = matches!(post.letter, Letter::Result { .. } | Letter::Reply(_));
        self.note(if ends { "tell the end" } else { "tell accepted" }, Some(arrival.key), number);
        if let Some(waiter) = self.asks.waiters.get_mut(&number) {
            let (way, before) = (waiter.way, waiter.ended);
            waiter.ended |= ends;
            if before {
                self.violate(format!("{way:?} {number} for {} is told {:?} after its end", arrival.key, post.letter));
            }
        }
        // A line that is put aside is told so itself; that is no outcome of the assignment it names.
        if let (Letter::Result { outcome, .. }, Some(asker)) = (&post.letter, &arrival.asker)
            && outcome.status != Status::Quarantined
        {
            let lsn = found.map_or(Lsn(0), |found| found.lsn);
            let verdict = self.truth.tell_directly(asker.id, Told { digest: outcome_digest(outcome), shard, lsn });
            self.check(verdict);
        }
        if let Some(ticket) = post.confirm {
            let boot = self.boot;
            self.at(1, Happening::Confirm { boot, shard, ticket });
        }
        true
    }

    /// The process is gone: a file is read again, a client calls again if it cares.
    pub fn hang_up(&mut self) {
        let boot = self.boot;
        let open: Vec<(Bytes, Way)> = self
            .asks
            .waiters
            .values()
            .filter(|waiter| waiter.boot == boot && !waiter.ended)
            .map(|waiter| (waiter.body.clone(), waiter.way))
            .collect();
        for (body, way) in open {
            if way == Way::Line || self.rng.chance(600) {
                self.count("asked again after a crash");
                let wait_us = self.rng.range(SECOND, 5 * SECOND);
                self.at(wait_us, Happening::Store { body, way });
            }
        }
    }

    /// More than one step takes ask for the same one at once: by calls, or each in a message of its own.
    pub fn storm(&mut self) {
        let back = self.rng.below(self.history.len().min(8) as u64) as usize;
        let Some(job) = self.history.iter().rev().nth(back).copied().filter(|job| job.kind == JobKind::Work) else { return };
        let boot = self.boot;
        let way = if self.plan.shares.line { Way::Line } else { self.rng.pick(&[Way::Stream, Way::Core, Way::Call]) };
        let most = if way == Way::Call { CALLS_PER_KEY_MAX as u64 + 8 } else { DELIVERIES_PER_KEY_MAX as u64 + 6 };
        for number in 0..self.rng.range(2, most) {
            let wait_us = self.rng.range(20, 2_000);
            if way == Way::Call {
                self.at(wait_us, Happening::Ask { boot, body: job.encode(), way });
                continue;
            }
            // Some of them are of the same assignment.
            let assignment = if number % 3 == 0 { job.assignment } else { 10_000 + self.asks.number() as u32 };
            let job = Job { way, assignment, ..job };
            self.history.push(job);
            self.at(wait_us, Happening::Store { body: job.encode(), way });
        }
    }

    /// Somebody wants a recent step stopped: by its key or its assignment, on a subject or by a call, or by the worker's own hand.
    pub fn cancel(&mut self) {
        let back = self.rng.below(self.history.len().min(20) as u64) as usize;
        let Some(job) = self.history.iter().rev().nth(back).copied().filter(|job| job.kind == JobKind::Work) else { return };
        if self.worker.is_none() {
            return;
        }
        let (key, shard) = (job.key(), usize::from(job.shard()));
        self.note("cancel", Some(key), 0);
        if self.rng.chance(300) {
            self.count("cancel");
            return self.apply(shard, Event::Cancel { key });
        }
        self.count("cancel by notice");
        let number = self.asks.number();
        let by_key = self.rng.chance(600) || !job.placed;
        let assignment_id = (!by_key || self.rng.chance(500)).then(|| job.assignment_id());
        let content = match self.rng.chance(50) {
            true => Notice::Refused(Fault::new(Code::InvalidInput, "It cannot be done.")),
            false => {
                let actor = self.rng.chance(500).then(|| Text::from_static("ann"));
                Notice::Cancel { assignment_id, actor, details: Bytes::from_static(b"{\"reason\":\"enough\"}") }
            }
        };
        let mut arrival =
            self.arrival(if self.rng.clone().chance(500) { Origin::Core } else { Origin::Call(number) }, job.encode());
        arrival.delivery.reply = Some(Text::from(number.to_string()));
        if !by_key {
            let (tenant, assignment) = (job.tenant_name(), job.assignment_id());
            arrival.key = SALT.key(Identity::Assignment { tenant: &tenant, assignment: &assignment });
        }
        arrival.fingerprint = Fingerprint([0; 32]);
        arrival.asker = None;
        arrival.content = Content::Notice(content);
        self.asks.notices.insert(number, Said { boot: self.boot, job, by_key, word: None, replied: false });
        self.apply(shard, Event::Arrived(Rc::new(arrival)));
    }

    /// Somebody says something to a step that may wait for people.
    pub fn say(&mut self, job: Job, actor: &'static str, approve: bool) {
        let (key, shard) = (job.key(), usize::from(job.shard()));
        self.note("say", Some(key), u64::from(approve));
        self.count("words of people");
        let number = self.asks.number();
        let empty = Text::new();
        let vote = Vote {
            actor: Text::from_static(actor),
            approve,
            comment: empty.clone(),
            id: empty.clone(),
            signed: false,
            plan: empty,
            at_ms: 0,
        };
        let mut arrival = self.arrival(Origin::Core, job.encode());
        arrival.delivery.reply = Some(Text::from(number.to_string()));
        arrival.fingerprint = Fingerprint([0; 32]);
        arrival.asker = None;
        arrival.content = Content::Notice(Notice::Signal { assignment_id: None, vote });
        let said = Said { boot: self.boot, job, by_key: true, word: Some((actor, approve)), replied: false };
        self.asks.notices.insert(number, said);
        self.apply(shard, Event::Arrived(Rc::new(arrival)));
    }

    /// What is said of a cancel is durable, and so.
    fn replied(&mut self, notice: &Arrival, reply: &Reply) -> Result<(), String> {
        let number = notice.delivery.reply.as_ref().and_then(|number| number.parse().ok()).unwrap_or(0);
        let Some(said) = self.asks.notices.get_mut(&number) else { return Err(format!("notice {number} was never given")) };
        if std::mem::replace(&mut said.replied, true) {
            return Err(format!("notice {number} about {} is replied to twice", said.job.key()));
        }
        let (job, by_key, word) = (said.job, said.by_key, said.word);
        let key = job.key();
        self.note("reply", Some(key), number);
        let ended = self.outcomes_about(&job);
        let story = self.truth.stories.get(&key);
        // An assignment finds the step that it asked for, and nobody else's.
        let asks = |taken: Taken| by_key || taken.asker == SALT.asker(key, &job.assignment_id());
        let heard = |actor: &str, approve: bool| {
            story.is_some_and(|story| story.votes.iter().any(|vote| *vote.actor == *actor && vote.approve == approve))
        };
        match (reply, word) {
            (Reply::Noted, Some((actor, approve))) if heard(actor, approve) => return Ok(()),
            (Reply::Heard(first), Some((actor, _))) if first.actor == actor && heard(actor, first.approve) => return Ok(()),
            (Reply::Decided(outcome), Some(_)) if ended.contains(&outcome.status) => return Ok(()),
            (Reply::Refused(_), Some(_)) => return Ok(()),
            (Reply::Unknown, _) | (_, None) => {}
            (reply, Some(word)) => {
                return Err(format!("people: {word:?} of {key} is replied {reply:?}, and that is not durable"));
            }
        }
        match reply {
            Reply::Cancelled if !ended.contains(&Status::Cancelled) => {
                Err(format!("cancel: {key} is said to be cancelled, durable is {ended:?}"))
            }
            Reply::Ended(status) if !ended.contains(status) => {
                Err(format!("cancel: {key} is said to have ended as {status:?}, durable is {ended:?}"))
            }
            Reply::Unknown if story.is_some_and(|story| story.result.is_none() && story.taken.is_some_and(asks)) => {
                Err(format!("cancel: {key} is said to be unknown, it is on its way"))
            }
            Reply::Unknown if by_key && self.truth.remembered(&key).is_some_and(|story| story.result.is_some()) => {
                Err(format!("cancel: {key} is said to be unknown, it ended as {ended:?}"))
            }
            Reply::Refused(_) if !matches!(notice.content, Content::Notice(Notice::Refused(_))) => {
                Err(format!("cancel: notice {number} about {key} is refused"))
            }
            Reply::Noted | Reply::Heard(_) | Reply::Decided(_) => Err(format!("notice {number} about {key} is heard as a word")),
            Reply::Cancelled | Reply::Ended(_) | Reply::Unknown | Reply::Refused(_) => Ok(()),
        }
    }

    /// What has durably become of a step, and of every assignment that asked for it.
    fn outcomes_about(&self, job: &Job) -> Vec<Status> {
        let stories = &self.truth.stories;
        let own = stories.get(&job.key()).and_then(|story| story.result);
        let same = |other: &&Job| (other.tenant, other.step) == (job.tenant, job.step);
        let answer = |other: &Job| stories.get(&SALT.answer_key(&other.tenant_name(), &other.assignment_id()))?.answer;
        let answers = self.history.iter().filter(same).filter_map(answer);
        own.into_iter().chain(answers).map(|decided| decided.status).collect()
    }
}

/// Where workers share: whatever another's claim let it do, ours does not say it did too.
pub fn workers_that_share_do_not_contradict(truth: &Truth) -> Result<(), String> {
    let contradicts = |story: &Story| story.result.is_some_and(|result| result.status == Status::Ok);
    let both = truth.unsafe_elsewhere.iter().find(|key| truth.stories.get(key).is_some_and(contradicts));
    match both {
        None => Ok(()),
        Some(key) => Err(format!("shared: {key} must never run twice, and both another worker and ours say that they did it")),
    }
}
