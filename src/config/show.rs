//! The effective configuration as TOML, every key, without its secrets.

use std::fmt::{self, Display, Write};
use std::path::Path;

use http::Uri;

use super::secret::{CredentialSource, SecretSource};
use super::settings::{Account, Config, Listen, LogFormat, Proxy, Team};
use crate::core::units::{Rate, Size, Span};
use crate::semantics::freshness::Lifetimes;
use crate::twilio::endpoint::Permission;

const MASK: &str = "********";

impl Config {
    /// The effective configuration as TOML: every key with its value, defaults included. A secret is shown as
    /// the place where it is kept, or masked where it was written out.
    pub fn show(&self) -> String {
        let mut page = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut page);
        page
    }

    fn write(&self, page: &mut String) -> fmt::Result {
        self.write_listeners(page)?;
        self.accounts.iter().try_for_each(|account| write_account(page, account))?;
        self.teams.iter().try_for_each(|team| write_team(page, team))?;
        self.write_cache(page)?;
        self.write_rest(page)
    }

    fn write_listeners(&self, page: &mut String) -> fmt::Result {
        let (server, admin, upstream) = (&self.server, &self.admin, &self.upstream);
        let listen = server.listen.iter().map(|listen| match listen {
            Listen::Tcp(address) => address.to_string(),
            Listen::Unix(path) => format!("unix:{}", path.display()),
            Listen::Systemd(name) => format!("systemd:{name}"),
        });
        let proxies = &server.proxy_protocol;
        let proxies = proxies.networks.iter().map(ToString::to_string).chain(proxies.unix.then(|| "unix".to_owned()));
        writeln!(page, "[server]")?;
        writeln!(page, "listen = {}", list(listen))?;
        writeln!(page, "open = {}", server.open)?;
        writeln!(page, "drain = {}", text(Span(server.drain)))?;
        writeln!(page, "max_body = {}", text(Size(server.max_body)))?;
        writeln!(page, "body_memory = {}", text(Size(server.body_memory)))?;
        writeln!(page, "max_connections = {}", server.max_connections)?;
        writeln!(page, "header_timeout = {}", text(Span(server.header_timeout)))?;
        writeln!(page, "body_timeout = {}", text(Span(server.body_timeout)))?;
        writeln!(page, "write_timeout = {}", text(Span(server.write_timeout)))?;
        writeln!(page, "unix_mode = {}", text(format_args!("{:04o}", server.unix_mode)))?;
        writeln!(page, "proxy_protocol = {}", list(proxies))?;
        optional(page, "public_url", server.public_url.as_ref().map(url))?;
        let tls = server.tls.as_ref().map(|tls| {
            let client_ca = tls.client_ca.as_ref();
            let client_ca = client_ca.map_or_else(String::new, |ca| format!(", client_ca = {}", file(ca)));
            format!("{{ cert = {}, key = {}{client_ca} }}", file(&tls.cert), file(&tls.key))
        });
        optional(page, "tls", tls)?;
        writeln!(page, "cors = {}", list(&server.cors))?;

        writeln!(page, "\n[admin]")?;
        writeln!(page, "listen = {}", text(admin.listen))?;
        optional(page, "token_sha256", admin.token_sha256.map(|hash| text(hex(&hash))))?;
        writeln!(page, "show_queries = {}", admin.show_queries)?;

        writeln!(page, "\n[upstream]")?;
        writeln!(page, "url = {}", url(&upstream.url))?;
        writeln!(page, "connect_timeout = {}", text(Span(upstream.connect_timeout)))?;
        writeln!(page, "attempt_timeout = {}", text(Span(upstream.attempt_timeout)))?;
        writeln!(page, "deadline = {}", text(Span(upstream.deadline)))?;
        writeln!(page, "max_response = {}", text(Size(upstream.max_response)))?;
        optional(page, "ca_file", upstream.ca_file.as_deref().map(file))?;
        writeln!(page, "proxy = {}", upstream.proxy.as_ref().map_or_else(|| text("none"), proxy))
    }

    fn write_cache(&self, page: &mut String) -> fmt::Result {
        let cache = &self.cache;
        writeln!(page, "\n[cache]\ncapacity = {}", text(Size(cache.capacity)))?;
        writeln!(page, "\n[cache.metadata]")?;
        write_lifetimes(page, cache.metadata)?;
        writeln!(page, "\n[cache.query]")?;
        write_lifetimes(page, cache.query)?;
        writeln!(page, "\n[cache.settled]\nafter = {}", text(Span(cache.settled.after)))?;
        write_lifetimes(page, cache.settled.lifetimes)?;
        writeln!(page, "\n[cache.jobs]")?;
        writeln!(page, "dedup = {}", text(Span(cache.jobs.dedup)))?;
        writeln!(page, "results = {}", text(Span(cache.jobs.results)))?;
        writeln!(page, "\n[cache.disk]")?;
        optional(page, "path", cache.disk.path.as_deref().map(file))?;
        writeln!(page, "capacity = {}", text(Size(cache.disk.capacity)))?;
        writeln!(page, "\n[cache.errors]\nfresh = {}", text(Span(cache.errors)))
    }

    fn write_rest(&self, page: &mut String) -> fmt::Result {
        let (retry, circuit, log) = (&self.retry, &self.circuit, &self.log);
        writeln!(page, "\n[retry]")?;
        writeln!(page, "attempts = {}", retry.attempts)?;
        writeln!(page, "base = {}", text(Span(retry.base)))?;
        writeln!(page, "max = {}", text(Span(retry.max)))?;
        writeln!(page, "budget = {:?}", retry.budget)?;
        writeln!(page, "max_pause = {}", text(Span(retry.max_pause)))?;

        writeln!(page, "\n[circuit]")?;
        writeln!(page, "consecutive = {}", circuit.consecutive)?;
        writeln!(page, "ratio = {:?}", circuit.ratio)?;
        writeln!(page, "open = {}", text(Span(circuit.open)))?;

        let format = match log.format {
            LogFormat::Auto => "auto",
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        writeln!(page, "\n[log]")?;
        writeln!(page, "format = {}", text(format))?;
        writeln!(page, "filter = {}", text(&log.filter))?;
        writeln!(page, "access = {}", log.access)?;
        writeln!(page, "hits = {:?}", log.hits)?;
        writeln!(page, "slow = {}", text(Span(log.slow)))?;
        optional(page, "audit", log.audit.as_deref().map(file))?;

        writeln!(page, "\n[telemetry]")?;
        optional(page, "otlp", self.telemetry.otlp.as_ref().map(url))?;
        writeln!(page, "sample = {:?}", self.telemetry.sample)
    }
}

