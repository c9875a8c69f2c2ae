//! What a file or pipe holds: a flow, or steps, one a line. Told by its first line as a rule, so that a pipe's first step need
//! not wait for its second.
//!
//! A flow is one JSON object with `steps` that is no step itself (it has none of `type`, `job` and `data`), on one line or on
//! several. Everything else is lines; what is wrong with one of these is told for that line alone.

use std::io::{self, BufRead, BufReader, Cursor, Read};

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::flow::FLOW_BYTES_MAX;

/// See the module.
pub(crate) enum Input {
    /// Steps, one a line.
    Lines(Box<dyn Read + Send>),
    /// The text of a flow.
    Flow(Vec<u8>),
}

/// Why an input can be taken for neither.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// It goes on like a flow and is no JSON.
    #[error("taken for a flow, since its first line begins an object that goes on in the next: {0}")]
    Broken(serde_json::Error),
    /// A flow, and something behind it.
    #[error("taken for a flow, since its first line is an object with steps; there is more behind it, and a flow stands alone")]
    More,
    /// An object over several lines that is no flow.
    #[error("neither a flow nor steps: one object over several lines without \"steps\"; a step stands on one line")]
    Neither,
    /// More than a flow may be.
    #[error(
        "taken for a flow, since its first line begins an object that goes on in the next: larger than {} bytes",
        FLOW_BYTES_MAX
    )]
    Large,
}

/// What tells a flow from a step.
#[derive(Deserialize)]
struct Shape {
    steps: Option<IgnoredAny>,
    #[serde(rename = "type")]
    name: Option<IgnoredAny>,
    job: Option<IgnoredAny>,
    data: Option<IgnoredAny>,
}

impl Shape {
    /// Of an object; a list is none, though its parts could stand for members.
    fn read(text: &[u8]) -> Option<serde_json::Result<Shape>> {
        text.trim_ascii_start().starts_with(b"{").then(|| serde_json::from_slice(text))
    }

    fn is_flow(&self) -> bool {
        self.steps.is_some() && self.name.is_none() && self.job.is_none() && self.data.is_none()
    }
}

impl Input {
    /// Reads as much as it takes to tell.
    ///
    /// # Errors
    /// It cannot be read, or is neither.
    pub(crate) fn look(input: impl Read + Send + 'static) -> Result<Input, InputError> {
        let mut input = BufReader::with_capacity(64 << 10, input);
        let mut begin = Vec::new();
        let mut first = Vec::new();
        // A line over the bound is an error of the lines, told where they are read.
        while first.iter().all(u8::is_ascii_whitespace) {
            first.clear();
            let read = input.by_ref().take(FLOW_BYTES_MAX as u64 + 1).read_until(b'\n', &mut first)?;
            begin.extend_from_slice(&first);
            if read == 0 || begin.len() > FLOW_BYTES_MAX {
                return Ok(lines(begin, input));
            }
        }
        match Shape::read(&first) {
            Some(Ok(shape)) if shape.is_flow() => {
                let mut rest = Vec::new();
                input.take(FLOW_BYTES_MAX as u64).read_to_end(&mut rest)?;
                if rest.iter().all(u8::is_ascii_whitespace) { Ok(Input::Flow(first)) } else { Err(InputError::More) }
            }
            Some(Err(error)) if error.is_eof() => several(begin, input),
            _ => Ok(lines(begin, input)),
        }
    }
}

fn lines(begin: Vec<u8>, rest: impl Read + Send + 'static) -> Input {
    Input::Lines(Box::new(Cursor::new(begin).chain(rest)))
}

/// The first line is the beginning of an object.
fn several(mut text: Vec<u8>, mut input: impl Read + Send + 'static) -> Result<Input, InputError> {
    input.by_ref().take((FLOW_BYTES_MAX + 1 - text.len()) as u64).read_to_end(&mut text)?;
    let whole = text.len() <= FLOW_BYTES_MAX;
    match serde_json::from_slice::<Shape>(&text) {
        Ok(shape) if whole && shape.is_flow() => Ok(Input::Flow(text)),
        Ok(_) if whole => Err(InputError::Neither),
        // Where a later line is an object by itself, these are lines, of which the first is cut off.
        _ if text.split(|byte| *byte == b'\n').skip(1).any(|line| matches!(Shape::read(line), Some(Ok(_)))) => {
            Ok(lines(text, input))
        }
        Err(error) if whole => Err(InputError::Broken(error)),
        _ => Err(InputError::Large),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(text: &'static str) -> String {
        match Input::look(text.as_bytes()) {
            Ok(Input::Flow(text)) => format!("flow {}", String::from_utf8_lossy(&text).trim()),
            Ok(Input::Lines(mut rest)) => {
                let mut all = String::new();
                rest.read_to_string(&mut all).expect("it was text");
                assert_eq!(all, text, "every byte of the lines is there");
                "lines".to_owned()
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn one_object_with_steps_is_a_flow_on_one_line_or_on_several() {
        for text in [r#"{"steps":[]}"#, "\n  {\"id\":\"f\",\"steps\":[]}\n\n", "{\n\"id\": \"f\",\n\"steps\": [\n]\n}\n"] {
            assert_eq!(look(text), format!("flow {}", text.trim()));
        }
    }

    #[test]
    fn everything_else_is_lines() {
        for text in [
            "",
            " \n\n",
            "{\"type\":\"echo\"}",
            "{\"type\":\"echo\",\"steps\":[]}\n{\"type\":\"echo\"}\n",
            "{\"job\":{\"type\":\"echo\"},\"steps\":[]}\n",
            "{\"data\":{},\"steps\":[]}\n",
            "no JSON\n{\"steps\":[]}\n",
            "[{},null,null,null]\n",
            "[]\n",
            "{\"type\":\"echo\",\n{\"type\":\"echo\"}\n",
            "\n{\"type\":\n{\"steps\":[]}\n",
        ] {
            assert_eq!(look(text), "lines", "{text}");
        }
    }

    #[test]
    fn what_is_neither_says_what_it_was_taken_for() {
        for (text, said) in [
            ("{\"steps\":[]}\n{\"type\":\"echo\"}\n", "there is more behind it"),
            ("{\n\"type\": \"echo\"\n}\n", "without \"steps\"; a step stands on one line"),
            ("{\n\"steps\": [,]\n}\n", "goes on in the next: expected value at line 2 column 11"),
            ("{\n\"steps\": [\n", "goes on in the next: EOF"),
        ] {
            assert!(look(text).contains(said), "{text}: {}", look(text));
        }
    }

    #[test]
    fn a_pipe_is_told_by_its_first_line() -> anyhow::Result<()> {
        use std::io::Write;
        let (input, mut pipe) = io::pipe()?;
        pipe.write_all(b"{\"type\":\"echo\"}\n")?;
        // The pipe stays open: waiting for more would never end.
        assert!(matches!(Input::look(input), Ok(Input::Lines(_))));
        Ok(())
    }
}
