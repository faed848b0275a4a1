//! The token bucket: at most `burst + rate × T` tokens over any time T.
//!
//! The same limiter holds back an account's upstream attempts, a team's share of them, and a team's requests. The
//! decision is governor's, by the generic cell rate algorithm (GCRA, ITU-T I.371 annex A). Its whole state is one
//! number, the *theoretical arrival time* (TAT): the time until which the tokens taken so far are paid for. A token is
//! available while the TAT lies no more than the depth of the bucket ahead.
//!
//! A limiter of governor hides its state, and counts time from the moment at which it was made. Here the state is our
//! own, and counts time from the epoch of the [`Limiter`], which stays the same when the quota changes. So a quota can
//! be changed without losing the debt, and the number of tokens and the next token's time can be read without taking
//! one. Time is passed in: nothing here waits.

use std::cell::Cell;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use governor::RateLimiter;
use governor::clock::Clock as GovernorClock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, StateStore};

use crate::core::clock::Instant;
use crate::core::units::Rate;

/// How many tokens there are, and how fast they come back.
///
/// A token is one or more of governor's cells. It is more than one where the bucket's depth is no multiple of a token,
/// see [`even`](Self::even).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    cells: governor::Quota,
    cells_per_token: NonZeroU32,
}

impl Quota {
    /// `burst` tokens at once, at least one, and then `rate`.
    pub fn new(rate: Rate, burst: u32) -> Self {
        Self::of_cells(nanos(rate.period()), 1, burst.into())
    }

    /// `per_second`, evenly spaced: one token at a time. What timers that fire up to 20 ms late have left behind can be
    /// taken at once. At least one token an hour.
    pub fn even(per_second: f64) -> Self {
        const LATENESS: u64 = 20_000_000;
        const LONGEST: Duration = Duration::from_secs(3600);
        let period = Duration::try_from_secs_f64(1.0 / per_second).unwrap_or(LONGEST).min(LONGEST);
        let period = nanos(period).max(1);
        // As fine as 32 bits of cells allow, so that both the period and the lateness are whole cells.
        let cell = if period < 4_000_000_000 { 1 } else { 1_000 };
        // Rounded up: never more than the rate.
        let per_token = period.div_ceil(cell);
        Self::of_cells(cell, per_token, per_token + LATENESS / cell)
    }

    /// A cell takes `cell` nanoseconds to come back; `depth` of them may be taken at once.
    fn of_cells(cell: u64, per_token: u64, depth: u64) -> Self {
        // governor adds and multiplies unchecked: no sum of a depth and a time may leave its 64 bits.
        const DEEPEST: u64 = u64::MAX / 8;
        let count = |cells: u64| NonZeroU32::new(u32::try_from(cells).unwrap_or(u32::MAX)).unwrap_or(NonZeroU32::MIN);
        let cell = cell.clamp(1, DEEPEST);
        let cells = governor::Quota::with_period(Duration::from_nanos(cell));
        let cells = cells.unwrap_or(governor::Quota::per_second(NonZeroU32::MIN));
        Self { cells: cells.allow_burst(count(depth.min(DEEPEST / cell))), cells_per_token: count(per_token) }
    }

    /// Nanoseconds between two tokens.
    fn period(&self) -> u64 {
        nanos(self.cells.replenish_interval()) * u64::from(self.cells_per_token.get())
    }

    /// Nanoseconds that the TAT may lie ahead once a token is taken.
    fn depth(&self) -> u64 {
        nanos(self.cells.replenish_interval()) * u64::from(self.cells.burst_size().get())
    }

    /// Microseconds between two tokens, rounded up.
    pub fn micros(&self) -> u64 {
        self.period().div_ceil(1000)
    }

    /// One of `n` equal parts, with a burst of at least one.
    pub fn part(&self, n: u32) -> Self {
        let n = u64::from(n.max(1));
        Self::of_cells(self.period().saturating_mul(n), 1, (self.burst() / n).max(1))
    }

