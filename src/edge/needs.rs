//! What a step needs of the machine: `resources` as it is written, and what comes of it on this worker. Pure.
//!
//! `class` names the lane, else the block does. `memory_mb` is kept for the step while it runs. `concurrency` lets it begin only
//! while fewer steps of its tenant and block run. What this worker does not have forbids the step, and is no error of reading:
//! one that was accepted before is still known.

use shards::block::Demand;
use shards::limits::Limits;
use shards::outcome::{Code, Fault};
use shards::step::{Lane, Needs};

use super::fingerprint::field;
use super::json::{self, Value};
use super::reading::{number, wrong_form, wrong_value};

/// The largest figure that a field may have: more than any machine has, and no product of it overflows.
const FIGURE_MAX: u64 = u32::MAX as u64;

json::fields! {
    /// `resources`.
    Resources { class: "class", memory_mb: "memory_mb" | "memoryMb", concurrency: "concurrency" }
}

/// Whether `text`, a JSON object, is a `resources` that can be read.
///
/// # Errors
/// As a step with it would be refused.
pub(crate) fn check(text: &str) -> Result<(), Fault> {
    let mut tape = json::Tape::default();
    let doc = tape.read(text).ok_or_else(|| wrong_form("/resources"))?;
    Asked::read(Some(doc.top())).map(drop)
}

/// `resources` as written. Lives on its core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    class: Option<Lane>,
    memory_mb: u64,
    concurrency: u32,
}

impl Asked {
    /// # Errors
    /// A field that is not as it must be.
    pub(super) fn read(value: Option<Value<'_>>) -> Result<Asked, Fault> {
        if value.is_some_and(|value| !value.is_object()) {
            return Err(wrong_form("/resources"));
        }
        let resources = Resources::read(value);
        let memory_mb = number(resources.memory_mb(), 0..=FIGURE_MAX, "/resources/memory_mb")?.unwrap_or_default();
        let concurrency = number(resources.concurrency(), 0..=FIGURE_MAX, "/resources/concurrency")?.unwrap_or_default();
        Ok(Asked { class: class(resources.class())?, memory_mb, concurrency: concurrency as u32 })
    }

    /// What the step needs, and why this worker cannot give it that, where it cannot; `device` says whether it has one.
    pub(super) fn settle(self, demand: Demand, device: bool, limits: &Limits) -> (Needs, Option<Fault>) {
        let lane = self.class.unwrap_or(demand.lane);
        let memory_bytes = match lane {
            _ if self.memory_mb > 0 => self.memory_mb << 20,
            Lane::Gpu => demand.memory_on_device_bytes,
            Lane::Io | Lane::Cpu => demand.memory_bytes,
        };
        let needs = Needs { lane, memory_bytes, concurrency: self.concurrency };
        let lacks = |sentence: &'static str, details: Vec<u8>| {
            Some(Fault::new(Code::ResourceUnavailable, sentence).with_details(details))
        };
        let most = limits.tenant_memory_bytes_max.min(limits.shard_memory_bytes_max);
        let lacking = if memory_bytes > most {
            let details = format!(r#"{{"field":"/resources/memory_mb","memory_mb_max":{}}}"#, most >> 20);
            lacks("the step needs more memory than steps of one tenant may have here", details.into_bytes())
        } else if needs.lane != Lane::Gpu {
            None
        } else if !demand.device_form {
            lacks("the block has no form that runs on a device", field("/resources/class"))
        } else if !device {
            lacks("this worker has no device of the class that the step needs", field("/resources/class"))
        } else {
            None
        };
        (needs, lacking)
    }
}

