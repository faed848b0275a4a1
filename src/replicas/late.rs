//! What the store has still to be told of, because it did not answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::{SharedStore, StoreError};
use crate::core::clock::Instant;

/// Things at most that the store has still to be told of.
pub(super) const MOST: usize = 1024;
/// The longest pause between two attempts to tell one, while the store is reached.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Tells the store later, of a number of things at most. Clones count together.
#[derive(Debug, Clone)]
pub(super) struct Late {
    store: SharedStore,
    /// A permit for each thing that the store has still to be told of.
    pub(super) permits: Arc<Semaphore>,
}

impl Late {
    pub(super) fn new(store: SharedStore) -> Self {
        Self { store, permits: Arc::new(Semaphore::new(MOST)) }
    }

    /// Has `tell` tried as soon as that is possible, until it succeeds or `ends`. Nobody waits for this: the store may be
    /// away for long. Does nothing if there is too much to tell. Needs a tokio runtime.
    pub(super) fn tell<F>(&self, ends: Instant, tell: impl Fn() -> F + Send + 'static)
    where
        F: Future<Output = Result<(), StoreError>> + Send,
    {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else { return };
        let store = self.store.clone();
        let telling = async move {
            let (mut is_up, mut pause) = (store.changes(), store.settings().timeout);
            loop {
                tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                // It cannot fail: `store` has the sender.
                let _ = is_up.wait_for(|is_up| *is_up).await;
                if tell().await.is_ok() {
                    return;
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        };
        tokio::spawn(async move {
            let _ = tokio::time::timeout_at(ends, telling).await;
            drop(permit);
        });
    }
}
