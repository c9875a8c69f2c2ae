//! Whose signatures on whole messages hold: Ed25519 over DSSE's pre-authentication encoding of content type and body, in the header
//! `Endstation-Signature: <signer>;<base64>`. The type of what is said to a step carries its kind besides, so that no step that was
//! signed is a cancel, and no cancel a step. A message that is to be signed and is not, or not well, is nobody's: it is looked at before
//! anything else of it counts.
//!
//! What the journal gives back was looked at when it came, under the settings of that time: accepted is accepted.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use shards::ids::Text;
use shards::step::{Delivery, Origin};

use super::keys::PublicKey;
use super::narrow::Scopes;
use super::{DEFAULT, Policy};

/// Carries a signature.
pub const HEADER: &str = "Endstation-Signature";
/// The content type of a message that names none.
const UNSAID: &str = "application/json";
/// A buffer above this is given back after a large message, in bytes.
const KEPT_BYTES_MAX: usize = 256 << 10;

/// What a message is. Shared, never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A step, in whatever profile.
    Step,
    /// Something that is said to one: the name of its kind.
    Notice(&'static str),
}

/// One who may sign. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignerSettings {
    /// For whom; none named: nobody. `None`: all.
    pub tenants: Option<Vec<String>>,
    /// What its signatures hold under.
    pub public: PublicKey,
    /// The most that a step may have that it signed; none: as its tenant.
    pub scopes: Option<Scopes>,
    /// Messages that came earlier do not hold, Unix ms.
    pub not_before_ms: u64,
    /// Messages that came later do not hold, Unix ms.
    pub not_after_ms: u64,
}

impl Policy {
    /// Whether this tenant's messages must be signed.
    pub fn demands_signature(&self, tenant: &str) -> bool {
        let section = if self.demands.contains_key(tenant) { tenant } else { DEFAULT };
        self.demands.get(section).is_some_and(|demanded| *demanded) && !self.open
    }

    /// Who has signed a message whose signature was checked and holds, if anybody has.
    pub fn signer(&self, delivery: &Delivery) -> Option<&str> {
        if self.open {
            return None;
        }
        let (_, said) = delivery.headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(HEADER))?;
        let (name, _) = self.signers.get_key_value(said.split(';').next()?.trim())?;
        Some(name)
    }

    /// The scopes that a message's signer leaves to it, if that are not all. `buffer` is for the encoding.
    ///
    /// # Errors
    /// The rule that the message breaks.
    pub fn check_signature(
        &self,
        kind: Kind,
        tenant: &str,
        delivery: &Delivery,
        at_ms: u64,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Scopes>, String> {
        let demanded = self.demands_signature(tenant);
        if (self.signers.is_empty() && !demanded) || self.open {
            return Ok(None);
        }
        let named = |name: &'static str| {
            let own = move |(header, _): &&(Text, Text)| header.eq_ignore_ascii_case(name);
            delivery.headers.iter().filter(own).map(|(_, value)| &**value)
        };
        let lists =
            |signer: &&SignerSettings| signer.tenants.as_ref().is_none_or(|tenants| tenants.iter().any(|one| one == tenant));
        let mut signatures = named(HEADER);
        if matches!(delivery.origin, Origin::Journal { .. }) {
            let signer = signatures.next().and_then(|said| self.signers.get(said.split(';').next()?.trim()));
            return Ok(signer.filter(lists).and_then(|signer| signer.scopes));
        }
        let said = match (signatures.next(), signatures.next()) {
            (None, _) if demanded => {
                return Err(format!("{HEADER} is not there, and the tenant's messages must be signed"));
            }
            (None, _) => return Ok(None),
            (Some(said), None) => said,
            (Some(_), Some(_)) => return Err(format!("{HEADER} is there twice")),
        };
        let form = || format!("{HEADER} must be a signer's name, a semicolon, and 64 bytes in base64");
        let (name, signature) = said.split_once(';').ok_or_else(form)?;
        let signature = BASE64.decode(signature.trim()).ok().filter(|bytes| bytes.len() == 64).ok_or_else(form)?;
        let name = name.trim();
        let signer = self.signers.get(name).filter(lists);
        let signer = signer.ok_or_else(|| "no [signers.*] of this name lists the tenant".to_owned())?;
        if at_ms < signer.not_before_ms {
            return Err(format!("signers.{name}.not_before is later than the message"));
        }
        if at_ms > signer.not_after_ms {
            return Err(format!("signers.{name}.not_after is earlier than the message"));
        }
        encode(kind, named("Content-Type").next().unwrap_or(UNSAID), &delivery.body, buffer);
        let holds = signer.public.holds(buffer, &signature);
        if buffer.capacity() > KEPT_BYTES_MAX {
            *buffer = Vec::new();
        }
        match holds {
            true => Ok(signer.scopes),
            false => Err(format!("the signature does not hold under signers.{name}.public")),
        }
    }
}

