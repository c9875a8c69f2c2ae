//! One connection's bytes as hyper wants them: a glommio stream, with TLS on it or without. Lives on its core.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_rustls::client::TlsStream;
use futures_util::io::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use hyper::rt::{Read, ReadBufCursor, Write};

/// A connection to somewhere.
pub(super) enum Socket {
    /// As it is.
    Plain(TcpStream),
    /// Under TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    /// Whether both sides agreed on HTTP/2.
    pub(super) fn speaks_h2(&self) -> bool {
        match self {
            Socket::Plain(_) => false,
            Socket::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
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
        let bytes = match self.get_mut() {
            Socket::Plain(stream) => Pin::new(stream).poll_read(cx, room),
            Socket::Tls(stream) => Pin::new(&mut **stream).poll_read(cx, room),
        };
        let bytes = std::task::ready!(bytes)?;
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
        match self.get_mut() {
            Socket::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Tls(stream) => Pin::new(&mut **stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Tls(stream) => Pin::new(&mut **stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(stream) => Pin::new(stream).poll_close(cx),
            Socket::Tls(stream) => Pin::new(&mut **stream).poll_close(cx),
        }
    }
}
