//! A connection's manners: heads arrive in time, answers are taken in time, idle connections end, and what hyper
//! refuses by itself is said in Twilio's shape.
//!
//! hyper answers a head that it cannot parse with an empty body, and closes a connection whose head is late
//! without a word. Both happen below any service, so they are mended here, on the bytes. hyper's own header
//! timeout is not used: it also ends idle connections, and costs a timer a request where this costs one a
//! connection.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::Version;
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::framing::{Ambiguous, Framing};
use crate::model::error::{GatewayError, Reason};
use crate::model::request_id;

/// How long a kept-alive connection may say nothing. As nginx has it.
const IDLE: Duration = Duration::from_secs(75);

/// The requests that a connection is busy with in the lower half, and all that it ever had in the upper, which may
/// wrap: one number, so that a request costs one operation at each end.
#[derive(Debug, Clone, Default)]
pub(super) struct Busy(Arc<AtomicU64>);

impl Busy {
    /// One more, until the answer's body has gone out.
    pub(super) fn begin(&self) -> BusyGuard {
        self.0.fetch_add(1 << 32 | 1, Ordering::Relaxed);
        BusyGuard(self.clone())
    }

    fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed) & u64::from(u32::MAX) > 0
    }

    /// Tells whether there has been another request since.
    fn begun(&self) -> u64 {
        self.0.load(Ordering::Relaxed) >> 32
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
    body: B,
    /// What has been taken from the body and not been sent.
    rest: Bytes,
    /// Bytes that are handed over at once.
    most: usize,
    _busy: BusyGuard,
}

impl<B> Held<B> {
    /// Handed over in one piece. To HTTP/2 in several: what it has been handed, it keeps in memory until the client's
    /// window lets it go.
    pub(super) fn new(body: B, version: Version, busy: BusyGuard) -> Self {
        const PIECE: usize = 64 * 1024;
        let most = if version == Version::HTTP_2 { PIECE } else { usize::MAX };
        Self { body, rest: Bytes::new(), most, _busy: busy }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Held<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        if this.rest.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(context)).transpose()?.map(Frame::into_data) {
                Some(Ok(data)) => this.rest = data,
                Some(Err(other)) => return Poll::Ready(Some(Ok(other))),
                None => return Poll::Ready(None),
            }
        }
        let is_last = this.rest.len() <= this.most;
        let piece = if is_last { std::mem::take(&mut this.rest) } else { this.rest.split_to(this.most) };
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, behind) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(rest + behind.lower());
        if let Some(upper) = behind.upper() {
            hint.set_upper(rest + upper);
        }
        hint
    }
}

/// Is this HTTP/2. Its preface begins as no HTTP/1.1 method does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Preface {
    Expecting(usize),
    Decided,
}

const PREFACE: &[u8] = b"PRI ";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing of a next request has come.
    Idle(Instant),
    /// A head has begun.
    Head(Instant),
    /// A request is being served, or has been.
    Serving,
}

/// What a connection may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For a whole head.
    pub(super) header: Duration,
    /// For the other end to take anything of what it is sent.
    pub(super) write: Duration,
}

/// The bytes of a connection. See the module.
pub(super) struct Guarded<T> {
    io: T,
    busy: Busy,
    /// Requests when the phase was last looked at.
    begun: u64,
    phase: Phase,
    patience: Patience,
    alarm: Pin<Box<Sleep>>,
    /// Until the other end has taken something, while it takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Bytes of HTTP/2's preface that have come; all of them make it an HTTP/2 connection.
    preface: Preface,
    http2: bool,
    fresh: bool,
    framing: Framing,
    /// What is written in place of hyper's own words, and how many of those it stands for.
    instead: Option<(Bytes, usize)>,
}

impl<T> Guarded<T> {
    pub(super) fn new(io: T, busy: Busy, patience: Patience) -> Self {
        let now = Instant::now();
        Self {
            io,
            begun: busy.begun(),
            busy,
            // A connection that was opened and says nothing is a head that is late.
            phase: Phase::Head(now),
            patience,
            alarm: Box::pin(tokio::time::sleep_until(now + patience.header)),
            stalled: None,
            preface: Preface::Expecting(0),
            http2: false,
            fresh: true,
            framing: Framing::new(),
            instead: None,
        }
    }

