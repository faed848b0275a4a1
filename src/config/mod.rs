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
//! | `secret` | secrets, wherever they are kept, and files that must be readable |
//! | `sections` | the keys, their defaults and limits: tree to [`Config`] |
//! | `checks` | what no section can see alone: addresses against teams, teams against accounts |
//! | `fault` | all that is wrong, in file order, each with a place and a next step |
//! | `show` | the effective configuration as TOML, without its secrets |
//!
//! This room does not watch files, open ports or talk to anybody.

mod checks;
mod document;
mod fault;
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
    Account, Admin, Cache, Circuit, Config, DiskCache, JobCache, Listen, Log, LogFormat, Policy, RequiredFilter, Retry,
    Server, Settled, Team, Telemetry, Tls, Upstream,
};
pub use sources::Sources;

/// Reads, merges and checks all that `sources` name.
///
/// # Errors
///
/// Every fault at once, in file order. No fault ever repeats a value, so none can hold a secret.
pub fn load(sources: &Sources) -> Result<Config, Faults> {
    let report = fault::Report::default();
    let Some(tree) = document::read(sources, &report) else {
        return Err(report.into_faults());
    };
    let config = sections::read(tree, sources, &report);
    report.finish(config)
}
