//! The calls that wait for one account's tokens.
//!
//! Calls of clients are in one [`FairQueue`], background refreshes in another that is served only while no client
//! waits. A call that is refused because it could not start in time is told when to come back. Its place is reserved
//! until a little after that: the same query of the same team then continues at its old place. So a client that comes
//! back at the stated time is served, however many others arrive meanwhile. Not all clients come back. In the estimates
//! for others, a reservation counts by the share of clients that recently came back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::fair_queue::{FairQueue, Ticket, rounded_share};
use super::quota::{Demand, Turn};
use crate::accounts::Team;
use crate::core::clock::Instant;
use crate::request::key::Key;
use crate::request::waiters::{TeamWaiters, WaiterCount};
use crate::semantics::request_directives::Urgency;

/// A call that waits. `R` is what replies to it.
#[derive(Debug)]
pub(super) struct Waiting<R> {
    /// The call is of no use if it starts later.
    pub(super) deadline: Instant,
    /// Overtaking must not delay its start beyond this.
    pub(super) latest_start: Instant,
    /// The query, by which the call is recognised when it comes back.
    pub(super) key: Key,
    /// The teams for which it is queued; for a refresh without clients, the team whose client caused it.
    pub(super) waiting_teams: Vec<TeamWaiters>,
    /// It is a refresh that no client waits for.
    pub(super) background: bool,
    /// Told when the call is served or refused.
    pub(super) reply: R,
}

/// All calls that wait for one account.
#[derive(Debug)]
pub(super) struct WaitQueue<R> {
    calls: HashMap<Ticket, Waiting<R>>,
    /// How many of them are refreshes that no client waits for.
    background_count: usize,
    clients: FairQueue,
    refreshes: FairQueue,
    next_ticket: Ticket,
    reserved_places: HashMap<(Arc<str>, Key), ReservedPlace>,
    /// When expired reservations were last removed.
    swept: Option<Instant>,
    /// The share of recent reservations whose calls came back.
    return_rate: f64,
}

#[derive(Debug)]
struct ReservedPlace {
    ticket: Ticket,
    team_waiters: TeamWaiters,
    expires: Instant,
}

/// Where a call would be queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueuePosition {
    /// Its arrival; where it has come back, that of the first time.
    pub(super) ticket: Ticket,
    /// How many would be served before it.
    pub(super) ahead: usize,
}

impl<R> Default for WaitQueue<R> {
    fn default() -> Self {
        Self {
            calls: HashMap::new(),
            background_count: 0,
            clients: FairQueue::default(),
            refreshes: FairQueue::default(),
            next_ticket: 0,
            reserved_places: HashMap::new(),
            swept: None,
            return_rate: 1.0,
        }
    }
}

impl<R> WaitQueue<R> {
    /// The weight of one reservation in the average `return_rate`.
    const SMOOTHING: f64 = 1.0 / 16.0;
    /// Clients come back late rather than early.
    const GRACE: Duration = Duration::from_secs(2);

    /// How many calls wait.
    pub(super) fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether a call that arrives now would be served before all others.
    pub(super) fn would_be_first(&self, background: bool) -> bool {
        self.clients.is_empty() && (!background || self.refreshes.is_empty())
    }

    /// Where a call would be queued. This uses up its reservation, if it has one.
    pub(super) fn position(
        &mut self,
        waiting_teams: &[TeamWaiters],
        background: bool,
        key: &Key,
        now: Instant,
    ) -> QueuePosition {
        self.remove_expired(now);
        let reserved = waiting_teams.iter().find_map(|team_waiters| self.claim(&team_waiters.team, key));
        let ticket = reserved.unwrap_or_else(|| self.new_ticket());
        QueuePosition { ticket, ahead: self.count_ahead(waiting_teams, background, ticket) }
    }

    /// How many would be served before a call that arrives now, and that is not queued.
    pub(super) fn ahead_of_new(&mut self, waiting_teams: &[TeamWaiters], background: bool, now: Instant) -> usize {
        self.remove_expired(now);
        self.count_ahead(waiting_teams, background, Ticket::MAX)
    }

