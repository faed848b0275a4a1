//! The store: memory, the tiers behind it, and the flights that fetch what is missing.

pub(super) mod listing;
mod outdated;
mod purging;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;

use self::outdated::Outdated;
pub(crate) use self::outdated::Seen;
use super::disk::{Disk, DiskSettings, DiskView};
use super::entry::Entry;
use super::fill_lock::FillLock;
use super::flight::{Flights, Lease};
use super::job_notes::JobNotes;
use super::known_jobs::{self, KnownJobs};
use super::memory::Memory;
use super::sets::{Membership, ResultSet};
use super::stored::StoredResponse;
use super::tier::{Candidate, Kept, Replaced, Tier};
use super::tiers::Tiers;
use crate::accounts::Account;
use crate::core::clock::{Clock, Instant, Moment};
use crate::metrics::Metrics;
use crate::request::context::RequestContext;
use crate::request::grants::SharedGrants;
use crate::request::key::Key;
use crate::request::response::{CodedBody, Representation};
use crate::twilio::endpoint::Operation;

/// What a request would find in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlook {
    /// A stored response that is served without asking Twilio.
    Fresh,
    /// A stored response that is served while it is refreshed.
    Stale,
    /// No stored response that is served without asking Twilio.
    Absent,
}

/// A successful response that is not kept.
#[derive(Debug)]
pub(crate) struct Unkept {
    /// The name of the account whose data it is.
    pub(crate) account: Arc<str>,
    pub(crate) asked: Instant,
    pub(crate) made: Moment,
    /// For a first page: its result set, whose further pages may be kept.
    pub(crate) begins: Option<ResultSet>,
    /// The key of the page after it.
    pub(crate) next: Option<Key>,
    /// Whether it is for all clients. A response for one client removes only pages that contradict it.
    pub(crate) is_shared: bool,
}

impl Unkept {
    fn of(key: Key, entry: &Entry) -> Self {
        Self {
            account: Arc::clone(&entry.stored.account),
            asked: entry.asked,
            made: entry.stored.made,
            begins: entry.stored.result_set.filter(|result_set| result_set.first == key),
            next: entry.stored.next,
            is_shared: true,
        }
    }
}

