//! A loopback proxy between a worker and its NATS server, whose trouble a test switches on and off while bytes flow.
//!
//! What TCP does to a connection in the field, as far as a process can see it: nobody listens, an end, bytes that vanish
//! though both ends are well, a few bytes a second, a long way. A connection that lost bytes in a hole stays lost: a byte
//! stream with a gap in it must never go on. It runs on a thread of its own, so that a busy test does not slow it down.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::server::free_port;

/// Chunks that are on the way at once, in each direction of a connection; each has at most [`CHUNK_BYTES`].
const CHUNKS: usize = 64;
const CHUNK_BYTES: usize = 16 << 10;
/// How often a port that is not free yet is tried again.
const BIND_EVERY: Duration = Duration::from_millis(5);

/// Which direction is meant, as the worker sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Both.
    Both,
    /// What the worker sends.
    Out,
    /// What the worker hears.
    In,
}

/// What becomes of bytes and connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Everything passes.
    Pass,
    /// Nobody listens, and what was connected is ended.
    Refuse,
    /// Connections are taken and kept, and what they say that way is swallowed: no answer, no end.
    Hole(Way),
    /// So many bytes a second, each way of each connection.
    Trickle(u32),
    /// Everything arrives so much later, each way.
    Delay(Duration),
}

/// What the connections go by.
#[derive(Clone, Copy, Debug)]
struct Rule {
    mode: Mode,
    /// Grows with every cut: an older connection is ended.
    cuts: u64,
    over: bool,
}

/// See the module. Its thread ends with this value.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    rule: watch::Sender<Rule>,
    taken: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// A proxy before the server on this port, in this mode.
    pub(crate) fn start(server_port: u16, mode: Mode) -> Result<Self> {
        let port = free_port();
        let (rule, seen) = watch::channel(Rule { mode, cuts: 0, over: false });
        let taken = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&taken);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("proxy".into()).spawn(move || {
            runtime.block_on(listen(port, server_port, seen, &count));
        });
        Ok(Proxy { port, rule, taken, thread: Some(thread.context("the proxy's thread")?) })
    }

    /// Where a worker connects.
    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// From now on it is so, for live connections too.
    pub(crate) fn set(&self, mode: Mode) {
        self.rule.send_modify(|rule| rule.mode = mode);
    }

    /// Ends every connection there is; new ones are taken as the mode says.
    #[cfg(feature = "failpoints")]
    pub(crate) fn cut(&self) {
        self.rule.send_modify(|rule| rule.cuts += 1);
    }

    /// How many connections it has taken so far.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.rule.send_modify(|rule| rule.over = true);
        if let Some(thread) = self.thread.take() {
            let _its_panic_has_been_printed = thread.join();
        }
    }
}

/// Takes connections for as long as the mode has a listener.
async fn listen(port: u16, server_port: u16, mut seen: watch::Receiver<Rule>, taken: &AtomicU64) {
    loop {
        let rule = *seen.borrow_and_update();
        if rule.over {
            return;
        }
        if rule.mode == Mode::Refuse {
            if seen.changed().await.is_err() {
                return;
            }
            continue;
        }
        let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await else {
            sleep(BIND_EVERY).await;
            continue;
        };
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    if let Ok((client, _)) = accepted {
                        taken.fetch_add(1, Ordering::Relaxed);
                        tokio::spawn(connection(client, server_port, seen.clone()));
                    }
                }
                changed = seen.changed() => {
                    let rule = *seen.borrow_and_update();
                    if changed.is_err() || rule.over || rule.mode == Mode::Refuse {
                        break;
                    }
                }
            }
        }
    }
}

/// One connection, until an end of it ends or it is cut.
async fn connection(client: TcpStream, server_port: u16, mut seen: watch::Receiver<Rule>) {
    let born = *seen.borrow_and_update();
    let swallowed = matches!(born.mode, Mode::Hole(Way::Both | Way::Out));
    let server = match TcpStream::connect((Ipv4Addr::LOCALHOST, server_port)).await {
        Ok(server) => server,
        // In a hole the server's absence shows as little as its presence.
        Err(_) if swallowed => {
            let mut deaf = client;
            let mut nothing = [0; 512];
            let cut = until_cut(seen, born.cuts);
            tokio::pin!(cut);
            loop {
                tokio::select! {
                    read = deaf.read(&mut nothing) => if !matches!(read, Ok(1..)) { return },
                    () = &mut cut => return reset(&deaf),
                }
            }
        }
        Err(_) => return reset(&client),
    };
    for stream in [&client, &server] {
        let _a_matter_of_speed = stream.set_nodelay(true);
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = carry(from_client, to_server, Way::Out, seen.clone()) => {}
        () = carry(from_server, to_client, Way::In, seen.clone()) => {}
        () = until_cut(seen, born.cuts) => {}
    }
}

/// Until the connections of this number of cuts are to end.
async fn until_cut(mut seen: watch::Receiver<Rule>, cuts: u64) {
    let to_cut = |rule: &Rule| rule.cuts != cuts || rule.over || rule.mode == Mode::Refuse;
    let _the_proxy_is_gone = seen.wait_for(to_cut).await;
}

/// Closes with a reset and not with an end.
fn reset(stream: &TcpStream) {
    let _else_an_end = stream.set_zero_linger();
}

/// Carries one direction to its end.
async fn carry(mut from: OwnedReadHalf, to: OwnedWriteHalf, way: Way, mut seen: watch::Receiver<Rule>) {
    let (send, due) = mpsc::channel(CHUNKS);
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut lost = false;
    let reading = async {
        // Held until this direction is over: then the other side is told.
        let send = send;
        loop {
            let mode = seen.borrow_and_update().mode;
            let hole = lost || matches!(mode, Mode::Hole(which) if which == Way::Both || which == way);
            let most = if matches!(mode, Mode::Trickle(_)) && !hole { 1 } else { CHUNK_BYTES };
            let read = tokio::select! {
                changed = seen.changed() => if changed.is_err() { return } else { continue },
                read = from.read(&mut buffer[..most]) => read,
            };
            match read {
                // Nobody learns of an end through a hole.
                Ok(0) | Err(_) if hole => std::future::pending().await,
                Ok(0) | Err(_) => return,
                Ok(_) if hole => lost = true,
                Ok(bytes) => {
                    let now = Instant::now();
                    let due = if let Mode::Delay(later) = mode { now + later } else { now };
                    if send.send((due, buffer[..bytes].to_vec())).await.is_err() {
                        return;
                    }
                    if let Mode::Trickle(rate) = mode {
                        let next = now + Duration::from_secs(1) / rate.max(1);
                        tokio::select! { () = sleep_until(next) => {}, _ = seen.changed() => seen.mark_changed() }
                    }
                }
            }
        }
    };
    tokio::join!(reading, write(to, due));
}

/// Writes what is due, in order.
async fn write(mut to: OwnedWriteHalf, mut due: mpsc::Receiver<(Instant, Vec<u8>)>) {
    while let Some((at, bytes)) = due.recv().await {
        sleep_until(at).await;
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}
