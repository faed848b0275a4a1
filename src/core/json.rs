//! A strict JSON reader that keeps what a cache key depends on: the digits of numbers and the spelling of strings.
//!
//! It follows RFC 8259 to the letter, and is stricter where readers disagree: a repeated member name, a lone surrogate
//! and nesting beyond [`MAX_DEPTH`] are refused. When two readers understand one body differently, a cache serves the
//! wrong page. It borrows from its input and does not convert numbers.

use std::fmt;
use std::ops::Range;

/// The deepest nesting of arrays and objects. Twilio's deepest documented body has six levels.
pub const MAX_DEPTH: usize = 64;

/// The most values in one text, arrays and objects included. Twilio's largest documented body has fewer than a hundred.
/// A value takes many times the memory of its shortest text, so a limit in bytes alone would not bound memory.
pub const MAX_VALUES: usize = 100_000;

/// A JSON value that borrows from the text it was read from.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// The digits as they were written.
    Number(&'a str),
    /// A string.
    String(Text<'a>),
    /// An array. Not a `Vec`, which would keep memory for more elements.
    Array(Box<[Value<'a>]>),
    /// Members in the order in which they were written; their names differ.
    Object(Box<[Member<'a>]>),
}

/// A member of an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Member<'a> {
    /// Its name.
    pub name: Text<'a>,
    /// Its value.
    pub value: Value<'a>,
}

/// A string, both as it was spelled and with its escapes resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct Text<'a> {
    raw: &'a str,
    /// `None` where it has no escapes.
    decoded: Option<Box<str>>,
}

impl Text<'_> {
    /// The string, escapes resolved.
    pub fn as_str(&self) -> &str {
        self.decoded.as_deref().unwrap_or(self.raw)
    }

    /// The spelling between the quotes.
    pub fn raw(&self) -> &str {
        self.raw
    }

    /// The offset of its spelling in `source`, the text from which it was read.
    pub fn range_in(&self, source: &[u8]) -> Option<Range<usize>> {
        let start = (self.raw.as_ptr() as usize).checked_sub(source.as_ptr() as usize)?;
        let range = start..start + self.raw.len();
        source.get(range.clone()).is_some_and(|found| found == self.raw.as_bytes()).then_some(range)
    }

    /// Whether any of it was written with an escape.
    pub fn has_escapes(&self) -> bool {
        self.decoded.is_some()
    }
}

impl<'a> Value<'a> {
    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text.as_str()),
            _ => None,
        }
    }

    /// The members of an object.
    pub fn as_object(&self) -> Option<&[Member<'a>]> {
        match self {
            Self::Object(members) => Some(members),
            _ => None,
        }
    }

    /// The elements of an array.
    pub fn as_array(&self) -> Option<&[Value<'a>]> {
        match self {
            Self::Array(elements) => Some(elements),
            _ => None,
        }
    }
}

impl Value<'_> {
    /// Writes it without white space; digits, spelling and order are kept.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.extend_from_slice(b"null"),
            Self::Bool(true) => out.extend_from_slice(b"true"),
            Self::Bool(false) => out.extend_from_slice(b"false"),
            Self::Number(digits) => out.extend_from_slice(digits.as_bytes()),
            Self::String(text) => text.write(out),
            Self::Array(elements) => write_array(out, elements, |out, element| element.write(out)),
            Self::Object(members) => {
                out.push(b'{');
                write_separated(out, members, |out, member| {
                    member.name.write(out);
                    out.push(b':');
                    member.value.write(out);
                });
                out.push(b'}');
            }
        }
    }
}

impl Text<'_> {
    /// Writes it with its quotes, as it was spelled.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.push(b'"');
        out.extend_from_slice(self.raw.as_bytes());
        out.push(b'"');
    }
}

/// Writes an array whose elements `write` writes.
pub fn write_array<T>(out: &mut Vec<u8>, elements: impl IntoIterator<Item = T>, write: impl FnMut(&mut Vec<u8>, T)) {
    out.push(b'[');
    write_separated(out, elements, write);
    out.push(b']');
}

/// Writes items with commas between them.
pub fn write_separated<T>(
    out: &mut Vec<u8>,
    items: impl IntoIterator<Item = T>,
    mut write: impl FnMut(&mut Vec<u8>, T),
) {
    for (i, item) in items.into_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write(out, item);
    }
}

