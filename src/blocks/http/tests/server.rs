//! A server that does with each connection what a script says, on a thread of its own; and what it was sent.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// One thing to do with a connection.
#[derive(Clone, Debug)]
pub(super) enum Act {
    /// Read the head of a request and, where it names a length or is chunked, its body.
    Hear,
    /// Say this.
    Say(Vec<u8>),
    /// Say this, a byte at a time, with so many milliseconds between two.
    Drip(Vec<u8>, u64),
    /// Say this again and again until the other side goes, at most so many times.
    Repeat(Vec<u8>, usize),
    /// Do nothing for so many milliseconds.
    Wait(u64),
    /// Cut it as a machine does that loses its memory.
    Reset,
    /// Wait until the other side has closed.
    Last,
}

impl Act {
    /// Say a text.
    pub(super) fn say(text: impl AsRef<[u8]>) -> Act {
        Act::Say(text.as_ref().to_vec())
    }

    /// A whole answer of HTTP/1.1 with this body.
    pub(super) fn answer(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Act {
        let body = body.as_ref();
        let mut text = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n", body.len()).into_bytes();
        text.extend_from_slice(body);
        Act::Say(text)
    }
}

/// See the module. Ends with its value.
pub(super) struct Server {
    /// Where it listens.
    pub(super) address: SocketAddr,
    heard: Arc<Mutex<Vec<String>>>,
    connections: Arc<Mutex<usize>>,
}

impl Server {
    /// One connection for each script, in turn; further ones get the last.
    pub(super) fn start(scripts: Vec<Vec<Act>>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let heard = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(Mutex::new(0));
        let (hears, counts) = (heard.clone(), connections.clone());
        std::thread::spawn(move || {
            let mut scripts = scripts.into_iter().peekable();
            let mut script = Vec::new();
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                if let Some(next) = scripts.next() {
                    script = next;
                }
                *counts.lock().expect("no panic holds it") += 1;
                let (script, hears) = (script.clone(), hears.clone());
                std::thread::spawn(move || play(stream, &script, &hears));
            }
        });
        Server { address, heard, connections }
    }

    /// A server that gives each request of each connection this answer.
    pub(super) fn always(answer: Act) -> Server {
        let script: Vec<Act> = std::iter::repeat_n([Act::Hear, answer], 64).flatten().chain([Act::Last]).collect();
        Server::start(vec![script])
    }

    /// The URL of a path on it.
    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The requests so far, head and body as they came.
    pub(super) fn heard(&self) -> Vec<String> {
        self.heard.lock().expect("no panic holds it").clone()
    }

    /// How many connections it has taken.
    pub(super) fn connections(&self) -> usize {
        *self.connections.lock().expect("no panic holds it")
    }
}

/// Does what a script says with a stream, and then closes it.
pub(super) fn play(mut stream: impl Read + Write + Cut, script: &[Act], heard: &Mutex<Vec<String>>) {
    for act in script {
        let done = match act {
            Act::Hear => match hear(&mut stream) {
                Some(request) => {
                    heard.lock().expect("no panic holds it").push(request);
                    Ok(())
                }
                None => return,
            },
            Act::Say(bytes) => stream.write_all(bytes).and_then(|()| stream.flush()),
            Act::Drip(bytes, ms) => bytes.iter().try_for_each(|byte| {
                std::thread::sleep(Duration::from_millis(*ms));
                stream.write_all(&[*byte]).and_then(|()| stream.flush())
            }),
            Act::Repeat(bytes, times) => (0..*times).try_for_each(|_| stream.write_all(bytes)).and_then(|()| stream.flush()),
            Act::Wait(ms) => {
                std::thread::sleep(Duration::from_millis(*ms));
                Ok(())
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

/// What can be cut so that the other side hears of a reset.
pub(super) trait Cut {
    /// Cuts it.
    fn cut(&mut self);
}

impl Cut for TcpStream {
    fn cut(&mut self) {
        // Closed with something unread, or with no time to linger, the system sends a reset.
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        let size = std::mem::size_of::<libc::linger>() as libc::socklen_t;
        let fd = std::os::fd::AsRawFd::as_raw_fd(self);
        // SAFETY: the option's value is a `linger` of that size, and the descriptor is open.
        #[expect(unsafe_code, reason = "std has no stable way to set it")]
        unsafe {
            libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), size);
        }
    }
}

/// A request, or nothing where the other side went.
fn hear(stream: &mut impl Read) -> Option<String> {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        request.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&request).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).ok()?;
    request.extend_from_slice(&body);
    Some(String::from_utf8_lossy(&request).into_owned())
}
