//! The inputs of an `ai.generate` as a [`Wish`]: every field checked, no provider chosen yet.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use serde_json::value::RawValue;
use shards::outcome::Fault;

use crate::net::client::Patience;

use super::super::inputs::{Inputs, absent, forbidden, missing, text_of};
use super::super::outputs::is_sound;

/// Longest name of a model, a connector or a provider, in bytes.
const NAME_BYTES_MAX: usize = 256;
const MESSAGES_MAX: usize = 4_096;
const TEXTS_MAX: usize = 2_048;
const STOPS_MAX: usize = 16;
const TOOLS_MAX: usize = 128;
const TOKENS: RangeInclusive<u64> = 1..=10_000_000;
const DIMENSIONS: RangeInclusive<u64> = 1..=65_536;
const SEED: RangeInclusive<u64> = 0..=1 << 53;
const WAIT_MS: RangeInclusive<u64> = 1..=3_600_000;
const CONNECT_MS: u64 = 10_000;
/// A whole answer comes when all of it is written.
const FIRST_BYTE_MS: u64 = 300_000;
const STALL_MS: u64 = 60_000;
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];
/// What `extra` does not name: inputs of their own, and what they become on the way.
/// However they are written: some providers tell no capitals.
const OURS: [&str; 26] = [
    "connector",
    "provider_id",
    "operation",
    "model",
    "messages",
    "prompt",
    "input",
    "system",
    "temperature",
    "top_p",
    "max_tokens",
    "stop",
    "seed",
    "stream",
    "response_format",
    "tools",
    "tool_choice",
    "dimensions",
    "extra",
    "stream_options",
    "options",
    "format",
    "num_predict",
    "stop_sequences",
    "encoding_format",
    "n",
];

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// The next message of a talk.
    Chat,
    /// How a text goes on.
    Completion,
    /// Vectors.
    Embedding,
}

impl Operation {
    const NAMES: [(&'static str, Operation); 3] =
        [("chat", Operation::Chat), ("completion", Operation::Completion), ("embedding", Operation::Embedding)];

    /// As written.
    pub(super) fn as_str(self) -> &'static str {
        Operation::NAMES.iter().find(|(_, one)| *one == self).map_or("", |(name, _)| name)
    }
}

/// What a step asks for.
pub(super) struct Wish<'a> {
    pub(super) connector: Option<Cow<'a, str>>,
    pub(super) provider_id: Option<Cow<'a, str>>,
    pub(super) operation: Operation,
    pub(super) model: Option<Cow<'a, str>>,
    pub(super) matter: Matter<'a>,
    pub(super) system: Option<Cow<'a, str>>,
    /// A number, as it is written.
    pub(super) temperature: Option<&'a str>,
    /// A number, as it is written.
    pub(super) top_p: Option<&'a str>,
    pub(super) max_tokens: Option<u64>,
    pub(super) stop: Vec<Cow<'a, str>>,
    pub(super) seed: Option<u64>,
    pub(super) stream: bool,
    pub(super) format: Option<Format<'a>>,
    /// A list, as it is written.
    pub(super) tools: Option<&'a str>,
    /// A text or an object, as it is written.
    pub(super) tool_choice: Option<&'a str>,
    pub(super) dimensions: Option<u64>,
    /// Members for the provider as they are.
    pub(super) extra: Vec<(Cow<'a, str>, &'a str)>,
    pub(super) patience: Patience,
    pub(super) attempt_ms: Option<u64>,
}

