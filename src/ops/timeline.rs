//! What became of a step: the journal's own frames about one key, read from its files without touching them.
//!
//! Works beside a running worker: the tail of a live segment may be half written, which ends the reading of that segment
//! and is no fault. Nothing of inputs, outputs or message bodies is shown, only their sizes.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use shards::ids::{Identity, Key, Lsn, Salt, unhex};
use shards::journal::batch::Batch;
use shards::journal::scan::Scan;
use shards::journal::segment::{SEGMENT_HEAD_BYTES, SegmentHead};
use shards::journal::view::Frames;
use shards::journal::{Answer, Fact, FrameView, Message, Peek, SOURCE_LINE, SOURCE_STREAM, decode};
use shards::outcome::{Outcome, Status};
use shards::step::EffectClass;

use super::logs::{redact, stamp};

/// Which step, as it is asked for: by key, by coordinates, or by assignment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// K in 32 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Whose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Which run of the flow, if the step named one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// Which flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<String>,
    /// Which step of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Which attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u64>,
    /// Which assignment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assignment: Option<String>,
}

/// The same, complete.
enum Query<'a> {
    Key(Key),
    Coordinates(Identity<'a>),
    Assignment(&'a str, &'a str),
}

impl Wanted {
    /// Whether it names a step.
    ///
    /// # Errors
    /// What is missing or too much.
    pub fn check(&self) -> Result<(), &'static str> {
        self.query().map(drop)
    }

    fn query(&self) -> Result<Query<'_>, &'static str> {
        let Wanted { key, tenant, run, flow, step, attempt, assignment } = self;
        let coordinates = run.is_some() || flow.is_some() || step.is_some() || attempt.is_some();
        match (key, tenant, assignment) {
            (Some(key), None, None) if !coordinates => Ok(Query::Key(Key(unhex(key).ok_or("a key is 32 hexadecimal digits")?))),
            (Some(_), ..) => Err("a key names the step alone: leave the other parts out"),
            (None, None, _) => Err("name a key, or the tenant and either flow, step and attempt or an assignment"),
            (None, Some(tenant), Some(assignment)) if !coordinates => Ok(Query::Assignment(tenant, assignment)),
            (None, Some(_), Some(_)) => Err("name either an assignment or flow, step and attempt"),
            (None, Some(tenant), None) => match (flow, step, attempt) {
                (Some(flow), Some(step), Some(attempt)) => {
                    let run = run.as_deref();
                    Ok(Query::Coordinates(Identity::Coordinates { tenant, run, flow, step, attempt: *attempt }))
                }
                _ => Err("flow, step and attempt are needed together, or an assignment"),
            },
        }
    }
}

/// One frame, for people and programs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// When, RFC 3339; absent where the frame does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// The frame's kind, in lower case.
    pub kind: &'static str,
    /// Whose journal.
    pub shard: u16,
    /// Where in it.
    pub lsn: u64,
    /// The frame's own key.
    pub key: String,
    /// What it says.
    #[serde(flatten)]
    pub says: Map<String, Value>,
}

/// All frames about a step.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    /// In the order of the journal.
    pub rows: Vec<Row>,
    /// Segments read.
    pub segments: u64,
    /// What could not be read.
    pub damage: Vec<String>,
}

/// Reads every segment under `dir` for frames about a step.
///
/// # Errors
/// The question is incomplete, or a folder cannot be read; a file that cannot be is listed as damage.
pub fn read(dir: &Path, wanted: &Wanted) -> io::Result<Timeline> {
    let query = wanted.query().map_err(|what| io::Error::new(io::ErrorKind::InvalidInput, what))?;
    let mut timeline = Timeline::default();
    let mut bytes = Vec::new();
    for (_, generation) in numbered(dir, "")? {
        for (_, shard) in numbered(&generation, "")? {
            let mut search = Search { query: &query, keys: HashSet::new() };
            for (_, path) in numbered(&shard, ".seg")? {
                if let Err(what) = segment(&path, &mut bytes, &mut search, &mut timeline) {
                    timeline.damage.push(format!("{}: {what}", path.display()));
                }
            }
        }
    }
    Ok(timeline)
}

