mod fill_tests;
mod tier_tests;

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::Semaphore;
use tokio::time::advance;

use super::*;
use crate::cache::Purge;
use crate::core::clock::Simulation;
use crate::core::error::Retry;
use crate::layers::represent::{Represent, RepresentLayer};
use crate::metrics::Metrics;
use crate::request::query::CanonicalQuery;
use crate::request::response::ClientResponse;
use crate::semantics::request_directives::{CacheDirectives, RequestDirectives};
use crate::twilio::endpoint::Operation;
use crate::twilio::links::Links;

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
    Cache::new(CacheLayer::new(store, policy, one_name(), metrics, Clock::simulated()), upstream)
}

/// A cache on a machine whose clock can be set, and that can be suspended.
fn cache_on(upstream: &Upstream) -> (Cache, &'static Simulation) {
    let (clock, machine) = Clock::simulation();
    let metrics = Metrics::new();
    (Cache::new(CacheLayer::new(Store::new(1 << 20, &metrics), POLICY, one_name(), metrics, clock), upstream), machine)
}

/// The account of the tests has one name.
fn one_name() -> PerAccount<Arc<[Arc<str>]>> {
    PerAccount::example(Arc::from(["main".into()]))
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

#[tokio::test(start_paused = true)]
async fn a_page_is_fetched_once_and_ages() {
    let upstream = Upstream::new(&[Next::Page("1")]);
    let cache = cache(&upstream);
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Miss, "1", None));
    advance(42 * S).await;
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "1", Some(42)));
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stale_page_is_served_while_one_refresh_runs() {
    let upstream = Upstream::gated(&[Next::Page("1"), Next::Page("2")]);
    let cache = cache(&upstream);
    upstream.open(1);
    ask(&cache, call("q")).await.unwrap();
    advance(61 * S).await;
    for _ in 0..5 {
        assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Stale, "1", Some(61)));
        settle().await;
    }
    assert_eq!(upstream.calls(), 2);
    upstream.open(1);
    settle().await;
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "2", Some(0)));
}

#[tokio::test(start_paused = true)]
async fn a_failed_refresh_leaves_the_pages_age_and_releases_its_claim() {
    let failures = [Next::Fail(Reason::UpstreamTimeout), Next::Panic, Next::Status(503)];
    let script: Vec<_> = [Next::Page("1")].into_iter().chain(failures).chain([Next::Page("2")]).collect();
    let upstream = Upstream::new(&script);
    let cache = cache(&upstream);
    ask(&cache, call("q")).await.unwrap();
    advance(61 * S).await;
    // The pauses are longer than a failed refresh delays the next one.
    for (failed, age) in (61..76).step_by(5).enumerate() {
        assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Stale, "1", Some(age)));
        settle().await;
        assert_eq!(upstream.calls(), failed + 2);
        advance(5 * S).await;
    }
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Stale, "1", Some(76)));
    settle().await;
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "2", Some(0)));
}

#[tokio::test(start_paused = true)]
async fn staleness_is_bounded() {
    let upstream =
        Upstream::new(&[Next::Page("1"), Next::Fail(Reason::UpstreamTimeout), Next::Fail(Reason::UpstreamTimeout)]);
    let cache = cache(&upstream);
    ask(&cache, call("q")).await.unwrap();
    advance(3660 * S).await;
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::StaleError, "1", Some(3660)));
    advance(S).await;
    assert_eq!(ask(&cache, call("q")).await.unwrap_err(), Reason::UpstreamTimeout);
}

#[tokio::test(start_paused = true)]
async fn a_stale_page_is_served_instead_of_an_error() {
    let failures = [
        Next::Status(429),
        Next::Status(500),
        Next::Status(503),
        Next::Fail(Reason::UpstreamUnreachable),
        Next::Fail(Reason::UpstreamInvalid),
        Next::Fail(Reason::Deadline),
        Next::Fail(Reason::QueueFull),
        Next::Fail(Reason::CircuitOpen),
    ];
    let script: Vec<_> = [Next::Page("1")].into_iter().chain(failures.clone()).collect();
    let upstream = Upstream::new(&script);
    let cache = cache(&upstream);
    ask(&cache, call("q")).await.unwrap();
    advance(1000 * S).await;
    for _ in failures {
        let reply = ask(&cache, call("q")).await.unwrap();
        assert_eq!(reply.outcome, Outcome::StaleError);
        let status = reply.cache_status.to_str().unwrap();
        assert!(status.starts_with("insights-gateway; hit; ttl=-940; detail=stale_error; key=\""), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn bad_credentials_and_twilios_refusals_are_not_hidden_by_a_stale_page() {
    let upstream = Upstream::new(&[
        Next::Page("1"),
        Next::Fail(Reason::UpstreamRejectedCredentials),
        Next::Status(400),
        Next::Page("2"),
    ]);
    let cache = cache(&upstream);
    ask(&cache, call("q")).await.unwrap();
    advance(1000 * S).await;
    assert_eq!(ask(&cache, call("q")).await.unwrap_err(), Reason::UpstreamRejectedCredentials);
    assert_eq!(ask(&cache, call("q")).await.unwrap().page.status, 400);
    // The 400 has not replaced the page, which can still be served on errors.
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Miss, "2", None));
}

#[tokio::test(start_paused = true)]
async fn identical_calls_share_one_flight() {
    let upstream = Upstream::gated(&[Next::Page("1")]);
    let cache = cache(&upstream);
    let asking: Vec<_> = (0..500).map(|_| tokio::spawn(cache.clone().oneshot(call("q")))).collect();
    settle().await;
    upstream.open(1);
    let mut outcomes = Vec::new();
    for reply in asking {
        outcomes.push(reply.await.unwrap().unwrap().outcome);
    }
    let misses = outcomes.iter().filter(|outcome| **outcome == Outcome::Miss).count();
    let collapsed = outcomes.iter().filter(|outcome| **outcome == Outcome::Collapsed).count();
    assert_eq!((misses, collapsed, upstream.calls()), (1, 499, 1));
}

#[tokio::test(start_paused = true)]
async fn different_calls_do_not() {
    let upstream = Upstream::gated(&[Next::Page("1"), Next::Page("2")]);
    let cache = cache(&upstream);
    let (one, two) = (tokio::spawn(cache.clone().oneshot(call("a"))), tokio::spawn(cache.clone().oneshot(call("b"))));
    settle().await;
    assert_eq!(upstream.calls(), 2);
    upstream.open(2);
    assert_ne!(one.await.unwrap().unwrap().page.body, two.await.unwrap().unwrap().page.body);
}

#[tokio::test(start_paused = true)]
async fn a_flight_survives_the_client_that_began_it() {
    let upstream = Upstream::gated(&[Next::Page("1")]);
    let cache = cache(&upstream);
    let leaving = tokio::spawn(cache.clone().oneshot(call("q")));
    settle().await;
    leaving.abort();
    settle().await;
    upstream.open(1);
    settle().await;
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "1", Some(0)));
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_shared_and_not_stored() {
    let upstream = Upstream::gated(&[Next::Fail(Reason::UpstreamInvalid), Next::Page("1")]);
    let cache = cache(&upstream);
    let asking: Vec<_> = (0..10).map(|_| tokio::spawn(cache.clone().oneshot(call("q")))).collect();
    settle().await;
    upstream.open(2);
    for reply in asking {
        assert_eq!(reply.await.unwrap().unwrap_err().reason(), Reason::UpstreamInvalid);
    }
    assert_eq!(upstream.calls(), 1);
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Miss, "1", None));
}

