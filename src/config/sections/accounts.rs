//! `[accounts]` and `[teams]`: whose credentials are used, and who may use them for what.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use secrecy::SecretString;

use crate::config::certificate::SOON;
use crate::config::path::Path;
use crate::config::reader::{Field, Table};
use crate::config::record::Key;
use crate::config::report::Report;
use crate::config::secret;
use crate::config::settings::{Account, CredentialSource, Policy, RequiredFilter, Team, Token};
use crate::config::shape::Shape;
use crate::config::show;
use crate::config::sources::Sources;
use crate::config::suggest::suggest;
use crate::config::tree::Value;
use crate::config::values::{parse_sha256, seconds};
use crate::core::units::Rate;
use crate::twilio::catalog;
use crate::twilio::permission::{OperationSet, Permission};
use crate::twilio::query::Comparison;

/// The team of every caller where no teams are configured.
const BUILT_IN_TEAM: &str = "local";

/// Whether `name` is valid for an account or a team: names become labels of metrics and parts of keys.
fn check_name(name: &str) -> Result<(), &'static str> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if (1..=64).contains(&name.len()) && name.chars().all(fits) {
        Ok(())
    } else {
        Err("a name is 1 to 64 letters, digits, dashes or underscores; rename it")
    }
}

/// Whether `name` is valid for a team.
///
/// # Errors
///
/// What a valid name looks like.
pub fn check_team_name(name: &str) -> Result<(), &'static str> {
    match name {
        BUILT_IN_TEAM => Err("\"local\" is the built-in name of callers where there are no teams; choose another"),
        _ => check_name(name),
    }
}

/// The accounts that could be read, and the names of all that were given.
pub(in crate::config) fn accounts(root: &mut Table<'_>, sources: &Sources) -> (Vec<Account>, Vec<String>) {
    let (report, path) = (root.report(), root.path().key("accounts"));
    let mut names = Vec::new();
    let accounts = root.named("accounts", |name, table| {
        names.push(name.to_owned());
        account(name, table, sources)
    });
    if names.is_empty() {
        let found = match sources.variable("TWILIO_ACCOUNT_SID", report) {
            Some(_) => "TWILIO_ACCOUNT_SID alone makes no account",
            None => "no account is known",
        };
        let message = format!(
            "{found}; add [accounts.main] with account_sid, api_key and api_secret, \
             or set TWILIO_ACCOUNT_SID, TWILIO_API_KEY and TWILIO_API_SECRET (or TWILIO_AUTH_TOKEN)"
        );
        match report.is_without_secrets() {
            true => report.warn(&path, message),
            false => report.fault(&path, message),
        }
    }
    (accounts.into_iter().flatten().collect(), names)
}

fn account(name: &str, table: &mut Table<'_>, sources: &Sources) -> Option<Account> {
    let (report, path) = (table.report(), table.path().clone());
    if let Err(message) = check_name(name) {
        report.fault(&path, message);
    }
    let account_sid = account_sid(table);
    let credential = credential(table, sources, account_sid.as_deref());
    let rate = table.rate("rate", Rate::new(5, seconds(1)));
    let burst = table.number("burst", 5, 1..=100_000);
    let concurrency = table.number("concurrency", 10, 1..=10_000);
    let queue = table.number("queue", 1000, 0..=1_000_000);
    let adapt = table.boolean("adapt", true);
    let (username, secret, credential) = credential?;
    Some(Account {
        name: name.to_owned(),
        account_sid: account_sid?,
        username,
        secret,
        credential,
        rate,
        burst,
        concurrency,
        queue,
        adapt,
    })
}

