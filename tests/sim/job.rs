//! The router's messages, as bytes, and the pure translation to arrivals that stands for the wire.

use std::rc::Rc;

use bytes::Bytes;
use shards::gate::{Gate, Round};
use shards::ids::{BlockId, Fingerprint, Identity, Key, Salt, Text};
use shards::map;
use shards::outcome::{Code, Fault};
use shards::step::{Arrival, Asker, Content, Delivery, EffectClass, Lane, Needs, Profile, RetryPolicy, Work};

pub const SHARDS: u16 = 2;
pub const SALT: Salt = Salt([7; 32]);

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    pub kind: JobKind,
    /// How it comes; the message itself does not say so.
    pub way: Way,
    pub tenant: u8,
    pub step: u32,
    pub assignment: u32,
    pub content: u8,
    pub class: u8,
    pub priority: u8,
    pub tries: u8,
    pub backoff_ms: u32,
    pub budget_ms: u32,
    /// 0 for none of its own.
    pub not_after_ms: u64,
    pub poison: Poison,
    /// The largest effect class that the sender allows, 0 for any.
    pub ceiling: u8,
    /// It has flow coordinates; without them it goes by its assignment.
    pub placed: bool,
    /// It waits for people instead of being run.
    pub asks: bool,
    pub padding: u16,
}

/// How a message comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Stream = 0,
    Core = 1,
    Call = 2,
    Line = 3,
}

/// Whether running it ends the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poison {
    No = 0,
    /// In the very turn in which it starts.
    AtOnce = 1,
    /// After a while.
    Later = 2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobKind {
    Work = 1,
    Refusal = 2,
    Garbage = 3,
}

impl Job {
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(48 + usize::from(self.padding));
        out.extend([self.kind as u8, u8::from(self.asks), self.tenant, self.content, self.class, self.priority, self.tries]);
        for number in [self.step, self.assignment, self.backoff_ms, self.budget_ms] {
            out.extend(number.to_le_bytes());
        }
        out.extend(self.not_after_ms.to_le_bytes());
        out.extend([self.poison as u8, self.ceiling, u8::from(self.placed)]);
        out.resize(out.len() + usize::from(self.padding), b'.');
        Bytes::from(out)
    }

    pub fn decode(body: &[u8]) -> Job {
        let u32_at = |at: usize| u32::from_le_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]);
        let kind = match body[0] {
            1 => JobKind::Work,
            2 => JobKind::Refusal,
            _ => JobKind::Garbage,
        };
        Job {
            kind,
            way: Way::Stream,
            tenant: body[2],
            content: body[3],
            class: body[4],
            priority: body[5],
            tries: body[6],
            step: u32_at(7),
            assignment: u32_at(11),
            backoff_ms: u32_at(15),
            budget_ms: u32_at(19),
            not_after_ms: u64::from(u32_at(23)) | u64::from(u32_at(27)) << 32,
            poison: match body[31] {
                0 => Poison::No,
                1 => Poison::AtOnce,
                _ => Poison::Later,
            },
            ceiling: body[32],
            placed: body[33] == 1,
            asks: body[1] == 1,
            padding: (body.len() - 34) as u16,
        }
    }

    pub fn class(&self) -> EffectClass {
        EffectClass::from_code(self.class).expect("jobs have a class")
    }

    /// Follows from what the message says already, so that all messages of a step agree.
    pub fn needs(&self) -> Needs {
        let lane = match self.step % 8 {
            6 => Lane::Gpu,
            3 | 7 => Lane::Cpu,
            _ => Lane::Io,
        };
        let memory_bytes = if self.step % 5 < 2 { u64::from(self.step % 7 + 1) << 20 } else { 0 };
        Needs { lane, memory_bytes, concurrency: self.concurrency() }
    }

    /// Whom it asks, and for how long; follows from the step, as its needs do.
    pub fn gate(&self) -> Option<Gate> {
        let round = |approvers: &[&'static str], quorum, wait_ms| Round {
            approvers: approvers.iter().map(|name| Text::from_static(name)).collect(),
            quorum,
            wait_ms,
        };
        self.asks.then(|| Gate {
            first: round(&["ann", "ben"], 1 + self.step % 2, 2_000 + u64::from(self.step % 7) * 2_500),
            escalation: self.step.is_multiple_of(3).then(|| round(&["ann", "cyd"], 1, 4_000)),
            approve_overdue: self.step.is_multiple_of(5),
            remind_ms: self.step.is_multiple_of(2).then_some(1_000),
            signed: false,
            plan: None,
        })
    }

    /// The whole time that it has, in milliseconds.
    pub fn budget(&self) -> u64 {
        self.gate().map_or(u64::from(self.budget_ms), |gate| gate.wait_ms())
    }

    /// Two blocks each are forms of one.
    fn kind_of_block(&self) -> BlockId {
        BlockId((u16::from(self.class) - 1) & !1)
    }

    /// Of some tenants all steps of one kind agree on how many may run at once.
    fn concurrency(&self) -> u32 {
        if self.tenant % 3 == 2 && self.kind_of_block() == BlockId(2) { 2 } else { 0 }
    }

    pub fn tenant_name(&self) -> Text {
        const NAMES: [&str; 6] = ["ada", "bob", "cyd", "dan", "eve", "fay"];
        Text::from_static(NAMES[usize::from(self.tenant)])
    }

    pub fn assignment_id(&self) -> Text {
        Text::from(format!("a{}", self.assignment))
    }

    /// The key of its step.
    pub fn key(&self) -> Key {
        let (tenant, step) = (self.tenant_name(), self.step.to_string());
        if !self.placed {
            return SALT.key(Identity::Assignment { tenant: &tenant, assignment: &self.assignment_id() });
        }
        SALT.key(Identity::Coordinates { tenant: &tenant, run: None, flow: "f", step: &step, attempt: 1 })
    }

    pub fn shard(&self) -> u16 {
        map::shard(map::partition(&self.tenant_name()), SHARDS)
    }
}

