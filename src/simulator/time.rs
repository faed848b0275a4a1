//! Times, zones and grains: how a query's time zone turns times into the cells of a time column.
//!
//! Minutes and hours are rounded down on the zone's clock. When that clock is set back, equal hours remain different
//! times, so the day of a change has 23 or 25 hours. Days and longer grains begin at local midnight; weeks begin on
//! Monday. Pure arithmetic: this module does not read a clock.

use std::fmt;

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

/// The precision of a time column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grain {
    /// `.minute`
    Minute,
    /// `.hour`
    Hour,
    /// `.day`
    Day,
    /// `.week`, from Monday
    Week,
    /// `.month`
    Month,
    /// `.quarter`
    Quarter,
    /// `.year`
    Year,
}

impl Grain {
    /// Parses the suffix of a column's name.
    pub fn from_word(word: &str) -> Option<Self> {
        Some(match word {
            "minute" => Self::Minute,
            "hour" => Self::Hour,
            "day" => Self::Day,
            "week" => Self::Week,
            "month" => Self::Month,
            "quarter" => Self::Quarter,
            "year" => Self::Year,
            _ => return None,
        })
    }
}

/// A time, or the beginning of a bucket, with what the zone's clock showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocalTime {
    /// Determines order and equality: two hours that the clock shows in the same way are two buckets.
    pub start: Timestamp,
    clock: DateTime,
}

impl LocalTime {
    /// Rounds `moment` down to `grain` on the clock of `zone`.
    pub fn cut(moment: Timestamp, grain: Option<Grain>, zone: &TimeZone) -> Self {
        let offset = zone.to_offset(moment);
        let clock = offset.to_datetime(moment);
        let within_day = |clock: DateTime| Self { start: offset.to_timestamp(clock).unwrap_or(moment), clock };
        let date = clock.date();
        let first = match grain {
            None => return within_day(clock),
            Some(Grain::Minute) => return within_day(date.at(clock.hour(), clock.minute(), 0, 0)),
            Some(Grain::Hour) => return within_day(date.at(clock.hour(), 0, 0, 0)),
            Some(Grain::Day) => date,
            Some(Grain::Week) => monday(date),
            Some(Grain::Month) => date.first_of_month(),
            Some(Grain::Quarter) => first_of_quarter(date),
            Some(Grain::Year) => date.first_of_year(),
        };
        let clock = first.at(0, 0, 0, 0);
        Self { start: zone.to_timestamp(clock).unwrap_or(moment), clock }
    }
}

fn monday(date: Date) -> Date {
    let back = i32::from(date.weekday().to_monday_zero_offset());
    date.checked_sub(jiff::Span::new().days(back)).unwrap_or(date)
}

fn first_of_quarter(date: Date) -> Date {
    Date::new(date.year(), (date.month() - 1) / 3 * 3 + 1, 1).unwrap_or(date)
}

/// Local time without an offset, to the millisecond: `2026-04-02T13:00:00.000`.
impl fmt::Display for LocalTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = self.clock;
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}",
            c.year(),
            c.month(),
            c.day(),
            c.hour(),
            c.minute(),
            c.second(),
            c.millisecond()
        )
    }
}

/// A zone by its IANA name.
pub fn zone(name: &str) -> Option<TimeZone> {
    const LONGEST: usize = 64;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'_' | b'-' | b'+');
    (name.len() <= LONGEST && name.bytes().all(plain)).then(|| TimeZone::get(name).ok()).flatten()
}

