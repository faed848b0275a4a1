//! The keys, their defaults and their limits: one function per section. Keys are read in the order of the reference
//! file, which is also the order in which they are shown.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use http::uri::Authority;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use secrecy::SecretString;
use tracing_subscriber::EnvFilter;

use super::certificate::SOON;
use super::checks;
use super::document::{Node, Value};
use super::fault::{Path, Report, suggest};
use super::files::Files;
use super::proxy;
use super::reader::{Field, Table, read_tree};
use super::record::{Key, Record};
use super::secret::{self, CredentialSource};
use super::settings::{
    Account, Admin, Cache, Circuit, Config, DiskCache, JobCache, Listen, Log, LogFormat, Policy, Proxies,
    RequiredFilter, Retry, Server, Settled, Team, Telemetry, Tls, Token, Upstream,
};
use super::shape::Shape;
use super::shared;
use super::show;
use super::sources::Sources;
use crate::core::clock::Clock;
use crate::core::network::Network;
use crate::core::units::Rate;
use crate::semantics::freshness::Lifetimes;
use crate::semantics::origin::Origin;
use crate::twilio::catalog;
use crate::twilio::endpoint::{OperationSet, Permission};
use crate::twilio::query::Comparison;
use crate::twilio::validate::Validation;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const PIB: u64 = 1 << 50;
/// The team of every caller where no teams are configured.
const BUILT_IN_TEAM: &str = "local";
/// Longest path that fits into a Unix socket's address.
const LONGEST_SOCKET_PATH: usize = 107;

/// The whole tree, checked. If `report` then has faults, the faulty values are replaced by defaults.
pub(super) fn read(tree: Node, sources: &Sources, report: &Report) -> Config {
    let now = Timestamp::try_from(Clock::new().wall_now()).unwrap_or_default();
    read_tree(tree, report, |root| {
        let (server, admin) = (root.section("server", server), root.section("admin", admin));
        let upstream = root.section("upstream", |table| upstream(table, sources));
        let (accounts, account_names) = accounts(root, sources);
        let sole_account = if let [sole] = account_names.as_slice() { sole.as_str() } else { "" };
        let config = Config {
            server,
            admin,
            upstream,
            accounts,
            teams: root.named("teams", |name, table| team(name, table, sole_account, now)),
            cache: root.section("cache", cache),
            validate: root.section("validate", validate),
            shared: root.section("shared", |table| shared::read(table, sources)),
            retry: root.section("retry", retry),
            circuit: root.section("circuit", circuit),
            log: root.section("log", log),
            telemetry: root.section("telemetry", telemetry),
            warnings: Vec::new(),
            record: Record::default(),
            files: Files::default(),
        };
        checks::across_sections(&config, &account_names, now, report);
        config
    })
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn minutes(count: u64) -> Duration {
    seconds(count * 60)
}

fn hours(count: u64) -> Duration {
    minutes(count * 60)
}

fn days(count: u64) -> Duration {
    hours(count * 24)
}

fn server(table: &mut Table<'_>) -> Server {
    const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);
    let at_start = Key::at_start;
    Server {
        listen: table.value(
            at_start("listen").of(Shape::Texts),
            vec![Listen::Tcp(LISTEN)],
            |value| show::listen(value),
            listen,
        ),
        open: table.boolean("open", false),
        drain: table.duration(at_start("drain"), seconds(30)),
        max_body: table.size("max_body", MIB, 1..=64 * MIB),
        body_memory: table.size(at_start("body_memory"), 256 * MIB, MIB..=PIB),
        max_connections: table.number(at_start("max_connections"), 10_000, 1..=1_000_000),
        header_timeout: table.positive_duration(at_start("header_timeout"), seconds(10)),
        body_timeout: table.positive_duration("body_timeout", seconds(30)),
        write_timeout: table.positive_duration(at_start("write_timeout"), seconds(30)),
        unix_mode: table.value(
            at_start("unix_mode"),
            0o600,
            |mode| show::text(&format_args!("{mode:04o}")),
            |field| field.parsed(parse_unix_mode),
        ),
        proxy_protocol: table.value(
            at_start("proxy_protocol").of(Shape::Texts),
            Proxies::default(),
            show::proxies,
            proxy_protocol,
        ),
        public_url: table.optional("public_url", show::url, |field| url(field, Paths::Allowed)),
        tls: tls(table),
        cors: table.value(Key::from("cors").of(Shape::Texts), Vec::new(), |origins| show::list(origins), cors),
    }
}

