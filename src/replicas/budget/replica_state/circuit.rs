//! The circuit that replicas share: what this replica reports about its own circuit, and what it learns about theirs.

use std::time::Duration;

use crate::budget::CommonCircuit;
use crate::core::clock::Instant;
use crate::replicas::budget::ledger::{LedgerReply, LedgerRequest};
use crate::request::key::Key;

/// The most queries with failed probes that one request reports.
const MOST_FAILED: usize = 8;

#[derive(Debug, Default)]
pub(super) struct SharedCircuit {
    /// The opening that this replica's circuit takes part in: 0 if it began here and has no number yet.
    opening: Option<u64>,
    /// Until when this replica has opened it.
    opened_until: Option<Instant>,
    /// The opening that a probe has ended, until the store knows that.
    ended: Option<u64>,
    failed_probes: Vec<Key>,
    /// How many of them are in the request that is under way. They are reported again if that gets no answer.
    reported: usize,
    /// What the others know of it.
    common: Option<CommonCircuit>,
}

impl SharedCircuit {
    /// What the upstream answered has opened this replica's circuit, perhaps again.
    pub(super) fn opened(&mut self, until: Instant) {
        self.opening.get_or_insert(0);
        self.opened_until = Some(until);
    }

    /// A probe has closed it.
    pub(super) fn closed(&mut self) {
        let opening = self.opening.take().filter(|opening| *opening > 0);
        *self = Self { ended: opening.or(self.ended), ..Self::default() };
    }

    /// A probe of this query failed.
    pub(super) fn probe_failed(&mut self, query: Key) {
        if self.failed_probes.len() < MOST_FAILED {
            self.failed_probes.push(query);
        }
    }

    /// Nothing is known of the others any more.
    pub(super) fn forget_others(&mut self) {
        self.common = None;
        self.failed_probes.clear();
        self.reported = 0;
    }

    /// Adds to a request what others have to know. `pseudonym` makes the pseudonym of a query.
    pub(super) fn add_to(&mut self, request: &mut LedgerRequest, pseudonym: impl Fn(&Key) -> String, now: Instant) {
        request.open = self.opened_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        (request.opening, request.ended) = (self.opening, self.ended);
        request.failed_probes = self.failed_probes.iter().map(pseudonym).collect();
        self.reported = self.failed_probes.len();
    }

    /// Takes what the store answered. The circuit is believed to be open for `longest` at most.
    pub(super) fn learn(&mut self, request: &LedgerRequest, reply: &LedgerReply, longest: Duration, now: Instant) {
        self.failed_probes.drain(..std::mem::take(&mut self.reported));
        if self.ended.is_some() && self.ended == reply.opening {
            // The store will know when it is asked next.
            return;
        }
        if self.ended == request.ended {
            self.ended = None;
        }
        match reply.opening {
            Some(opening) => {
                self.opening = Some(opening);
                let rest = reply.open.min(longest);
                self.common =
                    Some(if rest.is_zero() { CommonCircuit::HalfOpen } else { CommonCircuit::Open(now + rest) });
            }
            None if self.opening.is_some_and(|opening| opening > 0) => {
                (self.opening, self.opened_until) = (None, None);
                self.common = Some(CommonCircuit::Closed);
            }
            None => {}
        }
    }

    /// What the others know. That it is closed is returned once.
    pub(super) fn common(&mut self) -> Option<CommonCircuit> {
        let common = self.common;
        if common == Some(CommonCircuit::Closed) {
            self.common = None;
        }
        common
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_that_failed_are_reported_until_an_answer_comes() {
        let (mut part, now) = (SharedCircuit::default(), Instant::now());
        let query = |n: u8| Key::from_bytes([n; 32]);
        let report = |part: &mut SharedCircuit| {
            let mut request = LedgerRequest::default();
            part.add_to(&mut request, |query| query.as_bytes()[0].to_string(), now);
            request
        };
        part.probe_failed(query(1));
        assert_eq!(report(&mut part).failed_probes, ["1"]);
        let request = report(&mut part);
        assert_eq!(request.failed_probes, ["1"], "nobody answered");
        part.probe_failed(query(2));
        part.learn(&request, &LedgerReply::default(), Duration::ZERO, now);
        assert_eq!(report(&mut part).failed_probes, ["2"]);
        part.closed();
        part.probe_failed(query(3));
        part.learn(&request, &LedgerReply::default(), Duration::ZERO, now);
        assert_eq!(report(&mut part).failed_probes, ["3"], "the answer was about others");
    }
}
