//! The group of threads: the desk, and one thread for each stream of each device, which owns its device, opens it, runs
//! batches on it and opens it again when it is lost.
//!
//! A panic or a loss ends with every job of its batch answered and the thread going on. While no device works, what waits is
//! answered as lost rather than kept; it is never computed elsewhere.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::batch::Rules;
use crate::cache::Cache;
use crate::client::{Client, Rooms};
use crate::desk::{Desk, Note, Seat, Shared};
use crate::device::cuda::{self, Cuda, CudaPlan};
use crate::device::host::Host;
use crate::device::{Device, DeviceKind, Missing};
use crate::limits;
use crate::seat::{Opened, Worker};

/// Which devices. Shared, never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Devices {
    /// CUDA devices by number; all that there are where none is named.
    Cuda(Vec<usize>),
    /// The CPU, because somebody wants it so.
    Host,
}

/// What happens where no CUDA device can be opened at the start. Shared, never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Fallback {
    /// That is an error.
    #[default]
    None,
    /// The CPU computes, and a warning says so. A device that is lost later is waited for all the same.
    Host,
}

/// The lane as configured. Shared, never changes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What computes.
    pub devices: Devices,
    /// And what where there is none.
    pub fallback: Fallback,
    /// Threads of one device, each with a stream; at least 1.
    pub streams: usize,
    /// Jobs that wait or run; at least 1.
    pub jobs_max: usize,
    /// Data of the jobs that wait or run, in bytes.
    pub waiting_bytes_max: u64,
    /// Memory of one device that all its batches together take, in bytes. A batch has its stream's share of it.
    pub memory_bytes_max: u64,
    /// Jobs of one batch; at least 1.
    pub batch_jobs_max: usize,
    /// How long a job may wait for others.
    pub batch_wait: Duration,
    /// Where compiled kernels are kept; in memory alone without it.
    pub kernels_dir: Option<PathBuf>,
    /// Cores that the streams' threads are pinned to, in turn; none are pinned without.
    pub cores: Vec<usize>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            devices: Devices::Cuda(Vec::new()),
            fallback: Fallback::None,
            streams: limits::STREAMS,
            jobs_max: limits::JOBS_MAX,
            waiting_bytes_max: limits::WAITING_BYTES_MAX,
            memory_bytes_max: limits::MEMORY_BYTES_MAX,
            batch_jobs_max: limits::BATCH_JOBS_MAX,
            batch_wait: Duration::from_micros(limits::BATCH_WAIT_US),
            kernels_dir: None,
            cores: Vec::new(),
        }
    }
}

