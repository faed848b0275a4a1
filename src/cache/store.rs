//! The store: memory, the tiers behind it, and the flights that fetch what is missing.

mod compression;
mod insertion;
pub(super) mod listing;
mod purging;
mod replacements;
mod unstored;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;

use self::replacements::RecentReplacements;
pub(crate) use self::unstored::UnstoredResponse;
use super::disk::{Disk, DiskSettings, DiskView};
use super::entry::Entry;
use super::fill_lock::FillLock;
use super::flight::Flights;
use super::job_notes::JobNotes;
use super::known_jobs::{self, KnownJobs};
use super::memory::Memory;
use super::sets::Membership;
use super::tier::Tier;
use super::tiers::Tiers;
use crate::accounts::Account;
use crate::core::clock::{Clock, Instant, Moment};
use crate::metrics::Metrics;
use crate::request::context::RequestContext;
use crate::request::grants::SharedGrants;
use crate::request::key::Key;
use crate::request::response::Representation;

/// How fresh the response is that a request would find in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// A stored response that is served without asking Twilio.
    Fresh,
    /// A stored response that is served while it is refreshed.
    Stale,
    /// No stored response that is served without asking Twilio.
    Absent,
}

/// Responses that are compressed at the same time. Compression is never urgent, and must not take the cores from
/// requests.
const COMPRESSIONS: usize = 2;

/// The stored responses, the flights under way, and what is known of query jobs. Cheap to clone; all clones share one
/// store, which outlives reloads.
#[derive(Debug, Clone)]
pub struct Store {
    memory: Memory,
    pub(crate) flights: Flights,
    pub(crate) jobs: KnownJobs,
    capacity: u64,
    tier: Option<Arc<dyn Tier>>,
    /// The tier, if it is the disk.
    disk: Option<Disk>,
    /// The lock of the flights of all replicas, if they share one.
    fill_lock: Option<Arc<dyn FillLock>>,
    /// Held while the content changes. So an entry that is inserted again with a new weight is still the current one,
    /// and no response is kept that was requested before a purge.
    changes: Arc<Mutex<RecentReplacements>>,
    /// Bytes written since the store last made moka evict.
    written_since_eviction: Arc<AtomicU64>,
    purges: Arc<AtomicU64>,
    compressions: Arc<Semaphore>,
}

impl Store {
    /// The places of pages in result sets take one part in this many of the capacity.
    const SETS_SHARE: u64 = 32;
    /// A response that takes more than one part in this many of the cache is not kept, because it would evict all
    /// others.
    const LARGEST_SHARE: u64 = 2;

    /// An empty store of at most `capacity` bytes, keys and bookkeeping included.
    pub fn new(capacity: u64, metrics: &Arc<Metrics>) -> Self {
        let for_sets = capacity / Self::SETS_SHARE;
        Self {
            memory: Memory::new(capacity - for_sets, for_sets, metrics),
            flights: Flights::default(),
            jobs: KnownJobs::default(),
            capacity,
            tier: None,
            disk: None,
            fill_lock: None,
            changes: Arc::default(),
            written_since_eviction: Arc::default(),
            purges: Arc::default(),
            compressions: Arc::new(Semaphore::new(COMPRESSIONS)),
        }
    }

    /// Adds a disk tier: what an earlier process wrote there is loaded while this one already serves.
    #[must_use]
    pub fn with_disk(self, settings: DiskSettings, metrics: &Arc<Metrics>, clock: Clock) -> Self {
        let disk = Disk::start(settings, self.memory.clone(), self.capacity, metrics, clock);
        match disk {
            Some(disk) => Self { disk: Some(disk.clone()), ..self.with_tier(Arc::new(disk)) },
            None => self,
        }
    }

    /// Puts a tier behind memory, in place of any other.
    #[must_use]
    pub fn with_tier(self, tier: Arc<dyn Tier>) -> Self {
        Self { tier: Some(tier), disk: None, ..self }
    }

    /// The same memory with nothing behind it: what is done here reaches no disk and no replica.
    #[must_use]
    pub(crate) fn without_tier(self) -> Self {
        Self { tier: None, disk: None, ..self }
    }

    /// Puts the store that replicas share behind memory, and behind the disk if there is one. `tier` gets a store
    /// without it, in which changes are not told to other replicas.
    #[must_use]
    pub(crate) fn with_replicas(self, tier: impl FnOnce(Self) -> Arc<dyn Tier>) -> Self {
        let far = tier(self.clone());
        let tier = match &self.tier {
            Some(near) => Arc::new(Tiers { near: Arc::clone(near), far }),
            None => far,
        };
        Self { tier: Some(tier), ..self }
    }

    /// Adds the lock of the flights that replicas share. It comes before [`with_replicas`](Self::with_replicas), so
    /// that purges of other replicas reach it too.
    #[must_use]
    pub(crate) fn with_fill_lock(self, lock: Arc<dyn FillLock>) -> Self {
        Self { fill_lock: Some(lock), ..self }
    }

