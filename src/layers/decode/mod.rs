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
mod parse_cache;
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
use tokio::sync::Semaphore;
use tower::{Layer, Service, ServiceExt};

pub use self::bodies::Bodies;
use self::bodies::{Room, TooMany};
pub use self::collect::Limits;
use self::collect::{collect, too_many};
use self::parse_cache::{ParseCache, ParsedQuery, RawQuery};
pub use self::restriction::FreshPages;
use self::restriction::{Restriction, Restrictions, View};
pub use self::tokens::IssuedPageTokens;
use self::validation::Validator;
use self::write::write;
use crate::accounts::Team;
use crate::core::clock::Instant;
use crate::core::error::{GatewayError, Reason};
use crate::core::json;
use crate::request::body::ResponseBody;
use crate::request::context::{RequestContext, Stage};
use crate::request::grants;
use crate::request::incoming::{AuthorizedRequest, IncomingRequest};
use crate::request::key::Key;
use crate::request::query::{CanonicalQuery, ClientQuery, Redact};
use crate::request::response::ClientResponse;
use crate::semantics::request_directives::{CacheDirectives, RequestDirectives};
use crate::twilio::endpoint::{self, Endpoint, Operation, Permission};
use crate::twilio::links::{Base, Links};
use crate::twilio::parameters::{BadParameters, PAGE_SIZE, PAGE_TOKEN, Parameters, STATUS};
use crate::twilio::policy::Denied;
use crate::twilio::query::{self, Query, QueryError};
use crate::twilio::validate::Validation;

/// Makes [`Decode`] services.
#[derive(Debug, Clone)]
pub struct DecodeLayer {
    limits: Limits,
    bodies: Bodies,
    parse_cache: Arc<ParseCache>,
    restrictions: Arc<Restrictions>,
    validator: Arc<Validator>,
    links: Arc<Links>,
    /// Permits to parse a large body.
    large: Arc<Semaphore>,
}

