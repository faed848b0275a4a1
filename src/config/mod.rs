//! The configuration: read and checked before a port is opened.
//!
//! Values come from defaults, a TOML file, the environment and flags; each of these overrides those before it.
//! [`load`] reads them all, checks them all and reports every fault at once. No other module sees a raw string that
//! still has to be parsed.
//!
//! The path of a value, file by file:
//!
//! | file | what happens there |
//! | --- | --- |
//! | `sources` | where values may come from; the only reading of the process environment |
//! | `files` | the configuration file, read once; regular files, and whether they have changed |
//! | `document` | file, environment and flags become one tree, each value with its place |
//! | `tree`, `path`, `place` | that tree, the names of its values, and where they were written |
//! | `reader` | typed reading of that tree: a wrong type, range or key becomes a fault |
//! | `report` | what is known while it is read: places, keys, faults and warnings |
//! | `secret` | secrets, wherever they are kept, and files that must be readable or writable |
//! | `proxy` | the forward proxy to the upstream: `upstream.proxy`, or the environment's |
//! | `shared`, `store_url` | the store that replicas share: `[shared]`, and its address |
//! | `values` | what several sections have: times, URLs, hosts, hashes |
//! | `sections` | the keys, their defaults and limits: tree to [`Config`] |
//! | `settings` | [`Config`] and its sections, as all other modules see them |
//! | `checks` | what one section alone cannot check: addresses against teams, teams against accounts |
//! | `certificate` | whether the listener's certificate fits its key, the time and `server.public_url` |
//! | `exposure` | open listeners that anyone could use; at the start and at every reload |
//! | `fault`, `suggest` | all faults, in file order, each with a place and a remedy |
//! | `record` | every key that was read: value, default, where it was set; what is shown and what waits for a restart |
//! | `show` | values as TOML, without secrets |
//! | `shape` | the forms of values, for the schema |
//! | `reference` | the reference file, and its comments by key |
//! | `schema` | the JSON Schema of the file, for editors |
//!
//! This module does not watch for changes, open ports or use the network.

mod certificate;
mod checks;
mod document;
mod exposure;
mod fault;
mod files;
mod path;
mod place;
mod proxy;
mod reader;
mod record;
mod reference;
mod report;
mod schema;
mod secret;
mod sections;
mod settings;
mod shape;
mod shared;
mod show;
mod sources;
mod store_url;
mod suggest;
mod tree;
mod values;

#[cfg(test)]
mod tests;

pub use exposure::{BoundListeners, Exposure, Listener, Reach, exposures};
pub use fault::Faults;
pub use files::{Files, Fingerprint, keep_from_others};
pub use record::Record;
pub use reference::REFERENCE;
pub use schema::schema;
pub use sections::check_team_name;
pub use settings::{
    Account, Admin, Cache, Circuit, Config, CredentialSource, DiskCache, JobCache, Listen, Log, LogFormat, Policy,
    Proxies, Proxy, RequiredFilter, Retry, SecretSource, Server, Settled, Shared, Team, Telemetry, Tls, Token,
    Upstream,
};
pub use sources::Sources;
pub use store_url::{HostPort, Servers, StoreUrl};

use self::files::ConfigFile;
use self::report::Report;

/// How often files that change while they are read are read again.
const TRIES: usize = 10;

/// Reads, merges and checks all that `sources` name, in one consistent state: an old key is never combined with a new
/// secret that replaces it. The configuration file is read only once, so it may be a pipe.
///
/// # Errors
///
/// Every fault at once, in file order. No fault ever repeats a value, so none can hold a secret.
pub fn load(sources: &Sources) -> Result<Config, Faults> {
    load_from(sources, sources.file.as_deref().map(ConfigFile::read))
}

/// Checks like [`load`], but does not read secrets from files, variables or credentials: for a machine that does not
/// have them. The gateway cannot run without them, so this returns only the record and the warnings.
///
/// # Errors
///
/// As [`load`].
pub fn check_without_secrets(sources: &Sources) -> Result<(Record, Vec<String>), Faults> {
    let file = sources.file.as_deref().map(ConfigFile::read);
    let (read, files) = read(sources, file.as_ref(), Report::without_secrets());
    read.map(|config| (config.record, config.warnings)).map_err(|faults| faults.of_files(files))
}

/// Like [`load`], for a process that has loaded before. A pipe is not read again: its content is gone.
///
/// # Errors
///
/// Like [`load`]; and when the configuration file is not a regular file.
pub fn reload(sources: &Sources) -> Result<Config, Faults> {
    match sources.file.as_deref() {
        Some(path) if files::is_pipe(path) => Err(fault::of_a_pipe(path)),
        file => load_from(sources, file.map(ConfigFile::read)),
    }
}

fn load_from(sources: &Sources, mut file: Option<ConfigFile>) -> Result<Config, Faults> {
    // The other files are known only after a first read. So everything is read again until the fingerprint is the same
    // before and after. Whatever changes later then counts as a change. That holds for faults, too: a file that was
    // missing may exist by now.
    let (mut before, mut newest) = (None, Files::default());
    for _ in 0..=TRIES {
        let (read, files) = read(sources, file.as_ref(), Report::default());
        let has_changed = file.as_ref().is_some_and(ConfigFile::has_changed);
        if before == Some(files.fingerprint()) && !has_changed {
            return match read {
                Ok(config) => Ok(Config { files, ..config }),
                Err(faults) => Err(faults.of_files(files)),
            };
        }
        before = Some(files.fingerprint());
        newest = files;
        if has_changed {
            file = sources.file.as_deref().map(ConfigFile::read);
        }
    }
    Err(fault::of_unrest().of_files(newest))
}

fn read(sources: &Sources, file: Option<&ConfigFile>, report: Report) -> (Result<Config, Faults>, Files) {
    let config = document::read(sources, file, &report).map(|tree| sections::read(tree, sources, &report));
    let files = Files::now(report.watched());
    let finished = report.finish(config);
    (finished.map(|(config, warnings, record)| Config { warnings, record, ..config }), files)
}
