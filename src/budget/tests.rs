use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::{advance, timeout};

use super::quota::{Grant, QuotaSource, QuotaStatus};
use super::*;
use crate::accounts::Team;
use crate::core::clock::{Clock, Instant};
use crate::core::error::{GatewayError, Reason};
use crate::core::units::Rate;
use crate::request::call::UpstreamCall;
use crate::request::key::Key;
use crate::request::waiters::{Waiter, Waiters};
use crate::semantics::request_directives::Urgency;
use crate::semantics::upstream_headers::RateLimitHeaders;
use crate::twilio::endpoint::Operation;

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

fn limits(per_second: u32, burst: u32, concurrency: u32) -> Limits {
    Limits {
        rate: Rate::new(per_second, S),
        burst,
        concurrency,
        queue: 1000,
        adapt: false,
        max_pause: 300 * S,
        backoff: Backoff { base: 250 * MS, max: 20 * S },
        circuit: CircuitPolicy { consecutive: 10, ratio: 0.5, open: 5 * S },
    }
}

fn budget(limits: Limits) -> AccountBudget {
    AccountBudget::new("main".into(), limits, Clock::new())
}

/// A call that a client waits for, until the guard is dropped. Each asks for something else.
fn call_of(team: &Team, urgency: u8, patience: Duration) -> (UpstreamCall, Waiter) {
    let team = Arc::new(team.clone());
    let body = Bytes::copy_from_slice(&fastrand::u128(..).to_le_bytes());
    let key = Key::new(&Team::example("a").account, Operation::Query, "", &body);
    let waiters = Waiters::of_clients();
    let waiter = waiters.join(&team, Urgency::new(urgency));
    let deadline = Instant::now() + patience;
    (UpstreamCall { team, key, body, waiters, deadline, ..UpstreamCall::example(Operation::Query, "", "") }, waiter)
}

fn patient() -> (UpstreamCall, Waiter) {
    call_of(&Team::example("local"), 3, 60 * S)
}

fn refresh() -> UpstreamCall {
    UpstreamCall { waiters: Waiters::of_refresh(), ..patient().0 }
}

/// Acquires, sends, and is answered at once.
async fn send(budget: &AccountBudget, call: &UpstreamCall) -> Result<(), GatewayError> {
    let mut permit = budget.acquire(call).await?;
    permit.spend();
    permit.end(AttemptOutcome::Answered(RateLimitHeaders::default()));
    Ok(())
}

/// The same; when it was sent.
async fn answered(budget: &AccountBudget, call: &UpstreamCall) -> Result<Instant, Reason> {
    send(budget, call).await.map(|()| Instant::now()).map_err(|error| error.reason())
}

/// The same in a task of its own.
fn spend(budget: &AccountBudget, (call, waiter): (UpstreamCall, Waiter)) -> JoinHandle<Result<Instant, Reason>> {
    let budget = budget.clone();
    tokio::spawn(async move {
        let _waiter = waiter;
        answered(&budget, &call).await
    })
}

