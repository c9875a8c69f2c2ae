//! A nats-server of its own for each measurement, with file streams over the assignments and, if asked, the results.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use async_nats::jetstream::{self, stream};

use crate::message::{ASSIGN, Form, STEPS};

/// A server process. Dies with this value.
#[derive(Debug)]
pub(crate) struct NatsServer {
    child: Child,
    port: u16,
}

/// A port that nobody listens on.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

impl NatsServer {
    /// Starts a server with its store in this folder and makes the streams.
    pub(crate) async fn start(dir: &Path, form: Form, result_stream: bool) -> Result<Self> {
        let port = free_port()?;
        let log = std::fs::File::create(dir.join("server.log"))?;
        let spawned = Command::new("nats-server")
            .args(["--addr", "127.0.0.1", "--port", &port.to_string(), "--jetstream", "--store_dir"])
            .arg(dir.join("store"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn();
        let child = match spawned {
            Err(error) if error.kind() == ErrorKind::NotFound => bail!("nats-server is not installed: run `make deps`"),
            other => other.context("nats-server does not start")?,
        };
        let server = NatsServer { child, port };
        let client = server.connect().await?;
        let context = jetstream::new(client);
        let config = stream::Config {
            name: "CAF_ASSIGN".into(),
            subjects: vec![if form == Form::Native { STEPS } else { ASSIGN }.into()],
            retention: stream::RetentionPolicy::WorkQueue,
            discard: stream::DiscardPolicy::New,
            max_age: Duration::from_secs(24 * 3600),
            ..stream::Config::default()
        };
        let begun = Instant::now();
        while let Err(error) = context.create_stream(config.clone()).await {
            if begun.elapsed() > Duration::from_secs(10) {
                return Err(error).context("nats-server makes no streams");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if result_stream {
            let config = stream::Config {
                name: "CAF_RESULT".into(),
                subjects: vec![form.results().into()],
                max_age: Duration::from_secs(24 * 3600),
                ..stream::Config::default()
            };
            context.create_stream(config).await?;
        }
        Ok(server)
    }

    /// A connection that never drops a result for being slow.
    pub(crate) async fn connect(&self) -> Result<async_nats::Client> {
        let begun = Instant::now();
        loop {
            let options = async_nats::ConnectOptions::new().subscription_capacity(1 << 20).client_capacity(1 << 14);
            match options.connect(self.url()).await {
                Ok(client) => return Ok(client),
                Err(error) if begun.elapsed() > Duration::from_secs(10) => {
                    return Err(error).context("nats-server does not answer");
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Where clients connect.
    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _status = self.child.wait();
    }
}
