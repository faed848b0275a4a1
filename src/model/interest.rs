//! Who still waits for an upstream call.
//!
//! One call may serve many clients, and clients leave. A call that still waits for its turn asks here
//! whether anybody wants it; a background refresh asks whether a client has begun to.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::sync::Notify;

/// The clients that wait for one upstream call.
#[derive(Debug)]
pub struct Interest {
    waiters: AtomicUsize,
    changed: Notify,
    refresh: bool,
}

impl Interest {
    /// Of a call that clients wait for; it is abandoned when the last of them leaves.
    pub fn of_clients() -> Arc<Self> {
        Arc::new(Self { waiters: AtomicUsize::new(0), changed: Notify::new(), refresh: false })
    }

    /// Of a background refresh: nobody waits for it, and it goes on all the same.
    pub fn of_refresh() -> Arc<Self> {
        Arc::new(Self { waiters: AtomicUsize::new(0), changed: Notify::new(), refresh: true })
    }

    /// One more waits, until the guard is dropped.
    pub fn join(self: &Arc<Self>) -> Waiter {
        self.waiters.fetch_add(1, SeqCst);
        self.changed.notify_waiters();
        Waiter(Arc::clone(self))
    }

    /// Is this a refresh that no client waits for.
    pub fn is_background(&self) -> bool {
        self.refresh && self.waiters.load(SeqCst) == 0
    }

    /// Ends when nobody waits any more; never for a refresh.
    pub async fn abandoned(&self) {
        if self.refresh {
            return std::future::pending().await;
        }
        self.until(|waiters| waiters == 0).await;
    }

    /// Ends when somebody waits.
    pub async fn wanted(&self) {
        self.until(|waiters| waiters > 0).await;
    }

    async fn until(&self, reached: impl Fn(usize) -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Before looking: a change between the look and the wait must not be missed.
            changed.as_mut().enable();
            if reached(self.waiters.load(SeqCst)) {
                return;
            }
            changed.await;
        }
    }
}

/// A client that waits; dropping it is leaving.
#[derive(Debug)]
pub struct Waiter(Arc<Interest>);

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.waiters.fetch_sub(1, SeqCst);
        self.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_last_to_leave_abandons() {
        let interest = Interest::of_clients();
        let (one, two) = (interest.join(), interest.join());
        drop(one);
        assert!(timeout(Duration::from_secs(1), interest.abandoned()).await.is_err());
        drop(two);
        interest.abandoned().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_refresh_is_never_abandoned_but_may_become_wanted() {
        let interest = Interest::of_refresh();
        assert!(timeout(Duration::from_secs(1), interest.abandoned()).await.is_err());
        assert!(interest.is_background());
        assert!(timeout(Duration::from_secs(1), interest.wanted()).await.is_err());
        let _client = interest.join();
        interest.wanted().await;
        assert!(!interest.is_background());
    }
}
