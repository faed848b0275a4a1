//! One account's budget: which calls may be sent now, which wait, and what is learnt from responses.
//!
//! A call that cannot start before its deadline is refused when it arrives, or as soon as that is certain. A call that
//! gives up leaves the queue at once. A permit that was granted and not used gives its token back.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::circuit::{CircuitState, Decision};
use super::fair_queue::Ticket;
use super::limits::Limits;
use super::pending::{Pending, Reservation, circuit_open, needed_by, query_of, queue_full, useful_until};
use super::quota::{LocalQuota, QuotaSource};
use super::state::{Served, State, latest_start};
use super::status::BudgetStatus;
use super::team_limit::TeamToken;
use super::wait_queue::{QueuePosition, Waiting, background_waiters};
use crate::accounts::{Allowance, Team};
use crate::core::clock::{Clock, Instant};
use crate::core::error::{GatewayError, Reason};
use crate::request::call::UpstreamCall;
use crate::request::waiters::TeamWaiters;
use crate::semantics::upstream_headers::RateLimitHeaders;

/// An account's budget. Clones share it.
#[derive(Debug, Clone)]
pub struct AccountBudget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// For the log. A reload can change it.
    name: Mutex<Arc<str>>,
    clock: Clock,
    attempts: AtomicU64,
    state: Mutex<Locked>,
}

#[derive(Debug)]
struct Locked {
    state: State<Pending<Permit>>,
    /// When the timer is due that calls [`Shared::advance`].
    wake_at: Option<Instant>,
    /// When estimated starts were last brought up to date.
    estimated: Instant,
}

/// How an attempt ended, as far as the budget is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// The upstream answered, and not with 429.
    Answered(RateLimitHeaders),
    /// The upstream answered 429, and asked for this pause if it asked for one.
    RateLimited(Option<Duration>, RateLimitHeaders),
    /// The upstream seems to be unwell: it answered with an error, or not in time.
    Failed,
    /// The upstream was not reached, so that nothing is known of it.
    Unreachable,
    /// The attempt says nothing about the upstream.
    Inconclusive,
}

impl AccountBudget {
    /// A full bucket of this process.
    pub fn new(name: Arc<str>, limits: Limits, clock: Clock) -> Self {
        let quota = LocalQuota::new(&limits, clock.now());
        Self::with_quota(name, limits, Box::new(quota), clock)
    }

    /// Takes its tokens from `quota`. Needs a tokio runtime if that [changes](QuotaSource::changes) by itself, and it
    /// notifies of a change when it is dropped.
    pub fn with_quota(name: Arc<str>, limits: Limits, quota: Box<dyn QuotaSource>, clock: Clock) -> Self {
        let now = clock.now();
        let locked = Locked { state: State::new(limits, quota, now), wake_at: None, estimated: now };
        let changes = locked.state.quota.changes();
        let shared =
            Arc::new(Shared { name: Mutex::new(name), clock, attempts: AtomicU64::new(0), state: Mutex::new(locked) });
        if let Some(changes) = changes {
            let account = Arc::downgrade(&shared);
            tokio::spawn(async move {
                loop {
                    changes.notified().await;
                    let Some(account) = account.upgrade() else { return };
                    account.advance();
                }
            });
        }
        Self(shared)
    }

    /// Changes the limits. What is owed stays owed, what was learnt stays learnt, and calls that wait keep waiting.
    pub fn set_limits(&self, limits: Limits) {
        self.0.lock().state.set_limits(limits, self.0.clock.now());
        self.0.advance();
    }

    /// Changes the name of the account in the log.
    pub fn set_name(&self, name: Arc<str>) {
        *self.0.name.lock().unwrap_or_else(PoisonError::into_inner) = name;
    }

    /// No configuration has the account any more, until its limits are [set](Self::set_limits) again. What is owed stays
    /// owed. Calls that wait, and those that still come, are served.
    pub fn retire(&self) {
        self.0.lock().state.quota.retire();
    }

