//! Decides whether an upstream response is stored, for how long, and to which result set it belongs.

use std::sync::Arc;
use std::time::SystemTime;

use http::StatusCode;
use jiff::Timestamp;

use super::age::{agree, rounded_up};
use super::layer::CacheLayer;
use crate::cache::UnstoredResponse;
use crate::cache::entry::Entry;
use crate::cache::flight::{FlightResult, Lease};
use crate::cache::sets::{Membership, ResultSet};
use crate::cache::stored::StoredResponse;
use crate::core::clock::{Instant, Moment};
use crate::metrics::{SettledLabels, StaticLabel};
use crate::request::call::{UpstreamCall, UpstreamResponse};
use crate::request::key::Key;
use crate::request::response::Representation;
use crate::semantics::cache_control::{self, Storage};
use crate::semantics::freshness::Lifetimes;
use crate::twilio::endpoint::{Body, CacheClass, Operation};
use crate::twilio::page;
use crate::twilio::parameters::Parameters;
use crate::twilio::settled::{self, Verdict};

/// What was known when the call began.
pub(super) struct Asked {
    pub(super) at: Instant,
    pub(super) wall: SystemTime,
    /// The key that is the response's place in its result set.
    pub(super) place: Key,
    pub(super) set: Membership,
}

impl CacheLayer {
    /// What is known of the result set that has the place `place`.
    pub(super) fn membership(&self, operation: Operation, place: &Key) -> Membership {
        match operation.endpoint().cache {
            CacheClass::Page => self.store.membership(place, self.clock.moment()),
            _ => Membership::Unknown,
        }
    }

    /// Makes a stored response of an upstream response, and stores it if that is allowed.
    pub(super) fn keep(
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
                let unstored = UnstoredResponse {
                    account: call.team.account.id(),
                    asked: asked.at,
                    made,
                    begins: (class == CacheClass::Query).then(|| self.unstored_set(call.key, made)),
                    next,
                    is_shared: true,
                };
                self.store.supersede(call.key, &unstored);
            }
            return finished(false);
        };
        let result_set = match class {
            CacheClass::Query if page.status.is_success() => Some(ResultSet::begin(call.key, made, lifetimes)),
            _ => set.result_set(),
        };
        let stored = StoredResponse {
            representation: Arc::clone(&page),
            account: call.team.account.id(),
            operation,
            made,
            lifetimes,
            place: asked.place,
            result_set,
            next,
            settled,
        };
        let mut entry = Entry::new(&call.key, stored, asked.at, now, storage.age);
        entry.previous = result_set.and_then(|_| page::previous_token(&page.body)).map(named);
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
    pub(super) fn unstored_set(&self, first: Key, made: Moment) -> ResultSet {
        ResultSet::begin(first, made, Lifetimes::fresh_only(self.policy.query.fresh))
    }

    /// Whether the data of a query no longer changes. This can be judged before the response arrives, because a settled
    /// query stays settled.
    pub(super) fn judge(&self, call: &UpstreamCall, wall: SystemTime) -> Option<Verdict> {
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

/// The operation whose cache rules apply. A query with a page token has the rules of a further page.
pub(super) fn cached_as(operation: Operation, key: &Key, place: &Key) -> Operation {
    if place == key { operation } else { Operation::Page }
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
