//! The block table as its callers see it: names, checks before acceptance, and what each block gives back.

use std::cell::RefCell;
use std::future::Future;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use glommio::{LocalExecutorBuilder, Placement};
use serde_json::{Value, json};
use shards::block::{BlockCx, Demand};
use shards::ids::{Key, Text};
use shards::outcome::{Code, Effected, Fault};
use shards::runtime::layout::Layout;
use shards::runtime::rt::Clock;
use shards::step::{EffectClass, Needs};

use super::local::{LocalBlobs, folder_of};
use super::{Ask, Cache, CacheSettings, Checked, Databases, Entry, Reach, Shelf, TABLE, build_all, find};
use crate::compute::{Compute, ComputeSeat};
use crate::net::client::Client;
use crate::offload::Offload;
use crate::offload::sqlite::Sqlite;
use crate::offload::stores::Stores;
use crate::policy::Policy;
use crate::policy::narrow::NOTHING;

pub(super) mod checks;
pub(super) mod manifests;
mod narrowed;
mod runs;

/// Runs `test` on a core of its own, with a root for blobs.
pub(super) fn on_a_shard<F: Future<Output = ()>>(test: impl FnOnce(Rc<LocalBlobs>, std::path::PathBuf) -> F) {
    let root = tempfile::tempdir().expect("a folder for the test");
    let executor = LocalExecutorBuilder::new(Placement::Unbound)
        .io_memory(64 << 10)
        .preempt_timer(Duration::from_millis(1))
        .make()
        .expect("this kernel lets us use io_uring");
    let path = root.path().to_owned();
    executor.run(async move {
        let prodder = Prodder::start().await;
        // And by the clock, as a shard is: the last thing that the test does is not followed by a prod.
        glommio::spawn_local(async {
            loop {
                glommio::timer::sleep(Duration::from_millis(20)).await;
            }
        })
        .detach();
        let blobs = Rc::new(LocalBlobs::open(&path, 0).expect("a root for blobs"));
        test(blobs, path).await;
        prodder.stop();
    });
}

