//! The time in which a certificate is valid (RFC 5280 section 4.1.2.5).

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::clock::Instant;
use super::der::{SEQUENCE, elements};

const EXPLICIT_VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The validity of a certificate. Both ends are included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Its beginning.
    pub not_before: SystemTime,
    /// Its end.
    pub not_after: SystemTime,
}

impl Validity {
    /// Reads the validity of a certificate in DER; `None` if it is malformed.
    pub fn of(certificate: &[u8]) -> Option<Self> {
        let (_, certificate) = elements(certificate).next().filter(|(tag, _)| *tag == SEQUENCE)?;
        let (_, to_be_signed) = elements(certificate).next().filter(|(tag, _)| *tag == SEQUENCE)?;
        // Serial number, signature algorithm and issuer come first.
        let mut fields = elements(to_be_signed).skip_while(|(tag, _)| *tag == EXPLICIT_VERSION);
        let (_, validity) = fields.nth(3).filter(|(tag, _)| *tag == SEQUENCE)?;
        let mut times = elements(validity).map(|(tag, text)| time(tag, text));
        Some(Self { not_before: times.next()??, not_after: times.next()?? })
    }
}

/// The validity of the certificate in use, and since when it has been in use. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct CertificateInUse(Arc<ArcSwapOption<(Validity, Instant)>>);

impl CertificateInUse {
    /// A certificate with this validity is in use from `now` on. A reload that brings the same one changes nothing.
    pub fn set(&self, validity: Option<Validity>, now: Instant) {
        if self.get().map(|(current, _)| current) != validity {
            self.0.store(validity.map(|validity| Arc::new((validity, now))));
        }
    }

    /// The validity, and since when that certificate has been in use; `None` without a certificate.
    pub fn get(&self) -> Option<(Validity, Instant)> {
        self.0.load().as_deref().copied()
    }
}

/// Parses `YYMMDDHHMMSSZ` with a year from 1950 to 2049, or `YYYYMMDDHHMMSSZ`. Certificates allow no other forms.
fn time(tag: u8, text: &[u8]) -> Option<SystemTime> {
    let digits = text.strip_suffix(b"Z").filter(|digits| digits.iter().all(u8::is_ascii_digit))?;
    let number = |digits: &[u8]| digits.iter().fold(0_i16, |number, digit| number * 10 + i16::from(digit - b'0'));
    let (year, rest) = match (tag, digits.len()) {
        (UTC_TIME, 12) => {
            let year = number(&digits[..2]);
            (if year < 50 { 2000 + year } else { 1900 + year }, &digits[2..])
        }
        (GENERALIZED_TIME, 14) => (number(&digits[..4]), &digits[4..]),
        _ => return None,
    };
    let part = |at: usize| i8::try_from(number(&rest[at..at + 2])).ok();
    let time = DateTime::new(year, part(0)?, part(2)?, part(4)?, part(6)?, part(8)?, 0).ok()?;
    // The last days of the year 9999, which mean "never" (RFC 5280 section 4.1.2.5), are beyond the greatest timestamp.
    Some(time.to_zoned(TimeZone::UTC).map_or(Timestamp::MAX, |time| time.timestamp()).into())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(text: &str) -> SystemTime {
        text.parse::<Timestamp>().unwrap().into()
    }

    #[test]
    fn validity_is_read_from_certificates_of_both_centuries() {
        for (from, until) in [((2020, 1, 2), (2030, 12, 31)), ((1980, 5, 6), (2051, 7, 8))] {
            let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params.not_before = rcgen::date_time_ymd(from.0, from.1, from.2);
            params.not_after = rcgen::date_time_ymd(until.0, until.1, until.2);
            let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
            let midnight = |(year, month, day): (i32, u8, u8)| at(&format!("{year}-{month:02}-{day:02}T00:00:00Z"));
            let expected = Validity { not_before: midnight(from), not_after: midnight(until) };
            assert_eq!(Validity::of(certificate.der()), Some(expected));
            for cut in [1, 40, 100, certificate.der().len() - 1] {
                assert_eq!(Validity::of(&certificate.der()[..cut]), None, "{cut} bytes");
            }
        }
    }

    #[test]
    fn a_certificate_that_comes_again_stays_in_use_since_its_first_time() {
        let (in_use, start, second) = (CertificateInUse::default(), Instant::now(), Duration::from_secs(1));
        assert_eq!(in_use.get(), None);
        let of = |end: &str| Some(Validity { not_before: at("2020-01-01T00:00:00Z"), not_after: at(end) });
        let (one, other) = (of("2030-01-01T00:00:00Z"), of("2031-01-01T00:00:00Z"));
        for (n, (validity, since)) in [(one, 0), (one, 0), (other, 2)].into_iter().enumerate() {
            in_use.set(validity, start + second * u32::try_from(n).unwrap());
            assert_eq!(in_use.get(), Some((validity.unwrap(), start + second * since)));
        }
        in_use.set(None, start);
        assert_eq!(in_use.get(), None);
    }

    #[test]
    fn only_the_time_formats_of_certificates_are_read() {
        let seconds = |text: &str| at(text).duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let read = |tag, text: &[u8]| time(tag, text).map(|time| time.duration_since(SystemTime::UNIX_EPOCH).unwrap());
        assert_eq!(read(UTC_TIME, b"491231235959Z"), Some(seconds("2049-12-31T23:59:59Z")));
        assert_eq!(read(UTC_TIME, b"700101000001Z"), Some(Duration::from_secs(1)));
        assert_eq!(time(GENERALIZED_TIME, b"99991231235959Z"), Some(Timestamp::MAX.into()));
        for (tag, text) in [
            (UTC_TIME, &b"491331235959Z"[..]),
            (UTC_TIME, b"4912312359Z"),
            (UTC_TIME, b"491231235959+0000"),
            (UTC_TIME, b"20491231235959Z"),
            (GENERALIZED_TIME, b"20490230235959Z"),
            (GENERALIZED_TIME, b"2049123123595x"),
            (SEQUENCE, b"491231235959Z"),
            (UTC_TIME, b""),
        ] {
            assert_eq!(read(tag, text), None, "{}", String::from_utf8_lossy(text));
        }
    }
}
