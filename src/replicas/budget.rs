//! One budget of all replicas of an account.
//!
//! Every token is granted by the store, in one atomic script (`budget.lua`), so that all replicas together stay within
//! the account's rate and burst. [`SharedQuota`] is where a replica's [`AccountBudget`](crate::budget::AccountBudget)
//! takes its tokens from. It never waits for the store itself: a task asks, holds each granted token until its time,
//! and then wakes the account.
//!
//! * A token is granted to a team: the store knows the waiting calls of all replicas, and which team is next.
//! * A token that is not used in time is given back. One that was granted while the answer was lost counts as spent.
//! * Each token must also be allowed by the bucket of this process. So a replica never exceeds the configured rate,
//!   whatever the store says.
//! * With each request for tokens, at least once a second, this replica tells the store what it has learnt: pauses, a
//!   lowered rate, a circuit that the upstream's answers opened. The reply says what the others have learnt. After the
//!   circuit has been open, a token is the right to send a probe, so that only one replica at a time sends one.
//! * A replica whose configuration no longer has the account asks only while calls of the old configuration wait. After
//!   some seconds without an ask, its rate no longer limits the others.
//!
//! # Without the store
//!
//! A replica is *standalone* while it does not reach the store. It also becomes standalone when three requests in a row
//! get no answer, or when one gets none for as long as a client's request may wait for it. Then it spends its share of
//! the rate. Each change between standalone and shared begins with empty buckets, so that no token counts twice. This
//! includes the buckets of the teams' own limits. When the store answers again, the replica reports what it spent
//! meanwhile, because the store's bucket has filled. A process that starts waits for the store's first answer before it
//! becomes standalone.

mod ledger;
mod prefetch;
mod replica_state;
mod standalone;
mod store_deadline;
#[cfg(test)]
mod tests;

use std::future::pending;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep_until;

#[cfg(test)]
pub(super) use self::ledger::SCRIPT;
use self::ledger::{Ledger, StoreLedger};
use self::replica_state::ReplicaState;
use super::{SharedStore, StoreError};
use crate::accounts::{Account, Team};
use crate::budget::{CommonCircuit, CommonTokens, Demand, Grant, Limits, Parts, QuotaSource, QuotaStatus, Turn};
use crate::core::clock::{Clock, Instant};
use crate::request::key::Key;
use crate::semantics::upstream_headers::RateLimitHeaders;

/// The tokens of one account, which all replicas share. See the module.
#[derive(Debug)]
pub(crate) struct SharedQuota {
    replica: Arc<Mutex<ReplicaState>>,
    /// Wakes the task, which asks what there is to ask.
    work: Arc<Notify>,
    /// Wakes the account.
    changes: Arc<Notify>,
    clock: Clock,
}

impl SharedQuota {
    /// Takes the tokens of `account` from `store`. Needs a tokio runtime.
    pub(crate) fn new(store: SharedStore, account: Arc<Account>, limits: &Limits, clock: Clock) -> Self {
        Self::over(StoreLedger::new(store, account), limits, clock)
    }

    fn over(ledger: impl Ledger, limits: &Limits, clock: Clock) -> Self {
        let replica = ReplicaState::new(limits, ledger.configured(), ledger.timeout(), clock.now());
        let replica = Arc::new(Mutex::new(replica));
        let (work, changes) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        tokio::spawn(ask(ledger, Arc::downgrade(&replica), Arc::clone(&work), Arc::clone(&changes), clock));
        Self { replica, work, changes, clock }
    }

    fn replica(&self) -> MutexGuard<'_, ReplicaState> {
        lock(&self.replica)
    }

    /// Changes something that the task may have to tell the store.
    fn change<T>(&self, change: impl FnOnce(&mut ReplicaState) -> T) -> T {
        let changed = change(&mut self.replica());
        self.work.notify_one();
        changed
    }
}

fn lock(replica: &Mutex<ReplicaState>) -> MutexGuard<'_, ReplicaState> {
    // Every change under this lock is complete before anything that could panic.
    replica.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks the store whenever there is something to ask, until the source is dropped.
