//! The native profile: a StepRequest in, a StepResult out. As JSON with field names as in the `.proto` files or in
//! lowerCamelCase; what comes as protobuf is put into that form first (`super::protobuf`), so that there is one reading.

use std::borrow::Cow;

use shards::block::CacheWish;
use shards::ids::Text;
use shards::limits::{BUDGET_MS_MAX, ID_BYTES_MAX, TRIES_MAX};
use shards::outcome::{Effected, Fault, Outcome, Status};
use shards::step::{Arrival, Delivery, Profile, RetryPolicy};

use crate::edge::answer::{details, outputs};
use crate::edge::fingerprint::Content;
use crate::edge::json::{self, Value, fields};
use crate::edge::needs::Asked;
use crate::edge::pen::Pen;
use crate::edge::reading::{
    Ask, Faults, Mail, Notes, Reading, Unreadable, effect_class, is_assignment, missing, moment, number, twice, unsupported,
    wrong_form, wrong_value,
};
use crate::policy::narrow::Scopes;

/// Subjects that steps come on: this and the tenant.
pub(crate) const STEPS_PREFIX: &str = "beamline.worker.steps.v1.";
/// Subjects that results go to: this, the tenant, and the key.
pub(crate) const RESULTS_PREFIX: &str = "beamline.worker.results.v1.";
/// Subjects that dead letters of native steps go to: this and the tenant.
pub(crate) const DLQ_PREFIX: &str = "beamline.worker.dlq.v1.";
/// Subjects that cancels come on: this and the tenant.
pub(crate) const CANCEL_PREFIX: &str = "beamline.worker.cancel.v1.";
/// Subjects that signals come on: this and the tenant.
pub(crate) const SIGNALS_PREFIX: &str = "beamline.worker.signals.v1.";
/// What the worker itself publishes on under the native profile, as patterns.
pub(crate) const OWN_PATTERNS: [&str; 2] = ["beamline.worker.results.v1.*.*", "beamline.worker.dlq.v1.*"];
/// Makes a stream refuse a second message on a subject. Beside our message id: a stream that still knows the id answers
/// "it was there already", one that has forgotten it answers "wrong last sequence". Both mean that it has the result.
pub(crate) const CREATE_ONLY: &str = "Nats-Expected-Last-Subject-Sequence";
/// The tenant of a line that names none.
const TENANT_OF_LINES: &str = "local";
/// Tries, first wait and longest wait (milliseconds) where the sender names none.
const RETRY_DEFAULT: RetryPolicy = RetryPolicy { tries_max: 3, backoff_ms: 500, backoff_ms_max: 60_000 };
/// Priority where the sender names none.
const PRIORITY_DEFAULT: u64 = 50;

fields! {
    /// What tells the profiles apart.
    Shape { name: "type", job: "job", executor: "executor", data: "data" }
}

fields! {
    /// A StepRequest.
    Step {
        name: "type",
        version_req: "version_req" | "versionReq",
        inputs: "inputs",
        resources: "resources",
        timeout_ms: "timeout_ms" | "timeoutMs",
        retry: "retry",
        guardrails: "guardrails",
        context: "context",
        priority: "priority",
        not_after: "not_after" | "notAfter",
        effect_ceiling: "effect_ceiling" | "effectCeiling",
        payload_ref: "payload_ref" | "payloadRef",
        assignment_id: "assignment_id" | "assignmentId",
        request_id: "request_id" | "requestId",
        cache: "cache",
        require_plan: "require_plan" | "requirePlan",
    }
}

fields! {
    /// A BlockContext.
    pub(super) Context {
        tenant_id: "tenant_id" | "tenantId",
        trace_id: "trace_id" | "traceId",
        run_id: "run_id" | "runId",
        flow_id: "flow_id" | "flowId",
        step_id: "step_id" | "stepId",
        attempt: "attempt",
        sandbox: "sandbox",
        rbac_scopes: "rbac_scopes" | "rbacScopes",
    }
}

