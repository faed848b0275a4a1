//! What sharing saves and costs: the dashboard workload through one gateway, through three that share nothing, and through
//! three that share a store; then what gateways ask of the store while nothing happens, and what the store can carry.
//!
//! ```text
//! cargo bench --bench replicas                 # five minutes
//! cargo bench --bench replicas -- --seconds 20
//! ```
//!
//! The workload is that of `dashboard_day`: each client asks one of the gateways. Gateways are processes. The rate of the
//! account is what the upstream grants, so gateways that share nothing ask three times too much. Needs `redis-server` and
//! `redis-benchmark`. All figures of a run are from the same server on the same machine: compare these with each other.

#![expect(clippy::disallowed_methods, reason = "real time is what is measured here")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run has to stop")]

#[path = "../dashboard_day/workload.rs"]
mod workload;

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use workload::{FRESH, GRANTED, Row, Upstream, WINDOW, clients};

/// How long gateways are watched while nothing happens.
const IDLE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let seconds = arguments.iter().position(|argument| argument == "--seconds");
    let seconds = seconds.and_then(|at| arguments.get(at + 1)?.parse().ok()).unwrap_or(60);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(run(Duration::from_secs(seconds)));
    ExitCode::SUCCESS
}

async fn run(length: Duration) {
    println!("20 clients, 50 queries in Zipf order, upstream 5 a second and 80 ms, {} s each", length.as_secs());
    println!();
    Row::head();
    for (name, count, shares) in
        [("1 gateway", 1, false), ("3 that share nothing", 3, false), ("3 that share a store", 3, true)]
    {
        let begun = Instant::now();
        let upstream = Upstream::start(begun).await;
        let store = shares.then(Store::start);
        let gateways = start(&store, count, 1, upstream.address);
        let addresses: Vec<_> = gateways.iter().map(|gateway| gateway.address).collect();
        let answers = clients(&addresses, begun, length, false).await;
        Row::of(&answers, &upstream, begun.elapsed()).print(name);
    }

    println!();
    println!("While nothing happens, {} s:", IDLE.as_secs());
    println!();
    println!("| replicas | accounts | operations a second | of a core of the store |");
    println!("| --- | --- | --- | --- |");
    for (replicas, accounts) in [(1, 1), (3, 1), (3, 50), (10, 1)] {
        let store = Some(Store::start());
        let gateways = start(&store, replicas, accounts, SocketAddr::from(([127, 0, 0, 1], 9)));
        let Some(store) = &store else { return };
        // Until all have found the store.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let (before, begun) = (store.load(), Instant::now());
        tokio::time::sleep(IDLE).await;
        let (after, elapsed) = (store.load(), begun.elapsed().as_secs_f64());
        let (operations, core) = ((after.0 - before.0) / elapsed, (after.1 - before.1) / elapsed);
        println!("| {} | {accounts} | {operations:.1} | {core:.4} |", gateways.len());
    }

    println!();
    println!("`redis-benchmark`, 20 connections:");
    println!();
    println!("| | a second |");
    println!("| --- | --- |");
    let store = Store::start();
    for (name, words) in operations() {
        store.check(&words);
        println!("| {name} | {:.0} |", store.benchmark(&words));
    }
}

/// What the store is asked, as words.
fn operations() -> Vec<(&'static str, Vec<String>)> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    // As in `src/replicas/pages.rs`: the value, and the time.
    let look_up = "local value = redis.call('GET', KEYS[1]) local time = redis.call('TIME') \
                   return {time[1] .. string.format('%06d', time[2]), value}";
    // A page of 36 KiB, sealed.
    let page = "x".repeat(5_700);
    // Without comments and indentation, as it is sent.
    let grant = include_str!("../../src/replicas/budget.lua").lines().map(str::trim);
    let grant = Vec::from_iter(grant.filter(|line| !line.starts_with("--"))).join("\n");
    let keys = ["{account}:budget", "{account}:limits", "{account}:waiting", "{account}:teams"];
    // A replica that asks for one token of a million a second, for one team: the arguments in the order of the script.
    let asks = ["replica", "1", "1000000", "0", "0", "1", "10000", "5000000", "150000", "1000000", "4000"];
    let latest = "9007199254740991";
    let known = [latest, "200", "0", "300000000", "30000000", "-1", "0", "", "1000000", "3", "1", "0"];
    let team = ["team", "0", "720720", "1", "0", "0"];
    vec![
        ("`SET` of 5.7 KB", words(&["SET", "page", &page])),
        ("`GET` of 5.7 KB", words(&["GET", "page"])),
        ("pages: the script of a look-up, 5.7 KB", words(&["EVAL", look_up, "1", "page"])),
        (
            "grants: the script of the budget",
            words(&[&["EVAL", &grant, "4"], &keys[..], &asks, &known, &team].concat()),
        ),
    ]
}

