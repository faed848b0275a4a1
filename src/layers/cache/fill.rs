//! One upstream call for all replicas: the leader of a flight in this process leads for the other replicas too, or
//! waits for the flight of one of them.
//!
//! Without a lock that replicas share, nothing here takes time. A flight never depends on the lock: if the lock does
//! not answer, the flight goes upstream. It also goes upstream when its request has waited for the store as long as a
//! request may, with all its operations. That alone does not mean that the store has failed, because it may answer
//! other requests in time.

use std::ops::ControlFlow::{self, Break, Continue};
use std::sync::Arc;
use std::time::Duration;

use super::layer::CacheLayer;
use crate::cache::entry::Entry;
use crate::cache::fill_lock::{ClaimOutcome, ClaimRequest, FillLease, FillLock, StoredSize, WaitOutcome};
use crate::cache::flight::{FlightResult, Kind};
use crate::cache::sets::Membership;
use crate::core::clock::{Instant, Moment};
use crate::core::error::{GatewayError, Reason};
use crate::request::call::{UpstreamCall, UpstreamResponse};
use crate::request::response::Representation;
use crate::semantics::freshness::{Decision, decide};
use crate::semantics::request_directives::CacheDirectives;

/// How long a response is looked for that another replica has just stored. It is there within 100 ms, except on a busy
/// machine. A call to Twilio would take about as long.
const PATIENCE: Duration = Duration::from_millis(500);

/// The pause between two such look-ups, and the same for a large response.
const PAUSE: Duration = Duration::from_millis(10);
const LARGE_PAUSE: Duration = Duration::from_millis(50);

/// A request of another replica may seem to be earlier than it was, by this much.
const LAG: Duration = Duration::from_millis(100);

/// What the client that begins a flight accepts in its place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Purpose {
    pub(super) kind: Kind,
    /// When its request was received.
    pub(super) received: Instant,
    pub(super) directives: CacheDirectives,
}

impl CacheLayer {
    /// Claims the flight among the replicas. `Break`: the flight has ended without a call of this replica. `Continue`: call
    /// upstream, and tell the lease the end.
    pub(super) async fn lead_or_follow(
        &self,
        call: &UpstreamCall,
        purpose: Purpose,
        set: &Membership,
    ) -> ControlFlow<FlightResult, Option<FillLease>> {
        let (Some(lock), Kind::Any | Kind::Forced) = (self.store.fill_lock(), purpose.kind) else {
            return Continue(None);
        };
        let begun = self.clock.now();
        let set = set.result_set();
        let mut request = ClaimRequest {
            team: Arc::clone(&call.team),
            waiters: Arc::clone(&call.waiters),
            operation: call.endpoint.operation,
            key: call.key,
            first: set.map(|set| set.first),
            is_forced: purpose.kind == Kind::Forced,
            // A page that was requested before its set began would be older than the first page.
            not_before: set.map(|set| set.begun),
            is_new: false,
            context: Arc::clone(&call.context),
        };
        while self.clock.now() < call.deadline {
            // In a task of its own, because a claim is not to be dropped. A lease that comes too late is given back.
            let claim = async { tokio::spawn(lock.claim(&request)).await };
            let Some(Ok(turn)) = call.context.store_wait.within(lock.patience(), self.clock, claim).await else {
                return Continue(None);
            };
            match turn {
                ClaimOutcome::Unavailable => return Continue(None),
                ClaimOutcome::Lead(lease) => {
                    // Another replica may have finished between this one's look and its claim.
                    if !request.is_new
                        && let Some(found) = self.look(call, purpose).await
                    {
                        lease.finish(&found);
                        return Break(found);
                    }
                    if let Some(failed) = self.failed_poll(call).await {
                        lease.finish(&failed);
                        return Break(failed);
                    }
                    return Continue(Some(lease));
                }
                ClaimOutcome::Stored(size, since) => {
                    if let Some(found) = self.look_for(lock, call, purpose, (size, Some(since))).await {
                        return Break(found);
                    }
                    request.is_new = true;
                }
                ClaimOutcome::Wait(ends) => {
                    let waited = tokio::select! {
                        biased;
                        waited = ends => waited,
                        () = call.waiters.abandoned() => return Break(FlightResult::failed(GatewayError::abandoned())),
                        () = tokio::time::sleep_until(call.deadline) => break,
                    };
                    match waited {
                        WaitOutcome::Ended(finished) => return Break(self.follow(call, finished, begun).await),
                        WaitOutcome::Stored(since) => {
                            // This caller can use the flight, and so it can use the response that the flight has
                            // requested.
                            let ago = since.map(|since| self.clock.moment().since(since) + LAG).unwrap_or_default();
                            let begun = self.clock.now().checked_sub(ago).unwrap_or(purpose.received);
                            let purpose = Purpose { received: begun.min(purpose.received), ..purpose };
                            let found = self.look_for(lock, call, purpose, (StoredSize::Large, since)).await;
                            return found.map_or(Continue(None), Break);
                        }
                        WaitOutcome::Lost => {}
                        WaitOutcome::Unavailable => return Continue(None),
                    }
                }
            }
        }
        let message = "Twilio did not answer another replica's call before this one's deadline";
        Break(FlightResult::failed(GatewayError::new(Reason::UpstreamTimeout, message)))
    }

