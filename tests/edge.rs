//! The edge against a real nats-server, with a thread that answers in the shards' place.
#![allow(missing_docs)]

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_nats::jetstream;
use endstation::edge::status::EdgeStatus;
use endstation::edge::tenancy::Estate;
use endstation::edge::thread::{self, EdgeError, EdgeSettings, Halt, Links, ShardLink};
use endstation::settings::{NatsAuth, NatsMode, NatsSettings, NatsTls, Ownership};
use futures_util::StreamExt;
use shards::ids::{Key, Ticket};
use shards::map;
use shards::runtime::ports::{About, Gauge, Inbound, Outbound, Outgoing, Outlet, Parcel};
use shards::runtime::tenure::Lease;
use shards::step::{Delivery, Origin, Settle, StreamToken};
use tokio::sync::watch;

#[path = "edge/claims.rs"]
mod claims;

const PLACES: u32 = 512;

/// A nats-server of our own.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(port: u16, store: Option<&Path>) -> Result<Server> {
        let mut command = Command::new("nats-server");
        command.args(["-a", "127.0.0.1", "-p", &port.to_string()]);
        if let Some(store) = store {
            command.arg("-js").arg("-sd").arg(store);
        }
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("nats-server must be on PATH")?;
        let server = Server { child, port };
        let deadline = Instant::now() + Duration::from_secs(5);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            ensure!(Instant::now() < deadline, "nats-server does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// SIGKILL, at once.
    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that no other test of this process is given, not even while its server is down.
fn free_port() -> Result<u16> {
    static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);
    let base = 10_000 + (std::process::id() % 200) as u16 * 50;
    loop {
        let port = base + NEXT.fetch_add(1, Relaxed);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
}

fn settings(port: u16, mode: NatsMode, provision: bool) -> EdgeSettings {
    let nats = NatsSettings {
        url: format!("nats://127.0.0.1:{port}"),
        mode,
        ownership: Ownership::Exclusive,
        provision,
        replicas: 1,
        assign_subjects: vec!["caf.exec.assign.v1".into()],
        ack_subject: "caf.exec.assign.v1.ack".into(),
        result_subject: "caf.exec.result.v1".into(),
        heartbeat_subject: "caf.worker.heartbeat.v1".into(),
        dlq_subject: "caf.exec.dlq.v1".into(),
        events_prefix: "beamline.worker.events".into(),
        heartbeat_ms: 200,
        ack_wait_ms: 2_000,
        durable: "endstation".into(),
        auth: NatsAuth::Anonymous,
        tls: NatsTls::default(),
    };
    EdgeSettings {
        nats,
        worker_id: "w1".into(),
        cores: Vec::new(),
        boot: 1,
        running_max: 1_024,
        queued_max: 10_000,
        horizon: Duration::from_secs(7_200),
        pull_bytes_max: 64 << 20,
    }
}

/// An edge with stand-ins for its shards.
struct Bench {
    status: Arc<EdgeStatus>,
    halt: watch::Sender<Halt>,
    edge: JoinHandle<Result<(), EdgeError>>,
    shards: Vec<JoinHandle<Result<u32>>>,
    stop: Arc<AtomicBool>,
    stranger: Arc<AtomicU32>,
}

impl Bench {
    fn start(settings: EdgeSettings, count: u16, delay: Duration) -> Result<Bench> {
        let (outbox, outbound) = flume::bounded(64);
        let stop = Arc::new(AtomicBool::new(false));
        let stranger = Arc::new(AtomicU32::new(0));
        let (mut links, mut shards) = (Vec::new(), Vec::new());
        for shard in 0..count {
            let (inbox, taken) = flume::bounded(64);
            let gauge = Arc::new(Gauge::default());
            gauge.free.store(PLACES, Relaxed);
            gauge.ready.store(true, Relaxed);
            links.push(ShardLink { inbox, gauge: gauge.clone(), bytes_max: 1 << 30 });
            let part = StandIn {
                shard,
                count,
                taken,
                outbox: outbox.clone(),
                gauge,
                stop: stop.clone(),
                stranger: stranger.clone(),
                delay,
                held: HashMap::new(),
                seen: HashSet::new(),
                next: 0,
            };
            shards.push(std::thread::spawn(move || part.run()));
        }
        let (halt, phase) = watch::channel(Halt::Run);
        let status = Arc::new(EdgeStatus::default());
        let estate = Estate {
            lease: Lease::unbounded(),
            grants: Vec::new(),
            journal: "one".into(),
            epoch: 0,
            knows: false,
            done: Arc::default(),
        };
        let edge = thread::spawn(settings, Links { shards: links, outbound, estate, dlq: None }, None, phase, status.clone())?;
        Ok(Bench { status, halt, edge, shards, stop, stranger })
    }

    fn end(self) -> Result<u32> {
        self.halt.send(Halt::Drain)?;
        std::thread::sleep(Duration::from_millis(50));
        self.stop.store(true, Relaxed);
        let mut taken = 0;
        for shard in self.shards {
            taken += shard.join().expect("the stand-in does not panic")?;
        }
        let asked = Instant::now();
        self.halt.send(Halt::Stop)?;
        self.edge.join().expect("the edge does not panic")?;
        ensure!(asked.elapsed() < Duration::from_secs(4), "the edge is slow to end");
        ensure!(self.stranger.load(Relaxed) == 0, "a shard got another's tenant");
        Ok(taken)
    }
}

/// Answers like a shard: ack, result, and the delivery's ack once the result is confirmed.
struct StandIn {
    shard: u16,
    count: u16,
    taken: flume::Receiver<Inbound>,
    outbox: flume::Sender<Outbound>,
    gauge: Arc<Gauge>,
    stop: Arc<AtomicBool>,
    stranger: Arc<AtomicU32>,
    delay: Duration,
    held: HashMap<u32, Option<StreamToken>>,
    seen: HashSet<String>,
    next: u32,
}

impl StandIn {
    fn run(mut self) -> Result<u32> {
        let mut deliveries = 0;
        while !self.stop.load(Relaxed) {
            let Ok(inbound) = self.taken.recv_timeout(Duration::from_millis(10)) else { continue };
            let mut items = Vec::new();
            match inbound {
                Inbound::Deliveries(batch) => {
                    deliveries += batch.len() as u32;
                    std::thread::sleep(self.delay);
                    for delivery in batch {
                        self.answer(delivery, &mut items)?;
                    }
                }
                Inbound::Claimed(_) => anyhow::bail!("nothing was claimed"),
                Inbound::Adopted(_) => anyhow::bail!("nothing was left by another owner"),
                Inbound::CopiesRead => {}
                Inbound::Confirmed(tickets) => {
                    for ticket in tickets {
                        if let Some(Some(token)) = self.held.remove(&ticket.slot) {
                            items.push(Outgoing::Settle(token, Settle::Ack));
                        }
                    }
                }
            }
            self.gauge.free.store(PLACES.saturating_sub(self.held.len() as u32), Relaxed);
            self.gauge.running.store(self.held.len() as u32, Relaxed);
            if !items.is_empty() {
                self.outbox.send(Outbound { shard: self.shard, items })?;
            }
        }
        Ok(deliveries)
    }

    fn answer(&mut self, delivery: Delivery, items: &mut Vec<Outgoing>) -> Result<()> {
        let body: serde_json::Value = serde_json::from_slice(&delivery.body)?;
        let id = body["assignment_id"].as_str().context("an assignment_id")?.to_owned();
        let tenant = body["tenant_id"].as_str().context("a tenant_id")?.to_owned();
        if map::shard(map::partition(&tenant), self.count) != self.shard {
            self.stranger.fetch_add(1, Relaxed);
        }
        let replayed = !self.seen.insert(id.clone());
        let about = About { line: 0, call: 0, by_call: false, key: Key([0; 16]), status: None, replayed, boot: 1, tries: 1 };
        let parcel = |outlet, subject: &str, kind: &str, confirm| Parcel {
            outlet,
            subject: subject.into(),
            headers: vec![
                ("version".into(), "1".into()),
                ("tenant_id".into(), tenant.clone().into()),
                ("Nats-Msg-Id".into(), format!("{kind}-{id}").into()),
            ],
            body: format!(r#"{{"assignment_id":"{id}"}}"#).into(),
            reply: None,
            confirm,
            about,
        };
        let slot = self.next;
        self.next += 1;
        items.push(Outgoing::Parcel(parcel(Outlet::Ack, "caf.exec.assign.v1.ack", "a", None)));
        items.push(Outgoing::Parcel(parcel(Outlet::Result, "caf.exec.result.v1", "r", Some(Ticket { slot, generation: 0 }))));
        let token = match delivery.origin {
            Origin::Stream(token) => Some(token),
            _ => None,
        };
        self.held.insert(slot, token);
        Ok(())
    }
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !done().await.unwrap_or(false) {
        ensure!(Instant::now() < deadline, "still waiting until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn ready(bench: &Bench) -> Result<()> {
    until("the edge is ready", async || Ok(bench.status.complaint().is_none())).await
}

fn assignment(n: u32) -> bytes::Bytes {
    format!(r#"{{"version":"1","assignment_id":"a{n}","request_id":"q","tenant_id":"t{}","job":{{"type":"echo"}}}}"#, n % 50)
        .into()
}

/// Publishes as a client of the stream does: each waits for its PubAck, pipelined.
async fn submit(context: &jetstream::Context, range: std::ops::Range<u32>) -> Result<()> {
    let mut waiting = Vec::new();
    for n in range {
        waiting.push(context.publish("caf.exec.assign.v1", assignment(n)).await?);
    }
    for ack in waiting {
        ack.await?;
    }
    Ok(())
}

async fn messages(context: &jetstream::Context, stream: &str) -> Result<u64> {
    Ok(context.get_stream(stream).await?.info().await?.state.messages)
}

/// The assignments that have a result in the stream.
async fn results(context: &jetstream::Context) -> Result<HashSet<String>> {
    let stream = context.get_stream("CAF_RESULT").await?;
    let config = jetstream::consumer::pull::Config { ack_policy: jetstream::consumer::AckPolicy::None, ..Default::default() };
    let consumer = stream.create_consumer(config).await?;
    let mut found = HashSet::new();
    let mut batch = consumer.fetch().max_messages(10_000).messages().await?;
    while let Some(Ok(message)) = batch.next().await {
        let body: serde_json::Value = serde_json::from_slice(&message.payload)?;
        found.insert(body["assignment_id"].as_str().context("an id")?.to_owned());
    }
    Ok(found)
}

#[tokio::test]
async fn every_assignment_of_a_stream_gets_one_result_and_is_acked() -> Result<()> {
    let store = tempfile::tempdir()?;
    let server = Server::start(free_port()?, Some(store.path()))?;
    let bench = Bench::start(settings(server.port, NatsMode::Auto, true), 2, Duration::ZERO)?;
    ready(&bench).await?;
    assert_eq!(bench.status.jetstream_subjects.load(Relaxed), 1);
    let client = async_nats::connect(format!("127.0.0.1:{}", server.port)).await?;
    let context = jetstream::new(client);
    submit(&context, 0..2_000).await?;
    until("all is acked", async || Ok(messages(&context, "CAF_ASSIGN").await? == 0)).await?;
    assert_eq!(messages(&context, "CAF_RESULT").await?, 2_000);
    assert_eq!(bench.status.duplicates.load(Relaxed), 0);
    assert_eq!(bench.status.resent.load(Relaxed), 0);
    assert_eq!(bench.end()?, 2_000);
    Ok(())
}

#[tokio::test]
async fn a_killed_server_loses_no_assignment() -> Result<()> {
    let store = tempfile::tempdir()?;
    let mut server = Server::start(free_port()?, Some(store.path()))?;
    let bench = Bench::start(settings(server.port, NatsMode::JetStream, true), 2, Duration::from_millis(20))?;
    ready(&bench).await?;
    let client = async_nats::connect(format!("127.0.0.1:{}", server.port)).await?;
    let context = jetstream::new(client);
    submit(&context, 0..1_000).await?;
    until("a part is done", async || Ok(bench.status.confirmed.load(Relaxed) > 300)).await?;
    server.kill();
    tokio::time::sleep(Duration::from_millis(300)).await;
    server = Server::start(server.port, Some(store.path()))?;
    until("there is a connection again", async || Ok(bench.status.reconnects.load(Relaxed) > 0)).await?;
    until("the second half can be submitted", async || {
        submit(&context, 1_000..2_000).await?;
        Ok(true)
    })
    .await?;
    until("all is acked", async || Ok(messages(&context, "CAF_ASSIGN").await? == 0)).await?;
    let found = results(&context).await?;
    let missing: Vec<_> = (0..2_000).map(|n| format!("a{n}")).filter(|id| !found.contains(id)).collect();
    assert!(missing.is_empty(), "{} without a result", missing.len());
    assert_eq!(bench.status.duplicates.load(Relaxed), 0, "what the kill caused is no alarm");
    until("it is well again", async || Ok(bench.status.complaint().is_none())).await?;
    bench.end()?;
    drop(server);
    Ok(())
}

#[tokio::test]
async fn a_server_without_jetstream_is_served_by_core() -> Result<()> {
    let server = Server::start(free_port()?, None)?;
    let client = async_nats::connect(format!("127.0.0.1:{}", server.port)).await?;
    let mut results = client.subscribe("caf.exec.result.v1").await?;
    let mut beats = client.subscribe("caf.worker.heartbeat.v1").await?;
    client.flush().await?;
    let bench = Bench::start(settings(server.port, NatsMode::Auto, true), 2, Duration::ZERO)?;
    ready(&bench).await?;
    assert_eq!(bench.status.core_subjects.load(Relaxed), 1);
    // The subscription is on its way when the edge says ready: a request of ours behind it is not.
    tokio::time::sleep(Duration::from_millis(100)).await;
    for n in 0..500 {
        client.publish("caf.exec.assign.v1", assignment(n)).await?;
    }
    let mut ids = HashSet::new();
    while ids.len() < 500 {
        let message = tokio::time::timeout(Duration::from_secs(5), results.next()).await?.context("a result")?;
        ids.insert(message.payload);
    }
    until("all is confirmed", async || Ok(bench.status.confirmed.load(Relaxed) == 500)).await?;
    let beat = beats.next().await.context("a heartbeat")?;
    let beat: serde_json::Value = serde_json::from_slice(&beat.payload)?;
    assert_eq!((&beat["version"], &beat["worker_id"]), (&"1".into(), &"w1".into()));
    assert!(beat["resources"]["mem_bytes"].as_u64() > Some(0), "{beat}");
    bench.end()?;
    Ok(())
}

#[tokio::test]
async fn mode_decides_what_a_missing_stream_means() -> Result<()> {
    let store = tempfile::tempdir()?;
    let server = Server::start(free_port()?, Some(store.path()))?;
    let strict = Bench::start(settings(server.port, NatsMode::JetStream, false), 1, Duration::ZERO)?;
    until("it gives up", async || Ok(strict.edge.is_finished())).await?;
    strict.stop.store(true, Relaxed);
    let error = strict.edge.join().expect("no panic").expect_err("there is no stream");
    assert!(matches!(error, EdgeError::NoStream(_)), "{error}");
    assert!(error.to_string().contains("nats.provision"), "the message says the cure: {error}");

    let easy = Bench::start(settings(server.port, NatsMode::Auto, false), 1, Duration::ZERO)?;
    ready(&easy).await?;
    assert_eq!(easy.status.core_subjects.load(Relaxed), 1);
    easy.end()?;
    Ok(())
}

#[tokio::test]
async fn consumers_are_made_fit_and_filtered() -> Result<()> {
    let store = tempfile::tempdir()?;
    let server = Server::start(free_port()?, Some(store.path()))?;
    let client = async_nats::connect(format!("127.0.0.1:{}", server.port)).await?;
    let context = jetstream::new(client);
    let stream = jetstream::stream::Config { name: "WIDE".into(), subjects: vec!["caf.exec.>".into()], ..Default::default() };
    let stream = context.create_stream(stream).await?;
    let old = jetstream::consumer::pull::Config {
        durable_name: Some("endstation-1".into()),
        filter_subject: "caf.exec.assign.v1".into(),
        max_deliver: 3,
        ..Default::default()
    };
    stream.create_consumer(old).await?;
    let mut two = settings(server.port, NatsMode::JetStream, false);
    two.nats.assign_subjects.push("caf.exec.other".into());
    let bench = Bench::start(two, 1, Duration::ZERO)?;
    ready(&bench).await?;
    for (name, filter) in [("endstation-1", "caf.exec.assign.v1"), ("endstation-2", "caf.exec.other")] {
        let info = stream.consumer_info(name).await?;
        assert_eq!((info.config.max_deliver, info.config.ack_wait), (-1, Duration::from_secs(2)), "{name}");
        assert_eq!((&*info.config.filter_subject, info.config.max_ack_pending), (filter, 100_000));
    }
    submit(&context, 0..100).await?;
    until("all is acked", async || Ok(stream.consumer_info("endstation-1").await?.ack_floor.consumer_sequence == 100)).await?;
    bench.end()?;

    // One filter only: the plain name is free, but a consumer of that name with another filter is not ours to change.
    let other = jetstream::consumer::pull::Config {
        durable_name: Some("endstation".into()),
        filter_subject: "caf.exec.other".into(),
        ..Default::default()
    };
    stream.create_consumer(other).await?;
    let bench = Bench::start(settings(server.port, NatsMode::Auto, false), 1, Duration::ZERO)?;
    until("it gives up", async || Ok(bench.edge.is_finished())).await?;
    bench.stop.store(true, Relaxed);
    let error = bench.edge.join().expect("no panic").expect_err("the filter differs");
    assert!(matches!(error, EdgeError::Consumer { .. }), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_deleted_consumer_is_made_again() -> Result<()> {
    let store = tempfile::tempdir()?;
    let server = Server::start(free_port()?, Some(store.path()))?;
    let bench = Bench::start(settings(server.port, NatsMode::Auto, true), 1, Duration::ZERO)?;
    ready(&bench).await?;
    let client = async_nats::connect(format!("127.0.0.1:{}", server.port)).await?;
    let context = jetstream::new(client);
    until("a pull request waits", async || Ok(bench.status.outstanding.load(Relaxed) > 0)).await?;
    context.get_stream("CAF_ASSIGN").await?.delete_consumer("endstation").await?;
    submit(&context, 0..10).await?;
    until("all is acked", async || Ok(messages(&context, "CAF_ASSIGN").await? == 0)).await?;
    bench.end()?;
    Ok(())
}

#[tokio::test]
async fn draining_leaves_the_rest_to_others() -> Result<()> {
    let store = tempfile::tempdir()?;
    let server = Server::start(free_port()?, Some(store.path()))?;
    let bench = Bench::start(settings(server.port, NatsMode::Auto, true), 1, Duration::ZERO)?;
    ready(&bench).await?;
    let client = async_nats::connect(format!("127.0.0.1:{}", server.port)).await?;
    let context = jetstream::new(client);
    until("a pull request waits", async || Ok(bench.status.outstanding.load(Relaxed) > 0)).await?;
    bench.halt.send(Halt::Drain)?;
    tokio::time::sleep(Duration::from_millis(150)).await;
    submit(&context, 0..10).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(bench.status.received.load(Relaxed), 0);
    assert_eq!(messages(&context, "CAF_ASSIGN").await?, 10);
    bench.end()?;
    Ok(())
}

/// Publishes raw bytes as headers, as a client that checks nothing would.
fn hostile(port: u16, headers: &[u8]) -> Result<()> {
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    let body = assignment(9_000 + headers.len() as u32);
    let mut sent = b"CONNECT {\"verbose\":false,\"headers\":true}\r\n".to_vec();
    sent.extend(format!("HPUB caf.exec.assign.v1 {} {}\r\n", headers.len(), headers.len() + body.len()).bytes());
    sent.extend(headers.iter().chain(&body[..]).chain(b"\r\nPING\r\n"));
    socket.write_all(&sent)?;
    let mut answer = [0; 4096];
    let mut seen = Vec::new();
    while !seen.windows(4).any(|window| window == b"PONG") {
        let count = socket.read(&mut answer)?;
        ensure!(count > 0, "the server hung up: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&answer[..count]);
    }
    Ok(())
}

#[tokio::test]
async fn headers_that_break_the_client_stop_nothing() -> Result<()> {
    let store = tempfile::tempdir()?;
    let server = Server::start(free_port()?, Some(store.path()))?;
    let bench = Bench::start(settings(server.port, NatsMode::Auto, true), 2, Duration::ZERO)?;
    ready(&bench).await?;
    let client = async_nats::connect(format!("127.0.0.1:{}", server.port)).await?;
    let context = jetstream::new(client);
    // A status line of the sender's own is just a message.
    hostile(server.port, b"NATS/1.0 408 Request Timeout\r\nA: b\r\n\r\n")?;
    until("it is done", async || Ok(messages(&context, "CAF_ASSIGN").await? == 0)).await?;
    // These two break the client's connection, and its task, each time they are delivered.
    hostile(server.port, b"NATS/1.0\r\nX: \xff\xfe\r\n\r\n")?;
    hostile(server.port, b"NATS/1.0\r\nX: a\rb\r\n\r\n")?;
    submit(&context, 0..200).await?;
    until("all are done, the malformed too", async || Ok(messages(&context, "CAF_ASSIGN").await? == 0)).await?;
    bench.end()?;
    Ok(())
}

#[tokio::test]
async fn a_worker_may_start_before_its_server_and_end_without_one() -> Result<()> {
    let port = free_port()?;
    let never = Bench::start(settings(port, NatsMode::Auto, true), 1, Duration::ZERO)?;
    assert_eq!(never.status.complaint(), Some("no connection to NATS"));
    never.end()?;
    let bench = Bench::start(settings(port, NatsMode::Auto, true), 1, Duration::ZERO)?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let store = tempfile::tempdir()?;
    let mut server = Server::start(port, Some(store.path()))?;
    ready(&bench).await?;
    assert_eq!(bench.status.jetstream_subjects.load(Relaxed), 1);
    server.kill();
    until("it is noticed", async || Ok(bench.status.complaint().is_some())).await?;
    bench.end()?;
    Ok(())
}

#[tokio::test]
async fn results_whose_stream_is_deleted_go_by_core() -> Result<()> {
    let store = tempfile::tempdir()?;
    let server = Server::start(free_port()?, Some(store.path()))?;
    let client = async_nats::connect(format!("127.0.0.1:{}", server.port)).await?;
    let context = jetstream::new(client);
    let assign = jetstream::stream::Config {
        name: "A".into(),
        subjects: vec!["caf.exec.assign.v1".into()],
        retention: jetstream::stream::RetentionPolicy::WorkQueue,
        ..Default::default()
    };
    context.create_stream(assign).await?;
    let results =
        jetstream::stream::Config { name: "R".into(), subjects: vec!["caf.exec.result.v1".into()], ..Default::default() };
    context.create_stream(results).await?;
    let bench = Bench::start(settings(server.port, NatsMode::JetStream, false), 1, Duration::ZERO)?;
    ready(&bench).await?;
    submit(&context, 0..10).await?;
    until("all is acked", async || Ok(messages(&context, "A").await? == 0)).await?;
    // Gone: the results go by core, after the refusal has made us ask again.
    context.delete_stream("R").await?;
    submit(&context, 10..20).await?;
    until("all is acked", async || Ok(messages(&context, "A").await? == 0)).await?;
    assert_eq!(bench.status.confirmed.load(Relaxed), 20);
    assert!(bench.status.resent.load(Relaxed) > 0);
    bench.end()?;
    Ok(())
}

#[tokio::test]
async fn a_shard_that_stands_still_gets_no_more_than_it_takes() -> Result<()> {
    let store = tempfile::tempdir()?;
    let server = Server::start(free_port()?, Some(store.path()))?;
    // It answers one batch in two seconds: everything it has places for is under way, and nothing beyond.
    let bench = Bench::start(settings(server.port, NatsMode::Auto, true), 1, Duration::from_secs(2))?;
    ready(&bench).await?;
    let client = async_nats::connect(format!("127.0.0.1:{}", server.port)).await?;
    let context = jetstream::new(client);
    submit(&context, 0..2_000).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let received = bench.status.received.load(Relaxed);
    // One batch may be in the shard's hands before its gauge shows it.
    assert!((u64::from(PLACES)..=u64::from(PLACES) + 256).contains(&received), "{received}");
    assert_eq!(bench.status.handed_back.load(Relaxed), 0);
    bench.end()?;
    Ok(())
}
