//! Runs tries: a block's future in a task of its own, with its panics caught and its end always told.
//!
//! While a block's own code runs, the shard's page names its key, so that a process that dies in it leaves word of that.
//! A block that can answer at once does so in the driver's turn, without a task. Deadlines are the machine's: it asks a try
//! to stop, and the try's future is dropped here, inside its task. That drop is the end of the work.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::block::{Blobs, Block, BlockCx, Observers, Outputs};
use crate::event::{Chunk, Event, Hold, Verdict};
use crate::ids::{Key, Ticket, hex};
use crate::outcome::{Effected, Fault};
use crate::step::{Arrival, EffectClass};

use super::local::{Local, News};
use super::page::Page;
use super::rt::{Clock, Stop, caught, panic_text, sleep, spawn};
use super::tenure::Lease;

#[cfg(feature = "failpoints")]
mod defect;

/// How much of what a try says may be on its way to observers, in bytes; the last piece may go over it.
const PROGRESS_BYTES_MAX: u64 = 256 << 10;
/// How often a try looks whether there is room again.
const PROGRESS_LOOK: Duration = Duration::from_millis(2);
/// How often a step that must never run twice looks whether it may begin.
const LEASE_LOOK: Duration = Duration::from_millis(10);

/// The blocks of one shard and the tries at work. Lives on its core.
pub struct Perform {
    blocks: Vec<Rc<dyn Block>>,
    blobs: Rc<dyn Blobs>,
    outputs: Rc<dyn Outputs>,
    clock: Clock,
    local: Local,
    page: Page,
    lease: Lease,
    /// By slot: the generation at work there, and how to stop it.
    stops: Vec<Option<(u32, Stop)>>,
    /// Larger outputs go to the tenant's blobs, in bytes.
    inline_bytes_max: u64,
    /// Whether observers are told of lifecycles.
    events: bool,
}

/// The observers of one try. Lives on its core.
struct Observed {
    local: Local,
    ticket: Ticket,
    under_way: Arc<AtomicU64>,
}

impl Observers for Observed {
    fn tell<'a>(&'a self, text: Bytes) -> crate::block::Local<'a, ()> {
        Box::pin(async move {
            while self.under_way.load(Relaxed) >= PROGRESS_BYTES_MAX {
                sleep(PROGRESS_LOOK).await;
            }
            let hold = Hold::take(&self.under_way, text.len() as u64);
            let chunk = Chunk { text, hold };
            self.local.push(News::Event(Event::Progressed { ticket: self.ticket, chunk }));
        })
    }
}

