//! What the cache answers, before it takes the form in which one client gets it.

use std::sync::Arc;
use std::time::Duration;

use super::entry::Entry;
use crate::core::outcome::Outcome;
use crate::request::response::Representation;
use crate::semantics::cache_status::{Forward, KeyParam};

/// A response and how it came about.
#[derive(Debug)]
pub struct CacheResponse {
    pub(crate) content: Content,
    pub(crate) source: Source,
    /// The outcome, as far as it does not depend on what the client has already.
    pub(crate) outcome: Outcome,
    /// `None` when it came just now and was not said to be older.
    pub(crate) age: Option<Duration>,
}

/// Where the response is.
#[derive(Debug)]
pub(crate) enum Content {
    /// In the store.
    Stored(Arc<Entry>),
    /// On its way from upstream, whether or not it is stored too.
    Forwarded(Arc<Representation>, KeyParam),
}

/// What `Cache-Status` says of it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source {
    /// A hit, with so many seconds of freshness left.
    Hit {
        ttl: i64,
    },
    Forwarded {
        why: Forward,
        stored: bool,
        collapsed: bool,
    },
}

impl CacheResponse {
    /// From the store, `age` after it was new.
    pub(crate) fn stored(entry: Arc<Entry>, outcome: Outcome, age: Duration) -> Self {
        entry.count_hit();
        let source = Source::Hit { ttl: entry.stored.lifetimes.ttl(age) };
        Self { content: Content::Stored(entry), source, outcome, age: Some(age) }
    }

    /// The response as it is for a client that wants nothing in particular.
    pub(crate) fn representation(&self) -> &Arc<Representation> {
        match &self.content {
            Content::Stored(entry) => &entry.stored.representation,
            Content::Forwarded(representation, _) => representation,
        }
    }
}
