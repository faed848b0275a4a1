//! Finds where the requests of an HTTP/1 connection begin and end, from its bytes.
//!
//! hyper leaves two questions open. Is there a head that is not complete yet? Does a head state its body's length in a
//! way that another server may read differently (RFC 9112 section 6.3)? hyper chooses one reading. A proxy in front of
//! the gateway may have chosen another, and a request may be hidden in the difference. So a body must have one
//! `Content-Length` of digits, or one `Transfer-Encoding` that is `chunked` and nothing else, or neither. An ambiguous
//! head can come at any place in a connection, so bodies are followed as well. Where hyper refuses a request itself,
//! this module stops reading, because the connection ends then.
//!
//! Only the beginning of the current line is kept.

/// Bytes of a line that are kept: enough for the two headers that matter, with any valid length.
const LINE: usize = 64;

/// A head states its body's length in more than one way, or in a way that servers read differently. It begins at this
/// offset of the bytes last followed; at 0 when it began before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ambiguous {
    pub(super) begins_at: usize,
}

/// A head that has begun and is not complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unfinished {
    /// The head's number within its connection.
    pub(super) number: u64,
    /// Bytes that it takes at most, counting what has come of it.
    pub(super) bytes: usize,
}

/// Follows one connection.
#[derive(Debug)]
pub(super) struct Framing {
    place: Place,
    /// The part of the current line that came with earlier bytes, as far as it matters.
    line: Vec<u8>,
    length: Length,
    coding: Coding,
    /// Bytes of the current head.
    head: usize,
    /// Heads that were complete.
    finished: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before a head. Empty lines are skipped (RFC 9112 section 2.2).
    Between,
    /// In a head.
    Head,
    /// In a body, with so many bytes to come.
    Body(u64),
    /// In the line that says a chunk's size.
    ChunkSize,
    /// In a chunk, with so many bytes to come.
    Chunk(u64),
    /// In the line end after a chunk.
    ChunkEnd,
    /// After the last chunk.
    Trailers,
    /// The place is unknown; hyper refuses what comes.
    Lost,
}

/// What the head says in `Content-Length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    Unsaid,
    Said(u64),
    Malformed,
}

/// What the head says in `Transfer-Encoding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Unsaid,
    Chunked,
    /// Any other value, `chunked` twice included.
    Other,
}

impl Framing {
    pub(super) fn new() -> Self {
        let (length, coding) = (Length::Unsaid, Coding::Unsaid);
        Self { place: Place::Between, line: Vec::new(), length, coding, head: 0, finished: 0 }
    }

    /// The head that is not complete, if one has begun.
    pub(super) fn unfinished(&self) -> Option<Unfinished> {
        let is_in_head = self.place == Place::Head || (self.place == Place::Between && !self.line.is_empty());
        is_in_head.then_some(Unfinished { number: self.finished, bytes: self.head })
    }

    /// Whether the last head announces a body of more bytes than hyper can count.
    pub(super) fn announces_too_much(&self) -> bool {
        matches!(self.length, Length::Said(length) if length >= u64::MAX - 1)
    }

