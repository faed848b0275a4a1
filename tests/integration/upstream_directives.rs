//! The cache directives of the upstream (RFC 9111) are followed, and passed on.

use std::time::{Duration, SystemTime};

use httpdate::fmt_http_date;

use crate::support::*;

#[allow(clippy::disallowed_methods, reason = "an HTTP date needs the wall clock, and this is not the gateway's code")]
fn now() -> SystemTime {
    SystemTime::now()
}

async fn saying(headers: &str) -> Upstream {
    let headers = format!("Content-Type: application/json\r\n{headers}");
    Upstream::script(move |_| Plan::with(200, &headers, PAGE)).await
}

#[tokio::test]
async fn directives_against_storing_are_followed_and_reach_the_client() {
    for (headers, expected) in [
        ("Cache-Control: no-store\r\n", "no-store"),
        ("Cache-Control: No-Cache\r\n", "No-Cache"),
        ("Cache-Control: no-cache=\"x-a, x-b\"\r\n", "no-cache=\"x-a, x-b\""),
        ("Cache-Control: private, max-age=60\r\n", "private, max-age=60"),
        ("Cache-Control: max-age=60\r\nCache-Control: no-store\r\n", "max-age=60, no-store"),
        ("Cache-Control: x=\"a, b\", no-store\r\n", "x=\"a, b\", no-store"),
        ("Cache-Control: max-age=0, must-revalidate\r\n", "max-age=0, must-revalidate"),
        ("Vary: *\r\n", ""),
        ("Vary: accept\r\nVary: cookie, *\r\n", ""),
        ("Cache-Control: must-revalidate\r\nExpires: 0\r\n", "must-revalidate, max-age=0"),
    ] {
        let upstream = saying(headers).await;
        let gateway = TestConfig::new(upstream.url()).start().await;
        for request in [post(ASK), get(METADATA, ""), get(&format!("{QUERY}?pageToken=a"), "")] {
            for _ in 0..2 {
                let answer = gateway.ask(&request).await;
                answer.assert_page(PAGE, "miss");
                assert!(!answer.has_note("stored"), "{headers}");
                assert_eq!(answer.find("cache-control").unwrap_or_default(), expected, "{headers}");
            }
        }
        let bypass = gateway.ask(&post_to(QUERY, "Cache-Control: no-store\r\n", ASK)).await;
        assert_eq!(bypass.find("cache-control").unwrap_or_default(), expected, "{headers}");
        let only = gateway.ask(&post_to(QUERY, "Cache-Control: only-if-cached\r\n", ASK)).await;
        only.assert_refused(504, "only_if_cached");
    }
}

#[tokio::test]
async fn what_must_be_revalidated_is_never_served_stale() {
    for directive in ["must-revalidate", "proxy-revalidate", "s-maxage=60", "max-age=60,Must-Revalidate"] {
        let upstream = saying(&format!("Cache-Control: {directive}\r\n")).await;
        let gateway = TestConfig::new(upstream.url())
            .set("cache.query.fresh", "300ms")
            .set("cache.query.stale_while_revalidate", "1h")
            .set("cache.query.stale_if_error", "1h")
            .set("retry.attempts", "1")
            .start()
            .await;
        gateway.ask(&post(ASK)).await.assert_page(PAGE, "miss");
        let hit = gateway.ask(&post(ASK)).await;
        if hit.detail() == "hit" {
            assert_eq!(hit.header("cache-control"), directive);
        }
        upstream.set(|_| Plan::json(503, "{}"));
        for wish in ["", "Cache-Control: max-stale\r\n"] {
            poll("its end", || async {
                let answer = gateway.ask(&post_to(QUERY, wish, ASK)).await;
                assert!(!matches!(answer.detail(), "stale" | "stale_error"), "{directive}: {answer:?}");
                (answer.status == 503).then_some(())
            })
            .await;
        }
    }
}

#[tokio::test]
async fn expires_shortens_as_max_age_does() {
    let now = now();
    let dated =
        format!("Date: {}\r\nExpires: {}\r\n", fmt_http_date(now), fmt_http_date(now + Duration::from_secs(30)));
    for expires in [dated, "Cache-Control: max-age=30\r\n".to_owned()] {
        let upstream = saying(&expires).await;
        let gateway = TestConfig::new(upstream.url()).set("cache.query.fresh", "1h").start().await;
        let miss = gateway.ask(&post(ASK)).await;
        assert_eq!(miss.header("cache-control"), "max-age=30", "in a form that needs no clock");
        let hit = gateway.ask(&post(ASK)).await;
        assert_eq!((hit.detail(), hit.find("expires"), hit.header("cache-control")), ("hit", None, "max-age=30"));
        let ttl: i64 =
            hit.header("cache-status").split("ttl=").nth(1).unwrap().split(';').next().unwrap().parse().unwrap();
        assert!(ttl <= 30, "{hit:?}");
    }
}