/// Whether the further pages of a new first page can be distinguished from those of the `old` one. If the first tokens
/// differ, all are assumed to differ. Where a later one does not, its page is dropped then.
fn is_apart(next: Option<Key>, old: Option<&Entry>) -> bool {
    next.is_none() || old.is_some_and(|old| old.stored.next.is_some() && old.stored.next != next)
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
    changes: Arc<Mutex<Outdated>>,
    /// Bytes written since the store last made moka evict.
    unsettled: Arc<AtomicU64>,
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
            unsettled: Arc::default(),
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

    /// Adds the lock of the flights that replicas share. It comes before [`with_replicas`](Self::with_replicas), so that
    /// purges of other replicas reach it too.
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

    /// When the results of the job end whose status has the key `status`: as its last answer said, or else as the stored
    /// one says, which can be of an earlier process or another replica.
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
    pub fn outlook(&self, key: &Key, now: Moment) -> Outlook {
        let Some(entry) = self.page(key) else { return Outlook::Absent };
        let (age, lifetimes) = (entry.stored.age(now), entry.stored.lifetimes);
        match () {
            () if age <= lifetimes.fresh => Outlook::Fresh,
            () if age <= lifetimes.fresh.saturating_add(lifetimes.stale_while_revalidate) => Outlook::Stale,
            () => Outlook::Absent,
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

    /// Keeps the response of a flight. Returns whether it did. It does not keep a response that was requested before a
    /// purge of it, that is too large, or to which the present entry does not yield.
    pub(crate) fn insert(&self, key: Key, entry: Entry, lease: &Lease, yields: impl Fn(&Arc<Entry>) -> bool) -> bool {
        let entry = Arc::new(entry);
        let weight = u64::from(entry.weight());
        let mut keep = || {
            let _changing = self.changing();
            if self.is_too_large(weight) || lease.is_outdated() {
                let is_success = entry.stored.representation.status.is_success();
                let gone = if is_success { self.displace(key, &Unkept::of(key, &entry)) } else { vec![] };
                return Kept { kept: false, gone };
            }
            let old = self.memory.get(&key);
            if old.as_ref().is_some_and(|old| !yields(old)) || self.is_misplaced(&entry) {
                return Kept { kept: false, gone: vec![] };
            }
            let gone = self.keep_set(key, &entry, old.as_deref());
            self.memory.pages.insert(key, Arc::clone(&entry));
            Kept { kept: true, gone }
        };
        self.put(key, &entry, lease.is_forced(), &mut keep)
    }

    /// Keeps the response of another replica, unless memory has a newer one, or one that is not to be mixed with it.
    /// Returns whether it did. `seen` is what [`seen`](Self::seen) said before the response was looked up: one that was
    /// looked up before a purge, or before it was replaced, may be an older one.
    pub(crate) fn adopt(&self, key: Key, entry: Entry, seen: Seen) -> bool {
        let entry = Arc::new(entry);
        let mut keep = || {
            let changing = self.changing();
            let old = self.memory.get(&key);
            let first = entry.stored.result_set.map(|set| set.first);
            let is_wanted = self.has_held(&changing, seen, [Some(key), first])
                && !self.is_too_large(entry.weight().into())
                && old.as_ref().is_none_or(|old| entry.is_better_than(old))
                && self.is_in_place(key, &entry);
            if !is_wanted {
                return Kept { kept: false, gone: vec![] };
            }
            let gone = self.keep_set(key, &entry, old.as_deref());
            self.memory.pages.insert(key, Arc::clone(&entry));
            Kept { kept: true, gone }
        };
        self.put(key, &entry, false, &mut keep)
    }

    /// What a look-up that begins now has seen of the changes.
    pub(crate) fn seen(&self) -> Seen {
        let changing = self.changing();
        Seen { purges: self.purges(), batches: changing.batches() }
    }

    /// Whether nothing was purged, and none of these pages replaced, since a look-up began.
    fn has_held(&self, outdated: &Outdated, seen: Seen, pages: [Option<Key>; 2]) -> bool {
        self.purges() == seen.purges && !pages.iter().flatten().any(|key| outdated.has_since(key, seen.batches))
    }

    /// Gives the page of `key` a place in a result set of another replica, unless it has one in a set that began later.
    pub(crate) fn adopt_place(&self, key: Key, result_set: ResultSet, account: &Arc<str>, seen: Seen) {
        let changing = self.changing();
        if self.has_held(&changing, seen, [Some(key), Some(result_set.first)]) {
            self.memory.sets.restore_next(key, result_set, account);
        }
    }

    /// Whether a result set is known, and its pages may be served.
    pub(crate) fn has_set(&self, result_set: &ResultSet) -> bool {
        self.memory.sets.lives(result_set)
    }

    fn put(&self, key: Key, entry: &Entry, is_forced: bool, keep: &mut dyn FnMut() -> Kept) -> bool {
        let candidate = Candidate { key, stored: &entry.stored, asked: entry.asked, is_forced };
        let kept = match self.tier() {
            Some(tier) => tier.put(&candidate, keep),
            None => keep().kept,
        };
        if kept {
            self.settle(entry.weight().into());
        }
        kept
    }

    /// Whether a response of another replica belongs where it is: a first page to a set that is not older than the known
    /// one, any other page to the set that has its place.
    fn is_in_place(&self, key: Key, entry: &Entry) -> bool {
        match &entry.stored.result_set {
            Some(own) if own.first == key => self.memory.sets.is_newest(own),
            _ => !self.is_misplaced(entry),
        }
    }

    /// Whether the set of a further page has changed since the page was requested.
    fn is_misplaced(&self, entry: &Entry) -> bool {
        let StoredResponse { operation, place, result_set, .. } = &entry.stored;
        if *operation != Operation::Page {
            return false;
        }
        let now = entry.stored.made.after(entry.age_when_kept);
        match (self.membership(place, now), result_set) {
            (Membership::Of(expected), Some(own)) => !expected.is(own),
            (Membership::Unknown, Some(_)) => false,
            (Membership::Unknown, None) => {
                // The place belongs to a set that has ended.
                self.memory.sets.vacate(place);
                false
            }
            (Membership::Lost, None) => entry.stored.representation.status.is_success(),
            (Membership::Of(_), None) | (Membership::Lost, Some(_)) => true,
        }
    }

    /// Records the set of a page that is about to be stored, and the place of the next page. Returns the keys of
    /// removed pages: those that must not be served together with the new one.
    fn keep_set(&self, key: Key, entry: &Entry, old: Option<&Entry>) -> Vec<Key> {
        let StoredResponse { account, result_set, next, .. } = &entry.stored;
        let Some(result_set) = *result_set else { return vec![] };
        // A set of another replica may be known by a later page already.
        if result_set.first == key && !self.memory.sets.is_known(&result_set) {
            self.memory.sets.begin(result_set, account, is_apart(*next, old));
        }
        let named = [*next, entry.previous].into_iter().flatten();
        named.filter(|named| self.expect(*named, result_set, account)).collect()
    }

    /// Gives the page of `key` a place in this set. Returns whether that is new: an older page under the key is then
    /// removed, on the disk too, which may have pages that memory has evicted.
    fn expect(&self, key: Key, result_set: ResultSet, account: &Arc<str>) -> bool {
        let Memory { pages, sets } = &self.memory;
        let is_new = sets.expect(key, result_set, account)
            && !pages.get(&key).is_some_and(|there| there.stored.is_of(&result_set));
        if is_new {
            pages.invalidate(&key);
        }
        is_new
    }

    /// Handles a successful response that is not kept. Older pages that it replaces are removed, on the disk too: no
    /// client may read a replaced page afterwards, or an old further page beside a new first one.
    pub(crate) fn supersede(&self, key: Key, unkept: &Unkept) {
        let mut displace = || {
            let _changing = self.changing();
            self.displace(key, unkept)
        };
        match self.tier() {
            Some(tier) => {
                tier.remove(&Replaced { account: &unkept.account, asked: unkept.asked }, &mut displace);
            }
            None => drop(displace()),
        }
    }

    /// Removes what the tiers behind memory have under `key`, if it was requested before `asked`. Memory keeps it.
    pub(crate) fn remove_from_tiers(&self, key: Key, account: &Arc<str>, asked: Instant) {
        if let Some(tier) = self.tier() {
            tier.remove(&Replaced { account, asked }, &mut || vec![key]);
        }
    }

    /// Removes the pages that `unkept` replaces. Returns their keys.
    fn displace(&self, key: Key, unkept: &Unkept) -> Vec<Key> {
        let old = self.memory.pages.get(&key);
        if old.as_ref().is_some_and(|old| old.asked > unkept.asked || old.stored.made > unkept.made) {
            return vec![];
        }
        let names_the_same = |old: &Arc<Entry>| unkept.next.is_some() && old.stored.next == unkept.next;
        let is_replaced = unkept.is_shared || old.as_ref().is_some_and(names_the_same);
        let mut gone = vec![];
        if let Some(result_set) = unkept.begins {
            if is_replaced {
                self.memory.sets.begin(result_set, &unkept.account, is_apart(unkept.next, old.as_deref()));
            }
            gone.extend(unkept.next.filter(|next| self.expect(*next, result_set, &unkept.account)));
        }
        if is_replaced {
            self.memory.pages.invalidate(&key);
            gone.push(key);
        }
        gone
    }

    /// Compresses the body of `entry` in the background, once, if that is worth it.
    pub(crate) fn compress(&self, key: Key, entry: &Arc<Entry>, clock: Clock) {
        if !entry.stored.representation.may_be_coded() || entry.compression.gzip.has_begun() {
            return;
        }
        // When all permits are taken, a later request for this response tries again.
        let Ok(permit) = Arc::clone(&self.compressions).try_acquire_owned() else { return };
        if !entry.compression.gzip.begin() {
            return;
        }
        let (store, entry) = (self.clone(), Arc::clone(entry));
        tokio::task::spawn_blocking(move || {
            let coded = entry.stored.representation.gzip();
            store.add_coded(key, &entry, coded, clock.moment());
            drop(permit);
        });
    }

    /// Keeps a page's compressed body with it, unless the page was removed meanwhile.
    pub(crate) fn add_coded(&self, key: Key, entry: &Arc<Entry>, coded: Option<CodedBody>, now: Moment) {
        let Some(coded) = coded else { return };
        let weight = coded.weight() as u64;
        if self.is_too_large(u64::from(entry.weight()) + weight) {
            return;
        }
        {
            let _changing = self.changing();
            if !self.page(&key).is_some_and(|kept| Arc::ptr_eq(&kept, entry)) {
                return;
            }
            if entry.compression.age.set(entry.stored.age(now)).is_err() || !entry.compression.gzip.set(coded) {
                return;
            }
            // Inserted again, so that moka weighs it again.
            entry.compression.reweighed.store(true, Ordering::Relaxed);
            self.memory.pages.insert(key, Arc::clone(entry));
            entry.compression.reweighed.store(false, Ordering::Relaxed);
        }
        self.settle(weight);
    }

    fn changing(&self) -> MutexGuard<'_, Outdated> {
        // It guards nothing else that a panic could leave half done.
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes moka evict now if many bytes were written since it last did. By itself moka lets dozens of writes wait,
    /// which with large pages is a large part of a small cache.
    fn settle(&self, written: u64) {
        const SHARE: u64 = 64;
        let unsettled = self.unsettled.fetch_add(written, Ordering::Relaxed) + written;
        if unsettled > self.capacity / SHARE {
            self.unsettled.store(0, Ordering::Relaxed);
            self.memory.settle();
        }
    }

    /// The capacity in bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The number of pages and the bytes of all that is kept, after pending evictions.
    pub fn size(&self) -> (u64, u64) {
        self.memory.settle();
        let Memory { pages, sets } = &self.memory;
        (pages.entry_count(), pages.weighted_size() + sets.bytes())
    }
}
