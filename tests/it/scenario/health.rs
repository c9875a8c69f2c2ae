//! What operators see: health in the platform's form, readiness, build, state, metrics by their names, heartbeats.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::router::Assignment;
use crate::router::assignment::uuid4;
use crate::worker::Settings;
use crate::world::{PATIENCE, World};

/// Names that the specification, the platform's dashboard and our own measurements read.
const METRICS: &[&str] = &[
    "worker_tasks_total",
    "worker_task_latency_ms",
    "worker_pool_queue_depth",
    "worker_step_executions_total",
    "worker_step_execution_duration_seconds",
    "worker_queue_depth",
    "worker_active_tasks",
    "worker_health_status",
    "endstation_journal_fsyncs_total",
    "endstation_journal_bytes_total",
    "endstation_outbox_published_total",
];

#[tokio::test]
async fn health_is_in_the_platform_s_form() -> Result<()> {
    let world = World::jetstream(Settings::default()).await?;
    let (status, body) = world.worker.get("/_health").await?;
    let health: Value = serde_json::from_str(&body).context("health is JSON")?;
    ensure!(status == 200 && health["status"] == "healthy", "{status} {body}");
    let stamp = health["timestamp"].as_str().context("a timestamp")?;
    ensure!(stamp.len() == "2026-01-01T00:00:00.000000Z".len() && stamp.ends_with('Z'), "{stamp}");
    let checks = health["checks"].as_object().context("checks")?;
    ensure!(!checks.is_empty() && checks.values().all(|check| check["status"] == "ok"), "{checks:?}");
    for path in ["/_readyz", "/readyz", "/livez", "/_build", "/_state", "/metrics"] {
        let (status, body) = world.worker.get(path).await?;
        ensure!(status == 200, "{path} answers {status}");
        if path.starts_with("/_") && path != "/_readyz" {
            serde_json::from_str::<Value>(&body).with_context(|| format!("{path} is JSON: {body}"))?;
        }
    }
    ensure!(world.worker.get("/nothing").await?.0 == 404, "an unknown path");
    Ok(())
}

#[tokio::test]
async fn metrics_have_the_names_that_dashboards_query_and_no_ids() -> Result<()> {
    let world = World::jetstream(Settings::default()).await?;
    let job = Assignment::new("acme", "echo", json!({})).in_flow(&uuid4(), &uuid4(), &uuid4(), 1);
    world.router.run(&job, PATIENCE).await?;
    world.router.run(&Assignment::new("acme", "nonsense", json!({})), PATIENCE).await?;
    let (_, text) = world.worker.get("/metrics").await?;
    let missing: Vec<&&str> = METRICS.iter().filter(|name| !text.contains(**name)).collect();
    ensure!(missing.is_empty(), "not in /metrics: {missing:?}");
    for (at, id) in ["run_id", "flow_id", "step_id"].map(|key| job.json[key].as_str().unwrap_or_default()).iter().enumerate() {
        ensure!(!text.contains(id), "id {at} of a step is a label");
    }
    // Shards tell their counts twice a second.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    ensure!(world.worker.metric("endstation_journal_bytes_total").await? > 0.0, "nothing journalled");
    ensure!(world.worker.metric("worker_tasks_total").await? >= 1.0, "no task counted");
    world.finish().await
}

#[tokio::test]
async fn heartbeats_come_and_the_log_is_json() -> Result<()> {
    let world = World::jetstream(Settings::default()).await?;
    world.router.run(&Assignment::new("acme", "echo", json!({"password": "hunter2"})), PATIENCE).await?;
    world.router.wait(PATIENCE, "heartbeats", |model| (model.counts().heartbeats >= 2).then_some(())).await?;
    let text = world.worker.log_text();
    ensure!(!text.is_empty(), "no log");
    for line in text.lines() {
        let entry: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        ensure!(entry["component"] == "worker" && entry["level"].is_string() && entry["message"].is_string(), "{line}");
        let stamp = entry["timestamp"].as_str().unwrap_or_default();
        ensure!(stamp.len() == 27 && stamp.ends_with('Z'), "six digits and UTC: {line}");
    }
    ensure!(!text.contains("hunter2"), "a password in the log");
    world.finish().await
}
