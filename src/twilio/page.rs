//! What the gateway reads of a response: that it is JSON, and the token of the next page.
//!
//! Apart from the network, reading the response is most of the cost of a miss. Nearly all responses are one object in
//! one line of ASCII without escapes. A fast reader that handles only this form reads those. If it does not accept a
//! body, `serde_json` decides whether it is JSON.

use memchr::{memchr, memmem};
use serde::Deserialize;
use serde::de::IgnoredAny;

/// What a response says about its pages.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// The token of the next page.
    pub next_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    next_token: Option<String>,
}

impl Envelope {
    /// For a body that is JSON from beginning to end; `None` for any other.
    pub fn read(body: &[u8]) -> Option<Self> {
        let Some(meta) = skim(body) else { return Self::read_patiently(body) };
        // A `meta` with another structure is ignored.
        let meta = meta.and_then(|meta| serde_json::from_slice::<Option<Meta>>(meta).ok().flatten());
        Some(Self { next_token: meta.and_then(|meta| meta.next_token) })
    }

    fn read_patiently(body: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Answer {
            meta: Option<Meta>,
        }
        // serde_json does not check the encoding of what it skips.
        let text = std::str::from_utf8(body).ok()?;
        match serde_json::from_str::<Answer>(text) {
            Ok(answer) => Some(Self { next_token: answer.meta.and_then(|meta| meta.next_token) }),
            // The fast reader does not handle it, but it may still be JSON.
            Err(_) => serde_json::from_str::<IgnoredAny>(text).ok().map(|_| Self::default()),
        }
    }
}

/// The tokens of the pages before and after, in the body of a page.
pub fn tokens(body: &[u8]) -> impl Iterator<Item = String> + use<> {
    let neighbours = Neighbours::read(body).unwrap_or_default();
    [neighbours.next_token, neighbours.previous_token].into_iter().flatten().filter(|token| !token.is_empty())
}

/// The token of the page before this one, if the body has one.
pub fn previous_token(body: &[u8]) -> Option<String> {
    // First pages have none, and need not be parsed.
    memmem::find(body, b"previousToken")?;
    Neighbours::read(body)?.previous_token.filter(|token| !token.is_empty())
}

/// The `meta` of a page.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Neighbours {
    next_token: Option<String>,
    previous_token: Option<String>,
}

impl Neighbours {
    fn read(body: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Page {
            meta: Neighbours,
        }
        serde_json::from_slice::<Page>(body).ok().map(|page| page.meta)
    }
}

/// The `meta` of an object in the form in which Twilio writes it: printable ASCII, no escapes, no white space but
/// spaces, at most 63 levels, one `meta`. `None` for anything else.
fn skim(text: &[u8]) -> Option<Option<&[u8]>> {
    // Without branches, so that the compiler can test many bytes at a time.
    let is_plain = text.iter().fold(true, |plain, byte| plain & (b' '..=b'~').contains(byte) & (*byte != b'\\'));
    if !is_plain || text.first() != Some(&b'{') {
        return None;
    }
    let mut skim = Skim { text, at: 0, open: 1, meta: None, meta_end: None };
    loop {
        // The next thing must be a value. A value that has not ended contains others; one that has may also be the last
        // of its container.
        let mut ended = skim.value()?;
        while ended {
            if skim.open == 1 {
                let meta = skim.meta.zip(skim.meta_end).and_then(|(from, to)| text.get(from..to));
                return skim.token().is_none().then_some(meta);
            }
            ended = skim.is_last()?;
        }
    }
}

struct Skim<'a> {
    text: &'a [u8],
    at: usize,
    /// A bit for each open array (0) and object (1), after a leading 1.
    open: u64,
    /// The offset of the value of the outermost object's `meta`.
    meta: Option<usize>,
    meta_end: Option<usize>,
}

/// Only the outermost object is open.
const OUTERMOST: u64 = 0b11;

