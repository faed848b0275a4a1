//! Who is next: start-time fair queueing between teams, and priority within a team.
//!
//! *Between teams*: start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queuing", SIGCOMM 1996) for services
//! that all cost the same. Each team has a start tag: the virtual time at which its next service starts. The team with
//! the least tag is served, and its tag grows by one over its weight. The virtual time is the start tag of the latest
//! service. A team that was idle starts at the virtual time: it cannot save services that it did not use, and does not
//! wait until other teams' earlier calls are served.
//!
//! *Within a team*: by urgency, then by the number of clients that wait, then by arrival. Wait estimates assume order of
//! arrival. So a call that more clients wait for may overtake an earlier one of the same urgency only if each call that
//! it overtakes still starts by its `latest_start`. A call whose latest start is no sooner than its estimated start is
//! never late because it was overtaken.
//!
//! A *reservation* is the place of a call that was refused and told when to come back. It is not served, and those behind
//! it count it as ahead of them, weighted with the share of calls that do come back (`return_rate`).
//!
//! A call may be queued for several teams, once for each. Pure bookkeeping: nothing here waits or knows tokens. The
//! caller says when a call would start.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::accounts::Team;
use crate::core::clock::Instant;
use crate::request::waiters::{TeamWaiters, WaiterCount};
use crate::semantics::request_directives::Urgency;

/// A call, by its arrival: lower came earlier.
pub(super) type Ticket = u64;

/// The order within a team; the least is first.
type Rank = (Urgency, Ticket);

/// What a service costs a team of weight 1, in virtual time.
const COST: u64 = 1 << 24;

/// A queue per team, for teams that share something scarce.
#[derive(Debug, Default)]
pub(super) struct FairQueue {
    /// The start tag of the latest service.
    virtual_time: u64,
    /// Teams that wait, have reservations, or were served so recently that their start tag is ahead.
    teams: HashMap<Arc<str>, TeamQueue>,
}

#[derive(Debug)]
struct TeamQueue {
    cost: u64,
    /// The start tag of the team's next service; the virtual time counts where it is greater.
    start: u64,
    calls: BTreeMap<Rank, QueuedCall>,
    /// When the calls that hold reservations were told to come back.
    reserved: BTreeMap<Rank, Instant>,
}

#[derive(Debug)]
struct QueuedCall {
    /// The team's clients that wait for it.
    waiter_count: WaiterCount,
    /// Overtaking must not delay its start beyond this.
    latest_start: Instant,
}

impl TeamQueue {
    fn is_idle(&self) -> bool {
        self.calls.is_empty() && self.reserved.is_empty()
    }
}

impl FairQueue {
    /// Queues a call for a team. Overtaking does not delay its start beyond `latest_start`.
    pub(super) fn insert(&mut self, team_waiters: &TeamWaiters, ticket: Ticket, latest_start: Instant) {
        let queued = QueuedCall { waiter_count: team_waiters.waiter_count.clone(), latest_start };
        self.team(&team_waiters.team).calls.insert((team_waiters.urgency, ticket), queued);
    }

    /// Removes a call from a team's queue.
    pub(super) fn remove(&mut self, team_waiters: &TeamWaiters, ticket: Ticket) {
        if let Some(queue) = self.teams.get_mut(&team_waiters.team.name) {
            queue.calls.remove(&(team_waiters.urgency, ticket));
        }
        self.forget_idle();
    }

    /// Reserves the place of a call that was told to come back at `returns_at`.
    pub(super) fn reserve(&mut self, team_waiters: &TeamWaiters, ticket: Ticket, returns_at: Instant) {
        self.team(&team_waiters.team).reserved.insert((team_waiters.urgency, ticket), returns_at);
    }

    /// Ends a reservation.
    pub(super) fn release(&mut self, team_waiters: &TeamWaiters, ticket: Ticket) {
        if let Some(queue) = self.teams.get_mut(&team_waiters.team.name) {
            queue.reserved.remove(&(team_waiters.urgency, ticket));
        }
        self.forget_idle();
    }

