//! Which version of HTTP a connection speaks, and where in its stream a head is.

use super::connections::FinishedHeads;
use super::frames::Frames;
use super::framing::{Ambiguous, Framing, Unfinished};

/// The protocol that a connection speaks, and how far it has come.
#[derive(Debug)]
pub(super) enum Protocol {
    /// This many bytes of HTTP/2's preface have come.
    Undecided(usize),
    Http1(Framing),
    Http2(Frames),
}

/// The first bytes of an HTTP/2 connection (RFC 9113 section 3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

impl Protocol {
    /// Takes the next bytes.
    pub(super) fn follow(&mut self, bytes: &[u8], heads: &mut FinishedHeads) -> Result<(), Ambiguous> {
        match self {
            Self::Http1(framing) => framing.follow(bytes),
            Self::Http2(frames) => {
                frames.follow(bytes, |sent| heads.add(sent));
                Ok(())
            }
            Self::Undecided(seen) => {
                let (seen, n) = (*seen, bytes.len().min(PREFACE.len() - *seen));
                if bytes[..n] != PREFACE[seen..seen + n] {
                    let mut framing = Framing::new();
                    let followed = framing.follow(&PREFACE[..seen]).and_then(|()| framing.follow(bytes));
                    *self = Self::Http1(framing);
                    return followed;
                }
                if seen + n < PREFACE.len() {
                    *self = Self::Undecided(seen + n);
                    return Ok(());
                }
                let mut frames = Frames::default();
                frames.follow(&bytes[n..], |sent| heads.add(sent));
                *self = Self::Http2(frames);
                Ok(())
            }
        }
    }

    /// The head that has begun. On a connection that was opened and has sent nothing, a head counts as begun.
    pub(super) fn unfinished(&self, is_served: bool) -> Option<Unfinished> {
        match self {
            Self::Undecided(bytes) => Some(Unfinished { number: 0, bytes: *bytes }),
            Self::Http1(framing) => framing.unfinished(),
            Self::Http2(frames) => frames.unfinished(is_served),
        }
    }

    pub(super) fn is_http2(&self) -> bool {
        matches!(self, Self::Http2(_))
    }
}
