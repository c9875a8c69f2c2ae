//! A server that does with each connection what a script says, on a thread of its own; and what it was sent.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The longest that one side talks on.
const FLOOD_MAX: Duration = Duration::from_secs(4);

/// One thing to do with a connection.
#[derive(Clone, Debug)]
pub(in crate::blocks) enum Act {
    /// Read the head of a request and, where it names a length, its body.
    Hear,
    /// Read the head of a request and leave its body where it is.
    HearHead,
    /// Answer the last request with its own path.
    Echo,
    /// Read frames of HTTP/2, the preface first, until one of this type has come.
    Frame(u8),
    /// Say this.
    Say(Vec<u8>),
    /// Say this, a byte at a time, with so many milliseconds between two.
    Drip(Vec<u8>, u64),
    /// Say this again and again until the other side goes, at most so many times and for [`FLOOD_MAX`].
    Repeat(Vec<u8>, usize),
    /// The same, and read meanwhile whatever the other side says to it.
    Flood(Vec<u8>, usize),
    /// Say this beneath the TLS, where there is any.
    Beneath(Vec<u8>),
    /// Say that nothing more will be said, and go on listening.
    Half,
    /// Do nothing for so many milliseconds.
    Wait(u64),
    /// Cut it as a machine does that loses its memory.
    Reset,
    /// Wait until the other side has closed.
    Last,
}

impl Act {
    /// Say a text.
    pub(in crate::blocks) fn say(text: impl AsRef<[u8]>) -> Act {
        Act::Say(text.as_ref().to_vec())
    }

    /// A whole answer of HTTP/1.1 with this body.
    pub(in crate::blocks) fn answer(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Act {
        let body = body.as_ref();
        let mut text = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n", body.len()).into_bytes();
        text.extend_from_slice(body);
        Act::Say(text)
    }
}

/// See the module. Ends with its value.
pub(in crate::blocks) struct Server {
    /// Where it listens.
    pub(in crate::blocks) address: SocketAddr,
    scheme: &'static str,
    heard: Arc<Mutex<Vec<String>>>,
    connections: Arc<Mutex<usize>>,
    open: Arc<AtomicUsize>,
}

impl Server {
    /// One connection for each script, in turn; further ones get the last.
    pub(in crate::blocks) fn start(scripts: Vec<Vec<Act>>) -> Server {
        Server::within("http", scripts, Some)
    }

