//! When a replica stops waiting for the store, because a waiting call has no time left for it.
//!
//! A request may wait for the store for four operations in all. What it waited before its call is queued here counts.
//! Only the rest is left for its token. A call gets its token from an ask that began after the call was queued, and the
//! ask before that one must end first. So with a store that answers each ask just in time, a call waits for two
//! operations. Such a store is still used: the replica waits for each ask until it fails. A store that does not answer
//! is no longer used as soon as one call has no time left.

use std::time::Duration;

use crate::core::clock::Instant;

/// Operations for which one request may wait.
const OPERATIONS: u32 = 4;

/// The times that decide when the store is given up. See the module.
#[derive(Debug)]
pub(super) struct StoreDeadline {
    /// How long one ask takes at most.
    timeout: Duration,
    /// When the first ask began since the last answer.
    silent_since: Option<Instant>,
    /// By when an answer has to come for the calls that came before the ask under way, or before the last one, …
    asked: Option<Instant>,
    /// … and for those that came after it began.
    unasked: Option<Instant>,
    /// The least that a call had left when it came, of those since the queue was last empty.
    least: Option<Duration>,
}

impl StoreDeadline {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, silent_since: None, asked: None, unasked: None, least: None }
    }

    /// A call waits from now on, whose request has `waited` for the store before.
    pub(super) fn arrived(&mut self, waited: Duration, now: Instant) {
        let left = (self.timeout * OPERATIONS).saturating_sub(waited);
        self.unasked = earlier(self.unasked, Some(now + left));
        self.least = Some(self.least.map_or(left, |least| least.min(left)));
    }

    /// No call waits.
    pub(super) fn idle(&mut self) {
        (self.asked, self.unasked, self.least) = (None, None, None);
    }

    /// An ask begins.
    pub(super) fn begun(&mut self, now: Instant) {
        self.silent_since.get_or_insert(now);
        self.asked = earlier(self.asked, self.unasked.take());
    }

    /// The store has answered: the calls that came before this ask wait for their turn, and for the store only if it
    /// falls silent again.
    pub(super) fn answered(&mut self) {
        (self.silent_since, self.asked) = (None, None);
    }

    /// When the store is given up if it does not answer before; never before one ask has failed. `round_trip` is how
    /// long asks took that were answered.
    pub(super) fn give_up_at(&self, round_trip: Duration) -> Option<Instant> {
        let silent_since = self.silent_since?;
        // Those that wait for their turn have waited for one answer, and that took two round trips at most.
        let turn = self.least.map(|least| silent_since + least.saturating_sub(round_trip * 2));
        let ends = earlier(turn, earlier(self.asked, self.unasked))?;
        Some(ends.max(silent_since + self.timeout))
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_store_that_answers_in_time_is_not_given_up() {
        let (mut store_deadline, start) = (StoreDeadline::new(100 * MS), Instant::now());
        store_deadline.begun(start);
        store_deadline.arrived(200 * MS, start + MS);
        let answered = start + 99 * MS;
        assert!(store_deadline.give_up_at(99 * MS).unwrap() > answered);
        store_deadline.answered();
        assert_eq!(store_deadline.give_up_at(99 * MS), None);
        store_deadline.begun(answered);
        assert!(store_deadline.give_up_at(99 * MS).unwrap() > answered + 99 * MS);
    }

    #[test]
    fn one_that_does_not_is_given_up_when_a_call_has_nothing_left() {
        let (mut store_deadline, start) = (StoreDeadline::new(100 * MS), Instant::now());
        store_deadline.begun(start);
        assert_eq!(store_deadline.give_up_at(MS), None, "nobody waits");
        store_deadline.arrived(Duration::ZERO, start + 10 * MS);
        assert_eq!(store_deadline.give_up_at(Duration::ZERO), Some(start + 400 * MS));
        store_deadline.arrived(200 * MS, start + 20 * MS);
        store_deadline.begun(start + 100 * MS);
        assert_eq!(store_deadline.give_up_at(MS), Some(start + 198 * MS), "{store_deadline:?}");
        store_deadline.arrived(Duration::MAX, start + 110 * MS);
        assert_eq!(store_deadline.give_up_at(MS), Some(start + 100 * MS), "not before one ask has failed");
        store_deadline.idle();
        assert_eq!(store_deadline.give_up_at(MS), None);
    }

    #[test]
    fn a_store_that_falls_silent_has_what_its_answers_left() {
        let (mut store_deadline, start) = (StoreDeadline::new(100 * MS), Instant::now());
        store_deadline.arrived(200 * MS, start);
        store_deadline.begun(start);
        store_deadline.answered();
        let silent = start + 5000 * MS;
        store_deadline.begun(silent);
        assert_eq!(
            [5, 90].map(|ms| store_deadline.give_up_at(ms * MS)),
            [Some(silent + 190 * MS), Some(silent + 100 * MS)]
        );
    }
}
