//! A [`Wish`] as each provider takes it: the path behind the connector's URL, and the body.

use std::borrow::Cow;

use shards::outcome::Fault;

use crate::policy::providers::Kind;

use super::super::inputs::forbidden;
use super::wish::{Format, Matter, Message, Object, Operation, Wish, list, quoted};

/// Anthropic wants a bound; this stands where the step names none.
pub(super) const ANTHROPIC_TOKENS: u64 = 4_096;

/// What is sent, and where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Letter {
    pub(super) path: &'static str,
    pub(super) body: String,
}

/// The request for this model of this kind of provider.
///
/// # Errors
/// INVALID_INPUT where the provider has no such thing.
pub(super) fn letter(kind: Kind, model: &str, wish: &Wish<'_>) -> Result<Letter, Fault> {
    match kind {
        Kind::OpenAi => Ok(openai(model, wish)),
        Kind::Anthropic => anthropic(model, wish),
        Kind::Ollama => ollama(model, wish),
    }
}

fn openai(model: &str, wish: &Wish<'_>) -> Letter {
    let mut body = Object::new();
    body.text("model", model);
    let path = match (&wish.matter, wish.operation) {
        (Matter::Texts(texts), _) => {
            body.raw("input", list(texts.iter().map(|text| quoted(text)))).raw("encoding_format", "\"float\"");
            option(&mut body, "dimensions", wish.dimensions.map(|number| number.to_string()));
            extra(&mut body, wish);
            return Letter { path: "/embeddings", body: body.done() };
        }
        (Matter::Prompt(prompt), Operation::Completion) => {
            // It has no place for a system's words but before the text.
            let prompt = match &wish.system {
                Some(system) => Cow::Owned(format!("{system}\n\n{prompt}")),
                None => Cow::Borrowed(&**prompt),
            };
            body.text("prompt", &prompt);
            "/completions"
        }
        _ => {
            body.raw("messages", messages(wish));
            "/chat/completions"
        }
    };
    option(&mut body, "temperature", wish.temperature);
    option(&mut body, "top_p", wish.top_p);
    option(&mut body, "max_tokens", wish.max_tokens.map(|number| number.to_string()));
    option(&mut body, "stop", stops(wish));
    option(&mut body, "seed", wish.seed.map(|number| number.to_string()));
    match wish.format {
        Some(Format::Json) => _ = body.raw("response_format", r#"{"type":"json_object"}"#),
        Some(Format::Raw(raw)) => _ = body.raw("response_format", raw),
        None => {}
    }
    option(&mut body, "tools", wish.tools);
    option(&mut body, "tool_choice", wish.tool_choice);
    extra(&mut body, wish);
    if wish.stream {
        body.raw("stream", "true").raw("stream_options", r#"{"include_usage":true}"#);
    }
    Letter { path, body: body.done() }
}

fn anthropic(model: &str, wish: &Wish<'_>) -> Result<Letter, Fault> {
    let none = |field: &str| forbidden(field, "not with a connector whose provider is anthropic, which has no such thing");
    for (field, there) in [("seed", wish.seed.is_some()), ("response_format", wish.format.is_some())] {
        if there {
            return Err(none(field));
        }
    }
    let mut body = Object::new();
    body.text("model", model).raw("max_tokens", wish.max_tokens.unwrap_or(ANTHROPIC_TOKENS).to_string());
    let mut system = wish.system.as_ref().map(|system| vec![part(&quoted(system))]).unwrap_or_default();
    let talk = match &wish.matter {
        Matter::Messages(messages) => {
            // What a system says stands beside the talk and not in it.
            let (says, talk): (Vec<&Message<'_>>, Vec<_>) = messages.iter().partition(|one| is_system(one));
            for content in says.iter().filter_map(|one| one.content) {
                match content.starts_with('"') {
                    true => system.push(part(content)),
                    false => system.extend(inner(content)),
                }
            }
            list(talk.iter().map(|one| one.raw))
        }
        Matter::Prompt(prompt) => list([said("user", prompt)]),
        Matter::Texts(_) => return Err(none("input")),
    };
    if !system.is_empty() {
        body.raw("system", list(system));
    }
    body.raw("messages", talk);
    option(&mut body, "temperature", wish.temperature);
    option(&mut body, "top_p", wish.top_p);
    option(&mut body, "stop_sequences", stops(wish));
    option(&mut body, "tools", wish.tools);
    option(&mut body, "tool_choice", wish.tool_choice);
    extra(&mut body, wish);
    if wish.stream {
        body.raw("stream", "true");
    }
    Ok(Letter { path: "/messages", body: body.done() })
}

fn ollama(model: &str, wish: &Wish<'_>) -> Result<Letter, Fault> {
    if wish.tool_choice.is_some() {
        return Err(forbidden("tool_choice", "not with a connector whose provider is ollama, which has no such thing"));
    }
    let mut body = Object::new();
    body.text("model", model);
    let mut options = Object::new();
    option(&mut options, "temperature", wish.temperature);
    option(&mut options, "top_p", wish.top_p);
    option(&mut options, "num_predict", wish.max_tokens.map(|number| number.to_string()));
    option(&mut options, "stop", stops(wish));
    option(&mut options, "seed", wish.seed.map(|number| number.to_string()));
    for (name, value) in &wish.extra {
        // Everything else that it takes is a parameter of the model.
        if matches!(&**name, "keep_alive" | "think" | "truncate" | "raw" | "template" | "suffix" | "images") {
            body.raw(name, value);
        } else {
            options.raw(name, value);
        }
    }
    let path = match (&wish.matter, wish.operation) {
        (Matter::Texts(texts), _) => {
            body.raw("input", list(texts.iter().map(|text| quoted(text))));
            option(&mut body, "dimensions", wish.dimensions.map(|number| number.to_string()));
            body.raw("options", options.done());
            return Ok(Letter { path: "/api/embed", body: body.done() });
        }
        (Matter::Prompt(prompt), Operation::Completion) => {
            body.text("prompt", prompt);
            option(&mut body, "system", wish.system.as_ref().map(|system| quoted(system)));
            "/api/generate"
        }
        _ => {
            body.raw("messages", messages(wish));
            option(&mut body, "tools", wish.tools);
            "/api/chat"
        }
    };
    match wish.format {
        Some(Format::Json) => _ = body.raw("format", "\"json\""),
        Some(Format::Raw(raw)) => _ = body.raw("format", raw),
        None => {}
    }
    body.raw("options", options.done()).raw("stream", if wish.stream { "true" } else { "false" });
    Ok(Letter { path, body: body.done() })
}

/// The talk: the system's words in front, then the messages as they are, or the prompt as a user's.
fn messages(wish: &Wish<'_>) -> String {
    let mut talk: Vec<Cow<'_, str>> = wish.system.iter().map(|system| said("system", system).into()).collect();
    match &wish.matter {
        Matter::Messages(messages) => talk.extend(messages.iter().map(|message| Cow::Borrowed(message.raw))),
        Matter::Prompt(prompt) => talk.push(said("user", prompt).into()),
        Matter::Texts(_) => {}
    }
    list(talk)
}

fn said(role: &str, text: &str) -> String {
    let mut message = Object::new();
    message.text("role", role).text("content", text);
    message.done()
}

fn is_system(message: &Message<'_>) -> bool {
    matches!(&*message.role, "system" | "developer")
}

/// A text as a part of a content.
fn part(text: &str) -> String {
    let mut part = Object::new();
    part.raw("type", "\"text\"").raw("text", text);
    part.done()
}

/// The parts of a content as they are written.
fn inner(content: &str) -> Vec<String> {
    let parts: Vec<&serde_json::value::RawValue> = serde_json::from_str(content).unwrap_or_default();
    parts.into_iter().map(|part| part.get().to_owned()).collect()
}

fn stops(wish: &Wish<'_>) -> Option<String> {
    (!wish.stop.is_empty()).then(|| list(wish.stop.iter().map(|stop| quoted(stop))))
}

fn extra(body: &mut Object, wish: &Wish<'_>) {
    for (name, value) in &wish.extra {
        body.raw(name, value);
    }
}

fn option(body: &mut Object, name: &str, json: Option<impl AsRef<str>>) {
    if let Some(json) = json {
        body.raw(name, json);
    }
}
