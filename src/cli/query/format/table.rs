//! A table for people, never wider than the terminal.
//!
//! If columns as wide as their contents do not fit, headers are broken over several lines first. If that is not enough,
//! long texts are cut, but never numbers. If even that does not fit, each row becomes a block with one line per cell.

use std::io::{self, Write};

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::super::page::Row;
use super::row::{RowWriter, cell};
use crate::cli::terminal::Terminal;
use crate::cli::text::harmless;
use crate::core::json::Value;

/// Between two columns.
const GAP: usize = 2;
/// A longer text may be cut to this, and a longer header may be broken into pieces of this length.
const SHORTEST: usize = 8;
/// Shown for a cell that is null or absent.
const NOTHING: &str = "-";
const CUT: &str = "some values are cut; --format csv or json prints them in full";

/// Keeps all rows until the end, because the widest cell may be on the last page.
pub(super) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
    width: usize,
    colour: bool,
}

struct Column {
    name: String,
    /// Only numbers so far: aligned to the right, and never cut.
    is_number: bool,
    /// The width of the widest cell.
    widest: usize,
}

impl Table {
    pub(super) fn new(columns: Vec<String>, terminal: Terminal) -> Self {
        let column = |name| Column { name, is_number: true, widest: 1 };
        Self {
            columns: columns.into_iter().map(column).collect(),
            rows: Vec::new(),
            width: terminal.width,
            colour: terminal.colour,
        }
    }

    /// The widths of all columns; `None` where they do not fit side by side.
    fn widths(&self) -> Option<Vec<usize>> {
        let room = self.width.checked_sub(GAP * self.columns.len().saturating_sub(1))?;
        let header = |column: &Column| column.name.width();
        let natural: Vec<usize> = self.columns.iter().map(|column| column.widest.max(header(column))).collect();
        // First headers are broken between their words, then within them; nothing is cut.
        let least = |header_width: &dyn Fn(&Column) -> usize, longest_text: usize| -> Vec<usize> {
            let cells =
                |column: &Column| if column.is_number { column.widest } else { column.widest.min(longest_text) };
            self.columns.iter().map(|column| cells(column).max(header_width(column))).collect()
        };
        let broken = least(&|column| longest_word(&column.name), usize::MAX);
        let whole = least(&|column| header(column).min(SHORTEST), usize::MAX);
        let cut = least(&|column| header(column).min(SHORTEST), SHORTEST);
        fit(&broken, &natural, room).or_else(|| fit(&whole, &broken, room)).or_else(|| fit(&cut, &whole, room))
    }