fn account_sid(table: &mut Table<'_>) -> Option<String> {
    let (report, path) = (table.report(), table.path().key("account_sid"));
    let field = table.require("account_sid", "set it to the account's SID, AC and 32 hexadecimal digits");
    let sid = field.and_then(Field::string);
    table.record("account_sid", sid.as_ref().map(show::text), None);
    let sid = sid?;
    if !is_basic_user(&sid) {
        report.fault(&path, NO_BASIC_USER);
        return None;
    }
    if is_sid(&sid, "SK") {
        report.warn(&path, "this is the SID of an API key (SK…); the account's begins with AC");
    } else if !is_sid(&sid, "AC") {
        report.warn(&path, "does not look like a Twilio account SID, AC and 32 hexadecimal digits");
    }
    Some(sid)
}

/// Whether this is one of Twilio's identifiers: these letters and 32 hexadecimal digits.
fn is_sid(text: &str, letters: &str) -> bool {
    let digits = text.strip_prefix(letters).unwrap_or_default();
    digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit())
}

const NO_BASIC_USER: &str = "must be plain visible characters without a colon or white space";

/// Whether `text` can be the user of Basic authentication.
fn is_basic_user(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic() && b != b':')
}

/// User, password and where they are kept: an API key and its secret, or the account and its auth token.
fn credential(
    table: &mut Table<'_>,
    sources: &Sources,
    account_sid: Option<&str>,
) -> Option<(String, SecretString, CredentialSource)> {
    const EITHER: &str = "give either api_key and api_secret, or auth_token";
    let (report, path) = (table.report(), table.path().clone());
    let [key, secret, token] = ["api_key", "api_secret", "auth_token"].map(|key| table.take(key));
    let given = (key.is_some(), secret.is_some(), token.is_some());
    // Each is read even if the combination is wrong, so that its own faults are reported too.
    let [key, secret, token] = [key, secret, token].map(|field| secret::read(field?, sources));
    match given {
        (false, false, false) => report.fault(&path.key("api_key"), format!("missing; {EITHER}")),
        (true, _, true) | (_, true, true) => {
            report.fault(&path.key("auth_token"), format!("two ways to sign in are given; {EITHER}, not both"));
        }
        (true, false, _) => report.fault(&path.key("api_secret"), format!("missing; {EITHER}")),
        (false, true, _) => report.fault(&path.key("api_key"), format!("missing; {EITHER}")),
        _ => {}
    }
    let shown = [
        ("api_key", key.as_ref().map(|key| show::api_key(&key.text, &key.source))),
        ("api_secret", secret.as_ref().map(|secret| show::secret(&secret.source))),
        ("auth_token", token.as_ref().map(|token| show::secret(&token.source))),
    ];
    // The record has only one of the two ways to sign in.
    for (key, value) in shown.into_iter().filter(|(_, value)| value.is_some()) {
        table.record(Key::from(key).of(Shape::Secret), value, None);
    }
    for (key, secret) in [("api_secret", &secret), ("auth_token", &token)] {
        if let Some(secret) = secret {
            secret::warn_if_written_out(&secret.source, &path.key(key), report);
        }
    }
    if let Some(token) = token {
        return Some((account_sid?.to_owned(), token.text.as_str().into(), CredentialSource::AuthToken(token.source)));
    }
    let key = key?;
    let username = key.text.as_str();
    match (account_sid, &secret) {
        (Some(account), _) if is_sid(account, "SK") && is_sid(username, "AC") => {
            report.fault(
                &path.key("api_key"),
                "account_sid holds the SID of an API key (SK…) and api_key that of an account (AC…); swap the two",
            );
            return None;
        }
        (_, Some(secret)) if is_sid(&secret.text, "SK") && !is_sid(username, "SK") => {
            report.fault(
                &path.key("api_key"),
                "api_secret holds the SID of an API key (SK…), and api_key does not; swap the two",
            );
            return None;
        }
        _ if is_sid(username, "AC") => report.warn(
            &path.key("api_key"),
            "this is the SID of an account (AC…); an API key's begins with SK, and an auth token belongs under auth_token",
        ),
        _ => {}
    }
    if !is_basic_user(username) {
        report.fault(&path.key("api_key"), NO_BASIC_USER);
        return None;
    }
    let secret = secret?;
    let source = CredentialSource::ApiKey { key: key.source, secret: secret.source };
    Some((username.to_owned(), secret.text.as_str().into(), source))
}

