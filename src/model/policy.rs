//! What a team may see: members that its queries may not name, and filters that all of them get.
//!
//! What cannot be proven safe is refused. Twilio does not document how several filter groups combine, so the
//! required filters are added inside every group: then they hold whichever way that is. For the same reason
//! an `OR`, a group without `op` that holds several expressions, and anything of an unknown shape is refused to a
//! team with a policy. Names are compared without regard to case, a denied dimension covers its grains
//! (`Conversation.CreatedDate.hour`), and an unqualified name is taken for any cube's.

use bytes::Bytes;

use super::json::{self, Member, Value};
use super::query::CanonicalQuery;

/// A filter that every query of a team gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Required {
    /// `EQ`, `NE`, `GT`, `LT` or `IN`.
    pub op: String,
    /// The dimension.
    pub field: String,
    /// What it is compared with.
    pub values: Vec<String>,
}

/// A team's policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    deny: Vec<Pattern>,
    /// Expressions, as JSON.
    require: Vec<String>,
    fingerprint: [u8; 32],
}

/// Why a query is refused. The messages name members, never values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It names a member that the team may not see.
    #[error("this team may not query {0}")]
    Field(String),
    /// It is of a shape in which the policy cannot be proven to hold.
    #[error("this team has a policy, which cannot be proven to hold here: {0}")]
    Shape(&'static str),
}

impl Policy {
    /// A policy that refuses `deny` (names, `*` at the end for any rest) and adds `require`.
    pub fn new(deny: &[String], require: &[Required]) -> Self {
        let require: Vec<String> = require
            .iter()
            .map(|r| serde_json::json!({"op": r.op, "field": r.field, "values": r.values}).to_string())
            .collect();
        let mut hasher = blake3::Hasher::new();
        for part in deny.iter().chain(&require) {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        hasher.update(&(deny.len() as u64).to_le_bytes());
        let deny = deny.iter().map(|text| Pattern::new(text)).collect();
        Self { deny, require, fingerprint: hasher.finalize().into() }
    }

    /// Tells policies apart.
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// The canonical query with the policy's filters in it.
    ///
    /// # Errors
    ///
    /// When it names a denied member, or is of a shape in which the policy cannot be proven to hold.
    pub fn apply(&self, body: &[u8]) -> Result<Bytes, Denied> {
        let value = json::parse(body).map_err(|_| Denied::Shape("the body cannot be read"))?;
        let members = known(&value, &["domain", "pageSize", "properties", "query"])?;
        let query = json::member(members, "query").ok_or(Denied::Shape("there is no query"))?;
        let query = known(query, &["dimensions", "filters", "measures", "orderBy"])?;
        for list in ["measures", "dimensions"] {
            for name in elements(json::member(query, list))? {
                self.check(name.as_str().ok_or(Denied::Shape("a member's name is no string"))?)?;
            }
        }
        for order in elements(json::member(query, "orderBy"))? {
            let order = known(order, &["direction", "field"])?;
            self.check(field(order)?)?;
        }
        let groups = elements(json::member(query, "filters"))?;
        let expressions = groups.iter().map(|group| self.expressions(group)).collect::<Result<Vec<_>, _>>()?;
        if self.require.is_empty() {
            return Ok(Bytes::copy_from_slice(body));
        }
        let query = object(query, "filters", |out| self.write_filters(out, &expressions));
        let body = object(members, "query", |out| out.extend_from_slice(&query));
        // Canonical once more: the filters that were added take their places among the others.
        let canonical = CanonicalQuery::parse(&body);
        canonical.map(CanonicalQuery::into_bytes).map_err(|_| Denied::Shape("the query cannot be written"))
    }

    fn check(&self, name: &str) -> Result<(), Denied> {
        match self.deny.iter().any(|pattern| pattern.covers(name)) {
            true => Err(Denied::Field(name.to_owned())),
            false => Ok(()),
        }
    }

    /// The expressions of a group that is an `AND` beyond doubt, their members checked.
    fn expressions<'v, 'a>(&self, group: &'v Value<'a>) -> Result<&'v [Value<'a>], Denied> {
        let group = known(group, &["expressions", "op"])?;
        let expressions = elements(json::member(group, "expressions"))?;
        match json::member(group, "op").map(|op| op.as_str()) {
            Some(Some("AND")) => {}
            None if expressions.len() == 1 => {}
            _ => return Err(Denied::Shape("a filter group is not an AND; write one with \"op\":\"AND\"")),
        }
        for expression in expressions {
            let leaf = known(expression, &["field", "op", "values"])?;
            let op = json::member(leaf, "op").and_then(Value::as_str);
            if !op.is_some_and(|op| matches!(op, "EQ" | "NE" | "GT" | "LT" | "IN")) {
                return Err(Denied::Shape("an expression's op is none of EQ, NE, GT, LT and IN"));
            }
            let are_texts = match json::member(leaf, "values") {
                None | Some(Value::Null) => true,
                Some(values) => values.as_array().is_some_and(|all| all.iter().all(|value| value.as_str().is_some())),
            };
            if !are_texts {
                return Err(Denied::Shape("an expression's values are not a list of strings"));
            }
            self.check(field(leaf)?)?;
        }
        Ok(expressions)
    }

