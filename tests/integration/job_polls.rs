//! Polls of query jobs through the gateway: how few there are, what the answer is when they fail, and clients that wait.

use std::time::Duration;

use tempfile::TempDir;

use crate::jobs::{ACCEPTED, JOBS, RUNNING, accepts};
use crate::support::gateway::{NO_RETRY, with_teams};
use crate::support::*;

#[tokio::test]
async fn a_hundred_clients_poll_one_job_at_the_cost_of_one() {
    let upstream = Upstream::script(|_| Plan::with(200, "Retry-After: 60\r\n", RUNNING)).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let path = format!("{JOBS}/op_1");
    let mut polling = Vec::new();
    for n in 0..100 {
        let wish =
            ["", "Cache-Control: no-cache\r\n", "Cache-Control: no-store\r\n", "Cache-Control: max-age=0\r\n"][n % 4];
        // A status has no parameters, so these make no difference.
        let query = ["", "?x=1", "?_=2", "?pageSize=3", "?pageToken=t"][n % 5];
        let (mut client, request) = (gateway.connect().await, get(&format!("{path}{query}"), wish));
        polling.push(async move {
            for _ in 0..5 {
                let status = client.ask(&request).await;
                let wait: u64 = status.header("retry-after").parse().unwrap();
                assert!(status.status == 200 && (1..=60).contains(&wait), "{status:?}");
            }
        });
    }
    futures_util::future::join_all(polling).await;
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn polls_that_fail_cost_one_call_per_retry_after_and_the_known_status_is_the_answer() {
    let failures = [
        ("503", Plan::with(503, "Retry-After: 60\r\n", "{}"), true),
        ("500", Plan::json(500, "{}"), false),
        ("not JSON", Plan::page("<html>"), false),
        ("reset", Plan::reset(), false),
        ("401", Plan::json(401, "{}"), false),
    ];
    let check = |(name, failure, has_wait): (&'static str, Plan, bool)| async move {
        let upstream = Upstream::script(move |seen| match seen.number {
            1 => Plan::with(200, "Retry-After: 2\r\n", RUNNING),
            _ => failure.clone(),
        })
        .await;
        let gateway = TestConfig::new(upstream.url()).start().await;
        let status = get(&format!("{JOBS}/op_1"), "Cache-Control: no-cache\r\n");
        let begun = tokio::time::Instant::now();
        poll("the second poll fails", || async {
            let known = gateway.ask(&status).await;
            assert_eq!((known.status, known.text().as_str()), (200, RUNNING), "{name}");
            assert!((1..=60).contains(&known.header("retry-after").parse::<u64>().unwrap()), "{name} {known:?}");
            (upstream.count() > 1).then_some(())
        })
        .await;
        let clients = (0..10).map(|_| async {
            let mut client = gateway.connect().await;
            for _ in 0..20 {
                let known = client.ask(&status).await;
                assert_eq!((known.status, known.text().as_str()), (200, RUNNING), "{name}");
            }
        });
        futures_util::future::join_all(clients).await;
        // The next poll waits as long as Twilio says, or else as it said before.
        let most = if has_wait { 2 } else { 1 + usize::try_from(begun.elapsed().as_secs()).unwrap() / 2 };
        assert!(upstream.count() <= most, "{name}: {} polls, at most {most} expected", upstream.count());
    };
    futures_util::future::join_all(failures.map(check)).await;
}

#[tokio::test]
async fn a_wait_outlasts_polls_that_fail() {
    let upstream = Upstream::script(|seen| match seen.number {
        1 => Plan::with(200, "Retry-After: 1\r\n", RUNNING),
        2 => Plan::with(503, "Retry-After: 1\r\n", "{}"),
        _ => Plan::page(r#"{"operationId":"op_1","status":"COMPLETED"}"#),
    })
    .await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let status = gateway.ask(&get(&format!("{JOBS}/op_1"), "Prefer: wait=15\r\n")).await;
    assert_eq!((status.status, status.json()["status"].as_str()), (200, Some("COMPLETED")), "{status:?}");
    assert_eq!(upstream.count(), 3);
}

#[tokio::test]
async fn a_wait_for_a_first_poll_that_is_slow_ends_with_what_the_submission_said() {
    let upstream = Upstream::script(|seen| match seen.target() {
        JOBS => accepts(seen),
        _ => Plan::silence(),
    })
    .await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    assert_eq!(gateway.ask(&post_to(JOBS, "", ASK)).await.status, 202);
    let begun = tokio::time::Instant::now();
    let status = gateway.ask(&get(&format!("{JOBS}/op_1"), "Prefer: wait=1\r\n")).await;
    assert_eq!((status.status, status.detail(), status.header("retry-after")), (200, "stale_error", "1"));
    let job = format!("http://localhost{JOBS}/op_1");
    let expected = ACCEPTED.replace(&format!("https://insights.twilio.com{JOBS}/op_1"), &job);
    assert_eq!(status.text(), expected.replace('}', r#","completedAt":null}"#));
    assert!(status.find("location").is_none() && status.find("etag").is_some(), "{status:?}");
    assert!((1..5).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    let unknown = gateway.ask(&get(&format!("{JOBS}/op_2"), "Prefer: wait=0\r\n")).await;
    // Twilio is not asked for it.
    unknown.assert_refused(429, "deadline");
}

#[tokio::test]
async fn a_wait_of_no_time_is_answered_with_the_known_status_at_once() {
    let upstream = Upstream::script(|seen| match seen.number {
        1 => Plan::with(200, "Retry-After: 1\r\n", RUNNING),
        _ => Plan::silence(),
    })
    .await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let (status, at_once) = (format!("{JOBS}/op_1"), "Prefer: wait=0\r\n");
    gateway.ask(&get(&status, at_once)).await.assert_refused(429, "deadline");
    assert_eq!((gateway.ask(&get(&status, "")).await.text().as_str(), upstream.count()), (RUNNING, 1));
    let mut client = gateway.connect().await;
    let due = tokio::time::Instant::now() + Duration::from_millis(1500);
    // Also when the next poll is due, and while it is on its way.
    while upstream.count() == 1 {
        let begun = tokio::time::Instant::now();
        let known = gateway.ask(&get(&status, at_once)).await;
        assert_eq!((known.status, known.text().as_str()), (200, RUNNING), "{known:?}");
        if begun > due {
            client.send(&get(&status, "Prefer: wait=10\r\n")).await;
            upstream.arrived(2).await;
        }
    }
    let known = gateway.ask(&get(&status, at_once)).await;
    assert_eq!((known.status, known.text().as_str()), (200, RUNNING), "{known:?}");
    assert_eq!(upstream.count(), 2);
}

#[tokio::test]
async fn while_first_polls_fail_the_submission_is_the_status_or_the_failure_says_when_to_ask_again() {
    for (failure, status, reason, is_outage) in [
        (Plan::json(503, r#"{"code":20503}"#), 503, None, true),
        (Plan::reset(), 502, Some("upstream_unreachable"), true),
        (Plan::page("<html>"), 502, Some("upstream_invalid"), false),
        (Plan::json(401, "{}"), 502, Some("upstream_rejected_credentials"), false),
    ] {
        let upstream = Upstream::script(move |seen| match seen.target() {
            JOBS => Plan::with(202, "Retry-After: 40\r\n", ACCEPTED),
            _ => failure.clone(),
        })
        .await;
        let gateway = TestConfig::new(upstream.url()).start().await;
        gateway.ask(&post_to(JOBS, "", ASK)).await;
        let is_failure = |answer: &Answer, most: u64| {
            assert_eq!((answer.status, reason.map(|_| answer.reason()).as_deref()), (status, reason));
            assert!((1..=most).contains(&answer.header("retry-after").parse::<u64>().unwrap()), "{answer:?}");
        };
        for _ in 0..3 {
            // Its submission is not known.
            is_failure(&gateway.ask(&get(&format!("{JOBS}/op_2"), "")).await, 5);
            let known = gateway.ask(&get(&format!("{JOBS}/op_1"), "")).await;
            if !is_outage {
                is_failure(&known, 40);
                continue;
            }
            let told = known.json();
            assert_eq!((known.status, known.detail(), &told["status"]), (200, "stale_error", &"PENDING".into()));
            // Node's SDK shows the current time if it is absent.
            assert!(told.get("completedAt").is_some_and(|end| end.is_null()), "{told}");
            assert!((1..=40).contains(&known.header("retry-after").parse::<u64>().unwrap()), "{known:?}");
        }
        assert_eq!(upstream.count(), 3, "a submission and a poll of each job");
    }
}

#[tokio::test]
async fn a_shutdown_ends_waits_with_the_last_known_status() {
    let upstream = Upstream::script(|seen| match seen.target() {
        JOBS => accepts(seen),
        target if target.ends_with("/op_1") => Plan::with(200, "Retry-After: 60\r\n", RUNNING),
        _ => Plan::silence(),
    })
    .await;
    // Far longer than any test may take.
    let mut gateway = TestConfig::new(upstream.url()).set("server.drain", "1h").start().await;
    let mut clients = Vec::new();
    for (request, status) in [
        (get(&format!("{JOBS}/op_1"), "Prefer: wait=80\r\n"), 200),
        (post_to(QUERY, "Prefer: respond-async, wait=80\r\n", ASK), 202),
    ] {
        let mut client = gateway.connect().await;
        client.send(&request).await;
        clients.push((client, status));
    }
    upstream.arrived(2).await;
    gateway.settle().await;
    gateway.tell_to_stop();
    for (mut client, status) in clients {
        let answer = within(client.answer()).await;
        assert_eq!(answer.status, status, "{answer:?}");
        assert!((1..=60).contains(&answer.header("retry-after").parse::<u64>().unwrap()), "{answer:?}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn results_whose_time_was_over_before_a_restart_are_not_kept_after_it() {
    let status = r#"{"operationId":"op_1","status":"COMPLETED","resultRetentionPeriod":"P7D","completedAt":"2020-01-01T00:00:00Z"}"#;
    let upstream = Upstream::script(move |seen| match seen.target() {
        target if target.ends_with("/Results") => Plan::page(r#"{"items":[],"meta":{"key":"items"}}"#),
        _ => Plan::page(status),
    })
    .await;
    let disk = TempDir::new().unwrap();
    let start =
        async || TestConfig::new(upstream.url()).set("cache.disk.path", disk.path().to_str().unwrap()).start().await;
    let gateway = start().await;
    gateway.ask(&get(&format!("{JOBS}/op_1"), "")).await;
    gateway.stop().await;
    let gateway = start().await;
    for _ in 0..2 {
        let results = gateway.ask(&get(&format!("{JOBS}/op_1/Results"), "")).await;
        assert_eq!((results.status, results.detail()), (200, "miss"));
    }
}

#[tokio::test]
async fn only_teams_that_may_use_jobs_are_told_of_them() {
    let upstream = Upstream::script(|_| Plan::silence()).await;
    let teams = [("may", ""), ("may-not", "operations = ['metadata', 'query']")];
    let keys = [("upstream.attempt_timeout", "1s"), NO_RETRY[0]];
    let (gateway, _folder) = with_teams(&upstream, "rate = '0/s'", &teams, &keys).await;
    // With the last of them Twilio is not asked.
    for (wish, status, reason) in [
        ("", 504, "upstream_timeout"),
        ("Cache-Control: no-store\r\n", 504, "upstream_timeout"),
        ("Prefer: wait=0\r\n", 429, "deadline"),
    ] {
        let mut clients = Vec::new();
        // The first of them makes the call for both.
        for team in ["may", "may-not", "may"] {
            let mut client = gateway.connect().await;
            client.send(&post_to(QUERY, &format!("{wish}Authorization: Bearer token-of-{team}\r\n"), ASK)).await;
            clients.push((client, team == "may"));
        }
        for (mut client, is_told) in clients {
            let late = client.answer().await;
            late.assert_refused(status, reason);
            assert_eq!(late.text().contains("respond-async"), is_told, "{wish} {}", late.text());
        }
    }
    // Neither is told of them where no job would help.
    let of = "Prefer: wait=0\r\nAuthorization: Bearer token-of-may\r\n";
    let late = gateway.ask(&get(METADATA, of)).await;
    assert!(late.status == 429 && !late.text().contains("respond-async"), "{late:?}");
}
