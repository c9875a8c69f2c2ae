//! Blobs in stores: the same behaviour in memory and on an S3 server, and what the latter's ways to fail come to.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shards::outcome::Code;
use shards::runtime::rt;

use super::super::local::LocalBlobs;
use super::super::tests::{drop_after, on_a_shard, reach, run_with};
use super::super::{Ask, Reach, find};
use super::*;
use crate::net::egress::{Allow, Target};
use crate::net::tls::TlsFiles;
use crate::policy::narrow::NOTHING;
use crate::policy::stores::{StoreKind, StoreSettings};
use crate::policy::{Policy, PolicySettings};
use crate::secrets::SecretRef;

mod behaviour;
mod failures;
mod quota;
pub(crate) mod server;

use server::{ACCESS_KEY, BUCKET, SECRET_KEY, Server, Valve};

/// How long an exchange may stand still in these tests, in milliseconds.
const STALL_MS: u64 = 400;

fn memory() -> StoreSettings {
    StoreSettings {
        tenants: None,
        kind: StoreKind::Memory,
        prefix: "pre/fix/".to_owned(),
        allow: Vec::new(),
        tls: TlsFiles::default(),
        bytes_max: None,
        stall_ms: STALL_MS,
        if_absent: true,
    }
}

/// A store on this server, and the folder with its secrets.
fn on_s3(address: std::net::SocketAddr) -> (StoreSettings, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder for secrets");
    let secret = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        SecretRef::parse(&format!("secret://file{}", path.display())).expect("a reference")
    };
    let kind = StoreKind::S3 {
        endpoint: Target::parse(&format!("http://{address}")).expect("a URL"),
        bucket: BUCKET.to_owned(),
        region: "eu-central-1".to_owned(),
        access_key: secret("access", ACCESS_KEY),
        secret_key: secret("secret", SECRET_KEY),
        session_token: None,
    };
    let allow = vec![Allow::parse("127.0.0.1").expect("an entry")];
    (StoreSettings { kind, allow, ..memory() }, folder)
}

/// What blocks reach with this store as `archive`.
fn with(store: StoreSettings) -> Reach {
    let mut settings = PolicySettings::default();
    settings.stores.insert("archive".to_owned(), store);
    reach(Policy::new(settings, false).expect("nothing to read"))
}

fn remote(reach: &Reach) -> Rc<dyn Blobs> {
    reach.stores.of(reach.policy.store("acme", "archive", "connector").expect("listed"))
}

async fn run(reach: &Reach, blobs: &Rc<LocalBlobs>, name: &str, inputs: Value) -> Result<Value, Fault> {
    let done = run_with(reach, blobs, "acme", name, &inputs.to_string(), 1).await;
    if let Err(fault) = &done {
        assert_speakable(fault);
    }
    done
}

/// A fixed sentence, details in JSON, and no secret in them.
fn assert_speakable(fault: &Fault) {
    let sentence = fault.message.to_lowercase();
    assert!(!sentence.contains(|c: char| c.is_ascii_digit()), "{sentence}");
    assert!(!["timeout", "connection", "unavailable"].iter().any(|word| sentence.contains(word)), "{sentence}");
    let details = String::from_utf8(fault.details.to_vec()).expect("text");
    assert!(serde_json::from_str::<Value>(&details).is_ok_and(|details| details.is_object()), "{details}");
    for secret in [ACCESS_KEY, SECRET_KEY] {
        assert!(!details.contains(secret), "{details}");
    }
}

fn details(fault: &Fault) -> Value {
    serde_json::from_slice(&fault.details).expect("details are JSON")
}

/// Bytes that do not repeat soon.
fn noise(bytes: usize) -> Vec<u8> {
    (0..bytes as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Waits until it is so, for some seconds.
async fn until(mut so: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(8) {
        if so() {
            return true;
        }
        rt::sleep(Duration::from_millis(10)).await;
    }
    false
}
