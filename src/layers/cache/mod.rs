//! Answers hits, and sends each miss upstream once, however many clients ask.
//!
//! `semantics::freshness` decides what may be served. This layer looks up, asks it, and acts on the decision: it
//! serves, refreshes in the background, lets identical queries share one flight, stores what may be stored, and serves
//! a stale response within its window when the upstream fails. It never marks an old response fresh, never replaces a
//! usable response with an error, and stores nothing of a failed call.
//!
//! It knows neither HTTP nor the form in which a client gets a response: bodies are canonical and keys are computed
//! above it, and `layers::represent` chooses the form. `crate::cache` stores.

mod fill;
mod jobs;
mod refresh_backoff;
mod writes;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::future::{BoxFuture, Either, Ready, ready};
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use memchr::memmem;
use serde::Deserialize;
use tower::{Layer, Service, ServiceExt};
use tracing::Instrument;

use self::fill::Purpose;
pub use self::jobs::JobLifetimes;
use self::refresh_backoff::RefreshBackoff;
use crate::accounts::PerAccount;
use crate::cache::entry::Entry;
use crate::cache::flight::{Claim, FlightResult, Flown, Joined, Kind, Lease};
use crate::cache::response::{Content, Source};
use crate::cache::sets::{Membership, ResultSet};
use crate::cache::stored::StoredResponse;
use crate::cache::{CacheResponse, Store, Unkept};
use crate::core::clock::{Clock, Instant, Moment};
use crate::core::error::{GatewayError, Reason};
use crate::core::outcome::Outcome;
use crate::metrics::{Metrics, SettledLabels, StaticLabel};
use crate::request::call::{UpstreamCall, UpstreamResponse};
use crate::request::key::Key;
use crate::request::query::ClientQuery;
use crate::request::response::Representation;
use crate::request::waiters::Waiters;
use crate::semantics::cache_control::{self, Storage};
use crate::semantics::cache_status::{Forward, KeyParam};
use crate::semantics::freshness::{Decision, Lifetimes, decide};
use crate::semantics::request_directives::CacheDirectives;
use crate::twilio::endpoint::{Body, CacheClass, Operation, Permission};
use crate::twilio::parameters::Parameters;
use crate::twilio::settled::{self, Verdict};

/// How long each kind of response is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Metadata.
    pub metadata: Lifetimes,
    /// Queries and their pages.
    pub query: Lifetimes,
    /// Queries whose data no longer changes.
    pub settled: Lifetimes,
    /// How long ago such a query's time range must have closed.
    pub settled_after: Duration,
    /// Query jobs.
    pub jobs: JobLifetimes,
    /// Twilio's 400s and 404s; zero means never.
    pub errors: Duration,
    /// How long a shared call or a refresh may take, with waits and retries. A client's own deadline ends only that
    /// client's wait.
    pub deadline: Duration,
    /// A refresh is delayed by a random time up to this, so that responses that were stored at the same time are not
    /// all refreshed at the same time.
    pub refresh_jitter: Duration,
    /// Whether queries are kept as text too, for operators to read. The text can name people, and takes memory.
    pub keep_queries: bool,
}

/// Makes [`Caching`] services, which share one store.
#[derive(Debug, Clone)]
pub struct CacheLayer {
    store: Store,
    refreshes: RefreshBackoff,
    policy: Policy,
    /// For each account all names under which its data may be stored.
    same_data: PerAccount<Arc<[Arc<str>]>>,
    metrics: Arc<Metrics>,
    clock: Clock,
}

impl CacheLayer {
    /// Keeps responses in `store` for as long as `policy` says. `same_data` has for each account the names of all
    /// accounts with the same SID.
    pub fn new(
        store: Store,
        policy: Policy,
        same_data: PerAccount<Arc<[Arc<str>]>>,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Self {
        Self { store, refreshes: RefreshBackoff::default(), policy, same_data, metrics, clock }
    }
}

impl<S> Layer<S> for CacheLayer {
    type Service = Caching<S>;

    fn layer(&self, inner: S) -> Caching<S> {
        Caching { inner: Arc::new(inner), layer: Arc::new(self.clone()) }
    }
}

/// The cache in front of `S`. See the module.
#[derive(Debug)]
pub struct Caching<S> {
    // Shared, because a hit clones this service and does not use it.
    inner: Arc<S>,
    layer: Arc<CacheLayer>,
}

impl<S> Clone for Caching<S> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), layer: Arc::clone(&self.layer) }
    }
}

