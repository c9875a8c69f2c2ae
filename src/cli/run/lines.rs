//! One line of a file as a message: which tenant it goes to, under which assignment, and how its next attempt is named.
//!
//! Only enough is read here to route a line and to name it; the wire reads it properly, on its shard.

use std::collections::HashMap;

use bytes::Bytes;
use serde::Deserialize;
use shards::ids::{Text, hex};
use shards::step::{Delivery, Origin};

use crate::edge::wire::{HEADER_ASSIGNMENT, HEADER_ATTEMPT, HEADER_SANDBOX, line_subject};

/// A line on its way to its result. Lives with the feeder.
#[derive(Debug)]
pub(crate) struct Line {
    /// Its number, from 1.
    pub(crate) number: u64,
    /// Whose it is; decides the shard.
    pub(crate) tenant: String,
    body: Bytes,
    naming: Naming,
    /// How often the next attempt was asked for.
    bumps: u64,
}

/// How an attempt at a line is named.
#[derive(Debug)]
enum Naming {
    /// By the attempt in its coordinates.
    Attempt { assignment: String, attempt: u64 },
    /// By its assignment id.
    Assignment(String),
}

/// The fields that name a line.
#[derive(Deserialize, Default)]
struct Names<'a> {
    #[serde(borrow, default)]
    assignment_id: Option<std::borrow::Cow<'a, str>>,
    #[serde(borrow, default)]
    tenant_id: Option<std::borrow::Cow<'a, str>>,
    #[serde(borrow, default)]
    context: Option<Context<'a>>,
    #[serde(borrow, default)]
    data: Option<Box<Names<'a>>>,
}

#[derive(Deserialize, Default)]
struct Context<'a> {
    #[serde(borrow, default, alias = "tenantId")]
    tenant_id: Option<std::borrow::Cow<'a, str>>,
    #[serde(borrow, default, alias = "flowId")]
    flow_id: Option<std::borrow::Cow<'a, str>>,
    #[serde(borrow, default, alias = "stepId")]
    step_id: Option<std::borrow::Cow<'a, str>>,
    #[serde(default)]
    attempt: Option<u64>,
}

/// Names the lines of one file: equal lines by their occurrence.
#[derive(Debug, Default)]
pub(crate) struct Namer {
    seen: HashMap<[u8; 8], u64>,
}

impl Namer {
    /// The line with this number and text.
    pub(crate) fn name(&mut self, number: u64, text: &[u8]) -> Line {
        let body = Bytes::copy_from_slice(text);
        // What cannot be read is a line too: it gets its error from the wire.
        let names: Names = serde_json::from_slice(text).unwrap_or_default();
        let names = match names.data {
            Some(inner) => *inner,
            None => names,
        };
        let context = names.context.unwrap_or_default();
        let tenant = names.tenant_id.or(context.tenant_id).map_or_else(|| "local".to_owned(), |tenant| tenant.into_owned());
        let digest = blake3::hash(text);
        let mut short = [0; 8];
        short.copy_from_slice(&digest.as_bytes()[..8]);
        let occurrence = self.seen.entry(short).or_default();
        *occurrence += 1;
        let own = format!("line-{}-{occurrence}", hex(&short));
        let naming = match (names.assignment_id, context.flow_id, context.step_id, context.attempt) {
            (Some(assignment), ..) => Naming::Assignment(assignment.into_owned()),
            (None, Some(_), Some(_), Some(attempt)) => Naming::Attempt { assignment: own, attempt },
            _ => Naming::Assignment(own),
        };
        Line { number, tenant, body, naming, bumps: 0 }
    }
}

impl Line {
    /// Asks for the next attempt from now on.
    pub(crate) fn bump(&mut self) {
        self.bumps += 1;
    }

    /// The line as a message, under its current attempt; `dry`: to be told what it would do.
    pub(crate) fn delivery(&self, file: &str, dry: bool) -> Delivery {
        let mut headers = Vec::with_capacity(3);
        let mut header = |name: &'static str, value: String| headers.push((Text::from_static(name), Text::from(value)));
        if dry {
            header(HEADER_SANDBOX, "true".to_owned());
        }
        match &self.naming {
            Naming::Attempt { assignment, attempt } if self.bumps > 0 => {
                header(HEADER_ASSIGNMENT, format!("{assignment}#{}", self.bumps + 1));
                header(HEADER_ATTEMPT, attempt.saturating_add(self.bumps).to_string());
            }
            Naming::Attempt { assignment, .. } => header(HEADER_ASSIGNMENT, assignment.clone()),
            Naming::Assignment(assignment) if self.bumps > 0 => {
                header(HEADER_ASSIGNMENT, format!("{assignment}#{}", self.bumps + 1));
            }
            Naming::Assignment(assignment) => header(HEADER_ASSIGNMENT, assignment.clone()),
        }
        Delivery { origin: Origin::Line(self.number), subject: line_subject(file), headers, body: self.body.clone(), reply: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(line: &Line) -> Vec<String> {
        line.delivery("f", false).headers.iter().map(|(_, value)| value.to_string()).collect()
    }

    #[test]
    fn equal_lines_are_told_apart_by_their_occurrence() {
        let mut namer = Namer::default();
        let (first, second) = (namer.name(1, b"{\"type\":\"echo\"}"), namer.name(2, b"{\"type\":\"echo\"}"));
        let (first, second) = (headers(&first), headers(&second));
        assert!(first[0].starts_with("line-") && first[0].ends_with("-1"), "{first:?}");
        assert_eq!(second[0], first[0].replace("-1", "-2"));
    }

    #[test]
    fn the_next_attempt_is_named_even_where_the_line_names_one() {
        let text = br#"{"type":"echo","context":{"tenant_id":"t","flow_id":"f","step_id":"s","attempt":4}}"#;
        let mut line = Namer::default().name(1, text);
        assert_eq!(line.tenant, "t");
        assert_eq!(headers(&line).len(), 1, "as sent");
        line.bump();
        assert_eq!(headers(&line)[1], "5");
        let mut line = Namer::default().name(1, br#"{"assignment_id":"a-1","tenant_id":"t"}"#);
        line.bump();
        assert_eq!(headers(&line), ["a-1#2"]);
    }
}
