//! The native profile over NATS: both encodings, results by key behind their fence, and answers to those who wait for them.

use std::time::Duration;

use anyhow::{Result, ensure};
use async_nats::jetstream::{self, stream};
use futures_util::StreamExt as _;
use prost::Message as _;
use proto::v1;
use serde_json::{Value, json};

use crate::native::{Answer, FORMS, Form, Sender, header};
use crate::server::NatsServer;
use crate::worker::{Settings, Worker};

const STEPS: &str = "beamline.worker.steps.v1.acme";
const RESULTS: &str = "beamline.worker.results.v1.acme.";
const DLQ: &str = "beamline.worker.dlq.v1.";

/// A server, a worker that takes native steps, and a sender of them.
struct World {
    sender: Sender,
    worker: Worker,
    /// Ends last.
    server: NatsServer,
}

impl World {
    async fn start(jetstream: bool, settings: Settings) -> Result<World> {
        let server = NatsServer::start(jetstream).await?;
        let sender = Sender::connect(&server.url()).await?;
        let worker = Worker::start(&server.url(), native(settings)).await?;
        Ok(World { sender, worker, server })
    }

    fn context(&self) -> jetstream::Context {
        jetstream::new(self.sender.client.clone())
    }

    async fn metric(&self, name: &str) -> Result<f64> {
        self.worker.metric(name).await
    }
}

fn native(settings: Settings) -> Settings {
    settings.set("ENDSTATION__NATS__ASSIGN_SUBJECTS", "caf.exec.assign.v1,beamline.worker.steps.v1.*")
}

