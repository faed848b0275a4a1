//! Query jobs in the cache: how long their answers are fresh, and which stored answers are removed when a job's state
//! changes.
//!
//! * The answer to a **submission** is reused for identical submissions within `cache.jobs.dedup`.
//! * The **status** of an unfinished job is fresh until its `Retry-After` has passed. The status of a job that has
//!   ended is not asked for again while its results exist. If a job has ended and a later status says otherwise, that
//!   status is an invalid answer, and the first one stays.
//! * **Results** never change. They are kept for as long as the job's status says, and at most for
//!   `cache.jobs.results`. A 404 from before the job's end is not served once the job is known to have completed. A 404
//!   or 410 for results or status removes all stored results of the job, and its status, so that the next poll learns
//!   the job's state. A 404 for a page that no results have named shows only that a client sent a wrong token. It
//!   removes nothing but the status.
//!
//! What an answer says about a job is also recorded in `Store::jobs`, where it does not depend on which answers are
//! stored. `layers::jobs` reads it there. A poll that failed is recorded as well, so that the next one waits (`polls`), and
//! so is the `Idempotency-Key` of a submission whose end is unknown (`submissions`).
//!
//! There is no index of a job's pages. Instead, each page that is looked up is compared with what was learnt later
//! about its job.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::layer::CacheLayer;
use crate::accounts::Account;
use crate::cache::UnstoredResponse;
use crate::cache::entry::Entry;
use crate::cache::flight::Lease;
use crate::cache::known_jobs::KnownJob;
use crate::cache::stored::StoredResponse;
use crate::core::clock::Instant;
use crate::core::error::{GatewayError, Reason};
use crate::request::call::{UpstreamCall, UpstreamResponse};
use crate::request::key::Key;
use crate::request::query::ClientQuery;
use crate::request::response::Representation;
use crate::semantics::freshness::Lifetimes;
use crate::twilio::endpoint::{CacheClass, Endpoint, Operation};
use crate::twilio::job::{self, Job, State};
use crate::twilio::parameters::Parameters;

/// How long results are kept if the job's status was never asked for. Only the status says how long Twilio keeps them.
const UNKNOWN_RETENTION: Duration = Duration::from_secs(3600);

impl CacheLayer {
    /// The stored response to a query, except for results that a later answer contradicts.
    pub(super) fn page(&self, query: &ClientQuery) -> Option<Arc<Entry>> {
        self.current_page(query.key(), &query.team.account, query.endpoint, &query.canonical.path)
    }

    /// The same for a request to this path.
    pub(super) fn current_page(
        &self,
        key: &Key,
        account: &Account,
        endpoint: &Endpoint,
        path: &str,
    ) -> Option<Arc<Entry>> {
        let entry = self.store.page(key)?;
        let is_current = match endpoint.cache {
            CacheClass::Job => !self.made_a_lost_job(account, &entry),
            CacheClass::Results => endpoint.id(path).is_none_or(|id| !self.is_contradicted(account, id, &entry)),
            _ => true,
        };
        is_current.then_some(entry)
    }

    /// Whether the job of this answer to a submission is known to be lost. A replica may learn that without knowing of the
    /// submission, and then finds the answer to it in the store.
    fn made_a_lost_job(&self, account: &Account, submission: &Entry) -> bool {
        let job = Job::read(&submission.stored.representation.body).and_then(|job| job.id);
        job.is_some_and(|id| self.known(&Key::of_job(account, &id)).lost.is_some())
    }

    /// Whether the job `id` has ended, or its results have expired, since these `results` were asked for.
    fn is_contradicted(&self, account: &Account, id: &str, results: &Entry) -> bool {
        let later = |key: Key| self.store.page(&key).filter(|entry| results.asked <= entry.asked);
        let is_success = results.stored.representation.status.is_success();
        if is_success && later(end_of_results(account, id)).is_some() {
            return true;
        }
        let known = self.known(&Key::of_job(account, id));
        let is_later = |told: Option<Instant>| told.is_some_and(|told| results.asked <= told);
        let is_over = || {
            self.store.results_end(&Key::of_job(account, id), self.clock).is_some_and(|end| end < self.clock.moment())
        };
        if (is_success && (is_later(known.lost) || is_over())) || (!is_success && is_later(known.completed)) {
            return true;
        }
        let Some(status) = later(Key::of_job(account, id)) else { return false };
        let state = state(&status.stored.representation);
        match (is_success, state) {
            (_, Some(State::Unfinished)) | (true, Some(State::Completed)) => false,
            (false, state) => state.is_some(),
            (true, _) => true,
        }
    }

