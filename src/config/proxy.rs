//! The forward proxy to the upstream: from `upstream.proxy`, or from the environment's usual variables.

use std::net::IpAddr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderValue, Uri};
use zeroize::Zeroizing;

use super::path::Path;
use super::place::Place;
use super::reader::{Field, Table};
use super::record::{Entry, Key};
use super::report::Report;
use super::secret;
use super::settings::{Proxy, SecretSource};
use super::shape::Shape;
use super::show;
use super::sources::Sources;
use super::tree::Value;
use super::values::{has_sound_port, is_loopback};
use crate::core::network::Network;

/// In curl's order, which most programs follow.
const PROXY_VARIABLES: [&str; 2] = ["https_proxy", "HTTPS_PROXY"];
const EXEMPT_VARIABLES: [&str; 2] = ["no_proxy", "NO_PROXY"];

const EXPECTED: &str = "expected the URL of a proxy such as \"http://egress.example:3128\", or \"none\"";
const WRITTEN_OUT: &str = "the password is written out in the configuration; keep it in \
     { url = \"…\", password = { file = \"…\" } }, or in { env = \"…\" } or { credential = \"…\" }";

/// Reads `proxy` of the table `upstream`, whose URL is `upstream`.
pub(super) fn read(table: &mut Table<'_>, sources: &Sources, upstream: &Uri) -> Option<Proxy> {
    let report = table.report();
    let (proxy, origin) = match table.take("proxy") {
        Some(field) => (of_field(field, sources), None),
        None => of_environment(sources, upstream, report).unzip(),
    };
    let entry = Entry::new(
        table.path(),
        Key::from("proxy").of(Shape::Proxy),
        Some(show::proxy(&proxy)),
        Some(show::proxy(&None)),
    );
    report.record(entry, origin);
    proxy
}

fn of_field(field: Field<'_>, sources: &Sources) -> Option<Proxy> {
    if matches!(field.node.value, Value::Table(_)) {
        return field.table()?.read(|table| of_table(table, sources));
    }
    let (report, path) = (field.report, field.path.clone());
    let is_of_environment = matches!(field.node.place, Place::Environment(_));
    let text = field.text("the URL of a proxy, or { url = \"…\", password = { file = \"…\" } }")?;
    if *text == "none" {
        return None;
    }
    match Address::parse(&text) {
        Ok(address) => {
            if address.password.is_some() && !is_of_environment {
                report.warn(&path, WRITTEN_OUT);
            }
            Some(address.with_password(SecretSource::Literal))
        }
        Err(message) => refuse(report, &path, message),
    }
}

fn refuse<T>(report: &Report, path: &Path, message: &str) -> Option<T> {
    report.fault(path, message);
    None
}

