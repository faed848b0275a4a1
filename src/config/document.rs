//! Joins file, environment and flags into one tree of values, each with its place.
//!
//! Only TOML itself is interpreted here. Values from the environment and from flags stay raw text until a reader says
//! which type the key needs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use zeroize::Zeroizing;

use super::files::{ConfigFile, LARGEST_FILE};
use super::path::{PREFIX, Path};
use super::place::Place;
use super::report::Report;
use super::sources::{NOT_TEXT, Sources, Variable};
use super::tree::{Node, Value};

/// Variables of the command line that are not keys: the file itself, and the tokens for asking a gateway.
const NO_KEYS: [&str; 3] = ["INSIGHTS_GATEWAY_CONFIG", "INSIGHTS_GATEWAY_ADMIN_TOKEN", "INSIGHTS_GATEWAY_TOKEN"];
/// The deepest key has four parts. This limit keeps absurd variable names from building large trees.
const DEEPEST: usize = 8;
/// Tables with exactly one member: a stronger source replaces the whole table.
const ONE_OF: [&str; 5] = ["api_key", "api_secret", "auth_token", "password", "seal"];

/// Joins all sources into one tree; `None` where the file could not be read or is not TOML, because all other faults
/// would then be guesses.
pub(super) fn read(sources: &Sources, file: Option<&ConfigFile>, report: &Report) -> Option<Node> {
    let mut tree = match file {
        Some(file) => read_file(file, report)?,
        None => Node { value: Value::Table(BTreeMap::new()), place: Place::Environment(None) },
    };
    add_environment(&mut tree, sources, report);
    for (key, value) in &sources.flags {
        let path: Vec<String> = key.split('.').map(str::to_owned).collect();
        add(&mut tree, &path, value, &Place::Flags, report);
    }
    add_sdk_variables(&mut tree, sources, report);
    report.locate(&tree);
    Some(tree)
}

fn read_file(file: &ConfigFile, report: &Report) -> Option<Node> {
    let name: Arc<str> = file.path().display().to_string().into();
    let refuse = |place, message: String| {
        report.fault_at(place, Path::default(), message);
        None
    };
    if file.can_be_watched() {
        report.watch(file.path());
    }
    let bytes = match file.content() {
        Ok(bytes) => bytes,
        Err(error) => {
            let message = format!("cannot be read: {error}; check the path given with --config");
            return refuse(Place::File(name), message);
        }
    };
    if bytes.len() as u64 > LARGEST_FILE {
        return refuse(Place::File(name), "is larger than 1MiB; is this the right file?".into());
    }
    let lines = Lines::of(bytes, &name);
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let place = lines.place(error.valid_up_to());
            return refuse(place, "is not UTF-8 text; save the file as UTF-8".into());
        }
    };
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        let value = table_value(table.into_inner(), &lines);
        let place = lines.place(0);
        return Some(Node { value, place });
    }
    // The TOML parser may report one mistake several times. The first message about a line is the useful one.
    let mut reported = Vec::new();
    for error in &errors {
        let at = error.span().map_or(text.len(), |span| span.start);
        let (place, line) = (lines.place(at), line_at(text, at));
        if reported.contains(&place) {
            continue;
        }
        let remedy = match () {
            () if is_yaml(line) => {
                "; this looks like YAML, and the file is TOML: [section] on a line of its own, then key = \"value\""
            }
            () if is_unquoted(line) => "; write a text in quotes: key = \"value\"",
            () => "",
        };
        report.fault_at(place.clone(), Path::default(), format!("not TOML: {}{remedy}", error.message()));
        if is_yaml(line) {
            // Later lines are YAML as well.
            break;
        }
        reported.push(place);
    }
    None
}

/// The line that contains the byte at this offset.
fn line_at(text: &str, at: usize) -> &str {
    let at = at.min(text.len());
    let (before, behind) = (text.get(..at).unwrap_or_default(), text.get(at..).unwrap_or_default());
    let begins = before.rfind('\n').map_or(0, |end| end + 1);
    let ends = at + behind.find('\n').unwrap_or(behind.len());
    text.get(begins..ends).unwrap_or_default()
}

/// `key:` or `key: value`, and `---`.
fn is_yaml(line: &str) -> bool {
    let is_key =
        |key: &str| !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    let line = line.trim();
    let pair = line.trim_start_matches("- ").split_once(':');
    line == "---" || pair.is_some_and(|(key, rest)| is_key(key) && (rest.is_empty() || rest.starts_with(' ')))
}

