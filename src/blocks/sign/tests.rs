//! Signatures that others have published, what must not hold, who may use a key, and that no secret shows anywhere.

use std::path::Path;
use std::rc::Rc;

use serde_json::{Value, json};
use shards::outcome::Effected;

use super::super::local::{LocalBlobs, folder_of};
use super::super::tests::{assert_presentable, on_a_shard, pointer, reach, run_with};
use super::super::{build_all, find};
use super::*;
use crate::policy::Policy;
use crate::policy::PolicySettings;
use crate::policy::keys::{PublicKey, Seed, Shared};
use crate::policy::narrow::NOTHING;
use crate::secrets::SecretRef;

/// Keys of RFC 8032, section 7.1: seed, public half, message and signature.
const ED25519: [[&str; 4]; 4] = [
    [
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ],
    [
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ],
    [
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ],
    [
        "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ],
];

fn bytes(digits: &str) -> Vec<u8> {
    forms::hex(digits).expect("digits").to_vec()
}

fn b64(digits: &str) -> String {
    BASE64.encode(bytes(digits))
}

/// Where a test's keys lie, and what steps with them reach.
struct Ring {
    settings: PolicySettings,
    folder: tempfile::TempDir,
}

impl Ring {
    fn new() -> Self {
        Ring { settings: PolicySettings::default(), folder: tempfile::tempdir().expect("a folder") }
    }

    fn secret(&self, name: &str, text: &str) -> SecretRef {
        let path = self.folder.path().join(name);
        std::fs::write(&path, format!("{text}\n")).expect("written");
        SecretRef::parse(&format!("secret://file{}", path.display())).expect("a reference")
    }

    fn key(mut self, name: &str, tenants: Option<&[&str]>, material: Material) -> Self {
        let tenants = tenants.map(|list| list.iter().map(|tenant| (*tenant).to_owned()).collect());
        self.settings.keys.insert(name.to_owned(), KeySettings { tenants, material });
        self
    }

    fn seed(self, name: &str, seed: &str) -> Self {
        let secret = self.secret(name, seed);
        self.key(name, None, Material::Ed25519(Seed { secret, public: None }))
    }

    fn public(self, name: &str, public: &str) -> Self {
        self.key(name, None, Material::Ed25519Public(PublicKey::parse(public).expect("a public key")))
    }

    fn hmac(self, name: &str, text: &str) -> Self {
        let secret = self.secret(name, text);
        self.key(name, None, Material::HmacSha256(Shared { secret }))
    }

    fn reach(&self) -> Reach {
        reach(Policy::new(self.settings.clone(), false).expect("nothing to read"))
    }
}

async fn ask(reach: &Reach, blobs: &Rc<LocalBlobs>, name: &str, inputs: Value) -> Result<Value, Fault> {
    run_with(reach, blobs, "acme", name, &inputs.to_string(), 1).await
}

/// Whether the signature holds, for what is known to be well formed.
async fn holds(reach: &Reach, blobs: &Rc<LocalBlobs>, key: &str, message: &[u8], signature: &[u8]) -> bool {
    let inputs = json!({ "key": key, "bytes": BASE64.encode(message), "signature": hex(signature), "encoding": "hex" });
    let told = ask(reach, blobs, "crypto.verify", inputs).await.expect("a verdict");
    told["valid"].as_bool().expect("true or false")
}

fn lay(root: &Path, name: &str, content: &[u8]) {
    let folder = root.join(folder_of("acme"));
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join(name), content).expect("written");
}

