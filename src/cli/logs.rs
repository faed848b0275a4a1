//! Where log lines go: standard error, as text on a terminal and as JSON elsewhere.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::prelude::*;

use super::json_lines::JsonLines;
use super::sink::Sink;
use crate::config::{Log, LogFormat};

/// Installs the process's log. What is given back writes its last lines when it is dropped.
pub(super) fn install(log: &Log) -> LastLines {
    // The configuration has checked the filter; what it lets through cannot fail here.
    let filter = EnvFilter::try_new(&log.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let json = match log.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !io::stderr().is_terminal(),
    };
    let sink = Sink::start(io::stderr());
    let writer = match sink.clone() {
        Some(sink) => BoxMakeWriter::new(sink),
        None => BoxMakeWriter::new(io::stderr),
    };
    let lines = fmt::layer().with_writer(writer);
    let lines = match json {
        true => lines.event_format(JsonLines).boxed(),
        false => lines.with_ansi(io::stderr().is_terminal()).boxed(),
    };
    // Fails only where a log is installed already.
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
    LastLines(sink)
}

/// Keeps the process until its last lines are written.
pub(super) struct LastLines(Option<Sink>);

impl Drop for LastLines {
    fn drop(&mut self) {
        if let Some(sink) = &self.0 {
            sink.flush();
        }
    }
}
