//! Where a request ends, who answers it, and how it is logged: no request can be hidden behind another, and no text in
//! one can hide in the log.

use crate::support::process::{Process, set};
use crate::support::*;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value as Json;
use tempfile::TempDir;
use tokio::net::TcpStream;

/// A POST of a query in one chunk, with these header lines for its framing. After it comes a request that must not be
/// answered.
fn in_chunks(version: &str, framing: &str) -> Vec<u8> {
    let hidden = format!("GET {METADATA}?hidden HTTP/1.1\r\nHost: localhost\r\n\r\n");
    format!("POST {QUERY} {version}\r\nHost: localhost\r\n{framing}\r\n{:x}\r\n{ASK}\r\n0\r\n\r\n{hidden}", ASK.len())
        .into_bytes()
}

#[tokio::test]
async fn a_transfer_encoding_is_chunked_once_or_the_request_is_refused() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let refused = [
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nX: y\r\ntransfer-encoding: chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: identity, chunked\r\n",
        "Transfer-Encoding: chunked;x\r\n",
        "Transfer-Encoding: chunked; q=1\r\n",
        "Transfer-Encoding: ,chunked\r\n",
        "Transfer-Encoding: chunked,\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding:\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
        "Transfer-Encoding: chunked\r\n , chunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        " Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: \x0bchunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    ];
    for framing in refused {
        for before in [&b""[..], &get("/nowhere", ""), &post("nonsense")] {
            let mut client = gateway.connect().await;
            client.send(&[before, &in_chunks("HTTP/1.1", framing)].concat()).await;
            if !before.is_empty() {
                assert!(matches!(client.answer().await.status, 400 | 404));
            }
            client.answer().await.assert_refused(400, "bad_request");
            assert_eq!(client.rest().await, b"", "nothing after it is answered: {framing:?}");
        }
    }
    let mut client = gateway.connect().await;
    client.send(&in_chunks("HTTP/1.0", "Transfer-Encoding: chunked\r\n")).await;
    client.answer().await.assert_refused(400, "bad_request");
    assert_eq!(client.rest().await, b"");
    assert_eq!(upstream.count(), 0);
    for framing in ["transfer-encoding:chunked\r\n", "Transfer-Encoding: \t CHUNKED \t\r\n"] {
        let mut client = gateway.connect().await;
        client.send(&in_chunks("HTTP/1.1", framing)).await;
        assert_eq!(client.answer().await.text(), PAGE, "{framing:?}");
        assert_eq!(client.answer().await.status, 200, "the request after it is a separate one");
    }
}

#[tokio::test]
async fn a_first_request_that_begins_like_http_2_opens_no_way_around() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let mut client = gateway.connect().await;
    client.send(&[b"PRI * HTTP/1.1\r\nHost: localhost\r\n\r\n", &post(ASK)[..]].concat()).await;
    let first = client.answer().await;
    if first.find("connection") != Some("close") {
        assert_eq!(client.answer().await.status, 200);
        client.send(&in_chunks("HTTP/1.1", "Transfer-Encoding: chunked, chunked\r\n")).await;
        client.answer().await.assert_refused(400, "bad_request");
        assert_eq!(client.rest().await, b"");
    }
}

#[tokio::test]
async fn an_error_of_the_admin_plane_is_sent_unchanged() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let mut client = Client::connect(gateway.admin).await;
    for request in [
        post_to("/cache/purge", "", "nonsense"),
        post_to("/cache/purge", "", r#"{"all":true,"key":"x"}"#),
        get("/cache/entries?limit=abc", ""),
    ] {
        let answer = client.ask(&request).await;
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(!answer.text().contains("the request's head"), "{answer:?}");
        assert_ne!(answer.find("connection"), Some("close"), "its connection stays open: {answer:?}");
    }
    // A request that it cannot parse is different.
    client.send(b"nonsense\r\n\r\n").await;
    client.answer().await.assert_refused(400, "bad_request");
    assert_eq!(client.rest().await, b"");
}

