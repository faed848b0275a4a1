//! A request that an unidentified client does not finish ends in time, does not delay a drain, and is not ambiguous.

use std::time::Duration;

use crate::support::certificate::Certificate;
use crate::support::process::{Process, set};
use crate::support::*;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// SHA-256 of "a good token".
const HASH: &str = "0cf2881d1923514249bced888cc7a7376a39ee553b82a6cd1cd918f6e21d4af4";

#[tokio::test]
async fn a_head_in_an_unfinished_tls_record_has_the_same_time_limit() {
    let (upstream, certificate) = (Upstream::start().await, Certificate::new());
    let gateway = TestConfig::new(upstream.url())
        .set("server.header_timeout", "1s")
        .set("server.tls.cert", certificate.path("cert.pem"))
        .set("server.tls.key", certificate.path("key.pem"))
        .start()
        .await;
    // The beginning of a record of 16 KiB, of which no byte can be read before it is complete.
    let record = [&[23, 3, 3, 0x40, 0][..], &[7; 15_000]].concat();
    for (is_first, cut) in [(true, 3), (true, 15_005), (false, 3), (false, 15_005)] {
        let stream = certificate.shake(TcpStream::connect(gateway.data).await.unwrap(), &[], None).await.unwrap();
        let mut client = Client::over(stream);
        if !is_first {
            assert_eq!(client.ask(&get("/nowhere", "")).await.status, 404);
        }
        let (stream, _) = client.stream.get_mut();
        stream.write_all(&record[..cut]).await.unwrap();
        let begun = Instant::now();
        let _ = within(stream.read_to_end(&mut Vec::new())).await;
        assert!(begun.elapsed() < Duration::from_secs(10), "{is_first}, {cut}: {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn an_unidentified_client_with_half_a_head_does_not_delay_a_drain() {
    let upstream = Upstream::start().await;
    // HEADERS without an end; an incomplete DATA frame; an incomplete frame head.
    let http2 = [&b"\0\0\x01\x01\x01\0\0\0\x01\x82"[..], b"\0\0\x40\0\0\0\0\0\x01abc", b"\0\0\x08"];
    let mut begun = http2.map(|frames| [PREFACE, frames].concat()).to_vec();
    begun.extend([b"GET / HTTP/1.1\r\nHost: ".to_vec(), b"G".to_vec(), PREFACE[..20].to_vec(), PREFACE.to_vec()]);
    let process = Process::start(vec![set("upstream.url", &upstream.url()), set("server.header_timeout", "60s")]).await;
    let mut strangers = Vec::new();
    for begun in begun {
        let mut stream = TcpStream::connect(process.data).await.unwrap();
        stream.write_all(&begun).await.unwrap();
        strangers.push(stream);
    }
    assert_eq!(process.ask(&post(ASK)).await.status, 200);
    process.signal("TERM");
    let since = Instant::now();
    assert_eq!(process.ended().await.0, Some(0));
    assert!(since.elapsed() < Duration::from_secs(10), "server.drain is 30 s: {:?}", since.elapsed());
}

#[tokio::test]
async fn the_admin_plane_demands_one_unambiguous_host() {
    let upstream = Upstream::start().await;
    for token in [false, true] {
        let config = TestConfig::new(upstream.url());
        let gateway = if token { config.set("admin.token_sha256", HASH) } else { config }.start().await;
        for path in ["/livez", "/status", "/metrics"] {
            for (line, host) in [
                ("", ""),
                ("", "Host: localhost\r\nHost: localhost\r\n"),
                ("", "Host: user@localhost\r\n"),
                ("", "Host: localhost:\r\n"),
                ("", "Host: localhost:99999\r\n"),
                ("http://user@localhost", "Host: localhost\r\n"),
            ] {
                let request = format!(
                    "GET {line}{path} HTTP/1.1\r\n{host}Authorization: Bearer a good token\r\nConnection: close\r\n\r\n"
                );
                let answer = gateway.ask_admin(request.as_bytes()).await;
                assert_eq!(answer.status, 400, "{request}: {answer:?}");
            }
            let good = get(path, "Authorization: Bearer a good token\r\nConnection: close\r\n");
            assert_eq!(gateway.ask_admin(&good).await.status, 200);
            let old = format!("GET {path} HTTP/1.0\r\nAuthorization: Bearer a good token\r\n\r\n");
            assert_eq!(gateway.ask_admin(old.as_bytes()).await.status, 200);
        }
    }
}

#[tokio::test]
async fn two_authorizations_are_refused() {
    let upstream = Upstream::start().await;
    let gateway =
        TestConfig::new(upstream.url()).set("teams.a.token_sha256", HASH).set("admin.token_sha256", HASH).start().await;
    let good = "Authorization: Bearer a good token\r\n";
    let twice = format!("{good}Authorization: Bearer another\r\n");
    for (headers, status) in [(good.to_owned(), 200), (twice, 401), (good.repeat(2), 401)] {
        assert_eq!(gateway.ask(&get(METADATA, &headers)).await.status, status, "{headers}");
        assert_eq!(gateway.ask_admin(&get("/status", &headers)).await.status, status, "{headers}");
    }
}

#[tokio::test]
async fn a_body_longer_than_any_number_is_too_large() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    for length in ["1048577", "18446744073709551613", "18446744073709551614", "18446744073709551615"] {
        let request = format!("POST {QUERY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
        gateway.ask(request.as_bytes()).await.assert_refused(413, "body_too_large");
    }
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn a_unix_socket_without_teams_may_be_called_anything() {
    let (upstream, folder) = (Upstream::start().await, TempDir::new().unwrap());
    let path = folder.path().join("gateway.sock");
    let gateway =
        TestConfig::new(upstream.url()).set("server.listen", format!("unix:{}", path.display())).start().await;
    for host in ["insights", "gateway.sock", "evil.example", "localhost"] {
        let request = format!("GET {METADATA} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        assert_eq!(Client::connect_unix(&path).await.ask(request.as_bytes()).await.status, 200, "{host}");
    }
    let two = format!("GET {METADATA} HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n");
    assert_eq!(Client::connect_unix(&path).await.ask(two.as_bytes()).await.status, 400);
    gateway.stop().await;
}

#[tokio::test]
async fn queries_that_are_shown_cannot_control_a_terminal() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).set("admin.show_queries", "true").start().await;
    let nasty = "a\u{9b}31m\u{202e}b\u{7f}\u{2028}ü";
    let body = format!(r#"{{"query":{{"measures":["Conversation.Count"],"note":"{nasty}"}}}}"#);
    assert_eq!(gateway.ask(&post(&body)).await.status, 200);
    let entries = gateway.admin("/cache/entries").await;
    let text = entries.text();
    assert!(!text.contains(['\u{9b}', '\u{202e}', '\u{7f}', '\u{2028}']), "{text}");
    assert!(entries.json()["entries"][0]["query"].as_str().unwrap().contains('ü'), "{text}");
    assert!(text.contains("u009b31m") && text.contains("u202e"), "{text}");
}