/// Entries of `folder` named by a number and `suffix`, in order; none where there is no such folder.
fn numbered(folder: &Path, suffix: &str) -> io::Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|name| name.strip_suffix(suffix)?.parse().ok());
        found.extend(number.map(|number| (number, entry.path())));
    }
    found.sort_unstable();
    Ok(found)
}

fn segment(path: &Path, bytes: &mut Vec<u8>, search: &mut Search<'_>, timeline: &mut Timeline) -> Result<(), String> {
    bytes.clear();
    match fs::File::open(path).and_then(|mut file| io::Read::read_to_end(&mut file, bytes)) {
        // It was old enough to go while we looked.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.map_err(|error| error.to_string())?,
    };
    if bytes.len() < SEGMENT_HEAD_BYTES || bytes[..8] == [0; 8] {
        return Ok(()); // prepared and not yet begun
    }
    let head = SegmentHead::decode(bytes).map_err(|error| error.to_string())?;
    timeline.segments += 1;
    search.keys.extend(search.by_name(&head.salt));
    let mut scan = Scan::new(&head, bytes, Lsn(0));
    for batch in &mut scan {
        if let Err(error) = frames(&batch, &head, search, timeline) {
            return Err(error.to_string());
        }
    }
    scan.finish().map(drop).map_err(|fault| format!("{} at byte {}", fault.damage, fault.offset))
}

fn frames(
    batch: &Batch<'_>,
    head: &SegmentHead,
    search: &mut Search<'_>,
    timeline: &mut Timeline,
) -> Result<(), shards::journal::CodecError> {
    for (lsn, raw) in (batch.head.first_lsn.0..).zip(Frames::new(batch.frames)) {
        let view = FrameView::parse(raw?)?;
        if search.about(&view, &head.salt)? {
            timeline.rows.push(row(head.shard, lsn, view)?);
        }
    }
    Ok(())
}

/// What is looked for; grows as an assignment is found under its step's own key.
struct Search<'a> {
    query: &'a Query<'a>,
    keys: HashSet<Key>,
}

impl Search<'_> {
    /// The keys that follow from the question alone.
    fn by_name(&self, salt: &Salt) -> Vec<Key> {
        match self.query {
            Query::Key(key) => vec![*key],
            Query::Coordinates(identity) => vec![salt.key(*identity)],
            Query::Assignment(tenant, assignment) => {
                vec![salt.key(Identity::Assignment { tenant, assignment }), salt.answer_key(tenant, assignment)]
            }
        }
    }

    fn about(&mut self, view: &FrameView<'_>, salt: &Salt) -> Result<bool, shards::journal::CodecError> {
        let key = view.key();
        if self.keys.contains(&key) {
            return Ok(true);
        }
        let (asker, of) = match view.peek()? {
            Peek::Accepted(peek) => (peek.asker, None),
            Peek::Result(peek) => (peek.asker, None),
            Peek::Published { asker, .. } => (asker, None),
            Peek::Answer(peek) => (peek.asker, peek.of),
            _ => return Ok(false),
        };
        if of.is_some_and(|of| self.keys.contains(&of)) {
            return Ok(true);
        }
        let Query::Assignment(_, assignment) = self.query else { return Ok(false) };
        let asked = asker == salt.asker(key, assignment);
        if asked {
            self.keys.insert(key);
        }
        Ok(asked)
    }
}

