//! What a step's inputs take from the outputs of steps before it: `${steps.ID.outputs}` for all of them, and behind that a JSON
//! Pointer (`${steps.ID.outputs./items/0/name}`, RFC 6901) or names with dots (`${steps.ID.outputs.items.0.name}`). Pure.
//!
//! A string that is nothing but one reference becomes the value, whatever its type. Inside a text a string stands as it is and
//! anything else as JSON. `$${` is `${` and no reference. Names with dots are of letters, digits, `_` and `-`; everything else,
//! but `}`, is reached by a pointer. References stand in values, never in the names of members.
//!
//! Values are cut out of the outputs as they are written: no number changes its digits on the way.

use std::borrow::Cow;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::Wrong;

/// How a reference begins.
const BEGIN: &str = "${";
/// What stands for that in a text.
const ESCAPED: &str = "$${";
/// The rule of a reference's form.
const FORM: &str =
    "a reference is ${steps.ID.outputs}, ${steps.ID.outputs./a/0} or ${steps.ID.outputs.a.0}; write $${ for the text itself";

/// A step's inputs as written, and where they take something from elsewhere. Lives with the flow.
#[derive(Debug, Default)]
pub(crate) struct Template {
    text: String,
    slots: Vec<Slot>,
}

/// A string with references or escapes.
#[derive(Debug)]
struct Slot {
    /// In the text, quotes included.
    range: Range<usize>,
    /// Where it stands, beneath the inputs.
    pointer: String,
    parts: Vec<Part>,
}

#[derive(Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Reference(Reference),
}

/// A value of an earlier step's outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    /// Which step.
    pub(crate) step: String,
    /// The way to it; none: all of them.
    path: Vec<String>,
    /// As it is written.
    pub(crate) written: String,
}

/// Why inputs cannot be filled in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unfilled {
    /// Where, in the inputs.
    pub(crate) pointer: String,
    /// Why.
    pub(crate) rule: String,
}

impl Template {
    /// The inputs `text`, valid JSON; what is wrong with their references goes to `wrong`, at `base`.
    pub(crate) fn read(text: &str, base: &str, wrong: &mut Vec<Wrong>) -> Template {
        let mut template = Template { text: text.to_owned(), slots: Vec::new() };
        let mut walk = Walk { begin: text.as_ptr() as usize, base, slots: &mut template.slots, wrong };
        walk.value(text, "");
        template
    }

    /// Whether they are the same whatever the steps before them do.
    pub(crate) fn is_fixed(&self) -> bool {
        self.references().next().is_none()
    }

    /// Every reference, with the pointer to where it stands.
    pub(crate) fn references(&self) -> impl Iterator<Item = (&str, &Reference)> {
        self.slots.iter().flat_map(Slot::references)
    }

    /// The inputs with every reference replaced; `outputs` gives those of a step by its id.
    ///
    /// # Errors
    /// There is no such value, or it becomes too much.
    pub(crate) fn fill<'o>(&self, bytes_max: usize, outputs: impl Fn(&str) -> Option<&'o str>) -> Result<String, Unfilled> {
        let mut filled = String::with_capacity(self.text.len());
        let mut at = 0;
        for slot in &self.slots {
            let unfilled = |rule: String| Unfilled { pointer: slot.pointer.clone(), rule };
            filled.push_str(&self.text[at..slot.range.start]);
            at = slot.range.end;
            match &slot.parts[..] {
                [Part::Reference(one)] => filled.push_str(one.value(&outputs).map_err(unfilled)?),
                parts => {
                    let mut text = String::new();
                    for part in parts {
                        match part {
                            Part::Text(plain) => text.push_str(plain),
                            Part::Reference(one) => {
                                let value = one.value(&outputs).map_err(unfilled)?;
                                text.push_str(&string(value).unwrap_or(Cow::Borrowed(value)));
                            }
                        }
                        if text.len() > bytes_max {
                            return Err(unfilled(format!("at most {bytes_max} bytes in all")));
                        }
                    }
                    filled.push_str(&quoted(&text));
                }
            }
            if filled.len() > bytes_max {
                return Err(unfilled(format!("at most {bytes_max} bytes in all")));
            }
        }
        filled.push_str(&self.text[at..]);
        Ok(filled)
    }
}

impl Slot {
    fn references(&self) -> impl Iterator<Item = (&str, &Reference)> {
        self.parts.iter().filter_map(Part::reference).map(|reference| (self.pointer.as_str(), reference))
    }
}

impl Part {
    fn reference(&self) -> Option<&Reference> {
        match self {
            Part::Reference(reference) => Some(reference),
            Part::Text(_) => None,
        }
    }
}

