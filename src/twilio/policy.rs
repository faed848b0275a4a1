//! What a team may see: the members that its queries may not name, and the filters that are added to all of them.
//!
//! What cannot be proven safe is refused. A query may contain only documented members of documented types, and may name
//! only members of the account's metadata, each in a place for its kind. Twilio does not document how several filter
//! groups combine, so the required filters are added to every group, where they hold in any case. For the same reason
//! an `OR` group is refused, and so is a group of several expressions without `op`.
//!
//! A name is known only with its exact spelling. Denied names are compared without regard to case. A denied dimension
//! includes its grains (`Conversation.CreatedDate.hour`). A member with an unqualified name in metadata is also denied
//! by its name qualified with its cube. A denied name and an unknown name give the same error.

use std::collections::HashSet;

use bytes::Bytes;
use jiff::tz::TimeZone;

use crate::core::json::{self, Member, Value};
use crate::twilio::catalog::{self, Catalog, Cube, MAX_METADATA_VALUES};
use crate::twilio::parameters::is_page_size;
use crate::twilio::query::{Combination, Comparison, Expression, Group, Part, Place, Query};

/// A filter that is added to every query of a team.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Required {
    /// How it compares.
    pub op: Comparison,
    /// The dimension.
    pub field: String,
    /// The values that it is compared with.
    pub values: Vec<String>,
}

impl Required {
    fn expression(&self) -> Expression<'_> {
        let values = Part::Known(self.values.iter().map(String::as_str).collect());
        Expression { op: self.op, field: &self.field, values }
    }
}

/// A team's policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    deny: Vec<Pattern>,
    require: Vec<Required>,
    fingerprint: [u8; 32],
}

/// Why a query is refused. The messages may name members, but never values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It names a member that the team may not see or that does not exist. The message does not say which.
    #[error("this team may not query {0}")]
    Field(String),
    /// It has a form in which the policy cannot be proven to hold.
    #[error("this team has a policy, which cannot be proven to hold here: {0}")]
    Shape(&'static str),
    /// The required filters, copied into each of its groups, would take more bytes than this.
    #[error(
        "this team's required filters go into every filter group and would take more than {0} bytes; use fewer groups"
    )]
    TooLarge(u64),
}

impl Policy {
    /// A policy that refuses `deny` (names; `*` at the end matches any rest) and adds `require`.
    pub fn new(deny: &[String], require: &[Required]) -> Self {
        let mut hasher = blake3::Hasher::new();
        let mut add = |list: &[&str]| {
            hasher.update(&(list.len() as u64).to_le_bytes());
            for part in list {
                hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
            }
        };
        add(&deny.iter().map(String::as_str).collect::<Vec<_>>());
        for required in require {
            let start = [required.op.as_str(), &required.field];
            add(&start.into_iter().chain(required.values.iter().map(String::as_str)).collect::<Vec<_>>());
        }
        let fingerprint = hasher.finalize().into();
        let deny = deny.iter().map(|text| Pattern::new(text)).collect();
        Self { deny, require: require.to_vec(), fingerprint }
    }

    /// Distinguishes policies.
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// A hash of the account's SID, the upstream and this policy. Data given out under one scope must not be used under
    /// another.
    pub fn scope(&self, sid: &str, origin: &str) -> [u8; 32] {
        // The separator occurs in none of the texts.
        let mut scope = blake3::Hasher::new();
        scope.update(&self.fingerprint).update(sid.as_bytes()).update(&[0xff]).update(origin.as_bytes());
        scope.finalize().into()
    }

    /// Whether it denies anything.
    pub fn hides_members(&self) -> bool {
        !self.deny.is_empty()
    }

    /// Whether a query may use `name` at `place`.
    pub fn permits(&self, catalog: &Catalog, place: Place, name: &str) -> bool {
        catalog.knows(place, name) && !self.denies(catalog, name)
    }

    fn denies(&self, catalog: &Catalog, name: &str) -> bool {
        let covers = |name: &str| self.deny.iter().any(|pattern| pattern.covers(name));
        covers(name) || catalog.aliases(name).iter().any(|alias| covers(alias))
    }

