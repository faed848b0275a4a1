//! How long one request waits for the store in all, with all its operations.
//!
//! The layers, grants, flights and budget are the real ones, and operations pass through the real code. Only the store
//! is simulated: one node is slow, and another node, which has the budget, is slow or does not answer.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, pending, ready};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::Full;
use tower::{Layer, Service, service_fn};

use super::*;
use crate::accounts::{Account, PerAccount, Team};
use crate::budget::{AccountBudget, CircuitPolicy, Limits};
use crate::cache::{Candidate, InsertOutcome, Purge, PurgeCompletion, PurgeOutcome, Replacement, Store, Tier};
use crate::config::{Servers, StoreUrl};
use crate::core::backoff::Backoff;
use crate::core::draining::Draining;
use crate::core::peer::{Origin, Peer};
use crate::core::units::Rate;
use crate::layers::budget::BudgetLayer;
use crate::layers::cache::{self, CacheLayer, JobLifetimes};
use crate::layers::decode::{self, Bodies, DecodeLayer, FreshPages, IssuedPageTokens};
use crate::layers::jobs::{self, JobOwners, JobsLayer};
use crate::layers::represent::RepresentLayer;
use crate::replicas::connection::{Connection, Script};
use crate::replicas::script::LuaScript;
use crate::replicas::{SharedFlights, SharedQuota, StoredGrants, bounded_get, budget, flights};
use crate::request::call::{UpstreamCall, UpstreamResponse};
use crate::request::context::RequestContext;
use crate::request::grants::SharedGrants;
use crate::request::incoming::{AuthorizedRequest, IncomingRequest};
use crate::request::key::Key;
use crate::request::response::Representation;
use crate::semantics::freshness::Lifetimes;
use crate::twilio::endpoint::Operation;
use crate::twilio::links::Links;
use crate::twilio::parameters::Parameters;
use crate::twilio::policy::Policy;
use crate::twilio::validate::Validation;

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);
/// `shared.timeout`.
const TIMEOUT: Duration = Duration::from_millis(100);
/// The pauses between two looks at a flight, a token's way in this process, and the rate.
const ELSE: Duration = Duration::from_millis(25);

const METADATA: &str = r#"{"cubes":[{"name":"C","measures":[{"name":"C.Count","type":"number"}],"dimensions":[
    {"name":"C.Secret","type":"string"}]}]}"#;
const ASK: &str = r#"{"query":{"measures":["C.Count"]}}"#;

/// What the clocks of the store show.
const NOW: i64 = 1_800_000_000_000_000;

/// What the node with the budget does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Budget {
    Slow,
    Frozen,
}

/// What a claim of a flight finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flight {
    Free,
    /// Another replica fetches the page, and the store tells nothing more of it.
    UnderWay,
}

/// A store whose answers take so long.
struct Played {
    slow: Duration,
    budget: Mutex<Budget>,
    flight: Flight,
    grants: Mutex<HashMap<Vec<u8>, Vec<u8>>>,
    /// Grants that were looked up.
    found: AtomicUsize,
    granted: AtomicUsize,
}

impl Played {
    fn script(self: &Arc<Self>) -> Arc<Script> {
        let store = Arc::clone(self);
        Arc::new(move |command| {
            let words: Vec<Vec<u8>> = command
                .args_iter()
                .map(|word| match word {
                    redis::Arg::Simple(word) => word.to_vec(),
                    _ => Vec::new(),
                })
                .collect();
            let slow = store.slow;
            match store.answer(&words) {
                Some((value, true)) => async move {
                    tokio::time::sleep(slow).await;
                    Ok(value)
                }
                .boxed(),
                Some((value, false)) => ready(Ok(value)).boxed(),
                None => pending().boxed(),
            }
        })
    }

