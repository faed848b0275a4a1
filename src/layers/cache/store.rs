//! The pages: moka, bounded in bytes, least recently used first out.
//!
//! Not moka's default policy: TinyLFU refuses newcomers, and a page that was just paid for with a scarce
//! token must get in. moka's clock only clears away what is beyond all use; how old a page is and what may be
//! done with it is decided by `model::freshness` over the gateway's clock.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use moka::Expiry;
use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::sync::Semaphore;

use super::disk::{Disk, DiskSettings, DiskView};
use super::flight::Flights;
use super::note::KeyNote;
use crate::metrics::{CauseLabels, Metrics, Word};
use crate::model::call::{Coded, Page};
use crate::model::clock::{Clock, Instant};
use crate::model::freshness::Lifetimes;
use crate::model::key::Key;
use crate::model::operation::Operation;
use crate::model::settled::{TimeDimensions, Verdict};

/// A page in the store.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) page: Arc<Page>,
    pub(super) account: Arc<str>,
    pub(super) operation: Operation,
    /// When it was asked for: of two pages the one asked for later is the newer.
    pub(super) asked: Instant,
    pub(super) stored: Instant,
    pub(super) lifetimes: Lifetimes,
    /// Zero but for a page that survived a restart.
    pub(super) age_when_kept: Duration,
    /// The result set that it is a page of.
    pub(super) chain: Option<Chain>,
    /// The key of the page after it in that set.
    pub(super) next: Option<Key>,
    /// Of a query: has its answer stopped changing.
    pub(super) settled: Option<Verdict>,
    /// Of metadata: which dimensions are times.
    pub(super) time_dimensions: Option<TimeDimensions>,
    /// What was asked, in words; only where the policy lets people read it.
    pub(super) query: Option<Arc<str>>,
    pub(super) hits: AtomicU64,
    pub(super) compression: Compression,
    /// The end of every `Cache-Status` about this page, written once.
    pub(super) note: KeyNote,
}

impl Entry {
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.stored)
    }

    pub(super) fn count_hit(&self) {
        self.hits.fetch_add(1, Ordering::Relaxed);
    }

    /// May a stale one be refreshed by itself. A further page of a result set may not: it would mix an old
    /// first page with newer ones, and would still expire with the first.
    pub(super) fn is_refreshable(&self) -> bool {
        self.operation != Operation::Page || self.chain.is_none()
    }

    fn weight(&self) -> u32 {
        let coded = self.compression.coded().map_or(0, Coded::weight);
        let dimensions = self.time_dimensions.as_ref().map_or(0, TimeDimensions::weight);
        let texts = self.account.len() + self.query.as_ref().map_or(0, |query| query.len());
        let own = size_of::<Self>() + 2 * size_of::<usize>() + texts + dimensions;
        u32::try_from(Slot::BOOKKEEPING + own + self.page.weight() + coded).unwrap_or(u32::MAX)
    }
}

/// A page's body compressed, from when it was first of use.
#[derive(Debug, Default)]
pub(super) struct Compression {
    begun: AtomicBool,
    /// Stays empty where it is not worth it.
    done: OnceLock<Compressed>,
    /// The entry is about to replace itself in the store, which is no eviction.
    reweighed: AtomicBool,
}

#[derive(Debug)]
struct Compressed {
    coded: Coded,
    /// The page's age when this was added.
    age: Duration,
}

impl Compression {
    #[cfg(test)]
    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// The compressed body, where there is one.
    pub(super) fn coded(&self) -> Option<&Coded> {
        self.done.get().map(|compressed| &compressed.coded)
    }
}

/// A result set: all its pages expire with the first, and are purged with it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chain {
    /// The key of its first page.
    pub(super) first: Key,
    /// When that was fetched.
    pub(super) begun: Instant,
    pub(super) lifetimes: Lifetimes,
}

impl Chain {
    fn is(&self, other: &Self) -> bool {
        self.first == other.first && self.begun == other.begun
    }
}

/// What is kept under a key.
#[derive(Debug, Clone)]
pub(super) enum Slot {
    /// A page.
    Page(Arc<Entry>),
    /// Nothing yet. Behind a pointer, so that it does not make every page's slot larger.
    Awaited(Arc<Awaited>),
}

/// A page that is there names this one: it will belong to the same result set.
#[derive(Debug)]
pub(super) struct Awaited {
    pub(super) chain: Chain,
    /// What an earlier result set had here, which may still stand in for a failure.
    pub(super) before: Option<Arc<Entry>>,
}

impl Slot {
    fn page(&self) -> Option<&Arc<Entry>> {
        match self {
            Self::Page(entry) => Some(entry),
            Self::Awaited(awaited) => awaited.before.as_ref(),
        }
    }

