//! What a request carries: nothing, bytes, or a blob that is read while it is sent. Lives on its core.
//!
//! A payload can be sent more than once (a redirect that keeps the method, a connection that was closed while it waited), so it
//! is cloned for each time.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use shards::block::{Blob, Local};
use shards::outcome::Fault;

use super::limits::BLOB_CHUNK_BYTES;

/// The body of a request.
#[derive(Clone)]
pub enum Payload {
    /// None.
    Empty,
    /// All of it.
    Whole(Bytes),
    /// A blob, read from its start.
    Blob(Rc<dyn Blob>),
}

impl Payload {
    /// Its size in bytes; `None`: there is no body, which is not the same as an empty one.
    pub fn size(&self) -> Option<u64> {
        match self {
            Payload::Empty => None,
            Payload::Whole(bytes) => Some(bytes.len() as u64),
            Payload::Blob(blob) => Some(blob.size()),
        }
    }

    /// Where a body that is sent notes that all of it was taken; of nothing all is taken at once.
    pub(super) fn spent(&self) -> Rc<Cell<bool>> {
        Rc::new(Cell::new(self.size().unwrap_or(0) == 0))
    }

    /// The same as a body to be sent once.
    pub(super) fn flow(self, spent: &Rc<Cell<bool>>) -> Flow {
        Flow { payload: self, offset: 0, reading: None, spent: spent.clone() }
    }
}

/// A blob that could not be read to its end while it was sent.
#[derive(Debug, thiserror::Error)]
#[error("a blob could not be read while it was sent")]
pub(super) struct Unreadable;

/// A payload on its way.
pub(super) struct Flow {
    payload: Payload,
    offset: u64,
    reading: Option<Local<'static, Result<Bytes, Fault>>>,
    spent: Rc<Cell<bool>>,
}

impl Body for Flow {
    type Data = Bytes;
    type Error = Unreadable;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Unreadable>>> {
        let flow = self.get_mut();
        match &flow.payload {
            Payload::Empty => Poll::Ready(None),
            Payload::Whole(bytes) => {
                let bytes = bytes.clone();
                flow.payload = Payload::Empty;
                flow.spent.set(true);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Payload::Blob(blob) => {
                if flow.offset >= blob.size() {
                    return Poll::Ready(None);
                }
                let size = blob.size();
                let (blob, offset) = (blob.clone(), flow.offset);
                let reading =
                    flow.reading.get_or_insert_with(|| Box::pin(async move { blob.read(offset, BLOB_CHUNK_BYTES).await }));
                let read = std::task::ready!(reading.as_mut().poll(cx));
                flow.reading = None;
                Poll::Ready(Some(match read {
                    // Shorter than it said: what was promised to the other side cannot be kept.
                    Ok(chunk) if chunk.is_empty() => Err(Unreadable),
                    Ok(chunk) => {
                        flow.offset += chunk.len() as u64;
                        flow.spent.set(flow.offset >= size);
                        Ok(Frame::data(chunk))
                    }
                    Err(_) => Err(Unreadable),
                }))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.payload {
            Payload::Empty => true,
            Payload::Whole(bytes) => bytes.is_empty(),
            Payload::Blob(blob) => self.offset >= blob.size(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.payload.size().unwrap_or(0) - self.offset)
    }
}
