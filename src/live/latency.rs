//! How long requests took, by outcome, without locks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::core::outcome::Outcome;

/// Four buckets for each doubling of the duration, so a quantile is wrong by at most an eighth.
const PER_OCTAVE: usize = 4;

/// From 1 µs to more than two minutes. Longer durations are counted in the last bucket.
const OCTAVES: usize = 27;

const BUCKETS: usize = OCTAVES * PER_OCTAVE;

const OUTCOMES: usize = Outcome::ALL.len();

/// Counts of requests by outcome and time since the start.
#[derive(Debug)]
pub struct Latencies(Box<[[AtomicU64; BUCKETS]; OUTCOMES]>);

/// A copy of all counts at one time. The difference of two copies is what was counted between them.
#[derive(Debug, Clone)]
pub struct Spread(Box<[[u64; BUCKETS]; OUTCOMES]>);

impl Default for Latencies {
    fn default() -> Self {
        Self(Box::new(std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0)))))
    }
}

impl Latencies {
    /// Counts one request.
    pub fn count(&self, outcome: Outcome, took: Duration) {
        self.0[outcome as usize][bucket(took)].fetch_add(1, Relaxed);
    }

    /// All counts as they are now.
    pub fn read(&self) -> Spread {
        let read = |outcome: usize, bucket: usize| self.0[outcome][bucket].load(Relaxed);
        Spread(Box::new(std::array::from_fn(|outcome| std::array::from_fn(|bucket| read(outcome, bucket)))))
    }
}

impl Spread {
    /// What was counted after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let between = |outcome: usize, bucket: usize| self.0[outcome][bucket] - earlier.0[outcome][bucket];
        Self(Box::new(std::array::from_fn(|outcome| std::array::from_fn(|bucket| between(outcome, bucket)))))
    }

    /// Requests with this outcome.
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.0[outcome as usize].iter().sum()
    }

    /// The time within which `share` (0 to 1) of the requests with this outcome ended; `None` if there were none.
    pub fn quantile(&self, outcome: Outcome, share: f64) -> Option<Duration> {
        let all = self.count(outcome);
        let rank = ((all as f64 * share).ceil() as u64).max(1);
        let mut passed = 0;
        let found = self.0[outcome as usize].iter().position(|count| {
            passed += count;
            passed >= rank
        })?;
        Some(middle(found))
    }
}

fn bucket(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
    let octave = micros.ilog2();
    // The two bits after the leading one.
    let quarter = match octave {
        0 | 1 => (micros << (2 - octave)) & 3,
        _ => (micros >> (octave - 2)) & 3,
    };
    (octave as usize * PER_OCTAVE + quarter as usize).min(BUCKETS - 1)
}

/// The middle of the durations that this bucket counts.
fn middle(bucket: usize) -> Duration {
    let (octave, quarter) = (bucket / PER_OCTAVE, bucket % PER_OCTAVE);
    let factor = 1.0 + (quarter as f64 + 0.5) / PER_OCTAVE as f64;
    Duration::from_secs_f64((1u64 << octave) as f64 * factor / 1e6)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_time_is_found_again_within_an_eighth(micros in 4u64..100_000_000) {
            let found = middle(bucket(Duration::from_micros(micros))).as_secs_f64() * 1e6;
            let exact = micros as f64;
            prop_assert!((found - exact).abs() <= exact / 8.0 + 1.0, "{} for {}", found, exact);
        }
    }

    #[test]
    fn the_shortest_and_the_longest_durations_are_counted() {
        assert_eq!(bucket(Duration::ZERO), 0);
        assert_eq!(bucket(Duration::from_secs(1 << 40)), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_of_the_requests_between_two_copies() {
        let latencies = Latencies::default();
        for _ in 0..100 {
            latencies.count(Outcome::Miss, Duration::from_secs(50));
        }
        let before = latencies.read();
        for millis in 1..=100 {
            latencies.count(Outcome::Miss, Duration::from_millis(millis));
        }
        let between = latencies.read().since(&before);
        let near = |share, expected: f64| {
            let found = between.quantile(Outcome::Miss, share).unwrap().as_secs_f64() * 1e3;
            assert!((found - expected).abs() <= expected / 8.0, "{found} ms for {share}");
        };
        near(0.5, 50.0);
        near(0.95, 95.0);
        assert_eq!((between.count(Outcome::Miss), between.count(Outcome::Hit)), (100, 0));
        assert_eq!(between.quantile(Outcome::Hit, 0.5), None);
    }
}
