//! Steps by gRPC: what a client is told and when, over refusals, kills, broken connections and a NATS server that is not there.

mod calls;
#[cfg(feature = "failpoints")]
mod crash;
mod dead;
mod refusals;
mod tls;
mod watch;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use proto::v1;
use proto::v1::step_update::Said;
use proto::v1::worker_service_client::WorkerServiceClient;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

use crate::server::{NatsServer, free_port};
use crate::worker::{Settings, Worker};
use crate::world::PATIENCE;

type Client = WorkerServiceClient<Channel>;

/// A server, a worker that takes calls, and where it does.
struct World {
    worker: Worker,
    port: u16,
    /// Ends last.
    server: NatsServer,
}

impl World {
    async fn start(settings: Settings) -> Result<World> {
        let server = NatsServer::start(false).await?;
        let port = free_port();
        let worker = Worker::start(&server.url(), calls(settings, port)).await?;
        Ok(World { worker, port, server })
    }

    async fn client(&self) -> Result<Client> {
        client(self.port).await
    }

    /// Waits until a metric says so.
    async fn metric(&self, name: &str, wanted: impl Fn(f64) -> bool) -> Result<()> {
        let begun = Instant::now();
        loop {
            let value = self.worker.metric(name).await?;
            if wanted(value) {
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "{name} stays at {value}:\n{}", self.worker.log_tail());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The same settings with a door for calls.
fn calls(settings: Settings, port: u16) -> Settings {
    settings.set("ENDSTATION__GRPC__BIND", &format!("127.0.0.1:{port}"))
}

/// Core NATS, and events.
fn with_events() -> Settings {
    Settings::core().set("ENDSTATION__EVENTS__ENABLED", "true")
}

/// Connects, as soon as somebody listens.
async fn channel(port: u16) -> Result<Channel> {
    let endpoint = Endpoint::try_from(format!("http://127.0.0.1:{port}"))?.connect_timeout(Duration::from_secs(5));
    let begun = Instant::now();
    loop {
        match endpoint.connect().await {
            Ok(channel) => return Ok(channel),
            Err(error) if begun.elapsed() > PATIENCE => return Err(error).context("nobody listens"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn client(port: u16) -> Result<Client> {
    Ok(WorkerServiceClient::new(channel(port).await?))
}

fn context(tenant: &str) -> Option<v1::BlockContext> {
    Some(v1::BlockContext { tenant_id: tenant.into(), ..Default::default() })
}

fn number(value: f64) -> Value {
    Value { kind: Some(Kind::NumberValue(value)) }
}

/// A step of acme's with one number for input.
fn step(block: &str, assignment: &str, (name, value): (&str, f64)) -> v1::StepRequest {
    v1::StepRequest {
        r#type: block.into(),
        inputs: Some(Struct { fields: [(name.to_owned(), number(value))].into() }),
        context: context("acme"),
        assignment_id: Some(assignment.into()),
        ..Default::default()
    }
}

fn echo(assignment: &str) -> v1::StepRequest {
    step("echo", assignment, ("n", 1.0))
}

fn sleep(assignment: &str, ms: u32) -> v1::StepRequest {
    step("sleep", assignment, ("ms", f64::from(ms)))
}

/// A request that gives up rather than hang.
fn ask<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(PATIENCE);
    request
}

async fn submit(client: &mut Client, step: v1::StepRequest) -> Result<v1::StepResult, Status> {
    Ok(client.submit(ask(step)).await?.into_inner())
}

/// One SubmitStream, its requests fed one by one.
struct Stream {
    requests: mpsc::Sender<v1::StepRequest>,
    updates: Streaming<v1::StepUpdate>,
}

impl Stream {
    async fn open(client: &mut Client) -> Result<Stream> {
        let (requests, fed) = mpsc::channel(16);
        let feed = futures_util::stream::unfold(fed, |mut fed: mpsc::Receiver<v1::StepRequest>| async {
            fed.recv().await.map(|step| (step, fed))
        });
        let updates = client.submit_stream(ask(feed)).await?.into_inner();
        Ok(Stream { requests, updates })
    }

    async fn send(&self, step: v1::StepRequest) -> Result<()> {
        Ok(self.requests.send(step).await?)
    }

    /// The next thing that is said, and of which request.
    async fn next(&mut self) -> Result<(u64, Said)> {
        let update = self.updates.message().await?.context("the stream ended")?;
        Ok((update.number, update.said.context("something is said")?))
    }

    /// The next thing said must be that a step is accepted.
    async fn accepted(&mut self) -> Result<u64> {
        match self.next().await? {
            (number, Said::Accepted(accepted)) => {
                ensure!(accepted.at.is_some(), "when");
                Ok(number)
            }
            other => anyhow::bail!("{other:?}"),
        }
    }
}
