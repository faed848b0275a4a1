//! Single flight: identical calls share one upstream call.
//!
//! The client that began a flight carries it: the work is done as part of the wait for it, which costs least. If that
//! client leaves, the flight goes on as a task of its own. Its place in the table is held by a guard: however it ends
//! (landed, failed, cancelled, panicked) the place is free again, so no lease outlives its holder. Whoever waits is
//! told what happened, or that the flight was lost, and then begins anew, unless it was their own that died. A key has one
//! flight, be it for a client or a refresh, and one more where somebody wants it fetched anew meanwhile.
//!
//! A flight that began before a purge of what it brings, or before the page's result set was replaced, still lands for those
//! who wait for it. Nobody joins it any more: who asks now begins another.

use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::sets::ResultSet;
use crate::core::clock::Instant;
use crate::core::error::GatewayError;
use crate::request::call::{Call, StoredResponse};
use crate::request::key::Key;
use crate::request::waiters::{Waiter, Waiters};
use crate::twilio::endpoint::Operation;

/// What a flight brought.
#[derive(Debug, Clone)]
pub(crate) struct FlightResult {
    pub(crate) result: Result<Arc<StoredResponse>, GatewayError>,
    /// Was the page kept.
    pub(crate) stored: bool,
    /// How old the page was when it came, where it says so.
    pub(crate) age: Option<Duration>,
}

/// The flights under way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flights(Arc<Mutex<Table>>);

type Table = HashMap<(Key, Kind), Flight>;

/// Two kinds of flight of one key may be under way at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// For whoever wants the page.
    Any,
    /// For those who wanted it fetched anew, and so cannot do with a flight that was under way.
    Forced,
}

/// What a flight is for.
#[derive(Debug, Clone)]
pub(crate) struct Flown {
    /// Whose data, by the account's name.
    pub(crate) account: Arc<str>,
    pub(crate) operation: Operation,
    /// Of a further page: the result set that it belonged to when it was asked for.
    pub(crate) set: Option<ResultSet>,
}

