//! Purges: in memory, in the tiers, and of the flights under way.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Store;
use crate::cache::entry::Entry;
use crate::cache::memory::Memory;
use crate::cache::purge::{Purge, Purged};
use crate::cache::tier::{Lasted, Replaced};
use crate::core::clock::{Instant, Moment};
use crate::request::key::Key;

impl Store {
    /// Drops pages, and with each the rest of its result set. Flights under way for them still answer those who wait,
    /// but their responses are not kept, and no caller joins them. With a disk tier the purge is on the disk when this
    /// returns.
    ///
    /// Blocks for as long as the disk takes: do not call it on an async worker thread.
    pub fn purge(&self, which: &Purge) -> Purged {
        self.purge_as_of(which, None)
    }

    /// The same for a purge of another replica, which came at this moment. What a flight brings that has called upstream
    /// since then is new.
    pub(crate) fn purge_before(&self, which: &Purge, at: Moment) -> Purged {
        self.purge_as_of(which, Some(at))
    }

    fn purge_as_of(&self, which: &Purge, at: Option<Moment>) -> Purged {
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
        let Lasted { not_lasting, shared } = lasting.map(|lasting| lasting()).unwrap_or_default();
        Purged { pages, not_lasting, shared }
    }

    /// The first pages of the result sets in which `which` matches a page.
    pub(crate) fn first_pages(&self, which: &Purge) -> HashSet<Key> {
        self.memory.sets.matching(which).collect()
    }

    /// Drops the page under `key`, and the rest of its result set, if it was requested before `cutoff`: another replica
    /// has a newer one. Blocks like [`purge`](Self::purge).
    pub(crate) fn outdate(&self, key: &Key, cutoff: Instant) {
        let Memory { pages, sets } = &self.memory;
        let there = pages.get(key);
        if there.as_ref().is_some_and(|there| there.asked >= cutoff) {
            return;
        }
        // A purge visits all pages, and most replicas have nothing of what another one replaces.
        let has_none = there.is_none() && !sets.has(key) && !self.flights.is_under_way(key);
        match self.tier() {
            None if has_none => {}
            Some(tier) if has_none => {
                // The disk may have what memory has evicted.
                tier.remove(&Replaced { account: &"".into(), asked: cutoff }, &mut || vec![*key]);
            }
            _ => {
                self.purge(&Purge::Key(key.to_string()));
            }
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
                let matches = which.matches(&key, Some((&entry.stored.account, entry.stored.operation)));
                if matches {
                    firsts.extend(entry.stored.result_set.map(|result_set| result_set.first));
                }
                (*key, entry, matches)
            })
            .collect();
        self.flights.purge(at, |key, flight| {
            which.matches(key, Some((&flight.account, flight.operation)))
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
