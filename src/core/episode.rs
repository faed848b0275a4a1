//! A time during which something is wrong: it begins once, however often it is seen, and ends once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::clock::Instant;

/// Whether something is wrong, and since when. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Episode(Arc<Mutex<Option<Instant>>>);

impl Episode {
    /// Since when it is wrong, if it is.
    pub fn since(&self) -> Option<Instant> {
        *self.lock()
    }

    /// It is wrong at `now`. Does it begin with that.
    pub fn goes_on(&self, now: Instant) -> bool {
        let mut since = self.lock();
        let begins = since.is_none();
        since.get_or_insert(now);
        begins
    }

    /// It is not wrong at `now`. How long it was, if this ends it.
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
