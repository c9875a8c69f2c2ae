//! Keys that steps sign and verify with, by the name that an operator gave them. Shared, never changes.
//!
//! A public half is read with the configuration. A secret is a reference: it is read and parsed for each use and wiped behind it,
//! and nothing keeps it. A tenant that a key does not list is not told whether there is one.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{SigningKey, VerifyingKey};
use hmac::{Hmac, KeyInit as _};
use sha2::Sha256;

use super::{Policy, Refused};
use crate::secrets::{SecretError, SecretRef};

pub(crate) mod forms;

/// HMAC-SHA256 with a key in it; wiped when it is dropped.
pub type HmacSha256 = Hmac<Sha256>;

/// How a key signs. Shared, never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// RFC 8032, over the message itself.
    Ed25519,
    /// RFC 2104 with SHA-256.
    HmacSha256,
}

impl Algorithm {
    /// Each, by the name that a configuration and outputs give it.
    pub const NAMES: &'static [(&'static str, Algorithm)] =
        &[("ed25519", Algorithm::Ed25519), ("hmac-sha256", Algorithm::HmacSha256)];

    /// As written.
    pub fn as_str(self) -> &'static str {
        Algorithm::NAMES.iter().find(|(_, algorithm)| *algorithm == self).map_or("", |(name, _)| name)
    }
}

/// A key that an operator knows. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySettings {
    /// Who may use it; none named: nobody. `None`: all.
    pub tenants: Option<Vec<String>>,
    /// What it is made of.
    pub material: Material,
}

/// What a key is made of. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Material {
    /// Signs and verifies.
    Ed25519(Seed),
    /// Only verifies.
    Ed25519Public(PublicKey),
    /// Signs and verifies.
    HmacSha256(Shared),
}

/// The secret of an Ed25519 key. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    /// Where it is.
    pub secret: SecretRef,
    /// Its public half, where that is known without the secret.
    pub public: Option<PublicKey>,
}

/// The secret that both sides of an HMAC have, at least [`forms::HMAC_BYTES_MIN`] bytes. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    /// Where it is.
    pub secret: SecretRef,
}

/// An Ed25519 public key in its one spelling, and none under which signatures of others hold. Shared, never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

/// Why a key cannot be used now; never says what was read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The secret is not there.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// It is there and is no key.
    #[error("{reference}: {rule}")]
    Form {
        /// Which secret.
        reference: String,
        /// What it must be.
        rule: &'static str,
    },
    /// The configuration names a public half that is another key's.
    #[error("{0}: is not the secret of the public key beside it")]
    Halves(String),
}

impl KeySettings {
    /// How it signs.
    pub fn algorithm(&self) -> Algorithm {
        match self.material {
            Material::Ed25519(_) | Material::Ed25519Public(_) => Algorithm::Ed25519,
            Material::HmacSha256(_) => Algorithm::HmacSha256,
        }
    }

    fn lists(&self, tenant: &str) -> bool {
        self.tenants.as_ref().is_none_or(|tenants| tenants.iter().any(|one| one == tenant))
    }
}

impl Seed {
    /// Reads it to sign with: tens of microseconds. Wiped when dropped.
    ///
    /// # Errors
    /// The secret is not there or is no such key.
    pub fn signing_key(&self) -> Result<SigningKey, KeyError> {
        let text = self.secret.read()?;
        let seed = forms::seed(&text).map_err(|rule| KeyError::Form { reference: self.secret.to_string(), rule })?;
        let key = SigningKey::from_bytes(&seed);
        // What it signs would not hold for those who know the public half.
        if self.public.is_some_and(|public| public.0 != key.verifying_key()) {
            return Err(KeyError::Halves(self.secret.to_string()));
        }
        Ok(key)
    }

    /// The public half: as configured, or what the secret gives.
    ///
    /// # Errors
    /// As for [`Seed::signing_key`].
    pub fn public(&self) -> Result<PublicKey, KeyError> {
        match self.public {
            Some(public) => Ok(public),
            None => self.signing_key().map(|key| PublicKey(key.verifying_key())),
        }
    }
}

impl Shared {
    /// Reads it for one message. Wiped when dropped.
    ///
    /// # Errors
    /// The secret is not there or is no such key.
    pub fn keyed(&self) -> Result<HmacSha256, KeyError> {
        let text = self.secret.read()?;
        let key = forms::hmac(&text).map_err(|rule| KeyError::Form { reference: self.secret.to_string(), rule })?;
        Ok(HmacSha256::new_from_slice(&key).expect("HMAC takes keys of any length"))
    }
}

impl PublicKey {
    /// Reads a public key as a configuration has it.
    ///
    /// # Errors
    /// The rule that it breaks; the text is not repeated, it may be the secret half.
    pub fn parse(text: &str) -> Result<PublicKey, &'static str> {
        let bytes = forms::public(text)?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| forms::PUBLIC_RULE)?;
        // Of several spellings of one point only one is taken, and no point under which signatures of others hold.
        let sound = !key.is_weak() && key.to_edwards().compress().to_bytes() == bytes;
        sound.then_some(PublicKey(key)).ok_or(forms::PUBLIC_RULE)
    }

    /// Whether it was this key that signed the message. Strict: no second spelling of a signature holds.
    pub fn holds(&self, message: &[u8], signature: &[u8]) -> bool {
        let signature = ed25519_dalek::Signature::from_slice(signature);
        signature.is_ok_and(|signature| self.0.verify_strict(message, &signature).is_ok())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.0.as_bytes()))
    }
}

impl Policy {
    /// The key that a step of this tenant names.
    ///
    /// # Errors
    /// The rule that denies it. Whether a key is there that does not list the tenant, the tenant is not told.
    pub fn key(&self, tenant: &str, name: &str) -> Result<&KeySettings, Refused> {
        let key = self.keys.get(name).filter(|key| key.lists(tenant));
        key.ok_or_else(|| refused(format!("no [keys.{name}] lists the tenant")))
    }
}

/// A key that was to sign and has no secret.
pub fn only_verifies(name: &str) -> Refused {
    refused(format!("keys.{name}.secret is not set: the key only verifies"))
}

fn refused(rule: String) -> Refused {
    Refused { rule, pointer: Some("/key".to_owned()) }
}

#[cfg(test)]
mod tests;
