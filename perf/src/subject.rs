//! What is measured: the floor or the worker, how its results travel, and the process that does it.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::floor::Results;
use crate::message::{Form, Job, STEPS, WAITING};
use crate::server::{NatsServer, free_port};

/// One column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// A consumer that keeps nothing and sends what the worker sends: an ack message and the result.
    Floor(Results),
    /// The same without the ack message and without headers that nobody needs: what NATS itself gives.
    Bare(Results),
    /// endstation, its results as said, its lifecycle events on or off.
    Worker {
        /// How results travel.
        results: Results,
        /// Lifecycle events.
        events: bool,
    },
    /// endstation where workers may share the consumer, results stored: what owning it costs is between the two.
    Shared,
    /// endstation with native steps, each result stored under the subject of its key, once.
    Native,
    /// endstation with steps of a block that does something, results stored.
    Block(Job),
    /// endstation with steps that do nothing, while another tenant's do this.
    Beside(Option<Job>),
}

/// What a tenant is beside, alone first.
pub(crate) const NEIGHBOURS: [Subject; 5] = [
    Subject::Beside(None),
    Subject::Beside(Some(Job::HashLarge)),
    Subject::Beside(Some(Job::HttpSlow)),
    Subject::Beside(Some(Job::HttpLarge)),
    Subject::Beside(Some(Job::Approval)),
];

/// The blocks that do something, beside one that does nothing.
pub(crate) const BLOCKS: [Subject; 5] = [
    Subject::Worker { results: Results::Stream, events: false },
    Subject::Block(Job::HttpGet),
    Subject::Block(Job::HttpPost),
    Subject::Block(Job::BlobPut),
    Subject::Block(Job::BlobGet),
];

/// What steps ask of a database, beside one that does nothing.
pub(crate) const SQL: [Subject; 4] = [
    Subject::Worker { results: Results::Stream, events: false },
    Subject::Block(Job::SqlSelect),
    Subject::Block(Job::SqlWrite),
    Subject::Block(Job::SqlPlain),
];

/// Everything there is to measure, the floors first.
pub(crate) const ALL: [Subject; 9] = [
    Subject::Bare(Results::Core),
    Subject::Bare(Results::Stream),
    Subject::Floor(Results::Core),
    Subject::Floor(Results::Stream),
    Subject::Worker { results: Results::Core, events: false },
    Subject::Worker { results: Results::Stream, events: false },
    Subject::Worker { results: Results::Stream, events: true },
    Subject::Shared,
    Subject::Native,
];

impl Subject {
    /// As the table names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Subject::Bare(Results::Core) => "bare consumer, core results",
            Subject::Bare(Results::Stream) => "bare consumer, stored results",
            Subject::Floor(Results::Core) => "floor, core results",
            Subject::Floor(Results::Stream) => "floor, stored results",
            Subject::Worker { results: Results::Core, events: false } => "endstation, core results",
            Subject::Worker { results: Results::Core, events: true } => "endstation, core results, events",
            Subject::Worker { results: Results::Stream, events: false } => "endstation, stored results",
            Subject::Worker { results: Results::Stream, events: true } => "endstation, stored results, events",
            Subject::Shared => "endstation, stored results, shared",
            Subject::Native => "endstation, native, stored by key",
            Subject::Block(Job::Echo) => "echo",
            Subject::Block(Job::HttpGet) => "http.request, GET",
            Subject::Block(Job::HttpPost) => "http.request, POST (never twice)",
            Subject::Block(Job::BlobPut) => "fs.blob_put",
            Subject::Block(Job::BlobGet) => "fs.blob_get",
            Subject::Block(Job::HashLarge) => "crypto.hash of 1 GiB",
            Subject::Block(Job::HttpSlow) => "http.request, a byte a second",
            Subject::Block(Job::HttpLarge) => "http.request, 64 MiB to a blob",
            Subject::Block(Job::SqlSelect) => "sql.query, select",
            Subject::Block(Job::SqlWrite) => "sql.query, write with its record",
            Subject::Block(Job::SqlPlain) => "sql.query, write without (never twice)",
            Subject::Block(Job::Approval) => "human.approval",
            Subject::Beside(None) => "echo alone",
            Subject::Beside(Some(Job::HashLarge)) => "echo beside hashes of 1 GiB",
            Subject::Beside(Some(Job::HttpSlow)) => "echo beside slow servers",
            Subject::Beside(Some(Job::HttpLarge)) => "echo beside downloads of 64 MiB",
            Subject::Beside(Some(Job::Approval)) => "echo beside 100,000 approvals that wait",
            Subject::Beside(Some(_)) => "echo beside others",
        }
    }

    /// Whether results go into a stream.
    pub(crate) fn stored(self) -> bool {
        match self {
            Subject::Bare(results) | Subject::Floor(results) | Subject::Worker { results, .. } => results == Results::Stream,
            Subject::Shared | Subject::Native | Subject::Block(_) | Subject::Beside(_) => true,
        }
    }

    /// How its steps are written.
    pub(crate) fn form(self) -> Form {
        match self {
            Subject::Native => Form::Native,
            Subject::Block(job) => Form::Assignment(job),
            _ => Form::Assignment(Job::Echo),
        }
    }

    /// Whether it is a consumer that keeps nothing.
    pub(crate) fn is_floor(self) -> bool {
        matches!(self, Subject::Bare(_) | Subject::Floor(_))
    }

    /// The floor it stands on.
    pub(crate) fn floor(self) -> Subject {
        Subject::Floor(if self.stored() { Results::Stream } else { Results::Core })
    }
}

