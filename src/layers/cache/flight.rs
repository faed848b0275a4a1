//! Single flight: identical calls share one upstream call.
//!
//! A flight is a task of its own, so that it survives the client that began it. Its place in the table is held
//! by a guard: however the task ends (landed, failed, cancelled, panicked) the place is free again, so no lease
//! outlives its holder. Whoever waits is told what happened, or that the flight was lost, and then begins
//! anew. A key has one flight,
//! be it for a client or a refresh, and one more where somebody wants it fetched anew meanwhile.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::model::call::Page;
use crate::model::clock::Instant;
use crate::model::error::GatewayError;
use crate::model::interest::{Interest, Waiter};
use crate::model::key::Key;
use crate::model::tenancy::Team;
use crate::model::wishes::Urgency;

/// What a flight brought.
#[derive(Debug, Clone)]
pub(super) struct Landed {
    pub(super) result: Result<Arc<Page>, GatewayError>,
    /// Was the page kept.
    pub(super) stored: bool,
    /// Until when the flight was allowed to take.
    pub(super) deadline: Instant,
}

/// The flights under way.
#[derive(Debug, Clone, Default)]
pub(super) struct Flights(Arc<Mutex<Table>>);

type Table = HashMap<(Key, Kind), Flight>;

/// Two kinds of flight of one key may be under way at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// For whoever wants the page.
    Any,
    /// For those who wanted it fetched anew, and so cannot do with a flight that was under way.
    Forced,
}

#[derive(Debug)]
struct Flight {
    interest: Arc<Interest>,
    landing: watch::Receiver<Option<Landed>>,
}

/// A flight that one waits for.
#[derive(Debug)]
pub(super) struct Joined {
    /// Leaving is dropping this.
    waiter: Waiter,
    landing: watch::Receiver<Option<Landed>>,
    /// Did this call begin the flight.
    pub(super) leads: bool,
}

impl Joined {
    /// When the flight's turn upstream is to be expected, if it waits for that.
    pub(super) fn turn(&self) -> Option<Instant> {
        self.waiter.turn()
    }

    /// It is waited for until then, by this call.
    pub(super) fn need_by(&self, deadline: Instant) {
        self.waiter.need_by(deadline);
    }

    /// Waits for the landing; `None` when the flight was lost.
    pub(super) async fn landed(&mut self) -> Option<Landed> {
        self.landing.wait_for(Option::is_some).await.ok().and_then(|landed| landed.clone())
    }
}

impl Flights {
    /// Joins the flight of `key`, or begins one. `begin` gets what the flight needs to end; it is called
    /// under the table's lock, so it must only spawn. `arrived_meanwhile` is asked under the same lock, so
    /// that a flight which landed between the look-up and this call is not flown again.
    pub(super) fn join<T>(
        &self,
        key: (Key, Kind),
        client: (&Arc<Team>, Urgency),
        arrived_meanwhile: impl FnOnce() -> Option<T>,
        begin: impl FnOnce(Takeoff, Arc<Interest>),
    ) -> Result<Joined, T> {
        let mut table = self.lock();
        if let Some(flight) = table.get(&key) {
            let (waiter, landing) = (flight.interest.join(client.0, client.1), flight.landing.clone());
            return Ok(Joined { waiter, landing, leads: false });
        }
        if let Some(arrived) = arrived_meanwhile() {
            return Err(arrived);
        }
        let interest = Interest::of_clients();
        let waiter = interest.join(client.0, client.1);
        let landing = self.begin(&mut table, key, Arc::clone(&interest), begin);
        Ok(Joined { waiter, landing, leads: true })
    }

    /// Begins a refresh unless `key` is in flight already.
    pub(super) fn refresh(&self, key: (Key, Kind), begin: impl FnOnce(Takeoff, Arc<Interest>)) {
        let mut table = self.lock();
        if !table.contains_key(&key) {
            self.begin(&mut table, key, Interest::of_refresh(), begin);
        }
    }

    fn begin(
        &self,
        table: &mut Table,
        key: (Key, Kind),
        interest: Arc<Interest>,
        begin: impl FnOnce(Takeoff, Arc<Interest>),
    ) -> watch::Receiver<Option<Landed>> {
        let (sender, landing) = watch::channel(None);
        table.insert(key, Flight { interest: Arc::clone(&interest), landing: landing.clone() });
        begin(Takeoff { flights: self.clone(), key, sender }, interest);
        landing
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Every change under this lock is one insertion or removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held by the flight's task; frees the place in the table when it is dropped.
#[derive(Debug)]
pub(super) struct Takeoff {
    flights: Flights,
    key: (Key, Kind),
    sender: watch::Sender<Option<Landed>>,
}

impl Takeoff {
    /// Tells everybody who waits. The place is freed first: who comes now finds the page, or begins anew.
    pub(super) fn land(self, landed: Landed) {
        self.flights.lock().remove(&self.key);
        self.sender.send_replace(Some(landed));
    }
}

impl Drop for Takeoff {
    fn drop(&mut self) {
        let mut table = self.flights.lock();
        // After landing another flight may have the place.
        if table.get(&self.key).is_some_and(|flight| flight.landing.same_channel(&self.sender.subscribe())) {
            table.remove(&self.key);
        }
    }
}
