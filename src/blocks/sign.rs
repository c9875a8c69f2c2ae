//! `crypto.sign` and `crypto.verify`: Ed25519 and HMAC-SHA256 over a text, bytes or a blob, by keys that the configuration names.
//!
//! A message names a key and never holds one. Who the key does not list is denied before acceptance, and again when the step
//! runs. HMAC takes its content in strides; Ed25519 looks at a message twice, so it takes one whole and of bounded size. Both are
//! deterministic, so both blocks are pure.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use ed25519_dalek::Signer as _;
use hmac::Mac as _;
use serde::Serialize;
use shards::block::{Block, BlockCx, BlockInfo, Demand, Local};
use shards::ids::hex;
use shards::outcome::{Code, Fault};
use shards::step::EffectClass;

use super::inputs::{Inputs, fault, forbidden, missing};
use super::outputs::json;
use super::sandbox::{Planned, places::listed};
use super::source::{HERE_BYTES, Source};
use super::{Ask, Checked, IO, Reach};
use crate::compute::Compute;
use crate::policy::keys::{Algorithm, HmacSha256, KeyError, KeySettings, Material, PublicKey, forms, only_verifies};

pub(super) static SIGN: BlockInfo = BlockInfo { name: "crypto.sign", aliases: &[], version: "1.0.0", effect: EffectClass::Pure };
pub(super) static VERIFY: BlockInfo =
    BlockInfo { name: "crypto.verify", aliases: &[], version: "1.0.0", effect: EffectClass::Pure };

/// The largest message that an Ed25519 key takes, in bytes: nobody else runs on the core while the library hashes it.
const ED25519_BYTES_MAX: u64 = 8 << 20;

/// `crypto.sign`. Lives on its core.
pub(super) struct Sign {
    reach: Reach,
}

/// `crypto.verify`. Lives on its core.
pub(super) struct Verify {
    reach: Reach,
}

/// What both take.
struct Task<'a> {
    key: Cow<'a, str>,
    source: Source<'a>,
    encoding: Encoding,
}

/// What is to be verified.
struct Claim<'a> {
    task: Task<'a>,
    signature: Vec<u8>,
    /// Whether a signature that does not hold is an error.
    require: bool,
}

/// How a signature is written.
#[derive(Clone, Copy)]
enum Encoding {
    Base64,
    Hex,
}

#[derive(Serialize)]
struct Signed<'a> {
    key: &'a str,
    algorithm: &'static str,
    signature: String,
    size: u64,
}

#[derive(Serialize)]
struct Verified<'a> {
    key: &'a str,
    algorithm: &'static str,
    valid: bool,
}

fn read<'a>(inputs: &Inputs<'a>) -> Result<Task<'a>, Fault> {
    let key = inputs.text_needed("key")?;
    let encoding = match inputs.text("encoding")?.as_deref() {
        None | Some("base64") => Encoding::Base64,
        Some("hex") => Encoding::Hex,
        Some(_) => return Err(forbidden("encoding", "base64 or hex")),
    };
    Ok(Task { key, source: Source::read(inputs)?, encoding })
}

fn read_claim<'a>(inputs: &Inputs<'a>) -> Result<Claim<'a>, Fault> {
    let task = read(inputs)?;
    let signature = match task.encoding {
        Encoding::Base64 => inputs.bytes("signature")?,
        Encoding::Hex => match inputs.text("signature")? {
            Some(text) => {
                let bytes = forms::hex(&text).ok_or_else(|| forbidden("signature", "hexadecimal digits, two for each byte"))?;
                Some(bytes.to_vec())
            }
            None => None,
        },
    };
    let signature = signature.ok_or_else(|| missing("signature", "required"))?;
    Ok(Claim { task, signature, require: inputs.flag("require")?.unwrap_or(false) })
}

pub(super) fn check_sign(ask: &Ask<'_>) -> Result<Checked, Fault> {
    admit(ask, &read(&Inputs::read(ask.inputs)?)?, true)
}

pub(super) fn check_verify(ask: &Ask<'_>) -> Result<Checked, Fault> {
    admit(ask, &read_claim(&Inputs::read(ask.inputs)?)?.task, false)
}