/// DSSE's PAE: what is signed.
pub fn encode(kind: Kind, content_type: &str, body: &[u8], out: &mut Vec<u8>) {
    out.clear();
    let payload_type = match kind {
        Kind::Step => Cow::Borrowed(content_type),
        Kind::Notice(name) => Cow::Owned(format!("{content_type}; notice={name}")),
    };
    out.extend_from_slice(format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), body.len()).as_bytes());
    out.extend_from_slice(body);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use ed25519_dalek::{Signer as _, SigningKey};
    use shards::step::Source;

    use super::super::{PolicySettings, Scope};
    use super::*;

    const BODY: &[u8] = br#"{"type":"echo"}"#;

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    fn policy(open: bool) -> Policy {
        let public = PublicKey::parse(&BASE64.encode(key().verifying_key().as_bytes())).expect("a key");
        let signer = SignerSettings {
            tenants: Some(vec!["acme".to_owned()]),
            public,
            scopes: Some(Scopes::of(&[Scope::Blob])),
            not_before_ms: 1_000,
            not_after_ms: 2_000,
        };
        let settings = PolicySettings {
            signers: BTreeMap::from([("ci".to_owned(), signer)]),
            demands: BTreeMap::from([("acme".to_owned(), true)]),
            ..PolicySettings::default()
        };
        Policy::new(settings, open).expect("no file in it")
    }

    fn signed(content_type: &str) -> String {
        let mut pae = Vec::new();
        encode(Kind::Step, content_type, BODY, &mut pae);
        format!("ci;{}", BASE64.encode(key().sign(&pae).to_bytes()))
    }

    fn delivery(headers: &[(&'static str, &str)], body: &'static [u8]) -> Delivery {
        let headers = headers.iter().map(|(name, value)| (Text::from_static(name), Text::from(*value))).collect();
        Delivery { origin: Origin::Core, subject: Text::new(), headers, body: Bytes::from_static(body), reply: None }
    }

    #[test]
    fn what_is_signed_is_what_the_specification_gives_as_its_example() {
        let mut out = Vec::new();
        encode(Kind::Step, "http://example.com/HelloWorld", b"hello world", &mut out);
        assert_eq!(out, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
        encode(Kind::Notice("cancel"), "application/json", b"{}", &mut out);
        assert_eq!(out, b"DSSEv1 31 application/json; notice=cancel 2 {}");
    }

    #[test]
    fn a_signature_holds_for_its_message_its_tenant_and_its_time() {
        let policy = policy(false);
        let look = |tenant: &str, delivery: &Delivery, at_ms| {
            policy.check_signature(Kind::Step, tenant, delivery, at_ms, &mut Vec::new())
        };
        let json = signed(UNSAID);
        let good = delivery(&[("endstation-signature", &json)], BODY);
        assert_eq!(look("acme", &good, 1_500), Ok(Some(Scopes::of(&[Scope::Blob]))));
        let protobuf = signed("application/protobuf");
        let other = delivery(&[(HEADER, &protobuf), ("content-type", "application/protobuf")], BODY);
        assert!(look("acme", &other, 1_500).is_ok());
        let mut bent = BASE64.decode(&json[3..]).expect("base64");
        bent[40] ^= 1;
        let bent = format!("ci;{}", BASE64.encode(bent));
        for (tenant, headers, body, at_ms, rule) in [
            ("acme", vec![], BODY, 1_500, "is not there"),
            ("acme", vec![(HEADER, &json[..]), (HEADER, &json[..])], BODY, 1_500, "is there twice"),
            ("acme", vec![(HEADER, &json[3..])], BODY, 1_500, "must be a signer's name"),
            ("acme", vec![(HEADER, "ci;AAAA")], BODY, 1_500, "must be a signer's name"),
            ("acme", vec![(HEADER, &json[..])], &b"{\"type\":\"echo\" }"[..], 1_500, "does not hold"),
            ("acme", vec![(HEADER, &json[..]), ("Content-Type", "application/protobuf")], BODY, 1_500, "does not hold"),
            ("acme", vec![(HEADER, &bent[..])], BODY, 1_500, "does not hold"),
            ("acme", vec![(HEADER, &json[..])], BODY, 999, "not_before"),
            ("acme", vec![(HEADER, &json[..])], BODY, 2_001, "not_after"),
            ("other", vec![(HEADER, &json[..])], BODY, 1_500, "no [signers.*] of this name lists the tenant"),
        ] {
            let told = look(tenant, &delivery(&headers, body), at_ms).expect_err(rule);
            assert!(told.contains(rule), "{told}");
        }
        assert_eq!(look("other", &delivery(&[], BODY), 1_500), Ok(None), "nobody demands one of it");
        let as_cancel = policy.check_signature(Kind::Notice("cancel"), "acme", &good, 1_500, &mut Vec::new());
        assert!(as_cancel.expect_err("it is a step").contains("does not hold"));
    }

    #[test]
    fn what_was_accepted_is_not_looked_at_again_and_a_worker_for_development_asks_for_none() {
        let origin = Origin::Journal { source: Source::Core, since_ms: 5_000 };
        let back = |headers: &[(&'static str, &str)]| Delivery { origin: origin.clone(), ..delivery(headers, BODY) };
        let look = |delivery: &Delivery| policy(false).check_signature(Kind::Step, "acme", delivery, 5_000, &mut Vec::new());
        assert_eq!(look(&back(&[])), Ok(None));
        assert_eq!(look(&back(&[(HEADER, &signed(UNSAID))])), Ok(Some(Scopes::of(&[Scope::Blob]))));
        for other in ["", "abc", "gone;AAAA"] {
            assert_eq!(look(&back(&[(HEADER, other), (HEADER, other)])), Ok(None), "{other:?}");
        }
        assert_eq!(policy(true).check_signature(Kind::Step, "acme", &delivery(&[], BODY), 0, &mut Vec::new()), Ok(None));
    }
}
