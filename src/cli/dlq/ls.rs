//! `endstation dlq ls`: one row a letter, from head and headers alone; the newest are kept, whatever there is.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

use serde::Serialize;

use super::stream::Wanted;
use super::{Letter, LsArgs, Sight};
use crate::cli::EXIT_OK;
use crate::cli::config::Form;
use crate::cli::step::visible;
use crate::dlq::Why;
use crate::ops::logs::stamp;
use crate::settings::Settings;

/// One letter, for people and programs.
#[derive(Clone, Debug, Serialize)]
struct Row {
    at: String,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Where the message came on.
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    bytes: u64,
    /// `store`, `stream` or `both`.
    found_in: &'static str,
    /// What the store knows of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<u64>,
}

/// Rows in the order of their time, the newest of them.
struct Rows<'a> {
    args: &'a LsArgs,
    rows: BTreeMap<(u64, String), Row>,
    times: HashMap<String, u64>,
    left_out: u64,
}

/// Prints the letters that `args` ask for. Gives the exit code.
pub(super) fn main(args: &LsArgs, settings: &Settings, form: Form, out: &mut impl Write, err: &mut impl Write) -> io::Result<u8> {
    let mut rows = Rows { args, rows: BTreeMap::new(), times: HashMap::new(), left_out: 0 };
    // A letter may have been stored long before it was sent: what is in both is met from both.
    let wanted = Wanted { bodies: false, since_ms: args.since };
    let sight = Sight::read(settings, &args.place, &wanted, err, |letter| rows.take(&letter))?;
    match form {
        Form::Ndjson => rows.rows.values().try_for_each(|row| {
            serde_json::to_writer(&mut *out, row).map_err(io::Error::from)?;
            out.write_all(b"\n")
        })?,
        Form::Table => table(rows.rows.values(), out)?,
    }
    if rows.left_out > 0 {
        writeln!(err, "{} older letters are not shown: --limit 0 shows all", rows.left_out)?;
    }
    Ok(sight.code(EXIT_OK))
}

impl Rows<'_> {
    fn take(&mut self, letter: &Letter<'_>) {
        let (at_ms, row) = match letter {
            Letter::Stored(found, _) => {
                let text = |name: &str| found.head.header(name).map(str::to_owned);
                let state = match (found.sent, found.head.why) {
                    (true, _) => "sent",
                    (false, Why::TooLarge) => "kept, too large to send",
                    (false, _) => "waiting",
                };
                let row = Row {
                    at: time(found.head.stored_ms),
                    id: found.head.id.clone(),
                    tenant: text("tenant_id"),
                    reason: text("x-dlq-reason"),
                    subject: text("x-original-subject"),
                    bytes: found.body_bytes,
                    found_in: "store",
                    state: Some(state),
                    stream: None,
                    sequence: None,
                };
                (found.head.stored_ms, row)
            }
            Letter::Streamed(found) => {
                if let Some(known) = self.times.get(&found.id).and_then(|at| self.rows.get_mut(&(*at, found.id.clone()))) {
                    (known.stream, known.sequence) = (Some(found.stream.clone()), Some(found.sequence));
                    if known.found_in == "store" {
                        known.found_in = "both";
                    }
                    return;
                }
                let text = |name: &str| found.header(name).map(str::to_owned);
                let row = Row {
                    at: time(found.stored_ms),
                    id: found.id.clone(),
                    tenant: text("tenant_id"),
                    reason: text("x-dlq-reason"),
                    subject: text("x-original-subject"),
                    bytes: found.body_bytes,
                    found_in: "stream",
                    state: None,
                    stream: Some(found.stream.clone()),
                    sequence: Some(found.sequence),
                };
                (found.stored_ms, row)
            }
        };
        let args = self.args;
        let other = |wanted: &Option<String>, is: &Option<String>| {
            wanted.as_ref().is_some_and(|wanted| is.as_ref().is_none_or(|is| !is.eq_ignore_ascii_case(wanted)))
        };
        let foreign = args.tenant.is_some() && args.tenant != row.tenant;
        if foreign || other(&args.reason, &row.reason) || args.since.is_some_and(|since| at_ms < since) {
            return;
        }
        self.times.insert(row.id.clone(), at_ms);
        self.rows.insert((at_ms, row.id.clone()), row);
        if args.limit > 0
            && self.rows.len() > args.limit
            && let Some(((_, id), _)) = self.rows.pop_first()
        {
            self.times.remove(&id);
            self.left_out += 1;
        }
    }
}

fn table<'a>(rows: impl Iterator<Item = &'a Row>, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{:27}  {:16}  {:22}  {:7}  {:>9}  id", "at", "tenant", "reason", "in", "bytes")?;
    for row in rows {
        let text = |text: &Option<String>| visible(text.as_deref().unwrap_or("-"));
        let (tenant, reason) = (text(&row.tenant), text(&row.reason));
        let id = visible(&row.id);
        let state = row.state.filter(|state| *state != "sent").map_or(String::new(), |state| format!("  ({state})"));
        writeln!(out, "{:27}  {tenant:16}  {reason:22}  {:7}  {:>9}  {id}{state}", row.at, row.found_in, row.bytes)?;
    }
    Ok(())
}

fn time(unix_ms: u64) -> String {
    jiff::Timestamp::from_millisecond(unix_ms as i64).map(stamp).unwrap_or_default()
}
