//! Feeds a file's lines to the shards and collects one result for each, keeping a bounded number under way.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use flume::Receiver;

use shards::outcome::Status;
use shards::runtime::ports::Parcel;

use super::exchange::{Exchange, Woken};
use super::lines::{Line, Namer};
use super::reader::Lines;
use super::show::Show;
use crate::dlq::Desk;
use crate::worker::{Worker, WorkerError};

/// Lines under way at once, over all shards: enough to fill a commit, far below what a shard may hold.
const UNDER_WAY_MAX: usize = 2_048;

/// How a run went.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Results printed.
    pub lines: u64,
    /// Of these, ok.
    pub ok: u64,
    /// Of these, not ok.
    pub failed: u64,
    /// Of these, decided by an earlier run or for an earlier line.
    pub replayed: u64,
    /// From the first line read to the last result.
    pub took: Duration,
}

/// Why a run broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FeedError {
    /// The input.
    #[error("line {0}: {1}")]
    Read(u64, io::Error),
    /// The output.
    #[error("writing results: {0}")]
    Write(#[from] io::Error),
    /// A shard.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

/// What is asked of every line.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Manner {
    /// Run it, whatever the journal says.
    pub(crate) fresh: bool,
    /// Only say what it would do.
    pub(crate) dry: bool,
}

struct Feeder<'a, 'b> {
    exchange: Exchange<'a>,
    file: &'a str,
    manner: Manner,
    boot: u32,
    under_way: HashMap<u64, Line>,
    summary: Summary,
    show: &'a mut Show<'b>,
}

/// Feeds every line and waits for every result.
///
/// # Errors
/// The input cannot be read, the output cannot be written, or a shard failed. What was accepted is in the journal.
pub(crate) fn feed(
    worker: &Worker,
    file: &str,
    input: &Receiver<Lines>,
    manner: Manner,
    dlq: Option<&Desk>,
    show: &mut Show<'_>,
) -> Result<Summary, FeedError> {
    let started = Instant::now();
    let mut feeder = Feeder {
        exchange: Exchange::new(worker, dlq),
        boot: worker.boot(),
        file,
        manner,
        under_way: HashMap::new(),
        summary: Summary::default(),
        show,
    };
    let mut namer = Namer::default();
    let (mut input, mut results) = (Some(input), Vec::new());
    while input.is_some() || !feeder.under_way.is_empty() || feeder.exchange.is_busy() {
        let wanted = input.filter(|_| feeder.under_way.len() < UNDER_WAY_MAX);
        match feeder.exchange.wait(wanted, &mut results)? {
            Woken::Input(lines) => {
                for (number, text) in lines.map_err(|(number, error)| FeedError::Read(number, error))? {
                    let line = namer.name(number, &text);
                    feeder.submit(&line);
                    feeder.under_way.insert(number, line);
                }
            }
            Woken::NoMoreInput => input = None,
            Woken::Inside => {}
        }
        for parcel in results.drain(..) {
            feeder.result(&parcel)?;
        }
        feeder.exchange.flush();
        feeder.show.flush()?;
    }
    feeder.show.end()?;
    let mut summary = feeder.summary;
    summary.took = started.elapsed();
    feeder.exchange.end();
    Ok(summary)
}

impl Feeder<'_, '_> {
    fn submit(&mut self, line: &Line) {
        self.exchange.submit(&line.tenant, line.delivery(self.file, self.manner.dry));
    }

    fn result(&mut self, parcel: &Parcel) -> Result<(), FeedError> {
        let Some(mut line) = self.under_way.remove(&parcel.about.line) else { return Ok(()) };
        let ok = parcel.about.status == Some(Status::Ok);
        let earlier = parcel.about.replayed && parcel.about.boot < self.boot;
        if earlier && (self.manner.fresh || !ok) {
            line.bump();
            self.submit(&line);
            self.under_way.insert(line.number, line);
            return Ok(());
        }
        self.summary.lines += 1;
        self.summary.replayed += u64::from(parcel.about.replayed);
        if ok {
            self.summary.ok += 1;
        } else {
            self.summary.failed += 1;
        }
        self.show.result(parcel, &self.summary)?;
        Ok(())
    }
}
