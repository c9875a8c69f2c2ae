//! The forms in which keys are written: hexadecimal digits, base64, and PEM blocks of RFC 8410. Pure; what may be secret lies in
//! memory that is wiped.
//!
//! A DER structure of a key that has one algorithm and one length is one fixed beginning and the key, so it is compared, not
//! parsed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_PAD_INDIFFERENT as BASE64;
use zeroize::Zeroizing;

/// What the secret of an Ed25519 key must be.
pub(crate) const SEED_RULE: &str = "must be an Ed25519 seed: 32 bytes as 64 hexadecimal digits or base64, or a PKCS#8 PEM block \
                             (BEGIN PRIVATE KEY)";
/// What a public key must be.
pub(crate) const PUBLIC_RULE: &str = "must be an Ed25519 public key: 32 bytes as base64 or 64 hexadecimal digits, or an SPKI PEM \
                                      block (BEGIN PUBLIC KEY)";
/// What the secret of an HMAC key must be.
pub(crate) const HMAC_RULE: &str = "must be a key of at least 16 bytes: a text, or base64: or hex: and the bytes in that form";
/// The shortest HMAC key, in bytes.
pub(crate) const HMAC_BYTES_MIN: usize = 16;

const KEY_BYTES: usize = 32;
const PEM: &str = "-----BEGIN ";
/// `OneAsymmetricKey` of version 1, up to the seed.
const PKCS8_V1: &[u8] = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";
/// The same of version 2, and what stands between the seed and the public half: as the standard has it, and as some write it.
const PKCS8_V2: [(&[u8], &[u8]); 2] = [
    (b"\x30\x51\x02\x01\x01\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20", b"\x81\x21\x00"),
    (b"\x30\x53\x02\x01\x01\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20", b"\xa1\x23\x03\x21\x00"),
];
/// `SubjectPublicKeyInfo`, up to the key.
const SPKI: &[u8] = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";

/// An Ed25519 seed.
pub(crate) fn seed(text: &str) -> Result<Zeroizing<[u8; KEY_BYTES]>, &'static str> {
    let text = text.trim();
    if !text.starts_with(PEM) {
        return key(text).ok_or(SEED_RULE);
    }
    let der = pem(text, "PRIVATE KEY").ok_or(SEED_RULE)?;
    if let Some(seed) = der.strip_prefix(PKCS8_V1).and_then(exact) {
        return Ok(seed);
    }
    let with_public = |(head, middle): (&[u8], &[u8])| {
        let (seed, rest) = der.strip_prefix(head)?.split_at_checked(KEY_BYTES)?;
        let public = exact(rest.strip_prefix(middle)?)?;
        let seed = exact(seed)?;
        // Whoever wrote two halves that do not belong together did not mean this key.
        let own = ed25519_dalek::SigningKey::from_bytes(&seed).verifying_key();
        (own.as_bytes() == &*public).then_some(seed)
    };
    PKCS8_V2.into_iter().find_map(with_public).ok_or(SEED_RULE)
}

/// The bytes of an Ed25519 public key; whether they are a point is not looked at.
pub(crate) fn public(text: &str) -> Result<[u8; KEY_BYTES], &'static str> {
    let text = text.trim();
    let key = if text.starts_with(PEM) {
        pem(text, "PUBLIC KEY").and_then(|der| der.strip_prefix(SPKI).and_then(exact))
    } else {
        key(text)
    };
    key.map(|key| *key).ok_or(PUBLIC_RULE)
}

/// An HMAC key.
pub(crate) fn hmac(text: &str) -> Result<Zeroizing<Vec<u8>>, &'static str> {
    let key = if let Some(rest) = text.strip_prefix("base64:") {
        base64(rest.trim())
    } else if let Some(rest) = text.strip_prefix("hex:") {
        hex(rest.trim())
    } else {
        Some(Zeroizing::new(text.as_bytes().to_vec()))
    };
    key.filter(|key| key.len() >= HMAC_BYTES_MIN).ok_or(HMAC_RULE)
}

/// The bytes that hexadecimal digits of either case stand for.
pub(crate) fn hex(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    if !text.len().is_multiple_of(2) {
        return None;
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() / 2));
    for pair in text.as_bytes().chunks_exact(2) {
        bytes.push(digit(pair[0])? << 4 | digit(pair[1])?);
    }
    Some(bytes)
}

fn key(text: &str) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
    let bytes = if text.len() == KEY_BYTES * 2 { hex(text) } else { base64(text) };
    exact(&bytes?)
}

fn exact(bytes: &[u8]) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    (bytes.len() == KEY_BYTES).then(|| key.copy_from_slice(bytes))?;
    Some(key)
}

fn base64(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    // Room for all of it: a vector that grows leaves what it held behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() + 4));
    BASE64.decode_vec(text, &mut bytes).ok().map(|()| bytes)
}

/// The content of the one PEM block that the text is.
fn pem(text: &str, label: &str) -> Option<Zeroizing<Vec<u8>>> {
    let body = text.strip_prefix(PEM)?.strip_prefix(label)?.strip_prefix("-----")?;
    let body = body.strip_suffix("-----")?.strip_suffix(label)?.strip_suffix("-----END ")?;
    let mut joined = Zeroizing::new(String::with_capacity(body.len()));
    body.split_ascii_whitespace().for_each(|line| joined.push_str(line));
    base64(&joined)
}
