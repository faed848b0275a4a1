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
//! From the inside out: `limits` is the configuration; `fair_queue` is bookkeeping; `adaptive_rate` and `circuit` learn
//! from responses; `quota` is where tokens come from, and `team_limit` those of one team; `wait_queue` is the calls that
//! wait; `state` is all of that for one account; `pending` is what a call that waits holds and gives back; `account` is
//! where calls wait and are woken, and `status` what it tells of itself.

mod account;
mod adaptive_rate;
mod circuit;
mod fair_queue;
mod limits;
mod pending;
mod quota;
mod state;
mod status;
mod team_limit;
mod wait_queue;

pub use account::{AccountBudget, AttemptOutcome, Permit};
pub use circuit::{CircuitPolicy, CircuitState, CommonCircuit};
pub(crate) use circuit::{LEAST_QUERIES, PROBE};
pub use limits::Limits;
pub(crate) use quota::LocalQuota;
pub use quota::{CommonTokens, Demand, Grant, Parts, QuotaSource, QuotaStatus, Turn};
pub use status::BudgetStatus;

#[cfg(test)]
mod tests;