type Answered = Result<CacheResponse, GatewayError>;

impl<S> Service<ClientQuery> for Caching<S>
where
    S: Service<UpstreamCall, Response = UpstreamResponse, Error = GatewayError> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    type Response = CacheResponse;
    type Error = GatewayError;
    /// A hit is ready at once and allocates nothing here.
    type Future = Either<Ready<Answered>, BoxFuture<'static, Answered>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), GatewayError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, query: ClientQuery) -> Self::Future {
        let is_kept = query.endpoint.cache != CacheClass::None && !query.directives.cache.no_store;
        if !is_kept && !query.directives.cache.only_if_cached {
            let span = query.context.span();
            let bypass = bypass(S::clone(&self.inner), query, Arc::clone(&self.layer));
            return Either::Right(Box::pin(bypass.instrument(span)));
        }
        let entry = self.layer.page(&query);
        if entry.is_none()
            && let Some(loading) = self.layer.store.load(&query.team.account, query.key(), self.layer.clock.now())
        {
            // A short wait costs less than a token for a response that a tier already has.
            let cache = self.clone();
            return Either::Right(Box::pin(async move {
                loading.await;
                let entry = cache.layer.page(&query);
                let is_shared = entry.as_ref().is_some_and(|entry| entry.by_another);
                cache.answer(query, entry, is_shared).await
            }));
        }
        self.answer(query, entry, false)
    }
}

