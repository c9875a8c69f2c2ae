//! One HTTP connection: its requests go in by a [`Link`], the rest is a task of its own that ends with it. Lives on its core.

use std::future::Future;
use std::rc::Rc;

use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use shards::runtime::rt::{Stop, caught, spawn};

use super::error::NetError;
use super::limits::{BUFFER_BYTES_MAX, HEAD_BYTES_MAX, HEADERS_MAX, LINK_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use super::payload::Flow;
use super::socket::Socket;

/// A connection that takes requests: HTTP/1.1 one at a time, HTTP/2 as many as the other side lets in.
pub(super) struct Link {
    sender: Sender,
    /// The connection's own task ends with the last of those that hold it.
    _end: Rc<End>,
}

enum Sender {
    One(http1::SendRequest<Flow>),
    Many(http2::SendRequest<Flow>),
}

struct End(Stop);

impl Drop for End {
    fn drop(&mut self) {
        self.0.ask();
    }
}

/// A request that got no answer.
pub(super) struct Unanswered {
    pub(super) error: NetError,
    /// Whether any of it may have reached the other side.
    pub(super) sent: bool,
    /// The connection was closed with nothing said: it may have been so before the request came.
    pub(super) closed: bool,
}

/// What runs the tasks that HTTP/2 needs for its streams.
#[derive(Clone, Copy)]
struct OnThisShard;

impl<F: Future + 'static> hyper::rt::Executor<F> for OnThisShard {
    fn execute(&self, future: F) {
        spawn("a stream of HTTP/2", async move {
            // A panic there is the library's, on what the other side sent: it costs that connection and not the process.
            let _ = caught(future).await;
        });
    }
}

impl Link {
    /// Begins to speak HTTP on a connection: HTTP/2 where both sides agreed on it.
    pub(super) async fn open(socket: Socket) -> Result<Link, NetError> {
        let broken = |error: hyper::Error| NetError::Broken(text(&error));
        let stop = Stop::default();
        let sender = if socket.speaks_h2() {
            let mut builder = http2::Builder::new(OnThisShard);
            builder
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(LINK_WINDOW_BYTES)
                .max_header_list_size(HEAD_BYTES_MAX as u32)
                .max_send_buf_size(BUFFER_BYTES_MAX);
            let (sender, connection) = builder.handshake(socket).await.map_err(broken)?;
            run(&stop, connection);
            Sender::Many(sender)
        } else {
            let mut builder = http1::Builder::new();
            builder.max_buf_size(BUFFER_BYTES_MAX).max_header_size(HEAD_BYTES_MAX).max_headers(HEADERS_MAX);
            let (sender, connection) = builder.handshake(socket).await.map_err(broken)?;
            run(&stop, connection);
            Sender::One(sender)
        };
        Ok(Link { sender, _end: Rc::new(End(stop)) })
    }

    /// Whether the connection has ended.
    pub(super) fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::One(sender) => sender.is_closed(),
            Sender::Many(sender) => sender.is_closed(),
        }
    }

    /// Another hold of the same connection, where it takes more than one request at a time.
    pub(super) fn share(&self) -> Option<Link> {
        match &self.sender {
            Sender::One(_) => None,
            Sender::Many(sender) => Some(Link { sender: Sender::Many(sender.clone()), _end: self._end.clone() }),
        }
    }

    /// Whether it speaks HTTP/2.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self.sender, Sender::Many(_))
    }

    /// Sends a request and waits for the head of its answer.
    pub(super) async fn send(&mut self, request: Request<Flow>) -> Result<Response<Incoming>, Unanswered> {
        let unsent = |error: hyper::Error| Unanswered { error: NetError::Broken(text(&error)), sent: false, closed: true };
        let answer = match &mut self.sender {
            Sender::One(sender) => {
                sender.ready().await.map_err(unsent)?;
                sender.try_send_request(request).await
            }
            Sender::Many(sender) => {
                sender.ready().await.map_err(unsent)?;
                sender.try_send_request(request).await
            }
        };
        answer.map_err(|mut refused| {
            let sent = refused.take_message().is_none();
            let error = refused.into_error();
            let closed = error.is_closed() || error.is_canceled() || error.is_incomplete_message();
            let error = match source::<super::payload::Unreadable>(&error) {
                Some(_) => NetError::Blob,
                None => NetError::Broken(text(&error)),
            };
            Unanswered { error, sent, closed }
        })
    }
}

/// Drives a connection until it ends or is not wanted any more.
fn run(stop: &Stop, connection: impl Future<Output = hyper::Result<()>> + 'static) {
    let work = stop.race(caught(connection));
    spawn("a connection", async move {
        match work.await {
            Some(Ok(Err(error))) => tracing::debug!(error = text(&error), "a connection ended"),
            Some(Err(_)) => tracing::error!("the HTTP library panicked on a connection; it is closed"),
            Some(Ok(Ok(()))) | None => {}
        }
    });
}

/// An error with what caused it: hyper's own words seldom say enough.
pub(super) fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

fn source<E: std::error::Error + 'static>(error: &dyn std::error::Error) -> Option<&E> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}
