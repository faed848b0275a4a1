//! Looks for several byte strings at once, in one pass over a text, and keeps no copy of them that is not wiped.
//!
//! The text is sampled. If every string has at least `n` bytes, then one that occurs in the text covers one of the samples
//! of [`SAMPLE`] bytes that are `n - SAMPLE + 1` bytes apart. A sample that is not part of a string, as nearly all are,
//! takes one look at a bit. So a text costs less the longer the shortest string is, and its content hardly matters: each
//! sample is compared at most with those places of the strings that have the same bytes.

use std::sync::Arc;

use zeroize::Zeroizing;

/// A string to look for.
pub(super) type Form = Arc<Zeroizing<Vec<u8>>>;

/// The bytes of a sample. Strings that are shorter are not found.
pub(super) const SAMPLE: usize = 4;

/// Bits of the filter for each place in a string. Of 64 samples that are not part of a string, one passes.
const BITS: usize = 64;

/// What to look for.
pub(super) struct Search {
    forms: Vec<Form>,
    /// From one sample of a text to the next.
    step: usize,
    /// A bit for each hash. It is set if a place has it.
    filter: Zeroizing<Vec<u64>>,
    /// All places that a sample can be of, sorted.
    places: Zeroizing<Vec<Place>>,
}

/// The bytes at a place, the string that it is in, and its offset there.
type Place = (u32, usize, usize);

impl Search {
    /// For any of `forms`.
    pub(super) fn new(forms: Vec<Form>) -> Self {
        let shortest = forms.iter().map(|form| form.len()).min().unwrap_or_default();
        let step = (shortest + 1).saturating_sub(SAMPLE).max(1);
        // As large as it gets, so that nothing is left behind in a smaller buffer.
        let mut places = Zeroizing::new(Vec::with_capacity(forms.len() * step));
        for (number, form) in forms.iter().enumerate() {
            let samples = form.windows(SAMPLE).take(step).filter_map(<[u8]>::first_chunk);
            places.extend(samples.enumerate().map(|(offset, sample)| (u32::from_le_bytes(*sample), number, offset)));
        }
        places.sort_unstable();
        let words = (places.len() * BITS).next_power_of_two() / 64;
        let mut search = Self { forms, step, filter: Zeroizing::new(vec![0; words.max(1)]), places };
        for number in 0..search.places.len() {
            let (word, bit) = search.bit(search.places[number].0);
            search.filter[word] |= bit;
        }
        search
    }

    /// Whether one of them is in `text`.
    pub(super) fn finds_in(&self, text: &[u8]) -> bool {
        let mut at = 0;
        while let Some(sample) = text.get(at..).and_then(<[u8]>::first_chunk) {
            let sample = u32::from_le_bytes(*sample);
            let (word, bit) = self.bit(sample);
            if self.filter[word] & bit != 0 && self.is_around(text, at, sample) {
                return true;
            }
            at += self.step;
        }
        false
    }

    /// Whether one of them is where `sample` has been found in `text`.
    #[cold]
    fn is_around(&self, text: &[u8], at: usize, sample: u32) -> bool {
        let first = self.places.partition_point(|(bytes, ..)| *bytes < sample);
        let mut same = self.places[first..].iter().take_while(|(bytes, ..)| *bytes == sample);
        same.any(|(_, number, offset)| {
            let from = at.checked_sub(*offset).and_then(|from| text.get(from..));
            from.is_some_and(|text| text.starts_with(&self.forms[*number]))
        })
    }

    /// The word and the bit of the filter for a sample.
    fn bit(&self, sample: u32) -> (usize, u64) {
        // The upper bits of a product depend on all bits of the sample.
        let hash = u64::from(sample).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // The number of words is a power of two.
        ((hash >> 38) as usize & (self.filter.len() - 1), 1 << (hash >> 32 & 63))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn search(forms: &[&[u8]]) -> Search {
        Search::new(forms.iter().map(|form| Arc::new(Zeroizing::new(form.to_vec()))).collect())
    }

    #[test]
    fn a_string_is_found_wherever_it_is() {
        let forms: [&[u8]; 3] = [b"0123456789", b"aaaaaaaaaaaaax", b"abcabcabcabcabcabc"];
        let search = search(&forms);
        for form in forms {
            for before in 0..40 {
                for behind in 0..40 {
                    let text = |form: &[u8]| [&vec![b'a'; before], form, &vec![b'a'; behind]].concat();
                    assert!(search.finds_in(&text(form)), "{before} {behind}");
                    assert!(!search.finds_in(&text(&form[..form.len() - 1])), "{before} {behind}");
                }
            }
        }
    }

    #[test]
    fn nothing_is_found_of_nothing() {
        let none = search(&[]);
        assert!(!none.finds_in(b"") && !none.finds_in(b"some text"));
        let one = search(&[b"a string"]);
        assert!(!one.finds_in(b"") && !one.finds_in(b"a") && !one.finds_in(b"a strin"));
    }

    #[test]
    fn a_sample_is_compared_with_the_places_that_have_its_bytes() {
        // Text that is nearly all of a secret, again and again, and a secret of one byte.
        let (secret, same) = ("0Kq7xV2mBn9cLd4hTz1sYw8jRf5gPe3u", "a".repeat(32));
        for (secret, nearly) in [(secret, &secret[..31]), (same.as_str(), &same[..31])] {
            let search = search(&[secret.as_bytes()]);
            let compared = |sample: u32| search.places.iter().filter(|(bytes, ..)| *bytes == sample).count();
            let text = format!("{nearly}-").repeat(1000);
            let samples = text.as_bytes().windows(SAMPLE).step_by(search.step).filter_map(<[u8]>::first_chunk);
            let compared: usize = samples.map(|sample| compared(u32::from_le_bytes(*sample))).sum();
            assert!(!search.finds_in(text.as_bytes()));
            assert!(compared <= text.len(), "at most one comparison for each byte, but {compared}");
        }
    }

    /// Strings and texts of few different bytes, so that they have much in common.
    fn bytes(length: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(b"ab".to_vec()), length)
    }

    proptest! {
        #[test]
        fn it_finds_what_a_simple_search_finds(
            forms in prop::collection::vec(bytes(SAMPLE..16), 0..4),
            text in bytes(0..200),
        ) {
            let simple = forms.iter().any(|form| text.windows(form.len()).any(|window| window == form.as_slice()));
            let forms: Vec<&[u8]> = forms.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(search(&forms).finds_in(&text), simple);
        }

        #[test]
        fn it_finds_a_string_in_random_bytes(
            forms in prop::collection::vec(prop::collection::vec(any::<u8>(), SAMPLE..100), 1..12),
            before in prop::collection::vec(any::<u8>(), 0..200),
            behind in prop::collection::vec(any::<u8>(), 0..200),
            which in any::<prop::sample::Index>(),
        ) {
            let text = [before.as_slice(), which.get(&forms).as_slice(), &behind].concat();
            let forms: Vec<&[u8]> = forms.iter().map(Vec::as_slice).collect();
            prop_assert!(search(&forms).finds_in(&text));
        }
    }
}
