//! The edge's own thread: pinned, one tokio runtime on it, four tasks — intake, outbox, heartbeat, micro — and beside them gRPC,
//! which needs no NATS server.
//!
//! It begins by waiting for a server and settling where work comes from, and ends when told to, with everything flushed that
//! a connection would take. Nothing here is durable: what is lost with this thread, the server or a journal still has.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use shards::runtime::ports::{Gauge, Inbound, Outbound};
use tokio::sync::watch;

use super::grpc::{self, Door};
use super::heartbeat::Heart;
use super::intake::Intake;
use super::micro::Micro;
use super::nats;
use super::outbox::Outbox;
use super::ports::Ports;
use super::status::EdgeStatus;
use super::streams::{self, Source, Trouble};
use super::tenancy::{Estate, Tenancy};
use super::waiting;
use crate::dlq::Desk;
use crate::settings::{NatsMode, NatsSettings};

/// What the edge needs to know. Shared, never changes.
#[derive(Clone, Debug)]
pub struct EdgeSettings {
    /// Where NATS is and how to use it.
    pub nats: NatsSettings,
    /// The connection's name; also in heartbeats.
    pub worker_id: String,
    /// The cores this thread may run on; empty: any.
    pub cores: Vec<usize>,
    /// Which start of the worker this is: a result of this start that was there already raises an alarm.
    pub boot: u32,
    /// Steps that may run at once, over all shards: the measure of load in heartbeats.
    pub running_max: u32,
    /// Steps that may wait at once, over all shards.
    pub queued_max: u32,
    /// How long the journal remembers, and so how long a claim stands.
    pub horizon: Duration,
    /// Bytes that may be on their way from one consumer.
    pub pull_bytes_max: u64,
}

/// How the edge reaches one shard.
#[derive(Debug)]
pub struct ShardLink {
    /// Its inbox; the edge is the only sender.
    pub inbox: flume::Sender<Inbound>,
    /// What it shows of itself.
    pub gauge: Arc<Gauge>,
    /// Bytes that it may hold.
    pub bytes_max: u64,
}

/// How the edge reaches all of them.
#[derive(Debug)]
pub struct Links {
    /// By shard number.
    pub shards: Vec<ShardLink>,
    /// What they send; shared by all.
    pub outbound: flume::Receiver<Outbound>,
    /// What is needed to own work for them.
    pub estate: Estate,
    /// The worker's own store of dead letters; none: what no stream takes is published and not kept.
    pub dlq: Option<Desk>,
}

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Halt {
    /// Not at all.
    Run,
    /// Take nothing new; go on sending.
    Drain,
    /// Flush and end.
    Stop,
}

/// Why the edge could not begin. Everything later is waited out, and said in logs and health.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// The configured URL cannot be used.
    #[error("nats.url cannot be used: {0}")]
    Url(String),
    /// The connection could not even be tried.
    #[error("NATS: {0}")]
    Connect(String),
    /// A credentials file cannot be used.
    #[error("NATS credentials {0}: {1}")]
    Credentials(PathBuf, String),
    /// `mode = jetstream`, and no stream takes an assign subject.
    #[error(
        "no stream takes {0}, and nats.mode is jetstream: create one (`nats stream add`), or let the worker do it (nats.provision = true), or set nats.mode = \"auto\""
    )]
    NoStream(String),
    /// `mode = jetstream`, and there is no JetStream.
    #[error(
        "nats.mode is jetstream, but JetStream is not enabled for this server or account: enable it, or set nats.mode = \"auto\""
    )]
    NoJetStream,
    /// The consumer that is there cannot be used.
    #[error(
        "consumer {durable} of stream {stream} cannot be used: {why}; delete it (`nats consumer rm {stream} {durable}`) or choose another name with nats.durable"
    )]
    Consumer {
        /// Its stream.
        stream: String,
        /// Its name.
        durable: String,
        /// What is wrong with it.
        why: String,
    },
    /// A stream could not be created.
    #[error("stream {stream} could not be created: {why}; create it by hand or set nats.provision = false")]
    Provision {
        /// Which.
        stream: String,
        /// The server's words.
        why: String,
    },
    /// The worker would take its own messages for work.
    #[error(
        "the assign subject {assign} also takes {own}, which the worker itself publishes on: choose subjects that do not overlap"
    )]
    Loop {
        /// The assign subject.
        assign: String,
        /// The worker's own.
        own: String,
    },
    /// Another worker owns now what this one owned.
    #[error(
        "worker {by:?} has taken {lease} (its epoch {epoch}, ours {ours}): this one was out of touch for too long; started again it stands by"
    )]
    Superseded {
        /// Which lease.
        lease: String,
        /// Who has it.
        by: String,
        /// Its epoch.
        epoch: u32,
        /// The one that we had.
        ours: u32,
    },
    /// The thread could not be started.
    #[error("the edge's thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// The signal to end, as one task sees it.
