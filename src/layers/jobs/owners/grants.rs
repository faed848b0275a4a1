//! The grants of all scopes, in memory.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::request::grants::Scope;

/// The most grants, over all scopes: about 12 MiB.
pub(super) const MOST: usize = 65_536;

/// How long a grant is kept.
pub(super) const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// A grant that is repeated within this time is not recorded again.
const RENEWED_AFTER: Duration = Duration::from_secs(3600);

/// Which keys were given out in which scope, and when.
#[derive(Debug, Default)]
pub(super) struct Grants {
    scopes: HashMap<Scope, ScopeGrants>,
    count: usize,
}

#[derive(Debug, Default)]
struct ScopeGrants {
    /// When each grant was last recorded, in seconds since 1970.
    times: HashMap<[u8; 32], u64>,
    /// Grants in the order of recording. Entries of grants that were recorded again later are skipped.
    order: VecDeque<([u8; 32], u64)>,
}

impl Grants {
    /// Records a grant of the time `at`; `false` if it is already known or has expired.
    pub(super) fn give(&mut self, scope: Scope, key: [u8; 32], at: u64, now: u64) -> bool {
        if is_over(at, now) {
            return false;
        }
        let given = self.scopes.entry(scope).or_default();
        let known = given.times.get(&key).copied();
        if known.is_some_and(|known| at < known.saturating_add(RENEWED_AFTER.as_secs())) {
            return false;
        }
        given.times.insert(key, at);
        given.order.push_back((key, at));
        self.count += usize::from(known.is_none());
        self.count -= given.drop_while(|noted| is_over(noted, now));
        if self.count > MOST
            && let Some(most) = self.scopes.values_mut().max_by_key(|given| given.times.len())
        {
            let mut left = 1;
            self.count -= most.drop_while(|_| std::mem::take(&mut left) > 0);
        }
        self.scopes.retain(|_, given| !given.times.is_empty());
        true
    }

    pub(super) fn has(&self, scope: &Scope, key: &[u8; 32], now: u64) -> bool {
        let at = self.scopes.get(scope).and_then(|given| given.times.get(key));
        at.is_some_and(|at| !is_over(*at, now))
    }
}

impl Grants {
    /// All grants, scope by scope, in the order in which they were recorded.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Scope, &[u8; 32], u64)> {
        self.scopes.iter().flat_map(|(scope, given)| {
            let current = given.order.iter().filter(|(key, at)| given.times.get(key) == Some(at));
            current.map(move |(key, at)| (scope, key, *at))
        })
    }
}

impl ScopeGrants {
    /// Drops grants from the oldest on while `goes` is true of the time at which they were recorded. Returns how many
    /// there were.
    fn drop_while(&mut self, mut goes: impl FnMut(u64) -> bool) -> usize {
        let mut dropped = 0;
        while let Some((key, at)) = self.order.front() {
            let is_current = self.times.get(key) == Some(at);
            if is_current && !goes(*at) {
                break;
            }
            if is_current {
                self.times.remove(key);
                dropped += 1;
            }
            self.order.pop_front();
        }
        dropped
    }
}

/// Whether a grant has expired. One with a time in the future has: a clock that was set back must not prolong it.
fn is_over(at: u64, now: u64) -> bool {
    now.checked_sub(at).is_none_or(|age| age > KEPT.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600;

    fn key(n: usize) -> [u8; 32] {
        *blake3::hash(&n.to_le_bytes()).as_bytes()
    }

    #[test]
    fn a_grant_is_valid_for_its_scope_and_for_seven_days() {
        let mut grants = Grants::default();
        assert!(grants.give([1; 32], key(1), 0, 0) && !grants.give([1; 32], key(1), 60, 60));
        assert!(grants.has(&[1; 32], &key(1), 7 * DAY) && !grants.has(&[1; 32], &key(1), 7 * DAY + 1));
        assert!(!grants.has(&[2; 32], &key(1), 0) && !grants.has(&[1; 32], &key(2), 0));
        assert!(grants.give([1; 32], key(1), DAY, DAY), "given again");
        assert!(grants.has(&[1; 32], &key(1), 8 * DAY));
        assert!(!Grants::default().give([1; 32], key(1), 5, 4), "of the future");
    }

    #[test]
    fn no_scope_pushes_out_the_grants_of_another() {
        let mut grants = Grants::default();
        grants.give([1; 32], key(0), 0, 0);
        for n in 0..MOST + 10 {
            grants.give([2; 32], key(n), 0, 0);
        }
        assert_eq!((grants.count, grants.scopes[&[2; 32]].times.len()), (MOST, MOST - 1));
        assert!(grants.has(&[1; 32], &key(0), 0) && grants.has(&[2; 32], &key(MOST + 9), 0));
        assert!(!grants.has(&[2; 32], &key(0), 0));
    }

    #[test]
    fn expired_grants_use_no_memory() {
        let mut grants = Grants::default();
        for day in 0..100 {
            grants.give([1; 32], key(7), day * DAY, day * DAY);
            grants.give([1; 32], key(1000 + day as usize), day * DAY, day * DAY);
        }
        let given = &grants.scopes[&[1; 32]];
        assert_eq!((grants.count, given.times.len()), (9, 9));
        assert!(given.order.len() < 20, "{}", given.order.len());
    }
}
