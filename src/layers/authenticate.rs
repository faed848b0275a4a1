//! Authenticates and authorises requests from the head alone, before a body is read.
//!
//! It checks in this order: whether the head is well-formed, whether the path exists, who the caller is, whether its
//! team may use the operation, and whether the team has requests left. Denied by default: paths, hosts and operations
//! are allow-lists. Upstream limits are not checked here.
//!
//! A caller identifies itself by a token in `Authorization`, or by a client certificate that names its team. A token
//! must be valid even if there is a certificate, and if both name a team, it must be the same. Browsers send a
//! certificate without asking the user, and without teams no credentials are sent at all. In both cases requests from
//! pages of other sites are refused.

mod caller;
mod failure_delay;
mod team_rate;
mod usage;

use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwapOption;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::future::{BoxFuture, Either, Ready, ready};
use http::{HeaderValue, Request, Response, header};
use tower::{Layer, Service};
use zeroize::Zeroizing;

use crate::accounts::Team;
use crate::core::clock::Clock;
use crate::core::error::{GatewayError, Reason};
use crate::core::fields;
use crate::core::outcome::Outcome;
use crate::core::peer::Peer;
use crate::request::body::ResponseBody;
use crate::request::context::Stage;
use crate::request::incoming::{AuthorizedRequest, IncomingRequest};
use crate::semantics::host;
use crate::semantics::origin::{self, Origin};
use crate::twilio::endpoint::{Endpoint, Operation, Route, route};
use crate::twilio::links::{Base, Links};
use crate::twilio::misspelt::{Misspelt, Mistake};

use self::caller::CallerLimits;
pub use self::caller::{AcceptedToken, Caller, UpstreamRate};
pub use self::failure_delay::AuthFailureDelay;
pub use self::team_rate::TeamRate;
use self::team_rate::policy;
pub use self::usage::UsageCounter;

/// Bytes of header names and values together, and 32 more for each field, because that is kept too (RFC 9113 section
/// 6.5.2). Twilio's SDKs send a few hundred.
pub const MAX_HEAD: usize = 32 * 1024;

/// The most header fields in a head: as many as the HTTP/1.1 library accepts.
const MAX_FIELDS: usize = 100;

/// The memory of a field in addition to its name and value.
const FIELD: usize = 32;

/// The callers that may send requests.
#[derive(Debug, Clone)]
pub enum Callers {
    /// All callers, as this team. If names are given, only requests with one of these host names.
    Everybody(Caller, Option<Vec<String>>),
    /// Teams, by their tokens or certificates.
    Teams(Vec<Caller>),
}

impl Callers {
    /// Their teams.
    pub fn teams(&self) -> Vec<Arc<Team>> {
        let callers = match self {
            Self::Everybody(caller, _) => std::slice::from_ref(caller),
            Self::Teams(callers) => callers,
        };
        callers.iter().map(|caller| Arc::clone(&caller.team)).collect()
    }
}

/// Makes [`Authenticate`] services.
#[derive(Clone)]
pub struct AuthenticateLayer {
    access: Arc<AccessControl>,
}

impl AuthenticateLayer {
    /// Accepts `callers`. If they need no token, only programs and the pages of `origins`. Client certificates name
    /// teams only if `certificates` is true: a listener continues to accept certificates after a reload has switched
    /// them off. `links` say at which address a client reaches the gateway.
    pub fn new(
        callers: Callers,
        origins: &[Origin],
        certificates: bool,
        upstream: &dyn Fn(&Arc<Team>) -> Option<UpstreamRate>,
        failure_delay: AuthFailureDelay,
        links: Links,
        clock: Clock,
    ) -> Self {
        let known = |caller: Caller| {
            // An account's limit is news only to a team that has none of its own.
            let is_news = caller.requests.is_none() || caller.team.upstream.is_some();
            let upstream = is_news.then(|| upstream(&caller.team)).flatten();
            let policy = policy(
                caller.requests.as_ref().map(|requests| requests.rate),
                upstream.as_ref().map(|limit| limit.rate),
            );
            CallerLimits { caller, upstream, policy }
        };
        let (callers, everybody, hosts) = match callers {
            Callers::Everybody(caller, hosts) => (vec![known(caller)], true, hosts),
            Callers::Teams(callers) => (callers.into_iter().map(known).collect(), false, None),
        };
        let known_host = ArcSwapOption::empty();
        let origins = origins.to_vec();
        Self {
            access: Arc::new(AccessControl {
                callers,
                everybody,
                hosts,
                origins,
                certificates,
                known_host,
                failure_delay,
                links,
                clock,
            }),
        }
    }
}

impl<S> Layer<S> for AuthenticateLayer {
    type Service = Authenticate<S>;

