//! Hits end here. The rest goes upstream once, however many ask.
//!
//! What may be served is decided by `model::freshness`; this room looks up, asks, and does what it says:
//! serves, refreshes behind an answer, lets identical calls share one flight, keeps what may be kept, and
//! falls back to a stale page within its window when the upstream fails. It never marks an old page fresh,
//! never keeps an error over a usable page, and keeps nothing of a failure.
//!
//! It does not know HTTP: bodies are canonical and keys computed above.

mod disk;
mod flight;
mod note;
mod store;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, Ready, ready};
use http::StatusCode;
use jiff::Timestamp;
use tower::{Layer, Service, ServiceExt};

pub use self::disk::{DiskSettings, DiskView};
use self::flight::{Joined, Kind, Landed, Takeoff};
use self::note::{Forward, KeyNote};
use self::store::{Chain, Compression, Entry, Slot};
pub use self::store::{EntryView, Purge, Store};
use crate::metrics::{Metrics, SettledLabels, Word};
use crate::model::call::{Answer, Call, Page, Reply};
use crate::model::clock::{Clock, Instant};
use crate::model::error::{GatewayError, Reason};
use crate::model::freshness::{Decision, Lifetimes, decide};
use crate::model::hints::{self, Storage};
use crate::model::interest::Interest;
use crate::model::key::Key;
use crate::model::operation::Operation;
use crate::model::outcome::Outcome;
use crate::model::parameters::Parameters;
use crate::model::settled::{self, TimeDimensions, Verdict};

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
    /// How long a refresh may take, waits and retries included.
    pub refresh_deadline: Duration,
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
    policy: Policy,
    metrics: Arc<Metrics>,
    clock: Clock,
}

impl CacheLayer {
    /// Keeps pages in `store` as `policy` has it.
    pub fn new(store: Store, policy: Policy, metrics: Arc<Metrics>, clock: Clock) -> Self {
        Self { store, policy, metrics, clock }
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

type Answered = Result<Reply, GatewayError>;

impl<S> Service<Call> for Caching<S>
where
    S: Service<Call, Response = Answer, Error = GatewayError> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    type Response = Reply;
    type Error = GatewayError;
    /// A hit is ready at once and allocates nothing here.
    type Future = Either<Ready<Answered>, BoxFuture<'static, Answered>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), GatewayError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        if call.wishes.cache.no_store && !call.wishes.cache.only_if_cached {
            return Either::Right(Box::pin(bypass(S::clone(&self.inner), call)));
        }
        let now = self.layer.clock.now();
        let (entry, before) = match self.layer.store.get(&call.key) {
            // What it was expected as may be expected of another result set by now.
            Some(Slot::Page(entry)) if !self.layer.store.belongs(&entry, call.expected_as.as_ref()) => {
                (None, Some(entry))
            }
            Some(Slot::Page(entry)) => (Some(entry), None),
            Some(Slot::Awaited(awaited)) => (None, awaited.before.clone()),
            None => (None, None),
        };
        if entry.is_none()
            && let Some(loading) = self.layer.store.loading(now)
        {
            // Rather a moment's patience than a token for a page that is on the disk.
            let mut cache = self.clone();
            return Either::Right(Box::pin(async move {
                loading.await;
                cache.call(call).await
            }));
        }
        let decision = decide(entry.as_ref().map(|e| (&e.lifetimes, e.age(now))), &call.wishes.cache);
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
            (_, entry) => Either::Right(Box::pin(self.clone().fetch(call, entry.or(before)))),
        }
    }
}

