//! The times of `--since` and `--until`: RFC 3339, or a date, which means its start in the query's zone.

use jiff::Timestamp;
use jiff::civil::Date;

/// Checks a time and returns it unchanged. What a date means depends on the zone, and Twilio applies the zone.
pub(super) fn moment(text: &str) -> Result<String, &'static str> {
    const EXPECTED: &str = "expected a date such as 2026-04-02, or a time such as 2026-04-02T10:00:00Z (RFC 3339)";
    let is_moment = match text.len() {
        0..10 => false,
        10 => has_shape(text, b"0000-00-00") && text.parse::<Date>().is_ok(),
        // jiff accepts more than RFC 3339: spaces, zone names, times without seconds.
        _ => is_rfc_3339(text) && text.parse::<Timestamp>().is_ok(),
    };
    if is_moment { Ok(text.to_owned()) } else { Err(EXPECTED) }
}

/// Whether the characters match: a `0` matches any digit, all others match themselves.
fn has_shape(text: &str, shape: &[u8]) -> bool {
    text.len() == shape.len()
        && text
            .bytes()
            .zip(shape)
            .all(|(byte, shape)| if *shape == b'0' { byte.is_ascii_digit() } else { byte == *shape })
}

fn is_rfc_3339(text: &str) -> bool {
    let Some((clock, rest)) = text.split_at_checked(19) else { return false };
    let rest = match rest.strip_prefix('.') {
        None => rest,
        Some(rest) => {
            let fraction = rest.trim_start_matches(|c: char| c.is_ascii_digit());
            if fraction.len() == rest.len() {
                return false;
            }
            fraction
        }
    };
    let is_offset = rest == "Z" || has_shape(rest, b"+00:00") || has_shape(rest, b"-00:00");
    has_shape(clock, b"0000-00-00T00:00:00") && is_offset
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dates_and_rfc_3339_are_kept_as_they_are() {
        for text in [
            "2026-04-02",
            "2026-04-02T10:00:00Z",
            "2026-04-02T10:00:00.125Z",
            "2026-04-02T10:00:00-07:00",
            "2028-02-29",
        ] {
            assert_eq!(moment(text).as_deref(), Ok(text));
        }
        for text in [
            "",
            "yesterday",
            "2026-4-2",
            "20260402",
            "2026-02-29",
            "2026-13-01",
            "2026-04-02T10:00:00",
            "2026-04-02T10:00Z",
            "2026-04-02 10:00:00Z",
            "2026-04-02T25:00:00Z",
            "2026-04-02T10:00:00.Z",
            "2026-04-02T10:00:00+07:00[Asia/Tokyo]",
            "é026-04-0",
        ] {
            assert!(moment(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_does_not_panic(text in ".*", near in "[0-9]{4}-[0-9]{2}-[0-9]{2}[T0-9:.Z+-]{0,20}é?") {
            let _ = moment(&text);
            let _ = moment(&near);
        }
    }
}
