//! The checked values that all other modules use.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::uri::Authority;
use http::{HeaderValue, Uri};
use jiff::Timestamp;
use secrecy::SecretString;
use zeroize::Zeroizing;

use super::files::Files;
use super::record::Record;
use super::store_url::StoreUrl;
use crate::core::network::Network;
use crate::core::units::Rate;
use crate::semantics::freshness::Lifetimes;
use crate::semantics::origin::Origin;
use crate::twilio::permission::OperationSet;
use crate::twilio::query::Comparison;
use crate::twilio::validate::Validation;

/// The whole configuration, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The data plane's listeners and limits.
    pub server: Server,
    /// The admin plane.
    pub admin: Admin,
    /// The upstream.
    pub upstream: Upstream,
    /// Twilio accounts; at least one.
    pub accounts: Vec<Account>,
    /// Callers. If empty, everyone who can reach the listener is the team `local`.
    pub teams: Vec<Team>,
    /// Page cache.
    pub cache: Cache,
    /// `validate.mode`: what the gateway does about names that the account's metadata does not have.
    pub validate: Validation,
    /// The store that replicas share; `None` for a gateway on its own.
    pub shared: Option<Shared>,
    /// Retries.
    pub retry: Retry,
    /// Circuit breaker.
    pub circuit: Circuit,
    /// Logs.
    pub log: Log,
    /// Traces.
    pub telemetry: Telemetry,
    /// Values that are valid but probably not what the user wants, such as a secret in clear text.
    pub warnings: Vec<String>,
    /// Every key with its value as it is shown, its default and where it was set.
    pub record: Record,
    /// The configuration file and every secret, TLS and trust root file. A change of one causes a reload.
    pub files: Files,
}

impl Config {
    /// The effective configuration as TOML, see [`Record::show`].
    pub fn show(&self) -> String {
        self.record.show()
    }

    /// The keys whose new value waits for a restart of a gateway that runs with `old`.
    pub fn waiting_for_restart(&self, old: &Self) -> Vec<String> {
        self.record.waiting_for_restart(&old.record)
    }
}

/// `[server]`
#[derive(Debug, Clone)]
pub struct Server {
    /// Addresses of the data plane.
    pub listen: Vec<Listen>,
    /// Whether anyone who reaches the port may use the account.
    pub open: bool,
    /// How long in-flight requests may take after SIGTERM.
    pub drain: Duration,
    /// Largest request body in bytes.
    pub max_body: u64,
    /// Bytes of large request bodies that are held at the same time.
    pub body_memory: u64,
    /// Connections open at the same time, over all listeners.
    pub max_connections: u32,
    /// Time limit for a complete request head.
    pub header_timeout: Duration,
    /// Time limit for a complete request body.
    pub body_timeout: Duration,
    /// Time limit for a client to take any of the bytes that it is sent.
    pub write_timeout: Duration,
    /// Permissions of the unix sockets' files.
    pub unix_mode: u32,
    /// The proxies whose connections begin with a PROXY protocol header.
    pub proxy_protocol: Proxies,
    /// The gateway's own address, as clients see it; without it the request's `Host` is used.
    pub public_url: Option<Uri>,
    /// TLS for the TCP listeners.
    pub tls: Option<Tls>,
    /// Origins whose pages may send requests and read the responses.
    pub cors: Vec<Origin>,
}

/// One entry of `server.listen`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A TCP address.
    Tcp(SocketAddr),
    /// `unix:/path/to.sock`
    Unix(PathBuf),
    /// `systemd:NAME`: sockets that systemd opens and hands over under this name.
    Systemd(String),
}

/// `server.proxy_protocol`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// TCP connections from these networks.
    pub networks: Vec<Network>,
    /// All connections to unix sockets.
    pub unix: bool,
}

/// `server.tls`
#[derive(Debug, Clone)]
pub struct Tls {
    /// PEM chain.
    pub cert: PathBuf,
    /// PEM key.
    pub key: PathBuf,
    /// PEM roots that client certificates must chain to. A team's client may show one instead of a token. Without teams
    /// every client must show one.
    pub client_ca: Option<PathBuf>,
}

