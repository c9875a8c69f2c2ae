//! Forms of keys, who may use them, and what a bad secret is told as.

use super::*;
use crate::policy::PolicySettings;

/// The first key of RFC 8032: seed and public half.
const SEED: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
const PUBLIC: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

fn bytes(hex: &str) -> Vec<u8> {
    forms::hex(hex).expect("digits").to_vec()
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64.encode(der))
}

#[test]
fn a_seed_is_read_in_each_of_its_forms_and_in_no_other() {
    let (seed, public) = (bytes(SEED), bytes(PUBLIC));
    let v1 = [b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20", &seed[..]].concat();
    let v2 = |public: &[u8]| {
        let head = b"\x30\x51\x02\x01\x01\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";
        [head, &seed[..], b"\x81\x21\x00", public].concat()
    };
    let older = {
        let head = b"\x30\x53\x02\x01\x01\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";
        [head, &seed[..], b"\xa1\x23\x03\x21\x00", &public].concat()
    };
    for text in [
        SEED.to_owned(),
        SEED.to_uppercase(),
        BASE64.encode(&seed),
        BASE64.encode(&seed).trim_end_matches('=').to_owned(),
        format!(" {SEED}\n"),
        pem("PRIVATE KEY", &v1),
        pem("PRIVATE KEY", &v1).replace('\n', "\r\n"),
        pem("PRIVATE KEY", &v2(&public)),
        pem("PRIVATE KEY", &older),
    ] {
        assert_eq!(forms::seed(&text).map(|seed| seed.to_vec()), Ok(seed.clone()), "{text}");
    }
    let mut other = public.clone();
    other[0] ^= 1;
    for text in [
        String::new(),
        SEED[..62].to_owned(),
        format!("{SEED}00"),
        SEED.replace('9', "g"),
        BASE64.encode(&seed[..31]),
        pem("PUBLIC KEY", &v1),
        pem("ENCRYPTED PRIVATE KEY", &v1),
        pem("PRIVATE KEY", &v1[..47]),
        pem("PRIVATE KEY", &v2(&other)),
        pem("PRIVATE KEY", &v1).replace("END", "ENDE"),
        pem("PRIVATE KEY", &[&v1[..], b"\0"].concat()),
        // Another algorithm: X25519.
        pem("PRIVATE KEY", &[&v1[..11], b"\x6e", &v1[12..]].concat()),
    ] {
        assert_eq!(forms::seed(&text), Err(forms::SEED_RULE), "{text}");
    }
}

#[test]
fn a_public_key_is_one_point_in_its_one_spelling() {
    let spki = [b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00", &bytes(PUBLIC)[..]].concat();
    let shown = BASE64.encode(bytes(PUBLIC));
    for text in [PUBLIC.to_owned(), shown.clone(), pem("PUBLIC KEY", &spki)] {
        assert_eq!(PublicKey::parse(&text).expect(&text).to_string(), shown);
    }
    // All points of small order, and spellings of them and of others that no encoder writes.
    for hex in [
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "0100000000000000000000000000000000000000000000000000000000000080",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "f0ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "f3ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        // Not a point at all.
        "0200000000000000000000000000000000000000000000000000000000000000",
    ] {
        assert_eq!(PublicKey::parse(hex), Err(forms::PUBLIC_RULE), "{hex}");
    }
}

#[test]
fn an_hmac_key_is_a_text_or_bytes_that_say_so() {
    for (text, key) in [
        ("sixteen bytes ok", b"sixteen bytes ok".to_vec()),
        ("base64:c2l4dGVlbiBieXRlcyBvaw==", b"sixteen bytes ok".to_vec()),
        ("base64:c2l4dGVlbiBieXRlcyBvaw", b"sixteen bytes ok".to_vec()),
        ("hex:000102030405060708090A0b0c0d0e0f", (0..16).collect()),
    ] {
        assert_eq!(forms::hmac(text).map(|key| key.to_vec()), Ok(key), "{text}");
    }
    for text in [
        "",
        "fifteen bytes!!",
        "base64:c2l4dGVlbg==",
        "base64:not base64 at all, is it",
        "hex:00",
        "hex:zz0102030405060708090a0b0c0d0e0f",
    ] {
        assert_eq!(forms::hmac(text), Err(forms::HMAC_RULE), "{text}");
    }
}

#[test]
fn a_key_is_for_the_tenants_that_it_lists() {
    let with = |tenants: Option<&[&str]>| KeySettings {
        tenants: tenants.map(|list| list.iter().map(|tenant| (*tenant).to_owned()).collect()),
        material: Material::Ed25519Public(PublicKey::parse(PUBLIC).expect("a key")),
    };
    let mut settings = PolicySettings::default();
    settings.keys.insert("some".to_owned(), with(Some(&["acme"])));
    settings.keys.insert("all".to_owned(), with(None));
    settings.keys.insert("nobody".to_owned(), with(Some(&[])));
    // Development opens the network and no key.
    for open in [false, true] {
        let policy = Policy::new(settings.clone(), open).expect("nothing to read");
        for (tenant, key, allowed) in [
            ("acme", "some", true),
            ("acme", "all", true),
            ("acme", "nobody", false),
            ("other", "some", false),
            ("other", "all", true),
            ("acme", "not-there", false),
        ] {
            match policy.key(tenant, key) {
                Ok(_) => assert!(allowed, "{tenant} {key}"),
                // The same words whether it is there or not.
                Err(refused) => assert!(!allowed && refused.rule == format!("no [keys.{key}] lists the tenant"), "{refused:?}"),
            }
        }
        assert!(!format!("{policy:?}").contains(&BASE64.encode(bytes(PUBLIC))));
    }
}

#[test]
fn a_secret_that_is_no_key_is_not_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("secret");
    let secret = SecretRef::parse(&format!("secret://file{}", path.display())).expect("a reference");
    let other =
        PublicKey::parse("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c").expect("RFC 8032, the second");
    let seed = |public| Seed { secret: secret.clone(), public };
    let told = |error: KeyError, rule: &str| {
        let said = error.to_string();
        assert!(
            said.contains(rule) && said.contains("secret://file") && !said.contains("hunter2") && !said.contains(SEED),
            "{said}"
        );
    };
    told(seed(None).signing_key().expect_err("not there"), "No such file");
    told(Shared { secret: secret.clone() }.keyed().expect_err("not there"), "No such file");
    std::fs::write(&path, "hunter2\n").expect("written");
    told(seed(None).signing_key().expect_err("no seed"), forms::SEED_RULE);
    told(Shared { secret: secret.clone() }.keyed().expect_err("too short"), forms::HMAC_RULE);
    std::fs::write(&path, format!("{SEED}\n")).expect("written");
    told(seed(Some(other)).signing_key().expect_err("another key's half"), "is not the secret of the public key");
    let own = PublicKey::parse(PUBLIC).expect("a key");
    assert_eq!(seed(None).public(), Ok(own));
    assert!(seed(Some(own)).signing_key().is_ok());
}
