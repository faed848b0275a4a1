//! The age of a response when it arrives, and which readings of the wall clock can be trusted.

use std::time::{Duration, SystemTime};

use http::HeaderMap;

use super::layer::CacheLayer;
use crate::core::clock::Instant;
use crate::semantics::cache_control;

impl CacheLayer {
    /// How old a response is when it arrives, if it says so (RFC 9111 section 4.2.3): its `Age` plus the time that the
    /// call took, or the age by its own `Date` if that is greater. The date counts only if the wall clock has not been
    /// set since the start, and only if it is older than its rounding to seconds and the time of the call explain.
    pub(super) fn initial_age(&self, headers: &HeaderMap, asked: Instant) -> Option<Duration> {
        const WHOLE_SECONDS: Duration = Duration::from_secs(1);
        let delay = self.clock.now().saturating_duration_since(asked);
        let corrected = cache_control::age(headers).map(|age| age + delay);
        let wall = self.clock.wall_now();
        let apparent = cache_control::date(headers)
            .filter(|_| agree(wall, self.clock.predicted_wall()))
            .and_then(|date| wall.duration_since(date).ok())
            .filter(|apparent| *apparent > delay + WHOLE_SECONDS);
        corrected.max(apparent)
    }

    /// The wall time for judging whether a query is settled: the earliest of the clock, its prediction from the start,
    /// and the response's own `Date`. A clock that was set, at any time, proves nothing.
    pub(super) fn trusted_wall(&self, date: Option<SystemTime>) -> SystemTime {
        let now = self.clock.wall_now().min(self.clock.predicted_wall());
        date.map_or(now, |date| date.min(now))
    }
}

/// Whether two readings of the wall clock differ by less than a request takes, so that one verdict holds for both.
pub(super) fn agree(one: SystemTime, other: SystemTime) -> bool {
    const MARGIN: Duration = Duration::from_secs(60);
    one.duration_since(other).unwrap_or_else(|behind| behind.duration()) <= MARGIN
}

/// An age in whole seconds for `Age`. It is rounded up, so that no response seems younger than it is.
pub(super) fn rounded_up(age: Duration) -> Duration {
    Duration::from_secs(age.as_secs() + u64::from(age.subsec_nanos() > 0))
}
