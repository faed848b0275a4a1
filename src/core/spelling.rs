//! Edit distances between words, to suggest what a user probably meant.

/// How many edits a suggestion may be away from a written word of `length` letters: one for every three letters, with a
/// minimum of one and a maximum of three.
pub const fn reach(length: usize) -> usize {
    match length / 3 {
        0 => 1,
        3.. => 3,
        edits => edits,
    }
}

/// The number of edits between `written` and `word`, if it is at most `reach`.
pub fn edits_within(reach: usize, written: &str, word: &str) -> Option<usize> {
    // The difference in length is a lower bound of the distance. This avoids the full comparison for most words.
    let is_near = written.chars().count().abs_diff(word.chars().count()) <= reach;
    is_near.then(|| edits(written, word)).filter(|edits| *edits <= reach)
}

/// Insertions, deletions, replacements and swaps of neighbours between two words (the optimal string alignment distance).
fn edits(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut before = vec![0; to.len() + 1];
    let mut last: Vec<usize> = (0..=to.len()).collect();
    for i in 1..=from.len() {
        let mut row = vec![i; to.len() + 1];
        for j in 1..=to.len() {
            let replace = last[j - 1] + usize::from(from[i - 1] != to[j - 1]);
            row[j] = replace.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_typing_errors() {
        assert_eq!(edits("listen", "listen"), 0);
        assert_eq!(edits("listne", "listen"), 1);
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("capasity", "capacity"), 1);
    }

    #[test]
    fn distances_beyond_the_reach_are_not_counted() {
        assert_eq!([0, 2, 3, 5, 6, 9, 80].map(reach), [1, 1, 1, 1, 2, 3, 3]);
        assert_eq!(edits_within(1, "listne", "listen"), Some(1));
        assert_eq!(edits_within(1, "lisnet", "listen"), None);
        assert_eq!(edits_within(3, "list", "listening"), None);
    }
}