/// `[admin]`
#[derive(Debug, Clone)]
pub struct Admin {
    /// Address of the admin plane.
    pub listen: SocketAddr,
    /// SHA-256 of the token that all endpoints but `/livez` and `/readyz` demand.
    pub token_sha256: Option<[u8; 32]>,
    /// Whether the admin plane may show query texts.
    pub show_queries: bool,
    /// Whether the page may run queries, as a team that the operator chooses.
    pub explorer: bool,
}

/// `[upstream]`
#[derive(Debug, Clone)]
pub struct Upstream {
    /// Scheme, host and port of Twilio, the simulator or a test server. No path.
    pub url: Uri,
    /// For DNS, TCP, a proxy and TLS together.
    pub connect_timeout: Duration,
    /// For one attempt.
    pub attempt_timeout: Duration,
    /// For a whole request, with waits and retries.
    pub deadline: Duration,
    /// Largest response in bytes.
    pub max_response: u64,
    /// An extra trust root, PEM.
    pub ca_file: Option<PathBuf>,
    /// The forward proxy; `None` for a direct connection.
    pub proxy: Option<Proxy>,
}

/// A forward proxy. The gateway asks it for a tunnel by CONNECT.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// Its host and port.
    pub address: Authority,
    /// The user name for the proxy.
    pub user: Option<String>,
    /// Where the password is kept, if there is one.
    pub password: Option<SecretSource>,
    /// The value of `Proxy-Authorization`, marked sensitive so that nothing prints it.
    pub authorization: Option<HeaderValue>,
}

/// `[accounts.NAME]`
#[derive(Debug, Clone)]
pub struct Account {
    /// The name in the configuration, used in logs, metrics and keys.
    pub name: String,
    /// `AC…`
    pub account_sid: String,
    /// Basic user: an API key's SID, or the account's own.
    pub username: String,
    /// Basic password: the key's secret, or the auth token.
    pub secret: SecretString,
    /// Where user and password were found. No more than that is ever shown of them.
    pub credential: CredentialSource,
    /// Upstream token bucket; `None` means no limit (`"0/s"`).
    pub rate: Option<Rate>,
    /// Tokens that may be spent at the same time.
    pub burst: u32,
    /// Upstream requests in progress at the same time.
    pub concurrency: u32,
    /// Most requests that may wait.
    pub queue: u32,
    /// Learn from 429s and rate headers.
    pub adapt: bool,
}

/// Where a secret is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// In clear text in the configuration file or in a flag.
    Literal,
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Env(String),
    /// A systemd credential: a file of this name in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
}

/// An account's credential, and where it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialSource {
    /// An API key's SID and its secret.
    ApiKey {
        /// The SID.
        key: SecretSource,
        /// The secret.
        secret: SecretSource,
    },
    /// The account's own auth token; the user is the account's SID.
    AuthToken(SecretSource),
}

/// `[teams.NAME]`
#[derive(Debug, Clone)]
pub struct Team {
    /// The name in the configuration.
    pub name: String,
    /// Name of the account whose data this team reads.
    pub account: String,
    /// The tokens that are accepted.
    pub tokens: Vec<Token>,
    /// Rate of this team's requests, cached or not.
    pub requests: Option<Rate>,
    /// Rate of this team's upstream requests.
    pub upstream: Option<Rate>,
    /// Weight of this team's share when requests wait; at least 1.
    pub weight: u32,
    /// The operations that it may use.
    pub operations: OperationSet,
    /// The members that it may see.
    pub policy: Policy,
}

/// One entry of `teams.NAME.token_sha256`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 of the token.
    pub sha256: [u8; 32],
    /// From this time on the token is refused.
    pub expires: Option<Timestamp>,
}

/// `[teams.NAME.policy]`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Members that are refused; `*` at the end matches any rest.
    pub deny: Vec<String>,
    /// Expressions added to every query as AND.
    pub require: Vec<RequiredFilter>,
}

/// One entry of `policy.require`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequiredFilter {
    /// The comparison.
    pub op: Comparison,
    /// A dimension.
    pub field: String,
    /// At least one.
    pub values: Vec<String>,
}

