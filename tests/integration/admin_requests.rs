//! Invalid requests to the admin plane: they change nothing, and the response says what is wrong with them.

use crate::http2;
use crate::support::*;

#[tokio::test]
async fn an_invalid_purge_purges_nothing_and_gets_the_reason() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    gateway.ask(&post(ASK)).await.assert_page(PAGE, "miss");
    let mut sender = http2::connect_to(gateway.admin).await;
    let large = format!("{{\"all\":true{}}}", " ".repeat(70 << 10));
    for (body, status, part) in [
        ("", 400, "the text ends"),
        ("{\"all\":\ntrue", 400, "line 2, column 5"),
        ("{\"al\":true}", 400, "unknown member"),
        ("{\"all\":true,\"operation\":\"page\"}", 400, "2 members"),
        ("[true]", 400, "not a JSON object"),
        ("{\"all\":false}", 400, "\\\"all\\\" must be true"),
        ("{\"account\":\"nobody\"}", 400, "the accounts are default"),
        ("{\"operation\":\"nothing\"}", 400, "the operations are "),
        ("{\"key\":\"xyz\"}", 400, "16 hexadecimal digits"),
        (&large, 413, "64 KiB"),
    ] {
        let request = http2::request_to(gateway.admin, "POST", "/cache/purge", body);
        let answer = http2::ask(&mut sender, request).await;
        assert_eq!(answer.status, status, "{body}: {answer:?}");
        assert!(answer.text().contains(part), "{body}: {}", answer.text());
    }
    gateway.ask(&post(ASK)).await.assert_page(PAGE, "hit");
    let key = gateway.admin("/cache/entries").await.json()["entries"][0]["key"].as_str().unwrap().to_owned();
    let short = format!("{{\"key\":\"{}\"}}", key[..16].to_uppercase());
    let request = http2::request_to(gateway.admin, "POST", "/cache/purge", &short);
    assert_eq!(http2::ask(&mut sender, request).await.json()["purged"], 1);
}

#[tokio::test]
async fn an_invalid_request_for_entries_gets_the_reason() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let mut sender = http2::connect_to(gateway.admin).await;
    for (query, part) in [
        ("limit=abc", "limit is a number from 1 to 1000"),
        ("limit=0", "limit is a number from 1 to 1000"),
        ("limit=-1", "limit is a number"),
        ("limit=1&limit=2", "once"),
        ("after=xyz", "64 hexadecimal digits"),
        ("limt=1", "unknown parameter"),
    ] {
        let request = http2::request_to(gateway.admin, "GET", &format!("/cache/entries?{query}"), "");
        let answer = http2::ask(&mut sender, request).await;
        assert!(answer.status == 400 && answer.text().contains(part), "{query}: {answer:?}");
    }
    assert_eq!(gateway.admin("/cache/entries?limit=1").await.status, 200);
    assert_eq!(gateway.admin(&format!("/cache/entries?after={}", "0".repeat(64))).await.status, 200);
}