/// Why there is no lane. Crosses cores.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no device to compute on, and nothing else may.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// A setting is out of range.
    #[error("gpu: {0} must be at least 1")]
    Zero(&'static str),
    /// A thread does not start.
    #[error("gpu: no thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// The threads. Ends them when dropped, as [`Group::close`] without patience. Lives with the wiring.
pub struct Group {
    shared: Arc<Shared>,
    queue: flume::Sender<Note>,
    threads: Vec<JoinHandle<()>>,
}

/// Opens the devices and starts their threads; returns once all of them are open.
///
/// # Errors
/// A setting is wrong, or a device that was asked for cannot be opened and the settings allow no other.
pub fn start(settings: &Settings) -> Result<(Client, Group), StartError> {
    let Devices::Cuda(ordinals) = &settings.devices else { return host(settings) };
    match cuda(ordinals, settings) {
        Err(StartError::Missing(missing)) if settings.fallback == Fallback::Host => {
            tracing::warn!(%missing, "the gpu lane computes on the CPU, as gpu.fallback says");
            host(settings)
        }
        started => started,
    }
}

fn host(settings: &Settings) -> Result<(Client, Group), StartError> {
    launch::<Host>(DeviceKind::Host, vec![(0, ())], settings)
}

fn cuda(ordinals: &[usize], settings: &Settings) -> Result<(Client, Group), StartError> {
    let ordinals = if ordinals.is_empty() { (0..cuda::count()?).collect() } else { ordinals.to_vec() };
    let cache = Arc::new(Cache::new(settings.kernels_dir.clone()));
    let plans = ordinals.into_iter().map(|ordinal| (ordinal, CudaPlan { ordinal, cache: cache.clone() })).collect();
    launch::<Cuda>(DeviceKind::Cuda, plans, settings)
}

/// Starts a group on devices of one kind.
pub(crate) fn launch<D: Device + 'static>(
    kind: DeviceKind,
    plans: Vec<(usize, D::Plan)>,
    settings: &Settings,
) -> Result<(Client, Group), StartError> {
    for (name, value) in
        [("streams", settings.streams), ("jobs_max", settings.jobs_max), ("batch_jobs_max", settings.batch_jobs_max)]
    {
        if value == 0 {
            return Err(StartError::Zero(name));
        }
    }
    let room = Rooms {
        jobs_max: settings.jobs_max,
        bytes_max: settings.waiting_bytes_max,
        jobs: AtomicUsize::new(0),
        bytes: AtomicU64::new(0),
    };
    let batch_bytes_max = settings.memory_bytes_max / settings.streams as u64;
    let seats = plans.iter().flat_map(|(ordinal, _)| (0..settings.streams).map(|_| Seat::new(kind, *ordinal))).collect();
    let shared = Arc::new(Shared::new(Arc::new(room), batch_bytes_max, seats));
    // One place more than there is room for jobs, for the note that ends it.
    let (queue, notes) = flume::bounded(settings.jobs_max.saturating_add(1));
    let (batches, work) = flume::bounded(0);
    let mut group = Group { shared: shared.clone(), queue: queue.clone(), threads: Vec::new() };
    let client = Client { shared: shared.clone(), queue, rest: notes.clone() };
    // After the group, so that it goes before it where something fails: threads end once there is no desk.
    let desk = Desk { shared: shared.clone(), queue: notes, batches };

    let (opened, openings) = flume::bounded(shared.seats.len());
    for (number, (ordinal, plan)) in plans.into_iter().enumerate() {
        let losses = Arc::new(AtomicU64::new(0));
        for stream in 0..settings.streams {
            let seat = number * settings.streams + stream;
            let core = settings.cores.get(seat % settings.cores.len().max(1)).copied();
            let worker = Worker::<D> {
                shared: shared.clone(),
                seat,
                plan: plan.clone(),
                losses: losses.clone(),
                work: work.clone(),
                core,
            };
            let opened: Opened = opened.clone();
            let name = format!("gpu-{ordinal}-{stream}");
            group.threads.push(std::thread::Builder::new().name(name).spawn(move || worker.serve(&opened))?);
        }
    }
    // Where a thread ends without a word, nobody holds an end of these any more.
    drop((opened, work));
    for _ in 0..shared.seats.len() {
        match openings.recv() {
            Ok(Ok(())) => {}
            Ok(Err(missing)) => return Err(missing.into()),
            Err(_) => return Err(Missing::Device("a thread ended before its device was open".to_owned()).into()),
        }
    }
    let rules = Rules { bytes_max: batch_bytes_max, jobs_max: settings.batch_jobs_max, wait: settings.batch_wait };
    group.threads.push(std::thread::Builder::new().name("gpu-desk".to_owned()).spawn(move || desk.serve(rules))?);
    Ok((client, group))
}

impl Group {
    /// Takes nothing more, runs what waits for at most `patience`, answers the rest as closed, and waits for the batches that
    /// run: a kernel cannot be stopped.
    pub fn close(mut self, patience: Duration) {
        self.end(patience);
    }

    fn end(&mut self, patience: Duration) {
        self.shared.close();
        // A full queue is read, and then the flag is seen as well.
        let _ = self.queue.try_send(Note::Look);
        let until = Instant::now() + patience;
        let mut nap = Duration::from_micros(100);
        while Instant::now() < until && self.threads.iter().any(|thread| !thread.is_finished()) {
            std::thread::sleep(nap);
            nap = (nap * 2).min(Duration::from_millis(10));
        }
        self.shared.hurry();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the gpu lane panicked outside of its batches");
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.end(Duration::ZERO);
        }
    }
}
