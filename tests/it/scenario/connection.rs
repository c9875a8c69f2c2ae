//! Trouble between worker and server: away at the start, away for long, up and down, half-open, hardly a byte, far away.
//!
//! Each case is a world of its own with a proxy in the middle, and the cases run side by side: most of them wait. What holds in
//! all: every step is answered once and run once, the process lives, it says what is wrong while it is, in few lines and little
//! memory, and is at work again soon after.

use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::ledger::Ledger;
use crate::proxy::{Mode, Proxy, Way};
use crate::router::peer::Router;
use crate::router::{Assignment, Strictness, Subjects};
use crate::server::NatsServer;
use crate::worker::{Settings, Worker};
use crate::world::PATIENCE;

/// How long the long outages last.
const LONG: Duration = Duration::from_secs(30);
/// The worker notices by itself within this that nothing comes over a connection which looks alive.
const NOTICES_WITHIN: Duration = Duration::from_secs(9);
/// And is at work again within this of a connection that could be good: a connection that hangs is given up first.
const RESUMES_WITHIN: Duration = Duration::from_secs(8);
/// What all the waiting may add to a worker's memory, in bytes.
const GROWTH_MAX: f64 = 64e6;

/// A worker behind a proxy. The fields die in this order.
struct Wire {
    router: Router,
    worker: Worker,
    proxy: Proxy,
    server: NatsServer,
    sent: Vec<Assignment>,
    ledger: Ledger,
}

impl Wire {
    /// A worker that has been launched, with the connection in this mode.
    async fn launched(mode: Mode) -> Result<Self> {
        let server = NatsServer::start(true).await?;
        let strict = Strictness { message_ids: true, order: false, owners: true };
        let router = Router::connect(&server.url(), true, Subjects::default(), strict).await?;
        let proxy = Proxy::start(server.port(), mode)?;
        // Its own lines are counted, as a user has them.
        let settings = Settings::default().set("RUST_LOG", "info,async_nats=warn");
        let mut worker = Worker::stopped(&proxy.url(), settings)?;
        worker.launch(&[])?;
        let ledger = Ledger::new(worker.dir());
        Ok(Wire { router, worker, proxy, server, sent: Vec::new(), ledger })
    }

    /// One that is at work.
    async fn at_work() -> Result<Self> {
        let mut wire = Wire::launched(Mode::Pass).await?;
        wire.worker.ready().await?;
        Ok(wire)
    }

    /// Sends so many more steps: files, which show whether they were written twice, short sleeps and echoes.
    async fn load(&mut self, count: usize) -> Result<()> {
        let step = |n: usize| {
            let tenant = tenant(n);
            match n % 3 {
                0 => Assignment::new(&tenant, "fs.blob_put", json!({"path": file(n), "content": n.to_string()})),
                1 => Assignment::new(&tenant, "sleep", json!({"ms": 20 + n % 180})),
                _ => Assignment::new(&tenant, "echo", json!({"n": n})),
            }
        };
        let begun = self.sent.len();
        self.sent.extend((begun..begun + count).map(step));
        self.router.send_all(&self.sent[begun..]).await
    }

    /// Waits until one more step has been answered, and says how long that took.
    async fn next_answer(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        let probe = Assignment::new("probe", "echo", json!({"at": self.sent.len()}));
        self.router.run(&probe, PATIENCE).await.with_context(|| self.worker.log_tail())?;
        self.sent.push(probe);
        Ok(begun.elapsed())
    }

    /// Waits until health says that there is no connection.
    async fn says_so(&self, within: Duration) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            if let Ok((503, body)) = self.worker.get("/_health").await
                && body.contains("no connection to NATS")
            {
                return Ok(begun.elapsed());
            }
            ensure!(begun.elapsed() < within, "health says nothing of it after {within:?}:\n{}", self.worker.log_tail());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn memory(&self) -> Result<f64> {
        self.worker.metric("worker_resource_mem_bytes").await
    }

