//! The JSON Schema of the configuration file, made from the keys that the reader declares. Draft 7, because most editors support
//! it.

use serde_json::{Value, json};

use super::document;
use super::record::{Entry, Record};
use super::reference;
use super::report::Report;
use super::sections;
use super::sources::Sources;

/// The name that stands for any account or team in the schema.
const NAME: &str = "NAME";
/// The names of the account and the team in the reference file.
const NAMES_IN_REFERENCE: [&str; 2] = ["main", "dashboards"];
/// The pattern for names of accounts and teams.
const NAMES: &str = "^[A-Za-z0-9_-]{1,64}$";

/// The schema as indented JSON, with the reference's comments as descriptions. It has every key, and the forms and
/// limits of values. Faults that depend on other keys or on the machine are found only by `check`.
pub fn schema() -> String {
    let mut root = table();
    root["$schema"] = "http://json-schema.org/draft-07/schema#".into();
    root["title"] = "Configuration of insights-gateway".into();
    for entry in record().entries() {
        add(&mut root, entry);
    }
    describe(&mut root);
    format!("{root:#}\n")
}

/// The record of a configuration with one account and one team, so that all keys are read. The account has all credentials.
fn record() -> Record {
    let account = ["account_sid", "api_key", "api_secret", "auth_token"].map(|key| format!("accounts.{NAME}.{key}"));
    let team = format!("teams.{NAME}.weight");
    let sources = account.iter().chain([&team]).fold(Sources::default(), |all, key| all.with_flag(key, "1"));
    // Faults do not matter: the key of a faulty value is recorded too.
    let report = Report::without_secrets();
    if let Some(tree) = document::read(&sources, None, &report) {
        sections::read(tree, &sources, &report);
    }
    report.record_so_far()
}

fn table() -> Value {
    json!({ "type": "object", "additionalProperties": false, "properties": {} })
}

/// The schema of tables whose keys are names that the user chooses.
fn named() -> Value {
    json!({ "type": "object", "propertyNames": { "pattern": NAMES }, "additionalProperties": table() })
}

/// Adds a key, and the tables around it.
fn add(root: &mut Value, entry: &Entry) {
    let mut keys: Vec<&str> = entry.path().keys().collect();
    let last = keys.pop().unwrap_or_default();
    let around = keys.into_iter().fold(root, |around, key| match key {
        NAME => {
            if !around["additionalProperties"].is_object() {
                *around = named();
            }
            &mut around["additionalProperties"]
        }
        key => {
            let inner = &mut around["properties"][key];
            if inner.is_null() {
                *inner = table();
            }
            inner
        }
    });
    let mut value = entry.shape.schema();
    if let Some(default) = entry.default.as_deref().filter(|_| entry.shape.has_fixed_default()).and_then(json_of) {
        value["default"] = default;
    }
    if entry.is_read_at_start() {
        value["description"] = "A change waits for a restart.".into();
    }
    around["properties"][last] = value;
}

/// Converts a value from TOML.
fn json_of(toml: &str) -> Option<Value> {
    let mut document: toml::Table = format!("value = {toml}").parse().ok()?;
    serde_json::to_value(document.remove("value")?).ok()
}

/// Adds the reference's comments.
fn describe(root: &mut Value) {
    for (path, comment) in reference::comments() {
        let place = path.split('.').try_fold(&mut *root, |around, key| match NAMES_IN_REFERENCE.contains(&key) {
            true => around.get_mut("additionalProperties"),
            false => around.get_mut("properties")?.get_mut(key),
        });
        if let Some(place) = place {
            let more = place["description"].as_str().map_or_else(String::new, |more| format!(" {more}"));
            place["description"] = format!("{comment}{more}").into();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::super::tests::known_keys_of_the_reference;
    use super::*;

    #[test]
    fn the_schema_file_is_current() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/gateway.schema.json");
        let written = fs::read_to_string(file).unwrap();
        assert!(written == schema(), "renew it: insights-gateway schema > config/gateway.schema.json");
    }

    /// All properties, as dotted paths without indices of lists. Properties of tables that may be written as a text
    /// instead are left out.
    fn properties(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
        let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        for (key, schema) in schema["properties"].as_object().into_iter().flatten() {
            found.insert(below(key));
            properties(schema, &below(key), found);
        }
        if schema["additionalProperties"].is_object() {
            properties(&schema["additionalProperties"], &below(NAME), found);
        }
        if schema["items"].is_object() {
            properties(&schema["items"], path, found);
        }
    }

    #[test]
    fn the_schema_has_the_keys_that_are_read_and_no_others() {
        let mut found = BTreeSet::new();
        properties(&serde_json::from_str(&schema()).unwrap(), "", &mut found);
        let read = known_keys_of_the_reference().into_iter().map(|key| {
            let keys = key.split('.').map(|key| key.split('[').next().unwrap());
            let names = keys.map(|key| if NAMES_IN_REFERENCE.contains(&key) { NAME } else { key });
            names.collect::<Vec<_>>().join(".")
        });
        assert_eq!(read.collect::<BTreeSet<_>>(), found);
    }

    #[test]
    fn every_key_is_described() {
        fn undescribed(schema: &Value, path: &str, found: &mut Vec<String>) {
            for (key, schema) in schema["properties"].as_object().into_iter().flatten() {
                let path = format!("{path}.{key}");
                // Keys of one kind are described together, by the comment of their table.
                let is_of_a_kind = [".cache.", ".server.tls."].iter().any(|table| path.starts_with(table));
                if schema["type"] != "object" && schema["description"].is_null() && !is_of_a_kind {
                    found.push(path.clone());
                }
                undescribed(schema, &path, found);
            }
        }
        let schema: Value = serde_json::from_str(&schema()).unwrap();
        let mut found = Vec::new();
        undescribed(&schema, "", &mut found);
        for named in ["accounts", "teams"] {
            undescribed(&schema["properties"][named]["additionalProperties"], named, &mut found);
        }
        assert_eq!(found, Vec::<String>::new());
    }
}
