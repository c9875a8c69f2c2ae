//! Work that goes well: every simple block, under each of its names, in each shape an assignment may come in.

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::ledger::Ledger;
use crate::router::assignment::uuid4;
use crate::router::{Assignment, Seen};
use crate::worker::Settings;
use crate::world::{PATIENCE, World};

fn outputs(seen: &Seen) -> Result<&Value> {
    ensure!(seen.status() == "success", "not a success: {:?}", seen.object);
    seen.object.get("outputs").context("no outputs")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn every_simple_block_answers_over_jetstream() -> Result<()> {
    let world = World::jetstream(Settings::default()).await?;
    let payload = json!({"n": 1, "deep": {"text": "grüße", "list": [1, 2.50, null]}, "big": 12345678901234567890_u64});
    let seen = world.router.run(&Assignment::new("acme", "echo", payload.clone()), PATIENCE).await?;
    ensure!(outputs(&seen)? == &payload, "echo puts out its payload");

    let seen = world.router.run(&Assignment::new("acme", "sleep", json!({"ms": 50})), PATIENCE).await?;
    outputs(&seen)?;
    let latency = seen.object["latency_ms"].as_u64().context("latency")?;
    ensure!((50..5_000).contains(&latency), "a sleep of 50 ms took {latency}");

    let seen = world.router.run(&Assignment::new("acme", "crypto.hash", json!({"text": "abc"})), PATIENCE).await?;
    let out = outputs(&seen)?;
    ensure!(out["digest"] == json!(hex(&Sha256::digest(b"abc"))), "sha256 of abc: {out}");
    ensure!(out["size"] == 3 && out["algorithm"] == "sha256", "{out}");
    let bytes = base64::engine::general_purpose::STANDARD.encode([0, 159, 146, 150]);
    let seen = world.router.run(&Assignment::new("acme", "crypto.hash", json!({"bytes": bytes})), PATIENCE).await?;
    ensure!(outputs(&seen)?["digest"] == json!(hex(&Sha256::digest([0, 159, 146, 150]))), "sha256 of bytes");
    world.finish().await
}

#[tokio::test]
async fn blobs_put_under_any_name_can_be_got_under_any_name() -> Result<()> {
    let world = World::jetstream(Settings::default()).await?;
    let mut ledger = Ledger::new(world.worker.dir());
    let puts = ["fs.blob_put", "fs_blob_put", "fs.put"];
    let gets = ["fs.blob_get", "fs_blob_get", "fs.get"];
    for (at, put) in puts.into_iter().enumerate() {
        let (name, content) = (format!("folder/file{at}.txt"), format!("content {at}"));
        let job = Assignment::new("acme", put, json!({"path": name, "content": content}));
        let seen = world.router.run(&job, PATIENCE).await?;
        let out = outputs(&seen)?;
        ensure!(out["created"] == true && out["size"] == content.len(), "{put}: {out}");
        ensure!(out["sha256"] == json!(hex(&Sha256::digest(content.as_bytes()))), "{put}: {out}");
        ledger.written_once("acme", &name, content.as_bytes())?;
        for get in gets {
            let seen = world.router.run(&Assignment::new("acme", get, json!({"path": name})), PATIENCE).await?;
            let out = outputs(&seen)?;
            let bytes = base64::engine::general_purpose::STANDARD.encode(&content);
            ensure!(out["content"] == json!(content) && out["bytes"] == json!(bytes), "{get}: {out}");
        }
        let other = world.router.run(&Assignment::new("other", "fs.get", json!({"path": name})), PATIENCE).await?;
        ensure!(other.status() == "error", "another tenant reads {name}");
    }
    ledger.never_rewritten()?;
    world.finish().await
}

#[tokio::test]
async fn a_second_put_overwrites_only_when_asked_or_under_the_older_name() -> Result<()> {
    let world = World::jetstream(Settings::default()).await?;
    let put = |block: &str, content: &str| Assignment::new("acme", block, json!({"path": "x.txt", "content": content}));
    outputs(&world.router.run(&put("fs.blob_put", "one"), PATIENCE).await?)?;
    let refused = world.router.run(&put("fs.blob_put", "two"), PATIENCE).await?;
    ensure!(refused.status() == "error", "other content without overwrite: {:?}", refused.object);
    outputs(&world.router.run(&put("fs_blob_put", "three"), PATIENCE).await?)?;
    let seen = world.router.run(&Assignment::new("acme", "fs.get", json!({"path": "x.txt"})), PATIENCE).await?;
    ensure!(outputs(&seen)?["content"] == "three", "{:?}", seen.object);
    world.finish().await
}

#[tokio::test]
async fn assignments_with_todays_headers_envelopes_and_flow_ids_are_answered() -> Result<()> {
    let world = World::jetstream(Settings::default()).await?;
    let plain = || Assignment::new("acme", "echo", json!({"a": 1}));
    let shapes = [
        plain().with_router_headers(),
        plain().in_envelope(),
        plain().in_flow(&uuid4(), "01ARZ3NDEKTSV4RRFFQ69G5FAV", &uuid4(), 1).with_router_headers(),
        plain().in_flow("run-1", "flow-1", "step-1", 1),
    ];
    for shape in &shapes {
        outputs(&world.router.run(shape, PATIENCE).await?)?;
    }
    let with_ids = world.router.result(&shapes[2].id, PATIENCE).await?;
    ensure!(with_ids.object["flow_id"] == "01ARZ3NDEKTSV4RRFFQ69G5FAV", "valid ids come back: {:?}", with_ids.object);
    let odd_ids = world.router.result(&shapes[3].id, PATIENCE).await?;
    ensure!(!odd_ids.object.contains_key("flow_id"), "odd ids stay out of the payload");
    ensure!(odd_ids.object["context"].to_string().contains("flow-1"), "odd ids are kept under context: {:?}", odd_ids.object);
    world.finish().await
}

#[tokio::test]
async fn outputs_too_large_for_a_message_travel_as_a_reference() -> Result<()> {
    let world = World::jetstream(Settings::default()).await?;
    let job = Assignment::new("acme", "echo", json!({"text": "x".repeat(600 << 10)}));
    let seen = world.router.run(&job, PATIENCE).await?;
    ensure!(seen.status() == "success" && seen.object.contains_key("outputs_ref"), "{:?}", seen.object.keys());
    world.finish().await
}

#[tokio::test]
async fn other_assign_subjects_and_wildcards_are_served() -> Result<()> {
    let subjects = "caf.exec.assign.v1,caf.exec.assign.special.*";
    let world = World::jetstream(Settings::default().set("CAF_ASSIGN_SUBJECT", subjects)).await?;
    let job = Assignment::new("acme", "echo", json!({}));
    world.router.send_on("caf.exec.assign.special.one", &job).await?;
    outputs(&world.router.result(&job.id, PATIENCE).await?)?;
    world.finish().await
}

#[tokio::test]
async fn lifecycle_events_follow_a_step() -> Result<()> {
    let world = World::jetstream(Settings::default().set("ENDSTATION__EVENTS__ENABLED", "true")).await?;
    outputs(&world.router.run(&Assignment::new("acme", "echo", json!({})), PATIENCE).await?)?;
    for kind in ["accepted", "started", "completed"] {
        world.router.wait(PATIENCE, kind, |model| (model.events_of(kind) == 1).then_some(())).await?;
    }
    world.router.run(&Assignment::new("acme", "fs.get", json!({"path": "none"})), PATIENCE).await?;
    world.router.wait(PATIENCE, "failed event", |model| (model.events_of("failed") == 1).then_some(())).await?;
    world.finish().await
}
