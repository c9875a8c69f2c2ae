//! The kill: this very binary runs a batch, is killed with -9 in the middle, and is started again on the same file.
//!
//! "Repeated" is observed from outside the worker: the file of a finished put must keep its inode and its modification
//! time, and a result that was printed before the kill must be printed again with every byte of its outcome the same.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::DemoError;
use super::paper::{Paper, thousands};

const STEPS: u64 = 2_000;
/// The worker is killed when it has printed so many results, and among them so many of steps that wrote a file.
const SEEN: usize = 700;
const SEEN_PUTS: usize = 100;
const TENANTS: u64 = 8;
/// So long the latest sleeping step takes at least, so that the kill comes before the end.
const SLEEP_MS_MAX: u64 = 600;

/// A worker that is not done by then is given up: what it has not printed counts as lost.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was printed for a step, and what came of it.
type Results = HashMap<String, Value>;

/// A file as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    inode: u64,
    modified: (i64, i64),
}

/// What was found out. Every count is of steps.
#[derive(Debug, Default, PartialEq, Eq)]
struct Findings {
    /// Decided before the kill and answered from the journal.
    from_journal: usize,
    /// Decided after it.
    finished: usize,
    /// Without a good result or, for a put, without its file.
    lost: HashSet<String>,
    /// Whose effect or outcome changed after it had been seen.
    repeated: HashSet<String>,
}

/// Shows it; true if nothing was lost and nothing repeated.
pub(super) fn show(folder: &Path, paper: &mut Paper) -> Result<bool, DemoError> {
    let failed = |doing| move |error| DemoError::System(doing, error);
    let folder = folder.canonicalize().map_err(failed("the demo's folder"))?;
    let file = folder.join("batch.ndjson");
    File::create(&file).and_then(|mut file| batch(&mut file)).map_err(failed("writing the batch"))?;
    paper.heading(&format!("3  A batch of {} steps, and kill -9 in the middle of it", thousands(STEPS)))?;
    let began = Instant::now();
    let (mut child, mut out) = start(&folder, &file)?;
    let mut before = read(&mut out, true)?;
    let killed_early = child.try_wait().map_err(failed("looking at the worker"))?.is_none();
    child.kill().map_err(failed("killing the worker"))?;
    // What it had printed by then is still in the pipe.
    before.extend(read(&mut out, false)?);
    child.wait().map_err(failed("waiting for the worker"))?;
    let killed_at = Timestamp::now();
    let killed_ms = began.elapsed().as_millis() as u64;
    if !killed_early {
        return Err(DemoError::Child(child_log(&folder)));
    }
    let blobs = folder.join("kill").join("blobs");
    let marks = files(&blobs).map_err(failed("looking at the files"))?;
    let seen = before.len() as u64;
    paper.line(&format!(
        "killed after {killed_ms} ms: {} results printed, {} files written",
        thousands(seen),
        thousands(marks.len() as u64)
    ))?;
    let began = Instant::now();
    let (mut child, mut out) = start(&folder, &file)?;
    let patience = give_up(&child);
    let after = read(&mut out, false)?;
    drop(patience);
    let status = child.wait().map_err(failed("waiting for the worker"))?;
    if !status.success() && after.is_empty() {
        return Err(DemoError::Child(child_log(&folder)));
    }
    let took_ms = began.elapsed().as_millis() as u64;
    let marks_after = files(&blobs).map_err(failed("looking at the files"))?;
    let found = compare(&before, &after, &marks, &marks_after, killed_at);
    tell(paper, &found, before.len(), marks.len(), took_ms)?;
    Ok(found.lost.is_empty() && found.repeated.is_empty())
}

fn tell(paper: &mut Paper, found: &Findings, seen: usize, files: usize, took_ms: u64) -> Result<(), DemoError> {
    let Findings { from_journal, finished, lost, repeated } = found;
    let figure = |count: usize| thousands(count as u64);
    paper.line(&format!("started again on the same file, {took_ms} ms:"))?;
    paper.line(&format!(
        "  {} from the journal, {} finished, {} lost, {} repeated",
        figure(*from_journal),
        figure(*finished),
        figure(lost.len()),
        figure(repeated.len())
    ))?;
    paper.line(&format!("  (compared: {} printed outcomes, and inode and mtime of {} files)", figure(seen), figure(files)))?;
    paper.object(
        "kill",
        json!({
            "steps": STEPS, "seen_before": seen, "files_before": files, "from_journal": from_journal, "finished": finished,
            "lost": lost.len(), "repeated": repeated.len(), "took_ms": took_ms,
        }),
    )?;
    Ok(())
}

/// Half of the steps echo, a quarter writes a file each, a quarter sleeps.
fn batch(out: &mut impl Write) -> std::io::Result<()> {
    for n in 0..STEPS {
        let (block, inputs) = match n % 4 {
            0 | 1 => ("echo", json!({ "n": n })),
            2 => ("fs.blob_put", json!({ "path": format!("{}.txt", name(n)), "content": format!("the content of step {n}") })),
            _ => ("sleep", json!({ "ms": n * 37 % SLEEP_MS_MAX + 1 })),
        };
        let context =
            json!({ "tenant_id": format!("tenant-{}", n / 4 % TENANTS), "flow_id": "kill", "step_id": name(n), "attempt": 1 });
        writeln!(out, "{}", json!({ "type": block, "inputs": inputs, "context": context }))?;
    }
    out.flush()
}

fn name(n: u64) -> String {
    format!("step-{n}")
}