#[derive(Clone)]
pub(crate) struct Phase(watch::Receiver<Halt>);

impl Phase {
    /// A sender that is gone can never say "stop": taken as one.
    pub(crate) fn now(&self) -> Halt {
        if self.0.has_changed().is_err() { Halt::Stop } else { *self.0.borrow() }
    }

    /// Waits for a change, at most this long.
    pub(crate) async fn wait(&mut self, at_most: Duration) -> Halt {
        let _ = tokio::time::timeout(at_most, self.0.changed()).await;
        self.now()
    }
}

/// Starts the edge; calls are taken at the door, if there is one. `halt` says when to end; `status` is written from here on.
pub fn spawn(
    settings: EdgeSettings,
    links: Links,
    door: Option<Door>,
    halt: watch::Receiver<Halt>,
    status: Arc<EdgeStatus>,
) -> std::io::Result<JoinHandle<Result<(), EdgeError>>> {
    std::thread::Builder::new().name("edge".into()).spawn(move || {
        pin(&settings.cores);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let local = tokio::task::LocalSet::new();
        let ended = runtime.block_on(local.run_until(run(settings, links, door, Phase(halt), status.clone())));
        status.ready.store(false, Ordering::Relaxed);
        status.connected.store(false, Ordering::Relaxed);
        ended
    })
}

fn pin(cores: &[usize]) {
    let mut set = rustix::thread::CpuSet::new();
    for core in cores.iter().filter(|core| **core < rustix::thread::CpuSet::MAX_CPU) {
        set.set(*core);
    }
    if set.count() > 0
        && let Err(error) = rustix::thread::sched_setaffinity(None, &set)
    {
        tracing::warn!(?cores, %error, "the edge's thread is not pinned");
    }
}

/// Serves NATS and, beside it, whoever comes in at the door.
async fn run(
    settings: EdgeSettings,
    links: Links,
    door: Option<Door>,
    phase: Phase,
    status: Arc<EdgeStatus>,
) -> Result<(), EdgeError> {
    let gauges: Vec<Arc<Gauge>> = links.shards.iter().map(|shard| shard.gauge.clone()).collect();
    let ports = Rc::new(RefCell::new(Ports::new(links.shards)));
    let tenancy = Tenancy::new(&settings, links.estate, status.clone());
    let dlq = links.dlq;
    let Some(door) = door else { return sessions(settings, gauges, ports, links.outbound, dlq, tenancy, phase, status).await };
    let desk = dlq.as_ref().map(Desk::another);
    let served = grpc::serve(door, links.outbound, ports.clone(), gauges.clone(), desk, phase.clone(), status.clone());
    let (outbound, front) = served.map_err(EdgeError::Thread)?;
    let ended = sessions(settings, gauges, ports, outbound, dlq, tenancy, phase, status).await;
    front.close().await;
    ended
}

/// One NATS session after the other, until the stop signal.
async fn sessions(
    settings: EdgeSettings,
    gauges: Vec<Arc<Gauge>>,
    ports: Rc<RefCell<Ports>>,
    outbound: flume::Receiver<Outbound>,
    dlq: Option<Desk>,
    mut tenancy: Tenancy,
    mut phase: Phase,
    status: Arc<EdgeStatus>,
) -> Result<(), EdgeError> {
    let settings = Rc::new(settings);
    let lease = tenancy.lease().clone();
    if settings.nats.mode == NatsMode::Core {
        tenancy.free(false);
    }
    let mut kept: Option<Outbox> = None;
    for generation in 0.. {
        let connected = nats::connect(&settings.nats, &settings.worker_id, &status, &mut phase, generation).await?;
        let Some(link) = connected else { break };
        let outbox = match kept.take() {
            Some(outbox) => outbox.relinked(link.clone()),
            None => {
                let (ports, outbound, dlq) = (ports.clone(), outbound.clone(), dlq.clone());
                let claimer = tenancy.claimer();
                Outbox::new(
                    settings.clone(),
                    link.clone(),
                    ports,
                    outbound,
                    dlq,
                    lease.clone(),
                    claimer,
                    phase.clone(),
                    status.clone(),
                )
            }
        };
        let heart = Heart::new(settings.clone(), link.clone(), gauges.clone(), phase.clone(), status.clone());
        let micro = Micro::new(settings.clone(), link.clone(), status.clone());
        let intake = Intake::new(settings.clone(), link.clone(), ports.clone(), lease.clone(), phase.clone(), status.clone());
        let tasks = tokio::task::LocalSet::new();
        let session =
            session(&settings, &link, ports.clone(), outbox, intake, heart, micro, &mut tenancy, &status, phase.clone());
        let outbox = tasks.run_until(session).await?;
        status.ready.store(false, Ordering::Relaxed);
        if phase.now() == Halt::Stop {
            tenancy.release(&link).await;
            break;
        }
        // The client died under us: what it carried is sent again over the next one.
        status.connected.store(false, Ordering::Relaxed);
        kept = Some(outbox);
        phase.wait(Duration::from_millis(500)).await;
    }
    Ok(())
}

