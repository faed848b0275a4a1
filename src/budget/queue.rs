//! Who is next: weighted fair queueing between teams; within a team urgency, then how many clients wait, then arrival.
//!
//! Start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queuing", SIGCOMM 1996), for services that all cost
//! the same. Each team's next service starts at a virtual time; the least is next, and having been served moves
//! the team on by one over its weight. A team that was idle starts where the others are: it neither saves up
//! what it did not use nor waits behind what others have piled up.
//!
//! Places are in order of arrival, and so are waits foretold. That a call which many clients wait for is served before
//! its turn is a favour: it is done only while everybody whom it puts off is still served by when they are due. So a call
//! that is due no sooner than its turn in order of arrival is served by then, whatever favours are done to others.
//!
//! A call may stand in the lines of several teams, one place each. Pure bookkeeping: nothing here waits, and
//! nothing knows of tokens; what can be done by when is asked of the caller.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::accounts::Team;
use crate::core::clock::Instant;
use crate::request::waiters::{TeamWaiters, WaiterCount};
use crate::semantics::request_directives::Urgency;

/// A call, by its arrival: lower came earlier.
pub(super) type Ticket = u64;

/// One place in a team's line; the least is first.
type Place = (Urgency, Ticket);

/// What a service costs a team of weight 1, in virtual time.
const COST: u64 = 1 << 24;

/// Lines of teams that share something scarce.
#[derive(Debug, Default)]
pub(super) struct FairQueue {
    /// Where the latest service started.
    virtual_time: u64,
    /// Teams that wait, or were served a moment ago.
    lines: HashMap<Arc<str>, Line>,
}

#[derive(Debug)]
struct Line {
    cost: u64,
    /// Where the team's next service starts, unless the others are further.
    start: u64,
    places: BTreeMap<Place, QueuedCall>,
    /// Places kept for calls that are away, with when these were told to be back.
    kept: BTreeMap<Place, Instant>,
}

/// A call in a line.
#[derive(Debug)]
struct QueuedCall {
    /// The team's clients that wait for it.
    waiter_count: WaiterCount,
    /// No favour to others may make it be served later than this.
    due: Instant,
}

impl Line {
    fn is_idle(&self) -> bool {
        self.places.is_empty() && self.kept.is_empty()
    }
}

impl FairQueue {
    /// Lets a call stand in a team's line. No favour to others makes it be served later than `due`.
    pub(super) fn join(&mut self, team_waiters: &TeamWaiters, ticket: Ticket, due: Instant) {
        let queued = QueuedCall { waiter_count: team_waiters.waiter_count.clone(), due };
        self.line(&team_waiters.team).places.insert((team_waiters.urgency, ticket), queued);
    }

    /// Takes a call out of a team's line.
    pub(super) fn leave(&mut self, team_waiters: &TeamWaiters, ticket: Ticket) {
        if let Some(line) = self.lines.get_mut(&team_waiters.team.name) {
            line.places.remove(&(team_waiters.urgency, ticket));
        }
        self.forget_idle();
    }

    /// Keeps a place for a call that is away until `due`: whoever arrives is told of a wait that includes it.
    pub(super) fn keep(&mut self, team_waiters: &TeamWaiters, ticket: Ticket, due: Instant) {
        self.line(&team_waiters.team).kept.insert((team_waiters.urgency, ticket), due);
    }

    /// Gives such a place up.
    pub(super) fn release(&mut self, team_waiters: &TeamWaiters, ticket: Ticket) {
        if let Some(line) = self.lines.get_mut(&team_waiters.team.name) {
            line.kept.remove(&(team_waiters.urgency, ticket));
        }
        self.forget_idle();
    }

