//! What a provider said, whatever its form: a [`Reply`], read out of a whole answer or gathered from a stream's events.
//!
//! Nothing of it is believed that is not of the form it should have: a figure that is none was not said.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::policy::providers::Kind;

use super::refusal::Said;

/// The longest text that a result carries, with what tools are asked, in bytes: as JSON it stays below what the journal takes.
pub(super) const TEXT_BYTES_MAX: usize = 8 << 20;
const _: () = assert!(TEXT_BYTES_MAX * 6 + (1 << 20) <= shards::limits::MESSAGE_BYTES_MAX);
/// More tokens than any exchange has; a larger figure is none.
const TOKENS_MAX: u64 = 1_000_000_000;
/// Calls of tools in one answer.
const CALLS_MAX: usize = 128;
/// Longest name of a model or id that is passed on, in bytes.
const NAME_BYTES_MAX: usize = 256;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) text: String,
    /// The model, as the provider calls it.
    pub(super) model: Option<String>,
    /// The answer's id.
    pub(super) id: Option<String>,
    pub(super) finish: Option<Finish>,
    pub(super) calls: Vec<Call>,
    pub(super) usage: Usage,
}

/// Tokens as the provider counts them; `None`: it did not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) input: Option<u64>,
    pub(super) output: Option<u64>,
}

/// A tool that the model wants called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) id: String,
    pub(super) name: String,
    /// JSON text, if the model kept to it.
    pub(super) arguments: String,
}

/// Why it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finish {
    Stop,
    Length,
    ToolCalls,
    ContentFilter,
    Other,
}

impl Finish {
    /// As written.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::ToolCalls => "tool_calls",
            Finish::ContentFilter => "content_filter",
            Finish::Other => "other",
        }
    }

    fn of(word: &str) -> Finish {
        match word {
            "stop" | "end_turn" | "stop_sequence" => Finish::Stop,
            "length" | "max_tokens" => Finish::Length,
            "tool_calls" | "function_call" | "tool_use" => Finish::ToolCalls,
            "content_filter" | "refusal" => Finish::ContentFilter,
            _ => Finish::Other,
        }
    }
}

/// Why an answer is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// It is not what the provider's interface has.
    Unlike(&'static str),
    /// It is larger than a result carries.
    TooLarge,
    /// The provider says that something went wrong.
    Said(Said),
}

/// Whether more of a stream is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    More,
    End,
}

/// Vectors, as they are written, with what else the answer says.
#[derive(Debug)]
pub(super) struct Vectors {
    /// JSON text.
    pub(super) list: Vec<Bytes>,
    pub(super) reply: Reply,
}

impl Reply {
    /// A whole answer.
    pub(super) fn whole(kind: Kind, body: &[u8]) -> Result<Reply, Wrong> {
        let value: Value = serde_json::from_slice(body).map_err(|_| Wrong::Unlike("JSON"))?;
        fail(&value)?;
        let mut reply = Reply::default();
        reply.name(&value);
        match kind {
            Kind::OpenAi => {
                let choice = value["choices"].get(0).ok_or(Wrong::Unlike("an object with choices"))?;
                let message = &choice["message"];
                // A completion has its text beside the choice, a talk in its message.
                reply.say(message["content"].as_str().or(choice["text"].as_str()).unwrap_or_default())?;
                reply.calls_of(&message["tool_calls"])?;
                reply.finish(&choice["finish_reason"]);
                reply.count(&value["usage"]["prompt_tokens"], &value["usage"]["completion_tokens"]);
            }
            Kind::Anthropic => {
                let content = value["content"].as_array().ok_or(Wrong::Unlike("an object with content"))?;
                for block in content {
                    reply.block(block)?;
                    if block["type"] == "tool_use" {
                        let arguments = block["input"].to_string();
                        reply.argue(&arguments)?;
                    }
                }
                reply.finish(&value["stop_reason"]);
                reply.count_anthropic(&value["usage"]);
            }
            Kind::Ollama => {
                if reply.ollama(&value)? == Step::More {
                    return Err(Wrong::Unlike("an object that is done"));
                }
            }
        }
        reply.finish.get_or_insert(Finish::Other);
        Ok(reply)
    }

