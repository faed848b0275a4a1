//! HTTP/2 by prior knowledge: served like HTTP/1.1, with the same errors.

use std::net::SocketAddr;
use std::time::Duration;

use crate::support::*;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

async fn start(configure: impl FnOnce(TestConfig) -> TestConfig) -> (Upstream, Gateway) {
    let upstream = Upstream::start().await;
    let gateway = configure(TestConfig::new(upstream.url())).start().await;
    (upstream, gateway)
}

pub(crate) async fn connect(gateway: &Gateway) -> http2::SendRequest<Full<Bytes>> {
    connect_to(gateway.data).await
}

pub(crate) async fn connect_to(address: SocketAddr) -> http2::SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) =
        within(http2::handshake(TokioExecutor::new(), TokioIo::new(stream))).await.expect("HTTP/2 by prior knowledge");
    tokio::spawn(connection);
    sender
}

pub(crate) async fn ask(sender: &mut http2::SendRequest<Full<Bytes>>, request: Request<Full<Bytes>>) -> Answer {
    within(sender.ready()).await.unwrap();
    let (head, body) = within(sender.send_request(request)).await.expect("an answer").into_parts();
    let headers = head.headers.iter().map(|(n, v)| (n.to_string(), v.to_str().unwrap().to_owned())).collect();
    let body = within(body.collect()).await.unwrap().to_bytes().to_vec();
    Answer { status: head.status.as_u16(), version: format!("{:?}", head.version), headers, body }
}

pub(crate) fn request(method: &str, gateway: &Gateway, target: &str, body: &str) -> Request<Full<Bytes>> {
    request_to(gateway.data, method, target, body)
}

pub(crate) fn request_to(address: SocketAddr, method: &str, target: &str, body: &str) -> Request<Full<Bytes>> {
    let uri = format!("http://{address}{target}");
    Request::builder().method(method).uri(uri).body(Full::from(body.to_owned())).unwrap()
}

#[tokio::test]
async fn http_2_by_prior_knowledge_is_served_and_refused_alike() {
    let (upstream, gateway) = start(|config| config.set("server.max_body", "64KiB")).await;
    let mut sender = connect(&gateway).await;
    ask(&mut sender, request("POST", &gateway, QUERY, ASK)).await.assert_page(PAGE, "miss");
    ask(&mut sender, request("POST", &gateway, QUERY, ASK)).await.assert_page(PAGE, "hit");
    ask(&mut sender, request("POST", &gateway, QUERY, "nonsense")).await.assert_refused(400, "invalid_json");
    ask(&mut sender, request("PUT", &gateway, QUERY, ASK)).await.assert_refused(405, "method_not_allowed");
    ask(&mut sender, request("GET", &gateway, "/v3/../x", "")).await.assert_refused(404, "not_found");
    let large = "a".repeat(200 << 10);
    ask(&mut sender, request("POST", &gateway, QUERY, &large)).await.assert_refused(413, "body_too_large");
    let mut foreign = request("POST", &gateway, QUERY, ASK);
    *foreign.uri_mut() = format!("http://evil.example{QUERY}").parse().unwrap();
    ask(&mut sender, foreign).await.assert_refused(400, "bad_request");
    let mut big = request("POST", &gateway, QUERY, ASK);
    big.headers_mut().insert("x-filler", "a".repeat(40 << 10).parse().unwrap());
    ask(&mut sender, big).await.assert_refused(431, "headers_too_large");
    ask(&mut sender, request("POST", &gateway, QUERY, ASK)).await.assert_page(PAGE, "hit");
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn http_2_refuses_heads_beyond_its_own_limit_in_twilios_shape_too() {
    let (_upstream, gateway) = start(|config| config).await;
    let mut sender = connect(&gateway).await;
    let mut huge = request("POST", &gateway, QUERY, ASK);
    huge.headers_mut().insert("x-filler", "a".repeat(100 << 10).parse().unwrap());
    ask(&mut sender, huge).await.assert_refused(431, "headers_too_large");
}

#[tokio::test]
async fn http_2_hides_no_foreign_name_behind_a_host_header() {
    let (_upstream, gateway) = start(|config| config).await;
    let mut sender = connect(&gateway).await;
    let mut foreign = request("POST", &gateway, QUERY, ASK);
    *foreign.uri_mut() = format!("http://evil.example{QUERY}").parse().unwrap();
    foreign.headers_mut().insert("host", "localhost".parse().unwrap());
    // RFC 9113 section 8.3.1: a Host that differs from :authority makes the request malformed.
    ask(&mut sender, foreign).await.assert_refused(400, "bad_request");
}

#[tokio::test]
async fn an_http_2_preface_may_come_in_pieces() {
    let (_upstream, gateway) = start(|config| config.set("server.header_timeout", "1s")).await;
    let mut client = gateway.connect().await;
    client.send(b"PR").await;
    gateway.settle().await;
    // The rest of the preface and an empty SETTINGS frame.
    client.send(b"I * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    // An idle HTTP/2 connection does not count as a late head: two pings, each well after the header timeout, are
    // answered.
    for n in 0..2u8 {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        client.send(&[0, 0, 8, 6, 0, 0, 0, 0, 0, n, n, n, n, n, n, n, n]).await;
    }
    let mut bytes = Vec::new();
    let pong = [0, 0, 8, 6, 1, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1];
    let read = async {
        while crate::support::client::find(&bytes, &pong).is_none() {
            let read = tokio::io::AsyncReadExt::read_buf(&mut client.stream, &mut bytes).await;
            assert!(matches!(read, Ok(1..)), "closed after {:?}", String::from_utf8_lossy(&bytes));
        }
    };
    within(read).await;
    assert!(crate::support::client::find(&bytes, b"HTTP/1.1").is_none(), "{:?}", String::from_utf8_lossy(&bytes));
}
