//! A parsed query: its measures, dimensions, filters and order, and all other members.
//!
//! [`Query`] borrows from a JSON value. The members that Twilio documents are typed; all others are kept unchanged.
//! Code that needs the content of a query uses this type. The names in a query ([`Query::visit_names`]) are here, and
//! its canonical form is in `canonical`. The query under a policy is in the policy's module, and whether its data no
//! longer changes is in [`settled`](super::settled).

mod canonical;

use crate::core::json::{self, Fault, JsonError, Member, Position, Value};

/// A part of a query.
#[derive(Debug, Clone, PartialEq)]
pub enum Part<'q, T> {
    /// Absent or `null`.
    Absent,
    /// It has the documented type.
    Known(T),
    /// It has another type.
    Other(&'q Value<'q>),
}

impl<'q, T> Part<'q, T> {
    /// Reads a member that may be absent; `read` returns `None` for another type.
    fn of(value: Option<&'q Value<'q>>, read: impl FnOnce(&'q Value<'q>) -> Option<T>) -> Self {
        match value {
            None | Some(Value::Null) => Self::Absent,
            Some(value) => Self::element(value, read),
        }
    }

    /// Reads an element of a list. Here `null` is another type.
    fn element(value: &'q Value<'q>, read: impl FnOnce(&'q Value<'q>) -> Option<T>) -> Self {
        read(value).map_or(Self::Other(value), Self::Known)
    }

    /// The value, if it has the documented type.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(known) => Some(known),
            Self::Absent | Self::Other(_) => None,
        }
    }
}

/// Members of an object that are not documented, unchanged, by name.
type Unknown<'q> = Vec<&'q Member<'q>>;

/// A list; each element may have the documented type or another.
pub type List<'q, T> = Part<'q, Vec<Part<'q, T>>>;

/// A request body; see the module.
#[derive(Debug, Clone, PartialEq)]
pub struct Query<'q> {
    /// `domain`
    pub domain: Part<'q, &'q str>,
    /// `pageSize`: the digits of a number. Twilio's SDK for Node puts it here.
    pub page_size: Part<'q, &'q str>,
    /// `properties`
    pub properties: Part<'q, Properties<'q>>,
    /// `query.measures`
    pub measures: List<'q, &'q str>,
    /// `query.dimensions`
    pub dimensions: List<'q, &'q str>,
    /// `query.filters`
    pub filters: List<'q, Group<'q>>,
    /// `query.orderBy`
    pub order: List<'q, Order<'q>>,
    unknown_in_body: Unknown<'q>,
    unknown_in_query: Unknown<'q>,
}

/// `properties`
#[derive(Debug, Clone, PartialEq)]
pub struct Properties<'q> {
    /// `timezone`
    pub zone: Part<'q, &'q str>,
    unknown: Unknown<'q>,
}

/// An entry of `orderBy`.
#[derive(Debug, Clone, PartialEq)]
pub struct Order<'q> {
    /// The member that orders the rows.
    pub field: Part<'q, &'q str>,
    /// `ASC` or `DESC`, as documented.
    pub direction: Part<'q, &'q str>,
    unknown: Unknown<'q>,
}

/// How the expressions of a filter group are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Combination {
    /// A row has to meet all.
    And,
    /// A row has to meet one.
    Or,
}

impl Combination {
    /// The word in a query.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::And => "AND",
            Self::Or => "OR",
        }
    }
}

/// A filter group: `{op?, expressions}` and no other members.
#[derive(Debug, Clone, PartialEq)]
pub struct Group<'q> {
    /// How the expressions are combined, where the group says so.
    pub op: Option<Combination>,
    /// The expressions.
    pub expressions: Vec<Part<'q, Expression<'q>>>,
    /// The group as it came; `None` for a group that the gateway made.
    source: Option<&'q Value<'q>>,
}

/// A comparison that Twilio documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Greater.
    Gt,
    /// Less.
    Lt,
    /// One of several.
    In,
}

impl Comparison {
    /// All comparisons.
    pub const ALL: [Self; 5] = [Self::Eq, Self::Ne, Self::Gt, Self::Lt, Self::In];

    /// The word in a query.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Eq => "EQ",
            Self::Ne => "NE",
            Self::Gt => "GT",
            Self::Lt => "LT",
            Self::In => "IN",
        }
    }

    /// The comparison with this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|comparison| comparison.as_str() == word)
    }
}

