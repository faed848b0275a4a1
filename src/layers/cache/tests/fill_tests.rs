//! Flights of several replicas.

use std::collections::VecDeque;

use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::cache::fill_lock::{ClaimOutcome, ClaimRequest, FillLease, FillLock, StoredSize, WaitOutcome};
use crate::cache::flight::FlightResult;
use crate::core::clock::Moment;
use crate::metrics::{SharedLabels, StaticLabel};
use crate::replicas::test_server::{TestServer, until};
use crate::replicas::{KnownAccounts, SharedFlights, SharedPages, SharedStore};
use crate::request::call::UpstreamResponse;
use crate::request::context::RequestContext;

/// A lock that says what it is told to, and notes what it is asked.
#[derive(Default)]
struct Scripted {
    turns: Mutex<VecDeque<BoxFuture<'static, ClaimOutcome>>>,
    asked: Mutex<Vec<ClaimRequest>>,
    purges: Mutex<Vec<Purge>>,
}

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scripted")
    }
}

impl FillLock for Scripted {
    fn claim(&self, request: &ClaimRequest) -> BoxFuture<'static, ClaimOutcome> {
        self.asked.lock().unwrap().push(request.clone());
        self.turns.lock().unwrap().pop_front().expect("a claim beyond the script")
    }

    fn patience(&self) -> Duration {
        S
    }

    fn purge(&self, which: &Purge, _: Option<Moment>) {
        self.purges.lock().unwrap().push(which.clone());
    }

    fn outdate(&self, _: Vec<(Key, Moment)>) {}
}

impl Scripted {
    fn then(&self, turn: impl Future<Output = ClaimOutcome> + Send + 'static) {
        self.turns.lock().unwrap().push_back(turn.boxed());
    }

    fn then_leads(&self) -> oneshot::Receiver<FlightResult> {
        let (lease, ending) = FillLease::new();
        self.then(async { ClaimOutcome::Lead(lease) });
        ending
    }

    fn then_waits(&self, ends: impl Future<Output = WaitOutcome> + Send + 'static) {
        self.then(async { ClaimOutcome::Wait(ends.boxed()) });
    }

