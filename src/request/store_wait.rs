//! How long one request waits for the store that replicas share.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::timeout;

use crate::core::clock::Clock;

/// The time that a request has waited for the store so far, over all its operations there. A store that answers each
/// operation just in time must not delay a request by the sum of them.
#[derive(Debug, Default)]
pub struct StoreWait(AtomicU64);

impl StoreWait {
    /// Waits for `operation`, at most for what this request has left of `limit`. `None` if that ends first: the request
    /// then goes on as if the store were away.
    pub async fn within<F: Future>(&self, limit: Duration, clock: Clock, operation: F) -> Option<F::Output> {
        let left = self.left(limit)?;
        let begun = clock.now();
        let output = timeout(left, operation).await.ok();
        self.0.fetch_add(nanos(clock.now() - begun), Relaxed);
        output
    }

    /// Of a request that has waited for as long as any may.
    #[cfg(test)]
    pub fn spent() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }

    /// What this request has left of `limit`; `None` if that is nothing.
    pub fn left(&self, limit: Duration) -> Option<Duration> {
        let left = limit.saturating_sub(Duration::from_nanos(self.0.load(Relaxed)));
        (!left.is_zero()).then_some(left)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::sleep;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn operations_share_one_limit() {
        let (wait, clock) = (StoreWait::default(), Clock::new());
        let begun = clock.now();
        assert_eq!(wait.within(400 * MS, clock, sleep(190 * MS)).await, Some(()));
        assert_eq!(wait.left(400 * MS), Some(210 * MS));
        assert_eq!(wait.within(400 * MS, clock, sleep(190 * MS)).await, Some(()));
        assert_eq!(wait.within(400 * MS, clock, sleep(190 * MS)).await, None);
        assert_eq!(clock.now() - begun, 400 * MS);
        assert_eq!((wait.left(400 * MS), wait.within(400 * MS, clock, pending::<()>()).await), (None, None));
        assert_eq!(clock.now() - begun, 400 * MS, "nothing is left to wait");
    }
}
