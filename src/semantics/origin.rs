//! Requests that web pages send through a visitor's browser: which site a request comes from, and whether that is ours.
//!
//! Where no token is demanded, a page of any site could reach the gateway through a browser that can. The browser says
//! which page sends the request: by `Origin` (RFC 6454 section 7), and by `Sec-Fetch-Site` (Fetch Metadata) where it
//! leaves `Origin` out. Programs send neither header, and are let through. The data plane and the admin plane share
//! this check.

use std::fmt;

use http::uri::Authority;
use http::{HeaderMap, HeaderName, Request, header};

use crate::core::fields;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Scheme, host and port of a site, as a browser names it. Hosts are compared without regard to case. A port that is
/// left out is the scheme's default port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    secure: bool,
    host: Box<str>,
    port: u16,
}

impl Origin {
    /// Reads one exact origin: `https://dashboards.example`, `http://[::1]:3000`.
    ///
    /// # Errors
    ///
    /// What a valid one looks like.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str =
            "expected an origin as browsers send it, such as \"https://dashboards.example\", without a path";
        let (scheme, rest) = text.split_once("://").ok_or(EXPECTED)?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err("an origin starts with http:// or https://"),
        };
        let authority = authority(rest).filter(|authority| !authority.as_str().contains('@')).ok_or(EXPECTED)?;
        let host = authority.host();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let is_address = host.starts_with('[');
        match () {
            () if host.contains('*') => Err("each origin is named in full, there is no *; add one entry for each site"),
            () if host.is_empty() || !(is_address || host.chars().all(is_plain)) => Err(EXPECTED),
            () => match authority.port_u16() {
                Some(0) => Err("the port must be a number from 1 to 65535"),
                port => Ok(Self {
                    secure,
                    host: host.to_ascii_lowercase().into(),
                    port: port.unwrap_or(default_port(secure)),
                }),
            },
        }
    }

    /// Whether this is the site at `authority`. An authority has no scheme and may have no port; both are assumed to be
    /// what the browser says, because a proxy in front may have ended TLS.
    fn is_at(&self, authority: &Authority) -> bool {
        authority.host().eq_ignore_ascii_case(&self.host)
            && authority.port_u16().unwrap_or(default_port(self.secure)) == self.port
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.secure { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.host)?;
        if self.port == default_port(self.secure) { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

const fn default_port(secure: bool) -> u16 {
    if secure { 443 } else { 80 }
}

/// A host and an optional port. `host:`, `host:99999` and the like are refused.
pub fn authority(text: &str) -> Option<Authority> {
    let authority: Authority = text.parse().ok()?;
    let rest = authority.as_str().strip_prefix(authority.host())?;
    (rest.is_empty() || authority.port_u16().is_some()).then_some(authority)
}

/// The authority that a request was sent to: its target's, else its only `Host` (RFC 9112 section 3.2.2).
pub fn authority_of<B>(request: &Request<B>) -> Option<Authority> {
    if let Some(target) = request.uri().authority() {
        return Some(target.clone());
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => authority(host.to_str().ok()?),
        _ => None,
    }
}

/// The origin that the request names; `Some(None)` where it is `null`, malformed or not the only one.
pub fn of(headers: &HeaderMap) -> Option<Option<Origin>> {
    let mut origins = fields::values(headers, header::ORIGIN);
    let first = origins.next()?;
    let alone = origins.next().is_none();
    Some(first.to_str().ok().filter(|_| alone).and_then(|text| Origin::parse(text).ok()))
}

/// Whether the request names an origin that is neither the authority that it was sent to nor in `allowed`.
pub fn names_another<B>(request: &Request<B>, allowed: &[Origin]) -> bool {
    of(request.headers()).is_some_and(|origin| !is_ours(origin.as_ref(), request, allowed))
}

/// Whether a browser sends the request for a page of another site: [`names_another`] finds such an origin, or there is
/// no `Origin` and `Sec-Fetch-Site` says so.
pub fn is_cross_site<B>(request: &Request<B>, allowed: &[Origin]) -> bool {
    match of(request.headers()) {
        Some(origin) => !is_ours(origin.as_ref(), request, allowed),
        None => {
            let mut sites = fields::values(request.headers(), SEC_FETCH_SITE);
            sites.any(|site| !matches!(site.as_bytes(), b"same-origin" | b"none"))
        }
    }
}

fn is_ours<B>(origin: Option<&Origin>, request: &Request<B>, allowed: &[Origin]) -> bool {
    origin.is_some_and(|origin| {
        allowed.contains(origin) || authority_of(request).is_some_and(|authority| origin.is_at(&authority))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&str, &str)]) -> Request<()> {
        let request = Request::builder().uri("/status");
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).body(()).unwrap()
    }

    fn asks(headers: &[(&str, &str)]) -> bool {
        is_cross_site(&request(headers), &[])
    }

    #[test]
    fn an_origin_is_exact() {
        let same = |one: &str, other: &str| Origin::parse(one).unwrap() == Origin::parse(other).unwrap();
        assert!(same("https://a.example", "HTTPS://A.example:443") && same("http://[::1]", "http://[::1]:80"));
        assert!(!same("https://a.example", "http://a.example") && !same("http://a:1", "http://a:2"));
        assert_eq!(Origin::parse("HTTP://A.example:80").unwrap().to_string(), "http://a.example");
        assert_eq!(Origin::parse("https://a.example:80").unwrap().to_string(), "https://a.example:80");
        for text in [
            "*",
            "",
            "null",
            "https://",
            "https://*",
            "https://*.example",
            "https://a.example/",
            "https://a.example/x",
            "https://a.example?x",
            "https://u@a.example",
            "https://a:0",
            "https://a:",
            "https://a:99999",
            "a.example",
            "ftp://a.example",
            "file://",
            "https://a b",
            "https://a.example, https://b.example",
            "https://ä.example",
        ] {
            assert!(Origin::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn programs_and_our_own_pages_are_not_cross_site() {
        let own = [("host", "127.0.0.1:9090"), ("origin", "http://127.0.0.1:9090")];
        assert!(!asks(&[]) && !asks(&[("host", "localhost:9090")]) && !asks(&own));
        assert!(!asks(&[own[0], own[1], ("sec-fetch-site", "same-origin")]));
        assert!(!asks(&[("host", "[::1]:9090"), ("sec-fetch-site", "none")]));
        // The ports may be left out, and a proxy may have ended TLS.
        assert!(
            !asks(&[("host", "gw"), ("origin", "https://gw")]) && !asks(&[("host", "gw:80"), ("origin", "http://GW")])
        );
        let listed = [Origin::parse("https://a.example").unwrap()];
        let page = request(&[("host", "gw"), ("origin", "https://a.example"), ("sec-fetch-site", "cross-site")]);
        assert!(!is_cross_site(&page, &listed) && is_cross_site(&page, &[]));
    }

    #[test]
    fn pages_of_other_sites_are_recognised() {
        let host = ("host", "localhost:9090");
        for origin in [
            "https://evil.example",
            "null",
            "",
            "http://localhost:3000",
            "http://localhost",
            "https://localhost",
            "http://localhost:9090/",
            "http://localhost:9090.evil.example",
            "localhost:9090",
            "http://127.0.0.1:9090",
            "http://localhost.:9090",
            "chrome-extension://localhost:9090",
        ] {
            assert!(asks(&[host, ("origin", origin)]), "{origin}");
            assert!(asks(&[host, ("origin", origin), ("sec-fetch-site", "same-origin")]), "{origin}");
            assert!(names_another(&request(&[host, ("origin", origin)]), &[]), "{origin}");
        }
        for site in ["cross-site", "same-site", "", "Same-Origin", "other"] {
            assert!(asks(&[host, ("sec-fetch-site", site)]), "{site}");
            assert!(!names_another(&request(&[host, ("sec-fetch-site", site)]), &[]));
        }
        assert!(asks(&[host, ("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")]));
        let own = ("origin", "http://localhost:9090");
        assert!(asks(&[host, own, ("origin", "https://evil.example")]) && asks(&[own]) && asks(&[host, host, own]));
    }
}
