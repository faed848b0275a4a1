//! When a replica stops using the store, and what it spends then.

use super::{LastReply, Mode, ReplicaState};
use crate::budget::QuotaSource;
use crate::core::clock::Instant;
use crate::core::limiter::Quota;
use crate::replicas::budget::standalone::StandaloneShare;
use crate::replicas::retry_pause;

/// After this many asks in a row without an answer this replica becomes standalone.
const FAILURES: u32 = 3;

impl ReplicaState {
    /// The store can be asked, or not. Returns whether that changed the mode.
    pub(in crate::replicas::budget) fn set_up(&mut self, is_up: bool, now: Instant) -> bool {
        if is_up && !self.is_up {
            (self.failures, self.retry_at) = (0, None);
            self.has_news |= !self.is_dormant();
        }
        self.is_up = is_up;
        let gives_up = match self.mode {
            Mode::Starting(until) => now >= until,
            Mode::Shared => !is_up,
            Mode::Standalone(_) => false,
        };
        if gives_up {
            self.go_standalone(now);
        }
        gives_up
    }

    /// Whether it spends its own share. One that spends nothing and asks for nothing does not, because it would not notice
    /// when the store answers again.
    pub(in crate::replicas::budget) fn is_standalone(&self) -> bool {
        matches!(self.mode, Mode::Standalone(_)) && !self.is_dormant()
    }

    fn go_standalone(&mut self, now: Instant) {
        self.registered.clear();
        self.held.clear();
        self.used.clear();
        self.refunds.clear();
        self.last_reply = LastReply::default();
        self.circuit.forget_others();
        self.local.update(now);
        self.local.drain(now);
        self.mode = Mode::Standalone(self.share().map(|share| StandaloneShare::new(share, now)));
        self.mode_changed = Some(now);
    }

    /// This replica's share of the account's quota.
    pub(super) fn share(&self) -> Option<Quota> {
        Some(self.local.quota()?.part(self.all()))
    }

    /// Tokens that were spent standalone, are not paid for, and are not reported to the store. If its answer is lost,
    /// they are reported twice: then fewer tokens are granted.
    pub(super) fn spent_standalone(&self, now: Instant) -> u64 {
        match &self.mode {
            Mode::Standalone(Some(standalone)) => self.spent_standalone.saturating_add(standalone.owed(now)),
            _ => self.spent_standalone,
        }
    }

    /// How many replicas there are, as far as is known while this one is standalone.
    pub(super) fn all(&self) -> u32 {
        self.configured.max(self.living)
    }

    /// The store was asked and did not answer. What it may have granted counts as spent.
    pub(in crate::replicas::budget) fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        if !matches!(self.mode, Mode::Standalone(_)) {
            let gives_up = self.failures >= FAILURES || self.gives_up_at().is_some_and(|at| at <= now);
            if !gives_up {
                self.has_news = true;
                return;
            }
            self.go_standalone(now);
        }
        let retry_at = now + retry_pause::random();
        (self.ask_at, self.retry_at) = (retry_at, Some(retry_at));
    }

    /// When this replica does without the store that is asked now, if that has not answered before.
    pub(in crate::replicas::budget) fn gives_up_at(&self) -> Option<Instant> {
        let is_standalone = matches!(self.mode, Mode::Standalone(_));
        self.store_deadline.give_up_at(self.prefetch.round_trip()).filter(|_| !is_standalone)
    }

    /// Does without it if it is time. Returns whether it was.
    pub(in crate::replicas::budget) fn give_up(&mut self, now: Instant) -> bool {
        let gives_up = self.gives_up_at().is_some_and(|at| at <= now);
        if gives_up {
            self.go_standalone(now);
        }
        gives_up
    }
}
