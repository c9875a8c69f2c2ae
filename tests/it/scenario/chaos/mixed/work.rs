//! What the router of a mixed run sends: steps of every block and class, some of them again, some by another name, and a few that
//! end the process.

use std::collections::VecDeque;
use std::path::Path;

use serde_json::json;

use super::Plan;
use crate::dice::Dice;
use crate::effect::Class;
use crate::router::Assignment;
use crate::router::assignment::uuid4;

const TENANTS: u64 = 8;
/// Steps that may still be sent again.
const RECENT: usize = 512;
/// The mark of other content under a key that has content: no effect may ever carry it.
pub(super) const FORBIDDEN: u64 = 1 << 40;

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    Echo,
    Put,
    Sleep,
    /// Fails once or twice and is tried again.
    Flaky,
    Effect(Class),
    /// Ends the process whenever it is run.
    Poison,
    /// Other content under the key of a step that has been answered.
    Conflict,
}

/// One assignment of the run, as long as the run lasts.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) id: String,
    pub(super) kind: Kind,
    /// Which key it stands for: steps of one key share it. Also its mark at the effect server.
    pub(super) key: u64,
}

/// Something to send.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) assignment: Assignment,
    /// Which step it is.
    pub(super) step: usize,
}

/// The steps of a run so far.
pub(super) struct Work {
    dice: Dice,
    plan: Plan,
    effects_at: String,
    pub(super) steps: Vec<Step>,
    keys: u64,
    recent: VecDeque<(usize, Assignment)>,
    pub(super) resent: u64,
    pub(super) poison: u64,
}

impl Work {
    pub(super) fn new(dice: Dice, plan: Plan, effects_at: &Path) -> Self {
        let effects_at = effects_at.to_string_lossy().into_owned();
        Work { dice, plan, effects_at, steps: Vec::new(), keys: 0, recent: VecDeque::new(), resent: 0, poison: 0 }
    }

    /// The next message. `answered`: whether the assignment of this id has its result.
    pub(super) fn next(&mut self, answered: impl Fn(&str) -> bool) -> Message {
        if !self.recent.is_empty() && self.dice.per_mille(50) {
            let at = self.dice.range(0, self.recent.len() as u64) as usize;
            if let Some(message) = self.again(at, answered) {
                return message;
            }
        }
        self.fresh()
    }

    /// A step that ends the process, for a tenant that does nothing else.
    pub(super) fn poison(&mut self) -> Message {
        self.poison += 1;
        let after_ms = self.dice.range(0, 2) * 30;
        let job = Assignment::new("mallory", "test.abort", json!({ "after_ms": after_ms }));
        self.keys += 1;
        self.add(job, Kind::Poison, self.keys)
    }

    fn fresh(&mut self) -> Message {
        self.keys += 1;
        let key = self.keys;
        let kind = match self.dice.range(0, 100) {
            0..50 => Kind::Effect(*self.dice.one_of(&Class::ALL)),
            50..60 => Kind::Put,
            60..68 => Kind::Sleep,
            68..76 => Kind::Flaky,
            _ => Kind::Echo,
        };
        let tenant = format!("tenant-{}", self.dice.range(0, TENANTS));
        let (block, payload) = match kind {
            Kind::Put => ("fs.blob_put", json!({ "path": file(key), "content": key.to_string() })),
            Kind::Sleep => ("sleep", json!({ "ms": self.dice.range(1, 120) })),
            Kind::Flaky => ("test.fail", json!({ "times": self.dice.range(1, 3) })),
            Kind::Effect(class) => (class.block(), json!({ "at": self.effects_at, "mark": key })),
            Kind::Echo | Kind::Poison | Kind::Conflict => ("echo", json!({ "n": key })),
        };
        let mut job = Assignment::new(&tenant, block, payload);
        job.json["options"]["retry"] = json!({ "max_attempts": 5, "backoff_ms": 30 });
        if self.dice.per_mille(300) {
            job = job.in_flow(&uuid4(), &uuid4(), &uuid4(), 1);
        }
        let message = self.add(job, kind, key);
        self.recent.push_back((message.step, message.assignment.clone()));
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        message
    }

    /// A recent step again: the same message, the same key under another assignment, or other content under the same key.
    fn again(&mut self, at: usize, answered: impl Fn(&str) -> bool) -> Option<Message> {
        let (step, assignment) = self.recent[at].clone();
        let of = self.steps[step].clone();
        let in_flow = assignment.json.get("flow_id").is_some();
        match self.dice.range(0, 4) {
            0 | 1 => {
                self.resent += 1;
                Some(Message { assignment, step })
            }
            2 if in_flow => Some(self.add(assignment.as_another(), of.kind, of.key)),
            // Who owns the work next does not know what an earlier owner's journal holds.
            3 if in_flow && self.plan.workers == 1 && answered(&of.id) => {
                let mut other = assignment.as_another();
                let payload = &mut other.json["job"]["payload"];
                let changed = if matches!(of.kind, Kind::Effect(_)) { "mark" } else { "other" };
                payload[changed] = json!(FORBIDDEN + of.key);
                Some(self.add(other, Kind::Conflict, of.key))
            }
            _ => None,
        }
    }

    fn add(&mut self, assignment: Assignment, kind: Kind, key: u64) -> Message {
        let step = self.steps.len();
        self.steps.push(Step { id: assignment.id.clone(), kind, key });
        Message { assignment, step }
    }
}

/// The file that the step of this key writes.
pub(super) fn file(key: u64) -> String {
    format!("mixed-{key}.txt")
}
