//! `endstation dlq show`: one letter, whole, with where it is. From the store rather than from a stream: it may be longer there.

use std::io::{self, Write};

use serde_json::{Map, Value, json};

use super::stream::Wanted;
use super::{Letter, ShowArgs, Sight};
use crate::cli::config::Form;
use crate::cli::{EXIT_FAILED, EXIT_OK, EXIT_USAGE};
use crate::ops::logs::{redact, stamp};
use crate::settings::Settings;

/// A letter that the id names, and where it is.
#[derive(Default)]
struct Shown {
    id: String,
    found_in: Vec<Value>,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// Prints the letter that `args` name. Gives the exit code.
pub(super) fn main(
    args: &ShowArgs,
    settings: &Settings,
    form: Form,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<u8> {
    let mut named: Vec<Shown> = Vec::new();
    let names = |id: &str| id.starts_with(&args.id);
    let wanted = Wanted { bodies: true, since_ms: None };
    let sight = Sight::read(settings, &args.place, &wanted, err, |letter| {
        let (id, place) = match &letter {
            Letter::Stored(found, _) => {
                let state = if found.sent { "sent" } else { "waiting" };
                let head = &found.head;
                (&head.id, json!({"store": {"at": time(head.stored_ms), "why": head.why, "state": state}}))
            }
            Letter::Streamed(found) => {
                let (name, sequence) = (&found.stream, found.sequence);
                (&found.id, json!({"stream": {"name": name, "sequence": sequence, "at": time(found.stored_ms)}}))
            }
        };
        if !names(id) {
            return;
        }
        if let Some(known) = named.iter_mut().find(|known| known.id == *id) {
            return known.found_in.push(place);
        }
        // Enough to say that the id names several.
        if named.len() >= 3 {
            return;
        }
        let (headers, body) = match &letter {
            Letter::Stored(found, body) => (found.head.headers.clone(), body.to_vec()),
            Letter::Streamed(found) => {
                let text = found.headers.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value)));
                (text.map(|(name, value)| (name.to_string(), value.as_str().to_owned())).collect(), found.body.clone())
            }
        };
        named.push(Shown { id: id.clone(), found_in: vec![place], headers, body });
    })?;
    if let Some(exact) = named.iter().position(|known| known.id == args.id) {
        named = vec![named.swap_remove(exact)];
    }
    let letter = match &named[..] {
        [letter] => letter,
        [] => {
            writeln!(err, "no dead letter has an id that begins with {}", super::super::step::visible(&args.id))?;
            return Ok(sight.code(EXIT_FAILED));
        }
        several => {
            let ids: Vec<&str> = several.iter().map(|letter| letter.id.as_str()).collect();
            writeln!(err, "error: several ids begin so: {} …", ids.join(", "))?;
            return Ok(EXIT_USAGE);
        }
    };
    let shown = letter.value(args.secrets);
    match form {
        Form::Ndjson => writeln!(out, "{shown}")?,
        Form::Table => {
            // Control characters of a sender's are escaped in JSON.
            serde_json::to_writer_pretty(&mut *out, &shown).map_err(io::Error::from)?;
            writeln!(out)?;
        }
    }
    Ok(sight.code(EXIT_OK))
}

impl Shown {
    fn value(&self, secrets: bool) -> Value {
        let hide = |name: &str, value: Value| if secrets { value } else { redact(name, value) };
        let headers: Map<String, Value> =
            self.headers.iter().map(|(name, value)| (name.clone(), hide(name, Value::from(value.as_str())))).collect();
        let body: Value =
            serde_json::from_slice(&self.body).unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&self.body).into_owned()));
        let mut body = hide("", body);
        // The original's headers are pairs: a secret's name stands beside its value.
        if let Some(pairs) = body.get_mut("headers").and_then(Value::as_array_mut) {
            for pair in pairs.iter_mut().filter_map(Value::as_array_mut) {
                if let [name, value] = &mut pair[..] {
                    *value = hide(name.as_str().unwrap_or_default(), value.take());
                }
            }
        }
        json!({"id": self.id, "found_in": self.found_in, "headers": headers, "letter": body})
    }
}

fn time(unix_ms: u64) -> String {
    jiff::Timestamp::from_millisecond(unix_ms as i64).map(stamp).unwrap_or_default()
}
