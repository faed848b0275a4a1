//! Query jobs in the cache: how long their answers are fresh, and which stored answers end when a job's state changes.
//!
//! * The answer to a **submission** is reused for identical submissions within `cache.jobs.dedup`.
//! * The **status** of an unfinished job is fresh until its `Retry-After` has passed. The status of a job that has
//!   ended is not asked for again while its results exist. If a job has ended and a later status says otherwise, that
//!   status is an invalid answer, and the first one stays.
//! * **Results** never change. They are kept for as long as the job's status says, and at most for
//!   `cache.jobs.results`. A 404 from before the job's end is not served once the status is `COMPLETED`. A 404 or 410
//!   for results or status removes all stored results of the job, and its status, so that the next poll learns the
//!   job's state.
//!
//! There is no index of a job's pages. Instead, each page that is looked up is compared with what was learnt later
//! about its job.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::CacheLayer;
use crate::accounts::Account;
use crate::cache::Unkept;
use crate::cache::entry::Entry;
use crate::cache::flight::Lease;
use crate::cache::stored::StoredResponse;
use crate::core::clock::Instant;
use crate::core::error::{GatewayError, Reason};
use crate::request::call::{UpstreamCall, UpstreamResponse};
use crate::request::key::Key;
use crate::request::query::ClientQuery;
use crate::request::response::Representation;
use crate::semantics::freshness::Lifetimes;
use crate::twilio::endpoint::{CacheClass, Operation};
use crate::twilio::job::{self, Job, State};

/// `[cache.jobs]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobLifetimes {
    /// How long an identical submission gets the same job; zero turns sharing off.
    pub dedup: Duration,
    /// The longest time for which results are kept.
    pub results: Duration,
}

/// How long results are kept if the job's status was never asked for. Only the status says how long Twilio keeps them.
const UNKNOWN_RETENTION: Duration = Duration::from_secs(3600);

impl CacheLayer {
    /// The stored response to a query, except for results that a later answer contradicts.
    pub(super) fn page(&self, query: &ClientQuery) -> Option<Arc<Entry>> {
        let entry = self.store.page(query.key())?;
        let is_current = query.endpoint.cache != CacheClass::Results || {
            let Some(id) = query.endpoint.id(&query.canonical.path) else { return Some(entry) };
            !self.is_contradicted(&query.team.account, id, &entry)
        };
        is_current.then_some(entry)
    }

    /// Whether the job `id` has ended, or its results have expired, since these `results` were asked for.
    fn is_contradicted(&self, account: &Account, id: &str, results: &Entry) -> bool {
        let later = |key: Key| self.store.page(&key).filter(|entry| results.asked <= entry.asked);
        let is_success = results.stored.representation.status.is_success();
        if is_success && later(end_of_results(account, id)).is_some() {
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

    /// How long a successful answer about a query job is fresh; `None` for any other answer. Removes the stored answers
    /// that it contradicts.
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
    ) -> Result<Option<Duration>, GatewayError> {
        let account = &call.team.account;
        let id = call.endpoint.id(&call.path).unwrap_or_default();
        match (call.endpoint.cache, answer.status) {
            (CacheClass::Job, status) if status.is_success() => Ok(Some(self.policy.jobs.dedup)),
            (CacheClass::Status, StatusCode::OK) => {
                let new = Job::read(&answer.body);
                let state_now = new.as_ref().map_or(State::Unfinished, |job| job.state);
                let before = self.store.page(&call.key).and_then(|entry| state(&entry.stored.representation));
                if before.is_some_and(|before| !before.may_become(state_now)) {
                    let message = "Twilio says of a query job that had ended that it has not, or has ended otherwise; \
                                   if this lasts, submit a new job";
                    return Err(GatewayError::new(Reason::UpstreamInvalid, message));
                }
                let wall = self.clock.wall_now();
                Ok(Some(match state_now {
                    State::Unfinished => job::poll_after(&answer.headers, wall),
                    State::Completed => {
                        let retained = new.and_then(|job| job.retained(wall)).unwrap_or(self.policy.jobs.results);
                        retained.min(self.policy.jobs.results)
                    }
                    State::Failed | State::Expired => self.policy.jobs.results,
                }))
            }
            (CacheClass::Results, StatusCode::OK) => {
                let status = self.store.page(&Key::of_job(account, id));
                let status = status.filter(|entry| state(&entry.stored.representation) == Some(State::Completed));
                let now = self.clock.moment();
                let left = status.map(|entry| entry.stored.lifetimes.fresh.saturating_sub(entry.stored.age(now)));
                Ok(Some(left.unwrap_or(UNKNOWN_RETENTION).min(self.policy.jobs.results)))
            }
            (CacheClass::Status | CacheClass::Results, StatusCode::NOT_FOUND | StatusCode::GONE) => {
                self.end_results(call, id, answer, asked, lease);
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// Results do not exist, or no longer. Removes the job's stored results, and a status that says that they exist.
    fn end_results(&self, call: &UpstreamCall, id: &str, answer: &UpstreamResponse, asked: Instant, lease: &Lease) {
        let (account, now) = (&call.team.account, self.clock.moment());
        let superseded = || Unkept {
            account: Arc::clone(&account.name),
            asked,
            made: now,
            begins: None,
            next: None,
            is_shared: true,
        };
        let key = Key::of_job(account, id);
        let status = self.store.page(&key).and_then(|entry| state(&entry.stored.representation));
        if status == Some(State::Completed) {
            self.store.supersede(key, &superseded());
        }
        self.store.supersede(call.key, &superseded());
        let end = end_of_results(account, id);
        let stored = StoredResponse {
            representation: Arc::new(Representation::new(answer.clone(), &[])),
            account: Arc::clone(&account.name),
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
