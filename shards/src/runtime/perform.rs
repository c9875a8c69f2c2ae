//! Runs tries: a block's future in a task of its own, with its panics caught and its end always told.
//!
//! A block that can answer at once does so in the driver's turn, without a task. Deadlines are the machine's: it asks a try
//! to stop, and the try's future is dropped here, inside its task. That drop is the end of the work.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;

use crate::block::{Blobs, Block, BlockCx};
use crate::event::{Event, Verdict};
use crate::ids::Ticket;
use crate::step::Arrival;

use super::local::{Local, News};
use super::rt::{Clock, Stop, caught, panic_text, spawn};

/// The blocks of one shard and the tries at work. Lives on its core.
pub struct Perform {
    blocks: Vec<Rc<dyn Block>>,
    blobs: Rc<dyn Blobs>,
    clock: Clock,
    local: Local,
    /// By slot: the generation at work there, and how to stop it.
    stops: Vec<Option<(u32, Stop)>>,
}

impl Perform {
    /// With the worker's blocks in the order of their ids.
    pub fn new(blocks: Vec<Rc<dyn Block>>, blobs: Rc<dyn Blobs>, clock: Clock, local: Local) -> Self {
        Perform { blocks, blobs, clock, local, stops: Vec::new() }
    }

    /// Starts a try. Its end comes as news, or is returned here if it came at once.
    pub fn run(&mut self, ticket: Ticket, arrival: &Arrival, try_number: u32) -> Option<Event> {
        fail::fail_point!("C2", |_| std::process::abort());
        let work = arrival.work()?;
        let block = self.blocks[usize::from(work.block.0)].clone();
        let cx = BlockCx {
            tenant: arrival.tenant.clone(),
            key: arrival.key,
            try_number,
            inputs: work.inputs.clone(),
            blobs: self.blobs.clone(),
        };
        let verdict = match std::panic::catch_unwind(AssertUnwindSafe(|| block.instant(&cx))) {
            Ok(None) => None,
            Ok(Some(Ok(outputs))) => Some(Verdict::Done(outputs)),
            Ok(Some(Err(fault))) => Some(Verdict::Failed(fault)),
            Err(panic) => Some(panicked(&*block, panic.as_ref())),
        };
        if let Some(verdict) = verdict {
            fail::fail_point!("C4", |_| std::process::abort());
            return Some(Event::Ended { ticket, verdict, ran_us: 0 });
        }
        let stop = Stop::default();
        let slot = ticket.slot as usize;
        if slot >= self.stops.len() {
            self.stops.resize_with(slot + 1, || None);
        }
        self.stops[slot] = Some((ticket.generation, stop.clone()));
        let (clock, local) = (self.clock, self.local.clone());
        let started_us = clock.now().mono_us;
        spawn("a try", async move {
            let verdict = match stop.race(caught(block.execute(cx))).await {
                Some(Ok(Ok(outputs))) => Verdict::Done(outputs),
                Some(Ok(Err(fault))) => Verdict::Failed(fault),
                Some(Err(panic)) => panicked(&*block, panic.as_ref()),
                None => Verdict::Stopped,
            };
            fail::fail_point!("C4", |_| std::process::abort());
            let ran_us = clock.now().mono_us.saturating_sub(started_us);
            local.push(News::Event(Event::Ended { ticket, verdict, ran_us }));
        });
        None
    }

    /// Asks a try to stop; it still ends with its own event.
    pub fn stop(&mut self, ticket: Ticket) {
        if let Some(Some((generation, stop))) = self.stops.get(ticket.slot as usize)
            && *generation == ticket.generation
        {
            stop.ask();
        }
    }
}

fn panicked(block: &dyn Block, panic: &(dyn Any + Send)) -> Verdict {
    tracing::error!(block = block.info().name, panic = panic_text(panic), "a block panicked");
    Verdict::Panicked
}