fields! {
    /// A CacheWish.
    Cache { key: "key", ttl_ms: "ttl_ms" | "ttlMs" | "ttl" }
}

fields! {
    /// How to try again.
    Retry {
        max_attempts: "max_attempts" | "maxAttempts",
        backoff_ms: "backoff_ms" | "backoffMs",
        backoff_max_ms: "backoff_max_ms" | "backoffMaxMs",
        backoff_factor: "backoff_factor" | "backoffFactor",
        budget_ms: "budget_ms" | "budgetMs",
        jitter: "jitter",
        codes: "codes",
    }
}

/// The tenant that a native message's subject ends in; `None` for other subjects.
pub(crate) fn tenant_of(subject: &str) -> Option<&str> {
    // Nearly all subjects are told apart by this.
    let rest = subject.strip_prefix("beamline.worker.")?;
    ["steps.v1.", "cancel.v1.", "signals.v1."].iter().find_map(|kind| rest.strip_prefix(kind))
}

/// How a native message is written: its `Content-Type` says so, and an answer is written as its question was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// `application/json`, and where nothing is said.
    Json,
    /// `application/protobuf`
    Protobuf,
}

impl Encoding {
    /// How this message is written. The same whenever it is read: the journal keeps headers.
    pub(super) fn of(delivery: &Delivery) -> Encoding {
        if tenant_of(&delivery.subject).is_none() {
            return Encoding::Json;
        }
        let said = delivery.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        let media = said.and_then(|(_, value)| value.split(';').next()).unwrap_or_default().trim();
        if media.eq_ignore_ascii_case(Encoding::Protobuf.media_type()) { Encoding::Protobuf } else { Encoding::Json }
    }

    /// The value of `Content-Type`.
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Encoding::Json => "application/json",
            Encoding::Protobuf => "application/protobuf",
        }
    }
}

/// Whether a message is a native step: by its subject, or a line by its shape.
pub(super) fn is_native(mail: &Mail<'_>) -> bool {
    if !mail.line {
        return mail.subject.starts_with(STEPS_PREFIX);
    }
    let shape = Shape::read(Some(mail.doc.top()));
    shape.name().is_some() && shape.job().is_none() && shape.executor().is_none() && shape.data().is_none()
}

/// Reads a step.
pub(super) fn read<'a>(mail: &mut Mail<'a>) -> Result<Reading<'a>, Unreadable> {
    let mut faults = Faults(mail.fault.take());
    let step = Step::read(Some(mail.doc.top()));
    faults.depth(mail.doc.depth());
    let context = Context::read(step.context());
    if let Some(name) = context.picked.twice {
        return Err(Unreadable::new(twice(&format!("/context/{name}"))));
    }
    let tenant = match context.tenant_id() {
        None if mail.line => mail.same_tenant(Text::from_static(TENANT_OF_LINES))?,
        named => mail.tenant(named, "/context/tenant_id")?,
    };
    if mail.subject.strip_prefix(STEPS_PREFIX).is_some_and(|named| named != &tenant[..]) {
        return Err(Unreadable::new(wrong_value("/context/tenant_id")));
    }
    let assignment_id = match step.assignment_id() {
        Some(id) => Some(mail.required(Some(id), "/assignment_id")),
        None => mail.heads.assignment.map(|id| Ok(id.clone())),
    };
    let assignment_id = match assignment_id {
        None => Text::new(),
        Some(Ok(id)) if is_assignment(&id) => id,
        Some(Ok(_)) => return Err(Unreadable { tenant, fault: wrong_value("/assignment_id") }),
        Some(Err(fault)) => return Err(Unreadable { tenant, fault }),
    };
    if let Some(name) = step.picked.twice {
        let fault = twice(&format!("/{name}"));
        if name == "assignment_id" {
            return Err(Unreadable { tenant, fault });
        }
        faults.add(fault);
    }
    if step.context().is_some_and(|value| !value.is_object()) {
        faults.add(wrong_form("/context"));
    }
    let job_type = faults.take(mail.required(step.name(), "/type")).unwrap_or_default();
    let mut id = |value, pointer| faults.take(optional_id(mail, value, pointer)).flatten();
    let request_id = id(step.request_id(), "/request_id").unwrap_or_default();
    let run_id = id(context.run_id(), "/context/run_id");
    let flow_id = id(context.flow_id(), "/context/flow_id");
    let step_id = id(context.step_id(), "/context/step_id");
    let trace_id = mail.heads.trace_id(mail.id(context.trace_id()));
    let attempt = faults.take(number(context.attempt(), 0..=u64::MAX, "/context/attempt")).flatten();
    let ask = ask(mail, &step, &context, &mut faults);
    let ask = match faults.0 {
        Some(fault) => Err(fault),
        None => Ok(ask),
    };
    let profile = Profile::Native;
    let provider_id = Text::new();
    Ok(Reading {
        profile,
        tenant,
        assignment_id,
        request_id,
        trace_id,
        provider_id,
        job_type,
        run_id,
        flow_id,
        step_id,
        attempt,
        ceiling: None,
        ask,
    })
}

