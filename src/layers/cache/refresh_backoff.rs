//! Delays the next refresh of a response whose last refresh failed.
//!
//! Every request for a stale response could start a refresh. A refresh after a failed one would probably fail too, and
//! each costs a token. So the pause between failed refreshes of one response doubles, up to ten times its fresh
//! lifetime and at most a minute.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::core::backoff::Backoff;
use crate::core::clock::Instant;
use crate::request::key::Key;

/// The pause after the first failure.
const SHORTEST: Duration = Duration::from_secs(1);
/// The longest pause: a recovered upstream is noticed within this time.
const LONGEST: Duration = Duration::from_secs(60);

/// Responses that are remembered. Beyond this, failures are not remembered.
const MOST: usize = 10_000;

/// The pages whose last refresh failed. Cheap to clone; all clones share one table.
#[derive(Debug, Clone, Default)]
pub(super) struct RefreshBackoff(Arc<Mutex<HashMap<Key, Failures>>>);

#[derive(Debug, Clone, Copy)]
struct Failures {
    /// When the stored page was requested. The failures say nothing of another page under the same key.
    of: Instant,
    in_a_row: u32,
    /// No refresh before this.
    until: Instant,
}

impl RefreshBackoff {
    /// Whether the page that was requested at `of` may be refreshed.
    pub(super) fn allows(&self, key: &Key, of: Instant, now: Instant) -> bool {
        self.lock().get(key).is_none_or(|failures| failures.of != of || failures.until <= now)
    }

    /// A refresh has brought a new page.
    pub(super) fn succeeded(&self, key: &Key) {
        self.lock().remove(key);
    }

    /// A refresh has failed; the page that was requested at `of`, with the lifetime `fresh`, stays.
    pub(super) fn failed(&self, key: &Key, of: Instant, fresh: Duration, now: Instant) {
        let mut all = self.lock();
        if all.len() >= MOST && !all.contains_key(key) {
            all.retain(|_, failures| failures.until > now);
            if all.len() >= MOST {
                return;
            }
        }
        let failures = all.entry(*key).or_insert(Failures { of, in_a_row: 0, until: now });
        if failures.of != of {
            *failures = Failures { of, in_a_row: 0, until: now };
        }
        // A failure long ago says nothing about the next refresh.
        failures.in_a_row = if now > failures.until + LONGEST { 1 } else { failures.in_a_row.saturating_add(1) };
        let backoff = Backoff { base: SHORTEST, max: fresh.saturating_mul(10).clamp(SHORTEST, LONGEST) };
        // At least half of the pause, or the jitter could cancel it.
        failures.until = now + backoff.delay(failures.in_a_row, 0.5 + fastrand::f64() / 2.0);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Failures>> {
        // Every change under this lock is complete before anything that could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn key(n: u32) -> Key {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&n.to_le_bytes());
        Key::from_bytes(bytes)
    }

    #[test]
    fn a_page_whose_refresh_keeps_failing_is_refreshed_less_and_less_often() {
        let (refreshes, start) = (RefreshBackoff::default(), Instant::now());
        let mut begun = Vec::new();
        // Requested ten times a second, for five minutes.
        for n in 0..3000u32 {
            let now = start + n * S / 10;
            if refreshes.allows(&key(0), start, now) {
                refreshes.failed(&key(0), start, 60 * S, now);
                begun.push(n / 10);
            }
        }
        assert!((8..=17).contains(&begun.len()), "{begun:?}");
        assert!(begun.windows(2).all(|pair| pair[1] - pair[0] <= 61), "{begun:?}");
        assert!(refreshes.allows(&key(1), start, start), "others are not delayed");
    }

    #[test]
    fn the_pause_of_a_page_with_a_short_lifetime_is_short() {
        let (refreshes, start) = (RefreshBackoff::default(), Instant::now());
        for n in 0..20u32 {
            assert!(refreshes.allows(&key(0), start, start + n * S), "{n}");
            refreshes.failed(&key(0), start, S / 10, start + n * S);
        }
    }

    #[test]
    fn a_success_clears_the_failures() {
        let (refreshes, start) = (RefreshBackoff::default(), Instant::now());
        for _ in 0..5 {
            refreshes.failed(&key(0), start, 60 * S, start);
        }
        assert!(!refreshes.allows(&key(0), start, start + 7 * S));
        refreshes.succeeded(&key(0));
        assert!(refreshes.allows(&key(0), start, start));
        assert!(refreshes.lock().is_empty());
        refreshes.failed(&key(0), start, 60 * S, start);
        assert!(refreshes.allows(&key(0), start, start + S), "it begins with the shortest pause again");
    }

    #[test]
    fn failures_do_not_delay_another_page() {
        let (refreshes, start) = (RefreshBackoff::default(), Instant::now());
        for _ in 0..5 {
            refreshes.failed(&key(0), start, 60 * S, start);
        }
        let newer = start + S;
        assert!(!refreshes.allows(&key(0), start, newer) && refreshes.allows(&key(0), newer, newer));
        refreshes.failed(&key(0), newer, 60 * S, newer);
        assert!(refreshes.allows(&key(0), newer, newer + S), "it begins with the shortest pause again");
    }

    #[test]
    fn memory_is_bounded_and_expired_entries_are_replaced() {
        let (refreshes, start) = (RefreshBackoff::default(), Instant::now());
        for n in 0..MOST as u32 + 100 {
            refreshes.failed(&key(n), start, 60 * S, start);
        }
        assert_eq!(refreshes.lock().len(), MOST);
        refreshes.failed(&key(u32::MAX), start, 60 * S, start + 2 * S);
        assert_eq!(refreshes.lock().len(), 1);
    }
}
