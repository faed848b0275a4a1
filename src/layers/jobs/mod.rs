//! Query jobs: submissions that are safe to repeat and are shared, statuses that cost Twilio few polls, and queries
//! that become jobs.
//!
//! This layer is between `represent` and `cache`, and gets its answers from the cache. The answer to a submission, a
//! job's status and its results are stored responses like any other: they survive a restart, can be purged, and are
//! fetched once for all clients that wait. `layers::cache::jobs` decides how long they are fresh. This layer decides
//! about:
//!
//! * **Submissions.** A submission without an `Idempotency-Key` gets a UUIDv7. All its attempts carry the same one, so
//!   a repeated submission makes one job. If its end stays unknown, the next identical submission has the same key. A
//!   submission with its own key, or with `no-store`, is not shared: it gets no stored answer and leaves none. Any other
//!   submission gets the answer of an identical one within `cache.jobs.dedup`,
//!   unless that job is known to have failed, been cancelled or expired. If the job's `Retry-After` has passed, its
//!   status is polled first. `no-cache` asks for a new job, and later submissions share that new job.
//! * **Polls** (`polls`). Until `Retry-After` has passed, no directive of a client makes a poll go upstream. `no-cache`,
//!   `no-store` and `max-age` cause a new poll only for a job that has ended. After a poll that failed the next one
//!   waits too, and the last known status is the answer. Clients are told how much of the wait is left.
//!   `Prefer: wait` delays an answer until the job has ended, the time is up, or the process shuts down. If no status is
//!   known when a poll fails, the answer to the job's submission counts as one. A poll that takes long holds only those
//!   who have no other answer.
//! * **Queries with `Prefer: respond-async`** (`respond_async`).
//! * **Policies.** A job, and the page tokens of its lists and results, belong to the policy under which they were
//!   given out (`owners`). A list leaves out jobs that belong to other policies.

mod owners;
mod polls;
mod respond_async;
mod shutdown;

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, Either, FutureExt};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tower::{Layer, Service, ServiceExt};

pub use self::owners::JobOwners;
use self::owners::Scope;
pub use self::shutdown::Shutdown;
use crate::cache::entry::Entry;
use crate::cache::response::{Content, Source};
use crate::cache::{CacheResponse, Store, Unkept};
use crate::core::clock::Clock;
use crate::core::error::{GatewayError, Reason};
use crate::core::uuid;
use crate::request::grants;
use crate::request::key::Key;
use crate::request::query::{CanonicalQuery, ClientQuery};
use crate::request::response::Representation;
use crate::semantics::request_directives::{CacheDirectives, RequestDirectives};
use crate::twilio::endpoint::{IDEMPOTENCY_KEY, Operation};
use crate::twilio::job::{self, Job, State};
use crate::twilio::page;
use crate::twilio::parameters::Parameters;
use crate::twilio::permission::Permission;

/// The layer's settings, from the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How long an identical submission gets the same job; zero turns sharing off.
    pub dedup: Duration,
    /// The time limit of a query that became a job after its own time was up.
    pub deadline: Duration,
}

/// Makes [`Jobs`] services.
#[derive(Debug, Clone)]
pub struct JobsLayer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    store: Store,
    owners: JobOwners,
    settings: Settings,
    shutdown: Shutdown,
    clock: Clock,
}

impl JobsLayer {
    /// Reads known jobs from `store`, and records in `owners` which policy each job belongs to. Holds no client once the
    /// `shutdown` has begun.
    pub fn new(store: Store, owners: JobOwners, settings: Settings, shutdown: Shutdown, clock: Clock) -> Self {
        Self(Arc::new(Shared { store, owners, settings, shutdown, clock }))
    }
}

impl<S> Layer<S> for JobsLayer {
    type Service = Jobs<S>;

    fn layer(&self, inner: S) -> Jobs<S> {
        Jobs { inner, shared: Arc::clone(&self.0) }
    }
}

/// Serves query jobs. See the module.
#[derive(Debug, Clone)]
pub struct Jobs<S> {
    inner: S,
    shared: Arc<Shared>,
}

type Answered = Result<CacheResponse, GatewayError>;

