//! Quantities as people write them: durations (`250ms`), sizes (`1MiB`), rates (`5/s`).
//!
//! They are strict on purpose: a quantity without a unit is a fault, because `deadline = 90` is ambiguous.

use std::fmt;
use std::time::Duration;

/// A number of events per time, such as `5/s` or `300/min`. Never zero: "no limit" is an `Option` that is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    count: u32,
    per: Duration,
}

impl Rate {
    /// `count` per `per`; `None` where either is zero.
    pub fn new(count: u32, per: Duration) -> Option<Self> {
        (count > 0 && !per.is_zero()).then_some(Self { count, per })
    }

    /// Events per second.
    pub fn per_second(self) -> f64 {
        f64::from(self.count) / self.per.as_secs_f64()
    }

    /// Time between two tokens. At least one nanosecond.
    pub fn period(self) -> Duration {
        (self.per / self.count).max(Duration::from_nanos(1))
    }

    /// Events in one [`window`](Self::window).
    pub fn count(self) -> u32 {
        self.count
    }

    /// The time that [`count`](Self::count) refers to: the unit in which the rate was written.
    pub fn window(self) -> Duration {
        self.per
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.per.as_secs() {
            1 => "s",
            60 => "min",
            3600 => "h",
            _ => return write!(f, "{}/{}", self.count, Span(self.per)),
        };
        write!(f, "{}/{unit}", self.count)
    }
}

/// Reads `5/s`, `300/min`, `1000/h`; `Ok(None)` for `0/s`, which means "no limit".
pub fn parse_rate(text: &str) -> Result<Option<Rate>, &'static str> {
    const EXPECTED: &str = "expected a rate such as \"5/s\", \"300/min\" or \"1000/h\" (\"0/s\" is no limit)";
    let (count, unit) = text.split_once('/').ok_or(EXPECTED)?;
    let count: u32 = digits(count).ok_or(EXPECTED)?.try_into().map_err(|_| EXPECTED)?;
    let per = match unit {
        "s" => Duration::from_secs(1),
        "min" | "m" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        _ => return Err(EXPECTED),
    };
    Ok(Rate::new(count, per))
}

/// Reads `250ms`, `30s`, `15m`, `1h`, `7d`; `0s` is zero. At most 100 years.
pub fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    const EXPECTED: &str = "expected a duration such as \"250ms\", \"30s\", \"15m\", \"1h\" or \"7d\"";
    const LONGEST: Duration = Duration::from_secs(100 * 366 * 86_400);
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or(EXPECTED)?;
    let (number, unit) = text.split_at(split);
    let number = digits(number).ok_or(EXPECTED)?;
    let duration = match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        "d" => number.checked_mul(86_400).map(Duration::from_secs),
        _ => None,
    };
    duration.filter(|d| *d <= LONGEST).ok_or(EXPECTED)
}

/// Reads `512B`, `64KiB`, `1MiB`, `2GiB`, and the decimal units `kB`, `MB`, `GB`. At most 1 PiB.
pub fn parse_size(text: &str) -> Result<u64, &'static str> {
    const EXPECTED: &str = "expected a size such as \"512KiB\", \"1MiB\" or \"2GiB\"";
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or(EXPECTED)?;
    let (number, unit) = text.split_at(split);
    let unit: u64 = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err(EXPECTED),
    };
    digits(number).and_then(|n| n.checked_mul(unit)).filter(|n| *n <= 1 << 50).ok_or(EXPECTED)
}

fn digits(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

/// A duration in the form of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ms, s) = (self.0.as_millis(), u128::from(self.0.as_secs()));
        match () {
            () if ms % 1000 != 0 => write!(f, "{ms}ms"),
            () if s > 0 && s % 86_400 == 0 => write!(f, "{}d", s / 86_400),
            () if s > 0 && s % 3600 == 0 => write!(f, "{}h", s / 3600),
            () if s > 0 && s % 60 == 0 => write!(f, "{}m", s / 60),
            () => write!(f, "{s}s"),
        }
    }
}

/// A number of bytes in the form of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, name) in [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return write!(f, "{}{name}", self.0 / unit);
            }
        }
        write!(f, "{}B", self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_the_contract_writes() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
        assert_eq!(parse_size("1MiB"), Ok(1 << 20));
        assert_eq!(parse_rate("300/min").unwrap().unwrap().per_second(), 5.0);
        assert_eq!(parse_rate("0/s"), Ok(None));
    }

    #[test]
    fn refuses_malformed_quantities() {
        for text in ["", "90", "s", "-1s", "1.5s", " 1s", "1 s", "1S", "9999999999999999999d", "40000d"] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
        for text in ["", "1", "MiB", "1mib", "1.5MiB", "+1MiB", "99999999999GiB"] {
            assert!(parse_size(text).is_err(), "{text:?}");
        }
        for text in ["", "5", "5/", "/s", "5/day", "5 /s", "-5/s", "5000000000/s"] {
            assert!(parse_rate(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn shown_quantities_read_back(ms in 0u64..100_000_000, bytes in 0u64..1 << 50, count in 1u32.., unit in 0usize..3) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&Span(duration).to_string()), Ok(duration));
            prop_assert_eq!(parse_size(&Size(bytes).to_string()), Ok(bytes));
            let rate = Rate::new(count, Duration::from_secs([1, 60, 3600][unit]));
            prop_assert_eq!(parse_rate(&rate.unwrap().to_string()), Ok(rate));
        }
    }
}
