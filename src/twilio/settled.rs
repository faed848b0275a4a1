//! Proves from a query alone that its data no longer changes.
//!
//! A query is *settled* when every top-level filter group is an `AND` (or has no `op` and a single expression) and
//! contains an `LT` on a time dimension whose value is more than a configured time in the past. This must hold for
//! every group, because it is not documented how groups combine: if they were combined by OR, one open group would make
//! the query open. A query that is not understood counts as open. Settled pages are kept longer, so a mistake here
//! would serve old data.

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::Deserialize;

use crate::twilio::catalog::is_time;
use crate::twilio::query::{self, Combination, Comparison, Group, Part, Query};

/// Settled, or why not. The names are metric labels and log fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The range closed long enough ago.
    Settled,
    /// No filters at all, or a group without an `LT`.
    NoUpperBound,
    /// A group that is an `OR`, or has no `op` and several expressions.
    OrGroup,
    /// The `LT`s are on members whose type is not a time.
    NotATimeDimension,
    /// The upper bound is too recent, or in the future.
    Recent,
    /// A bound that is neither RFC 3339 nor a date, or an `LT` that does not have exactly one value.
    UnknownValue,
    /// An unknown time zone.
    UnknownZone,
    /// A part does not have the documented form.
    UnknownShape,
    /// The account's metadata is not in the cache, so no type is known.
    NoMetadata,
}

impl Verdict {
    /// The name in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Settled => "settled",
            Self::NoUpperBound => "no_upper_bound",
            Self::OrGroup => "or_group",
            Self::NotATimeDimension => "not_a_time_dimension",
            Self::Recent => "recent",
            Self::UnknownValue => "unknown_value",
            Self::UnknownZone => "unknown_zone",
            Self::UnknownShape => "unknown_shape",
            Self::NoMetadata => "no_metadata",
        }
    }
}

/// The time dimensions of an account, by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TimeDimensions(HashSet<String>);

impl TimeDimensions {
    /// The bytes of memory that it takes.
    pub fn weight(&self) -> usize {
        self.0.iter().map(|name| name.len() + 2 * size_of::<String>()).sum()
    }

