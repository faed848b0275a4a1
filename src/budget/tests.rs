use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::{advance, timeout};

use super::*;
use crate::accounts::Team;
use crate::core::backoff::Backoff;
use crate::core::clock::{Clock, Instant};
use crate::core::error::{GatewayError, Reason};
use crate::core::units::Rate;
use crate::request::call::UpstreamCall;
use crate::request::key::Key;
use crate::request::waiters::{Waiter, Waiters};
use crate::semantics::request_directives::Urgency;
use crate::semantics::upstream_headers::RateLimitHeaders;
use crate::twilio::endpoint::Operation;

mod circuit_tests;
mod order_tests;
mod quota_source_tests;
mod team_limit_tests;

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
async fn a_call_without_time_is_refused_and_takes_nothing() {
    let without_time = || call_of(&Team { upstream: Rate::new(1, S), ..Team::example("a") }, 3, Duration::ZERO);
    let budget = budget(limits(1, 1, 10));
    let told = async |(call, _waiter): (UpstreamCall, Waiter)| {
        let error = budget.acquire(&call).await.unwrap_err();
        assert_eq!(error.reason(), Reason::Deadline, "{error}");
        error.retry_after().unwrap()
    };
    for _ in 0..10 {
        assert_eq!(told(without_time()).await, S, "there is a token, and none is taken");
    }
    let (call, _waiter) = call_of(&Team { upstream: Rate::new(1, S), ..Team::example("a") }, 3, 60 * S);
    assert!(answered(&budget, &call).await.is_ok(), "neither of the account nor of the team");
    let waiting: Vec<_> = (0..4).map(|_| spend(&budget, call_of(&Team::example("a"), 3, 60 * S))).collect();
    tokio::task::yield_now().await;
    for _ in 0..10 {
        assert_eq!(told(without_time()).await, 5 * S, "nor does it keep a place");
    }
    for call in waiting {
        call.await.unwrap().unwrap();
    }
    attempt(&budget, AttemptOutcome::RateLimited(Some(30 * S), RateLimitHeaders::default())).await.unwrap();
    assert_eq!(told(without_time()).await, 30 * S);
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

/// Five in a window of a second, as Twilio states with each answer: the first five at once, and no burst after that, because
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
