//! `ai.generate` as a tenant meets it, against a stub of a provider that counts what it is asked. Whatever happens, the
//! provider's key is in nothing that can be read.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::Subscriber;
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::secrets;
use crate::canary::Canaries;
use crate::provider::{Provider, WORDS};
use crate::router::{Assignment, Seen, Strictness};
use crate::worker::Settings;
use crate::world::{PATIENCE, World};

const KEY: &str = "sk-it-7d1f0b94ac52e8";

/// The same worker, with this provider behind the connector `llm` of tenant `acme`.
pub(super) fn provided(settings: Settings, provider: &Provider) -> Settings {
    let fields = [
        ("TENANTS", "acme".to_owned()),
        ("URL", format!("http://{}/v1", provider.address)),
        ("ALLOW", "127.0.0.0/8".to_owned()),
        ("PROVIDER", "openai".to_owned()),
        ("MODELS", "small-1".to_owned()),
        ("BEARER", "secret://env/IT_LLM_KEY".to_owned()),
        ("PRICE_IN", "0.15".to_owned()),
        ("PRICE_OUT", "0.60".to_owned()),
    ];
    let set = |settings: Settings, (field, value): &(&str, String)| {
        settings.set(&format!("ENDSTATION__CONNECTORS__LLM__{field}"), value)
    };
    fields.iter().fold(settings.set("IT_LLM_KEY", KEY), set)
}

/// A worker with a provider, and the events of its tenant.
struct Scene {
    provider: Provider,
    world: World,
    events: Subscriber,
    heard: secrets::Heard,
}

impl Scene {
    async fn open(strict: Strictness) -> Result<Scene> {
        let provider = Provider::open().await?;
        let settings = provided(Settings::default(), &provider).set("ENDSTATION__EVENTS__ENABLED", "true");
        let world = World::with(true, settings.set("RUST_LOG", "trace"), strict).await?;
        let client = async_nats::connect(world.server.url()).await?;
        let events = client.subscribe("beamline.worker.events.acme").await?;
        client.flush().await?;
        let heard = secrets::Heard::all(client).await?;
        Ok(Scene { provider, world, events, heard })
    }

    /// The next event: its kind, and what it says.
    async fn event(&mut self) -> Result<(String, Value)> {
        let message = tokio::time::timeout(PATIENCE, self.events.next()).await?.context("events")?;
        let mut event: Value = serde_json::from_slice(&message.payload)?;
        let data = event["data"].take();
        Ok((data["kind"].as_str().context("a kind")?.to_owned(), data))
    }

    /// All is answered, and nobody was told the key.
    async fn close(self) -> Result<()> {
        self.world.finish().await?;
        let mut canaries = Canaries::default();
        canaries.plant("the provider's key", KEY);
        let searched = secrets::search(&canaries, &self.world, &self.heard, &[]).await?;
        ensure!(searched > 10, "{searched} outputs were searched");
        Ok(())
    }
}

fn ask(inputs: Value) -> Assignment {
    Assignment::new("acme", "ai.generate", inputs)
}

fn outputs(seen: &Seen) -> Result<&Value> {
    ensure!(seen.status() == "success", "not a success: {:?}", seen.object);
    seen.object.get("outputs").context("no outputs")
}