    /// The answer, and whether it comes slowly; `None`: there is none.
    fn answer(&self, words: &[Vec<u8>]) -> Option<(Value, bool)> {
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        if words[0] == b"SET" {
            self.grants.lock().unwrap().insert(words[1].clone(), words[2].clone());
            return Some((Value::Okay, true));
        }
        let is = |script: &LuaScript| words[1] == script.text().as_bytes();
        if is(&heartbeat::BEAT) {
            return Some((Value::Array([NOW, NOW, 2].map(Value::Int).into()), false));
        }
        if is(&budget::SCRIPT) {
            let answers = *self.budget.lock().unwrap() == Budget::Slow;
            return answers.then(|| (self.grant(&words[7..]), true));
        }
        if is(&bounded_get::SCRIPT) {
            self.found.fetch_add(1, Ordering::SeqCst);
            let found = self.grants.lock().unwrap().get(&words[3]).cloned();
            return Some((found.map_or(Value::Nil, Value::BulkString), true));
        }
        if is(&flights::CLAIM) {
            let turn = if self.flight == Flight::Free { 0 } else { 1 };
            return Some((Value::Array(vec![Value::Int(turn), bulk(&"0".repeat(32)), bulk("1")]), true));
        }
        // How a flight stands is never told; and its end is taken.
        (!is(&flights::WAIT)).then_some((Value::Int(0), true))
    }

    /// All tokens that are asked for, from `ARGV`.
    fn grant(&self, words: &[Vec<u8>]) -> Value {
        let number = |word: &[u8]| -> usize { std::str::from_utf8(word).unwrap().parse().unwrap() };
        let (most, refunds) = (number(&words[5]), number(&words[22]));
        let teams: Vec<_> = words[23 + 5 * refunds..].chunks(6).collect();
        let asked = teams.iter().enumerate().flat_map(|(team, ask)| (0..number(&ask[3])).map(move |_| team + 1));
        let tokens: Vec<_> = asked.take(most).flat_map(|team| [team as i64, 0, 7]).collect();
        let granted = self.granted.fetch_add(tokens.len() / 3, Ordering::SeqCst) + tokens.len() / 3;
        let head = [1000, 1000, 0, 0, 0, 0, granted as i64, 0, 1_000_000, NOW];
        Value::Array(head.into_iter().chain(teams.iter().map(|_| 0)).chain(tokens).map(Value::Int).collect())
    }
}

/// Looks for a page on the slow node, and finds none.
#[derive(Debug)]
struct Pages {
    slow: Duration,
    patience: Duration,
    clock: Clock,
}

impl Tier for Pages {
    fn get(
        &self,
        _: &Arc<Account>,
        _: &Key,
        context: &Arc<RequestContext>,
        _: Instant,
    ) -> Option<BoxFuture<'static, ()>> {
        let (slow, patience, clock, context) = (self.slow, self.patience, self.clock, Arc::clone(context));
        let looking = async move {
            context.store_wait.within(patience, clock, tokio::time::sleep(slow)).await;
        };
        Some(looking.boxed())
    }

    fn put(&self, _: &Candidate<'_>, keep: &mut dyn FnMut() -> InsertOutcome) -> bool {
        keep().kept
    }

    fn remove(&self, _: &Replacement, remove: &mut dyn FnMut() -> Vec<Key>) {
        remove();
    }

    fn purge(&self, _: &Purge, mark: &mut dyn FnMut() -> HashSet<Key>) -> PurgeCompletion<'_> {
        mark();
        Box::new(PurgeOutcome::default)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }
}

/// One replica, and a team with a policy.
struct Gateway {
    played: Arc<Played>,
    store: SharedStore,
    budget: AccountBudget,
    decode: DecodeLayer,
    owners: JobOwners,
    clock: Clock,
    policy: Arc<Policy>,
}

const NOT_SHARED: cache::Policy = cache::Policy {
    metadata: Lifetimes::fresh_only(S),
    query: Lifetimes::fresh_only(S),
    settled: Lifetimes::fresh_only(S),
    settled_after: S,
    jobs: JobLifetimes { dedup: S, results: S },
    errors: Duration::ZERO,
    deadline: Duration::from_secs(90),
    refresh_jitter: Duration::ZERO,
    keep_queries: false,
};

fn links() -> Links {
    Links::new(&"http://upstream".parse().unwrap(), None)
}

fn answer(body: String) -> UpstreamResponse {
    UpstreamResponse { status: StatusCode::OK, headers: HeaderMap::new(), body: body.into(), next_token: None }
}

