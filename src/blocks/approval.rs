//! `human.approval`: waits until people have decided. It runs nothing: its check makes the gate ([`shards::gate`]) that the step
//! waits at, and its shard does the rest. Who may decide stands in the step itself, and silence approves nothing unless the step
//! says so.

use bytes::Bytes;
use serde_json::json;
use serde_json::value::RawValue;
use shards::block::{Block, BlockCx, BlockInfo, Local};
use shards::gate::{APPROVERS_MAX, Gate, Round};
use shards::ids::Text;
use shards::limits::{GATE_MS_MAX, ID_BYTES_MAX};
use shards::outcome::{Code, Fault};
use shards::step::EffectClass;

use super::inputs::{Inputs, fault, forbidden, missing};
use super::sandbox::Planned;
use super::{Ask, Checked, NO_SCOPES};

pub(super) static INFO: BlockInfo =
    BlockInfo { name: "human.approval", aliases: &["human_approval"], version: "1.0.0", effect: EffectClass::Pure };

/// How long a round lasts that says nothing of it, in milliseconds (24 h).
const WAIT_MS: u64 = 24 * 3600 * 1000;
/// The shortest round, in milliseconds.
const WAIT_MS_MIN: u64 = 1_000;
/// Longest title, in bytes.
const TITLE_BYTES_MAX: usize = 256;
/// Longest text, in bytes.
const TEXT_BYTES_MAX: usize = 16 << 10;
/// Largest details, in bytes.
const DETAILS_BYTES_MAX: usize = 64 << 10;

pub(super) struct Approval;

/// What people are shown of a step that waits for them.
pub struct Question {
    /// In a line.
    pub title: String,
    /// More of it; may be empty.
    pub text: String,
    /// JSON text of what it is about, if that was given.
    pub details: Option<Box<RawValue>>,
}

pub(super) fn check(_name: &str, inputs: &[u8]) -> Result<Checked, Fault> {
    let inputs = Inputs::read(inputs)?;
    question(&inputs)?;
    let (first, overdue) = round(&inputs, "", &["reject", "approve", "escalate"])?;
    let escalation = match (overdue.as_str(), inputs.json("escalation")) {
        ("escalate", None) => return Err(missing("escalation", "required where on_timeout is escalate")),
        ("escalate", Some(raw)) => {
            let inner: Inputs<'_> = serde_json::from_str(raw).map_err(|_| forbidden("escalation", "an object"))?;
            Some(round(&inner, "escalation/", &["reject", "approve"])?)
        }
        (_, Some(_)) => return Err(forbidden("escalation", "only where on_timeout is escalate")),
        (_, None) => None,
    };
    let last = escalation.as_ref().map_or(&overdue, |(_, overdue)| overdue);
    let approve_overdue = last == "approve";
    let shortest = escalation.as_ref().map_or(first.wait_ms, |(round, _)| round.wait_ms.min(first.wait_ms));
    let remind_ms = match inputs.json("remind_before_ms") {
        Some(_) => Some(inputs.integer("remind_before_ms", 1..=shortest - 1, 0)?),
        None => None,
    };
    let plan = match inputs.text("plan_digest")? {
        Some(digest) if digest.len() == 64 && digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) => {
            Some(Text::from(digest.into_owned()))
        }
        Some(_) => return Err(forbidden("plan_digest", "64 lower-case hexadecimal digits")),
        None => None,
    };
    let gate = Gate {
        first,
        escalation: escalation.map(|(round, _)| round),
        approve_overdue,
        remind_ms,
        signed: inputs.flag("signed")?.unwrap_or(false),
        plan,
    };
    if gate.wait_ms() > GATE_MS_MAX {
        return Err(forbidden("escalation/deadline_ms", "with the first deadline at most 90 days"));
    }
    Ok(Checked { gate: Some(std::rc::Rc::new(gate)), scopes: NO_SCOPES, ..Checked::as_sent(EffectClass::Pure) })
}