/// Looks a member up by name.
pub fn member<'v, 'a>(members: &'v [Member<'a>], name: &str) -> Option<&'v Value<'a>> {
    members.iter().find(|m| m.name.as_str() == name).map(|m| &m.value)
}

/// Why a text is not acceptable JSON, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonError {
    /// Offset of the offending byte.
    pub at: usize,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What can be wrong with a JSON text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The text ends in the middle of a value.
    Truncated,
    /// A character that is not JSON at this place.
    Unexpected,
    /// More than one value.
    Trailing,
    /// Bytes that are not UTF-8.
    NotUtf8,
    /// Deeper than [`MAX_DEPTH`].
    TooDeep,
    /// A name that the object already has.
    RepeatedName,
    /// A string escape that JSON does not have, or half of a surrogate pair.
    BadEscape,
    /// A number that is not in JSON's form.
    BadNumber,
    /// More than [`MAX_VALUES`].
    TooManyValues,
}

impl JsonError {
    /// The position of the error in the text that was parsed.
    pub fn place(&self, text: &[u8]) -> Position {
        let before = &text[..self.at.min(text.len())];
        Position {
            line: 1 + before.iter().filter(|byte| **byte == b'\n').count(),
            column: 1 + before.iter().rev().take_while(|byte| **byte != b'\n').count(),
        }
    }
}

/// A line and a byte in that line, both counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The byte.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, at byte {}", self.fault, self.at)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "the text ends in the middle of a value",
            Self::Unexpected => "a character that is not allowed here",
            Self::Trailing => "something follows the value",
            Self::NotUtf8 => "bytes that are not UTF-8",
            Self::TooDeep => "nested too deeply",
            Self::RepeatedName => "a member name that the object has already",
            Self::BadEscape => "a bad string escape",
            Self::BadNumber => "a malformed number",
            Self::TooManyValues => "more values than are read",
        })
    }
}

impl std::error::Error for JsonError {}

/// Reads one JSON value that is the whole of `bytes`, with at most [`MAX_VALUES`] values in it.
///
/// # Errors
///
/// When it is not JSON in the strict sense of this module, or has more values.
pub fn parse(bytes: &[u8]) -> Result<Value<'_>, JsonError> {
    parse_within(bytes, MAX_VALUES)
}

/// Reads one JSON value that is the whole of `bytes`, with at most `values` values in it.
///
/// # Errors
///
/// As [`parse`].
pub fn parse_within(bytes: &[u8], values: usize) -> Result<Value<'_>, JsonError> {
    let text =
        std::str::from_utf8(bytes).map_err(|error| JsonError { at: error.valid_up_to(), fault: Fault::NotUtf8 })?;
    let mut reader = Reader { text, at: 0, values };
    let value = reader.value(0)?;
    reader.skip_space();
    match reader.peek() {
        None => Ok(value),
        Some(_) => Err(reader.fault(Fault::Trailing)),
    }
}

/// The most bytes that the value read from `text` takes while it is built: a list that grows takes twice the size of
/// its content. It is computed from the bytes that can begin a value, so that it is known before the value is built.
pub fn built_size(text: &[u8]) -> usize {
    let (mut values, mut members) = (1_usize, 0_usize);
    for byte in text {
        values += usize::from(matches!(byte, b'[' | b',' | b'{'));
        members += usize::from(*byte == b':');
    }
    let values = values.min(MAX_VALUES) * size_of::<Value<'_>>();
    let members = members.min(MAX_VALUES) * size_of::<Member<'_>>();
    2 * (values + members) + text.len()
}

