//! What the router sends: an [`Assignment`] in any of its shapes, with the headers of today's router, and the part of it
//! that answers must echo.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use super::rules::Headers;

/// The parts of an assignment that could be read, which every answer repeats.
#[derive(Clone, Debug, Default)]
pub(crate) struct Echo {
    /// `request_id`.
    pub(crate) request_id: Option<String>,
    /// `tenant_id`.
    pub(crate) tenant_id: Option<String>,
    /// `executor.provider_id`.
    pub(crate) provider_id: Option<String>,
    /// `job.type`.
    pub(crate) job_type: Option<String>,
    /// Every trace id that came with it, in the payload or a header.
    pub(crate) traces: Vec<String>,
    /// The bytes as sent.
    pub(crate) body: Vec<u8>,
}

/// One message to the workers: an id to follow it by, headers, and a body that may be anything.
#[derive(Clone, Debug)]
pub(crate) struct Assignment {
    /// `assignment_id`.
    pub(crate) id: String,
    /// The message, as JSON; change it freely before sending.
    pub(crate) json: Value,
    /// Its headers.
    pub(crate) headers: Headers,
}

/// A random-looking UUIDv4, unique in this process and very likely elsewhere.
pub(crate) fn uuid4() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let (high, low) = (RandomState::new().hash_one((count, 0)), RandomState::new().hash_one((count, 1)));
    let high = (high & !0xf000) | 0x4000;
    let low = (low & !(0b11 << 62)) | (0b10 << 62);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    )
}

/// 32 random hex digits.
pub(crate) fn hex128() -> String {
    uuid4().replace('-', "")
}

impl Assignment {
    /// A well-formed assignment of this block with this payload, without headers.
    pub(crate) fn new(tenant: &str, block: &str, payload: Value) -> Self {
        let id = uuid4();
        let json = json!({
            "version": "1",
            "assignment_id": id,
            "request_id": uuid4(),
            "tenant_id": tenant,
            "executor": {"provider_id": "endstation", "channel": "nats"},
            "job": {"type": block, "payload": payload},
            "options": {"priority": 50, "retry": {"max_attempts": 2, "backoff_ms": 200}},
            "correlation": {"trace_id": hex128()},
            "decision": {"policy": "default"},
            "metadata": {"source": "it"},
        });
        Assignment { id, json, headers: Vec::new() }
    }

    /// The same content under another assignment and request id: an honest resend of a flow step, or another asker.
    pub(crate) fn as_another(&self) -> Self {
        let mut other = self.clone();
        other.id = uuid4();
        other.json["assignment_id"] = json!(other.id);
        other.json["request_id"] = json!(uuid4());
        other
    }

    /// With the ids of a flow step, which make its key independent of the assignment.
    pub(crate) fn in_flow(mut self, run: &str, flow: &str, step: &str, attempt: u64) -> Self {
        self.json["run_id"] = json!(run);
        self.json["flow_id"] = json!(flow);
        self.json["step_id"] = json!(step);
        self.json["attempt"] = json!(attempt);
        self
    }

    /// With the headers of today's router, whose `traceparent` is hex of hex and so malformed.
    pub(crate) fn with_router_headers(mut self) -> Self {
        let text = |path: &str| self.json.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (tenant, trace, span) = (text("/tenant_id"), text("/correlation/trace_id"), hex128()[..16].to_owned());
        let twice = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
        self.headers = [
            ("tenant_id", tenant),
            ("version", "1".to_owned()),
            ("trace_id", trace.clone()),
            ("traceparent", format!("00-{}-{}-01", twice(&trace), twice(&span))),
            ("span_id", span.clone()),
            ("X-Trace-Id", trace),
            ("X-Span-Id", span),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec();
        self
    }

    /// In the older worker's envelope.
    pub(crate) fn in_envelope(mut self) -> Self {
        self.json = json!({"version": "v1", "kind": "exec_assign", "data": self.json});
        self
    }

    /// The bytes to send.
    pub(crate) fn body(&self) -> Vec<u8> {
        self.json.to_string().into_bytes()
    }

    /// What answers must echo of it.
    pub(crate) fn echo(&self) -> Echo {
        let inner = self.json.get("data").unwrap_or(&self.json);
        let text = |path: &str| inner.pointer(path).and_then(Value::as_str).map(str::to_owned);
        let headers = self.headers.iter().filter(|(name, _)| matches!(name.as_str(), "trace_id" | "X-Trace-Id"));
        Echo {
            request_id: text("/request_id"),
            tenant_id: text("/tenant_id"),
            provider_id: text("/executor/provider_id"),
            job_type: text("/job/type"),
            traces: text("/correlation/trace_id").into_iter().chain(headers.map(|(_, value)| value.clone())).collect(),
            body: self.body(),
        }
    }
}
