//! `POST …/Query` with `Prefer: respond-async` (RFC 7240 section 4.1), for teams that may use jobs.
//!
//! If there is a fresh page that the client's `Cache-Control` accepts, it is the answer. Otherwise the query is submitted
//! as a job, and the answer is 202 with the job and `Preference-Applied: respond-async`. With `respond-async, wait=N` the
//! gateway waits for a page first:
//!
//! * If a call for the same page is already in progress, for a client or to refresh a stale page, the request joins it for
//!   N seconds. If the call takes longer, it continues and fills the cache, and the query is also submitted as a job:
//!   Twilio is asked twice.
//! * Otherwise the job is submitted at once and watched for N seconds. If it completes in time, the answer is 200 with
//!   the first page of its results, in the page size that the query names. Its page tokens are those of the job's
//!   results, whose address is in `Content-Location` (RFC 9110 section 8.7).
//!
//! The job is submitted like any other, so an identical submission shares it, unless `max-age` or `min-fresh` of this
//! request demand a newer one. Some SDKs send an `Idempotency-Key` with queries; it is ignored here, as it is for plain
//! queries. A page size does not belong to a job, so it is removed from the query string and the body; other parameters
//! are sent. A query with a page token becomes no job.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use tower::Service;

use super::answers::{is_success, retry_after};
use super::layer::{Answered, Jobs};
use super::policies::scope;
use super::status::MOMENT;
use crate::cache::CacheResponse;
use crate::core::clock::Instant;
use crate::core::error::{GatewayError, Reason};
use crate::core::json::{self, Value};
use crate::core::outcome::Outcome;
use crate::request::key::Key;
use crate::request::query::{CanonicalQuery, ClientQuery};
use crate::semantics::freshness::{Decision, decide};
use crate::semantics::request_directives::{CacheDirectives, RequestDirectives};
use crate::twilio::endpoint::Operation;
use crate::twilio::job::{Job, State};
use crate::twilio::parameters::PAGE_SIZE;

const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// The greatest page size of job results, in rows.
const LARGEST_RESULTS: u32 = 1000;