    /// The call to serve next, and the team it is charged to. The call stays queued until it is
    /// [`remove`](Self::remove)d. `is_in_time` says whether a call with so many ahead of it, after this service, still
    /// starts by the given time.
    pub(super) fn next(
        &self,
        return_rate: f64,
        is_in_time: impl Fn(Instant, usize) -> bool,
    ) -> Option<(Arc<str>, Ticket)> {
        let first = |(name, queue): (&Arc<str>, &TeamQueue)| {
            let ((_, ticket), _) = queue.calls.first_key_value()?;
            Some((queue.start.max(self.virtual_time), *ticket, Arc::clone(name)))
        };
        let (_, _, team) = self.teams.iter().filter_map(first).min()?;
        let ticket = self.next_of(&team, return_rate, is_in_time)?;
        Some((team, ticket))
    }

    /// Of a team's most urgent calls the one with the most clients; the earliest of several. It overtakes earlier ones
    /// only if each of these, reservations included, is in time one service later. Where it is not the first, this reads
    /// all calls before it.
    pub(super) fn next_of(
        &self,
        team: &Arc<str>,
        return_rate: f64,
        is_in_time: impl Fn(Instant, usize) -> bool,
    ) -> Option<Ticket> {
        let queue = self.teams.get(team)?;
        let (&first, _) = queue.calls.first_key_value()?;
        let as_urgent = || queue.calls.range(first..=(first.0, Ticket::MAX));
        let most = as_urgent().map(|(_, queued)| queued.waiter_count.size()).max()?;
        let may_be_overtaken = |calls_before: usize, reserved_before: usize, latest_start: Instant| {
            let own = calls_before + rounded_share(reserved_before, return_rate);
            is_in_time(latest_start, own + self.others_ahead(team, queue.cost, own + 1, return_rate))
        };
        let mut reserved = queue.reserved.iter().peekable();
        let (mut next, mut size, mut reserved_before) = (first.1, 0, 0);
        for (calls_before, (rank, queued)) in as_urgent().enumerate() {
            while let Some((reserved, returns_at)) = reserved.next_if(|(reserved, _)| *reserved < rank) {
                // A reservation before the first call is passed by serving the first, too.
                if *reserved > first && !may_be_overtaken(calls_before, reserved_before, *returns_at) {
                    return Some(next);
                }
                reserved_before += 1;
            }
            if queued.waiter_count.size() > size {
                (next, size) = (rank.1, queued.waiter_count.size());
            }
            if size >= most || !may_be_overtaken(calls_before, reserved_before, queued.latest_start) {
                break;
            }
        }
        Some(next)
    }

    /// Charges a team for a service.
    pub(super) fn charge(&mut self, team: &Team) {
        let now = self.virtual_time;
        let queue = self.team(team);
        let start = queue.start.max(now);
        queue.start = start + queue.cost;
        self.virtual_time = start;
        if self.is_empty() {
            // No call waits, so no team lost a turn. All queues start equal again.
            self.virtual_time = self.teams.values().map(|queue| queue.start).max().unwrap_or(start);
        }
        self.forget_idle();
    }

    /// How many services come before that of a call of this team and ticket, as things stand: those ahead of it in its
    /// team's queue, and those that other teams get meanwhile.
    pub(super) fn ahead_of(&self, team_waiters: &TeamWaiters, ticket: Ticket, return_rate: f64) -> usize {
        let rank = (team_waiters.urgency, ticket);
        let own = self.teams.get(&team_waiters.team.name).map_or(0, |queue| {
            count_before(&queue.calls, &rank) + rounded_share(count_before(&queue.reserved, &rank), return_rate)
        });
        own + self.others_ahead(&team_waiters.team.name, cost(&team_waiters.team), own, return_rate)
    }

    /// The same for every queued call, once for each team. One pass: to ask for each alone would take the square of their
    /// number.
    pub(super) fn ahead_of_each(&self, return_rate: f64) -> impl Iterator<Item = (Ticket, usize)> {
        self.teams.iter().flat_map(move |(name, queue)| {
            let mut reserved = queue.reserved.keys().peekable();
            let mut reserved_before = 0;
            queue.calls.keys().enumerate().map(move |(calls_before, rank)| {
                while reserved.next_if(|reserved| *reserved < rank).is_some() {
                    reserved_before += 1;
                }
                let own = calls_before + rounded_share(reserved_before, return_rate);
                (rank.1, own + self.others_ahead(name, queue.cost, own, return_rate))
            })
        })
    }

