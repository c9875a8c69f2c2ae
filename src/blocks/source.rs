//! What a block computes over: a text, bytes in base64 or a blob (the worker's own or in a store), exactly one of them, taken in strides between which others
//! run.

use std::borrow::Cow;

use shards::block::{Blob, BlockCx};
use shards::outcome::{Code, Fault};

use super::inputs::{Inputs, forbidden};
use super::{Reach, path};

/// Taken between two chances for others to run, in bytes: a fraction of a millisecond.
const STRIDE_BYTES: usize = 64 << 10;
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
        if blob.size() > bytes_max {
            let (size, sentence) = (blob.size(), "The blob is larger than one step may take in one piece.");
            let details = format!(r#"{{"pointer":"/path","size":{size},"size_max":{bytes_max}}}"#);
            return Err(Fault::new(Code::ExecutionFailed, sentence).with_details(details));
        }
        read_whole(&*blob).await.map(Cow::Owned)
    }

    /// Hands all of it to `take`, stride by stride, and gives its size in bytes.
    pub(super) async fn each(&self, reach: &Reach, cx: &BlockCx, mut take: impl FnMut(&[u8])) -> Result<u64, Fault> {
        let path = match self {
            Source::Text(text) => return Ok(strides(text.as_bytes(), &mut take).await),
            Source::Bytes(bytes) => return Ok(strides(bytes, &mut take).await),
            Source::Blob { path, .. } => path,
        };
        let blob = reach.blobs(cx, self.connector(), "connector")?.open(&cx.tenant, path).await?;
        let mut size = 0;
        loop {
            let chunk = blob.read(size, READ_BYTES).await?;
            if chunk.is_empty() {
                return Ok(size);
            }
            size += strides(&chunk, &mut take).await;
        }
    }
}

pub(super) async fn strides(bytes: &[u8], take: &mut impl FnMut(&[u8])) -> u64 {
    for stride in bytes.chunks(STRIDE_BYTES) {
        take(stride);
        glommio::yield_if_needed().await;
    }
    bytes.len() as u64
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
