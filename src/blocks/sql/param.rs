//! Parameters: JSON values as a database takes them, with their types where the step names them.
//!
//! A parameter goes as text, in the form that the database reads itself; a type that is not named is what the statement makes of
//! it. A value is checked against a type that is named, before acceptance. No parameter is ever a part of a statement.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_PAD_INDIFFERENT as BASE64;
use serde_json::value::RawValue;
use shards::ids::hex;

use super::super::inputs::{Inputs, text_of};

/// Most parameters of a statement: what PostgreSQL's protocol counts.
pub(super) const PARAMS_MAX: usize = 65_535;
/// How deep an array may be: what PostgreSQL takes.
const DEPTH_MAX: usize = 6;

/// A type that a step may name. Shared, never changes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kind {
    names: &'static [&'static str],
    /// Its number in PostgreSQL, and that of its arrays.
    oid: u32,
    array_oid: u32,
    class: Class,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Bool,
    Whole(i64, u64),
    Numeric,
    Float,
    Text,
    Bytes,
    Uuid,
    Json,
    /// A text in the form that the database reads.
    Form,
}

const fn kind(names: &'static [&'static str], oid: u32, array_oid: u32, class: Class) -> Kind {
    Kind { names, oid, array_oid, class }
}

/// Every type that may be named; the numbers are PostgreSQL's own and do not change.
static KINDS: &[Kind] = &[
    kind(&["bool", "boolean"], 16, 1000, Class::Bool),
    kind(&["int2", "smallint"], 21, 1005, Class::Whole(i16::MIN as i64, i16::MAX as u64)),
    kind(&["int4", "integer", "int"], 23, 1007, Class::Whole(i32::MIN as i64, i32::MAX as u64)),
    kind(&["int8", "bigint"], 20, 1016, Class::Whole(i64::MIN, i64::MAX as u64)),
    kind(&["oid"], 26, 1028, Class::Whole(0, u32::MAX as u64)),
    kind(&["numeric", "decimal"], 1700, 1231, Class::Numeric),
    kind(&["float4", "real"], 700, 1021, Class::Float),
    kind(&["float8", "double"], 701, 1022, Class::Float),
    kind(&["text"], 25, 1009, Class::Text),
    kind(&["varchar"], 1043, 1015, Class::Text),
    kind(&["bytea"], 17, 1001, Class::Bytes),
    kind(&["uuid"], 2950, 2951, Class::Uuid),
    kind(&["json"], 114, 199, Class::Json),
    kind(&["jsonb"], 3802, 3807, Class::Json),
    kind(&["date"], 1082, 1182, Class::Form),
    kind(&["time"], 1083, 1183, Class::Form),
    kind(&["timetz"], 1266, 1270, Class::Form),
    kind(&["timestamp"], 1114, 1115, Class::Form),
    kind(&["timestamptz"], 1184, 1185, Class::Form),
    kind(&["interval"], 1186, 1187, Class::Form),
    kind(&["inet"], 869, 1041, Class::Form),
    kind(&["cidr"], 650, 651, Class::Form),
    kind(&["macaddr"], 829, 1040, Class::Form),
    kind(&["int4range"], 3904, 3905, Class::Form),
    kind(&["int8range"], 3926, 3927, Class::Form),
    kind(&["numrange"], 3906, 3907, Class::Form),
    kind(&["tsrange"], 3908, 3909, Class::Form),
    kind(&["tstzrange"], 3910, 3911, Class::Form),
    kind(&["daterange"], 3912, 3913, Class::Form),
];

/// One parameter. Lives on its core.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Param {
    /// Its type's number in PostgreSQL; 0: what the statement makes of it.
    pub(super) oid: u32,
    /// Its value.
    pub(super) given: Given,
}

/// A value. Crosses cores.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Given {
    /// None.
    Null,
    /// A truth value.
    Bool(bool),
    /// A number as it was written.
    Number(String),
    /// A text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// An array in PostgreSQL's own form.
    List(String),
}

impl Given {
    /// As PostgreSQL reads it; none for no value.
    pub(super) fn text(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Given::Null => return None,
            Given::Bool(flag) => if *flag { "true" } else { "false" }.into(),
            Given::Number(text) | Given::Text(text) | Given::List(text) => text.as_str().into(),
            Given::Bytes(bytes) => format!("\\x{}", hex(bytes)).into(),
        })
    }
}

