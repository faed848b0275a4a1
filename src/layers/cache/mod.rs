//! Hits end here. The rest goes upstream once, however many ask.
//!
//! What may be served is decided by `semantics::freshness`; this room looks up, asks, and does what it says:
//! serves, refreshes behind an answer, lets identical calls share one flight, keeps what may be kept, and
//! falls back to a stale page within its window when the upstream fails. It never marks an old page fresh,
//! never keeps an error over a usable page, and keeps nothing of a failure.
//!
//! It does not know HTTP: bodies are canonical and keys computed above.

mod refresh_backoff;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::future::{BoxFuture, Either, Ready, ready};
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use memchr::memmem;
use serde::Deserialize;
use tower::{Layer, Service, ServiceExt};

use self::refresh_backoff::RefreshBackoff;
use crate::cache::entry::{Compression, Entry};
use crate::cache::flight::{Claim, FlightResult, Flown, Joined, Kind, Lease};
use crate::cache::sets::{Membership, ResultSet};
use crate::cache::{Store, Unkept};
use crate::core::clock::{Clock, Instant, Moment};
use crate::core::error::{GatewayError, Reason};
use crate::core::outcome::Outcome;
use crate::metrics::{Metrics, SettledLabels, StaticLabel};
use crate::request::call::{UpstreamCall, UpstreamResponse};
use crate::request::key::Key;
use crate::request::query::ClientQuery;
use crate::request::response::{ClientResponse, StoredResponse};
use crate::request::waiters::Waiters;
use crate::semantics::cache_control::{self, Storage};
use crate::semantics::cache_status::{self, Forward, KeyParam};
use crate::semantics::freshness::{Decision, Lifetimes, decide};
use crate::twilio::endpoint::{Body, CacheClass, Operation};
use crate::twilio::parameters::Parameters;
use crate::twilio::settled::{self, TimeDimensions, Verdict};

/// For how long what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Metadata.
    pub metadata: Lifetimes,
    /// Queries and their pages.
    pub query: Lifetimes,
    /// Queries whose answers have stopped changing.
    pub settled: Lifetimes,
    /// How long ago such a query's range must have closed.
    pub settled_after: Duration,
    /// Twilio's 400s and 404s; zero is never.
    pub errors: Duration,
    /// How long a call that clients share, or a refresh, may take, waits and retries included. A client's own deadline
    /// only ends its own wait.
    pub deadline: Duration,
    /// A refresh begins up to so much later than it could, lest pages that were written together be asked for
    /// together.
    pub refresh_jitter: Duration,
    /// Are queries kept as text too, for people to read. It can name people, and takes memory.
    pub keep_queries: bool,
}

/// Makes [`Caching`] services, which share one store.
#[derive(Debug, Clone)]
pub struct CacheLayer {
    store: Store,
    refreshes: RefreshBackoff,
    policy: Policy,
    metrics: Arc<Metrics>,
    clock: Clock,
}

impl CacheLayer {
    /// Keeps pages in `store` as `policy` has it.
    pub fn new(store: Store, policy: Policy, metrics: Arc<Metrics>, clock: Clock) -> Self {
        Self { store, refreshes: RefreshBackoff::default(), policy, metrics, clock }
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
    // Shared, since a hit clones this and needs nothing of it.
    inner: Arc<S>,
    layer: Arc<CacheLayer>,
}

impl<S> Clone for Caching<S> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), layer: Arc::clone(&self.layer) }
    }
}

type Answered = Result<ClientResponse, GatewayError>;