    /// One event of a stream: what it says is added, new text also to `fresh`.
    pub(super) fn event(&mut self, kind: Kind, data: &str, fresh: &mut String) -> Result<Step, Wrong> {
        if kind == Kind::OpenAi && data.trim() == "[DONE]" {
            return Ok(Step::End);
        }
        let value: Value = serde_json::from_str(data).map_err(|_| Wrong::Unlike("events in JSON"))?;
        fail(&value)?;
        let before = self.text.len();
        let step = match kind {
            Kind::OpenAi => {
                self.name(&value);
                self.openai_piece(&value)?;
                Step::More
            }
            Kind::Anthropic => self.anthropic_piece(&value)?,
            Kind::Ollama => {
                self.name(&value);
                self.ollama(&value)?
            }
        };
        fresh.push_str(&self.text[before..]);
        Ok(step)
    }

    fn openai_piece(&mut self, value: &Value) -> Result<(), Wrong> {
        if let Some(choice) = value["choices"].get(0) {
            let delta = &choice["delta"];
            self.say(delta["content"].as_str().or(choice["text"].as_str()).unwrap_or_default())?;
            for call in delta["tool_calls"].as_array().into_iter().flatten() {
                let at = call["index"].as_u64().and_then(|at| usize::try_from(at).ok()).unwrap_or(self.calls.len());
                if at >= CALLS_MAX || at > self.calls.len() {
                    return Err(Wrong::Unlike("calls of tools in order"));
                }
                if at == self.calls.len() {
                    self.calls.push(Call::default());
                }
                let one = &mut self.calls[at];
                for (part, said) in [(&mut one.id, &call["id"]), (&mut one.name, &call["function"]["name"])] {
                    if let (true, Some(said)) = (part.is_empty(), said.as_str()) {
                        *part = short(said);
                    }
                }
                let arguments = call["function"]["arguments"].as_str().unwrap_or_default();
                self.room(arguments)?;
                self.calls[at].arguments.push_str(arguments);
            }
            self.finish(&choice["finish_reason"]);
        }
        self.count(&value["usage"]["prompt_tokens"], &value["usage"]["completion_tokens"]);
        Ok(())
    }

    fn anthropic_piece(&mut self, value: &Value) -> Result<Step, Wrong> {
        match value["type"].as_str().unwrap_or_default() {
            "message_start" => {
                self.name(&value["message"]);
                self.count_anthropic(&value["message"]["usage"]);
            }
            "content_block_start" => self.block(&value["content_block"])?,
            "content_block_delta" => {
                self.say(value["delta"]["text"].as_str().unwrap_or_default())?;
                self.argue(value["delta"]["partial_json"].as_str().unwrap_or_default())?;
            }
            "message_delta" => {
                self.finish(&value["delta"]["stop_reason"]);
                self.count_anthropic(&value["usage"]);
            }
            "message_stop" => return Ok(Step::End),
            // Pings, ends of blocks, and what is yet to be thought of.
            _ => {}
        }
        Ok(Step::More)
    }

    /// A piece of Ollama's, or all of it: they are the same.
    fn ollama(&mut self, value: &Value) -> Result<Step, Wrong> {
        let message = &value["message"];
        self.say(message["content"].as_str().or(value["response"].as_str()).unwrap_or_default())?;
        self.calls_of(&message["tool_calls"])?;
        if value["done"] != true {
            return Ok(Step::More);
        }
        self.finish(&value["done_reason"]);
        self.count(&value["prompt_eval_count"], &value["eval_count"]);
        Ok(Step::End)
    }

    /// A block of Anthropic's content.
    fn block(&mut self, block: &Value) -> Result<(), Wrong> {
        match block["type"].as_str().unwrap_or_default() {
            "text" => self.say(block["text"].as_str().unwrap_or_default()),
            "tool_use" => {
                let (id, name) = (block["id"].as_str(), block["name"].as_str());
                self.call(id.unwrap_or_default(), name.unwrap_or_default())
            }
            _ => Ok(()),
        }
    }

    /// Calls that come whole.
    fn calls_of(&mut self, list: &Value) -> Result<(), Wrong> {
        for call in list.as_array().into_iter().flatten() {
            let function = &call["function"];
            self.call(call["id"].as_str().unwrap_or_default(), function["name"].as_str().unwrap_or_default())?;
            match function["arguments"].as_str() {
                Some(text) => self.argue(text)?,
                None => self.argue(&function["arguments"].to_string())?,
            }
        }
        Ok(())
    }

    fn call(&mut self, id: &str, name: &str) -> Result<(), Wrong> {
        if self.calls.len() == CALLS_MAX {
            return Err(Wrong::TooLarge);
        }
        self.calls.push(Call { id: short(id), name: short(name), arguments: String::new() });
        Ok(())
    }

