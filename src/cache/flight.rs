//! Single flight: identical calls share one upstream call.
//!
//! A caller that finds nothing stored claims its key. The first caller becomes the leader: it gets a [`Lease`] and must
//! run the flight in a task of its own, so that the flight outlives the client that began it. The others wait for it.
//! The lease frees the key when it is dropped, however the flight ends: finished, failed, cancelled or panicked. The
//! callers that wait then get the result. If the flight was lost, they may claim the key again. A key has at most one
//! flight for a client or a refresh, and one for clients that demand a new response. A submission that demands a new
//! job has a flight of its own.
//!
//! A flight becomes outdated if its response is purged, or its result set is replaced, after it began. The callers that
//! wait for it still get its result, but no caller joins it any more: the next one begins another flight.
//!
//! **Replicas.** This table is the lock of one process. It stays in front of the lock that replicas share
//! ([`fill_lock`](super::fill_lock)), so that one claim per process and key is all that goes over the network. Before
//! the leader's task calls upstream, it claims the key there too. If another replica already has a flight, the task
//! waits for that and finishes with its result. The callers that wait here see no difference: they get a
//! [`FlightResult`] in both cases.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::entry::Entry;
use super::sets::ResultSet;
use crate::accounts::AccountId;
use crate::core::clock::{Instant, Moment};
use crate::core::error::GatewayError;
use crate::request::key::Key;
use crate::request::query::{CanonicalQuery, ClientQuery};
use crate::request::response::Representation;
use crate::request::waiters::{Waiter, Waiters};
use crate::twilio::endpoint::Operation;

/// How a flight ended.
#[derive(Debug, Clone)]
pub(crate) struct FlightResult {
    pub(crate) result: Result<Arc<Representation>, GatewayError>,
    /// Whether the response was stored.
    pub(crate) stored: bool,
    /// How old the response was when it came, where it says so.
    pub(crate) age: Option<Duration>,
    /// Whether another replica made the upstream call.
    pub(crate) by_another: bool,
}

impl FlightResult {
    /// Of a flight that brought nothing.
    pub(crate) fn failed(error: GatewayError) -> Self {
        Self { result: Err(error), stored: false, age: None, by_another: false }
    }

    /// Of a flight that found this response stored.
    pub(crate) fn of(entry: &Entry, now: Moment) -> Self {
        let result = Ok(Arc::clone(&entry.stored.representation));
        Self { result, stored: true, age: Some(entry.stored.age(now)), by_another: false }
    }
}

/// The flights under way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flights(Arc<Mutex<Table>>);

type Table = HashMap<(Key, Kind), Flight>;

/// One key may have a flight of each kind at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// For all callers.
    Any,
    /// For clients that demand a new response, so that a flight under way does not satisfy them.
    Forced,
    /// For one client alone. The number makes it different from all others.
    Own(u64),
}

/// What a flight is for.
#[derive(Debug, Clone)]
pub(crate) struct Flown {
    /// The account whose data it brings.
    pub(crate) account: AccountId,
    pub(crate) operation: Operation,
    /// What it asks. Those who wait for it share this, and need no body of their own.
    pub(crate) canonical: Arc<CanonicalQuery>,
    /// For a further page: the result set that it belonged to when it was requested.
    pub(crate) set: Option<ResultSet>,
}

impl Flown {
    pub(crate) fn of(query: &ClientQuery, set: Option<ResultSet>) -> Self {
        let (account, canonical) = (query.team.account.id(), Arc::clone(&query.canonical));
        Self { account, operation: query.endpoint.operation, canonical, set }
    }

    fn is_of_set(&self, other: Option<&ResultSet>) -> bool {
        match (&self.set, other) {
            (Some(own), Some(other)) => own.is(other),
            (own, other) => own.is_none() && other.is_none(),
        }
    }
}

#[derive(Debug)]
struct Flight {
    waiters: Arc<Waiters>,
    ending: watch::Receiver<Option<FlightResult>>,
    flown: Flown,
    progress: Arc<Progress>,
}

impl Flight {
    /// Whether what it brings is from after this moment. A further page is not: its set may have begun before.
    fn is_since(&self, at: Moment) -> bool {
        self.flown.set.is_none() && self.progress.called.get().is_some_and(|called| *called >= at)
    }
}

/// What its leader and the table know of a flight.
#[derive(Debug, Default)]
struct Progress {
    outdated: AtomicBool,
    /// When it called upstream, if it has. One that waits for another replica may get what is older than itself.
    called: OnceLock<Moment>,
}

/// What a query becomes that claims a key.
#[derive(Debug)]
pub(crate) enum Claim<T> {
    /// It leads: the flight is to be run with this lease and these waiters, in a task that does not end with the
    /// client.
    Leader(Lease, Arc<Waiters>, Joined),
    /// It waits for a flight that is under way.
    Wait(Joined),
    /// The response has arrived since the caller last looked.
    Arrived(T),
}

/// A flight that a client waits for. Dropping it means to stop waiting.
#[derive(Debug)]
pub(crate) struct Joined {
    waiter: Waiter,
    ending: watch::Receiver<Option<FlightResult>>,
    /// What the flight asks.
    pub(crate) canonical: Arc<CanonicalQuery>,
}

impl Joined {
    /// When the flight is expected to go upstream, if it waits for its turn.
    pub(crate) fn estimated_start(&self) -> Option<Instant> {
        self.waiter.estimated_start()
    }

