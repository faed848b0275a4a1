//! Operations that are tried again in the background, because the store did not answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::{SharedStore, StoreError};
use crate::core::clock::Instant;

/// Operations that may wait.
pub(super) const CAPACITY: usize = 1024;
/// The longest pause between two attempts of one operation, while the store is reached.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The pause while the store, or a part of it, is not used.
const UNUSED_PAUSE: Duration = Duration::from_secs(1);

/// Operations that are tried again, up to a number. Clones count together.
#[derive(Debug, Clone)]
pub(super) struct RetryQueue {
    store: SharedStore,
    /// One for each operation that waits.
    pub(super) permits: Arc<Semaphore>,
}

impl RetryQueue {
    pub(super) fn new(store: SharedStore) -> Self {
        Self { store, permits: Arc::new(Semaphore::new(CAPACITY)) }
    }

    /// Tries `operation` again until it succeeds, or until the time `ends`. Nobody waits for this: the store may be
    /// away for long. Does nothing if too many operations wait. Needs a tokio runtime.
    pub(super) fn add<F>(&self, ends: Instant, operation: impl Fn() -> F + Send + 'static)
    where
        F: Future<Output = Result<(), StoreError>> + Send,
    {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else { return };
        let store = self.store.clone();
        let retrying = async move {
            let (mut is_up, mut pause) = (store.watch_up(), store.settings().timeout);
            loop {
                tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                // It cannot fail: `store` has the sender.
                let _ = is_up.wait_for(|is_up| *is_up).await;
                pause = match operation().await {
                    Ok(()) => return,
                    // Nothing was sent. It is known when this part of the store works again.
                    Err(StoreError::Down) => UNUSED_PAUSE,
                    Err(_) => (pause * 2).min(LONGEST_PAUSE),
                };
            }
        };
        tokio::spawn(async move {
            let _ = tokio::time::timeout_at(ends, retrying).await;
            drop(permit);
        });
    }
}