/// A message as an arrival: pure, the same bytes always give the same key, content and asker.
pub fn decode(delivery: Delivery, wall_ms: u64, horizon_ms: u64) -> Arrival {
    let job = Job::decode(&delivery.body);
    let tenant = job.tenant_name();
    let assignment = job.assignment_id();
    let mut digest = [job.class; 32];
    digest[0] = job.content;
    digest[5] = u8::from(job.asks);
    digest[1..5].copy_from_slice(&job.step.to_le_bytes());
    let (key, content) = match job.kind {
        JobKind::Work => (job.key(), None),
        JobKind::Refusal => {
            let fault = Fault::new(Code::UnknownJobType, "No block has this name.");
            (SALT.answer_key(&tenant, &assignment), Some(Content::Refusal(fault)))
        }
        JobKind::Garbage => {
            let fault = Fault::new(Code::InvalidFormat, "It cannot be read.");
            (SALT.quarantine_key(&delivery.subject, &delivery.headers, &delivery.body), Some(Content::Garbage(fault)))
        }
    };
    let asker = (job.kind != JobKind::Garbage).then(|| Asker {
        id: SALT.asker(key, &assignment),
        profile: Profile::Native,
        assignment_id: assignment,
        request_id: Text::new(),
        trace_id: None,
        provider_id: Text::new(),
        job_type: Text::new(),
        run_id: None,
        flow_id: None,
        step_id: None,
        attempt: Some(1),
    });
    let mut arrival = Arrival {
        partition: map::partition(&tenant),
        tenant,
        key,
        fingerprint: Fingerprint(digest),
        asker,
        content: Content::Garbage(Fault::new(Code::InternalError, "")),
        received_ms: wall_ms,
        delivery,
        adopted: None,
    };
    let not_after_ms = if job.not_after_ms > 0 { job.not_after_ms } else { arrival.since_ms() + horizon_ms };
    arrival.content = content.unwrap_or(Content::Work(Work {
        block: BlockId(u16::from(job.class) - 1),
        kind: job.kind_of_block(),
        effect: job.class(),
        inputs: Bytes::new(),
        priority: job.priority,
        budget_ms: job.budget(),
        not_after_ms,
        retry: RetryPolicy { tries_max: u32::from(job.tries), backoff_ms: u64::from(job.backoff_ms), backoff_ms_max: 5_000 },
        note: None,
        effect_ceiling: EffectClass::from_code(job.ceiling),
        needs: job.needs(),
        guardrails: Bytes::new(),
        cache: None,
        gate: job.gate().map(Rc::new),
        sandbox: false,
        denied: None,
        changed: None,
    }));
    arrival
}
