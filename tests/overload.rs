//! Thousands of clients at once: idle connections, heads and bodies that arrive slowly, and invalid requests. A
//! well-behaved client is served nearly as fast as without them, and the memory that they took is returned.
//!
//! The full test needs a release binary, 8,000 descriptors and an idle machine with two cores:
//!
//! ```sh
//! cargo build --release && ulimit -n 20000
//! GATEWAY_BINARY=$PWD/target/release/insights-gateway \
//!     taskset -c 1 cargo test --release --test overload -- --ignored --nocapture
//! ```

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream as Blocking};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::certificate::Certificate;
use support::process::{Process, command, quiet, set};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How many clients of each kind.
struct WaiterCount {
    idle: usize,
    slow_heads: usize,
    slow_bodies: usize,
    /// Invalid requests per second.
    garbage: u32,
    /// How many requests the well-behaved client sends, before and during the overload.
    asked: usize,
}

/// A well-behaved client: a cached query every few milliseconds. Returns its latencies, sorted.
///
/// On its own thread, so that the tasks of the other clients do not disturb its measurement.
#[allow(clippy::disallowed_methods, reason = "it blocks a thread of its own")]
async fn behave(address: SocketAddr, asked: usize) -> Vec<Duration> {
    let ask = move || {
        let mut stream = Blocking::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        let (request, mut buffer) = (post(ASK), [0; 4096]);
        let mut once = || {
            let begun = Instant::now();
            stream.write_all(&request).unwrap();
            let mut read = 0;
            while !buffer[..read].ends_with(PAGE.as_bytes()) {
                let n = stream.read(&mut buffer[read..]).unwrap();
                assert!(n > 0, "{:?}", String::from_utf8_lossy(&buffer[..read]));
                read += n;
            }
            assert!(buffer.starts_with(b"HTTP/1.1 200 "), "{:?}", String::from_utf8_lossy(&buffer[..read]));
            let took = begun.elapsed();
            std::thread::sleep(Duration::from_millis(3));
            took
        };
        let mut latencies: Vec<_> = (0..asked).map(|_| once()).collect();
        latencies.sort_unstable();
        latencies
    };
    tokio::task::spawn_blocking(ask).await.expect("every request is answered")
}

fn percentile(latencies: &[Duration], percent: usize) -> Duration {
    latencies[(latencies.len() * percent / 100).min(latencies.len() - 1)]
}

