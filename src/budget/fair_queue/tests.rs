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

/// A call that this number of clients of a team wait for.
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
    /// If no other call arrives, an estimate on arrival stays true. It is never too low.
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

    /// However calls overtake each other, each starts by its latest start. The same holds for calls that come back for
    /// their reservations, and for those that stay when others leave.
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
