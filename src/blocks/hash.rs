//! `crypto.hash`: the digest of a text, of bytes or of a blob, without stalling its core.

use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest as _, Sha256, Sha512};
use shards::block::{Block, BlockCx, BlockInfo, Local};
use shards::ids::hex;
use shards::outcome::Fault;
use shards::step::EffectClass;

use super::inputs::{Inputs, forbidden};
use super::source::Source;
use super::{Ask, Checked, Reach};

pub(super) static INFO: BlockInfo = BlockInfo { name: "crypto.hash", aliases: &[], version: "1.0.0", effect: EffectClass::Pure };

/// See the module. Lives on its core.
pub(super) struct Hash {
    reach: Reach,
}

impl Hash {
    pub(super) fn new(reach: &Reach) -> Self {
        Hash { reach: reach.clone() }
    }
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
    Ok(Checked { denied, ..Checked::as_sent(EffectClass::Pure) })
}

impl Block for Hash {
    fn info(&self) -> &'static BlockInfo {
        &INFO
    }

    fn execute<'a>(&'a self, cx: BlockCx) -> Local<'a, Result<Bytes, Fault>> {
        Box::pin(async move {
            let task = read(&cx.inputs)?;
            let mut hasher = Hasher::new(task.algorithm);
            let size = task.source.each(&self.reach, &cx, |stride| hasher.update(stride)).await?;
            let outputs = Outputs { algorithm: task.algorithm.name(), digest: hasher.finish(), size };
            Ok(Bytes::from(serde_json::to_vec(&outputs).expect("plain fields always serialise")))
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
