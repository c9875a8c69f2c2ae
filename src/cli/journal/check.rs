//! `endstation journal check`: one line a shard with all that is in it, and a last one that says whether all of it is sound.

use std::io::{self, Write};
use std::path::Path;

use serde_json::{Map, Value, json};
use shards::journal::Kind;
use shards::runtime::disk::is_held;

use super::{code, open, size, tell};
use crate::cli::config::Form;
use crate::ops::journal::survey::{self, Survey};
use crate::ops::journal::{Finding, Torn};

/// Checks the journal under `dir`. Gives the exit code.
pub(super) fn main(dir: &Path, form: Form, out: &mut impl Write, err: &mut impl Write) -> io::Result<u8> {
    let journal = match open(dir, err)? {
        Ok(journal) => journal,
        Err(code) => return Ok(code),
    };
    let surveys = survey::all(&journal);
    for survey in &surveys {
        match form {
            Form::Table => table(survey, out)?,
            Form::Ndjson => writeln!(out, "{}", line(survey))?,
        }
    }
    let findings: Vec<&Finding> = surveys.iter().flat_map(|survey| &survey.findings).collect();
    let torn = surveys.iter().map(|survey| survey.torn.len()).sum::<usize>();
    match form {
        Form::Table => match (findings.len(), torn) {
            (0, 0) => writeln!(out, "sound")?,
            (0, _) => writeln!(out, "sound; a write never finished, as after a crash and while a worker writes")?,
            (count, _) => writeln!(out, "not sound: {count} found")?,
        },
        Form::Ndjson => {
            let (sound, count, in_use) = (findings.is_empty(), findings.len(), is_held(dir));
            let whole = json!({"sound": sound, "shards": surveys.len(), "findings": count, "torn": torn, "in_use": in_use});
            writeln!(out, "{whole}")?;
        }
    }
    Ok(code(findings.into_iter()))
}

/// How many frames of each kind there are, by name; kinds without frames are left out.
fn kinds(survey: &Survey) -> Map<String, Value> {
    let known = Kind::ALL.into_iter().map(|kind| (kind.name(), survey.frames[usize::from(kind as u8)]));
    let all = known.chain([("unknown", survey.frames[0])]).filter(|(_, count)| *count > 0);
    all.map(|(name, count)| (name.to_owned(), Value::from(count))).collect()
}

fn line(survey: &Survey) -> Value {
    let torn = |torn: &Torn| json!({"file": torn.path.display().to_string(), "offset": torn.offset, "bytes": torn.bytes});
    json!({
        "generation": survey.generation, "shard": survey.shard, "segments": survey.spans.len(), "prepared": survey.prepared,
        "bytes": survey.bytes, "frames": kinds(survey),
        "first_lsn": survey.first_lsn.map(|lsn| lsn.0), "last_lsn": survey.last_lsn.map(|lsn| lsn.0),
        "torn": survey.torn.iter().map(torn).collect::<Vec<_>>(),
        "findings": survey.findings.iter().map(Finding::line).collect::<Vec<_>>(),
        "keys": survey.keys, "unfinished": survey.unfinished(), "unpublished": survey.unpublished(),
    })
}

fn table(survey: &Survey, out: &mut impl Write) -> io::Result<()> {
    let lsns = match (survey.first_lsn, survey.last_lsn) {
        (Some(first), Some(last)) => format!("lsn {} to {}", first.0, last.0),
        _ => "no frames".to_owned(),
    };
    writeln!(out, "shard {}: {} segments, {}, {lsns}", survey.shard, survey.spans.len(), size(survey.bytes))?;
    let kinds: Vec<String> = kinds(survey).iter().map(|(name, count)| format!("{name} {count}")).collect();
    if !kinds.is_empty() {
        writeln!(out, "  {}", kinds.join(", "))?;
    }
    let (unfinished, unpublished) = (survey.unfinished(), survey.unpublished());
    writeln!(out, "  {} keys, {unfinished} steps unfinished, {unpublished} outcomes unpublished", survey.keys)?;
    for Torn { path, offset, bytes } in &survey.torn {
        let path = path.display();
        writeln!(
            out,
            "  torn tail: {path} at byte {offset}, {bytes} bytes of a write that never finished; the next start cuts it"
        )?;
    }
    survey.findings.iter().try_for_each(|finding| tell(finding, out))
}
