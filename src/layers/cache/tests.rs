mod clock_tests;
mod compression_tests;
mod directive_tests;
mod fill_tests;
mod flight_tests;
mod freshness_tests;
mod purge_tests;
mod set_tests;
mod storage_tests;
mod tier_tests;
mod write_tests;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, ready};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::sync::Semaphore;
use tokio::time::advance;
use tower::{Layer, Service, ServiceExt};

use super::{CacheLayer, Caching, JobLifetimes, Policy};
use crate::accounts::AccountId;
use crate::cache::entry::Entry;
use crate::cache::flight::{Flown, Kind};
use crate::cache::stored::StoredResponse;
use crate::cache::{Purge, Store};
use crate::core::clock::{Clock, Instant, Simulation};
use crate::core::error::{GatewayError, Reason, Retry};
use crate::core::outcome::Outcome;
use crate::layers::represent::{Represent, RepresentLayer};
use crate::metrics::Metrics;
use crate::request::call::{UpstreamCall, UpstreamResponse};
use crate::request::key::Key;
use crate::request::query::{CanonicalQuery, ClientQuery};
use crate::request::response::{ClientResponse, Representation};
use crate::semantics::freshness::Lifetimes;
use crate::semantics::request_directives::{CacheDirectives, RequestDirectives};
use crate::twilio::endpoint::Operation;
use crate::twilio::links::Links;
use crate::twilio::parameters::Parameters;

const S: Duration = Duration::from_secs(1);

const POLICY: Policy = Policy {
    metadata: Lifetimes { fresh: Duration::from_secs(3600), stale_while_revalidate: S, stale_if_error: S },
    query: Lifetimes {
        fresh: Duration::from_secs(60),
        stale_while_revalidate: Duration::from_secs(300),
        stale_if_error: Duration::from_secs(3600),
    },
    settled: Lifetimes {
        fresh: Duration::from_secs(86_400),
        stale_while_revalidate: Duration::ZERO,
        stale_if_error: Duration::ZERO,
    },
    settled_after: Duration::from_secs(86_400),
    jobs: JobLifetimes { dedup: Duration::from_secs(600), results: Duration::from_secs(7 * 86_400) },
    errors: Duration::from_secs(10),
    deadline: Duration::from_secs(90),
    refresh_jitter: Duration::ZERO,
    keep_queries: false,
};