fn ask<'a>(mail: &Mail<'_>, step: &Step<'a>, context: &Context<'_>, faults: &mut Faults) -> Ask<'a> {
    let mut notes = Notes::default();
    let object: fn(Value<'_>) -> bool = |value| value.is_object();
    for (value, usual, pointer) in [
        (step.inputs(), object, "/inputs"),
        (step.retry(), object, "/retry"),
        (step.guardrails(), object, "/guardrails"),
        (context.sandbox(), |value| matches!(value.raw(), "true" | "false"), "/context/sandbox"),
    ] {
        if value.is_some_and(|value| !usual(value)) {
            faults.add(wrong_form(pointer));
        }
    }
    if step.version_req().is_some_and(|value| !matches!(value.raw(), "\"\"" | "\"*\"")) {
        faults.add(unsupported("/version_req"));
    }
    let needs = faults.take(Asked::read(step.resources())).unwrap_or_default();
    let mut figure = |value, usable, pointer| faults.take(number(value, usable, pointer)).flatten();
    let retry = Retry::read(step.retry());
    let priority = figure(step.priority(), 0..=100, "/priority").unwrap_or(PRIORITY_DEFAULT);
    let budget_ms = figure(step.timeout_ms(), 0..=BUDGET_MS_MAX, "/timeout_ms").filter(|ms| *ms > 0);
    let tries_ms = figure(retry.budget_ms(), 0..=BUDGET_MS_MAX, "/retry/budget_ms").filter(|ms| *ms > 0);
    let tries = figure(retry.max_attempts(), 0..=u64::from(TRIES_MAX), "/retry/max_attempts").filter(|tries| *tries > 0);
    let backoff_ms = figure(retry.backoff_ms(), 0..=BUDGET_MS_MAX, "/retry/backoff_ms").unwrap_or(RETRY_DEFAULT.backoff_ms);
    let backoff_max = figure(retry.backoff_max_ms(), 0..=BUDGET_MS_MAX, "/retry/backoff_max_ms");
    let backoff_factor = retry.backoff_factor().filter(|value| json::integer(value.raw()) != Some(2));
    for (value, name) in [(backoff_factor, "retry.backoff_factor"), (retry.codes(), "retry.codes")] {
        if value.is_some() {
            notes.add(name);
        }
    }
    if retry.jitter().is_some_and(|value| matches!(value.raw(), "\"FIXED\"" | "2")) {
        notes.add("retry.jitter");
    }
    let not_after_ms = step.not_after().map(|value| moment(value.raw()).ok_or_else(|| wrong_form("/not_after")));
    let ceiling = step.effect_ceiling().map(|value| effect_class(value.raw()).ok_or_else(|| wrong_value("/effect_ceiling")));
    let ceiling = ceiling.and_then(|class| faults.take(class)).flatten();
    let budget_ms = budget_ms.unwrap_or(mail.limits.budget_ms_default);
    let inputs = step.inputs().map(Value::raw);
    Ask {
        content: Content::Inputs(inputs.unwrap_or("{}")),
        inputs,
        reference: step.payload_ref().map(Value::raw),
        priority: priority as u8,
        budget_ms: tries_ms.map_or(budget_ms, |tries_ms| tries_ms.min(budget_ms)),
        not_after_ms: not_after_ms.and_then(|moment| faults.take(moment)),
        retry: RetryPolicy {
            tries_max: tries.map_or(RETRY_DEFAULT.tries_max, |tries| tries as u32),
            backoff_ms,
            backoff_ms_max: backoff_max.unwrap_or(RETRY_DEFAULT.backoff_ms_max).max(backoff_ms),
        },
        note: notes.sentence(),
        effect_ceiling: ceiling,
        needs,
        scopes: faults.take(scopes(context.rbac_scopes())).flatten(),
        guardrails: step.guardrails().map(Value::raw).filter(|_| faults.0.is_none()),
        cache: faults.take(cache(mail, step.cache())).flatten(),
        sandbox: context.sandbox().map(Value::raw) == Some("true"),
        require_plan: faults.take(required_plan(step.require_plan())).flatten(),
    }
}

