//! Heads and bodies that are late, and clients that leave.

use super::*;

#[tokio::test]
async fn a_head_that_is_late_is_408_and_the_connection_is_closed() {
    let bench = Bench::with(|config| config.set("server.header_timeout", "1s")).await;
    let mut begun = bench.gateway.connect().await;
    begun.send(b"POST /v3/Insights").await;
    let answer = begun.answer().await;
    answer.assert_refused(408, "client_timeout");
    assert_eq!(answer.header("connection"), "close");
    assert_eq!(begun.rest().await, b"", "nothing follows");
    let mut silent = bench.gateway.connect().await;
    assert_eq!(silent.rest().await, b"", "a silent client gets no response and is disconnected");
    assert_eq!(bench.gateway.ask(&post(ASK)).await.status, 200);
}

#[tokio::test]
async fn a_head_that_drips_is_408_however_steadily_it_does() {
    let bench = Bench::with(|config| config.set("server.header_timeout", "1s")).await;
    let client = bench.gateway.connect().await;
    let (mut reading, mut writing) = client.stream.into_split();
    let dripping = tokio::spawn(async move {
        let mut dripped = 0;
        loop {
            let byte: &[u8] = if dripped == 0 { b"GET / HTTP/1.1\r\nX-Filler: " } else { b"a" };
            if writing.write_all(byte).await.is_err() || dripped > 2000 {
                return dripped;
            }
            dripped += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let mut bytes = Vec::new();
    // The connection may end in a reset, because the client is still sending; what came before the reset counts.
    let _ = within(tokio::io::AsyncReadExt::read_to_end(&mut reading, &mut bytes)).await;
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
    assert!(text.contains("\"reason\":\"client_timeout\""), "{text}");
    assert!(within(dripping).await.unwrap() < 2000, "the connection is closed");
}

#[tokio::test]
async fn the_second_head_of_a_connection_has_the_same_time_limit() {
    let bench = Bench::with(|config| config.set("server.header_timeout", "1s")).await;
    let mut client = bench.gateway.connect().await;
    assert_eq!(client.ask(&post(ASK)).await.status, 200);
    client.send(b"POST /v3/Insights").await;
    client.answer().await.assert_refused(408, "client_timeout");
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn half_a_head_after_a_request_has_the_same_time_limit() {
    let bench = Bench::with(|config| config.set("server.header_timeout", "1s")).await;
    let mut client = bench.gateway.connect().await;
    let mut bytes = post(ASK);
    bytes.extend_from_slice(b"POST /v3/Insights");
    client.send(&bytes).await;
    assert_eq!(client.answer().await.status, 200);
    client.answer().await.assert_refused(408, "client_timeout");
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn a_body_that_is_late_is_408_and_the_connection_is_closed() {
    let bench = Bench::with(|config| config.set("server.body_timeout", "1s")).await;
    for start in [
        format!("POST {QUERY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 45\r\n\r\n{{\"que"),
        format!("POST {QUERY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 45\r\n\r\n"),
        format!("POST {QUERY} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{{\"que"),
    ] {
        let mut client = bench.gateway.connect().await;
        client.send(start.as_bytes()).await;
        let answer = client.answer().await;
        answer.assert_refused(408, "client_timeout");
        assert_eq!(answer.header("connection"), "close", "{start}");
        assert_eq!(client.rest().await, b"", "{start}");
    }
    assert_eq!(bench.upstream.count(), 0);
    assert_eq!(bench.gateway.ask(&post(ASK)).await.status, 200);
}

#[tokio::test]
async fn a_client_that_hangs_up_in_its_body_sends_nothing_upstream() {
    let bench = Bench::new().await;
    for reset in [false, true] {
        let mut client = bench.gateway.connect().await;
        client
            .send(format!("POST {QUERY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 45\r\n\r\n{{\"que").as_bytes())
            .await;
        bench.gateway.settle().await;
        if reset {
            client.stream.set_zero_linger().unwrap();
        }
    }
    // 400 when the client could still read the response, 499 when it could not. Each request is counted exactly once.
    poll("both requests are counted", || async {
        let count = bench.gateway.metric("requests_total", &["operation=\"query\""]).await;
        assert!(count <= 2.0);
        (count == 2.0).then_some(())
    })
    .await;
    assert_eq!(bench.gateway.metric("requests_total", &["status=\"5"]).await, 0.0);
    assert_eq!(bench.upstream.count(), 0);
    assert_eq!(bench.gateway.ask(&post(ASK)).await.status, 200);
}

#[tokio::test]
async fn a_client_that_closes_its_half_in_a_body_is_refused_or_disconnected() {
    let bench = Bench::new().await;
    let mut client = bench.gateway.connect().await;
    client
        .send(format!("POST {QUERY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 45\r\n\r\n{{\"que").as_bytes())
        .await;
    client.stream.shutdown().await.unwrap();
    if let Some(answer) = client.next().await {
        answer.assert_refused(400, "bad_request");
    }
    assert_eq!(bench.upstream.count(), 0);
}