    fn columns(&self, widths: &[usize], out: &mut dyn Write) -> io::Result<bool> {
        let headers: Vec<Vec<String>> =
            self.columns.iter().zip(widths).map(|(column, width)| break_name(&column.name, *width)).collect();
        let height = headers.iter().map(Vec::len).max().unwrap_or_default();
        let (bold, normal) = if self.colour { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        for line in 0..height {
            // Short headers are on the lowest header line, next to the rows.
            let part = |header: &Vec<String>| {
                (line + header.len()).checked_sub(height).map_or_else(String::new, |at| header[at].clone())
            };
            let line = self.line(headers.iter().map(part), widths);
            writeln!(out, "{bold}{line}{normal}")?;
        }
        writeln!(out, "{}", self.line(widths.iter().map(|width| "-".repeat(*width)), widths))?;
        let mut any_cut = false;
        for row in &self.rows {
            let cells = row.iter().zip(widths).map(|(cell, width)| {
                let (cell, cut) = shortened(cell, *width);
                any_cut |= cut;
                cell
            });
            let line = self.line(cells, widths);
            writeln!(out, "{line}")?;
        }
        Ok(any_cut)
    }

    fn line(&self, cells: impl Iterator<Item = String>, widths: &[usize]) -> String {
        let mut line = String::new();
        for ((cell, width), column) in cells.zip(widths).zip(&self.columns) {
            let space = " ".repeat(width.saturating_sub(cell.width()));
            let (before, after) = if column.is_number { (space.as_str(), "") } else { ("", space.as_str()) };
            line.push_str(before);
            line.push_str(&cell);
            line.push_str(after);
            line.push_str(&" ".repeat(GAP));
        }
        line.truncate(line.trim_end().len());
        line
    }

    /// One block per row.
    fn blocks(&self, out: &mut dyn Write) -> io::Result<bool> {
        let widest = self.columns.iter().map(|column| column.name.width()).max().unwrap_or_default();
        let names = widest.min(self.width.saturating_sub(GAP) * 2 / 3);
        let mut any_cut = false;
        for (i, row) in self.rows.iter().enumerate() {
            if i > 0 {
                writeln!(out)?;
            }
            for (column, cell) in self.columns.iter().zip(row) {
                let (cell, cut) = shortened(cell, self.width - names - GAP);
                any_cut |= cut;
                let mut cell = Some(cell);
                for name in break_name(&column.name, names) {
                    let space = " ".repeat(names.saturating_sub(name.width()) + GAP);
                    let cell = cell.take().unwrap_or_default();
                    writeln!(out, "{}", format!("{name}{space}{cell}").trim_end())?;
                }
            }
        }
        Ok(any_cut)
    }
}

impl RowWriter for Table {
    fn page(&mut self, rows: &[Row<'_>], _out: &mut dyn Write) -> io::Result<()> {
        for row in rows {
            let mut cells = Vec::with_capacity(self.columns.len());
            for column in &mut self.columns {
                let value = cell(row, &column.name);
                let text = text(value);
                column.is_number &= matches!(value, None | Some(Value::Number(_)));
                column.widest = column.widest.max(text.width());
                cells.push(text);
            }
            self.rows.push(cells);
        }
        Ok(())
    }

    fn end(&mut self, failed: bool, out: &mut dyn Write) -> io::Result<Option<&'static str>> {
        if self.rows.is_empty() {
            if !failed {
                writeln!(out, "no rows")?;
            }
            return Ok(None);
        }
        let any_cut = match self.widths() {
            Some(widths) => self.columns(&widths, out)?,
            None => self.blocks(out)?,
        };
        Ok(any_cut.then_some(CUT))
    }
}

/// A cell in one line without control characters.
fn text(value: Option<&Value<'_>>) -> String {
    match value {
        None | Some(Value::Null) => NOTHING.to_owned(),
        Some(Value::String(text)) => harmless(text.as_str()).into_owned(),
        Some(Value::Array(elements)) => {
            elements.iter().map(|element| text(Some(element))).collect::<Vec<_>>().join(", ")
        }
        Some(other) => {
            let mut json = Vec::new();
            other.write(&mut json);
            harmless(&String::from_utf8_lossy(&json)).into_owned()
        }
    }
}

/// The widest columns that fit into `room`, each between its bounds. The widest are made narrower first.
fn fit(least: &[usize], most: &[usize], room: usize) -> Option<Vec<usize>> {
    let at = |level: usize| least.iter().zip(most).map(move |(least, most)| *most.min(&level).max(least));
    let mut levels = 0..=most.iter().copied().max().unwrap_or_default().min(room);
    let level = levels.rfind(|level| at(*level).sum::<usize>() <= room)?;
    Some(at(level).collect())
}

/// The parts between which a name may be broken: after a dot, and before a capital letter.
fn words(name: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut from = 0;
    let mut last = ' ';
    for (at, c) in name.char_indices() {
        if at > from && (last == '.' || c.is_uppercase() && !last.is_uppercase()) {
            words.push(&name[from..at]);
            from = at;
        }
        last = c;
    }
    words.push(&name[from..]);
    words
}

fn longest_word(name: &str) -> usize {
    words(name).into_iter().map(UnicodeWidthStr::width).max().unwrap_or_default()
}

/// A name in lines of at most `width` columns: broken after dots if that is enough, else between words, else anywhere.
fn break_name(name: &str, width: usize) -> Vec<String> {
    let mut lines = Lines { done: Vec::new(), last: String::new(), width };
    for part in name.split_inclusive('.') {
        match part.width() <= width {
            true => lines.push(part),
            false => {
                lines.end();
                words(part).into_iter().for_each(|word| lines.push(word));
            }
        }
    }
    lines.done.push(lines.last);
    lines.done
}

struct Lines {
    done: Vec<String>,
    last: String,
    width: usize,
}

impl Lines {
    fn holds(&self, word: &str) -> bool {
        self.last.width() + word.width() <= self.width
    }

    fn end(&mut self) {
        if !self.last.is_empty() {
            self.done.push(std::mem::take(&mut self.last));
        }
    }

