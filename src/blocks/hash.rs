//! `crypto.hash`: the digest of a text, of bytes or of a blob, without stalling its core.

use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest as _, Sha256, Sha512};
use shards::block::{Block, BlockCx, BlockInfo, Demand, Local};
use shards::ids::hex;
use shards::outcome::Fault;
use shards::step::{EffectClass, Lane};

use super::device::Device;
use super::inputs::{Inputs, forbidden};
use super::outputs::json;
use super::sandbox::Planned;
use super::source::Source;
use super::{Ask, Checked, Reach};

pub(super) static INFO: BlockInfo = BlockInfo { name: "crypto.hash", aliases: &[], version: "1.0.0", effect: EffectClass::Pure };

/// What it needs where what is hashed is of any size.
pub(super) const DEMAND: Demand =
    Demand { lane: Lane::Cpu, memory_bytes: 0, device_form: true, memory_on_device_bytes: gpu::limits::BUFFER_BYTES_MAX as u64 };

/// See the module. Lives on its core.
pub(super) struct Hash {
    reach: Reach,
    device: Device,
}

/// What to hash, and how.
struct Task<'a> {
    algorithm: Algorithm,
    source: Source<'a>,
}

#[derive(Clone, Copy)]
enum Algorithm {
    Sha256,
    Sha512,
    Blake3,
}

enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
    Blake3(Box<blake3::Hasher>),
}

#[derive(Serialize)]
struct Outputs<'a> {
    algorithm: &'a str,
    digest: String,
    size: u64,
    /// The device, where it was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    computed_by: Option<&'a str>,
}

fn read(inputs: &[u8]) -> Result<Task<'_>, Fault> {
    let inputs = Inputs::read(inputs)?;
    let algorithm = match inputs.text("algorithm")?.as_deref() {
        None | Some("sha256") => Algorithm::Sha256,
        Some("sha512") => Algorithm::Sha512,
        Some("blake3") => Algorithm::Blake3,
        Some(_) => return Err(forbidden("algorithm", "sha256, sha512 or blake3")),
    };
    Ok(Task { algorithm, source: Source::read(&inputs)? })
}

pub(super) fn check(ask: &Ask<'_>) -> Result<Checked, Fault> {
    let task = read(ask.inputs)?;
    let denied = ask.store_denied(task.source.connector(), "connector");
    // A device takes the whole of it.
    let whole_bytes = task.source.inline().map_or(DEMAND.memory_on_device_bytes, |(_, size)| size);
    let needs = Demand { lane: task.source.lane(), memory_on_device_bytes: whole_bytes, ..DEMAND };
    Ok(Checked { needs, scopes: task.source.scopes(), denied, ..Checked::as_sent(EffectClass::Pure) })
}

pub(super) fn plan(ask: &Ask<'_>) -> Result<Planned, Fault> {
    let task = read(ask.inputs)?;
    let (algorithm, size) = (task.algorithm.name(), task.source.inline().map_or(0, |(_, size)| size));
    let digest = "0".repeat(if matches!(task.algorithm, Algorithm::Sha512) { 128 } else { 64 });
    let planned = task.source.planned(ask, Planned::of(serde_json::json!({ "digest": algorithm })))?;
    Ok(planned.with_outputs(serde_json::json!({ "algorithm": algorithm, "digest": digest, "size": size })))
}

impl Hash {
    pub(super) fn new(reach: &Reach) -> Self {
        Hash { reach: reach.clone(), device: Device::new(reach) }
    }

    /// The digest by a device, which computes many steps' at once.
    async fn on_device(&self, cx: &BlockCx, task: &Task<'_>) -> Result<Bytes, Fault> {
        let algorithm = match task.algorithm {
            Algorithm::Sha256 => gpu::Algorithm::Sha256,
            Algorithm::Blake3 => gpu::Algorithm::Blake3,
            Algorithm::Sha512 => return Err(forbidden("algorithm", "sha256 or blake3 where resources.class is GPU")),
        };
        let bytes_max = DEMAND.memory_on_device_bytes.min(cx.needs.memory_bytes);
        let content = Bytes::from(task.source.whole(&self.reach, cx, bytes_max).await?.into_owned());
        let size = content.len() as u64;
        let answer = self.device.compute(gpu::Work::Hash(gpu::Hash { algorithm, buffers: vec![content] })).await?;
        let gpu::Output::Digests(digests) = &answer.output else { unreachable!("a hash gives digests") };
        let digest = digests.first().map(|digest| hex(digest)).expect("one for each buffer");
        let outputs = Outputs { algorithm: task.algorithm.name(), digest, size, computed_by: Some(&answer.device) };
        Ok(json(&outputs))
    }
}

impl Block for Hash {
    fn info(&self) -> &'static BlockInfo {
        &INFO
    }

    fn execute<'a>(&'a self, cx: BlockCx) -> Local<'a, Result<Bytes, Fault>> {
        Box::pin(async move {
            let task = read(&cx.inputs)?;
            if cx.needs.lane == Lane::Gpu {
                return self.on_device(&cx, &task).await;
            }
            let hasher = Hasher::new(task.algorithm);
            let (hasher, size) = task.source.fold(&self.reach, &cx, hasher, Hasher::update).await?;
            let outputs = Outputs { algorithm: task.algorithm.name(), digest: hasher.finish(), size, computed_by: None };
            Ok(json(&outputs))
        })
    }
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
            Algorithm::Blake3 => "blake3",
        }
    }
}

impl Hasher {
    fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Sha512::new()),
            Algorithm::Blake3 => Hasher::Blake3(Box::default()),
        }
    }

    fn update(&mut self, stride: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(stride),
            Hasher::Sha512(hasher) => hasher.update(stride),
            Hasher::Blake3(hasher) => _ = hasher.update(stride),
        }
    }

    fn finish(self) -> String {
        match self {
            Hasher::Sha256(hasher) => hex(&hasher.finalize()),
            Hasher::Sha512(hasher) => hex(&hasher.finalize()),
            Hasher::Blake3(hasher) => hex(hasher.finalize().as_bytes()),
        }
    }
}
