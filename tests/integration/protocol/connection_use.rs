//! Several requests on one connection: pipelined, malformed behind valid ones, HTTP/1.0.

use super::*;

#[tokio::test]
async fn what_is_malformed_behind_http_1_0_is_refused_in_our_words() {
    let upstream = Upstream::script(|_| Plan::page(PAGE)).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let mut client = gateway.connect().await;
    let first = format!("GET {METADATA} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    client.send(format!("{first} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await;
    assert_eq!(client.answer().await.status, 200);
    client.answer().await.assert_refused(400, "bad_request");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let bench = Bench::new().await;
    bench.upstream.set(|seen| Plan::page(&seen.text()));
    let body = |n: usize| format!(r#"{{"n":{n},"query":{{}}}}"#);
    let mut client = bench.gateway.connect().await;
    let mut bytes = Vec::new();
    for n in 0..20 {
        bytes.extend_from_slice(&post(&body(n)));
        bytes.extend_from_slice(&get("/nowhere", ""));
    }
    client.send(&bytes).await;
    for n in 0..20 {
        client.answer().await.assert_page(&body(n), "miss");
        client.answer().await.assert_refused(404, "not_found");
    }
    assert_eq!(bench.upstream.count(), 20);
}

#[tokio::test]
async fn a_malformed_request_after_a_valid_one_is_refused_in_the_same_format() {
    let bench = Bench::new().await;
    let malformed: [(&str, &[u8], u16, &str); 5] = [
        ("no method", b"\0\0\0\0 / HTTP/1.1\r\n\r\n", 400, "bad_request"),
        ("no Host", b"GET /nowhere HTTP/1.1\r\n\r\n", 400, "bad_request"),
        (
            "two lengths",
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            400,
            "bad_request",
        ),
        (
            "a length and chunks",
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "bad_request",
        ),
        (
            "chunks and a length",
            b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
            400,
            "bad_request",
        ),
    ];
    for (name, bytes, status, reason) in malformed {
        // Once as a hit, which is answered while the second head is already there, and once as a request that waits.
        for target in [METADATA.to_owned(), format!("{METADATA}?fresh={}", name.len())] {
            let mut client = bench.gateway.connect().await;
            client.send(&[&get(&target, ""), bytes].concat()).await;
            assert_eq!(client.answer().await.status, 200, "{name}");
            let answer = client.next().await.unwrap_or_else(|| panic!("{name}: no answer"));
            refusal(&answer, status, reason).unwrap_or_else(|fault| panic!("{name} after {target}: {fault}"));
        }
    }
}

#[tokio::test]
async fn a_request_with_two_lengths_is_found_after_bodies_and_in_pieces() {
    let bench = Bench::new().await;
    let ambiguous = format!(
        "POST {QUERY} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"
    );
    let chunked = format!(
        "POST {QUERY} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{ASK}\r\n0\r\n\r\n",
        ASK.len()
    );
    for first in [post(ASK), chunked.into_bytes()] {
        let all = [&first[..], ambiguous.as_bytes()].concat();
        for cut in [all.len(), first.len(), first.len() + 1, first.len() + 70, all.len() - 6, first.len() - 3] {
            let mut client = bench.gateway.connect().await;
            client.send(&all[..cut]).await;
            bench.gateway.settle().await;
            client.send(&all[cut..]).await;
            assert_eq!(client.answer().await.text(), PAGE, "cut at {cut}");
            client.answer().await.assert_refused(400, "bad_request");
            assert_eq!(client.rest().await, b"", "cut at {cut}");
        }
    }
    assert_eq!(bench.upstream.count(), 1);
}

#[tokio::test]
async fn a_body_that_looks_like_a_request_is_never_taken_for_one() {
    let bench = Bench::new().await;
    let smuggled = format!("GET {METADATA}?smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let carriers = [
        format!("GET {METADATA} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{smuggled}", smuggled.len()),
        format!("POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{smuggled}", smuggled.len()),
        format!("PUT {QUERY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{smuggled}", smuggled.len()),
        format!(
            "POST {QUERY} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n\
             0\r\n\r\n{smuggled}"
        ),
    ];
    for carrier in carriers {
        let mut client = bench.gateway.connect().await;
        client.send(carrier.as_bytes()).await;
        let _ = client.answer().await;
        let _ = client.stream.shutdown().await;
        let _ = client.rest().await;
    }
    let smuggled: Vec<_> =
        bench.upstream.seen().into_iter().filter(|seen| seen.target().contains("smuggled")).collect();
    assert!(smuggled.is_empty(), "{smuggled:?}");
}

#[tokio::test]
async fn a_connection_serves_many_requests_refusals_included() {
    let bench = Bench::new().await;
    let mut client = bench.gateway.connect().await;
    for _ in 0..5 {
        assert_eq!(client.ask(&post(ASK)).await.status, 200);
        client.ask(&post("nonsense")).await.assert_refused(400, "invalid_json");
        client.ask(&get("/nowhere", "")).await.assert_refused(404, "not_found");
        client.ask(&post_to(METADATA, "", ASK)).await.assert_refused(405, "method_not_allowed");
        client.ask(&get(METADATA, "Cache-Control: only-if-cached\r\n")).await.assert_refused(504, "only_if_cached");
    }
    assert_eq!(bench.upstream.count(), 1);
}

#[tokio::test]
async fn http_1_0_is_served_and_closed() {
    let bench = Bench::new().await;
    let mut client = bench.gateway.connect().await;
    let answer = client.ask(format!("GET {METADATA} HTTP/1.0\r\n\r\n").as_bytes()).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, PAGE));
    assert_eq!(client.rest().await, b"");
    let foreign = bench.gateway.ask(format!("GET {METADATA} HTTP/1.0\r\nHost: evil.example\r\n\r\n").as_bytes()).await;
    foreign.assert_refused(400, "bad_request");
    bench.gateway.ask(b"GET /nowhere HTTP/1.0\r\n\r\n").await.assert_refused(404, "not_found");
}