    /// Tokens that can be taken at once from a full bucket.
    pub fn burst(&self) -> u64 {
        self.depth() / self.period()
    }

    /// Tokens a second.
    pub fn per_second(&self) -> f64 {
        1e9 / self.period() as f64
    }
}

/// A token bucket. Clones share the tokens, and each has a quota of its own.
#[derive(Debug, Clone)]
pub struct Limiter {
    quota: Quota,
    epoch: Instant,
    tat: Arc<Tat>,
}

impl Limiter {
    /// A full bucket.
    pub fn full(quota: Quota, now: Instant) -> Self {
        Self { quota, epoch: now, tat: Arc::default() }
    }

    /// An empty bucket.
    pub fn empty(quota: Quota, now: Instant) -> Self {
        let limiter = Self::full(quota, now);
        limiter.tat.update(|_| quota.depth());
        limiter
    }

    /// A bucket with this quota whose [parts](Self::part), of which there are `n`, are empty.
    pub fn empty_part(quota: Quota, n: u32, now: Instant) -> Self {
        Self { quota, ..Self::empty(quota.part(n), now) }
    }

    /// The quota of this clone.
    pub fn quota(&self) -> Quota {
        self.quota
    }

    /// Changes the quota of this clone. As many tokens are owed as before.
    pub fn set_quota(&mut self, quota: Quota, now: Instant) {
        if quota == self.quota {
            return;
        }
        /// 292 years: beyond any debt, and governor can still add to it.
        const LATEST: u64 = u64::MAX / 2;
        let (now, old, new) = (self.since_epoch(now), self.quota.period(), quota.period());
        self.tat.update(|tat| {
            let owed = u128::from(tat.saturating_sub(now)) * u128::from(new);
            let owed = (owed + u128::from(old / 2)) / u128::from(old);
            u64::try_from(owed).unwrap_or(u64::MAX).saturating_add(now).min(LATEST)
        });
        self.quota = quota;
    }

    /// One of `n` equal [parts](Quota::part). Shares what is owed: a token of a part costs as much as `n` tokens.
    pub fn part(&self, n: u32) -> Self {
        Self { quota: self.quota.part(n), ..self.clone() }
    }

    /// Takes a token if there is one.
    pub fn try_take(&self, now: Instant) -> bool {
        let clock = DecisionClock { now: self.since_epoch(now).into(), reads_origin: Cell::new(true) };
        let limiter = RateLimiter::<_, _, _, NoOpMiddleware<Nanos>>::new(self.quota.cells, &*self.tat, clock);
        // A token that is more than the whole bucket never comes; no quota is made like that.
        limiter.check_n(self.quota.cells_per_token).is_ok_and(|decision| decision.is_ok())
    }

    /// Gives back a token that was not used.
    pub fn refund(&self) {
        self.tat.update(|tat| tat.saturating_sub(self.quota.period()));
    }

    /// When the `n`-th token is available, counted from 1, if none is taken before `from` nor by others after that.
    pub fn nth_at(&self, n: u32, from: Instant) -> Instant {
        let from_epoch = self.since_epoch(from);
        let paid = self.tat.get().max(from_epoch).saturating_add(self.quota.period().saturating_mul(n.max(1).into()));
        from + Duration::from_nanos(paid.saturating_sub(self.quota.depth()).saturating_sub(from_epoch))
    }

    /// Tokens now, with the fraction of the next one; negative while tokens are owed.
    pub fn tokens(&self, now: Instant) -> f64 {
        let owed = self.tat.get().saturating_sub(self.since_epoch(now));
        (i128::from(self.quota.depth()) - i128::from(owed)) as f64 / self.quota.period() as f64
    }

    /// Tokens that can be taken now.
    pub fn whole_tokens(&self, now: Instant) -> u64 {
        let owed = self.tat.get().saturating_sub(self.since_epoch(now));
        self.quota.depth().saturating_sub(owed) / self.quota.period()
    }

