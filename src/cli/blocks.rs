//! `endstation blocks ls | schema | example`: which blocks there are, what they take and give, and lines to try them with.
//!
//! All of it is compiled in: no configuration is read.

use std::io::{self, IsTerminal as _, Write};

use clap::{Args, Subcommand};
use serde_json::json;

use super::config::Form;
use super::{EXIT_OK, EXIT_USAGE};
use crate::blocks::manifest::{document, line};
use crate::blocks::{Entry, TABLE, find};

const EXAMPLES: &str = "\
Examples:
  endstation blocks ls
  endstation blocks schema http.request | jq .properties.expect
  endstation blocks example crypto.hash | endstation run -

Exit codes: 0 shown, 2 usage, or no block goes by the name";

/// Whose steps the lines of `blocks example` are.
const TENANT: &str = "acme";

/// `endstation blocks …`
#[derive(Debug, Subcommand)]
pub enum BlocksCommand {
    /// List the blocks
    #[command(after_help = EXAMPLES)]
    Ls(LsArgs),
    /// Print the JSON Schema of a block's inputs
    Schema(SchemaArgs),
    /// Print steps to try a block with, one JSON object a line, as `endstation run -` takes them
    Example(ExampleArgs),
}

/// `endstation blocks ls`
#[derive(Clone, Debug, Default, Args)]
pub struct LsArgs {
    /// And those that are there for development only, in `run` and `dev`
    #[arg(long)]
    pub dev: bool,
}

/// `endstation blocks schema`
#[derive(Clone, Debug, Default, Args)]
pub struct SchemaArgs {
    /// The block, by any of its names
    pub name: String,
    /// That of its outputs instead
    #[arg(long)]
    pub outputs: bool,
    /// Know the blocks for development, too
    #[arg(long)]
    pub dev: bool,
}

/// `endstation blocks example`
#[derive(Clone, Debug, Default, Args)]
pub struct ExampleArgs {
    /// The block, by any of its names
    pub name: String,
    /// Know the blocks for development, too
    #[arg(long)]
    pub dev: bool,
}

/// Does what the command line says, to standard output. Gives the exit code.
///
/// # Errors
/// Where it cannot be written.
pub fn main(command: &BlocksCommand) -> io::Result<u8> {
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    match command {
        BlocksCommand::Ls(args) => ls(args, Form::of_stdout(), &mut out),
        BlocksCommand::Schema(args) => schema(args, &mut out, &mut err),
        BlocksCommand::Example(args) => {
            // What an example needs is for people; a pipe gets the lines alone.
            let told: &mut dyn Write = if io::stderr().is_terminal() { &mut err } else { &mut io::sink() };
            example(args, &mut out, told)
        }
    }
}

fn ls(args: &LsArgs, form: Form, out: &mut impl Write) -> io::Result<u8> {
    let known: Vec<&Entry> = TABLE.iter().filter(|entry| args.dev || !entry.dev).collect();
    let width = known.iter().map(|entry| entry.info.name.len()).max().unwrap_or(0);
    for entry in known {
        let (info, manifest) = (entry.info, entry.manifest());
        match form {
            Form::Table => {
                let (class, lane) = (info.effect.as_str(), manifest.lane.as_str());
                let name = info.name;
                writeln!(out, "{name:width$}  {:7}  {class:13}  {lane:4}  {}", info.version, manifest.summary)?;
            }
            Form::Ndjson => {
                let capabilities: Vec<&str> = manifest.capabilities.iter().map(|one| one.as_str()).collect();
                let row = json!({
                    "name": info.name, "aliases": info.aliases, "version": info.version, "summary": manifest.summary,
                    "effect": info.effect.as_str(), "effect_rule": manifest.effect, "lane": manifest.lane.as_str(), "device": manifest.device,
                    "scopes": manifest.scopes, "capabilities": capabilities, "needs": manifest.needs, "dev": entry.dev,
                });
                writeln!(out, "{row}")?;
            }
        }
    }
    Ok(EXIT_OK)
}

fn schema(args: &SchemaArgs, out: &mut impl Write, err: &mut impl Write) -> io::Result<u8> {
    let Some(entry) = named(&args.name, args.dev, err)? else { return Ok(EXIT_USAGE) };
    let manifest = entry.manifest();
    writeln!(out, "{}", document(if args.outputs { manifest.outputs } else { manifest.inputs }))?;
    Ok(EXIT_OK)
}

