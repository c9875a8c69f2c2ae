//! What must hold at the end of a mixed run, looked at from three sides: what the router was told, what the effect server has in
//! its ledger, and what stands in the workers' journals.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::Plan;
use super::work::{FORBIDDEN, Kind, Step, Work, file};
use crate::effect::{Class, EffectServer, Entry};
use crate::ledger::tenant_folder;
use crate::router::Seen;
use crate::router::peer::Router;
use crate::worker::Worker;

/// The budget of a step that names none, in milliseconds.
const BUDGET_MS: u64 = 60_000;

/// What was found, to be told and recorded.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Steps by status, or by code where that is not success.
    ended: BTreeMap<String, u64>,
    /// Effects in the ledger by class.
    effects: BTreeMap<&'static str, u64>,
    /// Keys whose whole way stands in one journal.
    custody: u64,
    /// Keys whose outcome was told by a worker that lost the work, or died, before it had noted so.
    told_unnoted: u64,
}

impl Found {
    pub(super) fn json(&self) -> Value {
        json!({
            "ended": self.ended, "effects": self.effects, "custody": self.custody, "told_unnoted": self.told_unnoted,
        })
    }
}

/// Each step has the one outcome that it may have, and it agrees with what was done.
pub(super) fn outcomes(
    plan: &Plan,
    server_killed: bool,
    work: &Work,
    router: &Router,
    effects: &EffectServer,
    workers: &[&Worker],
) -> Result<Found> {
    let mut found = Found::default();
    let by_mark = effects.by_mark();
    for entry in by_mark.values().flatten() {
        *found.effects.entry(entry.class.block()).or_default() += 1;
        ensure!(entry.mark < FORBIDDEN, "other content under a key was run: {entry:?}");
    }
    let mut firsts: HashMap<u64, Seen> = HashMap::new();
    for step in &work.steps {
        let Some(seen) = router.ask(|model| model.result_of(&step.id).cloned()) else {
            bail!("{step:?} has no result");
        };
        let ended = if seen.status() == "success" { "success" } else { seen.code() };
        *found.ended.entry(ended.to_owned()).or_default() += 1;
        let done = by_mark.get(&step.key).map_or(&[][..], Vec::as_slice);
        one(plan, server_killed, step, &seen, done)
            .with_context(|| format!("{step:?}\n{:?}\n{done:?}\n{}", seen.object, way(&step.id, workers)))?;
        if step.kind == Kind::Conflict {
            continue;
        }
        // Within one journal whoever asks for a key hears the same.
        let same = |a: &Seen, b: &Seen| {
            ["status", "outputs", "effect", "error_code"].iter().all(|at| a.object.get(*at) == b.object.get(*at))
        };
        match firsts.get(&step.key) {
            Some(first) if plan.workers == 1 => {
                ensure!(same(first, &seen), "one key, two outcomes: {:?}\n{:?}", first.object, seen.object);
            }
            Some(_) => {}
            None => drop(firsts.insert(step.key, seen)),
        }
    }
    Ok(found)
}

fn one(plan: &Plan, server_killed: bool, step: &Step, seen: &Seen, done: &[Entry]) -> Result<()> {
    let (ended, effect) = ((seen.status(), seen.code()), seen.object.get("effect").and_then(Value::as_str));
    let well = ended.0 == "success";
    let may = match (step.kind, ended) {
        (Kind::Conflict, ended) => ended == ("error", "KEY_CONFLICT"),
        (Kind::Poison, ended) => ended == ("error", "POISON"),
        (_, ("success", _)) => true,
        // The server hung up on every try, or on the one that there may be.
        (Kind::Effect(_), ("error", "NETWORK_ERROR")) => true,
        (Kind::Effect(Class::Unsafe), ("error", "INDETERMINATE")) => true,
        // A killed server lost the message, and who had accepted it was not there before the budget was over.
        (_, ("timeout", "TIMEOUT")) => {
            plan.workers > 1 && server_killed && seen.object["latency_ms"].as_u64().is_some_and(|ms| ms >= BUDGET_MS)
        }
        // Files lie on the disk that was full, on every try.
        (Kind::Put, ("error", "RESOURCE_UNAVAILABLE")) => plan.full_disk,
        _ => false,
    };
    ensure!(may, "it may not end so");
    let Kind::Effect(class) = step.kind else { return Ok(()) };
    ensure!(done.iter().all(|entry| entry.class == class), "an effect of another class");
    ensure!(class == Class::Pure || done.len() <= 1, "{} effects", done.len());
    ensure!(!well || !done.is_empty(), "it says that it was done, and it was not");
    ensure!(class == Class::Pure || effect != Some("none") || done.is_empty(), "it says that nothing was done");
    Ok(())
}

