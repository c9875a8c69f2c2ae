//! `fs.blob_put` and `fs.blob_get`: a tenant's own blobs.
//!
//! A put without `overwrite` is conditional: run again, it finds its own content and agrees. With `overwrite` it is
//! idempotent: run again, it leaves the same content; between different steps no order is promised anyway.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::Serialize;
use shards::block::{Block, BlockCx, BlockInfo, Local};
use shards::ids::hex;
use shards::outcome::{Code, Fault};
use shards::step::EffectClass;

use super::inputs::{Inputs, forbidden};
use super::outputs::{json, push_base64, push_text};
use super::source::read_whole;
use super::{Checked, path};

pub(super) static PUT: BlockInfo =
    BlockInfo { name: "fs.blob_put", aliases: &[LEGACY_PUT, "fs.put"], version: "1.0.0", effect: EffectClass::Conditional };

pub(super) static GET: BlockInfo =
    BlockInfo { name: "fs.blob_get", aliases: &["fs_blob_get", "fs.get"], version: "1.0.0", effect: EffectClass::Pure };

/// Under this name `overwrite` is true unless told: so it was in the platform's older worker.
const LEGACY_PUT: &str = "fs_blob_put";
/// Largest blob that one step returns, in bytes: as text and as base64 it stays below what the journal takes.
pub(super) const GET_BYTES_MAX: u64 = 8 << 20;
const _: () = assert!(GET_BYTES_MAX * (6 + 2) <= shards::limits::MESSAGE_BYTES_MAX as u64);

pub(super) struct Put;
pub(super) struct Get;

struct PutTask<'a> {
    path: Cow<'a, str>,
    content: Content<'a>,
    overwrite: Option<bool>,
}

enum Content<'a> {
    Text(Cow<'a, str>),
    Bytes(Vec<u8>),
}

/// The inputs of a put with its default written out.
#[derive(Serialize)]
struct PutInputs<'a> {
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<String>,
    overwrite: bool,
}

#[derive(Serialize)]
struct PutOutputs<'a> {
    path: &'a str,
    size: u64,
    created: bool,
    sha256: String,
}

fn read_path<'a>(inputs: &Inputs<'a>) -> Result<Cow<'a, str>, Fault> {
    let blob = inputs.text_needed("path")?;
    path::check(&blob).map_err(|rule| forbidden("path", rule))?;
    Ok(blob)
}

fn read_put(inputs: &[u8]) -> Result<PutTask<'_>, Fault> {
    let inputs = Inputs::read(inputs)?;
    let path = read_path(&inputs)?;
    inputs.exactly_one(&["content", "bytes"])?;
    let content = match inputs.text("content")? {
        Some(text) => Content::Text(text),
        None => Content::Bytes(inputs.bytes("bytes")?.unwrap_or_default()),
    };
    Ok(PutTask { path, content, overwrite: inputs.flag("overwrite")? })
}

pub(super) fn check_put(name: &str, inputs: &[u8]) -> Result<Checked, Fault> {
    let task = read_put(inputs)?;
    let effect = |overwrite| if overwrite { EffectClass::Idempotent } else { EffectClass::Conditional };
    match task.overwrite {
        None if name == LEGACY_PUT => {
            let (content, bytes) = match &task.content {
                Content::Text(text) => (Some(text.as_ref()), None),
                Content::Bytes(bytes) => (None, Some(BASE64.encode(bytes))),
            };
            let spelled_out = json(&PutInputs { path: &task.path, content, bytes, overwrite: true });
            Ok(Checked { inputs: Some(spelled_out), ..Checked::as_sent(effect(true)) })
        }
        overwrite => Ok(Checked::as_sent(effect(overwrite.unwrap_or(false)))),
    }
}

pub(super) fn check_get(_name: &str, inputs: &[u8]) -> Result<Checked, Fault> {
    read_path(&Inputs::read(inputs)?).map(|_| Checked::as_sent(EffectClass::Pure))
}

impl Block for Put {
    fn info(&self) -> &'static BlockInfo {
        &PUT
    }

    fn execute<'a>(&'a self, cx: BlockCx) -> Local<'a, Result<Bytes, Fault>> {
        Box::pin(async move {
            let task = read_put(&cx.inputs)?;
            let content = match task.content {
                Content::Text(Cow::Borrowed(text)) => cx.inputs.slice_ref(text.as_bytes()),
                Content::Text(Cow::Owned(text)) => Bytes::from(text),
                Content::Bytes(bytes) => Bytes::from(bytes),
            };
            let stored = cx.blobs.put(&cx.tenant, &task.path, content, task.overwrite.unwrap_or(false)).await?;
            let sha256 = hex(&stored.sha256);
            Ok(json(&PutOutputs { path: &task.path, size: stored.size, created: stored.created, sha256 }))
        })
    }
}

impl Block for Get {
    fn info(&self) -> &'static BlockInfo {
        &GET
    }

    fn execute<'a>(&'a self, cx: BlockCx) -> Local<'a, Result<Bytes, Fault>> {
        Box::pin(async move {
            let path = read_path(&Inputs::read(&cx.inputs)?)?;
            let blob = cx.blobs.open(&cx.tenant, &path).await?;
            if blob.size() > GET_BYTES_MAX {
                return Err(too_large(blob.size()));
            }
            let content = read_whole(&*blob).await?;
            let mut out = Vec::with_capacity(content.len() * 3 + path.len() + 64);
            out.extend_from_slice(b"{\"path\":");
            out.extend_from_slice(&json(&path));
            out.extend_from_slice(format!(",\"size\":{}", content.len()).as_bytes());
            _ = push_text(&mut out, "content", &content).await;
            push_base64(&mut out, "bytes", &content).await;
            out.push(b'}');
            Ok(Bytes::from(out))
        })
    }
}

fn too_large(size: u64) -> Fault {
    Fault::new(Code::ExecutionFailed, "The blob is larger than one step may return.")
        .with_details(format!(r#"{{"pointer":"/path","size":{size},"size_max":{GET_BYTES_MAX}}}"#))
}