/// What is wrong with a parameter: where, below its own field, and which rule.
pub(super) type Wrong = (String, String);

/// A JSON value by what it begins with; a number stays the text that it is.
enum Shape<'a> {
    Null,
    Bool(bool),
    Number(&'a str),
    Text(Cow<'a, str>),
    List(Vec<&'a RawValue>),
    Object(&'a str),
}

fn shape(raw: &str) -> Shape<'_> {
    let raw = raw.trim();
    match raw.as_bytes().first() {
        Some(b'n') | None => Shape::Null,
        Some(b't') => Shape::Bool(true),
        Some(b'f') => Shape::Bool(false),
        Some(b'"') => Shape::Text(text_of(raw).unwrap_or_default()),
        Some(b'[') => Shape::List(serde_json::from_str(raw).unwrap_or_default()),
        Some(b'{') => Shape::Object(raw),
        Some(_) => Shape::Number(raw),
    }
}

/// Reads one parameter, JSON text: a value, or an object of exactly `type` and `value`.
pub(super) fn read(raw: &str) -> Result<Param, Wrong> {
    let Shape::Object(object) = shape(raw) else {
        return Ok(Param { oid: 0, given: untyped(raw).map_err(|rule| (String::new(), rule))? });
    };
    let members = Inputs::read(object.as_bytes()).map(Inputs::members).unwrap_or_default();
    let member = |name: &str| members.iter().find(|(known, _)| known == name).map(|(_, raw)| *raw);
    let (Some(named), Some(value), 2) = (member("type"), member("value"), members.len()) else {
        return Ok(Param { oid: 0, given: untyped(raw).map_err(|rule| (String::new(), rule))? });
    };
    let rule = || ("/type".to_owned(), format!("one of {}, or one of these with [] behind it", names()));
    let named = text_of(named).ok_or_else(rule)?;
    let (one, list) = named.strip_suffix("[]").map_or((&*named, false), |one| (one, true));
    let kind = KINDS.iter().find(|kind| kind.names.contains(&one)).ok_or_else(rule)?;
    let at = |rule: String| ("/value".to_owned(), rule);
    let given = match (shape(value), list) {
        (Shape::Null, _) => Given::Null,
        (Shape::List(elements), true) => Given::List(literal(&elements, 1, &|one| typed(kind, one)).map_err(at)?),
        (_, true) => return Err(at(format!("a list, for {named}"))),
        (_, false) => typed(kind, value).map_err(at)?,
    };
    Ok(Param { oid: if list { kind.array_oid } else { kind.oid }, given })
}

/// Every name, for a rule.
fn names() -> String {
    KINDS.iter().map(|kind| kind.names[0]).collect::<Vec<_>>().join(", ")
}

fn untyped(raw: &str) -> Result<Given, String> {
    Ok(match shape(raw) {
        Shape::Null => Given::Null,
        Shape::Bool(flag) => Given::Bool(flag),
        Shape::Number(text) => Given::Number(text.to_owned()),
        Shape::Text(text) => Given::Text(storable(&text)?),
        Shape::List(elements) => Given::List(literal(&elements, 1, &untyped)?),
        Shape::Object(text) => Given::Text(text.to_owned()),
    })
}

/// A value of this type.
fn typed(kind: &Kind, raw: &str) -> Result<Given, String> {
    let name = kind.names[0];
    let shaped = shape(raw);
    if let Shape::Null = shaped {
        return Ok(Given::Null);
    }
    let number = match &shaped {
        Shape::Number(text) => Some(*text),
        Shape::Text(text) => Some(&**text),
        _ => None,
    };
    Ok(match (kind.class, &shaped) {
        (Class::Json, _) => Given::Text(raw.trim().to_owned()),
        (Class::Bool, Shape::Bool(flag)) => Given::Bool(*flag),
        (Class::Bool, _) => return Err("true or false".to_owned()),
        (Class::Whole(low, high), _) => {
            let rule = || format!("a whole number from {low} to {high}, for {name}");
            let text = number.ok_or_else(rule)?;
            let whole = text.parse::<i64>().ok().or_else(|| whole(text)).ok_or_else(rule)?;
            let fits = whole >= low && (whole < 0 || whole as u64 <= high);
            fits.then(|| Given::Number(whole.to_string())).ok_or_else(rule)?
        }
        (Class::Numeric, _) => {
            let rule = || "a number, or one as a text, for numeric".to_owned();
            // As a text on every database: what it says must not be rounded.
            number.filter(|text| is_numeric(text)).map(|text| Given::Text(text.to_owned())).ok_or_else(rule)?
        }
        (Class::Float, _) => {
            let rule = || format!("a number, NaN, Infinity or -Infinity, for {name}");
            number.filter(|text| is_numeric(text)).map(|text| Given::Number(text.to_owned())).ok_or_else(rule)?
        }
        (Class::Bytes, Shape::Text(text)) => {
            let bytes = BASE64.decode(text.as_bytes());
            Given::Bytes(bytes.map_err(|_| "base64, standard alphabet, for bytea".to_owned())?)
        }
        (Class::Bytes, _) => return Err("base64, standard alphabet, for bytea".to_owned()),
        (Class::Uuid, Shape::Text(text)) if is_uuid(text) => Given::Text(text.clone().into_owned()),
        (Class::Uuid, _) => return Err("32 hexadecimal digits in groups of 8, 4, 4, 4 and 12, for uuid".to_owned()),
        (Class::Text | Class::Form, Shape::Text(text)) => Given::Text(storable(text)?),
        (Class::Text | Class::Form, _) => return Err(format!("a text, for {name}")),
    })
}

/// PostgreSQL keeps every character but one, and SQLite shows what is before it.
fn storable(text: &str) -> Result<String, String> {
    if text.contains('\0') { Err("a text without U+0000".to_owned()) } else { Ok(text.to_owned()) }
}

/// An array in PostgreSQL's own form: every element quoted, so that none is taken for anything else.
fn literal(elements: &[&RawValue], depth: usize, one: &dyn Fn(&str) -> Result<Given, String>) -> Result<String, String> {
    if depth > DEPTH_MAX {
        return Err(format!("at most {DEPTH_MAX} lists in each other"));
    }
    let is_list = |element: &&&RawValue| element.get().starts_with('[');
    let nested = elements.iter().filter(is_list).count();
    if nested != 0 && nested != elements.len() {
        return Err("a list of lists, or of no list".to_owned());
    }
    let mut out = String::from("{");
    for (at, element) in elements.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        if let Shape::List(inner) = shape(element.get()) {
            out.push_str(&literal(&inner, depth + 1, one)?);
            continue;
        }
        match one(element.get())?.text() {
            None => out.push_str("NULL"),
            Some(text) => {
                out.push('"');
                for c in text.chars() {
                    if matches!(c, '"' | '\\') {
                        out.push('\\');
                    }
                    out.push(c);
                }
                out.push('"');
            }
        }
    }
    out.push('}');
    Ok(out)
}

/// `100.0` is whole, too: protobuf's Struct knows only doubles.
fn whole(text: &str) -> Option<i64> {
    const EXACT_MAX: f64 = (1_u64 << 53) as f64;
    let number: f64 = text.parse().ok().filter(|_| is_number(text))?;
    ((-EXACT_MAX..=EXACT_MAX).contains(&number) && number.fract() == 0.0).then_some(number as i64)
}

/// Digits with at most one point and an exponent.
fn is_number(text: &str) -> bool {
    let rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (digits, exponent) = rest.split_once(['e', 'E']).map_or((rest, None), |(digits, exponent)| (digits, Some(exponent)));
    let (before, after) = digits.split_once('.').unwrap_or((digits, ""));
    let all = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let exponent_fits = exponent.is_none_or(|exponent| {
        let digits = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        !digits.is_empty() && all(digits)
    });
    all(before) && all(after) && before.len() + after.len() > 0 && exponent_fits
}

fn is_numeric(text: &str) -> bool {
    is_number(text) || matches!(text, "NaN" | "Infinity" | "-Infinity")
}

fn is_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    let lengths = [8, 4, 4, 4, 12];
    groups.len() == lengths.len()
        && groups.iter().zip(lengths).all(|(group, length)| group.len() == length)
        && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn text(value: Value) -> Option<String> {
        read(&value.to_string()).expect("good").given.text().map(|text| text.into_owned())
    }

    #[test]
    fn values_go_in_the_form_that_the_database_reads() {
        for (value, said) in [
            (json!(null), None),
            (json!(true), Some("true")),
            (json!(-7), Some("-7")),
            (json!(18_446_744_073_709_551_615_u64), Some("18446744073709551615")),
            (json!(1.5), Some("1.5")),
            (json!("'; drop table t; --"), Some("'; drop table t; --")),
            (json!({"a": [1]}), Some(r#"{"a":[1]}"#)),
            (json!([1, null, "a\"b\\c", true]), Some(r#"{"1",NULL,"a\"b\\c","true"}"#)),
            (json!([[1, 2], [3, 4]]), Some(r#"{{"1","2"},{"3","4"}}"#)),
            (json!([]), Some("{}")),
            (json!({"type": "bytea", "value": "AP8="}), Some("\\x00ff")),
            (json!({"type": "bytea[]", "value": ["AP8="]}), Some(r#"{"\\x00ff"}"#)),
            (json!({"type": "int4", "value": "12"}), Some("12")),
            (json!({"type": "int8", "value": 5.0}), Some("5")),
            (json!({"type": "numeric", "value": "0.10"}), Some("0.10")),
            (json!({"type": "numeric", "value": "NaN"}), Some("NaN")),
            (json!({"type": "float8", "value": "-Infinity"}), Some("-Infinity")),
            (json!({"type": "jsonb", "value": [1, {"type": "x", "value": 1}]}), Some(r#"[1,{"type":"x","value":1}]"#)),
            (json!({"type": "jsonb", "value": null}), None),
            (json!({"type": "timestamptz", "value": "2026-01-31T12:00:00+01:00"}), Some("2026-01-31T12:00:00+01:00")),
            (json!({"type": "x", "value": 1, "more": 2}), Some(r#"{"more":2,"type":"x","value":1}"#)),
        ] {
            assert_eq!(text(value.clone()).as_deref(), said, "{value}");
        }
        let oid = |value: Value| read(&value.to_string()).expect("good").oid;
        assert_eq!(oid(json!({"type": "uuid", "value": null})), 2950);
        assert_eq!(oid(json!({"type": "int4[]", "value": [1]})), 1007);
        assert_eq!(oid(json!(1)), 0);
    }

    #[test]
    fn a_value_that_its_type_forbids_says_where_and_why() {
        for (value, at, rule) in [
            (json!({"type": "int", "value": "x"}), "/value", "a whole number"),
            (json!({"type": "int2", "value": 32_768}), "/value", "a whole number"),
            (json!({"type": "int4", "value": 1.5}), "/value", "a whole number"),
            (json!({"type": "int8", "value": "9223372036854775808"}), "/value", "a whole number"),
            (json!({"type": "numeric", "value": "1;2"}), "/value", "a number"),
            (json!({"type": "float8", "value": "inf"}), "/value", "a number"),
            (json!({"type": "uuid", "value": "x"}), "/value", "hexadecimal"),
            (json!({"type": "bytea", "value": "*"}), "/value", "base64"),
            (json!({"type": "bool", "value": 1}), "/value", "true or false"),
            (json!({"type": "text", "value": 1}), "/value", "a text"),
            (json!({"type": "text", "value": "a\u{0}"}), "/value", "U+0000"),
            (json!({"type": "text[]", "value": "a"}), "/value", "a list"),
            (json!({"type": "text[]", "value": ["a", ["b"]]}), "/value", "a list of lists"),
            (json!({"type": "mood", "value": "a"}), "/type", "one of bool"),
            (json!({"type": 1, "value": "a"}), "/type", "one of bool"),
            (json!("a\u{0}b"), "", "U+0000"),
            (json!([[[[[[[1]]]]]]]), "", "at most 6"),
        ] {
            let (pointer, said) = read(&value.to_string()).expect_err(&value.to_string());
            assert!(pointer == at && said.contains(rule), "{value}: {pointer} {said}");
        }
    }
}
