//! What one account has left, and how long a wait for it is. Everything here happens under the account's lock and at a
//! time that is passed in; `account` wakes and waits.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::circuit::Circuit;
use super::fair_queue::Ticket;
use super::limits::Limits;
use super::quota::{Grant, Parts, QuotaSource};
use super::team_limit::{TeamBucket, TeamLimit};
use super::wait_queue::{WaitQueue, Waiting};
use crate::accounts::{Allowance, Team};
use crate::core::clock::Instant;
use crate::core::error::whole_seconds;
use crate::core::limiter::Quota;

/// Longer than any deadline, and short enough to be added to any instant.
const LONGEST_WAIT: Duration = Duration::from_secs(366 * 86_400);

#[derive(Debug)]
pub(super) struct State<R> {
    pub(super) limits: Limits,
    pub(super) circuit: Circuit,
    pub(super) wait_queue: WaitQueue<R>,
    pub(super) quota: Box<dyn QuotaSource>,
    /// Attempts under way, and permits for attempts.
    pub(super) in_flight: u32,
    /// How long an attempt takes: a moving average.
    attempt_time: Duration,
    team_limits: HashMap<Arc<str>, TeamLimit>,
}

/// What [`State::serve_next`] did.
#[derive(Debug)]
pub(super) enum Served<R> {
    /// A call has its token and its slot.
    Call(Waiting<R>),
    /// There is no token; ask again at this time.
    NotBefore(Instant),
    /// No call waits, or every slot is in use until an attempt ends.
    Nothing,
}

impl<R> State<R> {
    pub(super) fn new(limits: Limits, quota: Box<dyn QuotaSource>, now: Instant) -> Self {
        Self {
            limits,
            circuit: Circuit::new(limits.circuit, now),
            wait_queue: WaitQueue::default(),
            quota,
            in_flight: 0,
            attempt_time: Duration::ZERO,
            team_limits: HashMap::new(),
        }
    }

    /// Changes the limits. What is owed stays owed.
    pub(super) fn set_limits(&mut self, limits: Limits, now: Instant) {
        self.limits = limits;
        self.circuit.set_policy(limits.circuit);
        self.quota.set_limits(&limits, now);
    }

    /// Takes what other processes know of the circuit. Returns whether calls that wait have to be refused.
    pub(super) fn hear_of_circuit(&mut self, now: Instant) -> bool {
        self.quota.common_circuit().is_some_and(|common| self.circuit.hear(common, now))
    }

    fn has_free_slot(&self, now: Instant) -> bool {
        self.in_flight < self.quota.concurrency(now)
    }

    /// Takes a token and a slot for a team, if both are free.
    pub(super) fn take(&mut self, team: &Team, now: Instant) -> bool {
        let taken = self.has_free_slot(now) && self.quota.take(team, now) == Grant::Now;
        self.in_flight += u32::from(taken);
        taken
    }

