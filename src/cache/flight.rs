//! Single flight: identical calls share one upstream call.
//!
//! A caller that finds nothing stored claims its key. The first becomes the leader: it gets a [`Lease`] and must see to
//! it that the flight runs in a task of its own, so that it outlives the client that began it. The others wait for it.
//! The lease frees the key when it is dropped, however the flight ends: finished, failed, cancelled or panicked. Whoever
//! waits then learns the result, or that the flight was lost, and may claim the key again. A key has one flight, for a
//! client or for a refresh, and one more while somebody wants it fetched anew.
//!
//! A flight that began before a purge of what it brings, or before the result set was replaced, still ends for those who
//! wait for it. Nobody joins it any more: who asks from then on begins another.
//!
//! **Replicas.** This table is the lock of one process. A lock that replicas share goes between [`Flights::claim`] and
//! the upstream call, not in its place: the table stays in front, so that one claim per process and key is all that goes
//! over the network. The leader's task, before it calls upstream, asks the shared lock for the same key with an expiry. It gets
//! a lease, which [`Lease`] then holds and gives up on `finish` and on drop, or it waits until the holder has put its
//! response into the shared tier, and finishes with that. Those who wait here see no difference: the outcome is a
//! [`FlightResult`] either way.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::sets::ResultSet;
use crate::core::clock::Instant;
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
    /// Was the response stored.
    pub(crate) stored: bool,
    /// How old the response was when it came, where it says so.
    pub(crate) age: Option<Duration>,
}

/// The flights under way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flights(Arc<Mutex<Table>>);

type Table = HashMap<(Key, Kind), Flight>;

/// Two flights of one key may be under way at once, one of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// For all who ask.
    Any,
    /// For clients that want the response fetched anew, so that a flight under way does not satisfy them.
    Forced,
}

/// What a flight is for.
#[derive(Debug, Clone)]
pub(crate) struct Flown {
    /// Whose data, by the account's name.
    pub(crate) account: Arc<str>,
    pub(crate) operation: Operation,
    /// What it asks: those who wait for it share this, and need no body of their own.
    pub(crate) canonical: Arc<CanonicalQuery>,
    /// Of a further page: the result set that it belonged to when it was asked for.
    pub(crate) set: Option<ResultSet>,
}

impl Flown {
    pub(crate) fn of(query: &ClientQuery, set: Option<ResultSet>) -> Self {
        let (account, canonical) = (Arc::clone(&query.team.account.name), Arc::clone(&query.canonical));
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
    outdated: Arc<AtomicBool>,
}

/// What a query that claims a key becomes.
#[derive(Debug)]
pub(crate) enum Claim<T> {
    /// It leads: the flight is to be run with this lease and these waiters, by a task that outlives the client.
    Leader(Lease, Arc<Waiters>, Joined),
    /// It waits for a flight that is under way.
    Wait(Joined),
    /// What it asks for has arrived since it last looked.
    Arrived(T),
}

/// A flight that a client waits for. Dropping it is leaving.
#[derive(Debug)]
pub(crate) struct Joined {
    waiter: Waiter,
    ending: watch::Receiver<Option<FlightResult>>,
    /// What the flight asks.
    pub(crate) canonical: Arc<CanonicalQuery>,
}

impl Joined {
    /// When the flight's turn upstream is to be expected, if it waits for that.
    pub(crate) fn estimated_start(&self) -> Option<Instant> {
        self.waiter.estimated_start()
    }

    /// Waits for the end; `None` when the flight was lost. May be given up and called again.
    pub(crate) async fn finished(&mut self) -> Option<FlightResult> {
        self.ending.wait_for(Option::is_some).await.ok().and_then(|finished| finished.clone())
    }
}

impl Flights {
    /// Claims the key of `query`, for the flight of this `kind`. `arrived_meanwhile` is asked under the table's lock, so that a
    /// flight which ended between the look-up and this claim is not repeated.
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
            // A flight whose turn comes too late for this client must not be hurried by it.
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
        // Before the flight asks for its turn upstream: the estimate depends on it.
        waiter.need_by(query.deadline);
        let (lease, ending) = self.enter(&mut table, key, Flown::of(query, set), &waiters);
        Claim::Leader(lease, waiters, Joined { waiter, ending, canonical: Arc::clone(&query.canonical) })
    }

    /// Claims a key for a refresh, which nobody waits for; `None` when such a flight is under way already.
    pub(crate) fn claim_refresh(&self, key: (Key, Kind), flown: Flown) -> Option<(Lease, Arc<Waiters>)> {
        let mut table = self.lock();
        if table.contains_key(&key) {
            return None;
        }
        let waiters = Waiters::of_refresh();
        let (lease, _) = self.enter(&mut table, key, flown, &waiters);
        Some((lease, waiters))
    }

    /// A purge: these flights end for those who wait for them, and nobody joins them any more.
    pub(crate) fn purge(&self, purged: impl Fn(&Key, &Flown) -> bool) {
        self.lock().retain(|(key, _), flight| {
            let is_purged = purged(key, &flight.flown);
            flight.outdated.fetch_or(is_purged, Ordering::SeqCst);
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
        let outdated = Arc::<AtomicBool>::default();
        let (waiters, shared) = (Arc::clone(waiters), Arc::clone(&outdated));
        let flight = Flight { waiters, ending: ending.clone(), flown, outdated: shared };
        if let Some(of_older_set) = table.insert(key, flight) {
            of_older_set.outdated.store(true, Ordering::SeqCst);
        }
        (Lease { flights: self.clone(), key, sender, outdated }, ending)
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
    outdated: Arc<AtomicBool>,
}

impl Lease {
    /// Tells all who wait. The key is freed first: a query that comes now finds the response, or claims the key.
    pub(crate) fn finish(self, finished: FlightResult) {
        self.leave();
        self.sender.send_replace(Some(finished));
    }

    /// Has what it brings been purged, or its result set been replaced, since it began.
    pub(crate) fn is_outdated(&self) -> bool {
        self.outdated.load(Ordering::SeqCst)
    }

    fn leave(&self) {
        let mut table = self.flights.lock();
        // Another flight may have the key by now: this one has finished, was purged or was of an older result set.
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
