//! Log events as text for a terminal. Lines have tracing-subscriber's format, except for the access line: with all its
//! fields it would fill four rows, so it is shortened to one row with the most important ones. The JSON format has all
//! fields.
//!
//! ```text
//! 21:00:00 200 hit query dashboards 0.1ms 4c5017b202648f4a00000000000001f3
//! 21:00:07 502 failed query dashboards 5003ms upstream_timeout 2 tries …0000000001f4
//! ```

use std::fmt::{self, Debug, Write};

use jiff::Timestamp;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The width of most terminals, in columns.
const WIDTH: usize = 80;
/// The least number of characters of a request id that are shown. They are its last ones, because these differ between
/// the requests of one process.
const LEAST_OF_ID: usize = 12;

/// The format. See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct TextLines(Format<Full, SystemTime>);

impl<S, N> FormatEvent<S, N> for TextLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        if event.metadata().target() != "insights_gateway::access" {
            return self.0.format_event(context, writer, event);
        }
        let mut access = Access::default();
        event.record(&mut access);
        let has_colours = writer.has_ansi_escapes();
        access.write(writer, has_colours, Timestamp::now())
    }
}

/// The fields of an access line that are shown.
#[derive(Default)]
struct Access {
    request_id: String,
    team: String,
    operation: String,
    path: String,
    status: u64,
    outcome: String,
    reason: String,
    duration: f64,
    wait: f64,
    attempts: u64,
}

impl Access {
    fn write(&self, mut writer: impl Write, has_colours: bool, now: Timestamp) -> fmt::Result {
        let mut rest = String::new();
        // For a path without an operation the path itself is more useful.
        let what = if self.operation == "none" { &self.path } else { &self.operation };
        write!(rest, " {} {what}", self.outcome)?;
        if !self.team.is_empty() {
            write!(rest, " {}", self.team)?;
        }
        write!(rest, " {}", Millis(self.duration))?;
        if !self.reason.is_empty() {
            write!(rest, " {}", self.reason)?;
        }
        if self.wait >= 1.0 {
            write!(rest, " waited {}", Millis(self.wait))?;
        }
        if self.attempts > 1 {
            write!(rest, " {} tries", self.attempts)?;
        }
        let (time, status) = (now.strftime("%H:%M:%S"), self.status);
        let taken = "21:00:00 200".len() + rest.chars().count() + 1;
        let id = Tail { text: &self.request_id, room: WIDTH.saturating_sub(taken).max(LEAST_OF_ID + 1) };
        let colour = match status {
            ..400 => 32,
            400..500 => 33,
            _ => 31,
        };
        match has_colours {
            true => writeln!(writer, "{time} \x1b[{colour}m{status}\x1b[0m{rest} {id}"),
            false => writeln!(writer, "{time} {status}{rest} {id}"),
        }
    }
}

/// The end of a text that fits into `room`, with a mark in place of the beginning.
struct Tail<'t> {
    text: &'t str,
    room: usize,
}

impl fmt::Display for Tail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An id is ASCII.
        match self.text.len().checked_sub(self.room) {
            None | Some(0) => f.write_str(self.text),
            Some(over) => write!(f, "…{}", self.text.get(over + 1..).unwrap_or_default()),
        }
    }
}

/// Milliseconds, with one decimal if they are few.
struct Millis(f64);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = usize::from(self.0 < 100.0);
        write!(f, "{:.decimals$}ms", self.0)
    }
}

impl Visit for Access {
    fn record_f64(&mut self, field: &Field, value: f64) {
        match field.name() {
            "duration_ms" => self.duration = value,
            "wait_ms" => self.wait = value,
            _ => {}
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "status" => self.status = value,
            "attempts" => self.attempts = value,
            _ => {}
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let known = match field.name() {
            "request_id" => &mut self.request_id,
            "team" => &mut self.team,
            "operation" => &mut self.operation,
            "path" => &mut self.path,
            "outcome" => &mut self.outcome,
            "reason" => &mut self.reason,
            _ => return,
        };
        known.push_str(value);
    }

    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(access: &Access, has_colours: bool) -> String {
        let mut text = String::new();
        access.write(&mut text, has_colours, "2026-11-28T21:00:07Z".parse().unwrap()).unwrap();
        text
    }

    fn access() -> Access {
        Access {
            request_id: "4c5017b202648f4a00000000000001f3".to_owned(),
            team: "dashboards".to_owned(),
            operation: "query".to_owned(),
            path: "/v3/InsightsDomains/Conversations/Query".to_owned(),
            status: 200,
            outcome: "hit".to_owned(),
            duration: 0.061,
            ..Access::default()
        }
    }

    #[test]
    fn an_access_line_fits_a_terminal() {
        let hit = line(&access(), false);
        assert_eq!(hit, "21:00:07 200 hit query dashboards 0.1ms 4c5017b202648f4a00000000000001f3\n");
        assert_eq!(hit.trim_end().len(), 72);
        let failed = Access {
            status: 504,
            outcome: "failed".to_owned(),
            reason: "upstream_timeout".to_owned(),
            duration: 90_012.345,
            attempts: 4,
            ..access()
        };
        let text = line(&failed, false);
        assert_eq!(text, "21:00:07 504 failed query dashboards 90012ms upstream_timeout 4 tries …0000000001f3\n");
        let text = line(&Access { team: "t".to_owned(), ..failed }, false);
        assert_eq!(text.trim_end(), "21:00:07 504 failed query t 90012ms upstream_timeout 4 tries …4a00000000000001f3");
        assert!(text.trim_end().chars().count() <= 80, "{text}");
        let nowhere =
            Access { operation: "none".to_owned(), path: "/nowhere".to_owned(), team: String::new(), ..access() };
        assert_eq!(line(&nowhere, false), "21:00:07 200 hit /nowhere 0.1ms 4c5017b202648f4a00000000000001f3\n");
    }

    #[test]
    fn only_the_status_is_coloured_and_only_in_a_terminal() {
        for (status, colour) in [(200, "32"), (304, "32"), (404, "33"), (503, "31")] {
            let coloured = line(&Access { status, ..access() }, true);
            assert_eq!(
                coloured,
                format!(
                    "21:00:07 \x1b[{colour}m{status}\x1b[0m hit query dashboards 0.1ms 4c5017b202648f4a00000000000001f3\n"
                )
            );
        }
    }
}
