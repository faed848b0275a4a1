//! The token bucket, as pure arithmetic: the generic cell rate algorithm (ITU-T I.371 annex A).
//!
//! One instant is the whole state: the *theoretical arrival time*, until which the tokens handed out have
//! been paid for. A token is to be had when that instant lies no more than the burst ahead. Time is passed
//! in, so nothing here can wait.

use std::time::Duration;

use crate::core::clock::Instant;
use crate::core::units::Rate;

/// Rate and burst. Over any time T it lets through at most `burst + rate × T`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quota {
    period: Duration,
    /// How far ahead of the clock the theoretical arrival time may lie.
    tolerance: Duration,
}

impl Quota {
    /// A quota of `rate`, `burst` of which may be spent at once; at least one.
    pub(super) fn new(rate: Rate, burst: u32) -> Self {
        let period = rate.period();
        Self { period, tolerance: period.saturating_mul(burst.max(1) - 1) }
    }

    /// A quota of `per_second`, evenly spaced: nothing may be spent at once but what timers that fire late have
    /// left behind.
    pub(super) fn even(per_second: f64) -> Self {
        const LATENESS: Duration = Duration::from_millis(20);
        const LONGEST: Duration = Duration::from_secs(3600);
        let period = Duration::try_from_secs_f64(1.0 / per_second).unwrap_or(LONGEST);
        Self { period: period.clamp(Duration::from_nanos(1), LONGEST), tolerance: LATENESS }
    }

    /// Tokens a second.
    pub(super) fn per_second(&self) -> f64 {
        1.0 / self.period.as_secs_f64()
    }
}

/// A bucket's state; it needs its [`Quota`] to mean anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bucket {
    paid_until: Instant,
}

impl Bucket {
    /// A full bucket.
    pub(super) fn full(now: Instant) -> Self {
        Self { paid_until: now }
    }

    /// When the `n`-th token from now is to be had, counted from 1, if nobody else takes one.
    pub(super) fn nth(&self, quota: &Quota, n: u32, now: Instant) -> Instant {
        let ahead = quota.period.saturating_mul(n.saturating_sub(1));
        let arrival = self.paid_until.max(now) + ahead;
        arrival.checked_sub(quota.tolerance).unwrap_or(now).max(now)
    }

    /// Takes a token if there is one.
    pub(super) fn take(&mut self, quota: &Quota, now: Instant) -> bool {
        let there = self.nth(quota, 1, now) <= now;
        if there {
            self.paid_until = self.paid_until.max(now) + quota.period;
        }
        there
    }

    /// Puts a token back that was not used.
    pub(super) fn put_back(&mut self, quota: &Quota) {
        self.paid_until = self.paid_until.checked_sub(quota.period).unwrap_or(self.paid_until);
    }

    /// Goes over to another quota: as many tokens are owed as before.
    pub(super) fn requote(&mut self, old: &Quota, new: &Quota, now: Instant) {
        let owed = self.paid_until.saturating_duration_since(now).as_secs_f64() / old.period.as_secs_f64();
        // Beyond any sensible debt the product might not fit a duration; the old instant is then safe.
        if let Ok(ahead) = Duration::try_from_secs_f64(owed * new.period.as_secs_f64()) {
            self.paid_until = now.checked_add(ahead).unwrap_or(self.paid_until);
        }
    }

    /// Tokens to be had now, with the fraction of the next.
    pub(super) fn tokens(&self, quota: &Quota, now: Instant) -> f64 {
        let owed = self.paid_until.saturating_duration_since(now).as_secs_f64() / quota.period.as_secs_f64();
        1.0 + quota.tolerance.as_secs_f64() / quota.period.as_secs_f64() - owed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quota(per_second: u32, burst: u32) -> Quota {
        Quota::new(Rate::new(per_second, Duration::from_secs(1)).unwrap(), burst)
    }

    #[test]
    fn a_full_bucket_gives_its_burst_and_then_the_rate() {
        let (quota, start) = (quota(5, 3), Instant::now());
        let mut bucket = Bucket::full(start);
        assert_eq!([(); 4].map(|()| bucket.take(&quota, start)), [true, true, true, false]);
        assert_eq!(bucket.nth(&quota, 1, start), start + Duration::from_millis(200));
        assert_eq!(bucket.nth(&quota, 3, start), start + Duration::from_millis(600));
        assert!(!bucket.take(&quota, start + Duration::from_millis(199)));
        assert!(bucket.take(&quota, start + Duration::from_millis(200)));
    }

    #[test]
    fn a_new_quota_keeps_the_debt() {
        let start = Instant::now();
        let (slow, fast) = (quota(1, 5), quota(100, 5));
        let mut bucket = Bucket::full(start);
        while bucket.take(&slow, start) {}
        bucket.requote(&slow, &fast, start);
        assert!(!bucket.take(&fast, start));
        assert_eq!(bucket.nth(&fast, 1, start), start + Duration::from_millis(10));
        bucket.requote(&fast, &slow, start);
        assert_eq!(bucket.nth(&slow, 1, start), start + Duration::from_secs(1));
    }

    proptest! {
        /// Over any window, whatever the pattern of asking: no more than burst + rate × T.
        #[test]
        fn never_lets_through_more_than_its_quota(rate in 1u32..200, burst in 1u32..50, steps in proptest::collection::vec(0u64..400, 1..200)) {
            let (quota, start) = (quota(rate, burst), Instant::now());
            let mut bucket = Bucket::full(start);
            let (mut now, mut taken) = (start, Vec::new());
            for step in steps {
                now += Duration::from_millis(step);
                while bucket.take(&quota, now) {
                    taken.push(now);
                }
            }
            for (i, first) in taken.iter().enumerate() {
                for (j, last) in taken.iter().enumerate().skip(i) {
                    let allowed = f64::from(burst) + f64::from(rate) * (*last - *first).as_secs_f64();
                    prop_assert!((j - i + 1) as f64 <= allowed + 1e-6);
                }
            }
        }

        /// The promised instant is neither early nor late.
        #[test]
        fn keeps_what_it_promises(rate in 1u32..200, burst in 1u32..50, drained in 0u32..60, n in 1u32..40) {
            let (quota, start) = (quota(rate, burst), Instant::now());
            let mut bucket = Bucket::full(start);
            for _ in 0..drained {
                bucket.take(&quota, start);
            }
            let promised = bucket.nth(&quota, n, start);
            let mut ahead = 0;
            while ahead + 1 < n && bucket.take(&quota, bucket.nth(&quota, 1, start)) {
                ahead += 1;
            }
            prop_assert!(bucket.take(&quota, promised));
        }
    }
}
