//! Scripted responses: what the next API requests get instead of, or in addition to, an ordinary response.
//!
//! Rules form a queue. Each applies to a number of requests and is then removed. A request takes the first rule without
//! a path and method, or with those of the request. This file parses, stores and selects rules. `http`
//! applies them; rules for query jobs are in [`job_faults`](super::job_faults).

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use crate::core::units::{Span, parse_duration};

const MOST_RULES: usize = 1000;
/// Bytes of the bodies of all pending rules together.
const MOST_BODIES: usize = 64 << 20;
const MOST_REQUESTS: u32 = 1_000_000;
const MOST_HEADERS: usize = 32;
const LONGEST_PATH: usize = 1024;
const LONGEST_DELAY: Duration = Duration::from_secs(600);

/// One rule. Everything but `next` is optional, and all that is given applies together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fault {
    /// The number of requests that it applies to; must not be zero.
    pub next: u32,
    /// Applies only to this path, without its query; `*` matches any text without a `/`.
    pub path: Option<String>,
    /// Applies only to this method.
    pub method: Option<Method>,
    /// The response's status. From 400 it has an error body, from 300 no body, and below that the ordinary response's.
    pub status: Option<StatusCode>,
    /// Additional delay before the request is processed.
    pub delay: Option<Duration>,
    /// Additional delay before the response is sent, after the request has been processed.
    pub delay_answer: Option<Duration>,
    /// Closes the connection after this many bytes of the body, although its full length was announced.
    pub cut_body_at: Option<usize>,
    /// Closes the connection without processing the request.
    pub reset: bool,
    /// Processes the request, and closes the connection instead of answering.
    pub drop_answer: bool,
    /// Sends this text instead of JSON.
    pub body: Option<String>,
    /// The content type of the body.
    pub content_type: Option<HeaderValue>,
    /// Headers added to the response, replacing those of the same name.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Headers removed from the response.
    pub without_headers: Vec<HeaderName>,
    /// Merged into the response's JSON (RFC 7396): `null` removes a member.
    pub merge: Option<Json>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    next: Option<u32>,
    path: Option<String>,
    method: Option<String>,
    status: Option<u16>,
    delay: Option<String>,
    delay_answer: Option<String>,
    cut_body_at: Option<usize>,
    reset: Option<bool>,
    drop_answer: Option<bool>,
    body: Option<String>,
    content_type: Option<String>,
    headers: Option<BTreeMap<String, Option<String>>>,
    merge: Option<serde_json::Map<String, Json>>,
}

impl Fault {
    /// Parses a posted rule, or says what is wrong with it.
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
        let (delay, delay_answer) =
            (duration("delay", written.delay)?, duration("delay_answer", written.delay_answer)?);
        let content_type = match written.content_type {
            Some(text) => Some(HeaderValue::try_from(text).map_err(|_| "content_type is not a header value")?),
            None => None,
        };
        if written.path.as_ref().is_some_and(|path| !path.starts_with('/') || path.len() > LONGEST_PATH) {
            return Err(format!("path must begin with / and hold at most {LONGEST_PATH} bytes"));
        }
        let method = match written.method.as_deref().map(Method::try_from).transpose() {
            Ok(method) => method,
            Err(_) => return Err("method is not an HTTP method".to_owned()),
        };
        let headers = headers(written.headers.unwrap_or_default())?;
        let chosen = Self { next, path: written.path, method, ..Self::default() };
        let fault = Self {
            status,
            delay,
            delay_answer,
            cut_body_at: written.cut_body_at,
            reset: written.reset.unwrap_or(false),
            drop_answer: written.drop_answer.unwrap_or(false),
            body: written.body,
            content_type,
            headers: headers.set,
            without_headers: headers.removed,
            merge: written.merge.map(Json::Object),
            ..chosen.clone()
        };
        if fault == chosen {
            return Err("the rule changes nothing".to_owned());
        }
        Ok(fault)
    }

    fn describe(&self) -> Json {
        let mut json = json!({"next": self.next});
        let mut set = |key: &str, value: Json| json[key] = value;
        if let Some(path) = &self.path {
            set("path", path.as_str().into());
        }
        if let Some(method) = &self.method {
            set("method", method.as_str().into());
        }
        if let Some(status) = self.status {
            set("status", status.as_u16().into());
        }
        for (key, delay) in [("delay", self.delay), ("delay_answer", self.delay_answer)] {
            if let Some(delay) = delay {
                set(key, Span(delay).to_string().into());
            }
        }
        if let Some(bytes) = self.cut_body_at {
            set("cut_body_at", bytes.into());
        }
        if self.reset {
            set("reset", true.into());
        }
        if self.drop_answer {
            set("drop_answer", true.into());
        }
        if let Some(body) = &self.body {
            set("body", body.as_str().into());
        }
        if let Some(content_type) = &self.content_type {
            set("content_type", shown(content_type));
        }
        if !self.headers.is_empty() || !self.without_headers.is_empty() {
            let headers = self.headers.iter().map(|(name, value)| (name.to_string(), shown(value)));
            let without = self.without_headers.iter().map(|name| (name.to_string(), Json::Null));
            set("headers", headers.chain(without).collect());
        }
        if let Some(merge) = &self.merge {
            set("merge", merge.clone());
        }
        json
    }

    fn concerns(&self, method: &Method, path: &str) -> bool {
        self.method.as_ref().is_none_or(|wanted| wanted == method)
            && self.path.as_ref().is_none_or(|pattern| fits(pattern, path))
    }

    /// The bytes that it keeps in memory.
    fn weight(&self) -> usize {
        self.body.as_ref().map_or(0, String::len) + self.merge.as_ref().map_or(0, |merge| merge.to_string().len())
    }
}

