//! `endstation run`: steps from a file or pipe, through the same machine and journal as `serve`, one result line each.
//!
//! Run again, a line whose step went well is answered from the journal; one that failed gets the orchestrator's next attempt.
//! So does every line under `--fresh`.

pub(crate) mod feed;
pub(crate) mod lines;
pub(crate) mod reader;
pub(crate) mod show;
mod waits;

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use crate::dlq::{Clerk, FOLDER};
use crate::ops::admin;
use crate::ops::people::People;
use crate::settings::Settings;
use crate::worker::{Identity, Plan, Worker, WorkerError, random_salt};

pub use feed::Summary;

/// What `run` was asked to do.
#[derive(Clone, Debug)]
pub struct Run {
    /// The file, or `-`.
    pub file: PathBuf,
    /// Run every line, whatever the journal says.
    pub fresh: bool,
}

/// Runs the file. Exit code: 0 all ok, 1 some failed, 2 usage, 3 configuration, 4 damaged journal,
/// 5 newer journal.
pub fn main(run: &Run, settings: &Settings) -> u8 {
    let input: Box<dyn Read + Send> = if run.file == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        match std::fs::File::open(&run.file) {
            Ok(file) => Box::new(file),
            Err(error) => {
                eprintln!("endstation run: {}: {error}", run.file.display());
                return 2;
            }
        }
    };
    let worker = match start(settings) {
        Ok(worker) => worker,
        Err(error) => {
            eprintln!("endstation run: {error}");
            return super::cannot_start(&error);
        }
    };
    let clerk = match settings.dlq_bytes_max.map(|bytes_max| Clerk::start(&settings.storage_dir, bytes_max)).transpose() {
        Ok(clerk) => clerk,
        Err(error) => {
            eprintln!("endstation run: the dead letters in {}: {error}", settings.storage_dir.join(FOLDER).display());
            return 3;
        }
    };
    // Steps may wait for people, who decide from another terminal.
    let people = People::new(worker.controls().to_vec());
    let waits = waits::Waits::watch(worker.gauges.clone(), people.clone(), &settings.storage_dir);
    let desk = admin::Desk { drain: None, people, links: None };
    let _admin = match admin::spawn(&settings.storage_dir, desk) {
        Ok(admin) => admin,
        Err(error) => {
            eprintln!("endstation run: the admin socket in {}: {error}", settings.storage_dir.display());
            return 3;
        }
    };
    let form = if std::io::stdout().is_terminal() { show::Form::Table } else { show::Form::Lines };
    let mut show = show::Show::new(form, std::io::stdout().lock(), std::io::stderr().is_terminal());
    let name = run.file.display().to_string();
    let lines = reader::read(input).map_err(|error| feed::FeedError::Read(0, error));
    let desk = clerk.as_ref().map(Clerk::desk);
    let outcome = lines.and_then(|lines| feed::feed(&worker, &name, &lines, run.fresh, desk, &mut show));
    drop(waits);
    let stopped = worker.stop();
    if let Some(clerk) = clerk {
        clerk.end();
    }
    match (outcome, stopped) {
        (Ok(summary), Ok(())) => {
            show.summary(&summary);
            u8::from(summary.failed > 0)
        }
        (Err(error), _) => {
            eprintln!("endstation run: {error}");
            1
        }
        (_, Err(error)) => {
            eprintln!("endstation run: {error}");
            1
        }
    }
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