    /// Whose turn it is. The call keeps its places until it [`leave`](Self::leave)s them. `in_time` says whether one can
    /// still be served by then, that so many are ahead of once this turn is taken; of places kept for calls that are
    /// away, the share `returning` counts.
    pub(super) fn next(&self, returning: f64, in_time: impl Fn(Instant, usize) -> bool) -> Option<(Arc<str>, Ticket)> {
        let first = |(name, line): (&Arc<str>, &Line)| {
            let ((_, ticket), _) = line.places.first_key_value()?;
            Some((line.start.max(self.virtual_time), *ticket, Arc::clone(name)))
        };
        let (_, _, team) = self.lines.iter().filter_map(first).min()?;
        let ticket = self.most_wanted(&team, returning, in_time)?;
        Some((team, ticket))
    }

    /// Of a team's most urgent calls the one that most clients wait for; the earliest of several. It comes before
    /// earlier ones only if all of these are in time one turn later, whether they are there or away. Where it is not the
    /// first, this looks at all places before it.
    fn most_wanted(&self, team: &Arc<str>, returning: f64, in_time: impl Fn(Instant, usize) -> bool) -> Option<Ticket> {
        let line = self.lines.get(team)?;
        let (&first, _) = line.places.first_key_value()?;
        let as_urgent = || line.places.range(first..=(first.0, Ticket::MAX));
        let most = as_urgent().map(|(_, queued)| queued.waiter_count.size()).max()?;
        let spares_a_turn = |before: usize, away: usize, due: Instant| {
            let own = before + part(away, returning);
            in_time(due, own + self.of_others_before(team, line.cost, own + 1, returning))
        };
        let mut kept = line.kept.iter().peekable();
        let (mut most_wanted, mut size, mut away) = (first.1, 0, 0);
        for (before, (place, queued)) in as_urgent().enumerate() {
            while let Some((kept, due)) = kept.next_if(|(kept, _)| *kept < place) {
                // One that is away and stood before the first is passed by serving that, too.
                if *kept > first && !spares_a_turn(before, away, *due) {
                    return Some(most_wanted);
                }
                away += 1;
            }
            if queued.waiter_count.size() > size {
                (most_wanted, size) = (place.1, queued.waiter_count.size());
            }
            if size >= most || !spares_a_turn(before, away, queued.due) {
                break;
            }
        }
        Some(most_wanted)
    }

    /// A team is served.
    pub(super) fn charge(&mut self, team: &Team) {
        let now = self.virtual_time;
        let line = self.line(team);
        let start = line.start.max(now);
        line.start = start + line.cost;
        self.virtual_time = start;
        if self.is_empty() {
            // Nobody waits, so nobody lost a turn. All lines start equal again.
            self.virtual_time = self.lines.values().map(|line| line.start).max().unwrap_or(start);
        }
        self.forget_idle();
    }

    /// How many services there would be before that of a call at this place, as things stand: those ahead of it in
    /// its team's line, and what the other teams' shares let them have meanwhile. Of places kept for calls that
    /// are away, the share `returning` counts.
    pub(super) fn ahead_of(&self, team_waiters: &TeamWaiters, ticket: Ticket, returning: f64) -> usize {
        let place = (team_waiters.urgency, ticket);
        let own = self
            .lines
            .get(&team_waiters.team.name)
            .map_or(0, |line| before(&line.places, &place) + part(before(&line.kept, &place), returning));
        own + self.of_others_before(&team_waiters.team.name, cost(&team_waiters.team), own, returning)
    }

    /// The same for all who wait, each counted once for every line that it stands in. One pass: asking for each alone
    /// would take the square of their number.
    pub(super) fn ahead_of_each(&self, returning: f64) -> impl Iterator<Item = (Ticket, usize)> {
        self.lines.iter().flat_map(move |(name, line)| {
            let mut kept = line.kept.keys().peekable();
            let mut away = 0;
            line.places.keys().enumerate().map(move |(waiting, place)| {
                while kept.next_if(|kept| *kept < place).is_some() {
                    away += 1;
                }
                let own = waiting + part(away, returning);
                (place.1, own + self.of_others_before(name, line.cost, own, returning))
            })
        })
    }

