//! The pages of one result set, with different parameters.

use serde_json::json;

use crate::support::*;

async fn purge(gateway: &Gateway, body: &str) -> serde_json::Value {
    let length = body.len();
    let request = format!("POST /cache/purge HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}");
    Client::connect(gateway.admin).await.ask(request.as_bytes()).await.json()
}

#[tokio::test]
async fn one_token_is_one_page_in_every_spelling() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let ask = async |query: &str| gateway.ask(&get(&format!("{QUERY}?{query}"), "")).await;
    assert_eq!(ask("pageToken=a%2Bb%3D").await.detail(), "miss");
    for query in ["PageToken=a+b=", "pageToken=a+b=&PageToken=a%2bb%3d", "page%54oken=a+b%3D", "&PageToken=a%2Bb="] {
        assert_eq!(ask(query).await.detail(), "hit", "{query}");
    }
    assert_eq!(ask("PageToken=a+b=&PageSize=3").await.detail(), "miss");
    assert_eq!(ask("pageSize=3&pageToken=a+b=").await.detail(), "hit");
    let targets: Vec<_> = upstream.seen().iter().map(|seen| seen.target().to_owned()).collect();
    let expected = ["pageToken=a%2Bb%3D", "pageSize=3&pageToken=a%2Bb%3D"].map(|query| format!("{QUERY}?{query}"));
    assert_eq!(targets, expected);
    for query in
        ["pageToken=a&PageToken=b", "pageToken=a&pageToken=b", "pageToken=a&PageToken=", "pageToken&PageToken=a"]
    {
        ask(query).await.assert_refused(400, "bad_request");
        gateway.ask(&post_to(&format!("{QUERY}?{query}"), "", ASK)).await.assert_refused(400, "bad_request");
        let head = format!("HEAD {QUERY}?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(gateway.ask(head.as_bytes()).await.status, 400);
    }
    // Unknown parameters are passed on, and are part of the key.
    assert_eq!(ask("pageToken=a%2Bb%3D&x=1").await.detail(), "miss");
    assert_eq!(upstream.count(), 3);
}

#[tokio::test]
async fn a_page_requested_with_a_size_is_purged_with_its_set() {
    let upstream = Upstream::script(|seen| {
        let next = match seen.target() {
            QUERY => r#""b""#,
            target if target.ends_with("pageSize=3&pageToken=b") => r#""c""#,
            _ => "null",
        };
        Plan::page(&format!(r#"{{"target":{:?},"meta":{{"nextToken":{next}}}}}"#, seen.target()))
    })
    .await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let first = gateway.ask(&post(ASK)).await;
    let key = first.header("cache-status").split("key=\"").nth(1).unwrap().trim_end_matches('"').to_owned();
    let pages = ["pageToken=b", "PageToken=b&PageSize=3", "pageToken=c"];
    for expected in ["miss", "hit"] {
        for page in pages {
            assert_eq!(gateway.ask(&get(&format!("{QUERY}?{page}"), "")).await.detail(), expected, "{page}");
        }
    }
    assert_eq!(purge(&gateway, &json!({"key": key}).to_string()).await, json!({"purged": 4}));
    for page in pages {
        assert_eq!(gateway.ask(&get(&format!("{QUERY}?{page}"), "")).await.detail(), "miss", "{page}");
    }
}