impl<S> Caching<S>
where
    S: Service<Call, Response = Answer, Error = GatewayError> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    /// Lets one refresh run behind an answer.
    fn refresh(&self, call: Call) {
        let delay = self.layer.policy.refresh_jitter.mul_f64(fastrand::f64());
        let deadline = self.layer.clock.now() + delay + self.layer.policy.refresh_deadline;
        self.layer.store.flights.refresh((call.key, Kind::Any), |takeoff, interest| {
            let call = Call { deadline, journey: Arc::default(), ..call };
            self.flight(call, takeoff, interest, delay)
        });
    }

    /// Asks upstream, together with everybody else who asks the same.
    async fn fetch(self, call: Call, entry: Option<Arc<Entry>>) -> Answered {
        let asked = self.layer.clock.now();
        let why = match &entry {
            None => Forward::UriMiss,
            Some(entry) if entry.age(asked) > entry.lifetimes.usable() => Forward::UriMiss,
            Some(entry) if entry.age(asked) > entry.lifetimes.fresh => Forward::Stale,
            Some(_) => Forward::Request,
        };
        loop {
            let forced = call.wishes.cache.no_cache;
            // Landed since this call looked; for a forced refresh it must have been asked for since, too.
            let recent = |entry: &Arc<Entry>| if forced { entry.asked } else { entry.stored } > call.received;
            let arrived_meanwhile = || self.layer.store.page(&call.key).filter(recent);
            let begin = |takeoff, interest| self.flight(call.clone(), takeoff, interest, Duration::ZERO);
            // What was asked for before a forced refresh was wished for is not what it wishes for.
            let kind = if forced { Kind::Forced } else { Kind::Any };
            let client = (&call.team, call.wishes.urgency);
            let mut joined = match self.layer.store.flights.join((call.key, kind), client, arrived_meanwhile, begin) {
                Ok(joined) => joined,
                Err(arrived) => {
                    return Ok(self.serve(&arrived, Some(Outcome::Collapsed), &call, self.layer.clock.now()));
                }
            };
            let now = self.layer.clock.now();
            if let Some(turn) = joined.turn().filter(|turn| !joined.leads && *turn > call.deadline) {
                // The flight may wait for longer than this client does.
                return self.or_stale(Err(GatewayError::too_late(turn - now)), entry, &call);
            }
            joined.need_by(call.deadline);
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
                    let still_waits = |turn: Instant| GatewayError::too_late(turn.saturating_duration_since(now));
                    let error = joined.turn().map_or_else(unanswered, still_waits);
                    return self.or_stale(Err(error), entry, &call);
                }
                Waited::Landed(landed) => {
                    let hopeless = |error: &GatewayError| {
                        // It failed for want of time or clients, and this call has more of the one and is the other.
                        let out_of_time = matches!(error.reason(), Reason::Deadline | Reason::UpstreamTimeout);
                        error.is_abandoned() || (out_of_time && landed.deadline < call.deadline)
                    };
                    if !joined.leads && landed.result.as_ref().is_err_and(hopeless) {
                        continue;
                    }
                    let collapsed = !joined.leads;
                    let reply = landed.result.map(|page| {
                        let theirs = page.tag_of_client(&call.wishes, None);
                        let not_modified = theirs.is_some();
                        let outcome = match (not_modified, collapsed) {
                            (true, _) => Outcome::Revalidated,
                            (false, true) => Outcome::Collapsed,
                            (false, false) => Outcome::Miss,
                        };
                        let status = page.status.as_u16();
                        let key = KeyNote::new(&call.key);
                        let cache_status = note::forwarded(why, status, landed.stored, collapsed, outcome, &key);
                        let etag = theirs.or_else(|| page.etag.clone());
                        Reply { page, coded: None, etag, outcome, cache_status, age: None, not_modified }
                    });
                    return self.or_stale(reply, entry, &call);
                }
            }
        }
    }

    /// A page from the store. Without `outcome` it is a hit, or stale if it is.
    fn serve(&self, entry: &Arc<Entry>, outcome: Option<Outcome>, call: &Call, now: Instant) -> Reply {
        entry.count_hit();
        let (age, wishes) = (entry.age(now), &call.wishes);
        let coded = wishes.gzip.then(|| entry.compression.coded()).flatten();
        let theirs = entry.page.tag_of_client(wishes, coded);
        let not_modified = theirs.is_some();
        if wishes.gzip && coded.is_none() && !not_modified {
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
        Reply {
            page: Arc::clone(&entry.page),
            coded: coded.map(|coded| coded.body.clone()),
            etag,
            outcome,
            cache_status: note::hit(entry.lifetimes.ttl(age), outcome, &entry.note),
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
        let now = self.layer.clock.now();
        let usable = |entry: &Arc<Entry>| {
            entry.page.status.is_success()
                && entry.age(now) <= entry.lifetimes.fresh.saturating_add(entry.lifetimes.stale_if_error)
        };
        match entry.filter(usable) {
            Some(entry) if failed => Ok(self.serve(&entry, Some(Outcome::StaleError), call, now)),
            _ => answered,
        }
    }

    /// The flight, which takes off after `delay`, or when a client begins to wait for it.
    fn flight(&self, call: Call, takeoff: Takeoff, interest: Arc<Interest>, delay: Duration) -> BoxFuture<'static, ()> {
        let (inner, layer) = (S::clone(&self.inner), Arc::clone(&self.layer));
        Box::pin(async move {
            if !delay.is_zero() {
                let begun = layer.clock.now();
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = interest.wanted() => {}
                }
                // Somebody wanted it fetched anew meanwhile.
                if let Some(entry) = layer.store.page(&call.key).filter(|entry| entry.stored > begun) {
                    let (result, deadline) = (Ok(Arc::clone(&entry.page)), call.deadline);
                    return takeoff.land(Landed { result, stored: true, deadline });
                }
            }
            let call = Call { interest, ..call };
            let (deadline, asked, era) = (call.deadline, layer.clock.now(), layer.store.era());
            // Behind the request, which goes out first.
            let judge = async { layer.judge(&call, asked) };
            let (answered, settled) = tokio::join!(biased; inner.oneshot(call.clone()), judge);
            let landed = match answered {
                Ok(answer) => {
                    let (page, stored) = layer.keep(&call, answer, settled, asked, era);
                    Landed { result: Ok(page), stored, deadline }
                }
                Err(error) => Landed { result: Err(error), stored: false, deadline },
            };
            takeoff.land(landed);
        })
    }
}

