//! Pages survive a restart: tested with the binary, real sockets and real signals.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use crate::simulator::{Running, settings};
use crate::support::process::Process;
use crate::support::{Plan, Upstream, poll, sha256_hex};

const SID: &str = "AC0123456789abcdef0123456789abcdef";
const API_KEY: &str = "SKplanted0123456789";
/// The only password that the simulator accepts.
const API_SECRET: &str = "secret";
const TEAM_TOKEN: &str = "igw_planted-token-that-nobody-may-see";
const MARKER: &str = "planted-in-a-request-body";
const DEADLINE: Duration = Duration::from_secs(30);

const QUERY: &str = "/v3/InsightsDomains/Conversations/Query";
const METADATA: &str = "/v3/InsightsDomains/Conversations/Metadata";

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn json(&self) -> Json {
        serde_json::from_slice(&self.body).unwrap()
    }
}

#[derive(Clone)]
struct Http(Client<HttpConnector, Full<Bytes>>);

impl Http {
    fn new() -> Self {
        Self(Client::builder(TokioExecutor::new()).build_http())
    }

    async fn try_send(&self, request: Request<Full<Bytes>>) -> Option<Answer> {
        let response = timeout(DEADLINE, self.0.request(request)).await.expect("an answer in time").ok()?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.ok()?.to_bytes();
        Some(Answer { status: head.status, headers: head.headers, body })
    }

    async fn get(&self, url: &str, authorization: Option<&str>) -> Answer {
        let request = Request::get(url).header("authorization", authorization.unwrap_or("none"));
        self.try_send(request.body(Full::default()).unwrap()).await.unwrap()
    }
}

fn query(base: &str, authorization: &str, size: usize, body: &Json) -> Request<Full<Bytes>> {
    Request::post(format!("{base}{QUERY}?pageSize={size}"))
        .header("authorization", authorization)
        .header("content-type", "application/json")
        .body(Full::from(body.to_string()))
        .unwrap()
}

fn conversations() -> Json {
    json!({"query": {"measures": ["Conversation.Count"], "dimensions": ["Conversation.ConversationId"]}})
}

/// A simulator, and a folder with the configuration of a gateway for it.
struct Setting {
    _simulator: Option<Running>,
    upstream: String,
    home: TempDir,
    http: Http,
}

struct Gateway {
    process: Process,
    data: String,
    admin: String,
}

impl Setting {
    async fn new() -> Self {
        let simulator = Running::with(settings()).await;
        Self::before(format!("http://{}", simulator.address), Some(simulator))
    }

    /// For a gateway with an upstream of the test's own.
    fn before(upstream: String, simulator: Option<Running>) -> Self {
        let home = TempDir::new().unwrap();
        let token = sha256_hex(TEAM_TOKEN);
        let config = format!(
            "[server]\nlisten = ['127.0.0.1:0']\ndrain = '2s'\n[admin]\nlisten = '127.0.0.1:0'\n\
             [upstream]\nurl = '{upstream}'\n\
             [accounts.main]\naccount_sid = '{SID}'\napi_key = '{API_KEY}'\napi_secret = '{API_SECRET}'\n\
             rate = '0/s'\nconcurrency = 100\n\
             [teams.dashboards]\naccount = 'main'\ntoken_sha256 = ['{token}']\n\
             [cache.query]\nfresh = '10m'\n[cache.disk]\npath = '{}'\ncapacity = '16MiB'\n",
            home.path().join("cache").display()
        );
        fs::write(home.path().join("gateway.toml"), config).unwrap();
        Self { _simulator: simulator, upstream, home, http: Http::new() }
    }

    fn file(&self) -> PathBuf {
        self.home.path().join("cache/pages.redb")
    }

    async fn gateway(&self) -> Gateway {
        self.run(Command::new(env!("CARGO_BIN_EXE_insights-gateway"))).await
    }

    async fn run(&self, mut command: Command) -> Gateway {
        command.args(["serve", "--config"]).arg(self.home.path().join("gateway.toml"));
        command.env_clear().stdin(Stdio::null()).stderr(Stdio::piped());
        let process = Process::spawn(command).await;
        let [data, admin] = [process.data, process.admin].map(|address| format!("http://{address}"));
        Gateway { process, data, admin }
    }

    async fn upstream_calls(&self) -> usize {
        let log = self.http.get(&format!("{}/_simulator/requests", self.upstream), None).await.json();
        log["requests"].as_array().unwrap().len()
    }

