//! Writes rows for people and programs: one module per format.

mod csv;
mod json;
mod row;
mod table;

pub(super) use self::row::RowWriter;
use super::arguments::{Format, QueryArgs};
use crate::cli::terminal::Terminal;

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