fn cors(field: Field<'_>) -> Option<Vec<Origin>> {
    let report = field.report;
    let origin = |(path, text): (Path, String)| {
        let origin = Origin::parse(&text);
        origin.map_err(|message| report.fault(&path, message)).ok()
    };
    Some(field.texts()?.into_iter().filter_map(origin).collect())
}

fn listen(field: Field<'_>) -> Option<Vec<Listen>> {
    let (report, path) = (field.report, field.path.clone());
    let Some(texts) = field.texts() else {
        // Not the default, which other checks would report as well.
        return Some(Vec::new());
    };
    if texts.is_empty() {
        report.fault(&path, "needs at least one address, such as \"127.0.0.1:8080\"");
    }
    let entry = |(path, text): &(Path, String)| {
        let entry = parse_listen(text);
        entry.map_err(|message| report.fault(path, message)).ok()
    };
    Some(texts.iter().filter_map(entry).collect())
}

/// In octal, the usual form of a mode; as text, because a number in TOML is decimal.
fn parse_unix_mode(text: &str) -> Result<u32, &'static str> {
    let digits = (3..=4).contains(&text.len()) && text.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
    match u32::from_str_radix(text, 8) {
        Ok(mode) if digits && mode <= 0o777 => Ok(mode),
        _ => Err("expected a file mode in octal digits, such as \"0660\""),
    }
}

fn proxy_protocol(field: Field<'_>) -> Option<Proxies> {
    let report = field.report;
    let mut proxies = Proxies::default();
    for (path, text) in field.texts()? {
        match Network::parse(&text) {
            _ if text == "unix" => proxies.unix = true,
            Ok(network) => proxies.networks.push(network),
            Err(message) => report.fault(&path, message),
        }
    }
    Some(proxies)
}

fn parse_listen(text: &str) -> Result<Listen, &'static str> {
    if let Some(name) = text.strip_prefix("systemd:") {
        // What systemd.socket(5) allows as a FileDescriptorName.
        let fits = name.bytes().all(|b| b.is_ascii_graphic() && b != b':');
        return match name {
            _ if fits && (1..=255).contains(&name.len()) => Ok(Listen::Systemd(name.to_owned())),
            _ => Err("expected the FileDescriptorName of a socket unit, such as \"systemd:gateway\""),
        };
    }
    let Some(path) = text.strip_prefix("unix:") else {
        return match text.parse() {
            Ok(address) => Ok(Listen::Tcp(address)),
            Err(_) => Err(
                "expected an IP address with a port, such as \"127.0.0.1:8080\" or \"[::1]:8080\", \"unix:/path/to.sock\" or \"systemd:NAME\"",
            ),
        };
    };
    socket_path(path).map(Listen::Unix)
}

/// The path of a Unix socket, if an address can hold it.
pub(super) fn socket_path(path: &str) -> Result<PathBuf, &'static str> {
    match path {
        _ if !path.starts_with('/') => Err("a Unix socket needs an absolute path, such as \"unix:/run/insights.sock\""),
        _ if path.len() > LONGEST_SOCKET_PATH => Err("the path of a Unix socket is at most 107 bytes long; shorten it"),
        _ if path.contains('\0') => Err("the path of a Unix socket cannot hold a zero byte"),
        _ => Ok(PathBuf::from(path)),
    }
}

fn tls(server: &mut Table<'_>) -> Option<Tls> {
    let tls = server.section("tls", read_tls);
    // Certificates are read again at a reload, but a listener does not start or stop to speak TLS then.
    server.record(Key::present_at_start("tls").of(Shape::Tls), tls.as_ref().map(show::tls), None);
    tls
}

fn read_tls(table: &mut Table<'_>) -> Option<Tls> {
    let (report, path) = (table.report(), table.path().clone());
    let given = report.is_given(&path);
    let [cert, key, client_ca] = ["cert", "key", "client_ca"].map(|key| table.take(key).and_then(Field::file));
    if let Some(file) = &cert {
        secret::check_pem(file, "CERTIFICATE", &path.key("cert"), report);
    }
    if let Some(file) = &client_ca {
        secret::check_pem(file, "CERTIFICATE", &path.key("client_ca"), report);
    }
    if let Some(file) = key.as_ref().filter(|_| !report.is_without_secrets()) {
        let path = path.key("key");
        if let Some(about) = secret::check_pem(file, "PRIVATE KEY", &path, report) {
            secret::warn_if_readable_by_all(&about, &path, report);
        }
    }
    match (cert, key) {
        (Some(cert), Some(key)) => Some(Tls { cert, key, client_ca }),
        _ if given => {
            report.fault(&path, "needs both cert and key, each the path of a PEM file");
            None
        }
        _ => None,
    }
}

