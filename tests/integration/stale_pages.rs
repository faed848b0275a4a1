//! How old a stored page may be, and what a client that asks for a newer one gets.

use super::sharing::{NEW, OLD};
use crate::support::*;

async fn short_lived(upstream: &Upstream, fresh: &str, revalidate: &str, error: &str) -> Gateway {
    TestConfig::new(upstream.url())
        .set("cache.query.fresh", fresh)
        .set("cache.query.stale_while_revalidate", revalidate)
        .set("cache.query.stale_if_error", error)
        .set("retry.attempts", "1")
        // This test is not about the circuit.
        .set("circuit.ratio", "1.0")
        .start()
        .await
}

#[tokio::test]
async fn a_stale_page_is_served_at_once_while_one_refresh_runs() {
    let upstream = Upstream::script(|_| Plan::page(OLD)).await;
    let gateway = short_lived(&upstream, "200ms", "60s", "60s").await;
    gateway.ask(&post(ASK)).await.assert_page(OLD, "miss");
    let gate = Gate::default();
    let held = Plan::page(NEW).after(&gate);
    upstream.set(move |_| held.clone());
    let stale = poll("the page becomes stale", || async {
        let answer = gateway.ask(&post(ASK)).await;
        assert_eq!(answer.text(), OLD);
        (answer.detail() == "stale").then_some(answer)
    })
    .await;
    assert!(stale.header("cache-status").contains("ttl=-"), "{stale:?}");
    assert!(stale.find("age").is_some());
    upstream.arrived(2).await;
    for _ in 0..10 {
        gateway.ask(&post(ASK)).await.assert_page(OLD, "stale");
    }
    assert_eq!(upstream.count(), 2, "one refresh for all");
    gate.open();
    poll("the new page", || async { (gateway.ask(&post(ASK)).await.text() == NEW).then_some(()) }).await;
}

#[tokio::test]
async fn a_failed_refresh_makes_nothing_fresh_and_removes_no_page() {
    let upstream = Upstream::script(|_| Plan::page(OLD)).await;
    let gateway = short_lived(&upstream, "100ms", "60s", "60s").await;
    gateway.ask(&post(ASK)).await.assert_page(OLD, "miss");
    for failure in [Plan::json(500, "{}"), Plan::json(400, "{}"), Plan::json(404, "{}"), Plan::page("x"), Plan::reset()]
    {
        let before = upstream.count();
        upstream.set(move |_| failure.clone());
        poll("two refreshes that fail", || async {
            let answer = gateway.ask(&post(ASK)).await;
            assert_eq!((answer.status, answer.text().as_str()), (200, OLD));
            (upstream.count() >= before + 2).then_some(())
        })
        .await;
        gateway.ask(&post(ASK)).await.assert_page(OLD, "stale");
    }
    upstream.heal(NEW);
    poll("the new page", || async { (gateway.ask(&post(ASK)).await.text() == NEW).then_some(()) }).await;
}

#[tokio::test]
async fn an_error_is_answered_with_a_stale_page_within_its_window_and_no_further() {
    for failure in [Plan::json(500, "{}"), Plan::json(429, "{}"), Plan::page("x"), Plan::reset()] {
        let upstream = Upstream::script(|_| Plan::page(OLD)).await;
        let gateway = short_lived(&upstream, "50ms", "0s", "400ms").await;
        let begun = tokio::time::Instant::now();
        gateway.ask(&post(ASK)).await.assert_page(OLD, "miss");
        let stored = tokio::time::Instant::now();
        upstream.set(move |_| failure.clone());
        poll("the stale page", || async {
            let answer = gateway.ask(&post(ASK)).await;
            let late = begun.elapsed().as_millis() > 450;
            assert!(late || answer.text() == OLD, "{answer:?}");
            (late || answer.detail() == "stale_error").then_some(())
        })
        .await;
        poll("the window's end", || async {
            let asked = stored.elapsed();
            let answer = gateway.ask(&post(ASK)).await;
            if answer.status == 200 {
                assert!(asked.as_millis() <= 450, "served {asked:?} after it was stored");
            }
            (answer.status != 200).then_some(())
        })
        .await;
        upstream.heal(NEW);
        gateway.ask(&post(ASK)).await.assert_page(NEW, "miss");
    }
}

#[tokio::test]
async fn a_client_error_of_twilio_is_not_hidden_by_a_stale_page() {
    let upstream = Upstream::script(|_| Plan::page(OLD)).await;
    let gateway = short_lived(&upstream, "50ms", "0s", "60s").await;
    gateway.ask(&post(ASK)).await.assert_page(OLD, "miss");
    for (status, seen) in [(401, 502), (403, 502), (400, 400), (404, 404)] {
        upstream.set(move |_| Plan::json(status, "{}"));
        poll("Twilio's verdict", || async { (gateway.ask(&post(ASK)).await.status == seen).then_some(()) }).await;
    }
}

