//! The module as a whole: sources in, a checked configuration or all faults out.

mod fault_tests;
mod hints_tests;
mod record_tests;
mod reference_tests;
mod secret_tests;
mod shared_tests;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;
use secrecy::ExposeSecret;
use tempfile::TempDir;

use super::exposure::*;
use super::path::PREFIX;
use super::report::Report;
use super::*;
use crate::core::network::Network;
use crate::core::units::Rate;

const SECRET: &str = "planted-s3cret-that-nobody-may-see";
const SID: &str = "AC0123456789abcdef0123456789abcdef";
const HASH: &str = "ef92b778bafe771e89245b89ecbc08a44a4e166c06659911881f383d4473e94f";

/// A folder with files in it.
pub(super) struct Folder(TempDir);

impl Folder {
    pub(super) fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub(super) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }
}

/// A certificate for loopback, and its key.
fn certificate(folder: &Folder) -> (PathBuf, PathBuf) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    (folder.write("cert", params.self_signed(&key).unwrap().pem()), folder.write("key", key.serialize_pem()))
}

pub(super) fn account() -> Sources {
    Sources::default()
        .with_variable("TWILIO_ACCOUNT_SID", SID)
        .with_variable("TWILIO_API_KEY", "SK1")
        .with_variable("TWILIO_API_SECRET", SECRET)
}

/// The faults of loading `text` as a file, each without the file's name.
pub(super) fn faults_of(sources: Sources, text: &str) -> Vec<String> {
    let folder = Folder::new();
    let file = folder.write("gateway.toml", text);
    let prefix = format!("{}:", file.display());
    match load(&sources.with_file(file)) {
        Ok(_) => Vec::new(),
        Err(faults) => {
            let lines = faults.to_string();
            lines.lines().map(|line| line.replace(&prefix, "")).collect()
        }
    }
}

#[track_caller]
pub(super) fn assert_one_fault(text: &str, start: &str, part: &str) {
    let faults = faults_of(account(), text);
    assert_eq!(faults.len(), 1, "{text}\n{faults:#?}");
    assert!(faults[0].starts_with(start) && faults[0].contains(part), "{}", faults[0]);
}

pub(super) fn loaded(sources: Sources, text: &str) -> Config {
    let folder = Folder::new();
    let file = folder.write("gateway.toml", text);
    load(&sources.with_file(file)).unwrap_or_else(|faults| panic!("{faults}"))
}

fn reference(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)
}

#[test]
fn an_account_in_the_environment_is_enough() {
    let config = load(&account()).unwrap();
    let [account] = config.accounts.as_slice() else {
        panic!("one account");
    };
    assert_eq!((account.name.as_str(), account.username.as_str()), ("default", "SK1"));
    assert_eq!(account.secret.expose_secret(), SECRET);
    assert_eq!(account.rate, Rate::new(5, Duration::from_secs(1)));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    assert!(config.files.paths().is_empty());

    let sources = Sources::default()
        .with_variable("TWILIO_ACCOUNT_SID", SID)
        .with_variable("TWILIO_API_KEY", "")
        .with_variable("TWILIO_AUTH_TOKEN", SECRET);
    let config = load(&sources).unwrap();
    assert_eq!(config.accounts[0].username, SID);
    assert_eq!(
        config.accounts[0].credential,
        CredentialSource::AuthToken(SecretSource::Env("TWILIO_AUTH_TOKEN".into()))
    );
}

#[test]
fn no_account_says_what_to_set() {
    let faults = load(&Sources::default()).unwrap_err().to_string();
    assert!(faults.starts_with("environment: accounts: no account is known; "), "{faults}");
    assert!(faults.contains("TWILIO_ACCOUNT_SID"), "{faults}");
    let half = Sources::default().with_variable("TWILIO_ACCOUNT_SID", SID);
    let faults = load(&half).unwrap_err().to_string();
    assert!(faults.contains("TWILIO_ACCOUNT_SID alone"), "{faults}");
}