    /// Waits for a token and a slot.
    ///
    /// # Errors
    ///
    /// [`Reason::Deadline`] when the call cannot be sent before its deadline, as soon as that is certain;
    /// [`Reason::QueueFull`], [`Reason::CircuitOpen`], [`Reason::TeamRateLimit`]. All carry `Retry-After`.
    pub async fn acquire(&self, call: &UpstreamCall) -> Result<Permit, GatewayError> {
        let waiters = &call.waiters;
        let (mut waiting_teams, mut seen) = waiters.waiting_teams();
        if waiting_teams.is_empty() && !waiters.is_refresh() {
            return Err(GatewayError::abandoned());
        }
        waiters.set_estimated_start(None);
        let mut has_waited = false;
        let (mut guard, mut granted) = loop {
            let soon = match self.0.arrive(call, waiting_teams) {
                Ok(Arrival::Granted(permit)) => return Ok(permit),
                Ok(Arrival::Queued(guard, granted)) => break (guard, granted),
                Ok(Arrival::Early(soon)) => soon,
                Err(refused) => {
                    // Its place is kept. It is told when to come back once that is known.
                    let queues_known_at =
                        self.0.queues_known_at(call, &refused).filter(|_| !has_waited).ok_or(refused)?;
                    has_waited = true;
                    queues_known_at
                }
            };
            waiters.set_estimated_start(Some(soon));
            tokio::select! {
                () = tokio::time::sleep_until(soon) => {}
                () = waiters.abandoned() => {}
            }
            waiters.set_estimated_start(None);
            (waiting_teams, seen) = waiters.waiting_teams();
            if waiting_teams.is_empty() && !waiters.is_refresh() {
                return Err(GatewayError::abandoned());
            }
        };
        loop {
            tokio::select! {
                biased;
                granted = &mut granted => {
                    guard.is_replied = true;
                    waiters.set_estimated_start(None);
                    return granted.unwrap_or_else(|_| Err(GatewayError::new(Reason::Internal, "the budget lost a waiting call")));
                }
                () = waiters.changed(seen) => {
                    (waiting_teams, seen) = waiters.waiting_teams();
                    if waiting_teams.is_empty() && !waiters.is_refresh() {
                        return Err(GatewayError::abandoned());
                    }
                    guard.set_waiting_teams(call, waiting_teams);
                }
                () = tokio::time::sleep_until(useful_until(call)) => {
                    if self.0.clock.now() < useful_until(call) {
                        // A client with a later deadline joined meanwhile.
                        continue;
                    }
                    // It may have been served at this very time.
                    return granted.try_recv().unwrap_or_else(|_| Err(self.0.give_up(guard.ticket)));
                }
            }
        }
    }

    /// A view of the state now.
    pub fn status(&self) -> BudgetStatus {
        let now = self.0.clock.now();
        let state = &mut self.0.lock().state;
        state.quota.update(now);
        let quota = state.quota.status(now);
        let (circuit, since) = state.circuit.state(now);
        BudgetStatus {
            limits: state.limits,
            per_second: quota.per_second,
            concurrency: state.quota.concurrency(now),
            tokens: quota.tokens,
            paused: quota.paused,
            attempts: self.0.attempts.load(Relaxed),
            in_flight: state.in_flight,
            waiting: state.wait_queue.len(),
            circuit,
            broken_for: since.map(|since| now.saturating_duration_since(since)),
        }
    }

    /// Calls that wait, by the team in whose queue they do; teams without any are left out. A call in several queues
    /// counts in each.
    pub fn waiting_by_team(&self) -> Vec<(Arc<str>, usize)> {
        self.0.lock().state.wait_queue.lengths()
    }

    /// What a team has left upstream: of its own limit, otherwise of the account's. `None` without both.
    pub fn allowance(&self, team: &Team) -> Option<Allowance> {
        self.0.lock().state.allowance(team, self.0.clock.now())
    }
}

