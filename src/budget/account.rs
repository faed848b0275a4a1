//! One account's budget: who may send now, who waits, and what is learnt from what comes back.
//!
//! Whoever could not be served before its deadline is told so when it arrives, or as soon as that becomes certain;
//! whoever leaves gives its place back at once. A permit that was granted and never used gives its token back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::Limits;
use super::circuit::{CircuitState, Decision};
use super::queue::Ticket;
use super::state::{State, due};
use super::waiting::{self, QueuePosition, Waiting};
use crate::accounts::{Allowance, Team};
use crate::core::clock::{Clock, Instant};
use crate::core::error::{GatewayError, Reason, whole_seconds};
use crate::request::call::UpstreamCall;
use crate::request::key::Key;
use crate::request::waiters::{TeamWaiters, Waiters};
use crate::semantics::upstream_headers::RateLimitHeaders;
use crate::twilio::endpoint;

/// A moment's view of a budget.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BudgetStatus {
    /// What may be spent.
    pub limits: Limits,
    /// Tokens a second, as adaptation has it; `None` without a rate.
    pub per_second: Option<f64>,
    /// Attempts at once, as adaptation has it.
    pub concurrency: u32,
    /// Tokens now; `None` without a rate.
    pub tokens: Option<f64>,
    /// Time until the pause ends.
    pub paused: Duration,
    /// Attempts under way.
    pub in_flight: u32,
    /// Calls waiting.
    pub waiting: usize,
    /// The circuit.
    pub circuit: CircuitState,
    /// For how long it has not been closed.
    pub broken_for: Option<Duration>,
}

/// An account's budget. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct AccountBudget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    name: Arc<str>,
    clock: Clock,
    state: Mutex<Guarded>,
}

#[derive(Debug)]
struct Guarded {
    state: State<Grant>,
    alarm: Option<Instant>,
    /// When those who wait in vain were last looked for.
    looked: Instant,
}

/// How to tell a call that waits, and what it holds already.
#[derive(Debug)]
struct Grant {
    reply: oneshot::Sender<Result<Permit, GatewayError>>,
    /// Who wants to know when its turn is.
    waiters: Arc<Waiters>,
    reservation: Reservation,
}

/// What a call holds besides its token and its place, until it ends or is not sent at all.
#[derive(Debug)]
struct Reservation {
    /// It is the circuit's probe.
    is_probe: bool,
    /// Whose own upstream limit it counts against.
    team: Arc<Team>,
    /// What it asks for. See [`query_of`].
    query: Key,
}

/// How an attempt ended, as far as the budget is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With an answer.
    Answered(RateLimitHeaders),
    /// With a 429, that asked for a pause or not.
    Limited(Option<Duration>, RateLimitHeaders),
    /// In a way that says that the upstream is not well.
    Failed,
    /// In a way that says nothing of the upstream.
    Unclear,
}

impl AccountBudget {
    /// A full budget.
    pub fn new(name: Arc<str>, limits: Limits, clock: Clock) -> Self {
        let now = clock.now();
        let guarded = Guarded { state: State::new(limits, now), alarm: None, looked: now };
        Self(Arc::new(Shared { name, clock, state: Mutex::new(guarded) }))
    }

    /// New limits. What is owed stays owed, what was learnt stays learnt, and who waits keeps waiting.
    pub fn set_limits(&self, limits: Limits) {
        self.0.lock().state.set_limits(limits, self.0.clock.now());
        self.0.advance();
    }

