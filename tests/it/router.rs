//! The router as a worker sees it: a model written from the wire contract alone, that judges every message a worker sends.
//!
//! [`Model`] is a pure state machine: it is told what was assigned ([`Model::assigned`]) and what was seen
//! ([`Model::observe`]), and says which rule a message breaks. [`peer`] drives it over a real server.

use std::collections::HashMap;

use serde_json::{Map, Value};

pub(crate) mod assignment;
mod cases;
mod letters;
pub(crate) mod peer;
pub(crate) mod rules;
pub(crate) mod violation;

pub(crate) use assignment::Assignment;
pub(crate) use rules::Headers;
pub(crate) use violation::{Rule, Violation};

use violation::broken;

/// The subjects of one deployment, the contract's defaults unless changed.
#[derive(Clone, Debug)]
pub(crate) struct Subjects {
    /// Assignments.
    pub(crate) assign: String,
    /// Acks.
    pub(crate) ack: String,
    /// Results.
    pub(crate) result: String,
    /// Heartbeats.
    pub(crate) heartbeat: String,
    /// Dead letters.
    pub(crate) dlq: String,
    /// Events go to `<prefix>.<tenant>`.
    pub(crate) events: String,
}

impl Default for Subjects {
    fn default() -> Self {
        Subjects {
            assign: "caf.exec.assign.v1".into(),
            ack: "caf.exec.assign.v1.ack".into(),
            result: "caf.exec.result.v1".into(),
            heartbeat: "caf.worker.heartbeat.v1".into(),
            dlq: "caf.exec.dlq.v1".into(),
            events: "beamline.worker.events".into(),
        }
    }
}

/// What the model is strict about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strictness {
    /// Results and acks carry a message id (JetStream); on core NATS they may go without headers.
    pub(crate) message_ids: bool,
    /// Acks come before results. Off where the observer's own connection may lose messages.
    pub(crate) order: bool,
    /// Owners change: a later one may decide again what an earlier one told of and could not ack any more. Where nobody owns the
    /// work, another worker may.
    pub(crate) owners: bool,
}

impl Default for Strictness {
    fn default() -> Self {
        Strictness { message_ids: true, order: true, owners: false }
    }
}

/// What is owed for an assignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owed {
    /// An ack and exactly one result.
    Answer,
    /// Neither: it cannot be answered, or must not be.
    Silence,
    /// Either: the contract leaves it open whether ids could be read.
    Either,
}

/// One assignment, as sent, and what came back.
#[derive(Clone, Debug)]
struct Sent {
    echo: assignment::Echo,
    owed: Owed,
    ack: Option<String>,
    result: Option<Seen>,
}

/// The first terminal result.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Its bytes.
    pub(crate) payload: Vec<u8>,
    /// Its message id.
    pub(crate) message_id: Option<String>,
    /// The parsed payload.
    pub(crate) object: Map<String, Value>,
}

impl Seen {
    /// `status`.
    pub(crate) fn status(&self) -> &str {
        self.object.get("status").and_then(Value::as_str).unwrap_or_default()
    }

    /// `error_code`, or nothing.
    pub(crate) fn code(&self) -> &str {
        self.object.get("error_code").and_then(Value::as_str).unwrap_or_default()
    }
}

/// What the model counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Ack messages.
    pub(crate) acks: u64,
    /// Result messages, repeats included.
    pub(crate) results: u64,
    /// Results that were byte-identical repeats.
    pub(crate) repeats: u64,
    /// Results that a later owner decided again.
    pub(crate) decided_again: u64,
    /// Heartbeats.
    pub(crate) heartbeats: u64,
    /// Dead letters, repeats included.
    pub(crate) dead_letters: u64,
    /// Events.
    pub(crate) events: u64,
}

