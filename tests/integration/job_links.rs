//! Links in answers about query jobs lead each client to the address that it used.

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2::handshake;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;

use super::http2;
use crate::support::certificate::Certificate;
use crate::support::*;

const JOB: &str = "/v3/InsightsDomains/Conversations/QueryJobs/op_1";

/// Headers that any client could add to a request.
const FORWARDED: &str = "X-Forwarded-Host: evil.example\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Prefix: /evil\r\nForwarded: host=evil.example;proto=https\r\n";

/// A job that has ended, with links to Twilio.
async fn upstream() -> Upstream {
    let body = format!(
        r#"{{"operationId":"op_1","status":"COMPLETED","statusUrl":"https:\/\/insights.twilio.com{JOB}","resultUrl":"https://insights.twilio.com{JOB}/Results","error":{{"statusUrl":"https://insights.twilio.com{JOB}"}}}}"#
    );
    Upstream::script(move |_| Plan::json(200, &body)).await
}

/// The part of the links in an answer before the API's own paths.
#[track_caller]
fn base(answer: &Answer) -> String {
    let body = answer.json();
    let base = body["statusUrl"].as_str().unwrap().strip_suffix(JOB).unwrap_or_else(|| panic!("{body}")).to_owned();
    assert_eq!(body["resultUrl"], format!("{base}{JOB}/Results"));
    assert_eq!(
        body["error"]["statusUrl"],
        format!("https://insights.twilio.com{JOB}"),
        "not one of the members with links"
    );
    base
}

#[tokio::test]
async fn links_have_the_address_that_the_client_used() {
    let (upstream, certificate, folder) = (upstream().await, Certificate::new(), TempDir::new().unwrap());
    let socket = folder.path().join("gateway.sock");
    let gateway = TestConfig::new(upstream.url())
        .set("server.listen", format!("127.0.0.1:0,unix:{}", socket.display()))
        .set("server.tls.cert", certificate.path("cert.pem"))
        .set("server.tls.key", certificate.path("key.pem"))
        .start()
        .await;
    let ask = get(JOB, FORWARDED);
    // Several clients, one after the other: none may get the links of another.
    for _ in 0..2 {
        let over_tls = certificate.connect(gateway.data, &["http/1.1"]).await;
        assert_eq!(base(&Client::over(over_tls).ask(&ask).await), "https://localhost");
        assert_eq!(base(&Client::connect_unix(&socket).await.ask(&ask).await), "http://localhost");
        let over_tls = TokioIo::new(certificate.connect(gateway.data, &["h2"]).await);
        let (mut sender, connection) =
            within(handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), over_tls)).await.unwrap();
        tokio::spawn(connection);
        let mut request = http2::request("GET", &gateway, JOB, "");
        request.headers_mut().insert("x-forwarded-host", "evil.example".parse().unwrap());
        assert_eq!(base(&http2::ask(&mut sender, request).await), format!("https://{}", gateway.data));
    }
    assert_eq!(upstream.count(), 1, "the job's end is stored once, for all of them");
}

#[tokio::test]
async fn links_keep_the_clients_host_and_are_relative_without_one() {
    let upstream = upstream().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    for (host, expected) in
        [("127.0.0.1:8080", "http://127.0.0.1:8080"), ("LocalHost", "http://LocalHost"), ("[::1]:1", "http://[::1]:1")]
    {
        let request = format!("GET {JOB} HTTP/1.1\r\nHost: {host}\r\n{FORWARDED}\r\n");
        assert_eq!(base(&gateway.ask(request.as_bytes()).await), expected);
    }
    let absolute = format!("GET http://localhost:7{JOB} HTTP/1.1\r\nHost: localhost:7\r\n\r\n");
    assert_eq!(base(&gateway.ask(absolute.as_bytes()).await), "http://localhost:7");
    assert_eq!(base(&gateway.ask(format!("GET {JOB} HTTP/1.0\r\n\r\n").as_bytes()).await), "");
    let mut sender = http2::connect(&gateway).await;
    let request = http2::request("GET", &gateway, JOB, "");
    assert_eq!(base(&http2::ask(&mut sender, request).await), format!("http://{}", gateway.data));
}
