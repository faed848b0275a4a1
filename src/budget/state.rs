//! What one account has left, and how long a wait for it would be. Everything here happens under the account's
//! lock and at a time that is passed in; waking and waiting are `account`'s.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::Limits;
use super::adapt::AdaptiveRate;
use super::circuit::Circuit;
use super::queue::Ticket;
use super::waiting::{WaitQueue, Waiting};
use crate::accounts::{Allowance, Team};
use crate::core::clock::Instant;
use crate::core::error::{GatewayError, Reason, whole_seconds};
use crate::core::limiter::{Limiter, Quota};
use crate::semantics::upstream_headers::RateLimitHeaders;

/// A wait that no sensible deadline outlasts, and that can still be added to any moment.
const BEYOND_ALL_DEADLINES: Duration = Duration::from_secs(366 * 86_400);

#[derive(Debug)]
pub(super) struct State<G> {
    pub(super) limits: Limits,
    pub(super) circuit: Circuit,
    pub(super) wait_queue: WaitQueue<G>,
    pub(super) in_flight: u32,
    pub(super) paused_until: Option<Instant>,
    pub(super) adaptive_rate: AdaptiveRate,
    /// With the quota that the adaptive rate made of the limits when it was last read; `None` is without limit.
    limiter: Option<Limiter>,
    refusals_in_a_row: u32,
    /// How long an attempt takes, averaged.
    service: Duration,
    teams: HashMap<Arc<str>, Share>,
}

/// What a team may send upstream by its own limit.
#[derive(Debug)]
struct Share {
    limiter: Limiter,
    /// Until when refreshes leave all of it to clients: one was told to come back for the next token.
    kept_for_clients: Option<Instant>,
}

impl Share {
    /// Clients come back late rather than early.
    const GRACE: Duration = Duration::from_secs(2);

    /// May a refresh take of it: half of what may be sent at once is for clients who may come any moment, and all of it
    /// for those who have come already.
    fn has_for_refreshes(&self, now: Instant) -> bool {
        let more_than = self.limiter.quota().burst() / 2;
        self.kept_for_clients.is_none_or(|until| until <= now) && self.limiter.whole_tokens(now) > more_than
    }
}

impl<G> State<G> {
    pub(super) fn new(limits: Limits, now: Instant) -> Self {
        Self {
            limits,
            circuit: Circuit::new(limits.circuit, now),
            wait_queue: WaitQueue::default(),
            in_flight: 0,
            paused_until: None,
            adaptive_rate: AdaptiveRate::new(limits.per_second(), now),
            limiter: limits.quota().map(|quota| Limiter::full(quota, now)),
            refusals_in_a_row: 0,
            service: Duration::ZERO,
            teams: HashMap::new(),
        }
    }

    /// New limits. What is owed stays owed.
    pub(super) fn set_limits(&mut self, limits: Limits, now: Instant) {
        self.limits = limits;
        self.circuit.set_policy(limits.circuit);
        self.adaptive_rate.set_ceiling(limits.per_second());
        self.adjust(now);
    }

    /// Follows the pace.
    pub(super) fn adjust(&mut self, now: Instant) {
        let lowered = self.limits.adapt && self.adaptive_rate.is_learnt(now);
        let quota = if lowered { self.adaptive_rate.rate(now).map(Quota::even) } else { self.limits.quota() };
        match (&mut self.limiter, quota) {
            (Some(limiter), Some(quota)) => limiter.set_quota(quota, now),
            (limiter, quota) => *limiter = quota.map(|quota| Limiter::full(quota, now)),
        }
    }

    /// Tokens a second, now.
    pub(super) fn per_second(&self) -> Option<f64> {
        self.limiter.as_ref().map(|limiter| limiter.quota().per_second())
    }

    /// Attempts at once, now.
    pub(super) fn concurrency(&self, now: Instant) -> u32 {
        let configured = self.limits.concurrency;
        if self.limits.adapt { self.adaptive_rate.concurrency(configured, now) } else { configured }
    }

    /// Takes a token and a place, if both are there.
    pub(super) fn try_spend(&mut self, now: Instant) -> bool {
        let free = self.in_flight < self.concurrency(now) && self.paused_until.is_none_or(|until| until <= now);
        let spent = free && self.limiter.as_ref().is_none_or(|limiter| limiter.try_take(now));
        self.in_flight += u32::from(spent);
        spent
    }