/// The router's side of the contract as a state machine.
#[derive(Debug, Default)]
pub(crate) struct Model {
    subjects: Subjects,
    strict: Strictness,
    sent: HashMap<String, Sent>,
    /// All bodies sent under an id.
    bodies: HashMap<String, Vec<Vec<u8>>>,
    open: usize,
    ids: HashMap<String, String>,
    dead: Vec<Map<String, Value>>,
    events: HashMap<String, u64>,
    counts: Counts,
    /// By worker, the newest epoch of a result of its.
    epochs: HashMap<String, u64>,
    /// Outcomes that came though a later owner had told its own: the assignment, whose they are, and the later one's epoch.
    told_late: Vec<(String, String, u64)>,
}

/// Whether another owner decided the second of two results, or another worker where nobody owns.
fn decided_by_a_later_one(first: &Map<String, Value>, second: &Map<String, Value>) -> bool {
    match (epoch(first), epoch(second)) {
        (None | Some(0), None | Some(0)) => first.get("worker_id") != second.get("worker_id"),
        (first, second) => first < second,
    }
}

fn epoch(result: &Map<String, Value>) -> Option<u64> {
    result.get("owner_epoch").and_then(Value::as_u64)
}

impl Model {
    /// A router that has sent nothing yet.
    pub(crate) fn new(subjects: Subjects, strict: Strictness) -> Self {
        Model { subjects, strict, ..Model::default() }
    }

    /// An assignment goes out. Sending the same id again changes nothing that is already owed.
    pub(crate) fn assigned(&mut self, id: &str, echo: assignment::Echo, owed: Owed) {
        self.bodies.entry(id.to_owned()).or_default().push(echo.body.clone());
        if self.sent.contains_key(id) {
            return;
        }
        self.open += usize::from(owed == Owed::Answer);
        self.sent.insert(id.to_owned(), Sent { echo, owed, ack: None, result: None });
    }

    /// Judges one message of the worker's.
    ///
    /// # Errors
    /// The rule it breaks. What a broken message says is not taken in.
    pub(crate) fn observe(&mut self, subject: &str, headers: &Headers, payload: &[u8]) -> Result<(), Violation> {
        let object = rules::body(headers, payload)?;
        if subject == self.subjects.ack {
            self.ack(headers, &object)
        } else if subject == self.subjects.result {
            self.result(headers, payload, object)
        } else if subject == self.subjects.heartbeat {
            letters::heartbeat(&object).map(|()| self.counts.heartbeats += 1)
        } else if subject == self.subjects.dlq {
            let bodies = &self.bodies;
            letters::dead_letter(headers, &object, |id| bodies.get(id).map(Vec::as_slice))?;
            self.counts.dead_letters += 1;
            self.dead.push(object);
            Ok(())
        } else if let Some(tenant) = subject.strip_prefix(&self.subjects.events).and_then(|rest| rest.strip_prefix('.')) {
            let kind = letters::event(tenant, headers, &object)?;
            self.counts.events += 1;
            *self.events.entry(kind).or_default() += 1;
            Ok(())
        } else {
            broken(Rule::Subject, subject)
        }
    }

    fn ack(&mut self, headers: &Headers, object: &Map<String, Value>) -> Result<(), Violation> {
        let id = rules::string(object, "assignment_id")?.to_owned();
        self.common(&id, headers, object, 'a')?;
        let status = rules::string(object, "status")?;
        if !matches!(status, "accepted" | "rejected" | "error") {
            return broken(Rule::Status, format!("ack status {status:?}"));
        }
        if rules::string(object, "message")? != rules::string(object, "reason")? {
            return broken(Rule::AckReason, "message and reason differ");
        }
        rules::unix_ms(object, "acknowledged_at")?;
        match rules::string(object, "overload_status")? {
            "healthy" | "degraded" | "overloaded" | "critical" => {}
            other => return broken(Rule::Type, format!("overload_status {other:?}")),
        }
        let strict = self.strict;
        let sent = self.known(&id)?;
        match (&sent.ack, &sent.result) {
            (Some(first), _) if first != status => return broken(Rule::AckContradicts, format!("{first}, then {status}")),
            (Some(_), _) => {}
            (None, Some(_)) if strict.order => return broken(Rule::AckOrder, "the result came first"),
            (None, Some(result)) if status != "accepted" && result.status() == "success" => {
                return broken(Rule::AckOrder, format!("{status} after a success"));
            }
            (None, _) => sent.ack = Some(status.to_owned()),
        }
        self.counts.acks += 1;
        Ok(())
    }