/// Whether this path matches the pattern, segment by segment.
fn fits(pattern: &str, path: &str) -> bool {
    let segment = |pattern: &str, text: &str| match pattern.split_once('*') {
        Some((before, after)) => {
            text.len() >= before.len() + after.len() && text.starts_with(before) && text.ends_with(after)
        }
        None => pattern == text,
    };
    pattern.split('/').count() == path.split('/').count()
        && pattern.split('/').zip(path.split('/')).all(|(pattern, text)| segment(pattern, text))
}

/// Merges `patch` into `target` (RFC 7396).
pub fn merge(target: &mut Json, patch: &Json) {
    let Json::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().map(|target| target.remove(key));
        } else {
            merge(&mut target[key], value);
        }
    }
}

fn duration(key: &str, text: Option<String>) -> Result<Option<Duration>, String> {
    match text.as_deref().map(parse_duration).transpose() {
        Ok(Some(delay)) if delay > LONGEST_DELAY => Err(format!("{key} must be at most {}", Span(LONGEST_DELAY))),
        Ok(delay) => Ok(delay),
        Err(expected) => Err(format!("{key}: {expected}")),
    }
}

fn shown(value: &HeaderValue) -> Json {
    String::from_utf8_lossy(value.as_bytes()).into()
}

/// Framing headers stay the server's own: a response that cannot be sent would test nothing.
fn headers(written: BTreeMap<String, Option<String>>) -> Result<Headers, String> {
    if written.len() > MOST_HEADERS {
        return Err(format!("at most {MOST_HEADERS} headers"));
    }
    let mut headers = Headers::default();
    for (name, value) in written {
        let parsed = HeaderName::try_from(&name).map_err(|_| format!("{name:?} is not a header name"))?;
        if matches!(parsed.as_str(), "content-length" | "transfer-encoding" | "connection" | "upgrade") {
            return Err(format!("{name} cannot be scripted"));
        }
        match value {
            Some(value) => {
                let value = HeaderValue::try_from(value).map_err(|_| format!("{name}: not a header value"))?;
                headers.set.push((parsed, value));
            }
            None => headers.removed.push(parsed),
        }
    }
    Ok(headers)
}

#[derive(Default)]
struct Headers {
    set: Vec<(HeaderName, HeaderValue)>,
    removed: Vec<HeaderName>,
}

/// The queue of rules.
#[derive(Default)]
pub struct Faults {
    rules: Mutex<VecDeque<Fault>>,
}

impl Faults {
    /// Adds a rule at the end.
    pub fn push(&self, fault: Fault) -> Result<(), String> {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        if rules.len() >= MOST_RULES {
            return Err(format!("at most {MOST_RULES} rules can be pending"));
        }
        if fault.weight() + rules.iter().map(Fault::weight).sum::<usize>() > MOST_BODIES {
            return Err(format!("pending bodies may hold at most {MOST_BODIES} bytes"));
        }
        if fault.next > 0 {
            rules.push_back(fault);
        }
        Ok(())
    }

