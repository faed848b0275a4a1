//! Characters that must not stand raw in a log: they move a terminal's cursor, or turn the text around them, or are not
//! seen at all. Whoever sends a request chooses some of what is logged.

use std::borrow::Cow;
use std::fmt::{self, Write};

/// Must this character not be shown as it is. Line feeds and tabs are among them.
pub fn is_unsafe(character: char) -> bool {
    matches!(
        character,
        // C0, DEL and C1: a terminal takes U+009B for the beginning of a command.
        '\0'..='\x1f' | '\x7f'..='\u{9f}'
        // Seen by nobody: soft hyphen, Mongolian vowel separator, zero-width characters, joiners, byte order mark.
        | '\u{ad}' | '\u{180e}' | '\u{200b}'..='\u{200d}' | '\u{2060}'..='\u{2065}' | '\u{feff}'
        // Directions (UAX #9): what is read is not what is there.
        | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{206f}'
        // Line and paragraph separators.
        | '\u{2028}' | '\u{2029}'
        // Interlinear annotation, what is no character, and tags.
        | '\u{fff9}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}' | '\u{e0000}'..='\u{e007f}'
    )
}

/// Writes such a character as JSON has it, and as a person can read it: `\u009b`.
///
/// # Errors
///
/// When `out` fails.
pub fn write_escaped(out: &mut impl Write, character: char) -> fmt::Result {
    for unit in character.encode_utf16(&mut [0; 2]) {
        write!(out, "\\u{unit:04x}")?;
    }
    Ok(())
}

/// Text as a terminal may be given it. Its lines and tabs stay, and so do its colours if it has any of its own.
pub fn text(text: &str, has_colours: bool) -> Cow<'_, str> {
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~' | b'\n' | b'\t');
    if text.bytes().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let end = match character {
            '\x1b' if has_colours => colour(rest),
            '\n' | '\t' => 1,
            other if is_unsafe(other) => 0,
            other => other.len_utf8(),
        };
        if end == 0 {
            // Writing to a string does not fail.
            let _ = write_escaped(&mut escaped, character);
        }
        escaped.push_str(&rest[..end]);
        rest = &rest[end.max(character.len_utf8())..];
    }
    Cow::Owned(escaped)
}

/// Bytes of the sequence that sets a colour (ECMA-48 SGR) with which the text begins; 0 if it is another or none.
fn colour(text: &str) -> usize {
    let parameters = text.strip_prefix("\x1b[").unwrap_or_default();
    let end = parameters.bytes().position(|byte| !matches!(byte, b'0'..=b'9' | b';'));
    end.filter(|end| parameters.as_bytes()[*end] == b'm').map_or(0, |end| end + 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_or_hides_text_is_escaped_and_letters_are_not() {
        let nasty = "a\u{9b}31m\u{202e}b\u{2028}c\u{feff}\u{e0041}\u{1b}[2J";
        let visible = r"a\u009b31m\u202eb\u2028c\ufeff\udb40\udc41\u001b[2J";
        assert_eq!((text(nasty, false), text(nasty, true)), (visible.into(), visible.into()));
        for plain in ["", "plain\ttext\n", "\u{fc}ml\u{e4}ut", "\u{65e5}\u{672c}", "\u{1f600}", "\u{5d0}"] {
            assert_eq!(text(plain, false), plain);
        }
        assert!(['\n', '\t', '\x7f', '\u{80}', '\u{9f}', '\u{61c}', '\u{2066}', '\u{2069}'].into_iter().all(is_unsafe));
        assert!(!['\u{a0}', ' ', '\u{2010}', '\u{202f}'].into_iter().any(is_unsafe));
    }

    #[test]
    fn colours_stay_where_there_are_any() {
        let coloured = "\u{1b}[2m2026\u{1b}[0m \u{1b}[32;1mINFO\u{1b}[m \u{1b}]0;title\u{7}\u{1b}";
        assert_eq!(
            text(coloured, true),
            "\u{1b}[2m2026\u{1b}[0m \u{1b}[32;1mINFO\u{1b}[m \\u001b]0;title\\u0007\\u001b"
        );
        assert!(!text(coloured, false).contains('\u{1b}'));
    }
}