    /// The same with something around each connection, such as TLS; where that comes to nothing, the connection is closed.
    pub(in crate::blocks) fn within<S: Read + Write + Cut>(
        scheme: &'static str,
        scripts: Vec<Vec<Act>>,
        wrap: impl Fn(TcpStream) -> Option<S> + Send + Sync + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let heard = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(Mutex::new(0));
        let open = Arc::new(AtomicUsize::new(0));
        let (hears, counts, opens, wrap) = (heard.clone(), connections.clone(), open.clone(), Arc::new(wrap));
        std::thread::spawn(move || {
            let mut scripts = scripts.into_iter();
            let mut script = Vec::new();
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                if let Some(next) = scripts.next() {
                    script = next;
                }
                *counts.lock().expect("no panic holds it") += 1;
                opens.fetch_add(1, Ordering::Relaxed);
                let (script, hears, opens, wrap) = (script.clone(), hears.clone(), opens.clone(), wrap.clone());
                std::thread::spawn(move || {
                    if let Some(stream) = wrap(stream) {
                        play(stream, &script, &hears);
                    }
                    opens.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Server { address, scheme, heard, connections, open }
    }

    /// A server that gives each request of each connection this answer.
    pub(in crate::blocks) fn always(answer: Act) -> Server {
        let script: Vec<Act> = std::iter::repeat_n([Act::Hear, answer], 64).flatten().chain([Act::Last]).collect();
        Server::start(vec![script])
    }

    /// The URL of a path on it.
    pub(in crate::blocks) fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address)
    }

    /// The requests so far, head and body as they came.
    pub(in crate::blocks) fn heard(&self) -> Vec<String> {
        self.heard.lock().expect("no panic holds it").clone()
    }

    /// How many connections it has taken.
    pub(in crate::blocks) fn connections(&self) -> usize {
        *self.connections.lock().expect("no panic holds it")
    }

    /// How many of them are still open, as far as its scripts know.
    pub(in crate::blocks) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

/// Does what a script says with a stream, and then closes it.
pub(in crate::blocks) fn play(mut stream: impl Read + Write + Cut, script: &[Act], heard: &Mutex<Vec<String>>) {
    let (mut last, mut prefaced) = (String::new(), false);
    for act in script {
        let done = match act {
            Act::Hear | Act::HearHead => match hear(&mut stream, matches!(act, Act::Hear)) {
                Some(request) => {
                    heard.lock().expect("no panic holds it").push(request.clone());
                    last = request;
                    Ok(())
                }
                None => return,
            },
            Act::Echo => {
                let path = last.split(' ').nth(1).unwrap_or_default();
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", path.len());
                stream.write_all(format!("{head}{path}").as_bytes()).and_then(|()| stream.flush())
            }
            Act::Frame(kind) => match frame(&mut stream, *kind, std::mem::replace(&mut prefaced, true)) {
                Some(frames) => {
                    heard.lock().expect("no panic holds it").push(frames);
                    Ok(())
                }
                None => return,
            },
            Act::Say(bytes) => stream.write_all(bytes).and_then(|()| stream.flush()),
            Act::Drip(bytes, ms) => bytes.iter().try_for_each(|byte| {
                std::thread::sleep(Duration::from_millis(*ms));
                stream.write_all(&[*byte]).and_then(|()| stream.flush())
            }),
            Act::Repeat(bytes, times) | Act::Flood(bytes, times) => {
                let begun = Instant::now();
                let mut said = (0..*times).take_while(|_| begun.elapsed() < FLOOD_MAX);
                said.try_for_each(|_| {
                    if matches!(act, Act::Flood(..)) {
                        drain(&mut stream);
                    }
                    stream.write_all(bytes).and_then(|()| stream.flush())
                })
            }
            Act::Beneath(bytes) => stream.wire().write_all(bytes),
            Act::Wait(ms) => {
                std::thread::sleep(Duration::from_millis(*ms));
                Ok(())
            }
            Act::Half => {
                stream.bye();
                stream.wire().shutdown(Shutdown::Write)
            }
            Act::Reset => return stream.cut(),
            Act::Last => {
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).is_ok_and(|bytes| bytes > 0) {}
                return;
            }
        };
        if done.is_err() {
            return;
        }
    }
}

/// Reads what is there, and waits for nothing.
fn drain(stream: &mut (impl Read + Cut)) {
    let mut buffer = [0; 16 << 10];
    // Where it cannot be set, the next write says why.
    let _ = stream.wire().set_nonblocking(true);
    while stream.read(&mut buffer).is_ok_and(|bytes| bytes > 0) {}
    let _ = stream.wire().set_nonblocking(false);
}

/// A connection, with or without something around it.
pub(in crate::blocks) trait Cut {
    /// The connection itself.
    fn wire(&mut self) -> &mut TcpStream;

    /// What is said around it before it ends in order.
    fn bye(&mut self) {}

    /// Cuts it so that the other side hears of a reset when it is dropped.
    fn cut(&mut self) {
        // Closed with something unread, or with no time to linger, the system sends a reset.
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        let size = std::mem::size_of::<libc::linger>() as libc::socklen_t;
        let fd = std::os::fd::AsRawFd::as_raw_fd(self.wire());
        // SAFETY: the option's value is a `linger` of that size, and the descriptor is open.
        #[expect(unsafe_code, reason = "std has no stable way to set it")]
        unsafe {
            libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), size);
        }
    }
}

impl Cut for TcpStream {
    fn wire(&mut self) -> &mut TcpStream {
        self
    }
}

/// A request, or nothing where the other side went.
fn hear(stream: &mut impl Read, with_body: bool) -> Option<String> {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        request.push(byte[0]);
    }
    if with_body {
        let head = String::from_utf8_lossy(&request).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        stream.read_exact(&mut body).ok()?;
        request.extend_from_slice(&body);
    }
    Some(String::from_utf8_lossy(&request).into_owned())
}

/// The types of the frames up to one of type `kind`, or nothing where the other side went.
fn frame(stream: &mut impl Read, kind: u8, prefaced: bool) -> Option<String> {
    const PREFACE_BYTES: usize = 24;
    if !prefaced {
        stream.read_exact(&mut [0; PREFACE_BYTES]).ok()?;
    }
    let mut kinds = String::new();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).ok()?;
        let size = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        stream.read_exact(&mut vec![0; size as usize]).ok()?;
        kinds.push_str(&format!("{} ", head[3]));
        if head[3] == kind {
            return Some(kinds);
        }
    }
}
