//! What the tests of the wire share: a small block table, one good message of each kind, and how to say what came of it.

use serde_json::{Value, json};

use super::*;

/// Unix ms at which everything in these tests is received.
pub(super) const NOW_MS: u64 = 1_767_225_600_000;

/// A block table: `echo` (pure), `put` (conditional; another default under its old name `old_put`), `plain` (unsafe).
pub(super) fn lookup(query: &Query<'_>) -> Result<Found, Fault> {
    let found = |block, canonical, effect| {
        let block = BlockId(block);
        Found {
            block,
            kind: block,
            canonical,
            effect,
            inputs: None,
            demand: Demand::default(),
            gate: None,
            denied: None,
            plan_digest: None,
        }
        .planned(query)
    };
    match query.step.name {
        "echo" => Ok(found(1, "echo", EffectClass::Pure)),
        "put" => Ok(found(2, "put", EffectClass::Conditional)),
        "old_put" => {
            let inner = std::str::from_utf8(query.step.inputs).expect("checked before").trim_start_matches('{');
            let inputs = Some(Bytes::from(format!("{{\"overwrite\":true,{inner}")));
            Ok(Found { inputs, ..found(2, "put", EffectClass::Conditional) })
        }
        "plain" => Ok(found(3, "plain", EffectClass::Unsafe)),
        "crash" if query.dev => Ok(found(4, "crash", EffectClass::Unsafe)),
        _ => Err(Fault::new(Code::UnknownJobType, "no block has this name").with_details("{\"field\":\"/job/type\"}")),
    }
}

impl Found {
    /// `echo` has a plan, the same for all inputs; the others have none.
    fn planned(self, query: &Query<'_>) -> Found {
        let plan_digest = (query.plan && self.canonical == "echo").then(|| "a1".repeat(32));
        Found { plan_digest, ..self }
    }
}

pub(super) fn wire() -> EdgeWire {
    EdgeWire::new(WireSettings::shipped(Text::from_static("w-1"), Salt([7; 32]), lookup))
}

/// A message on the default subject of its kind.
pub(super) fn delivery(origin: Origin, body: impl Into<Bytes>) -> Delivery {
    let subject = match origin {
        Origin::Line(_) => line_subject("steps.jsonl"),
        _ => Text::from_static("caf.exec.assign.v1"),
    };
    Delivery { origin, subject, headers: Headers::new(), body: body.into(), reply: None }
}

pub(super) fn read(delivery: Delivery) -> Arrival {
    wire().decode(delivery, Now { mono_us: 1, wall_ms: NOW_MS })
}

/// A good assignment, with the members in `patch` put in at their pointers; `Null` takes a member out.
pub(super) fn assignment(patch: &[(&str, Value)]) -> String {
    patched(
        json!({
            "version": "1",
            "assignment_id": "3f2c9a4e-8d1b-4c6e-9f0a-1b2c3d4e5f60",
            "request_id": "req-1",
            "tenant_id": "acme",
            "executor": {"provider_id": "prov", "channel": "nats"},
            "job": {"type": "echo", "payload": {"a": 1}},
        }),
        patch,
    )
}

/// A good native step.
pub(super) fn step(patch: &[(&str, Value)]) -> String {
    patched(json!({"type": "echo", "inputs": {"a": 1}, "context": {"tenant_id": "acme"}}), patch)
}

/// A message on acme's own native subject.
pub(super) fn native(media_type: &'static str, body: impl Into<Bytes>) -> Delivery {
    let headers = match media_type {
        "" => Headers::new(),
        media_type => vec![(Text::from_static("Content-Type"), Text::from_static(media_type))],
    };
    let subject = Text::from_static("beamline.worker.steps.v1.acme");
    Delivery { subject, headers, ..delivery(Origin::Core, body) }
}

/// The same step in both encodings, on acme's own native subject.
pub(super) fn in_both(step: &str) -> [Delivery; 2] {
    use prost::Message;
    let request = protobuf::request(&serde_json::from_str(step).expect("JSON")).expect("a StepRequest");
    [native("application/json", step.to_owned()), native("application/protobuf", request.encode_to_vec())]
}

fn patched(mut message: Value, patch: &[(&str, Value)]) -> String {
    for (pointer, value) in patch {
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
        let mut at = &mut message;
        for segment in parent.split('/').skip(1) {
            at = at.as_object_mut().expect("an object").entry(segment).or_insert_with(|| json!({}));
        }
        let object = at.as_object_mut().expect("an object");
        if value.is_null() {
            object.remove(name);
        } else {
            object.insert(name.to_owned(), value.clone());
        }
    }
    message.to_string()
}

/// An arrival in one line.
pub(super) fn said(arrival: &Arrival) -> String {
    let who = |arrival: &Arrival| arrival.asker.as_ref().map_or("nobody", |asker| &asker.assignment_id).to_owned();
    let fault = |fault: &Fault| format!("{} {}", fault.code.as_str(), String::from_utf8_lossy(&fault.details));
    match &arrival.content {
        Content::Work(work) => {
            let retry = work.retry;
            let note = work.note.as_deref().unwrap_or("-").trim_start_matches("not usable, so left at the default: ");
            format!(
                "work {} prio {} budget {} tries {} wait {}..{} note {note}",
                work.block.0, work.priority, work.budget_ms, retry.tries_max, retry.backoff_ms, retry.backoff_ms_max
            )
        }
        Content::Refusal(why) => format!("refused {} for {}", fault(why), who(arrival)),
        Content::Garbage(why) => format!("garbage {} of '{}' for {}", fault(why), arrival.tenant, who(arrival)),
        Content::Notice(notice) => format!("{notice:?}"),
    }
}
