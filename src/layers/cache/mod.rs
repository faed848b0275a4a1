//! Hits end here. The rest goes upstream once, however many ask.
//!
//! What may be served is decided by `semantics::freshness`; this room looks up, asks, and does what it says:
//! serves, refreshes behind an answer, lets identical calls share one flight, keeps what may be kept, and
//! falls back to a stale page within its window when the upstream fails. It never marks an old page fresh,
//! never keeps an error over a usable page, and keeps nothing of a failure.
//!
//! It does not know HTTP: bodies are canonical and keys computed above.

mod cache_status;
mod disk;
mod flight;
mod refresh_backoff;
mod sets;
mod store;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::future::{BoxFuture, Either, Ready, ready};
use http::StatusCode;
use jiff::Timestamp;
use memchr::memmem;
use serde::Deserialize;
use tower::{Layer, Service, ServiceExt};
use tracing::Instrument;

use self::cache_status::{Forward, KeyParam};
pub use self::disk::{DiskSettings, DiskView};
use self::flight::{FlightGuard, FlightResult, Flown, Joined, Kind};
use self::refresh_backoff::RefreshBackoff;
use self::sets::{Membership, ResultSet};
use self::store::{Compression, Entry};
pub use self::store::{EntryView, Purge, Purged, Store};
use crate::core::clock::{Clock, Instant, Moment};
use crate::core::error::{GatewayError, Reason};
use crate::core::outcome::Outcome;
use crate::metrics::{Metrics, SettledLabels, StaticLabel};
use crate::request::call::{Call, ClientResponse, StoredResponse, UpstreamResponse};
use crate::request::key::Key;
use crate::request::waiters::Waiters;
use crate::semantics::cache_control::{self, Storage};
use crate::semantics::freshness::{Decision, Lifetimes, decide};
use crate::twilio::endpoint::Operation;
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

impl<S> Service<Call> for Caching<S>
where
    S: Service<Call, Response = UpstreamResponse, Error = GatewayError> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    type Response = ClientResponse;
    type Error = GatewayError;
    /// A hit is ready at once and allocates nothing here.
    type Future = Either<Ready<Answered>, BoxFuture<'static, Answered>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), GatewayError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        if call.directives.cache.no_store && !call.directives.cache.only_if_cached {
            let span = call.context.span();
            return Either::Right(Box::pin(bypass(S::clone(&self.inner), call, self.layer.clock).instrument(span)));
        }
        let now = self.layer.clock.moment();
        let entry = self.layer.store.page(&call.key);
        if entry.is_none()
            && let Some(loading) = self.layer.store.loading(self.layer.clock.now())
        {
            // Rather a moment's patience than a token for a page that is on the disk.
            let mut cache = self.clone();
            return Either::Right(Box::pin(async move {
                loading.await;
                cache.call(call).await
            }));
        }
        let decision = decide(entry.as_ref().map(|e| (&e.lifetimes, e.age(now))), &call.directives.cache);
        match (decision, entry) {
            (Decision::Serve, Some(entry)) => Either::Left(ready(Ok(self.serve(&entry, None, &call, now)))),
            (Decision::ServeAndRefresh, Some(entry)) => {
                let reply = self.serve(&entry, None, &call, now);
                if entry.is_refreshable() {
                    self.refresh(call);
                }
                Either::Left(ready(Ok(reply)))
            }
            (Decision::Refuse, _) => Either::Left(ready(Err(GatewayError::new(
                Reason::OnlyIfCached,
                "nothing is cached that this request accepts, and it forbids asking Twilio",
            )))),
            (_, entry) => Either::Right(Box::pin(self.clone().fetch(call, entry))),
        }
    }
}