    /// Waits for the end; `None` when the flight was lost. Safe to cancel and to call again.
    pub(crate) async fn finished(&mut self) -> Option<FlightResult> {
        self.ending.wait_for(Option::is_some).await.ok().and_then(|finished| finished.clone())
    }
}

impl Flights {
    /// Claims the key of `query` for a flight of this `kind`. `arrived_meanwhile` is called under the table's lock, so
    /// that a flight that ended between the look-up and this claim is not repeated.
    pub(crate) fn claim<T>(
        &self,
        query: &ClientQuery,
        kind: Kind,
        set: Option<ResultSet>,
        arrived_meanwhile: impl FnOnce() -> Option<T>,
    ) -> Claim<T> {
        let key = (*query.key(), kind);
        let join = |waiters: &Arc<Waiters>| waiters.join(&query.team, query.directives.urgency);
        let mut table = self.lock();
        if let Some(flight) = table.get(&key).filter(|flight| flight.flown.is_of_set(set.as_ref())) {
            let waiter = join(&flight.waiters);
            // A client whose deadline comes before the flight's turn must not move the flight forward.
            if waiter.estimated_start().is_none_or(|start| start <= query.deadline) {
                waiter.need_by(query.deadline);
            }
            let canonical = Arc::clone(&flight.flown.canonical);
            return Claim::Wait(Joined { waiter, ending: flight.ending.clone(), canonical });
        }
        if let Some(arrived) = arrived_meanwhile() {
            return Claim::Arrived(arrived);
        }
        let waiters = Waiters::of_clients();
        let waiter = join(&waiters);
        // Before the flight asks for its turn upstream, because the estimate depends on it.
        waiter.need_by(query.deadline);
        let (lease, ending) = self.enter(&mut table, key, Flown::of(query, set), &waiters);
        Claim::Leader(lease, waiters, Joined { waiter, ending, canonical: Arc::clone(&query.canonical) })
    }

    /// Whether a call is in progress that a query for `key` would join.
    pub(crate) fn is_under_way(&self, key: &Key) -> bool {
        self.lock().contains_key(&(*key, Kind::Any))
    }

    /// Claims a key for a refresh, for which no client waits; `None` when such a flight is under way already.
    pub(crate) fn claim_refresh(&self, key: (Key, Kind), flown: Flown) -> Option<(Lease, Arc<Waiters>)> {
        let mut table = self.lock();
        if table.contains_key(&key) {
            return None;
        }
        let waiters = Waiters::of_refresh();
        let (lease, _) = self.enter(&mut table, key, flown, &waiters);
        Some((lease, waiters))
    }

    /// Applies a purge that came at this moment, or now: the flights that match end for those who wait for them, and no
    /// caller joins them any more. Those that have called upstream since then go on.
    pub(crate) fn purge(&self, at: Option<Moment>, purged: impl Fn(&Key, &Flown) -> bool) {
        let at = at.unwrap_or(Moment::from_nanos(i64::MAX));
        self.outdate(|key, flown| purged(key, flown).then_some(at));
    }

    /// The same for flights of which each has a moment of its own.
    pub(crate) fn outdate(&self, outdated: impl Fn(&Key, &Flown) -> Option<Moment>) {
        self.lock().retain(|(key, _), flight| {
            let is_purged = outdated(key, &flight.flown).is_some_and(|at| !flight.is_since(at));
            flight.progress.outdated.fetch_or(is_purged, Ordering::SeqCst);
            !is_purged
        });
    }

    fn enter(
        &self,
        table: &mut Table,
        key: (Key, Kind),
        flown: Flown,
        waiters: &Arc<Waiters>,
    ) -> (Lease, watch::Receiver<Option<FlightResult>>) {
        let (sender, ending) = watch::channel(None);
        let progress = Arc::<Progress>::default();
        let (waiters, shared) = (Arc::clone(waiters), Arc::clone(&progress));
        let flight = Flight { waiters, ending: ending.clone(), flown, progress: shared };
        if let Some(of_older_set) = table.insert(key, flight) {
            of_older_set.progress.outdated.store(true, Ordering::SeqCst);
        }
        (Lease { flights: self.clone(), key, sender, progress }, ending)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Every change under this lock is one insertion or removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held by the flight. Frees the key when it is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    flights: Flights,
    key: (Key, Kind),
    sender: watch::Sender<Option<FlightResult>>,
    progress: Arc<Progress>,
}

impl Lease {
    /// Tells all who wait. The key is freed first, so that a query that comes now finds the response or claims the key.
    pub(crate) fn finish(self, finished: FlightResult) {
        self.leave();
        self.sender.send_replace(Some(finished));
    }

    /// Whether its response was purged, or its result set replaced, since it began.
    pub(crate) fn is_outdated(&self) -> bool {
        self.progress.outdated.load(Ordering::SeqCst)
    }

    /// It calls upstream now, and brings nothing older.
    pub(crate) fn calls(&self, now: Moment) {
        // A flight calls once.
        let _ = self.progress.called.set(now);
    }

    /// Whether it is for clients that demand a new response.
    pub(crate) fn is_forced(&self) -> bool {
        self.key.1 == Kind::Forced
    }

    fn leave(&self) {
        let mut table = self.flights.lock();
        // Another flight may have the key by now: this one has finished, was purged, or was of an older result set.
        if table.get(&self.key).is_some_and(|flight| flight.ending.same_channel(&self.sender.subscribe())) {
            table.remove(&self.key);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leave();
    }
}
