//! All pages of a result set are from the same time: an old page 2 is never served with a new page 1.

use crate::support::*;

/// `page>token`: the page, and the token of the next one.
fn page(text: &str) -> Plan {
    let (rows, next) = text.split_once('>').map_or((text, "null".to_owned()), |(rows, t)| (rows, format!("\"{t}\"")));
    Plan::page(&format!("{{\"data\":\"{rows}\",\"meta\":{{\"nextToken\":{next}}}}}"))
}

fn rows(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["data"].as_str().unwrap().to_owned()
}

/// An upstream whose pages all have the same token, whatever their rows; each page contains `version`.
async fn versioned(version: &'static str) -> Upstream {
    let upstream = Upstream::start().await;
    set_version(&upstream, version);
    upstream
}

fn set_version(upstream: &Upstream, version: &'static str) {
    upstream.set(move |seen| {
        let target = seen.target().to_owned();
        match target.as_str() {
            target if target.ends_with("pageToken=b") => page(&format!("{version} 2>c")),
            target if target.ends_with("pageToken=c") => page(&format!("{version} 3")),
            _ => page(&format!("{version} 1>b")),
        }
    });
}

fn further(token: &str) -> Vec<u8> {
    get(&format!("{QUERY}?pageToken={token}"), "")
}

fn forced() -> Vec<u8> {
    post_to(QUERY, "Cache-Control: no-cache\r\n", ASK)
}

#[tokio::test]
async fn no_page_of_an_older_set_is_served_beside_a_new_first_page() {
    let upstream = versioned("old").await;
    let gateway = TestConfig::new(upstream.url()).set("retry.attempts", "1").start().await;
    for request in [post(ASK), further("b"), further("c")] {
        gateway.ask(&request).await;
        assert_eq!(gateway.ask(&request).await.detail(), "hit");
    }
    set_version(&upstream, "new");
    assert_eq!(rows(&gateway.ask(&forced()).await), "new 1");
    upstream.set(|_| Plan::json(503, "{}"));
    for token in ["b", "c"] {
        // Not even instead of an error.
        assert_eq!(gateway.ask(&further(token)).await.status, 503, "{token}");
        let answer = gateway.ask(&get(&format!("{QUERY}?pageToken={token}"), "Cache-Control: max-stale\r\n")).await;
        assert_eq!(answer.status, 503, "{token}");
    }
    set_version(&upstream, "new");
    for (token, expected) in [("c", "new 3"), ("b", "new 2"), ("c", "new 3")] {
        assert_eq!(rows(&gateway.ask(&further(token)).await), expected);
    }
    assert_eq!(gateway.ask(&further("b")).await.detail(), "hit");
    assert_eq!(gateway.ask(&further("c")).await.detail(), "hit");
}

#[tokio::test]
async fn a_page_under_way_for_an_older_set_does_not_belong_to_the_new_one() {
    let upstream = versioned("old").await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    gateway.ask(&post(ASK)).await;
    let gate = Gate::default();
    let held = page("old 2").after(&gate);
    upstream.set(move |_| held.clone());
    let mut before = gateway.connect().await;
    before.send(&further("b")).await;
    upstream.arrived(2).await;
    set_version(&upstream, "new");
    assert_eq!(rows(&gateway.ask(&forced()).await), "new 1");
    assert_eq!(rows(&gateway.ask(&further("b")).await), "new 2");
    gate.open();
    assert_eq!(rows(&before.answer().await), "old 2");
    let kept = gateway.ask(&further("b")).await;
    assert_eq!((rows(&kept).as_str(), kept.detail()), ("new 2", "hit"));
}