fn row(shard: u16, lsn: u64, view: FrameView<'_>) -> Result<Row, shards::journal::CodecError> {
    let frame = decode(&Bytes::copy_from_slice(view.raw()))?;
    let (kind, at_ms, says) = match &frame.fact {
        Fact::Accepted(fact) => {
            let mut says = fields(json!({
                "tenant": &*fact.tenant, "block": &*fact.block, "effect_class": class(fact.effect),
                "deadline": time(fact.deadline_ms), "not_after": time(fact.not_after_ms),
                "fingerprint": fact.fingerprint.to_string(), "asker": fact.asker.to_string(),
            }));
            says.extend(message(&fact.message));
            says.extend(fact.replay_of.map(|key| ("replay_of".to_owned(), Value::from(key.to_string()))));
            ("accepted", Some(fact.received_ms), says)
        }
        Fact::Started { try_number, boot, at_ms } => ("started", Some(*at_ms), fields(json!({"try": try_number, "boot": boot}))),
        Fact::RetryAt { try_number, at_ms } => ("retry_at", None, fields(json!({"try": try_number, "due": time(*at_ms)}))),
        Fact::Result(fact) => {
            let mut says = outcome(&fact.outcome);
            says.extend(fields(json!({
                "tenant": &*fact.tenant, "block": &*fact.block, "asker": fact.asker.to_string(),
                "tenant_seq": fact.audit.tenant_seq,
            })));
            ("result", Some(fact.outcome.ended_ms), says)
        }
        Fact::Published { asker, at_ms } => ("published", Some(*at_ms), fields(json!({"asker": asker.to_string()}))),
        Fact::Answer(fact) => ("answer", Some(fact.outcome.ended_ms), answer(fact)),
        Fact::Quarantined(fact) => ("quarantined", Some(fact.outcome.ended_ms), answer(fact)),
        Fact::Mark { .. } => ("mark", None, Map::new()),
        Fact::Struck { strikes, boot, at_ms } => ("struck", Some(*at_ms), fields(json!({"strikes": strikes, "boot": boot}))),
        Fact::Unknown(_) => ("unknown", None, Map::new()),
    };
    Ok(Row { at: at_ms.map(time), kind, shard, lsn, key: frame.key.to_string(), says })
}

fn answer(fact: &Answer) -> Map<String, Value> {
    let mut says = outcome(&fact.outcome);
    says.insert("tenant".to_owned(), Value::from(&*fact.tenant));
    says.insert("asker".to_owned(), Value::from(fact.asker.to_string()));
    says.extend(fact.of.map(|key| ("of".to_owned(), Value::from(key.to_string()))));
    says.extend(message(&fact.message));
    says
}

fn outcome(outcome: &Outcome) -> Map<String, Value> {
    let mut says = fields(json!({
        "status": status(outcome.status), "effect": outcome.effect.as_str(), "tries": outcome.tries,
        "ran_us": outcome.ran_us, "received": time(outcome.received_ms), "boot": outcome.boot,
        "output_bytes": outcome.outputs.len(), "queue_depth": outcome.queue_depth,
    }));
    if let Some(fault) = &outcome.fault {
        says.insert("code".to_owned(), Value::from(fault.code.as_str()));
        says.insert("message".to_owned(), Value::from(&*fault.message));
        if let Ok(details) = serde_json::from_slice(&fault.details) {
            says.insert("details".to_owned(), redact("", details));
        }
    }
    says
}

fn message(message: &Message) -> Map<String, Value> {
    let source = match message.source {
        SOURCE_LINE => "line",
        SOURCE_STREAM => "stream",
        _ => "core",
    };
    fields(json!({
        "source": source, "sequence": message.sequence, "subject": &*message.subject, "message_bytes": message.body.len(),
    }))
}

fn fields(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

fn time(ms: u64) -> String {
    let moment = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    moment.map_or_else(|| ms.to_string(), stamp)
}

fn status(status: Status) -> &'static str {
    match status {
        Status::Ok => "success",
        Status::Error => "error",
        Status::Timeout => "timeout",
        Status::Cancelled => "cancelled",
        Status::Quarantined => "quarantined",
    }
}

fn class(effect: EffectClass) -> &'static str {
    match effect {
        EffectClass::Pure => "pure",
        EffectClass::Idempotent => "idempotent",
        EffectClass::Transactional => "transactional",
        EffectClass::Conditional => "conditional",
        EffectClass::Unsafe => "unsafe",
    }
}

#[cfg(test)]
#[path = "timeline/tests.rs"]
pub(crate) mod tests;