/// `key = value` with a value that is no TOML number, boolean, date, array or table.
fn is_unquoted(line: &str) -> bool {
    let Some((_, value)) = line.split_once('=') else { return false };
    let value = value.split('#').next().unwrap_or_default().trim();
    !value.is_empty() && !value.starts_with(['"', '\'', '[', '{']) && DeValue::parse(value).is_err()
}

/// Offsets to line numbers.
struct Lines<'a> {
    file: &'a Arc<str>,
    breaks: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn of(bytes: &[u8], file: &'a Arc<str>) -> Self {
        let breaks = (0..).zip(bytes).filter(|(_, b)| **b == b'\n').map(|(at, _)| at);
        Self { file, breaks: breaks.collect() }
    }

    fn place(&self, offset: usize) -> Place {
        let line = self.breaks.partition_point(|at| *at < offset) + 1;
        Place::Line(Arc::clone(self.file), line)
    }
}

fn table_value(table: DeTable<'_>, lines: &Lines<'_>) -> Value {
    let entry = |(key, value): (Spanned<_>, Spanned<DeValue<'_>>)| {
        let place = lines.place(key.span().start);
        let value = toml_value(value.into_inner(), &|table| table_value(table, lines), &|span| lines.place(span));
        let key: std::borrow::Cow<'_, str> = key.into_inner();
        (key.into_owned(), Node { value, place })
    };
    Value::Table(table.into_iter().map(entry).collect())
}

/// Converts `value`. `table` converts tables, and `place` converts offsets.
fn toml_value<'i>(value: DeValue<'i>, table: &dyn Fn(DeTable<'i>) -> Value, place: &dyn Fn(usize) -> Place) -> Value {
    match value {
        DeValue::String(text) => Value::Text(Zeroizing::new(text.into_owned())),
        DeValue::Integer(number) => {
            let number = i128::from_str_radix(number.as_str(), number.radix());
            // An overflow in either direction becomes a value outside of every limit.
            Value::Integer(number.unwrap_or(i128::MAX))
        }
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(value) => Value::Boolean(value),
        DeValue::Datetime(date) => Value::Datetime(date.to_string()),
        DeValue::Array(items) => Value::List(
            items
                .into_iter()
                .map(|item| Node {
                    place: place(item.span().start),
                    value: toml_value(item.into_inner(), table, place),
                })
                .collect(),
        ),
        DeValue::Table(entries) => table(entries),
    }
}

/// Reads a raw text as the TOML value that it spells. Every value in it is at `place`.
pub(super) fn parse_raw(raw: &str, place: &Place) -> Option<Value> {
    fn table(entries: DeTable<'_>, place: &Place) -> Value {
        let entry = |(key, value): (Spanned<std::borrow::Cow<'_, str>>, Spanned<DeValue<'_>>)| {
            let value = below(value.into_inner(), place);
            let place = place.clone();
            (key.into_inner().into_owned(), Node { value, place })
        };
        Value::Table(entries.into_iter().map(entry).collect())
    }
    fn below(value: DeValue<'_>, place: &Place) -> Value {
        toml_value(value, &|entries| table(entries, place), &|_| place.clone())
    }
    let value = DeValue::parse(raw.trim()).ok()?;
    Some(below(value.into_inner(), place))
}

fn add_environment(tree: &mut Node, sources: &Sources, report: &Report) {
    let services = service_prefixes(sources);
    for (name, value) in &sources.environment {
        let Some(path) = name.strip_prefix(PREFIX) else {
            continue;
        };
        if NO_KEYS.contains(&name.as_str()) || value.is_empty() || is_service_link(name, &services) {
            continue;
        }
        let place = Place::Environment(Some(name.clone()));
        let Some(value) = value.text() else {
            report.fault_at(place, Path::default(), NOT_TEXT);
            continue;
        };
        let path: Vec<String> = path.split("__").map(str::to_lowercase).collect();
        add(tree, &path, value, &place, report);
    }
}

/// For a Service called `insights-gateway…`, Kubernetes sets variables in every container near it, and these have the
/// gateway's own prefix. Returns the names of such services, as the variables spell them.
fn service_prefixes(sources: &Sources) -> Vec<&str> {
    if sources.environment.get("KUBERNETES_SERVICE_HOST").is_none_or(Variable::is_empty) {
        return Vec::new();
    }
    let service = |name: &'_ String| -> Option<usize> {
        let prefix = name.strip_suffix("_SERVICE_HOST")?;
        let address = sources.environment.get(name)?.text()?;
        (prefix.len() + 1 >= PREFIX.len() && address.parse::<IpAddr>().is_ok()).then_some(prefix.len())
    };
    sources.environment.keys().filter_map(|name| name.get(..service(name)?)).collect()
}

