//! How the library speaks HTTP: hyper on the stores' thread, to the store's own host and nowhere else, without redirects.
//!
//! A wait is judged by progress: an exchange is given up once no byte of it has moved for the store's `stall`, however long it
//! has gone on. Dropping an exchange closes its connection.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::Mutex;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::Stream;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use hyper::{Method, Request, Response, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use opendal::{Buffer, HttpBody, HttpTransport};
use tokio::time::{Instant, Sleep};

use crate::net::error::Phase;
use crate::net::limits::{IDLE_MS_MAX, IDLE_PER_PLACE_MAX};
use crate::offload::Offload;
use crate::policy::stores::{Store, StoreKind};

use super::dialer::Dialer;
use super::error::{StoreError, Trouble};

/// Given to a connection at once, in bytes: the granularity of progress.
const FRAME_BYTES: usize = 64 << 10;
/// Read from a connection at once, in bytes.
const READ_BYTES_MAX: usize = 256 << 10;
/// Where Google hands out tokens for a service account's key.
const GOOGLE_TOKENS: &str = "oauth2.googleapis.com";

/// See the module. Crosses tasks of its thread.
pub(super) struct Transport {
    client: Client<Dialer, Sending>,
    /// Hosts with their ports that requests may go to.
    hosts: Vec<String>,
    stall: Duration,
}

impl Transport {
    pub(super) fn new(store: &Arc<Store>, offload: Offload) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_millis(IDLE_MS_MAX))
            .pool_max_idle_per_host(IDLE_PER_PLACE_MAX)
            .http1_max_buf_size(READ_BYTES_MAX)
            .build(Dialer::new(store.clone(), offload));
        let hosts = match &store.settings.kind {
            StoreKind::Memory => Vec::new(),
            StoreKind::S3 { endpoint, .. } | StoreKind::Azblob { endpoint, .. } => vec![endpoint.authority().to_owned()],
            StoreKind::Gcs { endpoint, .. } => vec![endpoint.authority().to_owned(), GOOGLE_TOKENS.to_owned()],
        };
        Transport { client, hosts, stall: Duration::from_millis(store.settings.stall_ms) }
    }

    fn leads_to(&self, uri: &Uri) -> bool {
        uri.authority().is_some_and(|authority| self.hosts.iter().any(|host| host.eq_ignore_ascii_case(authority.as_str())))
    }
}

/// Whether a request may do something that others see: reading does not, nor does a part of an upload, or its beginning.
fn shows(method: &Method, uri: &Uri) -> bool {
    let hidden = |pair: &str| matches!(pair.split('=').next(), Some("partNumber" | "uploads")) || pair == "comp=block";
    !matches!(*method, Method::GET | Method::HEAD) && !uri.query().unwrap_or_default().split('&').any(hidden)
}

fn stalled(stall: Duration) -> StoreError {
    let ms = stall.as_millis() as u64;
    StoreError { trouble: Trouble::Late(Phase::Stall, ms), cause: format!("no byte moved for {ms} ms"), sent: true }
}

impl HttpTransport for Transport {
    async fn fetch(&self, request: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        if !self.leads_to(request.uri()) {
            let host = request.uri().host().unwrap_or_default().to_owned();
            return Err(StoreError::unsent(Trouble::Forbidden, format!("{host} is not the store's own host")).into());
        }
        let (head_only, shows) = (request.method() == Method::HEAD, shows(request.method(), request.uri()));
        let told = |error: StoreError| StoreError { sent: error.sent && shows, ..error };
        let moved = Arc::new(Moved::default());
        let request = request.map(|body| Sending::new(body, moved.clone()));
        let mut sending = pin!(self.client.request(request));
        let answer = loop {
            let until = moved.last() + self.stall;
            match tokio::time::timeout_at(until, &mut sending).await {
                Ok(answer) => break answer.map_err(|error| told(StoreError::of_client(&error)))?,
                Err(_) if moved.last() + self.stall > Instant::now() => {}
                Err(_) => return Err(told(stalled(self.stall)).into()),
            }
        };
        let size = answer.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let size = size.filter(|_| !head_only && !answer.headers().contains_key(CONTENT_ENCODING));
        Ok(answer.map(|body| HttpBody::new(Arriving::new(body, self.stall), size)))
    }
}

/// When the last byte of a request moved.
struct Moved(Mutex<Instant>);

impl Default for Moved {
    fn default() -> Self {
        Moved(Mutex::new(Instant::now()))
    }
}

impl Moved {
    fn last(&self) -> Instant {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn now(&self) {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Instant::now();
    }
}

/// The body of a request, in frames.
struct Sending {
    pieces: VecDeque<Bytes>,
    left: u64,
    moved: Arc<Moved>,
}

impl Sending {
    fn new(body: Buffer, moved: Arc<Moved>) -> Self {
        let left = body.len() as u64;
        Sending { pieces: body.filter(|piece| !piece.is_empty()).collect(), left, moved }
    }
}

impl Body for Sending {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let body = self.get_mut();
        body.moved.now();
        let Some(piece) = body.pieces.front_mut() else { return Poll::Ready(None) };
        let frame = piece.split_to(piece.len().min(FRAME_BYTES));
        if !piece.has_remaining() {
            body.pieces.pop_front();
        }
        body.left -= frame.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// The body of an answer, each piece of it in time.
struct Arriving {
    body: Incoming,
    stall: Duration,
    until: Pin<Box<Sleep>>,
}

impl Arriving {
    fn new(body: Incoming, stall: Duration) -> Self {
        Arriving { body, stall, until: Box::pin(tokio::time::sleep(stall)) }
    }
}

impl Stream for Arriving {
    type Item = opendal::Result<Buffer>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let arriving = self.get_mut();
        loop {
            let Poll::Ready(frame) = Pin::new(&mut arriving.body).poll_frame(cx) else {
                ready!(arriving.until.as_mut().poll(cx));
                return Poll::Ready(Some(Err(stalled(arriving.stall).into())));
            };
            // Whoever reads may have been away for longer; the wait begins anew when it asks again.
            arriving.until.as_mut().reset(Instant::now() + arriving.stall);
            match frame {
                None => return Poll::Ready(None),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => return Poll::Ready(Some(Ok(Buffer::from(data)))),
                    Err(_) => continue,
                },
                Some(Err(error)) => {
                    let error = StoreError { trouble: Trouble::Broken, cause: error.to_string(), sent: true };
                    return Poll::Ready(Some(Err(error.into())));
                }
            }
        }
    }
}
