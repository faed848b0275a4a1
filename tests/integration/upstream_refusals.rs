//! Twilio's own errors: which are passed on, which are tried again, and how long a 429 pauses the account.

use std::time::{Duration, SystemTime};

use super::upstream_faults::gateway;
use crate::support::faults::{HEALED, ends_as_documented, fault};
use crate::support::*;
use tokio::time::Instant;

#[tokio::test]
async fn twilios_own_errors_pass_unchanged_and_are_retried_by_their_status() {
    let body = |status: u16| {
        format!(r#"{{"code":{},"message":"Twilio says so","httpStatusCode":{status}}}"#, 20000 + u32::from(status))
    };
    for (status, tries) in [(400, 1), (404, 1), (409, 1), (422, 1), (500, 2), (501, 1), (502, 4), (503, 4), (504, 4)] {
        let upstream = Upstream::script(move |_| Plan::json(status, &body(status))).await;
        let gateway = gateway(&upstream).await;
        let answer = gateway.ask(&post(ASK)).await;
        assert_eq!((answer.status, answer.text()), (status, body(status)));
        assert_eq!(upstream.count(), tries, "{status}");
        assert_eq!(answer.find("etag"), None);
        if status == 503 {
            assert!(answer.header("retry-after").parse::<u32>().unwrap() >= 1);
        }
        let label = format!("status=\"{status}\"");
        assert_eq!(gateway.metric("upstream_attempts_total", &[&label]).await, tries as f64, "{status}");
        upstream.heal(HEALED);
        let next = gateway.ask(&post(ASK)).await;
        // Only Twilio's 400s and 404s are stored, for a short time.
        let expected = if matches!(status, 400 | 404) { (status, "hit") } else { (200, "miss") };
        assert_eq!((next.status, next.detail()), expected, "{status}");
    }
}

#[tokio::test]
async fn rejected_credentials_are_the_gateways_fault_and_readyz_names_the_account() {
    for status in [401, 403] {
        let upstream =
            Upstream::script(move |_| Plan::json(status, r#"{"code":20003,"message":"Authenticate"}"#)).await;
        let gateway = gateway(&upstream).await;
        assert_eq!(gateway.admin("/readyz").await.status, 200);
        let answer = gateway.ask(&post(ASK)).await;
        answer.assert_refused(502, "upstream_rejected_credentials");
        assert_eq!(answer.find("www-authenticate"), None, "or a browser would ask its user for a password");
        assert!(!answer.text().contains("Authenticate"), "{}", answer.text());
        assert_eq!(upstream.count(), 1, "a rejected key is not retried");
        let ready = gateway.admin("/readyz").await;
        assert_eq!(ready.status, 503);
        assert!(
            ready.text().contains("default") && !ready.text().contains(crate::support::gateway::KEY),
            "{}",
            ready.text()
        );
        assert_eq!(gateway.admin("/livez").await.status, 200, "a restart would not help");
        for (exclude, status) in [
            ("?exclude=credentials", 200),
            ("?a=b&exclude=serving&exclude=credentials/default", 200),
            ("?exclude=serving&exclude=credentials/other", 503),
            ("?exclude=", 503),
        ] {
            let ready = gateway.admin(&format!("/readyz{exclude}")).await;
            assert_eq!(ready.status, status, "{exclude}");
            assert!(ready.text().contains("rejected"), "not counted as a failure, but still shown: {}", ready.text());
        }
        upstream.heal(HEALED);
        gateway.ask(&post(ASK)).await.assert_page(HEALED, "miss");
        assert_eq!(gateway.admin("/readyz").await.status, 200);
    }
}

#[tokio::test]
async fn a_429_pauses_the_account_for_as_long_as_it_says() {
    // Dates have whole seconds, so this is a pause of more than one and at most two seconds.
    let date: fn() -> String = || httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + now() + Duration::from_secs(2));
    for (name, value) in [("X-RateLimit-Reset", None), ("Retry-After", None), ("Retry-After", Some(date))] {
        let upstream = Upstream::script(move |seen| match seen.number {
            1 => {
                // The date is made when it is sent, so that a slow machine does not shorten the pause.
                let value = value.map_or_else(|| "1".to_owned(), |date| date());
                Plan::with(429, &format!("Content-Type: application/json\r\n{name}: {value}\r\n"), r#"{"code":20429}"#)
            }
            _ => Plan::page(PAGE),
        })
        .await;
        let gateway = gateway(&upstream).await;
        let begun = Instant::now();
        // Another query of the same account has to wait as well.
        let mut first = gateway.connect().await;
        first.send(&post(ASK)).await;
        upstream.arrived(1).await;
        gateway.metric_reaches("budget_paused_seconds", &["account=\"default\""], 0.1).await;
        let other = gateway.ask(&get(METADATA, "")).await;
        assert_eq!(other.status, 200);
        assert_eq!(first.answer().await.status, 200);
        assert!(begun.elapsed() >= Duration::from_millis(900), "{name}: only {:?}", begun.elapsed());
        assert_eq!(upstream.count(), 3, "{name}: one refusal, one page each");
    }
}

/// The wall clock, which the tests use only for this.
#[allow(clippy::disallowed_methods, reason = "an HTTP date needs the wall clock, and this is not the gateway's code")]
fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap()
}

#[tokio::test]
async fn absurd_pauses_are_bounded_or_ignored() {
    for (headers, ignored) in [
        ("X-RateLimit-Reset: -1\r\n", true),
        ("X-RateLimit-Reset: 0\r\n", true),
        ("X-RateLimit-Reset: 1800000000\r\n", true),
        ("X-RateLimit-Reset: 99999999999999999999999999\r\n", true),
        ("X-RateLimit-Reset: soon\r\n", true),
        ("Retry-After: -1\r\n", true),
        ("Retry-After: NaN\r\n", true),
        ("Retry-After: Thu, 01 Jan 1970 00:00:00 GMT\r\n", true),
        ("Retry-After: Fri, 31 Dec 9999 23:59:59 GMT\r\n", true),
        ("Retry-After: \u{7f}\r\n", true),
        ("", true),
        ("Retry-After: 86400\r\n", false),
        ("X-RateLimit-Reset: 86400\r\nRetry-After: -5\r\n", false),
    ] {
        let upstream = Upstream::script(move |seen| match seen.number {
            1 => Plan::with(429, headers, "{}"),
            _ => Plan::page(PAGE),
        })
        .await;
        let gateway = TestConfig::new(upstream.url()).set("retry.max_pause", "400ms").start().await;
        let begun = Instant::now();
        assert_eq!(gateway.ask(&post(ASK)).await.status, 200, "{headers}");
        assert_eq!(upstream.count(), 2, "{headers}");
        if !ignored {
            assert!(begun.elapsed() >= Duration::from_millis(400), "{headers}: max_pause is paused for");
        }
    }
}

#[tokio::test]
async fn an_unusable_retry_after_is_not_passed_on() {
    for (said, told) in [("soon", "1"), ("-1", "1"), ("1,5", "1"), ("1.5", "2"), ("\u{e9}", "1"), ("9", "9")] {
        let headers = format!("Content-Type: application/json\r\nRetry-After: {said}\r\n");
        let upstream = Upstream::script(move |_| Plan::with(503, &headers, "{}")).await;
        let gateway = TestConfig::new(upstream.url()).set("retry.attempts", "1").start().await;
        let answer = gateway.ask(&post(ASK)).await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, told), "{said}");
    }
}