    /// Takes the next bytes.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> Result<(), Ambiguous> {
        let (mut at, mut begins_at) = (0, 0);
        while at < bytes.len() {
            let rest = &bytes[at..];
            match self.place {
                Place::Lost => return Ok(()),
                Place::Body(left) | Place::Chunk(left) => {
                    let taken = usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
                    at += taken;
                    let left = left - taken as u64;
                    self.place = match (self.place, left) {
                        (Place::Body(_), 0) => Place::Between,
                        (Place::Body(_), _) => Place::Body(left),
                        (_, 0) => Place::ChunkEnd,
                        _ => Place::Chunk(left),
                    };
                }
                _ => {
                    if self.line.is_empty() && self.place != Place::Head {
                        begins_at = at;
                        self.head = 0;
                    }
                    let Some(end) = memchr::memchr(b'\n', rest) else {
                        self.keep(rest);
                        self.head += rest.len();
                        return Ok(());
                    };
                    at += end + 1;
                    self.head += end + 1;
                    if self.line.is_empty() {
                        if self.place == Place::Head && !may_matter(&rest[..end]) {
                            continue;
                        }
                        self.end_line(&rest[..end]);
                    } else {
                        self.keep(&rest[..end]);
                        let line = std::mem::take(&mut self.line);
                        self.end_line(&line);
                        self.line = line;
                        self.line.clear();
                    }
                    if self.place == Place::Lost {
                        return Err(Ambiguous { begins_at });
                    }
                }
            }
        }
        Ok(())
    }

    fn keep(&mut self, piece: &[u8]) {
        // One byte more than is needed shows that the line is longer.
        let room = LINE + 1 - self.line.len();
        self.line.extend_from_slice(&piece[..piece.len().min(room)]);
    }

    /// A line, or the beginning of a long one, without its line feed.
    fn end_line(&mut self, line: &[u8]) {
        let is_empty = matches!(line, b"" | b"\r");
        self.place = match self.place {
            Place::Between if is_empty => Place::Between,
            // The request line says nothing of the body.
            Place::Between => {
                (self.length, self.coding) = (Length::Unsaid, Coding::Unsaid);
                Place::Head
            }
            Place::Head if is_empty => {
                (self.head, self.finished) = (0, self.finished + 1);
                self.end_head()
            }
            // RFC 9112 section 5.2: a line that continues the previous one is obsolete.
            Place::Head if line.starts_with(b" ") || line.starts_with(b"\t") => Place::Lost,
            Place::Head => {
                self.header(&line[..line.len().min(LINE)], line.len() > LINE);
                Place::Head
            }
            Place::ChunkSize => match chunk_size(&line[..line.len().min(LINE)]) {
                None => Place::Lost,
                Some(0) => Place::Trailers,
                Some(size) => Place::Chunk(size),
            },
            Place::ChunkEnd if is_empty => Place::ChunkSize,
            Place::Trailers if is_empty => Place::Between,
            Place::Trailers => Place::Trailers,
            Place::ChunkEnd | Place::Body(_) | Place::Chunk(_) | Place::Lost => Place::Lost,
        };
    }

    fn end_head(&self) -> Place {
        match (self.coding, self.length) {
            (Coding::Chunked, Length::Unsaid) => Place::ChunkSize,
            (Coding::Unsaid, Length::Unsaid | Length::Said(0)) => Place::Between,
            (Coding::Unsaid, Length::Said(length)) => Place::Body(length),
            (Coding::Chunked | Coding::Other, _) | (Coding::Unsaid, Length::Malformed) => Place::Lost,
        }
    }

    /// A header line, or the beginning of one that `is_cut`.
    fn header(&mut self, line: &[u8], is_cut: bool) {
        const TRANSFER_ENCODING: &[u8] = b"transfer-encoding";
        const CONTENT_LENGTH: &[u8] = b"content-length";
        match line.first() {
            Some(b't' | b'T') if let Some(rest) = named(line, TRANSFER_ENCODING) => {
                let is_chunked = value(rest).is_some_and(|value| !is_cut && value.eq_ignore_ascii_case(b"chunked"));
                self.coding = if is_chunked && self.coding == Coding::Unsaid { Coding::Chunked } else { Coding::Other };
            }
            Some(b'c' | b'C') if let Some(rest) = named(line, CONTENT_LENGTH) => {
                let length = value(rest).filter(|_| !is_cut).map_or(Length::Malformed, length);
                self.length = match self.length {
                    Length::Unsaid => length,
                    // hyper accepts the same length twice, and refuses different ones.
                    said if said == length => said,
                    _ => Length::Malformed,
                };
            }
            _ => {}
        }
    }
}

/// Whether a line of a head can be more than a field that says nothing of the body: most lines are skipped by this alone.
fn may_matter(line: &[u8]) -> bool {
    // `-` and `L` are the ninth characters of the two names that matter.
    let is_named = || matches!(line.get(8), None | Some(b'-' | b'l' | b'L'));
    match line.first() {
        None | Some(b'\r' | b' ' | b'\t') => true,
        Some(b't' | b'T' | b'c' | b'C') => is_named(),
        Some(_) => false,
    }
}

