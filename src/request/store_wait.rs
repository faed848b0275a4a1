//! How long one request waits for the store that replicas share.
//!
//! A request needs the store to look up its page, to find the replica that fetches it, to find out whether another
//! replica gave out the page token or job that it names, and to tell the others what its client gets. For all of these
//! together it waits for two operations at most. After that the request continues without the store. Its token has a
//! separate time, because nothing is sent without a token: the account's budget waits for at most two more operations.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
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
        self.add(clock.now() - begun);
        output
    }

    /// This request has waited for that much longer.
    pub fn add(&self, waited: Duration) {
        let waited = nanos(waited);
        // The change always gives a value, so this cannot fail.
        let _ = self.0.fetch_update(Relaxed, Relaxed, |so_far| Some(so_far.saturating_add(waited)));
    }

    /// How long this request has waited.
    pub fn so_far(&self) -> Duration {
        Duration::from_nanos(self.0.load(Relaxed))
    }

    /// Of a request that has waited for as long as any may.
    #[cfg(test)]
    pub fn spent() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }

    /// What this request has left of `limit`; `None` if that is nothing.
    pub fn left(&self, limit: Duration) -> Option<Duration> {
        let left = limit.saturating_sub(self.so_far());
        (!left.is_zero()).then_some(left)
    }
}

/// Work in the store on behalf of a request. It is done to its end, also if the request does not wait for that. Needs a
/// tokio runtime.
pub struct StoreWork {
    work: BoxFuture<'static, ()>,
    limit: Duration,
    clock: Clock,
}

impl StoreWork {
    /// A request waits for it within `limit`.
    pub fn new(limit: Duration, clock: Clock, work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { work: work.boxed(), limit, clock }
    }

    /// Waits until it is done, at most for what the request has left.
    pub fn wait(self, wait: &StoreWait) -> BoxFuture<'_, ()> {
        async move { drop(wait.within(self.limit, self.clock, tokio::spawn(self.work)).await) }.boxed()
    }

    /// Has it done without a wait.
    pub fn leave(self) {
        tokio::spawn(self.work);
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::oneshot;
    use tokio::time::sleep;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn operations_share_one_limit() {
        let (wait, clock) = (StoreWait::default(), Clock::new());
        let begun = clock.now();
        assert_eq!(wait.within(400 * MS, clock, sleep(190 * MS)).await, Some(()));
        assert_eq!((wait.left(400 * MS), wait.so_far()), (Some(210 * MS), 190 * MS));
        assert_eq!(wait.within(400 * MS, clock, sleep(190 * MS)).await, Some(()));
        assert_eq!(wait.within(400 * MS, clock, sleep(190 * MS)).await, None);
        assert_eq!(clock.now() - begun, 400 * MS);
        assert_eq!((wait.left(400 * MS), wait.within(400 * MS, clock, pending::<()>()).await), (None, None));
        assert_eq!(clock.now() - begun, 400 * MS, "nothing is left to wait");
        wait.add(Duration::MAX);
        wait.add(MS);
        assert_eq!(wait.left(Duration::from_secs(86_400)), None, "it never begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn work_is_done_although_the_request_has_gone_on() {
        let (wait, clock) = (StoreWait::default(), Clock::new());
        for _ in 0..2 {
            let (done, is_done) = oneshot::channel();
            let work = async move {
                sleep(500 * MS).await;
                let _ = done.send(());
            };
            StoreWork::new(400 * MS, clock, work).wait(&wait).await;
            assert_eq!(wait.so_far(), 400 * MS);
            is_done.await.unwrap();
        }
    }
}
