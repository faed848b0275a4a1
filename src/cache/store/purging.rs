//! Purges: in memory, in the tiers, and of the flights under way.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Store;
use crate::cache::disk::SavedCheckpoint;
use crate::cache::entry::Entry;
use crate::cache::memory::Memory;
use crate::cache::purge::{Purge, PurgeReport};
use crate::cache::tier::{PurgeOutcome, Replacement};
use crate::core::clock::{Clock, Moment};
use crate::request::key::Key;

impl Store {
    /// Drops pages, and with each the rest of its result set. Flights under way for them still answer those who wait,
    /// but their responses are not kept, and no caller joins them. With a disk tier the purge is on the disk when this
    /// returns.
    ///
    /// Blocks for as long as the disk takes: do not call it on an async worker thread.
    pub fn purge(&self, which: &Purge) -> PurgeReport {
        self.purge_as_of(which, None, |_| ())
    }

    /// The same. Calls `dropped` with the number of pages as soon as memory has none of them any more.
    pub(crate) fn purge_and_tell(&self, which: &Purge, dropped: impl FnOnce(u64)) -> PurgeReport {
        self.purge_as_of(which, None, dropped)
    }

    /// The same for a purge of another replica, which came at this moment. What a flight brings that has called upstream
    /// since then is new.
    pub(crate) fn purge_before(&self, which: &Purge, at: Moment) -> PurgeReport {
        self.purge_as_of(which, Some(at), |_| ())
    }

    fn purge_as_of(&self, which: &Purge, at: Option<Moment>, dropped: impl FnOnce(u64)) -> PurgeReport {
        let mut marked = Vec::new();
        let mut mark = || {
            let (entries, firsts) = self.mark_purged(which, at);
            marked = entries;
            firsts
        };
        let lasting = match self.tier() {
            Some(tier) => Some(tier.purge(which, &mut mark)),
            None => {
                mark();
                None
            }
        };
        let pages = self.remove_purged(&marked);
        dropped(pages);
        let PurgeOutcome { not_durable, shared } = lasting.map(|lasting| lasting()).unwrap_or_default();
        PurgeReport { pages, not_durable, shared }
    }

    /// The first pages of the result sets in which `which` matches a page.
    pub(crate) fn first_pages(&self, which: &Purge) -> HashSet<Key> {
        self.memory.sets.matching(which).collect()
    }

    /// Drops the pages under these keys that were requested before these moments, and with each the rest of its result
    /// set: another replica has newer ones. Flights that called upstream before end as at a purge. It neither visits
    /// other pages nor waits for the disk; places in result sets are visited once, if a set ends.
    pub(crate) fn outdate(&self, replaced: &HashMap<Key, Moment>, clock: Clock) {
        let mut remove = || {
            let mut changing = self.changing();
            // A page that is being looked up may be an older one.
            if !changing.add(replaced.keys()) {
                self.purges.fetch_add(1, Ordering::SeqCst);
            }
            self.remove_outdated(replaced, clock)
        };
        match self.tier() {
            Some(tier) => tier.remove(&Replacement { account: None, asked: clock.now() }, &mut remove),
            None => drop(remove()),
        }
    }

