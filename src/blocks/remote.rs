//! The tenants' blobs in object stores: [`Shelf`], one per shard, with a [`Remote`] for each store that its steps use.
//!
//! `<prefix><tenant's folder>/<path>`, the folder named as on the local disk and the path under the same rules, so no path leads
//! to another tenant. What the network does happens on the stores' thread; here pieces are counted, hashed and handed on, a few
//! at a time. A blob appears whole, at its end: a write that is dropped midway is given up there.
//!
//! Where nothing may be replaced the store itself is asked to refuse (`If-None-Match`), and what stands there is then compared;
//! nothing is looked at first and written after.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use shards::block::{Blob, BlobWriter, Blobs, Local, Stored};
use shards::ids::hex;
use shards::outcome::{Effected, Fault};

use crate::offload::stores::{Found, OBJECT_BYTES_MAX, PIECE_BYTES_MAX, Piece, Place, StoreError, Stores, Trouble, Writing};
use crate::policy::stores::Store;

use super::inputs::forbidden;
use super::local::folder_of;
use super::path;

mod account;
mod fault;
mod reading;
#[cfg(test)]
mod tests;

use account::{Account, Accounts, Reservation};
use reading::Reading;

/// Hashed between two chances for others to run, in bytes.
const STRIDE_BYTES: usize = 64 << 10;
/// The longest name of an object, in bytes: what S3 and Google take.
const KEY_BYTES_MAX: usize = 1_024;

/// The stores that this shard's steps have used. Lives on its core.
pub struct Shelf {
    stores: Stores,
    remotes: RefCell<HashMap<String, Remote>>,
}

impl Shelf {
    /// By the thread that speaks to them.
    pub fn new(stores: Stores) -> Self {
        Shelf { stores, remotes: RefCell::default() }
    }

    /// The blobs in this store.
    pub fn of(&self, store: &Arc<Store>) -> Rc<dyn Blobs> {
        let mut remotes = self.remotes.borrow_mut();
        let new = || Remote(Rc::new(Inner { store: store.clone(), stores: self.stores.clone(), accounts: Accounts::default() }));
        Rc::new(remotes.entry(store.name.clone()).or_insert_with(new).clone())
    }
}

/// The blobs in one store. Lives on its core.
#[derive(Clone)]
struct Remote(Rc<Inner>);

struct Inner {
    store: Arc<Store>,
    stores: Stores,
    accounts: Accounts,
}

impl Inner {
    /// What all names of a tenant's objects begin with.
    fn home(&self, tenant: &str) -> Place {
        Place { store: self.store.clone(), key: format!("{}{}/", self.store.settings.prefix, folder_of(tenant)) }
    }

    fn place(&self, tenant: &str, path: &str) -> Result<Place, Fault> {
        path::check_ours(path).map_err(|rule| forbidden("path", rule))?;
        // What the library trims would be another blob's name.
        if path.trim() != path {
            return Err(forbidden("path", "no blank at its beginning or end, in a store"));
        }
        let mut place = self.home(tenant);
        place.key.push_str(path);
        if place.key.len() > KEY_BYTES_MAX {
            return Err(forbidden("path", "with what a store puts before it at most 1024 bytes"));
        }
        Ok(place)
    }

    fn account(&self, tenant: &str) -> Option<Rc<Account>> {
        self.store.settings.bytes_max.map(|bytes_max| self.accounts.of(tenant, bytes_max))
    }
}

impl Remote {
    /// `bytes`: the size, where it is known.
    async fn create(&self, tenant: &str, path: &str, overwrite: bool, bytes: Option<u64>) -> Result<Growing, Fault> {
        let inner = &self.0;
        let place = inner.place(tenant, path)?;
        if !overwrite && !inner.store.settings.if_absent {
            return Err(forbidden("overwrite", "true: this store cannot refuse to replace what is there"));
        }
        if bytes.is_some_and(|bytes| bytes > OBJECT_BYTES_MAX) {
            return Err(fault::too_large());
        }
        let open = |account| {
            let (stores, name) = (inner.stores.clone(), inner.store.name.clone());
            Reservation::open(account, stores, inner.home(tenant), name, path.to_owned())
        };
        let mut reservation = inner.account(tenant).map(open);
        if let (Some(reservation), Some(bytes)) = (&mut reservation, bytes) {
            reservation.grow(bytes).await?;
        }
        // Only to tell whether something was replaced, and by how much the tenant's total changes.
        let before = match overwrite {
            true => inner.stores.look(place.clone()).await.map_err(|error| fault::of(&error, Effected::None))?,
            false => None,
        };
        let writing = inner.stores.write(place.clone(), !overwrite, bytes).map_err(|error| fault::of(&error, Effected::None))?;
        let (hasher, known) = (Sha256::new(), bytes.is_some());
        Ok(Growing { remote: self.clone(), place, before, overwrite, writing, reservation, known, size: 0, hasher })
    }

    async fn open(&self, tenant: &str, path: &str) -> Result<Reading, Fault> {
        let place = self.0.place(tenant, path)?;
        let found = self.0.stores.look(place.clone()).await.map_err(|error| fault::of(&error, Effected::None))?;
        let Some(Found { size, etag }) = found else { return Err(fault::nothing_there()) };
        Ok(Reading::new(self.0.stores.clone(), place, size, etag))
    }

