//! The machine as scripts of events: what a user of one shard would see.

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;

use super::{Shard, ShardSettings};
use crate::dedup::{Entry, Place};
use crate::event::{Chunk, DiskNews, Effect, Effects, Event, Hold, Letter, Past, Post};
use crate::fold::{Fold, Restored};
use crate::gate::Gate;
use crate::ids::{BlockId, Fingerprint, Identity, Key, Lsn, Now, Partition, Salt, Text, Ticket};
use crate::journal::view::Frames;
use crate::journal::{Fact, Frame, FrameView, decode};
use crate::limits::{COURTESY_MS, HUSH_MS_MAX, Limits, OnOverload};
use crate::outcome::{Code, Effected, Fault, Outcome, Status};
use crate::step::{
    Arrival, Asker, Content, Delivery, EffectClass, Lane, Needs, Origin, Profile, RetryPolicy, Settle, StreamToken, Work,
};

const SALT: Salt = Salt([1; 32]);
/// The epoch of ownership that every life here works under.
const EPOCH: u32 = 4;
const START_MS: u64 = 1_000_000_000;

/// One shard, its journal as frames, and what it did.
struct Bench {
    shard: Shard,
    boot: u32,
    limits: Limits,
    now: Now,
    frames: Vec<Vec<u8>>,
    did: Vec<Effect>,
    /// Where recovered steps first came from.
    source: crate::step::Source,
    /// Steps that must never run twice are claimed.
    claims: bool,
    /// What lies in key files.
    sealed: BTreeMap<Key, Entry>,
}

/// A step that a test sends.
#[derive(Clone)]
struct Step {
    key: Key,
    assignment: &'static str,
    content: u8,
    effect: EffectClass,
    origin: Origin,
    budget_ms: u64,
    not_after_ms: u64,
    tries_max: u32,
    /// A policy forbids it.
    denied: bool,
    /// It would do something else by now than is required.
    changed: bool,
    /// This worker knows no such block.
    unknown: bool,
    tenant: &'static str,
    needs: Needs,
    gate: Option<Rc<Gate>>,
}

fn step(name: &str) -> Step {
    Step {
        key: SALT.key(Identity::Assignment { tenant: "t", assignment: name }),
        assignment: "a",
        content: 1,
        effect: EffectClass::Pure,
        origin: delivery(1, 1),
        budget_ms: 10_000,
        not_after_ms: START_MS + 3_600_000,
        tries_max: 3,
        denied: false,
        changed: false,
        unknown: false,
        tenant: "t",
        needs: Needs::default(),
        gate: None,
    }
}

fn delivery(sequence: u64, delivered: u32) -> Origin {
    Origin::Stream(StreamToken { consumer: 0, sequence, stored_ms: START_MS, delivered, reply: Text::new(), inherited: false })
}

impl Step {
    fn by(self, assignment: &'static str) -> Step {
        Step { assignment, ..self }
    }
    fn content(self, content: u8) -> Step {
        Step { content, ..self }
    }
    fn effect(self, effect: EffectClass) -> Step {
        Step { effect, ..self }
    }
    fn denied(self) -> Step {
        Step { denied: true, ..self }
    }
    fn from(self, origin: Origin) -> Step {
        Step { origin, ..self }
    }
    fn of(self, tenant: &'static str) -> Step {
        Step { tenant, ..self }
    }
    fn needs(self, needs: Needs) -> Step {
        Step { needs, ..self }
    }
    fn arrival(&self, now: Now) -> Rc<Arrival> {
        let asker = Asker {
            id: SALT.asker(self.key, self.assignment),
            profile: Profile::Native,
            assignment_id: Text::from_static(self.assignment),
            request_id: Text::new(),
            trace_id: None,
            provider_id: Text::new(),
            job_type: Text::new(),
            run_id: None,
            flow_id: None,
            step_id: None,
            attempt: None,
        };
        let retry = RetryPolicy { tries_max: self.tries_max, backoff_ms: 100, backoff_ms_max: 1_000 };
        let work = Work {
            block: BlockId(0),
            kind: BlockId(0),
            effect: self.effect,
            inputs: Bytes::new(),
            priority: 50,
            budget_ms: self.budget_ms,
            not_after_ms: self.not_after_ms,
            retry,
            note: None,
            effect_ceiling: None,
            needs: self.needs,
            guardrails: Bytes::new(),
            cache: None,
            gate: self.gate.clone(),
            sandbox: false,
            denied: self.denied.then(|| Box::new(Fault::new(Code::PermissionDenied, "No."))),
            changed: self.changed.then(|| Box::new(Fault::new(Code::PermissionDenied, "No."))),
        };
        let content = match self.unknown {
            true => Content::Refusal(Fault::new(Code::UnknownJobType, "No.")),
            false => Content::Work(work),
        };
        let body = Bytes::from(vec![self.content, self.key.0[0], self.assignment.as_bytes()[0]]);
        Rc::new(Arrival {
            delivery: Delivery { origin: self.origin.clone(), subject: Text::new(), headers: Vec::new(), body, reply: None },
            tenant: Text::from_static(self.tenant),
            partition: Partition(0),
            key: self.key,
            fingerprint: Fingerprint([self.content; 32]),
            asker: Some(asker),
            content,
            received_ms: now.wall_ms,
            adopted: None,
        })
    }
}

