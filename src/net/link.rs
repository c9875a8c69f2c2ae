//! One HTTP connection: its requests go in by a [`Link`], the rest is a task of its own that ends with it. Lives on its core.

use std::cell::{Cell, RefCell};
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
    behind: Rc<Cell<bool>>,
    /// The connection's own task ends with the last of those that hold it.
    _end: Rc<End>,
}

enum Sender {
    One(http1::SendRequest<Flow>),
    Many(http2::SendRequest<Flow>),
}

/// The tasks of one connection: all of them end when nobody holds it any more, whatever they wait for. HTTP/2 would say goodbye
/// first, and wait for a peer that does not read for ever.
struct End(Tasks);

impl Drop for End {
    fn drop(&mut self) {
        for stop in self.0.0.borrow_mut().drain(..) {
            stop.ask();
        }
    }
}

/// How to stop each of them.
#[derive(Clone, Default)]
struct Tasks(Rc<RefCell<Vec<Stop>>>);

impl Tasks {
    /// Runs a future until it ends or the connection is given up. A panic in it is the library's, on what the other side sent: it
    /// costs that connection and not the process.
    fn run<T: 'static>(&self, name: &'static str, future: impl Future<Output = T> + 'static, ended: impl FnOnce(T) + 'static) {
        let stop = Stop::default();
        let work = stop.race(caught(future));
        self.0.borrow_mut().push(stop.clone());
        let tasks = Rc::downgrade(&self.0);
        spawn(name, async move {
            match work.await {
                Some(Ok(value)) => ended(value),
                Some(Err(_)) => tracing::error!("the HTTP library panicked on a connection; it is closed"),
                None => {}
            }
            if let Some(tasks) = tasks.upgrade() {
                tasks.borrow_mut().retain(|other| !other.is(&stop));
            }
        });
    }
}

/// A request that got no answer.
pub(super) struct Unanswered {
    pub(super) error: NetError,
    /// Whether any of it may have reached the other side.
    pub(super) sent: bool,
    /// The connection broke: it may have been so before the request came.
    pub(super) broken: bool,
}

/// HTTP/2 runs its connection and the bodies that it sends as tasks of its own.
impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, future: F) {
        self.run("a part of HTTP/2", future, drop);
    }
}

impl Link {
    /// Begins to speak HTTP on a connection: HTTP/2 where both sides agreed on it.
    pub(super) async fn open(socket: Socket) -> Result<Link, NetError> {
        let broken = |error: hyper::Error| NetError::Broken(text(&error));
        let (tasks, behind) = (Tasks::default(), socket.behind());
        let sender = if socket.speaks_h2() {
            let mut builder = http2::Builder::new(tasks.clone());
            builder
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(LINK_WINDOW_BYTES)
                .max_header_list_size(HEAD_BYTES_MAX as u32)
                .max_send_buf_size(BUFFER_BYTES_MAX);
            let (sender, connection) = builder.handshake(socket).await.map_err(broken)?;
            run(&tasks, connection);
            Sender::Many(sender)
        } else {
            let mut builder = http1::Builder::new();
            builder.max_buf_size(BUFFER_BYTES_MAX).max_header_size(HEAD_BYTES_MAX).max_headers(HEADERS_MAX);
            let (sender, connection) = builder.handshake(socket).await.map_err(broken)?;
            run(&tasks, connection);
            Sender::One(sender)
        };
        Ok(Link { sender, behind, _end: Rc::new(End(tasks)) })
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
            Sender::Many(sender) => {
                Some(Link { sender: Sender::Many(sender.clone()), behind: self.behind.clone(), _end: self._end.clone() })
            }
        }
    }

    /// Whether the other side has not yet taken all that was said: hyper takes a body as it comes, and a next request with it,
    /// long before they are written.
    pub(super) fn is_behind(&self) -> bool {
        self.behind.get()
    }

    /// Whether it speaks HTTP/2.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self.sender, Sender::Many(_))
    }

    /// Sends a request and waits for the head of its answer.
    pub(super) async fn send(&mut self, request: Request<Flow>) -> Result<Response<Incoming>, Unanswered> {
        let unsent = |error: hyper::Error| Unanswered { error: NetError::Broken(text(&error)), sent: false, broken: true };
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
            // What was said is not HTTP, or what we say is not: neither has to do with how old the connection is.
            let broken = !error.is_parse() && !error.is_user();
            let error = match source::<super::payload::Unreadable>(&error) {
                Some(_) => NetError::Blob,
                None => NetError::Broken(text(&error)),
            };
            Unanswered { error, sent, broken }
        })
    }
}

/// Drives a connection until it ends or is not wanted any more.
fn run(tasks: &Tasks, connection: impl Future<Output = hyper::Result<()>> + 'static) {
    tasks.run("a connection", connection, |ended| {
        if let Err(error) = ended {
            tracing::debug!(error = text(&error), "a connection ended");
        }
    });
}

/// An error with what caused it: the words of hyper and of tokio-postgres alone seldom say enough.
pub(crate) fn text(error: &dyn std::error::Error) -> String {
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
