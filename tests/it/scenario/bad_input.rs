//! What a worker must survive: a table of bad messages over the wire, each with what its sender is owed.
//!
//! Refused: one rejected ack and one complete error result. Quarantined: a dead letter and silence.
//! Done: the bad part is optional and falls back. Survived: the contract leaves the answer open, a crash it does not.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::ledger::Ledger;
use crate::router::{Assignment, Owed};
use crate::worker::Settings;
use crate::world::{PATIENCE, World};

const ASSIGN: &str = "caf.exec.assign.v1";
const INPUT: &[&str] = &["INVALID_INPUT", "MISSING_REQUIRED_FIELD", "INVALID_FORMAT"];
const UNKNOWN: &[&str] = &["UNKNOWN_JOB_TYPE"];
const ANY: &[&str] = crate::router::rules::CODES;

enum Verdict {
    Refused(&'static [&'static str]),
    Quarantined,
    Done,
    Survived,
}
use Verdict::{Done, Quarantined, Refused, Survived};

fn good() -> Assignment {
    Assignment::new("acme", "echo", json!({"n": 1}))
}

/// A good assignment with the value at this path replaced, or left out where `to` is `None`.
fn with(path: &str, to: Option<Value>) -> Assignment {
    let mut assignment = good();
    let (parent, key) = path.rsplit_once('/').expect("a JSON pointer");
    let inside = assignment.json.pointer_mut(parent).and_then(Value::as_object_mut).expect("the path's parent exists");
    match to {
        Some(value) => inside.insert(key.to_owned(), value),
        None => inside.remove(key),
    };
    if path == "/assignment_id" {
        assignment.id = assignment.json["assignment_id"].as_str().unwrap_or("unreadable").to_owned();
    }
    assignment
}

fn block(name: &str, payload: Value) -> Assignment {
    Assignment::new("acme", name, payload)
}

