//! Limits of a connection: heads arrive in time and in bounded memory, responses are read in time, idle connections
//! end, and what hyper refuses itself is answered in Twilio's error format.
//!
//! hyper answers a head that it cannot parse with an empty body, and closes a connection whose head is late without a
//! response. Both happen below any service, so they are corrected here, on the bytes. hyper's own header timeout is not
//! used: it also ends idle connections, does not cover HTTP/2, and costs one timer per request instead of one per
//! connection.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop::has_budget_remaining;
use tokio::time::{Instant, Sleep};

use super::connections::{Connection, FinishedHeads, HeadShare, Place, TooManyHeads};
use super::framing::{Ambiguous, Unfinished};
use super::protocol::Protocol;
use super::refusal::{answer, go_away, replacement};
use super::warning_limit::WarningLimit;
use crate::core::error::Reason;

/// How long a kept-alive connection may be silent. nginx has the same default.
const IDLE: Duration = Duration::from_secs(75);

/// Set in the number of a head that is still encrypted.
const HIDDEN: u64 = 1 << 63;

/// The first bytes of a client that uses TLS on a plain HTTP listener (RFC 8446 section 5.1).
const TLS_HANDSHAKE: &[u8] = &[22, 3];

/// Time limits of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    /// For a complete head.
    pub(super) header: Duration,
    /// For the peer to take any of the bytes that it is sent.
    pub(super) write: Duration,
}

/// The stream under a connection; see the module.
pub(super) struct TimeoutIo<T> {
    io: T,
    connection: Arc<Connection>,
    timeouts: Timeouts,
    protocol: Protocol,
    /// The unfinished head: its number, and since when it has been unfinished.
    head: Option<(u64, Instant)>,
    head_share: HeadShare,
    finished_heads: FinishedHeads,
    tls_warnings: Arc<WarningLimit>,
    /// How often bytes came.
    reads: u64,
    alarm: Pin<Box<Sleep>>,
    /// The task that the alarm wakes.
    woken: Option<Waker>,
    /// Runs while the peer takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Responses of services that have begun to be written.
    answers: u32,
    /// Bytes of the last write that are not written yet.
    unsent: usize,
    /// What is written in place of a response that hyper made, and how many bytes of hyper's it replaces.
    instead: Option<(Bytes, usize)>,
}

impl<T> TimeoutIo<T> {
    pub(super) fn new(io: T, place: &Place, timeouts: Timeouts) -> Self {
        let now = Instant::now();
        Self {
            io,
            connection: Arc::clone(place.connection()),
            timeouts,
            protocol: Protocol::Undecided(0),
            head: Some((0, now)),
            head_share: place.head_share(),
            finished_heads: place.finished_heads(),
            tls_warnings: place.tls_warnings(),
            reads: 0,
            alarm: Box::pin(tokio::time::sleep_until(now + timeouts.header)),
            woken: None,
            stalled: None,
            answers: place.connection().answers(),
            unsent: 0,
            instead: None,
        }
    }

    /// Processes the bytes that came.
    fn received(&mut self, bytes: &[u8]) -> Result<(), Received> {
        let was_undecided = matches!(self.protocol, Protocol::Undecided(_));
        if was_undecided && bytes.starts_with(TLS_HANDSHAKE) {
            self.warn_of_tls();
        }
        self.protocol.follow(bytes, &mut self.finished_heads).map_err(Received::Ambiguous)?;
        if was_undecided && self.protocol.is_http2() {
            self.connection.speaks_http2();
        }
        self.connection.has_sent_plaintext();
        self.reads += 1;
        self.charge().map_err(Received::TooMuch)
    }

    /// The client cannot read the plain-text error, so the log tells the operator.
    fn warn_of_tls(&self) {
        if self.tls_warnings.allows(Instant::now()) {
            tracing::warn!(
                peer = self.connection.peer_name(),
                "a client speaks TLS to a listener of plain HTTP: use http:// there, or set server.tls; logged once a minute"
            );
        }
    }

