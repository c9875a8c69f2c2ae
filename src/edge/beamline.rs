//! Profile A, inbound: an ExecAssignment of the Beamline router, bare or in the older worker's envelope.
//!
//! Options may be anything a client wrote: what is not usable falls back to its default and is noted for the ack. What
//! decides whether and what to run is strict.

use shards::ids::Text;
use shards::limits::{BUDGET_MS_MAX, ID_BYTES_MAX, Limits, TRIES_MAX};
use shards::outcome::Fault;
use shards::step::{Profile, RetryPolicy};

use crate::edge::fingerprint::Content;
use crate::edge::json::{self, Value, fields};
use crate::edge::needs::Asked;
use crate::edge::reading::{
    Ask, Faults, Mail, Notes, Reading, Unreadable, effect_class, is_assignment, missing, moment, twice, wrong_form, wrong_value,
};

/// Tries where the sender names none.
const TRIES_DEFAULT: u32 = 2;
/// The first wait where the sender names none, in milliseconds.
const BACKOFF_MS_DEFAULT: u64 = 200;
/// The longest wait between two tries, in milliseconds.
const BACKOFF_MS_MAX: u64 = 60_000;
/// Priority where the sender names none.
const PRIORITY_DEFAULT: u64 = 50;

fields! {
    /// An ExecAssignment, or the older worker's envelope around one.
    Assignment {
        kind: "kind",
        data: "data",
        version: "version",
        assignment_id: "assignment_id",
        request_id: "request_id",
        tenant_id: "tenant_id",
        executor: "executor",
        job: "job",
        options: "options",
        correlation: "correlation",
        metadata: "metadata",
        trace_id: "trace_id",
        run_id: "run_id",
        flow_id: "flow_id",
        step_id: "step_id",
        attempt: "attempt",
        not_after: "not_after",
        effect_ceiling: "effect_ceiling",
        resources: "resources",
    }
}

fields! {
    /// `executor`.
    Executor { provider_id: "provider_id" }
}

fields! {
    /// `job`.
    Job { name: "type", payload: "payload", payload_ref: "payload_ref" }
}

fields! {
    /// `options`.
    Options { priority: "priority", deadline_ms: "deadline_ms", retry: "retry" }
}

fields! {
    /// `options.retry`.
    Retry { max_attempts: "max_attempts", backoff_ms: "backoff_ms" }
}

fields! {
    /// Where a step stands in its flow: `correlation` and `metadata`.
    Place { trace_id: "trace_id", run_id: "run_id", flow_id: "flow_id", step_id: "step_id", attempt: "attempt" }
}

/// Reads an assignment.
pub(super) fn read<'a>(mail: &mut Mail<'a>) -> Result<Reading<'a>, Unreadable> {
    let mut faults = Faults(mail.fault.take());
    faults.depth(mail.doc.depth());
    let mut top = Assignment::read(Some(mail.doc.top()));
    let mut wrapped = false;
    if let (None, Some(data)) = (top.assignment_id(), top.data().filter(|data| data.is_object())) {
        wrapped = true;
        if top.picked.twice.is_some() {
            return Err(Unreadable::new(twice("")));
        }
        if top.kind().map(Value::raw) != Some("\"exec_assign\"") {
            faults.add(wrong_value("/kind"));
        }
        if !matches!(top.version().map(Value::raw), Some("\"v1\"" | "\"1\"")) {
            faults.add(wrong_form("/version"));
        }
        top = Assignment::read(Some(data));
    }
    if let Some(name) = top.picked.twice {
        let fault = twice(&format!("/{name}"));
        if matches!(name, "assignment_id" | "tenant_id") {
            return Err(Unreadable::new(fault));
        }
        faults.add(fault);
    }
    let tenant = mail.tenant(top.tenant_id(), "/tenant_id")?;
    let unreadable = |fault| Unreadable { tenant: tenant.clone(), fault };
    let assignment_id = mail.required(top.assignment_id(), "/assignment_id").map_err(unreadable)?;
    if !is_assignment(&assignment_id) {
        return Err(unreadable(wrong_value("/assignment_id")));
    }

    match top.version().map(Value::raw) {
        Some("\"1\"") => {}
        Some("\"v1\"") | None if wrapped => {}
        None => faults.add(missing("/version")),
        Some(_) => faults.add(wrong_form("/version")),
    }
    let request_id = faults.take(mail.required(top.request_id(), "/request_id")).unwrap_or_default();
    let provider_id = faults.take(provider(mail, top.executor())).unwrap_or_default();
    let (job_type, job) = job(mail, top.job(), &mut faults);

    let correlation = Place::read(top.correlation());
    let metadata = Place::read(top.metadata());
    let trace_id = mail.heads.trace_id(mail.id(correlation.trace_id()).or_else(|| mail.id(top.trace_id())));
    let mut id = |own, places, pointer| faults.take(coordinate(mail, own, places, pointer)).flatten();
    let run_id = id(top.run_id(), [correlation.run_id(), metadata.run_id()], "/run_id");
    let flow_id = id(top.flow_id(), [correlation.flow_id(), metadata.flow_id()], "/flow_id");
    let step_id = id(top.step_id(), [correlation.step_id(), metadata.step_id()], "/step_id");
    let attempt = faults.take(attempt(top.attempt(), [correlation.attempt(), metadata.attempt()])).flatten();

    let not_after_ms = top.not_after().map(|value| moment(value.raw()).ok_or_else(|| wrong_form("/not_after")));
    let not_after_ms = not_after_ms.and_then(|moment| faults.take(moment));
    let ceiling = top.effect_ceiling().map(|value| effect_class(value.raw()).ok_or_else(|| wrong_value("/effect_ceiling")));
    let effect_ceiling = ceiling.and_then(|class| faults.take(class)).flatten();
    let needs = faults.take(Asked::read(top.resources())).unwrap_or_default();

    let ask = match (faults.0, job) {
        (Some(fault), _) => Err(fault),
        (None, None) => Err(missing("/job")),
        (None, Some(Carried { content, inputs, reference })) => {
            let options = options(top.options(), mail.limits);
            Ok(Ask {
                content,
                inputs,
                reference,
                priority: options.priority,
                budget_ms: options.budget_ms,
                not_after_ms,
                retry: options.retry,
                note: options.note,
                effect_ceiling,
                needs,
                scopes: None,
                guardrails: None,
                cache: None,
                sandbox: false,
                require_plan: None,
            })
        }
    };
    let profile = Profile::Beamline;
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

