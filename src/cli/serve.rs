//! `endstation serve`: a worker for a NATS server, until it is told to stop or cannot go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use shards::runtime::keeper::Keeper;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::{EXIT_CONFIG, EXIT_FAILED, EXIT_OK};
use crate::dlq::Clerk;
use crate::edge::grpc::{DoorError, DoorFrame};
use crate::edge::salt::{self, Shared};
use crate::edge::status::EdgeStatus;
use crate::edge::tenancy::Estate;
use crate::edge::thread::{self as edge, EdgeError, EdgeSettings, Halt, Links, ShardLink};
use crate::ops::drain::{Drain, End};
use crate::ops::health::{Check, Checks, Scope};
use crate::ops::http::ApprovalPage;
use crate::ops::http::{OpsHandle, Sources};
use crate::ops::page;
use crate::ops::people::People;
use crate::ops::{admin, http};
use crate::settings::Settings;
use crate::worker::{Identity, Plan, TAKEN_IN, Worker, WorkerError, random_salt};

/// The most that is on its way from one consumer, however much the shards may hold, in bytes.
const PULL_BYTES_MAX: u64 = 256 << 20;
/// How long the deployment is asked who this worker is before health is served without the answer.
const ASKED_FOR: Duration = Duration::from_millis(500);

/// Why serving could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The shards.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The edge.
    #[error(transparent)]
    Edge(#[from] EdgeError),
    /// The store of dead letters.
    #[error("the dead letters in {0}: {1}")]
    Dlq(std::path::PathBuf, std::io::Error),
    /// Calls.
    #[error(transparent)]
    Grpc(#[from] DoorError),
    /// The ops port.
    #[error("ops.bind {0}: {1}")]
    Ops(std::net::SocketAddr, std::io::Error),
    /// The admin socket.
    #[error("the admin socket in {0}: {1}")]
    Admin(std::path::PathBuf, std::io::Error),
    /// The journal belongs to another deployment.
    #[error(
        "the journal in {0} was written with another key salt than the one of this NATS deployment (bucket endstation, key_salt): its keys mean nothing here; name another storage.dir, or set worker.key_salt to the journal's own"
    )]
    OtherDeployment(std::path::PathBuf),
    /// The system.
    #[error("{0}: {1}")]
    System(&'static str, std::io::Error),
}

/// A worker with its edge and its ops. Lives on the main thread; ends in reverse order of its start.
pub struct Serving {
    worker: Worker,
    edge: JoinHandle<Result<(), EdgeError>>,
    dlq: Option<Clerk>,
    halt: watch::Sender<Halt>,
    status: Arc<EdgeStatus>,
    ops: OpsHandle,
    _admin: admin::AdminHandle,
    draining: Arc<AtomicBool>,
    drain: Arc<Drain>,
    /// Everything that was begun is finished and told: who takes over need not doubt it.
    done: Arc<AtomicBool>,
    grace: Duration,
}

/// Why it is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// By a signal, or because the edge has ended: within the grace.
    Now,
    /// Over the admin socket: when all that is here is done.
    WhenDone,
}

/// The signals that end a worker.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Signals, ServeError> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate()).map_err(|error| ServeError::System("SIGTERM", error))?,
            interrupt: signal(SignalKind::interrupt()).map_err(|error| ServeError::System("SIGINT", error))?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Serves until a signal or an error ends it.
pub fn main(settings: &Settings) -> u8 {
    run(settings, dev_blocks(), |_| {})
}

/// A build with failpoints may open the blocks for development here, too, so that tests meet them on a server of their own.
fn dev_blocks() -> bool {
    fail::fail_point!("dev-blocks", |_| true);
    false
}

/// Starts, tells `started`, and serves to the end. `dev` opens the blocks for development.
pub fn run(settings: &Settings, dev: bool, started: impl FnOnce(&Serving)) -> u8 {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime for signals");
            return EXIT_FAILED;
        }
    };
    let serving = match runtime.block_on(Serving::start(settings, dev)) {
        Ok(serving) => serving,
        Err(error) => {
            tracing::error!(error = %error, "the worker cannot start");
            return match &error {
                ServeError::Worker(error) => super::cannot_start(error),
                _ => EXIT_CONFIG,
            };
        }
    };
    started(&serving);
    let drained = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let told = serving.until_told(&mut signals).await?;
        serving.drain(told, &mut signals).await
    });
    match drained.and_then(|drained| serving.end(drained)) {
        Ok(()) => EXIT_OK,
        Err(error) => {
            tracing::error!(error = %error, "the worker ends: what is unfinished stays in the journal");
            EXIT_FAILED
        }
    }
}

