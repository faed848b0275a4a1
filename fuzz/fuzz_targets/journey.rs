//! Whole requests through the whole stack, in memory up to an upstream on a local port. The input is a raw response of
//! the upstream, and up to four requests, between lines of `===`.
//!
//! For all requests and responses: nothing is the gateway's own fault, its errors have Twilio's format and a reason of
//! the list, and no header, credential or byte passes that may not.

#![no_main]

use std::net::TcpListener;
use std::sync::LazyLock;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Full};
use insights_gateway::config::{self, Config, Sources};
use insights_gateway::core::error::Reason;
use insights_gateway::stack::{self, SharedState};
use insights_gateway::twilio::parameters::Parameters;
use libfuzzer_sys::{Corpus, fuzz_target};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower::ServiceExt;

const SECRET: &str = "planted-s3cret";
/// Base64 of the account's user and secret, `SK1:planted-s3cret`.
const SIGNED: &str = "Basic U0sxOnBsYW50ZWQtczNjcmV0";
/// The beginning of every team's token.
const TOKENS: &str = "token-of-";

/// The headers that a client may get, besides Twilio's rate headers.
const DOWN: [&str; 20] = [
    "age",
    "allow",
    // Only directives that the upstream gave: see `check_downward`.
    "cache-control",
    "cache-status",
    "connection",
    "content-encoding",
    // Only the address of a job's results: see `check_downward`.
    "content-location",
    "content-type",
    "etag",
    "insights-gateway-hint",
    "location",
    "preference-applied",
    "ratelimit",
    "ratelimit-policy",
    "retry-after",
    "twilio-request-id",
    "vary",
    "www-authenticate",
    "x-content-type-options",
    "x-request-id",
];

/// The headers that Twilio may get.
const UP: [&str; 9] = [
    "accept",
    "accept-encoding",
    "authorization",
    "content-length",
    "content-type",
    "host",
    "traceparent",
    "tracestate",
    "user-agent",
];

const METADATA: &str = concat!(
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n",
    r#"{"domain":"Conversations","cubes":[{"name":"Conversation","measures":[{"name":"Conversation.Count","type":"number"}],"#,
    r#""dimensions":[{"name":"Conversation.ConversationStatus","type":"string"},{"name":"Conversation.ParticipantId","type":"string"},"#,
    r#"{"name":"Conversation.CreatedDate","type":"time"}]}]}"#
);

struct Stage {
    upstream: TcpListener,
    /// Without teams.
    open: Config,
    /// With teams: `a` may do all, `b` has a policy, and `c` reads metadata, twice a second.
    teams: Config,
}

static STAGE: LazyLock<Stage> = LazyLock::new(|| {
    let upstream = TcpListener::bind("127.0.0.1:0").expect("a free port");
    upstream.set_nonblocking(true).expect("a socket");
    let url = format!("http://{}", upstream.local_addr().expect("an address"));
    let base = [
        ("upstream.url", url.as_str()),
        ("accounts.main.account_sid", "AC00000000000000000000000000000001"),
        ("accounts.main.api_key", "SK1"),
        ("accounts.main.api_secret", SECRET),
        ("accounts.main.rate", "0/s"),
        ("server.max_body", "4KiB"),
        ("upstream.max_response", "64KiB"),
        ("retry.attempts", "2"),
        ("retry.max_pause", "2s"),
        ("log.access", "false"),
    ];
    let teams = [
        ("teams.a.token_sha256", HASHES[0]),
        ("teams.a.operations", "metadata, query, jobs, fields-read, fields-write"),
        ("teams.b.token_sha256", HASHES[1]),
        ("teams.b.policy.deny", "Conversation.ParticipantId, Secret.*"),
        ("teams.b.policy.require", r#"[{op = "EQ", field = "Conversation.ConversationStatus", values = ["CLOSED"]}]"#),
        ("teams.c.token_sha256", HASHES[2]),
        ("teams.c.operations", "metadata"),
        ("teams.c.requests", "2/s"),
    ];
    let load = |flags: &[(&str, &str)]| {
        let sources = flags.iter().fold(Sources::default(), |sources, (key, value)| sources.with_flag(*key, *value));
        config::load(&sources).unwrap_or_else(|faults| panic!("{faults}"))
    };
    Stage { open: load(&base), teams: load(&[&base[..], &teams[..]].concat()), upstream }
});

/// SHA-256 of `token-of-a`, `token-of-b` and `token-of-c`.
const HASHES: [&str; 3] = [
    "5cb4afafaff2683f8e22484d37dca0e6b2eb98dc5a9869ca031b001597b89253",
    "97d613fbd4a6484c6567d2d2b495af817b3264c37dfe02a641449b2b351d5e1f",
    "7f579566ece2ac08bfce0c3af944792893587c760b0001c021acf65e9161365a",
];

/// A head and the bytes after it.
fn cut(text: &[u8]) -> (&[u8], &[u8]) {
    let ends = |end: &[u8]| text.windows(end.len()).position(|window| window == end).map(|at| (at, at + end.len()));
    match [ends(b"\n\n"), ends(b"\r\n\r\n")].into_iter().flatten().min() {
        Some((head, body)) => (&text[..head], &text[body..]),
        None => (text, &[]),
    }
}

fn request(text: &[u8]) -> Option<Request<Full<Bytes>>> {
    let (head, body) = cut(text);
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let mut words = lines.next()?.split(|byte| *byte == b' ');
    let mut request = Request::builder().method(words.next()?).uri(words.next()?);
    request = request.version(if words.next() == Some(b"HTTP/2") { Version::HTTP_2 } else { Version::HTTP_11 });
    for line in lines {
        let at = line.iter().position(|byte| *byte == b':')?;
        request = request.header(&line[..at], line[at + 1..].trim_ascii());
    }
    request.body(Full::new(Bytes::copy_from_slice(body))).ok()
}

/// Answers every request with the same bytes, and checks the request.
async fn serve(answer: Bytes) {
    let listener = STAGE.upstream.try_clone().expect("a socket");
    // Connections that the previous input left.
    while listener.accept().is_ok() {}
    let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(converse(stream, answer.clone()));
    }
}

