//! What calls that wait hold, and how they leave the queue without being sent.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::fair_queue::Ticket;
use super::state::State;
use super::team_limit::TeamToken;
use super::wait_queue::{QueuePosition, Waiting};
use crate::accounts::Team;
use crate::core::clock::Instant;
use crate::core::error::{GatewayError, Reason, whole_seconds};
use crate::core::limiter::Limiter;
use crate::request::call::UpstreamCall;
use crate::request::key::Key;
use crate::request::waiters::{TeamWaiters, Waiters};
use crate::twilio::endpoint;

/// How to reply to a call that waits, with a `P` if it is served, and what it holds already.
#[derive(Debug)]
pub(super) struct Pending<P> {
    pub(super) reply: oneshot::Sender<Result<P, GatewayError>>,
    /// Where its estimated start is shown.
    pub(super) waiters: Arc<Waiters>,
    pub(super) reservation: Reservation,
}

/// What a call holds besides its token and its slot, until its attempt ends or it is not sent at all.
#[derive(Debug)]
pub(super) struct Reservation {
    /// It is the circuit's probe.
    pub(super) is_probe: bool,
    /// Where a token of the team's own upstream limit was taken from, if it has one.
    pub(super) team_token: Option<Limiter>,
    /// What it asks for. See [`query_of`].
    pub(super) query: Key,
}

impl<P> State<Pending<P>> {
    /// Removes a call that will not be sent.
    pub(super) fn dismiss(&mut self, ticket: Ticket) -> Option<Waiting<Pending<P>>> {
        let waiting = self.wait_queue.remove(ticket)?;
        self.release(&waiting.reply.reservation);
        Some(waiting)
    }

    /// Gives back what a call held that will not be sent.
    pub(super) fn release(&mut self, reservation: &Reservation) {
        if reservation.is_probe {
            self.circuit.probe_lost();
        }
        if let Some(limiter) = &reservation.team_token {
            limiter.refund();
        }
    }

    /// How much longer a call would wait; zero where it does not wait.
    pub(super) fn remaining_wait(&self, ticket: Ticket, now: Instant) -> Duration {
        self.wait_queue.ahead_of(ticket).map_or(Duration::ZERO, |ahead| self.wait_behind(ahead, now))
    }

    /// Reserves the place of a client that is told to come back after `wait`, if that is soon: in the queue, and for a token
    /// of its team's own limit. A refresh does not come back.
    pub(super) fn reserve_place(
        &mut self,
        waiting_teams: Vec<TeamWaiters>,
        background: bool,
        key: Key,
        ticket: Ticket,
        wait: Duration,
        now: Instant,
    ) {
        /// Who is told to come back later than this rarely does, and a wait may be estimated much too long for a moment.
        const LONGEST: Duration = Duration::from_secs(3600);
        let (limit, is_reserved) = (self.limits.queue, !background && wait <= LONGEST);
        if let Some(team_waiters) = waiting_teams.into_iter().next().filter(|_| is_reserved) {
            if let Some((of_team, _)) = self.team_limit(&team_waiters.team, now) {
                of_team.reserve(key, now + wait, limit, now);
            }
            self.wait_queue.reserve(team_waiters, key, ticket, whole_seconds(wait), limit, now);
        }
    }

    /// Takes a token of a team's own upstream limit; `None` if it has no limit. A client takes the token of a refresh that
    /// only waits.
    pub(super) fn take_team_token(&mut self, call: &UpstreamCall, background: bool, now: Instant) -> Option<TeamToken> {
        let team = &call.team;
        if background {
            let (limit, bucket) = self.team_limit(team, now)?;
            return Some(limit.take_for_refresh(&bucket, now));
        }
        let taken = |state: &mut Self| {
            let (limit, bucket) = state.team_limit(team, now)?;
            Some(limit.take(&call.key, &bucket, useful_until(call), now))
        };
        let token = taken(self)?;
        if matches!(token, TeamToken::Taken(_)) {
            return Some(token);
        }
        let refresh = self.wait_queue.last_refresh_of(&team.name).and_then(|ticket| self.dismiss(ticket));
        let Some(refresh) = refresh else { return Some(token) };
        let _ = refresh.reply.reply.send(Err(team_rate_limit(team, Duration::ZERO)));
        taken(self)
    }

