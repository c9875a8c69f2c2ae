//! Feeds a file's lines to the shards and collects one result for each, keeping a bounded number under way.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use flume::{Receiver, Selector};

use shards::ids::Ticket;
use shards::outcome::Status;
use shards::runtime::ports::{Inbound, Outbound, Outgoing, Outlet, Parcel};
use shards::{map, step::Delivery};

use super::lines::{Line, Namer};
use super::reader::Lines;
use super::show::Show;
use crate::dlq::{Deposit, Desk, Done, Question};
use crate::worker::{Worker, WorkerError};

/// Lines under way at once, over all shards: enough to fill a commit, far below what a shard may hold.
const UNDER_WAY_MAX: usize = 2_048;
/// How often it is looked whether the shards still live while nothing comes from anywhere.
const LOOK_EVERY: Duration = Duration::from_millis(200);

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

struct Feeder<'a, 'b> {
    worker: &'a Worker,
    file: &'a str,
    fresh: bool,
    boot: u32,
    under_way: HashMap<u64, Line>,
    batches: Vec<Vec<Delivery>>,
    confirms: Vec<Vec<Ticket>>,
    dlq: Option<&'a Desk>,
    /// Dead letters on their way into the store.
    going_in: usize,
    /// Letters came that are not for this run.
    foreign: bool,
    summary: Summary,
    show: &'a mut Show<'b>,
}

/// What ended a wait.
enum Woken {
    Lines(Lines),
    NoMoreLines,
    Results(Outbound),
    Kept(Done),
    Nothing,
}

/// Feeds every line and waits for every result.
///
/// # Errors
/// The input cannot be read, the output cannot be written, or a shard failed. What was accepted is in the journal.
pub(crate) fn feed(
    worker: &Worker,
    file: &str,
    input: &Receiver<Lines>,
    fresh: bool,
    dlq: Option<&Desk>,
    show: &mut Show<'_>,
) -> Result<Summary, FeedError> {
    let started = Instant::now();
    let shards = worker.inboxes.len();
    let mut feeder = Feeder {
        boot: worker.boot(),
        worker,
        file,
        fresh,
        under_way: HashMap::new(),
        batches: vec![Vec::new(); shards],
        confirms: vec![Vec::new(); shards],
        dlq,
        going_in: 0,
        foreign: false,
        summary: Summary::default(),
        show,
    };
    let mut namer = Namer::default();
    let mut input = Some(input);
    while input.is_some() || !feeder.under_way.is_empty() || feeder.going_in > 0 {
        match feeder.wait(input.filter(|_| feeder.under_way.len() < UNDER_WAY_MAX)) {
            Woken::Lines(lines) => {
                for (number, text) in lines.map_err(|(number, error)| FeedError::Read(number, error))? {
                    let line = namer.name(number, &text);
                    feeder.submit(&line);
                    feeder.under_way.insert(number, line);
                }
            }
            Woken::NoMoreLines => input = None,
            Woken::Results(batch) => feeder.take(batch.shard, batch.items)?,
            Woken::Kept(done) => feeder.kept(done),
            Woken::Nothing => {
                if let Some(error) = worker.watch(Duration::ZERO) {
                    return Err(error.into());
                }
            }
        }
        feeder.take_ready()?;
        feeder.flush();
        feeder.show.flush()?;
    }
    feeder.show.end()?;
    let foreign = feeder.foreign;
    let mut summary = feeder.summary;
    summary.took = started.elapsed();
    // Every result was confirmed; the shards need a turn to write that down.
    let patience = if foreign { Duration::from_millis(100) } else { Duration::from_secs(5) };
    worker.drain(patience);
    Ok(summary)
}

impl Feeder<'_, '_> {
    fn submit(&mut self, line: &Line) {
        let shard = usize::from(map::shard(map::partition(&line.tenant), self.batches.len() as u16));
        self.batches[shard].push(line.delivery(self.file));
        if self.batches[shard].len() >= 64 {
            self.flush();
        }
    }

    fn flush(&mut self) {
        for (shard, inbox) in self.worker.inboxes.iter().enumerate() {
            for message in [
                Some(std::mem::take(&mut self.confirms[shard])).filter(|all| !all.is_empty()).map(Inbound::Confirmed),
                Some(std::mem::take(&mut self.batches[shard])).filter(|all| !all.is_empty()).map(Inbound::Deliveries),
            ]
            .into_iter()
            .flatten()
            {
                // A shard that is gone says so in its exit, which `collect` looks at.
                let _ = inbox.send(message);
            }
        }
    }

    /// Waits for results and, if any are wanted, for lines.
    fn wait(&self, input: Option<&Receiver<Lines>>) -> Woken {
        let results = &self.worker.outbound;
        let select = Selector::new().recv(results, |batch| batch.map_or(Woken::Nothing, Woken::Results));
        let select = match self.dlq {
            Some(dlq) => select.recv(&dlq.done, |done| done.map_or(Woken::Nothing, Woken::Kept)),
            None => select,
        };
        let select = match input {
            Some(input) => select.recv(input, |lines| lines.map_or(Woken::NoMoreLines, Woken::Lines)),
            None => select,
        };
        select.wait_timeout(LOOK_EVERY).unwrap_or(Woken::Nothing)
    }

    /// Takes the results that are here already.
    fn take_ready(&mut self) -> Result<(), FeedError> {
        while let Ok(batch) = self.worker.outbound.try_recv() {
            self.take(batch.shard, batch.items)?;
        }
        Ok(())
    }

    /// A dead letter is in the store, or stays in the journal for the next run or `serve`.
    fn kept(&mut self, done: Done) {
        let Done::Kept(deposit, verdict) = done else { return };
        self.going_in -= 1;
        match (verdict, deposit.parcel.confirm) {
            (Ok(()), Some(ticket)) => self.confirms[usize::from(deposit.shard)].push(ticket),
            (Ok(()), None) => {}
            (Err(_), _) => self.foreign = true,
        }
    }

    fn take(&mut self, shard: u16, items: Vec<Outgoing>) -> Result<(), FeedError> {
        for item in items {
            // Lines have no stream to settle with.
            let Outgoing::Parcel(parcel) = item else { continue };
            if let (Outlet::DeadLetter, Some(dlq)) = (parcel.outlet, self.dlq) {
                self.going_in += 1;
                // The line's result is printed: its reader knows.
                let told = parcel.about.line != 0;
                dlq.ask(Question::Keep(Deposit::without_server(shard, parcel, told)));
                continue;
            }
            // Letters of a server's steps, in a folder that `serve` left, are the next `serve`'s to send.
            if parcel.about.line == 0 {
                self.foreign = true;
                continue;
            }
            if let Some(ticket) = parcel.confirm {
                self.confirms[usize::from(shard)].push(ticket);
            }
            if parcel.outlet == Outlet::Result {
                self.result(parcel)?;
            }
        }
        Ok(())
    }

    fn result(&mut self, parcel: Parcel) -> Result<(), FeedError> {
        let Some(mut line) = self.under_way.remove(&parcel.about.line) else { return Ok(()) };
        let ok = parcel.about.status == Some(Status::Ok);
        let earlier = parcel.about.replayed && parcel.about.boot < self.boot;
        if earlier && (self.fresh || !ok) {
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
        self.show.result(&parcel, &self.summary)?;
        Ok(())
    }
}
