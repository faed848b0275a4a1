//! The store: memory, the disk tier behind it, and the flights that bring more.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::disk::{Change, Disk, DiskSettings, DiskView};
use super::entry::{Compressed, Entry};
use super::flight::{Flights, Lease};
use super::memory::Memory;
use super::purge::{Purge, Purged};
use super::sets::{Membership, ResultSet};
use crate::core::clock::{Clock, Instant, Moment};
use crate::metrics::Metrics;
use crate::request::key::Key;
use crate::request::response::{CodedBody, StoredResponse};
use crate::semantics::freshness::Lifetimes;
use crate::twilio::endpoint::Operation;
use crate::twilio::settled::Verdict;

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

/// A success that is not kept.
#[derive(Debug)]
pub(crate) struct Unkept {
    /// Whose data, by the account's name.
    pub(crate) account: Arc<str>,
    pub(crate) asked: Instant,
    pub(crate) made: Moment,
    /// Of a first page: its result set, whose further pages may be kept.
    pub(crate) begins: Option<ResultSet>,
    pub(crate) next: Option<Key>,
    /// It is for whoever asks. One client's own takes nothing from the others but what contradicts it.
    pub(crate) is_shared: bool,
}

impl Unkept {
    fn of(key: Key, entry: &Entry) -> Self {
        Self {
            account: Arc::clone(&entry.account),
            asked: entry.asked,
            made: entry.made,
            begins: entry.result_set.filter(|result_set| result_set.first == key),
            next: entry.next,
            is_shared: true,
        }
    }
}

/// Can the further pages of a new first page be told from those of the `old` one. Tokens that differ once are taken to
/// differ throughout; where a later one does not, its page goes then.
fn is_apart(next: Option<Key>, old: Option<&Entry>) -> bool {
    next.is_none() || old.is_some_and(|old| old.next.is_some() && old.next != next)
}

/// So many pages are compressed at once: it is never urgent, and must not take the cores from those who wait.
const COMPRESSIONS: usize = 2;

/// The pages and the flights that bring more. Cheap to clone; all clones are one. It outlives reloads.
#[derive(Debug, Clone)]
pub struct Store {
    memory: Memory,
    pub(crate) flights: Flights,
    capacity: u64,
    disk: Option<Disk>,
    /// Held by whoever changes what is kept, so that a page that is put back heavier is still there, and none is kept
    /// that was asked for before a purge.
    changes: Arc<Mutex<()>>,
    /// Bytes written since moka was last made to evict.
    unsettled: Arc<AtomicU64>,
    compressions: Arc<Semaphore>,
}

impl Store {
    /// The share of the capacity that is for the places of pages in result sets.
    const SETS_SHARE: u64 = 32;
    /// A page that would take more than this share of the cache is not kept: it would cost all the others.
    const LARGEST_SHARE: u64 = 2;

    /// An empty store of at most `capacity` bytes, keys and bookkeeping included.
    pub fn new(capacity: u64, metrics: &Arc<Metrics>) -> Self {
        let for_sets = capacity / Self::SETS_SHARE;
        Self {
            memory: Memory::new(capacity - for_sets, for_sets, metrics),
            flights: Flights::default(),
            capacity,
            disk: None,
            changes: Arc::default(),
            unsettled: Arc::default(),
            compressions: Arc::new(Semaphore::new(COMPRESSIONS)),
        }
    }

    /// With a disk tier: what an earlier process wrote there appears while this one already answers.
    #[must_use]
    pub fn with_disk(self, settings: DiskSettings, metrics: &Arc<Metrics>, clock: Clock) -> Self {
        let disk = Disk::start(settings, self.memory.clone(), self.capacity, metrics, clock);
        Self { disk, ..self }
    }