    /// Refuses a call for which its team's own limit has no token before `at`. A client is told when it would be sent, which
    /// is later where the account's tokens are shorter still.
    pub(super) fn refuse_for_team(
        &mut self,
        call: &UpstreamCall,
        waiting_teams: Vec<TeamWaiters>,
        background: bool,
        at: Instant,
        now: Instant,
    ) -> GatewayError {
        let for_team = at.saturating_duration_since(now);
        if background {
            return team_rate_limit(&call.team, for_team);
        }
        let QueuePosition { ticket, ahead } = self.wait_queue.position(&waiting_teams, background, &call.key, now);
        let for_account = self.wait_behind(ahead, now);
        let wait = for_team.max(for_account);
        self.reserve_place(waiting_teams, background, call.key, ticket, wait, now);
        self.tell_demand(now);
        match now + for_account > useful_until(call) && for_account > for_team {
            true => GatewayError::too_late(wait),
            false => team_rate_limit(&call.team, wait),
        }
    }

    /// Refuses a call without time. It keeps no place: it could not wait for a token then either. Nor does it use up one.
    pub(super) fn refuse_without_time(
        &mut self,
        call: &UpstreamCall,
        waiting_teams: &[TeamWaiters],
        background: bool,
        now: Instant,
    ) -> GatewayError {
        let ahead = self.wait_queue.ahead_of_new(waiting_teams, background, now);
        let for_account = self.wait_behind(ahead, now);
        let team_limit = self.team_limit(&call.team, now);
        let for_team = team_limit.map_or(now, |(limit, bucket)| limit.free_at(&bucket, now));
        GatewayError::without_time(for_account.max(for_team.saturating_duration_since(now)))
    }

    /// Evicts a call from a full queue, so that one of these teams can be queued; `false` where none may be evicted.
    pub(super) fn evict_for(&mut self, waiting_teams: &[TeamWaiters], background: bool, now: Instant) -> bool {
        let Some(ticket) = self.wait_queue.to_evict(waiting_teams, background) else { return false };
        let wait = self.remaining_wait(ticket, now);
        let Some(Waiting { reply, key, waiting_teams, background, .. }) = self.dismiss(ticket) else { return false };
        self.reserve_place(waiting_teams, background, key, ticket, wait, now);
        // A receiver that is gone has given up by itself.
        let _ = reply.reply.send(Err(queue_full(self.limits.queue, wait)));
        true
    }
}

fn team_rate_limit(team: &Team, wait: Duration) -> GatewayError {
    let wait = whole_seconds(wait);
    let message = format!("team {} has sent too much upstream; come back in {} s", team.name, wait.as_secs());
    GatewayError::new(Reason::TeamRateLimit, message).with_retry_after(wait)
}

pub(super) fn queue_full(limit: u32, wait: Duration) -> GatewayError {
    let wait = whole_seconds(wait);
    let message = format!("{limit} calls already wait for this account; come back in {} s", wait.as_secs());
    GatewayError::new(Reason::QueueFull, message).with_retry_after(wait)
}

/// What a call asks for, as far as the upstream's health is concerned: a page size makes no other query of the same body.
pub(super) fn query_of(call: &UpstreamCall) -> Key {
    match call.endpoint.body {
        // Without parameters it is the call's own key, and need not be computed again.
        endpoint::Body::Query if !call.parameters.is_empty() => {
            Key::new(&call.team.account, call.endpoint.operation, "", &call.body)
        }
        _ => call.key,
    }
}

pub(super) fn circuit_open(wait: Duration) -> GatewayError {
    let wait = whole_seconds(wait);
    let message = format!("Twilio has failed again and again and is left alone; come back in {} s", wait.as_secs());
    GatewayError::new(Reason::CircuitOpen, message).with_retry_after(wait)
}

/// The earliest deadline of the clients that wait for a call, and of the call itself.
pub(super) fn needed_by(call: &UpstreamCall) -> Instant {
    call.waiters.needed_by().map_or(call.deadline, |needed| needed.min(call.deadline))
}

/// The latest deadline of the clients that wait for a call, but no later than that of the call itself.
pub(super) fn useful_until(call: &UpstreamCall) -> Instant {
    call.waiters.useful_until().map_or(call.deadline, |useful| useful.min(call.deadline))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::twilio::endpoint::Operation;

    #[test]
    fn parameters_make_no_other_query() {
        let of = |parameters, body| query_of(&UpstreamCall::example(Operation::Query, parameters, body));
        assert_eq!(of("", "{}"), of("pageSize=1", "{}"));
        assert_ne!(of("", "{}"), of("", "[]"));
    }
}