    /// How many services other teams get before a call of this team that has `own` ahead of it in its team's queue.
    fn others_ahead(&self, team: &Arc<str>, cost: u64, own: usize, return_rate: f64) -> usize {
        let start = self.teams.get(team).map_or(self.virtual_time, |queue| queue.start.max(self.virtual_time));
        let mine = start + own as u64 * cost;
        let before_mine = |(name, queue): (&Arc<str>, &TeamQueue)| {
            let queued = queue.calls.len() + rounded_share(queue.reserved.len(), return_rate);
            let theirs = queue.start.max(self.virtual_time);
            if name == team || queued == 0 || theirs > mine {
                return 0;
            }
            // Equal start tags count as ahead: an estimate may be one too long, never too short.
            let until = (mine - theirs) / queue.cost + 1;
            queued.min(usize::try_from(until).unwrap_or(usize::MAX))
        };
        self.teams.iter().map(before_mine).sum()
    }

    /// The length of a team's queue with one more call, divided by the team's weight: comparable between teams.
    pub(super) fn length_with_one_more(&self, team: &Team) -> u64 {
        weighted_length(self.calls_of(&team.name) + 1, cost(team))
    }

    /// The length of a team's queue, divided by the team's weight.
    pub(super) fn length_of(&self, team: &Team) -> u64 {
        weighted_length(self.calls_of(&team.name), cost(team))
    }

    /// The last call in a team's queue.
    pub(super) fn last_of(&self, team: &str) -> Option<Ticket> {
        self.teams.get(team)?.calls.last_key_value().map(|((_, ticket), _)| *ticket)
    }

    /// The last call that `may_be_evicted` in the queue that is longest for its team's weight, if that is longer than
    /// `than`.
    pub(super) fn last_of_longest(&self, than: u64, may_be_evicted: impl Fn(Ticket) -> bool) -> Option<Ticket> {
        let lengths = self.teams.values().filter_map(|queue| {
            // Of equal lengths, the queue whose last call is less urgent, or later.
            let (last, _) = queue.calls.last_key_value()?;
            Some((weighted_length(queue.calls.len(), queue.cost), *last, queue))
        });
        let (longest, _, queue) = lengths.max_by_key(|(length, last, _)| (*length, *last))?;
        let mut backwards = queue.calls.keys().rev().map(|(_, ticket)| *ticket);
        backwards.find(|ticket| may_be_evicted(*ticket)).filter(|_| longest > than)
    }

    /// Queued calls; a call of several teams counts for each.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.teams.values().map(|queue| queue.calls.len()).sum()
    }

    /// How many calls wait in a team's queue.
    pub(super) fn calls_of(&self, team: &str) -> usize {
        self.teams.get(team).map_or(0, |queue| queue.calls.len())
    }

    /// How many calls wait in each team's queue, where any do.
    pub(super) fn lengths(&self) -> Vec<(Arc<str>, usize)> {
        let busy = self.teams.iter().filter(|(_, queue)| !queue.calls.is_empty());
        busy.map(|(team, queue)| (Arc::clone(team), queue.calls.len())).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.teams.values().all(|queue| queue.calls.is_empty())
    }

    fn team(&mut self, team: &Team) -> &mut TeamQueue {
        let start = self.virtual_time;
        let new = || TeamQueue { cost: 0, start, calls: BTreeMap::new(), reserved: BTreeMap::new() };
        let queue = self.teams.entry(Arc::clone(&team.name)).or_insert_with(new);
        // A reload may have changed it.
        queue.cost = cost(team);
        queue
    }

    /// Forgets idle teams whose start tag the virtual time has reached: a new queue would be the same. What is left is
    /// bounded by the number of teams.
    fn forget_idle(&mut self) {
        let now = self.virtual_time;
        self.teams.retain(|_, queue| !queue.is_idle() || queue.start > now);
    }
}

fn weighted_length(calls: usize, cost: u64) -> u64 {
    (calls as u64).saturating_mul(cost)
}

fn cost(team: &Team) -> u64 {
    COST / u64::from(team.weight.max(1))
}

/// How many entries come before this rank, counted from the nearer end.
fn count_before<T>(entries: &BTreeMap<Rank, T>, rank: &Rank) -> usize {
    let (mut ahead, mut behind) = (entries.range(..rank), entries.range(rank..));
    let mut counted = 0;
    loop {
        if ahead.next().is_none() {
            return counted;
        }
        if behind.next().is_none() {
            return entries.len() - counted;
        }
        counted += 1;
    }
}

/// This share of a number, rounded up.
pub(super) fn rounded_share(number: usize, share: f64) -> usize {
    (number as f64 * share).ceil() as usize
}

#[cfg(test)]
mod tests;
