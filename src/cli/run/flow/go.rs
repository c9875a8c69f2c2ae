//! A flow on its way: each step is handed to the shards once all steps before it went well, many at once, and its outputs are kept
//! for those behind it.
//!
//! Each is a native step of its run, flow and attempt, so the journal knows it: an outcome of an earlier run of the same run id
//! is taken as it is if it is ok, and what failed without an effect gets the next attempt. What failed and may have happened is
//! not begun again under the same run id.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flume::Receiver;
use serde::Deserialize;
use serde_json::value::RawValue;
use shards::ids::{Text, hex};
use shards::outcome::{Code, Status};
use shards::runtime::ports::Parcel;
use shards::step::{Delivery, Origin};

use super::dry::Fixtures;
use super::reference::quoted;
use super::tell::{Ended, Tell};
use super::{FLOW_STEP, Flow, Step};
use crate::blocks::local::folder_of;
use crate::cli::run::exchange::{Exchange, Woken};
use crate::dlq::Desk;
use crate::edge::wire::{HEADER_ASSIGNMENT, line_subject};
use crate::worker::{Worker, WorkerError};

/// Steps under way at once, over all shards.
const UNDER_WAY_MAX: usize = 512;
/// Outputs that lie in a blob are read for references up to this size, in bytes.
const SPILLED_BYTES_MAX: u64 = 8 << 20;

/// A run of a flow. Lives on the main thread.
#[derive(Clone, Copy)]
pub(crate) struct Run<'a> {
    pub(crate) flow: &'a Flow,
    /// Its file's name.
    pub(crate) file: &'a str,
    /// Whose it is.
    pub(crate) tenant: &'a str,
    pub(crate) run_id: &'a str,
    /// Where the tenants' blobs are.
    pub(crate) blobs_dir: &'a Path,
    /// The largest inputs that a step may get, in bytes.
    pub(crate) bytes_max: usize,
    /// How long what is under way is waited for once it is to stop.
    pub(crate) grace: Duration,
    /// Only to be told of, with these outputs instead of real ones.
    pub(crate) dry: Option<&'a Fixtures>,
}

/// Why a run broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GoError {
    /// The output.
    #[error("writing results: {0}")]
    Write(#[from] std::io::Error),
    /// A shard.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The run id stands for something else.
    #[error(
        "run {run_id:?} is another flow's: KEY_CONFLICT. The journal keeps flow {flow:?} under it with other content than the file has now; give the changed flow a run id of its own (--run-id), or leave that out"
    )]
    Conflict {
        /// The run.
        run_id: String,
        /// The flow.
        flow: String,
    },
    /// The journal did not take the run itself.
    #[error("the run could not be recorded: {0}")]
    Unrecorded(String),
}

/// How a run went.
#[derive(Clone, Debug, Default)]
pub(crate) struct Summary {
    pub(crate) ok: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
    /// Not begun, or not ended: it was told to stop.
    pub(crate) left: u64,
    /// Of those that are ok or failed, decided by an earlier run.
    pub(crate) replayed: u64,
    pub(crate) stopped: bool,
    pub(crate) took: Duration,
}

enum State {
    /// For so many steps before it.
    Waits(usize),
    Ready,
    UnderWay {
        attempt: u64,
    },
    Done(Outputs),
    /// It failed, or was skipped.
    Not,
}

/// What a step gave.
enum Outputs {
    Here(String),
    /// In a blob of the tenant's.
    There(There),
}

#[derive(Deserialize)]
struct There {
    uri: String,
    #[serde(default)]
    size: u64,
}

/// Of a result, what decides about the steps behind.
#[derive(Deserialize)]
pub(super) struct Told<'a> {
    #[serde(borrow, default)]
    pub(super) outputs: Option<&'a RawValue>,
    #[serde(default)]
    outputs_ref: Option<There>,
    #[serde(default)]
    pub(super) error: Option<ToldError>,
    #[serde(default)]
    pub(super) latency_ms: f64,
}