fn provider(mail: &Mail<'_>, executor: Option<Value<'_>>) -> Result<Text, Fault> {
    let executor = executor.ok_or_else(|| missing("/executor"))?;
    if !executor.is_object() {
        return Err(wrong_form("/executor"));
    }
    mail.required(Executor::read(Some(executor)).provider_id(), "/executor/provider_id")
}

/// What a job carries: its content, and of it the inputs or where they are.
struct Carried<'a> {
    content: Content<'a>,
    inputs: Option<&'a str>,
    reference: Option<&'a str>,
}

/// The job's type, and what it carries unless something is wrong with it.
fn job<'a>(mail: &Mail<'_>, value: Option<Value<'a>>, faults: &mut Faults) -> (Text, Option<Carried<'a>>) {
    let Some(value) = value else {
        faults.add(missing("/job"));
        return (Text::new(), None);
    };
    if !value.is_object() {
        faults.add(wrong_form("/job"));
        return (Text::new(), None);
    }
    let job = Job::read(Some(value));
    let name = faults.take(mail.required(job.name(), "/job/type")).unwrap_or_default();
    if let Some(key) = job.picked.twice {
        faults.add(twice(&format!("/job/{key}")));
    }
    let (inputs, reference) = (job.payload().map(Value::raw), job.payload_ref().map(Value::raw));
    if inputs.is_none() && reference.is_none() {
        faults.add(missing("/job/payload"));
        return (name, None);
    }
    (name, Some(Carried { content: Content::Job(value.raw()), inputs, reference }))
}

/// A run, flow or step id: the message's own, else the first usable one of `places`.
fn coordinate(
    mail: &Mail<'_>,
    own: Option<Value<'_>>,
    places: [Option<Value<'_>>; 2],
    pointer: &str,
) -> Result<Option<Text>, Fault> {
    let own = match own {
        Some(value) => Some(mail.text(Some(value)).ok_or_else(|| wrong_form(pointer))?),
        None => None,
    };
    // Clients put what they like into the other two: what is no string there is no id.
    let elsewhere = places.into_iter().map(|value| mail.text(value));
    match [own].into_iter().chain(elsewhere).flatten().find(|id| !id.is_empty()) {
        Some(id) if id.len() > ID_BYTES_MAX => Err(wrong_value(pointer)),
        found => Ok(found),
    }
}

/// The orchestrator's attempt, looked for in the same places.
fn attempt(own: Option<Value<'_>>, places: [Option<Value<'_>>; 2]) -> Result<Option<u64>, Fault> {
    match own {
        Some(value) => json::integer_or_digits(value.raw()).map(Some).ok_or_else(|| wrong_form("/attempt")),
        None => Ok(places.into_iter().flatten().map(Value::raw).find_map(json::integer_or_digits)),
    }
}

/// Options as they will be used.
struct Resolved {
    priority: u8,
    budget_ms: u64,
    retry: RetryPolicy,
    note: Option<Text>,
}

fn options(value: Option<Value<'_>>, limits: &Limits) -> Resolved {
    let mut notes = Notes::default();
    let mut object = |value: Option<Value<'_>>, name: &'static str| {
        if value.is_some_and(|value| !value.is_object()) {
            notes.add(name);
        }
    };
    object(value, "options");
    let options = Options::read(value);
    object(options.retry(), "options.retry");
    let retry = Retry::read(options.retry());
    let priority = notes.integer(options.priority(), 0..=100, "options.priority").unwrap_or(PRIORITY_DEFAULT);
    let budget_ms = notes.integer(options.deadline_ms(), 1..=BUDGET_MS_MAX, "options.deadline_ms");
    let tries = notes.integer(retry.max_attempts(), 1..=u64::from(TRIES_MAX), "options.retry.max_attempts");
    let backoff_ms =
        notes.integer(retry.backoff_ms(), 0..=BUDGET_MS_MAX, "options.retry.backoff_ms").unwrap_or(BACKOFF_MS_DEFAULT);
    Resolved {
        priority: priority as u8,
        budget_ms: budget_ms.unwrap_or(limits.budget_ms_default),
        retry: RetryPolicy {
            tries_max: tries.map_or(TRIES_DEFAULT, |tries| tries as u32),
            backoff_ms,
            backoff_ms_max: backoff_ms.max(BACKOFF_MS_MAX),
        },
        note: notes.sentence(),
    }
}
