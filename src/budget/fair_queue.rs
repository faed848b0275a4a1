//! Who is next: start-time fair queueing between teams, and priority within a team.
//!
//! *Between teams*: start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queuing", SIGCOMM 1996) for services
//! that all cost the same. Each team has a start tag: the virtual time at which its next service starts. The team with
//! the least tag is served, and its tag grows by one over its weight. The virtual time is the start tag of the latest
//! service. A team that was idle starts at the virtual time: it neither saves up what it did not use nor waits behind
//! what other teams have piled up.
//!
//! *Within a team*: by urgency, then by the number of clients that wait, then by arrival. Wait estimates assume order of
//! arrival. So a call that more clients wait for may overtake an earlier one of the same urgency only if each call that
//! it overtakes still starts by its `latest_start`. A call whose latest start is no sooner than its estimated start is
//! never late because it was overtaken.
//!
//! A *reservation* is the place of a call that was refused and told when to come back. It is not served, and those behind
//! it count it as ahead of them, weighted with the share of calls that do come back (`return_rate`).
//!
//! A call may be queued for several teams, once for each. Pure bookkeeping: nothing here waits or knows of tokens; by
//! when a call would start is asked of the caller.

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
    fn next_of(
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
        let calls = self.teams.get(&team.name).map_or(0, |queue| queue.calls.len());
        weighted_length(calls + 1, cost(team))
    }

    /// The length of a team's queue, divided by the team's weight.
    pub(super) fn length_of(&self, team: &Team) -> u64 {
        weighted_length(self.teams.get(&team.name).map_or(0, |queue| queue.calls.len()), cost(team))
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

fn rounded_share(number: usize, share: f64) -> usize {
    (number as f64 * share).ceil() as usize
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::request::waiters::{Waiter, Waiters};

    const S: Duration = Duration::from_secs(1);

    fn team_waiters(team: &str, weight: u32, urgency: u8) -> TeamWaiters {
        let team = Arc::new(Team { weight, ..Team::example(team) });
        TeamWaiters { team, urgency: Urgency::new(urgency), waiter_count: WaiterCount::default() }
    }

    /// Queues a call that must not be overtaken.
    fn insert(queue: &mut FairQueue, team_waiters: &TeamWaiters, ticket: Ticket) {
        queue.insert(team_waiters, ticket, Instant::now());
    }

    /// Serves the next call.
    fn serve(queue: &mut FairQueue, waiting_teams: &[TeamWaiters]) -> Option<(String, Ticket)> {
        let (team, ticket) = queue.next(1.0, |_, _| true)?;
        let team_waiters = waiting_teams.iter().find(|team_waiters| team_waiters.team.name == team)?;
        for team_waiters in waiting_teams {
            queue.remove(team_waiters, ticket);
        }
        queue.charge(&team_waiters.team);
        Some((team.to_string(), ticket))
    }

    #[test]
    fn teams_are_served_by_weight() {
        let teams = [team_waiters("three", 3, 3), team_waiters("one", 1, 3)];
        let mut queue = FairQueue::default();
        for ticket in 0..100 {
            insert(&mut queue, &teams[ticket as usize % 2], ticket);
        }
        let served: Vec<_> = (0..40).filter_map(|_| serve(&mut queue, &teams)).map(|(team, _)| team).collect();
        for window in served.windows(4) {
            assert_eq!(window.iter().filter(|team| *team == "three").count(), 3, "{served:?}");
        }
    }

    #[test]
    fn within_a_team_the_urgent_come_first_and_then_the_early() {
        let mut queue = FairQueue::default();
        let levels = [3, 5, 3, 0];
        for (ticket, level) in levels.iter().enumerate() {
            insert(&mut queue, &team_waiters("a", 1, *level), ticket as Ticket);
        }
        let of_any_urgency: Vec<_> = (0..8).map(|level| team_waiters("a", 1, level)).collect();
        let order: Vec<_> = (0..4).filter_map(|_| serve(&mut queue, &of_any_urgency)).map(|(_, t)| t).collect();
        assert_eq!(order, [3, 0, 2, 1]);
    }

    /// A call that so many clients of a team wait for.
    fn call_of_clients(clients: usize) -> (TeamWaiters, Vec<Waiter>) {
        let waiters = Waiters::of_clients();
        let TeamWaiters { team, urgency, .. } = team_waiters("a", 1, 3);
        let joined = (0..clients).map(|_| waiters.join(&team, urgency)).collect();
        (waiters.waiting_teams().0.remove(0), joined)
    }

    #[test]
    fn the_call_with_the_most_clients_overtakes_while_the_others_stay_in_time() {
        let calls_by_clients = [1, 2, 4, 3].map(call_of_clients);
        let start = Instant::now();
        let mut queue = FairQueue::default();
        let served = |queue: &mut FairQueue, served_before: u32| {
            let is_in_time = |latest_start, ahead| start + (served_before + 1 + ahead as u32) * S <= latest_start;
            let (_, ticket) = queue.next(1.0, is_in_time).unwrap();
            queue.remove(&calls_by_clients[ticket as usize].0, ticket);
            ticket
        };
        for (ticket, (team_waiters, _)) in (0..).zip(&calls_by_clients) {
            queue.insert(team_waiters, ticket, start + 60 * S);
        }
        // The second is expected to start second, and no later.
        queue.insert(&calls_by_clients[1].0, 1, start + S);
        assert_eq!([0, 1, 2, 3].map(|served_before| served(&mut queue, served_before)), [1, 2, 3, 0]);
        for (ticket, (team_waiters, _)) in (0..).zip(&calls_by_clients).filter(|(ticket, _)| *ticket != 1) {
            queue.insert(team_waiters, ticket, start + 60 * S);
        }
        queue.reserve(&calls_by_clients[1].0, 1, start + S);
        assert_eq!(served(&mut queue, 0), 0, "a reservation is not overtaken where that would make it late");
    }

    #[test]
    fn a_burst_of_one_team_delays_anothers_first_call_by_one_service_at_most() {
        let (flood, quiet) = (team_waiters("flood", 1, 3), team_waiters("quiet", 1, 3));
        let mut queue = FairQueue::default();
        for ticket in 0..100 {
            insert(&mut queue, &flood, ticket);
        }
        for _ in 0..10 {
            serve(&mut queue, std::slice::from_ref(&flood));
        }
        assert!(queue.ahead_of(&quiet, 100, 1.0) <= 1);
        insert(&mut queue, &quiet, 100);
        let next: Vec<_> = (0..2).filter_map(|_| serve(&mut queue, &[flood.clone(), quiet.clone()])).collect();
        assert!(next.iter().any(|(team, _)| team == "quiet"), "{next:?}");
    }

    #[test]
    fn the_call_to_evict_is_the_last_in_the_queue_that_is_longest_for_its_weight() {
        let (heavy, light) = (team_waiters("heavy", 10, 3), team_waiters("light", 1, 3));
        let mut queue = FairQueue::default();
        assert_eq!(queue.last_of_longest(0, |_| true), None);
        for ticket in 0..20 {
            insert(&mut queue, &heavy, ticket);
        }
        for ticket in 20..23 {
            insert(&mut queue, &light, ticket);
        }
        insert(&mut queue, &team_waiters("light", 1, 5), 10);
        assert_eq!(queue.last_of_longest(0, |_| true), Some(10), "the least urgent of the light team's four");
        assert_eq!(queue.last_of_longest(0, |ticket| ticket < 22 && ticket != 10), Some(21));
        let (own, others) = (queue.length_with_one_more(&light.team), queue.length_with_one_more(&heavy.team));
        assert_eq!(queue.last_of_longest(own, |_| true), None, "its own queue with one more would be longer still");
        assert_eq!(queue.last_of_longest(others, |_| true), Some(10));
    }

    #[test]
    fn an_idle_teams_share_goes_to_the_others_and_is_not_saved_up() {
        let (busy, idle) = (team_waiters("busy", 1, 3), team_waiters("idle", 9, 3));
        let mut queue = FairQueue::default();
        for ticket in 0..60 {
            insert(&mut queue, &busy, ticket);
        }
        for _ in 0..50 {
            assert_eq!(serve(&mut queue, std::slice::from_ref(&busy)).map(|(team, _)| team).as_deref(), Some("busy"));
        }
        for ticket in 60..100 {
            insert(&mut queue, &idle, ticket);
        }
        let both = [busy, idle];
        let served: Vec<_> = (0..20).filter_map(|_| serve(&mut queue, &both)).map(|(team, _)| team).collect();
        let busy = served.iter().filter(|team| *team == "busy").count();
        assert!((1..=3).contains(&busy), "{served:?}");
    }

    #[test]
    fn a_call_of_two_teams_is_served_for_the_sooner_one_which_pays() {
        let (flood, quiet) = (team_waiters("flood", 1, 3), team_waiters("quiet", 1, 3));
        let mut queue = FairQueue::default();
        for ticket in 0..100 {
            insert(&mut queue, &flood, ticket);
        }
        insert(&mut queue, &quiet, 99);
        assert_eq!(queue.len(), 101);
        let both = [flood, quiet];
        let first_two: Vec<_> = (0..2).filter_map(|_| serve(&mut queue, &both)).collect();
        assert!(first_two.contains(&("quiet".to_owned(), 99)), "{first_two:?}");
        assert_eq!(queue.len(), 98);
    }

    #[test]
    fn idle_teams_leave_nothing_behind() {
        let mut queue = FairQueue::default();
        for n in 0..1000 {
            let one_off = team_waiters(&n.to_string(), 1, 3);
            insert(&mut queue, &one_off, n);
            serve(&mut queue, &[one_off]);
        }
        assert!(queue.teams.len() <= 2, "{}", queue.teams.len());
    }

    proptest! {
        /// An estimate on arrival holds as long as nobody else arrives, and is never too low.
        #[test]
        fn estimates_the_number_ahead(
            weights in proptest::collection::vec(1u32..5, 1..5),
            calls in proptest::collection::vec((0usize..5, 0u8..8), 1..60),
            served_before in 0usize..30,
            newcomer in (0usize..5, 0u8..8),
        ) {
            let name = |n: usize| format!("team{}", n % weights.len());
            let of = |(team, urgency): (usize, u8)| team_waiters(&name(team), weights[team % weights.len()], urgency);
            let everybody: Vec<_> = (0..weights.len()).flat_map(|t| (0..8).map(move |u| (t, u))).map(of).collect();
            let mut queue = FairQueue::default();
            for (ticket, call) in calls.iter().enumerate() {
                insert(&mut queue, &of(*call), ticket as Ticket);
            }
            for _ in 0..served_before {
                serve(&mut queue, &everybody);
            }
            let ticket = calls.len() as Ticket;
            let estimated = queue.ahead_of(&of(newcomer), ticket, 1.0);
            insert(&mut queue, &of(newcomer), ticket);
            let mut ahead = 0;
            while let Some((_, served)) = serve(&mut queue, &everybody) {
                if served == ticket {
                    break;
                }
                ahead += 1;
            }
            prop_assert!(ahead <= estimated, "{ahead} were served before it, {estimated} were estimated");
            // Equal start tags are the only uncertainty.
            prop_assert!(estimated <= ahead + weights.len(), "{estimated} were estimated, {ahead} were served");
        }

        /// However calls overtake, each starts by its latest start, and so does each call that comes back for its
        /// reservation; or else those that stay when others leave.
        #[test]
        fn overtaking_makes_no_call_late(
            steps in proptest::collection::vec((0u8..5, 0usize..5, 0u32..10), 1..150),
            some_leave in proptest::bool::ANY,
        ) {
            let calls_by_clients: Vec<_> = (1..6).map(call_of_clients).collect();
            let (mut queue, mut now) = (FairQueue::default(), Instant::now());
            // The calls that wait and the reservations: with how many clients, and their latest starts.
            let (mut waiting, mut reserved) = (BTreeMap::new(), BTreeMap::new());
            let steps = steps.into_iter().map(Some).chain(std::iter::repeat_n(None, 150));
            for (ticket, step) in (0..).zip(steps) {
                let known = |waiter_count: usize, queue: &FairQueue| {
                    let team_waiters = &calls_by_clients[waiter_count].0;
                    (team_waiters, now + queue.ahead_of(team_waiters, ticket, 1.0) as u32 * S)
                };
                match step {
                    Some((0 | 1, waiter_count, spare)) => {
                        let (team_waiters, estimated_start) = known(waiter_count, &queue);
                        queue.insert(team_waiters, ticket, estimated_start + spare * S);
                        waiting.insert(ticket, (waiter_count, estimated_start + spare * S));
                        continue;
                    }
                    Some((2, waiter_count, _)) if !some_leave => {
                        let (team_waiters, estimated_start) = known(waiter_count, &queue);
                        queue.reserve(team_waiters, ticket, estimated_start);
                        reserved.insert(ticket, (waiter_count, estimated_start));
                        continue;
                    }
                    Some((2, which, _)) => {
                        if let Some((&ticket, &(waiter_count, _))) = waiting.iter().nth(which) {
                            queue.remove(&calls_by_clients[waiter_count].0, ticket);
                            waiting.remove(&ticket);
                        }
                        continue;
                    }
                    _ => {}
                }
                for (ticket, (waiter_count, latest_start)) in reserved.extract_if(.., |_, (_, latest_start)| *latest_start <= now) {
                    queue.release(&calls_by_clients[waiter_count].0, ticket);
                    queue.insert(&calls_by_clients[waiter_count].0, ticket, latest_start);
                    waiting.insert(ticket, (waiter_count, latest_start));
                }
                let is_in_time = |latest_start, ahead| now + (1 + ahead as u32) * S <= latest_start;
                if let Some((_, ticket)) = queue.next(1.0, is_in_time) {
                    let (waiter_count, latest_start) = waiting.remove(&ticket).unwrap();
                    prop_assert!(now <= latest_start, "{ticket} is served {:?} late", now - latest_start);
                    queue.remove(&calls_by_clients[waiter_count].0, ticket);
                    queue.charge(&calls_by_clients[waiter_count].0.team);
                }
                now += S;
            }
            prop_assert!(waiting.is_empty() && reserved.is_empty());
        }

        /// The estimates of all at once are those of each alone.
        #[test]
        fn estimates_all_as_each(
            calls in proptest::collection::vec((0usize..4, 0u8..8, proptest::bool::ANY), 1..60),
            return_rate in 0.0f64..=1.0,
        ) {
            let of = |team: usize, urgency| team_waiters(&format!("team{team}"), team as u32 + 1, urgency);
            let mut queue = FairQueue::default();
            for (ticket, (team, urgency, is_reserved)) in calls.iter().enumerate() {
                match is_reserved {
                    true => queue.reserve(&of(*team, *urgency), ticket as Ticket, Instant::now()),
                    false => insert(&mut queue, &of(*team, *urgency), ticket as Ticket),
                }
            }
            let all: Vec<_> = queue.ahead_of_each(return_rate).collect();
            prop_assert_eq!(all.len(), queue.len());
            for (ticket, ahead) in all {
                let (team, urgency, _) = calls[ticket as usize];
                prop_assert_eq!(ahead, queue.ahead_of(&of(team, urgency), ticket, return_rate));
            }
        }

        /// Teams that always have calls waiting get their shares.
        #[test]
        fn shares_follow_weights(weights in proptest::collection::vec(1u32..10, 2..6)) {
            let teams: Vec<_> = weights.iter().enumerate().map(|(n, w)| team_waiters(&n.to_string(), *w, 3)).collect();
            let (mut queue, mut served) = (FairQueue::default(), vec![0u32; teams.len()]);
            let mut ticket = 0;
            for _ in 0..1000 {
                for team in &teams {
                    insert(&mut queue, team, ticket);
                    ticket += 1;
                }
                let (team, _) = serve(&mut queue, &teams).unwrap();
                served[team.parse::<usize>().unwrap()] += 1;
            }
            let total: u32 = weights.iter().sum();
            for (weight, served) in weights.iter().zip(&served) {
                let share = 1000.0 * f64::from(*weight) / f64::from(total);
                prop_assert!((f64::from(*served) - share).abs() <= 3.0, "{weights:?}: {served} instead of {share}");
            }
        }
    }
}
