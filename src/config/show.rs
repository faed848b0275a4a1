//! Values as TOML, as `check` prints them: without secrets.

use std::fmt::Display;
use std::path::Path;

use http::Uri;

use super::record::MASKED;
use super::settings::{Listen, Proxies, Proxy, RequiredFilter, SecretSource, Tls, Token};
use crate::core::units::Rate;

/// Shown in place of a secret that was given in clear text.
const MASK: &str = "********";

pub(super) fn text<T: Display + ?Sized>(value: &T) -> String {
    toml::Value::String(value.to_string()).to_string()
}

pub(super) fn list<T: Display>(values: impl IntoIterator<Item = T>) -> String {
    array(values.into_iter().map(|value| text(&value)))
}

fn array(values: impl Iterator<Item = String>) -> String {
    format!("[{}]", values.collect::<Vec<_>>().join(", "))
}

/// Without the path `/` that the parser adds where none was given.
pub(super) fn url(url: &Uri) -> String {
    text(url.to_string().trim_end_matches('/'))
}

pub(super) fn file(path: &(impl AsRef<Path> + ?Sized)) -> String {
    text(&path.as_ref().display())
}

pub(super) fn rate(rate: &Option<Rate>) -> String {
    rate.as_ref().map_or_else(|| text("0/s"), text)
}

pub(super) fn hex(hash: &[u8; 32]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn listen(listen: &[Listen]) -> String {
    list(listen.iter().map(|listen| match listen {
        Listen::Tcp(address) => address.to_string(),
        Listen::Unix(path) => format!("unix:{}", path.display()),
        Listen::Systemd(name) => format!("systemd:{name}"),
    }))
}

pub(super) fn proxies(proxies: &Proxies) -> String {
    list(proxies.networks.iter().map(ToString::to_string).chain(proxies.unix.then(|| "unix".to_owned())))
}

pub(super) fn tls(tls: &Tls) -> String {
    let client_ca = tls.client_ca.as_ref();
    let client_ca = client_ca.map_or_else(String::new, |ca| format!(", client_ca = {}", file(ca)));
    format!("{{ cert = {}, key = {}{client_ca} }}", file(&tls.cert), file(&tls.key))
}

/// A token's hash; with its expiry, if it has one.
pub(super) fn tokens(tokens: &[Token]) -> String {
    array(tokens.iter().map(|token| {
        let hash = text(&hex(&token.sha256));
        match token.expires {
            None => hash,
            Some(expires) => format!("{{ sha256 = {hash}, expires = {} }}", text(&expires)),
        }
    }))
}

pub(super) fn required_filters(filters: &[RequiredFilter]) -> String {
    array(filters.iter().map(|filter| {
        let (op, field) = (text(filter.op.as_str()), text(&filter.field));
        format!("{{ op = {op}, field = {field}, values = {} }}", list(&filter.values))
    }))
}

pub(super) fn proxy(proxy: &Option<Proxy>) -> String {
    let Some(proxy) = proxy else { return text("none") };
    let user = proxy.user.as_ref().map_or_else(String::new, |user| format!("{}@", percent_encoded(user)));
    let url = text(&format_args!("http://{user}{}", proxy.address));
    match &proxy.password {
        None => url,
        Some(source) => {
            let place = place_of(source).unwrap_or_else(|| text(MASK));
            format!("{{ url = {url}, password = {place} }}{MASKED}")
        }
    }
}

/// The characters that may come before the `@` of a URL (RFC 3986 section 3.2.1), without its sub-delimiters.
fn percent_encoded(user: &str) -> String {
    let encoded = |byte: u8| match byte {
        b if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => char::from(b).to_string(),
        b => format!("%{b:02X}"),
    };
    user.bytes().map(encoded).collect()
}

/// An API key's SID is a name, not a secret. A value that does not look like one may be a secret under the wrong key.
pub(super) fn api_key(username: &str, source: &SecretSource) -> String {
    let digits = username.strip_prefix("SK").unwrap_or_default();
    let is_sid = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    match source {
        SecretSource::Literal if is_sid => text(username),
        source => secret(source),
    }
}

/// The place where a secret is kept, or a mask where it was given in clear text.
pub(super) fn secret(source: &SecretSource) -> String {
    place_of(source).map_or_else(|| text(MASK), |place| format!("{place}{MASKED}"))
}

/// The same for a list of secrets.
pub(super) fn secrets(sources: &[SecretSource]) -> String {
    let places = sources.iter().map(|source| place_of(source).unwrap_or_else(|| text(MASK)));
    format!("{}{MASKED}", array(places))
}

fn place_of(source: &SecretSource) -> Option<String> {
    match source {
        SecretSource::Literal => None,
        SecretSource::File(path) => Some(format!("{{ file = {} }}", file(path))),
        SecretSource::Env(name) => Some(format!("{{ env = {} }}", text(name))),
        SecretSource::Credential(name) => Some(format!("{{ credential = {} }}", text(name))),
    }
}
