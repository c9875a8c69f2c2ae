//! Answers the calls of `beamline.worker.v1.WorkerService`. What it says of a step is what the step's shard said; by itself it
//! refuses only what it has no room for, and watches that make no sense.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use futures_util::Stream;
use prost::Message;
use proto::v1;
use proto::v1::worker_service_server::WorkerService;
use shards::runtime::ports::Gauge;
use shards::step::Delivery;
use tokio::sync::{mpsc, watch};
use tonic::{Request, Response, Status, Streaming};

use super::calls::{Call, Calls, Closed, Said, line};
use super::mail::{self, Heads};
use super::refusal;
use super::steps::Steps;
use super::watch::Watches;
use crate::edge::reading::is_tenant;
use crate::edge::status::{EdgeStatus, bump};
use crate::edge::thread::{Halt, Phase};

/// The service. Lives on the edge's thread, in as many copies as there are calls.
#[derive(Clone)]
pub(super) struct Desk {
    /// To the exchange.
    pub(super) requests: mpsc::Sender<Delivery>,
    pub(super) calls: Arc<Calls>,
    pub(super) watches: Arc<Watches>,
    pub(super) gauges: Arc<[Arc<Gauge>]>,
    pub(super) phase: Phase,
    /// True once nobody is answered any more.
    pub(super) ending: watch::Receiver<bool>,
    /// Whether there are events to watch.
    pub(super) events: bool,
    pub(super) status: Arc<EdgeStatus>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl WorkerService for Desk {
    type SubmitStreamStream = Answers<v1::StepUpdate>;
    type WatchStream = Answers<v1::LifecycleEvent>;

    async fn submit(&self, request: Request<v1::StepRequest>) -> Result<Response<v1::StepResult>, Status> {
        let heads = Heads::of(request.metadata());
        let step = request.into_inner();
        let said = self.ask(step.encoded_len(), |call| mail::step(call, &step, &heads)).await?;
        match said {
            Said::Ended(body) => decode(&body),
            Said::Reply(body) => Err(self.refused(&decode::<v1::StepError>(&body)?.into_inner())),
            Said::Accepted(_) | Said::Full => Err(astray()),
        }
    }

    async fn submit_stream(
        &self,
        requests: Request<Streaming<v1::StepRequest>>,
    ) -> Result<Response<Self::SubmitStreamStream>, Status> {
        // Its trace would outrank those that the steps name.
        let heads = Heads::of(requests.metadata()).without_trace();
        Ok(Response::new(Box::pin(Steps::start(self.clone(), heads, requests.into_inner()))))
    }

    async fn cancel(&self, request: Request<v1::StepCancel>) -> Result<Response<v1::StepCancelReply>, Status> {
        let heads = Heads::of(request.metadata());
        let cancel = request.into_inner();
        named(mail::tenant(cancel.context.as_ref()), "context.tenant_id", &heads)?;
        let said = self.ask(cancel.encoded_len(), |call| mail::cancel(call, &cancel, &heads)).await?;
        let Said::Reply(body) = said else { return Err(astray()) };
        let reply = decode::<v1::StepCancelReply>(&body)?;
        match &reply.get_ref().error {
            Some(error) => Err(self.refused(error)),
            None => Ok(reply),
        }
    }

    async fn signal(&self, request: Request<v1::Signal>) -> Result<Response<v1::SignalReply>, Status> {
        let heads = Heads::of(request.metadata());
        let signal = request.into_inner();
        named(mail::tenant(signal.context.as_ref()), "context.tenant_id", &heads)?;
        let said = self.ask(signal.encoded_len(), |call| mail::signal(call, &signal, &heads)).await?;
        let Said::Reply(body) = said else { return Err(astray()) };
        decode(&body)
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        named(&request.get_ref().tenant_id, "tenant_id", &Heads::of(request.metadata()))?;
        if !self.events {
            return Err(Status::failed_precondition("this worker tells of no events: events.enabled is false"));
        }
        let events = self.watches.open(request.into_inner()).map_err(|why| self.closed(why))?;
        Ok(Response::new(Box::pin(events)))
    }
}

impl Desk {
    /// Opens a call, hands over what it brings, and waits for the last that is said to it.
    async fn ask(&self, bytes: usize, delivery: impl FnOnce(u64) -> Delivery) -> Result<Said, Status> {
        if !self.begun() {
            return Err(self.closed(Closed::Waiting));
        }
        let (tell, mut told) = line();
        let call = self.calls.open(&tell, 0, bytes as u64).map_err(|why| self.closed(why))?;
        drop(tell);
        self.hand_over(delivery(call.number)).await?;
        loop {
            match told.recv().await {
                Some((_, Said::Accepted(_))) => {}
                Some((_, Said::Full)) => return Err(self.refused(&refusal::closed(Closed::Full))),
                Some((_, said)) => return Ok(said),
                None => return Err(refusal::ended()),
            }
        }
    }

    /// Opens a call for one request of a SubmitStream and hands it over.
    pub(super) async fn submit_one(
        &self,
        tell: &mpsc::UnboundedSender<(u64, Said)>,
        number: u64,
        step: &v1::StepRequest,
        heads: &Heads,
    ) -> Result<Call, Closed> {
        if !self.begun() {
            bump(&self.status.calls_refused);
            return Err(Closed::Waiting);
        }
        let call = self.calls.open(tell, number, step.encoded_len() as u64).inspect_err(|_| bump(&self.status.calls_refused))?;
        let handed = self.hand_over(mail::step(call.number, step, heads)).await;
        handed.map(|()| call).map_err(|_| Closed::Ending)
    }

    async fn hand_over(&self, delivery: Delivery) -> Result<(), Status> {
        self.requests.send(delivery).await.map_err(|_| refusal::ended())
    }

    /// Whether the worker is not to be asked: it is about to end, or has not begun.
    pub(super) fn draining(&self) -> bool {
        self.phase.now() >= Halt::Drain || !self.begun()
    }

    /// Whether all shards take work.
    fn begun(&self) -> bool {
        self.gauges.iter().all(|gauge| gauge.ready.load(Relaxed))
    }

    fn refused(&self, error: &v1::StepError) -> Status {
        refusal::status(error, self.draining())
    }

    fn closed(&self, why: Closed) -> Status {
        bump(&self.status.calls_refused);
        self.refused(&refusal::closed(why))
    }
}

/// Whether a tenant is named that can be one, and no other in the metadata.
fn named(tenant: &str, field: &str, heads: &Heads) -> Result<(), Status> {
    if !is_tenant(tenant) {
        return Err(refusal::bad_tenant(field));
    }
    if heads.agree(tenant) { Ok(()) } else { Err(refusal::other_tenant()) }
}

/// An answer to another question than was asked.
fn astray() -> Status {
    Status::internal("the shard's answer is none to what was asked")
}

fn decode<T: Message + Default>(body: &[u8]) -> Result<Response<T>, Status> {
    // Nested more deeply than protobuf reads: another asker's JSON may be.
    T::decode(body).map(Response::new).map_err(|_| Status::internal("the answer cannot be written as protobuf"))
}
