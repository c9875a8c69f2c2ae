//! What the worker says on standard error: one JSON object a line, or lines for people where a terminal listens.
//!
//! The shape is the platform's: `timestamp`, `level`, `component`, `message`, the known ids, `error_code` and `latency_ms`
//! at top level, all else in `context`. Fields of the spans around an event count as its own; secrets are hidden
//! ([`redact`]). Lines go through a bounded channel, so nobody waits for the reader, except that an error waits a moment
//! to be written, because the process may be about to end; [`flush`] waits for all.

mod pipe;
pub(crate) mod redact;

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal};
use std::sync::OnceLock;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Registry};

use self::pipe::Pipe;
pub use self::redact::{REDACTED, is_secret, redact};

/// How long an error line may be waited for.
const ERROR_PATIENCE: Duration = Duration::from_millis(100);
/// Libraries that talk much below this level.
const LOUD: [&str; 7] = ["async_nats", "hyper", "hyper_util", "tokio", "rustls", "h2", "mio"];

static PIPE: OnceLock<Pipe> = OnceLock::new();

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One object a line.
    Json,
    /// For people.
    Human {
        /// With colours.
        colour: bool,
    },
}

impl Form {
    /// The form that suits standard error as it is.
    pub fn of_stderr() -> Form {
        match io::stderr().is_terminal() {
            true => Form::Human { colour: std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()) },
            false => Form::Json,
        }
    }
}

/// Starts logging. `RUST_LOG`, where it is set and can be read, decides instead of `level`. A second call changes nothing.
pub fn init(level: Level, form: Form) {
    let said = match form {
        Form::Json => lost_json,
        Form::Human { .. } => lost_human,
    };
    let Ok(pipe) = Pipe::open(io::stderr(), said) else { return };
    let layer = Lines {
        form,
        put: {
            let pipe = pipe.clone();
            move |line, urgent| put(&pipe, line, urgent)
        },
    };
    if tracing::subscriber::set_global_default(Registry::default().with(filter(level)).with(layer)).is_ok() {
        let _ = PIPE.set(pipe);
    }
}

/// Waits, at most a second, until all lines are written. For the end of the process.
pub fn flush() {
    if let Some(pipe) = PIPE.get() {
        pipe.flush(Duration::from_secs(1));
    }
}

fn put(pipe: &Pipe, line: Vec<u8>, urgent: bool) {
    pipe.put(line);
    if urgent {
        pipe.flush(ERROR_PATIENCE);
    }
}

fn filter(level: Level) -> EnvFilter {
    let spoken = std::env::var("RUST_LOG").ok().filter(|text| !text.trim().is_empty());
    if let Some(filter) = spoken.and_then(|text| EnvFilter::try_new(text).ok()) {
        return filter;
    }
    let mut text = level.to_string();
    for name in LOUD {
        let _ = write!(text, ",{name}={}", if level > Level::INFO { "info" } else { "warn" });
    }
    EnvFilter::new(text)
}

/// A moment as all of the worker writes it: RFC 3339, UTC, six digits.
pub fn stamp(moment: jiff::Timestamp) -> String {
    format!("{moment:.6}")
}

fn lost_json(lost: u64) -> Vec<u8> {
    let mut fields = Map::new();
    fields.insert("lines".to_owned(), Value::from(lost));
    Line::new(&Level::WARN, "log lines were lost: standard error is read too slowly", fields).json()
}

fn lost_human(lost: u64) -> Vec<u8> {
    format!("{lost} log lines were lost: standard error is read too slowly\n").into_bytes()
}

/// The layer; `put` takes a finished line and whether it should be waited for.
struct Lines<P> {
    form: Form,
    put: P,
}

/// A span's own fields, kept in its extensions.
struct Fields(Map<String, Value>);

impl<S, P> Layer<S> for Lines<P>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    P: Fn(Vec<u8>, bool) + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Gather::default();
        attributes.record(&mut fields);
        span.extensions_mut().replace(Fields(fields.0));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Gather::default();
        values.record(&mut fields);
        if let Some(known) = span.extensions_mut().get_mut::<Fields>() {
            known.0.extend(fields.0);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Gather::default();
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(known) = span.extensions().get::<Fields>() {
                fields.0.extend(known.0.clone());
            }
        }
        event.record(&mut fields);
        let mut fields = fields.0;
        let message = match fields.remove("message") {
            Some(Value::String(text)) => text,
            Some(other) => other.to_string(),
            None => String::new(),
        };
        let level = event.metadata().level();
        fields.entry("target").or_insert_with(|| Value::from(event.metadata().target()));
        let line = Line::new(level, &message, fields);
        let line = match self.form {
            Form::Json => line.json(),
            Form::Human { colour } => line.human(level, colour),
        };
        (self.put)(line, *level == Level::ERROR);
    }
}

/// One line, in the platform's order.
#[derive(Serialize)]
struct Line {
    timestamp: String,
    level: &'static str,
    component: &'static str,
    message: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant_id: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_id: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flow_id: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step_id: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ms: Option<Value>,
    context: Value,
}