/// The frames of the response to this request: its head, and the bytes of its DATA frames.
async fn over_http2(address: std::net::SocketAddr, method: &str, target: &str) -> (http::response::Parts, Bytes) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) =
        within(http2::handshake(TokioExecutor::new(), TokioIo::new(stream))).await.expect("HTTP/2 by prior knowledge");
    tokio::spawn(connection);
    let request = http::Request::builder().method(method).uri(format!("http://localhost{target}"));
    let request = request.header("x-request-id", "the-same").body(Full::<Bytes>::default()).unwrap();
    let (head, body) = within(sender.send_request(request)).await.expect("an answer").into_parts();
    (head, within(body.collect()).await.expect("a valid body").to_bytes())
}

#[tokio::test]
async fn head_is_answered_like_get_without_a_body_in_every_version() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    assert_eq!(gateway.ask(&get(METADATA, "")).await.status, 200);
    for (address, target, status) in [
        (gateway.data, METADATA, 200),
        (gateway.data, "/nowhere", 404),
        (gateway.data, QUERY, 400),
        (gateway.admin, "/livez", 200),
        (gateway.admin, "/readyz", 200),
        (gateway.admin, "/nowhere", 404),
    ] {
        let (get_head, page) = over_http2(address, "GET", target).await;
        let (head, body) = over_http2(address, "HEAD", target).await;
        assert_eq!((head.status.as_u16(), body.len()), (status, 0), "{target}");
        assert_eq!(head.headers["content-length"], page.len().to_string().as_str(), "{target}");
        let shared = |head: &http::response::Parts| {
            let mut headers = head.headers.clone();
            for changing in ["date", "age", "cache-status"] {
                headers.remove(changing);
            }
            headers
        };
        assert_eq!(shared(&head), shared(&get_head), "{target}");
        let request = format!("HEAD {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let mut client = Client::connect(address).await;
        let answer = client.ask(request.as_bytes()).await;
        assert_eq!(answer.status, status, "{target}");
        assert_eq!(answer.header("content-length"), page.len().to_string(), "{target}");
        assert_eq!(client.rest().await, b"", "{target}");
    }
}

/// Characters that control a terminal, change the direction of text, or are invisible.
const NASTY: &str = "\u{9b}31m\u{202e}txt\u{2066}\u{2069}\u{200e}\u{200f}\u{61c}\u{2028}\u{2029}\u{feff}\u{85}\u{200b}";

fn assert_visible(said: &str) {
    for character in said.chars().filter(|character| !matches!(character, '\n' | ' '..='~')) {
        assert!(!NASTY.contains(character) && !character.is_control(), "{character:?} in {said:?}");
    }
}

#[tokio::test]
async fn no_log_shows_a_character_that_hides_or_moves_others() {
    let (upstream, folder) = (Upstream::start().await, TempDir::new().unwrap());
    let audit = folder.path().join("audit");
    let process = Process::start(vec![
        set("upstream.url", &upstream.url()),
        set("log.audit", &audit.display().to_string()),
        set("log.filter", "debug"),
    ])
    .await;
    let query = format!(r#"{{"query":{{"measures":["Conversation.Count","{NASTY}"]}}}}"#);
    for request in [
        [&b"GET /"[..], NASTY.as_bytes(), b" HTTP/1.1\r\nHost: localhost\r\n\r\n"].concat(),
        [&b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: "[..], NASTY.as_bytes(), b"\r\n\r\n"].concat(),
        post(&query),
    ] {
        let answer = process.ask(&request).await;
        assert!(answer.status < 500, "{answer:?}");
    }
    process.signal("TERM");
    let (_, said) = process.ended().await;
    assert_visible(&said);
    assert!(said.contains(r"\u202e"), "{said}");
    let audit = std::fs::read_to_string(&audit).unwrap();
    assert_visible(&audit);
    let last: Json = serde_json::from_str(audit.lines().last().unwrap()).unwrap();
    assert_eq!(last["fields"]["measures"][1], NASTY, "it is in the log, escaped");
}