/// A word of eight times this byte.
const fn all(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// Marks the highest bit of the first byte below `limit`, where the lowest byte comes first. The subtraction borrows,
/// so later bytes may be marked as well: their bits mean nothing.
const fn below(word: u64, limit: u8) -> u64 {
    word.wrapping_sub(all(limit)) & !word & all(0x80)
}

/// Marks the highest bit of the first `byte`, like [`below`].
pub(crate) const fn equal(word: u64, byte: u8) -> u64 {
    below(word ^ all(byte), 1)
}

/// The number of bytes before one that has a meaning in a string: a quote, a backslash, or a control character, which
/// is not allowed there. Reads eight bytes at a time.
pub(crate) fn plain_prefix(text: &[u8]) -> usize {
    let (words, rest) = text.as_chunks();
    for (i, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let found = below(word, 0x20) | equal(word, b'"') | equal(word, b'\\');
        if found != 0 {
            return i * 8 + found.trailing_zeros() as usize / 8;
        }
    }
    let plain = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f));
    text.len() - rest.len() + plain.unwrap_or(rest.len())
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    /// How many more values are allowed.
    values: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn fault(&self, fault: Fault) -> JsonError {
        JsonError { at: self.at, fault }
    }

    /// The error for a byte that does not fit.
    fn unexpected(&self) -> JsonError {
        self.fault(if self.at >= self.text.len() { Fault::Truncated } else { Fault::Unexpected })
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> Result<(), JsonError> {
        if self.peek() != Some(byte) {
            return Err(self.unexpected());
        }
        self.at += 1;
        Ok(())
    }

    fn value(&mut self, depth: usize) -> Result<Value<'a>, JsonError> {
        self.skip_space();
        self.values = self.values.checked_sub(1).ok_or_else(|| self.fault(Fault::TooManyValues))?;
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => self.string().map(Value::String),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true", Value::Bool(true)),
            Some(b'f') => self.word("false", Value::Bool(false)),
            Some(b'n') => self.word("null", Value::Null),
            _ => Err(self.unexpected()),
        }
    }

    fn word(&mut self, word: &str, value: Value<'a>) -> Result<Value<'a>, JsonError> {
        for byte in word.bytes() {
            self.take(byte)?;
        }
        Ok(value)
    }

    fn object(&mut self, depth: usize) -> Result<Value<'a>, JsonError> {
        if depth == MAX_DEPTH {
            return Err(self.fault(Fault::TooDeep));
        }
        self.at += 1;
        let mut members = Vec::new();
        self.skip_space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Value::Object(Box::default()));
        }
        loop {
            self.skip_space();
            let name = self.string()?;
            self.skip_space();
            self.take(b':')?;
            let value = self.value(depth + 1)?;
            members.push(Member { name, value });
            self.skip_space();
            if self.peek() == Some(b',') {
                self.at += 1;
                continue;
            }
            self.take(b'}')?;
            return match repeated(&members) {
                None => Ok(Value::Object(members.into())),
                Some(name) => Err(JsonError { at: self.offset(name.raw), fault: Fault::RepeatedName }),
            };
        }
    }

    /// Where the string begins whose part between the quotes is `raw`.
    fn offset(&self, raw: &str) -> usize {
        (raw.as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize + 1)
    }

    fn array(&mut self, depth: usize) -> Result<Value<'a>, JsonError> {
        if depth == MAX_DEPTH {
            return Err(self.fault(Fault::TooDeep));
        }
        self.at += 1;
        let mut elements = Vec::new();
        self.skip_space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::Array(Box::default()));
        }
        loop {
            elements.push(self.value(depth + 1)?);
            self.skip_space();
            if self.peek() == Some(b',') {
                self.at += 1;
                continue;
            }
            self.take(b']')?;
            return Ok(Value::Array(elements.into()));
        }
    }

    fn number(&mut self) -> Result<Value<'a>, JsonError> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.digits()? {
            1 => {}
            _ if self.text.as_bytes()[start..].iter().find(|b| **b != b'-') == Some(&b'0') => {
                return Err(JsonError { at: start, fault: Fault::BadNumber });
            }
            _ => {}
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(Value::Number(&self.text[start..self.at]))
    }

    /// Reads at least one digit. Returns how many.
    fn digits(&mut self) -> Result<usize, JsonError> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        match self.at - start {
            0 if self.at >= self.text.len() => Err(self.fault(Fault::Truncated)),
            0 => Err(self.fault(Fault::BadNumber)),
            n => Ok(n),
        }
    }

    fn string(&mut self) -> Result<Text<'a>, JsonError> {
        self.take(b'"')?;
        let start = self.at;
        self.at += plain_prefix(&self.text.as_bytes()[start..]);
        match self.peek() {
            Some(b'"') => {
                let raw = &self.text[start..self.at];
                self.at += 1;
                Ok(Text { raw, decoded: None })
            }
            Some(b'\\') => self.escaped_string(start),
            _ => Err(self.unexpected()),
        }
    }

    /// The rest of a string from its first escape.
    fn escaped_string(&mut self, start: usize) -> Result<Text<'a>, JsonError> {
        let mut decoded = String::from(&self.text[start..self.at]);
        loop {
            let plain = self.at;
            self.at += plain_prefix(&self.text.as_bytes()[plain..]);
            decoded.push_str(&self.text[plain..self.at]);
            match self.peek() {
                Some(b'"') => {
                    let raw = &self.text[start..self.at];
                    self.at += 1;
                    return Ok(Text { raw, decoded: Some(decoded.into()) });
                }
                Some(b'\\') => {
                    self.at += 1;
                    decoded.push(self.escape()?);
                }
                _ => return Err(self.unexpected()),
            }
        }
    }

    fn escape(&mut self) -> Result<char, JsonError> {
        let escape = self.peek().ok_or_else(|| self.unexpected())?;
        let plain = match escape {
            b'"' | b'\\' | b'/' => char::from(escape),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                self.at += 1;
                return self.unicode_escape();
            }
            _ => return Err(self.fault(Fault::BadEscape)),
        };
        self.at += 1;
        Ok(plain)
    }

    fn unicode_escape(&mut self) -> Result<char, JsonError> {
        let at = self.at;
        let bad = JsonError { at, fault: Fault::BadEscape };
        let first = self.hex4()?;
        if !(0xd800..0xdc00).contains(&first) {
            // The low half alone is not a character, so it is refused as well.
            return char::from_u32(first).ok_or(bad);
        }
        if !self.text[self.at..].starts_with("\\u") {
            return Err(bad);
        }
        self.at += 2;
        let second = self.hex4()?;
        if !(0xdc00..0xe000).contains(&second) {
            return Err(bad);
        }
        char::from_u32(0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)).ok_or(bad)
    }

    fn hex4(&mut self) -> Result<u32, JsonError> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.peek().ok_or_else(|| self.unexpected())?;
            let digit = char::from(digit).to_digit(16).ok_or_else(|| self.fault(Fault::BadEscape))?;
            code = code << 4 | digit;
            self.at += 1;
        }
        Ok(code)
    }
}

