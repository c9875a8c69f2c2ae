//! Dry runs: what each step would do, said instead of done; that nothing is opened for it; and plans that hold a real step to them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Resource, Rlimit};
use serde_json::{Value, json};

use super::cli::{Place, exits, objects, step};

fn of<'a>(results: &'a [Value], name: &str) -> Result<&'a Value> {
    let named = |one: &&Value| one["context"]["step_id"] == name || one["step_id"] == name;
    results.iter().find(named).with_context(|| format!("nothing of {name}: {results:?}"))
}

/// A place that answers every request with a greeting, and counts who came.
fn answering() -> Result<(u16, Arc<AtomicU32>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (port, came) = (listener.local_addr()?.port(), Arc::<AtomicU32>::default());
    let counted = came.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            counted.fetch_add(1, SeqCst);
            let mut head = [0; 4_096];
            _ = stream.read(&mut head);
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi");
        }
    });
    Ok((port, came))
}

#[test]
fn lines_say_what_they_would_do_and_may_be_run_afterwards() -> Result<()> {
    let (place, (port, came)) = (Place::new()?, answering()?);
    let url = format!("http://127.0.0.1:{port}/x");
    let steps = [
        step("put", "fs.blob_put", json!({ "path": "x.txt", "content": "x" })),
        step("post", "http.request", json!({ "url": url, "json": { "a": 1 } })),
        step("wrong", "fs.blob_put", json!({ "path": "../x" , "content": "x" })),
    ];
    let assignment = json!({
        "version": "1", "assignment_id": "a-1", "request_id": "r", "tenant_id": "acme", "executor": { "provider_id": "p" },
        "job": { "type": "fs_blob_put", "payload": { "path": "y.txt", "content": "y" } },
    });
    place.file("steps", &[&steps[..], &[assignment]].concat())?;
    let output = place.run(&["run", "steps", "--dry-run"])?;
    exits(&output, 1)?;
    let told = objects(&output)?;
    ensure!(told.len() == 4, "{told:?}");
    let put = of(&told, "put")?;
    ensure!(put["status"] == "OK" && put["context"]["sandbox"] == true, "{put}");
    ensure!(put["outputs"]["plan"]["does"]["put"]["precondition"] == "no other content stands there", "{put}");
    ensure!(put["outputs"]["plan_digest"].as_str().map(str::len) == Some(64), "{put}");
    ensure!(of(&told, "post")?["outputs"]["plan"]["does"]["to"]["address"] == "127.0.0.1", "{told:?}");
    ensure!(of(&told, "wrong")?["error"]["details"]["rule"] == "no component . or ..", "{told:?}");
    let old = told.iter().find(|one| one["assignment_id"] == "a-1").context("the assignment's")?;
    ensure!(old["effect"] == "none" && old["outputs"]["plan"]["effect"] == "idempotent", "{old}");
    ensure!(came.load(SeqCst) == 0 && !place.path().join("endstation-data").exists(), "nothing happened, and nothing is left");

    let output = place.run(&["run", "steps"])?;
    exits(&output, 1)?;
    let done = objects(&output)?;
    ensure!(of(&done, "put")?["status"] == "OK" && of(&done, "post")?["outputs"]["text"] == "hi", "{done:?}");
    ensure!(came.load(SeqCst) == 1, "the same steps, really");
    Ok(())
}

#[test]
fn a_dry_step_never_answers_for_the_real_one() -> Result<()> {
    let place = Place::new()?;
    let put = step("put", "fs.blob_put", json!({ "path": "x.txt", "content": "x" }));
    let mut dry = put.clone();
    dry["context"]["sandbox"] = json!(true);
    let mut next = put.clone();
    next["context"]["attempt"] = json!(2);
    place.file("dry", &[dry])?;
    place.file("real", &[put])?;
    place.file("next", &[next])?;
    exits(&place.run(&["run", "dry"])?, 0)?;
    let output = place.run(&["run", "real"])?;
    exits(&output, 1)?;
    ensure!(of(&objects(&output)?, "put")?["error"]["code"] == "KEY_CONFLICT", "{output:?}");
    let again = objects(&place.run(&["run", "dry"])?)?;
    ensure!(of(&again, "put")?["replayed"] == true && of(&again, "put")?["outputs"]["plan"].is_object(), "{again:?}");
    let output = place.run(&["run", "next"])?;
    exits(&output, 0)?;
    ensure!(of(&objects(&output)?, "put")?["outputs"]["created"] == true, "another attempt is another step: {output:?}");
    Ok(())
}