#[tokio::test(start_paused = true)]
async fn waiters_of_a_lost_flight_start_another() {
    for death in [Next::Panic, Next::Abandoned] {
        let upstream = Upstream::gated(&[death.clone(), Next::Page("1")]);
        let cache = cache(&upstream);
        let leader = tokio::spawn(cache.clone().oneshot(call("q")));
        settle().await;
        let follower = tokio::spawn(cache.clone().oneshot(call("q")));
        settle().await;
        leader.abort();
        upstream.open(2);
        assert_eq!(follower.await.unwrap().unwrap().page.body, "1");
        assert_eq!(upstream.calls(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn the_client_that_began_a_lost_flight_gets_an_error() {
    let upstream = Upstream::gated(&[Next::Panic, Next::Page("1")]);
    let cache = cache(&upstream);
    upstream.open(2);
    assert_eq!(ask(&cache, call("q")).await.unwrap_err(), Reason::Internal);
    assert_eq!(ask(&cache, call("q")).await.unwrap().outcome, Outcome::Miss, "and its key is free");
}

#[tokio::test(start_paused = true)]
async fn a_forced_refresh_is_made_once_and_serves_everybody() {
    let upstream = Upstream::gated(&[Next::Page("1"), Next::Page("2")]);
    let cache = cache(&upstream);
    upstream.open(1);
    ask(&cache, call("q")).await.unwrap();
    let no_cache = CacheDirectives { no_cache: true, ..CacheDirectives::default() };
    let forcing: Vec<_> = (0..10).map(|_| tokio::spawn(cache.clone().oneshot(wishing(no_cache)))).collect();
    settle().await;
    // Meanwhile other clients get the stored page.
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "1", Some(0)));
    upstream.open(1);
    for reply in forcing {
        assert_eq!(reply.await.unwrap().unwrap().page.body, "2");
    }
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "2", Some(0)));
    assert_eq!(upstream.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn no_store_touches_nothing() {
    let upstream = Upstream::new(&[Next::Page("1"), Next::Page("2"), Next::Page("3")]);
    let cache = cache(&upstream);
    let no_store = CacheDirectives { no_store: true, ..CacheDirectives::default() };
    assert_eq!(said(ask(&cache, wishing(no_store)).await), is(Outcome::Bypass, "1", None));
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Miss, "2", None));
    assert_eq!(said(ask(&cache, wishing(no_store)).await), is(Outcome::Bypass, "3", None));
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "2", Some(0)));
}

#[tokio::test(start_paused = true)]
async fn only_if_cached_never_goes_upstream() {
    let upstream = Upstream::new(&[Next::Page("1")]);
    let cache = cache(&upstream);
    let only = CacheDirectives { only_if_cached: true, ..CacheDirectives::default() };
    assert_eq!(ask(&cache, wishing(only)).await.unwrap_err(), Reason::OnlyIfCached);
    ask(&cache, call("q")).await.unwrap();
    assert_eq!(said(ask(&cache, wishing(only)).await), is(Outcome::Hit, "1", Some(0)));
    advance(100 * S).await;
    assert_eq!(said(ask(&cache, wishing(only)).await), is(Outcome::Stale, "1", Some(100)));
    settle().await;
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn responses_that_may_not_be_stored_are_not() {
    let kept_not = [Next::NoStore("x"), Next::Status(500), Next::Status(429), Next::Status(422)];
    let script: Vec<_> = kept_not.iter().cloned().chain([Next::Page("1")]).collect();
    let upstream = Upstream::new(&script);
    let cache = cache(&upstream);
    for _ in kept_not {
        let reply = ask(&cache, call("q")).await.unwrap();
        assert_eq!(reply.outcome, Outcome::Miss);
        assert!(!reply.cache_status.to_str().unwrap().contains("stored"));
    }
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Miss, "1", None));
}

#[tokio::test(start_paused = true)]
async fn twilios_refusals_are_stored_for_a_short_time() {
    let upstream = Upstream::new(&[Next::Status(400), Next::Status(404)]);
    let cache = cache(&upstream);
    assert_eq!(ask(&cache, call("q")).await.unwrap().page.status, 400);
    advance(10 * S).await;
    let again = ask(&cache, call("q")).await.unwrap();
    assert_eq!((again.page.status.as_u16(), again.outcome), (400, Outcome::Hit));
    advance(S).await;
    assert_eq!(ask(&cache, call("q")).await.unwrap().page.status, 404);
}

#[tokio::test(start_paused = true)]
async fn a_client_with_time_left_repeats_a_call_that_was_not_sent() {
    let upstream = Upstream::gated(&[Next::Fail(Reason::Deadline), Next::Page("1")]);
    let cache = cache(&upstream);
    let hasty = tokio::spawn(cache.clone().oneshot(ClientQuery { deadline: Instant::now() + S, ..call("q") }));
    settle().await;
    let patient = tokio::spawn(cache.clone().oneshot(call("q")));
    settle().await;
    upstream.open(2);
    assert_eq!(hasty.await.unwrap().unwrap_err().reason(), Reason::Deadline);
    assert_eq!(patient.await.unwrap().unwrap().page.body, "1");
}

