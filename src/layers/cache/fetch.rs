//! Fetches what is not in memory, with one flight for all clients that ask the same, and refreshes in the background.
//!
//! A flight goes on when the clients that wait for it have left. If it fails, each client gets a stale response within
//! its window instead of the error.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tower::{Service, ServiceExt};
use tracing::Instrument;

use super::advice::advised;
use super::bypass::call_alone;
use super::fill::Purpose;
use super::keep::{Asked, cached_as};
use super::layer::{Answered, Caching};
use crate::cache::CacheResponse;
use crate::cache::entry::Entry;
use crate::cache::flight::{Claim, FlightResult, Flown, Joined, Kind, Lease};
use crate::cache::known_jobs;
use crate::cache::response::{Content, Source};
use crate::cache::sets::Membership;
use crate::core::clock::Instant;
use crate::core::error::{GatewayError, Reason};
use crate::core::outcome::Outcome;
use crate::request::call::{UpstreamCall, UpstreamResponse};
use crate::request::key::Key;
use crate::request::query::ClientQuery;
use crate::semantics::cache_status::{Forward, KeyParam};
use crate::semantics::request_directives::CacheDirectives;
use crate::twilio::endpoint::CacheClass;

impl<S> Caching<S>
where
    S: Service<UpstreamCall, Response = UpstreamResponse, Error = GatewayError> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    /// Starts a refresh in the background of a response that was requested at `of`.
    pub(super) fn refresh(&self, query: ClientQuery, of: Instant) {
        let (key, begun) = (*query.key(), self.layer.clock.now());
        if !self.layer.refreshes.allows(&key, of, begun) {
            return;
        }
        let delay = self.layer.policy.refresh_jitter.mul_f64(fastrand::f64());
        let set = self.layer.membership(
            cached_as(query.endpoint.operation, query.key(), &query.canonical.place()),
            &query.canonical.place(),
        );
        let flown = Flown::of(&query, set.result_set());
        let Some((lease, waiters)) = self.layer.store.flights.claim_refresh((key, Kind::Any), flown) else { return };
        let call =
            query.upstream_call(waiters, begun + self.layer.policy.deadline, Arc::new(query.context.of_refresh()));
        let purpose = Purpose { kind: Kind::Any, received: begun, directives: CacheDirectives::default() };
        let (flight, layer) =
            (self.flight(call, query.canonical.place(), set, lease, purpose, delay), Arc::clone(&self.layer));
        tokio::spawn(async move {
            flight.await;
            let is_fresh = |entry: &Entry| entry.stored.age(layer.clock.moment()) <= entry.stored.lifetimes.fresh;
            match layer.store.page(&key) {
                // One that another replica brought has no time here at which it arrived.
                Some(entry) if entry.finished <= begun && !is_fresh(&entry) => {
                    layer.refreshes.failed(&key, entry.asked, entry.stored.lifetimes.fresh, layer.clock.now());
                }
                _ => layer.refreshes.succeeded(&key),
            }
        });
    }

    /// Calls upstream, together with all other clients that ask the same.
    pub(super) async fn fetch(self, mut query: ClientQuery, entry: Option<Arc<Entry>>) -> Answered {
        let asked = self.layer.clock.moment();
        let why = match &entry {
            None => Forward::UriMiss,
            Some(entry) if entry.stored.age(asked) > entry.stored.lifetimes.usable() => Forward::UriMiss,
            Some(entry) if entry.stored.age(asked) > entry.stored.lifetimes.fresh => Forward::Stale,
            Some(_) => Forward::Request,
        };
        loop {
            if query.deadline <= self.layer.clock.now() {
                // It can wait for no flight, of its own or of others. The budget refuses a call without time, and knows
                // when there would be a token for it.
                let refused = call_alone(S::clone(&self.inner), &query, &self.layer).await;
                return self.or_stale(refused, &query);
            }
            let forced = query.directives.cache.no_cache;
            // Each of these makes a new job, so none is the answer to another.
            let is_alone = forced && query.endpoint.cache == CacheClass::Job;
            // The entry arrived after this query was received. For a forced refresh it must also have been requested
            // after that.
            let recent =
                |entry: &Arc<Entry>| !is_alone && if forced { entry.asked } else { entry.finished } > query.received;
            let arrived_meanwhile = || self.layer.page(&query).filter(recent);
            let set = self.layer.membership(
                cached_as(query.endpoint.operation, query.key(), &query.canonical.place()),
                &query.canonical.place(),
            );
            // A flight that began earlier does not satisfy a client that demands a new response.
            let kind = match forced {
                _ if is_alone => Kind::Own(fastrand::u64(..)),
                true => Kind::Forced,
                false => Kind::Any,
            };
            let (mut joined, leads) =
                match self.layer.store.flights.claim(&query, kind, set.result_set(), arrived_meanwhile) {
                    Claim::Leader(lease, waiters, joined) => {
                        // Not the leader's deadline: other clients may have more time.
                        let deadline = self.layer.clock.now() + self.layer.policy.deadline;
                        let call = query.upstream_call(waiters, deadline, Arc::clone(&query.context));
                        let purpose = Purpose { kind, received: query.received, directives: query.directives.cache };
                        tokio::spawn(self.flight(call, query.canonical.place(), set, lease, purpose, Duration::ZERO));
                        (joined, true)
                    }
                    Claim::Wait(joined) => (joined, false),
                    Claim::Arrived(arrived) => {
                        return Ok(CacheResponse::stored(arrived, Some(Outcome::Collapsed), self.layer.clock.moment()));
                    }
                };
            // Equal keys have equal bodies, so all who wait share one.
            query.canonical = Arc::clone(&joined.canonical);
            let now = self.layer.clock.now();
            if let Some(estimated_start) =
                joined.estimated_start().filter(|estimated_start| !leads && *estimated_start > query.deadline)
            {
                // The flight may wait longer than this client does.
                return self.or_stale(Err(GatewayError::too_late(estimated_start - now)), &query);
            }
            match wait(&mut joined, query.deadline).await {
                // Another attempt would end in the same way.
                Waited::Lost if leads => {
                    let message = "the gateway failed while it fetched this; tell its operator";
                    return Err(GatewayError::new(Reason::Internal, message));
                }
                // It was cancelled or panicked. This client claims the key again.
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
                    return self.or_stale(Err(error), &query);
                }
                Waited::FlightResult(finished) => {
                    let now = self.layer.clock.now();
                    // It was not sent, because its clients had left or had no time left. This client has time.
                    let was_not_sent = |error: &GatewayError| {
                        let has_time = now + error.retry_after().unwrap_or_default() < query.deadline;
                        error.is_abandoned() || (error.reason() == Reason::Deadline && has_time)
                    };
                    if !leads && finished.result.as_ref().is_err_and(was_not_sent) {
                        continue;
                    }
                    let collapsed = !leads || finished.by_another;
                    let outcome = if collapsed { Outcome::Collapsed } else { Outcome::Miss };
                    let response = finished.result.map(|page| {
                        let content = Content::Forwarded(page, KeyParam::new(&query.key().short()));
                        let source = Source::Forwarded { why, stored: finished.stored, collapsed };
                        CacheResponse::new(content, source, outcome, finished.age)
                    });
                    return self.or_stale(response, &query);
                }
            }
        }
    }

    /// The response; or instead of an error a stale response within its window.
    fn or_stale(&self, answered: Answered, query: &ClientQuery) -> Answered {
        let failed = match &answered {
            Ok(response) => {
                let status = response.representation().status;
                status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error()
            }
            Err(error) => {
                use Reason::{UpstreamInvalid, UpstreamTimeout, UpstreamUnreachable};
                let reason = error.reason();
                reason.is_of_the_budget() || matches!(reason, UpstreamUnreachable | UpstreamInvalid | UpstreamTimeout)
            }
        };
        // A client that asks for a new job does not want an earlier one.
        let failed = failed && !(query.endpoint.cache == CacheClass::Job && query.directives.cache.no_cache);
        let now = self.layer.clock.moment();
        let is_over =
            |status: &Entry| query.endpoint.cache == CacheClass::Status && known_jobs::is_over(&status.stored, now);
        let usable = |entry: &Arc<Entry>| {
            entry.stored.representation.status.is_success()
                && !is_over(entry)
                && entry.stored.age(now) <= entry.stored.lifetimes.servable_on_error()
        };
        // The entry that was there when the call began may have been purged or replaced since.
        match failed.then(|| self.layer.page(query)).flatten().filter(usable) {
            Some(entry) => Ok(CacheResponse::stored(entry, Some(Outcome::StaleError), now)),
            None => answered.map_err(|error| advised(error, query)),
        }
    }

    /// Runs the flight. It calls upstream after `delay`, or as soon as a client waits for it.
    fn flight(
        &self,
        mut call: UpstreamCall,
        place: Key,
        set: Membership,
        lease: Lease,
        purpose: Purpose,
        delay: Duration,
    ) -> impl Future<Output = ()> + Send + use<S> {
        let (inner, layer) = (S::clone(&self.inner), Arc::clone(&self.layer));
        // The flight's log lines have the id of the request that began it.
        let span = call.context.span();
        let flight = async move {
            if !delay.is_zero() {
                let begun = layer.clock.now();
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = call.waiters.wanted() => {}
                }
                call.deadline = layer.clock.now() + layer.policy.deadline;
                // A forced refresh has replaced the entry meanwhile.
                if let Some(entry) = layer.store.page(&call.key).filter(|entry| entry.finished > begun) {
                    return lease.finish(FlightResult::of(&entry, layer.clock.moment()));
                }
            }
            let for_all = match layer.lead_or_follow(&call, purpose, &set).await {
                ControlFlow::Continue(for_all) => for_all,
                ControlFlow::Break(finished) => return lease.finish(finished),
            };
            let key = layer.choose_key(&mut call, &purpose.directives).await;
            lease.calls(layer.clock.moment());
            let asked = Asked { at: layer.clock.now(), wall: layer.trusted_wall(None), place, set };
            // After the request has been sent, because that is more urgent.
            let judge = async { layer.judge(&call, asked.wall) };
            let (answered, settled, ()) =
                tokio::join!(biased; inner.oneshot(call.clone()), judge, layer.load_status(&call));
            layer.learn(&call, &answered, asked.at);
            let finished = match answered {
                Ok(answer) => layer.keep(&call, answer, settled, &asked, &lease),
                Err(error) => FlightResult::failed(error),
            };
            layer.remember_poll(&call, &finished);
            layer.tell_failed_poll(&call, &finished).await;
            layer.remember_key(&call, &finished, key);
            if let Some(for_all) = for_all {
                for_all.finish(&finished);
            }
            lease.finish(finished);
        };
        flight.instrument(span)
    }
}

enum Waited {
    FlightResult(FlightResult),
    Lost,
    TooLong,
}

/// Waits for a flight until this client's deadline. The flight continues after that.
async fn wait(joined: &mut Joined, deadline: Instant) -> Waited {
    tokio::select! {
        biased;
        finished = joined.finished() => finished.map_or(Waited::Lost, Waited::FlightResult),
        () = tokio::time::sleep_until(deadline) => Waited::TooLong,
    }
}
