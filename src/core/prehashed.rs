//! A hasher for tables whose keys are hashes themselves.

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::RandomState;

/// Hashes only the first eight bytes of each key. The keys must be hashes of one length, in binary or as text. It is seeded
/// at random like the standard hasher, so that nobody can choose keys that share a place.
#[derive(Debug, Clone, Default)]
pub struct Prehashed(RandomState);

impl BuildHasher for Prehashed {
    type Hasher = FirstBytes;

    fn build_hasher(&self) -> FirstBytes {
        FirstBytes(self.0.build_hasher())
    }
}

/// See [`Prehashed`].
pub struct FirstBytes(<RandomState as BuildHasher>::Hasher);

impl Hasher for FirstBytes {
    fn write(&mut self, bytes: &[u8]) {
        match bytes.first_chunk() {
            Some(first) => self.0.write_u64(u64::from_ne_bytes(*first)),
            None => self.0.write(bytes),
        }
    }

    /// The length of a key says nothing: all have the same.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_apart_by_their_first_bytes() {
        let hashes = Prehashed::default();
        let of = |key: [u8; 32]| hashes.hash_one(key);
        assert_eq!(of([1; 32]), of([1; 32]));
        let changed_at = |at: usize| std::array::from_fn(|i| u8::from(i == at));
        let distinct: std::collections::HashSet<_> = (0..8).map(|at| of(changed_at(at))).collect();
        assert_eq!(distinct.len(), 8);
        assert_ne!(of([1; 32]), Prehashed::default().hash_one([1; 32]), "seeded");
    }
}
