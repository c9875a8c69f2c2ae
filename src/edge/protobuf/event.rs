//! A lifecycle event as observers on NATS get it, put into a LifecycleEvent for those who watch over gRPC.

use proto::v1;
use proto::v1::lifecycle_event::Kind;
use serde_json::Value as Json;

use super::{moment, structure};

/// The LifecycleEvent that an event's CloudEvent is about; `None` where it is not one of ours.
pub(in crate::edge) fn lifecycle(event: &[u8]) -> Option<v1::LifecycleEvent> {
    let event: Json = serde_json::from_slice(event).ok()?;
    let data = event.get("data")?;
    Some(v1::LifecycleEvent {
        event_id: word(data, "event_id")?,
        kind: Kind::from_str_name(data.get("kind")?.as_str()?)? as i32,
        context: data.get("context").map(context),
        assignment_id: word(data, "assignment_id"),
        r#type: word(data, "type").unwrap_or_default(),
        sequence: count(data, "sequence").unwrap_or_default(),
        at: word(data, "at").and_then(|at| at.parse::<jiff::Timestamp>().ok()).map(|at| moment(at.as_millisecond() as u64)),
        worker_id: word(data, "worker_id").unwrap_or_default(),
        try_number: count(data, "try_number"),
        progress: data.get("progress").map(progress),
        result: data.get("result").map(result),
        approval: data.get("approval").cloned().map(structure),
        ..v1::LifecycleEvent::default()
    })
}

fn progress(progress: &Json) -> v1::Progress {
    let text = word(progress, "text").map(v1::progress::Chunk::Text);
    let data = || progress.get("data").filter(|data| data.is_object()).cloned().map(structure).map(v1::progress::Chunk::Data);
    v1::Progress {
        fraction: progress.get("fraction").and_then(Json::as_f64),
        message: word(progress, "message"),
        chunk: text.or_else(data),
    }
}

fn context(context: &Json) -> v1::BlockContext {
    v1::BlockContext {
        tenant_id: word(context, "tenant_id").unwrap_or_default(),
        trace_id: word(context, "trace_id"),
        run_id: word(context, "run_id"),
        flow_id: word(context, "flow_id"),
        step_id: word(context, "step_id"),
        attempt: count(context, "attempt"),
        ..v1::BlockContext::default()
    }
}

fn result(result: &Json) -> v1::StepResult {
    let status = result.get("status").and_then(Json::as_str).and_then(v1::step_result::Status::from_str_name);
    v1::StepResult {
        status: status.unwrap_or_default() as i32,
        error: result.get("error").map(error),
        latency_ms: count(result, "latency_ms").unwrap_or_default(),
        retries_used: count(result, "retries_used").unwrap_or_default(),
        ..v1::StepResult::default()
    }
}

fn error(error: &Json) -> v1::StepError {
    let effect = error.get("effect").and_then(Json::as_str).and_then(v1::step_error::Effect::from_str_name);
    v1::StepError {
        code: word(error, "code").unwrap_or_default(),
        r#type: word(error, "type").unwrap_or_default(),
        message: word(error, "message").unwrap_or_default(),
        retryable: error.get("retryable").and_then(Json::as_bool).unwrap_or_default(),
        effect: effect.unwrap_or_default() as i32,
        details: error.get("details").filter(|details| details.is_object()).cloned().map(structure),
        retry_after_ms: count(error, "retry_after_ms"),
    }
}

fn word(object: &Json, name: &str) -> Option<String> {
    object.get(name).and_then(Json::as_str).map(str::to_owned)
}

fn count(object: &Json, name: &str) -> Option<u32> {
    object.get(name).and_then(Json::as_u64).and_then(|count| u32::try_from(count).ok())
}
