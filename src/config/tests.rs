//! The module as a whole: sources in, a checked configuration or all faults out.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;
use secrecy::ExposeSecret;
use tempfile::TempDir;

use super::exposure::*;
use super::fault::Report;
use super::sources::PREFIX;
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

#[test]
fn the_reference_file_is_the_defaults() {
    let with_file = load(&account().with_file(reference("gateway.toml"))).unwrap();
    let without = load(&account()).unwrap();
    assert_eq!(with_file.show(), without.show());
    assert!(with_file.warnings.is_empty());
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

/// The keys of a TOML text in its order, each with its tables.
fn keys_of(text: &str) -> Vec<String> {
    let (mut table, mut keys) = ("", Vec::new());
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            table = name;
        } else if let Some((key, _)) = line.split_once(" = ") {
            keys.push(format!("{table}.{key}"));
        }
    }
    keys
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
fn the_reference_file_has_every_key_in_the_order_of_the_record_with_its_default() {
    let text = whole_reference();
    let report = report_of(&text);
    // Keys within inline tables too.
    let document: toml::Table = text.parse().unwrap();
    for key in report.known_keys() {
        let mut steps = key.split('.');
        let first = document.get(steps.next().unwrap());
        let found = steps.try_fold(first, |value, step| {
            let (step, item) = step.split_once('[').map_or((step, false), |(step, _)| (step, true));
            let value = value?.get(step)?;
            Some(Some(if item { value.get(0)? } else { value }))
        });
        assert!(found.flatten().is_some(), "{key} is missing in config/gateway.toml");
    }
    let record = report.record_so_far();
    let recorded: Vec<_> = record.entries().iter().map(|entry| entry.path().to_string()).collect();
    assert_eq!(keys_of(&text), recorded);
    // The file shows the defaults, except for a few keys where an example is more useful.
    let is_example = |entry: &&record::Entry| entry.default.is_some() && entry.value != entry.default;
    let examples: Vec<_> = record.entries().iter().filter(is_example).map(|entry| entry.path().to_string()).collect();
    assert_eq!(
        examples,
        ["upstream.proxy", "teams.dashboards.token_sha256", "teams.dashboards.policy.require"],
        "config/gateway.toml shows other values than the defaults"
    );
    // Its only faults are missing files and folders, and that it shows both ways to sign in.
    let faults = report.into_faults().to_string();
    for fault in faults.lines() {
        let expected = ["cannot be read", "does not exist", "two ways to sign in are given"];
        assert!(expected.iter().any(|part| fault.contains(part)), "{fault}");
    }
}