/// One client's life: from settling where work comes from to the stop signal or the client's death.
async fn session(
    settings: &EdgeSettings,
    link: &nats::Link,
    ports: Rc<RefCell<Ports>>,
    outbox: Outbox,
    intake: Intake,
    heart: Heart,
    micro: Micro,
    tenancy: &mut Tenancy,
    status: &EdgeStatus,
    mut phase: Phase,
) -> Result<Outbox, EdgeError> {
    // No cooperative budget: these loops bound their own turns, and a budget would make a ready channel look full.
    let outbox = tokio::task::spawn_local(tokio::task::unconstrained(outbox.run()));
    let heart = tokio::task::spawn_local(heart.run());
    let micro = tokio::task::spawn_local(micro.run());
    let ended = match work(link, settings, tenancy, status, &mut phase).await {
        Ok(Some((sources, inherited))) => {
            // Before anything is taken from the streams: what a copy knows of a step, its redelivery does not.
            if tenancy.has_copies() {
                let crew = waiting::crew(&settings.nats);
                let lost = tokio::select! {
                    () = waiting::adopt(link, &crew, ports, phase.clone()) => None,
                    lost = tenancy.keep(link) => Some(lost),
                };
                if let Some(lost) = lost {
                    outbox.abort();
                    return Err(lost);
                }
            }
            tokio::select! {
                () = tokio::task::unconstrained(intake.run(sources, inherited)) => Ok(()),
                lost = tenancy.keep(link) => Err(lost),
            }
        }
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    heart.abort();
    micro.abort();
    if let Err(error) = ended {
        outbox.abort();
        return Err(error);
    }
    // What is still to be told is told as the owner.
    tokio::select! {
        outbox = outbox => outbox.map_err(|error| std::panic::resume_unwind(error.into_panic())),
        lost = tenancy.keep(link) => Err(lost),
    }
}

/// Settles where work comes from and that it is ours to take; `None`: the end came before.
async fn work(
    link: &nats::Link,
    settings: &EdgeSettings,
    tenancy: &mut Tenancy,
    status: &EdgeStatus,
    phase: &mut Phase,
) -> Result<Option<(Vec<Source>, Vec<u64>)>, EdgeError> {
    let Some(sources) = decide(link, settings, status, phase).await? else { return Ok(None) };
    let inherited = tenancy.own(link, &sources, phase).await?;
    Ok(inherited.map(|inherited| (sources, inherited)))
}

/// Settles where work comes from, asking as long as it takes; `None`: the end came before.
async fn decide(
    link: &nats::Link,
    settings: &EdgeSettings,
    status: &EdgeStatus,
    phase: &mut Phase,
) -> Result<Option<Vec<Source>>, EdgeError> {
    let mut pause = Duration::from_millis(100);
    loop {
        if phase.now() == Halt::Stop || link.closed() {
            return Ok(None);
        }
        match streams::plan(link, &settings.nats).await {
            Ok(sources) => {
                let streamed = sources.iter().filter(|source| matches!(source, Source::Pull(_))).count();
                status.jetstream_subjects.store(streamed as u32, Ordering::Relaxed);
                status.core_subjects.store((sources.len() - streamed) as u32, Ordering::Relaxed);
                status.consumers_ok.store(true, Ordering::Relaxed);
                tracing::info!(?sources, "work comes from here");
                return Ok(Some(sources));
            }
            Err(Trouble::Fatal(error)) => return Err(error),
            Err(Trouble::Unsure(why)) => {
                tracing::warn!(
                    why,
                    "JetStream gives no definite answer; if this account has none, set nats.mode = \"core\". Asking again"
                );
                phase.wait(pause).await;
                pause = (pause * 2).min(Duration::from_secs(5));
            }
        }
    }
}
