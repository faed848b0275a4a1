//! Comma-separated values as RFC 4180 quotes them, in lines that end with a line feed.
//!
//! Values are written exactly as in the API's response, also those that a spreadsheet would take for a formula. Null is
//! an empty cell, an empty text is `""`, and an array is JSON.

use std::borrow::Cow;
use std::io::{self, Write};

use super::super::page::Row;
use super::row::{RowWriter, cell};
use crate::cli::text::harmless;
use crate::core::json::Value;

pub(super) struct Csv {
    columns: Vec<String>,
    /// The output is a terminal, so control characters must be escaped.
    on_terminal: bool,
    has_header: bool,
}

impl Csv {
    pub(super) fn new(columns: Vec<String>, on_terminal: bool) -> Self {
        Self { columns, on_terminal, has_header: false }
    }

    fn field(&self, value: Option<&Value<'_>>) -> String {
        let text = match value {
            // An empty line would not count as a row.
            None if self.columns.len() == 1 => return "\"\"".to_owned(),
            None => return String::new(),
            Some(Value::String(text)) => text.as_str().to_owned(),
            Some(other) => compact(other),
        };
        let text = if self.on_terminal { harmless(&text) } else { Cow::Borrowed(text.as_str()) };
        match text.is_empty() || text.contains(['"', ',', '\r', '\n']) {
            true => format!("\"{}\"", text.replace('"', "\"\"")),
            false => text.into_owned(),
        }
    }

    fn line(&self, fields: impl Iterator<Item = String>, out: &mut dyn Write) -> io::Result<()> {
        let fields: Vec<_> = fields.collect();
        writeln!(out, "{}", fields.join(","))
    }

    fn header(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if std::mem::replace(&mut self.has_header, true) {
            return Ok(());
        }
        self.line(self.columns.iter().cloned(), out)
    }
}

/// The JSON of a value, unchanged but without white space.
fn compact(value: &Value<'_>) -> String {
    let mut json = Vec::new();
    value.write(&mut json);
    String::from_utf8_lossy(&json).into_owned()
}

impl RowWriter for Csv {
    fn page(&mut self, rows: &[Row<'_>], out: &mut dyn Write) -> io::Result<()> {
        self.header(out)?;
        rows.iter().try_for_each(|row| self.line(self.columns.iter().map(|name| self.field(cell(row, name))), out))
    }

    fn end(&mut self, _failed: bool, _out: &mut dyn Write) -> io::Result<Option<&'static str>> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cli::query::page::Page;

    fn written(columns: &[&str], on_terminal: bool, body: &str) -> String {
        let mut csv = Csv::new(columns.iter().map(|name| (*name).to_owned()).collect(), on_terminal);
        let mut out = Vec::new();
        csv.page(&Page::read(body.as_bytes()).unwrap().rows, &mut out).unwrap();
        csv.page(&[], &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn values_are_quoted_only_where_needed() {
        let body = r#"{"items":[
            {"C.N":9007199254740993,"C.S":"a,b"},
            {"C.S":"say \"yes\"","C.N":0.10},
            {"C.S":"two\nlines","C.N":null,"C.Other":1},
            {"C.S":"","C.N":true},
            {"C.S":["VOICE","SMS"]},
            {"C.S":"=1+1"},
            {"C.S":" é\u00e9","C.N":{"a" : 1}}
        ]}"#;
        let expected = "C.S,C.N\n\"a,b\",9007199254740993\n\"say \"\"yes\"\"\",0.10\n\"two\nlines\",\n\"\",true\n\
                        \"[\"\"VOICE\"\",\"\"SMS\"\"]\",\n=1+1,\n éé,\"{\"\"a\"\":1}\"\n";
        assert_eq!(written(&["C.S", "C.N"], false, body), expected);
    }

    #[test]
    fn no_rows_are_a_header_and_an_empty_cell_is_a_row() {
        assert_eq!(written(&["C.S"], false, r#"{"items":[]}"#), "C.S\n");
        assert_eq!(written(&["C.S"], false, r#"{"items":[{},{"C.S":null}]}"#), "C.S\n\"\"\n\"\"\n");
    }

    #[test]
    fn only_a_terminal_is_protected() {
        let body = "{\"items\":[{\"C.S\":\"\\u001b[2J\u{202e}\\n\"}]}";
        assert_eq!(written(&["C.S"], true, body), "C.S\n\\u001b[2J\\u202e\\n\n");
        assert_eq!(written(&["C.S"], false, body), "C.S\n\"\u{1b}[2J\u{202e}\n\"\n");
    }

    /// Reads one CSV record (RFC 4180), which may span several lines.
    fn fields(mut text: &str) -> Vec<String> {
        let mut fields = Vec::new();
        loop {
            let mut field = String::new();
            match text.strip_prefix('"') {
                Some(mut rest) => loop {
                    let (before, after) = rest.split_once('"').unwrap();
                    field.push_str(before);
                    match after.strip_prefix('"') {
                        Some(more) => {
                            field.push('"');
                            rest = more;
                        }
                        None => {
                            text = after;
                            break;
                        }
                    }
                },
                None => {
                    let end = text.find([',', '\n']).unwrap();
                    field.push_str(&text[..end]);
                    text = &text[end..];
                }
            }
            fields.push(field);
            match text.strip_prefix(',') {
                Some(rest) => text = rest,
                None => {
                    assert_eq!(text, "\n");
                    return fields;
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_written_record_reads_back(one in "[a\",\r\n é=]{0,8}|.*", other in "[a\",\r\n é=]{0,8}|.*") {
            let body = serde_json::json!({"items": [{"A": one, "B": other}]}).to_string();
            let text = written(&["A", "B"], false, &body);
            prop_assert_eq!(fields(text.strip_prefix("A,B\n").unwrap()), [one, other]);
        }
    }
}