    fn lines(&self) -> usize {
        self.worker.log_text().lines().count()
    }

    /// Everything was answered well, run once, and nothing more comes.
    async fn all_is_well(&mut self) -> Result<()> {
        ensure!(self.worker.exited()?.is_none(), "the process ended:\n{}", self.worker.log_tail());
        self.router.all_answered(PATIENCE).await.with_context(|| self.worker.log_tail())?;
        self.router.stream_is_empty().await?;
        self.router.verdict()?;
        for job in &self.sent {
            let seen = self.router.result(&job.id, PATIENCE).await?;
            ensure!(seen.status() == "success", "{:?}", seen.object);
        }
        for (n, job) in self.sent.iter().enumerate().filter(|(_, job)| job.json["job"]["type"] == "fs.blob_put") {
            let tenant = job.json["tenant_id"].as_str().context("a tenant")?;
            self.ledger.written_once(tenant, &file(n), n.to_string().as_bytes())?;
        }
        let steps = self.sent.len() as f64;
        // It shows a little later what it does, and never too much.
        self.worker.metric_becomes("endstation_tries_total", |tries| tries >= steps).await?;
        let tries = self.worker.metric("endstation_tries_total").await?;
        ensure!(tries == steps, "{tries} tries for {steps} steps");
        ensure!(self.worker.metric("endstation_outbox_duplicates_total").await? == 0.0, "the alarm went off");
        let (health, body) = self.worker.get("/_health").await?;
        ensure!(health == 200, "it is well again, and does not say so: {body}");
        Ok(())
    }
}

fn tenant(n: usize) -> String {
    format!("tenant-{}", n % 5)
}

fn file(n: usize) -> String {
    format!("wire-{n}.txt")
}

/// Nobody listens, or somebody who says nothing: the worker waits, says so, and begins once there is a server.
async fn away_at_the_start(mode: Mode) -> Result<()> {
    let mut wire = Wire::launched(mode).await?;
    tokio::time::sleep(Duration::from_secs(12)).await;
    wire.says_so(Duration::from_secs(1)).await?;
    ensure!(wire.worker.get("/livez").await?.0 == 200, "it lives");
    ensure!(wire.worker.get("/_readyz").await?.0 == 503, "it is not ready");
    ensure!(wire.worker.log_text().contains("waiting for NATS"), "it does not say what it waits for");
    let lines = wire.lines();
    ensure!(lines < 25, "{lines} lines while it waited:\n{}", wire.worker.log_tail());
    wire.proxy.set(Mode::Pass);
    let begun = Instant::now();
    wire.worker.ready().await?;
    ensure!(begun.elapsed() < RESUMES_WITHIN, "ready only {:?} after there was a server", begun.elapsed());
    wire.load(30).await?;
    wire.all_is_well().await
}

