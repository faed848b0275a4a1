//! What is stored, and what is not.

use super::*;

#[tokio::test(start_paused = true)]
async fn responses_that_may_not_be_stored_are_not() {
    let kept_not = [Next::NoStore("x"), Next::Status(500), Next::Status(429), Next::Status(422)];
    let script: Vec<_> = kept_not.iter().cloned().chain([Next::Page("1")]).collect();
    let upstream = Upstream::new(&script);
    let cache = cache(&upstream);
    for _ in kept_not {
        let reply = ask(&cache, call("q")).await.unwrap();
        assert_eq!(reply.outcome, Outcome::Miss);
        assert!(!reply.cache_status.to_str().unwrap().contains("stored"));
    }
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Miss, "1", None));
}

#[tokio::test(start_paused = true)]
async fn twilios_refusals_are_stored_for_a_short_time() {
    let upstream = Upstream::new(&[Next::Status(400), Next::Status(404)]);
    let cache = cache(&upstream);
    assert_eq!(ask(&cache, call("q")).await.unwrap().page.status, 400);
    advance(10 * S).await;
    let again = ask(&cache, call("q")).await.unwrap();
    assert_eq!((again.page.status.as_u16(), again.outcome), (400, Outcome::Hit));
    advance(S).await;
    assert_eq!(ask(&cache, call("q")).await.unwrap().page.status, 404);
}

#[tokio::test]
async fn the_newest_pages_stay_within_the_capacity() {
    let capacity = 256 * 1024;
    let (store, clock) = (Store::new(capacity, &Metrics::new()), Clock::new());
    let keep = |n: u32| {
        let page = Representation::new(
            UpstreamResponse {
                status: StatusCode::OK,
                headers: HeaderMap::new(),
                body: vec![b'x'; 16 * 1024].into(),
                next_token: None,
            },
            &[],
        );
        let call = ClientQuery::example(Operation::Query, &n.to_string(), "");
        let key = *call.key();
        let stored = StoredResponse {
            representation: Arc::new(page),
            account: AccountId::example(),
            operation: Operation::Query,
            made: clock.moment(),
            lifetimes: POLICY.query,
            place: key,
            result_set: None,
            next: None,
            settled: None,
        };
        let entry = Entry::new(&key, stored, clock.now(), clock.now(), Duration::ZERO);
        let (lease, _) = store.flights.claim_refresh((key, Kind::Any), Flown::of(&call, None)).unwrap();
        assert!(store.insert(key, entry, &lease, |_| true));
        key
    };
    for n in 0..1000 {
        let key = keep(n);
        // Also before moka is asked to evict. One page more may be there, because it is inserted before another is
        // evicted.
        let held: u64 = store.entries(None, usize::MAX, clock.moment()).iter().map(|page| page.bytes).sum();
        assert!(held <= capacity + 18 * 1024, "{held} bytes after page {n}");
        let (_, bytes) = store.size();
        assert!(bytes <= capacity);
        assert!(store.page(&key).is_some(), "page {n} cost a token and was not stored");
    }
    assert!(store.size().0 >= 14);
}

#[tokio::test(start_paused = true)]
async fn settled_queries_are_kept_longer_once_the_metadata_proves_them() {
    const METADATA: &str = r#"{"cubes":[{"dimensions":[{"name":"C.Created","type":"time"}]}]}"#;
    const QUERY: &str = r#"{"query":{"filters":[{"op":"AND","expressions":[{"op":"LT","field":"C.Created","values":["2001-01-01"]}]}]}}"#;
    let script = [Next::Page("open"), Next::Page(METADATA), Next::Page("settled>b"), Next::Page("2")];
    let upstream = Upstream::new(&script);
    let cache = cache(&upstream);
    ask(&cache, call(QUERY)).await.unwrap();
    let metadata = ClientQuery::example(Operation::Metadata, "", "");
    ask(&cache, metadata).await.unwrap();
    let forced = ClientQuery {
        directives: RequestDirectives {
            cache: CacheDirectives { no_cache: true, ..CacheDirectives::default() },
            ..RequestDirectives::default()
        },
        ..call(QUERY)
    };
    ask(&cache, forced).await.unwrap();
    ask(&cache, page("b")).await.unwrap();
    advance(80_000 * S).await;
    assert_eq!(said(ask(&cache, call(QUERY)).await), is(Outcome::Hit, "settled>b", Some(80_000)));
    assert_eq!(said(ask(&cache, page("b")).await), is(Outcome::Hit, "2", Some(80_000)));
    let counted = cache.layer.metrics.encode().unwrap();
    assert!(counted.contains("insights_gateway_cache_settled_total{reason=\"no_metadata\"} 1"), "{counted}");
    assert!(counted.contains("insights_gateway_cache_settled_total{reason=\"settled\"} 1"), "{counted}");
}