fn is_service_link(name: &str, services: &[&str]) -> bool {
    services.iter().any(|service| {
        name.strip_prefix(service)
            .is_some_and(|rest| rest == "_PORT" || rest.starts_with("_PORT_") || rest.starts_with("_SERVICE_"))
            && !name.contains("__")
    })
}

/// Puts a raw value at `path`, replacing the value of a weaker source.
fn add(tree: &mut Node, path: &[String], raw: &str, place: &Place, report: &Report) {
    let Some((last, tables)) = path.split_last().filter(|_| path.len() <= DEEPEST) else {
        report.fault_at(place.clone(), Path::of(path), "unknown key");
        return;
    };
    let inside_no_table = || {
        let message = "belongs to a table, but a value is set in its place; set only one of the two";
        report.fault_at(place.clone(), Path::of(path), message);
    };
    let mut node = tree;
    for (depth, key) in tables.iter().enumerate() {
        let Value::Table(entries) = &mut node.value else {
            return inside_no_table();
        };
        let key = existing_key(entries, key, place, &path[..depth]);
        let replaces = ONE_OF.contains(&key.as_str());
        let empty = || Node { value: Value::Table(BTreeMap::new()), place: place.clone() };
        node = entries.entry(key).or_insert_with(empty);
        if replaces && !same_source(&node.place, place) {
            *node = empty();
        }
    }
    let Value::Table(entries) = &mut node.value else {
        return inside_no_table();
    };
    let inline_table = raw.trim_start().starts_with('{').then(|| parse_raw(raw, place)).flatten();
    let value = match inline_table {
        Some(table @ Value::Table(_)) => table,
        _ => Value::Raw(Zeroizing::new(raw.to_owned())),
    };
    let key = existing_key(entries, last, place, tables);
    let place = place.clone();
    entries.insert(key, Node { value, place });
}

fn same_source(one: &Place, other: &Place) -> bool {
    std::mem::discriminant(one) == std::mem::discriminant(other)
}

/// Variables cannot spell capitals or dashes, so `DATA_TEAM` means the team `Data-Team`, if only one existing name
/// fits.
fn existing_key(entries: &BTreeMap<String, Node>, key: &str, place: &Place, around: &[String]) -> String {
    let is_name = matches!(around, [section] if section == "accounts" || section == "teams");
    if !is_name || !matches!(place, Place::Environment(_)) || entries.contains_key(key) {
        return key.to_owned();
    }
    let folded = |text: &str| text.to_lowercase().replace('-', "_");
    let mut same = entries.keys().filter(|other| folded(other) == folded(key));
    match (same.next(), same.next()) {
        (Some(other), None) => other.clone(),
        _ => key.to_owned(),
    }
}

