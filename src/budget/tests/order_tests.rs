//! In which order calls are served, between teams and within one.

use super::*;

/// Sends calls of a team one after the other, `at_once` of them at a time, until the time is up; how many were sent.
fn demand(budget: &AccountBudget, team: &Team, at_once: usize, until: Instant) -> JoinHandle<u32> {
    let (budget, team) = (budget.clone(), team.clone());
    tokio::spawn(async move {
        let mut lanes = tokio::task::JoinSet::new();
        for _ in 0..at_once {
            let (budget, team) = (budget.clone(), team.clone());
            lanes.spawn(async move {
                let mut sent = 0;
                while Instant::now() < until {
                    let (call, _waiter) = call_of(&team, 3, 60 * S);
                    match answered(&budget, &call).await {
                        Ok(at) => sent += u32::from(at < until),
                        Err(_) => tokio::time::sleep(S).await,
                    }
                }
                sent
            });
        }
        lanes.join_all().await.iter().sum()
    })
}

#[tokio::test(start_paused = true)]
async fn endless_demand_is_divided_by_weight() {
    let budget = budget(limits(20, 5, 10));
    let (heavy, light) = (Team { weight: 3, ..Team::example("heavy") }, Team::example("light"));
    let until = Instant::now() + 60 * S;
    let (heavy, light) = (demand(&budget, &heavy, 50, until), demand(&budget, &light, 50, until));
    let (heavy, light) = (f64::from(heavy.await.unwrap()), f64::from(light.await.unwrap()));
    assert!((heavy / light - 3.0).abs() <= 0.3, "{heavy} to {light}");
    assert!(heavy + light >= 20.0 * 60.0, "an account that is asked enough is used up: {}", heavy + light);
}

#[tokio::test(start_paused = true)]
async fn the_share_of_idle_teams_goes_to_the_others() {
    let budget = budget(limits(20, 5, 10));
    let until = Instant::now() + 10 * S;
    let sent = demand(&budget, &Team { weight: 1, ..Team::example("light") }, 20, until).await.unwrap();
    assert!(sent >= 200, "{sent}");
}

#[tokio::test(start_paused = true)]
async fn a_flood_delays_anothers_first_request_by_one_service_at_most() {
    let (budget, start) = (budget(limits(2, 1, 10)), Instant::now());
    let flood = Team::example("flood");
    let _waiting: Vec<_> = (0..100).map(|_| spend(&budget, call_of(&flood, 0, 60 * S))).collect();
    tokio::task::yield_now().await;
    tokio::time::sleep(5 * S + 100 * MS).await;
    let quiet = spend(&budget, call_of(&Team::example("quiet"), 7, 60 * S)).await.unwrap().unwrap();
    // The next token is 400 ms away; one service is 500 ms.
    assert!(quiet - start <= 6 * S, "{:?}", quiet - start);
}

#[tokio::test(start_paused = true)]
async fn urgency_counts_within_a_team_alone() {
    let (budget, start) = (budget(limits(1, 1, 10)), Instant::now());
    let (a, b) = (Team::example("a"), Team::example("b"));
    spend(&budget, call_of(&a, 3, 60 * S)).await.unwrap().unwrap();
    let calls =
        [(&a, 5), (&a, 3), (&a, 0), (&b, 7)].map(|(team, urgency)| spend(&budget, call_of(team, urgency, 60 * S)));
    let mut seconds = Vec::new();
    for call in calls {
        seconds.push((call.await.unwrap().unwrap() - start).as_secs());
    }
    assert_eq!(seconds, [4, 3, 1, 2], "urgency does not count between teams");
}