/// Starts this binary on the file; the process and what it prints.
fn start(folder: &Path, file: &Path) -> Result<(Child, BufReader<ChildStdout>), DemoError> {
    let failed = |doing| move |error| DemoError::System(doing, error);
    let exe = std::env::current_exe().map_err(failed("finding this binary"))?;
    let log = File::options().create(true).append(true).open(folder.join("log")).map_err(failed("a log file"))?;
    let data = folder.join("kill");
    let mut command = Command::new(exe);
    command.arg("run").arg(file).arg("--data").arg(&data);
    command.arg("--set").arg(format!("storage.blobs_dir={}", data.join("blobs").display()));
    command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let mut child = command.spawn().map_err(failed("starting this binary again"))?;
    let out = child.stdout.take().expect("its output is a pipe");
    Ok((child, BufReader::new(out)))
}

/// Kills the worker when the patience is over, unless what this returns is dropped before.
fn give_up(child: &Child) -> flume::Sender<()> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let (done, wait) = flume::bounded(1);
    std::thread::spawn(move || {
        if let (Err(flume::RecvTimeoutError::Timeout), Some(pid)) = (wait.recv_timeout(PATIENCE), pid) {
            let _ = kill_process(pid, Signal::KILL);
        }
    });
    done
}

/// The results it prints: to the moment when it is to be killed, or all. A line that was cut by the kill is none.
fn read(out: &mut impl BufRead, to_the_kill: bool) -> Result<Results, DemoError> {
    let failed = |error| DemoError::System("reading the worker's results", error);
    let mut results = Results::new();
    let (mut line, mut puts) = (String::new(), 0);
    while !(to_the_kill && results.len() >= SEEN && puts >= SEEN_PUTS) && out.read_line(&mut line).map_err(failed)? > 0 {
        if let Ok(result) = serde_json::from_str::<Value>(&line) {
            puts += usize::from(result["type"] == "fs.blob_put");
            results.insert(result["context"]["step_id"].as_str().unwrap_or_default().to_owned(), result);
        }
        line.clear();
    }
    Ok(results)
}

fn child_log(folder: &Path) -> String {
    let text = fs::read_to_string(folder.join("log")).unwrap_or_default();
    text.lines().last().unwrap_or("it finished before it could be killed").to_owned()
}

/// Every finished file of every tenant, by the step that wrote it.
fn files(root: &Path) -> std::io::Result<BTreeMap<String, Mark>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![PathBuf::from(root)]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let (path, data) = (entry.path(), entry.metadata()?);
            let name = entry.file_name().to_string_lossy().into_owned();
            if data.is_dir() && !name.starts_with('$') {
                folders.push(path);
            } else if let Some(step) = name.strip_suffix(".txt").filter(|_| data.is_file()) {
                found.insert(step.to_owned(), Mark { inode: data.ino(), modified: (data.mtime(), data.mtime_nsec()) });
            }
        }
    }
    Ok(found)
}

fn compare(
    before: &Results,
    after: &Results,
    marks: &BTreeMap<String, Mark>,
    marks_after: &BTreeMap<String, Mark>,
    killed_at: Timestamp,
) -> Findings {
    let mut found = Findings::default();
    for n in 0..STEPS {
        let step = name(n);
        let result = after.get(&step).filter(|result| result["status"] == "OK");
        let Some(result) = result.filter(|_| n % 4 != 2 || marks_after.contains_key(&step)) else {
            found.lost.insert(step);
            continue;
        };
        let ended = result["timing"]["ended_at"].as_str().and_then(|at| at.parse::<Timestamp>().ok());
        if result["replayed"] == true && ended.is_some_and(|at| at <= killed_at) {
            found.from_journal += 1;
        } else {
            found.finished += 1;
        }
        if before.get(&step).is_some_and(|first| outcome(first) != outcome(result)) {
            found.repeated.insert(step.clone());
        }
        if marks.get(&step).is_some_and(|mark| marks_after.get(&step) != Some(mark)) {
            found.repeated.insert(step);
        }
    }
    found
}

/// A result without what tells the second asking from the first.
fn outcome(result: &Value) -> Value {
    let mut outcome = result.clone();
    if let Some(outcome) = outcome.as_object_mut() {
        outcome.remove("replayed");
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(ended_at: &str, replayed: bool) -> Value {
        json!({ "status": "OK", "timing": { "ended_at": ended_at }, "replayed": replayed })
    }

    #[test]
    fn an_outcome_that_changed_a_file_that_was_written_again_and_a_missing_step_are_found() {
        let killed_at: Timestamp = "2026-01-01T00:00:01Z".parse().expect("a timestamp");
        let (early, late) = ("2026-01-01T00:00:00.5Z", "2026-01-01T00:00:02Z");
        let mark = |inode| Mark { inode, modified: (1, 2) };
        let mut after: Results = (0..STEPS).map(|n| (name(n), result(late, false))).collect();
        let marks_after: BTreeMap<String, Mark> = (0..STEPS).filter(|n| n % 4 == 2).map(|n| (name(n), mark(n))).collect();
        let mut before = Results::new();
        before.insert(name(0), result(early, false));
        after.insert(name(0), result(early, true));
        let clean = compare(&before, &after, &BTreeMap::from([(name(2), mark(2))]), &marks_after, killed_at);
        assert_eq!((clean.from_journal, clean.finished), (1, STEPS as usize - 1));
        assert!(clean.lost.is_empty() && clean.repeated.is_empty());
        before.insert(name(1), result(early, false));
        after.remove(&name(3));
        let found = compare(&before, &after, &BTreeMap::from([(name(2), mark(7))]), &marks_after, killed_at);
        assert_eq!(found.repeated, HashSet::from([name(1), name(2)]));
        assert_eq!(found.lost, HashSet::from([name(3)]));
    }
}