#[tokio::test(start_paused = true)]
async fn no_client_waits_longer_than_its_deadline_and_one_call_serves_all() {
    let upstream = Upstream::gated(&[Next::Page("1")]);
    let cache = cache(&upstream);
    // The client with the shortest deadline begins the call, and leaves before it ends.
    for _ in 0..6 {
        let begun = Instant::now();
        let hasty = ask(&cache, ClientQuery { deadline: Instant::now() + S, ..call("q") }).await;
        assert_eq!((hasty.unwrap_err(), begun.elapsed()), (Reason::UpstreamTimeout, S));
    }
    let patient = tokio::spawn(cache.clone().oneshot(call("q")));
    settle().await;
    upstream.open(1);
    assert_eq!(patient.await.unwrap().unwrap().page.body, "1");
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_timed_out_is_not_repeated() {
    let upstream = Upstream::gated(&[Next::Fail(Reason::UpstreamTimeout)]);
    let cache = cache(&upstream);
    let mut waiting = Vec::new();
    for _ in 0..5 {
        waiting.push(tokio::spawn(cache.clone().oneshot(call("q"))));
        // Each has a little more time than the previous one.
        settle().await;
        advance(S).await;
    }
    upstream.open(1);
    for reply in waiting {
        assert_eq!(reply.await.unwrap().unwrap_err().reason(), Reason::UpstreamTimeout);
    }
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_has_the_page_is_told_so() {
    let upstream = Upstream::new(&[Next::Page("1")]);
    let cache = cache(&upstream);
    let etag = ask(&cache, call("q")).await.unwrap().page.etag.clone();
    let having = |tag| ClientQuery {
        directives: RequestDirectives { if_none_match: tag, ..RequestDirectives::default() },
        ..call("q")
    };
    let reply = ask(&cache, having(etag)).await.unwrap();
    assert_eq!((reply.outcome, reply.not_modified), (Outcome::Revalidated, true));
    let reply = ask(&cache, having(Some(HeaderValue::from_static("\"other\"")))).await.unwrap();
    assert_eq!((reply.outcome, reply.not_modified), (Outcome::Hit, false));
}

#[tokio::test(start_paused = true)]
async fn pages_are_purged_by_account_operation_and_key() {
    let upstream = Upstream::new(&[Next::Page("1"), Next::Page("2"), Next::Page("3")]);
    let cache = cache(&upstream);
    let store = cache.layer.store.clone();
    for body in ["a", "b", "c"] {
        ask(&cache, call(body)).await.unwrap();
    }
    assert_eq!(purge(&cache, &Purge::Account("other".into())), 0);
    assert_eq!(purge(&cache, &Purge::Operation(Operation::Metadata)), 0);
    assert_eq!(purge(&cache, &Purge::Key(call("a").key().short().to_string())), 1);
    assert_eq!(store.entries(None, 10, cache.layer.clock.moment()).len(), 2);
    assert_eq!(purge(&cache, &Purge::All), 2);
    assert_eq!(store.size().0, 0);
}

#[tokio::test]
async fn the_newest_pages_stay_within_the_capacity() {
    let capacity = 256 * 1024;
    let (store, clock) = (Store::new(capacity, &Metrics::new()), Clock::new());
    let keep = |n: u32| {
        let page = Representation::new(
            UpstreamResponse {
                status: StatusCode::OK,
                headers: HeaderMap::new(),
                body: vec![b'x'; 16 * 1024].into(),
                next_token: None,
            },
            &[],
        );
        let call = ClientQuery::example(Operation::Query, &n.to_string(), "");
        let key = *call.key();
        let stored = StoredResponse {
            representation: Arc::new(page),
            account: "main".into(),
            operation: Operation::Query,
            made: clock.moment(),
            lifetimes: POLICY.query,
            place: key,
            result_set: None,
            next: None,
            settled: None,
        };
        let entry = Entry::new(&key, stored, clock.now(), clock.now(), Duration::ZERO);
        let (lease, _) = store.flights.claim_refresh((key, Kind::Any), Flown::of(&call, None)).unwrap();
        assert!(store.insert(key, entry, &lease, |_| true));
        key
    };
    for n in 0..1000 {
        let key = keep(n);
        // Also before moka is asked to evict. One page more may be there, because it is inserted before another is
        // evicted.
        let held: u64 = store.entries(None, usize::MAX, clock.moment()).iter().map(|page| page.bytes).sum();
        assert!(held <= capacity + 18 * 1024, "{held} bytes after page {n}");
        let (_, bytes) = store.size();
        assert!(bytes <= capacity);
        assert!(store.page(&key).is_some(), "page {n} cost a token and was not stored");
    }
    assert!(store.size().0 >= 14);
}

/// A page that is worth compressing.
static LARGE: &str = match str::from_utf8(&[b'1'; 4096]) {
    Ok(text) => text,
    Err(_) => "",
};

fn accepting_gzip() -> ClientQuery {
    ClientQuery { directives: RequestDirectives { gzip: true, ..RequestDirectives::default() }, ..call("q") }
}

/// A cache with one large page, and that page's entry.
async fn with_large_page(cache: &Cache) -> Arc<Entry> {
    ask(cache, call("q")).await.unwrap();
    cache.layer.store.page(call("q").key()).unwrap()
}

#[tokio::test]
async fn one_compression_serves_all_later_responses() {
    let cache = cache(&Upstream::new(&[Next::Page(LARGE)]));
    let entry = with_large_page(&cache).await;
    let (_, plain) = cache.layer.store.size();
    // A client that does not accept gzip starts no compression.
    ask(&cache, call("q")).await.unwrap();
    assert!(!entry.compression.gzip.has_begun());
    assert!(ask(&cache, accepting_gzip()).await.unwrap().coded.is_none());
    assert!(entry.compression.gzip.has_begun());
    // The weight is updated last.
    while cache.layer.store.size().1 == plain {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let first = ask(&cache, accepting_gzip()).await.unwrap().coded.unwrap();
    let second = ask(&cache, accepting_gzip()).await.unwrap().coded.unwrap();
    assert_eq!(first.as_ptr(), second.as_ptr());
    assert!(ask(&cache, call("q")).await.unwrap().coded.is_none());
    // Its weight includes the gzip body, and it is still the entry that counts hits.
    assert!(Arc::ptr_eq(&entry, &cache.layer.store.page(call("q").key()).unwrap()));
    let coded = entry.compression.gzip.get().unwrap();
    assert_eq!(cache.layer.store.size().1, plain + coded.weight() as u64);
}

#[tokio::test]
async fn a_page_removed_during_compression_does_not_come_back() {
    let cache = cache(&Upstream::new(&[Next::Page(LARGE), Next::Page("2")]));
    let (entry, store) = (with_large_page(&cache).await, &cache.layer.store);
    let (key, now) = (*call("q").key(), cache.layer.clock.moment());
    purge(&cache, &Purge::All);
    store.add_coded(key, &entry, entry.stored.representation.gzip(), now);
    assert!(store.page(&key).is_none() && entry.compression.gzip.get().is_none());
    // It does not replace the page that came after it either.
    ask(&cache, call("q")).await.unwrap();
    store.add_coded(key, &entry, entry.stored.representation.gzip(), now);
    assert_eq!(&store.page(&key).unwrap().stored.representation.body[..], b"2");
}

#[tokio::test]
async fn compression_does_not_extend_a_pages_lifetime() {
    let cache = cache(&Upstream::new(&[Next::Page(LARGE)]));
    let (entry, store) = (with_large_page(&cache).await, &cache.layer.store);
    let usable = entry.stored.lifetimes.usable();
    let deadline = || entry.usable();
    assert_eq!(deadline(), usable);
    store.add_coded(*call("q").key(), &entry, entry.stored.representation.gzip(), entry.stored.made.after(100 * S));
    assert_eq!(deadline(), usable - 100 * S);
}

#[tokio::test]
async fn a_body_that_does_not_shrink_stays_plain() {
    let mut noise = blake3::Hasher::new().update(b"noise").finalize_xof();
    let mut body = vec![0; 4096];
    noise.fill(&mut body);
    let answer = |body: Vec<u8>| UpstreamResponse {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        body: body.into(),
        next_token: None,
    };
    let page = Representation::new(answer(body), &[]);
    assert!(page.may_be_coded() && page.gzip().is_none());
    assert!(Representation::new(answer(vec![b'x'; 4096]), &[]).gzip().is_some());
}

/// `page>token`: a page's body with the token of the next page.
fn token_of(body: &str) -> Option<String> {
    body.split_once('>').map(|(_, token)| token.to_owned())
}

fn page(token: &str) -> ClientQuery {
    let parameters = Parameters::of_page(token);
    ClientQuery::example(Operation::Page, parameters.as_str(), "")
}

/// The page of a token, requested with a page size.
fn sized_page(token: &str) -> ClientQuery {
    let page = page(token);
    let parameters = format!("pageSize=3&{}", page.canonical.parameters);
    let canonical = CanonicalQuery {
        path: Operation::Page.endpoint().path.into(),
        key: Key::new(&page.team.account, Operation::Page, &parameters, b""),
        expected_as: Some(*page.key()),
        parameters: parameters.into(),
        body: Bytes::new(),
    };
    ClientQuery { canonical: Arc::new(canonical), ..page }
}

#[tokio::test(start_paused = true)]
async fn a_page_requested_with_a_size_belongs_to_the_set_of_its_token() {
    let upstream = Upstream::new(&[
        Next::Page("1>b"),
        Next::Page("2>c"),
        Next::Page("2 of 3>c3"),
        Next::Page("3 of 3"),
        Next::Page("1'>b"),
        Next::Page("2' of 3>c3"),
    ]);
    let cache = cache(&upstream);
    ask(&cache, call("q")).await.unwrap();
    advance(30 * S).await;
    for page in [page("b"), sized_page("b"), page("c3")] {
        assert_eq!(ask(&cache, page).await.unwrap().outcome, Outcome::Miss);
    }
    advance(30 * S).await;
    for call in [call("q"), sized_page("b"), page("c3")] {
        assert_eq!(ask(&cache, call).await.unwrap().outcome, Outcome::Hit);
    }
    advance(S).await;
    for call in [sized_page("b"), page("c3")] {
        assert_eq!(ask(&cache, call).await.unwrap().outcome, Outcome::Stale, "it expires with the first page");
    }
    // The token belongs to a newer set now, and the older set's page must not be served for it.
    let forced = CacheDirectives { no_cache: true, ..CacheDirectives::default() };
    ask(
        &cache,
        ClientQuery { directives: RequestDirectives { cache: forced, ..RequestDirectives::default() }, ..call("q") },
    )
    .await
    .unwrap();
    assert_eq!(said(ask(&cache, sized_page("b")).await), is(Outcome::Miss, "2' of 3>c3", None));
    assert_eq!(said(ask(&cache, sized_page("b")).await), is(Outcome::Hit, "2' of 3>c3", Some(0)));
    cache.layer.store.purge(&Purge::Key(call("q").key().to_string()));
    for key in [*call("q").key(), *page("b").key(), *sized_page("b").key(), *page("c3").key()] {
        assert!(cache.layer.store.page(&key).is_none(), "they are purged with the first page");
    }
}

#[tokio::test(start_paused = true)]
async fn all_pages_of_a_result_set_expire_with_the_first() {
    let upstream = Upstream::new(&[Next::Page("1>b"), Next::Page("2>c"), Next::Page("3"), Next::Page("1'>d")]);
    let cache = cache(&upstream);
    ask(&cache, call("q")).await.unwrap();
    advance(30 * S).await;
    ask(&cache, page("b")).await.unwrap();
    advance(20 * S).await;
    ask(&cache, page("c")).await.unwrap();
    advance(10 * S).await;
    for (call, body, age) in [(call("q"), "1>b", 60), (page("b"), "2>c", 30), (page("c"), "3", 10)] {
        assert_eq!(said(ask(&cache, call).await), is(Outcome::Hit, body, Some(age)));
    }
    advance(S).await;
    // A client can go on reading the old pages; only the first page is fetched again.
    for (call, body, age) in [(page("b"), "2>c", 31), (page("c"), "3", 11), (call("q"), "1>b", 61)] {
        assert_eq!(said(ask(&cache, call).await), is(Outcome::Stale, body, Some(age)));
    }
    settle().await;
    assert_eq!(upstream.calls(), 4);
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "1'>d", Some(0)));
    assert_eq!(said(ask(&cache, page("b")).await), is(Outcome::Stale, "2>c", Some(31)));
    advance(299 * S).await;
    assert_eq!(said(ask(&cache, page("b")).await), is(Outcome::Stale, "2>c", Some(330)));
}

#[tokio::test(start_paused = true)]
async fn a_new_result_set_with_the_old_tokens_does_not_serve_the_old_pages() {
    let script =
        [Next::Page("1>b"), Next::Page("2"), Next::Page("1'>b"), Next::Fail(Reason::UpstreamTimeout), Next::Page("2'")];
    let upstream = Upstream::new(&script);
    let cache = cache(&upstream);
    ask(&cache, call("q")).await.unwrap();
    ask(&cache, page("b")).await.unwrap();
    advance(S).await;
    let no_cache = CacheDirectives { no_cache: true, ..CacheDirectives::default() };
    ask(&cache, wishing(no_cache)).await.unwrap();
    // Not even while the upstream fails, because it would be served together with the new first page.
    assert_eq!(ask(&cache, page("b")).await.unwrap_err(), Reason::UpstreamTimeout);
    assert_eq!(said(ask(&cache, page("b")).await), is(Outcome::Miss, "2'", None));
    assert_eq!(said(ask(&cache, page("b")).await), is(Outcome::Hit, "2'", Some(0)));
}

#[tokio::test(start_paused = true)]
async fn pages_of_a_result_set_are_purged_together() {
    let upstream = Upstream::new(&[Next::Page("1>b"), Next::Page("2>c"), Next::Page("other")]);
    let cache = cache(&upstream);
    for call in [call("q"), page("b"), call("p")] {
        ask(&cache, call).await.unwrap();
    }
    let store = cache.layer.store.clone();
    assert_eq!(purge(&cache, &Purge::Key(call("q").key().to_string())), 2);
    let left: Vec<_> = store.entries(None, 10, cache.layer.clock.moment()).iter().map(|view| view.key).collect();
    assert_eq!(left, [*call("p").key()]);
}

#[tokio::test(start_paused = true)]
async fn settled_queries_are_kept_longer_once_the_metadata_proves_them() {
    const METADATA: &str = r#"{"cubes":[{"dimensions":[{"name":"C.Created","type":"time"}]}]}"#;
    const QUERY: &str = r#"{"query":{"filters":[{"op":"AND","expressions":[{"op":"LT","field":"C.Created","values":["2001-01-01"]}]}]}}"#;
    let script = [Next::Page("open"), Next::Page(METADATA), Next::Page("settled>b"), Next::Page("2")];
    let upstream = Upstream::new(&script);
    let cache = cache(&upstream);
    ask(&cache, call(QUERY)).await.unwrap();
    let metadata = ClientQuery::example(Operation::Metadata, "", "");
    ask(&cache, metadata).await.unwrap();
    let forced = ClientQuery {
        directives: RequestDirectives {
            cache: CacheDirectives { no_cache: true, ..CacheDirectives::default() },
            ..RequestDirectives::default()
        },
        ..call(QUERY)
    };
    ask(&cache, forced).await.unwrap();
    ask(&cache, page("b")).await.unwrap();
    advance(80_000 * S).await;
    assert_eq!(said(ask(&cache, call(QUERY)).await), is(Outcome::Hit, "settled>b", Some(80_000)));
    assert_eq!(said(ask(&cache, page("b")).await), is(Outcome::Hit, "2", Some(80_000)));
    let counted = cache.layer.metrics.encode().unwrap();
    assert!(counted.contains("insights_gateway_cache_settled_total{reason=\"no_metadata\"} 1"), "{counted}");
    assert!(counted.contains("insights_gateway_cache_settled_total{reason=\"settled\"} 1"), "{counted}");
}

#[tokio::test(start_paused = true)]
async fn refreshes_are_spread_unless_a_client_waits() {
    let script: Vec<_> = (0..40).map(|_| Next::Page("x")).collect();
    let upstream = Upstream::new(&script);
    let cache = cache_with(Policy { refresh_jitter: 10 * S, ..POLICY }, &upstream);
    const BODIES: [&str; 20] =
        ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s", "t"];
    for body in BODIES {
        ask(&cache, call(body)).await.unwrap();
    }
    advance(61 * S).await;
    for body in BODIES {
        assert_eq!(ask(&cache, call(body)).await.unwrap().outcome, Outcome::Stale);
    }
    settle().await;
    assert!(upstream.calls() < 30, "all began at once");
    let no_cache = CacheDirectives { no_cache: true, ..CacheDirectives::default() };
    advance(Duration::from_millis(1)).await;
    let begun = Instant::now();
    ask(&cache, wishing(no_cache)).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
    tokio::time::sleep(10 * S).await;
    settle().await;
    assert_eq!(upstream.calls(), 40);
}

#[tokio::test(start_paused = true)]
async fn query_texts_are_kept_and_counted_only_where_the_policy_says_so() {
    const TEXT: &str = r#"{"query":{"measures":["Conversation.Count"]}}"#;
    let kept = async |keep_queries| {
        let cache = cache_with(Policy { keep_queries, ..POLICY }, &Upstream::new(&[Next::Page("1")]));
        ask(&cache, call(TEXT)).await.unwrap();
        cache.layer.store.entries(None, 1, cache.layer.clock.moment()).remove(0)
    };
    let (with, without) = (kept(true).await, kept(false).await);
    assert_eq!((with.query.as_deref(), without.query.as_deref()), (Some(TEXT), None));
    assert_eq!(with.bytes - without.bytes, TEXT.len() as u64);
}

#[tokio::test(start_paused = true)]
async fn a_page_of_a_possibly_evicted_set_is_not_stored() {
    let script: Vec<_> =
        [Next::Page("1>b"), Next::Page("2")].into_iter().chain((0..400).map(|_| Next::Page("x>y"))).collect();
    let upstream = Upstream::new(&script);
    let cache = cache(&upstream);
    // A token from elsewhere: its set is unknown, so the page is stored while it is fresh, and never served stale.
    ask(&cache, page("elsewhere")).await.unwrap();
    assert_eq!(ask(&cache, page("elsewhere")).await.unwrap().outcome, Outcome::Hit);
    advance(61 * S).await;
    ask(&cache, page("elsewhere")).await.unwrap();
    assert_eq!(upstream.calls(), 2, "not stale");
    for n in 0..300 {
        let body: &'static str = Box::leak(format!("q{n}").into_boxed_str());
        ask(&cache, call(body)).await.unwrap();
    }
    cache.layer.store.size();
    let reply = ask(&cache, page("forgotten")).await.unwrap();
    assert!(!reply.cache_status.to_str().unwrap().contains("stored"));
    assert_eq!(ask(&cache, page("forgotten")).await.unwrap().outcome, Outcome::Miss);
}

#[tokio::test(start_paused = true)]
async fn a_new_first_page_with_the_old_tokens_ends_the_whole_old_set() {
    let script = [
        Next::Page("1>b"),
        Next::Page("2>c"),
        Next::Page("3"),
        Next::Page("1'>b"),
        Next::Fail(Reason::UpstreamTimeout),
        Next::Page("3'"),
    ];
    let upstream = Upstream::new(&script);
    let cache = cache(&upstream);
    for call in [call("q"), page("b"), page("c"), forcing(call("q"))] {
        ask(&cache, call).await.unwrap();
    }
    // No client has fetched the page in between, which would have named it.
    assert_eq!(ask(&cache, page("c")).await.unwrap_err(), Reason::UpstreamTimeout);
    let third = ask(&cache, page("c")).await.unwrap();
    assert!(!third.cache_status.to_str().unwrap().contains("stored"), "of an unknown set");
}

#[tokio::test(start_paused = true)]
async fn a_further_page_asked_for_before_its_set_began_is_not_of_it() {
    let upstream = Upstream::gated(&[Next::Page("1>b"), Next::Page("2 old"), Next::Page("1'>b"), Next::Page("2 new")]);
    let cache = cache(&upstream);
    upstream.open(1);
    ask(&cache, call("q")).await.unwrap();
    let old = tokio::spawn(cache.clone().oneshot(page("b")));
    settle().await;
    // The script answers in the order in which the gate opens, so the old page 2 is taken now and delayed below.
    let forced = tokio::spawn(cache.clone().oneshot(forcing(call("q"))));
    settle().await;
    upstream.open(2);
    assert_eq!(old.await.unwrap().unwrap().page.body, "2 old");
    forced.await.unwrap().unwrap();
    upstream.open(1);
    assert_eq!(said(ask(&cache, page("b")).await), is(Outcome::Miss, "2 new", None));
}

#[tokio::test(start_paused = true)]
async fn a_set_that_may_not_be_kept_ends_the_old_one_with_the_same_tokens() {
    let script = [Next::Page("1>b"), Next::Page("2"), Next::NoStore("1'>b"), Next::Page("2'"), Next::Page("1'>b")];
    let upstream = Upstream::new(&script);
    let cache = cache(&upstream);
    for call in [call("q"), page("b"), forcing(call("q"))] {
        ask(&cache, call).await.unwrap();
    }
    assert_eq!(said(ask(&cache, page("b")).await), is(Outcome::Miss, "2'", None));
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Miss, "1'>b", None));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_asks_after_a_purge_joins_no_earlier_flight() {
    let key = *call("q").key();
    let account = Purge::Account("main".into());
    let scopes = [
        Purge::All,
        account,
        Purge::Operation(Operation::Query),
        Purge::Key(key.to_string()),
        Purge::Key(key.short().to_string()),
    ];
    for scope in scopes {
        for (first, second) in [(call("q"), call("q")), (forcing(call("q")), forcing(call("q")))] {
            let upstream = Upstream::gated(&[Next::Page("old"), Next::Page("new")]);
            let cache = cache(&upstream);
            let before = tokio::spawn(cache.clone().oneshot(first));
            settle().await;
            assert_eq!(purge(&cache, &scope), 0);
            let after = tokio::spawn(cache.clone().oneshot(second));
            settle().await;
            assert_eq!(upstream.calls(), 2, "{scope:?}");
            upstream.open(2);
            assert_eq!(before.await.unwrap().unwrap().page.body, "old");
            assert_eq!(after.await.unwrap().unwrap().page.body, "new");
            assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "new", Some(0)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_purge_of_something_else_costs_no_call() {
    let upstream = Upstream::gated(&[Next::Page("1")]);
    let cache = cache(&upstream);
    let before = tokio::spawn(cache.clone().oneshot(call("q")));
    settle().await;
    purge(&cache, &Purge::Account("other".into()));
    purge(&cache, &Purge::Operation(Operation::Metadata));
    purge(&cache, &Purge::Key(call("p").key().to_string()));
    let after = tokio::spawn(cache.clone().oneshot(call("q")));
    settle().await;
    upstream.open(1);
    assert_eq!((before.await.unwrap().unwrap().page.body.as_ref(), upstream.calls()), (&b"1"[..], 1));
    assert_eq!(after.await.unwrap().unwrap().outcome, Outcome::Collapsed);
    assert_eq!(ask(&cache, call("q")).await.unwrap().outcome, Outcome::Hit);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_from_before_a_purge_is_not_kept() {
    let upstream = Upstream::gated(&[Next::Page("1"), Next::Page("old"), Next::Page("new")]);
    let cache = cache(&upstream);
    upstream.open(1);
    ask(&cache, call("q")).await.unwrap();
    advance(61 * S).await;
    ask(&cache, call("q")).await.unwrap();
    settle().await;
    assert_eq!(purge(&cache, &Purge::All), 1);
    upstream.open(1);
    settle().await;
    upstream.open(1);
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Miss, "new", None));
}

#[tokio::test(start_paused = true)]
async fn a_further_page_under_way_is_purged_with_its_set() {
    let upstream = Upstream::gated(&[Next::Page("1>b"), Next::Page("old"), Next::Page("new")]);
    let cache = cache(&upstream);
    upstream.open(1);
    ask(&cache, call("q")).await.unwrap();
    let before = tokio::spawn(cache.clone().oneshot(page("b")));
    settle().await;
    assert_eq!(purge(&cache, &Purge::Key(call("q").key().short().to_string())), 1);
    let after = tokio::spawn(cache.clone().oneshot(page("b")));
    settle().await;
    upstream.open(2);
    assert_eq!(before.await.unwrap().unwrap().page.body, "old");
    assert_eq!(after.await.unwrap().unwrap().page.body, "new");
}

#[tokio::test(start_paused = true)]
async fn a_suspended_machine_ages_its_pages() {
    let upstream = Upstream::new(&[Next::Page("1"), Next::Page("2")]);
    let (cache, machine) = cache_on(&upstream);
    ask(&cache, call("q")).await.unwrap();
    machine.suspend(59 * S);
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "1", Some(59)));
    machine.suspend(9 * 3600 * S);
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Miss, "2", None), "nine hours later it has expired");
}