    /// Waits for a token and a place.
    ///
    /// # Errors
    ///
    /// [`Reason::Deadline`] when the call could not be sent before its deadline, as soon as that is certain;
    /// [`Reason::QueueFull`], [`Reason::CircuitOpen`], [`Reason::TeamRateLimit`]. All say when to come back.
    pub async fn acquire(&self, call: &UpstreamCall) -> Result<Permit, GatewayError> {
        let waiters = &call.waiters;
        let (mut waiting_teams, mut seen) = waiters.waiting_teams();
        if waiting_teams.is_empty() && !waiters.is_refresh() {
            return Err(GatewayError::abandoned());
        }
        waiters.set_estimated_start(None);
        let (mut guard, mut granted) = match self.0.arrive(call, waiting_teams)? {
            Arrival::Granted(permit) => return Ok(permit),
            Arrival::Waits(guard, granted) => (guard, granted),
        };
        loop {
            tokio::select! {
                biased;
                granted = &mut granted => {
                    guard.left = true;
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
                        // Somebody joined meanwhile who has a little more time.
                        continue;
                    }
                    // Unless it was served at this very moment.
                    return granted.try_recv().unwrap_or_else(|_| Err(self.0.give_up(guard.ticket)));
                }
            }
        }
    }

    /// A moment's view.
    pub fn status(&self) -> BudgetStatus {
        let now = self.0.clock.now();
        let mut guarded = self.0.lock();
        let state = &mut guarded.state;
        state.adjust(now);
        let (circuit, since) = state.circuit.state(now);
        BudgetStatus {
            limits: state.limits,
            per_second: state.per_second(),
            concurrency: state.concurrency(now),
            tokens: state.tokens(now),
            paused: state.paused_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now)),
            in_flight: state.in_flight,
            waiting: state.wait_queue.len(),
            circuit,
            broken_for: since.map(|since| now.saturating_duration_since(since)),
        }
    }

    /// What a team has left upstream: of its own limit, or else of the account's.
    pub fn allowance(&self, team: &Team) -> Option<Allowance> {
        self.0.lock().state.allowance(team, self.0.clock.now())
    }
}

enum Arrival {
    Granted(Permit),
    Waits(QueueGuard, oneshot::Receiver<Result<Permit, GatewayError>>),
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Guarded> {
        // Every change under this lock is complete before anything that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrive(self: &Arc<Self>, call: &UpstreamCall, waiting_teams: Vec<TeamWaiters>) -> Result<Arrival, GatewayError> {
        let now = self.clock.now();
        let background = waiting_teams.is_empty();
        let waiting_teams = if background { vec![waiting::of_refresh(&call.team)] } else { waiting_teams };
        let mut guarded = self.lock();
        let state = &mut guarded.state;
        state.adjust(now);
        let query = query_of(call);
        let is_probe = match state.circuit.pass(query, now) {
            Decision::Allow => false,
            Decision::Probe => true,
            Decision::Reject(wait) => return Err(circuit_open(wait)),
        };
        let reservation = Reservation { is_probe, team: Arc::clone(&call.team), query };
        if let Err(refused) = state.take_share(&call.team, background, now) {
            if is_probe {
                state.circuit.probe_lost();
            }
            return Err(refused);
        }
        if state.wait_queue.is_first(background) && state.try_spend(now) {
            // Whoever was told to come back has.
            state.wait_queue.position(&waiting_teams, background, &call.key, now);
            state.wait_queue.charge(&waiting_teams[0].team, background);
            return Ok(Arrival::Granted(Permit {
                account: Arc::clone(self),
                reservation: Some(reservation),
                sent: None,
            }));
        }
        let QueuePosition { ticket, ahead } = state.wait_queue.position(&waiting_teams, background, &call.key, now);
        let wait = state.wait_behind(ahead, now);
        let full = state.wait_queue.len() >= state.limits.queue as usize;
        let deadline = useful_until(call);
        // Nobody has to leave for one that would wait in vain.
        if now + wait > deadline || (full && !state.make_room(&waiting_teams, background, now)) {
            state.let_go(&reservation);
            state.keep_place(waiting_teams, background, call.key, ticket, wait, now);
            return Err(if full { queue_full(state.limits.queue, wait) } else { GatewayError::too_late(wait) });
        }
        let (reply, granted) = oneshot::channel();
        let grant = Grant { reply, waiters: Arc::clone(&call.waiters), reservation };
        call.waiters.set_estimated_start(Some(now + wait));
        // Among refreshes no favours are done.
        let due = if background { deadline } else { due(now + wait, needed_by(call)) };
        state.wait_queue.enter(ticket, Waiting { deadline, due, key: call.key, waiting_teams, background, grant });
        drop(guarded);
        self.advance();
        Ok(Arrival::Waits(QueueGuard { account: Arc::clone(self), ticket, left: false }, granted))
    }

