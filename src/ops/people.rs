//! The way from people to the steps that wait for them: which there are, and what somebody on this machine decides.
//!
//! It asks the shards, and waits for them with patience that ends; it decides nothing, and whoever decides by it is told what
//! anybody else would be told who signals.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use shards::gate::Round;
use shards::ids::{Key, Text};
use shards::map;
use shards::runtime::ports::{Control, Waiting};
use shards::step::{Delivery, Headers, Origin};

use super::timeline::time;
use crate::blocks::approval::Question;
use crate::edge::native::SIGNALS_PREFIX;

/// Shards answer within this, or not at all.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the shards of one worker. Crosses threads.
#[derive(Clone, Debug)]
pub struct People {
    controls: Vec<flume::Sender<Control>>,
}

/// A shard does not answer: it stalls, ends, or waits for its turn to own anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the worker does not answer: it stands by, or ends, or is held up")]
pub struct Silent;

impl People {
    /// For the worker whose shards are told things by these.
    pub fn new(controls: Vec<flume::Sender<Control>>) -> People {
        People { controls }
    }

    /// Steps that wait, or the one of this key; at most so many, those whose time is over first. Blocks.
    ///
    /// # Errors
    /// Nobody answers in time.
    pub fn waiting(&self, key: Option<Key>, rows_max: usize) -> Result<Vec<Waiting>, Silent> {
        let until = Instant::now() + PATIENCE;
        let (answer, answers) = flume::bounded(self.controls.len());
        for control in &self.controls {
            control.try_send(Control::Waiting { key, rows_max, answer: answer.clone() }).map_err(|_| Silent)?;
        }
        // Shards that end without a word are not waited for.
        drop(answer);
        let mut rows = Vec::new();
        for _ in &self.controls {
            rows.extend(answers.recv_deadline(until).map_err(|_| Silent)?);
        }
        rows.sort_by_key(|row| row.until_ms);
        rows.truncate(rows_max);
        Ok(rows)
    }

    /// Hands a Signal over, in JSON, to the shard of its tenant; gives the SignalReply, in JSON. Blocks.
    ///
    /// # Errors
    /// Nobody answers in time; what was said may count all the same.
    pub fn say(&self, tenant: &str, headers: Headers, body: Bytes) -> Result<Bytes, Silent> {
        if self.controls.is_empty() {
            return Err(Silent);
        }
        let shard = map::shard(map::partition(tenant), self.controls.len() as u16);
        let subject = Text::from(format!("{SIGNALS_PREFIX}{tenant}"));
        let notice = Delivery { origin: Origin::Core, subject, headers, body, reply: None };
        let (answer, told) = flume::bounded(1);
        self.controls[usize::from(shard)].try_send(Control::Say { notice, answer }).map_err(|_| Silent)?;
        told.recv_timeout(PATIENCE).map_err(|_| Silent)
    }
}

/// A step that waits, as it is shown: a JSON object.
pub fn row(waiting: &Waiting) -> Value {
    let Waiting { gate, .. } = waiting;
    let question = Question::of(&waiting.inputs);
    let round: &Round = gate.round_of(waiting.escalated);
    let on_timeout = match (&gate.escalation, gate.approve_overdue) {
        (Some(_), _) if !waiting.escalated => "escalate",
        (_, true) => "approve",
        (_, false) => "reject",
    };
    let votes = waiting.votes.iter().map(|vote| {
        json!({
            "actor": &*vote.actor, "decision": if vote.approve { "approved" } else { "rejected" }, "comment": &*vote.comment,
            "signed": vote.signed, "at": time(vote.at_ms),
        })
    });
    let names: Vec<&str> = round.approvers.iter().map(|name| &**name).collect();
    let mut row = json!({
        "key": waiting.key.to_string(),
        "tenant": &*waiting.tenant,
        "title": question.as_ref().map_or("", |question| &question.title),
        "approvers": names,
        "quorum": round.quorum,
        "escalated": waiting.escalated,
        "on_timeout": on_timeout,
        "signed": gate.signed,
        "since": time(waiting.since_ms),
        "until": time(waiting.until_ms),
        "votes": votes.collect::<Vec<_>>(),
        "assignment_id": &*waiting.assignment_id,
    });
    let texts =
        [("run_id", &waiting.run_id), ("flow_id", &waiting.flow_id), ("step_id", &waiting.step_id), ("plan_digest", &gate.plan)];
    for (name, text) in texts {
        if let Some(text) = text {
            row[name] = Value::from(&**text);
        }
    }
    if let Some(attempt) = waiting.attempt {
        row["attempt"] = attempt.into();
    }
    if let Some(question) = question {
        if !question.text.is_empty() {
            row["text"] = question.text.into();
        }
        if let Some(details) = question.details {
            row["details"] = serde_json::from_str(details.get()).unwrap_or_default();
        }
    }
    row
}

/// The Signal that decides a step which is shown so: a JSON object.
pub fn signal(row: &Value, approve: bool, actor: Option<&str>, comment: &str, plan: Option<&str>) -> Value {
    let mut context = json!({ "tenant_id": row["tenant"] });
    for name in ["run_id", "flow_id", "step_id", "attempt"] {
        if let Some(value) = row.get(name) {
            context[name] = value.clone();
        }
    }
    let decision = if approve { "APPROVED" } else { "REJECTED" };
    let mut signal = json!({
        "context": context, "assignment_id": row["assignment_id"], "name": "approval", "decision": decision, "comment": comment,
    });
    if let Some(actor) = actor {
        signal["actor"] = actor.into();
    }
    if let Some(plan) = plan {
        signal["data"] = json!({ "plan_digest": plan });
    }
    signal
}
