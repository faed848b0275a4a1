//! Parses a query body into a [`Query`] that can be evaluated, or says what is wrong with it.
//!
//! Where published material is silent, the choices are: a missing group operator and several groups both mean AND; a
//! missing direction is ascending; EQ, NE, GT and LT take one value, and IN takes at least one; GT and LT need a number
//! or a time; filters cannot use measures; nested groups and other domains are refused; unknown members of the body and
//! explicit nulls are ignored.
//!
//! This module does not read data, and must not panic for any body.

use std::collections::HashSet;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Map, Value as Json, json};

use super::catalog::{self, CustomMeasures};
use super::error::{ApiError, quoted};
use super::members::{Dimension, Kind, Measure, Member};
use super::time::{self, Grain};

/// The domain, which is also in every path.
const DOMAIN: &str = "Conversations";

/// Limits of one query, so that no body can make evaluation expensive.
const MOST_MEMBERS: usize = 50;
const MOST_EXPRESSIONS: usize = 200;

/// A valid query.
pub struct Query {
    /// The measures, under the names that the request uses.
    pub measures: Vec<(String, &'static Measure)>,
    /// The dimensions, under the names that the request uses.
    pub dimensions: Vec<(String, Column)>,
    /// All of these must hold.
    pub filters: Vec<Group>,
    /// The first difference decides.
    pub order: Vec<Order>,
    /// The zone in which days begin.
    pub zone: TimeZone,
}

/// A dimension, with an optional grain.
#[derive(Clone, Copy)]
pub struct Column {
    /// The dimension.
    pub dimension: &'static Dimension,
    /// Only for times.
    pub grain: Option<Grain>,
}

/// Conditions of which all, or at least one, must hold.
pub struct Group {
    /// Whether one is enough.
    pub any: bool,
    /// The conditions, at least one.
    pub conditions: Vec<Condition>,
}

/// A comparison of one column with constants.
pub struct Condition {
    /// The column to compare.
    pub column: Column,
    /// The comparison and its constants.
    pub test: Test,
}

/// Comparisons, by the type of the column.
#[derive(Debug)]
pub enum Test {
    /// Equal to one of these texts; a list is equal when one of its elements is.
    Text(HashSet<String>),
    /// Equal to one of these numbers.
    Numbers(Vec<f64>),
    /// Equal to one of these.
    Flags(Vec<bool>),
    /// Equal to one of these times.
    Moments(Vec<Timestamp>),
    /// Greater than this number.
    NumberAbove(f64),
    /// Less than this number.
    NumberBelow(f64),
    /// Later than this time.
    After(Timestamp),
    /// Earlier than this time.
    Before(Timestamp),
    /// The opposite of this; an absent value is different from every constant.
    Not(Box<Test>),
}

/// One entry of `orderBy`.
pub struct Order {
    /// The member that decides.
    pub by: OrderBy,
    /// Whether the largest values come first.
    pub descending: bool,
}

/// The member that an order uses. It need not be selected.
#[derive(Clone, Copy)]
pub enum OrderBy {
    /// A measure.
    Measure(&'static Measure),
    /// A dimension.
    Column(Column),
}

impl Query {
    /// Parses a request body of an account with these custom measures.
    pub fn parse(body: &Json, custom: &CustomMeasures) -> Result<Self, ApiError> {
        let body = object(Some(body), "The request body")?;
        if let Some(domain) = present(body, "domain")
            && text(Some(domain), "domain")? != DOMAIN
        {
            return Err(ApiError::bad_request(format!("The only domain is {DOMAIN}")));
        }
        let query = object(present(body, "query"), "query")?;
        let zone = zone(body)?;
        let (measures, dimensions) = (measures(query, custom)?, dimensions(query, custom)?);
        if measures.is_empty() && dimensions.is_empty() {
            return Err(ApiError::bad_request("A query needs at least one measure or dimension"));
        }
        let (filters, order) = (filters(query, custom, &zone)?, order(query, custom)?);
        Ok(Self { measures, dimensions, filters, order, zone })
    }
}

/// The parts of a body that determine its rows, as compact JSON: the part that a page token needs.
pub fn essence(body: &Json) -> String {
    let timezone = &body["properties"]["timezone"];
    let mut essence = json!({"query": body["query"]});
    if !timezone.is_null() {
        essence["properties"] = json!({"timezone": timezone});
    }
    essence.to_string()
}

/// A member that is present and not null.
fn present<'a>(object: &'a Map<String, Json>, key: &str) -> Option<&'a Json> {
    object.get(key).filter(|value| !value.is_null())
}