impl Serving {
    /// Starts shards, then the edge, then ops.
    ///
    /// # Errors
    /// Whatever keeps one of them from starting.
    pub async fn start(settings: &Settings, dev: bool) -> Result<Serving, ServeError> {
        let frame = settings.grpc.as_ref().map(DoorFrame::of).transpose()?;
        let lock = Worker::hold(settings)?;
        let identity = known_identity(settings).await?;
        let mut worker = Worker::start_on(settings, &Plan { identity: identity.clone(), dev }, lock)?;
        for found in &worker.found {
            tracing::info!(
                shard = found.shard,
                core = worker.layout.shards[usize::from(found.shard)],
                boot = found.boot,
                frames = found.frames,
                outcomes = found.outcomes,
                open = found.open,
                unpublished = found.unpublished,
                "the journal is read"
            );
        }
        let dlq = match settings.dlq_bytes_max {
            Some(bytes_max) => Some(
                Clerk::start(&settings.storage_dir, bytes_max)
                    .map_err(|error| ServeError::Dlq(settings.storage_dir.join(crate::dlq::FOLDER), error))?,
            ),
            None => None,
        };
        let draining = Arc::new(AtomicBool::new(false));
        let status = Arc::new(EdgeStatus::default());
        let drain = Drain::new(worker.gauges.clone());
        let people = People::new(worker.controls().to_vec());
        let links = settings
            .approvals
            .as_ref()
            .map(|url| admin::LinkDesk { links: page::Links::new(identity.salt.clone()), url: url.clone() });
        let page = links.as_ref().map(|desk| ApprovalPage { links: desk.links.clone(), people: people.clone() });
        let admin = admin::spawn(&settings.storage_dir, admin::Desk { drain: Some(drain.clone()), people, links })
            .map_err(|error| ServeError::Admin(settings.storage_dir.clone(), error))?;
        let sources = sources(&mut worker, &identity.worker_id, &status, dlq.as_ref(), &draining, page);
        let ops = http::spawn(settings.ops_bind, sources).map_err(|error| ServeError::Ops(settings.ops_bind, error))?;
        tracing::info!(address = %ops.address, "health and metrics are served");
        let (halt, phase) = watch::channel(Halt::Run);
        let done = Arc::new(AtomicBool::new(false));
        let count = worker.inboxes.len();
        let limits = (0..count).map(|index| settings.shard_limits(index, count));
        let (running_max, queued_max) = limits
            .fold((0, 0), |(running, queued), limits| (running + limits.shard_running_max, queued + limits.shard_queued_max));
        let links = Links {
            shards: std::iter::zip(&worker.inboxes, &worker.gauges)
                .map(|(inbox, gauge)| ShardLink {
                    inbox: inbox.clone(),
                    gauge: gauge.clone(),
                    bytes_max: settings.limits.shard_held_bytes_max,
                })
                .collect(),
            outbound: worker.outbound.clone(),
            estate: Estate {
                lease: worker.lease.clone(),
                grants: worker.grants().to_vec(),
                journal: worker.journal.clone(),
                epoch: worker.owner_epoch(),
                knows: worker.found.iter().any(|found| found.frames > 0),
                done: done.clone(),
            },
            dlq: dlq.as_ref().map(|clerk| clerk.desk().clone()),
        };
        let edge_settings = EdgeSettings {
            nats: settings.nats.clone(),
            worker_id: identity.worker_id,
            cores: worker.layout.edge.clone(),
            boot: worker.boot(),
            running_max,
            queued_max,
            horizon: Duration::from_millis(settings.limits.horizon_ms),
            // A part of what the shards may hold: the rest is for what they have taken in. A few requests are out at once.
            pull_bytes_max: (settings.limits.shard_held_bytes_max.saturating_mul(count as u64) / 4).min(PULL_BYTES_MAX),
        };
        let door = frame.map(DoorFrame::open).transpose()?;
        let edge = edge::spawn(edge_settings, links, door, phase, status.clone())
            .map_err(|error| ServeError::System("the edge's thread", error))?;
        let grace = Duration::from_millis(settings.grace_ms);
        Ok(Serving { worker, edge, dlq, halt, status, ops, _admin: admin, draining, drain, done, grace })
    }

    /// Where health and metrics are.
    pub fn ops_address(&self) -> std::net::SocketAddr {
        self.ops.address
    }

    /// The edge's flags and counts.
    pub fn status(&self) -> &EdgeStatus {
        &self.status
    }

    /// Waits for the word to end.
    ///
    /// # Errors
    /// A shard ended by itself.
    async fn until_told(&self, signals: &mut Signals) -> Result<Told, ServeError> {
        let mut look = tokio::time::interval(Duration::from_millis(100));
        loop {
            tokio::select! {
                () = signals.next() => return Ok(Told::Now),
                () = self.drain.asked() => return Ok(Told::WhenDone),
                _ = look.tick() => {
                    if let Some(error) = self.worker.watch(Duration::ZERO) {
                        return Err(error.into());
                    }
                    if self.edge.is_finished() {
                        // Its error is its result, which `end` looks at.
                        return Ok(Told::Now);
                    }
                }
            }
        }
    }

