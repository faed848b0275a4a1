//! Common mistakes in configurations, for which faults and warnings say what to do.

use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, KeyPair};

use super::{Folder, Sources, account, assert_one_fault, faults_of, load, loaded};
use crate::core::clock::Clock;

const SID: &str = "AC00000000000000000000000000000001";
const KEY: &str = "SK00000000000000000000000000000002";

#[test]
fn a_text_without_quotes_gets_a_hint() {
    for line in ["filter = info", "filter = info,insights_gateway=debug", "slow = 5s", "audit = /var/log/audit.jsonl"] {
        let faults = faults_of(account(), &format!("[log]\n{line}\n"));
        assert!(faults[0].starts_with("2: not TOML: "), "{faults:?}");
        assert!(faults[0].ends_with("; write a text in quotes: key = \"value\""), "{faults:?}");
    }
    let faults = faults_of(account(), "[log]\nfilter = \"info\nhits = 1\n");
    assert!(!faults[0].contains("write a text in quotes"), "it has one: {faults:?}");
}

#[test]
fn yaml_is_recognised_and_reported_once() {
    for text in ["server:\n  open: true\n  drain: 5s\n", "---\nlog:\n  filter: info\n", "cors:\n- a\n- b\n"] {
        let faults = faults_of(account(), text);
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].starts_with("1: not TOML: ") && faults[0].contains("looks like YAML"), "{faults:?}");
    }
    let url = faults_of(account(), "[upstream]\nurl = https://insights.example\n");
    assert!(!url[0].contains("YAML") && url[0].contains("quotes"), "{url:?}");
}

#[test]
fn a_missing_file_is_named_unless_its_path_may_be_a_secret() {
    assert_one_fault(
        "[upstream]\nca_file = '/nowhere/ca.pem'",
        "2: upstream.ca_file: ",
        ": /nowhere/ca.pem: No such file",
    );
    assert_one_fault("[upstream]\nca_file = './nowhere.pem'", "2: upstream.ca_file: ", ": ./nowhere.pem: No such file");
    for secret in ["s3cr3t/Base64==", "/s3cr3tBase64==", "/s3cr3t/Base64==", "s3cr3t"] {
        let text =
            format!("[accounts.main]\naccount_sid = '{SID}'\napi_key = '{KEY}'\napi_secret = {{ file = '{secret}' }}");
        let faults = faults_of(Sources::default(), &text);
        assert!(faults[0].contains("cannot be read") && !faults[0].contains("s3cr3t"), "{faults:?}");
    }
}

#[test]
fn a_url_that_ends_in_the_version_has_its_own_message() {
    for url in ["https://insights.example/v3", "https://insights.example/V3/"] {
        assert_one_fault(&format!("[upstream]\nurl = '{url}'"), "2: upstream.url: ", "must not end in /v3");
    }
    assert_one_fault("[upstream]\nurl = 'https://insights.example/v4'", "2: upstream.url: ", "must not contain a path");
}

#[test]
fn swapped_credentials_are_recognised() {
    let with = |account_sid: &str, key: &str, secret: &str| {
        let sources = [("account_sid", account_sid), ("api_key", key), ("api_secret", secret)];
        sources.into_iter().fold(Sources::default(), |sources, (name, value)| {
            sources.with_flag(format!("accounts.main.{name}"), value)
        })
    };
    let faults = |sources: Sources| load(&sources).map(|config| config.warnings).map_err(|faults| faults.to_string());
    let swapped = faults(with(KEY, SID, "a-secret")).unwrap_err();
    assert!(swapped.starts_with("flags: accounts.main.api_key: ") && swapped.contains("swap the two"), "{swapped}");
    let swapped = faults(with(SID, "a-secret", KEY)).unwrap_err();
    assert!(swapped.contains("api_secret holds the SID of an API key") && !swapped.contains(KEY), "{swapped}");
    let warned = faults(with(KEY, KEY, "a-secret")).unwrap();
    assert!(warned.iter().any(|warning| warning.contains("this is the SID of an API key (SK…)")), "{warned:?}");
    let warned = faults(with(SID, SID, "a-secret")).unwrap();
    assert!(warned.iter().any(|warning| warning.contains("this is the SID of an account (AC…)")), "{warned:?}");
    assert!(faults(with(SID, KEY, "a-secret")).unwrap().iter().all(|warning| warning.contains("the secret itself")));
}

/// A certificate with the parameters that `change` sets, and its key.
fn certificate(folder: &Folder, name: &str, change: impl FnOnce(&mut CertificateParams)) -> (PathBuf, PathBuf) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    change(&mut params);
    let pem = params.self_signed(&key).unwrap().pem();
    (folder.write("cert.pem", pem), folder.write("key.pem", key.serialize_pem()))
}

fn tls(cert: &std::path::Path, key: &std::path::Path, more: &str) -> String {
    format!(
        "[server]\ntls = {{ cert = '{}', key = '{}' }}\n{more}\n[teams.t]\ntoken_sha256 = '{}'\n",
        cert.display(),
        key.display(),
        "a".repeat(64)
    )
}

#[test]
fn a_key_that_does_not_match_is_reported_at_the_key() {
    let (one, other) = (Folder::new(), Folder::new());
    let (cert, key) = certificate(&one, "localhost", |_| ());
    let (_, another) = certificate(&other, "localhost", |_| ());
    assert!(loaded(account(), &tls(&cert, &key, "")).warnings.is_empty());
    assert_one_fault(&tls(&cert, &another, ""), "2: server.tls.key: ", "does not belong");
    let cut = one.write("cut.pem", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n");
    let faults = faults_of(account(), &tls(&cut, &key, ""));
    assert_eq!(faults.len(), 1, "{faults:?}");
}

#[test]
fn certificates_that_clients_refuse_or_will_refuse_cause_a_warning() {
    let now = Timestamp::try_from(Clock::new().wall_now()).unwrap();
    let date = |days: i64| {
        let day = (now + SignedDuration::from_hours(24 * days)).to_zoned(jiff::tz::TimeZone::UTC);
        rcgen::date_time_ymd(day.year().into(), day.month().unsigned_abs(), day.day().unsigned_abs())
    };
    for (from, until, expected) in [
        (-30, 30, None),
        (-30, 10, Some("expires at")),
        (-30, -1, Some("expired at")),
        (5, 30, Some("not valid before")),
    ] {
        let folder = Folder::new();
        let (cert, key) = certificate(&folder, "localhost", |params| {
            (params.not_before, params.not_after) = (date(from), date(until));
        });
        let warnings = loaded(account(), &tls(&cert, &key, "")).warnings;
        match expected {
            None => assert!(warnings.is_empty(), "{warnings:?}"),
            Some(part) => {
                assert_eq!(warnings.len(), 1, "{warnings:?}");
                assert!(warnings[0].contains("server.tls.cert: ") && warnings[0].contains(part), "{warnings:?}");
            }
        }
    }
    let folder = Folder::new();
    let (cert, key) = certificate(&folder, "gateway.example", |_| ());
    let warnings = |url: &str| loaded(account(), &tls(&cert, &key, &format!("public_url = '{url}'"))).warnings;
    assert!(warnings("https://gateway.example:8443/base").is_empty());
    for url in ["https://other.example", "https://127.0.0.1:8443", "https://[::1]"] {
        let warnings = warnings(url);
        assert!(warnings.len() == 1 && warnings[0].contains("not for the host of server.public_url"), "{warnings:?}");
    }
}
