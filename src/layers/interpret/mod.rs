//! Where HTTP becomes a [`Call`] and a [`Reply`] becomes HTTP.
//!
//! Bodies are collected whole, within a size and a time, and sent on in canonical form: the price of a cache
//! key is that nothing streams. Nothing of the client's headers goes further than what [`Wishes`] reads, and the ids of its
//! trace.

mod bodies;
mod memo;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, poll_immediate};
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use tower::{Layer, Service};

pub use self::bodies::Bodies;
use self::bodies::TooMany;
use self::memo::{Memo, Said, Understood};
use crate::model::call::{Call, Reply};
use crate::model::clock::Instant;
use crate::model::error::{GatewayError, Reason};
use crate::model::hints;
use crate::model::interest::Interest;
use crate::model::journey::{Journey, Stage};
use crate::model::key::Key;
use crate::model::operation::Operation;
use crate::model::parameters::Parameters;
use crate::model::query::{CanonicalQuery, QueryError};
use crate::model::tenancy::{Account, Team};
use crate::model::visit::{Admitted, Visit};
use crate::model::wishes::Wishes;

/// How much is read, and for how long a request may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Largest body in bytes.
    pub max_body: u64,
    /// For the whole body.
    pub body_timeout: Duration,
    /// For the whole request, from its arrival; `Prefer: wait` can only shorten it.
    pub deadline: Duration,
}

/// Makes [`Interpret`] services.
#[derive(Debug, Clone)]
pub struct InterpretLayer {
    limits: Limits,
    bodies: Bodies,
    memo: Arc<Memo>,
    /// Of every call, until it goes upstream: then the cache gives it one of its own.
    nobody: Arc<Interest>,
}

impl InterpretLayer {
    /// Reads within `limits`, and together within those of `bodies`.
    pub fn new(limits: Limits, bodies: Bodies) -> Self {
        Self { limits, bodies, memo: Arc::new(Memo::new()), nobody: Interest::of_clients() }
    }
}

impl<S> Layer<S> for InterpretLayer {
    type Service = Interpret<S>;

    fn layer(&self, inner: S) -> Interpret<S> {
        Interpret { inner, layer: Arc::new(self.clone()) }
    }
}

/// Translates. See the module.
#[derive(Debug, Clone)]
pub struct Interpret<S> {
    inner: S,
    layer: Arc<InterpretLayer>,
}

impl<S, B> Service<Admitted<B>> for Interpret<S>
where
    S: Service<Call, Response = Reply, Error = GatewayError> + Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<Full<Bytes>>;
    type Error = GatewayError;
    type Future = BoxFuture<'static, Result<Response<Full<Bytes>>, GatewayError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), GatewayError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, admitted: Admitted<B>) -> Self::Future {
        let (mut inner, layer) = (self.inner.clone(), Arc::clone(&self.layer));
        // Taken apart here: what a future is given as a whole, it keeps as a whole beside its parts, and to move a large
        // future costs a hit more than to read its head.
        let Admitted { visit: Visit { request, received, journey, .. }, operation, team } = admitted;
        let (head, body) = request.into_parts();
        Box::pin(async move {
            let body = match operation {
                Operation::Query => collect(body, layer.limits, &layer.bodies).await,
                _ => {
                    drop(body);
                    Ok(Bytes::new())
                }
            };
            let call = body.and_then(|body| layer.read(head, &body, operation, team, received, &journey));
            journey.end_of(Stage::Read);
            let call = call?;
            poll_fn(|context| inner.poll_ready(context)).await?;
            let reply = inner.call(call).await;
            journey.end_of(Stage::Cache);
            let reply = reply?;
            // Set once, here, where an answer of Twilio's is certain.
            let _ = journey.outcome.set(reply.outcome);
            Ok(write(reply))
        })
    }
}

impl InterpretLayer {
    fn read(
        &self,
        head: Parts,
        body: &[u8],
        operation: Operation,
        team: Arc<Team>,
        received: Instant,
        journey: &Arc<Journey>,
    ) -> Result<Call, GatewayError> {
        let query = head.uri.query().unwrap_or_default();
        let understand = || understand(operation, &team.account, query, body);
        let understood = match operation {
            Operation::Query => {
                let understood = self.memo.of(Said { account: &team.account.sid, query, body }, understand)?;
                journey.asks(&understood.body);
                understood
            }
            _ => understand()?,
        };
        let wishes = Wishes::read(&head.headers);
        let patience = wishes.wait.map_or(self.limits.deadline, |wait| wait.min(self.limits.deadline));
        Ok(Call {
            key: understood.key,
            operation,
            team,
            parameters: understood.parameters,
            body: understood.body,
            wishes,
            received,
            deadline: received + patience,
            interest: Arc::clone(&self.nobody),
            journey: Arc::clone(journey),
        })
    }
}