async fn ask(
    ledger: impl Ledger,
    replica: Weak<Mutex<ReplicaState>>,
    work: Arc<Notify>,
    changes: Arc<Notify>,
    clock: Clock,
) {
    let mut is_up = ledger.watch_up();
    // Why the store has not answered last.
    let mut failed = StoreError::Down;
    loop {
        let request = {
            let Some(replica) = replica.upgrade() else { return };
            let mut replica = lock(&replica);
            replica.set_replicas(ledger.replicas());
            if replica.set_up(*is_up.borrow_and_update(), clock.now()) {
                changes.notify_one();
            }
            if !*is_up.borrow() {
                failed = StoreError::Down;
            }
            ledger.set_standalone(replica.is_standalone().then_some(&failed));
            replica.next_request(clock.now(), |kind, name| ledger.pseudonym(kind, name))
        };
        let Some(request) = request else {
            let Some(at) = replica.upgrade().map(|replica| lock(&replica).next_ask(clock.now())) else { return };
            tokio::select! {
                () = work.notified() => {}
                () = sleep_until_some(at) => {}
                changed = is_up.changed() => if changed.is_err() { return },
            }
            continue;
        };
        let reply = {
            let mut asking = pin!(ledger.ask(&request));
            loop {
                let Some(ends) = replica.upgrade().map(|replica| lock(&replica).gives_up_at()) else { return };
                tokio::select! {
                    biased;
                    reply = &mut asking => break reply,
                    () = sleep_until_some(ends) => {
                        if replica.upgrade().is_some_and(|replica| lock(&replica).give_up(clock.now())) {
                            failed = StoreError::Timeout;
                            ledger.set_standalone(Some(&failed));
                            changes.notify_one();
                        }
                    }
                    // Another call may have less time. What else there is to ask is asked after this.
                    () = work.notified() => {}
                }
            }
        };
        let Some(replica) = replica.upgrade() else { return };
        let mut replica = lock(&replica);
        match reply {
            Ok(reply) => replica.answered(&request, &reply, clock.now()),
            Err(error) => {
                failed = error;
                replica.failed(clock.now());
            }
        }
        changes.notify_one();
    }
}

/// Sleeps until this time; for ever without one.
async fn sleep_until_some(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

impl QuotaSource for SharedQuota {
    fn set_limits(&mut self, limits: &Limits, now: Instant) {
        self.change(|replica| replica.set_limits(limits, now));
    }

    fn retire(&mut self) {
        self.change(ReplicaState::retire);
    }

    fn update(&mut self, now: Instant) {
        if self.replica().update(now) {
            self.work.notify_one();
        }
    }

    fn ready(&self, now: Instant) -> Grant {
        self.replica().ready(now)
    }

    fn take(&mut self, team: &Team, now: Instant) -> Grant {
        self.change(|replica| replica.take(team, now))
    }

    fn refund(&mut self) {
        let now = self.clock.now();
        self.change(|replica| replica.refund(now));
    }

    fn turn(&self) -> Option<Turn> {
        self.replica().turn()
    }

    fn decline(&mut self) {
        self.change(ReplicaState::decline);
    }

    fn set_demand(&mut self, demand: &dyn Fn() -> Vec<Demand>, queue: u32, now: Instant) {
        if self.replica().set_demand(demand(), queue, now) {
            self.work.notify_one();
        }
    }

    fn arrived(&mut self, waited: Duration, now: Instant) {
        self.change(|replica| replica.arrived(waited, now));
    }

    fn idle(&mut self) {
        self.replica().idle();
    }

    fn changes(&self) -> Option<Arc<Notify>> {
        Some(Arc::clone(&self.changes))
    }

    fn team_tokens(&self, team: &Team) -> Option<CommonTokens> {
        self.replica().team_tokens(team)
    }

    fn parts(&self) -> Parts {
        self.replica().parts()
    }

    fn circuit_opened(&mut self, until: Instant) {
        self.change(|replica| replica.circuit_opened(until));
    }

    fn circuit_closed(&mut self) {
        self.change(ReplicaState::circuit_closed);
    }

    fn probe_failed(&mut self, query: Key) {
        self.change(|replica| replica.probe_failed(query));
    }

    fn common_circuit(&mut self) -> Option<CommonCircuit> {
        self.replica().common_circuit()
    }

    fn queues_known_at(&self) -> Option<Instant> {
        self.replica().queues_known_at()
    }

    fn nth_at(&self, n: u32, now: Instant) -> Instant {
        self.replica().nth_at(n, now)
    }

    fn concurrency(&self, now: Instant) -> u32 {
        self.replica().concurrency(now)
    }

    fn accepted(&mut self, stated: &RateLimitHeaders, now: Instant) {
        if self.replica().accepted(stated, now) {
            self.work.notify_one();
        }
    }

    fn rate_limited(
        &mut self,
        asked: Option<Duration>,
        stated: &RateLimitHeaders,
        sent: Instant,
        in_flight: u32,
        now: Instant,
    ) -> Option<Duration> {
        self.change(|replica| replica.rate_limited(asked, stated, sent, in_flight, now))
    }

    fn status(&self, now: Instant) -> QuotaStatus {
        self.replica().status(now)
    }
}

impl Drop for SharedQuota {
    fn drop(&mut self) {
        // Both tasks end when they see that this is gone.
        self.work.notify_one();
        self.changes.notify_one();
    }
}
