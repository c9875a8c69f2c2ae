//! Inputs by reference (`payload_ref`): a message says where they are, and they are read when its step runs, before its block. And
//! [`Kept`], where outputs go that a message only refers to (`outputs_ref`).
//!
//! `blob:PATH` lies on the worker's own disk, `blob://CONNECTOR/PATH` in an object store; both are the tenant's own, under the
//! rules that hold for any blob, and the places that `outputs_ref` names are among them. What is read is checked as a message's own
//! inputs are: so an error of theirs is the step's outcome, not its refusal. As nobody has seen them at acceptance, such a step
//! is of its block's own effect class, whatever they ask for.

use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use shards::block::{Blobs, Block, BlockCx, BlockInfo, Local, Outputs};
use shards::ids::{BlockId, Text, hex};
use shards::outcome::{Code, Fault};

use super::outputs::json;
use super::source::{HERE_BYTES, read_whole, strides};
use crate::policy::narrow::{Guardrails, Narrow};

use super::{Ask, BLOBS, Checked, Entry, Reach, TABLE, is_paid_for, path};

/// The largest inputs that are read, in bytes.
const BYTES_MAX: u64 = 8 << 20;
/// What every URI begins with.
const SCHEME: &str = "blob:";
const FIELD: &str = "/payload_ref";

/// The block of this id for inputs by reference: these stand behind those of the table.
pub fn id_of(block: BlockId) -> BlockId {
    BlockId(block.0 + TABLE.len() as u16)
}

/// Where inputs are, and what they are known to be. Lives where it is read.
struct Reference {
    connector: Option<String>,
    path: String,
    sha256: Option<[u8; 32]>,
    size: Option<u64>,
}

fn wrong(rule: &str) -> Fault {
    at_reference(Code::InvalidInput, "An input has a value that its rule forbids.", rule)
}

/// A fault about the reference itself, which is no part of any inputs.
fn at_reference(code: Code, sentence: &'static str, rule: &str) -> Fault {
    let details = serde_json::json!({ "field": FIELD, "rule": rule });
    Fault::new(code, sentence).with_details(details.to_string())
}

impl Reference {
    /// A URI as a text, or an object with `uri` and what is known of the content.
    fn read(text: &[u8]) -> Result<Reference, Fault> {
        const RULE: &str = "a URI, or an object with uri, and sha256 and size where they are known";
        let value: Value = serde_json::from_slice(text).map_err(|_| wrong(RULE))?;
        let (uri, sha256, size) = match &value {
            Value::String(uri) => (uri.as_str(), None, None),
            Value::Object(members) => {
                let member = |names: &[&str]| names.iter().find_map(|name| members.get(*name)).filter(|value| !value.is_null());
                let uri = member(&["uri"]).and_then(Value::as_str).ok_or_else(|| wrong(RULE))?;
                (uri, member(&["sha256"]), member(&["size", "size_bytes", "sizeBytes"]))
            }
            _ => return Err(wrong(RULE)),
        };
        let (connector, path) = locate(uri)?;
        let sha256 =
            sha256.map(|value| digest(value).ok_or_else(|| wrong("sha256: 64 hexadecimal digits, or base64"))).transpose()?;
        let count = |value: &Value| value.as_u64().or_else(|| value.as_str()?.parse().ok());
        let size = size.map(|value| count(value).ok_or_else(|| wrong("size: a whole number of bytes"))).transpose()?;
        Ok(Reference { connector, path, sha256, size })
    }
}

/// The store and the path that a URI names.
fn locate(uri: &str) -> Result<(Option<String>, String), Fault> {
    const RULE: &str = "uri: blob:PATH, or blob://CONNECTOR/PATH";
    let rest = uri.strip_prefix(SCHEME).ok_or_else(|| wrong(RULE))?;
    let (connector, path) = match rest.strip_prefix("//") {
        Some(rest) => {
            let (connector, path) = rest.split_once('/').filter(|(name, _)| !name.is_empty()).ok_or_else(|| wrong(RULE))?;
            (Some(connector.to_owned()), path)
        }
        None => (None, rest),
    };
    path::check_ours(path).map_err(|rule| wrong(&format!("uri: a path that is {rule}")))?;
    Ok((connector, path.to_owned()))
}

