//! A real server of HTTP/2: hyper's, on a shard of its own, under the tests' TLS. It answers with what it was asked.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_rustls::TlsAcceptor;
use futures_rustls::server::TlsStream;
use futures_util::io::{AsyncRead, AsyncWrite};
use glommio::net::{TcpListener, TcpStream};
use http_body_util::{BodyExt, Full};
use hyper::rt::{ReadBufCursor, Write};
use hyper::service::service_fn;
use hyper::{Request, Response};

use super::*;

/// Starts it; it lives as long as the process.
pub(super) fn start(config: Arc<ServerConfig>) -> SocketAddr {
    let (told, address) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        on_a_shard(|_, _| async move {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            told.send(listener.local_addr().expect("bound")).expect("somebody waits");
            loop {
                let Ok(stream) = listener.accept().await else { return };
                let acceptor = TlsAcceptor::from(config.clone());
                glommio::spawn_local(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let server = hyper::server::conn::http2::Builder::new(Here);
                    // Whatever becomes of it is the client's to say.
                    let _ = server.serve_connection(Wire(stream), service_fn(answer)).await;
                })
                .detach();
            }
        });
    });
    address.recv().expect("it starts")
}

/// The method, the path and how much came, as the body; as much more as the query's number says.
async fn answer(request: Request<hyper::body::Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let came = body.collect().await.map_or(0, |body| body.to_bytes().len());
    let more = head.uri.query().and_then(|query| query.parse().ok()).unwrap_or(0);
    let body = match head.method {
        // Not even hyper keeps a body from one who asked for the head alone.
        hyper::Method::HEAD => String::new(),
        method => format!("{method} {} {came}{}", head.uri.path(), "x".repeat(more)),
    };
    Ok(Response::new(Full::from(body)))
}

/// Runs what hyper wants run on the shard that it is on.
#[derive(Clone, Copy)]
struct Here;

impl<F: Future + 'static> hyper::rt::Executor<F> for Here {
    fn execute(&self, future: F) {
        glommio::spawn_local(async move {
            future.await;
        })
        .detach();
    }
}

/// A connection as hyper wants it.
struct Wire(TlsStream<TcpStream>);

impl hyper::rt::Read for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut into: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let mut buffer = [0; 8 << 10];
        let room = into.remaining().min(buffer.len());
        let bytes = std::task::ready!(Pin::new(&mut self.0).poll_read(cx, &mut buffer[..room]))?;
        into.put_slice(&buffer[..bytes]);
        Poll::Ready(Ok(()))
    }
}

impl Write for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(cx)
    }
}
