//! A flow from a file: steps that follow from each other, run here in that order. For development and tests; it is no
//! orchestrator: it lives as long as its process, knows no schedule and no signal, and one machine is all it has.
//!
//! Everything about the file is looked at before anything of it runs ([`read`], [`order`], [`reference`]: pure); [`go`] runs it. A
//! step starts once all steps before it went well. What is behind one that did not is skipped, the rest goes on.
//!
//! A run goes by its run id. Run again under the same, what went well is answered from the journal and what is missing is done; the
//! journal also keeps the flow's own digest under that id, so another flow under it is a conflict before any step.

pub(crate) mod dry;
pub(crate) mod go;
pub(crate) mod order;
pub(crate) mod read;
pub(crate) mod reference;
pub(crate) mod tell;
#[cfg(test)]
mod tests;

use order::Order;
use reference::Template;

/// Largest flow, in bytes.
pub(crate) const FLOW_BYTES_MAX: usize = 4 << 20;
/// Most steps of a flow.
pub(crate) const STEPS_MAX: usize = 1_000;
/// Most edges of a flow.
pub(crate) const EDGES_MAX: usize = 10_000;
/// So many faults of one flow are told.
pub(crate) const WRONG_MAX: usize = 100;
/// Longest id of a step, and of a flow, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 128;
/// The step under which the journal keeps which flow a run id stands for; `$` marks names of ours.
pub(crate) const FLOW_STEP: &str = "$flow";

/// A flow that can be run. Lives with its run.
#[derive(Debug)]
pub(crate) struct Flow {
    /// Its name.
    pub(crate) id: String,
    /// Of the flow.
    pub(crate) version: String,
    /// Of all of it, in canonical form: 64 hexadecimal digits.
    pub(crate) digest: String,
    /// As written.
    pub(crate) steps: Vec<Step>,
    /// Their order.
    pub(crate) order: Order,
}

/// One step of it.
#[derive(Debug, Default)]
pub(crate) struct Step {
    /// Its name.
    pub(crate) id: String,
    /// The block, by the name that was asked for.
    pub(crate) block: String,
    /// What it works on, with what it takes from other steps.
    pub(crate) inputs: Template,
    /// What else it asks for, as members of a StepRequest, each with a comma before it.
    pub(crate) asks: String,
}

/// One thing that is wrong with a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// Where: a JSON Pointer.
    pub(crate) pointer: String,
    /// The rule that it breaks.
    pub(crate) rule: String,
}

impl Wrong {
    /// At this place, against this rule.
    pub(crate) fn new(pointer: impl Into<String>, rule: impl Into<String>) -> Wrong {
        Wrong { pointer: pointer.into(), rule: rule.into() }
    }
}

impl Flow {
    /// The id of a run that nobody named: the same for the same flow, another once anything of it is changed.
    pub(crate) fn run_id(&self) -> String {
        format!("{}-{}-{}", self.id, self.version, &self.digest[..12])
    }
}

/// The id of a run, if `text` can be one.
pub(crate) fn is_run_id(text: &str) -> bool {
    (1..=shards::limits::ID_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}
