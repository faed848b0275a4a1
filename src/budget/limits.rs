//! What an account may spend, from the configuration.

use std::time::Duration;

use super::circuit::CircuitPolicy;
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
    pub(super) fn quota(&self) -> Option<Quota> {
        self.rate.map(|rate| Quota::new(rate, self.burst))
    }

    pub(super) fn per_second(&self) -> Option<f64> {
        self.rate.map(Rate::per_second)
    }
}
