//! `endstation step show`: what became of a step, from the running worker or, where none runs, from the journal's files.
//!
//! A table for people, or one JSON object a line where the output is not a terminal.

use std::io::{self, Write};
use std::path::Path;

use serde_json::{Map, Value};

use super::config::Form;
use crate::ops::admin::{self, Request};
use crate::ops::timeline::{self, Wanted};

/// The step is known.
pub const EXIT_FOUND: u8 = 0;
/// The journal has nothing about it.
pub const EXIT_UNKNOWN: u8 = 1;
/// The question names no step.
pub const EXIT_USAGE: u8 = 2;

/// What of a frame stands first in the table, after its columns.
const FIRST: [&str; 8] = ["status", "code", "effect", "message", "details", "block", "try", "due"];
/// What the table leaves out: its own columns, and what only programs compare.
const LEFT_OUT: [&str; 9] = ["at", "kind", "shard", "lsn", "key", "asker", "fingerprint", "tenant_seq", "queue_depth"];

/// Prints the frames about a step in the journal under `dir`, and to `err` what else is to be said. Gives the exit code.
///
/// # Errors
/// Where the journal cannot be read or `out` not be written.
pub fn show(dir: &Path, wanted: &Wanted, form: Form, out: &mut impl Write, err: &mut impl Write) -> io::Result<u8> {
    if let Err(what) = wanted.check() {
        writeln!(err, "error: {what}")?;
        return Ok(EXIT_USAGE);
    }
    let (rows, segments, damage) = find(dir, wanted)?;
    for what in &damage {
        writeln!(err, "warning: {what}")?;
    }
    if rows.is_empty() {
        let where_ = dir.display();
        writeln!(err, "nothing is known of this step: {segments} journal segments under {where_} say nothing about it")?;
        return Ok(EXIT_UNKNOWN);
    }
    match form {
        Form::Ndjson => rows.iter().try_for_each(|row| writeln!(out, "{}", Value::Object(row.clone())))?,
        Form::Table => table(&rows, out)?,
    }
    Ok(EXIT_FOUND)
}

/// Rows, how many segments were read, and what could not be.
type Found = (Vec<Map<String, Value>>, u64, Vec<String>);

fn find(dir: &Path, wanted: &Wanted) -> io::Result<Found> {
    let mut rows = Vec::new();
    let mut keep = |row: Value| {
        rows.extend(match row {
            Value::Object(row) => Some(row),
            _ => None,
        });
    };
    if let Ok(stream) = admin::connect(dir) {
        let done = admin::ask(&stream, Request::Step(wanted), |row| {
            keep(row);
            Ok(())
        })?;
        let damage = done["damage"].as_array().into_iter().flatten().filter_map(|what| what.as_str().map(ToOwned::to_owned));
        return Ok((rows, done["segments"].as_u64().unwrap_or_default(), damage.collect()));
    }
    let timeline = timeline::read(dir, wanted)?;
    for row in &timeline.rows {
        keep(serde_json::to_value(row).map_err(io::Error::other)?);
    }
    Ok((rows, timeline.segments, timeline.damage))
}

fn table(rows: &[Map<String, Value>], out: &mut impl Write) -> io::Result<()> {
    let mut key = "";
    for row in rows {
        let text = |name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default();
        if text("key") != key {
            key = row.get("key").and_then(Value::as_str).unwrap_or_default();
            writeln!(out, "key {}", visible(key))?;
        }
        let number = |name: &str| row.get(name).and_then(Value::as_u64).unwrap_or_default();
        let place = format!("{}/{}", number("shard"), number("lsn"));
        write!(out, "  {:27}  {:11}  {place:>10} ", visible(text("at")), visible(text("kind")))?;
        let first = FIRST.iter().filter_map(|name| row.get_key_value(*name));
        let shown = |name: &str| !FIRST.contains(&name) && !LEFT_OUT.contains(&name);
        for (name, value) in first.chain(row.iter().filter(|(name, _)| shown(name))) {
            let value = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
            write!(out, " {}={}", visible(name), visible(&value))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// Subjects and tenants are a sender's words: control characters would let them rewrite the terminal.
pub(crate) fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::timeline::tests::{coordinates, write};
    use anyhow::Result;

    fn shown(dir: &Path, wanted: &Wanted, form: Form) -> Result<(u8, String, String)> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = show(dir, wanted, form, &mut out, &mut err)?;
        Ok((code, String::from_utf8(out)?, String::from_utf8(err)?))
    }

    #[test]
    fn the_same_is_shown_with_and_without_a_worker() -> Result<()> {
        let dir = tempfile::tempdir()?;
        write(dir.path())?;
        let cold = shown(dir.path(), &coordinates(), Form::Ndjson)?;
        let worker = admin::spawn(
            dir.path(),
            admin::Desk { drain: None, people: crate::ops::people::People::new(Vec::new()), links: None },
        )?;
        let live = shown(dir.path(), &coordinates(), Form::Ndjson)?;
        drop(worker);
        assert_eq!(cold, live);
        assert_eq!((cold.0, cold.1.lines().count()), (EXIT_FOUND, 4));
        let last: Value = serde_json::from_str(cold.1.lines().last().unwrap_or_default())?;
        assert_eq!(last["kind"], "published");
        Ok(())
    }

    #[test]
    fn the_table_names_the_key_once() -> Result<()> {
        let dir = tempfile::tempdir()?;
        write(dir.path())?;
        let (code, table, _) = shown(dir.path(), &coordinates(), Form::Table)?;
        assert_eq!((code, table.lines().count()), (EXIT_FOUND, 5), "{table}");
        assert_eq!(table.matches("key ").count(), 1);
        assert!(table.contains("status=error code=EXECUTION_FAILED") && table.contains("  result       "), "{table}");
        Ok(())
    }

    #[test]
    fn unknown_steps_and_bad_questions_have_their_own_codes() -> Result<()> {
        let dir = tempfile::tempdir()?;
        write(dir.path())?;
        let (code, out, err) = shown(dir.path(), &Wanted { attempt: Some(9), ..coordinates() }, Form::Table)?;
        assert_eq!((code, out.as_str()), (EXIT_UNKNOWN, ""));
        assert!(err.contains("1 journal segments"), "{err}");
        assert_eq!(shown(dir.path(), &Wanted::default(), Form::Table)?.0, EXIT_USAGE);
        Ok(())
    }
}
