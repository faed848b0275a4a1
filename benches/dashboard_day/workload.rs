//! The workload of the dashboard benchmarks: clients, an upstream that grants five requests a second, and what is counted.
//!
//! Twenty clients ask for 50 queries in Zipf order, each a quarter of a second after its last response. The upstream
//! answers after 80 ms, and beyond five requests in a second of the clock with 429 and Twilio's headers.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const CLIENTS: u64 = 20;
const QUERIES: usize = 50;
const THINK: Duration = Duration::from_millis(250);
const LATENCY: Duration = Duration::from_millis(80);
pub const GRANTED: u32 = 5;
pub const FRESH: Duration = Duration::from_secs(5);
/// How long after its freshness a page may be served.
pub const WINDOW: Duration = Duration::from_secs(25);

/// One line of the table.
pub struct Row {
    pub requests: usize,
    pub answered: f64,
    pub calls: Calls,
    pub calls_a_second: f64,
    pub saved: f64,
    pub p50: f64,
    pub p95: f64,
    pub oldest: f64,
}

impl Row {
    pub fn of(answers: &[Answer], upstream: &Upstream, elapsed: Duration) -> Self {
        let good: Vec<_> = answers.iter().filter(|answer| answer.status == 200).collect();
        let mut took: Vec<_> = good.iter().map(|answer| answer.took.as_secs_f64() * 1000.0).collect();
        took.sort_by(f64::total_cmp);
        let at = |share: f64| took.get((took.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN);
        let calls = *upstream.state.calls.lock().unwrap();
        Self {
            requests: answers.len(),
            answered: good.len() as f64 / answers.len() as f64,
            calls,
            calls_a_second: calls.all() / elapsed.as_secs_f64(),
            saved: 1.0 - calls.all() / good.len() as f64,
            p50: at(0.5),
            p95: at(0.95),
            oldest: good.iter().map(|answer| answer.age.as_secs_f64()).fold(0.0, f64::max),
        }
    }

    /// The head of the table.
    pub fn head() {
        println!(
            "| | requests | answered 200 | upstream calls, 200 + 429 | a second | calls saved per answer | p50 ms | p95 ms | oldest answer s |"
        );
        println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    }

    pub fn print(&self, name: &str) {
        let Self { requests, answered, calls, calls_a_second, saved, p50, p95, oldest } = self;
        let (answered, Calls { granted, refused }) = (answered * 100.0, calls);
        println!(
            "| {name} | {requests} | {answered:.2} % | {granted} + {refused} | {calls_a_second:.2} | {saved:.2} | {p50:.1} | {p95:.1} | {oldest:.1} |"
        );
    }
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Calls {
    pub granted: u32,
    pub refused: u32,
}

impl Calls {
    pub fn all(self) -> f64 {
        f64::from(self.granted + self.refused)
    }
}

pub struct Upstream {
    pub address: SocketAddr,
    state: Arc<State>,
}

struct State {
    begun: Instant,
    window: Mutex<(u64, u32)>,
    calls: Mutex<Calls>,
}

impl Upstream {
    /// Pages contain the time between `begun` and when they were made.
    pub async fn start(begun: Instant) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State { begun, window: Mutex::default(), calls: Mutex::default() });
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let state = Arc::clone(&shared);
                let answer = service_fn(move |request: Request<_>| answer(Arc::clone(&state), request));
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
            }
        });
        Self { address, state }
    }
}

async fn answer(
    state: Arc<State>,
    request: Request<hyper::body::Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    drop(request.into_body().collect().await);
    let second = state.begun.elapsed().as_secs();
    let granted = {
        let mut window = state.window.lock().unwrap();
        if window.0 != second {
            *window = (second, 0);
        }
        window.1 += 1;
        window.1 <= GRANTED
    };
    tokio::time::sleep(LATENCY).await;
    let mut calls = state.calls.lock().unwrap();
    let response = Response::builder().header("content-type", "application/json");
    Ok(if granted {
        calls.granted += 1;
        let made = state.begun.elapsed().as_millis();
        response.body(Full::from(format!(r#"{{"data":[{{"made":{made}}}],"meta":{{}}}}"#)))
    } else {
        calls.refused += 1;
        let limited = response.status(StatusCode::TOO_MANY_REQUESTS).header("x-ratelimit-limit", GRANTED);
        let limited = limited.header("x-ratelimit-remaining", 0).header("x-ratelimit-reset", 1);
        limited.body(Full::from(r#"{"code":20429,"message":"Too many requests","httpStatusCode":429}"#))
    }
    .unwrap())
}

pub struct Answer {
    pub status: u16,
    took: Duration,
    age: Duration,
}

/// The same requests each time: each client draws from its own seed, and asks one of `to`.
pub async fn clients(to: &[SocketAddr], begun: Instant, length: Duration, retry: bool) -> Vec<Answer> {
    let until = begun + length;
    let mut clients = JoinSet::new();
    for (seed, to) in (0..CLIENTS).zip(to.iter().copied().cycle()) {
        clients.spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed);
            tokio::time::sleep(THINK.mul_f64(random.f64())).await;
            let mut connection = connect(to).await;
            let mut answers = Vec::new();
            while Instant::now() < until {
                let query = zipf(&mut random);
                let asked = Instant::now();
                let mut answer = ask(&mut connection, query).await;
                for tried in 0..3 {
                    if answer.0 != 429 || !retry {
                        break;
                    }
                    let most = Duration::from_millis(100 << (tried + 1)).min(Duration::from_secs(3));
                    tokio::time::sleep(most.mul_f64(random.f64())).await;
                    answer = ask(&mut connection, query).await;
                }
                answers.push(Answer {
                    status: answer.0,
                    took: asked.elapsed(),
                    age: begun.elapsed().saturating_sub(answer.1),
                });
                tokio::time::sleep(THINK).await;
            }
            answers
        });
    }
    clients.join_all().await.into_iter().flatten().collect()
}

/// One of 50, where the n-th is drawn in proportion to 1/n.
fn zipf(random: &mut fastrand::Rng) -> usize {
    let weights = (1..=QUERIES).map(|n| 1.0 / n as f64);
    let mut left = random.f64() * weights.clone().sum::<f64>();
    for (n, weight) in weights.enumerate() {
        left -= weight;
        if left <= 0.0 {
            return n;
        }
    }
    QUERIES - 1
}

async fn connect(to: SocketAddr) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(to).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// The status, and how long after the beginning the page was made.
async fn ask(connection: &mut SendRequest<Full<Bytes>>, query: usize) -> (u16, Duration) {
    let body = format!(r#"{{"query":{{"dimensions":["Operator.Name{query}"],"measures":["Conversation.Count"]}}}}"#);
    let request = Request::builder()
        .method(Method::POST)
        .uri("/v3/InsightsDomains/Conversations/Query")
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Full::from(body))
        .unwrap();
    let response = connection.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let page: serde_json::Value = serde_json::from_slice(&body).unwrap();
    (status, Duration::from_millis(page["data"][0]["made"].as_u64().unwrap_or_default()))
}
