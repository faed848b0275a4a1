//! An upstream that fails after every byte, lies about lengths and codings, and fails below HTTP: nothing of such
//! responses is stored or reaches a later request, and each failure has its documented reason.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::certificate::Certificate;
use crate::support::faults::{HEALED, ends_as_documented, fault};
use crate::support::*;
use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::time::Instant;

fn whole() -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{PAGE}", PAGE.len())
}

fn in_chunks() -> String {
    let mut text = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
    for chunk in PAGE.as_bytes().chunks(17) {
        text += &format!("{:x};x=y\r\n{}\r\n", chunk.len(), str::from_utf8(chunk).unwrap());
    }
    text + "0\r\nX-Trailer: a\r\n\r\n"
}

/// Cuts `answer` before each of its bytes, with each ending, and reports where the outcome is not the documented one.
async fn cut_everywhere(answer: &str) {
    let head = answer.find("\r\n\r\n").unwrap() + 4;
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).set("retry.attempts", "1").set("circuit.ratio", "1.0").start().await;
    let mut wrong = Vec::new();
    for (name, end) in [("close", Plan::then_close as fn(Plan) -> Plan), ("reset", Plan::then_reset)] {
        for offset in 0..answer.len() {
            let plan = end(Plan::raw(&answer.as_bytes()[..offset]));
            upstream.set(move |_| plan.clone());
            let reason = if offset < head { "upstream_unreachable" } else { "upstream_invalid" };
            let answer = gateway.ask(&get(&format!("{METADATA}?{name}={offset}"), "")).await;
            if let Err(fault) = refusal(&answer, 502, reason) {
                wrong.push(format!("{name} before byte {offset}: {fault}"));
            }
            // The next request is not affected. This also keeps the circuit closed.
            upstream.heal(HEALED);
            let next = gateway.ask(&get(METADATA, "Cache-Control: no-store\r\n")).await;
            if (next.status, next.text().as_str()) != (200, HEALED) {
                wrong.push(format!("after a {name} before byte {offset}: {next:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert_eq!(gateway.metric("cache_entries", &[]).await, 0.0);
    let counted = |reason: &str| format!("status=\"{reason}\"");
    let unreachable = gateway.metric("upstream_attempts_total", &[&counted("upstream_unreachable")]).await;
    let invalid = gateway.metric("upstream_attempts_total", &[&counted("upstream_invalid")]).await;
    assert_eq!((unreachable, unreachable + invalid), (2.0 * head as f64, 2.0 * answer.len() as f64));
    // None of the failures is remembered: the same request succeeds now.
    upstream.heal(HEALED);
    for target in [format!("{METADATA}?close=0"), format!("{METADATA}?reset={}", answer.len() - 1)] {
        gateway.ask(&get(&target, "")).await.assert_page(HEALED, "miss");
    }
}

#[tokio::test]
async fn a_cut_before_any_byte_of_an_answer_is_noticed() {
    cut_everywhere(&whole()).await;
}

#[tokio::test]
async fn a_cut_before_any_byte_of_a_chunked_answer_is_noticed() {
    cut_everywhere(&in_chunks()).await;
}

fn gzip(bytes: usize) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&vec![b' '; bytes]).unwrap();
    encoder.finish().unwrap()
}

fn with_body(headers: &str, body: &[u8]) -> Plan {
    let head = format!("HTTP/1.1 200 OK\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
    Plan::raw([head.as_bytes(), body].concat())
}

#[tokio::test]
async fn gzip_bombs_and_mislabelled_codings_are_refused() {
    let bomb = gzip(32 << 20);
    assert!(bomb.len() < 64 << 10, "small enough to be accepted: {}", bomb.len());
    let invalid = |name, plan| fault(name, plan, 1, 502, "upstream_invalid");
    ends_as_documented(vec![
        invalid("a bomb", with_body("Content-Encoding: gzip\r\n", &bomb)),
        invalid("a bomb in a bomb", with_body("Content-Encoding: gzip, gzip\r\n", &bomb)),
        invalid("a bomb without a label", with_body("", &bomb)),
        invalid("a bomb labelled as JSON", with_body("Content-Type: application/json\r\n", &bomb)),
        invalid("a label that is no coding", with_body("Content-Encoding: nonsense\r\n", PAGE.as_bytes())),
        invalid("one label of two", with_body("Content-Encoding: identity, gzip\r\n", PAGE.as_bytes())),
        invalid("two labels", with_body("Content-Encoding: identity\r\nContent-Encoding: gzip\r\n", &bomb)),
        invalid("UTF-16", with_body("Content-Type: application/json\r\n", b"\xff\xfe{\0}\0")),
    ])
    .await;
}

#[tokio::test]
async fn wrong_lengths_are_refused() {
    let retried = |name, plan| fault(name, plan, 4, 502, "upstream_invalid");
    let once = |name, plan| fault(name, plan, 1, 502, "upstream_invalid");
    let framed = |headers: &str, rest: &str| Plan::raw(format!("HTTP/1.1 200 OK\r\n{headers}\r\n{rest}")).then_close();
    let chunked = |rest: &str| framed("Transfer-Encoding: chunked\r\n", rest);
    ends_as_documented(vec![
        once("shorter than the body", framed("Content-Length: 20\r\n", PAGE)),
        retried("longer than the body", framed("Content-Length: 1000\r\n", PAGE)),
        retried("negative", framed("Content-Length: -1\r\n", PAGE)),
        retried("no number", framed("Content-Length: many\r\n", PAGE)),
        retried("beyond 64 bits", framed("Content-Length: 99999999999999999999999\r\n", PAGE)),
        retried("two that differ", framed("Content-Length: 46\r\nContent-Length: 47\r\n", PAGE)),
        retried("a list of two that differ", framed("Content-Length: 46, 47\r\n", PAGE)),
        retried("a chunk beyond 64 bits", chunked("fffffffffffffffff\r\n{}")),
        retried("a chunk without a size", chunked("\r\n{}\r\n0\r\n\r\n")),
        retried("a chunk longer than its size", chunked("1\r\n{}\r\n0\r\n\r\n")),
        retried("a chunk's extension without end", chunked(&format!("2;{}", "x".repeat(200_000)))),
        retried("trailers without end", chunked(&format!("2\r\n{{}}\r\n0\r\n{}", "X-Many: x\r\n".repeat(20_000)))),
    ])
    .await;
}

#[tokio::test]
async fn responses_that_do_not_belong_to_the_request_are_refused() {
    let once = |name, plan| fault(name, plan, 1, 502, "upstream_invalid");
    let retried = |name, plan| fault(name, plan, 4, 502, "upstream_invalid");
    let slow = |name, plan| fault(name, plan, 4, 504, "upstream_timeout");
    ends_as_documented(vec![
        once("a switch of protocols", Plan::raw("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n").then_close()),
        once("205", Plan::raw("HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n")),
        retried("HTTP/2", Plan::raw("\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x64").then_close()),
        retried("TLS", Plan::raw("\x15\x03\x01\0\x02\x02\x0a").then_close()),
        retried("a version that does not exist", Plan::raw("HTTP/3.9 200 OK\r\nContent-Length: 2\r\n\r\n{}")),
        retried("a header without a name", Plan::raw("HTTP/1.1 200 OK\r\n: x\r\nContent-Length: 2\r\n\r\n{}")),
        retried("a zero byte in a header", Plan::raw("HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\n{}")),
        slow("a storm of interim answers", Plan::raw("HTTP/1.1 100 Continue\r\n\r\n".repeat(50_000)).then_silence()),
        slow(
            "a storm of early hints",
            Plan::raw("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(20_000)).then_silence(),
        ),
        slow("a header that drips", Plan::drip("HTTP/1.1 200 OK\r\nX-Slow: aaaaaaaaaaaa", Duration::from_millis(50))),
    ])
    .await;
}

#[tokio::test]
async fn an_unrequested_response_is_never_used() {
    let smuggled = r#"{"data":["smuggled"]}"#;
    let second = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{smuggled}", smuggled.len());
    for first in [whole(), in_chunks(), "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}".to_owned()] {
        let both = format!("{first}{second}");
        let upstream = Upstream::script(move |seen| match seen.number {
            1 => Plan::raw(both.clone()),
            _ => Plan::page(HEALED),
        })
        .await;
        let gateway = TestConfig::new(upstream.url()).start().await;
        gateway.ask(&get(&format!("{METADATA}?n=0"), "")).await;
        for n in 1..4 {
            gateway.ask(&get(&format!("{METADATA}?n={n}"), "")).await.assert_page(HEALED, "miss");
        }
    }
}

async fn refused_over_tls(certificate: &Certificate, trusted: &Certificate) {
    let upstream = Upstream::tls(certificate.server(), |_| Plan::page(PAGE)).await;
    let gateway = TestConfig::new(upstream.url())
        .set("upstream.ca_file", trusted.path("cert.pem"))
        .set("retry.attempts", "2")
        .start()
        .await;
    gateway.ask(&post(ASK)).await.assert_refused(502, "upstream_unreachable");
    assert_eq!(gateway.metric("upstream_attempts_total", &["status=\"upstream_unreachable\""]).await, 2.0);
    assert_eq!(gateway.metric("cache_entries", &[]).await, 0.0);
    assert_eq!(upstream.count(), 0, "no request, and so no secret, before the certificate is trusted");
}

#[tokio::test]
async fn invalid_certificates_get_no_request() {
    let expired = {
        let mut params = Certificate::params(&["127.0.0.1"]);
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2001, 1, 1), rcgen::date_time_ymd(2002, 1, 1));
        Certificate::made_of(&params)
    };
    let not_yet = {
        let mut params = Certificate::params(&["127.0.0.1"]);
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(3001, 1, 1), rcgen::date_time_ymd(3002, 1, 1));
        Certificate::made_of(&params)
    };
    let elsewhere = Certificate::made_of(&Certificate::params(&["elsewhere.example", "127.0.0.2"]));
    for certificate in [&expired, &not_yet, &elsewhere] {
        refused_over_tls(certificate, certificate).await;
    }
    let (one, other) = (Certificate::new(), Certificate::new());
    refused_over_tls(&one, &other).await;
}

#[tokio::test]
async fn a_body_that_ends_with_its_connection_must_end_as_tls_ends() {
    let certificate = Certificate::new();
    let body = Plan::raw(format!("HTTP/1.1 200 OK\r\n\r\n{PAGE}"));
    let upstream = Upstream::tls(certificate.server(), |_| Plan::silence()).await;
    let gateway = TestConfig::new(upstream.url())
        .set("upstream.ca_file", certificate.path("cert.pem"))
        .set("retry.attempts", "1")
        .start()
        .await;
    let cut = body.clone().then_abandon();
    upstream.set(move |_| cut.clone());
    // An attacker on the network can end a connection, and so shorten a response.
    gateway.ask(&post(ASK)).await.assert_refused(502, "upstream_invalid");
    let ended = body.then_close();
    upstream.set(move |_| ended.clone());
    gateway.ask(&post(ASK)).await.assert_page(PAGE, "miss");
}

/// A server below HTTP: sends these bytes on every connection, and then nothing, or closes it.
async fn speaks(bytes: &'static [u8], ends: bool) -> (String, Arc<AtomicUsize>, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let task = tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            // The client may have left already.
            let _ = stream.write_all(bytes).await;
            if !ends {
                open.push(stream);
            }
        }
    });
    (url, connections, task)
}

