//! Traces from outside: what clients send, what Twilio is sent, and what a collector gets.

use crate::support::certificate::Certificate;
use crate::support::process::{Process, command, quiet, set};
use crate::support::*;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn traced(flags: &str) -> String {
    format!("Traceparent: 00-{TRACE}-{PARENT}-{flags}\r\nTracestate: a=1\r\nTracestate: b=2\r\n")
}

/// The parts of the `traceparent` that Twilio was sent.
fn sent(seen: &Seen) -> Option<[String; 4]> {
    let parts: Vec<String> = seen.header("traceparent")?.split('-').map(str::to_owned).collect();
    Some(parts.try_into().unwrap())
}

#[tokio::test]
async fn a_trace_is_continued_to_twilio_with_a_new_span_per_attempt() {
    let upstream = Upstream::script(|seen| match seen.number {
        1 => Plan::json(503, "{}"),
        _ => Plan::page(PAGE),
    })
    .await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    gateway.ask(&post_to(QUERY, &traced("01"), ASK)).await.assert_page(PAGE, "miss");
    let seen = upstream.seen();
    assert_eq!(seen.len(), 2);
    let mut spans = vec![PARENT.to_owned()];
    for seen in &seen {
        let [version, trace, span, flags] = sent(seen).unwrap();
        assert_eq!((version.as_str(), trace.as_str(), flags.as_str()), ("00", TRACE, "01"));
        assert_eq!(seen.header("tracestate"), Some("a=1,b=2"));
        assert!(!spans.contains(&span) && span.len() == 16, "{span} of {spans:?}");
        spans.push(span);
    }
}

#[tokio::test]
async fn without_a_trace_twilio_gets_none() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    gateway
        .ask(&post_to(QUERY, "Traceparent: 00-gibberish-01\r\nTracestate: a=1\r\n", ASK))
        .await
        .assert_page(PAGE, "miss");
    let seen = &upstream.seen()[0];
    assert_eq!((sent(seen), seen.header("tracestate")), (None, None));
}

/// A collector that accepts everything.
async fn collector() -> Upstream {
    Upstream::script(|_| Plan::with(200, "Content-Type: application/x-protobuf\r\n", "")).await
}

fn holds(body: &[u8], part: &str) -> bool {
    body.windows(part.len()).any(|window| window == part.as_bytes())
}

#[tokio::test]
async fn what_goes_upstream_is_sent_to_the_collector() {
    let (upstream, collector) = (Upstream::start().await, collector().await);
    let config = TestConfig::new(upstream.url()).set("telemetry.otlp", collector.url()).set("telemetry.sample", "0");
    let gateway = config.start().await;
    gateway.ask(&post(ASK)).await.assert_page(PAGE, "miss");
    // A request, its three stages, a wait and an attempt; nothing of the hit.
    gateway.ask(&post(ASK)).await.assert_page(PAGE, "hit");
    gateway.metric_reaches("spans_total", &["exported"], 6.0).await;
    let seen = collector.seen();
    let report = &seen[0];
    assert_eq!((report.target(), report.header("content-type")), ("/v1/traces", Some("application/x-protobuf")));
    for part in ["POST query", "admit", "read", "cache", "queue wait 1", "attempt 1", "insights-gateway", "miss"] {
        assert!(holds(&report.body, part), "{part}");
    }
    let [_, trace, span, flags] = sent(&upstream.seen()[0]).expect("a trace begins here");
    assert_eq!(flags, "01");
    for id in [trace, span] {
        let bytes: Vec<u8> =
            (0..id.len()).step_by(2).map(|at| u8::from_str_radix(&id[at..at + 2], 16).unwrap()).collect();
        assert!(report.body.windows(bytes.len()).any(|window| window == bytes), "{id}");
    }
    gateway.stop().await;
    assert_eq!(collector.count(), 1, "the hit was not sampled");
}

#[tokio::test]
async fn a_client_says_whether_its_trace_is_recorded() {
    let (upstream, collector) = (Upstream::start().await, collector().await);
    let config = TestConfig::new(upstream.url()).set("telemetry.otlp", collector.url()).set("telemetry.sample", "0");
    let gateway = config.start().await;
    gateway.ask(&post_to(QUERY, &traced("00"), ASK)).await.assert_page(PAGE, "miss");
    assert_eq!(sent(&upstream.seen()[0]).unwrap()[3], "00");
    gateway.ask(&post_to(QUERY, &traced("01"), ASK)).await.assert_page(PAGE, "hit");
    // When it is stopped, it sends what it has.
    gateway.stop().await;
    let seen = collector.seen();
    assert_eq!(seen.len(), 1);
    assert!(holds(&seen[0].body, "hit") && !holds(&seen[0].body, "miss"));
}

#[tokio::test]
async fn a_collector_may_speak_tls() {
    let (upstream, certificate) = (Upstream::start().await, Certificate::new());
    let takes = |_: &Seen| Plan::with(200, "Content-Type: application/x-protobuf\r\n", "");
    let collector = Upstream::tls(certificate.server(), takes).await;
    let flags = vec![set("upstream.url", &upstream.url()), set("telemetry.otlp", &collector.url())];
    // The machine's trust roots, set by OpenSSL's variable.
    let mut command = command(&quiet(flags));
    command.env("SSL_CERT_FILE", certificate.path("cert.pem"));
    let process = Process::spawn(command).await;
    process.ask(&post(ASK)).await.assert_page(PAGE, "miss");
    collector.arrived(1).await;
    assert_eq!(collector.seen()[0].target(), "/v1/traces");
}