    fn new_ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        self.next_ticket
    }

    /// Queues a call.
    pub(super) fn insert(&mut self, ticket: Ticket, waiting: Waiting<R>) {
        let queue = self.queue(waiting.background);
        for team_waiters in &waiting.waiting_teams {
            queue.insert(team_waiters, ticket, waiting.latest_start);
        }
        self.background_count += usize::from(waiting.background);
        self.calls.insert(ticket, waiting);
    }

    /// Removes a call, served or not.
    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<Waiting<R>> {
        let waiting = self.calls.remove(&ticket)?;
        self.background_count -= usize::from(waiting.background);
        let queue = self.queue(waiting.background);
        for team_waiters in &waiting.waiting_teams {
            queue.remove(team_waiters, ticket);
        }
        Some(waiting)
    }

    /// Changes who waits for a call. A refresh that a client now waits for moves to the clients, as if it had arrived
    /// now. Returns the ticket from now on.
    pub(super) fn set_waiting_teams(
        &mut self,
        ticket: Ticket,
        waiting_teams: Vec<TeamWaiters>,
        background: bool,
    ) -> Ticket {
        let Some(waiting) = self.remove(ticket) else { return ticket };
        let ticket = if waiting.background && !background { self.new_ticket() } else { ticket };
        self.insert(ticket, Waiting { waiting_teams, background, ..waiting });
        ticket
    }

    /// Changes a call's deadline.
    pub(super) fn set_deadline(&mut self, ticket: Ticket, deadline: Instant) {
        if let Some(waiting) = self.calls.get_mut(&ticket) {
            waiting.deadline = deadline;
        }
    }

    /// Brings a call's latest start forward, if this one is sooner.
    pub(super) fn start_by(&mut self, ticket: Ticket, latest_start: Instant) {
        let Some(waiting) = self.calls.get_mut(&ticket) else { return };
        waiting.latest_start = waiting.latest_start.min(latest_start);
        let queue = if waiting.background { &mut self.refreshes } else { &mut self.clients };
        for team_waiters in &waiting.waiting_teams {
            queue.insert(team_waiters, ticket, waiting.latest_start);
        }
    }

    /// How many calls of clients wait in each team's queue, where any do.
    pub(super) fn lengths(&self) -> Vec<(Arc<str>, usize)> {
        self.clients.lengths()
    }

    /// How many calls of clients wait in this team's queue.
    pub(super) fn length_of(&self, team: &str) -> u32 {
        u32::try_from(self.clients.calls_of(team)).unwrap_or(u32::MAX)
    }

    /// The call to serve next, and the team it is charged to. See [`FairQueue::next`].
    pub(super) fn next(&self, is_in_time: impl Fn(Instant, usize) -> bool) -> Option<(Arc<Team>, Ticket)> {
        let queue = if self.clients.is_empty() { &self.refreshes } else { &self.clients };
        let (name, ticket) = queue.next(self.return_rate, is_in_time)?;
        Some((self.team_of(&name, ticket)?, ticket))
    }

    /// The same for a turn that was decided elsewhere. `None` where no such call waits.
    pub(super) fn next_of(
        &self,
        turn: &Turn,
        is_in_time: impl Fn(Instant, usize) -> bool,
    ) -> Option<(Arc<Team>, Ticket)> {
        let of_client = self.clients.next_of(&turn.team, self.return_rate, &is_in_time);
        let of_refresh = || self.refreshes.next_of(&turn.team, self.return_rate, &is_in_time);
        let ticket = of_client.or_else(|| if turn.background { of_refresh() } else { None })?;
        Some((self.team_of(&turn.team, ticket)?, ticket))
    }

    /// Who waits, at most `most` calls of each team. Refreshes count only while no client waits.
    pub(super) fn demand(&self, most: u32) -> Vec<Demand> {
        let background = self.clients.is_empty();
        let queue = if background { &self.refreshes } else { &self.clients };
        let demand = queue.lengths().into_iter().filter_map(|(name, calls)| {
            let team = self.team_of(&name, queue.last_of(&name)?)?;
            Some(Demand { team, background, calls: u32::try_from(calls).unwrap_or(u32::MAX).min(most) })
        });
        demand.filter(|demand| demand.calls > 0).collect()
    }

    fn team_of(&self, name: &Arc<str>, ticket: Ticket) -> Option<Arc<Team>> {
        let waiting_teams = &self.calls.get(&ticket)?.waiting_teams;
        waiting_teams.iter().find(|waiters| waiters.team.name == *name).map(|waiters| Arc::clone(&waiters.team))
    }

    /// Removes a call that is served, and charges the team.
    pub(super) fn serve(&mut self, team: &Team, ticket: Ticket) -> Option<Waiting<R>> {
        let waiting = self.remove(ticket)?;
        self.charge(team, waiting.background);
        Some(waiting)
    }

    /// Charges a team for a service, whether the call has waited or not.
    pub(super) fn charge(&mut self, team: &Team, background: bool) {
        self.queue(background).charge(team);
    }

    /// All calls: their tickets, their deadlines, and how many are ahead of them.
    pub(super) fn positions(&self) -> impl Iterator<Item = (Ticket, Instant, usize)> {
        let clients = self.client_count();
        let behind =
            self.refreshes.ahead_of_each(self.return_rate).map(move |(ticket, ahead)| (ticket, ahead + clients));
        // A call of several teams is served for the one whose turn comes first.
        let mut least: HashMap<Ticket, usize> = HashMap::with_capacity(self.calls.len());
        for (ticket, ahead) in self.clients.ahead_of_each(self.return_rate).chain(behind) {
            least.entry(ticket).and_modify(|least| *least = ahead.min(*least)).or_insert(ahead);
        }
        least.into_iter().filter_map(|(ticket, ahead)| Some((ticket, self.calls.get(&ticket)?.deadline, ahead)))
    }

    /// The call that a full queue evicts for a new one of these teams: a refresh that no client waits for; otherwise the
    /// last call of the team whose queue is longest for its weight, if it is longer than the new call's own would be. A
    /// call that several teams wait for is evicted only after those of one team, and only if the queues of all its teams
    /// are longer. For a refresh no call is evicted.
    pub(super) fn to_evict(&self, waiting_teams: &[TeamWaiters], background: bool) -> Option<Ticket> {
        if background {
            return None;
        }
        let own =
            waiting_teams.iter().map(|team_waiters| self.clients.length_with_one_more(&team_waiters.team)).min()?;
        let is_of_one_team = |ticket| self.calls.get(&ticket).is_some_and(|waiting| waiting.waiting_teams.len() == 1);
        let are_queues_longer = |ticket| {
            let is_longer = |waiting: &TeamWaiters| self.clients.length_of(&waiting.team) > own;
            self.calls.get(&ticket).is_some_and(|call| call.waiting_teams.iter().all(is_longer))
        };
        self.refreshes
            .last_of_longest(0, |_| true)
            .or_else(|| self.clients.last_of_longest(own, is_of_one_team))
            .or_else(|| self.clients.last_of_longest(own, are_queues_longer))
    }

    /// The last of a team's background refreshes.
    pub(super) fn last_refresh_of(&self, team: &str) -> Option<Ticket> {
        self.refreshes.last_of(team)
    }

    /// A call that waits.
    pub(super) fn get(&self, ticket: Ticket) -> Option<&Waiting<R>> {
        self.calls.get(&ticket)
    }

    /// How many are ahead of a call that waits.
    pub(super) fn ahead_of(&self, ticket: Ticket) -> Option<usize> {
        let waiting = self.calls.get(&ticket)?;
        Some(self.count_ahead(&waiting.waiting_teams, waiting.background, ticket))
    }

    /// All tickets.
    pub(super) fn tickets(&self) -> Vec<Ticket> {
        self.calls.keys().copied().collect()
    }

    /// Reserves the place of a call that is told to come back after `wait`. At most `limit` places are reserved.
    pub(super) fn reserve(
        &mut self,
        team_waiters: TeamWaiters,
        key: Key,
        ticket: Ticket,
        wait: Duration,
        limit: u32,
        now: Instant,
    ) {
        let query = (Arc::clone(&team_waiters.team.name), key);
        if self.reserved_places.len() >= limit as usize || self.reserved_places.contains_key(&query) {
            return;
        }
        let grace = (wait / 4).max(Self::GRACE);
        self.clients.reserve(&team_waiters, ticket, now + wait);
        self.reserved_places.insert(query, ReservedPlace { ticket, team_waiters, expires: now + wait + grace });
    }

    /// Uses up a reservation; returns its ticket.
    fn claim(&mut self, team: &Team, key: &Key) -> Option<Ticket> {
        let reserved = self.reserved_places.remove(&(Arc::clone(&team.name), *key))?;
        self.clients.release(&reserved.team_waiters, reserved.ticket);
        self.return_rate += (1.0 - self.return_rate) * Self::SMOOTHING;
        Some(reserved.ticket)
    }

    /// Removes expired reservations, once a second.
    fn remove_expired(&mut self, now: Instant) {
        if self.swept.is_some_and(|swept| now < swept + Duration::from_secs(1)) {
            return;
        }
        self.swept = Some(now);
        let (clients, return_rate) = (&mut self.clients, &mut self.return_rate);
        self.reserved_places.retain(|_, reserved| {
            let is_valid = now <= reserved.expires;
            if !is_valid {
                clients.release(&reserved.team_waiters, reserved.ticket);
                *return_rate -= *return_rate * Self::SMOOTHING;
            }
            is_valid
        });
    }

    fn count_ahead(&self, waiting_teams: &[TeamWaiters], background: bool, ticket: Ticket) -> usize {
        let queue = if background { &self.refreshes } else { &self.clients };
        let in_queue =
            waiting_teams.iter().map(|team_waiters| queue.ahead_of(team_waiters, ticket, self.return_rate)).min();
        let clients = if background { self.client_count() } else { 0 };
        in_queue.unwrap_or_default() + clients
    }

    /// The calls of clients that wait, and those that are expected to come back to their places.
    pub(super) fn expected(&mut self, now: Instant) -> u32 {
        self.remove_expired(now);
        let return_count = rounded_share(self.reserved_places.len(), self.return_rate);
        u32::try_from(self.client_count() + return_count).unwrap_or(u32::MAX)
    }

    fn client_count(&self) -> usize {
        self.calls.len() - self.background_count
    }

    fn queue(&mut self, background: bool) -> &mut FairQueue {
        if background { &mut self.refreshes } else { &mut self.clients }
    }
}

/// How a refresh without clients is queued: for the team whose client caused it, with default urgency.
pub(super) fn background_waiters(team: &Arc<Team>) -> TeamWaiters {
    TeamWaiters { team: Arc::clone(team), urgency: Urgency::default(), waiter_count: WaiterCount::default() }
}
