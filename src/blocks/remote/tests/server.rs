//! An S3 server on a thread of its own, started by whoever needs one: it checks signatures and checksums, honours `If-None-Match`
//! and takes uploads in parts. Its objects are files. And a [`Valve`] before it, for what networks do.
//!
//! What the library behind it leaves out is done here: conditional writes one at a time, so that of two at once one fails, and an
//! error for a bucket that is not there.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// The key that the server knows.
pub(crate) const ACCESS_KEY: &str = "AKIDENDSTATIONTEST";
/// See [`ACCESS_KEY`].
pub(crate) const SECRET_KEY: &str = "wJalrXUtnFEMIK7MDENGbPxRfiCYtestkey";
/// The bucket that there is.
pub(crate) const BUCKET: &str = "blobs";

/// See the module. Ends with its value, and all connections with it.
pub(crate) struct Server {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Requests that it has begun with.
    pub(crate) requests: Arc<AtomicU64>,
    root: tempfile::TempDir,
    thread: Thread,
}

struct Thread {
    stop: Option<oneshot::Sender<()>>,
    handle: Option<JoinHandle<()>>,
}

impl Thread {
    /// Runs `work` on a runtime of its own until the value goes.
    fn run(work: impl Future<Output = ()> + Send + 'static) -> Thread {
        let (stop, stopped) = oneshot::channel();
        let handle = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    () = work => {}
                    _ = stopped => {}
                }
            });
            // Whatever is half done stays so.
            runtime.shutdown_background();
        });
        Thread { stop: Some(stop), handle: Some(handle) }
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(handle) = self.handle.take() {
            handle.join().expect("the server's thread ends without a panic");
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.end();
    }
}

impl Server {
    pub(crate) fn start() -> Server {
        let root = tempfile::tempdir().expect("a folder for the server");
        std::fs::create_dir(root.path().join(BUCKET)).expect("a bucket");
        let files = s3s_fs::FileSystem::new(root.path()).expect("a folder that can be served");
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service: S3Service = builder.build();
        let (listener, address) = listen();
        let requests = Arc::new(AtomicU64::new(0));
        let counted = requests.clone();
        let (turn, folder) = (Arc::new(tokio::sync::Mutex::new(())), root.path().to_owned());
        let thread = Thread::run(async move {
            let listener = TcpListener::from_std(listener).expect("registered");
            while let Ok((stream, _)) = listener.accept().await {
                let (service, counted, turn, folder) = (service.clone(), counted.clone(), turn.clone(), folder.clone());
                tokio::spawn(async move {
                    let counting = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                        counted.fetch_add(1, Ordering::Relaxed);
                        let (service, turn, folder) = (service.clone(), turn.clone(), folder.clone());
                        async move {
                            let bucket = request.uri().path().split('/').nth(1).unwrap_or_default();
                            if !folder.join(bucket).is_dir() {
                                return Ok(no_bucket());
                            }
                            let conditional = request.headers().contains_key("if-none-match");
                            let _turn = if conditional { Some(turn.lock().await) } else { None };
                            hyper::service::Service::call(&service, request).await
                        }
                    });
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), counting).await;
                });
            }
        });
        Server { address, requests, root, thread }
    }

    /// Ends it as `kill -9` would.
    pub(crate) fn kill(&mut self) {
        self.thread.end();
    }

    /// The objects that there are, by their names, sorted.
    pub(crate) fn objects(&self) -> Vec<String> {
        let bucket = self.root.path().join(BUCKET);
        let mut found = Vec::new();
        walk(&bucket, &mut |path| {
            found.push(path.strip_prefix(&bucket).expect("beneath it").to_string_lossy().into_owned());
        });
        found.sort();
        found
    }

    /// What is left of objects that are not there: parts, uploads under way.
    pub(crate) fn scraps(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.root.path()).expect("readable").map(|entry| entry.expect("an entry").file_name());
        let names = names.map(|name| name.to_string_lossy().into_owned());
        names.filter(|name| name.starts_with(".upload") || name.starts_with(".tmp")).collect()
    }

    /// The file that an object is.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.root.path().join(BUCKET).join(name)
    }
}

