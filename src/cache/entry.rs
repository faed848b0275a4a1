//! One stored response, and what only this process knows about it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::stored::StoredResponse;
use crate::core::clock::{Clock, Instant};
use crate::request::key::Key;
use crate::request::response::{CodedBody, LazyGzip};
use crate::semantics::cache_status::KeyParam;
use crate::twilio::settled::TimeDimensions;

/// A stored response in memory.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) stored: StoredResponse,
    /// When it was requested: of two responses the one requested later is the newer.
    pub(crate) asked: Instant,
    /// When it arrived.
    pub(crate) finished: Instant,
    /// Zero unless the response had an `Age` when it was kept.
    pub(super) age_when_kept: Duration,
    /// The key of the page before it in its result set, by the token that it gives for that page. Lost at a restart.
    pub(crate) previous: Option<Key>,
    /// For metadata: which dimensions are times.
    pub(crate) time_dimensions: Option<TimeDimensions>,
    /// The query or parameters as text; only where the configuration lets operators read it. It is not in any record:
    /// each process decides again who may read it.
    pub(crate) query: Option<Arc<str>>,
    /// Whether another replica had stored it.
    pub(crate) by_another: bool,
    pub(crate) hits: AtomicU64,
    pub(crate) compression: Compression,
    /// The last part of every `Cache-Status` about this response, formatted once.
    pub(crate) key_param: KeyParam,
}

impl Entry {
    /// A response that was requested and arrived at these times, and had that `age` then.
    pub(crate) fn new(key: &Key, stored: StoredResponse, asked: Instant, finished: Instant, age: Duration) -> Self {
        let metadata = Some(&stored.representation.body).filter(|_| stored.is_metadata());
        Self {
            asked,
            finished,
            age_when_kept: age,
            previous: None,
            time_dimensions: metadata.and_then(|body| TimeDimensions::read(body)),
            query: None,
            by_another: false,
            hits: AtomicU64::new(0),
            compression: Compression::default(),
            key_param: KeyParam::new(&key.short()),
            stored,
        }
    }

    /// A response that another process stored. It counts as older than all that this process requests.
    pub(crate) fn restored(key: &Key, stored: StoredResponse, clock: Clock) -> Self {
        let (start, age) = (clock.start(), stored.age(clock.moment()));
        Self::new(key, stored, start, start, age)
    }

    /// Whether this response of another replica is to replace the one that is `there`. A usable response is not
    /// replaced by an error.
    pub(super) fn is_better_than(&self, there: &Self) -> bool {
        let is_success = |entry: &Self| entry.stored.representation.status.is_success();
        self.stored.made > there.stored.made && (is_success(self) || !is_success(there))
    }

    pub(crate) fn count_hit(&self) {
        self.hits.fetch_add(1, Ordering::Relaxed);
    }

    /// Memory in addition to the entry itself: its key, the pointer to it, and what moka keeps for it (hash table
    /// bucket, nodes of its queue and of its timer, counters).
    const BOOKKEEPING: usize = size_of::<Key>() + size_of::<Arc<Self>>() + 360;

    pub(super) fn weight(&self) -> u32 {
        let coded = self.compression.gzip.get().map_or(0, CodedBody::weight);
        let dimensions = self.time_dimensions.as_ref().map_or(0, TimeDimensions::weight);
        let query = self.query.as_ref().map_or(0, |query| query.len());
        let own = size_of::<Self>() + 2 * size_of::<usize>() + query + dimensions;
        u32::try_from(Self::BOOKKEEPING + own + self.stored.representation.weight() + coded).unwrap_or(u32::MAX)
    }

    /// How long it may be served, counted from when it is kept, or kept again because its weight has grown.
    pub(crate) fn usable(&self) -> Duration {
        let age = self.compression.age.get().copied().unwrap_or(self.age_when_kept);
        self.stored.lifetimes.usable().saturating_sub(age)
    }

    /// Whether it is about to be replaced by itself. True only once.
    pub(super) fn is_reweighed(&self) -> bool {
        self.compression.reweighed.swap(false, Ordering::Relaxed)
    }
}

/// The entry's body in gzip, and what adding it meant for the store.
#[derive(Debug, Default)]
pub(crate) struct Compression {
    pub(crate) gzip: LazyGzip,
    /// The entry's age when its gzip body was added. Its time to live in moka started again then.
    pub(super) age: OnceLock<Duration>,
    /// The entry is about to replace itself in the store, which does not count as an eviction.
    pub(super) reweighed: AtomicBool,
}
