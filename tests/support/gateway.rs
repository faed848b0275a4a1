//! A whole gateway in this process, on free ports.

use std::net::SocketAddr;
use std::sync::Arc;

use insights_gateway::config::{self, Sources};
use insights_gateway::server::Inherited;
use tempfile::TempDir;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use super::client::{Answer, Client};
use super::requests::{get, sha256_hex};
use super::upstream::Upstream;
use super::wait::{poll, within};

pub const SID: &str = "AC00000000000000000000000000000001";
pub const KEY: &str = "SK-of-the-tests";
pub const SECRET: &str = "planted-s3cret-that-nobody-may-see";

/// A configuration for tests: one account without a rate limit, and quick retries without a budget. Later flags
/// override earlier ones.
pub struct TestConfig(Vec<(String, String)>);

impl TestConfig {
    pub fn new(upstream: impl Into<String>) -> Self {
        let base = [
            ("server.listen", "127.0.0.1:0"),
            ("admin.listen", "127.0.0.1:0"),
            ("accounts.default.account_sid", SID),
            ("accounts.default.api_key", KEY),
            ("accounts.default.api_secret", SECRET),
            ("accounts.default.rate", "0/s"),
            ("retry.base", "1ms"),
            ("retry.max", "5ms"),
            ("retry.budget", "10"),
            ("circuit.consecutive", "1000"),
        ];
        let mut flags: Vec<_> = base.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        flags.push(("upstream.url".to_owned(), upstream.into()));
        Self(flags)
    }

    /// Without the account, for tests that have their own accounts in a file.
    pub fn without_account(mut self) -> Self {
        self.0.retain(|(key, _)| !key.starts_with("accounts."));
        self
    }

    pub fn set(mut self, key: &str, value: impl Into<String>) -> Self {
        self.0.push((key.to_owned(), value.into()));
        self
    }

    pub fn sources(self) -> Sources {
        let mut sources = Sources::default();
        for (key, value) in self.0 {
            sources = sources.with_flag(key, value);
        }
        sources
    }

    pub async fn start(self) -> Gateway {
        Gateway::start(self.sources()).await
    }
}

/// A gateway that runs until it is dropped or told to stop.
pub struct Gateway {
    pub data: SocketAddr,
    pub admin: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    pub served: JoinHandle<()>,
    /// Notified like a SIGHUP.
    pub reload: Arc<Notify>,
}

impl Gateway {
    pub async fn start(sources: Sources) -> Self {
        Self::start_with(sources, Inherited::default()).await
    }

    /// With sockets that another process has opened.
    pub async fn start_with(sources: Sources, inherited: Inherited) -> Self {
        let config = config::load(&sources).unwrap_or_else(|faults| panic!("{faults}"));
        let gateway = insights_gateway::gateway::Gateway::bind_with(config, inherited).expect("free ports");
        Self::run(gateway, sources)
    }

    /// One that is already bound.
    pub fn run(gateway: insights_gateway::gateway::Gateway, sources: Sources) -> Self {
        // A gateway that listens only on a unix socket has no address here.
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let data = gateway.data_address().unwrap_or(nowhere);
        let admin = gateway.admin_address().expect("the admin plane listens on TCP");
        let (stop, stopped) = oneshot::channel();
        let reload = Arc::new(Notify::new());
        let shutdown = async { drop(stopped.await) };
        let served = tokio::spawn(gateway.run(Some(sources), Arc::clone(&reload), shutdown));
        Self { data, admin, stop: Some(stop), served, reload }
    }

    /// Tells it to drain, without waiting.
    pub fn tell_to_stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    /// Stops it and waits for its end.
    pub async fn stop(mut self) {
        self.tell_to_stop();
        within(&mut self.served).await.expect("the gateway ends without a panic");
    }

    /// A new connection to the data plane.
    pub async fn connect(&self) -> Client {
        Client::connect(self.data).await
    }

    /// Sends a request on a new connection.
    pub async fn ask(&self, request: &[u8]) -> Answer {
        self.connect().await.ask(request).await
    }

    /// Sends a request on a new connection to the admin plane.
    pub async fn ask_admin(&self, request: &[u8]) -> Answer {
        Client::connect(self.admin).await.ask(request).await
    }

    /// A GET on the admin plane.
    pub async fn admin(&self, path: &str) -> Answer {
        Client::connect(self.admin).await.ask(&get(path, "Connection: close\r\n")).await
    }

    /// The sum of a metric's samples whose labels contain all of `labels`.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let page = self.admin("/metrics").await.text();
        let sample = |line: &str| {
            let rest = line.strip_prefix("insights_gateway_")?.strip_prefix(name)?;
            let (found, value) = rest.rsplit_once(' ')?;
            let named = found.is_empty() || found.starts_with('{');
            (named && labels.iter().all(|label| found.contains(label))).then(|| value.parse::<f64>().expect("a number"))
        };
        page.lines().filter_map(sample).sum()
    }

    /// Waits until a metric has reached a value.
    pub async fn metric_reaches(&self, name: &str, labels: &[&str], value: f64) {
        poll(name, || async { (self.metric(name, labels).await >= value).then_some(()) }).await;
    }

    /// Lets every task run that is ready. Three requests pass through the whole gateway, which runs in this thread, so
    /// all that was sent before has been read when this returns.
    pub async fn settle(&self) {
        for _ in 0..3 {
            let answer = self.ask(&get("/nowhere", "Connection: close\r\n")).await;
            assert_eq!(answer.status, 404);
        }
    }
}

/// Keys of a gateway that makes one attempt per request.
pub const NO_RETRY: &[(&str, &str)] = &[("retry.attempts", "1")];

/// A gateway with these teams, each with the token `token-of-` followed by its name. `account`, the text of a team and
/// `keys` are further keys of the account, of that team and of other sections.
pub async fn with_teams(
    upstream: &Upstream,
    account: &str,
    teams: &[(&str, &str)],
    keys: &[(&str, &str)],
) -> (Gateway, TempDir) {
    let mut text = format!("[accounts.main]\naccount_sid = 'AC1'\napi_key = 'SK1'\napi_secret = 's'\n{account}\n");
    for (team, keys) in teams {
        let hash = sha256_hex(&format!("token-of-{team}"));
        text.push_str(&format!("[teams.{team}]\ntoken_sha256 = ['{hash}']\n{keys}\n"));
    }
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("gateway.toml");
    std::fs::write(&file, text).unwrap();
    let mut config = TestConfig::new(upstream.url()).without_account();
    for (key, value) in keys {
        config = config.set(key, *value);
    }
    (Gateway::start(config.sources().with_file(&file)).await, folder)
}