fn write_account(page: &mut String, account: &Account) -> fmt::Result {
    writeln!(page, "\n[accounts.{}]", account.name)?;
    writeln!(page, "account_sid = {}", text(&account.account_sid))?;
    match &account.credential {
        CredentialSource::ApiKey { key, secret } => {
            writeln!(page, "api_key = {}", api_key(&account.username, key))?;
            writeln!(page, "api_secret = {}", masked(secret))?;
        }
        CredentialSource::AuthToken(source) => writeln!(page, "auth_token = {}", masked(source))?,
    }
    writeln!(page, "rate = {}", rate(account.rate))?;
    writeln!(page, "burst = {}", account.burst)?;
    writeln!(page, "concurrency = {}", account.concurrency)?;
    writeln!(page, "queue = {}", account.queue)?;
    writeln!(page, "adapt = {}", account.adapt)
}

fn write_team(page: &mut String, team: &Team) -> fmt::Result {
    writeln!(page, "\n[teams.{}]", team.name)?;
    writeln!(page, "account = {}", text(&team.account))?;
    writeln!(page, "token_sha256 = {}", list(team.token_sha256.iter().map(hex)))?;
    writeln!(page, "requests = {}", rate(team.requests))?;
    writeln!(page, "upstream = {}", rate(team.upstream))?;
    writeln!(page, "weight = {}", team.weight)?;
    writeln!(page, "operations = {}", list(team.operations.iter().map(Permission::as_str)))?;
    writeln!(page, "\n[teams.{}.policy]", team.name)?;
    writeln!(page, "deny = {}", list(&team.policy.deny))?;
    let require = team.policy.require.iter().map(|filter| {
        let (op, field) = (text(filter.op.as_str()), text(&filter.field));
        format!("{{ op = {op}, field = {field}, values = {} }}", list(&filter.values))
    });
    writeln!(page, "require = [{}]", require.collect::<Vec<_>>().join(", "))
}

