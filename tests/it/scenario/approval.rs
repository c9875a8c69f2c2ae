//! Steps that wait for people: who is heard, what a dead worker leaves, and what somebody on the worker's machine can do.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use async_nats::jetstream;
use serde_json::{Value, json};

use crate::browser::Browser;
use crate::native::{Form, Sender};
use crate::server::NatsServer;
use crate::worker::{Settings, Worker};
use crate::world::PATIENCE;

const STEPS: &str = "beamline.worker.steps.v1.acme";
const RESULTS: &str = "beamline.worker.results.v1.acme.";
const EVENTS: &str = "beamline.worker.events.acme";
const SIGNALS: &str = "beamline.worker.signals.v1.acme";

fn settings() -> Settings {
    Settings::default()
        .set("ENDSTATION__NATS__ASSIGN_SUBJECTS", "caf.exec.assign.v1,beamline.worker.steps.v1.*")
        .set("ENDSTATION__EVENTS__ENABLED", "true")
}

fn asking(id: &str, inputs: Value) -> bytes::Bytes {
    let mut all = json!({"title": "Ship it?", "approvers": ["ann", "ben"], "quorum": 2, "on_timeout": "reject"});
    for (name, value) in inputs.as_object().into_iter().flatten() {
        all[name] = value.clone();
    }
    json!({"type": "human.approval", "inputs": all, "context": {"tenant_id": "acme"}, "assignment_id": id}).to_string().into()
}

