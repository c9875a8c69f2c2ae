//! What a block is: [`Block`] with its [`BlockInfo`], and the [`BlockCx`] through which alone it reaches the outside.
//!
//! Blocks are written in the root crate. The trait lives here because the runtime runs them; the pure machine knows only
//! their [`BlockInfo`].

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use bytes::Bytes;

use crate::ids::{Key, Text};
use crate::outcome::Fault;
use crate::step::{EffectClass, Lane, Needs};

/// A future that stays on its core.
pub type Local<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// What the worker says of a block. Shared, never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    /// The canonical name.
    pub name: &'static str,
    /// Other names that senders use.
    pub aliases: &'static [&'static str],
    /// Semantic version, as journaled: `name@version`.
    pub version: &'static str,
    /// What running it twice may do, unless its inputs say otherwise.
    pub effect: EffectClass,
}

/// Which outputs of earlier steps will do. Lives on its core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheWish {
    /// Those under this name.
    pub key: Text,
    /// No older than this, in milliseconds; and so long these are kept.
    pub ttl_ms: u64,
}

/// What a block needs of the machine for a step that says nothing else. Lives on its core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Where the step waits.
    pub lane: Lane,
    /// Memory that is kept for it, in bytes.
    pub memory_bytes: u64,
    /// The block has a form that runs on a device.
    pub device_form: bool,
    /// The memory where the step waits for one, in bytes.
    pub memory_on_device_bytes: u64,
}

/// A kind of step. Lives on its core; there is one of each per shard.
pub trait Block {
    /// Who it is.
    fn info(&self) -> &'static BlockInfo;

    /// The verdict of a try that needs no waiting, computed at once; `None` if this one must be run.
    fn instant(&self, _cx: &BlockCx) -> Option<Result<Bytes, Fault>> {
        None
    }

    /// Runs one try to its end and gives the JSON text of its outputs.
    ///
    /// A cancelled or overdue try is dropped at an await, so a block does nothing between awaits that must not be cut.
    /// A block that computes for long yields.
    ///
    /// # Errors
    /// A [`Fault`] that says why, whether another try may help (its code) and what happened outside (its effect).
    fn execute<'a>(&'a self, cx: BlockCx) -> Local<'a, Result<Bytes, Fault>>;
}

/// One try's surroundings. Lives on its core.
#[derive(Clone)]
pub struct BlockCx {
    /// Whose step it is.
    pub tenant: Text,
    /// The step's key: what idempotent effects are marked with.
    pub key: Key,
    /// 1 for the first.
    pub try_number: u32,
    /// What is left of the step's budget as the try begins, in milliseconds.
    pub left_ms: u64,
    /// Which trace it belongs to, where its sender says so.
    pub trace_id: Option<Text>,
    /// JSON text, valid for this block.
    pub inputs: Bytes,
    /// What is kept for it.
    pub needs: Needs,
    /// What it allows itself less than its tenant may: JSON text, empty where it says nothing.
    pub guardrails: Bytes,
    /// Whether outputs of an earlier step will do.
    pub cache: Option<CacheWish>,
    /// The tenant's blobs.
    pub blobs: Rc<dyn Blobs>,
    /// Who hears what the try says while it runs; nobody where it must answer at once, or observers are told nothing.
    pub observers: Option<Rc<dyn Observers>>,
}

impl BlockCx {
    /// Tells observers something: the text of a JSON object, `Progress` of the native profile. Waits while too much of the try's is
    /// on its way. False where nobody hears it.
    pub async fn tell(&self, text: Bytes) -> bool {
        match &self.observers {
            Some(observers) => {
                observers.tell(text).await;
                true
            }
            None => false,
        }
    }
}

/// Who hears what a try says. Lives on its core.
pub trait Observers {
    /// Tells it, in order; waits while too much is on its way. What is said after the step's end is heard by nobody.
    fn tell<'a>(&'a self, text: Bytes) -> Local<'a, ()>;
}

/// A tenant's blobs. Paths are relative, `/`-separated, and never leave the tenant's own root.
pub trait Blobs {
    /// Stores `content` whole or not at all, durable when this returns.
    ///
    /// # Errors
    /// INVALID_INPUT for a path that leaves the root, passes a link or is taken by a folder; EXECUTION_FAILED where
    /// `overwrite` is false and another content stands there; RESOURCE_UNAVAILABLE where the disk refuses.
    fn put<'a>(&'a self, tenant: &'a str, path: &'a str, content: Bytes, overwrite: bool) -> Local<'a, Result<Stored, Fault>>;

    /// Begins a blob whose content comes in pieces: it is there whole once it is finished, or not at all.
    ///
    /// # Errors
    /// As for [`Blobs::put`].
    fn create<'a>(&'a self, tenant: &'a str, path: &'a str, overwrite: bool) -> Local<'a, Result<Box<dyn BlobWriter>, Fault>>;

    /// Opens a blob for reading.
    ///
    /// # Errors
    /// INVALID_INPUT for a path as above or a blob that is not there.
    fn open<'a>(&'a self, tenant: &'a str, path: &'a str) -> Local<'a, Result<Box<dyn Blob>, Fault>>;
}

/// Where outputs are kept that no message should carry. Lives on its core.
pub trait Outputs {
    /// The blobs that keep a tenant's, and what a URI of one of them begins with; its path follows.
    fn of(&self, tenant: &str) -> (Rc<dyn Blobs>, Text);
}

/// A blob that is being written. Lives on its core; dropped unfinished, it leaves nothing.
pub trait BlobWriter {
    /// Appends a piece.
    ///
    /// # Errors
    /// RESOURCE_UNAVAILABLE where the disk refuses.
    fn write<'a>(&'a mut self, piece: Bytes) -> Local<'a, Result<(), Fault>>;

    /// Gives it its name, durable when this returns.
    ///
    /// # Errors
    /// As for [`Blobs::put`].
    fn finish(self: Box<Self>) -> Local<'static, Result<Stored, Fault>>;
}

/// An open blob. Lives on its core. Replacing the blob does not change what an open one reads: no reader sees a mixture.
pub trait Blob {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Nothing from `end` on will be asked for: who fetches ahead need not go further.
    fn until(&self, _end: u64) {}

    /// The bytes from `offset`, at least one and at most `bytes_max`; none only at the end.
    ///
    /// # Errors
    /// RESOURCE_UNAVAILABLE where the disk refuses.
    fn read<'a>(&'a self, offset: u64, bytes_max: usize) -> Local<'a, Result<Bytes, Fault>>;
}

/// What [`Blobs::put`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Size in bytes.
    pub size: u64,
    /// False where exactly this content was there already, or a file was replaced.
    pub created: bool,
    /// SHA-256 of the content.
    pub sha256: [u8; 32],
}
