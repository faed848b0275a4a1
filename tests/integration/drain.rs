//! The shutdown of a gateway: a client that asks too late, or is not answered in time, gets a refusal and not a closed
//! connection.

use std::time::Duration;

use crate::support::process::{Process, set};
use crate::support::*;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value as Json;
use tokio::net::TcpStream;

async fn is_draining(process: &Process) {
    poll("readyz is 503", || async {
        let answer = Client::connect(process.admin).await.ask(&get("/readyz", "Connection: close\r\n")).await;
        (answer.status == 503).then_some(())
    })
    .await;
}

fn assert_draining(answer: &Answer) {
    answer.assert_refused(503, "draining");
    assert_eq!(answer.find("connection"), Some("close"), "{answer:?}");
}

#[tokio::test]
async fn a_request_on_a_kept_alive_connection_is_refused_during_the_drain() {
    let gate = Gate::default();
    let held = Plan::page(PAGE).after(&gate);
    let upstream = Upstream::script(move |_| held.clone()).await;
    let process = Process::start(vec![set("upstream.url", &upstream.url())]).await;
    let mut in_flight = Client::connect(process.data).await;
    in_flight.send(&post(ASK)).await;
    upstream.arrived(1).await;
    let mut kept = Vec::new();
    for _ in 0..3 {
        let mut client = Client::connect(process.data).await;
        assert_eq!(client.ask(&get("/nowhere", "")).await.status, 404);
        kept.push(client);
    }
    let mut silent = Client::connect(process.data).await;
    process.signal("TERM");
    is_draining(&process).await;
    // All are sent before the first answer is read, because the connections stay open for half a second only.
    for (client, request) in kept.iter_mut().zip([post(ASK), get(METADATA, ""), get("/nowhere", "")]) {
        client.send(&request).await;
    }
    silent.send(&post(ASK)).await;
    for mut client in kept {
        assert_draining(&client.answer().await);
        assert_eq!(client.rest().await, b"");
    }
    assert_draining(&silent.answer().await);
    gate.open();
    let answer = in_flight.answer().await;
    answer.assert_page(PAGE, "miss");
    assert_eq!(answer.find("connection"), Some("close"), "no other request is served");
    assert_eq!(process.ended().await.0, Some(0));
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn a_drain_without_requests_is_short() {
    let upstream = Upstream::start().await;
    let process = Process::start(vec![set("upstream.url", &upstream.url())]).await;
    let mut kept = Client::connect(process.data).await;
    assert_eq!(kept.ask(&post(ASK)).await.status, 200);
    process.signal("TERM");
    is_draining(&process).await;
    assert_draining(&kept.ask(&post(ASK)).await);
    let begun = tokio::time::Instant::now();
    assert_eq!(process.ended().await.0, Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10), "server.drain is 30 s");
}

/// The access lines, without those of these tests' probes.
fn access_lines(said: &str) -> Vec<Json> {
    let lines = said.lines().filter_map(|line| serde_json::from_str::<Json>(line).ok());
    lines.filter(|line| line["target"] == "insights_gateway::access").collect()
}

#[tokio::test]
async fn requests_that_still_wait_at_the_end_of_the_drain_are_refused() {
    let upstream = Upstream::script(|_| Plan::silence()).await;
    let process = Process::start(vec![
        set("upstream.url", &upstream.url()),
        set("server.drain", "400ms"),
        set("accounts.default.rate", "1/h"),
        set("accounts.default.burst", "2"),
    ])
    .await;
    // One request waits for the upstream, one for the same call, and one still sends its body.
    let mut waiting = Vec::new();
    let unfinished = post(ASK);
    let unfinished = unfinished[..unfinished.len() - 3].to_vec();
    for request in [post(ASK), post(ASK), unfinished] {
        let mut client = Client::connect(process.data).await;
        client.send(&request).await;
        waiting.push(client);
    }
    let stream = TcpStream::connect(process.data).await.unwrap();
    let (mut sender, connection) =
        within(http2::handshake(TokioExecutor::new(), TokioIo::new(stream))).await.expect("HTTP/2 by prior knowledge");
    tokio::spawn(connection);
    let request = http::Request::get(format!("http://localhost{METADATA}")).body(Full::<Bytes>::default()).unwrap();
    let mut http2_answer = tokio::spawn(sender.send_request(request));
    upstream.arrived(2).await;
    process.signal("TERM");
    for client in &mut waiting {
        assert_draining(&client.answer().await);
        assert_eq!(client.rest().await, b"");
    }
    let (head, body) = within(&mut http2_answer).await.unwrap().expect("an answer").into_parts();
    assert_eq!((head.status.as_u16(), head.headers["retry-after"].to_str().unwrap()), (503, "1"));
    let body = within(body.collect()).await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("\"draining\""), "{body:?}");
    let (code, said) = process.ended().await;
    assert_eq!(code, Some(0), "{said}");
    let lines = access_lines(&said);
    assert_eq!(lines.len(), 4, "{said}");
    for line in lines {
        assert_eq!((&line["outcome"], &line["reason"]), (&"refused".into(), &"draining".into()), "{line}");
    }
}