enum Arrival {
    Granted(Permit),
    /// It has to arrive again at this time, when its team has a token for it.
    Early(Instant),
    Queued(QueueGuard, oneshot::Receiver<Result<Permit, GatewayError>>),
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Locked> {
        // Every change under this lock is complete before anything that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self) -> Arc<str> {
        Arc::clone(&self.name.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn permit(self: &Arc<Self>, reservation: Reservation) -> Permit {
        Permit { account: Arc::clone(self), reservation: Some(reservation), sent: None }
    }

    fn arrive(self: &Arc<Self>, call: &UpstreamCall, waiting_teams: Vec<TeamWaiters>) -> Result<Arrival, GatewayError> {
        let now = self.clock.now();
        let background = waiting_teams.is_empty();
        let waiting_teams = if background { vec![background_waiters(&call.team)] } else { waiting_teams };
        let mut locked = self.lock();
        let state = &mut locked.state;
        state.quota.update(now);
        let query = query_of(call);
        let is_probe = match state.circuit.pass(query, now) {
            Decision::Allow => false,
            Decision::Probe => true,
            Decision::Reject(wait) => return Err(circuit_open(wait)),
        };
        let mut reservation = Reservation { is_probe, team_token: None, query };
        if useful_until(call) <= now {
            state.release(&reservation);
            return Err(state.refuse_without_time(call, &waiting_teams, background, now));
        }
        match state.take_team_token(call, background, now) {
            None => {}
            Some(TeamToken::Taken(from)) => reservation.team_token = Some(from),
            Some(TeamToken::Soon(at)) => {
                state.release(&reservation);
                return Ok(Arrival::Early(at));
            }
            Some(TeamToken::NotBefore(at)) => {
                state.release(&reservation);
                return Err(state.refuse_for_team(call, waiting_teams, background, at, now));
            }
        }
        if state.wait_queue.would_be_first(background) && state.take(&waiting_teams[0].team, now) {
            // Uses up the call's reservation, if it has come back.
            state.wait_queue.position(&waiting_teams, background, &call.key, now);
            state.wait_queue.charge(&waiting_teams[0].team, background);
            return Ok(Arrival::Granted(self.permit(reservation)));
        }
        let QueuePosition { ticket, ahead } = state.wait_queue.position(&waiting_teams, background, &call.key, now);
        let wait = state.wait_behind(ahead, now);
        let is_full = state.wait_queue.len() >= state.limits.queue as usize;
        let deadline = useful_until(call);
        // A call that would be late evicts no other.
        if now + wait > deadline || (is_full && !state.evict_for(&waiting_teams, background, now)) {
            state.release(&reservation);
            state.reserve_place(waiting_teams, background, call.key, ticket, wait, now);
            // It is expected to come back, which other processes have to know.
            state.tell_demand(now);
            return Err(if is_full { queue_full(state.limits.queue, wait) } else { GatewayError::too_late(wait) });
        }
        let (reply, granted) = oneshot::channel();
        let reply = Pending { reply, waiters: Arc::clone(&call.waiters), reservation };
        call.waiters.set_estimated_start(Some(now + wait));
        // Nobody waits for a refresh: only its deadline counts.
        let latest_start = if background { deadline } else { latest_start(now + wait, needed_by(call)) };
        let waiting = Waiting { deadline, latest_start, key: call.key, waiting_teams, background, reply };
        state.queue(ticket, waiting, call.context.store_wait.so_far(), now);
        drop(locked);
        self.advance();
        Ok(Arrival::Queued(QueueGuard { account: Arc::clone(self), ticket, is_replied: false }, granted))
    }

    /// Until when this refusal has to wait for what other processes tell of their queues, by which its `Retry-After` is
    /// right; `None` where it is right now, or where the call has no time for that.
    fn queues_known_at(&self, call: &UpstreamCall, refused: &GatewayError) -> Option<Instant> {
        if !matches!(refused.reason(), Reason::Deadline | Reason::TeamRateLimit) {
            return None;
        }
        let queues_known_at = self.lock().state.quota.queues_known_at()?;
        (self.clock.now() < queues_known_at && queues_known_at < useful_until(call)).then_some(queues_known_at)
    }

    /// Serves every call that can be served, refuses those that will be late, and sets the timer for the next.
    fn advance(self: &Arc<Self>) {
        /// The estimates of a long queue take time: not at every step.
        const BETWEEN_ESTIMATES: Duration = Duration::from_millis(100);
        let now = self.clock.now();
        let mut unclaimed = Vec::new();
        let mut locked = self.lock();
        locked.state.quota.update(now);
        let since = locked.state.circuit.state(now).1;
        if locked.state.hear_of_circuit(now) {
            self.refuse_all(&mut locked.state, now);
        }
        self.log_closed(&locked.state, since, now);
        let wake_at = loop {
            match locked.state.serve_next(now) {
                Served::Call(Waiting { reply: Pending { reply, reservation, .. }, .. }) => {
                    unclaimed.extend(reply.send(Ok(self.permit(reservation))).err());
                }
                Served::NotBefore(at) => break Some(at),
                Served::Nothing => break None,
            }
        };
        locked.state.tell_demand(now);
        let estimate = locked.state.wait_queue.len() > 0 && now >= locked.estimated + BETWEEN_ESTIMATES;
        if let Some(at) = wake_at {
            self.wake_at(at, &mut locked, now);
        }
        drop(locked);
        if estimate {
            self.refuse_late();
        }
        // A permit whose receiver is gone gives back what it holds, for which it takes the lock.
        drop(unclaimed);
    }

    /// Sets a timer, unless an earlier one is set.
    fn wake_at(self: &Arc<Self>, at: Instant, locked: &mut Locked, now: Instant) {
        if locked.wake_at.is_some_and(|known| known <= at && known > now) {
            return;
        }
        locked.wake_at = Some(at);
        let account = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep_until(at).await;
            let Some(account) = account.upgrade() else { return };
            let mut locked = account.lock();
            if locked.wake_at == Some(at) {
                locked.wake_at = None;
            }
            drop(locked);
            account.advance();
        });
    }