/// A name that an object has twice. Small objects are searched and large ones sorted, so that a body of a hundred
/// thousand names costs neither quadratic time nor much memory.
fn repeated<'m, 'a>(members: &'m [Member<'a>]) -> Option<&'m Text<'a>> {
    const SEARCHED: usize = 16;
    let name = |member: &'m Member<'a>| &member.name;
    if members.len() <= SEARCHED {
        let again = |i: &usize| members[..*i].iter().any(|m| m.name.as_str() == members[*i].name.as_str());
        return (1..members.len()).find(again).map(|i| name(&members[i]));
    }
    let mut sorted: Vec<&Text<'a>> = members.iter().map(name).collect();
    sorted.sort_unstable_by_key(|name| name.as_str());
    sorted.array_windows().find(|[one, other]| one.as_str() == other.as_str()).map(|[_, other]| *other)
}

#[cfg(test)]
mod suite_tests;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fault(text: &str) -> Fault {
        parse(text.as_bytes()).expect_err(text).fault
    }

    #[test]
    fn keeps_digits_and_spelling() {
        let Ok(Value::Array(values)) = parse(br#"[9007199254740993, 1.0, 1e400, -0, "\u0041\n", "plain"]"#) else {
            panic!("not an array")
        };
        assert_eq!(values[0], Value::Number("9007199254740993"));
        assert_eq!(values[1], Value::Number("1.0"));
        assert_eq!(values[2], Value::Number("1e400"));
        assert_eq!(values[3], Value::Number("-0"));
        let Value::String(text) = &values[4] else { panic!("not a string") };
        assert_eq!((text.as_str(), text.raw()), ("A\n", "\\u0041\\n"));
    }

    #[test]
    fn refuses_what_readers_disagree_about() {
        assert_eq!(fault(r#"{"a":1,"a":2}"#), Fault::RepeatedName);
        assert_eq!(fault(r#"{"a":1,"\u0061":2}"#), Fault::RepeatedName);
        assert_eq!(fault(r#""\ud800""#), Fault::BadEscape);
        assert_eq!(fault(r#""\udc00""#), Fault::BadEscape);
        assert_eq!(fault(r#""\ud800\u0041""#), Fault::BadEscape);
        assert_eq!(parse(b"\"\xff\"").unwrap_err().fault, Fault::NotUtf8);
        assert_eq!(fault("[1] [2]"), Fault::Trailing);
        assert_eq!(fault("\u{feff}{}"), Fault::Unexpected);
    }

    #[test]
    fn refuses_what_is_not_json() {
        for text in ["", " ", "{", "[", "\"", "[1", "{\"a\"", "{\"a\":", "tru", "-", "1e", "1."] {
            assert_eq!(fault(text), Fault::Truncated, "{text:?}");
        }
        for text in [
            "[1,]",
            "{,}",
            "{\"a\":1,}",
            "{1:2}",
            "[,1]",
            "nul1",
            "'a'",
            "NaN",
            "\"\n\"",
            "\"\\x\"",
            "01",
            "-01",
            "+1",
            ".5",
            "1.e1",
            "[\u{a0}1]",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn bounds_nesting() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(parse(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert_eq!(fault(&nested(MAX_DEPTH + 1)), Fault::TooDeep);
        assert_eq!(fault(&"[".repeat(1_000_000)), Fault::TooDeep);
    }

    #[test]
    fn bounds_the_number_of_values() {
        let zeros = |n: usize| format!("[{}]", vec!["0"; n].join(","));
        assert!(parse(zeros(MAX_VALUES - 1).as_bytes()).is_ok());
        assert_eq!(fault(&zeros(MAX_VALUES)), Fault::TooManyValues);
        assert_eq!(fault(&format!("[{}]", vec![r#"{"":0}"#; MAX_VALUES / 2].join(","))), Fault::TooManyValues);
        assert_eq!(parse_within(b"[0,0]", 2).unwrap_err(), JsonError { at: 3, fault: Fault::TooManyValues });
    }

    #[test]
    fn a_value_takes_little_more_memory_than_needed() {
        assert!(size_of::<Value<'_>>() <= 40 && size_of::<Member<'_>>() <= 72);
        let members = |value: &Value<'_>| value.as_array().unwrap().iter().map(|v| v.as_object().unwrap().len()).sum();
        let text = format!("[{}]", vec![r#"{"":0}"#; 1000].join(","));
        let value = parse(text.as_bytes()).unwrap();
        let (values, members): (usize, usize) = (1001, members(&value));
        let built = values * size_of::<Value<'_>>() + members * size_of::<Member<'_>>();
        assert!((built..4 * built).contains(&built_size(text.as_bytes())));
    }

    #[test]
    fn finds_a_repeated_name_among_many() {
        let names: Vec<_> = (0..1000).map(|i| format!("\"n{i}\":0")).collect();
        assert!(parse(format!("{{{}}}", names.join(",")).as_bytes()).is_ok());
        assert_eq!(fault(&format!("{{{},\"n17\":0}}", names.join(","))), Fault::RepeatedName);
    }

    proptest! {
        /// Whatever this reader accepts, serde_json accepts too. It refuses nothing that serde_json accepts, except
        /// what it promises to refuse.
        #[test]
        fn agrees_with_serde_json(text in r#"[ \[\]{}:,"a\\u0-9.eE+n-]{0,40}"#) {
            let ours = parse(text.as_bytes());
            let theirs = serde_json::from_str::<serde_json::Value>(&text);
            match (ours, theirs) {
                (Ok(_), Err(error)) => prop_assert!(error.to_string().contains("out of range"), "{error}"),
                (Err(error), Ok(_)) => prop_assert_eq!(error.fault, Fault::RepeatedName),
                _ => {}
            }
        }

        #[test]
        fn what_is_plain_is_found_eight_bytes_at_a_time(
            text in proptest::collection::vec(
                prop_oneof![8 => any::<u8>(), 1 => prop::sample::select(b"\"\\\x1f !#[]\x80".to_vec())],
                0..40,
            ),
        ) {
            let one_by_one = text.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f));
            prop_assert_eq!(plain_prefix(&text), one_by_one.unwrap_or(text.len()));
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
