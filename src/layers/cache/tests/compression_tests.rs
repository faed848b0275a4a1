//! Gzip bodies of stored responses.

use super::*;

/// A page that is worth compressing.
static LARGE: &str = match str::from_utf8(&[b'1'; 4096]) {
    Ok(text) => text,
    Err(_) => "",
};

fn accepting_gzip() -> ClientQuery {
    ClientQuery { directives: RequestDirectives { gzip: true, ..RequestDirectives::default() }, ..call("q") }
}

/// A cache with one large page, and that page's entry.
async fn with_large_page(cache: &Cache) -> Arc<Entry> {
    ask(cache, call("q")).await.unwrap();
    cache.layer.store.page(call("q").key()).unwrap()
}

#[tokio::test]
async fn one_compression_serves_all_later_responses() {
    let cache = cache(&Upstream::new(&[Next::Page(LARGE)]));
    let entry = with_large_page(&cache).await;
    let (_, plain) = cache.layer.store.size();
    // A client that does not accept gzip starts no compression.
    ask(&cache, call("q")).await.unwrap();
    assert!(!entry.compression.gzip.has_begun());
    assert!(ask(&cache, accepting_gzip()).await.unwrap().coded.is_none());
    assert!(entry.compression.gzip.has_begun());
    // The weight is updated last.
    while cache.layer.store.size().1 == plain {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let first = ask(&cache, accepting_gzip()).await.unwrap().coded.unwrap();
    let second = ask(&cache, accepting_gzip()).await.unwrap().coded.unwrap();
    assert_eq!(first.as_ptr(), second.as_ptr());
    assert!(ask(&cache, call("q")).await.unwrap().coded.is_none());
    // Its weight includes the gzip body, and it is still the entry that counts hits.
    assert!(Arc::ptr_eq(&entry, &cache.layer.store.page(call("q").key()).unwrap()));
    let coded = entry.compression.gzip.get().unwrap();
    assert_eq!(cache.layer.store.size().1, plain + coded.weight() as u64);
}

#[tokio::test]
async fn a_page_removed_during_compression_does_not_come_back() {
    let cache = cache(&Upstream::new(&[Next::Page(LARGE), Next::Page("2")]));
    let (entry, store) = (with_large_page(&cache).await, &cache.layer.store);
    let (key, now) = (*call("q").key(), cache.layer.clock.moment());
    purge(&cache, &Purge::All);
    store.add_coded(key, &entry, entry.stored.representation.gzip(), now);
    assert!(store.page(&key).is_none() && entry.compression.gzip.get().is_none());
    // It does not replace the page that came after it either.
    ask(&cache, call("q")).await.unwrap();
    store.add_coded(key, &entry, entry.stored.representation.gzip(), now);
    assert_eq!(&store.page(&key).unwrap().stored.representation.body[..], b"2");
}

#[tokio::test]
async fn compression_does_not_extend_a_pages_lifetime() {
    let cache = cache(&Upstream::new(&[Next::Page(LARGE)]));
    let (entry, store) = (with_large_page(&cache).await, &cache.layer.store);
    let usable = entry.stored.lifetimes.usable();
    let deadline = || entry.usable();
    assert_eq!(deadline(), usable);
    store.add_coded(*call("q").key(), &entry, entry.stored.representation.gzip(), entry.stored.made.after(100 * S));
    assert_eq!(deadline(), usable - 100 * S);
}

#[tokio::test]
async fn a_body_that_does_not_shrink_stays_plain() {
    let mut noise = blake3::Hasher::new().update(b"noise").finalize_xof();
    let mut body = vec![0; 4096];
    noise.fill(&mut body);
    let answer = |body: Vec<u8>| UpstreamResponse {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        body: body.into(),
        next_token: None,
    };
    let page = Representation::new(answer(body), &[]);
    assert!(page.may_be_coded() && page.gzip().is_none());
    assert!(Representation::new(answer(vec![b'x'; 4096]), &[]).gzip().is_some());
}
