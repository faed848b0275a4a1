//! What the cache does about query jobs: how long their answers hold, and what of them ends when a job goes on.
//!
//! * The answer to a **submission** is for whoever submits the same within `cache.jobs.dedup`.
//! * The **status** of an unfinished job holds until its `Retry-After` has passed. That of a job that has ended is not
//!   asked for again while its results are there. A job that has ended and is then said to be in another state is an
//!   invalid answer; the first one stays.
//! * **Results** never change. They are kept for as long as the job's status says, and no longer than
//!   `cache.jobs.results`. A 404 from before the job's end is not served once the status is `COMPLETED`. A 404 or 410 of
//!   results or status ends all results that are kept of the job, and its status, so that the next poll learns what
//!   became of it.
//!
//! Nothing looks for the pages of a job: a page that is looked up is held against what came later about its job.

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
    /// For how long an identical submission gets the same job; zero is never.
    pub dedup: Duration,
    /// For how long results are kept at most.
    pub results: Duration,
}

/// For how long results are kept of a job whose status nobody has asked for: what it says of its retention is not known.
const UNKNOWN_RETENTION: Duration = Duration::from_secs(3600);

impl CacheLayer {
    /// The stored response to a query, unless it is results that something later contradicts.
    pub(super) fn page(&self, query: &ClientQuery) -> Option<Arc<Entry>> {
        let entry = self.store.page(query.key())?;
        let is_current = query.endpoint.cache != CacheClass::Results || {
            let Some(id) = query.endpoint.id(&query.canonical.path) else { return Some(entry) };
            !self.is_contradicted(&query.team.account, id, &entry)
        };
        is_current.then_some(entry)
    }

    /// Has the job `id` ended, or have its results expired, since these `results` were asked for.
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

    /// For how long a success about a query job holds; `None` of any other answer. Ends what it contradicts.
    ///
    /// # Errors
    ///
    /// When a job that had ended is said to be in another state.
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

    /// Results are not there, or no longer. What is kept of them ends, and so does a status that says they are there.
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

/// The state that a status tells; `None` of an error.
fn state(status: &Representation) -> Option<State> {
    Job::read(&status.body).filter(|_| status.status == StatusCode::OK).map(|job| job.state)
}

/// Where it is noted that results were asked for and not there. No request has this key: a GET has no body.
fn end_of_results(account: &Account, id: &str) -> Key {
    let endpoint = Operation::JobResults.endpoint();
    Key::of_path(account, endpoint, &endpoint.path_of(id), "", b"end")
}