    /// Refuses the calls that will certainly be late, and brings the estimated starts of the others up to date.
    fn refuse_late(&self) {
        let now = self.clock.now();
        let mut locked = self.lock();
        locked.estimated = now;
        let state = &mut locked.state;
        for (ticket, deadline, wait) in state.waits(now) {
            if now + wait <= deadline {
                if let Some(waiting) = state.wait_queue.get(ticket) {
                    waiting.reply.waiters.set_estimated_start(Some(now + wait));
                }
                continue;
            }
            let Some(Waiting { reply, key, waiting_teams, background, .. }) = state.dismiss(ticket) else { continue };
            state.reserve_place(waiting_teams, background, key, ticket, wait, now);
            // A receiver that is gone has given up by itself.
            let _ = reply.reply.send(Err(GatewayError::too_late(wait)));
        }
    }

    /// Removes a call whose deadline has come. The error says how much longer it would have waited.
    fn give_up(&self, ticket: Ticket) -> GatewayError {
        let now = self.clock.now();
        let state = &mut self.lock().state;
        let wait = state.remaining_wait(ticket, now);
        if let Some(Waiting { key, waiting_teams, background, .. }) = state.dismiss(ticket) {
            state.reserve_place(waiting_teams, background, key, ticket, wait, now);
        }
        GatewayError::too_late(wait)
    }

    fn end(self: &Arc<Self>, reservation: Reservation, sent: Option<Instant>, outcome: AttemptOutcome) {
        let now = self.clock.now();
        let mut locked = self.lock();
        let state = &mut locked.state;
        let Some(sent) = sent else {
            state.release(&reservation);
            state.release_slot();
            state.quota.refund();
            drop(locked);
            return self.advance();
        };
        let in_flight = state.in_flight;
        state.record_attempt(now.saturating_duration_since(sent));
        let mut opened = false;
        match outcome {
            AttemptOutcome::Answered(stated) => {
                state.quota.accepted(&stated, now);
                self.circuit_succeeded(state, reservation.is_probe, now);
            }
            AttemptOutcome::RateLimited(asked, stated) => {
                if let Some(pause) = state.quota.rate_limited(asked, &stated, sent, in_flight, now) {
                    tracing::warn!(account = %self.name(), pause_ms = pause.as_millis(), "Twilio limits the account: pausing");
                }
                // A 429 shows that the upstream is up. It counts neither as a success nor as a failure otherwise.
                if reservation.is_probe {
                    self.circuit_succeeded(state, true, now);
                }
            }
            AttemptOutcome::Failed | AttemptOutcome::Unreachable => {
                let is_answer = outcome == AttemptOutcome::Failed;
                opened = state.circuit.failed(reservation.query, reservation.is_probe, is_answer, now);
                if reservation.is_probe && is_answer {
                    state.quota.probe_failed(reservation.query);
                }
                if let Some(until) = state.circuit.opened_by_answers().filter(|_| opened) {
                    state.quota.circuit_opened(until);
                }
            }
            AttemptOutcome::Inconclusive if reservation.is_probe => state.circuit.probe_lost(),
            AttemptOutcome::Inconclusive => {}
        }
        state.release_slot();
        if opened {
            self.refuse_all(state, now);
        }
        drop(locked);
        if matches!(outcome, AttemptOutcome::RateLimited(..)) {
            self.refuse_late();
        }
        self.advance();
    }

