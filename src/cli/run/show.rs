//! How results look: NDJSON in a pipe, rows on a terminal, and a progress bar on the terminal's other stream.

use std::borrow::Cow;
use std::io::{self, BufWriter, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Deserialize;
use serde_json::value::RawValue;
use shards::outcome::Status;
use shards::runtime::ports::Parcel;

use super::feed::Summary;
use crate::cli::step::visible;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A row each, for eyes.
    Table,
    /// The result itself, one line each, for programs.
    Lines,
}

/// Where results go.
pub(crate) struct Show<'a> {
    form: Form,
    out: BufWriter<Box<dyn Write + 'a>>,
    bar: ProgressBar,
}

/// The parts of a result that a row shows; both profiles have them.
#[derive(Deserialize)]
struct Row<'a> {
    #[serde(borrow, default, rename = "type")]
    block: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    job: Option<RowJob<'a>>,
    #[serde(borrow, default)]
    outputs: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<RowError<'a>>,
    #[serde(borrow, default)]
    error_code: Option<&'a str>,
    #[serde(default)]
    error_message: Option<String>,
    #[serde(default)]
    latency_ms: Option<f64>,
    #[serde(borrow, default)]
    error_details: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RowJob<'a> {
    #[serde(borrow, default, rename = "type")]
    block: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct RowError<'a> {
    #[serde(borrow, default)]
    code: Option<&'a str>,
    #[serde(default)]
    message: Option<String>,
    #[serde(borrow, default)]
    details: Option<&'a RawValue>,
}

impl<'a> Show<'a> {
    /// Results to `out`, progress to the terminal if there is one.
    pub(crate) fn new(form: Form, out: impl Write + 'a, progress: bool) -> Self {
        let target = if progress { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        let style = ProgressStyle::with_template("{spinner} {pos} done  {per_sec}  {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style);
        Show { form, out: BufWriter::new(Box::new(out)), bar }
    }

    /// One result.
    pub(crate) fn result(&mut self, parcel: &Parcel, summary: &Summary) -> io::Result<()> {
        match self.form {
            Form::Lines => {
                self.out.write_all(&parcel.body)?;
                self.out.write_all(b"\n")?;
            }
            Form::Table => {
                let row = row(&format!("{:>4}", parcel.about.line), parcel);
                self.bar.suspend(|| writeln!(self.out, "{row}").and_then(|()| self.out.flush()))?;
            }
        }
        self.bar.inc(1);
        if summary.failed > 0 {
            self.bar.set_message(format!("{} failed", summary.failed));
        }
        Ok(())
    }

    /// One thing that came to its end: for programs, or for eyes.
    pub(crate) fn say(&mut self, line: &str, row: &str, ok: bool) -> io::Result<()> {
        match self.form {
            Form::Lines => writeln!(self.out, "{line}")?,
            Form::Table => {
                let row = visible(row);
                self.bar.suspend(|| writeln!(self.out, "{row}").and_then(|()| self.out.flush()))?;
            }
        }
        self.bar.inc(1);
        if !ok {
            self.bar.set_message("with failures");
        }
        Ok(())
    }

    /// Something beside the results, for eyes.
    pub(crate) fn aside(&mut self, text: &str) -> io::Result<()> {
        self.out.flush()?;
        self.bar.suspend(|| writeln!(io::stderr(), "{text}"))
    }

    /// The last word.
    pub(crate) fn conclude(&mut self, line: &str, row: &str) -> io::Result<()> {
        writeln!(self.out, "{}", if self.form == Form::Lines { line } else { row })?;
        self.out.flush()
    }

    /// What was shown is out.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// No more results.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        self.bar.finish_and_clear();
        self.out.flush()
    }

    /// How it all went, for eyes only.
    pub(crate) fn summary(&mut self, summary: &Summary) {
        if self.form == Form::Table {
            let Summary { lines, ok, failed, replayed, took } = summary;
            let seconds = took.as_secs_f64();
            let _ = writeln!(
                self.out,
                "{lines} steps: {ok} ok, {failed} failed, {replayed} answered from the journal, {seconds:.2} s"
            );
            let _ = self.out.flush();
        }
    }
}

/// One result as a row behind its name: status, block, time, tries, and what came of it.
pub(crate) fn row(name: &str, parcel: &Parcel) -> String {
    let parsed: Option<Row<'_>> = serde_json::from_slice(&parcel.body).ok();
    let about = &parcel.about;
    let status = match about.status {
        Some(Status::Ok) => "ok",
        Some(Status::Timeout) => "timeout",
        Some(Status::Cancelled) => "cancelled",
        Some(Status::Error | Status::Quarantined) | None => "error",
    };
    let mut words = Vec::new();
    if let Some(row) = &parsed {
        let code = row.error_code.or(row.error.as_ref().and_then(|error| error.code));
        let said = row.error_message.as_deref().or(row.error.as_ref().and_then(|error| error.message.as_deref()));
        let details = row.error_details.or(row.error.as_ref().and_then(|error| error.details));
        words.extend(code.map(str::to_owned));
        words.extend(said.map(str::to_owned));
        words.extend(details.map(|details| cut(details.get())));
        words.extend(row.outputs.filter(|_| about.status == Some(Status::Ok)).map(|outputs| cut(outputs.get())));
    }
    let block = parsed.as_ref().and_then(|row| row.block.as_ref().or_else(|| row.job.as_ref()?.block.as_ref()));
    let block = block.map_or("", |block| block.as_ref()).to_owned();
    if about.tries > 1 {
        words.push(format!("({} tries)", about.tries));
    }
    if about.replayed {
        words.push("(answered from the journal)".to_owned());
    }
    let took = parsed.and_then(|row| row.latency_ms).unwrap_or_default();
    visible(&format!("{name:>4}  {status:<9}  {block:<12} {took:>6.0} ms  {}", words.join("  ")))
}

/// Enough of a value to recognise it.
pub(crate) fn cut(text: &str) -> String {
    const MOST: usize = 72;
    if text.chars().count() <= MOST { text.to_owned() } else { text.chars().take(MOST).chain("…".chars()).collect() }
}
