//! Result pages of one query live and end together.

use super::*;

/// The page of a token, requested with a page size.
fn sized_page(token: &str) -> ClientQuery {
    let page = page(token);
    let parameters = format!("pageSize=3&{}", page.canonical.parameters);
    let canonical = CanonicalQuery {
        path: Operation::Page.endpoint().path.into(),
        key: Key::new(&page.team.account, Operation::Page, &parameters, b""),
        expected_as: Some(*page.key()),
        parameters: parameters.into(),
        body: Bytes::new(),
    };
    ClientQuery { canonical: Arc::new(canonical), ..page }
}

#[tokio::test(start_paused = true)]
async fn a_page_requested_with_a_size_belongs_to_the_set_of_its_token() {
    let upstream = Upstream::new(&[
        Next::Page("1>b"),
        Next::Page("2>c"),
        Next::Page("2 of 3>c3"),
        Next::Page("3 of 3"),
        Next::Page("1'>b"),
        Next::Page("2' of 3>c3"),
    ]);
    let cache = cache(&upstream);
    ask(&cache, call("q")).await.unwrap();
    advance(30 * S).await;
    for page in [page("b"), sized_page("b"), page("c3")] {
        assert_eq!(ask(&cache, page).await.unwrap().outcome, Outcome::Miss);
    }
    advance(30 * S).await;
    for call in [call("q"), sized_page("b"), page("c3")] {
        assert_eq!(ask(&cache, call).await.unwrap().outcome, Outcome::Hit);
    }
    advance(S).await;
    for call in [sized_page("b"), page("c3")] {
        assert_eq!(ask(&cache, call).await.unwrap().outcome, Outcome::Stale, "it expires with the first page");
    }
    // The token belongs to a newer set now, and the older set's page must not be served for it.
    let forced = CacheDirectives { no_cache: true, ..CacheDirectives::default() };
    ask(
        &cache,
        ClientQuery { directives: RequestDirectives { cache: forced, ..RequestDirectives::default() }, ..call("q") },
    )
    .await
    .unwrap();
    assert_eq!(said(ask(&cache, sized_page("b")).await), is(Outcome::Miss, "2' of 3>c3", None));
    assert_eq!(said(ask(&cache, sized_page("b")).await), is(Outcome::Hit, "2' of 3>c3", Some(0)));
    cache.layer.store.purge(&Purge::Key(call("q").key().to_string()));
    for key in [*call("q").key(), *page("b").key(), *sized_page("b").key(), *page("c3").key()] {
        assert!(cache.layer.store.page(&key).is_none(), "they are purged with the first page");
    }
}

#[tokio::test(start_paused = true)]
async fn all_pages_of_a_result_set_expire_with_the_first() {
    let upstream = Upstream::new(&[Next::Page("1>b"), Next::Page("2>c"), Next::Page("3"), Next::Page("1'>d")]);
    let cache = cache(&upstream);
    ask(&cache, call("q")).await.unwrap();
    advance(30 * S).await;
    ask(&cache, page("b")).await.unwrap();
    advance(20 * S).await;
    ask(&cache, page("c")).await.unwrap();
    advance(10 * S).await;
    for (call, body, age) in [(call("q"), "1>b", 60), (page("b"), "2>c", 30), (page("c"), "3", 10)] {
        assert_eq!(said(ask(&cache, call).await), is(Outcome::Hit, body, Some(age)));
    }
    advance(S).await;
    // A client can go on reading the old pages; only the first page is fetched again.
    for (call, body, age) in [(page("b"), "2>c", 31), (page("c"), "3", 11), (call("q"), "1>b", 61)] {
        assert_eq!(said(ask(&cache, call).await), is(Outcome::Stale, body, Some(age)));
    }
    settle().await;
    assert_eq!(upstream.calls(), 4);
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "1'>d", Some(0)));
    assert_eq!(said(ask(&cache, page("b")).await), is(Outcome::Stale, "2>c", Some(31)));
    advance(299 * S).await;
    assert_eq!(said(ask(&cache, page("b")).await), is(Outcome::Stale, "2>c", Some(330)));
}

