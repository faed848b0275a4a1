//! Connections to the upstream that ended while they were idle, and names with addresses that do not respond.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::*;
use insights_gateway::layers::upstream::{Dialer, Tcp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::Instant;
use tower::ServiceExt;

/// An upstream whose connections can all die at the same time without notice: bytes sent over them are lost.
struct Mortal {
    url: String,
    /// Answers over connections that have died since. Every connection has the number of the generation in which it was
    /// made.
    generation: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    asked_of_the_dead: Arc<AtomicUsize>,
    resets: Arc<AtomicBool>,
    /// They die in the middle of a response.
    cuts: Arc<AtomicBool>,
}

impl Mortal {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mortal = Self {
            url,
            generation: Arc::default(),
            connections: Arc::default(),
            asked_of_the_dead: Arc::default(),
            resets: Arc::default(),
            cuts: Arc::default(),
        };
        let (generation, connections) = (Arc::clone(&mortal.generation), Arc::clone(&mortal.connections));
        let (asked, resets) = (Arc::clone(&mortal.asked_of_the_dead), Arc::clone(&mortal.resets));
        let cuts = Arc::clone(&mortal.cuts);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                let (generation, asked, resets) = (Arc::clone(&generation), Arc::clone(&asked), Arc::clone(&resets));
                tokio::spawn(converse(stream, generation, asked, resets, Arc::clone(&cuts)));
            }
        });
        mortal
    }

    /// All open connections die.
    fn die(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn asked_of_the_dead(&self) -> usize {
        self.asked_of_the_dead.load(Ordering::SeqCst)
    }
}

async fn converse(
    mut stream: TcpStream,
    generation: Arc<AtomicUsize>,
    asked: Arc<AtomicUsize>,
    resets: Arc<AtomicBool>,
    cuts: Arc<AtomicBool>,
) {
    let born = generation.load(Ordering::SeqCst);
    let mut head = Vec::new();
    loop {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        head.clear();
        if generation.load(Ordering::SeqCst) != born {
            asked.fetch_add(1, Ordering::SeqCst);
            if cuts.load(Ordering::SeqCst) {
                let half = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{{", PAGE.len());
                let _ = stream.write_all(half.as_bytes()).await;
                return;
            }
            if resets.load(Ordering::SeqCst) {
                let _ = stream.set_zero_linger();
                return;
            }
            std::future::pending::<()>().await;
        }
        // Long enough that other requests need another connection.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{PAGE}", PAGE.len());
        let _ = stream.write_all(answer.as_bytes()).await;
    }
}

/// Sends `count` different queries at the same time; all must be answered.
async fn all_at_once(gateway: &Gateway, name: &str, count: usize) {
    let requests = (0..count).map(|n| get(&format!("{METADATA}?{name}={n}"), ""));
    let answers = requests.map(async |request| gateway.ask(&request).await);
    for answer in futures_util::future::join_all(answers).await {
        answer.assert_page(PAGE, "miss");
    }
}

async fn costs_one_retry(resets: bool, cuts: bool) {
    let upstream = Mortal::start().await;
    upstream.resets.store(resets, Ordering::SeqCst);
    upstream.cuts.store(cuts, Ordering::SeqCst);
    let gateway = TestConfig::new(&upstream.url)
        .set("upstream.attempt_timeout", "1s")
        // Two attempts: the first over a dead connection; the second must not use another dead one.
        .set("retry.attempts", "2")
        .set("circuit.consecutive", "1")
        .start()
        .await;
    all_at_once(&gateway, "before", 8).await;
    let before = upstream.connections();
    assert!(before >= 4, "{before} connections are kept");
    upstream.die();
    for n in 0..5 {
        gateway.ask(&get(&format!("{METADATA}?after={n}"), "")).await.assert_page(PAGE, "miss");
    }
    assert_eq!(upstream.asked_of_the_dead(), 1, "the other dead connections are not tried");
    assert_eq!(upstream.connections(), before + 1);
    assert_eq!(gateway.metric("circuit_state", &["default"]).await, 0.0);
}

#[tokio::test]
async fn connections_that_died_in_silence_cost_one_attempt_and_open_no_circuit() {
    costs_one_retry(false, false).await;
}

#[tokio::test]
async fn connections_that_are_reset_when_they_are_used_cost_one_attempt_and_open_no_circuit() {
    costs_one_retry(true, false).await;
}

#[tokio::test]
async fn connections_that_end_in_the_middle_of_an_answer_cost_one_attempt_and_open_no_circuit() {
    costs_one_retry(false, true).await;
}

#[tokio::test]
async fn dead_connections_that_many_take_at_once_open_no_circuit() {
    let upstream = Mortal::start().await;
    let gateway = TestConfig::new(&upstream.url)
        .set("upstream.attempt_timeout", "500ms")
        .set("circuit.consecutive", "3")
        .start()
        .await;
    all_at_once(&gateway, "before", 10).await;
    upstream.die();
    all_at_once(&gateway, "after", 10).await;
    assert_eq!(gateway.metric("circuit_state", &["default"]).await, 0.0);
    assert_eq!(gateway.metric("errors_total", &["reason=\"circuit_open\""]).await, 0.0);
}

#[tokio::test]
async fn an_upstream_that_is_silent_on_new_connections_too_opens_the_circuit() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url())
        .set("upstream.attempt_timeout", "100ms")
        .set("circuit.consecutive", "6")
        .set("circuit.open", "60s")
        .start()
        .await;
    gateway.ask(&post(ASK)).await.assert_page(PAGE, "miss");
    upstream.set(|_| Plan::silence());
    for n in 0..3 {
        let answer = gateway.ask(&get(&format!("{METADATA}?n={n}"), "")).await;
        assert!(answer.status >= 500, "{answer:?}");
    }
    assert_eq!(gateway.metric("circuit_state", &["default"]).await, 2.0);
}

