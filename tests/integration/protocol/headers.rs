//! Headers that must not pass, and hosts.

use super::*;

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
