//! A real worker process with a data folder of its own: started, asked over HTTP, killed, stopped, started again.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::server::free_port;
use crate::volume::Volume;

/// How long a worker may take to be ready, recovery included.
const READY_MS_MAX: u64 = 20_000;

/// What a worker is started with: environment variables, over the defaults of these tests.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    env: Vec<(String, String)>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { env: Vec::new() }
            .set("ENDSTATION__NATS__MODE", "jetstream")
            .set("ENDSTATION__NATS__PROVISION", "true")
            .set("ENDSTATION__NATS__ACK_WAIT", "1s")
            .set("ENDSTATION__CORES__SHARDS", "0")
            .set("ENDSTATION__EVENTS__ENABLED", "false")
            .set("CAF_HEARTBEAT_INTERVAL_MS", "500")
            .set("RUST_LOG", "info")
    }
}

impl Settings {
    /// For a deployment without JetStream.
    pub(crate) fn core() -> Self {
        Settings::default().set("ENDSTATION__NATS__MODE", "core").set("ENDSTATION__NATS__PROVISION", "false")
    }

    /// The same with one variable set to this.
    pub(crate) fn set(mut self, name: &str, value: &str) -> Self {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A worker process. Dies with this value.
#[derive(Debug)]
pub(crate) struct Worker {
    child: Option<Child>,
    ops_port: u16,
    url: String,
    settings: Settings,
    id: String,
    /// Goes before the folder that it is mounted in.
    volume: Option<Volume>,
    /// The control group that it runs in, where it has one of its own.
    group: Option<PathBuf>,
    dir: tempfile::TempDir,
}

impl Worker {
    /// Starts a worker and waits until it is ready.
    pub(crate) async fn start(url: &str, settings: Settings) -> Result<Self> {
        let mut worker = Worker::stopped(url, settings)?;
        worker.restart().await?;
        Ok(worker)
    }

    /// A worker that is yet to be started.
    pub(crate) fn stopped(url: &str, settings: Settings) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("endstation-it-").tempdir()?;
        let ops_port = free_port();
        Ok(Worker {
            child: None,
            ops_port,
            url: url.to_owned(),
            settings,
            id: format!("it-{ops_port}"),
            volume: None,
            group: None,
            dir,
        })
    }

    /// Has it run in this control group from its next start on.
    pub(crate) fn confine(&mut self, group: &Path) {
        self.group = Some(group.to_owned());
    }

    /// Gives it a disk of so many MiB for its storage; false, and said aloud, where nothing may be mounted.
    pub(crate) fn mount(&mut self, mib: u64) -> Result<bool> {
        self.volume = Volume::mount(&self.storage(), mib)?;
        Ok(self.volume.is_some())
    }

    /// The same, of which only so many MiB are really there.
    pub(crate) fn mount_thin(&mut self, mib: u64, really_mib: u64) -> Result<bool> {
        self.volume = Volume::mount_thin(&self.storage(), mib, really_mib)?;
        Ok(self.volume.is_some())
    }

    /// The disk it was given, mounted anew; the worker must not run.
    pub(crate) fn revive_volume(&mut self) -> Result<()> {
        self.volume.as_mut().context("a disk of its own")?.revive()
    }

    /// The disk it was given.
    pub(crate) fn volume(&self) -> Result<&Volume> {
        self.volume.as_ref().context("a disk of its own")
    }

    /// Starts it on its folder and waits until it is ready.
    pub(crate) async fn restart(&mut self) -> Result<()> {
        self.launch(&[])?;
        self.ready().await
    }

    /// Starts it with these variables on top, without waiting.
    pub(crate) fn launch(&mut self, extra: &[(&str, &str)]) -> Result<()> {
        self.launch_build(Path::new(env!("CARGO_BIN_EXE_endstation")), extra)
    }

    /// The same with another build of the worker.
    pub(crate) fn launch_build(&mut self, program: &Path, extra: &[(&str, &str)]) -> Result<()> {
        self.kill();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log())?;
        let mut command = match &self.group {
            None => Command::new(program),
            // A process is in its group before it is the worker.
            Some(group) => {
                let mut shell = Command::new("/bin/sh");
                shell
                    .arg("-c")
                    .arg(format!("echo $$ > {}/cgroup.procs && exec {} \"$@\"", group.display(), program.display()))
                    .arg("sh");
                shell
            }
        };
        command.arg("serve");
        self.surround(&mut command);
        command.envs(extra.iter().copied());
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        self.child = Some(child.context("the endstation binary does not start")?);
        Ok(())
    }

