//! A flow's text as a [`Flow`], or all that is wrong with it, each with its JSON Pointer and its rule. Pure but for the policy that
//! fixed inputs are looked at under: what a policy forbids is no fault of a flow, and told when its step runs.
//!
//! Flow DSL v0: `id`, `version`, `steps` with `id`, `type`, `inputs`, `retry {attempts, backoff_ms}`, `timeout_ms`, `resources`,
//! `guardrails`, and `edges` of `{from, to}`; a step may also say `require_plan`. Nothing else: a field that is passed over in
//! silence is a surprise later.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use serde_json::value::RawValue;
use shards::ids::hex;
use shards::limits::{BUDGET_MS_MAX, TRIES_MAX};
use shards::outcome::Fault;

use super::order::Order;
use super::reference::{Members, Template, escaped, plain, quoted, string};
use super::{EDGES_MAX, FLOW_BYTES_MAX, Flow, NAME_BYTES_MAX, STEPS_MAX, Step, WRONG_MAX, Wrong};
use crate::blocks;
use crate::edge::fingerprint::{Canon, Content};
use crate::edge::needs;
use crate::policy::Policy;
use crate::policy::narrow::{Guardrails, Narrow};

const TOP: [&str; 4] = ["id", "version", "steps", "edges"];
const STEP: [&str; 8] = ["id", "type", "inputs", "retry", "timeout_ms", "resources", "guardrails", "require_plan"];
const RETRY: [&str; 2] = ["attempts", "backoff_ms"];
const RESOURCES: [&str; 3] = ["class", "memory_mb", "concurrency"];
const EDGE: [&str; 2] = ["from", "to"];

/// How far a flow is looked at before it runs.
#[derive(Clone, Copy)]
pub(crate) struct Look<'a> {
    /// What tenants may do.
    pub(crate) policy: &'a Policy,
    /// Whose flow it is.
    pub(crate) tenant: &'a str,
    /// Its steps are only to be told of: blocks and their inputs are looked at step by step then.
    pub(crate) dry: bool,
}

/// Reads a flow.
///
/// # Errors
/// All that is wrong with it, at most [`WRONG_MAX`].
pub(crate) fn read(text: &[u8], look: Look<'_>) -> Result<Flow, Vec<Wrong>> {
    let mut reader = Reader { look, wrong: Vec::new() };
    let flow = reader.flow(text);
    let mut wrong = reader.wrong;
    match flow {
        Some(flow) if wrong.is_empty() => Ok(flow),
        _ => {
            wrong.truncate(WRONG_MAX);
            Err(wrong)
        }
    }
}

struct Reader<'a> {
    look: Look<'a>,
    wrong: Vec<Wrong>,
}

/// An object of which each member has a name that is known here.
struct Object<'t> {
    pointer: String,
    members: Vec<(String, &'t str)>,
}

impl<'t> Object<'t> {
    /// The value under this name; `null` is absent.
    fn get(&self, name: &str) -> Option<(&'t str, String)> {
        let (_, raw) = self.members.iter().find(|(member, _)| member == name)?;
        Some((*raw, format!("{}/{name}", self.pointer))).filter(|(raw, _)| *raw != "null")
    }
}

