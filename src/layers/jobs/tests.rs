use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderValue, StatusCode, header};
use tokio::time::Instant;
use tower::{Layer, ServiceExt};

use super::layer::Shared;
use super::submissions::only;
use super::*;
use crate::accounts::Team;
use crate::cache::known_jobs::KnownJob;
use crate::cache::{Purge, Store, UnstoredResponse};
use crate::core::clock::Clock;
use crate::core::draining::Draining;
use crate::core::error::Reason;
use crate::core::outcome::Outcome;
use crate::layers::cache::{self, CacheLayer, Caching, JobLifetimes};
use crate::metrics::Metrics;
use crate::request::call::{UpstreamCall, UpstreamResponse};
use crate::request::key::Key;
use crate::semantics::freshness::Lifetimes;
use crate::semantics::request_directives::{CacheDirectives, RequestDirectives};
use crate::twilio::endpoint::IDEMPOTENCY_KEY;
use crate::twilio::links::Base;
use crate::twilio::page;
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

/// The answer to the submission of a job, as its status.
fn accepted(id: &str) -> String {
    format!(r#"{{"operationId":"{id}","status":"PENDING","completedAt":null}}"#)
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
    draining: Draining,
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
        let upstream = Twilio { script: Arc::new(Mutex::new(Box::new(script))), calls: Arc::default(), takes };
        Self::over(Store::new(1 << 20, &Metrics::new()), policy, upstream)
    }

    /// What this store has is answered without this Twilio.
    fn over(store: Store, policy: cache::Policy, upstream: Twilio) -> Self {
        let (metrics, clock) = (Metrics::new(), Clock::simulated());
        let settings = Settings { dedup: policy.jobs.dedup, deadline: policy.deadline };
        let draining = Draining::default();
        let layer = JobsLayer::new(store.clone(), JobOwners::default(), settings, draining.clone(), clock);
        let cache = CacheLayer::new(store.clone(), policy, metrics, clock).layer(upstream.clone());
        Self { jobs: layer.layer(cache), upstream, store, draining, clock }
    }

    /// The cache in front of a Twilio that takes this long.
    fn slow(&self, takes: Duration) -> Caching<Twilio> {
        let upstream = Twilio { takes, ..self.upstream.clone() };
        CacheLayer::new(self.store.clone(), LIFETIMES, Metrics::new(), self.clock).layer(upstream)
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

    /// The keys of the submissions that were sent.
    fn keys(&self) -> Vec<HeaderValue> {
        let calls = self.upstream.calls.lock().unwrap();
        let submissions = calls.iter().filter(|call| call.endpoint.operation == Operation::JobSubmit);
        submissions.map(|call| call.headers.as_ref().unwrap()[IDEMPOTENCY_KEY].clone()).collect()
    }

    fn calls(&self, operation: Operation) -> usize {
        self.upstream.calls.lock().unwrap().iter().filter(|call| call.endpoint.operation == operation).count()
    }
}

mod known_tests;
mod note_tests;
mod policy_tests;
mod poll_tests;
mod respond_async_tests;
mod results_tests;
mod shared_tests;
mod submission_tests;

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
