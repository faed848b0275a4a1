//! How far the shutdown of the process is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::Notify;

const DRAINING: u8 = 1;
const OVER: u8 = 2;

/// How far the shutdown is. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Draining(Arc<State>);

#[derive(Debug, Default)]
struct State {
    phase: AtomicU8,
    begun: Notify,
    over: Notify,
}

impl Draining {
    /// From now on new requests are refused.
    pub fn begin(&self) {
        self.0.phase.fetch_max(DRAINING, Ordering::Release);
        self.0.begun.notify_waiters();
    }

    /// From now on requests in progress are refused too.
    pub fn end(&self) {
        self.0.phase.store(OVER, Ordering::Release);
        self.0.over.notify_waiters();
    }

    /// Whether draining has begun.
    pub(crate) fn has_begun(&self) -> bool {
        self.phase() >= DRAINING
    }

    fn phase(&self) -> u8 {
        self.0.phase.load(Ordering::Acquire)
    }

    /// Waits until draining begins.
    pub async fn begun(&self) {
        self.reaches(DRAINING, &self.0.begun).await;
    }

    /// Waits until requests in progress are refused.
    pub(crate) async fn over(self) {
        self.reaches(OVER, &self.0.over).await;
    }

    async fn reaches(&self, phase: u8, told: &Notify) {
        let mut told = std::pin::pin!(told.notified());
        // Register before the phase is read, or a change between the two would be missed.
        told.as_mut().enable();
        if self.phase() < phase {
            told.await;
        }
    }
}
