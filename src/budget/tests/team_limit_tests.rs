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
