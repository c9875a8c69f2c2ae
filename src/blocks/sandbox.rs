//! Dry runs: what a step would do, said instead of done. [`Sandboxed`] stands for a block and never calls it; a block's `plan` is
//! given the step and the policy and nothing to reach out with, so a dry run opens no socket and no file, and looks up no name.
//!
//! A plan is JSON: the block and its version, its effect class, the digest of its inputs, the rules that let it, the secrets that it
//! would read (by reference, and whether they are there), and what it would do in the block's own words. Its digest is SHA-256 over
//! its canonical text, which is how it is written: keys sorted by their bytes, no blanks. What may change without the step doing
//! anything else stands beside it, in `notes`. [`places`] says where things would go, [`mock`] gives outputs that nobody computed.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use shards::block::{Block, BlockCx, BlockInfo, Local};
use shards::ids::{BlockId, hex};
use shards::outcome::{Code, Fault};

use crate::policy::Policy;
use crate::policy::narrow::{Guardrails, Narrow};
use crate::secrets::SecretRef;

use super::inputs::{Inputs, absent};
use super::{Ask, Entry, TABLE};

mod mock;
pub(super) mod places;
#[cfg(test)]
mod tests;

/// What stands behind a block's version in the journal where a step only said what it would do.
pub const MARK: &str = "+dry";

/// The block of this id that only says what it would do: these stand behind those of the table, by reference and cached.
pub fn id_of(block: BlockId) -> BlockId {
    BlockId(block.0 + 3 * TABLE.len() as u16)
}

/// The same for inputs by reference.
pub fn id_of_referred(block: BlockId) -> BlockId {
    BlockId(block.0 + 4 * TABLE.len() as u16)
}

/// What a step would do, as its block says. Lives where it is made.
#[derive(Default)]
pub struct Planned {
    /// In the block's own words.
    pub(super) does: Map<String, Value>,
    /// The rules that let it.
    pub(super) rules: Vec<String>,
    /// What it would read of secrets.
    pub(super) secrets: Vec<SecretRef>,
    /// What it would cost, where that is known before.
    pub(super) cost: Option<Value>,
    /// What a reader should know that is no part of what it does.
    pub(super) notes: Vec<&'static str>,
    /// Outputs that stand for those of a run: JSON text. None: those of the block's manifest.
    pub(super) outputs: Option<String>,
}

impl Planned {
    /// It does this: the members of an object.
    pub(super) fn of(does: Value) -> Planned {
        let Value::Object(does) = does else { unreachable!("blocks say what they do as an object") };
        Planned { does, ..Planned::default() }
    }

    /// The same with outputs.
    pub(super) fn with_outputs(mut self, outputs: impl ToString) -> Planned {
        self.outputs = Some(outputs.to_string());
        self
    }

    /// The same at a place.
    pub(super) fn at(mut self, name: &str, place: places::Place) -> Planned {
        self.does.insert(name.to_owned(), place.says);
        self.rules.extend(place.rule);
        self.secrets.extend(place.secrets);
        self
    }
}

/// Of a block that says nothing of itself.
pub(super) fn unsaid(_ask: &Ask<'_>) -> Result<Planned, Fault> {
    Ok(Planned { notes: vec!["the block does not say what it would do"], ..Planned::default() })
}

/// A plan as it is told. Lives where it is made.
struct Plan {
    /// Canonical JSON.
    text: String,
    /// Of the text; none where the plan does not say all that the step would do.
    digest: Option<String>,
    planned: Planned,
}

