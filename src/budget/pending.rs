//! What calls that wait hold, and how they leave the queue without being sent.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::fair_queue::Ticket;
use super::state::State;
use super::wait_queue::Waiting;
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

    /// Reserves the place of a client that is told to come back after `wait`, if that is soon. A refresh does not come back.
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
            self.wait_queue.reserve(team_waiters, key, ticket, whole_seconds(wait), limit, now);
        }
    }

    /// Takes a token of a team's own upstream limit, if it has one. A client takes that of a refresh that only waits.
    pub(super) fn take_or_claim_team_token(
        &mut self,
        team: &Team,
        background: bool,
        now: Instant,
    ) -> Result<Option<Limiter>, GatewayError> {
        let refused = match self.take_team_token(team, background, now) {
            Ok(taken) => return Ok(taken),
            Err(refused) => refused,
        };
        let refresh = if background { None } else { self.wait_queue.last_refresh_of(&team.name) };
        let Some(refresh) = refresh.and_then(|ticket| self.dismiss(ticket)) else { return Err(refused) };
        let _ = refresh.reply.reply.send(Err(refused));
        self.take_team_token(team, background, now)
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
