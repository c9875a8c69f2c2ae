//! Lifecycle events for observers: CloudEvents 1.0 in structured JSON, the same for both profiles.

use shards::event::{Asking, Stage};
use shards::gate::Gate;
use shards::outcome::Outcome;
use shards::step::Arrival;

use crate::blocks::approval::Question;
use crate::edge::native;
use crate::edge::pen::Pen;
use crate::edge::wire::WireSettings;

/// The content type of an event.
pub(super) const CONTENT_TYPE: &str = "application/cloudevents+json";

/// What every event says of itself.
pub(super) struct Told<'a> {
    /// Its message id.
    pub(super) id: &'a str,
    /// Counts up within the step.
    pub(super) sequence: u32,
    /// Unix ms.
    pub(super) at_ms: u64,
}

/// That people are asked.
pub(super) struct Asked {
    /// Why it is told now.
    pub(super) why: Asking,
    /// It is the second round's people.
    pub(super) escalated: bool,
    /// Until when they may decide, Unix ms.
    pub(super) until_ms: u64,
}

/// One stage of a step.
pub(super) fn lifecycle(
    pen: &mut Pen,
    settings: &WireSettings,
    arrival: &Arrival,
    told: &Told<'_>,
    stage: Stage,
    outcome: Option<&Outcome>,
) {
    begin(pen, settings, arrival, told, name(stage));
    if let Some(outcome) = outcome {
        // Without its outputs: observers learn that something happened, not what came of it.
        pen.raw(",\"result\":{\"status\":").text(native::status(outcome.status));
        native::verdict(pen, outcome);
        pen.raw(",\"effect\":").text(outcome.effect.as_str()).raw("}");
    }
    pen.raw("}}");
}

/// What a try says while it runs: the text of a JSON object.
pub(super) fn progress(
    pen: &mut Pen,
    settings: &WireSettings,
    arrival: &Arrival,
    told: &Told<'_>,
    progress: &[u8],
    try_number: u32,
) {
    begin(pen, settings, arrival, told, "progress");
    pen.raw(",\"try_number\":").int(u64::from(try_number));
    pen.raw(",\"progress\":").raw_bytes(progress);
    pen.raw("}}");
}

/// People are asked: what, whom, until when, and where an answer goes.
pub(super) fn approval(pen: &mut Pen, settings: &WireSettings, arrival: &Arrival, told: &Told<'_>, gate: &Gate, asked: &Asked) {
    begin(pen, settings, arrival, told, "approval_needed");
    let why = match asked.why {
        Asking::First => "first",
        Asking::Reminder => "reminder",
        Asking::Escalation => "escalation",
    };
    pen.raw(",\"approval\":{\"why\":").text(why);
    if let Some(question) = arrival.work().and_then(|work| Question::of(&work.inputs)) {
        pen.raw(",\"title\":").text(&question.title);
        if !question.text.is_empty() {
            pen.raw(",\"text\":").text(&question.text);
        }
        if let Some(details) = &question.details {
            pen.raw(",\"details\":").raw(details.get());
        }
    }
    let round = gate.round_of(asked.escalated);
    pen.raw(",\"approvers\":[");
    for (index, name) in round.approvers.iter().enumerate() {
        pen.raw(if index > 0 { "," } else { "" }).text(name);
    }
    pen.raw("],\"quorum\":").int(u64::from(round.quorum));
    pen.raw(",\"until\":").time(asked.until_ms);
    let overdue = match (&gate.escalation, gate.approve_overdue) {
        (Some(_), _) if !asked.escalated => "escalate",
        (_, true) => "approve",
        (_, false) => "reject",
    };
    pen.raw(",\"on_timeout\":").text(overdue);
    pen.raw(if gate.signed { ",\"signed\":true" } else { ",\"signed\":false" });
    if let Some(plan) = &gate.plan {
        pen.raw(",\"plan_digest\":").text(plan);
    }
    pen.raw(",\"answer_on\":").text(&format!("{}{}", native::SIGNALS_PREFIX, arrival.tenant));
    pen.raw("}}}");
}

fn begin(pen: &mut Pen, settings: &WireSettings, arrival: &Arrival, told: &Told<'_>, name: &str) {
    let Told { id, sequence, at_ms } = *told;
    pen.raw("{\"specversion\":\"1.0\",\"id\":").text(id);
    pen.raw(",\"source\":").text(&format!("/endstation/{}", uri_segment(&settings.worker_id)));
    pen.raw(",\"type\":").text(&format!("beamline.worker.step.{name}"));
    if let Some(asker) = &arrival.asker {
        pen.raw(",\"subject\":").text(&asker.assignment_id);
    }
    pen.raw(",\"time\":").time(at_ms);
    pen.raw(",\"datacontenttype\":\"application/json\",\"data\":{\"event_id\":").text(id);
    pen.raw(",\"kind\":").text(&name.to_ascii_uppercase());
    native::who(pen, arrival);
    pen.raw(",\"sequence\":").int(u64::from(sequence));
    pen.raw(",\"at\":").time(at_ms);
    pen.raw(",\"worker_id\":").text(&settings.worker_id);
    pen.raw(",\"boot\":").int(u64::from(settings.boot));
}

/// A stage as events spell it.
pub(super) fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::Accepted => "accepted",
        Stage::Started => "started",
        Stage::Retrying => "retrying",
        Stage::Completed => "completed",
        Stage::Failed => "failed",
        Stage::Canceled => "canceled",
        Stage::DeadLettered => "dead_lettered",
    }
}

/// `text` as one segment of a URI's path.
fn uri_segment(text: &str) -> String {
    let mut segment = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            segment.push(byte as char);
        } else {
            segment.push_str(&format!("%{byte:02X}"));
        }
    }
    segment
}
