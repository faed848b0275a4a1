//! The cache's response, before it is represented for one client.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::entry::Entry;
use crate::core::clock::Moment;
use crate::core::outcome::Outcome;
use crate::request::response::Representation;
use crate::semantics::cache_status::{Forward, KeyParam};

/// A response and how it came about.
#[derive(Debug)]
pub struct CacheResponse {
    pub(crate) content: Content,
    pub(crate) source: Source,
    /// The outcome, as far as it does not depend on the copy that the client has.
    pub(crate) outcome: Outcome,
    /// `None` when it has just come from upstream without an `Age`.
    pub(crate) age: Option<Duration>,
    /// Headers that the gateway sends in place of Twilio's, or beside them.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// It is about query jobs, and may have links that lead to Twilio instead of the gateway.
    pub(crate) has_links: bool,
}

/// Where the response is.
#[derive(Debug)]
pub(crate) enum Content {
    /// In the store.
    Stored(Arc<Entry>),
    /// From upstream, whether or not it is stored too.
    Forwarded(Arc<Representation>, KeyParam),
}

/// What `Cache-Status` says of it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source {
    /// A hit, with this number of seconds of freshness left.
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
    /// A response without additional headers.
    pub(crate) fn new(content: Content, source: Source, outcome: Outcome, age: Option<Duration>) -> Self {
        Self { content, source, outcome, age, headers: Vec::new(), has_links: false }
    }

    /// A stored response. Without `outcome` it is a hit, or stale if its age says so.
    pub(crate) fn stored(entry: Arc<Entry>, outcome: Option<Outcome>, now: Moment) -> Self {
        entry.count_hit();
        let age = entry.stored.age(now);
        let is_fresh = age <= entry.stored.lifetimes.fresh;
        let outcome = outcome.unwrap_or(if is_fresh { Outcome::Hit } else { Outcome::Stale });
        let source = Source::Hit { ttl: entry.stored.lifetimes.ttl(age) };
        Self::new(Content::Stored(entry), source, outcome, Some(age))
    }

    /// The response for a client without preferences.
    pub(crate) fn representation(&self) -> &Arc<Representation> {
        match &self.content {
            Content::Stored(entry) => &entry.stored.representation,
            Content::Forwarded(representation, _) => representation,
        }
    }
}
