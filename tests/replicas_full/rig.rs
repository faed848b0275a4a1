//! Three gateways, the simulator and the load of one scenario, and what is checked at its end.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value as Json;
use tokio::task::JoinHandle;

use super::bound::{BURST, Extra, RATE, REPLICAS, Seconds, allowed, highest_excess, now, seconds, slack};
use super::load::{Asks, Load, Sample, query, team_header};
use super::support::process::{Process, Running, command, quiet, set};
use super::support::store::Server;
use super::support::*;
use super::wrong_clock;

/// A page is served for this long after it was fetched: `fresh` and the longer of the other two windows.
const WINDOW: Seconds = 6.0;
/// The replicas share again so soon after the store is back.
pub const RETURN: Seconds = 5.0;
/// What a busy machine may add to it.
const RETURN_SLACK: Seconds = 2.0;
/// How long each phase of a scenario takes.
pub const PHASE: Duration = Duration::from_secs(4);
const CLIENTS: usize = 6;

/// The simulator as a process. Each of its pages says which of its calls made it.
pub struct Simulator {
    pub address: SocketAddr,
    marker: JoinHandle<()>,
    _process: Running,
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.marker.abort();
    }
}

impl Simulator {
    async fn start() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_insights-gateway"));
        command.args(["simulate", "--listen=127.0.0.1:0", "--rate=0/s", "--latency=20ms", "--rows=50"]);
        command.env_clear().stdin(Stdio::null()).stderr(Stdio::piped());
        let mut process = Running(command.spawn().unwrap());
        let mut said = String::new();
        BufReader::new(process.0.stderr.take().unwrap()).read_line(&mut said).unwrap();
        let address = said.split("http://").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
        let address = address.parse().unwrap();
        let mut marked = 0;
        mark(address, &mut marked).await;
        let marker = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                mark(address, &mut marked).await;
            }
        });
        Self { address, marker, _process: process }
    }

    async fn ask(&self, request: &[u8]) -> Json {
        Client::connect(self.address).await.ask(request).await.json()
    }

    /// When each call arrived, in their order.
    pub async fn calls(&self) -> Vec<Seconds> {
        let listed = self.ask(&get("/_simulator/requests", "")).await;
        let time = |call: &Json| seconds(call["time"].as_str().unwrap().parse::<Timestamp>().unwrap());
        listed["requests"].as_array().unwrap().iter().map(time).collect()
    }

    /// The next call is answered so much later.
    pub async fn delay_next(&self, delay: &str) {
        self.marker.abort();
        self.ask(&delete("/_simulator/faults")).await;
        self.ask(&post_to("/_simulator/faults", "", &format!(r#"{{"next":1,"delay":"{delay}"}}"#))).await;
    }
}

fn delete(target: &str) -> Vec<u8> {
    format!("DELETE {target} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes()
}

/// Numbers the next calls: more of them than arrive until this is done again.
async fn mark(simulator: SocketAddr, marked: &mut u64) {
    const AHEAD: usize = 150;
    let mut connection = Client::connect(simulator).await;
    let pending = |answer: &Answer| answer.json()["faults"].as_array().unwrap().len();
    let mut left = pending(&connection.ask(&get("/_simulator/faults", "")).await);
    while left < AHEAD {
        *marked += 1;
        let rule = format!(r#"{{"next":1,"merge":{{"made":{marked}}}}}"#);
        left = pending(&connection.ask(&post_to("/_simulator/faults", "", &rule)).await);
    }
}

/// What differs from one scenario to the next.
pub struct Setup {
    name: String,
    urls: Vec<String>,
    keys: Vec<(String, String)>,
    teams: Vec<(&'static str, u32)>,
    /// By how many seconds the clock of each gateway is ahead.
    clocks: [i64; REPLICAS as usize],
}

impl Setup {
    /// Three gateways that share the store at this URL.
    pub fn new(name: impl Into<String>, url: impl Into<String>) -> Self {
        let urls = vec![url.into(); REPLICAS as usize];
        Self { name: name.into(), urls, keys: Vec::new(), teams: Vec::new(), clocks: [0; 3] }
    }

    /// The last gateway reaches the store at another URL.
    pub fn last_by(mut self, url: String) -> Self {
        *self.urls.last_mut().unwrap() = url;
        self
    }

    pub fn set(mut self, key: &str, value: impl Into<String>) -> Self {
        self.keys.push((key.to_owned(), value.into()));
        self
    }

    /// Teams with these weights.
    pub fn teams(mut self, teams: &[(&'static str, u32)]) -> Self {
        self.teams = teams.to_vec();
        self
    }

    pub fn clocks(mut self, ahead: [i64; REPLICAS as usize]) -> Self {
        self.clocks = ahead;
        self
    }

    /// Starts it, with its usual load, once all gateways share.
    pub async fn start(self) -> Rig {
        let mut rig = self.start_idle().await;
        rig.share().await;
        rig.load(rig.dashboards());
        tokio::time::sleep(PHASE).await;
        rig
    }

    /// Starts it without load, whether the store is reached or not.
    pub async fn start_idle(self) -> Rig {
        let simulator = Simulator::start().await;
        let mut rig = Rig {
            setup: self,
            simulator,
            gateways: Vec::new(),
            load: None,
            samples: Vec::new(),
            extras: Vec::new(),
            failures: Vec::new(),
            stall: Stall::watch(),
        };
        rig.start_gateways().await;
        rig
    }
}

/// A scenario that runs.
pub struct Rig {
    setup: Setup,
    pub simulator: Simulator,
    pub gateways: Vec<Process>,
    load: Option<Load>,
    samples: Vec<Sample>,
    extras: Vec<Extra>,
    failures: Vec<String>,
    stall: Stall,
}

/// Notices when the machine stands still.
struct Stall {
    longest: Arc<Mutex<Seconds>>,
    watching: JoinHandle<()>,
}

impl Drop for Stall {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

impl Stall {
    fn watch() -> Self {
        const PAUSE: Duration = Duration::from_millis(10);
        let longest = Arc::<Mutex<Seconds>>::default();
        let shared = Arc::clone(&longest);
        let watching = tokio::spawn(async move {
            loop {
                let begun = tokio::time::Instant::now();
                tokio::time::sleep(PAUSE).await;
                let late = begun.elapsed().saturating_sub(PAUSE).as_secs_f64();
                let mut longest = shared.lock().unwrap();
                *longest = longest.max(late);
            }
        });
        Self { longest, watching }
    }
}

impl Rig {
    async fn start_gateways(&mut self) {
        let own: Vec<(String, String)> = [
            ("upstream.url", format!("http://{}", self.simulator.address)),
            ("accounts.default.account_sid", "AC00000000000000000000000000000001".to_owned()),
            ("accounts.default.api_key", "SK-of-the-tests".to_owned()),
            ("accounts.default.api_secret", "secret".to_owned()),
            ("accounts.default.rate", format!("{RATE}/s")),
            ("accounts.default.burst", format!("{BURST}")),
            ("cache.query.fresh", "1s".to_owned()),
            ("cache.query.stale_while_revalidate", "3s".to_owned()),
            ("cache.query.stale_if_error", "5s".to_owned()),
            ("shared.replicas", REPLICAS.to_string()),
            // An operation may take long on a machine that also builds something.
            ("shared.timeout", "250ms".to_owned()),
            ("log.access", "false".to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        let teams = self.setup.teams.iter().flat_map(|(team, weight)| {
            let hash = sha256_hex(&format!("token-of-{team}"));
            let keys = [("account", "default".to_owned()), ("weight", weight.to_string())];
            let keys = keys.into_iter().chain([("token_sha256", format!("[\"{hash}\"]"))]);
            keys.map(move |(key, value)| (format!("teams.{team}.{key}"), value))
        });
        let keys: Vec<_> = own.into_iter().chain(teams).chain(self.setup.keys.clone()).collect();
        for (url, ahead) in self.setup.urls.iter().zip(self.setup.clocks) {
            let keys = keys.iter().map(|(key, value)| set(key, value)).chain([set("shared.url", url)]);
            let mut command = command(&quiet(keys.collect()));
            command.envs(wrong_clock::variables(ahead));
            self.gateways.push(Process::spawn(command).await);
        }
    }

    /// Replaces all gateways by others, with these keys changed. Nobody must ask meanwhile.
    pub async fn restart_with(&mut self, keys: &[(&str, &str)]) {
        self.setup.keys.extend(keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        for gateway in self.gateways.drain(..) {
            gateway.signal("TERM");
            let (code, said) = gateway.ended().await;
            assert_eq!(code, Some(0), "{said}");
        }
        self.start_gateways().await;
    }

    /// Six clients for each gateway.
    pub fn dashboards(&self) -> Vec<Asks> {
        let asks = |gateway: &Process| Asks { gateway: gateway.data, team: None, only_new: false };
        self.gateways.iter().flat_map(|gateway| vec![asks(gateway); CLIENTS]).collect()
    }

    pub fn load(&mut self, asks: Vec<Asks>) {
        self.load = Some(Load::start(asks));
    }

    /// Ends the load.
    pub async fn unload(&mut self) -> &[Sample] {
        if let Some(load) = self.load.take() {
            self.samples.extend(load.stop().await);
        }
        &self.samples
    }

    pub fn allow(&mut self, extra: Extra) {
        self.extras.push(extra);
    }

    /// Counts as a failure unless it holds.
    pub fn check(&mut self, holds: bool, what: impl Into<String>) {
        if !holds {
            self.failures.push(what.into());
        }
    }

    /// What was wrong so far.
    pub fn failures(&mut self) -> Vec<String> {
        std::mem::take(&mut self.failures)
    }

    /// Waits until every gateway shares: it reaches the store, and knows of the others.
    pub async fn share(&self) {
        for gateway in &self.gateways {
            metric_is(gateway, "shared_up", "1").await;
            metric_is(gateway, "replicas", &REPLICAS.to_string()).await;
        }
    }

    /// Waits until every gateway goes on alone.
    pub async fn alone(&self) {
        for gateway in &self.gateways {
            metric_is(gateway, "shared_up", "0").await;
        }
    }

    /// Kills the store, and starts it again after a phase.
    pub async fn survives_a_restart(&mut self, server: &mut Server) {
        let begun = now();
        server.kill();
        self.alone().await;
        tokio::time::sleep(PHASE).await;
        let back = now();
        server.run().await;
        self.returns(begun, back).await;
        tokio::time::sleep(PHASE).await;
    }

    /// A store that all have lost is back, or will be in a moment. Waits until they share, and allows what may be sent
    /// while some share and others do not yet. The outage `begun` and ended `back` then.
    pub async fn returns(&mut self, begun: Seconds, back: Seconds) {
        for gateway in &self.gateways {
            metric_is(gateway, "shared_up", "1").await;
        }
        let took = now() - back;
        println!("{}: all share again {took:.1} s after the store is back", self.setup.name);
        self.check(took <= RETURN + RETURN_SLACK, format!("shares again only after {took:.1} s"));
        self.shares_pages().await;
        // A replica asks for tokens again within a second.
        let until = now().max(back + 1.0);
        self.allow(Extra::Burst { from: begun, until });
        self.allow(Extra::CutOff { replicas: REPLICAS - 1, from: back, until });
    }

    /// Waits until a page that one gateway fetches is found by the others.
    pub async fn shares_pages(&self) {
        let team = self.setup.teams.first().map(|(team, _)| *team);
        let mut number = fastrand::u64(1 << 40..1 << 50);
        for to in 1..self.gateways.len() {
            poll("pages are shared", || {
                number += 1;
                let request = post_to(QUERY, &team_header(team), &query(number));
                let (one, other) = (self.gateways[0].data, self.gateways[to].data);
                async move {
                    Client::connect(one).await.ask(&request).await;
                    // On its way for up to 100 ms.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    let detail = Client::connect(other).await.ask(&request).await.detail().to_owned();
                    matches!(detail.as_str(), "shared" | "hit").then_some(())
                }
            })
            .await;
        }
    }

    /// Ends the scenario, prints its row, and fails if anything was wrong.
    pub async fn finish(mut self) {
        self.unload().await;
        let calls = self.simulator.calls().await;
        self.allow_unplanned();
        let excess = highest_excess(&calls, &self.extras);
        let (first, last) = (calls[0], calls[calls.len() - 1]);
        let bound = allowed(first, last, &self.extras);
        let stall = *self.stall.longest.lock().unwrap();
        self.check(
            excess <= slack(stall),
            format!("{excess:.1} calls more than the bound, longest stall {stall:.2} s"),
        );
        // A gateway whose clock is ahead of the upstream's takes each answer for older than it is.
        let is_aged = self.setup.clocks.iter().all(|ahead| *ahead <= 0);
        let wrong: Vec<_> = self.samples.iter().filter_map(|sample| fault(sample, &calls, is_aged)).collect();
        self.failures.extend(wrong);
        let row = Row { name: &self.setup.name, requests: self.samples.len(), calls: calls.len() };
        row.print(&format!("{bound:.0}"), &format!("{excess:.1}"), self.failures.len());
        let shown = self.failures.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
        assert!(self.failures.is_empty(), "{}: {} failures\n{shown}", self.setup.name, self.failures.len());
    }

    /// How much of the rate was used by so many calls between two times.
    pub fn used(calls: usize, from: Seconds, until: Seconds) -> f64 {
        let calls = calls as f64;
        calls / (RATE * (until - from))
    }

    /// A machine that stands still for a moment can cut a replica off, which its log shows.
    fn allow_unplanned(&mut self) {
        let mut unplanned = 0;
        for (gateway, ahead) in self.gateways.iter_mut().zip(self.setup.clocks) {
            let time = |event: &Json| seconds(event["timestamp"].as_str().unwrap().parse().unwrap()) - ahead as f64;
            let log = gateway.log();
            let mut lost = None;
            for event in &log {
                match event["message"].as_str() {
                    Some("the shared store is not reached: this replica goes on alone") => lost = Some(time(event)),
                    Some("the shared store is reached") => {
                        let Some(lost) = lost.take() else { continue };
                        let is_planned = self.extras.iter().any(|extra| match *extra {
                            Extra::Burst { from, until } => from <= lost && lost <= until,
                            Extra::CutOff { replicas, from, until } => replicas == 1 && from <= lost && lost <= until,
                        });
                        if !is_planned {
                            unplanned += 1;
                            self.extras.push(Extra::CutOff { replicas: 1, from: lost - 1.0, until: time(event) + 1.0 });
                        }
                    }
                    _ => {}
                }
            }
        }
        if unplanned > 0 {
            println!("{}: the machine was too slow for the store {unplanned} times", self.setup.name);
        }
    }
}

async fn metric_is(gateway: &Process, name: &str, value: &str) {
    let sample = format!("insights_gateway_{name}{{}} ");
    poll(name, || async { (gateway.metric(&sample).await.as_deref() == Some(value)).then_some(()) }).await;
}

/// What is wrong with this answer. `is_aged` says whether its `Age` can be trusted.
fn fault(sample: &Sample, calls: &[Seconds], is_aged: bool) -> Option<String> {
    let got = match &sample.outcome {
        Err(fault) => return Some(format!("{} s after its request: {fault}", sample.answered - sample.asked)),
        Ok(got) => got,
    };
    if is_aged && got.age as f64 > WINDOW {
        return Some(format!("a page with an Age of {} s", got.age));
    }
    let number = usize::try_from(got.made?).ok()?;
    // The call arrived after the gateway sent it, and calls that arrive together may be numbered in another order.
    let age = sample.asked - calls.get(number.checked_sub(1)?)?;
    (age > WINDOW + 0.1).then(|| format!("a page that is {age:.1} s old"))
}

/// A row of the table.
pub struct Row<'a> {
    pub name: &'a str,
    pub requests: usize,
    pub calls: usize,
}

impl Row<'_> {
    pub fn print(&self, bound: &str, excess: &str, failures: usize) {
        let Self { name, requests, calls } = self;
        let row = format!("| {name} | {requests} | {calls} | {bound} | {excess} | {failures} |");
        println!("{row}");
        if let Some(table) = std::env::var_os("REPLICAS_TABLE") {
            let mut file = std::fs::File::options().create(true).append(true).open(table).unwrap();
            writeln!(file, "{row}").unwrap();
        }
    }
}