    /// More of what the last tool is called with.
    fn argue(&mut self, text: &str) -> Result<(), Wrong> {
        self.room(text)?;
        if let Some(last) = self.calls.last_mut() {
            last.arguments.push_str(text);
        }
        Ok(())
    }

    fn say(&mut self, text: &str) -> Result<(), Wrong> {
        self.room(text)?;
        self.text.push_str(text);
        Ok(())
    }

    fn room(&self, text: &str) -> Result<(), Wrong> {
        let calls: usize = self.calls.iter().map(|call| call.arguments.len()).sum();
        if self.text.len() + calls + text.len() > TEXT_BYTES_MAX { Err(Wrong::TooLarge) } else { Ok(()) }
    }

    fn name(&mut self, value: &Value) {
        for (part, said) in [(&mut self.model, &value["model"]), (&mut self.id, &value["id"])] {
            if let (None, Some(said)) = (&part, said.as_str()) {
                *part = Some(short(said));
            }
        }
    }

    fn finish(&mut self, word: &Value) {
        if let Some(word) = word.as_str() {
            self.finish = Some(Finish::of(word));
        }
    }

    fn count(&mut self, input: &Value, output: &Value) {
        self.usage.input = tokens(input).or(self.usage.input);
        self.usage.output = tokens(output).or(self.usage.output);
    }

    /// Anthropic counts what lies in its cache apart.
    fn count_anthropic(&mut self, usage: &Value) {
        let cached = ["cache_creation_input_tokens", "cache_read_input_tokens"].iter().filter_map(|name| tokens(&usage[*name]));
        let input = tokens(&usage["input_tokens"]).map(|input| input + cached.sum::<u64>());
        self.usage.input = input.or(self.usage.input);
        self.usage.output = tokens(&usage["output_tokens"]).or(self.usage.output);
    }
}

#[derive(Deserialize)]
struct Listed<'a> {
    #[serde(borrow)]
    embedding: &'a RawValue,
    #[serde(default)]
    index: Option<u64>,
}

#[derive(Deserialize)]
struct EmbeddingsBody<'a> {
    #[serde(borrow, default)]
    data: Option<Vec<Listed<'a>>>,
    #[serde(borrow, default)]
    embeddings: Option<Vec<&'a RawValue>>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    usage: Value,
    #[serde(default)]
    prompt_eval_count: Value,
}

impl Vectors {
    /// The answer to an embedding of so many texts; the vectors in the order of the texts.
    pub(super) fn read(kind: Kind, body: &Bytes, texts: usize) -> Result<Vectors, Wrong> {
        let read: EmbeddingsBody<'_> = serde_json::from_slice(body).map_err(|_| Wrong::Unlike("an object with embeddings"))?;
        if read.error.is_some() {
            fail(&serde_json::from_slice(body).unwrap_or_default())?;
        }
        let list = match (kind, read.data, read.embeddings) {
            (Kind::Ollama, _, Some(list)) => list,
            (_, Some(mut data), _) => {
                data.sort_by_key(|one| one.index);
                data.into_iter().map(|one| one.embedding).collect()
            }
            _ => return Err(Wrong::Unlike("an object with embeddings")),
        };
        if list.len() != texts {
            return Err(Wrong::Unlike("one vector for each text"));
        }
        let list: Vec<&str> = list.into_iter().map(RawValue::get).collect();
        for vector in &list {
            let numbers: Vec<f64> = serde_json::from_str(vector).map_err(|_| Wrong::Unlike("vectors of numbers"))?;
            if numbers.is_empty() {
                return Err(Wrong::Unlike("vectors of numbers"));
            }
        }
        let input = tokens(&read.usage["prompt_tokens"]).or(tokens(&read.prompt_eval_count));
        let usage = Usage { input, output: input.map(|_| 0) };
        let model = read.model.as_deref().map(short);
        let list = list.into_iter().map(|vector| body.slice_ref(vector.as_bytes())).collect();
        Ok(Vectors { list, reply: Reply { model, usage, ..Reply::default() } })
    }
}

/// An answer that says that something went wrong is no other.
fn fail(value: &Value) -> Result<(), Wrong> {
    match &value["error"] {
        Value::Null => Ok(()),
        _ => Err(Wrong::Said(Said::of(value))),
    }
}

fn tokens(value: &Value) -> Option<u64> {
    value.as_u64().filter(|tokens| *tokens <= TOKENS_MAX)
}

fn short(text: &str) -> String {
    text[..text.floor_char_boundary(NAME_BYTES_MAX)].to_owned()
}