impl CacheLayer {
    /// Makes an answer a page, and keeps it if it may be kept. It was `asked` for in that `era`, and judged then.
    fn keep(
        &self,
        call: &Call,
        answer: Answer,
        settled: Option<Verdict>,
        asked: Instant,
        era: u64,
    ) -> (Arc<Page>, bool) {
        let now = self.clock.now();
        let storage = hints::storage(&answer.headers);
        let next_token = answer.next_token.clone();
        let page = Arc::new(Page::new(answer));
        let expected_as = call.expected_as.as_ref().unwrap_or(&call.key);
        let chain = if call.operation == Operation::Page { self.store.chain(expected_as) } else { None };
        let settled = settled.filter(|_| page.status == StatusCode::OK).map(|verdict| match verdict {
            // It may have come meanwhile.
            Verdict::NoMetadata => self.judge(call, now).unwrap_or(verdict),
            verdict => verdict,
        });
        if let Some(verdict) = settled {
            self.metrics.cache_settled.get_or_create(&SettledLabels { reason: Word(verdict.as_str()) }).inc();
            tracing::debug!(key = %call.key.short(), settled = verdict.as_str(), "query page");
        }
        let lifetimes = match (page.status, call.operation) {
            (StatusCode::OK, Operation::Metadata) => Some(self.policy.metadata),
            (StatusCode::OK, Operation::Query) if settled == Some(Verdict::Settled) => Some(self.policy.settled),
            (StatusCode::OK, Operation::Query) => Some(self.policy.query),
            (StatusCode::OK, Operation::Page) => match chain {
                Some(chain) => chain.lifetimes.after(now.saturating_duration_since(chain.begun)),
                None => Some(self.policy.query),
            },
            (StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND, _) => Some(Lifetimes::fresh_only(self.policy.errors)),
            _ => None,
        };
        let lifetimes = match storage {
            Storage::Unsaid => lifetimes,
            Storage::AtMost(limit) => lifetimes.map(|lifetimes| lifetimes.at_most(limit)),
            Storage::Forbidden => None,
        };
        let Some(lifetimes) = lifetimes.filter(|lifetimes| !lifetimes.usable().is_zero()) else { return (page, false) };
        // A usable page is displaced neither by an error nor by what was asked for before it.
        let stays = |old: &Arc<Entry>| {
            let usable = old.page.status.is_success() && old.age(now) <= old.lifetimes.usable();
            usable && (!page.status.is_success() || old.asked > asked)
        };
        // After a purge nobody wants to read what was asked for before it.
        if era != self.store.era() || self.store.page(&call.key).as_ref().is_some_and(stays) {
            return (page, false);
        }
        let chain = match call.operation {
            Operation::Query if page.status.is_success() => Some(Chain { first: call.key, begun: now, lifetimes }),
            _ => chain,
        };
        let next = next_token.map(|token| {
            let parameters = Parameters::of_page(&token);
            Key::new(&call.team.account.sid, Operation::Page, parameters.as_str(), b"")
        });
        let is_metadata = call.operation == Operation::Metadata && page.status.is_success();
        let entry = Entry {
            account: Arc::clone(&call.team.account.name),
            operation: call.operation,
            asked,
            stored: now,
            lifetimes,
            age_when_kept: Duration::ZERO,
            chain,
            next,
            settled,
            time_dimensions: is_metadata.then(|| TimeDimensions::read(&page.body)).flatten(),
            query: self.policy.keep_queries.then(|| text(call)).flatten(),
            hits: AtomicU64::new(0),
            compression: Compression::default(),
            note: KeyNote::new(&call.key),
            page: Arc::clone(&page),
        };
        self.store.insert(call.key, entry);
        if let (Some(chain), Some(next)) = (chain, next) {
            self.store.await_page(next, chain);
        }
        (page, true)
    }

