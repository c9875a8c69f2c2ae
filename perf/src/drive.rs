//! The driver: sends assignments, matches results by number, and times each step from its own send to its own receipt.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use async_nats::jetstream;
use async_nats::{Client, Subscriber};
use futures_util::StreamExt as _;
use hdrhistogram::Histogram;

use crate::message::{BESIDE, Form, answered};

/// Not measured: connections, caches and the consumer's first pulls settle.
const WARM_UP: Duration = Duration::from_secs(1);
/// A result that is later than this is lost, or everything stands still.
const PATIENCE: Duration = Duration::from_secs(30);
/// Publishes into a stream that wait for their PubAcks at once, while a backlog is filled.
const FILL_WINDOW: u32 = 2_000;

/// A way to load the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// So many in flight: the next is sent when a result arrives.
    Closed(u32),
    /// A fixed rate, whatever comes back.
    Open,
    /// A filled stream, emptied.
    Drain,
}

impl FromStr for Load {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "open" => Ok(Load::Open),
            "drain" => Ok(Load::Drain),
            number => match number.parse() {
                Ok(n @ 1..=100_000) => Ok(Load::Closed(n)),
                _ => Err(format!("{text:?} is neither `open`, `drain` nor a number in flight")),
            },
        }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Load::Closed(n) => write!(f, "{n} in flight"),
            Load::Open => f.write_str("open loop"),
            Load::Drain => f.write_str("drain"),
        }
    }
}

/// Processor time so far, in microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cpu {
    /// The floor's or the worker's.
    pub(crate) subject: u64,
    /// The server's.
    pub(crate) server: u64,
    /// The driver's.
    pub(crate) driver: u64,
}

/// What one load showed.
#[derive(Debug)]
pub(crate) struct Window {
    /// Steps answered in the measured time.
    pub(crate) steps: u64,
    /// The measured time.
    pub(crate) seconds: f64,
    /// Microseconds from send to result.
    pub(crate) latency: Histogram<u64>,
    /// Microseconds that the driver itself sent too late (open loop).
    pub(crate) lag: Histogram<u64>,
    /// Processor time in the measured time.
    pub(crate) cpu: Cpu,
    /// Every step answered, measured or not.
    pub(crate) answered: u64,
    /// Results that were no success.
    pub(crate) failed: u64,
    /// Second results of a step.
    pub(crate) repeated: u64,
    /// Steps never answered.
    pub(crate) lost: u64,
}

/// What is known of one step.
#[derive(Clone, Copy, Debug)]
enum Slot {
    /// Sent by this driver at this time.
    Sent(Instant),
    /// Waiting in a filled stream.
    Filled,
    /// Answered.
    Done,
}

/// The driver's side of one measurement.
pub(crate) struct Driver<'a> {
    client: Client,
    results: Subscriber,
    form: Form,
    tenants: u32,
    cpu: &'a dyn Fn() -> Result<Cpu>,
    slots: Vec<Slot>,
    window: Window,
    from: Option<(Instant, Cpu)>,
}

impl<'a> Driver<'a> {
    /// Subscribes to results; `cpu` reads the processor times.
    pub(crate) async fn new(client: Client, form: Form, tenants: u32, cpu: &'a dyn Fn() -> Result<Cpu>) -> Result<Self> {
        let results = client.subscribe(form.results()).await?;
        client.flush().await?;
        let (latency, lag) = (Histogram::new(3)?, Histogram::new(3)?);
        let cpu_none = Cpu::default();
        let (steps, seconds) = (0, 0.0);
        let (answered, failed, repeated, lost) = (0, 0, 0, 0);
        let window = Window { steps, seconds, latency, lag, cpu: cpu_none, answered, failed, repeated, lost };
        Ok(Driver { client, results, form, tenants, cpu, slots: Vec::new(), window, from: None })
    }

    /// Keeps so many in flight for so long.
    pub(crate) async fn closed(mut self, in_flight: u32, seconds: f64) -> Result<Window> {
        for _ in 0..in_flight {
            self.send().await?;
        }
        let begin = Instant::now() + WARM_UP;
        let end = begin + Duration::from_secs_f64(seconds);
        loop {
            if self.receive(begin).await? >= end {
                break;
            }
            self.send().await?;
        }
        self.close(Instant::now())?;
        self.collect().await
    }