    /// Returns the keys of all that is outdated, on the disk too, which may have what memory has evicted.
    fn remove_outdated(&self, replaced: &HashMap<Key, Moment>, clock: Clock) -> Vec<Key> {
        let Memory { pages, sets } = &self.memory;
        // Nobody knows when a page of an earlier process was requested.
        let is_newer = |there: &Entry, cutoff: Moment| {
            there.asked != clock.start() && clock.earliest_moment(there.asked) >= cutoff
        };
        let (mut outdated, mut removed, mut known) = (HashMap::new(), Vec::new(), HashSet::new());
        let mut ended = HashSet::new();
        for (key, cutoff) in replaced {
            let there = pages.get(key);
            if there.as_ref().is_some_and(|there| is_newer(there, *cutoff)) {
                continue;
            }
            if there.is_some() || self.flights.is_under_way(key) {
                known.insert(*key);
            }
            let of_page = there.and_then(|there| there.stored.result_set);
            let firsts = [of_page, sets.of(key)].into_iter().flatten().map(|set| set.first);
            for first in firsts.chain([*key]) {
                outdated.entry(first).and_modify(|last: &mut Moment| *last = (*last).max(*cutoff)).or_insert(*cutoff);
                if sets.of(&first).is_some_and(|set| set.first == first) {
                    ended.insert(first);
                }
                removed.extend(self.memory.remove_from(first));
            }
        }
        if !ended.is_empty() {
            // Also where memory no longer has a page that names the next. What is left would keep newer pages from being kept.
            sets.purge(|first| ended.contains(first));
        }
        self.flights.outdate(|key, flight| {
            let of_set = flight.set.and_then(|set| outdated.get(&set.first));
            outdated.get(key).max(of_set).copied()
        });
        if let Some(lock) = &self.fill_lock {
            lock.outdate(outdated.into_iter().collect());
        }
        if !known.is_empty() {
            self.jobs.forget(|key| known.contains(key));
        }
        removed
    }

    /// The checkpoint that an earlier process saved with its pages on the disk.
    pub(crate) async fn saved_checkpoint(&self) -> SavedCheckpoint {
        match &self.disk {
            Some(disk) => disk.saved_checkpoint().await,
            None => SavedCheckpoint::NoPages,
        }
    }

    /// Saves a checkpoint with the pages on the disk. It covers all that was removed and purged until now.
    pub(crate) fn save_checkpoint(&self, checkpoint: Vec<u8>) {
        if let Some(disk) = &self.disk {
            disk.save_checkpoint(checkpoint);
        }
    }

    /// The number of purges so far. Data derived from stored responses must not be used after a further purge.
    pub fn purges(&self) -> u64 {
        self.purges.load(Ordering::SeqCst)
    }

    /// The pages to remove, and the first pages of the result sets to remove. Responses of flights that are under way
    /// for them are not kept from here on.
    fn mark_purged(&self, which: &Purge, at: Option<Moment>) -> (Vec<(Key, Arc<Entry>)>, HashSet<Key>) {
        let _changing = self.changing();
        self.purges.fetch_add(1, Ordering::SeqCst);
        let Memory { pages, sets } = &self.memory;
        let mut firsts: HashSet<Key> = sets.matching(which).collect();
        let all: Vec<(Key, Arc<Entry>, bool)> = pages
            .iter()
            .map(|(key, entry)| {
                let matches = which.matches(&key, Some((entry.stored.account, entry.stored.operation)));
                if matches {
                    firsts.extend(entry.stored.result_set.map(|result_set| result_set.first));
                }
                (*key, entry, matches)
            })
            .collect();
        self.flights.purge(at, |key, flight| {
            which.matches(key, Some((flight.account, flight.operation)))
                || firsts.contains(key)
                || flight.set.is_some_and(|set| firsts.contains(&set.first))
        });
        if let Some(lock) = &self.fill_lock {
            lock.purge(which, at);
        }
        sets.purge(|first| firsts.contains(first));
        self.jobs.purge(which);
        let goes = |entry: &Entry| entry.stored.result_set.is_some_and(|result_set| firsts.contains(&result_set.first));
        let marked = all.into_iter().filter(|(_, entry, matches)| *matches || goes(entry));
        (marked.map(|(key, entry, _)| (key, entry)).collect(), firsts)
    }

    /// Removes those that are still there, and returns how many. A few at a time, so that inserts wait only shortly.
    fn remove_purged(&self, marked: &[(Key, Arc<Entry>)]) -> u64 {
        const AT_ONCE: usize = 64;
        let mut removed = 0;
        for some in marked.chunks(AT_ONCE) {
            let _changing = self.changing();
            for (key, entry) in some {
                // An entry that has replaced it was requested after the purge.
                if self.memory.pages.get(key).is_some_and(|there| Arc::ptr_eq(&there, entry)) {
                    self.memory.pages.invalidate(key);
                    removed += 1;
                }
            }
        }
        removed
    }
}
