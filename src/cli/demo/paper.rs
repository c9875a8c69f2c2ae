//! What the demo writes on: text for people, one JSON object a line for programs.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

/// Where to go from here: commands of this binary.
const NEXT: [(&str, &str); 3] = [
    ("run examples/first-steps.ndjson", "twice: the second time the journal answers"),
    ("step show --tenant acme --flow tour --step put --attempt 1", "then: every frame about one of them"),
    ("dev", "a worker with a NATS server of its own, to send to"),
];

/// The demo's output.
pub(super) struct Paper {
    people: bool,
    out: io::Stdout,
}

impl Paper {
    /// For whoever reads standard output.
    pub(super) fn of_stdout() -> Paper {
        let out = io::stdout();
        Paper { people: out.is_terminal(), out }
    }

    /// Whether people read.
    pub(super) fn people(&self) -> bool {
        self.people
    }

    /// A heading, for people.
    pub(super) fn heading(&mut self, text: &str) -> io::Result<()> {
        self.text(&format!("\n{text}"))
    }

    /// A line or more, for people, indented but for headings.
    pub(super) fn line(&mut self, text: &str) -> io::Result<()> {
        text.lines().try_for_each(|line| self.text(&format!("  {line}")))
    }

    /// One object, for programs.
    pub(super) fn object(&mut self, kind: &str, mut value: Value) -> io::Result<()> {
        if self.people {
            return Ok(());
        }
        value["demo"] = kind.into();
        writeln!(self.out, "{value}")
    }

    /// What to try next, for people.
    pub(super) fn next(&mut self) -> io::Result<()> {
        self.heading("Next")?;
        let width = NEXT.iter().map(|(command, _)| command.len()).max().unwrap_or_default();
        let binary = std::env::args().next().unwrap_or_else(|| "endstation".to_owned());
        NEXT.iter().try_for_each(|(command, why)| self.line(&format!("{binary} {command:width$}   {why}")))
    }

    fn text(&mut self, text: &str) -> io::Result<()> {
        if self.people { writeln!(self.out, "{text}") } else { Ok(()) }
    }
}

/// A count with its thousands apart.
pub(super) fn thousands(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::thousands;

    #[test]
    fn thousands_are_apart() {
        assert_eq!([0, 999, 1_000, 12_345, 1_234_567].map(thousands), ["0", "999", "1,000", "12,345", "1,234,567"]);
    }
}
