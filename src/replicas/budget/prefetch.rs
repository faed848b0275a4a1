//! How early a replica asks for tokens, and how many it holds. The longer the store takes to answer, the earlier a
//! replica asks.

use std::time::Duration;

use super::ledger::AHEAD;
use crate::replicas::clock::micros;

/// Tokens that are held at once, at least and at most.
const LEAST: u64 = 4;
const MOST: u64 = 64;
/// A store that is farther away counts as this far. It would not be used for long.
const FARTHEST: Duration = Duration::from_secs(1);

/// What follows from the time that recent requests to the store took.
#[derive(Debug, Default)]
pub(super) struct Prefetch {
    round_trip: Duration,
}

impl Prefetch {
    /// An ask took this long. What grows counts at once, because tokens that come too late are lost.
    pub(super) fn answered(&mut self, took: Duration) {
        let took = took.min(FARTHEST);
        self.round_trip = took.max((self.round_trip * 7 + took) / 8);
    }

    /// How long an ask takes.
    pub(super) fn round_trip(&self) -> Duration {
        self.round_trip
    }

    /// Tokens that are granted so long before their time are of use.
    pub(super) fn ahead(&self) -> Duration {
        AHEAD + self.round_trip
    }

    /// Tokens to hold at once, if there is one in so many microseconds; 0 is no limit. Those of two round trips: of
    /// this one and the next.
    pub(super) fn most(&self, period: u64) -> usize {
        let in_time = micros(self.ahead()).checked_div(period);
        let most = in_time.map_or(MOST, |tokens| (LEAST + tokens.saturating_mul(2)).min(MOST));
        usize::try_from(most).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_store_that_is_far_away_is_asked_for_more() {
        let mut prefetch = Prefetch::default();
        assert_eq!((prefetch.ahead(), prefetch.most(20_000)), (AHEAD, 4));
        prefetch.answered(190 * MS);
        assert_eq!((prefetch.ahead(), prefetch.most(20_000)), (200 * MS, 24));
        assert_eq!((prefetch.most(1000), prefetch.most(0), prefetch.most(3_600_000_000)), (64, 64, 4));
        for _ in 0..60 {
            prefetch.answered(MS);
        }
        assert!(prefetch.ahead() < AHEAD + 2 * MS, "{prefetch:?}");
        prefetch.answered(Duration::MAX);
        assert_eq!(prefetch.round_trip(), FARTHEST);
    }
}