impl Bench {
    fn new() -> Bench {
        Bench::with(Limits::default())
    }

    fn with(limits: Limits) -> Bench {
        let now = Now { mono_us: 0, wall_ms: START_MS };
        Bench {
            shard: shard(&limits, Lsn(1), 1),
            boot: 1,
            limits,
            now,
            frames: Vec::new(),
            did: Vec::new(),
            source: crate::step::Source::Stream,
            claims: false,
            sealed: BTreeMap::new(),
        }
    }

    fn apply(&mut self, event: Event) {
        let mut fx = Effects::default();
        self.shard.apply(self.now, event, &mut fx);
        self.frames.extend(Frames::new(&fx.log.bytes).map(|frame| frame.expect("just written").to_vec()));
        self.did.extend(fx.list);
        self.check_picture();
    }

    /// Whatever happens, the shard can say at any moment what a fold of its frames would come to.
    fn check_picture(&mut self) {
        let folded = self.fold();
        if let Some(difference) = crate::snapshot::difference(&self.shard.picture(), &folded) {
            panic!("a snapshot would be wrong: {difference}");
        }
        for entry in folded.known.entries() {
            match self.shard.known.get(&entry.key).map(|memory| memory.place) {
                Some(Place::Job(_)) => {}
                None if self.sealed.get(&entry.key) == Some(entry) => {}
                _ => assert_eq!(self.shard.known.get(&entry.key), Some(entry.memory()), "{}", entry.key),
            }
        }
    }

    fn fold(&self) -> Restored {
        let mut fold = Fold::default();
        for (index, raw) in self.frames.iter().enumerate() {
            fold.frame(Lsn(index as u64 + 1), &FrameView::parse(raw).expect("a frame")).expect("readable");
        }
        fold.finish()
    }

    fn send(&mut self, step: &Step) {
        let arrival = step.arrival(self.now);
        self.apply(Event::Arrived(arrival));
    }

    fn sync(&mut self) {
        let through = Lsn(self.frames.len() as u64);
        self.apply(Event::Durable { through });
    }

    fn wait_ms(&mut self, ms: u64) {
        self.now.mono_us += ms * 1000;
        self.now.wall_ms += ms;
        self.apply(Event::Tick);
    }

    fn end(&mut self, ticket: Ticket, verdict: crate::event::Verdict) {
        self.apply(Event::Ended { ticket, verdict, ran_us: 1 });
    }

    fn done(&mut self, ticket: Ticket) {
        self.end(ticket, crate::event::Verdict::Done(Bytes::from_static(b"{}")));
    }

    fn fail(&mut self, ticket: Ticket, code: Code, effect: Effected) {
        self.end(ticket, crate::event::Verdict::Failed(Fault::new(code, "No.").with_effect(effect)));
    }