impl<S> Caching<S>
where
    S: Service<UpstreamCall, Response = UpstreamResponse, Error = GatewayError> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    /// Answers with `entry` if it may be served, and fetches otherwise. `is_shared`: this query has brought it from the
    /// store that replicas share.
    fn answer(
        &self,
        query: ClientQuery,
        entry: Option<Arc<Entry>>,
        is_shared: bool,
    ) -> Either<Ready<Answered>, BoxFuture<'static, Answered>> {
        let now = self.layer.clock.moment();
        let decision =
            decide(entry.as_ref().map(|e| (&e.stored.lifetimes, e.stored.age(now))), &query.directives.cache);
        match (decision, entry) {
            (Decision::Serve, Some(entry)) => {
                let is_fresh = entry.stored.age(now) <= entry.stored.lifetimes.fresh;
                let outcome = (is_shared && is_fresh).then_some(Outcome::Shared);
                Either::Left(ready(Ok(serve(entry, outcome, now))))
            }
            (Decision::ServeAndRefresh, Some(entry)) => {
                if entry.stored.is_refreshable() {
                    self.refresh(query, entry.asked);
                }
                Either::Left(ready(Ok(serve(entry, None, now))))
            }
            (Decision::Refuse, _) => Either::Left(ready(Err(GatewayError::new(
                Reason::OnlyIfCached,
                "nothing is cached that this request accepts, and it forbids asking Twilio",
            )))),
            (_, entry) => Either::Right(Box::pin(self.clone().fetch(query, entry))),
        }
    }

    /// Starts a refresh in the background of a response that was requested at `of`.
    fn refresh(&self, query: ClientQuery, of: Instant) {
        let (key, begun) = (*query.key(), self.layer.clock.now());
        if !self.layer.refreshes.allows(&key, of, begun) {
            return;
        }
        let delay = self.layer.policy.refresh_jitter.mul_f64(fastrand::f64());
        let set =
            self.layer.membership(cached_as(query.endpoint.operation, query.key(), &place(&query)), &place(&query));
        let flown = Flown::of(&query, set.result_set());
        let Some((lease, waiters)) = self.layer.store.flights.claim_refresh((key, Kind::Any), flown) else { return };
        let call =
            query.upstream_call(waiters, begun + self.layer.policy.deadline, Arc::new(query.context.of_refresh()));
        let purpose = Purpose { kind: Kind::Any, received: begun, directives: CacheDirectives::default() };
        let (flight, layer) = (self.flight(call, place(&query), set, lease, purpose, delay), Arc::clone(&self.layer));
        tokio::spawn(async move {
            flight.await;
            let is_fresh = |entry: &Entry| entry.stored.age(layer.clock.moment()) <= entry.stored.lifetimes.fresh;
            match layer.store.page(&key) {
                // One that another replica brought has no time here at which it arrived.
                Some(entry) if entry.finished <= begun && !is_fresh(&entry) => {
                    layer.refreshes.failed(&key, entry.asked, entry.stored.lifetimes.fresh, layer.clock.now());
                }
                _ => layer.refreshes.succeeded(&key),
            }
        });
    }

    /// Calls upstream, together with all other clients that ask the same.
    async fn fetch(self, mut query: ClientQuery, entry: Option<Arc<Entry>>) -> Answered {
        let asked = self.layer.clock.moment();
        let why = match &entry {
            None => Forward::UriMiss,
            Some(entry) if entry.stored.age(asked) > entry.stored.lifetimes.usable() => Forward::UriMiss,
            Some(entry) if entry.stored.age(asked) > entry.stored.lifetimes.fresh => Forward::Stale,
            Some(_) => Forward::Request,
        };
        loop {
            let forced = query.directives.cache.no_cache;
            // Each of these makes a new job, so none is the answer to another.
            let is_alone = forced && query.endpoint.cache == CacheClass::Job;
            // The entry arrived after this query was received. For a forced refresh it must also have been requested
            // after that.
            let recent =
                |entry: &Arc<Entry>| !is_alone && if forced { entry.asked } else { entry.finished } > query.received;
            let arrived_meanwhile = || self.layer.page(&query).filter(recent);
            let set =
                self.layer.membership(cached_as(query.endpoint.operation, query.key(), &place(&query)), &place(&query));
            // A flight that began earlier does not satisfy a client that demands a new response.
            let kind = match forced {
                _ if is_alone => Kind::Own(fastrand::u64(..)),
                true => Kind::Forced,
                false => Kind::Any,
            };
            let (mut joined, leads) =
                match self.layer.store.flights.claim(&query, kind, set.result_set(), arrived_meanwhile) {
                    Claim::Leader(lease, waiters, joined) => {
                        // Not the leader's deadline: other clients may have more time.
                        let deadline = self.layer.clock.now() + self.layer.policy.deadline;
                        let call = query.upstream_call(waiters, deadline, Arc::clone(&query.context));
                        let purpose = Purpose { kind, received: query.received, directives: query.directives.cache };
                        tokio::spawn(self.flight(call, place(&query), set, lease, purpose, Duration::ZERO));
                        (joined, true)
                    }
                    Claim::Wait(joined) => (joined, false),
                    Claim::Arrived(arrived) => {
                        return Ok(serve(arrived, Some(Outcome::Collapsed), self.layer.clock.moment()));
                    }
                };
            // Equal keys have equal bodies, so all who wait share one.
            query.canonical = Arc::clone(&joined.canonical);
            let now = self.layer.clock.now();
            if let Some(estimated_start) =
                joined.estimated_start().filter(|estimated_start| !leads && *estimated_start > query.deadline)
            {
                // The flight may wait longer than this client does.
                return self.or_stale(Err(GatewayError::too_late(estimated_start - now)), &query);
            }
            match wait(&mut joined, query.deadline).await {
                // Another attempt would end in the same way.
                Waited::Lost if leads => {
                    let message = "the gateway failed while it fetched this; tell its operator";
                    return Err(GatewayError::new(Reason::Internal, message));
                }
                // It was cancelled or panicked. This client claims the key again.
                Waited::Lost => {}
                Waited::TooLong => {
                    let now = self.layer.clock.now();
                    let unanswered = || {
                        let message = "Twilio did not answer before this request's deadline";
                        GatewayError::new(Reason::UpstreamTimeout, message)
                    };
                    let still_waits = |estimated_start: Instant| {
                        GatewayError::too_late(estimated_start.saturating_duration_since(now))
                    };
                    let error = joined.estimated_start().map_or_else(unanswered, still_waits);
                    return self.or_stale(Err(error), &query);
                }
                Waited::FlightResult(finished) => {
                    let now = self.layer.clock.now();
                    // It was not sent, because its clients had left or had no time left. This client has time.
                    let was_not_sent = |error: &GatewayError| {
                        let has_time = now + error.retry_after().unwrap_or_default() < query.deadline;
                        error.is_abandoned() || (error.reason() == Reason::Deadline && has_time)
                    };
                    if !leads && finished.result.as_ref().is_err_and(was_not_sent) {
                        continue;
                    }
                    let collapsed = !leads || finished.by_another;
                    let outcome = if collapsed { Outcome::Collapsed } else { Outcome::Miss };
                    let response = finished.result.map(|page| {
                        let content = Content::Forwarded(page, KeyParam::new(&query.key().short()));
                        let source = Source::Forwarded { why, stored: finished.stored, collapsed };
                        CacheResponse::new(content, source, outcome, finished.age)
                    });
                    return self.or_stale(response, &query);
                }
            }
        }
    }

    /// The response; or instead of an error a stale response within its window.
    fn or_stale(&self, answered: Answered, query: &ClientQuery) -> Answered {
        let failed = match &answered {
            Ok(response) => {
                let status = response.representation().status;
                status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error()
            }
            Err(error) => matches!(
                error.reason(),
                Reason::UpstreamUnreachable
                    | Reason::UpstreamInvalid
                    | Reason::UpstreamTimeout
                    | Reason::Deadline
                    | Reason::TeamRateLimit
                    | Reason::QueueFull
                    | Reason::CircuitOpen
            ),
        };
        // A client that asks for a new job does not want an earlier one.
        let failed = failed && !(query.endpoint.cache == CacheClass::Job && query.directives.cache.no_cache);
        let now = self.layer.clock.moment();
        let usable = |entry: &Arc<Entry>| {
            entry.stored.representation.status.is_success()
                && entry.stored.age(now) <= entry.stored.lifetimes.servable_on_error()
        };
        // The entry that was there when the call began may have been purged or replaced since.
        match failed.then(|| self.layer.page(query)).flatten().filter(usable) {
            Some(entry) => Ok(serve(entry, Some(Outcome::StaleError), now)),
            None => answered.map_err(|error| advised(error, query)),
        }
    }

    /// Runs the flight. It calls upstream after `delay`, or as soon as a client waits for it.
    fn flight(
        &self,
        mut call: UpstreamCall,
        place: Key,
        set: Membership,
        lease: Lease,
        purpose: Purpose,
        delay: Duration,
    ) -> impl Future<Output = ()> + Send + use<S> {
        let (inner, layer) = (S::clone(&self.inner), Arc::clone(&self.layer));
        // The flight's log lines have the id of the request that began it.
        let span = call.context.span();
        let flight = async move {
            if !delay.is_zero() {
                let begun = layer.clock.now();
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = call.waiters.wanted() => {}
                }
                call.deadline = layer.clock.now() + layer.policy.deadline;
                // A forced refresh has replaced the entry meanwhile.
                if let Some(entry) = layer.store.page(&call.key).filter(|entry| entry.finished > begun) {
                    return lease.finish(FlightResult::of(&entry, layer.clock.moment()));
                }
            }
            let for_all = match layer.lead_or_follow(&call, purpose, &set).await {
                ControlFlow::Continue(for_all) => for_all,
                ControlFlow::Break(finished) => return lease.finish(finished),
            };
            lease.calls(layer.clock.moment());
            let asked = Asked { at: layer.clock.now(), wall: layer.trusted_wall(None), place, set };
            // After the request has been sent, because that is more urgent.
            let judge = async { layer.judge(&call, asked.wall) };
            let (answered, settled, ()) =
                tokio::join!(biased; inner.oneshot(call.clone()), judge, layer.load_status(&call));
            layer.learn(&call, &answered, asked.at);
            let finished = match answered {
                Ok(answer) => layer.keep(&call, answer, settled, &asked, &lease),
                Err(error) => FlightResult::failed(error),
            };
            layer.remember_poll(&call, &finished);
            layer.remember_key(&call, &finished);
            if let Some(for_all) = for_all {
                for_all.finish(&finished);
            }
            lease.finish(finished);
        };
        flight.instrument(span)
    }
}