/// What follows the name, in a line that begins with this header's name. Blanks before the colon do not make it another
/// header.
fn named<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l [u8]> {
    let (start, rest) = line.split_at_checked(name.len())?;
    let goes_on = rest.first().is_some_and(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    (start.eq_ignore_ascii_case(name) && !goes_on).then_some(rest)
}

/// What follows a header's name: a colon, and a value with blanks around it.
fn value(rest: &[u8]) -> Option<&[u8]> {
    let mut value = rest.strip_prefix(b":")?;
    value = value.strip_suffix(b"\r").unwrap_or(value);
    while let [b' ' | b'\t', inner @ ..] | [inner @ .., b' ' | b'\t'] = value {
        value = inner;
    }
    Some(value)
}

fn length(digits: &[u8]) -> Length {
    // An empty value is not a number either.
    let number = || std::str::from_utf8(digits).ok()?.parse().ok();
    match digits.iter().all(u8::is_ascii_digit).then(number).flatten() {
        Some(length) => Length::Said(length),
        None => Length::Malformed,
    }
}

/// The size in `1a;extension`.
fn chunk_size(line: &[u8]) -> Option<u64> {
    // The end of the digits must be in the line: a line that is cut before it is refused.
    let end = line.iter().position(|byte| !byte.is_ascii_hexdigit())?;
    // Nothing after the digits matters.
    let digits = std::str::from_utf8(&line[..end]).ok()?;
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLAIN: &str = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    const WITH_BODY: &str = "POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-length: 5\r\n\r\nTr\n\r\n";
    const IN_CHUNKS: &str = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
                             3;content-length: 7\r\n\r\n\r\r\n0a\r\n0123456789\r\n0\r\nX: y\r\n\r\n";
    const BARE: &str = "\n\r\nPOST / HTTP/1.1\nContent-Length: 2\nX: transfer-encoding: chunked\n\n\n\n";
    const BAD: &str = "POST / HTTP/1.1\r\nContent-Length: 3\r\nTRANSFER-encoding: chunked\r\n\r\n";
    const BAD_TOO: &str = "POST / HTTP/1.1\nTransfer-Encoding: x\nX: y\ncontent-length:  nonsense \n\n";

    /// Follows in pieces. Returns where the ambiguous head begins, if there is one.
    fn follow(text: &str, sizes: impl Iterator<Item = usize>) -> (Option<usize>, Framing) {
        let (mut framing, mut rest, mut begun) = (Framing::new(), text.as_bytes(), None);
        for size in sizes {
            if rest.is_empty() {
                break;
            }
            let was_in_head = framing.unfinished().is_some();
            let (piece, behind) = rest.split_at(size.clamp(1, rest.len()));
            let place = text.len() - rest.len();
            if let Err(ambiguous) = framing.follow(piece) {
                let begins_at = if was_in_head && ambiguous.begins_at == 0 { begun } else { None };
                return (Some(begins_at.unwrap_or(place + ambiguous.begins_at)), framing);
            }
            if framing.unfinished().is_some() && !was_in_head {
                begun = Some(place);
            }
            rest = behind;
        }
        (None, framing)
    }

    #[test]
    fn valid_requests_pass_however_they_are_split() {
        let text = [PLAIN, WITH_BODY, IN_CHUNKS, BARE, PLAIN].concat();
        for size in 1..=text.len() {
            let (ambiguous, framing) = follow(&text, std::iter::repeat(size));
            assert_eq!((ambiguous, framing.place), (None, Place::Between), "in pieces of {size}");
            assert_eq!(framing.unfinished(), None);
        }
    }

    #[test]
    fn two_lengths_are_found_after_any_request_however_they_are_split() {
        for before in ["", "\r\n", PLAIN, WITH_BODY, IN_CHUNKS, BARE] {
            for bad in [BAD, BAD_TOO] {
                let text = [before, bad, PLAIN].concat();
                let whole = follow(&text, std::iter::once(usize::MAX)).0.expect("it is seen");
                assert!(text[whole..].trim_start().starts_with(bad), "{text:?} from {whole}");
                for size in 1..=text.len() {
                    assert!(follow(&text, std::iter::repeat(size)).0.is_some(), "{text:?} in pieces of {size}");
                }
            }
        }
    }

    #[test]
    fn a_body_is_no_head() {
        let body = BAD;
        let text = format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}{PLAIN}", body.len());
        assert_eq!(follow(&text, std::iter::once(usize::MAX)).0, None);
        let text =
            format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        assert_eq!(follow(&text, std::iter::once(usize::MAX)).0, None);
    }

    #[test]
    fn a_head_that_is_not_complete_is_known() {
        for (text, is_in_head) in [
            ("", false),
            ("\r\n", false),
            ("G", true),
            ("GET / HTTP/1.1\r\n", true),
            ("GET / HTTP/1.1\r\n\r", true),
            (PLAIN, false),
            ("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nabc", false),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n", false),
        ] {
            assert_eq!(follow(text, std::iter::repeat(3)).1.unfinished().is_some(), is_in_head, "{text:?}");
        }
    }

    #[test]
    fn only_a_single_chunked_coding_is_accepted() {
        let head = |lines: &str| format!("POST / HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n");
        let padded = format!("Transfer-Encoding:{}chunked\r\n", " ".repeat(60));
        for refused in [
            "Transfer-Encoding: chunked, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding:\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: chunked;x\r\n",
            "Transfer-Encoding: chunked,\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding: \"chunked\"\r\n",
            "Transfer-Encoding: \x0bchunked\r\n",
            "Transfer-Encoding:\r\n",
            "Transfer-Encoding:\r\n chunked\r\n",
            "Transfer-Encoding : chunked\r\n",
            "Transfer-Encoding\t: chunked\r\n",
            "X: y\r\n Transfer-Encoding: chunked\r\n",
            "Content-Length: 1\r\nContent-Length: 2\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: 1, 1\r\n",
            "Content-Length:\r\n",
            "Content-Length : 1\r\n",
            "Content-Length: 1\r\n\t1\r\n",
            &padded,
        ] {
            let text = [PLAIN, &head(refused)].concat();
            for size in 1..=text.len() {
                let (ambiguous, framing) = follow(&text, std::iter::repeat(size));
                assert!(ambiguous.is_some() && framing.place == Place::Lost, "{refused:?} in pieces of {size}");
            }
        }
        for sound in [
            "transfer-encoding:chunked\r\n",
            "TRANSFER-ENCODING: \t Chunked \t \r\n",
            "Transfer-Encoding-Of-Mine: gzip\r\nContent-Length-Of-Mine: x\r\nTransfer-Encoding: chunked\r\n",
        ] {
            let text = [&head(sound), "0\r\n\r\n", PLAIN].concat();
            for size in 1..=text.len() {
                let (ambiguous, framing) = follow(&text, std::iter::repeat(size));
                assert_eq!((ambiguous, framing.place), (None, Place::Between), "{sound:?} in pieces of {size}");
            }
        }
    }

    #[test]
    fn chunks_that_cannot_be_followed_end_the_connection() {
        let zeros = format!("{}5", "0".repeat(80));
        for lost in ["x\r\n", "1\r\nabc\r\n", "fffffffffffffffff\r\n", "\r\n", &zeros] {
            let text = ["POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", lost, "\r\n", BAD].concat();
            for size in 1..=text.len() {
                let (ambiguous, framing) = follow(&text, std::iter::repeat(size));
                assert!(ambiguous.is_some() && framing.place == Place::Lost, "{lost:?} in pieces of {size}");
            }
        }
    }

    #[test]
    fn a_long_line_takes_no_memory() {
        let mut framing = Framing::new();
        for _ in 0..10_000 {
            framing.follow(b"GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa").unwrap();
        }
        assert!(framing.line.capacity() <= 2 * (LINE + 1));
        assert_eq!(framing.unfinished().map(|head| head.bytes), Some(10_000 * 55));
    }

    proptest! {
        #[test]
        fn the_split_changes_nothing(
            parts in proptest::collection::vec(0usize..6, 1..6),
            sizes in proptest::collection::vec(1usize..40, 1..40),
        ) {
            let text: String = parts.iter().map(|part| [PLAIN, WITH_BODY, IN_CHUNKS, BARE, BAD, BAD_TOO][*part]).collect();
            let whole = follow(&text, std::iter::once(usize::MAX));
            let pieces = follow(&text, sizes.into_iter().cycle());
            prop_assert_eq!(whole.0.is_some(), pieces.0.is_some());
            prop_assert_eq!(whole.1.place, pieces.1.place);
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), size in 1usize..50) {
            let mut framing = Framing::new();
            for piece in bytes.chunks(size) {
                let _ = framing.follow(piece);
            }
        }
    }
}