fn class(value: Option<Value<'_>>) -> Result<Option<Lane>, Fault> {
    let Some(value) = value else { return Ok(None) };
    let code = match value.string() {
        Some(name) => match name.to_ascii_uppercase().trim_start_matches("RESOURCE_").trim_start_matches("CLASS_") {
            "" | "UNSPECIFIED" => Some(0),
            "CPU" => Some(1),
            "GPU" => Some(2),
            "IO" => Some(3),
            _ => None,
        },
        None => json::integer(value.raw()),
    };
    match code {
        Some(0) => Ok(None),
        Some(1) => Ok(Some(Lane::Cpu)),
        Some(2) => Ok(Some(Lane::Gpu)),
        Some(3) => Ok(Some(Lane::Io)),
        _ => Err(wrong_value("/resources/class")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEMAND: Demand = Demand { lane: Lane::Cpu, memory_bytes: 0, device_form: true, memory_on_device_bytes: 5 << 20 };

    fn settle_on(device: bool, text: &str, demand: Demand) -> Result<(Needs, Option<String>), String> {
        let words = |fault: Fault| String::from_utf8_lossy(&fault.details).into_owned();
        let limits = Limits { tenant_memory_bytes_max: 64 << 20, ..Limits::default() };
        let mut tape = json::Tape::default();
        let doc = tape.read(text).ok_or("no JSON")?;
        let (needs, lacking) = Asked::read(Some(doc.top())).map_err(words)?.settle(demand, device, &limits);
        Ok((needs, lacking.map(words)))
    }

    fn settle(text: &str, demand: Demand) -> Result<(Needs, Option<String>), String> {
        settle_on(true, text, demand)
    }

    #[test]
    fn what_is_asked_for_is_what_is_needed() {
        let needs = |lane, memory_mb: u64, concurrency| Ok((Needs { lane, memory_bytes: memory_mb << 20, concurrency }, None));
        assert_eq!(settle("{}", DEMAND), needs(Lane::Cpu, 0, 0));
        assert_eq!(settle(r#"{"class":"io","memory_mb":64,"concurrency":"2"}"#, DEMAND), needs(Lane::Io, 64, 2));
        assert_eq!(settle(r#"{"class":"CLASS_GPU","memoryMb":"1"}"#, DEMAND), needs(Lane::Gpu, 1, 0));
        assert_eq!(settle("{}", Demand { memory_bytes: 9 << 20, ..DEMAND }), needs(Lane::Cpu, 9, 0));
        assert_eq!(settle(r#"{"class":"GPU"}"#, DEMAND), needs(Lane::Gpu, 5, 0), "what it needs there");
        assert_eq!(settle(r#"{"class":0,"memory_mb":0,"concurrency":0}"#, DEMAND), needs(Lane::Cpu, 0, 0));
    }

    #[test]
    fn what_this_worker_does_not_have_is_named() {
        let lacking = |device, text, demand| settle_on(device, text, demand).map(|(_, lacking)| lacking.unwrap_or_default());
        let class = Ok(r#"{"field":"/resources/class"}"#.to_owned());
        assert_eq!(lacking(false, r#"{"class":"GPU"}"#, DEMAND), class);
        assert_eq!(lacking(true, r#"{"class":2}"#, Demand { device_form: false, ..DEMAND }), class);
        let memory = r#"{"field":"/resources/memory_mb","memory_mb_max":64}"#;
        assert_eq!(lacking(true, r#"{"memory_mb":65}"#, DEMAND), Ok(memory.to_owned()));
        assert_eq!(lacking(true, r#"{"memory_mb":4294967295}"#, DEMAND), Ok(memory.to_owned()));
    }

    #[test]
    fn a_field_that_is_not_as_it_must_be_is_named() {
        for (text, field) in [
            ("7", "/resources"),
            ("[]", "/resources"),
            (r#"{"class":"TPU"}"#, "/resources/class"),
            (r#"{"class":4}"#, "/resources/class"),
            (r#"{"class":{}}"#, "/resources/class"),
            (r#"{"memory_mb":-1}"#, "/resources/memory_mb"),
            (r#"{"memory_mb":4294967296}"#, "/resources/memory_mb"),
            (r#"{"memory_mb":"much"}"#, "/resources/memory_mb"),
            (r#"{"concurrency":1.5}"#, "/resources/concurrency"),
            (r#"{"concurrency":[]}"#, "/resources/concurrency"),
        ] {
            assert_eq!(settle(text, DEMAND), Err(format!(r#"{{"field":"{field}"}}"#)), "{text}");
        }
    }
}