/// A stored response. Without `outcome` it is a hit, or stale if its age says so.
fn serve(entry: Arc<Entry>, outcome: Option<Outcome>, now: Moment) -> CacheResponse {
    let age = entry.stored.age(now);
    let is_fresh = age <= entry.stored.lifetimes.fresh;
    CacheResponse::stored(entry, outcome.unwrap_or(if is_fresh { Outcome::Hit } else { Outcome::Stale }), age)
}

/// What was known when the call began.
struct Asked {
    at: Instant,
    wall: SystemTime,
    /// The key that is the response's place in its result set.
    place: Key,
    set: Membership,
}

impl CacheLayer {
    /// What is known of the result set that has the place `place`.
    fn membership(&self, operation: Operation, place: &Key) -> Membership {
        match operation.endpoint().cache {
            CacheClass::Page => self.store.membership(place, self.clock.moment()),
            _ => Membership::Unknown,
        }
    }

    /// Makes a stored response of an upstream response, and stores it if that is allowed.
    fn keep(
        &self,
        call: &UpstreamCall,
        mut answer: UpstreamResponse,
        settled: Option<Verdict>,
        asked: &Asked,
        lease: &Lease,
    ) -> FlightResult {
        let (now, moment, wall) = (self.clock.now(), self.clock.moment(), self.clock.wall_now());
        let date = cache_control::date(&answer.headers);
        let age = self.initial_age(&answer.headers, asked.at);
        let operation = cached_as(call.endpoint.operation, &call.key, &asked.place);
        let class = operation.endpoint().cache;
        let storage = match class {
            // `Retry-After` and the configuration decide how long these are fresh.
            CacheClass::Job | CacheClass::Status => Storage::default(),
            _ => Storage { age: age.unwrap_or_default(), ..Storage::read(&answer.headers, wall) },
        };
        let of_job = match self.of_job(call, &answer, asked.at, lease) {
            Ok(of_job) => of_job,
            Err(error) => return FlightResult::failed(error),
        };
        cache_control::normalise(&mut answer.headers, wall);
        let next_token = answer.next_token.take().filter(|_| matches!(class, CacheClass::Query | CacheClass::Page));
        let page = Arc::new(Representation::new(answer, call.endpoint.returns));
        let age = age.map(rounded_up);
        let finished = |stored| FlightResult { result: Ok(Arc::clone(&page)), stored, age, by_another: false };
        let settled = settled.filter(|_| page.status == StatusCode::OK).map(|verdict| {
            let wall = self.trusted_wall(date);
            // The metadata may have arrived meanwhile.
            let again = verdict == Verdict::NoMetadata || !agree(wall, asked.wall);
            if again { self.judge(call, wall).unwrap_or(verdict) } else { verdict }
        });
        if let Some(verdict) = settled {
            self.metrics.cache_settled.get_or_create(&SettledLabels { reason: StaticLabel(verdict.as_str()) }).inc();
            tracing::debug!(key = %call.key.short(), settled = verdict.as_str(), "query page");
        }
        let set = self.membership(operation, &asked.place);
        let lifetimes = match (page.status, class) {
            (_, CacheClass::None) => None,
            _ if of_job.is_some() => of_job,
            (StatusCode::OK, CacheClass::Metadata) => Some(self.policy.metadata),
            (StatusCode::OK, CacheClass::Query) if settled == Some(Verdict::Settled) => Some(self.policy.settled),
            (StatusCode::OK, CacheClass::Query) => Some(self.policy.query),
            (StatusCode::OK, CacheClass::Page) => match set {
                // A page that was requested before the set began is older than the set's first page.
                _ if set != asked.set => None,
                Membership::Of(result_set) => result_set.lifetimes.after(moment.since(result_set.begun)),
                Membership::Lost => None,
                // The age of its first page is unknown, so it is not served stale.
                Membership::Unknown => Some(Lifetimes::fresh_only(self.policy.query.fresh)),
            },
            (StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND, _)
            | (StatusCode::GONE, CacheClass::Status | CacheClass::Results) => {
                Some(Lifetimes::fresh_only(self.policy.errors))
            }
            _ => None,
        };
        let named = |token: String| {
            let parameters = Parameters::of_page(&token);
            Key::of_page(&call.team.account, &parameters)
        };
        let next = next_token.map(named);
        let narrowed = lifetimes.and_then(|lifetimes| storage.narrow(lifetimes));
        let made = moment.before(storage.age);
        let Some(lifetimes) = narrowed.filter(|lifetimes| !lifetimes.usable().is_zero()) else {
            if class != CacheClass::None && page.status.is_success() {
                let unkept = Unkept {
                    account: Arc::clone(&call.team.account.name),
                    asked: asked.at,
                    made,
                    begins: (class == CacheClass::Query).then(|| self.unkept_set(call.key, made)),
                    next,
                    is_shared: true,
                };
                self.store.supersede(call.key, &unkept);
            }
            return finished(false);
        };
        let result_set = match class {
            CacheClass::Query if page.status.is_success() => Some(ResultSet::begin(call.key, made, lifetimes)),
            _ => set.result_set(),
        };
        let stored = StoredResponse {
            representation: Arc::clone(&page),
            account: Arc::clone(&call.team.account.name),
            operation,
            made,
            lifetimes,
            place: asked.place,
            result_set,
            next,
            settled,
        };
        let mut entry = Entry::new(&call.key, stored, asked.at, now, storage.age);
        entry.previous = result_set.and_then(|_| previous_token(&page.body)).map(named);
        entry.query = self.policy.keep_queries.then(|| text(call)).flatten();
        // A usable response is not replaced by an error or by a response that was requested earlier.
        let yields = |old: &Arc<Entry>| {
            let usable = old.stored.representation.status.is_success()
                && old.stored.age(moment) <= old.stored.lifetimes.usable();
            !usable || (page.status.is_success() && old.asked <= asked.at)
        };
        finished(self.store.insert(call.key, entry, lease, yields))
    }

