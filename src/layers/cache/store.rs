//! The pages: moka, bounded in bytes, least recently used first out.
//!
//! Not moka's default policy: TinyLFU refuses newcomers, and a page that was just paid for with a scarce
//! token must get in. moka's clock only clears away what is beyond all use; how old a page is and what may be
//! done with it is decided by `model::freshness` over the gateway's clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::Expiry;
use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::flight::Flights;
use crate::metrics::{CauseLabels, Metrics, Word};
use crate::model::call::Page;
use crate::model::clock::Instant;
use crate::model::freshness::Lifetimes;
use crate::model::key::Key;
use crate::model::operation::Operation;

/// A page in the store.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) page: Arc<Page>,
    pub(super) account: Arc<str>,
    pub(super) operation: Operation,
    pub(super) stored: Instant,
    pub(super) lifetimes: Lifetimes,
    pub(super) hits: AtomicU64,
    /// The end of every `Cache-Status` about this page, written once.
    pub(super) note: Box<str>,
}

impl Entry {
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.stored)
    }

    pub(super) fn count_hit(&self) {
        self.hits.fetch_add(1, Ordering::Relaxed);
    }

    fn weight(&self) -> u32 {
        // What moka itself keeps for an entry: hash table slot, access-order node, counters.
        const BOOKKEEPING: usize = 256;
        let bytes = size_of::<Key>() + size_of::<Self>() + self.note.len() + self.page.weight() + BOOKKEEPING;
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }
}

struct BeyondUse;

impl Expiry<Key, Arc<Entry>> for BeyondUse {
    fn expire_after_create(&self, _: &Key, entry: &Arc<Entry>, _: std::time::Instant) -> Option<Duration> {
        Some(entry.lifetimes.usable())
    }

    fn expire_after_update(
        &self,
        _: &Key,
        entry: &Arc<Entry>,
        _: std::time::Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        // The default would keep the deadline of the page that this one replaces.
        Some(entry.lifetimes.usable())
    }
}

/// Which pages to drop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purge {
    /// All.
    All,
    /// Those of one account, by its name.
    Account(String),
    /// Those of one operation.
    Operation(Operation),
    /// One, by its whole key or the short form that `Cache-Status` shows.
    Key(String),
}

/// What is known of a page, for people.
#[derive(Debug, Clone)]
pub struct EntryView {
    /// Its key.
    pub key: Key,
    /// Whose data.
    pub account: Arc<str>,
    /// What was asked.
    pub operation: Operation,
    /// How long ago it was fetched.
    pub age: Duration,
    /// Its lifetimes.
    pub lifetimes: Lifetimes,
    /// How often it was served.
    pub hits: u64,
    /// What it counts against the capacity.
    pub bytes: u64,
}

/// The pages and the flights that bring more. Cheap to clone; all clones are one. It outlives reloads.
#[derive(Debug, Clone)]
pub struct Store {
    pages: Cache<Key, Arc<Entry>>,
    pub(super) flights: Flights,
    capacity: u64,
}

impl Store {
    /// An empty store of at most `capacity` bytes, keys and bookkeeping included.
    pub fn new(capacity: u64, metrics: &Arc<Metrics>) -> Self {
        let evictions = metrics.cache_evictions.clone();
        let pages = Cache::builder()
            .max_capacity(capacity)
            .weigher(|_, entry: &Arc<Entry>| entry.weight())
            .eviction_policy(EvictionPolicy::lru())
            .expire_after(BeyondUse)
            .eviction_listener(move |_, _, cause| {
                let cause = match cause {
                    RemovalCause::Expired => "expired",
                    RemovalCause::Explicit => "purged",
                    RemovalCause::Replaced => "replaced",
                    RemovalCause::Size => "size",
                };
                evictions.get_or_create(&CauseLabels { cause: Word(cause) }).inc();
            })
            .build();
        Self { pages, flights: Flights::default(), capacity }
    }

    pub(super) fn get(&self, key: &Key) -> Option<Arc<Entry>> {
        self.pages.get(key)
    }

    pub(super) fn insert(&self, key: Key, entry: Entry) {
        self.pages.insert(key, Arc::new(entry));
    }

    /// Bytes that it may hold.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Drops pages; says how many.
    pub fn purge(&self, which: &Purge) -> u64 {
        let matches = |key: &Key, entry: &Entry| match which {
            Purge::All => true,
            Purge::Account(name) => *entry.account == **name,
            Purge::Operation(operation) => entry.operation == *operation,
            Purge::Key(text) => key.to_string() == *text || key.short().to_string() == *text,
        };
        let keys: Vec<Key> = self.pages.iter().filter(|(k, e)| matches(k, e)).map(|(k, _)| *k).collect();
        for key in &keys {
            self.pages.invalidate(key);
        }
        keys.len() as u64
    }

    /// Pages and their bytes, once pending evictions are done.
    pub fn size(&self) -> (u64, u64) {
        self.pages.run_pending_tasks();
        (self.pages.entry_count(), self.pages.weighted_size())
    }

    /// What is there, in the order of the keys, `limit` at a time, beginning after `after`.
    pub fn entries(&self, after: Option<&str>, limit: usize, now: Instant) -> Vec<EntryView> {
        let mut views: Vec<_> = self
            .pages
            .iter()
            .filter(|(key, _)| after.is_none_or(|after| key.to_string().as_str() > after))
            .map(|(key, entry)| EntryView {
                key: *key,
                account: Arc::clone(&entry.account),
                operation: entry.operation,
                age: entry.age(now),
                lifetimes: entry.lifetimes,
                hits: entry.hits.load(Ordering::Relaxed),
                bytes: entry.weight().into(),
            })
            .collect();
        views.sort_unstable_by_key(|view| view.key.to_string());
        views.truncate(limit);
        views
    }
}
