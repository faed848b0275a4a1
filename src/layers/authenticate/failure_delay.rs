//! Delays the refusals of clients that fail to authenticate again and again.
//!
//! A refusal is delayed for longer with every failure of the same group of sources, up to a few seconds. Nothing else is
//! delayed: a request with a valid token is served at once, however often others at the same address have failed.
//! Otherwise one bad client behind a load balancer would lock out all others. So this is no defence against guessing,
//! and a token of 256 random bits needs none. It reduces log lines, and the cost of clients that repeat a mistake.
//!
//! An attacker cannot misuse it. Failures are counted in a table of fixed size. The number of refusals that are delayed
//! at the same time is bounded, and one group may have a quarter of it. Refusals beyond that are not delayed.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::core::clock::{Clock, Instant};
use crate::core::peer::SourceGroup;

/// Source groups that are told apart. Those that meet in one slot are counted together. The hash is keyed at random,
/// so nobody can choose whom to meet.
const SLOTS: usize = 4096;

/// Failures that cost nothing: a new token may take a moment to reach everybody.
const FREE: u32 = 3;

/// What the first failure beyond those costs; each further one twice as much.
const FIRST: Duration = Duration::from_millis(100);

/// What one costs at most.
const LONGEST: Duration = Duration::from_secs(5);

/// Where counting ends: so many failures are forgotten after [`FORGET`] times as much.
const MOST: u32 = 16;

/// How long it takes for one failure to be forgotten.
const FORGET: Duration = Duration::from_secs(10);

/// Who has failed how often. Cheap to clone; outlives reloads.
#[derive(Debug, Clone)]
pub struct AuthFailureDelay(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    slots: Mutex<Box<[Slot]>>,
    hasher: RandomState,
    places: Arc<Semaphore>,
    share: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    failures: u32,
    /// Since when the oldest of them is being forgotten.
    since: Option<Instant>,
    /// Refusals that are held back.
    delayed: u32,
}

impl AuthFailureDelay {
    /// Holds back so many refusals at once.
    pub fn new(places: usize) -> Self {
        let places = places.max(1);
        Self(Arc::new(Shared {
            slots: Mutex::new(vec![Slot::default(); SLOTS].into()),
            hasher: RandomState::new(),
            places: Arc::new(Semaphore::new(places)),
            share: u32::try_from(places.div_ceil(4)).unwrap_or(u32::MAX),
        }))
    }

    /// One more failure from there: how long its refusal is to be held back, if at all.
    pub(super) fn failed(&self, source_group: SourceGroup, clock: Clock) -> Option<DelayedRefusal> {
        let index = self.index(source_group);
        let mut slots = self.slots();
        let slot = slots.get_mut(index)?;
        let failures = slot.fail(clock.now());
        let delay = delay(failures);
        if delay.is_zero() || slot.delayed >= self.0.share {
            return None;
        }
        let place = Arc::clone(&self.0.places).try_acquire_owned().ok()?;
        slot.delayed += 1;
        Some(DelayedRefusal { delay, failure_delay: self.clone(), index, _place: place })
    }

    fn index(&self, source_group: SourceGroup) -> usize {
        let hash = self.0.hasher.hash_one(source_group);
        usize::try_from(hash % SLOTS as u64).unwrap_or_default()
    }

    fn slots(&self) -> MutexGuard<'_, Box<[Slot]>> {
        self.0.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Failures that are not forgotten yet, this one included.
    fn fail(&mut self, now: Instant) -> u32 {
        let since = self.since.unwrap_or(now);
        let past = now.saturating_duration_since(since);
        let forgotten = u32::try_from(past.as_millis() / FORGET.as_millis()).unwrap_or(u32::MAX);
        if forgotten >= self.failures {
            (self.failures, self.since) = (0, Some(now));
        } else {
            self.failures -= forgotten;
            self.since = Some(since + FORGET * forgotten);
        }
        self.failures = (self.failures + 1).min(MOST);
        self.failures
    }
}

/// What the latest of so many failures costs.
fn delay(failures: u32) -> Duration {
    match failures.checked_sub(FREE + 1) {
        None => Duration::ZERO,
        Some(doublings) => FIRST.saturating_mul(2u32.saturating_pow(doublings)).min(LONGEST),
    }
}

