//! The forms of values in a configuration file, and their JSON Schemas.

use std::ops::RangeInclusive;

use serde_json::{Value, json};

use crate::twilio::query::Comparison;

/// The form of a key's value. A value with this form may still be invalid.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Shape {
    Boolean,
    Number(RangeInclusive<u32>),
    Fraction(RangeInclusive<f64>),
    Duration,
    PositiveDuration,
    Size,
    Rate,
    Text,
    Texts,
    /// One of a fixed set of words.
    Word(Vec<&'static str>),
    /// A list of words from a fixed set.
    Words(Vec<&'static str>),
    /// The name of another table. The default depends on the tables that exist.
    Reference,
    /// The secret itself, or where it is stored.
    Secret,
    /// A secret, or a list of secrets.
    Secrets,
    /// The proxy's URL, or a table with its password. The default comes from the environment.
    Proxy,
    /// Certificate and key.
    Tls,
    /// Hashes of access tokens, some with an expiry.
    Tokens,
    /// Filters that are added to all queries.
    Filters,
}

impl Shape {
    /// Whether the default is the same in every configuration.
    pub(super) fn has_fixed_default(&self) -> bool {
        !matches!(self, Self::Reference | Self::Proxy)
    }

    /// The form as a JSON Schema.
    pub(super) fn schema(&self) -> Value {
        match self {
            Self::Boolean => json!({ "type": "boolean" }),
            Self::Number(limits) => json!({ "type": "integer", "minimum": limits.start(), "maximum": limits.end() }),
            Self::Fraction(limits) => json!({ "type": "number", "minimum": limits.start(), "maximum": limits.end() }),
            Self::Duration => pattern("[0-9]+(ms|s|m|h|d)"),
            Self::PositiveDuration => pattern("0*[1-9][0-9]*(ms|s|m|h|d)"),
            Self::Size => pattern("[0-9]+([KMG]iB|[kKMG]?B)"),
            Self::Rate => pattern("[0-9]+/(s|m|min|h)"),
            Self::Text | Self::Reference => text(),
            Self::Texts => list(text()),
            Self::Word(words) => json!({ "enum": words }),
            Self::Words(words) => list(json!({ "enum": words })),
            Self::Secret => any_of([text(), stored_secret()]),
            Self::Secrets => any_of([Self::Secret.schema(), list(Self::Secret.schema())]),
            Self::Proxy => {
                any_of([text(), table(json!({ "url": text(), "password": Self::Secret.schema() }), &["url"])])
            }
            Self::Tls => table(json!({ "cert": text(), "key": text(), "client_ca": text() }), &[]),
            Self::Tokens => {
                let token = any_of([text(), table(json!({ "sha256": text(), "expires": text() }), &["sha256"])]);
                any_of([token.clone(), list(token)])
            }
            Self::Filters => {
                let op = json!({ "enum": Comparison::ALL.map(Comparison::as_str) });
                let filter = json!({ "op": op, "field": text(), "values": list(text()) });
                list(table(filter, &["op", "field", "values"]))
            }
        }
    }
}

fn text() -> Value {
    json!({ "type": "string", "minLength": 1 })
}

fn pattern(whole: &str) -> Value {
    json!({ "type": "string", "pattern": format!("^{whole}$") })
}

fn list(items: Value) -> Value {
    json!({ "type": "array", "items": items })
}

fn table(properties: Value, required: &[&str]) -> Value {
    json!({ "type": "object", "additionalProperties": false, "properties": properties, "required": required })
}

fn any_of<const N: usize>(schemas: [Value; N]) -> Value {
    json!({ "anyOf": schemas.to_vec() })
}

fn stored_secret() -> Value {
    let mut form = table(json!({ "file": text(), "env": text(), "credential": text() }), &[]);
    form["minProperties"] = 1.into();
    form["maxProperties"] = 1.into();
    form
}
