//! The requests that the simulator has received: a bounded log for tests and users.
//!
//! It contains no credentials. Of an `Authorization` header it has only the scheme, and for Basic the user name; of an
//! `Idempotency-Key` a hash, so that repetitions can be recognised; of all other headers only the names.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, header};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value as Json, json};

/// Older entries are removed.
const MOST_ENTRIES: usize = 10_000;
const LONGEST_PATH: usize = 8 << 10;
const LONGEST_USER: usize = 128;

/// One request, as received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Recorded {
    /// Counts up from 1; never used twice.
    pub id: u64,
    /// The method.
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// BLAKE3 of the body in hexadecimal; nothing without a body.
    pub body_hash: Option<String>,
    /// Length of the body.
    pub body_bytes: usize,
    /// BLAKE3 of its `Idempotency-Key` in hexadecimal.
    pub idempotency_key_hash: Option<String>,
    /// When it had arrived, RFC 3339 in UTC.
    pub time: String,
    /// The status of the response; `None` before it, or where the connection was closed instead.
    pub status: Option<u16>,
    /// Whether and how it authenticated.
    pub authorization: Option<Authorization>,
    /// Names of its headers in lower case.
    pub headers: Vec<String>,
}

/// The parts of an `Authorization` header that are not secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Authorization {
    /// `Basic`, `Bearer`, or `other`.
    pub scheme: &'static str,
    /// The user name of Basic.
    pub user: Option<String>,
}

/// User name and password of Basic authentication.
pub fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

impl Authorization {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(header::AUTHORIZATION)?;
        // If the first word is not a known scheme, it could be the secret itself.
        let scheme = match value.to_str().ok().and_then(|text| text.split_once(' ')) {
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("basic") => "Basic",
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("bearer") => "Bearer",
            _ => "other",
        };
        let user = basic(headers).map(|(user, _)| user.chars().take(LONGEST_USER).collect());
        Some(Self { scheme, user })
    }
}

fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// The log.
#[derive(Default)]
pub struct Journal {
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    /// Ids are consecutive.
    kept: VecDeque<Recorded>,
    /// The number of requests since the log was last cleared.
    total: u64,
    last_id: u64,
}

impl Journal {
    /// Records a request without its response, and returns the entry's id.
    pub fn record(&self, head: &http::request::Parts, body: &[u8]) -> u64 {
        let path = head.uri.path_and_query().map_or("", |path| path.as_str());
        let mut end = path.len().min(LONGEST_PATH);
        while !path.is_char_boundary(end) {
            end -= 1;
        }
        let mut recorded = Recorded {
            id: 0,
            method: head.method.as_str().chars().take(32).collect(),
            path: path[..end].to_owned(),
            body_hash: (!body.is_empty()).then(|| hash(body)),
            body_bytes: body.len(),
            idempotency_key_hash: head.headers.get("idempotency-key").map(|key| hash(key.as_bytes())),
            time: Timestamp::now().to_string(),
            status: None,
            authorization: Authorization::of(&head.headers),
            headers: head.headers.keys().take(100).map(|name| name.as_str().chars().take(64).collect()).collect(),
        };
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.last_id += 1;
        entries.total += 1;
        recorded.id = entries.last_id;
        if entries.kept.len() >= MOST_ENTRIES {
            entries.kept.pop_front();
        }
        entries.kept.push_back(recorded);
        entries.last_id
    }

    /// Adds the status of the response, unless the entry has been removed.
    pub fn answered(&self, id: u64, status: u16) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let first = entries.kept.front().map_or(0, |recorded| recorded.id);
        let position = id.checked_sub(first).and_then(|at| usize::try_from(at).ok());
        if let Some(recorded) = position.and_then(|at| entries.kept.get_mut(at)) {
            recorded.status = Some(status);
        }
    }

    /// All entries, oldest first.
    pub fn entries(&self) -> Vec<Recorded> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.kept.iter().cloned().collect()
    }

    /// Removes all entries and resets the total.
    pub fn clear(&self) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.kept.clear();
        entries.total = 0;
    }

    /// The log as JSON.
    pub fn describe(&self) -> Json {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let (kept, total) = (entries.kept.clone(), entries.total);
        drop(entries);
        json!({"requests": kept, "total": total})
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn head(uri: &str, authorization: Option<&str>) -> http::request::Parts {
        let mut request = Request::get(uri).header("X-Custom", "value-of-header");
        if let Some(value) = authorization {
            request = request.header("Authorization", value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn requests_are_kept_without_credentials() {
        let journal = Journal::default();
        let basic = format!("Basic {}", STANDARD.encode("AC1:hidden-word"));
        journal.record(&head("/v3/x?pageSize=2", Some(&basic)), b"{}");
        journal.record(&head("/v3/x", Some("Bearer hidden-word")), b"");
        journal.record(&head("/v3/x", Some("hidden-word")), b"");
        let id = journal.record(&head("/v3/x", Some("hidden-word hidden-word")), b"");
        journal.answered(id, 200);
        journal.answered(id + 1, 200);
        journal.answered(0, 200);
        let text = journal.describe().to_string();
        assert!(!text.contains("hidden-word") && !text.contains("value-of-header"));
        let entries = journal.entries();
        assert_eq!(entries[0].path, "/v3/x?pageSize=2");
        assert_eq!(entries[0].body_hash, Some(blake3::hash(b"{}").to_string()));
        assert_eq!(entries[0].headers, ["x-custom", "authorization"]);
        let schemes = entries.iter().map(|e| e.authorization.clone().unwrap().scheme);
        assert_eq!(schemes.collect::<Vec<_>>(), ["Basic", "Bearer", "other", "other"]);
        assert_eq!(entries[0].authorization.clone().unwrap().user.as_deref(), Some("AC1"));
        assert_eq!(entries.iter().map(|e| e.status).collect::<Vec<_>>(), [None, None, None, Some(200)]);
    }

    #[test]
    fn an_idempotency_key_is_kept_as_its_hash() {
        let journal = Journal::default();
        let request = Request::post("/v3/x").header("Idempotency-Key", "the-key").body(()).unwrap();
        journal.record(&request.into_parts().0, b"");
        journal.record(&head("/v3/x", None), b"");
        let hashes: Vec<_> = journal.entries().into_iter().map(|entry| entry.idempotency_key_hash).collect();
        assert_eq!(hashes, [Some(blake3::hash(b"the-key").to_string()), None]);
        assert!(!journal.describe().to_string().contains("the-key"));
    }

    #[test]
    fn the_log_is_bounded_and_can_be_cleared() {
        let journal = Journal::default();
        for _ in 0..MOST_ENTRIES + 5 {
            journal.record(&head("/v3/x", None), b"");
        }
        let text = journal.describe();
        assert_eq!(text["total"], MOST_ENTRIES + 5);
        let entries = journal.entries();
        assert_eq!((entries.len(), entries[0].id), (MOST_ENTRIES, 6));
        journal.answered(6, 200);
        assert_eq!(journal.entries()[0].status, Some(200));
        journal.answered(5, 200);
        journal.clear();
        assert_eq!(journal.describe(), json!({"requests": [], "total": 0}));
        let long = format!("/v3/{}", "x".repeat(20_000));
        journal.record(&head(&long, None), b"");
        assert_eq!(journal.entries()[0].path.len(), LONGEST_PATH);
    }
}