#[tokio::test(start_paused = true)]
async fn query_texts_are_kept_and_counted_only_where_the_policy_says_so() {
    const TEXT: &str = r#"{"query":{"measures":["Conversation.Count"]}}"#;
    let kept = async |keep_queries| {
        let cache = cache_with(Policy { keep_queries, ..POLICY }, &Upstream::new(&[Next::Page("1")]));
        ask(&cache, call(TEXT)).await.unwrap();
        cache.layer.store.entries(None, 1, cache.layer.clock.moment()).remove(0)
    };
    let (with, without) = (kept(true).await, kept(false).await);
    assert_eq!((with.query.as_deref(), without.query.as_deref()), (Some(TEXT), None));
    assert_eq!(with.bytes - without.bytes, TEXT.len() as u64);
}

#[tokio::test]
async fn a_page_larger_than_half_the_cache_is_not_kept_and_costs_no_other() {
    static HUGE: [u8; 700_000] = [b'1'; 700_000];
    let upstream = Upstream::new(&[Next::Page("small"), Next::Page(str::from_utf8(&HUGE).unwrap())]);
    let cache = cache(&upstream);
    ask(&cache, call("small")).await.unwrap();
    let reply = ask(&cache, call("huge")).await.unwrap();
    assert!(!reply.cache_status.to_str().unwrap().contains("stored"), "{:?}", reply.cache_status);
    assert_eq!(cache.layer.store.size().0, 1);
    assert_eq!(ask(&cache, call("small")).await.unwrap().outcome, Outcome::Hit);
}

#[tokio::test(start_paused = true)]
async fn entries_are_listed_in_the_order_of_their_keys_without_holding_all() {
    let script: Vec<_> = (0..50).map(|_| Next::Page("x")).collect();
    let upstream = Upstream::new(&script);
    let cache = cache(&upstream);
    let mut keys = Vec::new();
    for n in 0..50 {
        let body: &'static str = Box::leak(format!("q{n}").into_boxed_str());
        ask(&cache, call(body)).await.unwrap();
        keys.push(call(body).key().to_string());
    }
    keys.sort();
    let (mut listed, mut after) = (Vec::new(), None::<String>);
    loop {
        let page = cache.layer.store.entries(after.as_deref(), 7, cache.layer.clock.moment());
        listed.extend(page.iter().map(|view| view.key.to_string()));
        if page.len() < 7 {
            break;
        }
        after = listed.last().cloned();
    }
    assert_eq!(listed, keys);
}

#[tokio::test(start_paused = true)]
async fn a_newer_response_that_may_not_be_stored_removes_the_older_page() {
    static HUGE: [u8; 700_000] = [b'2'; 700_000];
    for next in [Next::NoStore("2"), Next::Page(str::from_utf8(&HUGE).unwrap())] {
        let script = [Next::Page("1"), next.clone(), Next::Page("3"), next, Next::Page("5")];
        let cache = cache(&Upstream::new(&script));
        ask(&cache, call("q")).await.unwrap();
        ask(&cache, forcing(call("q"))).await.unwrap();
        assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Miss, "3", None));
        // Also in the background.
        advance(61 * S).await;
        assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Stale, "3", Some(61)));
        settle().await;
        assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Miss, "5", None));
    }
}
