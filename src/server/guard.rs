//! A connection's manners: heads arrive in time, idle connections end, and what hyper refuses by itself is
//! said in Twilio's shape.
//!
//! hyper answers a head that it cannot parse with an empty body, and closes a connection whose head is late
//! without a word. Both happen below any service, so they are mended here, on the bytes. hyper's own header
//! timeout is not used: it also ends idle connections, and costs a timer a request where this costs one a
//! connection.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::model::error::{GatewayError, Reason};
use crate::model::request_id;

/// How long a kept-alive connection may say nothing. As nginx has it.
const IDLE: Duration = Duration::from_secs(75);

/// The requests that a connection is busy with.
#[derive(Debug, Clone, Default)]
pub(super) struct Busy(Arc<AtomicUsize>);

impl Busy {
    /// One more, until the answer's body has gone out.
    pub(super) fn begin(&self) -> BusyGuard {
        self.0.fetch_add(1, Ordering::Relaxed);
        BusyGuard(self.clone())
    }

    fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

#[derive(Debug)]
pub(super) struct BusyGuard(Busy);

impl Drop for BusyGuard {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer's body, which keeps its connection busy until it is sent.
#[derive(Debug)]
pub(super) struct Held<B> {
    pub(super) body: B,
    pub(super) _busy: BusyGuard,
}

impl<B: Body + Unpin> Body for Held<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Is this HTTP/2. Its preface begins as no HTTP/1.1 method does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Preface {
    Expecting(usize),
    Decided,
}

const PREFACE: &[u8] = b"PRI ";

/// Beyond this, hyper refuses a head itself.
const LONGEST_HEAD: usize = 512 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing of a next request has come.
    Idle(Instant),
    /// A head has begun.
    Head(Instant),
    /// A request is being served.
    Serving,
}

/// The bytes of a connection. See the module.
pub(super) struct Guarded<T> {
    io: T,
    busy: Busy,
    phase: Phase,
    header_timeout: Duration,
    alarm: Pin<Box<Sleep>>,
    /// Bytes of HTTP/2's preface that have come; all of them make it an HTTP/2 connection.
    preface: Preface,
    http2: bool,
    fresh: bool,
    /// A head that came in pieces, as far as it has come.
    head: Vec<u8>,
    /// What is written in place of hyper's own words, and how many of those it stands for.
    instead: Option<(Bytes, usize)>,
}

impl<T> Guarded<T> {
    pub(super) fn new(io: T, busy: Busy, header_timeout: Duration) -> Self {
        let now = Instant::now();
        Self {
            io,
            busy,
            // A connection that was opened and says nothing is a head that is late.
            phase: Phase::Head(now),
            header_timeout,
            alarm: Box::pin(tokio::time::sleep_until(now + header_timeout)),
            preface: Preface::Expecting(0),
            http2: false,
            fresh: true,
            head: Vec::new(),
            instead: None,
        }
    }

    /// Takes notice of what came; says whether it may go on.
    fn received(&mut self, bytes: &[u8]) -> bool {
        self.fresh = false;
        if let Preface::Expecting(seen) = self.preface {
            let (expected, n) = (&PREFACE[seen..], bytes.len().min(PREFACE.len() - seen));
            if bytes[..n] != expected[..n] {
                self.preface = Preface::Decided;
            } else if seen + n == PREFACE.len() {
                (self.preface, self.http2) = (Preface::Decided, true);
            } else {
                self.preface = Preface::Expecting(seen + n);
            }
        }
        if self.busy.is() || self.http2 {
            return true;
        }
        if let Phase::Idle(_) | Phase::Serving = self.phase {
            self.phase = Phase::Head(Instant::now());
            self.head.clear();
        }
        !self.is_ambiguous(bytes)
    }

