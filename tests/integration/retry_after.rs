//! `Retry-After` in every form: which requests it delays, for how long, and what a client gets.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use crate::support::*;
use tokio::time::Instant;

/// The date of an upstream whose clock is wrong by this many seconds.
fn date(off: i64) -> String {
    #[allow(
        clippy::disallowed_methods,
        reason = "an HTTP date needs the wall clock, and this is not the gateway's code"
    )]
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(now.checked_add_signed(off).unwrap()))
}

#[tokio::test]
async fn a_fraction_counts_as_a_second_and_a_date_by_the_answers_own_clock() {
    type Headers = fn() -> String;
    let cases: [(Headers, &str); 6] = [
        (|| "Retry-After: 2.5\r\n".to_owned(), "3"),
        (|| "Retry-After: 0.001\r\n".to_owned(), "1"),
        (|| "Retry-After: 17\r\n".to_owned(), "17"),
        (|| format!("Date: {}\r\nRetry-After: {}\r\n", date(7200), date(7207)), "7"),
        (|| format!("Date: {}\r\nRetry-After: {}\r\n", date(-7200), date(-7193)), "7"),
        (|| format!("Date: {}\r\nRetry-After: {}\r\n", date(-9), date(-2)), "7"),
    ];
    for (headers, told) in cases {
        for status in [429, 503] {
            let upstream = Upstream::script(move |_| Plan::with(status, &headers(), "{}")).await;
            let gateway = TestConfig::new(upstream.url()).set("retry.attempts", "1").start().await;
            let answer = gateway.ask(&post(ASK)).await;
            let shown: i64 = answer.header("retry-after").parse().unwrap();
            // Two dates are written one after the other, possibly in different seconds.
            let is_told = (0..=1).contains(&(shown - told.parse::<i64>().unwrap()));
            assert!(answer.status == status && is_told, "{status}, {}: {answer:?}", headers());
            let paused = gateway.metric("budget_paused_seconds", &["default"]).await;
            assert_eq!(paused > 0.0, status == 429, "{paused}");
        }
    }
}

#[tokio::test]
async fn a_503_holds_the_retries_of_its_own_call_back_and_nobody_elses() {
    let html = "Content-Type: text/html\r\nRetry-After: 1\r\n";
    for (name, failure) in [
        ("seconds", Plan::with(503, "Retry-After: 1\r\n", "{}")),
        ("a fraction", Plan::with(503, "Retry-After: 0.7\r\n", "{}")),
        ("HTML", Plan::with(503, html, "<html>busy</html>")),
        ("another failure", Plan::with(502, "Retry-After: 1\r\n", "{}")),
    ] {
        let upstream = Upstream::script(move |seen| match seen.number {
            1 => failure.clone(),
            _ => Plan::page(PAGE),
        })
        .await;
        let gateway = TestConfig::new(upstream.url()).start().await;
        let begun = Instant::now();
        let mut held = gateway.connect().await;
        held.send(&post(ASK)).await;
        upstream.arrived(1).await;
        gateway.ask(&get(METADATA, "")).await.assert_page(PAGE, "miss");
        assert!(begun.elapsed() < Duration::from_millis(900), "{name}: another call waited {:?}", begun.elapsed());
        held.answer().await.assert_page(PAGE, "miss");
        assert!(begun.elapsed() >= Duration::from_secs(1), "{name}: only {:?}", begun.elapsed());
        assert_eq!(gateway.metric("budget_paused_seconds", &["default"]).await, 0.0, "{name}");
    }
}

#[tokio::test]
async fn a_request_does_not_wait_beyond_its_deadline() {
    let upstream = Upstream::script(|_| Plan::with(503, "Retry-After: 30\r\n", "{}")).await;
    let gateway = TestConfig::new(upstream.url()).set("upstream.deadline", "20s").start().await;
    let begun = Instant::now();
    let answer = gateway.ask(&post(ASK)).await;
    assert_eq!((answer.status, answer.header("retry-after"), upstream.count()), (503, "30", 1));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn the_collector_of_traces_gets_nothing_for_as_long_as_it_asks() {
    let came = Arc::new(Mutex::new(Vec::new()));
    let collector = {
        let came = Arc::clone(&came);
        Upstream::script(move |seen| {
            came.lock().unwrap().push(Instant::now());
            match seen.number {
                1 => Plan::with(429, "Retry-After: 2.2\r\n", ""),
                _ => Plan::with(200, "Content-Type: application/x-protobuf\r\n", ""),
            }
        })
        .await
    };
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).set("telemetry.otlp", collector.url()).start().await;
    gateway.ask(&post(ASK)).await.assert_page(PAGE, "miss");
    gateway.metric_reaches("spans_total", &["exported"], 6.0).await;
    let came = came.lock().unwrap().clone();
    assert_eq!(came.len(), 2);
    // The backoff alone would be at most a second.
    assert!(came[1] - came[0] >= Duration::from_secs(3), "{:?}", came[1] - came[0]);
}

#[tokio::test]
async fn a_429_tells_clients_how_long_the_account_is_paused() {
    for (headers, told) in [
        ("Retry-After: 0\r\nX-RateLimit-Reset: 45\r\n", "45"),
        ("Retry-After: 1\r\nX-RateLimit-Reset: 45\r\n", "45"),
        ("X-RateLimit-Reset: 44.5\r\n", "45"),
        ("Retry-After: 1\r\nRetry-After: 45\r\n", "45"),
    ] {
        let upstream = Upstream::script(move |_| Plan::with(429, headers, "{}")).await;
        let gateway = TestConfig::new(upstream.url()).set("retry.attempts", "1").start().await;
        let answer = gateway.ask(&post(ASK)).await;
        assert_eq!((answer.status, answer.header("retry-after")), (429, told), "{headers}");
        assert!(gateway.metric("budget_paused_seconds", &["default"]).await > 40.0, "{headers}");
    }
}
