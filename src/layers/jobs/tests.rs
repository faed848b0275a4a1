use std::sync::Mutex;

use tokio::time::Instant;

use super::*;
use crate::accounts::{PerAccount, Team};
use crate::cache::Purge;
use crate::core::outcome::Outcome;
use crate::layers::cache::{self, CacheLayer, Caching, JobLifetimes};
use crate::metrics::Metrics;
use crate::request::call::{UpstreamCall, UpstreamResponse};
use crate::semantics::freshness::Lifetimes;
use crate::twilio::links::Base;
use crate::twilio::policy::Policy;

const S: Duration = Duration::from_secs(1);
const ASK: &str = r#"{"query":{"measures":["C.Count"]}}"#;
const PAGE: &str = r#"{"items":[],"meta":{"key":"items","pageSize":0,"nextToken":"b"}}"#;

const LIFETIMES: cache::Policy = cache::Policy {
    metadata: Lifetimes::fresh_only(S),
    query: Lifetimes::fresh_only(Duration::from_secs(60)),
    settled: Lifetimes::fresh_only(S),
    settled_after: S,
    jobs: JobLifetimes { dedup: Duration::from_secs(600), results: Duration::from_secs(7 * 86_400) },
    errors: Duration::from_secs(10),
    deadline: Duration::from_secs(90),
    refresh_jitter: Duration::ZERO,
    keep_queries: false,
};

/// An answer of Twilio's: a status, the seconds of `Retry-After`, and a body.
type Reply = (u16, Option<u64>, String);
/// In place of a status: no answer.
const RESET: u16 = 0;
type Script = dyn FnMut(&UpstreamCall) -> Reply + Send;

/// A scripted Twilio, as the layers above see it.
#[derive(Clone)]
struct Twilio {
    script: Arc<Mutex<Box<Script>>>,
    calls: Arc<Mutex<Vec<UpstreamCall>>>,
    takes: Duration,
}

impl Service<UpstreamCall> for Twilio {
    type Response = UpstreamResponse;
    type Error = GatewayError;
    type Future = BoxFuture<'static, Result<UpstreamResponse, GatewayError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), GatewayError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: UpstreamCall) -> Self::Future {
        let (status, wait, body) = (self.script.lock().unwrap())(&call);
        self.calls.lock().unwrap().push(call);
        let takes = self.takes;
        Box::pin(async move {
            tokio::time::sleep(takes).await;
            let headers = wait.map(|wait| (header::RETRY_AFTER, HeaderValue::from(wait)));
            if status == RESET || status == 401 {
                let reason =
                    if status == RESET { Reason::UpstreamUnreachable } else { Reason::UpstreamRejectedCredentials };
                return Err(GatewayError::new(reason, "scripted"));
            }
            Ok(UpstreamResponse {
                status: StatusCode::from_u16(status).unwrap(),
                headers: headers.into_iter().collect(),
                next_token: page::tokens(body.as_bytes()).next(),
                body: body.into(),
            })
        })
    }
}