    /// Tells other replicas which query jobs are lost. It comes before [`with_replicas`](Self::with_replicas) too.
    #[must_use]
    pub(crate) fn with_lost_jobs(self, grants: Arc<dyn SharedGrants>) -> Self {
        Self { jobs: self.jobs.shared_by(grants), ..self }
    }

    /// Shares notes about query jobs with other replicas.
    #[must_use]
    pub(crate) fn with_job_notes(self, notes: Arc<dyn JobNotes>) -> Self {
        Self { jobs: self.jobs.with_notes(notes), ..self }
    }

    /// When the results of the job end whose status has the key `status`: as its last answer said, or else as the
    /// stored one says, which can be of an earlier process or another replica.
    pub(crate) fn results_end(&self, status: &Key, clock: Clock) -> Option<Moment> {
        let known = self.jobs.get(status).and_then(|known| known.results_end);
        known.or_else(|| known_jobs::results_end(&self.page(status)?.stored, clock))
    }

    /// The lock of the flights that replicas share.
    pub(crate) fn fill_lock(&self) -> Option<&dyn FillLock> {
        self.fill_lock.as_deref()
    }

    /// The tier behind memory.
    fn tier(&self) -> Option<&dyn Tier> {
        self.tier.as_deref()
    }

    /// Ends when what the tier has under `key` is in memory, or when it is not worth waiting for. `None` when either
    /// holds already.
    pub(crate) fn load(
        &self,
        account: &Arc<Account>,
        key: &Key,
        context: &Arc<RequestContext>,
        now: Instant,
    ) -> Option<BoxFuture<'static, ()>> {
        self.tier().and_then(|tier| tier.get(account, key, context, now))
    }

    /// Writes the changes that still wait for the disk, and accepts no further changes.
    pub async fn close(&self) {
        if let Some(tier) = self.tier() {
            tier.close().await;
        }
    }

    /// The disk tier's state; `None` when none is configured.
    pub fn disk(&self) -> Option<DiskView> {
        self.disk.as_ref().map(Disk::view)
    }

    /// Whether what is on the disk is in memory.
    #[cfg(test)]
    pub(crate) fn is_loaded(&self) -> bool {
        self.disk.as_ref().is_none_or(Disk::is_loaded)
    }

    #[cfg(test)]
    pub(super) fn disk_handle(&self) -> Option<Disk> {
        self.disk.clone()
    }

    #[cfg(test)]
    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The page under `key`, unless its result set is dead.
    pub(crate) fn page(&self, key: &Key) -> Option<Arc<Entry>> {
        self.memory.get(key)
    }

    /// The page under `key`, while it is fresh.
    pub fn fresh(&self, key: &Key, now: Moment) -> Option<Arc<Representation>> {
        let entry = self.page(key).filter(|entry| entry.stored.age(now) <= entry.stored.lifetimes.fresh)?;
        Some(Arc::clone(&entry.stored.representation))
    }

    /// What a request for `key` without cache directives would find in memory.
    pub fn freshness(&self, key: &Key, now: Moment) -> Freshness {
        let Some(entry) = self.page(key) else { return Freshness::Absent };
        let (age, lifetimes) = (entry.stored.age(now), entry.stored.lifetimes);
        match () {
            () if age <= lifetimes.fresh => Freshness::Fresh,
            () if age <= lifetimes.fresh.saturating_add(lifetimes.stale_while_revalidate) => Freshness::Stale,
            () => Freshness::Absent,
        }
    }

    /// What is known of the result set of a further page.
    pub(crate) fn membership(&self, key: &Key, now: Moment) -> Membership {
        self.memory.sets.membership(key, now)
    }

    /// Whether a page of this weight is too large to be kept.
    fn is_too_large(&self, weight: u64) -> bool {
        weight > (self.capacity - self.capacity / Self::SETS_SHARE) / Self::LARGEST_SHARE
    }

    fn changing(&self) -> MutexGuard<'_, RecentReplacements> {
        // It guards nothing else that a panic could leave half done.
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes moka evict now if many bytes were written since it last did. By itself moka lets dozens of writes wait,
    /// which with large pages is a large part of a small cache.
    fn evict_after(&self, written: u64) {
        const SHARE: u64 = 64;
        let written_since_eviction = self.written_since_eviction.fetch_add(written, Ordering::Relaxed) + written;
        if written_since_eviction > self.capacity / SHARE {
            self.written_since_eviction.store(0, Ordering::Relaxed);
            self.memory.run_evictions();
        }
    }

    /// The capacity in bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The number of pages and the bytes of all that is kept, after pending evictions.
    pub fn size(&self) -> (u64, u64) {
        self.memory.run_evictions();
        let Memory { pages, sets } = &self.memory;
        (pages.entry_count(), pages.weighted_size() + sets.bytes())
    }
}