    /// Serves whoever can be served, tells those who wait in vain, and sets an alarm for the next.
    fn advance(self: &Arc<Self>) {
        /// So that many who wait do not make every step slow.
        const BETWEEN_LOOKS: Duration = Duration::from_millis(100);
        let now = self.clock.now();
        let mut unclaimed = Vec::new();
        let mut guarded = self.lock();
        let state = &mut guarded.state;
        state.adjust(now);
        while state.wait_queue.len() > 0 && state.try_spend(now) {
            let Some(waiting) = state.serve_next(now) else {
                state.give_back(false);
                break;
            };
            let Grant { reply, reservation, .. } = waiting.grant;
            let permit = Permit { account: Arc::clone(self), reservation: Some(reservation), sent: None };
            unclaimed.extend(reply.send(Ok(permit)).err());
        }
        let look = state.wait_queue.len() > 0 && now >= guarded.looked + BETWEEN_LOOKS;
        self.set_alarm(&mut guarded, now);
        drop(guarded);
        if look {
            self.look_for_hopeless();
        }
        // A permit that nobody took gives back what it holds; that needs the lock.
        drop(unclaimed);
    }

    fn set_alarm(self: &Arc<Self>, guarded: &mut Guarded, now: Instant) {
        /// A rate that is being raised brings the next token sooner than it seems now.
        const LONGEST: Duration = Duration::from_millis(500);
        let state = &guarded.state;
        if state.wait_queue.len() == 0 || state.in_flight >= state.concurrency(now) {
            return;
        }
        let mut at = state.ready_at(now);
        if state.limits.adapt
            && state.adaptive_rate.is_learnt(now)
            && state.paused_until.is_none_or(|until| until <= now)
        {
            at = at.min(now + LONGEST);
        }
        if guarded.alarm.is_some_and(|alarm| alarm <= at && alarm > now) {
            return;
        }
        guarded.alarm = Some(at);
        let account = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep_until(at).await;
            let Some(account) = account.upgrade() else { return };
            let mut guarded = account.lock();
            if guarded.alarm == Some(at) {
                guarded.alarm = None;
            }
            drop(guarded);
            account.advance();
        });
    }

    /// Tells those who cannot be served in time, now that this is certain, and notes for the others when they will be.
    fn look_for_hopeless(&self) {
        let now = self.clock.now();
        let mut guarded = self.lock();
        guarded.looked = now;
        let state = &mut guarded.state;
        for (ticket, deadline, wait) in state.waits(now) {
            if now + wait <= deadline {
                if let Some(waiting) = state.wait_queue.get(ticket) {
                    waiting.grant.waiters.set_estimated_start(Some(now + wait));
                }
                continue;
            }
            let Some(Waiting { grant, key, waiting_teams, background, .. }) = state.dismiss(ticket) else { continue };
            state.keep_place(waiting_teams, background, key, ticket, wait, now);
            // A receiver that is gone has left by itself.
            let _ = grant.reply.send(Err(GatewayError::too_late(wait)));
        }
    }

    /// A call's deadline has come, and its turn has not. How much longer it would have had to wait.
    fn give_up(&self, ticket: Ticket) -> GatewayError {
        let now = self.clock.now();
        let mut guarded = self.lock();
        let state = &mut guarded.state;
        let wait = state.wait_queue.ahead_of(ticket).map_or(Duration::ZERO, |ahead| state.wait_behind(ahead, now));
        if let Some(Waiting { key, waiting_teams, background, .. }) = state.dismiss(ticket) {
            state.keep_place(waiting_teams, background, key, ticket, wait, now);
        }
        GatewayError::too_late(wait)
    }

    fn end(self: &Arc<Self>, reservation: Reservation, sent: Option<Instant>, ended: Ended) {
        let now = self.clock.now();
        let mut guarded = self.lock();
        let state = &mut guarded.state;
        let Some(sent) = sent else {
            state.let_go(&reservation);
            state.give_back(false);
            drop(guarded);
            return self.advance();
        };
        let in_flight = state.in_flight;
        state.took(now.saturating_duration_since(sent));
        let mut opened = false;
        match ended {
            Ended::Answered(stated) => {
                state.accepted(&stated, now);
                if reservation.is_probe {
                    tracing::info!(account = %self.name, "Twilio answers again: the circuit is closed");
                }
                state.circuit.succeeded(reservation.is_probe, now);
            }
            Ended::Limited(asked, stated) => {
                if let Some(pause) = state.pause(asked, now) {
                    tracing::warn!(account = %self.name, pause_ms = pause.as_millis(), "Twilio limits the account: pausing");
                }
                let resumes = state.paused_until.unwrap_or(now);
                state.adaptive_rate.refused(&stated, sent, in_flight, now, resumes);
                // It is there, and alive.
                if reservation.is_probe {
                    state.circuit.succeeded(true, now);
                }
            }
            Ended::Failed => opened = state.circuit.failed(reservation.query, reservation.is_probe, now),
            Ended::Unclear if reservation.is_probe => state.circuit.probe_lost(),
            Ended::Unclear => {}
        }
        state.give_back(true);
        if opened {
            self.open(state);
        }
        let limited = matches!(ended, Ended::Limited(..));
        drop(guarded);
        if limited {
            self.look_for_hopeless();
        }
        self.advance();
    }

    /// The circuit has opened: nobody waits for what is not going to be sent.
    fn open(&self, state: &mut State<Grant>) {
        let wait = state.limits.circuit.open;
        tracing::warn!(account = %self.name, open_ms = wait.as_millis(), "Twilio fails again and again: the circuit is open");
        for ticket in state.wait_queue.tickets() {
            if let Some(waiting) = state.dismiss(ticket) {
                let _ = waiting.grant.reply.send(Err(circuit_open(wait)));
            }
        }
    }
}

