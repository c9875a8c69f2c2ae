//! Rows as they become outputs: objects or lists in JSON for a result, NDJSON or CSV for a blob, within the step's bounds.
//!
//! Whoever reads rows writes each value as JSON into the sheet, on a shard or an offload thread. A bound that is passed is an
//! error: no result is ever cut short.

use std::collections::HashSet;

use bytes::Bytes;
use serde_json::value::RawValue;

/// How rows are written. Crosses cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Each an object, by its columns' names.
    Objects,
    /// Each a list.
    Lists,
    /// Each an object on a line of its own.
    Ndjson,
    /// A line each, behind one with the columns' names.
    Csv,
}

/// What a step takes at most. Crosses cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Rows.
    pub(crate) rows_max: u64,
    /// What they are written in, in bytes.
    pub(crate) bytes_max: u64,
}

/// Why rows cannot be written. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Excess {
    /// There are more.
    Rows(u64),
    /// They are larger.
    Bytes(u64),
    /// Two columns have one name.
    Twice(String),
    /// A column's value has no form here: its column, its type, and why.
    Odd {
        /// Its name.
        column: String,
        /// Its type, as the database calls it.
        of: String,
        /// Why.
        why: &'static str,
    },
}

/// A column. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    /// Its name.
    pub(crate) name: String,
    /// Its type, as the database calls it; empty where it has none.
    pub(crate) of: String,
}

/// See the module.
pub(crate) struct Sheet {
    form: Form,
    bounds: Bounds,
    columns: Vec<Column>,
    /// What stands before each value: a comma, its name.
    before: Vec<Vec<u8>>,
    out: Vec<u8>,
    /// One value, on its way into CSV.
    cell: Vec<u8>,
    rows: u64,
    /// What went into a blob already, in bytes.
    gone: u64,
}

impl Sheet {
    /// Without a row.
    ///
    /// # Errors
    /// Two columns have one name where rows are objects.
    pub(crate) fn new(form: Form, bounds: Bounds, columns: Vec<Column>) -> Result<Sheet, Excess> {
        let mut sheet = Sheet {
            form,
            bounds,
            before: Vec::with_capacity(columns.len()),
            columns,
            out: Vec::new(),
            cell: Vec::new(),
            rows: 0,
            gone: 0,
        };
        let objects = matches!(form, Form::Objects | Form::Ndjson);
        let mut names = HashSet::new();
        for (at, column) in sheet.columns.iter().enumerate() {
            if objects && !names.insert(&column.name) {
                return Err(Excess::Twice(column.name.clone()));
            }
            let mut before = if at == 0 { Vec::new() } else { b",".to_vec() };
            if objects {
                before.extend_from_slice(&quoted(&column.name));
                before.push(b':');
            }
            sheet.before.push(before);
        }
        if form == Form::Csv {
            for (at, column) in sheet.columns.iter().enumerate() {
                if at > 0 {
                    sheet.out.push(b',');
                }
                push_csv(&mut sheet.out, &column.name);
            }
            sheet.out.push(b'\n');
        }
        Ok(sheet)
    }

    /// Another row: `value` writes the one of each column as JSON.
    ///
    /// # Errors
    /// A bound is passed, or a value has no form.
    pub(crate) fn row<E: From<Excess>>(
        &mut self,
        mut value: impl FnMut(usize, &mut Vec<u8>, u64) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.rows == self.bounds.rows_max {
            return Err(Excess::Rows(self.bounds.rows_max).into());
        }
        let (open, close): (&[u8], &[u8]) = match self.form {
            Form::Objects => (if self.rows == 0 { b"{" } else { b",{" }, b"}"),
            Form::Lists => (if self.rows == 0 { b"[" } else { b",[" }, b"]"),
            Form::Ndjson => (b"{", b"}\n"),
            Form::Csv => (b"", b"\n"),
        };
        self.out.extend_from_slice(open);
        for at in 0..self.columns.len() {
            self.out.extend_from_slice(&self.before[at]);
            let left = self.bounds.bytes_max.saturating_sub(self.bytes());
            if self.form == Form::Csv {
                self.cell.clear();
                value(at, &mut self.cell, left)?;
                csv_of(&self.cell, &mut self.out);
            } else {
                value(at, &mut self.out, left)?;
            }
            if self.bytes() > self.bounds.bytes_max {
                return Err(Excess::Bytes(self.bounds.bytes_max).into());
            }
        }
        self.out.extend_from_slice(close);
        self.rows += 1;
        Ok(())
    }