impl<S> Service<ClientQuery> for Caching<S>
where
    S: Service<UpstreamCall, Response = UpstreamResponse, Error = GatewayError> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    type Response = ClientResponse;
    type Error = GatewayError;
    /// A hit is ready at once and allocates nothing here.
    type Future = Either<Ready<Answered>, BoxFuture<'static, Answered>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), GatewayError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, query: ClientQuery) -> Self::Future {
        if query.directives.cache.no_store && !query.directives.cache.only_if_cached {
            return Either::Right(Box::pin(bypass(S::clone(&self.inner), query, Arc::clone(&self.layer))));
        }
        let now = self.layer.clock.moment();
        let entry = self.layer.store.page(query.key());
        if entry.is_none()
            && let Some(loading) = self.layer.store.loading(self.layer.clock.now())
        {
            // Rather a moment's patience than a token for a page that is on the disk.
            let mut cache = self.clone();
            return Either::Right(Box::pin(async move {
                loading.await;
                cache.call(query).await
            }));
        }
        let decision = decide(entry.as_ref().map(|e| (&e.lifetimes, e.age(now))), &query.directives.cache);
        match (decision, entry) {
            (Decision::Serve, Some(entry)) => Either::Left(ready(Ok(self.serve(&entry, None, &query, now)))),
            (Decision::ServeAndRefresh, Some(entry)) => {
                let reply = self.serve(&entry, None, &query, now);
                if entry.is_refreshable() {
                    self.refresh(query, entry.asked);
                }
                Either::Left(ready(Ok(reply)))
            }
            (Decision::Refuse, _) => Either::Left(ready(Err(GatewayError::new(
                Reason::OnlyIfCached,
                "nothing is cached that this request accepts, and it forbids asking Twilio",
            )))),
            (_, entry) => Either::Right(Box::pin(self.clone().fetch(query, entry))),
        }
    }
}

