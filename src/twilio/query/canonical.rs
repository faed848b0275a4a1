//! The canonical form of a query.
//!
//! Equal queries give equal bytes, and different queries give different bytes. The bytes that are hashed for the cache
//! key are those that are sent upstream, so a mistake here could change a query, but could never serve the page of
//! another query.
//!
//! | difference between two bodies | one form? |
//! | --- | --- |
//! | white space, order of an object's members | yes |
//! | a known member that is `null` against one that is absent | yes |
//! | escapes in known strings (`"\u0041"`, `"A"`) | yes |
//! | order and repetition of expressions in an `AND` or `OR` group, of values in `IN` | yes |
//! | order of measures, dimensions, orderBy and groups | no: Twilio may answer in that order |
//! | digits of a number (`1`, `1.0`, `1e0`) | no |
//! | `UTC` against no time zone; an `AND` group against one without `op` | no: undocumented |
//!
//! Where it does not understand a part, it changes nothing. A group or expression with members, operators or types that
//! Twilio does not document keeps its order, spelling and nulls. So do the expressions of a group without `op`, except
//! that their member names are sorted, because it is not documented how they combine.

use bytes::Bytes;

use super::{Comparison, Expression, Group, List, Order, Part, Properties, Query};
use crate::core::json::{self, Member, Value};

impl Query<'_> {
    /// The canonical bytes: UTF-8, no white space outside strings. See the module.
    pub fn canonical(&self) -> Bytes {
        let mut out = Vec::with_capacity(256);
        write_object(
            &mut out,
            &self.unknown_in_body,
            &[
                ("domain", self.domain.is_there(), &|out| write_text_part(out, &self.domain)),
                ("pageSize", self.page_size.is_there(), &|out| {
                    self.page_size.write(out, |out, digits| out.extend_from_slice(digits.as_bytes()));
                }),
                ("properties", self.properties.is_there(), &|out| self.properties.write(out, Properties::write)),
                ("query", true, &|out| self.write_query(out)),
            ],
        );
        out.into()
    }

    fn write_query(&self, out: &mut Vec<u8>) {
        write_object(
            out,
            &self.unknown_in_query,
            &[
                ("dimensions", self.dimensions.is_there(), &|out| write_list(out, &self.dimensions, write_text)),
                ("filters", self.filters.is_there(), &|out| write_list(out, &self.filters, Group::write)),
                ("measures", self.measures.is_there(), &|out| write_list(out, &self.measures, write_text)),
                ("orderBy", self.order.is_there(), &|out| write_list(out, &self.order, Order::write)),
            ],
        );
    }
}

impl Properties<'_> {
    fn write(out: &mut Vec<u8>, properties: &Self) {
        let zone = &properties.zone;
        write_object(out, &properties.unknown, &[("timezone", zone.is_there(), &|out| write_text_part(out, zone))]);
    }
}

impl Order<'_> {
    fn write(out: &mut Vec<u8>, order: &Self) {
        write_object(
            out,
            &order.unknown,
            &[
                ("direction", order.direction.is_there(), &|out| write_text_part(out, &order.direction)),
                ("field", order.field.is_there(), &|out| write_text_part(out, &order.field)),
            ],
        );
    }
}

impl Group<'_> {
    /// Its canonical bytes.
    pub fn canonical(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        Self::write(&mut out, self);
        out
    }

    fn write(out: &mut Vec<u8>, group: &Self) {
        match (group.op, group.documented(), group.source) {
            (Some(op), Some(expressions), _) => {
                let mut written: Vec<Vec<u8>> = expressions.iter().map(|expression| expression.canonical()).collect();
                written.sort_unstable();
                written.dedup();
                out.extend_from_slice(b"{\"expressions\":");
                json::write_array(out, &written, |out, expression| out.extend_from_slice(expression));
                out.extend_from_slice(b",\"op\":");
                write_text(out, &op.as_str());
                out.push(b'}');
            }
            (None, _, Some(source)) => {
                let expressions =
                    source.as_object().and_then(|members| json::member(members, "expressions")?.as_array());
                out.extend_from_slice(b"{\"expressions\":");
                json::write_array(out, expressions.unwrap_or_default(), write_with_sorted_names);
                out.push(b'}');
            }
            (_, _, Some(source)) => source.write(out),
            // The gateway makes no group of this kind.
            (_, _, None) => out.extend_from_slice(b"null"),
        }
    }
}