/// Where the configuration has no account, the gateway uses the account that Twilio's SDKs would use. An account
/// `default` without credentials, such as one that only variables tune, is completed in the same way.
fn add_sdk_variables(tree: &mut Node, sources: &Sources, report: &Report) {
    let Value::Table(root) = &mut tree.value else {
        return;
    };
    let is_another = |name: &String| name != "default";
    if let Some(Node { value: Value::Table(accounts), .. }) = root.get("accounts")
        && accounts.keys().any(is_another)
    {
        return;
    }
    let variable = |key: &'static str, name: &'static str| {
        let value = Value::Raw(Zeroizing::new(sources.variable(name, report)?.to_owned()));
        let place = Place::Environment(Some(name.to_owned()));
        Some((key.to_owned(), Node { value, place }))
    };
    let Some(sid) = variable("account_sid", "TWILIO_ACCOUNT_SID") else {
        return;
    };
    let key = variable("api_key", "TWILIO_API_KEY").zip(variable("api_secret", "TWILIO_API_SECRET"));
    let credentials: Vec<(String, Node)> = match key {
        Some((key, secret)) => vec![key, secret],
        None => variable("auth_token", "TWILIO_AUTH_TOKEN").into_iter().collect(),
    };
    if credentials.is_empty() {
        return;
    }
    let table = || Node {
        value: Value::Table(BTreeMap::new()),
        place: Place::Environment(Some("TWILIO_ACCOUNT_SID".to_owned())),
    };
    let Value::Table(accounts) = &mut root.entry("accounts".to_owned()).or_insert_with(table).value else {
        return;
    };
    let Value::Table(account) = &mut accounts.entry("default".to_owned()).or_insert_with(table).value else {
        return;
    };
    let own = ["account_sid", "api_key", "api_secret", "auth_token"];
    if !own.iter().any(|key| account.contains_key(*key)) {
        account.extend([sid].into_iter().chain(credentials));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(sources: &Sources, report: &Report) -> Option<Node> {
        super::read(sources, sources.file.as_deref().map(ConfigFile::read).as_ref(), report)
    }

    fn leaf<'a>(tree: &'a Node, path: &[&str]) -> &'a Node {
        path.iter().fold(tree, |node, key| match &node.value {
            Value::Table(entries) => &entries[*key],
            _ => panic!("no table around {key}"),
        })
    }

    fn text(node: &Node) -> &str {
        match &node.value {
            Value::Raw(text) | Value::Text(text) => text,
            _ => panic!("no text"),
        }
    }

    #[test]
    fn the_environment_reaches_names_that_variables_cannot_spell() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "[teams.Data-Team]\nweight = 1\n").unwrap();
        let sources =
            Sources::default().with_file(file.path()).with_variable("INSIGHTS_GATEWAY_TEAMS__DATA_TEAM__WEIGHT", "2");
        let tree = read(&sources, &Report::default()).unwrap();
        assert_eq!(text(leaf(&tree, &["teams", "Data-Team", "weight"])), "2");
    }

    #[test]
    fn a_stronger_form_of_a_secret_replaces_the_weaker_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "[accounts.main]\napi_secret = { env = \"X\" }\n").unwrap();
        let sources = Sources::default()
            .with_file(file.path())
            .with_variable("INSIGHTS_GATEWAY_ACCOUNTS__MAIN__API_SECRET__FILE", "/run/x");
        let tree = read(&sources, &Report::default()).unwrap();
        let Value::Table(secret) = &leaf(&tree, &["accounts", "main", "api_secret"]).value else {
            panic!("no table");
        };
        assert_eq!(secret.keys().collect::<Vec<_>>(), ["file"]);
    }

    #[test]
    fn two_variables_for_one_value_are_a_fault() {
        let sources = Sources::default()
            .with_variable("INSIGHTS_GATEWAY_ACCOUNTS__MAIN__API_SECRET", "x")
            .with_variable("INSIGHTS_GATEWAY_ACCOUNTS__MAIN__API_SECRET__FILE", "/run/x");
        let report = Report::default();
        read(&sources, &report).unwrap();
        let faults = report.into_faults().to_string();
        assert!(faults.starts_with("environment: INSIGHTS_GATEWAY_ACCOUNTS__MAIN__API_SECRET__FILE: belongs"));
    }

    #[test]
    fn variables_that_kubernetes_adds_are_no_keys() {
        let sources = Sources::default()
            .with_variable("KUBERNETES_SERVICE_HOST", "10.0.0.1")
            .with_variable("INSIGHTS_GATEWAY_SERVICE_HOST", "10.0.0.2")
            .with_variable("INSIGHTS_GATEWAY_SERVICE_PORT", "8080")
            .with_variable("INSIGHTS_GATEWAY_SERVICE_PORT_HTTP", "8080")
            .with_variable("INSIGHTS_GATEWAY_PORT", "tcp://10.0.0.2:8080")
            .with_variable("INSIGHTS_GATEWAY_PORT_8080_TCP_ADDR", "10.0.0.2")
            .with_variable("INSIGHTS_GATEWAY_ADMIN_SERVICE_HOST", "10.0.0.3")
            .with_variable("INSIGHTS_GATEWAY_ADMIN_PORT_9090_TCP", "tcp://10.0.0.3:9090");
        let tree = read(&sources, &Report::default()).unwrap();
        assert!(matches!(&tree.value, Value::Table(entries) if entries.is_empty()));

        let outside = Sources::default().with_variable("INSIGHTS_GATEWAY_PORT", "8080");
        let tree = read(&outside, &Report::default()).unwrap();
        assert!(matches!(&tree.value, Value::Table(entries) if entries.contains_key("port")));
    }

    #[test]
    fn lines_are_those_of_the_keys_and_items() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "# one\n[server]\nlisten = [\n  \"a\",\n  \"b\",\n]\n").unwrap();
        let sources = Sources::default().with_file(file.path());
        let tree = read(&sources, &Report::default()).unwrap();
        let line = |node: &Node| match node.place {
            Place::Line(_, line) => line,
            _ => 0,
        };
        let listen = leaf(&tree, &["server", "listen"]);
        assert_eq!((line(leaf(&tree, &["server"])), line(listen)), (2, 3));
        let Value::List(items) = &listen.value else {
            panic!("no list");
        };
        assert_eq!(items.iter().map(line).collect::<Vec<_>>(), [4, 5]);
    }
}
