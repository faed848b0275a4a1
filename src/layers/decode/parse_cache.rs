//! Remembers parsed request bodies, so that a hit does not parse and write JSON again.
//!
//! A dashboard sends the same bytes again and again. Their canonical form and key depend only on the bytes, the query
//! string, the account and the policy, so an entry never becomes wrong. All of these are compared, not only their hash.
//!
//! The number of entries is fixed, and each holds one small body. The hash of a body chooses a set of a few entries.
//! Within it, a new body replaces the least recently used one. A body is stored when it comes for the second time, so
//! that queries that are asked once replace nothing.

use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use foldhash::fast::RandomState;

use super::bodies::UNCOUNTED;
use crate::request::query::CanonicalQuery;

/// A parsed request. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct ParsedQuery {
    pub(super) canonical: Arc<CanonicalQuery>,
    /// The canonical body as the client sent it, where a policy has changed it.
    pub(super) asked: Option<Bytes>,
}

/// The raw parts of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawQuery<'r> {
    /// Whose rules apply: the account's SID; for a team with a policy also the policy and the metadata that it is read
    /// with.
    pub(super) reader: &'r [u8],
    /// The query string as it came.
    pub(super) query: &'r str,
    /// The body as it came.
    pub(super) body: &'r [u8],
}

#[derive(Debug)]
struct RememberedQuery {
    /// Reader, query string and body in one allocation, so that a lookup waits for memory only once.
    raw: Box<[u8]>,
    reader: usize,
    query: usize,
    parsed: ParsedQuery,
}

impl RememberedQuery {
    fn new(raw: RawQuery<'_>, parsed: ParsedQuery) -> Self {
        let all = [raw.reader, raw.query.as_bytes(), raw.body].concat();
        Self { raw: all.into(), reader: raw.reader.len(), query: raw.query.len(), parsed }
    }

    fn is(&self, raw: RawQuery<'_>) -> bool {
        let (reader, rest) = self.raw.split_at(self.reader);
        let (query, body) = rest.split_at(self.query);
        body == raw.body && query == raw.query.as_bytes() && reader == raw.reader
    }
}

#[derive(Debug, Default)]
struct Set {
    /// Least recently used last. Each entry has some bits of its hash, which usually show without a comparison that it
    /// is a different one.
    places: [Option<(u32, Box<RememberedQuery>)>; Set::PLACES],
    /// These bits of the last request that came and was not remembered.
    met: Option<u32>,
}

impl Set {
    const PLACES: usize = 4;

    fn find(&mut self, bits: u32, raw: RawQuery<'_>) -> Option<&RememberedQuery> {
        let is = |place: &Option<(u32, Box<RememberedQuery>)>| {
            place.as_ref().is_some_and(|(known, remembered)| *known == bits && remembered.is(raw))
        };
        let at = self.places.iter().position(is)?;
        self.places[..=at].rotate_right(1);
        self.places[0].as_ref().map(|(_, remembered)| &**remembered)
    }

    /// Whether a request with these bits has come before, and no other in between.
    fn meets_again(&mut self, bits: u32) -> bool {
        self.met.replace(bits) == Some(bits)
    }

    fn add(&mut self, bits: u32, remembered: RememberedQuery) {
        self.places.rotate_right(1);
        self.places[0] = Some((bits, Box::new(remembered)));
    }
}

/// The sets. They take at most about 38 MiB, if all entries hold the largest body; a dashboard's bodies take a third of
/// that.
#[derive(Debug)]
pub(super) struct ParseCache {
    sets: Box<[Mutex<Set>]>,
    // Seeded at random, so that an attacker cannot choose bodies that evict each other.
    hasher: RandomState,
}

impl ParseCache {
    const SETS: usize = 4096;
    /// Larger bodies are parsed every time: they are rare, and parsing is a small part of their cost.
    const LARGEST: usize = 1024;

    pub(super) fn new() -> Self {
        let sets = std::iter::repeat_with(Mutex::default).take(Self::SETS).collect();
        Self { sets, hasher: RandomState::default() }
    }

    /// The parsed form of `raw`, from memory or from `parse`.
    pub(super) fn of<E>(
        &self,
        raw: RawQuery<'_>,
        parse: impl FnOnce() -> Result<ParsedQuery, E>,
    ) -> Result<ParsedQuery, E> {
        if raw.body.len() + raw.query.len() > Self::LARGEST {
            return parse();
        }
        let hash = self.hash(raw);
        // The bits that choose the set are equal within it, so other bits are compared.
        let (set, bits) = (&self.sets[hash as usize % Self::SETS], (hash >> 32) as u32);
        let lock = || set.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(remembered) = lock().find(bits, raw) {
            return Ok(remembered.parsed.clone());
        }
        let parsed = parse()?;
        // Bodies that are counted while they are held must not be kept here.
        if parsed.canonical.body.len() > UNCOUNTED {
            return Ok(parsed);
        }
        let mut set = lock();
        if set.meets_again(bits) {
            set.add(bits, RememberedQuery::new(raw, parsed.clone()));
        }
        Ok(parsed)
    }

