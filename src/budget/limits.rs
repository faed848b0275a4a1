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
    /// The lower of each limit, for an account that is configured twice. Responses may lower the rate if either says so.
    pub fn lower(self, other: Self) -> Self {
        let is_slower = |one: Rate, two: Rate| one.per_second() <= two.per_second();
        let rate = match (self.rate, other.rate) {
            (Some(one), Some(two)) => Some(if is_slower(one, two) { one } else { two }),
            (one, two) => one.or(two),
        };
        Self {
            rate,
            burst: self.burst.min(other.burst),
            concurrency: self.concurrency.min(other.concurrency),
            queue: self.queue.min(other.queue),
            adapt: self.adapt || other.adapt,
            ..self
        }
    }

    pub(super) fn quota(&self) -> Option<Quota> {
        self.rate.map(|rate| Quota::new(rate, self.burst))
    }

    pub(super) fn per_second(&self) -> Option<f64> {
        self.rate.map(Rate::per_second)
    }
}