#[test]
fn the_handbook_names_the_keys_that_wait_for_a_restart() {
    let page = fs::read_to_string(reference("../docs/configuration.md")).unwrap();
    let table = page.split("| key |\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let in_page: Vec<_> = table.lines().filter_map(|line| line.strip_prefix("| `")?.strip_suffix("` |")).collect();
    assert_eq!(in_page, load(&account()).unwrap().record.restart_keys());
}

#[test]
fn a_key_that_is_read_at_the_start_waits_for_a_restart() {
    let record = |text: &str| loaded(account(), text).record;
    let old = record("");
    let new = record(
        "[server]\nlisten = ['127.0.0.1:1']\ndrain = '30s'\nmax_body = '2MiB'\n[telemetry]\notlp = 'http://h'\n\
         [cache.disk]\npath = '/x'\n[log]\naccess = false\nformat = 'json'",
    );
    let differ = ["server.listen", "cache.disk.path", "log.format", "telemetry.otlp"];
    assert_eq!(new.waiting_for_restart(&old), differ);
    assert_eq!(old.waiting_for_restart(&new), differ);
    assert_eq!(new.waiting_for_restart(&new), [""; 0]);
}

#[test]
fn only_whether_there_is_tls_waits_for_a_restart() {
    let folder = Folder::new();
    let elsewhere = Folder::new();
    let (one, other) = (certificate(&folder), certificate(&elsewhere));
    let with = |(cert, key): &(PathBuf, PathBuf)| {
        let text = format!("[server]\ntls = {{ cert = '{}', key = '{}' }}", cert.display(), key.display());
        loaded(account(), &text).record
    };
    let without = loaded(account(), "").record;
    assert_eq!(with(&other).waiting_for_restart(&with(&one)), [""; 0]);
    assert_eq!(with(&one).waiting_for_restart(&without), ["server.tls"]);
    assert_eq!(without.waiting_for_restart(&with(&one)), ["server.tls"]);
}

#[test]
fn what_differs_from_the_defaults_says_where_it_was_set() {
    let folder = Folder::new();
    let text = format!("[cache]\ncapacity = '7MiB'\n[retry]\nattempts = 4\n[teams.t]\ntoken_sha256 = '{HASH}'\n");
    let file = folder.write("gateway.toml", text);
    let sources = account()
        .with_file(&file)
        .with_variable("INSIGHTS_GATEWAY_LOG__ACCESS", "false")
        .with_variable("HTTPS_PROXY", "http://egress.example:3128")
        .with_flag("server.drain", "1s");
    let file = file.display();
    let expected = format!(
        "[server]\ndrain = \"1s\" # from flags\n\n\
         [upstream]\nproxy = \"http://egress.example:3128\" # from environment: HTTPS_PROXY\n\n\
         [accounts.default]\naccount_sid = \"{SID}\" # from environment: TWILIO_ACCOUNT_SID\n\
         api_key = {{ env = \"TWILIO_API_KEY\" }} # masked, from environment: TWILIO_API_KEY\n\
         api_secret = {{ env = \"TWILIO_API_SECRET\" }} # masked, from environment: TWILIO_API_SECRET\n\n\
         [teams.t]\ntoken_sha256 = [\"{HASH}\"] # from {file}:6\n\n\
         [cache]\ncapacity = \"7MiB\" # from {file}:2\n\n\
         [log]\naccess = false # from environment: INSIGHTS_GATEWAY_LOG__ACCESS\n"
    );
    assert_eq!(load(&sources).unwrap().record.diff(), expected);
}

#[test]
fn a_check_without_secrets_reads_none_and_finds_everything_else() {
    let folder = Folder::new();
    let (cert, _) = certificate(&folder);
    let account = "api_key = { env = 'NO' }\napi_secret = { file = '/nowhere/secret' }\n";
    let text = |more: &str| format!("[accounts.main]\naccount_sid = '{SID}'\n{account}{more}");
    let check = |text: &str| check_without_secrets(&Sources::default().with_file(folder.write("gateway.toml", text)));
    let tls = format!("[server]\ntls = {{ cert = '{}', key = '/nowhere/key' }}\n", cert.display());
    let proxy = "[upstream]\nproxy = { url = 'http://user@egress:1', password = { credential = 'egress' } }\n";
    let (record, warnings) = check(&text(&format!("{tls}{proxy}"))).unwrap_or_else(|faults| panic!("{faults}"));
    assert!(warnings.is_empty(), "{warnings:?}");
    for line in [
        "api_key = { env = \"NO\" } # masked",
        "api_secret = { file = \"/nowhere/secret\" } # masked",
        "proxy = { url = \"http://user@egress:1\", password = { credential = \"egress\" } } # masked",
    ] {
        assert!(record.show().contains(line), "{line}\n{}", record.show());
    }
    // Where the account comes from the environment, it may be unknown on this machine.
    let (_, warnings) = check("").unwrap_or_else(|faults| panic!("{faults}"));
    assert!(warnings.len() == 1 && warnings[0].contains("no account is known"), "{warnings:?}");
    for (more, part) in [
        ("[cache]\ncapacity = '1'", "cache.capacity: "),
        ("auth_token = { flie = 'x' }", "auth_token.flie: "),
        ("[teams.t]\naccount = 'mian'", "did you mean main?"),
        ("[upstream]\nca_file = '/nowhere'", "upstream.ca_file: this file cannot be read"),
    ] {
        let faults = check(&text(more)).unwrap_err().to_string();
        assert!(faults.contains(part), "{more}: {faults}");
    }
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
fn faults_in_tokens_that_expire() {
    let entry = |entry: &str| format!("[teams.t]\ntoken_sha256 = [{entry}]\n");
    let at = "2: teams.t.token_sha256[0]";
    for expires in
        ["'tomorrow'", "'2999-01-31T12:00:00'", "'2999-02-30'", "'9999-12-31'", "''", "1", "true", "12:00:00"]
    {
        assert_one_fault(&entry(&format!("{{ sha256 = '{HASH}', expires = {expires} }}")), at, ".expires: ");
    }
    assert_one_fault(&entry("{ expires = '2999-01-31' }"), at, ".sha256: missing");
    assert_one_fault(&entry("{ sha256 = 'x', expires = '2999-01-31' }"), at, ".sha256: expected the SHA-256");
    assert_one_fault(&entry(&format!("{{ sha256 = '{HASH}', expire = '2999-01-31' }}")), at, "mean expires?");
    let twice = format!("'{HASH}', {{ sha256 = '{HASH}', expires = '2999-01-31' }}");
    assert_one_fault(&entry(&twice), "2: teams.t.token_sha256[1]: ", "another expiry");
    assert_eq!(loaded(account(), &entry(&format!("'{HASH}', '{HASH}'"))).teams[0].tokens.len(), 1);
}

#[test]
fn the_examples_load() {
    let folder = Folder::new();
    let secret = folder.write("twilio_api_secret", format!("{SECRET}\n"));
    for (name, teams) in [("sidecar.toml", 0), ("team.toml", 2)] {
        let text = fs::read_to_string(reference(name)).unwrap();
        let text = text.replace("/run/secrets/twilio_api_secret", &secret.display().to_string());
        let sources = Sources::default().with_variable("TWILIO_API_KEY", "SK1");
        let config = loaded(sources, &text);
        assert_eq!(config.accounts[0].secret.expose_secret(), SECRET);
        assert_eq!(config.teams.len(), teams);
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        assert!(config.files.paths().contains(&secret));
    }
}

#[test]
fn what_is_shown_loads_to_the_same() {
    let text = format!(
        "[accounts.a]\naccount_sid = '{SID}'\napi_key = {{ env = 'TWILIO_API_KEY' }}\n\
         api_secret = {{ env = 'TWILIO_API_SECRET' }}\nrate = '0/s'\n\
         [teams.t]\ntoken_sha256 = '{HASH}'\nrequests = '7/min'\noperations = ['jobs']\n\
         [teams.t.policy]\ndeny = ['A.*']\nrequire = [{{ op = 'IN', field = 'F', values = ['x\"', 'y'] }}]\n\
         [cache]\ncapacity = '3MiB'\n[circuit]\nratio = 1\n[log]\nhits = 0\n\
         [server]\nlisten = ['unix:/run/x.sock']\n"
    );
    let once = loaded(account(), &text).show();
    assert_eq!(loaded(account(), &once).show(), once);
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
fn listeners_that_make_no_sense_are_faults() {
    for (key, value) in [
        ("server.listen", "systemd:"),
        ("server.listen", "systemd:a:b"),
        ("server.listen", "systemd:a,systemd:a"),
        ("server.unix_mode", "660 "),
        ("server.unix_mode", "1777"),
        ("server.unix_mode", "rw-rw----"),
        ("server.unix_mode", "0x1b0"),
        ("server.unix_mode", "+660"),
        ("server.proxy_protocol", "10.0.0.1/8"),
        ("server.proxy_protocol", "true"),
    ] {
        assert!(load(&account().with_flag(key, value)).is_err(), "{key} = {value}");
    }
    let listen = load(&account().with_flag("server.listen", "systemd:gateway")).unwrap().server.listen;
    assert_eq!(listen, [Listen::Systemd("gateway".to_owned())]);
}

#[test]
fn a_value_that_is_not_utf8_is_a_fault_where_it_is_used() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    let bad = || OsString::from_vec(vec![0xff, 0xfe]);
    assert!(load(&account().with_variable("OTHER", bad())).is_ok());
    let faults = load(&account().with_variable("INSIGHTS_GATEWAY_LOG__FILTER", bad())).unwrap_err();
    assert!(faults.to_string().contains("environment: INSIGHTS_GATEWAY_LOG__FILTER: is not UTF-8"));
    // Variables that are not the gateway's own, where they are used.
    let proxied = || account().with_variable("HTTPS_PROXY", "http://egress.example:3128");
    for (name, sources) in [
        ("HTTPS_PROXY", account()),
        ("https_proxy", proxied()),
        ("NO_PROXY", proxied()),
        ("TWILIO_ACCOUNT_SID", Sources::default()),
        (
            "TWILIO_AUTH_TOKEN",
            Sources::default().with_variable("TWILIO_ACCOUNT_SID", "AC00000000000000000000000000000001"),
        ),
    ] {
        let faults = load(&sources.with_variable(name, bad())).unwrap_err().to_string();
        let expected = format!("environment: {name}: is not UTF-8 text");
        assert_eq!(faults.matches(&expected).count(), 1, "{name}: {faults}");
    }
    assert!(load(&account().with_variable("NO_PROXY", bad()).with_variable("TWILIO_AUTH_TOKEN", bad())).is_ok());
}

#[test]
fn faults_name_line_key_and_remedy() {
    assert_one_fault("[server]\nlistne = ['x']", "2: server.listne: unknown key", "(did you mean listen?)");
    assert_one_fault("[sever]\nopen = true", "1: sever: unknown key", "(did you mean server?)");
    assert_one_fault("[server]\ncapacity = '1MiB'", "2: server.capacity: ", "(did you mean cache.capacity?)");
    assert_one_fault("[server]\ndrain = 30", "2: server.drain: expected a duration", "");
    assert_one_fault("[server]\nopen = 'yes'", "2: server.open: expected true or false", "found text");
    assert_one_fault("server = 5", "1: server: expected a table", "found a number");
    assert_one_fault("[server]\nlisten = []", "2: server.listen: needs at least one", "");
    assert_one_fault("[server]\nlisten = 'x'", "2: server.listen: expected a list of texts", "");
    assert_one_fault("[server]\nlisten = [\n'127.0.0.1:1',\n5]", "4: server.listen[1]: expected text", "");
    assert_one_fault("[server]\nlisten = ['localhost:80']", "2: server.listen[0]: expected an IP address", "");
    assert_one_fault("[server]\nlisten = ['unix:x']", "2: server.listen[0]: ", "absolute path");
    assert_one_fault("[server]\nlisten = ['127.0.0.1:1', '127.0.0.1:1']", "2: server.listen[1]: ", "already");
    for (one, other) in [
        ("0.0.0.0:81", "[::ffff:127.0.0.1]:81"),
        ("[::ffff:127.0.0.1]:81", "0.0.0.0:81"),
        ("127.0.0.1:81", "[::ffff:127.0.0.1]:81"),
        ("[::ffff:0.0.0.0]:81", "127.0.0.1:81"),
        ("[::ffff:0.0.0.0]:81", "[::ffff:127.0.0.2]:81"),
    ] {
        let text = format!("[server]\nopen = true\nlisten = ['{one}', '{other}']");
        assert_one_fault(&text, "3: server.listen[1]: ", "already");
    }
    assert_eq!(faults_of(account(), "[server]\nopen = true\nlisten = ['[::]:81', '[::ffff:127.0.0.1]:81']"), [""; 0]);
    assert_one_fault("[server]\nlisten = ['0.0.0.0:80']", "2: server.listen[0]: ", "server.open = true");
    assert_one_fault("[server]\nlisten = ['127.0.0.1:9090']", "2: server.listen[0]: ", "admin");
    assert_one_fault("[server]\nmax_body = '65MiB'", "2: server.max_body: ", "from 1B to 64MiB");
    assert_one_fault("[server]\nmax_body = '0B'", "2: server.max_body: ", "from 1B");
    assert_one_fault("[server]\nheader_timeout = '0s'", "2: server.header_timeout: ", "longer than zero");
    assert_one_fault("[server]\nmax_connections = -1", "2: server.max_connections: must be", "1 to 1000000");
    assert_one_fault("[server]\npublic_url = 'http://a/b?c'", "2: server.public_url: ", "query");
    assert_eq!(faults_of(account(), "[server]\npublic_url = 'https://a.example/insights'"), [""; 0]);
    assert_one_fault("[admin]\nlisten = '127.0.0.1:8080'", "2: admin.listen: ", "another port");
    assert_one_fault("[admin]\nlisten = '0.0.0.0:9090'", "1: admin.token_sha256: required", "token new");
    assert_one_fault("[admin]\ntoken_sha256 = 'abc'", "2: admin.token_sha256: ", "64 hexadecimal");
    assert_one_fault("[upstream]\nurl = 'ftp://x'", "2: upstream.url: ", "http://");
    assert_one_fault("[upstream]\nurl = 'https://x/v3'", "2: upstream.url: ", "path");
    assert_one_fault("[upstream]\nurl = 'https://x?a=b'", "2: upstream.url: ", "query");
    assert_one_fault("[upstream]\nurl = 'https://u:p@x'", "2: upstream.url: ", "password");
    assert_one_fault("[upstream]\nurl = 'https://x:99999'", "2: upstream.url: ", "port");
    assert_one_fault("[upstream]\nurl = 'https://x:'", "2: upstream.url: ", "port");
    assert_one_fault("[upstream]\nca_file = '/nowhere'", "2: upstream.ca_file: ", "cannot be read");
    assert_one_fault("[cache]\ncapacity = '1KiB'", "2: cache.capacity: ", "from 1MiB");
    assert_one_fault("[retry]\nattempts = 21", "2: retry.attempts: ", "1 to 20");
    assert_one_fault("[retry]\nbudget = nan", "2: retry.budget: ", "0 to 10");
    assert_one_fault("[circuit]\nratio = 0", "2: circuit.ratio: ", "more than 0");
    assert_one_fault("[log]\nformat = 'jsno'", "2: log.format: ", "(did you mean json?)");
    assert_one_fault("[log]\nfilter = 'a=b=c'", "2: log.filter: ", "filter");
    assert_one_fault("[log]\nhits = 1.1", "2: log.hits: ", "0 to 1");
    assert_one_fault("[cache.query]\nfresh = '1y'", "2: cache.query.fresh: ", "duration");
}

#[test]
fn faults_in_accounts() {
    let account = |keys: &str| format!("[accounts.main]\naccount_sid = '{SID}'\n{keys}");
    let signed = |keys: &str| account(&format!("auth_token = {{ env = 'TWILIO_API_SECRET' }}\n{keys}"));
    assert_one_fault(&account(""), "1: accounts.main.api_key: missing", "auth_token");
    assert_one_fault(&account("api_key = 'SK1'"), "1: accounts.main.api_secret: missing", "");
    assert_one_fault(&signed("api_key = 'SK1'"), "3: accounts.main.auth_token: ", "not both");
    assert_one_fault(&signed("rate = '5'"), "4: accounts.main.rate: ", "rate such as");
    assert_one_fault(&signed("burst = 0"), "4: accounts.main.burst: ", "1 to 100000");
    assert_one_fault(
        &signed("[accounts.'a b']\nauth_token = 'x'\naccount_sid = 'x'"),
        "4: accounts.\"a b\": ",
        "letters",
    );
    assert_one_fault(&account("auth_token = {}"), "3: accounts.main.auth_token: name exactly one", "");
    assert_one_fault(&account("auth_token = { flie = 'x' }"), "3: accounts.main.auth_token.flie: ", "mean file?");
    assert_one_fault(&account("auth_token = { env = 'NO' }"), "3: accounts.main.auth_token.env: ", "not set");
    assert_one_fault(&account("auth_token = { file = '/nowhere' }"), "3: accounts.main.auth_token.file: ", "read");
    assert_one_fault(&account("auth_token = { file = '/' }"), "3: accounts.main.auth_token.file: ", "not a file");
    assert_one_fault(
        &account("auth_token = { credential = 'x' }"),
        "3: accounts.main.auth_token.credential: ",
        "LoadCredential",
    );
    assert_one_fault(
        &account("auth_token = { credential = '../x' }"),
        "3: accounts.main.auth_token.credential: ",
        "path",
    );
    assert_one_fault(&account("auth_token = ''"), "3: accounts.main.auth_token: must not be empty", "");
    assert_one_fault(
        "[accounts.main]\nauth_token = 'x'\naccount_sid = 'A:C'",
        "3: accounts.main.account_sid: ",
        "colon",
    );
    assert_one_fault("[accounts.main]\nauth_token = 'x'", "1: accounts.main.account_sid: missing", "");
}

#[test]
fn faults_in_teams() {
    let team = |keys: &str| format!("[teams.t]\ntoken_sha256 = '{HASH}'\n{keys}");
    assert_one_fault("[teams.t]", "1: teams.t.token_sha256: missing", "token new");
    assert_one_fault("[teams.t]\ntoken_sha256 = ['x']", "2: teams.t.token_sha256[0]: ", "64 hexadecimal");
    assert_one_fault(&team("account = 'defualt'"), "3: teams.t.account: no such account", "(did you mean default?)");
    assert_one_fault(&team("weight = 0"), "3: teams.t.weight: ", "1 to 1000");
    assert_one_fault(&team("operations = []"), "3: teams.t.operations: ", "empty");
    assert_one_fault(&team("operations = ['qery']"), "3: teams.t.operations[0]: ", "(did you mean query?)");
    assert_one_fault(&team("policy = { deny = ['a*b'] }"), "3: teams.t.policy.deny[0]: ", "end");
    assert_one_fault(&team("policy = { deny = [''] }"), "3: teams.t.policy.deny[0]: ", "empty");
    let dotless = loaded(account(), &team("policy = { deny = ['C.X', 'ParticipantId', 'Con*'] }"));
    let [name, prefix] = &dotless.warnings[..] else { panic!("{:?}", dotless.warnings) };
    assert!(name.contains("3: teams.t.policy.deny[1]: has no dot"), "{name}");
    assert!(prefix.contains("3: teams.t.policy.deny[2]: has no dot"), "{prefix}");
    for pattern in ["C.", ".X", "C..X", "C X", "C-X", "C.\u{e9}", "*", ".*", "C..*", "C.X\\u0000", "C:X*"] {
        let text = team(&format!("policy = {{ deny = [\"{pattern}\"] }}"));
        assert_one_fault(&text, "3: teams.t.policy.deny[0]: ", "match nothing");
    }
    assert!(loaded(account(), &team("policy = { deny = ['C.*', 'C.x_*', 'C.X.y'] }")).warnings.is_empty());
    let fields = "operations = ['query', 'fields-read']\npolicy = { deny = ['C.X'] }";
    assert_one_fault(&team(fields), "3: teams.t.operations: ", "policy");
    assert!(loaded(account(), &team("operations = ['query', 'fields-read']")).warnings.is_empty());
    let require = |filter: &str| team(&format!("policy = {{ require = [{{ {filter} }}] }}"));
    let at = "3: teams.t.policy.require[0]";
    assert_one_fault(&require("op = 'LIKE', field = 'F', values = ['v']"), at, "EQ, NE, GT, LT, IN");
    assert_one_fault(&require("op = 'EQ', values = ['v']"), at, "field: missing");
    assert_one_fault(&require("op = 'EQ', field = 'F G', values = ['v']"), at, "field: must be the name");
    assert_one_fault(&require("op = 'EQ', field = 'F'"), at, "values: missing");
    assert_one_fault(&require("op = 'IN', field = 'F', values = []"), at, "empty");
    assert_one_fault(&require("op = 'GT', field = 'F', values = ['a', 'b']"), at, "exactly one");
    assert_one_fault(&require("op = 'EQ', field = 'F', values = ['v'], x = 1"), at, ".x: unknown key");
    let again = team(&format!("[teams.u]\ntoken_sha256 = ['{}']", HASH.to_uppercase()));
    assert_one_fault(&again, "4: teams.u.token_sha256: ", "belongs to the team t");
    let local = format!("[teams.local]\ntoken_sha256 = '{HASH}'");
    assert_one_fault(&local, "1: teams.local: ", "built-in");
    let nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_one_fault(&format!("[teams.t]\ntoken_sha256 = '{nothing}'"), "2: teams.t.token_sha256: ", "empty token");
}

#[test]
fn all_faults_come_at_once_in_the_order_of_the_file() {
    let sources =
        account().with_variable("INSIGHTS_GATEWAY_CACHE_CAPACITY", "1MiB").with_flag("retry.attempts", "many");
    let faults = faults_of(sources, "[log]\nslow = 1\n[server]\ndrain = 1\nopen = 1\n[admin]\nx = 1\n");
    let starts = [
        "2: log.slow: ",
        "4: server.drain: ",
        "5: server.open: ",
        "7: admin.x: ",
        "environment: INSIGHTS_GATEWAY_CACHE_CAPACITY: unknown key (did you mean INSIGHTS_GATEWAY_CACHE__CAPACITY?)",
        "flags: retry.attempts: ",
    ];
    assert_eq!(faults.len(), starts.len(), "{faults:#?}");
    for (fault, start) in faults.iter().zip(starts) {
        assert!(fault.starts_with(start), "{fault}");
    }
}

#[test]
fn malformed_toml_is_reported_with_its_line() {
    let faults = faults_of(account(), "[server]\nopen = \n[log]\nslow = \"x\n");
    assert!(faults[0].starts_with("2: not TOML: "), "{faults:?}");
    assert!(faults.iter().any(|fault| fault.starts_with("4: not TOML: ")), "{faults:?}");
    let twice = faults_of(account(), "[server]\nopen = true\nopen = true\n");
    assert!(twice[0].starts_with("3: not TOML: "), "{twice:?}");

    let folder = Folder::new();
    let file = folder.write("latin.toml", b"# one\n# \xe9\n");
    let faults = load(&account().with_file(&file)).unwrap_err().to_string();
    assert_eq!(faults, format!("{}:2: is not UTF-8 text; save the file as UTF-8", file.display()));
    let missing = load(&account().with_file("/nowhere.toml")).unwrap_err().to_string();
    assert!(missing.starts_with("/nowhere.toml: cannot be read: "), "{missing}");
}

#[test]
fn secrets_come_from_files_variables_and_credentials() {
    let folder = Folder::new();
    let secret = folder.write("secret", format!("{SECRET}\r\n"));
    let text = |form: &str| format!("[accounts.main]\naccount_sid = '{SID}'\napi_key = 'SK1'\napi_secret = {form}\n");
    let file = loaded(Sources::default(), &text(&format!("{{ file = '{}' }}", secret.display())));
    assert_eq!(file.accounts[0].secret.expose_secret(), SECRET);
    assert!(file.files.paths().contains(&secret) && file.files.paths().len() == 2);
    assert!(file.show().contains("# masked"));

    let sources = Sources::default().with_variable("CREDENTIALS_DIRECTORY", folder.0.path());
    let credential = loaded(sources, &text("{ credential = 'secret' }"));
    assert_eq!(credential.accounts[0].secret.expose_secret(), SECRET);
    assert!(credential.files.paths().contains(&secret));

    let literal = loaded(Sources::default(), &text(&format!("'{SECRET}'")));
    assert_eq!(literal.accounts[0].secret.expose_secret(), SECRET);
    assert!(literal.show().contains("api_secret = \"********\""));
    assert!(literal.warnings[0].contains(":4: accounts.main.api_secret: the secret is written out"));
}

#[test]
fn careless_secret_files_are_faults_or_warnings() {
    let folder = Folder::new();
    let text = |path: &Path| {
        let form = format!("{{ file = '{}' }}", path.display());
        format!("[accounts.main]\naccount_sid = '{SID}'\nauth_token = {form}\n")
    };
    let careless = [
        ("empty", Vec::new(), "empty"),
        ("blank", b"\n".to_vec(), "empty"),
        ("spaces", b"  \n".to_vec(), "white space"),
        ("lines", b"a\nb\n".to_vec(), "byte 1, counted from 0, is a line end"),
        ("two ends", b"t0p5ee\n\n".to_vec(), "byte 6, counted from 0, is a line end"),
        ("bytes", vec![b'a', 0xff], "byte 1, counted from 0, is not ASCII"),
        ("mark", b"\xef\xbb\xbft0p5ee\n".to_vec(), "byte 0, counted from 0, is a byte order mark"),
        ("wide", b"\xff\xfes\0e\0".to_vec(), "UTF-16"),
        ("blank behind", b"t0p5ee \n".to_vec(), "byte 6, counted from 0, is a space"),
        ("blank before", b"\tt0p5ee".to_vec(), "byte 0, counted from 0, is a tab"),
        ("no-break", b"t0p\xc2\xa05ee".to_vec(), "byte 3, counted from 0, is a no-break space"),
        ("zero", b"t0p5ee\0".to_vec(), "byte 6, counted from 0, is a zero byte"),
        ("bare return", b"t0p5ee\r".to_vec(), "byte 6, counted from 0, is a line end"),
        ("umlaut", "t0\u{e4}p5ee".into(), "byte 2, counted from 0, is not ASCII"),
        ("large", vec![b'x'; (64 << 10) + 1], "larger than 64KiB"),
    ];
    for (name, content, part) in careless {
        let path = folder.write(name, content);
        let faults = faults_of(Sources::default(), &text(&path));
        assert!(faults.len() == 1 && faults[0].contains(part), "{name}: {faults:?}");
        assert!(!faults[0].contains("5ee"), "{name}: {faults:?}");
    }
    // The same holds for secrets from other places.
    for form in ["\"t0p5ee\\u00a0\"", "{ env = 'ODD' }"] {
        let text = format!("[accounts.main]\naccount_sid = '{SID}'\nauth_token = {form}\n");
        let faults = faults_of(Sources::default().with_variable("ODD", "t0p5ee\u{a0}"), &text);
        assert!(faults.len() == 1 && faults[0].contains("byte 6, counted from 0"), "{form}: {faults:?}");
    }
    let open = folder.write("open", SECRET);
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    let config = loaded(Sources::default(), &text(&open));
    assert!(config.warnings[0].contains("every user of this machine"), "{:?}", config.warnings);
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
    let held =
        |data: &[Listener], admin: &str| Held { data: data.to_vec(), admin: vec![listener(admin)], ..Held::default() };
    let found = |text: &str, held: &Held| {
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
    let asking = Held { tls: true, client_ca: true, ..local.clone() };
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

#[test]
fn absurd_depth_is_a_fault_and_no_overflow() {
    let nested = "[".repeat(200_000);
    assert!(!faults_of(account(), &format!("[server]\nlisten = {nested}")).is_empty());
    assert!(!faults_of(account(), &format!("a{}= 1", ".a".repeat(200_000))).is_empty());
    assert!(load(&account().with_variable("INSIGHTS_GATEWAY_SERVER__LISTEN", nested)).is_err());
    let name = format!("INSIGHTS_GATEWAY_{}", "A__".repeat(50_000));
    assert!(load(&account().with_variable(name, "1")).is_err());
}

#[test]
fn nothing_that_can_be_printed_holds_the_secret() {
    let sources = account().with_flag("accounts.other.auth_token", SECRET);
    assert!(!format!("{sources:?}").contains(SECRET));
    let config = load(&account()).unwrap();
    assert!(!format!("{config:?}").contains(SECRET));
    assert!(!config.show().contains(SECRET));
}

/// Keys of every type, so that a secret lands wherever a person could drop it.
fn any_key() -> impl Strategy<Value = (&'static str, &'static str)> {
    prop::sample::select(vec![
        ("server", "listen"),
        ("server", "open"),
        ("server", "drain"),
        ("server", "public_url"),
        ("server.tls", "cert"),
        ("admin", "listen"),
        ("admin", "token_sha256"),
        ("upstream", "url"),
        ("accounts.main", "account_sid"),
        ("accounts.main", "api_key"),
        ("accounts.main", "api_secret"),
        ("accounts.main", "rate"),
        ("accounts.main.api_secret", "file"),
        ("accounts.main.api_secret", "credential"),
        ("teams.t", "token_sha256"),
        ("teams.t", "operations"),
        ("teams.t.policy", "require"),
        ("retry", "attempts"),
        ("shared", "url"),
        ("shared", "username"),
        ("shared", "password"),
        ("shared", "seal"),
        ("shared", "prefix"),
        ("log", "format"),
        ("unknown", "key"),
    ])
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "\\PC*|(\\[?[a-z.]{0,9}\\]?( ?= ?[\"'\\[{a-z0-9]{0,5})?\n){0,9}") {
        let _ = faults_of(account(), &text);
    }

    #[test]
    fn arbitrary_variables_never_panic(name in "[A-Z_]{0,30}", value in "\\PC*") {
        let _ = load(&account().with_variable(format!("{PREFIX}{name}"), value));
    }

    #[test]
    fn a_planted_secret_is_never_in_a_fault((table, key) in any_key(), shape in 0usize..5) {
        let value = [
            format!("'{SECRET}'"),
            format!("['{SECRET}']"),
            format!("{{ env = '{SECRET}' }}"),
            format!("[{{ op = '{SECRET}', field = 'x', values = ['{SECRET}'] }}]"),
            format!("'http://u:{SECRET}@host/{SECRET}?{SECRET}'"),
        ];
        let text = format!("[{table}]\n{key} = {}\n", value[shape]);
        let faults = faults_of(Sources::default(), &text).join("\n");
        prop_assert!(!faults.contains(SECRET), "{}", faults);
        let broken = faults_of(Sources::default(), text.trim_end_matches(['\'', ']', '}', ' ', '\n'])).join("\n");
        prop_assert!(!broken.contains(SECRET), "{}", broken);
        let variable = format!("{PREFIX}{}__{}", table.replace('.', "__"), key).to_uppercase();
        let faults = load(&Sources::default().with_variable(variable, &value[shape][1..value[shape].len() - 1]));
        prop_assert!(!faults.map(|config| config.show()).unwrap_or_else(|f| f.to_string()).contains(SECRET));
    }
}
