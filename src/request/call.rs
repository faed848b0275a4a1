//! What goes upstream, below the cache, and what comes back. It knows no client and no client's headers.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::accounts::Team;
use crate::core::clock::Instant;
use crate::request::context::RequestContext;
use crate::request::key::Key;
use crate::request::waiters::Waiters;
use crate::twilio::endpoint::Endpoint;

/// One call upstream, for all who wait for it.
#[derive(Debug, Clone)]
pub struct UpstreamCall {
    /// Whose account is used, and whose upstream share is taken: the team of the client that leads.
    pub team: Arc<Team>,
    /// What it asks for: method, body, and how it may be repeated.
    pub endpoint: &'static Endpoint,
    /// The path, with the id in it where there is one.
    pub path: Cow<'static, str>,
    /// The canonical query string.
    pub parameters: Arc<str>,
    /// The canonical body; empty for GETs.
    pub body: Bytes,
    /// What goes upstream of the headers of the client that leads: those that the endpoint lists.
    pub headers: Option<Arc<HeaderMap>>,
    /// The name of the response in the cache.
    pub key: Key,
    /// When the call must have ended, waits and retries included.
    pub deadline: Instant,
    /// Who waits for it.
    pub waiters: Arc<Waiters>,
    /// Where its waits and attempts are noted: of the client that leads, or of nobody for a refresh.
    pub context: Arc<RequestContext>,
}

#[cfg(test)]
impl UpstreamCall {
    /// A call of [`Team::example`] that begins now and may take 90 s.
    pub fn example(operation: crate::twilio::endpoint::Operation, parameters: &str, body: &'static str) -> Self {
        let team = Arc::new(Team::example("local"));
        Self {
            key: Key::new(&team.account, operation, parameters, body.as_bytes()),
            team,
            endpoint: operation.endpoint(),
            path: operation.endpoint().path.into(),
            parameters: parameters.into(),
            body: Bytes::from_static(body.as_bytes()),
            headers: None,
            deadline: Instant::now() + std::time::Duration::from_secs(90),
            waiters: Waiters::of_clients(),
            context: Arc::default(),
        }
    }
}

/// A call and the header value that pays for it.
#[derive(Debug)]
pub struct SignedCall {
    /// The call.
    pub call: UpstreamCall,
    /// `Authorization`, marked sensitive so that nothing prints it.
    pub authorization: HeaderValue,
}

/// What came from upstream: allow-listed headers, a whole body.
#[derive(Debug, Clone)]
pub struct UpstreamResponse {
    /// Twilio's status.
    pub status: StatusCode,
    /// The headers that may be read or passed on.
    pub headers: HeaderMap,
    /// The whole body, in a buffer of its own size.
    pub body: Bytes,
    /// Names the page after this one, where the body says that there is one.
    pub next_token: Option<String>,
}