#[tokio::test]
async fn an_answer_comes_whole_or_is_told_as_it_comes_with_its_end_marked() -> Result<()> {
    let mut scene = Scene::open(Strictness::default()).await?;
    let seen = scene.world.router.run(&ask(json!({"prompt": "what is a bolt?"})), PATIENCE).await?;
    let out = outputs(&seen)?;
    ensure!(out["text"] == WORDS.concat() && out["finish_reason"] == "stop" && out.get("streamed").is_none(), "{out}");
    ensure!(out["usage"]["total_tokens"] == 18 && out["cost"] == json!(5.4e-6) && out["currency"] == "USD", "{out}");
    ensure!(seen.object["cost"] == out["cost"], "{:?}", seen.object);
    while scene.event().await?.0 != "COMPLETED" {}

    let seen = scene.world.router.run(&ask(json!({"prompt": "and a nut?", "stream": true})), PATIENCE).await?;
    ensure!(outputs(&seen)?["text"] == WORDS.concat(), "{:?}", seen.object);
    let mut told = Vec::new();
    while told.last().is_none_or(|(kind, _): &(String, Value)| kind != "COMPLETED") {
        let (kind, data) = scene.event().await?;
        ensure!(data["sequence"] == told.len(), "out of order: {kind} {data}");
        told.push((kind, data));
    }
    let progress: Vec<_> = told.iter().filter(|(kind, _)| kind == "PROGRESS").map(|(_, data)| &data["progress"]).collect();
    let (end, pieces) = progress.split_last().context("progress")?;
    ensure!(told[0].0 == "ACCEPTED" && told[1].0 == "STARTED" && told.len() == progress.len() + 3, "{told:?}");
    ensure!(pieces.iter().filter_map(|piece| piece["text"].as_str()).collect::<String>() == WORDS.concat(), "{pieces:?}");
    ensure!(end["message"] == "end" && end["data"]["pieces"] == pieces.len(), "{end}");
    ensure!(outputs(&seen)?["streamed"] == pieces.len() && pieces.len() > 1, "{:?}", seen.object);
    // What a provider says back of its key, in a whole answer and in pieces.
    for stream in [false, true] {
        let seen = scene.world.router.run(&ask(json!({"prompt": format!("echo {stream}"), "stream": stream})), PATIENCE).await?;
        outputs(&seen)?;
        ensure!(
            seen.object["outputs"]["text"].as_str().is_some_and(|text| stream || text.contains("[REDACTED]")),
            "{:?}",
            seen.object
        );
    }
    scene.close().await
}

#[tokio::test]
async fn a_provider_that_asks_to_be_left_alone_is_asked_again_when_it_said() -> Result<()> {
    let scene = Scene::open(Strictness::default()).await?;
    let seen = scene.world.router.run(&ask(json!({"prompt": "busy"})), PATIENCE).await?;
    ensure!(outputs(&seen)?["text"] == WORDS.concat(), "{:?}", seen.object);
    let asked = scene.provider.seen("busy").asked;
    ensure!(asked.len() == 2, "asked {} times", asked.len());
    let waited = asked[1] - asked[0];
    ensure!(waited >= Duration::from_secs(1), "it asked for a second and got {waited:?}");
    scene.close().await
}

#[tokio::test]
async fn a_provider_that_says_nothing_is_hung_up_on_when_the_time_is_over() -> Result<()> {
    let scene = Scene::open(Strictness::default()).await?;
    let mut late = ask(json!({"prompt": "silent"}));
    late.json["options"] = json!({"deadline_ms": 700});
    let seen = scene.world.router.run(&late, PATIENCE).await?;
    ensure!((seen.status(), seen.code()) == ("timeout", "TIMEOUT"), "{:?}", seen.object);
    ensure!(seen.object["effect"] == "none", "nothing stays behind: {:?}", seen.object);
    let letter = scene.world.router.dead_letter(&late.body(), PATIENCE).await?;
    ensure!(letter["error_code"] == "TIMEOUT", "{letter:?}");
    hung_up_on(&scene.provider, "silent", 1).await?;

    // One try's own time, and the other try.
    let seen = scene.world.router.run(&ask(json!({"prompt": "silent again", "attempt_ms": 300})), PATIENCE).await?;
    ensure!((seen.status(), seen.code()) == ("error", "NETWORK_ERROR"), "{:?}", seen.object);
    ensure!(seen.object["error_details"]["phase"] == "attempt", "{:?}", seen.object);
    ensure!(scene.provider.asked("silent again") == 2, "two tries");
    hung_up_on(&scene.provider, "silent again", 2).await?;
    scene.world.worker.metric_becomes("endstation_running", |running| running == 0.0).await?;
    scene.close().await
}

