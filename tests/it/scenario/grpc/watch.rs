//! Watching: one tenant's events, in order, and nothing of anybody else's.

use proto::v1::lifecycle_event::Kind as Stage;
use tonic::Code;

use super::*;

async fn watch(client: &mut Client, wanted: v1::WatchRequest) -> Result<Streaming<v1::LifecycleEvent>, Status> {
    Ok(client.watch(ask(wanted)).await?.into_inner())
}

fn of(tenant: &str) -> v1::WatchRequest {
    v1::WatchRequest { tenant_id: tenant.into(), ..Default::default() }
}

#[tokio::test]
async fn a_watch_sees_its_tenants_steps_from_acceptance_to_end_and_no_others() -> Result<()> {
    let mut world = World::start(with_events()).await?;
    let mut client = world.client().await?;
    let mut acme = watch(&mut client, of("acme")).await?;
    let ends = v1::WatchRequest { kinds: vec![Stage::Failed as i32, Stage::Canceled as i32], ..of("acme") };
    let mut ends = watch(&mut client, ends).await?;
    let mut other = watch(&mut client, of("other")).await?;
    for (tenant, id) in [("acme", "one"), ("other", "two"), ("acme", "three")] {
        let step = v1::StepRequest { context: context(tenant), ..echo(id) };
        submit(&mut client, step).await?;
    }
    // Events without a NATS server, too.
    world.server.kill();
    submit(&mut client, echo("four")).await?;
    for id in ["one", "three", "four"] {
        for (sequence, stage) in [Stage::Accepted, Stage::Started, Stage::Completed].into_iter().enumerate() {
            let event = acme.message().await?.context("the watch ended")?;
            ensure!((event.kind(), event.assignment_id.as_deref()) == (stage, Some(id)), "{event:?}");
            ensure!(event.sequence == sequence as u32 && event.r#type == "echo" && event.at.is_some(), "{event:?}");
            ensure!(event.context.as_ref().is_some_and(|context| context.tenant_id == "acme"), "{event:?}");
            ensure!(event.worker_id == world.worker.id() && !event.event_id.is_empty(), "{event:?}");
            let ended = event.result.as_ref().map(v1::StepResult::status);
            ensure!(ended == (stage == Stage::Completed).then_some(v1::step_result::Status::Ok), "{event:?}");
        }
    }
    let mut stream = Stream::open(&mut client).await?;
    stream.send(sleep("long", 60_000)).await?;
    stream.accepted().await?;
    client
        .cancel(ask(v1::StepCancel { context: context("acme"), assignment_id: Some("long".into()), ..Default::default() }))
        .await?;
    let event = ends.message().await?.context("the watch ended")?;
    ensure!((event.kind(), event.assignment_id.as_deref()) == (Stage::Canceled, Some("long")), "{event:?}");
    for stage in [Stage::Accepted, Stage::Started, Stage::Completed] {
        let event = other.message().await?.context("the watch ended")?;
        ensure!((event.kind(), event.assignment_id.as_deref()) == (stage, Some("two")), "{event:?}");
    }
    let more = tokio::time::timeout(Duration::from_millis(300), other.message()).await;
    ensure!(more.is_err(), "another tenant's event: {more:?}");
    Ok(())
}

#[tokio::test]
async fn a_watch_that_makes_no_sense_is_refused() -> Result<()> {
    let world = World::start(with_events()).await?;
    let mut client = world.client().await?;
    let told = watch(&mut client, of("")).await.err().context("a watch of nobody")?;
    ensure!(told.code() == Code::InvalidArgument, "{told:?}");
    let mut request = ask(of("acme"));
    request.metadata_mut().insert("tenant_id", "other".parse()?);
    let told = client.watch(request).await.err().context("a watch of two tenants")?;
    ensure!(told.code() == Code::PermissionDenied, "{told:?}");
    let silent = World::start(Settings::core()).await?;
    let told = watch(&mut silent.client().await?, of("acme")).await.err().context("a watch without events")?;
    ensure!(told.code() == Code::FailedPrecondition, "{told:?}");
    Ok(())
}

#[tokio::test]
async fn a_watch_ends_with_an_error_when_the_worker_does() -> Result<()> {
    let world = World::start(with_events()).await?;
    let mut watch = watch(&mut world.client().await?, of("acme")).await?;
    world.worker.terminate()?;
    let told = watch.message().await.err().context("it ends as if all were well")?;
    ensure!(told.code() == Code::Unavailable, "{told:?}");
    Ok(())
}
