//! The measures and dimensions that an account's metadata has, by name.
//!
//! Read from a response of the Metadata operation. Metadata that does not have the documented form gives no catalog, so
//! that no conclusion is drawn from a part of it.

use std::collections::HashMap;

use crate::core::json::{self, Member, Value};
use crate::twilio::query::Place;

/// The measures and dimensions of an account.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Catalog(HashMap<Box<str>, Entry>);

/// The members of one name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Entry {
    is_measure: bool,
    is_dimension: bool,
    is_time: bool,
    /// The name without that of its cube, where it does not begin with the cube's name anyway.
    qualified: Vec<Box<str>>,
}

/// The most JSON values in metadata. It comes from Twilio, and is larger than any query.
pub const MAX_METADATA_VALUES: usize = 1_000_000;

impl Catalog {
    /// Reads metadata; `None` for anything else.
    pub fn read(metadata: &Value<'_>) -> Option<Self> {
        let mut catalog = Self::default();
        for cube in cubes(metadata)? {
            let cube = Cube::read(cube)?;
            for (members, is_measure) in [(cube.measures, true), (cube.dimensions, false)] {
                for member in members {
                    let member = member.as_object()?;
                    let name = json::member(member, "name")?.as_str()?;
                    let entry = catalog.0.entry(name.into()).or_default();
                    entry.is_measure |= is_measure;
                    entry.is_dimension |= !is_measure;
                    let kind = json::member(member, "type").and_then(Value::as_str);
                    entry.is_time |= !is_measure && kind.is_some_and(is_time);
                    if let Some(cube) = cube.name
                        && !name.strip_prefix(cube).is_some_and(|rest| rest.starts_with('.'))
                    {
                        entry.qualified.push([cube, ".", name].concat().into());
                    }
                }
            }
        }
        Some(catalog)
    }

    /// Whether a query may use `name` at `place`: it is exactly the name of a member of the right kind, or a time
    /// dimension followed by one grain.
    pub fn knows(&self, place: Place, name: &str) -> bool {
        let is_here = |entry: &Entry| match place {
            Place::Measure => entry.is_measure,
            Place::Dimension => entry.is_dimension,
            Place::Filter | Place::Order => entry.is_measure || entry.is_dimension,
        };
        is_name(name)
            && (self.0.get(name).is_some_and(is_here)
                || (place != Place::Measure && name.rsplit_once('.').is_some_and(|(base, _)| self.is_time(base))))
    }

    /// Whether this is a time dimension.
    pub fn is_time(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|entry| entry.is_time)
    }

    /// Other names of the member `name`: qualified by its cube's name, also for the dimension that it may be a grain
    /// of.
    pub fn aliases(&self, name: &str) -> Vec<String> {
        let qualified = |name: &str| self.0.get(name).map(|entry| entry.qualified.as_slice()).unwrap_or_default();
        let own = qualified(name).iter().map(|alias| alias.to_string());
        let grains = name
            .rsplit_once('.')
            .into_iter()
            .flat_map(|(base, grain)| qualified(base).iter().map(move |alias| [&**alias, ".", grain].concat()));
        own.chain(grains).collect()
    }

    /// The names that are qualified by a cube's name, of all members that have one.
    pub fn all_aliases(&self) -> impl Iterator<Item = &str> {
        self.0.values().flat_map(|entry| &entry.qualified).map(|alias| &**alias)
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(|name| &**name)
    }
}

/// The cubes of metadata.
pub fn cubes<'v>(metadata: &'v Value<'_>) -> Option<&'v [Value<'v>]> {
    json::member(metadata.as_object()?, "cubes")?.as_array()
}

/// A cube of metadata.
#[derive(Debug)]
pub struct Cube<'v> {
    /// Its name.
    pub name: Option<&'v str>,
    /// Its measures.
    pub measures: &'v [Value<'v>],
    /// Its dimensions.
    pub dimensions: &'v [Value<'v>],
    /// All its members.
    pub members: &'v [Member<'v>],
}

