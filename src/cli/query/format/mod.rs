//! Writes rows for people and programs: one module per format.

mod csv;
mod json;
mod table;

use std::io::{self, Write};

use super::arguments::{Format, QueryArgs};
use super::page::Row;
use crate::cli::terminal::Terminal;
use crate::core::json::Value;

/// Writes the rows of a result, page by page.
pub(super) trait RowWriter {
    /// The rows of the next page.
    ///
    /// # Errors
    ///
    /// When `out` cannot be written.
    fn page(&mut self, rows: &[Row<'_>], out: &mut dyn Write) -> io::Result<()>;

    /// Called after the last page; if `failed`, after the last one that arrived. Returns a remark about the output.
    ///
    /// # Errors
    ///
    /// When `out` cannot be written.
    fn end(&mut self, failed: bool, out: &mut dyn Write) -> io::Result<Option<&'static str>>;
}

/// The writer that the command line asks for.
pub(super) fn writer(args: &QueryArgs, terminal: Terminal) -> Box<dyn RowWriter> {
    let columns = columns(args);
    match args.format {
        Format::Table => Box::new(table::Table::new(columns, terminal)),
        Format::Csv => Box::new(csv::Csv::new(columns, terminal.output)),
        Format::Json => Box::new(json::Array::default()),
        Format::Ndjson => Box::new(json::Lines),
    }
}

/// Dimensions, then measures, each once.
fn columns(args: &QueryArgs) -> Vec<String> {
    let mut columns: Vec<String> = Vec::new();
    for name in args.dimension.iter().chain(&args.measure) {
        if !columns.contains(name) {
            columns.push(name.clone());
        }
    }
    columns
}

/// A row's cell; `None` if it is absent or null, which mean the same.
fn cell<'r, 'a>(row: &'r Row<'a>, column: &str) -> Option<&'r Value<'a>> {
    crate::core::json::member(row, column).filter(|value| **value != Value::Null)
}