impl Reader<'_> {
    fn add(&mut self, pointer: impl Into<String>, rule: impl Into<String>) {
        self.wrong.push(Wrong::new(pointer, rule));
    }

    fn flow(&mut self, text: &[u8]) -> Option<Flow> {
        if text.len() > FLOW_BYTES_MAX {
            self.add("", format!("at most {FLOW_BYTES_MAX} bytes"));
            return None;
        }
        let Ok(text) = std::str::from_utf8(text) else {
            self.add("", "UTF-8 text");
            return None;
        };
        let text = text.trim_ascii();
        let text = match serde_json::from_str::<&RawValue>(text) {
            // What comes of it stands on one line, as outputs that are inputs do.
            Ok(whole) => blocks::manifest::line(whole),
            Err(error) => {
                self.add("", format!("JSON: {error}"));
                return None;
            }
        };
        let text = &*text;
        // What has no canonical form, keys that come twice among it, would be read in different ways.
        let digest = match Canon::default().fingerprint("flow", Content::Inputs(text), None) {
            Ok(digest) => hex(&digest.0),
            Err(fault) => {
                self.fault(&fault, "/inputs", "");
                return None;
            }
        };
        let top = self.object(text, "", "a flow", &TOP)?;
        let id = self.name(&top, "id", ".").unwrap_or_default();
        let version = self.version(&top);
        let steps = self.steps(&top);
        let ids: Vec<&str> = steps.iter().map(|step| step.id.as_str()).collect();
        let edges = self.edges(&top, &ids);
        let order = Order::of(&ids, &edges, &mut self.wrong);
        self.references(&steps, &order);
        Some(Flow { id, version: version.unwrap_or_default(), digest, steps, order })
    }

    /// The object that `raw` is; members that do not belong there are told.
    fn object<'t>(&mut self, raw: &'t str, pointer: &str, what: &str, known: &[&str]) -> Option<Object<'t>> {
        let Some(Members(members)) = Members::read(raw) else {
            self.add(pointer, "an object");
            return None;
        };
        for (name, _) in members.iter().filter(|(name, _)| !known.contains(&&**name)) {
            self.add(format!("{pointer}/{}", escaped(name)), format!("no such field: {what} has {}", known.join(", ")));
        }
        let members = members.into_iter().map(|(name, raw)| (name.into_owned(), raw.get())).collect();
        Some(Object { pointer: pointer.to_owned(), members })
    }

    /// The values of the list that `raw` is.
    fn list<'t>(&mut self, raw: &'t str, pointer: &str, most: usize) -> Vec<&'t str> {
        match serde_json::from_str::<Vec<&RawValue>>(raw) {
            Ok(list) if list.len() <= most => list.into_iter().map(RawValue::get).collect(),
            Ok(list) => {
                self.add(pointer, format!("at most {most} of them, and there are {}", list.len()));
                Vec::new()
            }
            Err(_) => {
                self.add(pointer, "a list");
                Vec::new()
            }
        }
    }

    /// `more`: what may stand in it besides what may stand in any.
    fn name(&mut self, object: &Object<'_>, field: &str, more: &str) -> Option<String> {
        let Some((raw, pointer)) = object.get(field) else {
            self.add(format!("{}/{field}", object.pointer), "required");
            return None;
        };
        let fits = |text: &str| {
            (1..=NAME_BYTES_MAX).contains(&text.len()) && text.chars().all(|c| c.is_ascii() && plain(c as u8) || more.contains(c))
        };
        let name = string(raw).filter(|text| fits(text));
        if name.is_none() {
            self.add(pointer, format!("a string of 1 to {NAME_BYTES_MAX} letters, digits, {more}_ and -"));
        }
        name.map(String::from)
    }

    fn version(&mut self, top: &Object<'_>) -> Option<String> {
        let Some((raw, pointer)) = top.get("version") else {
            self.add("/version", "required");
            return None;
        };
        if !raw.is_empty() && raw.len() <= 9 && raw.bytes().all(|byte| byte.is_ascii_digit()) {
            return Some(raw.to_owned());
        }
        let fits = |text: &str| {
            (1..=NAME_BYTES_MAX / 2).contains(&text.len()) && text.bytes().all(|byte| plain(byte) || matches!(byte, b'.' | b'+'))
        };
        let version = string(raw).filter(|text| fits(text));
        if version.is_none() {
            self.add(pointer, "a whole number of at most 9 digits, or a string of 1 to 64 letters, digits, . + _ and -");
        }
        version.map(String::from)
    }

    fn steps(&mut self, top: &Object<'_>) -> Vec<Step> {
        let Some((raw, pointer)) = top.get("steps") else {
            self.add("/steps", "required");
            return Vec::new();
        };
        let before = self.wrong.len();
        let list = self.list(raw, &pointer, STEPS_MAX);
        if list.is_empty() && self.wrong.len() == before {
            self.add(pointer, "at least one step");
        }
        let steps: Vec<Step> = list.into_iter().enumerate().map(|(at, raw)| self.step(at, raw).unwrap_or_default()).collect();
        let mut known: HashMap<&str, usize> = HashMap::new();
        for (at, step) in steps.iter().enumerate().filter(|(_, step)| !step.id.is_empty()) {
            match known.get(step.id.as_str()) {
                Some(first) => {
                    self.wrong.push(Wrong::new(format!("/steps/{at}/id"), format!("the id of /steps/{first} already")))
                }
                None => _ = known.insert(&step.id, at),
            }
        }
        steps
    }

    fn step(&mut self, at: usize, raw: &str) -> Option<Step> {
        let object = self.object(raw, &format!("/steps/{at}"), "a step", &STEP)?;
        let id = self.name(&object, "id", "").unwrap_or_default();
        let block = match object.get("type") {
            Some((raw, pointer)) => match string(raw).filter(|name| (1..=256).contains(&name.len())) {
                Some(name) => {
                    if !self.look.dry && blocks::find(&name, true).is_none() {
                        self.add(pointer, format!("unknown block type: {name}"));
                    }
                    name.into_owned()
                }
                None => {
                    self.add(pointer, "a string of 1 to 256 bytes");
                    String::new()
                }
            },
            None => {
                self.add(format!("{}/type", object.pointer), "required");
                String::new()
            }
        };
        let mut asks = String::new();
        self.retry(&object, &mut asks);
        if let Some(ms) = self.number(&object, "timeout_ms", 1..=BUDGET_MS_MAX) {
            asks.push_str(&format!(",\"timeout_ms\":{ms}"));
        }
        self.resources(&object, &mut asks);
        let guardrails = self.guardrails(&object, &mut asks);
        if let Some((raw, pointer)) = object.get("require_plan") {
            match string(raw).filter(|text| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())) {
                Some(digest) => asks.push_str(&format!(",\"require_plan\":{}", quoted(&digest))),
                None => self.add(pointer, "a plan's digest: 64 hexadecimal digits"),
            }
        }
        let (raw, pointer) = object.get("inputs").unwrap_or(("{}", format!("{}/inputs", object.pointer)));
        let inputs = if raw.starts_with('{') {
            Template::read(raw, &pointer, &mut self.wrong)
        } else {
            self.add(&*pointer, "an object");
            Template::default()
        };
        if inputs.is_fixed() && !self.look.dry {
            // Without references, what the block gets is known: a text with escapes among it.
            let filled = inputs.fill(FLOW_BYTES_MAX, |_| None).unwrap_or_default();
            self.inputs(&block, &filled, &pointer, guardrails);
        }
        Some(Step { id, block, inputs, asks })
    }

    /// What the block itself says of inputs that are known already.
    fn inputs(&mut self, block: &str, inputs: &str, pointer: &str, guardrails: Guardrails) {
        let Some((_, entry)) = blocks::find(block, true).filter(|_| !inputs.is_empty()) else { return };
        let narrow = Narrow { scopes: None, guardrails };
        let Look { policy, tenant, .. } = self.look;
        let ask = blocks::Ask { policy, tenant, name: block, inputs: inputs.as_bytes(), provider: "", narrow: &narrow };
        if let Err(fault) = entry.check(&ask) {
            self.fault(&fault, "", pointer);
        }
    }

    fn retry(&mut self, step: &Object<'_>, asks: &mut String) {
        let Some((raw, pointer)) = step.get("retry") else { return };
        let Some(retry) = self.object(raw, &pointer, "retry", &RETRY) else { return };
        let attempts = self.number(&retry, "attempts", 1..=u64::from(TRIES_MAX));
        let backoff_ms = self.number(&retry, "backoff_ms", 0..=BUDGET_MS_MAX);
        let member = |name: &str, value: Option<u64>| value.map(|value| format!("\"{name}\":{value}"));
        let members: Vec<String> =
            [member("max_attempts", attempts), member("backoff_ms", backoff_ms)].into_iter().flatten().collect();
        asks.push_str(&format!(",\"retry\":{{{}}}", members.join(",")));
    }

    fn number(&mut self, object: &Object<'_>, field: &str, usable: RangeInclusive<u64>) -> Option<u64> {
        let (raw, pointer) = object.get(field)?;
        let number =
            raw.parse::<u64>().ok().filter(|number| raw.bytes().all(|byte| byte.is_ascii_digit()) && usable.contains(number));
        if number.is_none() {
            self.add(pointer, format!("a whole number from {} to {}", usable.start(), usable.end()));
        }
        number
    }

    fn resources(&mut self, step: &Object<'_>, asks: &mut String) {
        let Some((raw, pointer)) = step.get("resources") else { return };
        let Some(resources) = self.object(raw, &pointer, "resources", &RESOURCES) else { return };
        // One by one, so that each that is wrong is told.
        for (name, raw) in &resources.members {
            let rule = match name.as_str() {
                "class" => "CPU, GPU or IO",
                "memory_mb" | "concurrency" => "a whole number from 0 to 4294967295",
                _ => continue,
            };
            if needs::check(&format!("{{{}:{raw}}}", quoted(name))).is_err() {
                self.add(format!("{pointer}/{name}"), rule);
            }
        }
        asks.push_str(&format!(",\"resources\":{raw}"));
    }

    fn guardrails(&mut self, step: &Object<'_>, asks: &mut String) -> Guardrails {
        let Some((raw, pointer)) = step.get("guardrails") else { return Guardrails::default() };
        match Guardrails::read(raw.as_bytes()) {
            Ok(guardrails) => {
                asks.push_str(&format!(",\"guardrails\":{raw}"));
                guardrails
            }
            Err(fault) => {
                self.fault(&fault, "/guardrails", &pointer);
                Guardrails::default()
            }
        }
    }

    fn edges(&mut self, top: &Object<'_>, ids: &[&str]) -> Vec<(usize, usize)> {
        let Some((raw, pointer)) = top.get("edges") else { return Vec::new() };
        let mut known: HashMap<(usize, usize), usize> = HashMap::new();
        let mut edges = Vec::new();
        for (at, raw) in self.list(raw, &pointer, EDGES_MAX).into_iter().enumerate() {
            let here = format!("{pointer}/{at}");
            let Some(edge) = self.object(raw, &here, "an edge", &EDGE) else { continue };
            let mut end = |field: &str| {
                let Some((raw, pointer)) = edge.get(field) else {
                    self.add(format!("{here}/{field}"), "required");
                    return None;
                };
                let Some(id) = string(raw) else {
                    self.add(pointer, "the id of a step");
                    return None;
                };
                let step = ids.iter().position(|one| *one == id && !id.is_empty());
                if step.is_none() {
                    self.add(pointer, format!("there is no step {}", quoted(&id)));
                }
                step
            };
            let (from, to) = (end("from"), end("to"));
            let (Some(from), Some(to)) = (from, to) else { continue };
            match known.insert((from, to), at) {
                Some(first) => {
                    known.insert((from, to), first);
                    self.add(here, format!("the same edge as /edges/{first}"));
                }
                None => edges.push((from, to)),
            }
        }
        edges
    }

    /// What a step takes must be there before it begins.
    fn references(&mut self, steps: &[Step], order: &Order) {
        for (at, step) in steps.iter().enumerate() {
            for (pointer, reference) in step.inputs.references() {
                let named = steps.iter().position(|one| one.id == reference.step);
                let rule = match named {
                    None => format!("{}: there is no step {}", reference.written, quoted(&reference.step)),
                    Some(named) if named == at => format!("{}: a step cannot refer to itself", reference.written),
                    Some(named) if !order.is_after(at, named) => {
                        format!(
                            "{}: no edges lead from step {} to this one, so it need not have ended",
                            reference.written,
                            quoted(&reference.step)
                        )
                    }
                    Some(_) => continue,
                };
                self.wrong.push(Wrong::new(format!("/steps/{at}/inputs{pointer}"), rule));
            }
        }
    }

    /// A fault whose details point somewhere beneath `under`, which stands at `at` here.
    fn fault(&mut self, fault: &Fault, under: &str, at: &str) {
        let details: serde_json::Value = serde_json::from_slice(&fault.details).unwrap_or_default();
        let pointer = details["pointer"].as_str().or(details["field"].as_str()).unwrap_or_default();
        let pointer = pointer.strip_prefix(under).unwrap_or(pointer);
        let rule = details["rule"].as_str().unwrap_or(&fault.message);
        self.add(format!("{at}{pointer}"), rule);
    }
}