    /// How many rows there are.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// What is written and not taken yet, in bytes.
    pub(crate) fn pending(&self) -> usize {
        self.out.len()
    }

    /// Takes what is written, for a blob.
    pub(crate) fn take(&mut self) -> Bytes {
        self.gone += self.out.len() as u64;
        Bytes::from(std::mem::take(&mut self.out))
    }

    fn bytes(&self) -> u64 {
        self.gone + self.out.len() as u64
    }

    /// A fault of a column's value.
    pub(crate) fn odd(&self, at: usize, why: &'static str) -> Excess {
        let Column { name, of } = self.columns[at].clone();
        Excess::Odd { column: name, of, why }
    }

    /// The columns as a JSON list.
    pub(crate) fn columns_json(&self) -> Vec<u8> {
        let mut out = b"[".to_vec();
        for (at, column) in self.columns.iter().enumerate() {
            out.extend_from_slice(if at == 0 { b"{\"name\":" } else { b",{\"name\":" });
            out.extend_from_slice(&quoted(&column.name));
            out.extend_from_slice(b",\"type\":");
            out.extend_from_slice(&quoted(&column.of));
            out.push(b'}');
        }
        out.push(b']');
        out
    }

    /// All of it as outputs: `{"row_count":…,"columns":…,"rows":…}` with `more` members before these.
    pub(crate) fn outputs(mut self, more: &str) -> Bytes {
        let columns = self.columns_json();
        let rows = std::mem::take(&mut self.out);
        let mut out = Vec::with_capacity(rows.len() + columns.len() + more.len() + 64);
        out.push(b'{');
        out.extend_from_slice(more.as_bytes());
        out.extend_from_slice(format!("\"row_count\":{},\"columns\":", self.rows).as_bytes());
        out.extend_from_slice(&columns);
        out.extend_from_slice(b",\"rows\":[");
        out.extend_from_slice(&rows);
        out.extend_from_slice(b"]}");
        Bytes::from(out)
    }
}

/// A text in JSON.
pub(crate) fn quoted(text: &str) -> Vec<u8> {
    serde_json::to_vec(text).expect("a text is JSON")
}

/// A text in JSON, at the end of `out`.
pub(crate) fn push_quoted(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("memory takes it");
}

/// A float in JSON; what JSON has no number for, as a text.
pub(crate) fn push_float(out: &mut Vec<u8>, float: f64) {
    match float {
        _ if float.is_nan() => out.extend_from_slice(b"\"NaN\""),
        f64::INFINITY => out.extend_from_slice(b"\"Infinity\""),
        f64::NEG_INFINITY => out.extend_from_slice(b"\"-Infinity\""),
        _ => serde_json::to_writer(out, &float).expect("memory takes it"),
    }
}

/// JSON on one line, without what stands between its parts; none where it is no JSON that every reader can read.
pub(crate) fn push_json(out: &mut Vec<u8>, text: &[u8]) -> bool {
    if !super::super::outputs::is_sound(text) {
        return false;
    }
    match std::str::from_utf8(text).ok().and_then(|text| serde_json::from_str::<&RawValue>(text.trim()).ok()) {
        Some(raw) => {
            out.extend_from_slice(super::super::manifest::line(raw).as_bytes());
            true
        }
        None => false,
    }
}

/// A value that was written as JSON, as a field of CSV: no value is nothing, an empty text is `""`.
fn csv_of(cell: &[u8], out: &mut Vec<u8>) {
    match cell.first() {
        Some(b'n') => {}
        Some(b'"') => {
            let text: String = serde_json::from_slice(cell).expect("it was written a moment ago");
            push_csv(out, &text);
        }
        _ => push_csv(out, &String::from_utf8_lossy(cell)),
    }
}

