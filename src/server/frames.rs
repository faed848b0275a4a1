//! Which frames an HTTP/2 connection has begun and not finished, followed on the bytes (RFC 9113 section 4.1).
//!
//! For one question that the library leaves open: is a head unfinished. A head is a HEADERS frame and all CONTINUATION
//! frames that follow it, and nothing else may be sent between them. Only the nine bytes before each frame are looked at.

use super::framing::Unfinished;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const DATA: u8 = 0;
const END_HEADERS: u8 = 4;

/// Bytes before a frame's payload.
const FRAME_HEAD: usize = 9;

/// Memory that a head may take whose first frame has come and whose last has not. Small fields take more as they are
/// kept than as they are sent, up to what `max_header_list_size` lets in.
const CONTINUED: usize = 512 * 1024;

/// Payload of the largest frame that is taken, and so memory of one that is not whole (RFC 9113 section 4.2).
const LARGEST: usize = 16 * 1024;

/// Follows one connection, from the end of its preface on.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// What has come of the current frame's head.
    head: [u8; FRAME_HEAD],
    head_length: usize,
    kind: u8,
    /// Bytes of its payload to come, and in all.
    left: usize,
    length: usize,
    ends_head: bool,
    /// HEADERS without END_HEADERS has come, so CONTINUATION must.
    continues: bool,
    /// The highest stream that has been seen.
    stream: u32,
    /// Heads, and other frames, that were finished.
    finished: u64,
    /// Bytes of the current head's frames.
    head_bytes: usize,
}

impl Frames {
    /// The head, or any other frame, that is not finished. DATA is a body's while a request `is_served`, and has the
    /// time of one; otherwise nobody waits for it.
    pub(super) fn unfinished(&self, is_served: bool) -> Option<Unfinished> {
        let in_frame = self.left > 0 && !(is_served && self.kind == DATA);
        if !self.continues && !in_frame && self.head_length == 0 {
            return None;
        }
        let bytes = if self.continues { CONTINUED } else { self.length.min(LARGEST) };
        Some(Unfinished { number: self.finished, bytes })
    }

    /// The highest stream that the client has used.
    pub(super) fn last_stream(&self) -> u32 {
        self.stream
    }

    /// Bytes of the current frame's payload to come, if that is a body's.
    pub(super) fn body_left(&self) -> usize {
        if self.kind == DATA { self.left } else { 0 }
    }

    /// Takes the bytes that came next, and tells of each head that they finish by how many it was sent.
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
    fn whatever_else_is_begun_has_to_be_finished_too() {
        let ping = frame(6, 0, 0, 8);
        for cut in 1..ping.len() {
            assert!(follow(&ping[..cut], 3).unfinished(true).is_some(), "cut at {cut}");
        }
        assert_eq!(follow(&ping, 3).unfinished(true), None);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..300), size in 1usize..50) {
            let _ = follow(&bytes, size).unfinished(true);
        }
    }
}