    fn chain(&self) -> Option<Chain> {
        match self {
            Self::Page(entry) => entry.chain,
            Self::Awaited(awaited) => Some(awaited.chain),
        }
    }

    /// Of any slot: its key, itself, and what moka keeps for it (hash table bucket, nodes of its queue and of
    /// its timer, counters).
    const BOOKKEEPING: usize = size_of::<Key>() + size_of::<Self>() + 352;

    fn weight(&self) -> u32 {
        const AWAITED: usize = size_of::<Awaited>() + 2 * size_of::<usize>();
        let own = if let Self::Awaited(_) = self { AWAITED } else { 0 };
        let page = self.page().map_or(Self::BOOKKEEPING as u32, |entry| entry.weight());
        page.saturating_add(own as u32)
    }

    /// Is it replaced by itself. Says so once.
    fn is_reweighed(&self) -> bool {
        matches!(self, Self::Page(entry) if entry.compression.reweighed.swap(false, Ordering::Relaxed))
    }

    pub(super) fn usable(&self) -> Duration {
        match self {
            Self::Page(entry) => {
                let age = entry.compression.done.get().map_or(entry.age_when_kept, |compressed| compressed.age);
                entry.lifetimes.usable().saturating_sub(age)
            }
            Self::Awaited(awaited) => awaited.chain.lifetimes.usable(),
        }
    }
}

struct BeyondUse;

impl Expiry<Key, Slot> for BeyondUse {
    fn expire_after_create(&self, _: &Key, slot: &Slot, _: std::time::Instant) -> Option<Duration> {
        Some(slot.usable())
    }

