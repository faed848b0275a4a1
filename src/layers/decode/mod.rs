//! Turns HTTP into a [`ClientQuery`], and a [`ClientResponse`] into HTTP.
//!
//! A body is read completely, within a size and a time, and sent on in canonical form. The cache key needs the whole
//! body, so bodies cannot stream. Of the client's headers, only what [`RequestDirectives`] reads, the trace ids, and
//! the headers that the endpoint lists go further.
//!
//! A team's policy is applied here, before the key is computed. So nothing is looked up that a team may not see, and
//! teams with equal effective queries share pages. The result is remembered together with the parsed query, so that a
//! hit of a team with a policy parses nothing again.

mod bodies;
mod collect;
mod layer;
mod parse_cache;
mod read;
mod restriction;
mod tokens;
mod validation;
mod write;

use std::borrow::Cow;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::Body;
use tower::{Layer, Service, ServiceExt};

pub use self::bodies::Bodies;
use self::bodies::BodyMemoryFull;
pub use self::collect::Limits;
use self::collect::{collect, too_many};
pub use self::layer::DecodeLayer;
use self::read::{CollectedRequest, ReadOutcome};
pub use self::restriction::FreshPages;
use self::restriction::{MetadataView, Restriction};
pub use self::tokens::IssuedPageTokens;
use self::write::write;
use crate::core::error::{GatewayError, Reason};
use crate::core::fields;
use crate::request::body::ResponseBody;
use crate::request::context::Stage;
use crate::request::grants;
use crate::request::incoming::{AuthorizedRequest, IncomingRequest};
use crate::request::query::ClientQuery;
use crate::request::response::ClientResponse;
use crate::semantics::request_directives::RequestDirectives;
use crate::twilio::endpoint::{self, Endpoint};
use crate::twilio::permission::Permission;

impl<S> Layer<S> for DecodeLayer {
    type Service = Decode<S>;

    fn layer(&self, inner: S) -> Decode<S> {
        Decode { inner, layer: Arc::new(self.clone()) }
    }
}

/// Translates; see the module.
#[derive(Debug, Clone)]
pub struct Decode<S> {
    inner: S,
    layer: Arc<DecodeLayer>,
}

impl<S, B> Service<AuthorizedRequest<B>> for Decode<S>
where
    S: Service<ClientQuery, Response = ClientResponse, Error = GatewayError> + Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<ResponseBody>;
    type Error = GatewayError;
    type Future = BoxFuture<'static, Result<Response<ResponseBody>, GatewayError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), GatewayError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, authorized: AuthorizedRequest<B>) -> Self::Future {
        let (mut inner, layer) = (self.inner.clone(), Arc::clone(&self.layer));
        // Destructured here: a future that takes the whole value stores it in addition to its parts, and moving a large
        // future costs a hit more than reading its head.
        let AuthorizedRequest { incoming: IncomingRequest { request, received, context, peer }, endpoint, team } =
            authorized;
        let directives = RequestDirectives::read(request.headers());
        let may_link = endpoint.permission == Permission::Jobs || directives.respond_async;
        let base = may_link.then(|| Arc::new(layer.links.base(&request, peer.uses_tls())));
        let (head, body) = request.into_parts();
        // The rest of the head is dropped before the body is awaited. What is kept of it is copied, because a slice
        // would keep the whole head in memory.
        let query = head.uri.query().unwrap_or_default().into();
        let is_readable = check_coding(&head.headers);
        let (path, headers) = (path(endpoint, head.uri.path()), forwarded(endpoint, &head.headers));
        drop(head);
        Box::pin(async move {
            let mut reservation = layer.bodies.reserve();
            let body = if endpoint.body == endpoint::Body::None {
                drop(body);
                Bytes::new()
            } else {
                is_readable?;
                collect(body, layer.limits, &mut reservation).await?
            };
            let mut asked = CollectedRequest {
                endpoint,
                path,
                query,
                directives,
                headers,
                base,
                body,
                reservation,
                team,
                received,
                context: Arc::clone(&context),
            };
            if let Some(learning) = layer.learn_token(&asked) {
                learning.wait(&context.store_wait).await;
            }
            let read = if asked.body.len() > LARGE {
                let (read_asked, read) = Box::pin(read_beside(&layer, asked, DecodeLayer::read)).await?;
                asked = read_asked;
                read
            } else {
                layer.read(&asked)?
            };
            let read = match read {
                ReadOutcome::Query(query, tokens) => Ok((query, tokens)),
                ReadOutcome::NeedsMetadata(query, restriction) => {
                    let purges = layer.restrictions.purges();
                    match Box::pin(fetch_view(inner.clone(), query, &restriction)).await? {
                        Ok(view) => {
                            if layer.restrictions.fresh(&restriction).is_none() {
                                restriction.remember(&view, received, purges);
                            }
                            if asked.body.len() > LARGE {
                                let read = move |layer: &DecodeLayer, asked: &CollectedRequest| {
                                    layer.read_with(asked, restriction, &view)
                                };
                                let (read_asked, read) = Box::pin(read_beside(&layer, asked, read)).await?;
                                asked = read_asked;
                                Ok(read)
                            } else {
                                Ok(layer.read_with(&asked, restriction, &view)?)
                            }
                        }
                        Err(reply) => Err(reply),
                    }
                }
            };
            drop(asked);
            context.end_of(Stage::Read);
            let mut hintable = None;
            let reply = match read {
                Ok((query, tokens)) => {
                    let DecodeLayer { validator, restrictions, .. } = &*layer;
                    if validator.must_check(restrictions, &query) {
                        Box::pin(validator.check(inner.clone(), restrictions, &query)).await?;
                    }
                    hintable = validator.hintable(&query);
                    poll_fn(|context| inner.poll_ready(context)).await?;
                    let reply = inner.call(query).await;
                    context.end_of(Stage::Cache);
                    let reply = reply?;
                    if let Some(giving) = tokens.and_then(|restriction| restriction.give_tokens_of(&reply.page)) {
                        grants::share_before_answer(giving, reply.outcome, &context.store_wait).await;
                    }
                    reply
                }
                // Why the account's metadata is not available, without which nothing can be proven.
                Err(reply) => *reply,
            };
            // It is set only here, where it is certain that Twilio's response is returned.
            let _ = context.outcome.set(reply.outcome);
            let told = hintable.as_ref().zip(context.team.get());
            let hint = told.and_then(|(asked, team)| layer.validator.hint(&layer.restrictions, team, asked, &reply));
            let mut response = write(reply);
            if let Some(hint) = hint {
                response.headers_mut().insert(HINT, hint);
            }
            Ok(response)
        })
    }
}

