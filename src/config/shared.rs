//! `[shared]`: the store that replicas share, its address, and the keys that seal what is kept in it.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use secrecy::SecretString;
use zeroize::Zeroizing;

use super::fault::{Path, Report, suggest};
use super::proxy::is_loopback;
use super::reader::{Field, Table};
use super::record::Key;
use super::secret::{self, SecretSource};
use super::shape::Shape;
use super::show;
use super::sources::Sources;

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

/// The address of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreUrl {
    /// Its servers.
    pub servers: Servers,
    /// Whether they are reached by TLS.
    pub tls: bool,
    /// The number of the database; 0 in a cluster and on a unix socket.
    pub database: i64,
}

/// The servers of a store, and how the one in use is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Servers {
    /// One server.
    Single(HostPort),
    /// One server, on a unix socket.
    Unix(PathBuf),
    /// The primary that these sentinels name; at least one sentinel.
    Sentinel {
        /// The sentinels.
        hosts: Vec<HostPort>,
        /// The name of the primary.
        service: String,
    },
    /// A cluster, with nodes that know the others; at least one.
    Cluster(Vec<HostPort>),
}

/// A host and its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// A name in lower case or an address, an IPv6 address without brackets.
    pub host: String,
    /// From 1 to 65535.
    pub port: u16,
}

impl Servers {
    /// The hosts that the URL names; none for a unix socket.
    fn hosts(&self) -> &[HostPort] {
        match self {
            Self::Single(host) => std::slice::from_ref(host),
            Self::Unix(_) => &[],
            Self::Sentinel { hosts, .. } | Self::Cluster(hosts) => hosts,
        }
    }
}

impl StoreUrl {
    /// Whether all hosts are this machine, so that nothing crosses a network.
    fn is_local(&self) -> bool {
        self.servers.hosts().iter().all(|host| is_loopback(&host.host))
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// In the form of the configuration, with ports, and without the database 0.
impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let redis = if self.tls { "rediss" } else { "redis" };
        let hosts = self.servers.hosts().iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        match &self.servers {
            Servers::Unix(path) => return write!(f, "unix://{}", path.display()),
            Servers::Single(_) => write!(f, "{redis}://{hosts}")?,
            Servers::Sentinel { service, .. } => write!(f, "{redis}+sentinel://{hosts}/{service}")?,
            Servers::Cluster(_) => write!(f, "{redis}+cluster://{hosts}")?,
        }
        if self.database == 0 { Ok(()) } else { write!(f, "/{}", self.database) }
    }
}

const EXPECTED: &str = "expected a URL such as \"rediss://cache.internal:6379\", \"unix:///run/redis.sock\", \
     \"rediss+sentinel://host1,host2/SERVICE\" or \"rediss+cluster://host1,host2\"";
const SCHEMES: [&str; 7] =
    ["redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster", "unix"];
const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// The message never repeats any part of `text`, which may hold a password.
fn parse_url(text: &str) -> Result<StoreUrl, String> {
    let Some((scheme, rest)) = text.split_once("://") else { return Err(EXPECTED.to_owned()) };
    let scheme = scheme.to_ascii_lowercase();
    if !SCHEMES.contains(&scheme.as_str()) {
        return Err(format!("must start with one of {}{}", SCHEMES.join("://, ") + "://", suggest(&scheme, SCHEMES)));
    }
    if rest.contains('@') {
        let message = "must not hold a user or password; take them out and set shared.username and shared.password";
        return Err(message.to_owned());
    }
    if rest.contains(['?', '#']) {
        return Err("must not hold a query or a fragment; take it out".to_owned());
    }
    let (redis, kind) = scheme.split_once('+').unwrap_or((&scheme, ""));
    let (servers, database) = match (redis, kind) {
        ("unix", _) => (Servers::Unix(super::values::socket_path(rest)?), 0),
        (_, "sentinel") => sentinel(rest)?,
        (_, "cluster") => cluster(rest)?,
        _ => single(rest)?,
    };
    Ok(StoreUrl { servers, tls: redis == "rediss", database })
}

/// `HOST[:PORT][/DB]`
fn single(rest: &str) -> Result<(Servers, i64), &'static str> {
    let (host, database) = rest.split_once('/').unwrap_or((rest, ""));
    if host.contains(',') {
        return Err("must name one host; several are for redis+sentinel:// or redis+cluster://");
    }
    Ok((Servers::Single(parse_host(host, PORT)?), parse_database(database)?))
}

/// `HOST[:PORT],…/SERVICE[/DB]`
fn sentinel(rest: &str) -> Result<(Servers, i64), &'static str> {
    let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (service, database) = path.split_once('/').unwrap_or((path, ""));
    let hosts = parse_hosts(hosts, SENTINEL_PORT)?;
    // What Sentinel itself allows.
    let fits = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    match service {
        "" => Err("must name the primary as the sentinels know it, such as redis+sentinel://host1,host2/SERVICE"),
        _ if !service.chars().all(fits) => {
            Err("the primary's name must be letters, digits, dots, dashes or underscores, as in Sentinel itself")
        }
        _ => Ok((Servers::Sentinel { hosts, service: service.to_owned() }, parse_database(database)?)),
    }
}