    /// Looks once for a response that serves this purpose.
    async fn look(&self, call: &UpstreamCall, purpose: Purpose) -> Option<FlightResult> {
        let (entry, now) = (self.newest(call).await?, self.clock.moment());
        self.serves(&entry, purpose, now).then(|| found(&entry, now))
    }

    /// Looks for the response of this size that a flight has stored, which began `since` then. It may still be on its way to
    /// the store.
    async fn look_for(
        &self,
        lock: &dyn FillLock,
        call: &UpstreamCall,
        purpose: Purpose,
        (size, since): (StoredSize, Option<Moment>),
    ) -> Option<FlightResult> {
        let (patience, pause) = match size {
            StoredSize::Usual => (PATIENCE, PAUSE),
            StoredSize::Large => (lock.patience(), LARGE_PAUSE),
        };
        for _ in 0..patience.as_millis() / pause.as_millis() {
            if let Some(entry) = self.newest(call).await {
                let now = self.clock.moment();
                if self.serves(&entry, purpose, now) {
                    return Some(found(&entry, now));
                }
                if since.is_some_and(|since| entry.stored.made >= since.before(LAG)) {
                    // This is the response, and the client does not accept it.
                    return None;
                }
            }
            call.context.store_wait.within(lock.patience(), self.clock, tokio::time::sleep(pause)).await?;
        }
        None
    }

    /// The newest response that this replica or another has stored.
    async fn newest(&self, call: &UpstreamCall) -> Option<Arc<Entry>> {
        if let Some(loading) = self.store.load(&call.team.account, &call.key, &call.context, self.clock.now()) {
            loading.await;
        }
        self.current_page(&call.key, &call.team.account, call.endpoint, &call.path)
    }

    /// Whether the client would have been served with this response if it had been there before.
    fn serves(&self, entry: &Entry, purpose: Purpose, now: Moment) -> bool {
        let Purpose { kind, received, directives } = purpose;
        if kind == Kind::Forced {
            return entry.asked > received;
        }
        let page = (&entry.stored.lifetimes, entry.stored.age(now));
        let is_new = entry.finished > received || entry.stored.made > self.moment_of(received);
        is_new || decide(Some(page), &directives) == Decision::Serve
    }

    /// Ends the flight with what another replica brought. `begun` is when this one began.
    async fn follow(&self, call: &UpstreamCall, finished: FlightResult, begun: Instant) -> FlightResult {
        let answered = finished.result.as_deref().map(answer).map_err(GatewayError::clone);
        self.learn(call, &answered, begun);
        self.remember_poll(call, &finished);
        // So that what clients ask next is answered from the same result set.
        if finished.stored
            && let Some(loading) = self.store.load(&call.team.account, &call.key, &call.context, self.clock.now())
        {
            loading.await;
        }
        finished
    }

    /// The moment of a recent instant.
    fn moment_of(&self, instant: Instant) -> Moment {
        self.clock.moment().before(self.clock.now().saturating_duration_since(instant))
    }
}

/// The end of a flight that found this response of another replica.
fn found(entry: &Entry, now: Moment) -> FlightResult {
    FlightResult { by_another: true, ..FlightResult::of(entry, now) }
}

/// The answer that is in this representation.
fn answer(page: &Representation) -> UpstreamResponse {
    let headers = page.headers.iter().cloned().collect();
    UpstreamResponse { status: page.status, headers, body: page.body.clone(), next_token: None }
}