impl<S> Caching<S>
where
    S: Service<Call, Response = UpstreamResponse, Error = GatewayError> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    /// Lets one refresh run behind an answer.
    fn refresh(&self, call: Call) {
        let (key, begun) = (call.key, self.layer.clock.now());
        if !self.layer.refreshes.allows(&key, begun) {
            return;
        }
        let delay = self.layer.policy.refresh_jitter.mul_f64(fastrand::f64());
        let set = self.layer.membership(&call);
        self.layer.store.flights.refresh((key, Kind::Any), Flown::of(&call, set.result_set()), |guard, waiters| {
            let call = Call { context: Arc::new(call.context.of_refresh()), ..call };
            let (flight, layer) = (self.flight(call, set, guard, waiters, delay), Arc::clone(&self.layer));
            Box::pin(async move {
                flight.await;
                if let Some(entry) = layer.store.page(&key) {
                    layer.refreshes.ended(&key, entry.finished > begun, entry.lifetimes.fresh, layer.clock.now());
                }
            })
        });
    }

    /// Asks upstream, together with everybody else who asks the same.
    async fn fetch(self, call: Call, entry: Option<Arc<Entry>>) -> Answered {
        let asked = self.layer.clock.moment();
        let why = match &entry {
            None => Forward::UriMiss,
            Some(entry) if entry.age(asked) > entry.lifetimes.usable() => Forward::UriMiss,
            Some(entry) if entry.age(asked) > entry.lifetimes.fresh => Forward::Stale,
            Some(_) => Forward::Request,
        };
        loop {
            let forced = call.directives.cache.no_cache;
            // FlightResult since this call looked; for a forced refresh it must have been asked for since, too.
            let recent = |entry: &Arc<Entry>| if forced { entry.asked } else { entry.finished } > call.received;
            let arrived_meanwhile = || self.layer.store.page(&call.key).filter(recent);
            let set = self.layer.membership(&call);
            let begin = |guard, waiters| self.flight(call.clone(), set, guard, waiters, Duration::ZERO);
            // What was asked for before a forced refresh was wished for is not what it wishes for.
            let kind = if forced { Kind::Forced } else { Kind::Any };
            let mut joined =
                match self.layer.store.flights.join(&call, kind, set.result_set(), arrived_meanwhile, begin) {
                    Ok(joined) => joined,
                    Err(arrived) => {
                        return Ok(self.serve(&arrived, Some(Outcome::Collapsed), &call, self.layer.clock.moment()));
                    }
                };
            let now = self.layer.clock.now();
            if let Some(estimated_start) =
                joined.estimated_start().filter(|estimated_start| !joined.leads && *estimated_start > call.deadline)
            {
                // The flight may wait for longer than this client does.
                return self.or_stale(Err(GatewayError::too_late(estimated_start - now)), entry, &call);
            }
            match wait(&mut joined, call.deadline).await {
                // It would be lost again.
                Waited::Lost if joined.leads => {
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
                    return self.or_stale(Err(error), entry, &call);
                }
                Waited::FlightResult(finished) => {
                    let now = self.layer.clock.now();
                    // It was not sent, since those who waited for it had left or had no time for its turn. This client has.
                    let was_not_sent = |error: &GatewayError| {
                        let has_time = now + error.retry_after().unwrap_or_default() < call.deadline;
                        error.is_abandoned() || (error.reason() == Reason::Deadline && has_time)
                    };
                    if !joined.leads && finished.result.as_ref().is_err_and(was_not_sent) {
                        continue;
                    }
                    let collapsed = !joined.leads;
                    let reply = finished.result.map(|page| {
                        let theirs = page.tag_of_client(&call.directives, None);
                        let not_modified = theirs.is_some();
                        let outcome = match (not_modified, collapsed) {
                            (true, _) => Outcome::Revalidated,
                            (false, true) => Outcome::Collapsed,
                            (false, false) => Outcome::Miss,
                        };
                        let status = page.status.as_u16();
                        let key = KeyParam::new(&call.key);
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
                    return self.or_stale(reply, entry, &call);
                }
            }
        }
    }

    /// A page from the store. Without `outcome` it is a hit, or stale if it is.
    fn serve(&self, entry: &Arc<Entry>, outcome: Option<Outcome>, call: &Call, now: Moment) -> ClientResponse {
        entry.count_hit();
        let (age, directives) = (entry.age(now), &call.directives);
        let coded = directives.gzip.then(|| entry.compression.coded()).flatten();
        let theirs = entry.page.tag_of_client(directives, coded);
        let not_modified = theirs.is_some();
        if directives.gzip && coded.is_none() && !not_modified {
            self.layer.store.compress(call.key, entry, self.layer.clock);
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
    fn or_stale(&self, answered: Answered, entry: Option<Arc<Entry>>, call: &Call) -> Answered {
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
                // Its first page may have been replaced while this one was asked for.
                && self.layer.store.is_current(entry)
        };
        match entry.filter(usable) {
            Some(entry) if failed => Ok(self.serve(&entry, Some(Outcome::StaleError), call, now)),
            _ => answered,
        }
    }

    /// The flight, which takes off after `delay`, or when a client begins to wait for it.
    fn flight(
        &self,
        call: Call,
        set: Membership,
        guard: FlightGuard,
        waiters: Arc<Waiters>,
        delay: Duration,
    ) -> BoxFuture<'static, ()> {
        let (inner, layer) = (S::clone(&self.inner), Arc::clone(&self.layer));
        // Whoever shares the flight, its log lines carry the id of the request that began it.
        let span = call.context.span();
        let flight = async move {
            if !delay.is_zero() {
                let begun = layer.clock.now();
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = waiters.wanted() => {}
                }
                // Somebody wanted it fetched anew meanwhile.
                if let Some(entry) = layer.store.page(&call.key).filter(|entry| entry.finished > begun) {
                    let age = Some(entry.age(layer.clock.moment()));
                    return guard.finish(FlightResult { result: Ok(Arc::clone(&entry.page)), stored: true, age });
                }
            }
            let asked = Asked { at: layer.clock.now(), wall: layer.trusted_wall(None), set };
            // Its own, whoever began it: others may have more time.
            let call = Call { waiters, deadline: asked.at + layer.policy.deadline, ..call };
            // Behind the request, which goes out first.
            let judge = async { layer.judge(&call, asked.wall) };
            let (answered, settled) = tokio::join!(biased; inner.oneshot(call.clone()), judge);
            let finished = match answered {
                Ok(answer) => layer.keep(&call, answer, settled, &asked, &guard),
                Err(error) => FlightResult { result: Err(error), stored: false, age: None },
            };
            guard.finish(finished);
        };
        Box::pin(flight.instrument(span))
    }
}

