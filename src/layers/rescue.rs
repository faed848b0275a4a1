//! The one place where a [`GatewayError`] becomes HTTP, in Twilio's own error shape.
//!
//! So that Twilio's SDKs parse it like one of Twilio's, and a person sees from `params` that the gateway
//! made it and why. Causes go to the log, never to the client.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderName, HeaderValue, Response, header};
use http_body_util::Full;
use tower::{Layer, Service};

use crate::model::error::{GatewayError, Reason};
use crate::model::journey::Journey;
use crate::model::visit::Visit;

/// Makes [`Rescue`] services.
#[derive(Debug, Clone, Copy)]
pub struct RescueLayer;

impl<S> Layer<S> for RescueLayer {
    type Service = Rescue<S>;

    fn layer(&self, inner: S) -> Rescue<S> {
        Rescue { inner }
    }
}

/// Turns errors into answers. See the module.
#[derive(Debug, Clone)]
pub struct Rescue<S> {
    inner: S,
}

impl<S, B> Service<Visit<B>> for Rescue<S>
where
    S: Service<Visit<B>, Response = Response<Full<Bytes>>, Error = GatewayError> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Full<Bytes>>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Whether the inner service is ready is a thing to be rescued too.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, visit: Visit<B>) -> Self::Future {
        let mut inner = self.inner.clone();
        Box::pin(async move {
            let journey = Arc::clone(&visit.journey);
            let answered = match std::future::poll_fn(|context| inner.poll_ready(context)).await {
                Ok(()) => inner.call(visit).await,
                Err(error) => Err(error),
            };
            Ok(answered.unwrap_or_else(|error| respond(&error, &journey)))
        })
    }
}

fn respond(error: &GatewayError, journey: &Journey) -> Response<Full<Bytes>> {
    let reason = error.reason();
    // Set once: an answer that failed has no other outcome.
    let _ = journey.outcome.set(reason.outcome());
    let _ = journey.reason.set(reason);
    if let Some(cause) = std::error::Error::source(error) {
        tracing::debug!(reason = reason.as_str(), cause = chain(cause), "{error}");
    }
    const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
    let reason = error.reason();
    let mut response = Response::new(Full::new(error.to_body()));
    *response.status_mut() = reason.status();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let detail = format!("insights-gateway; detail={}", reason.outcome().as_str());
    if let Ok(detail) = HeaderValue::try_from(detail) {
        headers.insert(CACHE_STATUS, detail);
    }
    if let Some(wait) = error.retry_after() {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    } else if matches!(reason.status().as_u16(), 429 | 503) {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if let Some(methods) = error.allow() {
        headers.insert(header::ALLOW, HeaderValue::from_static(methods));
    }
    if reason == Reason::Unauthenticated {
        let challenge = HeaderValue::from_static("Basic realm=\"insights-gateway\", Bearer");
        headers.insert(header::WWW_AUTHENTICATE, challenge);
    }
    if matches!(reason, Reason::ClientTimeout | Reason::BodyTooLarge | Reason::HeadersTooLarge | Reason::Draining) {
        // The rest of the request is not going to be read, or no other one.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// An error and all that caused it, in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