    /// Ends when the pages of the disk tier are there, or it is not worth waiting for them; `None` when that is
    /// so already.
    pub(crate) fn loading(&self, now: Instant) -> Option<impl Future<Output = ()> + use<>> {
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
    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The page under `key`, unless its result set is dead.
    pub(crate) fn page(&self, key: &Key) -> Option<Arc<Entry>> {
        self.memory.get(key)
    }

    /// The page under `key`, while it is fresh.
    pub fn fresh(&self, key: &Key, now: Moment) -> Option<Arc<StoredResponse>> {
        let entry = self.page(key).filter(|entry| entry.age(now) <= entry.lifetimes.fresh)?;
        Some(Arc::clone(&entry.page))
    }

    /// What is known of the result set of a further page.
    pub(crate) fn membership(&self, key: &Key, now: Moment) -> Membership {
        self.memory.sets.membership(key, now)
    }

    /// May a page of this weight be kept at all.
    fn is_too_large(&self, weight: u64) -> bool {
        weight > (self.capacity - self.capacity / Self::SETS_SHARE) / Self::LARGEST_SHARE
    }

    /// Keeps what a flight brought, and says whether it did. Not kept is what was asked for before a purge that
    /// concerns it, what is too large, and what the page that is there `yields` to it not.
    pub(crate) fn insert(
        &self,
        key: Key,
        entry: Entry,
        lease: &Lease,
        yields: impl FnOnce(&Arc<Entry>) -> bool,
    ) -> bool {
        let entry = Arc::new(entry);
        let weight = u64::from(entry.weight());
        let keep = || {
            let _changing = self.changing();
            if self.is_too_large(weight) || lease.is_outdated() {
                let gone =
                    if entry.page.status.is_success() { self.displace(key, &Unkept::of(key, &entry)) } else { vec![] };
                return Change { kept: false, gone };
            }
            let old = self.memory.get(&key);
            if old.as_ref().is_some_and(|old| !yields(old)) || self.is_misplaced(&entry) {
                return Change { kept: false, gone: vec![] };
            }
            let gone = self.keep_set(key, &entry, old.as_deref());
            self.memory.pages.insert(key, Arc::clone(&entry));
            Change { kept: true, gone }
        };
        let kept = match &self.disk {
            Some(disk) => disk.keep(key, &entry, keep),
            None => keep().kept,
        };
        if kept {
            self.settle(weight);
        }
        kept
    }

    /// Has the set of a further page changed since the page was asked for.
    fn is_misplaced(&self, entry: &Entry) -> bool {
        if entry.operation != Operation::Page {
            return false;
        }
        let now = entry.made.after(entry.age_when_kept);
        match (self.membership(&entry.place, now), entry.result_set) {
            (Membership::Of(expected), Some(own)) => !expected.is(&own),
            (Membership::Unknown, Some(_)) => false,
            (Membership::Unknown, None) => {
                // Of a set that is over.
                self.memory.sets.vacate(&entry.place);
                false
            }
            (Membership::Lost, None) => entry.page.status.is_success(),
            (Membership::Of(_), None) | (Membership::Lost, Some(_)) => true,
        }
    }

    /// Notes the set of a page that is about to be kept, and where the next page belongs. Says which pages may not be
    /// served beside it and so are gone.
    fn keep_set(&self, key: Key, entry: &Entry, old: Option<&Entry>) -> Vec<Key> {
        let Some(result_set) = entry.result_set else { return vec![] };
        if result_set.first == key {
            self.memory.sets.begin(result_set, &entry.account, is_apart(entry.next, old));
        }
        let named = [entry.next, entry.previous].into_iter().flatten();
        named.filter(|named| self.expect(*named, result_set, &entry.account)).collect()
    }

    /// The page of `key` belongs to this set. Says whether that is new: whatever was kept under the key is gone then, on the
    /// disk too, which may have what memory has dropped.
    fn expect(&self, key: Key, result_set: ResultSet, account: &Arc<str>) -> bool {
        let Memory { pages, sets } = &self.memory;
        let is_of_set = |there: Arc<Entry>| there.result_set.is_some_and(|own| own.is(&result_set));
        let is_new = sets.expect(key, result_set, account) && !pages.get(&key).is_some_and(is_of_set);
        if is_new {
            pages.invalidate(&key);
        }
        is_new
    }

    /// A success came that is not kept. What is kept and older goes, on the disk too: nobody may read afterwards what was
    /// replaced by then, nor an old further page beside a new first one.
    pub(crate) fn supersede(&self, key: Key, unkept: &Unkept) {
        let displace = || {
            let _changing = self.changing();
            self.displace(key, unkept)
        };
        match &self.disk {
            Some(disk) => disk.remove(displace),
            None => drop(displace()),
        }
    }

    /// Says which pages are gone.
    fn displace(&self, key: Key, unkept: &Unkept) -> Vec<Key> {
        let old = self.memory.pages.get(&key);
        if old.as_ref().is_some_and(|old| old.asked > unkept.asked || old.made > unkept.made) {
            return vec![];
        }
        let names_the_same = |old: &Arc<Entry>| unkept.next.is_some() && old.next == unkept.next;
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

    /// Lets the page of `entry` be compressed behind its answers, once, if it is worth it.
    pub(crate) fn compress(&self, key: Key, entry: &Arc<Entry>, clock: Clock) {
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
            store.add_coded(key, &entry, coded, clock.moment());
            drop(permit);
        });
    }

