//! Names by which nobody else can reach this machine's loopback.
//!
//! A page in somebody's browser can reach a loopback address under a name whose DNS it controls (DNS rebinding).
//! It cannot choose an address or `localhost` as that name, so where there is no token the name has to be one of these.

use std::net::IpAddr;

/// Is `host`, without its port, an address or a loopback name (RFC 6761 section 6.3).
pub fn is_address_or_loopback(host: &str) -> bool {
    let plain = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    plain.parse::<IpAddr>().is_ok() || plain == "localhost" || plain.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_others_can_own_are_none() {
        for host in ["localhost", "LocalHost", "a.localhost", "127.0.0.1", "[::1]", "10.0.0.1"] {
            assert!(is_address_or_loopback(host), "{host}");
        }
        for host in ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "xlocalhost"] {
            assert!(!is_address_or_loopback(host), "{host}");
        }
    }
}