    /// Has a query's answer stopped changing. Known before it comes: what is settled stays so.
    fn judge(&self, call: &Call, now: Instant) -> Option<Verdict> {
        if call.operation != Operation::Query {
            return None;
        }
        let metadata = self.store.page(&Key::new(&call.team.account.sid, Operation::Metadata, "", b""));
        let metadata = metadata.filter(|entry| entry.age(now) <= entry.lifetimes.usable());
        let dimensions = metadata.as_ref().and_then(|entry| entry.time_dimensions.as_ref());
        Some(match Timestamp::try_from(self.clock.wall(now)) {
            Ok(now) => settled::judge(&call.body, dimensions, self.policy.settled_after, now),
            Err(_) => Verdict::Recent,
        })
    }
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
    Landed(Landed),
    Lost,
    TooLong,
}

/// Waits for a flight. Who began it waits for its end, which its own deadline brings; others as long as they may.
async fn wait(joined: &mut Joined, deadline: Instant) -> Waited {
    let leads = joined.leads;
    tokio::select! {
        biased;
        landed = joined.landed() => landed.map_or(Waited::Lost, Waited::Landed),
        () = tokio::time::sleep_until(deadline), if !leads => Waited::TooLong,
    }
}

/// Goes upstream for one client alone, and keeps nothing.
async fn bypass<S>(inner: S, call: Call) -> Answered
where
    S: Service<Call, Response = Answer, Error = GatewayError>,
{
    let interest = Interest::of_clients();
    let _waiter = interest.join(&call.team, call.wishes.urgency);
    let key = KeyNote::new(&call.key);
    let answer = inner.oneshot(Call { interest, ..call }).await?;
    let page = Arc::new(Page::new(answer));
    let outcome = Outcome::Bypass;
    let cache_status = note::forwarded(Forward::Bypass, page.status.as_u16(), false, false, outcome, &key);
    let etag = page.etag.clone();
    Ok(Reply { page, coded: None, etag, outcome, cache_status, age: None, not_modified: false })
}

#[cfg(test)]
mod tests;
