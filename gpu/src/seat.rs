//! One thread of a device: opens it, runs batches on it, opens it again.
//!
//! Whatever happens to a batch, each of its jobs is answered once. After a loss all threads of the device let it go, because a
//! CUDA context that broke stays broken for whoever holds it, and each opens it again after a while that doubles.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::client::Job;
use crate::desk::{Seat, Shared};
use crate::device::{Device, Missing, Trouble};
use crate::job::{Answer, Failure, Output};
use crate::limits::{LOOK_MS, REOPEN_MS_MAX, REOPEN_MS_MIN};
use crate::plan::Task;
use crate::status::DeviceState;

/// Where a thread says, once, whether its device is open.
pub(crate) type Opened = flume::Sender<Result<(), Missing>>;

/// A thread's own. Lives on it.
pub(crate) struct Worker<D: Device> {
    pub(crate) shared: Arc<Shared>,
    /// Its place in [`Shared`].
    pub(crate) seat: usize,
    pub(crate) plan: D::Plan,
    /// How often the device was lost by any of its threads.
    pub(crate) losses: Arc<AtomicU64>,
    pub(crate) work: flume::Receiver<Vec<Job>>,
    pub(crate) core: Option<usize>,
}

/// What a batch left of the device.
enum End {
    /// A device that goes on; whether anything was computed on it.
    Well { ran: bool },
    /// One that does not.
    Lost(String),
    /// One of which nobody knows.
    Panicked(String),
}

impl<D: Device> Worker<D> {
    /// Until the desk has gone.
    pub(crate) fn serve(self, opened: &Opened) {
        let _ended = Ended(self.seat());
        if let Some(id) = self.core
            && !core_affinity::set_for_current(core_affinity::CoreId { id })
        {
            tracing::warn!(core = id, "a thread of the gpu lane is not pinned");
        }
        let mut seen = self.losses.load(Ordering::SeqCst);
        let mut device = match self.open() {
            Ok(device) => Some(device),
            Err(missing) => {
                // Who starts the group waits for this, unless it has given up.
                let _ = opened.try_send(Err(missing));
                return;
            }
        };
        let _ = opened.try_send(Ok(()));
        // Failures since a batch went well.
        let mut failures = 0;
        loop {
            let Some(open) = &mut device else {
                seen = self.losses.load(Ordering::SeqCst);
                match self.open() {
                    Ok(again) => {
                        tracing::info!(device = %again.name(), "a lost device is open again");
                        device = Some(again);
                    }
                    Err(missing) => {
                        tracing::warn!(%missing, "a lost device does not open");
                        failures += 1;
                        if !self.pause(delay(failures)) {
                            return;
                        }
                    }
                }
                continue;
            };
            let end = match self.work.recv_timeout(Duration::from_millis(LOOK_MS)) {
                Ok(batch) => self.batch(open, batch),
                Err(flume::RecvTimeoutError::Timeout) => End::Well { ran: false },
                Err(flume::RecvTimeoutError::Disconnected) => break,
            };
            let wait = match end {
                End::Well { ran } if self.losses.load(Ordering::SeqCst) == seen => {
                    failures = if ran { 0 } else { failures };
                    continue;
                }
                // Another thread lost it.
                End::Well { .. } => delay(failures.max(1)),
                End::Lost(why) => {
                    // A loss that another thread has seen is no second one.
                    let _ = self.losses.compare_exchange(seen, seen + 1, Ordering::SeqCst, Ordering::SeqCst);
                    failures += 1;
                    tracing::error!(seat = self.seat, why, "a device is lost");
                    delay(failures)
                }
                End::Panicked(why) => {
                    failures += 1;
                    tracing::error!(seat = self.seat, why, "a batch panicked; its device is opened again");
                    // It may well be the batch's fault.
                    if failures == 1 { Duration::ZERO } else { delay(failures) }
                }
            };
            self.seat().set(DeviceState::Down);
            self.seat().losses.fetch_add(1, Ordering::Relaxed);
            let_go(device.take());
            if !self.pause(wait) {
                return;
            }
        }
        let_go(device);
    }

    fn seat(&self) -> &Seat {
        &self.shared.seats[self.seat]
    }

    fn open(&self) -> Result<D, Missing> {
        let device =
            catch_unwind(AssertUnwindSafe(|| D::open(&self.plan))).unwrap_or_else(|panic| Err(Missing::Device(said(&*panic))))?;
        // The name of a device does not change.
        let _ = self.seat().name.set(device.name());
        self.seat().set(DeviceState::Up);
        Ok(device)
    }