async fn converse(mut stream: TcpStream, answer: Bytes) -> Option<()> {
    let mut asked = Vec::new();
    let body = loop {
        if let Some(at) = asked.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut asked).await.ok()? == 0 {
            return None;
        }
    };
    // An entity tag may hold bytes beyond ASCII (RFC 9110 section 8.8.3).
    let head = String::from_utf8_lossy(&asked[..body]).into_owned();
    let length = check_upward(&head);
    while asked.len() < body + length {
        if stream.read_buf(&mut asked).await.ok()? == 0 {
            return None;
        }
    }
    assert_eq!(asked.len(), body + length, "more than was announced");
    // A response that is not metadata proves nothing for the team with a policy, so it usually gets some.
    let is_metadata = head.starts_with("GET /v3/InsightsDomains/Conversations/Metadata ");
    let answer = if is_metadata && !contains(&answer, b"\"cubes\"") { METADATA.as_bytes() } else { &answer };
    stream.write_all(answer).await.ok()?;
    stream.shutdown().await.ok()
}

/// The path of an address that the gateway gives out, with or without the gateway's own origin.
fn path_of(address: &str) -> &str {
    let from_path = address.find("/v3/").map_or(address, |at| &address[at..]);
    from_path.split('?').next().unwrap_or_default()
}

/// The client header that a request may pass on to Twilio besides [`UP`], or `""`. `None` if no request may be sent.
fn own_header(method: &str, path: &str) -> Option<&'static str> {
    let is_id = |id: &str| {
        (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
    };
    if let Some(rest) = path.strip_prefix("/v3/InsightsDomains/Conversations/") {
        return match (method, rest, rest.strip_prefix("QueryJobs/")) {
            ("GET", "Metadata" | "Query" | "QueryJobs", _) | ("POST", "Query", _) => Some(""),
            ("POST", "QueryJobs", _) => Some("idempotency-key"),
            ("GET", _, Some(id)) => is_id(id.strip_suffix("/Results").unwrap_or(id)).then_some(""),
            _ => None,
        };
    }
    let rest = path.strip_prefix("/v3/ControlPlane/ConversationInsights/CustomFieldMappings")?;
    match (method, rest, rest.strip_prefix('/')) {
        ("GET", "" | "Capacity" | "/Capacity", _) | ("POST", "", _) => Some(""),
        ("GET", _, Some(id)) => is_id(id).then_some(""),
        ("PATCH", _, Some(id)) => is_id(id).then_some("if-match"),
        _ => None,
    }
}