    /// Brings the status of a job into memory whose results are called for, if a tier has it: it says how long the results
    /// may be kept.
    pub(super) async fn load_status(&self, call: &UpstreamCall) {
        let account = &call.team.account;
        let Some(id) = call.endpoint.id(&call.path).filter(|_| call.endpoint.operation == Operation::JobResults) else {
            return;
        };
        let status = Key::of_job(account, id);
        if self.store.page(&status).is_none()
            && let Some(loading) = self.store.load(account, &status, &call.context, self.clock.now())
        {
            loading.await;
        }
    }

    /// What is known of the job whose status has this key.
    fn known(&self, key: &Key) -> KnownJob {
        self.store.jobs.get(key).unwrap_or_default()
    }

    /// Records what the end of a call tells of query jobs. The call was made at `asked`.
    pub(super) fn learn(&self, call: &UpstreamCall, answered: &Result<UpstreamResponse, GatewayError>, asked: Instant) {
        let account = &call.team.account;
        let key = || Key::of_job(account, call.endpoint.id(&call.path).unwrap_or_default());
        match (call.endpoint.operation, answered) {
            (Operation::JobStatus, Ok(answer)) => self.learn_status(account, key(), answer, asked),
            (Operation::JobStatus, Err(error)) if error.reason().is_of_an_attempt() => {
                let next = |known: &KnownJob| job::wait(error.retry_after().or(known.wait));
                self.store.jobs.update(key(), |known| known.next_poll = Some(self.clock.moment().after(next(known))));
            }
            (Operation::JobResults, Ok(answer)) if is_gone(answer.status) => {
                let key = key();
                // Results of an unfinished job do not exist either.
                let status = || self.store.page(&key).and_then(|entry| state(&entry.stored.representation));
                let has_completed =
                    self.known(&key).completed.is_some_and(|told| told <= asked) || status() == Some(State::Completed);
                if self.shows_the_end(call, answer.status) && (has_completed || answer.status == StatusCode::GONE) {
                    self.update(account, key, |known| lost(known, asked));
                }
            }
            (Operation::JobResults, Ok(answer)) if answer.status == StatusCode::OK => {
                self.store.jobs.update(key(), |known| ended(known, State::Completed, asked));
                if let Some(token) = &answer.next_token {
                    self.store.jobs.name_page(page_key(call, &Parameters::of_page(token)));
                }
            }
            (Operation::JobList, Ok(answer)) if answer.status == StatusCode::OK => {
                for (id, state) in job::ended_of_list(&answer.body) {
                    let key = Key::of_job(account, &id);
                    // A list can be long. Of jobs that no client has asked about only those are recorded that must not be
                    // shared: after a restart the answer to their submission may still be on the disk.
                    if state != State::Completed || self.store.jobs.get(&key).is_some() {
                        self.update(account, key, |known| ended(known, state, asked));
                    }
                }
            }
            (Operation::JobSubmit, Ok(answer)) if answer.status.is_success() => {
                let Some(Job { id: Some(id), state, .. }) = Job::read(&answer.body) else { return };
                let wait = job::poll_after(&answer.headers, self.clock.wall_now());
                self.update(account, Key::of_job(account, &id), |known| {
                    known.submission = Some(call.key);
                    known.wait = known.wait.or(Some(wait));
                    ended(known, state, asked);
                });
            }
            _ => {}
        }
    }