    fn push(&mut self, word: &str) {
        if !self.holds(word) {
            self.end();
        }
        for c in word.chars() {
            if self.last.width() + columns_of(c) > self.width {
                self.end();
            }
            self.last.push(c);
        }
    }
}

/// The most columns that a character takes, whatever precedes it.
fn columns_of(c: char) -> usize {
    // This character makes the narrow one before it a wide picture.
    if c == '\u{fe0f}' { 1 } else { c.width().unwrap_or_default() }
}

/// At most `width` columns of a text, and whether anything was cut off.
fn shortened(text: &str, width: usize) -> (String, bool) {
    if text.width() <= width {
        return (text.to_owned(), false);
    }
    let mut short = String::new();
    let mut used = 0;
    for c in text.chars() {
        let wide = columns_of(c);
        if used + wide + 1 > width {
            break;
        }
        short.push(c);
        used += wide;
    }
    short.push('…');
    (short, true)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::cli::query::page::Page;

    fn shown(columns: &[&str], width: usize, rows: &Json) -> (String, Option<&'static str>) {
        let terminal =
            Terminal { output: false, redraws: false, errors: false, width, colour: false, errors_colour: false };
        let mut table = Table::new(columns.iter().map(|name| (*name).to_owned()).collect(), terminal);
        let body = json!({ "items": rows }).to_string();
        let mut out = Vec::new();
        table.page(&Page::read(body.as_bytes()).unwrap().rows, &mut out).unwrap();
        let remark = table.end(false, &mut out).unwrap();
        (String::from_utf8(out).unwrap(), remark)
    }

    #[test]
    fn contents_that_fit_are_not_changed() {
        let rows = json!([
            {"C.Status": "CLOSED", "C.Count": 1204, "C.Channels": ["VOICE", "SMS"]},
            {"C.Status": "日本", "C.Count": 7, "C.Channels": []},
            {"C.Status": null, "C.Channels": ["a\n\u{1b}[1m"]},
        ]);
        let expected = "\
C.Status  C.Channels    C.Count
--------  ------------  -------
CLOSED    VOICE, SMS       1204
日本                          7
-         a\\n\\u001b[1m        -
";
        assert_eq!(shown(&["C.Status", "C.Channels", "C.Count"], 72, &rows), (expected.to_owned(), None));
        assert_eq!(shown(&["C.Status"], 72, &json!([])), ("no rows\n".to_owned(), None));
    }

    #[test]
    fn headers_are_broken_before_anything_is_cut() {
        let rows = json!([
            {"Conversation.ConversationStatus": "CLOSED", "ConversationSummary.AverageDurationSeconds": 312.5},
        ]);
        let expected = concat!(
            "                    Conversation\n",
            "Conversation.           Summary.\n",
            "Conversation     AverageDuration\n",
            "Status                   Seconds\n",
            "---------------  ---------------\n",
            "CLOSED                     312.5\n",
        );
        let columns = ["Conversation.ConversationStatus", "ConversationSummary.AverageDurationSeconds"];
        let (table, remark) = shown(&columns, 32, &rows);
        assert_eq!((table.as_str(), remark), (expected, None));
    }

    #[test]
    fn headers_are_broken_within_words_rather_than_a_text_cut() {
        let rows = json!([{"Conversation.Created": "2026-08-30T00:00:00.000", "Conversation.Count": 8}]);
        let expected = concat!(
            "                         Conversa\n",
            "                            tion.\n",
            "Conversation.Created        Count\n",
            "-----------------------  --------\n",
            "2026-08-30T00:00:00.000         8\n",
        );
        let (table, remark) = shown(&["Conversation.Created", "Conversation.Count"], 33, &rows);
        assert_eq!((table.as_str(), remark), (expected, None));
    }

    #[test]
    fn long_texts_are_cut_and_numbers_are_not() {
        let rows = json!([{"C.Name": "a rather long name of a conversation", "C.N": 12345678901234567_u64}]);
        let expected = "\
C.Name                               C.N
---------------------  -----------------
a rather long name o…  12345678901234567
";
        assert_eq!(shown(&["C.Name", "C.N"], 40, &rows), (expected.to_owned(), Some(CUT)));
    }

    #[test]
    fn rows_that_do_not_fit_become_blocks() {
        let columns = ["Conversation.Measure0", "Conversation.Measure1", "C.N"];
        let row = json!({"Conversation.Measure0": 1.25, "Conversation.Measure1": "rather long a text", "C.N": null});
        let block = "\
Conversation.  1.25
Measure0
Conversation.  rather…
Measure1
C.N            -
";
        let (table, remark) = shown(&columns, 22, &json!([row, row]));
        assert_eq!((table, remark), (format!("{block}\n{block}"), Some(CUT)));
    }

    #[test]
    fn names_break_where_words_do() {
        assert_eq!(words("Conversation.CreatedDate.hour"), ["Conversation.", "Created", "Date.", "hour"]);
        assert_eq!(words("OperatorID"), ["Operator", "ID"]);
        assert_eq!(words(""), [""]);
        assert_eq!(break_name("Conversation.ConversationStatus", 29), ["Conversation.", "ConversationStatus"]);
        assert_eq!(break_name("Conversation.CreatedDate.hour", 13), ["Conversation.", "CreatedDate.", "hour"]);
        assert_eq!(break_name("Unbreakable", 4), ["Unbr", "eaka", "ble"]);
    }

    proptest! {
        #[test]
        fn no_line_is_wider_than_the_terminal(
            width in 24usize..100,
            names in prop::collection::btree_set("[A-Z][a-z]{0,12}\\.[A-Z][A-Za-z]{0,25}", 1..7),
            cells in prop::collection::vec(prop_oneof!["[a-z日é\u{301}\n]{0,60}".prop_map(Json::from), any::<u64>().prop_map(Json::from)], 1..30),
        ) {
            let columns: Vec<&str> = names.iter().map(String::as_str).collect();
            let rows: Vec<Json> = cells
                .chunks(columns.len())
                .map(|cells| columns.iter().zip(cells).map(|(name, cell)| ((*name).to_owned(), cell.clone())).collect::<serde_json::Map<_, _>>().into())
                .collect();
            let (table, _) = shown(&columns, width, &Json::from(rows));
            for line in table.lines() {
                prop_assert!(line.width() <= width, "{} > {width}: {line:?}\n{table}", line.width());
            }
        }
    }
}