#[tokio::test]
async fn a_page_that_is_reached_backwards_is_of_the_set_too() {
    let upstream = versioned("old").await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    gateway.ask(&post(ASK)).await;
    upstream.set(|seen| match seen.target() {
        target if target.ends_with("pageToken=b") => {
            Plan::page(r#"{"data":"old 2","meta":{"nextToken":null,"previousToken":"a"}}"#)
        }
        _ => page("old 1>b"),
    });
    gateway.ask(&further("b")).await;
    gateway.ask(&further("a")).await;
    assert_eq!(gateway.ask(&further("a")).await.detail(), "hit");
    set_version(&upstream, "new");
    assert_eq!(rows(&gateway.ask(&forced()).await), "new 1");
    let back = gateway.ask(&further("a")).await;
    assert_eq!((rows(&back).as_str(), back.detail()), ("new 1", "miss"));
}

#[tokio::test]
async fn a_client_can_go_on_reading_an_older_set_with_other_tokens() {
    let upstream = versioned("old").await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    for request in [post(ASK), further("b"), further("c")] {
        gateway.ask(&request).await;
    }
    upstream.set(|_| page("new 1>other"));
    assert_eq!(rows(&gateway.ask(&forced()).await), "new 1");
    for (token, expected) in [("b", "old 2"), ("c", "old 3")] {
        let answer = gateway.ask(&further(token)).await;
        assert_eq!((rows(&answer).as_str(), answer.detail()), (expected, "hit"));
    }
}

#[tokio::test]
async fn a_further_page_belongs_to_its_set_though_others_have_filled_the_cache() {
    let upstream = versioned("old").await;
    let gateway = TestConfig::new(upstream.url()).set("cache.capacity", "1MiB").start().await;
    let first = gateway.ask(&post(ASK)).await;
    let (_, key) = first.header("cache-status").split_once("key=\"").unwrap();
    let key = key.trim_end_matches('"');
    upstream.set(|_| Plan::page(&format!("{{\"data\":\"{}\",\"meta\":{{}}}}", "x".repeat(40_000))));
    for n in 0..60 {
        gateway.ask(&post(&format!("{{\"query\":{{\"measures\":[\"M{n}\"]}}}}"))).await;
    }
    let only = post_to(QUERY, "Cache-Control: only-if-cached\r\n", ASK);
    gateway.ask(&only).await.assert_refused(504, "only_if_cached");
    set_version(&upstream, "old");
    gateway.ask(&further("b")).await;
    assert_eq!(gateway.ask(&further("b")).await.detail(), "hit");
    // When its set ends, it ends too.
    let which = format!("{{\"key\":\"{key}\"}}");
    let length = which.len();
    let purge = format!("POST /cache/purge HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{which}");
    assert_eq!(Client::connect(gateway.admin).await.ask(purge.as_bytes()).await.json()["purged"], 1);
    assert_eq!(gateway.ask(&further("b")).await.detail(), "miss");
}

#[tokio::test]
async fn a_query_that_names_a_page_token_belongs_to_the_set_of_that_token() {
    // Every first page names the same next page, in its current version.
    let upstream = Upstream::script(|seen| {
        let is_further = seen.target().contains("pageToken") || seen.text().contains("pageToken");
        let next = if is_further { "null" } else { "\"next\"" };
        Plan::page(&format!(r#"{{"data":[{}],"meta":{{"nextToken":{next}}}}}"#, seen.number))
    })
    .await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let in_body = r#"{"query":{"measures":["Conversation.Count"]},"pageToken":"next"}"#;
    let further = [post_to(&format!("{QUERY}?pageToken=next"), "", ASK), post(in_body)];
    assert_eq!(gateway.ask(&post(ASK)).await.detail(), "miss");
    for request in &further {
        assert_eq!(gateway.ask(request).await.detail(), "miss");
        assert_eq!(gateway.ask(request).await.detail(), "hit");
    }
    let again = post_to(QUERY, "Cache-Control: no-cache\r\n", ASK);
    assert_eq!(gateway.ask(&again).await.detail(), "miss");
    for request in &further {
        assert_eq!(gateway.ask(request).await.detail(), "miss", "it belonged to the older set");
    }
}