/// What it is about.
pub(super) enum Matter<'a> {
    Messages(Vec<Message<'a>>),
    Prompt(Cow<'a, str>),
    /// Texts to embed.
    Texts(Vec<Cow<'a, str>>),
}

/// One message of a talk.
pub(super) struct Message<'a> {
    pub(super) role: Cow<'a, str>,
    /// A text or a list, as it is written.
    pub(super) content: Option<&'a str>,
    /// All of it, as it is written.
    pub(super) raw: &'a str,
}

/// Which form the text should have.
pub(super) enum Format<'a> {
    Json,
    /// As the provider takes it: an object, as it is written.
    Raw(&'a str),
}

impl<'a> Wish<'a> {
    /// Reads and checks the inputs.
    pub(super) fn read(json: &'a [u8]) -> Result<Wish<'a>, Fault> {
        let inputs = Inputs::read(json)?;
        let connector = name(&inputs, "connector")?;
        let provider_id = name(&inputs, "provider_id")?;
        let model = name(&inputs, "model")?;
        inputs.exactly_one(&["messages", "prompt", "input"])?;
        let operation = operation(&inputs)?;
        let matter = matter(&inputs, operation)?;
        let stream = inputs.flag("stream")?.unwrap_or(false);
        if stream && operation == Operation::Embedding {
            return Err(forbidden("stream", "not with an embedding, which comes whole"));
        }
        let integer = |name: &str, range: RangeInclusive<u64>| match inputs.json(name) {
            Some(_) => inputs.integer(name, range, 0).map(Some),
            None => Ok(None),
        };
        let wait = |name: &str, usual| inputs.integer(name, WAIT_MS, usual);
        Ok(Wish {
            connector,
            provider_id,
            operation,
            model,
            matter,
            system: inputs.text("system")?,
            temperature: number(&inputs, "temperature", 0.0..=2.0)?,
            top_p: number(&inputs, "top_p", 0.0..=1.0)?,
            max_tokens: integer("max_tokens", TOKENS)?,
            stop: stop(&inputs)?,
            seed: integer("seed", SEED)?,
            stream,
            format: format(&inputs)?,
            tools: tools(&inputs)?,
            tool_choice: tool_choice(&inputs)?,
            dimensions: integer("dimensions", DIMENSIONS)?,
            extra: extra(&inputs)?,
            patience: Patience {
                connect_ms: wait("connect_ms", CONNECT_MS)?,
                first_byte_ms: wait("first_byte_ms", FIRST_BYTE_MS)?,
                stall_ms: wait("stall_ms", STALL_MS)?,
            },
            attempt_ms: integer("attempt_ms", WAIT_MS)?,
        })
    }
}

/// The inputs with what the step's name and its executor say of them written out; `None`: there is nothing to add.
pub(super) fn spelled_out(name: &str, provider: &str, json: &[u8]) -> Result<Option<String>, Fault> {
    let inputs = Inputs::read(json)?;
    let operation = match name {
        _ if inputs.json("operation").is_some() => None,
        "chat" => Some("chat"),
        // A talk that is sent under this name is one all the same.
        "completion" if inputs.json("messages").is_none() => Some("completion"),
        "embedding" => Some("embedding"),
        _ => None,
    };
    // Only what can name a connector does; the router has names for executors of every form.
    let named = inputs.json("connector").is_some() || inputs.json("provider_id").is_some();
    let provider = Some(provider).filter(|provider| !named && !provider.is_empty() && provider.len() <= NAME_BYTES_MAX);
    if absent(json) || (operation.is_none() && provider.is_none()) {
        return Ok(None);
    }
    let mut out = Object::new();
    let added = [("operation", operation), ("provider_id", provider)];
    for (name, value) in added.iter().filter_map(|(name, value)| Some((*name, (*value)?))) {
        out.text(name, value);
    }
    for (name, value) in inputs.members() {
        if !added.iter().any(|(added, value)| value.is_some() && *added == name) {
            out.raw(&name, value);
        }
    }
    Ok(Some(out.done()))
}

/// A JSON object that is being written.
pub(super) struct Object(String);

impl Object {
    pub(super) fn new() -> Self {
        Object("{".to_owned())
    }

    /// A member whose value is JSON text.
    pub(super) fn raw(&mut self, name: &str, json: impl AsRef<str>) -> &mut Self {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        self.0.push_str(&quoted(name));
        self.0.push(':');
        self.0.push_str(json.as_ref());
        self
    }

    /// A member whose value is a text.
    pub(super) fn text(&mut self, name: &str, text: &str) -> &mut Self {
        self.raw(name, quoted(text))
    }

    /// The whole.
    pub(super) fn done(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

/// A text as JSON has it.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// JSON texts as a list.
pub(super) fn list(parts: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let mut out = "[".to_owned();
    for part in parts {
        if out.len() > 1 {
            out.push(',');
        }
        out.push_str(part.as_ref());
    }
    out.push(']');
    out
}

fn name<'a>(inputs: &Inputs<'a>, field: &str) -> Result<Option<Cow<'a, str>>, Fault> {
    let text = inputs.text(field)?;
    match text.as_ref().is_none_or(|text| (1..=NAME_BYTES_MAX).contains(&text.len())) {
        true => Ok(text),
        false => Err(forbidden(field, "1 to 256 bytes")),
    }
}

fn operation(inputs: &Inputs<'_>) -> Result<Operation, Fault> {
    match inputs.text("operation")? {
        None if inputs.json("input").is_some() => Ok(Operation::Embedding),
        None => Ok(Operation::Chat),
        Some(name) => {
            let known = Operation::NAMES.iter().find(|(known, _)| *known == name);
            known.map(|(_, one)| *one).ok_or_else(|| forbidden("operation", "chat, completion or embedding"))
        }
    }
}

fn matter<'a>(inputs: &Inputs<'a>, operation: Operation) -> Result<Matter<'a>, Fault> {
    let embeds = operation == Operation::Embedding;
    if let Some(raw) = inputs.json("input") {
        if !embeds {
            return Err(forbidden("input", "only with the operation embedding"));
        }
        let rule = || forbidden("input", "a text, or a list of 1 to 2048 texts");
        let texts = match text_of(raw) {
            Some(text) => vec![text],
            None => raws(raw).and_then(|list| list.into_iter().map(text_of).collect()).ok_or_else(rule)?,
        };
        return if (1..=TEXTS_MAX).contains(&texts.len()) { Ok(Matter::Texts(texts)) } else { Err(rule()) };
    }
    if embeds {
        return Err(missing("input", "required with the operation embedding"));
    }
    if let Some(prompt) = inputs.text("prompt")? {
        return Ok(Matter::Prompt(prompt));
    }
    if operation == Operation::Completion {
        return Err(missing("prompt", "required with the operation completion"));
    }
    let rule = || forbidden("messages", "a list of 1 to 4096 messages");
    let list = raws(inputs.json("messages").unwrap_or_default()).ok_or_else(rule)?;
    if !(1..=MESSAGES_MAX).contains(&list.len()) {
        return Err(rule());
    }
    list.into_iter().enumerate().map(|(at, raw)| message(at, raw)).collect::<Result<_, _>>().map(Matter::Messages)
}

