//! The canonical form of a query body: equal queries give equal bytes, and nothing else does.
//!
//! What is hashed for the cache key is what is sent upstream, so a mistake here could change a query, but
//! never serve one query's page to another.
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
//! It fails closed. A group or expression with members, operators or types that Twilio does not document is
//! written with its own order, spelling and nulls, and so are the expressions of a group without `op`
//! (only their member names are sorted), since what combines them is not documented.

use bytes::Bytes;

use super::json::{self, JsonError, Member, Text, Value};

/// A body that has been read, checked for its outer shape and written canonically.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanonicalQuery(Bytes);

impl CanonicalQuery {
    /// Reads a request body.
    ///
    /// # Errors
    ///
    /// When it is not JSON in the strict sense of [`json::parse`], or is no object with an object `query`.
    pub fn parse(body: &[u8]) -> Result<Self, QueryError> {
        let value = json::parse(body).map_err(QueryError::Json)?;
        let members = value.as_object().ok_or(QueryError::NotAnObject)?;
        match json::member(members, "query") {
            Some(Value::Object(_)) => {}
            None | Some(Value::Null) => return Err(QueryError::NoQuery),
            Some(_) => return Err(QueryError::QueryNotAnObject),
        }
        let mut out = Vec::with_capacity(body.len());
        write_known_object(&mut out, members, BODY);
        Ok(Self(out.into()))
    }

    /// The canonical bytes: UTF-8, no white space outside strings.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The canonical bytes, for good.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

/// Why a body is no query. Every message says what is wrong with it and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Not JSON, or JSON that readers understand differently.
    #[error("the request body is not acceptable JSON: {0}")]
    Json(#[source] JsonError),
    /// Some other JSON value.
    #[error("the request body must be a JSON object with a member \"query\"")]
    NotAnObject,
    /// No `query`, or `null`.
    #[error("the request body has no member \"query\"")]
    NoQuery,
    /// `query` is something else than an object.
    #[error("the member \"query\" must be an object")]
    QueryNotAnObject,
}

type Write = fn(&mut Vec<u8>, &Value<'_>);

/// The known members of an object and how each is written. A known member that is `null` is left out.
type Shape = &'static [(&'static str, Write)];

const BODY: Shape = &[
    ("domain", write_scalar),
    ("pageSize", write_scalar),
    ("properties", |out, value| write_object_or_as_is(out, value, PROPERTIES)),
    ("query", |out, value| write_object_or_as_is(out, value, QUERY)),
];

const PROPERTIES: Shape = &[("timezone", write_scalar)];

const QUERY: Shape = &[
    ("dimensions", |out, value| write_list(out, value, write_scalar)),
    ("filters", |out, value| write_list(out, value, write_group)),
    ("measures", |out, value| write_list(out, value, write_scalar)),
    ("orderBy", |out, value| write_list(out, value, |out, order| write_object_or_as_is(out, order, ORDER))),
];

const ORDER: Shape = &[("direction", write_scalar), ("field", write_scalar)];

fn write_object_or_as_is(out: &mut Vec<u8>, value: &Value<'_>, shape: Shape) {
    match value {
        Value::Object(members) => write_known_object(out, members, shape),
        _ => value.write(out),
    }
}

