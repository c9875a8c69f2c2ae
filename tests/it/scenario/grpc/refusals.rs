//! What is not taken: bad input, conflicts, load, other tenants; and that none of it costs anybody anything.

use tonic::Code;
use tonic_types::StatusExt as _;

use super::*;
use crate::native::Sender;
use proto::v1::step_result::Status as Ended;

#[tokio::test]
async fn bad_input_is_told_with_field_and_rule_kept_as_a_dead_letter_and_may_be_put_right() -> Result<()> {
    let world = World::start(Settings::core()).await?;
    let sender = Sender::connect(&world.server.url()).await?;
    let mut client = world.client().await?;
    let good = || echo("same");
    let of = |change: fn(&mut v1::StepRequest)| {
        let mut step = good();
        change(&mut step);
        step
    };
    let place = |change: fn(&mut v1::BlockContext)| {
        let mut step = good();
        change(step.context.as_mut().expect("a context"));
        step
    };
    let cases = [
        (of(|step| step.context = None), "context.tenant_id", "A-Z"),
        (place(|context| context.tenant_id = "a.b".into()), "context.tenant_id", "A-Z"),
        (place(|context| context.tenant_id = "a\r\nb *>".into()), "context.tenant_id", "A-Z"),
        (place(|context| context.run_id = Some("x".repeat(257))), "context.run_id", "256"),
        (of(|step| step.r#type = String::new()), "type", "block"),
        (of(|step| step.r#type = "no.such".into()), "type", "block"),
        (of(|step| step.assignment_id = Some("a b".into())), "assignment_id", "visible ASCII"),
        (of(|step| step.priority = Some(101)), "priority", "0 to 100"),
        (of(|step| step.timeout_ms = Some(86_400_001)), "timeout_ms", "86400000"),
        (
            of(|step| step.retry = Some(v1::Retry { max_attempts: Some(101), ..Default::default() })),
            "retry.max_attempts",
            "1 to 100",
        ),
        (of(|step| step.effect_ceiling = 9), "effect_ceiling", "effect class"),
        (of(|step| step.version_req = Some("^9".into())), "version_req", "one version"),
        (of(|step| step.payload_ref = Some(v1::PayloadRef::default())), "payload_ref", "blob:PATH"),
        (of(|step| step.inputs = Some(Struct { fields: [("n".into(), number(f64::NAN))].into() })), "inputs.n", "form"),
        (of(|step| step.r#type = "fs.blob_put".into()), "inputs.path", "required"),
        (
            of(|step| {
                (step.r#type, step.inputs) = (
                    "sleep".into(),
                    sleep("x", 0).inputs.map(|mut inputs| {
                        inputs.fields.insert("ms".into(), number(-1.0));
                        inputs
                    }),
                )
            }),
            "inputs.ms",
            "whole number",
        ),
    ];
    let count = cases.len();
    for (step, field, rule) in cases {
        for _ in 0..2 {
            let told = submit(&mut client, step.clone()).await.err().with_context(|| format!("{field} is taken"))?;
            ensure!(told.code() == Code::InvalidArgument, "{field}: {told:?}");
            let violations = told.get_details_bad_request().context("a BadRequest")?.field_violations;
            ensure!(violations.len() == 1 && violations[0].field == field, "{field}: {violations:?}");
            ensure!(violations[0].description.contains(rule), "{field} has no rule {rule}: {violations:?}");
            ensure!(told.get_details_error_info().is_some_and(|info| info.domain == "beamline.worker.v1"), "{told:?}");
        }
    }
    let letters = sender.wait("beamline.worker.dlq.v1.", count).await?;
    ensure!(submit(&mut client, good()).await?.status() == Ended::Ok, "put right, it is taken under the same name");
    tokio::time::sleep(Duration::from_millis(200)).await;
    ensure!(sender.seen("beamline.worker.dlq.v1.").len() == count, "{} of {count} dead letters", letters.len());
    ensure!(world.worker.metric("worker_step_executions_total").await? <= 1.0);
    Ok(())
}

#[tokio::test]
async fn a_message_too_large_is_refused_and_the_worker_goes_on() -> Result<()> {
    let world = World::start(Settings::core().set("ENDSTATION__LIMITS__PAYLOAD_BYTES", "4KiB")).await?;
    let mut client = world.client().await?;
    for (bytes, want) in [(5 << 10, Code::InvalidArgument), (1 << 20, Code::OutOfRange)] {
        let text = Value { kind: Some(Kind::StringValue("x".repeat(bytes))) };
        let inputs = Some(Struct { fields: [("text".to_owned(), text)].into() });
        let told = submit(&mut client, v1::StepRequest { inputs, ..echo("large") }).await.err().context("it is taken")?;
        ensure!(told.code() == want, "{bytes}: {told:?}");
    }
    ensure!(submit(&mut client, echo("large")).await?.status() == Ended::Ok);
    Ok(())
}

#[tokio::test]
async fn the_same_step_with_other_content_is_a_conflict_for_whoever_asks() -> Result<()> {
    let world = World::start(Settings::core()).await?;
    let mut client = world.client().await?;
    let placed = |assignment: &str, value: f64| {
        let place = v1::BlockContext {
            flow_id: Some("f".into()),
            step_id: Some("s".into()),
            attempt: Some(1),
            ..context("acme").unwrap_or_default()
        };
        v1::StepRequest { context: Some(place), ..step("echo", assignment, ("n", value)) }
    };
    let first = submit(&mut client, placed("one", 1.0)).await?;
    ensure!(first.status() == Ended::Ok, "{first:?}");
    for (assignment, who) in [("one", "the same assignment"), ("two", "another")] {
        for _ in 0..2 {
            let told = submit(&mut client, placed(assignment, 2.0)).await.err().with_context(|| format!("{who} ran"))?;
            ensure!(told.code() == Code::AlreadyExists, "{who}: {told:?}");
            ensure!(told.get_details_error_info().is_some_and(|info| info.reason == "KEY_CONFLICT"), "{who}: {told:?}");
        }
    }
    ensure!(submit(&mut client, placed("one", 1.0)).await? == first, "the first one's answer stands");
    let third = submit(&mut client, placed("three", 1.0)).await?;
    ensure!(third.assignment_id.as_deref() == Some("three") && third.outputs == first.outputs, "{third:?}");
    world.metric("worker_step_executions_total", |count| count == 1.0).await
}

#[tokio::test]
async fn over_quota_is_exhausted_with_a_time_to_come_again_and_then_taken() -> Result<()> {
    let settings = Settings::core().set("ENDSTATION__LIMITS__TENANT_RUNNING", "1").set("ENDSTATION__LIMITS__TENANT_QUEUED", "1");
    let world = World::start(settings).await?;
    let mut client = world.client().await?;
    let mut stream = Stream::open(&mut client).await?;
    for id in ["runs", "waits"] {
        stream.send(sleep(id, 1_500)).await?;
        stream.accepted().await?;
    }
    let told = submit(&mut client, echo("third")).await.err().context("a third one is taken")?;
    ensure!(told.code() == Code::ResourceExhausted, "{told:?}");
    let wait = told.get_details_retry_info().and_then(|info| info.retry_delay);
    ensure!(wait.is_some_and(|wait| !wait.is_zero() && wait < PATIENCE), "when to come again: {told:?}");
    ensure!(told.get_details_error_info().is_some_and(|info| info.reason == "QUOTA_EXCEEDED"), "{told:?}");
    stream.send(echo("third")).await?;
    let (number, said) = stream.next().await?;
    let Said::Refused(refused) = said else { anyhow::bail!("{said:?}") };
    ensure!((number, refused.code) == (3, Code::ResourceExhausted as i32), "{refused:?}");
    ensure!(refused.error.as_ref().is_some_and(|error| error.retry_after_ms > Some(0)), "{refused:?}");
    let other = v1::StepRequest { context: context("other"), ..echo("third") };
    ensure!(submit(&mut client, other).await?.status() == Ended::Ok, "another tenant is not held up");
    let begun = Instant::now();
    loop {
        match submit(&mut client, echo("third")).await {
            Ok(result) => break ensure!(result.status() == Ended::Ok, "{result:?}"),
            Err(status) => ensure!(begun.elapsed() < PATIENCE && status.code() == Code::ResourceExhausted, "{status:?}"),
        }
        tokio::time::sleep(wait.unwrap_or_default().min(Duration::from_millis(200))).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_tenant_in_the_metadata_must_agree_and_everything_else_there_does_nothing() -> Result<()> {
    let world = World::start(Settings::core()).await?;
    let sender = Sender::connect(&world.server.url()).await?;
    let mut client = world.client().await?;
    let with = |pairs: &[(&'static str, &str)]| {
        let mut request = ask(echo("one"));
        for (name, value) in pairs {
            request.metadata_mut().append(*name, value.parse().expect("a value"));
        }
        request
    };
    for other in [&[("tenant_id", "other")][..], &[("tenant_id", "acme"), ("tenant_id", "other")]] {
        let told = client.submit(with(other)).await.err().context("two tenants are taken")?;
        ensure!(told.code() == Code::PermissionDenied, "{told:?}");
        ensure!(told.get_details_bad_request().is_some_and(|bad| bad.field_violations[0].field == "tenant_id"), "{told:?}");
    }
    sender.wait("beamline.worker.dlq.v1.", 1).await?;
    let mut cancel = ask(v1::StepCancel { context: context("acme"), assignment_id: Some("one".into()), ..Default::default() });
    cancel.metadata_mut().insert("tenant_id", "other".parse()?);
    ensure!(client.cancel(cancel).await.err().map(|told| told.code()) == Some(Code::PermissionDenied));
    let odd = [
        ("tenant_id", "acme"),
        ("nats-msg-id", "x"),
        ("endstation-attempt", "7"),
        ("endstation-assignment-id", "spoofed"),
        ("content-type-of-mine", "application/json"),
        ("reply", "_INBOX.x"),
    ];
    let result = client.submit(with(&odd)).await?.into_inner();
    ensure!(result.status() == Ended::Ok && result.assignment_id.as_deref() == Some("one"), "{result:?}");
    ensure!(client.submit(with(&[])).await?.into_inner() == result, "it was the same step");
    Ok(())
}

#[tokio::test]
async fn a_cancel_that_names_no_step_says_which_field_is_missing() -> Result<()> {
    let world = World::start(Settings::core()).await?;
    let mut client = world.client().await?;
    for (cancel, field) in [
        (v1::StepCancel::default(), "context.tenant_id"),
        (v1::StepCancel { context: context("a b"), ..Default::default() }, "context.tenant_id"),
        (v1::StepCancel { context: context("acme"), ..Default::default() }, "assignment_id"),
        (
            v1::StepCancel {
                context: context("acme"),
                assignment_id: Some("a".into()),
                reason: Some("x".repeat(1_025)),
                ..Default::default()
            },
            "reason",
        ),
    ] {
        let told = client.cancel(ask(cancel)).await.err().with_context(|| format!("{field} is taken"))?;
        let bad = told.get_details_bad_request().context("a BadRequest")?;
        ensure!(told.code() == Code::InvalidArgument && bad.field_violations[0].field == field, "{field}: {told:?}");
    }
    Ok(())
}
