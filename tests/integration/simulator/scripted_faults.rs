//! Failures and delays that a test scripts.

use std::time::Duration;

use insights_gateway::simulator::Settings;
use insights_gateway::simulator::faults::Fault;
use serde_json::json;

use super::{Answer, METADATA, QUERY, Running, count, settings};

#[tokio::test]
async fn scripted_answers_come_in_order() {
    let running = Running::start("0/s").await;
    running.script(json!({"next": 2, "status": 503, "headers": {"Retry-After": "2"}})).await;
    running.script(json!({"status": 429})).await;
    running.script(json!({"status": 502, "body": "<html>", "content_type": "text/html"})).await;
    running.script(json!({"status": 302, "headers": {"location": "/x"}})).await;
    let pending = running.get("/_simulator/faults").await.json();
    assert_eq!(pending["faults"].as_array().unwrap().len(), 4);
    for _ in 0..2 {
        let answer = running.post(QUERY, &count()).await;
        answer.refused(503, 20503);
        assert_eq!(answer.header("retry-after"), "2");
    }
    let limited = running.get(METADATA).await;
    limited.refused(429, 20429);
    assert_eq!(limited.header("x-ratelimit-reset"), "1");
    let html = running.get(METADATA).await;
    assert_eq!((html.status.as_u16(), &html.body[..]), (502, &b"<html>"[..]));
    assert_eq!(html.header("content-type"), "text/html");
    let redirect = running.get(METADATA).await;
    assert_eq!((redirect.status.as_u16(), redirect.header("location")), (302, "/x"));
    assert_eq!(running.get(METADATA).await.status, 200);

    running.script(json!({"next": 9, "status": 500})).await;
    running.send(running.request("DELETE", "/_simulator/faults", "secret", "")).await;
    assert_eq!(running.get(METADATA).await.status, 200);
    let bad = running.post("/_simulator/faults", "{\"stat\":1}").await;
    bad.refused(400, 20001);
    assert!(bad.json()["message"].as_str().unwrap().contains("stat"));
}

#[tokio::test]
async fn scripted_connections_end_early() {
    let running = Running::start("0/s").await;
    let whole = running.get(METADATA).await.body;
    running.script(json!({"cut_body_at": 100})).await;
    let text = running.raw(METADATA).await;
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"));
    assert!(head.contains(&format!("content-length: {}", whole.len())), "{head}");
    assert_eq!(body.as_bytes(), &whole[..100]);

    running.script(json!({"reset": true})).await;
    assert_eq!(running.raw(METADATA).await, "");
    let log = running.simulator.requests();
    assert_eq!(log[log.len() - 1].status, None);

    running.simulator.script(Fault { next: 1, cut_body_at: Some(0), ..Fault::default() }).unwrap();
    let text = running.raw(METADATA).await;
    assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("\r\n\r\n"), "{text:?}");
    assert_eq!(running.get(METADATA).await.status, 200);
}

#[tokio::test]
async fn delays_and_latency_are_kept() {
    let running = Running::with(Settings { latency: Duration::from_millis(30), rows: 10, ..settings() }).await;
    let seconds = |answer: &Answer| -> f64 { answer.header("twilio-request-duration").parse().unwrap() };
    assert!(seconds(&running.get(METADATA).await) >= 0.03);
    running.script(json!({"delay": "100ms"})).await;
    assert!(seconds(&running.get(METADATA).await) >= 0.13);
}