fn admit(ask: &Ask<'_>, task: &Task<'_>, signs: bool) -> Result<Checked, Fault> {
    let pure = Checked::as_sent(EffectClass::Pure);
    match ask.policy.key(ask.tenant, &task.key) {
        Ok(key) if signs && matches!(key.material, Material::Ed25519Public(_)) => {
            Ok(Checked { denied: Some(only_verifies(&task.key).fault()), ..pure })
        }
        Ok(key) => {
            let denied = ask.store_denied(task.source.connector(), "connector");
            task.fits(key).map(|()| Checked {
                needs: Demand { lane: task.source.lane(), ..IO },
                scopes: task.source.scopes(),
                denied,
                ..pure
            })
        }
        Err(refused) => Ok(Checked { denied: Some(refused.fault()), ..pure }),
    }
}

/// What a plan calls the key that signs.
const SIGN_WITH: &str = "sign_with";

pub(super) fn plan_sign(ask: &Ask<'_>) -> Result<Planned, Fault> {
    let task = read(&Inputs::read(ask.inputs)?)?;
    let planned = plan(ask, &task, SIGN_WITH)?;
    let key = ask.policy.key(ask.tenant, &task.key).map_err(|refused| refused.fault())?;
    let signature = task.encoding.write(&vec![0; if key.algorithm() == Algorithm::Ed25519 { 64 } else { 32 }]);
    let size = task.source.inline().map_or(0, |(_, size)| size);
    let outputs = Signed { key: &task.key, algorithm: key.algorithm().as_str(), signature, size };
    Ok(planned.with_outputs(serde_json::json!(outputs)))
}

pub(super) fn plan_verify(ask: &Ask<'_>) -> Result<Planned, Fault> {
    let Claim { task, signature, require } = read_claim(&Inputs::read(ask.inputs)?)?;
    let mut planned = plan(ask, &task, "verify_with")?;
    planned.does.insert("signature".to_owned(), BASE64.encode(&signature).into());
    planned.does.insert("fail_where_it_does_not_hold".to_owned(), require.into());
    let key = ask.policy.key(ask.tenant, &task.key).map_err(|refused| refused.fault())?;
    let outputs = Verified { key: &task.key, algorithm: key.algorithm().as_str(), valid: true };
    Ok(planned.with_outputs(serde_json::json!(outputs)))
}

/// What both say: the key by its name, and its public half where that is known without the secret.
fn plan(ask: &Ask<'_>, task: &Task<'_>, with: &str) -> Result<Planned, Fault> {
    let key = ask.policy.key(ask.tenant, &task.key).map_err(|refused| refused.fault())?;
    let (public, secret) = match &key.material {
        // Whoever only verifies does without the secret where the public half is known.
        Material::Ed25519(seed) => {
            let needed = with == SIGN_WITH || seed.public.is_none();
            (seed.public.map(|public| public.to_string()), Some(&seed.secret).filter(|_| needed))
        }
        Material::Ed25519Public(public) => (Some(public.to_string()), None),
        Material::HmacSha256(shared) => (None, Some(&shared.secret)),
    };
    let told = serde_json::json!({ "key": task.key, "algorithm": key.algorithm().as_str(), "public": public });
    let mut planned = Planned::of(serde_json::json!({ with: told }));
    planned.rules.push(listed("keys", &task.key, key.tenants.as_ref()));
    planned.secrets.extend(secret.cloned());
    task.source.planned(ask, planned)
}

impl Task<'_> {
    /// Whether the key takes as much as the inputs hold.
    fn fits(&self, key: &KeySettings) -> Result<(), Fault> {
        let too_large = |(_, size): &(&str, u64)| key.algorithm() == Algorithm::Ed25519 && *size > ED25519_BYTES_MAX;
        let rule = format!("at most {ED25519_BYTES_MAX} bytes with an Ed25519 key");
        self.source.inline().filter(too_large).map_or(Ok(()), |(field, _)| Err(forbidden(field, &rule)))
    }
}

impl Encoding {
    fn write(self, signature: &[u8]) -> String {
        match self {
            Encoding::Base64 => BASE64.encode(signature),
            Encoding::Hex => hex(signature),
        }
    }
}

/// A key that is configured and cannot be used; it may be later.
fn unusable(error: &KeyError) -> Fault {
    let details = serde_json::json!({ "pointer": "/key", "cause": error.to_string() });
    Fault::new(Code::ResourceUnavailable, "The key cannot be used as it is now.").with_details(details.to_string())
}