fn push_csv(out: &mut Vec<u8>, text: &str) {
    let plain = !text.is_empty() && !text.contains(['"', ',', '\n', '\r']) && text.trim() == text;
    if plain {
        return out.extend_from_slice(text.as_bytes());
    }
    out.push(b'"');
    for part in text.split_inclusive('"') {
        out.extend_from_slice(part.as_bytes());
        if part.ends_with('"') {
            out.push(b'"');
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(names: &[&str]) -> Vec<Column> {
        names.iter().map(|name| Column { name: (*name).to_owned(), of: "text".to_owned() }).collect()
    }

    fn written(form: Form, values: &[[&str; 2]]) -> Sheet {
        let bounds = Bounds { rows_max: 10, bytes_max: 1 << 20 };
        let mut sheet = Sheet::new(form, bounds, columns(&["a", "b\"c"])).expect("two names");
        for row in values {
            let done = sheet.row::<Excess>(|at, out, _| {
                out.extend_from_slice(row[at].as_bytes());
                Ok(())
            });
            done.expect("within bounds");
        }
        sheet
    }

    #[test]
    fn rows_are_what_was_asked_for() {
        let rows = [["1", "null"], [r#""x\ny""#, r#""q\"q""#], [r#""""#, r#"{"a":1}"#]];
        let text = |form| {
            let mut sheet = written(form, &rows);
            String::from_utf8(sheet.take().to_vec()).expect("text")
        };
        assert_eq!(text(Form::Objects), r#"{"a":1,"b\"c":null},{"a":"x\ny","b\"c":"q\"q"},{"a":"","b\"c":{"a":1}}"#);
        assert_eq!(text(Form::Lists), r#"[1,null],["x\ny","q\"q"],["",{"a":1}]"#);
        assert_eq!(text(Form::Ndjson).lines().count(), 3);
        assert_eq!(text(Form::Csv), "a,\"b\"\"c\"\n1,\n\"x\ny\",\"q\"\"q\"\n\"\",\"{\"\"a\"\":1}\"\n");
        let outputs = written(Form::Lists, &rows[..1]).outputs("\"dedup\":true,");
        let outputs: serde_json::Value = serde_json::from_slice(&outputs).expect("JSON");
        assert_eq!((&outputs["row_count"], &outputs["rows"]), (&serde_json::json!(1), &serde_json::json!([[1, null]])));
    }

    #[test]
    fn a_bound_that_is_passed_is_an_error() {
        let bounds = Bounds { rows_max: 2, bytes_max: 24 };
        let mut sheet = Sheet::new(Form::Lists, bounds, columns(&["a"])).expect("one name");
        let put = |sheet: &mut Sheet, text: &str| {
            let text = text.to_owned();
            sheet.row::<Excess>(move |_, out, _| {
                push_quoted(out, &text);
                Ok(())
            })
        };
        put(&mut sheet, "a").expect("fits");
        assert_eq!(put(&mut sheet, &"x".repeat(40)), Err(Excess::Bytes(24)));
        let mut sheet = Sheet::new(Form::Lists, Bounds { rows_max: 1, ..bounds }, columns(&["a"])).expect("one name");
        put(&mut sheet, "a").expect("fits");
        assert_eq!(put(&mut sheet, "b"), Err(Excess::Rows(1)));
        assert!(matches!(Sheet::new(Form::Objects, bounds, columns(&["a", "a"])), Err(Excess::Twice(_))));
        assert!(Sheet::new(Form::Lists, bounds, columns(&["a", "a"])).is_ok());
    }

    #[test]
    fn json_goes_out_on_one_line() {
        let mut out = Vec::new();
        assert!(push_json(&mut out, b" {\n \"a b\" : [ 1.10 , \"x\\\"  y\" ]\n}"));
        assert_eq!(String::from_utf8(out).expect("text"), r#"{"a b":[1.10,"x\"  y"]}"#);
        assert!(!push_json(&mut Vec::new(), b"{\"a\":"));
        assert!(!push_json(&mut Vec::new(), "[".repeat(200).as_bytes()));
    }
}
