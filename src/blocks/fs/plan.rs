//! What `fs.blob_put` and `fs.blob_get` would do: which blob, where, and under which precondition. Whether it is there is not
//! looked at: no file is opened for a plan, and another step may change that meanwhile.

use serde_json::json as value;
use sha2::{Digest as _, Sha256};
use shards::ids::hex;
use shards::outcome::Fault;

use super::super::Ask;
use super::super::remote::name_of;
use super::super::sandbox::{Planned, places};
use super::{Content, Name, read_get, read_put, unlike};

const NOT_LOOKED_AT: &str = "no blob was looked at: whether one is there, and what it holds, is seen when the step runs";

pub(in crate::blocks) fn put(ask: &Ask<'_>) -> Result<Planned, Fault> {
    let task = read_put(ask.inputs)?;
    let content = match &task.content {
        Content::Text(text) => Some(text.as_bytes()),
        Content::Bytes(bytes) => Some(&bytes[..]),
        Content::Blob { .. } => None,
    };
    let known: Option<[u8; 32]> = content.map(|content| Sha256::digest(content).into());
    // What is known to fail is no plan.
    if let (Some(known), Some(said)) = (known, task.sha256)
        && known != said
    {
        return Err(unlike());
    }
    let overwrite = task.overwrite.unwrap_or(false);
    let (path, precondition) = match &task.name {
        Name::Path(path) if overwrite => (Some(path.to_string()), "none: what stands there is replaced"),
        Name::Path(path) => (Some(path.to_string()), "no other content stands there"),
        Name::Content(folder) => {
            (known.map(|digest| name_of(folder.as_deref(), &digest)), "none: whatever has this name has this content")
        }
    };
    let sha256 = known.or(task.sha256).map(|digest| hex(&digest));
    let mut planned = Planned::of(value!({ "put": { "path": path, "precondition": precondition, "sha256": sha256 } }));
    match &task.content {
        Content::Blob { path, connector } => {
            planned.does.insert("copy".to_owned(), value!({ "path": path }));
            planned = planned.at("copy_from", places::store(ask, connector.as_deref(), "blob_connector")?);
        }
        _ => _ = planned.does.insert("content".to_owned(), value!({ "bytes": task.content.bytes() })),
    }
    planned = planned.at("put_to", places::store(ask, task.connector.as_deref(), "connector")?);
    planned.notes.push(NOT_LOOKED_AT);
    let (path, sha256) = (path.unwrap_or_else(|| "0".repeat(64)), sha256.unwrap_or_else(|| "0".repeat(64)));
    let outputs = value!({ "path": path, "size": task.content.bytes(), "created": true, "sha256": sha256 });
    Ok(planned.with_outputs(outputs))
}

pub(in crate::blocks) fn get(ask: &Ask<'_>) -> Result<Planned, Fault> {
    let task = read_get(ask.inputs)?;
    let sha256 = task.sha256.map(|digest| hex(&digest));
    let get = value!({ "path": task.path, "offset": task.offset, "length": task.length, "sha256": sha256 });
    let mut planned = Planned::of(value!({ "get": get }));
    planned = planned.at("get_from", places::store(ask, task.connector.as_deref(), "connector")?);
    planned.notes.push(NOT_LOOKED_AT);
    Ok(planned.with_outputs(value!({ "path": task.path, "size": 0, "content": "", "bytes": "" })))
}
