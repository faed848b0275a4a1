//! Texts of somebody else's, made harmless for a terminal.
//!
//! What a conversation, a participant or an operator is called is decided by strangers. Written to a terminal as it
//! is, such a text could move the cursor, change the title, or show its letters in another order than they have.

use std::borrow::Cow;
use std::fmt::Write;

/// Does this character steer a terminal, or reorder what stands around it.
pub(super) fn steers(c: char) -> bool {
    // Marks, embeddings, overrides and isolates of the bidirectional algorithm; separators of lines and paragraphs; the
    // byte order mark.
    c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}'
        )
}

/// Appends a character as JSON escapes it. Those that [steer](steers) have one UTF-16 unit each.
pub(super) fn push_escaped(out: &mut String, c: char) {
    match c {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        // Writing to a string does not fail.
        c => drop(write!(out, "\\u{:04x}", u32::from(c))),
    }
}

/// The same text with an escape in place of every character that [steers].
pub(super) fn harmless(text: &str) -> Cow<'_, str> {
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if steers(c) { push_escaped(&mut safe, c) } else { safe.push(c) }
    }
    Cow::Owned(safe)
}

/// The same text on one line, without what [steers].
pub(super) fn plain(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || steers(c)).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_steers_becomes_visible() {
        assert_eq!(harmless("Zoë \u{1b}[31m\u{202e}txt\u{9b}\n"), "Zoë \\u001b[31m\\u202etxt\\u009b\\n");
        assert!(matches!(harmless("שלום 👩‍👩‍👧 é"), Cow::Borrowed(_)));
        assert_eq!(plain("{\"a\":\x1b[1m1}\n\r\n b\u{202e}c"), "{\"a\": [1m1} b c");
    }

    proptest! {
        #[test]
        fn nothing_that_steers_is_left(text in "\\PC*|.*") {
            prop_assert!(!harmless(&text).contains(steers));
            prop_assert!(!plain(&text).contains(steers));
        }
    }
}