/// The server is away for a long time while steps run and more come in.
async fn away_for_long(mode: Mode) -> Result<()> {
    let mut wire = Wire::at_work().await?;
    wire.load(300).await?;
    let (memory, lines) = (wire.memory().await?, wire.lines());
    wire.proxy.set(mode);
    if let Mode::Refuse = mode {
        wire.says_so(Duration::from_secs(1)).await?;
    } else {
        wire.says_so(NOTICES_WITHIN).await?;
    }
    let begun = Instant::now();
    let mut most = memory;
    while begun.elapsed() < LONG {
        if wire.sent.len() < 1_500 {
            wire.load(100).await?;
        }
        most = most.max(wire.memory().await?);
        let (health, _) = wire.worker.get("/_health").await?;
        ensure!(health == 503 && wire.worker.get("/livez").await?.0 == 200, "ill, and alive");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    ensure!(most - memory < GROWTH_MAX, "{memory} bytes before, {most} while it was away");
    let said = wire.lines() - lines;
    ensure!(said < 60, "{said} lines in {LONG:?}:\n{}", wire.worker.log_tail());
    wire.proxy.set(Mode::Pass);
    let after = wire.next_answer().await?;
    eprintln!("{mode:?} for {LONG:?}: {said} lines, +{} KiB, the next answer after {after:?}", (most - memory) as u64 / 1024);
    ensure!(after < RESUMES_WITHIN, "the next answer came after {after:?}");
    wire.all_is_well().await
}

/// Up and down again and again, too short for much.
async fn flapping() -> Result<()> {
    let mut wire = Wire::at_work().await?;
    let lines = wire.lines();
    let begun = Instant::now();
    let mut cut_off = 0;
    while begun.elapsed() < Duration::from_secs(15) {
        wire.load(20).await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        wire.proxy.set(Mode::Refuse);
        cut_off += 1;
        tokio::time::sleep(Duration::from_millis(300)).await;
        wire.proxy.set(Mode::Pass);
    }
    let after = wire.next_answer().await?;
    let said = wire.lines() - lines;
    eprintln!("flapping {cut_off} times: {said} lines, {} connections, the next answer after {after:?}", wire.proxy.taken());
    ensure!(after < RESUMES_WITHIN, "the next answer came after {after:?}");
    ensure!(said < 6 * cut_off, "{said} lines for {cut_off} times:\n{}", wire.worker.log_tail());
    let counted = wire.worker.metric("endstation_edge_reconnects_total").await?;
    ensure!(counted >= 5.0, "{counted} reconnects counted");
    wire.all_is_well().await
}

/// The connection is dead and does not say so; a new one would do.
async fn half_open(way: Way) -> Result<()> {
    let mut wire = Wire::at_work().await?;
    wire.load(60).await?;
    let connections = wire.proxy.taken();
    wire.proxy.set(Mode::Hole(way));
    // Something must fall into it, or it would not be dead.
    wire.load(60).await?;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    wire.proxy.set(Mode::Pass);
    let begun = Instant::now();
    let after = wire.next_answer().await?;
    eprintln!("half-open ({way:?}): the next answer after {:?}", begun.elapsed());
    ensure!(after < NOTICES_WITHIN + RESUMES_WITHIN, "the next answer came after {after:?}");
    ensure!(wire.proxy.taken() > connections, "over which connection?");
    wire.all_is_well().await
}

/// A byte a second is no connection: that is found out, and does no harm.
async fn a_byte_a_second() -> Result<()> {
    let mut wire = Wire::at_work().await?;
    wire.load(100).await?;
    let (memory, lines) = (wire.memory().await?, wire.lines());
    wire.proxy.set(Mode::Trickle(1));
    wire.load(200).await?;
    wire.says_so(NOTICES_WITHIN).await?;
    tokio::time::sleep(Duration::from_secs(15)).await;
    let (grown, said) = (wire.memory().await? - memory, wire.lines() - lines);
    ensure!(grown < GROWTH_MAX, "{grown} bytes more");
    ensure!(said < 40, "{said} lines:\n{}", wire.worker.log_tail());
    wire.proxy.set(Mode::Pass);
    let after = wire.next_answer().await?;
    eprintln!("a byte a second: {said} lines, the next answer after {after:?}");
    ensure!(after < RESUMES_WITHIN, "the next answer came after {after:?}");
    wire.all_is_well().await
}

/// A server that is merely far away is worked for as any other.
async fn far_away() -> Result<()> {
    let mut wire = Wire::at_work().await?;
    wire.proxy.set(Mode::Delay(Duration::from_millis(150)));
    let lines = wire.lines();
    for _ in 0..8 {
        wire.load(150).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    wire.all_is_well().await?;
    ensure!(wire.worker.metric("endstation_edge_reconnects_total").await? == 0.0, "it did not stay connected");
    let said = wire.lines() - lines;
    ensure!(said < 5, "{said} lines:\n{}", wire.worker.log_tail());
    Ok(())
}

/// An owner in a hole says nothing more, while one who waits takes over; when it comes back it learns so and ends.
async fn an_owner_in_a_hole(way: Way) -> Result<()> {
    let mut wire = Wire::at_work().await?;
    let mut standby = Worker::stopped(&wire.server.url(), Settings::default())?;
    standby.launch(&[])?;
    wire.next_answer().await?;
    let jobs: Vec<Assignment> = (0..40).map(|n| Assignment::new(&tenant(n), "sleep", json!({"ms": 2_600, "n": n}))).collect();
    wire.router.send_all(&jobs).await?;
    wire.proxy.set(Mode::Hole(way));
    let begun = Instant::now();
    standby.ready().await?;
    let taken = begun.elapsed();
    ensure!(taken < Duration::from_secs(6), "the standby owns the work only after {taken:?}");
    wire.router.all_answered(PATIENCE).await?;
    let by = |job: &Assignment, model: &crate::router::Model| model.result_of(&job.id).and_then(|seen| epoch(&seen.object));
    let told = wire.router.ask(|model| jobs.iter().filter(|job| by(job, model) == Some(2)).count());
    ensure!(told > 0, "the standby answered none of {}", jobs.len());
    wire.proxy.set(Mode::Pass);
    let status = wire.worker.ended(NOTICES_WITHIN + RESUMES_WITHIN).await?;
    ensure!(status.code() == Some(1), "it ended with {status}");
    ensure!(wire.worker.log_text().contains("has taken lease.CAF_ASSIGN.endstation"), "{}", wire.worker.log_tail());
    let stored = wire.router.read_result_stream().await?;
    eprintln!("an owner in a hole ({way:?}): taken over after {taken:?}, {told} of {} told by the standby", jobs.len());
    ensure!(stored == jobs.len() as u64 + 1, "{stored} results in the stream for {} steps", jobs.len() + 1);
    wire.router.verdict()
}

fn epoch(result: &serde_json::Map<String, Value>) -> Option<u64> {
    result.get("owner_epoch").and_then(Value::as_u64)
}

type Case<'a> = (&'a str, Pin<Box<dyn Future<Output = Result<()>>>>);

/// Runs cases side by side and says which of them went wrong, and how.
async fn side_by_side(cases: Vec<Case<'_>>) -> Result<()> {
    let (names, running): (Vec<_>, Vec<_>) = cases.into_iter().unzip();
    let ended = futures_util::future::join_all(running).await;
    let wrong = |(name, ended): (&str, Result<()>)| ended.err().map(|error| format!("{name}: {error:#}"));
    let wrong: Vec<String> = names.into_iter().zip(ended).filter_map(wrong).collect();
    ensure!(wrong.is_empty(), "{} went wrong:\n{}", wrong.len(), wrong.join("\n\n"));
    Ok(())
}

#[tokio::test]
async fn a_connection_that_fails_loses_nothing_doubles_nothing_and_is_taken_up_again() -> Result<()> {
    side_by_side(vec![
        ("nobody listens at the start", Box::pin(away_at_the_start(Mode::Refuse))),
        ("somebody listens at the start and says nothing", Box::pin(away_at_the_start(Mode::Hole(Way::Both)))),
        ("away for long", Box::pin(away_for_long(Mode::Refuse))),
        ("in a hole for long", Box::pin(away_for_long(Mode::Hole(Way::Both)))),
        ("flapping", Box::pin(flapping())),
        ("a byte a second", Box::pin(a_byte_a_second())),
    ])
    .await
}

#[tokio::test]
async fn a_connection_that_only_looks_alive_is_found_out() -> Result<()> {
    side_by_side(vec![
        ("half-open both ways", Box::pin(half_open(Way::Both))),
        ("half-open, not heard", Box::pin(half_open(Way::Out))),
        ("half-open, hears nothing", Box::pin(half_open(Way::In))),
        ("an owner in a hole", Box::pin(an_owner_in_a_hole(Way::Both))),
        ("an owner that hears nothing", Box::pin(an_owner_in_a_hole(Way::In))),
        ("far away", Box::pin(far_away())),
    ])
    .await
}