#[test]
fn a_flow_is_told_step_by_step_with_outputs_that_nobody_computed() -> Result<()> {
    let place = Place::new()?;
    let flow = json!({
        "id": "f", "version": 1,
        "steps": [
            { "id": "get", "type": "http.request", "inputs": { "url": "https://api.example.com/user" } },
            { "id": "keep", "type": "fs.blob_put", "inputs": { "path": "users/${steps.get.outputs.json.name}", "content": "x" } },
            { "id": "hash", "type": "crypto.hash", "inputs": { "path": "${steps.keep.outputs.path}" } },
            { "id": "odd", "type": "no.such" },
            { "id": "after", "type": "echo", "inputs": { "odd": "${steps.odd.outputs.x}" } },
        ],
        "edges": [{ "from": "get", "to": "keep" }, { "from": "keep", "to": "hash" }, { "from": "odd", "to": "after" }],
    });
    std::fs::write(place.path().join("flow.json"), serde_json::to_string_pretty(&flow)?)?;
    let told = |args: &[&str], code: i32| -> Result<Vec<Value>> {
        let output = place.run(&[&["run", "--dry-run", "flow.json"], args].concat())?;
        exits(&output, code)?;
        objects(&output)
    };
    let bare = told(&[], 1)?;
    ensure!(bare.len() == 6 && bare[5]["dry_run"] == true && bare[5]["status"] == "FAILED", "{bare:?}");
    let get = of(&bare, "get")?;
    ensure!(get["success"] == true && get["latency_ms"].is_number() && get.get("error").is_none(), "{get}");
    ensure!(get["plan"]["does"]["request"]["url"] == "https://api.example.com/user" && get["outputs_from"] == "plan", "{get}");
    let error = |told: &[Value], name: &str| -> Result<String> {
        let one = of(told, name)?;
        ensure!(one["success"] == false && one["latency_ms"].is_number() && one.get("plan").is_none(), "{one}");
        Ok(one["error"].as_str().context("a text")?.to_owned())
    };
    ensure!(error(&bare, "odd")? == "unknown block type: no.such", "{bare:?}");
    ensure!(error(&bare, "after")?.starts_with("not looked at: step odd did not go well"), "{bare:?}");
    ensure!(error(&bare, "keep")?.contains("${steps.get.outputs.json.name} stands for nothing"), "{bare:?}");

    std::fs::write(place.path().join("fixtures"), r#"{"get":{"status":200,"json":{"name":"ada"}},"odd":{"x":1.50}}"#)?;
    let made = told(&["--fixtures", "fixtures"], 1)?;
    ensure!(of(&made, "keep")?["plan"]["does"]["put"]["path"] == "users/ada", "{made:?}");
    ensure!(of(&made, "hash")?["plan"]["does"]["read"]["path"] == "users/ada", "what it would be called goes on: {made:?}");
    ensure!(of(&made, "get")?["outputs_from"] == "fixture" && of(&made, "get")?["outputs"]["json"]["name"] == "ada", "{made:?}");
    ensure!(of(&made, "after")?["outputs"] == json!({ "odd": 1.5 }), "{made:?}");
    ensure!(told(&["--fixtures", "fixtures"], 1)?[0]["plan_digest"].is_string(), "a digest");
    let same = |one: &[Value], other: &[Value], name: &str| -> Result<bool> {
        Ok(of(one, name)?["plan_digest"] == of(other, name)?["plan_digest"])
    };
    ensure!(same(&bare, &made, "get")?, "the same plan, whatever its outputs are said to be");
    std::fs::write(place.path().join("wrong"), r#"{"nobody":{}}"#)?;
    let output = place.run(&["run", "--dry-run", "flow.json", "--fixtures", "wrong"])?;
    exits(&output, 2)?;
    ensure!(String::from_utf8_lossy(&output.stderr).contains("/nobody: the flow has no such step"), "{output:?}");
    ensure!(!place.path().join("endstation-data").exists(), "nothing is left");
    Ok(())
}

#[test]
fn a_required_plan_holds_until_anything_is_changed() -> Result<()> {
    let (place, (one, came_to_one), (other, came_to_other)) = (Place::new()?, answering()?, answering()?);
    let at = |port: u16| format!("connectors.crm.url=http://127.0.0.1:{port}/api");
    let post = |attempt: u32, plan: Option<&Value>, path: &str| {
        let mut post = step("post", "http.request", json!({ "connector": "crm", "path": path, "json": { "n": 1 } }));
        post["context"]["attempt"] = json!(attempt);
        if let Some(plan) = plan {
            post["require_plan"] = plan.clone();
        }
        post
    };
    let run = |name: &str, line: Value, port: u16, more: &[&str]| -> Result<Value> {
        place.file(name, &[line])?;
        let (url, tenants) = (at(port), "connectors.crm.tenants=acme");
        let output = place.run(&[&["run", name, "--set", &url, "--set", tenants], more].concat())?;
        Ok(of(&objects(&output)?, "post")?.clone())
    };
    let told = run("dry", post(1, None, "/a"), one, &["--dry-run"])?;
    let digest = &told["outputs"]["plan_digest"];
    ensure!(digest.is_string() && came_to_one.load(SeqCst) == 0, "{told}");

    let done = run("real", post(1, Some(digest), "/a"), one, &[])?;
    ensure!(done["status"] == "OK" && came_to_one.load(SeqCst) == 1, "as planned: {done}");
    for (name, attempt, path, port) in [("moved", 2, "/a", other), ("changed", 3, "/b", one)] {
        let refused = run(name, post(attempt, Some(digest), path), port, &[])?;
        let error = &refused["error"];
        ensure!(error["code"] == "PERMISSION_DENIED" && error["effect"] == "NONE", "{name}: {refused}");
        ensure!(error["details"]["field"] == "/require_plan" && error["details"]["required"] == *digest, "{name}: {refused}");
        let now = run("now", post(attempt, None, path), port, &["--dry-run"])?;
        ensure!(
            error["details"]["plan_digest"] == now["outputs"]["plan_digest"] && now["outputs"]["plan_digest"] != *digest,
            "{name}: {refused}"
        );
    }
    ensure!(came_to_one.load(SeqCst) == 1 && came_to_other.load(SeqCst) == 0, "nobody was reached");
    Ok(())
}

#[test]
fn a_step_that_was_accepted_as_planned_is_not_begun_again_once_the_plan_is_another() -> Result<()> {
    let (place, (other, came_to_other)) = (Place::new()?, answering()?);
    // Takes a request and never answers it.
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let at = |port: u16| format!("connectors.crm.url=http://127.0.0.1:{port}/api");
    let (one, tenants) = (at(silent.local_addr()?.port()), "connectors.crm.tenants=acme");
    let mut get = step("get", "http.request", json!({ "connector": "crm", "path": "/a" }));
    place.file("dry", &[get.clone()])?;
    let told = objects(&place.run(&["run", "dry", "--dry-run", "--set", &one, "--set", tenants])?)?;
    get["require_plan"] = of(&told, "get")?["outputs"]["plan_digest"].clone();
    place.file("real", &[get])?;
    let mut child = place.command(&["run", "real", "--set", &one, "--set", tenants]).stdout(Stdio::null()).spawn()?;
    let (mut held, _) = silent.accept()?;
    ensure!(held.read(&mut [0; 16])? > 0, "it was asked, so it was accepted");
    child.kill()?;
    child.wait()?;
    let output = place.run(&["run", "real", "--set", &at(other), "--set", tenants])?;
    exits(&output, 1)?;
    let refused = objects(&output)?;
    let error = &of(&refused, "get")?["error"];
    ensure!(error["code"] == "PERMISSION_DENIED" && error["details"]["field"] == "/require_plan", "{refused:?}");
    ensure!(came_to_other.load(SeqCst) == 0, "the other place was not asked");
    Ok(())
}

/// A worker that is fed line by line.
struct Fed {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Fed {
    fn start(place: &Place, args: &[&str]) -> Result<Fed> {
        let mut child = place.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (input, output) = (child.stdin.take().context("its input")?, child.stdout.take().context("its output")?);
        Ok(Fed { child, input, output: BufReader::new(output) })
    }

    fn ask(&mut self, line: &Value) -> Result<Value> {
        writeln!(self.input, "{line}")?;
        let mut answer = String::new();
        self.output.read_line(&mut answer)?;
        serde_json::from_str(&answer).with_context(|| format!("{line}: {answer:?}"))
    }
}

impl Drop for Fed {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _status = self.child.wait();
    }
}

#[test]
fn a_worker_that_may_open_nothing_makes_every_plan_and_no_step_that_needs_to() -> Result<()> {
    let place = Place::new()?;
    let (port, came) = answering()?;
    let (url, models) = (format!("http://127.0.0.1:{port}/"), format!("connectors.llm.url=http://127.0.0.1:{port}/v1"));
    std::fs::write(place.path().join("secret"), "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")?;
    let secret = format!("keys.demo.secret=secret://file{}", place.path().join("secret").display());
    let set = [
        &models[..],
        "connectors.llm.tenants=acme",
        "connectors.llm.provider=openai",
        "connectors.llm.models=m",
        "keys.demo.tenants=acme",
        "keys.demo.algorithm=ed25519",
        &secret,
    ];
    let args: Vec<&str> = ["run", "-"].into_iter().chain(set.iter().flat_map(|pair| ["--set", pair])).collect();
    let mut worker = Fed::start(&place, &args)?;
    // What the steps below read is there: without the limit they would go well.
    let image = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
    for (name, inputs) in
        [("x.txt", json!({ "path": "x.txt", "content": "x" })), ("x.png", json!({ "path": "x.png", "bytes": image }))]
    {
        ensure!(worker.ask(&step(name, "fs.blob_put", inputs))?["status"] == "OK", "{name}");
    }
    ensure!(worker.ask(&step("sign", "crypto.sign", json!({ "key": "demo", "text": "abc" })))?["status"] == "OK", "the key");
    ensure!(worker.ask(&step("render", "media.render", json!({ "path": "x.png" })))?["status"] == "OK", "the image");
    // From here on the kernel gives it no descriptor: no file, no socket, whatever way it asks.
    let pid = Pid::from_raw(worker.child.id().try_into()?).context("a pid is not 0")?;
    let before = rustix::process::prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(0), maximum: Some(0) })?;
    let steps = [
        ("echo", json!({ "n": 1 }), false),
        ("sleep", json!({ "ms": 1 }), false),
        ("crypto.hash", json!({ "path": "x.txt" }), true),
        ("crypto.sign", json!({ "key": "demo", "text": "abc" }), true),
        ("crypto.verify", json!({ "key": "demo", "text": "abc", "signature": "AAAA" }), true),
        ("fs.blob_put", json!({ "path": "y.txt", "content": "y" }), true),
        ("fs.blob_get", json!({ "path": "x.txt" }), true),
        ("http.request", json!({ "url": url }), true),
        ("ai.generate", json!({ "prompt": "Why?" }), true),
        ("media.render", json!({ "path": "x.png" }), true),
    ];
    for (block, inputs, _) in &steps {
        let mut line = step(&format!("dry-{block}"), block, inputs.clone());
        line["context"]["sandbox"] = json!(true);
        let told = worker.ask(&line)?;
        ensure!(told["status"] == "OK" && told["outputs"]["plan"].is_object(), "{block}: {told}");
    }
    // The same steps for real: those that need one are not given it, so it would have been seen.
    for (block, inputs, opens) in &steps {
        let mut line = step(&format!("real-{block}"), block, inputs.clone());
        line["retry"] = json!({ "max_attempts": 1 });
        let told = worker.ask(&line)?;
        ensure!((told["status"] != "OK") == *opens, "{block}: {told}");
    }
    ensure!(before.current.is_none_or(|files| files > 16), "it could open what it liked before: {before:?}");
    ensure!(came.load(SeqCst) == 0, "nobody was reached");
    Ok(())
}