impl Expression<'_> {
    /// Its canonical bytes.
    pub fn canonical(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(96);
        out.extend_from_slice(b"{\"field\":");
        write_text(&mut out, &self.field);
        out.extend_from_slice(b",\"op\":");
        write_text(&mut out, &self.op.as_str());
        if let Some(values) = self.values.known() {
            let mut values = values.clone();
            if self.op == Comparison::In {
                values.sort_unstable();
                values.dedup();
            }
            out.extend_from_slice(b",\"values\":");
            json::write_array(&mut out, &values, write_text);
        }
        out.push(b'}');
        out
    }
}

impl<T> Part<'_, T> {
    fn is_there(&self) -> bool {
        !matches!(self, Self::Absent)
    }

    /// Writes it, unless it is absent. A value of another type is written unchanged.
    fn write(&self, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>, &T)) {
        match self {
            Self::Absent => out.extend_from_slice(b"null"),
            Self::Known(known) => write(out, known),
            Self::Other(value) => value.write(out),
        }
    }
}

/// A documented member: its name, whether it is present, and how it is written.
type Known<'w> = (&'static str, bool, &'w dyn Fn(&mut Vec<u8>));

/// Writes members in the order of their names. Undocumented members keep their spelling and nulls.
fn write_object(out: &mut Vec<u8>, unknown: &[&Member<'_>], known: &[Known<'_>]) {
    enum Entry<'e> {
        Known(&'e Known<'e>),
        Unknown(&'e Member<'e>),
    }
    let there = known.iter().filter(|(_, is_there, _)| *is_there).map(|known| (known.0, Entry::Known(known)));
    let others = unknown.iter().map(|member| (member.name.as_str(), Entry::Unknown(member)));
    let mut entries: Vec<_> = there.chain(others).collect();
    entries.sort_unstable_by_key(|(name, _)| *name);
    out.push(b'{');
    json::write_separated(out, entries, |out, (_, entry)| match entry {
        Entry::Known((name, _, write)) => {
            write_text(out, name);
            out.push(b':');
            write(out);
        }
        Entry::Unknown(member) => {
            member.name.write(out);
            out.push(b':');
            member.value.write(out);
        }
    });
    out.push(b'}');
}

fn write_list<T>(out: &mut Vec<u8>, list: &List<'_, T>, write: impl Fn(&mut Vec<u8>, &T)) {
    list.write(out, |out, elements| json::write_array(out, elements, |out, element| element.write(out, &write)));
}

fn write_text_part(out: &mut Vec<u8>, part: &Part<'_, &str>) {
    part.write(out, write_text);
}

/// Writes an expression of a group that does not say how its expressions combine. Only the order of its members is
/// changed, which has no meaning in JSON.
fn write_with_sorted_names(out: &mut Vec<u8>, value: &Value<'_>) {
    match value.as_object() {
        Some(members) => write_object(out, &members.iter().collect::<Vec<_>>(), &[]),
        None => value.write(out),
    }
}

/// A string with the fewest escapes: quotes, backslashes and control characters.
fn write_text(out: &mut Vec<u8>, text: &&str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    let mut rest = text.as_bytes();
    loop {
        let (plain, behind) = rest.split_at(json::plain_prefix(rest));
        out.extend_from_slice(plain);
        let Some((byte, behind)) = behind.split_first() else { break };
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            _ => {
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
        }
        rest = behind;
    }
    out.push(b'"');
}
