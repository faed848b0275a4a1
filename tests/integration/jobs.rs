//! Query jobs through the gateway: the upstream requests, and the responses to clients.

use crate::support::*;

const JOBS: &str = "/v3/InsightsDomains/Conversations/QueryJobs";
const ACCEPTED: &str = r#"{"operationId":"op_1","status":"PENDING","statusUrl":"https://insights.twilio.com/v3/InsightsDomains/Conversations/QueryJobs/op_1","createdAt":"2026-11-22T10:00:00Z"}"#;
const RUNNING: &str = r#"{"operationId":"op_1","status":"RUNNING","createdAt":"2026-11-22T10:00:00Z"}"#;

/// Accepts jobs as `op_1`, which keeps running.
fn accepts(seen: &Seen) -> Plan {
    match seen.head.starts_with("POST ") {
        true => Plan::with(202, "Location: /x\r\nRetry-After: 5\r\nX-Other: 1\r\n", ACCEPTED),
        false => Plan::with(200, "Retry-After: 7\r\nX-Other: 1\r\n", RUNNING),
    }
}

#[tokio::test]
async fn jobs_go_upstream_by_their_own_paths() {
    let upstream = Upstream::script(accepts).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let submitted = gateway.ask(&post_to(JOBS, "Idempotency-Key: mine\r\nX-Mine: 1\r\n", ASK)).await;
    assert_eq!((submitted.status, submitted.header("retry-after")), (202, "5"));
    assert!(submitted.find("location").is_some() && submitted.find("x-other").is_none());
    let status = gateway.ask(&get(&format!("{JOBS}/op_1"), "Idempotency-Key: mine\r\n")).await;
    assert_eq!((status.status, status.header("retry-after")), (200, "7"));
    gateway.ask(&get(&format!("{JOBS}/op_1/Results?PageSize=3"), "")).await;
    gateway.ask(&get(&format!("{JOBS}?status=RUNNING"), "")).await;
    let seen = upstream.seen();
    let lines: Vec<_> = seen.iter().map(|seen| seen.head.lines().next().unwrap().to_owned()).collect();
    let expected = [
        format!("POST {JOBS} HTTP/1.1"),
        format!("GET {JOBS}/op_1 HTTP/1.1"),
        format!("GET {JOBS}/op_1/Results?pageSize=3 HTTP/1.1"),
        format!("GET {JOBS}?status=RUNNING HTTP/1.1"),
    ];
    assert_eq!(lines, expected);
    assert_eq!((seen[0].header("idempotency-key"), seen[0].header("x-mine")), (Some("mine"), None));
    assert_eq!((seen[0].text().as_str(), seen[1].header("idempotency-key")), (ASK, None));
}

#[tokio::test]
async fn a_head_is_answered_like_its_get() {
    let upstream = Upstream::script(accepts).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let head = String::from_utf8(get(&format!("{JOBS}/op_1"), "")).unwrap().replacen("GET", "HEAD", 1);
    let answer = gateway.ask(head.as_bytes()).await;
    assert_eq!((answer.status, answer.header("retry-after"), answer.body.len()), (200, "7", 0));
    assert!(upstream.seen()[0].head.starts_with("GET "));
}

#[tokio::test]
async fn malformed_ids_are_not_found() {
    let upstream = Upstream::script(accepts).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    for id in ["a.b", "..", "a%2Fb", "a/b", "", &"x".repeat(129)] {
        for path in [format!("{JOBS}/{id}"), format!("{JOBS}/{id}/Results")] {
            gateway.ask(&get(&path, "")).await.assert_refused(404, "not_found");
        }
    }
    gateway.ask(&post_to(&format!("{JOBS}/op_1"), "", ASK)).await.assert_refused(405, "method_not_allowed");
    assert_eq!(upstream.count(), 0);
}
