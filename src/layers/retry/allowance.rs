//! How many retries an account may have, so that an outage is not multiplied.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::core::clock::Instant;
use crate::core::window::Window;

/// The recent first tries and retries of one account. It outlives reloads, so that a reload does not allow more retries.
/// Clones share it.
#[derive(Debug, Clone)]
pub struct RetryBudget(Arc<Mutex<Allowance>>);

impl RetryBudget {
    /// For an account without any tries.
    pub fn new(now: Instant) -> Self {
        let allowance = Allowance { recent: Window::new(Duration::from_secs(1), now), reserved: 0 };
        Self(Arc::new(Mutex::new(allowance)))
    }

    pub(super) fn first_try(&self, now: Instant) {
        self.lock().recent.count(Allowance::FIRST_TRY, now);
    }

    /// A place for one retry, if one is free. `share` is how many retries there may be for each first try.
    pub(super) fn reserve(&self, share: f64, now: Instant) -> Option<ReservedRetry> {
        self.lock().reserve(share, now).then(|| ReservedRetry { budget: self.clone(), is_sent: false })
    }

    fn lock(&self) -> MutexGuard<'_, Allowance> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A retry that is allowed and has not been sent: it may wait for its time, and then for a token. It counts for as long
/// as that takes. When it is dropped and was not sent, it has used up nothing.
#[derive(Debug)]
pub(super) struct ReservedRetry {
    budget: RetryBudget,
    is_sent: bool,
}

impl ReservedRetry {
    /// It is sent at `now`, and counts for ten seconds from then on.
    pub(super) fn sent(mut self, now: Instant) {
        self.is_sent = true;
        self.budget.lock().sent(now);
    }
}

impl Drop for ReservedRetry {
    fn drop(&mut self) {
        if !self.is_sent {
            self.budget.lock().release();
        }
    }
}

/// First tries and retries of the last ten seconds, and the retries that are still to be sent.
///
/// The latter count too, however long they wait: after a long pause of the account, those that were allowed in all of its
/// time would go out together.
#[derive(Debug)]
struct Allowance {
    recent: Window<10, 2>,
    reserved: u32,
}

impl Allowance {
    /// Retries that are always allowed, so that an account with few requests can retry too.
    const FLOOR: f64 = 3.0;
    const FIRST_TRY: usize = 0;
    const RETRY: usize = 1;

    /// Reserves a place for a retry, if one is free. Returns whether it is.
    fn reserve(&mut self, share: f64, now: Instant) -> bool {
        let [first_tries, retries] = self.recent.counts(now).map(f64::from);
        let is_free = retries + f64::from(self.reserved) + 1.0 <= (share * first_tries).max(Self::FLOOR);
        if is_free {
            self.reserved += 1;
        }
        is_free
    }

    /// A retry is sent that has a place.
    fn sent(&mut self, now: Instant) {
        self.release();
        self.recent.count(Self::RETRY, now);
    }

    /// A place is free again.
    fn release(&mut self) {
        self.reserved = self.reserved.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn the_allowance_never_falls_below_its_floor_and_forgets() {
        let start = Instant::now();
        let budget = RetryBudget::new(start);
        budget.first_try(start);
        let granted: Vec<_> = (0..10).filter_map(|_| budget.reserve(0.2, start)).collect();
        assert_eq!(granted.len(), 3);
        granted.into_iter().for_each(|retry| retry.sent(start));
        assert!(budget.reserve(0.2, start + 9 * S).is_none());
        assert!(budget.reserve(0.2, start + 10 * S).is_some());
    }

    #[test]
    fn a_retry_counts_until_it_is_sent_and_ten_seconds_more() {
        let start = Instant::now();
        let budget = RetryBudget::new(start);
        let mut places: Vec<_> = (0..3).filter_map(|_| budget.reserve(0.0, start)).collect();
        assert!(budget.reserve(0.0, start + 60 * S).is_none(), "all three still wait");
        places.remove(0).sent(start + 60 * S);
        places.remove(0).sent(start + 65 * S);
        assert!(budget.reserve(0.0, start + 69 * S).is_none());
        drop(places);
        assert!(budget.reserve(0.0, start + 69 * S).is_some(), "one was never sent");
        let free = |at| (0..9).filter_map(|_| budget.reserve(0.0, at)).collect::<Vec<_>>().len();
        assert_eq!((free(start + 70 * S), free(start + 75 * S)), (2, 3));
    }
}
