//! Pages of the listed origins may send requests and read the responses; pages of other origins may not.

use crate::http2;
use crate::support::*;

const TOKEN: &str = "igw_token-of-the-tests";
const LISTED: &str = "https://dashboards.example";

fn hash() -> String {
    sha256_hex(TOKEN)
}

fn with_cors(upstream: &Upstream, teams: bool) -> TestConfig {
    let config = TestConfig::new(upstream.url()).set("server.cors", format!("{LISTED},http://127.0.0.1:3000"));
    match teams {
        true => config.set("teams.t.token_sha256", hash()).set("teams.t.requests", "1000/s"),
        false => config,
    }
}

fn options(path: &str, head: &str) -> Vec<u8> {
    format!("OPTIONS {path} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n").into_bytes()
}

fn has_no_credentials(answer: &Answer) {
    assert_eq!(answer.find("access-control-allow-credentials"), None, "{answer:?}");
    let vary = answer.header("vary").to_ascii_lowercase();
    assert!(vary.split(',').any(|name| name.trim() == "origin"), "{answer:?}");
}

#[tokio::test]
async fn a_preflight_of_a_listed_origin_is_answered_without_token_or_rate() {
    let upstream = Upstream::start().await;
    for teams in [false, true] {
        let gateway = with_cors(&upstream, teams).start().await;
        for (path, methods) in [(QUERY, "GET, HEAD, POST"), (METADATA, "GET, HEAD")] {
            for origin in [LISTED, "http://127.0.0.1:3000"] {
                let head = format!(
                    "Origin: {origin}\r\nSec-Fetch-Site: cross-site\r\nAccess-Control-Request-Method: POST\r\n\
                     Access-Control-Request-Headers: authorization,content-type\r\n"
                );
                let answer = gateway.ask(&options(path, &head)).await;
                assert_eq!((answer.status, answer.header("access-control-allow-origin")), (204, origin));
                assert_eq!(answer.header("access-control-allow-methods"), methods);
                let allowed = answer.header("access-control-allow-headers");
                for name in [
                    "Authorization",
                    "Content-Type",
                    "If-None-Match",
                    "Cache-Control",
                    "Prefer",
                    "Priority",
                    "Idempotency-Key",
                ] {
                    assert!(allowed.split(", ").any(|header| header == name), "{name}: {allowed}");
                }
                assert_eq!(answer.find("ratelimit"), None);
                answer.header("x-request-id");
                assert_eq!(answer.detail(), "bypass");
                has_no_credentials(&answer);
            }
        }
        // Not a preflight, not a listed origin, or an unknown path.
        let method = "Access-Control-Request-Method: POST\r\n";
        let (own, listed) = ("Origin: http://localhost\r\n".to_owned(), format!("Origin: {LISTED}\r\n"));
        for head in [String::new(), method.to_owned(), format!("{own}{method}"), listed.clone()] {
            let answer = gateway.ask(&options(QUERY, &head)).await;
            answer.assert_refused(405, "method_not_allowed");
            assert_eq!(answer.header("allow"), "GET, HEAD, POST");
            has_no_credentials(&answer);
        }
        let nowhere = gateway.ask(&options("/nowhere", &format!("{listed}{method}"))).await;
        nowhere.assert_refused(404, "not_found");
        for origin in ["https://evil.example", "https://dashboards.example:8443", "http://dashboards.example", "null"] {
            let answer = gateway.ask(&options(QUERY, &format!("Origin: {origin}\r\n{method}"))).await;
            let expected = if teams { (405, "method_not_allowed") } else { (403, "origin_not_allowed") };
            answer.assert_refused(expected.0, expected.1);
            assert_eq!(answer.find("access-control-allow-origin"), None, "{origin}");
        }
    }
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn a_page_of_a_listed_origin_reads_answers_and_errors() {
    let upstream = Upstream::start().await;
    for teams in [false, true] {
        let gateway = with_cors(&upstream, teams).start().await;
        let token = if teams { format!("Authorization: Bearer {TOKEN}\r\n") } else { String::new() };
        let head = format!("Origin: {LISTED}\r\nSec-Fetch-Site: cross-site\r\n{token}Accept-Encoding: gzip\r\n");
        for (request, status) in [
            (post_to(QUERY, &head, ASK), 200),
            (post_to(QUERY, &head, ASK), 200),
            (post_to(QUERY, &head, "nonsense"), 400),
            (get("/nowhere", &head), 404),
            (post_to(METADATA, &head, ASK), 405),
        ] {
            let answer = gateway.ask(&request).await;
            assert_eq!((answer.status, answer.header("access-control-allow-origin")), (status, LISTED));
            let exposed = answer.header("access-control-expose-headers");
            for name in [
                "X-Request-Id",
                "Cache-Status",
                "Age",
                "ETag",
                "RateLimit",
                "RateLimit-Policy",
                "Retry-After",
                "Insights-Gateway-Hint",
                "Location",
                "Content-Location",
                "Preference-Applied",
            ] {
                assert!(exposed.split(", ").any(|header| header == name), "{name}: {exposed}");
            }
            has_no_credentials(&answer);
        }
        if teams {
            let answer = gateway.ask(&post_to(QUERY, &format!("Origin: {LISTED}\r\n"), ASK)).await;
            answer.assert_refused(401, "unauthenticated");
            assert_eq!(answer.header("access-control-allow-origin"), LISTED);
        }
        // A response that a shared cache stores for programs is not for pages.
        has_no_credentials(&gateway.ask(&post_to(QUERY, &token, ASK)).await);
        let foreign = gateway.ask(&post_to(QUERY, &format!("Origin: https://evil.example\r\n{token}"), ASK)).await;
        assert_eq!(foreign.status, if teams { 200 } else { 403 });
        assert_eq!(foreign.find("access-control-allow-origin"), None);
        has_no_credentials(&foreign);
    }
}

#[tokio::test]
async fn pages_ask_over_http_2_alike() {
    let upstream = Upstream::start().await;
    let gateway = with_cors(&upstream, false).start().await;
    let mut sender = http2::connect(&gateway).await;
    let mut request = http2::request("OPTIONS", &gateway, QUERY, "");
    request.headers_mut().insert("origin", LISTED.parse().unwrap());
    request.headers_mut().insert("access-control-request-method", "POST".parse().unwrap());
    let answer = http2::ask(&mut sender, request).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (204, LISTED));
    let mut request = http2::request("POST", &gateway, QUERY, ASK);
    request.headers_mut().insert("origin", LISTED.parse().unwrap());
    let answer = http2::ask(&mut sender, request).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, LISTED));
    has_no_credentials(&answer);
}

#[tokio::test]
async fn without_a_list_responses_have_no_cors_headers() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    for request in [post(ASK), post_to(QUERY, "Origin: http://localhost\r\n", ASK), get("/nowhere", "")] {
        let answer = gateway.ask(&request).await;
        assert!(answer.headers.iter().all(|(name, _)| !name.starts_with("access-control") && name != "vary"));
    }
    let head = format!("Origin: {LISTED}\r\nAccess-Control-Request-Method: POST\r\n");
    gateway.ask(&options(QUERY, &head)).await.assert_refused(403, "origin_not_allowed");
    gateway.ask(&options(QUERY, "")).await.assert_refused(405, "method_not_allowed");
}
