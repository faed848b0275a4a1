//! What an account's budget tells of itself.

use std::time::Duration;

use super::circuit::CircuitState;
use super::limits::Limits;

/// A view of a budget's state.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BudgetStatus {
    /// The configured limits.
    pub limits: Limits,
    /// Tokens a second now, which may be less than configured; `None` without a rate.
    pub per_second: Option<f64>,
    /// Attempts at once now, which may be less than configured.
    pub concurrency: u32,
    /// Tokens now, negative while they are owed; `None` without a rate.
    pub tokens: Option<f64>,
    /// Time until the pause ends; zero without one.
    pub paused: Duration,
    /// Attempts since the start.
    pub attempts: u64,
    /// Attempts under way.
    pub in_flight: u32,
    /// Calls that wait.
    pub waiting: usize,
    /// The state of the circuit breaker.
    pub circuit: CircuitState,
    /// For how long the circuit has not been closed; `None` while it is.
    pub broken_for: Option<Duration>,
}
