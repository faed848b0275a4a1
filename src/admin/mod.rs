//! The admin plane: is it well, what does it count, what does it hold, drop this.
//!
//! On a listener of its own, never on the data plane's. With a token configured, all but the two probes want
//! it. It reads the handles of the rooms and changes nothing but the cache, on request. It shows no secret,
//! and queries only as hashes unless `admin.show_queries` is on.

mod caller;
mod health;
mod openapi;
mod requests;
mod status;

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tower::Service;

use self::requests::EntriesQuery;
use crate::cache::Purged;
use crate::config::Config;
use crate::core::clock::Instant;
use crate::core::error::Reason;
use crate::core::escape;
use crate::metrics::{AccountLabels, ConfigLabel, Metrics};
use crate::request::body::ResponseBody;
use crate::semantics::host;
use crate::semantics::origin;
use crate::stack::SharedState;

pub use self::caller::{OfPeer, is_probe};

/// Connections at once: probes, a scraper, some people.
pub const CONNECTIONS: usize = 64;

/// Connections beyond those, for probes alone.
pub const CONNECTIONS_FOR_PROBES: usize = 8;

const MAX_BODY: usize = 64 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Answers on the admin listener. Cheap to clone.
#[derive(Clone)]
pub struct Admin(Arc<Inner>);

struct Inner {
    shared: SharedState,
    config: Arc<ArcSwap<Config>>,
    draining: Arc<OnceLock<Instant>>,
    beyond_loopback: bool,
}

impl Admin {
    /// Reads what lasts and the current configuration; not ready once it is `draining`. Whether its listener is reached
    /// from `beyond_loopback` is told, since a reload may change what the configuration says, and moves no listener.
    pub fn new(
        shared: SharedState,
        config: Arc<ArcSwap<Config>>,
        draining: Arc<OnceLock<Instant>>,
        beyond_loopback: bool,
    ) -> Self {
        Self(Arc::new(Inner { shared, config, draining, beyond_loopback }))
    }
}

impl Service<Request<Incoming>> for Admin {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<ResponseBody>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { Ok(inner.answer(request).await) })
    }
}

impl Inner {
    async fn answer(&self, request: Request<Incoming>) -> Response<ResponseBody> {
        if let Err(message) = host::named(&request) {
            return refuse(StatusCode::BAD_REQUEST, message);
        }
        let path = request.uri().path().to_owned();
        let read = matches!(*request.method(), Method::GET | Method::HEAD);
        let is_probe = read && matches!(path.as_str(), "/livez" | "/readyz");
        if !is_probe && !self.is_allowed(&request) {
            let mut response =
                refuse(StatusCode::UNAUTHORIZED, "the admin plane wants its token: Authorization: Bearer TOKEN");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return response;
        }
        if let Err(message) = self.check_site(&request, is_probe) {
            let reason = Reason::OriginNotAllowed;
            return json_answer(reason.status(), &json!({"error": message, "reason": reason.as_str()}));
        }
        match (path.as_str(), read) {
            ("/livez", true) => self.live(),
            ("/readyz", true) => self.ready(request.uri().query().unwrap_or_default()),
            ("/", true) => self.page(),
            ("/metrics", true) => self.metrics(),
            ("/status", true) => {
                json_answer(StatusCode::OK, &status::status(&self.shared, &self.config.load(), &self.checks()))
            }
            ("/openapi.json", true) => json_answer(StatusCode::OK, &openapi::document()),
            ("/cache/entries", true) => self.entries(request.uri().query().unwrap_or_default()).await,
            ("/cache/purge", false) if request.method() == Method::POST => self.purge(request).await,
            ("/" | "/metrics" | "/status" | "/openapi.json" | "/cache/entries" | "/livez" | "/readyz", false) => {
                not_allowed("GET, HEAD")
            }
            ("/cache/purge", _) => not_allowed("POST"),
            _ => refuse(
                StatusCode::NOT_FOUND,
                "the admin plane has /, /livez, /readyz, /metrics, /status, /openapi.json, /cache/entries and /cache/purge",
            ),
        }
    }

