//! What a flow's run says: one line for each step and one for the whole, as JSON in a pipe and as rows on a terminal.
//!
//! A step that ran has its StepResult, as for any step. One that did not is `SKIPPED`, with the step that it follows from. A
//! dry run says `{step_id, success, latency_ms, error?}` of each, as the platform's gateway does, and what the step would do.

use std::io;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use shards::outcome::Code;
use shards::runtime::ports::Parcel;

use super::go::{Run, Summary, Told, ToldError};
use super::reference::{Unfilled, quoted};
use crate::cli::run::show::{Show, cut, row};

/// See the module. Lives with its run.
pub(crate) struct Tell<'a> {
    show: Show<'a>,
}

/// A step that came to its end.
pub(super) struct Ended<'p> {
    pub(super) at: usize,
    pub(super) parcel: &'p Parcel,
    pub(super) told: Option<&'p Told<'p>>,
    pub(super) ok: bool,
    /// It failed in an earlier run and is not begun again under this run id.
    pub(super) kept: bool,
}

/// What a dry run of a step gives.
#[derive(Deserialize)]
struct Planned<'a> {
    #[serde(borrow)]
    plan: &'a RawValue,
    #[serde(borrow, default)]
    plan_digest: Option<&'a str>,
    #[serde(borrow, default)]
    notes: Option<&'a RawValue>,
    #[serde(borrow)]
    outputs: &'a RawValue,
    #[serde(borrow)]
    outputs_from: &'a str,
}

impl<'a> Tell<'a> {
    /// Where results go.
    pub(crate) fn new(show: Show<'a>) -> Self {
        Tell { show }
    }