    fn claims(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

/// A replica that shares this lock, and a cache with the same store and without a lock.
fn replica(upstream: &Upstream) -> (Cache, Arc<Scripted>, Cache) {
    let (lock, plain) = (Arc::<Scripted>::default(), cache(upstream));
    let store = plain.layer.store.clone().with_fill_lock(Arc::clone(&lock) as Arc<dyn FillLock>);
    (Cache::new(CacheLayer { store, ..plain.layer.clone() }, upstream), lock, plain)
}

/// A flight that began now has stored its response.
fn stored(cache: &Cache) -> ClaimOutcome {
    ClaimOutcome::Stored(StoredSize::Usual, cache.layer.clock.moment())
}

fn brought(body: &'static str) -> FlightResult {
    let answer =
        UpstreamResponse { status: StatusCode::OK, headers: HeaderMap::new(), body: body.into(), next_token: None };
    let result = Ok(Arc::new(Representation::new(answer, &[])));
    FlightResult { result, stored: false, age: None, by_another: true }
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_leads_tells_the_end() {
    let upstream =
        Upstream::new(&[Next::Page("1"), Next::Fail(Reason::UpstreamTimeout), Next::Fail(Reason::QueueFull)]);
    let (cache, lock, _) = replica(&upstream);
    let ending = lock.then_leads();
    assert_eq!(said(ask(&cache, call("a")).await), is(Outcome::Miss, "1", None));
    let told = ending.await.unwrap();
    assert!(told.stored && told.result.unwrap().body == "1");
    let ending = lock.then_leads();
    assert_eq!(ask(&cache, call("b")).await.unwrap_err(), Reason::UpstreamTimeout);
    assert_eq!(ending.await.unwrap().result.unwrap_err().reason(), Reason::UpstreamTimeout);
    // Its own queue says nothing of the others'.
    let ending = lock.then_leads();
    assert_eq!(ask(&cache, call("c")).await.unwrap_err(), Reason::QueueFull);
    assert!(ending.await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_follows_answers_all_its_clients_without_a_call() {
    let upstream = Upstream::new(&[]);
    let (cache, lock, _) = replica(&upstream);
    lock.then_waits(async {
        tokio::time::sleep(S).await;
        WaitOutcome::Ended(brought("1"))
    });
    let asking: Vec<_> = (0..10).map(|_| tokio::spawn(cache.clone().oneshot(call("q")))).collect();
    for reply in asking {
        let reply = reply.await.unwrap().unwrap();
        assert_eq!((reply.outcome, &*reply.page.body), (Outcome::Collapsed, &b"1"[..]));
    }
    assert_eq!((lock.claims(), upstream.calls()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_another_replica_is_one_of_this() {
    let (cache, lock, _) = replica(&Upstream::new(&[Next::Page("1")]));
    let error = || GatewayError::new(Reason::UpstreamUnreachable, "told");
    lock.then_waits(ready(WaitOutcome::Ended(FlightResult::failed(error()))));
    assert_eq!(ask(&cache, call("q")).await.unwrap_err(), Reason::UpstreamUnreachable);
    drop(lock.then_leads());
    ask(&cache, call("q")).await.unwrap();
    advance(1000 * S).await;
    lock.then_waits(ready(WaitOutcome::Ended(FlightResult::failed(error()))));
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::StaleError, "1", Some(1000)));
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_of_the_lock_the_flight_goes_upstream() {
    let upstream = Upstream::new(&[Next::Page("1"), Next::Page("2"), Next::Page("3")]);
    let (cache, lock, _) = replica(&upstream);
    lock.then(ready(ClaimOutcome::Unavailable));
    assert_eq!(said(ask(&cache, call("a")).await), is(Outcome::Miss, "1", None));
    lock.then_waits(ready(WaitOutcome::Unavailable));
    assert_eq!(said(ask(&cache, call("b")).await), is(Outcome::Miss, "2", None));
    // The leader died twice; then this replica leads.
    lock.then_waits(ready(WaitOutcome::Lost));
    lock.then_waits(ready(WaitOutcome::Lost));
    let ending = lock.then_leads();
    assert_eq!(said(ask(&cache, call("c")).await), is(Outcome::Miss, "3", None));
    assert_eq!((ending.await.unwrap().result.unwrap().body.as_ref(), lock.claims()), (&b"3"[..], 5));
}

#[tokio::test(start_paused = true)]
async fn a_slow_lock_delays_a_request_once_and_not_by_every_claim() {
    let upstream = Upstream::new(&[Next::Page("1"), Next::Page("2")]);
    let (cache, lock, _) = replica(&upstream);
    let slowly = |turn: ClaimOutcome| async move {
        tokio::time::sleep(S * 7 / 10).await;
        turn
    };
    lock.then(slowly(ClaimOutcome::Wait(ready(WaitOutcome::Lost).boxed())));
    let (lease, ending) = FillLease::new();
    lock.then(slowly(ClaimOutcome::Lead(lease)));
    let begun = Instant::now();
    assert_eq!(said(ask(&cache, call("a")).await), is(Outcome::Miss, "1", None));
    assert_eq!(begun.elapsed(), lock.patience(), "the second claim has only what the first one left");
    assert!(ending.await.is_err(), "what was granted too late is given back");
    // Another request has its own time.
    let ending = lock.then_leads();
    assert_eq!(said(ask(&cache, call("b")).await), is(Outcome::Miss, "2", None));
    assert!(ending.await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_has_waited_enough_does_not_ask_the_lock() {
    let (cache, lock, _) = replica(&Upstream::new(&[Next::Page("1")]));
    let query = ClientQuery { context: Arc::new(RequestContext::that_has_waited()), ..call("q") };
    assert_eq!(said(ask(&cache, query).await), is(Outcome::Miss, "1", None));
    assert_eq!(lock.claims(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_too_long_to_be_told_is_found_where_it_is_stored() {
    let upstream = Upstream::new(&[Next::Page("1"), Next::Page("2"), Next::Page("3")]);
    let (cache, lock, plain) = replica(&upstream);
    // It arrives later than a usual one may.
    let arrives = |plain: Cache, query| {
        tokio::spawn(async move {
            tokio::time::sleep(S * 8 / 10).await;
            ask(&plain, query).await.unwrap();
        })
    };
    // Of a flight of another kind, so that it is not joined.
    for (query, other) in [(call("a"), forcing(call("a"))), (forcing(call("b")), call("b"))] {
        arrives(plain.clone(), other);
        lock.then_waits(ready(WaitOutcome::Stored(None)));
        assert_eq!(ask(&cache, query).await.unwrap().outcome, Outcome::Collapsed);
    }
    assert_eq!(upstream.calls(), 2, "none of this replica");
    let begun = Instant::now();
    lock.then_waits(ready(WaitOutcome::Stored(None)));
    assert_eq!(said(ask(&cache, call("c")).await), is(Outcome::Miss, "3", None));
    assert_eq!((begun.elapsed(), lock.claims()), (lock.patience(), 3), "it does not come");
}

#[tokio::test(start_paused = true)]
async fn a_page_that_came_before_the_claim_was_won_costs_no_call() {
    let upstream = Upstream::new(&[Next::Page("1"), Next::Page("2"), Next::Page("3"), Next::Page("4")]);
    let (cache, lock, plain) = replica(&upstream);
    // As if another replica had stored it, and a tier had found it.
    let arrives = |plain: Cache, turn| async move {
        ask(&plain, forcing(call("q"))).await.unwrap();
        turn
    };
    let (lease, ending) = FillLease::new();
    lock.then(arrives(plain.clone(), ClaimOutcome::Lead(lease)));
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Collapsed, "1", Some(0)));
    assert_eq!(ending.await.unwrap().result.unwrap().body, "1", "for those who wait for this replica");
    advance(1000 * S).await;
    lock.then(arrives(plain.clone(), stored(&cache)));
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Collapsed, "2", Some(0)));
    // In the background.
    advance(100 * S).await;
    lock.then(arrives(plain, stored(&cache)));
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Stale, "2", Some(100)));
    settle().await;
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "3", Some(0)));
    // What is stored says nothing to a client that demands a new response.
    drop(lock.then_leads());
    assert_eq!(said(ask(&cache, forcing(call("q"))).await), is(Outcome::Miss, "4", None));
    assert_eq!((lock.claims(), upstream.calls()), (4, 4));
}

#[tokio::test(start_paused = true)]
async fn a_stored_response_that_is_not_found_is_fetched() {
    let upstream = Upstream::new(&[Next::Page("1")]);
    let (cache, lock, _) = replica(&upstream);
    lock.then(ready(stored(&cache)));
    drop(lock.then_leads());
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Miss, "1", None));
    let asked: Vec<_> = lock.asked.lock().unwrap().iter().map(|request| request.is_new).collect();
    assert_eq!(asked, [false, true]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_accept_what_was_just_stored_does_not_wait_for_more() {
    let upstream = Upstream::new(&[Next::Page("1"), Next::Page("2"), Next::Page("3")]);
    let (cache, lock, plain) = replica(&upstream);
    for (directives, brings) in [
        (CacheDirectives { max_age: Some(Duration::ZERO), ..CacheDirectives::default() }, "2"),
        (CacheDirectives { min_fresh: Some(1000 * S), ..CacheDirectives::default() }, "3"),
    ] {
        ask(&plain, call("q")).await.unwrap();
        let turn = stored(&cache);
        advance(S / 2).await;
        let begun = Instant::now();
        lock.then(ready(turn));
        drop(lock.then_leads());
        let mut query = call("q");
        query.directives.cache = directives;
        query.received = begun;
        assert_eq!(said(ask(&cache, query).await), is(Outcome::Miss, brings, None));
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
    let asked: Vec<_> = lock.asked.lock().unwrap().iter().map(|request| request.is_new).collect();
    assert_eq!(asked, [false, true, false, true]);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_longer_than_allowed_for_another_replica() {
    let upstream = Upstream::new(&[Next::Page("1")]);
    let (cache, lock, _) = replica(&upstream);
    let begun = Instant::now();
    lock.then_waits(std::future::pending());
    let impatient = ClientQuery { deadline: begun + 10 * S, ..call("q") };
    let patient = ClientQuery { deadline: begun + 200 * S, ..call("q") };
    let asking = [impatient, patient].map(|query| tokio::spawn(cache.clone().oneshot(query)));
    for (asking, waits) in asking.into_iter().zip([10 * S, POLICY.deadline]) {
        assert_eq!(asking.await.unwrap().unwrap_err().reason(), Reason::UpstreamTimeout);
        assert_eq!(begun.elapsed(), waits);
    }
    // A client that leaves ends the wait, and the next one claims again.
    lock.then_waits(std::future::pending());
    let leaving = tokio::spawn(cache.clone().oneshot(call("q")));
    settle().await;
    leaving.abort();
    settle().await;
    drop(lock.then_leads());
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Miss, "1", None));
}

#[tokio::test(start_paused = true)]
async fn what_does_for_a_client_is_told_to_the_lock() {
    let script = [Next::Page("1>b"), Next::Page("2"), Next::Page("1>c"), Next::Page("{}")];
    let (cache, lock, plain) = replica(&Upstream::new(&script));
    let now = cache.layer.clock.moment();
    advance(S).await;
    (0..3).for_each(|_| drop(lock.then_leads()));
    ask(&cache, call("q")).await.unwrap();
    ask(&cache, page("b")).await.unwrap();
    ask(&cache, forcing(call("q"))).await.unwrap();
    let asked = std::mem::take(&mut *lock.asked.lock().unwrap());
    let asked: Vec<_> = asked.iter().map(|request| (request.is_forced, request.not_before, request.first)).collect();
    let first = *call("q").key();
    assert_eq!(asked, [(false, None, None), (false, Some(now.after(S)), Some(first)), (true, None, None)]);
    purge(&cache, &Purge::All);
    assert_eq!(*lock.purges.lock().unwrap(), [Purge::All]);
    // A new job is for one client alone.
    let submission = forcing(ClientQuery::example(Operation::JobSubmit, "", "q"));
    ask(&cache, submission).await.unwrap();
    assert_eq!(lock.claims(), 0);
    drop(plain);
}

#[tokio::test]
async fn a_large_page_is_fetched_once_for_all_replicas() {
    let Some(server) = TestServer::start() else { return };
    // Hardly to be compressed.
    let page: &'static str = String::leak((0..3 << 20).map(|_| fastrand::alphanumeric()).collect());
    for query in [call("a"), forcing(call("b"))] {
        let upstream = Upstream::gated(&[Next::Page(page)]);
        let replicas = three(&server, POLICY, &upstream).await;
        let mut asking = replicas[0].ask(10, &query);
        until("a call", || upstream.calls() == 1).await;
        for replica in &replicas[1..] {
            asking.extend(replica.ask(10, &query));
            replica.waits().await;
        }
        upstream.open(1);
        for reply in asking {
            assert_eq!(reply.await.unwrap().unwrap().page.body, page);
        }
        assert_eq!(upstream.calls(), 1);
    }
}

/// Three replicas that share flights and pages, around one upstream.
async fn three(server: &TestServer, policy: Policy, upstream: &Upstream) -> Vec<Replica> {
    let mut replicas = Vec::new();
    for _ in 0..3 {
        let (metrics, clock, accounts) = (Metrics::new(), Clock::new(), KnownAccounts::default());
        accounts.set(&[call("q").team.account.clone()]);
        let shared = SharedStore::start(server.settings(), Arc::clone(&metrics), clock);
        let store = Store::new(1 << 26, &metrics).with_fill_lock(Arc::new(SharedFlights::new(shared.clone(), clock)));
        let store = SharedPages::behind(store, shared, accounts, clock);
        let query = call("q");
        until("pages are shared", || {
            store.load(&query.team.account, query.key(), &query.context, clock.now()).is_some()
        })
        .await;
        let layer = CacheLayer::new(store, policy, Arc::clone(&metrics), clock);
        replicas.push(Replica { cache: Cache::new(layer, upstream), metrics });
    }
    replicas
}

struct Replica {
    cache: Cache,
    metrics: Arc<Metrics>,
}

impl Replica {
    /// Clients that send this query now.
    fn ask(&self, clients: usize, query: &ClientQuery) -> Vec<JoinHandle<Result<ClientResponse, GatewayError>>> {
        let received = Instant::now();
        let query = ClientQuery { received, deadline: received + 90 * S, ..query.clone() };
        let own = || ClientQuery { context: Arc::default(), ..query.clone() };
        (0..clients).map(|_| tokio::spawn(self.cache.clone().oneshot(own()))).collect()
    }

    /// Returns once memory has this page of the query, which another replica may have put into the store.
    async fn finds(&self, query: ClientQuery, body: &str) {
        let (store, key) = (&self.cache.layer.store, query.key());
        let finding = async {
            while store.page(key).is_none_or(|page| page.stored.representation.body != body) {
                if let Some(loading) = store.load(&query.team.account, key, &Arc::default(), Instant::now()) {
                    loading.await;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(10 * S, finding).await.expect("the page is found");
    }

    /// Returns once it waits for the flight of another replica.
    async fn waits(&self) {
        let labels = SharedLabels { operation: StaticLabel("flight_wait"), result: StaticLabel("ok") };
        until("it waits", || self.metrics.shared_operations.get_or_create(&labels).get() > 0).await;
    }
}

#[tokio::test]
async fn three_replicas_make_one_call() {
    let Some(server) = TestServer::start() else { return };
    for query in [call("a"), forcing(call("b"))] {
        let upstream = Upstream::gated(&[Next::Page("1")]);
        let replicas = three(&server, POLICY, &upstream).await;
        let mut asking = replicas[0].ask(200, &query);
        until("a call", || upstream.calls() == 1).await;
        // As in one process, it does not matter how long the call has been under way.
        tokio::time::sleep(Duration::from_millis(20)).await;
        for replica in &replicas[1..] {
            asking.extend(replica.ask(200, &query));
            replica.waits().await;
        }
        upstream.open(1);
        let mut misses = 0;
        for reply in asking {
            let reply = reply.await.unwrap().unwrap();
            assert_eq!(reply.page.body, "1");
            misses += usize::from(reply.outcome == Outcome::Miss);
        }
        assert_eq!((misses, upstream.calls()), (1, 1));
    }
}

#[tokio::test]
async fn an_answer_that_comes_at_once_is_no_reason_for_another_call() {
    let Some(server) = TestServer::start() else { return };
    let upstream = Upstream::new(&[Next::Page("1")]);
    let replicas = three(&server, POLICY, &upstream).await;
    let asking: Vec<_> = replicas.iter().flat_map(|replica| replica.ask(200, &call("q"))).collect();
    for reply in asking {
        assert_eq!(reply.await.unwrap().unwrap().page.body, "1");
    }
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test]
async fn a_stale_page_is_refreshed_by_one_replica() {
    let Some(server) = TestServer::start() else { return };
    let upstream = Upstream::gated(&[Next::Page("1"), Next::Page("2")]);
    let lifetimes = Lifetimes { fresh: S, ..POLICY.query };
    let replicas = three(&server, Policy { query: lifetimes, ..POLICY }, &upstream).await;
    upstream.open(1);
    assert_eq!(ask(&replicas[0].cache, call("q")).await.unwrap().page.body, "1");
    for replica in &replicas {
        replica.finds(call("q"), "1").await;
    }
    tokio::time::sleep(S + S / 10).await;
    assert_eq!(ask(&replicas[0].cache, call("q")).await.unwrap().outcome, Outcome::Stale);
    until("a refresh", || upstream.calls() == 2).await;
    for replica in &replicas[1..] {
        assert_eq!(ask(&replica.cache, call("q")).await.unwrap().outcome, Outcome::Stale);
        replica.waits().await;
    }
    upstream.open(1);
    for replica in &replicas {
        replica.finds(call("q"), "2").await;
    }
    assert_eq!(upstream.calls(), 2);
}