    /// The set of a first page that is not kept. Its further pages may be kept, for as long as pages whose first page
    /// is unknown.
    fn unkept_set(&self, first: Key, made: Moment) -> ResultSet {
        ResultSet::begin(first, made, Lifetimes::fresh_only(self.policy.query.fresh))
    }

    /// How old a response is when it arrives, if it says so (RFC 9111 section 4.2.3): its `Age` plus the time that the
    /// call took, or the age by its own `Date` if that is greater. The date counts only if the wall clock has not been
    /// set since the start, and only if it is older than its rounding to seconds and the time of the call explain.
    fn initial_age(&self, headers: &HeaderMap, asked: Instant) -> Option<Duration> {
        const WHOLE_SECONDS: Duration = Duration::from_secs(1);
        let delay = self.clock.now().saturating_duration_since(asked);
        let corrected = cache_control::age(headers).map(|age| age + delay);
        let wall = self.clock.wall_now();
        let apparent = cache_control::date(headers)
            .filter(|_| agree(wall, self.clock.predicted_wall()))
            .and_then(|date| wall.duration_since(date).ok())
            .filter(|apparent| *apparent > delay + WHOLE_SECONDS);
        corrected.max(apparent)
    }

    /// The wall time for judging whether a query is settled: the earliest of the clock, its prediction from the start,
    /// and the response's own `Date`. A clock that was set, at any time, proves nothing.
    fn trusted_wall(&self, date: Option<SystemTime>) -> SystemTime {
        let now = self.clock.wall_now().min(self.clock.predicted_wall());
        date.map_or(now, |date| date.min(now))
    }