    /// Metadata without denied members, and the catalog of the rest. `None` when it does not have the documented form.
    pub fn metadata(&self, metadata: &[u8]) -> Option<(Catalog, Visible)> {
        let value = json::parse_within(metadata, MAX_METADATA_VALUES).ok()?;
        let catalog = Catalog::read(&value)?;
        if !self.hides_members() {
            return Some((catalog, Visible::All));
        }
        let mut out = Vec::with_capacity(metadata.len());
        Filter::new(self, &catalog).write(&mut out, &value)?;
        Some((catalog, Visible::Part(out.into())))
    }
}

/// The part of metadata that a team may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Visible {
    /// All of it, unchanged.
    All,
    /// This part.
    Part(Bytes),
}

/// Writes metadata without what a policy denies.
///
/// Of every object only the documented members are written, because others could name anything. A text that mentions a
/// denied member is left out, and so is a cube without remaining members.
struct Filter<'f> {
    policy: &'f Policy,
    catalog: &'f Catalog,
    /// Every denied name and its other names, in lower case.
    denied: Vec<String>,
    /// The same without the names of their cubes, except names that permitted members have too.
    denied_members: Vec<String>,
}

/// The types that are shown. Any other could contain anything, and a client that does not know it learns nothing from
/// it.
const TYPES: [&str; 13] = [
    "string",
    "number",
    "boolean",
    "time",
    "date",
    "datetime",
    "timestamp",
    "integer",
    "long",
    "float",
    "double",
    "decimal",
    "duration",
];

/// The aggregations that are shown, for the same reason.
const AGGREGATIONS: [&str; 9] =
    ["sum", "count", "average", "avg", "min", "max", "median", "count_distinct", "countdistinct"];

impl<'f> Filter<'f> {
    fn new(policy: &'f Policy, catalog: &'f Catalog) -> Self {
        let denied = catalog.names().filter(|name| policy.denies(catalog, name));
        let denied = denied.flat_map(|name| catalog.aliases(name).into_iter().chain([name.to_owned()]));
        let denied: Vec<_> = denied.map(|name| name.to_ascii_lowercase()).collect();
        let permitted = catalog.names().filter(|name| !policy.denies(catalog, name));
        let permitted: HashSet<_> = permitted.map(|name| member(name).to_ascii_lowercase()).collect();
        let denied_members = denied.iter().map(|name| member(name)).filter(|name| !permitted.contains(*name));
        let denied_members = denied_members.map(str::to_owned).collect();
        Self { policy, catalog, denied, denied_members }
    }

    fn write(&self, out: &mut Vec<u8>, metadata: &Value<'_>) -> Option<()> {
        let cubes = catalog::cubes(metadata)?.iter().map(Cube::read).collect::<Option<Vec<_>>>()?;
        let cubes = cubes.into_iter().filter(|cube| {
            self.permitted(cube.measures, Place::Measure).next().is_some()
                || self.permitted(cube.dimensions, Place::Dimension).next().is_some()
        });
        let cubes: Vec<_> = cubes.collect();
        write_members(out, metadata.as_object()?, |out, member| match member.name.as_str() {
            "cubes" => {
                json::write_array(out, &cubes, |out, cube| self.write_cube(out, cube));
                true
            }
            "domain" => self.write_text(out, &member.value),
            _ => false,
        });
        Some(())
    }

    fn write_cube(&self, out: &mut Vec<u8>, cube: &Cube<'_>) {
        write_members(out, cube.members, |out, member| {
            let place = match member.name.as_str() {
                "measures" => Place::Measure,
                "dimensions" => Place::Dimension,
                // Written in full, because the names of its members begin with it.
                "name" => {
                    member.value.write(out);
                    return true;
                }
                "description" => return self.write_text(out, &member.value),
                _ => return false,
            };
            let members = self.permitted(member.value.as_array().unwrap_or_default(), place);
            json::write_array(out, members, |out, member| self.write_member(out, member));
            true
        });
    }

