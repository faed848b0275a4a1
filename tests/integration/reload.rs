//! A thousand reloads under load: no request is lost, memory does not grow, and keys that need a restart are named.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::gateway::{KEY, SECRET, SID};
use crate::support::process::{Process, set};
use crate::support::*;
use insights_gateway::config::{self, Sources};
use tempfile::TempDir;

struct File {
    _folder: TempDir,
    path: PathBuf,
}

impl File {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let file = Self { path: folder.path().join("gateway.toml"), _folder: folder };
        file.write(0, "");
        file
    }

    /// Another rate, lifetime and team each time, with further lines.
    fn write(&self, n: usize, more: &str) {
        let text = format!(
            "[accounts.main]\naccount_sid = '{SID}'\napi_key = '{KEY}'\napi_secret = '{SECRET}'\nrate = '{}/s'\n\
             burst = 1000\n[cache.query]\nfresh = '{}s'\n{more}",
            1000 + n,
            60 + n
        );
        let new = self.path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, &self.path).unwrap();
    }
}

/// Clients that ask nearly without pause on connections that stay open: hits, misses and refusals.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    clients: tokio::task::JoinSet<()>,
}

impl Load {
    fn start(address: std::net::SocketAddr, clients: u64) -> Self {
        let (stop, served) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut load = Self { stop, served, clients: tokio::task::JoinSet::new() };
        for client in 0..clients {
            let (stop, served) = (Arc::clone(&load.stop), Arc::clone(&load.served));
            load.clients.spawn(async move {
                let mut connection = Client::connect(address).await;
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    let fresh = get(&format!("{METADATA}?client={client}&n={n}"), "");
                    assert_eq!(connection.ask(&fresh).await.status, 200);
                    for _ in 0..5 {
                        assert_eq!(connection.ask(&post(ASK)).await.status, 200);
                    }
                    assert_eq!(connection.ask(&get("/nowhere", "")).await.status, 404);
                    served.fetch_add(7, Ordering::Relaxed);
                    // Leaves some time for the reloads.
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            });
        }
        load
    }

    /// Stops the load. Returns how many requests were served; all must have succeeded.
    async fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = within(self.clients.join_next()).await {
            ended.expect("every request is answered");
        }
        self.served.load(Ordering::Relaxed)
    }
}

fn resident(process: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn descriptors(process: &Process) -> usize {
    fs::read_dir(format!("/proc/{}/fd", process.id())).unwrap().count()
}

const APPLIED: &str = "insights_gateway_reloads_total{result=\"applied\"}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_reloads_under_load_lose_nothing_and_leave_nothing_behind() {
    const RELOADS: usize = 1000;
    let (upstream, file) = (Upstream::start().await, File::new());
    let arguments = vec![
        format!("--config={}", file.path.display()),
        set("upstream.url", &upstream.url()),
        // Small, so that it is full before the measurement.
        set("cache.capacity", "1MiB"),
        set("log.access", "false"),
    ];
    let mut process = Process::start(arguments).await;
    let load = Load::start(process.data, 2);
    let mut before = (0, 0);
    for n in 1..=RELOADS {
        file.write(n, "");
        process.signal("HUP");
        process.says(|event| event["message"] == "configuration reloaded").await;
        if n == RELOADS / 5 {
            before = (resident(&process), descriptors(&process));
        }
    }
    let after = (resident(&process), descriptors(&process));
    let served = load.stop().await;
    assert_eq!(process.metric(APPLIED).await.as_deref(), Some("1000"));
    println!("{RELOADS} reloads, {served} requests; KiB resident and descriptors: {before:?}, then {after:?}");
    assert!(served > 100, "{served}");
    assert!(after.0 < before.0 + 8 * 1024, "{before:?} {after:?}");
    // Connections to the upstream begin and end.
    assert!(after.1 <= before.1 + 10, "{before:?} {after:?}");
    process.signal("TERM");
    let (code, said) = process.ended().await;
    assert_eq!(code, Some(0));
    assert!(!said.contains("ERROR") && !said.contains("panicked"), "{said}");
}

#[tokio::test]
async fn reloads_leave_no_task_behind() {
    let (upstream, file) = (Upstream::start().await, File::new());
    let sources: Sources = TestConfig::new(upstream.url()).without_account().sources().with_file(file.path.clone());
    let gateway = Gateway::start(sources).await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let mut before = 0;
    for n in 1..=100 {
        file.write(n, "");
        gateway.reload.notify_one();
        gateway.metric_reaches("reloads_total", &["result=\"applied\""], n as f64).await;
        assert_eq!(gateway.ask(&get(&format!("{METADATA}?n={n}"), "Connection: close\r\n")).await.status, 200);
        if n == 20 {
            before = tasks();
        }
    }
    poll("tasks end", || async { (tasks() <= before + 5).then_some(()) }).await;
}

#[tokio::test]
async fn a_refused_reload_is_explained_once_and_a_restart_key_is_named() {
    let (upstream, file) = (Upstream::start().await, File::new());
    let arguments = vec![format!("--config={}", file.path.display()), set("upstream.url", &upstream.url())];
    let mut process = Process::start(arguments).await;
    // Noticed without a signal, checked again and again, and logged once.
    file.write(1, "[cache]\ncapacty = '1MiB'\n");
    let refused = process.says(|event| event["level"] == "ERROR").await;
    assert!(
        refused["message"].as_str().unwrap().contains("capacty: unknown key (did you mean capacity?)"),
        "{refused}"
    );
    tokio::time::sleep(std::time::Duration::from_millis(4500)).await;
    file.write(2, "[server]\nmax_connections = 77\nunix_mode = '0666'\n");
    let mut named = Vec::new();
    loop {
        let event = process.says(|_| true).await;
        assert_ne!(event["level"], "ERROR", "once is enough");
        if event["message"] == "configuration reloaded" {
            break;
        }
        if event["level"] == "WARN" {
            named.extend(event["key"].as_str().map(str::to_owned));
        }
    }
    assert_eq!(named, ["server.max_connections", "server.unix_mode"]);
}

#[tokio::test]
async fn a_reload_that_waits_holds_up_no_request() {
    let upstream = Upstream::start().await;
    let sources = TestConfig::new(upstream.url()).sources();
    let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = Mutex::new(released);
    let gateway = insights_gateway::gateway::Gateway::bind(config::load(&sources).unwrap()).unwrap();
    let gateway = gateway.on_reload(move |_| {
        begun.send(()).unwrap();
        // As a file on a mount that hangs.
        let _ = released.lock().unwrap().recv_timeout(Duration::from_secs(20));
    });
    let gateway = Gateway::run(gateway, sources);
    gateway.reload.notify_one();
    within(begins.recv()).await.unwrap();
    // The gateway runs in this thread.
    assert_eq!(gateway.ask(&post(ASK)).await.status, 200);
    assert_eq!(gateway.metric("reloads_total", &["applied"]).await, 0.0);
    drop(release);
    gateway.metric_reaches("reloads_total", &["applied"], 1.0).await;
}