async fn hung_up_on(provider: &Provider, prompt: &str, times: usize) -> Result<()> {
    let begun = std::time::Instant::now();
    while provider.seen(prompt).hung_up < times {
        ensure!(begun.elapsed() < Duration::from_secs(5), "the connection stays: {:?}", provider.seen(prompt));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_cancel_in_the_middle_of_a_stream_hangs_up() -> Result<()> {
    let mut scene = Scene::open(Strictness::default()).await?;
    let job = ask(json!({"prompt": "drip", "stream": true}));
    scene.world.router.send(&job).await?;
    let mut pieces = 0;
    while pieces < 3 {
        pieces += usize::from(scene.event().await?.0 == "PROGRESS");
    }
    ensure!(scene.provider.seen("drip").hung_up == 0, "it goes on until somebody ends it");
    let question = json!({"assignment_id": job.id, "reason": "enough"});
    let reply = scene.world.router.question("beamline.worker.cancel.v1.acme", &question).await?;
    ensure!(reply["disposition"] == "NOTED", "{reply}");
    let seen = scene.world.router.result(&job.id, PATIENCE).await?;
    ensure!((seen.status(), seen.code()) == ("cancelled", "CANCELLED_BY_USER"), "{:?}", seen.object);
    hung_up_on(&scene.provider, "drip", 1).await?;
    ensure!(scene.provider.asked("drip") == 1, "a step that was stopped is not asked again");
    while scene.event().await?.0 != "CANCELED" {}
    scene.world.worker.metric_becomes("endstation_running", |running| running == 0.0).await?;
    scene.close().await
}

#[tokio::test]
async fn a_provider_that_refuses_fails_the_step_into_the_dead_letters() -> Result<()> {
    let scene = Scene::open(Strictness::default()).await?;
    let job = ask(json!({"prompt": "refuse"}));
    let seen = scene.world.router.run(&job, PATIENCE).await?;
    ensure!((seen.status(), seen.code()) == ("error", "HTTP_ERROR"), "{:?}", seen.object);
    let details = &seen.object["error_details"];
    ensure!(seen.object["effect"] == "none" && details["status"] == 400 && details["code"] == "never", "{details}");
    ensure!(details["message"].as_str().is_some_and(|said| said.contains("Bearer [REDACTED]")), "{details}");
    let letter = scene.world.router.dead_letter(&job.body(), PATIENCE).await?;
    ensure!(letter["error_code"] == "HTTP_ERROR", "{letter:?}");
    ensure!(scene.provider.asked("refuse") == 1, "no try helps");
    scene.close().await
}

#[tokio::test]
async fn a_duplicate_asks_the_provider_for_nothing() -> Result<()> {
    let mut scene = Scene::open(Strictness::default()).await?;
    let job = ask(json!({"prompt": "once"}));
    let first = scene.world.router.run(&job, PATIENCE).await?;
    scene.world.router.send(&job).await?;
    scene.world.router.wait(PATIENCE, "a repeat", |model| (model.counts().repeats >= 1).then_some(())).await?;
    // And to another life of the worker.
    scene.world.worker.kill();
    scene.world.worker.restart().await?;
    scene.world.router.send(&job).await?;
    scene.world.router.wait(PATIENCE, "another repeat", |model| (model.counts().repeats >= 2).then_some(())).await?;
    ensure!(scene.world.router.result(&job.id, PATIENCE).await?.payload == first.payload, "the same bytes");
    ensure!(scene.provider.asked("once") == 1, "a duplicate was asked for");
    scene.close().await
}

#[tokio::test]
async fn a_worker_that_is_killed_while_it_waits_asks_again_and_tells_one_outcome() -> Result<()> {
    let mut scene = Scene::open(Strictness { order: false, ..Strictness::default() }).await?;
    let prompts = ["held", "held stream"];
    let jobs = [ask(json!({"prompt": prompts[0]})), ask(json!({"prompt": prompts[1], "stream": true}))];
    scene.world.router.send_all(&jobs).await?;
    let begun = std::time::Instant::now();
    while prompts.iter().any(|prompt| scene.provider.asked(prompt) == 0) {
        ensure!(begun.elapsed() < PATIENCE, "nobody asks");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    scene.world.worker.kill();
    scene.world.worker.restart().await?;
    for (job, prompt) in jobs.iter().zip(prompts) {
        let seen = scene.world.router.result(&job.id, PATIENCE).await?;
        ensure!(outputs(&seen)?["text"] == WORDS.concat(), "{:?}", seen.object);
        ensure!(scene.provider.asked(prompt) == 2, "{prompt}: asked {} times", scene.provider.asked(prompt));
        ensure!(scene.provider.seen(prompt).hung_up == 1, "{prompt}: {:?}", scene.provider.seen(prompt));
    }
    scene.close().await
}
