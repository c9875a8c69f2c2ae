//! `endstation config check` and `config show`: what the worker would do with the configuration it is given.
//!
//! A table for people, or one JSON object a line where the output is not a terminal.

use std::io::{self, IsTerminal, Write};

use serde_json::{Map, Value, json};
use shards::runtime::disk::reshard::{Due, due};
use shards::runtime::layout::Layout;

use crate::config::{ConfigError, ConfigFault};
use crate::policy::Policy;
use crate::settings::Settings;

/// The configuration can be used.
pub const EXIT_OK: u8 = 0;
/// It cannot.
pub const EXIT_CONFIG: u8 = 3;

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Columns, for people.
    Table,
    /// One JSON object a line, for programs.
    Ndjson,
}

impl Form {
    /// The form that suits standard output as it is.
    pub fn of_stdout() -> Form {
        if io::stdout().is_terminal() { Form::Table } else { Form::Ndjson }
    }
}

/// Says whether the configuration can be used, and everything that is wrong with it. Gives the exit code.
///
/// # Errors
/// Where `out` cannot be written.
pub fn check(loaded: &Result<Settings, ConfigError>, form: Form, out: &mut impl Write) -> io::Result<u8> {
    let settings = match loaded {
        Ok(settings) => settings,
        Err(error) => return faults(error, form, out),
    };
    if let Err(error) = Policy::new(settings.policy.clone(), false) {
        match form {
            Form::Table => writeln!(out, "error: {error}")?,
            Form::Ndjson => writeln!(out, "{}", json!({ "ok": false, "error": error.to_string() }))?,
        }
        return Ok(EXIT_CONFIG);
    }
    let rows = settings.rows();
    let set = rows.iter().filter(|row| row.origin != crate::config::Origin::Default).count();
    match form {
        Form::Table => {
            writeln!(out, "ok: {set} of {} keys are set, the others have their defaults", rows.len())?;
            if let Some((Due { was, needed, free }, now)) = rewrite(settings) {
                writeln!(
                    out,
                    "note: {was} shards wrote the journal in {}, and there are {now} now: the next start rewrites it once, for which \
                     up to {needed} bytes are needed and {free} are free",
                    settings.storage_dir.display()
                )?;
            }
        }
        Form::Ndjson => {
            let mut line = json!({"ok": true, "keys": rows.len(), "set": set});
            if let Some((Due { was, needed, free }, now)) = rewrite(settings) {
                line["journal_rewrite"] =
                    json!({"shards_before": was, "shards": now, "bytes_needed": needed, "bytes_free": free});
            }
            writeln!(out, "{line}")?;
        }
    }
    Ok(EXIT_OK)
}

/// The rewrite that the next start begins with, and for how many shards. What cannot be read is told by that start.
fn rewrite(settings: &Settings) -> Option<(Due, u16)> {
    let cores = &settings.cores;
    let layout = Layout::resolve(cores, &Layout::allowed()).ok()?;
    let now = u16::try_from(layout.shards.len()).ok()?;
    due(&settings.storage_dir, now).ok()?.map(|due| (due, now))
}

/// Prints every key with its value, secrets hidden, and with `origin` where it came from. Gives the exit code.
///
/// # Errors
/// Where `out` cannot be written.
pub fn show(loaded: &Result<Settings, ConfigError>, origin: bool, form: Form, out: &mut impl Write) -> io::Result<u8> {
    let settings = match loaded {
        Ok(settings) => settings,
        Err(error) => return faults(error, form, out),
    };
    let width = |of: fn(&crate::settings::Row) -> usize| settings.rows().iter().map(of).max().unwrap_or(0);
    let (keys, values) = (width(|row| row.key.len()), width(|row| row.value.chars().count()));
    for row in settings.rows() {
        match form {
            Form::Table => {
                let mut line = format!("{:keys$}  {}", row.key, row.value);
                if origin {
                    line = format!("{:keys$}  {:values$}  {}", row.key, row.value, row.origin);
                }
                writeln!(out, "{}", line.trim_end())?;
            }
            Form::Ndjson => {
                let mut line = json!({"key": row.key, "value": row.value});
                if origin {
                    line["origin"] = Value::from(row.origin.to_string());
                }
                writeln!(out, "{line}")?;
            }
        }
    }
    Ok(EXIT_OK)
}