#[tokio::test(start_paused = true)]
async fn setting_the_clock_makes_no_page_younger_or_older() {
    let upstream = Upstream::new(&[Next::Page("1")]);
    let (cache, machine) = cache_on(&upstream);
    ask(&cache, call("q")).await.unwrap();
    advance(30 * S).await;
    for step in [-100_000, 1_000_000] {
        machine.step_wall(step);
        assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "1", Some(30)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_set_proves_nothing_settled() {
    const METADATA: &str = r#"{"cubes":[{"dimensions":[{"name":"C.Created","type":"time"}]}]}"#;
    // The simulated machine begins on 2027-01-15T08:00:00Z.
    const QUERY: &str = r#"{"query":{"filters":[{"op":"AND","expressions":[{"op":"LT","field":"C.Created","values":["2027-01-16"]}]}]}}"#;
    const DATED: &str = "date: Mon, 18 Jan 2027 08:00:00 GMT";
    let script = [
        Next::Page(METADATA),
        Next::Page("1"),
        Next::With(DATED, "2"),
        Next::With(DATED, "3"),
        Next::Page(METADATA),
        Next::With(DATED, "4"),
    ];
    let upstream = Upstream::new(&script);
    let (cache, machine) = cache_on(&upstream);
    ask(&cache, ClientQuery::example(Operation::Metadata, "", "")).await.unwrap();
    let kept_for = async || {
        let forced = forcing(call(QUERY));
        ask(&cache, forced).await.unwrap();
        cache.layer.store.page(call(QUERY).key()).unwrap().stored.lifetimes
    };
    machine.step_wall(3 * 86_400);
    assert_eq!(kept_for().await, POLICY.query, "set forward since the start");
    assert_eq!(kept_for().await, POLICY.query, "although the response's own date agrees");
    machine.step_wall(-3 * 86_400);
    assert_eq!(kept_for().await, POLICY.query, "set back: the date alone proves nothing either");
    machine.suspend(3 * 86_400 * S);
    ask(&cache, ClientQuery::example(Operation::Metadata, "", "")).await.unwrap();
    assert_eq!(kept_for().await, POLICY.settled, "all three agree");
    assert_eq!(upstream.calls(), 6);
}

#[tokio::test(start_paused = true)]
async fn what_must_be_revalidated_is_never_served_stale() {
    for headers in ["cache-control: must-revalidate", "cache-control: proxy-revalidate", "cache-control: s-maxage=60"] {
        let script =
            [Next::With(headers, "1"), Next::Fail(Reason::UpstreamTimeout), Next::Fail(Reason::UpstreamTimeout)];
        let upstream = Upstream::new(&script);
        let cache = cache(&upstream);
        ask(&cache, call("q")).await.unwrap();
        assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "1", Some(0)));
        advance(61 * S).await;
        let any_age = CacheDirectives { max_stale: Some(Duration::MAX), ..CacheDirectives::default() };
        assert_eq!(ask(&cache, call("q")).await.unwrap_err(), Reason::UpstreamTimeout, "{headers}");
        assert_eq!(ask(&cache, wishing(any_age)).await.unwrap_err(), Reason::UpstreamTimeout, "{headers}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_age_of_a_response_counts_and_is_passed_on() {
    let upstream =
        Upstream::new(&[Next::With("age: 50\ncache-control: max-age=55", "1"), Next::With("age: 4000", "2")]);
    let cache = cache(&upstream);
    let first = ask(&cache, call("q")).await.unwrap();
    assert_eq!((first.outcome, first.age), (Outcome::Miss, Some(50 * S)));
    let passed_on = first.page.headers.iter().find(|(name, _)| *name == http::header::CACHE_CONTROL);
    assert_eq!(passed_on.unwrap().1, "max-age=55");
    advance(5 * S).await;
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "1", Some(55)));
    advance(S).await;
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Stale, "1", Some(56)));
    settle().await;
    // It is beyond every window when it arrives.
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Stale, "1", Some(56)));
}

