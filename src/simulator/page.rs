//! Pages and their tokens.
//!
//! A token contains the query itself, the page size and the position, authenticated with a key that is derived from the
//! simulator's settings and from the user that the token was given to. So any page can be answered without stored
//! state. A token is refused if it was altered, made up, given to another user, or made by a simulator with other data.
//! Only queries that are too long for a URL are stored instead, the latest ones, within a fixed amount of memory.
//! Tokens are ordinary base64 with padding, so they contain `+`, `/` and `=`, which tests the encoding of every client
//! that passes them on.
//!
//! A token is valid only in the scope for which it was made: the user, and what is paged.
//!
//! This module does not evaluate queries.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::error::ApiError;

/// Rows on a page, if no size is given.
pub const DEFAULT_SIZE: usize = 50;
/// Larger sizes are reduced to this.
pub const LARGEST_SIZE: usize = 1000;

/// Longest query that is put into the token.
const LONGEST_INLINE: usize = 2500;
const SEAL: usize = 16;

/// A page of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The query's [essence](super::query::essence), or another text that determines the rows.
    pub query: Arc<str>,
    /// Rows before this page.
    pub offset: usize,
    /// The most rows on it.
    pub size: usize,
}

/// Makes tokens and reads them back.
pub struct Tokens {
    key: [u8; 32],
    remembered: Mutex<Remembered>,
}

#[derive(Serialize, Deserialize)]
struct Payload {
    #[serde(rename = "o")]
    offset: usize,
    #[serde(rename = "s")]
    size: usize,
    #[serde(rename = "q", skip_serializing_if = "Option::is_none")]
    query: Option<Arc<str>>,
    #[serde(rename = "h", skip_serializing_if = "Option::is_none")]
    hash: Option<[u8; 16]>,
}

/// Long queries by their hash, the oldest first.
#[derive(Default)]
struct Remembered {
    queries: VecDeque<([u8; 16], Arc<str>)>,
    bytes: usize,
}

impl Tokens {
    /// `settings` is any text that differs between simulators with different data.
    pub fn new(settings: &str) -> Self {
        Self {
            key: blake3::derive_key("insights-gateway simulator page tokens", settings.as_bytes()),
            remembered: Mutex::default(),
        }
    }

    /// The token for `page`, valid only in this scope.
    pub fn seal(&self, page: &Page, scope: &[&str]) -> String {
        let (query, hash) = if page.query.len() <= LONGEST_INLINE {
            (Some(Arc::clone(&page.query)), None)
        } else {
            (None, Some(self.remember(&page.query)))
        };
        let payload = Payload { offset: page.offset, size: page.size, query, hash };
        // Numbers and texts always serialise; an empty payload would be refused later.
        let payload = serde_json::to_vec(&payload).unwrap_or_default();
        let mut token = self.mark(&payload, scope).to_vec();
        token.extend_from_slice(&payload);
        STANDARD.encode(token)
    }

    /// The page that `token` names in this scope.
    pub fn open(&self, token: &str, scope: &[&str]) -> Result<Page, ApiError> {
        let refused = || ApiError::bad_request("pageToken is not valid, or has expired");
        let bytes = STANDARD.decode(token).map_err(|_| refused())?;
        let (mark, payload) = bytes.split_at_checked(SEAL).ok_or_else(refused)?;
        if mark != self.mark(payload, scope) {
            return Err(refused());
        }
        let payload: Payload = serde_json::from_slice(payload).map_err(|_| refused())?;
        let query = match (payload.query, payload.hash) {
            (Some(query), _) => query,
            (None, Some(hash)) => self.recall(&hash).ok_or_else(refused)?,
            (None, None) => return Err(refused()),
        };
        Ok(Page { query, offset: payload.offset, size: payload.size })
    }

    fn mark(&self, payload: &[u8], scope: &[&str]) -> [u8; SEAL] {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&(scope.len() as u64).to_le_bytes());
        for part in scope {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.update(payload);
        first_half(&hasher.finalize())
    }

    fn remember(&self, query: &Arc<str>) -> [u8; 16] {
        const MOST_BYTES: usize = 16 << 20;
        let hash = first_half(&blake3::hash(query.as_bytes()));
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if !remembered.queries.iter().any(|(known, _)| *known == hash) {
            remembered.bytes += query.len();
            remembered.queries.push_back((hash, Arc::clone(query)));
            while remembered.bytes > MOST_BYTES
                && let Some((_, oldest)) = remembered.queries.pop_front()
            {
                remembered.bytes -= oldest.len();
            }
        }
        hash
    }

    fn recall(&self, hash: &[u8; 16]) -> Option<Arc<str>> {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let found = remembered.queries.iter().find(|(known, _)| known == hash);
        found.map(|(_, query)| Arc::clone(query))
    }
}

fn first_half(hash: &blake3::Hash) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hash.as_bytes()[..16]);
    half
}

impl Page {
    /// The page after this one, if any of `total` rows are left.
    pub fn next(&self, total: usize) -> Option<Self> {
        let offset = self.offset.checked_add(self.size)?;
        (offset < total).then(|| Self { offset, ..self.clone() })
    }

