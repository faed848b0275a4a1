//! Responses of Twilio, or of another server in its place, that are not passed on unchanged.

use crate::support::gateway::SECRET;
use crate::support::*;

#[tokio::test]
async fn a_rate_limit_that_repeats_the_secret_pauses_the_account_and_shows_nothing() {
    let in_body = format!(r#"{{"message":"{SECRET}"}}"#);
    let cases = [
        (429, "Retry-After: 30\r\nX-RateLimit-Limit: 5\r\n".to_owned(), in_body.clone(), "upstream_rate_limit"),
        (429, format!("Retry-After: 30\r\nX-RateLimit-Limit: {SECRET}\r\n"), "{}".to_owned(), "upstream_rate_limit"),
        (429, format!("Retry-After: 30\r\nTwilio-Request-Id: {SECRET}\r\n"), "{}".to_owned(), "upstream_rate_limit"),
        (503, "Retry-After: 30\r\n".to_owned(), in_body, "overloaded"),
    ];
    for (status, headers, body, reason) in cases {
        let headers = format!("Content-Type: application/json\r\n{headers}");
        let plan = Plan::with(status, &headers, &body);
        let upstream = Upstream::script(move |_| plan.clone()).await;
        let gateway = TestConfig::new(upstream.url()).set("retry.attempts", "1").start().await;
        let answer = gateway.ask(&post(ASK)).await;
        assert_eq!((answer.status, answer.reason().as_str()), (status, reason), "{answer:?}");
        assert_eq!(answer.header("retry-after"), "30");
        assert!(!format!("{answer:?}{}", answer.text()).contains(SECRET), "{answer:?}");
        assert_eq!(gateway.metric("credential_echoes_total", &["default"]).await, 1.0);
        let paused = gateway.metric("budget_paused_seconds", &["default"]).await;
        assert_eq!(paused > 0.0, status == 429, "{paused}");
    }
}

#[tokio::test]
async fn responses_are_labelled_json_and_must_not_be_sniffed() {
    let upstream = Upstream::script(|_| Plan::with(400, "Content-Type: text/html\r\n", "\"<script>\"")).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    for detail in ["miss", "hit"] {
        let answer = gateway.ask(&post(ASK)).await;
        assert_eq!((answer.status, answer.detail()), (400, detail));
        assert_eq!(answer.header("content-type"), "application/json");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
    }
}
