//! gRPC: `WorkerService`, health and reflection, on the edge's thread. It stands beside the NATS session, not in it: a step that
//! comes by a call is taken, run and answered whether there is a NATS server or not.
//!
//! A request becomes the native message that it is ([`mail`]) and goes to its tenant's shard like any other; what the shards
//! write comes apart in the [`exchange`]. Outcomes of calls are told to calls alone; lifecycle events and dead letters go where
//! they always go. Nothing here is durable, and nothing is told before its frame is.

mod calls;
mod desk;
mod door;
mod exchange;
mod mail;
mod refusal;
mod steps;
mod watch;

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use proto::v1::worker_service_server::WorkerServiceServer;
use shards::runtime::ports::{Gauge, Outbound};
use tokio::sync::{mpsc, watch as signal};
use tokio::task::{JoinHandle, spawn_local, unconstrained};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tonic_reflection::server::Builder as Reflection;

use calls::Calls;
use desk::Desk;
pub use door::{Door, DoorError, DoorFrame};
use exchange::Exchange;
use watch::Watches;

use super::limits::{CALL_FAREWELL_MS, HEALTH_EVERY_MS, REQUESTS_WAITING_MAX};
use super::ports::Ports;
use super::status::EdgeStatus;
use super::thread::{Halt, Phase};

/// The name of the service, as health knows it.
const SERVICE: &str = "beamline.worker.v1.WorkerService";

/// What is served, until [`Front::close`]. Lives on the edge's thread.
pub(crate) struct Front {
    calls: Arc<Calls>,
    watches: Arc<Watches>,
    ending: signal::Sender<bool>,
    server: JoinHandle<()>,
}

/// Serves what comes in at the door. What the shards send to NATS comes out of the receiver that is given back. To be called
/// within a [`tokio::task::LocalSet`].
pub(crate) fn serve(
    door: Door,
    outbound: flume::Receiver<Outbound>,
    ports: Rc<RefCell<Ports>>,
    gauges: Vec<Arc<Gauge>>,
    dlq: Option<crate::dlq::Desk>,
    phase: Phase,
    status: Arc<EdgeStatus>,
) -> io::Result<(flume::Receiver<Outbound>, Front)> {
    let (calls, watches) = (Arc::new(Calls::new(status.clone(), ports.borrow().bytes_max())), Arc::<Watches>::default());
    let (requests, asked) = mpsc::channel(REQUESTS_WAITING_MAX);
    // As unbounded as the shards' own, and bounded as that is.
    let (onward, to_nats) = flume::unbounded();
    let exchange = Exchange {
        ports,
        requests: asked,
        outbound,
        onward,
        calls: calls.clone(),
        watches: watches.clone(),
        status: status.clone(),
        dlq,
        stranded: 0,
    };
    spawn_local(unconstrained(exchange.run()));

    let (ending, ended) = signal::channel(false);
    let (message_bytes_max, events) = (door.message_bytes_max, door.events);
    let desk = Desk {
        requests,
        calls: calls.clone(),
        watches: watches.clone(),
        gauges: gauges.clone().into(),
        phase: phase.clone(),
        ending: ended,
        events,
        status,
    };
    // A message somewhat too large is told its rule by the shard; one much too large is not read at all.
    let worker = WorkerServiceServer::new(desk).max_decoding_message_size(2 * message_bytes_max);
    let (reporter, health) = tonic_health::server::health_reporter();
    spawn_local(report(reporter, gauges, phase.clone()));
    let reflection = || {
        Reflection::configure()
            .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let broken = |error| io::Error::other(format!("reflection: {error}"));
    let (now, before) = (reflection().build_v1().map_err(broken)?, reflection().build_v1alpha().map_err(broken)?);
    let address = door.address;
    let (mut server, connections) = door.pass()?;
    let router = server.add_service(worker).add_service(health).add_service(now).add_service(before);
    let server = spawn_local(async move {
        if let Err(error) = router.serve_with_incoming_shutdown(connections, stopped(phase)).await {
            tracing::error!(%error, "gRPC is no longer served");
        }
    });
    tracing::info!(%address, "gRPC is served");
    Ok((to_nats, Front { calls, watches, ending, server }))
}

impl Front {
    /// Whoever still waits is told that the worker ends; then connections have a moment to take that in.
    pub(crate) async fn close(self) {
        self.calls.close();
        self.watches.close();
        let _ = self.ending.send(true);
        let _ = tokio::time::timeout(Duration::from_millis(CALL_FAREWELL_MS), self.server).await;
    }
}

/// Waits for the signal to stop.
async fn stopped(mut phase: Phase) {
    while phase.now() != Halt::Stop {
        phase.wait(Duration::from_secs(3600)).await;
    }
}

/// Keeps health's answer true: serving while the shards take work and nobody has said that it ends. NATS is not asked: a call
/// does not need it.
async fn report(reporter: HealthReporter, gauges: Vec<Arc<Gauge>>, mut phase: Phase) {
    let mut said = None;
    loop {
        let takes = |gauge: &Arc<Gauge>| gauge.ready.load(Relaxed) && !gauge.disk_full.load(Relaxed);
        let serving = phase.now() == Halt::Run && gauges.iter().all(takes);
        if said != Some(serving) {
            said = Some(serving);
            let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
            for service in ["", SERVICE] {
                reporter.set_service_status(service, status).await;
            }
        }
        if phase.now() == Halt::Stop {
            return;
        }
        // Whoever has waited for the shards to begin does not wait for this, too.
        let pause_ms = if serving { HEALTH_EVERY_MS } else { HEALTH_EVERY_MS / 10 };
        phase.wait(Duration::from_millis(pause_ms)).await;
    }
}
