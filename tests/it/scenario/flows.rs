//! Flows from a file: order, outputs handed on, what a failure leaves out, and runs that are stopped or killed and go on.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::cli::{Place, exits, objects};

/// The lines of a flow's run: one for each step, by its id, and the last of all.
struct Told {
    steps: Vec<Value>,
    summary: Value,
}

impl Told {
    fn read(output: &std::process::Output) -> Result<Told> {
        let mut steps = objects(output)?;
        let summary = steps.pop().context("it said nothing")?;
        ensure!(summary["run_id"].is_string(), "the last line is the run's: {summary}");
        Ok(Told { steps, summary })
    }

    fn of(&self, step: &str) -> Result<&Value> {
        self.steps
            .iter()
            .find(|one| one["context"]["step_id"] == step)
            .with_context(|| format!("nothing of {step}: {:?}", self.steps))
    }
}

fn write(place: &Place, name: &str, flow: &Value) -> Result<()> {
    Ok(std::fs::write(place.path().join(name), serde_json::to_string_pretty(flow)?)?)
}

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The folder with the blobs of a flow's tenant, if there is one.
fn blobs(place: &Place) -> Option<PathBuf> {
    let folders = std::fs::read_dir(place.path().join("endstation-data/blobs")).ok()?;
    let found = folders.filter_map(Result::ok).find(|entry| entry.file_name().to_string_lossy().starts_with("t-"));
    found.map(|entry| entry.path())
}

fn edge(from: &str, to: &str) -> Value {
    json!({ "from": from, "to": to })
}

#[test]
fn the_example_runs_in_its_order_and_is_answered_from_the_journal_the_second_time() -> Result<()> {
    let place = Place::new()?;
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/flow.json");
    let output = place.run(&["run", file])?;
    exits(&output, 0)?;
    let first = Told::read(&output)?;
    ensure!(first.steps.len() == 4 && first.summary["status"] == "OK" && first.summary["ok"] == 4, "{}", first.summary);
    let told = &first.of("told")?["outputs"];
    let digest = &first.of("digest")?["outputs"]["digest"];
    let whole = json!({ "order": 1042, "digest": digest, "kept": { "path": "reports/1042.txt", "bytes": 9 }, "price": "write ${ for the text itself" });
    ensure!(*told == whole, "values keep their types: {told}");
    let text = r#"order 1042 of Ada: [{"name":"bolt","count":12},{"name":"nut","count":12}]"#;
    let hex: String = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
    ensure!(*digest == hex, "texts are filled in: {digest}");
    let kept = blobs(&place).context("the tenant's folder")?.join("reports/1042.txt");
    ensure!(std::fs::read_to_string(&kept)? == "12 x bolt", "the file");
    std::fs::remove_file(&kept)?;

    let output = place.run(&["run", file])?;
    exits(&output, 0)?;
    let second = Told::read(&output)?;
    ensure!(second.summary["replayed"] == 4 && second.summary["run_id"] == first.summary["run_id"], "{}", second.summary);
    ensure!(second.of("told")?["timing"] == first.of("told")?["timing"], "the same outcome");
    ensure!(!kept.exists(), "what was done is not done again");

    let output = place.run(&["run", file, "--fresh"])?;
    exits(&output, 0)?;
    let fresh = Told::read(&output)?;
    ensure!(fresh.summary["replayed"] == 0 && fresh.summary["run_id"] != first.summary["run_id"], "{}", fresh.summary);
    ensure!(kept.exists(), "a fresh run does it again");
    Ok(())
}

#[test]
fn steps_of_one_level_run_at_the_same_time() -> Result<()> {
    let place = Place::new()?;
    let sleep = |id: &str| json!({ "id": id, "type": "sleep", "inputs": { "ms": 700 } });
    let flow = json!({
        "id": "f", "version": 1, "steps": [sleep("a"), sleep("b"), { "id": "c", "type": "echo" }],
        "edges": [edge("a", "c"), edge("b", "c")],
    });
    write(&place, "flow.json", &flow)?;
    let output = place.run(&["run", "flow.json"])?;
    exits(&output, 0)?;
    let told = Told::read(&output)?;
    let time = |step: &str, field: &str| -> Result<String> {
        Ok(told.of(step)?["timing"][field].as_str().context("a time")?.to_owned())
    };
    ensure!(
        time("a", "started_at")? < time("b", "ended_at")? && time("b", "started_at")? < time("a", "ended_at")?,
        "{:?}",
        told.steps
    );
    ensure!(
        time("c", "received_at")? >= time("a", "ended_at")? && time("c", "received_at")? >= time("b", "ended_at")?,
        "{:?}",
        told.steps
    );
    Ok(())
}