#[tokio::test]
async fn a_pause_beyond_every_deadline_refuses_at_once_and_says_when_to_come_back() {
    let upstream = Upstream::script(|_| Plan::with(429, "Retry-After: 200\r\n", "{}")).await;
    let gateway = gateway(&upstream).await;
    for request in [post(ASK), post(ASK), get(METADATA, "")] {
        let answer = gateway.ask(&request).await;
        answer.assert_refused(429, "deadline");
        let wait: u32 = answer.header("retry-after").parse().unwrap();
        // Each comes after those that were told to return before it.
        assert!((190..=203).contains(&wait), "{wait}");
    }
    assert_eq!(upstream.count(), 1, "nothing is sent during the pause");
}

#[tokio::test]
async fn a_429_that_stays_is_passed_on_with_its_headers() {
    let headers = "Content-Type: application/json\r\nX-RateLimit-Limit: 5\r\nX-RateLimit-Remaining: 0\r\nX-RateLimit-Reset: 1\r\n";
    let upstream =
        Upstream::script(|_| Plan::with(429, headers, r#"{"code":20429,"message":"Too many requests"}"#)).await;
    let gateway = TestConfig::new(upstream.url()).set("retry.max_pause", "10ms").start().await;
    let answer = gateway.ask(&post(ASK)).await;
    assert_eq!((answer.status, answer.json()["code"].as_u64()), (429, Some(20429)));
    assert_eq!((answer.header("x-ratelimit-limit"), answer.header("retry-after")), ("5", "1"));
    assert_eq!(upstream.count(), 4);
}

#[tokio::test]
async fn a_500_is_tried_again_once_whatever_its_body() {
    let html = Plan::with(500, "Content-Type: text/html\r\n", "<html>500</html>");
    ends_as_documented(vec![fault("HTML 500", html, 2, 502, "upstream_invalid")]).await;
}

#[tokio::test]
async fn rejected_credentials_are_recognised_by_their_status_with_any_body() {
    let mut wrong = Vec::new();
    for (name, headers, body) in [
        ("no body", "", ""),
        ("HTML", "Content-Type: text/html\r\n", "<html>401</html>"),
        ("compressed", "Content-Encoding: gzip\r\n", "{}"),
    ] {
        let upstream = Upstream::script(move |_| Plan::with(401, headers, body)).await;
        let gateway = gateway(&upstream).await;
        let answer = gateway.ask(&post(ASK)).await;
        if let Err(fault) = refusal(&answer, 502, "upstream_rejected_credentials") {
            wrong.push(format!("{name}: {fault}"));
        }
        let ready = gateway.admin("/readyz").await.status;
        if ready != 503 {
            wrong.push(format!("{name}: /readyz is {ready}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_reset_that_is_not_a_number_never_becomes_a_retry_after() {
    for reset in ["soon", "-5", "1.5", "99999999999999999999"] {
        let headers = format!("Content-Type: application/json\r\nX-RateLimit-Reset: {reset}\r\n");
        let upstream = Upstream::script(move |_| Plan::with(429, &headers, "{}")).await;
        let gateway = gateway(&upstream).await;
        let answer = gateway.ask(&post(ASK)).await;
        assert_eq!(answer.status, 429);
        let wait = answer.header("retry-after");
        let sound = wait.parse::<u32>().is_ok_and(|wait| (1..=31_622_400).contains(&wait));
        assert!(sound, "X-RateLimit-Reset: {reset} became Retry-After: {wait}");
    }
}