fn write_lifetimes(page: &mut String, lifetimes: Lifetimes) -> fmt::Result {
    writeln!(page, "fresh = {}", text(Span(lifetimes.fresh)))?;
    let revalidate = Span(lifetimes.stale_while_revalidate);
    writeln!(page, "stale_while_revalidate = {}", text(revalidate))?;
    writeln!(page, "stale_if_error = {}", text(Span(lifetimes.stale_if_error)))
}

/// A key that may be absent, and then is only mentioned.
fn optional(page: &mut String, key: &str, value: Option<String>) -> fmt::Result {
    match value {
        Some(value) => writeln!(page, "{key} = {value}"),
        None => writeln!(page, "# {key} is not set"),
    }
}

fn text(value: impl Display) -> String {
    toml::Value::String(value.to_string()).to_string()
}

/// Without the path of `/` that the parser adds where none was given.
fn url(url: &Uri) -> String {
    text(url.to_string().trim_end_matches('/'))
}

/// Its password is shown as the place where it is kept, or masked.
fn proxy(proxy: &Proxy) -> String {
    let user = proxy.user.as_ref().map_or_else(String::new, |user| format!("{}@", percent_encoded(user)));
    let url = text(format_args!("http://{user}{}", proxy.address));
    let place = match &proxy.password {
        None => return url,
        Some(SecretSource::Literal) => text(MASK),
        Some(SecretSource::File(path)) => format!("{{ file = {} }}", file(path)),
        Some(SecretSource::Env(name)) => format!("{{ env = {} }}", text(name)),
        Some(SecretSource::Credential(name)) => format!("{{ credential = {} }}", text(name)),
    };
    format!("{{ url = {url}, password = {place} }} # masked")
}

/// What may stand before the `@` of a URL (RFC 3986 section 3.2.1), without its sub-delimiters.
fn percent_encoded(user: &str) -> String {
    let encoded = |byte: u8| match byte {
        b if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => char::from(b).to_string(),
        b => format!("%{b:02X}"),
    };
    user.bytes().map(encoded).collect()
}

fn file(path: &Path) -> String {
    text(path.display())
}

fn list<T: Display>(values: impl IntoIterator<Item = T>) -> String {
    let values: Vec<String> = values.into_iter().map(text).collect();
    format!("[{}]", values.join(", "))
}

fn rate(rate: Option<Rate>) -> String {
    rate.map_or_else(|| text("0/s"), text)
}

fn hex(hash: &[u8; 32]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An API key's SID is a name, not a secret; but what does not look like one may be a secret in the wrong place.
fn api_key(username: &str, source: &SecretSource) -> String {
    let digits = username.strip_prefix("SK").unwrap_or_default();
    let is_sid = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    match source {
        SecretSource::Literal if is_sid => text(username),
        source => masked(source),
    }
}

fn masked(source: &SecretSource) -> String {
    match source {
        SecretSource::Literal => text(MASK),
        SecretSource::File(path) => format!("{{ file = {} }} # masked", file(path)),
        SecretSource::Env(name) => format!("{{ env = {} }} # masked", text(name)),
        SecretSource::Credential(name) => format!("{{ credential = {} }} # masked", text(name)),
    }
}
