//! Who may use the admin plane, and which web pages may.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use http::{Request, header};

use super::sessions::{SessionId, TokenInUse};
use super::state::AdminState;
use crate::semantics::{host, origin};

/// Said to a request that a page of another site has caused, or so it seems.
pub(super) const NOT_OURS: &str = "this request was sent by a page of another site, as its Origin or Sec-Fetch-Site says; \
                                   open the status page at its own address, and let a proxy in front of the admin \
                                   plane keep Host";

/// The credentials in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// No token is required.
    Open,
    /// The right token, with this hash.
    Token([u8; 32]),
    /// The session of a browser that has logged in.
    Session(SessionId),
    /// A token that is not the admin plane's.
    Wrong,
    /// No credentials.
    Nothing,
}

impl Access {
    /// Whether this gives access to everything.
    pub(super) fn is_granted(self) -> bool {
        matches!(self, Self::Open | Self::Token(_) | Self::Session(_))
    }
}

impl AdminState {
    /// The credentials in this request. A wrong token is refused even if the request also has a valid session.
    pub(super) fn access<B>(&self, request: &Request<B>) -> Access {
        let Some(token) = self.token() else { return Access::Open };
        let expected = token.sha256;
        let mut presented = request.headers().get_all(header::AUTHORIZATION).iter();
        let Some(first) = presented.next() else {
            let session = SessionId::of(request.headers());
            let lasting = session.filter(|id| self.sessions.lasts(*id, token, self.shared.clock));
            return lasting.map_or(Access::Nothing, Access::Session);
        };
        let bearer = || {
            let (scheme, token) = first.to_str().ok()?.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        };
        match presented.next().map_or_else(bearer, |_second| None) {
            Some(token) if is_token(token, expected) => Access::Token(expected),
            _ => Access::Wrong,
        }
    }

    /// The token that is in use, if one is configured.
    pub(super) fn token(&self) -> Option<TokenInUse> {
        // Read first: if the token changes in between, the session that begins here ends at once.
        let number = self.shared.reloads.admin_tokens();
        self.config.load().admin.token_sha256.map(|sha256| TokenInUse { sha256, number })
    }

    /// Whether these credentials are still accepted.
    pub(super) fn is_still_granted(&self, access: Access) -> bool {
        match (access, self.token()) {
            (Access::Open, expected) => expected.is_none(),
            (Access::Token(shown), Some(token)) => shown == token.sha256,
            (Access::Session(id), Some(token)) => self.sessions.lasts(id, token, self.shared.clock),
            (Access::Token(_) | Access::Session(_), None) => true,
            (Access::Wrong | Access::Nothing, _) => false,
        }
    }

    /// Refuses requests that a web page of another site may have caused. Without a token, requests under a host name
    /// that an attacker may own are refused too. Beyond loopback a token is required, so probes may use any host name
    /// there.
    ///
    /// A browser sends a session's cookie by itself. So a request with a session must not come from another site either.
    pub(super) fn check_site<B>(
        &self,
        request: &Request<B>,
        is_probe: bool,
        access: Access,
    ) -> Result<(), &'static str> {
        let config = self.config.load();
        let without_token = is_probe || access == Access::Open;
        let is_ours = |host: &str| {
            let public = config.server.public_url.as_ref().and_then(|url| url.host());
            host::is_address_or_loopback(host) || public.is_some_and(|public| public.eq_ignore_ascii_case(host))
        };
        let is_named = request.uri().authority().is_some() || request.headers().contains_key(header::HOST);
        let is_rebound = is_named && !origin::authority_of(request).is_some_and(|named| is_ours(named.host()));
        match () {
            () if without_token && !self.beyond_loopback && is_rebound => Err(
                "without a token the admin plane answers only to loopback names, IP addresses and the host of server.public_url: a web page must not reach it under a name that its author controls",
            ),
            () if without_token && origin::is_cross_site(request, &[]) => Err(NOT_OURS),
            () if matches!(access, Access::Session(_)) && origin::is_cross_site(request, &[]) => Err(NOT_OURS),
            () if origin::names_another(request, &[]) => Err(NOT_OURS),
            () => Ok(()),
        }
    }
}

/// Whether this token has that hash. The comparison takes constant time.
pub(super) fn is_token(token: &str, expected: [u8; 32]) -> bool {
    verify_slices_are_equal(digest(&SHA256, token.as_bytes()).as_ref(), &expected).is_ok()
}
