//! W3C Trace Context: ids by which a request can be followed from one program to the next.
//!
//! Level 1 of the recommendation (<https://www.w3.org/TR/trace-context-1/>). A valid `traceparent` is continued, and
//! its `tracestate` passed on unread. A malformed one counts as absent, as the recommendation demands.

use std::num::{NonZeroU64, NonZeroU128};

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::core::fields;

/// The header with a trace's ids.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// The header with other programs' data of the trace.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Names a trace. Never all zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(NonZeroU128);

impl TraceId {
    fn random() -> Self {
        Self(NonZeroU128::new(fastrand::u128(..)).unwrap_or(NonZeroU128::MIN))
    }

    /// The id as bytes.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.get().to_be_bytes()
    }
}

/// 32 hexadecimal digits.
impl std::fmt::Display for TraceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Names a span within its trace. Never all zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanId(NonZeroU64);

impl SpanId {
    /// A new id.
    pub fn random() -> Self {
        Self(NonZeroU64::new(fastrand::u64(..)).unwrap_or(NonZeroU64::MIN))
    }

    /// The id as bytes.
    pub fn to_bytes(self) -> [u8; 8] {
        self.0.get().to_be_bytes()
    }
}

/// 16 hexadecimal digits.
impl std::fmt::Display for SpanId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The trace that a request belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// Which trace.
    pub trace: TraceId,
    /// The caller's span; `None` when the trace begins here.
    pub parent: Option<SpanId>,
    /// Whether the program that began the trace wants it recorded.
    pub sampled: bool,
    /// Other programs' data, passed on unchanged.
    pub state: Option<HeaderValue>,
}

impl TraceContext {
    /// A trace that begins here and is recorded.
    pub fn begin() -> Self {
        Self { trace: TraceId::random(), parent: None, sampled: true, state: None }
    }

    /// The caller's trace, if the headers name one.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        let mut parents = fields::values(headers, TRACEPARENT);
        let (trace, parent, flags) = match (parents.next(), parents.next()) {
            (Some(only), None) => parse(only.as_bytes())?,
            _ => return None,
        };
        Some(Self { trace, parent: Some(parent), sampled: flags & 1 == 1, state: state(headers) })
    }

    /// The `traceparent` of calls that belong to `span`.
    pub fn traceparent(&self, span: SpanId) -> Option<HeaderValue> {
        HeaderValue::try_from(format!("00-{}-{span}-{:02x}", self.trace, u8::from(self.sampled))).ok()
    }
}

/// Trace, parent and flags of a `traceparent`. Future versions begin like this one (section 3.2.2 of the
/// recommendation).
fn parse(text: &[u8]) -> Option<(TraceId, SpanId, u8)> {
    const LENGTH: usize = 55;
    let (known, rest) = text.split_at_checked(LENGTH)?;
    let [version, trace, parent, flags] = [0..2, 3..35, 36..52, 53..55].map(|part| hex(&known[part]));
    let dashed = [2, 35, 52].into_iter().all(|at| known[at] == b'-');
    let ends = match version? {
        0 => rest.is_empty(),
        0xff => false,
        _ => rest.first().is_none_or(|next| *next == b'-'),
    };
    let trace = TraceId(NonZeroU128::new(trace?)?);
    let parent = SpanId(NonZeroU64::new(parent?.try_into().ok()?)?);
    (dashed && ends).then_some((trace, parent, flags?.try_into().ok()?))
}

/// Digits in lower case, as the recommendation demands.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(value))
    })
}

/// `tracestate` in one line, unless it is malformed or longer than a program has to pass on (section 3.3.1.5).
fn state(headers: &HeaderMap) -> Option<HeaderValue> {
    const LONGEST: usize = 512;
    const MOST_MEMBERS: usize = 32;
    let mut line = String::new();
    for value in headers.get_all(TRACESTATE) {
        if !line.is_empty() {
            line.push(',');
        }
        line.push_str(value.to_str().ok()?);
    }
    let mut members = line.split(',').map(str::trim).filter(|member| !member.is_empty()).peekable();
    members.peek()?;
    let sound = line.len() <= LONGEST && line.split(',').count() <= MOST_MEMBERS && members.all(|m| m.contains('='));
    sound.then(|| HeaderValue::try_from(line).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn read(lines: &[(&'static str, &str)]) -> Option<TraceContext> {
        let lines =
            lines.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()));
        TraceContext::read(&HeaderMap::from_iter(lines))
    }

    #[test]
    fn a_valid_parent_is_continued() {
        let context = read(&[("traceparent", PARENT), ("tracestate", "a=1,b=2")]).unwrap();
        assert_eq!(context.trace.to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(context.parent.unwrap().to_string(), "b7ad6b7169203331");
        assert_eq!((context.sampled, context.state.as_ref().unwrap().as_bytes()), (true, &b"a=1,b=2"[..]));
        let span = SpanId::random();
        let expected = format!("00-0af7651916cd43dd8448eb211c80319c-{span}-01");
        assert_eq!(context.traceparent(span).unwrap(), expected.as_str());
        let unsampled = read(&[("traceparent", &PARENT.replace("-01", "-02"))]).unwrap();
        assert!(!unsampled.sampled && unsampled.traceparent(span).unwrap().as_bytes().ends_with(b"-00"));
    }

    #[test]
    fn future_versions_are_read_as_far_as_they_are_known() {
        for (line, accepted) in [
            (PARENT.replacen("00", "01", 1), true),
            (PARENT.replacen("00", "cc", 1) + "-what-the-future-brings", true),
            (PARENT.replacen("00", "cc", 1) + ".what", false),
            (PARENT.replacen("00", "ff", 1), false),
            (PARENT.to_owned() + "-", false),
        ] {
            assert_eq!(read(&[("traceparent", &line)]).is_some(), accepted, "{line}");
        }
    }

    #[test]
    fn malformed_ones_count_as_absent() {
        for line in [
            "",
            "00",
            &PARENT.to_uppercase(),
            &PARENT.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &PARENT.replace("b7ad6b7169203331", &"0".repeat(16)),
            &PARENT.replace('-', "_"),
            &PARENT.replace("-01", "-0g"),
        ] {
            assert_eq!(read(&[("traceparent", line)]), None, "{line}");
        }
        assert_eq!(read(&[]), None);
        let mut twice = HeaderMap::new();
        twice.append(TRACEPARENT, HeaderValue::from_static(PARENT));
        twice.append(TRACEPARENT, HeaderValue::from_static(PARENT));
        assert_eq!(TraceContext::read(&twice), None);
    }

    #[test]
    fn state_is_joined_and_bounded() {
        let state = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(TRACESTATE, HeaderValue::from_str(line).unwrap());
            }
            super::state(&headers).map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(state(&["a=1", "b=2"]).as_deref(), Some("a=1,b=2"));
        assert_eq!(state(&["a=1, ,b=2"]).as_deref(), Some("a=1, ,b=2"));
        for bad in [&[][..], &[""], &["a"], &[&format!("a={}", "x".repeat(600))], &[&"a=1,".repeat(40)]] {
            assert_eq!(state(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(trace in 1u128.., parent in 1u64.., sampled: bool) {
            let context = TraceContext { trace: TraceId(NonZeroU128::new(trace).unwrap()), parent: None, sampled, state: None };
            let span = SpanId(NonZeroU64::new(parent).unwrap());
            let headers = HeaderMap::from_iter([(TRACEPARENT, context.traceparent(span).unwrap())]);
            prop_assert_eq!(TraceContext::read(&headers), Some(TraceContext { parent: Some(span), ..context }));
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
