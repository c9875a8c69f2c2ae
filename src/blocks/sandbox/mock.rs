//! Outputs that nobody computed, the same every time: those of the manifest's first example that has any, else the least that the
//! schema of the outputs allows. Pure.

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::super::manifest::{Manifest, line};

/// Deeper than this no schema of ours goes.
const DEPTH_MAX: u32 = 16;

/// JSON text of outputs, and whether they are an `example`'s or made of the `schema`.
pub(super) fn outputs(manifest: &Manifest<'_>) -> (String, &'static str) {
    if let Some(outputs) = manifest.examples.iter().find_map(|example| example.outputs) {
        return (line(outputs), "example");
    }
    (of_schema(manifest.outputs).to_string(), "schema")
}

/// The least that a schema allows.
pub(super) fn of_schema(schema: &RawValue) -> Value {
    serde_json::from_str(schema.get()).map_or(Value::Null, |schema| least(&schema, DEPTH_MAX))
}

fn least(schema: &Value, left: u32) -> Value {
    let Some(left) = left.checked_sub(1) else { return Value::Null };
    for fixed in [&schema["const"], &schema["default"], &schema["enum"][0]] {
        if !fixed.is_null() {
            return fixed.clone();
        }
    }
    for either in ["oneOf", "anyOf"] {
        if schema["type"].is_null() && schema[either][0].is_object() {
            return least(&schema[either][0], left);
        }
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().find(|kind| *kind != "null").and_then(Value::as_str),
        kind => kind.as_str(),
    };
    let properties = &schema["properties"];
    match kind {
        Some("object") => Value::Object(members(schema, left)),
        None if properties.is_object() => Value::Object(members(schema, left)),
        Some("array") => {
            let least_items = schema["minItems"].as_u64().unwrap_or(0).min(16);
            Value::Array((0..least_items).map(|_| least(&schema["items"], left)).collect())
        }
        Some("integer" | "number") => schema["minimum"].as_i64().filter(|least| *least > 0).unwrap_or(0).into(),
        Some("boolean") => true.into(),
        Some("string") => text(schema).into(),
        _ => Value::Object(Map::new()),
    }
}

fn members(schema: &Value, left: u32) -> Map<String, Value> {
    let required = schema["required"].as_array().map(Vec::as_slice).unwrap_or_default();
    let member = |name: &str| {
        let own = &schema["properties"][name];
        let of = if own.is_null() { &schema["additionalProperties"] } else { own };
        (name.to_owned(), least(of, left))
    };
    required.iter().filter_map(Value::as_str).map(member).collect()
}

fn text(schema: &Value) -> String {
    let Some(pattern) = schema["pattern"].as_str() else {
        return "x".repeat(schema["minLength"].as_u64().unwrap_or(0).min(256) as usize);
    };
    // Digests, of the least length that is allowed.
    let least = pattern.split_once("[0-9a-f]{").and_then(|(_, rest)| rest.split([',', '}']).next());
    "0".repeat(least.and_then(|digits| digits.parse::<usize>().ok()).unwrap_or(0).min(256))
}
