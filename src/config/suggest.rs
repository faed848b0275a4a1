//! Suggestions for misspelled words.

use crate::core::spelling;

/// ` (did you mean …?)` for the word of `words` that `written` is probably a misspelling of, or nothing.
pub(super) fn suggest<'a>(written: &str, words: impl IntoIterator<Item = &'a str>) -> String {
    closest(written, words.into_iter().map(|word| (word, word))).map_or_else(String::new, did_you_mean)
}

pub(super) fn did_you_mean(word: &str) -> String {
    format!(" (did you mean {word}?)")
}

/// The nearest word, if it is so near that it was probably meant.
pub(super) fn closest<'a, T>(written: &str, words: impl Iterator<Item = (&'a str, T)>) -> Option<T> {
    const LONGEST: usize = 80;
    let length = written.chars().count();
    if length > LONGEST {
        return None;
    }
    words
        .filter_map(|(word, meant)| Some((spelling::edits_within(spelling::reach(length), written, word)?, meant)))
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, meant)| meant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_the_nearest_key() {
        assert_eq!(suggest("qery", ["metadata", "query"]), " (did you mean query?)");
        assert_eq!(suggest("everything", ["metadata", "query"]), "");
        assert_eq!(suggest("x", ["on"]), "");
    }
}
