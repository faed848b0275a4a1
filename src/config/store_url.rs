//! The address of the store that replicas share: one server, sentinels or a cluster.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use super::suggest::suggest;
use super::values::{is_loopback, socket_path};

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
    pub(super) fn is_local(&self) -> bool {
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

/// Parses `shared.url`. The message never repeats any part of `text`, which may hold a password.
pub(super) fn parse_url(text: &str) -> Result<StoreUrl, String> {
    let Some((scheme, rest)) = text.split_once("://") else { return Err(EXPECTED.to_owned()) };
    let scheme = scheme.to_ascii_lowercase();
    if !SCHEMES.contains(&scheme.as_str()) {
        return Err(format!("must start with one of {}{}", SCHEMES.join("://, ") + "://", suggest(&scheme, SCHEMES)));
    }
    if rest.contains('@') {
        let message = "must not contain a user or password; remove them and set shared.username and shared.password";
        return Err(message.to_owned());
    }
    if rest.contains(['?', '#']) {
        return Err("must not contain a query or a fragment; remove it".to_owned());
    }
    let (redis, kind) = scheme.split_once('+').unwrap_or((&scheme, ""));
    let (servers, database) = match (redis, kind) {
        ("unix", _) => (Servers::Unix(socket_path(rest)?), 0),
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
        return Err("must name one host; only redis+sentinel:// and redis+cluster:// take several");
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
        _ => Err("a cluster has only the database 0; remove the number"),
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