fn example(args: &ExampleArgs, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<u8> {
    let Some(entry) = named(&args.name, args.dev, err)? else { return Ok(EXIT_USAGE) };
    for (at, example) in entry.manifest().examples.iter().enumerate() {
        if let Some(needs) = &example.needs {
            writeln!(err, "note: step {} needs: {needs}", at + 1)?;
        }
        let (name, inputs) = (entry.info.name, line(example.inputs));
        let context =
            json!({ "tenant_id": TENANT, "flow_id": "examples", "step_id": format!("{name}-{}", at + 1), "attempt": 1 });
        writeln!(out, r#"{{"type":"{name}","inputs":{inputs},"context":{context}}}"#)?;
    }
    Ok(EXIT_OK)
}

fn named(name: &str, dev: bool, err: &mut dyn Write) -> io::Result<Option<&'static Entry>> {
    let entry = find(name, dev).map(|(_, entry)| entry);
    if entry.is_none() {
        let hint = if find(name, true).is_some() { "; it is there for development: --dev" } else { "" };
        writeln!(err, "error: no block goes by the name {name:?}{hint}")?;
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn listed(dev: bool, form: Form) -> String {
        let mut out = Vec::new();
        assert_eq!(ls(&LsArgs { dev }, form, &mut out).expect("memory"), EXIT_OK);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn blocks_are_listed_and_those_for_development_only_when_asked() {
        let (some, all) = (listed(false, Form::Ndjson), listed(true, Form::Ndjson));
        assert!(some.lines().count() < all.lines().count());
        for line in all.lines() {
            let row: Value = serde_json::from_str(line).expect("JSON");
            let name = row["name"].as_str().expect("a name");
            assert_eq!(row["dev"], name.starts_with("test."), "{line}");
            assert_eq!(some.contains(line), !name.starts_with("test."), "{line}");
            assert!(row["summary"].is_string() && row["effect"].is_string(), "{line}");
            let lane = if name.starts_with("crypto.") || name == "media.render" { "cpu" } else { "io" };
            assert_eq!(row["lane"], lane, "{line}");
        }
        let table = listed(false, Form::Table);
        assert_eq!(table.lines().count(), some.lines().count());
        let row = table.lines().find(|row| row.starts_with("fs.blob_put ")).expect("there");
        assert!(row.contains("1.1.0") && row.contains("conditional") && row.contains("Stores one"), "{row}");
    }

    #[test]
    fn a_schema_is_a_document_of_its_own_by_any_name_of_its_block() {
        let printed = |name: &str, outputs: bool| {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let args = SchemaArgs { name: name.to_owned(), outputs, dev: false };
            assert_eq!(schema(&args, &mut out, &mut err).expect("memory"), EXIT_OK);
            String::from_utf8(out).expect("text")
        };
        assert_eq!(printed("fs.put", false), printed("fs.blob_put", false));
        for (name, outputs, property) in [("http", false, "url"), ("http", true, "status"), ("crypto.sign", false, "key")] {
            let text = printed(name, outputs);
            assert!(text.starts_with("{\n  \"$schema\"") && text.ends_with("\n}\n"), "{text}");
            let schema: Value = serde_json::from_str(&text).expect("JSON");
            assert!(schema["properties"][property].is_object(), "{text}");
        }
    }

    #[test]
    fn a_name_that_no_block_has_says_so() {
        for (name, hint) in [("http.get", false), ("test.fail", true)] {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let args = SchemaArgs { name: name.to_owned(), ..SchemaArgs::default() };
            assert_eq!(schema(&args, &mut out, &mut err).expect("memory"), EXIT_USAGE);
            let err = String::from_utf8(err).expect("text");
            assert!(out.is_empty() && err.contains(name) && err.contains("--dev") == hint, "{err}");
        }
    }

    #[test]
    fn an_example_is_one_step_a_line() {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let args = ExampleArgs { name: "http".to_owned(), dev: false };
        assert_eq!(example(&args, &mut out, &mut err).expect("memory"), EXIT_OK);
        let lines: Vec<Value> = out
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).expect("JSON"))
            .collect();
        assert!(lines.len() > 1 && lines.iter().all(|line| line["type"] == "http.request" && line["inputs"].is_object()));
        assert_eq!(lines[1]["context"]["step_id"], "http.request-2");
        assert!(String::from_utf8(err).expect("text").contains("note: step 2 needs: The connector"));
    }
}
