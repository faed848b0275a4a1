//! Pages that have to be removed from the store, because their replacement could not be written there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::pending_page::Announce;
use crate::accounts::Account;
use crate::core::clock::Moment;
use crate::replicas::change_feed::ChangeFeed;
use crate::request::key::Key;

/// Removals that may wait.
const CAPACITY: usize = 16_384;

/// The removals that wait, by the keys under which the store may have a replaced page.
#[derive(Debug, Clone, Default)]
pub(super) struct PendingRemovals(Arc<Mutex<HashMap<Key, Removal>>>);

/// A removal: of a page that was requested no later than `asked`.
#[derive(Debug, Clone)]
pub(super) struct Removal {
    pub(super) account: Arc<Account>,
    pub(super) asked: Moment,
    pub(super) announce: Announce,
}

impl PendingRemovals {
    /// Adds keys. If there are too many to know them one by one, everything in the store is outdated.
    pub(super) fn add(
        &self,
        account: &Arc<Account>,
        keys: impl IntoIterator<Item = Key>,
        asked: Moment,
        announce: Announce,
        feed: &ChangeFeed,
    ) {
        let mut pending_removals = self.lock();
        for key in keys {
            let new = || Removal { account: Arc::clone(account), asked, announce };
            let removal = pending_removals.entry(key).or_insert_with(new);
            (removal.asked, removal.announce) = (removal.asked.max(asked), removal.announce.max(announce));
        }
        if pending_removals.len() > CAPACITY {
            pending_removals.clear();
            drop(pending_removals);
            feed.outdate_store();
        }
    }

    /// Some of them, other ones each time: one that cannot be removed must not hold up the others.
    pub(super) fn some(&self) -> Vec<(Key, Removal)> {
        const AT_ONCE: usize = 256;
        let pending_removals = self.lock();
        let skipped = fastrand::usize(..pending_removals.len().max(1));
        let some = pending_removals.iter().skip(skipped).chain(pending_removals.iter().take(skipped)).take(AT_ONCE);
        some.map(|(key, removal)| (*key, removal.clone())).collect()
    }

    /// It is removed, unless it was replaced once more meanwhile.
    pub(super) fn done(&self, key: &Key, asked: Moment) {
        let mut pending_removals = self.lock();
        if pending_removals.get(key).is_some_and(|removal| removal.asked <= asked) {
            pending_removals.remove(key);
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Removal>> {
        // Every change under this lock is one insertion or removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