#[test]
fn the_environment_may_tune_the_account_of_the_sdk_variables() {
    let sources = account().with_variable("INSIGHTS_GATEWAY_ACCOUNTS__DEFAULT__RATE", "2/s");
    let config = load(&sources).unwrap();
    assert_eq!(config.accounts[0].rate, Rate::new(2, Duration::from_secs(1)));
    assert_eq!(config.accounts[0].username, "SK1");
}

/// The reference file with every optional key enabled.
fn whole_reference() -> String {
    let text = fs::read_to_string(reference("gateway.toml")).unwrap();
    let switch_on = |line: &str| match line.strip_prefix('#') {
        Some(key) if key.starts_with(|c: char| c != ' ') => key.to_owned(),
        _ => line.to_owned(),
    };
    text.lines().map(switch_on).collect::<Vec<_>>().join("\n")
}

/// The report on `text`.
fn report_of(text: &str) -> Report {
    let folder = Folder::new();
    let sources = Sources::default().with_file(folder.write("gateway.toml", text));
    let report = Report::without_secrets();
    let file = sources.file.as_deref().map(super::files::ConfigFile::read);
    let tree = document::read(&sources, file.as_ref(), &report).unwrap();
    sections::read(tree, &sources, &report);
    report
}

/// The keys that the reader knows after it has read the whole reference, including keys of inline tables.
pub(super) fn known_keys_of_the_reference() -> Vec<String> {
    report_of(&whole_reference()).known_keys()
}

#[test]
fn tokens_may_expire() {
    let other = HASH.replace('e', "a");
    let tokens = |entries: &str| loaded(account(), &format!("[teams.t]\ntoken_sha256 = {entries}\n"));
    let expires = |entry: &str| {
        let config = tokens(&format!("['{other}', {{ sha256 = '{HASH}', expires = {entry} }}]"));
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        assert_eq!(loaded(account(), &config.show()).teams[0].tokens, config.teams[0].tokens);
        let [without, with] = config.teams[0].tokens[..] else { panic!("two tokens") };
        assert_eq!(without.expires, None);
        with.expires.unwrap().to_string()
    };
    assert_eq!(expires("'2999-01-31T12:00:00Z'"), "2999-01-31T12:00:00Z");
    assert_eq!(expires("'2999-01-31T12:00:00+02:00'"), "2999-01-31T10:00:00Z");
    assert_eq!(expires("2999-01-31T12:00:00Z"), "2999-01-31T12:00:00Z");
    for date in ["'2999-01-31'", "2999-01-31"] {
        assert_eq!(expires(date), "2999-02-01T00:00:00Z", "the end of that day");
    }
    let now = Timestamp::try_from(crate::core::clock::Clock::new().wall_now()).unwrap();
    let warnings = |expires: Timestamp| tokens(&format!("{{ sha256 = '{HASH}', expires = '{expires}' }}")).warnings;
    let hours = jiff::SignedDuration::from_hours;
    assert!(warnings(now - hours(1))[0].contains(":2: teams.t.token_sha256: this token has expired"));
    assert!(warnings(now + hours(13 * 24))[0].contains("this token expires at "));
    assert!(warnings(now + hours(15 * 24)).is_empty());
}

#[test]
fn flags_beat_the_environment_and_that_beats_the_file() {
    let file = "[cache]\ncapacity = '1MiB'\n[retry]\nattempts = 2\nbudget = 0.1\n";
    let sources = account()
        .with_variable("INSIGHTS_GATEWAY_CACHE__CAPACITY", "2MiB")
        .with_variable("INSIGHTS_GATEWAY_RETRY__ATTEMPTS", "3")
        .with_variable("INSIGHTS_GATEWAY_CONFIG", "elsewhere.toml")
        .with_variable("INSIGHTS_GATEWAY_ADMIN_TOKEN", "not a key either")
        .with_variable("INSIGHTS_GATEWAY_LOG__FILTER", "")
        .with_flag("cache.capacity", "3MiB");
    let config = loaded(sources, file);
    assert_eq!(config.cache.capacity, 3 << 20);
    assert_eq!(config.retry.attempts, 3);
    assert_eq!(config.retry.budget, 0.1);
    assert_eq!(config.log.filter, "info");
}

