//! Stored responses in memory: moka, bounded in bytes, least recently used evicted first.
//!
//! The policy is LRU and not moka's default. The default, TinyLFU, refuses new entries, but a response that has just
//! cost a scarce token must be admitted. moka's clock only removes responses that can no longer be served.
//! `semantics::freshness` decides over the gateway's clock how old a response is, and whether it may be served.

use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use moka::Expiry;
use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::entry::Entry;
use super::sets::ResultSets;
use super::stored::StoredResponse;
use crate::core::clock::Clock;
use crate::metrics::{CauseLabels, Metrics, StaticLabel};
use crate::request::key::Key;
use crate::twilio::endpoint::Operation;

/// Tells moka how long an entry may be served.
struct ExpireWhenUnusable;

impl Expiry<Key, Arc<Entry>> for ExpireWhenUnusable {
    fn expire_after_create(&self, _: &Key, entry: &Arc<Entry>, _: std::time::Instant) -> Option<Duration> {
        Some(entry.usable())
    }

    fn expire_after_update(
        &self,
        _: &Key,
        entry: &Arc<Entry>,
        _: std::time::Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        // The default would keep the deadline of the page that is replaced.
        Some(entry.usable())
    }
}

/// The pages alone, and the sets that they belong to.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    pub(super) pages: Cache<Key, Arc<Entry>, RandomState>,
    pub(super) sets: ResultSets,
}

impl Memory {
    /// Empty. Responses may take `pages` bytes, and places in result sets `sets` bytes.
    pub(super) fn new(pages: u64, sets: u64, metrics: &Arc<Metrics>) -> Self {
        let evictions = metrics.cache_evictions.clone();
        let pages = Cache::builder()
            .max_capacity(pages)
            .weigher(|_, entry: &Arc<Entry>| entry.weight())
            .eviction_policy(EvictionPolicy::lru())
            .expire_after(ExpireWhenUnusable)
            .eviction_listener(move |_, entry: Arc<Entry>, cause| {
                if cause == RemovalCause::Replaced && entry.is_reweighed() {
                    return;
                }
                let cause = match cause {
                    RemovalCause::Expired => "expired",
                    RemovalCause::Explicit => "purged",
                    RemovalCause::Replaced => "replaced",
                    RemovalCause::Size => "size",
                };
                evictions.get_or_create(&CauseLabels { cause: StaticLabel(cause) }).inc();
            })
            // Keys are hashes already. foldhash is seeded at random like the standard hasher and takes a tenth of its
            // time.
            .build_with_hasher(RandomState::default());
        Self { pages, sets: ResultSets::new(sets) }
    }

    /// The page under `key`, unless its result set is dead.
    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Entry>> {
        self.pages.get(key).filter(|entry| self.is_current(entry))
    }

    /// Whether a page may be served. Only a further page can be of a dead set, or have a place that another set took: a
    /// first page is replaced together with its set.
    pub(crate) fn is_current(&self, entry: &Entry) -> bool {
        entry.stored.operation != Operation::Page
            || self.sets.admits(&entry.stored.place, entry.stored.result_set.as_ref())
    }

    /// Keeps a response from another tier, unless there is a newer one. Returns whether it did.
    pub(crate) fn restore(&self, key: Key, stored: StoredResponse, clock: Clock) -> bool {
        if self.pages.contains_key(&key) || !self.sets.restore(stored.place, stored.result_set, stored.account) {
            return false;
        }
        // The next page must expire with its set even if it is fetched only now. If a next page was loaded before, and
        // is of no set or of an older one, it must not be served together with this page.
        if let (Some(result_set), Some(next)) = (stored.result_set, stored.next)
            && self.sets.restore_next(next, result_set, stored.account)
            && self.pages.get(&next).is_some_and(|there| !there.stored.is_of(&result_set))
        {
            self.pages.invalidate(&next);
        }
        self.pages.insert(key, Arc::new(Entry::restored(&key, stored, clock)));
        true
    }

    /// Removes the page under `key`, and the pages of its set that come after it, as far as one names the next. The set
    /// of a first page is dead then. Returns the keys.
    pub(super) fn remove_from(&self, key: Key) -> Vec<Key> {
        let mut removed = Vec::new();
        let (mut next, mut of) = (Some(key), None);
        while let Some(key) = next {
            let place = self.sets.of(&key);
            if of.is_some_and(|first| place.is_none_or(|place| place.first != first)) {
                break;
            }
            of = of.or(place.map(|place| place.first)).or(Some(key));
            next = self.pages.remove(&key).and_then(|page| page.stored.next);
            self.sets.vacate(&key);
            removed.push(key);
        }
        removed
    }

    pub(crate) fn run_evictions(&self) {
        self.pages.run_pending_tasks();
        self.sets.run_evictions();
    }
}
