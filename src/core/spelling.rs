//! Words that are nearly the same: what somebody probably meant who wrote another one.

/// How many edits away a word may be that somebody meant who wrote one of `length` letters: one for every three letters,
/// at least one and at most three.
pub const fn reach(length: usize) -> usize {
    match length / 3 {
        0 => 1,
        3.. => 3,
        edits => edits,
    }
}

/// How many edits `written` is away from `word`, if they are no more than `reach`.
pub fn edits_within(reach: usize, written: &str, word: &str) -> Option<usize> {
    // Each letter that one of them has more than the other is an edit. This spares most words the comparison.
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
    fn counts_slips_of_the_pen() {
        assert_eq!(edits("listen", "listen"), 0);
        assert_eq!(edits("listne", "listen"), 1);
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("capasity", "capacity"), 1);
    }

    #[test]
    fn only_what_is_near_is_counted() {
        assert_eq!([0, 2, 3, 5, 6, 9, 80].map(reach), [1, 1, 1, 1, 2, 3, 3]);
        assert_eq!(edits_within(1, "listne", "listen"), Some(1));
        assert_eq!(edits_within(1, "lisnet", "listen"), None);
        assert_eq!(edits_within(3, "list", "listening"), None);
    }
}
