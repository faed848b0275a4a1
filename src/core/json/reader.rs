//! Reads a text once, from its beginning to its end, and checks every limit while it reads.

use super::error::{Fault, JsonError};
use super::value::{Member, Text, Value};

/// The deepest nesting of arrays and objects. Twilio's deepest documented body has six levels.
pub const MAX_DEPTH: usize = 64;

/// The most values in one text, arrays and objects included. Twilio's largest documented body has fewer than a hundred.
/// A value takes many times the memory of its shortest text, so a limit in bytes alone would not bound memory.
pub const MAX_VALUES: usize = 100_000;

/// Reads one JSON value that is the whole of `bytes`, with at most [`MAX_VALUES`](super::MAX_VALUES) values in it.
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
    let mut reader = Reader { text, at: 0, values, elements: Vec::new(), members: Vec::new() };
    let value = reader.value(0)?;
    reader.skip_space();
    match reader.peek() {
        None => Ok(value),
        Some(_) => Err(reader.fault(Fault::Trailing)),
    }
}

/// The most bytes that the value read from `text` takes while it is built: a list that grows takes twice the size of
/// its content, and then there is a container of its final size beside it. It is computed from the bytes that can begin a
/// value, so that it is known before the value is built.
pub fn built_size(text: &[u8]) -> usize {
    let (mut values, mut members) = (1_usize, 0_usize);
    for byte in text {
        values += usize::from(matches!(byte, b'[' | b',' | b'{'));
        members += usize::from(*byte == b':');
    }
    let values = values.min(MAX_VALUES) * size_of::<Value<'_>>();
    let members = members.min(MAX_VALUES) * size_of::<Member<'_>>();
    3 * (values + members) + text.len()
}

/// A word of eight times this byte.
pub(crate) const fn all(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// Marks the highest bit of the first byte below `limit`, where the lowest byte comes first. The subtraction borrows,
/// so later bytes may be marked as well: their bits mean nothing.
pub(crate) const fn below(word: u64, limit: u8) -> u64 {
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
    /// The elements of all arrays that are open, and the members of all objects. They are moved when their container ends,
    /// so that it is allocated only once, in its final size.
    elements: Vec<Value<'a>>,
    members: Vec<Member<'a>>,
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
        let first = self.members.len();
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
            self.members.push(Member { name, value });
            self.skip_space();
            if self.peek() == Some(b',') {
                self.at += 1;
                continue;
            }
            self.take(b'}')?;
            return match repeated(&self.members[first..]) {
                None => Ok(Value::Object(self.members.drain(first..).collect())),
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
        let first = self.elements.len();
        self.skip_space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::Array(Box::default()));
        }
        loop {
            let element = self.value(depth + 1)?;
            self.elements.push(element);
            self.skip_space();
            if self.peek() == Some(b',') {
                self.at += 1;
                continue;
            }
            self.take(b']')?;
            return Ok(Value::Array(self.elements.drain(first..).collect()));
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
