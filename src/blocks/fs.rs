//! `fs.blob_put` and `fs.blob_get`: a tenant's own blobs, on the worker's disk or in an object store.
//!
//! A put without `overwrite` is conditional: run again, it finds its own content and agrees; so is one whose content gives the
//! name. With `overwrite` it is idempotent: run again, it leaves the same content; between different steps no order is promised
//! anyway. Another blob that is put somewhere goes there piece by piece.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::Serialize;
use serde_json::json as value;
use sha2::{Digest as _, Sha256};
use shards::block::{Blob, Blobs, Block, BlockCx, BlockInfo, Local, Stored};
use shards::ids::hex;
use shards::outcome::{Code, Fault};
use shards::step::EffectClass;

use crate::policy::narrow::Guardrails;

pub(super) mod plan;

use super::inputs::{Inputs, fault, forbidden, missing};
use super::outputs::{json, push_base64, push_text};
use super::remote::name_of;
use super::source::{read_part, strides};
use super::{Ask, Checked, Reach, path};

pub(super) static PUT: BlockInfo =
    BlockInfo { name: "fs.blob_put", aliases: &[LEGACY_PUT, "fs.put"], version: "1.1.0", effect: EffectClass::Conditional };

pub(super) static GET: BlockInfo =
    BlockInfo { name: "fs.blob_get", aliases: &["fs_blob_get", "fs.get"], version: "1.1.0", effect: EffectClass::Pure };

/// Under this name `overwrite` is true unless told: so it was in the platform's older worker.
pub(super) const LEGACY_PUT: &str = "fs_blob_put";
/// Largest blob that one step returns, in bytes: as text and as base64 it stays below what the journal takes.
pub(super) const GET_BYTES_MAX: u64 = 8 << 20;
const _: () = assert!(GET_BYTES_MAX * (6 + 2) <= shards::limits::MESSAGE_BYTES_MAX as u64);
/// Copied from blob to blob at once, in bytes.
const COPY_BYTES: usize = 256 << 10;
/// Positions in a blob: what a number in JSON holds exactly.
const OFFSET_MAX: u64 = 1 << 53;

/// See the module. Lives on its core.
pub(super) struct Put {
    reach: Reach,
}

/// See the module. Lives on its core.
pub(super) struct Get {
    reach: Reach,
}

struct PutTask<'a> {
    connector: Option<Cow<'a, str>>,
    name: Name<'a>,
    content: Content<'a>,
    overwrite: Option<bool>,
    sha256: Option<[u8; 32]>,
}

/// Where a put goes.
enum Name<'a> {
    /// There.
    Path(Cow<'a, str>),
    /// To the name that its content has, under a folder if one is named.
    Content(Option<Cow<'a, str>>),
}

enum Content<'a> {
    Text(Cow<'a, str>),
    Bytes(Vec<u8>),
    Blob { path: Cow<'a, str>, connector: Option<Cow<'a, str>> },
}

impl Content<'_> {
    /// How large it is; 0 for a blob, of which that is not known yet.
    fn bytes(&self) -> u64 {
        match self {
            Content::Text(text) => text.len() as u64,
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Blob { .. } => 0,
        }
    }

    /// The field that it comes from.
    fn pointer(&self) -> &'static str {
        match self {
            Content::Text(_) => "content",
            Content::Bytes(_) => "bytes",
            Content::Blob { .. } => "blob",
        }
    }
}

struct GetTask<'a> {
    connector: Option<Cow<'a, str>>,
    path: Cow<'a, str>,
    offset: u64,
    length: Option<u64>,
    /// Whether a part was asked for at all.
    part: bool,
    sha256: Option<[u8; 32]>,
}

#[derive(Serialize)]
struct PutOutputs<'a> {
    path: &'a str,
    size: u64,
    created: bool,
    sha256: String,
}

fn read_path<'a>(inputs: &Inputs<'a>, name: &str) -> Result<Cow<'a, str>, Fault> {
    let blob = inputs.text_needed(name)?;
    path::check(&blob).map_err(|rule| forbidden(name, rule))?;
    Ok(blob)
}