/// An expression: `{op, field, values}` and no other members.
#[derive(Debug, Clone, PartialEq)]
pub struct Expression<'q> {
    /// The comparison.
    pub op: Comparison,
    /// The member that it compares.
    pub field: &'q str,
    /// The values to compare with.
    pub values: Part<'q, Vec<&'q str>>,
}

/// A place in a query that has names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// `measures`
    Measure,
    /// `dimensions`
    Dimension,
    /// `field` in `filters`
    Filter,
    /// `field` in `orderBy`
    Order,
}

/// Why a body is not a query. Every message says what is wrong and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Not JSON, or JSON that readers understand differently.
    #[error("the request body is not acceptable JSON: {0} ({1})")]
    Json(#[source] JsonError, Position),
    /// More values than the gateway accepts.
    #[error("the request body has more than {} JSON values; ask for less at once", json::MAX_VALUES)]
    TooManyValues,
    /// A JSON value that is not an object.
    #[error("the request body must be a JSON object with a member \"query\"")]
    NotAnObject,
    /// No `query`, or `null`.
    #[error("the request body has no member \"query\"")]
    NoQuery,
    /// `query` is not an object.
    #[error("the member \"query\" must be an object")]
    QueryNotAnObject,
}

/// Parses the JSON of a request body, for [`Query::read`].
///
/// # Errors
///
/// When it is not JSON in the strict sense of [`json::parse`], or has too many values.
pub fn parse(body: &[u8]) -> Result<Value<'_>, QueryError> {
    json::parse(body).map_err(|error| match error.fault {
        Fault::TooManyValues => QueryError::TooManyValues,
        _ => {
            let place = error.place(body);
            QueryError::Json(error, place)
        }
    })
}

impl<'q> Query<'q> {
    /// Reads a request body.
    ///
    /// # Errors
    ///
    /// When it is not an object with an object `query`.
    pub fn read(body: &'q Value<'q>) -> Result<Self, QueryError> {
        let body = body.as_object().ok_or(QueryError::NotAnObject)?;
        let query = match json::member(body, "query") {
            Some(Value::Object(query)) => query,
            None | Some(Value::Null) => return Err(QueryError::NoQuery),
            Some(_) => return Err(QueryError::QueryNotAnObject),
        };
        Ok(Self {
            domain: Part::of(json::member(body, "domain"), Value::as_str),
            page_size: Part::of(json::member(body, "pageSize"), |value| match value {
                Value::Number(digits) => Some(*digits),
                _ => None,
            }),
            properties: Part::of(json::member(body, "properties"), Properties::read),
            measures: list(json::member(query, "measures"), Value::as_str),
            dimensions: list(json::member(query, "dimensions"), Value::as_str),
            filters: list(json::member(query, "filters"), Group::read),
            order: list(json::member(query, "orderBy"), Order::read),
            unknown_in_body: unknown(body, &["domain", "pageSize", "properties", "query"]),
            unknown_in_query: unknown(query, &["dimensions", "filters", "measures", "orderBy"]),
        })
    }

    /// Whether it has members that are not documented, at any level except inside a filter group, which is then not
    /// typed.
    pub fn has_unknown_members(&self) -> bool {
        let in_properties = self.properties.known().is_some_and(|properties| !properties.unknown.is_empty());
        let orders = self.order.known().into_iter().flatten().filter_map(Part::known);
        let in_order = || orders.map(|order| &order.unknown).any(|unknown| !unknown.is_empty());
        !self.unknown_in_body.is_empty() || !self.unknown_in_query.is_empty() || in_properties || in_order()
    }

    /// Calls `visit` with every name in the query, and its place. In filters of undocumented form, a member `field`
    /// counts wherever an expression may be, and nowhere else, because it could be a value there.
    pub fn visit_names<'s>(&'s self, mut visit: impl FnMut(Place, &'s str)) {
        for (place, names) in [(Place::Measure, &self.measures), (Place::Dimension, &self.dimensions)] {
            let names = names.known().into_iter().flatten().filter_map(Part::known);
            names.for_each(|name| visit(place, name));
        }
        let mut filter = |name| visit(Place::Filter, name);
        for group in self.filters.known().into_iter().flatten() {
            match group {
                Part::Known(group) => group.expressions.iter().for_each(|expression| match expression {
                    Part::Known(expression) => filter(expression.field),
                    Part::Other(value) => visit_expressions(value, &mut filter),
                    Part::Absent => {}
                }),
                Part::Other(value) => visit_expressions(value, &mut filter),
                Part::Absent => {}
            }
        }
        let orders = self.order.known().into_iter().flatten().filter_map(Part::known);
        orders.filter_map(|order| order.field.known()).for_each(|name| visit(Place::Order, name));
    }