    /// The response of the upstream itself.
    async fn truth(&self, size: usize) -> Bytes {
        let basic = format!("Basic {}", STANDARD.encode(format!("{API_KEY}:{API_SECRET}")));
        let answer = self.http.try_send(query(&self.upstream, &basic, size, &conversations())).await.unwrap();
        assert_eq!(answer.status, 200);
        answer.body
    }
}

impl Gateway {
    /// Stops it in order. Returns the exit code.
    async fn stop(self) -> Option<i32> {
        self.process.signal("TERM");
        self.process.ended().await.0
    }

    fn kill(self) {
        drop(self.process);
    }

    fn team() -> String {
        format!("Bearer {TEAM_TOKEN}")
    }

    async fn query(&self, http: &Http, size: usize) -> Option<Answer> {
        http.try_send(query(&self.data, &Self::team(), size, &conversations())).await
    }

    async fn page(&self, http: &Http, token: &str) -> Answer {
        http.get(&format!("{}{QUERY}?pageToken={token}", self.data), Some(&Self::team())).await
    }

    async fn anew(&self, http: &Http, directive: &'static str) -> Answer {
        let mut request = query(&self.data, &Self::team(), 3, &conversations());
        request.headers_mut().insert("cache-control", directive.parse().unwrap());
        http.try_send(request).await.unwrap()
    }

    /// A purge is on the disk when it is answered, and so are all changes before it.
    async fn is_written(&self, http: &Http) {
        let purge = Request::post(format!("{}/cache/purge", self.admin)).header("content-type", "application/json");
        let purge = purge.body(Full::from(json!({"key": "0".repeat(16)}).to_string())).unwrap();
        assert_eq!(http.try_send(purge).await.unwrap().status, 200);
    }

    async fn disk(&self, http: &Http) -> Json {
        http.get(&format!("{}/status", self.admin), None).await.json()["cache"]["disk"].clone()
    }