    fn hash(&self, raw: RawQuery<'_>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(raw.body);
        hasher.write(raw.query.as_bytes());
        hasher.write(raw.reader);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::accounts::Account;
    use crate::request::key::Key;
    use crate::twilio::endpoint::Operation;

    fn account(sid: &str) -> Account {
        Account { name: "main".into(), sid: sid.to_owned(), origin: String::new(), ordinal: 0 }
    }

    fn parsed(raw: RawQuery<'_>) -> ParsedQuery {
        let canonical = CanonicalQuery {
            path: Operation::Query.endpoint().path.into(),
            parameters: raw.query.into(),
            body: Bytes::copy_from_slice(raw.body),
            key: Key::new(&account(str::from_utf8(raw.reader).unwrap()), Operation::Query, raw.query, raw.body),
            expected_as: None,
        };
        ParsedQuery { canonical: Arc::new(canonical), asked: None }
    }

    fn ask(parse_cache: &ParseCache, raw: RawQuery<'_>) -> (ParsedQuery, bool) {
        let mut asked = false;
        let meant = parse_cache.of(raw, || {
            asked = true;
            Ok::<_, Infallible>(parsed(raw))
        });
        let Ok(meant) = meant;
        (meant, asked)
    }

    #[test]
    fn the_same_request_is_parsed_twice_and_then_remembered() {
        let parse_cache = ParseCache::new();
        let raw = RawQuery { reader: b"AC1", query: "pageSize=1", body: b"{}" };
        assert_eq!([(); 4].map(|()| ask(&parse_cache, raw).1), [true, true, false, false]);
        for other in
            [RawQuery { reader: b"AC2", ..raw }, RawQuery { query: "", ..raw }, RawQuery { body: b"{ }", ..raw }]
        {
            let (meant, asked) = ask(&parse_cache, other);
            assert!(asked);
            assert_eq!(meant.canonical.key, parsed(other).canonical.key);
        }
    }

    #[test]
    fn more_requests_than_entries_are_not_confused() {
        let parse_cache = ParseCache::new();
        for _ in 0..3 {
            for n in 0..3 * ParseCache::SETS * Set::PLACES {
                let body = n.to_string();
                let raw = RawQuery { reader: b"AC1", query: "", body: body.as_bytes() };
                assert_eq!(ask(&parse_cache, raw).0.canonical.body, body);
            }
        }
    }

    #[test]
    fn a_request_that_comes_once_replaces_nothing() {
        let parse_cache = ParseCache::new();
        let ask = |body: &[u8]| ask(&parse_cache, RawQuery { reader: b"AC1", query: "", body }).1;
        let often: Vec<_> = (0..100u32).map(u32::to_le_bytes).collect();
        for body in &often {
            assert!(ask(body) && ask(body));
        }
        let remembered = || often.iter().filter(|body| !ask(*body)).count();
        let before = remembered();
        for n in 100..20 * ParseCache::SETS as u32 {
            ask(&n.to_le_bytes());
        }
        assert_eq!((before, remembered()), (100, 100));
    }

    #[test]
    fn frequent_requests_stay() {
        let mut set = Set::default();
        let raw = |body: &'static [u8]| RawQuery { reader: b"AC1", query: "", body };
        let often = raw(b"often");
        set.add(7, RememberedQuery::new(often, parsed(often)));
        for body in [&b"1"[..], b"2", b"3", b"4", b"5"] {
            set.add(7, RememberedQuery::new(raw(body), parsed(raw(body))));
            assert!(set.find(7, often).is_some());
        }
        assert!(set.find(7, raw(b"5")).is_some() && set.find(8, raw(b"5")).is_none());
        assert!(set.find(7, raw(b"1")).is_none());
    }

    #[test]
    fn large_bodies_and_failures_are_not_remembered() {
        let parse_cache = ParseCache::new();
        let large = vec![b' '; ParseCache::LARGEST + 1];
        let raw = RawQuery { reader: b"AC1", query: "", body: &large };
        assert!(ask(&parse_cache, raw).1 && ask(&parse_cache, raw).1);
        let raw = RawQuery { reader: b"AC1", query: "", body: b"[" };
        assert!(parse_cache.of(raw, || Err::<ParsedQuery, _>(())).is_err());
        assert!(ask(&parse_cache, raw).1);
    }
}
