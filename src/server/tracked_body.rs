//! The body of a response on its way to the socket.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Method, Version};
use http_body::{Body, Frame, SizeHint};

use super::connections::BusyGuard;

/// A response's body, which keeps its connection busy until it is sent.
#[derive(Debug)]
pub(super) struct TrackedBody<B> {
    /// `None` where there is no body to send.
    body: Option<B>,
    /// What has been taken from the body and is not sent yet.
    rest: Bytes,
    /// Bytes that are handed over at a time.
    most: usize,
    _busy: BusyGuard,
}

impl<B> TrackedBody<B> {
    /// For HTTP/1.1 the body is handed over in one piece. For HTTP/2 it is handed over in several, because the library
    /// keeps each piece in memory until the client's window lets it go. The response to HEAD has no body.
    pub(super) fn new(body: B, method: &Method, version: Version, busy: BusyGuard) -> Self {
        const PIECE: usize = 64 * 1024;
        let most = if version == Version::HTTP_2 { PIECE } else { usize::MAX };
        let body = (method != Method::HEAD).then_some(body);
        Self { body, rest: Bytes::new(), most, _busy: busy }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for TrackedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        if this.rest.is_empty() {
            let Some(body) = &mut this.body else { return Poll::Ready(None) };
            match ready!(Pin::new(body).poll_frame(context)).transpose()?.map(Frame::into_data) {
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
        self.rest.is_empty() && self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, behind) =
            (self.rest.len() as u64, self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint));
        let mut hint = SizeHint::new();
        hint.set_lower(rest + behind.lower());
        if let Some(upper) = behind.upper() {
            hint.set_upper(rest + upper);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};

    use super::*;
    use crate::server::connections::Connection;

    #[tokio::test]
    async fn an_answer_goes_to_http_2_in_pieces_and_holds_its_connection() {
        let (place, page) = (Connection::alone(), Bytes::from(vec![7; 150 * 1024]));
        let busy = place.connection();
        for (version, pieces) in [(Version::HTTP_2, &[65_536, 65_536, 22_528][..]), (Version::HTTP_11, &[153_600])] {
            let mut held = TrackedBody::new(Full::new(page.clone()), &Method::GET, version, busy.begin());
            assert_eq!(held.size_hint().exact(), Some(150 * 1024));
            let mut seen = Vec::new();
            while let Some(frame) = held.frame().await {
                assert!(busy.is_busy());
                seen.push(frame.unwrap().into_data().unwrap().len());
                assert_eq!(held.is_end_stream(), seen.len() == pieces.len());
            }
            assert_eq!(seen, pieces);
            drop(held);
            assert!(!busy.is_busy());
        }
        assert!(TrackedBody::new(Full::new(Bytes::new()), &Method::GET, Version::HTTP_2, busy.begin()).is_end_stream());
    }

    #[tokio::test]
    async fn the_answer_to_a_head_has_no_body() {
        let place = Connection::alone();
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let body = Full::new(Bytes::from_static(b"a page"));
            let mut held = TrackedBody::new(body, &Method::HEAD, version, place.connection().begin());
            assert!(held.is_end_stream() && held.size_hint().exact() == Some(0));
            assert!(held.frame().await.is_none());
        }
    }
}