/// What the upstream does next.
#[derive(Clone)]
enum Next {
    Page(&'static str),
    Status(u16),
    NoStore(&'static str),
    /// A page with headers, one per line.
    With(&'static str, &'static str),
    Fail(Reason),
    Abandoned,
    Panic,
}

/// An upstream with a script, and optionally a gate that every response waits for.
#[derive(Clone)]
struct Upstream {
    script: Arc<Mutex<VecDeque<Next>>>,
    calls: Arc<AtomicUsize>,
    gate: Arc<Semaphore>,
}

impl Upstream {
    fn new(script: &[Next]) -> Self {
        Self {
            script: Arc::new(Mutex::new(script.iter().cloned().collect())),
            calls: Arc::default(),
            gate: Arc::new(Semaphore::new(usize::MAX >> 4)),
        }
    }

    /// Answers wait until [`open`](Self::open).
    fn gated(script: &[Next]) -> Self {
        Self { gate: Arc::new(Semaphore::new(0)), ..Self::new(script) }
    }

    fn open(&self, answers: usize) {
        self.gate.add_permits(answers);
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

impl Service<UpstreamCall> for Upstream {
    type Response = UpstreamResponse;
    type Error = GatewayError;
    type Future = BoxFuture<'static, Result<UpstreamResponse, GatewayError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), GatewayError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: UpstreamCall) -> Self::Future {
        let upstream = self.clone();
        Box::pin(async move {
            upstream.calls.fetch_add(1, Ordering::SeqCst);
            upstream.gate.acquire().await.expect("the gate stays").forget();
            let next = upstream.script.lock().unwrap().pop_front().expect("a call beyond the script");
            let answer = |status, body: &'static str, lines: &'static str| {
                let mut headers = HeaderMap::new();
                for line in lines.lines() {
                    let (name, value) = line.split_once(": ").unwrap();
                    headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
                }
                Ok(UpstreamResponse {
                    status: StatusCode::from_u16(status).unwrap(),
                    headers,
                    body: Bytes::from_static(body.as_bytes()),
                    next_token: token_of(body),
                })
            };
            match next {
                Next::Page(body) => answer(200, body, ""),
                Next::NoStore(body) => answer(200, body, "cache-control: no-store"),
                Next::With(headers, body) => answer(200, body, headers),
                Next::Status(status) => answer(status, "{}", ""),
                Next::Fail(reason) => Err(GatewayError::new(reason, "scripted").with_retry(Retry::Never)),
                Next::Abandoned => Err(GatewayError::abandoned()),
                Next::Panic => panic!("scripted"),
            }
        })
    }
}

/// The cache, with the layer in front of it that makes client responses.
#[derive(Clone)]
struct Cache {
    layer: CacheLayer,
    service: Represent<Caching<Upstream>>,
}

impl Cache {
    fn new(layer: CacheLayer, upstream: &Upstream) -> Self {
        let represent = RepresentLayer::new(
            layer.store.clone(),
            Links::new(&"http://upstream".parse().unwrap(), None),
            layer.clock,
        );
        Self { service: represent.layer(layer.layer(upstream.clone())), layer }
    }

    fn oneshot(self, query: ClientQuery) -> impl Future<Output = Result<ClientResponse, GatewayError>> + Send {
        self.service.oneshot(query)
    }
}

fn cache(upstream: &Upstream) -> Cache {
    cache_with(POLICY, upstream)
}

fn cache_with(policy: Policy, upstream: &Upstream) -> Cache {
    let metrics = Metrics::new();
    let store = Store::new(1 << 20, &metrics);
    Cache::new(CacheLayer::new(store, policy, metrics, Clock::simulated()), upstream)
}

/// A cache on a machine whose clock can be set, and that can be suspended.
fn cache_on(upstream: &Upstream) -> (Cache, &'static Simulation) {
    let (clock, machine) = Clock::simulation();
    let metrics = Metrics::new();
    (Cache::new(CacheLayer::new(Store::new(1 << 20, &metrics), POLICY, metrics, clock), upstream), machine)
}

fn purge(cache: &Cache, which: &Purge) -> u64 {
    cache.layer.store.purge(which).pages
}

fn forcing(call: ClientQuery) -> ClientQuery {
    let cache = CacheDirectives { no_cache: true, ..CacheDirectives::default() };
    ClientQuery { directives: RequestDirectives { cache, ..RequestDirectives::default() }, ..call }
}

fn call(body: &'static str) -> ClientQuery {
    ClientQuery::example(Operation::Query, "", body)
}

fn wishing(cache: CacheDirectives) -> ClientQuery {
    ClientQuery { directives: RequestDirectives { cache, ..RequestDirectives::default() }, ..call("q") }
}

async fn ask(cache: &Cache, call: ClientQuery) -> Result<ClientResponse, Reason> {
    cache.clone().oneshot(call).await.map_err(|error| error.reason())
}

/// The parts of a reply: outcome, body, age in seconds.
fn said(reply: Result<ClientResponse, Reason>) -> (Outcome, String, Option<u64>) {
    let reply = reply.expect("a reply");
    let body = String::from_utf8(reply.page.body.to_vec()).unwrap();
    (reply.outcome, body, reply.age.map(|age| age.as_secs()))
}

fn is(outcome: Outcome, body: &str, age: Option<u64>) -> (Outcome, String, Option<u64>) {
    (outcome, body.to_owned(), age)
}

/// Lets all tasks run until they wait.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// `page>token`: a page's body with the token of the next page.
fn token_of(body: &str) -> Option<String> {
    body.split_once('>').map(|(_, token)| token.to_owned())
}

fn page(token: &str) -> ClientQuery {
    let parameters = Parameters::of_page(token);
    ClientQuery::example(Operation::Page, parameters.as_str(), "")
}

fn alone(call: ClientQuery) -> ClientQuery {
    let cache = CacheDirectives { no_store: true, ..CacheDirectives::default() };
    ClientQuery { directives: RequestDirectives { cache, ..RequestDirectives::default() }, ..call }
}
