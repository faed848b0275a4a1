//! Puts responses into memory and its tiers, and removes those that must not be served beside them.

use std::sync::Arc;

use super::Store;
use super::replacements::{LookupSnapshot, RecentReplacements};
use super::unstored::UnstoredResponse;
use crate::accounts::AccountId;
use crate::cache::entry::Entry;
use crate::cache::flight::Lease;
use crate::cache::memory::Memory;
use crate::cache::sets::{Membership, ResultSet};
use crate::cache::stored::StoredResponse;
use crate::cache::tier::{Candidate, InsertOutcome, Replacement};
use crate::core::clock::Instant;
use crate::request::key::Key;
use crate::twilio::endpoint::Operation;

/// Whether the further pages of a new first page can be distinguished from those of the `old` one. If the first tokens
/// differ, all are assumed to differ. Where a later one does not, its page is dropped then.
fn is_apart(next: Option<Key>, old: Option<&Entry>) -> bool {
    next.is_none() || old.is_some_and(|old| old.stored.next.is_some() && old.stored.next != next)
}

impl Store {
    /// Keeps the response of a flight. Returns whether it did. It does not keep a response that was requested before a
    /// purge of it, that is too large, or to which the present entry does not yield.
    pub(crate) fn insert(&self, key: Key, entry: Entry, lease: &Lease, yields: impl Fn(&Arc<Entry>) -> bool) -> bool {
        let entry = Arc::new(entry);
        let weight = u64::from(entry.weight());
        let mut keep = || {
            let _changing = self.changing();
            if self.is_too_large(weight) || lease.is_outdated() {
                let is_success = entry.stored.representation.status.is_success();
                let removed = if is_success { self.displace(key, &UnstoredResponse::of(key, &entry)) } else { vec![] };
                return InsertOutcome { kept: false, removed };
            }
            let old = self.memory.get(&key);
            if old.as_ref().is_some_and(|old| !yields(old)) || self.is_misplaced(&entry) {
                return InsertOutcome { kept: false, removed: vec![] };
            }
            let removed = self.keep_set(key, &entry, old.as_deref());
            self.memory.pages.insert(key, Arc::clone(&entry));
            InsertOutcome { kept: true, removed }
        };
        self.put(key, &entry, lease.is_forced(), &mut keep)
    }

    /// Keeps the response of another replica, unless memory has a newer one, or one that is not to be mixed with it.
    /// Returns whether it did. `snapshot` is what [`lookup_snapshot`](Self::lookup_snapshot) returned before the
    /// response was looked up: one that was looked up before a purge, or before it was replaced, may be an older one.
    pub(crate) fn adopt(&self, key: Key, entry: Entry, snapshot: LookupSnapshot) -> bool {
        let entry = Arc::new(entry);
        let mut keep = || {
            let changing = self.changing();
            let old = self.memory.get(&key);
            let first = entry.stored.result_set.map(|set| set.first);
            let is_wanted = self.is_unchanged(&changing, snapshot, [Some(key), first])
                && !self.is_too_large(entry.weight().into())
                && old.as_ref().is_none_or(|old| entry.is_better_than(old))
                && self.is_in_place(key, &entry);
            if !is_wanted {
                return InsertOutcome { kept: false, removed: vec![] };
            }
            let removed = self.keep_set(key, &entry, old.as_deref());
            self.memory.pages.insert(key, Arc::clone(&entry));
            InsertOutcome { kept: true, removed }
        };
        self.put(key, &entry, false, &mut keep)
    }

    /// What a look-up that begins now has seen of the changes.
    pub(crate) fn lookup_snapshot(&self) -> LookupSnapshot {
        let changing = self.changing();
        LookupSnapshot { purges: self.purges(), batches: changing.batches() }
    }

    /// Whether nothing was purged, and none of these pages replaced, since a look-up began.
    fn is_unchanged(&self, outdated: &RecentReplacements, snapshot: LookupSnapshot, pages: [Option<Key>; 2]) -> bool {
        self.purges() == snapshot.purges && !pages.iter().flatten().any(|key| outdated.has_since(key, snapshot.batches))
    }

    /// Gives the page of `key` a place in a result set of another replica, unless it has one in a set that began later.
    pub(crate) fn adopt_place(&self, key: Key, result_set: ResultSet, account: AccountId, snapshot: LookupSnapshot) {
        let changing = self.changing();
        if self.is_unchanged(&changing, snapshot, [Some(key), Some(result_set.first)]) {
            self.memory.sets.restore_next(key, result_set, account);
        }
    }

    /// Whether a result set is known, and its pages may be served.
    pub(crate) fn has_set(&self, result_set: &ResultSet) -> bool {
        self.memory.sets.lives(result_set)
    }

    fn put(&self, key: Key, entry: &Entry, is_forced: bool, keep: &mut dyn FnMut() -> InsertOutcome) -> bool {
        let candidate = Candidate { key, stored: &entry.stored, asked: entry.asked, is_forced };
        let kept = match self.tier() {
            Some(tier) => tier.put(&candidate, keep),
            None => keep().kept,
        };
        if kept {
            self.evict_after(entry.weight().into());
        }
        kept
    }

    /// Whether a response of another replica belongs where it is: a first page to a set that is not older than the
    /// known one, any other page to the set that has its place.
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
            self.memory.sets.begin(result_set, *account, is_apart(*next, old));
        }
        let named = [*next, entry.previous].into_iter().flatten();
        named.filter(|named| self.expect(*named, result_set, *account)).collect()
    }

    /// Gives the page of `key` a place in this set. Returns whether that is new: an older page under the key is then
    /// removed, on the disk too, which may have pages that memory has evicted.
    fn expect(&self, key: Key, result_set: ResultSet, account: AccountId) -> bool {
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
    pub(crate) fn supersede(&self, key: Key, unstored: &UnstoredResponse) {
        let mut displace = || {
            let _changing = self.changing();
            self.displace(key, unstored)
        };
        match self.tier() {
            Some(tier) => {
                tier.remove(&Replacement { account: Some(unstored.account), asked: unstored.asked }, &mut displace);
            }
            None => drop(displace()),
        }
    }

    /// Removes what the tiers behind memory have under `key`, if it was requested before `asked`. Memory keeps it.
    pub(crate) fn remove_from_tiers(&self, key: Key, account: AccountId, asked: Instant) {
        if let Some(tier) = self.tier() {
            tier.remove(&Replacement { account: Some(account), asked }, &mut || vec![key]);
        }
    }

    /// Removes the pages that `unkept` replaces. Returns their keys.
    fn displace(&self, key: Key, unstored: &UnstoredResponse) -> Vec<Key> {
        let old = self.memory.pages.get(&key);
        if old.as_ref().is_some_and(|old| old.asked > unstored.asked || old.stored.made > unstored.made) {
            return vec![];
        }
        let names_the_same = |old: &Arc<Entry>| unstored.next.is_some() && old.stored.next == unstored.next;
        let is_replaced = unstored.is_shared || old.as_ref().is_some_and(names_the_same);
        let mut removed = vec![];
        if let Some(result_set) = unstored.begins {
            if is_replaced {
                self.memory.sets.begin(result_set, unstored.account, is_apart(unstored.next, old.as_deref()));
            }
            removed.extend(unstored.next.filter(|next| self.expect(*next, result_set, unstored.account)));
        }
        if is_replaced {
            self.memory.pages.invalidate(&key);
            removed.push(key);
        }
        removed
    }
}
