//! `[shared]`: the store that replicas share, and the keys that seal what is kept in it.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use secrecy::SecretString;
use zeroize::Zeroizing;

use super::path::Path;
use super::reader::{Field, Table};
use super::record::Key;
use super::report::Report;
use super::secret;
use super::settings::{SecretSource, Shared};
use super::shape::Shape;
use super::show;
use super::sources::Sources;
use super::store_url::{StoreUrl, parse_url};

/// Reads the section; `None` without `url`.
pub(super) fn read(table: &mut Table<'_>, sources: &Sources) -> Option<Shared> {
    let at_start = Key::at_start;
    let (report, path) = (table.report(), table.path().clone());
    let url = table.optional(at_start("url"), show::text, |field| field.parsed(parse_url));
    let username = table.optional(Key::from("username"), show::text, |field| field.parsed(parse_username));
    let password = password(table, sources);
    let ca_file = table.file(at_start("ca_file"));
    if let Some(file) = &ca_file {
        secret::check_pem(file, "CERTIFICATE", &path.key("ca_file"), report);
    }
    let seal = seal(table, sources);
    let prefix =
        table.value(at_start("prefix"), "insights-gateway".to_owned(), show::text, |field| field.parsed(parse_prefix));
    let timeout = Duration::from_millis(1)..=Duration::from_secs(10);
    let timeout = table.duration_within(at_start("timeout"), Duration::from_millis(100), timeout);
    let lease = Duration::from_millis(2)..=Duration::from_secs(300);
    let lease = table.duration_within(at_start("lease"), Duration::from_secs(5), lease);
    if lease <= timeout {
        let message =
            "must be longer than shared.timeout; otherwise a replica would lose a flight while it still waits";
        report.fault(&path.key("lease"), message);
    }
    let replicas = replicas(table);
    check_together(&path, url.as_ref(), report);
    Some(Shared { url: url?, username, password, ca_file, seal, prefix, timeout, lease, replicas: replicas? })
}

fn parse_username(text: &str) -> Result<String, &'static str> {
    match text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        true => Err("the name of a user must not contain white space"),
        false => Ok(text.to_owned()),
    }
}

/// Without `{`, `}` and the wildcards of ACLs, which mean something in the names of keys.
fn parse_prefix(text: &str) -> Result<String, &'static str> {
    let fits = |c: char| c.is_ascii_alphanumeric() || ".:-_".contains(c);
    match (1..=64).contains(&text.len()) && text.chars().all(fits) {
        true => Ok(text.to_owned()),
        false => Err("expected 1 to 64 letters, digits, dots, colons, dashes or underscores"),
    }
}

fn password(table: &mut Table<'_>, sources: &Sources) -> Option<SecretString> {
    let (report, path) = (table.report(), table.path().key("password"));
    let password = table.take("password").and_then(|field| secret::read(field, sources));
    let shown = password.as_ref().map(|password| show::secret(&password.source));
    table.record(Key::from("password").of(Shape::Secret), shown, None);
    let password = password?;
    secret::warn_if_written_out(&password.source, &path, report);
    Some(password.text.as_str().into())
}

/// The number of seal keys that are accepted. Each is tried on a value.
const MOST_KEYS: usize = 8;

fn seal(table: &mut Table<'_>, sources: &Sources) -> Vec<Zeroizing<[u8; 32]>> {
    let (mut shown, mut keys) = (Vec::new(), Vec::new());
    if let Some(field) = table.take("seal") {
        (shown, keys) = seal_keys(field, sources);
    }
    let shown = (!shown.is_empty()).then(|| show::secrets(&shown));
    table.record(Key::from("seal").of(Shape::Secrets), shown, None);
    keys
}

/// Where the keys are kept, and the keys. None are read where secrets are not to be read.
fn seal_keys(field: Field<'_>, sources: &Sources) -> (Vec<SecretSource>, Vec<Zeroizing<[u8; 32]>>) {
    let (report, path) = (field.report, field.path.clone());
    let (mut kept, mut keys) = (Vec::new(), Vec::new());
    let Some(entries) = field.one_or_more("a list of secrets") else { return (kept, keys) };
    if entries.is_empty() {
        report.fault(&path, "must not be empty; `openssl rand -base64 32` makes a key, or leave it out");
    }
    if entries.len() > MOST_KEYS {
        report.fault(&path, format!("at most {MOST_KEYS} keys; remove those that seal nothing any more"));
    }
    for entry in entries {
        let path = entry.path.clone();
        let Some(secret) = secret::read(entry, sources) else { continue };
        secret::warn_if_written_out(&secret.source, &path, report);
        kept.push(secret.source);
        // Only a secret that was not to be read is empty.
        if secret.text.is_empty() {
            continue;
        }
        match seal_key(&secret.text) {
            Some(key) if keys.contains(&key) => {
                report.fault(&path, "the same key is listed above; remove one of them");
            }
            Some(key) => keys.push(key),
            None => {
                report.fault(&path, "expected 32 bytes in base64, 44 characters; `openssl rand -base64 32` makes them")
            }
        }
    }
    (kept, keys)
}

fn seal_key(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    BASE64_STANDARD.decode_vec(text, &mut bytes).ok()?;
    Some(Zeroizing::new(bytes.as_slice().try_into().ok()?))
}

fn replicas(table: &mut Table<'_>) -> Option<u32> {
    let limits = 1..=10_000;
    let key = Key::at_start("replicas").of(Shape::Number(limits.clone()));
    table.optional(key, u32::to_string, |field| field.number(limits))
}

/// Checks the keys against each other. A key that was given but is wrong has been reported already.
fn check_together(path: &Path, url: Option<&StoreUrl>, report: &Report) {
    let is_given = |key: &str| report.is_given(&path.key(key));
    if !is_given("url") {
        // The others have an effect only together with the URL, but may stay when that is taken out.
        for key in ["username", "password", "ca_file", "seal"].into_iter().filter(|key| is_given(key)) {
            report.fault(&path.key(key), "has no effect without shared.url; set shared.url, or remove this key");
        }
        return;
    }
    if !is_given("replicas") {
        let message =
            "missing; set it to the number of replicas. While the store is away, each spends the rate divided by it";
        report.fault(&path.key("replicas"), message);
    }
    if is_given("username") && !is_given("password") {
        report.fault(&path.key("password"), "missing; shared.username needs one");
    }
    let Some(url) = url else { return };
    if is_given("ca_file") && !url.tls {
        report.fault(&path.key("ca_file"), "is only for TLS; use rediss:// in shared.url, or remove this key");
    }
    match (is_given("seal"), url.is_local()) {
        (false, true) => report.warn(
            &path.key("seal"),
            "not set, so the store holds responses in clear text; `openssl rand -base64 32` makes a key",
        ),
        (false, false) => report.fault(
            &path.key("seal"),
            "missing; a store on another machine gets only sealed values. `openssl rand -base64 32` makes a key",
        ),
        (true, _) => {}
    }
    if is_given("password") && !url.tls && !url.is_local() {
        report.warn(&path.key("url"), "the password crosses the network in clear text; use rediss://");
    }
}
