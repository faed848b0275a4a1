//! An episode is a time during which something is wrong. It begins and ends once, however often the fault is seen.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::clock::Instant;

/// The current episode, if there is one. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Episode(Arc<Mutex<Option<Instant>>>);

impl Episode {
    /// When the current episode began; `None` if nothing is wrong.
    pub fn since(&self) -> Option<Instant> {
        *self.lock()
    }

    /// Records that something is wrong at `now`. Returns whether this begins an episode.
    pub fn goes_on(&self, now: Instant) -> bool {
        let mut since = self.lock();
        let begins = since.is_none();
        since.get_or_insert(now);
        begins
    }

    /// Records that nothing is wrong at `now`. If this ends an episode, returns how long it lasted.
    pub fn is_over(&self, now: Instant) -> Option<Duration> {
        self.lock().take().map(|since| now.saturating_duration_since(since))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_begins_once_and_ends_once() {
        let (episode, start, s) = (Episode::default(), Instant::now(), Duration::from_secs(1));
        assert_eq!((episode.since(), episode.is_over(start)), (None, None));
        assert!(episode.goes_on(start + s) && !episode.goes_on(start + 2 * s));
        assert_eq!(episode.since(), Some(start + s));
        assert_eq!((episode.is_over(start + 5 * s), episode.is_over(start + 6 * s)), (Some(4 * s), None));
        assert!(episode.goes_on(start + 7 * s), "another one");
    }
}
