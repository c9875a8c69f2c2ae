//! The place that HTTP steps reach: a server that gives every request the same small answer, in a process of its own; and a bare
//! client of it, which is what any worker could at best be.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::process::{raise_files, thread_cpu_us};
use crate::server::free_port;

/// In flight at once by the bare client.
const IN_FLIGHT: usize = 64;
/// A large answer, in bytes.
const POURED: u64 = 64 << 20;
const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 37\r\n\r\n{\"text\":\"the quick brown fox jumps\"}\n";
const END: &[u8] = b"\r\n\r\n";

/// Where the place listens.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct PlaceArgs {
    /// On this machine's own network.
    #[arg(long)]
    port: u16,
}

/// The running process. Dies with this value.
#[derive(Debug)]
pub(crate) struct Place {
    child: Child,
    port: u16,
}

impl Place {
    /// Starts it and waits until it listens.
    pub(crate) fn open(dir: &Path) -> Result<Place> {
        let port = free_port()?;
        let log = std::fs::File::create(dir.join("place.log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["place-worker", "--port", &port.to_string()]);
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let place = Place { child, port };
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            anyhow::ensure!(begun.elapsed() < Duration::from_secs(5), "the place does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(place)
    }

    /// As a connector names it.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Answers until it is killed.
pub(crate) async fn work(args: &PlaceArgs) -> Result<()> {
    raise_files()?;
    let listener = TcpListener::bind(("127.0.0.1", args.port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            // Whoever goes away is not waited for.
            let _ = serve(stream).await;
        });
    }
}

async fn serve(mut stream: TcpStream) -> Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..]).await?;
        if read == 0 {
            return Ok(());
        }
        filled += read;
        let mut begin = 0;
        while let Some(head) = find(&buffer[begin..filled], END) {
            let text = std::str::from_utf8(&buffer[begin..begin + head])?.to_ascii_lowercase();
            let length = text.split("content-length:").nth(1).and_then(|rest| rest.split("\r\n").next());
            let length: usize = length.map_or(Ok(0), |length| length.trim().parse())?;
            let end = begin + head + END.len() + length;
            if end > filled {
                break;
            }
            begin = end;
            if text.starts_with("get /slow") {
                return dribble(stream).await;
            }
            if text.starts_with("get /large") {
                pour(&mut stream).await?;
                continue;
            }
            stream.write_all(ANSWER).await?;
        }
        buffer.copy_within(begin..filled, 0);
        filled -= begin;
    }
}

/// An answer of one byte a second; no two in step with each other.
async fn dribble(mut stream: TcpStream) -> Result<()> {
    let offset_ms = u64::from(stream.peer_addr()?.port()) * 617 % 1_000;
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 100000\r\n\r\n").await?;
    tokio::time::sleep(Duration::from_millis(offset_ms)).await;
    loop {
        stream.write_all(b"x").await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// A large answer as fast as it is taken.
async fn pour(stream: &mut TcpStream) -> Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: {POURED}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let piece = vec![0; 256 << 10];
    for _ in 0..POURED / piece.len() as u64 {
        stream.write_all(&piece).await?;
    }
    Ok(())
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// GETs by raw sockets, so many at once for so long: how many a second, and the processor time of each in microseconds.
pub(crate) async fn bare(place: &Place, seconds: f64) -> Result<(f64, f64)> {
    let port = place.port;
    let task = std::thread::spawn(move || -> Result<(f64, f64)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (begun, cpu) = (Instant::now(), thread_cpu_us(0)?);
            let until = begun + Duration::from_secs_f64(seconds);
            let loops = (0..IN_FLIGHT).map(|_| async move {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
                stream.set_nodelay(true)?;
                let (mut done, mut buffer) = (0_u64, [0; 1024]);
                while Instant::now() < until {
                    stream.write_all(b"GET /fox HTTP/1.1\r\nhost: place\r\n\r\n").await?;
                    let mut got = 0;
                    while got < ANSWER.len() {
                        match stream.read(&mut buffer).await? {
                            0 => anyhow::bail!("the place hung up"),
                            read => got += read,
                        }
                    }
                    done += 1;
                }
                anyhow::Ok(done)
            });
            let done: u64 = futures_util::future::try_join_all(loops).await?.into_iter().sum();
            let (elapsed, cpu) = (begun.elapsed().as_secs_f64(), thread_cpu_us(0)? - cpu);
            Ok((done as f64 / elapsed, cpu as f64 / done.max(1) as f64))
        })
    });
    tokio::task::spawn_blocking(move || task.join()).await?.ok().context("the bare client panicked")?
}
