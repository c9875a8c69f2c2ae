//! What became of a step: the journal's own frames about one key, read from its files without touching them.
//!
//! Works beside a running worker: the tail of a live segment may be half written, which ends the reading of that segment
//! and is no fault. Nothing of inputs, outputs or message bodies is shown, only their sizes.

mod row;

use std::collections::HashSet;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use shards::ids::{Identity, Key, Salt, unhex};
use shards::journal::{FrameView, Peek};

use super::journal::{Finding, Journal, Stop};

pub use row::Row;
pub(crate) use row::{row, time};

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
    let journal = match Journal::open(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(timeline),
        journal => journal?,
    };
    let mut buffer = Vec::new();
    for folder in &journal.folders {
        timeline.damage.extend(folder.findings.iter().map(Finding::to_string));
        let mut search = Search { query: &query, keys: HashSet::new() };
        for segment in &folder.segments {
            let salt = &segment.head.salt;
            search.keys.extend(search.by_name(salt));
            let read = segment.read(&mut buffer, |place, view| {
                if search.about(&view, salt)? {
                    timeline.rows.push(row(folder.shard, place.lsn.0, view, false)?);
                }
                Ok(())
            });
            match read {
                // It was old enough to go while we looked.
                Ok(None) => continue,
                Ok(Some(_)) => {}
                Err(Stop::Wrong(finding)) => timeline.damage.push(finding.to_string()),
                Err(Stop::Taker(error)) => return Err(error),
            }
            timeline.segments += 1;
        }
    }
    Ok(timeline)
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

#[cfg(test)]
#[path = "timeline/tests.rs"]
pub(crate) mod tests;