impl State<Grant> {
    /// A call is out that was not sent.
    fn dismiss(&mut self, ticket: Ticket) -> Option<Waiting<Grant>> {
        let waiting = self.wait_queue.leave(ticket)?;
        self.let_go(&waiting.grant.reservation);
        Some(waiting)
    }

    /// A client that has to come back after this wait goes on where it stood. Nobody comes back for a refresh.
    fn keep_place(
        &mut self,
        waiting_teams: Vec<TeamWaiters>,
        background: bool,
        key: Key,
        ticket: Ticket,
        wait: Duration,
        now: Instant,
    ) {
        let most = self.limits.queue;
        if let Some(team_waiters) = waiting_teams.into_iter().next().filter(|_| !background) {
            self.wait_queue.reserve(team_waiters, key, ticket, whole_seconds(wait), most, now);
        }
    }

    /// Takes one of a team's own upstream tokens, where it has such a limit. A client takes that of a refresh which has
    /// one and only waits.
    fn take_share(&mut self, team: &Team, background: bool, now: Instant) -> Result<(), GatewayError> {
        let refused = match self.take_of_team(team, background, now) {
            Ok(()) => return Ok(()),
            Err(refused) => refused,
        };
        let refresh = if background { None } else { self.wait_queue.last_refresh_of(&team.name) };
        let Some(refresh) = refresh.and_then(|ticket| self.dismiss(ticket)) else { return Err(refused) };
        let _ = refresh.grant.reply.send(Err(refused));
        self.take_of_team(team, background, now)
    }

    /// Lets one leave who waits, so that a call of these can wait; `false` where nobody has to.
    fn make_room(&mut self, waiting_teams: &[TeamWaiters], background: bool, now: Instant) -> bool {
        let Some(ticket) = self.wait_queue.surplus(waiting_teams, background) else { return false };
        let wait = self.wait_queue.ahead_of(ticket).map_or(Duration::ZERO, |ahead| self.wait_behind(ahead, now));
        let Some(Waiting { grant, key, waiting_teams, background, .. }) = self.dismiss(ticket) else { return false };
        self.keep_place(waiting_teams, background, key, ticket, wait, now);
        // A receiver that is gone has left by itself.
        let _ = grant.reply.send(Err(queue_full(self.limits.queue, wait)));
        true
    }