impl Gateway {
    /// It has shared the budget before that does what it does.
    async fn new(slow: Duration, does: Budget, flight: Flight, has_metadata: bool) -> Self {
        let played = Arc::new(Played {
            slow,
            budget: Mutex::new(Budget::Slow),
            flight,
            grants: Mutex::default(),
            found: AtomicUsize::new(0),
            granted: AtomicUsize::new(0),
        });
        let settings = Shared {
            url: StoreUrl { servers: Servers::Unix("/nowhere".into()), tls: false, database: 0 },
            username: None,
            password: None,
            ca_file: None,
            seal: vec![zeroize::Zeroizing::new([7; 32])],
            prefix: "test".to_owned(),
            timeout: TIMEOUT,
            lease: 30 * S,
            replicas: 2,
        };
        let clock = Clock::simulated();
        let store = SharedStore::new(settings, Metrics::new(), clock);
        store.try_out(Connection::Scripted(played.script())).await.unwrap();
        let limits = Limits {
            rate: Rate::new(1000, S),
            burst: 1000,
            concurrency: 1000,
            queue: 1000,
            adapt: true,
            max_pause: 300 * S,
            backoff: Backoff { base: S, max: S },
            circuit: CircuitPolicy { consecutive: 10, ratio: 0.5, open: S },
        };
        let account = Team::example("a").account;
        let quota = SharedQuota::new(store.clone(), account, &limits, clock);
        let budget = AccountBudget::with_quota("main".into(), limits, Box::new(quota), clock);
        let grants = Arc::new(StoredGrants::new(store.clone()));
        let metadata = Arc::new(Representation::new(answer(METADATA.to_owned()), &[]));
        let decode = DecodeLayer::new(
            decode::Limits { max_body: 1 << 20, body_timeout: S, deadline: 90 * S },
            Bodies::new(1 << 20),
            FreshPages::new(move |_| has_metadata.then(|| Arc::clone(&metadata)), || 0),
            IssuedPageTokens::default().shared_by(Arc::clone(&grants) as _, 60 * S, clock),
            Validation::Off,
            links(),
        );
        let owners = JobOwners::default().shared_by(grants);
        let policy = Arc::new(Policy::new(&["C.Secret".to_owned()], &[]));
        let gateway = Self { played, store, budget, decode, owners, clock, policy };
        gateway.ask(Operation::Query, "", ASK).await;
        // Nothing is asked now.
        tokio::time::sleep(TIMEOUT * 3).await;
        *gateway.played.budget.lock().unwrap() = does;
        gateway
    }

    /// Another replica gives out a page token to this team.
    fn give(&self, token: &str) {
        let account = Team::example("a").account;
        let scope = self.policy.scope(&account.sid, &account.origin);
        let key = Key::of_page(&account, &Parameters::of_page(token));
        let giving = StoredGrants::new(self.store.clone()).give(&account, &scope, &key, 3600 * S);
        assert!(giving.now_or_never().is_none(), "it has been sent");
    }

