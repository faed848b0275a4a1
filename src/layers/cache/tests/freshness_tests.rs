//! Ages, refreshes, and stale responses in place of errors.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_page_is_fetched_once_and_ages() {
    let upstream = Upstream::new(&[Next::Page("1")]);
    let cache = cache(&upstream);
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Miss, "1", None));
    advance(42 * S).await;
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "1", Some(42)));
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stale_page_is_served_while_one_refresh_runs() {
    let upstream = Upstream::gated(&[Next::Page("1"), Next::Page("2")]);
    let cache = cache(&upstream);
    upstream.open(1);
    ask(&cache, call("q")).await.unwrap();
    advance(61 * S).await;
    for _ in 0..5 {
        assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Stale, "1", Some(61)));
        settle().await;
    }
    assert_eq!(upstream.calls(), 2);
    upstream.open(1);
    settle().await;
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "2", Some(0)));
}

#[tokio::test(start_paused = true)]
async fn a_failed_refresh_leaves_the_pages_age_and_releases_its_claim() {
    let failures = [Next::Fail(Reason::UpstreamTimeout), Next::Panic, Next::Status(503)];
    let script: Vec<_> = [Next::Page("1")].into_iter().chain(failures).chain([Next::Page("2")]).collect();
    let upstream = Upstream::new(&script);
    let cache = cache(&upstream);
    ask(&cache, call("q")).await.unwrap();
    advance(61 * S).await;
    // The pauses are longer than a failed refresh delays the next one.
    for (failed, age) in (61..76).step_by(5).enumerate() {
        assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Stale, "1", Some(age)));
        settle().await;
        assert_eq!(upstream.calls(), failed + 2);
        advance(5 * S).await;
    }
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Stale, "1", Some(76)));
    settle().await;
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "2", Some(0)));
}

#[tokio::test(start_paused = true)]
async fn staleness_is_bounded() {
    let upstream =
        Upstream::new(&[Next::Page("1"), Next::Fail(Reason::UpstreamTimeout), Next::Fail(Reason::UpstreamTimeout)]);
    let cache = cache(&upstream);
    ask(&cache, call("q")).await.unwrap();
    advance(3660 * S).await;
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::StaleError, "1", Some(3660)));
    advance(S).await;
    assert_eq!(ask(&cache, call("q")).await.unwrap_err(), Reason::UpstreamTimeout);
}

