//! The command line as its users type it: exit codes, NDJSON on standard output, and what a second run finds.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::server::free_port;
use crate::worker::Settings;
use crate::world::World;

/// A folder to run in, and the binary in it.
pub(super) struct Place(tempfile::TempDir);

impl Place {
    pub(super) fn new() -> Result<Self> {
        Ok(Place(tempfile::Builder::new().prefix("endstation-cli-").tempdir()?))
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_endstation"));
        command.args(args).current_dir(self.path()).env_clear();
        command.envs(std::env::vars().filter(|(name, _)| matches!(name.as_str(), "PATH" | "HOME" | "TMPDIR")));
        command.stdin(Stdio::null());
        command
    }

    pub(super) fn run(&self, args: &[&str]) -> Result<Output> {
        Ok(self.command(args).output()?)
    }

    pub(super) fn file(&self, name: &str, lines: &[Value]) -> Result<()> {
        let mut file = std::fs::File::create(self.path().join(name))?;
        lines.iter().try_for_each(|line| writeln!(file, "{line}"))?;
        Ok(())
    }
}

/// Every line of standard output, which must be JSON objects and nothing else.
pub(super) fn objects(output: &Output) -> Result<Vec<Value>> {
    let text = std::str::from_utf8(&output.stdout)?;
    let object = |line: &str| {
        let value: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        ensure!(value.is_object(), "not an object: {line}");
        Ok(value)
    };
    text.lines().map(object).collect()
}

pub(super) fn exits(output: &Output, code: i32) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(code), "{} instead of {code}: {said}", output.status);
    Ok(())
}

pub(super) fn step(name: &str, block: &str, inputs: Value) -> Value {
    let context = json!({"tenant_id": "acme", "flow_id": "f", "step_id": name, "attempt": 1});
    json!({"type": block, "inputs": inputs, "context": context})
}

fn of<'a>(results: &'a [Value], name: &str) -> Result<&'a Value> {
    results.iter().find(|result| result["context"]["step_id"] == name).with_context(|| format!("no result for {name}"))
}

#[test]
fn exit_codes_tell_success_failure_usage_and_configuration_apart() -> Result<()> {
    let place = Place::new()?;
    place.file("good", &[step("a", "echo", json!({}))])?;
    place.file("bad", &[step("b", "echo", json!({})), step("c", "nonsense", json!({}))])?;
    exits(&place.run(&["run", "good"])?, 0)?;
    exits(&place.run(&["run", "bad"])?, 1)?;
    exits(&place.run(&["run", "missing"])?, 2)?;
    exits(&place.run(&["run", "--nonsense"])?, 2)?;
    exits(&place.run(&["run", "good", "--set", "nats.nonsense=1"])?, 3)?;
    exits(&place.run(&["run", "good", "--data", "/proc/nowhere"])?, 3)?;
    exits(&place.run(&["--help"])?, 0)
}

#[test]
fn a_second_run_is_answered_from_the_journal_and_a_failed_line_gets_its_next_attempt() -> Result<()> {
    let place = Place::new()?;
    let put = step("put", "fs.blob_put", json!({"path": "x.txt", "content": "x"}));
    place.file("steps", &[put, step("get", "fs.blob_get", json!({"path": "late.txt"}))])?;
    let first = place.run(&["run", "steps"])?;
    exits(&first, 1)?;
    let first = objects(&first)?;
    ensure!(first.len() == 2 && of(&first, "put")?["replayed"] == false, "{first:?}");
    ensure!(of(&first, "get")?["status"] == "ERROR", "{first:?}");

    // What the failed step missed comes to be; the one that went well must not notice that its file is gone.
    let blobs = place.path().join("endstation-data/blobs");
    let folder =
        std::fs::read_dir(&blobs)?.filter_map(Result::ok).find(|entry| entry.file_name().to_string_lossy().starts_with("t-"));
    let folder = folder.context("the tenant's folder")?.path();
    std::fs::rename(folder.join("x.txt"), folder.join("late.txt"))?;
    let second = place.run(&["run", "steps"])?;
    exits(&second, 0)?;
    let second = objects(&second)?;
    ensure!(of(&second, "put")?["replayed"] == true, "{second:?}");
    ensure!(of(&second, "put")?["timing"] == of(&first, "put")?["timing"], "the same outcome");
    ensure!(!folder.join("x.txt").exists(), "a replayed step has no second effect");
    ensure!(of(&second, "get")?["status"] == "OK" && of(&second, "get")?["context"]["attempt"] == 2, "{second:?}");

    let fresh = objects(&place.run(&["run", "steps", "--fresh"])?)?;
    ensure!(fresh.len() == 2 && fresh.iter().all(|result| result["replayed"] == false), "{fresh:?}");
    ensure!(folder.join("x.txt").exists(), "--fresh runs it again");
    Ok(())
}

