//! JSON: one array of rows, or one row per line. Digits and the order of members are those of the response.
//!
//! Control characters are escaped, which gives the same JSON value.

use std::io::{self, Write};

use super::super::page::Row;
use super::row::RowWriter;
use crate::cli::text::{push_escaped, steers};
use crate::core::json::Value;

/// An array, each row on its own line. When a page fails the array is not closed, so that it cannot be taken for
/// complete.
#[derive(Default)]
pub(super) struct Array {
    is_open: bool,
    has_rows: bool,
}

impl Array {
    fn open(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if std::mem::replace(&mut self.is_open, true) { Ok(()) } else { out.write_all(b"[") }
    }
}

impl RowWriter for Array {
    fn page(&mut self, rows: &[Row<'_>], out: &mut dyn Write) -> io::Result<()> {
        self.open(out)?;
        for row in rows {
            let comma = if std::mem::replace(&mut self.has_rows, true) { "," } else { "" };
            write!(out, "{comma}\n{}", line(row))?;
        }
        Ok(())
    }

    fn end(&mut self, failed: bool, out: &mut dyn Write) -> io::Result<Option<&'static str>> {
        if failed {
            if self.is_open {
                out.write_all(b"\n")?;
            }
            return Ok(None);
        }
        self.open(out)?;
        out.write_all(if self.has_rows { b"\n]\n" } else { b"]\n" })?;
        Ok(None)
    }
}

/// One row per line.
pub(super) struct Lines;

impl RowWriter for Lines {
    fn page(&mut self, rows: &[Row<'_>], out: &mut dyn Write) -> io::Result<()> {
        rows.iter().try_for_each(|row| writeln!(out, "{}", line(row)))
    }

    fn end(&mut self, _failed: bool, _out: &mut dyn Write) -> io::Result<Option<&'static str>> {
        Ok(None)
    }
}

fn line(row: &Row<'_>) -> String {
    let mut json = Vec::new();
    Value::Object(row.clone()).write(&mut json);
    let json = String::from_utf8_lossy(&json);
    if !json.contains(steers) {
        return json.into_owned();
    }
    // Such characters cannot occur between tokens. So each is in a string, where an escape means the same.
    let mut safe = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if steers(c) { push_escaped(&mut safe, c) } else { safe.push(c) }
    }
    safe
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::cli::query::page::Page;

    const TWO: &str = r#"{"items":[{ "B" : 1.50, "A":9007199254740993 },{"B":"x\u0000"}]}"#;

    fn written(mut writer: impl RowWriter, pages: &[&str], failed: bool) -> String {
        let mut out = Vec::new();
        for body in pages {
            writer.page(&Page::read(body.as_bytes()).unwrap().rows, &mut out).unwrap();
        }
        writer.end(failed, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn all_pages_are_one_array() {
        let text = written(Array::default(), &[TWO, r#"{"items":[]}"#, TWO], false);
        let row = r#"{"B":1.50,"A":9007199254740993}"#;
        let other = r#"{"B":"x\u0000"}"#;
        assert_eq!(text, format!("[\n{row},\n{other},\n{row},\n{other}\n]\n"));
        assert_eq!(written(Array::default(), &[r#"{"items":[]}"#], false), "[]\n");
        let cut = written(Array::default(), &[TWO], true);
        assert!(serde_json::from_str::<Json>(&cut).is_err() && cut.ends_with("}\n"), "{cut}");
        assert_eq!(written(Array::default(), &[], true), "");
    }

    #[test]
    fn lines_are_rows() {
        assert_eq!(written(Lines, &[TWO], true), "{\"B\":1.50,\"A\":9007199254740993}\n{\"B\":\"x\\u0000\"}\n");
    }

    proptest! {
        #[test]
        fn escapes_change_no_value(name in ".*", text in "[\u{80}-\u{9f}\u{200e}-\u{202e}\u{2066}-\u{2069}\\\\\"a]{0,8}|.*") {
            let row = json!({name: text});
            let lines = written(Lines, &[&json!({"items": [row]}).to_string()], false);
            prop_assert!(!lines.trim_end_matches('\n').contains(steers));
            prop_assert_eq!(serde_json::from_str::<Json>(&lines).unwrap(), row);
        }
    }
}