/// What a message that Ed25519 takes whole comes to.
async fn over<T: Send + 'static>(compute: &Compute, message: Cow<'_, [u8]>, make: impl FnOnce(&[u8]) -> T + Send + 'static) -> T {
    if message.len() <= HERE_BYTES {
        return make(&message);
    }
    let message = message.into_owned();
    compute.run(move || make(&message)).await
}

impl Sign {
    pub(super) fn new(reach: &Reach) -> Self {
        Sign { reach: reach.clone() }
    }

    async fn run(&self, cx: &BlockCx) -> Result<Bytes, Fault> {
        let task = read(&Inputs::read(&cx.inputs)?)?;
        let key = self.reach.policy.key(&cx.tenant, &task.key).map_err(|refused| refused.fault())?;
        task.fits(key)?;
        let (signature, size) = match &key.material {
            Material::Ed25519(seed) => {
                let message = task.source.whole(&self.reach, cx, ED25519_BYTES_MAX).await?;
                // Read only now, and gone with the signature.
                let secret = seed.signing_key().map_err(|error| unusable(&error))?;
                let size = message.len() as u64;
                (
                    task.encoding
                        .write(&over(&self.reach.compute, message, move |message| secret.sign(message).to_bytes()).await),
                    size,
                )
            }
            Material::HmacSha256(shared) => {
                let mac = shared.keyed().map_err(|error| unusable(&error))?;
                let (mac, size) = task.source.fold(&self.reach, cx, mac, HmacSha256::update).await?;
                (task.encoding.write(&mac.finalize().into_bytes()), size)
            }
            Material::Ed25519Public(_) => return Err(only_verifies(&task.key).fault()),
        };
        Ok(json(&Signed { key: &task.key, algorithm: key.algorithm().as_str(), signature, size }))
    }
}

impl Verify {
    pub(super) fn new(reach: &Reach) -> Self {
        Verify { reach: reach.clone() }
    }

    async fn holds(&self, cx: &BlockCx, task: &Task<'_>, public: PublicKey, signature: Vec<u8>) -> Result<bool, Fault> {
        let message = task.source.whole(&self.reach, cx, ED25519_BYTES_MAX).await?;
        Ok(over(&self.reach.compute, message, move |message| public.holds(message, &signature)).await)
    }

    async fn run(&self, cx: &BlockCx) -> Result<Bytes, Fault> {
        let Claim { task, signature, require } = read_claim(&Inputs::read(&cx.inputs)?)?;
        let key = self.reach.policy.key(&cx.tenant, &task.key).map_err(|refused| refused.fault())?;
        task.fits(key)?;
        let valid = match &key.material {
            Material::Ed25519(seed) => {
                let public = seed.public().map_err(|error| unusable(&error))?;
                self.holds(cx, &task, public, signature).await?
            }
            Material::Ed25519Public(public) => self.holds(cx, &task, *public, signature).await?,
            Material::HmacSha256(shared) => {
                let mac = shared.keyed().map_err(|error| unusable(&error))?;
                let (mac, _) = task.source.fold(&self.reach, cx, mac, HmacSha256::update).await?;
                // In a time that does not tell how much of it is right; a part of a signature is none.
                mac.verify_slice(&signature).is_ok()
            }
        };
        if require && !valid {
            let rule = format!("one that was made over this content by the key {}", task.key);
            return Err(fault(Code::SignatureInvalid, "The signature does not hold.", "signature", &rule));
        }
        Ok(json(&Verified { key: &task.key, algorithm: key.algorithm().as_str(), valid }))
    }
}

impl Block for Sign {
    fn info(&self) -> &'static BlockInfo {
        &SIGN
    }

    fn execute<'a>(&'a self, cx: BlockCx) -> Local<'a, Result<Bytes, Fault>> {
        Box::pin(async move { self.run(&cx).await })
    }
}

impl Block for Verify {
    fn info(&self) -> &'static BlockInfo {
        &VERIFY
    }

    fn execute<'a>(&'a self, cx: BlockCx) -> Local<'a, Result<Bytes, Fault>> {
        Box::pin(async move { self.run(&cx).await })
    }
}

#[cfg(test)]
mod tests;
