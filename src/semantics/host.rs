//! Host names: when two URLs mean the same server, and which names of this machine's loopback no attacker can own.
//!
//! A page in a browser can reach a loopback address under a name whose DNS the page's owner controls (DNS rebinding).
//! It cannot use an address or `localhost` in this way. So where no token is demanded, the name must be an address or a
//! loopback name.

use std::net::IpAddr;

use http::uri::Authority;
use http::{Request, Uri, Version, header};

use super::origin::authority;

/// The host that a request is sent to; `None` where an HTTP/1.0 request names none.
///
/// # Errors
///
/// What is wrong with it, where two servers could understand different hosts.
pub fn named<B>(request: &Request<B>) -> Result<Option<Authority>, &'static str> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (host, None) = (hosts.next(), hosts.next()) else { return Err("the request names more than one Host") };
    let host = host.map(|host| host.to_str().ok().and_then(authority));
    let target = request.uri().authority().map(|target| authority(target.as_str()));
    match (target, host) {
        (Some(None), _) | (None, Some(None)) => Err("the request's host is malformed"),
        // RFC 9113 section 8.3.1: they must be equal.
        (Some(target), Some(host)) if request.version() == Version::HTTP_2 && target != host => {
            Err("the request's authority and its Host differ")
        }
        // RFC 9112 section 3.2: HTTP/1.1 requires a Host whatever the target is.
        (_, None) if request.version() == Version::HTTP_11 => Err("the request names no Host"),
        // RFC 9112 section 3.2.2: the target's authority overrides the header.
        (Some(named), _) | (None, Some(named)) => Ok(named),
        (None, None) => Ok(None),
    }
}

/// Whether `host`, without its port, is an address or a loopback name (RFC 6761 section 6.3).
pub fn is_address_or_loopback(host: &str) -> bool {
    let plain = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    plain.parse::<IpAddr>().is_ok() || plain == "localhost" || plain.ends_with(".localhost")
}

/// The server that a URL names, in one spelling: scheme and host in lower case, always with the port, and the path if
/// it has one (RFC 9110 section 4.2.3).
pub fn origin(url: &Uri) -> String {
    let scheme = url.scheme_str().unwrap_or_default().to_ascii_lowercase();
    let port = url.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    let host = url.host().unwrap_or_default().to_ascii_lowercase();
    format!("{scheme}://{host}:{port}{}", url.path().trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_one_spelling() {
        for (url, expected) in [
            ("https://insights.twilio.com", "https://insights.twilio.com:443"),
            ("HTTPS://Insights.Twilio.COM:443/", "https://insights.twilio.com:443"),
            ("http://127.0.0.1:4010", "http://127.0.0.1:4010"),
            ("http://[::1]", "http://[::1]:80"),
            ("https://proxy.example/Twilio/", "https://proxy.example:443/Twilio"),
        ] {
            assert_eq!(origin(&Uri::from_static(url)), expected);
        }
    }

    #[test]
    fn names_that_others_can_own_are_not_loopback() {
        for host in ["localhost", "LocalHost", "a.localhost", "127.0.0.1", "[::1]", "10.0.0.1"] {
            assert!(is_address_or_loopback(host), "{host}");
        }
        for host in ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "xlocalhost"] {
            assert!(!is_address_or_loopback(host), "{host}");
        }
    }
}