/// `{ url = "…", password = … }`
fn of_table(table: &mut Table<'_>, sources: &Sources) -> Option<Proxy> {
    let (report, path) = (table.report(), table.path().clone());
    let url = table.require("url", EXPECTED).and_then(|field: Field<'_>| field.text("text"));
    let password = table.take("password").map(|field| secret::read(field, sources));
    let mut address = match Address::parse(&url?) {
        Ok(address) => address,
        Err(message) => return refuse(report, &path.key("url"), message),
    };
    let Some(password) = password else {
        if address.password.is_some() {
            report.warn(&path.key("url"), WRITTEN_OUT);
        }
        return Some(address.with_password(SecretSource::Literal));
    };
    // A password that cannot be read is a fault already.
    let password = password?;
    if address.password.is_some() {
        return refuse(report, &path.key("password"), "the URL contains a password too; remove it there");
    }
    if address.user.is_none() {
        return refuse(report, &path.key("password"), "the URL names no user; write http://USER@HOST:PORT");
    }
    if password.source == SecretSource::Literal {
        report.warn(&path.key("password"), WRITTEN_OUT);
    }
    address.password = Some(password.text);
    Some(address.with_password(password.source))
}

/// What the environment's variables say for `upstream`, and which variable it is. They never apply to loopback, where a
/// proxy is never wanted.
fn of_environment(sources: &Sources, upstream: &Uri, report: &Report) -> Option<(Proxy, Place)> {
    let host = upstream.host().unwrap_or_default().trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
    let port = upstream.port_u16().unwrap_or(if upstream.scheme_str() == Some("https") { 443 } else { 80 });
    if is_loopback(&host) {
        return None;
    }
    let (name, text) = PROXY_VARIABLES.iter().find_map(|name| Some((*name, sources.variable(name, report)?)))?;
    let exempt = EXEMPT_VARIABLES.iter().find_map(|name| sources.variable(name, report)).unwrap_or_default();
    if is_exempt(&host, port, exempt) {
        return None;
    }
    let place = Place::Environment(Some(name.to_owned()));
    match Address::parse(text) {
        Ok(address) => Some((address.with_password(SecretSource::Literal), place)),
        Err(message) => {
            report.fault_at(place, Path::default(), message);
            None
        }
    }
}

/// Whether a list like `NO_PROXY` names this host, in lower case, and port. An entry is a host, a domain (with a
/// leading dot, `*.` or neither), an address or a network, each with an optional port; or `*` for all hosts.
fn is_exempt(host: &str, port: u16, list: &str) -> bool {
    let address = host.parse::<IpAddr>().ok();
    let names = |entry: &str| match Network::around(entry.trim_matches(['[', ']'])) {
        Some(network) => address.is_some_and(|address| network.contains(address)),
        None => {
            let domain = entry.strip_prefix('*').unwrap_or(entry).trim_matches('.').to_ascii_lowercase();
            let is_below = || host.strip_suffix(&domain).is_some_and(|rest| rest.ends_with('.'));
            address.is_none() && !domain.is_empty() && (*host == domain || is_below())
        }
    };
    list.split([',', ' ', '\t']).filter(|entry| !entry.is_empty()).any(|entry| {
        let with_port = entry.rsplit_once(':').and_then(|(host, digits)| Some((host, digits.parse::<u16>().ok()?)));
        match with_port {
            _ if entry == "*" => true,
            // Not the last part of an IPv6 address.
            Some((host, of_port)) if !host.contains(':') || host.ends_with(']') => of_port == port && names(host),
            _ => names(entry),
        }
    })
}

/// The parts of a proxy's URL.
struct Address {
    authority: Authority,
    user: Option<String>,
    password: Option<Zeroizing<String>>,
}

impl Address {
    /// `http://USER:PASSWORD@HOST:PORT`; scheme, user, password and port may be left out.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let rest = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => {
                return Err(
                    "a proxy that is reached by https:// is not supported; name one that is reached by http://",
                );
            }
            Some(_) => return Err("must start with http://; other kinds of proxies are not supported"),
            None => text,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (userinfo, host) = match rest.rsplit_once('@') {
            Some((userinfo, host)) => (Some(userinfo), host),
            None => (None, rest),
        };
        if host.contains(['/', '?', '#']) {
            return Err("must not contain a path, a query or a fragment; give only user, host and port");
        }
        let authority: Authority = host.parse().map_err(|_| EXPECTED)?;
        match () {
            () if authority.host().is_empty() => return Err(EXPECTED),
            () if !has_sound_port(&authority) => return Err("the port must be a number from 1 to 65535"),
            () => {}
        }
        let Some(userinfo) = userinfo else { return Ok(Self { authority, user: None, password: None }) };
        const NO_USER: &str = "the user and password must be text, with special characters written as %XX";
        let decode = |text: &str| percent_decoded(text).ok_or(NO_USER);
        let (user, password) = match userinfo.split_once(':') {
            Some((user, password)) => (user, Some(decode(password)?)),
            None => (userinfo, None),
        };
        let user = decode(user)?;
        match user.contains(':') {
            true => Err("the user must not contain a colon, because a colon ends it in Basic authentication"),
            false => Ok(Self { authority, user: Some(user.to_string()), password }),
        }
    }

    /// The complete proxy; the password, if there is one, is kept at `source`. A password in the URL is in clear text
    /// in the configuration, whatever `source` says.
    fn with_password(self, source: SecretSource) -> Proxy {
        let Self { authority, user, password } = self;
        let authorization = user.as_ref().and_then(|user| {
            let pair = Zeroizing::new(format!("{user}:{}", password.as_ref().map_or("", |password| password)));
            let basic = Zeroizing::new(format!("Basic {}", BASE64_STANDARD.encode(pair.as_bytes())).into_bytes());
            // Base64 is always a valid header value. The bytes are wiped when the last user drops them.
            let mut authorization = HeaderValue::from_maybe_shared(Bytes::from_owner(basic)).ok()?;
            authorization.set_sensitive(true);
            Some(authorization)
        });
        let password = password.map(|_| source);
        Proxy { address: authority, user, password, authorization }
    }
}