    /// `endstation` with these arguments, in the worker's folder and with its environment.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_endstation"));
        command.args(args).stdin(Stdio::null());
        self.surround(&mut command);
        command
    }

    fn surround(&self, command: &mut Command) {
        command.current_dir(self.dir.path()).env_clear();
        command.envs(std::env::vars().filter(|(name, _)| matches!(name.as_str(), "PATH" | "HOME" | "LLVM_PROFILE_FILE")));
        command
            .env("RUST_BACKTRACE", "1")
            .env("NATS_URL", &self.url)
            .env("WORKER_ID", &self.id)
            .env("ENDSTATION__STORAGE__DIR", self.storage())
            .env("ENDSTATION__OPS__BIND", format!("127.0.0.1:{}", self.ops_port))
            .envs(self.settings.env.iter().map(|(name, value)| (name, value)));
    }

    /// Waits for `/_readyz` to answer 200.
    pub(crate) async fn ready(&mut self) -> Result<()> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.exited()? {
                bail!("the worker ended before it was ready ({status}):\n{}", self.log_tail());
            }
            if let Ok((200, _)) = self.get("/_readyz").await {
                return Ok(());
            }
            if begun.elapsed() > Duration::from_millis(READY_MS_MAX) {
                bail!("the worker is not ready after {READY_MS_MAX} ms:\n{}", self.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// `GET path` on its operations port: status and body.
    pub(crate) async fn get(&self, path: &str) -> Result<(u16, String)> {
        let exchange = async {
            let mut stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.ops_port)).await?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            anyhow::Ok(String::from_utf8(answer)?)
        };
        let text = tokio::time::timeout(Duration::from_secs(2), exchange).await.context("no answer in 2 s")??;
        let (head, body) = text.split_once("\r\n\r\n").context("not HTTP")?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status")?;
        Ok((status, body.to_owned()))
    }

    /// The sum of a metric over its labels, 0 where it is not there.
    pub(crate) async fn metric(&self, name: &str) -> Result<f64> {
        let (_, text) = self.get("/metrics").await?;
        let values = text
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' ')));
        Ok(values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// Waits until a metric is as wanted: what a shard shows of itself comes a little later than what it does.
    pub(crate) async fn metric_becomes(&self, name: &str, wanted: impl Fn(f64) -> bool) -> Result<()> {
        let begun = Instant::now();
        loop {
            let value = self.metric(name).await?;
            if wanted(value) {
                return Ok(());
            }
            if begun.elapsed() > Duration::from_millis(READY_MS_MAX) {
                bail!("{name} stays at {value}:\n{}", self.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Its exit status, once it has ended.
    pub(crate) fn exited(&mut self) -> Result<Option<ExitStatus>> {
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?),
            None => Ok(None),
        }
    }

    /// Waits for it to end by itself.
    pub(crate) async fn ended(&mut self, within: Duration) -> Result<ExitStatus> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.exited()? {
                self.child = None;
                return Ok(status);
            }
            if begun.elapsed() > within {
                bail!("the worker still runs after {within:?}:\n{}", self.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits for it to abort, as a tripped failpoint makes it.
    #[cfg(feature = "failpoints")]
    pub(crate) async fn aborted(&mut self, within: Duration) -> Result<()> {
        match std::os::unix::process::ExitStatusExt::signal(&self.ended(within).await?) {
            Some(libc::SIGABRT) => Ok(()),
            other => bail!("the worker ended, but by signal {other:?} and not by abort:\n{}", self.log_tail()),
        }
    }

    /// `kill -9`, and gone when this returns.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _gone_already = child.kill();
            let _status = child.wait();
        }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("the worker does not run")?.id())
    }

    /// Asks it to stop, as a service manager does.
    pub(crate) fn terminate(&self) -> Result<()> {
        self.signal(rustix::process::Signal::TERM)
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let child = self.child.as_ref().context("the worker does not run")?;
        let pid = rustix::process::Pid::from_raw(child.id().try_into()?).context("a pid is not 0")?;
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    /// Its storage folder.
    pub(crate) fn storage(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Where health and metrics are.
    pub(crate) fn ops_address(&self) -> (Ipv4Addr, u16) {
        (Ipv4Addr::LOCALHOST, self.ops_port)
    }

    /// Its worker id.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The folder it runs in.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("worker.log")
    }

    /// Everything it has written to stdout and stderr.
    pub(crate) fn log_text(&self) -> String {
        std::fs::read(self.log()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The end of its log, for a failure's text.
    pub(crate) fn log_tail(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the worker's log ends with ---\n{}", self.log_tail());
        }
        self.kill();
    }
}
