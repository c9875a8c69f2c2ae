//! The banner and the first steps: `examples/first-steps.ndjson`, run here as `endstation run` would.

use std::path::Path;

use serde_json::{Value, json};
use shards::runtime::disk::FsyncTimes;

use super::paper::Paper;
use super::{DemoError, beneath};
use crate::cli::run::{self, feed, reader, show};
use crate::settings::Settings;

const NAME: &str = "examples/first-steps.ndjson";
const STEPS: &str = include_str!("../../../examples/first-steps.ndjson");
/// The one step of them that breaks a rule, and must be refused for it.
const REFUSED: u64 = 1;

/// Says where we are and runs the steps; true if all but the one that must be refused went well.
pub(super) fn show(settings: &Settings, folder: &Path, fsync: &FsyncTimes, paper: &mut Paper) -> Result<bool, DemoError> {
    let settings = beneath(settings, folder, "steps");
    let worker = run::start(&settings)?;
    let layout = worker.layout.clone();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let place = folder.parent().unwrap_or(folder);
    let object = json!({
        "version": env!("CARGO_PKG_VERSION"), "shard_cores": layout.shards, "edge_cores": layout.edge, "kernel": kernel,
        "fsync_p50_us": fsync.p50_us, "fsync_p99_us": fsync.p99_us, "fsync_rounds": fsync.rounds,
    });
    paper.object("machine", object)?;
    paper.line(&format!("endstation {}: every step has one durable outcome", env!("CARGO_PKG_VERSION")))?;
    paper.heading("1  This machine")?;
    let count = layout.shards.len();
    paper.line(&format!("shards    {count}, one a core: {:?}; the edge on {:?}", layout.shards, layout.edge))?;
    paper.line(&format!("io_uring  of Linux {kernel}"))?;
    let ms = |us: u64| us as f64 / 1e3;
    paper.line(&format!(
        "fsync     p50 {:.2} ms, p99 {:.2} ms ({} writes of 4 KiB under {})",
        ms(fsync.p50_us),
        ms(fsync.p99_us),
        fsync.rounds,
        place.display()
    ))?;
    paper.heading(&format!("2  The steps of {NAME}"))?;
    let form = if paper.people() { show::Form::Table } else { show::Form::Lines };
    let mut said = Vec::new();
    let mut rows = show::Show::new(form, &mut said, false);
    let lines = reader::read(STEPS.as_bytes()).map_err(|error| DemoError::System("a thread", error))?;
    let summary = feed::feed(&worker, NAME, &lines, feed::Manner::default(), None, &mut rows)?;
    rows.summary(&summary);
    drop(rows);
    worker.stop()?;
    let said = String::from_utf8_lossy(&said);
    for line in said.lines() {
        paper.line(line)?;
        let result = serde_json::from_str(line).unwrap_or(Value::Null);
        paper.object("step", json!({ "result": result }))?;
    }
    paper.line("line 4 fails once and is tried again, 5 would leave its tenant's folder and is refused, 7 is line 1 again")?;
    let feed::Summary { lines, ok, failed, replayed, took } = summary;
    let took_ms = took.as_millis() as u64;
    paper.object(
        "steps",
        json!({ "steps": lines, "ok": ok, "failed": failed, "answered_from_journal": replayed, "took_ms": took_ms }),
    )?;
    Ok(failed == REFUSED)
}
