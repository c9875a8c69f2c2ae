//! Dead letters of calls where there is no NATS server: the worker keeps them itself, shows them, and sends them once it can.

use async_nats::jetstream::{self, stream};
use serde_json::Value as Json;
use tonic::Code;

use super::super::journal::endstation;
use super::*;

/// A step that is refused for its input, and so leaves a dead letter; asked again while the worker has only just started.
async fn refused(client: &mut Client, assignment: &str) -> Result<()> {
    let begun = Instant::now();
    let told = loop {
        let told = submit(client, step("fs.blob_get", assignment, ("n", 1.0))).await;
        if told.as_ref().err().map(Status::code) != Some(Code::Unavailable) || begun.elapsed() > PATIENCE {
            break told;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    ensure!(told.as_ref().err().map(Status::code) == Some(Code::InvalidArgument), "{told:?}");
    Ok(())
}

/// What `dlq …` prints without asking a server.
async fn dlq(worker: &Worker, args: &[&str]) -> Result<Vec<Json>> {
    let output = endstation(&[&["dlq"], args, &["--offline"]].concat(), &worker.storage()).await?;
    ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::Deserializer::from_slice(&output.stdout).into_iter().collect::<Result<_, _>>()?)
}

#[tokio::test]
async fn where_no_server_ever_was_a_calls_dead_letter_is_in_the_worker_s_own_store_once() -> Result<()> {
    let port = free_port();
    let nowhere = format!("nats://127.0.0.1:{}", free_port());
    // No server could be asked for the deployment's.
    let settings = Settings::core().set("ENDSTATION__WORKER__KEY_SALT", "a salt of these tests, long enough");
    let mut worker = Worker::stopped(&nowhere, calls(settings, port))?;
    for life in 1..=2 {
        worker.launch(&[])?;
        refused(&mut client(port).await?, "bad").await?;
        worker.metric_becomes("endstation_dlq_waiting", |waiting| waiting == 1.0).await?;
        worker.metric_becomes("endstation_unpublished", |waiting| waiting == 0.0).await.context("it counts as told")?;
        let rows = dlq(&worker, &["ls"]).await?;
        ensure!(rows.len() == 1 && rows[0]["found_in"] == "store" && rows[0]["tenant"] == "acme", "life {life}: {rows:?}");
        let shown = dlq(&worker, &["show", rows[0]["id"].as_str().context("an id")?]).await?;
        let letter = &shown[0]["letter"];
        ensure!(letter["error_code"] == "MISSING_REQUIRED_FIELD" && letter["message_base64"].is_string(), "{letter}");
        worker.kill();
    }
    Ok(())
}

#[tokio::test]
async fn a_calls_dead_letter_of_a_time_without_a_server_is_sent_by_a_later_life_once() -> Result<()> {
    let mut server = NatsServer::start(true).await?;
    let port = free_port();
    let mut worker = Worker::start(&server.url(), calls(Settings::default(), port)).await?;
    let mut client = client(port).await?;
    server.kill();
    let begun = Instant::now();
    while worker.get("/_readyz").await?.0 == 200 {
        ensure!(begun.elapsed() < PATIENCE, "the server is gone, and nothing shows it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    refused(&mut client, "bad").await?;
    worker.metric_becomes("endstation_dlq_waiting", |waiting| waiting == 1.0).await?;
    let rows = dlq(&worker, &["ls"]).await?;
    ensure!(rows.len() == 1, "{rows:?}");
    worker.kill();
    server.restart().await?;
    let context = jetstream::new(async_nats::connect(server.url()).await?);
    let letters =
        stream::Config { name: "DLQ".into(), subjects: vec!["beamline.worker.dlq.v1.*".into()], ..stream::Config::default() };
    context.create_stream(letters).await?;
    worker.restart().await?;
    worker.metric_becomes("endstation_dlq_waiting", |waiting| waiting == 0.0).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut stream = context.get_stream("DLQ").await?;
    ensure!(stream.info().await?.state.messages == 1, "once");
    let sent = stream.get_raw_message(1).await?;
    let id = sent.headers.get("Nats-Msg-Id").context("a message id")?;
    ensure!(rows[0]["id"] == id.as_str() && &*sent.subject == "beamline.worker.dlq.v1.acme", "{sent:?}");
    Ok(())
}