    fn permitted<'v>(&self, members: &'v [Value<'v>], place: Place) -> impl Iterator<Item = &'v [Member<'v>]> {
        members.iter().filter_map(Value::as_object).filter(move |member| {
            let name = json::member(member, "name").and_then(Value::as_str);
            name.is_some_and(|name| self.policy.permits(self.catalog, place, name))
        })
    }

    fn write_member(&self, out: &mut Vec<u8>, member: &[Member<'_>]) {
        write_members(out, member, |out, member| match member.name.as_str() {
            "name" => {
                member.value.write(out);
                true
            }
            "type" => write_word(out, &member.value, &TYPES),
            "aggregation" => write_word(out, &member.value, &AGGREGATIONS),
            "description" => self.write_text(out, &member.value),
            _ => false,
        });
    }

    /// Writes a text that mentions no denied member, or `null`. Returns whether it was written.
    fn write_text(&self, out: &mut Vec<u8>, value: &Value<'_>) -> bool {
        let is_clean = match value {
            Value::Null => true,
            Value::String(text) => !self.mentions(text.as_str()),
            _ => false,
        };
        if is_clean {
            value.write(out);
        }
        is_clean
    }

    /// Whether this text mentions a denied member: its whole name anywhere, or its name within its cube as one
    /// identifier.
    fn mentions(&self, text: &str) -> bool {
        let text = text.to_ascii_lowercase();
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
        let is_in = |identifier: &str, member: &String| {
            let member: Vec<_> = member.split('.').collect();
            let segments: Vec<_> = identifier.split('.').collect();
            segments.windows(member.len()).any(|window| *window == *member)
        };
        self.denied.iter().any(|name| text.contains(name.as_str()))
            || text.split(|c| !is_part(c)).any(|word| self.denied_members.iter().any(|member| is_in(word, member)))
    }
}

/// A name without its cube's name.
fn member(name: &str) -> &str {
    name.split_once('.').map_or(name, |(_, member)| member)
}

/// Writes one of these words, in any case, or `null`. Returns whether it was written.
fn write_word(out: &mut Vec<u8>, value: &Value<'_>, words: &[&str]) -> bool {
    let is_known = match value {
        Value::Null => true,
        Value::String(text) => words.iter().any(|word| word.eq_ignore_ascii_case(text.as_str())),
        _ => false,
    };
    if is_known {
        value.write(out);
    }
    is_known
}

/// Writes an object of the members that `write` accepts. `write` writes the value and returns whether it did.
fn write_members(out: &mut Vec<u8>, members: &[Member<'_>], mut write: impl FnMut(&mut Vec<u8>, &Member<'_>) -> bool) {
    out.push(b'{');
    let begin = out.len();
    for member in members {
        let end = out.len();
        if end > begin {
            out.push(b',');
        }
        member.name.write(out);
        out.push(b':');
        if !write(out, member) {
            out.truncate(end);
        }
    }
    out.push(b'}');
}

impl Query<'_> {
    /// Proves that every part has a form in which a policy can hold. Which members it may name is checked separately,
    /// because that needs metadata.
    ///
    /// # Errors
    ///
    /// [`Denied::Shape`], with what is wrong.
    pub fn prove_shape(&self) -> Result<(), Denied> {
        let prove = |holds: bool, what: &'static str| if holds { Ok(()) } else { Err(Denied::Shape(what)) };
        prove(!self.has_unknown_members(), "there is a member that is not documented")?;
        prove(absent_or(&self.domain, |domain| *domain == "Conversations"), "domain is not \"Conversations\"")?;
        prove(
            absent_or(&self.page_size, |digits| is_page_size(digits)),
            "pageSize is not a whole number from 1 to 100000",
        )?;
        let is_zone = |zone: &&str| is_time_zone(zone);
        prove(
            absent_or(&self.properties, |properties| absent_or(&properties.zone, is_zone)),
            "timezone is not the name of a time zone",
        )?;
        for names in [&self.measures, &self.dimensions] {
            prove(all_known(names, |_| true), "measures and dimensions are not lists of names")?;
        }
        let is_and = |group: &Group<'_>| match group.op {
            Some(op) => op == Combination::And,
            None => group.expressions.len() == 1,
        };
        prove(
            all_known(&self.filters, |group| group.documented().is_some()),
            "filters are not groups of documented expressions, whose values are lists of strings",
        )?;
        prove(all_known(&self.filters, is_and), "a filter group is not an AND; write one with \"op\":\"AND\"")?;
        prove(
            all_known(&self.order, |order| {
                order.field.known().is_some() && absent_or(&order.direction, |word| matches!(*word, "ASC" | "DESC"))
            }),
            "orderBy is not a list of fields, each with ASC, DESC or no direction",
        )?;
        let mut are_names = true;
        self.visit_names(|_, name| are_names &= catalog::is_name(name));
        prove(are_names, "a name is not made of letters, digits, _ and single dots between them")
    }

