//! Two workers, one consumer: one works, the other stands by. The first is killed with -9 in the middle of the work, and the
//! second finishes it. At the end the ledger: who decided what, under which epoch, and what nobody did.
//!
//!     cargo run --release --example two_workers
//!
//! Needs nats-server (`make deps`), which it starts for itself. The workers are this very program, started with `serve`.

#![expect(clippy::print_stdout, reason = "it is a program that tells a story")]

use std::collections::{BTreeMap, HashMap};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use serde_json::{Value, json};

const STEPS: usize = 400;
/// The first worker is killed when so many steps have their result.
const KILL_AFTER: usize = 150;
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|command| command == "serve") {
        return ExitCode::from(endstation::cli::main());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.context("a runtime").and_then(|runtime| runtime.block_on(story())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("two_workers: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn story() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (_server, url) = server(folder.path())?;
    let mut first = worker(folder.path(), "first", &url)?;
    first.wait("owns the work").await?;
    let mut second = worker(folder.path(), "second", &url)?;
    second.wait("standing by: worker first owns the work").await?;
    println!("two workers on {url}: first owns the work, second stands by");

    let client = async_nats::connect(&url).await?;
    let mut results = client.subscribe("caf.exec.result.v1").await?;
    client.flush().await?;
    let mut ledger = Ledger::default();
    let (mut sent, mut pace) = (0, tokio::time::interval(Duration::from_millis(5)));
    let (mut killed, began) = (None, Instant::now());
    while ledger.decided.len() < STEPS {
        tokio::select! {
            _ = pace.tick(), if sent < STEPS => {
                for number in sent..(sent + 4).min(STEPS) {
                    client.publish("caf.exec.assign.v1", step(number).to_string().into()).await?;
                }
                sent += 4;
            }
            Some(message) = results.next() => {
                let result: Value = serde_json::from_slice(&message.payload)?;
                if ledger.take(result)? && killed.is_some() && ledger.taken_over.is_none() {
                    ledger.taken_over = killed.map(|at: Instant| at.elapsed());
                }
                if killed.is_none() && ledger.decided.len() >= KILL_AFTER {
                    first.0.kill()?;
                    first.0.wait()?;
                    killed = Some(Instant::now());
                    println!("kill -9 of first, {} of {STEPS} steps decided", ledger.decided.len());
                }
            }
            () = tokio::time::sleep(PATIENCE) => break,
        }
    }
    second.wait("owns the work").await?;
    let mut again = worker(folder.path(), "first", &url)?;
    again.wait("standing by: worker second owns the work").await?;
    println!("first is started again, and stands by\n");
    ledger.print(began.elapsed());
    ensure!(ledger.decided.len() == STEPS && ledger.failed == 0, "not every step succeeded");
    Ok(())
}

/// A third writes a file, a third echoes, a third takes its time.
fn step(number: usize) -> Value {
    let (kind, payload) = match number % 3 {
        0 => ("fs.blob_put", json!({ "path": format!("{number}.txt"), "content": format!("content of {number}") })),
        1 => ("echo", json!({ "number": number })),
        _ => ("sleep", json!({ "ms": number % 200 })),
    };
    json!({
        "version": "1", "assignment_id": format!("step-{number}"), "request_id": format!("request-{number}"),
        "tenant_id": format!("tenant-{}", number % 5), "executor": { "provider_id": "story", "channel": "nats" },
        "job": { "type": kind, "payload": payload },
    })
}

/// What was told of each step.
#[derive(Default)]
struct Ledger {
    /// By assignment: worker and epoch of the first result.
    decided: HashMap<String, (String, u64)>,
    /// Told again, the same.
    repeats: usize,
    /// Told by the first worker, whose ack died with it, and decided again by the next owner.
    again: usize,
    failed: usize,
    taken_over: Option<Duration>,
}

impl Ledger {
    /// `true`: it is of the second worker.
    fn take(&mut self, result: Value) -> Result<bool> {
        let text = |key: &str| result[key].as_str().map(str::to_owned).with_context(|| format!("a result without {key}"));
        let told = (text("worker_id")?, result["owner_epoch"].as_u64().context("a result without owner_epoch")?);
        let second = told.0 == "second";
        match self.decided.get(&text("assignment_id")?) {
            None => {
                self.failed += usize::from(result["status"] != "success");
                self.decided.insert(text("assignment_id")?, told);
            }
            Some(known) if *known == told => self.repeats += 1,
            Some(_) => self.again += 1,
        }
        Ok(second)
    }

    fn print(&self, took: Duration) {
        let mut owners: BTreeMap<&(String, u64), usize> = BTreeMap::new();
        for owner in self.decided.values() {
            *owners.entry(owner).or_default() += 1;
        }
        println!("{:<10} {:>5} {:>8}", "worker", "epoch", "decided");
        for ((worker, epoch), count) in owners {
            println!("{worker:<10} {epoch:>5} {count:>8}");
        }
        let taken_over = self.taken_over.map_or("never".to_owned(), |after| format!("{:.1} s", after.as_secs_f64()));
        println!(
            "\n{} of {STEPS} steps have their result, {} lost, {} failed; second took over {taken_over} after the kill",
            self.decided.len(),
            STEPS - self.decided.len(),
            self.failed
        );
        println!(
            "{} results were told again as they were; {} decided again because first died between telling and acking ({:.1} s in all)",
            self.repeats,
            self.again,
            took.as_secs_f64()
        );
    }
}

/// A process that ends with us.
struct Process(Child, u16);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// Waits until its readiness says this.
    async fn wait(&mut self, what: &str) -> Result<()> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait()? {
                bail!("a worker ended with {status}");
            }
            if readiness(self.1).is_ok_and(|said| said.contains(what)) {
                return Ok(());
            }
            ensure!(began.elapsed() < PATIENCE, "a worker never said {what:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn readiness(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"GET /_readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

fn worker(folder: &Path, name: &str, url: &str) -> Result<Process> {
    let port = free_port()?;
    let log = std::fs::File::options().create(true).append(true).open(folder.join(format!("{name}.log")))?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["serve", "--provision"]).current_dir(folder).env("WORKER_ID", name).env("NATS_URL", url);
    command.env("ENDSTATION__STORAGE__DIR", folder.join(name)).env("ENDSTATION__OPS__BIND", format!("127.0.0.1:{port}"));
    // What first had begun comes to second so soon after the kill; the default is 30 s.
    command.env("ENDSTATION__NATS__ACK_WAIT", "2s");
    Ok(Process(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?, port))
}

fn server(folder: &Path) -> Result<(Process, String)> {
    let port = free_port()?;
    let paths = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/usr/local/sbin";
    let mut command = Command::new("nats-server");
    command.env("PATH", paths).args(["--addr", "127.0.0.1", "--port", &port.to_string(), "--jetstream", "--store_dir"]);
    command.arg(folder.join("nats")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = match command.spawn() {
        Err(error) if error.kind() == ErrorKind::NotFound => bail!("nats-server is not installed: `make deps` installs it"),
        child => child.context("nats-server")?,
    };
    let server = Process(child, port);
    let began = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        ensure!(began.elapsed() < PATIENCE, "nats-server does not speak");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok((server, format!("nats://127.0.0.1:{port}")))
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