#[test]
fn the_example_of_signatures_comes_out_as_it_says() -> Result<()> {
    let (place, examples) = (Place::new()?, Path::new(env!("CARGO_MANIFEST_DIR")).join("examples"));
    let key = format!("keys.demo.secret=secret://file{}", examples.join("rfc8032-demo-key.hex").display());
    let (tenants, algorithm) = ("keys.demo.tenants=acme", "keys.demo.algorithm=ed25519");
    let file = examples.join("sign.ndjson").display().to_string();
    let output = place.run(&["run", &file, "--set", tenants, "--set", algorithm, "--set", &key])?;
    exits(&output, 1)?;
    let results = objects(&output)?;
    ensure!(results.len() == 4 && of(&results, "sign")?["outputs"]["size"] == 10, "{results:?}");
    ensure!(of(&results, "holds")?["outputs"]["valid"] == true, "{results:?}");
    ensure!(of(&results, "does-not-hold")?["outputs"]["valid"] == false, "{results:?}");
    ensure!(of(&results, "denied")?["error"]["code"] == "PERMISSION_DENIED", "{results:?}");
    Ok(())
}

#[test]
fn a_pipe_gets_each_result_before_its_next_line_is_there() -> Result<()> {
    let place = Place::new()?;
    let mut child = place.command(&["run", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().context("its input")?;
    let mut output = BufReader::new(child.stdout.take().context("its output")?);
    for n in 0..3 {
        writeln!(input, "{}", step(&n.to_string(), "echo", json!({"n": n})))?;
        let mut line = String::new();
        output.read_line(&mut line)?;
        let result: Value = serde_json::from_str(&line)?;
        ensure!(result["outputs"]["n"] == n, "{line}");
    }
    drop(input);
    ensure!(child.wait()?.success(), "exit code");
    Ok(())
}

#[test]
fn a_run_killed_in_the_middle_goes_on_where_it_was() -> Result<()> {
    let place = Place::new()?;
    let steps: Vec<Value> = (0..300)
        .map(|n| match n % 3 {
            0 => step(&n.to_string(), "sleep", json!({"ms": n})),
            1 => step(&n.to_string(), "fs.blob_put", json!({"path": format!("{n}.txt"), "content": n.to_string()})),
            _ => step(&n.to_string(), "echo", json!({"n": n})),
        })
        .collect();
    place.file("steps", &steps)?;
    let mut child = place.command(&["run", "steps"]).stdout(Stdio::piped()).spawn()?;
    let mut output = BufReader::new(child.stdout.take().context("its output")?);
    let mut before: Vec<Value> = Vec::new();
    let mut line = String::new();
    while output.read_line(&mut line)? > 0 {
        // The last line may have been cut by the kill.
        before.extend(serde_json::from_str(&line).ok());
        line.clear();
        if before.len() == 150 {
            child.kill()?;
        }
    }
    ensure!(!child.wait()?.success() && before.len() < 300, "killed in the middle, after {}", before.len());
    let after = place.run(&["run", "steps"])?;
    exits(&after, 0)?;
    let after = objects(&after)?;
    ensure!(after.len() == 300, "{} results", after.len());
    for was in &before {
        let name = was["context"]["step_id"].as_str().context("a step")?;
        let is = of(&after, name)?;
        ensure!(is["replayed"] == true && is["timing"] == was["timing"] && is["outputs"] == was["outputs"], "{was} {is}");
    }
    Ok(())
}

#[test]
fn the_demo_in_a_pipe_is_ndjson_and_finds_nothing_repeated() -> Result<()> {
    let place = Place::new()?;
    let output = place.run(&["demo"])?;
    exits(&output, 0)?;
    let all = objects(&output)?;
    let part = |name: &str| all.iter().find(|object| object["demo"] == name).with_context(|| format!("no {name}: {all:?}"));
    ensure!(part("machine")?["fsync_p50_us"].as_u64() > Some(0), "{all:?}");
    ensure!(all.iter().filter(|object| object["demo"] == "step").count() == 7, "{all:?}");
    let kill = part("kill")?;
    ensure!(kill["lost"] == 0 && kill["repeated"] == 0, "{kill}");
    let sum = kill["from_journal"].as_u64().zip(kill["finished"].as_u64()).map(|(one, other)| one + other);
    ensure!(sum == kill["steps"].as_u64() && kill["from_journal"].as_u64() >= kill["seen_before"].as_u64(), "{kill}");
    ensure!(part("burst")?["steps"].as_u64() > Some(0), "{all:?}");
    ensure!(std::fs::read_dir(place.path())?.next().is_none(), "it leaves nothing behind");
    Ok(())
}

#[test]
fn a_step_is_shown_with_its_frames_and_the_configuration_with_its_origins() -> Result<()> {
    let place = Place::new()?;
    place.file("steps", &[step("a", "echo", json!({}))])?;
    exits(&place.run(&["run", "steps"])?, 0)?;
    let named = ["step", "show", "--tenant", "acme", "--flow", "f", "--attempt", "1", "--step"];
    let shown = place.run(&[&named[..], &["a"]].concat())?;
    exits(&shown, 0)?;
    let kinds: Vec<Value> = objects(&shown)?.iter().map(|row| row["kind"].clone()).collect();
    let lower = |kind: &Value| kind.as_str().unwrap_or_default().to_lowercase();
    ensure!(["accepted", "result"].iter().all(|kind| kinds.iter().any(|found| lower(found) == *kind)), "{kinds:?}");
    exits(&place.run(&[&named[..], &["other"]].concat())?, 1)?;

    let shown = place.command(&["config", "show", "--origin", "--set", "worker.id=w"]).env("NATS_URL", "nats://n:1").output()?;
    exits(&shown, 0)?;
    let rows = objects(&shown)?;
    let origin = |key: &str| rows.iter().find(|row| row["key"] == key).map(|row| row["origin"].to_string()).unwrap_or_default();
    ensure!(origin("worker.id").contains("--set"), "{}", origin("worker.id"));
    ensure!(origin("nats.url").contains("NATS_URL"), "{}", origin("nats.url"));
    Ok(())
}

#[tokio::test]
async fn what_is_sent_comes_back_as_ack_events_and_result() -> Result<()> {
    let world = World::jetstream(Settings::default().set("ENDSTATION__EVENTS__ENABLED", "true")).await?;
    let place = Place::new()?;
    let url = world.server.url();
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/assignments.ndjson");
    let send = |file: &str| {
        let mut command = place.command(&["send", file, "--nats", &url, "--timeout", "10s"]);
        tokio::task::spawn_blocking(move || command.output())
    };
    for _ in 0..2 {
        let output = send(examples).await??;
        exits(&output, 0)?;
        let heard = objects(&output)?;
        let results: Vec<&Value> = heard.iter().filter(|heard| heard["kind"] == "result").collect();
        ensure!(results.len() >= 4 && results.iter().all(|result| result["message"]["status"] == "success"), "{heard:?}");
        ensure!(heard.iter().all(|heard| heard["assignment_id"].is_string()), "{heard:?}");
    }
    place.file("steps", &[step("s", "echo", json!({"n": 1})), step("bad", "nonsense", json!({}))])?;
    let output = send("steps").await??;
    exits(&output, 1)?;
    let heard = objects(&output)?;
    let count = |kind: &str| heard.iter().filter(|heard| heard["kind"] == kind).count();
    ensure!(count("ack") == 2 && count("result") == 2 && count("event") > 0, "{heard:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(said.contains("without an assignment_id"), "it says that it made ids: {said}");
    exits(&send("missing").await??, 2)
}

#[tokio::test]
async fn steps_are_sent_as_themselves_in_either_encoding() -> Result<()> {
    let subjects = "caf.exec.assign.v1,beamline.worker.steps.v1.*";
    let server = crate::server::NatsServer::start(true).await?;
    let settings = Settings::default().set("ENDSTATION__NATS__ASSIGN_SUBJECTS", subjects);
    let _worker = crate::worker::Worker::start(&server.url(), settings).await?;
    let place = Place::new()?;
    place.file("steps", &[step("s", "echo", json!({"n": 1})), step("bad", "nonsense", json!({}))])?;
    for how in ["--native", "--protobuf"] {
        let mut command = place.command(&["send", "steps", how, "--nats", &server.url(), "--timeout", "10s"]);
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        exits(&output, 1)?;
        let heard = objects(&output)?;
        let of = |status: &str| heard.iter().filter(|one| one["message"]["status"] == status).collect::<Vec<_>>();
        let (ok, bad) = (of("OK"), of("ERROR"));
        ensure!(ok.len() == 1 && ok[0]["message"]["outputs"]["n"] == 1, "{how}: {heard:?}");
        ensure!(bad.len() == 1 && bad[0]["message"]["error"]["code"] == "UNKNOWN_JOB_TYPE", "{how}: {heard:?}");
    }
    Ok(())
}

/// A process that a failing test must not leave behind.
struct Process(std::process::Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let _status = self.0.wait();
    }
}

/// Waits until nobody listens there any more.
async fn closes(port: u16) -> Result<()> {
    let begun = std::time::Instant::now();
    while std::net::TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port)).is_ok() {
        ensure!(begun.elapsed() < std::time::Duration::from_secs(10), "somebody still listens on port {port}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test]
async fn dev_brings_a_server_that_ends_with_it_whether_told_or_killed() -> Result<()> {
    let place = Place::new()?;
    let (nats, ops) = (free_port(), free_port());
    let (url, bind) = (format!("nats://127.0.0.1:{nats}"), format!("ops.bind=127.0.0.1:{ops}"));
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::KILL] {
        let set = format!("nats.url={url}");
        let child =
            place.command(&["dev", "--set", &set, "--set", &bind]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut child = Process(child);
        let mut said = BufReader::new(child.0.stdout.take().context("its output")?).lines();
        let said = tokio::task::spawn_blocking(move || said.any(|line| line.is_ok_and(|line| line.starts_with("try")))).await?;
        ensure!(said, "it ended before it said what to try");
        let mut send = place.command(&["send", "-", "--nats", &url, "--timeout", "10s"]);
        let mut send = send.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        writeln!(send.stdin.take().context("its input")?, "{}", json!({"type": "echo", "inputs": {"n": 1}}))?;
        let output = tokio::task::spawn_blocking(move || send.wait_with_output()).await??;
        exits(&output, 0)?;
        let pid = rustix::process::Pid::from_raw(child.0.id().try_into()?).context("a pid is not 0")?;
        rustix::process::kill_process(pid, signal)?;
        let status = tokio::task::spawn_blocking(move || child.0.wait()).await??;
        ensure!(status.success() == (signal == rustix::process::Signal::INT), "{status}");
        closes(nats).await?;
    }
    let elsewhere = place.run(&["dev", "--set", "nats.url=nats://example.com:4222"])?;
    exits(&elsewhere, 3)?;
    ensure!(String::from_utf8_lossy(&elsewhere.stderr).contains("serve --provision"), "it says what to do instead");
    Ok(())
}
