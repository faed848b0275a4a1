//! How long a response is fresh, and how long it may be served after that.

use std::time::Duration;

/// How long a page is fresh, and how far beyond that it may still be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// Served without asking.
    pub fresh: Duration,
    /// After `fresh`: served at once while one refresh runs.
    pub stale_while_revalidate: Duration,
    /// After `fresh`: served instead of an error.
    pub stale_if_error: Duration,
}

impl Lifetimes {
    /// Lifetimes of a page that must not be served stale.
    pub const fn fresh_only(fresh: Duration) -> Self {
        Self { fresh, stale_while_revalidate: Duration::ZERO, stale_if_error: Duration::ZERO }
    }

    /// With `fresh` no longer than `limit`.
    pub fn at_most(self, limit: Duration) -> Self {
        Self { fresh: self.fresh.min(limit), ..self }
    }

    /// The lifetimes that are left after `elapsed`; `None` when they are over.
    pub fn after(&self, elapsed: Duration) -> Option<Self> {
        let overdue = elapsed.saturating_sub(self.fresh);
        (elapsed < self.usable()).then(|| Self {
            fresh: self.fresh.saturating_sub(elapsed),
            stale_while_revalidate: self.stale_while_revalidate.saturating_sub(overdue),
            stale_if_error: self.stale_if_error.saturating_sub(overdue),
        })
    }

    /// The age beyond which a page may not be served at all.
    pub fn usable(&self) -> Duration {
        self.fresh.saturating_add(self.stale_while_revalidate.max(self.stale_if_error))
    }

    /// The age up to which a page may be served in place of an error.
    pub fn servable_on_error(&self) -> Duration {
        self.fresh.saturating_add(self.stale_if_error)
    }

    /// Seconds of freshness left at `age`, rounded down; negative once stale.
    pub fn ttl(&self, age: Duration) -> i64 {
        let seconds = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
        match self.fresh.checked_sub(age) {
            Some(left) => seconds(left),
            None => -seconds(age - self.fresh).max(1),
        }
    }
}
