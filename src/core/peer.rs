//! Who is at the other end of a connection, as far as the connection itself shows.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Not known.
    Unknown,
    /// TCP: the peer's address, or the one that a trusted proxy stated.
    Tcp(SocketAddr),
    /// A unix socket: the peer's process, as the kernel reports it.
    Unix {
        /// The user id of the process.
        uid: u32,
        /// The process id, where it is known.
        pid: Option<i32>,
    },
}

/// The other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    origin: Origin,
    /// Formatted once per connection, so that a request's log line costs only a copy.
    text: Box<str>,
    names: Vec<String>,
    lacks_a_certificate: bool,
    over_tls: bool,
    /// The team that an operator asks as.
    acts_as: Option<Box<str>>,
    /// Whether the peer has identified itself. Clones share this.
    identified: Arc<AtomicBool>,
}

impl Default for Peer {
    fn default() -> Self {
        Self::new(Origin::Unknown)
    }
}

impl Peer {
    /// An unidentified peer.
    pub fn new(origin: Origin) -> Self {
        let text = match origin {
            Origin::Unknown => String::new(),
            Origin::Tcp(address) => address.to_string(),
            Origin::Unix { uid, pid: Some(pid) } => format!("unix:uid={uid},pid={pid}"),
            Origin::Unix { uid, pid: None } => format!("unix:uid={uid}"),
        };
        let (names, identified) = (Vec::new(), Arc::default());
        let (lacks_a_certificate, over_tls, acts_as) = (false, false, None);
        Self { origin, text: text.into(), names, lacks_a_certificate, over_tls, acts_as, identified }
    }

    /// The same peer, on a TLS connection that the gateway itself terminates.
    pub fn over_tls(self) -> Self {
        Self { over_tls: true, ..self }
    }

    /// Whether it speaks TLS with the gateway itself. A client of a proxy that terminates TLS does not.
    pub fn uses_tls(&self) -> bool {
        self.over_tls
    }

    /// A peer for an operator that the admin plane has authenticated, and that sends requests as this team. No
    /// data-plane connection can create such a peer.
    #[must_use]
    pub fn acting_as(&self, team: &str) -> Self {
        let (origin, text) = (self.origin, self.text.clone());
        Self { origin, text, acts_as: Some(team.into()), ..Self::default() }
    }

    /// The team that an operator asks as.
    pub fn acts_as(&self) -> Option<&str> {
        self.acts_as.as_deref()
    }

    /// How the request came, if not over the data plane: `admin`.
    pub fn via(&self) -> Option<&'static str> {
        self.acts_as.is_some().then_some("admin")
    }

    /// Adds the names of the verified client certificate.
    pub fn with_names(self, names: Vec<String>) -> Self {
        Self { names, lacks_a_certificate: false, ..self }
    }

    /// The same peer, on a connection that would not be accepted now without a valid certificate.
    pub fn that_lacks_a_certificate(self) -> Self {
        Self { lacks_a_certificate: true, ..self }
    }

    /// Whether a certificate is required that this peer has not shown.
    pub fn lacks_a_certificate(&self) -> bool {
        self.lacks_a_certificate
    }

    /// Notes that it has shown a valid token or certificate.
    pub fn identify(&self) {
        if !self.is_identified() {
            self.identified.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it has ever shown a valid token or certificate on this connection.
    pub fn is_identified(&self) -> bool {
        self.identified.load(Ordering::Relaxed)
    }

    /// Whether it is connected over a unix socket.
    pub fn is_unix(&self) -> bool {
        matches!(self.origin, Origin::Unix { .. })
    }

    /// For logs: `192.0.2.1:4711`, `unix:uid=1000,pid=4711`, or empty.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The names in its verified client certificate; empty without one.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The group of peers whose failures are counted together.
    pub fn source_group(&self) -> SourceGroup {
        match self.origin {
            Origin::Unknown => SourceGroup::Unknown,
            Origin::Unix { uid, .. } => SourceGroup::User(uid),
            Origin::Tcp(address) => match address.ip().to_canonical() {
                ip @ IpAddr::V4(_) => SourceGroup::Network(ip),
                // A client with one address of a /64 usually has all of them (RFC 6177).
                IpAddr::V6(ip) => {
                    let prefix = ip.to_bits() & (u128::MAX << 64);
                    SourceGroup::Network(IpAddr::V6(Ipv6Addr::from_bits(prefix)))
                }
            },
        }
    }
}

/// Peers that cannot be distinguished: an IPv4 address, an IPv6 network of 64 bits, or a user of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceGroup {
    /// Peers of unknown origin.
    Unknown,
    /// An IPv4 address, or the first address of an IPv6 network.
    Network(IpAddr),
    /// A user of this machine.
    User(u32),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(address: &str) -> Peer {
        Peer::new(Origin::Tcp(address.parse().unwrap()))
    }

    #[test]
    fn peers_are_named_in_logs() {
        assert_eq!(tcp("192.0.2.1:4711").as_str(), "192.0.2.1:4711");
        assert_eq!(tcp("[2001:db8::1]:4711").as_str(), "[2001:db8::1]:4711");
        assert_eq!(Peer::new(Origin::Unix { uid: 7, pid: Some(8) }).as_str(), "unix:uid=7,pid=8");
        assert_eq!(Peer::default().as_str(), "");
    }

    #[test]
    fn an_ipv6_network_is_one_group_and_so_is_an_ipv4_address() {
        let same = |one: &str, other: &str| tcp(one).source_group() == tcp(other).source_group();
        assert!(same("[2001:db8:0:1::1]:1", "[2001:db8:0:1:ffff::2]:2"));
        assert!(!same("[2001:db8:0:1::1]:1", "[2001:db8:0:2::1]:1"));
        assert!(same("192.0.2.1:1", "192.0.2.1:2") && !same("192.0.2.1:1", "192.0.2.2:1"));
        assert!(same("192.0.2.1:1", "[::ffff:192.0.2.1]:2"), "the same address, through a listener for both");
        let user = |uid, pid| Peer::new(Origin::Unix { uid, pid: Some(pid) }).source_group();
        assert!(user(1, 2) == user(1, 3) && user(1, 2) != user(2, 2));
    }
}