/// Whom it would ask. Nobody is asked by a dry run, and its outputs are those of a yes: what comes after a no is not run at all.
pub(super) fn plan(ask: &Ask<'_>) -> Result<Planned, Fault> {
    let checked = check(ask.name, ask.inputs)?;
    let gate = checked.gate.as_deref();
    let round = |round: &Round| {
        let names: Vec<&str> = round.approvers.iter().map(|name| &**name).collect();
        json!({ "approvers": names, "quorum": round.quorum, "wait_ms": round.wait_ms })
    };
    let asks = gate.map(|gate| {
        json!({
            "first": round(&gate.first), "escalation": gate.escalation.as_ref().map(round), "signed": gate.signed,
            "overdue": if gate.approve_overdue { "approve" } else { "reject" },
        })
    });
    let outputs = json!({ "approved": true, "decision": "approved", "overdue": false, "decided_at_ms": 0, "votes": [] });
    let notes = vec!["nobody was asked: the outputs are those of a yes"];
    Ok(Planned { notes, ..Planned::of(json!({ "asks": asks })).with_outputs(outputs) })
}

/// One round as it is written, and what is to happen when it is over.
fn round(inputs: &Inputs<'_>, at: &str, endings: &[&str]) -> Result<(Round, String), Fault> {
    let field = |name: &str| format!("{at}{name}");
    let within = |fault: Fault| if at.is_empty() { fault } else { deeper(fault, at) };
    let raw = inputs.json("approvers").ok_or_else(|| missing(&field("approvers"), "required"))?;
    let rule = format!("a list of 1 to {APPROVERS_MAX} names, each of 1 to {ID_BYTES_MAX} bytes, none twice");
    let names: Vec<String> = serde_json::from_str(raw).map_err(|_| forbidden(&field("approvers"), &rule))?;
    let fits = |name: &String| (1..=ID_BYTES_MAX).contains(&name.len()) && !name.contains(char::is_control);
    let mut sorted: Vec<&String> = names.iter().collect();
    sorted.sort_unstable();
    sorted.dedup();
    if !(1..=APPROVERS_MAX).contains(&names.len()) || sorted.len() < names.len() || !names.iter().all(fits) {
        return Err(forbidden(&field("approvers"), &rule));
    }
    let anybody = names.iter().any(|name| name == shards::gate::ANYBODY);
    let most = if anybody { APPROVERS_MAX } else { names.len() } as u64;
    let quorum = inputs.integer("quorum", 1..=most, 1).map_err(within)? as u32;
    let wait_ms = inputs.integer("deadline_ms", WAIT_MS_MIN..=GATE_MS_MAX, WAIT_MS).map_err(within)?;
    let overdue = inputs.text("on_timeout").map_err(within)?;
    let overdue = overdue.ok_or_else(|| missing(&field("on_timeout"), "required: what silence means"))?.into_owned();
    if !endings.contains(&overdue.as_str()) {
        let (last, others) = endings.split_last().expect("there are some");
        return Err(forbidden(&field("on_timeout"), &format!("{} or {last}", others.join(", "))));
    }
    Ok((Round { approvers: names.into_iter().map(Text::from).collect(), quorum, wait_ms }, overdue))
}

/// A fault about a field of an inner object, said of the outer one.
fn deeper(inner: Fault, at: &str) -> Fault {
    let said: serde_json::Value = serde_json::from_slice(&inner.details).unwrap_or_default();
    let field = said["pointer"].as_str().unwrap_or_default().trim_start_matches('/');
    fault(
        inner.code,
        "An input has a value that its rule forbids.",
        &format!("{at}{field}"),
        said["rule"].as_str().unwrap_or_default(),
    )
}

