//! How much of all bodies together is held, while they arrive and while they are read.
//!
//! Each body has its own limit; a thousand clients that send large ones slowly would still fill the memory. Beyond a
//! common limit large bodies are refused. Small ones, as queries are, are always taken: whoever fills the memory with
//! large ones must not keep others out.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body of so many bytes is small. Twilio's queries have a few hundred.
const SMALL: u64 = 64 * 1024;

/// Bytes that are held. Cheap to clone; outlives reloads.
#[derive(Debug, Clone)]
pub struct Bodies {
    held: Arc<AtomicU64>,
    most: u64,
}

/// There is no room for another large body.
#[derive(Debug, thiserror::Error)]
#[error("too many large bodies are held at once")]
pub(super) struct TooMany;

impl Bodies {
    /// Holds so many bytes of large bodies at most.
    pub fn new(most: u64) -> Self {
        Self { held: Arc::default(), most }
    }

    /// Room for so many bytes more, which a body of `length` takes while it is read.
    pub(super) fn reserve(&self, bytes: usize, length: usize) -> Result<Reserved, TooMany> {
        let reserved = Reserved { bodies: self.clone(), bytes: bytes as u64 };
        let others = self.held.fetch_add(reserved.bytes, Ordering::Relaxed);
        // One that comes alone would not fit later either.
        let is_full = others > 0 && others + reserved.bytes > self.most;
        if is_full && length as u64 > SMALL { Err(TooMany) } else { Ok(reserved) }
    }

    /// The same body, counted as it arrives and until it is dropped.
    pub(super) fn count<B>(&self, body: B) -> Counted<B> {
        Counted { body, bodies: self.clone(), own: 0 }
    }
}

/// Room that is held.
#[derive(Debug)]
pub(super) struct Reserved {
    bodies: Bodies,
    bytes: u64,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.bodies.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[derive(Debug)]
pub(super) struct Counted<B> {
    body: B,
    bodies: Bodies,
    own: u64,
}

impl<B> Body for Counted<B>
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
            let length = data.len() as u64;
            this.own += length;
            let held = this.bodies.held.fetch_add(length, Ordering::Relaxed) + length;
            if held > this.bodies.most && this.own > SMALL {
                return Poll::Ready(Some(Err(TooMany.into())));
            }
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

impl<B> Drop for Counted<B> {
    fn drop(&mut self) {
        self.bodies.held.fetch_sub(self.own, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};

    use super::*;

    #[tokio::test]
    async fn large_bodies_share_their_room_and_small_ones_need_none() {
        let bodies = Bodies::new(3 * SMALL);
        let body = |bytes: u64| bodies.count(Full::new(Bytes::from(vec![7; usize::try_from(bytes).unwrap()])));
        let mut one = body(2 * SMALL);
        assert!(one.frame().await.unwrap().is_ok());
        let refused = body(2 * SMALL).frame().await.unwrap();
        assert!(refused.unwrap_err().is::<TooMany>());
        assert!(body(SMALL + 1).collect().await.is_err(), "there is room for less");
        let mut small = body(SMALL);
        assert!(small.frame().await.unwrap().is_ok());
        assert!(body(SMALL).collect().await.is_ok(), "beyond the limit");
        drop((one, small));
        assert_eq!(bodies.held.load(Ordering::Relaxed), 0);
        assert!(body(2 * SMALL).collect().await.is_ok());
    }

    #[test]
    fn what_a_body_takes_while_it_is_read_is_counted() {
        let bodies = Bodies::new(3 * SMALL);
        let (small, large) = (SMALL as usize, 2 * SMALL as usize);
        let one = bodies.reserve(large, large).unwrap();
        assert!(bodies.reserve(large, large).is_err());
        assert!(bodies.reserve(large, small).is_ok(), "beyond the limit");
        drop(one);
        assert_eq!(bodies.held.load(Ordering::Relaxed), 0);
        assert!(bodies.reserve(large, large).is_ok());
    }
}