#[tokio::test]
async fn expect_100_continue_is_answered_before_the_body_is_sent() {
    let bench = Bench::new().await;
    let mut client = bench.gateway.connect().await;
    let head = format!("POST {QUERY} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n{}\r\n\r\n", length());
    client.send(head.as_bytes()).await;
    let interim = client.next().await.expect("an interim response");
    assert_eq!(interim.status, 100);
    client.send(ASK.as_bytes()).await;
    client.answer().await.assert_page(PAGE, "miss");
    // A request that is refused by its head needs no body.
    let mut client = bench.gateway.connect().await;
    client
        .send(b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n")
        .await;
    client.next().await.expect("an answer").assert_refused(404, "not_found");
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_and_are_served_later() {
    let bench = Bench::with(|config| config.set("server.max_connections", "2")).await;
    let (mut one, mut two) = (bench.gateway.connect().await, bench.gateway.connect().await);
    assert_eq!(one.ask(&post(ASK)).await.status, 200);
    assert_eq!(two.ask(&post(ASK)).await.status, 200);
    let mut third = bench.gateway.connect().await;
    third.send(&post(ASK)).await;
    let early = tokio::time::timeout(Duration::from_millis(100), third.stream.readable()).await;
    assert!(early.is_err(), "the third is not served while two are open");
    drop(one);
    assert_eq!(third.answer().await.status, 200);
}

#[tokio::test]
async fn the_gateway_works_after_many_broken_connections() {
    let bench = Bench::with(|config| config.set("server.max_connections", "20")).await;
    let pieces: [&[u8]; 6] =
        [b"", b"\0", b"GET", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff", b"\r\n\r\n\r\n", b"\x16\x03\x01"];
    for round in 0..200usize {
        let mut client = bench.gateway.connect().await;
        client.send(pieces[round % pieces.len()]).await;
        if round % 2 == 0 {
            client.stream.set_zero_linger().unwrap();
        }
    }
    // Ten times as many as there are places, so no place was lost.
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut client = bench.gateway.connect().await;
        assert_eq!(client.ask(&post(ASK)).await.status, 200);
        held.push(client);
    }
    assert_eq!(bench.gateway.metric("requests_total", &["status=\"5"]).await, 0.0);
}