impl<'v> Cube<'v> {
    /// Reads a cube; `None` for anything else.
    pub fn read(value: &'v Value<'v>) -> Option<Self> {
        let members = value.as_object()?;
        let list = |name| match json::member(members, name) {
            None | Some(Value::Null) => Some(&[][..]),
            Some(list) => list.as_array(),
        };
        let name = match json::member(members, "name") {
            None | Some(Value::Null) => None,
            Some(name) => Some(name.as_str()?),
        };
        Some(Self { name, measures: list("measures")?, dimensions: list("dimensions")?, members })
    }
}

/// Whether `kind`, as metadata writes it, is a type for times.
pub fn is_time(kind: &str) -> bool {
    ["time", "date", "datetime", "timestamp"].iter().any(|word| word.eq_ignore_ascii_case(kind))
}

/// Whether `text` has the form of names: segments of ASCII letters, digits and `_`, with single dots between them.
pub fn is_name(text: &str) -> bool {
    let is_segment =
        |segment: &str| !segment.is_empty() && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    text.split('.').all(is_segment)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(metadata: &str) -> Option<Catalog> {
        Catalog::read(&json::parse(metadata.as_bytes()).unwrap())
    }

    const METADATA: &str = r#"{"domain":"Conversations","cubes":[
        {"name":"C","measures":[{"name":"C.Count","type":"number"}],"dimensions":[
            {"name":"C.Created","type":"time"},{"name":"C.Status","type":"string"},{"name":"Zone","type":"date"}]},
        {"name":"Empty"}]}"#;

    #[test]
    fn members_are_known_only_where_their_kind_is_allowed() {
        let catalog = read(METADATA).unwrap();
        let places = [Place::Measure, Place::Dimension, Place::Filter, Place::Order];
        for (name, expected) in [
            ("C.Count", [true, false, true, true]),
            ("C.Status", [false, true, true, true]),
            ("C.Created", [false, true, true, true]),
            ("C.Created.hour", [false, true, true, true]),
            ("Zone.day", [false, true, true, true]),
            ("C.Created.hour.day", [false; 4]),
            ("C.Status.hour", [false; 4]),
            ("C.Count.hour", [false; 4]),
            ("c.Count", [false; 4]),
            ("Count", [false; 4]),
            ("C.Zone", [false; 4]),
            ("C", [false; 4]),
            ("", [false; 4]),
        ] {
            assert_eq!(places.map(|place| catalog.knows(place, name)), expected, "{name}");
        }
        assert_eq!(catalog.aliases("Zone"), ["C.Zone"]);
        assert_eq!(catalog.aliases("Zone.day"), ["C.Zone.day"]);
        assert_eq!(catalog.aliases("C.Created.hour"), [""; 0]);
    }

    #[test]
    fn names_are_segments_between_single_dots() {
        for name in ["a", "A.b_1", "Conversation.CreatedDate.hour", "_"] {
            assert!(is_name(name), "{name}");
        }
        let fullwidth = "Conversation.\u{ff23}ount";
        let others = [
            "", ".", "a.", ".a", "a..b", "a b", "a\0", "\u{a0}a", "a\"", "a AS x", "a:x", fullwidth, "a-b", "a/b", "é",
            "a\n",
        ];
        for name in others {
            assert!(!is_name(name), "{name:?}");
        }
    }

    #[test]
    fn other_responses_give_no_catalog() {
        for text in [
            "[]",
            "{}",
            r#"{"cubes":{}}"#,
            r#"{"cubes":[7]}"#,
            r#"{"cubes":[{"measures":{}}]}"#,
            r#"{"cubes":[{"measures":["C.Count"]}]}"#,
            r#"{"cubes":[{"measures":[{"name":7}]}]}"#,
            r#"{"cubes":[{"name":7,"measures":[]}]}"#,
            r#"{"data":[],"meta":{}}"#,
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
