//! The thread that speaks to object stores: one tokio runtime, on no shard's core, apart from the one that looks names up.
//!
//! Shards hand over an [`Order`] and wait for its answer; bytes go through channels of a few small pieces each way, so nothing
//! is ever here as a whole: of an upload two parts at most, of a download what one channel holds. Whoever waits may go: what was
//! asked for ends then, its connection with it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::policy::stores::Store;

use super::Offload;

mod dialer;
mod error;
mod service;
mod transfer;
mod transport;

pub use error::{StoreError, Trouble};
use service::{Secrets, Service};

/// Orders that wait for the thread.
const QUEUE_MAX: usize = 4_096;
/// The largest object that is written, in bytes.
pub const OBJECT_BYTES_MAX: u64 = 16 << 30;
/// The largest piece of an object between a shard and the thread, in bytes.
pub const PIECE_BYTES_MAX: usize = 256 << 10;
/// Pieces of one transfer that may be under way.
pub const PIECES_MAX: usize = 4;
/// What all uploads together may keep here, in bytes; a transfer waits for its share.
pub const UPLOAD_BYTES_MAX: u64 = 256 << 20;
/// What one upload keeps at most, in bytes: a part that is sent, one that is collected, and what is under way to it.
pub const UPLOAD_SHARE_BYTES: u64 = (2 * transfer::PART_BYTES + PIECES_MAX * PIECE_BYTES_MAX) as u64;
/// Downloads at once; each keeps what is under way to its shard, and a connection's buffer.
const READS_MAX: usize = 128;
/// Shares are counted in so many bytes.
const SHARE_UNIT_BYTES: u64 = 64 << 10;
const _: () = assert!(UPLOAD_SHARE_BYTES * 16 <= UPLOAD_BYTES_MAX);

/// What a shard asks for. Crosses cores.
enum Order {
    Look { place: Place, answer: Answer<Option<Found>> },
    Measure { place: Place, answer: Answer<u64> },
    Read { place: Place, range: Range<u64>, etag: Option<String>, pieces: mpsc::Sender<Result<Bytes, StoreError>> },
    Write { place: Place, if_absent: bool, bytes: Option<u64>, pieces: mpsc::Receiver<Piece>, answer: Answer<Found> },
}

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// An object, or what the names of objects begin with. Crosses cores.
#[derive(Clone, Debug)]
pub struct Place {
    /// Where it is kept.
    pub store: Arc<Store>,
    /// Its whole name there.
    pub key: String,
}

/// What a store says of an object. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// In bytes.
    pub size: u64,
    /// Another one stands for another content, where the store gives any.
    pub etag: Option<String>,
}

/// What an object is written of. Crosses cores.
pub enum Piece {
    /// The next bytes, at most [`PIECE_BYTES_MAX`].
    Data(Bytes),
    /// That was all; without it there is no object.
    End,
}

/// What the thread keeps just now. Crosses cores.
#[derive(Debug, Default)]
pub struct Load {
    /// Of all uploads, in bytes.
    pub bytes: AtomicU64,
    /// The most that this has ever been.
    pub bytes_peak: AtomicU64,
}

/// An object that is being written: pieces in, and at the end what came of it. Dropped, it leaves nothing.
pub struct Writing {
    /// Takes a few pieces and then makes one wait.
    pub pieces: mpsc::Sender<Piece>,
    /// What came of it; also before the end, if it failed.
    pub answer: oneshot::Receiver<Result<Found, StoreError>>,
}

/// The way to the thread, which starts with the first order. Crosses cores; cloned for each that asks.
#[derive(Clone)]
pub struct Stores(Arc<State>);

struct State {
    offload: Offload,
    orders: OnceLock<flume::Sender<Order>>,
    load: Arc<Load>,
}

impl Stores {
    /// `offload` looks the stores' names up.
    pub fn new(offload: Offload) -> Stores {
        Stores(Arc::new(State { offload, orders: OnceLock::new(), load: Arc::default() }))
    }

    /// What the thread keeps just now.
    pub fn load(&self) -> &Load {
        &self.0.load
    }

