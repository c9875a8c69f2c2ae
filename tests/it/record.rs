//! What the chaos runs did: a summary line on stderr, and a JSON line where `ENDSTATION_IT_RECORD` names a file.

use std::io::Write as _;

use anyhow::Result;
use serde_json::Value;

/// A count that the environment may raise for a longer run.
pub(crate) fn count(name: &str, default: u32) -> u32 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Says what a run did, and keeps it where a file is named.
pub(crate) fn summary(scenario: &str, mut facts: Value) -> Result<()> {
    facts["scenario"] = scenario.into();
    eprintln!("{scenario}: {facts}");
    if let Some(path) = std::env::var_os("ENDSTATION_IT_RECORD") {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
        writeln!(file, "{facts}")?;
    }
    Ok(())
}