impl Line {
    fn new(level: &Level, message: &str, mut fields: Map<String, Value>) -> Line {
        let mut take = |name: &str| fields.remove(name).map(|value| redact(name, value));
        Line {
            timestamp: stamp(jiff::Timestamp::now()),
            level: level.as_str(),
            component: "worker",
            message: redact("", Value::from(message)),
            tenant_id: take("tenant_id"),
            run_id: take("run_id"),
            flow_id: take("flow_id"),
            step_id: take("step_id"),
            trace_id: take("trace_id"),
            error_code: take("error_code"),
            latency_ms: take("latency_ms"),
            context: redact("", Value::Object(fields)),
        }
    }

    fn json(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }

    fn human(&self, level: &Level, colour: bool) -> Vec<u8> {
        let paint = match *level {
            Level::ERROR => "\x1b[31m",
            Level::WARN => "\x1b[33m",
            Level::INFO => "\x1b[32m",
            _ => "\x1b[2m",
        };
        let (paint, dim, plain) = if colour { (paint, "\x1b[2m", "\x1b[0m") } else { ("", "", "") };
        let message = self.message.as_str().unwrap_or_default();
        let clock = self.timestamp.get(11..23).unwrap_or_default();
        let mut out = format!("{dim}{clock}{plain} {paint}{:5}{plain} {}", self.level, visible(message));
        let named = [
            ("tenant_id", &self.tenant_id),
            ("run_id", &self.run_id),
            ("flow_id", &self.flow_id),
            ("step_id", &self.step_id),
            ("trace_id", &self.trace_id),
            ("error_code", &self.error_code),
            ("latency_ms", &self.latency_ms),
        ];
        let named = named.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        let context = self.context.as_object().into_iter().flatten().filter(|(name, _)| *name != "target");
        for (name, value) in named.chain(context.map(|(name, value)| (name.as_str(), value))) {
            let value = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
            let _ = write!(out, " {dim}{name}={plain}{}", visible(&value));
        }
        out.push('\n');
        out.into_bytes()
    }
}

/// Control characters would let a message rewrite the terminal.
fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Takes the fields of a span or event.
#[derive(Default)]
struct Gather(Map<String, Value>);

impl Gather {
    fn set(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Gather {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value);
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value);
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value);
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value);
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value);
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(inner) = cause {
            let _ = write!(text, ": {inner}");
            cause = inner.source();
        }
        self.set(field, text);
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex, PoisonError};

    fn said(form: Form, speak: impl FnOnce()) -> Vec<(String, bool)> {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&lines);
        let put = move |line: Vec<u8>, urgent| {
            let line = String::from_utf8(line).expect("lines are UTF-8");
            kept.lock().unwrap_or_else(PoisonError::into_inner).push((line, urgent));
        };
        tracing::subscriber::with_default(Registry::default().with(Lines { form, put }), speak);
        let lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.clone()
    }

    #[test]
    fn a_line_has_the_platform_s_shape() -> anyhow::Result<()> {
        let lines = said(Form::Json, || {
            let span = tracing::info_span!(
                "step",
                tenant_id = "acme",
                flow_id = "f",
                token = "hush",
                try_number = tracing::field::Empty
            );
            let _here = span.enter();
            span.record("try_number", 2);
            tracing::error!(error_code = "TIMEOUT", latency_ms = 12, payload = r#"{"password":"hush"}"#, "step {} failed", 7);
        });
        let [(line, urgent)] = lines.as_slice() else { anyhow::bail!("{lines:?}") };
        assert!(*urgent && line.ends_with("}\n") && !line.contains("hush"), "{line}");
        assert!(line.starts_with(r#"{"timestamp":""#));
        let line: Value = serde_json::from_str(line)?;
        let stamp = line["timestamp"].as_str().unwrap_or_default();
        assert!(stamp.len() == "2026-01-01T00:00:00.000000Z".len() && stamp.ends_with('Z'), "{stamp}");
        for (name, want) in [
            ("level", Value::from("ERROR")),
            ("component", Value::from("worker")),
            ("message", Value::from("step 7 failed")),
            ("tenant_id", Value::from("acme")),
            ("flow_id", Value::from("f")),
            ("error_code", Value::from("TIMEOUT")),
            ("latency_ms", Value::from(12)),
        ] {
            assert_eq!(line[name], want, "{name}");
        }
        assert_eq!(line["context"]["token"], REDACTED);
        assert_eq!(line["context"]["try_number"], 2);
        assert_eq!(line["context"]["payload"], r#"{"password":"[REDACTED]"}"#);
        assert!(line.get("run_id").is_none(), "unknown ids are left out");
        Ok(())
    }

    #[test]
    fn lines_for_people_name_their_fields_and_cannot_rewrite_the_terminal() {
        let lines =
            said(Form::Human { colour: false }, || tracing::warn!(tenant_id = "a\x1b[2J", n = 1, password = "hush", "late"));
        let line = &lines[0].0;
        assert!(line.ends_with(" WARN  late tenant_id=a\u{fffd}[2J n=1 password=[REDACTED]\n"), "{line:?}");
    }

    #[test]
    fn a_second_start_is_harmless() {
        init(Level::ERROR, Form::Json);
        init(Level::ERROR, Form::Json);
        flush();
    }
}