/// Connects until it succeeds, which may take several attempts under load.
async fn connect(address: SocketAddr) -> TcpStream {
    loop {
        if let Ok(stream) = TcpStream::connect(address).await {
            return stream;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Sends one request, and then nothing more.
async fn idle(address: SocketAddr) {
    loop {
        let mut stream = connect(address).await;
        let _ = stream.write_all(&get("/nowhere", "")).await;
        while matches!(stream.read(&mut [0; 1024]).await, Ok(1..)) {}
    }
}

/// Sends this beginning, and then one byte per second for as long as it can.
async fn trickle(address: SocketAddr, beginning: String) {
    loop {
        let mut stream = connect(address).await;
        let mut sent = stream.write_all(beginning.as_bytes()).await;
        while sent.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            sent = stream.write_all(b"a").await;
        }
    }
}

/// Sends this many invalid requests per second until it is dropped.
///
/// On its own thread, so that they come evenly: the runtime's timers fire once a millisecond, and would send all
/// requests of that millisecond together.
struct Garbage(Arc<AtomicBool>);

impl Garbage {
    #[allow(clippy::disallowed_methods, reason = "it blocks a thread of its own")]
    fn start(address: SocketAddr, a_second: u32) -> Self {
        let enough = Arc::<AtomicBool>::default();
        let is_enough = Arc::clone(&enough);
        std::thread::spawn(move || {
            let kinds =
                [get("/wp-login.php", ""), post("nonsense"), get("/v3/../etc/passwd", ""), post_to(METADATA, "", ASK)];
            let between = Duration::from_secs(1) * kinds.len() as u32 / a_second;
            let burst: Vec<u8> = kinds.concat();
            let mut connections = [(); 4].map(|()| unread(address));
            let begun = std::time::Instant::now();
            for n in 0u32.. {
                std::thread::sleep((between * n).saturating_sub(begun.elapsed()));
                if is_enough.load(Ordering::Relaxed) {
                    return;
                }
                let connection = &mut connections[n as usize % 4];
                // Bytes that are not a request end the connection.
                let sent: &[u8] = if n % 4000 < 3996 { &burst } else { b"\0\0\0\0\r\n\r\n" };
                if connection.write_all(sent).is_err() || sent.len() < burst.len() {
                    *connection = unread(address);
                }
            }
        });
        Self(enough)
    }
}

impl Drop for Garbage {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A connection whose responses are not read.
#[allow(clippy::disallowed_methods, reason = "it blocks threads of its own")]
fn unread(address: SocketAddr) -> Blocking {
    loop {
        if let Ok(stream) = Blocking::connect(address)
            && let Ok(mut answers) = stream.try_clone()
        {
            std::thread::spawn(move || while matches!(answers.read(&mut [0; 64 * 1024]), Ok(1..)) {});
            return stream;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn resident(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

async fn requests(process: &Process) -> f64 {
    let page = Client::connect(process.admin).await.ask(&get("/metrics", "Connection: close\r\n")).await.text();
    let samples = page.lines().filter(|line| line.starts_with("insights_gateway_requests_total{"));
    samples.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

/// What was measured.
#[derive(Debug)]
struct Measured {
    alone: Duration,
    crowded: Duration,
    /// Requests per second, those of the other clients included.
    rate: f64,
    /// MiB of memory: before, at most, and some time after the other clients have left.
    resident: [u64; 3],
}

async fn measure(process: &Process, waiter_count: &WaiterCount) -> Measured {
    let address = process.data;
    let _warm = behave(address, waiter_count.asked / 4).await;
    let alone = percentile(&behave(address, waiter_count.asked).await, 99);
    let before = resident(process);

    let mut clients = JoinSet::new();
    for _ in 0..waiter_count.idle {
        clients.spawn(idle(address));
    }
    for _ in 0..waiter_count.slow_heads {
        clients.spawn(trickle(address, "GET / HTTP/1.1\r\nHost: localhost\r\nX-Filler: ".to_owned()));
    }
    for _ in 0..waiter_count.slow_bodies {
        let head = format!("POST {QUERY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n");
        clients.spawn(trickle(address, head + &"[".repeat(1000)));
    }
    let garbage = Garbage::start(address, waiter_count.garbage);
    let gathered = (waiter_count.idle + waiter_count.slow_bodies) as f64;
    poll("all clients to connect", || async { (requests(process).await > gathered).then_some(()) }).await;

    let (begun, already) = (Instant::now(), requests(process).await);
    let mut behaving = std::pin::pin!(behave(address, waiter_count.asked * 4));
    let mut most = before;
    let mut look = tokio::time::interval(Duration::from_millis(100));
    let latencies = loop {
        tokio::select! {
            latencies = &mut behaving => break latencies,
            _ = look.tick() => most = most.max(resident(process)),
        }
    };
    let rate = (requests(process).await - already) / begun.elapsed().as_secs_f64();
    drop(garbage);
    clients.shutdown().await;
    let after = resident_again(process, before).await;
    Measured { alone, crowded: percentile(&latencies, 99), rate, resident: [before, most, after] }
}

fn arguments(upstream: &Upstream) -> Vec<String> {
    // The lines are not read, and writing them would take time.
    quiet(vec![set("upstream.url", &upstream.url()), set("cache.query.fresh", "1h"), set("log.access", "false")])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_well_behaved_client_is_served_under_overload() {
    let upstream = Upstream::start().await;
    let process = Process::spawn(command(&arguments(&upstream))).await;
    let waiter_count = WaiterCount { idle: 300, slow_heads: 100, slow_bodies: 100, garbage: 1000, asked: 100 };
    let measured = measure(&process, &waiter_count).await;
    println!("{measured:?}");
    // Even on a busy machine, no request waits for a timeout of other clients.
    assert!(measured.crowded < Duration::from_secs(1), "{measured:?}");
    assert!(measured.rate > 300.0, "there was overload: {measured:?}");
    assert!(measured.resident[1] < measured.resident[0] + 64, "{measured:?}");
    process.signal("TERM");
    assert_eq!(process.ended().await.0, Some(0));
}

/// How long the allocator may keep free memory on a machine that is busy with other tests.
const RETURNS_WITHIN: Duration = Duration::from_secs(30);

/// MiB that it may keep for good, because of fragmentation.
const KEPT: u64 = 8;

/// Waits until the resident memory is nearly back at `before`. Returns MiB. Sends no request meanwhile: memory has to
/// be returned without traffic.
async fn resident_again(process: &Process, before: u64) -> u64 {
    let deadline = Instant::now() + RETURNS_WITHIN;
    loop {
        let resident = resident(process);
        if resident <= before + KEPT || Instant::now() >= deadline {
            return resident;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_of_an_overload_is_returned() {
    let upstream = Upstream::start().await;
    let process = Process::spawn(command(&arguments(&upstream))).await;
    let _warm = behave(process.data, 100).await;
    let before = resident(&process);
    // Heads that lack only their end: much memory with few descriptors.
    let beginning = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX-Filler: {}", "a".repeat(50_000));
    let mut waiter_count = Vec::new();
    for _ in 0..400 {
        let mut stream = connect(process.data).await;
        stream.write_all(beginning.as_bytes()).await.unwrap();
        waiter_count.push(stream);
    }
    let enough = before + 20;
    let most =
        poll("the memory of the heads", || async { Some(resident(&process)).filter(|most| *most >= enough) }).await;
    drop(waiter_count);
    let after = resident_again(&process, before).await;
    assert!(after <= before + KEPT, "MiB: {before}, at most {most} or more, then {after}");
}

/// A frame of HTTP/2 (RFC 9113 section 4.1).
fn frame(kind: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, 0, 0, 0, 0, stream], payload].concat()
}

const HANDSHAKE: &str = "a handshake";

/// Heads that never end, each as large as allowed.
fn unfinished_heads() -> Vec<(&'static str, Vec<u8>)> {
    // A ClientHello of 60,000 bytes, in records of 15,000.
    let hello = [&[1, 0, 0xea, 0x60, 3, 3][..], &[0; 59_990]].concat();
    let record = |piece: &[u8]| [&[22, 3, 1][..], &u16::try_from(piece.len()).unwrap().to_be_bytes(), piece].concat();
    let hello: Vec<u8> = hello.chunks(15_000).flat_map(record).collect();
    let preface = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, &[])].concat();
    let (headers, continuation) = (1, 9);
    // A field of 16,000 bytes; and 2,000 fields of one byte each, from the static table.
    let large = [&[0x82, 0x86, 0x84, 0x00, 1, b'x', 0x7f, 0x81, 0x7c][..], &[b'y'; 15_868]].concat();
    let small = [&[0x82, 0x86, 0x84][..], &[0x90; 2000]].concat();
    let more = [&[0x00, 1, b'z', 0x7f, 0x81, 0x7c][..], &[b'y'; 15_868]].concat();
    let continued = [frame(headers, 1, &large), frame(continuation, 1, &more).repeat(5)].concat();
    let http1 = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX-Filler: {}", "a".repeat(60_000));
    let lines = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}", "A:\r\n".repeat(12_000));
    vec![
        ("one long line", http1.into_bytes()),
        ("many lines", lines.into_bytes()),
        ("long fields in many frames", [&preface[..], &continued].concat()),
        ("many small fields", [&preface[..], &frame(headers, 1, &small)].concat()),
        ("a frame without its end", [&preface[..], &frame(headers, 1, &large)[..15_000]].concat()),
        ("settings without their end", [&preface[..], &frame(4, 0, &[0; 16_380])[..15_000]].concat()),
        ("a preface alone", preface),
        (HANDSHAKE, hello),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_heads_take_little_memory_however_many_there_are() {
    let (upstream, certificate) = (Upstream::start().await, Certificate::new());
    for (kind, beginning) in unfinished_heads() {
        let mut arguments = arguments(&upstream);
        if kind == HANDSHAKE {
            let file = |name| certificate.path(name);
            arguments.extend([set("server.tls.cert", &file("cert.pem")), set("server.tls.key", &file("key.pem"))]);
        }
        let process = Process::spawn(command(&arguments)).await;
        let before = resident(&process);
        let mut waiter_count = Vec::new();
        let mut most = before;
        for n in 0..2200 {
            let mut stream = connect(process.data).await;
            // The gateway may have closed it before all is sent.
            let _ = tokio::time::timeout(Duration::from_secs(1), stream.write_all(&beginning)).await;
            waiter_count.push(stream);
            if n % 20 == 0 {
                most = most.max(resident(&process));
            }
        }
        // When this is answered, most of what was sent before has been read.
        match kind {
            HANDSHAKE => drop(certificate.connect(process.data, &[]).await),
            _ => drop(behave(process.data, 20).await),
        }
        most = most.max(resident(&process));
        println!("{kind}: {before} MiB, at most {most} MiB");
        assert!(most < 128, "{kind}: {before} MiB, at most {most} MiB");
        drop(waiter_count);
    }
}

/// Finished heads, a hundred per connection, each with many fields of one byte.
fn finished_heads(path: &str, fields: usize) -> Vec<u8> {
    let text = |name: &[u8], value: &str| [name, &[u8::try_from(value.len()).unwrap()], value.as_bytes()].concat();
    // GET, http, path, authority (RFC 7541 appendix A), and a field for the dynamic table.
    let request = [&[0x82, 0x86][..], &text(&[0x04], path), &text(&[0x01], "localhost")].concat();
    let entry = [0x40, 2, b'x', b'a', 0];
    let mut bytes = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, &[])].concat();
    for stream in 0..100u8 {
        let first = if stream == 0 { &entry[..] } else { &[] };
        let mut head = frame(1, stream * 2 + 1, &[&request, first, &vec![0xbe; fields]].concat());
        // END_STREAM and END_HEADERS.
        head[4] = 5;
        bytes.extend(head);
    }
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finished_heads_without_tokens_take_little_memory_however_many_there_are() {
    let upstream = Upstream::start().await;
    // SHA-256 of "a good token".
    let hash = "0cf2881d1923514249bced888cc7a7376a39ee553b82a6cd1cd918f6e21d4af4";
    for (plane, path, count, fields) in [
        ("data", "/x", 300, 3500),
        ("data", "/x", 2200, 90),
        ("data", METADATA, 2200, 1),
        ("admin", "/livez", 64, 3500),
    ] {
        let mut arguments = arguments(&upstream);
        arguments.extend([set("teams.a.token_sha256", &format!("[\"{hash}\"]")), set("admin.token_sha256", hash)]);
        let process = Process::spawn(command(&arguments)).await;
        let address = if plane == "data" { process.data } else { process.admin };
        let (before, bytes) = (resident(&process), Arc::new(finished_heads(path, fields)));
        let mut crowd = JoinSet::new();
        for _ in 0..count {
            let bytes = Arc::clone(&bytes);
            crowd.spawn(async move {
                let mut stream = connect(address).await;
                let _ = stream.write_all(&bytes).await;
                while matches!(stream.read(&mut [0; 4096]).await, Ok(1..)) {}
            });
        }
        let (mut most, mut slowest) = (before, Duration::ZERO);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(4) {
            most = most.max(resident(&process));
            let asked = Instant::now();
            let mut client = Client::connect(process.data).await;
            let bearer = "Authorization: Bearer a good token\r\nConnection: close\r\n";
            assert_eq!(client.ask(&get(METADATA, bearer)).await.status, 200);
            slowest = slowest.max(asked.elapsed());
        }
        println!("{plane} {path} {count} x {fields}: {before} MiB, at most {most} MiB; slowest {slowest:?}");
        assert!(most < 128, "{plane} {path} {count} x {fields}: {before} MiB, at most {most} MiB");
        assert!(slowest < Duration::from_secs(2), "{plane} {path} {count} x {fields}: {slowest:?}");
        crowd.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs an idle machine and a release binary; prints how long a client waits among 7,000 others"]
async fn a_client_that_behaves_hardly_notices_seven_thousand_others() {
    let upstream = Upstream::start().await;
    let mut plain = command(&arguments(&upstream));
    if let Ok(binary) = std::env::var("GATEWAY_BINARY") {
        // It has its own core; the other clients use the other one.
        let mut pinned = Command::new("taskset");
        pinned.args(["-c", "0", &binary]).args(plain.get_args()).stderr(std::process::Stdio::piped());
        pinned.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        plain = pinned;
    }
    let process = Process::spawn(plain).await;
    let waiter_count = WaiterCount { idle: 5000, slow_heads: 1000, slow_bodies: 1000, garbage: 20_000, asked: 1000 };
    let measured = measure(&process, &waiter_count).await;
    println!("{measured:?}");
    assert!(measured.rate > 19_000.0, "{measured:?}");
    assert!(measured.crowded <= 2 * measured.alone, "{measured:?}");
    assert!(measured.resident[1] < measured.resident[0] + 256, "{measured:?}");
    assert!(measured.resident[2] <= 30, "{measured:?}");
}
