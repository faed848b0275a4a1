//! The memory for records that wait to be written, shared fairly between the teams.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::accounts::Team;

/// Bytes of records that may wait to be written.
pub(super) const CAPACITY: usize = 8 << 20;

/// The bytes in use. No team uses more than what is free for all others together: one team whose records come faster than
/// they can be written uses at most half of the capacity, two such teams a third each, and another team always finds some
/// free. A record with a query may use only half of what is free, so that records without one still find space.
#[derive(Debug, Default)]
pub(super) struct FairShares(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    bytes: usize,
    /// Requests of no known team share one entry.
    by_team: HashMap<Option<Arc<str>>, usize>,
}

impl FairShares {
    /// Reserves `bytes` for a record of `team`. `false` if that is more than its share.
    pub(super) fn reserve(&self, team: Option<&Arc<Team>>, bytes: usize, with_query: bool) -> bool {
        let mut waiting = self.lock();
        let free = CAPACITY.saturating_sub(waiting.bytes);
        let free = if with_query { free / 2 } else { free };
        let own = waiting.by_team.entry(team.map(|team| Arc::clone(&team.name))).or_default();
        let fits = *own + bytes <= free;
        if fits {
            *own += bytes;
            waiting.bytes += bytes;
        }
        fits
    }

    /// Releases what [`FairShares::reserve`] reserved.
    pub(super) fn release(&self, team: Option<&Arc<Team>>, bytes: usize) {
        let mut waiting = self.lock();
        let team = team.map(|team| Arc::clone(&team.name));
        waiting.bytes = waiting.bytes.saturating_sub(bytes);
        let left = waiting.by_team.get_mut(&team).map(|own| {
            *own = own.saturating_sub(bytes);
            *own
        });
        if left == Some(0) {
            waiting.by_team.remove(&team);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Each critical section is a few additions, so a panic cannot leave the sums half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_team_takes_what_others_need() {
        let shares = FairShares::default();
        let [one, two, three] = ["one", "two", "three"].map(|name| Arc::new(Team::example(name)));
        let fill = |team, with_query| {
            let takes = std::iter::repeat_with(|| shares.reserve(team, 1024, with_query));
            takes.take_while(|taken| *taken).count() * 1024
        };
        let queries = fill(Some(&one), true);
        assert!((CAPACITY / 4..CAPACITY / 2).contains(&queries), "{queries}");
        assert_eq!(queries + fill(Some(&one), false), CAPACITY / 2);
        let second = fill(Some(&two), false);
        assert!(second >= CAPACITY / 4, "{second}");
        assert!(!shares.reserve(Some(&one), 1024, false));
        assert!(shares.reserve(Some(&three), 1024, true) && shares.reserve(None, 1024, false), "others find space");
        shares.release(Some(&one), CAPACITY / 2);
        shares.release(Some(&two), second);
        shares.release(Some(&three), 1024);
        shares.release(None, 1024);
        assert_eq!((shares.bytes(), shares.lock().by_team.len()), (0, 0));
        assert_eq!(fill(None, false), CAPACITY / 2);
    }
}
