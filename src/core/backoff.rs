//! Full-jitter exponential backoff: a random delay between zero and a ceiling that doubles with each failure.
//!
//! Full jitter, because clients that failed together should not retry together.

use std::time::Duration;

/// The first and the largest ceiling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The ceiling after the first failure.
    pub base: Duration,
    /// The largest ceiling.
    pub max: Duration,
}

impl Backoff {
    /// The longest delay after the `failures`-th failure in a row, counted from 1.
    pub fn ceiling(&self, failures: u32) -> Duration {
        let doubled = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        self.base.saturating_mul(doubled).min(self.max)
    }

    /// A delay after the `failures`-th failure, where `random` in 0..1 is its share of the ceiling.
    pub fn delay(&self, failures: u32, random: f64) -> Duration {
        self.ceiling(failures).mul_f64(random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn doubles_up_to_its_maximum(base_ms in 1u64..10_000, max_ms in 1u64..100_000, failures in 1u32..100, random in 0.0f64..1.0) {
            let backoff = Backoff { base: Duration::from_millis(base_ms), max: Duration::from_millis(max_ms) };
            let ceiling = backoff.ceiling(failures);
            prop_assert!(ceiling <= backoff.max);
            prop_assert!(backoff.ceiling(failures + 1) >= ceiling);
            prop_assert!(ceiling == backoff.max || ceiling.as_millis() == u128::from(base_ms) << (failures - 1));
            prop_assert!(backoff.delay(failures, random) <= ceiling);
        }
    }
}
