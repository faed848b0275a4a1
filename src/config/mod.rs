//! The configuration: what the gateway is told, checked before a port is bound.
//!
//! Values come from defaults, a TOML file, the environment and flags, in rising order of strength.
//! [`load`] reads them all, checks them all and reports every fault at once; nothing below this room
//! ever sees a raw string that still has to be parsed.
//!
//! The way of a value, file by file:
//!
//! | file | what happens there |
//! | --- | --- |
//! | `sources` | where values may come from; the only reading of the process environment |
//! | `document` | file, environment and flags become one tree, each value with its place |
//! | `reader` | typed reading of that tree: a wrong type, range or key becomes a fault |
//! | `secret` | secrets, wherever they are kept, and files that must be readable or writable |
//! | `proxy` | the forward proxy to the upstream, be it named here or for everybody |
//! | `sections` | the keys, their defaults and limits: tree to [`Config`] |
//! | `checks` | what no section can see alone: addresses against teams, teams against accounts |
//! | `fault` | all that is wrong, in file order, each with a place and a next step |
//! | `show` | the effective configuration as TOML, without its secrets |
//!
//! This room does not watch files, open ports or talk to anybody.

mod checks;
mod document;
mod fault;
mod proxy;
mod reader;
mod secret;
mod sections;
mod settings;
mod show;
mod sources;

#[cfg(test)]
mod tests;

pub use fault::Faults;
pub use secret::{CredentialSource, SecretSource};
pub use sections::check_team_name;
pub use settings::{
    Account, Admin, Cache, Circuit, Config, DiskCache, Fingerprint, JobCache, Listen, Log, LogFormat, Policy, Proxies,
    Proxy, RequiredFilter, Retry, Server, Settled, Team, Telemetry, Tls, Upstream,
};
pub use sources::Sources;

/// How often files that change while they are read are read anew.
const TRIES: usize = 10;

/// Reads, merges and checks all that `sources` name, in one state: a key and its secret that are replaced together
/// are never mixed.
///
/// # Errors
///
/// Every fault at once, in file order. No fault ever repeats a value, so none can hold a secret.
pub fn load(sources: &Sources) -> Result<Config, Faults> {
    // Which files there are is only known once they have been read. So they are read again between two equal
    // fingerprints: whatever changes from then on is a change, however early.
    let mut before = read(sources)?.fingerprint_of_files();
    for _ in 0..TRIES {
        let config = read(sources)?;
        let after = config.fingerprint_of_files();
        if after == before {
            return Ok(Config { fingerprint: after, ..config });
        }
        before = after;
    }
    Err(fault::of_unrest())
}

fn read(sources: &Sources) -> Result<Config, Faults> {
    let report = fault::Report::default();
    let Some(tree) = document::read(sources, &report) else {
        return Err(report.into_faults());
    };
    let config = sections::read(tree, sources, &report);
    report.finish(config)
}

impl Config {
    /// Of the contents of the files that the configuration came from, as they are now. A file that cannot be
    /// read has one too.
    pub fn fingerprint_of_files(&self) -> Fingerprint {
        let mut hasher = blake3::Hasher::new();
        for path in &self.watched {
            match secret::read_whole(path, u64::MAX) {
                Ok(content) => hasher.update(blake3::hash(&content).as_bytes()),
                Err(error) => hasher.update(error.kind().to_string().as_bytes()),
            };
        }
        Fingerprint(hasher.finalize().into())
    }
}
