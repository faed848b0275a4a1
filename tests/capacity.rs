//! Measures how much memory stored pages take, and in which coding they are sent.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use flate2::read::GzDecoder;
use serde_json::Value as Json;
use support::gateway::{KEY, SECRET, SID};
use support::*;

const PAGE_BYTES: usize = 16 * 1024;
const MIB: u64 = 1024 * 1024;

/// A page that differs from all others, with the redundancy of real ones.
fn nth_page(n: u64) -> String {
    let mut page = String::from(r#"{"data":["#);
    let mut id = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    while page.len() < PAGE_BYTES - 140 {
        id = id.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(n);
        write!(page, r#"{{"Conversation.ConversationId":"conversation_{id:016x}","Conversation.Count":1}},"#).unwrap();
    }
    write!(page, r#"{{"Conversation.Count":{n}}}],"meta":{{}}}}"#).unwrap();
    page.extend(std::iter::repeat_n(' ', PAGE_BYTES - page.len()));
    page
}

/// Answers with the page whose number is its token.
fn by_token(seen: &Seen) -> Plan {
    let n = seen.target().rsplit('=').next().unwrap().parse().unwrap();
    Plan::page(&nth_page(n))
}

fn ask_nth(n: u64, headers: &str) -> Vec<u8> {
    get(&format!("{QUERY}?pageToken={n}"), headers)
}

const GZIP: &str = "Accept-Encoding: gzip, deflate\r\n";

/// A gateway in its own process.
struct Process {
    child: Child,
    data: SocketAddr,
    admin: SocketAddr,
}

impl Process {
    fn start(binary: &str, upstream: &str, capacity: &str) -> Self {
        let mut command = Command::new(binary);
        command.env_clear().arg("serve");
        for (key, value) in [
            ("server.listen", "127.0.0.1:0"),
            ("admin.listen", "127.0.0.1:0"),
            ("accounts.default.account_sid", SID),
            ("accounts.default.api_key", KEY),
            ("accounts.default.api_secret", SECRET),
            ("accounts.default.rate", "0/s"),
            ("accounts.default.concurrency", "100"),
            ("cache.query.fresh", "1h"),
            ("log.access", "false"),
            ("upstream.url", upstream),
            ("cache.capacity", capacity),
        ] {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let serving = lines.by_ref().find_map(|line| {
            let line: Json = serde_json::from_str(&line).ok()?;
            let address = |name: &str| line[name].as_str()?.parse().ok();
            (line["message"] == "serving").then(|| Some((address("data")?, address("admin")?)))?
        });
        let (data, admin) = serving.expect("it logs its addresses");
        // Reads to the end, so that the child never blocks.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, data, admin }
    }

    async fn metric(&self, name: &str) -> u64 {
        let page = Client::connect(self.admin).await.ask(&get("/metrics", "Connection: close\r\n")).await.text();
        let value = page.lines().find_map(|line| line.strip_prefix("insights_gateway_")?.strip_prefix(name)?.get(1..));
        value.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
    }

    /// Bytes of memory that it has, as Linux counts them.
    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The largest values seen, in bytes.
#[derive(Debug, Default)]
struct Peaks {
    counted: u64,
    resident: u64,
}

/// Fetches `pages` pages, every fourth also as gzip, and measures the memory meanwhile.
async fn run_through(process: Process, pages: u64) -> Peaks {
    const CLIENTS: u64 = 8;
    let fetched = Arc::new(AtomicUsize::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for first in 0..CLIENTS {
        let (fetched, address) = (Arc::clone(&fetched), process.data);
        clients.spawn(async move {
            let mut client = Client::connect(address).await;
            for n in (first..pages).step_by(CLIENTS as usize) {
                let answer = client.ask(&ask_nth(n, "")).await;
                assert_eq!((answer.status, answer.body.len(), answer.detail()), (200, PAGE_BYTES, "miss"));
                if n % 4 == 0 {
                    assert_eq!(client.ask(&ask_nth(n, GZIP)).await.detail(), "hit");
                }
                fetched.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let mut peaks = Peaks::default();
    let mut look = async || {
        peaks.counted = peaks.counted.max(process.metric("cache_bytes").await);
        peaks.resident = peaks.resident.max(process.resident());
    };
    while fetched.load(Ordering::Relaxed) < pages as usize && !clients.is_empty() {
        look().await;
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        while let Some(ended) = clients.try_join_next() {
            ended.expect("every client gets its pages");
        }
    }
    look().await;
    peaks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_capacity_holds_while_pages_run_through() {
    let upstream = Upstream::script(by_token).await;
    let process = Process::start(env!("CARGO_BIN_EXE_insights-gateway"), &upstream.url(), "8MiB");
    let peaks = run_through(process, 2000).await;
    assert!(peaks.counted <= 8 * MIB * 105 / 100, "{peaks:?}");
    assert!(peaks.counted >= 7 * MIB, "{peaks:?}");
}

/// Takes minutes. `GATEWAY_BINARY` names the release binary, whose memory is the one that matters.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; prints how much memory a release binary needs for 256 MiB of pages"]
async fn two_hundred_thousand_pages_stay_within_memory() {
    let binary = std::env::var("GATEWAY_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_insights-gateway").to_owned());
    let upstream = Upstream::script(by_token).await;
    let process = Process::start(&binary, &upstream.url(), "256MiB");
    let peaks = run_through(process, 200_000).await;
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    println!("counted at most {:.1} MiB, resident at most {:.1} MiB", mib(peaks.counted), mib(peaks.resident));
    assert!(peaks.counted <= 256 * MIB * 105 / 100, "{peaks:?}");
    assert!(mib(peaks.resident) <= 1.35 * 256.0 + 40.0, "{peaks:?}");
}

fn unzipped(body: &[u8]) -> String {
    let mut text = String::new();
    GzDecoder::new(body).read_to_string(&mut text).unwrap();
    text
}

/// Asks until the response is compressed.
async fn compressed(gateway: &Gateway, n: u64) -> Answer {
    poll("a compressed page", || async {
        let answer = gateway.ask(&ask_nth(n, GZIP)).await;
        answer.find("content-encoding").is_some().then_some(answer)
    })
    .await
}

#[tokio::test]
async fn a_stored_page_is_compressed_once_for_those_who_accept_it() {
    let upstream = Upstream::script(by_token).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let page = nth_page(7);
    // Fetched, and then served from memory while it is being compressed.
    for detail in ["miss", "hit"] {
        let answer = gateway.ask(&ask_nth(7, GZIP)).await;
        answer.assert_page(&page, detail);
        assert_eq!((answer.find("content-encoding"), answer.header("vary")), (None, "Accept-Encoding"));
    }
    let coded = compressed(&gateway, 7).await;
    assert_eq!((coded.status, coded.detail(), coded.header("content-encoding")), (200, "hit", "gzip"));
    assert_eq!((unzipped(&coded.body), coded.header("vary")), (page.clone(), "Accept-Encoding"));
    assert!(coded.body.len() < PAGE_BYTES / 2);
    let plain = gateway.ask(&ask_nth(7, "")).await;
    plain.assert_page(&page, "hit");
    assert_eq!((plain.find("content-encoding"), plain.header("vary")), (None, "Accept-Encoding"));
    let (plain_tag, coded_tag) = (plain.header("etag"), coded.header("etag"));
    assert_eq!(coded_tag, format!("{}-gzip\"", plain_tag.trim_end_matches('"')));
    // HEAD states what GET would send.
    let head = gateway.ask(&[b"HEAD", &ask_nth(7, GZIP)[3..]].concat()).await;
    for name in ["content-encoding", "content-length", "etag", "vary"] {
        assert_eq!(head.header(name), coded.header(name));
    }
    // It is weighed again after its compressed form is available, and never dropped.
    let weighed = PAGE_BYTES + coded.body.len();
    gateway.metric_reaches("cache_bytes", &[], weighed as f64).await;
    assert_eq!(gateway.metric("cache_evictions_total", &[]).await, 0.0);
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn either_tag_is_known() {
    let upstream = Upstream::script(by_token).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    gateway.ask(&ask_nth(1, "")).await;
    let coded_tag = compressed(&gateway, 1).await.header("etag").to_owned();
    let plain_tag = gateway.ask(&ask_nth(1, "")).await.header("etag").to_owned();
    for accept in ["", GZIP] {
        for tag in [&coded_tag, &plain_tag] {
            for weak in ["", "W/"] {
                let answer = gateway.ask(&ask_nth(1, &format!("{accept}If-None-Match: \"x\", {weak}{tag}\r\n"))).await;
                assert_eq!((answer.status, answer.header("etag"), answer.detail()), (304, tag.as_str(), "revalidated"));
                assert_eq!((answer.header("vary"), answer.find("content-encoding")), ("Accept-Encoding", None));
            }
        }
    }
    let any = gateway.ask(&ask_nth(1, &format!("{GZIP}If-None-Match: *\r\n"))).await;
    assert_eq!((any.status, any.header("etag")), (304, coded_tag.as_str()));
    let other = gateway.ask(&ask_nth(1, "If-None-Match: \"x-gzip\"\r\n")).await;
    assert_eq!(other.status, 200);
}

#[tokio::test]
async fn small_pages_and_refusals_stay_plain() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    for _ in 0..3 {
        let answer = gateway.ask(&post_to(QUERY, GZIP, ASK)).await;
        assert_eq!((answer.text().as_str(), answer.find("vary"), answer.find("content-encoding")), (PAGE, None, None));
    }
    upstream.set(by_token);
    gateway.ask(&ask_nth(2, "")).await;
    compressed(&gateway, 2).await;
    for refusal in ["gzip;q=0", "br", "identity", "identity;q=0", "*;q=0"] {
        let answer = gateway.ask(&ask_nth(2, &format!("Accept-Encoding: {refusal}\r\n"))).await;
        answer.assert_page(&nth_page(2), "hit");
        assert_eq!((answer.find("content-encoding"), answer.header("vary")), (None, "Accept-Encoding"));
    }
}

#[tokio::test]
async fn a_purge_takes_the_compressed_page_too() {
    let upstream = Upstream::script(by_token).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    gateway.ask(&ask_nth(3, "")).await;
    compressed(&gateway, 3).await;
    let purged = Client::connect(gateway.admin).await.ask(&post_to("/cache/purge", "", r#"{"all":true}"#)).await;
    assert_eq!(purged.status, 200, "{purged:?}");
    assert_eq!(gateway.metric("cache_bytes", &[]).await, 0.0);
    gateway.ask(&ask_nth(3, GZIP)).await.assert_page(&nth_page(3), "miss");
}