    /// Records what an answer tells of a job. If the job is lost since then, other replicas are told, and the answer to its
    /// submission stays in memory alone: after a restart nothing would be known that keeps the job from being shared.
    fn update(&self, account: &Account, key: Key, change: impl FnOnce(&mut KnownJob)) {
        let (mut outdated, mut is_news) = (None, false);
        self.store.jobs.update(key, |known| {
            let before = *known;
            change(known);
            outdated = known.submission.filter(|_| before.lost.is_none() && known.lost.is_some());
            is_news = known.is_lost_for_good() && !before.is_lost_for_good();
        });
        if is_news {
            self.store.jobs.tell_lost(account, &key, self.policy.jobs.dedup);
        }
        let Some(submission) = outdated else { return };
        let stored = self.store.page(&submission);
        let made = stored.and_then(|entry| Job::read(&entry.stored.representation.body)?.id);
        // A later submission of the same query may have made another job.
        if made.is_none_or(|id| Key::of_job(account, &id) == key) {
            self.store.remove_from_tiers(submission, account.id(), self.clock.now());
        }
    }

    fn learn_status(&self, account: &Account, key: Key, answer: &UpstreamResponse, asked: Instant) {
        let (now, wall) = (self.clock.moment(), self.clock.wall_now());
        let stated = job::stated_wait(&answer.headers, wall);
        let job = Job::read(&answer.body).filter(|_| answer.status == StatusCode::OK);
        self.update(account, key, |known| {
            let wait = if job.is_some() { job::wait(stated) } else { job::wait(stated.or(known.wait)) };
            known.next_poll = Some(now.after(wait));
            match answer.status {
                StatusCode::GONE => lost(known, asked),
                StatusCode::NOT_FOUND => {
                    known.was_not_found |= known.lost.is_none();
                    known.lost = known.lost.max(Some(asked));
                }
                _ => {}
            }
            let Some(job) = job else { return };
            if known.ended.is_some_and(|before| !before.may_become(job.state)) {
                return;
            }
            if known.was_not_found && known.lost <= Some(asked) {
                (known.lost, known.was_not_found) = (None, false);
            }
            match job.state {
                State::Unfinished => known.wait = Some(wait),
                state => {
                    ended(known, state, asked);
                    known.ended = Some(state);
                    known.results_end = job.retained(wall).map(|retained| now.after(retained));
                }
            }
        });
    }

