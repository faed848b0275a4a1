//! The response of the service, completed for its connection.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{HeaderValue, Method, Response, Version, header};
use http_body::Body;
use pin_project_lite::pin_project;

use super::connections::BusyGuard;
use super::streams;
use super::tracked_body::TrackedBody;
use crate::request::body::ResponseBody;

pin_project! {
    /// Completes the service's response with what depends on the connection, and keeps the connection busy until then.
    pub(super) struct ResponseFuture<F> {
        #[pin]
        answer: F,
        method: Method,
        version: Version,
        // Taken by the response.
        busy: Option<BusyGuard>,
    }
}

impl<F> ResponseFuture<F> {
    /// The response that `answer` gives to a request of this method and version.
    pub(super) fn new(answer: F, method: Method, version: Version, busy: BusyGuard) -> Self {
        Self { answer, method, version, busy: Some(busy) }
    }
}

impl<F> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<ResponseBody>, Infallible>>,
{
    type Output = Result<Response<TrackedBody<ResponseBody>>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.answer.poll(context))?;
        // Nobody polls a future again that has ended.
        let Some(mut busy) = this.busy.take() else { return Poll::Pending };
        busy.answered();
        streams::answered();
        if busy.connection().is_leaving() && *this.version < Version::HTTP_2 {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if *this.method == Method::HEAD {
            state_length(&mut response);
        }
        Poll::Ready(Ok(response.map(|body| TrackedBody::new(body, this.method, *this.version, busy))))
    }
}

/// A response to HEAD states the length of the response to GET (RFC 9110 section 9.3.2).
fn state_length(response: &mut Response<ResponseBody>) {
    if let Some(length @ 1..) = response.body().size_hint().exact() {
        response.headers_mut().entry(header::CONTENT_LENGTH).or_insert(length.into());
    }
}
