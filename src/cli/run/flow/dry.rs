//! What a dry run takes for the outputs of steps: those that a file says, by the steps' ids. Pure.

use std::collections::HashMap;

use crate::blocks::manifest::line;

use super::reference::{Members, escaped};
use super::{FLOW_BYTES_MAX, Flow, Wrong};

/// Outputs that somebody made up, by step. Lives with the run.
#[derive(Debug, Default)]
pub(crate) struct Fixtures(HashMap<String, String>);

impl Fixtures {
    /// Reads them: one JSON object, with outputs by the id of a step of this flow.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub(crate) fn read(text: &[u8], flow: &Flow) -> Result<Fixtures, Vec<Wrong>> {
        let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= FLOW_BYTES_MAX);
        let Some(Members(members)) = text.and_then(|text| Members::read(text.trim_ascii())) else {
            return Err(vec![Wrong::new(
                "",
                format!("one JSON object of at most {FLOW_BYTES_MAX} bytes, with outputs by the id of a step"),
            )]);
        };
        let (mut fixtures, mut wrong) = (HashMap::new(), Vec::new());
        for (id, outputs) in members {
            let pointer = format!("/{}", escaped(&id));
            if flow.steps.iter().all(|step| step.id != id) {
                wrong.push(Wrong::new(&*pointer, "the flow has no such step"));
            }
            if fixtures.insert(id.into_owned(), line(outputs)).is_some() {
                wrong.push(Wrong::new(pointer, "the same step twice"));
            }
        }
        if wrong.is_empty() { Ok(Fixtures(fixtures)) } else { Err(wrong) }
    }

    /// Those of this step.
    pub(crate) fn of(&self, step: &str) -> Option<&str> {
        self.0.get(step).map(String::as_str)
    }
}
