//! Request ids: the client's own, if it is well formed, else one of ours.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderMap, HeaderName, HeaderValue};

/// Where an id travels.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request with these headers. Well formed is 1 to 128 letters, digits, `-`, `_`, `.` and `:`.
pub fn of(headers: &HeaderMap) -> HeaderValue {
    let well_formed = |id: &&HeaderValue| {
        let bytes = id.as_bytes();
        (1..=128).contains(&bytes.len())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':'))
    };
    headers.get(REQUEST_ID).filter(well_formed).cloned().unwrap_or_else(fresh)
}

/// 32 hexadecimal digits: unique within the process by a counter, between processes by chance. No secret.
pub fn fresh() -> HeaderValue {
    static PROCESS: LazyLock<u64> = LazyLock::new(|| fastrand::u64(..));
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let halves = [*PROCESS, COUNTER.fetch_add(1, Ordering::Relaxed)];
    let mut digits = [0u8; 32];
    for (i, digit) in digits.iter_mut().enumerate() {
        *digit = HEX[(halves[i / 16] >> (60 - 4 * (i % 16)) & 15) as usize];
    }
    HeaderValue::from_bytes(&digits).unwrap_or_else(|_| HeaderValue::from_static("0"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn keeps_a_well_formed_id_and_replaces_others() {
        let id = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(value).unwrap());
            of(&headers)
        };
        assert_eq!(id(b"abc-123_x.y:z"), "abc-123_x.y:z");
        for bad in [&b""[..], b"a b", b"a\"b", b"\xff", &[b'a'; 129]] {
            assert_ne!(id(bad).as_bytes(), bad);
        }
    }

    #[test]
    fn fresh_ids_differ() {
        let ids: HashSet<_> = (0..1000).map(|_| fresh()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.len() == 32));
    }
}
