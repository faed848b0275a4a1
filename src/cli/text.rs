//! Makes texts from other sources safe for a terminal.
//!
//! The names of conversations, participants and operators come from clients. Written to a terminal unchanged, such a
//! text could move the cursor, change the title, or show its letters in a different order.

use std::borrow::Cow;
use std::fmt::Write;

use serde_json::Value as Json;

/// Whether this character controls a terminal, or changes the order of the text around it.
pub(super) fn steers(c: char) -> bool {
    // Marks, embeddings, overrides and isolates of the bidirectional algorithm; line and paragraph separators; the byte
    // order mark.
    c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}'
        )
}

/// Appends a character in JSON's escaped form. The characters that [`steers`] accepts have one UTF-16 unit each.
pub(super) fn push_escaped(out: &mut String, c: char) {
    match c {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        // Writing to a string does not fail.
        c => drop(write!(out, "\\u{:04x}", u32::from(c))),
    }
}

/// The same text with an escape in place of every character that [`steers`] accepts.
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

/// The same text on one line, without the characters that [`steers`] accepts.
pub(super) fn plain(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || steers(c)).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

/// What an error says, on one line: the message of the data plane, of Twilio or of the admin plane. The whole text if it
/// is none of these.
pub(super) fn error_message(body: &[u8]) -> String {
    let error: Json = serde_json::from_slice(body).unwrap_or_default();
    match error["message"].as_str().or(error["error"].as_str()) {
        Some(message) => plain(message),
        None => plain(&String::from_utf8_lossy(body)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn control_characters_become_visible() {
        assert_eq!(harmless("Zoë \u{1b}[31m\u{202e}txt\u{9b}\n"), "Zoë \\u001b[31m\\u202etxt\\u009b\\n");
        assert!(matches!(harmless("שלום 👩‍👩‍👧 é"), Cow::Borrowed(_)));
        assert_eq!(plain("{\"a\":\x1b[1m1}\n\r\n b\u{202e}c"), "{\"a\": [1m1} b c");
    }

    #[test]
    fn an_error_is_reduced_to_its_message() {
        assert_eq!(error_message(br#"{"code":20404,"message":"not\n here"}"#), "not here");
        assert_eq!(
            error_message(br#"{"error":"the admin plane has no such path"}"#),
            "the admin plane has no such path"
        );
        assert_eq!(error_message(b"<html>\nno \xff"), "<html> no \u{fffd}");
        assert_eq!(error_message(br#"{"message":1}"#), r#"{"message":1}"#);
        assert_eq!(error_message(b""), "");
    }

    proptest! {
        #[test]
        fn no_control_character_is_left(text in "\\PC*|.*") {
            prop_assert!(!harmless(&text).contains(steers));
            prop_assert!(!plain(&text).contains(steers));
        }
    }
}