pub(in crate::config) fn team(name: &str, table: &mut Table<'_>, sole_account: &str, now: Timestamp) -> Team {
    let (report, path) = (table.report(), table.path().clone());
    if let Err(message) = check_team_name(name) {
        report.fault(&path, message);
    }
    let team = Team {
        name: name.to_owned(),
        account: table.value(
            Key::from("account").of(Shape::Reference),
            sole_account.to_owned(),
            show::text,
            Field::string,
        ),
        tokens: table.value(
            Key::from("token_sha256").of(Shape::Tokens),
            Vec::new(),
            |all| show::tokens(all),
            |field| tokens(field, now),
        ),
        requests: table.rate("requests", None),
        upstream: table.rate("upstream", None),
        weight: table.number("weight", 1, 1..=1000),
        operations: table.value(
            Key::from("operations").of(Shape::Words(Permission::ALL.map(Permission::as_str).to_vec())),
            OperationSet::standard(),
            |set| show::list(set.iter().map(Permission::as_str)),
            operations,
        ),
        policy: table.section("policy", policy),
    };
    let restricts = !team.policy.deny.is_empty() || !team.policy.require.is_empty();
    let are_fields = |word| matches!(word, Permission::FieldsRead | Permission::FieldsWrite);
    if restricts && team.operations.iter().any(are_fields) {
        let message = "fields-read and fields-write are not possible with a policy; remove them or teams.*.policy";
        report.fault(&path.key("operations"), message);
    }
    team
}

fn tokens(field: Field<'_>, now: Timestamp) -> Option<Vec<Token>> {
    let (report, path) = (field.report, field.path.clone());
    let entries = field.one_or_more("a list of texts")?;
    if entries.is_empty() {
        report.fault(&path, "must not be empty; `insights-gateway token new TEAM` makes one, or remove this key");
    }
    let mut tokens: Vec<Token> = Vec::new();
    for entry in entries {
        let path = entry.path.clone();
        let Some(token) = token(entry) else { continue };
        warn_of_expiry(token, now, &path, report);
        match tokens.iter().find(|known| known.sha256 == token.sha256) {
            None => tokens.push(token),
            // The same entry twice changes nothing.
            Some(known) if *known == token => {}
            Some(_) => report.fault(&path, "the same token is listed above with another expiry; keep one of them"),
        }
    }
    Some(tokens)
}

/// A hash, or `{ sha256 = "…", expires = "…" }`.
fn token(entry: Field<'_>) -> Option<Token> {
    if !matches!(entry.node.value, Value::Table(_)) {
        return Some(Token { sha256: entry.parsed(parse_sha256)?, expires: None });
    }
    entry.table()?.read(|table| {
        let hash = table.require("sha256", "`insights-gateway token new TEAM` prints it");
        let hash = hash.and_then(|field| field.parsed(parse_sha256));
        let expires = table.take("expires").map(|field| field.date_or_text().parsed(parse_expiry));
        // A faulty expiry must not make a token that never expires.
        Some(Token { sha256: hash?, expires: expires.map_or(Some(None), |expires| expires.map(Some))? })
    })
}

/// RFC 3339, or a date, at the end of which in UTC the token expires.
fn parse_expiry(text: &str) -> Result<Timestamp, &'static str> {
    let end_of_day = |date: Date| date.tomorrow().ok()?.to_zoned(TimeZone::UTC).ok().map(|end| end.timestamp());
    let expires = match text.len() {
        10 => text.parse().ok().and_then(end_of_day),
        _ => text.parse().ok(),
    };
    expires.ok_or(
        "expected a time such as \"2027-01-31T12:00:00Z\", or a date such as \"2027-01-31\", whose end in UTC counts",
    )
}