#[tokio::test]
async fn a_page_larger_than_half_the_cache_is_not_kept_and_costs_no_other() {
    static HUGE: [u8; 700_000] = [b'1'; 700_000];
    let upstream = Upstream::new(&[Next::Page("small"), Next::Page(str::from_utf8(&HUGE).unwrap())]);
    let cache = cache(&upstream);
    ask(&cache, call("small")).await.unwrap();
    let reply = ask(&cache, call("huge")).await.unwrap();
    assert!(!reply.cache_status.to_str().unwrap().contains("stored"), "{:?}", reply.cache_status);
    assert_eq!(cache.layer.store.size().0, 1);
    assert_eq!(ask(&cache, call("small")).await.unwrap().outcome, Outcome::Hit);
}

#[tokio::test(start_paused = true)]
async fn entries_are_listed_in_the_order_of_their_keys_without_holding_all() {
    let script: Vec<_> = (0..50).map(|_| Next::Page("x")).collect();
    let upstream = Upstream::new(&script);
    let cache = cache(&upstream);
    let mut keys = Vec::new();
    for n in 0..50 {
        let body: &'static str = Box::leak(format!("q{n}").into_boxed_str());
        ask(&cache, call(body)).await.unwrap();
        keys.push(call(body).key().to_string());
    }
    keys.sort();
    let (mut listed, mut after) = (Vec::new(), None::<String>);
    loop {
        let page = cache.layer.store.entries(after.as_deref(), 7, cache.layer.clock.moment());
        listed.extend(page.iter().map(|view| view.key.to_string()));
        if page.len() < 7 {
            break;
        }
        after = listed.last().cloned();
    }
    assert_eq!(listed, keys);
}