impl<S> Caching<S>
where
    S: Service<UpstreamCall, Response = UpstreamResponse, Error = GatewayError> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    /// Lets one refresh run behind an answer, which was asked for at `of`.
    fn refresh(&self, query: ClientQuery, of: Instant) {
        let (key, begun) = (*query.key(), self.layer.clock.now());
        if !self.layer.refreshes.allows(&key, of, begun) {
            return;
        }
        let delay = self.layer.policy.refresh_jitter.mul_f64(fastrand::f64());
        let set = self.layer.membership(query.operation, &place(&query));
        let flown = Flown::of(&query, set.result_set());
        let Some((lease, waiters)) = self.layer.store.flights.claim_refresh((key, Kind::Any), flown) else { return };
        let call = query.upstream_call(waiters, begun + self.layer.policy.deadline, Arc::default());
        let (flight, layer) = (self.flight(call, place(&query), set, lease, delay), Arc::clone(&self.layer));
        tokio::spawn(async move {
            flight.await;
            match layer.store.page(&key) {
                Some(entry) if entry.finished <= begun => {
                    layer.refreshes.failed(&key, entry.asked, entry.lifetimes.fresh, layer.clock.now());
                }
                _ => layer.refreshes.succeeded(&key),
            }
        });
    }

    /// Asks upstream, together with everybody else who asks the same.
    async fn fetch(self, query: ClientQuery, entry: Option<Arc<Entry>>) -> Answered {
        let asked = self.layer.clock.moment();
        let why = match &entry {
            None => Forward::UriMiss,
            Some(entry) if entry.age(asked) > entry.lifetimes.usable() => Forward::UriMiss,
            Some(entry) if entry.age(asked) > entry.lifetimes.fresh => Forward::Stale,
            Some(_) => Forward::Request,
        };
        loop {
            let forced = query.directives.cache.no_cache;
            // FlightResult since this call looked; for a forced refresh it must have been asked for since, too.
            let recent = |entry: &Arc<Entry>| if forced { entry.asked } else { entry.finished } > query.received;
            let arrived_meanwhile = || self.layer.store.page(query.key()).filter(recent);
            let set = self.layer.membership(query.operation, &place(&query));
            // What was asked for before a forced refresh was wished for is not what it wishes for.
            let kind = if forced { Kind::Forced } else { Kind::Any };
            let (mut joined, leads) =
                match self.layer.store.flights.claim(&query, kind, set.result_set(), arrived_meanwhile) {
                    Claim::Leader(lease, waiters, joined) => {
                        // Its own deadline, whoever leads: others may have more time.
                        let deadline = self.layer.clock.now() + self.layer.policy.deadline;
                        let call = query.upstream_call(waiters, deadline, Arc::clone(&query.context));
                        tokio::spawn(self.flight(call, place(&query), set, lease, Duration::ZERO));
                        (joined, true)
                    }
                    Claim::Wait(joined) => (joined, false),
                    Claim::Arrived(arrived) => {
                        return Ok(self.serve(&arrived, Some(Outcome::Collapsed), &query, self.layer.clock.moment()));
                    }
                };
            let now = self.layer.clock.now();
            if let Some(estimated_start) =
                joined.estimated_start().filter(|estimated_start| !leads && *estimated_start > query.deadline)
            {
                // The flight may wait for longer than this client does.
                return self.or_stale(Err(GatewayError::too_late(estimated_start - now)), &query);
            }
            match wait(&mut joined, query.deadline).await {
                // It would be lost again.
                Waited::Lost if leads => {
                    let message = "the gateway failed while it fetched this; tell whoever operates it";
                    return Err(GatewayError::new(Reason::Internal, message));
                }
                // Who carried it is gone, and it was cancelled or died.
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
                    // It was not sent, since those who waited for it had left or had no time for its turn. This client has.
                    let was_not_sent = |error: &GatewayError| {
                        let has_time = now + error.retry_after().unwrap_or_default() < query.deadline;
                        error.is_abandoned() || (error.reason() == Reason::Deadline && has_time)
                    };
                    if !leads && finished.result.as_ref().is_err_and(was_not_sent) {
                        continue;
                    }
                    let collapsed = !leads;
                    let reply = finished.result.map(|page| {
                        let theirs = page.tag_of_client(&query.directives, None);
                        let not_modified = theirs.is_some();
                        let outcome = match (not_modified, collapsed) {
                            (true, _) => Outcome::Revalidated,
                            (false, true) => Outcome::Collapsed,
                            (false, false) => Outcome::Miss,
                        };
                        let status = page.status.as_u16();
                        let key = KeyParam::new(&query.key().short());
                        let cache_status =
                            cache_status::forwarded(why, status, finished.stored, collapsed, outcome, &key);
                        let etag = theirs.or_else(|| page.etag.clone());
                        ClientResponse {
                            page,
                            coded: None,
                            etag,
                            outcome,
                            cache_status,
                            age: finished.age,
                            not_modified,
                        }
                    });
                    return self.or_stale(reply, &query);
                }
            }
        }
    }

    /// A page from the store. Without `outcome` it is a hit, or stale if it is.
    fn serve(&self, entry: &Arc<Entry>, outcome: Option<Outcome>, query: &ClientQuery, now: Moment) -> ClientResponse {
        entry.count_hit();
        let (age, directives) = (entry.age(now), &query.directives);
        let coded = directives.gzip.then(|| entry.compression.coded()).flatten();
        let theirs = entry.page.tag_of_client(directives, coded);
        let not_modified = theirs.is_some();
        if directives.gzip && coded.is_none() && !not_modified {
            self.layer.store.compress(*query.key(), entry, self.layer.clock);
        }
        let outcome = match outcome {
            // That the upstream is failing is worth more than that the client has the page.
            Some(Outcome::StaleError) => Outcome::StaleError,
            _ if not_modified => Outcome::Revalidated,
            Some(outcome) => outcome,
            None if age <= entry.lifetimes.fresh => Outcome::Hit,
            None => Outcome::Stale,
        };
        let etag = theirs.or_else(|| coded.map_or_else(|| entry.page.etag.clone(), |coded| Some(coded.etag.clone())));
        ClientResponse {
            page: Arc::clone(&entry.page),
            coded: coded.map(|coded| coded.body.clone()),
            etag,
            outcome,
            cache_status: cache_status::hit(entry.lifetimes.ttl(age), outcome, &entry.key_param),
            age: Some(age),
            not_modified,
        }
    }

    /// The answer, or rather a stale page within its window than an error.
    fn or_stale(&self, answered: Answered, query: &ClientQuery) -> Answered {
        let failed = match &answered {
            Ok(reply) => reply.page.status == StatusCode::TOO_MANY_REQUESTS || reply.page.status.is_server_error(),
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
        let now = self.layer.clock.moment();
        let usable = |entry: &Arc<Entry>| {
            entry.page.status.is_success()
                && entry.age(now) <= entry.lifetimes.fresh.saturating_add(entry.lifetimes.stale_if_error)
        };
        // What was there when the call began may have been purged or replaced since.
        match failed.then(|| self.layer.store.page(query.key())).flatten().filter(usable) {
            Some(entry) => Ok(self.serve(&entry, Some(Outcome::StaleError), query, now)),
            None => answered,
        }
    }

    /// The flight, which takes off after `delay`, or when a client begins to wait for it.
    fn flight(
        &self,
        mut call: UpstreamCall,
        place: Key,
        set: Membership,
        lease: Lease,
        delay: Duration,
    ) -> impl Future<Output = ()> + Send + use<S> {
        let (inner, layer) = (S::clone(&self.inner), Arc::clone(&self.layer));
        async move {
            if !delay.is_zero() {
                let begun = layer.clock.now();
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = call.waiters.wanted() => {}
                }
                call.deadline = layer.clock.now() + layer.policy.deadline;
                // Somebody wanted it fetched anew meanwhile.
                if let Some(entry) = layer.store.page(&call.key).filter(|entry| entry.finished > begun) {
                    let age = Some(entry.age(layer.clock.moment()));
                    return lease.finish(FlightResult { result: Ok(Arc::clone(&entry.page)), stored: true, age });
                }
            }
            let asked = Asked { at: layer.clock.now(), wall: layer.trusted_wall(None), place, set };
            // Behind the request, which goes out first.
            let judge = async { layer.judge(&call, asked.wall) };
            let (answered, settled) = tokio::join!(biased; inner.oneshot(call.clone()), judge);
            let finished = match answered {
                Ok(answer) => layer.keep(&call, answer, settled, &asked, &lease),
                Err(error) => FlightResult { result: Err(error), stored: false, age: None },
            };
            lease.finish(finished);
        }
    }
}

