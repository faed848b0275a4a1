//! `/_gateway/usage`: what a team has used, for that team only.

use insights_gateway::config::Sources;
use serde_json::json;

use crate::http2;
use crate::support::gateway::{KEY, SECRET, SID, with_teams};
use crate::support::*;

const USAGE: &str = "/_gateway/usage";

fn of(team: &str) -> String {
    format!("Authorization: Bearer token-of-{team}\r\n")
}

async fn usage(gateway: &Gateway, team: &str) -> serde_json::Value {
    let answer = gateway.ask(&get(USAGE, &of(team))).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

#[tokio::test]
async fn a_team_learns_what_it_has_used_and_may_do() {
    let upstream = Upstream::with_metadata().await;
    let narrow = "operations = ['query']\nupstream = '5/s'\npolicy = { deny = ['Conversation.ParticipantId'] }";
    let teams = [("a", "requests = '100/h'"), ("narrow", narrow)];
    let (gateway, _folder) = with_teams(&upstream, "rate = '0/s'", &teams, &[]).await;
    let first = gateway.ask(&post_to(QUERY, &of("a"), ASK)).await;
    let tag = format!("{}If-None-Match: {}\r\n", of("a"), first.header("etag"));
    for (request, status) in [
        (post_to(QUERY, &of("a"), ASK), 200),
        (post_to(QUERY, &of("a"), ASK), 200),
        (post_to(QUERY, &tag, ASK), 304),
        (post_to(QUERY, &of("a"), "nonsense"), 400),
        (post_to(QUERY, &format!("{}Cache-Control: no-store\r\n", of("a")), ASK), 200),
        // Counted for no team.
        (get("/nowhere", &of("a")), 404),
        (post_to(QUERY, "", ASK), 401),
    ] {
        assert_eq!(gateway.ask(&request).await.status, status);
    }
    let mut told = usage(&gateway, "a").await;
    let since = told["since"].take();
    assert!(since.as_str().is_some_and(|since| since.parse::<jiff::Timestamp>().is_ok()), "{since}");
    let expected = json!({
        "team": "a",
        "requests": {"hit": 2, "shared": 0, "stale": 0, "stale_error": 0, "revalidated": 1, "collapsed": 0, "miss": 1, "bypass": 1, "refused": 1, "failed": 0},
        "upstream_attempts": 2,
        "calls_saved": 3,
        "since": null,
        "limits": {"requests": "100/h", "upstream": null, "remaining": 94},
        "operations": ["metadata", "query", "jobs"],
        "restricted": false,
    });
    assert_eq!(told, expected);
    let status = gateway.admin("/status").await.json();
    assert_eq!(status["teams"][0]["asked"], expected["requests"], "operators read the same counts");
    assert_eq!(status["teams"][0]["upstream_attempts"], expected["upstream_attempts"]);
    let before = usage(&gateway, "narrow").await;
    assert_eq!(before["requests"]["hit"], 0);
    assert_eq!((&before["upstream_attempts"], &before["restricted"]), (&json!(0), &json!(true)));
    assert_eq!(before["operations"], json!(["query"]));
    assert_eq!(before["limits"], json!({"requests": null, "upstream": "5/s", "remaining": 5}));
    // One attempt for metadata, which the policy needs, and a hit on another team's page.
    assert_eq!(gateway.ask(&post_to(QUERY, &of("narrow"), ASK)).await.detail(), "hit");
    let after = usage(&gateway, "narrow").await;
    assert_eq!((&after["requests"]["hit"], &after["upstream_attempts"]), (&json!(1), &json!(1)));
    assert!(!after.to_string().contains("Participant"), "{after}");
    assert_eq!(upstream.count(), 3);
}

#[tokio::test]
async fn requests_for_the_usage_are_neither_counted_nor_refused() {
    let upstream = Upstream::start().await;
    let (gateway, _folder) = with_teams(&upstream, "rate = '0/s'", &[("a", "requests = '2/h'")], &[]).await;
    for _ in 0..5 {
        let answer = gateway.ask(&get(USAGE, &of("a"))).await;
        assert_eq!((answer.status, answer.header("ratelimit")), (200, "\"requests\";r=2;t=0"));
        assert_eq!(answer.header("ratelimit-policy"), "\"requests\";q=2;w=3600");
        assert_eq!(answer.json()["limits"]["remaining"], 2);
    }
    for status in [200, 200, 429] {
        assert_eq!(gateway.ask(&post_to(QUERY, &of("a"), ASK)).await.status, status);
    }
    let answer = gateway.ask(&get(USAGE, &of("a"))).await;
    assert_eq!((answer.status, &answer.json()["limits"]["remaining"]), (200, &json!(0)));
    assert_eq!(answer.json()["requests"]["refused"], 1);
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn only_authenticated_clients_get_the_usage() {
    let upstream = Upstream::start().await;
    let cors = [("server.cors", "https://dashboards.example")];
    let (gateway, _folder) = with_teams(&upstream, "", &[("a", "operations = ['fields-read']")], &cors).await;
    let request = |method: &str, headers: &str| {
        format!("{method} {USAGE} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").into_bytes()
    };
    let answer = gateway.ask(&request("GET", &of("a"))).await;
    let shown = ["content-type", "cache-control", "cache-status"].map(|name| answer.header(name));
    assert_eq!(shown, ["application/json", "no-store", "insights-gateway; detail=bypass"]);
    answer.header("x-request-id");
    let head = gateway.ask(&request("HEAD", &of("a"))).await;
    assert_eq!((head.status, head.header("content-length")), (200, answer.header("content-length")));
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let answer = gateway.ask(&request(method, &of("a"))).await;
        answer.assert_refused(405, "method_not_allowed");
        assert_eq!(answer.header("allow"), "GET, HEAD");
    }
    for headers in ["", "Authorization: Bearer token-of-b\r\n"] {
        gateway.ask(&request("GET", headers)).await.assert_refused(401, "unauthenticated");
    }
    for path in ["/_gateway", "/_gateway/usage/", "/_gateway/Usage"] {
        gateway.ask(&get(path, &of("a"))).await.assert_refused(404, "not_found");
    }
    let preflight = "Origin: https://dashboards.example\r\nAccess-Control-Request-Method: GET\r\n";
    let answer = gateway.ask(&request("OPTIONS", preflight)).await;
    assert_eq!((answer.status, answer.header("access-control-allow-methods")), (204, "GET, HEAD"));
    let mut sender = http2::connect(&gateway).await;
    let mut asked = http2::request("GET", &gateway, USAGE, "");
    asked.headers_mut().insert("authorization", "Bearer token-of-a".parse().unwrap());
    assert_eq!(http2::ask(&mut sender, asked).await.json()["team"], "a");
    // Without teams all clients are the same team. Web pages of other sites are refused.
    let open = TestConfig::new(upstream.url()).start().await;
    let told = open.ask(&get(&format!("{USAGE}?x=1"), "")).await.json();
    assert_eq!((&told["team"], &told["limits"]["remaining"]), (&json!("local"), &json!(null)));
    open.ask(&get(USAGE, "Origin: https://evil.example\r\n")).await.assert_refused(403, "origin_not_allowed");
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn what_a_team_has_used_is_kept_over_a_reload() {
    let upstream = Upstream::start().await;
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("gateway.toml");
    let write = |teams: &[&str]| {
        let mut text = format!(
            "[server]\nlisten = ['127.0.0.1:0']\n[admin]\nlisten = '127.0.0.1:0'\n[upstream]\nurl = '{}'\n\
             [accounts.main]\naccount_sid = '{SID}'\napi_key = '{KEY}'\napi_secret = '{SECRET}'\nrate = '0/s'\n",
            upstream.url()
        );
        for team in teams {
            text.push_str(&format!("[teams.{team}]\ntoken_sha256 = '{}'\n", sha256_hex(&format!("token-of-{team}"))));
        }
        let new = path.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, &path).unwrap();
    };
    write(&["a", "b"]);
    let gateway = Gateway::start(Sources::default().with_file(&path)).await;
    assert_eq!(gateway.ask(&post_to(QUERY, &of("b"), ASK)).await.status, 200);
    let before = usage(&gateway, "b").await;
    // The team then has another index.
    write(&["b"]);
    gateway.reload.notify_one();
    gateway.metric_reaches("reloads_total", &["result=\"applied\""], 1.0).await;
    let after = usage(&gateway, "b").await;
    assert_eq!(after["requests"], before["requests"]);
    assert_eq!((&after["requests"]["miss"], &after["upstream_attempts"]), (&json!(1), &json!(1)));
}
