//! The plan of one shard: everything it needs, gathered before its thread starts. Crosses to its core once and is consumed.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use crate::block::{Blobs, Block, Outputs};
use crate::envelope::Envelope;
use crate::ids::{Salt, Text};
use crate::limits::Limits;

use super::ports::{Control, Gauge, Inbound, Outbound};
use super::rt::Clock;
use super::tenure::{Grant, Lease};

/// The plan of one shard.
pub struct Seat<W> {
    /// Which shard.
    pub shard: u16,
    /// Of how many.
    pub shards: u16,
    /// Which layout of shards and partitions the journal has, and so the folder it lies in.
    pub generation: u64,
    /// The core it is pinned to.
    pub core: usize,
    /// The journal's directory.
    pub dir: PathBuf,
    /// Stands in every segment; a journal of another worker is refused.
    pub worker_id: String,
    /// The deployment's secret.
    pub salt: Salt,
    /// The bounds.
    pub limits: Limits,
    /// `name@version` of every block, by id.
    pub block_names: Vec<Text>,
    /// Whether observers are told of lifecycles.
    pub events: bool,
    /// Interval at which stream deliveries are kept alive, in microseconds.
    pub progress_us: u64,
    /// Segment size, in bytes.
    pub segment_bytes: u64,
    /// Monotonic time, the same for all shards.
    pub clock: Clock,
    /// From the edge.
    pub inbox: flume::Receiver<Inbound>,
    /// From whoever controls the worker; drained first.
    pub control: flume::Receiver<Control>,
    /// The word to begin, once.
    pub grants: flume::Receiver<Grant>,
    /// Whether the worker still owns what it works on.
    pub lease: Lease,
    /// To the edge.
    pub outbound: flume::Sender<Outbound>,
    /// To the keeper.
    pub envelopes: flume::Sender<Envelope>,
    /// What others may see of this shard.
    pub gauge: Arc<Gauge>,
    /// Makes what cannot cross cores, on the shard's own.
    pub furnish: Box<dyn FnOnce(Boot) -> Furniture<W> + Send>,
}

/// What a shard knows of itself once its journal is open.
#[derive(Clone, Copy, Debug)]
pub struct Boot {
    /// Which shard.
    pub shard: u16,
    /// Which start of this worker, from 1.
    pub boot: u32,
}

/// What is made on the shard's own core.
pub struct Furniture<W> {
    /// The translation of messages.
    pub wire: W,
    /// By id.
    pub blocks: Vec<Rc<dyn Block>>,
    /// The tenants' blobs.
    pub blobs: Rc<dyn Blobs>,
    /// Where outputs go that are too large for a message.
    pub outputs: Rc<dyn Outputs>,
}
