//! Scripted answers: what the next API requests shall see instead of, or on top of, an ordinary answer.
//!
//! Rules queue up in order; each applies to so many requests and is then gone. This file reads, keeps and
//! hands out rules. Acting on them is up to [`http`](super::http).

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use crate::model::units::{Span, parse_duration};

const MOST_RULES: usize = 1000;
/// Bodies of all pending rules together, in bytes.
const MOST_BODIES: usize = 64 << 20;
const MOST_REQUESTS: u32 = 1_000_000;
const MOST_HEADERS: usize = 32;
const LONGEST_DELAY: Duration = Duration::from_secs(600);

/// One rule. Everything but `next` is optional, and what is given combines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fault {
    /// To how many requests it applies; none at all when zero.
    pub next: u32,
    /// The answer's status. From 400 on it comes with an error body, from 300 on without a body, and below
    /// with the ordinary answer.
    pub status: Option<StatusCode>,
    /// How much later than usual.
    pub delay: Option<Duration>,
    /// Close the connection after this many bytes of the body, though its whole length was announced.
    pub cut_body_at: Option<usize>,
    /// Close the connection without any answer.
    pub reset: bool,
    /// Send this text instead of JSON.
    pub body: Option<String>,
    /// What the body claims to be.
    pub content_type: Option<HeaderValue>,
    /// Headers added to the answer, replacing those of the same name.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    next: Option<u32>,
    status: Option<u16>,
    delay: Option<String>,
    cut_body_at: Option<usize>,
    reset: Option<bool>,
    body: Option<String>,
    content_type: Option<String>,
    headers: Option<BTreeMap<String, String>>,
}

impl Fault {
    /// Reads a rule as it is posted, or says what is wrong with it.
    pub fn from_json(text: &[u8]) -> Result<Self, String> {
        let written: Written = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let next = written.next.unwrap_or(1);
        if !(1..=MOST_REQUESTS).contains(&next) {
            return Err(format!("next must be from 1 to {MOST_REQUESTS}"));
        }
        let status = match written.status {
            Some(status @ 200..=599) => StatusCode::from_u16(status).ok(),
            Some(_) => return Err("status must be from 200 to 599".to_owned()),
            None => None,
        };
        let delay = match written.delay.as_deref().map(parse_duration).transpose() {
            Ok(Some(delay)) if delay > LONGEST_DELAY => {
                return Err(format!("delay must be at most {}", Span(LONGEST_DELAY)));
            }
            Ok(delay) => delay,
            Err(expected) => return Err(format!("delay: {expected}")),
        };
        let content_type = match written.content_type {
            Some(text) => Some(HeaderValue::try_from(text).map_err(|_| "content_type is not a header value")?),
            None => None,
        };
        let fault = Self {
            next,
            status,
            delay,
            cut_body_at: written.cut_body_at,
            reset: written.reset.unwrap_or(false),
            body: written.body,
            content_type,
            headers: headers(written.headers.unwrap_or_default())?,
        };
        if fault == (Self { next, ..Self::default() }) {
            return Err("the rule changes nothing".to_owned());
        }
        Ok(fault)
    }

    fn describe(&self) -> Json {
        let mut json = json!({"next": self.next});
        let mut set = |key: &str, value: Json| json[key] = value;
        if let Some(status) = self.status {
            set("status", status.as_u16().into());
        }
        if let Some(delay) = self.delay {
            set("delay", Span(delay).to_string().into());
        }
        if let Some(bytes) = self.cut_body_at {
            set("cut_body_at", bytes.into());
        }
        if self.reset {
            set("reset", true.into());
        }
        if let Some(body) = &self.body {
            set("body", body.as_str().into());
        }
        if let Some(content_type) = &self.content_type {
            set("content_type", shown(content_type));
        }
        if !self.headers.is_empty() {
            let headers = self.headers.iter().map(|(name, value)| (name.to_string(), shown(value)));
            set("headers", headers.collect());
        }
        json
    }
}

fn shown(value: &HeaderValue) -> Json {
    String::from_utf8_lossy(value.as_bytes()).into()
}

/// Framing stays the server's own: an answer that cannot be sent at all would test nothing.
fn headers(written: BTreeMap<String, String>) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    if written.len() > MOST_HEADERS {
        return Err(format!("at most {MOST_HEADERS} headers"));
    }
    written
        .into_iter()
        .map(|(name, value)| {
            let parsed = HeaderName::try_from(&name).map_err(|_| format!("{name:?} is not a header name"))?;
            if matches!(parsed.as_str(), "content-length" | "transfer-encoding" | "connection" | "upgrade") {
                return Err(format!("{name} cannot be scripted"));
            }
            let value = HeaderValue::try_from(value).map_err(|_| format!("{name}: not a header value"))?;
            Ok((parsed, value))
        })
        .collect()
}