fn no_bucket() -> hyper::Response<s3s::Body> {
    let text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>NoSuchBucket</Code><Message>none</Message></Error>";
    let mut answer = hyper::Response::new(s3s::Body::from(text.to_owned()));
    *answer.status_mut() = hyper::StatusCode::NOT_FOUND;
    answer
}

fn listen() -> (std::net::TcpListener, SocketAddr) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("nonblocking");
    let address = listener.local_addr().expect("it listens");
    (listener, address)
}

fn walk(folder: &Path, found: &mut impl FnMut(&Path)) {
    for entry in std::fs::read_dir(folder).expect("readable") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { walk(&path, found) } else { found(&path) }
    }
}

/// A way to a server that can be narrowed: so many bytes more in either direction, then nothing, or the end.
pub(crate) struct Valve {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    _thread: Thread,
}

#[derive(Default)]
struct Shared {
    up_left: AtomicI64,
    down_left: AtomicI64,
    cuts: AtomicBool,
    connections: AtomicI64,
}

impl Valve {
    pub(crate) fn before(server: SocketAddr) -> Valve {
        let (listener, address) = listen();
        let shared = Arc::new(Shared::default());
        shared.up_left.store(i64::MAX, Ordering::SeqCst);
        shared.down_left.store(i64::MAX, Ordering::SeqCst);
        let state = shared.clone();
        let thread = Thread::run(async move {
            let listener = TcpListener::from_std(listener).expect("registered");
            while let Ok((client, _)) = listener.accept().await {
                let state = state.clone();
                tokio::spawn(async move {
                    state.connections.fetch_add(1, Ordering::SeqCst);
                    pass(client, server, &state).await;
                    state.connections.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Valve { address, shared, _thread: thread }
    }

    /// Lets so many bytes more to the server; then it stands still, or the connection is cut.
    pub(crate) fn narrow_up(&self, bytes: i64, cuts: bool) {
        self.shared.cuts.store(cuts, Ordering::SeqCst);
        self.shared.up_left.store(bytes, Ordering::SeqCst);
    }

    /// The same for what comes back.
    pub(crate) fn narrow_down(&self, bytes: i64, cuts: bool) {
        self.shared.cuts.store(cuts, Ordering::SeqCst);
        self.shared.down_left.store(bytes, Ordering::SeqCst);
    }

    pub(crate) fn open(&self) {
        self.narrow_up(i64::MAX, false);
        self.narrow_down(i64::MAX, false);
    }

    /// Connections that are open.
    pub(crate) fn connections(&self) -> i64 {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

async fn pass(client: TcpStream, server: SocketAddr, state: &Shared) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let (client_in, client_out) = client.into_split();
    let (server_in, server_out) = server.into_split();
    tokio::select! {
        () = flow(client_in, server_out, &state.up_left, &state.cuts) => {}
        () = flow(server_in, client_out, &state.down_left, &state.cuts) => {}
    }
}

async fn flow(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    left: &AtomicI64,
    cuts: &AtomicBool,
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let now = left.load(Ordering::SeqCst);
        if now <= 0 {
            if cuts.load(Ordering::SeqCst) {
                return;
            }
            // Whoever goes meanwhile is noticed.
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(5)) => continue,
                gone = gone(&from) => if gone { return },
            }
            continue;
        }
        let room = usize::try_from(now).unwrap_or(usize::MAX).min(buffer.len());
        match from.read(&mut buffer[..room]).await {
            Ok(bytes) if bytes > 0 => {
                if to.write_all(&buffer[..bytes]).await.is_err() {
                    return;
                }
                if now != i64::MAX {
                    left.fetch_sub(bytes as i64, Ordering::SeqCst);
                }
            }
            _ => return,
        }
    }
}

/// Whether the other side has closed, which it may tell behind bytes that nobody reads.
async fn gone(from: &tokio::net::tcp::OwnedReadHalf) -> bool {
    let ready = from.ready(tokio::io::Interest::READABLE).await;
    match ready {
        Ok(ready) if ready.is_read_closed() => true,
        Ok(_) => {
            tokio::time::sleep(Duration::from_millis(5)).await;
            false
        }
        Err(_) => true,
    }
}
