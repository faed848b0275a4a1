//! The one place where a [`GatewayError`] becomes HTTP, in Twilio's error format.
//!
//! Twilio's SDKs can parse such an error, and `params` say that the gateway made it and why. Causes go to the log,
//! never to the client.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::future::{self, Either, Ready};
use http::{HeaderValue, Response, header};
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::core::chain::chain;
use crate::core::error::{GatewayError, Reason, whole_seconds};
use crate::request::body::ResponseBody;
use crate::request::context::RequestContext;
use crate::request::incoming::IncomingRequest;
use crate::semantics::cache_status::CACHE_STATUS;

/// Makes [`Rescue`] services.
#[derive(Debug, Clone, Copy)]
pub struct RescueLayer;

impl<S> Layer<S> for RescueLayer {
    type Service = Rescue<S>;

    fn layer(&self, inner: S) -> Rescue<S> {
        Rescue { inner, not_ready: None }
    }
}

/// Turns errors into responses; see the module.
#[derive(Debug, Clone)]
pub struct Rescue<S> {
    inner: S,
    /// Why the inner service is not ready. The next request gets this error.
    not_ready: Option<GatewayError>,
}

impl<S, B> Service<IncomingRequest<B>> for Rescue<S>
where
    S: Service<IncomingRequest<B>, Response = Response<ResponseBody>, Error = GatewayError>,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Rescued<Either<S::Future, Ready<Result<Response<ResponseBody>, GatewayError>>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.not_ready = ready!(self.inner.poll_ready(context)).err();
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, incoming: IncomingRequest<B>) -> Self::Future {
        let context = Arc::clone(&incoming.context);
        let answer = match self.not_ready.take() {
            None => Either::Left(self.inner.call(incoming)),
            Some(error) => Either::Right(future::ready(Err(error))),
        };
        Rescued { answer, context }
    }
}

pin_project! {
    /// Always a response.
    #[derive(Debug)]
    pub struct Rescued<F> {
        #[pin]
        answer: F,
        context: Arc<RequestContext>,
    }
}

impl<F> Future for Rescued<F>
where
    F: Future<Output = Result<Response<ResponseBody>, GatewayError>>,
{
    type Output = Result<Response<ResponseBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = ready!(this.answer.poll(context));
        Poll::Ready(Ok(answer.unwrap_or_else(|error| respond(&error, this.context))))
    }
}

fn respond(error: &GatewayError, context: &RequestContext) -> Response<ResponseBody> {
    let reason = error.reason();
    // It is set only here: a request that failed has no other outcome.
    let _ = context.outcome.set(reason.outcome());
    let _ = context.reason.set(reason);
    let _ = context.error.set(error.clone());
    if let Some(cause) = std::error::Error::source(error) {
        let _span = context.span().entered();
        tracing::debug!(reason = reason.as_str(), cause = chain(cause), "{error}");
    }
    let reason = error.reason();
    let mut response = Response::new(ResponseBody::full(error.to_body()));
    *response.status_mut() = reason.status();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let detail = format!("insights-gateway; detail={}", reason.outcome().as_str());
    if let Ok(detail) = HeaderValue::try_from(detail) {
        headers.insert(CACHE_STATUS, detail);
    }
    if let Some(wait) = error.retry_after() {
        headers.insert(header::RETRY_AFTER, whole_seconds(wait).as_secs().into());
    } else if matches!(reason.status().as_u16(), 429 | 503) {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if let Some(methods) = error.allow().and_then(|methods| HeaderValue::from_str(methods).ok()) {
        headers.insert(header::ALLOW, methods);
    }
    if reason == Reason::Unauthenticated {
        let challenge = HeaderValue::from_static("Basic realm=\"insights-gateway\", Bearer");
        headers.insert(header::WWW_AUTHENTICATE, challenge);
    }
    if matches!(reason, Reason::ClientTimeout | Reason::BodyTooLarge | Reason::HeadersTooLarge | Reason::Draining) {
        // The rest of this request is not read, or no further request.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