fn table() -> Vec<(&'static str, Assignment, Verdict)> {
    let set = |path: &str, to: Value| with(path, Some(to));
    let long = "x".repeat(257);
    let mut mismatch = good().with_router_headers();
    mismatch.headers.iter_mut().filter(|(name, _)| name == "tenant_id").for_each(|(_, value)| *value = "other".into());
    let nested = |depth: usize| (0..depth).fold(json!(1), |inner, _| json!([inner]));
    let mut rows = vec![
        ("another version", set("/version", json!("2")), Refused(INPUT)),
        ("no version", with("/version", None), Refused(INPUT)),
        ("a numeric version", set("/version", json!(1)), Refused(INPUT)),
        ("no request_id", with("/request_id", None), Refused(INPUT)),
        ("a null request_id", set("/request_id", json!(null)), Refused(INPUT)),
        ("a numeric request_id", set("/request_id", json!(7)), Refused(INPUT)),
        ("no executor", with("/executor", None), Refused(INPUT)),
        ("executor a list", set("/executor", json!([])), Refused(INPUT)),
        ("no provider_id", with("/executor/provider_id", None), Refused(INPUT)),
        ("no job", with("/job", None), Refused(INPUT)),
        ("job a string", set("/job", json!("echo")), Refused(INPUT)),
        ("no job.type", with("/job/type", None), Refused(INPUT)),
        ("job.type a number", set("/job/type", json!(3)), Refused(INPUT)),
        ("neither payload nor payload_ref", with("/job/payload", None), Refused(INPUT)),
        ("payload_ref a number", set("/job/payload_ref", json!(3)), Refused(INPUT)),
        ("an unknown block", set("/job/type", json!("launch.rockets")), Refused(UNKNOWN)),
        ("an empty block name", set("/job/type", json!("")), Refused(ANY)),
        ("payload over the limit", set("/job/payload", json!({"text": "x".repeat(300 << 10)})), Refused(ANY)),
        ("nesting over the limit", set("/job/payload", nested(100)), Refused(ANY)),
        ("a path out of the folder", block("fs.put", json!({"path": "../../out.txt", "content": "x"})), Refused(ANY)),
        ("an absolute path", block("fs.put", json!({"path": "/tmp/out.txt", "content": "x"})), Refused(ANY)),
        ("put without a path", block("fs.put", json!({"content": "x"})), Refused(INPUT)),
        ("put without content", block("fs.put", json!({"path": "x"})), Refused(INPUT)),
        ("put with bad base64", block("fs.put", json!({"path": "x", "bytes": "%%%"})), Refused(INPUT)),
        ("hash by an unknown algorithm", block("crypto.hash", json!({"algorithm": "rot13", "text": "x"})), Refused(INPUT)),
        ("sleep for a word", block("sleep", json!({"ms": "long"})), Refused(INPUT)),
        ("no assignment_id", with("/assignment_id", None), Quarantined),
        ("a numeric assignment_id", set("/assignment_id", json!(7)), Quarantined),
        ("an empty assignment_id", set("/assignment_id", json!("")), Quarantined),
        ("too long an assignment_id", set("/assignment_id", json!(long)), Quarantined),
        ("an assignment_id that is not ASCII", set("/assignment_id", json!("grüße")), Quarantined),
        ("an assignment_id with a line break", set("/assignment_id", json!("a\r\nb")), Quarantined),
        ("no tenant_id", with("/tenant_id", None), Quarantined),
        ("a numeric tenant_id", set("/tenant_id", json!(7)), Quarantined),
        ("a tenant mismatch with the header", mismatch, Quarantined),
        ("junk priority", set("/options/priority", json!("high")), Done),
        ("priority out of range", set("/options/priority", json!(1e300)), Done),
        ("junk deadline", set("/options/deadline_ms", json!({"soon": true})), Done),
        ("a negative deadline", set("/options/deadline_ms", json!(-5)), Done),
        ("junk retry", set("/options/retry", json!("often")), Done),
        ("junk attempts", set("/options/retry/max_attempts", json!([3])), Done),
        ("options a list", set("/options", json!([])), Done),
        ("options a number", set("/options", json!(7)), Done),
        ("null options", set("/options", json!(null)), Done),
        ("null correlation", set("/correlation", json!(null)), Done),
        ("junk metadata", set("/metadata", json!("x")), Done),
        ("a trace id of another form", set("/correlation/trace_id", json!("trace 1")), Done),
        ("a null flow_id", set("/flow_id", json!(null)), Done),
        ("huge numbers", set("/job/payload", json!({"n": [u64::MAX, i64::MIN, 1e308]})), Done),
        ("a run id of a megabyte's tenth", set("/run_id", json!("r".repeat(100_000))), Survived),
        ("a version of a kilobyte", set("/version", json!("9".repeat(1_000))), Refused(INPUT)),
    ];
    for tenant in ["", "a.b", "a b", "*", ">", "a/../b", "ü", "$sys", long.as_str()] {
        rows.push(("a tenant that is no token", set("/tenant_id", json!(tenant)), Quarantined));
    }
    rows
}

#[tokio::test]
async fn bad_messages_get_what_the_contract_owes_them() -> Result<()> {
    let settings = Settings::default().set("ENDSTATION__LIMITS__PAYLOAD_BYTES", "256KiB");
    let mut world = World::jetstream(settings).await?;
    let rows = table();
    for (name, assignment, verdict) in &rows {
        let owed = match verdict {
            Refused(_) | Done => Owed::Answer,
            Quarantined => Owed::Silence,
            Survived => Owed::Either,
        };
        world.router.send_owing(assignment, owed).await.with_context(|| format!("sending {name}"))?;
    }
    let mut wrong = Vec::new();
    for (name, assignment, verdict) in &rows {
        let checked = check(&world, assignment, verdict).await;
        world.router.unbroken()?;
        if let Err(error) = checked {
            wrong.push(format!("{name}: {error:#}"));
        }
    }
    ensure!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    let mut ledger = Ledger::new(world.worker.dir());
    ensure!(ledger.count("acme", "out.txt")? == 0 && !world.worker.dir().join("out.txt").exists(), "a file got out");
    ensure!(world.router.run(&good(), PATIENCE).await?.status() == "success", "a good one afterwards");
    ensure!(world.worker.exited()?.is_none(), "the worker ended");
    world.finish().await?;
    world.router.stream_is_empty().await?;
    Ok(())
}