    /// What a call held is free again, since it was not sent.
    fn let_go(&mut self, reservation: &Reservation) {
        if reservation.is_probe {
            self.circuit.probe_lost();
        }
        self.put_back_to_team(&reservation.team);
    }
}

/// A place in the waiting room; dropping it is leaving.
struct QueueGuard {
    account: Arc<Shared>,
    ticket: Ticket,
    left: bool,
}

impl QueueGuard {
    /// Others wait for the call now, or somebody for less long, or nobody does any more and it is a refresh.
    fn set_waiting_teams(&mut self, call: &UpstreamCall, waiting_teams: Vec<TeamWaiters>) {
        let background = waiting_teams.is_empty();
        let waiting_teams = if background { vec![waiting::of_refresh(&call.team)] } else { waiting_teams };
        let now = self.account.clock.now();
        let mut guarded = self.account.lock();
        let state = &mut guarded.state;
        self.ticket = state.wait_queue.set_waiting_teams(self.ticket, waiting_teams, background);
        state.wait_queue.wait_until(self.ticket, useful_until(call));
        if let Some(ahead) = state.wait_queue.ahead_of(self.ticket).filter(|_| !background) {
            let estimated_start = now + state.wait_behind(ahead, now);
            call.waiters.set_estimated_start(Some(estimated_start));
            state.wait_queue.due_by(self.ticket, due(estimated_start, needed_by(call)));
        }
        drop(guarded);
        self.account.advance();
    }
}

impl Drop for QueueGuard {
    fn drop(&mut self) {
        if !self.left {
            let dismissed = self.account.lock().state.dismiss(self.ticket);
            drop(dismissed);
        }
    }
}

/// The right to one attempt; dropping it frees the place. Unused, it gives its token back too.
#[derive(Debug)]
pub struct Permit {
    account: Arc<Shared>,
    reservation: Option<Reservation>,
    sent: Option<Instant>,
}

impl Permit {
    /// The attempt begins: the token is spent.
    pub fn spend(&mut self) {
        self.sent = Some(self.account.clock.now());
    }

    /// The attempt has ended. A pause is in force before the freed place lets the next call through.
    pub fn end(mut self, ended: Ended) {
        if let Some(reservation) = self.reservation.take() {
            self.account.end(reservation, self.sent, ended);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(reservation) = self.reservation.take() {
            self.account.end(reservation, self.sent, Ended::Unclear);
        }
    }
}

/// When the first of those who wait for a call has no more time.
fn needed_by(call: &UpstreamCall) -> Instant {
    call.waiters.needed_by().map_or(call.deadline, |needed| needed.min(call.deadline))
}

/// When the last of those who wait for a call has no more time, or the call itself.
fn useful_until(call: &UpstreamCall) -> Instant {
    call.waiters.useful_until().map_or(call.deadline, |useful| useful.min(call.deadline))
}

fn queue_full(most: u32, wait: Duration) -> GatewayError {
    let wait = whole_seconds(wait);
    let message = format!("{most} calls already wait for this account; come back in {} s", wait.as_secs());
    GatewayError::new(Reason::QueueFull, message).with_retry_after(wait)
}

/// What a call asks for, as far as the upstream's health is concerned: a page size makes no other query of the same body.
fn query_of(call: &UpstreamCall) -> Key {
    match call.endpoint.body {
        endpoint::Body::Query => Key::new(&call.team.account, call.endpoint.operation, "", &call.body),
        _ => call.key,
    }
}

fn circuit_open(wait: Duration) -> GatewayError {
    let wait = whole_seconds(wait);
    let message = format!("Twilio has failed again and again and is left alone; come back in {} s", wait.as_secs());
    GatewayError::new(Reason::CircuitOpen, message).with_retry_after(wait)
}