/// `text` with its percent escapes decoded (RFC 3986 section 2.1); `None` where the result is not text or has control
/// characters.
fn percent_decoded(text: &str) -> Option<Zeroizing<String>> {
    let mut plain = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        plain.push(match byte {
            b'%' => u8::try_from(digit()? << 4 | digit()?).ok()?,
            byte => byte,
        });
    }
    let plain = std::str::from_utf8(&plain).ok()?;
    (!plain.contains(char::is_control)).then(|| Zeroizing::new(plain.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_exempt_by_name_domain_address_network_and_port() {
        for (host, port, list, exempt) in [
            ("insights.example", 443, "insights.example", true),
            ("insights.example", 443, "other.example, INSIGHTS.example", true),
            ("insights.example", 443, "other.example insights.example.", true),
            ("insights.example", 443, "example", true),
            ("insights.example", 443, ".example", true),
            ("insights.example", 443, "*.example", true),
            ("insights.example", 443, ".insights.example", true),
            ("insights.example", 443, "sights.example", false),
            ("insights.example", 443, "insights.example.org", false),
            ("insights.example", 443, "insights.example:443", true),
            ("insights.example", 443, "insights.example:80", false),
            ("insights.example", 443, ".example:443", true),
            ("insights.example", 443, "insights.example:99999", false),
            ("insights.example", 443, "*", true),
            ("insights.example", 443, "x,*", true),
            ("insights.example", 443, "", false),
            ("insights.example", 443, " ,,. ", false),
            ("insights.example", 443, "0.0.0.0/0,::/0", false),
            ("192.0.2.7", 80, "192.0.2.7", true),
            ("192.0.2.7", 80, "192.0.2.0/24", true),
            ("192.0.2.7", 80, "192.0.2.99/24", true),
            ("192.0.2.7", 80, "192.0.2.7:80", true),
            ("192.0.2.7", 80, "192.0.2.7:81,192.0.2.70", false),
            ("192.0.2.7", 80, "2.7,.7", false),
            ("192.0.2.7", 80, "::/0", false),
            ("2001:db8::7", 443, "2001:db8::/32", true),
            ("2001:db8::7", 443, "2001:DB8:0::7", true),
            ("2001:db8::7", 443, "[2001:db8::7]", true),
            ("2001:db8::7", 443, "[2001:db8::7]:443", true),
            ("2001:db8::7", 443, "[2001:db8::7]:80", false),
            ("2001:db8::7", 443, "2001:db8::8", false),
        ] {
            assert_eq!(is_exempt(host, port, list), exempt, "{host}:{port} by {list:?}");
        }
    }

    #[test]
    fn addresses_are_parsed() {
        let basic = |text: &str| {
            let proxy = Address::parse(text).unwrap().with_password(SecretSource::Literal);
            let header = proxy.authorization.as_ref().map(|value| {
                assert!(value.is_sensitive());
                let basic = value.to_str().unwrap().strip_prefix("Basic ").unwrap();
                String::from_utf8(BASE64_STANDARD.decode(basic).unwrap()).unwrap()
            });
            (proxy.address.to_string(), header)
        };
        assert_eq!(basic("http://egress.example:3128"), ("egress.example:3128".to_owned(), None));
        assert_eq!(basic("HTTP://egress.example/"), ("egress.example".to_owned(), None));
        assert_eq!(basic("[2001:db8::1]:3128"), ("[2001:db8::1]:3128".to_owned(), None));
        let with = |pair: &str| ("egress.example:1".to_owned(), Some(pair.to_owned()));
        assert_eq!(basic("http://us%40er:p%3a%2Fss@egress.example:1"), with("us@er:p:/ss"));
        assert_eq!(basic("http://user@egress.example:1"), with("user:"));
        assert_eq!(basic("user:a:b@c@egress.example:1"), with("user:a:b@c"));
    }

    #[test]
    fn malformed_proxies_are_refused_and_never_repeated() {
        for text in [
            "",
            "http://",
            "https://egress.example:3128",
            "socks5://egress.example:1080",
            "http://egress.example:0",
            "http://egress.example:65536",
            "http://egress.example:",
            "http://egress.example:3128/path",
            "http://egress.example:3128?x",
            "http://planted:secret@",
            "http://planted:secr%zzet@egress.example",
            "http://planted:secr%0aet@egress.example",
            "http://planted:secr%ffet@egress.example",
            "http://planted:sec ret@egress .example",
            "http://plan%3ated:x@egress.example",
        ] {
            let message = Address::parse(text).err().unwrap_or_else(|| panic!("{text} was accepted"));
            assert!(!message.contains("planted") && !message.contains("secr"), "{message}");
        }
    }
}
