//! Who could get in: the listeners that are open, against what the configuration asks of those who reach them.
//!
//! One rule for the start and for every reload. A reload does not move a listener, so a new configuration is judged by
//! the sockets that are held, and not by the addresses that it names itself.

use std::fmt;
use std::net::SocketAddr;

use super::settings::{Config, Listen};

/// A listener that is open, or that a configuration asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Where, in the form of the configuration.
    pub address: String,
    /// Who reaches it.
    pub reach: Reach,
}

/// Who reaches a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Users of this machine, as far as the mode of a unix socket lets them.
    Unix,
    /// Users of this machine, over TCP.
    Loopback,
    /// Others too. So is what cannot be told.
    Network,
}

impl Reach {
    /// Of a TCP listener; an IPv4 address counts as such however it is written.
    pub fn of(address: SocketAddr) -> Self {
        if address.ip().to_canonical().is_loopback() { Self::Loopback } else { Self::Network }
    }
}

/// What is open, and stays open until the process ends.
#[derive(Debug, Clone, Default)]
pub struct Held {
    /// The data plane's listeners.
    pub data: Vec<Listener>,
    /// The admin plane's.
    pub admin: Vec<Listener>,
    /// Does the data plane speak TLS over TCP.
    pub tls: bool,
    /// Does it verify clients' certificates.
    pub client_ca: bool,
}

impl Held {
    /// What `config` asks for. Sockets that systemd hands over are not known before they are there.
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

/// A way in for strangers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposure {
    /// The key that would close it.
    pub key: &'static [&'static str],
    /// Which of the listeners of [`Held::data`] it is, if it is one of them.
    pub index: Option<usize>,
    /// What is wrong, and what to do.
    pub message: String,
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key.join("."), self.message)
    }
}

/// All ways in for strangers that `config` would leave open, were it in use behind what is `held`.
pub fn exposures(config: &Config, held: &Held) -> Vec<Exposure> {
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
            "is gone, and without teams it alone says who gets in; keep it, add [teams.NAME] with a token_sha256, \
             or restart the gateway if everybody may get in",
        ));
    }
    if is_open_to_all && client_ca && !held.tls && held.data.iter().any(is_tcp) {
        found.push(certificates(
            "cannot take effect before a restart, since the listeners that are open do not speak TLS, and without \
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
