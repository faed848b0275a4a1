//! An account's budget: upstream attempts are sent no faster than the account allows, and calls that have to wait are
//! served in a fair order.
//!
//! # How an attempt is paid for
//!
//! An attempt needs a *token* of its account's bucket and a *slot* of the attempts at once; a call of a team with an
//! upstream limit of its own needs a token of that, too. A call that cannot have them now is queued. Before that its
//! wait is estimated, and a call that would start after its deadline is refused at once, with the time after which it
//! may come back. A 429 pauses the whole account and may lower its rate. An upstream that fails repeatedly opens the
//! circuit: then nothing is sent for a while.
//!
//! # Terms
//!
//! * **Start-time fair queueing**: teams get services in proportion to their weights. See `fair_queue`.
//! * **Priority**: within a team, by urgency (RFC 9218), then by the number of clients that wait, then by arrival.
//! * **Waiters**: the clients that wait for a call, by team. One call can have waiters of several teams, and is queued
//!   for each of them.
//! * **Estimated start**: when a call is expected to be sent if no other arrives.
//! * **Overtake**: a call with more waiters is served before an earlier one, which then starts later than estimated, but
//!   never later than its latest start.
//! * **Reserve**: keep the place of a call that was told to come back.
//! * **Evict**: refuse a queued call so that another can be queued, when the queue is full.
//! * **Background**: a refresh that no client waits for; it is served only while no client waits.
//!
//! # Modules
//!
//! From the inside out: `fair_queue` is bookkeeping; `adaptive_rate` and `circuit` learn from responses; `quota` is where
//! tokens come from; `wait_queue` is the calls that wait; `state` is all of that for one account; `pending` is what a
//! call that waits holds and gives back; `account` is where calls wait and are woken.

mod account;
mod adaptive_rate;
mod circuit;
mod fair_queue;
mod pending;
mod quota;
mod state;
mod wait_queue;

use std::time::Duration;

pub use account::{AccountBudget, AttemptOutcome, BudgetStatus, Permit};
pub use circuit::{CircuitPolicy, CircuitState};
pub(crate) use quota::LocalQuota;
pub use quota::{Demand, Grant, QuotaSource, QuotaStatus, Turn};

use crate::core::backoff::Backoff;
use crate::core::limiter::Quota;
use crate::core::units::Rate;

/// What an account may spend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Tokens over time; `None` is no limit.
    pub rate: Option<Rate>,
    /// Tokens that can be spent at once.
    pub burst: u32,
    /// Attempts at once.
    pub concurrency: u32,
    /// Calls that may wait.
    pub queue: u32,
    /// Whether responses may lower rate and concurrency.
    pub adapt: bool,
    /// The longest pause that a 429's headers can impose.
    pub max_pause: Duration,
    /// The pause after a 429 that names none.
    pub backoff: Backoff,
    /// When the circuit opens, and for how long.
    pub circuit: CircuitPolicy,
}

impl Limits {
    fn quota(&self) -> Option<Quota> {
        self.rate.map(|rate| Quota::new(rate, self.burst))
    }

    fn per_second(&self) -> Option<f64> {
        self.rate.map(Rate::per_second)
    }
}

#[cfg(test)]
mod tests;