/// `HOST[:PORT],…`, and the only database that a cluster has.
fn cluster(rest: &str) -> Result<(Servers, i64), &'static str> {
    let (hosts, database) = rest.split_once('/').unwrap_or((rest, ""));
    let hosts = parse_hosts(hosts, PORT)?;
    match parse_database(database)? {
        0 => Ok((Servers::Cluster(hosts), 0)),
        _ => Err("a cluster has only the database 0; take the number out"),
    }
}

fn parse_hosts(text: &str, port: u16) -> Result<Vec<HostPort>, &'static str> {
    text.split(',').map(|host| parse_host(host, port)).collect()
}

/// `HOST`, `HOST:PORT` or the same with an IPv6 address in brackets.
fn parse_host(text: &str, default_port: u16) -> Result<HostPort, &'static str> {
    const NO_HOST: &str = "a host is missing; write redis://HOST:PORT";
    const ODD_HOST: &str = "a host must be a name of letters, digits, dots, dashes or underscores, an IPv4 address, or an IPv6 address in brackets";
    const ODD_PORT: &str = "the port must be a number from 1 to 65535";
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or(ODD_HOST)?;
            (host.parse::<Ipv6Addr>().map_err(|_| ODD_HOST)?.to_string(), port)
        }
        None => {
            let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            let fits = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
            let is_address_without_brackets = text.parse::<Ipv6Addr>().is_ok();
            match host {
                _ if is_address_without_brackets => return Err(ODD_HOST),
                "" => return Err(NO_HOST),
                _ if host.len() > 253 || !host.chars().all(fits) => return Err(ODD_HOST),
                // An address with a number that is too large is not a name.
                _ if is_dotted_quad(host) && host.parse::<Ipv4Addr>().is_err() => return Err(ODD_HOST),
                _ => (host.to_ascii_lowercase(), port),
            }
        }
    };
    let port = match port {
        "" => default_port,
        _ => port.strip_prefix(':').and_then(number).filter(|port| *port > 0).ok_or(ODD_PORT)?,
    };
    Ok(HostPort { host, port })
}

fn is_dotted_quad(host: &str) -> bool {
    host.split('.').count() == 4 && host.split('.').all(|part| part.bytes().all(|b| b.is_ascii_digit()))
}

/// The number of a database; 0 where there is none.
fn parse_database(text: &str) -> Result<i64, &'static str> {
    match text {
        "" => Ok(0),
        _ => number(text).map(i64::from).ok_or("what follows the hosts must be the number of a database, such as /0"),
    }
}

/// Digits alone: Rust itself also reads a sign.
fn number(text: &str) -> Option<u16> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// Reads the section; `None` without `url`.
pub(super) fn read(table: &mut Table<'_>, sources: &Sources) -> Option<Shared> {
    let at_start = Key::at_start;
    let (report, path) = (table.report(), table.path().clone());
    let url = table.optional(at_start("url"), show::text, |field| field.parsed(parse_url));
    let username = table.optional(Key::from("username"), show::text, |field| field.parsed(parse_username));
    let password = password(table, sources);
    let ca_file = table.file(at_start("ca_file"));
    if let Some(file) = &ca_file {
        secret::check_pem(file, "CERTIFICATE", &path.key("ca_file"), report);
    }
    let seal = seal(table, sources);
    let prefix =
        table.value(at_start("prefix"), "insights-gateway".to_owned(), show::text, |field| field.parsed(parse_prefix));
    let timeout = Duration::from_millis(1)..=Duration::from_secs(10);
    let timeout = table.duration_within(at_start("timeout"), Duration::from_millis(100), timeout);
    let lease = Duration::from_millis(2)..=Duration::from_secs(300);
    let lease = table.duration_within(at_start("lease"), Duration::from_secs(5), lease);
    if lease <= timeout {
        let message = "must be longer than shared.timeout, or a replica would lose a flight while it still waits";
        report.fault(&path.key("lease"), message);
    }
    let replicas = replicas(table);
    check_together(&path, url.as_ref(), report);
    Some(Shared { url: url?, username, password, ca_file, seal, prefix, timeout, lease, replicas: replicas? })
}

fn parse_username(text: &str) -> Result<String, &'static str> {
    match text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        true => Err("the name of a user has no white space"),
        false => Ok(text.to_owned()),
    }
}