/// What was known when a page was asked for.
struct Asked {
    at: Instant,
    wall: SystemTime,
    /// The key under which its result set expects it.
    place: Key,
    set: Membership,
}

impl CacheLayer {
    /// What is known of the result set that expects a response under `place`.
    fn membership(&self, operation: Operation, place: &Key) -> Membership {
        match operation.endpoint().cache {
            CacheClass::Page => self.store.membership(place, self.clock.moment()),
            _ => Membership::Unknown,
        }
    }

    /// Makes an answer a page, and keeps it if it may be kept.
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
        let storage = Storage { age: age.unwrap_or_default(), ..Storage::read(&answer.headers, wall) };
        cache_control::normalise(&mut answer.headers, wall);
        let next_token = answer.next_token.clone();
        let page = Arc::new(StoredResponse::new(answer));
        let finished = |stored| FlightResult { result: Ok(Arc::clone(&page)), stored, age: age.map(rounded_up) };
        let settled = settled.filter(|_| page.status == StatusCode::OK).map(|verdict| {
            let wall = self.trusted_wall(date);
            // The metadata may have come meanwhile.
            let again = verdict == Verdict::NoMetadata || !agree(wall, asked.wall);
            if again { self.judge(call, wall).unwrap_or(verdict) } else { verdict }
        });
        if let Some(verdict) = settled {
            self.metrics.cache_settled.get_or_create(&SettledLabels { reason: StaticLabel(verdict.as_str()) }).inc();
            tracing::debug!(key = %call.key.short(), settled = verdict.as_str(), "query page");
        }
        let set = self.membership(call.operation, &asked.place);
        let class = call.operation.endpoint().cache;
        let lifetimes = match (page.status, class) {
            (_, CacheClass::None) => None,
            (StatusCode::OK, CacheClass::Metadata) => Some(self.policy.metadata),
            (StatusCode::OK, CacheClass::Query) if settled == Some(Verdict::Settled) => Some(self.policy.settled),
            (StatusCode::OK, CacheClass::Query) => Some(self.policy.query),
            (StatusCode::OK, CacheClass::Page) => match set {
                // What was asked for before the set began is older than its first page.
                _ if set != asked.set => None,
                Membership::Of(result_set) => result_set.lifetimes.after(moment.since(result_set.begun)),
                Membership::Lost => None,
                // Nobody knows how old its first page is, so it is not served for long.
                Membership::Unknown => Some(Lifetimes::fresh_only(self.policy.query.fresh)),
            },
            (StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND, _) => Some(Lifetimes::fresh_only(self.policy.errors)),
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
                    begins: self.unkept_set(call, made),
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
        let is_metadata = class == CacheClass::Metadata && page.status.is_success();
        let entry = Entry {
            account: Arc::clone(&call.team.account.name),
            operation: call.operation,
            asked: asked.at,
            finished: now,
            made,
            lifetimes,
            age_when_kept: storage.age,
            place: asked.place,
            result_set,
            next,
            previous: result_set.and_then(|_| previous_token(&page.body)).map(named),
            settled,
            time_dimensions: is_metadata.then(|| TimeDimensions::read(&page.body)).flatten(),
            query: self.policy.keep_queries.then(|| text(call)).flatten(),
            hits: AtomicU64::new(0),
            compression: Compression::default(),
            key_param: KeyParam::new(&call.key.short()),
            page: Arc::clone(&page),
        };
        // A usable page is displaced neither by an error nor by what was asked for before it.
        let yields = |old: &Arc<Entry>| {
            let usable = old.page.status.is_success() && old.age(moment) <= old.lifetimes.usable();
            !usable || (page.status.is_success() && old.asked <= asked.at)
        };
        finished(self.store.insert(call.key, entry, lease, yields))
    }