#[tokio::test]
async fn handshakes_that_fail_or_never_end_are_unreachable_in_time() {
    for (name, bytes, ends) in [
        ("an end", &b""[..], true),
        ("an alert", b"\x15\x03\x03\x00\x02\x02\x28", true),
        ("half a record", b"\x16\x03\x03\x40\x00\x02", true),
        ("clear text", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", true),
        ("silence", b"", false),
        ("a record that never ends", b"\x16\x03\x03\x40\x00\x02", false),
    ] {
        let (url, connections, task) = speaks(bytes, ends).await;
        let gateway = TestConfig::new(url)
            .set("upstream.connect_timeout", "300ms")
            .set("upstream.attempt_timeout", "10s")
            .set("retry.attempts", "2")
            .start()
            .await;
        let begun = Instant::now();
        let answer = gateway.ask(&post(ASK)).await;
        assert!(refusal(&answer, 502, "upstream_unreachable").is_ok(), "{name}: {answer:?}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{name}: {:?}", begun.elapsed());
        assert_eq!(connections.load(Ordering::Relaxed), 2, "{name}");
        assert_eq!(gateway.metric("upstream_attempts_total", &["status=\"upstream_unreachable\""]).await, 2.0);
        task.abort();
    }
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_unreachable_in_time() {
    // RFC 6761 section 6.4: this name never exists. The time is limited even if the resolver is slow.
    let gateway = TestConfig::new("http://upstream.invalid:8080")
        .set("upstream.connect_timeout", "2s")
        .set("retry.attempts", "2")
        .start()
        .await;
    let begun = Instant::now();
    gateway.ask(&post(ASK)).await.assert_refused(502, "upstream_unreachable");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(gateway.metric("upstream_attempts_total", &["status=\"upstream_unreachable\""]).await, 2.0);
    assert_eq!(gateway.metric("cache_entries", &[]).await, 0.0);
}