    fn expire_after_update(
        &self,
        _: &Key,
        slot: &Slot,
        _: std::time::Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        // The default would keep the deadline of the page that this one replaces.
        Some(slot.usable())
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

impl Purge {
    /// Is this a page to drop. `page` is its account and operation, or `None` where there is no page yet.
    pub(super) fn matches(&self, key: &Key, page: Option<(&str, Operation)>) -> bool {
        match self {
            Self::All => true,
            Self::Account(name) => page.is_some_and(|(account, _)| account == name),
            Self::Operation(one) => page.is_some_and(|(_, operation)| operation == *one),
            Self::Key(text) => key.to_string() == *text || key.short().to_string() == *text,
        }
    }
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
    /// Of a query: has its answer stopped changing, or why is that not known.
    pub settled: Option<Verdict>,
    /// The canonical body, or a page's parameters. `None` where there is neither, or where it was not to be kept.
    pub query: Option<Arc<str>>,
}

/// So many pages are compressed at once: it is never urgent, and must not take the cores from those who wait.
const COMPRESSIONS: usize = 2;

/// The pages and the flights that bring more. Cheap to clone; all clones are one. It outlives reloads.
#[derive(Debug, Clone)]
pub struct Store {
    pages: Pages,
    pub(super) flights: Flights,
    capacity: u64,
    purges: Arc<AtomicU64>,
    disk: Option<Disk>,
    /// Held by whoever changes what is kept, so that a page that is put back heavier is still there.
    changes: Arc<Mutex<()>>,
    /// Bytes written since moka was last made to evict.
    unsettled: Arc<AtomicU64>,
    compressions: Arc<Semaphore>,
}

/// The pages alone.
pub(super) type Pages = Cache<Key, Slot>;

impl Store {
    /// An empty store of at most `capacity` bytes, keys and bookkeeping included.
    pub fn new(capacity: u64, metrics: &Arc<Metrics>) -> Self {
        let evictions = metrics.cache_evictions.clone();
        let pages = Cache::builder()
            .max_capacity(capacity)
            .weigher(|_, slot: &Slot| slot.weight())
            .eviction_policy(EvictionPolicy::lru())
            .expire_after(BeyondUse)
            .eviction_listener(move |_, slot: Slot, cause| {
                if cause == RemovalCause::Replaced && slot.is_reweighed() {
                    return;
                }
                let cause = match cause {
                    RemovalCause::Expired => "expired",
                    RemovalCause::Explicit => "purged",
                    RemovalCause::Replaced => "replaced",
                    RemovalCause::Size => "size",
                };
                evictions.get_or_create(&CauseLabels { cause: Word(cause) }).inc();
            })
            .build();
        Self {
            pages,
            flights: Flights::default(),
            capacity,
            purges: Arc::default(),
            disk: None,
            changes: Arc::default(),
            unsettled: Arc::default(),
            compressions: Arc::new(Semaphore::new(COMPRESSIONS)),
        }
    }

    /// With a disk tier: what an earlier process wrote there appears while this one already answers.
    #[must_use]
    pub fn with_disk(self, settings: DiskSettings, metrics: &Arc<Metrics>, clock: Clock) -> Self {
        let disk = Disk::start(settings, self.pages.clone(), self.capacity, metrics, clock);
        Self { disk, ..self }
    }

    /// Ends when the pages of the disk tier are there, or it is not worth waiting for them; `None` when that is
    /// so already.
    pub(super) fn loading(&self, now: Instant) -> Option<impl Future<Output = ()> + use<>> {
        self.disk.as_ref().and_then(|disk| disk.loading(now))
    }

    /// Writes what still waits for the disk, and takes nothing more.
    pub async fn close(&self) {
        if let Some(disk) = &self.disk {
            disk.close().await;
        }
    }

    /// The disk tier's state; `None` when none is configured.
    pub fn disk(&self) -> Option<DiskView> {
        self.disk.as_ref().map(Disk::view)
    }

    #[cfg(test)]
    pub(super) fn disk_handle(&self) -> Option<Disk> {
        self.disk.clone()
    }

    #[cfg(test)]
    pub(super) fn pages(&self) -> &Pages {
        &self.pages
    }

    pub(super) fn get(&self, key: &Key) -> Option<Slot> {
        self.pages.get(key)
    }

    /// The page under `key`, if it is one.
    pub(super) fn page(&self, key: &Key) -> Option<Arc<Entry>> {
        match self.get(key) {
            Some(Slot::Page(entry)) => Some(entry),
            _ => None,
        }
    }

    /// The result set that a page of this key will belong to.
    pub(super) fn chain(&self, key: &Key) -> Option<Chain> {
        self.get(key).and_then(|slot| slot.chain())
    }

    /// Is `entry` of the result set that expects a page under `expected_as`, if any does.
    pub(super) fn belongs(&self, entry: &Entry, expected_as: Option<&Key>) -> bool {
        let Some(chain) = expected_as.and_then(|key| self.chain(key)) else { return true };
        entry.chain.is_some_and(|own| own.is(&chain))
    }

    /// The page under `key`, while it is fresh.
    pub fn fresh(&self, key: &Key, now: Instant) -> Option<Arc<Page>> {
        let entry = self.page(key).filter(|entry| entry.age(now) <= entry.lifetimes.fresh)?;
        Some(Arc::clone(&entry.page))
    }

    pub(super) fn insert(&self, key: Key, entry: Entry) {
        let entry = Arc::new(entry);
        let keep = || {
            let _changing = self.changing();
            self.pages.insert(key, Slot::Page(Arc::clone(&entry)));
        };
        match &self.disk {
            Some(disk) => disk.keep(key, &entry, keep),
            None => keep(),
        }
        self.settle(entry.weight().into());
    }

    /// Lets the page of `entry` be compressed behind its answers, once, if it is worth it.
    pub(super) fn compress(&self, key: Key, entry: &Arc<Entry>, clock: Clock) {
        if !entry.page.may_be_coded() || entry.compression.begun.load(Ordering::Relaxed) {
            return;
        }
        // When all are busy, a later answer of this page tries again.
        let Ok(permit) = Arc::clone(&self.compressions).try_acquire_owned() else { return };
        if entry.compression.begun.swap(true, Ordering::Relaxed) {
            return;
        }
        let (store, entry) = (self.clone(), Arc::clone(entry));
        tokio::task::spawn_blocking(move || {
            let coded = entry.page.gzip();
            store.add_coded(key, &entry, coded, clock.now());
            drop(permit);
        });
    }

    /// Keeps a page's compressed body with it, unless the page has gone meanwhile.
    pub(super) fn add_coded(&self, key: Key, entry: &Arc<Entry>, coded: Option<Coded>, now: Instant) {
        let Some(coded) = coded else { return };
        let weight = coded.weight() as u64;
        {
            let _changing = self.changing();
            if !self.page(&key).is_some_and(|kept| Arc::ptr_eq(&kept, entry)) {
                return;
            }
            let compressed = Compressed { coded, age: entry.age(now) };
            if entry.compression.done.set(compressed).is_err() {
                return;
            }
            // In its own place, so that moka weighs it again.
            entry.compression.reweighed.store(true, Ordering::Relaxed);
            self.pages.insert(key, Slot::Page(Arc::clone(entry)));
            entry.compression.reweighed.store(false, Ordering::Relaxed);
        }
        self.settle(weight);
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        // It guards no data that a panic could leave half done.
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes moka evict now if much has been written since it last did: by itself it lets dozens of writes
    /// wait, which with large pages are a good part of a small cache.
    fn settle(&self, written: u64) {
        const SHARE: u64 = 64;
        let unsettled = self.unsettled.fetch_add(written, Ordering::Relaxed) + written;
        if unsettled > self.capacity / SHARE {
            self.unsettled.store(0, Ordering::Relaxed);
            self.pages.run_pending_tasks();
        }
    }

    /// The page of `key` is going to belong to `chain`. Does nothing where it does already.
    pub(super) fn await_page(&self, key: Key, chain: Chain) {
        let expect = || {
            let _changing = self.changing();
            let before = match self.get(&key) {
                Some(slot) if slot.chain().is_some_and(|c| c.is(&chain)) => return,
                Some(slot) => slot.page().cloned(),
                None => None,
            };
            self.pages.insert(key, Slot::Awaited(Arc::new(Awaited { chain, before })));
        };
        match &self.disk {
            Some(disk) => disk.in_order(expect),
            None => expect(),
        }
    }

    /// Bytes that it may hold.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Changes with every purge.
    pub(super) fn era(&self) -> u64 {
        self.purges.load(Ordering::SeqCst)
    }

    /// Drops pages, and with each the rest of its result set; says how many pages went.
    pub fn purge(&self, which: &Purge) -> u64 {
        // First, so that what lands from now on is not kept.
        self.purges.fetch_add(1, Ordering::SeqCst);
        match &self.disk {
            Some(disk) => disk.purge(which, || self.purge_memory(which)),
            None => self.purge_memory(which),
        }
    }

    fn purge_memory(&self, which: &Purge) -> u64 {
        let _changing = self.changing();
        let matches =
            |key: &Key, slot: &Slot| which.matches(key, slot.page().map(|entry| (&*entry.account, entry.operation)));
        let all: Vec<(Key, Slot)> = self.pages.iter().map(|(key, slot)| (*key, slot)).collect();
        let matched: HashSet<Key> = all.iter().filter(|(key, slot)| matches(key, slot)).map(|(key, _)| *key).collect();
        let chains: HashSet<Key> = all
            .iter()
            .filter(|(key, _)| matched.contains(key))
            .filter_map(|(_, slot)| slot.chain().map(|chain| chain.first))
            .collect();
        let mut purged = 0;
        for (key, slot) in &all {
            if matched.contains(key) || slot.chain().is_some_and(|chain| chains.contains(&chain.first)) {
                self.pages.invalidate(key);
                purged += u64::from(slot.page().is_some());
            }
        }
        purged
    }

    /// Pages and the bytes of all that is kept, once pending evictions are done.
    pub fn size(&self) -> (u64, u64) {
        self.pages.run_pending_tasks();
        let pages = self.pages.iter().filter(|(_, slot)| matches!(slot, Slot::Page(_))).count();
        (pages as u64, self.pages.weighted_size())
    }

    /// What is there, in the order of the keys, `limit` at a time, beginning after `after`.
    pub fn entries(&self, after: Option<&str>, limit: usize, now: Instant) -> Vec<EntryView> {
        let mut views: Vec<_> = self
            .pages
            .iter()
            .filter(|(key, _)| after.is_none_or(|after| key.to_string().as_str() > after))
            .filter_map(|(key, slot)| if let Slot::Page(entry) = slot { Some((key, entry)) } else { None })
            .map(|(key, entry)| EntryView {
                key: *key,
                account: Arc::clone(&entry.account),
                operation: entry.operation,
                age: entry.age(now),
                lifetimes: entry.lifetimes,
                hits: entry.hits.load(Ordering::Relaxed),
                bytes: entry.weight().into(),
                settled: entry.settled,
                query: entry.query.clone(),
            })
            .collect();
        views.sort_unstable_by_key(|view| view.key.to_string());
        views.truncate(limit);
        views
    }
}

/// Puts a page that survived a restart where nothing newer is; says whether it did.
pub(super) fn restore(pages: &Pages, key: Key, entry: Entry) -> bool {
    let vacant = match pages.get(&key) {
        None => true,
        // The page before it was restored first.
        Some(Slot::Awaited(awaited)) => {
            awaited.before.is_none() && entry.chain.is_some_and(|own| own.is(&awaited.chain))
        }
        Some(Slot::Page(_)) => false,
    };
    if vacant {
        let following = entry.chain.zip(entry.next);
        pages.insert(key, Slot::Page(Arc::new(entry)));
        // So that a page that is fetched only now still expires with its set.
        if let Some((chain, next)) = following
            && !pages.contains_key(&next)
        {
            pages.insert(next, Slot::Awaited(Arc::new(Awaited { chain, before: None })));
        }
    }
    vacant
}
