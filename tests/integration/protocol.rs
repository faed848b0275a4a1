//! Clients that break the rules: each invalid request is answered in Twilio's format with the contract's reason,
//! reaches no upstream, and does not affect the next client.

mod connection_use;
mod headers;
mod time_limits;

use std::time::Duration;

use crate::support::gateway::{KEY, SECRET};
use crate::support::*;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::AsyncWriteExt;

struct Bench {
    upstream: Upstream,
    gateway: Gateway,
}

impl Bench {
    async fn new() -> Self {
        Self::with(|config| config).await
    }

    async fn with(configure: impl FnOnce(TestConfig) -> TestConfig) -> Self {
        let upstream = Upstream::start().await;
        let gateway = configure(TestConfig::new(upstream.url())).start().await;
        Self { upstream, gateway }
    }

    /// Every attack must get its refusal; all that do not are reported together. Each has its own connection, and an
    /// honest client is served after each.
    async fn refuses(&self, attacks: &[(&str, Vec<u8>, u16, &str)]) {
        let mut faults = Vec::new();
        for (name, bytes, status, reason) in attacks {
            let before = self.upstream.count();
            let answer = self.gateway.connect().await.try_ask(bytes).await;
            let verdict = answer
                .ok_or_else(|| "the connection ended without an answer".to_owned())
                .and_then(|answer| refusal(&answer, *status, reason));
            if let Err(fault) = verdict {
                faults.push(format!("{name}: {fault}"));
            }
            if self.upstream.count() != before {
                faults.push(format!("{name}: something was sent upstream"));
            }
            let honest = self.gateway.ask(&post(ASK)).await;
            if (honest.status, honest.text().as_str()) != (200, PAGE) {
                faults.push(format!("{name}: the next client got {honest:?}"));
            }
        }
        assert!(faults.is_empty(), "{} of {} failed:\n{}", faults.len(), attacks.len(), faults.join("\n"));
    }
}

