//! The meaning of a query, and other ways to write it.
//!
//! Written only from the documented forms and not from the tested code, so that both would have to be wrong in the same
//! way.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use insights_gateway::core::json::{Member, Text, Value};

/// A place in a query, and what is documented about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Body,
    Properties,
    Query,
    Order,
    Orders,
    Groups,
    Names,
    Scalar,
    /// A filter group: its content decides how much of it is understood.
    Group,
    /// An expression of a group that says how its expressions are combined.
    Leaf,
    /// An expression of a group that does not say so.
    Loose,
    /// A place without documentation.
    Unknown,
}

impl Place {
    /// The documented members, each with its place.
    fn members(self) -> &'static [(&'static str, Self)] {
        match self {
            Self::Body => &[
                ("domain", Self::Scalar),
                ("query", Self::Query),
                ("properties", Self::Properties),
                // A number. Its digits are kept, and so are any other bytes in its place.
                ("pageSize", Self::Unknown),
            ],
            Self::Properties => &[("timezone", Self::Scalar)],
            Self::Query => &[
                ("measures", Self::Names),
                ("dimensions", Self::Names),
                ("filters", Self::Groups),
                ("orderBy", Self::Orders),
            ],
            Self::Order => &[("field", Self::Scalar), ("direction", Self::Scalar)],
            _ => &[],
        }
    }

    fn element(self) -> Self {
        match self {
            Self::Names => Self::Scalar,
            Self::Groups => Self::Group,
            Self::Orders => Self::Order,
            _ => Self::Unknown,
        }
    }

    fn member(self, name: &str) -> Option<Self> {
        self.members().iter().find(|(known, _)| *known == name).map(|(_, place)| *place)
    }
}

/// A documented filter group.
struct Group<'v, 'a> {
    op: Option<&'v Text<'a>>,
    expressions: &'v [Value<'a>],
}

fn group<'v, 'a>(value: &'v Value<'a>) -> Option<Group<'v, 'a>> {
    let Value::Object(members) = value else { return None };
    let (mut op, mut expressions) = (None, None);
    for member in members {
        match (member.name.as_str(), &member.value) {
            ("op", Value::Null) => {}
            ("op", Value::String(text)) if ["AND", "OR"].contains(&text.as_str()) => op = Some(text),
            ("expressions", Value::Array(elements)) => expressions = Some(&elements[..]),
            _ => return None,
        }
    }
    let group = Group { op, expressions: expressions? };
    (group.op.is_none() || group.expressions.iter().all(|e| leaf(e).is_some())).then_some(group)
}

/// A documented expression.
struct Leaf<'v, 'a> {
    op: &'v Text<'a>,
    field: &'v Text<'a>,
    values: Option<Vec<&'v Text<'a>>>,
}

fn leaf<'v, 'a>(value: &'v Value<'a>) -> Option<Leaf<'v, 'a>> {
    let Value::Object(members) = value else { return None };
    let (mut op, mut field, mut values) = (None, None, None);
    for member in members {
        match (member.name.as_str(), &member.value) {
            ("op", Value::String(text)) if ["EQ", "NE", "GT", "LT", "IN"].contains(&text.as_str()) => op = Some(text),
            ("field", Value::String(text)) => field = Some(text),
            ("values", Value::Null) => {}
            ("values", Value::Array(elements)) => {
                let text = |element: &'v Value<'a>| match element {
                    Value::String(text) => Some(text),
                    _ => None,
                };
                values = Some(elements.iter().map(text).collect::<Option<Vec<_>>>()?);
            }
            _ => return None,
        }
    }
    Some(Leaf { op: op?, field: field?, values })
}

/// The meaning of a part of a query, without differences that do not matter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Meaning {
    /// Not understood: as it was written, except white space.
    Exactly(Vec<u8>),
    Text(String),
    List(Vec<Meaning>),
    Set(BTreeSet<Meaning>),
    Members(BTreeMap<String, Meaning>),
}

fn exactly(value: &Value<'_>) -> Meaning {
    let mut written = Vec::new();
    value.write(&mut written);
    Meaning::Exactly(written)
}

fn text(text: &Text<'_>) -> Meaning {
    Meaning::Text(text.as_str().to_owned())
}