fn admin(table: &mut Table<'_>) -> Admin {
    const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9090);
    let address =
        |text: &str| text.parse().map_err(|_| "expected an IP address with a port, such as \"127.0.0.1:9090\"");
    Admin {
        listen: table.value(Key::at_start("listen"), LISTEN, show::text, |field| field.parsed(address)),
        token_sha256: table.optional(
            "token_sha256",
            |hash| show::text(&show::hex(hash)),
            |field| field.parsed(parse_sha256),
        ),
        show_queries: table.boolean("show_queries", false),
        explorer: table.boolean("explorer", true),
    }
}

fn parse_sha256(text: &str) -> Result<[u8; 32], &'static str> {
    /// The hash of the empty text, which a shell gives for a variable that is not set.
    const OF_NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    let bytes: Option<Vec<u8>> = pairs.collect();
    match bytes.map(<[u8; 32]>::try_from) {
        Some(Ok(_)) if text.eq_ignore_ascii_case(OF_NOTHING) => {
            Err("this is the SHA-256 of an empty token; make one with `insights-gateway token new TEAM`")
        }
        Some(Ok(hash)) => Ok(hash),
        _ => Err("expected the SHA-256 of a token, 64 hexadecimal digits; `insights-gateway token new TEAM` prints it"),
    }
}

/// Whether a URL may have a path.
#[derive(Clone, Copy, PartialEq)]
enum Paths {
    Allowed,
    Refused,
}

fn url(field: Field<'_>, paths: Paths) -> Option<Uri> {
    field.parsed(|text| parse_url(text, paths))
}

fn parse_url(text: &str, paths: Paths) -> Result<Uri, &'static str> {
    const EXPECTED: &str = "expected a URL such as \"https://host\" or \"http://127.0.0.1:4010\"";
    let url: Uri = text.parse().map_err(|_| EXPECTED)?;
    let (Some(scheme), Some(authority)) = (url.scheme_str(), url.authority()) else {
        return Err(EXPECTED);
    };
    match () {
        () if !matches!(scheme, "http" | "https") => Err("must start with http:// or https://"),
        () if authority.as_str().contains('@') => Err("must not hold a user or password; take them out"),
        () if authority.host().is_empty() => Err(EXPECTED),
        () if !has_sound_port(authority) => Err("the port must be a number from 1 to 65535"),
        () if url.query().is_some() || text.contains('#') => Err("must not hold a query or a fragment; take it out"),
        () if paths == Paths::Refused && url.path().trim_end_matches('/').eq_ignore_ascii_case("/v3") => {
            Err("must not end in /v3, which every path begins with; name only scheme, host and port")
        }
        () if paths == Paths::Refused && !matches!(url.path(), "" | "/") => {
            Err("must not hold a path; name only scheme, host and port")
        }
        () => Ok(url),
    }
}

/// The parser accepts `host:`, `host:0` and `host:99999`, but they are not addresses.
pub(super) fn has_sound_port(authority: &Authority) -> bool {
    match authority.as_str().strip_prefix(authority.host()) {
        Some("") => true,
        _ => matches!(authority.port_u16(), Some(1..)),
    }
}

fn upstream(table: &mut Table<'_>, sources: &Sources) -> Upstream {
    let (report, path) = (table.report(), table.path().clone());
    let twilio = Uri::from_static("https://insights.twilio.com");
    let url = table.value("url", twilio, show::url, |field| url(field, Paths::Refused));
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    if url.scheme_str() == Some("http") && !proxy::is_loopback(host) {
        report.warn(&path.key("url"), "credentials cross the network in clear text; use https");
    }
    let connect_timeout = table.positive_duration("connect_timeout", seconds(5));
    let attempt_timeout = table.positive_duration("attempt_timeout", seconds(60));
    let deadline = table.positive_duration("deadline", seconds(90));
    let max_response = table.size("max_response", 16 * MIB, 1..=GIB);
    let ca_file = table.file("ca_file");
    if let Some(file) = &ca_file {
        secret::check_pem(file, "CERTIFICATE", &path.key("ca_file"), report);
    }
    let proxy = proxy::read(table, sources, &url);
    Upstream { url, connect_timeout, attempt_timeout, deadline, max_response, ca_file, proxy }
}

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
fn accounts(root: &mut Table<'_>, sources: &Sources) -> (Vec<Account>, Vec<String>) {
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

fn team(name: &str, table: &mut Table<'_>, sole_account: &str, now: Timestamp) -> Team {
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
        let message = "fields-read and fields-write cannot be held to a policy; leave them or teams.*.policy out";
        report.fault(&path.key("operations"), message);
    }
    team
}

