//! The codings of Twilio's responses: gzip is requested and decoded, and no response that is coded in another way,
//! mislabelled or not JSON reaches a client, whatever its status.

use std::io::Write;

use crate::support::faults::{ends_as_documented, fault};
use crate::support::gateway::{KEY, SECRET};
use crate::support::*;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

fn gzip(plain: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(plain.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn zlib(plain: &str) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(plain.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn deflate(plain: &str) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(plain.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

/// A response with these header lines, each ended by CR LF.
fn plan(status: u16, headers: &str, body: &[u8]) -> Plan {
    let head = format!("HTTP/1.1 {status} Some Words\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
    Plan::raw([head.as_bytes(), body].concat())
}

const GZIP: &str = "Content-Type: application/json\r\nContent-Encoding: gzip\r\n";

/// A page of some size.
fn large_page(rows: usize) -> String {
    let rows: Vec<_> = (0..rows).map(|n| format!(r#"{{"Conversation.Count":{n}}}"#)).collect();
    format!(r#"{{"cubes":[],"data":[{}],"meta":{{}}}}"#, rows.join(","))
}

#[tokio::test]
async fn gzip_is_asked_for_and_what_clients_get_is_decoded() {
    let large = large_page(20_000);
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let chunked = |body: &[u8]| {
        let mut answer = format!("HTTP/1.1 200 OK\r\n{GZIP}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
        for chunk in body.chunks(7) {
            answer.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
            answer.extend(chunk);
            answer.extend(b"\r\n");
        }
        answer.extend(b"0\r\n\r\n");
        Plan::raw(answer)
    };
    let members = [gzip(&PAGE[..10]), gzip(""), gzip(&PAGE[10..])].concat();
    let plans = [
        (plan(200, GZIP, &gzip(PAGE)), PAGE),
        (plan(200, "Content-Encoding: X-GZip\r\n", &gzip(PAGE)), PAGE),
        (plan(200, "Content-Encoding: identity\r\nContent-Encoding: gzip\r\n", &gzip(PAGE)), PAGE),
        (plan(200, "Content-Encoding: identity\r\n", PAGE.as_bytes()), PAGE),
        (plan(200, "", PAGE.as_bytes()), PAGE),
        (plan(200, GZIP, &members), PAGE),
        (chunked(&gzip(PAGE)), PAGE),
        (plan(200, GZIP, &gzip(&large)), &large),
    ];
    for (n, (plan, body)) in plans.into_iter().enumerate() {
        upstream.set(move |_| plan.clone());
        let target = format!("{METADATA}?n={n}");
        let answer = gateway.ask(&get(&target, "")).await;
        answer.assert_page(body, "miss");
        assert_eq!((answer.find("content-encoding"), answer.find("etag").is_some()), (None, true), "{n}");
        gateway.ask(&get(&target, "")).await.assert_page(body, "hit");
    }
    for seen in upstream.seen() {
        assert_eq!(seen.header("accept-encoding"), Some("gzip"), "{}", seen.head);
    }
    assert_eq!(upstream.connections(), 1, "the connection is kept");
}

#[tokio::test]
async fn the_entity_tag_is_that_of_the_decoded_page() {
    let upstream = Upstream::script(|seen| match seen.number {
        1 => Plan::page(PAGE),
        _ => plan(200, GZIP, &gzip(PAGE)),
    })
    .await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let [plain, coded] =
        [gateway.ask(&get(METADATA, "")).await, gateway.ask(&get(&format!("{METADATA}?n=1"), "")).await];
    assert_eq!(plain.header("etag"), coded.header("etag"));
}

#[tokio::test]
async fn twilios_own_errors_are_decoded_too() {
    let body = r#"{"code":20404,"message":"nothing there","httpStatusCode":404}"#;
    for status in [400, 404, 429, 500, 503] {
        let upstream = Upstream::script(move |_| plan(status, GZIP, &gzip(body))).await;
        let gateway = TestConfig::new(upstream.url()).set("retry.attempts", "1").start().await;
        let answer = gateway.ask(&post(ASK)).await;
        assert_eq!((answer.status, answer.text().as_str()), (status, body));
        assert_eq!(answer.find("content-encoding"), None);
    }
}

/// Bodies that are neither plain JSON nor JSON in valid gzip.
fn unreadable() -> Vec<(&'static str, String, Vec<u8>)> {
    let whole = gzip(PAGE);
    let as_gzip = |body: &[u8]| (GZIP.to_owned(), body.to_vec());
    let as_coding = |coding: &str, body: Vec<u8>| (format!("Content-Encoding: {coding}\r\n"), body);
    let json = || "Content-Type: application/json\r\n".to_owned();
    let cases = [
        ("plain, said to be gzip", as_gzip(PAGE.as_bytes())),
        ("nothing, said to be gzip", as_gzip(b"")),
        ("cut gzip", as_gzip(&whole[..whole.len() - 1])),
        ("half of the gzip", as_gzip(&whole[..whole.len() / 2])),
        ("a damaged checksum", as_gzip(&[&whole[..whole.len() - 5], b"\0\0\0\0\0"].concat())),
        ("something behind the gzip", as_gzip(&[&whole[..], b"{}"].concat())),
        ("HTML in gzip", as_gzip(&gzip("<html>no</html>"))),
        (
            "gzip in gzip, said once",
            as_gzip(&{
                let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
                encoder.write_all(&whole).unwrap();
                encoder.finish().unwrap()
            }),
        ),
        ("gzip, not said", (json(), whole.clone())),
        ("gzip, said twice", as_coding("gzip, gzip", whole.clone())),
        ("gzip, said on two lines", as_coding("gzip\r\nContent-Encoding: x-gzip", whole.clone())),
        ("zlib, said to be deflate", as_coding("deflate", zlib(PAGE))),
        ("deflate", as_coding("deflate", deflate(PAGE))),
        ("zlib, said to be gzip", as_gzip(&zlib(PAGE))),
        ("Brotli", as_coding("br", b"\x0b\x02\x80{}\x03".to_vec())),
        ("plain, said to be Brotli", as_coding("br", PAGE.as_bytes().to_vec())),
        ("HTML", ("Content-Type: text/html\r\n".to_owned(), b"<html>no</html>".to_vec())),
        ("nothing", (json(), Vec::new())),
        ("bytes", (json(), b"\xff\xfe\x00".to_vec())),
    ];
    cases.map(|(name, (headers, body))| (name, headers, body)).into()
}

#[tokio::test]
async fn a_decoded_body_that_is_not_json_is_invalid_and_not_stored() {
    let once = |(name, headers, body): (&'static str, String, Vec<u8>)| {
        fault(name, plan(200, &headers, &body), 1, 502, "upstream_invalid")
    };
    ends_as_documented(unreadable().into_iter().map(once).collect()).await;
    let again = |(name, headers, body): (&'static str, String, Vec<u8>)| {
        fault(name, plan(503, &headers, &body), 4, 502, "upstream_invalid")
    };
    ends_as_documented(unreadable().into_iter().map(again).collect()).await;
}

#[tokio::test]
async fn a_429_keeps_its_status_and_headers_and_never_an_unreadable_body() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url())
        .set("retry.attempts", "1")
        .set("retry.max_pause", "1ms")
        .set("upstream.attempt_timeout", "4s")
        .set("upstream.max_response", "1MiB")
        // With an adapted rate this test would take long.
        .set("accounts.default.adapt", "false")
        .start()
        .await;
    for (n, (name, headers, body)) in unreadable().into_iter().enumerate() {
        let headers = format!("{headers}X-RateLimit-Limit: 5\r\nX-RateLimit-Remaining: 0\r\nX-RateLimit-Reset: 7\r\n");
        let answer = plan(429, &headers, &body);
        upstream.set(move |_| answer.clone());
        let answer = gateway.ask(&get(&format!("{METADATA}?n={n}"), "")).await;
        assert_eq!((answer.status, answer.reason().as_str()), (429, "upstream_rate_limit"), "{name}: {answer:?}");
        assert_eq!(answer.json()["code"], 20429, "{name}");
        assert_eq!(answer.header("content-type"), "application/json", "{name}");
        assert_eq!(answer.find("content-encoding"), None, "{name}");
        assert_eq!((answer.header("x-ratelimit-limit"), answer.header("retry-after")), ("5", "7"), "{name}");
    }
    // Cut short, too large, or without end: still a 429.
    let large = large_page(50_000);
    let cut = Plan::raw("HTTP/1.1 429 x\r\nRetry-After: 9\r\nContent-Length: 100\r\n\r\n{").then_close();
    let endless = Plan::raw("HTTP/1.1 429 x\r\nRetry-After: 9\r\nContent-Length: 100\r\n\r\n{").then_silence();
    for (n, plan) in [plan(429, "Retry-After: 9\r\n", large.as_bytes()), cut, endless].into_iter().enumerate() {
        upstream.set(move |_| plan.clone());
        let answer = gateway.ask(&get(&format!("{METADATA}?large={n}"), "")).await;
        assert_eq!((answer.status, answer.header("retry-after")), (429, "9"));
        assert_eq!(answer.reason(), "upstream_rate_limit");
    }
}

#[tokio::test]
async fn a_rejection_is_recognised_by_its_status_in_every_coding() {
    for status in [401, 403] {
        let upstream = Upstream::start().await;
        let gateway = TestConfig::new(upstream.url()).start().await;
        for (n, (name, headers, body)) in unreadable().into_iter().enumerate() {
            let answer = plan(status, &headers, &body);
            upstream.set(move |_| answer.clone());
            let answer = gateway.ask(&get(&format!("{METADATA}?n={n}"), "")).await;
            let refusal = refusal(&answer, 502, "upstream_rejected_credentials");
            assert!(refusal.is_ok(), "{name}: {refusal:?}");
        }
    }
}

#[tokio::test]
async fn a_secret_is_found_in_decoded_bodies_of_every_status() {
    let pair = BASE64_STANDARD.encode(format!("{KEY}:{SECRET}"));
    let percent: String = SECRET.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let escaped: String = SECRET.bytes().map(|byte| format!("\\u{byte:04x}")).collect();
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url())
        .set("retry.attempts", "1")
        .set("retry.max_pause", "1ms")
        .set("circuit.ratio", "1")
        .start()
        .await;
    let mut asked = 0;
    for status in [200, 400, 401, 403, 404, 409, 429, 500, 501, 503] {
        for form in [SECRET, &pair, &percent, &escaped] {
            let json = format!(r#"{{"message":"{form}"}}"#);
            let split = [gzip(&json[..json.len() / 2]), gzip(&json[json.len() / 2..])].concat();
            let html = format!("<html>{form}</html>");
            for (headers, body) in [
                (GZIP, gzip(&json)),
                (GZIP, split),
                (GZIP, json.clone().into_bytes()),
                (GZIP, gzip(&html)),
                ("", gzip(&json)),
                ("Content-Encoding: br\r\n", json.clone().into_bytes()),
                ("Content-Type: text/html\r\n", html.clone().into_bytes()),
                ("", json.clone().into_bytes()),
            ] {
                let answer = plan(status, headers, &body);
                upstream.set(move |_| answer.clone());
                asked += 1;
                let answer = gateway.ask(&get(&format!("{METADATA}?n={asked}"), "")).await;
                let shown = format!("{:?}{}", answer.headers, answer.text());
                for form in [SECRET, &pair, &percent, &escaped] {
                    assert!(!shown.contains(form), "{status}, {headers:?}: {shown}");
                }
                assert!(!answer.body.starts_with(b"\x1f\x8b"), "{status}, {headers:?}: raw gzip");
                assert_eq!(answer.header("content-type"), "application/json", "{status}, {headers:?}: {shown}");
                assert_eq!(answer.json()["params"]["source"], "gateway", "{status}, {headers:?}: {shown}");
            }
        }
    }
    assert_eq!(gateway.metric("cache_entries", &[]).await, 0.0);
}

#[tokio::test]
async fn a_bomb_is_bounded_by_max_response_in_both_forms() {
    let bomb = gzip(&format!("\"{}\"", " ".repeat(64 << 20)));
    let too_large = |name, plan| fault(name, plan, 1, 502, "upstream_invalid");
    let noise: String = std::iter::repeat_with(fastrand::alphanumeric).take(120_000).collect();
    ends_as_documented(vec![
        too_large("decoded", plan(200, GZIP, &bomb)),
        too_large("decoded, behind a 503", plan(503, GZIP, &bomb)),
        too_large("a little too large", plan(200, GZIP, &gzip(&format!("\"{}\"", "a".repeat(64 << 10))))),
        too_large("of many members", plan(200, GZIP, &gzip(&" ".repeat(40_000)).repeat(2))),
        too_large("coded", plan(200, GZIP, &gzip(&format!("\"{noise}\"")))),
    ])
    .await;
    // Exactly as large as allowed.
    let just = format!("\"{}\"", "a".repeat((64 << 10) - 2));
    let coded = gzip(&just);
    let upstream = Upstream::script(move |_| plan(200, GZIP, &coded)).await;
    let gateway = TestConfig::new(upstream.url()).set("upstream.max_response", "64KiB").start().await;
    gateway.ask(&post(ASK)).await.assert_page(&just, "miss");
}

#[tokio::test]
async fn a_client_that_accepts_gzip_gets_the_gateways_own() {
    let page = large_page(1000);
    let answer = page.clone();
    let upstream = Upstream::script(move |_| plan(200, GZIP, &gzip(&answer))).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    gateway.ask(&get(METADATA, "Accept-Encoding: gzip\r\n")).await.assert_page(&page, "miss");
    let coded = poll("the coded page", || async {
        let answer = gateway.ask(&get(METADATA, "Accept-Encoding: gzip\r\n")).await;
        (answer.find("content-encoding") == Some("gzip")).then_some(answer)
    })
    .await;
    let mut plain = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&coded.body[..]), &mut plain).unwrap();
    assert_eq!(plain, page);
    gateway.ask(&get(METADATA, "")).await.assert_page(&page, "hit");
}
