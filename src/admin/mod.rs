//! The admin plane: health, metrics, cache contents and purges for programs, and a status page for people.
//!
//! It has its own listener, never the data plane's. If a token is configured, everything except the two probes and the
//! login requires it, or the session of a browser that has logged in with it. The admin plane reads the shared state.
//! It changes only the cache, on request. The explorer sends requests through the stack as any client does. The admin
//! plane shows no secret, and shows queries only as hashes unless `admin.show_queries` is on.

mod access;
mod answer;
mod body;
mod caller;
mod events;
mod explorer;
mod health;
mod history;
mod login;
mod openapi;
mod pages;
mod requests;
mod runbook;
mod sessions;
mod status;

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use self::access::Access;
use self::answer::{json_answer, not_allowed, refuse, see, text};
use self::history::History;
use self::pages::Pages;
use self::requests::EntriesQuery;
use self::sessions::Sessions;
use crate::cache::Purged;
use crate::config::Config;
use crate::core::clock::Instant;
use crate::core::error::Reason;
use crate::core::escape;
use crate::core::peer::Peer;
use crate::health::{Health, State};
use crate::metrics::{AccountLabels, ConfigLabel, Metrics, NoLabels, TeamLabels};
use crate::request::body::ResponseBody;
use crate::semantics::host;
use crate::stack::{SharedState, Stack};

pub use self::caller::{OfPeer, is_probe};

/// The most connections: enough for probes, a scraper and some browsers.
pub const CONNECTIONS: usize = 64;

/// Additional connections, for probes only.
pub const CONNECTIONS_FOR_PROBES: usize = 8;

/// The largest body of a purge, in bytes.
const MAX_PURGE: usize = 64 * 1024;

/// Answers on the admin listener. Cheap to clone.
#[derive(Clone)]
pub struct Admin(Arc<Inner>);

struct Inner {
    shared: SharedState,
    config: Arc<ArcSwap<Config>>,
    stack: Arc<ArcSwap<Stack>>,
    draining: Arc<OnceLock<Instant>>,
    data: Option<String>,
    beyond_loopback: bool,
    sessions: Sessions,
    history: History,
    pages: Pages,
    /// A permit for each stream of events.
    streams: Arc<Semaphore>,
}

impl Admin {
    /// Serves the shared state and the current configuration. Not ready once `draining` is set. The explorer uses the
    /// current `stack`, and the status page names `data` as the URL of the data plane. `beyond_loopback` says whether
    /// other machines reach the admin listener. The configuration cannot say it, because a reload may change its
    /// address but moves no listener. Needs a tokio runtime.
    pub fn new(
        shared: SharedState,
        config: Arc<ArcSwap<Config>>,
        stack: Arc<ArcSwap<Stack>>,
        draining: Arc<OnceLock<Instant>>,
        data: Option<String>,
        beyond_loopback: bool,
    ) -> Self {
        let inner = Arc::new(Inner {
            shared,
            config,
            stack,
            draining,
            data,
            beyond_loopback,
            sessions: Sessions::default(),
            history: History::default(),
            pages: Pages::new(),
            streams: Arc::new(Semaphore::new(events::STREAMS)),
        });
        tokio::spawn(history::record(Arc::downgrade(&inner)));
        Self(inner)
    }
}