/// What is told to who decides so; asked again while no worker knows the step.
async fn decide(sender: &Sender, id: &str, actor: &str, decision: &str) -> Result<Value> {
    let context = json!({"tenant_id": "acme"});
    let body = json!({"context": context, "assignment_id": id, "name": "approval", "decision": decision, "actor": actor});
    let begun = Instant::now();
    loop {
        if let Ok(reply) = sender.ask(SIGNALS, Form::Json.headers(), body.to_string().into()).await {
            let reply: Value = serde_json::from_slice(&reply.payload)?;
            if reply["disposition"] != "NOT_FOUND" {
                return Ok(reply);
            }
        }
        ensure!(begun.elapsed() < PATIENCE, "nobody knows {id}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until people were asked so often about a step, and gives the last time.
async fn asked(sender: &Sender, id: &str, times: usize) -> Result<Value> {
    let begun = Instant::now();
    loop {
        let told = sender.seen(EVENTS).into_iter().filter_map(|message| serde_json::from_slice::<Value>(&message.payload).ok());
        let mut told: Vec<Value> =
            told.filter(|event| event["data"]["kind"] == "APPROVAL_NEEDED" && event["subject"] == id).collect();
        if told.len() >= times {
            return Ok(told.swap_remove(told.len() - 1)["data"].take());
        }
        ensure!(begun.elapsed() < PATIENCE, "people were asked {} times about {id}, not {times}", told.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn result(sender: &Sender, id: &str) -> Result<Value> {
    let begun = Instant::now();
    loop {
        for message in sender.seen(RESULTS) {
            let result: Value = serde_json::from_slice(&message.payload)?;
            if result["assignment_id"] == id {
                return Ok(result);
            }
        }
        ensure!(begun.elapsed() < PATIENCE, "no result of {id}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until a stream holds nothing any more.
async fn empties(sender: &Sender, stream: &str) -> Result<()> {
    let context = jetstream::new(sender.client.clone());
    let mut stream = context.get_stream(stream).await?;
    let begun = Instant::now();
    while stream.info().await?.state.messages > 0 {
        if begun.elapsed() > PATIENCE {
            bail!("{} messages stay in {}", stream.cached_info().state.messages, stream.cached_info().config.name);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn who(result: &Value) -> Vec<&str> {
    let votes = result["outputs"]["votes"].as_array().into_iter().flatten();
    votes.filter_map(|vote| vote["actor"].as_str()).collect()
}

#[tokio::test]
async fn people_decide_and_a_kill_loses_no_word_of_theirs() -> Result<()> {
    let server = NatsServer::start(true).await?;
    let sender = Sender::connect(&server.url()).await?;
    let mut worker = Worker::start(&server.url(), settings()).await?;
    sender.store(STEPS, Form::Json.headers(), asking("ship", json!({"details": {"amount": 7}}))).await?;
    let event = asked(&sender, "ship", 1).await?;
    let approval = &event["approval"];
    ensure!(approval["title"] == "Ship it?" && approval["details"]["amount"] == 7 && approval["why"] == "first", "{event}");
    ensure!(approval["approvers"] == json!(["ann", "ben"]) && approval["answer_on"] == SIGNALS, "{event}");
    empties(&sender, "BEAMLINE_STEPS").await.context("no server need hold a step that waits and has its copy")?;

    let stranger = decide(&sender, "ship", "eve", "APPROVED").await?;
    ensure!(stranger["error"]["code"] == "PERMISSION_DENIED", "{stranger}");
    ensure!(decide(&sender, "ship", "ann", "APPROVED").await? == json!({"disposition": "NOTED"}));
    worker.kill();
    worker.restart().await?;
    asked(&sender, "ship", 2).await.context("people are asked again after a restart")?;
    let again = decide(&sender, "ship", "ann", "REJECTED").await?;
    ensure!(again == json!({"disposition": "DUPLICATE", "decision": "APPROVED", "actor": "ann"}), "{again}");
    ensure!(decide(&sender, "ship", "ben", "APPROVED").await? == json!({"disposition": "NOTED"}));
    let result = result(&sender, "ship").await?;
    ensure!(result["status"] == "OK" && who(&result) == ["ann", "ben"], "{result}");
    let late = decide(&sender, "ship", "ben", "REJECTED").await?;
    ensure!(late["disposition"] == "ALREADY_ENDED" && late["decision"] == "APPROVED", "{late}");
    ensure!(late["decided"]["votes"].as_array().is_some_and(|votes| votes.len() == 2), "{late}");
    empties(&sender, "KV_endstation_waiting").await
}

#[tokio::test]
async fn another_worker_goes_on_where_one_stood_that_died_with_its_disk() -> Result<()> {
    let server = NatsServer::start(true).await?;
    let sender = Sender::connect(&server.url()).await?;
    let first = Worker::start(&server.url(), settings()).await?;
    let mut second = Worker::stopped(&server.url(), settings())?;
    second.launch(&[])?;
    for id in ["one", "two", "three"] {
        sender.store(STEPS, Form::Json.headers(), asking(id, json!({"deadline_ms": 60_000}))).await?;
        asked(&sender, id, 1).await?;
    }
    ensure!(decide(&sender, "one", "ann", "APPROVED").await? == json!({"disposition": "NOTED"}));
    empties(&sender, "BEAMLINE_STEPS").await?;
    // With all that it kept.
    drop(first);
    second.ready().await?;
    let begun = Instant::now();
    let again = decide(&sender, "one", "ann", "APPROVED").await?;
    println!("the next owner knew the step {:?} after it was ready", begun.elapsed());
    ensure!(again == json!({"disposition": "DUPLICATE", "decision": "APPROVED", "actor": "ann"}), "{again}");
    ensure!(decide(&sender, "one", "ben", "APPROVED").await? == json!({"disposition": "NOTED"}));
    let result_of_one = result(&sender, "one").await?;
    ensure!(result_of_one["status"] == "OK" && who(&result_of_one) == ["ann", "ben"], "{result_of_one}");
    ensure!(decide(&sender, "two", "ben", "REJECTED").await? == json!({"disposition": "NOTED"}));
    let rejected = result(&sender, "two").await?;
    ensure!(rejected["status"] == "ERROR" && rejected["error"]["code"] == "REJECTED", "{rejected}");
    ensure!(second.metric("endstation_waiting_for_people").await? == 1.0, "one goes on waiting");
    ensure!(sender.seen("beamline.worker.dlq.").is_empty(), "to be rejected is no failure");
    let results = sender.seen(RESULTS).len();
    ensure!(results == 2, "{results} results of two steps");
    Ok(())
}

#[tokio::test]
async fn who_is_on_the_worker_s_machine_sees_what_waits_and_decides() -> Result<()> {
    let server = NatsServer::start(false).await?;
    let sender = Sender::connect(&server.url()).await?;
    let core = Settings::core()
        .set("ENDSTATION__NATS__ASSIGN_SUBJECTS", "caf.exec.assign.v1,beamline.worker.steps.v1.*")
        .set("ENDSTATION__EVENTS__ENABLED", "true");
    let worker = Worker::start(&server.url(), core).await?;
    let storage = worker.storage().display().to_string();
    let approval = |args: &[&str]| -> Result<(Option<i32>, Value, String)> {
        let mut all = vec!["approval"];
        all.extend_from_slice(args);
        all.extend_from_slice(&["--data", &storage]);
        let output = worker.command(&all).output()?;
        let out = String::from_utf8(output.stdout)?;
        let line = out.lines().next().map_or(Ok(Value::Null), serde_json::from_str)?;
        Ok((output.status.code(), line, String::from_utf8(output.stderr)?))
    };
    ensure!(approval(&["ls"])? == (Some(0), Value::Null, String::new()), "nothing waits yet");
    sender.client.publish_with_headers(STEPS, Form::Json.headers(), asking("here", json!({"quorum": 1}))).await?;
    asked(&sender, "here", 1).await?;
    let (code, row, _) = approval(&["ls", "--tenant", "acme"])?;
    let key = row["key"].as_str().context("a key")?.to_owned();
    ensure!(code == Some(0) && row["title"] == "Ship it?" && row["assignment_id"] == "here", "{row}");
    ensure!(approval(&["ls", "--tenant", "other"])?.1 == Value::Null);
    let (code, _, err) = approval(&["show", "zzzz"])?;
    ensure!(code == Some(1) && err.contains("nothing waits for people under a key that begins with zzzz"), "{err}");
    let (code, reply, _) = approval(&["approve", &key, "--as", "eve"])?;
    ensure!(code == Some(1) && reply["error"]["code"] == "PERMISSION_DENIED", "{reply}");
    let (code, reply, _) = approval(&["reject", &key[..8], "--as", "ben", "--comment", "not yet"])?;
    ensure!(code == Some(0) && reply == json!({"disposition": "NOTED"}), "{reply}");
    let result = result(&sender, "here").await?;
    ensure!(result["error"]["details"]["votes"][0]["comment"] == "not yet", "{result}");
    let output = worker.command(&["step", "show", &key, "--data", &storage]).output()?;
    let shown = String::from_utf8(output.stdout)?;
    ensure!(shown.lines().any(|line| line.contains("\"kind\":\"signal\"") && line.contains("\"actor\":\"ben\"")), "{shown}");
    Ok(())
}

#[tokio::test]
async fn a_person_decides_on_the_page_that_a_link_leads_to() -> Result<()> {
    let server = NatsServer::start(false).await?;
    let sender = Sender::connect(&server.url()).await?;
    let core = Settings::core()
        .set("ENDSTATION__NATS__ASSIGN_SUBJECTS", "caf.exec.assign.v1,beamline.worker.steps.v1.*")
        .set("ENDSTATION__EVENTS__ENABLED", "true");
    let dark = Worker::start(&server.url(), core.clone()).await?;
    let step =
        asking("page", json!({"title": "Ship <b>order</b> 17?", "text": "Above the usual amount.", "details": {"amount": 1200}}));
    sender.client.publish_with_headers(STEPS, Form::Json.headers(), step.clone()).await?;
    asked(&sender, "page", 1).await?;
    let link = |worker: &Worker, actor: &str, holds: &str| -> Result<(String, String)> {
        let storage = worker.storage().display().to_string();
        let shown = worker.command(&["approval", "ls", "--data", &storage]).output()?;
        let row: Value = serde_json::from_slice(&shown.stdout)?;
        let key = row["key"].as_str().context("a key")?;
        let output = worker.command(&["approval", "link", key, "--as", actor, "--for", holds, "--data", &storage]).output()?;
        Ok((String::from_utf8(output.stdout)?.trim().to_owned(), String::from_utf8(output.stderr)?))
    };
    let (_, refused) = link(&dark, "ann", "1h")?;
    ensure!(refused.contains("ops.approvals is false"), "{refused}");
    ensure!(dark.get("/approvals/x").await?.0 == 404);
    drop(dark);

    let worker = Worker::start(&server.url(), core.set("ENDSTATION__OPS__APPROVALS", "true")).await?;
    sender.client.publish_with_headers(STEPS, Form::Json.headers(), step).await?;
    asked(&sender, "page", 2).await?;
    let (_, refused) = link(&worker, "ann", "91d")?;
    ensure!(refused.contains("for: at most 90 days"), "{refused}");
    let browser = Browser::start().await?;
    let (ann, _) = link(&worker, "ann", "1h")?;
    browser.open(&ann).await?;
    ensure!(browser.text("h1").await? == "Ship <b>order</b> 17?", "what somebody wrote is shown as it was written");
    let shown = browser.text("main").await?;
    for part in ["Above the usual amount.", "\"amount\": 1200", "ann, ben", "0 of 2", "it counts as rejected"] {
        ensure!(shown.contains(part), "{part} is not on the page:\n{shown}");
    }
    ensure!(browser.count("script").await? == 0 && browser.count("b").await? == 0, "nothing on it runs");
    if let Some(file) = std::env::var_os("ENDSTATION_IT_PICTURE") {
        std::fs::write(file, browser.picture().await?)?;
    }
    browser.write("textarea", "fine & good").await?;
    browser.click("button.yes").await?;
    browser.shows("h1", "Noted").await?;
    browser.open(&ann).await?;
    browser.shows("main", "You approved this before").await?;
    let (stranger, _) = link(&worker, "eve", "1h")?;
    browser.open(&stranger).await?;
    browser.click("button.yes").await?;
    browser.shows("main", "does not ask this person").await?;
    let bent = format!("{}A", &ann[..ann.len() - 1]);
    browser.open(&bent).await?;
    browser.shows("h1", "No such link").await?;
    let (late, _) = link(&worker, "ben", "1ms")?;
    tokio::time::sleep(Duration::from_millis(20)).await;
    browser.open(&late).await?;
    browser.shows("h1", "The link is too old").await?;
    let (ben, _) = link(&worker, "ben", "1h")?;
    browser.open(&ben).await?;
    browser.click("button.no").await?;
    browser.shows("h1", "Noted").await?;
    let result = result(&sender, "page").await?;
    ensure!(result["error"]["code"] == "REJECTED", "{result}");
    let votes = &result["error"]["details"]["votes"];
    ensure!(votes[0]["comment"] == "fine & good" && votes[1]["actor"] == "ben", "{result}");
    browser.open(&ben).await?;
    browser.shows("h1", "Nothing is asked any more").await?;
    Ok(())
}