#[test]
fn what_is_behind_a_failed_step_is_skipped_and_goes_on_once_that_went_well() -> Result<()> {
    let place = Place::new()?;
    let flow = json!({
        "id": "f", "version": 1,
        "steps": [
            { "id": "get", "type": "fs.blob_get", "inputs": { "path": "late.txt" } },
            { "id": "told", "type": "echo", "inputs": { "content": "${steps.get.outputs.content}" } },
            { "id": "last", "type": "echo" },
            { "id": "put", "type": "fs.blob_put", "inputs": { "path": "x.txt", "content": "x" } },
            { "id": "other", "type": "echo" },
        ],
        "edges": [edge("get", "told"), edge("told", "last"), edge("put", "last"), edge("put", "other")],
    });
    write(&place, "flow.json", &flow)?;
    let output = place.run(&["run", "flow.json", "--run-id", "mine", "--tenant", "acme"])?;
    exits(&output, 1)?;
    let told = Told::read(&output)?;
    ensure!(
        told.of("get")?["error"]["code"] == "INVALID_INPUT" && told.of("get")?["context"]["tenant_id"] == "acme",
        "{:?}",
        told.steps
    );
    for step in ["told", "last"] {
        let skipped = told.of(step)?;
        ensure!(skipped["status"] == "SKIPPED" && skipped["skipped"]["step_id"] == "get", "{skipped}");
        ensure!(skipped["skipped"]["reason"] == "step get did not go well (INVALID_INPUT)", "{skipped}");
    }
    ensure!(told.of("put")?["status"] == "OK" && told.of("other")?["status"] == "OK", "the rest goes on: {:?}", told.steps);
    let counts =
        [("status", json!("FAILED")), ("ok", json!(2)), ("failed", json!(1)), ("skipped", json!(2)), ("not_done", json!(0))];
    ensure!(counts.iter().all(|(name, count)| told.summary[name] == *count), "{}", told.summary);

    let folder = blobs(&place).context("the tenant's folder")?;
    std::fs::rename(folder.join("x.txt"), folder.join("late.txt"))?;
    let output = place.run(&["run", "flow.json", "--run-id", "mine", "--tenant", "acme"])?;
    exits(&output, 0)?;
    let told = Told::read(&output)?;
    ensure!(told.of("get")?["context"]["attempt"] == 2 && told.of("told")?["outputs"]["content"] == "x", "{:?}", told.steps);
    ensure!(told.of("put")?["replayed"] == true && !folder.join("x.txt").exists(), "what went well is not done again");
    ensure!(told.of("last")?["status"] == "OK" && told.summary["replayed"] == 2, "{}", told.summary);
    Ok(())
}

#[test]
fn a_reference_to_nothing_fails_its_step_before_anybody_is_given_it() -> Result<()> {
    let place = Place::new()?;
    let flow = json!({
        "id": "f", "version": 1,
        "steps": [
            { "id": "a", "type": "echo", "inputs": { "n": 1 } },
            { "id": "b", "type": "echo", "inputs": { "x": ["${steps.a.outputs.m}"] } },
            { "id": "c", "type": "echo" },
        ],
        "edges": [edge("a", "b"), edge("b", "c")],
    });
    write(&place, "flow.json", &flow)?;
    let output = place.run(&["run", "flow.json", "--run-id", "r"])?;
    exits(&output, 1)?;
    let told = Told::read(&output)?;
    let error = &told.of("b")?["error"];
    ensure!(error["details"]["pointer"] == "/inputs/x/0" && error["effect"] == "NONE", "{error}");
    let rule = error["details"]["rule"].as_str().context("a rule")?;
    ensure!(rule.starts_with("${steps.a.outputs.m} stands for nothing"), "{rule}");
    ensure!(told.of("c")?["status"] == "SKIPPED", "{:?}", told.steps);
    let shown = |step: &str| {
        place.run(&["step", "show", "--tenant", "local", "--run", "r", "--flow", "f", "--attempt", "1", "--step", step])
    };
    exits(&shown("a")?, 0)?;
    exits(&shown("b")?, 1)
}

#[test]
fn outputs_that_are_too_large_for_a_result_can_be_referred_to_all_the_same() -> Result<()> {
    let place = Place::new()?;
    let flow = json!({
        "id": "f", "version": 1,
        "steps": [
            { "id": "a", "type": "echo", "inputs": { "text": "x".repeat(400_000), "n": 7 } },
            { "id": "b", "type": "echo", "inputs": { "n": "${steps.a.outputs.n}" } },
        ],
        "edges": [edge("a", "b")],
    });
    write(&place, "flow.json", &flow)?;
    let output = place.run(&["run", "flow.json"])?;
    exits(&output, 0)?;
    let told = Told::read(&output)?;
    ensure!(told.of("a")?["outputs_ref"].is_object() && told.of("b")?["outputs"]["n"] == 7, "{:?}", told.of("b"));
    Ok(())
}

