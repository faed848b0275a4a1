//! Polls of a job's status. Decides which of them go upstream, and what the answer is if none may, or if one takes long.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tower::{Service, ServiceExt};

use super::answers::{has_failed, retry_after, told};
use super::layer::{Answered, Jobs, Shared};
use crate::cache::CacheResponse;
use crate::cache::known_jobs::{self, KnownJob};
use crate::cache::response::{Content, Source};
use crate::core::error::{GatewayError, Reason};
use crate::core::outcome::Outcome;
use crate::request::call::UpstreamResponse;
use crate::request::key::Key;
use crate::request::query::ClientQuery;
use crate::request::response::Representation;
use crate::semantics::cache_status::KeyParam;
use crate::semantics::freshness::Lifetimes;
use crate::semantics::request_directives::{CacheDirectives, RequestDirectives};
use crate::twilio::job::{self, Job, SERVED_ON_ERROR, State};

/// How long a client waits for a poll if there is another answer. A poll that fails can take as long as all its attempts.
const PATIENCE: Duration = Duration::from_secs(1);

impl<S> Jobs<S>
where
    S: Service<ClientQuery, Response = CacheResponse, Error = GatewayError> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    /// A job's status: from Twilio if it may be polled now, and otherwise, or if the poll fails or takes long, the last
    /// known one.
    pub(super) async fn poll(&self, query: ClientQuery) -> Answered {
        let last_known = async || {
            let Shared { store, clock, .. } = &*self.shared;
            if store.page(query.key()).is_some_and(|status| known_jobs::is_over(&status.stored, clock.moment())) {
                return Err(GatewayError::new(Reason::OnlyIfCached, "the time of this job's results is over"));
            }
            let cache =
                CacheDirectives { only_if_cached: true, max_stale: Some(Duration::MAX), ..CacheDirectives::default() };
            let directives = RequestDirectives { cache, ..query.directives.clone() };
            self.ask(ClientQuery { directives, ..query.clone() }).await
        };
        let CacheDirectives { only_if_cached, no_cache, .. } = query.directives.cache;
        if let Some(left) = self.next_poll(query.key()) {
            if let Ok(known) = last_known().await {
                return Ok(known);
            }
            // Without a failure the first status is just being stored: the call for it is joined below.
            let known = || {
                let failure = self.last_failure(&query, left);
                let of = failure.as_ref().and_then(|failed| failed.as_ref().err());
                let known = if failure.is_some() { self.known_status(&query, of) } else { self.as_polled(&query) };
                known.map(Ok).or(failure)
            };
            if !only_if_cached && let Some(known) = known() {
                return known;
            }
        }
        let is_fresh = self.shared.store.fresh(query.key(), self.shared.clock.moment()).is_some() && !no_cache;
        // A client that waits anyway gets the newest status.
        if !is_fresh && !only_if_cached && query.directives.wait.is_none() {
            // Not the answer to the submission: a status that is just being asked for says more.
            let known = last_known().await.ok().or_else(|| self.as_polled(&query));
            if let Some(known) = known {
                return match self.ask_briefly(&query).await {
                    Some(Ok(answered)) => Ok(answered),
                    Some(Err(error)) => last_known().await.or_else(|_| self.as_polled(&query).ok_or(error)),
                    None => Ok(known),
                };
            }
        }
        match self.ask(query.clone()).await {
            Err(error) if !only_if_cached => last_known().await.map_err(|_| error),
            answered => answered,
        }
    }

    /// The answer, if it comes within [`PATIENCE`]. A poll that takes longer continues in the background.
    pub(super) async fn ask_briefly(&self, query: &ClientQuery) -> Option<Answered> {
        let is_under_way = self.shared.store.flights.is_under_way(query.key());
        let mut asked = Box::pin(self.inner.clone().oneshot(query.clone()));
        if let Ok(answered) = tokio::time::timeout(PATIENCE, &mut asked).await {
            return Some(answered);
        }
        if !is_under_way {
            // A call that nobody waits for gives up its place among those that wait for a token.
            tokio::spawn(asked);
        }
        None
    }

    /// What is known of a job without a stored status, in place of this failure of a poll: what an earlier poll said, or else
    /// what the answer to its submission says, if that is stored.
    pub(super) fn known_status(&self, query: &ClientQuery, failure: Option<&GatewayError>) -> Option<CacheResponse> {
        let is_no_outage = |error: &GatewayError| {
            matches!(error.reason(), Reason::UpstreamInvalid | Reason::UpstreamRejectedCredentials)
        };
        // A client is told what does not pass by itself, unless it waits for later polls anyway.
        let is_told = query.directives.wait.is_none() && failure.is_some_and(is_no_outage);
        self.as_polled(query).or_else(|| self.as_submitted(query).filter(|_| !is_told))
    }

    /// What the last poll of a job said.
    pub(super) fn as_polled(&self, query: &ClientQuery) -> Option<CacheResponse> {
        let Shared { store, clock, .. } = &*self.shared;
        let polls = store.jobs.last_polls(query.key());
        let (answer, at) = polls.answer?;
        let (age, next) = (clock.moment().since(at), self.next_poll(query.key()));
        let is_current = next.is_some() && polls.failure.is_none();
        // When the next poll is due, an error is no answer, nor is an end that the poll may contradict.
        let is_usable = told(&answer).is_some_and(|wait| age <= wait + SERVED_ON_ERROR);
        if !is_current && !is_usable {
            return None;
        }
        let outcome = if is_current { Outcome::Hit } else { Outcome::StaleError };
        Some(remembered(query, answer, next.unwrap_or_default(), outcome, Some(age)))
    }

    /// The answer to a poll, with the time until the next one: if it failed, or if the job has not ended.
    pub(super) fn with_next_poll(&self, query: &ClientQuery, answered: Answered) -> Answered {
        let Some(left) = self.next_poll(query.key()) else { return answered };
        match answered {
            Ok(mut response) => {
                if has_failed(&response) || self.poll_after(&response).is_some() {
                    response.headers = vec![retry_after(left)];
                }
                Ok(response)
            }
            Err(error) if error.reason().is_of_an_attempt() => Err(error.with_retry_after(left)),
            refused => refused,
        }
    }

    /// How the last poll failed, for clients that ask again `left` before the next one.
    fn last_failure(&self, query: &ClientQuery, left: Duration) -> Option<Answered> {
        let failure = self.shared.store.jobs.last_polls(query.key()).failure?;
        let failed = failure.map(|answer| remembered(query, answer, left, Outcome::Hit, None));
        Some(self.with_next_poll(query, failed))
    }

    /// What is known of an unfinished job that has no known status: what the answer to its submission says, if that is
    /// stored.
    fn as_submitted(&self, query: &ClientQuery) -> Option<CacheResponse> {
        let Shared { store, clock, .. } = &*self.shared;
        let is_open = |known: &KnownJob| known.lost.is_none() && known.ended.is_none();
        let submission = store.jobs.get(query.key()).filter(is_open)?.submission?;
        let entry = store.page(&submission)?;
        let (stored, age) = (&entry.stored, entry.stored.age(clock.moment()));
        let Representation { headers, body, .. } = &*stored.representation;
        let wait = told(&stored.representation).filter(|_| age <= stored.lifetimes.fresh)?;
        let job = Job::read(body).filter(|job| job.state == State::Unfinished)?;
        // A later submission of the same query may have made another job.
        if Key::of_job(&query.team.account, &job.id?) != *query.key() {
            return None;
        }
        let status = UpstreamResponse {
            status: StatusCode::OK,
            headers: headers.iter().cloned().collect(),
            body: job::status_of_submission(body),
            next_token: None,
        };
        let status = Arc::new(Representation::new(status, query.endpoint.returns));
        let content = Content::Forwarded(status, KeyParam::new(&query.key().short()));
        let source = Source::Hit { ttl: Lifetimes::fresh_only(wait).ttl(age) };
        Some(CacheResponse::new(content, source, Outcome::StaleError, Some(age)))
    }

    /// How long from now on a status must not be polled; `None` if it may be.
    pub(super) fn next_poll(&self, status: &Key) -> Option<Duration> {
        let next = self.shared.store.jobs.get(status)?.next_poll?;
        Some(next.since(self.shared.clock.moment())).filter(|left| !left.is_zero())
    }

    /// The cache directives of a client, as far as the job's `Retry-After` allows them.
    pub(super) fn shielded(&self, query: &ClientQuery) -> CacheDirectives {
        let asked = query.directives.cache;
        let is_forced = asked.no_cache || asked.no_store || asked.max_age.is_some() || asked.min_fresh.is_some();
        let has_ended = || {
            let entry = self.shared.store.page(query.key());
            entry.is_some_and(|entry| told(&entry.stored.representation).is_none())
        };
        CacheDirectives {
            only_if_cached: asked.only_if_cached,
            no_cache: is_forced && has_ended(),
            ..CacheDirectives::default()
        }
    }
}

/// An answer that is in memory, and not in the store. It is fresh for the time that is `left`.
fn remembered(
    query: &ClientQuery,
    answer: Arc<Representation>,
    left: Duration,
    outcome: Outcome,
    age: Option<Duration>,
) -> CacheResponse {
    let content = Content::Forwarded(answer, KeyParam::new(&query.key().short()));
    CacheResponse::new(content, Source::Hit { ttl: Lifetimes::fresh_only(left).ttl(Duration::ZERO) }, outcome, age)
}