    /// Sends at a fixed rate for so long.
    pub(crate) async fn open(mut self, rate: u32, seconds: f64) -> Result<Window> {
        let gap = Duration::from_secs(1) / rate.max(1);
        let begin = Instant::now() + WARM_UP;
        let end = begin + Duration::from_secs_f64(seconds);
        let mut due = Instant::now();
        while due < end {
            tokio::select! {
                biased;
                message = self.results.next() => self.take(&message.context("the connection closed")?.payload, begin)?,
                () = tokio::time::sleep_until(due.into()) => {
                    self.window.lag.record(due.elapsed().as_micros().try_into()?)?;
                    self.send().await?;
                    due += gap;
                }
            }
        }
        self.close(Instant::now())?;
        self.collect().await
    }

    /// Fills the stream; every assignment is stored when this returns.
    pub(crate) async fn fill(&mut self, count: u32) -> Result<()> {
        let context = jetstream::new(self.client.clone());
        let mut next = 0;
        while next < count {
            let until = (next + FILL_WINDOW).min(count);
            let mut stored = Vec::new();
            for n in next..until {
                stored.push(context.publish(self.form.subject(n, self.tenants), self.form.body(n, self.tenants).into()).await?);
            }
            for one in stored {
                one.await.context("filling the stream")?;
            }
            next = until;
        }
        self.slots = vec![Slot::Filled; count as usize];
        Ok(())
    }

    /// Waits until every assignment of the filled stream is answered; measured from the first result on.
    pub(crate) async fn drained(mut self) -> Result<Window> {
        let begin = Instant::now();
        let mut last = begin;
        while self.window.answered < self.slots.len() as u64 {
            last = self.receive(begin).await?;
        }
        self.close(last)?;
        self.collect().await
    }

    async fn send(&mut self) -> Result<()> {
        let n = u32::try_from(self.slots.len())?;
        let (subject, body) = (self.form.subject(n, self.tenants), self.form.body(n, self.tenants));
        self.slots.push(Slot::Sent(Instant::now()));
        Ok(self.client.publish(subject, body.into()).await?)
    }

    async fn receive(&mut self, begin: Instant) -> Result<Instant> {
        match tokio::time::timeout(PATIENCE, self.results.next()).await {
            Ok(Some(message)) => self.take(&message.payload, begin)?,
            Ok(None) => bail!("the connection closed"),
            Err(_) => bail!("no result in {PATIENCE:?}: {} of {} answered", self.window.answered, self.slots.len()),
        }
        Ok(Instant::now())
    }

    fn take(&mut self, body: &[u8], begin: Instant) -> Result<()> {
        let now = Instant::now();
        let (n, good) = answered(body).with_context(|| format!("not a result: {}", String::from_utf8_lossy(body)))?;
        if n >= BESIDE {
            return Ok(());
        }
        let slot = self.slots.get_mut(n as usize).with_context(|| format!("a result for step {n}, which was never sent"))?;
        let waited = match std::mem::replace(slot, Slot::Done) {
            Slot::Sent(at) => Some(now - at),
            Slot::Filled => None,
            Slot::Done => {
                self.window.repeated += 1;
                return Ok(());
            }
        };
        self.window.answered += 1;
        self.window.failed += u64::from(!good);
        if now < begin {
            return Ok(());
        }
        if self.from.is_none() {
            // The first result opens the window and is not counted in it.
            self.from = Some((now, (self.cpu)()?));
            return Ok(());
        }
        self.window.steps += 1;
        if let Some(waited) = waited {
            self.window.latency.record(waited.as_micros().try_into()?)?;
        }
        Ok(())
    }

    /// Ends the measured time; what still comes is collected but not measured.
    fn close(&mut self, end: Instant) -> Result<()> {
        let (begun, before) = self.from.context("nothing was answered in the measured time")?;
        let after = (self.cpu)()?;
        self.window.seconds = (end - begun).as_secs_f64();
        self.window.cpu = Cpu {
            subject: after.subject - before.subject,
            server: after.server - before.server,
            driver: after.driver - before.driver,
        };
        Ok(())
    }

    /// Waits for what is still under way; what does not come is lost.
    async fn collect(mut self) -> Result<Window> {
        let (steps, latency) = (self.window.steps, self.window.latency.clone());
        let begin = Instant::now();
        while self.window.answered < self.slots.len() as u64 {
            if self.receive(begin).await.is_err() {
                break;
            }
        }
        self.window.lost = self.slots.len() as u64 - self.window.answered;
        (self.window.steps, self.window.latency) = (steps, latency);
        Ok(self.window)
    }
}
