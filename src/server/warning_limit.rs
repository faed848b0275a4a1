//! Limits warnings that any client can cause, so that they do not fill the log.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The shortest time between two warnings of one kind.
const PAUSE: Duration = Duration::from_secs(60);

/// Allows one warning a minute.
#[derive(Debug, Default)]
pub(super) struct WarningLimit(Mutex<Option<Instant>>);

impl WarningLimit {
    /// Whether the warning may be logged now. If so, it counts as logged.
    pub(super) fn allows(&self, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let allows = last.is_none_or(|last| now >= last + PAUSE);
        if allows {
            *last = Some(now);
        }
        allows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_a_minute_is_let_through() {
        let (limit, start, s) = (WarningLimit::default(), Instant::now(), Duration::from_secs(1));
        let said: Vec<_> =
            [0, 1, 59, 60, 61, 119, 500].into_iter().filter(|at| limit.allows(start + *at * s)).collect();
        assert_eq!(said, [0, 60, 500]);
    }
}
