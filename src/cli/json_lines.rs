//! Log events as JSON lines, written straight into one buffer.
//!
//! tracing-subscriber's own JSON format takes as long for one access line as the gateway for a whole hit. This one
//! writes the same structure, flattened: `timestamp`, `level`, the event's fields with `message` among them, the fields
//! of the spans around it, and `target`. Each name is written once: the event's field overrides a span's, and an inner
//! span's overrides an outer one's.

use std::cell::RefCell;
use std::fmt::{self, Write};

use jiff::Timestamp;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use crate::core::{escape, json};

/// The format; see the module.
#[derive(Debug, Clone, Copy)]
pub(super) struct JsonLines;

impl<S> FormatEvent<S, Self> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, Self>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        // Each write to the output costs two dynamic calls, so the line is written in one piece.
        let mut line = Line::new(",\"", USUAL);
        line.text.push_str("{\"timestamp\":\"");
        line.timestamp(Timestamp::now());
        line.text.push_str("\",\"level\":\"");
        line.text.push_str(metadata.level().as_str());
        line.text.push('"');
        event.record(&mut line);
        // Access lines, which are written for hits too, are outside all spans.
        for span in context.event_scope().into_iter().flatten() {
            if let Some(fields) = span.extensions().get::<FormattedFields<Self>>() {
                line.add(fields);
            }
        }
        line.text.push_str(",\"target\":");
        line.string(metadata.target());
        line.text.push_str("}\n");
        writer.write_str(&line.text)
    }
}

/// The fields of a span, formatted once. Each field is a line break, which no value contains, followed by the field in
/// the form that the lines of its events need.
impl<'a> FormatFields<'a> for JsonLines {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'a>, fields: R) -> fmt::Result {
        let mut line = Line::new("\n,\"", 0);
        fields.record(&mut line);
        writer.write_str(&line.text)
    }
}

/// Whether nothing of it has to be escaped. Most of these texts are short, so eight bytes are compared at a time.
fn is_plain(text: &[u8]) -> bool {
    let is_plain_word = |word: &[u8; 8]| {
        let word = u64::from_le_bytes(*word);
        // The highest bit of a byte is set if it is at least 0x80, and then that of its successor if it is 0x7f.
        let above = (word | word.wrapping_add(json::all(1))) & json::all(0x80);
        json::below(word, 0x20) | json::equal(word, b'"') | json::equal(word, b'\\') | above == 0
    };
    let is_plain_byte = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
    match text.last_chunk() {
        // The last word may overlap with the one before.
        Some(last) => text.as_chunks().0.iter().all(is_plain_word) && is_plain_word(last),
        None => text.iter().all(is_plain_byte),
    }
}

/// Most access lines are shorter than this.
const USUAL: usize = 512;

/// A line while it is written.
struct Line {
    text: String,
    /// Written before each name: a comma and the opening quotation mark.
    separator: &'static str,
}

impl Line {
    fn new(separator: &'static str, capacity: usize) -> Self {
        Self { text: String::with_capacity(capacity), separator }
    }

    /// Adds the fields of a span, except those whose names the line already has. Quotation marks within strings are
    /// escaped, so the text `,"name":` can only be a name.
    fn add(&mut self, fields: &str) {
        for field in fields.split('\n') {
            let name = field.find(':').map_or("", |end| &field[..=end]);
            if !name.is_empty() && !self.text.contains(name) {
                self.text.push_str(field);
            }
        }
    }