async fn check(world: &World, assignment: &Assignment, verdict: &Verdict) -> Result<()> {
    let within = Duration::from_secs(5);
    match verdict {
        Refused(codes) => {
            let seen = world.router.result(&assignment.id, within).await?;
            ensure!(seen.status() == "error" && codes.contains(&seen.code()), "{:?}", seen.object);
        }
        Done => {
            let seen = world.router.result(&assignment.id, within).await?;
            ensure!(seen.status() == "success", "{:?}", seen.object);
        }
        Quarantined => {
            world.router.dead_letter(&assignment.body(), within).await?;
        }
        Survived => {}
    }
    Ok(())
}

#[tokio::test]
async fn bytes_that_are_no_assignment_become_dead_letters() -> Result<()> {
    let mut world = World::jetstream(Settings::default()).await?;
    let deep = format!("{{\"version\":\"1\",\"job\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let bodies: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"{".to_vec(),
        b"{\"version\":\"1\",\"assignment_id\":".to_vec(),
        b"null".to_vec(),
        b"[]".to_vec(),
        b"\"assign\"".to_vec(),
        b"{}".to_vec(),
        b"\xff\xfe\x00".to_vec(),
        b"{\"version\":\"1\"}trailing".to_vec(),
        deep.into_bytes(),
        vec![0; 4096],
        b"{\"version\":\"v1\",\"kind\":\"exec_assign\"}".to_vec(),
        b"{\"version\":\"v1\",\"kind\":\"exec_assign\",\"data\":[]}".to_vec(),
    ];
    for body in &bodies {
        world.router.send_raw(ASSIGN, &Vec::new(), body.clone()).await?;
    }
    for body in &bodies {
        world.router.dead_letter(body, PATIENCE).await?;
    }
    ensure!(world.router.ask(|model| model.counts().results) == 0, "something was answered");
    ensure!(world.router.run(&good(), PATIENCE).await?.status() == "success", "a good one afterwards");
    ensure!(world.worker.exited()?.is_none(), "the worker ended");
    world.router.stream_is_empty().await?;
    world.finish().await
}

#[tokio::test]
async fn a_job_with_a_key_twice_is_refused() -> Result<()> {
    let world = World::jetstream(Settings::default()).await?;
    let job = good();
    let text = job.json.to_string().replacen("\"payload\":", "\"payload\":{\"n\":2},\"payload\":", 1);
    world.router.expect(&job, Owed::Answer);
    world.router.send_raw(ASSIGN, &Vec::new(), text.into_bytes()).await?;
    let seen = world.router.result(&job.id, PATIENCE).await?;
    ensure!(seen.code() == "INVALID_FORMAT", "{:?}", seen.object);
    world.finish().await
}

#[tokio::test]
async fn bad_messages_on_core_nats_are_survived_too() -> Result<()> {
    let mut world = World::core(Settings::core()).await?;
    for body in [&b"{"[..], b"", b"[]", b"\xff"] {
        world.router.send_raw(ASSIGN, &Vec::new(), body.to_vec()).await?;
    }
    let unknown = with("/job/type", Some(json!("launch.rockets")));
    let seen = world.router.run(&unknown, PATIENCE).await?;
    ensure!(seen.code() == "UNKNOWN_JOB_TYPE", "{:?}", seen.object);
    ensure!(world.router.run(&good(), PATIENCE).await?.status() == "success", "a good one afterwards");
    ensure!(world.worker.exited()?.is_none(), "the worker ended");
    world.finish().await
}
