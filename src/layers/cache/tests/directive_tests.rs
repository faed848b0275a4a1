//! What a client asks of the cache: `no-cache`, `no-store`, `only-if-cached`, conditions.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_forced_refresh_is_made_once_and_serves_everybody() {
    let upstream = Upstream::gated(&[Next::Page("1"), Next::Page("2")]);
    let cache = cache(&upstream);
    upstream.open(1);
    ask(&cache, call("q")).await.unwrap();
    let no_cache = CacheDirectives { no_cache: true, ..CacheDirectives::default() };
    let forcing: Vec<_> = (0..10).map(|_| tokio::spawn(cache.clone().oneshot(wishing(no_cache)))).collect();
    settle().await;
    // Meanwhile other clients get the stored page.
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "1", Some(0)));
    upstream.open(1);
    for reply in forcing {
        assert_eq!(reply.await.unwrap().unwrap().page.body, "2");
    }
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "2", Some(0)));
    assert_eq!(upstream.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn no_store_touches_nothing() {
    let upstream = Upstream::new(&[Next::Page("1"), Next::Page("2"), Next::Page("3")]);
    let cache = cache(&upstream);
    let no_store = CacheDirectives { no_store: true, ..CacheDirectives::default() };
    assert_eq!(said(ask(&cache, wishing(no_store)).await), is(Outcome::Bypass, "1", None));
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Miss, "2", None));
    assert_eq!(said(ask(&cache, wishing(no_store)).await), is(Outcome::Bypass, "3", None));
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "2", Some(0)));
}

#[tokio::test(start_paused = true)]
async fn only_if_cached_never_goes_upstream() {
    let upstream = Upstream::new(&[Next::Page("1")]);
    let cache = cache(&upstream);
    let only = CacheDirectives { only_if_cached: true, ..CacheDirectives::default() };
    assert_eq!(ask(&cache, wishing(only)).await.unwrap_err(), Reason::OnlyIfCached);
    ask(&cache, call("q")).await.unwrap();
    assert_eq!(said(ask(&cache, wishing(only)).await), is(Outcome::Hit, "1", Some(0)));
    advance(100 * S).await;
    assert_eq!(said(ask(&cache, wishing(only)).await), is(Outcome::Stale, "1", Some(100)));
    settle().await;
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_has_the_page_is_told_so() {
    let upstream = Upstream::new(&[Next::Page("1")]);
    let cache = cache(&upstream);
    let etag = ask(&cache, call("q")).await.unwrap().page.etag.clone();
    let having = |tag| ClientQuery {
        directives: RequestDirectives { if_none_match: tag, ..RequestDirectives::default() },
        ..call("q")
    };
    let reply = ask(&cache, having(etag)).await.unwrap();
    assert_eq!((reply.outcome, reply.not_modified), (Outcome::Revalidated, true));
    let reply = ask(&cache, having(Some(HeaderValue::from_static("\"other\"")))).await.unwrap();
    assert_eq!((reply.outcome, reply.not_modified), (Outcome::Hit, false));
}

#[tokio::test(start_paused = true)]
async fn a_no_store_response_removes_only_pages_that_it_contradicts() {
    let cache = cache(&Upstream::new(&[Next::Page("1>b"), Next::Page("2"), Next::Page("1'>c")]));
    for call in [call("q"), page("b"), alone(call("q"))] {
        ask(&cache, call).await.unwrap();
    }
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "1>b", Some(0)));
    assert_eq!(said(ask(&cache, page("b")).await), is(Outcome::Hit, "2", Some(0)));
}

#[tokio::test(start_paused = true)]
async fn a_no_store_client_that_has_the_page_gets_a_304() {
    let cache = cache(&Upstream::new(&[Next::Page("1"), Next::Page("1"), Next::Page("2")]));
    let etag = ask(&cache, alone(call("q"))).await.unwrap().etag;
    let having = || {
        let mut call = alone(call("q"));
        call.directives.if_none_match = etag.clone();
        call
    };
    let reply = ask(&cache, having()).await.unwrap();
    assert_eq!((reply.outcome, reply.not_modified, &reply.etag), (Outcome::Bypass, true, &etag));
    assert!(!ask(&cache, having()).await.unwrap().not_modified);
}
