//! Pages that were replaced while they could not be written or removed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::page::Tell;
use crate::accounts::Account;
use crate::core::clock::Moment;
use crate::replicas::change_feed::ChangeFeed;
use crate::request::key::Key;

/// Pages that are remembered until they can be removed.
const MOST_UNWRITTEN: usize = 16_384;

/// Keys under which the store may have what was replaced.
#[derive(Debug, Clone, Default)]
pub(super) struct Unwritten(Arc<Mutex<HashMap<Key, Removal>>>);

/// What has to be removed: what was requested no later than `asked`.
#[derive(Debug, Clone)]
pub(super) struct Removal {
    pub(super) account: Arc<Account>,
    pub(super) asked: Moment,
    pub(super) tell: Tell,
}

impl Unwritten {
    /// Adds keys. If there are too many to know them one by one, everything in the store is outdated.
    pub(super) fn add(
        &self,
        account: &Arc<Account>,
        keys: impl IntoIterator<Item = Key>,
        asked: Moment,
        tell: Tell,
        feed: &ChangeFeed,
    ) {
        let mut unwritten = self.lock();
        for key in keys {
            let new = || Removal { account: Arc::clone(account), asked, tell };
            let removal = unwritten.entry(key).or_insert_with(new);
            (removal.asked, removal.tell) = (removal.asked.max(asked), removal.tell.max(tell));
        }
        if unwritten.len() > MOST_UNWRITTEN {
            unwritten.clear();
            drop(unwritten);
            feed.outdate_store();
        }
    }

    /// Some of them, other ones each time: one that cannot be removed must not hold up the others.
    pub(super) fn some(&self) -> Vec<(Key, Removal)> {
        const AT_ONCE: usize = 256;
        let unwritten = self.lock();
        let skipped = fastrand::usize(..unwritten.len().max(1));
        let some = unwritten.iter().skip(skipped).chain(unwritten.iter().take(skipped)).take(AT_ONCE);
        some.map(|(key, removal)| (*key, removal.clone())).collect()
    }

    /// It is removed, unless it was replaced once more meanwhile.
    pub(super) fn done(&self, key: &Key, asked: Moment) {
        let mut unwritten = self.lock();
        if unwritten.get(key).is_some_and(|removal| removal.asked <= asked) {
            unwritten.remove(key);
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