    /// The groups, each with the required expressions; one of these alone where there are none.
    fn write_filters(&self, out: &mut Vec<u8>, groups: &[&[Value<'_>]]) {
        let alone: &[&[Value<'_>]] = &[&[]];
        let groups = if groups.is_empty() { alone } else { groups };
        json::write_array(out, groups, |out, own| {
            out.extend_from_slice(b"{\"op\":\"AND\",\"expressions\":[");
            json::write_separated(out, *own, |out, expression| expression.write(out));
            for (i, required) in self.require.iter().enumerate() {
                if i > 0 || !own.is_empty() {
                    out.push(b',');
                }
                out.extend_from_slice(required.as_bytes());
            }
            out.extend_from_slice(b"]}");
        });
    }
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
        // `ParticipantId` could be any cube's.
        let own = self.name.split_once('.').map(|(_, member)| member);
        !name.contains('.') && own.is_some_and(|member| self.matches(member, &name))
    }

    fn matches(&self, pattern: &str, name: &str) -> bool {
        match name.strip_prefix(pattern) {
            Some(rest) => self.any_rest || rest.is_empty() || rest.starts_with('.'),
            None => false,
        }
    }
}

fn known<'v, 'a>(value: &'v Value<'a>, names: &[&str]) -> Result<&'v [Member<'a>], Denied> {
    let members = value.as_object().ok_or(Denied::Shape("something that should be an object is none"))?;
    match members.iter().all(|member| names.contains(&member.name.as_str())) {
        true => Ok(members),
        false => Err(Denied::Shape("there is a member that is not known")),
    }
}

fn elements<'v, 'a>(value: Option<&'v Value<'a>>) -> Result<&'v [Value<'a>], Denied> {
    match value {
        None => Ok(&[]),
        Some(value) => value.as_array().ok_or(Denied::Shape("something that should be a list is none")),
    }
}

fn field<'v>(members: &'v [Member<'_>]) -> Result<&'v str, Denied> {
    json::member(members, "field").and_then(Value::as_str).ok_or(Denied::Shape("an entry names no field"))
}

/// An object with one member put in place of what it had.
fn object(members: &[Member<'_>], name: &str, write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = vec![b'{'];
    for member in members.iter().filter(|member| member.name.as_str() != name) {
        member.name.write(&mut out);
        out.push(b':');
        member.value.write(&mut out);
        out.push(b',');
    }
    out.extend_from_slice(format!("\"{name}\":").as_bytes());
    write(&mut out);
    out.push(b'}');
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(deny: &[&str], require: &[(&str, &str, &[&str])]) -> Policy {
        let deny: Vec<_> = deny.iter().map(|s| (*s).to_owned()).collect();
        let text = |s: &&str| (*s).to_owned();
        let require: Vec<_> = require
            .iter()
            .map(|(op, field, values)| Required {
                op: text(op),
                field: text(field),
                values: values.iter().map(text).collect(),
            })
            .collect();
        Policy::new(&deny, &require)
    }

    fn canonical(body: &str) -> Bytes {
        CanonicalQuery::parse(body.as_bytes()).expect(body).into_bytes()
    }

    fn apply(policy: &Policy, body: &str) -> Result<String, Denied> {
        policy.apply(&canonical(body)).map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[test]
    fn denied_members_are_refused_wherever_they_stand() {
        let policy = policy(&["Conversation.ParticipantId", "Conversation.Profile*"], &[]);
        let refused = [
            (r#"{"query":{"measures":["Conversation.ParticipantId"]}}"#, "Conversation.ParticipantId"),
            (r#"{"query":{"dimensions":["conversation.participantid"]}}"#, "conversation.participantid"),
            (r#"{"query":{"dimensions":["Conversation.ProfileX.day"]}}"#, "Conversation.ProfileX.day"),
            (r#"{"query":{"dimensions":["ParticipantId"]}}"#, "ParticipantId"),
            (r#"{"query":{"orderBy":[{"field":"Conversation.ParticipantId"}]}}"#, "Conversation.ParticipantId"),
            (
                r#"{"query":{"filters":[{"expressions":[{"op":"EQ","field":"Conversation.ParticipantId.x","values":["1"]}]}]}}"#,
                "Conversation.ParticipantId.x",
            ),
        ];
        for (body, field) in refused {
            assert_eq!(apply(&policy, body), Err(Denied::Field(field.to_owned())), "{body}");
        }
        let allowed = r#"{"query":{"dimensions":["Conversation.ParticipantIdentity","Other.ParticipantId"]}}"#;
        assert_eq!(apply(&policy, allowed).unwrap().as_bytes(), canonical(allowed));
    }

    const CLOSED: (&str, &str, &[&str]) = ("EQ", "Conversation.Status", &["CLOSED"]);

    #[test]
    fn required_filters_hold_in_every_group() {
        let policy = policy(&[], &[CLOSED]);
        let closed = r#"{"field":"Conversation.Status","op":"EQ","values":["CLOSED"]}"#;
        assert_eq!(
            apply(&policy, r#"{"query":{"measures":["C.Count"]}}"#).unwrap(),
            format!(r#"{{"query":{{"filters":[{{"expressions":[{closed}],"op":"AND"}}],"measures":["C.Count"]}}}}"#)
        );
        let two = apply(&policy, r#"{"query":{"filters":[{"op":"AND","expressions":[{"op":"GT","field":"a","values":["1"]}]},{"expressions":[{"op":"LT","field":"b","values":["2"]}]}]}}"#).unwrap();
        assert_eq!(two.matches(closed).count(), 2);
        assert_eq!(two.matches(r#""op":"AND""#).count(), 2);
    }

    #[test]
    fn equal_effective_queries_share_their_bytes() {
        let effective = apply(&policy(&[], &[CLOSED]), r#"{"query":{"measures":["C.Count"]}}"#).unwrap();
        let asked = r#"{"query":{"measures":["C.Count"],"filters":[{"op":"AND","expressions":[{"values":["CLOSED"],"op":"EQ","field":"Conversation.Status"}]}]}}"#;
        assert_eq!(effective.as_bytes(), canonical(asked));
        assert_eq!(apply(&policy(&[], &[CLOSED]), asked).unwrap(), effective);
    }

    #[test]
    fn what_cannot_be_proven_is_refused() {
        let policy = policy(&["X.y"], &[CLOSED]);
        let group = |group: &str| format!(r#"{{"query":{{"measures":["C.Count"],"filters":[{group}]}}}}"#);
        let leaf = r#"{"op":"EQ","field":"a","values":["1"]}"#;
        let unsafe_bodies = [
            group(&format!(r#"{{"op":"OR","expressions":[{leaf}]}}"#)),
            group(&format!(r#"{{"expressions":[{leaf},{leaf}]}}"#)),
            group(r#"{"expressions":[]}"#),
            group(&format!(r#"{{"op":"AND","not":true,"expressions":[{leaf}]}}"#)),
            group(r#"{"op":"AND","expressions":[{"op":"OR","expressions":[]}]}"#),
            group(r#"{"op":"AND","expressions":[{"op":"EQ","field":7}]}"#),
            group(r#"{"op":"AND","expressions":[{"op":"EQ","field":"a","values":"1"}]}"#),
            group(r#"{"op":"AND","expressions":[{"op":"EQ","field":"a","values":[{"sql":"X.y"}]}]}"#),
            group("null"),
            r#"{"query":{"measures":[7]}}"#.to_owned(),
            r#"{"query":{"segments":["X.y"]}}"#.to_owned(),
            r#"{"query":{},"sql":"X.y"}"#.to_owned(),
            r#"{"query":{"orderBy":[{"fields":["X.y"]}]}}"#.to_owned(),
        ];
        for body in unsafe_bodies {
            assert!(matches!(apply(&policy, &body), Err(Denied::Shape(_))), "{body}");
        }
    }

    #[test]
    fn policies_are_told_apart() {
        let prints = [
            policy(&[], &[]),
            policy(&["a"], &[]),
            policy(&["a", "b"], &[]),
            policy(&["ab"], &[]),
            policy(&[], &[CLOSED]),
        ];
        for (i, one) in prints.iter().enumerate() {
            for other in &prints[i + 1..] {
                assert_ne!(one.fingerprint(), other.fingerprint());
            }
        }
    }

    proptest! {
        /// Whatever is let through: no denied name in it, and the required filter in every group.
        #[test]
        fn what_passes_obeys(body in r#"\{"query":\{("measures":\["(A|B)\.(x|y)"\],)?"filters":\[(\{("op":"(AND|OR)",)?"expressions":\[\{"op":"EQ","field":"(A|B)\.(x|y)","values":\["1"\]\}\]\})?\]\}\}"#) {
            let policy = policy(&["A.x"], &[CLOSED]);
            if let Ok(effective) = apply(&policy, &body) {
                prop_assert!(!effective.contains("A.x"));
                prop_assert!(effective.contains("CLOSED") && !effective.contains("\"OR\""));
            }
        }
    }
}