#[tokio::test]
async fn request_directives_are_followed() {
    let upstream = Upstream::script(|seen| Plan::page(&format!("{{\"n\":{}}}", seen.number))).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let ask = async |wish: &str| gateway.ask(&post_to(QUERY, &format!("Cache-Control: {wish}\r\n"), ASK)).await;
    ask("only-if-cached").await.assert_refused(504, "only_if_cached");
    assert_eq!(upstream.count(), 0);
    // Neither stored nor served from the cache.
    let bypass = ask("no-store").await;
    bypass.assert_page("{\"n\":1}", "bypass");
    assert!(bypass.has_note("fwd=bypass") && !bypass.has_note("stored"));
    ask("only-if-cached").await.assert_refused(504, "only_if_cached");
    let first = ask("max-age=60").await;
    first.assert_page("{\"n\":2}", "miss");
    assert!(first.has_note("fwd=uri-miss") && first.has_note("stored") && first.find("age").is_none());
    let hit = ask("only-if-cached").await;
    hit.assert_page("{\"n\":2}", "hit");
    assert_eq!(hit.header("etag"), first.header("etag"));
    assert!(hit.header("age").parse::<u32>().is_ok_and(|age| age < 20), "{hit:?}");
    // Fetched again; all other clients get the new page next.
    let forced = ask("no-cache").await;
    forced.assert_page("{\"n\":3}", "miss");
    assert!(forced.has_note("fwd=request"));
    ask("max-age=60").await.assert_page("{\"n\":3}", "hit");
    ask("max-age=0").await.assert_page("{\"n\":4}", "miss");
    ask("min-fresh=3600").await.assert_page("{\"n\":5}", "miss");
    ask("no-store").await.assert_page("{\"n\":6}", "bypass");
    ask("only-if-cached").await.assert_page("{\"n\":5}", "hit");
    ask("max-age=nonsense, min-fresh=-1, unknown").await.assert_page("{\"n\":5}", "hit");
    assert_eq!(upstream.count(), 6);
}

#[tokio::test]
async fn a_client_that_has_the_page_gets_304_and_no_body() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    for (method, target, body) in [("GET", METADATA, ""), ("HEAD", METADATA, ""), ("POST", QUERY, ASK)] {
        let request = |headers: &str| {
            let length = body.len();
            format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {length}\r\n\r\n{body}")
                .into_bytes()
        };
        let mut client = gateway.connect().await;
        let tag = client.ask(&request("")).await.header("etag").to_owned();
        for sent in [tag.clone(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".to_owned()] {
            let answer = client.ask(&request(&format!("If-None-Match: {sent}\r\n"))).await;
            assert_eq!((answer.status, answer.detail(), answer.header("etag")), (304, "revalidated", tag.as_str()));
            // RFC 9110 section 8.6: if there is a length, it must be that of the page.
            assert!(answer.find("content-length").is_none_or(|length| length == PAGE.len().to_string()), "{answer:?}");
            assert!(answer.find("x-request-id").is_some());
        }
        // Also for a response with `no-store`.
        let answer = client.ask(&request(&format!("Cache-Control: no-store\r\nIf-None-Match: {tag}\r\n"))).await;
        assert_eq!((answer.status, answer.detail(), answer.header("etag")), (304, "bypass", tag.as_str()));
        // The connection can still be used, so no body followed.
        let answer = client.ask(&request("If-None-Match: \"other\"\r\n")).await;
        assert_eq!((answer.status, answer.detail()), (200, "hit"));
        client.ask(&get("/nowhere", "")).await.assert_refused(404, "not_found");
    }
}

#[tokio::test]
async fn responses_that_twilio_forbids_to_store_are_not_stored() {
    for (control, kept) in [
        ("no-store", false),
        ("private", false),
        ("max-age=0, no-cache", false),
        ("max-age=60", true),
        ("public", true),
    ] {
        let headers = format!("Content-Type: application/json\r\nCache-Control: {control}\r\n");
        let upstream = Upstream::script(move |_| Plan::with(200, &headers, PAGE)).await;
        let gateway = short_lived(&upstream, "60s", "0s", "0s").await;
        let first = gateway.ask(&post(ASK)).await;
        first.assert_page(PAGE, "miss");
        assert_eq!(first.has_note("stored"), kept, "{control}");
        gateway.ask(&post(ASK)).await.assert_page(PAGE, if kept { "hit" } else { "miss" });
    }
}

#[tokio::test]
async fn only_if_cached_never_asks_upstream_with_any_other_directive() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    for directives in [
        "only-if-cached, no-store",
        "only-if-cached, no-cache",
        "only-if-cached, max-age=0",
        "no-store, only-if-cached",
    ] {
        let answer = gateway.ask(&post_to(QUERY, &format!("Cache-Control: {directives}\r\n"), ASK)).await;
        assert_eq!((answer.status, upstream.count()), (504, 0), "{directives}: {answer:?}");
    }
}