impl Reference {
    /// What it stands for, as it is written.
    fn value<'o>(&self, outputs: &impl Fn(&str) -> Option<&'o str>) -> Result<&'o str, String> {
        let none = || format!("{} stands for nothing: the step's outputs have no such value", self.written);
        let mut value = outputs(&self.step).ok_or_else(none)?.trim_ascii();
        for name in &self.path {
            value = inside(value, name).ok_or_else(none)?;
        }
        Ok(value)
    }

    /// Reads what stands between the braces.
    fn read(inner: &str) -> Option<Reference> {
        let (step, rest) = inner.strip_prefix("steps.")?.split_once('.')?;
        if step.is_empty() || !step.bytes().all(plain) {
            return None;
        }
        let path = match rest.strip_prefix("outputs")? {
            "" => Vec::new(),
            rest => match rest.strip_prefix('.')? {
                pointer if pointer.starts_with('/') => pointer.split('/').skip(1).map(unescaped).collect::<Option<_>>()?,
                dotted => dotted
                    .split('.')
                    .map(|name| (!name.is_empty() && name.bytes().all(plain)).then(|| name.to_owned()))
                    .collect::<Option<_>>()?,
            },
        };
        Some(Reference { step: step.to_owned(), path, written: format!("{BEGIN}{inner}}}") })
    }
}

/// A letter of a step's id, and of a name with dots.
pub(super) fn plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

/// A part of a JSON Pointer as the name it stands for.
fn unescaped(part: &str) -> Option<String> {
    let mut name = String::with_capacity(part.len());
    let mut rest = part;
    while let Some((before, after)) = rest.split_once('~') {
        name.push_str(before);
        name.push(match after.bytes().next()? {
            b'0' => '~',
            b'1' => '/',
            _ => return None,
        });
        rest = &after[1..];
    }
    name.push_str(rest);
    Some(name)
}

/// The member, or the part of a list, that goes by this name.
fn inside<'o>(value: &'o str, name: &str) -> Option<&'o str> {
    match value.as_bytes().first()? {
        b'{' => {
            let members = Members::read(value)?;
            members.0.into_iter().find(|(member, _)| member == name).map(|(_, raw)| raw.get())
        }
        b'[' => {
            let number =
                name == "0" || (!name.starts_with('0') && !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()));
            let list: Vec<&RawValue> = serde_json::from_str(value).ok()?;
            list.get(name.parse::<usize>().ok().filter(|_| number)?).map(|raw| raw.get())
        }
        _ => None,
    }
}

/// The parts of a string; `None` where it holds neither a reference nor an escape.
fn parts(text: &str) -> Result<Option<Vec<Part>>, String> {
    if !text.contains(BEGIN) {
        return Ok(None);
    }
    let mut parts = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix(ESCAPED) {
            plain.push_str(BEGIN);
            rest = after;
        } else if let Some(after) = rest.strip_prefix(BEGIN) {
            let (inner, after) = after.split_once('}').ok_or_else(|| FORM.to_owned())?;
            let reference = Reference::read(inner).ok_or_else(|| FORM.to_owned())?;
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(Part::Reference(reference));
            rest = after;
        } else {
            plain.push('$');
            rest = &rest[1..];
        }
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        parts.push(Part::Text(plain));
    }
    Ok(Some(parts))
}

struct Walk<'w> {
    begin: usize,
    base: &'w str,
    slots: &'w mut Vec<Slot>,
    wrong: &'w mut Vec<Wrong>,
}

impl Walk<'_> {
    /// Looks at `raw`, a part of the inputs, which stands at `pointer` in them.
    fn value(&mut self, raw: &str, pointer: &str) {
        let raw = raw.trim_ascii();
        match raw.as_bytes().first() {
            Some(b'{') => {
                for (name, value) in Members::read(raw).unwrap_or_default().0 {
                    let inner = format!("{pointer}/{}", escaped(&name));
                    if name.contains("${steps.") {
                        self.wrong.push(Wrong::new(format!("{}{inner}", self.base), "references stand in values, not in names"));
                    }
                    self.value(value.get(), &inner);
                }
            }
            Some(b'[') => {
                let list: Vec<&RawValue> = serde_json::from_str(raw).unwrap_or_default();
                for (at, value) in list.into_iter().enumerate() {
                    self.value(value.get(), &format!("{pointer}/{at}"));
                }
            }
            Some(b'"') => {
                let Some(text) = string(raw) else { return };
                match parts(&text) {
                    Ok(None) => {}
                    Ok(Some(parts)) => {
                        let start = raw.as_ptr() as usize - self.begin;
                        self.slots.push(Slot { range: start..start + raw.len(), pointer: pointer.to_owned(), parts });
                    }
                    Err(rule) => self.wrong.push(Wrong::new(format!("{}{pointer}", self.base), rule)),
                }
            }
            _ => {}
        }
    }
}

/// The members of an object as they are written, in their order.
#[derive(Default)]
pub(super) struct Members<'a>(pub(super) Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    /// `None` where it is no object.
    pub(super) fn read(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;

        impl<'de> Visitor<'de> for Each {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((Name(name), value)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Each)
    }
}

/// Borrows where the text has no escapes.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// The string that `raw` is.
pub(super) fn string(raw: &str) -> Option<Cow<'_, str>> {
    serde_json::from_str::<Name<'_>>(raw).ok().map(|Name(text)| text)
}

