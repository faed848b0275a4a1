//! The language of `--filter`: a field, an operator, and values.
//!
//! ```text
//! FILTER   = FIELD OPERATOR VALUE *("," VALUE)
//! OPERATOR = "=" / "!=" / "<" / ">"
//! VALUE    = QUOTED / PLAIN
//! QUOTED   = <"> *(any character but <"> / <""> for one quote) <">
//! PLAIN    = anything without a comma that does not begin with a quote
//! ```
//!
//! The first operator splits, so everything after it belongs to the values. `=` with several values is `IN`; the other
//! operators take one value. Nothing is trimmed: a space in a value is part of it.

use std::fmt;
use std::str::FromStr;

use serde_json::{Value as Json, json};

use crate::cli::text::steers;

/// A comparison of Twilio's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// Equal to the one value.
    Eq,
    /// Equal to any of the values.
    In,
    /// Different from the one value.
    Ne,
    /// Less than the one value; on times, before it.
    Lt,
    /// Greater than the one value; on times, after it.
    Gt,
}

impl Operator {
    /// Twilio's word for it.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Eq => "EQ",
            Self::In => "IN",
            Self::Ne => "NE",
            Self::Lt => "LT",
            Self::Gt => "GT",
        }
    }
}

/// One condition that rows must meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// The dimension.
    pub field: String,
    /// The comparison.
    pub op: Operator,
    /// The values: several for `IN`, else one.
    pub values: Vec<String>,
}

impl Filter {
    /// A comparison with one value.
    pub fn new(field: &str, op: Operator, value: &str) -> Self {
        Self { field: field.to_owned(), op, values: vec![value.to_owned()] }
    }

    /// The expression in the form of Twilio's API.
    pub fn to_json(&self) -> Json {
        json!({"op": self.op.as_str(), "field": self.field, "values": self.values})
    }
}

/// What is wrong with a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// No operator at all.
    #[error("expected FIELD=VALUE, FIELD!=VALUE, FIELD<VALUE or FIELD>VALUE; quote it for the shell: '…'")]
    NoOperator,
    /// `>=` or `<=`.
    #[error("Twilio has no >= and no <=; use > or < with the next value")]
    OrEqual,
    /// No name, or an unlikely one, before the operator.
    #[error("the field before the operator must be a name such as Conversation.ConversationStatus, without spaces")]
    Field,
    /// An empty value.
    #[error("a value is empty; if that is meant, write \"\"")]
    Empty,
    /// A value that begins with a quote but does not end with one.
    #[error(
        "a value that begins with a double quote must end with one, before a comma or the end; \"\" is a quote in it"
    )]
    Quote,
    /// Several values for an operator that takes one.
    #[error("only = takes several values; a value with a comma is written in double quotes")]
    Several,
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let (field, symbol, rest) = split(text).ok_or(FilterError::NoOperator)?;
        if matches!(symbol, "<" | ">") && rest.starts_with('=') {
            return Err(FilterError::OrEqual);
        }
        let field = member(field).map_err(|_| FilterError::Field)?;
        let values = values(rest)?;
        let op = match (symbol, values.len()) {
            ("=", 1) => Operator::Eq,
            ("=", _) => Operator::In,
            (_, 2..) => return Err(FilterError::Several),
            ("!=", _) => Operator::Ne,
            ("<", _) => Operator::Lt,
            (_, _) => Operator::Gt,
        };
        Ok(Self { field, op, values })
    }
}

/// Splits at the first operator.
fn split(text: &str) -> Option<(&str, &str, &str)> {
    let at = text.find(['=', '<', '>'])?;
    let (field, rest) = text.split_at(at);
    let (symbol, rest) = rest.split_at(1);
    match field.strip_suffix('!') {
        Some(field) if symbol == "=" => Some((field, "!=", rest)),
        _ => Some((field, symbol, rest)),
    }
}

fn values(mut text: &str) -> Result<Vec<String>, FilterError> {
    let mut values = Vec::new();
    loop {
        let (value, rest) = match text.strip_prefix('"') {
            Some(quoted) => quoted_value(quoted)?,
            None => {
                let (value, rest) = text.split_at(text.find(',').unwrap_or(text.len()));
                if value.is_empty() {
                    return Err(FilterError::Empty);
                }
                (value.to_owned(), rest)
            }
        };
        values.push(value);
        match rest.strip_prefix(',') {
            Some(rest) => text = rest,
            None if rest.is_empty() => return Ok(values),
            None => return Err(FilterError::Quote),
        }
    }
}

/// A value up to its closing quote, and the text after that.
fn quoted_value(mut text: &str) -> Result<(String, &str), FilterError> {
    let mut value = String::new();
    loop {
        let (before, after) = text.split_once('"').ok_or(FilterError::Quote)?;
        value.push_str(before);
        match after.strip_prefix('"') {
            Some(rest) => {
                value.push('"');
                text = rest;
            }
            None => return Ok((value, after)),
        }
    }
}