fn alone(call: ClientQuery) -> ClientQuery {
    let cache = CacheDirectives { no_store: true, ..CacheDirectives::default() };
    ClientQuery { directives: RequestDirectives { cache, ..RequestDirectives::default() }, ..call }
}

#[tokio::test(start_paused = true)]
async fn a_first_page_with_no_store_ends_the_old_further_pages() {
    for known in [true, false] {
        let first = if known { vec![Next::Page("1>b")] } else { vec![] };
        let script =
            [Next::Page("2"), Next::Page("2 of 3"), Next::Page("1'>b"), Next::Page("2'"), Next::Page("2' of 3")];
        let cache = cache(&Upstream::new(&first.into_iter().chain(script).collect::<Vec<_>>()));
        if known {
            ask(&cache, call("q")).await.unwrap();
        }
        ask(&cache, page("b")).await.unwrap();
        ask(&cache, sized_page("b")).await.unwrap();
        assert_eq!(said(ask(&cache, alone(call("q"))).await), is(Outcome::Bypass, "1'>b", None));
        assert_eq!(said(ask(&cache, page("b")).await), is(Outcome::Miss, "2'", None), "known: {known}");
        assert_eq!(said(ask(&cache, sized_page("b")).await), is(Outcome::Miss, "2' of 3", None), "known: {known}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_no_store_response_removes_only_pages_that_it_contradicts() {
    let cache = cache(&Upstream::new(&[Next::Page("1>b"), Next::Page("2"), Next::Page("1'>c")]));
    for call in [call("q"), page("b"), alone(call("q"))] {
        ask(&cache, call).await.unwrap();
    }
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "1>b", Some(0)));
    assert_eq!(said(ask(&cache, page("b")).await), is(Outcome::Hit, "2", Some(0)));
}

