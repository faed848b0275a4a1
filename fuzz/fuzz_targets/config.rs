//! A configuration: a TOML document, and environment and flags in its comments (`#env NAME=VALUE`, `#flag key=value`).
//! It ends in a configuration or in faults. Neither shows a secret, and the shown configuration can be loaded again.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use insights_gateway::config::{self, Config, CredentialSource, SecretSource, Sources};
use insights_gateway::core::units::{Rate, Size, Span, parse_duration, parse_rate, parse_size};
use libfuzzer_sys::fuzz_target;

/// Part of every value that the seeds put where secrets belong, and elsewhere by mistake.
const CANARY: &str = "s3cret";

/// A file of this process, in memory where the machine has such a folder.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    folder.join(format!("insights-gateway-fuzz-{}.toml", std::process::id()))
});

/// The environment and the flags: names and values.
#[derive(Default)]
struct Beside {
    variables: Vec<(String, String)>,
    flags: Vec<(String, String)>,
}

impl Beside {
    fn read(text: &str) -> Self {
        let mut beside = Self::default();
        for line in text.lines() {
            let pair = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
            beside.variables.extend(line.strip_prefix("#env ").and_then(pair));
            beside.flags.extend(line.strip_prefix("#flag ").and_then(pair));
        }
        beside
    }

    fn sources(&self) -> Sources {
        let mut sources = Sources::default().with_file(&*FILE);
        for (name, value) in &self.variables {
            sources = sources.with_variable(name, value);
        }
        for (key, value) in &self.flags {
            sources = sources.with_flag(key, value);
        }
        sources
    }

    fn all(&self) -> impl Iterator<Item = &(String, String)> {
        self.variables.iter().chain(&self.flags)
    }
}

fn load(text: &str, sources: &Sources) -> Result<Config, config::Faults> {
    std::fs::write(&*FILE, text).expect("a file that can be written");
    let loaded = config::load(sources);
    let _ = std::fs::remove_file(&*FILE);
    loaded
}

/// Whether the canary is in more places than where secrets belong; then it may be shown.
fn is_elsewhere(text: &str, beside: &Beside, secrets: usize) -> bool {
    let document = text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned);
    let places = document.chain(beside.all().map(|(name, value)| format!("{name}{value}")));
    places.map(|place| place.matches(CANARY).count()).sum::<usize>() > secrets
}

fn keys(value: &toml::Value, found: &mut Vec<String>) {
    match value {
        toml::Value::Table(table) => table.iter().for_each(|(key, value)| {
            found.push(key.clone());
            keys(value, found);
        }),
        toml::Value::Array(items) => items.iter().for_each(|item| keys(item, found)),
        _ => {}
    }
}

fn has_canary_as_key(text: &str, beside: &Beside) -> bool {
    let mut found: Vec<_> = beside.all().map(|(name, _)| name.clone()).collect();
    // Inline tables among the values have keys too.
    let values = beside.all().map(|(_, value)| value.clone());
    found.extend(values.filter(|value| value.trim_start().starts_with(['{', '['])));
    match text.parse::<toml::Table>() {
        Ok(table) => keys(&toml::Value::Table(table), &mut found),
        Err(_) => return true,
    }
    found.iter().any(|key| key.to_lowercase().contains(CANARY))
}

/// A fault without the name of a file that cannot be read, which is repeated on purpose where it is surely a path.
fn without_path(fault: &str) -> &str {
    fault.split_once("this file cannot be read: ").map_or(fault, |(before, _)| before)
}

fn check_config(text: &str, beside: &Beside, config: &Config) {
    let shown = config.show();
    let table: toml::Table =
        shown.parse().unwrap_or_else(|error| panic!("the shown configuration is not TOML: {error}\n{shown}"));
    assert!(table.contains_key("accounts"));
    let mut secrets = 0;
    for account in &config.accounts {
        let (CredentialSource::ApiKey { secret: source, .. } | CredentialSource::AuthToken(source)) =
            &account.credential;
        let secret = insights_gateway_fuzz::exposed(&account.secret);
        if *source == SecretSource::Literal && secret.contains(CANARY) {
            secrets += secret.matches(CANARY).count();
        }
    }
    if secrets > 0 && !is_elsewhere(text, beside, secrets) {
        let told = [shown.as_str(), &config.warnings.join("\n"), &format!("{config:?}")].join("\n");
        assert!(!told.contains(CANARY), "a secret is shown:\n{told}");
    }

    // The shown configuration loads to the same again, except for secrets that cannot be read from it.
    let again = load(&shown, &beside.sources())
        .unwrap_or_else(|faults| panic!("the shown configuration is refused: {faults}\n{shown}"));
    assert_eq!(again.show(), shown, "the shown configuration is a different one");
}

fn check_units(text: &str) {
    if let Ok(duration) = parse_duration(text) {
        assert_eq!(parse_duration(&Span(duration).to_string()), Ok(duration));
    }
    if let Ok(size) = parse_size(text) {
        assert_eq!(parse_size(&Size(size).to_string()), Ok(size));
    }
    if let Ok(Some(rate)) = parse_rate(text) {
        assert_eq!(parse_rate(&rate.to_string()), Ok(Some(rate)));
        assert!(!Rate::period(rate).is_zero() && rate.per_second() > 0.0);
    }
}

fuzz_target!(|document: &[u8]| {
    let Ok(text) = std::str::from_utf8(document) else { return };
    if text.contains('\0') {
        return;
    }
    check_units(text);
    let beside = Beside::read(text);
    match load(text, &beside.sources()) {
        Ok(config) => check_config(text, &beside, &config),
        Err(faults) => {
            let told = faults.to_string();
            assert!(faults.count() > 0 && told.lines().count() == faults.count(), "a fault is a line:\n{told}");
            assert!(
                !told.chars().any(|c| c.is_control() && c != '\n'),
                "a fault contains a control character: {told:?}"
            );
            let told: String = told.lines().map(without_path).collect();
            assert!(!told.contains(CANARY) || has_canary_as_key(text, &beside), "a fault repeats a value:\n{told}");
        }
    }
});
