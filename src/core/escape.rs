//! Characters that must not appear unescaped in a log: they move a terminal's cursor, change the direction of the text
//! around them, or are invisible. Clients choose some of the text that is logged.

use std::borrow::Cow;
use std::fmt::{self, Write};

/// Whether this character must be escaped. Line feeds and tabs must be.
pub fn is_unsafe(character: char) -> bool {
    matches!(
        character,
        // C0, DEL and C1: a terminal takes U+009B for the start of a command.
        '\0'..='\x1f' | '\x7f'..='\u{9f}'
        // Invisible: soft hyphen, Mongolian vowel separator, zero-width characters, joiners, byte order mark.
        | '\u{ad}' | '\u{180e}' | '\u{200b}'..='\u{200d}' | '\u{2060}'..='\u{2065}' | '\u{feff}'
        // Directions (UAX #9): the text reads differently from what it is.
        | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{206f}'
        // Line and paragraph separators.
        | '\u{2028}' | '\u{2029}'
        // Interlinear annotation, non-characters, and tags.
        | '\u{fff9}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}' | '\u{e0000}'..='\u{e007f}'
    )
}

/// Writes a character in the escaped form of JSON, which a person can read: `\u009b`.
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

/// Text that is safe to print on a terminal. Lines and tabs stay, and so do colours if the text has its own.
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

/// Bytes of the colour sequence (ECMA-48 SGR) at the beginning of the text; 0 if there is none.
fn colour(text: &str) -> usize {
    let parameters = text.strip_prefix("\x1b[").unwrap_or_default();
    let end = parameters.bytes().position(|byte| !matches!(byte, b'0'..=b'9' | b';'));
    end.filter(|end| parameters.as_bytes()[*end] == b'm').map_or(0, |end| end + 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_letters_are_not() {
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
