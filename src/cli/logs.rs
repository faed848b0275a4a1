//! Writes log lines to standard error, as text on a terminal and as JSON elsewhere.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use super::json_lines::JsonLines;
use super::sink::Sink;
use super::terminal::Terminal;
use super::text_lines::TextLines;
use crate::config::{Config, Log, LogFormat};
use crate::core::escape;
use crate::request::context::SPAN_TARGET;

/// Installs the log of the process. Dropping the result writes the last lines.
pub(super) fn install(log: &Log) -> ProcessLog {
    let json = match log.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !io::stderr().is_terminal(),
    };
    let (sink, has_colours) = (Sink::start(io::stderr()), Terminal::of_process().errors_colour);
    let writer = match (sink.clone(), json) {
        (Some(sink), true) => BoxMakeWriter::new(sink),
        (None, true) => BoxMakeWriter::new(io::stderr),
        (Some(sink), false) => BoxMakeWriter::new(move || Visible { output: sink.clone(), has_colours }),
        (None, false) => BoxMakeWriter::new(move || Visible { output: io::stderr(), has_colours }),
    };
    let lines = fmt::layer().with_writer(writer);
    let lines = match json {
        true => lines.fmt_fields(JsonLines).event_format(JsonLines).boxed(),
        false => lines.event_format(TextLines::default()).with_ansi(has_colours).boxed(),
    };
    let (filter, handle) = reload::Layer::new(filter(&log.filter));
    // Fails only if a log is installed already.
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
    ProcessLog { sink, filter: handle }
}

/// The filter of `log.filter`. Unless it logs nothing, it enables the spans that carry request ids, whichever targets it
/// names.
fn filter(directives: &str) -> EnvFilter {
    // The configuration has checked the directives.
    let filter = EnvFilter::try_new(directives).unwrap_or_else(|_| EnvFilter::new("info"));
    let logs_nothing = filter.max_level_hint() == Some(LevelFilter::OFF);
    match format!("{SPAN_TARGET}=error").parse() {
        Ok(spans) if !logs_nothing => filter.add_directive(spans),
        _ => filter,
    }
}

/// Writes text and escapes the characters that are unsafe in a log (see [`escape`]).
struct Visible<W> {
    output: W,
    has_colours: bool,
}

impl<W: Write> Write for Visible<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // The format writes whole lines, all of them text.
        match std::str::from_utf8(line).map(|line| escape::text(line, self.has_colours)) {
            Ok(Cow::Owned(visible)) => self.output.write_all(visible.as_bytes()).map(|()| line.len()),
            Ok(Cow::Borrowed(_)) | Err(_) => self.output.write(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// The log of the process. Waits for the last lines when it is dropped.
pub(super) struct ProcessLog {
    sink: Option<Sink>,
    filter: reload::Handle<EnvFilter, Registry>,
}

impl ProcessLog {
    /// Takes the filter of each new configuration.
    pub(super) fn follow(&self) -> impl Fn(&Config) + Send + Sync + use<> {
        let handle = self.filter.clone();
        move |config| {
            // Fails only if the process already had another log, which has its own filter.
            let _ = handle.reload(filter(&config.log.filter));
        }
    }
}

impl Drop for ProcessLog {
    fn drop(&mut self) {
        if let Some(sink) = &self.sink {
            sink.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::request::context::RequestContext;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Whether the span of a request is enabled under these directives.
    fn has_spans(directives: &str) -> bool {
        let lines = fmt::layer().with_writer(io::sink).with_filter(filter(directives));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
            !RequestContext::default().span().is_disabled()
        })
    }

    #[test]
    fn request_ids_are_logged_with_every_filter() {
        for directives in ["info", "error", "insights_gateway::layers::upstream=debug", "warn,insights_gateway=off"] {
            assert!(has_spans(directives), "{directives}");
        }
        for directives in ["off", ""] {
            assert!(!has_spans(directives), "{directives}");
        }
    }

    #[test]
    fn a_log_in_text_shows_no_character_that_hides_or_moves_others() {
        let kept = Kept::default();
        let writer = kept.clone();
        let lines =
            fmt::layer().with_writer(move || Visible { output: writer.clone(), has_colours: false }).with_ansi(false);
        let subscriber = tracing_subscriber::registry().with(lines);
        let nasty = "\u{9b}31m\u{202e}txt\u{2028}\u{feff}\u{1b}[31m";
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(text = nasty, shown = %nasty, debug = ?nasty, "{nasty}");
        });
        let said = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        let shown = said.strip_suffix('\n').unwrap();
        assert!(!shown.chars().any(escape::is_unsafe), "{said:?}");
        assert!(said.contains(r"\u202e") || said.contains(r"\u{202e}"), "{said:?}");
    }
}
