//! The pages that other replicas have replaced lately. A look-up that began before that must not put an older page into
//! memory.

use std::collections::HashMap;

use crate::request::key::Key;

/// How many changes there were when a look-up began. What it finds may be used only if no later change is about it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LookupSnapshot {
    pub(super) purges: u64,
    pub(super) batches: u64,
}

/// The pages of the newest batches, each with the number of its last batch.
#[derive(Debug, Default)]
pub(super) struct RecentReplacements {
    batches: u64,
    last: HashMap<Key, u64>,
}

impl RecentReplacements {
    /// Pages that are remembered.
    const MOST: usize = 4096;

    /// Batches so far.
    pub(super) fn batches(&self) -> u64 {
        self.batches
    }

    /// Adds a batch. `false` if there are too many to be remembered: then every look-up under way may bring one of
    /// them.
    pub(super) fn add<'k>(&mut self, keys: impl Iterator<Item = &'k Key>) -> bool {
        self.batches += 1;
        self.last.extend(keys.map(|key| (*key, self.batches)));
        let fits = self.last.len() <= Self::MOST;
        if !fits {
            self.last.clear();
        }
        fits
    }

    /// Whether this page was replaced after so many batches.
    pub(super) fn has_since(&self, key: &Key, batches: u64) -> bool {
        self.last.get(key).is_some_and(|last| *last > batches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_replaced_later_counts_and_not_for_ever() {
        let key = |n: usize| Key::from_bytes(std::array::from_fn(|at| (n >> (8 * (at % 4))) as u8));
        let mut outdated = RecentReplacements::default();
        assert!(outdated.add([key(1), key(2)].iter()));
        let seen = outdated.batches();
        assert!(outdated.add([key(2)].iter()));
        assert!(outdated.has_since(&key(1), seen - 1) && !outdated.has_since(&key(1), seen));
        assert!(outdated.has_since(&key(2), seen) && !outdated.has_since(&key(3), 0));
        let many: Vec<_> = (0..=RecentReplacements::MOST).map(key).collect();
        assert!(!outdated.add(many.iter()), "too many");
        assert!(!outdated.has_since(&key(2), 0) && outdated.add([key(2)].iter()));
    }
}