/// Parses a filter value: a date (its midnight in `zone`), an RFC 3339 time, or a local time without an offset. The
/// last is the form of cells, so that a cell can be used as a filter.
pub fn moment(text: &str, zone: &TimeZone) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    let plain = |b: &u8| b.is_ascii_digit() || matches!(b, b'-' | b':' | b'.' | b'+' | b'T' | b'Z');
    let dashed = bytes.len() >= 10 && bytes[4] == b'-' && bytes[7] == b'-';
    if bytes.len() > 40 || !dashed || !bytes.iter().all(plain) {
        return None;
    }
    if bytes.len() == 10 {
        let date: Date = text.parse().ok()?;
        return zone.to_timestamp(date.at(0, 0, 0, 0)).ok();
    }
    let time = &text[10..];
    if time.ends_with('Z') || time.contains(['+', '-']) {
        return text.parse().ok();
    }
    let clock: DateTime = text.parse().ok()?;
    zone.to_timestamp(clock).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use jiff::SignedDuration;
    use proptest::prelude::*;

    use super::*;

    fn hours_of(day: &str, zone_name: &str) -> BTreeSet<LocalTime> {
        let zone = zone(zone_name).unwrap();
        let date: Date = day.parse().unwrap();
        let (start, end) = (
            zone.to_timestamp(date.at(0, 0, 0, 0)).unwrap(),
            zone.to_timestamp(date.tomorrow().unwrap().at(0, 0, 0, 0)).unwrap(),
        );
        let mut hours = BTreeSet::new();
        let mut moment = start;
        while moment < end {
            hours.insert(LocalTime::cut(moment, Some(Grain::Hour), &zone));
            let bucket = LocalTime::cut(moment, Some(Grain::Day), &zone);
            assert_eq!(bucket.start, start);
            moment += SignedDuration::from_mins(10);
        }
        hours
    }

    #[test]
    fn days_of_a_clock_change_have_23_and_25_hours() {
        assert_eq!(hours_of("2026-03-08", "America/Los_Angeles").len(), 23);
        assert_eq!(hours_of("2026-11-01", "America/Los_Angeles").len(), 25);
        assert_eq!(hours_of("2026-03-29", "Europe/Zurich").len(), 23);
        assert_eq!(hours_of("2026-10-25", "Europe/Zurich").len(), 25);
        assert_eq!(hours_of("2026-06-01", "Asia/Kolkata").len(), 24);
        let spring: Vec<_> = hours_of("2026-03-08", "America/Los_Angeles").iter().map(ToString::to_string).collect();
        assert_eq!(spring[1..3], ["2026-03-08T01:00:00.000", "2026-03-08T03:00:00.000"]);
    }

    #[test]
    fn every_grain_begins_where_the_calendar_says() {
        let moment: Timestamp = "2026-08-02T05:47:12.345Z".parse().unwrap();
        let new_york = zone("America/New_York").unwrap();
        for (grain, expected) in [
            ("minute", "2026-08-02T01:47:00.000"),
            ("hour", "2026-08-02T01:00:00.000"),
            ("day", "2026-08-02T00:00:00.000"),
            ("week", "2026-07-27T00:00:00.000"),
            ("month", "2026-08-01T00:00:00.000"),
            ("quarter", "2026-07-01T00:00:00.000"),
            ("year", "2026-01-01T00:00:00.000"),
        ] {
            let cut = LocalTime::cut(moment, Grain::from_word(grain), &new_york);
            assert_eq!(cut.to_string(), expected, "{grain}");
        }
        let uncut = LocalTime::cut(moment, None, &new_york);
        assert_eq!(uncut.to_string(), "2026-08-02T01:47:12.345");
        assert_eq!(uncut.start, moment);
    }

    #[test]
    fn filter_values_are_read_in_the_zone() {
        let tokyo = zone("Asia/Tokyo").unwrap();
        for (text, expected) in [
            ("2026-04-02", "2026-04-01T15:00:00Z"),
            ("2026-04-02T10:00:00Z", "2026-04-02T10:00:00Z"),
            ("2026-04-02T10:00:00.5-07:00", "2026-04-02T17:00:00.5Z"),
            ("2026-04-02T13:00:00.000", "2026-04-02T04:00:00Z"),
        ] {
            let read = moment(text, &tokyo).map(|m| m.to_string());
            assert_eq!(read.as_deref(), Some(expected), "{text}");
        }
        for text in [
            "",
            "2026",
            "2026-04",
            "20260402",
            "2026-13-01",
            "2026-04-02T25:00:00Z",
            "2026-04-02 ",
            "2026-04-02T10:00:00+07:00[Asia/Tokyo]",
            "9999-12-31T23:59:59.999-23:00",
            "é026-04-02",
            "last week",
            "2026-04-02T",
        ] {
            assert_eq!(moment(text, &tokyo), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn rounding_twice_changes_nothing(
            second in -5_000_000_000i64..20_000_000_000,
            grain in prop::sample::select(vec!["minute", "hour", "day", "week", "month", "quarter", "year"]),
            name in prop::sample::select(vec!["UTC", "America/Los_Angeles", "Asia/Kathmandu", "Africa/Cairo"]),
        ) {
            let zone = zone(name).unwrap();
            let grain = Grain::from_word(grain);
            let moment = Timestamp::from_second(second).unwrap();
            let cut = LocalTime::cut(moment, grain, &zone);
            prop_assert!(cut.start <= moment);
            // If the clock was set forward within the hour, the bucket begins before the time that its own clock shows.
            if zone.to_offset(cut.start) == zone.to_offset(moment) {
                prop_assert_eq!(LocalTime::cut(cut.start, grain, &zone).start, cut.start);
            }
        }

        #[test]
        fn arbitrary_text_does_not_panic(text in ".*", near in "[0-9]{4}-[0-9]{2}-[0-9]{2}[T0-9:.Z+-]{0,20}") {
            let _ = moment(&text, &TimeZone::UTC);
            let _ = moment(&near, &TimeZone::UTC);
            let _ = zone(&text);
        }
    }
}