    /// How many services other teams' shares let them have before a team's that has `own` before it.
    fn of_others_before(&self, team: &Arc<str>, cost: u64, own: usize, returning: f64) -> usize {
        let start = self.lines.get(team).map_or(self.virtual_time, |line| line.start.max(self.virtual_time));
        let mine = start + own as u64 * cost;
        let before_mine = |(name, line): (&Arc<str>, &Line)| {
            let there = line.places.len() + part(line.kept.len(), returning);
            let theirs = line.start.max(self.virtual_time);
            if name == team || there == 0 || theirs > mine {
                return 0;
            }
            // Those that start at the same moment count as ahead: rather one too many than a promise broken.
            let until = (mine - theirs) / line.cost + 1;
            there.min(usize::try_from(until).unwrap_or(usize::MAX))
        };
        self.lines.iter().map(before_mine).sum()
    }

    /// How long a team's line would be with one more place, for the team's weight: comparable between teams.
    pub(super) fn length_with_one_more(&self, team: &Team) -> u64 {
        let places = self.lines.get(&team.name).map_or(0, |line| line.places.len());
        length(places + 1, cost(team))
    }

    /// How long a team's line is for its weight.
    pub(super) fn length_of(&self, team: &Team) -> u64 {
        length(self.lines.get(&team.name).map_or(0, |line| line.places.len()), cost(team))
    }

    /// The last call in a team's line.
    pub(super) fn last_of(&self, team: &str) -> Option<Ticket> {
        self.lines.get(team)?.places.last_key_value().map(|((_, ticket), _)| *ticket)
    }

    /// The last call that `may_go` of the line that is longest for its team's weight, if that is longer than `than`.
    pub(super) fn last_of_longest(&self, than: u64, may_go: impl Fn(Ticket) -> bool) -> Option<Ticket> {
        let longest = self.lines.values().filter_map(|line| {
            // Of several that are as long, the one whose last is the less urgent, or the later.
            let (last, _) = line.places.last_key_value()?;
            Some((length(line.places.len(), line.cost), *last, line))
        });
        let (longest, _, line) = longest.max_by_key(|(length, last, _)| (*length, *last))?;
        let mut backwards = line.places.keys().rev().map(|(_, ticket)| *ticket);
        backwards.find(|ticket| may_go(*ticket)).filter(|_| longest > than)
    }

    /// How many calls have places, those that have several counted in each line.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.lines.values().map(|line| line.places.len()).sum()
    }

    /// Does nobody wait.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.values().all(|line| line.places.is_empty())
    }

    fn line(&mut self, team: &Team) -> &mut Line {
        let start = self.virtual_time;
        let new = || Line { cost: 0, start, places: BTreeMap::new(), kept: BTreeMap::new() };
        let line = self.lines.entry(Arc::clone(&team.name)).or_insert_with(new);
        // A reload may have changed it.
        line.cost = cost(team);
        line
    }

    /// Lines that nobody stands in, of teams that are level with the others. What is kept is bounded by the teams
    /// there are.
    fn forget_idle(&mut self) {
        let now = self.virtual_time;
        self.lines.retain(|_, line| !line.is_idle() || line.start > now);
    }
}

fn length(places: usize, cost: u64) -> u64 {
    (places as u64).saturating_mul(cost)
}

fn cost(team: &Team) -> u64 {
    COST / u64::from(team.weight.max(1))
}

/// How many places come before this one, counted from the nearer end of the line.
fn before<T>(places: &BTreeMap<Place, T>, place: &Place) -> usize {
    let (mut ahead, mut behind) = (places.range(..place), places.range(place..));
    let mut counted = 0;
    loop {
        if ahead.next().is_none() {
            return counted;
        }
        if behind.next().is_none() {
            return places.len() - counted;
        }
        counted += 1;
    }
}

