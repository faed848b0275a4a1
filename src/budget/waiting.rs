//! The waiting room: who waits, in which lines, and who was told to come back.
//!
//! Clients stand in fair lines ([`FairQueue`]), background refreshes in lines of their own behind all of them. A
//! call that was refused since it could not be served in time is told when to come back, and its place in
//! the line is kept until a little after that: when the same team asks the same again it goes on where it stood.
//! So a client that does as it is told is served, however many others arrive meanwhile. Not everybody comes
//! back; the share that did of late is what kept places count for when others are told how long they wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::queue::{FairQueue, Ticket};
use crate::accounts::Team;
use crate::core::clock::Instant;
use crate::request::key::Key;
use crate::request::waiters::{TeamWaiters, WaiterCount};
use crate::semantics::request_directives::Urgency;

/// Somebody who waits; `G` is how to tell them.
#[derive(Debug)]
pub(super) struct Waiting<G> {
    /// Of no use afterwards.
    pub(super) deadline: Instant,
    /// Until when favours to others may put it off.
    pub(super) due: Instant,
    /// What it asks for, by which it is known again when it comes back.
    pub(super) key: Key,
    /// Whose places it holds; of a refresh, the team whose client caused it.
    pub(super) waiting_teams: Vec<TeamWaiters>,
    /// A refresh that no client waits for.
    pub(super) background: bool,
    /// Told when it is served or refused.
    pub(super) grant: G,
}

/// Everybody who waits for one account.
#[derive(Debug)]
pub(super) struct WaitQueue<G> {
    calls: HashMap<Ticket, Waiting<G>>,
    /// How many of them are refreshes that no client waits for.
    in_background: usize,
    clients: FairQueue,
    refreshes: FairQueue,
    next_ticket: Ticket,
    reserved_places: HashMap<(Arc<str>, Key), ReservedPlace>,
    /// When promises that were not kept were last looked for.
    swept: Option<Instant>,
    /// The share of those who were told to come back that did.
    returning: f64,
}

#[derive(Debug)]
struct ReservedPlace {
    ticket: Ticket,
    team_waiters: TeamWaiters,
    ends: Instant,
}

/// Where a call would stand that has not been let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueuePosition {
    /// Its arrival, or that of when it came first.
    pub(super) ticket: Ticket,
    /// Those who would be served before it.
    pub(super) ahead: usize,
}

impl<G> Default for WaitQueue<G> {
    fn default() -> Self {
        Self {
            calls: HashMap::new(),
            in_background: 0,
            clients: FairQueue::default(),
            refreshes: FairQueue::default(),
            next_ticket: 0,
            reserved_places: HashMap::new(),
            swept: None,
            returning: 1.0,
        }
    }
}