fn read_sha256(inputs: &Inputs<'_>) -> Result<Option<[u8; 32]>, Fault> {
    let Some(text) = inputs.text("sha256")? else { return Ok(None) };
    let rule = || forbidden("sha256", "64 hexadecimal digits");
    let digits: [u8; 64] = text.as_bytes().try_into().map_err(|_| rule())?;
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16).ok_or_else(rule);
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Ok(Some(bytes))
}

fn read_put(inputs: &[u8]) -> Result<PutTask<'_>, Fault> {
    let inputs = Inputs::read(inputs)?;
    let overwrite = inputs.flag("overwrite")?;
    let name = match inputs.text("address")?.as_deref() {
        None => Name::Path(read_path(&inputs, "path")?),
        Some("sha256") if overwrite == Some(true) => {
            return Err(forbidden("overwrite", "left out or false where the content gives the name"));
        }
        Some("sha256") => Name::Content(inputs.json("path").map(|_| read_path(&inputs, "path")).transpose()?),
        Some(_) => return Err(forbidden("address", "sha256")),
    };
    inputs.exactly_one(&["content", "bytes", "blob"])?;
    let blob_connector = inputs.text("blob_connector")?;
    let content = match (inputs.text("content")?, inputs.bytes("bytes")?) {
        (Some(text), _) => Content::Text(text),
        (_, Some(bytes)) => Content::Bytes(bytes),
        (None, None) => Content::Blob { path: read_path(&inputs, "blob")?, connector: blob_connector.clone() },
    };
    if blob_connector.is_some() && !matches!(content, Content::Blob { .. }) {
        return Err(forbidden("blob_connector", "only beside blob"));
    }
    Ok(PutTask { connector: inputs.text("connector")?, name, content, overwrite, sha256: read_sha256(&inputs)? })
}

fn read_get(inputs: &[u8]) -> Result<GetTask<'_>, Fault> {
    let inputs = Inputs::read(inputs)?;
    let path = read_path(&inputs, "path")?;
    let offset = inputs.integer("offset", 0..=OFFSET_MAX, 0)?;
    let length = match inputs.json("length") {
        Some(_) => Some(inputs.integer("length", 0..=GET_BYTES_MAX, 0)?),
        None => None,
    };
    let part = length.is_some() || inputs.json("offset").is_some();
    Ok(GetTask { connector: inputs.text("connector")?, path, offset, length, part, sha256: read_sha256(&inputs)? })
}

pub(super) fn check_put(ask: &Ask<'_>) -> Result<Checked, Fault> {
    let task = read_put(ask.inputs)?;
    let mut denied = ask.store_denied(task.connector.as_deref(), "connector");
    if let Content::Blob { connector, .. } = &task.content {
        denied = denied.or_else(|| ask.store_denied(connector.as_deref(), "blob_connector"));
    }
    denied = denied.or_else(|| ask.narrow.guardrails.fits(task.content.bytes(), task.content.pointer()).err());
    let named = matches!(task.name, Name::Path(_));
    let by_name = named && ask.name == LEGACY_PUT && task.overwrite.is_none();
    let overwrite = task.overwrite.unwrap_or(by_name);
    if named && !overwrite && denied.is_none() && !ask.refuses_to_replace(task.connector.as_deref(), "connector") {
        denied = Some(forbidden("overwrite", "true: this store cannot refuse to replace what is there"));
    }
    let effect = if overwrite { EffectClass::Idempotent } else { EffectClass::Conditional };
    let inputs = by_name.then(|| spelled_out(&task));
    Ok(Checked { inputs, denied, ..Checked::as_sent(effect) })
}

/// The inputs of a put under its older name, with the default that it has there.
fn spelled_out(task: &PutTask<'_>) -> Bytes {
    let mut inputs = value!({ "overwrite": true });
    if let Name::Path(path) = &task.name {
        inputs["path"] = value!(path);
    }
    match &task.content {
        Content::Text(text) => inputs["content"] = value!(text),
        Content::Bytes(bytes) => inputs["bytes"] = value!(BASE64.encode(bytes)),
        Content::Blob { path, connector } => {
            inputs["blob"] = value!(path);
            inputs["blob_connector"] = value!(connector);
        }
    }
    inputs["connector"] = value!(task.connector);
    inputs["sha256"] = value!(task.sha256.map(|digest| hex(&digest)));
    json(&inputs)
}