    /// Keeps a page's compressed body with it, unless the page has gone meanwhile.
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
            let compressed = Compressed { coded, age: entry.age(now) };
            if entry.compression.done.set(compressed).is_err() {
                return;
            }
            // In its own place, so that moka weighs it again.
            entry.compression.reweighed.store(true, Ordering::Relaxed);
            self.memory.pages.insert(key, Arc::clone(entry));
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
            self.memory.settle();
        }
    }

    /// Bytes that it may hold.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Drops pages, and with each the rest of its result set. What is under way for them is told to those who wait for it
    /// and not kept, and nobody joins it any more. With a disk tier the purge is on the disk when this returns.
    ///
    /// Blocks, for as long as the disk takes: not to be called where other tasks wait.
    pub fn purge(&self, which: &Purge) -> Purged {
        let (mark, remove) = (|| self.mark_purged(which), |marked: Vec<_>| self.remove_purged(&marked));
        match &self.disk {
            Some(disk) => {
                let (pages, shared) = disk.purge(which, mark, remove);
                Purged { pages, not_lasting: shared.err() }
            }
            None => Purged { pages: remove(mark().0), not_lasting: None },
        }
    }

    /// The pages that have to go, and the first pages of the result sets that do. Nothing that is under way for them is
    /// kept from here on.
    fn mark_purged(&self, which: &Purge) -> (Vec<(Key, Arc<Entry>)>, HashSet<Key>) {
        let _changing = self.changing();
        let Memory { pages, sets } = &self.memory;
        let mut firsts: HashSet<Key> = sets.matching(which).collect();
        let all: Vec<(Key, Arc<Entry>, bool)> = pages
            .iter()
            .map(|(key, entry)| {
                let matches = which.matches(&key, Some((&entry.account, entry.operation)));
                if matches {
                    firsts.extend(entry.result_set.map(|result_set| result_set.first));
                }
                (*key, entry, matches)
            })
            .collect();
        self.flights.purge(|key, flight| {
            which.matches(key, Some((&flight.account, flight.operation)))
                || firsts.contains(key)
                || flight.set.is_some_and(|set| firsts.contains(&set.first))
        });
        sets.purge(|first| firsts.contains(first));
        let goes = |entry: &Entry| entry.result_set.is_some_and(|result_set| firsts.contains(&result_set.first));
        let marked = all.into_iter().filter(|(_, entry, matches)| *matches || goes(entry));
        (marked.map(|(key, entry, _)| (key, entry)).collect(), firsts)
    }

    /// Removes those that are still there; says how many were. A few at a time, lest a page that lands waits for all.
    fn remove_purged(&self, marked: &[(Key, Arc<Entry>)]) -> u64 {
        const AT_ONCE: usize = 64;
        let mut removed = 0;
        for some in marked.chunks(AT_ONCE) {
            let _changing = self.changing();
            for (key, entry) in some {
                // What has taken its place was asked for after the purge.
                if self.memory.pages.get(key).is_some_and(|there| Arc::ptr_eq(&there, entry)) {
                    self.memory.pages.invalidate(key);
                    removed += 1;
                }
            }
        }
        removed
    }

    /// Pages and the bytes of all that is kept, once pending evictions are done.
    pub fn size(&self) -> (u64, u64) {
        self.memory.settle();
        let Memory { pages, sets } = &self.memory;
        (pages.entry_count(), pages.weighted_size() + sets.bytes())
    }

    /// What is there, in the order of the keys, `limit` at a time, beginning after `after`. Looks at every page once and
    /// holds no more than `limit`; takes milliseconds where there are many, so not to be called where other tasks wait.
    pub fn entries(&self, after: Option<&str>, limit: usize, now: Moment) -> Vec<EntryView> {
        let mut least: BTreeMap<[u8; 32], Arc<Entry>> = BTreeMap::new();
        for (key, entry) in &self.memory.pages {
            let is_before_all = || least.last_key_value().is_none_or(|(last, _)| key.as_bytes() < last);
            let is_listed = (least.len() < limit || is_before_all())
                && after.is_none_or(|after| key.to_string().as_str() > after)
                && self.memory.is_current(&entry);
            if is_listed {
                least.insert(*key.as_bytes(), entry);
                if least.len() > limit {
                    least.pop_last();
                }
            }
        }
        let view = |(key, entry): ([u8; 32], Arc<Entry>)| EntryView {
            key: Key::from_bytes(key),
            account: Arc::clone(&entry.account),
            operation: entry.operation,
            age: entry.age(now),
            lifetimes: entry.lifetimes,
            hits: entry.hits.load(Ordering::Relaxed),
            bytes: entry.weight().into(),
            settled: entry.settled,
            query: entry.query.clone(),
        };
        least.into_iter().map(view).collect()
    }
}