impl<G> WaitQueue<G> {
    /// How much one more says of how many come back.
    const WEIGHT_OF_ONE: f64 = 1.0 / 16.0;
    /// Clients come back late rather than early.
    const GRACE: Duration = Duration::from_secs(2);

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.calls.len()
    }

    /// Would a call that arrives now be served before everybody who waits.
    pub(super) fn is_first(&self, background: bool) -> bool {
        self.clients.is_empty() && (!background || self.refreshes.is_empty())
    }

    /// Where a call would stand. One that comes back as it was told stands where it stood.
    pub(super) fn position(
        &mut self,
        waiting_teams: &[TeamWaiters],
        background: bool,
        key: &Key,
        now: Instant,
    ) -> QueuePosition {
        self.end_reservations(now);
        let kept = waiting_teams.iter().find_map(|team_waiters| self.redeem(&team_waiters.team, key));
        let ticket = kept.unwrap_or_else(|| self.new_ticket());
        QueuePosition { ticket, ahead: self.ahead(waiting_teams, background, ticket) }
    }

    fn new_ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        self.next_ticket
    }

    /// Lets a call wait.
    pub(super) fn enter(&mut self, ticket: Ticket, waiting: Waiting<G>) {
        let lines = if waiting.background { &mut self.refreshes } else { &mut self.clients };
        for team_waiters in &waiting.waiting_teams {
            lines.join(team_waiters, ticket, waiting.due);
        }
        self.in_background += usize::from(waiting.background);
        self.calls.insert(ticket, waiting);
    }

    /// Takes a call out, however it ends.
    pub(super) fn leave(&mut self, ticket: Ticket) -> Option<Waiting<G>> {
        let waiting = self.calls.remove(&ticket)?;
        self.in_background -= usize::from(waiting.background);
        let lines = if waiting.background { &mut self.refreshes } else { &mut self.clients };
        for team_waiters in &waiting.waiting_teams {
            lines.leave(team_waiters, ticket);
        }
        Some(waiting)
    }

    /// Others wait for a call now. A refresh that clients wait for stands among the clients, as of when the first of
    /// them came. Gives the ticket from now on.
    pub(super) fn set_waiting_teams(
        &mut self,
        ticket: Ticket,
        waiting_teams: Vec<TeamWaiters>,
        background: bool,
    ) -> Ticket {
        let Some(waiting) = self.leave(ticket) else { return ticket };
        let ticket = if waiting.background && !background { self.new_ticket() } else { ticket };
        self.enter(ticket, Waiting { waiting_teams, background, ..waiting });
        ticket
    }

    /// A call is of use for longer, since somebody joined who has more time.
    pub(super) fn wait_until(&mut self, ticket: Ticket, deadline: Instant) {
        if let Some(waiting) = self.calls.get_mut(&ticket) {
            waiting.deadline = deadline;
        }
    }

    /// Favours to others may put a call off until then, if that is sooner than it was.
    pub(super) fn due_by(&mut self, ticket: Ticket, due: Instant) {
        let Some(waiting) = self.calls.get_mut(&ticket) else { return };
        waiting.due = waiting.due.min(due);
        let lines = if waiting.background { &mut self.refreshes } else { &mut self.clients };
        for team_waiters in &waiting.waiting_teams {
            lines.join(team_waiters, ticket, waiting.due);
        }
    }

    /// Whose turn it is, and in which team's line. See [`FairQueue::next`].
    pub(super) fn next(&self, in_time: impl Fn(Instant, usize) -> bool) -> Option<(Arc<str>, Ticket)> {
        let lines = if self.clients.is_empty() { &self.refreshes } else { &self.clients };
        lines.next(self.returning, in_time)
    }

    /// Serves a call in a team's line. The team pays for it, and the call is out.
    pub(super) fn serve(&mut self, team: &str, ticket: Ticket) -> Option<Waiting<G>> {
        let waiting = self.leave(ticket)?;
        if let Some(team_waiters) = waiting.waiting_teams.iter().find(|team_waiters| *team_waiters.team.name == *team) {
            self.charge(&team_waiters.team, waiting.background);
        }
        Some(waiting)
    }

    /// A team is served, having waited or not.
    pub(super) fn charge(&mut self, team: &Team, background: bool) {
        if background { &mut self.refreshes } else { &mut self.clients }.charge(team);
    }

    /// Everybody who waits: their tickets, deadlines, and how many are ahead of them.
    pub(super) fn everybody(&self) -> impl Iterator<Item = (Ticket, Instant, usize)> {
        let clients = self.clients_waiting();
        let behind = self.refreshes.ahead_of_each(self.returning).map(move |(ticket, ahead)| (ticket, ahead + clients));
        let mut least: HashMap<Ticket, usize> = HashMap::with_capacity(self.calls.len());
        for (ticket, ahead) in self.clients.ahead_of_each(self.returning).chain(behind) {
            least.entry(ticket).and_modify(|least| *least = ahead.min(*least)).or_insert(ahead);
        }
        least.into_iter().filter_map(|(ticket, ahead)| Some((ticket, self.calls.get(&ticket)?.deadline, ahead)))
    }

    /// Who has to leave a full room, so that a call of these can come in: a refresh that no client waits for; else the
    /// last of the line that is longest for its team's weight, if that is longer than the newcomer's own would be. What
    /// several teams wait for leaves after what one team waits for, and only if the lines of all of them are longer. For a
    /// refresh nobody leaves.
    pub(super) fn surplus(&self, waiting_teams: &[TeamWaiters], background: bool) -> Option<Ticket> {
        if background {
            return None;
        }
        let own =
            waiting_teams.iter().map(|team_waiters| self.clients.length_with_one_more(&team_waiters.team)).min()?;
        let is_one_teams = |ticket| self.calls.get(&ticket).is_some_and(|waiting| waiting.waiting_teams.len() == 1);
        let lines_are_longer = |ticket| {
            let longer = |waiting: &TeamWaiters| self.clients.length_of(&waiting.team) > own;
            self.calls.get(&ticket).is_some_and(|call| call.waiting_teams.iter().all(longer))
        };
        self.refreshes
            .last_of_longest(0, |_| true)
            .or_else(|| self.clients.last_of_longest(own, is_one_teams))
            .or_else(|| self.clients.last_of_longest(own, lines_are_longer))
    }

    /// A team's background refresh that would be served last.
    pub(super) fn last_refresh_of(&self, team: &str) -> Option<Ticket> {
        self.refreshes.last_of(team)
    }

    /// One who waits.
    pub(super) fn get(&self, ticket: Ticket) -> Option<&Waiting<G>> {
        self.calls.get(&ticket)
    }

    /// How many are ahead of one who waits.
    pub(super) fn ahead_of(&self, ticket: Ticket) -> Option<usize> {
        let waiting = self.calls.get(&ticket)?;
        Some(self.ahead(&waiting.waiting_teams, waiting.background, ticket))
    }

    fn clients_waiting(&self) -> usize {
        self.calls.len() - self.in_background
    }

    /// All tickets.
    pub(super) fn tickets(&self) -> Vec<Ticket> {
        self.calls.keys().copied().collect()
    }

    /// Keeps the place of a client that is told to come back after `wait`; no more than `most` are kept.
    pub(super) fn reserve(
        &mut self,
        team_waiters: TeamWaiters,
        key: Key,
        ticket: Ticket,
        wait: Duration,
        most: u32,
        now: Instant,
    ) {
        let known = (Arc::clone(&team_waiters.team.name), key);
        if self.reserved_places.len() >= most as usize || self.reserved_places.contains_key(&known) {
            return;
        }
        let grace = (wait / 4).max(Self::GRACE);
        self.clients.keep(&team_waiters, ticket, now + wait);
        self.reserved_places.insert(known, ReservedPlace { ticket, team_waiters, ends: now + wait + grace });
    }

    fn redeem(&mut self, team: &Team, key: &Key) -> Option<Ticket> {
        let promise = self.reserved_places.remove(&(Arc::clone(&team.name), *key))?;
        self.clients.release(&promise.team_waiters, promise.ticket);
        self.returning += (1.0 - self.returning) * Self::WEIGHT_OF_ONE;
        Some(promise.ticket)
    }

    /// Gives up the places of those who have not come back. Looks once a second.
    fn end_reservations(&mut self, now: Instant) {
        if self.swept.is_some_and(|swept| now < swept + Duration::from_secs(1)) {
            return;
        }
        self.swept = Some(now);
        let (clients, returning) = (&mut self.clients, &mut self.returning);
        self.reserved_places.retain(|_, promise| {
            let lasts = now <= promise.ends;
            if !lasts {
                clients.release(&promise.team_waiters, promise.ticket);
                *returning -= *returning * Self::WEIGHT_OF_ONE;
            }
            lasts
        });
    }

    fn ahead(&self, waiting_teams: &[TeamWaiters], background: bool, ticket: Ticket) -> usize {
        let lines = if background { &self.refreshes } else { &self.clients };
        let in_lines =
            waiting_teams.iter().map(|team_waiters| lines.ahead_of(team_waiters, ticket, self.returning)).min();
        let clients = if background { self.clients_waiting() } else { 0 };
        in_lines.unwrap_or_default() + clients
    }
}

/// The place of a background refresh: behind its team's clients, and no more urgent than others.
pub(super) fn of_refresh(team: &Arc<Team>) -> TeamWaiters {
    TeamWaiters { team: Arc::clone(team), urgency: Urgency::default(), waiter_count: WaiterCount::default() }
}