impl Flown {
    pub(crate) fn of(call: &Call, set: Option<ResultSet>) -> Self {
        Self { account: Arc::clone(&call.team.account.name), operation: call.operation, set }
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

/// A flight that one waits for.
#[derive(Debug)]
pub(crate) struct Joined {
    /// Leaving is dropping this.
    waiter: Waiter,
    ending: watch::Receiver<Option<FlightResult>>,
    leader: LeaderFuture,
    /// Did this call begin the flight.
    pub(crate) leads: bool,
}

impl Joined {
    /// When the flight's turn upstream is to be expected, if it waits for that.
    pub(crate) fn estimated_start(&self) -> Option<Instant> {
        self.waiter.estimated_start()
    }

    /// Waits for the landing; `None` when the flight was lost. May be given up and called again.
    pub(crate) async fn finished(&mut self) -> Option<FlightResult> {
        (&mut self.leader).await;
        self.ending.wait_for(Option::is_some).await.ok().and_then(|finished| finished.clone())
    }
}

impl Flights {
    /// Joins the flight of what `call` asks for, or begins one. `begin` gets what the flight needs to end, and gives the
    /// flight; it is called under the table's lock, so it must not do more. `arrived_meanwhile` is asked under the same
    /// lock, so that a flight which landed between the look-up and this call is not flown again.
    pub(crate) fn join<T>(
        &self,
        call: &Call,
        kind: Kind,
        set: Option<ResultSet>,
        arrived_meanwhile: impl FnOnce() -> Option<T>,
        begin: impl FnOnce(FlightGuard, Arc<Waiters>) -> BoxFuture<'static, ()>,
    ) -> Result<Joined, T> {
        let key = (call.key, kind);
        let wait_for = |waiters: &Arc<Waiters>| {
            let waiter = waiters.join(&call.team, call.directives.urgency);
            // Before the call asks for its turn, which is of no use when it comes later.
            waiter.need_by(call.deadline);
            waiter
        };
        let mut table = self.lock();
        if let Some(flight) = table.get(&key).filter(|flight| flight.flown.is_of_set(set.as_ref())) {
            // A flight whose turn comes too late for this client must not be hurried by it.
            let estimated_start =
                flight.waiters.estimated_start().filter(|estimated_start| *estimated_start > call.deadline);
            let waiter = match estimated_start {
                Some(_) => flight.waiters.join(&call.team, call.directives.urgency),
                None => wait_for(&flight.waiters),
            };
            return Ok(Joined { waiter, ending: flight.ending.clone(), leader: LeaderFuture(None), leads: false });
        }
        if let Some(arrived) = arrived_meanwhile() {
            return Err(arrived);
        }
        let waiters = Waiters::of_clients();
        let waiter = wait_for(&waiters);
        let (guard, ending) = self.enter(&mut table, key, Flown::of(call, set), &waiters);
        Ok(Joined { waiter, ending, leader: LeaderFuture(Some(begin(guard, waiters))), leads: true })
    }

    /// Begins a refresh unless one of the same is in flight already.
    pub(crate) fn refresh(
        &self,
        key: (Key, Kind),
        flown: Flown,
        begin: impl FnOnce(FlightGuard, Arc<Waiters>) -> BoxFuture<'static, ()>,
    ) {
        let mut table = self.lock();
        if !table.contains_key(&key) {
            let waiters = Waiters::of_refresh();
            let (guard, _) = self.enter(&mut table, key, flown, &waiters);
            let flight = begin(guard, waiters);
            // A runtime that is shutting down drops it at once, which frees its place.
            drop(table);
            tokio::spawn(flight);
        }
    }

    /// What these flights bring was asked for before a purge of it, and is for nobody who asks from now on.
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
    ) -> (FlightGuard, watch::Receiver<Option<FlightResult>>) {
        let (sender, ending) = watch::channel(None);
        let outdated = Arc::<AtomicBool>::default();
        let (waiters, shared) = (Arc::clone(waiters), Arc::clone(&outdated));
        let flight = Flight { waiters, ending: ending.clone(), flown, outdated: shared };
        if let Some(of_older_set) = table.insert(key, flight) {
            of_older_set.outdated.store(true, Ordering::SeqCst);
        }
        (FlightGuard { flights: self.clone(), key, sender, outdated }, ending)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Every change under this lock is one insertion or removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A flight under way, as long as its first client waits for it. Dropped before its end, it goes on by itself.
struct LeaderFuture(Option<BoxFuture<'static, ()>>);

impl Future for LeaderFuture {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // Out of its place meanwhile, so that one that panics does not go on.
        let Some(mut flight) = self.0.take() else { return Poll::Ready(()) };
        // As it would be in a task of its own: what panicked is dropped, and nothing of it is looked at again.
        match catch_unwind(AssertUnwindSafe(|| flight.as_mut().poll(context))) {
            Ok(Poll::Pending) => {
                self.0 = Some(flight);
                Poll::Pending
            }
            Ok(Poll::Ready(())) | Err(_) => Poll::Ready(()),
        }
    }
}

impl Drop for LeaderFuture {
    fn drop(&mut self) {
        // Without a runtime everything ends.
        if let (Some(flight), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(flight);
        }
    }
}

impl fmt::Debug for LeaderFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LeaderFuture").field(&self.0.is_some()).finish()
    }
}

/// Held by the flight; frees the place in the table when it is dropped.
#[derive(Debug)]
pub(crate) struct FlightGuard {
    flights: Flights,
    key: (Key, Kind),
    sender: watch::Sender<Option<FlightResult>>,
    outdated: Arc<AtomicBool>,
}

impl FlightGuard {
    /// Tells everybody who waits. The place is freed first: who comes now finds the page, or begins anew.
    pub(crate) fn finish(self, finished: FlightResult) {
        self.leave();
        self.sender.send_replace(Some(finished));
    }

    /// Was what it brings purged after it began, or has its result set been replaced.
    pub(crate) fn is_outdated(&self) -> bool {
        self.outdated.load(Ordering::SeqCst)
    }

    fn leave(&self) {
        let mut table = self.flights.lock();
        // Another flight may have the place, since this one landed, was purged or was of an older set.
        if table.get(&self.key).is_some_and(|flight| flight.ending.same_channel(&self.sender.subscribe())) {
            table.remove(&self.key);
        }
    }
}

impl Drop for FlightGuard {
    fn drop(&mut self) {
        self.leave();
    }
}
