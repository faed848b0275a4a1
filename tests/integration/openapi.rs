//! Compares the OpenAPI document with what the gateway answers.

use serde_json::json;

use crate::http2;
use crate::support::events::EventStream;
use crate::support::gateway::{SECRET, SID, with_teams};
use crate::support::openapi::Document;
use crate::support::*;

const UNKNOWN: &str = r#"{"code":20400,"message":"unknown member","httpStatusCode":400,"userError":true}"#;
const USAGE: &str = "/_gateway/usage";
const TYPO: &str = r#"{"query":{"measures":["Conversation.Cout"]}}"#;

fn named(method: &str, target: &str, headers: &str) -> Vec<u8> {
    format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").into_bytes()
}

/// The teams of a gateway, one for each kind of answer.
const TEAMS: [(&str, &str); 4] = [
    ("all", "operations = ['metadata', 'query', 'jobs', 'fields-read', 'fields-write']\nrequests = '1000/s'"),
    ("asks", "operations = ['query']"),
    ("narrow", "policy = { deny = ['Conversation.ParticipantId'] }"),
    ("slow", "requests = '1/h'"),
];

#[tokio::test]
async fn every_answer_of_the_data_plane_is_described() {
    let upstream = Upstream::script(|seen| match (seen.target(), seen.text().as_str()) {
        (METADATA, _) => Plan::page(MEMBERS),
        (_, TYPO) => Plan::json(400, UNKNOWN),
        (_, text) if text.contains("Lost") => Plan::json(404, r#"{"code":20404,"message":"x","httpStatusCode":404}"#),
        (_, text) if text.contains("Busy") => Plan::with(
            429,
            "Content-Type: application/json\r\nX-RateLimit-Reset: 1\r\n",
            r#"{"code":20429,"message":"x"}"#,
        ),
        (_, text) if text.contains("Odd") => Plan::json(418, r#"{"code":20418,"message":"x"}"#),
        (_, text) if text.contains("Broken") => Plan::page("<html>"),
        (_, text) if text.contains("Reset") => Plan::reset(),
        (_, text) if text.contains("Silent") => Plan::silence(),
        _ => Plan::page(PAGE),
    })
    .await;
    let keys = [
        ("retry.attempts", "1"),
        ("upstream.attempt_timeout", "300ms"),
        ("server.max_body", "2KiB"),
        ("server.cors", "https://dashboards.example"),
    ];
    let (gateway, _folder) = with_teams(&upstream, "rate = '0/s'\nadapt = false", &TEAMS, &keys).await;
    let document = Document::of(&gateway, "").await;
    let of = |team: &str| format!("Authorization: Bearer token-of-{team}\r\n");
    let ask = |name: &str| format!(r#"{{"query":{{"measures":["Conversation.{name}"]}}}}"#);
    let post_as = |team: &str, headers: &str, body: &str| post_to(QUERY, &format!("{}{headers}", of(team)), body);
    let tag = {
        let first = gateway.ask(&get(METADATA, &of("all"))).await;
        document.assert_describes("GET", METADATA, &first);
        first.header("etag").to_owned()
    };
    let all = of("all");
    let preflight = |origin: &str| format!("Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\n");
    let large = format!("{ASK}{}", " ".repeat(4096));
    for (method, path, request, status) in [
        ("GET", METADATA, get(METADATA, &all), 200),
        ("GET", METADATA, get(METADATA, &format!("{all}Accept-Encoding: gzip\r\n")), 200),
        ("HEAD", METADATA, named("HEAD", METADATA, &all), 200),
        ("GET", METADATA, get(METADATA, &format!("{all}If-None-Match: {tag}\r\n")), 304),
        ("GET", METADATA, get(METADATA, ""), 401),
        ("GET", METADATA, get(METADATA, &of("asks")), 403),
        ("GET", METADATA, post_to(METADATA, &all, ASK), 405),
        ("HEAD", METADATA, named("HEAD", METADATA, ""), 401),
        ("GET", METADATA, get(METADATA, &format!("{all}Origin: https://dashboards.example\r\n")), 200),
        ("GET", METADATA, get(&format!("{METADATA}?x=1"), &format!("{all}Cache-Control: only-if-cached\r\n")), 504),
        ("GET", METADATA, get("/nowhere", &all), 404),
        ("GET", METADATA, get(METADATA, &format!("X: {}\r\n", "x".repeat(40_000))), 431),
        ("POST", QUERY, post_as("all", "", ASK), 200),
        ("POST", QUERY, post_as("all", "", ASK), 200),
        ("POST", QUERY, post_as("all", "", "nonsense"), 400),
        ("POST", QUERY, post_as("all", "", "{}"), 400),
        ("POST", QUERY, post_as("all", "Content-Encoding: br\r\n", ASK), 400),
        ("POST", QUERY, post_as("all", "", TYPO), 400),
        ("POST", QUERY, post_as("narrow", "", &ask("ParticipantId")), 403),
        ("POST", QUERY, post_as("all", "", &ask("Lost")), 404),
        ("POST", QUERY, post_as("all", "", &large), 413),
        ("POST", QUERY, post_as("all", "", &ask("Odd")), 418),
        ("POST", QUERY, post_as("all", "", &ask("Broken")), 502),
        ("POST", QUERY, post_as("all", "", &ask("Reset")), 502),
        ("POST", QUERY, post_as("all", "", &ask("Silent")), 504),
        ("POST", QUERY, post_as("slow", "", ASK), 200),
        ("POST", QUERY, post_as("slow", "", ASK), 429),
        ("GET", QUERY, get(&format!("{QUERY}?pageToken=x"), &all), 200),
        ("GET", QUERY, get(QUERY, &all), 400),
        ("GET", QUERY, get(&format!("{QUERY}?pageToken=a"), &of("narrow")), 403),
        ("GET", USAGE, get(USAGE, &all), 200),
        ("HEAD", USAGE, named("HEAD", USAGE, &all), 200),
        ("GET", USAGE, get(USAGE, ""), 401),
        ("GET", USAGE, post_to(USAGE, &all, ASK), 405),
        ("OPTIONS", QUERY, named("OPTIONS", QUERY, &preflight("https://dashboards.example")), 204),
        ("OPTIONS", USAGE, named("OPTIONS", USAGE, &preflight("https://dashboards.example")), 204),
        ("OPTIONS", QUERY, named("OPTIONS", QUERY, &preflight("https://evil.example")), 405),
        // Last, because this pauses the account.
        ("POST", QUERY, post_as("all", "", &ask("Busy")), 429),
    ] {
        let answer = gateway.ask(&request).await;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?} {}", answer.text());
        document.assert_describes(method, path, &answer);
    }
    let mut sender = http2::connect(&gateway).await;
    let answer = http2::ask(&mut sender, http2::request("POST", &gateway, QUERY, ASK)).await;
    document.assert_describes("POST", QUERY, &answer);
}

#[tokio::test]
async fn refusals_of_an_upstream_that_fails_are_described() {
    let upstream = Upstream::script(|seen| match seen.text().contains("Login") {
        true => Plan::json(401, r#"{"code":20003,"message":"no"}"#),
        false => Plan::json(500, r#"{"code":20500,"message":"x","httpStatusCode":500}"#),
    })
    .await;
    let gateway = TestConfig::new(upstream.url())
        .set("retry.attempts", "1")
        .set("circuit.consecutive", "3")
        .set("circuit.open", "1h")
        .start()
        .await;
    let document = Document::of(&gateway, "").await;
    let ask = async |name: &str| {
        let answer = gateway.ask(&post(&format!(r#"{{"query":{{"measures":["C.{name}"]}}}}"#))).await;
        document.assert_describes("POST", QUERY, &answer);
        answer.status
    };
    for (name, status) in [("Login", 502), ("A", 500), ("B", 500), ("C", 500), ("D", 503)] {
        assert_eq!(ask(name).await, status, "{name}");
    }
    let foreign = gateway.ask(&post_to(QUERY, "Origin: https://evil.example\r\n", ASK)).await;
    assert_eq!(foreign.status, 403);
    document.assert_describes("POST", QUERY, &foreign);
    let answer = gateway.admin("/readyz").await;
    assert_eq!(answer.status, 503);
    document.assert_describes("GET", "/readyz", &answer);
}

#[tokio::test]
async fn every_answer_of_the_admin_plane_is_described() {
    let upstream = Upstream::with_metadata().await;
    let token = "admin-token";
    let gateway = TestConfig::new(upstream.url()).set("admin.token_sha256", sha256_hex(token)).start().await;
    let shown = format!("Authorization: Bearer {token}\r\n");
    let document = Document::of(&gateway, &shown).await;
    assert_eq!(gateway.ask(&post(ASK)).await.status, 200);
    let purge = |body: &str| post_to("/cache/purge", &shown, body);
    let foreign = format!("{shown}Origin: https://evil.example\r\n");
    for (method, path, request, status) in [
        ("GET", "/livez", get("/livez", ""), 200),
        ("HEAD", "/livez", named("HEAD", "/livez", ""), 200),
        ("GET", "/readyz", get("/readyz?exclude=credentials", ""), 200),
        ("GET", "/metrics", get("/metrics", &shown), 200),
        ("GET", "/metrics", get("/metrics", ""), 401),
        ("GET", "/status", get("/status", &shown), 200),
        ("HEAD", "/status", named("HEAD", "/status", &shown), 200),
        ("GET", "/status", get("/status", &foreign), 403),
        ("GET", "/status", post_to("/status", &shown, ""), 405),
        ("GET", "/status", b"GET /status HTTP/1.1\r\nHost: a b\r\n\r\n".to_vec(), 400),
        ("GET", "/cache/entries", get("/cache/entries?limit=1", &shown), 200),
        ("GET", "/cache/entries", get("/cache/entries?limit=0", &shown), 400),
        ("POST", "/cache/purge", purge("{}"), 400),
        ("POST", "/cache/purge", purge(&" ".repeat(70_000)), 413),
        ("POST", "/cache/purge", purge(r#"{"all":true}"#), 200),
        ("POST", "/cache/purge", get("/cache/purge", &shown), 405),
        ("GET", "/", get("/", &shown), 200),
        ("HEAD", "/", named("HEAD", "/", &shown), 200),
        ("GET", "/", get("/", "Accept: text/html\r\n"), 303),
        ("GET", "/runbook", get("/runbook", &shown), 200),
        ("GET", "/login", get("/login", ""), 200),
        ("GET", "/login", get("/login", &shown), 303),
        ("GET", "/login", named("DELETE", "/login", ""), 405),
        ("POST", "/login", post_to("/login", "", "token=wrong"), 401),
        ("POST", "/login", post_to("/login", "", &format!("token={token}")), 303),
        ("POST", "/login", post_to("/login", "Origin: https://evil.example\r\n", "token=x"), 403),
        ("POST", "/login", post_to("/login", "", &"x".repeat(70_000)), 413),
        ("POST", "/logout", post_to("/logout", "", ""), 303),
        ("POST", "/logout", get("/logout", ""), 405),
        ("GET", "/status", get("/status", &format!("X: {}\r\n", "x".repeat(100_000))), 431),
        ("GET", "/livez", get("/livez", &format!("X: {}\r\n", "x".repeat(100_000))), 431),
        ("GET", "/status", b"GET /status HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n".to_vec(), 400),
        ("GET", "/openapi.json", get("/openapi.json", &shown), 200),
        ("HEAD", "/openapi.json", named("HEAD", "/openapi.json", &shown), 200),
        ("GET", "/openapi.json", get("/openapi.json", ""), 401),
        ("GET", "/openapi.json", get("/openapi.json", "Authorization: Bearer wrong\r\n"), 401),
        ("GET", "/openapi.json", get("/openapi.json", &foreign), 403),
        ("GET", "/openapi.json", post_to("/openapi.json", &shown, ""), 405),
    ] {
        let answer = gateway.ask_admin(&request).await;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?} {}", answer.text());
        document.assert_describes(method, path, &answer);
    }
    let text = document.json().to_string();
    for secret in [SID, SECRET, token] {
        assert!(!text.contains(secret), "{secret}");
    }
}

/// A head that does not end, and more streams of events than there may be.
#[tokio::test]
async fn refusals_of_slow_heads_and_of_many_streams_are_described() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).set("server.header_timeout", "200ms").start().await;
    let document = Document::of(&gateway, "").await;
    for path in ["/status", "/readyz", "/explorer/query"] {
        let method = if path == "/explorer/query" { "POST" } else { "GET" };
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n").into_bytes();
        let answer = gateway.ask_admin(&head).await;
        assert_eq!(answer.status, 408, "{answer:?}");
        document.assert_describes(method, path, &answer);
    }
    let mut streams = Vec::new();
    for _ in 0..16 {
        streams.push(EventStream::open(gateway.admin, "").await);
    }
    document.assert_describes("GET", "/events", &streams[0].answer());
    let answer = gateway.ask_admin(&get("/events", "")).await;
    assert_eq!(answer.status, 503);
    document.assert_describes("GET", "/events", &answer);
}

#[tokio::test]
async fn answers_that_the_explorer_passes_on_are_described() {
    let upstream = Upstream::script(|seen| match (seen.target(), seen.text()) {
        (METADATA, _) => Plan::page(MEMBERS),
        (_, text) if text.contains("Busy") => Plan::with(
            429,
            "Content-Type: application/json\r\nX-RateLimit-Reset: 1\r\nTwilio-Request-Id: RQ1\r\n",
            r#"{"code":20429,"message":"x"}"#,
        ),
        (_, text) if text.contains("Odd") => Plan::json(418, r#"{"code":20418,"message":"x"}"#),
        (_, text) if text.contains("Down") => Plan::json(503, r#"{"code":20503,"message":"x"}"#),
        (_, text) if text.contains("Reset") => Plan::reset(),
        (_, text) if text.contains("Silent") => Plan::silence(),
        (_, text) if text.contains("Typo") => Plan::json(400, UNKNOWN),
        _ => Plan::page(PAGE),
    })
    .await;
    let token = "admin-token";
    let hash = sha256_hex(token);
    let keys = [
        ("retry.attempts", "1"),
        ("upstream.attempt_timeout", "300ms"),
        ("admin.token_sha256", hash.as_str()),
        ("server.cors", "https://dashboards.example"),
    ];
    let (gateway, _folder) = with_teams(&upstream, "rate = '1000/s'\nadapt = false", &TEAMS, &keys).await;
    let shown = format!("Authorization: Bearer {token}\r\n");
    let document = Document::of(&gateway, &shown).await;
    let query = "/explorer/query";
    let as_team =
        |team: &str, name: &str| format!(r#"{{"team":"{team}","query":{{"measures":["Conversation.{name}"]}}}}"#);
    for (path, body, status) in [
        (query, as_team("all", "Count"), 200),
        (query, as_team("all", "Count"), 200),
        (query, as_team("nobody", "Count"), 400),
        (query, "nonsense".to_owned(), 400),
        (query, as_team("all", "Typo"), 400),
        (query, as_team("narrow", "ParticipantId"), 403),
        (query, " ".repeat(300_000), 413),
        (query, as_team("all", "Odd"), 418),
        (query, as_team("slow", "Count"), 200),
        (query, as_team("slow", "Count"), 429),
        (query, as_team("all", "Reset"), 502),
        (query, as_team("all", "Down"), 503),
        (query, as_team("all", "Silent"), 504),
        ("/explorer/metadata", r#"{"team":"all"}"#.to_owned(), 200),
        ("/explorer/metadata", r#"{"team":"asks"}"#.to_owned(), 403),
        ("/explorer/metadata", as_team("all", "Count"), 400),
        ("/explorer/cost", as_team("all", "Count"), 200),
        ("/explorer/cost", "{}".to_owned(), 400),
        // Last, because this pauses the account.
        (query, as_team("all", "Busy"), 429),
    ] {
        let answer = gateway.ask_admin(&post_to(path, &shown, &body)).await;
        assert_eq!(answer.status, status, "{path} {}: {answer:?} {}", &body[..body.len().min(80)], answer.text());
        document.assert_describes("POST", path, &answer);
    }
    let without_token = gateway.ask_admin(&post_to(query, "", "{}")).await;
    assert_eq!(without_token.status, 401);
    document.assert_describes("POST", query, &without_token);
    // Off where teams have tokens and the admin plane has none.
    let (off, _folder) = with_teams(&upstream, "rate = '0/s'", &TEAMS, &[]).await;
    let answer = off.ask_admin(&post_to(query, "", "{}")).await;
    assert_eq!(answer.status, 404);
    document.assert_describes("POST", query, &answer);
}

/// Compares the paths that the admin plane lists with those of the document.
#[tokio::test]
async fn every_path_of_the_admin_plane_is_in_it() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let document = Document::of(&gateway, "").await;
    let version = document.json()["openapi"].as_str().unwrap();
    assert!(version.starts_with("3.1."), "{version}");
    // A stream that does not end.
    let awaited = ["/events"];
    for (path, item) in document.json()["paths"].as_object().unwrap() {
        let is_admin = item["servers"][0]["description"].as_str().unwrap().starts_with("The admin plane");
        if is_admin && !awaited.contains(&path.as_str()) {
            assert_ne!(gateway.admin(path).await.status, 404, "{path} is described and not there");
        }
    }
    let message = gateway.admin("/nowhere").await.json()["error"].as_str().unwrap().to_owned();
    let paths: Vec<_> = message.split([' ', ',']).filter(|word| word.starts_with('/')).collect();
    assert!(paths.len() > 7, "{message}");
    for path in paths {
        let item = &document.json()["paths"][path];
        assert!(item.is_object(), "{path} is not described");
        assert_eq!(item["servers"][0]["description"].as_str().unwrap().split(':').next(), Some("The admin plane"));
    }
}

#[tokio::test]
async fn a_purge_and_a_query_are_described_as_they_are_read() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let document = Document::of(&gateway, "").await;
    let schema = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    for (name, value, fits) in [
        ("Purge", json!({"all": true}), true),
        ("Purge", json!({"all": false}), false),
        ("Purge", json!({"all": true, "account": "main"}), false),
        ("Purge", json!({"operation": "query"}), true),
        ("QueryRequest", json!({"query": {"measures": ["C.Count"], "filters": null}, "domain": null, "more": 1}), true),
        ("QueryRequest", json!({"query": {"measures": "C.Count"}}), false),
        ("QueryRequest", json!({}), false),
    ] {
        assert_eq!(document.fits(&value, &schema(name)).is_ok(), fits, "{name} {value}");
    }
}