/// The counters that a measurement reads from the worker.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    /// `endstation_journal_fsyncs_total`.
    pub(crate) fsyncs: f64,
    /// `endstation_journal_bytes_total`.
    pub(crate) journal_bytes: f64,
    /// `endstation_outbox_published_total`.
    pub(crate) published: f64,
}

/// The running process. Dies with this value.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    ops_port: Option<u16>,
    log: PathBuf,
}

impl Running {
    /// Starts a subject on this server with its data in this folder, without waiting.
    pub(crate) fn launch(
        subject: Subject,
        worker: Option<&Path>,
        shards: Option<&str>,
        server: &NatsServer,
        place: Option<&str>,
        database: &[(String, String)],
        dir: &Path,
    ) -> Result<Self> {
        let log = dir.join("subject.log");
        let output = std::fs::File::create(&log)?;
        let mut ops_port = None;
        let mut command = match subject {
            Subject::Bare(results) | Subject::Floor(results) => {
                let mut command = Command::new(std::env::current_exe()?);
                let results = if results == Results::Core { "core" } else { "stream" };
                command.args(["floor-worker", "--url", &server.url(), "--results", results]);
                if matches!(subject, Subject::Bare(_)) {
                    command.arg("--bare");
                }
                command
            }
            Subject::Worker { .. } | Subject::Shared | Subject::Native | Subject::Block(_) | Subject::Beside(_) => {
                let events = matches!(subject, Subject::Worker { events: true, .. });
                let port = free_port()?;
                ops_port = Some(port);
                let mut command = Command::new(worker.context("no worker binary")?);
                command
                    .arg("serve")
                    .current_dir(dir)
                    .env("NATS_URL", server.url())
                    .env("WORKER_ID", "perf")
                    .env("ENDSTATION__WORKER__KEY_SALT", "perf")
                    .env("ENDSTATION__NATS__MODE", "jetstream")
                    .env("ENDSTATION__NATS__PROVISION", "false")
                    .env("ENDSTATION__STORAGE__DIR", dir.join("data"))
                    .env("ENDSTATION__OPS__BIND", format!("127.0.0.1:{port}"))
                    .env("ENDSTATION__EVENTS__ENABLED", events.to_string());
                if subject == Subject::Shared {
                    command.env("ENDSTATION__NATS__OWNERSHIP", "shared");
                }
                if subject == Subject::Native {
                    command.env("ENDSTATION__NATS__ASSIGN_SUBJECTS", STEPS);
                }
                if matches!(subject, Subject::Beside(_)) {
                    // As many servers as there are keep a step each waiting.
                    command.env("ENDSTATION__LIMITS__TENANT_RUNNING", "20000").env("ENDSTATION__LIMITS__SHARD_RUNNING", "20000");
                    command.env("ENDSTATION__LIMITS__TENANT_APPROVALS", WAITING.to_string());
                }
                if let Some(place) = place {
                    command
                        .env("ENDSTATION__CONNECTORS__PLACE__TENANTS", "*")
                        .env("ENDSTATION__CONNECTORS__PLACE__URL", place)
                        .env("ENDSTATION__CONNECTORS__PLACE__ALLOW", "127.0.0.0/8");
                }
                command.envs(database.iter().cloned());
                if let Some(shards) = shards {
                    command.env("ENDSTATION__CORES__SHARDS", shards);
                }
                command
            }
        };
        let spawned = command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn();
        let child = spawned.with_context(|| format!("{} does not start", subject.name()))?;
        Ok(Running { child, ops_port, log })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the worker says it is ready; the floor has nothing to ask and gets a moment.
    pub(crate) async fn ready(&mut self) -> Result<()> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended before it was ready ({status}):\n{}", self.log_tail());
            }
            match self.ops_port {
                None if begun.elapsed() > Duration::from_millis(300) => return Ok(()),
                Some(port) if get(port, "/_readyz").await.is_ok_and(|(status, _)| status == 200) => return Ok(()),
                _ if begun.elapsed() > Duration::from_secs(20) => bail!("not ready after 20 s:\n{}", self.log_tail()),
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Waits until so many steps wait for people, each with its copy stored.
    pub(crate) async fn waits_for_people(&self, steps: u32) -> Result<()> {
        let port = self.ops_port.context("only the worker's steps wait for people")?;
        let begun = Instant::now();
        loop {
            let (_, text) = get(port, "/metrics").await?;
            let waiting = sum(&text, "endstation_waiting_for_people");
            if waiting >= f64::from(steps) && sum(&text, "endstation_outbox_unconfirmed") == 0.0 {
                return Ok(());
            }
            if begun.elapsed() > Duration::from_secs(120) {
                bail!("{waiting} of {steps} steps wait after 120 s:\n{}", self.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// The worker's counters; none for the floor.
    pub(crate) async fn counters(&self) -> Result<Option<Counters>> {
        let Some(port) = self.ops_port else { return Ok(None) };
        let (_, text) = get(port, "/metrics").await?;
        let sum = |name: &str| sum(&text, name);
        Ok(Some(Counters {
            fsyncs: sum("endstation_journal_fsyncs_total"),
            journal_bytes: sum("endstation_journal_bytes_total"),
            published: sum("endstation_outbox_published_total"),
        }))
    }

    /// The end of what it has written.
    pub(crate) fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Over all rows of this metric.
fn sum(text: &str, name: &str) -> f64 {
    let rows = text.lines().filter_map(|line| line.strip_prefix(name)).filter(|rest| rest.starts_with(['{', ' ']));
    rows.filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

async fn get(port: u16, path: &str) -> Result<(u16, String)> {
    let exchange = async {
        let mut stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(2), exchange).await??;
    let (head, body) = answer.split_once("\r\n\r\n").context("not HTTP")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status")?;
    Ok((status, body.to_owned()))
}