/// A place among the refusals that are held back, until it is dropped.
#[derive(Debug)]
pub(super) struct DelayedRefusal {
    delay: Duration,
    failure_delay: AuthFailureDelay,
    index: usize,
    _place: OwnedSemaphorePermit,
}

impl DelayedRefusal {
    /// Ends when the refusal may go.
    pub(super) async fn over(self) {
        tokio::time::sleep(self.delay).await;
    }
}

impl Drop for DelayedRefusal {
    fn drop(&mut self) {
        if let Some(slot) = self.failure_delay.slots().get_mut(self.index) {
            slot.delayed -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use tokio::time::advance;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn somebody(n: u32) -> SourceGroup {
        SourceGroup::User(n)
    }

    /// Source groups that meet no other in a slot. Where the hash puts them is not known before.
    fn strangers<const N: usize>(failure_delay: &AuthFailureDelay) -> [SourceGroup; N] {
        let mut taken = HashSet::new();
        let mut apart = (0..).map(somebody).filter(|who| taken.insert(failure_delay.index(*who)));
        std::array::from_fn(|_| apart.next().unwrap())
    }

    /// What `count` failures cost, one after the other.
    fn delays(failure_delay: &AuthFailureDelay, who: SourceGroup, clock: Clock, count: usize) -> Vec<Duration> {
        (0..count).map(|_| failure_delay.failed(who, clock).map_or(Duration::ZERO, |delayed| delayed.delay)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn failures_cost_more_and_more_up_to_a_limit() {
        let (failure_delay, clock) = (AuthFailureDelay::new(100), Clock::new());
        let [one, other] = strangers(&failure_delay);
        let expected = [0, 0, 0, 100, 200, 400, 800, 1600, 3200, 5000, 5000].map(Duration::from_millis);
        assert_eq!(delays(&failure_delay, one, clock, expected.len()), expected);
        assert_eq!(delays(&failure_delay, other, clock, 3), [Duration::ZERO; 3], "somebody else");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_forgotten() {
        let (failure_delay, clock) = (AuthFailureDelay::new(100), Clock::new());
        delays(&failure_delay, somebody(1), clock, 5);
        advance(FORGET * 2 - S).await;
        // Five less one, and one more.
        assert_eq!(delays(&failure_delay, somebody(1), clock, 1), [FIRST * 2]);
        advance(FORGET * 5).await;
        assert_eq!(delays(&failure_delay, somebody(1), clock, 1), [Duration::ZERO]);
        delays(&failure_delay, somebody(1), clock, 1000);
        advance(FORGET * MOST).await;
        assert_eq!(
            delays(&failure_delay, somebody(1), clock, 1),
            [Duration::ZERO],
            "a thousand weigh no more than a few"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_at_most_are_held_back() {
        let (failure_delay, clock) = (AuthFailureDelay::new(8), Clock::new());
        let [one, other, others @ ..] = strangers::<8>(&failure_delay);
        delays(&failure_delay, one, clock, 5);
        delays(&failure_delay, other, clock, 5);
        let mut delayed: Vec<_> = std::iter::from_fn(|| failure_delay.failed(one, clock)).collect();
        assert_eq!(delayed.len(), 2, "a quarter for one group");
        delayed.extend(others.into_iter().flat_map(|another| {
            delays(&failure_delay, another, clock, 5);
            failure_delay.failed(another, clock)
        }));
        assert_eq!(delayed.len(), 8);
        assert!(failure_delay.failed(other, clock).is_none(), "no place is left");
        drop(delayed);
        assert!(failure_delay.failed(other, clock).is_some(), "places come back when nobody waits any more");
        assert!(failure_delay.slots().iter().all(|slot| slot.delayed == 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_held_back_for_its_delay() {
        let (failure_delay, clock) = (AuthFailureDelay::new(8), Clock::new());
        delays(&failure_delay, somebody(1), clock, 9);
        let before = clock.now();
        failure_delay.failed(somebody(1), clock).unwrap().over().await;
        assert_eq!(clock.now() - before, LONGEST);
    }
}
