//! Every upstream attempt pays here: a token of its account's bucket and one of its places.
//!
//! It sits inside retry, so that a retry pays like a first try. Where tokens are short, calls wait in fair lines, and
//! whoever would wait in vain is told so at once. It watches what comes back: a 429 pauses the whole account and
//! may lower its rate, and an upstream that fails again and again is left alone for a while. It does not decide
//! what is tried again, and holds no request bodies.
//!
//! From the inside out: `queue` is arithmetic, `adapt` and `circuit` learn from answers, `waiting` is who
//! waits, `state` is all of that for one account, and `account` is where something waits and wakes.

mod account;
mod adapt;
mod circuit;
mod queue;
mod state;
mod waiting;

use std::time::Duration;

pub use account::{AccountBudget, BudgetStatus, Ended, Permit};
pub use circuit::{CircuitPolicy, CircuitState};

use crate::core::backoff::Backoff;
use crate::core::limiter::Quota;
use crate::core::units::Rate;

/// What an account may spend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Tokens; `None` is without limit.
    pub rate: Option<Rate>,
    /// Tokens that may be spent at once.
    pub burst: u32,
    /// Attempts at once.
    pub concurrency: u32,
    /// Waiting calls at most.
    pub queue: u32,
    /// Are rate and concurrency lowered by what Twilio answers.
    pub adapt: bool,
    /// Longest pause that a 429's headers can impose.
    pub max_pause: Duration,
    /// The pause after a 429 that names none.
    pub backoff: Backoff,
    /// When an upstream that fails is left alone.
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