/// `[cache]`
#[derive(Debug, Clone)]
pub struct Cache {
    /// Bytes of keys and pages.
    pub capacity: u64,
    /// Metadata.
    pub metadata: Lifetimes,
    /// Queries and their pages.
    pub query: Lifetimes,
    /// Queries whose time range has closed.
    pub settled: Settled,
    /// Query jobs.
    pub jobs: JobCache,
    /// The disk tier.
    pub disk: DiskCache,
    /// How long Twilio's 400s and 404s are kept; zero means never.
    pub errors: Duration,
}

/// `[cache.settled]`
#[derive(Debug, Clone, Copy)]
pub struct Settled {
    /// How long ago the range must have closed.
    pub after: Duration,
    /// Lifetimes of such pages.
    pub lifetimes: Lifetimes,
}

/// `[cache.jobs]`
#[derive(Debug, Clone, Copy)]
pub struct JobCache {
    /// An identical submission within this time joins the running or finished job; zero turns this off.
    pub dedup: Duration,
    /// How long finished results are kept.
    pub results: Duration,
}

/// `[cache.disk]`
#[derive(Debug, Clone)]
pub struct DiskCache {
    /// The folder. Without one there is no disk tier.
    pub path: Option<PathBuf>,
    /// Bytes on disk.
    pub capacity: u64,
}

/// `[shared]`
#[derive(Clone)]
pub struct Shared {
    /// The store's address.
    pub url: StoreUrl,
    /// The store's ACL user; without one, its default user.
    pub username: Option<String>,
    /// The user's password.
    pub password: Option<SecretString>,
    /// An extra trust root, PEM. Only with TLS.
    pub ca_file: Option<PathBuf>,
    /// The keys that seal values: the first seals, all of them open. Empty only if all of the store's servers are on this
    /// machine; values are then clear text.
    pub seal: Vec<Zeroizing<[u8; 32]>>,
    /// How the names of all keys in the store begin.
    pub prefix: String,
    /// For one operation.
    pub timeout: Duration,
    /// How long a replica that died keeps a flight. Longer than `timeout`.
    pub lease: Duration,
    /// How many replicas there are; at least 1.
    pub replicas: u32,
}

/// Without the seal keys, which would otherwise be printed.
impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, username, password, ca_file, seal: _, prefix, timeout, lease, replicas } = self;
        f.debug_struct("Shared")
            .field("url", url)
            .field("username", username)
            .field("password", password)
            .field("ca_file", ca_file)
            .field("prefix", prefix)
            .field("timeout", timeout)
            .field("lease", lease)
            .field("replicas", replicas)
            .finish_non_exhaustive()
    }
}

/// `[retry]`
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// Attempts in all; at least 1.
    pub attempts: u32,
    /// First step of the exponential backoff.
    pub base: Duration,
    /// Longest step.
    pub max: Duration,
    /// Retries per first attempt.
    pub budget: f64,
    /// Longest pause that a 429's headers can impose.
    pub max_pause: Duration,
}

/// `[circuit]`
#[derive(Debug, Clone, Copy)]
pub struct Circuit {
    /// Failures in a row that open an account's circuit.
    pub consecutive: u32,
    /// Or this share of at least 20 attempts within 30 s.
    pub ratio: f64,
    /// Until a probe is let through.
    pub open: Duration,
}

/// `[log]`
#[derive(Debug, Clone)]
pub struct Log {
    /// Text, JSON, or the one that fits standard error.
    pub format: LogFormat,
    /// A `tracing` filter directive list.
    pub filter: String,
    /// Whether each request gets a line.
    pub access: bool,
    /// Share of hits that get a line, 0 to 1.
    pub hits: f64,
    /// Requests slower than this always get a line, as a warning.
    pub slow: Duration,
    /// JSON-lines audit log.
    pub audit: Option<PathBuf>,
}

/// `log.format`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// JSON where standard error is not a terminal.
    Auto,
    /// One readable line per event.
    Text,
    /// One JSON object per event.
    Json,
}

/// `[telemetry]`
#[derive(Debug, Clone)]
pub struct Telemetry {
    /// OTLP/HTTP endpoint.
    pub otlp: Option<Uri>,
    /// Share of the requests that do not go upstream which is traced, 0 to 1.
    pub sample: f64,
}