    /// The set of a first page that is not kept. Its further pages may be, for as long as those of which nobody knows the
    /// first.
    fn unkept_set(&self, call: &UpstreamCall, made: Moment) -> Option<ResultSet> {
        let is_first = call.operation.endpoint().cache == CacheClass::Query;
        is_first.then(|| ResultSet::begin(call.key, made, Lifetimes::fresh_only(self.policy.query.fresh)))
    }

    /// How old an answer is when it comes, where it says so (RFC 9111 section 4.2.3): by its `Age` and the time that it took,
    /// or by its own date if that is more. The date counts only by a wall clock that nobody has set since the start, and
    /// only if it is earlier than a date in whole seconds is anyhow, and than the time that the answer took.
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

    /// The wall time for proofs: the earliest of what the clock says, what it said at the start, and the answer's own date.
    /// A clock that was set wrong, then or since, proves nothing.
    fn trusted_wall(&self, date: Option<SystemTime>) -> SystemTime {
        let now = self.clock.wall_now().min(self.clock.predicted_wall());
        date.map_or(now, |date| date.min(now))
    }

    /// Has a query's answer stopped changing. Known before it comes: what is settled stays so.
    fn judge(&self, call: &UpstreamCall, wall: SystemTime) -> Option<Verdict> {
        if call.operation.endpoint().cache != CacheClass::Query {
            return None;
        }
        let now = self.clock.moment();
        let metadata = self.store.page(&Key::of_metadata(&call.team.account));
        let metadata = metadata.filter(|entry| entry.age(now) <= entry.lifetimes.usable());
        let dimensions = metadata.as_ref().and_then(|entry| entry.time_dimensions.as_ref());
        Some(match Timestamp::try_from(wall) {
            Ok(now) => settled::judge(&call.body, dimensions, self.policy.settled_after, now),
            Err(_) => Verdict::Recent,
        })
    }
}