#[test]
fn ed25519_signatures_are_those_of_rfc_8032() {
    on_a_shard(|blobs, root| async move {
        for [seed, public, message, signature] in ED25519 {
            let ring = Ring::new().seed("own", seed).public("theirs", public);
            let reach = ring.reach();
            let size = message.len() / 2;
            let signed = json!({ "key": "own", "algorithm": "ed25519", "signature": b64(signature), "size": size });
            lay(&root, "blob", &bytes(message));
            for source in [json!({ "bytes": b64(message) }), json!({ "path": "blob" })] {
                let mut inputs = source;
                inputs["key"] = json!("own");
                assert_eq!(ask(&reach, &blobs, "crypto.sign", inputs.clone()).await.as_ref(), Ok(&signed));
                inputs["encoding"] = json!("hex");
                assert_eq!(ask(&reach, &blobs, "crypto.sign", inputs.clone()).await.expect("signed")["signature"], signature);
                for key in ["own", "theirs"] {
                    inputs["key"] = json!(key);
                    inputs["signature"] = json!(signature.to_uppercase());
                    let told = ask(&reach, &blobs, "crypto.verify", inputs.clone()).await;
                    assert_eq!(told, Ok(json!({ "key": key, "algorithm": "ed25519", "valid": true })));
                }
            }
        }
    });
}