    fn result(&mut self, headers: &Headers, payload: &[u8], object: Map<String, Value>) -> Result<(), Violation> {
        let id = rules::string(&object, "assignment_id")?.to_owned();
        self.common(&id, headers, &object, 'r')?;
        let status = rules::string(&object, "status")?;
        if !matches!(status, "success" | "error" | "timeout" | "cancelled") {
            return broken(Rule::Status, format!("result status {status:?}"));
        }
        let provider = rules::string(&object, "provider_id")?;
        let kind = rules::string(rules::object(&object, "job")?, "type")?;
        rules::whole(&object, "latency_ms")?;
        match object.get("cost") {
            Some(Value::Number(_)) => {}
            Some(other) => return broken(Rule::Type, format!("cost is {other}")),
            None => return broken(Rule::Missing, "cost"),
        }
        rules::unix_ms(&object, "timestamp")?;
        rules::flow_ids(&object)?;
        rules::error_fields(&object, status == "success")?;
        letters::extras(&object)?;
        if let (Some(epoch), Some(worker)) = (epoch(&object), object.get("worker_id").and_then(Value::as_str)) {
            let newest = self.epochs.entry(worker.to_owned()).or_default();
            *newest = epoch.max(*newest);
        }
        let strict = self.strict;
        let sent = self.known(&id)?;
        for (name, was, is) in [("provider_id", &sent.echo.provider_id, provider), ("job.type", &sent.echo.job_type, kind)] {
            // An empty one is as good as unread.
            if was.as_deref().is_some_and(|was| !was.is_empty() && was != is) {
                return broken(Rule::Echo, format!("{name} is {is:?}, sent was {was:?}"));
            }
        }
        match sent.ack.as_deref() {
            None if strict.order => return broken(Rule::AckOrder, "a result without an ack before it"),
            Some("rejected" | "error") if status == "success" => return broken(Rule::AckOrder, "a success after a refusal"),
            _ => {}
        }
        let message_id = rules::header(headers, "Nats-Msg-Id").first().map(|id| (*id).to_owned());
        if let Some(first) = &sent.result {
            if first.payload != payload && strict.owners && decided_by_a_later_one(&first.object, &object) {
                self.counts.results += 1;
                self.counts.decided_again += 1;
                return Ok(());
            }
            if let (Some(later), Some(earlier)) = (epoch(&first.object), epoch(&object))
                && strict.owners
                && first.payload != payload
                && earlier < later
            {
                // Its worker has come back to the work and tells what its journal has; or it is one that should be silent.
                let worker = object.get("worker_id").and_then(Value::as_str).unwrap_or_default().to_owned();
                self.told_late.push((id, worker, later));
                self.counts.results += 1;
                self.counts.decided_again += 1;
                return Ok(());
            }
            if first.payload != payload {
                return broken(Rule::SecondResult, format!("{id}: other bytes than the first time"));
            }
            if first.message_id != message_id {
                return broken(Rule::SecondResult, format!("{id}: another Nats-Msg-Id than the first time"));
            }
            self.counts.repeats += 1;
        } else {
            let owed = sent.owed == Owed::Answer;
            sent.result = Some(Seen { payload: payload.to_vec(), message_id, object });
            self.open -= usize::from(owed);
        }
        self.counts.results += 1;
        Ok(())
    }