#[test]
fn another_flow_under_the_same_run_id_is_a_conflict_before_anything_runs() -> Result<()> {
    let place = Place::new()?;
    let flow = |path: &str| json!({ "id": "f", "version": 1, "steps": [{ "id": "put", "type": "fs.blob_put", "inputs": { "path": path, "content": "x" } }] });
    write(&place, "flow.json", &flow("one"))?;
    exits(&place.run(&["run", "flow.json", "--run-id", "r"])?, 0)?;
    write(&place, "flow.json", &flow("two"))?;
    for _ in 0..2 {
        let output = place.run(&["run", "flow.json", "--run-id", "r"])?;
        exits(&output, 2)?;
        ensure!(said(&output).contains("KEY_CONFLICT") && said(&output).contains("\"r\""), "{}", said(&output));
        ensure!(output.stdout.is_empty(), "nothing was run");
    }
    let folder = blobs(&place).context("the tenant's folder")?;
    ensure!(!folder.join("two").exists(), "nothing was done");
    // Without a name of its own it is another run.
    exits(&place.run(&["run", "flow.json"])?, 0)?;
    ensure!(folder.join("two").exists(), "now it was");
    Ok(())
}

#[test]
fn what_is_wrong_with_a_flow_is_told_at_once_and_leaves_nothing_behind() -> Result<()> {
    let place = Place::new()?;
    let flow = json!({
        "id": "f", "version": 1, "colour": "red",
        "steps": [{ "id": "a", "type": "no.such" }, { "id": "b", "type": "sleep", "inputs": { "ms": -1 } }],
        "edges": [edge("a", "b"), edge("b", "a")],
    });
    write(&place, "flow.json", &flow)?;
    std::fs::write(place.path().join("steps"), "{\"type\":\"echo\"}\n")?;
    std::fs::write(place.path().join("broken"), "{\n\"steps\": [,]\n}\n")?;
    std::fs::write(place.path().join("neither"), "{\n\"type\": \"echo\"\n}\n")?;
    let output = place.run(&["run", "flow.json"])?;
    exits(&output, 2)?;
    for fault in [
        "flow.json was taken for a flow, and cannot be run: 4 things wrong",
        "/colour: no such field",
        "/steps/0/type: unknown block type: no.such",
        "/steps/1/inputs/ms: a whole number from 0 to 86400000",
        "/edges/1: closes a cycle: a → b → a",
    ] {
        ensure!(said(&output).contains(fault), "no {fault:?} in {}", said(&output));
    }
    for (args, fault) in [
        (&["run", "broken"][..], "taken for a flow"),
        (&["run", "neither"], "neither a flow nor steps"),
        (&["run", "steps", "--run-id", "r"], "steps was taken for steps, one a line"),
        (&["run", "steps", "--fixtures", "x"], "only with a flow"),
        (&["run", "flow.json", "--tenant", "a.b"], "--tenant"),
        (&["run", "flow.json", "--fresh", "--run-id", "r"], "--fresh"),
    ] {
        let output = place.run(args)?;
        exits(&output, 2)?;
        ensure!(said(&output).contains(fault), "{args:?}: {}", said(&output));
    }
    ensure!(!place.path().join("endstation-data").exists(), "no journal was begun");
    Ok(())
}

/// A run of a flow in a pipe.
struct Piped {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Piped {
    fn start(place: &Place, args: &[&str]) -> Result<Piped> {
        let mut child = place.command(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let output = BufReader::new(child.stdout.take().context("its output")?);
        Ok(Piped { child, output })
    }

    /// The next line; none at the end, and where a kill cut it.
    fn next(&mut self) -> Result<Option<Value>> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(serde_json::from_str(&line).ok())
    }

    fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let pid = rustix::process::Pid::from_raw(self.child.id().try_into()?).context("a pid is not 0")?;
        Ok(rustix::process::kill_process(pid, signal)?)
    }
}