    /// Whether the data of a query no longer changes. This can be judged before the response arrives, because a settled
    /// query stays settled.
    fn judge(&self, call: &UpstreamCall, wall: SystemTime) -> Option<Verdict> {
        if call.endpoint.cache != CacheClass::Query {
            return None;
        }
        let now = self.clock.moment();
        let metadata = self.store.page(&Key::of_metadata(&call.team.account));
        let metadata = metadata.filter(|entry| entry.stored.age(now) <= entry.stored.lifetimes.usable());
        let dimensions = metadata.as_ref().and_then(|entry| entry.time_dimensions.as_ref());
        Some(match Timestamp::try_from(wall) {
            Ok(now) => settled::judge(&call.body, dimensions, self.policy.settled_after, now),
            Err(_) => Verdict::Recent,
        })
    }
}

/// Whether two readings of the wall clock differ by less than a request takes, so that one verdict holds for both.
fn agree(one: SystemTime, other: SystemTime) -> bool {
    const MARGIN: Duration = Duration::from_secs(60);
    one.duration_since(other).unwrap_or_else(|behind| behind.duration()) <= MARGIN
}

/// The key that is the query's place in its result set: for a page, the key of its token alone.
fn place(query: &ClientQuery) -> Key {
    query.canonical.expected_as.unwrap_or(query.canonical.key)
}

