//! `endstation run`: steps or a flow from a file or pipe, through the same machine and journal as `serve`, one result line each.
//!
//! Run again, a line whose step went well is answered from the journal; one that failed gets the orchestrator's next attempt.
//! So does every line under `--fresh`. A flow ([`flow`]) goes by its run id in the same way. `--dry-run` has every step say what it
//! would do, in a journal of its own that is gone afterwards.

pub(crate) mod exchange;
pub(crate) mod feed;
pub(crate) mod flow;
pub(crate) mod input;
pub(crate) mod lines;
pub(crate) mod reader;
pub(crate) mod show;
mod waits;

use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::dlq::{Clerk, FOLDER};
use crate::ops::admin;
use crate::ops::people::People;
use crate::policy::Policy;
use crate::settings::Settings;
use crate::worker::{Identity, Plan, Worker, WorkerError, random_name, random_salt};

use flow::dry::Fixtures;
use flow::go::{GoError, Run as FlowRun, go};
use flow::read::Look;
use flow::tell::Tell;
use flow::{Flow, Wrong};
use input::Input;

pub use feed::Summary;

use super::{EXIT_CONFIG, EXIT_FAILED, EXIT_OK, EXIT_STOPPED, EXIT_USAGE};

/// The tenant of a flow that names none.
const TENANT: &str = "local";

/// What `run` was asked to do.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// The file, or `-`.
    pub file: PathBuf,
    /// Run every step, whatever the journal says.
    pub fresh: bool,
    /// Only say what each step would do.
    pub dry: bool,
    /// Under which id a flow runs.
    pub run_id: Option<String>,
    /// Whose a flow is.
    pub tenant: Option<String>,
    /// Outputs that a dry run of a flow takes for those of its steps.
    pub fixtures: Option<PathBuf>,
}

/// Runs the file. Exit code: 0 all ok, 1 some failed, 2 usage or a flow that cannot be run, 3 configuration, 4 damaged journal,
/// 5 newer journal, 130 a flow that was told to stop.
pub fn main(run: &Run, settings: &Settings) -> u8 {
    let name = run.file.display().to_string();
    let input: Box<dyn Read + Send> = if run.file == Path::new("-") {
        Box::new(io::stdin())
    } else {
        match std::fs::File::open(&run.file) {
            Ok(file) => Box::new(file),
            Err(error) => return wrong(&format!("{name}: {error}")),
        }
    };
    let input = match Input::look(input) {
        Ok(input) => input,
        Err(error) => return wrong(&format!("{name}: {error}")),
    };
    // What a dry run keeps is for itself: a step that is told of may be run afterwards.
    let folder = match run.dry.then(|| tempfile::Builder::new().prefix("endstation-dry-").tempdir()).transpose() {
        Ok(folder) => folder,
        Err(error) => return failed(&format!("a folder for the dry run: {error}"), EXIT_CONFIG),
    };
    let mut settings = settings.clone();
    if let Some(folder) = &folder {
        settings.storage_dir = folder.path().join("data");
        settings.blobs_dir = folder.path().join("blobs");
    }
    match input {
        Input::Lines(lines) => {
            let only =
                [("--run-id", run.run_id.is_some()), ("--tenant", run.tenant.is_some()), ("--fixtures", run.fixtures.is_some())];
            if let Some((flag, _)) = only.iter().find(|(_, there)| *there) {
                return wrong(&format!(
                    "{flag}: only with a flow, one JSON object with \"steps\"; {name} was taken for steps, one a line"
                ));
            }
            run_lines(run, &name, lines, &settings)
        }
        Input::Flow(text) => run_flow(run, &name, &text, &settings),
    }
}

fn run_lines(run: &Run, name: &str, input: Box<dyn Read + Send>, settings: &Settings) -> u8 {
    let (worker, clerk, callers) = match begin(settings) {
        Ok(begun) => begun,
        Err(code) => return code,
    };
    let mut show = shown();
    let manner = feed::Manner { fresh: run.fresh, dry: run.dry };
    let lines = reader::read(input).map_err(|error| feed::FeedError::Read(0, error));
    let desk = clerk.as_ref().map(Clerk::desk);
    let outcome = lines.and_then(|lines| feed::feed(&worker, name, &lines, manner, desk, &mut show));
    drop(callers);
    let stopped = end(worker, clerk);
    match (outcome, stopped) {
        (Ok(summary), Ok(())) => {
            show.summary(&summary);
            if summary.failed > 0 { EXIT_FAILED } else { EXIT_OK }
        }
        (Err(error), _) => failed(&error.to_string(), EXIT_FAILED),
        (_, Err(error)) => failed(&error.to_string(), EXIT_FAILED),
    }
}