    /// The same query with other filters.
    pub fn with_filters<'s>(&self, groups: Vec<Group<'s>>) -> Query<'s>
    where
        'q: 's,
    {
        let rest: Query<'s> = self.clone();
        Query { filters: Part::Known(groups.into_iter().map(Part::Known).collect()), ..rest }
    }
}

impl<'q> Properties<'q> {
    fn read(value: &'q Value<'q>) -> Option<Self> {
        let members = value.as_object()?;
        let zone = Part::of(json::member(members, "timezone"), Value::as_str);
        Some(Self { zone, unknown: unknown(members, &["timezone"]) })
    }
}

impl<'q> Order<'q> {
    fn read(value: &'q Value<'q>) -> Option<Self> {
        let members = value.as_object()?;
        Some(Self {
            field: Part::of(json::member(members, "field"), Value::as_str),
            direction: Part::of(json::member(members, "direction"), Value::as_str),
            unknown: unknown(members, &["direction", "field"]),
        })
    }
}

impl<'q> Group<'q> {
    /// An `AND` group of documented expressions.
    pub fn and(expressions: impl IntoIterator<Item = Expression<'q>>) -> Self {
        let expressions = expressions.into_iter().map(Part::Known).collect();
        Self { op: Some(Combination::And), expressions, source: None }
    }

    fn read(value: &'q Value<'q>) -> Option<Self> {
        let members = value.as_object()?;
        if !unknown(members, &["expressions", "op"]).is_empty() {
            return None;
        }
        let op = match json::member(members, "op") {
            None | Some(Value::Null) => None,
            Some(op) => match op.as_str()? {
                "AND" => Some(Combination::And),
                "OR" => Some(Combination::Or),
                _ => return None,
            },
        };
        let expressions = json::member(members, "expressions")?.as_array()?;
        let expressions = expressions.iter().map(|value| Part::element(value, Expression::read)).collect();
        Some(Self { op, expressions, source: Some(value) })
    }

    /// Its expressions, if all have the documented form.
    pub fn documented(&self) -> Option<Vec<&Expression<'q>>> {
        let is_documented = |expression: &&Expression<'_>| !matches!(expression.values, Part::Other(_));
        self.expressions.iter().map(|expression| expression.known().filter(is_documented)).collect()
    }
}

impl<'q> Expression<'q> {
    fn read(value: &'q Value<'q>) -> Option<Self> {
        let members = value.as_object()?;
        if !unknown(members, &["field", "op", "values"]).is_empty() {
            return None;
        }
        let texts = |value: &'q Value<'q>| value.as_array()?.iter().map(Value::as_str).collect();
        Some(Self {
            op: Comparison::parse(json::member(members, "op")?.as_str()?)?,
            field: json::member(members, "field")?.as_str()?,
            values: Part::of(json::member(members, "values"), texts),
        })
    }
}

fn list<'q, T>(value: Option<&'q Value<'q>>, read: impl Fn(&'q Value<'q>) -> Option<T>) -> List<'q, T> {
    let element = |value| Part::element(value, &read);
    Part::of(value, |value| Some(value.as_array()?.iter().map(element).collect()))
}

fn unknown<'q>(members: &'q [Member<'q>], known: &[&str]) -> Unknown<'q> {
    members.iter().filter(|member| !known.contains(&member.name.as_str())).collect()
}

fn visit_expressions<'q>(value: &'q Value<'q>, visit: &mut impl FnMut(&'q str)) {
    let Some(members) = value.as_object() else { return };
    json::member(members, "field").and_then(Value::as_str).into_iter().for_each(&mut *visit);
    let inner = json::member(members, "expressions").and_then(Value::as_array);
    inner.unwrap_or_default().iter().for_each(|value| visit_expressions(value, visit));
}

#[cfg(test)]
mod tests;
