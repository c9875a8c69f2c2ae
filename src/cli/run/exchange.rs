//! Between what is fed by hand and the shards: deliveries in batches to those who own them, results out, confirmations and dead
//! letters on their way. What is fed, and what becomes of a result, is the feeder's.

use std::time::Duration;

use flume::{Receiver, Selector};

use shards::ids::Ticket;
use shards::map;
use shards::runtime::ports::{Inbound, Outbound, Outgoing, Outlet, Parcel};
use shards::step::Delivery;

use crate::dlq::{Deposit, Desk, Done, Question};
use crate::worker::{Worker, WorkerError};

/// How often it is looked whether the shards still live while nothing comes from anywhere.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Deliveries for one shard that travel together.
const BATCH_MAX: usize = 64;

/// See the module. Lives with its feeder.
pub(crate) struct Exchange<'a> {
    worker: &'a Worker,
    batches: Vec<Vec<Delivery>>,
    confirms: Vec<Vec<Ticket>>,
    dlq: Option<&'a Desk>,
    /// Dead letters on their way into the store.
    going_in: usize,
    /// Letters came that are not for this run.
    foreign: bool,
}

/// What ended a wait.
pub(crate) enum Woken<T> {
    /// Something of the input.
    Input(T),
    /// There is no more of it.
    NoMoreInput,
    /// Something of the shards or the store; it is taken in already.
    Inside,
}

enum Came<T> {
    Input(T),
    NoMoreInput,
    Results(Outbound),
    Kept(Done),
    Nothing,
}

impl<'a> Exchange<'a> {
    /// With these shards, and with the store of dead letters if there is one.
    pub(crate) fn new(worker: &'a Worker, dlq: Option<&'a Desk>) -> Self {
        let shards = worker.inboxes.len();
        let (batches, confirms) = (vec![Vec::new(); shards], vec![Vec::new(); shards]);
        Exchange { worker, batches, confirms, dlq, going_in: 0, foreign: false }
    }

    /// Whether dead letters are on their way into the store.
    pub(crate) fn is_busy(&self) -> bool {
        self.going_in > 0
    }

    /// Hands a step of this tenant over, with the next flush at the latest.
    pub(crate) fn submit(&mut self, tenant: &str, delivery: Delivery) {
        let shard = usize::from(map::shard(map::partition(tenant), self.batches.len() as u16));
        self.batches[shard].push(delivery);
        if self.batches[shard].len() >= BATCH_MAX {
            self.flush();
        }
    }

    /// Everything that was put together goes.
    pub(crate) fn flush(&mut self) {
        for (shard, inbox) in self.worker.inboxes.iter().enumerate() {
            for message in [
                Some(std::mem::take(&mut self.confirms[shard])).filter(|all| !all.is_empty()).map(Inbound::Confirmed),
                Some(std::mem::take(&mut self.batches[shard])).filter(|all| !all.is_empty()).map(Inbound::Deliveries),
            ]
            .into_iter()
            .flatten()
            {
                // A shard that is gone says so in its exit, which is looked at in every wait without news.
                let _ = inbox.send(message);
            }
        }
    }

    /// Waits for results and, if any is wanted, for input; results that are there go into `results`.
    ///
    /// # Errors
    /// A shard ended.
    pub(crate) fn wait<T: 'static>(
        &mut self,
        input: Option<&Receiver<T>>,
        results: &mut Vec<Parcel>,
    ) -> Result<Woken<T>, WorkerError> {
        let woken = match self.next(input) {
            Came::Input(input) => Woken::Input(input),
            Came::NoMoreInput => Woken::NoMoreInput,
            Came::Results(batch) => {
                self.take(batch, results);
                Woken::Inside
            }
            Came::Kept(done) => {
                self.kept(done);
                Woken::Inside
            }
            Came::Nothing => match self.worker.watch(Duration::ZERO) {
                Some(error) => return Err(error),
                None => Woken::Inside,
            },
        };
        while let Ok(batch) = self.worker.outbound.try_recv() {
            self.take(batch, results);
        }
        Ok(woken)
    }

    /// After the last result: the shards write down what was confirmed.
    pub(crate) fn end(mut self) {
        self.flush();
        let patience = if self.foreign { Duration::from_millis(100) } else { Duration::from_secs(5) };
        self.worker.drain(patience);
    }

    fn next<T: 'static>(&self, input: Option<&Receiver<T>>) -> Came<T> {
        let select = Selector::new().recv(&self.worker.outbound, |batch| batch.map_or(Came::Nothing, Came::Results));
        let select = match self.dlq {
            Some(dlq) => select.recv(&dlq.done, |done| done.map_or(Came::Nothing, Came::Kept)),
            None => select,
        };
        let select = match input {
            Some(input) => select.recv(input, |input| input.map_or(Came::NoMoreInput, Came::Input)),
            None => select,
        };
        select.wait_timeout(LOOK_EVERY).unwrap_or(Came::Nothing)
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

    fn take(&mut self, batch: Outbound, results: &mut Vec<Parcel>) {
        let shard = batch.shard;
        for item in batch.items {
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
                results.push(parcel);
            }
        }
    }
}
