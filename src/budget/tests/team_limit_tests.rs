//! Teams' own upstream limits, and how many of their tokens refreshes take.

use super::*;

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
    assert!(answered(&budget, &refresh_of(&team)).await.is_ok(), "and no token is reserved for ever");
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

/// Three stale panels are refreshed as often as allowed. A client sends a query of its own each second.
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

/// So many clients of each team ask at once, each for something else, and once more when they were told. Returns how many
/// were refused, and how many of those were served then. No team sends more than its limit.
async fn crowd(limits: Limits, teams: &[Team], clients: usize) -> (usize, usize) {
    let (budget, sent) = (budget(limits), Arc::new(std::sync::Mutex::new(Vec::new())));
    let mut crowd = tokio::task::JoinSet::new();
    for number in 0..clients * teams.len() {
        let (budget, team, sent) = (budget.clone(), teams[number % teams.len()].clone(), Arc::clone(&sent));
        let late = fastrand::u32(0..100) * MS;
        crowd.spawn(async move {
            let (call, _waiter) = call_of(&team, 3, 2 * S);
            let mut tries = answered_or_told(&budget, &call).await;
            let is_refused = tries.is_err();
            if let Err(wait) = tries {
                tokio::time::sleep(wait + late).await;
                let again = UpstreamCall { deadline: Instant::now() + 2 * S, ..call };
                tries = answered_or_told(&budget, &again).await;
            }
            if let Ok(at) = tries {
                sent.lock().unwrap().push((team.name, at));
            }
            (is_refused, is_refused && tries.is_ok())
        });
    }
    let ends = crowd.join_all().await;
    for team in teams {
        let of_team = |(name, at): &(Arc<str>, Instant)| (*name == team.name).then_some(*at);
        let mut times: Vec<_> = sent.lock().unwrap().iter().filter_map(of_team).collect();
        times.sort();
        let rate = team.upstream.unwrap();
        for (i, first) in times.iter().enumerate() {
            for (j, last) in times.iter().enumerate().skip(i) {
                let bound = f64::from(rate.count()) + rate.per_second() * (*last - *first).as_secs_f64();
                assert!((j - i + 1) as f64 <= bound + 1e-6, "{} of {} in {:?}", j - i + 1, team.name, *last - *first);
            }
        }
    }
    (ends.iter().filter(|end| end.0).count(), ends.iter().filter(|end| end.1).count())
}

/// When it was sent, or after which time it is to come back.
async fn answered_or_told(budget: &AccountBudget, call: &UpstreamCall) -> Result<Instant, Duration> {
    send(budget, call).await.map(|()| Instant::now()).map_err(|error| error.retry_after().unwrap())
}

fn limited(name: &str, per_second: u32) -> Team {
    Team { upstream: Rate::new(per_second, S), ..Team::example(name) }
}

#[tokio::test(start_paused = true)]
async fn a_crowd_that_a_teams_limit_refused_is_served_when_it_comes_back() {
    let both = [limited("a", 5), limited("b", 5)];
    for (limits, teams, name) in [
        (limits(100, 100, 100), &both[..1], "one team"),
        (limits(100, 100, 100), &both[..], "two teams"),
        (limits(2, 2, 100), &both[..1], "an account with less"),
        (limits(8, 8, 100), &both[..], "an account with less for two teams"),
    ] {
        let (refused, served) = crowd(limits, teams, 200).await;
        assert!(refused >= 180 * teams.len(), "{name}: {refused} were refused");
        assert!(served * 10 >= refused * 9, "{name}: {served} of {refused}");
    }
}

/// Twenty new clients a second ask beside them, four times what the limit permits.
#[tokio::test(start_paused = true)]
async fn those_who_were_told_to_come_back_are_served_however_many_others_come() {
    let (budget, team) = (budget(limits(100, 100, 100)), limited("a", 5));
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..1200 {
        let (budget, team) = (budget.clone(), team.clone());
        clients.spawn(async move {
            tokio::time::sleep(50 * MS * number).await;
            let (call, _waiter) = call_of(&team, 3, 2 * S);
            let wait = answered_or_told(&budget, &call).await.err()?;
            tokio::time::sleep(wait).await;
            let again = UpstreamCall { deadline: Instant::now() + 2 * S, ..call };
            Some(answered_or_told(&budget, &again).await.is_ok())
        });
    }
    let back: Vec<bool> = clients.join_all().await.into_iter().flatten().collect();
    let served = back.iter().filter(|served| **served).count();
    assert!(back.len() >= 800 && served * 10 >= back.len() * 9, "{served} of {}", back.len());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_comes_back_and_leaves_again_takes_no_token() {
    let (budget, team) = (budget(limits(100, 100, 100)), limited("a", 1));
    let (first, _waiter) = call_of(&team, 3, 60 * S);
    answered(&budget, &first).await.unwrap();
    let (call, waiter) = call_of(&team, 3, 60 * S);
    let told = budget.acquire(&call).await.unwrap_err().retry_after().unwrap();
    let (next, _waiter) = call_of(&team, 3, 60 * S);
    assert_eq!(budget.acquire(&next).await.unwrap_err().retry_after(), Some(2 * S));
    // Somebody was late, so that there is no token at that time.
    tokio::time::sleep(told).await;
    let late = budget.allowance(&team).unwrap();
    assert_eq!(late.remaining, 1);
    answered(&budget, &UpstreamCall { key: call.key, ..next.clone() }).await.unwrap();
    drop(waiter);
    let gone = budget.acquire(&call).await.unwrap_err();
    assert!(gone.is_abandoned(), "{gone:?}");
    tokio::time::sleep(S).await;
    assert!(answered(&budget, &UpstreamCall { deadline: Instant::now() + S, ..next }).await.is_ok());
}