#[test]
fn hmac_signatures_are_those_of_rfc_4231() {
    let (aa, long) = ("aa".repeat(131), "Test Using Larger Than Block-Size Key - Hash Key First");
    let longer = "This is a test using a larger than block-size key and a larger than block-size data. The key needs to be \
                  hashed before being used by the HMAC algorithm.";
    let vectors: [(String, Vec<u8>, &str); 5] = [
        ("0b".repeat(20), b"Hi There".to_vec(), "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
        ("aa".repeat(20), vec![0xdd; 50], "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
        (hex(&(1..=25).collect::<Vec<u8>>()), vec![0xcd; 50], "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"),
        (aa.clone(), long.into(), "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"),
        (aa, longer.into(), "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2"),
    ];
    on_a_shard(|blobs, root| async move {
        for (key, message, signature) in vectors {
            let ring = Ring::new().hmac("hex", &format!("hex:{key}")).hmac("base64", &format!("base64:{}", b64(&key)));
            let reach = ring.reach();
            lay(&root, "blob", &message);
            for name in ["hex", "base64"] {
                for source in [json!({ "bytes": BASE64.encode(&message) }), json!({ "path": "blob" })] {
                    let mut inputs = source;
                    (inputs["key"], inputs["encoding"]) = (json!(name), json!("hex"));
                    let signed = ask(&reach, &blobs, "crypto.sign", inputs.clone()).await;
                    let expected =
                        json!({ "key": name, "algorithm": "hmac-sha256", "signature": signature, "size": message.len() });
                    assert_eq!(signed, Ok(expected));
                    inputs["signature"] = json!(signature);
                    let told = ask(&reach, &blobs, "crypto.verify", inputs).await;
                    assert_eq!(told, Ok(json!({ "key": name, "algorithm": "hmac-sha256", "valid": true })));
                }
            }
        }
    });
}

#[test]
fn nothing_holds_that_one_bit_was_changed_in() {
    on_a_shard(|blobs, _| async move {
        let [seed, public, ..] = ED25519[2];
        let [other, ..] = ED25519[1];
        let ring = Ring::new().seed("ed", seed).public("public", public).seed("other", other);
        let ring = ring.hmac("mac", "a shared secret, long enough").hmac("mac2", "a shared secret, long enougi");
        let reach = ring.reach();
        let message = b"forty-two bytes of something to be signed.".to_vec();
        for (key, wrong) in [("ed", "other"), ("public", "other"), ("mac", "mac2"), ("ed", "mac"), ("mac", "ed")] {
            let signer = if key == "public" { "ed" } else { key };
            let inputs = json!({ "key": signer, "bytes": BASE64.encode(&message), "encoding": "hex" });
            let signed = ask(&reach, &blobs, "crypto.sign", inputs).await.expect("signed");
            let signature = bytes(signed["signature"].as_str().expect("text"));
            assert!(holds(&reach, &blobs, key, &message, &signature).await, "{key}");
            for bit in 0..message.len() * 8 {
                let mut bent = message.clone();
                bent[bit / 8] ^= 1 << (bit % 8);
                assert!(!holds(&reach, &blobs, key, &bent, &signature).await, "{key}: bit {bit} of the message");
            }
            for bit in 0..signature.len() * 8 {
                let mut bent = signature.clone();
                bent[bit / 8] ^= 1 << (bit % 8);
                assert!(!holds(&reach, &blobs, key, &message, &bent).await, "{key}: bit {bit} of the signature");
            }
            // Another key, and another algorithm; a part of a signature, and more than one.
            assert!(!holds(&reach, &blobs, wrong, &message, &signature).await, "{key} under {wrong}");
            for length in [0, 1, signature.len() - 1] {
                assert!(!holds(&reach, &blobs, key, &message, &signature[..length]).await, "{key}: {length} bytes of it");
            }
            assert!(!holds(&reach, &blobs, key, &message, &[&signature[..], b"\0"].concat()).await);
        }
    });
}

#[test]
fn a_second_spelling_of_an_ed25519_signature_does_not_hold() {
    on_a_shard(|blobs, _| async move {
        let [_, public, message, signature] = ED25519[2];
        let (message, signature) = (bytes(message), bytes(signature));
        // The scalar and the group's order: the same equation, other bytes.
        let order = bytes("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010");
        let (mut second, mut carry) = (signature.clone(), 0);
        for (byte, more) in second[32..].iter_mut().zip(order) {
            let sum = u16::from(*byte) + u16::from(more) + carry;
            (*byte, carry) = (sum as u8, sum >> 8);
        }
        let ring = Ring::new().public("theirs", public);
        let reach = ring.reach();
        assert!(holds(&reach, &blobs, "theirs", &message, &signature).await);
        assert!(!holds(&reach, &blobs, "theirs", &message, &second).await);

        // A point of small order in the signature: it satisfies the equation that lax verifiers check, and not the strict one.
        let public = "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43";
        let message = bytes("aebf3f2601a0c8c5d39cc7d8911642f740b78168218da8471772b35f9d35b9ab");
        let signature = bytes(
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa8c4bd45aecaca5b24fb97bc10ac27ac8751a7dfe1baff8b953ec9f5833ca260e",
        );
        let lax = ed25519_dalek::VerifyingKey::try_from(&bytes(public)[..]).expect("a point");
        let given = ed25519_dalek::Signature::from_slice(&signature).expect("its length");
        assert!(ed25519_dalek::Verifier::verify(&lax, &message, &given).is_ok());
        let ring = Ring::new().public("mixed", public);
        let reach = ring.reach();
        assert!(!holds(&reach, &blobs, "mixed", &message, &signature).await);
    });
}

#[test]
fn a_required_signature_that_does_not_hold_is_an_error() {
    on_a_shard(|blobs, _| async move {
        let [_, public, message, signature] = ED25519[1];
        let ring = Ring::new().public("theirs", public);
        let reach = ring.reach();
        let inputs = |signature: &str| json!({ "key": "theirs", "bytes": b64(message), "signature": signature, "require": true });
        let told = ask(&reach, &blobs, "crypto.verify", inputs(&b64(signature))).await.expect("it holds");
        assert_eq!(told["valid"], true);
        for signature in [b64(ED25519[0][3]), "AAAA".to_owned(), String::new()] {
            let fault = ask(&reach, &blobs, "crypto.verify", inputs(&signature)).await.expect_err("it does not");
            assert_presentable(&fault);
            assert_eq!((fault.code, pointer(&fault).as_str()), (Code::SignatureInvalid, "/signature"));
        }
    });
}

#[test]
fn who_a_key_does_not_list_is_denied_twice_and_not_told_whether_it_is_there() {
    on_a_shard(|blobs, _| async move {
        let [seed, public, ..] = ED25519[0];
        let ring = Ring::new().public("verifies", public);
        let secret = ring.secret("own", seed);
        let material = Material::Ed25519(Seed { secret, public: None });
        let ring = ring.key("own", Some(&["acme"]), material.clone()).key("nobodys", Some(&[]), material);
        let reach = ring.reach();
        for (tenant, key, rule) in [
            ("other", "own", "no [keys.own] lists the tenant"),
            ("acme", "nobodys", "no [keys.nobodys] lists the tenant"),
            ("acme", "gone", "no [keys.gone] lists the tenant"),
            ("acme", "", "no [keys.] lists the tenant"),
            ("acme", "verifies", "keys.verifies.secret is not set: the key only verifies"),
        ] {
            for name in ["crypto.sign", "crypto.verify"] {
                if (name, key) == ("crypto.verify", "verifies") {
                    continue;
                }
                let inputs = json!({ "key": key, "text": "x", "signature": "" }).to_string();
                let (id, entry) = find(name, false).expect("a known block");
                let ask = Ask { policy: &reach.policy, tenant, name, inputs: inputs.as_bytes(), provider: "", narrow: &NOTHING };
                let before = entry.check(&ask).expect("good inputs").denied.expect("denied before acceptance");
                let cx = BlockCx {
                    tenant: tenant.into(),
                    key: shards::ids::Key([0; 16]),
                    try_number: 1,
                    left_ms: 60_000,
                    needs: shards::step::Needs::default(),
                    inputs: Bytes::from(inputs.clone()),
                    blobs: blobs.clone(),
                    guardrails: Bytes::new(),
                    cache: None,
                    trace_id: None,
                    observers: None,
                };
                let after = build_all(&reach)[usize::from(id.0)].execute(cx).await.expect_err("denied when it runs");
                assert_eq!(before, after);
                assert_presentable(&after);
                assert_eq!((after.code, pointer(&after).as_str()), (Code::PermissionDenied, "/key"));
                let details: Value = serde_json::from_slice(&after.details).expect("JSON");
                assert_eq!(details["rule"], rule, "{tenant} {key} {name}");
            }
        }
        assert!(run_with(&reach, &blobs, "acme", "crypto.sign", r#"{"key":"own","text":"x"}"#, 1).await.is_ok());
    });
}

#[test]
fn no_secret_is_in_any_output_error_or_log() {
    const SEED: &str = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb";
    const SHARED: &str = "c4n4ry-of-the-shared-secret";
    on_a_shard(|blobs, _| async move {
        let ring = Ring::new().seed("ed", SEED).hmac("mac", SHARED);
        let gone = SecretRef::parse("secret://file/nowhere/at/all").expect("a reference");
        let (short, broken) = (ring.secret("short", "c4n4ry"), ring.secret("broken", &format!("{SEED}c4n4ry")));
        let other = PublicKey::parse(ED25519[0][1]).expect("a key");
        let mine = ring.secret("mine", SEED);
        let ring = ring
            .key("gone", None, Material::Ed25519(Seed { secret: gone.clone(), public: None }))
            .key("gone-mac", None, Material::HmacSha256(Shared { secret: gone }))
            .key("short", None, Material::HmacSha256(Shared { secret: short }))
            .key("broken", None, Material::Ed25519(Seed { secret: broken, public: None }))
            .key("halves", None, Material::Ed25519(Seed { secret: mine, public: Some(other) }));
        let reach = ring.reach();
        let mut told = vec![format!("{:?} {:?}", reach.policy, ring.settings)];
        for key in ["ed", "mac", "gone", "gone-mac", "short", "broken", "halves"] {
            for inputs in [json!({ "text": "x" }), json!({ "path": "not/there" }), json!({ "text": "x", "encoding": "hex" })] {
                for (name, require) in [("crypto.sign", false), ("crypto.verify", false), ("crypto.verify", true)] {
                    let mut inputs = inputs.clone();
                    (inputs["key"], inputs["signature"], inputs["require"]) = (json!(key), json!("00"), json!(require));
                    if name == "crypto.verify" && inputs["encoding"].is_null() {
                        inputs["signature"] = json!("AAAA");
                    }
                    let (said, unusable) = match ask(&reach, &blobs, name, inputs.clone()).await {
                        Ok(outputs) => (outputs.to_string(), false),
                        Err(fault) => {
                            assert_presentable(&fault);
                            let unusable = fault.code == Code::ResourceUnavailable;
                            let details: Value = serde_json::from_slice(&fault.details).expect("JSON");
                            assert!(!unusable || (details["pointer"] == "/key" && details["cause"].is_string()), "{details}");
                            assert_eq!(fault.effect, Effected::None);
                            (format!("{fault:?} {}", String::from_utf8_lossy(&fault.details)), unusable)
                        }
                    };
                    let public_half = key == "halves" && name == "crypto.verify";
                    let as_text = inputs["path"].is_null();
                    let bad_key = !["ed", "mac"].contains(&key) && !public_half;
                    assert!(!as_text || unusable == bad_key, "{key} {name} {inputs}: {said}");
                    told.push(said);
                }
            }
        }
        let seed = bytes(SEED);
        for canary in [SEED, &BASE64.encode(&seed)[..40], SHARED, &BASE64.encode(SHARED)[..32], &hex(SHARED.as_bytes()), "c4n4ry"]
        {
            for said in &told {
                assert!(!said.contains(canary), "{canary}: {said}");
            }
        }
    });
}

#[test]
fn a_secret_that_comes_later_is_read_then() {
    on_a_shard(|blobs, _| async move {
        let ring = Ring::new().hmac("mac", "a shared secret, long enough");
        let reach = ring.reach();
        let path = ring.folder.path().join("mac");
        let sign = || ask(&reach, &blobs, "crypto.sign", json!({ "key": "mac", "text": "x" }));
        let first = sign().await.expect("signed");
        std::fs::remove_file(&path).expect("removed");
        let fault = sign().await.expect_err("not there");
        assert_eq!((fault.code, fault.effect), (Code::ResourceUnavailable, Effected::None));
        assert!(fault.code.retryable());
        std::fs::write(&path, "another secret, long enough").expect("written");
        assert_ne!(sign().await.expect("signed")["signature"], first["signature"]);
    });
}

#[test]
fn ed25519_takes_eight_mebibytes_and_hmac_takes_more_without_holding_up_others() {
    on_a_shard(|blobs, root| async move {
        let ring = Ring::new().seed("ed", ED25519[0][0]).hmac("mac", "a shared secret, long enough");
        let reach = ring.reach();
        for (name, size) in [("most", 8 << 20), ("more", (8 << 20) + 1), ("much", 64 << 20)] {
            lay(&root, name, &vec![b'a'; size]);
        }
        let signed = ask(&reach, &blobs, "crypto.sign", json!({ "key": "ed", "path": "most" })).await.expect("signed");
        let inputs = json!({ "key": "ed", "path": "most", "signature": signed["signature"] });
        assert_eq!(ask(&reach, &blobs, "crypto.verify", inputs).await.expect("a verdict")["valid"], true);
        for name in ["crypto.sign", "crypto.verify"] {
            let fault = ask(&reach, &blobs, name, json!({ "key": "ed", "path": "more", "signature": "" })).await;
            let fault = fault.expect_err("too large");
            assert_presentable(&fault);
            assert_eq!(fault.code, Code::ExecutionFailed);
            let text = "a".repeat((8 << 20) + 1);
            let fault =
                ask(&reach, &blobs, name, json!({ "key": "ed", "text": text, "signature": "" })).await.expect_err("too large");
            assert_eq!((fault.code, pointer(&fault).as_str()), (Code::InvalidInput, "/text"));
        }

        let ticks = Rc::new(std::cell::Cell::new(0));
        let (counter, done) = (ticks.clone(), Rc::new(std::cell::Cell::new(false)));
        let stop = done.clone();
        let other = glommio::spawn_local(async move {
            while !stop.get() {
                counter.set(counter.get() + 1);
                glommio::timer::sleep(std::time::Duration::from_millis(1)).await;
            }
        });
        let signed = ask(&reach, &blobs, "crypto.sign", json!({ "key": "mac", "path": "much" })).await.expect("signed");
        assert_eq!(signed["size"], 64 << 20);
        let text = "a".repeat(64 << 20);
        let whole = ask(&reach, &blobs, "crypto.sign", json!({ "key": "mac", "text": text })).await.expect("signed");
        assert_eq!(whole["signature"], signed["signature"]);
        done.set(true);
        other.await;
        assert!(ticks.get() >= 10, "the other task ran {} times", ticks.get());
    });
}