impl<S> Service<ClientQuery> for Jobs<S>
where
    S: Service<ClientQuery, Response = CacheResponse, Error = GatewayError> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    type Response = CacheResponse;
    type Error = GatewayError;
    /// Requests that are not about jobs are passed on without a box.
    type Future = Either<S::Future, BoxFuture<'static, Answered>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), GatewayError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, query: ClientQuery) -> Self::Future {
        let may_become_a_job = query.endpoint.operation == Operation::Query
            && query.directives.respond_async
            // A further page is part of a result set, and no query of its own.
            && query.canonical.expected_as.is_none()
            && query.team.operations.allows(Permission::Jobs);
        if query.endpoint.permission == Permission::Jobs {
            return Either::Right(Box::pin(self.clone().answer(query)));
        }
        match may_become_a_job {
            true => Either::Right(Box::pin(self.clone().respond_async(query))),
            false => Either::Left(self.inner.call(query)),
        }
    }
}

/// Added to a wait, because a status is still fresh at the exact moment at which its lifetime ends.
const MOMENT: Duration = Duration::from_millis(1);

/// The shortest pause before a waiting client asks again, where no longer one is known.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

/// The greatest length of a client's `Idempotency-Key`, in bytes.
const LONGEST_KEY: usize = 255;

impl<S> Jobs<S>
where
    S: Service<ClientQuery, Response = CacheResponse, Error = GatewayError> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    async fn ask(&self, query: ClientQuery) -> Answered {
        self.inner.clone().oneshot(query).await
    }

    async fn answer(self, query: ClientQuery) -> Answered {
        let scope = scope(&query);
        if let Some(scope) = &scope {
            self.prove(scope, &query).await?;
        }
        let asked = query.clone();
        let mut response = match query.endpoint.operation {
            Operation::JobSubmit => self.submit(query).await?,
            Operation::JobStatus => self.status(query).await?,
            _ => self.ask(query).await?,
        };
        if let Some(scope) = &scope {
            self.give(scope, &asked, &mut response).await?;
        }
        response.has_links = asked.endpoint.operation != Operation::JobResults && is_success(&response);
        Ok(response)
    }

    /// Submits a job, or finds the one that an identical submission made.
    async fn submit(&self, mut query: ClientQuery) -> Answered {
        let has_own_key = has_own_key(query.headers.as_deref())?;
        if !has_own_key {
            let new = || HeaderValue::try_from(uuid::v7(self.shared.clock.wall_now(), fastrand::u128(..))).ok();
            let key = self.unsettled_key(&query).or_else(new);
            query.headers = key.map(|key| Arc::new(only(IDEMPOTENCY_KEY, key)));
        }
        if has_own_key || self.shared.settings.dedup.is_zero() {
            if query.directives.cache.only_if_cached {
                let message = "no job is shared with this submission, and it forbids asking Twilio";
                return Err(GatewayError::new(Reason::OnlyIfCached, message));
            }
            query.directives.cache.no_store = true;
        }
        let CacheDirectives { no_cache, no_store, only_if_cached, .. } = query.directives.cache;
        if !no_cache && !no_store {
            self.drop_lost(&query, !only_if_cached).await;
        }
        let mut response = self.ask(query).await?;
        if let Some(wait) = self.poll_after(&response) {
            response.headers.push(retry_after(wait));
        }
        Ok(response)
    }

    /// The `Idempotency-Key` of an identical earlier submission whose end is unknown: if it made a job, Twilio answers
    /// with that one.
    fn unsettled_key(&self, query: &ClientQuery) -> Option<HeaderValue> {
        let Shared { store, settings, clock, .. } = &*self.shared;
        let CacheDirectives { no_cache, no_store, max_age, .. } = query.directives.cache;
        let (key, since) = store.jobs.unsettled(query.key())?;
        let oldest = settings.dedup.min(max_age.unwrap_or(Duration::MAX));
        (!no_cache && !no_store && clock.moment().since(since) < oldest).then_some(key)
    }

    /// Removes the stored answer to an identical earlier submission if its job must not be shared. Clients that submit
    /// at the same time then share one new job. `may_poll` says whether the status may be polled to find out.
    async fn drop_lost(&self, query: &ClientQuery, may_poll: bool) {
        let Shared { store, clock, .. } = &*self.shared;
        if let Some(loading) = store.load(&query.team.account, query.key(), &query.context, clock.now()) {
            loading.await;
        }
        let now = clock.moment();
        let made = store.page(query.key()).filter(|entry| entry.stored.age(now) <= entry.stored.lifetimes.fresh);
        let Some(made) = made.filter(|entry| entry.stored.representation.status.is_success()) else { return };
        if !self.may_share(query, &made, may_poll).await {
            let unkept = Unkept {
                account: Arc::clone(&made.stored.account),
                asked: made.asked,
                made: made.stored.made,
                begins: None,
                next: None,
                is_shared: true,
            };
            store.supersede(*query.key(), &unkept);
        }
    }

    /// Whether the job that this submission `made` may be shared, as far as is known.
    async fn may_share(&self, query: &ClientQuery, made: &Entry, may_poll: bool) -> bool {
        let Shared { store, clock, .. } = &*self.shared;
        let now = clock.moment();
        let Some(id) = Job::read(&made.stored.representation.body).and_then(|job| job.id) else { return true };
        let job = Key::of_job(&query.team.account, &id);
        // After a restart, or on another replica, only the stored answer says which submission made the job.
        if store.jobs.get(&job).is_none_or(|known| known.submission.is_none()) {
            store.jobs.update(job, |known| known.submission = Some(*query.key()));
        }
        let is_over = || self.is_over(&job);
        if is_over() {
            return false;
        }
        // A hit does not wait for the store. What other replicas know counts for the next submission.
        store.jobs.ask_lost(&query.team.account, job, *clock);
        if let Some(status) = store.fresh(&job, now) {
            return is_of_use(&status);
        }
        // Twilio asked for no poll before this time.
        let told = told(&made.stored.representation).unwrap_or_default();
        if !may_poll || made.stored.age(now) < told || self.next_poll(&job).is_some() {
            return true;
        }
        match self.ask_briefly(&self.about(query, Operation::JobStatus, &id, "")).await {
            Some(Ok(status)) => is_of_use(status.representation()) && !is_over(),
            Some(Err(_)) | None => true,
        }
    }

    /// Whether the job whose status has this key is known to be lost, or its results to have expired.
    fn is_over(&self, status: &Key) -> bool {
        let Shared { store, clock, .. } = &*self.shared;
        let is_lost = || store.jobs.get(status).is_some_and(|known| known.lost.is_some());
        is_lost() || store.results_end(status, *clock).is_some_and(|end| end.since(clock.moment()).is_zero())
    }

    /// The status of a job. With `Prefer: wait` it waits until the job has ended, the time is up, or the process shuts
    /// down.
    async fn status(&self, mut query: ClientQuery) -> Answered {
        let clock = self.shared.clock;
        query.directives.cache = self.shielded(&query);
        let CacheDirectives { only_if_cached, .. } = query.directives.cache;
        let mut waits = query.directives.wait.is_some();
        let shutdown = if waits { self.shared.shutdown.begun() } else { Box::pin(std::future::pending()) };
        let mut shutdown = shutdown.fuse();
        let mut last = None;
        loop {
            let mut poll = pin!(self.poll(query.clone()));
            let polled = tokio::select! {
                biased;
                polled = &mut poll => Some(polled),
                () = &mut shutdown, if waits => {
                    waits = false;
                    None
                }
            };
            let known = |failed: Option<&Answered>| match only_if_cached {
                true => None,
                false => self.known_status(&query, failed.and_then(|failed| failed.as_ref().err())),
            };
            let (mut response, is_new) = match polled {
                Some(Ok(response)) if !has_failed(&response) => (response, true),
                // A poll that failed does not end the wait, and one that is on its way does not prolong it.
                unanswered => match (
                    self.as_polled(&query).or_else(|| last.take()).or_else(|| known(unanswered.as_ref())),
                    unanswered,
                ) {
                    (Some(known), _) => (known, false),
                    (None, Some(failed)) => return self.with_next_poll(&query, failed),
                    (None, None) => {
                        let answered = poll.await;
                        return self.with_next_poll(&query, answered);
                    }
                },
            };
            let Some(stated) = self.poll_after(&response) else { return Ok(response) };
            let wait = self.next_poll(query.key()).unwrap_or(if is_new { stated } else { Duration::ZERO });
            response.headers = vec![retry_after(wait)];
            if !waits || clock.now() >= query.deadline {
                return Ok(response);
            }
            let pause = if wait.is_zero() { SHORTEST_PAUSE } else { wait + MOMENT };
            tokio::select! {
                biased;
                () = &mut shutdown => waits = false,
                () = tokio::time::sleep_until((clock.now() + pause).min(query.deadline)) => {}
            }
            // Ask for a newer status than the last one. At the end of the wait a poll would be too late, so the last
            // known status is the answer.
            query.received = clock.now();
            let is_over = !waits || clock.now() >= query.deadline;
            query.directives.cache = CacheDirectives {
                only_if_cached: only_if_cached || is_over,
                max_stale: is_over.then_some(Duration::MAX),
                ..CacheDirectives::default()
            };
            last = Some(response);
        }
    }

    /// How long the job of this answer must not be polled from now on; `None` if it has ended, or the answer is about
    /// no job.
    fn poll_after(&self, response: &CacheResponse) -> Option<Duration> {
        let told = told(response.representation())?;
        let age = match &response.content {
            Content::Stored(entry) => entry.stored.age(self.shared.clock.moment()),
            Content::Forwarded(..) if matches!(response.source, Source::Hit { .. }) => response.age.unwrap_or_default(),
            Content::Forwarded(..) => Duration::ZERO,
        };
        Some(told.saturating_sub(age))
    }

    /// A request about the job `id`, on behalf of the client that sent `query`.
    fn about(&self, query: &ClientQuery, operation: Operation, id: &str, parameters: &str) -> ClientQuery {
        let (endpoint, account) = (operation.endpoint(), &query.team.account);
        let path = endpoint.path_of(id);
        let canonical = CanonicalQuery {
            key: Key::of_path(account, endpoint, &path, parameters, b""),
            expected_as: None,
            path,
            parameters: parameters.into(),
            body: Bytes::new(),
        };
        let urgency = query.directives.urgency;
        ClientQuery {
            endpoint,
            canonical: Arc::new(canonical),
            directives: RequestDirectives { urgency, ..RequestDirectives::default() },
            headers: None,
            base: None,
            redact: None,
            received: self.shared.clock.now(),
            ..query.clone()
        }
    }

    /// Refuses a job or a page token that was not given out in this scope.
    async fn prove(&self, scope: &Scope, query: &ClientQuery) -> Result<(), GatewayError> {
        let (account, CanonicalQuery { path, parameters, .. }) = (&query.team.account, &*query.canonical);
        let Shared { owners, clock, .. } = &*self.shared;
        let job = query.endpoint.id(path).map(|id| Key::of_job(account, id));
        let token = Parameters::parse(parameters).ok().and_then(|parameters| parameters.page_token_alone());
        let token = token.map(|token| Key::of_path(account, query.endpoint, path, token.as_str(), b""));
        if let Some(learning) = owners.learn(scope, account, job.into_iter().chain(token), *clock) {
            learning.wait(&query.context.store_wait).await;
        }
        let is_refused = |key: Option<Key>| key.is_some_and(|key| !owners.has(scope, &key, *clock));
        let refuse = |message| Err(GatewayError::new(Reason::FieldNotAllowed, message));
        if is_refused(job) {
            return refuse(
                "this query job was not given to this team under its policy, or more than seven days ago: submit the \
                 query again",
            );
        }
        match is_refused(token) {
            false => Ok(()),
            true => refuse("this page token was not given to this team under its policy: begin with the first page"),
        }
    }

    /// Records the jobs and page tokens of an answer for this scope, and removes jobs of other scopes from a list.
    async fn give(&self, scope: &Scope, query: &ClientQuery, response: &mut CacheResponse) -> Result<(), GatewayError> {
        if !is_success(response) {
            return Ok(());
        }
        let (account, path) = (&query.team.account, &query.canonical.path);
        let Shared { owners, clock, .. } = &*self.shared;
        let given = Arc::clone(response.representation());
        if query.endpoint.operation == Operation::JobList {
            if owners.are_shared() {
                let jobs = job::ids_of_list(&given.body).into_iter().map(|id| Key::of_job(account, &id));
                if let Some(learning) = owners.learn(scope, account, jobs, *clock) {
                    learning.wait(&query.context.store_wait).await;
                }
            }
            let own = |id: &str| owners.has(scope, &Key::of_job(account, id), *clock);
            let left = job::list_of(&given.body, own).ok_or_else(|| {
                GatewayError::new(Reason::UpstreamInvalid, "Twilio answered with something that is no list of jobs")
            })?;
            let key = match &response.content {
                Content::Stored(entry) => entry.key_param,
                Content::Forwarded(_, key) => *key,
            };
            response.content = Content::Forwarded(Arc::new(given.with_body(left)), key);
        }
        let keys: Vec<_> = match query.endpoint.operation {
            Operation::JobSubmit => {
                let id = Job::read(&given.body).and_then(|job| job.id);
                id.into_iter().map(|id| Key::of_job(account, &id)).collect()
            }
            _ => page::tokens(&given.body)
                .map(|token| Parameters::of_page(&token))
                .map(|token| Key::of_path(account, query.endpoint, path, token.as_str(), b""))
                .collect(),
        };
        let giving = owners.give(scope, account, &keys, *clock);
        grants::settle(giving, response.outcome, &query.context.store_wait).await;
        Ok(())
    }
}