impl<S> Jobs<S>
where
    S: Service<ClientQuery, Response = CacheResponse, Error = GatewayError> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    pub(super) async fn respond_async(self, query: ClientQuery) -> Answered {
        if self.has_page(&query).await || query.directives.cache.only_if_cached {
            return self.ask(query).await;
        }
        let waits = query.directives.wait.is_some();
        let CacheDirectives { no_cache, no_store, .. } = query.directives.cache;
        // A client that demands a new answer does not want that of a call which began before its request.
        let joins = waits && !no_cache && !no_store && self.is_under_way(&query);
        if joins && let Some(answered) = self.join(&query).await {
            return answered;
        }
        let mut submission = self.submission(&query);
        let mut is_first = true;
        let mut accepted = loop {
            let mut accepted = self.submit(submission.clone()).await?;
            if !is_success(&accepted) {
                return Ok(accepted);
            }
            if let Some(scope) = scope(&query) {
                self.give(&scope, &submission, &mut accepted).await?;
            }
            if !waits || joins {
                break accepted;
            }
            match self.watch(&query, &accepted).await {
                Some(WatchOutcome::Results(results)) => return Ok(results),
                _ if is_first && self.is_over_now(&query, &accepted) => {
                    // This request has just learnt that the job is of no use. One new job is enough: where it ends in
                    // the same way, its status says why.
                    is_first = false;
                    submission.received = self.shared.clock.now();
                    continue;
                }
                Some(WatchOutcome::Status(status)) => {
                    let wait = self.poll_after(&status).unwrap_or_default();
                    accepted.headers = vec![retry_after(wait)];
                }
                None => {}
            }
            break accepted;
        };
        accepted.headers.push((PREFERENCE_APPLIED, HeaderValue::from_static("respond-async")));
        accepted.has_links = true;
        Ok(accepted)
    }

    /// Whether a call for the same page is in progress.
    fn is_under_way(&self, query: &ClientQuery) -> bool {
        self.shared.store.flights.is_under_way(query.key())
    }

    /// Waits for the call that is in progress. `None` if it takes longer than this client waits, also if a stale page could
    /// be served instead: the client prefers a job to that.
    async fn join(&self, query: &ClientQuery) -> Option<Answered> {
        let mut joining = query.clone();
        // A stale page would be the answer at once, while the call that refreshes it runs.
        joining.directives.cache.min_fresh.get_or_insert_default();
        let answered = self.ask(joining).await;
        let is_substitute = match &answered {
            Ok(response) => response.outcome == Outcome::StaleError,
            Err(error) => matches!(error.reason(), Reason::UpstreamTimeout | Reason::Deadline),
        };
        let is_late = || self.shared.clock.now() + MOMENT >= query.deadline || self.is_under_way(query);
        (!is_substitute || !is_late()).then_some(answered)
    }

    /// Whether the job of this answer to a submission is known to be lost or over.
    fn is_over_now(&self, query: &ClientQuery, accepted: &CacheResponse) -> bool {
        let id = Job::read(&accepted.representation().body).and_then(|job| job.id);
        id.is_some_and(|id| self.is_over(&Key::of_job(&query.team.account, &id)))
    }

    /// Whether there is a stored response that the client accepts without a call upstream.
    async fn has_page(&self, query: &ClientQuery) -> bool {
        let (store, clock) = (&self.shared.store, self.shared.clock);
        if let Some(loading) = store.load(&query.team.account, query.key(), &query.context, clock.now()) {
            loading.await;
        }
        let entry = store.page(query.key());
        let page = entry.as_ref().map(|entry| (&entry.stored.lifetimes, entry.stored.age(clock.moment())));
        !query.directives.cache.no_store && decide(page, &query.directives.cache) == Decision::Serve
    }

    /// The same query as a job.
    fn submission(&self, query: &ClientQuery) -> ClientQuery {
        let (endpoint, account) = (Operation::JobSubmit.endpoint(), &query.team.account);
        let is_kept = |pair: &&str| pair.split('=').next() != Some(PAGE_SIZE);
        let parameters = query.canonical.parameters.split('&').filter(is_kept).collect::<Vec<_>>().join("&");
        let body = without_page_size(&query.canonical.body).unwrap_or_else(|| query.canonical.body.clone());
        let canonical = CanonicalQuery {
            key: Key::new(account, Operation::JobSubmit, &parameters, &body),
            expected_as: None,
            path: endpoint.path.into(),
            parameters: parameters.into(),
            body,
        };
        // A client that accepts no old page accepts no old job either, because its results are as old.
        let RequestDirectives { cache, urgency, .. } = query.directives;
        ClientQuery {
            endpoint,
            canonical: Arc::new(canonical),
            directives: RequestDirectives { cache, urgency, ..RequestDirectives::default() },
            headers: None,
            deadline: query.received + self.shared.settings.deadline,
            ..query.clone()
        }
    }

    /// Watches a job until it has ended, the client's time is up, or the process shuts down.
    async fn watch(&self, query: &ClientQuery, accepted: &CacheResponse) -> Option<WatchOutcome> {
        let clock = self.shared.clock;
        let id = Job::read(&accepted.representation().body)?.id?;
        let mut status = self.about(query, Operation::JobStatus, &id, "");
        status.directives.wait = query.directives.wait;
        let is_known = self.shared.store.fresh(status.key(), clock.moment()).is_some();
        let until: Instant = clock.now() + self.poll_after(accepted).unwrap_or_default();
        if !is_known && until > clock.now() {
            tokio::select! {
                biased;
                () = self.shared.draining.begun() => return None,
                () = tokio::time::sleep_until(until.min(query.deadline)) => {}
            }
        }
        if clock.now() >= query.deadline {
            return None;
        }
        let status = self.status(status).await.ok()?;
        let state = Job::read(&status.representation().body).map(|job| job.state);
        if state != Some(State::Completed) || clock.now() >= query.deadline {
            return Some(WatchOutcome::Status(status));
        }
        let parameters = page_size(query).map(|size| format!("{PAGE_SIZE}={size}")).unwrap_or_default();
        let asked = self.about(query, Operation::JobResults, &id, &parameters);
        let mut results = self.ask(asked.clone()).await.ok()?;
        if results.representation().status != StatusCode::OK {
            return Some(WatchOutcome::Status(status));
        }
        if let Some(scope) = scope(query) {
            self.give(&scope, &asked, &mut results).await.ok()?;
        }
        // Without it a client could not ask for the second page, because it does not know the job's id.
        let base = query.base.as_ref().map_or("", |base| base.as_str());
        let separator = if parameters.is_empty() { "" } else { "?" };
        let address = [base, &asked.canonical.path, separator, &parameters].concat();
        if let Ok(address) = HeaderValue::try_from(address) {
            results.headers.push((header::CONTENT_LOCATION, address));
        }
        Some(WatchOutcome::Results(results))
    }
}

/// The state of a job when the client's time is up.
enum WatchOutcome {
    Results(CacheResponse),
    Status(CacheResponse),
}

/// The body of a query without its page size, if it has one.
fn without_page_size(body: &[u8]) -> Option<Bytes> {
    let Value::Object(members) = json::parse(body).ok()? else { return None };
    json::member(&members, PAGE_SIZE)?;
    let kept = members.into_vec().into_iter().filter(|member| member.name.as_str() != PAGE_SIZE).collect();
    let mut out = Vec::with_capacity(body.len());
    Value::Object(kept).write(&mut out);
    Some(out.into())
}

/// The page size that the query names, in the query string or, as Twilio's Node SDK sends it, in the body.
fn page_size(query: &ClientQuery) -> Option<u32> {
    let named = |pair: &str| pair.strip_prefix(PAGE_SIZE)?.strip_prefix('=')?.parse().ok();
    let in_body = || match json::member(json::parse(&query.canonical.body).ok()?.as_object()?, PAGE_SIZE)? {
        Value::Number(digits) => digits.parse().ok(),
        _ => None,
    };
    let size: Option<u32> = query.canonical.parameters.split('&').find_map(named).or_else(in_body);
    size.filter(|size| *size > 0).map(|size| size.min(LARGEST_RESULTS))
}