/// A text as JSON has it.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A name as a part of a JSON Pointer.
pub(super) fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUTS: &str =
        r#" {"n": 1.50, "text":"a\"b", "list":[{"name":"x"},null,true], "a/b":{"m~n":7}, "":"empty", "0":"zero"} "#;

    fn fill(inputs: &str) -> Result<String, String> {
        let mut wrong = Vec::new();
        let template = Template::read(inputs, "/inputs", &mut wrong);
        if let Some(Wrong { pointer, rule }) = wrong.pop() {
            return Err(format!("{pointer}: {rule}"));
        }
        let outputs = |step: &str| (step == "a").then_some(OUTPUTS);
        template.fill(1_000, outputs).map_err(|Unfilled { pointer, rule }| format!("{pointer}: {rule}"))
    }

    #[test]
    fn a_string_that_is_one_reference_becomes_the_value_as_it_is_written() {
        for (reference, value) in [
            ("${steps.a.outputs}", OUTPUTS.trim()),
            ("${steps.a.outputs./n}", "1.50"),
            ("${steps.a.outputs.n}", "1.50"),
            ("${steps.a.outputs.text}", r#""a\"b""#),
            ("${steps.a.outputs./list/0/name}", r#""x""#),
            ("${steps.a.outputs.list.0.name}", r#""x""#),
            ("${steps.a.outputs.list.1}", "null"),
            ("${steps.a.outputs.list}", r#"[{"name":"x"},null,true]"#),
            ("${steps.a.outputs./a~1b/m~0n}", "7"),
            ("${steps.a.outputs./}", r#""empty""#),
            ("${steps.a.outputs.0}", r#""zero""#),
        ] {
            let inputs = format!("{{ \"x\" : [1e2, {}] }}", quoted(reference));
            assert_eq!(fill(&inputs), Ok(format!("{{ \"x\" : [1e2, {value}] }}")), "{reference}");
        }
    }

    #[test]
    fn inside_a_text_strings_stand_as_they_are_and_all_else_as_json() {
        for (text, filled) in [
            ("n=${steps.a.outputs.n} of ${steps.a.outputs.text}!", "n=1.50 of a\"b!"),
            ("${steps.a.outputs.n}${steps.a.outputs.n}", "1.501.50"),
            ("list: ${steps.a.outputs./list}", r#"list: [{"name":"x"},null,true]"#),
            ("$${steps.a.outputs.n}", "${steps.a.outputs.n}"),
            ("cost: 5$, $${HOME} and $ { }", "cost: 5$, ${HOME} and $ { }"),
            ("$$${x}", "$${x}"),
            ("$$", "$$"),
        ] {
            let inputs = format!("{{\"x\":{}}}", quoted(text));
            assert_eq!(fill(&inputs), Ok(format!("{{\"x\":{}}}", quoted(filled))), "{text}");
        }
        assert_eq!(fill(r#"{"${x}":"y"}"#), Ok(r#"{"${x}":"y"}"#.to_owned()), "a name is a name");
    }

    #[test]
    fn what_is_no_reference_is_refused_where_it_stands() {
        for text in [
            "${HOME}",
            "${",
            "${}",
            "${steps}",
            "${steps.}",
            "${steps.a}",
            "${steps.a.inputs}",
            "${steps..outputs}",
            "${steps.a.outputsx}",
            "${steps.a.outputs/x}",
            "${steps.a.outputs.}",
            "${steps.a.outputs.a..b}",
            "${steps.a.outputs.a b}",
            "${steps.a.outputs./a~2}",
            "${steps.a.outputs./a~}",
            "${steps.a b.outputs}",
            "x ${steps.a.outputs.n",
        ] {
            let said = fill(&format!("{{\"x/y\":[{}]}}", quoted(text))).expect_err(text);
            assert_eq!(said, format!("/inputs/x~1y/0: {FORM}"), "{text}");
        }
        let said = fill(r#"{"${steps.a.outputs}":1}"#).expect_err("a name");
        assert!(said.ends_with("references stand in values, not in names"), "{said}");
    }

    #[test]
    fn a_reference_to_nothing_is_named_and_no_text_grows_without_end() {
        for reference in [
            "${steps.b.outputs}",
            "${steps.a.outputs.m}",
            "${steps.a.outputs.n.m}",
            "${steps.a.outputs.list.3}",
            "${steps.a.outputs.list.00}",
            "${steps.a.outputs.list.-1}",
            "${steps.a.outputs.list.name}",
            "${steps.a.outputs./list/}",
        ] {
            let said = fill(&format!("{{\"x\":{}}}", quoted(reference))).expect_err(reference);
            assert!(said.starts_with(&format!("/x: {reference} stands for nothing")), "{said}");
        }
        let many = "${steps.a.outputs}".repeat(20);
        assert_eq!(fill(&format!("{{\"x\":{}}}", quoted(&many))), Err("/x: at most 1000 bytes in all".to_owned()));
    }
}