    /// What was said is out.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.show.flush()
    }

    /// No more steps.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.show.end()
    }

    /// It was told to stop.
    pub(super) fn stopping(&mut self, under_way: usize) -> io::Result<()> {
        self.show.aside(&format!("stopping: nothing more is begun, {under_way} under way; once more ends it now"))
    }

    /// A step came to its end; for a dry run, the outputs that stand for those that it would have.
    pub(super) fn ended(&mut self, run: &Run<'_>, ended: &Ended<'_>) -> io::Result<Option<String>> {
        let step = &run.flow.steps[ended.at];
        let Some(fixtures) = run.dry else {
            let mut row = row(&format!("{:>12}", step.id), ended.parcel);
            if ended.kept {
                row.push_str("  (it may have happened: not run again under this run id)");
            }
            let line = String::from_utf8_lossy(&ended.parcel.body);
            self.show.say(&line, &row, ended.ok)?;
            return Ok(None);
        };
        let latency_ms = ended.told.map_or(0.0, |told| told.latency_ms);
        let planned = ended.told.filter(|_| ended.ok).and_then(|told| told.outputs);
        let planned: Option<Planned<'_>> = planned.and_then(|outputs| serde_json::from_str(outputs.get()).ok());
        let Some(planned) = planned else {
            let error = ended
                .told
                .and_then(|told| told.error.as_ref())
                .map_or_else(|| "no plan".to_owned(), |error| sentence(error, &step.block));
            self.dry_failure(&step.id, &step.block, latency_ms, &error)?;
            return Ok(None);
        };
        let (outputs, from) = match fixtures.of(&step.id) {
            Some(made_up) => (made_up, "fixture"),
            None => (planned.outputs.get(), planned.outputs_from),
        };
        let mut line = format!(
            "{{\"step_id\":{},\"success\":true,\"latency_ms\":{latency_ms},\"plan\":{}",
            quoted(&step.id),
            planned.plan.get()
        );
        if let Some(digest) = planned.plan_digest {
            line.push_str(&format!(",\"plan_digest\":{}", quoted(digest)));
        }
        if let Some(notes) = planned.notes {
            line.push_str(&format!(",\"notes\":{}", notes.get()));
        }
        line.push_str(&format!(",\"outputs\":{outputs},\"outputs_from\":{}}}", quoted(from)));
        let digest = planned.plan_digest.map_or("", |digest| digest.get(..12).unwrap_or_default());
        let row = format!("{:>12}  ok         {:<12} {digest:<12}  {}", step.id, step.block, cut(planned.plan.get()));
        self.show.say(&line, &row, true)?;
        Ok(Some(outputs.to_owned()))
    }

    /// A step's inputs could not be filled in: it was not begun.
    pub(super) fn unfilled(&mut self, run: &Run<'_>, at: usize, wrong: &Unfilled) -> io::Result<()> {
        let step = &run.flow.steps[at];
        let pointer = format!("/inputs{}", wrong.pointer);
        if run.dry.is_some() {
            let error =
                format!("{} at {pointer}: {}; --fixtures can say what it would be", Code::InvalidInput.as_str(), wrong.rule);
            return self.dry_failure(&step.id, &step.block, 0.0, &error);
        }
        let details = json!({ "pointer": pointer, "rule": wrong.rule });
        let (code, said) = (Code::InvalidInput.as_str(), "An input cannot be filled in.");
        let error = json!({
            "code": code, "type": code.to_ascii_lowercase(), "message": said, "retryable": false, "effect": "NONE", "details": details,
        });
        let line = json!({ "status": "ERROR", "error": error, "latency_ms": 0, "context": context(run, at), "type": step.block });
        let row = format!("{:>12}  error      {:<12}      0 ms  {code}  {said}  {details}", step.id, step.block);
        self.show.say(&line.to_string(), &row, false)
    }

    /// A step is not begun, because of `other`.
    pub(super) fn skipped(&mut self, run: &Run<'_>, at: usize, other: &str, because: &str) -> io::Result<()> {
        let step = &run.flow.steps[at];
        if run.dry.is_some() {
            return self.dry_failure(
                &step.id,
                &step.block,
                0.0,
                &format!("not looked at: {because}; --fixtures can say what its outputs would be"),
            );
        }
        let skipped = json!({ "step_id": other, "reason": because });
        let line = json!({ "status": "SKIPPED", "skipped": skipped, "context": context(run, at), "type": step.block });
        let row = format!("{:>12}  skipped    {:<12}            {because}", step.id, step.block);
        self.show.say(&line.to_string(), &row, false)
    }

    fn dry_failure(&mut self, id: &str, block: &str, latency_ms: f64, error: &str) -> io::Result<()> {
        let line =
            format!("{{\"step_id\":{},\"success\":false,\"latency_ms\":{latency_ms},\"error\":{}}}", quoted(id), quoted(error));
        self.show.say(&line, &format!("{id:>12}  error      {block:<12}  {error}"), false)
    }

    /// How it all went.
    pub(crate) fn summary(&mut self, run: &Run<'_>, summary: &Summary) -> io::Result<()> {
        let Summary { ok, failed, skipped, left, replayed, stopped, took } = summary;
        let steps = run.flow.steps.len();
        let status = match (stopped, failed + skipped) {
            (true, _) => "STOPPED",
            (false, 0) => "OK",
            (false, _) => "FAILED",
        };
        let mut line = json!({
            "flow_id": run.flow.id, "version": run.flow.version, "run_id": run.run_id, "status": status, "steps": steps, "ok": ok,
            "failed": failed, "skipped": skipped, "not_done": left, "replayed": replayed, "took_ms": took.as_millis() as u64,
        });
        let mut row = format!(
            "flow {} {}: {steps} steps: {ok} ok, {failed} failed, {skipped} skipped, {replayed} answered from the journal, {:.2} s",
            run.flow.id,
            run.flow.version,
            took.as_secs_f64()
        );
        match run.dry {
            Some(_) => line["dry_run"] = Value::from(true),
            None => row.push_str(&format!("\nrun {}", run.run_id)),
        }
        if *left > 0 {
            row.push_str(&format!("; {left} not done: run it again to go on"));
        }
        self.show.conclude(&line.to_string(), &row)
    }
}

/// A StepResult's `context` of a step that was not handed over.
fn context(run: &Run<'_>, at: usize) -> Value {
    json!({ "tenant_id": run.tenant, "run_id": run.run_id, "flow_id": run.flow.id, "step_id": run.flow.steps[at].id })
}

/// Why a step cannot be done, in one sentence: the gateway's own where it has one.
fn sentence(error: &ToldError, block: &str) -> String {
    if error.code == Code::UnknownJobType.as_str() {
        return format!("unknown block type: {block}");
    }
    let details = &error.details;
    let pointer = details["pointer"].as_str().or(details["field"].as_str());
    let at = pointer.filter(|pointer| !pointer.is_empty()).map_or_else(String::new, |pointer| format!(" at {pointer}"));
    let rule = details["rule"].as_str().or(details["cause"].as_str()).unwrap_or(&error.message);
    format!("{}{at}: {rule}", error.code)
}