#[tokio::test(start_paused = true)]
async fn a_call_of_two_teams_is_served_for_the_sooner_one() {
    let (budget, start) = (budget(limits(1, 1, 10)), Instant::now());
    let (flood, quiet) = (Team::example("flood"), Team::example("quiet"));
    let mut calls: Vec<_> = (0..20).map(|_| call_of(&flood, 3, 60 * S)).collect();
    let shared = Arc::clone(&calls[19].0.waiters);
    let last = calls.pop().map(|call| spend(&budget, call));
    let _others: Vec<_> = calls.into_iter().map(|call| spend(&budget, call)).collect();
    tokio::task::yield_now().await;
    tokio::time::sleep(3 * S).await;
    let _waiter = shared.join(&Arc::new(quiet), Urgency::default());
    let sent = last.unwrap().await.unwrap().unwrap();
    assert!(sent - start <= 5 * S, "{:?}", sent - start);
}

/// This number of additional clients of a call's own team.
fn waiter_count(call: &UpstreamCall, clients: usize) -> Vec<Waiter> {
    let urgency = call.waiters.waiting_teams().0.first().map_or_else(Urgency::default, |team| team.urgency);
    (0..clients).map(|_| call.waiters.join(&call.team, urgency)).collect()
}

#[tokio::test(start_paused = true)]
async fn what_most_clients_wait_for_comes_first() {
    let (budget, start) = (budget(limits(1, 1, 10)), Instant::now());
    spend(&budget, patient()).await.unwrap().unwrap();
    let mut clients = Vec::new();
    let calls = [0, 2, 1, 2, 0].map(|more| {
        let patient = patient();
        clients.push(waiter_count(&patient.0, more));
        spend(&budget, patient)
    });
    tokio::task::yield_now().await;
    // They come and go while it waits.
    clients[1].clear();
    let mut seconds = Vec::new();
    for call in calls {
        seconds.push((call.await.unwrap().unwrap() - start).as_secs());
    }
    assert_eq!(seconds, [3, 4, 2, 1, 5]);
}

#[tokio::test(start_paused = true)]
async fn a_teams_own_clients_of_the_same_urgency_are_counted() {
    let (budget, start) = (budget(limits(1, 1, 10)), Instant::now());
    let (a, b) = (Team::example("a"), Team::example("b"));
    spend(&budget, call_of(&a, 3, 60 * S)).await.unwrap().unwrap();
    let (shared, calm, early, two) =
        (call_of(&a, 3, 60 * S), call_of(&a, 5, 60 * S), call_of(&a, 3, 60 * S), call_of(&a, 3, 60 * S));
    let _of_another_team: Vec<_> =
        (0..5).map(|_| shared.0.waiters.join(&Arc::new(b.clone()), Urgency::new(5))).collect();
    let _calm = waiter_count(&calm.0, 5);
    let _calmer: Vec<_> = (0..5).map(|_| early.0.waiters.join(&early.0.team, Urgency::new(5))).collect();
    let _one_more = waiter_count(&two.0, 1);
    let calls = [shared, early, calm, two, call_of(&b, 3, 60 * S)].map(|call| spend(&budget, call));
    let mut seconds = Vec::new();
    for call in calls {
        seconds.push((call.await.unwrap().unwrap() - start).as_secs());
    }
    assert_eq!(seconds, [3, 4, 5, 1, 2]);
}

/// Calls that three clients wait for each arrive as fast as there are tokens, twenty of them at once to begin with.
fn popular_calls(budget: &AccountBudget, until: Instant) -> JoinHandle<()> {
    let budget = budget.clone();
    tokio::spawn(async move {
        let mut calls = tokio::task::JoinSet::new();
        for n in 0.. {
            if n > 20 {
                tokio::time::sleep(200 * MS).await;
            }
            if Instant::now() > until {
                break;
            }
            let ((call, _waiter), budget) = (patient(), budget.clone());
            calls.spawn(async move {
                let _clients = (_waiter, waiter_count(&call, 2));
                answered(&budget, &call).await
            });
        }
    })
}

