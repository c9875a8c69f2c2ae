//! What a block says of itself beyond its [`BlockInfo`]: a JSON file a block, compiled in, with the schemas of its inputs and
//! outputs and with examples. For people and programs: the worker's own check of inputs is the block's, and a test holds both to
//! the same verdicts.
//!
//! [`BlockInfo`]: shards::block::BlockInfo

use serde::Deserialize;
use serde_json::value::RawValue;

#[cfg(test)]
mod reference;

/// See the module. Shared, never changes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest<'a> {
    /// What it does, in one sentence.
    pub summary: String,
    /// What decides its effect class, where that is not always the one of its info.
    #[serde(default)]
    pub effect: Option<String>,
    /// Where it runs.
    pub lane: Lane,
    /// Whether it has a form that runs on a device: `resources.class` GPU.
    #[serde(default)]
    pub device: bool,
    /// The scopes that a tenant may need.
    pub scopes: Vec<String>,
    /// What it reaches beyond its inputs, in the words of the protocol's `Capabilities`.
    pub capabilities: Vec<Capability>,
    /// What an operator must have set up.
    #[serde(default)]
    pub needs: Option<String>,
    /// JSON Schema, draft 2020-12; `x-rule` says in words what a rule is.
    #[serde(borrow)]
    pub inputs: &'a RawValue,
    /// The same of its outputs.
    #[serde(borrow)]
    pub outputs: &'a RawValue,
    /// At least one.
    #[serde(borrow)]
    pub examples: Vec<Example<'a>>,
}

/// Where a block runs. Shared, never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// On its shard.
    Io,
    /// What is long, on a compute thread.
    Cpu,
}

/// What a block reaches. Shared, never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Capability {
    /// Other hosts.
    Egress,
    /// Secret references.
    Secrets,
    /// The tenant's blobs.
    Fs,
    /// Databases.
    Sql,
}

/// Inputs to try. Shared, never changes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Example<'a> {
    /// What it shows.
    pub says: String,
    /// What must be there for it to run as it says; none: nothing.
    #[serde(default)]
    pub needs: Option<String>,
    /// Inputs.
    #[serde(borrow)]
    pub inputs: &'a RawValue,
    /// What comes of them, where that is always the same.
    #[serde(borrow, default)]
    pub outputs: Option<&'a RawValue>,
}

impl Lane {
    /// As written.
    pub fn as_str(self) -> &'static str {
        match self {
            Lane::Io => "io",
            Lane::Cpu => "cpu",
        }
    }
}

impl Capability {
    /// As written.
    pub fn as_str(self) -> &'static str {
        match self {
            Capability::Egress => "egress",
            Capability::Secrets => "secrets",
            Capability::Fs => "fs",
            Capability::Sql => "sql",
        }
    }
}

impl<'a> Manifest<'a> {
    /// Reads a manifest's text.
    pub(super) fn read(text: &'a str) -> serde_json::Result<Self> {
        serde_json::from_str(text)
    }
}

/// A part of a manifest as a document of its own: without the indentation that it has in its file.
pub fn document(part: &RawValue) -> String {
    // No text in JSON holds a line's end, so each line's beginning is only form.
    let lines: Vec<&str> = part.get().lines().map(|line| line.strip_prefix("  ").unwrap_or(line)).collect();
    lines.join("\n")
}

/// A part of a manifest as one line.
pub fn line(part: &RawValue) -> String {
    let mut line = String::with_capacity(part.get().len());
    let (mut quoted, mut escaped) = (false, false);
    for c in part.get().chars() {
        if quoted || !c.is_ascii_whitespace() {
            line.push(c);
        }
        quoted ^= c == '"' && !escaped;
        escaped = quoted && c == '\\' && !escaped;
    }
    line
}
