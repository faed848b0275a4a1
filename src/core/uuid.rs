//! UUIDs of version 7 (RFC 9562 section 5.7): random, and sorted by the time at which they were made.

use std::time::{SystemTime, UNIX_EPOCH};

/// A UUID with this time and these random bits. It is not secret.
pub fn v7(now: SystemTime, random: u128) -> String {
    const VERSION: u128 = 7 << 76;
    const VARIANT: u128 = 0b10 << 62;
    let millis = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    let random = random & !(u128::MAX << 80) & !(0xf << 76) & !(0b11 << 62);
    let digits = format!("{:032x}", millis << 80 | VERSION | VARIANT | random);
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn has_the_time_the_version_and_the_variant_of_the_standards_example() {
        // RFC 9562, appendix A.6.
        let then = UNIX_EPOCH + Duration::from_millis(0x017F_22E2_79B0);
        let random = 0x0CC3 << 64 | 0x18C4_DC0C_0C07_398F;
        assert_eq!(v7(then, random), "017f22e2-79b0-7cc3-98c4-dc0c0c07398f");
        assert_eq!(v7(then, u128::MAX), "017f22e2-79b0-7fff-bfff-ffffffffffff");
        assert_eq!(v7(UNIX_EPOCH, 0), "00000000-0000-7000-8000-000000000000");
    }
}
