//! When a replica stops using the store, and what it spends then.

use super::{Known, Replica, Side};
use crate::budget::QuotaSource;
use crate::core::clock::Instant;
use crate::core::limiter::Quota;
use crate::replicas::budget::alone::AlonePart;
use crate::replicas::budget::ledger::LONGEST;

/// After this many asks in a row without an answer this replica is alone.
const FAILURES: u32 = 3;

impl Replica {
    /// The store can be asked, or not. Returns whether that changed the side.
    pub(in crate::replicas::budget) fn set_up(&mut self, is_up: bool, now: Instant) -> bool {
        if is_up && !self.is_up {
            (self.failures, self.has_news) = (0, true);
        }
        self.is_up = is_up;
        let gives_up = match self.side {
            Side::Starting(until) => now >= until,
            Side::Shared => !is_up,
            Side::Alone(_) => false,
        };
        if gives_up {
            self.go_alone(now);
        }
        gives_up
    }

    fn go_alone(&mut self, now: Instant) {
        self.registered.clear();
        self.held.clear();
        self.used.clear();
        self.refunds.clear();
        self.known = Known::default();
        self.circuit.alone();
        self.local.update(now);
        self.local.drain(now);
        self.side = Side::Alone(self.part().map(|part| AlonePart::new(part, now)));
        self.changed_side = Some(now);
    }

    /// This replica's part of the account's quota.
    pub(super) fn part(&self) -> Option<Quota> {
        Some(self.local.quota()?.part(self.all()))
    }

    /// Tokens that were spent alone, are not paid for, and that the store has not been told of. If its answer is lost, it
    /// is told twice: then fewer tokens are granted.
    pub(super) fn spent_alone(&self, now: Instant) -> u64 {
        match &self.side {
            Side::Alone(Some(alone)) => self.spent_alone.saturating_add(alone.owed(now)),
            _ => self.spent_alone,
        }
    }

    /// How many replicas there are, as far as is known while this one is alone.
    pub(super) fn all(&self) -> u32 {
        self.configured.max(self.living)
    }

    /// The store was asked and did not answer. What it may have granted counts as spent.
    pub(in crate::replicas::budget) fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        if !matches!(self.side, Side::Alone(_)) {
            let gives_up = self.failures >= FAILURES || self.gives_up_at().is_some_and(|at| at <= now);
            if !gives_up {
                self.has_news = true;
                return;
            }
            self.go_alone(now);
        }
        self.ask_at = now + LONGEST.mul_f64(0.25 + 0.75 * fastrand::f64());
    }

    /// When this replica does without the store that is asked now, if that has not answered before.
    pub(in crate::replicas::budget) fn gives_up_at(&self) -> Option<Instant> {
        let is_alone = matches!(self.side, Side::Alone(_));
        self.patience.ends(self.pace.round_trip()).filter(|_| !is_alone)
    }

    /// Does without it if it is time. Returns whether it was.
    pub(in crate::replicas::budget) fn give_up(&mut self, now: Instant) -> bool {
        let gives_up = self.gives_up_at().is_some_and(|at| at <= now);
        if gives_up {
            self.go_alone(now);
        }
        gives_up
    }
}
