//! Purges, and the calls that are in progress at that time.

use super::*;

#[tokio::test(start_paused = true)]
async fn pages_are_purged_by_account_operation_and_key() {
    let upstream = Upstream::new(&[Next::Page("1"), Next::Page("2"), Next::Page("3")]);
    let cache = cache(&upstream);
    let store = cache.layer.store.clone();
    for body in ["a", "b", "c"] {
        ask(&cache, call(body)).await.unwrap();
    }
    assert_eq!(purge(&cache, &Purge::Account(AccountId::other())), 0);
    assert_eq!(purge(&cache, &Purge::Operation(Operation::Metadata)), 0);
    assert_eq!(purge(&cache, &Purge::Key(call("a").key().short().to_string())), 1);
    assert_eq!(store.entries(None, 10, cache.layer.clock.moment()).len(), 2);
    assert_eq!(purge(&cache, &Purge::All), 2);
    assert_eq!(store.size().0, 0);
}

#[tokio::test(start_paused = true)]
async fn pages_of_a_result_set_are_purged_together() {
    let upstream = Upstream::new(&[Next::Page("1>b"), Next::Page("2>c"), Next::Page("other")]);
    let cache = cache(&upstream);
    for call in [call("q"), page("b"), call("p")] {
        ask(&cache, call).await.unwrap();
    }
    let store = cache.layer.store.clone();
    assert_eq!(purge(&cache, &Purge::Key(call("q").key().to_string())), 2);
    let left: Vec<_> = store.entries(None, 10, cache.layer.clock.moment()).iter().map(|view| view.key).collect();
    assert_eq!(left, [*call("p").key()]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_asks_after_a_purge_joins_no_earlier_flight() {
    let key = *call("q").key();
    let account = Purge::Account(AccountId::example());
    let scopes = [
        Purge::All,
        account,
        Purge::Operation(Operation::Query),
        Purge::Key(key.to_string()),
        Purge::Key(key.short().to_string()),
    ];
    for scope in scopes {
        for (first, second) in [(call("q"), call("q")), (forcing(call("q")), forcing(call("q")))] {
            let upstream = Upstream::gated(&[Next::Page("old"), Next::Page("new")]);
            let cache = cache(&upstream);
            let before = tokio::spawn(cache.clone().oneshot(first));
            settle().await;
            assert_eq!(purge(&cache, &scope), 0);
            let after = tokio::spawn(cache.clone().oneshot(second));
            settle().await;
            assert_eq!(upstream.calls(), 2, "{scope:?}");
            upstream.open(2);
            assert_eq!(before.await.unwrap().unwrap().page.body, "old");
            assert_eq!(after.await.unwrap().unwrap().page.body, "new");
            assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "new", Some(0)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_purge_of_something_else_costs_no_call() {
    let upstream = Upstream::gated(&[Next::Page("1")]);
    let cache = cache(&upstream);
    let before = tokio::spawn(cache.clone().oneshot(call("q")));
    settle().await;
    purge(&cache, &Purge::Account(AccountId::other()));
    purge(&cache, &Purge::Operation(Operation::Metadata));
    purge(&cache, &Purge::Key(call("p").key().to_string()));
    let after = tokio::spawn(cache.clone().oneshot(call("q")));
    settle().await;
    upstream.open(1);
    assert_eq!((before.await.unwrap().unwrap().page.body.as_ref(), upstream.calls()), (&b"1"[..], 1));
    assert_eq!(after.await.unwrap().unwrap().outcome, Outcome::Collapsed);
    assert_eq!(ask(&cache, call("q")).await.unwrap().outcome, Outcome::Hit);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_from_before_a_purge_is_not_kept() {
    let upstream = Upstream::gated(&[Next::Page("1"), Next::Page("old"), Next::Page("new")]);
    let cache = cache(&upstream);
    upstream.open(1);
    ask(&cache, call("q")).await.unwrap();
    advance(61 * S).await;
    ask(&cache, call("q")).await.unwrap();
    settle().await;
    assert_eq!(purge(&cache, &Purge::All), 1);
    upstream.open(1);
    settle().await;
    upstream.open(1);
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Miss, "new", None));
}

#[tokio::test(start_paused = true)]
async fn a_further_page_under_way_is_purged_with_its_set() {
    let upstream = Upstream::gated(&[Next::Page("1>b"), Next::Page("old"), Next::Page("new")]);
    let cache = cache(&upstream);
    upstream.open(1);
    ask(&cache, call("q")).await.unwrap();
    let before = tokio::spawn(cache.clone().oneshot(page("b")));
    settle().await;
    assert_eq!(purge(&cache, &Purge::Key(call("q").key().short().to_string())), 1);
    let after = tokio::spawn(cache.clone().oneshot(page("b")));
    settle().await;
    upstream.open(2);
    assert_eq!(before.await.unwrap().unwrap().page.body, "old");
    assert_eq!(after.await.unwrap().unwrap().page.body, "new");
}