/// The queue of rules.
#[derive(Default)]
pub struct Faults {
    rules: Mutex<VecDeque<Fault>>,
}

impl Faults {
    /// Queues a rule behind the others.
    pub fn push(&self, fault: Fault) -> Result<(), String> {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        if rules.len() >= MOST_RULES {
            return Err(format!("at most {MOST_RULES} rules can be pending"));
        }
        let length = |fault: &Fault| fault.body.as_ref().map_or(0, String::len);
        if length(&fault) + rules.iter().map(length).sum::<usize>() > MOST_BODIES {
            return Err(format!("pending bodies may hold at most {MOST_BODIES} bytes"));
        }
        if fault.next > 0 {
            rules.push_back(fault);
        }
        Ok(())
    }

    /// The rule for the request that has just arrived.
    pub fn take(&self) -> Option<Fault> {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let first = rules.front_mut()?;
        first.next = first.next.saturating_sub(1);
        if first.next == 0 {
            return rules.pop_front();
        }
        Some(first.clone())
    }

    /// Forgets all rules.
    pub fn clear(&self) {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// What is pending, as JSON.
    pub fn describe(&self) -> Json {
        let rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let rules: Vec<Json> = rules.iter().map(Fault::describe).collect();
        json!({ "faults": rules })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_the_contract_writes() {
        let read = |text: &str| Fault::from_json(text.as_bytes()).unwrap();
        let fault = read(r#"{"next":3,"status":503}"#);
        assert_eq!((fault.next, fault.status), (3, Some(StatusCode::SERVICE_UNAVAILABLE)));
        assert_eq!(read(r#"{"next":1,"delay":"2s"}"#).delay, Some(Duration::from_secs(2)));
        assert_eq!(read(r#"{"next":1,"cut_body_at":100}"#).cut_body_at, Some(100));
        let reset = read(r#"{"reset":true}"#);
        assert!(reset.reset && reset.next == 1);
        let page = read(r#"{"body":"x","content_type":"text/html","headers":{"Retry-After":"2"}}"#);
        assert_eq!(page.headers[0].0, "retry-after");
    }

    #[test]
    fn refuses_the_rest_with_a_reason() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{"next":3}"#,
            r#"{"next":0,"status":503}"#,
            r#"{"next":-1,"status":503}"#,
            r#"{"status":99}"#,
            r#"{"status":101}"#,
            r#"{"status":600}"#,
            r#"{"status":"503"}"#,
            r#"{"delay":"2"}"#,
            r#"{"delay":"7d"}"#,
            r#"{"stats":503}"#,
            r#"{"headers":{"a b":"c"}}"#,
            r#"{"headers":{"a":"b\nc"}}"#,
            r#"{"headers":{"Content-Length":"1"}}"#,
            r#"{"content_type":"\n"}"#,
        ] {
            let reason = Fault::from_json(text.as_bytes()).unwrap_err();
            assert!(!reason.is_empty(), "{text}");
        }
    }

    #[test]
    fn rules_apply_in_order_and_run_out() {
        let faults = Faults::default();
        let rule = |next, status| Fault { next, status: StatusCode::from_u16(status).ok(), ..Fault::default() };
        faults.push(rule(2, 503)).unwrap();
        faults.push(rule(0, 404)).unwrap();
        faults.push(rule(1, 500)).unwrap();
        assert_eq!(faults.describe(), json!({"faults": [{"next": 2, "status": 503}, {"next": 1, "status": 500}]}));
        let statuses: Vec<_> =
            std::iter::from_fn(|| faults.take()).map(|fault| fault.status.unwrap().as_u16()).collect();
        assert_eq!(statuses, [503, 503, 500]);
        for _ in 0..MOST_RULES {
            faults.push(rule(1, 500)).unwrap();
        }
        assert!(faults.push(rule(1, 500)).is_err());
        faults.clear();
        assert_eq!(faults.take(), None);
        let large = Fault { next: 1, body: Some("x".repeat(MOST_BODIES / 2 + 1)), ..Fault::default() };
        faults.push(large.clone()).unwrap();
        assert!(faults.push(large).is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Fault::from_json(&text);
        }
    }
}