pub(super) fn check_get(ask: &Ask<'_>) -> Result<Checked, Fault> {
    let task = read_get(ask.inputs)?;
    let denied = ask.store_denied(task.connector.as_deref(), "connector");
    Ok(Checked { denied, ..Checked::as_sent(EffectClass::Pure) })
}

impl Put {
    pub(super) fn new(reach: &Reach) -> Self {
        Put { reach: reach.clone() }
    }

    async fn run(&self, cx: &BlockCx) -> Result<Bytes, Fault> {
        let task = read_put(&cx.inputs)?;
        let to = self.reach.blobs(cx, task.connector.as_deref(), "connector")?;
        let from = match &task.content {
            Content::Text(Cow::Borrowed(text)) => From::Memory(cx.inputs.slice_ref(text.as_bytes())),
            Content::Text(Cow::Owned(text)) => From::Memory(Bytes::copy_from_slice(text.as_bytes())),
            Content::Bytes(bytes) => From::Memory(Bytes::copy_from_slice(bytes)),
            Content::Blob { path, connector } => {
                let blobs = self.reach.blobs(cx, connector.as_deref(), "blob_connector")?;
                let blob = blobs.open(&cx.tenant, path).await?;
                Guardrails::read(&cx.guardrails)?.fits(blob.size(), task.content.pointer())?;
                From::Blob(blob)
            }
        };
        let known = match (&task.name, &from, task.sha256) {
            // A name that comes from the content is known only once all of it has been seen.
            (Name::Content(_), ..) | (_, From::Memory(_), Some(_)) => Some(from.digest().await?),
            _ => None,
        };
        if let (Some(known), Some(said)) = (known, task.sha256)
            && known != said
        {
            return Err(unlike());
        }
        let (path, overwrite) = match (&task.name, known) {
            (Name::Path(path), _) => (path.clone(), task.overwrite.unwrap_or(false)),
            (Name::Content(folder), Some(digest)) => {
                let path = name_of(folder.as_deref(), &digest);
                path::check(&path).map_err(|rule| forbidden("path", rule))?;
                // Whatever has this name has this content: where nothing can be kept from being replaced, nothing is lost.
                (Cow::Owned(path), !self.keeps(cx, task.connector.as_deref()))
            }
            (Name::Content(_), None) => return Err(missing("address", "a content to name")),
        };
        let stored = from.store(&*to, &cx.tenant, &path, overwrite, known.or(task.sha256)).await?;
        let sha256 = hex(&stored.sha256);
        Ok(json(&PutOutputs { path: &path, size: stored.size, created: stored.created, sha256 }))
    }

    fn keeps(&self, cx: &BlockCx, connector: Option<&str>) -> bool {
        let Some(name) = connector else { return true };
        self.reach.policy.store(&cx.tenant, name, "connector").is_ok_and(|store| store.settings.if_absent)
    }
}

/// What is put.
enum From {
    Memory(Bytes),
    Blob(Box<dyn Blob>),
}

impl From {
    async fn digest(&self) -> Result<[u8; 32], Fault> {
        let mut hasher = Sha256::new();
        match self {
            From::Memory(bytes) => strides(bytes, &mut |stride: &[u8]| hasher.update(stride)).await,
            From::Blob(blob) => {
                let mut read = 0;
                while read < blob.size() {
                    let chunk = next(&**blob, read).await?;
                    strides(&chunk, &mut |stride: &[u8]| hasher.update(stride)).await;
                    read += chunk.len() as u64;
                }
            }
        }
        Ok(hasher.finalize().into())
    }

