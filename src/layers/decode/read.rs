//! Reads a request whose body has arrived: finds its query or parameters, applies the team's policy, and computes the key.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;

use super::bodies::BodyReservation;
use super::collect::too_many;
use super::layer::DecodeLayer;
use super::parse_cache::{ParsedQuery, RawQuery};
use super::restriction::{MetadataView, Restriction, of_metadata};
use crate::accounts::Team;
use crate::core::clock::Instant;
use crate::core::error::{GatewayError, Reason};
use crate::core::json;
use crate::request::context::RequestContext;
use crate::request::key::Key;
use crate::request::query::{CanonicalQuery, ClientQuery, Redact};
use crate::request::store_wait::StoreWork;
use crate::semantics::request_directives::RequestDirectives;
use crate::twilio::endpoint::{self, Endpoint, Operation};
use crate::twilio::links::Base;
use crate::twilio::parameters::{BadParameters, PAGE_SIZE, PAGE_TOKEN, Parameters, STATUS};
use crate::twilio::policy::Denied;
use crate::twilio::query::{self, Query, QueryError};

/// A request whose body has arrived.
pub(super) struct CollectedRequest {
    pub(super) endpoint: &'static Endpoint,
    pub(super) path: Cow<'static, str>,
    pub(super) query: Box<str>,
    pub(super) directives: RequestDirectives,
    pub(super) headers: Option<Arc<HeaderMap>>,
    pub(super) base: Option<Arc<Base>>,
    pub(super) body: Bytes,
    /// The memory that the body takes.
    pub(super) reservation: BodyReservation,
    pub(super) team: Arc<Team>,
    pub(super) received: Instant,
    pub(super) context: Arc<RequestContext>,
}