    /// Waits for so long. While no thread has a device, what comes is answered; `false` once the desk has gone.
    fn pause(&self, wait: Duration) -> bool {
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now()).min(Duration::from_millis(LOOK_MS));
            if left.is_zero() {
                return true;
            }
            if self.shared.up() && !self.shared.closed() {
                std::thread::sleep(left);
                continue;
            }
            match self.work.recv_timeout(left) {
                Ok(batch) => batch.into_iter().for_each(|job| job.answer(Err(Failure::Lost("no device works".to_owned())))),
                Err(flume::RecvTimeoutError::Timeout) => {}
                Err(flume::RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    /// Runs a batch and answers each of its jobs.
    fn batch(&self, device: &mut D, batch: Vec<Job>) -> End {
        let mut jobs = VecDeque::with_capacity(batch.len());
        for job in batch {
            if self.shared.hurried() {
                job.answer(Err(Failure::Closed));
            } else if job.wanted() {
                jobs.push_back(job);
            } else {
                job.answer(Err(Failure::Cancelled));
            }
        }
        if jobs.is_empty() {
            return End::Well { ran: false };
        }
        let count = jobs.len();
        let begun = Instant::now();
        let end = match &jobs[0].plan.task {
            Task::Hash { .. } => self.hash(device, jobs),
            Task::Render { .. } => self.render(device, jobs),
        };
        let seat = self.seat();
        seat.busy_us.fetch_add(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
        if matches!(end, End::Well { .. }) {
            seat.batches.fetch_add(1, Ordering::Relaxed);
            seat.jobs.fetch_add(count as u64, Ordering::Relaxed);
        }
        end
    }

    /// All buffers of all jobs at once: a batch is of one kind, so of one algorithm.
    fn hash(&self, device: &mut D, jobs: VecDeque<Job>) -> End {
        let begun = Instant::now();
        let mut buffers = Vec::new();
        let mut asked = None;
        for job in &jobs {
            if let Task::Hash { algorithm, buffers: more } = &job.plan.task {
                asked = Some(*algorithm);
                buffers.extend(more);
            }
        }
        let Some(algorithm) = asked else { return End::Well { ran: false } };
        let done = catch_unwind(AssertUnwindSafe(|| device.hash(algorithm, &buffers)));
        let (count, busy) = (buffers.len(), begun.elapsed());
        let why = match done {
            Ok(Ok(digests)) if digests.len() == count => {
                let (whole, batch_jobs) = (jobs.iter().map(|job| job.plan.memory_bytes).sum::<u64>().max(1), jobs.len());
                let mut digests = digests.into_iter();
                for job in jobs {
                    let Task::Hash { buffers, .. } = &job.plan.task else { continue };
                    let output = Output::Digests(digests.by_ref().take(buffers.len()).collect());
                    let busy = busy.mul_f64(job.plan.memory_bytes as f64 / whole as f64);
                    job.answer(Ok(Answer { output, kind: device.kind(), device: device.name(), busy, batch_jobs }));
                }
                return End::Well { ran: true };
            }
            Ok(Ok(digests)) => Why::Failed(format!("{} digests of {count} buffers", digests.len())),
            Ok(Err(trouble)) => trouble.into(),
            Err(panic) => Why::Panicked(said(&*panic)),
        };
        for job in jobs {
            job.answer(Err(why.failure()));
        }
        why.end()
    }

    /// One image after another; who no longer wants one is left out even now.
    fn render(&self, device: &mut D, mut jobs: VecDeque<Job>) -> End {
        let batch_jobs = jobs.len();
        while let Some(job) = jobs.pop_front() {
            if !job.wanted() {
                job.answer(Err(Failure::Cancelled));
                continue;
            }
            let Task::Render { image, steps } = &job.plan.task else { continue };
            let begun = Instant::now();
            let why = match catch_unwind(AssertUnwindSafe(|| device.render(image, steps))) {
                Ok(Ok(image)) => {
                    let (output, busy) = (Output::Image(image), begun.elapsed());
                    job.answer(Ok(Answer { output, kind: device.kind(), device: device.name(), busy, batch_jobs }));
                    continue;
                }
                Ok(Err(trouble)) => trouble.into(),
                Err(panic) => Why::Panicked(said(&*panic)),
            };
            job.answer(Err(why.failure()));
            if let end @ (End::Lost(_) | End::Panicked(_)) = why.end() {
                let rest = Failure::Lost("another job of its batch ended the device".to_owned());
                jobs.into_iter().for_each(|job| job.answer(Err(rest.clone())));
                return end;
            }
        }
        End::Well { ran: true }
    }
}

/// Why a batch, or an image of one, has no result.
enum Why {
    Lost(String),
    Failed(String),
    Panicked(String),
}

impl From<Trouble> for Why {
    fn from(trouble: Trouble) -> Why {
        match trouble {
            Trouble::Lost(why) => Why::Lost(why),
            Trouble::Failed(why) => Why::Failed(why),
        }
    }
}

impl Why {
    fn failure(&self) -> Failure {
        match self {
            Why::Lost(why) => Failure::Lost(why.clone()),
            Why::Failed(why) => Failure::Failed(why.clone()),
            Why::Panicked(why) => Failure::Panicked(why.clone()),
        }
    }

    fn end(self) -> End {
        match self {
            Why::Lost(why) => End::Lost(why),
            Why::Failed(_) => End::Well { ran: false },
            Why::Panicked(why) => End::Panicked(why),
        }
    }
}

/// How long a device is left alone after so many failures in a row.
fn delay(failures: u32) -> Duration {
    let doubled = REOPEN_MS_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16));
    Duration::from_millis(doubled.min(REOPEN_MS_MAX))
}

/// Drops a device, which may be one that panics at it.
fn let_go<D: Device>(device: Option<D>) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(device))) {
        tracing::error!(why = said(&*panic), "a device panicked when it was let go");
    }
}

/// What a panic says.
pub(crate) fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a text").to_owned()
}

/// Says that a thread has ended, however it did.
struct Ended<'a>(&'a Seat);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.set(DeviceState::Ended);
    }
}