#[test]
fn a_run_that_is_told_to_stop_begins_nothing_more_and_goes_on_later() -> Result<()> {
    let place = Place::new()?;
    let sleep = |id: &str, ms: u64| json!({ "id": id, "type": "sleep", "inputs": { "ms": ms } });
    let flow = json!({
        "id": "f", "version": 1, "steps": [sleep("a", 1), sleep("b", 1_500), sleep("c", 1)], "edges": [edge("a", "b"), edge("b", "c")],
    });
    write(&place, "flow.json", &flow)?;
    let mut run = Piped::start(&place, &["run", "flow.json"])?;
    ensure!(run.next()?.context("a result")?["context"]["step_id"] == "a", "the first");
    run.signal(rustix::process::Signal::INT)?;
    ensure!(run.next()?.context("a result")?["context"]["step_id"] == "b", "what is under way is waited for");
    let summary = run.next()?.context("the summary")?;
    ensure!(summary["status"] == "STOPPED" && summary["not_done"] == 1 && summary["ok"] == 2, "{summary}");
    ensure!(run.child.wait()?.code() == Some(130), "exit code");
    let output = place.run(&["run", "flow.json"])?;
    exits(&output, 0)?;
    let told = Told::read(&output)?;
    ensure!(told.summary["replayed"] == 2 && told.of("c")?["replayed"] == false, "{}", told.summary);

    // Twice, and it does not wait.
    let mut run = Piped::start(&place, &["run", "flow.json", "--run-id", "other"])?;
    run.next()?.context("a result")?;
    run.signal(rustix::process::Signal::TERM)?;
    std::thread::sleep(std::time::Duration::from_millis(200));
    run.signal(rustix::process::Signal::TERM)?;
    let summary = run.next()?.context("the summary")?;
    ensure!(summary["status"] == "STOPPED" && summary["not_done"] == 2, "{summary}");
    ensure!(run.child.wait()?.code() == Some(130), "exit code");
    exits(&place.run(&["run", "flow.json", "--run-id", "other"])?, 0)
}

#[cfg(feature = "failpoints")]
#[test]
fn a_run_that_is_killed_again_and_again_has_every_effect_as_often_as_its_class_allows() -> Result<()> {
    use crate::dice::Dice;
    use crate::effect::{Class, EffectServer, Mood};

    const CHAINS: u64 = 12;
    const LENGTH: u64 = 5;
    const KILLS: u64 = 4;
    let mut dice = Dice::new(0xf10e);
    let server = EffectServer::start(Mood { drops: 0, hangs_up: 0, dawdles: 300 }, dice.other())?;
    let place = Place::new()?;
    // Chains of steps, each with its effect, that meet in one; what must never run twice stands at their ends.
    let (mut steps, mut edges, mut classes) = (Vec::new(), Vec::new(), Vec::new());
    for chain in 0..CHAINS {
        for n in 0..LENGTH {
            let mark = chain * LENGTH + n;
            let class = if n + 1 == LENGTH { Class::Unsafe } else { Class::ALL[(mark % 4) as usize] };
            let mut inputs = json!({ "at": server.at(), "mark": mark });
            if n > 0 {
                inputs["before"] = json!(format!("${{steps.s{}.outputs.entry}}", mark - 1));
                edges.push(edge(&format!("s{}", mark - 1), &format!("s{mark}")));
            }
            if n + 2 == LENGTH {
                edges.push(edge(&format!("s{mark}"), "all"));
            }
            steps.push(json!({ "id": format!("s{mark}"), "type": class.block(), "inputs": inputs }));
            classes.push(class);
        }
    }
    steps.push(json!({ "id": "all", "type": "echo" }));
    write(&place, "flow.json", &json!({ "id": "f", "version": 1, "steps": steps, "edges": edges }))?;
    for kill in 0..KILLS {
        let mut run = Piped::start(&place, &["run", "flow.json"])?;
        for _ in 0..dice.range(1 + kill * 8, 10 + kill * 8) {
            if run.next()?.is_none() {
                break;
            }
        }
        run.child.kill()?;
        ensure!(!run.child.wait()?.success(), "killed in the middle, in life {kill}");
    }
    let output = place.run(&["run", "flow.json"])?;
    let told = Told::read(&output)?;
    ensure!(told.of("all")?["status"] == "OK", "{}", told.summary);
    let effects = server.by_mark();
    let mut indeterminate = 0_u64;
    for (mark, class) in classes.iter().enumerate() {
        let count = effects.get(&(mark as u64)).map_or(0, Vec::len);
        let step = told.of(&format!("s{mark}"))?;
        let ok = step["status"] == "OK";
        match class {
            Class::Pure => ensure!(ok && count >= 1, "{mark}: {count} effects: {step}"),
            Class::Unsafe if ok => ensure!(count == 1, "{mark}: {count} effects: {step}"),
            Class::Unsafe => {
                indeterminate += 1;
                ensure!(step["error"]["effect"] == "UNKNOWN" && count <= 1, "{mark}: {count} effects: {step}");
            }
            _ => ensure!(ok && count == 1, "{mark}: {count} effects of class {class:?}: {step}"),
        }
    }
    exits(&output, i32::from(indeterminate > 0))?;
    // Under the same run id what may have happened is not begun again.
    let again = Told::read(&place.run(&["run", "flow.json"])?)?;
    ensure!(again.summary["replayed"] == again.steps.len() && again.summary["failed"] == indeterminate, "{}", again.summary);
    let after = server.by_mark();
    ensure!(after.iter().all(|(mark, entries)| effects[mark].len() == entries.len()), "a run of finished steps has no effect");
    eprintln!("{} steps, {KILLS} kills, {indeterminate} that may have happened, {:?}", classes.len(), server.counts());
    Ok(())
}
