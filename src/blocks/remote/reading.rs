//! A blob that is read from a store: one request for as long as it is read in order, another from where a reader jumps to. The
//! store is asked for exactly the object that reading began with, where it can tell one from another.

use std::cell::{Cell, RefCell};

use bytes::Bytes;
use shards::block::{Blob, Local};
use shards::outcome::{Effected, Fault};
use tokio::sync::mpsc;

use crate::offload::stores::{Place, StoreError, Stores};

use super::fault;

/// See the module. Lives on its core.
pub(super) struct Reading {
    stores: Stores,
    place: Place,
    size: u64,
    etag: Option<String>,
    /// Nothing from here on will be asked for.
    end: Cell<u64>,
    flow: RefCell<Option<Flow>>,
}

/// What comes from one request.
struct Flow {
    pieces: mpsc::Receiver<Result<Bytes, StoreError>>,
    /// Where the next byte lies in the blob.
    offset: u64,
    /// Come and not yet taken.
    rest: Bytes,
}

impl Reading {
    pub(super) fn new(stores: Stores, place: Place, size: u64, etag: Option<String>) -> Self {
        Reading { stores, place, size, etag, end: Cell::new(size), flow: RefCell::default() }
    }

    async fn next(&self, offset: u64, bytes_max: usize) -> Result<Bytes, Fault> {
        let end = if offset < self.end.get() { self.end.get() } else { self.size };
        if offset >= end || bytes_max == 0 {
            return Ok(Bytes::new());
        }
        // Taken out while it is waited for: two readers at once each have a request of their own.
        let flow = self.flow.borrow_mut().take().filter(|flow| flow.offset == offset);
        let mut flow = match flow {
            Some(flow) => flow,
            None => {
                let asked = self.stores.read(self.place.clone(), offset..end, self.etag.clone());
                let pieces = asked.map_err(|error| fault::of(&error, Effected::None))?;
                Flow { pieces, offset, rest: Bytes::new() }
            }
        };
        while flow.rest.is_empty() {
            match flow.pieces.recv().await {
                Some(Ok(piece)) => flow.rest = piece,
                Some(Err(error)) => return Err(fault::of(&error, Effected::None)),
                // It ended before its end.
                None => return Err(fault::gone()),
            }
        }
        let taken = flow.rest.split_to(flow.rest.len().min(bytes_max));
        flow.offset += taken.len() as u64;
        if flow.offset < end {
            *self.flow.borrow_mut() = Some(flow);
        }
        Ok(taken)
    }
}

impl Blob for Reading {
    fn size(&self) -> u64 {
        self.size
    }

    fn until(&self, end: u64) {
        self.end.set(end.min(self.size));
    }

    fn read<'a>(&'a self, offset: u64, bytes_max: usize) -> Local<'a, Result<Bytes, Fault>> {
        Box::pin(self.next(offset, bytes_max))
    }
}
