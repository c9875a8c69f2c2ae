//! What a block computes over: a text, bytes in base64 or a blob (the worker's own or in a store), exactly one of them. What is short
//! is computed over here; what is longer, on compute threads, piece by piece.

use std::borrow::Cow;

use bytes::Bytes;
use shards::block::{Blob, BlockCx};
use shards::outcome::{Code, Fault};
use shards::step::Lane;

use crate::compute::Compute;
use crate::policy::narrow::{Guardrails, Scopes};

use super::inputs::{Inputs, forbidden};
use super::sandbox::{Planned, places};
use super::{Ask, BLOBS, NO_SCOPES, Reach, path};

/// Computed over on the shard, in bytes: a fraction of a millisecond with every algorithm that we have, and not more than handing
/// it to another thread costs.
pub(super) const HERE_BYTES: usize = 64 << 10;
/// Read from a blob at once, in bytes.
const READ_BYTES: usize = 256 << 10;

/// See the module.
pub(super) enum Source<'a> {
    Text(Cow<'a, str>),
    Bytes(Vec<u8>),
    /// In the store of this name, or the worker's own.
    Blob {
        path: Cow<'a, str>,
        connector: Option<Cow<'a, str>>,
    },
}

impl<'a> Source<'a> {
    /// The one of `text`, `bytes` and `path` that is there.
    pub(super) fn read(inputs: &Inputs<'a>) -> Result<Self, Fault> {
        inputs.exactly_one(&["text", "bytes", "path"])?;
        let connector = inputs.text("connector")?;
        if connector.is_some() && inputs.json("path").is_none() {
            return Err(forbidden("connector", "only beside path"));
        }
        if let Some(text) = inputs.text("text")? {
            return Ok(Source::Text(text));
        }
        if let Some(bytes) = inputs.bytes("bytes")? {
            return Ok(Source::Bytes(bytes));
        }
        let blob = inputs.text_needed("path")?;
        path::check(&blob).map_err(|rule| forbidden("path", rule))?;
        Ok(Source::Blob { path: blob, connector })
    }

    /// The store that it is read from, if it is.
    pub(super) fn connector(&self) -> Option<&str> {
        match self {
            Source::Blob { connector, .. } => connector.as_deref(),
            Source::Text(_) | Source::Bytes(_) => None,
        }
    }

    /// The field that it stands in and its size in bytes, where the inputs hold it themselves.
    pub(super) fn inline(&self) -> Option<(&'static str, u64)> {
        match self {
            Source::Text(text) => Some(("text", text.len() as u64)),
            Source::Bytes(bytes) => Some(("bytes", bytes.len() as u64)),
            Source::Blob { .. } => None,
        }
    }

    /// All of it in one piece; a blob of more than `bytes_max` is not read.
    pub(super) async fn whole(&self, reach: &Reach, cx: &BlockCx, bytes_max: u64) -> Result<Cow<'_, [u8]>, Fault> {
        let path = match self {
            Source::Text(text) => return Ok(Cow::Borrowed(text.as_bytes())),
            Source::Bytes(bytes) => return Ok(Cow::Borrowed(bytes)),
            Source::Blob { path, .. } => path,
        };
        let blob = reach.blobs(cx, self.connector(), "connector")?.open(&cx.tenant, path).await?;
        Guardrails::read(&cx.guardrails)?.fits(blob.size(), "path")?;
        if blob.size() > bytes_max {
            let (size, sentence) = (blob.size(), "The blob is larger than one step may take in one piece.");
            let details = format!(r#"{{"pointer":"/path","size":{size},"size_max":{bytes_max}}}"#);
            return Err(Fault::new(Code::ExecutionFailed, sentence).with_details(details));
        }
        read_whole(&*blob).await.map(Cow::Owned)
    }

    /// A plan with what would be read.
    pub(super) fn planned(&self, ask: &Ask<'_>, mut planned: Planned) -> Result<Planned, Fault> {
        let bytes: &[u8] = match self {
            Source::Text(text) => text.as_bytes(),
            Source::Bytes(bytes) => bytes,
            Source::Blob { path, .. } => {
                planned.does.insert("read".to_owned(), serde_json::json!({ "path": path }));
                return Ok(planned.at("read_from", places::store(ask, self.connector(), "connector")?));
            }
        };
        planned.does.insert("over".to_owned(), serde_json::json!({ "bytes": bytes.len() }));
        Ok(planned)
    }

