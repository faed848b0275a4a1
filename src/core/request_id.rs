//! Request ids: the client's own, if it is well formed, else a generated one.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::core::fields;

/// The header with the id.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request with these headers. A well-formed id has 1 to 128 letters, digits, `-`, `_`, `.` and `:`.
pub fn of(headers: &HeaderMap) -> HeaderValue {
    let well_formed = |id: &&HeaderValue| {
        let bytes = id.as_bytes();
        (1..=128).contains(&bytes.len())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':'))
    };
    fields::values(headers, REQUEST_ID).next().filter(well_formed).cloned().unwrap_or_else(fresh)
}

/// 32 hexadecimal digits, unique within the process by a counter and between processes by a random part. It is not a
/// secret.
pub fn fresh() -> HeaderValue {
    static PROCESS: LazyLock<[u8; 16]> = LazyLock::new(|| hex(fastrand::u64(..)));
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let mut digits = [0u8; 32];
    digits[..16].copy_from_slice(&*PROCESS);
    digits[16..].copy_from_slice(&hex(COUNTER.fetch_add(1, Ordering::Relaxed)));
    // One allocation for this value and its copy in the response.
    let digits = Bytes::from_owner(digits);
    HeaderValue::from_maybe_shared(digits).unwrap_or_else(|_| HeaderValue::from_static("0"))
}

/// The hexadecimal digits of a number, computed without a loop, because every request needs them.
fn hex(number: u64) -> [u8; 16] {
    /// This byte, 16 times.
    const fn all(byte: u8) -> u128 {
        u128::from_ne_bytes([byte; 16])
    }
    // Spreads the digits to one per byte: the halves are moved apart, then the quarters, and so on.
    let mut digits = u128::from(number);
    digits = (digits | digits << 32) & 0x0000_0000_ffff_ffff_0000_0000_ffff_ffff;
    digits = (digits | digits << 16) & 0x0000_ffff_0000_ffff_0000_ffff_0000_ffff;
    digits = (digits | digits << 8) & 0x00ff_00ff_00ff_00ff_00ff_00ff_00ff_00ff;
    digits = (digits | digits << 4) & all(0x0f);
    // 1 in each byte whose value is 10 or more, where adding 6 reaches 16.
    let are_letters = (digits + all(6)) >> 4 & all(1);
    (digits + all(b'0') + are_letters * u128::from(b'a' - b'0' - 10)).to_be_bytes()
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
    fn digits_are_those_of_format() {
        for number in [0, 1, 0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210, 0x9a9a_9a9a_a9a9_a9a9, u64::MAX] {
            assert_eq!(hex(number).escape_ascii().to_string(), format!("{number:016x}"));
        }
    }

    #[test]
    fn fresh_ids_differ() {
        let ids: HashSet<_> = (0..1000).map(|_| fresh()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.len() == 32));
    }
}
