//! Checks that need several sections: addresses against each other and against teams, teams against accounts, the
//! certificate against the public address.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use jiff::Timestamp;

use super::certificate;
use super::exposure::{BoundListeners, Reach, exposures};
use super::path::Path;
use super::report::Report;
use super::settings::{Config, Listen, Team};
use super::suggest::suggest;

/// Checks `config` as a whole. `accounts` are the names of all accounts in the configuration, faulty ones included, so
/// that a team that names one of those is not reported again. `now` is the time of the check.
pub(super) fn across_sections(config: &Config, accounts: &[String], now: Timestamp, report: &Report) {
    addresses(config, report);
    openings(config, report);
    if let Some(tls) = &config.server.tls {
        let path = Path::of(&["server", "tls"]);
        certificate::check(tls, config.server.public_url.as_ref(), now, &path, report);
    }
    let certificates = config.server.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    for team in &config.teams {
        account_of(team, accounts, report);
        let token = Path::of(&["teams", &team.name, "token_sha256"]);
        if !certificates && !report.is_given(&token) {
            report.fault(
                &token,
                "missing, so no caller could be this team; `insights-gateway token new TEAM` makes one \
                 (or set server.tls.client_ca to accept client certificates)",
            );
        }
    }
    tokens(&config.teams, report);
}

/// Port 0 asks the system for a free port, so it never collides.
fn addresses(config: &Config, report: &Report) {
    let path = Path::of(&["server", "listen"]);
    let listen = &config.server.listen;
    for (index, address) in listen.iter().enumerate() {
        let collides = listen[..index].iter().any(|earlier| match (earlier, address) {
            // `[::]` takes no IPv4 connections where another entry names IPv4, in any form.
            (Listen::Tcp(one), Listen::Tcp(other)) => {
                let is_ipv4 = |address: &SocketAddr| address.ip().to_canonical().is_ipv4();
                is_ipv4(one) == is_ipv4(other) && share_a_port(*one, *other)
            }
            (one, other) => one == other,
        });
        if collides {
            report.fault(&path.item(index), "an earlier entry already listens there; remove one of them");
        }
        if matches!(address, Listen::Tcp(address) if share_a_port(*address, config.admin.listen)) {
            let admin = Path::of(&["admin", "listen"]);
            if report.is_given(&admin) {
                let message = "must not be the data plane's address in server.listen; use another port";
                report.fault(&admin, message);
            } else {
                let message = "must not be the admin plane's address; use another port, or set admin.listen";
                report.fault(&path.item(index), message);
            }
        }
    }
}

/// Whether one address reaches both listeners. `0.0.0.0` and `[::]` mean all addresses.
fn share_a_port(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip().to_canonical(), other.ip().to_canonical());
    let covers =
        |ip: std::net::IpAddr, other: std::net::IpAddr| ip.is_unspecified() && (ip.is_ipv6() || other.is_ipv4());
    one.port() != 0 && one.port() == other.port() && (a == b || covers(a, b) || covers(b, a))
}

/// Reports the listeners of this configuration that anyone could use.
fn openings(config: &Config, report: &Report) {
    let wanted = BoundListeners::wanted(config);
    for exposure in exposures(config, &wanted) {
        let path = Path::of(exposure.key);
        match exposure.index {
            Some(index) => report.fault(&path.item(index), exposure.message),
            // A value that was given but is wrong has been reported already.
            None if report.is_given(&path) => {}
            None => report.fault(&path, exposure.message),
        }
    }
    if config.teams.is_empty() && config.server.open {
        for (index, _) in wanted.data.iter().enumerate().filter(|(_, listener)| listener.reach == Reach::Network) {
            let path = Path::of(&["server", "listen"]).item(index);
            report.warn(&path, "anyone who reaches this address may use the account, as server.open allows");
        }
    }
}

fn account_of(team: &Team, accounts: &[String], report: &Report) {
    let names = || accounts.iter().map(String::as_str);
    if accounts.is_empty() || names().any(|name| name == team.account) {
        return;
    }
    let problem = match team.account.as_str() {
        "" => "missing",
        _ => "no such account",
    };
    let suggestion = suggest(&team.account, names());
    report.fault(
        &Path::of(&["teams", &team.name, "account"]),
        format!("{problem}; the accounts are {}{suggestion}", accounts.join(", ")),
    );
}

/// A token identifies the caller, so it may belong to only one team.
fn tokens(teams: &[Team], report: &Report) {
    let mut owners: BTreeMap<[u8; 32], &str> = BTreeMap::new();
    for team in teams {
        for token in &team.tokens {
            if let Some(owner) = owners.insert(token.sha256, &team.name) {
                report.fault(
                    &Path::of(&["teams", &team.name, "token_sha256"]),
                    format!("the same token belongs to the team {owner}; give each team its own"),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unspecified_addresses_cover_the_others() {
        let share = |one: &str, other: &str| {
            let (one, other) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(share_a_port(one, other), share_a_port(other, one), "{one} {other}");
            share_a_port(one, other)
        };
        assert!(share("127.0.0.1:80", "127.0.0.1:80"));
        assert!(share("0.0.0.0:80", "127.0.0.1:80"));
        assert!(share("[::]:80", "127.0.0.1:80"));
        assert!(share("[::]:80", "[::1]:80"));
        assert!(share("[::ffff:127.0.0.1]:80", "127.0.0.1:80"));
        assert!(!share("0.0.0.0:80", "[::1]:80"));
        assert!(!share("127.0.0.1:80", "127.0.0.2:80"));
        assert!(!share("127.0.0.1:80", "127.0.0.1:81"));
        assert!(!share("127.0.0.1:0", "127.0.0.1:0"));
    }
}