/// In hexadecimal digits as `outputs_ref` has it, or in base64 as protobuf's JSON has bytes.
fn digest(value: &Value) -> Option<[u8; 32]> {
    let text = value.as_str()?;
    if text.len() != 64 {
        return BASE64.decode(text).ok()?.try_into().ok();
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Some(bytes)
}

/// Looks at a reference before acceptance: what it says, and whether its tenant may read there.
///
/// # Errors
/// INVALID_INPUT; the details hold `{"field":"/payload_ref","rule":"…"}`.
pub fn check(entry: &Entry, ask: &Ask<'_>) -> Result<Checked, Fault> {
    if entry.asks_people() {
        return Err(wrong("not for this block: who may decide must stand in the message itself"));
    }
    let there = Reference::read(ask.inputs)?;
    if there.size.is_some_and(|size| size > BYTES_MAX) {
        return Err(wrong("size: at most 8388608 bytes"));
    }
    let denied = ask.store_denied(there.connector.as_deref(), "payload_ref");
    let uri = match &there.connector {
        Some(connector) => format!("{SCHEME}//{connector}/{}", there.path),
        None => format!("{SCHEME}{}", there.path),
    };
    let mut inputs = serde_json::json!({ "uri": uri, "sha256": there.sha256.map(|digest| hex(&digest)), "size": there.size });
    // What decides about defaults is asked again once the inputs are there; else the same step may come under any name.
    if entry.telling.contains(&ask.name) {
        inputs["name"] = ask.name.into();
    }
    if is_paid_for(entry.info.name) && !ask.provider.is_empty() {
        inputs["provider"] = ask.provider.into();
    }
    Ok(Checked { effect: entry.info.effect, inputs: Some(json(&inputs)), needs: entry.unread, scopes: BLOBS, gate: None, denied })
}

/// Where outputs are kept that are too large for a message: in a store for the tenants that it lists, else among the tenant's own
/// blobs. Lives on its core.
pub struct Kept {
    reach: Reach,
    blobs: Rc<dyn Blobs>,
    connector: Option<String>,
}

impl Kept {
    /// `connector` has a store, if it is named.
    pub fn new(reach: &Reach, blobs: Rc<dyn Blobs>, connector: Option<String>) -> Self {
        Kept { reach: reach.clone(), blobs, connector }
    }
}

impl Outputs for Kept {
    fn of(&self, tenant: &str) -> (Rc<dyn Blobs>, Text) {
        let named = self.connector.as_deref().map(|name| (name, self.reach.policy.store(tenant, name, "connector")));
        match named {
            Some((name, Ok(store))) => (self.reach.stores.of(store), Text::from(format!("{SCHEME}//{name}/"))),
            _ => (self.blobs.clone(), Text::from_static(SCHEME)),
        }
    }
}

/// A block whose inputs are elsewhere. Lives on its core.
pub(super) struct Referred {
    entry: &'static Entry,
    inner: Rc<dyn Block>,
    reach: Reach,
}

impl Referred {
    pub(super) fn new(entry: &'static Entry, inner: Rc<dyn Block>, reach: &Reach) -> Self {
        Referred { entry, inner, reach: reach.clone() }
    }

    async fn run(&self, mut cx: BlockCx) -> Result<Bytes, Fault> {
        let referred: Value = serde_json::from_slice(&cx.inputs).unwrap_or_default();
        let name = referred["name"].as_str().unwrap_or(self.entry.info.name);
        let provider = referred["provider"].as_str().unwrap_or_default();
        let inputs = Bytes::from(self.fetch(&cx).await?);
        // Which scopes it is left with was looked at when it came.
        let narrow = Narrow { scopes: None, guardrails: Guardrails::read(&cx.guardrails)? };
        let ask = Ask { policy: &self.reach.policy, tenant: &cx.tenant, name, inputs: &inputs, provider, narrow: &narrow };
        let checked = self.entry.check(&ask)?;
        if let Some(denied) = checked.denied {
            return Err(denied);
        }
        cx.inputs = checked.inputs.unwrap_or(inputs);
        match self.inner.instant(&cx) {
            Some(verdict) => verdict,
            None => self.inner.execute(cx).await,
        }
    }

    async fn fetch(&self, cx: &BlockCx) -> Result<Vec<u8>, Fault> {
        let there = Reference::read(&cx.inputs)?;
        let blobs = self.reach.blobs(cx, there.connector.as_deref(), "payload_ref")?;
        let blob = blobs.open(&cx.tenant, &there.path).await?;
        Guardrails::read(&cx.guardrails)?.fits(blob.size(), "payload_ref")?;
        if blob.size() > BYTES_MAX {
            let details = serde_json::json!({ "field": FIELD, "size": blob.size(), "size_max": BYTES_MAX });
            return Err(
                Fault::new(Code::InvalidInput, "The inputs are larger than any may be.").with_details(details.to_string())
            );
        }
        let content = read_whole(&*blob).await?;
        let unlike =
            |what: &str| at_reference(Code::ExecutionFailed, "The inputs are not the ones that the reference names.", what);
        if there.size.is_some_and(|size| size != content.len() as u64) {
            return Err(unlike("of the size that it names"));
        }
        if let Some(said) = there.sha256 {
            let mut hasher = Sha256::new();
            strides(&content, &mut |stride: &[u8]| hasher.update(stride)).await;
            if hasher.finalize()[..] != said {
                return Err(unlike("of the SHA-256 that it names"));
            }
        }
        let look = |content: Vec<u8>| (serde_json::from_slice::<serde::de::IgnoredAny>(&content).is_ok(), content);
        let (is_json, content) = match content.len() {
            ..=HERE_BYTES => look(content),
            _ => self.reach.compute.run(move || look(content)).await,
        };
        if !is_json {
            return Err(wrong("names inputs in JSON"));
        }
        Ok(content)
    }
}

impl Block for Referred {
    fn info(&self) -> &'static BlockInfo {
        self.entry.info
    }

    fn execute<'a>(&'a self, cx: BlockCx) -> Local<'a, Result<Bytes, Fault>> {
        Box::pin(self.run(cx))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use shards::ids::Key;
    use shards::step::EffectClass;

    use super::super::tests::{on_a_shard, run, shut};
    use crate::policy::narrow::NOTHING;

    use super::super::{build_all, find};
    use super::*;

    fn look(name: &str, reference: &Value) -> Result<Checked, Fault> {
        let (_, entry) = find(name, false).expect("known");
        let reach = shut();
        check(
            entry,
            &Ask {
                policy: &reach.policy,
                tenant: "acme",
                name,
                inputs: reference.to_string().as_bytes(),
                provider: "",
                narrow: &NOTHING,
            },
        )
    }

    #[test]
    fn a_reference_names_a_blob_of_the_tenants_and_nothing_else() {
        let digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let base64 = BASE64.encode([7; 32]);
        for good in [
            json!("blob:a/b"),
            json!({ "uri": "blob:$outputs/ab", "sha256": digest, "size": 7 }),
            json!({ "uri": "blob:a", "sha256": base64, "size_bytes": "7", "more": [] }),
            json!({ "uri": "blob:a", "sha256": null, "size": null }),
        ] {
            let checked = look("http.request", &good).expect("good");
            assert_eq!((checked.effect, checked.denied), (EffectClass::Unsafe, None), "{good}");
        }
        for bad in [
            json!(3),
            json!([]),
            json!({}),
            json!(""),
            json!("a"),
            json!("s3://bucket/a"),
            json!("file:///etc/passwd"),
            json!("https://h.example/"),
            json!("blob:"),
            json!("blob:/a"),
            json!("blob:../a"),
            json!("blob:$tmp/a"),
            json!("blob:///a"),
            json!("blob://c"),
            json!("blob://c/../a"),
            json!({ "uri": 1 }),
            json!({ "uri": "blob:a", "sha256": "e3b0" }),
            json!({ "uri": "blob:a", "sha256": "g".repeat(64) }),
            json!({ "uri": "blob:a", "size": -1 }),
            json!({ "uri": "blob:a", "size": 1 << 30 }),
        ] {
            let fault = look("echo", &bad).expect_err(&bad.to_string());
            let details: Value = serde_json::from_slice(&fault.details).expect("JSON");
            assert_eq!((fault.code, &details["field"]), (Code::InvalidInput, &json!("/payload_ref")), "{bad}");
            assert!(details["rule"].is_string(), "{bad}");
        }
        // Which name a step came by says nothing more of it, unless it changes what is left out.
        let inputs = |name: &str| look(name, &json!("blob:a")).expect("good").inputs;
        assert_eq!(inputs("fs.put"), inputs("fs.blob_put"));
        assert_ne!(inputs("fs_blob_put"), inputs("fs.blob_put"));
        assert_eq!(inputs("ai.generate"), inputs("text.generate"));
        assert_ne!(inputs("ai.generate"), inputs("embedding"));
        let denied = look("echo", &json!("blob://archive/a")).expect("good").denied.expect("no such store");
        assert_eq!(denied.code, Code::PermissionDenied);
    }

    #[test]
    fn what_it_names_is_checked_like_inputs_of_the_message_and_run() {
        on_a_shard(|blobs, _| async move {
            let reach = shut();
            let blocks = build_all(&reach);
            let by_reference = async |name: &str, reference: Value| {
                let checked = look(name, &reference)?;
                let (block, _) = find(name, false).expect("known");
                let cx = BlockCx {
                    tenant: Text::from_static("acme"),
                    key: Key([0; 16]),
                    try_number: 1,
                    left_ms: 60_000,
                    needs: shards::step::Needs::default(),
                    inputs: checked.inputs.expect("rewritten"),
                    blobs: blobs.clone(),
                    guardrails: Bytes::new(),
                    cache: None,
                    trace_id: None,
                    observers: None,
                };
                let outputs = blocks[usize::from(id_of(block).0)].execute(cx).await?;
                Ok::<Value, Fault>(serde_json::from_slice(&outputs).expect("JSON"))
            };
            let keep = async |path: &str, content: &str| {
                let put = json!({ "path": path, "content": content, "overwrite": true });
                run(&blobs, "fs.put", put).await.expect("put")["sha256"].as_str().expect("a digest").to_owned()
            };
            let sha256 = keep("in", r#"{"text":"abc"}"#).await;
            let reference = json!({ "uri": "blob:in", "sha256": sha256, "size": 14 });
            let hashed = by_reference("crypto.hash", reference).await.expect("hashed");
            assert_eq!(hashed["digest"], "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
            assert_eq!(by_reference("echo", json!("blob:in")).await, Ok(json!({ "text": "abc" })));

            keep("put", r#"{"path":"out","content":"one"}"#).await;
            by_reference("fs_blob_put", json!("blob:put")).await.expect("put");
            keep("put", r#"{"path":"out","content":"two"}"#).await;
            by_reference("fs_blob_put", json!("blob:put")).await.expect("under its older name it replaces");
            assert_eq!(by_reference("fs.blob_put", json!("blob:put")).await.expect("the same")["created"], false);

            keep("bad", r#"{"text":1}"#).await;
            keep("words", "no JSON").await;
            for (reference, code) in [
                (json!("blob:bad"), Code::InvalidInput),
                (json!("blob:words"), Code::InvalidInput),
                (json!("blob:nothing"), Code::InvalidInput),
                (json!({ "uri": "blob:in", "size": 13 }), Code::ExecutionFailed),
                (json!({ "uri": "blob:in", "sha256": "0".repeat(64) }), Code::ExecutionFailed),
            ] {
                let fault = by_reference("crypto.hash", reference.clone()).await.expect_err("refused");
                assert_eq!(fault.code, code, "{reference}");
            }
        });
    }
}