#[test]
fn the_environment_speaks_every_type() {
    let sources = Sources::default()
        .with_variable("INSIGHTS_GATEWAY_SERVER__LISTEN", "[::1]:8080, unix:/run/x.sock")
        .with_variable("INSIGHTS_GATEWAY_SERVER__MAX_BODY", "2MiB")
        .with_variable("INSIGHTS_GATEWAY_SERVER__OPEN", "true")
        .with_variable("INSIGHTS_GATEWAY_SERVER__UNIX_MODE", "0660")
        .with_variable("INSIGHTS_GATEWAY_SERVER__PROXY_PROTOCOL", "10.0.0.0/8, unix")
        .with_variable("INSIGHTS_GATEWAY_CIRCUIT__RATIO", "1")
        .with_variable("INSIGHTS_GATEWAY_LOG__FILTER", "\"warn\"")
        .with_variable("INSIGHTS_GATEWAY_ACCOUNTS__MAIN__ACCOUNT_SID", SID)
        .with_variable("INSIGHTS_GATEWAY_ACCOUNTS__MAIN__API_KEY", "SK1")
        .with_variable("INSIGHTS_GATEWAY_ACCOUNTS__MAIN__API_SECRET", "{ env = \"MINE\" }")
        .with_variable("MINE", SECRET)
        .with_variable("INSIGHTS_GATEWAY_TEAMS__DATA__TOKEN_SHA256", HASH)
        .with_variable("INSIGHTS_GATEWAY_TEAMS__DATA__POLICY__DENY", "A,B*")
        .with_variable("INSIGHTS_GATEWAY_TEAMS__DATA__POLICY__REQUIRE", "[{ op = 'EQ', field = 'F', values = ['v'] }]");
    let config = load(&sources).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(config.server.listen, [Listen::Tcp("[::1]:8080".parse().unwrap()), Listen::Unix("/run/x.sock".into())]);
    assert!(config.server.open);
    assert_eq!(config.server.unix_mode, 0o660);
    assert_eq!(config.server.proxy_protocol.networks, [Network::parse("10.0.0.0/8").unwrap()]);
    assert!(config.server.proxy_protocol.unix);
    assert_eq!(config.circuit.ratio, 1.0);
    assert_eq!(config.log.filter, "warn");
    assert_eq!(config.accounts[0].secret.expose_secret(), SECRET);
    assert_eq!(config.teams[0].account, "main");
    assert_eq!(config.teams[0].policy.deny, ["A", "B*"]);
    assert_eq!(config.teams[0].policy.require[0].values, ["v"]);
}

#[test]
fn clear_text_to_a_distant_upstream_and_odd_sids_are_warnings() {
    let warnings = |text: &str| loaded(account(), text).warnings;
    assert!(warnings("[upstream]\nurl = 'http://twin.internal:4010'")[0].contains(":2: upstream.url: "));
    assert!(warnings("[upstream]\nurl = 'http://127.0.0.1:4010'").is_empty());
    assert!(warnings("[upstream]\nurl = 'http://[::1]:4010/'").is_empty());
    assert!(warnings("[server]\nopen = true\nlisten = ['0.0.0.0:80']")[0].contains("anyone"));
    let odd = "[accounts.a]\naccount_sid = 'test'\nauth_token = { env = 'TWILIO_API_SECRET' }";
    assert!(warnings(odd)[0].contains("does not look like"));
}

#[test]
fn origins_are_exact() {
    let config = loaded(account(), "[server]\ncors = ['https://A.example:443', 'http://localhost:3000']");
    assert!(config.show().contains("cors = [\"https://a.example\", \"http://localhost:3000\"]"), "{}", config.show());
    for origin in ["*", "https://*.example", "https://a.example/", "https://a.example/x", "null", "a.example"] {
        assert_one_fault(&format!("[server]\ncors = ['https://b.example', '{origin}']"), "2: server.cors[1]: ", "");
    }
}

