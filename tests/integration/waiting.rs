//! Which requests wait for the upstream and which are refused, on real sockets. The unit tests check the arithmetic
//! with paused time.

use crate::support::gateway::{NO_RETRY, with_teams};
use crate::support::*;

fn by(team: &str, n: usize) -> Vec<u8> {
    let headers = format!("Authorization: Bearer token-of-{team}\r\n");
    post_to(QUERY, &headers, &format!(r#"{{"query":{{"measures":["Conversation.Count{n}"]}}}}"#))
}

#[tokio::test]
async fn a_teams_upstream_limit_is_below_the_cache_and_shown_in_headers() {
    let upstream = Upstream::script(|_| Plan::page(PAGE)).await;
    let teams = [("small", "upstream = '2/min'\nrequests = '100/s'"), ("other", "")];
    let (gateway, _folder) = with_teams(&upstream, "rate = '0/s'", &teams, NO_RETRY).await;
    for n in 0..2 {
        gateway.ask(&by("small", n)).await.assert_page(PAGE, "miss");
    }
    let refused = gateway.ask(&by("small", 2)).await;
    refused.assert_refused(429, "team_rate_limit");
    let wait: u32 = refused.header("retry-after").parse().unwrap();
    assert!((25..=30).contains(&wait), "{wait}");
    assert_eq!(refused.header("ratelimit-policy"), "\"requests\";q=100;w=1, \"upstream\";q=2;w=60");
    assert!(refused.header("ratelimit").contains("\"upstream\";r=0;t="), "{}", refused.header("ratelimit"));

    // A hit does not count against it, and another team has its own limit.
    gateway.ask(&by("small", 0)).await.assert_page(PAGE, "hit");
    gateway.ask(&by("other", 2)).await.assert_page(PAGE, "miss");
    gateway.ask(&by("small", 2)).await.assert_page(PAGE, "hit");
    assert_eq!(upstream.count(), 3);
}

#[tokio::test]
async fn the_rate_follows_what_a_429_states() {
    let limited = "Content-Type: application/json\r\nX-RateLimit-Limit: 2\r\nX-RateLimit-Remaining: 0\r\nX-RateLimit-Reset: 1\r\n";
    let upstream = Upstream::script(|_| Plan::with(429, limited, r#"{"code":20429}"#)).await;
    let (gateway, _folder) = with_teams(&upstream, "rate = '50/s'\nburst = 50", &[("one", "")], NO_RETRY).await;
    let now = async || gateway.admin("/status").await.json()["accounts"][0]["rate_now_per_second"].as_f64().unwrap();
    assert_eq!(now().await, 50.0);
    assert_eq!(gateway.ask(&by("one", 0)).await.status, 429);
    let rate = now().await;
    assert!((1.5..=2.0).contains(&rate), "{rate}");
    // There it is rounded, here it is not.
    assert!((gateway.metric("budget_rate_per_second", &["main"]).await - rate).abs() < 0.001);
}

#[tokio::test]
async fn a_fixed_rate_is_not_lowered() {
    let upstream = Upstream::script(|_| Plan::with(429, "Retry-After: 1\r\n", "{}")).await;
    let (gateway, _folder) = with_teams(&upstream, "rate = '50/s'\nadapt = false", &[("one", "")], NO_RETRY).await;
    assert_eq!(gateway.ask(&by("one", 0)).await.status, 429);
    assert_eq!(gateway.metric("budget_rate_per_second", &["main"]).await, 50.0);
}

#[tokio::test]
async fn another_teams_call_is_next_however_many_wait() {
    let upstream = Upstream::script(|_| Plan::page(PAGE)).await;
    let (gateway, _folder) =
        with_teams(&upstream, "rate = '1/s'\nburst = 1", &[("flood", ""), ("quiet", "")], NO_RETRY).await;
    gateway.ask(&by("flood", 0)).await.assert_page(PAGE, "miss");
    let mut waiting = Vec::new();
    for n in 1..=20 {
        let mut client = gateway.connect().await;
        client.send(&by("flood", n)).await;
        waiting.push(client);
    }
    poll("twenty that wait", || async { (gateway.metric("queue_length", &["main"]).await >= 18.0).then_some(()) })
        .await;
    gateway.ask(&by("quiet", 100)).await.assert_page(PAGE, "miss");
    assert!(upstream.count() <= 6, "{} calls went before it", upstream.count());
}

#[tokio::test]
async fn a_client_that_joins_a_queued_call_is_refused_at_once_if_it_comes_too_late() {
    let upstream = Upstream::script(|_| Plan::page(PAGE)).await;
    let (gateway, _folder) = with_teams(&upstream, "rate = '1/min'\nburst = 1", &[("one", "")], NO_RETRY).await;
    gateway.ask(&by("one", 0)).await.assert_page(PAGE, "miss");
    let mut waiting = gateway.connect().await;
    waiting.send(&by("one", 1)).await;
    gateway.metric_reaches("queue_length", &["main"], 1.0).await;
    let headers = "Authorization: Bearer token-of-one\r\nPrefer: wait=5\r\n";
    let same = post_to(QUERY, headers, r#"{"query":{"measures":["Conversation.Count1"]}}"#);
    let begun = tokio::time::Instant::now();
    let refused = gateway.ask(&same).await;
    refused.assert_refused(429, "deadline");
    assert!(begun.elapsed().as_secs() < 4, "{:?}", begun.elapsed());
    let wait: u32 = refused.header("retry-after").parse().unwrap();
    assert!((50..=60).contains(&wait), "{wait}");
}

#[tokio::test]
async fn urgent_calls_are_sent_before_earlier_ones() {
    let asked = [(0, "u=3"), (1, "u=7"), (2, "u=3, i"), (3, "u=0")];
    assert_eq!(order_of(&asked).await, "0321");
}

#[tokio::test]
async fn calls_with_most_waiters_are_sent_before_earlier_ones() {
    let asked = [(0, "u=3"), (1, "u=3"), (2, "u=3"), (3, "u=3"), (3, "u=3"), (2, "u=3"), (3, "u=3")];
    assert_eq!(order_of(&asked).await, "0321");
}

/// The order in which queries are sent that come with these priorities while the first has the only slot.
async fn order_of(asked: &[(usize, &str)]) -> String {
    let gate = Gate::default();
    let held = gate.clone();
    let upstream = Upstream::script(move |_| Plan::page(PAGE).after(&held)).await;
    let (gateway, _folder) = with_teams(&upstream, "rate = '0/s'\nconcurrency = 1", &[("one", "")], NO_RETRY).await;
    let mut clients = Vec::new();
    for (n, priority) in asked {
        let mut client = gateway.connect().await;
        let headers = format!("Authorization: Bearer token-of-one\r\nPriority: {priority}\r\n");
        client.send(&post_to(QUERY, &headers, &format!(r#"{{"query":{{"measures":["Count{n}"]}}}}"#))).await;
        // The first has the only slot; the others wait.
        upstream.arrived(1).await;
        gateway.settle().await;
        clients.push(client);
    }
    gate.open();
    for mut client in clients {
        assert_eq!(client.answer().await.status, 200);
    }
    let number = |seen: &Seen| seen.text().split("Count").nth(1)?.chars().next();
    upstream.seen().iter().filter_map(number).collect()
}
