//! One stored response, and what this process alone knows of it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::sets::ResultSet;
use crate::core::clock::{Instant, Moment};
use crate::request::key::Key;
use crate::request::response::{CodedBody, StoredResponse};
use crate::semantics::cache_status::KeyParam;
use crate::semantics::freshness::Lifetimes;
use crate::twilio::endpoint::Operation;
use crate::twilio::settled::{TimeDimensions, Verdict};

/// A page in the store.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) page: Arc<StoredResponse>,
    pub(crate) account: Arc<str>,
    pub(crate) operation: Operation,
    /// When it was asked for: of two pages the one asked for later is the newer.
    pub(crate) asked: Instant,
    /// When it came.
    pub(crate) finished: Instant,
    /// When it was new, from which its age counts: when it came, or earlier if it was said to be older.
    pub(crate) made: Moment,
    pub(crate) lifetimes: Lifetimes,
    /// Zero but for a page that was not new when it was kept.
    pub(crate) age_when_kept: Duration,
    /// The key under which a result set expects it: its own, but for a page that was asked for with more than its token.
    pub(crate) place: Key,
    /// The result set that it is a page of.
    pub(crate) result_set: Option<ResultSet>,
    /// The key of the page after it in that set.
    pub(crate) next: Option<Key>,
    /// The key of the page before it in that set, by the token that it gives for that. Forgotten at a restart.
    pub(crate) previous: Option<Key>,
    /// Of a query: has its answer stopped changing.
    pub(crate) settled: Option<Verdict>,
    /// Of metadata: which dimensions are times.
    pub(crate) time_dimensions: Option<TimeDimensions>,
    /// What was asked, in words; only where the policy lets people read it.
    pub(crate) query: Option<Arc<str>>,
    pub(crate) hits: AtomicU64,
    pub(crate) compression: Compression,
    /// The end of every `Cache-Status` about this page, written once.
    pub(crate) key_param: KeyParam,
}

impl Entry {
    pub(crate) fn age(&self, now: Moment) -> Duration {
        now.since(self.made)
    }

    pub(crate) fn count_hit(&self) {
        self.hits.fetch_add(1, Ordering::Relaxed);
    }

    /// May a stale one be refreshed by itself. A further page of a result set may not: it would mix an old
    /// first page with newer ones, and would still expire with the first.
    pub(crate) fn is_refreshable(&self) -> bool {
        self.operation != Operation::Page || self.result_set.is_none()
    }

    /// Of anything that is kept: its key, the pointer to it, and what moka keeps for it (hash table bucket, nodes of its
    /// queue and of its timer, counters).
    const BOOKKEEPING: usize = size_of::<Key>() + size_of::<Arc<Self>>() + 360;

    pub(super) fn weight(&self) -> u32 {
        let coded = self.compression.coded().map_or(0, CodedBody::weight);
        let dimensions = self.time_dimensions.as_ref().map_or(0, TimeDimensions::weight);
        let texts = self.account.len() + self.query.as_ref().map_or(0, |query| query.len());
        let own = size_of::<Self>() + 2 * size_of::<usize>() + texts + dimensions;
        u32::try_from(Self::BOOKKEEPING + own + self.page.weight() + coded).unwrap_or(u32::MAX)
    }

    /// How long it is of use from when it is kept, or kept again because it has become heavier.
    pub(crate) fn usable(&self) -> Duration {
        let age = self.compression.done.get().map_or(self.age_when_kept, |compressed| compressed.age);
        self.lifetimes.usable().saturating_sub(age)
    }

    /// Is it replaced by itself. Says so once.
    pub(super) fn is_reweighed(&self) -> bool {
        self.compression.reweighed.swap(false, Ordering::Relaxed)
    }
}

/// A page's body compressed, from when it was first of use.
#[derive(Debug, Default)]
pub(crate) struct Compression {
    pub(super) begun: AtomicBool,
    /// Stays empty where it is not worth it.
    pub(super) done: OnceLock<Compressed>,
    /// The entry is about to replace itself in the store, which is no eviction.
    pub(super) reweighed: AtomicBool,
}

#[derive(Debug)]
pub(super) struct Compressed {
    pub(super) coded: CodedBody,
    /// The page's age when this was added.
    pub(super) age: Duration,
}

impl Compression {
    #[cfg(test)]
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// The compressed body, where there is one.
    pub(crate) fn coded(&self) -> Option<&CodedBody> {
        self.done.get().map(|compressed| &compressed.coded)
    }
}
