//! What a run did: lines for people, and a JSON line where `FUZZ_RECORD` names a file.

use std::io::Write as _;

use serde_json::json;

use crate::run::Report;

/// Says what a run did, and keeps it where a file is named.
pub fn summary(name: &str, seed: u64, report: &Report) {
    let Report { executions, seconds, outcomes, distinct } = report;
    let rate = *executions as f64 / seconds;
    println!("{name}: {executions} executions in {seconds:.1} s ({rate:.0}/s), {distinct} distinct outcomes, FUZZ_SEED={seed}");
    for (what, count) in outcomes {
        println!("{count:>12} {what}");
    }
    append(&json!({
        "fuzz": name,
        "executions": executions,
        "seconds": (seconds * 10.0).round() / 10.0,
        "per_second": rate.round(),
        "distinct": distinct,
        "outcomes": outcomes,
        "seed": seed,
    }));
}

/// Says what a test that tries everything did, and keeps it where a file is named.
pub fn line(name: &str, what: &serde_json::Value) {
    println!("{name}: {what}");
    append(&json!({ "fuzz": name, "exhaustive": what }));
}

fn append(line: &serde_json::Value) {
    let Some(path) = std::env::var_os("FUZZ_RECORD") else { return };
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
    file.and_then(|mut file| writeln!(file, "{line}")).unwrap_or_else(|error| panic!("FUZZ_RECORD {path:?}: {error}"));
}