/// Checks the head of a request to Twilio. Returns the length of its body.
fn check_upward(head: &str) -> usize {
    let (line, rest) = head.split_once("\r\n").expect("a line");
    let (method, target) = line.strip_suffix(" HTTP/1.1").and_then(|line| line.split_once(' ')).expect("a request");
    let path = target.split('?').next().unwrap_or_default();
    let own = own_header(method, path).unwrap_or_else(|| panic!("{line} is sent to Twilio"));
    let mut length = 0;
    let mut is_signed = false;
    for line in rest.lines().filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ").expect("a header");
        assert!(UP.contains(&name) || name == own, "the header {name} is sent to Twilio");
        // The trace context belongs to the client.
        assert!(name == "tracestate" || !value.contains(TOKENS), "a team's token is sent to Twilio");
        match name {
            "authorization" => {
                assert!(value == SIGNED && !is_signed);
                is_signed = true;
            }
            "content-length" => length = value.parse().expect("a length"),
            _ => {}
        }
    }
    assert!(is_signed, "every request to Twilio is signed");
    length
}

fn one<'h>(headers: &'h HeaderMap, name: &str) -> &'h str {
    let mut values = headers.get_all(name).into_iter();
    let value = values.next().unwrap_or_else(|| panic!("no {name}"));
    assert!(values.next().is_none(), "{name} occurs twice");
    value.to_str().unwrap_or_else(|_| panic!("{name} is not ASCII"))
}

/// Checks a response to a client.
fn check_downward(response: &Response<Bytes>, answer: &[u8]) {
    let (status, headers, body) = (response.status(), response.headers(), response.body());
    for (name, value) in headers {
        let name = name.as_str();
        assert!(
            DOWN.contains(&name) || name.starts_with("x-ratelimit-") || name.starts_with("x-rate-limit-"),
            "{name}"
        );
        // A request id comes from the client.
        assert!(
            name == "x-request-id" || !contains(value.as_bytes(), SECRET.as_bytes()),
            "the response contains the secret"
        );
        assert!(
            !contains(value.as_bytes(), TOKENS.as_bytes())
                || contains(answer, TOKENS.as_bytes())
                || name == "x-request-id",
            "{name}"
        );
    }
    if let Some(directives) = headers.get(header::CACHE_CONTROL) {
        let was_given = contains(&answer.to_ascii_lowercase(), b"cache-control");
        assert!(was_given, "the upstream did not say {directives:?}");
    }
    if headers.contains_key(header::CONTENT_LOCATION) {
        let address = one(headers, "content-location");
        let is_results = status == StatusCode::OK && own_header("GET", path_of(address)) == Some("");
        assert!(is_results && path_of(address).ends_with("/Results"), "{status} from {address}");
    }
    // Even if the upstream repeats a part of it.
    assert!(!contains(body, SECRET.as_bytes()), "the response contains the secret");
    let id = one(headers, "x-request-id");
    assert!((1..=128).contains(&id.len()));
    assert!(one(headers, "cache-status").starts_with("insights-gateway"));
    if matches!(status.as_u16(), 429 | 503) {
        // Seconds, or a date from Twilio.
        let wait = one(headers, "retry-after");
        assert!(wait.parse::<u64>().is_ok() || wait.ends_with("GMT") || wait.contains(':'), "come back at {wait}");
    }
    assert!(!status.is_informational() && (!status.is_redirection() || status == StatusCode::NOT_MODIFIED), "{status}");
    if status == StatusCode::NOT_MODIFIED {
        assert!(body.is_empty() && headers.contains_key(header::ETAG) && !headers.contains_key(header::CONTENT_TYPE));
        return;
    }
    let error = serde_json::from_slice::<Value>(body).ok().filter(|error| error["params"]["source"] == "gateway");
    match error {
        Some(error) if !contains(answer, b"\"gateway\"") => check_refusal(status, &error),
        Some(_) => {}
        // Twilio's own error, unchanged.
        None => {
            assert!(!matches!(status.as_u16(), 401 | 403), "{status} is about the account");
            let is_coded = headers.contains_key(header::CONTENT_ENCODING);
            let is_chunked = contains(&answer.to_ascii_lowercase(), b"chunked");
            // Without members that a team may not name, or from the fixed metadata.
            let is_metadata = contains(body, b"\"cubes\"");
            // The gateway rewrites links, and removes jobs of other teams.
            let is_job = contains(answer, b"/QueryJobs/") || contains(answer, b"\"operationId\"");
            let may_differ = is_coded || is_chunked || is_metadata || is_job;
            assert!(may_differ || contains(answer, body), "the body is not the one that Twilio sent");
        }
    }
}