    fn send(&self, order: Order) -> Result<(), StoreError> {
        let orders = self.0.orders.get_or_init(|| {
            let (orders, asked) = flume::bounded(QUEUE_MAX);
            let (offload, load) = (self.0.offload.clone(), self.0.load.clone());
            // Without a thread or a runtime whoever asks is told that the thread has gone.
            let started = std::thread::Builder::new().name("stores".to_owned()).spawn(move || {
                match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => runtime.block_on(serve(asked, offload, load)),
                    Err(error) => tracing::error!(%error, "no runtime for object stores"),
                }
            });
            if let Err(error) = started {
                tracing::error!(%error, "no thread for object stores");
            }
            orders
        });
        orders.try_send(order).map_err(|_| StoreError::full())
    }

    /// What stands in this place, if anything does.
    ///
    /// # Errors
    /// The store cannot say.
    pub async fn look(&self, place: Place) -> Result<Option<Found>, StoreError> {
        let (answer, waiting) = oneshot::channel();
        self.send(Order::Look { place, answer })?;
        waiting.await.unwrap_or_else(|_| Err(StoreError::gone()))
    }

    /// What all objects whose names begin so take together, in bytes.
    ///
    /// # Errors
    /// The store cannot say.
    pub async fn measure(&self, place: Place) -> Result<u64, StoreError> {
        let (answer, waiting) = oneshot::channel();
        self.send(Order::Measure { place, answer })?;
        waiting.await.unwrap_or_else(|_| Err(StoreError::gone()))
    }

    /// The bytes of an object, in order; where it has another `etag` by now, an error.
    ///
    /// # Errors
    /// Too much is under way; what the store says comes with the pieces.
    pub fn read(
        &self,
        place: Place,
        range: Range<u64>,
        etag: Option<String>,
    ) -> Result<mpsc::Receiver<Result<Bytes, StoreError>>, StoreError> {
        let (pieces, arriving) = mpsc::channel(PIECES_MAX);
        self.send(Order::Read { place, range, etag, pieces })?;
        Ok(arriving)
    }

    /// Begins an object; `bytes` is its size, where that is known. `if_absent`: what stands there is not replaced.
    ///
    /// # Errors
    /// Too much is under way.
    pub fn write(&self, place: Place, if_absent: bool, bytes: Option<u64>) -> Result<Writing, StoreError> {
        let (pieces, taken) = mpsc::channel(PIECES_MAX);
        let (answer, waiting) = oneshot::channel();
        self.send(Order::Write { place, if_absent, bytes, pieces: taken, answer })?;
        Ok(Writing { pieces, answer: waiting })
    }
}

/// What the thread keeps of its own.
struct Desk {
    offload: Offload,
    load: Arc<Load>,
    /// By the store's name: names are unique in a process.
    services: HashMap<String, Service>,
    uploads: Arc<Semaphore>,
    reads: Arc<Semaphore>,
}

impl Desk {
    /// The service of a store, with its secrets as they are now.
    fn service(&mut self, store: &Arc<Store>) -> Result<Service, StoreError> {
        let secrets = Secrets::read(store)?;
        if let Some(service) = self.services.get(&store.name).filter(|service| service.mark == secrets.mark) {
            return Ok(service.clone());
        }
        let service = Service::build(store, &secrets, &self.offload)?;
        self.services.insert(store.name.clone(), service.clone());
        Ok(service)
    }
}

async fn serve(asked: flume::Receiver<Order>, offload: Offload, load: Arc<Load>) {
    let uploads = Arc::new(Semaphore::new((UPLOAD_BYTES_MAX / SHARE_UNIT_BYTES) as usize));
    let mut desk = Desk { offload, load, services: HashMap::new(), uploads, reads: Arc::new(Semaphore::new(READS_MAX)) };
    while let Ok(order) = asked.recv_async().await {
        take(&mut desk, order);
    }
}

fn take(desk: &mut Desk, order: Order) {
    let place = match &order {
        Order::Look { place, .. } | Order::Measure { place, .. } | Order::Read { place, .. } | Order::Write { place, .. } => {
            place
        }
    };
    let patience = Duration::from_millis(place.store.settings.stall_ms);
    let service = match desk.service(&place.store) {
        Ok(service) => service,
        Err(error) => return refuse(order, error),
    };
    match order {
        Order::Look { place, answer } => drop(tokio::spawn(async move { transfer::look(&service, &place.key, answer).await })),
        Order::Measure { place, answer } => {
            drop(tokio::spawn(async move { transfer::measure(&service, &place.key, answer).await }));
        }
        Order::Read { place, range, etag, pieces } => {
            let reads = desk.reads.clone();
            tokio::spawn(async move {
                let Ok(Ok(_turn)) = tokio::time::timeout(patience, reads.acquire_owned()).await else {
                    return drop(pieces.send(Err(StoreError::full())).await);
                };
                transfer::read(&service, &place.key, range, etag.as_deref(), pieces).await;
            });
        }
        Order::Write { place, if_absent, bytes, pieces, answer } => {
            let share = bytes.unwrap_or(u64::MAX).saturating_add(PIECE_BYTES_MAX as u64).min(UPLOAD_SHARE_BYTES);
            let (uploads, units, load) = (desk.uploads.clone(), share.div_ceil(SHARE_UNIT_BYTES) as u32, desk.load.clone());
            tokio::spawn(async move {
                let Ok(Ok(_share)) = tokio::time::timeout(patience, uploads.acquire_many_owned(units)).await else {
                    return drop(answer.send(Err(StoreError::full())));
                };
                transfer::write(&service, &place.key, if_absent, pieces, answer, &load).await;
            });
        }
    }
}

fn refuse(order: Order, error: StoreError) {
    match order {
        Order::Look { answer, .. } => drop(answer.send(Err(error))),
        Order::Measure { answer, .. } => drop(answer.send(Err(error))),
        Order::Read { pieces, .. } => drop(pieces.try_send(Err(error))),
        Order::Write { answer, .. } => drop(answer.send(Err(error))),
    }
}