/// The digest of a plan; empty is absent, as protobuf has it.
fn required_plan(value: Option<Value<'_>>) -> Result<Option<String>, Fault> {
    let Some(value) = value else { return Ok(None) };
    let text = value.string().ok_or_else(|| wrong_form("/require_plan"))?;
    match text.len() {
        0 => Ok(None),
        64 if text.bytes().all(|byte| byte.is_ascii_hexdigit()) => Ok(Some(text.to_ascii_lowercase())),
        _ => Err(wrong_value("/require_plan")),
    }
}

/// Which outputs of earlier steps will do.
fn cache(mail: &Mail<'_>, value: Option<Value<'_>>) -> Result<Option<CacheWish>, Fault> {
    let Some(value) = value else { return Ok(None) };
    if !value.is_object() {
        return Err(wrong_form("/cache"));
    }
    let wish = Cache::read(Some(value));
    if let Some(name) = wish.picked.twice {
        return Err(twice(&format!("/cache/{name}")));
    }
    let key = optional_id(mail, wish.key(), "/cache/key")?.ok_or_else(|| missing("/cache/key"))?;
    let ttl_ms = number(wish.ttl_ms(), 1..=BUDGET_MS_MAX, "/cache/ttl_ms")?.ok_or_else(|| missing("/cache/ttl_ms"))?;
    Ok(Some(CacheWish { key, ttl_ms }))
}

/// A list of names; an empty one is absent, as protobuf has it.
fn scopes(value: Option<Value<'_>>) -> Result<Option<Scopes>, Fault> {
    let Some(value) = value else { return Ok(None) };
    let names: Vec<Cow<'_, str>> = serde_json::from_str(value.raw()).map_err(|_| wrong_form("/context/rbac_scopes"))?;
    Ok((!names.is_empty()).then(|| names.iter().fold(Scopes::default(), |scopes, name| scopes.with(name))))
}

/// A string of at most 256 bytes; empty is absent, as protobuf has it.
pub(super) fn optional_id(mail: &Mail<'_>, value: Option<Value<'_>>, pointer: &str) -> Result<Option<Text>, Fault> {
    let Some(value) = value else { return Ok(None) };
    let id = mail.text(Some(value)).ok_or_else(|| wrong_form(pointer))?;
    if id.len() > ID_BYTES_MAX {
        return Err(wrong_value(pointer));
    }
    Ok(Some(id).filter(|id| !id.is_empty()))
}