/// An address that neither accepts nor refuses connections: its listener's queue is full.
struct BlackHole {
    address: SocketAddr,
    _listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl BlackHole {
    async fn on(ip: [u8; 4], port: u16) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((ip, port).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
            queued.push(stream.unwrap());
        }
        Self { address, _listener: listener, _queued: queued }
    }
}

#[tokio::test]
async fn a_host_whose_first_addresses_are_dead_is_reached_within_the_connect_timeout() {
    // On one port, like the addresses of one name.
    let alive = TcpListener::bind("127.0.0.4:0").await.unwrap();
    let port = alive.local_addr().unwrap().port();
    let holes = [BlackHole::on([127, 0, 0, 2], port).await, BlackHole::on([127, 0, 0, 3], port).await];
    // No process listens on the last but one.
    let addresses: Vec<SocketAddr> = holes
        .iter()
        .map(|hole| hole.address)
        .chain([SocketAddr::from(([127, 0, 0, 5], port)), alive.local_addr().unwrap()])
        .collect();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let resolver = {
        let asked = Arc::clone(&asked);
        tower::service_fn(move |name: hyper_util::client::legacy::connect::dns::Name| {
            asked.lock().unwrap().push(name.as_str().to_owned());
            // The port in a name's addresses is ignored.
            let addresses: Vec<_> = addresses.iter().map(|address| SocketAddr::new(address.ip(), 0)).collect();
            async move { Ok::<_, std::io::Error>(addresses.into_iter()) }
        })
    };
    let url: http::Uri = format!("https://upstream.example:{port}").parse().unwrap();
    let begun = Instant::now();
    let stream = within(Dialer::new(resolver, Tcp::default()).oneshot(url)).await.unwrap().into_inner();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(stream.peer_addr().unwrap(), alive.local_addr().unwrap());
    assert!(stream.nodelay().unwrap());
    assert_eq!(*asked.lock().unwrap(), ["upstream.example"]);
}