    /// Ok if exactly this content stands there.
    async fn agree(&self, place: Place, size: u64, sha256: &[u8; 32]) -> Result<(), Fault> {
        let found = self.0.stores.look(place.clone()).await.map_err(|error| fault::of(&error, Effected::None))?;
        // It was there a moment ago: who removed it may be followed by another try.
        let Some(found) = found else { return Err(fault::contended()) };
        if found.size != size {
            return Err(fault::taken());
        }
        let blob = Reading::new(self.0.stores.clone(), place, found.size, found.etag);
        let (mut hasher, mut read) = (Sha256::new(), 0);
        while read < size {
            let chunk = blob.read(read, PIECE_BYTES_MAX).await?;
            if chunk.is_empty() {
                return Err(fault::taken());
            }
            read += chunk.len() as u64;
            hash(&mut hasher, &chunk).await;
        }
        if hasher.finalize()[..] == sha256[..] { Ok(()) } else { Err(fault::taken()) }
    }
}

impl Blobs for Remote {
    fn put<'a>(&'a self, tenant: &'a str, path: &'a str, content: Bytes, overwrite: bool) -> Local<'a, Result<Stored, Fault>> {
        Box::pin(async move {
            let mut growing = self.create(tenant, path, overwrite, Some(content.len() as u64)).await?;
            growing.take(content).await?;
            growing.end().await
        })
    }

    fn create<'a>(&'a self, tenant: &'a str, path: &'a str, overwrite: bool) -> Local<'a, Result<Box<dyn BlobWriter>, Fault>> {
        Box::pin(async move { Ok(Box::new(self.create(tenant, path, overwrite, None).await?) as Box<dyn BlobWriter>) })
    }

    fn open<'a>(&'a self, tenant: &'a str, path: &'a str) -> Local<'a, Result<Box<dyn Blob>, Fault>> {
        Box::pin(async move { Ok(Box::new(self.open(tenant, path).await?) as Box<dyn Blob>) })
    }
}

/// A blob on its way into a store. Lives on its core.
struct Growing {
    remote: Remote,
    place: Place,
    /// What stood there, where it is replaced.
    before: Option<Found>,
    overwrite: bool,
    writing: Writing,
    reservation: Option<Reservation>,
    /// The whole size was reserved at the beginning.
    known: bool,
    size: u64,
    hasher: Sha256,
}

impl Growing {
    async fn take(&mut self, mut piece: Bytes) -> Result<(), Fault> {
        if self.size + piece.len() as u64 > OBJECT_BYTES_MAX {
            return Err(fault::too_large());
        }
        if let (Some(reservation), false) = (&mut self.reservation, self.known) {
            reservation.grow(piece.len() as u64).await?;
        }
        while !piece.is_empty() {
            let next = piece.split_to(piece.len().min(PIECE_BYTES_MAX));
            self.size += next.len() as u64;
            hash(&mut self.hasher, &next).await;
            if self.writing.pieces.send(Piece::Data(next)).await.is_err() {
                return Err(self.failed().await);
            }
        }
        Ok(())
    }

    /// The transfer ended before its time: why.
    async fn failed(&mut self) -> Fault {
        match (&mut self.writing.answer).await {
            Ok(Err(error)) => fault::of(&error, Effected::None),
            Ok(Ok(_)) | Err(_) => fault::gone(),
        }
    }

    async fn end(mut self) -> Result<Stored, Fault> {
        if self.writing.pieces.send(Piece::End).await.is_err() {
            return Err(self.failed().await);
        }
        // From here on the store may have it, whatever is heard of that.
        if let Some(reservation) = &mut self.reservation {
            reservation.doubt();
        }
        let answer = (&mut self.writing.answer).await;
        let sha256: [u8; 32] = self.hasher.finalize().into();
        let stored = |created| Stored { size: self.size, created, sha256 };
        match answer {
            Ok(Ok(_)) => {
                let replaced = self.before.as_ref().map_or(0, |found| found.size);
                if let Some(reservation) = self.reservation {
                    reservation.keep(self.size, replaced);
                }
                Ok(stored(self.before.is_none()))
            }
            Ok(Err(StoreError { trouble: Trouble::Taken, .. })) if !self.overwrite => {
                if let Some(reservation) = self.reservation {
                    reservation.keep(0, 0);
                }
                self.remote.agree(self.place, self.size, &sha256).await.map(|()| stored(false))
            }
            Ok(Err(error)) => {
                let effect = fault::touched(&error);
                if let (Some(reservation), Effected::None) = (self.reservation, effect) {
                    reservation.keep(0, 0);
                }
                Err(fault::of(&error, effect))
            }
            Err(_) => Err(fault::gone().with_effect(Effected::Unknown)),
        }
    }
}

impl BlobWriter for Growing {
    fn write<'a>(&'a mut self, piece: Bytes) -> Local<'a, Result<(), Fault>> {
        Box::pin(self.take(piece))
    }

    fn finish(self: Box<Self>) -> Local<'static, Result<Stored, Fault>> {
        Box::pin(self.end())
    }
}

async fn hash(hasher: &mut Sha256, bytes: &[u8]) {
    for stride in bytes.chunks(STRIDE_BYTES) {
        hasher.update(stride);
        glommio::yield_if_needed().await;
    }
}

/// The name of a content, under a folder if there is one.
pub(super) fn name_of(folder: Option<&str>, sha256: &[u8; 32]) -> String {
    match folder {
        Some(folder) => format!("{folder}/{}", hex(sha256)),
        None => hex(sha256),
    }
}