/// What was known when a page was asked for.
struct Asked {
    at: Instant,
    wall: SystemTime,
    set: Membership,
}

impl CacheLayer {
    /// What is known of the result set of what is asked for.
    fn membership(&self, call: &Call) -> Membership {
        match call.operation {
            Operation::Page => {
                self.store.membership(call.expected_as.as_ref().unwrap_or(&call.key), self.clock.moment())
            }
            _ => Membership::Unknown,
        }
    }

    /// Makes an answer a page, and keeps it if it may be kept.
    fn keep(
        &self,
        call: &Call,
        mut answer: UpstreamResponse,
        settled: Option<Verdict>,
        asked: &Asked,
        guard: &FlightGuard,
    ) -> FlightResult {
        let (now, moment, wall) = (self.clock.now(), self.clock.moment(), self.clock.wall_now());
        let date = cache_control::date(&answer.headers);
        let age = cache_control::age(&answer.headers).map(|age| age + now.saturating_duration_since(asked.at));
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
        let set = self.membership(call);
        let lifetimes = match (page.status, call.operation) {
            (StatusCode::OK, Operation::Metadata) => Some(self.policy.metadata),
            (StatusCode::OK, Operation::Query) if settled == Some(Verdict::Settled) => Some(self.policy.settled),
            (StatusCode::OK, Operation::Query) => Some(self.policy.query),
            (StatusCode::OK, Operation::Page) => match set {
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
            Key::new(&call.team.account, Operation::Page, parameters.as_str(), b"")
        };
        let next = next_token.map(named);
        let narrowed = lifetimes.and_then(|lifetimes| storage.narrow(lifetimes));
        let Some(lifetimes) = narrowed.filter(|lifetimes| !lifetimes.usable().is_zero()) else {
            if let (Operation::Query, true, Some(next)) = (call.operation, page.status.is_success(), next) {
                self.store.supersede(&call.key, next);
            }
            return finished(false);
        };
        let made = moment.before(storage.age);
        let result_set = match call.operation {
            Operation::Query if page.status.is_success() => Some(ResultSet::begin(call.key, made, lifetimes)),
            _ => set.result_set(),
        };
        let is_metadata = call.operation == Operation::Metadata && page.status.is_success();
        let entry = Entry {
            account: Arc::clone(&call.team.account.name),
            operation: call.operation,
            asked: asked.at,
            finished: now,
            made,
            lifetimes,
            age_when_kept: storage.age,
            result_set,
            next,
            previous: result_set.and_then(|_| previous_token(&page.body)).map(named),
            settled,
            time_dimensions: is_metadata.then(|| TimeDimensions::read(&page.body)).flatten(),
            query: self.policy.keep_queries.then(|| text(call)).flatten(),
            hits: AtomicU64::new(0),
            compression: Compression::default(),
            key_param: KeyParam::new(&call.key),
            page: Arc::clone(&page),
        };
        // A usable page is displaced neither by an error nor by what was asked for before it.
        let yields = |old: &Arc<Entry>| {
            let usable = old.page.status.is_success() && old.age(moment) <= old.lifetimes.usable();
            !usable || (page.status.is_success() && old.asked <= asked.at)
        };
        finished(self.store.insert(call.key, entry, guard, yields))
    }

    /// The wall time for proofs: the earlier of what the clock says and what a second witness says, which is the answer's
    /// own date, or else what the clock said at the start. A clock that was set wrong, then or since, proves nothing.
    fn trusted_wall(&self, date: Option<SystemTime>) -> SystemTime {
        let witness = date.unwrap_or_else(|| self.clock.predicted_wall());
        self.clock.wall_now().min(witness)
    }

    /// Has a query's answer stopped changing. Known before it comes: what is settled stays so.
    fn judge(&self, call: &Call, wall: SystemTime) -> Option<Verdict> {
        if call.operation != Operation::Query {
            return None;
        }
        let now = self.clock.moment();
        let metadata = self.store.page(&Key::new(&call.team.account, Operation::Metadata, "", b""));
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
fn text(call: &Call) -> Option<Arc<str>> {
    let text = match call.operation {
        // Canonical bytes are UTF-8: nothing is lost.
        Operation::Query => String::from_utf8_lossy(&call.body).into(),
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

/// Goes upstream for one client alone, and keeps nothing.
async fn bypass<S>(inner: S, call: Call, clock: Clock) -> Answered
where
    S: Service<Call, Response = UpstreamResponse, Error = GatewayError>,
{
    let waiters = Waiters::of_clients();
    let _waiter = waiters.join(&call.team, call.directives.urgency);
    let key = KeyParam::new(&call.key);
    let asked = clock.now();
    let mut answer = inner.oneshot(Call { waiters, ..call }).await?;
    let age = cache_control::age(&answer.headers).map(|age| rounded_up(age + (clock.now() - asked)));
    cache_control::normalise(&mut answer.headers, clock.wall_now());
    let page = Arc::new(StoredResponse::new(answer));
    let outcome = Outcome::Bypass;
    let cache_status = cache_status::forwarded(Forward::Bypass, page.status.as_u16(), false, false, outcome, &key);
    let etag = page.etag.clone();
    Ok(ClientResponse { page, coded: None, etag, outcome, cache_status, age, not_modified: false })
}

#[cfg(test)]
mod tests;