#[tokio::test(start_paused = true)]
async fn a_new_result_set_with_the_old_tokens_does_not_serve_the_old_pages() {
    let script =
        [Next::Page("1>b"), Next::Page("2"), Next::Page("1'>b"), Next::Fail(Reason::UpstreamTimeout), Next::Page("2'")];
    let upstream = Upstream::new(&script);
    let cache = cache(&upstream);
    ask(&cache, call("q")).await.unwrap();
    ask(&cache, page("b")).await.unwrap();
    advance(S).await;
    let no_cache = CacheDirectives { no_cache: true, ..CacheDirectives::default() };
    ask(&cache, wishing(no_cache)).await.unwrap();
    // Not even while the upstream fails, because it would be served together with the new first page.
    assert_eq!(ask(&cache, page("b")).await.unwrap_err(), Reason::UpstreamTimeout);
    assert_eq!(said(ask(&cache, page("b")).await), is(Outcome::Miss, "2'", None));
    assert_eq!(said(ask(&cache, page("b")).await), is(Outcome::Hit, "2'", Some(0)));
}

#[tokio::test(start_paused = true)]
async fn a_page_of_a_possibly_evicted_set_is_not_stored() {
    let script: Vec<_> =
        [Next::Page("1>b"), Next::Page("2")].into_iter().chain((0..400).map(|_| Next::Page("x>y"))).collect();
    let upstream = Upstream::new(&script);
    let cache = cache(&upstream);
    // A token from elsewhere: its set is unknown, so the page is stored while it is fresh, and never served stale.
    ask(&cache, page("elsewhere")).await.unwrap();
    assert_eq!(ask(&cache, page("elsewhere")).await.unwrap().outcome, Outcome::Hit);
    advance(61 * S).await;
    ask(&cache, page("elsewhere")).await.unwrap();
    assert_eq!(upstream.calls(), 2, "not stale");
    for n in 0..300 {
        let body: &'static str = Box::leak(format!("q{n}").into_boxed_str());
        ask(&cache, call(body)).await.unwrap();
    }
    cache.layer.store.size();
    let reply = ask(&cache, page("forgotten")).await.unwrap();
    assert!(!reply.cache_status.to_str().unwrap().contains("stored"));
    assert_eq!(ask(&cache, page("forgotten")).await.unwrap().outcome, Outcome::Miss);
}

#[tokio::test(start_paused = true)]
async fn a_new_first_page_with_the_old_tokens_ends_the_whole_old_set() {
    let script = [
        Next::Page("1>b"),
        Next::Page("2>c"),
        Next::Page("3"),
        Next::Page("1'>b"),
        Next::Fail(Reason::UpstreamTimeout),
        Next::Page("3'"),
    ];
    let upstream = Upstream::new(&script);
    let cache = cache(&upstream);
    for call in [call("q"), page("b"), page("c"), forcing(call("q"))] {
        ask(&cache, call).await.unwrap();
    }
    // No client has fetched the page in between, which would have named it.
    assert_eq!(ask(&cache, page("c")).await.unwrap_err(), Reason::UpstreamTimeout);
    let third = ask(&cache, page("c")).await.unwrap();
    assert!(!third.cache_status.to_str().unwrap().contains("stored"), "of an unknown set");
}

#[tokio::test(start_paused = true)]
async fn a_further_page_asked_for_before_its_set_began_is_not_of_it() {
    let upstream = Upstream::gated(&[Next::Page("1>b"), Next::Page("2 old"), Next::Page("1'>b"), Next::Page("2 new")]);
    let cache = cache(&upstream);
    upstream.open(1);
    ask(&cache, call("q")).await.unwrap();
    let old = tokio::spawn(cache.clone().oneshot(page("b")));
    settle().await;
    // The script answers in the order in which the gate opens, so the old page 2 is taken now and delayed below.
    let forced = tokio::spawn(cache.clone().oneshot(forcing(call("q"))));
    settle().await;
    upstream.open(2);
    assert_eq!(old.await.unwrap().unwrap().page.body, "2 old");
    forced.await.unwrap().unwrap();
    upstream.open(1);
    assert_eq!(said(ask(&cache, page("b")).await), is(Outcome::Miss, "2 new", None));
}