    /// Frees a slot.
    pub(super) fn release_slot(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// How long a call waits that has so many ahead of it: for its token, and for its slot if attempts take as long as
    /// they recently did.
    pub(super) fn wait_behind(&self, ahead: usize, now: Instant) -> Duration {
        let n = u32::try_from(ahead).unwrap_or(u32::MAX).saturating_add(1);
        let for_token = self.quota.nth_at(n, now).saturating_duration_since(now);
        let slots = self.quota.concurrency(now);
        let without_slot = n.saturating_sub(slots.saturating_sub(self.in_flight));
        let rounds = f64::from(without_slot) / f64::from(slots.max(1));
        let for_slot = Duration::try_from_secs_f64(self.attempt_time.as_secs_f64() * rounds).unwrap_or(LONGEST_WAIT);
        for_token.max(for_slot).min(LONGEST_WAIT)
    }

    /// Queues a call whose request has already `waited` so long for what processes share.
    pub(super) fn queue(&mut self, ticket: Ticket, waiting: Waiting<R>, waited: Duration, now: Instant) {
        if !waiting.background {
            self.quota.arrived(waited, now);
        }
        self.wait_queue.insert(ticket, waiting);
    }

    /// Serves the next call, if there are a token and a slot for it.
    pub(super) fn serve_next(&mut self, now: Instant) -> Served<R> {
        if self.wait_queue.len() == 0 || !self.has_free_slot(now) {
            return Served::Nothing;
        }
        // The queue is read only when there is a token: it may be long.
        if let Grant::NotBefore(at) = self.quota.ready(now) {
            return Served::NotBefore(at);
        }
        // One more is ahead of each call than after this service.
        let is_in_time = |latest_start: Instant, ahead: usize| now + self.wait_behind(ahead + 1, now) <= latest_start;
        let (team, ticket) = match self.quota.turn() {
            None => match self.wait_queue.next(is_in_time) {
                Some(next) => next,
                None => return Served::Nothing,
            },
            Some(turn) => match self.wait_queue.next_of(&turn, is_in_time) {
                Some(next) => next,
                None => {
                    self.quota.decline();
                    return self.serve_next(now);
                }
            },
        };
        if let Grant::NotBefore(at) = self.quota.take(&team, now) {
            return Served::NotBefore(at);
        }
        match self.wait_queue.serve(&team, ticket) {
            Some(waiting) => {
                self.in_flight += 1;
                Served::Call(waiting)
            }
            None => {
                self.quota.refund();
                Served::Nothing
            }
        }
    }

    /// Tells the source of tokens who waits, as far as there are free slots.
    pub(super) fn tell_demand(&mut self, now: Instant) {
        if self.wait_queue.len() == 0 {
            self.quota.idle();
        }
        let free = self.quota.concurrency(now).saturating_sub(self.in_flight);
        let expected = self.wait_queue.expected(now);
        let wait_queue = &self.wait_queue;
        self.quota.set_demand(&|| wait_queue.demand(free), expected, now);
    }

    /// A team's own limit, and the bucket that its tokens are taken from now; `None` where it has none.
    pub(super) fn team_limit(&mut self, team: &Team, now: Instant) -> Option<(&mut TeamLimit, TeamBucket)> {
        let rate = team.upstream?;
        let quota = Quota::new(rate, rate.count());
        let Parts { count, emptied } = self.quota.parts();
        let common = self.quota.team_tokens(team);
        let queued = if common.is_some() { self.wait_queue.length_of(&team.name) } else { 0 };
        let limits = self.team_limits.entry(Arc::clone(&team.name));
        let limit = limits.or_insert_with(|| TeamLimit::new(quota, now));
        let bucket = TeamBucket::new(limit.part(quota, count, emptied, now), common, queued);
        Some((limit, bucket))
    }

    /// What a team has left upstream: of its own limit if it has one, otherwise of the account's. `None` without both.
    pub(super) fn allowance(&mut self, team: &Team, now: Instant) -> Option<Allowance> {
        let (tokens, next) = match self.team_limit(team, now) {
            Some((_, bucket)) => (bucket.tokens(now), bucket.next_at(now)),
            None => (self.quota.status(now).tokens?, self.quota.nth_at(1, now)),
        };
        Some(match next {
            at if at <= now => Allowance { remaining: tokens as u64, reset: 0 },
            at => Allowance { remaining: 0, reset: whole_seconds(at - now).as_secs() },
        })
    }

    /// Records how long an attempt took.
    pub(super) fn record_attempt(&mut self, time: Duration) {
        self.attempt_time = match self.attempt_time {
            Duration::ZERO => time,
            average => (average * 7 + time) / 8,
        };
    }

    /// All calls that wait: their tickets, deadlines, and how long they still have to wait.
    pub(super) fn waits(&self, now: Instant) -> Vec<(Ticket, Instant, Duration)> {
        let positions = self.wait_queue.positions();
        positions.map(|(ticket, deadline, ahead)| (ticket, deadline, self.wait_behind(ahead, now))).collect()
    }
}

/// The latest start of a call that others may overtake: half of the time between its estimated start and its deadline
/// after the former, and at most 5 s.
pub(super) fn latest_start(estimated_start: Instant, deadline: Instant) -> Instant {
    const LONGEST: Duration = Duration::from_secs(5);
    estimated_start + (deadline.saturating_duration_since(estimated_start) / 2).min(LONGEST)
}