    /// The page before this one, unless it is the first.
    pub fn previous(&self) -> Option<Self> {
        (self.offset > 0).then(|| Self { offset: self.offset.saturating_sub(self.size), ..self.clone() })
    }
}

/// The page size that a request gives, in its URL or else in its body.
pub fn size(in_url: Option<&str>, body: Option<&Map<String, Json>>) -> Result<usize, ApiError> {
    let refused = || ApiError::bad_request("pageSize must be an integer of at least 1");
    let number = match (in_url, body.and_then(|body| body.get("pageSize"))) {
        (Some(text), _) => {
            if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
                return Err(refused());
            }
            // Digits that do not fit are a very large number, which is reduced like any other.
            text.parse().unwrap_or(u64::MAX)
        }
        (None, None | Some(Json::Null)) => return Ok(DEFAULT_SIZE),
        (None, Some(value)) => value.as_u64().ok_or_else(refused)?,
    };
    match usize::try_from(number).unwrap_or(usize::MAX) {
        0 => Err(refused()),
        size => Ok(size.min(LARGEST_SIZE)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn page(query: &str) -> Page {
        Page { query: Arc::from(query), offset: 100, size: 50 }
    }

    #[test]
    fn tokens_read_back_for_the_same_user_and_data_only() {
        let tokens = Tokens::new("a");
        let token = tokens.seal(&page("{}"), &["AC1"]);
        assert_eq!(tokens.open(&token, &["AC1"]), Ok(page("{}")));
        assert_eq!(token, tokens.seal(&page("{}"), &["AC1"]));
        assert!(tokens.open(&token, &["AC2"]).is_err());
        assert!(tokens.open(&token, &["AC1", "jobs"]).is_err(), "a page of something else");
        assert!(Tokens::new("b").open(&token, &["AC1"]).is_err());
        assert_eq!(Tokens::new("a").open(&token, &["AC1"]), Ok(page("{}")));
    }

    #[test]
    fn usual_tokens_fit_a_url_and_exercise_encoding() {
        let tokens = Tokens::new("a");
        let all: String = (0..50).map(|n| tokens.seal(&page(&"q".repeat(n)), &["AC1"])).collect();
        assert!(all.contains('+') && all.contains('/') && all.contains('='));
        assert!(tokens.seal(&page(&"q".repeat(LONGEST_INLINE)), &["AC1"]).len() < 4096);
        assert!(tokens.seal(&page(&"q".repeat(1 << 20)), &["AC1"]).len() < 4096);
    }

    #[test]
    fn long_queries_are_remembered_within_bounds() {
        let tokens = Tokens::new("a");
        let long = |n: usize| page(&format!("{n}{}", "q".repeat(1 << 20)));
        let first = tokens.seal(&long(0), &["AC1"]);
        assert_eq!(tokens.open(&first, &["AC1"]), Ok(long(0)));
        for n in 1..20 {
            tokens.seal(&long(n), &["AC1"]);
        }
        assert!(tokens.open(&first, &["AC1"]).is_err(), "the oldest has been removed");
        let remembered = tokens.remembered.lock().unwrap();
        assert!(remembered.bytes <= 16 << 20);
    }

    #[test]
    fn sizes_are_read_from_either_place() {
        let body = json!({"pageSize": 7});
        assert_eq!(size(None, None), Ok(50));
        assert_eq!(size(None, body.as_object()), Ok(7));
        assert_eq!(size(Some("3"), body.as_object()), Ok(3));
        assert_eq!(size(Some("99999999999999999999999"), None), Ok(1000));
        for bad in ["", "0", "-1", "1.5", "x", " 1"] {
            assert!(size(Some(bad), None).is_err(), "{bad:?}");
        }
        for bad in [json!(0), json!(-1), json!(1.5), json!("20"), json!([])] {
            assert!(size(None, json!({"pageSize": bad}).as_object()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_and_altered_tokens_are_refused(text in ".*", position in 0usize..100, bit in 0u8..8) {
            let tokens = Tokens::new("a");
            prop_assert!(tokens.open(&text, &["AC1"]).is_err());
            let token = tokens.seal(&page("{\"query\":{}}"), &["AC1"]);
            let mut bytes = STANDARD.decode(&token).unwrap();
            let position = position % bytes.len();
            bytes[position] ^= 1 << bit;
            prop_assert!(tokens.open(&STANDARD.encode(bytes), &["AC1"]).is_err());
        }

        #[test]
        fn neighbours_cover_every_row_once(total in 0usize..500, size in 1usize..60) {
            let mut current = Page { query: Arc::from(""), offset: 0, size };
            let mut seen = 0;
            loop {
                prop_assert_eq!(current.offset, seen);
                seen += size.min(total - current.offset);
                let Some(next) = current.next(total) else { break };
                prop_assert_eq!(next.previous(), Some(current));
                current = next;
            }
            prop_assert_eq!(seen, total);
        }
    }
}
