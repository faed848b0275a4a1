//! A caller: its team, its tokens, and its limits.

use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderValue;

use super::team_rate::{TeamRate, rate_limit};
use crate::accounts::{Allowance, Team};
use crate::core::units::Rate;
use crate::request::incoming::IncomingRequest;

/// A team that may send requests.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The team.
    pub team: Arc<Team>,
    /// The tokens that it accepts.
    pub tokens: Vec<AcceptedToken>,
    /// The limit of its requests, whether they are answered from the cache or not.
    pub requests: Option<TeamRate>,
}

/// An access token of a team.
#[derive(Debug, Clone, Copy)]
pub struct AcceptedToken {
    /// SHA-256 of the token.
    pub sha256: [u8; 32],
    /// The wall-clock time from which it is not accepted; `None` if it does not expire.
    pub expires: Option<SystemTime>,
}

/// What a team may send upstream: its own limit, or else its account's.
pub struct UpstreamRate {
    /// The rate.
    pub rate: Rate,
    /// What is left of it now.
    pub allowance: Arc<dyn Fn() -> Option<Allowance> + Send + Sync>,
}

/// A caller, its limit upstream, and the header that states its limits.
pub(super) struct CallerLimits {
    pub(super) caller: Caller,
    pub(super) upstream: Option<UpstreamRate>,
    pub(super) policy: HeaderValue,
}

impl CallerLimits {
    /// Sets `RateLimit` to what the caller has left. Returns what it may still send upstream.
    pub(super) fn set_rate_limit<B>(
        &self,
        requests: Option<Allowance>,
        incoming: &IncomingRequest<B>,
    ) -> Option<Allowance> {
        let upstream = self.upstream.as_ref().and_then(|limit| (limit.allowance)());
        if requests.is_some() || upstream.is_some() {
            let _ = incoming.context.rate_limit.set((self.policy.clone(), rate_limit(requests, upstream)));
        }
        upstream
    }
}