    /// Takes notice of what came.
    fn received(&mut self, bytes: &[u8]) -> Result<(), Ambiguous> {
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
        if self.http2 { Ok(()) } else { self.framing.follow(bytes) }
    }

    /// Ends when the connection has been silent for too long.
    fn poll_late(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let now = Instant::now();
            let deadline = self.deadline(now);
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Poll::Ready(());
            }
            // hyper reads ahead while it answers. It has been told then that nothing is there, and does not ask again
            // when the answer is out.
            let wake = deadline.unwrap_or(now + self.patience.header);
            if self.alarm.is_elapsed() || self.alarm.deadline() > wake {
                self.alarm.as_mut().reset(wake);
            }
            ready!(self.alarm.as_mut().poll(context));
        }
    }

    /// Until when something has to come; never while a request is served.
    fn deadline(&mut self, now: Instant) -> Option<Instant> {
        if self.busy.is() {
            self.phase = Phase::Serving;
            return None;
        }
        let begun = self.busy.begun();
        if begun != self.begun {
            // It has come and gone since: whatever was before is over.
            (self.begun, self.phase) = (begun, Phase::Serving);
        }
        let is_in_head = !self.http2 && (self.fresh || self.framing.is_in_head());
        self.phase = match (is_in_head, self.phase) {
            (true, Phase::Head(_)) | (false, Phase::Idle(_)) => self.phase,
            (true, _) => Phase::Head(now),
            (false, _) => Phase::Idle(now),
        };
        match self.phase {
            Phase::Head(since) => Some(since + self.patience.header),
            Phase::Idle(since) => Some(since + IDLE),
            Phase::Serving => None,
        }
    }

    /// What came of writing; an error once the other end has taken nothing for too long.
    fn poll_taken<R>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let write = self.patience.write;
        let alarm = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(write)));
        ready!(alarm.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

/// Stands where an ambiguous head stood. hyper refuses it in its turn, behind the answers to the requests before; and
/// it ends a head, of which hyper may have the beginning already.
const MALFORMED: &[u8] = b"\0\r\n\r\n";

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
                if buffer.filled().len() > before
                    && let Err(Ambiguous { begins_at }) = this.received(&buffer.filled()[before..])
                {
                    buffer.set_filled(before + begins_at);
                    if buffer.remaining() < MALFORMED.len() {
                        return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                    }
                    buffer.put_slice(MALFORMED);
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
        // A connection that has spoken HTTP/1.0 is answered so.
        let refuses = words.starts_with(b"HTTP/1.1 4") || words.starts_with(b"HTTP/1.0 4");
        if self.instead.is_none() && !self.http2 && refuses {
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
        let written = match self.poll_instead(context, bytes, bytes.len()) {
            Poll::Ready(None) => Pin::new(&mut self.io).poll_write(context, bytes),
            Poll::Ready(Some(result)) => Poll::Ready(result),
            Poll::Pending => Poll::Pending,
        };
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
    use http_body_util::{BodyExt, Full};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::timeout;

    use super::*;

    const S: Duration = Duration::from_secs(1);
    const HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

    fn guarded(busy: &Busy) -> (Guarded<DuplexStream>, DuplexStream) {
        let (ours, theirs) = duplex(1024);
        let patience = Patience { header: 10 * S, write: 30 * S };
        (Guarded::new(ours, busy.clone(), patience), theirs)
    }

    /// Reads as hyper does between requests: until it gives up or `most` is over.
    async fn gives_up(guarded: &mut Guarded<DuplexStream>, most: Duration) -> Option<Duration> {
        let begun = Instant::now();
        let silence = async {
            while guarded.read(&mut [0; 1024]).await.is_ok_and(|n| n > 0) {}
            begun.elapsed()
        };
        timeout(most, silence).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_says_nothing_is_late() {
        let (mut guarded, _client) = guarded(&Busy::default());
        assert_eq!(gives_up(&mut guarded, 100 * S).await, Some(10 * S));
    }

    #[tokio::test(start_paused = true)]
    async fn idleness_counts_from_the_last_request_however_quickly_it_was_served() {
        for preface in [&b""[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
            let busy = Busy::default();
            let (mut guarded, mut client) = guarded(&busy);
            client.write_all(preface).await.unwrap();
            for _ in 0..20 {
                client.write_all(HEAD).await.unwrap();
                // Nobody looks at the connection while the request is served, as it is with a hit.
                assert!(guarded.read(&mut [0; 1024]).await.unwrap() > 0);
                drop(busy.begin());
                assert_eq!(gives_up(&mut guarded, 60 * S).await, None);
            }
            assert_eq!(gives_up(&mut guarded, 100 * S).await, Some(IDLE - 60 * S));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_was_read_while_it_was_busy_ends_all_the_same() {
        let busy = Busy::default();
        let (mut guarded, _client) = guarded(&busy);
        let serving = busy.begin();
        let ended = tokio::spawn(async move { guarded.read_u8().await.map_err(|error| error.kind()) });
        tokio::task::yield_now().await;
        // The answer is out, and nobody asks again.
        drop(serving);
        let ended = timeout(IDLE * 2, ended).await.expect("idle connections end").unwrap();
        assert_eq!(ended, Err(io::ErrorKind::TimedOut));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_is_due_from_its_first_byte() {
        let busy = Busy::default();
        let (mut guarded, mut client) = guarded(&busy);
        client.write_all(HEAD).await.unwrap();
        assert!(guarded.read(&mut [0; 1024]).await.unwrap() > 0);
        drop(busy.begin());
        assert_eq!(gives_up(&mut guarded, 40 * S).await, None);
        client.write_all(&HEAD[..5]).await.unwrap();
        assert_eq!(gives_up(&mut guarded, 6 * S).await, None);
        client.write_all(&HEAD[5..9]).await.unwrap();
        assert_eq!(gives_up(&mut guarded, 100 * S).await, Some(4 * S));
        let mut said = [0; 12];
        client.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"HTTP/1.1 408");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_dropped_and_one_that_takes_a_little_is_not() {
        let (mut guarded, mut client) = guarded(&Busy::default());
        let sending = tokio::spawn(async move {
            let begun = Instant::now();
            let ended = guarded.write_all(&[7; 8 * 1024]).await.map_err(|error| error.kind());
            (ended, begun.elapsed())
        });
        for _ in 0..5 {
            tokio::time::sleep(29 * S).await;
            client.read_exact(&mut [0; 1]).await.unwrap();
        }
        assert_eq!(sending.await.unwrap(), (Err(io::ErrorKind::TimedOut), (5 * 29 + 30) * S));
    }

    #[tokio::test]
    async fn an_ambiguous_head_is_made_a_malformed_one_where_it_begins() {
        let ambiguous = b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        for cut in 0..ambiguous.len() - 5 {
            let (mut guarded, mut client) = guarded(&Busy::default());
            client.write_all(&[HEAD, &ambiguous[..cut]].concat()).await.unwrap();
            let mut seen = Vec::with_capacity(1024);
            guarded.read_buf(&mut seen).await.unwrap();
            client.write_all(&ambiguous[cut..]).await.unwrap();
            guarded.read_buf(&mut seen).await.unwrap();
            assert_eq!(seen, [HEAD, &ambiguous[..cut], MALFORMED].concat(), "cut at {cut}");
        }
    }

    #[tokio::test]
    async fn an_answer_goes_to_http_2_in_pieces_and_holds_its_connection() {
        let (busy, page) = (Busy::default(), Bytes::from(vec![7; 150 * 1024]));
        for (version, pieces) in [(Version::HTTP_2, &[65_536, 65_536, 22_528][..]), (Version::HTTP_11, &[153_600])] {
            let mut held = Held::new(Full::new(page.clone()), version, busy.begin());
            assert_eq!(held.size_hint().exact(), Some(150 * 1024));
            let mut seen = Vec::new();
            while let Some(frame) = held.frame().await {
                assert!(busy.is());
                seen.push(frame.unwrap().into_data().unwrap().len());
                assert_eq!(held.is_end_stream(), seen.len() == pieces.len());
            }
            assert_eq!(seen, pieces);
            drop(held);
            assert!(!busy.is());
        }
        assert!(Held::new(Full::new(Bytes::new()), Version::HTTP_2, busy.begin()).is_end_stream());
    }
}