    /// What acks and results have in common.
    fn common(&mut self, id: &str, headers: &Headers, object: &Map<String, Value>, kind: char) -> Result<(), Violation> {
        rules::version(object)?;
        rules::no_nulls(object)?;
        let (request, tenant) = (rules::string(object, "request_id")?, rules::string(object, "tenant_id")?);
        let trace = rules::trace_id(object)?;
        rules::agrees(headers, "version", Some("1"))?;
        rules::agrees(headers, "tenant_id", Some(tenant))?;
        rules::agrees(headers, "trace_id", trace)?;
        let strict = self.strict;
        let sent = self.known(id)?;
        if sent.owed == Owed::Silence {
            return broken(Rule::Silence, format!("{id} was to stay unanswered"));
        }
        for (name, was, is) in [("request_id", &sent.echo.request_id, request), ("tenant_id", &sent.echo.tenant_id, tenant)] {
            if was.as_deref().is_some_and(|was| was != is) {
                return broken(Rule::Echo, format!("{name} is {is:?}, sent was {was:?}"));
            }
        }
        if let Some(trace) = trace.filter(|trace| !sent.echo.traces.iter().any(|sent| sent == trace)) {
            return broken(Rule::Echo, format!("trace_id {trace} was never sent"));
        }
        match rules::header(headers, "Nats-Msg-Id").as_slice() {
            [] if headers.is_empty() && !strict.message_ids => Ok(()),
            [one] => {
                rules::message_id(one, kind)?;
                let owner = self.ids.entry((*one).to_owned()).or_insert_with(|| id.to_owned());
                if owner == id { Ok(()) } else { broken(Rule::MsgIdReused, format!("{one} names {owner} and {id}")) }
            }
            [] => broken(Rule::MsgIdMissing, format!("{} other headers", headers.len())),
            many => broken(Rule::MsgIdForm, format!("{} message ids", many.len())),
        }
    }

    fn known(&mut self, id: &str) -> Result<&mut Sent, Violation> {
        match self.sent.get_mut(id) {
            Some(sent) => Ok(sent),
            None => broken(Rule::UnknownAssignment, id),
        }
    }

    /// The first result of an assignment.
    pub(crate) fn result_of(&self, id: &str) -> Option<&Seen> {
        self.sent.get(id)?.result.as_ref()
    }

    /// The status of the first ack of an assignment.
    pub(crate) fn ack_of(&self, id: &str) -> Option<&str> {
        self.sent.get(id)?.ack.as_deref()
    }

    /// How many answers are owed still.
    pub(crate) fn open(&self) -> usize {
        self.open
    }

    /// The assignments that are owed a result still.
    pub(crate) fn unanswered(&self) -> Vec<&str> {
        let owed = |sent: &Sent| sent.owed == Owed::Answer && sent.result.is_none();
        self.sent.iter().filter(|(_, sent)| owed(sent)).map(|(id, _)| id.as_str()).collect()
    }

    /// Every dead letter seen, in order.
    pub(crate) fn dead_letters(&self) -> &[Map<String, Value>] {
        &self.dead
    }

    /// How many events of this kind were seen.
    pub(crate) fn events_of(&self, kind: &str) -> u64 {
        self.events.get(kind).copied().unwrap_or_default()
    }

    /// The newest owner that a result names; empty where none does.
    #[cfg(feature = "failpoints")]
    pub(crate) fn owner(&self) -> &str {
        self.epochs.iter().max_by_key(|(_, epoch)| **epoch).map_or("", |(worker, _)| worker)
    }

    /// Outcomes told late by workers that did not own the work again afterwards: they should have been silent.
    pub(crate) fn told_by_nobody(&self) -> Vec<&str> {
        let back = |worker: &str, than: u64| self.epochs.get(worker).is_some_and(|newest| *newest > than);
        let late = self.told_late.iter().filter(|(_, worker, later)| !back(worker, *later));
        late.map(|(id, ..)| id.as_str()).collect()
    }

    /// What was counted so far.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }
}
