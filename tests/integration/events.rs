//! `/events` on the admin plane: live events, as server-sent events.

use crate::support::events::{EventStream, Told};
use crate::support::*;
use serde_json::json;

const TOKEN: &str = "igw_admin-token-of-the-tests";

#[tokio::test]
async fn a_stream_has_a_snapshot_and_then_requests() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let mut events = EventStream::open(gateway.admin, "").await;
    assert_eq!(events.status(), 200);
    assert!(events.head.contains("content-type: text/event-stream"), "{}", events.head);
    assert!(events.head.contains("cache-control: no-store"), "{}", events.head);
    let Told::Event(name, snapshot) = events.next().await else { panic!("no event") };
    assert_eq!(name, "snapshot");
    let members = |json: &serde_json::Value| json.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(members(&snapshot), members(&gateway.admin("/status").await.json()));

    for detail in ["miss", "hit"] {
        gateway.ask(&post(ASK)).await.assert_page(PAGE, detail);
        let request = events.event("request").await;
        assert_eq!((&request["outcome"], &request["status"]), (&json!(detail), &json!(200)), "{request}");
        assert_eq!((&request["team"], &request["operation"]), (&json!("local"), &json!("query")), "{request}");
        assert!(request.get("query").is_none() && !request.to_string().contains("Conversation.Count"), "{request}");
    }
    gateway.ask(&get("/nowhere", "")).await.assert_refused(404, "not_found");
    assert_eq!(events.event("request").await["reason"], "not_found");
    let account = events.event("account").await;
    assert_eq!(account["name"], "default");
}

#[tokio::test]
async fn events_contain_queries_only_if_that_is_configured() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).set("admin.show_queries", "true").start().await;
    let mut events = EventStream::open(gateway.admin, "").await;
    events.event("snapshot").await;
    gateway.ask(&post(ASK)).await.assert_page(PAGE, "miss");
    assert_eq!(events.event("request").await["query"], ASK);
}

#[tokio::test]
async fn a_change_of_health_is_an_event() {
    let upstream = Upstream::script(|_| Plan::json(401, "{}")).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let mut events = EventStream::open(gateway.admin, "").await;
    events.event("snapshot").await;
    gateway.ask(&post(ASK)).await.assert_refused(502, "upstream_rejected_credentials");
    let health = events.event("health").await;
    assert_eq!(health["ready"], false, "{health}");
    assert!(health["checks"].to_string().contains("credentials/default"), "{health}");
    let status = gateway.admin("/status").await.json();
    let error = &status["errors"][0];
    assert_eq!((&error["reason"], &error["status"]), (&json!("upstream_rejected_credentials"), &json!(502)));
    assert!(!status.to_string().contains(gateway::SECRET));
}

#[tokio::test]
async fn sixteen_streams_are_served_and_a_closed_one_makes_room_for_another() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let mut open = Vec::new();
    for _ in 0..16 {
        let mut events = EventStream::open(gateway.admin, "").await;
        events.event("snapshot").await;
        open.push(events);
    }
    let refused = gateway.admin("/events").await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, "5"));
    open.pop();
    poll("a free place", || async {
        let mut again = EventStream::open(gateway.admin, "").await;
        (again.status() == 200).then_some(again.event("snapshot").await)
    })
    .await;
}

#[tokio::test]
async fn streams_end_when_the_gateway_drains() {
    let upstream = Upstream::start().await;
    let mut gateway = TestConfig::new(upstream.url()).start().await;
    let mut events = EventStream::open(gateway.admin, "").await;
    events.event("snapshot").await;
    gateway.tell_to_stop();
    assert_eq!(events.event("health").await["ready"], false);
    assert_eq!(within(events.next()).await, Told::End);
    gateway.stop().await;
}

#[tokio::test]
async fn a_stream_needs_the_same_token_as_other_endpoints() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).set("admin.token_sha256", sha256_hex(TOKEN)).start().await;
    assert_eq!(EventStream::open(gateway.admin, "").await.status(), 401);
    assert_eq!(EventStream::open(gateway.admin, "Authorization: Bearer x\r\n").await.status(), 401);
    let right = format!("Authorization: Bearer {TOKEN}\r\n");
    assert_eq!(
        EventStream::open(gateway.admin, &format!("{right}Origin: https://evil.example\r\n")).await.status(),
        403
    );
    let mut events = EventStream::open(gateway.admin, &right).await;
    assert_eq!(events.event("snapshot").await["ready"], true);
    let post = gateway.ask_admin(&post_to("/events", &right, "")).await;
    assert_eq!((post.status, post.header("allow")), (405, "GET, HEAD"));
}

#[tokio::test]
async fn waits_and_calls_are_kept_as_history() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).set("accounts.default.rate", "100/s").start().await;
    gateway.ask(&post(ASK)).await.assert_page(PAGE, "miss");
    let point = poll("a point", || async {
        let status = gateway.admin("/status").await.json();
        let points = status["history"]["points"].as_array().unwrap().clone();
        points.into_iter().find(|point| point["requests"]["miss"] == 1)
    })
    .await;
    assert_eq!(point["accounts"]["default"]["calls"], 1, "{point}");
    assert!(point["p95_ms"]["miss"].is_number() && point["p95_ms"].get("hit").is_none(), "{point}");
}