    /// How long a successful answer about a query job may be served; `None` for any other answer. Removes the stored
    /// answers that it contradicts.
    ///
    /// # Errors
    ///
    /// If a job that had ended is said to be in another state.
    pub(super) fn of_job(
        &self,
        call: &UpstreamCall,
        answer: &UpstreamResponse,
        asked: Instant,
        lease: &Lease,
    ) -> Result<Option<Lifetimes>, GatewayError> {
        let account = &call.team.account;
        let id = call.endpoint.id(&call.path).unwrap_or_default();
        match (call.endpoint.cache, answer.status) {
            (CacheClass::Job, status) if status.is_success() => {
                let state = Job::read(&answer.body).map(|job| job.state);
                let is_lost = matches!(state, Some(State::Failed | State::Expired));
                Ok(Some(Lifetimes::fresh_only(if is_lost { Duration::ZERO } else { self.policy.jobs.dedup })))
            }
            (CacheClass::Status, StatusCode::OK) => {
                let new = Job::read(&answer.body);
                let state_now = new.as_ref().map_or(State::Unfinished, |job| job.state);
                let stored = self.store.page(&call.key).and_then(|entry| state(&entry.stored.representation));
                let before = [stored, self.known(&call.key).ended];
                if before.into_iter().flatten().any(|before| !before.may_become(state_now)) {
                    let message = "Twilio says of a query job that had ended that it has not, or has ended otherwise; \
                                   if this lasts, submit a new job";
                    return Err(GatewayError::new(Reason::UpstreamInvalid, message));
                }
                let wall = self.clock.wall_now();
                // Even a status that is not kept at all may not cost a poll for each client.
                let wait = job::poll_after(&answer.headers, wall);
                Ok(Some(match state_now {
                    State::Unfinished => {
                        Lifetimes { stale_if_error: job::SERVED_ON_ERROR, ..Lifetimes::fresh_only(wait) }
                    }
                    State::Completed => {
                        let most = self.policy.jobs.results;
                        let retained = new.and_then(|job| job.retained(wall)).unwrap_or(most);
                        // It stays beyond that, because it says when the results have ended, also after a restart.
                        let fresh = Lifetimes::fresh_only(retained.min(most).max(wait));
                        Lifetimes { stale_if_error: most, ..fresh }
                    }
                    State::Failed | State::Expired => Lifetimes::fresh_only(self.policy.jobs.results.max(wait)),
                }))
            }
            (CacheClass::Results, StatusCode::OK) => {
                let (key, now) = (Key::of_job(account, id), self.clock.moment());
                let stated = self.store.results_end(&key, self.clock).map(|end| end.since(now));
                // A status that states no time is fresh for as long as results may be kept.
                let of_status = || {
                    let entry = self.store.page(&key)?;
                    let is_completed = state(&entry.stored.representation) == Some(State::Completed);
                    let left = entry.stored.lifetimes.fresh.saturating_sub(entry.stored.age(now));
                    (is_completed && !left.is_zero()).then_some(left)
                };
                let left = stated.or_else(of_status).unwrap_or(UNKNOWN_RETENTION);
                Ok(Some(Lifetimes::fresh_only(left.min(self.policy.jobs.results))))
            }
            (CacheClass::Status | CacheClass::Results, StatusCode::NOT_FOUND | StatusCode::GONE) => {
                self.end_results(call, id, answer, asked, lease);
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// Whether an answer that something is gone is about the whole job or its results, and not about a page token that
    /// Twilio may never have given out.
    fn shows_the_end(&self, call: &UpstreamCall, status: StatusCode) -> bool {
        let token = || Parameters::parse(&call.parameters).ok()?.page_token_alone();
        status == StatusCode::GONE || token().is_none_or(|token| self.store.jobs.is_named(&page_key(call, &token)))
    }

    /// Results do not exist, or no longer. Removes the job's stored results, and a status that says that they exist.
    fn end_results(&self, call: &UpstreamCall, id: &str, answer: &UpstreamResponse, asked: Instant, lease: &Lease) {
        let (account, now) = (&call.team.account, self.clock.moment());
        let superseded =
            || UnstoredResponse { account: account.id(), asked, made: now, begins: None, next: None, is_shared: true };
        let key = Key::of_job(account, id);
        let status = self.store.page(&key).and_then(|entry| state(&entry.stored.representation));
        if status == Some(State::Completed) {
            self.store.supersede(key, &superseded());
        }
        if !self.shows_the_end(call, answer.status) {
            return;
        }
        self.store.supersede(call.key, &superseded());
        let end = end_of_results(account, id);
        let stored = StoredResponse {
            representation: Arc::new(Representation::new(answer.clone(), &[])),
            account: account.id(),
            operation: Operation::JobResults,
            made: now,
            lifetimes: Lifetimes::fresh_only(self.policy.jobs.results),
            place: end,
            result_set: None,
            next: None,
            settled: None,
        };
        let entry = Entry::new(&end, stored, asked, self.clock.now(), Duration::ZERO);
        self.store.insert(end, entry, lease, |old| old.asked <= asked);
    }
}

/// Records that a job has ended, as an answer to a request of the time `asked` says.
fn ended(known: &mut KnownJob, state: State, asked: Instant) {
    match state {
        State::Completed => known.completed = known.completed.max(Some(asked)),
        State::Failed | State::Expired => lost(known, asked),
        State::Unfinished => {}
    }
}

/// Records that a job is lost for good, as an answer to a request of the time `asked` says.
fn lost(known: &mut KnownJob, asked: Instant) {
    known.lost = known.lost.max(Some(asked));
    known.was_not_found = false;
}

/// The key of the page of the same results to which this token leads.
fn page_key(call: &UpstreamCall, token: &Parameters) -> Key {
    Key::of_path(&call.team.account, call.endpoint, &call.path, token.as_str(), b"")
}

fn is_gone(status: StatusCode) -> bool {
    matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE)
}

/// The state in a status; `None` for an error.
fn state(status: &Representation) -> Option<State> {
    Job::read(&status.body).filter(|_| status.status == StatusCode::OK).map(|job| job.state)
}

/// The key under which the cache records that results were asked for and did not exist. No request has this key,
/// because a GET has no body.
fn end_of_results(account: &Account, id: &str) -> Key {
    let endpoint = Operation::JobResults.endpoint();
    Key::of_path(account, endpoint, &endpoint.path_of(id), "", b"end")
}
