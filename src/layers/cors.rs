//! Cross-origin resource sharing: pages of the origins in `server.cors` may send requests and read the responses.
//!
//! This layer is around all layers that answer, so that errors have the same headers. A preflight is answered here: a
//! browser sends it without the page's headers, so it has no token yet, and it does not count against any rate.
//! Credentials that a browser adds by itself are never allowed (no `Access-Control-Allow-Credentials`). Whether a page
//! may use a gateway that demands no token is decided by `authenticate`, not here.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::{BoxFuture, Either};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use tower::{Layer, Service};

use crate::core::outcome::Outcome;
use crate::request::body::ResponseBody;
use crate::request::incoming::IncomingRequest;
use crate::semantics::cache_status::CACHE_STATUS;
use crate::semantics::origin::{self, Origin};
use crate::twilio::endpoint::{Route, route};

/// What a page may send.
const REQUEST_HEADERS: HeaderValue = HeaderValue::from_static(
    "Authorization, Content-Type, If-None-Match, Cache-Control, Prefer, Priority, Idempotency-Key",
);
/// What it may read in addition to the headers that browsers always expose.
const RESPONSE_HEADERS: HeaderValue = HeaderValue::from_static(
    "X-Request-Id, Cache-Status, Age, ETag, RateLimit, RateLimit-Policy, Retry-After, Location, Content-Location, \
     Preference-Applied, Insights-Gateway-Hint",
);
/// Seconds for which a browser may remember the answer.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// Makes [`Cors`] services.
#[derive(Debug, Clone)]
pub struct CorsLayer(Option<Arc<[Origin]>>);

impl CorsLayer {
    /// Allows pages of exactly these origins. Without any, no header is added to any response.
    pub fn new(origins: &[Origin]) -> Self {
        Self((!origins.is_empty()).then(|| origins.into()))
    }
}

impl<S> Layer<S> for CorsLayer {
    type Service = Cors<S>;

    fn layer(&self, inner: S) -> Cors<S> {
        Cors { inner, origins: self.0.clone() }
    }
}

/// Allows pages of other origins; see the module.
#[derive(Debug, Clone)]
pub struct Cors<S> {
    inner: S,
    origins: Option<Arc<[Origin]>>,
}

impl<S, B> Service<IncomingRequest<B>> for Cors<S>
where
    S: Service<IncomingRequest<B>, Response = Response<ResponseBody>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Either<S::Future, BoxFuture<'static, Result<Response<ResponseBody>, Infallible>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, incoming: IncomingRequest<B>) -> Self::Future {
        let Some(origins) = &self.origins else { return Either::Left(self.inner.call(incoming)) };
        let allowed = allowed(incoming.request.headers(), origins);
        if let Some(methods) = allowed.as_ref().and_then(|_| preflight(&incoming.request)) {
            // It is set only here: no other layer sees this request.
            let _ = incoming.context.outcome.set(Outcome::Bypass);
            let mut response = answer(methods);
            name(response.headers_mut(), allowed);
            return Either::Right(Box::pin(std::future::ready(Ok(response))));
        }
        let answered = self.inner.call(incoming);
        Either::Right(Box::pin(async move {
            let mut response = answered.await?;
            let headers = response.headers_mut();
            if allowed.is_some() {
                headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, RESPONSE_HEADERS);
            }
            name(headers, allowed);
            Ok(response)
        }))
    }
}

/// The request's origin as it was sent, if it is one of `origins`.
fn allowed(headers: &HeaderMap, origins: &[Origin]) -> Option<HeaderValue> {
    let origin = origin::of(headers)??;
    let sent = headers.get(header::ORIGIN).filter(|_| origins.contains(&origin))?;
    // A copy, because the value is a slice of the whole head, which contains the client's token.
    HeaderValue::from_bytes(sent.as_bytes()).ok()
}

/// The methods of the path, if this request asks for them before the real one (Fetch, section 3.3.2).
fn preflight<B>(request: &Request<B>) -> Option<String> {
    let asks =
        request.method() == Method::OPTIONS && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    match asks.then(|| route(request.method(), request.uri().path())) {
        Some(Route::MethodNotAllowed(methods)) => Some(methods),
        _ => None,
    }
}

fn answer(methods: String) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    if let Ok(methods) = HeaderValue::try_from(methods) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    }
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS);
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    headers.insert(CACHE_STATUS, HeaderValue::from_static("insights-gateway; detail=bypass"));
    response
}

/// Names the origin that may read the response. `Vary` is set in all cases, because the response differs by origin.
fn name(headers: &mut HeaderMap, allowed: Option<HeaderValue>) {
    if let Some(origin) = allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
    let others = headers.get(header::VARY).and_then(|others| others.to_str().ok());
    let vary = others.and_then(|others| HeaderValue::try_from(format!("{others}, Origin")).ok());
    headers.insert(header::VARY, vary.unwrap_or(HeaderValue::from_static("Origin")));
}