#[tokio::test(start_paused = true)]
async fn overtaking_delays_a_call_by_five_seconds_at_most() {
    let (budget, start) = (budget(limits(5, 1, 10)), Instant::now());
    let _popular = popular_calls(&budget, start + 30 * S);
    tokio::task::yield_now().await;
    let lonely = patient();
    let waiters = Arc::clone(&lonely.0.waiters);
    let lonely = spend(&budget, lonely);
    tokio::task::yield_now().await;
    let estimated = waiters.estimated_start().unwrap();
    tokio::time::sleep(5 * S).await;
    assert!(waiters.estimated_start().unwrap() > estimated, "the estimate is brought up to date");
    let sent = lonely.await.unwrap().unwrap();
    assert!(
        sent > estimated + 4 * S && sent <= estimated + 5 * S,
        "{:?} instead of {:?}",
        sent - start,
        estimated - start
    );
}

#[tokio::test(start_paused = true)]
async fn overtaking_delays_no_call_beyond_its_deadline() {
    let (budget, start) = (budget(limits(5, 1, 10)), Instant::now());
    let _popular = popular_calls(&budget, start + 30 * S);
    tokio::task::yield_now().await;
    // It is estimated to start after 4.2 s.
    let hurried = spend(&budget, call_of(&Team::example("local"), 3, 4500 * MS));
    let (call, waiter) = patient();
    let waiters = Arc::clone(&call.waiters);
    let joined = spend(&budget, (call, waiter));
    tokio::time::sleep(S).await;
    // Another client joins that has less time than the first.
    waiters.need_by(start + 5 * S);
    assert!(hurried.await.unwrap().unwrap() - start <= 4500 * MS);
    assert!(joined.await.unwrap().unwrap() - start <= 5 * S);
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_as_long_as_one_of_its_clients_may() {
    let (budget, start) = (budget(limits(1, 1, 10)), Instant::now());
    let (first, _waiter) = patient();
    let mut permit = budget.acquire(&first).await.unwrap();
    permit.spend();
    // Its own deadline is far. Its clients decide whether a start after a second is in time.
    let (call, waiter) = patient();
    waiter.need_by(start + 500 * MS);
    let error = budget.acquire(&call).await.unwrap_err();
    assert_eq!((error.reason(), Instant::now()), (Reason::Deadline, start), "no client has that much time");
    let (call, waiter) = patient();
    waiter.need_by(start + 5 * S);
    let waiters = Arc::clone(&call.waiters);
    let shared = spend(&budget, (call, waiter));
    tokio::task::yield_now().await;
    // Another client joins that has more time. Then the account pauses for longer than the first client can wait.
    waiters.need_by(start + 30 * S);
    tokio::task::yield_now().await;
    permit.end(AttemptOutcome::RateLimited(Some(10 * S), RateLimitHeaders::default()));
    let sent = shared.await.unwrap().unwrap() - start;
    assert!(sent >= 10 * S && sent < 30 * S, "{sent:?}");
}

/// Twenty clients share five tokens a second. Each asks for one of fifty pages, a quarter of a second after its last
/// answer. Returns the time within which 95 of 100 answers came. Pages are stored, and identical requests share a call.
/// `counted` says whether the clients that share a call are counted.
/// share one counted.
async fn dashboards(counted: bool, seed: u64) -> Duration {
    let (budget, until) = (budget(limits(5, 1, 1000)), Instant::now() + 20 * S);
    let pages: Vec<_> = (0..50).map(|_| (Waiters::of_clients(), tokio::sync::OnceCell::new())).collect();
    let pages = Arc::new(pages);
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..20 {
        let (budget, pages) = (budget.clone(), Arc::clone(&pages));
        let mut rng = fastrand::Rng::with_seed(seed * 20 + n);
        clients.spawn(async move {
            let mut waits = Vec::new();
            tokio::time::sleep(rng.u32(0..250) * MS).await;
            while Instant::now() < until {
                let (asked, (waiters, page)) = (Instant::now(), &pages[rng.usize(0..50)]);
                let (call, waiter) = patient();
                let call = UpstreamCall { waiters: Arc::clone(waiters), ..call };
                let first = page.get().is_none() && waiters.waiting_teams().0.is_empty();
                let _waiter = if counted || first { waiter_count(&call, 1) } else { vec![waiter] };
                let fetch = async || {
                    answered(&budget, &call).await.unwrap();
                    tokio::time::sleep(50 * MS).await;
                };
                page.get_or_init(fetch).await;
                waits.push(asked.elapsed());
                tokio::time::sleep(250 * MS).await;
            }
            waits
        });
    }
    let mut waits = clients.join_all().await.concat();
    waits.sort_unstable();
    waits[waits.len() * 95 / 100]
}

#[tokio::test(start_paused = true)]
async fn counting_waiters_shortens_the_waits_of_most_clients() {
    let (mut by_waiters, mut in_order) = (Vec::new(), Vec::new());
    for seed in 0..9 {
        by_waiters.push(dashboards(true, seed).await);
        in_order.push(dashboards(false, seed).await);
    }
    by_waiters.sort_unstable();
    in_order.sort_unstable();
    assert!(by_waiters[4] * 2 <= in_order[4], "{by_waiters:?} instead of {in_order:?}");
}

/// Clients come back after exactly the time that they were told, while the load stays the same.
#[tokio::test(start_paused = true)]
async fn calls_that_come_back_when_told_are_served() {
    let (came_back, served) = coming_back(|| 0).await;
    assert!(came_back > 500, "{came_back}");
    assert!(f64::from(served) >= 0.95 * f64::from(came_back), "{served} of {came_back}");
}

#[tokio::test(start_paused = true)]
async fn calls_that_come_back_are_served_though_others_have_more_waiters() {
    let (came_back, served) = coming_back(|| fastrand::usize(0..4)).await;
    assert!(came_back > 500, "{came_back}");
    assert!(f64::from(served) >= 0.95 * f64::from(came_back), "{served} of {came_back}");
}

/// A hundred clients with short deadlines. Returns how often they came back, and how often they were then served.
/// `more` says how many other clients wait for the same call.
async fn coming_back(more: fn() -> usize) -> (u32, u32) {
    let budget = budget(limits(5, 5, 10));
    let team = Team::example("a");
    let until = Instant::now() + 300 * S;
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..100u64 {
        let (budget, team) = (budget.clone(), team.clone());
        clients.spawn(async move {
            let (mut came_back, mut served) = (0u32, 0u32);
            tokio::time::sleep(n as u32 * 37 * MS).await;
            while Instant::now() < until {
                let (mut call, _waiter) = call_of(&team, 3, 2 * S);
                let _more = waiter_count(&call, more());
                let mut result = send(&budget, &call).await;
                while let Err(refused) = result {
                    tokio::time::sleep(refused.retry_after().unwrap()).await;
                    call.deadline = Instant::now() + 2 * S;
                    result = send(&budget, &call).await;
                    came_back += 1;
                    served += u32::from(result.is_ok());
                }
                tokio::time::sleep(S).await;
            }
            (came_back, served)
        });
    }
    let all = clients.join_all().await;
    all.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}

#[tokio::test(start_paused = true)]
async fn calls_that_do_not_come_back_delay_no_other() {
    let budget = budget(limits(5, 5, 10));
    let team = Team::example("a");
    for _ in 0..500 {
        let (call, _waiter) = call_of(&team, 3, S);
        assert!(matches!(answered(&budget, &call).await, Ok(_) | Err(Reason::Deadline)));
    }
    // All reservations have expired, and new ones count for little in estimates.
    tokio::time::sleep(200 * S).await;
    let (mut sent, mut refused) = (0, 0);
    for _ in 0..100 {
        let (call, _waiter) = call_of(&team, 3, S);
        match answered(&budget, &call).await {
            Ok(_) => sent += 1,
            Err(_) => refused += 1,
        }
        tokio::time::sleep(250 * MS).await;
    }
    assert_eq!((sent, refused), (100, 0));
}