/// Reads a query string and, of a query, a body.
fn understand(operation: Operation, account: &Account, query: &str, body: &[u8]) -> Result<Understood, GatewayError> {
    let parameters =
        Parameters::parse(query).map_err(|error| GatewayError::new(Reason::BadRequest, error.to_string()))?;
    if operation == Operation::Page && !parameters.has_page_token() {
        return Err(GatewayError::new(
            Reason::InvalidQuery,
            "pageToken is required: POST a query first, then GET with the nextToken of its answer",
        ));
    }
    let body = if operation == Operation::Query { canonical(body)? } else { Bytes::new() };
    let key = Key::new(account, operation, parameters.as_str(), &body);
    Ok(Understood { parameters: parameters.as_str().into(), body, key })
}

async fn collect<B>(body: B, limits: Limits, bodies: &Bodies) -> Result<Bytes, GatewayError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let too_large = || {
        let message = format!("the request body is larger than {} bytes; ask for less at once", limits.max_body);
        GatewayError::new(Reason::BodyTooLarge, message)
    };
    if body.size_hint().lower() > limits.max_body {
        return Err(too_large());
    }
    let limit = usize::try_from(limits.max_body).unwrap_or(usize::MAX);
    let body = std::pin::pin!(body);
    let mut whole = std::pin::pin!(whole(Limited::new(bodies.count(body), limit)));
    // Nearly every body has come with its head, and a timer would cost more than to take it.
    let taken = match poll_immediate(whole.as_mut()).await {
        Some(taken) => Ok(taken),
        None => Box::pin(tokio::time::timeout(limits.body_timeout, whole)).await,
    };
    match taken {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) if error.is::<TooMany>() => Err(GatewayError::new(
            Reason::Overloaded,
            "too many large request bodies arrive at once; come back shortly",
        )
        .with_retry_after(Duration::from_secs(1))),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(GatewayError::new(Reason::BadRequest, "the request body ended before it was complete")),
        Err(_) => Err(GatewayError::new(
            Reason::ClientTimeout,
            format!("the request body took longer than {} s", limits.body_timeout.as_secs()),
        )),
    }
}

/// A body in one piece. Most have only one, which is not copied.
async fn whole<B: Body<Data = Bytes>>(body: B) -> Result<Bytes, B::Error> {
    let mut body = std::pin::pin!(body);
    let first = match body.frame().await {
        Some(frame) => frame?.into_data().unwrap_or_default(),
        None => return Ok(Bytes::new()),
    };
    if body.is_end_stream() {
        return Ok(first);
    }
    let rest = body.collect().await?.to_bytes();
    Ok(if rest.is_empty() { first } else { [first, rest].concat().into() })
}

fn canonical(body: &[u8]) -> Result<Bytes, GatewayError> {
    CanonicalQuery::parse(body).map(CanonicalQuery::into_bytes).map_err(|error| {
        let reason = match error {
            QueryError::Json(_) => Reason::InvalidJson,
            QueryError::NotAnObject | QueryError::NoQuery | QueryError::QueryNotAnObject => Reason::InvalidQuery,
        };
        GatewayError::new(reason, error.to_string())
    })
}

/// A year: what is longer is a mistake.
const LONGEST_RETRY_AFTER: u32 = 366 * 86_400;

fn write(reply: Reply) -> Response<Full<Bytes>> {
    const CACHE_STATUS: header::HeaderName = header::HeaderName::from_static("cache-status");
    let Reply { page, coded, etag, cache_status, age, not_modified, .. } = reply;
    let is_coded = coded.is_some();
    let body = if not_modified { Bytes::new() } else { coded.unwrap_or_else(|| page.body.clone()) };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = if not_modified { StatusCode::NOT_MODIFIED } else { page.status };
    let headers = response.headers_mut();
    headers.reserve(12);
    for (name, value) in &page.headers {
        headers.insert(name.clone(), value.clone());
    }
    if not_modified {
        headers.remove(header::CONTENT_TYPE);
    }
    headers.insert(CACHE_STATUS, cache_status);
    if let Some(etag) = etag {
        headers.insert(header::ETAG, etag);
    }
    if page.may_be_coded() {
        headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    if is_coded && !not_modified {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    if let Some(age) = age {
        headers.insert(header::AGE, HeaderValue::from(age.as_secs()));
    }
    let wants_retry_after = matches!(page.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    if wants_retry_after && !headers.get(header::RETRY_AFTER).is_some_and(hints::is_retry_after) {
        // Twilio documents only the reset of its own window, which Retry-After clients do not know.
        let reset = headers.get("x-ratelimit-reset").and_then(|reset| reset.to_str().ok()?.parse::<u32>().ok());
        let seconds = reset.filter(|seconds| (1..=LONGEST_RETRY_AFTER).contains(seconds)).unwrap_or(1);
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