/// Checks one of the gateway's own errors.
fn check_refusal(status: StatusCode, error: &Value) {
    let reason = error["params"]["reason"].as_str().expect("a reason");
    let known = Reason::ALL.into_iter().find(|known| known.as_str() == reason).expect("a reason of the list");
    assert_ne!(known, Reason::Internal, "{error}");
    assert_eq!(known.status(), status);
    assert_eq!((&error["httpStatusCode"], &error["code"]), (&Value::from(status.as_u16()), &Value::from(known.code())));
    assert_eq!(error["userError"], Value::from(status.is_client_error()));
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()));
    let members: Vec<_> = error.as_object().expect("an object").keys().collect();
    assert_eq!(members, ["code", "httpStatusCode", "message", "params", "userError"]);
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    part.is_empty() || text.windows(part.len()).any(|window| window == part)
}

async fn play(answer: &[u8], requests: Vec<Request<Full<Bytes>>>) {
    let with_teams = requests.iter().any(|request| request.headers().contains_key(header::AUTHORIZATION));
    let config = if with_teams { &STAGE.teams } else { &STAGE.open };
    let shared = SharedState::new(config).expect("no trust root is configured");
    let journey = stack::build(config, &shared).expect("a stack");
    tokio::spawn(serve(Bytes::copy_from_slice(answer)));
    let (mut granted, mut unread) = (Vec::new(), false);
    for request in requests {
        let page = page_under_policy(&request);
        let is_restricted = is_restricted(&request);
        let response = journey.clone().oneshot(request).await.unwrap_or_else(|never| match never {});
        let (head, body) = response.into_parts();
        let body = body.collect().await.expect("complete bytes").to_bytes();
        let response = Response::from_parts(head, body);
        check_downward(&response, answer);
        if let Some(page) = page {
            let was_refused = response.status() == StatusCode::FORBIDDEN;
            assert!(was_refused || granted.contains(&page) || unread, "{page}, which was not given to this team");
        }
        // These name pages too, but in a way that this test cannot read.
        unread |=
            response.status() == StatusCode::NOT_MODIFIED || response.headers().contains_key(header::CONTENT_ENCODING);
        if is_restricted {
            granted.extend(pages_named_by(response.body()));
        }
    }
}

/// Whether this is a request of the team with a policy.
fn is_restricted(request: &Request<Full<Bytes>>) -> bool {
    request.headers().get(header::AUTHORIZATION).is_some_and(|proof| proof == "Bearer token-of-b")
}

/// The parameters of a well-formed request for a page by the team with a policy.
fn page_under_policy(request: &Request<Full<Bytes>>) -> Option<String> {
    let is_page = is_restricted(request)
        && request.method() == Method::GET
        && request.uri().path() == "/v3/InsightsDomains/Conversations/Query"
        && request.uri().authority().is_none()
        && request.headers().len() == 2
        && request.headers().get(header::HOST).is_some_and(|host| host == "localhost");
    let parameters = Parameters::parse(request.uri().query()?).ok()?;
    let has_token = parameters.has_page_token();
    let alone = parameters.without_all_but_page_token().unwrap_or(parameters);
    (is_page && has_token).then(|| alone.as_str().to_owned())
}

/// The parameters of the requests for the pages that a response names.
fn pages_named_by(body: &[u8]) -> Vec<String> {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let tokens = ["nextToken", "previousToken"].map(|name| answer["meta"][name].as_str().map(Parameters::of_page));
    tokens.into_iter().flatten().map(|parameters| parameters.as_str().to_owned()).collect()
}

fuzz_target!(|script: &[u8]| -> Corpus {
    const BETWEEN: &[u8] = b"\n===\n";
    let mut parts = Vec::new();
    let mut rest = script;
    while let Some(at) = rest.windows(BETWEEN.len()).position(|window| window == BETWEEN) {
        parts.push(&rest[..at]);
        rest = &rest[at + BETWEEN.len()..];
    }
    parts.push(rest);
    let requests: Vec<_> = parts[1..].iter().take(4).filter_map(|text| request(text)).collect();
    if requests.is_empty() {
        return Corpus::Reject;
    }
    let _ = &*STAGE;
    // The time moves only when all tasks wait for it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime").block_on(play(parts[0], requests));
    Corpus::Keep
});
