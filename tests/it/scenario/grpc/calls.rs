//! What is answered: results, acceptance, cancels, over kills and broken connections.

use std::collections::HashMap;
use std::sync::Arc;

use proto::v1::step_cancel_reply::Disposition;
use proto::v1::step_result::Status as Ended;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use super::*;
use crate::native::{Form, Sender};

#[tokio::test]
async fn a_step_is_run_once_and_whoever_asks_again_is_answered_from_the_journal() -> Result<()> {
    let mut world = World::start(Settings::core()).await?;
    let mut client = world.client().await?;
    let first = submit(&mut client, echo("one")).await?;
    ensure!(first.status() == Ended::Ok && first.assignment_id.as_deref() == Some("one"), "{first:?}");
    ensure!(first.outputs.as_ref().and_then(|outputs| outputs.fields.get("n")) == Some(&number(1.0)), "{first:?}");
    ensure!(submit(&mut client, echo("one")).await? == first, "asked again, the answer is another");
    world.worker.kill();
    world.worker.restart().await?;
    let mut client = world.client().await?;
    ensure!(submit(&mut client, echo("one")).await? == first, "asked again after a kill, the answer is another");
    world.metric("endstation_duplicates_total", |count| count == 1.0).await?;
    ensure!(world.worker.metric("worker_step_executions_total").await? == 0.0, "it ran again");
    Ok(())
}

#[tokio::test]
async fn a_stream_keeps_many_steps_under_way_and_says_of_each_that_it_is_accepted_and_how_it_ended() -> Result<()> {
    const STEPS: u64 = 1_000;
    let world = World::start(Settings::core()).await?;
    let mut stream = Stream::open(&mut world.client().await?).await?;
    let requests = stream.requests.clone();
    let feeding = tokio::spawn(async move {
        for n in 1..=STEPS {
            let step = if n % 100 == 0 { step("no.such", &format!("s-{n}"), ("n", 1.0)) } else { echo(&format!("s-{n}")) };
            requests.send(step).await?;
        }
        anyhow::Ok(())
    });
    let mut said: HashMap<u64, Vec<&'static str>> = HashMap::new();
    let mut ended = 0;
    while ended < STEPS {
        let update = stream.updates.message().await?.context("the stream ended early")?;
        let want = format!("s-{}", update.number);
        ensure!(update.assignment_id.as_deref() == Some(&*want), "{update:?}");
        let word = match update.said.context("something is said")? {
            Said::Accepted(_) => "accepted",
            Said::Result(result) => {
                ensure!(result.status() == Ended::Ok && result.assignment_id.as_deref() == Some(&*want), "{result:?}");
                "ok"
            }
            Said::Refused(refused) => {
                ensure!(refused.code == Code::InvalidArgument as i32, "{refused:?}");
                "refused"
            }
        };
        ended += u64::from(word != "accepted");
        said.entry(update.number).or_default().push(word);
    }
    feeding.await??;
    let Stream { requests, mut updates } = stream;
    drop(requests);
    ensure!(updates.message().await?.is_none(), "the stream ends when all is said");
    for n in 1..=STEPS {
        let want: &[&str] = if n % 100 == 0 { &["refused"] } else { &["accepted", "ok"] };
        ensure!(said.get(&n).is_some_and(|said| said == want), "{n}: {:?}", said.get(&n));
    }
    Ok(())
}

#[tokio::test]
async fn what_was_accepted_survives_a_kill_and_has_one_outcome_for_whoever_asks_again() -> Result<()> {
    let mut world = World::start(Settings::core()).await?;
    let mut stream = Stream::open(&mut world.client().await?).await?;
    stream.send(sleep("one", 1_500)).await?;
    stream.accepted().await?;
    world.worker.kill();
    ensure!(stream.updates.message().await.is_err(), "the stream breaks off");
    world.worker.restart().await?;
    let mut client = world.client().await?;
    // It has been taken up again: a second asker finds it on its way, and is told that it is accepted, too.
    let mut stream = Stream::open(&mut client).await?;
    stream.send(sleep("one", 1_500)).await?;
    stream.accepted().await?;
    let result = submit(&mut client, sleep("one", 1_500)).await?;
    ensure!(result.status() == Ended::Ok, "{result:?}");
    ensure!(matches!(stream.next().await?, (1, Said::Result(told)) if told == result), "two outcomes");
    ensure!(submit(&mut client, sleep("one", 1_500)).await? == result, "and another");
    world.metric("worker_step_executions_total", |count| count == 1.0).await
}