    /// A request of the team; how it ended, and how long it took.
    async fn ask(&self, operation: Operation, query: &str, body: &'static str) -> (StatusCode, Duration) {
        let list = (0..1000).map(|n| format!(r#"{{"operationId":"op_{n}","status":"RUNNING"}}"#));
        let list = format!(r#"{{"items":[{}],"meta":{{"nextToken":"c"}}}}"#, Vec::from_iter(list).join(","));
        let upstream = service_fn(move |call: UpstreamCall| {
            ready(Ok(answer(match call.endpoint.operation {
                Operation::JobList => list.clone(),
                Operation::Metadata => METADATA.to_owned(),
                _ => r#"{"data":[],"meta":{"nextToken":"b"}}"#.to_owned(),
            })))
        });
        let (metrics, clock) = (Metrics::new(), self.clock);
        let pages = Pages { slow: self.played.slow, patience: self.store.patience(), clock };
        let flights = Arc::new(SharedFlights::new(self.store.clone(), clock));
        let store = Store::new(1 << 24, &metrics).with_fill_lock(flights).with_replicas(|_| Arc::new(pages));
        let budget = BudgetLayer::new(PerAccount::example(self.budget.clone()), Arc::clone(&metrics), clock);
        let cached = CacheLayer::new(store.clone(), NOT_SHARED, metrics, clock).layer(budget.layer(upstream));
        let settings = jobs::Settings { dedup: S, deadline: 90 * S };
        let jobs =
            JobsLayer::new(store.clone(), self.owners.clone(), settings, Draining::default(), clock).layer(cached);
        let mut gateway = self.decode.layer(RepresentLayer::new(store, links(), clock).layer(jobs));
        let endpoint = operation.endpoint();
        let request = Request::builder().method(Method::POST).uri(format!("{}?{query}", endpoint.path));
        let incoming = IncomingRequest {
            request: Box::new(request.body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap()),
            peer: Arc::new(Peer::new(Origin::Tcp(([127, 0, 0, 1], 1).into()))),
            received: clock.now(),
            context: Arc::default(),
        };
        let team = Arc::new(Team { policy: Some(Arc::clone(&self.policy)), ..Team::example("a") });
        let begun = clock.now();
        let answered = gateway.call(AuthorizedRequest { incoming, endpoint, team }).await;
        let status = answered.map_or_else(|error| error.reason().status(), |response| response.status());
        (status, clock.now() - begun)
    }
}

/// The slow node answers just in time, or so that most fits into the time of a request.
const SLOW: [Duration; 4] = [Duration::from_millis(99), Duration::from_millis(66), Duration::from_millis(40), MS];

#[tokio::test(start_paused = true)]
async fn no_request_waits_for_the_store_longer_than_four_operations() {
    use Operation::{JobList, JobSubmit, Page, Query};
    for slow in SLOW {
        for (budget, flight) in [
            (Budget::Slow, Flight::Free),
            (Budget::Slow, Flight::UnderWay),
            (Budget::Frozen, Flight::Free),
            (Budget::Frozen, Flight::UnderWay),
        ] {
            for (operation, query, body) in
                [(Page, "pageToken=a", ""), (Query, "", ASK), (JobList, "", ""), (JobSubmit, "", ASK)]
            {
                let gateway = Gateway::new(slow, budget, flight, true).await;
                gateway.give("a");
                let (status, took) = gateway.ask(operation, query, body).await;
                let case = format!("{operation:?}, {slow:?}, {budget:?}, {flight:?}");
                assert_eq!(status, StatusCode::OK, "{case}");
                assert!(took <= TIMEOUT * 4 + ELSE, "{case}: {took:?}");
                let least = if budget == Budget::Frozen { TIMEOUT * 2 + slow } else { slow * 2 };
                assert!(took >= least, "{case}: it waits for its page and its token: {took:?}");
            }
        }
    }
}

/// A query of a policy whose metadata is not known yet takes two calls.
#[tokio::test(start_paused = true)]
async fn each_further_call_of_a_request_waits_for_its_token_for_two_operations() {
    for slow in SLOW {
        for budget in [Budget::Slow, Budget::Frozen] {
            let gateway = Gateway::new(slow, budget, Flight::Free, false).await;
            let (status, took) = gateway.ask(Operation::Query, "", ASK).await;
            let most = if budget == Budget::Slow { TIMEOUT * 6 } else { TIMEOUT * 4 };
            assert_eq!(status, StatusCode::OK, "{slow:?}, {budget:?}");
            assert!(took <= most + ELSE, "{slow:?}, {budget:?}: {took:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_nobody_gave_out_is_refused_in_time() {
    for slow in SLOW {
        let gateway = Gateway::new(slow, Budget::Slow, Flight::Free, true).await;
        let (status, took) = gateway.ask(Operation::Page, "pageToken=nobody", "").await;
        assert!(status == StatusCode::FORBIDDEN && took <= TIMEOUT * 2, "{slow:?}: {status} {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_looks_up_few_of_the_jobs_that_are_not_the_teams() {
    let gateway = Gateway::new(MS, Budget::Slow, Flight::Free, true).await;
    let (status, took) = gateway.ask(Operation::JobList, "", "").await;
    assert!(status == StatusCode::OK && took <= TIMEOUT * 4 + ELSE, "{took:?}");
    tokio::time::sleep(10 * S).await;
    // Each is looked for twice: it may still be on its way.
    assert_eq!(gateway.played.found.load(Ordering::SeqCst), 2 * 256);
}