/// Without `{`, `}` and the wildcards of ACLs, which mean something in the names of keys.
fn parse_prefix(text: &str) -> Result<String, &'static str> {
    let fits = |c: char| c.is_ascii_alphanumeric() || ".:-_".contains(c);
    match (1..=64).contains(&text.len()) && text.chars().all(fits) {
        true => Ok(text.to_owned()),
        false => Err("expected 1 to 64 letters, digits, dots, colons, dashes or underscores"),
    }
}

fn password(table: &mut Table<'_>, sources: &Sources) -> Option<SecretString> {
    let (report, path) = (table.report(), table.path().key("password"));
    let password = table.take("password").and_then(|field| secret::read(field, sources));
    let shown = password.as_ref().map(|password| show::secret(&password.source));
    table.record(Key::from("password").of(Shape::Secret), shown, None);
    let password = password?;
    secret::warn_if_written_out(&password.source, &path, report);
    Some(password.text.as_str().into())
}

/// The number of seal keys that are accepted. Each is tried on a value.
const MOST_KEYS: usize = 8;

fn seal(table: &mut Table<'_>, sources: &Sources) -> Vec<Zeroizing<[u8; 32]>> {
    let (mut shown, mut keys) = (Vec::new(), Vec::new());
    if let Some(field) = table.take("seal") {
        (shown, keys) = seal_keys(field, sources);
    }
    let shown = (!shown.is_empty()).then(|| show::secrets(&shown));
    table.record(Key::from("seal").of(Shape::Secrets), shown, None);
    keys
}

/// Where the keys are kept, and the keys. None are read where secrets are not to be read.
fn seal_keys(field: Field<'_>, sources: &Sources) -> (Vec<SecretSource>, Vec<Zeroizing<[u8; 32]>>) {
    let (report, path) = (field.report, field.path.clone());
    let (mut kept, mut keys) = (Vec::new(), Vec::new());
    let Some(entries) = field.one_or_more("a list of secrets") else { return (kept, keys) };
    if entries.is_empty() {
        report.fault(&path, "must not be empty; `openssl rand -base64 32` makes a key, or leave it out");
    }
    if entries.len() > MOST_KEYS {
        report.fault(&path, format!("at most {MOST_KEYS} keys; take out those that seal nothing any more"));
    }
    for entry in entries {
        let path = entry.path.clone();
        let Some(secret) = secret::read(entry, sources) else { continue };
        secret::warn_if_written_out(&secret.source, &path, report);
        kept.push(secret.source);
        // Only a secret that was not to be read is empty.
        if secret.text.is_empty() {
            continue;
        }
        match seal_key(&secret.text) {
            Some(key) if keys.contains(&key) => {
                report.fault(&path, "the same key is listed above; take one of them out");
            }
            Some(key) => keys.push(key),
            None => {
                report.fault(&path, "expected 32 bytes in base64, 44 characters; `openssl rand -base64 32` makes them")
            }
        }
    }
    (kept, keys)
}

fn seal_key(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    BASE64_STANDARD.decode_vec(text, &mut bytes).ok()?;
    Some(Zeroizing::new(bytes.as_slice().try_into().ok()?))
}

fn replicas(table: &mut Table<'_>) -> Option<u32> {
    let limits = 1..=10_000;
    let key = Key::at_start("replicas").of(Shape::Number(limits.clone()));
    table.optional(key, u32::to_string, |field| field.number(limits))
}

/// Checks the keys against each other. A key that was given but is wrong has been reported already.
fn check_together(path: &Path, url: Option<&StoreUrl>, report: &Report) {
    let is_given = |key: &str| report.is_given(&path.key(key));
    if !is_given("url") {
        // The others have an effect only together with the URL, but may stay when that is taken out.
        for key in ["username", "password", "ca_file", "seal"].into_iter().filter(|key| is_given(key)) {
            report.fault(&path.key(key), "means nothing without shared.url; set that, or take this out");
        }
        return;
    }
    if !is_given("replicas") {
        let message =
            "missing; set it to the number of replicas. While the store is away, each spends the rate divided by it";
        report.fault(&path.key("replicas"), message);
    }
    if is_given("username") && !is_given("password") {
        report.fault(&path.key("password"), "missing; shared.username needs one");
    }
    let Some(url) = url else { return };
    if is_given("ca_file") && !url.tls {
        report.fault(&path.key("ca_file"), "is only for TLS; use rediss:// in shared.url, or take this out");
    }
    match (is_given("seal"), url.is_local()) {
        (false, true) => report.warn(
            &path.key("seal"),
            "not set, so the store holds responses in clear text; `openssl rand -base64 32` makes a key",
        ),
        (false, false) => report.fault(
            &path.key("seal"),
            "missing; a store on another machine gets only sealed values. `openssl rand -base64 32` makes a key",
        ),
        (true, _) => {}
    }
    if is_given("password") && !url.tls && !url.is_local() {
        report.warn(&path.key("url"), "the password crosses the network in clear text; use rediss://");
    }
}