#[tokio::test(start_paused = true)]
async fn further_pages_of_any_size_are_removed_when_a_first_page_of_another_set_names_them() {
    for known in [true, false] {
        let first = if known { vec![Next::Page("1>b")] } else { vec![] };
        let script =
            [Next::Page("2"), Next::Page("2 of 3"), Next::Page("other>b"), Next::Page("2'"), Next::Page("2' of 3")];
        let cache = cache(&Upstream::new(&first.into_iter().chain(script).collect::<Vec<_>>()));
        if known {
            ask(&cache, call("q")).await.unwrap();
        }
        for call in [page("b"), sized_page("b"), call("p")] {
            ask(&cache, call).await.unwrap();
        }
        assert_eq!(said(ask(&cache, sized_page("b")).await), is(Outcome::Miss, "2'", None), "known: {known}");
        assert_eq!(said(ask(&cache, page("b")).await), is(Outcome::Miss, "2' of 3", None), "known: {known}");
        assert_eq!(ask(&cache, page("b")).await.unwrap().outcome, Outcome::Hit);
        assert_eq!(ask(&cache, sized_page("b")).await.unwrap().outcome, Outcome::Hit);
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_page_that_was_purged_under_way_still_ends_the_old_further_pages() {
    let upstream = Upstream::gated(&[Next::Page("2"), Next::Page("1'>b"), Next::Page("2'")]);
    let cache = cache(&upstream);
    upstream.open(1);
    ask(&cache, page("b")).await.unwrap();
    let under_way = tokio::spawn(cache.clone().oneshot(call("q")));
    settle().await;
    assert_eq!(purge(&cache, &Purge::Operation(Operation::Query)), 0);
    upstream.open(2);
    assert_eq!(under_way.await.unwrap().unwrap().page.body, "1'>b");
    assert_eq!(said(ask(&cache, page("b")).await), is(Outcome::Miss, "2'", None));
}

#[tokio::test(start_paused = true)]
async fn a_page_that_was_purged_meanwhile_is_not_served_on_an_error() {
    let upstream = Upstream::gated(&[Next::Page("1"), Next::Fail(Reason::UpstreamTimeout)]);
    let cache = cache(&upstream);
    upstream.open(1);
    ask(&cache, call("q")).await.unwrap();
    advance(1000 * S).await;
    let asking = tokio::spawn(cache.clone().oneshot(call("q")));
    settle().await;
    assert_eq!(purge(&cache, &Purge::All), 1);
    upstream.open(1);
    assert_eq!(asking.await.unwrap().unwrap_err().reason(), Reason::UpstreamTimeout);
}

#[tokio::test(start_paused = true)]
async fn a_newer_response_that_may_not_be_stored_removes_the_older_page() {
    static HUGE: [u8; 700_000] = [b'2'; 700_000];
    for next in [Next::NoStore("2"), Next::Page(str::from_utf8(&HUGE).unwrap())] {
        let script = [Next::Page("1"), next.clone(), Next::Page("3"), next, Next::Page("5")];
        let cache = cache(&Upstream::new(&script));
        ask(&cache, call("q")).await.unwrap();
        ask(&cache, forcing(call("q"))).await.unwrap();
        assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Miss, "3", None));
        // Also in the background.
        advance(61 * S).await;
        assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Stale, "3", Some(61)));
        settle().await;
        assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Miss, "5", None));
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_that_has_come_since_is_refreshed_at_once() {
    for purged in [false, true] {
        let failures = (0..5).map(|_| Next::Status(503));
        let script = [Next::Page("1")].into_iter().chain(failures).chain([Next::Page("2"), Next::Page("3")]);
        let upstream = Upstream::new(&script.collect::<Vec<_>>());
        let cache = cache(&upstream);
        ask(&cache, call("q")).await.unwrap();
        advance(61 * S).await;
        for failed in 0..5 {
            // Until the pause has passed.
            while upstream.calls() < failed + 2 {
                assert_eq!(ask(&cache, call("q")).await.unwrap().outcome, Outcome::Stale);
                settle().await;
                advance(S).await;
            }
        }
        if purged {
            assert_eq!(purge(&cache, &Purge::All), 1);
        }
        let again = if purged { call("q") } else { forcing(call("q")) };
        assert_eq!(said(ask(&cache, again).await), is(Outcome::Miss, "2", None));
        // Not later than the pause after that many failures of this page would be.
        let failures = cache.layer.refreshes.clone();
        let page = cache.layer.store.page(call("q").key()).unwrap();
        assert!(failures.allows(call("q").key(), page.asked, cache.layer.clock.now()));
        advance(61 * S).await;
        assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Stale, "2", Some(61)));
        settle().await;
        assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "3", Some(0)));
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_as_old_as_its_date_says() {
    // The simulated machine begins on 2027-01-15T08:00:00Z.
    const DATED: &str = "date: Fri, 15 Jan 2027 07:59:10 GMT";
    const DATED_AND_AGED: &str = "date: Fri, 15 Jan 2027 07:59:10 GMT\nage: 55";
    const JUST_NOW: &str = "date: Fri, 15 Jan 2027 07:59:59 GMT";
    const AHEAD: &str = "date: Fri, 15 Jan 2027 09:00:00 GMT";
    let cases = [(DATED, Some(50)), (DATED_AND_AGED, Some(55)), (JUST_NOW, None), (AHEAD, None)];
    for (headers, age) in cases {
        let cache = cache(&Upstream::new(&[Next::With(headers, "1"), Next::With(headers, "1"), Next::Page("2")]));
        let bypassed = ask(&cache, alone(call("q"))).await.unwrap();
        assert_eq!(bypassed.age.map(|age| age.as_secs()), age, "{headers}");
        assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Miss, "1", age), "{headers}");
        assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "1", age.or(Some(0))), "{headers}");
        advance(11 * S).await;
        let outcome = if age.is_some() { Outcome::Stale } else { Outcome::Hit };
        assert_eq!(ask(&cache, call("q")).await.unwrap().outcome, outcome, "{headers}");
    }
    // If the clock was set, a date proves nothing.
    let (cache, machine) = cache_on(&Upstream::new(&[Next::With(DATED, "1")]));
    machine.step_wall(3600);
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Miss, "1", None));
}

#[tokio::test(start_paused = true)]
async fn a_no_store_client_that_has_the_page_gets_a_304() {
    let cache = cache(&Upstream::new(&[Next::Page("1"), Next::Page("1"), Next::Page("2")]));
    let etag = ask(&cache, alone(call("q"))).await.unwrap().etag;
    let having = || {
        let mut call = alone(call("q"));
        call.directives.if_none_match = etag.clone();
        call
    };
    let reply = ask(&cache, having()).await.unwrap();
    assert_eq!((reply.outcome, reply.not_modified, &reply.etag), (Outcome::Bypass, true, &etag));
    assert!(!ask(&cache, having()).await.unwrap().not_modified);
}