fn tokens(field: Field<'_>, now: Timestamp) -> Option<Vec<Token>> {
    let (report, path) = (field.report, field.path.clone());
    let entries = field.one_or_more("a list of texts")?;
    if entries.is_empty() {
        report.fault(&path, "must not be empty; `insights-gateway token new TEAM` makes one, or leave the key out");
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
            report.warn(path, format!("this token has expired and is not accepted; take it out. {ADVICE}"));
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
        report.fault(&path, "must not be empty; leave the key out for metadata, query and jobs");
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

fn cache(table: &mut Table<'_>) -> Cache {
    Cache {
        capacity: table.size(Key::at_start("capacity"), 256 * MIB, MIB..=PIB),
        metadata: table.section("metadata", |table| lifetimes(table, [hours(1), hours(1), hours(24)])),
        query: table.section("query", |table| lifetimes(table, [minutes(1), minutes(5), hours(1)])),
        settled: table.section("settled", |table| Settled {
            after: table.duration("after", days(1)),
            lifetimes: lifetimes(table, [hours(1), hours(12), days(7)]),
        }),
        jobs: table.section("jobs", |table| JobCache {
            dedup: table.duration("dedup", minutes(10)),
            results: table.duration("results", days(7)),
        }),
        disk: table.section("disk", |table| DiskCache {
            path: table.file(Key::at_start("path")),
            capacity: table.size(Key::at_start("capacity"), GIB, MIB..=PIB),
        }),
        errors: table.section("errors", |table| table.duration("fresh", seconds(10))),
    }
}

fn lifetimes(table: &mut Table<'_>, [fresh, revalidate, error]: [Duration; 3]) -> Lifetimes {
    Lifetimes {
        fresh: table.duration("fresh", fresh),
        stale_while_revalidate: table.duration("stale_while_revalidate", revalidate),
        stale_if_error: table.duration("stale_if_error", error),
    }
}

fn validate(table: &mut Table<'_>) -> Validation {
    const MODES: [(&str, Validation); 3] =
        [("off", Validation::Off), ("hint", Validation::Hint), ("reject", Validation::Reject)];
    table.word("mode", Validation::Hint, &MODES)
}

fn retry(table: &mut Table<'_>) -> Retry {
    Retry {
        attempts: table.number("attempts", 4, 1..=20),
        base: table.positive_duration("base", Duration::from_millis(250)),
        max: table.positive_duration("max", seconds(20)),
        budget: table.fraction("budget", 0.2, 0.0..=10.0),
        max_pause: table.duration("max_pause", minutes(5)),
    }
}

fn circuit(table: &mut Table<'_>) -> Circuit {
    let (report, path) = (table.report(), table.path().key("ratio"));
    let consecutive = table.number("consecutive", 10, 1..=u32::MAX);
    let ratio = table.fraction("ratio", 0.5, 0.0..=1.0);
    if ratio == 0.0 {
        report.fault(&path, "must be more than 0; 1 opens the circuit only when every attempt fails");
    }
    Circuit { consecutive, ratio, open: table.positive_duration("open", seconds(5)) }
}

fn log(table: &mut Table<'_>) -> Log {
    const FORMATS: [(&str, LogFormat); 3] =
        [("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];
    let filter = |text: &str| match EnvFilter::builder().parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("not a filter; write a level such as \"info\", or \"info,insights_gateway=debug\""),
    };
    Log {
        format: table.word(Key::at_start("format"), LogFormat::Auto, &FORMATS),
        filter: table.value("filter", "info".to_owned(), show::text, |field| field.parsed(filter)),
        access: table.boolean("access", true),
        hits: table.fraction("hits", 1.0, 0.0..=1.0),
        slow: table.duration("slow", seconds(5)),
        audit: audit(table),
    }
}

fn audit(table: &mut Table<'_>) -> Option<PathBuf> {
    let (report, path) = (table.report(), table.path().key("audit"));
    let file = table.file("audit")?;
    secret::check_writable(&file, &path, report);
    Some(file)
}

fn telemetry(table: &mut Table<'_>) -> Telemetry {
    Telemetry {
        otlp: table.optional(Key::at_start("otlp"), show::url, |field| url(field, Paths::Allowed)),
        sample: table.fraction("sample", 0.01, 0.0..=1.0),
    }
}