    /// Gives back what was taken. Of a token that was not used another may make use.
    pub(super) fn give_back(&mut self, used: bool) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let (false, Some(limiter)) = (used, &self.limiter) {
            limiter.refund();
        }
    }

    /// When there is a token, whether or not there is a place.
    pub(super) fn ready_at(&self, now: Instant) -> Instant {
        self.nth_token_at(1, now)
    }

    fn nth_token_at(&self, n: u32, now: Instant) -> Instant {
        let from = self.paused_until.map_or(now, |until| until.max(now));
        self.limiter.as_ref().map_or(from, |limiter| limiter.nth_at(n, from))
    }

    /// How long one has to wait that so many are ahead of: for its token, and for its place if attempts take as long
    /// as they did of late.
    pub(super) fn wait_behind(&self, ahead: usize, now: Instant) -> Duration {
        let n = u32::try_from(ahead).unwrap_or(u32::MAX).saturating_add(1);
        let token = self.nth_token_at(n, now).saturating_duration_since(now);
        let places = self.concurrency(now);
        let without_place = n.saturating_sub(places.saturating_sub(self.in_flight));
        let rounds = f64::from(without_place) / f64::from(places.max(1));
        let place = Duration::try_from_secs_f64(self.service.as_secs_f64() * rounds).unwrap_or(BEYOND_ALL_DEADLINES);
        token.max(place).min(BEYOND_ALL_DEADLINES)
    }

    /// Serves the call whose turn it is. Its token and its place have been taken already.
    pub(super) fn serve_next(&mut self, now: Instant) -> Option<Waiting<G>> {
        let (team, ticket) = self.wait_queue.next(|due, ahead| now + self.wait_behind(ahead, now) <= due)?;
        self.wait_queue.serve(&team, ticket)
    }

    /// Takes one of a team's own upstream tokens, where it has such a limit.
    pub(super) fn take_of_team(&mut self, team: &Team, background: bool, now: Instant) -> Result<(), GatewayError> {
        let Some(share) = self.of_team(team, now) else { return Ok(()) };
        if (!background || share.has_for_refreshes(now)) && share.limiter.try_take(now) {
            return Ok(());
        }
        let wait = whole_seconds(share.limiter.nth_at(1, now).saturating_duration_since(now));
        if !background {
            share.kept_for_clients = Some(now + wait + Share::GRACE);
        }
        let message = format!("team {} has sent too much upstream; come back in {} s", team.name, wait.as_secs());
        Err(GatewayError::new(Reason::TeamRateLimit, message).with_retry_after(wait))
    }

    /// Gives such a token back.
    pub(super) fn put_back_to_team(&mut self, team: &Team) {
        if let Some(share) = self.teams.get_mut(&team.name) {
            share.limiter.refund();
        }
    }

    fn of_team(&mut self, team: &Team, now: Instant) -> Option<&mut Share> {
        let rate = team.upstream?;
        let quota = Quota::new(rate, rate.count());
        let new = || Share { limiter: Limiter::full(quota, now), kept_for_clients: None };
        let share = self.teams.entry(Arc::clone(&team.name)).or_insert_with(new);
        share.limiter.set_quota(quota, now);
        Some(share)
    }

    /// What a team has left upstream: of its own limit if it has one, else of the account's.
    pub(super) fn allowance(&mut self, team: &Team, now: Instant) -> Option<Allowance> {
        if let Some(Share { limiter, .. }) = self.of_team(team, now) {
            return Some(left(limiter, limiter.nth_at(1, now), now));
        }
        Some(left(self.limiter.as_ref()?, self.ready_at(now), now))
    }

    /// Tokens now; negative while they are owed.
    pub(super) fn tokens(&self, now: Instant) -> Option<f64> {
        self.limiter.as_ref().map(|limiter| limiter.tokens(now))
    }

    /// Twilio said 429: nothing is sent until `asked` has passed, or what the backoff says without it. Gives the pause,
    /// if it is longer than one that is in force.
    pub(super) fn pause(&mut self, asked: Option<Duration>, now: Instant) -> Option<Duration> {
        self.refusals_in_a_row = self.refusals_in_a_row.saturating_add(1);
        // Not less than half: a pause of nothing would send the next call into the same wall.
        let unasked = || self.limits.backoff.delay(self.refusals_in_a_row, 0.5 + fastrand::f64() / 2.0);
        self.hold(asked.unwrap_or_else(unasked), now)
    }

    fn hold(&mut self, pause: Duration, now: Instant) -> Option<Duration> {
        let pause = pause.min(self.limits.max_pause);
        let until = now + pause;
        let longer = self.paused_until.is_none_or(|known| known < until);
        if longer {
            self.paused_until = Some(until);
        }
        longer.then_some(pause)
    }

    /// Twilio answered something else than 429.
    pub(super) fn accepted(&mut self, stated: &RateLimitHeaders, now: Instant) {
        self.refusals_in_a_row = 0;
        if let Some(nothing_left) = self.adaptive_rate.accepted(stated, now).filter(|_| self.limits.adapt) {
            self.hold(nothing_left, now);
        }
    }

    /// An attempt took so long.
    pub(super) fn took(&mut self, time: Duration) {
        self.service = match self.service {
            Duration::ZERO => time,
            average => (average * 7 + time) / 8,
        };
    }

    /// Everybody who waits: their tickets, deadlines, and how long they have to.
    pub(super) fn waits(&self, now: Instant) -> Vec<(Ticket, Instant, Duration)> {
        let waits = self.wait_queue.everybody();
        waits.map(|(ticket, deadline, ahead)| (ticket, deadline, self.wait_behind(ahead, now))).collect()
    }
}

/// Until when a call can be put off in favour of those that more clients wait for, if its turn is to be expected at
/// `turn` and it is of no use after `deadline`: by so much that nobody starves, and less where time is short.
pub(super) fn due(estimated_start: Instant, deadline: Instant) -> Instant {
    const LONGEST: Duration = Duration::from_secs(5);
    estimated_start + (deadline.saturating_duration_since(estimated_start) / 2).min(LONGEST)
}

fn left(limiter: &Limiter, ready_at: Instant, now: Instant) -> Allowance {
    match ready_at {
        at if at <= now => Allowance { remaining: limiter.whole_tokens(now), reset: 0 },
        at => Allowance { remaining: 0, reset: whole_seconds(at - now).as_secs() },
    }
}