/// The meaning of `value` at `place`.
pub fn meaning(value: &Value<'_>, place: Place) -> Meaning {
    match (place, value) {
        (Place::Scalar, Value::String(said)) => text(said),
        (Place::Body | Place::Properties | Place::Query | Place::Order, Value::Object(members)) => {
            let meant = members.iter().filter_map(|member| {
                let known = place.member(member.name.as_str());
                if known.is_some() && member.value == Value::Null {
                    return None;
                }
                Some((member.name.as_str().to_owned(), meaning(&member.value, known.unwrap_or(Place::Unknown))))
            });
            Meaning::Members(meant.collect())
        }
        (Place::Names | Place::Groups | Place::Orders, Value::Array(elements)) => {
            Meaning::List(elements.iter().map(|e| meaning(e, place.element())).collect())
        }
        (Place::Group, value) => match group(value) {
            Some(Group { op: Some(op), expressions }) => {
                let all = expressions.iter().map(|e| meaning(e, Place::Leaf)).collect();
                Meaning::Members([("op".into(), text(op)), ("expressions".into(), Meaning::Set(all))].into())
            }
            Some(Group { op: None, expressions }) => {
                let all = expressions.iter().map(|e| meaning(e, Place::Loose)).collect();
                Meaning::Members([("expressions".into(), Meaning::List(all))].into())
            }
            None => exactly(value),
        },
        (Place::Leaf, value) => match leaf(value) {
            Some(Leaf { op, field, values }) => {
                let mut members = BTreeMap::from([("op".into(), text(op)), ("field".into(), text(field))]);
                if let Some(values) = values {
                    let values = values.into_iter().map(text);
                    let is_set = op.as_str() == "IN";
                    let values = if is_set { Meaning::Set(values.collect()) } else { Meaning::List(values.collect()) };
                    members.insert("values".into(), values);
                }
                Meaning::Members(members)
            }
            None => exactly(value),
        },
        (Place::Loose, Value::Object(members)) => {
            Meaning::Members(members.iter().map(|m| (m.name.as_str().to_owned(), exactly(&m.value))).collect())
        }
        (_, value) => exactly(value),
    }
}

/// Writes `value` in one of the many ways that mean the same.
pub fn respell(value: &Value<'_>, place: Place, rng: &mut Rng, out: &mut Vec<u8>) {
    space(rng, out);
    match (place, value) {
        (Place::Scalar, Value::String(said)) => write_text(said, rng, out),
        (Place::Body | Place::Properties | Place::Query | Place::Order, Value::Object(members)) => {
            write_known(members, place, rng, out);
        }
        (Place::Names | Place::Groups | Place::Orders, Value::Array(elements)) => {
            let written = elements.iter().map(|e| written(|out| respell(e, place.element(), rng, out))).collect();
            write_all(b'[', written, b']', out);
        }
        (Place::Group, value) => write_group(value, rng, out),
        (Place::Loose, Value::Object(members)) => {
            let mut written: Vec<_> = members.iter().map(|m| written(|out| write_member(m, rng, out))).collect();
            rng.shuffle(&mut written);
            write_all(b'{', written, b'}', out);
        }
        (_, value) => write_as_is(value, rng, out),
    }
    space(rng, out);
}

