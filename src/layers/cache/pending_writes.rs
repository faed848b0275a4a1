//! The writes that have not ended, for the end of the process.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// How long the end of the process waits for responses to be removed, once all results are known or count as unknown.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(5);

/// The writes that have not ended: that wait for Twilio, or for the removal of stored responses. Cheap to clone;
/// outlives reloads.
#[derive(Debug, Clone)]
pub struct PendingWrites(watch::Sender<bool>);

impl Default for PendingWrites {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl PendingWrites {
    /// Waits for the end of all writes. Those that Twilio has not answered after `patience` are given up, and the
    /// responses that they may have made wrong are removed. For the end of the process, when no request begins any more.
    pub async fn finish(&self, patience: Duration) {
        if timeout(patience, self.0.closed()).await.is_ok() {
            return;
        }
        self.0.send_replace(true);
        if timeout(REMOVAL_PATIENCE, self.0.closed()).await.is_err() {
            tracing::error!(
                "the stored responses that the last writes made wrong are not all removed: purge them after the restart"
            );
        }
    }

    pub(super) fn begin(&self) -> PendingWrite {
        PendingWrite(self.0.subscribe())
    }
}

/// A write that has not ended. It ends when this is dropped.
pub(super) struct PendingWrite(watch::Receiver<bool>);

impl PendingWrite {
    /// Ends when the process waits no longer for the result.
    pub(super) async fn is_given_up(&mut self) {
        if self.0.wait_for(|is_over| *is_over).await.is_err() {
            // The handles are gone, so nothing waits for this write.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const DRAIN: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_for_all_writes_and_not_longer() {
        let writes = PendingWrites::default();
        assert_eq!(writes.finish(DRAIN).now_or_never(), Some(()), "there are none");
        let (one, two) = (writes.begin(), writes.clone().begin());
        let mut end = std::pin::pin!(writes.finish(DRAIN));
        drop(one);
        assert_eq!((&mut end).now_or_never(), None);
        drop(two);
        assert_eq!(end.now_or_never(), Some(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_takes_too_long_is_given_up_and_may_still_remove_responses() {
        let writes = PendingWrites::default();
        let mut write = writes.begin();
        let begun = tokio::time::Instant::now();
        let end = async {
            writes.finish(DRAIN).await;
            begun.elapsed()
        };
        let written = async move {
            write.is_given_up().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(write);
            begun.elapsed()
        };
        let second = Duration::from_secs(1);
        assert_eq!(tokio::join!(end, written), (DRAIN + second, DRAIN + second));
        // One that does not end costs a limited time.
        let _stuck = writes.begin();
        writes.finish(Duration::ZERO).await;
        assert_eq!(begun.elapsed(), DRAIN + second + REMOVAL_PATIENCE);
    }
}