impl Perform {
    /// With the worker's blocks in the order of their ids.
    pub fn new(
        blocks: Vec<Rc<dyn Block>>,
        blobs: Rc<dyn Blobs>,
        outputs: Rc<dyn Outputs>,
        clock: Clock,
        local: Local,
        page: Page,
        lease: Lease,
        inline_bytes_max: u64,
        events: bool,
    ) -> Self {
        Perform { blocks, blobs, outputs, clock, local, page, lease, stops: Vec::new(), inline_bytes_max, events }
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
            left_ms: work.budget_ms.saturating_sub(self.clock.now().wall_ms.saturating_sub(arrival.received_ms)),
            trace_id: arrival.asker.as_ref().and_then(|asker| asker.trace_id.clone()),
            needs: work.needs,
            inputs: work.inputs.clone(),
            guardrails: work.guardrails.clone(),
            cache: work.cache.clone(),
            blobs: self.blobs.clone(),
            observers: None,
        };
        let (page, key, partition, id) = (self.page, arrival.key, arrival.partition, work.block);
        // What must never run twice begins only while no other worker can own it.
        let lease = (work.effect == EffectClass::Unsafe).then(|| self.lease.clone());
        let named = page.name(key, partition, id);
        let at_once = || {
            let result = lease.as_ref().is_none_or(Lease::holds).then(|| block.instant(&cx)).flatten()?;
            #[cfg(feature = "failpoints")]
            defect::polled(&cx.tenant, 1);
            Some(result)
        };
        let instant = std::panic::catch_unwind(AssertUnwindSafe(at_once));
        drop(named);
        let instant = match instant {
            Ok(instant) => instant,
            Err(panic) => {
                let verdict = panicked(&*block, panic.as_ref());
                return Some(Event::Ended { ticket, verdict, ran_us: 0 });
            }
        };
        let instant = match instant {
            Some(Ok(outputs)) if outputs.len() as u64 > self.inline_bytes_max => Some(outputs),
            Some(result) => {
                fail::fail_point!("C3", |_| std::process::abort());
                fail::fail_point!("C4", |_| std::process::abort());
                let verdict = result.map_or_else(Verdict::Failed, Verdict::Done);
                return Some(Event::Ended { ticket, verdict, ran_us: 0 });
            }
            None => None,
        };
        let (kept, tenant, inline_bytes_max) = (self.outputs.clone(), arrival.tenant.clone(), self.inline_bytes_max);
        let pure = work.effect == EffectClass::Pure;
        let stop = Stop::default();
        let slot = ticket.slot as usize;
        if slot >= self.stops.len() {
            self.stops.resize_with(slot + 1, || None);
        }
        self.stops[slot] = Some((ticket.generation, stop.clone()));
        let (clock, local) = (self.clock, self.local.clone());
        let observers: Option<Rc<dyn Observers>> =
            if self.events { Some(Rc::new(Observed { local: local.clone(), ticket, under_way: Arc::default() })) } else { None };
        let cx = BlockCx { observers, ..cx };
        let started_us = clock.now().mono_us;
        spawn("a try", async move {
            let work = async {
                while lease.as_ref().is_some_and(|lease| !lease.holds()) {
                    sleep(LEASE_LOOK).await;
                }
                let outputs = match instant {
                    Some(outputs) => outputs,
                    None => {
                        #[cfg(feature = "failpoints")]
                        let tenant = cx.tenant.clone();
                        let code = block.execute(cx);
                        #[cfg(feature = "failpoints")]
                        let code = defect::planted(tenant, code);
                        code.await?
                    }
                };
                if outputs.len() as u64 <= inline_bytes_max {
                    return Ok(Verdict::Done(outputs));
                }
                // The block has done what it does: what fails from here on does not undo that.
                let spilled = spill(&*kept, &tenant, outputs).await;
                spilled.map_err(|fault| if pure { fault } else { fault.with_effect(Effected::Applied) })
            };
            let mut work = stop.race(caught(work));
            let ended = poll_fn(|cx| {
                let _named = page.name(key, partition, id);
                Pin::new(&mut work).poll(cx)
            });
            let verdict = match ended.await {
                Some(Ok(Ok(verdict))) => verdict,
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

    /// Forgets what an earlier life left of this key on the page.
    pub fn wipe_page(&self, key: Key) {
        self.page.wipe(key);
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

/// Stores outputs that no message should carry, by their own hash, and gives the reference to them. A step that is run again
/// finds them there.
async fn spill(kept: &dyn Outputs, tenant: &str, outputs: Bytes) -> Result<Verdict, Fault> {
    let digest = hex(&Sha256::digest(&outputs));
    let (blobs, begin) = kept.of(tenant);
    let stored = blobs.put(tenant, &format!("$outputs/{digest}"), outputs, false).await?;
    let size = stored.size;
    let reference = format!("{{\"uri\":\"{begin}$outputs/{digest}\",\"sha256\":\"{digest}\",\"size\":{size}}}");
    Ok(Verdict::Spilled(reference.into()))
}

fn panicked(block: &dyn Block, panic: &(dyn Any + Send)) -> Verdict {
    tracing::error!(block = block.info().name, panic = panic_text(panic), "a block panicked");
    Verdict::Panicked
}