fn write_known(members: &[Member<'_>], place: Place, rng: &mut Rng, out: &mut Vec<u8>) {
    let mut all = Vec::new();
    for member in members {
        match place.member(member.name.as_str()) {
            Some(_) if member.value == Value::Null && rng.bool() => {}
            Some(known) => all.push(written(|out| {
                write_text(&member.name, rng, out);
                space(rng, out);
                out.push(b':');
                respell(&member.value, known, rng, out);
            })),
            None => all.push(written(|out| write_member(member, rng, out))),
        }
    }
    for (name, _) in place.members() {
        if !members.iter().any(|m| m.name.as_str() == *name) && rng.u8(..4) == 0 {
            all.push(format!("\"{name}\":null").into_bytes());
        }
    }
    rng.shuffle(&mut all);
    write_all(b'{', all, b'}', out);
}

fn write_group(value: &Value<'_>, rng: &mut Rng, out: &mut Vec<u8>) {
    let Some(Group { op, expressions }) = group(value) else { return write_as_is(value, rng, out) };
    let mut all = Vec::new();
    let mut written_expressions = Vec::new();
    match op {
        Some(op) => {
            all.push(written(|out| {
                out.extend_from_slice(b"\"op\":");
                write_text(op, rng, out);
            }));
            let again = expressions.iter().filter(|_| rng.u8(..4) == 0).collect::<Vec<_>>();
            for leaf in expressions.iter().chain(again) {
                written_expressions.push(written(|out| write_leaf(leaf, rng, out)));
            }
            rng.shuffle(&mut written_expressions);
        }
        None => {
            if rng.bool() {
                all.push(b"\"op\":null".to_vec());
            }
            for loose in expressions {
                written_expressions.push(written(|out| respell(loose, Place::Loose, rng, out)));
            }
        }
    }
    all.push(written(|out| {
        out.extend_from_slice(b"\"expressions\":");
        space(rng, out);
        write_all(b'[', written_expressions, b']', out);
    }));
    rng.shuffle(&mut all);
    write_all(b'{', all, b'}', out);
}

fn write_leaf(value: &Value<'_>, rng: &mut Rng, out: &mut Vec<u8>) {
    let Some(Leaf { op, field, values }) = leaf(value) else { return };
    space(rng, out);
    let mut all = Vec::new();
    for (name, said) in [("op", op), ("field", field)] {
        all.push(written(|out| {
            out.extend_from_slice(format!("\"{name}\":").as_bytes());
            write_text(said, rng, out);
        }));
    }
    match values {
        Some(mut values) => all.push(written(|out| {
            if op.as_str() == "IN" {
                let again: Vec<_> = values.iter().copied().filter(|_| rng.u8(..4) == 0).collect();
                values.extend(again);
                rng.shuffle(&mut values);
            }
            let values = values.into_iter().map(|value| written(|out| write_text(value, rng, out))).collect();
            out.extend_from_slice(b"\"values\" : ");
            write_all(b'[', values, b']', out);
        })),
        None if rng.bool() => all.push(b"\"values\":null".to_vec()),
        None => {}
    }
    rng.shuffle(&mut all);
    write_all(b'{', all, b'}', out);
}

/// A member with an undocumented name: its name and value keep their spelling.
fn write_member(member: &Member<'_>, rng: &mut Rng, out: &mut Vec<u8>) {
    space(rng, out);
    member.name.write(out);
    space(rng, out);
    out.push(b':');
    write_as_is(&member.value, rng, out);
}

/// Only white space may differ.
fn write_as_is(value: &Value<'_>, rng: &mut Rng, out: &mut Vec<u8>) {
    space(rng, out);
    match value {
        Value::Array(elements) => {
            let elements = elements.iter().map(|e| written(|out| write_as_is(e, rng, out))).collect();
            write_all(b'[', elements, b']', out);
        }
        Value::Object(members) => {
            let members = members.iter().map(|m| written(|out| write_member(m, rng, out))).collect();
            write_all(b'{', members, b'}', out);
        }
        plain => plain.write(out),
    }
    space(rng, out);
}

fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    out
}

fn write_all(open: u8, parts: Vec<Vec<u8>>, close: u8, out: &mut Vec<u8>) {
    out.push(open);
    out.extend_from_slice(&parts.join(&b','));
    out.push(close);
}

fn space(rng: &mut Rng, out: &mut Vec<u8>) {
    const SPACES: [&str; 8] = ["", "", "", "", " ", "\n", "\t", "\r\n  "];
    out.extend_from_slice(SPACES[rng.usize(..SPACES.len())].as_bytes());
}

/// A string in some other spelling.
fn write_text(text: &Text<'_>, rng: &mut Rng, out: &mut Vec<u8>) {
    out.push(b'"');
    for character in text.as_str().chars() {
        let short = match character {
            '"' => "\\\"",
            '\\' => "\\\\",
            '\u{8}' => "\\b",
            '\u{c}' => "\\f",
            '\n' => "\\n",
            '\r' => "\\r",
            '\t' => "\\t",
            '/' => "\\/",
            _ => "",
        };
        let must = matches!(character, '"' | '\\' | '\0'..='\x1f');
        match rng.u8(..8) {
            0 => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    let digits = if rng.bool() { format!("\\u{unit:04x}") } else { format!("\\u{unit:04X}") };
                    out.extend_from_slice(digits.as_bytes());
                }
            }
            1..4 if !short.is_empty() => out.extend_from_slice(short.as_bytes()),
            _ if !must => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
            _ if !short.is_empty() => out.extend_from_slice(short.as_bytes()),
            _ => out.extend_from_slice(format!("\\u{:04x}", u32::from(character)).as_bytes()),
        }
    }
    out.push(b'"');
}
