//! A real nats-server in a folder of its own: started, killed without warning, and started again on the same port and store.

use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long a server may take to say hello.
const START_MS_MAX: u64 = 10_000;

/// A nats-server process with its own port and store. Dies with this value.
#[derive(Debug)]
pub(crate) struct NatsServer {
    child: Option<Child>,
    port: u16,
    jetstream: bool,
    /// Who may connect: further arguments of the server.
    access: Vec<String>,
    dir: tempfile::TempDir,
}

/// A port that nobody listens on, below the range that the kernel hands out to outgoing connections.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 17_000;
    const COUNT: u16 = 15_000;
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let offset = (std::process::id() as u16).wrapping_mul(97).wrapping_add(step) % COUNT;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, FIRST + offset)).is_ok() {
            return FIRST + offset;
        }
    }
}

impl NatsServer {
    /// Starts a server and waits until it speaks.
    ///
    /// # Errors
    /// nats-server is not installed, or does not come up.
    pub(crate) async fn start(jetstream: bool) -> Result<Self> {
        NatsServer::guarded(jetstream, &[]).await
    }

    /// The same, with arguments that say who may connect.
    ///
    /// # Errors
    /// As in [`NatsServer::start`].
    pub(crate) async fn guarded(jetstream: bool, access: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("endstation-nats-").tempdir()?;
        let access = access.iter().map(|&arg| arg.to_owned()).collect();
        let mut server = NatsServer { child: None, port: free_port(), jetstream, access, dir };
        server.restart().await?;
        Ok(server)
    }

    /// Starts it again on the same port and store.
    pub(crate) async fn restart(&mut self) -> Result<()> {
        self.kill();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log())?;
        let mut command = Command::new("nats-server");
        command.args(["--addr", "127.0.0.1", "--port", &self.port.to_string()]).args(&self.access);
        if self.jetstream {
            command.arg("--jetstream").arg("--store_dir").arg(self.dir.path());
        }
        let spawned = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        match spawned {
            Ok(child) => self.child = Some(child),
            Err(error) if error.kind() == ErrorKind::NotFound => bail!("nats-server is not installed: run `make deps`"),
            Err(error) => return Err(error).context("nats-server does not start"),
        }
        let begun = Instant::now();
        while !self.speaks() {
            if begun.elapsed() > Duration::from_millis(START_MS_MAX) {
                bail!("nats-server on port {} does not speak:\n{}", self.port, self.log_text());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    fn speaks(&self) -> bool {
        let address = (Ipv4Addr::LOCALHOST, self.port).into();
        let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) else { return false };
        let mut hello = [0; 4];
        stream.set_read_timeout(Some(Duration::from_millis(500))).is_ok()
            && stream.read_exact(&mut hello).is_ok()
            && hello == *b"INFO"
    }

    /// `kill -9`, and gone when this returns.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _gone_already = child.kill();
            let _status = child.wait();
        }
    }

    /// Ends it as it ends by itself: all that it knows is on the disk when this returns.
    pub(crate) fn stop(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            let id = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw).context("its process id")?;
            rustix::process::kill_process(id, rustix::process::Signal::TERM)?;
            child.wait()?;
        }
        Ok(())
    }

    /// The files of a stream's messages, those of its consumers not among them.
    pub(crate) fn messages_of(&self, stream: &str) -> PathBuf {
        self.dir.path().join("jetstream/$G/streams").join(stream).join("msgs")
    }

    /// Where it writes down what it knows of a consumer.
    pub(crate) fn known_of(&self, stream: &str, durable: &str) -> PathBuf {
        self.messages_of(stream).with_file_name("obs").join(durable).join("o.dat")
    }

    /// Where clients connect.
    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The port they connect to.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("server.log")
    }

    fn log_text(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}
