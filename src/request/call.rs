//! Upstream calls, below the cache, and their responses. This module knows no client and no client's headers.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::accounts::Team;
use crate::core::clock::Instant;
use crate::request::context::RequestContext;
use crate::request::key::Key;
use crate::request::waiters::Waiters;
use crate::semantics::trace::SpanId;
use crate::twilio::endpoint::Endpoint;

/// One upstream call, for all requests that wait for it.
#[derive(Debug, Clone)]
pub struct UpstreamCall {
    /// The team of the client that leads: its account is used, and its upstream share is charged.
    pub team: Arc<Team>,
    /// The endpoint: method, body, and whether it may be repeated.
    pub endpoint: &'static Endpoint,
    /// The path, with its id if it has one.
    pub path: Cow<'static, str>,
    /// The canonical query string.
    pub parameters: Arc<str>,
    /// The canonical body; empty for GETs.
    pub body: Bytes,
    /// The headers of the leading client that go upstream: those that the endpoint lists.
    pub headers: Option<Arc<HeaderMap>>,
    /// The key of the response in the cache.
    pub key: Key,
    /// When the call must have ended, waits and retries included.
    pub deadline: Instant,
    /// The clients that wait for it.
    pub waiters: Arc<Waiters>,
    /// Records its waits and attempts: the context of the client that leads, or a separate one for a refresh.
    pub context: Arc<RequestContext>,
    /// How often it was sent.
    pub sent: Sent,
}

/// How often a call was sent. The clones of the call count together. Its context may be that of other calls too.
#[derive(Debug, Clone, Default)]
pub struct Sent(Arc<AtomicU32>);

impl Sent {
    /// The number of attempts that have begun.
    pub fn attempts(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

impl UpstreamCall {
    /// Adds an attempt that begins now, at `begun`. Returns its number in the context.
    pub fn attempt_begins(&self, begun: Instant, span: Option<SpanId>) -> usize {
        self.sent.0.fetch_add(1, Ordering::Relaxed);
        self.context.attempt_begins(begun, span)
    }
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
            sent: Sent::default(),
        }
    }
}

/// A call and the header with the account's credentials.
#[derive(Debug)]
pub struct SignedCall {
    /// The call.
    pub call: UpstreamCall,
    /// `Authorization`, marked sensitive so that nothing prints it.
    pub authorization: HeaderValue,
}

/// A response from upstream: allow-listed headers and a complete body.
#[derive(Debug, Clone)]
pub struct UpstreamResponse {
    /// Twilio's status.
    pub status: StatusCode,
    /// The headers that a layer may read or pass on.
    pub headers: HeaderMap,
    /// The whole body, in a buffer of its own size.
    pub body: Bytes,
    /// The token of the next page, if the body has one.
    pub next_token: Option<String>,
}
