//! Finds open listeners that anyone could use, given what the configuration demands of callers.
//!
//! The same rule holds at the start and at every reload. A reload does not move a listener, so a new configuration is
//! judged by the sockets that are open, and not by the addresses that it names.

use std::fmt;
use std::net::SocketAddr;

use super::settings::{Config, Listen};

/// A listener that is open, or that a configuration asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// The address, as the configuration writes it.
    pub address: String,
    /// Who can reach it.
    pub reach: Reach,
}

/// Who can reach a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Users of this machine, as far as the mode of a unix socket lets them.
    Unix,
    /// Users of this machine, over TCP.
    Loopback,
    /// Users of other machines too. Also used where this is not known.
    Network,
}

impl Reach {
    /// The reach of a TCP listener. An IPv4 address counts as one also when it is mapped to IPv6.
    pub fn of(address: SocketAddr) -> Self {
        if address.ip().to_canonical().is_loopback() { Self::Loopback } else { Self::Network }
    }
}

/// The listeners that stay open until the process ends.
#[derive(Debug, Clone, Default)]
pub struct BoundListeners {
    /// The data plane's listeners.
    pub data: Vec<Listener>,
    /// The admin plane's listeners.
    pub admin: Vec<Listener>,
    /// Whether the data plane's TCP listeners speak TLS.
    pub tls: bool,
    /// Whether it verifies clients' certificates.
    pub client_ca: bool,
}

impl BoundListeners {
    /// The listeners that `config` asks for. Sockets that systemd hands over are known only once they are there.
    pub(super) fn wanted(config: &Config) -> Self {
        let listener = |address: SocketAddr| Listener { address: address.to_string(), reach: Reach::of(address) };
        let data = config.server.listen.iter().map(|listen| match listen {
            Listen::Tcp(address) => listener(*address),
            Listen::Unix(path) => Listener { address: format!("unix:{}", path.display()), reach: Reach::Unix },
            Listen::Systemd(name) => Listener { address: format!("systemd:{name}"), reach: Reach::Unix },
        });
        let tls = config.server.tls.as_ref();
        Self {
            data: data.collect(),
            admin: vec![listener(config.admin.listen)],
            tls: tls.is_some(),
            client_ca: tls.is_some_and(|tls| tls.client_ca.is_some()),
        }
    }
}

/// A fault that lets anyone use the account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposure {
    /// The key that would prevent it.
    pub key: &'static [&'static str],
    /// The index of the listener in [`BoundListeners::data`], if it is one of those.
    pub index: Option<usize>,
    /// What is wrong, and how to correct it.
    pub message: String,
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key.join("."), self.message)
    }
}

/// All faults that would let anyone in if `config` were in use with the listeners in `held`.
pub fn exposures(config: &Config, held: &BoundListeners) -> Vec<Exposure> {
    let mut found = Vec::new();
    let is_open_to_all = config.teams.is_empty();
    let client_ca = config.server.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    if is_open_to_all && !config.server.open {
        found.extend(held.data.iter().enumerate().filter(|(_, data)| data.reach == Reach::Network).map(
            |(index, data)| Exposure {
                key: &["server", "listen"],
                index: Some(index),
                message: format!(
                    "{} is not loopback, so anyone who reaches it could use the account; \
                     add [teams.NAME] with a token_sha256, or set server.open = true",
                    data.address
                ),
            },
        ));
    }
    let is_tcp = |listener: &Listener| listener.reach != Reach::Unix;
    let certificates =
        |message: &str| Exposure { key: &["server", "tls", "client_ca"], index: None, message: message.to_owned() };
    if is_open_to_all && held.client_ca && !client_ca {
        found.push(certificates(
            "was removed, and without teams nothing else decides who may connect; keep it, add [teams.NAME] with a \
             token_sha256, \
             or restart the gateway if everybody may get in",
        ));
    }
    if is_open_to_all && client_ca && !held.tls && held.data.iter().any(is_tcp) {
        found.push(certificates(
            "cannot take effect before a restart, because the listeners that are open do not speak TLS, and without \
             teams it alone says who gets in; restart the gateway, or add [teams.NAME] with a token_sha256",
        ));
    }
    if config.admin.token_sha256.is_none() {
        found.extend(held.admin.iter().filter(|admin| admin.reach == Reach::Network).map(|admin| Exposure {
            key: &["admin", "token_sha256"],
            index: None,
            message: format!(
                "required because the admin plane's {} is not loopback; `insights-gateway token new NAME` prints a \
                 hash to put here, without the brackets",
                admin.address
            ),
        }));
    }
    found
}