    fn layer(&self, inner: S) -> Authenticate<S> {
        Authenticate { inner, access: Arc::clone(&self.access) }
    }
}

/// Authenticates requests. See the module.
#[derive(Clone)]
pub struct Authenticate<S> {
    inner: S,
    access: Arc<AccessControl>,
}

impl<S, B> Service<IncomingRequest<B>> for Authenticate<S>
where
    S: Service<AuthorizedRequest<B>, Response = Response<ResponseBody>, Error = GatewayError>,
{
    type Response = Response<ResponseBody>;
    type Error = GatewayError;
    type Future = Either<OwnAnswer, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), GatewayError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, incoming: IncomingRequest<B>) -> Self::Future {
        let verdict = self.access.authorize(&incoming);
        incoming.context.end_of(Stage::Authenticate);
        match verdict {
            Ok(AuthorizedTarget::Endpoint(endpoint, team)) => {
                Either::Right(self.inner.call(AuthorizedRequest { incoming, endpoint, team }))
            }
            Ok(AuthorizedTarget::Usage(response)) => Either::Left(Either::Left(ready(Ok(*response)))),
            Err(error) => Either::Left(self.access.refuse(error, &incoming.peer)),
        }
    }
}

/// An answer of this layer, at once or delayed.
type OwnAnswer = Either<Ready<Answered>, BoxFuture<'static, Answered>>;

type Answered = Result<Response<ResponseBody>, GatewayError>;

/// What an authenticated request is for.
enum AuthorizedTarget {
    /// An endpoint of Twilio's.
    Endpoint(&'static Endpoint, Arc<Team>),
    /// The team's usage, already answered.
    Usage(Box<Response<ResponseBody>>),
}

struct AccessControl {
    callers: Vec<CallerLimits>,
    everybody: bool,
    hosts: Option<Vec<String>>,
    origins: Vec<Origin>,
    certificates: bool,
    /// The last `Host` that was accepted: nearly every request has the same. If the first were kept, a probe or a stranger
    /// could choose it.
    known_host: ArcSwapOption<HeaderValue>,
    failure_delay: AuthFailureDelay,
    links: Links,
    clock: Clock,
}

/// Whether the admin plane has something at this path, or below it. A test compares this with its OpenAPI document.
fn is_of_admin_plane(path: &str) -> bool {
    const PATHS: [&str; 10] =
        ["/", "/livez", "/readyz", "/metrics", "/status", "/events", "/openapi.json", "/login", "/logout", "/runbook"];
    PATHS.contains(&path) || path.starts_with("/cache/") || path.starts_with("/explorer/")
}

/// The message for a path without an endpoint: the right base URL for the client, which is `base`, and the right path.
/// It does not repeat the path.
fn not_found(path: &str, base: &Base) -> String {
    // Not the address itself: a stranger who reaches this port need not learn it.
    if is_of_admin_plane(path) {
        return "this port has only Twilio's API; the status page, /readyz, /status and /metrics are on the admin plane's \
                port, which is admin.listen in the configuration (by default http://127.0.0.1:9090)"
            .to_owned();
    }
    // A client that names no host gets a form.
    let base = Some(base.as_str()).filter(|base| !base.is_empty()).unwrap_or("http://HOST:PORT");
    let right = format!("set the client's base URL to {base}, so that it asks for");
    match Misspelt::of(path) {
        Some(Misspelt { path, mistake: Mistake::RepeatedVersion }) => {
            format!(
                "the path begins with /v3 twice; take /v3 off the end of the client's base URL: {right} {base}{path}"
            )
        }
        Some(Misspelt { path, mistake: Mistake::Prefix }) => {
            format!("the path has something in front of /v3; {right} {base}{path}")
        }
        Some(Misspelt { path, mistake: Mistake::Spelling }) => {
            format!(
                "not a path of the Conversation Insights API; did you mean {path}, in this case and without a slash behind it?"
            )
        }
        None => {
            let example = Operation::Metadata.endpoint().path;
            format!("not a path of the Conversation Insights API; {right} {base}{example}, for example")
        }
    }
}

impl AccessControl {
    fn authorize<B>(&self, incoming: &IncomingRequest<B>) -> Result<AuthorizedTarget, GatewayError> {
        let request = &incoming.request;
        self.check_head(request, &incoming.peer)?;
        if self.everybody {
            self.check_origin(request)?;
        }
        let endpoint = match route(request.method(), request.uri().path()) {
            Route::Found(endpoint) => endpoint,
            Route::Usage => return self.usage(incoming).map(Box::new).map(AuthorizedTarget::Usage),
            Route::MethodNotAllowed(allow) => {
                return Err(GatewayError::new(
                    Reason::MethodNotAllowed,
                    "this path does not have this method; Allow lists those that it has",
                )
                .with_allow(allow));
            }
            Route::NotFound => {
                let base = self.links.base(request, incoming.peer.uses_tls());
                return Err(GatewayError::new(Reason::NotFound, not_found(request.uri().path(), &base)));
            }
        };
        // Set once: this is the only place that learns them.
        let _ = incoming.context.operation.set(endpoint.operation);
        let known = self.identify(request, &incoming.peer)?;
        incoming.peer.identify();
        let team = &known.caller.team;
        let _ = incoming.context.team.set(Arc::clone(team));
        self.limit(known, incoming)?;
        if !team.operations.allows(endpoint.permission) {
            let message = format!("team {} may not use {}", team.name, endpoint.operation.as_str());
            return Err(GatewayError::new(Reason::OperationNotAllowed, message));
        }
        Ok(AuthorizedTarget::Endpoint(endpoint, Arc::clone(team)))
    }