    fn since_epoch(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.epoch))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The theoretical arrival time, in nanoseconds since the limiter's epoch.
#[derive(Debug, Default)]
struct Tat(AtomicU64);

impl Tat {
    fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    fn update(&self, change: impl Fn(u64) -> u64) {
        // The change always gives a value, so this cannot fail.
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |tat| Some(change(tat)));
    }
}

impl StateStore for &Tat {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut tat = self.get();
        loop {
            let (outcome, next) = decide(Some(tat.into()))?;
            match self.0.compare_exchange_weak(tat, next.into(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(outcome),
                Err(changed) => tat = changed,
            }
        }
    }
}

/// The clock of one decision. A governor limiter reads its clock when it is made and counts TATs from there; that
/// reading is 0, so that TATs count from our epoch. The next reading is the time of the decision.
struct DecisionClock {
    now: Nanos,
    reads_origin: Cell<bool>,
}

impl GovernorClock for DecisionClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        if self.reads_origin.take() { Nanos::new(0) } else { self.now }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);
    const MS: Duration = Duration::from_millis(1);

    fn quota(per_second: u32, burst: u32) -> Quota {
        Quota::new(Rate::new(per_second, S).unwrap(), burst)
    }

    #[test]
    fn a_full_bucket_gives_its_burst_and_then_the_rate() {
        let start = Instant::now();
        let limiter = Limiter::full(quota(5, 3), start);
        assert_eq!([(); 4].map(|()| limiter.try_take(start)), [true, true, true, false]);
        assert_eq!(limiter.nth_at(1, start), start + 200 * MS);
        assert_eq!(limiter.nth_at(3, start), start + 600 * MS);
        assert!(!limiter.try_take(start + 199 * MS));
        assert!(limiter.try_take(start + 200 * MS));
    }

    #[test]
    fn a_new_quota_keeps_the_debt() {
        let start = Instant::now();
        let (slow, fast) = (quota(1, 5), quota(100, 5));
        let mut limiter = Limiter::full(slow, start);
        while limiter.try_take(start) {}
        limiter.set_quota(fast, start);
        assert!(!limiter.try_take(start));
        assert_eq!(limiter.nth_at(1, start), start + 10 * MS);
        limiter.set_quota(slow, start);
        assert_eq!(limiter.nth_at(1, start), start + S);
        limiter.set_quota(quota(1, 1), start);
        assert_eq!((limiter.tokens(start), limiter.whole_tokens(start)), (-4.0, 0), "four more than it may owe");
        assert_eq!(limiter.nth_at(1, start), start + 5 * S);
    }

    /// governor alone would count the TAT from when the quota was changed, and stop for as long as the limiter is old.
    #[test]
    fn a_new_quota_does_not_stop_an_old_limiter() {
        let start = Instant::now();
        let (mut limiter, now) = (Limiter::full(quota(5, 1), start), start + 86_400 * S);
        assert!(limiter.try_take(now));
        limiter.set_quota(quota(10, 1), now);
        assert_eq!(limiter.nth_at(1, now), now + 100 * MS);
        assert!(limiter.try_take(now + 100 * MS));
    }

    #[test]
    fn clones_share_the_tokens() {
        let start = Instant::now();
        let limiter = Limiter::full(quota(1, 1000), start);
        let taken: usize = std::thread::scope(|scope| {
            let take = || (0..1000).filter(|_| limiter.clone().try_take(start)).count();
            let threads = [(); 4].map(|()| scope.spawn(take));
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!((taken, limiter.whole_tokens(start)), (1000, 0));
        limiter.refund();
        assert_eq!(limiter.clone().whole_tokens(start), 1);
    }

    #[test]
    fn an_even_quota_makes_up_for_timers_that_fire_late() {
        for per_second in [1.0 / 60.0, 0.3, 5.0, 47.0, 700.0] {
            let start = Instant::now();
            let (limiter, mut now, mut taken) = (Limiter::full(Quota::even(per_second), start), start, 0);
            let end = start + Duration::from_secs_f64(1000.0 / per_second);
            while now < end {
                while limiter.try_take(now) {
                    taken += 1;
                }
                now = limiter.nth_at(1, now) + 15 * MS;
            }
            assert!((999..=1020).contains(&taken), "{taken} at {per_second} a second");
        }
    }

    #[test]
    fn extreme_quotas_are_bounded() {
        let start = Instant::now();
        let hourly = Rate::new(1, 3600 * S).unwrap();
        let ten_years = Rate::new(1, 315_360_000 * S).unwrap();
        let fastest = Rate::new(u32::MAX, S).unwrap();
        let quotas = [
            (Quota::new(hourly, u32::MAX), 1.0 / 3600.0),
            (Quota::new(ten_years, u32::MAX), 1.0 / 315_360_000.0),
            (Quota::new(fastest, u32::MAX), 1e9),
            (Quota::even(0.0), 1.0 / 3600.0),
            (Quota::even(f64::MIN_POSITIVE), 1.0 / 3600.0),
            (Quota::even(f64::INFINITY), 1e9),
            (Quota::even(f64::NAN), 1.0 / 3600.0),
        ];
        let mut limiter = Limiter::full(quotas[0].0, start);
        for (quota, per_second) in quotas {
            assert!((quota.per_second() / per_second - 1.0).abs() < 1e-6, "{quota:?}");
            assert!(quota.burst() >= 1, "{quota:?}");
            let fresh = Limiter::full(quota, start);
            for n in [1, u32::MAX] {
                assert!(fresh.try_take(start + n * S), "{quota:?}");
                assert!(fresh.nth_at(n, start) >= start);
            }
            limiter.set_quota(quota, start);
            limiter.try_take(start);
        }
    }

    proptest! {
        /// Over any window, whatever the pattern of asking: no more than burst + rate × T.
        #[test]
        fn never_lets_through_more_than_its_quota(rate in 1u32..200, burst in 1u32..50, steps in proptest::collection::vec(0u64..400, 1..200)) {
            let start = Instant::now();
            let limiter = Limiter::full(quota(rate, burst), start);
            let (mut now, mut taken) = (start, Vec::new());
            for step in steps {
                now += Duration::from_millis(step);
                while limiter.try_take(now) {
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

        /// What can be read without taking a token agrees with what is then taken.
        #[test]
        fn what_is_read_agrees_with_what_is_taken(
            per_second in prop_oneof![0.01f64..1.0, 1.0f64..2000.0],
            burst in proptest::option::of(1u32..50),
            drained in 0u32..60,
            waited in 0u64..2000,
            n in 1u32..40,
        ) {
            let start = Instant::now();
            let period = Duration::from_secs_f64(1.0 / per_second);
            let quota = match burst {
                Some(burst) => Quota::new(Rate::new(1, period).unwrap(), burst),
                None => Quota::even(per_second),
            };
            let limiter = Limiter::full(quota, start);
            prop_assert_eq!(limiter.whole_tokens(start), quota.burst());
            for _ in 0..drained {
                limiter.try_take(start);
            }
            let now = start + Duration::from_millis(waited);
            let (nth, next, whole) = (limiter.nth_at(n, now), limiter.nth_at(1, now), limiter.whole_tokens(now));
            prop_assert_eq!(limiter.tokens(now).floor() as i64, whole as i64);
            prop_assert_eq!(next <= now, whole > 0);
            if next > now {
                prop_assert!(!limiter.try_take(next - Duration::from_nanos(1)), "not before");
            }
            for _ in 1..n {
                let at = limiter.nth_at(1, now);
                prop_assert!(limiter.try_take(at));
            }
            prop_assert_eq!(limiter.nth_at(1, now), nth);
            prop_assert!(limiter.try_take(nth));
        }
    }
}