/// Wakes the executor from outside now and then. An executor of glommio 0.9.0 that is preempted before it ran anything
/// takes that for idleness and parks with work to do (glommio/glommio pull request 53).
struct Prodder {
    done: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Prodder {
    async fn start() -> Self {
        let waker = std::future::poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
        let done = Arc::new(AtomicBool::new(false));
        let told = done.clone();
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                waker.wake_by_ref();
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Prodder { done, thread }
    }

    fn stop(self) {
        self.done.store(true, Ordering::Relaxed);
        self.thread.join().expect("it only sleeps and wakes");
    }
}

/// A step of `tenant` for the block `name`, checked as at the edge and executed as on a shard.
pub(super) async fn run_as(
    blobs: &Rc<LocalBlobs>,
    tenant: &str,
    name: &str,
    inputs: &str,
    try_number: u32,
) -> Result<Value, Fault> {
    run_with(&shut(), blobs, tenant, name, inputs, try_number).await
}

/// The check of a step that may reach nothing.
pub(super) fn check(entry: &Entry, name: &str, inputs: &str) -> Result<Checked, Fault> {
    entry.check(&Ask { policy: &Policy::shut(), tenant: "acme", name, inputs: inputs.as_bytes(), provider: "", narrow: &NOTHING })
}

/// What blocks reach where nobody lets them out.
pub(super) fn shut() -> Reach {
    reach(Policy::shut())
}

/// What blocks reach under this policy.
pub(super) fn reach(policy: Policy) -> Reach {
    let offload = Offload::new(policy.dns().to_vec());
    let stores = Rc::new(Shelf::new(Stores::new(offload.clone())));
    let compute = Compute::new(ComputeSeat::all(None, &[], &Layout::allowed()));
    let clock = Clock::start();
    // Only made where a test asks an embedded database.
    let databases = std::env::temp_dir().join(format!("endstation-databases-{}", std::process::id()));
    let sql = Rc::new(Databases::new(databases, Sqlite::default(), offload.clone(), clock, (0, 1)));
    let client = Rc::new(Client::new(offload, compute.clone(), clock));
    let cache = Rc::new(Cache::new(CacheSettings::default(), clock, Arc::default()));
    Reach { policy: Arc::new(policy), client, compute, device: None, stores, cache, sql }
}

/// As [`run_as`], with this reach.
pub(super) async fn run_with(
    reach: &Reach,
    blobs: &Rc<LocalBlobs>,
    tenant: &str,
    name: &str,
    inputs: &str,
    try_number: u32,
) -> Result<Value, Fault> {
    let (id, entry) = find(name, true).expect("a known block");
    let checked =
        entry.check(&Ask { policy: &reach.policy, tenant, name, inputs: inputs.as_bytes(), provider: "", narrow: &NOTHING })?;
    if let Some(denied) = checked.denied {
        return Err(denied);
    }
    let Demand { lane, memory_bytes, .. } = checked.needs;
    let needs = Needs { lane, memory_bytes, concurrency: 0 };
    let inputs = checked.inputs.unwrap_or_else(|| Bytes::copy_from_slice(inputs.as_bytes()));
    let (tenant, key) = (Text::from(tenant), Key([0; 16]));
    let cx = BlockCx {
        tenant,
        key,
        try_number,
        left_ms: 60_000,
        needs,
        inputs,
        blobs: blobs.clone(),
        guardrails: Bytes::new(),
        cache: None,
        trace_id: None,
        observers: None,
    };
    let outputs = build_all(reach)[usize::from(id.0)].execute(cx).await?;
    let outputs = serde_json::from_slice(&outputs).expect("outputs are JSON");
    manifests::assert_described(entry, &outputs);
    Ok(outputs)
}

/// The first try of tenant `acme`.
pub(super) async fn run(blobs: &Rc<LocalBlobs>, name: &str, inputs: Value) -> Result<Value, Fault> {
    run_as(blobs, "acme", name, &inputs.to_string(), 1).await
}

/// A server that answers each request by its first line and by where it listens, and closes the connection.
pub(super) fn answering(answer: impl Fn(&str, SocketAddr) -> String + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let here = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { continue };
            let mut reader = BufReader::new(stream);
            let (mut first, mut line, mut length) = (String::new(), String::new(), 0);
            _ = reader.read_line(&mut first);
            while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                if let Some(said) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = said.trim().parse().unwrap_or(0);
                }
                line.clear();
            }
            _ = std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink());
            _ = reader.get_mut().write_all(answer(&first, here).as_bytes());
        }
    });
    here
}

/// Polls `future` at most `polls` times and drops it; whether it got to its end.
pub(super) async fn drop_after<F: Future>(polls: usize, future: F) -> bool {
    let left = RefCell::new(polls);
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        if *left.borrow() == 0 {
            return Poll::Ready(false);
        }
        *left.borrow_mut() -= 1;
        future.as_mut().poll(cx).map(|_| true)
    })
    .await
}

/// Every file beneath `root`, relative to it, sorted.
pub(super) fn files(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a readable folder") {
            let path = entry.expect("a readable entry").path();
            match path.is_dir() && !path.is_symlink() {
                true => folders.push(path),
                false => found.push(path.strip_prefix(root).expect("beneath the root").to_string_lossy().into_owned()),
            }
        }
    }
    found.sort();
    found
}

/// What every fault must keep to, or the platform's router counts it against the worker.
pub(super) fn assert_presentable(fault: &Fault) {
    let sentence = fault.message.to_lowercase();
    assert!(!sentence.contains(|c: char| c.is_ascii_digit()), "digits in {sentence:?}");
    for word in ["timeout", "connection", "unavailable"] {
        assert!(!sentence.contains(word), "{word} in {sentence:?}");
    }
    assert!(serde_json::from_slice::<Value>(&fault.details).is_ok_and(|details| details.is_object()));
    assert_eq!(fault.effect, Effected::None);
}

