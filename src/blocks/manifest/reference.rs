//! `REFERENCE.md` from the manifests: pure, and compared with the file that is committed.
//!
//! `UPDATE_REFERENCE=1 cargo test --lib the_reference_is_what_the_manifests_say` writes it anew.

use std::borrow::Cow;
use std::fmt::Write as _;

use serde_json::Value;

use super::super::inputs::Inputs;
use super::super::{Entry, TABLE};
use super::line;

const HEAD: &str = "\
# Blocks

Made from the manifests in [manifests](manifests); a test compares them, so what is written here by hand is lost
(`UPDATE_REFERENCE=1 cargo test --lib the_reference_is_what_the_manifests_say` writes it anew). `endstation blocks schema NAME`
prints the schema of a block's inputs, with `--outputs` that of its outputs; `endstation blocks example NAME` prints lines that
`endstation run -` takes.

An input that is not there and one that is `null` are the same. Inputs that a block does not know are ignored.
";

const DEV: &str = "\
# Blocks for development

Only in `run` and `dev`; `endstation blocks ls --dev` lists them. Elsewhere their names are as unknown as any.
";

/// The whole file. The blocks that are built for crash tests alone have no place in it.
fn reference() -> String {
    let mut out = HEAD.to_owned();
    let known = |dev| TABLE.iter().filter(move |entry| entry.dev == dev && !entry.info.name.starts_with("test.effect."));
    known(false).for_each(|entry| block(&mut out, entry));
    out.push('\n');
    out.push_str(DEV);
    known(true).for_each(|entry| block(&mut out, entry));
    out
}

fn block(out: &mut String, entry: &Entry) {
    let (manifest, info) = (entry.manifest(), entry.info);
    let aliases: Vec<String> = info.aliases.iter().map(|alias| format!("`{alias}`")).collect();
    let also = if aliases.is_empty() { String::new() } else { format!(", also {}", aliases.join(", ")) };
    _ = write!(out, "\n## {}\n\n{}\n\n", info.name, manifest.summary);
    let device = if manifest.device { ", or gpu where `resources.class` says so" } else { "" };
    _ = writeln!(out, "- Version {}{also}; lane {}{device}.", info.version, manifest.lane.as_str());
    let class = info.effect.as_str();
    _ = match &manifest.effect {
        None => writeln!(out, "- Effect class {class}."),
        Some(rule) => writeln!(out, "- Effect class {class} where nothing else is known. {rule}"),
    };
    if let Some(needs) = &manifest.needs {
        _ = writeln!(out, "- Needs: {needs}");
    }
    let inputs = rows(manifest.inputs.get());
    if inputs.is_empty() {
        _ = write!(out, "\nInputs: {}\n", described(manifest.inputs.get(), "None."));
    } else {
        out.push_str("\n| input | type | default | rule | what |\n|---|---|---|---|---|\n");
        for Row { name, kind, default, rule, what } in inputs {
            _ = writeln!(out, "| `{name}` | {kind} | {default} | {rule} | {what} |");
        }
    }
    let outputs = rows(manifest.outputs.get());
    if outputs.is_empty() {
        _ = write!(out, "\nOutputs: {}\n", described(manifest.outputs.get(), "An empty object."));
    } else {
        out.push_str("\n| output | type | what |\n|---|---|---|\n");
        for Row { name, kind, what, .. } in outputs {
            _ = writeln!(out, "| `{name}` | {kind} | {what} |");
        }
    }
    for example in &manifest.examples {
        let needs = example.needs.as_ref().map_or(String::new(), |needs| format!(" Needs: {needs}"));
        let outputs = example.outputs.map_or(String::new(), |outputs| format!("{}\n", line(outputs)));
        _ = write!(out, "\n{}.{needs}\n\n```json\n{}\n{outputs}```\n", example.says, line(example.inputs));
    }
}

/// One property of a schema.
struct Row<'a> {
    name: Cow<'a, str>,
    kind: String,
    default: String,
    rule: String,
    what: String,
}

fn rows(schema: &str) -> Vec<Row<'_>> {
    let members = members(schema);
    let of = |wanted: &str| members.iter().find(|(name, _)| name == wanted).map(|(_, value)| *value);
    let required: Vec<String> = of("required").map_or(Vec::new(), |list| serde_json::from_str(list).expect("a list of names"));
    let properties = of("properties").map_or(Vec::new(), self::members);
    let row = |(name, text): (_, &str)| {
        let property: Value = serde_json::from_str(text).expect("a property");
        let default = match &property["default"] {
            Value::Null if required.iter().any(|one| one == &name) => "required".to_owned(),
            Value::Null => String::new(),
            value => format!("`{value}`"),
        };
        let what = cell(property["description"].as_str().unwrap_or_default());
        Row { kind: kind(&property), default, rule: cell(&rule(&property)), what, name }
    };
    properties.into_iter().map(row).collect()
}

/// The members of an object, in the order in which they are written.
fn members(object: &str) -> Vec<(Cow<'_, str>, &str)> {
    Inputs::read(object.as_bytes()).expect("an object").members()
}

fn kind(property: &Value) -> String {
    let one = |value: &Value| value.as_str().filter(|kind| *kind != "null").map(str::to_owned);
    let kinds: Vec<String> = match &property["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(one).collect(),
        kind @ Value::String(_) => one(kind).into_iter().collect(),
        _ => property["anyOf"].as_array().into_iter().flatten().filter_map(|kind| one(&kind["type"])).collect(),
    };
    if kinds.is_empty() { "any".to_owned() } else { kinds.join(" or ") }
}

fn rule(property: &Value) -> String {
    if let Some(rule) = property["x-rule"].as_str() {
        return rule.to_owned();
    }
    if let Some(words) = property["enum"].as_array() {
        let words: Vec<String> = words.iter().filter_map(Value::as_str).map(|word| format!("`{word}`")).collect();
        return words.join(", ");
    }
    match (&property["minimum"], &property["maximum"]) {
        (Value::Null, Value::Null) => String::new(),
        (least, Value::Null) => format!("at least {least}"),
        (Value::Null, most) => format!("at most {most}"),
        (least, most) => format!("{least} to {most}"),
    }
}

/// A text that a table's cell can hold.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn described(schema: &str, otherwise: &str) -> String {
    let schema: Value = serde_json::from_str(schema).expect("a schema");
    schema["description"].as_str().unwrap_or(otherwise).to_owned()
}

#[test]
fn the_reference_is_what_the_manifests_say() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/blocks/REFERENCE.md");
    let made = reference();
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(file, &made).expect("the sources can be written");
    }
    let there = std::fs::read_to_string(file).unwrap_or_default();
    let differs = there.lines().zip(made.lines()).position(|(there, made)| there != made);
    let line = differs.unwrap_or(there.lines().count().min(made.lines().count())) + 1;
    assert!(
        there == made,
        "src/blocks/REFERENCE.md differs from the manifests in line {line}: run this test with UPDATE_REFERENCE=1"
    );
}
