//! The simulator as its clients use it: real sockets, documented requests.

mod paging;
mod scripted_faults;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use insights_gateway::core::units::parse_rate;
use insights_gateway::simulator::jobs::JobSettings;
use insights_gateway::simulator::{Settings, Simulator};
use serde_json::{Value as Json, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub const QUERY: &str = "/v3/InsightsDomains/Conversations/Query";
pub const METADATA: &str = "/v3/InsightsDomains/Conversations/Metadata";

/// A simulator on a free port, and a client for it.
pub struct Running {
    pub simulator: Simulator,
    pub address: std::net::SocketAddr,
    pub client: Client<HttpConnector, Full<Bytes>>,
    stop: oneshot::Sender<()>,
    served: JoinHandle<std::io::Result<()>>,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Json {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {:?}", self.body))
    }

    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).unwrap_or_else(|| panic!("no {name}"));
        value.to_str().unwrap()
    }

    /// Checks that this is an error in Twilio's format.
    pub fn refused(&self, status: u16, code: u32) {
        assert_eq!(self.status, status, "{:?}", self.body);
        let body = self.json();
        assert_eq!((&body["code"], &body["httpStatusCode"]), (&json!(code), &json!(status)));
        assert_eq!(body["userError"], status < 500);
        assert!(body["message"].as_str().is_some_and(|text| !text.is_empty()));
        assert!(body["params"].is_object());
        assert_eq!(self.header("content-type"), "application/json");
    }
}

/// No limits, no delays, and jobs that take no time.
pub fn settings() -> Settings {
    Settings {
        rate: None,
        latency: Duration::ZERO,
        seed: 42,
        rows: 800,
        now: "2026-05-20T12:00:00Z".parse().unwrap(),
        jobs: JobSettings { takes: Duration::ZERO, ..JobSettings::default() },
        public_url: None,
    }
}

fn basic(password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("AC1:{password}")))
}

impl Running {
    pub async fn start(rate: &str) -> Self {
        Self::with(Settings { rate: parse_rate(rate).unwrap(), ..settings() }).await
    }

    pub async fn with(settings: Settings) -> Self {
        let simulator = Simulator::new(settings);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let shutdown = async { stopped.await.unwrap_or(()) };
        Self {
            served: tokio::spawn(simulator.clone().run(listener, shutdown)),
            client: Client::builder(TokioExecutor::new()).build_http(),
            simulator,
            address,
            stop,
        }
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let (head, body) = self.client.request(request).await.unwrap().into_parts();
        Answer { status: head.status, headers: head.headers, body: body.collect().await.unwrap().to_bytes() }
    }

    pub fn request(&self, method: &str, path: &str, password: &str, body: &str) -> Request<Full<Bytes>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .header("authorization", basic(password));
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        request.body(Full::from(body.to_owned())).unwrap()
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request("GET", path, "secret", "")).await
    }

    pub async fn post(&self, path: &str, body: &str) -> Answer {
        self.send(self.request("POST", path, "secret", body)).await
    }

    async fn page(&self, token: &Json) -> Answer {
        self.get(&format!("{QUERY}?pageToken={}", encoded(token.as_str().unwrap()))).await
    }

    pub async fn script(&self, rule: Json) {
        let answer = self.post("/_simulator/faults", &rule.to_string()).await;
        assert_eq!(answer.status, 200, "{:?}", answer.body);
    }

    /// Sends a GET on a new connection and returns all that comes until its end.
    pub async fn raw(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: {}\r\n\r\n", basic("secret"));
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }
}

pub fn encoded(token: &str) -> String {
    token.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D")
}

fn count() -> String {
    json!({"query": {"measures": ["Conversation.Count"]}}).to_string()
}

#[tokio::test]
async fn every_documented_example_is_answered_in_its_documented_form() {
    let running = Running::start("0/s").await;
    let examples: Vec<Json> = serde_json::from_str(include_str!("../fixtures/simulator-examples.json")).unwrap();
    assert!(examples.len() > 35);
    for example in &examples {
        let text = |key: &str| example[key].as_str().unwrap_or_default();
        let name = text("name");
        let body = match &example["body"] {
            Json::Null => String::new(),
            body => body.to_string(),
        };
        let password = example["password"].as_str().unwrap_or("secret");
        let answer = running.send(running.request(text("method"), text("path"), password, &body)).await;
        assert_eq!(u64::from(answer.status.as_u16()), example["status"].as_u64().unwrap(), "{name}");
        assert!(answer.header("twilio-request-id").starts_with("RQ"), "{name}");
        assert_eq!(answer.header("twilio-request-id").len(), 34, "{name}");
        assert!(answer.header("twilio-request-duration").parse::<f64>().is_ok());
        assert!(answer.header("twilio-concurrent-requests").parse::<u32>().unwrap() >= 1);
        if let Some(code) = example["code"].as_u64() {
            answer.refused(answer.status.as_u16(), u32::try_from(code).unwrap());
            continue;
        }
        let body = answer.json();
        assert_eq!(body["domain"], "Conversations", "{name}");
        if let Some(keys) = example["keys"].as_array() {
            check_rows(name, example, keys, &body);
        } else {
            check_metadata(&body);
        }
    }
    running.stop.send(()).unwrap();
    running.served.await.unwrap().unwrap();
}