/// Do two readings of the wall clock differ by no more than a request takes, so that one proof holds for both.
fn agree(one: SystemTime, other: SystemTime) -> bool {
    const MARGIN: Duration = Duration::from_secs(60);
    one.duration_since(other).unwrap_or_else(|behind| behind.duration()) <= MARGIN
}

/// The key under which a result set expects what is asked for: for a page that of its token alone.
fn place(query: &ClientQuery) -> Key {
    query.canonical.expected_as.unwrap_or(query.canonical.key)
}

/// An age in whole seconds, as `Age` has it. Nothing is to seem younger than it is.
fn rounded_up(age: Duration) -> Duration {
    Duration::from_secs(age.as_secs() + u64::from(age.subsec_nanos() > 0))
}

/// Names the page before this one, where the body says that there is one.
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
    // First pages name none, and need not be read again.
    memmem::find(body, b"previousToken")?;
    serde_json::from_slice::<Body>(body).ok()?.meta.previous_token.filter(|token| !token.is_empty())
}

/// What a call asks for, in words: its body, or of a page its parameters. Plain metadata says nothing more.
fn text(call: &UpstreamCall) -> Option<Arc<str>> {
    let text = match call.operation.endpoint().body {
        // Canonical bytes are UTF-8: nothing is lost.
        Body::Query => String::from_utf8_lossy(&call.body).into(),
        _ => Arc::clone(&call.parameters),
    };
    Some(text).filter(|text| !text.is_empty())
}

enum Waited {
    FlightResult(FlightResult),
    Lost,
    TooLong,
}

/// Waits for a flight, for as long as this client may wait. The flight goes on without it.
async fn wait(joined: &mut Joined, deadline: Instant) -> Waited {
    tokio::select! {
        biased;
        finished = joined.finished() => finished.map_or(Waited::Lost, Waited::FlightResult),
        () = tokio::time::sleep_until(deadline) => Waited::TooLong,
    }
}

/// Goes upstream for one client alone, and keeps nothing. What is kept goes where the client's answer contradicts it.
async fn bypass<S>(inner: S, query: ClientQuery, layer: Arc<CacheLayer>) -> Answered
where
    S: Service<UpstreamCall, Response = UpstreamResponse, Error = GatewayError>,
{
    let waiters = Waiters::of_clients();
    let _waiter = waiters.join(&query.team, query.directives.urgency);
    let key = KeyParam::new(&query.key().short());
    let asked = layer.clock.now();
    let call = query.upstream_call(waiters, query.deadline, Arc::clone(&query.context));
    let mut answer = inner.oneshot(call.clone()).await?;
    let age = layer.initial_age(&answer.headers, asked);
    let made = layer.clock.moment().before(age.unwrap_or_default());
    if answer.status.is_success()
        && let Some(begins) = layer.unkept_set(&call, made)
        && let Some(token) = answer.next_token.take()
    {
        let next = Some(Key::of_page(&call.team.account, &Parameters::of_page(&token)));
        let account = Arc::clone(&call.team.account.name);
        let unkept = Unkept { account, asked, made, begins: Some(begins), next, is_shared: false };
        layer.store.supersede(call.key, &unkept);
    }
    cache_control::normalise(&mut answer.headers, layer.clock.wall_now());
    let page = Arc::new(StoredResponse::new(answer));
    let outcome = Outcome::Bypass;
    let cache_status = cache_status::forwarded(Forward::Bypass, page.status.as_u16(), false, false, outcome, &key);
    let theirs = page.tag_of_client(&query.directives, None);
    let not_modified = theirs.is_some();
    let etag = theirs.or_else(|| page.etag.clone());
    Ok(ClientResponse { page, coded: None, etag, outcome, cache_status, age: age.map(rounded_up), not_modified })
}

#[cfg(test)]
mod tests;
