//! The reference file, the examples, and the pages that name keys.

use super::*;

#[test]
fn the_reference_file_is_the_defaults() {
    let with_file = load(&account().with_file(reference("gateway.toml"))).unwrap();
    let without = load(&account()).unwrap();
    assert_eq!(with_file.show(), without.show());
    assert!(with_file.warnings.is_empty());
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