/// A StepResult; `replayed` only where the reader sees deliveries, not answers.
pub(super) fn step_result(pen: &mut Pen, arrival: &Arrival, outcome: &Outcome, replayed: Option<bool>) {
    pen.raw("{\"status\":").text(status(outcome.status));
    if outcome.status == Status::Ok {
        outputs(pen, outcome);
    }
    verdict(pen, outcome);
    pen.raw(",\"timing\":{\"received_at\":").time(outcome.received_ms);
    if outcome.started_ms > 0 {
        pen.raw(",\"started_at\":").time(outcome.started_ms);
    }
    pen.raw(",\"ended_at\":").time(outcome.ended_ms);
    if outcome.started_ms > 0 {
        pen.raw(",\"queued_ms\":").int(outcome.started_ms.saturating_sub(outcome.received_ms));
    }
    pen.raw(",\"ran_us\":").int(outcome.ran_us).raw("}");
    who(pen, arrival);
    if let Some(replayed) = replayed {
        pen.raw(if replayed { ",\"replayed\":true" } else { ",\"replayed\":false" });
    }
    pen.raw("}");
}

/// `,"error":{…},"latency_ms":…,"retries_used":…` of a StepResult.
pub(super) fn verdict(pen: &mut Pen, outcome: &Outcome) {
    if let Some(fault) = &outcome.fault {
        pen.raw(",\"error\":");
        error(pen, fault, outcome.effect);
    }
    pen.raw(",\"latency_ms\":").int(outcome.ended_ms.saturating_sub(outcome.received_ms));
    pen.raw(",\"retries_used\":").int(u64::from(outcome.tries.saturating_sub(1)));
    if outcome.owner_epoch > 0 {
        pen.raw(",\"owner_epoch\":").int(u64::from(outcome.owner_epoch));
    }
}

/// A StepError.
pub(super) fn error(pen: &mut Pen, fault: &Fault, effect: Effected) {
    pen.raw("{\"code\":").text(fault.code.as_str());
    pen.raw(",\"type\":").text(&fault.code.as_str().to_ascii_lowercase());
    pen.raw(",\"message\":").text(&fault.message);
    pen.raw(if fault.code.retryable() { ",\"retryable\":true" } else { ",\"retryable\":false" });
    pen.raw(",\"effect\":").text(&effect.as_str().to_ascii_uppercase());
    details(pen, ",\"details\":", fault, None);
    if let Some(ms) = fault.retry_after_ms {
        pen.raw(",\"retry_after_ms\":").int(ms);
    }
    pen.raw("}");
}

/// `,"context":{…},"assignment_id":…,"request_id":…,"type":…`: the step, as its sender named it.
pub(super) fn who(pen: &mut Pen, arrival: &Arrival) {
    pen.raw(",\"context\":{");
    let mut comma = "";
    let asker = arrival.asker.as_ref();
    let mut member = |pen: &mut Pen, name: &str, value: Option<&Text>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            pen.raw(comma).raw(name).text(value);
            comma = ",";
        }
    };
    member(pen, "\"tenant_id\":", Some(&arrival.tenant));
    if let Some(asker) = asker {
        member(pen, "\"trace_id\":", asker.trace_id.as_ref());
        member(pen, "\"run_id\":", asker.run_id.as_ref());
        member(pen, "\"flow_id\":", asker.flow_id.as_ref());
        member(pen, "\"step_id\":", asker.step_id.as_ref());
        if let Some(attempt) = asker.attempt {
            pen.raw(comma).raw("\"attempt\":").int(attempt);
            comma = ",";
        }
    }
    if arrival.work().is_some_and(|work| work.sandbox) {
        pen.raw(comma).raw("\"sandbox\":true");
    }
    pen.raw("}");
    let Some(asker) = asker else { return };
    pen.raw(",\"assignment_id\":").text(&asker.assignment_id);
    if !asker.request_id.is_empty() {
        pen.raw(",\"request_id\":").text(&asker.request_id);
    }
    if !asker.job_type.is_empty() {
        pen.raw(",\"type\":").text(&asker.job_type);
    }
}

/// A status as StepResult spells it.
pub(super) fn status(status: Status) -> &'static str {
    match status {
        Status::Ok => "OK",
        Status::Error | Status::Quarantined => "ERROR",
        Status::Timeout => "TIMEOUT",
        Status::Cancelled => "CANCELED",
    }
}