#[tokio::test]
async fn the_age_of_a_response_counts_and_is_passed_on() {
    let upstream = saying("Age: 100\r\nCache-Control: max-age=1000\r\n").await;
    let gateway = TestConfig::new(upstream.url()).set("cache.query.fresh", "130s").start().await;
    let miss = gateway.ask(&post(ASK)).await;
    miss.assert_page(PAGE, "miss");
    // With the time that the call took (RFC 9111 section 4.2.3), rounded up.
    assert!(miss.header("age").parse::<u64>().is_ok_and(|age| (101..110).contains(&age)), "{miss:?}");
    let hit = gateway.ask(&post(ASK)).await;
    let age: u64 = hit.header("age").parse().unwrap();
    assert!(hit.detail() == "hit" && (100..130).contains(&age), "{hit:?}");
    gateway.ask(&post_to(QUERY, "Cache-Control: max-age=99\r\n", ASK)).await.assert_page(PAGE, "miss");
    // Older than all configured windows when it arrives.
    let old = saying("Age: 100000\r\n").await;
    let gateway = TestConfig::new(old.url()).start().await;
    assert!(!gateway.ask(&post(ASK)).await.has_note("stored"));
}

#[tokio::test]
async fn what_must_not_be_transformed_is_not_compressed() {
    let long = format!("{{\"data\":\"{}\"}}", "x".repeat(4000));
    for (headers, varies) in [("Cache-Control: No-Transform\r\n", false), ("", true)] {
        let (headers, long) = (format!("Content-Type: application/json\r\n{headers}"), long.clone());
        let upstream = Upstream::script(move |_| Plan::with(200, &headers, &long)).await;
        let gateway = TestConfig::new(upstream.url()).start().await;
        let ask = async || gateway.ask(&post_to(QUERY, "Accept-Encoding: gzip\r\n", ASK)).await;
        assert_eq!(ask().await.find("vary").is_some(), varies);
        if varies {
            poll("the compressed page", || async { ask().await.find("content-encoding").map(drop) }).await;
        } else {
            assert!(ask().await.find("content-encoding").is_none());
            gateway.settle().await;
            assert!(ask().await.find("content-encoding").is_none());
        }
    }
}

#[tokio::test]
async fn a_list_in_several_header_lines_is_one_list() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let tag = gateway.ask(&post(ASK)).await.header("etag").to_owned();
    for lines in [
        format!("If-None-Match: \"other\"\r\nIf-None-Match: {tag}\r\n"),
        format!("If-None-Match: {tag}\r\nIf-None-Match: \"other\"\r\n"),
        format!("If-None-Match: \"a\", \"b\"\r\nIf-None-Match: \"c\"\r\nIf-None-Match: W/{tag}\r\n"),
    ] {
        assert_eq!(gateway.ask(&post_to(QUERY, &lines, ASK)).await.status, 304, "{lines}");
        assert_eq!(gateway.ask(&post_to(QUERY, &lines.replace(&tag, "\"z\""), ASK)).await.status, 200, "{lines}");
    }
    let directives = "Cache-Control: max-age=60\r\nCache-Control: no-cache\r\n";
    gateway.ask(&post_to(QUERY, directives, ASK)).await.assert_page(PAGE, "miss");
    let directives = "Cache-Control: max-age=60\r\nCache-Control: x=\"no-cache, no-store\"\r\n";
    gateway.ask(&post_to(QUERY, directives, ASK)).await.assert_page(PAGE, "hit");
}

#[tokio::test]
async fn a_page_larger_than_the_cache_is_not_kept_and_costs_no_other() {
    let huge = format!("{{\"data\":\"{}\"}}", "x".repeat(1 << 20));
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).set("cache.capacity", "1MiB").start().await;
    gateway.ask(&get(METADATA, "")).await.assert_page(PAGE, "miss");
    let large = huge.clone();
    upstream.set(move |_| Plan::page(&large));
    for _ in 0..2 {
        let answer = gateway.ask(&post(ASK)).await;
        answer.assert_page(&huge, "miss");
        assert!(!answer.has_note("stored"));
    }
    gateway.ask(&get(METADATA, "")).await.assert_page(PAGE, "hit");
    assert_eq!(gateway.metric("cache_entries", &[]).await, 1.0);
}

#[tokio::test]
async fn an_answer_is_at_least_as_old_as_its_date_says() {
    let dated = format!("Date: {}\r\n", fmt_http_date(now() - Duration::from_secs(100)));
    let upstream = saying(&dated).await;
    let gateway = TestConfig::new(upstream.url()).set("cache.query.fresh", "130s").start().await;
    let age = |answer: &Answer| answer.header("age").parse::<u64>().is_ok_and(|age| (100..130).contains(&age));
    let miss = gateway.ask(&post(ASK)).await;
    assert!(miss.detail() == "miss" && age(&miss), "{miss:?}");
    let hit = gateway.ask(&post(ASK)).await;
    assert!(hit.detail() == "hit" && age(&hit), "{hit:?}");
    gateway.ask(&post_to(QUERY, "Cache-Control: max-age=99\r\n", ASK)).await.assert_page(PAGE, "miss");
}