#[test]
fn what_is_held_counts_and_not_what_is_named() {
    let listener = |address: &str| Listener { address: address.into(), reach: Reach::of(address.parse().unwrap()) };
    let unix = Listener { address: "unix:/run/a.sock".into(), reach: Reach::Unix };
    let held = |data: &[Listener], admin: &str| BoundListeners {
        data: data.to_vec(),
        admin: vec![listener(admin)],
        ..BoundListeners::default()
    };
    let found = |text: &str, held: &BoundListeners| {
        let exposures = exposures(&loaded(account(), text), held);
        exposures.iter().map(|exposure| exposure.key.join(".")).collect::<Vec<_>>()
    };
    let local =
        held(&[listener("127.0.0.1:80"), listener("[::1]:80"), listener("[::ffff:127.0.0.1]:80"), unix], "127.9.9.9:1");
    assert_eq!(found("", &local), [""; 0]);
    let team = format!("[teams.t]\ntoken_sha256 = '{HASH}'\n");
    for address in ["0.0.0.0:80", "[::]:80", "10.0.0.1:80", "[::ffff:10.0.0.1]:80"] {
        let wide = held(&[listener("127.0.0.1:80"), listener(address)], "127.0.0.1:1");
        assert_eq!(found("", &wide), ["server.listen"], "{address}");
        assert_eq!(found("[server]\nlisten = ['127.0.0.1:80']", &wide), ["server.listen"], "{address}");
        assert_eq!(found("[server]\nopen = true", &wide), [""; 0]);
        assert_eq!(found(&team, &wide), [""; 0]);
        let admin = held(&[listener("127.0.0.1:80")], address);
        assert_eq!(found(&team, &admin), ["admin.token_sha256"], "{address}");
        assert_eq!(found(&format!("[admin]\ntoken_sha256 = '{HASH}'"), &admin), [""; 0]);
        assert_eq!(found("", &held(&[listener(address)], address)), ["server.listen", "admin.token_sha256"]);
    }
    // Certificates alone say who gets in, where there are no teams.
    let asking = BoundListeners { tls: true, client_ca: true, ..local.clone() };
    assert_eq!(found("", &asking), ["server.tls.client_ca"]);
    assert_eq!(found("[server]\nopen = true", &asking), ["server.tls.client_ca"]);
    assert_eq!(found(&team, &asking), [""; 0]);
    let folder = Folder::new();
    let (cert, key) = certificate(&folder);
    let (cert, key) = (cert.display(), key.display());
    let tls = format!("[server]\ntls = {{ cert = '{cert}', key = '{key}', client_ca = '{cert}' }}\n");
    assert_eq!((found(&tls, &asking), found(&tls, &local)), (Vec::new(), vec!["server.tls.client_ca".to_owned()]));
    assert_eq!(found(&format!("{tls}{team}"), &local), [""; 0]);
}

#[test]
fn tls_files_must_be_pem_and_are_watched() {
    let folder = Folder::new();
    let (cert, key) = certificate(&folder);
    let text = |cert: &Path, key: &Path| {
        let (cert, key) = (cert.display(), key.display());
        format!("[server]\ntls = {{ cert = '{cert}', key = '{key}', client_ca = '{cert}' }}\n[teams.t]\n")
    };
    let config = loaded(account(), &text(&cert, &key));
    assert!([&cert, &key].iter().all(|file| config.files.paths().contains(file)));
    assert_one_fault(&text(&cert, &cert), "2: server.tls.key: ", "PRIVATE KEY");
    assert_one_fault("[server.tls]", "1: server.tls: needs both", "");
    let faults = faults_of(account(), &text(Path::new("/nowhere"), &key));
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(faults[0].starts_with("2: server.tls.cert: this file cannot be read: "), "{faults:?}");
}