/// One attempt that ends like this.
async fn attempt(budget: &AccountBudget, outcome: AttemptOutcome) -> Result<(), GatewayError> {
    let (call, _waiter) = patient();
    let mut permit = budget.acquire(&call).await?;
    permit.spend();
    permit.end(outcome);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn tokens_come_at_the_rate_in_order_of_arrival() {
    let (budget, start) = (budget(limits(5, 2, 10)), Instant::now());
    let calls: Vec<_> = (0..5).map(|_| spend(&budget, patient())).collect();
    let mut times = Vec::new();
    for call in calls {
        times.push((call.await.unwrap().unwrap() - start).as_millis());
    }
    assert_eq!(times, [0, 0, 200, 400, 600]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_in_time_is_refused_on_arrival() {
    let (budget, start) = (budget(limits(1, 1, 10)), Instant::now());
    spend(&budget, patient()).await.unwrap().unwrap();
    let (call, _waiter) = call_of(&Team::example("local"), 3, 500 * MS);
    let error = budget.acquire(&call).await.unwrap_err();
    assert_eq!((error.reason(), error.retry_after()), (Reason::Deadline, Some(S)));
    assert_eq!(Instant::now(), start);
}

#[tokio::test(start_paused = true)]
async fn slow_attempts_count_in_a_wait_estimate() {
    let budget = budget(limits(1000, 1000, 2));
    for _ in 0..3 {
        let (call, _waiter) = patient();
        let mut permit = budget.acquire(&call).await.unwrap();
        permit.spend();
        advance(4 * S).await;
        permit.end(AttemptOutcome::Answered(RateLimitHeaders::default()));
    }
    let (busy, _waiter) = patient();
    let _both = (budget.acquire(&busy).await.unwrap(), budget.acquire(&busy).await.unwrap());
    let (hasty, _waiter) = call_of(&Team::example("local"), 3, S);
    let error = budget.acquire(&hasty).await.unwrap_err();
    assert_eq!((error.reason(), error.retry_after()), (Reason::Deadline, Some(2 * S)), "one slot in two seconds");
}

#[tokio::test(start_paused = true)]
async fn a_pause_delays_all_and_refuses_at_once_those_it_makes_late() {
    let (budget, start) = (budget(limits(1, 2, 10)), Instant::now());
    spend(&budget, patient()).await.unwrap().unwrap();
    let (last, _waiter) = patient();
    let mut permit = budget.acquire(&last).await.unwrap();
    permit.spend();
    let patient = spend(&budget, patient());
    let hasty = spend(&budget, call_of(&Team::example("local"), 3, 3 * S));
    tokio::task::yield_now().await;
    assert_eq!(budget.status().waiting, 2);
    permit.end(AttemptOutcome::RateLimited(Some(7 * S), RateLimitHeaders::default()));
    assert_eq!(hasty.await.unwrap(), Err(Reason::Deadline));
    assert_eq!(Instant::now(), start);
    assert_eq!(patient.await.unwrap().unwrap() - start, 7 * S);
}

#[tokio::test(start_paused = true)]
async fn a_pause_without_a_length_grows_and_is_capped() {
    let budget = budget(limits(100, 100, 10));
    let mut last = Duration::ZERO;
    for n in 1..12 {
        attempt(&budget, AttemptOutcome::RateLimited(None, RateLimitHeaders::default())).await.unwrap();
        let paused = budget.status().paused;
        let ceiling = limits(1, 1, 1).backoff.ceiling(n);
        assert!(paused <= ceiling && paused >= (ceiling / 2).min(last), "{n}: {paused:?} of {ceiling:?}");
        last = paused;
    }
    attempt(&budget, AttemptOutcome::RateLimited(Some(100_000 * S), RateLimitHeaders::default())).await.unwrap();
    assert_eq!(budget.status().paused, 300 * S);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_gives_up_leaves_the_queue() {
    let (budget, start) = (budget(limits(1, 1, 10)), Instant::now());
    spend(&budget, patient()).await.unwrap().unwrap();
    let leaving = spend(&budget, patient());
    let staying = spend(&budget, patient());
    tokio::task::yield_now().await;
    leaving.abort();
    assert_eq!(staying.await.unwrap().unwrap() - start, S);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_nobody_waits_for_any_more_is_not_sent() {
    let budget = budget(limits(1, 1, 10));
    spend(&budget, patient()).await.unwrap().unwrap();
    let (call, waiter) = patient();
    let waits = tokio::spawn({
        let budget = budget.clone();
        async move { answered(&budget, &call).await }
    });
    tokio::task::yield_now().await;
    assert_eq!(budget.status().waiting, 1);
    drop(waiter);
    assert_eq!(waits.await.unwrap(), Err(Reason::Deadline));
    assert_eq!(budget.status().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn an_unused_permit_gives_its_token_back() {
    let budget = budget(limits(1, 1, 10));
    let (call, _waiter) = patient();
    drop(budget.acquire(&call).await.unwrap());
    assert!(timeout(MS, budget.acquire(&call)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn refreshes_come_behind_clients_until_a_client_waits_for_them() {
    let (budget, start) = (budget(limits(1, 1, 10)), Instant::now());
    spend(&budget, patient()).await.unwrap().unwrap();
    let background = |call: UpstreamCall| {
        let budget = budget.clone();
        tokio::spawn(async move { answered(&budget, &call).await })
    };
    let (quiet, wanted) = (refresh(), refresh());
    let waiters = Arc::clone(&wanted.waiters);
    let (quiet, wanted) = (background(quiet), background(wanted));
    tokio::task::yield_now().await;
    let client = spend(&budget, patient());
    tokio::task::yield_now().await;
    let _waiter = waiters.join(&Arc::new(Team::example("local")), Urgency::default());
    assert_eq!(client.await.unwrap().unwrap() - start, S);
    assert_eq!(wanted.await.unwrap().unwrap() - start, 2 * S);
    assert_eq!(quiet.await.unwrap().unwrap() - start, 3 * S);
}

#[tokio::test(start_paused = true)]
async fn concurrency_is_a_limit_of_its_own() {
    let budget = budget(limits(1000, 1000, 2));
    let (call, _waiter) = patient();
    let (one, _two) = (budget.acquire(&call).await.unwrap(), budget.acquire(&call).await.unwrap());
    let mut third = Box::pin(budget.acquire(&call));
    assert!(timeout(S, &mut third).await.is_err());
    drop(one);
    assert!(timeout(MS, third).await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded() {
    let budget = budget(Limits { queue: 1, ..limits(1, 1, 10) });
    spend(&budget, patient()).await.unwrap().unwrap();
    let waiting = spend(&budget, patient());
    tokio::task::yield_now().await;
    let (unwanted, waiter) = patient();
    drop(waiter);
    assert!(budget.acquire(&unwanted).await.unwrap_err().is_abandoned());
    let (call, _waiter) = patient();
    let error = budget.acquire(&call).await.unwrap_err();
    assert_eq!((error.reason(), error.retry_after()), (Reason::QueueFull, Some(2 * S)));
    waiting.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_evicts_for_a_team_whose_queue_is_shorter() {
    let (budget, start) = (budget(Limits { queue: 6, ..limits(1, 1, 10) }), Instant::now());
    let (flood, quiet) = (Team::example("flood"), Team::example("quiet"));
    let heavy = Team { weight: 100, ..Team::example("heavy") };
    spend(&budget, call_of(&flood, 3, 60 * S)).await.unwrap().unwrap();
    let mut flooding: Vec<_> = (0..6).map(|_| spend(&budget, call_of(&flood, 3, 60 * S))).collect();
    tokio::task::yield_now().await;
    let quiet_one = spend(&budget, call_of(&quiet, 3, 60 * S));
    let heavy_ones: Vec<_> = (0..3).map(|_| spend(&budget, call_of(&heavy, 3, 60 * S))).collect();
    tokio::task::yield_now().await;
    assert_eq!(budget.status().waiting, 6, "no more than before");
    // The last calls of the flood are evicted, one for each.
    for dropped in flooding.drain(2..) {
        assert_eq!(dropped.await.unwrap(), Err(Reason::QueueFull));
    }
    assert_eq!(Instant::now(), start, "they are told at once");
    for refused in [&flood, &quiet] {
        let (call, _waiter) = call_of(refused, 3, 60 * S);
        let error = budget.acquire(&call).await.unwrap_err();
        assert_eq!(error.reason(), Reason::QueueFull, "with one more, {}'s would be the longest", refused.name);
        assert!(error.retry_after().is_some());
    }
    for call in flooding.into_iter().chain([quiet_one]).chain(heavy_ones) {
        call.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn refreshes_are_evicted_first_and_none_is_evicted_for_one() {
    let budget = budget(Limits { queue: 2, ..limits(1, 1, 10) });
    spend(&budget, patient()).await.unwrap().unwrap();
    let background = |call: UpstreamCall| {
        let budget = budget.clone();
        tokio::spawn(async move { answered(&budget, &call).await })
    };
    let (first, last) = (background(refresh()), background(refresh()));
    tokio::task::yield_now().await;
    assert_eq!(background(refresh()).await.unwrap(), Err(Reason::QueueFull));
    let client = spend(&budget, patient());
    assert_eq!(last.await.unwrap(), Err(Reason::QueueFull));
    let another = spend(&budget, patient());
    assert_eq!(first.await.unwrap(), Err(Reason::QueueFull));
    assert_eq!(spend(&budget, patient()).await.unwrap(), Err(Reason::QueueFull), "these are all clients of one team");
    assert!(client.await.unwrap().is_ok() && another.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_two_teams_wait_for_is_not_evicted() {
    let budget = budget(Limits { queue: 4, ..limits(1, 1, 10) });
    let (flood, quiet) = (Team::example("flood"), Team::example("quiet"));
    spend(&budget, call_of(&flood, 3, 60 * S)).await.unwrap().unwrap();
    let mut calls: Vec<_> = (0..4).map(|_| call_of(&flood, 3, 60 * S)).collect();
    let _also = calls[3].0.waiters.join(&Arc::new(Team::example("third")), Urgency::default());
    let shared = calls.pop().map(|call| spend(&budget, call)).unwrap();
    let mut others: Vec<_> = calls.into_iter().map(|call| spend(&budget, call)).collect();
    tokio::task::yield_now().await;
    let newcomer = spend(&budget, call_of(&quiet, 3, 60 * S));
    assert_eq!(others.pop().unwrap().await.unwrap(), Err(Reason::QueueFull));
    for call in [shared, newcomer].into_iter().chain(others) {
        call.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_would_be_late_evicts_no_other() {
    let budget = budget(Limits { queue: 3, ..limits(1, 1, 10) });
    spend(&budget, patient()).await.unwrap().unwrap();
    let waiting: Vec<_> = (0..3).map(|_| spend(&budget, patient())).collect();
    tokio::task::yield_now().await;
    let hasty = call_of(&Team { weight: 100, ..Team::example("heavy") }, 3, 500 * MS);
    assert_eq!(spend(&budget, hasty).await.unwrap(), Err(Reason::QueueFull));
    for call in waiting {
        call.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_faster_rate_serves_those_who_wait_sooner() {
    let (budget, start) = (budget(limits(1, 1, 10)), Instant::now());
    spend(&budget, patient()).await.unwrap().unwrap();
    let waiting = spend(&budget, patient());
    tokio::task::yield_now().await;
    advance(100 * MS).await;
    budget.set_limits(limits(1000, 10, 10));
    assert!(waiting.await.unwrap().unwrap() - start <= 101 * MS);
}

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

/// So many more of a call's own clients.
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
    // Another joins who has less time than the first.
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
    // Another joins who has more time, and then the account pauses for longer than the first has.
    waiters.need_by(start + 30 * S);
    tokio::task::yield_now().await;
    permit.end(AttemptOutcome::RateLimited(Some(10 * S), RateLimitHeaders::default()));
    let sent = shared.await.unwrap().unwrap() - start;
    assert!(sent >= 10 * S && sent < 30 * S, "{sent:?}");
}

/// Twenty clients behind five tokens a second, each asking for one of fifty pages a quarter of a second after its last
/// answer: how long they wait for 95 of 100 answers. Pages are kept, and identical requests share a call; are those who
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

/// Clients that are told to come back do, after exactly as long as they were told, while the load stays what it is.
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

/// A hundred clients with little patience: how often they came back, and how often that helped. As many more as `more`
/// says wait for what each of them asks for.
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

#[tokio::test(start_paused = true)]
async fn a_teams_own_limit_holds_whatever_the_account_has_left() {
    let budget = budget(limits(100, 100, 10));
    let team = Team { upstream: Rate::new(2, S), ..Team::example("small") };
    for _ in 0..2 {
        let (call, _waiter) = call_of(&team, 3, 60 * S);
        answered(&budget, &call).await.unwrap();
    }
    let (call, _waiter) = call_of(&team, 3, 60 * S);
    let error = budget.acquire(&call).await.unwrap_err();
    assert_eq!((error.reason(), error.retry_after()), (Reason::TeamRateLimit, Some(S)));
    assert_eq!(budget.allowance(&team).map(|left| (left.remaining, left.reset)), Some((0, 1)));
    let (other, _waiter) = patient();
    answered(&budget, &other).await.unwrap();
    advance(500 * MS).await;
    answered(&budget, &call).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_not_sent_costs_its_team_nothing() {
    let budget = budget(limits(1, 1, 10));
    let team = Team { upstream: Rate::new(1, 60 * S), ..Team::example("small") };
    spend(&budget, patient()).await.unwrap().unwrap();
    let leaving = spend(&budget, call_of(&team, 3, 60 * S));
    tokio::task::yield_now().await;
    assert_eq!(budget.allowance(&team).map(|left| left.remaining), Some(0));
    leaving.abort();
    assert!(leaving.await.is_err());
    assert_eq!(budget.allowance(&team).map(|left| left.remaining), Some(1));
}

fn refresh_of(team: &Team) -> UpstreamCall {
    UpstreamCall { waiters: Waiters::of_refresh(), ..call_of(team, 3, 60 * S).0 }
}

#[tokio::test(start_paused = true)]
async fn refreshes_leave_half_of_a_teams_own_limit_to_its_clients() {
    for (burst, for_refreshes) in [(1, 1), (2, 1), (3, 2), (10, 5)] {
        let budget = budget(limits(100, 100, 100));
        let team = Team { upstream: Rate::new(burst, 60 * S), ..Team::example("small") };
        for n in 0..for_refreshes {
            assert!(answered(&budget, &refresh_of(&team)).await.is_ok(), "{n} of {burst}");
        }
        assert_eq!(answered(&budget, &refresh_of(&team)).await, Err(Reason::TeamRateLimit), "{burst}");
        for n in for_refreshes..burst {
            let (call, _waiter) = call_of(&team, 3, 60 * S);
            assert!(answered(&budget, &call).await.is_ok(), "{n} of {burst}");
        }
        let (call, _waiter) = call_of(&team, 3, 60 * S);
        assert_eq!(answered(&budget, &call).await, Err(Reason::TeamRateLimit), "the limit is what it was");
    }
}

#[tokio::test(start_paused = true)]
async fn no_refresh_takes_the_token_for_which_a_client_was_told_to_come_back() {
    let budget = budget(limits(100, 100, 100));
    let team = Team { upstream: Rate::new(1, S), ..Team::example("small") };
    assert!(answered(&budget, &refresh_of(&team)).await.is_ok());
    let (call, _waiter) = call_of(&team, 3, 60 * S);
    let told = budget.acquire(&call).await.unwrap_err().retry_after().unwrap();
    for _ in 0..10 {
        advance(told / 10).await;
        assert_eq!(answered(&budget, &refresh_of(&team)).await, Err(Reason::TeamRateLimit));
    }
    assert!(answered(&budget, &call).await.is_ok(), "it is there when the client comes back");
    tokio::time::sleep(4 * S).await;
    assert!(answered(&budget, &refresh_of(&team)).await.is_ok(), "and nobody's share is kept for ever");
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_only_waits_gives_its_teams_token_to_a_client() {
    let budget = budget(limits(1, 1, 10));
    let team = Team { upstream: Rate::new(1, 60 * S), ..Team::example("small") };
    spend(&budget, patient()).await.unwrap().unwrap();
    let waiting = {
        let (budget, call) = (budget.clone(), refresh_of(&team));
        tokio::spawn(async move { answered(&budget, &call).await })
    };
    tokio::task::yield_now().await;
    assert_eq!(budget.allowance(&team).map(|left| left.remaining), Some(0));
    let client = spend(&budget, call_of(&team, 3, 60 * S));
    assert_eq!(waiting.await.unwrap(), Err(Reason::TeamRateLimit));
    assert!(client.await.unwrap().is_ok());
}

/// Three stale panels, whose refreshes begin as often as they may, beside a client with a query of its own each second.
#[tokio::test(start_paused = true)]
async fn a_teams_queries_are_answered_while_its_refreshes_take_what_is_left() {
    let budget = budget(limits(100, 100, 100));
    let team = Team { upstream: Rate::new(2, S), ..Team::example("small") };
    let refreshing = {
        let (budget, team) = (budget.clone(), team.clone());
        tokio::spawn(async move {
            let mut refreshed = 0;
            for _ in 0..300 {
                for _ in 0..3 {
                    refreshed += u32::from(answered(&budget, &refresh_of(&team)).await.is_ok());
                }
                tokio::time::sleep(100 * MS).await;
            }
            refreshed
        })
    };
    for n in 0..30 {
        let (call, _waiter) = call_of(&team, 3, 60 * S);
        assert!(answered(&budget, &call).await.is_ok(), "query {n}");
        tokio::time::sleep(S).await;
    }
    assert!(refreshing.await.unwrap() >= 15, "what clients leave is not wasted");
}

#[tokio::test(start_paused = true)]
async fn one_query_that_always_fails_does_not_open_the_circuit() {
    let budget = budget(limits(1000, 1000, 100));
    let (poisonous, _waiter) = patient();
    for _ in 0..200 {
        let mut permit = budget.acquire(&poisonous).await.unwrap();
        permit.spend();
        permit.end(AttemptOutcome::Failed);
    }
    assert_eq!(budget.status().circuit, CircuitState::Closed);
    for _ in 0..2 {
        attempt(&budget, AttemptOutcome::Failed).await.unwrap();
    }
    assert_eq!(budget.status().circuit, CircuitState::Open, "three different ones are the upstream's");
}

#[tokio::test(start_paused = true)]
async fn an_open_circuit_refuses_at_once_and_a_probe_closes_it() {
    let (budget, start) = (budget(limits(100, 100, 100)), Instant::now());
    for _ in 0..9 {
        attempt(&budget, AttemptOutcome::Failed).await.unwrap();
    }
    let (last, _waiter) = patient();
    let mut permit = budget.acquire(&last).await.unwrap();
    permit.spend();
    budget.set_limits(Limits { rate: Rate::new(1, 60 * S), ..limits(100, 1, 100) });
    let waiting = spend(&budget, call_of(&Team::example("local"), 3, 600 * S));
    tokio::task::yield_now().await;
    permit.end(AttemptOutcome::Failed);
    assert_eq!(waiting.await.unwrap(), Err(Reason::CircuitOpen), "who waits is told");
    let error = attempt(&budget, AttemptOutcome::Failed).await.unwrap_err();
    assert_eq!((error.reason(), error.retry_after()), (Reason::CircuitOpen, Some(5 * S)));
    assert_eq!(Instant::now(), start);

    budget.set_limits(limits(100, 100, 100));
    advance(5 * S).await;
    let tokens = budget.status().tokens;
    let (probe, _waiter) = patient();
    let mut probe = budget.acquire(&probe).await.unwrap();
    probe.spend();
    assert!(budget.status().tokens < tokens, "a probe pays");
    assert_eq!(attempt(&budget, AttemptOutcome::Failed).await.unwrap_err().reason(), Reason::CircuitOpen);
    assert_eq!(budget.status().circuit, CircuitState::HalfOpen);
    probe.end(AttemptOutcome::Answered(RateLimitHeaders::default()));
    assert_eq!((budget.status().circuit, budget.status().broken_for), (CircuitState::Closed, None));
    attempt(&budget, AttemptOutcome::Failed).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_given_up_lets_another_try() {
    let budget = budget(limits(100, 100, 100));
    for _ in 0..10 {
        attempt(&budget, AttemptOutcome::Failed).await.unwrap();
    }
    advance(5 * S).await;
    let (call, _waiter) = patient();
    drop(budget.acquire(&call).await.unwrap());
    let mut unclear = budget.acquire(&call).await.unwrap();
    unclear.spend();
    drop(unclear);
    attempt(&budget, AttemptOutcome::Answered(RateLimitHeaders::default())).await.unwrap();
    assert_eq!(budget.status().circuit, CircuitState::Closed);
}

/// Five in a window of a second, as Twilio states with each answer: the first five at once, and no burst after that, since
/// nobody knows where in the window it would fall.
#[tokio::test(start_paused = true)]
async fn a_stated_limit_allows_no_bursts() {
    let (budget, start) = (budget(Limits { adapt: true, ..limits(5, 5, 10) }), Instant::now());
    let mut sent = Vec::new();
    for left in (0..5).rev().cycle().take(15) {
        let (call, _waiter) = patient();
        let mut permit = budget.acquire(&call).await.unwrap();
        permit.spend();
        sent.push(Instant::now() - start);
        let (limit, remaining, reset) = (Some(5), Some(left), Some(S));
        permit.end(AttemptOutcome::Answered(RateLimitHeaders { limit, remaining, reset, concurrent: None }));
    }
    for window in sent.windows(6) {
        assert!(window[5] - window[0] >= 950 * MS, "{sent:?}");
    }
    assert!(sent[14] <= 3 * S, "and nothing is wasted: {sent:?}");
}

/// Attempts that never end, and so nobody knows how long a wait is.
#[tokio::test(start_paused = true)]
async fn many_calls_whose_deadlines_come_at_once_are_refused_at_once() {
    let budget = budget(Limits { rate: None, queue: 100_000, ..limits(1, 1, 1) });
    let (first, _waiter) = patient();
    let _never_ends = budget.acquire(&first).await.unwrap();
    let team = Team::example("a");
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..20_000 {
        let (budget, (call, waiter)) = (budget.clone(), call_of(&team, 3, S));
        waiting.spawn(async move {
            let _waiter = waiter;
            answered(&budget, &call).await
        });
    }
    let told = waiting.join_all().await;
    assert!(told.len() == 20_000 && told.iter().all(|result| *result == Err(Reason::Deadline)));
    assert_eq!(budget.status().waiting, 0);
}

/// Another source of tokens: grants by script, as one would that shares a bucket with other processes.
#[derive(Debug, Default)]
struct Script {
    /// No token before this; a token that is asked for at that time may have been taken by another process.
    next: Option<Instant>,
    /// How often another process takes the token first, by which the next one is a second later.
    taken_by_others: u32,
    /// The teams that were granted tokens.
    granted: Vec<String>,
    refunds: u32,
}

#[derive(Debug, Clone, Default)]
struct ScriptedQuota(Arc<Mutex<Script>>);

impl QuotaSource for ScriptedQuota {
    fn set_limits(&mut self, _: &Limits, _: Instant) {}

    fn update(&mut self, _: Instant) {}

    fn ready(&self, now: Instant) -> Grant {
        let next = self.0.lock().unwrap().next;
        next.filter(|next| *next > now).map_or(Grant::Now, Grant::NotBefore)
    }

    fn take(&mut self, team: &Team, now: Instant) -> Grant {
        if self.ready(now) != Grant::Now {
            return self.ready(now);
        }
        let mut script = self.0.lock().unwrap();
        if script.taken_by_others > 0 {
            script.taken_by_others -= 1;
            script.next = Some(now + S);
            return Grant::NotBefore(now + S);
        }
        script.granted.push(team.name.to_string());
        Grant::Now
    }

    fn refund(&mut self) {
        self.0.lock().unwrap().refunds += 1;
    }

    fn nth_at(&self, _: u32, now: Instant) -> Instant {
        self.0.lock().unwrap().next.map_or(now, |next| next.max(now))
    }

    fn concurrency(&self, _: Instant) -> u32 {
        100
    }

    fn accepted(&mut self, _: &RateLimitHeaders, _: Instant) {}

    fn rate_limited(
        &mut self,
        asked: Option<Duration>,
        _: &RateLimitHeaders,
        _: Instant,
        _: u32,
        now: Instant,
    ) -> Option<Duration> {
        self.0.lock().unwrap().next = asked.map(|pause| now + pause);
        asked
    }

    fn status(&self, _: Instant) -> QuotaStatus {
        QuotaStatus { per_second: None, tokens: None, paused: Duration::ZERO }
    }
}

fn scripted() -> (AccountBudget, ScriptedQuota) {
    let quota = ScriptedQuota::default();
    let budget = AccountBudget::with_quota("main".into(), limits(1, 1, 1), Box::new(quota.clone()), Clock::new());
    (budget, quota)
}

#[tokio::test(start_paused = true)]
async fn tokens_that_others_take_first_are_waited_for_in_the_same_order() {
    let ((budget, quota), start) = (scripted(), Instant::now());
    *quota.0.lock().unwrap() = Script { next: Some(start + 10 * S), taken_by_others: 3, ..Script::default() };
    let teams = ["a", "a", "b"];
    let calls = teams.map(|team| spend(&budget, call_of(&Team::example(team), 3, 60 * S)));
    for call in calls {
        assert_eq!(call.await.unwrap(), Ok(start + 13 * S));
    }
    let script = quota.0.lock().unwrap();
    assert_eq!((script.granted.join(" "), script.refunds), ("a b a".to_owned(), 0), "each team in its turn");
}

#[tokio::test(start_paused = true)]
async fn a_source_is_told_of_unused_tokens_and_of_429s() {
    let ((budget, quota), start) = (scripted(), Instant::now());
    let (call, _waiter) = patient();
    drop(budget.acquire(&call).await.unwrap());
    assert_eq!(quota.0.lock().unwrap().refunds, 1);
    attempt(&budget, AttemptOutcome::RateLimited(Some(7 * S), RateLimitHeaders::default())).await.unwrap();
    assert_eq!(quota.0.lock().unwrap().refunds, 1, "a token that was used does not come back");
    assert_eq!(answered(&budget, &call).await, Ok(start + 7 * S));
    let (hasty, _waiter) = call_of(&Team::example("local"), 3, S);
    quota.0.lock().unwrap().next = Some(Instant::now() + 5 * S);
    assert_eq!(answered(&budget, &hasty).await, Err(Reason::Deadline), "by the source's estimate");
}