    /// Reads a response of the Metadata operation; `None` when it does not have the documented form.
    pub fn read(metadata: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Metadata {
            cubes: Vec<Cube>,
        }
        #[derive(Deserialize)]
        struct Cube {
            dimensions: Vec<Dimension>,
        }
        #[derive(Deserialize)]
        struct Dimension {
            name: String,
            r#type: String,
        }
        let metadata: Metadata = serde_json::from_slice(metadata).ok()?;
        let dimensions = metadata.cubes.into_iter().flat_map(|cube| cube.dimensions);
        Some(Self(dimensions.filter(|d| is_time(&d.r#type)).map(|d| d.name).collect()))
    }
}

/// Judges a query body. `now` is when its response was requested, or later.
pub fn judge(body: &[u8], dimensions: Option<&TimeDimensions>, after: Duration, now: Timestamp) -> Verdict {
    match query::parse(body).as_ref().map(Query::read) {
        Ok(Ok(query)) => query.settled(dimensions, after, now),
        _ => Verdict::UnknownShape,
    }
}

impl Query<'_> {
    /// Judges whether its data no longer changes. `now` is when the response was requested, or later.
    pub fn settled(&self, dimensions: Option<&TimeDimensions>, after: Duration, now: Timestamp) -> Verdict {
        match self.prove_settled(dimensions, after, now) {
            Ok(()) => Verdict::Settled,
            Err(why) => why,
        }
    }

    fn prove_settled(
        &self,
        dimensions: Option<&TimeDimensions>,
        after: Duration,
        now: Timestamp,
    ) -> Result<(), Verdict> {
        let zone = self.zone()?;
        let groups = match &self.filters {
            Part::Absent => return Err(Verdict::NoUpperBound),
            Part::Known(groups) => groups,
            Part::Other(_) => return Err(Verdict::UnknownShape),
        };
        if groups.is_empty() {
            return Err(Verdict::NoUpperBound);
        }
        let groups = groups.iter().map(|group| group.known().ok_or(Verdict::UnknownShape));
        let bounds = groups.map(|group| upper_bounds(group?)).collect::<Result<Vec<_>, _>>()?;
        let dimensions = dimensions.ok_or(Verdict::NoMetadata)?;
        let latest = now.checked_sub(after).map_err(|_| Verdict::Recent)?;
        bounds.into_iter().try_for_each(|bounds| closed(&bounds, dimensions, &zone, latest))
    }

    fn zone(&self) -> Result<TimeZone, Verdict> {
        match &self.properties {
            // Twilio's default, according to its page on the query syntax.
            Part::Absent => Ok(TimeZone::UTC),
            Part::Known(properties) => match properties.zone {
                Part::Absent => Ok(TimeZone::UTC),
                Part::Known(name) => TimeZone::get(name).map_err(|_| Verdict::UnknownZone),
                Part::Other(_) => Err(Verdict::UnknownZone),
            },
            Part::Other(_) => Err(Verdict::UnknownShape),
        }
    }
}

/// An `LT` of a group: its field and value.
struct UpperBound<'v> {
    field: &'v str,
    value: Option<&'v str>,
}

/// The `LT`s of a group that all its rows must fulfil.
fn upper_bounds<'v>(group: &'v Group<'_>) -> Result<Vec<UpperBound<'v>>, Verdict> {
    match group.op {
        Some(Combination::And) => {}
        None if group.expressions.len() <= 1 => {}
        Some(Combination::Or) | None => return Err(Verdict::OrGroup),
    }
    let mut bounds = Vec::new();
    for expression in &group.expressions {
        let expression = expression.known().ok_or(Verdict::UnknownShape)?;
        // All other operators only narrow an AND, whatever they are.
        if expression.op == Comparison::Lt {
            let value = match expression.values.known().map(Vec::as_slice) {
                Some([value]) => Some(*value),
                _ => None,
            };
            bounds.push(UpperBound { field: expression.field, value });
        }
    }
    if bounds.is_empty() { Err(Verdict::NoUpperBound) } else { Ok(bounds) }
}

/// Whether one of a group's bounds ends its range before `latest`.
fn closed(
    bounds: &[UpperBound<'_>],
    dimensions: &TimeDimensions,
    zone: &TimeZone,
    latest: Timestamp,
) -> Result<(), Verdict> {
    let mut why = Verdict::NotATimeDimension;
    for bound in bounds.iter().filter(|bound| dimensions.0.contains(bound.field)) {
        why = match bound.value.and_then(|value| instant(value, zone)) {
            Some(end) if end < latest => return Ok(()),
            Some(_) => Verdict::Recent,
            None => Verdict::UnknownValue,
        };
    }
    Err(why)
}

/// RFC 3339, or a date, which means the start of that day in `zone`.
fn instant(value: &str, zone: &TimeZone) -> Option<Timestamp> {
    if value.len() == "2026-04-02".len() {
        let date: Date = value.parse().ok()?;
        return date.to_zoned(zone.clone()).ok().map(|start| start.timestamp());
    }
    // jiff accepts more than RFC 3339 (spaces, zone names). Values that not every reader accepts count as unknown.
    let strict = value.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'-' | b':' | b'.' | b'+' | b'T' | b'Z'));
    strict.then(|| value.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn dimensions() -> TimeDimensions {
        let metadata = br#"{"domain":"Conversations","cubes":[{"name":"C","measures":[],"dimensions":[
            {"name":"C.Created","type":"time"},{"name":"C.Day","type":"Date"},{"name":"C.Status","type":"string"}]}]}"#;
        TimeDimensions::read(metadata).unwrap()
    }

    fn judged(body: &str) -> Verdict {
        let now = "2026-04-10T00:00:00Z".parse().unwrap();
        judge(body.as_bytes(), Some(&dimensions()), DAY, now)
    }

    fn filtered(groups: &str) -> Verdict {
        judged(&format!(r#"{{"query":{{"measures":["C.Count"],"filters":[{groups}]}}}}"#))
    }

    const OLD: &str = r#"{"op":"LT","field":"C.Created","values":["2026-04-02"]}"#;
    const OTHER: &str = r#"{"op":"EQ","field":"C.Status","values":["CLOSED"]}"#;

    fn and(expressions: &str) -> String {
        format!(r#"{{"op":"AND","expressions":[{expressions}]}}"#)
    }

    #[test]
    fn a_closed_range_is_settled() {
        assert_eq!(filtered(&and(OLD)), Verdict::Settled);
        assert_eq!(filtered(&and(&format!("{OTHER},{OLD}"))), Verdict::Settled);
        assert_eq!(filtered(&format!(r#"{{"expressions":[{OLD}]}}"#)), Verdict::Settled);
        assert_eq!(filtered(&format!("{},{}", and(OLD), and(OLD))), Verdict::Settled);
        let rfc = r#"{"op":"LT","field":"C.Day","values":["2026-04-08T23:59:59.5+00:00"]}"#;
        assert_eq!(filtered(&and(rfc)), Verdict::Settled);
    }

    #[test]
    fn every_other_query_is_open_with_a_reason() {
        assert_eq!(judged(r#"{"query":{}}"#), Verdict::NoUpperBound);
        assert_eq!(filtered(""), Verdict::NoUpperBound);
        assert_eq!(filtered(&and("")), Verdict::NoUpperBound);
        assert_eq!(filtered(&and(OTHER)), Verdict::NoUpperBound);
        assert_eq!(filtered(&format!("{},{}", and(OLD), and(OTHER))), Verdict::NoUpperBound);
        assert_eq!(filtered(&format!(r#"{{"op":"OR","expressions":[{OLD}]}}"#)), Verdict::OrGroup);
        assert_eq!(filtered(&format!(r#"{{"expressions":[{OLD},{OTHER}]}}"#)), Verdict::OrGroup);
        let lt = |field: &str, values: &str| and(&format!(r#"{{"op":"LT","field":"{field}","values":{values}}}"#));
        assert_eq!(filtered(&lt("C.Status", r#"["2026-04-02"]"#)), Verdict::NotATimeDimension);
        assert_eq!(filtered(&lt("C.Created", r#"["2026-04-09"]"#)), Verdict::Recent);
        assert_eq!(filtered(&lt("C.Created", r#"["2026-05-01"]"#)), Verdict::Recent);
        for value in [
            r#"["yesterday"]"#,
            r#"["2026-04-02","2026-04-03"]"#,
            "[]",
            "null",
            "[1]",
            r#"["2026-04-02 00:00:00Z"]"#,
            r#"["2026-04-02T00:00:00"]"#,
            r#"["2026-13-02"]"#,
        ] {
            assert_eq!(filtered(&lt("C.Created", value)), Verdict::UnknownValue, "{value}");
        }
        assert_eq!(filtered(&and(&format!(r#"{{"op":"AND","expressions":[{OLD}]}}"#))), Verdict::UnknownShape);
        assert_eq!(filtered(&format!(r#"{{"op":"AND","not":true,"expressions":[{OLD}]}}"#)), Verdict::UnknownShape);
        assert_eq!(filtered(r#""x""#), Verdict::UnknownShape);
        let now = "2026-04-10T00:00:00Z".parse().unwrap();
        let body = format!(r#"{{"query":{{"filters":[{}]}}}}"#, and(OLD));
        assert_eq!(judge(body.as_bytes(), None, DAY, now), Verdict::NoMetadata);
    }

    #[test]
    fn a_date_begins_in_the_zone_of_the_query() {
        let in_zone = |zone: &str, date: &str| {
            judged(&format!(
                r#"{{"properties":{{"timezone":{zone}}},"query":{{"filters":[{{"op":"AND","expressions":[{{"op":"LT","field":"C.Created","values":["{date}"]}}]}}]}}}}"#
            ))
        };
        // It is 2026-04-10T00:00Z, so the range must end before 2026-04-09T00:00Z.
        assert_eq!(in_zone("null", "2026-04-09"), Verdict::Recent);
        assert_eq!(in_zone(r#""Asia/Tokyo""#, "2026-04-09"), Verdict::Settled);
        assert_eq!(in_zone(r#""America/Los_Angeles""#, "2026-04-09"), Verdict::Recent);
        assert_eq!(in_zone(r#""America/Los_Angeles""#, "2026-04-08"), Verdict::Settled);
        assert_eq!(in_zone(r#""Mars/Olympus""#, "2026-04-01"), Verdict::UnknownZone);
        assert_eq!(in_zone("7", "2026-04-01"), Verdict::UnknownZone);
    }

    proptest! {
        /// Adding a group can make a settled query open, but never an open one settled.
        #[test]
        fn more_groups_never_settle(group in r#"\{"op":"(AND|OR|XX)","expressions":\[(\{"op":"(LT|GT|EQ)","field":"C\.(Created|Status)","values":\["20[0-9]{2}-0[1-9]-1[0-9]"\]\})?\]\}"#) {
            if filtered(&group) != Verdict::Settled {
                prop_assert_ne!(filtered(&format!("{},{group}", and(OLD))), Verdict::Settled);
            }
        }
    }
}
