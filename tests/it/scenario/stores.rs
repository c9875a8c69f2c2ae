//! Blobs in an object store as a tenant meets them: over the wire, over a restart, by reference.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::objects::{ACCESS_KEY, BUCKET, SECRET_KEY, Server};
use crate::router::{Assignment, Seen};
use crate::worker::Settings;
use crate::world::{PATIENCE, World};

/// A worker for whose tenant `acme` this server is the connector `archive`.
pub(super) fn settings(server: &Server) -> Settings {
    let fields = [
        ("TENANTS", "acme".to_owned()),
        ("STORE", "s3".to_owned()),
        ("ENDPOINT", format!("http://{}", server.address)),
        ("BUCKET", BUCKET.to_owned()),
        ("REGION", "us-east-1".to_owned()),
        ("ACCESS_KEY", "secret://env/IT_ACCESS_KEY".to_owned()),
        ("SECRET_KEY", "secret://env/IT_SECRET_KEY".to_owned()),
        ("ALLOW", "127.0.0.1".to_owned()),
        ("BYTES_MAX", "1MiB".to_owned()),
    ];
    let settings = Settings::default().set("IT_ACCESS_KEY", ACCESS_KEY).set("IT_SECRET_KEY", SECRET_KEY);
    let set = |settings: Settings, (field, value): &(&str, String)| {
        settings.set(&format!("ENDSTATION__CONNECTORS__ARCHIVE__{field}"), value)
    };
    fields.iter().fold(settings, set)
}

fn outputs(seen: &Seen) -> Result<&Value> {
    ensure!(seen.status() == "success", "not a success: {:?}", seen.object);
    seen.object.get("outputs").context("no outputs")
}

#[tokio::test]
async fn what_one_step_puts_another_gets_over_a_restart_and_a_duplicate_puts_nothing() -> Result<()> {
    let server = Server::start();
    let mut world = World::jetstream(settings(&server)).await?;
    let put = json!({"connector": "archive", "path": "a/b.txt", "content": "kept"});
    let job = Assignment::new("acme", "fs.blob_put", put.clone());
    let first = world.router.run(&job, PATIENCE).await?;
    ensure!(outputs(&first)?["created"] == true, "{:?}", first.object);
    ensure!(server.objects().len() == 1, "{:?}", server.objects());
    let asked = server.requests.load(std::sync::atomic::Ordering::Relaxed);
    world.router.send(&job).await?;
    world.router.wait(PATIENCE, "a repeat", |model| (model.counts().repeats >= 1).then_some(())).await?;
    ensure!(world.router.result(&job.id, PATIENCE).await?.payload == first.payload, "the same bytes again");
    ensure!(server.requests.load(std::sync::atomic::Ordering::Relaxed) == asked, "a duplicate asked the store for something");

    world.worker.kill();
    world.worker.restart().await?;
    let get = json!({"connector": "archive", "path": "a/b.txt"});
    let seen = world.router.run(&Assignment::new("acme", "fs.blob_get", get.clone()), PATIENCE).await?;
    ensure!(outputs(&seen)?["content"] == "kept", "{:?}", seen.object);
    let seen = world.router.run(&Assignment::new("acme", "fs.blob_put", put), PATIENCE).await?;
    ensure!(outputs(&seen)?["created"] == false, "another step with the same content: {:?}", seen.object);

    // What a message may carry, and more than the tenant may keep beside what it has.
    let half = json!({"connector": "archive", "path": "half", "content": "x".repeat(600 << 10)});
    outputs(&world.router.run(&Assignment::new("acme", "fs.blob_put", half), PATIENCE).await?)?;
    let more = json!({"connector": "archive", "path": "more", "content": "x".repeat(600 << 10)});
    for (tenant, block, inputs, code, rule) in [
        ("other", "fs.blob_get", get, "PERMISSION_DENIED", "no [connectors.archive] with a store lists the tenant"),
        ("acme", "fs.blob_put", more, "QUOTA_EXCEEDED", "connectors.archive.bytes_max"),
    ] {
        let seen = world.router.run(&Assignment::new(tenant, block, inputs), PATIENCE).await?;
        ensure!(seen.code() == code && seen.object["effect"] == "none", "{:?}", seen.object);
        ensure!(seen.object["error_details"]["rule"] == rule, "{:?}", seen.object);
    }
    let log = world.worker.log_text();
    ensure!(!log.contains(SECRET_KEY) && !log.contains(ACCESS_KEY), "a secret is in the log");
    world.finish().await
}

#[tokio::test]
async fn inputs_and_outputs_go_by_reference_through_a_store() -> Result<()> {
    let server = Server::start();
    let world = World::jetstream(settings(&server).set("ENDSTATION__STORAGE__OUTPUTS", "archive")).await?;
    let text = "x".repeat(600 << 10);
    let seen = world.router.run(&Assignment::new("acme", "echo", json!({"text": text})), PATIENCE).await?;
    let there = seen.object.get("outputs_ref").context("no reference")?;
    let digest = there["sha256"].as_str().context("a digest")?;
    ensure!(there["uri"] == format!("blob://archive/$outputs/{digest}"), "{there}");
    let object = server.objects().into_iter().find(|name| name.ends_with(digest)).context("no object")?;
    let content = std::fs::read(server.file(&object))?;
    ensure!(Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect::<String>() == digest, "another content");

    // What was given as outputs is taken as inputs.
    let mut job = Assignment::new("acme", "crypto.hash", json!({"text": "the reference wins"}));
    job.json["job"]["payload_ref"] = there.clone();
    let seen = world.router.run(&job, PATIENCE).await?;
    let expected: String = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
    ensure!(outputs(&seen)?["digest"] == expected, "{:?}", seen.object);

    // A tenant that the store does not list keeps its own among its own blobs.
    let seen = world.router.run(&Assignment::new("other", "echo", json!({"text": text})), PATIENCE).await?;
    let local = seen.object.get("outputs_ref").context("no reference")?;
    ensure!(local["uri"].as_str().is_some_and(|uri| uri.starts_with("blob:$outputs/")), "{local}");
    for (tenant, reference, code) in [
        ("other", local.clone(), "success"),
        ("acme", local.clone(), "INVALID_INPUT"),
        ("other", there.clone(), "PERMISSION_DENIED"),
        ("acme", json!("blob:../x"), "INVALID_INPUT"),
        ("acme", json!("https://example.com/"), "INVALID_INPUT"),
    ] {
        let mut job = Assignment::new(tenant, "crypto.hash", Value::Null);
        job.json["job"]["payload_ref"] = reference.clone();
        let seen = world.router.run(&job, PATIENCE).await?;
        let told = if seen.status() == "success" { "success" } else { seen.code() };
        ensure!(told == code, "{tenant} {reference}: {:?}", seen.object);
    }
    world.finish().await
}