/// The result of reading a request.
pub(super) enum ReadOutcome {
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
        let reservation = self.bodies.reserve();
        let body = reservation.hold(body).map_err(too_many)?;
        let endpoint = operation.endpoint();
        let asked = CollectedRequest {
            endpoint,
            path: endpoint.path.into(),
            query: query.into(),
            directives: RequestDirectives::default(),
            headers: None,
            base: None,
            body,
            reservation,
            team: Arc::clone(team),
            received,
            context: Arc::default(),
        };
        match self.read(&asked)? {
            ReadOutcome::Query(query, _) => Ok(Some(query.canonical.key)),
            ReadOutcome::NeedsMetadata(..) => Ok(None),
        }
    }

    /// Finds out whether another replica gave out the page token of a request under a policy. `None` if there is nothing to
    /// find out.
    pub(super) fn learn_token(&self, request: &CollectedRequest) -> Option<StoreWork> {
        let policy = request.team.policy.as_ref().filter(|_| request.endpoint.operation == Operation::Page)?;
        if !self.restrictions.share_tokens() {
            return None;
        }
        let (canonical, _) = understand_parameters(request).ok()?;
        self.restrictions.of(policy, &request.team.account).learn_token(canonical.place())
    }

    /// Reads a request. Under a policy, a query is read with the view of a fresh page of metadata, if the cache has
    /// one.
    pub(super) fn read(&self, request: &CollectedRequest) -> Result<ReadOutcome, GatewayError> {
        let CollectedRequest { endpoint, query, body, team, context, .. } = request;
        let restriction = team.policy.as_ref().map(|policy| self.restrictions.of(policy, &team.account));
        let raw = RawQuery { reader: team.account.sid.as_bytes(), query, body };
        match (endpoint.body, restriction) {
            (endpoint::Body::Query, None) => {
                let parsed = self.parsed(request, raw, |_, _| Ok(None))?;
                context.asks(&parsed.canonical.body);
                Ok(ReadOutcome::Query(
                    self.query(request, endpoint, parsed.canonical, request.directives.clone()),
                    None,
                ))
            }
            (endpoint::Body::Query, Some(restriction)) => {
                let fresh = self.restrictions.fresh(&restriction).transpose()?;
                if let Some(view) = fresh.or_else(|| restriction.unstored(request.received, self.restrictions.purges()))
                {
                    let (query, tokens) = self.read_with(request, restriction, &view)?;
                    return Ok(ReadOutcome::Query(query, tokens));
                }
                // A query that is refused whatever the metadata contains must not cost a token for metadata.
                self.parse(request, raw, |parameters, query| {
                    restriction.prove_parameters(parameters, of_first_page(endpoint))?;
                    query.prove_shape().map(|()| None)
                })?;
                let endpoint = Operation::Metadata.endpoint();
                let metadata = CanonicalQuery::of_metadata(&team.account);
                let query = self.query(request, endpoint, Arc::new(metadata), of_metadata(&request.directives));
                // The client's headers belong to another endpoint.
                let query = ClientQuery { headers: None, base: None, ..query };
                Ok(ReadOutcome::NeedsMetadata(query, restriction))
            }
            // The configuration does not allow this either.
            (endpoint::Body::Field, Some(_)) => Err(not_under_a_policy()),
            (_, restriction) => {
                let (canonical, parameters) = understand_parameters(request)?;
                let mut query = self.query(request, endpoint, Arc::new(canonical), request.directives.clone());
                let tokens = match restriction {
                    Some(restriction) => restrict(restriction, &mut query, &parameters)?,
                    None => None,
                };
                Ok(ReadOutcome::Query(query, tokens))
            }
        }
    }

    /// Reads a query under a policy, with this view of the account's metadata.
    pub(super) fn read_with(
        &self,
        request: &CollectedRequest,
        restriction: Arc<Restriction>,
        view: &MetadataView,
    ) -> Result<(ClientQuery, Option<Arc<Restriction>>), GatewayError> {
        let CollectedRequest { endpoint, query, body, context, .. } = request;
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
        request: &CollectedRequest,
        endpoint: &'static Endpoint,
        canonical: Arc<CanonicalQuery>,
        directives: RequestDirectives,
    ) -> ClientQuery {
        let CollectedRequest { team, received, context, headers, base, .. } = request;
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
        request: &CollectedRequest,
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
        request: &CollectedRequest,
        raw: RawQuery<'_>,
        restrict: impl FnOnce(&Parameters, &Query<'_>) -> Result<Option<Bytes>, Denied>,
    ) -> Result<ParsedQuery, GatewayError> {
        let CollectedRequest { endpoint, team, context, reservation, .. } = request;
        let parameters = parse(raw.query, team)?;
        let built = reservation.beside(json::built_size(raw.body)).map_err(too_many)?;
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
        let body = reservation.hold(body).map_err(too_many)?;
        let asked = asked.map(|asked| reservation.hold(asked)).transpose().map_err(too_many)?;
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

/// The parameters that a request with a query in its body may have under a policy.
fn of_first_page(endpoint: &Endpoint) -> &'static [&'static str] {
    if endpoint.operation == Operation::Query { &[PAGE_SIZE] } else { &[] }
}

/// Parses a request whose body is not a query.
fn understand_parameters(request: &CollectedRequest) -> Result<(CanonicalQuery, Parameters), GatewayError> {
    let CollectedRequest { endpoint, path, query, body, team, .. } = request;
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
fn body_of_write(request: &CollectedRequest) -> Result<Bytes, GatewayError> {
    let CollectedRequest { endpoint, body, reservation, .. } = request;
    if endpoint.body != endpoint::Body::Field {
        return Ok(Bytes::new());
    }
    let built = reservation.beside(json::built_size(body)).map_err(too_many)?;
    query::parse(body).map_err(invalid)?;
    drop(built);
    // A copy: the body is a slice of the connection's buffer and would keep all of it in memory.
    reservation.hold(Bytes::copy_from_slice(body)).map_err(too_many)
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
            restriction.prove_token(&query.canonical.place())?;
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