// Inlined, because most of these are called hundreds of times for each response.
impl Skim<'_> {
    /// Reads a value to its end, or into its first member or element. Returns whether it has ended.
    #[inline(always)]
    fn value(&mut self) -> Option<bool> {
        match self.token()? {
            b'"' => self.string()?,
            b'{' => {
                self.push(1)?;
                match self.token()? {
                    b'}' => self.open >>= 1,
                    b'"' => return self.name().map(|()| false),
                    _ => return None,
                }
            }
            b'[' => {
                self.push(0)?;
                if self.token()? != b']' {
                    self.at -= 1;
                    return Some(false);
                }
                self.open >>= 1;
            }
            b't' => self.word(b"rue")?,
            b'f' => self.word(b"alse")?,
            b'n' => self.word(b"ull")?,
            first => self.number(first)?,
        }
        Some(true)
    }

    /// After a value: reads to the next one, or past the end of the container whose last value it was.
    #[inline(always)]
    fn is_last(&mut self) -> Option<bool> {
        if self.open == OUTERMOST && self.meta_end.is_none() {
            self.meta_end = self.meta.map(|_| self.at);
        }
        match (self.token()?, self.open & 1) {
            (b',', 0) => Some(false),
            (b',', _) if self.token()? == b'"' => self.name().map(|()| false),
            (b'}', 1) | (b']', 0) => {
                self.open >>= 1;
                Some(true)
            }
            _ => None,
        }
    }

    /// Reads a member's name after its first quote, and the colon.
    #[inline(always)]
    fn name(&mut self) -> Option<()> {
        let from = self.at;
        self.string()?;
        let is_meta = self.open == OUTERMOST && self.text.get(from..self.at) == Some(b"meta\"");
        if self.token()? != b':' || (is_meta && self.meta.is_some()) {
            return None;
        }
        if is_meta {
            self.meta = Some(self.at);
        }
        Some(())
    }

    fn push(&mut self, is_object: u64) -> Option<()> {
        let has_room = self.open >> 63 == 0;
        self.open = self.open << 1 | is_object;
        has_room.then_some(())
    }

    /// The next byte that is not a space.
    #[inline(always)]
    fn token(&mut self) -> Option<u8> {
        loop {
            let byte = self.peek()?;
            self.at += 1;
            if byte != b' ' {
                return Some(byte);
            }
        }
    }

    #[inline(always)]
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn word(&mut self, rest: &[u8]) -> Option<()> {
        let is_word = self.text.get(self.at..)?.starts_with(rest);
        self.at += rest.len();
        is_word.then_some(())
    }

    /// Reads a string after its first quote, up to and including the last.
    #[inline(always)]
    fn string(&mut self) -> Option<()> {
        self.at += memchr(b'"', self.text.get(self.at..)?)? + 1;
        Some(())
    }

    /// Reads a number after its `first` byte (RFC 8259 section 6).
    #[inline(always)]
    fn number(&mut self, first: u8) -> Option<()> {
        let first = if first == b'-' { self.byte()? } else { first };
        match first {
            b'0' => {}
            b'1'..=b'9' => self.digits(),
            _ => return None,
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.some_digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.some_digits()?;
        }
        Some(())
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    #[inline(always)]
    fn some_digits(&mut self) -> Option<()> {
        let from = self.at;
        self.digits();
        (self.at > from).then_some(())
    }

    #[inline(always)]
    fn digits(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A response as Twilio writes it, with every kind of value.
    const USUAL: &str = r#"{"meta":{"key":"data","pageSize":2,"nextToken":"eyJ0IjoxfQ=="},"data":[{"Count":0,"Average":-12.50e+3},{"Count":17,"Names":[],"More":{}},[[true],[false,null]],"the last one"]}"#;

    fn token(text: &str) -> Option<String> {
        Envelope::read(text.as_bytes()).unwrap().next_token
    }

    #[test]
    fn usual_responses_are_read_fast() {
        let spaced = USUAL.replace(',', ", ").replace(':', ": ") + "  ";
        for text in [USUAL, &spaced, "{}", r#"{"meta":null}"#, r#"{"meta":"x","a":1}"#, r#"{"a":{"meta":{"meta":1}}}"#]
        {
            assert!(skim(text.as_bytes()).is_some(), "{text}");
        }
        for text in [USUAL, &spaced] {
            assert_eq!(token(text).as_deref(), Some("eyJ0IjoxfQ=="), "{text}");
        }
    }

    #[test]
    fn other_json_is_read_too() {
        let more = USUAL.replace("data", "d\\u00e4ta");
        for text in [&more, &USUAL.replace("last", "läst"), &USUAL.replace(',', ",\n"), &format!("\t{USUAL}")] {
            assert_eq!(skim(text.as_bytes()), None, "{text}");
            assert_eq!(token(text).as_deref(), Some("eyJ0IjoxfQ=="), "{text}");
        }
        let deep = format!(r#"{{"a":{}{},"meta":{{"nextToken":"deep"}}}}"#, "[".repeat(100), "]".repeat(100));
        assert_eq!(token(&deep).as_deref(), Some("deep"));
        for text in [
            "[]",
            "1",
            "\"x\"",
            r#"{"meta":[]}"#,
            r#"{"meta":{"nextToken":7}}"#,
            r#"{"meta":1,"meta":{"nextToken":"x"}}"#,
            r#"{"data":{"meta":{"nextToken":"x"}}}"#,
            r#"[{"meta":{"nextToken":"x"}}]"#,
        ] {
            assert_eq!(token(text), None, "{text}");
        }
    }

    #[test]
    fn other_bodies_are_refused() {
        for end in 0..USUAL.len() {
            assert_eq!(Envelope::read(&USUAL.as_bytes()[..end]), None, "{}", &USUAL[..end]);
        }
        for text in [
            r#"{"a":01}"#,
            r#"{"a":1.}"#,
            r#"{"a":.1}"#,
            r#"{"a":1e}"#,
            r#"{"a":-}"#,
            r#"{"a":+1}"#,
            r#"{"a":1 2}"#,
            r#"{"a":1,}"#,
            r#"{,}"#,
            r#"{"a"}"#,
            r#"{"a",1}"#,
            r#"{"a":1]"#,
            r#"{"a":[1}"#,
            r#"{"a":[1,]}"#,
            r#"{"a":[,1]}"#,
            r#"{"a":nul}"#,
            r#"{"a":nulls}"#,
            r#"{"a":'b'}"#,
            r#"{1:2}"#,
            r#"{}{}"#,
            r#"{}]"#,
            "{\"a\":\"\n\"}",
            "{\"a\":\"\u{1}\"}",
            "<html>",
        ] {
            assert_eq!(Envelope::read(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Envelope::read(b"{\"a\":\"\xff\"}"), None);
    }

    /// Text that is nearly JSON.
    fn nearly_json() -> impl Strategy<Value = String> {
        let bits = [
            "{",
            "}",
            "[",
            "]",
            ":",
            ",",
            " ",
            "\"meta\":",
            "\"nextToken\":",
            "\"a\":",
            "\"a\"",
            "\"a long string\"",
            "\"",
            "\\",
            "1",
            "-0",
            "12.5e-3",
            "0",
            ".",
            "true",
            "false",
            "null",
            "n",
            "\n",
            "é",
        ];
        prop::collection::vec(prop::sample::select(bits.to_vec()), 0..12)
            .prop_map(|bits| bits.concat())
            .prop_flat_map(|text| prop_oneof![Just(text.clone()), Just(format!("{{\"a\":{text}}}"))])
    }

    /// A response with one byte replaced.
    fn damaged() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![prop::sample::select(b"{}[],:\" \\0e.-t".to_vec()), any::<u8>()];
        (0..USUAL.len(), byte).prop_map(|(at, byte)| {
            let mut text = USUAL.as_bytes().to_vec();
            text[at] = byte;
            text
        })
    }

    proptest! {
        #[test]
        fn the_fast_reader_agrees_with_serde_json(text in nearly_json()) {
            prop_assert_eq!(Envelope::read(text.as_bytes()), Envelope::read_patiently(text.as_bytes()), "{}", text);
        }

        #[test]
        fn both_readers_notice_the_same_damage(text in damaged()) {
            prop_assert_eq!(Envelope::read(&text), Envelope::read_patiently(&text), "{}", text.escape_ascii());
        }
    }
}
