//! `http.request` as a tenant meets it: through a connector, denied, and over a crash at each point of a step's life.

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::place::Place;
use crate::router::{Assignment, Seen};
use crate::worker::Settings;
use crate::world::{PATIENCE, World};

/// A worker whose tenants reach this place by two connectors: one that honours keys, and one that does not.
fn settings(place: &Place) -> Settings {
    let url = format!("http://{}", place.address);
    let connector = |settings: Settings, name: &str, keyed: &str| {
        let set = |settings: Settings, field: &str, value: &str| {
            settings.set(&format!("ENDSTATION__CONNECTORS__{name}__{field}"), value)
        };
        let settings = set(set(settings, "TENANTS", "acme"), "URL", &url);
        set(set(settings, "ALLOW", "127.0.0.0/8"), "IDEMPOTENCY_KEY", keyed)
    };
    connector(connector(Settings::default(), "PLAIN", "false"), "KEYED", "true")
}

fn outputs(seen: &Seen) -> Result<&Value> {
    ensure!(seen.status() == "success", "not a success: {:?}", seen.object);
    seen.object.get("outputs").context("no outputs")
}

#[tokio::test]
async fn a_tenant_reaches_what_a_connector_lists_it_for_and_nothing_else() -> Result<()> {
    let place = Place::open().await?;
    let world = World::jetstream(settings(&place)).await?;
    let get = json!({"connector": "plain", "path": "/a", "query": {"b": 1}});
    let seen = world.router.run(&Assignment::new("acme", "http.request", get.clone()), PATIENCE).await?;
    let out = outputs(&seen)?;
    ensure!(out["status"] == 200 && out["json"] == json!({"done": 0}), "{out}");
    let post = json!({"connector": "plain", "path": "/b", "method": "POST", "json": {"x": [1]}});
    outputs(&world.router.run(&Assignment::new("acme", "http", post), PATIENCE).await?)?;
    ensure!(place.done()[1].body == r#"{"x":[1]}"#, "{:?}", place.done());
    let asked = place.asked();
    let here = format!("http://{}/", place.address);
    for (tenant, inputs, rule) in [
        ("other", get, "no [connectors.plain] lists the tenant"),
        ("acme", json!({"url": "http://1.1.1.1/"}), "tenants.default.scopes has no \"http\""),
        (
            "acme",
            json!({"connector": "plain", "url": here.replace("127.0.0.1", "127.0.0.2")}),
            "connectors.plain.url leads elsewhere",
        ),
    ] {
        let job = Assignment::new(tenant, "http.request", inputs.clone());
        let seen = world.router.run(&job, PATIENCE).await?;
        ensure!(seen.code() == "PERMISSION_DENIED" && seen.object["effect"] == "none", "{inputs}: {:?}", seen.object);
        ensure!(seen.object["error_details"]["rule"] == json!(rule), "{inputs}: {:?}", seen.object);
    }
    ensure!(place.asked() == asked, "somebody was let through");
    world.finish().await
}

/// An answer that is streamed is told as events in order, and its end before the step's.
#[tokio::test]
async fn a_streamed_answer_is_told_as_progress_in_order() -> Result<()> {
    let place = Place::open().await?;
    let world = World::jetstream(settings(&place).set("ENDSTATION__EVENTS__ENABLED", "true")).await?;
    let client = async_nats::connect(world.server.url()).await?;
    let mut events = client.subscribe("beamline.worker.events.acme").await?;
    client.flush().await?;
    let job = json!({"connector": "plain", "path": "/a", "response": "stream"});
    let seen = world.router.run(&Assignment::new("acme", "http.request", job), PATIENCE).await?;
    let out = outputs(&seen)?;
    ensure!(out["streamed"] == 1 && out.get("json").is_none(), "{out}");
    let mut told = Vec::new();
    while told.last().is_none_or(|(kind, _)| kind != "COMPLETED") {
        let message = tokio::time::timeout(PATIENCE, events.next()).await?.context("events")?;
        let event: Value = serde_json::from_slice(&message.payload)?;
        let data = &event["data"];
        ensure!(data["sequence"] == told.len(), "out of order: {event}");
        told.push((data["kind"].as_str().context("a kind")?.to_owned(), data["progress"].clone()));
    }
    let kinds: Vec<&str> = told.iter().map(|(kind, _)| kind.as_str()).collect();
    ensure!(kinds == ["ACCEPTED", "STARTED", "PROGRESS", "PROGRESS", "COMPLETED"], "{told:?}");
    ensure!(told[2].1 == json!({"text": "{\"done\":0}"}), "{told:?}");
    ensure!(told[3].1["message"] == "end" && told[3].1["data"] == json!({"pieces": 1, "size": 10}), "{told:?}");
    world.finish().await
}

/// What a step's class promises at a crash, counted at the place itself.
#[cfg(feature = "failpoints")]
mod points {
    use std::time::Duration;

    use super::*;
    use crate::router::peer::Router;
    use crate::router::{Strictness, Subjects};
    use crate::server::NatsServer;
    use crate::worker::Worker;

    const KINDS: [(&str, &str); 4] = [("GET", "plain"), ("PUT", "plain"), ("POST", "keyed"), ("POST", "plain")];

    async fn survives(point: &str) -> Result<()> {
        let place = Place::open().await?;
        let server = NatsServer::start(true).await?;
        let strict = Strictness { message_ids: true, order: false, owners: false };
        let router = Router::connect(&server.url(), true, Subjects::default(), strict).await?;
        let worker = Worker::start(&server.url(), settings(&place)).await?;
        let mut world = World { router, worker, server };
        for (at, (method, connector)) in KINDS.iter().enumerate() {
            world.worker.kill();
            let path = |n: u32| format!("/{point}/{at}/{n}");
            let inputs = |n| match *method {
                "GET" => json!({"connector": connector, "path": path(n)}),
                _ => json!({"connector": connector, "path": path(n), "method": method, "text": "x"}),
            };
            let jobs: Vec<_> = (0..3).map(|n| Assignment::new("acme", "http.request", inputs(n))).collect();
            world.router.send_all(&jobs).await?;
            world.worker.launch(&[("FAILPOINTS", &format!("{point}=return"))])?;
            world.worker.aborted(Duration::from_secs(15)).await.with_context(|| format!("{point} did not trip"))?;
            if point == "C9" {
                world.server.kill();
                world.server.restart().await?;
            }
            world.worker.restart().await?;
            world.router.all_answered(PATIENCE).await?;
            for (n, job) in (0..3).zip(&jobs) {
                let seen = world.router.result(&job.id, PATIENCE).await?;
                let path = path(n);
                let times = place.done().iter().filter(|done| done.path == path).count();
                let said = format!("{point}, {method} by {connector}: done {times} times, told {:?}", seen.object);
                match (*method, *connector, seen.status()) {
                    ("GET" | "PUT", _, "success") => ensure!(times >= 1, "{said}"),
                    (_, "keyed", "success") => ensure!(times == 1, "{said}"),
                    (_, "plain", "success") => ensure!(times == 1, "{said}"),
                    // It may have been done, and is not done again.
                    ("POST", "plain", "error") => {
                        ensure!(seen.code() == "INDETERMINATE" && seen.object["effect"] == "unknown" && times <= 1, "{said}");
                    }
                    _ => ensure!(false, "{said}"),
                }
            }
        }
        world.finish().await
    }

    crash_points! {
        C0: c0_before_accepted_is_durable;
        C1: c1_accepted_before_the_event;
        C2: c2_before_the_request;
        C3: c3_the_request_was_sent;
        C4: c4_answered_before_the_result;
        C5: c5_torn_result;
        C6: c6_durable_unpublished;
        C7: c7_published_unrecorded;
        C8: c8_recorded_unacked;
        C9: c9_acked_server_forgets;
    }
}
