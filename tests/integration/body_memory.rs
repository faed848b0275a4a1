//! The memory of request bodies while they arrive and while their requests wait.

use crate::support::*;

/// A POST of a query whose body comes in chunks of this number of bytes.
fn chunked(body: &str, size: usize) -> Vec<u8> {
    let mut request =
        format!("POST {QUERY} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes();
    for chunk in body.as_bytes().chunks(size) {
        request.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        request.extend_from_slice(chunk);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    request
}

/// A query of about this number of bytes.
fn query_of(bytes: usize, mark: usize) -> String {
    let filter = format!(r#"{{"op":"EQ","field":"Conversation.Queue","values":["{mark}-{}"]}}"#, "x".repeat(bytes));
    format!(r#"{{"query":{{"measures":["Conversation.Count"],"filters":[{{"op":"AND","expressions":[{filter}]}}]}}}}"#)
}

#[tokio::test]
async fn a_body_in_many_tiny_chunks_is_refused_and_one_in_small_chunks_is_read() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    for (body, size) in [(query_of(3000, 1), 1), (query_of(200_000, 2), 100), (query_of(200_000, 3), 20)] {
        assert_eq!(gateway.ask(&chunked(&body, size)).await.status, 200, "{size}");
        assert!(upstream.seen().last().unwrap().text().contains("xxx"));
    }
    for size in [1, 7] {
        gateway.ask(&chunked(&query_of(200_000, 4), size)).await.assert_refused(400, "bad_request");
    }
    assert_eq!(upstream.count(), 3);
}

#[tokio::test]
async fn bodies_are_counted_while_their_requests_wait() {
    let gate = Gate::default();
    let held = Plan::page(PAGE).after(&gate);
    let upstream = Upstream::script(move |_| held.clone()).await;
    let gateway = TestConfig::new(upstream.url()).set("server.body_memory", "1MiB").start().await;
    let mut waiting = Vec::new();
    for n in 1..=2 {
        let mut client = gateway.connect().await;
        client.send(&post(&query_of(300_000, n))).await;
        upstream.arrived(n).await;
        waiting.push(client);
    }
    // Small enough to be read at once. Requests that wait for the same call hold no body.
    for _ in 0..2 {
        let mut client = gateway.connect().await;
        client.send(&post(&query_of(30_000, 3))).await;
        upstream.arrived(3).await;
        gateway.settle().await;
        waiting.push(client);
    }
    let refused = gateway.ask(&post(&query_of(300_000, 5))).await;
    refused.assert_refused(503, "overloaded");
    assert_eq!(refused.header("retry-after"), "1");
    // There is still memory for a small one.
    let mut small = gateway.connect().await;
    small.send(&post(&query_of(20_000, 6))).await;
    upstream.arrived(4).await;
    waiting.push(small);
    gate.open();
    for mut client in waiting {
        assert_eq!(client.answer().await.status, 200);
    }
    assert_eq!(gateway.ask(&post(&query_of(300_000, 7))).await.status, 200);
}