/// The scope of the jobs that a client may see, if its team has a policy.
fn scope(query: &ClientQuery) -> Option<Scope> {
    let account = &query.team.account;
    query.team.policy.as_ref().map(|policy| policy.scope(&account.sid, &account.origin))
}

/// Whether the client has sent an `Idempotency-Key`.
fn has_own_key(headers: Option<&HeaderMap>) -> Result<bool, GatewayError> {
    let mut keys = headers.into_iter().flat_map(|headers| headers.get_all(IDEMPOTENCY_KEY));
    let is_key =
        |key: &HeaderValue| (1..=LONGEST_KEY).contains(&key.len()) && key.as_bytes().iter().all(u8::is_ascii_graphic);
    match (keys.next(), keys.next()) {
        (None, _) => Ok(false),
        (Some(key), None) if is_key(key) => Ok(true),
        _ => Err(GatewayError::new(
            Reason::BadRequest,
            "send one Idempotency-Key of 1 to 255 visible ASCII characters, or none and the gateway makes one",
        )),
    }
}

fn only(name: &'static str, value: HeaderValue) -> HeaderMap {
    [(HeaderName::from_static(name), value)].into_iter().collect()
}

/// Whether Twilio answered a poll with an error that says nothing about the job.
fn has_failed(response: &CacheResponse) -> bool {
    job::is_failed_poll(response.representation().status)
}

fn is_success(response: &CacheResponse) -> bool {
    response.representation().status.is_success()
}

/// The `Retry-After` of an answer about an unfinished job; `None` for a job that has ended.
fn told(answer: &Representation) -> Option<Duration> {
    let (_, value) = answer.headers.iter().find(|(name, _)| *name == header::RETRY_AFTER)?;
    let seconds = value.to_str().ok()?.parse().ok()?;
    answer.status.is_success().then(|| Duration::from_secs(seconds))
}

/// `Retry-After`: whole seconds, at least one.
fn retry_after(wait: Duration) -> (HeaderName, HeaderValue) {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    (header::RETRY_AFTER, seconds.max(1).into())
}

/// Whether a job with this status is unfinished or has results. An answer without a status changes nothing.
fn is_of_use(status: &Representation) -> bool {
    match status.status {
        StatusCode::NOT_FOUND | StatusCode::GONE => false,
        StatusCode::OK => {
            Job::read(&status.body).is_none_or(|job| matches!(job.state, State::Unfinished | State::Completed))
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests;
