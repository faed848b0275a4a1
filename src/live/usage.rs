//! Counts of a team's requests and upstream attempts, without locks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::core::outcome::Outcome;

/// Counts of one team since the start.
#[derive(Debug, Default)]
pub struct Usage {
    requests: [AtomicU64; Outcome::ALL.len()],
    attempts: AtomicU64,
}

impl Usage {
    pub(super) fn requested(&self, outcome: Outcome) {
        self.requests[outcome as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn attempted(&self, attempts: u32) {
        self.attempts.fetch_add(attempts.into(), Relaxed);
    }

    /// Requests with this outcome.
    pub fn requests(&self, outcome: Outcome) -> u64 {
        self.requests[outcome as usize].load(Relaxed)
    }

    /// Upstream attempts that its requests caused.
    pub fn attempts(&self) -> u64 {
        self.attempts.load(Relaxed)
    }

    /// Answers without an upstream attempt of their own.
    pub fn saved(&self) -> u64 {
        Outcome::ALL.into_iter().filter(|outcome| outcome.saves_a_call()).map(|outcome| self.requests(outcome)).sum()
    }
}