    fn check_head<B>(&self, request: &Request<B>, peer: &Peer) -> Result<(), GatewayError> {
        let headers = request.headers();
        if headers.len() > MAX_FIELDS {
            let message = format!("the request's head has more than {MAX_FIELDS} fields");
            return Err(GatewayError::new(Reason::HeadersTooLarge, message));
        }
        let size: usize = headers.iter().map(|(name, value)| FIELD + name.as_str().len() + value.len()).sum();
        if size + request.uri().path().len() + request.uri().query().map_or(0, str::len) > MAX_HEAD {
            let message = format!("the request's head is larger than {MAX_HEAD} bytes");
            return Err(GatewayError::new(Reason::HeadersTooLarge, message));
        }
        let malformed = |message| Err(GatewayError::new(Reason::BadRequest, message));
        let mut hosts = fields::values(headers, header::HOST);
        let host = hosts.next().filter(|_| hosts.next().is_none());
        let alone = host.filter(|_| request.uri().authority().is_none());
        if alone.is_some() && alone == self.known_host.load().as_deref() {
            return Ok(());
        }
        match host::named(request) {
            Err(message) => malformed(message),
            Ok(None) => Ok(()),
            // No web page can make a browser connect to a unix socket, and its clients send any host name.
            Ok(Some(_)) if peer.is_unix() => Ok(()),
            Ok(Some(named)) if self.is_ours(named.host()) => {
                // A copy, because the value is a slice of the whole head, which contains other clients' tokens.
                if let Some(Ok(host)) = alone.map(|host| HeaderValue::from_bytes(host.as_bytes())) {
                    self.known_host.store(Some(Arc::new(host)));
                }
                Ok(())
            }
            Ok(Some(_)) => malformed(
                "without teams the gateway answers only to loopback names, IP addresses and the host of server.public_url: a web page must not reach it under a name that its author controls",
            ),
        }
    }

    /// Whether this host name is the gateway's. Without tokens, a web page could otherwise reach the loopback address
    /// under a name whose DNS its owner controls (DNS rebinding).
    fn is_ours(&self, host: &str) -> bool {
        let Some(hosts) = &self.hosts else { return true };
        host::is_address_or_loopback(host) || hosts.iter().any(|ours| ours.eq_ignore_ascii_case(host))
    }

    /// Refuses requests from pages of other sites, because without tokens a browser would send them with full access.
    fn check_origin<B>(&self, request: &Request<B>) -> Result<(), GatewayError> {
        if origin::is_cross_site(request, &self.origins) {
            return Err(GatewayError::new(
                Reason::OriginNotAllowed,
                "a web page of another site may not ask without a token; if it may, list its origin in server.cors",
            ));
        }
        Ok(())
    }

    fn identify<B>(&self, request: &Request<B>, peer: &Peer) -> Result<&CallerLimits, GatewayError> {
        let unauthenticated = |message| GatewayError::new(Reason::Unauthenticated, message);
        if let Some(team) = peer.acts_as() {
            let mut named = self.callers.iter().filter(|known| *known.caller.team.name == *team);
            return named.next().ok_or_else(|| unauthenticated("there is no team of that name any more"));
        }
        if peer.lacks_a_certificate() {
            return Err(unauthenticated(
                "the gateway wants a client certificate of its present authority; connect again, and show one",
            ));
        }
        if self.everybody {
            return self.callers.first().ok_or_else(|| unauthenticated("nobody is let in"));
        }
        let certified = self.certified(peer).map_err(unauthenticated)?;
        let mut presented = request.headers().get_all(header::AUTHORIZATION).iter();
        let (presented, None) = (presented.next(), presented.next()) else {
            return Err(unauthenticated("the request has more than one Authorization header; send one"));
        };
        let Some(presented) = presented else {
            let known = certified.ok_or_else(|| {
                unauthenticated(match peer.names() {
                    [] => {
                        "send a team's token: Authorization: Bearer TOKEN, or Basic with the team's name and its token"
                    }
                    _ => "the client certificate names no team, and there is no token; send one, or use another certificate",
                })
            })?;
            return self.check_origin(request).map(|()| known);
        };
        let presented = PresentedToken::read(presented)
            .ok_or_else(|| unauthenticated("the Authorization header is neither Bearer nor Basic"))?;
        let known = self.authenticate(&presented).ok_or_else(|| {
            unauthenticated(
                "the team or its token is not known, or the token has expired; ask whoever operates the gateway for a new one",
            )
        })?;
        match certified {
            Some(certified) if certified.caller.team.name != known.caller.team.name => {
                Err(unauthenticated("the token and the client certificate are of different teams; send one of them"))
            }
            _ => Ok(known),
        }
    }