    /// The rule for a request that has just arrived.
    pub fn take(&self, method: &Method, path: &str) -> Option<Fault> {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let position = rules.iter().position(|rule| rule.concerns(method, path))?;
        let rule = rules.get_mut(position)?;
        rule.next = rule.next.saturating_sub(1);
        if rule.next == 0 {
            return rules.remove(position);
        }
        Some(rule.clone())
    }

    /// Removes all rules.
    pub fn clear(&self) {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The pending rules as JSON.
    pub fn describe(&self) -> Vec<Json> {
        let rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        rules.iter().map(Fault::describe).collect()
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
        let merged = r#"{"next":1,"path":"/v3/*/x","method":"POST","drop_answer":true,"delay_answer":"2s","headers":{"a":null,"b":"c"},
            "merge":{"operationId":null,"status":"RUNNING"}}"#;
        let rule = read(merged);
        assert!(rule.drop_answer && rule.without_headers == ["a"]);
        assert_eq!(rule.describe(), serde_json::from_str::<Json>(merged).unwrap());
    }

    #[test]
    fn rules_wait_for_matching_requests() {
        let faults = Faults::default();
        let push = |text: &str| faults.push(Fault::from_json(text.as_bytes()).unwrap()).unwrap();
        push(r#"{"status":500,"path":"/v3/Jobs/*/Results"}"#);
        push(r#"{"status":501,"path":"/v3/Jobs","method":"POST"}"#);
        push(r#"{"status":502,"path":"/v3/Jobs/a*c"}"#);
        push(r#"{"status":503}"#);
        let status = |method: Method, path: &str| Some(faults.take(&method, path)?.status?.as_u16());
        assert_eq!(status(Method::POST, "/v3/Jobs"), Some(501));
        assert_eq!(status(Method::GET, "/v3/Jobs/abc"), Some(502));
        assert_eq!(status(Method::GET, "/v3/Jobs/abc"), Some(503));
        assert_eq!(status(Method::GET, "/v3/Jobs/abc"), None);
        assert_eq!(status(Method::GET, "/v3/Jobs/abc/Results/more"), None);
        assert_eq!(status(Method::GET, "/v3/Jobs/abc/Results"), Some(500));
    }

    #[test]
    fn a_pattern_matches_whole_segments() {
        for (pattern, path, expected) in [
            ("/a", "/a", true),
            ("/a", "/a/", false),
            ("/*", "/a", true),
            ("/*", "/a/b", false),
            ("/a*a", "/a", false),
            ("/a*a", "/aa", true),
            ("/*/*", "/a/b", true),
        ] {
            assert_eq!(fits(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn merging_follows_its_standard() {
        let mut target = json!({"a": "b", "c": {"d": "e", "f": "g"}, "h": [1]});
        merge(&mut target, &json!({"a": "z", "c": {"f": null}, "h": [2], "i": {"j": null}}));
        assert_eq!(target, json!({"a": "z", "c": {"d": "e"}, "h": [2], "i": {}}));
    }

    #[test]
    fn refuses_the_rest_with_a_reason() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{"next":3}"#,
            r#"{"path":"/v3/x"}"#,
            r#"{"status":500,"path":"v3"}"#,
            r#"{"status":500,"method":"G T"}"#,
            r#"{"merge":[]}"#,
            r#"{"next":0,"status":503}"#,
            r#"{"next":-1,"status":503}"#,
            r#"{"status":99}"#,
            r#"{"status":101}"#,
            r#"{"status":600}"#,
            r#"{"status":"503"}"#,
            r#"{"delay":"2"}"#,
            r#"{"delay":"7d"}"#,
            r#"{"delay_answer":"7d"}"#,
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
        assert_eq!(faults.describe(), [json!({"next": 2, "status": 503}), json!({"next": 1, "status": 500})]);
        let statuses: Vec<_> = std::iter::from_fn(|| faults.take(&Method::GET, "/v3/x"))
            .map(|fault| fault.status.unwrap().as_u16())
            .collect();
        assert_eq!(statuses, [503, 503, 500]);
        for _ in 0..MOST_RULES {
            faults.push(rule(1, 500)).unwrap();
        }
        assert!(faults.push(rule(1, 500)).is_err());
        faults.clear();
        assert_eq!(faults.take(&Method::GET, "/v3/x"), None);
        let large = Fault { next: 1, body: Some("x".repeat(MOST_BODIES / 2 + 1)), ..Fault::default() };
        faults.push(large.clone()).unwrap();
        assert!(faults.push(large).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_text_does_not_panic(text in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Fault::from_json(&text);
        }
    }
}
