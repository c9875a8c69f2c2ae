//! Server-sent events out of a text that comes in pieces, as the HTML standard has them ("Interpreting an event stream"): fields
//! `event`, `data` and `id`, lines that end with CR, LF or both, a byte order mark at the beginning, comments dropped.

/// The largest event, in bytes; one that is larger is none.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::blocks) struct Event {
    /// Its type; `message` where the server names none.
    pub(in crate::blocks) kind: String,
    /// Its data, lines with LF between them.
    pub(in crate::blocks) data: String,
    /// The last id that the server named.
    pub(in crate::blocks) id: Option<String>,
}

/// Takes the text apart. Lives on its core.
#[derive(Default)]
pub(in crate::blocks) struct Splitter {
    line: Vec<u8>,
    begun: bool,
    /// The last byte was a CR: a LF after it belongs to the same end.
    after_cr: bool,
    kind: String,
    data: String,
    id: Option<String>,
}

/// An event that is larger than any should be.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::blocks) struct TooLarge;

impl Splitter {
    /// The events that end in this piece.
    pub(in crate::blocks) fn push(&mut self, piece: &[u8]) -> Result<Vec<Event>, TooLarge> {
        let mut events = Vec::new();
        for &byte in piece {
            let after_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
            match byte {
                b'\n' if after_cr => {}
                b'\r' | b'\n' => {
                    let line = std::mem::take(&mut self.line);
                    self.line(&line, &mut events);
                    self.line = line;
                    self.line.clear();
                }
                _ => self.line.push(byte),
            }
            if self.line.len() + self.data.len() > EVENT_BYTES_MAX {
                return Err(TooLarge);
            }
        }
        Ok(events)
    }

    fn line(&mut self, line: &[u8], events: &mut Vec<Event>) {
        let line = match std::mem::replace(&mut self.begun, true) {
            false => line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line),
            true => line,
        };
        let line = String::from_utf8_lossy(line);
        if line.is_empty() {
            return self.dispatch(events);
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.kind),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            // Comments, `retry` and what nobody knows.
            _ => {}
        }
    }

    fn dispatch(&mut self, events: &mut Vec<Event>) {
        let kind = std::mem::take(&mut self.kind);
        let mut data = std::mem::take(&mut self.data);
        if data.is_empty() {
            return;
        }
        data.pop();
        let kind = if kind.is_empty() { "message".to_owned() } else { kind };
        events.push(Event { kind, data, id: self.id.clone() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, data: &str, id: Option<&str>) -> Event {
        Event { kind: kind.to_owned(), data: data.to_owned(), id: id.map(str::to_owned) }
    }

    #[test]
    fn events_are_the_same_wherever_the_text_is_cut() {
        let text = "\u{feff}: hello\r\nevent: add\r\ndata: one\r\ndata:two\r\n\r\ndata\n\nretry: 5\rid: 7\rdata:  spaced\r\revent: x\n\n\
                    data: \u{e4}\nunknown: y\nid: a\u{0}b\n\nid:\ndata: last\n\ndata: never ended";
        let wanted = [
            event("add", "one\ntwo", None),
            event("message", "", None),
            event("message", " spaced", Some("7")),
            event("message", "\u{e4}", Some("7")),
            event("message", "last", Some("")),
        ];
        let bytes = text.as_bytes();
        for cut in 0..=bytes.len() {
            let mut splitter = Splitter::default();
            let mut events = splitter.push(&bytes[..cut]).expect("small");
            events.extend(splitter.push(&bytes[cut..]).expect("small"));
            assert_eq!(events, wanted, "cut at {cut}");
        }
        let mut splitter = Splitter::default();
        let one_by_one: Vec<Event> = bytes.chunks(1).flat_map(|byte| splitter.push(byte).expect("small")).collect();
        assert_eq!(one_by_one, wanted);
    }

    #[test]
    fn an_event_without_an_end_is_given_up() {
        let mut splitter = Splitter::default();
        let line = [b"data: ".as_slice(), &[b'x'; 60_000], b"\n"].concat();
        let pushed = (0..40).try_for_each(|_| splitter.push(&line).map(|_| ()));
        assert_eq!(pushed, Err(TooLarge));
        assert_eq!(Splitter::default().push(&vec![b'x'; EVENT_BYTES_MAX + 1]), Err(TooLarge));
    }
}