    /// What a step with it must not be left without.
    pub(super) fn scopes(&self) -> Scopes {
        if self.inline().is_some() { NO_SCOPES } else { BLOBS }
    }

    /// Where a step with it waits.
    pub(super) fn lane(&self) -> Lane {
        match self.inline() {
            Some((_, size)) if size <= HERE_BYTES as u64 => Lane::Io,
            // Its store is what it mostly waits for.
            None if self.connector().is_some() => Lane::Io,
            _ => Lane::Cpu,
        }
    }

    /// Takes all of it into `state`, in order; gives that and the size in bytes.
    pub(super) async fn fold<S: Send + 'static>(
        &self,
        reach: &Reach,
        cx: &BlockCx,
        mut state: S,
        take: fn(&mut S, &[u8]),
    ) -> Result<(S, u64), Fault> {
        let bytes = match self {
            Source::Text(text) => text.as_bytes(),
            Source::Bytes(bytes) => bytes,
            Source::Blob { path, .. } => {
                let blob = reach.blobs(cx, self.connector(), "connector")?.open(&cx.tenant, path).await?;
                Guardrails::read(&cx.guardrails)?.fits(blob.size(), "path")?;
                return fold_blob(&*blob, &reach.compute, state, take).await;
            }
        };
        let size = bytes.len() as u64;
        if bytes.len() <= HERE_BYTES {
            take(&mut state, bytes);
            return Ok((state, size));
        }
        for piece in bytes.chunks(READ_BYTES) {
            state = taken(&reach.compute, state, Bytes::copy_from_slice(piece), take).await;
        }
        Ok((state, size))
    }
}

/// While one piece is computed over, the next is read.
async fn fold_blob<S: Send + 'static>(
    blob: &dyn Blob,
    compute: &Compute,
    mut state: S,
    take: fn(&mut S, &[u8]),
) -> Result<(S, u64), Fault> {
    let mut piece = blob.read(0, READ_BYTES).await?;
    let mut size = piece.len() as u64;
    let here = blob.size() <= HERE_BYTES as u64;
    while !piece.is_empty() {
        if here {
            take(&mut state, &piece);
            piece = blob.read(size, READ_BYTES).await?;
            size += piece.len() as u64;
            continue;
        }
        let (next, state_then) = futures_util::join!(blob.read(size, READ_BYTES), taken(compute, state, piece, take));
        (piece, state) = (next?, state_then);
        size += piece.len() as u64;
    }
    Ok((state, size))
}

async fn taken<S: Send + 'static>(compute: &Compute, mut state: S, piece: Bytes, take: fn(&mut S, &[u8])) -> S {
    let take_in = move || {
        take(&mut state, &piece);
        state
    };
    compute.run(take_in).await
}

/// Hands all of `bytes` to `take`, stride by stride, between which others run.
pub(super) async fn strides(bytes: &[u8], take: &mut impl FnMut(&[u8])) {
    for stride in bytes.chunks(HERE_BYTES) {
        take(stride);
        glommio::yield_if_needed().await;
    }
}

/// All of a blob. One that grows meanwhile (nobody here does that) is read up to the size it had.
pub(super) async fn read_whole(blob: &dyn Blob) -> Result<Vec<u8>, Fault> {
    read_part(blob, 0, blob.size()).await
}

/// The bytes from `start` to `end`, which fit in memory.
pub(super) async fn read_part(blob: &dyn Blob, start: u64, end: u64) -> Result<Vec<u8>, Fault> {
    let size = end.saturating_sub(start) as usize;
    let mut content = Vec::with_capacity(size);
    blob.until(end);
    while content.len() < size {
        let chunk = blob.read(start + content.len() as u64, READ_BYTES.min(size - content.len())).await?;
        if chunk.is_empty() {
            break;
        }
        content.extend_from_slice(&chunk);
    }
    Ok(content)
}
