//! What a replica spends while it does not reach the store.

use crate::core::clock::Instant;
use crate::core::limiter::{Limiter, Quota};

/// A replica's share of an account's tokens.
#[derive(Debug)]
pub(super) struct StandaloneShare {
    /// It was empty at the beginning.
    limiter: Limiter,
    /// The same from a full bucket: what is missing in it was spent since the beginning.
    spent: Limiter,
}

impl StandaloneShare {
    /// From an empty bucket.
    pub(super) fn new(quota: Quota, now: Instant) -> Self {
        Self { limiter: Limiter::empty(quota, now), spent: Limiter::full(quota, now) }
    }

    pub(super) fn set_quota(&mut self, quota: Quota, now: Instant) {
        self.limiter.set_quota(quota, now);
        self.spent.set_quota(quota, now);
    }

    pub(super) fn try_take(&self, now: Instant) -> bool {
        let is_taken = self.limiter.try_take(now);
        if is_taken {
            // This bucket has at least as much.
            self.spent.try_take(now);
        }
        is_taken
    }

    /// Gives back a token that was not used.
    pub(super) fn refund(&self) {
        self.limiter.refund();
        self.spent.refund();
    }

    /// Tokens that were spent and that this share has not paid for yet, rounded up.
    pub(super) fn owed(&self, now: Instant) -> u64 {
        /// Less than this is an error of rounding.
        const NOTHING: f64 = 1e-6;
        let owed = self.spent.quota().burst() as f64 - self.spent.tokens(now);
        (owed - NOTHING).ceil().max(0.0) as u64
    }

    /// The bucket that tokens are taken from.
    pub(super) fn limiter(&self) -> &Limiter {
        &self.limiter
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::core::units::Rate;

    #[test]
    fn what_was_spent_is_owed_until_it_has_come_back() {
        let (start, s) = (Instant::now(), Duration::from_secs(1));
        let part = StandaloneShare::new(Quota::new(Rate::new(1, s).unwrap(), 3), start);
        assert!(!part.try_take(start), "it begins empty");
        assert_eq!((part.owed(start), part.owed(start + 9 * s)), (0, 0), "but nothing was spent");
        let now = start + 9 * s;
        assert!((0..3).all(|_| part.try_take(now)) && !part.try_take(now));
        assert_eq!([0, 500, 1000, 3000].map(|ms| part.owed(now + Duration::from_millis(ms))), [3, 3, 2, 0]);
        part.refund();
        assert_eq!(part.owed(now), 2);
    }
}