/// What the steps that went well wrote is there, whole, at one of the workers.
pub(super) fn files(work: &Work, router: &Router, workers: &[&Worker]) -> Result<()> {
    for step in work.steps.iter().filter(|step| step.kind == Kind::Put) {
        let tenant = router.ask(|model| {
            let seen = model.result_of(&step.id).filter(|seen| seen.status() == "success")?;
            seen.object.get("tenant_id").and_then(Value::as_str).map(tenant_folder)
        });
        let Some(tenant) = tenant else { continue };
        let has = |worker: &&&Worker| {
            let blobs = worker.storage().join("blobs").join(&tenant).join(file(step.key));
            std::fs::read(blobs).is_ok_and(|content| content == step.key.to_string().as_bytes())
        };
        ensure!(workers.iter().any(|worker| has(&worker)), "{step:?} wrote no file");
    }
    Ok(())
}

/// A key as one journal has it.
#[derive(Debug, Default)]
struct Facts {
    accepted: bool,
    started: bool,
    /// Status and tries.
    result: Option<(String, u64)>,
    published: bool,
}

/// Every outcome that was told stands in a journal with the whole way to it, and every journal is as it was written.
pub(super) fn custody(plan: &Plan, work: &Work, router: &Router, workers: &[&Worker], found: &mut Found) -> Result<()> {
    let (mut names, mut journals): (HashMap<String, String>, Vec<HashMap<String, Facts>>) = (HashMap::new(), Vec::new());
    for worker in workers {
        let checked =
            Command::new(env!("CARGO_BIN_EXE_endstation")).args(["journal", "check", "--data"]).arg(worker.storage()).output()?;
        ensure!(checked.status.success(), "the journal of {}: {}", worker.id(), String::from_utf8_lossy(&checked.stdout));
        journals.push(read(&worker.storage(), &mut names)?);
    }
    let mut by_key: HashMap<u64, Vec<&Step>> = HashMap::new();
    for step in work.steps.iter().filter(|step| step.kind != Kind::Conflict) {
        by_key.entry(step.key).or_default().push(step);
    }
    for (key, steps) in by_key {
        let told: Vec<Seen> = steps.iter().filter_map(|step| router.ask(|model| model.result_of(&step.id).cloned())).collect();
        let Some(first) = told.first() else { continue };
        let Some(name) = steps.iter().find_map(|step| names.get(&step.id)) else {
            bail!("no journal knows key {key}: {steps:?}")
        };
        let facts: Vec<&Facts> = journals.iter().filter_map(|journal| journal.get(name)).collect();
        let whole = |facts: &&&Facts| {
            let result = facts.result.as_ref();
            let is_it = result.is_some_and(|(status, _)| told.iter().any(|seen| seen.status() == status));
            let untried = result.is_some_and(|(_, tries)| *tries == 0);
            facts.accepted && is_it && (facts.started || untried)
        };
        let way = facts
            .iter()
            .find(whole)
            .with_context(|| format!("the way of {steps:?} is in no journal: {:?}\n{facts:?}", first.object))?;
        if way.published || facts.iter().any(|facts| facts.published) {
            found.custody += 1;
        } else {
            ensure!(plan.workers > 1, "{steps:?} was told and nobody noted so: {facts:?}");
            found.told_unnoted += 1;
        }
    }
    Ok(())
}

/// What the journals say of an assignment's step, frame by frame, for a failure's text.
fn way(id: &str, workers: &[&Worker]) -> String {
    let mut way = String::new();
    for worker in workers {
        let dump = Command::new(env!("CARGO_BIN_EXE_endstation"))
            .args(["journal", "dump", "--bodies", "--data"])
            .arg(worker.storage())
            .output();
        let dump = dump.map(|dump| String::from_utf8_lossy(&dump.stdout).into_owned()).unwrap_or_default();
        let key = |line: &str| Some(serde_json::from_str::<Value>(line).ok()?["key"].as_str()?.to_owned());
        let Some(key) = dump.lines().find(|line| line.contains(id)).and_then(key) else { continue };
        way += &format!("{}:\n", worker.id());
        for line in dump.lines().filter(|line| line.contains(&key)) {
            way += line;
            way.push('\n');
        }
    }
    way
}

/// What one worker's journal says of each key, and which assignments the keys go by.
fn read(dir: &Path, names: &mut HashMap<String, String>) -> Result<HashMap<String, Facts>> {
    let mut facts: HashMap<String, Facts> = HashMap::new();
    let mut dump = Command::new(env!("CARGO_BIN_EXE_endstation"))
        .args(["journal", "dump", "--bodies", "--data"])
        .arg(dir)
        .stdout(Stdio::piped())
        .spawn()?;
    for line in BufReader::new(dump.stdout.take().context("its output")?).lines() {
        let row: Value = serde_json::from_str(&line?)?;
        let Some(key) = row["key"].as_str() else { continue };
        let known = facts.entry(key.to_owned()).or_default();
        match row["kind"].as_str().unwrap_or_default() {
            "accepted" => {
                known.accepted = true;
                if let Some(id) = row["body"]["assignment_id"].as_str() {
                    names.insert(id.to_owned(), key.to_owned());
                }
            }
            "started" => known.started = true,
            "result" => {
                let status = row["status"].as_str().unwrap_or_default().to_owned();
                known.result = Some((status, row["tries"].as_u64().unwrap_or_default()));
            }
            "published" => known.published = true,
            _ => {}
        }
    }
    ensure!(dump.wait()?.success(), "the journal under {} cannot be dumped", dir.display());
    Ok(facts)
}