fn check_rows(name: &str, example: &Json, keys: &[Json], body: &Json) {
    let items = body["items"].as_array().unwrap();
    assert_eq!(body["meta"]["key"], "items", "{name}");
    assert_eq!(body["meta"]["pageSize"], items.len(), "{name}");
    if let Some(rows) = example["rows"].as_u64() {
        assert_eq!(items.len() as u64, rows, "{name}");
    } else {
        assert!(!items.is_empty(), "{name}");
    }
    for item in items {
        let mut names: Vec<_> = item.as_object().unwrap().keys().cloned().collect();
        names.sort();
        assert_eq!(json!(names), json!(keys), "{name}");
        for (key, cell) in item.as_object().unwrap() {
            match key.as_str() {
                "Channels" | "Languages" => assert!(cell[0].is_string(), "{name}"),
                _ if key.ends_with(".Count") => assert!(cell.is_u64(), "{name}"),
                _ if key.ends_with(".hour") || key == "DateCreated" => {
                    let text = cell.as_str().unwrap();
                    assert_eq!((text.len(), &text[10..11], &text[19..20]), (23, "T", "."), "{name}");
                }
                _ => {}
            }
        }
    }
    if let Some(meta) = example["meta"].as_array() {
        let mut present: Vec<_> = body["meta"].as_object().unwrap().keys().cloned().collect();
        present.sort();
        assert_eq!(json!(present), json!(meta), "{name}");
    }
}

fn check_metadata(body: &Json) {
    for cube in body["cubes"].as_array().unwrap() {
        assert!(cube["name"].is_string() && cube["description"].is_string());
        for measure in cube["measures"].as_array().unwrap() {
            for key in ["name", "description", "type", "aggregation"] {
                assert!(measure[key].is_string(), "{measure}");
            }
        }
        for dimension in cube["dimensions"].as_array().unwrap() {
            for key in ["name", "description", "type"] {
                assert!(dimension[key].is_string(), "{dimension}");
            }
        }
    }
}

#[tokio::test]
async fn every_listed_member_can_be_queried() {
    let running = Running::start("0/s").await;
    let metadata = running.get(METADATA).await.json();
    for cube in metadata["cubes"].as_array().unwrap() {
        for (kind, list) in [("measures", &cube["measures"]), ("dimensions", &cube["dimensions"])] {
            for member in list.as_array().unwrap() {
                let mut query = json!({});
                query[kind] = json!([member["name"]]);
                let answer = running.post(QUERY, &json!({ "query": query }).to_string()).await;
                assert_eq!(answer.status, 200, "{member}");
                let cells = answer.json()["items"].as_array().unwrap().clone();
                assert!(!cells.is_empty(), "{member}");
                let expected = member["type"].as_str().unwrap();
                for cell in cells.iter().map(|item| &item[member["name"].as_str().unwrap()]) {
                    let fits = match expected {
                        "number" => cell.is_number(),
                        "boolean" => cell.is_boolean(),
                        _ => cell.is_string() || cell.is_array(),
                    };
                    assert!(fits || cell.is_null(), "{member}: {cell}");
                }
            }
        }
    }
}

#[tokio::test]
async fn invalid_requests_are_refused_in_twilios_format() {
    let running = Running::start("0/s").await;
    for body in ["", "{", "null", "[]", "{\"query\":1}", "\u{0}", &"[".repeat(100_000)] {
        running.post(QUERY, body).await.refused(400, 20001);
    }
    let large = " ".repeat((1 << 20) + 1);
    running.post(QUERY, &large).await.refused(400, 20001);
    for size in ["0", "-1", "x", "", "1.5"] {
        let path = format!("{QUERY}?pageSize={size}");
        running.post(&path, &count()).await.refused(400, 20001);
    }
    let zone = json!({"properties": {"timezone": "Nowhere/Land"}, "query": {"measures": ["Conversation.Count"]}});
    running.post(QUERY, &zone.to_string()).await.refused(400, 20001);

    let domain = json!({"domain": "Voice", "query": {"measures": ["Conversation.Count"]}});
    running.post(QUERY, &domain.to_string()).await.refused(400, 20001);

    for path in ["/", "/v3", "/v3/InsightsDomains/Conversations/QueryJob", "/v3/InsightsDomains/conversations/Query"] {
        running.get(path).await.refused(404, 20404);
    }
    let answer = running.send(running.request("DELETE", QUERY, "secret", "")).await;
    answer.refused(405, 20004);
    assert_eq!(answer.header("allow"), "GET, POST");

    let mut form = running.request("POST", QUERY, "secret", &count());
    let kind = "application/x-www-form-urlencoded; charset=utf-8";
    form.headers_mut().insert("content-type", kind.parse().unwrap());
    running.send(form).await.refused(415, 20422);
    let mut form = running.request("GET", METADATA, "secret", "");
    form.headers_mut().insert("content-type", kind.parse().unwrap());
    assert_eq!(running.send(form).await.status, 200);
}