fn object<'a>(value: Option<&'a Json>, what: &str) -> Result<&'a Map<String, Json>, ApiError> {
    value.and_then(Json::as_object).ok_or_else(|| ApiError::bad_request(format!("{what} must be a JSON object")))
}

/// A list; absent and null count as empty.
fn list<'a>(object: &'a Map<String, Json>, key: &str) -> Result<&'a [Json], ApiError> {
    match present(object, key) {
        None => Ok(&[]),
        Some(Json::Array(list)) => Ok(list),
        Some(_) => Err(ApiError::bad_request(format!("{key} must be an array"))),
    }
}

fn text<'a>(value: Option<&'a Json>, what: &str) -> Result<&'a str, ApiError> {
    value.and_then(Json::as_str).ok_or_else(|| ApiError::bad_request(format!("{what} must be a string")))
}

fn zone(body: &Map<String, Json>) -> Result<TimeZone, ApiError> {
    let Some(properties) = present(body, "properties") else {
        return Ok(TimeZone::UTC);
    };
    match present(object(Some(properties), "properties")?, "timezone") {
        None => Ok(TimeZone::UTC),
        Some(name) => {
            let name = text(Some(name), "properties.timezone")?;
            time::zone(name).ok_or_else(|| ApiError::bad_request(format!("{} is not an IANA time zone", quoted(name))))
        }
    }
}

/// Names of members without repetition; each must exist.
fn names<'a>(query: &'a Map<String, Json>, key: &str) -> Result<Vec<&'a str>, ApiError> {
    let mut names = Vec::new();
    for entry in list(query, key)? {
        let name = text(Some(entry), &format!("Every entry of {key}"))?;
        if !names.contains(&name) {
            names.push(name);
        }
        if names.len() > MOST_MEMBERS {
            return Err(ApiError::bad_request(format!("{key} may hold at most {MOST_MEMBERS} names")));
        }
    }
    Ok(names)
}

fn measures(query: &Map<String, Json>, custom: &CustomMeasures) -> Result<Vec<(String, &'static Measure)>, ApiError> {
    names(query, "measures")?
        .into_iter()
        .map(|name| match resolve(name, custom)? {
            OrderBy::Measure(measure) => Ok((name.to_owned(), measure)),
            OrderBy::Column(_) => Err(ApiError::bad_request(format!("{} is a dimension, not a measure", quoted(name)))),
        })
        .collect()
}

fn dimensions(query: &Map<String, Json>, custom: &CustomMeasures) -> Result<Vec<(String, Column)>, ApiError> {
    names(query, "dimensions")?
        .into_iter()
        .map(|name| match resolve(name, custom)? {
            OrderBy::Column(column) => Ok((name.to_owned(), column)),
            OrderBy::Measure(_) => {
                Err(ApiError::bad_request(format!("{} is a measure, not a dimension", quoted(name))))
            }
        })
        .collect()
}

/// Any member, with a grain where its type allows one.
fn resolve(name: &str, custom: &CustomMeasures) -> Result<OrderBy, ApiError> {
    match catalog::member(name, custom) {
        Some(Member::Measure(measure)) => return Ok(OrderBy::Measure(measure)),
        Some(Member::Dimension(dimension)) => {
            return Ok(OrderBy::Column(Column { dimension, grain: None }));
        }
        None => {}
    }
    if let Some((base, grain)) = name.rsplit_once('.')
        && let Some(Member::Dimension(dimension)) = catalog::member(base, custom)
        && dimension.kind == Kind::Time
    {
        let grain = Grain::from_word(grain)
            .ok_or_else(|| ApiError::bad_request(format!("{} is not a grain", quoted(grain))))?;
        return Ok(OrderBy::Column(Column { dimension, grain: Some(grain) }));
    }
    Err(ApiError::bad_request(format!("Unknown field {}", quoted(name))))
}

fn filters(query: &Map<String, Json>, custom: &CustomMeasures, zone: &TimeZone) -> Result<Vec<Group>, ApiError> {
    let mut budget = MOST_EXPRESSIONS;
    list(query, "filters")?
        .iter()
        .map(|entry| group(object(Some(entry), "Every filter group")?, custom, zone, &mut budget))
        .collect()
}

