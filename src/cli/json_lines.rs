//! Log events as JSON lines, written straight into one buffer.
//!
//! tracing-subscriber's own JSON format takes as long for one access line as the gateway for a whole hit.
//! This one writes the same shape, flattened: `timestamp`, `level`, the event's fields with `message` among them,
//! and `target`.

use std::cell::RefCell;
use std::fmt::{self, Write};

use jiff::Timestamp;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::core::escape;

/// The format. See the module.
#[derive(Debug, Clone, Copy)]
pub(super) struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        // The writer is reached through two pointers to functions, so it gets the line whole.
        let mut line = Line(String::with_capacity(USUAL));
        line.0.push_str("{\"timestamp\":\"");
        line.timestamp(Timestamp::now());
        line.0.push_str("\",\"level\":\"");
        line.0.push_str(metadata.level().as_str());
        line.0.push('"');
        event.record(&mut line);
        line.0.push_str(",\"target\":");
        line.string(metadata.target());
        line.0.push_str("}\n");
        writer.write_str(&line.0)
    }
}

/// Bytes that an access line seldom exceeds.
const USUAL: usize = 512;

/// A line that is being written.
struct Line(String);

impl Line {
    /// As `{:.6}` has it. Most lines are of the same second as the one before, whose calendar is known.
    fn timestamp(&mut self, now: Timestamp) {
        const MICROS: i64 = 1_000_000;
        thread_local! {
            static LAST: RefCell<(i64, String)> = const { RefCell::new((i64::MIN, String::new())) };
        }
        let (second, micros) = (now.as_microsecond().div_euclid(MICROS), now.as_microsecond().rem_euclid(MICROS));
        LAST.with_borrow_mut(|(known, text)| {
            if *known != second {
                text.clear();
                // Writing to a string cannot fail.
                let _ = write!(text, "{now:.6}");
                text.truncate("2026-04-02T10:00:00".len());
                *known = second;
            }
            self.0.push_str(text);
        });
        self.0.push('.');
        // One more digit in front, so that there are always six behind it.
        self.0.push_str(&itoa::Buffer::new().format(MICROS + micros)[1..]);
        self.0.push('Z');
    }

    fn name(&mut self, field: &Field) {
        self.0.push_str(",\"");
        self.0.push_str(field.name());
        self.0.push_str("\":");
    }

    fn string(&mut self, text: &str) {
        self.0.push('"');
        self.escaped(text);
        self.0.push('"');
    }

    /// As the inside of a JSON string.
    fn escaped(&mut self, text: &str) {
        let may_have_to_be_escaped =
            |b: u8| u8::from(b < 0x20) | u8::from(b >= 0x7f) | u8::from(b == b'"') | u8::from(b == b'\\');
        // Nearly all text is plain, which many bytes at a time can show.
        if text.bytes().fold(0, |found, b| found | may_have_to_be_escaped(b)) == 0 {
            return self.0.push_str(text);
        }
        for character in text.chars() {
            match character {
                '"' => self.0.push_str("\\\""),
                '\\' => self.0.push_str("\\\\"),
                '\n' => self.0.push_str("\\n"),
                // Writing to a string does not fail.
                character if escape::is_unsafe(character) => {
                    let _ = escape::write_escaped(&mut self.0, character);
                }
                plain => self.0.push(plain),
            }
        }
    }

    /// As `Display` has it. Durations, of which every access line has three, are whole thousandths; what those are in
    /// decimal takes no search.
    fn number(&mut self, value: f64) {
        const EXACT: f64 = 1e12;
        let thousandths = (value * 1e3).round();
        if !(0.0..EXACT).contains(&thousandths) || thousandths / 1e3 != value || value.is_sign_negative() {
            // Writing to a string cannot fail.
            let _ = write!(self.0, "{value}");
            return;
        }
        let thousandths = thousandths as u64;
        self.0.push_str(itoa::Buffer::new().format(thousandths / 1000));
        let mut rest = thousandths % 1000;
        if rest > 0 {
            self.0.push('.');
        }
        for place in [100, 10, 1] {
            if rest > 0 {
                self.0.push(char::from(b'0' + (rest / place) as u8));
                rest %= place;
            }
        }
    }
}

impl Visit for Line {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.name(field);
        match value.is_finite() {
            true => self.number(value),
            false => self.0.push_str("null"),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.name(field);
        self.0.push_str(itoa::Buffer::new().format(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.name(field);
        self.0.push_str(itoa::Buffer::new().format(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.name(field);
        self.0.push_str(if value { "true" } else { "false" });
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.name(field);
        self.string(value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.name(field);
        self.0.push('"');
        // What fails is the value's own doing, and costs its own text alone.
        let _ = write!(Escaped(self), "{value:?}");
        self.0.push('"');
    }
}

/// Writes what it is given as the inside of a JSON string.
struct Escaped<'l>(&'l mut Line);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.escaped(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;
    use tracing_subscriber::fmt::MakeWriter;
    use tracing_subscriber::prelude::*;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Sink {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    #[test]
    fn every_line_is_one_json_object() {
        let sink = Sink::default();
        let layer = tracing_subscriber::fmt::layer().event_format(JsonLines).with_writer(sink.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let nasty = "quote \" backslash \\ newline \n bell \u{7} umlaut \u{e4}";
            tracing::info!(target: "a::b", text = nasty, debug = ?nasty, shown = %nasty, n = -3, big = u64::MAX, part = 0.25, odd = f64::NAN, yes = true, "{nasty}");
        });
        let bytes = sink.0.lock().unwrap().clone();
        let line = String::from_utf8(bytes).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        let nasty = "quote \" backslash \\ newline \n bell \u{7} umlaut \u{e4}";
        assert_eq!((&value["text"], &value["shown"], &value["message"]), (&nasty.into(), &nasty.into(), &nasty.into()));
        assert_eq!(value["debug"], format!("{nasty:?}"));
        assert_eq!((&value["n"], &value["big"], &value["part"]), (&(-3).into(), &u64::MAX.into(), &0.25.into()));
        assert!(
            value["odd"].is_null() && value["yes"] == true && value["target"] == "a::b" && value["level"] == "INFO"
        );
        assert!(value["timestamp"].as_str().unwrap().parse::<Timestamp>().is_ok());
    }

    proptest! {
        #[test]
        fn timestamps_are_as_display_has_them(second in 0i64..4_000_000_000, nanoseconds: [u16; 3]) {
            for part in nanoseconds {
                let now = Timestamp::new(second, i32::from(part) * 15_257).unwrap();
                let mut line = Line(String::new());
                line.timestamp(now);
                prop_assert_eq!(line.0, format!("{now:.6}"));
            }
        }

        #[test]
        fn numbers_are_as_display_has_them(thousandths: u32, other: f64) {
            for value in [f64::from(thousandths) / 1e3, f64::from(thousandths / 1000), f64::from(thousandths % 5000) / 1e3, other] {
                let mut line = Line(String::new());
                line.number(value);
                prop_assert_eq!(line.0, value.to_string());
            }
        }

        #[test]
        fn any_text_is_read_as_it_was(text: String) {
            let mut line = Line(String::new());
            line.string(&text);
            prop_assert!(!line.0.chars().any(escape::is_unsafe));
            prop_assert_eq!(serde_json::from_str::<String>(&line.0).unwrap(), text);
        }
    }
}