/// Members sorted by name; known ones canonically, others with their own spelling and nulls.
fn write_known_object(out: &mut Vec<u8>, members: &[Member<'_>], shape: Shape) {
    let known =
        |member: &Member<'_>| shape.iter().find(|(name, _)| *name == member.name.as_str()).map(|(_, write)| *write);
    let mut kept: Vec<_> = members.iter().filter(|m| m.value != Value::Null || known(m).is_none()).collect();
    kept.sort_unstable_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
    out.push(b'{');
    json::write_separated(out, kept, |out, member| match known(member) {
        Some(write) => {
            write_text(out, &member.name);
            out.push(b':');
            write(out, &member.value);
        }
        None => {
            member.name.write(out);
            out.push(b':');
            member.value.write(out);
        }
    });
    out.push(b'}');
}

fn write_list(out: &mut Vec<u8>, value: &Value<'_>, write: Write) {
    let Value::Array(elements) = value else {
        return value.write(out);
    };
    json::write_array(out, elements, write);
}

/// A filter group, as far as it is of the documented shape.
fn write_group(out: &mut Vec<u8>, value: &Value<'_>) {
    match Group::read(value) {
        Some(Group { op: Some(op), expressions }) => {
            let leaves: Option<Vec<_>> = expressions.iter().map(Leaf::read).collect();
            let Some(leaves) = leaves else {
                return value.write(out);
            };
            let mut written: Vec<Vec<u8>> = leaves.iter().map(Leaf::canonical).collect();
            written.sort_unstable();
            written.dedup();
            out.extend_from_slice(b"{\"expressions\":");
            json::write_array(out, &written, |out, leaf| out.extend_from_slice(leaf));
            out.extend_from_slice(b",\"op\":");
            write_text(out, op);
            out.push(b'}');
        }
        Some(Group { op: None, expressions }) => {
            out.extend_from_slice(b"{\"expressions\":");
            json::write_array(out, expressions, write_with_sorted_names);
            out.push(b'}');
        }
        None => value.write(out),
    }
}

/// `{op?, expressions}` and nothing else.
struct Group<'v, 'a> {
    op: Option<&'v Text<'a>>,
    expressions: &'v [Value<'a>],
}

impl<'v, 'a> Group<'v, 'a> {
    fn read(value: &'v Value<'a>) -> Option<Self> {
        let members = value.as_object()?;
        let known = |m: &Member<'_>| matches!(m.name.as_str(), "op" | "expressions");
        if !members.iter().all(known) {
            return None;
        }
        let op = match json::member(members, "op") {
            None | Some(Value::Null) => None,
            Some(Value::String(op)) if matches!(op.as_str(), "AND" | "OR") => Some(op),
            Some(_) => return None,
        };
        Some(Self { op, expressions: json::member(members, "expressions")?.as_array()? })
    }
}

/// `{op, field, values}` with a comparison that Twilio documents.
struct Leaf<'v, 'a> {
    op: &'v Text<'a>,
    field: &'v Text<'a>,
    values: Option<Vec<&'v Text<'a>>>,
}

impl<'v, 'a> Leaf<'v, 'a> {
    fn read(value: &'v Value<'a>) -> Option<Self> {
        let members = value.as_object()?;
        let known = |m: &Member<'_>| matches!(m.name.as_str(), "op" | "field" | "values");
        if !members.iter().all(known) {
            return None;
        }
        let text = |name| match json::member(members, name) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        };
        let op = text("op").filter(|op| matches!(op.as_str(), "EQ" | "NE" | "GT" | "LT" | "IN"))?;
        let values = match json::member(members, "values") {
            None | Some(Value::Null) => None,
            Some(Value::Array(values)) => {
                let texts = values.iter().map(|v| if let Value::String(t) = v { Some(t) } else { None });
                Some(texts.collect::<Option<Vec<_>>>()?)
            }
            Some(_) => return None,
        };
        Some(Self { op, field: text("field")?, values })
    }

    fn canonical(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(96);
        out.extend_from_slice(b"{\"field\":");
        write_text(&mut out, self.field);
        out.extend_from_slice(b",\"op\":");
        write_text(&mut out, self.op);
        if let Some(values) = &self.values {
            let mut values = values.clone();
            if self.op.as_str() == "IN" {
                values.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
                values.dedup_by(|a, b| a.as_str() == b.as_str());
            }
            out.extend_from_slice(b",\"values\":");
            json::write_array(&mut out, values, write_text);
        }
        out.push(b'}');
        out
    }
}

/// An expression whose group does not say what combines it: only the order of its members, which JSON gives
/// no meaning, is settled.
fn write_with_sorted_names(out: &mut Vec<u8>, value: &Value<'_>) {
    match value {
        Value::Object(members) => write_known_object(out, members, &[]),
        _ => value.write(out),
    }
}

fn write_scalar(out: &mut Vec<u8>, value: &Value<'_>) {
    match value {
        Value::String(text) => write_text(out, text),
        _ => value.write(out),
    }
}

/// A string with the fewest escapes: quotes, backslashes and control characters.
fn write_text(out: &mut Vec<u8>, text: &Text<'_>) {
    if !text.has_escapes() {
        return text.write(out);
    }
    out.push(b'"');
    for byte in text.as_str().bytes() {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            0..=0x1f => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                let digits = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&digits);
            }
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests;