fn raw(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

/// A query with this head in place of the usual one.
fn head(lines: &str) -> Vec<u8> {
    format!("POST {QUERY} HTTP/1.1\r\n{lines}\r\n\r\n{ASK}").into_bytes()
}

fn length() -> String {
    format!("Content-Length: {}", ASK.len())
}

fn nested(levels: usize) -> String {
    format!(r#"{{"query":{{}},"x":{}{}}}"#, "[".repeat(levels - 1), "]".repeat(levels - 1))
}

#[tokio::test]
async fn bodies_that_are_not_json_are_invalid_json() {
    let bench = Bench::new().await;
    let bad = |name, body: &[u8]| {
        let mut request =
            format!("POST {QUERY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        request.extend_from_slice(body);
        (name, request, 400, "invalid_json")
    };
    bench
        .refuses(&[
            bad("truncated", &ASK.as_bytes()[..20]),
            bad("empty", b""),
            bad("white space", b" \r\n\t"),
            bad("a form", b"query=%7B%7D"),
            bad("text", b"SELECT * FROM conversations"),
            bad("not UTF-8", b"{\"query\":{\"measures\":[\"\xff\xfe\"]}}"),
            bad("UTF-16", b"\xff\xfe{\0\"\0"),
            bad("a byte order mark", b"\xef\xbb\xbf{\"query\":{}}"),
            bad("text after the body", b"{\"query\":{}}{}"),
            bad("a zero byte after the body", b"{\"query\":{}}\0"),
            bad("a trailing comma", b"{\"query\":{},}"),
            bad("single quotes", b"{'query':{}}"),
            bad("a comment", b"{\"query\":{}/* */}"),
            bad("NaN", b"{\"query\":{\"x\":NaN}}"),
            bad("a leading zero", b"{\"query\":{\"x\":01}}"),
            bad("a raw line break in a string", b"{\"query\":{\"x\":\"a\nb\"}}"),
            bad("half a surrogate pair", br#"{"query":{"x":"\ud800"}}"#),
            bad("a repeated key", br#"{"query":{},"query":{}}"#),
            bad("a repeated key, escaped", br#"{"query":{},"qu\u0065ry":{}}"#),
            bad(
                "a repeated key deep inside",
                br#"{"query":{"filters":[{"op":"AND","\u006fp":"OR","expressions":[]}]}}"#,
            ),
            bad("65 levels", nested(65).as_bytes()),
            bad("100,000 levels", nested(100_000).as_bytes()),
            bad("100,000 levels, never closed", "[".repeat(100_000).as_bytes()),
            bad("100,000 objects, never closed", "{\"a\":".repeat(100_000).as_bytes()),
        ])
        .await;
    let deepest = bench.gateway.ask(&post(&nested(64))).await;
    assert_eq!(deepest.status, 200, "64 levels are allowed: {deepest:?}");
}

#[tokio::test]
async fn json_that_is_not_a_query_is_an_invalid_query() {
    let bench = Bench::new().await;
    let bad = |name, body: &str| (name, post(body), 400, "invalid_query");
    bench
        .refuses(&[
            bad("an array", "[]"),
            bad("a string", "\"query\""),
            bad("a number", "1"),
            bad("null", "null"),
            bad("no query", r#"{"domain":"Conversations"}"#),
            bad("query in capitals", r#"{"Query":{}}"#),
            bad("query is null", r#"{"query":null}"#),
            bad("query is an array", r#"{"query":[]}"#),
            bad("query is a string", r#"{"query":"{}"}"#),
        ])
        .await;
    let escaped = bench.gateway.ask(&post(r#"{"qu\u0065ry":{}}"#)).await;
    assert_eq!(escaped.status, 200, "an escaped spelling is the same member: {escaped:?}");
}

#[tokio::test]
async fn bodies_beyond_max_body_are_refused_with_and_without_a_length() {
    let bench = Bench::with(|config| config.set("server.max_body", "64KiB")).await;
    let large = "a".repeat(64 * 1024 + 1);
    let chunked = |body: &str| {
        let mut request = format!("POST {QUERY} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
        for chunk in body.as_bytes().chunks(1000) {
            request.push_str(&format!("{:x}\r\n{}\r\n", chunk.len(), str::from_utf8(chunk).unwrap()));
        }
        request.push_str("0\r\n\r\n");
        request.into_bytes()
    };
    let promised = format!("Host: localhost\r\nContent-Length: {}\r\n\r\n", 1u64 << 40);
    bench
        .refuses(&[
            ("one byte too many", post(&large), 413, "body_too_large"),
            ("ten megabytes", post(&large.repeat(160)), 413, "body_too_large"),
            ("chunked, one byte too many", chunked(&large), 413, "body_too_large"),
            ("chunked, ten megabytes", chunked(&large.repeat(160)), 413, "body_too_large"),
            ("promised, not sent", head(promised.trim_end()), 413, "body_too_large"),
        ])
        .await;
    let just = format!(r#"{{"query":{{}},"x":"{}"}}"#, "a".repeat(64 * 1024 - 19));
    assert_eq!(just.len(), 64 * 1024);
    assert_eq!(bench.gateway.ask(&post(&just)).await.status, 200, "a body of exactly max_body is allowed");
    let answer = bench.gateway.ask(&chunked(&just)).await;
    assert_eq!((answer.status, answer.detail()), (200, "hit"), "chunks change nothing about the query");
}

#[tokio::test]
async fn unknown_methods_are_405_and_name_the_known_ones() {
    let bench = Bench::new().await;
    for (path, allowed) in [(QUERY, "GET, HEAD, POST"), (METADATA, "GET, HEAD")] {
        for method in ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "get", "M-SEARCH"] {
            let answer = bench
                .gateway
                .ask(&raw(&format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{{}}")))
                .await;
            answer.assert_refused(405, "method_not_allowed");
            assert_eq!(answer.header("allow"), allowed, "{method} {path}");
        }
    }
    let post = bench.gateway.ask(&post_to(METADATA, "", ASK)).await;
    post.assert_refused(405, "method_not_allowed");
    assert_eq!(post.header("allow"), "GET, HEAD");
    assert_eq!(bench.upstream.count(), 0);
}

#[tokio::test]
async fn unknown_methods_are_refused() {
    let bench = Bench::new().await;
    let bad =
        |name, line: &str, status, reason| (name, raw(&format!("{line}\r\nHost: localhost\r\n\r\n")), status, reason);
    bench
        .refuses(&[
            // Its target is a host, and not the gateway's.
            bad("CONNECT", "CONNECT example.com:443 HTTP/1.1", 400, "bad_request"),
            bad("OPTIONS of everything", "OPTIONS * HTTP/1.1", 404, "not_found"),
            bad("brackets in a method", &format!("G[E]T {QUERY} HTTP/1.1"), 400, "bad_request"),
            bad("an empty method", &format!(" {QUERY} HTTP/1.1"), 400, "bad_request"),
            bad("bytes of TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\u{7f}\x03\x03", 400, "bad_request"),
            bad("no target", "GET HTTP/1.1", 400, "bad_request"),
            bad("HTTP/0.9", &format!("GET {METADATA}"), 400, "bad_request"),
            bad("HTTP/3", &format!("GET {METADATA} HTTP/3.0"), 400, "bad_request"),
            bad("an extra word", &format!("GET {METADATA} x HTTP/1.1"), 400, "bad_request"),
        ])
        .await;
}

#[tokio::test]
async fn heads_beyond_their_limit_are_431() {
    let bench = Bench::new().await;
    let big = |bytes: usize| post_to(QUERY, &format!("X-Filler: {}\r\n", "a".repeat(bytes)), ASK);
    let many = |count: usize| post_to(QUERY, &"X-Filler: a\r\n".repeat(count), ASK);
    let uri = |bytes: usize| get(&format!("{METADATA}?a={}", "a".repeat(bytes)), "");
    let path = |bytes: usize| get(&format!("/{}", "a".repeat(bytes)), "");
    let refused = |name, bytes| (name, bytes, 431, "headers_too_large");
    bench
        .refuses(&[
            refused("40 KiB of headers", big(40 << 10)),
            refused("200 KiB of headers", big(200 << 10)),
            refused("2 MiB of headers", big(2 << 20)),
            refused("150 headers", many(150)),
            refused("2000 headers", many(2000)),
            refused("a URI of 40 KiB", uri(40 << 10)),
            refused("a URI of 70 KiB", uri(70 << 10)),
            refused("a URI of 200 KiB", uri(200 << 10)),
            refused("a path of 40 KiB", path(40 << 10)),
            refused("a path of 2 MiB", path(2 << 20)),
            ("a path of 10 KiB", path(10 << 10), 404, "not_found"),
        ])
        .await;
    assert_eq!(bench.gateway.ask(&big(20 << 10)).await.status, 200, "20 KiB of headers are allowed");
    assert_eq!(bench.gateway.ask(&uri(10 << 10)).await.status, 200, "a URI of 10 KiB is allowed");
    assert_eq!(bench.gateway.ask(&many(90)).await.status, 200, "90 headers are allowed");
}

#[tokio::test]
async fn a_query_string_that_grows_when_it_is_encoded_is_refused_before_anything_is_spent() {
    let bench = Bench::new().await;
    // 30 KiB as sent, three times as much in canonical spelling.
    let target = format!("{METADATA}?a={}", "/".repeat(30 << 10));
    let answer = bench.gateway.ask(&get(&target, "")).await;
    assert!((400..500).contains(&answer.status), "{answer:?}");
    answer.assert_refused(answer.status, if answer.status == 431 { "headers_too_large" } else { "bad_request" });
    assert_eq!(bench.upstream.count(), 0);
}

#[tokio::test]
async fn ambiguous_framing_is_a_bad_request() {
    let bench = Bench::new().await;
    let framed = |name, lines: &str, body: &str| {
        let request = format!("POST {QUERY} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n\r\n{body}");
        (name, request.into_bytes(), 400, "bad_request")
    };
    let ask_in_chunks = format!("{:x}\r\n{ASK}\r\n0\r\n\r\n", ASK.len());
    let bad_chunk = |name, chunk: &str| framed(name, "Transfer-Encoding: chunked", chunk);
    let long_extension = format!("2;{}\r\n{{}}\r\n0\r\n\r\n", "x".repeat(100_000));
    bench
        .refuses(&[
            framed("two lengths", "Content-Length: 2\r\nContent-Length: 45", ASK),
            framed("two lengths in one line", "Content-Length: 2, 45", ASK),
            framed("a negative length", "Content-Length: -1", ASK),
            framed("a signed length", "Content-Length: +45", ASK),
            framed("a length in hexadecimal", "Content-Length: 0x2d", ASK),
            framed("a length beyond all numbers", "Content-Length: 99999999999999999999999", ASK),
            framed("an empty length", "Content-Length:", ASK),
            framed("an unknown coding", "Transfer-Encoding: identity", ASK),
            framed("chunked, but not last", "Transfer-Encoding: chunked, gzip", &ask_in_chunks),
            framed("almost chunked", "Transfer-Encoding: xchunked", &ask_in_chunks),
            bad_chunk("a chunk size that is none", "zz\r\n{}\r\n0\r\n\r\n"),
            bad_chunk("a negative chunk size", "-2\r\n{}\r\n0\r\n\r\n"),
            bad_chunk("an endless chunk size", "fffffffffffffffffffff\r\n{}\r\n0\r\n\r\n"),
            bad_chunk("an empty chunk size", "\r\n{}\r\n0\r\n\r\n"),
            bad_chunk("a chunk that is longer than it says", "2\r\n{}xx\r\n0\r\n\r\n"),
            bad_chunk("a chunk extension without end", &long_extension),
            framed("a folded header", "X-Folded: a\r\n b\r\nContent-Length: 45", ASK),
            framed("a carriage return in a header", "X-Bare: a\rb\r\nContent-Length: 45", ASK),
            framed("a zero byte in a header", "X-Zero: a\0b\r\nContent-Length: 45", ASK),
            framed("a space before the colon", "Content-Length : 45", ASK),
            framed("a header without a colon", "Nonsense\r\nContent-Length: 45", ASK),
            framed("a header without a name", ": x\r\nContent-Length: 45", ASK),
            framed("a space in a header's name", "X Y: x\r\nContent-Length: 45", ASK),
        ])
        .await;
    let chunked = framed("", "Transfer-Encoding: chunked", &ask_in_chunks).1;
    assert_eq!(bench.gateway.ask(&chunked).await.status, 200, "plain chunks are allowed");
}

#[tokio::test]
async fn other_spellings_of_a_path_are_not_found() {
    let bench = Bench::new().await;
    let nowhere = |target: &'static str| (target, post_to(target, "", ASK), 404, "not_found");
    bench
        .refuses(&[
            nowhere("/"),
            nowhere("//"),
            nowhere("/v3/InsightsDomains/Conversations/Query/"),
            nowhere("//v3/InsightsDomains/Conversations/Query"),
            nowhere("/v3//InsightsDomains/Conversations/Query"),
            nowhere("/v3/./InsightsDomains/Conversations/Query"),
            nowhere("/v3/x/../InsightsDomains/Conversations/Query"),
            nowhere("/v3/InsightsDomains/Conversations/Metadata/../Query"),
            nowhere("/v3/InsightsDomains/Conversations/%51uery"),
            nowhere("/v3/InsightsDomains/Conversations%2FQuery"),
            nowhere("/v3/InsightsDomains/Conversations%2fQuery"),
            nowhere("/v3/InsightsDomains/Conversations/Query%00"),
            nowhere("/v3/InsightsDomains/Conversations/Query%20"),
            nowhere("/v3/InsightsDomains/Conversations/Query;a=b"),
            nowhere("/v3/InsightsDomains/Conversations/query"),
            nowhere("/V3/InsightsDomains/Conversations/Query"),
            nowhere("/v3\\InsightsDomains\\Conversations\\Query"),
            nowhere("/v3/InsightsDomains/Voice/Query"),
            nowhere("/v3/InsightsDomains/Conversations/Query/.."),
            nowhere("/2010-04-01/Accounts.json"),
            nowhere("/metrics"),
            nowhere("/cache/purge"),
        ])
        .await;
}

#[tokio::test]
async fn a_page_needs_a_token_and_parameters_need_valid_encoding() {
    let bench = Bench::new().await;
    let page = |target: &'static str, reason| (target, get(&format!("{QUERY}{target}"), ""), 400, reason);
    bench
        .refuses(&[
            page("", "invalid_query"),
            page("?", "invalid_query"),
            page("?pageToken", "invalid_query"),
            page("?pageToken=", "invalid_query"),
            page("?pagetoken=x", "invalid_query"),
            page("?pageSize=5", "invalid_query"),
            page("?pageToken=%", "bad_request"),
            page("?pageToken=%2", "bad_request"),
            page("?pageToken=%zz", "bad_request"),
            page("?pageToken=x&%%=1", "bad_request"),
        ])
        .await;
    bench.gateway.ask(&post_to(&format!("{QUERY}?pageSize=%x"), "", ASK)).await.assert_refused(400, "bad_request");
    assert_eq!(bench.gateway.ask(&get(&format!("{QUERY}?pageToken=a+b/c=="), "")).await.status, 200);
    let seen = bench.upstream.seen().pop().unwrap();
    assert_eq!(seen.target(), format!("{QUERY}?pageToken=a%2Bb%2Fc%3D%3D"), "a plus sign is kept");
}

#[tokio::test]
async fn a_length_beside_chunks_is_a_bad_request() {
    let bench = Bench::new().await;
    let chunks = format!("{:x}\r\n{ASK}\r\n0\r\n\r\n", ASK.len());
    let framed = |name, lines: &str| {
        let request = format!("POST {QUERY} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n\r\n{chunks}");
        (name, request.into_bytes(), 400, "bad_request")
    };
    // RFC 9112 section 6.3: this should be an error, because it may be an attempt at request smuggling.
    bench
        .refuses(&[
            framed("length first", "Content-Length: 45\r\nTransfer-Encoding: chunked"),
            framed("chunks first", "Transfer-Encoding: chunked\r\nContent-Length: 45"),
        ])
        .await;
}
