//! What a tenant's messages must be signed for, and outputs that are used again, as senders meet them over NATS.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_nats::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::{Value, json};

use crate::native::Sender;
use crate::place::Place;
use crate::server::NatsServer;
use crate::worker::{Settings, Worker};

const RESULTS: &str = "beamline.worker.results.v1.acme.";
const DLQ: &str = "beamline.worker.dlq.v1.";

fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn native(settings: Settings) -> Settings {
    settings.set("ENDSTATION__NATS__ASSIGN_SUBJECTS", "caf.exec.assign.v1,beamline.worker.steps.v1.*")
}

/// The header of one who signs these bytes as a message of this type.
fn signed(payload_type: &str, body: &str) -> HeaderMap {
    let pae = format!("DSSEv1 {} {payload_type} {} {body}", payload_type.len(), body.len());
    let mut headers = HeaderMap::new();
    headers.insert("Endstation-Signature", format!("ci;{}", BASE64.encode(key().sign(pae.as_bytes()).to_bytes())));
    headers
}

fn step(assignment: &str, more: Value) -> String {
    let mut step = json!({ "type": "echo", "context": { "tenant_id": "acme" }, "assignment_id": assignment });
    for (name, value) in more.as_object().into_iter().flatten() {
        step[name] = value.clone();
    }
    step.to_string()
}

#[tokio::test]
async fn a_tenant_that_must_sign_is_heard_by_its_signature_alone() -> Result<()> {
    let hex: String = key().verifying_key().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let settings = native(Settings::default())
        .set("ENDSTATION__TENANTS__ACME__REQUIRE_SIGNATURE", "true")
        .set("ENDSTATION__SIGNERS__CI__TENANTS", "acme")
        .set("ENDSTATION__SIGNERS__CI__PUBLIC", &hex)
        .set("ENDSTATION__SIGNERS__CI__SCOPES", "blob");
    let server = NatsServer::start(true).await?;
    let sender = Sender::connect(&server.url()).await?;
    let mut worker = Worker::start(&server.url(), settings).await?;
    let send = async |subject: &str, headers: HeaderMap, body: &str| sender.store(subject, headers, body.to_owned().into()).await;
    let steps = "beamline.worker.steps.v1.acme";
    let good = step("good", json!({}));
    send(steps, HeaderMap::new(), &good).await?;
    send(steps, signed("application/json", &step("other", json!({}))), &good).await?;
    send("beamline.worker.steps.v1.free", HeaderMap::new(), &good.replace("acme", "free")).await?;
    let letters = sender.wait(&format!("{DLQ}acme"), 2).await?;
    for letter in &letters {
        let letter: Value = serde_json::from_slice(&letter.payload)?;
        ensure!(letter["error_code"] == "SIGNATURE_INVALID", "{letter}");
    }
    sender.wait("beamline.worker.results.v1.free.", 1).await?;
    ensure!(sender.seen(RESULTS).is_empty(), "somebody was answered who had not signed");

    send(steps, signed("application/json", &good), &good).await?;
    let seen = sender.wait(RESULTS, 1).await?;
    let result: Value = serde_json::from_slice(&seen[0].payload)?;
    ensure!(result["status"] == "OK" && result["assignment_id"] == "good", "{result}");
    let narrow = step("narrow", json!({ "type": "http.request", "inputs": { "url": "https://1.1.1.1/" } }));
    send(steps, signed("application/json", &narrow), &narrow).await?;
    let result: Value = serde_json::from_slice(&sender.wait(RESULTS, 2).await?[1].payload)?;
    ensure!(result["error"]["code"] == "PERMISSION_DENIED" && result.to_string().contains("have no"), "{result}");

    // What is said to a step is signed as that; a step that was signed is no cancel.
    let long = step("long", json!({ "type": "sleep", "inputs": { "ms": 20_000 } }));
    send(steps, signed("application/json", &long), &long).await?;
    let begun = std::time::Instant::now();
    while worker.metric("endstation_running").await? < 1.0 {
        ensure!(begun.elapsed() < Duration::from_secs(10), "it does not start");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let cancel = "beamline.worker.cancel.v1.acme";
    let replayed = sender.ask(cancel, signed("application/json", &long), long.clone().into()).await?;
    let told: Value = serde_json::from_slice(&replayed.payload)?;
    ensure!(told["error"]["code"] == "SIGNATURE_INVALID", "a step stopped itself: {told}");
    let body = json!({ "context": { "tenant_id": "acme" }, "assignment_id": "long" }).to_string();
    let answered = sender.ask(cancel, signed("application/json; notice=cancel", &body), body.into()).await?;
    let told: Value = serde_json::from_slice(&answered.payload)?;
    ensure!(told["disposition"] == "NOTED", "{told}");

    // What was accepted is finished, whoever may sign by then.
    worker.kill();
    worker.restart().await?;
    send(steps, signed("application/json", &good), &good).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let unsigned = |message: &async_nats::Message| String::from_utf8_lossy(&message.payload).contains("SIGNATURE_INVALID");
    let letters = sender.seen(&format!("{DLQ}acme"));
    ensure!(letters.iter().filter(|letter| unsigned(letter)).count() == 2, "a good one was put aside");
    Ok(())
}

#[tokio::test]
async fn outputs_that_may_be_used_again_are_asked_for_once() -> Result<()> {
    let place = Place::open().await?;
    let url = format!("http://{}", place.address);
    let settings = native(Settings::default())
        .set("ENDSTATION__CONNECTORS__PLAIN__TENANTS", "*")
        .set("ENDSTATION__CONNECTORS__PLAIN__URL", &url)
        .set("ENDSTATION__CONNECTORS__PLAIN__ALLOW", "127.0.0.0/8");
    let server = NatsServer::start(true).await?;
    let sender = Sender::connect(&server.url()).await?;
    let worker = Worker::start(&server.url(), settings).await?;
    let get = |assignment: &str, tenant: &str, key: &str| {
        let inputs = json!({ "connector": "plain", "path": "/rates" });
        let cache = json!({ "key": key, "ttl_ms": 60_000 });
        step(assignment, json!({ "type": "http.request", "inputs": inputs, "cache": cache, "context": { "tenant_id": tenant } }))
    };
    let mut asked = 0;
    for (assignment, tenant, key, more) in
        [("a", "acme", "1", 1), ("b", "acme", "1", 0), ("c", "acme", "2", 1), ("d", "other", "1", 1), ("e", "acme", "2", 0)]
    {
        let subject = format!("beamline.worker.steps.v1.{tenant}");
        let answer = sender.ask(&subject, HeaderMap::new(), get(assignment, tenant, key).into()).await;
        let answer = answer.context("no answer")?;
        // A stream's acknowledgement comes first where one takes the subject: the result is on its own.
        ensure!(!answer.payload.is_empty(), "{answer:?}");
        let begun = std::time::Instant::now();
        loop {
            let done = sender.seen("beamline.worker.results.").iter().any(|message| {
                let result: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
                result["assignment_id"] == assignment && result["status"] == "OK"
            });
            if done {
                break;
            }
            ensure!(begun.elapsed() < Duration::from_secs(10), "no result of {assignment}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        asked += more;
        ensure!(place.asked() == asked, "{assignment}: the place was asked {} times, not {asked}", place.asked());
    }
    let counted = (worker.metric("endstation_cache_hits_total").await?, worker.metric("endstation_cache_misses_total").await?);
    ensure!(counted == (2.0, 3.0), "{counted:?}");
    Ok(())
}