/// The operation whose cache rules apply. A query with a page token has the rules of a further page.
fn cached_as(operation: Operation, key: &Key, place: &Key) -> Operation {
    if place == key { operation } else { Operation::Page }
}

/// An age in whole seconds for `Age`. It is rounded up, so that no response seems younger than it is.
fn rounded_up(age: Duration) -> Duration {
    Duration::from_secs(age.as_secs() + u64::from(age.subsec_nanos() > 0))
}

/// The token of the page before this one, if the body has one.
fn previous_token(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Body {
        meta: Meta,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Meta {
        previous_token: Option<String>,
    }
    // First pages have none, and need not be parsed.
    memmem::find(body, b"previousToken")?;
    serde_json::from_slice::<Body>(body).ok()?.meta.previous_token.filter(|token| !token.is_empty())
}

/// The content of a call as text: its body, or the parameters of a page. `None` for plain metadata.
fn text(call: &UpstreamCall) -> Option<Arc<str>> {
    let text = match call.endpoint.body {
        // Canonical bytes are UTF-8: nothing is lost.
        Body::Query => String::from_utf8_lossy(&call.body).into(),
        _ => Arc::clone(&call.parameters),
    };
    Some(text).filter(|text| !text.is_empty())
}

/// The error as this client gets it. A query that took too long could be a job, if the client may submit one: the call
/// may be shared with teams that may not.
fn advised(error: GatewayError, query: &ClientQuery) -> GatewayError {
    let could_be_a_job = error.reason() == Reason::UpstreamTimeout
        && query.endpoint.operation == Operation::Query
        && query.team.operations.allows(Permission::Jobs);
    match could_be_a_job {
        true => {
            error.with_advice("; ask with `Prefer: respond-async`, or submit it as a query job, and do not wait for it")
        }
        false => error,
    }
}

enum Waited {
    FlightResult(FlightResult),
    Lost,
    TooLong,
}

/// Waits for a flight until this client's deadline. The flight goes on after that.
async fn wait(joined: &mut Joined, deadline: Instant) -> Waited {
    tokio::select! {
        biased;
        finished = joined.finished() => finished.map_or(Waited::Lost, Waited::FlightResult),
        () = tokio::time::sleep_until(deadline) => Waited::TooLong,
    }
}

/// Calls upstream for one client only, and stores nothing. Stored responses that this response contradicts are removed.
async fn bypass<S>(inner: S, query: ClientQuery, layer: Arc<CacheLayer>) -> Answered
where
    S: Service<UpstreamCall, Response = UpstreamResponse, Error = GatewayError> + Send + 'static,
    S::Future: Send,
{
    let waiters = Waiters::of_clients();
    let _waiter = waiters.join(&query.team, query.directives.urgency);
    let key = KeyParam::new(&query.key().short());
    let begins_a_set =
        cached_as(query.endpoint.operation, query.key(), &place(&query)).endpoint().cache == CacheClass::Query;
    let asked = layer.clock.now();
    let call = query.upstream_call(waiters, query.deadline, Arc::clone(&query.context));
    let answered = match call.endpoint.operation {
        Operation::FieldsWrite => writes::send(inner, call.clone(), Arc::clone(&layer)).await,
        _ => inner.oneshot(call.clone()).await,
    };
    layer.learn(&call, &answered, asked);
    let mut answer = answered.map_err(|error| advised(error, &query))?;
    let age = layer.initial_age(&answer.headers, asked);
    let made = layer.clock.moment().before(age.unwrap_or_default());
    if answer.status.is_success()
        && begins_a_set
        && let Some(token) = answer.next_token.take()
    {
        let next = Some(Key::of_page(&call.team.account, &Parameters::of_page(&token)));
        let account = Arc::clone(&call.team.account.name);
        let unkept =
            Unkept { account, asked, made, begins: Some(layer.unkept_set(call.key, made)), next, is_shared: false };
        layer.store.supersede(call.key, &unkept);
    }
    cache_control::normalise(&mut answer.headers, layer.clock.wall_now());
    let content = Content::Forwarded(Arc::new(Representation::new(answer, call.endpoint.returns)), key);
    let source = Source::Forwarded { why: Forward::Bypass, stored: false, collapsed: false };
    Ok(CacheResponse::new(content, source, Outcome::Bypass, age.map(rounded_up)))
}

#[cfg(test)]
mod tests;