#[tokio::test]
async fn steps_of_a_stream_are_answered_as_they_came_on_the_subject_of_their_key() -> Result<()> {
    let world = World::start(true, Settings::default()).await?;
    for (index, form) in FORMS.into_iter().enumerate() {
        let id = format!("step-{index}");
        world.sender.store(STEPS, form.headers(), form.step("echo", &id, ("n", 7.0))).await?;
        let seen = world.sender.wait(RESULTS, index + 1).await?;
        let answer = Answer::read(&seen[index], form)?;
        ensure!((&*answer.status, &*answer.assignment_id, answer.n) == ("OK", &id, Some(7.0)), "{answer:?}");
        ensure!(header(&answer.message, "Nats-Expected-Last-Subject-Sequence") == Some("0"), "no fence: {answer:?}");
        let key = answer.message.subject.trim_start_matches(RESULTS);
        ensure!(key.len() == 32 && key.bytes().all(|byte| byte.is_ascii_hexdigit()), "{}", answer.message.subject);
    }
    let mut steps = world.context().get_stream("BEAMLINE_STEPS").await?;
    ensure!(steps.cached_info().config.retention == stream::RetentionPolicy::WorkQueue, "{:?}", steps.cached_info().config);
    ensure!(steps.cached_info().config.subjects == ["beamline.worker.steps.v1.*"], "{:?}", steps.cached_info().config);
    for name in ["BEAMLINE_RESULTS", "BEAMLINE_DLQ"] {
        let stream = world.context().get_stream(name).await?;
        ensure!(stream.cached_info().config.retention == stream::RetentionPolicy::Limits, "{:?}", stream.cached_info().config);
    }
    let begun = std::time::Instant::now();
    while steps.info().await?.state.messages > 0 {
        ensure!(begun.elapsed() < Duration::from_secs(10), "steps are left in the stream");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test]
async fn the_same_step_in_another_encoding_is_the_same_step() -> Result<()> {
    let world = World::start(true, Settings::default()).await?;
    for form in [Form::Json, Form::Protobuf] {
        world.sender.store(STEPS, form.headers(), form.step("echo", "one", ("n", 1.0))).await?;
    }
    let begun = std::time::Instant::now();
    while world.metric("endstation_duplicates_total").await? < 1.0 {
        ensure!(begun.elapsed() < Duration::from_secs(10), "the second one is not known");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let subjects: Vec<_> = world.sender.seen(RESULTS).into_iter().map(|message| message.subject).collect();
    ensure!(subjects.iter().all(|subject| *subject == subjects[0]), "two keys: {subjects:?}");
    ensure!(world.sender.seen(DLQ).is_empty(), "it was taken for other content");
    let mut results = world.context().get_stream("BEAMLINE_RESULTS").await?;
    ensure!(results.info().await?.state.messages == 1, "the stream has two results");
    Ok(())
}

#[tokio::test]
async fn what_does_not_decode_and_what_names_two_tenants_is_put_aside() -> Result<()> {
    let world = World::start(true, Settings::default()).await?;
    world.sender.store(STEPS, Form::Protobuf.headers(), "{\"type\":\"echo\"}".into()).await?;
    let seen = world.sender.wait(DLQ, 1).await?;
    let letter: Value = serde_json::from_slice(&seen[0].payload)?;
    ensure!(letter["error_code"] == "INVALID_FORMAT", "{letter}");
    let other = "beamline.worker.steps.v1.other";
    world.sender.store(other, Form::Protobuf.headers(), Form::Protobuf.step("echo", "x", ("n", 1.0))).await?;
    let seen = world.sender.wait(DLQ, 2).await?;
    let letter: Value = serde_json::from_slice(&seen[1].payload)?;
    ensure!(letter["message_base64"].is_string(), "the whole message: {letter}");
    tokio::time::sleep(Duration::from_millis(200)).await;
    ensure!(world.sender.seen("beamline.worker.results.").is_empty(), "somebody was answered");
    Ok(())
}

#[tokio::test]
async fn anothers_result_stands_and_is_an_alarm_that_is_told_once() -> Result<()> {
    // Steps by core to two queue groups, so that both workers run them; results into a stream that soon forgets message ids.
    let settings = native(Settings::core()).set("ENDSTATION__NATS__MODE", "auto");
    let server = NatsServer::start(true).await?;
    let sender = Sender::connect(&server.url()).await?;
    let config = stream::Config {
        name: "RESULTS".into(),
        subjects: vec!["beamline.worker.results.v1.>".into()],
        duplicate_window: Duration::from_millis(100),
        ..stream::Config::default()
    };
    let context = jetstream::new(sender.client.clone());
    context.create_stream(config).await?;
    let one = Worker::start(&server.url(), settings.clone()).await?;
    let ids = ["first", "second"];
    let send = async || -> Result<()> {
        for id in ids {
            sender.client.publish_with_headers(STEPS, Form::Json.headers(), Form::Json.step("echo", id, ("n", 1.0))).await?;
        }
        Ok(sender.client.flush().await?)
    };
    send().await?;
    sender.wait(RESULTS, ids.len()).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let other = Worker::start(&server.url(), settings.set("ENDSTATION__NATS__DURABLE", "other")).await?;
    send().await?;
    let begun = std::time::Instant::now();
    for (worker, alarms) in [(&one, 0.0), (&other, 2.0)] {
        while worker.metric("endstation_outbox_fenced_total").await? < 2.0 {
            ensure!(begun.elapsed() < Duration::from_secs(15), "not fenced; the log ends with {}", worker.log_tail());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        ensure!(worker.metric("endstation_outbox_duplicates_total").await? == alarms, "{alarms} alarms were due");
        ensure!(worker.metric("endstation_outbox_resent_total").await? == 0.0, "a fenced result was sent again");
        let said = worker.log_text().matches("another result for this key was there first").count();
        ensure!(said == usize::from(alarms > 0.0), "said {said} times");
    }
    let mut results = context.get_stream("RESULTS").await?;
    ensure!(results.info().await?.state.messages == 2, "the stream has a second result of a key");
    Ok(())
}

#[tokio::test]
async fn our_own_result_sent_again_after_its_id_was_forgotten_is_no_alarm() -> Result<()> {
    let mut world = World::start(true, Settings::default()).await?;
    let body = Form::Json.step("echo", "one", ("n", 1.0));
    world.sender.store(STEPS, Form::Json.headers(), body.clone()).await?;
    world.sender.wait(RESULTS, 1).await?;
    // A stream made again from a copy knows its messages and none of their ids: what a short id memory comes to.
    let stream = world.context().get_stream("BEAMLINE_RESULTS").await?;
    let mut config = stream.cached_info().config.clone();
    config.duplicate_window = Duration::from_millis(100);
    world.context().update_stream(config).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    world.worker.kill();
    world.worker.restart().await?;
    world.sender.store(STEPS, Form::Json.headers(), body).await?;
    let begun = std::time::Instant::now();
    while world.metric("endstation_outbox_fenced_total").await? < 1.0 {
        ensure!(begun.elapsed() < Duration::from_secs(15), "the second publish was not fenced");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut steps = world.context().get_stream("BEAMLINE_STEPS").await?;
    while steps.info().await?.state.messages > 0 {
        ensure!(begun.elapsed() < Duration::from_secs(15), "a fenced result is not taken as told");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure!(world.metric("endstation_outbox_duplicates_total").await? == 0.0, "our own redelivery raised an alarm");
    let mut results = world.context().get_stream("BEAMLINE_RESULTS").await?;
    ensure!(results.info().await?.state.messages == 1, "the stream has two results");
    Ok(())
}

#[tokio::test]
async fn a_question_on_core_nats_is_answered_where_it_waits_and_as_it_came() -> Result<()> {
    let world = World::start(false, Settings::core()).await?;
    for (index, form) in FORMS.into_iter().enumerate() {
        let body = form.step("echo", &format!("step-{index}"), ("n", 2.0));
        let first = Answer::read(&world.sender.ask(STEPS, form.headers(), body.clone()).await?, form)?;
        ensure!((&*first.status, first.n) == ("OK", Some(2.0)), "{first:?}");
        ensure!(header(&first.message, "Nats-Expected-Last-Subject-Sequence").is_none(), "{first:?}");
        let again = Answer::read(&world.sender.ask(STEPS, form.headers(), body).await?, form)?;
        ensure!(again.message.payload == first.message.payload, "asked again, the answer is another");
    }
    let seen = world.sender.wait(RESULTS, 3).await?;
    ensure!(header(&seen[0], "Nats-Expected-Last-Subject-Sequence").is_none(), "no stream is there to expect anything");
    let refused = world.sender.ask(STEPS, Form::Protobuf.headers(), Form::Protobuf.step("no.such", "bad", ("n", 1.0))).await?;
    ensure!(Answer::read(&refused, Form::Protobuf)?.status == "ERROR", "a refusal is an answer");
    Ok(())
}

#[tokio::test]
async fn everybody_who_waits_for_a_running_step_is_answered() -> Result<()> {
    let world = World::start(false, Settings::core()).await?;
    let ask = || world.sender.ask(STEPS, Form::Json.headers(), Form::Json.step("sleep", "one", ("ms", 500.0)));
    let late = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        ask().await
    };
    let (one, two, three) = tokio::join!(ask(), ask(), late);
    for answer in [one, two, three] {
        ensure!(Answer::read(&answer?, Form::Json)?.status == "OK");
    }
    let begun = std::time::Instant::now();
    while world.metric("worker_step_executions_total").await? == 0.0 {
        ensure!(begun.elapsed() < Duration::from_secs(10), "nothing is counted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure!(world.metric("worker_step_executions_total").await? == 1.0, "it ran more than once");
    Ok(())
}

#[tokio::test]
async fn no_other_subject_that_a_message_names_is_published_on() -> Result<()> {
    let world = World::start(true, Settings::core()).await?;
    let client = &world.sender.client;
    let names = ["caf.exec.result.v1", "$JS.API.STREAM.DELETE.X", "beamline.worker.steps.v1.other", "_INBOX", "foreign.inbox"];
    let mut ears = Vec::new();
    for name in names {
        ears.push(client.subscribe(name).await?);
    }
    client.flush().await?;
    for (index, name) in names.into_iter().enumerate() {
        let body = Form::Json.step("echo", &format!("step-{index}"), ("n", 1.0));
        client.publish_with_reply(STEPS, name, body).await?;
    }
    world.sender.wait(RESULTS, names.len()).await?;
    for (name, mut ear) in names.into_iter().zip(ears) {
        let heard = tokio::time::timeout(Duration::from_millis(100), ear.next()).await;
        ensure!(heard.is_err(), "{name} was published on: {heard:?}");
    }
    Ok(())
}

#[tokio::test]
async fn results_that_no_stream_covers_go_by_core_publish() -> Result<()> {
    let settings = native(Settings::default()).set("ENDSTATION__NATS__PROVISION", "false");
    let server = NatsServer::start(true).await?;
    let sender = Sender::connect(&server.url()).await?;
    let context = jetstream::new(sender.client.clone());
    let subjects = vec!["caf.exec.assign.v1".to_owned(), "beamline.worker.steps.v1.*".to_owned()];
    context.create_stream(stream::Config { name: "THEIRS".into(), subjects, ..stream::Config::default() }).await?;
    let worker = Worker::start(&server.url(), settings).await?;
    for index in 0..50 {
        sender.store(STEPS, Form::Json.headers(), Form::Json.step("echo", &format!("step-{index}"), ("n", 1.0))).await?;
    }
    let seen = sender.wait(RESULTS, 50).await?;
    ensure!(header(&seen[0], "Nats-Expected-Last-Subject-Sequence").is_none(), "the header is for streams");
    ensure!(worker.metric("endstation_outbox_resent_total").await? == 0.0, "something was sent twice");
    drop(server);
    Ok(())
}

const CANCEL: &str = "beamline.worker.cancel.v1.acme";

/// Asks to cancel an assignment, and reads what became of it.
async fn cancel(sender: &Sender, form: Form, assignment: &str) -> Result<(String, String)> {
    let body = if form == Form::Protobuf {
        let cancel = v1::StepCancel { assignment_id: Some(assignment.into()), actor: Some("ann".into()), ..Default::default() };
        cancel.encode_to_vec()
    } else {
        json!({"assignment_id": assignment, "reason": "a test"}).to_string().into_bytes()
    };
    let reply = sender.ask(CANCEL, form.headers(), body.into()).await?;
    if form == Form::Protobuf {
        let reply = v1::StepCancelReply::decode(reply.payload)?;
        return Ok((reply.disposition().as_str_name().to_owned(), reply.status().as_str_name().to_owned()));
    }
    let reply: Value = serde_json::from_slice(&reply.payload)?;
    let text = |name: &str| reply[name].as_str().unwrap_or("STATUS_UNSPECIFIED").to_owned();
    Ok((text("disposition"), text("status")))
}

#[tokio::test]
async fn a_cancel_stops_what_runs_and_says_what_has_ended_or_is_unknown() -> Result<()> {
    let mut world = World::start(true, Settings::default()).await?;
    let said = |disposition: &str, status: &str| (disposition.to_owned(), status.to_owned());
    for (index, form) in [Form::Json, Form::Protobuf].into_iter().enumerate() {
        let (id, unknown) = (format!("long-{index}"), format!("none-{index}"));
        ensure!(cancel(&world.sender, form, &unknown).await? == said("NOT_FOUND", "STATUS_UNSPECIFIED"));
        world.sender.store(STEPS, form.headers(), form.step("sleep", &id, ("ms", 60_000.0))).await?;
        let begun = std::time::Instant::now();
        while world.metric("endstation_running").await? < 1.0 {
            ensure!(begun.elapsed() < Duration::from_secs(10), "it does not start");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        ensure!(cancel(&world.sender, form, &id).await? == said("NOTED", "STATUS_UNSPECIFIED"));
        let seen = world.sender.wait(RESULTS, index + 1).await?;
        let answer = Answer::read(&seen[index], form)?;
        ensure!((&*answer.status, &*answer.assignment_id) == ("CANCELED", &id), "{answer:?}");
        ensure!(cancel(&world.sender, form, &id).await? == said("ALREADY_ENDED", "CANCELED"));
    }
    world.worker.kill();
    world.worker.restart().await?;
    for (form, id) in [(Form::Json, "long-0"), (Form::Protobuf, "long-1")] {
        ensure!(cancel(&world.sender, form, id).await? == said("ALREADY_ENDED", "CANCELED"), "it was told, so it is durable");
    }
    world.sender.store(STEPS, Form::Plain.headers(), Form::Plain.step("echo", "short", ("n", 1.0))).await?;
    // Results that were out before the kill may come again: what is waited for is this step's own.
    let mut count = 3;
    while !Answer::read(&world.sender.wait(RESULTS, count).await?[count - 1], Form::Plain)
        .is_ok_and(|answer| answer.assignment_id == "short")
    {
        count += 1;
    }
    ensure!(cancel(&world.sender, Form::Plain, "short").await? == said("ALREADY_ENDED", "OK"));
    Ok(())
}

#[tokio::test]
async fn of_two_workers_the_one_that_knows_the_step_answers_first() -> Result<()> {
    let world = World::start(false, Settings::core()).await?;
    let _second = Worker::start(&world.server.url(), native(Settings::core())).await?;
    for index in 0..6 {
        let id = format!("long-{index}");
        let body = Form::Json.step("sleep", &id, ("ms", 60_000.0));
        world.sender.client.publish_with_headers(STEPS, Form::Json.headers(), body).await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        ensure!(cancel(&world.sender, Form::Json, &id).await?.0 == "NOTED", "the wrong worker was heard");
    }
    Ok(())
}

#[tokio::test]
async fn a_signal_is_answered_with_why_it_is_of_no_use() -> Result<()> {
    let world = World::start(false, Settings::core()).await?;
    let body = json!({"context": {"tenant_id": "acme"}, "assignment_id": "x", "name": "payment"}).to_string();
    let reply = world.sender.ask("beamline.worker.signals.v1.acme", Form::Plain.headers(), body.into()).await?;
    let reply: Value = serde_json::from_slice(&reply.payload)?;
    ensure!(reply["error"]["message"] == "no step of this worker waits for such a signal", "{reply}");
    Ok(())
}

#[tokio::test]
async fn the_worker_is_listed_as_a_micro_service() -> Result<()> {
    let world = World::start(false, Settings::core()).await?;
    world.sender.ask(STEPS, Form::Json.headers(), Form::Json.step("echo", "one", ("n", 1.0))).await?;
    let id = world.worker.id();
    let ask = async |subject: String| -> Result<Value> {
        let reply = world.sender.ask(&subject, Form::Plain.headers(), "".into()).await?;
        Ok(serde_json::from_slice(&reply.payload)?)
    };
    for kind in ["PING", "INFO", "STATS"] {
        for subject in [format!("$SRV.{kind}"), format!("$SRV.{kind}.endstation"), format!("$SRV.{kind}.endstation.{id}")] {
            let said = ask(subject).await?;
            let form = format!("io.nats.micro.v1.{}_response", kind.to_lowercase());
            ensure!(said["type"] == form && said["name"] == "endstation" && said["id"] == id, "{said}");
            ensure!(said["version"].as_str().is_some_and(|version| version.split('.').count() == 3), "{said}");
        }
    }
    let info = ask("$SRV.INFO".into()).await?;
    ensure!(info["endpoints"][0]["subject"] == "caf.exec.assign.v1" && info["description"].is_string(), "{info}");
    let stats = ask("$SRV.STATS".into()).await?;
    ensure!(stats["endpoints"][0]["num_requests"].as_u64() >= Some(1) && stats["started"].is_string(), "{stats}");
    Ok(())
}
