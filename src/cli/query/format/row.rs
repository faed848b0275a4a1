//! What all formats have in common: how rows arrive, and how a cell is found in one.

use std::io::{self, Write};

use crate::cli::query::page::Row;
use crate::core::json::{self, Value};

/// Writes the rows of a result, page by page.
pub(in crate::cli::query) trait RowWriter {
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

/// A row's cell; `None` if it is absent or null, which mean the same.
pub(super) fn cell<'r, 'a>(row: &'r Row<'a>, column: &str) -> Option<&'r Value<'a>> {
    json::member(row, column).filter(|value| **value != Value::Null)
}