#[derive(Deserialize)]
pub(super) struct ToldError {
    pub(super) code: String,
    #[serde(default)]
    pub(super) message: String,
    #[serde(default)]
    effect: String,
    #[serde(default)]
    pub(super) details: serde_json::Value,
}

struct Going<'a, 'b, 'c> {
    run: Run<'a>,
    exchange: Exchange<'a>,
    boot: u32,
    states: Vec<State>,
    ready: VecDeque<usize>,
    under_way: usize,
    summary: Summary,
    tell: &'b mut Tell<'c>,
}

/// Runs the flow to its end, or until `stops` says so: then nothing more is begun, and what is under way is waited for within
/// the grace, or until it says so again.
///
/// # Errors
/// The run id is another flow's, the output cannot be written, or a shard failed. What was accepted is in the journal.
pub(crate) fn go(
    run: Run<'_>,
    worker: &Worker,
    dlq: Option<&Desk>,
    stops: &Receiver<()>,
    tell: &mut Tell<'_>,
) -> Result<Summary, GoError> {
    let begun = Instant::now();
    let states: Vec<State> = run.flow.order.waits_for.iter().map(|before| State::Waits(*before)).collect();
    let (exchange, boot) = (Exchange::new(worker, dlq), worker.boot());
    let mut going =
        Going { run, exchange, boot, states, ready: VecDeque::new(), under_way: 0, summary: Summary::default(), tell };
    if run.dry.is_none() {
        going.record(stops)?;
    }
    for step in 0..going.states.len() {
        going.look_at(step);
    }
    let (mut stops, mut until, mut results) = (Some(stops), None, Vec::new());
    loop {
        while until.is_none()
            && going.under_way < UNDER_WAY_MAX
            && let Some(step) = going.ready.pop_front()
        {
            going.begin(step)?;
        }
        going.exchange.flush();
        going.tell.flush()?;
        let idle = going.under_way == 0 && (until.is_some() || going.ready.is_empty());
        if idle && !going.exchange.is_busy() || until.is_some_and(|until| Instant::now() >= until) {
            break;
        }
        match going.exchange.wait(stops, &mut results)? {
            Woken::Input(()) if until.is_some() => until = Some(Instant::now()),
            Woken::Input(()) => {
                going.summary.stopped = true;
                going.tell.stopping(going.under_way)?;
                until = Some(Instant::now() + run.grace);
            }
            Woken::NoMoreInput => stops = None,
            Woken::Inside => {}
        }
        for parcel in results.drain(..) {
            going.result(&parcel)?;
        }
    }
    let mut summary = going.summary;
    summary.left = run.flow.steps.len() as u64 - summary.ok - summary.failed - summary.skipped;
    summary.took = begun.elapsed();
    going.tell.end()?;
    // What goes on in spite of the stop is not waited for again: it stays in the journal.
    if !summary.stopped {
        going.exchange.end();
    }
    Ok(summary)
}

