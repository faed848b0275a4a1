//! The body of every response that this process sends, on the data plane and on the admin plane.
//!
//! Nearly all bodies are complete before the head is sent. They cost as much as [`Full`]. A body whose end is not known
//! in advance is a stream behind a pointer.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};

/// Why a stream ended early. The client sees a connection or an HTTP/2 stream that ends too early.
pub type StreamError = Box<dyn Error + Send + Sync>;

/// The body of a response.
#[derive(Debug)]
pub struct ResponseBody(Kind);

#[derive(Debug)]
enum Kind {
    Full(Full<Bytes>),
    Stream(UnsyncBoxBody<Bytes, StreamError>),
}

impl ResponseBody {
    /// These bytes. Their number is in the head.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self(Kind::Full(Full::new(bytes.into())))
    }

    /// No bytes.
    pub fn empty() -> Self {
        Self::full(Bytes::new())
    }

    /// Sends what `body` yields, as it comes. An HTTP/2 stream on which nothing comes for `server.write_timeout` is
    /// reset.
    pub fn stream<B>(body: B) -> Self
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<StreamError>,
    {
        Self(Kind::Stream(body.map_err(Into::into).boxed_unsync()))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        match &mut self.0 {
            Kind::Full(full) => Pin::new(full).poll_frame(context).map_err(|never| match never {}),
            Kind::Stream(stream) => Pin::new(stream).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Full(full) => full.is_end_stream(),
            Kind::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Full(full) => full.size_hint(),
            Kind::Stream(stream) => stream.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::StreamBody;

    use super::*;

    #[tokio::test]
    async fn complete_bytes_state_their_length_and_a_stream_does_not() {
        let full = ResponseBody::full("a page");
        assert_eq!((full.size_hint().exact(), full.is_end_stream()), (Some(6), false));
        assert_eq!(full.collect().await.unwrap().to_bytes(), "a page");
        assert_eq!((ResponseBody::empty().size_hint().exact(), ResponseBody::empty().is_end_stream()), (Some(0), true));

        let parts = ["one ", "two"].map(|part| Ok::<_, std::io::Error>(Frame::data(Bytes::from(part))));
        let streamed = ResponseBody::stream(StreamBody::new(stream::iter(parts)));
        assert_eq!((streamed.size_hint().exact(), streamed.is_end_stream()), (None, false));
        assert_eq!(streamed.collect().await.unwrap().to_bytes(), "one two");
    }

    #[tokio::test]
    async fn a_stream_that_ends_early_says_why() {
        let broken = stream::iter([Err::<Frame<Bytes>, _>(std::io::Error::other("gone"))]);
        let error = ResponseBody::stream(StreamBody::new(broken)).collect().await.unwrap_err();
        assert_eq!(error.to_string(), "gone");
    }
}