fn faults(error: &ConfigError, form: Form, out: &mut impl Write) -> io::Result<u8> {
    for fault in &error.faults {
        match form {
            Form::Table => writeln!(out, "error: {fault}")?,
            Form::Ndjson => writeln!(out, "{}", fault_line(fault))?,
        }
    }
    Ok(EXIT_CONFIG)
}

fn fault_line(fault: &ConfigFault) -> Value {
    let mut line = Map::new();
    line.insert("ok".to_owned(), Value::from(false));
    line.insert("error".to_owned(), Value::from(fault.to_string()));
    let mut put = |name: &str, value: String| line.insert(name.to_owned(), Value::from(value));
    match fault {
        ConfigFault::Unreadable { path, .. } => {
            put("origin", format!("file {path}"));
        }
        ConfigFault::Syntax { origin, .. } => {
            put("origin", origin.to_string());
        }
        ConfigFault::UnknownKey { key, origin, .. } => {
            put("key", key.clone());
            put("origin", origin.to_string());
        }
        ConfigFault::BadValue { key, value, rule, origin } => {
            put("key", (*key).clone().into_owned());
            put("value", value.clone());
            put("rule", rule.clone());
            put("origin", origin.to_string());
        }
    }
    Value::Object(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Result;

    fn load(flags: &[(&str, &str, &str)]) -> std::result::Result<Settings, ConfigError> {
        let empty = tempfile::NamedTempFile::new().expect("the temporary folder can be written");
        Settings::load(Some(empty.path()), std::iter::empty(), flags)
    }

    #[test]
    fn show_prints_one_line_a_key_and_the_origin_only_when_asked() -> Result<()> {
        let loaded = load(&[("nats.token", "hush", "--nats-token")]);
        let (mut plain, mut full, mut lines) = (Vec::new(), Vec::new(), Vec::new());
        assert_eq!(show(&loaded, false, Form::Table, &mut plain)?, EXIT_OK);
        assert_eq!(show(&loaded, true, Form::Table, &mut full)?, EXIT_OK);
        assert_eq!(show(&loaded, true, Form::Ndjson, &mut lines)?, EXIT_OK);
        let (plain, full, lines) = (String::from_utf8(plain)?, String::from_utf8(full)?, String::from_utf8(lines)?);
        assert!(plain.lines().any(|line| line.split_whitespace().eq(["nats.mode", "auto"])), "{plain}");
        assert!(full.lines().any(|line| line.split_whitespace().eq(["nats.mode", "auto", "default"])), "{full}");
        assert!(lines.contains(r#"{"key":"nats.token","origin":"flag --nats-token","value":"[REDACTED]"}"#), "{lines}");
        assert!(!full.contains("hush") && !lines.contains("hush"));
        Ok(())
    }

    #[test]
    fn check_says_every_fault_and_exits_with_3() -> Result<()> {
        let loaded = load(&[("nats.mode", "fast", "--mode"), ("nats.urll", "x", "--x")]);
        let (mut table, mut lines) = (Vec::new(), Vec::new());
        assert_eq!(check(&loaded, Form::Table, &mut table)?, EXIT_CONFIG);
        assert_eq!(check(&loaded, Form::Ndjson, &mut lines)?, EXIT_CONFIG);
        let table = String::from_utf8(table)?;
        assert_eq!(table.lines().count(), 2, "{table}");
        assert!(table.contains("error: nats.mode = fast: must be one of auto, jetstream, core (flag --mode)"), "{table}");
        let first: Value = serde_json::from_slice(lines.split(|b| *b == b'\n').nth(1).unwrap_or_default())?;
        assert_eq!(first["key"], "nats.mode");
        assert_eq!(first["origin"], "flag --mode");
        Ok(())
    }

    #[test]
    fn check_of_a_good_configuration_exits_with_0() -> Result<()> {
        let mut out = Vec::new();
        assert_eq!(check(&load(&[("log.level", "debug", "--log")]), Form::Ndjson, &mut out)?, EXIT_OK);
        assert!(String::from_utf8(out)?.contains(r#""set":1"#));
        Ok(())
    }
}