    fn is_allowed<B>(&self, request: &Request<B>) -> bool {
        let Some(expected) = self.config.load().admin.token_sha256 else { return true };
        let mut presented = request.headers().get_all(header::AUTHORIZATION).iter();
        let alone = presented.next().filter(|_| presented.next().is_none());
        let token = alone.and_then(|value| {
            let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        token
            .is_some_and(|token| verify_slices_are_equal(digest(&SHA256, token.as_bytes()).as_ref(), &expected).is_ok())
    }

    /// Whether a web page may ask this: only our own, and where no token has been asked for not under a name that
    /// somebody else may own. Beyond loopback there is a token, and probes may use whatever name leads there.
    fn check_site<B>(&self, request: &Request<B>, is_probe: bool) -> Result<(), &'static str> {
        let config = self.config.load();
        let without_token = is_probe || config.admin.token_sha256.is_none();
        let is_ours = |host: &str| {
            let public = config.server.public_url.as_ref().and_then(|url| url.host());
            host::is_address_or_loopback(host) || public.is_some_and(|public| public.eq_ignore_ascii_case(host))
        };
        let is_named = request.uri().authority().is_some() || request.headers().contains_key(header::HOST);
        let is_rebound = is_named && !origin::authority_of(request).is_some_and(|named| is_ours(named.host()));
        match () {
            () if without_token && !self.beyond_loopback && is_rebound => Err(
                "without a token the admin plane answers only to loopback names, IP addresses and the host of server.public_url, lest a web page reach it by a name of its own",
            ),
            () if without_token && origin::is_cross_site(request, &[]) => {
                Err("without a token the admin plane answers no page of another site")
            }
            () if origin::names_another(request, &[]) => Err("the admin plane answers no page of another site"),
            () => Ok(()),
        }
    }

    fn checks(&self) -> Vec<Value> {
        health::checks(&self.shared, &self.config.load(), self.draining.get().copied())
    }

    /// `exclude=NAME` in the query leaves a check out of the verdict, or all checks of a kind: `exclude=credentials`.
    fn ready(&self, query: &str) -> Response<ResponseBody> {
        let checks = self.checks();
        let ready = checks.iter().all(|check| check["ok"] == true || is_excluded(&check["check"], query));
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        text(status, "application/json", health::page("ready", ready, &checks))
    }

    /// Whoever can answer lives: there is nothing else that only a restart could mend.
    fn live(&self) -> Response<ResponseBody> {
        let since = health::time(self.shared.clock.started_at());
        let check = json!({"check": "process", "ok": true, "since": since});
        text(StatusCode::OK, "application/json", health::page("live", true, &[check]))
    }

    fn metrics(&self) -> Response<ResponseBody> {
        let SharedState { clock, metrics, store, registry, .. } = &self.shared;
        let (entries, bytes) = store.size();
        metrics.cache_entries.set(entries.try_into().unwrap_or(i64::MAX));
        metrics.cache_bytes.set(bytes.try_into().unwrap_or(i64::MAX));
        metrics.cache_capacity.set(store.capacity().try_into().unwrap_or(i64::MAX));
        metrics.uptime.set((clock.now() - clock.start()).as_secs_f64());
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
            Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written"),
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
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, "the entries cannot be listed");
        };
        let next = (entries.len() == limit).then(|| entries.last().map(|entry| entry.key.to_string())).flatten();
        // Texts that were kept while they could be shown are not, once they may no longer be.
        let show_queries = self.config.load().admin.show_queries;
        let entries: Vec<_> = entries.iter().map(|entry| status::entry(entry, show_queries)).collect();
        json_answer(StatusCode::OK, &json!({"entries": entries, "next": next}))
    }

    async fn purge(&self, request: Request<Incoming>) -> Response<ResponseBody> {
        let body = Limited::new(request.into_body(), MAX_BODY).collect();
        let body = match tokio::time::timeout(BODY_TIMEOUT, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                return refuse(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "the body is larger than 64 KiB, and a purge is one line",
                );
            }
            Ok(Err(_)) => return refuse(StatusCode::BAD_REQUEST, "the body was cut; send it whole"),
            Err(_) => return refuse(StatusCode::REQUEST_TIMEOUT, "the body took longer than 10 s to arrive"),
        };
        let config = self.config.load_full();
        let accounts = config.accounts.iter().map(|account| account.name.as_str());
        let which = match requests::purge(&body, accounts) {
            Ok(which) => which,
            Err(message) => return refuse(StatusCode::BAD_REQUEST, &message),
        };
        let store = self.shared.store.clone();
        // It goes through all pages, and waits for the disk. Whoever asked may leave: it is finished all the same.
        let purge = tokio::task::spawn_blocking(move || {
            let purged = store.purge(&which);
            tracing::info!(purged = purged.pages, "pages purged by request");
            purged
        });
        match purge.await {
            Ok(Purged { pages, not_lasting: None }) => json_answer(StatusCode::OK, &json!({"purged": pages})),
            Ok(Purged { not_lasting: Some(why), .. }) => {
                let message = format!("purged, but purged pages may come back at the next start: {why}");
                refuse(StatusCode::INTERNAL_SERVER_ERROR, &message)
            }
            Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the purge failed; try it again"),
        }
    }

    fn page(&self) -> Response<ResponseBody> {
        let mut response = text(StatusCode::OK, "text/html; charset=utf-8", include_str!("page.html"));
        let headers = response.headers_mut();
        // The page is one file: its style and script are inline, and it talks to this listener alone.
        let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        response
    }
}

/// Is this check, or its kind (what stands before the `/` in its name), named by an `exclude` in the query.
fn is_excluded(check: &serde_json::Value, query: &str) -> bool {
    let name = check.as_str().unwrap_or_default();
    let kind = name.split('/').next().unwrap_or_default();
    query.split('&').filter_map(|pair| pair.strip_prefix("exclude=")).any(|named| named == name || named == kind)
}

fn text(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::full(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn json_answer(status: StatusCode, value: &Value) -> Response<ResponseBody> {
    // Queries hold what clients wrote, and people read this in terminals: what would steer one is escaped, as JSON has it.
    let mut body = escape::text(&value.to_string(), false).into_owned();
    // A line of its own on a terminal. Writing to a string does not fail.
    let _ = writeln!(body);
    let mut response = text(status, "application/json", body);
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

fn refuse(status: StatusCode, message: &str) -> Response<ResponseBody> {
    json_answer(status, &json!({"error": message}))
}

fn not_allowed(methods: &'static str) -> Response<ResponseBody> {
    let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED, "this path does not know that method");
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
    response
}
