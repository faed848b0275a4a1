//! Values that several sections have: times, URLs, hosts, hashes of tokens.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use http::uri::Authority;

pub(super) const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;
pub(super) const PIB: u64 = 1 << 50;

pub(super) fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

pub(super) fn minutes(count: u64) -> Duration {
    seconds(count * 60)
}

pub(super) fn hours(count: u64) -> Duration {
    minutes(count * 60)
}

pub(super) fn days(count: u64) -> Duration {
    hours(count * 24)
}

pub(super) fn parse_sha256(text: &str) -> Result<[u8; 32], &'static str> {
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
pub(super) enum Paths {
    Allowed,
    Refused,
}

pub(super) fn parse_url(text: &str, paths: Paths) -> Result<Uri, &'static str> {
    const EXPECTED: &str = "expected a URL such as \"https://host\" or \"http://127.0.0.1:4010\"";
    let url: Uri = text.parse().map_err(|_| EXPECTED)?;
    let (Some(scheme), Some(authority)) = (url.scheme_str(), url.authority()) else {
        return Err(EXPECTED);
    };
    match () {
        () if !matches!(scheme, "http" | "https") => Err("must start with http:// or https://"),
        () if authority.as_str().contains('@') => Err("must not contain a user or password; remove them"),
        () if authority.host().is_empty() => Err(EXPECTED),
        () if !has_sound_port(authority) => Err("the port must be a number from 1 to 65535"),
        () if url.query().is_some() || text.contains('#') => Err("must not contain a query or a fragment; remove it"),
        () if paths == Paths::Refused && url.path().trim_end_matches('/').eq_ignore_ascii_case("/v3") => {
            Err("must not end in /v3, because every path begins with it; give only scheme, host and port")
        }
        () if paths == Paths::Refused && !matches!(url.path(), "" | "/") => {
            Err("must not contain a path; give only scheme, host and port")
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

/// Whether a URL's host, without brackets, is this machine (RFC 6761 section 6.3).
pub(super) fn is_loopback(host: &str) -> bool {
    let is_address = |ip: IpAddr| ip.to_canonical().is_loopback();
    host == "localhost" || host.ends_with(".localhost") || host.parse().is_ok_and(is_address)
}

/// Longest path that fits into a Unix socket's address.
const LONGEST_SOCKET_PATH: usize = 107;

/// The path of a Unix socket, if an address can hold it.
pub(super) fn socket_path(path: &str) -> Result<PathBuf, &'static str> {
    match path {
        _ if !path.starts_with('/') => Err("a Unix socket needs an absolute path, such as \"unix:/run/insights.sock\""),
        _ if path.len() > LONGEST_SOCKET_PATH => Err("the path of a Unix socket is at most 107 bytes long; shorten it"),
        _ if path.contains('\0') => Err("the path of a Unix socket cannot contain a zero byte"),
        _ => Ok(PathBuf::from(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known_in_all_its_spellings() {
        for host in ["localhost", "a.localhost", "127.0.0.1", "127.255.0.9", "::1", "::ffff:127.0.0.1"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.example", "notlocalhost", "128.0.0.1", "::2", "0.0.0.0"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
