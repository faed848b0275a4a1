//! `demo`, as a user runs it without any settings: free ports, commands to paste, and simulated traffic.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};

use tokio::sync::mpsc;

use crate::support::{Client, get, poll, within};

const FREE: [&str; 3] = ["--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--simulator=127.0.0.1:0"];

/// A demo that has printed its addresses.
struct Demo {
    child: Child,
    said: Vec<String>,
}

impl Drop for Demo {
    fn drop(&mut self) {
        // It has already ended, unless its test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_insights-gateway"));
    command.arg("demo").args(flags).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Demo {
    async fn start(flags: &[&str]) -> Self {
        Self::run(command(flags)).await
    }

    async fn run(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let pipe = BufReader::new(child.stdout.take().unwrap());
        let (lines, mut printed) = mpsc::unbounded_channel();
        // This thread ends with the process, which closes the pipe.
        std::thread::spawn(move || pipe.lines().map_while(Result::ok).try_for_each(|line| lines.send(line)));
        let mut demo = Self { child, said: Vec::new() };
        while !demo.said.iter().any(|line| line == "Stop with Ctrl-C.") {
            demo.said.push(within(printed.recv()).await.expect("what it prints"));
        }
        demo
    }

    /// The address that it prints after this word.
    fn address(&self, name: &str) -> SocketAddr {
        let line = self.said.iter().find_map(|line| line.trim().strip_prefix(name)).unwrap();
        line.trim().strip_prefix("http://").unwrap().trim_end_matches('/').parse().unwrap()
    }

    async fn asks(&self, name: &str, path: &str) -> String {
        Client::connect(self.address(name)).await.ask(&get(path, "")).await.text()
    }

    /// Requests so far, by outcome.
    async fn requests(&self) -> BTreeMap<String, u64> {
        let mut requests = BTreeMap::new();
        for line in self.asks("admin", "/metrics").await.lines() {
            let Some(sample) = line.strip_prefix("insights_gateway_requests_total{") else { continue };
            let outcome = sample.split("outcome=\"").nth(1).unwrap().split('"').next().unwrap();
            let count = sample.rsplit(' ').next().unwrap().parse::<u64>().unwrap();
            *requests.entry(outcome.to_owned()).or_default() += count;
        }
        requests
    }
}

#[tokio::test]
async fn taken_default_ports_are_replaced_by_free_ones() {
    let defaults = [("gateway", 8080), ("admin", 9090), ("simulator", 4010)];
    // A port that another process holds may become free before the demo checks it, so only ports held here are
    // compared.
    let held = defaults.map(|(name, port)| (name, port, TcpListener::bind(("127.0.0.1", port))));
    let demo = Demo::start(&[]).await;
    for (name, port, _) in held.iter().filter(|(_, _, held)| held.is_ok()) {
        assert_ne!(demo.address(name).port(), *port, "{name}");
    }
    assert!(demo.asks("admin", "/readyz").await.contains("\"ready\":true"));
    assert!(demo.asks("gateway", "/v3/InsightsDomains/Conversations/Metadata").await.contains("Conversation.Count"));
}

#[tokio::test]
async fn accounts_teams_and_stores_of_the_environment_are_not_used() {
    let mut command = command(&FREE);
    // Each of these alone would keep a gateway from starting.
    command.envs([
        ("TWILIO_AUTH_TOKEN", "no token"),
        ("INSIGHTS_GATEWAY_ACCOUNTS__REAL__RATE", "5/s"),
        ("INSIGHTS_GATEWAY_TEAMS__REAL__WEIGHT", "2"),
        ("INSIGHTS_GATEWAY_SHARED__URL", "redis://cache.internal"),
    ]);
    let demo = Demo::run(command).await;
    let metadata = demo.asks("gateway", "/v3/InsightsDomains/Conversations/Metadata").await;
    assert!(metadata.contains("Conversation."), "{metadata}");
    assert!(!demo.asks("admin", "/status").await.contains("real"));
}

#[test]
fn a_chosen_port_that_is_taken_is_a_fault_that_names_the_flag() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = held.local_addr().unwrap();
    for flag in ["--listen", "--admin-listen", "--simulator"] {
        let others = FREE.iter().filter(|free| !free.starts_with(&format!("{flag}="))).copied();
        let asked = format!("{flag}={taken}");
        let flags: Vec<_> = others.chain([asked.as_str()]).collect();
        let output = command(&flags).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(74), "{errors}");
        assert!(errors.contains(&format!("cannot listen on {taken}: ")), "{errors}");
        assert!(errors.ends_with(&format!("choose another address with {flag}\n")), "{errors}");
    }
}

#[tokio::test]
async fn dashboards_send_queries_only_with_traffic() {
    let demo = Demo::start(&[&FREE[..], &["--traffic"]].concat()).await;
    poll("hits and misses", async || {
        let requests = demo.requests().await;
        (requests.get("hit") > Some(&3) && requests.get("miss") > Some(&3)).then_some(())
    })
    .await;
    // Only the deliberate mistakes of the dashboards may fail.
    let requests = demo.requests().await;
    assert_eq!(requests.get("failed").copied().unwrap_or_default(), 0, "{requests:?}");
    assert_eq!(requests.get("refused").copied().unwrap_or_default(), 0, "{requests:?}");

    let quiet = Demo::start(&FREE).await;
    assert!(quiet.requests().await.values().all(|count| *count == 0), "no queries without --traffic");
}