    /// Writes the time like `{:.6}`. Most lines are of the same second as the previous one, so its text is kept.
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
            self.text.push_str(text);
        });
        self.text.push('.');
        // Adding a leading digit, which is then cut off, gives always six digits.
        self.text.push_str(&itoa::Buffer::new().format(MICROS + micros)[1..]);
        self.text.push('Z');
    }

    fn name(&mut self, field: &Field) {
        self.text.push_str(self.separator);
        self.text.push_str(field.name());
        self.text.push_str("\":");
    }

    fn string(&mut self, text: &str) {
        self.text.push('"');
        self.escaped(text);
        self.text.push('"');
    }

    /// Writes the inside of a JSON string.
    fn escaped(&mut self, text: &str) {
        // Nearly all text is plain.
        if is_plain(text.as_bytes()) {
            return self.text.push_str(text);
        }
        for character in text.chars() {
            match character {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                // Writing to a string does not fail.
                character if escape::is_unsafe(character) => {
                    let _ = escape::write_escaped(&mut self.text, character);
                }
                plain => self.text.push(plain),
            }
        }
    }

    /// Writes a number like `Display`. The three durations of an access line are whole thousandths, for which the
    /// shortest decimal form needs no search.
    fn number(&mut self, value: f64) {
        const EXACT: f64 = 1e12;
        let thousandths = (value * 1e3).round();
        if !(0.0..EXACT).contains(&thousandths) || thousandths / 1e3 != value || value.is_sign_negative() {
            // Writing to a string cannot fail.
            let _ = write!(self.text, "{value}");
            return;
        }
        let thousandths = thousandths as u64;
        self.text.push_str(itoa::Buffer::new().format(thousandths / 1000));
        let mut rest = thousandths % 1000;
        if rest > 0 {
            self.text.push('.');
        }
        for place in [100, 10, 1] {
            if rest > 0 {
                self.text.push(char::from(b'0' + (rest / place) as u8));
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
            false => self.text.push_str("null"),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.name(field);
        self.text.push_str(itoa::Buffer::new().format(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.name(field);
        self.text.push_str(itoa::Buffer::new().format(value));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.name(field);
        // Writing to a string cannot fail.
        let _ = write!(self.text, "{value}");
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.name(field);
        self.text.push_str(if value { "true" } else { "false" });
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.name(field);
        self.string(value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.name(field);
        self.text.push('"');
        // If the value's own `Debug` fails, only its text is cut.
        let _ = write!(Escaped(self), "{value:?}");
        self.text.push('"');
    }
}

/// Writes text as the inside of a JSON string.
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
        let layer =
            tracing_subscriber::fmt::layer().fmt_fields(JsonLines).event_format(JsonLines).with_writer(sink.clone());
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

    #[test]
    fn a_line_has_the_fields_of_its_spans_each_once() {
        let sink = Sink::default();
        let layer =
            tracing_subscriber::fmt::layer().fmt_fields(JsonLines).event_format(JsonLines).with_writer(sink.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let odd = "a,\"b\":\n\\";
            let _outer = tracing::error_span!("outer", request_id = odd, n = 3, team = "outer").entered();
            let _inner = tracing::error_span!("inner", team = "a", absent = None::<&str>, account = "span's").entered();
            tracing::info!(account = "event's", "first");
            tracing::info!(parent: None, "second");
        });
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let first = &lines[0];
        assert_eq!((&first["request_id"], &first["n"]), (&"a,\"b\":\n\\".into(), &3.into()));
        assert_eq!((&first["team"], &first["account"]), (&"a".into(), &"event's".into()));
        assert_eq!(text.lines().next().unwrap().matches("\"team\":").count(), 1);
        let names: Vec<_> = lines[1].as_object().unwrap().keys().collect();
        assert_eq!(names, ["level", "message", "target", "timestamp"]);
    }

    proptest! {
        #[test]
        fn timestamps_are_as_display_has_them(second in 0i64..4_000_000_000, nanoseconds: [u16; 3]) {
            for part in nanoseconds {
                let now = Timestamp::new(second, i32::from(part) * 15_257).unwrap();
                let mut line = Line::new(",", 0);
                line.timestamp(now);
                prop_assert_eq!(line.text, format!("{now:.6}"));
            }
        }

        #[test]
        fn numbers_are_as_display_has_them(thousandths: u32, other: f64) {
            for value in [f64::from(thousandths) / 1e3, f64::from(thousandths / 1000), f64::from(thousandths % 5000) / 1e3, other] {
                let mut line = Line::new(",", 0);
                line.number(value);
                prop_assert_eq!(line.text, value.to_string());
            }
        }

        #[test]
        fn any_text_is_read_as_it_was(text: String) {
            let mut line = Line::new(",", 0);
            line.string(&text);
            prop_assert!(!line.text.chars().any(escape::is_unsafe));
            prop_assert_eq!(serde_json::from_str::<String>(&line.text).unwrap(), text);
        }
    }
}