/// A process that ends with the benchmark.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Gateway {
    address: SocketAddr,
    _process: Running,
}

/// So many gateways for one upstream, that share the store if there is one.
fn start(store: &Option<Store>, count: u32, accounts: u32, upstream: SocketAddr) -> Vec<Gateway> {
    let start = |_| {
        let mut settings = vec![
            ("server.listen".to_owned(), "127.0.0.1:0".to_owned()),
            ("admin.listen".to_owned(), "127.0.0.1:0".to_owned()),
            ("upstream.url".to_owned(), format!("http://{upstream}")),
            ("cache.query.fresh".to_owned(), format!("{}s", FRESH.as_secs())),
            ("cache.query.stale_while_revalidate".to_owned(), format!("{}s", WINDOW.as_secs())),
            ("cache.query.stale_if_error".to_owned(), format!("{}s", WINDOW.as_secs())),
            ("log.access".to_owned(), "false".to_owned()),
            ("log.format".to_owned(), "json".to_owned()),
        ];
        for number in 0..accounts {
            let mut set = |key: &str, value: String| settings.push((format!("accounts.a{number}.{key}"), value));
            set("account_sid", format!("AC{number}"));
            set("api_key", "SK1".to_owned());
            set("api_secret", "secret".to_owned());
            set("rate", format!("{GRANTED}/s"));
            set("burst", "1".to_owned());
        }
        if let Some(store) = store {
            settings.push(("shared.url".to_owned(), format!("redis://{}", store.address)));
            settings.push(("shared.replicas".to_owned(), count.to_string()));
        }
        if accounts > 1 {
            // Nobody asks, but who may has to be said.
            settings.push(("teams.nobody.account".to_owned(), "a0".to_owned()));
            settings.push(("teams.nobody.token_sha256".to_owned(), format!("[\"{}\"]", "0".repeat(64))));
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_insights-gateway"));
        command.arg("serve").args(settings.iter().map(|(key, value)| format!("--set={key}={value}")));
        let mut process = Running(command.env_clear().stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
        let mut lines = BufReader::new(process.0.stderr.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("a gateway that serves").unwrap();
            let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            if event["message"] == "serving" {
                break event["data"].as_str().unwrap().parse().unwrap();
            }
        };
        // What it says later is not read here, but it must not wait for that.
        std::thread::spawn(move || lines.for_each(drop));
        Gateway { address, _process: process }
    };
    (0..count).map(start).collect()
}

/// A server that ends with the benchmark.
struct Store {
    address: SocketAddr,
    _process: Running,
}

impl Store {
    fn start() -> Self {
        // Free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = Command::new("redis-server");
        command.args([
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--port",
            &address.port().to_string(),
        ]);
        let process = Running(command.stdout(Stdio::null()).spawn().expect("redis-server is installed"));
        let store = Self { address, _process: process };
        while redis::Client::open(store.url()).unwrap().get_connection().is_err() {
            std::thread::sleep(Duration::from_millis(20));
        }
        store
    }

    fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Commands so far, those of scripts included once, and seconds of its core.
    fn load(&self) -> (f64, f64) {
        let mut connection = redis::Client::open(self.url()).unwrap().get_connection().unwrap();
        let told: String = redis::cmd("INFO").arg("all").query(&mut connection).unwrap();
        let value = |name: &str| told.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let calls = value("cmdstat_eval:calls=").split(',').next().unwrap().parse::<f64>().unwrap();
        let seconds = |name| value(name).parse::<f64>().unwrap();
        (calls, seconds("used_cpu_user:") + seconds("used_cpu_sys:"))
    }

    /// Does this once, so that no errors are measured.
    fn check(&self, words: &[String]) {
        let mut connection = redis::Client::open(self.url()).unwrap().get_connection().unwrap();
        let mut command = redis::Cmd::new();
        command.arg(words);
        let reply: redis::Value = command.query(&mut connection).unwrap();
        // Ten numbers of the account, one of the team, three of the token.
        let is_grant = |reply: &[redis::Value]| reply.len() == 14;
        let is_right = words.len() < 10 || matches!(&reply, redis::Value::Array(reply) if is_grant(reply));
        assert!(is_right, "no token was granted: {reply:?}");
    }

    /// How often a second it does this.
    fn benchmark(&self, words: &[String]) -> f64 {
        let port = self.address.port().to_string();
        let mut command = Command::new("redis-benchmark");
        command.args(["-p", &port, "-n", "50000", "-c", "20", "--csv"]).args(words);
        let output = command.output().expect("redis-benchmark is installed");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // The second column of the last line.
        let line = text.lines().last().unwrap_or_else(|| panic!("redis-benchmark failed: {output:?}"));
        line.rsplit("\",\"").nth(6).and_then(|rate| rate.parse().ok()).unwrap_or_else(|| panic!("{line}"))
    }
}