    /// The team that the client certificate names, if it names one.
    fn certified(&self, peer: &Peer) -> Result<Option<&CallerLimits>, &'static str> {
        if !self.certificates {
            return Ok(None);
        }
        let is_named = |known: &&CallerLimits| peer.names().iter().any(|name| **name == *known.caller.team.name);
        let mut named = self.callers.iter().filter(is_named);
        match (named.next(), named.next()) {
            (known, None) => Ok(known),
            (_, Some(_)) => Err("the client certificate names several teams; use one that names one"),
        }
    }

    /// The team whose token the request has.
    fn authenticate(&self, presented: &PresentedToken) -> Option<&CallerLimits> {
        let hash = digest(&SHA256, presented.token.as_bytes());
        // All tokens are compared, so that the time does not show which one matched, or how far.
        let mut found = None;
        for known in &self.callers {
            for expected in &known.caller.tokens {
                let equal = verify_slices_are_equal(hash.as_ref(), &expected.sha256).is_ok();
                let is_valid = || expected.expires.is_none_or(|expires| self.clock.wall_now() < expires);
                if equal && is_valid() && presented.team.as_deref().is_none_or(|team| *team == *known.caller.team.name)
                {
                    found = Some(known);
                }
            }
        }
        found
    }

    /// The usage of the calling team. This request does not count against the team's rate.
    fn usage<B>(&self, incoming: &IncomingRequest<B>) -> Answered {
        let known = self.identify(&incoming.request, &incoming.peer)?;
        incoming.peer.identify();
        let _ = incoming.context.team.set(Arc::clone(&known.caller.team));
        let requests = known.caller.requests.as_ref().map(|requests| requests.left(self.clock.now()));
        let upstream = known.set_rate_limit(requests, incoming);
        let _ = incoming.context.outcome.set(Outcome::Bypass);
        Ok(usage::respond(known, requests, upstream, self.clock))
    }

    fn refuse(&self, error: GatewayError, peer: &Peer) -> OwnAnswer {
        let is_stranger = error.reason() == Reason::Unauthenticated;
        let delayed = is_stranger.then(|| self.failure_delay.failed(peer.source_group(), self.clock)).flatten();
        match delayed {
            None => Either::Left(ready(Err(error))),
            Some(delayed) => Either::Right(Box::pin(async move {
                delayed.over().await;
                Err(error)
            })),
        }
    }

    fn limit<B>(&self, known: &CallerLimits, incoming: &IncomingRequest<B>) -> Result<(), GatewayError> {
        let taken = known.caller.requests.as_ref().map(|requests| requests.take(self.clock.now()));
        let requests = taken.map(|(Ok(allowance) | Err(allowance))| allowance);
        known.set_rate_limit(requests, incoming);
        let Some(Err(allowance)) = taken else { return Ok(()) };
        let wait = allowance.reset.max(1);
        let message = format!("team {} has sent too many requests; come back in {wait} s", known.caller.team.name);
        Err(GatewayError::new(Reason::TeamRateLimit, message).with_retry_after(std::time::Duration::from_secs(wait)))
    }
}

/// The token in a request.
struct PresentedToken {
    team: Option<Zeroizing<String>>,
    token: Zeroizing<String>,
}

impl PresentedToken {
    fn read(value: &HeaderValue) -> Option<Self> {
        let (scheme, rest) = value.to_str().ok()?.split_once(' ')?;
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return Some(Self { team: None, token: Zeroizing::new(rest.to_owned()) });
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let decoded = Zeroizing::new(BASE64_STANDARD.decode(rest).ok()?);
        let (team, token) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
        Some(Self { team: Some(Zeroizing::new(team.to_owned())), token: Zeroizing::new(token.to_owned()) })
    }
}

#[cfg(test)]
mod tests;