    /// Records a success. If that closes the circuit, others are told.
    fn circuit_succeeded(&self, state: &mut State<Pending<Permit>>, is_probe: bool, now: Instant) {
        let since = state.circuit.state(now).1;
        state.circuit.succeeded(is_probe, now);
        if self.log_closed(state, since, now) {
            state.quota.circuit_closed();
        }
    }

    /// Logs that the circuit is closed, if it was not `since` then. Returns whether that is so.
    fn log_closed(&self, state: &State<Pending<Permit>>, since: Option<Instant>, now: Instant) -> bool {
        let (Some(since), CircuitState::Closed) = (since, state.circuit.state(now).0) else { return false };
        let open_for_ms = now.saturating_duration_since(since).as_millis();
        tracing::info!(account = %self.name(), open_for_ms, "Twilio answers again: the circuit is closed");
        true
    }

    /// Refuses every call that waits, because the circuit has opened, perhaps again. It is logged once until it is closed.
    fn refuse_all(&self, state: &mut State<Pending<Permit>>, now: Instant) {
        let wait = state.limits.circuit.open;
        if state.circuit.state(now).1 == Some(now) {
            tracing::warn!(account = %self.name(), open_ms = wait.as_millis(), "Twilio fails again and again: the circuit is open");
        }
        for ticket in state.wait_queue.tickets() {
            if let Some(waiting) = state.dismiss(ticket) {
                let _ = waiting.reply.reply.send(Err(circuit_open(wait)));
            }
        }
    }
}

/// A call in the queue; dropping it removes the call.
struct QueueGuard {
    account: Arc<Shared>,
    ticket: Ticket,
    /// The call has its reply, and is no longer queued.
    is_replied: bool,
}

impl QueueGuard {
    /// Other clients wait for the call now, or one has less time, or none is left and the call is a refresh.
    fn set_waiting_teams(&mut self, call: &UpstreamCall, waiting_teams: Vec<TeamWaiters>) {
        let background = waiting_teams.is_empty();
        let waiting_teams = if background { vec![background_waiters(&call.team)] } else { waiting_teams };
        let now = self.account.clock.now();
        let mut locked = self.account.lock();
        let state = &mut locked.state;
        self.ticket = state.wait_queue.set_waiting_teams(self.ticket, waiting_teams, background);
        state.wait_queue.set_deadline(self.ticket, useful_until(call));
        if let Some(ahead) = state.wait_queue.ahead_of(self.ticket).filter(|_| !background) {
            let estimated_start = now + state.wait_behind(ahead, now);
            call.waiters.set_estimated_start(Some(estimated_start));
            state.wait_queue.start_by(self.ticket, latest_start(estimated_start, needed_by(call)));
        }
        drop(locked);
        self.account.advance();
    }
}

impl Drop for QueueGuard {
    fn drop(&mut self) {
        if !self.is_replied {
            let mut locked = self.account.lock();
            let dismissed = locked.state.dismiss(self.ticket);
            locked.state.tell_demand(self.account.clock.now());
            drop(locked);
            drop(dismissed);
        }
    }
}

/// The right to one attempt. Dropping it frees the slot, and gives the token back if it was not used.
#[derive(Debug)]
pub struct Permit {
    account: Arc<Shared>,
    reservation: Option<Reservation>,
    sent: Option<Instant>,
}

impl Permit {
    /// The attempt begins, and uses the token.
    pub fn spend(&mut self) {
        self.sent = Some(self.account.clock.now());
        self.account.attempts.fetch_add(1, Relaxed);
    }

    /// The attempt has ended. A pause that it brings is in force before its slot is free for the next call.
    pub fn end(mut self, outcome: AttemptOutcome) {
        if let Some(reservation) = self.reservation.take() {
            self.account.end(reservation, self.sent, outcome);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(reservation) = self.reservation.take() {
            self.account.end(reservation, self.sent, AttemptOutcome::Inconclusive);
        }
    }
}
