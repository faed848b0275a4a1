//! Limits the memory of all request bodies together: while they arrive, while they are parsed, and while their requests
//! wait.
//!
//! Each body has its own limit, but a thousand clients with large bodies, or with queries that wait for their turn,
//! would still fill the memory. Beyond a common limit large bodies are refused. Small ones, as queries usually are, are
//! accepted up to twice that limit, so that large ones cannot keep them out.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body of at most this many bytes is small. Twilio's queries have a few hundred.
const SMALL: u64 = 64 * 1024;

/// Canonical bodies of at most this many bytes are not counted: there are no more of them than requests in progress.
pub(super) const UNCOUNTED: usize = 16 * 1024;

/// Counts the bytes that are held. Cheap to clone; outlives reloads.
#[derive(Debug, Clone)]
pub struct Bodies {
    held: Arc<AtomicU64>,
    most: u64,
}

/// The memory for another large body is used up.
#[derive(Debug, thiserror::Error)]
#[error("too many large bodies are held at once")]
pub(super) struct BodyMemoryFull;

impl Bodies {
    /// Holds at most `most` bytes of large bodies, and at most twice as many of all bodies.
    pub fn new(most: u64) -> Self {
        Self { held: Arc::default(), most }
    }

    /// A reservation for the body of a request, of which nothing has come yet.
    pub(super) fn reserve(&self) -> BodyReservation {
        BodyReservation { bodies: self.clone(), bytes: 0 }
    }

    /// Reserves bytes for a request that has reserved `own` already and has a body of `length`. They are counted even
    /// if the result is an error, so that dropping the reservation is right in both cases.
    fn take(&self, bytes: u64, own: u64, length: u64) -> Result<(), BodyMemoryFull> {
        let before = self.held.fetch_add(bytes, Ordering::Relaxed);
        let most = if length > SMALL { self.most } else { self.most.saturating_mul(2) };
        // A body that is alone is accepted, because it would not fit later either.
        let is_full = before > own && before + bytes > most;
        if is_full { Err(BodyMemoryFull) } else { Ok(()) }
    }
}

/// Bytes that are reserved for the body of one request.
#[derive(Debug)]
pub(super) struct BodyReservation {
    bodies: Bodies,
    bytes: u64,
}

impl BodyReservation {
    /// The same body, counted as it arrives.
    pub(super) fn count<B>(&mut self, body: B) -> CountedBody<'_, B> {
        CountedBody { body, reservation: self }
    }

    /// Reserves bytes in addition to those of the body itself.
    pub(super) fn beside(&self, bytes: usize) -> Result<Self, BodyMemoryFull> {
        let more = Self { bodies: self.bodies.clone(), bytes: bytes as u64 };
        self.bodies.take(more.bytes, self.bytes, self.bytes).map(|()| more)
    }

    /// `bytes`, counted until their last clone is dropped.
    pub(super) fn hold(&self, bytes: Bytes) -> Result<Bytes, BodyMemoryFull> {
        if bytes.len() <= UNCOUNTED {
            return Ok(bytes);
        }
        let reservation = self.beside(bytes.len())?;
        Ok(Bytes::from_owner(ReservedBytes { bytes, _reservation: reservation }))
    }
}

impl Drop for BodyReservation {
    fn drop(&mut self) {
        self.bodies.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Bytes and their reservation.
struct ReservedBytes {
    bytes: Bytes,
    _reservation: BodyReservation,
}

impl AsRef<[u8]> for ReservedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[derive(Debug)]
pub(super) struct CountedBody<'r, B> {
    body: B,
    reservation: &'r mut BodyReservation,
}

impl<B> Body for CountedBody<'_, B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context)).transpose().map_err(Into::into)?;
        if let Some(data) = frame.as_ref().and_then(Frame::data_ref) {
            let (length, own) = (data.len() as u64, this.reservation.bytes);
            this.reservation.bytes += length;
            this.reservation.bodies.take(length, own, this.reservation.bytes)?;
        }
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};

    use super::*;

    /// A body of this size arrives: its reservation, or `None` if it was refused.
    async fn come(bodies: &Bodies, bytes: u64) -> Option<BodyReservation> {
        let mut reservation = bodies.reserve();
        let body = Full::new(Bytes::from(vec![7; usize::try_from(bytes).unwrap()]));
        let came = reservation.count(body).collect().await.is_ok();
        came.then_some(reservation)
    }

    fn held(bodies: &Bodies) -> u64 {
        bodies.held.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn large_bodies_share_a_limit_and_small_ones_have_a_higher_one() {
        let bodies = Bodies::new(3 * SMALL);
        let one = come(&bodies, 2 * SMALL).await.unwrap();
        assert!(come(&bodies, 2 * SMALL).await.is_none());
        assert!(come(&bodies, SMALL + 1).await.is_none(), "it is beyond the limit");
        let mut small = Vec::new();
        for _ in 0..4 {
            small.push(come(&bodies, SMALL).await.expect("beyond the limit"));
        }
        assert!(come(&bodies, SMALL).await.is_none(), "small ones are limited, too");
        drop((one, small));
        assert_eq!(held(&bodies), 0);
        assert!(come(&bodies, 4 * SMALL).await.is_some(), "alone");
        assert_eq!(held(&bodies), 0);
    }

    #[tokio::test]
    async fn memory_of_parsing_a_body_is_counted() {
        let bodies = Bodies::new(3 * SMALL);
        let one = come(&bodies, SMALL + 1).await.unwrap();
        let read = one.beside(9 * SMALL as usize).expect("alone");
        assert!(come(&bodies, SMALL + 1).await.is_none());
        drop(read);
        let other = come(&bodies, SMALL + 1).await.unwrap();
        assert!(one.beside(SMALL as usize).is_err());
        drop((one, other));
        assert_eq!(held(&bodies), 0);
    }

    #[tokio::test]
    async fn held_bytes_are_counted_until_their_last_clone_is_dropped() {
        let bodies = Bodies::new(3 * SMALL);
        let reservation = come(&bodies, 2 * SMALL).await.unwrap();
        let bytes = reservation.hold(Bytes::from(vec![7; 2 * SMALL as usize])).expect("alone");
        drop(reservation);
        let clone = bytes.clone();
        drop(bytes);
        assert_eq!((held(&bodies), clone.len() as u64), (2 * SMALL, 2 * SMALL));
        assert!(come(&bodies, 2 * SMALL).await.is_none());
        drop(clone);
        assert_eq!(held(&bodies), 0);
    }
}