fn question(inputs: &Inputs<'_>) -> Result<Question, Fault> {
    let title = inputs.text_needed("title")?;
    if title.trim().is_empty() || title.len() > TITLE_BYTES_MAX || title.contains(char::is_control) {
        return Err(forbidden("title", "one line of 1 to 256 bytes"));
    }
    let text = inputs.text("text")?.unwrap_or_default();
    if text.len() > TEXT_BYTES_MAX {
        return Err(forbidden("text", "at most 16384 bytes"));
    }
    let details = inputs.json("details");
    if details.is_some_and(|details| details.len() > DETAILS_BYTES_MAX) {
        return Err(forbidden("details", "at most 65536 bytes"));
    }
    let details = details.and_then(|details| RawValue::from_string(details.to_owned()).ok());
    Ok(Question { title: title.into_owned(), text: text.into_owned(), details })
}

impl Question {
    /// What a step with these inputs asks, which were checked when it came; nothing where they are no such step's.
    pub fn of(inputs: &[u8]) -> Option<Question> {
        question(&Inputs::read(inputs).ok()?).ok()
    }
}

impl Block for Approval {
    fn info(&self) -> &'static BlockInfo {
        &INFO
    }

    fn execute<'a>(&'a self, _cx: BlockCx) -> Local<'a, Result<Bytes, Fault>> {
        // A step of it waits at its gate, and nobody begins it.
        Box::pin(async { Err(Fault::new(Code::InternalError, "A step that waits for people was begun.")) })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn gate(inputs: &Value) -> Result<Gate, String> {
        let checked = check("human.approval", inputs.to_string().as_bytes());
        let told = |fault: Fault| {
            let details: Value = serde_json::from_slice(&fault.details).expect("details are JSON");
            format!(
                "{} {}: {}",
                fault.code.as_str(),
                details["pointer"].as_str().unwrap_or_default(),
                details["rule"].as_str().unwrap_or_default()
            )
        };
        checked.map(|checked| (*checked.gate.expect("a gate")).clone()).map_err(told)
    }

    fn asked() -> Value {
        json!({"title": "Ship it?", "approvers": ["ann"], "on_timeout": "reject"})
    }

    fn with(changes: &Value) -> Value {
        let mut inputs = asked();
        for (name, value) in changes.as_object().expect("an object") {
            inputs[name] = value.clone();
        }
        inputs
    }

    #[test]
    fn what_is_left_out_is_the_careful_thing() {
        let plain = gate(&asked()).expect("a gate");
        let first = Round { approvers: vec![Text::from("ann")], quorum: 1, wait_ms: WAIT_MS };
        let careful = Gate { first, escalation: None, approve_overdue: false, remind_ms: None, signed: false, plan: None };
        assert_eq!(plain, careful);
    }

    #[test]
    fn all_that_can_be_said_is_heard() {
        let said = with(&json!({
            "approvers": ["ann", "ben"], "quorum": 2, "deadline_ms": 60_000, "on_timeout": "escalate", "remind_before_ms": 999,
            "escalation": {"approvers": ["*"], "quorum": 3, "deadline_ms": 1_000, "on_timeout": "approve"},
            "signed": true, "plan_digest": "ab".repeat(32), "text": "More.", "details": {"amount": 7},
        }));
        let gate = gate(&said).expect("a gate");
        assert_eq!((gate.wait_ms(), gate.approve_overdue, gate.remind_ms, gate.signed), (61_000, true, Some(999), true));
        assert_eq!(gate.escalation.map(|round| round.quorum), Some(3));
        assert_eq!(gate.plan.as_deref(), Some(&*"ab".repeat(32)));
        let question = Question::of(said.to_string().as_bytes()).expect("a question");
        assert_eq!((&*question.title, &*question.text), ("Ship it?", "More."));
        assert_eq!(question.details.map(|raw| raw.get().to_owned()).as_deref(), Some(r#"{"amount":7}"#));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_field_and_rule() {
        let names = |count: usize| (0..count).map(|number| format!("n{number}")).collect::<Vec<_>>();
        for (changes, wanted) in [
            (json!({"title": null}), "MISSING_REQUIRED_FIELD /title: required"),
            (json!({"title": " "}), "INVALID_INPUT /title: one line of 1 to 256 bytes"),
            (json!({"title": "a\nb"}), "INVALID_INPUT /title: one line of 1 to 256 bytes"),
            (json!({"title": "x".repeat(257)}), "INVALID_INPUT /title: one line of 1 to 256 bytes"),
            (json!({"text": "x".repeat(16_385)}), "INVALID_INPUT /text: at most 16384 bytes"),
            (json!({"details": "x".repeat(65_536)}), "INVALID_INPUT /details: at most 65536 bytes"),
            (json!({"approvers": null}), "MISSING_REQUIRED_FIELD /approvers: required"),
            (json!({"approvers": []}), "INVALID_INPUT /approvers: a list of 1 to 64 names, each of 1 to 256 bytes, none twice"),
            (
                json!({"approvers": ["ann", "ann"]}),
                "INVALID_INPUT /approvers: a list of 1 to 64 names, each of 1 to 256 bytes, none twice",
            ),
            (json!({"approvers": [""]}), "INVALID_INPUT /approvers: a list of 1 to 64 names, each of 1 to 256 bytes, none twice"),
            (
                json!({"approvers": "ann"}),
                "INVALID_INPUT /approvers: a list of 1 to 64 names, each of 1 to 256 bytes, none twice",
            ),
            (
                json!({"approvers": names(65)}),
                "INVALID_INPUT /approvers: a list of 1 to 64 names, each of 1 to 256 bytes, none twice",
            ),
            (json!({"quorum": 0}), "INVALID_INPUT /quorum: a whole number from 1 to 1"),
            (json!({"quorum": 2}), "INVALID_INPUT /quorum: a whole number from 1 to 1"),
            (json!({"deadline_ms": 999}), "INVALID_INPUT /deadline_ms: a whole number from 1000 to 7776000000"),
            (json!({"on_timeout": null}), "MISSING_REQUIRED_FIELD /on_timeout: required: what silence means"),
            (json!({"on_timeout": "maybe"}), "INVALID_INPUT /on_timeout: reject, approve or escalate"),
            (json!({"on_timeout": "escalate"}), "MISSING_REQUIRED_FIELD /escalation: required where on_timeout is escalate"),
            (json!({"escalation": {}}), "INVALID_INPUT /escalation: only where on_timeout is escalate"),
            (json!({"on_timeout": "escalate", "escalation": 1}), "INVALID_INPUT /escalation: an object"),
            (json!({"on_timeout": "escalate", "escalation": {}}), "MISSING_REQUIRED_FIELD /escalation/approvers: required"),
            (
                json!({"on_timeout": "escalate", "escalation": {"approvers": ["b"], "on_timeout": "escalate"}}),
                "INVALID_INPUT /escalation/on_timeout: reject or approve",
            ),
            (
                json!({"on_timeout": "escalate", "escalation": {"approvers": ["b"], "quorum": 2, "on_timeout": "reject"}}),
                "INVALID_INPUT /escalation/quorum: a whole number from 1 to 1",
            ),
            (
                json!({"deadline_ms": GATE_MS_MAX, "on_timeout": "escalate", "escalation": {"approvers": ["b"], "on_timeout": "reject"}}),
                "INVALID_INPUT /escalation/deadline_ms: with the first deadline at most 90 days",
            ),
            (
                json!({"deadline_ms": 1_000, "remind_before_ms": 1_000}),
                "INVALID_INPUT /remind_before_ms: a whole number from 1 to 999",
            ),
            (json!({"signed": "yes"}), "INVALID_INPUT /signed: true or false"),
            (json!({"plan_digest": "AB"}), "INVALID_INPUT /plan_digest: 64 lower-case hexadecimal digits"),
        ] {
            assert_eq!(gate(&with(&changes)), Err(wanted.to_owned()), "{changes}");
        }
        assert_eq!(check("", b"[]").err().map(|fault| fault.code), Some(Code::InvalidInput));
    }
}