impl Inner {
    async fn answer(self: &Arc<Self>, request: Request<Incoming>, peer: &Peer) -> Response<ResponseBody> {
        if let Err(message) = host::named(&request) {
            return refuse(StatusCode::BAD_REQUEST, message);
        }
        let path = request.uri().path().to_owned();
        let read = matches!(*request.method(), Method::GET | Method::HEAD);
        let is_probe = read && matches!(path.as_str(), "/livez" | "/readyz");
        let access = self.access(&request);
        if let Access::Session(_) = access {
            peer.identify();
        }
        // Login and logout check the credentials themselves.
        match path.as_str() {
            "/login" if access != Access::Open => return self.login(request, access).await,
            "/logout" if access != Access::Open => return self.logout(&request),
            _ if is_probe || access.is_granted() => {}
            "/" if read && access == Access::Nothing && accepts_html(&request) => return see("/login"),
            _ => return unauthorized(access, &path),
        }
        if let Err(message) = self.check_site(&request, is_probe, access) {
            return foreign(message);
        }
        match (path.as_str(), read) {
            ("/livez", true) => self.live(),
            ("/readyz", true) => self.ready(request.uri().query().unwrap_or_default(), access.is_granted()),
            ("/", true) => self.pages.status(),
            ("/runbook", true) => self.pages.runbook(),
            ("/login", true) => see("/"),
            ("/login" | "/logout", false) if request.method() == Method::POST => see("/"),
            ("/metrics", true) => self.metrics(),
            ("/status", true) => json_answer(StatusCode::OK, &self.status()),
            ("/openapi.json", true) => json_answer(StatusCode::OK, &openapi::document()),
            ("/events", true) => self.events(access),
            ("/cache/entries", true) => self.entries(request.uri().query().unwrap_or_default()).await,
            ("/cache/purge", false) if request.method() == Method::POST => self.purge(request).await,
            (
                "/" | "/runbook" | "/metrics" | "/status" | "/openapi.json" | "/events" | "/cache/entries" | "/livez"
                | "/readyz",
                false,
            ) => not_allowed("GET, HEAD"),
            ("/login", _) => not_allowed("GET, HEAD, POST"),
            ("/cache/purge" | "/logout", _) => not_allowed("POST"),
            _ => match self.explore(&path, request, peer).await {
                Some(response) => response,
                None if is_of_data_plane(&path) => {
                    let url = self.data.as_deref().unwrap_or("server.listen in the configuration");
                    let message = format!("this is the admin plane's port; Twilio's API is on the data plane's: {url}");
                    refuse(StatusCode::NOT_FOUND, &message)
                }
                None => refuse(
                    StatusCode::NOT_FOUND,
                    "the admin plane has /, /runbook, /login, /logout, /livez, /readyz, /metrics, /status, /events, \
                     /openapi.json, /cache/entries, /cache/purge and, where it is on, /explorer/query, /explorer/metadata and \
                     /explorer/cost",
                ),
            },
        }
    }

    /// The content of `/status`.
    fn status(&self) -> Value {
        status::status(self, &self.config.load(), &self.health())
    }

    fn health(&self) -> Health {
        health::now(&self.shared, &self.config.load(), self.draining.get().copied())
    }

