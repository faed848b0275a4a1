//! Where log lines go: standard error, as text on a terminal and as JSON elsewhere.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

use super::json_lines::JsonLines;
use crate::config::{Log, LogFormat};

/// Installs the process's log. The second call in one process does nothing.
pub(super) fn install(log: &Log) {
    // The configuration has checked the filter; what it lets through cannot fail here.
    let filter = EnvFilter::try_new(&log.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let json = match log.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !io::stderr().is_terminal(),
    };
    let lines = fmt::layer().with_writer(io::stderr);
    let lines = match json {
        true => lines.event_format(JsonLines).boxed(),
        false => lines.with_ansi(io::stderr().is_terminal()).boxed(),
    };
    // Fails only where a log is installed already.
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
}
