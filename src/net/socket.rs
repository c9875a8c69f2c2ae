//! One connection's bytes as hyper and others want them: a glommio stream, with TLS on it or without. Lives on its core.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use futures_rustls::client::TlsStream;
use futures_util::io::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use hyper::rt::{Read, ReadBufCursor, Write};

/// Reads in a row that find something before others get a turn: a library that makes nothing of what it reads (interim answers
/// without end, say) would keep its core.
const READS_MAX: u32 = 32;

/// A connection to somewhere.
pub(super) struct Socket {
    stream: Stream,
    reads: u32,
    behind: Rc<Cell<bool>>,
}

/// Its bytes.
pub(super) enum Stream {
    /// As it is.
    Plain(TcpStream),
    /// Under TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    /// On a stream that is open.
    pub(super) fn new(stream: Stream) -> Socket {
        Socket { stream, reads: 0, behind: Rc::default() }
    }

    /// Whether something that was written waits for the other side to take it.
    pub(super) fn behind(&self) -> Rc<Cell<bool>> {
        self.behind.clone()
    }

    /// Whether both sides agreed on HTTP/2.
    pub(super) fn speaks_h2(&self) -> bool {
        match &self.stream {
            Stream::Plain(_) => false,
            Stream::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }
}

impl Socket {
    /// Reads into `room`, at least one byte of it; none only at the end.
    pub(super) fn poll_some(&mut self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.reads >= READS_MAX {
            self.reads = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let bytes = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, room),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_read(cx, room),
        };
        self.reads = if bytes.is_ready() { self.reads + 1 } else { 0 };
        bytes
    }
}

impl Read for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        // SAFETY: every byte is written before it is seen as initialised, and none is made uninitialised again.
        #[expect(unsafe_code, reason = "hyper lends its buffer only so")]
        let room = unsafe {
            let room = buf.as_mut();
            room.fill(std::mem::MaybeUninit::new(0));
            room.assume_init_mut()
        };
        let bytes = std::task::ready!(self.get_mut().poll_some(cx, room))?;
        // SAFETY: so many bytes of `room` were read, and all of it is initialised.
        #[expect(unsafe_code, reason = "hyper lends its buffer only so")]
        unsafe {
            buf.advance(bytes);
        }
        Poll::Ready(Ok(()))
    }
}

impl Write for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let socket = self.get_mut();
        let written = match &mut socket.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_write(cx, buf),
        };
        socket.behind.set(written.is_pending());
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = self.get_mut();
        let flushed = match &mut socket.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_flush(cx),
        };
        socket.behind.set(flushed.is_pending());
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_close(cx),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_close(cx),
        }
    }
}