/// In the form in which it is typed. The output reads back as the same filter.
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let symbol = match self.op {
            Operator::Eq | Operator::In => "=",
            Operator::Ne => "!=",
            Operator::Lt => "<",
            Operator::Gt => ">",
        };
        write!(f, "{}{symbol}", self.field)?;
        for (i, value) in self.values.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            // `>=` is refused, so a value that begins with an equals sign is quoted after `>`.
            match value.is_empty() || value.contains(',') || value.starts_with(['"', '=']) {
                true => write!(f, "{comma}\"{}\"", value.replace('"', "\"\""))?,
                false => write!(f, "{comma}{value}")?,
            }
        }
        Ok(())
    }
}

/// Checks that this can be the name of a measure or a dimension, without knowing the names that exist.
pub(super) fn member(text: &str) -> Result<String, &'static str> {
    let is_odd = |c: char| c.is_whitespace() || steers(c) || matches!(c, '"' | '!' | ',');
    match text.is_empty() || text.contains(is_odd) {
        true => Err("expected the name of a member, such as Conversation.Count"),
        false => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<(Operator, Vec<String>), FilterError> {
        text.parse().map(|filter: Filter| {
            assert_eq!(filter.field, "C.F");
            (filter.op, filter.values)
        })
    }

    #[test]
    fn operators_and_values_are_read_as_documented() {
        use Operator::*;
        for (text, op, values) in [
            ("C.F=CLOSED", Eq, &["CLOSED"][..]),
            ("C.F=a,b", In, &["a", "b"]),
            ("C.F=a,a", In, &["a", "a"]),
            ("C.F!=a", Ne, &["a"]),
            ("C.F<2026-04-02", Lt, &["2026-04-02"]),
            ("C.F>0.5", Gt, &["0.5"]),
            // A comma in quotes.
            (r#"C.F="a,b""#, Eq, &["a,b"]),
            (r#"C.F="a,b",c,"d""#, In, &["a,b", "c", "d"]),
            (r#"C.F!="a,b""#, Ne, &["a,b"]),
            (r#"C.F="say ""yes"", please""#, Eq, &[r#"say "yes", please"#]),
            (r#"C.F="""#, Eq, &[""]),
            (r#"C.F="""""#, Eq, &["\""]),
            // Quotes count only at the start of a value.
            (r#"C.F=5" pipe"#, Eq, &["5\" pipe"]),
            (r#"C.F=a"b,c"d"#, In, &["a\"b", "c\"d"]),
            // The first operator splits.
            ("C.F=a=b", Eq, &["a=b"]),
            ("C.F==b", Eq, &["=b"]),
            ("C.F=a!=b", Eq, &["a!=b"]),
            ("C.F=>5", Eq, &[">5"]),
            ("C.F<>5", Lt, &[">5"]),
            ("C.F!=<b", Ne, &["<b"]),
            (r#"C.F>"=5""#, Gt, &["=5"]),
            // Nothing is trimmed.
            ("C.F= a", Eq, &[" a"]),
            ("C.F=a, b ", In, &["a", " b "]),
            ("C.F=John Smith", Eq, &["John Smith"]),
            ("C.F=é,日本", In, &["é", "日本"]),
        ] {
            let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
            assert_eq!(read(text), Ok((op, values)), "{text}");
        }
    }

    #[test]
    fn invalid_filters_are_refused() {
        for (text, error) in [
            ("", FilterError::NoOperator),
            ("C.F", FilterError::NoOperator),
            ("C.F!a", FilterError::NoOperator),
            ("C.F>=5", FilterError::OrEqual),
            ("C.F<=5", FilterError::OrEqual),
            ("=a", FilterError::Field),
            ("!=a", FilterError::Field),
            ("C.F = a", FilterError::Field),
            (" C.F=a", FilterError::Field),
            ("C.F!<a", FilterError::Field),
            ("C.F=", FilterError::Empty),
            ("C.F=a,", FilterError::Empty),
            ("C.F=,a", FilterError::Empty),
            ("C.F=a,,b", FilterError::Empty),
            (r#"C.F="a"#, FilterError::Quote),
            (r#"C.F="a"b"#, FilterError::Quote),
            (r#"C.F="a" ,b"#, FilterError::Quote),
            (r#"C.F=""a""#, FilterError::Quote),
            ("C.F!=a,b", FilterError::Several),
            ("C.F<1,2", FilterError::Several),
            (r#"C.F>"1","2""#, FilterError::Several),
        ] {
            assert_eq!(text.parse::<Filter>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_written_filter_reads_back(
            field in "[A-Za-z][A-Za-z0-9_.]{0,20}",
            op in prop::sample::select(vec![Operator::Eq, Operator::Ne, Operator::Lt, Operator::Gt]),
            values in prop::collection::vec("[a,\"=<>! é]{0,6}", 1..4),
        ) {
            let (op, values) = match (op, values.len()) {
                (Operator::Eq, 2..) => (Operator::In, values),
                (op, _) => (op, values[..1].to_vec()),
            };
            let filter = Filter { field, op, values };
            prop_assert_eq!(filter.to_string().parse(), Ok(filter));
        }

        #[test]
        fn arbitrary_text_neither_panics_nor_loses_characters(text in "[CF.=<>!,\" a]{0,16}|.*") {
            if let Ok(filter) = text.parse::<Filter>() {
                prop_assert!(text.starts_with(&filter.field));
                prop_assert_eq!(filter.op == Operator::In, filter.values.len() > 1);
                prop_assert_eq!(filter.to_string().parse(), Ok(filter));
            }
        }
    }
}