impl Plan {
    /// What a step of `entry` would do, under its canonical name and with the inputs it would run with.
    fn of(entry: &Entry, ask: &Ask<'_>) -> Result<Plan, Fault> {
        let checked = entry.check(ask)?;
        let planned = (entry.plan)(ask)?;
        let inputs = if absent(ask.inputs) { b"{}" } else { ask.inputs };
        let mut inputs_text = String::with_capacity(inputs.len());
        canonical(std::str::from_utf8(inputs).unwrap_or_default(), &mut inputs_text);
        let more = json!({
            "effect": checked.effect.as_str(),
            "lane": checked.needs.lane.as_str(),
            "memory_bytes": checked.needs.memory_bytes,
            "inputs_sha256": hex(&Sha256::digest(inputs_text)),
        });
        Ok(Plan::told(entry, ask, more, planned, true))
    }

    /// The same where the inputs lie elsewhere: `ask` says where.
    fn by_reference(entry: &Entry, ask: &Ask<'_>) -> Result<Plan, Fault> {
        let inputs = Inputs::read(ask.inputs)?;
        let uri = inputs.text_needed("uri")?;
        let (sha256, size) = (inputs.text("sha256")?, inputs.json("size"));
        let from = json!({ "uri": uri, "sha256": sha256, "size": size });
        let mut planned = Planned::of(json!({ "inputs_from": from }));
        let connector = uri.strip_prefix("blob://").and_then(|rest| rest.split_once('/')).map(|(name, _)| name);
        planned = planned.at("inputs_in", places::store(ask, connector, "payload_ref")?);
        planned
            .notes
            .push("the inputs lie in a blob, which a dry run does not read: what they ask for is checked when the step runs");
        // A blob without a digest may hold another thing each time.
        let bound = sha256.is_some();
        if !bound {
            planned.notes.push("payload_ref says no sha256, so the plan has no digest");
        }
        Ok(Plan::told(entry, ask, json!({ "effect": entry.info.effect.as_str() }), planned, bound))
    }

    fn told(entry: &Entry, ask: &Ask<'_>, more: Value, planned: Planned, bound: bool) -> Plan {
        let secrets: Vec<String> = planned.secrets.iter().map(ToString::to_string).collect();
        let mut plan = json!({
            "block": format!("{}@{}", entry.info.name, entry.info.version),
            "tenant": ask.tenant,
            "scopes": entry.scopes.list().map(|scope| scope.as_str()).collect::<Vec<_>>(),
            "rules": planned.rules,
            "secrets": secrets,
            "does": planned.does,
        });
        let guardrails = ask.narrow.guardrails.told();
        for (name, value) in [("guardrails", guardrails), ("cost", planned.cost.clone().unwrap_or_default())] {
            if !value.is_null() {
                plan[name] = value;
            }
        }
        if let Value::Object(more) = more {
            more.into_iter().for_each(|(name, value)| plan[name] = value);
        }
        let mut text = String::with_capacity(1 << 10);
        sorted(&plan, &mut text);
        let digest = bound.then(|| hex(&Sha256::digest(&text)));
        Plan { text, digest, planned }
    }
}

/// The digest of what a step would do; none where that cannot be told without reading its inputs.
///
/// # Errors
/// What is wrong with the inputs, as for a step that runs.
pub fn digest(entry: &Entry, ask: &Ask<'_>, referred: bool) -> Result<Option<String>, Fault> {
    let plan = if referred { Plan::by_reference(entry, ask)? } else { Plan::of(entry, ask)? };
    Ok(plan.digest)
}