#[tokio::test(start_paused = true)]
async fn a_set_that_may_not_be_kept_ends_the_old_one_with_the_same_tokens() {
    let script = [Next::Page("1>b"), Next::Page("2"), Next::NoStore("1'>b"), Next::Page("2'"), Next::Page("1'>b")];
    let upstream = Upstream::new(&script);
    let cache = cache(&upstream);
    for call in [call("q"), page("b"), forcing(call("q"))] {
        ask(&cache, call).await.unwrap();
    }
    assert_eq!(said(ask(&cache, page("b")).await), is(Outcome::Miss, "2'", None));
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Miss, "1'>b", None));
}

#[tokio::test(start_paused = true)]
async fn a_first_page_with_no_store_ends_the_old_further_pages() {
    for known in [true, false] {
        let first = if known { vec![Next::Page("1>b")] } else { vec![] };
        let script =
            [Next::Page("2"), Next::Page("2 of 3"), Next::Page("1'>b"), Next::Page("2'"), Next::Page("2' of 3")];
        let cache = cache(&Upstream::new(&first.into_iter().chain(script).collect::<Vec<_>>()));
        if known {
            ask(&cache, call("q")).await.unwrap();
        }
        ask(&cache, page("b")).await.unwrap();
        ask(&cache, sized_page("b")).await.unwrap();
        assert_eq!(said(ask(&cache, alone(call("q"))).await), is(Outcome::Bypass, "1'>b", None));
        assert_eq!(said(ask(&cache, page("b")).await), is(Outcome::Miss, "2'", None), "known: {known}");
        assert_eq!(said(ask(&cache, sized_page("b")).await), is(Outcome::Miss, "2' of 3", None), "known: {known}");
    }
}

#[tokio::test(start_paused = true)]
async fn further_pages_of_any_size_are_removed_when_a_first_page_of_another_set_names_them() {
    for known in [true, false] {
        let first = if known { vec![Next::Page("1>b")] } else { vec![] };
        let script =
            [Next::Page("2"), Next::Page("2 of 3"), Next::Page("other>b"), Next::Page("2'"), Next::Page("2' of 3")];
        let cache = cache(&Upstream::new(&first.into_iter().chain(script).collect::<Vec<_>>()));
        if known {
            ask(&cache, call("q")).await.unwrap();
        }
        for call in [page("b"), sized_page("b"), call("p")] {
            ask(&cache, call).await.unwrap();
        }
        assert_eq!(said(ask(&cache, sized_page("b")).await), is(Outcome::Miss, "2'", None), "known: {known}");
        assert_eq!(said(ask(&cache, page("b")).await), is(Outcome::Miss, "2' of 3", None), "known: {known}");
        assert_eq!(ask(&cache, page("b")).await.unwrap().outcome, Outcome::Hit);
        assert_eq!(ask(&cache, sized_page("b")).await.unwrap().outcome, Outcome::Hit);
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_page_that_was_purged_under_way_still_ends_the_old_further_pages() {
    let upstream = Upstream::gated(&[Next::Page("2"), Next::Page("1'>b"), Next::Page("2'")]);
    let cache = cache(&upstream);
    upstream.open(1);
    ask(&cache, page("b")).await.unwrap();
    let under_way = tokio::spawn(cache.clone().oneshot(call("q")));
    settle().await;
    assert_eq!(purge(&cache, &Purge::Operation(Operation::Query)), 0);
    upstream.open(2);
    assert_eq!(under_way.await.unwrap().unwrap().page.body, "1'>b");
    assert_eq!(said(ask(&cache, page("b")).await), is(Outcome::Miss, "2'", None));
}