#[tokio::test]
async fn a_client_that_goes_away_loses_its_answer_and_not_its_step() -> Result<()> {
    let world = World::start(Settings::core()).await?;
    let mut client = world.client().await?;
    let mut stream = Stream::open(&mut client).await?;
    stream.send(sleep("streamed", 1_000)).await?;
    stream.accepted().await?;
    drop(stream);
    let impatient = tokio::time::timeout(Duration::from_millis(300), client.submit(sleep("single", 1_000)));
    ensure!(impatient.await.is_err(), "it takes longer");
    drop(client);
    world.metric("endstation_edge_calls_waiting", |count| count == 0.0).await?;
    world.metric("worker_step_executions_total", |count| count == 2.0).await?;
    let mut client = world.client().await?;
    for id in ["streamed", "single"] {
        ensure!(submit(&mut client, sleep(id, 1_000)).await?.status() == Ended::Ok, "{id}");
    }
    ensure!(world.worker.metric("worker_step_executions_total").await? == 2.0, "one ran again");
    Ok(())
}

#[tokio::test]
async fn more_askers_of_one_step_than_ride_along_cost_the_oldest_its_place_and_no_outcome() -> Result<()> {
    let world = World::start(Settings::core()).await?;
    let mut client = world.client().await?;
    let ask = |client: &Client| {
        let mut client = client.clone();
        tokio::spawn(async move { submit(&mut client, sleep("one", 3_000)).await })
    };
    let mut asking = Vec::new();
    for _ in 0..40 {
        asking.push(ask(&client));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut codes = Vec::new();
    for asked in asking {
        codes.push(asked.await?.map_or_else(|status| status.code(), |_| Code::Ok));
    }
    let ousted = codes.iter().filter(|code| **code == Code::ResourceExhausted).count();
    ensure!(ousted == 7 && codes.iter().filter(|code| **code == Code::Ok).count() == 33, "{codes:?}");
    ensure!(codes[0] == Code::Ok && codes[39] == Code::Ok, "who came first and who came last: {codes:?}");
    ensure!(submit(&mut client, sleep("one", 3_000)).await?.status() == Ended::Ok);
    world.metric("worker_step_executions_total", |count| count == 1.0).await
}

/// Asks to stop an assignment.
async fn cancel(client: &mut Client, assignment: &str) -> Result<(Disposition, Ended), Status> {
    let cancel = v1::StepCancel { context: context("acme"), assignment_id: Some(assignment.into()), ..Default::default() };
    let reply = client.cancel(ask(cancel)).await?.into_inner();
    Ok((reply.disposition(), reply.status()))
}

#[tokio::test]
async fn a_cancel_is_confirmed_and_the_step_ends_as_cancelled_for_its_asker() -> Result<()> {
    let mut world = World::start(Settings::core()).await?;
    let mut client = world.client().await?;
    ensure!(cancel(&mut client, "none").await? == (Disposition::NotFound, Ended::Unspecified));
    let mut stream = Stream::open(&mut client).await?;
    stream.send(sleep("long", 60_000)).await?;
    stream.accepted().await?;
    ensure!(cancel(&mut client, "long").await? == (Disposition::Noted, Ended::Unspecified));
    ensure!(matches!(stream.next().await?, (1, Said::Result(result)) if result.status() == Ended::Canceled));
    ensure!(cancel(&mut client, "long").await? == (Disposition::AlreadyEnded, Ended::Canceled));
    world.worker.kill();
    world.worker.restart().await?;
    let mut client = world.client().await?;
    ensure!(cancel(&mut client, "long").await? == (Disposition::AlreadyEnded, Ended::Canceled), "it was told, so it is durable");
    ensure!(submit(&mut client, sleep("long", 60_000)).await?.status() == Ended::Canceled);
    Ok(())
}

#[tokio::test]
async fn a_signal_is_answered_as_over_nats() -> Result<()> {
    let world = World::start(Settings::core()).await?;
    let sender = Sender::connect(&world.server.url()).await?;
    let signal = v1::Signal { context: context("acme"), name: "approval".into(), ..Default::default() };
    let body = prost::Message::encode_to_vec(&signal);
    let by_nats = sender.ask("beamline.worker.signals.v1.acme", Form::Protobuf.headers(), body.into()).await?;
    let by_nats = <v1::SignalReply as prost::Message>::decode(by_nats.payload)?;
    let by_call = world.client().await?.signal(ask(signal)).await?.into_inner();
    ensure!(by_call == by_nats && by_call.error.is_some(), "{by_call:?} is not {by_nats:?}");
    Ok(())
}

#[tokio::test]
async fn a_step_is_answered_wherever_it_was_asked_for_and_a_call_on_no_subject() -> Result<()> {
    let settings = with_events().set("ENDSTATION__NATS__ASSIGN_SUBJECTS", "beamline.worker.steps.v1.*");
    let world = World::start(settings).await?;
    let sender = Sender::connect(&world.server.url()).await?;
    let mut client = world.client().await?;
    ensure!(submit(&mut client, echo("called")).await?.status() == Ended::Ok);
    // The same step, first by a call and then by NATS, and the other way round.
    let steps = "beamline.worker.steps.v1.acme";
    let body = |id: &str| Form::Protobuf.step("sleep", id, ("ms", 1_500.0));
    let mut stream = Stream::open(&mut client).await?;
    stream.send(sleep("both-1", 1_500)).await?;
    stream.accepted().await?;
    let (by_nats, by_call) = tokio::join!(sender.ask(steps, Form::Protobuf.headers(), body("both-1")), stream.next());
    ensure!(matches!(by_call?, (1, Said::Result(result)) if result.status() == Ended::Ok));
    ensure!(crate::native::Answer::read(&by_nats?, Form::Protobuf)?.status == "OK");
    sender.client.publish_with_headers(steps, Form::Protobuf.headers(), body("both-2")).await?;
    world.metric("endstation_running", |count| count == 1.0).await?;
    ensure!(submit(&mut client, sleep("both-2", 1_500)).await?.status() == Ended::Ok);
    let seen = sender.wait("beamline.worker.results.v1.acme.", 2).await?;
    sender.wait("beamline.worker.events.acme", 9).await?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let ids: Vec<_> = seen.iter().map(|message| crate::native::Answer::read(message, Form::Protobuf)).collect::<Result<_>>()?;
    ensure!(sender.seen("beamline.worker.results.").len() == 2, "a call's result is published: {ids:?}");
    world.metric("worker_step_executions_total", |count| count == 3.0).await
}

#[tokio::test]
async fn without_a_nats_server_steps_are_taken_and_answered_all_the_same() -> Result<()> {
    let mut world = World::start(with_events()).await?;
    world.server.kill();
    let mut client = world.client().await?;
    let mut stream = Stream::open(&mut client).await?;
    stream.send(sleep("long", 700)).await?;
    stream.accepted().await?;
    ensure!(submit(&mut client, echo("short")).await?.status() == Ended::Ok, "the server is gone");
    ensure!(matches!(stream.next().await?, (1, Said::Result(result)) if result.status() == Ended::Ok));
    // Started again where there is still no server.
    world.worker.kill();
    world.worker.launch(&[])?;
    served(world.port, "").await?;
    let mut client = world.client().await?;
    let again = submit(&mut client, echo("short")).await?;
    ensure!(again.status() == Ended::Ok && submit(&mut client, echo("new")).await?.status() == Ended::Ok);
    Ok(())
}

async fn health(port: u16, service: &str) -> Result<ServingStatus> {
    let mut health = HealthClient::new(channel(port).await?);
    let answer = health.check(ask(HealthCheckRequest { service: service.into() })).await?;
    Ok(answer.into_inner().status())
}

/// Waits until the worker says that it serves.
async fn served(port: u16, service: &str) -> Result<()> {
    let begun = Instant::now();
    while health(port, service).await? != ServingStatus::Serving {
        ensure!(begun.elapsed() < PATIENCE, "{service:?} is not served");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

#[tokio::test]
async fn health_follows_a_drain_and_what_comes_then_is_unavailable() -> Result<()> {
    let mut world = World::start(Settings::core().set("ENDSTATION__SHUTDOWN__GRACE", "20s")).await?;
    let mut client = world.client().await?;
    for service in ["", "beamline.worker.v1.WorkerService"] {
        served(world.port, service).await?;
    }
    let unknown = health(world.port, "no.such.Service").await;
    ensure!(unknown.is_err_and(|error| error.downcast_ref::<Status>().map(Status::code) == Some(Code::NotFound)));
    submit(&mut client, echo("before")).await?;
    let mut watch = HealthClient::new(channel(world.port).await?);
    let mut changes = watch.watch(ask(HealthCheckRequest::default())).await?.into_inner();
    ensure!(changes.message().await?.context("a status")?.status() == ServingStatus::Serving);
    let mut stream = Stream::open(&mut client).await?;
    stream.send(sleep("long", 4_000)).await?;
    stream.accepted().await?;
    world.worker.terminate()?;
    ensure!(changes.message().await?.context("a status")?.status() == ServingStatus::NotServing);
    let refused = submit(&mut client, echo("late")).await.err().context("it is taken while draining")?;
    ensure!(refused.code() == Code::Unavailable, "{refused:?}");
    let wait = tonic_types::StatusExt::get_details_retry_info(&refused).and_then(|info| info.retry_delay);
    ensure!(wait.is_some_and(|wait| !wait.is_zero()), "when to come again: {refused:?}");
    ensure!(submit(&mut client, echo("before")).await?.status() == Ended::Ok, "what is known is answered still");
    ensure!(matches!(stream.next().await?, (1, Said::Result(result)) if result.status() == Ended::Ok), "it is finished");
    ensure!(world.worker.ended(PATIENCE).await?.success());
    world.worker.restart().await?;
    ensure!(submit(&mut world.client().await?, echo("late")).await?.status() == Ended::Ok, "a refusal is no outcome");
    Ok(())
}

#[tokio::test]
async fn reflection_describes_the_service() -> Result<()> {
    let world = World::start(Settings::core()).await?;
    let mut client = ServerReflectionClient::new(channel(world.port).await?);
    let requests = [
        MessageRequest::ListServices(String::new()),
        MessageRequest::FileContainingSymbol("beamline.worker.v1.StepUpdate".into()),
    ]
    .map(|message| ServerReflectionRequest { host: String::new(), message_request: Some(message) });
    let mut answers = client.server_reflection_info(ask(futures_util::stream::iter(requests))).await?.into_inner();
    let listed = answers.message().await?.and_then(|answer| answer.message_response);
    let Some(MessageResponse::ListServicesResponse(listed)) = listed else { anyhow::bail!("{listed:?}") };
    let names: Vec<_> = listed.service.iter().map(|service| &*service.name).collect();
    for name in ["beamline.worker.v1.WorkerService", "grpc.health.v1.Health"] {
        ensure!(names.contains(&name), "{names:?}");
    }
    let found = answers.message().await?.and_then(|answer| answer.message_response);
    ensure!(matches!(found, Some(MessageResponse::FileDescriptorResponse(ref files)) if !files.file_descriptor_proto.is_empty()));
    Ok(())
}

#[tokio::test]
async fn many_clients_at_once_are_all_answered() -> Result<()> {
    let world = World::start(Settings::core()).await?;
    let world = Arc::new(world);
    let clients = (0..8).map(|client| {
        let world = Arc::clone(&world);
        tokio::spawn(async move {
            let mut own = world.client().await?;
            for n in 0..50 {
                let result = submit(&mut own, echo(&format!("c-{client}-{n}"))).await?;
                ensure!(result.status() == Ended::Ok, "{result:?}");
            }
            anyhow::Ok(())
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await??;
    }
    world.metric("worker_step_executions_total", |count| count == 400.0).await
}

#[tokio::test]
async fn send_calls_with_the_steps_of_a_file_and_shows_what_is_said_of_each() -> Result<()> {
    let world = World::start(Settings::core()).await?;
    let file = world.worker.dir().join("steps.ndjson");
    let lines = [
        r#"{"type":"echo","inputs":{"n":7},"context":{"tenant_id":"acme"},"assignment_id":"good"}"#,
        r#"{"type":"no.such","context":{"tenant_id":"acme"},"assignment_id":"bad"}"#,
    ];
    std::fs::write(&file, lines.join("\n"))?;
    let url = format!("http://127.0.0.1:{}", world.port);
    let send = |url: &str| -> Result<std::process::Output> {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_endstation"));
        Ok(command.args(["send", "--grpc", url]).arg(&file).current_dir(world.worker.dir()).output()?)
    };
    let output = send(&url)?;
    ensure!(output.status.code() == Some(1), "one of two did not go well: {output:?}");
    let said: Vec<serde_json::Value> =
        String::from_utf8(output.stdout)?.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let of = |id: &str| said.iter().filter(|line| line["assignment_id"] == id).collect::<Vec<_>>();
    let (good, bad) = (of("good"), of("bad"));
    ensure!(good.len() == 2 && good[0]["kind"] == "ack" && good[1]["message"]["outputs"]["n"] == 7, "{said:?}");
    ensure!(bad.len() == 1 && bad[0]["message"]["grpc"] == "InvalidArgument", "{said:?}");
    ensure!(bad[0]["message"]["error"]["code"] == "UNKNOWN_JOB_TYPE", "{said:?}");
    std::fs::write(&file, lines[0])?;
    ensure!(send(&url)?.status.success(), "answered from the journal");
    std::fs::write(&file, r#"{"assignment_id":"a","job":{"type":"echo"}}"#)?;
    ensure!(send(&url)?.status.code() == Some(2), "an assignment cannot go so");
    std::fs::write(&file, lines[0])?;
    let nobody = send(&format!("http://127.0.0.1:{}", free_port()))?;
    ensure!(nobody.status.code() == Some(1) && !nobody.stderr.is_empty(), "{nobody:?}");
    Ok(())
}

#[tokio::test]
async fn a_worker_that_stands_by_is_not_serving_and_says_when_to_come_again() -> Result<()> {
    let server = NatsServer::start(true).await?;
    let _owner = Worker::start(&server.url(), Settings::default()).await?;
    let port = free_port();
    let mut second = Worker::stopped(&server.url(), calls(Settings::default(), port))?;
    second.launch(&[])?;
    let begun = Instant::now();
    while !second.get("/_readyz").await.is_ok_and(|(_, body)| body.contains("standing by")) {
        ensure!(begun.elapsed() < PATIENCE, "it does not stand by:\n{}", second.log_tail());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure!(health(port, "").await? == ServingStatus::NotServing);
    let mut client = WorkerServiceClient::new(channel(port).await?);
    let refused = submit(&mut client, echo("here")).await.err().context("it is taken")?;
    let wait = tonic_types::StatusExt::get_details_retry_info(&refused).and_then(|info| info.retry_delay);
    ensure!(refused.code() == Code::Unavailable && wait.is_some(), "{refused:?}");
    Ok(())
}