fn warn_of_expiry(token: Token, now: Timestamp, path: &Path, report: &Report) {
    const ADVICE: &str = "`insights-gateway token new TEAM` makes a new one";
    match token.expires {
        Some(expires) if expires <= now => {
            report.warn(path, format!("this token has expired and is not accepted; remove it. {ADVICE}"));
        }
        Some(expires) if expires.duration_since(now) <= SOON => {
            report.warn(path, format!("this token expires at {expires}; list another one in addition. {ADVICE}"));
        }
        _ => {}
    }
}

fn operations(field: Field<'_>) -> Option<OperationSet> {
    let (report, path) = (field.report, field.path.clone());
    let texts = field.texts()?;
    if texts.is_empty() {
        report.fault(&path, "must not be empty; remove this key to allow metadata, query and jobs");
    }
    let words = Permission::ALL.map(Permission::as_str);
    let permission = |(path, word): (Path, String)| {
        let permission = Permission::parse(&word);
        if permission.is_none() {
            let message = format!("must be one of {}{}", words.join(", "), suggest(&word, words));
            report.fault(&path, message);
        }
        permission
    };
    Some(texts.into_iter().filter_map(permission).collect())
}

fn policy(table: &mut Table<'_>) -> Policy {
    let filters = |field: Field<'_>| Some(field.tables(required_filter));
    Policy {
        deny: table.value(Key::from("deny").of(Shape::Texts), Vec::new(), |deny| show::list(deny), deny),
        require: table.value(
            Key::from("require").of(Shape::Filters),
            Vec::new(),
            |all| show::required_filters(all),
            filters,
        ),
    }
}

fn deny(field: Field<'_>) -> Option<Vec<String>> {
    let report = field.report;
    let deny = field.texts()?;
    for (path, pattern) in &deny {
        let stem = pattern.strip_suffix('*');
        // `CUBE.*` is a name followed by a dot.
        let name = stem.map_or(pattern.as_str(), |stem| stem.strip_suffix('.').unwrap_or(stem));
        if stem.unwrap_or(pattern).contains('*') {
            report.fault(path, "may have * only at its end, where it matches any rest");
        } else if !catalog::is_name(name) {
            report.fault(path, "must be the name of a measure or dimension: letters, digits, _ and single dots between them; it would match nothing");
        } else if !pattern.contains('.') {
            let message = "has no dot, so it can only deny whole cubes; \
                           write CUBE.MEMBER to deny a member, CUBE.* to deny a cube";
            report.warn(path, message);
        }
    }
    Some(deny.into_iter().map(|(_, pattern)| pattern).collect())
}

fn required_filter(table: &mut Table<'_>) -> Option<RequiredFilter> {
    let (report, path) = (table.report(), table.path().clone());
    let op = table.require("op", "write EQ, NE, GT, LT or IN");
    let op = op.and_then(|op| op.word(&Comparison::ALL.map(|op| (op.as_str(), op))));
    let field = table.require("field", "name the dimension that it compares");
    let field = field.and_then(|field| field.text("text"));
    if field.as_ref().is_some_and(|field| !catalog::is_name(field)) {
        report.fault(
            &path.key("field"),
            "must be the name of a dimension: letters, digits, _ and single dots between them",
        );
    }
    let values = table.require("values", "list the values that it compares with");
    let values: Vec<String> = values?.texts()?.into_iter().map(|(_, value)| value).collect();
    let (op, field) = (op?, field?.to_string());
    if values.is_empty() {
        report.fault(&path.key("values"), "must not be empty; list the values that it compares with");
    } else if op != Comparison::In && values.len() > 1 {
        let message = format!("{} compares with exactly one value; use IN for several", op.as_str());
        report.fault(&path.key("values"), message);
    }
    Some(RequiredFilter { op, field, values })
}