    /// `exclude=NAME` in the query leaves out a check of the verdict, or all checks of a kind: `exclude=credentials`.
    /// Causes and names are shown only if the caller `is_known`.
    fn ready(&self, query: &str, is_known: bool) -> Response<ResponseBody> {
        let health = self.health();
        // Whoever shows no token excludes kinds of checks alone: the answer to a name would confirm that it exists.
        let verdict = health.without(|name| (is_known || !name.contains('/')) && is_excluded(name, query)).state();
        let status = if verdict == State::Failing { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        let told = if is_known { health } else { health.anonymous() };
        text(status, "application/json", escape::text(&health::ready_page(verdict, &told), false).into_owned())
    }

    fn live(&self) -> Response<ResponseBody> {
        text(StatusCode::OK, "application/json", health::live_page(self.shared.clock.started_at()))
    }

    fn metrics(&self) -> Response<ResponseBody> {
        let SharedState { clock, metrics, store, registry, certificate, .. } = &self.shared;
        let (entries, bytes) = store.size();
        metrics.cache_entries.set(entries.try_into().unwrap_or(i64::MAX));
        metrics.cache_bytes.set(bytes.try_into().unwrap_or(i64::MAX));
        metrics.cache_capacity.set(store.capacity().try_into().unwrap_or(i64::MAX));
        metrics.uptime.set((clock.now() - clock.start()).as_secs_f64());
        metrics.health_state.set(self.health().state().level());
        metrics.certificate_expiry.clear();
        if let Some((validity, _)) = certificate.get() {
            metrics.certificate_expiry.get_or_create(&NoLabels {}).set(seconds(validity.not_after));
        }
        metrics.token_expiry.clear();
        for team in &self.config.load().teams {
            if let Some(expiry) = health::team(team).expiry(clock.wall_now()) {
                let labels = TeamLabels { team: ConfigLabel(team.name.as_str().into()) };
                metrics.token_expiry.get_or_create(&labels).set(seconds(expiry));
            }
        }
        // Accounts that a reload took away are gone from here too.
        for gauge in [&metrics.budget_tokens, &metrics.budget_rate, &metrics.budget_paused] {
            gauge.clear();
        }
        let Metrics { queue_length, upstream_in_flight, credentials_rejected, circuit_state, .. } = &**metrics;
        for gauge in [queue_length, upstream_in_flight, credentials_rejected, circuit_state] {
            gauge.clear();
        }
        for account in &self.config.load().accounts {
            let Some(state) = registry.account(&account.name) else { continue };
            let status = state.budget.status();
            let labels = AccountLabels { account: ConfigLabel(account.name.as_str().into()) };
            if let Some(tokens) = status.tokens {
                metrics.budget_tokens.get_or_create(&labels).set(tokens);
            }
            if let Some(per_second) = status.per_second {
                metrics.budget_rate.get_or_create(&labels).set(per_second);
            }
            metrics.circuit_state.get_or_create(&labels).set(status.circuit.level());
            metrics.budget_paused.get_or_create(&labels).set(status.paused.as_secs_f64());
            metrics.queue_length.get_or_create(&labels).set(status.waiting.try_into().unwrap_or(i64::MAX));
            metrics.upstream_in_flight.get_or_create(&labels).set(status.in_flight.into());
            let rejected = state.rejection.since().is_some();
            metrics.credentials_rejected.get_or_create(&labels).set(rejected.into());
        }
        match metrics.encode() {
            Ok(body) => text(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", body),
            Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written; try again"),
        }
    }

    async fn entries(&self, query: &str) -> Response<ResponseBody> {
        let EntriesQuery { limit, after } = match EntriesQuery::parse(query) {
            Ok(asked) => asked,
            Err(message) => return refuse(StatusCode::BAD_REQUEST, message),
        };
        let (store, clock) = (self.shared.store.clone(), self.shared.clock);
        // Every page is looked at, for which no request waits.
        let listing = tokio::task::spawn_blocking(move || store.entries(after.as_deref(), limit, clock.moment()));
        let Ok(entries) = listing.await else {
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, "the entries cannot be listed; try again");
        };
        let next = (entries.len() == limit).then(|| entries.last().map(|entry| entry.key.to_string())).flatten();
        // Texts that were kept while they could be shown are not, once they may no longer be.
        let show_queries = self.config.load().admin.show_queries;
        let entries: Vec<_> = entries.iter().map(|entry| status::entry(entry, show_queries)).collect();
        json_answer(StatusCode::OK, &json!({"entries": entries, "next": next}))
    }

    async fn purge(&self, request: Request<Incoming>) -> Response<ResponseBody> {
        let body = match body::read(request.into_body(), MAX_PURGE).await {
            Ok(body) => body,
            Err(refusal) => return refusal,
        };
        let config = self.config.load_full();
        let accounts = config.accounts.iter().map(|account| account.name.as_str());
        let which = match requests::purge(&body, accounts) {
            Ok(which) => which,
            Err(message) => return refuse(StatusCode::BAD_REQUEST, &message),
        };
        let store = self.shared.store.clone();
        // A purge reads all pages and waits for the disk. In its own task it completes even if its client leaves.
        let purge = tokio::task::spawn_blocking(move || {
            let purged = store.purge(&which);
            tracing::info!(purged = purged.pages, "pages purged by request");
            purged
        });
        match purge.await {
            Ok(Purged { pages, not_lasting: None, shared: None }) => {
                json_answer(StatusCode::OK, &json!({"purged": pages}))
            }
            Ok(Purged { pages, not_lasting: None, shared: Some(shared) }) => {
                json_answer(StatusCode::OK, &json!({"purged": pages, "shared": shared}))
            }
            Ok(Purged { not_lasting: Some(why), .. }) => {
                let message = format!("purged, but purged pages may come back at the next start: {why}");
                refuse(StatusCode::INTERNAL_SERVER_ERROR, &message)
            }
            Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the purge failed; try it again"),
        }
    }
}

/// Whether an `exclude` in the query names this check.
fn is_excluded(name: &str, query: &str) -> bool {
    query.split('&').filter_map(|pair| pair.strip_prefix("exclude=")).any(|excluded| excluded == name)
}

/// Whole seconds since 1970.
fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_secs().try_into().unwrap_or(i64::MAX)
}

fn accepts_html<B>(request: &Request<B>) -> bool {
    let accepted = request.headers().get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|list| list.split(',')).any(|range| range.trim_start().starts_with("text/html"))
}

/// Whether a client that asks for this path has taken the admin plane's port for the data plane's.
fn is_of_data_plane(path: &str) -> bool {
    ["/v3", "/_gateway"]
        .iter()
        .any(|base| path.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

fn unauthorized(access: Access, path: &str) -> Response<ResponseBody> {
    let message = match access {
        // A team's token is right on the other port. Its address is told only to those who show the admin plane's.
        _ if is_of_data_plane(path) => {
            "this is the admin plane's port, which wants its own token; Twilio's API is on the data plane's port, which is \
             server.listen in the configuration"
        }
        Access::Wrong => {
            "that is not the admin plane's token, which is the one whose SHA-256 is admin.token_sha256; a team's token does not work here"
        }
        _ => "the admin plane wants its token: Authorization: Bearer TOKEN; browsers log in at /login",
    };
    let mut response = refuse(StatusCode::UNAUTHORIZED, message);
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// Refuses a request that another site's page has caused.
fn foreign(message: &str) -> Response<ResponseBody> {
    let reason = Reason::OriginNotAllowed;
    json_answer(reason.status(), &json!({"error": message, "reason": reason.as_str()}))
}
