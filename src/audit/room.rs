//! Room for the records that wait to be written, shared fairly between those who are recorded.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::accounts::Team;

/// Bytes of records that may wait to be written.
pub(super) const CAPACITY: usize = 8 << 20;

/// What waits. Nobody holds more than is left for all others together: one team that is recorded faster than its lines
/// can be written takes half of the room at most, two such teams a third each, and there is always room for one more.
/// With queries nobody holds more than half of what is left, so that lines find room where queries find none.
#[derive(Debug, Default)]
pub(super) struct Room(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    bytes: usize,
    /// Of each team; those who are nobody's team share one.
    by_team: HashMap<Option<Arc<str>>, usize>,
}

impl Room {
    /// Takes `bytes` for a record of `team`, with or without a query, if there is room for them.
    pub(super) fn take(&self, team: Option<&Arc<Team>>, bytes: usize, with_query: bool) -> bool {
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

    /// Gives back what [`Room::take`] has taken.
    pub(super) fn give_back(&self, team: Option<&Arc<Team>>, bytes: usize) {
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
        // Two additions.
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
    fn nobody_takes_what_others_need() {
        let room = Room::default();
        let [one, two, three] = ["one", "two", "three"].map(|name| Arc::new(Team::example(name)));
        let fill = |team, with_query| {
            let takes = std::iter::repeat_with(|| room.take(team, 1024, with_query));
            takes.take_while(|taken| *taken).count() * 1024
        };
        let queries = fill(Some(&one), true);
        assert!((CAPACITY / 4..CAPACITY / 2).contains(&queries), "{queries}");
        assert_eq!(queries + fill(Some(&one), false), CAPACITY / 2);
        let second = fill(Some(&two), false);
        assert!(second >= CAPACITY / 4, "{second}");
        assert!(!room.take(Some(&one), 1024, false));
        assert!(room.take(Some(&three), 1024, true) && room.take(None, 1024, false), "there is room for others");
        room.give_back(Some(&one), CAPACITY / 2);
        room.give_back(Some(&two), second);
        room.give_back(Some(&three), 1024);
        room.give_back(None, 1024);
        assert_eq!((room.bytes(), room.lock().by_team.len()), (0, 0));
        assert_eq!(fill(None, false), CAPACITY / 2);
    }
}
