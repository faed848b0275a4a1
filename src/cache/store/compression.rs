//! Compresses the bodies of stored responses in the background.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Store;
use crate::cache::entry::Entry;
use crate::core::clock::{Clock, Moment};
use crate::request::key::Key;
use crate::request::response::CodedBody;

impl Store {
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
        self.evict_after(weight);
    }
}
