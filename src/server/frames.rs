//! Finds which frames an HTTP/2 connection has begun and not finished, from its bytes (RFC 9113 section 4.1).
//!
//! The library does not say whether a head is unfinished, and this module does. A head is a HEADERS frame and all
//! CONTINUATION frames that follow it; nothing else may be sent between them. Only the nine bytes before each payload
//! are read.

use super::framing::Unfinished;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const DATA: u8 = 0;
const END_HEADERS: u8 = 4;

/// Bytes before a frame's payload.
const FRAME_HEAD: usize = 9;

/// Memory that a head may take between its first and its last frame. Small fields take more in memory than on the wire,
/// up to the limit of `max_header_list_size`.
const CONTINUED: usize = 512 * 1024;

/// Payload of the largest frame that is accepted, and so the memory of an incomplete one (RFC 9113 section 4.2).
const LARGEST: usize = 16 * 1024;

/// Follows one connection, from the end of its preface.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// The bytes of the current frame's head that have come.
    head: [u8; FRAME_HEAD],
    head_length: usize,
    kind: u8,
    /// Bytes of its payload that are still to come, and in all.
    left: usize,
    length: usize,
    ends_head: bool,
    /// HEADERS without END_HEADERS has come, so CONTINUATION must.
    continues: bool,
    /// The highest stream number seen.
    stream: u32,
    /// Finished heads and finished other frames.
    finished: u64,
    /// Bytes of the current head's frames.
    head_bytes: usize,
}

impl Frames {
    /// The head, or any other frame, that is not finished. A DATA frame belongs to a body while a request `is_served`,
    /// and the body's own timeout applies to it. While none is, it is a frame like any other.
    pub(super) fn unfinished(&self, is_served: bool) -> Option<Unfinished> {
        let in_frame = self.left > 0 && !(is_served && self.kind == DATA);
        if !self.continues && !in_frame && self.head_length == 0 {
            return None;
        }
        let bytes = if self.continues { CONTINUED } else { self.length.min(LARGEST) };
        Some(Unfinished { number: self.finished, bytes })
    }

    /// The highest stream number that the client has used.
    pub(super) fn last_stream(&self) -> u32 {
        self.stream
    }

    /// Bytes of the current frame's payload that are still to come, if it belongs to a body.
    pub(super) fn body_left(&self) -> usize {
        if self.kind == DATA { self.left } else { 0 }
    }

    /// Takes the next bytes, and calls `finished` with the size of each head that they complete.
    pub(super) fn follow(&mut self, mut bytes: &[u8], mut finished: impl FnMut(usize)) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let taken = self.left.min(bytes.len());
                self.left -= taken;
                bytes = &bytes[taken..];
                if self.left == 0 {
                    self.end_frame(&mut finished);
                }
                continue;
            }
            let taken = (FRAME_HEAD - self.head_length).min(bytes.len());
            self.head[self.head_length..self.head_length + taken].copy_from_slice(&bytes[..taken]);
            self.head_length += taken;
            bytes = &bytes[taken..];
            if self.head_length == FRAME_HEAD {
                self.begin_frame(&mut finished);
            }
        }
    }

    fn begin_frame(&mut self, finished: &mut impl FnMut(usize)) {
        let [a, b, c, kind, flags, stream @ ..] = self.head;
        self.length = u32::from_be_bytes([0, a, b, c]) as usize;
        (self.left, self.kind, self.head_length) = (self.length, kind, 0);
        self.ends_head = flags & END_HEADERS != 0;
        if matches!(kind, HEADERS | CONTINUATION) {
            self.head_bytes += self.length;
        }
        if kind == HEADERS {
            self.continues = true;
            self.stream = self.stream.max(u32::from_be_bytes(stream) & (u32::MAX >> 1));
        }
        if self.left == 0 {
            self.end_frame(finished);
        }
    }

    fn end_frame(&mut self, finished: &mut impl FnMut(usize)) {
        if matches!(self.kind, HEADERS | CONTINUATION) && self.ends_head {
            self.continues = false;
            finished(std::mem::take(&mut self.head_bytes));
        }
        if !self.continues {
            self.finished += 1;
            self.length = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, length: usize) -> Vec<u8> {
        let size = u32::try_from(length).unwrap().to_be_bytes();
        [&size[1..], &[kind, flags], &stream.to_be_bytes(), &vec![b'x'; length]].concat()
    }

    fn follow(bytes: &[u8], size: usize) -> Frames {
        let mut frames = Frames::default();
        bytes.chunks(size).for_each(|piece| frames.follow(piece, |_| {}));
        frames
    }

    #[test]
    fn a_head_lasts_until_its_last_frame_has_come_whole() {
        let begun = frame(HEADERS, 1, 5, 100);
        let end = frame(CONTINUATION, END_HEADERS, 5, 10);
        let all = [frame(4, 0, 0, 12), begun.clone(), frame(CONTINUATION, 0, 5, 0), end.clone()].concat();
        for size in 1..all.len() {
            assert_eq!(follow(&all, size).unfinished(true), None, "in pieces of {size}");
            let cut = follow(&all[..all.len() - 1], size);
            assert_eq!(cut.unfinished(true), Some(Unfinished { number: 1, bytes: CONTINUED }));
            assert_eq!(cut.last_stream(), 5);
        }
        assert!(follow(&begun[..4], 1).unfinished(true).is_some());
        assert_eq!(follow(&frame(HEADERS, END_HEADERS, 1, 9), 3).unfinished(true), None);
    }

    #[test]
    fn a_body_is_no_head_while_a_request_is_served() {
        let body = frame(DATA, 0, 1, 100);
        assert_eq!(follow(&body[..50], 7).unfinished(true), None);
        assert!(follow(&body[..50], 7).unfinished(false).is_some());
    }

    #[test]
    fn every_other_frame_has_to_be_finished_too() {
        let ping = frame(6, 0, 0, 8);
        for cut in 1..ping.len() {
            assert!(follow(&ping[..cut], 3).unfinished(true).is_some(), "cut at {cut}");
        }
        assert_eq!(follow(&ping, 3).unfinished(true), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), size in 1usize..50) {
            let _ = follow(&bytes, size).unfinished(true);
        }
    }
}