/// Stands for a block and says what it would do. Has the policy and nothing else. Lives on its core.
struct Sandboxed {
    entry: &'static Entry,
    policy: Arc<Policy>,
    referred: bool,
    /// Outputs where a plan has none of its own, and where they come from.
    mock: (String, &'static str),
}

/// One for each of the table, and behind them one for each with inputs by reference.
pub(super) fn build_all(policy: &Arc<Policy>) -> Vec<Rc<dyn Block>> {
    let of = |referred: bool| {
        TABLE.iter().map(move |entry| -> Rc<dyn Block> {
            let mock = mock::outputs(&entry.manifest());
            Rc::new(Sandboxed { entry, policy: policy.clone(), referred, mock })
        })
    };
    of(false).chain(of(true)).collect()
}

impl Sandboxed {
    fn run(&self, cx: &BlockCx) -> Result<Bytes, Fault> {
        let narrow = Narrow { scopes: None, guardrails: Guardrails::read(&cx.guardrails)? };
        let (policy, tenant, name, inputs) = (&*self.policy, &*cx.tenant, self.entry.info.name, &*cx.inputs);
        let ask = Ask { policy, tenant, name, inputs, provider: "", narrow: &narrow };
        let Plan { text, digest, planned } =
            if self.referred { Plan::by_reference(self.entry, &ask)? } else { Plan::of(self.entry, &ask)? };
        for secret in &planned.secrets {
            secret.is_there().map_err(|error| {
                let details = json!({ "secret": error.reference, "rule": error.why });
                Fault::new(Code::ExecutionFailed, "A secret that the step would read is not there.")
                    .with_details(details.to_string())
            })?;
        }
        let mut out = format!("{{\"plan\":{text}");
        if let Some(digest) = digest {
            out.push_str(&format!(",\"plan_digest\":\"{digest}\""));
        }
        if !planned.notes.is_empty() {
            out.push_str(&format!(",\"notes\":{}", json!(planned.notes)));
        }
        let (outputs, from) = match &planned.outputs {
            Some(outputs) => (outputs, "plan"),
            None => (&self.mock.0, self.mock.1),
        };
        out.push_str(&format!(",\"outputs\":{outputs},\"outputs_from\":\"{from}\"}}"));
        Ok(Bytes::from(out))
    }
}

impl Block for Sandboxed {
    fn info(&self) -> &'static BlockInfo {
        self.entry.info
    }

    fn instant(&self, cx: &BlockCx) -> Option<Result<Bytes, Fault>> {
        Some(self.run(cx))
    }

    fn execute<'a>(&'a self, cx: BlockCx) -> Local<'a, Result<Bytes, Fault>> {
        Box::pin(async move { self.run(&cx) })
    }
}

/// Writes a value in the form of [`canonical`].
fn sorted(value: &Value, out: &mut String) {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by(|(one, _), (other, _)| one.as_bytes().cmp(other.as_bytes()));
            out.push('{');
            for (at, (name, value)) in members.into_iter().enumerate() {
                out.push_str(if at > 0 { "," } else { "" });
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push(':');
                sorted(value, out);
            }
            out.push('}');
        }
        Value::Array(list) => {
            out.push('[');
            for (at, value) in list.iter().enumerate() {
                out.push_str(if at > 0 { "," } else { "" });
                sorted(value, out);
            }
            out.push(']');
        }
        other => out.push_str(&other.to_string()),
    }
}

/// Writes JSON text with the members of objects in the order of their names' bytes and without blanks; numbers as they are.
fn canonical(text: &str, out: &mut String) {
    let text = text.trim_ascii();
    match text.as_bytes().first() {
        Some(b'{') => {
            let mut members = Inputs::read(text.as_bytes()).map(Inputs::members).unwrap_or_default();
            members.sort_by(|(one, _), (other, _)| one.as_bytes().cmp(other.as_bytes()));
            out.push('{');
            for (at, (name, value)) in members.iter().enumerate() {
                out.push_str(if at > 0 { "," } else { "" });
                out.push_str(&Value::from(&**name).to_string());
                out.push(':');
                canonical(value, out);
            }
            out.push('}');
        }
        Some(b'[') => {
            let list: Vec<&serde_json::value::RawValue> = serde_json::from_str(text).unwrap_or_default();
            out.push('[');
            for (at, value) in list.iter().enumerate() {
                out.push_str(if at > 0 { "," } else { "" });
                canonical(value.get(), out);
            }
            out.push(']');
        }
        Some(b'"') => match super::inputs::text_of(text) {
            Some(plain) => out.push_str(&Value::from(&*plain).to_string()),
            None => out.push_str(text),
        },
        _ => out.push_str(text),
    }
}
