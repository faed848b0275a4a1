//! Spans in OTLP's binary form: an `ExportTraceServiceRequest` of the OpenTelemetry protocol, 1.x.
//!
//! Written by hand, because only a dozen fields are needed, and published field numbers never change. They are those of
//! `opentelemetry/proto/trace/v1/trace.proto` and `common/v1/common.proto`.

use std::time::UNIX_EPOCH;

use super::spans::{Span, Value};
use crate::core::clock::{Clock, Instant, Reading};

/// The spans of several requests, as one message.
pub(super) fn encode(requests: &[Vec<Span<'_>>], clock: Clock) -> Vec<u8> {
    let (mut request, dated) = (Message::default(), clock.reading());
    request.message(1, |resource_spans| {
        resource_spans.message(1, |resource| {
            attribute(resource, 1, "service.name", Value::Text("insights-gateway"));
            attribute(resource, 1, "service.version", Value::Text(env!("CARGO_PKG_VERSION")));
        });
        resource_spans.message(2, |scope_spans| {
            scope_spans.message(1, |scope| {
                scope.text(1, "insights_gateway");
                scope.text(2, env!("CARGO_PKG_VERSION"));
            });
            for span in requests.iter().flatten() {
                scope_spans.message(2, |message| write(message, span, dated));
            }
        });
    });
    request.0
}

fn write(message: &mut Message, span: &Span<'_>, dated: Reading) {
    const HAS_IS_REMOTE: u32 = 0x100;
    const IS_REMOTE: u32 = 0x200;
    const SAMPLED: u32 = 1;
    const ERROR: u64 = 2;
    message.bytes(1, &span.trace.to_bytes());
    message.bytes(2, &span.id.to_bytes());
    message.text(3, span.state);
    if let Some(parent) = span.parent {
        message.bytes(4, &parent.to_bytes());
    }
    message.text(5, &span.name);
    message.number(6, span.kind as u64);
    message.fixed_64(7, nanos(span.begun, dated));
    message.fixed_64(8, nanos(span.ended, dated));
    for (name, value) in &span.attributes {
        attribute(message, 9, name, *value);
    }
    if span.failed {
        message.message(15, |status| status.number(3, ERROR));
    }
    message.fixed_32(16, SAMPLED | HAS_IS_REMOTE | if span.is_remote { IS_REMOTE } else { 0 });
}

fn attribute(message: &mut Message, field: u32, name: &str, value: Value<'_>) {
    message.message(field, |pair| {
        pair.text(1, name);
        pair.message(2, |any| match value {
            Value::Text(text) => any.bytes(1, text.as_bytes()),
            Value::Number(number) => any.number(3, number),
        });
    });
}

fn nanos(instant: Instant, dated: Reading) -> u64 {
    let since = dated.wall(instant).duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// A Protocol Buffers message as it is written.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    const VARINT: u32 = 0;
    const FIXED_64: u32 = 1;
    const LENGTH: u32 = 2;
    const FIXED_32: u32 = 5;

    fn tag(&mut self, field: u32, wire: u32) {
        self.varint(u64::from(field << 3 | wire));
    }

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn number(&mut self, field: u32, number: u64) {
        self.tag(field, Self::VARINT);
        self.varint(number);
    }

    fn fixed_64(&mut self, field: u32, number: u64) {
        self.tag(field, Self::FIXED_64);
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn fixed_32(&mut self, field: u32, number: u32) {
        self.tag(field, Self::FIXED_32);
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.tag(field, Self::LENGTH);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// Writes a text, or nothing if it is empty, as the format demands.
    fn text(&mut self, field: u32, text: &str) {
        if !text.is_empty() {
            self.bytes(field, text.as_bytes());
        }
    }

    fn message(&mut self, field: u32, write: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        write(&mut inner);
        self.bytes(field, &inner.0);
    }
}