impl DecodeLayer {
    /// Reads within `limits`, and all requests together within those of `bodies`. `pages` has the metadata that policies
    /// and `validation` need. `tokens` remembers the page tokens that were given out under policies. The request decides
    /// where `links` in its response lead.
    pub fn new(
        limits: Limits,
        bodies: Bodies,
        pages: FreshPages,
        tokens: IssuedPageTokens,
        validation: Validation,
        links: Links,
    ) -> Self {
        let (parse_cache, large) = (Arc::new(ParseCache::new()), Arc::new(Semaphore::new(LARGE_AT_ONCE)));
        Self {
            limits,
            bodies,
            parse_cache,
            restrictions: Arc::new(Restrictions::new(pages, tokens)),
            validator: Arc::new(Validator::new(validation)),
            links: Arc::new(links),
            large,
        }
    }
}

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
            let mut room = layer.bodies.room();
            let body = if endpoint.body == endpoint::Body::None {
                drop(body);
                Bytes::new()
            } else {
                is_readable?;
                collect(body, layer.limits, &mut room).await?
            };
            let mut asked = Asked {
                endpoint,
                path,
                query,
                directives,
                headers,
                base,
                body,
                room,
                team,
                received,
                context: Arc::clone(&context),
            };
            if let Some(learning) = layer.learn_token(&asked) {
                learning.await;
            }
            let read = if asked.body.len() > LARGE {
                let (read_asked, read) = Box::pin(read_beside(&layer, asked, DecodeLayer::read)).await?;
                asked = read_asked;
                read
            } else {
                layer.read(&asked)?
            };
            let read = match read {
                Read::Query(query, tokens) => Ok((query, tokens)),
                Read::NeedsMetadata(query, restriction) => {
                    let purges = layer.restrictions.purges();
                    match Box::pin(fetch_view(inner.clone(), query, &restriction)).await? {
                        Ok(view) => {
                            if layer.restrictions.fresh(&restriction).is_none() {
                                restriction.remember(&view, received, purges);
                            }
                            if asked.body.len() > LARGE {
                                let read = move |layer: &DecodeLayer, asked: &Asked| {
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
                    if let Some(restriction) = tokens {
                        grants::settle(restriction.give_tokens_of(&reply.page), reply.outcome).await;
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

/// Large bodies that are parsed at the same time. They only compute, so more at a time would not be faster.
const LARGE_AT_ONCE: usize = 2;

/// Parses a large request on a blocking thread.
async fn read_beside<T: Send + 'static>(
    layer: &Arc<DecodeLayer>,
    asked: Asked,
    read: impl FnOnce(&DecodeLayer, &Asked) -> Result<T, GatewayError> + Send + 'static,
) -> Result<(Asked, T), GatewayError> {
    let turn = Arc::clone(&layer.large).acquire_owned();
    // The semaphore is never closed.
    let Ok(Ok(turn)) = tokio::time::timeout_at(asked.received + layer.limits.deadline, turn).await else {
        return Err(too_many(TooMany));
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

/// A request whose body has arrived.
struct Asked {
    endpoint: &'static Endpoint,
    path: Cow<'static, str>,
    query: Box<str>,
    directives: RequestDirectives,
    headers: Option<Arc<HeaderMap>>,
    base: Option<Arc<Base>>,
    body: Bytes,
    /// The memory that the body takes.
    room: Room,
    team: Arc<Team>,
    received: Instant,
    context: Arc<RequestContext>,
}

/// The result of reading a request.
enum Read {
    /// A query; under a policy with the restriction that records the page tokens in its response.
    Query(ClientQuery, Option<Arc<Restriction>>),
    /// Nothing can be proven before this query has fetched the account's metadata.
    NeedsMetadata(ClientQuery, Arc<Restriction>),
}

impl DecodeLayer {
    /// The key under which the cache would look for a request, found without asking Twilio. `None` if the key depends
    /// on metadata that is not in memory.
    ///
    /// # Errors
    ///
    /// The reason for which the request would be refused.
    pub fn key_of(
        &self,
        team: &Arc<Team>,
        operation: Operation,
        query: &str,
        body: Bytes,
        received: Instant,
    ) -> Result<Option<Key>, GatewayError> {
        let room = self.bodies.room();
        let body = room.hold(body).map_err(too_many)?;
        let endpoint = operation.endpoint();
        let asked = Asked {
            endpoint,
            path: endpoint.path.into(),
            query: query.into(),
            directives: RequestDirectives::default(),
            headers: None,
            base: None,
            body,
            room,
            team: Arc::clone(team),
            received,
            context: Arc::default(),
        };
        match self.read(&asked)? {
            Read::Query(query, _) => Ok(Some(query.canonical.key)),
            Read::NeedsMetadata(..) => Ok(None),
        }
    }

    /// Finds out whether another replica gave out the page token of a request under a policy. `None` if there is nothing to
    /// find out.
    fn learn_token(&self, request: &Asked) -> Option<BoxFuture<'static, ()>> {
        let policy = request.team.policy.as_ref().filter(|_| request.endpoint.operation == Operation::Page)?;
        if !self.restrictions.share_tokens() {
            return None;
        }
        let (canonical, _) = understand_parameters(request).ok()?;
        self.restrictions.of(policy, &request.team.account).learn_token(place(&canonical))
    }

    /// Reads a request. Under a policy, a query is read with the view of a fresh page of metadata, if the cache has
    /// one.
    fn read(&self, request: &Asked) -> Result<Read, GatewayError> {
        let Asked { endpoint, query, body, team, context, .. } = request;
        let restriction = team.policy.as_ref().map(|policy| self.restrictions.of(policy, &team.account));
        let directives = request.directives.clone();
        let raw = RawQuery { reader: team.account.sid.as_bytes(), query, body };
        match (endpoint.body, restriction) {
            (endpoint::Body::Query, None) => {
                let parsed = self.parsed(request, raw, |_, _| Ok(None))?;
                context.asks(&parsed.canonical.body);
                Ok(Read::Query(self.query(request, endpoint, parsed.canonical, directives), None))
            }
            (endpoint::Body::Query, Some(restriction)) => {
                let fresh = self.restrictions.fresh(&restriction).transpose()?;
                if let Some(view) = fresh.or_else(|| restriction.unkept(request.received, self.restrictions.purges())) {
                    let (query, tokens) = self.read_with(request, restriction, &view)?;
                    return Ok(Read::Query(query, tokens));
                }
                // A query that is refused whatever the metadata contains must not cost a token for metadata.
                self.parse(request, raw, |parameters, query| {
                    restriction.prove_parameters(parameters, of_first_page(endpoint))?;
                    query.prove_shape().map(|()| None)
                })?;
                let endpoint = Operation::Metadata.endpoint();
                let metadata = CanonicalQuery::of_metadata(&team.account);
                let query = self.query(request, endpoint, Arc::new(metadata), of_metadata(&directives));
                // The client's headers belong to another endpoint.
                let query = ClientQuery { headers: None, base: None, ..query };
                Ok(Read::NeedsMetadata(query, restriction))
            }
            // The configuration does not allow this either.
            (endpoint::Body::Field, Some(_)) => Err(not_under_a_policy()),
            (_, restriction) => {
                let (canonical, parameters) = understand_parameters(request)?;
                let mut query = self.query(request, endpoint, Arc::new(canonical), directives);
                let tokens = match restriction {
                    Some(restriction) => restrict(restriction, &mut query, &parameters)?,
                    None => None,
                };
                Ok(Read::Query(query, tokens))
            }
        }
    }

    /// Reads a query under a policy, with this view of the account's metadata.
    fn read_with(
        &self,
        request: &Asked,
        restriction: Arc<Restriction>,
        view: &View,
    ) -> Result<(ClientQuery, Option<Arc<Restriction>>), GatewayError> {
        let Asked { endpoint, query, body, context, .. } = request;
        let raw = RawQuery { reader: &view.reader, query, body };
        let parsed = self.parsed(request, raw, |parameters, query| {
            restriction.prove_parameters(parameters, of_first_page(endpoint))?;
            view.restrict(query, self.limits.max_body).map(Some)
        })?;
        context.asks(parsed.asked.as_ref().unwrap_or(&parsed.canonical.body));
        let query = self.query(request, endpoint, parsed.canonical, request.directives.clone());
        Ok((query, Some(restriction)))
    }

    fn query(
        &self,
        request: &Asked,
        endpoint: &'static Endpoint,
        canonical: Arc<CanonicalQuery>,
        directives: RequestDirectives,
    ) -> ClientQuery {
        let Asked { team, received, context, headers, base, .. } = request;
        // Only a read can be answered with 304 (RFC 9110 section 13.1.2).
        let if_none_match = directives.if_none_match.filter(|_| endpoint.body != endpoint::Body::Field);
        let directives = RequestDirectives { if_none_match, ..directives };
        let patience = directives.wait.map_or(self.limits.deadline, |wait| wait.min(self.limits.deadline));
        ClientQuery {
            endpoint,
            team: Arc::clone(team),
            canonical,
            directives,
            headers: headers.clone(),
            base: base.clone(),
            redact: None,
            received: *received,
            deadline: *received + patience,
            context: Arc::clone(context),
        }
    }

    /// Parses a query. Only queries that come again and again are remembered.
    fn parsed(
        &self,
        request: &Asked,
        raw: RawQuery<'_>,
        restrict: impl FnOnce(&Parameters, &Query<'_>) -> Result<Option<Bytes>, Denied>,
    ) -> Result<ParsedQuery, GatewayError> {
        match request.endpoint.operation {
            Operation::Query => self.parse_cache.of(raw, || self.parse(request, raw, restrict)),
            _ => self.parse(request, raw, restrict),
        }
    }

    /// Parses a query: its query string and its body. `restrict` returns the query to send instead, if it differs.
    fn parse(
        &self,
        request: &Asked,
        raw: RawQuery<'_>,
        restrict: impl FnOnce(&Parameters, &Query<'_>) -> Result<Option<Bytes>, Denied>,
    ) -> Result<ParsedQuery, GatewayError> {
        let Asked { endpoint, team, context, room, .. } = request;
        let parameters = parse(raw.query, team)?;
        let built = room.beside(json::built_size(raw.body)).map_err(too_many)?;
        let value = query::parse(raw.body).map_err(invalid)?;
        let query = Query::read(&value).map_err(invalid)?;
        let asked = query.canonical();
        // Before a refusal, because the audit log names what was asked.
        context.asks(&asked);
        let (body, asked) = match restrict(&parameters, &query).map_err(refused)? {
            Some(body) if body != asked => (body, Some(asked)),
            _ => (asked, None),
        };
        drop(query);
        // A query with a page token is a further page, in whatever form the token is given: it belongs to the token's
        // result set.
        let token = value.as_object().and_then(|body| json::member(body, PAGE_TOKEN)?.as_str());
        let token = token.filter(|token| !token.is_empty()).map(Parameters::of_page);
        let expected_as = parameters.page_token_alone().or(token).map(|alone| Key::of_page(&team.account, &alone));
        drop(value);
        drop(built);
        // From here on this is the only copy, and it is held as long as the query.
        let body = room.hold(body).map_err(too_many)?;
        let asked = asked.map(|asked| room.hold(asked)).transpose().map_err(too_many)?;
        let canonical = CanonicalQuery {
            path: endpoint.path.into(),
            key: Key::new(&team.account, endpoint.operation, parameters.as_str(), &body),
            expected_as: expected_as.filter(|_| endpoint.operation == Operation::Query),
            parameters: parameters.as_str().into(),
            body,
        };
        Ok(ParsedQuery { canonical: Arc::new(canonical), asked })
    }
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

/// The parameters that a request with a query in its body may have under a policy.
fn of_first_page(endpoint: &Endpoint) -> &'static [&'static str] {
    if endpoint.operation == Operation::Query { &[PAGE_SIZE] } else { &[] }
}

/// Parses a request whose body is not a query.
fn understand_parameters(request: &Asked) -> Result<(CanonicalQuery, Parameters), GatewayError> {
    let Asked { endpoint, path, query, body, team, .. } = request;
    let (account, parameters) = (&team.account, parse(query, team)?);
    let sent = match endpoint.operation {
        // A status has no parameters. If they counted, each of their spellings would be polled by itself.
        Operation::JobStatus => "",
        _ => parameters.as_str(),
    };
    if endpoint.operation == Operation::Page && !parameters.has_page_token() {
        return Err(GatewayError::new(
            Reason::InvalidQuery,
            "pageToken is required: POST a query first, then GET with the nextToken of its answer",
        ));
    }
    let alone = parameters.without_all_but_page_token().filter(|_| endpoint.operation == Operation::Page);
    let canonical = CanonicalQuery {
        path: path.clone(),
        key: Key::of_path(account, endpoint, path, sent, body),
        expected_as: alone.map(|alone| Key::of_page(account, &alone)),
        parameters: sent.into(),
        body: body_of_write(request)?,
    };
    Ok((canonical, parameters))
}

/// The body of a write, byte for byte, and nothing for other requests. It is parsed strictly nevertheless: a body that two
/// parsers understand differently must not be written.
fn body_of_write(request: &Asked) -> Result<Bytes, GatewayError> {
    let Asked { endpoint, body, room, .. } = request;
    if endpoint.body != endpoint::Body::Field {
        return Ok(Bytes::new());
    }
    let built = room.beside(json::built_size(body)).map_err(too_many)?;
    query::parse(body).map_err(invalid)?;
    drop(built);
    // A copy: the body is a slice of the connection's buffer and would keep all of it in memory.
    room.hold(Bytes::copy_from_slice(body)).map_err(too_many)
}

/// Refuses a body with a content coding: the gateway parses bodies, and does not decode them.
fn check_coding(headers: &HeaderMap) -> Result<(), GatewayError> {
    let is_identity = |value: &HeaderValue| {
        let words = value.to_str().map(|list| list.split(',').map(str::trim));
        words.is_ok_and(|mut words| words.all(|word| word.is_empty() || word.eq_ignore_ascii_case("identity")))
    };
    match headers.get_all(header::CONTENT_ENCODING).iter().all(is_identity) {
        true => Ok(()),
        false => Err(GatewayError::new(
            Reason::BadRequest,
            "the request body has a Content-Encoding, which is not supported; send it as it is",
        )),
    }
}

/// The key of a page's token alone.
fn place(canonical: &CanonicalQuery) -> Key {
    canonical.expected_as.unwrap_or(canonical.key)
}

/// Applies a policy to a request without a body. Returns the restriction that records the page tokens in its response.
fn restrict(
    restriction: Arc<Restriction>,
    query: &mut ClientQuery,
    parameters: &Parameters,
) -> Result<Option<Arc<Restriction>>, GatewayError> {
    let prove = |names: &[&str]| restriction.prove_parameters(parameters, names).map_err(refused).map(|()| None);
    match query.endpoint.operation {
        Operation::Metadata => {
            restriction.prove_parameters(parameters, &[]).map_err(refused)?;
            query.redact = restriction.hides_members().then_some(restriction as Arc<dyn Redact>);
            Ok(None)
        }
        Operation::Page => {
            restriction.prove_parameters(parameters, &[PAGE_TOKEN, PAGE_SIZE]).map_err(refused)?;
            restriction.prove_token(&place(&query.canonical))?;
            Ok(Some(restriction))
        }
        // `layers::jobs` knows to which policy jobs and their tokens belong.
        Operation::JobList => prove(&[PAGE_TOKEN, PAGE_SIZE, STATUS]),
        Operation::JobStatus => prove(&[]),
        Operation::JobResults => prove(&[PAGE_TOKEN, PAGE_SIZE]),
        _ => Err(not_under_a_policy()),
    }
}

fn not_under_a_policy() -> GatewayError {
    let message = "a team with a policy may only read metadata, queries and their pages, and use query jobs";
    GatewayError::new(Reason::FieldNotAllowed, message)
}

/// Fetches the account's metadata with the query `metadata` and returns its view; or the response to send instead.
async fn fetch_view<S>(
    inner: S,
    metadata: ClientQuery,
    restriction: &Restriction,
) -> Result<Result<Arc<View>, Box<ClientResponse>>, GatewayError>
where
    S: Service<ClientQuery, Response = ClientResponse, Error = GatewayError>,
{
    let reply = inner.oneshot(metadata).await?;
    match reply.page.status.is_success() {
        true => restriction.view(&reply.page).map(Ok),
        false => Ok(Err(Box::new(reply))),
    }
}

/// The directives for metadata that a query needs. However fresh the query has to be, metadata may be as old as its own
/// lifetimes allow.
fn of_metadata(client: &RequestDirectives) -> RequestDirectives {
    let cache = CacheDirectives { only_if_cached: client.cache.only_if_cached, ..CacheDirectives::default() };
    RequestDirectives { cache, urgency: client.urgency, wait: client.wait, ..RequestDirectives::default() }
}

fn parse(query: &str, team: &Team) -> Result<Parameters, GatewayError> {
    Parameters::parse(query).map_err(|error| {
        let reason = match error {
            // It cannot be proven which of the two Twilio would read.
            BadParameters::TwoPageTokens if team.policy.is_some() => Reason::FieldNotAllowed,
            BadParameters::TwoPageTokens | BadParameters::Encoding => Reason::BadRequest,
        };
        GatewayError::new(reason, error.to_string())
    })
}

fn refused(denied: Denied) -> GatewayError {
    let reason = match denied {
        Denied::Field(_) | Denied::Shape(_) => Reason::FieldNotAllowed,
        Denied::TooLarge(_) => Reason::BodyTooLarge,
    };
    GatewayError::new(reason, denied.to_string())
}

fn invalid(error: QueryError) -> GatewayError {
    let reason = match error {
        QueryError::Json(..) => Reason::InvalidJson,
        QueryError::TooManyValues => Reason::BodyTooLarge,
        QueryError::NotAnObject | QueryError::NoQuery | QueryError::QueryNotAnObject => Reason::InvalidQuery,
    };
    GatewayError::new(reason, error.to_string())
}

#[cfg(test)]
mod tests;
