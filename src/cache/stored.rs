//! A stored response: what every tier of the cache keeps of it.
//!
//! It has no handle of this process in it, so it can be written ([`record`](super::record)) and read by a later
//! process. What only this process knows of it is in [`Entry`](super::entry::Entry).

use std::sync::Arc;
use std::time::Duration;

use super::sets::ResultSet;
use crate::accounts::AccountId;
use crate::core::clock::Moment;
use crate::request::key::Key;
use crate::request::response::Representation;
use crate::semantics::freshness::Lifetimes;
use crate::twilio::endpoint::Operation;
use crate::twilio::settled::Verdict;

/// A response, the account whose it is, and how long it may be served.
#[derive(Debug, Clone)]
pub struct StoredResponse {
    pub(crate) representation: Arc<Representation>,
    /// The account whose data it is. Its name may change while this is stored.
    pub(crate) account: AccountId,
    pub(crate) operation: Operation,
    /// When it was new. Its age counts from then: when it arrived, or earlier by its `Age`. A moment of this boot of
    /// the machine; a record also has the wall time.
    pub(crate) made: Moment,
    pub(crate) lifetimes: Lifetimes,
    /// The key under which a result set expects it: its own key, unless the page was requested with more than its
    /// token.
    pub(crate) place: Key,
    /// The result set that it is a page of.
    pub(crate) result_set: Option<ResultSet>,
    /// The key of the page after it in that set.
    pub(crate) next: Option<Key>,
    /// For a query: whether its data no longer changes.
    pub(crate) settled: Option<Verdict>,
}

impl StoredResponse {
    pub(crate) fn age(&self, now: Moment) -> Duration {
        now.since(self.made)
    }

    pub(crate) fn is_of(&self, result_set: &ResultSet) -> bool {
        self.result_set.is_some_and(|own| own.is(result_set))
    }

    pub(crate) fn is_metadata(&self) -> bool {
        self.operation == Operation::Metadata && self.representation.status.is_success()
    }

    /// Whether a stale one may be refreshed alone. A further page of a result set may not: it would mix an old first
    /// page with newer ones, and would still expire with the first.
    pub(crate) fn is_refreshable(&self) -> bool {
        self.operation != Operation::Page || self.result_set.is_none()
    }
}

#[cfg(test)]
impl StoredResponse {
    /// The response to a query of account `main`, that was new at `made`.
    pub(crate) fn example(key: Key, made: Moment, fresh: Duration) -> Self {
        let body = bytes::Bytes::from(format!("{{\"page\":\"{key}\"}}"));
        let answer = crate::request::call::UpstreamResponse {
            status: http::StatusCode::OK,
            headers: http::HeaderMap::new(),
            body,
            next_token: None,
        };
        Self {
            representation: Arc::new(Representation::new(answer, &[])),
            account: AccountId::example(),
            operation: Operation::Query,
            made,
            lifetimes: Lifetimes::fresh_only(fresh),
            place: key,
            result_set: None,
            next: None,
            settled: None,
        }
    }
}