/// The `pointer` of a fault's details.
pub(super) fn pointer(fault: &Fault) -> String {
    let details: Value = serde_json::from_slice(&fault.details).expect("details are JSON");
    assert!(details["rule"].is_string(), "no rule in {details}");
    details["pointer"].as_str().expect("a pointer").to_owned()
}

#[test]
fn every_name_of_the_contract_finds_its_block() {
    let blocks = build_all(&shut());
    for (name, canonical) in [
        ("echo", "echo"),
        ("sleep", "sleep"),
        ("crypto.hash", "crypto.hash"),
        ("fs.blob_put", "fs.blob_put"),
        ("fs_blob_put", "fs.blob_put"),
        ("fs.put", "fs.blob_put"),
        ("fs.blob_get", "fs.blob_get"),
        ("fs_blob_get", "fs.blob_get"),
        ("fs.get", "fs.blob_get"),
        ("http", "http.request"),
        ("graphql", "http.request"),
        ("ai.generate", "ai.generate"),
        ("text.generate", "ai.generate"),
        ("chat", "ai.generate"),
        ("completion", "ai.generate"),
        ("embedding", "ai.generate"),
        ("sql.query", "sql.query"),
        ("sql", "sql.query"),
    ] {
        let (id, entry) = find(name, false).expect(name);
        assert_eq!(entry.info.name, canonical);
        assert_eq!(blocks[usize::from(id.0)].info(), entry.info);
    }
    for unknown in ["", "Echo", "fs", "http.get", "test.fail", "test.abort", "test.hang", "test.panic", "test.eat"] {
        assert!(find(unknown, false).is_none(), "{unknown}");
    }
    assert!(find("test.fail", true).is_some() && find("test.abort", true).is_some());
    assert!(["test.hang", "test.panic", "test.eat"].iter().all(|name| find(name, true).is_some()));
}

#[test]
fn no_two_blocks_share_a_name() {
    let mut names: Vec<_> = TABLE.iter().flat_map(|entry| entry.info.aliases.iter().copied().chain([entry.info.name])).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
}

#[test]
fn the_effect_class_follows_the_inputs_and_the_name_as_sent() {
    let class = |name: &str, inputs: &str| check(find(name, false).expect(name).1, name, inputs).expect("good inputs").effect;
    let put = r#"{"path":"a","content":"x"}"#;
    assert_eq!(class("fs.blob_put", put), EffectClass::Conditional);
    assert_eq!(class("fs.put", put), EffectClass::Conditional);
    assert_eq!(class("fs_blob_put", put), EffectClass::Idempotent);
    assert_eq!(class("fs_blob_put", r#"{"path":"a","content":"x","overwrite":null}"#), EffectClass::Idempotent);
    assert_eq!(class("fs_blob_put", r#"{"path":"a","content":"x","overwrite":false}"#), EffectClass::Conditional);
    assert_eq!(class("fs.blob_put", r#"{"path":"a","content":"x","overwrite":true}"#), EffectClass::Idempotent);
    for (name, inputs) in [("echo", "{}"), ("sleep", "{}"), ("crypto.hash", r#"{"text":""}"#), ("fs.get", r#"{"path":"a"}"#)] {
        assert_eq!(class(name, inputs), EffectClass::Pure);
    }
}

#[test]
fn a_failed_check_says_where_and_why_in_a_presentable_way() {
    let fault = check(find("sleep", false).expect("sleep").1, "sleep", r#"{"ms":-1}"#).expect_err("refused");
    assert_presentable(&fault);
    assert_eq!(fault.code, Code::InvalidInput);
    let details: Value = serde_json::from_slice(&fault.details).expect("JSON");
    assert_eq!(details, json!({ "pointer": "/ms", "rule": "a whole number from 0 to 86400000" }));
}