    async fn pages_on_disk(&self, http: &Http, at_least: u64) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let disk = self.disk(http).await;
            if disk["entries"].as_u64().unwrap() >= at_least {
                return;
            }
            assert!(Instant::now() < deadline, "{disk}");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

fn contains(file: &Path, needle: &str) -> bool {
    fs::read(file).unwrap().windows(needle.len()).any(|window| window == needle.as_bytes())
}

#[tokio::test]
async fn a_restart_uses_no_quota() {
    let setting = Setting::new().await;
    let http = &setting.http;
    let first = setting.gateway().await;
    let metadata = http.get(&format!("{}{METADATA}", first.data), Some(&Gateway::team())).await;
    assert_eq!(metadata.status, 200);
    let page = first.query(http, 3).await.unwrap();
    let fetched = Instant::now();
    assert_eq!((page.status, page.header("age")), (StatusCode::OK, ""));
    let token = page.json()["meta"]["nextToken"].as_str().unwrap().replace('+', "%2B");
    let next_page = |gateway: &Gateway| format!("{}{QUERY}?pageToken={token}", gateway.data);
    // Its filter's value is in no response.
    let marked = json!({"query": {"measures": ["Conversation.Count"], "filters": [{"op": "AND", "expressions": [
        {"op": "NE", "field": "Conversation.ConversationId", "values": [MARKER]}]}]}});
    let answer = http.try_send(query(&first.data, &Gateway::team(), 10, &marked)).await.unwrap();
    assert_eq!(answer.status, 200);
    // It is less than a second old, so only the flush at the end can write it to the disk.
    assert_eq!(first.stop().await, Some(0));
    let calls = setting.upstream_calls().await;

    let second = setting.gateway().await;
    let again = second.query(http, 3).await.unwrap();
    assert_eq!(again.status, 200);
    assert_eq!(again.body, page.body);
    assert!(again.header("cache-status").starts_with("insights-gateway; hit; ttl="), "{:?}", again.headers);
    let age: u64 = again.header("age").parse().unwrap();
    assert!(age <= fetched.elapsed().as_secs() + 1, "{age}");
    for name in ["content-type", "etag", "twilio-request-id"] {
        assert_eq!(again.header(name), page.header(name), "{name}");
    }
    let metadata_again = http.get(&format!("{}{METADATA}", second.data), Some(&Gateway::team())).await;
    assert_eq!(metadata_again.body, metadata.body);
    assert_eq!(setting.upstream_calls().await, calls, "the restart cost calls");
    let disk = second.disk(http).await;
    assert_eq!((&disk["enabled"], &disk["entries"]), (&json!(true), &json!(3)));
    assert!(disk["bytes"].as_u64().unwrap() > 0);
    let metrics = http.get(&format!("{}/metrics", second.admin), None).await.body;
    let metrics = String::from_utf8(metrics.to_vec()).unwrap();
    assert!(metrics.contains("insights_gateway_cache_disk_entries 3\n"), "{metrics}");

    // Fetched only after the restart, but still a page of the old result set.
    let next = http.get(&next_page(&second), Some(&Gateway::team())).await;
    assert_eq!(next.status, 200);
    second.pages_on_disk(http, 4).await;
    assert_eq!(second.stop().await, Some(0));
    let third = setting.gateway().await;
    let next_again = http.get(&next_page(&third), Some(&Gateway::team())).await;
    assert_eq!((&next_again.body, next_again.header("age").is_empty()), (&next.body, false));
    assert_eq!(third.stop().await, Some(0));

    for planted in [API_KEY, TEAM_TOKEN, MARKER, &STANDARD.encode(format!("{API_KEY}:{API_SECRET}")), "Bearer", "Basic"]
    {
        assert!(!contains(&setting.file(), planted), "{planted} is on disk");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_moment_loses_only_the_last_seconds() {
    const PAGES: usize = 60;
    let setting = Setting::new().await;
    let mut truth = Vec::new();
    for size in 1..=PAGES {
        truth.push(setting.truth(size).await);
    }
    let truth = Arc::new(truth);
    let mut answered_before = 0;
    for round in 0..10 {
        let gateway = setting.gateway().await;
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let (truth, stop, answered) = (Arc::clone(&truth), Arc::clone(&stop), Arc::clone(&answered));
                let data = gateway.data.clone();
                let http = Http::new();
                tokio::spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        let size = fastrand::usize(1..=PAGES);
                        // Half of them force a fetch, so that there is always something to write.
                        let mut request = query(&data, &Gateway::team(), size, &conversations());
                        if fastrand::bool() {
                            request.headers_mut().insert("cache-control", "no-cache".parse().unwrap());
                        }
                        let Some(answer) = http.try_send(request).await else { return };
                        assert_eq!(answer.status, 200, "{:?}", answer.body);
                        assert!(answer.body == truth[size - 1], "a wrong page for {size}");
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        // At a random moment, which is the purpose of this test.
        sleep(Duration::from_millis(fastrand::u64(..2500))).await;
        gateway.process.signal("KILL");
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.await.unwrap_or_else(|error| panic!("round {round}: {error}"));
        }
        answered_before += answered.load(Ordering::Relaxed);
        gateway.kill();
    }
    assert!(answered_before > PAGES, "{answered_before}");

    // What was committed is still there.
    let gateway = setting.gateway().await;
    for size in 1..=PAGES {
        assert_eq!(gateway.query(&setting.http, size).await.unwrap().body, truth[size - 1]);
    }
    gateway.pages_on_disk(&setting.http, PAGES as u64).await;
    gateway.kill();
    let gateway = setting.gateway().await;
    let calls = setting.upstream_calls().await;
    for size in 1..=PAGES {
        let answer = gateway.query(&setting.http, size).await.unwrap();
        assert!(answer.body == truth[size - 1] && !answer.header("age").is_empty(), "{size}: {:?}", answer.headers);
    }
    assert_eq!(setting.upstream_calls().await, calls);
    let folder = fs::read_dir(setting.file().parent().unwrap()).unwrap();
    let mut names: Vec<_> = folder.map(|file| file.unwrap().file_name()).collect();
    names.sort_unstable();
    assert_eq!(names, ["job-owners-1", "pages.redb"], "a kill damages nothing");
    gateway.kill();
}

#[tokio::test]
async fn two_gateways_do_not_share_a_file() {
    let setting = Setting::new().await;
    let first = setting.gateway().await;
    let page = first.query(&setting.http, 3).await.unwrap();
    first.pages_on_disk(&setting.http, 1).await;
    let mut second = setting.gateway().await;
    let answer = second.query(&setting.http, 3).await.unwrap();
    assert_eq!((&answer.body, answer.header("age").is_empty()), (&page.body, true));
    let warning = poll("it warns", || {
        let log = second.process.log();
        async move { log.into_iter().find(|line| line["level"] == "WARN" && line["file"].is_string()) }
    });
    let warning = warning.await["message"].to_string();
    assert!(warning.contains("another process has it open"), "{warning}");
    assert_eq!(second.disk(&setting.http).await["enabled"], false);
    assert_eq!((second.stop().await, first.stop().await), (Some(0), Some(0)));
}

/// Every first page has the same token, and all contain their version.
fn set_version(upstream: &Upstream, version: &str, headers: &str) {
    let (version, headers) = (version.to_owned(), format!("Content-Type: application/json\r\n{headers}"));
    upstream.set(move |seen| {
        let further = seen.target().contains("pageToken");
        let next = if further { "null" } else { "\"b\"" };
        let (n, headers) = if further { (2, "Content-Type: application/json\r\n") } else { (1, &*headers) };
        Plan::with(200, headers, &format!("{{\"data\":\"{version} {n}\",\"meta\":{{\"nextToken\":{next}}}}}"))
    });
}

fn rows(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    answer.json()["data"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_further_page_that_a_first_page_ended_does_not_come_back_after_a_kill() {
    let upstream = Upstream::start().await;
    let setting = Setting::before(upstream.url(), None);
    let http = &setting.http;
    set_version(&upstream, "old", "");
    let first = setting.gateway().await;
    assert_eq!(rows(&first.page(http, "b").await), "old 2");
    first.is_written(http).await;
    set_version(&upstream, "new", "");
    assert_eq!(rows(&first.query(http, 3).await.unwrap()), "new 1");
    first.is_written(http).await;
    first.kill();
    set_version(&upstream, "newest", "");
    let second = setting.gateway().await;
    assert_eq!(rows(&second.query(http, 3).await.unwrap()), "new 1");
    assert_eq!(rows(&second.page(http, "b").await), "newest 2");
    second.kill();
}

#[tokio::test]
async fn a_page_that_an_unstored_response_replaced_stays_gone_after_a_kill() {
    // Twilio or the client forbids storing it.
    for (headers, directive) in [("Cache-Control: no-store\r\n", "no-cache"), ("", "no-store")] {
        let upstream = Upstream::start().await;
        let setting = Setting::before(upstream.url(), None);
        let http = &setting.http;
        set_version(&upstream, "old", "");
        let first = setting.gateway().await;
        assert_eq!(rows(&first.query(http, 3).await.unwrap()), "old 1");
        assert_eq!(rows(&first.page(http, "b").await), "old 2");
        first.is_written(http).await;
        set_version(&upstream, "new", headers);
        assert_eq!(rows(&first.anew(http, directive).await), "new 1");
        first.is_written(http).await;
        first.kill();
        set_version(&upstream, "newest", "");
        let second = setting.gateway().await;
        assert_eq!(rows(&second.page(http, "b").await), "newest 2", "{directive}");
        assert_eq!(rows(&second.query(http, 3).await.unwrap()), "newest 1", "{directive}");
        second.kill();
    }
}

#[tokio::test]
async fn a_page_replaced_while_the_disk_was_full_stays_gone_after_a_kill() {
    let upstream = Upstream::start().await;
    let setting = Setting::before(upstream.url(), None);
    let http = &setting.http;
    set_version(&upstream, "old", "");
    // A file that must not grow is like a full disk: writing fails, once the signal is ignored.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_insights-gateway")]);
    let first = setting.run(command).await;
    assert_eq!(rows(&first.query(http, 3).await.unwrap()), "old 1");
    first.is_written(http).await;
    let limit = format!("--fsize={}", fs::metadata(setting.file()).unwrap().len());
    let limited = Command::new("prlimit").args(["--pid", &first.process.id().to_string(), &limit]).status();
    assert!(limited.unwrap().success());
    set_version(&upstream, &"x".repeat(5 << 20), "");
    assert_eq!(first.anew(http, "no-cache").await.status, 200);
    let deadline = Instant::now() + DEADLINE;
    loop {
        // The page is removed, or the whole file.
        let disk = first.disk(http).await;
        if !setting.file().exists() || (disk["enabled"] == json!(true) && disk["entries"] == json!(0)) {
            break;
        }
        assert!(Instant::now() < deadline, "{disk}");
        sleep(Duration::from_millis(10)).await;
    }
    let metrics = http.get(&format!("{}/metrics", first.admin), None).await.body;
    let metrics = String::from_utf8(metrics.to_vec()).unwrap();
    assert!(metrics.contains("insights_gateway_cache_disk_writes_total{result=\"failed\"} 1"), "{metrics}");
    first.kill();
    set_version(&upstream, "newest", "");
    let second = setting.gateway().await;
    assert_eq!(rows(&second.query(http, 3).await.unwrap()), "newest 1");
    second.kill();
}