    /// Does a head say its body's length in two ways (RFC 9112 section 6.3). hyper takes one of them; somebody in
    /// front of the gateway may have taken the other, and a request may be hidden in the difference.
    fn is_ambiguous(&mut self, bytes: &[u8]) -> bool {
        // Empty lines before a request are none of its head (RFC 9112 section 2.2).
        let blank = bytes.iter().take_while(|byte| self.head.is_empty() && matches!(byte, b'\r' | b'\n')).count();
        let bytes = &bytes[blank..];
        if self.head.is_empty()
            && let Some(end) = end_of_head(bytes)
        {
            return has_two_lengths(&bytes[..end]);
        }
        if self.head.len() + bytes.len() > LONGEST_HEAD {
            return false;
        }
        // Only what is new is searched for the end, and only a whole head is read: one that drips in byte by
        // byte must not cost its square.
        let new = self.head.len().saturating_sub(END_OF_HEAD);
        self.head.extend_from_slice(bytes);
        match end_of_head(&self.head[new..]) {
            Some(end) => has_two_lengths(&std::mem::take(&mut self.head)[..new + end]),
            None => false,
        }
    }

    /// Ends when the connection has been silent for too long.
    fn poll_late(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let now = Instant::now();
            if self.busy.is() {
                self.phase = Phase::Serving;
            } else if self.phase == Phase::Serving || (self.http2 && matches!(self.phase, Phase::Head(_))) {
                self.phase = Phase::Idle(now);
            }
            let deadline = match self.phase {
                Phase::Head(since) => Some(since + self.header_timeout),
                Phase::Idle(since) => Some(since + IDLE),
                Phase::Serving => None,
            };
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Poll::Ready(());
            }
            // A head may begin while the alarm is set for idleness, and hyper, which has been told that nothing
            // is there, does not ask again when an answer is out: so it never sleeps longer than a head may.
            let longest = now + self.header_timeout;
            let wake = deadline.map_or(longest, |deadline| deadline.min(longest));
            if self.alarm.is_elapsed() || self.alarm.deadline() > wake {
                self.alarm.as_mut().reset(wake);
            }
            ready!(self.alarm.as_mut().poll(context));
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guarded<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        match Pin::new(&mut this.io).poll_read(context, buffer) {
            Poll::Ready(result) => {
                if buffer.filled().len() > before && !this.received(&buffer.filled()[before..]) {
                    let refusal = answer(Reason::BadRequest, "the request says its body's length in two ways");
                    // Said if it can be: the connection ends either way.
                    let _ = Pin::new(&mut this.io).poll_write(context, &refusal);
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
                Poll::Ready(result)
            }
            Poll::Pending => {
                ready!(this.poll_late(context));
                if let (Phase::Head(_), false, false) = (this.phase, this.http2, this.fresh) {
                    let late = answer(Reason::ClientTimeout, "the request's head took too long");
                    // Said if it can be: the connection ends either way.
                    let _ = Pin::new(&mut this.io).poll_write(context, &late);
                }
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> Guarded<T> {
    /// Writes our own answer where `words` is one that hyper made up.
    fn poll_instead(&mut self, context: &mut Context<'_>, words: &[u8], all: usize) -> Poll<Option<io::Result<usize>>> {
        if self.instead.is_none() && !self.http2 && words.starts_with(b"HTTP/1.1 4") {
            self.instead = replacement(words).map(|bytes| (bytes, all));
        }
        let Some((bytes, stands_for)) = &mut self.instead else { return Poll::Ready(None) };
        while bytes.has_remaining() {
            match ready!(Pin::new(&mut self.io).poll_write(context, bytes)) {
                Ok(0) => return Poll::Ready(Some(Err(io::ErrorKind::WriteZero.into()))),
                Ok(n) => bytes.advance(n),
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
        let written = *stands_for;
        self.instead = None;
        Poll::Ready(Some(Ok(written)))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Guarded<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(result) = ready!(self.poll_instead(context, bytes, bytes.len())) {
            return Poll::Ready(result);
        }
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = slices.first().map_or(&[][..], |slice| slice);
        let all = slices.iter().map(|slice| slice.len()).sum();
        if let Some(result) = ready!(self.poll_instead(context, first, all)) {
            return Poll::Ready(result);
        }
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// Bytes of the line end and the empty line that end a head, at most.
const END_OF_HEAD: usize = 4;

/// Where a head ends. Like hyper, this takes a bare line feed for a line's end.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    memchr::memchr_iter(b'\n', bytes).map(|at| at + 1).find(|next| {
        let rest = &bytes[*next..];
        rest.starts_with(b"\n") || rest.starts_with(b"\r\n")
    })
}

/// Has a head both a Content-Length and a Transfer-Encoding.
fn has_two_lengths(head: &[u8]) -> bool {
    let has = |name: &[u8]| {
        head.split(|b| *b == b'\n').any(|line| line.len() > name.len() && line[..name.len()].eq_ignore_ascii_case(name))
    };
    // The second is rare, so that nearly every head is read once.
    has(b"transfer-encoding:") && has(b"content-length:")
}

/// Our own answer for one of hyper's. Every answer of ours has a request id; hyper's have none.
fn replacement(head: &[u8]) -> Option<Bytes> {
    let text = std::str::from_utf8(head).ok()?;
    if text.contains("\r\nx-request-id: ") {
        return None;
    }
    match text.get(9..12)? {
        "400" => Some(answer(Reason::BadRequest, "the request's head is malformed or its framing ambiguous")),
        "431" | "414" => Some(answer(Reason::HeadersTooLarge, "the request's head is too large")),
        _ => None,
    }
}

/// A whole HTTP/1.1 answer that ends the connection.
fn answer(reason: Reason, message: &str) -> Bytes {
    let body = GatewayError::new(reason, message).to_body();
    let id = request_id::fresh();
    let mut answer = format!(
        "HTTP/1.1 {}\r\ncontent-type: application/json\r\ncache-status: insights-gateway; detail={}\r\n\
         x-request-id: {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        reason.status(),
        reason.outcome().as_str(),
        id.to_str().unwrap_or_default(),
        body.len()
    )
    .into_bytes();
    answer.extend_from_slice(&body);
    answer.into()
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[test]
    fn a_head_ends_where_hyper_ends_it() {
        assert_eq!(end_of_head(b"GET / HTTP/1.1\r\nA: b\r\n\r\nbody"), Some(22));
        assert_eq!(end_of_head(b"GET / HTTP/1.1\nA: b\n\nbody"), Some(20));
        assert_eq!(end_of_head(b"GET / HTTP/1.1\r\nA: b\r\n"), None);
        assert_eq!(end_of_head(b""), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_was_read_while_it_was_busy_ends_all_the_same() {
        let (_client, io) = tokio::io::duplex(64);
        let busy = Busy::default();
        let mut guarded = Guarded::new(io, busy.clone(), Duration::from_secs(10));
        let serving = busy.begin();
        let ended = tokio::spawn(async move { guarded.read_u8().await.map_err(|error| error.kind()) });
        tokio::task::yield_now().await;
        // The answer is out, and nobody asks again.
        drop(serving);
        let ended = tokio::time::timeout(IDLE * 2, ended).await.expect("idle connections end").unwrap();
        assert_eq!(ended, Err(io::ErrorKind::TimedOut));
    }

    #[tokio::test]
    async fn two_lengths_are_seen_in_whatever_pieces_they_come() {
        let head = b"\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 3\r\nTRANSFER-encoding: chunked\r\n\r\n";
        for size in 1..=head.len() {
            let mut guarded = Guarded::new(tokio::io::empty(), Busy::default(), Duration::from_secs(10));
            let refused = head.chunks(size).map(|piece| guarded.received(piece)).filter(|fine| !fine).count();
            assert_eq!(refused, 1, "in pieces of {size}");
            assert!(guarded.head.is_empty());
        }
    }

    #[test]
    fn one_length_is_fine() {
        assert!(!has_two_lengths(b"POST / HTTP/1.1\r\nContent-Length: 3\r\n"));
        assert!(!has_two_lengths(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nX: content-length: 3\r\n"));
    }
}