    /// `sha256`: what it must be to be stored.
    async fn store(
        self,
        to: &dyn Blobs,
        tenant: &str,
        path: &str,
        overwrite: bool,
        sha256: Option<[u8; 32]>,
    ) -> Result<Stored, Fault> {
        let blob = match self {
            From::Memory(bytes) => return to.put(tenant, path, bytes, overwrite).await,
            From::Blob(blob) => blob,
        };
        let mut writer = to.create(tenant, path, overwrite).await?;
        let (mut hasher, mut read) = (Sha256::new(), 0);
        while read < blob.size() {
            let chunk = next(&*blob, read).await?;
            read += chunk.len() as u64;
            if sha256.is_some() {
                strides(&chunk, &mut |stride: &[u8]| hasher.update(stride)).await;
            }
            writer.write(chunk).await?;
        }
        // Unfinished, it leaves nothing.
        if sha256.is_some_and(|said| hasher.finalize()[..] != said) {
            return Err(unlike());
        }
        writer.finish().await
    }
}

/// The next bytes of a blob that has some left.
async fn next(blob: &dyn Blob, offset: u64) -> Result<Bytes, Fault> {
    let chunk = blob.read(offset, COPY_BYTES).await?;
    if chunk.is_empty() {
        return Err(
            Fault::new(Code::ResourceUnavailable, "The blob ended before its end.").with_details(r#"{"pointer":"/blob"}"#)
        );
    }
    Ok(chunk)
}

fn unlike() -> Fault {
    fault(Code::ExecutionFailed, "The content is not the one that its digest names.", "sha256", "the SHA-256 of the content")
}

impl Get {
    pub(super) fn new(reach: &Reach) -> Self {
        Get { reach: reach.clone() }
    }

    async fn run(&self, cx: &BlockCx) -> Result<Bytes, Fault> {
        let task = read_get(&cx.inputs)?;
        let blobs = self.reach.blobs(cx, task.connector.as_deref(), "connector")?;
        let blob = blobs.open(&cx.tenant, &task.path).await?;
        let total = blob.size();
        if task.offset > total {
            return Err(fault(Code::InvalidInput, "The blob ends before that.", "offset", &format!("at most {total}, its size")));
        }
        let end = task.length.map_or(total, |length| total.min(task.offset + length));
        if end - task.offset > GET_BYTES_MAX {
            return Err(too_large(end - task.offset));
        }
        Guardrails::read(&cx.guardrails)?.fits(end - task.offset, "path")?;
        let content = read_part(&*blob, task.offset, end).await?;
        if let Some(said) = task.sha256 {
            let mut hasher = Sha256::new();
            strides(&content, &mut |stride: &[u8]| hasher.update(stride)).await;
            if hasher.finalize()[..] != said {
                return Err(unlike());
            }
        }
        let mut out = Vec::with_capacity(content.len() * 3 + task.path.len() + 96);
        out.extend_from_slice(b"{\"path\":");
        out.extend_from_slice(&json(&task.path));
        out.extend_from_slice(format!(",\"size\":{}", content.len()).as_bytes());
        if task.part {
            out.extend_from_slice(format!(",\"offset\":{},\"total\":{total}", task.offset).as_bytes());
        }
        _ = push_text(&mut out, "content", &content).await;
        push_base64(&mut out, "bytes", &content).await;
        out.push(b'}');
        Ok(Bytes::from(out))
    }
}

impl Block for Put {
    fn info(&self) -> &'static BlockInfo {
        &PUT
    }

    fn execute<'a>(&'a self, cx: BlockCx) -> Local<'a, Result<Bytes, Fault>> {
        Box::pin(async move { self.run(&cx).await })
    }
}

impl Block for Get {
    fn info(&self) -> &'static BlockInfo {
        &GET
    }

    fn execute<'a>(&'a self, cx: BlockCx) -> Local<'a, Result<Bytes, Fault>> {
        Box::pin(async move { self.run(&cx).await })
    }
}

fn too_large(size: u64) -> Fault {
    Fault::new(Code::ExecutionFailed, "The blob is larger than one step may return.")
        .with_details(format!(r#"{{"pointer":"/path","size":{size},"size_max":{GET_BYTES_MAX}}}"#))
}