#[tokio::test]
async fn credentials_are_required_and_never_stored() {
    let running = Running::start("0/s").await;
    for value in [None, Some("Bearer hidden-word"), Some("Basic !!"), Some("Basic OnNlY3JldA==")] {
        let mut request = running.request("GET", METADATA, "secret", "");
        match value {
            Some(value) => request.headers_mut().insert("authorization", value.parse().unwrap()),
            None => request.headers_mut().remove("authorization"),
        };
        let answer = running.send(request).await;
        answer.refused(401, 20003);
        assert!(answer.header("www-authenticate").starts_with("Basic "));
    }
    running.send(running.request("GET", METADATA, "hidden-word", "")).await.refused(401, 20003);
    let log = running.get("/_simulator/requests").await;
    let text = String::from_utf8(log.body.to_vec()).unwrap();
    assert!(!text.contains("hidden-word") && !text.contains(&STANDARD.encode("AC1:hidden-word")));
}

#[tokio::test]
async fn the_log_says_what_was_received() {
    let running = Running::start("0/s").await;
    let path = format!("{QUERY}?pageSize=2");
    running.post(&path, &count()).await;
    running.get(METADATA).await;
    let log = running.get("/_simulator/requests").await.json();
    assert_eq!(log["total"], 2);
    let first = &log["requests"][0];
    assert_eq!((&first["method"], &first["path"], &first["status"]), (&json!("POST"), &json!(path), &json!(200)));
    assert_eq!(first["body_hash"], blake3::hash(count().as_bytes()).to_hex().as_str());
    assert!(first["time"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    assert_eq!(first["authorization"], json!({"scheme": "Basic", "user": "AC1"}));
    assert!(first["headers"].as_array().unwrap().contains(&json!("content-type")));
    assert_eq!(log["requests"][1]["body_hash"], Json::Null);
    assert_eq!(running.simulator.requests().len(), 2);
    running.send(running.request("DELETE", "/_simulator/requests", "secret", "")).await;
    assert_eq!(running.get("/_simulator/requests").await.json()["total"], 0);
}

#[tokio::test]
async fn beyond_the_rate_answers_are_429_with_the_documented_headers() {
    // So slow that the bucket does not fill during the test.
    let running = Running::start("1/h").await;
    assert_eq!(running.post(QUERY, &count()).await.status, 200);
    let answer = running.post(QUERY, &count()).await;
    answer.refused(429, 20429);
    assert_eq!(answer.header("x-ratelimit-limit"), "1");
    assert_eq!(answer.header("x-ratelimit-remaining"), "0");
    let reset: u32 = answer.header("x-ratelimit-reset").parse().unwrap();
    assert!((3500..=3600).contains(&reset));
    for name in ["x-rate-limit-limit", "x-rate-limit-remaining", "x-rate-limit-config"] {
        answer.header(name);
    }
    assert!(answer.headers.get("retry-after").is_none());
    assert_eq!(running.get("/_simulator/requests").await.status, 200);
}

#[tokio::test]
async fn http2_with_prior_knowledge_works_too() {
    let running = Running::start("0/s").await;
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let answer = client.request(running.request("POST", QUERY, "secret", &count())).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.version()), (200, http::Version::HTTP_2));
}

#[tokio::test]
async fn stopping_lets_a_request_finish() {
    let running = Running::start("0/s").await;
    running.script(json!({"delay": "100ms"})).await;
    let request = running.client.request(running.request("GET", METADATA, "secret", ""));
    let request = tokio::spawn(request);
    while running.simulator.requests().is_empty() {
        tokio::task::yield_now().await;
    }
    running.stop.send(()).unwrap();
    assert_eq!(request.await.unwrap().unwrap().status(), 200);
    running.served.await.unwrap().unwrap();
    assert!(TcpStream::connect(running.address).await.is_err());
}