    /// Counts the memory of the unfinished head, and of the TLS record that may hold more of it.
    fn charge(&mut self) -> Result<(), TooManyHeads> {
        let takes = self.protocol.unfinished(self.connection.is_busy()).map_or(0, |head| head.bytes);
        self.head_share.set(takes + self.connection.hidden())
    }

    /// The head that is not finished: one that has begun, or the ciphertext that may contain one.
    fn unfinished(&self, is_busy: bool) -> Option<Unfinished> {
        let hidden = || {
            let bytes = self.connection.hidden();
            (bytes > 0 && !is_busy).then_some(Unfinished { number: HIDDEN | self.reads, bytes })
        };
        self.protocol.unfinished(is_busy).or_else(hidden)
    }

    /// Ends when the connection has been silent for too long.
    fn poll_late(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let now = Instant::now();
            let deadline = self.deadline(now);
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Poll::Ready(());
            }
            // hyper reads ahead while it answers. It was told then that no bytes are there, and does not ask again when
            // the response is written.
            let wake = deadline.unwrap_or(now + self.timeouts.header);
            if self.alarm.is_elapsed() || self.alarm.deadline() > wake {
                self.alarm.as_mut().reset(wake);
            } else if self.woken.as_ref().is_some_and(|woken| woken.will_wake(context.waker())) {
                // It is set, and wakes this task. To poll it again would cost as much as reading a head.
                return Poll::Pending;
            }
            // A task that has used up its budget does not register the alarm: it has to be polled again.
            self.woken = has_budget_remaining().then(|| context.waker().clone());
            ready!(self.alarm.as_mut().poll(context));
        }
    }

    /// When the next bytes have to come; `None` while HTTP/1.1 serves a request. HTTP/2 serves other requests
    /// meanwhile, but the client cannot send anything else on them until the head is finished.
    fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let idle_since = self.connection.idle_since();
        if idle_since.is_none() && !self.protocol.is_http2() {
            self.head = None;
            return None;
        }
        self.head = self.unfinished(idle_since.is_none()).map(|head| match self.head {
            // A head that was encrypted and is now visible keeps its age.
            Some((number, since)) if number == head.number || (number & HIDDEN > 0 && head.number & HIDDEN == 0) => {
                (head.number, since)
            }
            _ => (head.number, now),
        });
        match self.head {
            Some((_, since)) => Some(since + self.timeouts.header),
            None => idle_since.map(|since| since + IDLE),
        }
    }

    /// The result of a write; an error once the peer has taken nothing for too long.
    fn poll_taken<R>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let write = self.timeouts.write;
        let alarm = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(write)));
        ready!(alarm.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

/// Why bytes that came are not passed on.
#[derive(Debug, Clone, Copy)]
enum Received {
    Ambiguous(Ambiguous),
    TooMuch(TooManyHeads),
}

/// Replaces an ambiguous head. hyper refuses it when its turn comes, after the responses to the requests before it. It
/// also ends a head whose beginning hyper may already have.
const MALFORMED: &[u8] = b"\0\r\n\r\n";

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for TimeoutIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        if this.protocol.is_http2() && this.finished_heads.must_wait() {
            // Poll again soon, after the tasks that this one waits for.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        match this.poll_some(context, buffer) {
            Poll::Ready(result) => {
                if buffer.filled().len() == before {
                    return Poll::Ready(result);
                }
                match this.received(&buffer.filled()[before..]) {
                    Ok(()) => Poll::Ready(result),
                    Err(Received::Ambiguous(Ambiguous { begins_at })) => {
                        buffer.set_filled(before + begins_at);
                        if buffer.remaining() < MALFORMED.len() {
                            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                        }
                        buffer.put_slice(MALFORMED);
                        Poll::Ready(result)
                    }
                    Err(Received::TooMuch(TooManyHeads)) => {
                        let message = "too many requests have begun and are not finished; come back shortly";
                        this.say(context, &answer(Reason::Overloaded, message));
                        Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
                    }
                }
            }
            Poll::Pending => {
                if this.charge().is_err() {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
                }
                ready!(this.poll_late(context));
                let has_begun = this.head.is_some() && !matches!(this.protocol, Protocol::Undecided(0));
                if has_begun {
                    this.say(context, &answer(Reason::ClientTimeout, "the request's head took too long"));
                }
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl<T: AsyncRead + Unpin> TimeoutIo<T> {
    /// Reads. HTTP/2 frames other than bodies are read only as fast as requests can be made of them.
    fn poll_some(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Protocol::Http2(frames) = &self.protocol else {
            return Pin::new(&mut self.io).poll_read(context, buffer);
        };
        let most = (frames.body_left() + AT_ONCE).min(buffer.remaining());
        let mut some = ReadBuf::new(buffer.initialize_unfilled_to(most));
        let read = Pin::new(&mut self.io).poll_read(context, &mut some);
        let n = some.filled().len();
        buffer.advance(n);
        read
    }
}

/// Bytes of HTTP/2, without bodies, that are read at a time.
const AT_ONCE: usize = 2048;

impl<T: AsyncWrite + Unpin> TimeoutIo<T> {
    /// Says why the connection ends, where that is possible. The connection ends either way. HTTP/2 uses GOAWAY.
    fn say(&mut self, context: &mut Context<'_>, answer: &[u8]) {
        let sent = match &self.protocol {
            Protocol::Http2(frames) => Pin::new(&mut self.io).poll_write(context, &go_away(frames.last_stream())),
            // Another response comes first, and this message does not belong to it.
            _ if self.connection.is_busy() || self.unsent > 0 => return,
            _ => Pin::new(&mut self.io).poll_write(context, answer),
        };
        if matches!(sent, Poll::Ready(Ok(_))) {
            let _ = Pin::new(&mut self.io).poll_flush(context);
        }
    }

    /// Whether hyper itself made these bytes. It does so only when it cannot read the next head, and no response of a
    /// service is left to be written then.
    fn is_made_by_hyper(&mut self) -> bool {
        let answers = self.connection.answers();
        let is_answered = std::mem::replace(&mut self.answers, answers) != answers;
        !(is_answered || self.unsent > 0 || self.protocol.is_http2() || self.connection.is_busy())
    }

    /// Writes our own response where `words` is one that hyper made.
    fn poll_instead(&mut self, context: &mut Context<'_>, words: &[u8], all: usize) -> Poll<Option<io::Result<usize>>> {
        // The last chunk of a stream is written after its body, when nothing is left to answer. It is no response head.
        if self.instead.is_none() && self.is_made_by_hyper() && words.starts_with(b"HTTP/") {
            let is_endless = matches!(&self.protocol, Protocol::Http1(framing) if framing.announces_too_much());
            let answer = match is_endless {
                true => answer(Reason::BodyTooLarge, "the request body is larger than anything that could be read"),
                false => replacement(words),
            };
            self.instead = Some((answer, all));
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

    /// Notes how many of the bytes that were to be written have been.
    fn sent(&mut self, all: usize, written: &Poll<io::Result<usize>>) {
        let unsent = match written {
            Poll::Ready(Ok(n)) => all.saturating_sub(*n),
            Poll::Ready(Err(_)) | Poll::Pending => all,
        };
        if (unsent > 0) != (self.unsent > 0) {
            self.connection.writes(unsent > 0);
        }
        self.unsent = unsent;
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for TimeoutIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = match self.poll_instead(context, bytes, bytes.len()) {
            Poll::Ready(None) => Pin::new(&mut self.io).poll_write(context, bytes),
            Poll::Ready(Some(result)) => Poll::Ready(result),
            Poll::Pending => Poll::Pending,
        };
        self.sent(bytes.len(), &written);
        self.poll_taken(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = slices.first().map_or(&[][..], |slice| slice);
        let all = slices.iter().map(|slice| slice.len()).sum();
        let written = match self.poll_instead(context, first, all) {
            Poll::Ready(None) => Pin::new(&mut self.io).poll_write_vectored(context, slices),
            Poll::Ready(Some(result)) => Poll::Ready(result),
            Poll::Pending => Poll::Pending,
        };
        self.sent(all, &written);
        self.poll_taken(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(context);
        self.poll_taken(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.io).poll_shutdown(context);
        self.poll_taken(context, shut)
    }
}

#[cfg(test)]
mod tests;
