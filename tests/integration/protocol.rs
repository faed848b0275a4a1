//! Clients that break the rules: each invalid request is answered in Twilio's format with the contract's reason,
//! reaches no upstream, and does not affect the next client.

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
async fn hosts_that_are_missing_doubled_or_foreign_are_refused() {
    let bench = Bench::new().await;
    let with = |name, hosts: &str| (name, head(&format!("{hosts}{}", length())), 400, "bad_request");
    let foreign =
        format!("POST http://evil.example{QUERY} HTTP/1.1\r\nHost: evil.example\r\n{}\r\n\r\n{ASK}", length());
    bench
        .refuses(&[
            with("no Host", ""),
            with("two Hosts", "Host: localhost\r\nHost: localhost\r\n"),
            with("two different Hosts", "Host: localhost\r\nHost: evil.example\r\n"),
            with("an empty Host", "Host: \r\n"),
            with("a foreign Host", "Host: evil.example\r\n"),
            with("a foreign Host that begins like ours", "Host: 127.0.0.1.evil.example\r\n"),
            with("a foreign Host that ends like ours", "Host: evillocalhost\r\n"),
            with("a Host with a path", "Host: localhost/x\r\n"),
            with("a Host with spaces", "Host: local host\r\n"),
            ("a foreign absolute target", foreign.into_bytes(), 400, "bad_request"),
        ])
        .await;
    for host in ["localhost", "LocalHost:8080", "127.0.0.1:1", "[::1]:8080", "app.localhost"] {
        let answer = bench.gateway.ask(&head(&format!("Host: {host}\r\n{}", length()))).await;
        assert_eq!(answer.status, 200, "{host}: {answer:?}");
    }
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
async fn a_head_that_is_late_is_408_and_the_connection_is_closed() {
    let bench = Bench::with(|config| config.set("server.header_timeout", "1s")).await;
    let mut begun = bench.gateway.connect().await;
    begun.send(b"POST /v3/Insights").await;
    let answer = begun.answer().await;
    answer.assert_refused(408, "client_timeout");
    assert_eq!(answer.header("connection"), "close");
    assert_eq!(begun.rest().await, b"", "nothing follows");
    let mut silent = bench.gateway.connect().await;
    assert_eq!(silent.rest().await, b"", "a silent client gets no response and is disconnected");
    assert_eq!(bench.gateway.ask(&post(ASK)).await.status, 200);
}

#[tokio::test]
async fn a_head_that_drips_is_408_however_steadily_it_does() {
    let bench = Bench::with(|config| config.set("server.header_timeout", "1s")).await;
    let client = bench.gateway.connect().await;
    let (mut reading, mut writing) = client.stream.into_split();
    let dripping = tokio::spawn(async move {
        let mut dripped = 0;
        loop {
            let byte: &[u8] = if dripped == 0 { b"GET / HTTP/1.1\r\nX-Filler: " } else { b"a" };
            if writing.write_all(byte).await.is_err() || dripped > 2000 {
                return dripped;
            }
            dripped += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let mut bytes = Vec::new();
    // The connection may end in a reset, because the client is still sending; what came before the reset counts.
    let _ = within(tokio::io::AsyncReadExt::read_to_end(&mut reading, &mut bytes)).await;
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
    assert!(text.contains("\"reason\":\"client_timeout\""), "{text}");
    assert!(within(dripping).await.unwrap() < 2000, "the connection is closed");
}

#[tokio::test]
async fn the_second_head_of_a_connection_has_the_same_time_limit() {
    let bench = Bench::with(|config| config.set("server.header_timeout", "1s")).await;
    let mut client = bench.gateway.connect().await;
    assert_eq!(client.ask(&post(ASK)).await.status, 200);
    client.send(b"POST /v3/Insights").await;
    client.answer().await.assert_refused(408, "client_timeout");
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn half_a_head_after_a_request_has_the_same_time_limit() {
    let bench = Bench::with(|config| config.set("server.header_timeout", "1s")).await;
    let mut client = bench.gateway.connect().await;
    let mut bytes = post(ASK);
    bytes.extend_from_slice(b"POST /v3/Insights");
    client.send(&bytes).await;
    assert_eq!(client.answer().await.status, 200);
    client.answer().await.assert_refused(408, "client_timeout");
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn a_body_that_is_late_is_408_and_the_connection_is_closed() {
    let bench = Bench::with(|config| config.set("server.body_timeout", "1s")).await;
    for start in [
        format!("POST {QUERY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 45\r\n\r\n{{\"que"),
        format!("POST {QUERY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 45\r\n\r\n"),
        format!("POST {QUERY} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{{\"que"),
    ] {
        let mut client = bench.gateway.connect().await;
        client.send(start.as_bytes()).await;
        let answer = client.answer().await;
        answer.assert_refused(408, "client_timeout");
        assert_eq!(answer.header("connection"), "close", "{start}");
        assert_eq!(client.rest().await, b"", "{start}");
    }
    assert_eq!(bench.upstream.count(), 0);
    assert_eq!(bench.gateway.ask(&post(ASK)).await.status, 200);
}

#[tokio::test]
async fn a_client_that_hangs_up_in_its_body_sends_nothing_upstream() {
    let bench = Bench::new().await;
    for reset in [false, true] {
        let mut client = bench.gateway.connect().await;
        client
            .send(format!("POST {QUERY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 45\r\n\r\n{{\"que").as_bytes())
            .await;
        bench.gateway.settle().await;
        if reset {
            client.stream.set_zero_linger().unwrap();
        }
    }
    // 400 when the client could still read the response, 499 when it could not. Each request is counted exactly once.
    poll("both requests are counted", || async {
        let count = bench.gateway.metric("requests_total", &["operation=\"query\""]).await;
        assert!(count <= 2.0);
        (count == 2.0).then_some(())
    })
    .await;
    assert_eq!(bench.gateway.metric("requests_total", &["status=\"5"]).await, 0.0);
    assert_eq!(bench.upstream.count(), 0);
    assert_eq!(bench.gateway.ask(&post(ASK)).await.status, 200);
}

#[tokio::test]
async fn a_client_that_closes_its_half_in_a_body_is_refused_or_disconnected() {
    let bench = Bench::new().await;
    let mut client = bench.gateway.connect().await;
    client
        .send(format!("POST {QUERY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 45\r\n\r\n{{\"que").as_bytes())
        .await;
    client.stream.shutdown().await.unwrap();
    if let Some(answer) = client.next().await {
        answer.assert_refused(400, "bad_request");
    }
    assert_eq!(bench.upstream.count(), 0);
}

#[tokio::test]
async fn head_has_the_headers_of_get_and_no_body() {
    let bench = Bench::new().await;
    for target in [METADATA.to_owned(), format!("{QUERY}?pageToken=abc")] {
        // So that both requests are hits.
        assert_eq!(bench.gateway.ask(&get(&target, "")).await.status, 200);
        let id = "X-Request-Id: the-same\r\n";
        let mut client = bench.gateway.connect().await;
        let head = client.ask(format!("HEAD {target} HTTP/1.1\r\nHost: localhost\r\n{id}\r\n").as_bytes()).await;
        assert_eq!((head.status, head.detail()), (200, "hit"));
        // Bytes of a body would be read as the beginning of this response's head.
        let get = client.ask(&get(&target, id)).await;
        assert_eq!(get.text(), PAGE);
        // Except for what may change between them within a second.
        let shared = |answer: &Answer| {
            let mut headers = answer.headers.clone();
            headers.retain(|(name, _)| !matches!(name.as_str(), "date" | "age" | "cache-status"));
            headers.sort();
            headers
        };
        assert_eq!(shared(&head), shared(&get), "{target}");
        assert!(head.find("date").is_some() && head.find("age").is_some(), "{head:?}");
    }
    assert_eq!(bench.upstream.count(), 2);
    let answer = bench.gateway.connect().await.ask(b"HEAD /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!((answer.status, answer.body.len()), (404, 0));
}

#[tokio::test]
async fn what_is_malformed_behind_http_1_0_is_refused_in_our_words() {
    let upstream = Upstream::script(|_| Plan::page(PAGE)).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let mut client = gateway.connect().await;
    let first = format!("GET {METADATA} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    client.send(format!("{first} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await;
    assert_eq!(client.answer().await.status, 200);
    client.answer().await.assert_refused(400, "bad_request");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let bench = Bench::new().await;
    bench.upstream.set(|seen| Plan::page(&seen.text()));
    let body = |n: usize| format!(r#"{{"n":{n},"query":{{}}}}"#);
    let mut client = bench.gateway.connect().await;
    let mut bytes = Vec::new();
    for n in 0..20 {
        bytes.extend_from_slice(&post(&body(n)));
        bytes.extend_from_slice(&get("/nowhere", ""));
    }
    client.send(&bytes).await;
    for n in 0..20 {
        client.answer().await.assert_page(&body(n), "miss");
        client.answer().await.assert_refused(404, "not_found");
    }
    assert_eq!(bench.upstream.count(), 20);
}

#[tokio::test]
async fn a_malformed_request_after_a_valid_one_is_refused_in_the_same_format() {
    let bench = Bench::new().await;
    let malformed: [(&str, &[u8], u16, &str); 5] = [
        ("no method", b"\0\0\0\0 / HTTP/1.1\r\n\r\n", 400, "bad_request"),
        ("no Host", b"GET /nowhere HTTP/1.1\r\n\r\n", 400, "bad_request"),
        (
            "two lengths",
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            400,
            "bad_request",
        ),
        (
            "a length and chunks",
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "bad_request",
        ),
        (
            "chunks and a length",
            b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
            400,
            "bad_request",
        ),
    ];
    for (name, bytes, status, reason) in malformed {
        // Once as a hit, which is answered while the second head is already there, and once as a request that waits.
        for target in [METADATA.to_owned(), format!("{METADATA}?fresh={}", name.len())] {
            let mut client = bench.gateway.connect().await;
            client.send(&[&get(&target, ""), bytes].concat()).await;
            assert_eq!(client.answer().await.status, 200, "{name}");
            let answer = client.next().await.unwrap_or_else(|| panic!("{name}: no answer"));
            refusal(&answer, status, reason).unwrap_or_else(|fault| panic!("{name} after {target}: {fault}"));
        }
    }
}

#[tokio::test]
async fn a_request_with_two_lengths_is_found_after_bodies_and_in_pieces() {
    let bench = Bench::new().await;
    let ambiguous = format!(
        "POST {QUERY} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"
    );
    let chunked = format!(
        "POST {QUERY} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{ASK}\r\n0\r\n\r\n",
        ASK.len()
    );
    for first in [post(ASK), chunked.into_bytes()] {
        let all = [&first[..], ambiguous.as_bytes()].concat();
        for cut in [all.len(), first.len(), first.len() + 1, first.len() + 70, all.len() - 6, first.len() - 3] {
            let mut client = bench.gateway.connect().await;
            client.send(&all[..cut]).await;
            bench.gateway.settle().await;
            client.send(&all[cut..]).await;
            assert_eq!(client.answer().await.text(), PAGE, "cut at {cut}");
            client.answer().await.assert_refused(400, "bad_request");
            assert_eq!(client.rest().await, b"", "cut at {cut}");
        }
    }
    assert_eq!(bench.upstream.count(), 1);
}

#[tokio::test]
async fn a_body_that_looks_like_a_request_is_never_taken_for_one() {
    let bench = Bench::new().await;
    let smuggled = format!("GET {METADATA}?smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let carriers = [
        format!("GET {METADATA} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{smuggled}", smuggled.len()),
        format!("POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{smuggled}", smuggled.len()),
        format!("PUT {QUERY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{smuggled}", smuggled.len()),
        format!(
            "POST {QUERY} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n\
             0\r\n\r\n{smuggled}"
        ),
    ];
    for carrier in carriers {
        let mut client = bench.gateway.connect().await;
        client.send(carrier.as_bytes()).await;
        let _ = client.answer().await;
        let _ = client.stream.shutdown().await;
        let _ = client.rest().await;
    }
    let smuggled: Vec<_> =
        bench.upstream.seen().into_iter().filter(|seen| seen.target().contains("smuggled")).collect();
    assert!(smuggled.is_empty(), "{smuggled:?}");
}

#[tokio::test]
async fn a_connection_serves_many_requests_refusals_included() {
    let bench = Bench::new().await;
    let mut client = bench.gateway.connect().await;
    for _ in 0..5 {
        assert_eq!(client.ask(&post(ASK)).await.status, 200);
        client.ask(&post("nonsense")).await.assert_refused(400, "invalid_json");
        client.ask(&get("/nowhere", "")).await.assert_refused(404, "not_found");
        client.ask(&post_to(METADATA, "", ASK)).await.assert_refused(405, "method_not_allowed");
        client.ask(&get(METADATA, "Cache-Control: only-if-cached\r\n")).await.assert_refused(504, "only_if_cached");
    }
    assert_eq!(bench.upstream.count(), 1);
}

#[tokio::test]
async fn http_1_0_is_served_and_closed() {
    let bench = Bench::new().await;
    let mut client = bench.gateway.connect().await;
    let answer = client.ask(format!("GET {METADATA} HTTP/1.0\r\n\r\n").as_bytes()).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, PAGE));
    assert_eq!(client.rest().await, b"");
    let foreign = bench.gateway.ask(format!("GET {METADATA} HTTP/1.0\r\nHost: evil.example\r\n\r\n").as_bytes()).await;
    foreign.assert_refused(400, "bad_request");
    bench.gateway.ask(b"GET /nowhere HTTP/1.0\r\n\r\n").await.assert_refused(404, "not_found");
}

#[tokio::test]
async fn expect_100_continue_is_answered_before_the_body_is_sent() {
    let bench = Bench::new().await;
    let mut client = bench.gateway.connect().await;
    let head = format!("POST {QUERY} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n{}\r\n\r\n", length());
    client.send(head.as_bytes()).await;
    let interim = client.next().await.expect("an interim response");
    assert_eq!(interim.status, 100);
    client.send(ASK.as_bytes()).await;
    client.answer().await.assert_page(PAGE, "miss");
    // A request that is refused by its head needs no body.
    let mut client = bench.gateway.connect().await;
    client
        .send(b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n")
        .await;
    client.next().await.expect("an answer").assert_refused(404, "not_found");
}

#[tokio::test]
async fn no_header_of_a_client_goes_upstream() {
    let bench = Bench::new().await;
    let headers = "Authorization: Basic Y2xpZW50OnN0b2xlbg==\r\nCookie: session=stolen\r\nX-Forwarded-For: 6.6.6.6\r\n\
                   Forwarded: for=6.6.6.6\r\nX-Api-Key: stolen\r\nProxy-Authorization: Basic stolen\r\nVia: 1.1 stolen\r\n\
                   Accept-Encoding: gzip\r\nAccept: text/stolen\r\nUser-Agent: stolen\r\nReferer: http://stolen/\r\n\
                   Content-Type: application/x-www-form-urlencoded\r\nI-Twilio-Idempotency-Token: stolen\r\n\
                   Connection: X-Nominated, keep-alive\r\nX-Nominated: stolen\r\nTE: trailers\r\nRange: bytes=0-1\r\n\
                   X-Request-Id: stolen-id\r\nIf-None-Match: \"stolen\"\r\nX-HTTP-Method-Override: DELETE\r\n";
    for request in [post_to(&format!("{QUERY}?pageSize=7"), headers, ASK), get(METADATA, headers)] {
        let answer = bench.gateway.ask(&request).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("x-request-id"), "stolen-id", "the client's own id comes back");
    }
    let expected = format!("Basic {}", STANDARD.encode(format!("{KEY}:{SECRET}")));
    for seen in bench.upstream.seen() {
        assert_eq!(seen.header("authorization"), Some(expected.as_str()));
        assert!(!seen.head.contains("stolen") && !seen.head.contains("6.6.6.6"), "{}", seen.head);
        assert_eq!(seen.header("host"), Some(bench.upstream.address.to_string().as_str()));
        let mut names: Vec<_> = seen
            .head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .map(|(n, _)| n.to_ascii_lowercase())
            .collect();
        names.sort();
        let mut known = vec!["accept", "accept-encoding", "authorization", "host", "user-agent"];
        if seen.head.starts_with("POST ") {
            known.extend(["content-length", "content-type"]);
            assert_eq!(seen.header("content-type"), Some("application/json"));
        }
        known.sort_unstable();
        assert_eq!(names, known, "no other header goes upstream");
    }
}

#[tokio::test]
async fn no_private_header_of_the_upstream_reaches_clients() {
    let bench = Bench::new().await;
    bench.upstream.set(|_| {
        let headers = "Content-Type: application/json\r\nSet-Cookie: a=leaked\r\nServer: leaked\r\nX-Powered-By: leaked\r\n\
                       Via: 1.1 leaked\r\nStrict-Transport-Security: max-age=1\r\nX-Home-Region: leaked\r\n\
                       Access-Control-Allow-Origin: *\r\nWWW-Authenticate: Basic realm=leaked\r\nAlt-Svc: h3=\":443\"\r\n\
                       Location: http://leaked/\r\nAge: 77\r\nETag: \"leaked\"\r\nX-Request-Id: leaked\r\n\
                       Cache-Status: leaked; hit\r\nKeep-Alive: timeout=77\r\nX-Nominated: leaked\r\n\
                       Connection: keep-alive, X-Nominated\r\n";
        Plan::with(200, headers, PAGE)
    });
    let answer = bench.gateway.ask(&post(ASK)).await;
    assert_eq!(answer.text(), PAGE);
    let all = format!("{:?}", answer.headers);
    assert!(!all.contains("leaked"), "{all}");
    assert_ne!(answer.find("age"), Some("77"), "the gateway's own age or none");
    for name in ["set-cookie", "server", "via", "connection", "keep-alive", "strict-transport-security", "alt-svc"] {
        assert_eq!(answer.find(name), None, "{name}");
    }
    assert_eq!(answer.find("access-control-allow-origin"), None, "or any web page could read the data");
}

#[tokio::test]
async fn malformed_request_ids_are_replaced() {
    let bench = Bench::new().await;
    for bad in ["a b", "a\"b", "<script>", &"a".repeat(129), "caf\u{e9}"] {
        let answer = bench.gateway.ask(&get("/nowhere", &format!("X-Request-Id: {bad}\r\n"))).await;
        answer.assert_refused(404, "not_found");
        assert_ne!(answer.header("x-request-id"), bad);
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_and_are_served_later() {
    let bench = Bench::with(|config| config.set("server.max_connections", "2")).await;
    let (mut one, mut two) = (bench.gateway.connect().await, bench.gateway.connect().await);
    assert_eq!(one.ask(&post(ASK)).await.status, 200);
    assert_eq!(two.ask(&post(ASK)).await.status, 200);
    let mut third = bench.gateway.connect().await;
    third.send(&post(ASK)).await;
    let early = tokio::time::timeout(Duration::from_millis(100), third.stream.readable()).await;
    assert!(early.is_err(), "the third is not served while two are open");
    drop(one);
    assert_eq!(third.answer().await.status, 200);
}

#[tokio::test]
async fn the_gateway_works_after_many_broken_connections() {
    let bench = Bench::with(|config| config.set("server.max_connections", "20")).await;
    let pieces: [&[u8]; 6] =
        [b"", b"\0", b"GET", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff", b"\r\n\r\n\r\n", b"\x16\x03\x01"];
    for round in 0..200usize {
        let mut client = bench.gateway.connect().await;
        client.send(pieces[round % pieces.len()]).await;
        if round % 2 == 0 {
            client.stream.set_zero_linger().unwrap();
        }
    }
    // Ten times as many as there are places, so no place was lost.
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut client = bench.gateway.connect().await;
        assert_eq!(client.ask(&post(ASK)).await.status, 200);
        held.push(client);
    }
    assert_eq!(bench.gateway.metric("requests_total", &["status=\"5"]).await, 0.0);
}

#[tokio::test]
async fn an_absolute_target_overrides_the_host_header() {
    let bench = Bench::new().await;
    let request = |authority: &str, host: &str| {
        raw(&format!("POST http://{authority}{QUERY} HTTP/1.1\r\n{host}{}\r\n\r\n{ASK}", length()))
    };
    let ours = bench.gateway.ask(&request("localhost", "Host: localhost\r\n")).await;
    assert_eq!(ours.status, 200, "{ours:?}");
    // RFC 9112 section 3.2.2: the target's authority counts, and the Host header is ignored.
    let disguised = bench.gateway.ask(&request("evil.example", "Host: localhost\r\n")).await;
    disguised.assert_refused(400, "bad_request");
    // RFC 9112 section 3.2: an HTTP/1.1 request without Host is malformed, whatever its target.
    bench.gateway.ask(&request("localhost", "")).await.assert_refused(400, "bad_request");
}

#[tokio::test]
async fn a_host_needs_a_valid_port() {
    let bench = Bench::new().await;
    let with = |host: &str| head(&format!("Host: {host}\r\n{}", length()));
    bench
        .refuses(&[
            ("letters", with("localhost:port"), 400, "bad_request"),
            ("beyond all ports", with("localhost:99999"), 400, "bad_request"),
        ])
        .await;
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

#[tokio::test]
async fn a_header_that_the_upstream_nominates_is_for_one_hop_only() {
    let bench = Bench::new().await;
    bench.upstream.set(|_| {
        let headers = "Content-Type: application/json\r\nConnection: keep-alive, Twilio-Request-Id\r\n\
                       Twilio-Request-Id: nominated\r\n";
        Plan::with(200, headers, PAGE)
    });
    let answer = bench.gateway.ask(&post(ASK)).await;
    assert_eq!((answer.status, answer.find("twilio-request-id")), (200, None), "hop-by-hop headers never cross");
}
