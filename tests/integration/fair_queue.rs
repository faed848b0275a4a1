//! One team's load and its effect on others: a full queue, an upstream that fails for one team, and refreshes next to
//! queries.

use std::time::Duration;

use crate::support::gateway::{NO_RETRY, with_teams};
use crate::support::*;

fn by(team: &str, name: &str) -> Vec<u8> {
    let headers = format!("Authorization: Bearer token-of-{team}\r\n");
    post_to(QUERY, &headers, &format!(r#"{{"query":{{"measures":["Conversation.{name}"]}}}}"#))
}

#[tokio::test]
async fn a_team_that_fills_the_queue_loses_its_last_places_to_others() {
    let upstream = Upstream::script(|_| Plan::page(PAGE)).await;
    let account = "rate = '4/s'\nburst = 1\nqueue = 10\nadapt = false";
    let teams = [("flood", ""), ("quiet", ""), ("heavy", "weight = 100")];
    let (gateway, _folder) = with_teams(&upstream, account, &teams, NO_RETRY).await;
    gateway.ask(&by("flood", "First")).await.assert_page(PAGE, "miss");
    let mut flood = Vec::new();
    for n in 0..10 {
        let mut client = gateway.connect().await;
        client.send(&by("flood", &format!("Flood{n}"))).await;
        flood.push(client);
        gateway.metric_reaches("queue_length", &["main"], f64::from(n + 1)).await;
    }
    let refused = gateway.ask(&by("flood", "OneTooMany")).await;
    refused.assert_refused(503, "queue_full");
    let mut others = Vec::new();
    for (n, team) in ["heavy", "quiet", "heavy", "heavy"].into_iter().enumerate() {
        let mut client = gateway.connect().await;
        client.send(&by(team, &format!("Other{n}"))).await;
        others.push(client);
        // The last of the flood's requests is refused, and only that.
        let dropped = flood.pop().unwrap().answer().await;
        dropped.assert_refused(503, "queue_full");
    }
    for mut client in others.into_iter().chain(flood) {
        client.answer().await.assert_page(PAGE, "miss");
    }
}

#[tokio::test]
async fn two_teams_that_wait_for_one_call_leave_a_place_for_a_third() {
    let upstream = Upstream::script(|_| Plan::page(PAGE)).await;
    let account = "rate = '4/s'\nburst = 1\nqueue = 6\nadapt = false";
    let (gateway, _folder) = with_teams(&upstream, account, &[("one", ""), ("two", ""), ("third", "")], NO_RETRY).await;
    gateway.ask(&by("one", "First")).await.assert_page(PAGE, "miss");
    let mut both = Vec::new();
    for n in 0..6 {
        let (mut one, mut two) = (gateway.connect().await, gateway.connect().await);
        one.send(&by("one", &format!("Shared{n}"))).await;
        gateway.metric_reaches("queue_length", &["main"], f64::from(n + 1)).await;
        two.send(&by("two", &format!("Shared{n}"))).await;
        gateway.settle().await;
        both.push((one, two));
    }
    let mut third = gateway.connect().await;
    third.send(&by("third", "Other")).await;
    let (mut one, mut two) = both.pop().unwrap();
    one.answer().await.assert_refused(503, "queue_full");
    two.answer().await.assert_refused(503, "queue_full");
    third.answer().await.assert_page(PAGE, "miss");
}

#[tokio::test]
async fn one_query_that_keeps_failing_does_not_keep_the_circuit_open() {
    let upstream = Upstream::script(|_| Plan::json(500, "{}")).await;
    let keys = [("retry.attempts", "1"), ("circuit.consecutive", "3"), ("circuit.open", "100ms")];
    let (gateway, _folder) = with_teams(&upstream, "rate = '0/s'", &[("one", ""), ("other", "")], &keys).await;
    for n in 0..3 {
        assert_eq!(gateway.ask(&by("one", &format!("Fails{n}"))).await.status, 500);
    }
    assert_eq!(gateway.metric("circuit_state", &["main"]).await, 2.0);
    upstream.set(|seen| if seen.text().contains("Fails0") { Plan::json(500, "{}") } else { Plan::page(PAGE) });
    poll("the probe of the one that still fails", || async {
        (gateway.ask(&by("one", "Fails0")).await.status == 500).then_some(())
    })
    .await;
    gateway.ask(&by("other", "Works")).await.assert_page(PAGE, "miss");
}

#[tokio::test]
async fn one_teams_query_that_always_fails_does_not_open_the_circuit_for_all() {
    let upstream = Upstream::script(|seen| match seen.text().contains("Poison") {
        true => Plan::json(500, r#"{"code":20500,"message":"too heavy","httpStatusCode":500}"#),
        false => Plan::page(PAGE),
    })
    .await;
    let keys = [("circuit.consecutive", "4"), ("circuit.ratio", "0.2"), ("retry.attempts", "1")];
    let (gateway, _folder) = with_teams(&upstream, "rate = '0/s'", &[("bad", ""), ("good", "")], &keys).await;
    for n in 0..40 {
        assert_eq!(gateway.ask(&by("bad", "Poison0")).await.status, 500, "{n}");
        if n % 10 == 9 {
            gateway.ask(&by("good", &format!("Count{n}"))).await.assert_page(PAGE, "miss");
        }
    }
    // Two such queries do not show that the upstream is at fault; three do.
    for n in 0..20 {
        assert_eq!(gateway.ask(&by("bad", &format!("Poison{}", n % 2))).await.status, 500, "{n}");
        if n % 2 == 1 {
            gateway.ask(&by("good", &format!("More{n}"))).await.assert_page(PAGE, "miss");
        }
    }
    assert_eq!(gateway.ask(&by("bad", "Poison2")).await.status, 500);
    gateway.ask(&by("good", "Late")).await.assert_refused(503, "circuit_open");
}

#[tokio::test]
async fn refreshes_that_fail_leave_a_teams_own_share_to_its_queries() {
    let upstream = Upstream::script(|_| Plan::page(PAGE)).await;
    let keys = [
        ("cache.query.fresh", "1ms"),
        ("cache.query.stale_while_revalidate", "1h"),
        ("cache.errors.fresh", "0s"),
        ("retry.attempts", "1"),
    ];
    let (gateway, _folder) = with_teams(&upstream, "rate = '0/s'", &[("panels", "upstream = '3/s'")], &keys).await;
    for panel in 0..3 {
        gateway.ask(&by("panels", &format!("Panel{panel}"))).await.assert_page(PAGE, "miss");
    }
    upstream.set(|seen| match seen.text().contains("Panel") {
        true => Plan::json(400, r#"{"code":20400,"message":"no","httpStatusCode":400}"#),
        false => Plan::page(PAGE),
    });
    let panels = async {
        let mut client = gateway.connect().await;
        loop {
            for panel in 0..3 {
                let answer = client.ask(&by("panels", &format!("Panel{panel}"))).await;
                assert_eq!((answer.status, answer.text().as_str()), (200, PAGE), "{answer:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let queries = async {
        // From here on two of three per second are requested.
        for n in 0..8 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            gateway.ask(&by("panels", &format!("New{n}"))).await.assert_page(PAGE, "miss");
        }
    };
    tokio::select! {
        () = queries => {}
        _ = panels => {}
    }
    let refreshed = upstream.seen().iter().filter(|seen| seen.text().contains("Panel")).count() - 3;
    assert!((1..=15).contains(&refreshed), "{refreshed} refreshes of three panels in four seconds");
}