    /// Takes nothing new and finishes what is here; true if all of it. Only a signal, or the edge's end, sets a time to it:
    /// the grace.
    ///
    /// # Errors
    /// A shard ended by itself.
    async fn drain(&self, told: Told, signals: &mut Signals) -> Result<bool, ServeError> {
        let soon = || Some(Instant::now() + self.grace);
        let mut until = if told == Told::Now { soon() } else { None };
        tracing::info!(grace_ms = until.map(|_| self.grace.as_millis() as u64), "draining");
        self.draining.store(true, Relaxed);
        let _ = self.halt.send(Halt::Drain);
        self.worker.begin_drain();
        tokio::time::sleep(TAKEN_IN).await;
        let mut look = tokio::time::interval(Duration::from_millis(5));
        loop {
            tokio::select! {
                () = signals.next(), if until.is_none() => {
                    tracing::info!(grace_ms = self.grace.as_millis() as u64, "told to end while draining");
                    until = soon();
                }
                _ = look.tick() => {
                    if self.worker.is_idle() {
                        return Ok(true);
                    }
                    if until.is_some_and(|until| Instant::now() >= until) {
                        return Ok(false);
                    }
                    if let Some(error) = self.worker.watch(Duration::ZERO) {
                        return Err(error.into());
                    }
                    if until.is_none() && self.edge.is_finished() {
                        until = soon();
                    }
                }
            }
        }
    }

    /// Ends edge and shards, and tells those who asked for it.
    ///
    /// # Errors
    /// What one of them ended with.
    fn end(self, drained: bool) -> Result<(), ServeError> {
        if !drained {
            tracing::warn!("the grace is over; what is unfinished stays in the journal and with the stream");
        }
        self.done.store(drained, Relaxed);
        let _ = self.halt.send(Halt::Stop);
        let edge = self.edge.join().unwrap_or_else(|_| Err(EdgeError::Connect("the edge's thread panicked".to_owned())));
        let stopped = self.worker.stop();
        self.ops.stop();
        if let Some(clerk) = self.dlq {
            clerk.end();
        }
        edge?;
        stopped?;
        tracing::info!("ended");
        self.drain.ended(if drained { End::Drained } else { End::CutShort });
        Ok(())
    }
}

/// Who this worker is. Where that takes long, for there is no server to ask, whoever looks at its health meanwhile is told.
async fn known_identity(settings: &Settings) -> Result<Identity, ServeError> {
    let mut asking = std::pin::pin!(identity(settings));
    if let Ok(known) = tokio::time::timeout(ASKED_FOR, &mut asking).await {
        return known;
    }
    let (_, nothing) = flume::bounded(1);
    let sources = Sources {
        worker_id: settings.worker_id.clone(),
        blocks: crate::blocks::TABLE.iter().map(|entry| entry.info.name.to_owned()).collect(),
        gauges: Vec::new(),
        keeper: Keeper::new(nothing, 0),
        checks: Checks::of_shards(&[]).with_edge(&Arc::default()),
        edge: Some(Arc::default()),
        dlq: None,
        cache: Arc::default(),
        databases: Vec::new(),
        page: None,
    };
    let ops = http::spawn(settings.ops_bind, sources).map_err(|error| ServeError::Ops(settings.ops_bind, error))?;
    let known = asking.await;
    ops.stop();
    known
}

/// Who this worker is; the deployment's salt where the configuration names none.
async fn identity(settings: &Settings) -> Result<Identity, ServeError> {
    if settings.salt().is_some() {
        return Ok(Identity::resolve(settings, random_salt));
    }
    let stored = crate::worker::stored(&settings.storage_dir).map(|stored| stored.salt);
    match salt::shared(&settings.nats, &settings.worker_id, stored.as_ref(), random_salt).await {
        Shared::Salt(salt) => match stored {
            Some(stored) if stored != salt => Err(ServeError::OtherDeployment(settings.storage_dir.clone())),
            _ => Ok(Identity::resolve(settings, || salt)),
        },
        Shared::Nothing | Shared::Unknown => Ok(Identity::resolve(settings, random_salt)),
    }
}

fn sources(
    worker: &mut Worker,
    worker_id: &str,
    status: &Arc<EdgeStatus>,
    dlq: Option<&Clerk>,
    draining: &Arc<AtomicBool>,
    page: Option<ApprovalPage>,
) -> Sources {
    let drains = draining.clone();
    let dlq = dlq.map(|clerk| clerk.desk().status.clone());
    let mut checks = Checks::of_shards(&worker.gauges).with_edge(status);
    if let Some(dlq) = &dlq {
        checks = checks.with_dlq(dlq);
    }
    let checks =
        checks.with("accepting", Scope::Ready, Arc::new(move || Check::unless(drains.load(Relaxed).then_some("draining"))));
    Sources {
        worker_id: worker_id.to_owned(),
        blocks: crate::blocks::TABLE.iter().map(|entry| entry.info.name.to_owned()).collect(),
        gauges: worker.gauges.clone(),
        keeper: worker.take_keeper().expect("taken once, here"),
        checks,
        edge: Some(status.clone()),
        dlq,
        cache: worker.cache.clone(),
        databases: worker.databases.clone(),
        page,
    }
}
