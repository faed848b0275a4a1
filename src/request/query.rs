//! A client's query, above the cache and inside it.

use std::borrow::Cow;
use std::fmt::Debug;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;

use crate::accounts::{Account, Team};
use crate::core::clock::Instant;
use crate::core::error::GatewayError;
use crate::request::call::{Sent, UpstreamCall};
use crate::request::context::RequestContext;
use crate::request::key::Key;
use crate::request::response::{Redacted, Representation};
use crate::request::waiters::Waiters;
use crate::semantics::request_directives::RequestDirectives;
use crate::twilio::endpoint::{Endpoint, Operation};
use crate::twilio::links::Base;

/// A query in canonical form. It is shared, so that a repeated query costs one pointer.
#[derive(Debug)]
pub struct CanonicalQuery {
    /// The path, with its id if it has one.
    pub path: Cow<'static, str>,
    /// The canonical query string.
    pub parameters: Arc<str>,
    /// The body as it is sent: for a query in canonical form, with a policy's filters added. Empty for GETs.
    pub body: Bytes,
    /// The key of the response in the cache.
    pub key: Key,
    /// For a page that is requested with more than its token, or by a query with a page token: the key of the token
    /// alone, which is the page's place in its result set.
    pub expected_as: Option<Key>,
}

impl CanonicalQuery {
    /// A request for an account's metadata.
    pub fn of_metadata(account: &Account) -> Self {
        Self {
            path: Operation::Metadata.endpoint().path.into(),
            parameters: "".into(),
            body: Bytes::new(),
            key: Key::of_metadata(account),
            expected_as: None,
        }
    }

    /// The place of the response in its result set, by which its page token names it.
    pub fn place(&self) -> Key {
        self.expected_as.unwrap_or(self.key)
    }
}

/// An authorized request whose body has been read. It is moved several times on a hit, so it is kept small.
#[derive(Debug, Clone)]
pub struct ClientQuery {
    /// The endpoint.
    pub endpoint: &'static Endpoint,
    /// The team that sent it, with the account whose data it reads.
    pub team: Arc<Team>,
    /// The canonical form.
    pub canonical: Arc<CanonicalQuery>,
    /// The preferences in the client's headers.
    pub directives: RequestDirectives,
    /// Those of the client's headers that go upstream, as the endpoint lists them.
    pub headers: Option<Arc<HeaderMap>>,
    /// The base of links in the response, if it may have links.
    pub base: Option<Arc<Base>>,
    /// Hides what the client must not see of the response, where there is such a thing.
    pub redact: Option<Arc<dyn Redact>>,
    /// When the request was received.
    pub received: Instant,
    /// When the client must have a response.
    pub deadline: Instant,
    /// Records what happened to the request.
    pub context: Arc<RequestContext>,
}

/// Applies a policy to a response before a client gets it.
pub trait Redact: Debug + Send + Sync {
    /// The part of `response` that the client may see; `None` if it may see all of it.
    ///
    /// # Errors
    ///
    /// When it cannot be proven what the response contains.
    fn redact(&self, response: &Arc<Representation>) -> Result<Option<Arc<Redacted>>, GatewayError>;
}

impl ClientQuery {
    /// The key of the response in the cache.
    pub fn key(&self) -> &Key {
        &self.canonical.key
    }

    /// The upstream call for this query, which leads it.
    pub fn upstream_call(
        &self,
        waiters: Arc<Waiters>,
        deadline: Instant,
        context: Arc<RequestContext>,
    ) -> UpstreamCall {
        UpstreamCall {
            team: Arc::clone(&self.team),
            endpoint: self.endpoint,
            path: self.canonical.path.clone(),
            parameters: Arc::clone(&self.canonical.parameters),
            body: self.canonical.body.clone(),
            headers: self.headers.clone(),
            key: self.canonical.key,
            deadline,
            waiters,
            context,
            sent: Sent::default(),
        }
    }
}

#[cfg(test)]
impl ClientQuery {
    /// A query of [`Team::example`] that has just arrived and may take 90 s.
    pub fn example(operation: Operation, parameters: &str, body: &'static str) -> Self {
        let team = Arc::new(Team::example("local"));
        let canonical = CanonicalQuery {
            path: operation.endpoint().path.into(),
            parameters: parameters.into(),
            body: Bytes::from_static(body.as_bytes()),
            key: Key::new(&team.account, operation, parameters, body.as_bytes()),
            expected_as: None,
        };
        Self {
            endpoint: operation.endpoint(),
            team,
            canonical: Arc::new(canonical),
            directives: RequestDirectives::default(),
            headers: None,
            base: None,
            redact: None,
            received: Instant::now(),
            deadline: Instant::now() + std::time::Duration::from_secs(90),
            context: Arc::default(),
        }
    }
}