fn job(id: &str, status: &str) -> String {
    let retention = if status == "COMPLETED" { r#","resultRetentionPeriod":"P2D""# } else { "" };
    format!(r#"{{"operationId":"{id}","status":"{status}"{retention}}}"#)
}

/// Jobs `op_1`, `op_2`, … in the order of submission. `state` gives the status of a job from its id and its age in
/// seconds.
fn twilio(mut state: impl FnMut(&str, u64) -> &'static str + Send + 'static) -> impl FnMut(&UpstreamCall) -> Reply {
    let mut submitted = Vec::new();
    move |call| match call.endpoint.operation {
        Operation::JobSubmit => {
            submitted.push(Instant::now());
            (202, Some(5), job(&format!("op_{}", submitted.len()), "PENDING"))
        }
        operation => {
            let id = call.endpoint.id(&call.path).unwrap_or_default();
            let age = id.strip_prefix("op_").and_then(|n| submitted.get(n.parse::<usize>().ok()?.checked_sub(1)?));
            let state = state(id, age.map_or(0, |at| at.elapsed().as_secs()));
            match operation {
                Operation::JobStatus => (200, matches!(state, "PENDING" | "RUNNING").then_some(10), job(id, state)),
                _ if state == "COMPLETED" => (200, None, PAGE.to_owned()),
                _ => (404, None, r#"{"code":20404}"#.to_owned()),
            }
        }
    }
}

struct Rig {
    jobs: Jobs<Caching<Twilio>>,
    upstream: Twilio,
    store: Store,
    clock: Clock,
}

impl Rig {
    fn new(script: impl FnMut(&UpstreamCall) -> Reply + Send + 'static) -> Self {
        Self::with(LIFETIMES, Duration::ZERO, script)
    }

    fn with(
        policy: cache::Policy,
        takes: Duration,
        script: impl FnMut(&UpstreamCall) -> Reply + Send + 'static,
    ) -> Self {
        let (metrics, clock) = (Metrics::new(), Clock::simulated());
        let store = Store::new(1 << 20, &metrics);
        let upstream = Twilio { script: Arc::new(Mutex::new(Box::new(script))), calls: Arc::default(), takes };
        let settings = Settings { dedup: policy.jobs.dedup, deadline: policy.deadline };
        let layer = JobsLayer::new(store.clone(), JobOwners::default(), settings, clock);
        let cache =
            CacheLayer::new(store.clone(), policy, PerAccount::example(Arc::from(["main".into()])), metrics, clock)
                .layer(upstream.clone());
        Self { jobs: layer.layer(cache), upstream, store, clock }
    }

    /// The cache in front of a Twilio that takes this long.
    fn slow(&self, takes: Duration) -> Caching<Twilio> {
        let upstream = Twilio { takes, ..self.upstream.clone() };
        let names = PerAccount::example(Arc::from(["main".into()]));
        CacheLayer::new(self.store.clone(), LIFETIMES, names, Metrics::new(), self.clock).layer(upstream)
    }

    async fn ask(&self, query: ClientQuery) -> Answered {
        self.jobs.clone().oneshot(query).await
    }

    fn query(&self, operation: Operation, id: &str) -> ClientQuery {
        let plain = ClientQuery::example(Operation::Query, "", ASK);
        let mut query = self.jobs.about(&plain, operation, id, "");
        (query.received, query.deadline) = (self.clock.now(), self.clock.now() + LIFETIMES.deadline);
        query
    }

    fn submission(&self) -> ClientQuery {
        let (received, deadline) = (self.clock.now(), self.clock.now() + LIFETIMES.deadline);
        ClientQuery { received, deadline, ..ClientQuery::example(Operation::JobSubmit, "", ASK) }
    }

    async fn submit(&self) -> CacheResponse {
        self.ask(self.submission()).await.unwrap()
    }

    async fn status(&self, id: &str) -> CacheResponse {
        self.ask(self.query(Operation::JobStatus, id)).await.unwrap()
    }

    async fn results(&self, id: &str) -> CacheResponse {
        self.ask(self.query(Operation::JobResults, id)).await.unwrap()
    }

    fn calls(&self, operation: Operation) -> usize {
        self.upstream.calls.lock().unwrap().iter().filter(|call| call.endpoint.operation == operation).count()
    }
}

mod known_tests;
mod shared_tests;

fn body(response: &CacheResponse) -> String {
    String::from_utf8(response.representation().body.to_vec()).unwrap()
}

/// The `Retry-After` that the client gets.
fn wait(response: &CacheResponse) -> Option<u64> {
    let (_, value) = response.headers.iter().find(|(name, _)| *name == header::RETRY_AFTER)?;
    value.to_str().unwrap().parse().ok()
}

fn forced(query: ClientQuery) -> ClientQuery {
    let cache = CacheDirectives { no_cache: true, ..CacheDirectives::default() };
    ClientQuery { directives: RequestDirectives { cache, ..query.directives.clone() }, ..query }
}

fn waiting(query: ClientQuery, seconds: u32) -> ClientQuery {
    let directives = RequestDirectives { wait: Some(S * seconds), ..query.directives.clone() };
    ClientQuery { deadline: query.received + S * seconds, directives, ..query }
}

fn with_policy(query: ClientQuery, deny: &str) -> ClientQuery {
    let policy = Some(Arc::new(Policy::new(&[deny.to_owned()], &[])));
    ClientQuery { team: Arc::new(Team { policy, ..Team::example("a") }), ..query }
}

#[tokio::test(start_paused = true)]
async fn an_identical_submission_gets_the_job_of_the_first() {
    let rig = Rig::with(LIFETIMES, S, twilio(|_, _| "RUNNING"));
    let (first, second) = tokio::join!(rig.submit(), rig.submit());
    let mut outcomes = [first.outcome, second.outcome];
    outcomes.sort();
    assert_eq!((outcomes, body(&first)), ([Outcome::Collapsed, Outcome::Miss], body(&second)));
    tokio::time::advance(3 * S).await;
    let third = rig.submit().await;
    assert_eq!((third.outcome, body(&third), wait(&third)), (Outcome::Hit, body(&first), Some(2)));
    assert_eq!(
        (rig.calls(Operation::JobSubmit), rig.calls(Operation::JobStatus)),
        (1, 0),
        "no poll before Retry-After"
    );
    tokio::time::advance(3 * S).await;
    assert_eq!((rig.submit().await.outcome, rig.calls(Operation::JobStatus)), (Outcome::Hit, 1));
    tokio::time::advance(600 * S).await;
    let later = rig.submit().await;
    assert_eq!((later.outcome, body(&later)), (Outcome::Miss, job("op_2", "PENDING")));
}

#[tokio::test(start_paused = true)]
async fn every_submission_has_a_key_and_keeps_its_own() {
    let rig = Rig::new(twilio(|_, _| "RUNNING"));
    rig.submit().await;
    let own = |key: &'static str| Some(Arc::new(only(IDEMPOTENCY_KEY, HeaderValue::from_static(key))));
    for _ in 0..2 {
        let answer = rig.ask(ClientQuery { headers: own("mine"), ..rig.submission() }).await.unwrap();
        assert_eq!((answer.outcome, wait(&answer)), (Outcome::Bypass, Some(5)));
    }
    assert_eq!(body(&rig.submit().await), job("op_1", "PENDING"), "a job with its own key is not shared");
    let calls = rig.upstream.calls.lock().unwrap().clone();
    let keys: Vec<_> = calls.iter().map(|call| call.headers.as_ref().unwrap()[IDEMPOTENCY_KEY].clone()).collect();
    assert_eq!((keys.len(), &keys[1], &keys[2]), (3, &HeaderValue::from_static("mine"), &keys[1]));
    assert_eq!((keys[0].len(), keys[0].as_bytes()[14]), (36, b'7'));
    for bad in ["", "a b", &*"x".repeat(256)] {
        let headers = Some(Arc::new(only(IDEMPOTENCY_KEY, HeaderValue::from_str(bad).unwrap())));
        let refused = rig.ask(ClientQuery { headers, ..rig.submission() }).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::BadRequest, "{bad:?}");
    }
    let mut asked = ClientQuery { headers: own("mine"), ..rig.submission() };
    asked.directives.cache.only_if_cached = true;
    assert_eq!(rig.ask(asked).await.unwrap_err().reason(), Reason::OnlyIfCached);
}

#[tokio::test(start_paused = true)]
async fn no_cache_asks_for_a_new_job_and_later_submissions_share_it() {
    let rig = Rig::new(twilio(|_, _| "RUNNING"));
    rig.submit().await;
    tokio::time::advance(S).await;
    assert_eq!(body(&rig.ask(forced(rig.submission())).await.unwrap()), job("op_2", "PENDING"));
    let shared = rig.submit().await;
    assert_eq!((shared.outcome, body(&shared)), (Outcome::Hit, job("op_2", "PENDING")));
}

#[tokio::test(start_paused = true)]
async fn every_submission_with_no_cache_makes_a_job() {
    let rig = Rig::with(LIFETIMES, S, twilio(|_, _| "RUNNING"));
    let submit = || async { body(&rig.ask(forced(rig.submission())).await.unwrap()) };
    let (first, second, third) = tokio::join!(submit(), submit(), submit());
    let mut jobs = [first, second, third];
    jobs.sort();
    assert_eq!(jobs, ["op_1", "op_2", "op_3"].map(|id| job(id, "PENDING")));
    assert_eq!(rig.submit().await.outcome, Outcome::Hit);
    *rig.upstream.script.lock().unwrap() = Box::new(|_| (503, None, "{}".to_owned()));
    let failed = rig.ask(forced(rig.submission())).await.unwrap();
    assert_eq!(failed.representation().status, 503, "an earlier job is no answer");
}

#[tokio::test(start_paused = true)]
async fn clients_that_submit_a_lost_job_again_share_a_new_one() {
    let rig = Rig::with(LIFETIMES, S / 2, twilio(|id, _| if id == "op_1" { "FAILED" } else { "RUNNING" }));
    rig.submit().await;
    rig.status("op_1").await;
    let (first, second) = tokio::join!(rig.submit(), rig.submit());
    assert_eq!([body(&first), body(&second)], [(); 2].map(|()| job("op_2", "PENDING")));
    rig.status("op_2").await;
    let rig = Rig::new(twilio(|_, _| "FAILED"));
    rig.submit().await;
    rig.status("op_1").await;
    *rig.upstream.script.lock().unwrap() = Box::new(|_| (503, None, "{}".to_owned()));
    assert_eq!(rig.submit().await.representation().status, 503, "the lost job is no answer");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_known_to_have_failed_is_not_shared() {
    for state in ["FAILED", "CANCELLED", "EXPIRED"] {
        let rig = Rig::new(twilio(move |id, _| if id == "op_1" { state } else { "RUNNING" }));
        rig.submit().await;
        rig.status("op_1").await;
        let new = rig.submit().await;
        assert_eq!(body(&new), job("op_2", "PENDING"), "{state}");
        assert_eq!(rig.submit().await.outcome, Outcome::Hit, "{state}");
    }
    // The status of the job is not known yet. It is polled as soon as a poll is allowed.
    let rig = Rig::new(twilio(|id, _| if id == "op_1" { "FAILED" } else { "COMPLETED" }));
    rig.submit().await;
    tokio::time::advance(4 * S).await;
    assert_eq!(body(&rig.submit().await), job("op_1", "PENDING"));
    tokio::time::advance(2 * S).await;
    assert_eq!(body(&rig.submit().await), job("op_2", "PENDING"));
    rig.status("op_2").await;
    tokio::time::advance(60 * S).await;
    assert_eq!((rig.submit().await.outcome, rig.calls(Operation::JobStatus)), (Outcome::Hit, 2), "it has ended");
    // A job that Twilio has lost.
    let mut known = twilio(|_, _| "RUNNING");
    let rig = Rig::new(move |call: &UpstreamCall| match call.endpoint.operation {
        Operation::JobStatus => (404, None, "{}".to_owned()),
        _ => known(call),
    });
    rig.submit().await;
    tokio::time::advance(6 * S).await;
    assert_eq!(body(&rig.submit().await), job("op_2", "PENDING"));
}

#[tokio::test(start_paused = true)]
async fn without_dedup_every_submission_is_a_job() {
    let policy = cache::Policy { jobs: JobLifetimes { dedup: Duration::ZERO, ..LIFETIMES.jobs }, ..LIFETIMES };
    let rig = Rig::with(policy, S, twilio(|_, _| "RUNNING"));
    let (first, second) = tokio::join!(rig.submit(), rig.submit());
    assert_ne!(body(&first), body(&second));
    assert_eq!(rig.submit().await.outcome, Outcome::Bypass);
}

#[tokio::test(start_paused = true)]
async fn a_purge_drops_jobs() {
    let rig = Rig::new(twilio(|_, _| "RUNNING"));
    rig.submit().await;
    rig.status("op_1").await;
    for which in [
        Purge::Operation(Operation::JobSubmit),
        Purge::Key(Key::of_job(&rig.submission().team.account, "op_1").to_string()),
    ] {
        assert_eq!(rig.store.purge(&which).pages, 1);
    }
    assert_eq!(body(&rig.submit().await), job("op_2", "PENDING"));
    assert_eq!(rig.store.purge(&Purge::Account("main".to_owned())).pages, 1);
}

#[tokio::test(start_paused = true)]
async fn a_hundred_watchers_cost_one_poll_per_retry_after() {
    let rig = Rig::with(
        LIFETIMES,
        Duration::from_millis(50),
        twilio(|_, age| if age < 25 { "RUNNING" } else { "COMPLETED" }),
    );
    rig.submit().await;
    let watch = || async {
        loop {
            let query = rig.query(Operation::JobStatus, "op_1");
            // Even with directives that ask for a new status.
            let status = rig.ask(forced(query)).await.unwrap();
            let told = wait(&status);
            if body(&status).contains("COMPLETED") {
                assert_eq!(told, None);
                return;
            }
            assert!((1..=10).contains(&told.unwrap()), "{told:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    futures_util::future::join_all((0..100).map(|_| watch())).await;
    // After 0, 10, 20 and 30 seconds.
    assert_eq!(rig.calls(Operation::JobStatus), 4);
    tokio::time::advance(47 * 3600 * S).await;
    assert_eq!(rig.status("op_1").await.outcome, Outcome::Hit, "stored as long as its results");
    tokio::time::advance(2 * 3600 * S).await;
    assert_eq!(rig.status("op_1").await.outcome, Outcome::Miss);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_has_ended_is_polled_again_only_if_a_client_asks_for_it() {
    let rig = Rig::new(twilio(|_, _| "COMPLETED"));
    for (elapsed, insists, outcome) in [
        (0, false, Outcome::Miss),
        (0, true, Outcome::Hit),
        (4, true, Outcome::Hit),
        (2, true, Outcome::Miss),
        (60, false, Outcome::Hit),
    ] {
        tokio::time::advance(elapsed * S).await;
        let query = rig.query(Operation::JobStatus, "op_1");
        let status = rig.ask(if insists { forced(query) } else { query }).await.unwrap();
        assert_eq!(status.outcome, outcome, "{elapsed} {insists}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_has_ended_keeps_its_state() {
    let mut asked = 0;
    let rig = Rig::new(twilio(move |_, _| {
        asked += 1;
        if asked == 1 { "COMPLETED" } else { "RUNNING" }
    }));
    rig.status("op_1").await;
    tokio::time::advance(10 * S).await;
    let again = rig.ask(forced(rig.query(Operation::JobStatus, "op_1"))).await.unwrap();
    assert_eq!((again.outcome, body(&again)), (Outcome::StaleError, job("op_1", "COMPLETED")));
    assert_eq!(rig.status("op_1").await.outcome, Outcome::Hit);
}

#[tokio::test(start_paused = true)]
async fn prefer_wait_holds_a_status_until_the_job_ends_or_the_time_is_up() {
    let rig = Rig::new(twilio(|_, age| if age < 25 { "RUNNING" } else { "COMPLETED" }));
    rig.submit().await;
    let begun = Instant::now();
    let status = rig.ask(waiting(rig.query(Operation::JobStatus, "op_1"), 12)).await.unwrap();
    assert_eq!((begun.elapsed().as_secs(), body(&status)), (12, job("op_1", "RUNNING")));
    assert_eq!(rig.calls(Operation::JobStatus), 2);
    assert!((8..=9).contains(&wait(&status).unwrap()), "{:?}", wait(&status));
    let status = rig.ask(waiting(rig.query(Operation::JobStatus, "op_1"), 60)).await.unwrap();
    // Polls at 0, 10, 20 and 30 seconds.
    assert_eq!((begun.elapsed().as_secs(), body(&status)), (30, job("op_1", "COMPLETED")));
    assert_eq!(rig.calls(Operation::JobStatus), 4);
    let begun = Instant::now();
    rig.ask(waiting(rig.query(Operation::JobStatus, "op_1"), 60)).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_poll_that_takes_too_long_leaves_the_last_status() {
    let mut polls = 0;
    let rig = Rig::with(LIFETIMES, 4 * S, move |call: &UpstreamCall| {
        polls += 1;
        (200, Some(if polls == 1 { 2 } else { 60 }), job(call.endpoint.id(&call.path).unwrap(), "RUNNING"))
    });
    // The first poll ends after 4 s, the second would after 10.
    let status = rig.ask(waiting(rig.query(Operation::JobStatus, "op_1"), 8)).await.unwrap();
    assert_eq!((body(&status), rig.calls(Operation::JobStatus)), (job("op_1", "RUNNING"), 2));
    let none = rig.ask(waiting(rig.query(Operation::JobStatus, "op_9"), 1)).await.unwrap_err();
    assert_eq!(none.reason(), Reason::UpstreamTimeout);
}

#[tokio::test(start_paused = true)]
async fn missing_results_are_asked_for_again_once_the_job_has_completed() {
    let rig = Rig::new(twilio(|_, age| if age < 3 { "RUNNING" } else { "COMPLETED" }));
    rig.submit().await;
    assert_eq!(rig.results("op_1").await.representation().status, 404);
    assert_eq!((rig.results("op_1").await.outcome, rig.calls(Operation::JobResults)), (Outcome::Hit, 1));
    tokio::time::advance(4 * S).await;
    assert_eq!(rig.results("op_1").await.outcome, Outcome::Hit, "the status is not known yet");
    rig.status("op_1").await;
    assert_eq!(rig.results("op_1").await.outcome, Outcome::Miss);
    tokio::time::advance(47 * 3600 * S).await;
    assert_eq!((rig.results("op_1").await.outcome, rig.calls(Operation::JobResults)), (Outcome::Hit, 2));
    tokio::time::advance(2 * 3600 * S).await;
    assert_eq!(rig.results("op_1").await.outcome, Outcome::Miss);
}

#[tokio::test(start_paused = true)]
async fn expired_results_remove_all_stored_responses_of_the_job() {
    for (status, told) in [(404, "results"), (410, "results"), (404, "status")] {
        let gone = Arc::new(Mutex::new(false));
        let is_gone = Arc::clone(&gone);
        let mut completed = twilio(|_, _| "COMPLETED");
        let rig = Rig::new(move |call: &UpstreamCall| match *is_gone.lock().unwrap() {
            true => (status, None, "{}".to_owned()),
            false => completed(call),
        });
        rig.status("op_1").await;
        rig.results("op_1").await;
        assert_eq!(rig.results("op_1").await.outcome, Outcome::Hit);
        *gone.lock().unwrap() = true;
        tokio::time::advance(10 * S).await;
        if told == "results" {
            // Ask for another page, which is not stored.
            let other =
                rig.jobs.about(&rig.query(Operation::JobResults, "op_1"), Operation::JobResults, "op_1", "pageToken=b");
            assert_eq!(rig.ask(other).await.unwrap().representation().status, status);
            assert_eq!(rig.status("op_1").await.representation().status, status, "it is asked for again");
        } else {
            let status = rig.ask(forced(rig.query(Operation::JobStatus, "op_1"))).await.unwrap();
            assert_eq!(status.representation().status, 404);
        }
        assert_eq!(rig.results("op_1").await.representation().status, status, "{status} {told}");
    }
}

fn asynchronous(rig: &Rig, parameters: &str) -> ClientQuery {
    let query = ClientQuery::example(Operation::Query, parameters, ASK);
    let (received, deadline) = (rig.clock.now(), rig.clock.now() + LIFETIMES.deadline);
    let directives = RequestDirectives { respond_async: true, ..RequestDirectives::default() };
    let base = Some(Arc::new(Base::of_url(&http::Uri::from_static("http://gw:8080"))));
    ClientQuery { received, deadline, directives, base, ..query }
}

fn applied(response: &CacheResponse) -> bool {
    response.headers.iter().any(|(name, value)| name == "preference-applied" && value == "respond-async")
}

/// Jobs that take `takes` seconds. Queries take as long as every other request.
fn rig_of_jobs(takes: u64, query: Duration) -> Rig {
    let mut jobs = twilio(move |_, age| if age < takes { "RUNNING" } else { "COMPLETED" });
    Rig::with(LIFETIMES, query, move |call: &UpstreamCall| match call.endpoint.operation {
        Operation::Query => (200, None, r#"{"page":1}"#.to_owned()),
        _ => jobs(call),
    })
}

#[tokio::test(start_paused = true)]
async fn respond_async_makes_a_job_if_no_fresh_page_is_stored() {
    let rig = rig_of_jobs(20, Duration::ZERO);
    let accepted = rig.ask(asynchronous(&rig, "pageSize=3")).await.unwrap();
    assert_eq!((accepted.representation().status.as_u16(), wait(&accepted)), (202, Some(5)));
    assert!(applied(&accepted) && accepted.has_links);
    assert_eq!(rig.submit().await.outcome, Outcome::Hit, "it is a job like any other");
    let call = rig.upstream.calls.lock().unwrap()[0].clone();
    assert_eq!((&*call.parameters, &*call.body), ("", ASK.as_bytes()));
    // A fresh page is the answer.
    let plain = ClientQuery { directives: RequestDirectives::default(), ..asynchronous(&rig, "") };
    rig.ask(plain).await.unwrap();
    let page = rig.ask(asynchronous(&rig, "")).await.unwrap();
    assert_eq!((page.outcome, applied(&page), page.has_links), (Outcome::Hit, false, false));
    // A team that may not use jobs waits for its query.
    let operations = [Permission::Query].into_iter().collect();
    let team = Arc::new(Team { operations, ..Team::example("a") });
    let page = rig.ask(ClientQuery { team, ..asynchronous(&rig, "pageSize=4") }).await.unwrap();
    assert_eq!((page.outcome, applied(&page)), (Outcome::Miss, false));
}

#[tokio::test(start_paused = true)]
async fn respond_async_submits_the_whole_query_without_its_page_size() {
    let rig = Rig::new(twilio(|_, _| "RUNNING"));
    let asked = |parameters: &str, body: &'static str| {
        let query = ClientQuery::example(Operation::Query, parameters, body);
        let (received, deadline) = (rig.clock.now(), rig.clock.now() + LIFETIMES.deadline);
        let directives = RequestDirectives { respond_async: true, ..RequestDirectives::default() };
        ClientQuery { received, deadline, directives, ..query }
    };
    rig.submit().await;
    for (parameters, body) in [("pageSize=3", ASK), ("", r#"{"pageSize":3,"query":{"measures":["C.Count"]}}"#)] {
        let accepted = rig.ask(asked(parameters, body)).await.unwrap();
        assert_eq!((accepted.outcome, rig.calls(Operation::JobSubmit)), (Outcome::Hit, 1), "{parameters} {body}");
    }
    rig.ask(asked("a=1&pageSize=3&z", ASK)).await.unwrap();
    let call = rig.upstream.calls.lock().unwrap().last().unwrap().clone();
    assert_eq!(
        (call.endpoint.operation, &*call.parameters, &call.body[..]),
        (Operation::JobSubmit, "a=1&z", ASK.as_bytes())
    );
    // A further page is not a query of its own.
    let mut page = asked("pageToken=x", ASK);
    let place = Some(*page.key());
    let canonical = Arc::get_mut(&mut page.canonical).unwrap();
    canonical.expected_as = place;
    rig.ask(page).await.unwrap();
    assert_eq!((rig.calls(Operation::Query), rig.calls(Operation::JobSubmit)), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn respond_async_with_a_wait_watches_the_job() {
    let rig = rig_of_jobs(8, Duration::ZERO);
    let begun = Instant::now();
    let results = rig.ask(waiting(asynchronous(&rig, "pageSize=3"), 30)).await.unwrap();
    assert_eq!((results.representation().status.as_u16(), body(&results)), (200, PAGE.to_owned()));
    assert_eq!((begun.elapsed().as_secs(), applied(&results)), (15, false));
    let (name, address) = &results.headers[0];
    let path = Operation::JobResults.endpoint().path_of("op_1");
    assert_eq!(
        (name, address.to_str().unwrap()),
        (&header::CONTENT_LOCATION, &*format!("http://gw:8080{path}?pageSize=3"))
    );
    let last = rig.upstream.calls.lock().unwrap().last().unwrap().clone();
    assert_eq!((last.endpoint.operation, &*last.parameters), (Operation::JobResults, "pageSize=3"));

    let rig = rig_of_jobs(60, Duration::ZERO);
    let begun = Instant::now();
    let accepted = rig.ask(waiting(asynchronous(&rig, ""), 7)).await.unwrap();
    assert_eq!((accepted.representation().status.as_u16(), begun.elapsed().as_secs()), (202, 7));
    assert!(applied(&accepted) && (8..=9).contains(&wait(&accepted).unwrap()), "{:?}", wait(&accepted));
}

#[tokio::test(start_paused = true)]
async fn respond_async_gives_out_no_job_that_it_has_just_found_lost() {
    for state in ["FAILED", "EXPIRED", "gone"] {
        let known = Mutex::new(twilio(move |id, _| if id == "op_1" { state } else { "COMPLETED" }));
        let rig = Rig::new(move |call: &UpstreamCall| match call.endpoint.id(&call.path) {
            Some("op_1") if state == "gone" => (404, None, "{}".to_owned()),
            _ => (known.lock().unwrap())(call),
        });
        rig.submit().await;
        let results = rig.ask(waiting(asynchronous(&rig, ""), 20)).await.unwrap();
        assert_eq!((results.representation().status.as_u16(), body(&results)), (200, PAGE.to_owned()), "{state}");
        assert_eq!(rig.calls(Operation::JobSubmit), 2, "{state}");
    }
    // A query that fails each time costs two jobs, and the status of the second says why.
    let rig = Rig::new(twilio(|_, _| "FAILED"));
    let accepted = rig.ask(waiting(asynchronous(&rig, ""), 60)).await.unwrap();
    assert_eq!((body(&accepted), rig.calls(Operation::JobSubmit)), (job("op_2", "PENDING"), 2));
    // Also without any time left.
    let rig = Rig::new(twilio(|id, _| if id == "op_1" { "FAILED" } else { "RUNNING" }));
    let accepted = rig.ask(waiting(asynchronous(&rig, ""), 6)).await.unwrap();
    assert_eq!((body(&accepted), rig.calls(Operation::JobSubmit)), (job("op_2", "PENDING"), 2));
}

#[tokio::test(start_paused = true)]
async fn respond_async_with_a_wait_joins_a_call_that_runs() {
    let rig = rig_of_jobs(60, 4 * S);
    let plain = || ClientQuery { directives: RequestDirectives::default(), ..asynchronous(&rig, "") };
    let (first, joined) = tokio::join!(rig.ask(plain()), async {
        tokio::task::yield_now().await;
        rig.ask(waiting(asynchronous(&rig, ""), 10)).await.unwrap()
    });
    assert_eq!(
        (first.unwrap().outcome, joined.outcome, body(&joined)),
        (Outcome::Miss, Outcome::Collapsed, r#"{"page":1}"#.to_owned())
    );
    assert_eq!(rig.calls(Operation::JobSubmit), 0);
    tokio::time::advance(61 * S).await;
    let (first, late) = tokio::join!(rig.ask(plain()), async {
        tokio::task::yield_now().await;
        rig.ask(waiting(asynchronous(&rig, ""), 2)).await.unwrap()
    });
    assert_eq!((first.unwrap().outcome, late.representation().status.as_u16()), (Outcome::Miss, 202));
    assert!(applied(&late) && rig.calls(Operation::Query) == 2);
}

#[tokio::test(start_paused = true)]
async fn a_job_belongs_to_the_policy_under_which_it_was_given_out() {
    let mut jobs = twilio(|_, _| "COMPLETED");
    let rig = Rig::new(move |call: &UpstreamCall| match call.endpoint.operation {
        Operation::JobList => {
            let list = format!(
                r#"{{"items":[{},{}],"meta":{{"pageSize":2,"nextToken":"next"}}}}"#,
                job("op_1", "RUNNING"),
                job("op_2", "RUNNING")
            );
            (200, None, list)
        }
        _ => jobs(call),
    });
    let token = |operation: Operation, token: &str| {
        rig.jobs.about(&rig.query(operation, "op_1"), operation, "op_1", &format!("pageToken={token}"))
    };
    rig.submit().await;
    let about = |operation| rig.query(operation, "op_1");
    for operation in [Operation::JobStatus, Operation::JobResults] {
        let refused = rig.ask(with_policy(about(operation), "C.A")).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::FieldNotAllowed);
        assert!(rig.ask(about(operation)).await.is_ok(), "without a policy all jobs of the account are visible");
    }
    assert_eq!(body(&rig.ask(with_policy(about(Operation::JobList), "C.A")).await.unwrap()).matches("op_").count(), 0);
    // A team that submits the same query shares the job, and from then on the job belongs to its policy too.
    assert_eq!(rig.ask(with_policy(rig.submission(), "C.A")).await.unwrap().outcome, Outcome::Hit);
    for operation in [Operation::JobStatus, Operation::JobResults] {
        assert!(rig.ask(with_policy(about(operation), "C.A")).await.is_ok());
        assert!(rig.ask(with_policy(about(operation), "C.B")).await.is_err(), "of another policy");
    }
    let list = body(&rig.ask(with_policy(about(Operation::JobList), "C.A")).await.unwrap());
    assert_eq!(list, format!(r#"{{"items":[{}],"meta":{{"pageSize":1,"nextToken":"next"}}}}"#, job("op_1", "RUNNING")));
    assert!(rig.ask(with_policy(token(Operation::JobList, "next"), "C.A")).await.is_ok());
    for (operation, name, deny) in [
        (Operation::JobList, "next", "C.B"),
        (Operation::JobList, "other", "C.A"),
        (Operation::JobResults, "next", "C.A"),
    ] {
        assert!(rig.ask(with_policy(token(operation, name), deny)).await.is_err(), "{operation:?} {name} {deny}");
    }
}