fn run_flow(run: &Run, name: &str, text: &[u8], settings: &Settings) -> u8 {
    if run.fresh && run.run_id.is_some() {
        return wrong("--fresh: a flow's fresh run gets an id of its own; leave out --run-id, or name one that is new");
    }
    let tenant = run.tenant.as_deref().unwrap_or(TENANT);
    if !crate::edge::reading::is_tenant(tenant) {
        return wrong("--tenant: 1 to 256 letters, digits, _ and -");
    }
    let policy = match Policy::new(settings.policy.clone(), true) {
        Ok(policy) => policy,
        Err(error) => return failed(&error.to_string(), EXIT_CONFIG),
    };
    let flow = match flow::read::read(text, Look { policy: &policy, tenant, dry: run.dry }) {
        Ok(flow) => flow,
        Err(wrong) => return all_wrong(&format!("{name} was taken for a flow, and cannot be run"), &wrong),
    };
    let fixtures = match fixtures(run, &flow) {
        Ok(fixtures) => fixtures,
        Err(code) => return code,
    };
    let run_id = match &run.run_id {
        Some(id) if flow::is_run_id(id) => id.clone(),
        Some(_) => return wrong("--run-id: 1 to 256 visible ASCII characters"),
        None if run.fresh => random_name(),
        None => flow.run_id(),
    };
    let stops = match signals() {
        Ok(stops) => stops,
        Err(error) => return failed(&format!("signals: {error}"), EXIT_CONFIG),
    };
    let (worker, clerk, callers) = match begin(settings) {
        Ok(begun) => begun,
        Err(code) => return code,
    };
    let asked = FlowRun {
        flow: &flow,
        file: name,
        tenant,
        run_id: &run_id,
        blobs_dir: &settings.blobs_dir,
        bytes_max: usize::try_from(settings.limits.payload_bytes_max).unwrap_or(usize::MAX),
        grace: Duration::from_millis(settings.grace_ms),
        dry: fixtures.as_ref(),
    };
    let mut tell = Tell::new(shown());
    let outcome = go(asked, &worker, clerk.as_ref().map(Clerk::desk), &stops, &mut tell);
    drop(callers);
    let stopped = end(worker, clerk);
    let told = match (&outcome, stopped) {
        (Ok(summary), Ok(())) => tell.summary(&asked, summary).map_err(GoError::from),
        (Ok(_), Err(error)) => Err(error.into()),
        (Err(_), _) => Ok(()),
    };
    match (outcome, told) {
        (Err(error @ GoError::Conflict { .. }), _) => wrong(&error.to_string()),
        (Err(error), _) | (Ok(_), Err(error)) => failed(&error.to_string(), EXIT_FAILED),
        (Ok(summary), Ok(())) if summary.stopped => EXIT_STOPPED,
        (Ok(summary), Ok(())) => {
            if summary.failed + summary.skipped > 0 {
                EXIT_FAILED
            } else {
                EXIT_OK
            }
        }
    }
}

/// Those of a dry run, empty ones where no file says any; none for a run.
fn fixtures(run: &Run, flow: &Flow) -> Result<Option<Fixtures>, u8> {
    let Some(path) = &run.fixtures else { return Ok(run.dry.then(Fixtures::default)) };
    if !run.dry {
        return Err(wrong("--fixtures: only with --dry-run"));
    }
    let name = path.display();
    let text = std::fs::read(path).map_err(|error| wrong(&format!("--fixtures {name}: {error}")))?;
    Fixtures::read(&text, flow).map(Some).map_err(|wrong| all_wrong(&format!("--fixtures {name} cannot be used"), &wrong))
}

/// SIGINT and SIGTERM, as they come.
fn signals() -> io::Result<flume::Receiver<()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let (to, from) = flume::unbounded();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if to.send(()).is_err() {
                    return;
                }
            }
        });
    })?;
    Ok(from)
}

fn shown<'a>() -> show::Show<'a> {
    let form = if io::stdout().is_terminal() { show::Form::Table } else { show::Form::Lines };
    show::Show::new(form, io::stdout().lock(), io::stderr().is_terminal())
}

/// The command line cannot be used so.
fn wrong(why: &str) -> u8 {
    failed(why, EXIT_USAGE)
}

fn all_wrong(what: &str, wrong: &[Wrong]) -> u8 {
    let more = if wrong.len() < flow::WRONG_MAX { "" } else { ", or more" };
    let mut text = format!("{what}: {} thing{} wrong{more}", wrong.len(), if wrong.len() == 1 { "" } else { "s" });
    for Wrong { pointer, rule } in wrong {
        let pointer = if pointer.is_empty() { "the whole" } else { pointer };
        text.push_str(&format!("\n  {pointer}: {rule}"));
    }
    failed(&text, EXIT_USAGE)
}

fn failed(why: &str, code: u8) -> u8 {
    eprintln!("endstation run: {why}");
    code
}

/// A worker, the store of dead letters beside it, and the way to it from other terminals.
fn begin(settings: &Settings) -> Result<(Worker, Option<Clerk>, Callers), u8> {
    let worker = start(settings).map_err(|error| failed(&error.to_string(), super::cannot_start(&error)))?;
    let clerk = settings.dlq_bytes_max.map(|bytes_max| Clerk::start(&settings.storage_dir, bytes_max)).transpose();
    let clerk = clerk.map_err(|error| {
        failed(&format!("the dead letters in {}: {error}", settings.storage_dir.join(FOLDER).display()), EXIT_CONFIG)
    })?;
    let people = People::new(worker.controls().to_vec());
    let desk = admin::Desk { drain: None, people: people.clone(), links: None };
    let admin = admin::spawn(&settings.storage_dir, desk)
        .map_err(|error| failed(&format!("the admin socket in {}: {error}", settings.storage_dir.display()), EXIT_CONFIG))?;
    let waits = waits::Waits::watch(worker.gauges.clone(), people, &settings.storage_dir);
    Ok((worker, clerk, Callers { _waits: waits, _admin: admin }))
}

/// Steps may wait for people: these are told so, and decide from another terminal. Goes before the worker does.
struct Callers {
    _waits: waits::Waits,
    _admin: admin::AdminHandle,
}

fn end(worker: Worker, clerk: Option<Clerk>) -> Result<(), WorkerError> {
    let stopped = worker.stop();
    if let Some(clerk) = clerk {
        clerk.end();
    }
    stopped
}

/// A worker that is fed by hand: permissive, without NATS.
///
/// # Errors
/// The data directory is held, or its journal cannot be used.
pub fn start(settings: &Settings) -> Result<Worker, WorkerError> {
    let identity = Identity::resolve(settings, random_salt);
    let worker = Worker::start(settings, &Plan { identity, dev: true })?;
    worker.begin()?;
    Ok(worker)
}