/// The response header that lists the unknown names of a query, and what was probably meant.
const HINT: header::HeaderName = header::HeaderName::from_static("insights-gateway-hint");

/// Bodies of more bytes are parsed outside the data plane's threads: that takes as long as thousands of hits.
const LARGE: usize = 32 * 1024;

/// Parses a large request on a blocking thread.
async fn read_beside<T: Send + 'static>(
    layer: &Arc<DecodeLayer>,
    asked: CollectedRequest,
    read: impl FnOnce(&DecodeLayer, &CollectedRequest) -> Result<T, GatewayError> + Send + 'static,
) -> Result<(CollectedRequest, T), GatewayError> {
    let turn = Arc::clone(&layer.large).acquire_owned();
    // The semaphore is never closed.
    let Ok(Ok(turn)) = tokio::time::timeout_at(asked.received + layer.limits.deadline, turn).await else {
        return Err(too_many(BodyMemoryFull));
    };
    let layer = Arc::clone(layer);
    let reading = tokio::task::spawn_blocking(move || {
        // Held until the work is done, even if the client has left.
        let _turn = turn;
        read(&layer, &asked).map(|read| (asked, read))
    });
    let failed = |error| {
        let message = "the gateway failed while it read this; tell its operator";
        GatewayError::new(Reason::Internal, message).with_cause(error)
    };
    reading.await.unwrap_or_else(|error| Err(failed(error)))
}

/// The path to send upstream. Without an id, it is the table's own.
fn path(endpoint: &Endpoint, requested: &str) -> Cow<'static, str> {
    if requested == endpoint.path { endpoint.path.into() } else { requested.to_owned().into() }
}

/// The client's headers that go upstream. They are copied, because a slice would keep the whole head in memory.
fn forwarded(endpoint: &Endpoint, headers: &HeaderMap) -> Option<Arc<HeaderMap>> {
    let mut forwarded = HeaderMap::new();
    for name in endpoint.sends {
        for value in headers.get_all(*name).iter().filter_map(|value| HeaderValue::from_bytes(value.as_bytes()).ok()) {
            forwarded.append(*name, value);
        }
    }
    (!forwarded.is_empty()).then(|| Arc::new(forwarded))
}

/// Refuses a body with a content coding: the gateway parses bodies, and does not decode them.
fn check_coding(headers: &HeaderMap) -> Result<(), GatewayError> {
    let is_identity = |value: &HeaderValue| {
        let words = value.to_str().map(|list| list.split(',').map(str::trim));
        words.is_ok_and(|mut words| words.all(|word| word.is_empty() || word.eq_ignore_ascii_case("identity")))
    };
    match fields::values(headers, header::CONTENT_ENCODING).all(is_identity) {
        true => Ok(()),
        false => Err(GatewayError::new(
            Reason::BadRequest,
            "the request body has a Content-Encoding, which is not supported; send it as it is",
        )),
    }
}

/// Fetches the account's metadata with the query `metadata` and returns its view; or the response to send instead.
async fn fetch_view<S>(
    inner: S,
    metadata: ClientQuery,
    restriction: &Restriction,
) -> Result<Result<Arc<MetadataView>, Box<ClientResponse>>, GatewayError>
where
    S: Service<ClientQuery, Response = ClientResponse, Error = GatewayError>,
{
    let reply = inner.oneshot(metadata).await?;
    match reply.page.status.is_success() {
        true => restriction.view(&reply.page).map(Ok),
        false => Ok(Err(Box::new(reply))),
    }
}

#[cfg(test)]
mod tests;