fn message(at: usize, raw: &str) -> Result<Message<'_>, Fault> {
    let said = |field: &str, rule: &str| forbidden(&format!("messages/{at}{field}"), rule);
    let inner = Inputs::read(raw.as_bytes()).ok().filter(|_| raw.starts_with('{'));
    let inner = inner.ok_or_else(|| said("", "an object"))?;
    let role = inner.json("role").and_then(text_of).filter(|role| ROLES.contains(&&**role));
    let role = role.ok_or_else(|| said("/role", "system, developer, user, assistant or tool"))?;
    let content = inner.json("content");
    match content.and_then(|content| content.bytes().next()) {
        Some(b'"' | b'[') => {}
        // It may have asked for tools and said nothing.
        None if role == "assistant" => {}
        _ => return Err(said("/content", "a text or a list")),
    }
    Ok(Message { role, content, raw })
}

/// The parts of a list as they are written.
fn raws(raw: &str) -> Option<Vec<&str>> {
    let list: Vec<&RawValue> = serde_json::from_str(raw).ok()?;
    Some(list.into_iter().map(RawValue::get).collect())
}

fn number<'a>(inputs: &Inputs<'a>, field: &str, range: RangeInclusive<f64>) -> Result<Option<&'a str>, Fault> {
    let Some(raw) = inputs.json(field) else { return Ok(None) };
    // What JSON takes for a number and nothing else that a parser would.
    let number = serde_json::from_str::<f64>(raw).ok().filter(|number| range.contains(number));
    let rule = || forbidden(field, &format!("a number from {} to {}", range.start(), range.end()));
    number.map(|_| Some(raw)).ok_or_else(rule)
}

fn stop<'a>(inputs: &Inputs<'a>) -> Result<Vec<Cow<'a, str>>, Fault> {
    let Some(raw) = inputs.json("stop") else { return Ok(Vec::new()) };
    let rule = || forbidden("stop", "a text, or a list of 1 to 16 texts, none of them empty");
    let stops: Vec<Cow<'a, str>> = match text_of(raw) {
        Some(text) => vec![text],
        None => raws(raw).and_then(|list| list.into_iter().map(text_of).collect()).ok_or_else(rule)?,
    };
    let fits = (1..=STOPS_MAX).contains(&stops.len()) && stops.iter().all(|stop| !stop.is_empty());
    if fits { Ok(stops) } else { Err(rule()) }
}

fn format<'a>(inputs: &Inputs<'a>) -> Result<Option<Format<'a>>, Fault> {
    let Some(raw) = inputs.json("response_format") else { return Ok(None) };
    match text_of(raw).as_deref() {
        Some("text") => Ok(None),
        Some("json") => Ok(Some(Format::Json)),
        None if raw.starts_with('{') && is_sound(raw.as_bytes()) => Ok(Some(Format::Raw(raw))),
        _ => Err(forbidden("response_format", "text, json, or an object as the provider takes it")),
    }
}

fn tools<'a>(inputs: &Inputs<'a>) -> Result<Option<&'a str>, Fault> {
    let Some(raw) = inputs.json("tools") else { return Ok(None) };
    let list = raws(raw).filter(|list| (1..=TOOLS_MAX).contains(&list.len()));
    let fits = list.is_some_and(|list| list.iter().all(|tool| tool.starts_with('{')));
    if fits { Ok(Some(raw)) } else { Err(forbidden("tools", "a list of 1 to 128 objects")) }
}

fn tool_choice<'a>(inputs: &Inputs<'a>) -> Result<Option<&'a str>, Fault> {
    let Some(raw) = inputs.json("tool_choice") else { return Ok(None) };
    if raw.starts_with(['"', '{']) { Ok(Some(raw)) } else { Err(forbidden("tool_choice", "a text or an object")) }
}

fn extra<'a>(inputs: &Inputs<'a>) -> Result<Vec<(Cow<'a, str>, &'a str)>, Fault> {
    let extra = inputs.object("extra")?;
    match extra.iter().find(|(name, _)| OURS.iter().any(|ours| ours.eq_ignore_ascii_case(name))) {
        Some((name, _)) => Err(forbidden(&format!("extra/{name}"), "not what the block itself says")),
        None => Ok(extra),
    }
}