#[tokio::test(start_paused = true)]
async fn a_stale_page_is_served_instead_of_an_error() {
    let failures = [
        Next::Status(429),
        Next::Status(500),
        Next::Status(503),
        Next::Fail(Reason::UpstreamUnreachable),
        Next::Fail(Reason::UpstreamInvalid),
        Next::Fail(Reason::Deadline),
        Next::Fail(Reason::QueueFull),
        Next::Fail(Reason::CircuitOpen),
    ];
    let script: Vec<_> = [Next::Page("1")].into_iter().chain(failures.clone()).collect();
    let upstream = Upstream::new(&script);
    let cache = cache(&upstream);
    ask(&cache, call("q")).await.unwrap();
    advance(1000 * S).await;
    for _ in failures {
        let reply = ask(&cache, call("q")).await.unwrap();
        assert_eq!(reply.outcome, Outcome::StaleError);
        let status = reply.cache_status.to_str().unwrap();
        assert!(status.starts_with("insights-gateway; hit; ttl=-940; detail=stale_error; key=\""), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn bad_credentials_and_twilios_refusals_are_not_hidden_by_a_stale_page() {
    let upstream = Upstream::new(&[
        Next::Page("1"),
        Next::Fail(Reason::UpstreamRejectedCredentials),
        Next::Status(400),
        Next::Page("2"),
    ]);
    let cache = cache(&upstream);
    ask(&cache, call("q")).await.unwrap();
    advance(1000 * S).await;
    assert_eq!(ask(&cache, call("q")).await.unwrap_err(), Reason::UpstreamRejectedCredentials);
    assert_eq!(ask(&cache, call("q")).await.unwrap().page.status, 400);
    // The 400 has not replaced the page, which can still be served on errors.
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Miss, "2", None));
}

#[tokio::test(start_paused = true)]
async fn refreshes_are_spread_unless_a_client_waits() {
    let script: Vec<_> = (0..40).map(|_| Next::Page("x")).collect();
    let upstream = Upstream::new(&script);
    let cache = cache_with(Policy { refresh_jitter: 10 * S, ..POLICY }, &upstream);
    const BODIES: [&str; 20] =
        ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s", "t"];
    for body in BODIES {
        ask(&cache, call(body)).await.unwrap();
    }
    advance(61 * S).await;
    for body in BODIES {
        assert_eq!(ask(&cache, call(body)).await.unwrap().outcome, Outcome::Stale);
    }
    settle().await;
    assert!(upstream.calls() < 30, "all began at once");
    let no_cache = CacheDirectives { no_cache: true, ..CacheDirectives::default() };
    advance(Duration::from_millis(1)).await;
    let begun = Instant::now();
    ask(&cache, wishing(no_cache)).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
    tokio::time::sleep(10 * S).await;
    settle().await;
    assert_eq!(upstream.calls(), 40);
}

#[tokio::test(start_paused = true)]
async fn what_must_be_revalidated_is_never_served_stale() {
    for headers in ["cache-control: must-revalidate", "cache-control: proxy-revalidate", "cache-control: s-maxage=60"] {
        let script =
            [Next::With(headers, "1"), Next::Fail(Reason::UpstreamTimeout), Next::Fail(Reason::UpstreamTimeout)];
        let upstream = Upstream::new(&script);
        let cache = cache(&upstream);
        ask(&cache, call("q")).await.unwrap();
        assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "1", Some(0)));
        advance(61 * S).await;
        let any_age = CacheDirectives { max_stale: Some(Duration::MAX), ..CacheDirectives::default() };
        assert_eq!(ask(&cache, call("q")).await.unwrap_err(), Reason::UpstreamTimeout, "{headers}");
        assert_eq!(ask(&cache, wishing(any_age)).await.unwrap_err(), Reason::UpstreamTimeout, "{headers}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_that_was_purged_meanwhile_is_not_served_on_an_error() {
    let upstream = Upstream::gated(&[Next::Page("1"), Next::Fail(Reason::UpstreamTimeout)]);
    let cache = cache(&upstream);
    upstream.open(1);
    ask(&cache, call("q")).await.unwrap();
    advance(1000 * S).await;
    let asking = tokio::spawn(cache.clone().oneshot(call("q")));
    settle().await;
    assert_eq!(purge(&cache, &Purge::All), 1);
    upstream.open(1);
    assert_eq!(asking.await.unwrap().unwrap_err().reason(), Reason::UpstreamTimeout);
}

#[tokio::test(start_paused = true)]
async fn a_page_that_has_come_since_is_refreshed_at_once() {
    for purged in [false, true] {
        let failures = (0..5).map(|_| Next::Status(503));
        let script = [Next::Page("1")].into_iter().chain(failures).chain([Next::Page("2"), Next::Page("3")]);
        let upstream = Upstream::new(&script.collect::<Vec<_>>());
        let cache = cache(&upstream);
        ask(&cache, call("q")).await.unwrap();
        advance(61 * S).await;
        for failed in 0..5 {
            // Until the pause has passed.
            while upstream.calls() < failed + 2 {
                assert_eq!(ask(&cache, call("q")).await.unwrap().outcome, Outcome::Stale);
                settle().await;
                advance(S).await;
            }
        }
        if purged {
            assert_eq!(purge(&cache, &Purge::All), 1);
        }
        let again = if purged { call("q") } else { forcing(call("q")) };
        assert_eq!(said(ask(&cache, again).await), is(Outcome::Miss, "2", None));
        // Not later than the pause after that many failures of this page would be.
        let failures = cache.layer.refreshes.clone();
        let page = cache.layer.store.page(call("q").key()).unwrap();
        assert!(failures.allows(call("q").key(), page.asked, cache.layer.clock.now()));
        advance(61 * S).await;
        assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Stale, "2", Some(61)));
        settle().await;
        assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "3", Some(0)));
    }
}