impl Going<'_, '_, '_> {
    /// Has the journal keep which flow this run id stands for: under the same key, another one is a conflict.
    fn record(&mut self, stops: &Receiver<()>) -> Result<(), GoError> {
        let Flow { id, version, digest, .. } = self.run.flow;
        let inputs = format!("{{\"flow\":{},\"version\":{},\"sha256\":\"{digest}\"}}", quoted(id), quoted(version));
        let record = Step { id: FLOW_STEP.to_owned(), block: "echo".to_owned(), ..Step::default() };
        let number = self.run.flow.steps.len() as u64 + 1;
        self.submit(number, &record, 1, &inputs);
        self.exchange.flush();
        let mut results: Vec<Parcel> = Vec::new();
        let stops = Some(stops).filter(|stops| !stops.is_disconnected());
        while results.iter().all(|parcel| parcel.about.line != number) {
            if let Woken::Input(()) = self.exchange.wait(stops, &mut results)? {
                return Err(GoError::Unrecorded("stopped before it was".to_owned()));
            }
        }
        let refused = |parcel: &&Parcel| parcel.about.line == number && parcel.about.status != Some(Status::Ok);
        let Some(parcel) = results.iter().find(refused) else { return Ok(()) };
        let told: Option<Told<'_>> = serde_json::from_slice(&parcel.body).ok();
        Err(match told.and_then(|told| told.error) {
            Some(error) if error.code == Code::KeyConflict.as_str() => {
                GoError::Conflict { run_id: self.run.run_id.to_owned(), flow: id.clone() }
            }
            Some(error) => GoError::Unrecorded(format!("{}: {}", error.code, error.message)),
            None => GoError::Unrecorded("the shard did not say why".to_owned()),
        })
    }

    /// A step that waits for no other any more may begin.
    fn look_at(&mut self, step: usize) {
        if matches!(self.states[step], State::Waits(0)) {
            self.states[step] = State::Ready;
            self.ready.push_back(step);
        }
    }

    fn begin(&mut self, at: usize) -> Result<(), GoError> {
        match self.inputs(at) {
            Ok(inputs) => {
                self.hand_over(at, 1, &inputs);
                Ok(())
            }
            Err(wrong) => {
                self.tell.unfilled(&self.run, at, &wrong)?;
                self.summary.failed += 1;
                self.failed(at, "what it refers to is not there")
            }
        }
    }

    fn hand_over(&mut self, at: usize, attempt: u64, inputs: &str) {
        self.submit(at as u64 + 1, &self.run.flow.steps[at], attempt, inputs);
        self.states[at] = State::UnderWay { attempt };
        self.under_way += 1;
    }

    /// The inputs of a step, with what it takes from those before it.
    fn inputs(&mut self, at: usize) -> Result<String, super::reference::Unfilled> {
        let step = &self.run.flow.steps[at];
        for (pointer, reference) in step.inputs.references() {
            let named = self.position(&reference.step);
            let Some(State::Done(Outputs::There(there))) = named.map(|named| &self.states[named]) else { continue };
            let here = self.fetch(there).map_err(|why| {
                let rule = format!("{} cannot be read: {why}", reference.written);
                super::reference::Unfilled { pointer: pointer.to_owned(), rule }
            })?;
            if let Some(named) = named {
                self.states[named] = State::Done(Outputs::Here(here));
            }
        }
        step.inputs.fill(self.run.bytes_max, |id| match self.position(id).map(|named| &self.states[named]) {
            Some(State::Done(Outputs::Here(text))) => Some(text.as_str()),
            _ => None,
        })
    }

    fn position(&self, id: &str) -> Option<usize> {
        self.run.flow.steps.iter().position(|step| step.id == id)
    }

    /// Outputs that were too large for a result, out of the worker's own folder.
    fn fetch(&self, there: &There) -> Result<String, String> {
        let path = there.uri.strip_prefix("blob:").filter(|path| !path.starts_with("//"));
        let path = path.ok_or("the outputs lie in an object store (storage.outputs)")?;
        if there.size > SPILLED_BYTES_MAX {
            return Err(format!("the outputs are larger than {SPILLED_BYTES_MAX} bytes"));
        }
        let file = self.run.blobs_dir.join(folder_of(self.run.tenant)).join(path);
        std::fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))
    }

    fn submit(&mut self, number: u64, step: &Step, attempt: u64, inputs: &str) {
        let Run { flow, file, tenant, run_id, dry, .. } = self.run;
        let sandbox = if dry.is_some() { ",\"sandbox\":true" } else { "" };
        let body = format!(
            "{{\"type\":{},\"inputs\":{inputs}{},\"context\":{{\"tenant_id\":{},\"run_id\":{},\"flow_id\":{},\"step_id\":{},\"attempt\":{attempt}{sandbox}}}}}",
            quoted(&step.block),
            step.asks,
            quoted(tenant),
            quoted(run_id),
            quoted(&flow.id),
            quoted(&step.id),
        );
        // By its content: another content under the same key is another asker, who is told of the conflict.
        let assignment = format!("flow-{}", hex(&blake3::hash(body.as_bytes()).as_bytes()[..16]));
        let headers = vec![(Text::from_static(HEADER_ASSIGNMENT), Text::from(assignment))];
        let delivery =
            Delivery { origin: Origin::Line(number), subject: line_subject(file), headers, body: Bytes::from(body), reply: None };
        self.exchange.submit(tenant, delivery);
    }

    fn result(&mut self, parcel: &Parcel) -> Result<(), GoError> {
        let at = (parcel.about.line as usize).wrapping_sub(1);
        let Some(State::UnderWay { attempt }) = self.states.get(at) else { return Ok(()) };
        let attempt = *attempt;
        self.under_way -= 1;
        let told: Option<Told<'_>> = serde_json::from_slice(&parcel.body).ok();
        let ok = parcel.about.status == Some(Status::Ok);
        let earlier = parcel.about.replayed && parcel.about.boot < self.boot;
        let error = told.as_ref().and_then(|told| told.error.as_ref());
        let again = |error: &ToldError| error.effect == "NONE" && error.code != Code::KeyConflict.as_str();
        if earlier && !ok && error.is_some_and(again) {
            // Its inputs could be filled before, and what they are made of does not change.
            if let Ok(inputs) = self.inputs(at) {
                self.hand_over(at, attempt + 1, &inputs);
                return Ok(());
            }
        }
        self.summary.replayed += u64::from(parcel.about.replayed);
        let kept = earlier && !ok;
        let ended = Ended { at, parcel, told: told.as_ref(), ok, kept };
        let mock = self.tell.ended(&self.run, &ended)?;
        if !ok {
            self.summary.failed += 1;
            let code = error.map_or("ERROR", |error| error.code.as_str()).to_owned();
            return self.failed(at, &code);
        }
        self.summary.ok += 1;
        let outputs = match (mock, told) {
            (Some(mock), _) => Outputs::Here(mock),
            (None, Some(Told { outputs_ref: Some(there), .. })) => Outputs::There(there),
            (None, told) => Outputs::Here(told.and_then(|told| told.outputs).map_or("{}", RawValue::get).to_owned()),
        };
        self.go_on(at, outputs);
        Ok(())
    }

    /// What is behind a step may know its outputs, and waits for one less.
    fn go_on(&mut self, at: usize, outputs: Outputs) {
        self.states[at] = State::Done(outputs);
        for after in &self.run.flow.order.after[at] {
            if let State::Waits(before) = &mut self.states[*after] {
                *before -= 1;
            }
            self.look_at(*after);
        }
    }

    /// What is behind a step that did not go well is not begun.
    fn failed(&mut self, at: usize, why: &str) -> Result<(), GoError> {
        self.states[at] = State::Not;
        let id = &self.run.flow.steps[at].id;
        // A dry run goes on behind it with the outputs that somebody made up.
        if let Some(made_up) = self.run.dry.and_then(|fixtures| fixtures.of(id)) {
            self.go_on(at, Outputs::Here(made_up.to_owned()));
            return Ok(());
        }
        let because = format!("step {id} did not go well ({why})");
        let mut behind = VecDeque::from([at]);
        while let Some(step) = behind.pop_front() {
            for after in &self.run.flow.order.after[step] {
                if matches!(self.states[*after], State::Waits(_)) {
                    self.states[*after] = State::Not;
                    self.summary.skipped += 1;
                    self.tell.skipped(&self.run, *after, id, &because)?;
                    behind.push_back(*after);
                }
            }
        }
        Ok(())
    }
}