    /// Everything that has been done since the last look.
    fn look(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.did)
    }

    /// The tries started since the last look; forgets everything else.
    fn runs(&mut self) -> Vec<(Ticket, u32)> {
        let run = |effect| match effect {
            Effect::Run { ticket, try_number, .. } => Some((ticket, try_number)),
            _ => None,
        };
        self.look().into_iter().filter_map(run).collect()
    }

    fn run(&mut self) -> Ticket {
        let runs = self.runs();
        assert_eq!(runs.len(), 1, "exactly one try starts");
        runs[0].0
    }

    /// Stores all letters on the other side, answers all probes, and says what results were told and what was settled.
    fn settle(&mut self) -> (Told, Settled) {
        let (mut told, mut settled) = (Vec::new(), Vec::new());
        for _ in 0..4 {
            self.sync();
            for effect in self.look() {
                match effect {
                    Effect::Post(post) => {
                        if let (Letter::Result { outcome, .. }, Some(asker)) = (&post.letter, &post.arrival.asker) {
                            told.push((asker.assignment_id.clone(), outcome.clone()));
                        }
                        if let Some(ticket) = post.confirm {
                            self.apply(Event::Confirmed { ticket });
                        }
                    }
                    Effect::Settle { token, how } => settled.push((token.sequence, how)),
                    Effect::Probe { key, lsn } => {
                        let found = outcome_of(&self.frame(lsn)).map(Rc::new);
                        self.apply(Event::Probed { key, found });
                    }
                    Effect::Run { .. }
                    | Effect::Claim { .. }
                    | Effect::Stop { .. }
                    | Effect::Prune { .. }
                    | Effect::WipePage { .. } => {}
                    Effect::Look { .. } | Effect::Seal(_) => {}
                }
            }
        }
        (told, settled)
    }

    fn frame(&self, lsn: Lsn) -> Frame {
        decode(&Bytes::from(self.frames[lsn.0 as usize - 1].clone())).expect("written by the codec")
    }

    fn outcomes(&self) -> Vec<Outcome> {
        (1..=self.frames.len() as u64).filter_map(|lsn| outcome_of(&self.frame(Lsn(lsn)))).collect()
    }

    /// The process dies with `kept` frames durable and starts again; the steps are what their messages decode to.
    fn restart(&mut self, kept: usize, steps: &[&Step]) {
        self.restart_after(kept, None, steps);
    }

    /// The same, and the steps first came so.
    fn restart_by(&mut self, kept: usize, source: crate::step::Source, steps: &[&Step]) {
        self.source = source;
        self.restart(kept, steps);
    }

    /// The same, and the page says that this step was being polled by the life with this number.
    fn restart_after(&mut self, kept: usize, polled: Option<(&Step, u32)>, steps: &[&Step]) {
        self.frames.truncate(kept);
        let restored = self.fold();
        let unfinished = restored.unfinished.clone();
        self.now.mono_us = 0;
        self.did.clear();
        self.boot += 1;
        let (events, copies) = (self.shard.settings.events, self.shard.settings.copies);
        self.shard = shard(&self.limits, Lsn(kept as u64 + 1), self.boot);
        (self.shard.settings.events, self.shard.settings.copies) = (events, copies);
        self.shard.settings.claims = self.claims;
        self.shard.restore(restored, &[], self.now);
        if let Some((step, boot)) = polled {
            self.apply(Event::Died { polled: step.key, partition: Partition(0), boot });
        }
        for one in unfinished {
            let names = |step: &&&Step| [step.key, SALT.answer_key(step.tenant, step.assignment)].contains(&one.key);
            let step = steps.iter().find(names).expect("a step of the test");
            let origin = Origin::Journal { source: self.source, since_ms: START_MS };
            let arrival = (*step).clone().from(origin).arrival(self.now);
            let outcome = one.result.and_then(|lsn| Some((lsn, Rc::new(outcome_of(&self.frame(lsn))?))));
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
            self.apply(Event::Recovered { key: one.key, arrival, past });
        }
    }
}

/// Who was told which outcome.
type Told = Vec<(Text, Rc<Outcome>)>;
/// Which stream message was settled how.
type Settled = Vec<(u64, Settle)>;

fn shard(limits: &Limits, next_lsn: Lsn, boot: u32) -> Shard {
    let settings = ShardSettings {
        shard: 0,
        boot,
        limits: limits.clone(),
        salt: SALT,
        blocks: vec![Text::from_static("echo@1")],
        events: false,
        progress_us: 10_000_000,
        config_epoch: 1,
        owner_epoch: EPOCH,
        shared: false,
        claims: false,
        copies: false,
    };
    Shard::new(settings, next_lsn)
}

fn outcome_of(frame: &Frame) -> Option<Outcome> {
    match &frame.fact {
        Fact::Result(fact) => Some(fact.outcome.clone()),
        Fact::Answer(fact) | Fact::Quarantined(fact) => Some(fact.outcome.clone()),
        _ => None,
    }
}

mod answers;
mod calls;
mod carry;
mod claims;
mod copies;
mod dead;
mod gates;
mod notices;
mod ownership;
mod places;
mod room;
mod seals;
mod strikes;
mod tries;

/// A core NATS message.
fn core() -> Origin {
    Origin::Core
}

fn tiny(limits: impl FnOnce(&mut Limits)) -> Bench {
    let mut tiny = Limits { on_overload: OnOverload::Reject, ..Limits::default() };
    limits(&mut tiny);
    Bench::with(tiny)
}