    /// The query that a team with `policy` may send in place of this one, in canonical form: with the policy's filters
    /// added. Groups that are equal with the policy's filters become one: however groups combine, a second copy changes
    /// nothing.
    ///
    /// # Errors
    ///
    /// When it names a member that the team may not name, when it has a form in which the policy cannot be proven to
    /// hold, or when the policy's filters would be repeated over more than `limit` bytes.
    pub fn restrict(&self, policy: &Policy, catalog: &Catalog, limit: u64) -> Result<Bytes, Denied> {
        self.prove_shape()?;
        let mut denied = None;
        self.visit_names(|place, name| {
            if denied.is_none() && !policy.permits(catalog, place, name) {
                denied = Some(name);
            }
        });
        if let Some(name) = denied {
            const SHOWN: usize = 128;
            // Names are ASCII, so cutting at a byte is safe.
            return Err(Denied::Field(name[..name.len().min(SHOWN)].to_owned()));
        }
        if policy.require.is_empty() {
            return Ok(self.canonical());
        }
        let required = || policy.require.iter().map(Required::expression);
        let added: HashSet<_> = required().map(|expression| expression.canonical()).collect();
        let mut seen = HashSet::new();
        let own = self.filters.known().into_iter().flatten().filter_map(Part::known);
        let own = own.map(|group| {
            let all = group.documented().into_iter().flatten();
            all.filter(|expression| !added.contains(&expression.canonical())).cloned().collect::<Vec<_>>()
        });
        let mut own: Vec<_> = own.filter(|group| seen.insert(Group::and(group.iter().cloned()).canonical())).collect();
        if own.is_empty() {
            own.push(Vec::new());
        }
        // Checked before anything is copied. The first copy does not count, because its size is the policy's own.
        let copies = own.len() as u64 - 1;
        if copies > 0 && copies.saturating_mul(Group::and(required()).canonical().len() as u64) > limit {
            return Err(Denied::TooLarge(limit));
        }
        let groups = own.into_iter().map(|group| Group::and(group.into_iter().chain(required()))).collect();
        Ok(self.with_filters(groups).canonical())
    }
}

fn absent_or<T>(part: &Part<'_, T>, holds: impl FnOnce(&T) -> bool) -> bool {
    match part {
        Part::Absent => true,
        Part::Known(known) => holds(known),
        Part::Other(_) => false,
    }
}

fn all_known<T>(list: &Part<'_, Vec<Part<'_, T>>>, holds: impl Fn(&T) -> bool) -> bool {
    absent_or(list, |elements| elements.iter().all(|element| element.known().is_some_and(&holds)))
}

fn is_time_zone(name: &str) -> bool {
    let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'/' | b'+' | b'-'));
    // Files that are in the same folder as those of time zones.
    let is_file = matches!(name, "posixrules" | "localtime" | "Factory" | "Etc/Unknown")
        || name.starts_with("posix/")
        || name.starts_with("right/");
    // The exact spelling only: whether Twilio accepts another case is not documented.
    is_plain && !is_file && TimeZone::get(name).is_ok_and(|zone| zone.iana_name() == Some(name))
}

/// A denied name, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    name: String,
    any_rest: bool,
}

impl Pattern {
    fn new(text: &str) -> Self {
        let lower = text.to_ascii_lowercase();
        match lower.strip_suffix('*') {
            Some(name) => Self { name: name.to_owned(), any_rest: true },
            None => Self { name: lower, any_rest: false },
        }
    }

    fn covers(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        if self.matches(&self.name, &name) {
            return true;
        }
        // `ParticipantId` could belong to any cube.
        let own = self.name.split_once('.').map(|(_, member)| member).filter(|member| !member.is_empty());
        !name.contains('.') && own.is_some_and(|member| self.matches(member, &name))
    }

    fn matches(&self, pattern: &str, name: &str) -> bool {
        match name.strip_prefix(pattern) {
            Some(rest) => self.any_rest || rest.is_empty() || rest.starts_with('.'),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests;