fn group(
    group: &Map<String, Json>,
    custom: &CustomMeasures,
    zone: &TimeZone,
    budget: &mut usize,
) -> Result<Group, ApiError> {
    let any = match present(group, "op") {
        None => false,
        Some(op) => match text(Some(op), "op")? {
            "AND" => false,
            "OR" => true,
            other => {
                return Err(ApiError::bad_request(format!("{} cannot join a group: use AND or OR", quoted(other))));
            }
        },
    };
    let expressions = list(group, "expressions")?;
    if expressions.is_empty() {
        return Err(ApiError::bad_request("A filter group needs at least one expression"));
    }
    *budget = budget
        .checked_sub(expressions.len())
        .ok_or_else(|| ApiError::bad_request(format!("A query may hold at most {MOST_EXPRESSIONS} expressions")))?;
    let conditions = expressions
        .iter()
        .map(|entry| condition(object(Some(entry), "Every expression")?, custom, zone))
        .collect::<Result<_, _>>()?;
    Ok(Group { any, conditions })
}

fn condition(expression: &Map<String, Json>, custom: &CustomMeasures, zone: &TimeZone) -> Result<Condition, ApiError> {
    if present(expression, "expressions").is_some() {
        return Err(ApiError::bad_request("Filter groups cannot be nested"));
    }
    let op = text(present(expression, "op"), "op")?;
    if !matches!(op, "EQ" | "NE" | "GT" | "LT" | "IN") {
        return Err(ApiError::bad_request(format!("{} is not an operator: use EQ, NE, GT, LT or IN", quoted(op))));
    }
    let field = text(present(expression, "field"), "field")?;
    let column = match resolve(field, custom)? {
        OrderBy::Column(column) => column,
        OrderBy::Measure(_) => {
            return Err(ApiError::bad_request(format!("{} is a measure: filters take dimensions", quoted(field))));
        }
    };
    let values = list(expression, "values")?
        .iter()
        .map(|value| text(Some(value), "Every entry of values"))
        .collect::<Result<Vec<_>, _>>()?;
    match (op, values.len()) {
        ("IN", 1..) | (_, 1) => {}
        ("IN", _) => return Err(ApiError::bad_request("IN needs at least one value")),
        _ => return Err(ApiError::bad_request(format!("{op} needs exactly one value"))),
    }
    let test = test(op, column.dimension.kind, &values, zone)?;
    Ok(Condition { column, test })
}

fn test(op: &str, kind: Kind, values: &[&str], zone: &TimeZone) -> Result<Test, ApiError> {
    let equal = match kind {
        Kind::String => Test::Text(values.iter().map(|&value| value.to_owned()).collect()),
        Kind::Number => Test::Numbers(each(values, "a number", |value| {
            value.parse().ok().filter(|number: &f64| number.is_finite())
        })?),
        Kind::Boolean => Test::Flags(each(values, "true or false", |value| value.parse().ok())?),
        Kind::Time => Test::Moments(each(values, "a date or an RFC 3339 time", |value| time::moment(value, zone))?),
    };
    match (op, equal) {
        ("EQ" | "IN", equal) => Ok(equal),
        ("NE", equal) => Ok(Test::Not(Box::new(equal))),
        ("GT", Test::Numbers(numbers)) if let [limit] = numbers[..] => Ok(Test::NumberAbove(limit)),
        ("LT", Test::Numbers(numbers)) if let [limit] = numbers[..] => Ok(Test::NumberBelow(limit)),
        ("GT", Test::Moments(moments)) if let [limit] = moments[..] => Ok(Test::After(limit)),
        ("LT", Test::Moments(moments)) if let [limit] = moments[..] => Ok(Test::Before(limit)),
        (op, _) => Err(ApiError::bad_request(format!("{op} cannot compare a {}", kind.word()))),
    }
}

fn each<T>(values: &[&str], expected: &str, read: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, ApiError> {
    values
        .iter()
        .map(|value| read(value).ok_or_else(|| ApiError::bad_request(format!("{} is not {expected}", quoted(value)))))
        .collect()
}

fn order(query: &Map<String, Json>, custom: &CustomMeasures) -> Result<Vec<Order>, ApiError> {
    let entries = list(query, "orderBy")?;
    if entries.len() > MOST_MEMBERS {
        return Err(ApiError::bad_request(format!("orderBy may hold at most {MOST_MEMBERS} entries")));
    }
    entries
        .iter()
        .map(|entry| {
            let entry = object(Some(entry), "Every entry of orderBy")?;
            let by = resolve(text(present(entry, "field"), "orderBy.field")?, custom)?;
            let descending = match present(entry, "direction") {
                None => false,
                Some(direction) => match text(Some(direction), "orderBy.direction")? {
                    "ASC" => false,
                    "DESC" => true,
                    other => {
                        return Err(ApiError::bad_request(format!(
                            "{} is not a direction: use ASC or DESC",
                            quoted(other)
                        )));
                    }
                },
            };
            Ok(Order { by, descending })
        })
        .collect()
}

#[cfg(test)]
mod tests;