fn part(number: usize, share: f64) -> usize {
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

    /// Lets a call stand in line that nobody else's favour can put off.
    fn join(queue: &mut FairQueue, team_waiters: &TeamWaiters, ticket: Ticket) {
        queue.join(team_waiters, ticket, Instant::now());
    }

    /// Serves whoever is next.
    fn serve(queue: &mut FairQueue, waiting_teams: &[TeamWaiters]) -> Option<(String, Ticket)> {
        let (team, ticket) = queue.next(1.0, |_, _| true)?;
        let team_waiters = waiting_teams.iter().find(|team_waiters| team_waiters.team.name == team)?;
        for team_waiters in waiting_teams {
            queue.leave(team_waiters, ticket);
        }
        queue.charge(&team_waiters.team);
        Some((team.to_string(), ticket))
    }

    #[test]
    fn teams_are_served_by_weight() {
        let teams = [team_waiters("three", 3, 3), team_waiters("one", 1, 3)];
        let mut queue = FairQueue::default();
        for ticket in 0..100 {
            join(&mut queue, &teams[ticket as usize % 2], ticket);
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
            join(&mut queue, &team_waiters("a", 1, *level), ticket as Ticket);
        }
        let of_any_urgency: Vec<_> = (0..8).map(|level| team_waiters("a", 1, level)).collect();
        let order: Vec<_> = (0..4).filter_map(|_| serve(&mut queue, &of_any_urgency)).map(|(_, t)| t).collect();
        assert_eq!(order, [3, 0, 2, 1]);
    }

    /// A team's share in a call that so many of its clients wait for.
    fn wanted_by(clients: usize) -> (TeamWaiters, Vec<Waiter>) {
        let waiters = Waiters::of_clients();
        let TeamWaiters { team, urgency, .. } = team_waiters("a", 1, 3);
        let joined = (0..clients).map(|_| waiters.join(&team, urgency)).collect();
        (waiters.waiting_teams().0.remove(0), joined)
    }

    #[test]
    fn the_one_that_most_wait_for_comes_first_as_long_as_the_others_can_spare_a_turn() {
        let crowds = [1, 2, 4, 3].map(wanted_by);
        let start = Instant::now();
        let mut queue = FairQueue::default();
        let served = |queue: &mut FairQueue, estimated_start: u32| {
            let in_time = |due, ahead| start + (estimated_start + 1 + ahead as u32) * S <= due;
            let (_, ticket) = queue.next(1.0, in_time).unwrap();
            queue.leave(&crowds[ticket as usize].0, ticket);
            ticket
        };
        for (ticket, (team_waiters, _)) in (0..).zip(&crowds) {
            queue.join(team_waiters, ticket, start + 60 * S);
        }
        // The second's turn is the second, and it cannot wait for longer.
        queue.join(&crowds[1].0, 1, start + S);
        assert_eq!([0, 1, 2, 3].map(|estimated_start| served(&mut queue, estimated_start)), [1, 2, 3, 0]);
        for (ticket, (team_waiters, _)) in (0..).zip(&crowds).filter(|(ticket, _)| *ticket != 1) {
            queue.join(team_waiters, ticket, start + 60 * S);
        }
        queue.keep(&crowds[1].0, 1, start + S);
        assert_eq!(served(&mut queue, 0), 0, "one that is away is to find its place as it was told");
    }

    #[test]
    fn a_flood_delays_anothers_first_call_by_one_service_at_most() {
        let (flood, quiet) = (team_waiters("flood", 1, 3), team_waiters("quiet", 1, 3));
        let mut queue = FairQueue::default();
        for ticket in 0..100 {
            join(&mut queue, &flood, ticket);
        }
        for _ in 0..10 {
            serve(&mut queue, std::slice::from_ref(&flood));
        }
        assert!(queue.ahead_of(&quiet, 100, 1.0) <= 1);
        join(&mut queue, &quiet, 100);
        let next: Vec<_> = (0..2).filter_map(|_| serve(&mut queue, &[flood.clone(), quiet.clone()])).collect();
        assert!(next.iter().any(|(team, _)| team == "quiet"), "{next:?}");
    }

    #[test]
    fn the_last_to_go_is_in_the_line_that_is_longest_for_its_weight() {
        let (heavy, light) = (team_waiters("heavy", 10, 3), team_waiters("light", 1, 3));
        let mut queue = FairQueue::default();
        assert_eq!(queue.last_of_longest(0, |_| true), None);
        for ticket in 0..20 {
            join(&mut queue, &heavy, ticket);
        }
        for ticket in 20..23 {
            join(&mut queue, &light, ticket);
        }
        join(&mut queue, &team_waiters("light", 1, 5), 10);
        assert_eq!(queue.last_of_longest(0, |_| true), Some(10), "the least urgent of the light team's four");
        assert_eq!(queue.last_of_longest(0, |ticket| ticket < 22 && ticket != 10), Some(21));
        let (own, others) = (queue.length_with_one_more(&light.team), queue.length_with_one_more(&heavy.team));
        assert_eq!(queue.last_of_longest(own, |_| true), None, "one more of its own would be longer still");
        assert_eq!(queue.last_of_longest(others, |_| true), Some(10));
    }

    #[test]
    fn an_idle_share_goes_to_whoever_asks_and_is_not_saved_up() {
        let (busy, idle) = (team_waiters("busy", 1, 3), team_waiters("idle", 9, 3));
        let mut queue = FairQueue::default();
        for ticket in 0..60 {
            join(&mut queue, &busy, ticket);
        }
        for _ in 0..50 {
            assert_eq!(serve(&mut queue, std::slice::from_ref(&busy)).map(|(team, _)| team).as_deref(), Some("busy"));
        }
        for ticket in 60..100 {
            join(&mut queue, &idle, ticket);
        }
        let both = [busy, idle];
        let served: Vec<_> = (0..20).filter_map(|_| serve(&mut queue, &both)).map(|(team, _)| team).collect();
        let busy = served.iter().filter(|team| *team == "busy").count();
        assert!((1..=3).contains(&busy), "{served:?}");
    }

    #[test]
    fn a_call_may_stand_in_two_lines_and_the_first_turn_pays() {
        let (flood, quiet) = (team_waiters("flood", 1, 3), team_waiters("quiet", 1, 3));
        let mut queue = FairQueue::default();
        for ticket in 0..100 {
            join(&mut queue, &flood, ticket);
        }
        join(&mut queue, &quiet, 99);
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
            join(&mut queue, &one_off, n);
            serve(&mut queue, &[one_off]);
        }
        assert!(queue.lines.len() <= 2, "{}", queue.lines.len());
    }

    proptest! {
        /// What is foretold on arrival holds as long as nobody else arrives, and is never too low.
        #[test]
        fn foretells_the_place(
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
                join(&mut queue, &of(*call), ticket as Ticket);
            }
            for _ in 0..served_before {
                serve(&mut queue, &everybody);
            }
            let ticket = calls.len() as Ticket;
            let foretold = queue.ahead_of(&of(newcomer), ticket, 1.0);
            join(&mut queue, &of(newcomer), ticket);
            let mut ahead = 0;
            while let Some((_, served)) = serve(&mut queue, &everybody) {
                if served == ticket {
                    break;
                }
                ahead += 1;
            }
            prop_assert!(ahead <= foretold, "{ahead} were served before it, {foretold} were foretold");
            // Ties between teams are the only doubt.
            prop_assert!(foretold <= ahead + weights.len(), "{foretold} were foretold, {ahead} were served");
        }

        /// Whatever favours are done, everybody is served by when they are due: those whose time is short, and those who
        /// are away until their turn comes; or else those who stay when others leave.
        #[test]
        fn favours_make_nobody_late(
            steps in proptest::collection::vec((0u8..5, 0usize..5, 0u32..10), 1..150),
            some_leave in proptest::bool::ANY,
        ) {
            let crowds: Vec<_> = (1..6).map(wanted_by).collect();
            let (mut queue, mut now) = (FairQueue::default(), Instant::now());
            // Who waits, and who is away: of which crowd and until when.
            let (mut here, mut away) = (BTreeMap::new(), BTreeMap::new());
            let steps = steps.into_iter().map(Some).chain(std::iter::repeat_n(None, 150));
            for (ticket, step) in (0..).zip(steps) {
                let known = |waiter_count: usize, queue: &FairQueue| {
                    let team_waiters = &crowds[waiter_count].0;
                    (team_waiters, now + queue.ahead_of(team_waiters, ticket, 1.0) as u32 * S)
                };
                match step {
                    Some((0 | 1, waiter_count, spare)) => {
                        let (team_waiters, estimated_start) = known(waiter_count, &queue);
                        queue.join(team_waiters, ticket, estimated_start + spare * S);
                        here.insert(ticket, (waiter_count, estimated_start + spare * S));
                        continue;
                    }
                    Some((2, waiter_count, _)) if !some_leave => {
                        let (team_waiters, estimated_start) = known(waiter_count, &queue);
                        queue.keep(team_waiters, ticket, estimated_start);
                        away.insert(ticket, (waiter_count, estimated_start));
                        continue;
                    }
                    Some((2, which, _)) => {
                        if let Some((&ticket, &(waiter_count, _))) = here.iter().nth(which) {
                            queue.leave(&crowds[waiter_count].0, ticket);
                            here.remove(&ticket);
                        }
                        continue;
                    }
                    _ => {}
                }
                for (ticket, (waiter_count, due)) in away.extract_if(.., |_, (_, due)| *due <= now) {
                    queue.release(&crowds[waiter_count].0, ticket);
                    queue.join(&crowds[waiter_count].0, ticket, due);
                    here.insert(ticket, (waiter_count, due));
                }
                let in_time = |due, ahead| now + (1 + ahead as u32) * S <= due;
                if let Some((_, ticket)) = queue.next(1.0, in_time) {
                    let (waiter_count, due) = here.remove(&ticket).unwrap();
                    prop_assert!(now <= due, "{ticket} is served {:?} late", now - due);
                    queue.leave(&crowds[waiter_count].0, ticket);
                    queue.charge(&crowds[waiter_count].0.team);
                }
                now += S;
            }
            prop_assert!(here.is_empty() && away.is_empty());
        }

        /// All at once is each alone.
        #[test]
        fn foretells_all_as_each(
            calls in proptest::collection::vec((0usize..4, 0u8..8, proptest::bool::ANY), 1..60),
            returning in 0.0f64..=1.0,
        ) {
            let of = |team: usize, urgency| team_waiters(&format!("team{team}"), team as u32 + 1, urgency);
            let mut queue = FairQueue::default();
            for (ticket, (team, urgency, away)) in calls.iter().enumerate() {
                match away {
                    true => queue.keep(&of(*team, *urgency), ticket as Ticket, Instant::now()),
                    false => join(&mut queue, &of(*team, *urgency), ticket as Ticket),
                }
            }
            let all: Vec<_> = queue.ahead_of_each(returning).collect();
            prop_assert_eq!(all.len(), queue.len());
            for (ticket, ahead) in all {
                let (team, urgency, _) = calls[ticket as usize];
                prop_assert_eq!(ahead, queue.ahead_of(&of(team, urgency), ticket, returning));
            }
        }

        /// Teams that always want more get their shares.
        #[test]
        fn shares_follow_weights(weights in proptest::collection::vec(1u32..10, 2..6)) {
            let teams: Vec<_> = weights.iter().enumerate().map(|(n, w)| team_waiters(&n.to_string(), *w, 3)).collect();
            let (mut queue, mut served) = (FairQueue::default(), vec![0u32; teams.len()]);
            let mut ticket = 0;
            for _ in 0..1000 {
                for team in &teams {
                    join(&mut queue, team, ticket);
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
